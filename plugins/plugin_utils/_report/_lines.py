# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""JSON Lines: a line per run, host and finding, to be searched, shipped, and compared with by a later run.

Each line is a JSON object with ``quaywall_report`` (the version of this format) and ``type``: C(run) comes first, then
for each host a C(host) and its C(finding)s. The module's documentation says what is in them.
"""

from __future__ import annotations

import json
import typing as t

from ansible_collections.quaywall.docker.plugins.plugin_utils._report._model import (
    FAILED,
    GONE,
    JUDGED,
    NOT_JUDGED,
    UNREACHABLE,
    Earlier,
    EarlierHost,
    Finding,
    Host,
    Report,
    ReportError,
    read_finding,
)
from ansible_collections.quaywall.docker.plugins.plugin_utils._report._time import stamp

VERSION = 1


def render(report: Report) -> t.Iterator[str]:
    """The lines of a report, each with its end."""
    yield _line(
        "run",
        at=stamp(report.at),
        title=report.title,
        collection_version=report.version,
        hosts=report.states,
        summary=report.summary,
        comparison=report.comparison,
        earlier_at=report.earlier_at,
    )
    for host in report.hosts:
        yield from _host(host)


def _host(host: Host) -> t.Iterator[str]:
    yield _line("host", host=host.name, state=host.state, message=host.message, summary=host.summary)
    for item in host.items:
        yield _finding(host, item.finding, item.status)
    for finding in host.ignored:
        yield _finding(host, finding, "")
    for status, findings in ((GONE, host.gone), (NOT_JUDGED, host.carried)):
        for finding in findings:
            yield _finding(host, finding, status)


def _finding(host: Host, finding: Finding, status: str) -> str:
    return _line("finding", host=host.name, status=status or None, **finding.to_json())


def _line(kind: str, **values: t.Any) -> str:
    document = {"quaywall_report": VERSION, "type": kind}
    document.update(values)
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n"


def read(content: str, where: str) -> Earlier:
    """The run that such a file is about.

    :param where: the file's name, for messages.
    :raises ReportError: it is no such file, or one of a newer version.
    """
    at: t.Optional[str] = None
    known: t.Dict[str, bool] = {}
    findings: t.Dict[str, t.List[Finding]] = {}
    # Not splitlines(): a line separator of Unicode may be in a text.
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        place = "line %d of %s" % (number, where)
        document = _read(line, place)
        kind = document.get("type")
        if kind == "run":
            at = str(document.get("at") or "")
            continue
        if kind not in ("host", "finding") or not isinstance(document.get("host"), str):
            raise ReportError("previous: %s is about neither a run, a host nor a finding." % place)
        host = document["host"]
        if kind == "host":
            if document.get("state") not in (JUDGED, FAILED, UNREACHABLE):
                raise ReportError("previous: %s does not say how the host was found." % place)
            known[host] = document["state"] == JUDGED
        elif document.get("status") != GONE and document.get("ignored_because") is None:
            try:
                findings.setdefault(host, []).append(read_finding(document, place))
            except ReportError as error:
                raise ReportError("previous: %s." % error) from None
    if at is None:
        raise ReportError("previous: %s does not say of which run it is: it is no audit.jsonl, or only a part." % where)
    return Earlier(at, {host: EarlierHost(known[host], tuple(findings.get(host, ()))) for host in known})


def _read(line: str, place: str) -> t.Mapping[str, t.Any]:
    try:
        document = json.loads(line)
    except ValueError as error:
        raise ReportError("previous: %s is no JSON (%s)." % (place, error)) from None
    version = document.get("quaywall_report") if isinstance(document, dict) else None
    if not isinstance(version, int):
        raise ReportError("previous: %s is none of an audit.jsonl of this collection." % place)
    if version > VERSION:
        raise ReportError(
            "previous: %s is of version %d of the format, and this collection reads versions up to %d: take the "
            "collection that wrote it, or a newer one." % (place, version, VERSION)
        )
    return t.cast(t.Mapping[str, t.Any], document)
