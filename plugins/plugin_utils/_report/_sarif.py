# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""SARIF 2.1.0 for code-scanning pages: one run, a rule for each check, a result for each finding.

The format is OASIS's (https://docs.oasis-open.org/sarif/sarif/v2.1.0/), and what a code-scanning page takes of it is in
GitHub's "SARIF support for code scanning": a location, ``security-severity`` of rules, and fingerprints.
"""

from __future__ import annotations

import functools
import hashlib
import json
import typing as t
from urllib.parse import quote

from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import SEVERITIES
from ansible_collections.quaywall.docker.plugins.plugin_utils._report._about import about
from ansible_collections.quaywall.docker.plugins.plugin_utils._report._model import (
    JUDGED,
    NEW,
    Finding,
    Host,
    Item,
    Report,
)
from ansible_collections.quaywall.docker.plugins.plugin_utils._report._time import stamp

Json = t.Dict[str, t.Any]

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVELS = {"critical": "error", "high": "error", "medium": "warning", "low": "note", "info": "note"}
#: Over 9.0 is critical, 7.0 to 8.9 high, 4.0 to 6.9 medium, 0.1 to 3.9 low: GitHub's documentation.
_SCORES = {"critical": "9.5", "high": "8.0", "medium": "5.5", "low": "2.0", "info": "0.0"}
_RANKS = {"critical": 95.0, "high": 80.0, "medium": 55.0, "low": 20.0, "info": 0.0}
_HOME = "https://github.com/quaywall/quaywall.docker"


def render(report: Report) -> t.Iterator[str]:
    """The document, piece by piece."""
    # In one go: only then json is fast.
    yield json.dumps(_log(report), ensure_ascii=False, separators=(",", ":"))
    yield "\n"


def _log(report: Report) -> Json:
    judged = [host for host in report.hosts if host.state == JUDGED]
    worst: t.Dict[str, str] = {}
    for host in judged:
        for finding in (*(item.finding for item in host.items), *host.ignored):
            known = worst.setdefault(finding.check, finding.severity)
            if SEVERITIES.index(finding.severity) > SEVERITIES.index(known):
                worst[finding.check] = finding.severity
    indexes = {check: index for index, check in enumerate(sorted(worst))}
    results = [result for host in judged for result in _results(host, indexes)]
    run: Json = {
        "tool": {
            "driver": {
                "name": "quaywall.docker",
                "fullName": "docker_fw_audit of the Ansible collection quaywall.docker",
                "informationUri": _HOME,
                "version": report.version,
                "rules": [_rule(check, worst[check]) for check in indexes],
            }
        },
        "automationDetails": {"id": "quaywall.docker/"},
        "columnKind": "unicodeCodePoints",
        "invocations": [
            {
                "executionSuccessful": len(judged) == len(report.hosts),
                "endTimeUtc": stamp(report.at),
                "toolExecutionNotifications": [_notification(host) for host in report.hosts if host.state != JUDGED],
            }
        ],
        "results": results,
    }
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(check: str, worst: str) -> Json:
    help_ = about(check)
    text = " ".join(part for part in (help_.what, help_.advice) if part)
    return {
        "id": check,
        "name": "".join(word.capitalize() for word in check.split("_")),
        "shortDescription": {"text": help_.title},
        "fullDescription": {"text": help_.what},
        "help": {
            "text": text,
            "markdown": "%s\n\n**What to do:** %s" % (help_.what, help_.advice) if help_.advice else help_.what,
        },
        "helpUri": _HOME,
        "defaultConfiguration": {"level": _LEVELS[worst]},
        "properties": {
            "tags": ["security", "docker", "firewall"],
            "precision": "high",
            "problem.severity": {"error": "error", "warning": "warning", "note": "recommendation"}[_LEVELS[worst]],
            # Of the rule, as pages read it there only: that of its most severe finding in this run.
            "security-severity": _SCORES[worst],
        },
    }


def _notification(host: Host) -> Json:
    return {
        "level": "error",
        "message": {"text": "%s: %s" % (host.name, host.message)},
        "descriptor": {"id": host.state},
        "locations": [{"logicalLocations": [{"name": host.name, "kind": "host"}]}],
    }


def _results(host: Host, indexes: t.Mapping[str, int]) -> t.Iterator[Json]:
    seen: t.Dict[str, int] = {}
    for item in (*host.items, *(Item(finding) for finding in host.ignored)):
        finding = item.finding
        # Rules that are the same have findings of the same id; a page would take them for one.
        number = seen[finding.id] = seen.get(finding.id, 0) + 1
        name = "%s:%s%s" % (host.name, finding.id, ":%d" % number if number > 1 else "")
        yield _result(host, item, name, indexes[finding.check])


def _result(host: Host, item: Item, name: str, index: int) -> Json:
    finding = item.finding
    told = finding.message
    if finding.reasons:
        told += " This hangs on %s." % "; ".join(finding.reasons)
    if finding.fix is not None and finding.fix.description:
        told += "\n\nFix: %s" % finding.fix.description
    result: Json = {
        "ruleId": finding.check,
        "ruleIndex": index,
        "level": _LEVELS[finding.severity],
        "rank": _RANKS[finding.severity],
        # Braces and brackets are markup in a message of SARIF (3.11.5, 3.11.6), and a host's text is not.
        "message": {"text": _escaped(told)},
        "locations": [_location(host, finding)],
        "partialFingerprints": {
            "quaywallFinding/v1": name,
            "primaryLocationLineHash": hashlib.sha256(name.encode("utf-8")).hexdigest()[:16] + ":1",
        },
        "properties": _properties(host, finding),
    }
    if item.status:
        result["baselineState"] = "new" if item.status == NEW else "unchanged"
    if finding.ignored_because is not None:
        result["suppressions"] = [{"kind": "external", "status": "accepted", "justification": finding.ignored_because}]
    return result


def _escaped(message: str) -> str:
    for char in "\\[]":
        message = message.replace(char, "\\" + char)
    return message.replace("{", "{{").replace("}", "}}")


def _location(host: Host, finding: Finding) -> Json:
    parts = [host.name, *filter(None, (finding.family, finding.table, finding.chain))]
    region: Json = {"startLine": max(finding.position, 1)}
    if finding.rule:
        region["snippet"] = {"text": finding.rule}
    full = "/".join(parts) + ("#%d" % finding.position if finding.position else "")
    return {
        "physicalLocation": {
            # No file: a page wants one, and this groups what belongs together.
            "artifactLocation": {"uri": "/".join(map(_segment, parts))},
            "region": region,
        },
        "logicalLocations": [
            {
                "name": finding.chain or host.name,
                "fullyQualifiedName": full,
                "kind": "chain" if finding.chain else "host",
            }
        ],
    }


@functools.lru_cache(maxsize=4096)
def _segment(part: str) -> str:
    """A part of a relative URI. One of dots only would lead elsewhere."""
    segment = quote(part, safe="")
    return segment.replace(".", "%2E") if not segment.strip(".") else segment


def _properties(host: Host, finding: Finding) -> Json:
    fix = finding.fix
    return {
        "host": host.name,
        "findingId": finding.id,
        "severity": finding.severity,
        "certainty": finding.certainty,
        "variant": finding.variant or None,
        "containers": [dict(hit._asdict()) for hit in finding.affected],
        "reasons": list(finding.reasons),
        # A fix of SARIF edits files; this one is tasks or commands.
        "fix": None
        if fix is None
        else {
            "description": fix.description,
            "tasks": fix.playbook,
            "commands": list(fix.commands),
            "gains": list(fix.gains),
            "loses": list(fix.loses),
        },
    }
