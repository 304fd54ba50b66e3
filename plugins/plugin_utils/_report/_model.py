# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What a report is about: the hosts of a run with their findings, beside those of an earlier run.

Everything here is read from results that came from hosts, so nothing is taken on trust: a result that is not one of
docker_fw_audit makes its host one that failed, with a sentence, and never spoils the others.
"""

from __future__ import annotations

import collections
import re
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import SEVERITIES
from ansible_collections.quaywall.docker.plugins.plugin_utils._report._yaml import render

Json = t.Mapping[str, t.Any]

#: From the most to the least severe, as people read them.
RANKED = tuple(reversed(SEVERITIES))

JUDGED, FAILED, UNREACHABLE = "judged", "failed", "unreachable"
NEW, STILL, GONE, NOT_JUDGED = "new", "still", "gone", "not_judged"

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class ReportError(ValueError):
    """What cannot be reported, as one sentence."""


class Hit(t.NamedTuple):
    """A container that a finding touches; see the module's RV(findings[].affected)."""

    container: str
    address: str
    network: str
    published: str
    traffic: str
    peers: str
    meant: t.Optional[bool]


class Fix(t.NamedTuple):
    """What to do instead; ``tasks`` are JSON and nothing else is known of them, ``playbook`` is the same in YAML."""

    description: str
    tasks: t.Tuple[t.Any, ...]
    commands: t.Tuple[str, ...]
    gains: t.Tuple[str, ...]
    loses: t.Tuple[str, ...]
    playbook: str

    def to_json(self) -> t.Dict[str, t.Any]:
        """In the form in which the audit returns it."""
        return {
            "description": self.description,
            "tasks": list(self.tasks),
            "commands": list(self.commands),
            "gains": list(self.gains),
            "loses": list(self.loses),
        }


class Finding(t.NamedTuple):
    """A finding as the audit returned it; ``position`` is 0 where there is none."""

    id: str
    check: str
    severity: str
    certainty: str
    message: str
    family: str
    variant: str
    table: str
    chain: str
    position: int
    rule: str
    affected: t.Tuple[Hit, ...]
    reasons: t.Tuple[str, ...]
    fix: t.Optional[Fix]
    ignored_because: t.Optional[str] = None

    def to_json(self) -> t.Dict[str, t.Any]:
        """In the form in which the audit returns it."""
        result = self._asdict()
        for name in ("family", "variant", "table", "chain", "position", "rule"):
            result[name] = result[name] or None
        result["affected"] = [dict(hit._asdict()) for hit in self.affected]
        result["reasons"] = list(self.reasons)
        result["fix"] = None if self.fix is None else self.fix.to_json()
        if self.ignored_because is None:
            del result["ignored_because"]
        return dict(result)

    @property
    def place(self) -> str:
        """C(IPv4 DOCKER-USER rule 1), for people; empty if it is about no chain."""
        if not self.chain:
            return ""
        family = {"ipv4": "IPv4 ", "ipv6": "IPv6 "}.get(self.family, "")
        table = "" if self.table in ("", "filter") else " of table %s" % self.table
        return "%s%s%s%s" % (family, self.chain, table, " rule %d" % self.position if self.position else "")


class Item(t.NamedTuple):
    """A finding of a host, and what has become of it since the earlier run (empty: there was none)."""

    finding: Finding
    status: str = ""


class Host(t.NamedTuple):
    """A host of this run. ``items`` are what counts, ``ignored`` what somebody lives with, ``gone`` is no more there.

    For a host that was not judged, ``carried`` are its findings of the earlier run.
    """

    name: str
    state: str
    message: str
    items: t.Tuple[Item, ...] = ()
    ignored: t.Tuple[Finding, ...] = ()
    gone: t.Tuple[Finding, ...] = ()
    carried: t.Tuple[Finding, ...] = ()
    #: The checks that were made, None where the result does not tell.
    checks: t.Optional[t.Tuple[str, ...]] = None

    @property
    def summary(self) -> t.Dict[str, int]:
        return counted(item.finding for item in self.items)

    @property
    def worst(self) -> int:
        """How bad it is, for an order: 5 (critical) to 1 (info), 0 if nothing was found."""
        return max((SEVERITIES.index(item.finding.severity) + 1 for item in self.items), default=0)


class EarlierHost(t.NamedTuple):
    """What an earlier run knew of a host; without ``known`` it was never judged."""

    known: bool
    findings: t.Tuple[Finding, ...]


