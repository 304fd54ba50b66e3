# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Metrics of one host for the textfile collector of Prometheus' node_exporter."""

from __future__ import annotations

import collections
import typing as t

from ansible_collections.quaywall.docker.plugins.plugin_utils._report._model import JUDGED, RANKED

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.plugin_utils._report._model import Host, Report

_HELP = (
    ("quaywall_audit_success", "Whether docker_fw_audit judged the host (1), or failed or did not reach it (0)."),
    ("quaywall_audit_timestamp_seconds", "When the report was written, in seconds since the epoch."),
    ("quaywall_audit_findings", "Findings by check and severity, those that are ignored left out."),
    (
        "quaywall_audit_severity_findings",
        "Findings by severity, each severity present, those that are ignored left out.",
    ),
    ("quaywall_audit_ignored_findings", "Findings that somebody decided to live with, by check and severity."),
    ("quaywall_audit_compared_findings", "Findings against the earlier run: new, still there, gone, or not judged."),
)


def render(report: Report, host: Host) -> str:
    """The file of one host. Each metric names the host, so that the files of many may lie in one folder."""
    name = host.name
    values: t.Dict[str, t.List[t.Tuple[t.Dict[str, str], float]]] = {
        "quaywall_audit_success": [({"host": name}, int(host.state == JUDGED))],
        "quaywall_audit_timestamp_seconds": [({"host": name}, int(report.at))],
    }
    if host.state == JUDGED:
        # What was not judged has no number: 0 would say that all is well.
        for metric, findings in (
            ("quaywall_audit_findings", [item.finding for item in host.items]),
            ("quaywall_audit_ignored_findings", list(host.ignored)),
        ):
            found = collections.Counter((finding.check, finding.severity) for finding in findings)
            values[metric] = [
                ({"host": name, "check": check, "severity": severity}, count)
                for (check, severity), count in sorted(found.items())
            ]
        summary = host.summary
        values["quaywall_audit_severity_findings"] = [
            ({"host": name, "severity": severity}, summary[severity]) for severity in RANKED
        ]
    if report.earlier_at is not None:
        states = collections.Counter(item.status for item in host.items)
        states.update(gone=len(host.gone), not_judged=len(host.carried))
        values["quaywall_audit_compared_findings"] = [
            ({"host": name, "status": status}, states[status]) for status in ("new", "still", "gone", "not_judged")
        ]
    lines = []
    for metric, what in _HELP:
        if values.get(metric):
            lines += ["# HELP %s %s" % (metric, what), "# TYPE %s gauge" % metric]
            lines += ["%s{%s} %d" % (metric, _labels(labels), value) for labels, value in values[metric]]
    return "".join(line + "\n" for line in lines)


def _labels(labels: t.Mapping[str, str]) -> str:
    return ",".join('%s="%s"' % (name, _escaped(value)) for name, value in labels.items())


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\\\r")
