# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which rules nothing is left for: single cases, and random chains held against every packet that they tell apart."""

from __future__ import annotations

import itertools
import typing as t

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.quaywall.docker.plugins.module_utils._audit._cover import Coverage, Ends
from ansible_collections.quaywall.docker.plugins.module_utils._chain import Chain
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import EVERYTHING, of_network, subtract
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6, parse

Rules = t.Sequence[str]


def coverage(rules: Rules, chains: t.Optional[t.Mapping[str, Rules]] = None, **options: t.Any) -> Coverage:
    table = {
        name: Chain(name, None, tuple(parse(text) for text in texts))
        for name, texts in {"MAIN": rules, **(chains or {})}.items()
    }
    return Coverage(IPV4, table, ["MAIN"], list(table), **options)


def dead(rules: Rules, chains: t.Optional[t.Mapping[str, Rules]] = None, **options: t.Any) -> t.Dict[str, str]:
    """The rules that nothing is left for (C(3), or C(X3) in chain X), each with those that take it all."""
    found = coverage(rules, chains, **options).dead(lambda rule: True, lambda item: True)

    def name(site: t.Any) -> str:
        return "%s%d" % ("" if site.chain == "MAIN" else site.chain, site.position)

    return {name(item.site): " ".join(name(taker.site) for taker in item.takers) for item in found}


# One rule, several together, none --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (["-j RETURN", "-s 10.0.0.1/32 -j DROP", "-j ACCEPT"], {"2": "1", "3": "1"}),
        (["-s 10.0.0.0/8 -j DROP", "-s 10.1.0.0/16 -p tcp -m tcp --dport 80 -j ACCEPT"], {"2": "1"}),
        (["-s 10.0.0.0/9 -j DROP", "-s 10.128.0.0/9 -j DROP", "-s 10.0.0.0/8 -j ACCEPT"], {"3": "1 2"}),
        (
            [
                "-p tcp -m tcp --dport 1:1000 -j DROP",
                "-p tcp -m tcp --dport 1001:65535 -j DROP",
                "-p tcp -m multiport --dports 80,2000:3000 -j ACCEPT",
                "-p udp -m udp --dport 80 -j ACCEPT",
            ],
            {"3": "1 2"},
        ),
        # Two dimensions at once, each of the four quarters by another rule.
        (
            [
                "-s 10.0.0.0/9 -p tcp -m tcp --dport 1:1000 -j DROP",
                "-s 10.0.0.0/9 -p tcp -m tcp --dport 1001:65535 -j DROP",
                "-s 10.128.0.0/9 -p tcp -m tcp --dport 1:1000 -j DROP",
                "-s 10.128.0.0/9 -p tcp -m tcp --dport 1001:65535 -j DROP",
                "-s 10.0.0.0/8 -p tcp -j ACCEPT",
            ],
            {"5": "1 2 3 4"},
        ),
        (["-i eth+ -j DROP", "-i eth0 -j ACCEPT", "-i et+ -j ACCEPT"], {"2": "1"}),
        (["! -i docker0 -j DROP", "-i eth0 -j ACCEPT", "-i docker0 -j ACCEPT"], {"2": "1"}),
        (["! -i docker0 -j DROP", "-i docker0 -j DROP", "-s 10.0.0.0/8 -j ACCEPT"], {"3": "1 2"}),
        (["! -p tcp -j DROP", "-p tcp -j DROP", "-p udp -j ACCEPT", "-s 10.0.0.0/8 -j DROP"], {"3": "1", "4": "1 2"}),
        # States: a packet has one, and may be translated besides.
        (
            [
                "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
                "-m conntrack --ctstate NEW -j DROP",
                "-m conntrack --ctstate DNAT -j DROP",
                "-m conntrack --ctstate INVALID -j DROP",
            ],
            {"3": "1 2"},
        ),
        (["-m state --state NEW -j DROP", "-m conntrack --ctstate NEW -s 10.0.0.0/8 -j ACCEPT"], {"2": "1"}),
        # A packet of no connection has no direction, and no original port.
        (["-m conntrack --ctdir ORIGINAL -j DROP", "-m conntrack --ctdir REPLY -j DROP", "-p tcp -j DROP"], {}),
        (
            [
                "-m conntrack --ctdir ORIGINAL -j DROP",
                "-m conntrack --ctdir REPLY -j DROP",
                "-m conntrack --ctorigdstport 80 -j ACCEPT",
                "-m conntrack --ctstate NEW -j ACCEPT",
            ],
            {"3": "1 2", "4": "1"},
        ),
        (
            [
                "-p tcp -m conntrack --ctstate DNAT --ctorigdstport 9000:9010 --ctdir ORIGINAL -j DROP",
                "-p tcp -m conntrack --ctstate DNAT --ctorigdstport 9001 --ctdir ORIGINAL -j ACCEPT",
                "-p tcp -m conntrack --ctorigdstport 9001 --ctdir ORIGINAL -j ACCEPT",
            ],
            {"2": "1"},
        ),
        (
            [
                "-p tcp -m tcp --tcp-flags SYN SYN -j DROP",
                "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j ACCEPT",
                "-p tcp -m tcp --tcp-flags SYN NONE -j DROP",
                "-p tcp -j ACCEPT",
            ],
            {"2": "1", "4": "1 3"},
        ),
        # What is not understood covers nothing, and is covered like anything else.
        (["-m geoip --source-country XX -j DROP", "-m geoip --source-country XX -j DROP"], {}),
        (["-s 10.0.0.0/8 -m limit --limit 3/min -j DROP", "-s 10.0.0.1/32 -j ACCEPT"], {}),
        (["-s 10.0.0.0/8 -j DROP", "-s 10.1.0.0/16 -m geoip --source-country XX -j DROP"], {"2": "1"}),
        (["-m set --match-set a src -j DROP", "-m set --match-set a src -p tcp -j ACCEPT"], {"2": "1"}),
        (["-m set --match-set a src -j DROP", "-m set --match-set b src -j ACCEPT", "-p tcp -j DROP"], {}),
        (
            ["-m mark --mark 0x1 -j DROP", "-j MARK --set-xmark 0x1/0xffffffff", "-m mark --mark 0x1 -j DROP"],
            {},
        ),
        (["-m addrtype --dst-type LOCAL -j DROP", "-m addrtype --dst-type LOCAL --limit-iface-in -j DROP"], {}),
        # No target, no verdict.
        (["-s 10.0.0.0/8", "-s 10.0.0.0/8 -j LOG", "-s 10.0.0.0/8 -j DROP"], {}),
        (["-g X", "-j DROP"], {"2": "1"}),
        # Nothing that a packet can be is no case of being covered.
        (["-s 10.0.0.0/8 -j DROP", "-s 10.0.0.0/8 -m iprange --src-range 11.0.0.1-11.0.0.2 -j DROP"], {}),
    ],
)
def test_cases(rules: Rules, expected: t.Dict[str, str]) -> None:
    assert dead(rules) == expected