class Earlier(t.NamedTuple):
    """An earlier run: when it was, and its hosts by name."""

    at: str
    hosts: t.Mapping[str, EarlierHost]


class Report(t.NamedTuple):
    """A whole run. ``at`` is in seconds since the epoch."""

    title: str
    at: float
    version: str
    hosts: t.Tuple[Host, ...]
    earlier_at: t.Optional[str] = None
    #: Hosts of the earlier run that this one did not ask.
    not_asked: t.Tuple[str, ...] = ()

    @property
    def summary(self) -> t.Dict[str, int]:
        return counted(item.finding for host in self.hosts for item in host.items)

    @property
    def states(self) -> t.Dict[str, int]:
        """How many hosts there are of each state."""
        found = collections.Counter(host.state for host in self.hosts)
        return {state: found[state] for state in (JUDGED, FAILED, UNREACHABLE)}

    @property
    def comparison(self) -> t.Optional[t.Dict[str, int]]:
        """How many findings are new, still there, gone, or were not judged; None without an earlier run."""
        if self.earlier_at is None:
            return None
        found = collections.Counter(item.status for host in self.hosts for item in host.items)
        return {
            NEW: found[NEW],
            STILL: found[STILL],
            GONE: sum(len(host.gone) for host in self.hosts),
            NOT_JUDGED: sum(len(host.carried) for host in self.hosts),
        }


def counted(findings: t.Iterable[Finding]) -> t.Dict[str, int]:
    """How many findings there are of each severity, the most severe first."""
    found = collections.Counter(finding.severity for finding in findings)
    return {severity: found[severity] for severity in RANKED}


def build(
    audits: t.Mapping[t.Any, t.Any],
    title: str,
    at: float,
    version: str,
    known_checks: t.Iterable[str] = (),
    earlier: t.Optional[Earlier] = None,
) -> Report:
    """The report about these results.

    :param audits: host name -> what docker_fw_audit returned there, or how it failed.
    :param at: when it is written, in seconds since the epoch.
    :param known_checks: the names of all checks.
    """
    checks = tuple(known_checks)
    names = {text(name): name for name in audits}
    hosts = [_host(name, audits[names[name]], checks) for name in sorted(names, key=natural)]
    not_asked: t.Tuple[str, ...] = ()
    if earlier is not None:
        hosts = [_compared(host, earlier.hosts.get(host.name, EarlierHost(False, ()))) for host in hosts]
        not_asked = tuple(sorted(set(earlier.hosts) - set(names), key=natural))
    return Report(text(title), at, version, tuple(hosts), None if earlier is None else earlier.at, not_asked)


