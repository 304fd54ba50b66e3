# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Results of audits for the tests of reports: real ones of made-up hosts, and what a report must stand besides them."""

from __future__ import annotations

import copy
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._audit._checks import CHECKS, audit
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import from_json
from ansible_collections.quaywall.docker.plugins.plugin_utils._report._model import Earlier, Report, build
from ansible_collections.quaywall.docker.tests.unit.snapshots import Box, Document, fixture, host

Result = t.Dict[str, t.Any]

#: 2026-11-23T14:10:01Z.
AT = 1795443001.0

#: Texts that would be markup, a template, or unseen, were they not escaped. Docker gives no container such a name, but
#: comments of rules, reasons and hosts' names are anybody's.
HOSTILE = (
    "</script><script>window.hacked=1</script>",
    '"><img src=x onerror="window.hacked=1">',
    "<!--",
    "]]>",
    "{{ lookup('pipe', 'id') }}",
    "{% raw %}",
    "javascript:alert(1)",
    "a\u202eb\u200bc",
    "\x00\x1b[31m\x7f",
    "line\nbreak\u2028\u2029",
    "\udcff",
    "\ud800",
    "'; DROP TABLE hosts; --",
    "\\{0}[x](http://example.org)",
    "\U0001f6a2 \u6e2f",
)


def judged(document: Document, ignore: t.Collection[str] = ()) -> Result:
    """What docker_fw_audit returns of a host; findings of the checks named are ignored."""
    found = [finding.to_result() for finding in audit(from_json(document))]
    return {
        "changed": False,
        "failed": False,
        "msg": "%d findings." % len(found),
        "findings": [item for item in found if item["check"] not in ignore],
        "ignored": [dict(item, ignored_because="It is known.") for item in found if item["check"] in ignore],
    }


def audits() -> t.Dict[str, Result]:
    """A small fleet: good and bad hosts, one that was not reached, and one whose audit failed."""
    boxes = [Box("shop", "8080:8080"), Box("admin", "9000:8080"), Box("db", "5432:5432")]
    return {
        "web1": judged(host("28.5", boxes, ["-p tcp -m tcp --dport 8080 -j DROP", "-d 172.17.0.9/32 -j DROP"])),
        "web2": judged(host("26.1", boxes, ["-p tcp -m tcp --dport 8080 -j DROP"]), ignore=["exposed"]),
        "db1": judged(host("20.10", boxes, ["-i eth0 ! -s 203.0.113.0/24 -j DROP"])),
        "old": judged(fixture("moby-12294", "wiped")),
        "quiet": judged(host("28.5", [])),
        "away": {"unreachable": True, "changed": False, "msg": "Failed to connect to the host via ssh."},
        "broken": {"failed": True, "msg": "The Docker daemon does not answer."},
    }


def hostile(base: Result) -> t.Dict[str, Result]:
    """Hosts with such texts for names, and findings with them wherever there is text."""
    found = {}
    for text in HOSTILE:
        result = copy.deepcopy(base)
        for finding in result["findings"]:
            finding.update(message=text, rule=text, chain=text, reasons=[text])
            for hit in finding["affected"]:
                hit.update(dict.fromkeys(("container", "network", "published", "peers", "traffic", "address"), text))
            finding["fix"] = {
                "description": text,
                "tasks": [{"name": text, "ansible.builtin.command": {"argv": [text]}}],
                "commands": [text],
                "gains": [text],
                "loses": [text],
            }
        result["ignored"] = [dict(item, ignored_because=text) for item in result["findings"]]
        found[text] = result
    found["<b>broken</b>"] = {"failed": True, "msg": "<i>%s</i>" % HOSTILE[0]}
    return found


def report(results: t.Mapping[str, t.Any], earlier: t.Optional[Earlier] = None, at: float = AT) -> Report:
    return build(results, "Audit", at, "1.0.0", tuple(CHECKS), earlier)