@pytest.mark.parametrize(
    ("rules", "chains", "expected"),
    [
        # What a chain takes, its jump takes.
        (["-i eth0 -j X", "-i eth0 -j DROP", "-j DROP"], {"X": ["-j LOG", "-j DROP"]}, {"2": "X2"}),
        (["-i eth0 -j X", "-i eth0 -j DROP"], {"X": ["-s 10.0.0.0/8 -j RETURN", "-j DROP"]}, {}),
        (
            ["-j X", "-s 11.0.0.0/8 -j DROP", "-s 10.0.0.0/8 -j DROP"],
            {"X": ["-s 10.0.0.0/8 -j RETURN", "-s 11.0.0.0/8 -j DROP"]},
            {"2": "X2"},
        ),
        (["-j X", "-s 10.0.0.1/32 -j ACCEPT"], {"X": ["-p tcp -j Y"], "Y": ["-j ACCEPT"]}, {}),
        # What was taken before a chain is left for none of its rules.
        (
            ["-s 10.0.0.0/8 -j RETURN", "-j X"],
            {"X": ["-s 10.1.0.0/16 -j DROP", "-s 11.0.0.0/8 -j DROP"]},
            {"X1": "1"},
        ),
        (["-i eth1 -j DROP", "-i eth0 -j X"], {"X": ["-i eth1 -j DROP", "-s 10.0.0.0/8 -j DROP"]}, {}),
        (
            ["-s 10.0.0.0/8 -j X", "-s 10.0.0.0/8 -j RETURN", "-p tcp -j X"],
            {"X": ["-s 10.1.0.0/16 -p udp -j DROP"]},
            {},
        ),
        (
            ["-s 10.0.0.0/8 -j RETURN", "-p tcp -j X", "-p udp -j X"],
            {"X": ["-s 10.1.0.0/16 -j DROP"]},
            {"X1": "1"},
        ),
        # The jump is dead, and that is all there is to say.
        (["-j RETURN", "-j X"], {"X": ["-s 10.0.0.0/8 -j DROP"]}, {"2": "1"}),
        # Loops end.
        (["-j X", "-s 10.0.0.0/8 -j DROP"], {"X": ["-j Y"], "Y": ["-j X"]}, {}),
    ],
)
def test_chains(rules: Rules, chains: t.Mapping[str, Rules], expected: t.Dict[str, str]) -> None:
    assert dead(rules, chains) == expected


