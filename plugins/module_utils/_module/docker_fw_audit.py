# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What the module docker_fw_audit does, from its options to its results."""

from __future__ import annotations

import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._audit._checks import CHECKS, audit
from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import SEVERITIES, Finding
from ansible_collections.quaywall.docker.plugins.module_utils._module._edge import printable
from ansible_collections.quaywall.docker.plugins.module_utils._module._given import (
    Collector,
    collect_here,
    document_of,
    leave_reading,
)
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6, normalise, parse
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import SnapshotError, from_json, to_json

if t.TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

NAME = "docker_fw_audit"

_FAMILY_TEXTS = {IPV4: "IPv4", IPV6: "IPv6"}


class OptionError(ValueError):
    """What is wrong with an option, as one sentence."""


class Ignore(t.NamedTuple):
    """Findings that somebody decided to live with. ``rule`` is empty for all findings of the check."""

    check: str
    rule: str
    reason: str

    def covers(self, finding: Finding) -> bool:
        if self.check != finding.check:
            return False
        if not self.rule:
            return True
        if finding.place is None:
            return False
        family = finding.place.family
        return _normal(self.rule, family) == _normal(finding.place.rule, family)


#: What is wrong with what was given, as one sentence.
ERRORS = (OptionError, SnapshotError)


def argument_spec() -> t.Dict[str, t.Any]:
    """The module's options."""
    return {
        "snapshot": {"type": "raw"},
        "return_snapshot": {"type": "bool", "default": False},
        "fail_on": {"type": "str", "choices": ["none", *SEVERITIES[1:]], "default": "none"},
        "checks": {"type": "list", "elements": "str"},
        "skip_checks": {"type": "list", "elements": "str", "default": []},
        "ignore": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "options": {
                "check": {"type": "str", "required": True},
                "rule": {"type": "str"},
                "reason": {"type": "str", "required": True},
            },
        },
    }


class Wish(t.NamedTuple):
    """What is to be judged how: the checks to make, and what becomes of their findings."""

    checks: t.Sequence[str]
    ignores: t.Sequence[Ignore]
    fail_on: str
    return_snapshot: bool


def wish(options: t.Mapping[str, t.Any]) -> Wish:
    """The wish that the module's options express.

    :raises OptionError: they make no sense.
    """
    return Wish(
        _names(options["checks"], options["skip_checks"]),
        [_ignore(item, index) for index, item in enumerate(options["ignore"])],
        options["fail_on"],
        options["return_snapshot"],
    )


def run_module(module: AnsibleModule, collector: Collector = collect_here) -> None:
    """Judge this host or the snapshot given, and leave the module. Nothing is ever changed."""

    def body() -> t.Dict[str, t.Any]:
        wanted, given = wish(module.params), module.params["snapshot"]
        return judged(collector(module) if given is None else document_of(given), wanted)

    leave_reading(module, NAME, body, ERRORS)


def judged(document: t.Any, wanted: Wish) -> t.Dict[str, t.Any]:
    """The module's results, with C(failed).

    :param document: the snapshot, as data.
    :raises SnapshotError: it is none.
    """
    snapshot = from_json(document)
    findings: t.List[Finding] = []
    ignored: t.List[t.Tuple[Finding, str]] = []
    for finding in audit(snapshot, wanted.checks):
        reason = next((item.reason for item in wanted.ignores if item.covers(finding)), None)
        if reason is None:
            findings.append(finding)
        else:
            ignored.append((finding, reason))
    fail_on = wanted.fail_on
    failed = fail_on != "none" and any(
        SEVERITIES.index(finding.severity) >= SEVERITIES.index(fail_on) for finding in findings
    )
    report = [_line(finding) for finding in findings]
    result: t.Dict[str, t.Any] = {
        "failed": failed,
        "changed": False,
        "msg": _headline(findings, len(ignored)),
        "report": report,
        "findings": [dict(finding.to_result(), message=printable(finding.message)) for finding in findings],
        "ignored": [
            dict(finding.to_result(), message=printable(finding.message), ignored_because=reason)
            for finding, reason in ignored
        ],
        "summary": {
            severity: sum(finding.severity == severity for finding in findings) for severity in reversed(SEVERITIES)
        },
    }
    if failed:
        result["msg"] = "\n".join([result["msg"], *report])
    if wanted.return_snapshot:
        result["snapshot"] = to_json(snapshot)
    return result


# Options -------------------------------------------------------------------------------------------------------------


def _names(checks: t.Optional[t.Sequence[str]], skipped: t.Sequence[str]) -> t.List[str]:
    """The names of the checks that are to be made."""
    if checks is not None and not checks:
        raise OptionError("checks is an empty list: leave it out for every check, or name some.")
    for where, names in (("checks", checks or ()), ("skip_checks", skipped)):
        for index, name in enumerate(names):
            _known("%s[%d]" % (where, index), name)
    chosen = [name for name in CHECKS if (checks is None or name in checks) and name not in skipped]
    if not chosen:
        raise OptionError("skip_checks names every check that is left: nothing would be judged.")
    return chosen


def _known(where: str, name: str) -> str:
    if name not in CHECKS:
        raise OptionError("%s: there is no check %r; the checks are %s." % (where, name, ", ".join(sorted(CHECKS))))
    return name


def _ignore(item: t.Mapping[str, t.Any], index: int) -> Ignore:
    check = _known("ignore[%d].check" % index, item["check"])
    reason = item["reason"].strip()
    if not reason:
        raise OptionError("ignore[%d].reason is empty: say why this finding is none." % index)
    rule = item["rule"]
    if rule is not None and not rule.strip():
        raise OptionError(
            "ignore[%d].rule is empty: leave it out for all findings of %s, or give the rule as the finding shows it."
            % (index, check)
        )
    return Ignore(check, (rule or "").strip(), reason)


def _normal(rule: str, family: str) -> str:
    """A rule's text however it was spelt, with or without C(-A CHAIN) in front."""
    words = rule.split(" ", 2)
    if words[0] in ("-A", "-I") and len(words) == 3:
        rule = words[2]
    return normalise(parse(rule, family=family), family).render()


# Words ---------------------------------------------------------------------------------------------------------------


def _headline(findings: t.Sequence[Finding], ignored: int) -> str:
    counts = [
        "%d %s" % (count, severity)
        for severity in reversed(SEVERITIES)
        for count in [sum(finding.severity == severity for finding in findings)]
        if count
    ]
    text = "%d finding%s%s" % (
        len(findings),
        "" if len(findings) == 1 else "s",
        ": " + ", ".join(counts) if counts else "",
    )
    return text + (" (%d more ignored)." % ignored if ignored else ".")


def _line(finding: Finding) -> str:
    """The finding on one line, as people read it."""
    where = ""
    if finding.place is not None:
        where = " (%s %s%s)" % (
            _FAMILY_TEXTS[finding.place.family],
            finding.place.chain,
            " rule %d" % finding.place.position if finding.place.position else "",
        )
    possible = ", possibly" if finding.reasons else ""
    text = "%s%s: %s%s: %s" % (finding.severity.upper(), possible, finding.check, where, finding.message)
    if finding.reasons:
        text += " This hangs on %s." % "; ".join(finding.reasons)
    return t.cast(str, printable(text))
