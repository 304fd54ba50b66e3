# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What several unit tests need: data that is kept outside the repository, and rules to be made up by hypothesis."""

from __future__ import annotations

import json
import os
import typing as t
from pathlib import Path

import pytest
from hypothesis import strategies as st

from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6, Field, Rule, field

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("QUAYWALL_SHARED") or ROOT.parent / "shared")

FAMILIES = (IPV4, IPV6)


# Data outside the repository -------------------------------------------------------------------------------------


def absent(what: str) -> str:
    return "%s is not in %s: put it there, or name its place with QUAYWALL_SHARED" % (what, SHARED)


def shared_files(pattern: str) -> t.List[t.Any]:
    """Parameters for a test: each file below the shared directory that matches, or one skipped test that says so."""
    found = sorted(path for path in SHARED.glob(pattern) if path.is_file())
    if not found:
        return [pytest.param(None, id="absent", marks=pytest.mark.skip(reason=absent(pattern)))]
    return [pytest.param(path, id=str(path.relative_to(SHARED))) for path in found]


def shared_text(path: Path) -> str:
    # newline="": a carriage return in a comment is a part of it.
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return file.read()


def capture(name: str) -> t.Dict[str, t.Any]:
    """The API answers of a captured host; skips the test that asks where the captures are not."""
    path = SHARED / "captures" / name / "api.json"
    if not path.is_file():
        pytest.skip(absent("captures/%s/api.json" % name))
    result: t.Dict[str, t.Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


# Rules -----------------------------------------------------------------------------------------------------------

_OPTIONS = (
    "-s 10.0.0.0/8|-d 172.17.0.2/32|! -d 10.0.0.1/32|-i eth0|! -i docker0|-o br+|-p tcp|-p udp|! -p icmp|"
    "-p 132|-f|! -f|-m tcp|--dport 80|--sport 1:2|! --dport 443|--tcp-flags SYN,ACK SYN|-m multiport|--dports 80,443|"
    "-m conntrack|--ctstate RELATED,ESTABLISHED|--ctstate DNAT|--ctorigdstport 9000|--ctdir ORIGINAL|--ctproto 6|"
    "-m state|--state NEW|-m comment|--comment x|--comment|--comment -j|-m set|--match-set a src|--match-set a b src|"
    "-m limit|--limit 10/min|--limit-burst 5|-m mark|--mark 0x1|-m rpfilter|--invert|-m string|--string -j|--algo bm|"
    "-m recent|--name -p|--rsource|-m socket|-j|-j ACCEPT|-j DROP|-j RETURN|-j LOG|--log-prefix a|--log-level 4|"
    "-j REJECT|--reject-with tcp-reset|-g other|--|-|!|! !|x|\t|\n|\u00e4|\udcff"
)

#: Words that rules are made of, and words that only look like it.
WORDS = [
    *_OPTIONS.split("|"),
    "",
    " ",
    '"',
    '""',
    '"a b"',
    '"a\\"b"',
    '"\\\\"',
    '"a\nb"',
    '"-j ACCEPT"',
    '"x',
    'x"',
    "\\",
    "'",
    '--comment "a b"',
    '--comment "quaywall:admin-ui"',
    '--log-prefix "a b "',
]

any_text = st.text(st.characters()) | st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)

#: Text of one line that a comment can hold: quotes, backslashes, leading dashes and all.
free_text = st.one_of(
    st.text(st.characters(blacklist_characters="\n\0"), max_size=40),
    st.sampled_from(("", "-", "--", "-j", "-j ACCEPT", "!", '"', "\\", '\\"', "' '", " x", "x ", "a  b", '" -j DROP')),
)

ports = st.integers(0, 65535)
port_ranges = st.tuples(ports, ports).map(lambda pair: "%d:%d" % (min(pair), max(pair)))
interfaces = st.text("abcdefghijklmnopqrstuvwxyz0123456789._-@:", min_size=1, max_size=14).filter(
    lambda name: name[0] not in "-!"
)
chain_names = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabc0123456789-_", min_size=1, max_size=28).filter(
    lambda name: name[0] not in "-!" and name not in ("REJECT", "LOG", "DNAT", "SNAT", "MASQUERADE", "REDIRECT", "MARK")
)


def _networks(family: str) -> t.Any:
    bits = 32 if family == IPV4 else 128
    ip = st.ip_addresses(v=4 if family == IPV4 else 6)
    return st.tuples(ip, st.integers(0, bits)).map(lambda pair: "%s/%d" % pair)