def test_chains_that_lie() -> None:
    rules = ["-j X", "-s 10.0.0.0/8 -j DROP"]
    assert dead(rules, {"X": ["-j DROP"]}, distrusted=["X"]) == {}
    assert dead(["-j DROP", "-p tcp -j DROP"], distrusted=["MAIN"]) == {}


def test_ipv6() -> None:
    table = {
        "MAIN": Chain(
            "MAIN",
            None,
            tuple(parse(text, IPV6) for text in ("-s 2001:db8::/33 -j DROP", "-s 2001:db8:8000::/33 -j DROP")),
        )
    }
    table["MAIN"] = table["MAIN"]._replace(
        rules=(*table["MAIN"].rules, parse("-s 2001:db8::/32 -p udp -j RETURN", IPV6))
    )
    found = list(Coverage(IPV6, table, ["MAIN"], ["MAIN"]).dead(lambda rule: True, lambda item: True))
    assert [item.site.position for item in found] == [3]


# The host's networks -------------------------------------------------------------------------------------------------

OUTSIDE = subtract(EVERYTHING[IPV4], of_network("172.17.0.0/16"))
ENDS = [Ends("eth0", OUTSIDE, False), Ends("docker0", of_network("172.17.0.0/16"), True)]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        # Nothing but eth0 brings what comes from there.
        (["-i eth0 -j DROP", "-s 192.0.2.1/32 -j ACCEPT"], {"2": "1"}),
        # What goes out there comes from a container.
        (["-s 172.16.0.0/12 -j RETURN", "-d 203.0.113.5/32 -o eth0 -j DROP"], {"2": "1"}),
        # Containers of one bridge may talk to each other.
        (["-i eth0 -j DROP", "-d 172.17.0.2/32 -j ACCEPT"], {}),
        # Nobody can send this at all: that is another matter.
        (["-i eth0 -j DROP", "-s 172.17.0.2/32 -d 172.18.0.2/32 -o docker0 -j DROP"], {}),
    ],
)
def test_what_the_networks_of_the_host_can_send(rules: Rules, expected: t.Dict[str, str]) -> None:
    assert dead(rules) == {}
    assert dead(rules, coming=ENDS, going=ENDS) == expected


def test_strictly_or_on_this_host() -> None:
    rules = ["-i eth0 -j DROP", "-s 192.0.2.1/32 -j ACCEPT", "-s 192.0.2.1/32 -i eth0 -j ACCEPT"]
    found = coverage(rules, coming=ENDS, going=ENDS).dead(lambda rule: True, lambda item: True)
    assert [(item.site.position, item.strictly) for item in found] == [(2, False), (3, True)]
    found = coverage(rules, coming=ENDS, going=ENDS).dead(lambda rule: True, lambda item: False)
    assert [item.site.position for item in found] == [3]


# Random chains -------------------------------------------------------------------------------------------------------

# Packets that any two rules below treat differently are different here, so that all that can happen happens.
_SOURCES = {
    "10.1.1.1": {"", "10.0.0.0/8", "10.0.0.0/9"},
    "10.200.1.1": {"", "10.0.0.0/8", "10.128.0.0/9"},
    "8.8.8.8": {""},
}
_PORTS = {80: {"", "1:1000", "80", "1:65535"}, 500: {"", "1:1000", "1:65535"}, 2000: {"", "1001:65535", "1:65535"}}
_INTERFACES = {
    "eth0": {"", "-i eth0", "-i eth+", "! -i docker0"},
    "eth1": {"", "-i eth+", "! -i docker0"},
    "wg0": {"", "! -i docker0"},
    "docker0": {"", "-i docker0"},
}
_PROTOCOLS = {"tcp": {"", "-p tcp", "! -p udp"}, "udp": {"", "-p udp"}, "icmp": {"", "! -p udp"}}
_STATES = {
    # (state, came through DNAT, direction)
    "new": {"", "--ctstate NEW", "--ctdir ORIGINAL", "! --ctstate INVALID"},
    "new dnat": {"", "--ctstate NEW", "--ctstate DNAT", "--ctdir ORIGINAL", "! --ctstate INVALID"},
    "known": {"", "--ctstate RELATED,ESTABLISHED", "--ctdir ORIGINAL", "! --ctstate INVALID"},
    "known dnat": {
        "",
        "--ctstate RELATED,ESTABLISHED",
        "--ctstate DNAT",
        "--ctdir ORIGINAL",
        "! --ctstate INVALID",
    },
    "reply": {"", "--ctstate RELATED,ESTABLISHED", "--ctdir REPLY", "! --ctstate INVALID"},
    "reply dnat": {"", "--ctstate RELATED,ESTABLISHED", "--ctstate DNAT", "--ctdir REPLY", "! --ctstate INVALID"},
    "invalid": {""},
    "untracked": {"", "! --ctstate INVALID"},
}
_FIELDS = (_SOURCES, _INTERFACES, _PROTOCOLS, _PORTS, _STATES)


