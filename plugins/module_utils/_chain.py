# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Dumps of C(iptables-save) as tables of ordered chains, and which rules of a chain are ours.

A rule is managed if its comment is one that :func:`comment_for` writes; every other rule is foreign.
"""

from __future__ import annotations

import functools
import re
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, Parser, Rule

FORWARD = "FORWARD"
INPUT = "INPUT"
POSTROUTING = "POSTROUTING"
FILTER = "filter"
MANGLE = "mangle"

DOCKER_USER = "DOCKER-USER"

#: Chains that Docker Engine makes in the filter table (20.10 to 29): a table that has one is a table Docker uses.
DOCKER_CHAINS = frozenset(
    (
        "DOCKER",
        "DOCKER-USER",
        "DOCKER-FORWARD",
        "DOCKER-BRIDGE",
        "DOCKER-CT",
        "DOCKER-INGRESS",
        "DOCKER-INTERNAL",
        "DOCKER-ISOLATION-STAGE-1",
        "DOCKER-ISOLATION-STAGE-2",
    )
)


class Chain(t.NamedTuple):
    """An ordered chain. ``policy`` is None for a chain that a user (or Docker) made."""

    name: str
    policy: t.Optional[str]
    rules: t.Tuple[Rule, ...]
    counters: t.Optional[t.Tuple[int, int]] = None

    def render(self) -> t.List[str]:
        """The rules as lines of C(iptables -S), without counters."""
        return ["-A %s %s" % (self.name, rule.render()) if rule.fields else "-A " + self.name for rule in self.rules]


class Table(t.NamedTuple):
    """One table of a dump. ``unparsed`` holds lines inside it that are neither chain, rule nor comment."""

    name: str
    chains: t.Dict[str, Chain]
    unparsed: t.Tuple[str, ...] = ()


class Dump(t.NamedTuple):
    """What C(iptables-save) said. ``incompatible`` names tables that it could not show, which it says with rc 0."""

    tables: t.Dict[str, Table]
    incompatible: t.Tuple[str, ...] = ()

    def chain(self, table: str, name: str) -> t.Optional[Chain]:
        found = self.tables.get(table)
        return None if found is None else found.chains.get(name)


def _quote_is_open(line: str) -> bool:
    """True if a quoted word of the line goes on in the next one: iptables prints a newline in a comment as it is."""
    closed_at_end = line.endswith('"') and not line.endswith(' "')
    # In ` " ` the quote may open or close: a comment may begin with a blank.
    if "\\" not in line and ' " ' not in line and line.count(' "') == line.count('" ') + closed_at_end:
        return False  # by far the most lines; what follows takes any
    rest = re.sub(r'(?<= )"(?:[^"\\]|\\.)*"(?= |\Z)', "", line, flags=re.DOTALL)
    return ' "' in rest


#: A comment has 255 bytes at most, so no rule with newlines in quotes is longer than this by far.
_LONGEST_RULE = 8192
#: Characters that are read in vain for quotes that never close, before such lines are taken as they are.
_MOST_IN_VAIN = 4000000


def logical_lines(text: str) -> t.Iterator[str]:
    """The lines of a dump, joined where a quoted word holds newlines.

    A quote that never closes (a set may be named C("x), and is printed without quotes) leaves its line alone.
    """
    lines = text.split("\n")
    if lines and not lines[-1]:
        lines.pop()
    in_vain = 0
    index = 0
    while index < len(lines):
        line = lines[index]
        index += 1
        if '"' in line and line[:1] in "-[" and _quote_is_open(line) and in_vain < _MOST_IN_VAIN:
            joined = line
            for ahead in range(index, len(lines)):
                joined += "\n" + lines[ahead]
                if len(joined) > _LONGEST_RULE:
                    break
                if '"' not in lines[ahead]:
                    continue
                in_vain += len(joined)
                if not _quote_is_open(joined):
                    line, index = joined, ahead + 1
                    in_vain = 0
                    break
        yield line


def _chain_head(line: str) -> t.Optional[t.Tuple[str, t.Optional[str], t.Optional[t.Tuple[int, int]]]]:
    """Name, policy and counters of a line such as C(:INPUT ACCEPT [0:0]), or None."""
    body, counters = line[1:], None
    if body.endswith("]"):
        body, _bracket, counted = body.rpartition(" [")
        packets, _colon, octets = counted[:-1].partition(":")
        if not (packets.isdigit() and octets.isdigit()):
            return None
        counters = (int(packets), int(octets))
    chain, _blank, policy = body.rpartition(" ")
    if not chain or not (policy == "-" or (policy.isalpha() and policy.isupper())):
        return None
    return chain, None if policy == "-" else policy, counters


def parse_dump(text: str, family: str = IPV4) -> Dump:
    """Read what C(iptables-save) printed, with or without C(-c). Never fails."""
    parser = Parser(family)
    tables: t.Dict[str, Table] = {}
    incompatible: t.List[str] = []
    heads: t.Dict[str, t.Tuple[t.Optional[str], t.Optional[t.Tuple[int, int]]]] = {}
    rules: t.Dict[str, t.List[Rule]] = {}
    unparsed: t.List[str] = []
    name = ""

    def close() -> None:
        if name:
            chains = {key: Chain(key, head[0], tuple(rules[key]), head[1]) for key, head in heads.items()}
            tables[name] = Table(name, chains, tuple(unparsed))

    for line in logical_lines(text):
        first = line[:1]
        if first == "#":
            words = line.split(" ")
            if words[1:2] == ["Table"] and "is incompatible" in line:
                incompatible.append(words[2].strip("`'"))
        elif first == "*":
            close()
            name, heads, rules, unparsed = line[1:], {}, {}, []
        elif first == ":":
            head = _chain_head(line)
            if head is not None:
                chain, policy, counters = head
                heads[chain] = (policy, counters)
                rules[chain] = []
            else:
                unparsed.append(line)
        elif line and line != "COMMIT":
            counted = re.match(r"\[(\d+):(\d+)\] ", line) if first == "[" else None
            counters = (int(counted.group(1)), int(counted.group(2))) if counted else None
            command = line[counted.end() :] if counted else line
            if command.startswith("-A "):
                chain, _blank, spec = command[3:].partition(" ")
                if chain not in rules:
                    heads[chain], rules[chain] = (None, None), []
                rules[chain].append(parser.parse(spec, counters) if spec else Rule((), counters))
            else:
                unparsed.append(line)
    close()
    return Dump(tables, tuple(incompatible))


def render_dump(dump: Dump) -> str:
    """The dump as C(iptables-restore) reads it, with the counters that it was read with."""
    lines: t.List[str] = []
    for table in dump.tables.values():
        lines.append("*" + table.name)
        for chain in table.chains.values():
            counters = "" if chain.counters is None else " [%d:%d]" % chain.counters
            lines.append(":%s %s%s" % (chain.name, chain.policy or "-", counters))
        for chain in table.chains.values():
            for rule, line in zip(chain.rules, chain.render()):
                lines.append(line if rule.counters is None else "[%d:%d] %s" % (*rule.counters, line))
        lines.extend(table.unparsed)
        lines.append("COMMIT")
    return "".join(line + "\n" for line in lines)


def docker_manages(table: Table) -> bool:
    """True if the filter table has chains of Docker's besides DOCKER-USER, which others make too."""
    return bool(set(table.chains) & (DOCKER_CHAINS - {DOCKER_USER}))


# Ours and foreign ----------------------------------------------------------------------------------------------------

ESTABLISHED_COMMENT = "quaywall: established"
DEFAULT_COMMENT = "quaywall: default drop"
GUARD_COMMENT = "quaywall: guard"

#: Chains of our own: what DOCKER-USER ends with where everything else is dropped, and (in mangle) the guard.
DEFAULT_CHAIN = "QUAYWALL-DEFAULT"
GUARD_CHAIN = "QUAYWALL-GUARD"
GUARD_DENY_CHAIN = "QUAYWALL-DENY"
#: The part of the guard in mangle INPUT: what comes in to docker-proxy.
PROXY_CHAIN = "QUAYWALL-PROXY"

#: The whole mark of a packet that the guard denies: C(QWGD) in ASCII. It is compared whole, so that no mask of another
#: tool meets it.
GUARD_MARK = "0x51574744"

#: What our ipsets' names begin with.
SET_PREFIX = "quaywall-"


def set_name(policy: str, family: str) -> str:
    """The name of a policy's ipset: a hash, as a name has 31 characters at most and the swap needs four of them."""
    import hashlib

    digest = hashlib.sha256(policy.encode("utf-8", "surrogateescape")).hexdigest()
    return "%s%s-%s" % (SET_PREFIX, digest[:16], "4" if family == IPV4 else "6")


def sets_of(rule: Rule) -> t.List[str]:
    """The ipsets of ours that a rule asks."""
    if not any(item.name == "match_set" for item in rule.fields):
        return []
    names = [item.value.partition(" ")[0] for item in rule.fields if item.name == "match_set"]
    return [name for name in names if name.startswith(SET_PREFIX)]


DEFAULT_PRIORITY = 500

ACTION = "action"
OTHERWISE = "otherwise"

POLICY_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_MARK = re.compile(r"quaywall:([A-Za-z0-9._-]{1,64})(?: (action|otherwise))?(?: priority ([0-9]{1,3}))?\Z")

#: Targets that let a packet go on its way; a bare policy comment on them means the policy's action, on others its
#: otherwise.
ALLOWING = ("ACCEPT", "RETURN")


class Mark(t.NamedTuple):
    """What a managed rule's comment says: whose it is, for whom, and its place."""

    policy: str
    section: str
    priority: int

    @property
    def key(self) -> t.Tuple[bool, int, str]:
        """Sort key of the managed block: all actions by priority, then all otherwises by priority; equal: by name."""
        return (self.section == OTHERWISE, self.priority, self.policy)


def comment_for(mark: Mark, target: str) -> str:
    """The comment of a managed rule: C(quaywall:<name>), and more only where the rule itself does not show it."""
    natural = ACTION if target in ALLOWING else OTHERWISE
    return "quaywall:%s%s%s" % (
        mark.policy,
        "" if mark.section == natural else " " + mark.section,
        "" if mark.priority == DEFAULT_PRIORITY else " priority %d" % mark.priority,
    )


def mark_of(rule: Rule) -> t.Optional[Mark]:
    """The policy that a rule belongs to, or None for the baseline and foreign rules."""
    comment = rule.comment
    return _mark(comment, rule.target in ALLOWING) if comment else None


@functools.lru_cache(maxsize=65536)
def _mark(comment: str, allowing: bool) -> t.Optional[Mark]:
    found = _MARK.match(comment)
    if found is None:
        return None
    policy, section, priority = found.groups()
    natural = ACTION if allowing else OTHERWISE
    return Mark(policy, section or natural, DEFAULT_PRIORITY if priority is None else int(priority))


def is_established(rule: Rule) -> bool:
    """True for the baseline's first rule."""
    return rule.comment == ESTABLISHED_COMMENT


def is_default(rule: Rule) -> bool:
    """True for the jump to the chain that drops whatever no policy lets in."""
    return rule.comment == DEFAULT_COMMENT


def is_managed(rule: Rule) -> bool:
    comment = rule.comment
    if comment is None or not comment.startswith("quaywall:"):
        return False
    return comment in (ESTABLISHED_COMMENT, DEFAULT_COMMENT) or mark_of(rule) is not None


def is_bare_return(rule: Rule) -> bool:
    """True for C(-j RETURN) alone: Docker's or a user's last rule, which the baseline adopts."""
    return len(rule.fields) == 1 and rule.fields[0].name == "jump" and rule.fields[0].value == "RETURN"


def only_established(rule: Rule) -> bool:
    """True if the rule matches nothing but replies and established connections, so that none is left behind ours."""
    for name in ("ctstate", "state"):
        states = rule.value(name)
        if states is not None and set(states.split(",")) <= {"RELATED", "ESTABLISHED"}:
            return True
    return False


#: Targets that stop a packet, and targets after which it goes on to the next rule: none lets it through.
DENYING = frozenset(("DROP", "REJECT", "TARPIT"))
CONTINUING = frozenset(
    (
        "LOG",
        "NFLOG",
        "ULOG",
        "MARK",
        "CONNMARK",
        "SET",
        "TRACE",
        "AUDIT",
        "CLASSIFY",
        "DSCP",
        "TOS",
        "TTL",
        "HL",
        "TCPMSS",
        "CHECKSUM",
        "LED",
        "RATEEST",
        "SECMARK",
        "CONNSECMARK",
        "IDLETIMER",
    )
)


# What is nested deeper may let packets through, for all that we say.
_DEEPEST = 200


def can_only_deny(
    rule: Rule,
    chains: t.Mapping[str, Chain],
    judged: t.Optional[t.Dict[str, bool]] = None,
    depth: int = 0,
) -> bool:
    """True if no packet can leave DOCKER-USER unharmed through this rule: it denies, or the next rule is read.

    A jump into a chain of denies (fail2ban's, CrowdSec's) counts, as RETURN there comes back to the next rule; a goto
    does not, as RETURN there leaves DOCKER-USER. What is not known may let packets through.

    :param judged: answers for chains, filled in as they are found; share it among the rules of one dump.
    :param depth: how many jumps lead to the chain that the rule stands in.
    """
    judged = {} if judged is None else judged
    target = rule.target
    if target is None:
        return rule.understood and rule.get("goto") is None
    if target in DENYING or target in CONTINUING:
        return True
    if target == "RETURN":
        return depth > 0
    if rule.get("goto") is not None or target not in chains or depth > _DEEPEST:
        return False
    if target not in judged:
        judged[target] = False  # a loop is no answer
        judged[target] = all(can_only_deny(inner, chains, judged, depth + 1) for inner in chains[target].rules)
    return judged[target]