def _subset(*values: str) -> t.Any:
    return st.lists(st.sampled_from(values), min_size=1, unique=True).map(",".join)


def _maybe(family: str, name: str, values: t.Any, negatable: bool = True) -> t.Any:
    negated = st.booleans() if negatable else st.just(False)
    made = st.tuples(values, negated).map(lambda pair: [field(name, pair[0], pair[1], family)])
    return st.just([]) | made


def _flag(name: str) -> t.Any:
    return st.booleans().map(lambda given: [field(name)] if given else [])


def _match(module: str, *options: t.Any) -> t.Any:
    """A match with at least one of its options, or none at all."""
    inside = st.tuples(*options).map(lambda parts: [item for part in parts for item in part])
    return st.just([]) | inside.map(lambda items: [field("match", module), *items] if items else [])


def _head(family: str) -> t.Any:
    return st.tuples(
        _maybe(family, "source", _networks(family)),
        _maybe(family, "destination", _networks(family)),
        _maybe(family, "in_interface", interfaces),
        _maybe(family, "out_interface", interfaces),
    ).map(lambda parts: [item for part in parts for item in part])


def _protocol(family: str) -> t.Any:
    def group(protocol: str) -> t.Any:
        first = [field("protocol", protocol)]
        plain = _match(
            protocol, _maybe(family, "source_port", port_ranges), _maybe(family, "destination_port", port_ranges)
        )
        several = _match(
            "multiport",
            st.just([])
            | st.lists(port_ranges, min_size=1, max_size=7).map(lambda p: [field("destination_ports", ",".join(p))]),
        )
        return st.tuples(st.just(first), plain | several).map(lambda parts: parts[0] + parts[1])

    other = st.sampled_from(("icmp", "ipv6-icmp", "esp", "ah", "17", "6", "132", "99")).flatmap(
        lambda name: _maybe(family, "protocol", st.just(name))
    )
    return other | st.sampled_from(("tcp", "udp", "sctp")).flatmap(group)


def _matches(family: str) -> t.Any:
    low, high = ("10.0.0.1", "10.0.0.9") if family == IPV4 else ("fd00::1", "fd00::9")
    groups = (
        _match(
            "conntrack",
            _maybe(family, "ctstate", _subset("INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED", "SNAT", "DNAT")),
            _maybe(family, "ctproto", st.sampled_from(("tcp", "udp", "132", "1"))),
            _maybe(family, "ctorigsrc", _networks(family)),
            _maybe(family, "ctorigdst", _networks(family)),
            _maybe(family, "ctreplsrc", _networks(family)),
            _maybe(family, "ctorigsrcport", port_ranges),
            _maybe(family, "ctorigdstport", port_ranges),
            _maybe(family, "ctstatus", _subset("EXPECTED", "SEEN_REPLY", "ASSURED", "CONFIRMED")),
            _maybe(family, "ctdir", st.sampled_from(("ORIGINAL", "REPLY")), negatable=False),
        ),
        _match("state", _maybe(family, "state", _subset("INVALID", "NEW", "RELATED", "ESTABLISHED"))),
        _match(
            "addrtype",
            _maybe(family, "source_type", _subset("LOCAL", "UNICAST", "MULTICAST")),
            _maybe(family, "destination_type", _subset("LOCAL", "BROADCAST")),
            _flag("limit_interface_in"),
        ),
        _match("iprange", _maybe(family, "source_range", st.just("%s-%s" % (low, high)))),
        _match("set", _maybe(family, "match_set", st.tuples(chain_names, _subset("src", "dst")).map(" ".join))),
        _match("mark", _maybe(family, "mark", st.integers(0, 2**32 - 1).map(hex))),
        _match("limit", _maybe(family, "limit", st.sampled_from(("10/min", "3/hour", "2/second", "1/day")), False)),
        _match("comment", _maybe(family, "comment", free_text, negatable=False)),
    )
    return st.tuples(*groups).map(lambda parts: [item for part in parts for item in part])


def _target(family: str) -> t.Any:
    plain = st.sampled_from(("ACCEPT", "DROP", "RETURN")) | chain_names
    reject = "icmp-host-unreachable" if family == IPV4 else "icmp6-no-route"
    return st.one_of(
        st.just([]),
        plain.map(lambda name: [field("jump", name)]),
        chain_names.map(lambda name: [field("goto", name)]),
        st.sampled_from((reject, "tcp-reset")).map(
            lambda how: [field("jump", "REJECT"), field("reject_with", how, family=family)]
        ),
        st.tuples(free_text, st.sampled_from("01235670")).map(
            lambda pair: [field("jump", "LOG"), field("log_prefix", pair[0]), field("log_level", pair[1])]
        ),
    )


