# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""JUnit XML for CI services: a suite for each host, in it a case for each check."""

from __future__ import annotations

import re
import typing as t
from xml.sax.saxutils import escape

from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import SEVERITIES
from ansible_collections.quaywall.docker.plugins.plugin_utils._report._about import about
from ansible_collections.quaywall.docker.plugins.plugin_utils._report._model import JUDGED, Finding, Host, Report
from ansible_collections.quaywall.docker.plugins.plugin_utils._report._time import stamp

#: What XML 1.0 cannot hold (https://www.w3.org/TR/xml/#charsets).
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class _Suite(t.NamedTuple):
    """A host's suite, and how many cases are in it."""

    text: str
    tests: int
    failures: int
    errors: int
    skipped: int


def render(report: Report, checks: t.Sequence[str], fail_on: str) -> t.Iterator[str]:
    """The document, piece by piece.

    :param checks: the names of all checks.
    :param fail_on: the severity from which on a finding is a failure; C(none): none is.
    """
    suites = [_suite(host, checks, fail_on, stamp(report.at)[:-1]) for host in report.hosts]
    yield '<?xml version="1.0" encoding="UTF-8"?>\n'
    yield '<testsuites name="%s" tests="%d" failures="%d" errors="%d" skipped="%d" time="0">\n' % (
        _text(report.title),
        sum(suite.tests for suite in suites),
        sum(suite.failures for suite in suites),
        sum(suite.errors for suite in suites),
        sum(suite.skipped for suite in suites),
    )
    for suite in suites:
        yield suite.text
    yield "</testsuites>\n"


def _suite(host: Host, checks: t.Sequence[str], fail_on: str, at: str) -> _Suite:
    """A host's suite."""
    name = _text(host.name)
    cases = []
    failures = errors = skipped = 0
    if host.state != JUDGED:
        errors = 1
        cases.append(_case(name, "audit", '<error type="%s" message="%s"/>' % (host.state, _text(host.message))))
    else:
        found: t.Dict[str, t.List[Finding]] = {check: [] for check in checks}
        for item in host.items:
            found.setdefault(item.finding.check, []).append(item.finding)
        for check, findings in found.items():
            bad = [finding for finding in findings if _reaches(finding.severity, fail_on)]
            good = [finding for finding in findings if not _reaches(finding.severity, fail_on)]
            body = ""
            if host.checks is not None and check not in host.checks and not findings:
                body = '<skipped message="The audit left this check out."/>'
                skipped += 1
            if bad:
                failures += 1
                message = "%s (%d)" % (about(check).title, len(bad)) if len(bad) > 1 else about(check).title
                body = '<failure type="%s" message="%s">%s</failure>' % (
                    bad[0].severity,
                    _text(message),
                    _text("\n\n".join(map(_told, bad))),
                )
            if good:
                body += "<system-out>%s</system-out>" % _text("\n\n".join(map(_told, good)))
            cases.append(_case(name, _text(check), body))
    head = '<testsuite name="%s" hostname="%s" timestamp="%s" ' % (name, name, at)
    head += 'tests="%d" failures="%d" errors="%d" skipped="%d" time="0">\n' % (len(cases), failures, errors, skipped)
    return _Suite(head + "".join(cases) + "</testsuite>\n", len(cases), failures, errors, skipped)


def _case(host: str, check: str, body: str) -> str:
    return '<testcase classname="%s" name="%s" time="0">%s</testcase>\n' % (host, check, body)


def _reaches(severity: str, fail_on: str) -> bool:
    return fail_on != "none" and SEVERITIES.index(severity) >= SEVERITIES.index(fail_on)


def _told(finding: Finding) -> str:
    """A finding for people who read a CI job's output."""
    place = " (%s)" % finding.place if finding.place else ""
    lines = ["%s%s: %s" % (finding.severity.upper(), place, finding.message)]
    if finding.rule:
        lines.append("Rule: %s" % finding.rule)
    if finding.reasons:
        lines.append("This hangs on %s." % "; ".join(finding.reasons))
    if finding.fix is not None:
        lines.append("Fix: %s" % finding.fix.description)
        lines += ["  %s" % command for command in finding.fix.commands]
    return "\n".join(lines)


def _text(value: str) -> str:
    """Text for an element or an attribute; what XML cannot hold is written as Python writes it."""
    shown = _NO_XML.sub(lambda match: match.group().encode("unicode_escape").decode("ascii"), value)
    return escape(shown, {'"': "&quot;", "\r": "&#13;"})