def natural(name: str) -> t.List[t.Any]:
    """A key by which host9 comes before host10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name)] + [name]


# One host ------------------------------------------------------------------------------------------------------------


def _host(name: str, result: t.Any, checks: t.Sequence[str]) -> Host:
    if not isinstance(result, dict):
        return Host(name, FAILED, "There is no result of docker_fw_audit for this host.")
    said = text(result.get("msg"))
    if "findings" not in result:
        if result.get("unreachable"):
            return Host(name, UNREACHABLE, said or "The host could not be reached.")
        if result.get("failed"):
            return Host(name, FAILED, said or "The audit failed and did not say why.")
        if result.get("skipped"):
            return Host(name, FAILED, "The audit was skipped on this host.")
        return Host(name, FAILED, "The result for this host is none of docker_fw_audit: it has no findings.")
    try:
        items = tuple(Item(item) for item in read_findings(result["findings"], "findings"))
        ignored = tuple(read_findings(result.get("ignored") or (), "ignored"))
    except ReportError as error:
        return Host(name, FAILED, "The result for this host is none of docker_fw_audit: %s." % error)
    # Where the task failed because of fail_on, the message is the whole report.
    return Host(name, JUDGED, said.partition("\n")[0], items, ignored, checks=_made(result, checks))


def _made(result: Json, checks: t.Sequence[str]) -> t.Optional[t.Tuple[str, ...]]:
    """The checks that the audit made, if its result tells with what options it ran."""
    invocation = result.get("invocation")
    options = invocation.get("module_args") if isinstance(invocation, dict) else None
    if not isinstance(options, dict) or "skip_checks" not in options:
        return None
    chosen, skipped = options.get("checks"), options.get("skip_checks") or ()
    return tuple(name for name in checks if (chosen is None or name in chosen) and name not in skipped)


def _compared(host: Host, before: EarlierHost) -> Host:
    if host.state != JUDGED:
        return host._replace(carried=before.findings)
    # Findings whose rules are the same have the same id, so they are counted.
    left: t.Dict[str, t.List[Finding]] = {}
    for finding in before.findings:
        left.setdefault(finding.id, []).append(finding)
    items = []
    for item in host.items:
        there = left.get(item.finding.id)
        if there:
            there.pop()
        items.append(item._replace(status=STILL if there is not None else NEW))
        if there is not None and not there:
            del left[item.finding.id]
    living_with = {finding.id for finding in host.ignored}
    gone = tuple(finding for some in left.values() for finding in some if finding.id not in living_with)
    return host._replace(items=tuple(items), gone=gone)


# Findings ------------------------------------------------------------------------------------------------------------


def text(value: t.Any) -> str:
    """A text that UTF-8 can hold; None is empty."""
    if value is None:
        return ""
    # Ansible's own kinds of text become plain ones.
    plain = str.__str__(value) if isinstance(value, str) else str(value)
    if plain.isascii() or _LONE_SURROGATE.search(plain) is None:
        return plain
    return plain.encode("utf-8", "surrogateescape" if _escaped(plain) else "backslashreplace").decode(
        "utf-8", "backslashreplace"
    )


def _escaped(value: str) -> bool:
    """True if all its lone surrogates stand for bytes that were no UTF-8."""
    return all("\udc80" <= char <= "\udcff" for char in _LONE_SURROGATE.findall(value))


def _plain(value: t.Any) -> t.Any:
    """JSON of plain types, with texts as :func:`text` makes them."""
    if isinstance(value, str):
        return text(value)
    if isinstance(value, dict):
        return {text(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return text(value)


def _listed(value: t.Any, where: str) -> t.Sequence[t.Any]:
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise ReportError("%s is no list" % where)
    return value


def _texts(value: t.Any, where: str) -> t.Tuple[str, ...]:
    return tuple(map(text, _listed(value, where)))


def read_findings(value: t.Any, where: str) -> t.Iterator[Finding]:
    """Findings out of a result.

    :raises ReportError: what is not as the audit returns it, without a full stop.
    """
    for index, item in enumerate(_listed(value, where)):
        yield read_finding(item, "%s[%d]" % (where, index))


def read_finding(item: t.Any, where: str) -> Finding:
    """A finding as the audit returns it.

    :raises ReportError: what is not as the audit returns it, without a full stop.
    """
    if not isinstance(item, dict):
        raise ReportError("%s is no dictionary" % where)
    for name in ("id", "check", "severity", "message"):
        if not isinstance(item.get(name), str):
            raise ReportError("%s.%s is missing" % (where, name))
    if item["severity"] not in SEVERITIES:
        raise ReportError("%s.severity is %r" % (where, text(item["severity"])))
    position = item.get("position") or 0
    if not isinstance(position, int) or position < 0:
        raise ReportError("%s.position is no number" % where)
    because = item.get("ignored_because")
    return Finding(
        text(item["id"]),
        text(item["check"]),
        text(item["severity"]),
        text(item.get("certainty") or "definite"),
        text(item["message"]),
        text(item.get("family")),
        text(item.get("variant")),
        text(item.get("table")),
        text(item.get("chain")),
        int(position),
        text(item.get("rule")),
        tuple(_hit(hit, where) for hit in _listed(item.get("affected"), where + ".affected")),
        _texts(item.get("reasons"), where + ".reasons"),
        _fix(item.get("fix"), where + ".fix"),
        None if because is None else text(because),
    )


def _hit(hit: t.Any, where: str) -> Hit:
    if not isinstance(hit, dict):
        raise ReportError("%s.affected has what is no dictionary" % where)
    get = hit.get
    meant = get("meant")
    return Hit(
        text(get("container")),
        text(get("address")),
        text(get("network")),
        text(get("published")),
        text(get("traffic")),
        text(get("peers")),
        None if meant is None else bool(meant),
    )


def _fix(fix: t.Any, where: str) -> t.Optional[Fix]:
    if fix is None:
        return None
    if not isinstance(fix, dict):
        raise ReportError("%s is no dictionary" % where)
    tasks = tuple(map(_plain, _listed(fix.get("tasks"), where + ".tasks")))
    return Fix(
        text(fix.get("description")),
        tasks,
        _texts(fix.get("commands"), where + ".commands"),
        _texts(fix.get("gains"), where + ".gains"),
        _texts(fix.get("loses"), where + ".loses"),
        render(tasks),
    )