def known_rules(family: str) -> t.Any:
    """Rules out of the table of fields, in the order that iptables prints."""
    parts = st.tuples(_head(family), _protocol(family), _matches(family), _target(family))
    return parts.map(lambda found: Rule(tuple(t.cast(t.List[Field], [item for part in found for item in part]))))


# A kernel in memory ----------------------------------------------------------------------------------------------


class Refused(Exception):
    """What iptables-restore does not take; nothing was changed."""


class Stored(t.NamedTuple):
    """A rule in the kernel. ``serial`` is its own: a rule that is deleted and written again has lost its counters."""

    serial: int
    text: str


class Kernel:
    """One table of one family, as far as kernel-facts 1 tells: what a transaction does is done or not at all.

    Written from the facts, and not from the code under test. Rules are compared by their text.
    """

    def __init__(self, chains: t.Mapping[str, t.Sequence[str]], table: str = "filter") -> None:
        self._serial = 0
        self._table = table
        self.chains: t.Dict[str, t.List[Stored]] = {name: self._made(texts) for name, texts in chains.items()}

    def _made(self, texts: t.Iterable[str]) -> t.List[Stored]:
        return [self._new(text) for text in texts]

    def _new(self, text: str) -> Stored:
        self._serial += 1
        return Stored(self._serial, text)

    def texts(self, chain: str) -> t.Tuple[str, ...]:
        return tuple(rule.text for rule in self.chains[chain])

    def insert(self, chain: str, index: int, text: str) -> None:
        """Another tool writes."""
        self.chains[chain].insert(index, self._new(text))

    def save(self) -> str:
        builtin = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
        lines = ["# Generated by iptables-save v1.8.9 (nf_tables) on Mon Nov 23 03:18:15 2026", "*" + self._table]
        lines += [":%s %s [0:0]" % (name, "ACCEPT" if name in builtin else "-") for name in self.chains]
        for name, rules in self.chains.items():
            lines += ["-A %s %s" % (name, rule.text) if rule.text else "-A " + name for rule in rules]
        return "".join(line + "\n" for line in [*lines, "COMMIT", "# Completed on Mon Nov 23 03:18:15 2026"])

    def restore(self, transaction: str, test: bool = False) -> None:
        """iptables-restore --noflush; raises Refused and changes nothing where a line cannot be carried out."""
        chains = {name: list(rules) for name, rules in self.chains.items()}
        lines = transaction.split("\n")
        if lines[0] != "*" + self._table or lines[-2:] != ["COMMIT", ""]:
            raise Refused("iptables-restore: COMMIT expected at line %d" % len(lines))
        for number, line in enumerate(lines[1:-2], 2):
            try:
                self._line(chains, line)
            except (LookupError, ValueError) as error:
                raise Refused(
                    "iptables-nft-restore: line %d failed: %s.\nError occurred at line: %d" % (number, error, number)
                ) from error
        if not test:
            self.chains = chains

    def _line(self, chains: t.Dict[str, t.List[Stored]], line: str) -> None:
        if line.startswith(":"):
            chains[line[1:].partition(" ")[0]] = []  # flushes a chain that is there
            return
        command, name, rest = (line + " ").split(" ", 2)
        rest = rest[:-1]
        rules = chains[name]
        if command == "-I":
            position, _blank, text = rest.partition(" ")
            if not 1 <= int(position) <= len(rules) + 1:
                raise ValueError("Index of insertion too big")
            rules.insert(int(position) - 1, self._new(text))
        elif command == "-A":
            rules.append(self._new(rest))
        elif command == "-D":
            found = [rule for rule in rules if rule.text == rest]
            if not found:
                raise ValueError("Bad rule (does a matching rule exist in that chain?)")
            rules.remove(found[0])
        elif command == "-X":
            jumps = [r for others in chains.values() for r in others if r.text.endswith(("-j " + name, "-g " + name))]
            if rules or jumps:
                raise ValueError("CHAIN_DEL failed (Device or resource busy)")
            del chains[name]
        else:
            raise ValueError("unknown command %s" % command)