class Random(t.NamedTuple):
    """A rule by what it asks of each field (nothing: an empty text), and its target."""

    asked: t.Tuple[str, ...]
    target: str

    def text(self) -> str:
        source, interface, protocol, port, state = self.asked
        words = ["-s " + source] if source else []
        words += [interface] if interface else []
        words += [protocol] if protocol else []
        words += ["-m tcp --dport " + port] if port else []
        words += ["-m conntrack " + state] if state else []
        return " ".join([*words, "-j " + self.target])

    def matches(self, packet: t.Tuple[t.Any, ...]) -> bool:
        return all(asked in field[value] for asked, field, value in zip(self.asked, _FIELDS, packet))


def _choices(field: t.Mapping[t.Any, t.Set[str]]) -> t.Any:
    every = sorted(set().union(*field.values()) - {""})
    return st.just("") | st.sampled_from(every)


def _with_protocol(asked: t.Tuple[str, ...]) -> t.Tuple[str, ...]:
    source, interface, protocol, port, state = asked
    return source, interface, "-p tcp" if port else protocol, port, state


_ASKED = st.tuples(*map(_choices, _FIELDS)).map(_with_protocol)


def _random(*targets: str) -> t.Any:
    return st.lists(st.builds(Random, _ASKED, st.sampled_from(targets)), min_size=1, max_size=7)


_PACKETS = [
    packet
    for packet in itertools.product(*_FIELDS)
    # A port of ICMP is no port.
    if packet[2] != "icmp" or packet[3] == 80
]


def _read(chains: t.Mapping[str, t.Sequence[Random]], packet: t.Any, name: str, seen: t.Set[t.Any]) -> bool:
    """Walk one packet; note which rules match it. True if it does not come back."""
    for position, rule in enumerate(chains[name], 1):
        if not rule.matches(packet):
            continue
        seen.add((name, position))
        if rule.target == "RETURN":
            return False
        if rule.target in chains:
            if _read(chains, packet, rule.target, seen):
                return True
        elif rule.target != "LOG":
            return True
    return False


def _reached(chains: t.Mapping[str, t.Sequence[Random]]) -> t.Set[t.Tuple[str, int]]:
    seen: t.Set[t.Tuple[str, int]] = set()
    for packet in _PACKETS:
        _read(chains, packet, "MAIN", seen)
    return seen


def _found(chains: t.Mapping[str, t.Sequence[Random]]) -> t.Set[t.Tuple[str, int]]:
    table = {name: Chain(name, None, tuple(parse(rule.text()) for rule in rules)) for name, rules in chains.items()}
    made = Coverage(IPV4, table, ["MAIN"], list(chains))
    return {item.site[:2] for item in made.dead(lambda rule: True, lambda item: True)}


@settings(max_examples=150, deadline=None)
@given(_random("DROP", "ACCEPT", "RETURN", "LOG"))
def test_in_one_chain_exactly_the_rules_that_no_packet_reaches_are_named(rules: t.List[Random]) -> None:
    chains = {"MAIN": rules}
    assert _found(chains) == {("MAIN", position) for position in range(1, len(rules) + 1)} - _reached(chains)


@settings(max_examples=150, deadline=None)
@given(
    _random("DROP", "ACCEPT", "RETURN", "X", "Y"),
    _random("DROP", "ACCEPT", "RETURN", "Y"),
    _random("DROP", "ACCEPT", "RETURN", "LOG"),
)
def test_with_chains_none_is_named_that_a_packet_reaches(
    rules: t.List[Random], below: t.List[Random], deeper: t.List[Random]
) -> None:
    chains = {"MAIN": rules, "X": below, "Y": deeper}
    assert not _found(chains) & _reached(chains)


# Cost ----------------------------------------------------------------------------------------------------------------


@pytest.mark.big
@pytest.mark.parametrize(
    "rules",
    [
        ["-p tcp -m tcp --dport %d:%d -j DROP" % (number, number + 5000) for number in range(1, 9000)],
        ["! -i br-%d -p tcp -m tcp --dport %d -j DROP" % (number % 900, number % 700 + 1) for number in range(9000)],
        ["-m iprange --src-range 10.0.0.%d-10.0.%d.9 -j DROP" % (n % 256, n % 199 + 1) for n in range(9000)],
        ["-j X%d" % number for number in range(150)],
    ],
    ids=["ranges", "negations", "address ranges", "jumps"],
)
def test_hostile_chains_take_no_time(rules: t.List[str]) -> None:
    chains = {"X%d" % number: ["-s 10.%d.0.%d/32 -j DROP" % (number, n) for n in range(60)] for number in range(150)}
    dead(rules, chains)
    # Comparing each with each would take minutes.
