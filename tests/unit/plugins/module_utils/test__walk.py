# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The walk against a naive reading of the rules, one packet and one rule after the other (:class:`Reader`).

The reader is written from iptables(8) and iptables-extensions(8): it reads the words of a rule itself, knows no index
and no set of peers, and follows both answers where a rule asks what nobody knows. What the kernel does with packets is
asked in tests/kernel/test_walk.py.
"""

from __future__ import annotations

import functools
import ipaddress
import itertools
import random
import tracemalloc
import typing as t

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ansible_collections.quaywall.docker.plugins.module_utils import _walk
from ansible_collections.quaywall.docker.plugins.module_utils._chain import Chain
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import (
    EVERYTHING,
    Intervals,
    join,
    of_network,
    overlaps,
)
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6, parse
from ansible_collections.quaywall.docker.plugins.module_utils._walk import (
    ANY_PORT,
    DESTINATION,
    PEER,
    SOURCE,
    Flow,
    Outcome,
    Program,
    Site,
)

Rules = t.Mapping[str, t.Sequence[str]]

# A small world -------------------------------------------------------------------------------------------------------

BASE = {IPV4: int(ipaddress.ip_address("10.0.0.0")), IPV6: int(ipaddress.ip_address("fd00::"))}
SPAN = 14
PORTS = (1, 2, 3, 4, 80)
INTERFACES = ("eth0", "eth1", "br-a", "br-b")
STATES = ("NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED")
FLAGS = ("SYN", "ACK", "FIN", "RST")
POLICIES = {"FORWARD": "DROP"}
CHAINS = ("FORWARD", "A", "B", "C", "D")
#: Sets of addresses that were read, as numbers from the base on: few and many.
SETS = {"few": (1, 2, 3, 9), "many": tuple(range(0, 40, 2))}


def address(family: str, number: int) -> str:
    return str(ipaddress.ip_address(BASE[family] + number))


def one(family: str, number: int) -> Intervals:
    return ((BASE[family] + number, BASE[family] + number),)


def program(rules: Rules, family: str = IPV4, **more: t.Any) -> Program:
    sets = {name: join(piece for number in numbers for piece in one(family, number)) for name, numbers in SETS.items()}
    return Program(chains_of(rules, family), family, sets, **more)


def chains_of(rules: Rules, family: str = IPV4) -> t.Dict[str, Chain]:
    return {
        name: Chain(name, POLICIES.get(name), tuple(parse(line, family) for line in lines))
        for name, lines in rules.items()
    }


class Packet(t.NamedTuple):
    """One packet, all of it; None for what nobody knows. Addresses count from the base."""

    source: int
    destination: int
    protocol: str
    in_interface: str
    out_interface: str
    source_port: int
    destination_port: int
    states: t.FrozenSet[str]
    direction: str
    #: Source, destination, their ports.
    original: t.Tuple[t.Optional[int], t.Optional[int], t.Optional[int], t.Optional[int]]
    reply: t.Tuple[t.Optional[int], t.Optional[int], t.Optional[int], t.Optional[int]]
    flags: t.FrozenSet[str]
    mark: t.Optional[int]
    bridged: bool


# The reader ----------------------------------------------------------------------------------------------------------

Answer = t.Optional[bool]
#: Verdict and where: chain and position, or None.
End = t.Tuple[str, t.Optional[t.Tuple[str, int]]]

_DECIDES_NOTHING = ("", "LOG", "NFLOG", "CT")
_KNOWN = ("ACCEPT", "DROP", "REJECT", "RETURN", "MARK", *_DECIDES_NOTHING)


def _not(answer: Answer, negated: bool) -> Answer:
    return None if answer is None else answer != negated


def _and(answers: t.Iterable[Answer]) -> Answer:
    known = list(answers)
    return False if False in known else (None if None in known else True)


def _or(answers: t.Iterable[Answer]) -> Answer:
    return _not(_and([_not(answer, True) for answer in answers]), True)


def _port_in(port: t.Optional[int], ports: str) -> Answer:
    if port is None:
        return None
    for part in ports.split(","):
        low, colon, high = part.partition(":")
        if int(low or 0) <= port <= int(high or 65535 if colon else low):
            return True
    return False


def _interface(name: str, wanted: str) -> bool:
    return name[: len(wanted) - 1] == wanted[:-1] if wanted[-1] == "+" else name == wanted


class Reader:
    """What can become of a packet, rule by rule."""

    def __init__(self, rules: Rules, packet: Packet, family: str) -> None:
        self.rules = rules
        self.packet = packet
        self.family = family
        #: Whether a rule asked what nobody knows, and something hung on it.
        self.unsure = False
        self._root = ""
        self._ends: t.Dict[t.Any, t.FrozenSet[t.Any]] = {}

    def read(self, chain: str) -> t.Set[End]:
        self._root = chain
        ends = self._read(chain, 0, self.packet.mark, True)
        return {
            end[1:] if end[0] == "decided" else (POLICIES.get(chain, "RETURN"), None)  # type: ignore[misc]
            for end in ends
        }

    def _read(self, chain: str, index: int, mark: t.Optional[int], last: bool) -> t.FrozenSet[t.Any]:
        """``last``: who leaves the chain has left the first one."""
        key = (chain, index, mark, last)
        if key not in self._ends:
            self._ends[key] = frozenset(self._rule(chain, index, mark, last))
        return self._ends[key]

    def _rule(self, chain: str, index: int, mark: t.Optional[int], last: bool) -> t.Iterator[t.Any]:
        if index == len(self.rules[chain]):
            yield ("back", mark)
            return
        words = self.rules[chain][index].split(" ")
        target, goto = "", False
        for option in ("-j", "-g"):
            if option in words:
                target, goto = words[words.index(option) + 1], option == "-g"
        answer = self._matches(words, mark)
        if answer is None and target not in _DECIDES_NOTHING:
            self.unsure = True
        if answer is not True or target in _DECIDES_NOTHING:
            yield from self._read(chain, index + 1, mark, last)
        if answer is False or target in _DECIDES_NOTHING:
            return
        leaves = last and self._root not in POLICIES
        here = (chain, index + 1)
        if target == "RETURN":
            yield ("decided", "RETURN", here) if leaves else ("back", mark)
        elif target == "MARK":
            yield from self._read(chain, index + 1, self._marked(words, mark), last)
        elif target in self.rules:
            for end in self._read(target, 0, mark, last and goto):
                if end[0] == "decided":
                    yield end
                elif goto:
                    yield ("decided", "RETURN", here) if leaves else end
                else:
                    yield from self._read(chain, index + 1, end[1], last)
        else:
            yield ("decided", target, here)
            if target not in _KNOWN:
                self.unsure = True
                yield from self._read(chain, index + 1, None, last)

    @staticmethod
    def _marked(words: t.List[str], mark: t.Optional[int]) -> t.Optional[int]:
        value, mask = (int(word, 16) for word in words[words.index("--set-xmark") + 1].split("/"))
        if mark is None and mask != 0xFFFFFFFF:
            return None
        return ((mark or 0) & ~mask) ^ value

    def _matches(self, words: t.List[str], mark: t.Optional[int]) -> Answer:
        answers: t.List[Answer] = []
        groups: t.List[t.Dict[str, Answer]] = [{}]  # one for each match of conntrack
        negated, index = False, 0
        while index < len(words) and words[index] not in ("-j", "-g", ""):
            option = words[index]
            index += 1
            if option == "!":
                negated = True
                continue
            if option == "-f":
                answers.append(negated)  # no packet here is a fragment
            elif option == "--physdev-is-bridged":
                answers.append(self.packet.bridged != negated)
            else:
                value = words[index]
                index += 1
                if option in ("--tcp-flags", "--match-set"):
                    value += " " + words[index]
                    index += 1
                if option == "-m" and value in ("limit", "string"):
                    answers.append(None)
                elif option == "-m" and value == "conntrack":
                    groups.append({})
                elif option.startswith("--ct"):
                    groups[-1][option] = _not(self._conntrack(option[4:], value), negated)
                elif option not in ("-m", "--limit", "--limit-burst", "--comment", "--string", "--algo"):
                    answers.append(_not(self._match(option, value, mark), negated))
            negated = False
        return _and([*answers, *[answer for group in groups for answer in self._connection(group)]])

    def _connection(self, conntrack: t.Dict[str, Answer]) -> t.Iterable[Answer]:
        """Where there is no connection, xt_conntrack.c looks at the state, and says no if it is not asked for it."""
        if conntrack and self.packet.states & {"INVALID", "UNTRACKED"}:
            return [conntrack.get("--ctstate", False)]
        return conntrack.values()

    def _conntrack(self, option: str, value: str) -> Answer:
        packet = self.packet
        if option == "state":
            return bool(packet.states & set(value.split(",")))
        if option == "dir":
            return packet.direction == value
        if option == "proto":
            wanted = {"6": "tcp", "17": "udp", "1": "icmp", "58": "ipv6-icmp"}.get(value, value)
            return None if "RELATED" in packet.states else packet.protocol == wanted
        if option == "status":
            return None
        ends = packet.original if option.startswith("orig") else packet.reply
        index = ("src", "dst", "srcport", "dstport").index(option[4:])
        given = ends[index]
        return _port_in(given, value) if index > 1 else self._address_in(given, value)

    def _address_in(self, number: t.Optional[int], network: str) -> Answer:
        if number is None:
            return None
        return ipaddress.ip_address(BASE[self.family] + number) in ipaddress.ip_network(network)

    def _match(self, option: str, value: str, mark: t.Optional[int]) -> Answer:
        packet = self.packet
        if option in ("-s", "-d"):
            return self._address_in(packet.source if option == "-s" else packet.destination, value)
        if option in ("--src-range", "--dst-range"):
            number = BASE[self.family] + (packet.source if option == "--src-range" else packet.destination)
            first, _dash, last = value.partition("-")
            return int(ipaddress.ip_address(first)) <= number <= int(ipaddress.ip_address(last))
        if option == "--match-set":
            name, flags = value.split(" ")
            numbers = SETS.get(name)
            if numbers is None or "," in flags:
                return None
            return (packet.source if flags == "src" else packet.destination) in numbers
        if option in ("-i", "-o"):
            return _interface(packet.in_interface if option == "-i" else packet.out_interface, value)
        if option == "-p":
            return value in ("all", packet.protocol)
        if option in ("--sport", "--sports"):
            return _port_in(packet.source_port, value)
        if option in ("--dport", "--dports"):
            return _port_in(packet.destination_port, value)
        if option == "--ports":
            return _or([_port_in(packet.source_port, value), _port_in(packet.destination_port, value)])
        if option == "--tcp-flags":
            mask, compare = (set(word.split(",")) - {"NONE"} for word in value.split(" "))
            return packet.flags & mask == compare
        if option == "--state":
            return bool(packet.states & set(value.split(",")))
        if option in ("--src-type", "--dst-type"):
            return "UNICAST" in value.split(",")
        if option == "--mark":
            wanted, _slash, bits = value.partition("/")
            return None if mark is None else mark & int(bits or "0xffffffff", 16) == int(wanted, 16)
        raise AssertionError(option)


# Rules and flows by chance -------------------------------------------------------------------------------------------


def _negatable(*texts: str) -> t.Any:
    return st.tuples(st.sampled_from(("", "", "! ")), st.sampled_from(texts)).map("".join)


@functools.lru_cache(maxsize=None)
def _networks(family: str) -> t.List[str]:
    bits = 32 if family == IPV4 else 128
    nets = ["%s/%d" % (address(family, start), bits - length) for start, length in ((0, 2), (8, 2), (4, 1), (0, 3))]
    return [*nets, *(address(family, number) for number in range(SPAN))]


@functools.lru_cache(maxsize=None)
def _fragments(family: str) -> t.Any:
    """Matches by the module that they are of."""
    hosts = [address(family, number) for number in (1, 2, 5, 9)]
    nets = _networks(family)
    ranges = ["%s-%s" % (address(family, 3), address(family, 8)), "%s-%s" % (hosts[0], hosts[0])]

    def conntrack(option: str, *values: str) -> t.Any:
        return st.one_of(st.just(""), *[_negatable("%s %s" % (option, value)) for value in values])

    return [
        _negatable("-i eth0", "-i br+", "-i eth1", "-i +"),
        _negatable("-o br-a", "-o br+", "-o eth0"),
        st.sampled_from(("-f", "! -f")) if family == IPV4 else st.just(""),
        _negatable(*["-m iprange --%s-range %s" % (end, part) for end in ("src", "dst") for part in ranges]).map(
            _inner
        ),
        _negatable("-m conntrack --ctstate NEW", "-m conntrack --ctstate RELATED,ESTABLISHED,DNAT").map(_inner),
        _negatable("-m conntrack --ctstate INVALID,SNAT", "-m state --state NEW,UNTRACKED").map(_inner),
        st.tuples(
            conntrack("--ctstate", "NEW,DNAT", "DNAT", "ESTABLISHED", "INVALID"),
            conntrack("--ctproto", "6", "17"),
            conntrack("--ctorigsrc", nets[0], hosts[1]),
            conntrack("--ctorigdst", nets[1]),
            conntrack("--ctreplsrc", nets[2]),
            conntrack("--ctrepldst", nets[1], hosts[1]),
            conntrack("--ctorigsrcport", "1:3"),
            conntrack("--ctorigdstport", "80", "2:4"),
            conntrack("--ctreplsrcport", "80"),
            conntrack("--ctrepldstport", "1:4"),
            st.sampled_from(("", "", "", "--ctstatus ASSURED")),
            st.sampled_from(("", "--ctdir ORIGINAL", "--ctdir REPLY")),
        ).map(lambda parts: " ".join(["-m conntrack", *filter(None, parts)]) if any(parts) else ""),
        _negatable("-m addrtype --dst-type LOCAL", "-m addrtype --src-type UNICAST").map(_inner),
        _negatable(
            "-m set --match-set few src",
            "-m set --match-set few dst",
            "-m set --match-set many src",
            "-m set --match-set many dst",
            "-m set --match-set unread src",
            "-m set --match-set few src,dst",
        ).map(_inner),
        _negatable("-m mark --mark 0x1", "-m mark --mark 0x2/0x3", "-m mark --mark 0x0/0x1").map(_inner),
        _negatable("-m physdev --physdev-is-bridged").map(_inner),
        st.sampled_from(("-m limit --limit 3/min", "-m string --string x --algo bm")),
        st.just("-m comment --comment x"),
    ]


def _inner(text: str) -> str:
    """The sign of a negation where a match has it: in front of its option."""
    return text[2:].replace(" --", " ! --", 1) if text.startswith("! ") else text


_protocols = st.one_of(
    st.just(""),
    _negatable("-p tcp", "-p udp", "-p icmp", "-p all").filter(lambda text: text != "! -p all"),
    st.tuples(
        st.sampled_from(("tcp", "udp")),
        _negatable("--dport 80", "--dport 1:3", "--sport 2:", "--dport :2", "--sport 1:1"),
    ).map(lambda pair: "-p %s -m %s %s" % (pair[0], pair[0], pair[1])),
    st.tuples(
        st.sampled_from(("tcp", "udp")),
        _negatable("--dports 80,2", "--dports 1:2,4", "--sports 3,4", "--ports 80,1"),
    ).map(lambda pair: "-p %s -m multiport %s" % pair),
    _negatable("--tcp-flags FIN,SYN,RST,ACK SYN", "--tcp-flags SYN,ACK NONE", "--tcp-flags ACK ACK").map(
        lambda text: "-p tcp -m tcp " + text
    ),
)
_verdicts = st.sampled_from(("-j ACCEPT", "-j DROP", "-j REJECT", "-j RETURN"))
_jumps = st.sampled_from(("-j A", "-j B", "-j C", "-j D", "-g B", "-g C", "-g D"))
_others = st.sampled_from(
    (
        "",
        "-j LOG",
        "-j CT --notrack",
        "-j MARK --set-xmark 0x1/0xffffffff",
        "-j MARK --set-xmark 0x3/0x2",
        "-j MARK --set-xmark 0x1/0x1",
        "-j NFQUEUE --queue-num 1",
        "-j GONE",
    )
)
_targets = st.one_of(_verdicts, _verdicts, _jumps, _jumps, _others)


def _downwards(chain: str, rule: str) -> str:
    """Jumps lead to later chains only: the kernel takes no loops, and loops are another test."""
    head, option, target = rule.rpartition(" ")
    leads = target in CHAINS and option and CHAINS.index(target) <= CHAINS.index(chain)
    return head + " DROP" if leads and head[-2:] == "-j" else (head[:-2] + "-j DROP" if leads else rule)


@st.composite
def _rule(draw: t.Any, family: str) -> t.List[str]:
    """One rule, most of them of little; or a list of addresses, as those who ban and exempt have it."""
    fragments = _fragments(family)
    matches = [
        draw(fragments[index]) for index in sorted(draw(st.sets(st.integers(0, len(fragments) - 1), max_size=2)))
    ]
    kind = draw(st.integers(0, 9))
    matches = matches if kind < 6 else []
    protocol = draw(_protocols) if kind < 4 else ""
    heads, targets = [""], [draw(_targets)]
    if kind == 9:
        heads = draw(st.lists(st.sampled_from(_networks(family)), min_size=2, max_size=12))
        heads = ["%s %s" % (draw(st.sampled_from(("-s", "-d"))), head) for head in heads]
        targets = list(draw(st.sampled_from(_LISTS)))
    elif kind % 2:
        heads = [draw(_negatable(*["-s " + net for net in _networks(family)]))]
    elif kind == 2:
        heads = [draw(_negatable(*["-d " + net for net in _networks(family)]))]
    if family == IPV6:
        protocol = protocol.replace("icmp", "ipv6-icmp")
    parts = [[head, protocol, *matches, target] for head, target in zip(heads, itertools.cycle(targets))]
    return [" ".join(part for part in words if part) for words in parts]


_LISTS = (("-j DROP",), ("-j DROP", "-j ACCEPT"), ("-j LOG", "-j REJECT"), ("-j RETURN",), ("-j ACCEPT", "", "-j DROP"))


@st.composite
def _rules(draw: t.Any, family: str) -> t.Dict[str, t.List[str]]:
    found = {}
    for chain in CHAINS:
        rules = draw(st.lists(_rule(family), min_size=6 if chain == "FORWARD" else 2, max_size=9))
        lines = [line for rule in rules for line in rule]
        found[chain] = [_downwards(chain, line) for line in lines]
    return found


@st.composite
def _packet(draw: t.Any, peer: str) -> Packet:
    states = frozenset((draw(st.sampled_from(STATES)), *draw(st.sampled_from(((), ("DNAT",), ("SNAT",))))))
    if states & {"INVALID", "UNTRACKED"}:
        states -= {"DNAT", "SNAT"}
    numbers, ports = st.integers(0, SPAN - 1), st.sampled_from(PORTS)
    return Packet(
        draw(numbers),
        draw(numbers),
        draw(st.sampled_from(("tcp", "tcp", "udp", "icmp"))),
        draw(st.sampled_from(INTERFACES)),
        draw(st.sampled_from(INTERFACES)),
        draw(ports),
        draw(ports),
        states,
        draw(st.sampled_from(("ORIGINAL", "REPLY"))),
        (draw(st.none() | numbers), draw(st.none() | numbers), draw(ports), draw(ports)),
        (draw(st.none() | numbers), draw(st.none() | numbers), draw(ports), draw(ports)),
        draw(st.sets(st.sampled_from(FLAGS)).map(frozenset)),
        draw(st.none() | st.integers(0, 3)),
        draw(st.booleans()),
    )


class Case(t.NamedTuple):
    family: str
    peer: str
    rules: t.Dict[str, t.List[str]]
    packet: Packet
    #: Which of original and reply source and destination is the peer.
    ends: t.Tuple[bool, bool, bool, bool]

    def of_peer(self, number: int) -> Packet:
        """The packet of another peer."""
        packet = self.packet
        known = [number if peer else end for peer, end in zip(self.ends, packet.original[:2] + packet.reply[:2])]
        packet = packet._replace(
            original=(known[0], known[1], *packet.original[2:]), reply=(known[2], known[3], *packet.reply[2:])
        )
        return packet._replace(source=number) if self.peer == SOURCE else packet._replace(destination=number)

    def flow(self) -> Flow:
        """The packets of all peers."""
        packet, family = self.packet, self.family
        ends = [
            PEER if peer else (None if end is None else one(family, end))
            for peer, end in zip(self.ends, packet.original[:2] + packet.reply[:2])
        ]
        return Flow(
            family,
            self.peer,
            "ipv6-icmp" if packet.protocol == "icmp" and family == IPV6 else packet.protocol,
            packet.in_interface,
            packet.out_interface,
            one(family, packet.destination if self.peer == SOURCE else packet.source),
            _exactly(packet.source_port),
            _exactly(packet.destination_port),
            packet.states,
            packet.direction,
            (ends[0], ends[1]),
            (_exactly(packet.original[2]), _exactly(packet.original[3])),
            (ends[2], ends[3]),
            (_exactly(packet.reply[2]), _exactly(packet.reply[3])),
            (packet.flags,),
            packet.mark,
            packet.bridged,
        )

    def reader(self, number: int) -> Reader:
        packet = self.of_peer(number)
        if packet.protocol == "icmp" and self.family == IPV6:
            packet = packet._replace(protocol="ipv6-icmp")
        return Reader(self.rules, packet, self.family)


def _exactly(port: t.Optional[int]) -> t.Tuple[int, int]:
    return ANY_PORT if port is None else (port, port)


@st.composite
def cases(draw: t.Any) -> Case:
    family, peer = draw(st.sampled_from((IPV4, IPV4, IPV6))), draw(st.sampled_from((SOURCE, DESTINATION)))
    ends = t.cast("t.Tuple[bool, bool, bool, bool]", draw(st.tuples(*[st.booleans()] * 4)))
    return Case(family, peer, draw(_rules(family)), draw(_packet(peer)), ends)


#: Peers that are tried: those that rules name, and one far away.
PEERS = (*range(SPAN), 1000)


def told(outcomes: t.Iterable[Outcome], family: str, number: int) -> t.List[t.Tuple[str, t.Optional[Site], bool]]:
    """What the walk says of one peer; the last is whether it is certain."""
    peer = one(family, number)
    return [
        (outcome.verdict, outcome.site, not outcome.reasons) for outcome in outcomes if overlaps(outcome.peers, peer)
    ]


def _is_at(site: t.Optional[Site], place: t.Optional[t.Tuple[str, int]]) -> bool:
    if site is None or place is None:
        return site is None and place is None
    return site.chain == place[0] and site.position <= place[1] <= site.last


def agree(case: Case, root: str, outcomes: t.List[Outcome], number: int) -> None:
    """The walk says of a peer what the reader says of its packet."""
    reader = case.reader(number)
    possible = reader.read(root)
    said = told(outcomes, case.family, number)
    for verdict, place in possible:
        assert [end for end in said if end[0] == verdict and _is_at(end[1], place)], (number, possible, said)
    for verdict, site, certain in said:
        assert [end for end in possible if end[0] == verdict and _is_at(site, end[1])], (number, possible, said)
        assert not certain or (len(possible) == 1 and len(said) == 1), (number, possible, said)
    assert reader.unsure or [certain for _verdict, _site, certain in said] == [True], (number, possible, said)


def sound(family: str, outcomes: t.List[Outcome], within: Intervals) -> None:
    """Who is told something certain is told it once, and everybody is told something."""
    certain = [outcome.peers for outcome in outcomes if not outcome.reasons]
    pieces = sorted(piece for peers in certain for piece in peers)
    assert all(before[1] < after[0] for before, after in zip(pieces, pieces[1:]))
    unsure = join(piece for outcome in outcomes if outcome.reasons for piece in outcome.peers)
    assert not overlaps(unsure, join(pieces))
    assert join([*pieces, *unsure]) == within
    assert all(outcome.peers for outcome in outcomes)
    assert len({(outcome.verdict, outcome.site, outcome.reasons) for outcome in outcomes}) == len(outcomes)


# What the walk says is what may happen -------------------------------------------------------------------------------

roots = st.sampled_from(("FORWARD", "FORWARD", "A"))


def case_of(forward: t.Sequence[str], chain: t.Sequence[str] = (), **more: t.Sequence[str]) -> Case:
    packet = Packet(
        1, 0, "tcp", "eth0", "br-a", 4, 80, frozenset(("NEW",)), "ORIGINAL", (1, 0, 4, 80), (0, 1, 80, 4),
        frozenset(("SYN",)), 0, False,
    )  # fmt: skip
    rules = {name: list(lines) for name, lines in {"FORWARD": forward, "A": chain, **more}.items()}
    return Case(IPV4, SOURCE, rules, packet, (True, False, False, True))


#: Addresses that nobody asks about, so that a list is long; in turn, so that they are no run.
_FILLER = ["-s %s -j %s" % (address(IPV4, number), ("DROP", "ACCEPT")[number // 2 % 2]) for number in range(20, 60, 2)]


@given(cases(), roots, st.sampled_from((0, _walk._FEW)))
@example(case_of(["-j A", "-j REJECT"], ["-s 10.0.0.1 -j DROP", "-p tcp -j ACCEPT", "-s 10.0.0.2 -j RETURN"]), "A", 0)
@example(
    case_of(["-j A", "-j REJECT"], ["-s 10.0.0.1 -j DROP", "-p tcp -j ACCEPT", "-s 10.0.0.2 -j RETURN"]), "FORWARD", 0
)
@example(
    case_of([*_FILLER, "-s 10.0.0.1 -j DROP", "! -s 10.0.0.5 -p tcp -j ACCEPT", "-s 10.0.0.4/31 -j REJECT"]),
    "FORWARD",
    0,
)
@example(
    case_of(
        [
            *_FILLER,
            "-s 10.0.0.2 -m limit --limit 1/sec -j MARK --set-xmark 0x1/0x1",
            "-s 10.0.0.0/30 -j A",
            "-s 10.0.0.0/29 -j RETURN",
        ],
        ["-m mark --mark 0x1 -s 10.0.0.2 -j RETURN", "-s 10.0.0.0/30 -j ACCEPT", "-s 10.0.0.1 -j DROP"],
    ),
    "FORWARD",
    0,
)
@example(
    case_of(
        [
            "-j MARK --set-xmark 0x3/0x2",
            "-j MARK --set-xmark 0x3/0x2",
            "-m mark --mark 0x2 -j ACCEPT",
            "-m mark --mark 0x3 -j REJECT",
        ]
    ),
    "FORWARD",
    8,
)
@example(case_of(["-m limit --limit 1/sec -j A", "-j ACCEPT"], ["-m limit --limit 1/sec -j DROP"]), "FORWARD", 8)
@example(case_of(["-s 128.0.0.0/1 -p tcp -j ACCEPT", *_FILLER, "-s 200.0.0.1 -j DROP"]), "FORWARD", 8)
@example(case_of(["-j GONE", "-m mark --mark 0x1 -j ACCEPT"]), "FORWARD", 8)
@example(case_of([], ["-g D"], D=["-s 10.0.0.1 -j MARK --set-xmark 0x1/0x1"]), "A", 8)
def test_as_the_manual_says(case: Case, root: str, few: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_walk, "_FEW", few)  # 0: every chain has an index
        made, flow = program(case.rules, case.family), case.flow()
        outcomes = made.walk(root, flow)
        assert_brief(case.family, made.walk(root, flow, briefly=True), outcomes)
    sound(case.family, outcomes, EVERYTHING[case.family])
    for number in PEERS:
        agree(case, root, outcomes, number)


def assert_brief(family: str, brief: t.List[Outcome], outcomes: t.List[Outcome]) -> None:
    """Nothing but denials of a few is left out."""
    assert brief == [outcome for outcome in outcomes if outcome in brief]
    half = EVERYTHING[family][0][1] // 2
    for outcome in outcomes:
        few = outcome.denies and outcome.peers[-1][1] - outcome.peers[0][0] < half
        assert few or outcome in brief


def covers(case: Case, root: str, outcomes: t.List[Outcome], number: int) -> None:
    """What may become of a peer's packet is among what the walk says, and is certain only if it is all."""
    said = told(outcomes, case.family, number)
    for verdict, place in case.reader(number).read(root):
        found = [end for end in said if end[0] == verdict and _is_at(end[1], place)]
        assert found and (len(said) == 1 or not found[0][2]), (number, said, verdict, place)


@given(cases(), roots)
@example(
    case_of(
        [
            *["-s 10.0.0.%d -j MARK --set-xmark 0x%d/0xffffffff" % (number, number) for number in range(1, 8)],
            "-m mark --mark 0x5 -j ACCEPT",
            "-m mark --mark 0x1 -j REJECT",
        ]
    ),
    "FORWARD",
)
@example(case_of([], ["-g D"], D=["-s 10.0.0.1 -j MARK --set-xmark 0x1/0x1"]), "A")
def test_too_much_to_tell_is_told_in_less_detail(case: Case, root: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_walk, "_MOST_PIECES", 4)
        patch.setattr(_walk, "_MOST_REASONS", 1)
        outcomes = program(case.rules, case.family).walk(root, case.flow())
    sound(case.family, outcomes, EVERYTHING[case.family])
    for number in PEERS:
        covers(case, root, outcomes, number)


@given(cases(), roots, st.data())
def test_what_is_certain_of_many_packets_is_so_for_each(case: Case, root: str, data: t.Any) -> None:
    """Ports, addresses and flags of which the flow says less than one value."""
    exact = case.flow()
    wide = {
        "address": join((*exact.address, *one(case.family, data.draw(st.integers(0, SPAN))))),
        "source_ports": data.draw(st.sampled_from((exact.source_ports, ANY_PORT, (1, 80)))),
        "destination_ports": data.draw(st.sampled_from((exact.destination_ports, ANY_PORT, (1, 80)))),
        "original_ports": (data.draw(st.sampled_from((exact.original_ports[0], (1, 99)))), (1, 80)),
        "reply_ports": (ANY_PORT, exact.reply_ports[1]),
        "flags": (*exact.flags, frozenset(("ACK",))),
    }
    changed = data.draw(st.sets(st.sampled_from(sorted(wide)), min_size=1))
    outcomes = program(case.rules, case.family).walk(root, exact._replace(**{name: wide[name] for name in changed}))
    sound(case.family, outcomes, EVERYTHING[case.family])
    for number in PEERS:
        covers(case, root, outcomes, number)


@given(cases(), roots, st.sets(st.integers(0, SPAN)), st.booleans())
def test_within(case: Case, root: str, numbers: t.Set[int], again: bool) -> None:
    made, flow = program(case.rules, case.family), case.flow()
    within = join(piece for number in numbers for piece in one(case.family, number))
    everybody = made.walk(root, flow)
    for _time in range(3 if again else 1):
        found = made.walk(root, flow, within)
        sound(case.family, found, within)
        for number in numbers:
            assert sorted(told(found, case.family, number), key=repr) == sorted(
                told(everybody, case.family, number), key=repr
            )


@given(cases(), roots, st.lists(_rule(IPV4), max_size=4), st.sampled_from(CHAINS))
def test_with_chains(case: Case, root: str, rules: t.List[t.List[str]], name: str) -> None:
    before = program(case.rules, case.family)
    before.walk(root, case.flow())
    lines = [_downwards(name, line) for rule in rules for line in rule]
    changed = dict(case.rules, **{name: lines})
    chains = chains_of(changed, case.family)
    after = before.with_chains(chains, iter([name]))
    assert after.walk(root, case.flow()) == program(changed, case.family).walk(root, case.flow())
    assert before.walk(root, case.flow()) == program(case.rules, case.family).walk(root, case.flow())


# Cases ---------------------------------------------------------------------------------------------------------------

#: A first packet to a published port: host port 9000, the container's 80.
INBOUND = Flow(
    IPV4,
    SOURCE,
    "tcp",
    "eth0",
    "br-a",
    one(IPV4, 2),
    (40000, 40000),
    (80, 80),
    frozenset(("NEW", "DNAT")),
    original=(PEER, one(IPV4, 40)),
    original_ports=((40000, 40000), (9000, 9000)),
    reply=(one(IPV4, 2), PEER),
    reply_ports=((80, 80), (40000, 40000)),
)
ME = "10.0.0.1"


def verdict(rules: Rules, flow: Flow = INBOUND, root: str = "FORWARD", **more: t.Any) -> t.List[t.Any]:
    """What becomes of the packets of one peer: verdict, chain and position, and what it hangs on."""
    outcomes = program(rules, flow.family, **more).walk(root, flow, one(flow.family, 1))
    return [
        (item.verdict, *(item.site[:2] if item.site is not None else (None, None)), *item.reasons) for item in outcomes
    ]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("-p all", True),
        ("! -p tcp", False),
        ("! -p udp", True),
        ("-p 6", True),
        ("-i eth+", True),
        ("-i eth0+", True),
        ("-i eth1+", False),
        ("! -i +", False),
        ("! -i br-a -o br-a", True),
        ("-m conntrack --ctstate DNAT,ESTABLISHED", True),
        ("-m conntrack ! --ctstate DNAT,ESTABLISHED", False),
        ("-m conntrack ! --ctstate RELATED,ESTABLISHED", True),
        ("-m state --state NEW", True),
        ("-m state ! --state NEW", False),
        ("-m conntrack --ctproto 6", True),
        ("-m conntrack ! --ctproto 6", False),
        ("-m conntrack --ctproto 17", False),
        ("-m conntrack --ctorigsrc 10.0.0.1", True),
        ("-m conntrack ! --ctorigsrc 10.0.0.1", False),
        ("-m conntrack --ctorigsrc 10.0.0.3", False),
        ("-m conntrack --ctrepldst 10.0.0.0/30 --ctorigdst 10.0.0.40", True),
        ("-m conntrack --ctreplsrc 10.0.0.40", False),
        ("-m conntrack --ctorigdstport 9000 --ctdir ORIGINAL", True),
        ("-m conntrack --ctorigdstport 80", False),
        ("-m conntrack --ctreplsrcport 80", True),
        ("-m conntrack --ctdir REPLY", False),
        ("-p tcp -m multiport --dports 79,80:81", True),
        ("-p tcp -m multiport ! --dports 79,80:81", False),
        ("-p tcp -m multiport ! --dports 443", True),
        ("-p tcp -m multiport --ports 40000", True),
        ("-p tcp -m tcp --dport 9000", False),
        ("-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN", True),
        ("-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN", False),
        ("-p tcp -m tcp --tcp-flags FIN,SYN,RST,PSH,ACK,URG NONE", False),
        ("-m iprange --src-range 10.0.0.1-10.0.0.1", True),
        ("-m iprange ! --src-range 10.0.0.0-10.0.0.9", False),
        ("-m iprange --dst-range 10.0.0.3-10.0.0.9", False),
        ("-m set --match-set few src", True),
        ("-m set ! --match-set few src", False),
        ("-m set --match-set many dst", True),
        ("-m set ! --match-set few dst", False),
        ("-m addrtype --dst-type LOCAL", False),
        ("-m addrtype ! --dst-type LOCAL", True),
        ("-m addrtype --src-type UNICAST,LOCAL", True),
        ("-m addrtype --dst-type UNICAST --limit-iface-out", True),
        ("-m mark --mark 0x0/0x1", True),
        ("-m mark ! --mark 0x0/0x1", False),
        ("-m physdev --physdev-is-bridged", False),
        ("-m physdev ! --physdev-is-bridged", True),
        ("-f", False),
        ("! -f", True),
        ("-s 10.0.0.1/255.0.255.255", True),
        ("! -s 10.0.0.0/255.0.255.254", False),
        ("-m conntrack --ctorigsrc 10.0.0.1/255.255.0.255", True),
        ("-m comment --comment nothing", True),
        ("", True),
    ],
)
def test_a_match(rule: str, expected: bool) -> None:
    end = ("ACCEPT", "FORWARD", 1) if expected else ("DROP", None, None)
    assert verdict({"FORWARD": [(rule + " -j ACCEPT").strip()]}) == [end]


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("-m limit --limit 3/min --limit-burst 9", "the rate limit"),
        ("-m set --match-set unread src", "what is in ipset unread"),
        ("-m set ! --match-set few src,dst", "what is in ipset few"),
        ("-m string --string x --algo bm -m recent --rcheck", "-m string --string x --algo bm -m recent --rcheck"),
        ("-m conntrack --ctstatus ASSURED", "--ctstatus ASSURED"),
        ("-s 10.0.0.1/85.85.85.85", "-s 10.0.0.1/85.85.85.85"),
        ("-m conntrack --ctorigsrc 10.0.0.1/85.85.85.85", "--ctorigsrc 10.0.0.1/85.85.85.85"),
        ("-m iprange --src-range 10.0.0.9-10.0.0.1", "--src-range 10.0.0.9-10.0.0.1"),
        ("-m connmark --mark 0x1", "--mark 0x1"),
    ],
)
def test_a_match_that_hangs_on_something(rule: str, reason: str) -> None:
    found = verdict({"FORWARD": [rule + " -j ACCEPT"]})
    assert found == [("ACCEPT", "FORWARD", 1, reason), ("DROP", None, None, reason)]


@pytest.mark.parametrize(
    ("rule", "given", "expected"),
    [
        # The kernel looks at the state, and at nothing else, where there is no connection (xt_conntrack.c).
        ("--ctstate INVALID", ["INVALID"], True),
        ("--ctstate INVALID --ctorigdstport 1", ["INVALID"], True),
        ("! --ctstate NEW ! --ctorigdstport 9000", ["UNTRACKED"], True),
        ("--ctstate INVALID --ctorigsrc 10.0.0.9", ["INVALID"], True),
        ("--ctorigdstport 9000", ["INVALID"], False),
        ("! --ctorigdstport 1", ["UNTRACKED"], False),
        ("--ctorigsrc 10.0.0.1", ["UNTRACKED"], False),
        ("--ctstatus ASSURED", ["INVALID"], False),
        ("--ctdir ORIGINAL", ["INVALID"], False),
        ("--ctstate UNTRACKED", ["INVALID"], False),
    ],
)
def test_without_a_connection(rule: str, given: t.List[str], expected: bool) -> None:
    filler = ["-p udp -m udp --dport %d -j DROP" % port for port in range(20)]  # enough for an index
    rules = {"FORWARD": ["-m conntrack %s -j ACCEPT" % rule, *filler]}
    end = ("ACCEPT", "FORWARD", 1) if expected else ("DROP", None, None)
    assert verdict(rules, INBOUND._replace(states=frozenset(given))) == [end]


def test_the_protocol_of_a_related_packet_is_not_known() -> None:
    related = INBOUND._replace(states=frozenset(("RELATED",)), protocol="icmp")
    assert len(verdict({"FORWARD": ["-m conntrack --ctproto 6 -j ACCEPT"]}, related)) == 2


@pytest.mark.parametrize(
    ("given", "rule", "expected"),
    [
        # xt_addrtype.c asks for IPv6 type by type; what is local is unicast too.
        ("UNICAST", "--dst-type UNICAST", True),
        ("UNICAST", "--dst-type LOCAL", False),
        ("UNICAST", "! --dst-type LOCAL", True),
        ("UNICAST", "--dst-type UNICAST,LOCAL", False),
        ("LOCAL", "--dst-type UNICAST", True),
        ("LOCAL", "--dst-type UNICAST,LOCAL", True),
        ("LOCAL", "--dst-type LOCAL,MULTICAST", False),
        ("MULTICAST", "--dst-type UNICAST", False),
        ("MULTICAST", "--dst-type MULTICAST", True),
        ("UNICAST", "--dst-type LOCAL --limit-iface-in", False),
    ],
)
def test_address_types_of_ipv6(given: str, rule: str, expected: bool) -> None:
    flow = INBOUND._replace(family=IPV6, address=one(IPV6, 2), destination_type=given, original=(PEER, None))
    end = ("ACCEPT", "FORWARD", 1) if expected else ("DROP", None, None)
    assert verdict({"FORWARD": ["-m addrtype %s -j ACCEPT" % rule]}, flow) == [end]


def test_a_local_address_may_be_another_interface_s() -> None:
    flow = INBOUND._replace(destination_type="LOCAL")
    assert verdict({"FORWARD": ["-m addrtype --dst-type LOCAL -j ACCEPT"]}, flow) == [("ACCEPT", "FORWARD", 1)]
    assert len(verdict({"FORWARD": ["-m addrtype --dst-type LOCAL --limit-iface-in -j ACCEPT"]}, flow)) == 2


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        pytest.param({}, [("DROP", None, None)], id="the policy"),
        pytest.param({"FORWARD": ["-j RETURN", "-j ACCEPT"]}, [("DROP", None, None)], id="RETURN in a built-in chain"),
        pytest.param(
            {"FORWARD": ["-j A", "-j ACCEPT"], "A": ["-j RETURN", "-j REJECT"]}, [("ACCEPT", "FORWARD", 2)], id="RETURN"
        ),
        pytest.param(
            {"FORWARD": ["-j A", "-j ACCEPT"], "A": ["-g B", "-j REJECT"], "B": ["-j RETURN"]},
            [("ACCEPT", "FORWARD", 2)],
            id="RETURN after a goto",
        ),
        pytest.param(
            {"FORWARD": ["-j A", "-j ACCEPT"], "A": ["-g B", "-j REJECT"], "B": []},
            [("ACCEPT", "FORWARD", 2)],
            id="the end of a chain that was gone to",
        ),
        pytest.param({"FORWARD": ["-g A", "-j ACCEPT"], "A": []}, [("DROP", None, None)], id="goto: the policy"),
        pytest.param({"FORWARD": ["-g A"], "A": ["-j REJECT"]}, [("REJECT", "A", 1)], id="REJECT after a goto"),
        pytest.param(
            {"FORWARD": ["-j MARK --set-xmark 0x5/0xffffffff", "-m mark --mark 0x5 -j ACCEPT"]},
            [("ACCEPT", "FORWARD", 2)],
            id="MARK",
        ),
        pytest.param(
            {"FORWARD": ["-s 10.0.0.2 -j MARK --set-xmark 0x5/0xffffffff", "-m mark --mark 0x5 -j ACCEPT"]},
            [("DROP", None, None)],
            id="MARK of somebody else's packets",
        ),
        pytest.param(
            {"FORWARD": ["-j CONNMARK --restore-mark", "-m mark --mark 0x5 -j ACCEPT"]},
            [("ACCEPT", "FORWARD", 2, "the packet's mark"), ("DROP", None, None, "the packet's mark")],
            id="CONNMARK restores what is not known",
        ),
        pytest.param(
            {"FORWARD": ["-j CONNMARK --save-mark", "-m mark --mark 0x0 -j ACCEPT"]},
            [("ACCEPT", "FORWARD", 2)],
            id="CONNMARK saves",
        ),
        pytest.param({"FORWARD": ["", "-s 10.0.0.1", "-j LOG"]}, [("DROP", None, None)], id="rules that only count"),
        pytest.param(
            {"FORWARD": ["-j NFQUEUE", "-j ACCEPT"]},
            [("NFQUEUE", "FORWARD", 1, "what NFQUEUE does"), ("ACCEPT", "FORWARD", 2, "what NFQUEUE does")],
            id="a target that is not known",
        ),
        pytest.param(
            {"FORWARD": ["-g GONE"]},
            [("GONE", "FORWARD", 1, "what GONE does"), ("DROP", None, None, "what GONE does")],
            id="a chain that is not there",
        ),
        pytest.param({"FORWARD": ["-j DNAT --to-destination 10.0.0.2"]}, [("DNAT", "FORWARD", 1)], id="DNAT"),
        pytest.param(
            {"FORWARD": ['-m comment --comment "x" -j ACCEPT ']},
            [("?", "FORWARD", 1, "what ? does"), ("DROP", None, None, "what ? does")],
            id="a line that cannot be read",
        ),
        pytest.param({"FORWARD": ['-j "x"'], '"x"': ["-j ACCEPT"]}, [("ACCEPT", '"x"', 1)], id="a chain in quotes"),
        pytest.param(
            {"FORWARD": ["-m limit --limit 1/sec -j A", "-j ACCEPT"], "A": ["-j DROP"]},
            [("DROP", "A", 1, "the rate limit"), ("ACCEPT", "FORWARD", 2, "the rate limit")],
            id="a limited jump",
        ),
        pytest.param(
            {"FORWARD": ["-m limit --limit 1/sec -g A", "-j ACCEPT"], "A": []},
            [("ACCEPT", "FORWARD", 2, "the rate limit"), ("DROP", None, None, "the rate limit")],
            id="a limited goto",
        ),
        pytest.param(
            {"FORWARD": ["-m limit --limit 1/sec -j LOG", "-j ACCEPT"]}, [("ACCEPT", "FORWARD", 2)], id="a limited log"
        ),
    ],
)
def test_a_target(rules: Rules, expected: t.List[t.Any]) -> None:
    assert verdict({"FORWARD": (), **rules}) == expected


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        pytest.param([], [("RETURN", None, None)], id="the end"),
        pytest.param(["-j RETURN"], [("RETURN", "A", 1)], id="RETURN"),
        pytest.param(["-g B", "-j DROP"], [("RETURN", "A", 1)], id="goto"),
        pytest.param(["-g C", "-j DROP"], [("RETURN", "C", 1)], id="RETURN in a chain that was gone to"),
        pytest.param(["-j C"], [("RETURN", None, None)], id="RETURN in a chain that was jumped to"),
        pytest.param(["-j D", "-j DROP"], [("DROP", "A", 2)], id="goto in a chain that was jumped to"),
    ],
)
def test_a_user_chain_by_itself(rules: t.List[str], expected: t.List[t.Any]) -> None:
    assert verdict({"A": rules, "B": [], "C": ["-j RETURN"], "D": ["-g B", "-j ACCEPT"]}, root="A") == expected


def test_a_chain_that_is_not_there() -> None:
    assert program({}).walk("FORWARD", INBOUND) == [Outcome("ACCEPT", None, EVERYTHING[IPV4], ())]
    assert program({}).walk("DOCKER-USER", INBOUND) == [Outcome("RETURN", None, EVERYTHING[IPV4], ())]
    assert program({}).walk("FORWARD", INBOUND, ()) == []
    assert program({"FORWARD": ["-j DROP"]}).walk("FORWARD", INBOUND, ()) == []


def test_rules_that_nft_wrote() -> None:
    rules = {"FORWARD": ["-j A", "-j REJECT"], "A": ["-p tcp -j ACCEPT"]}
    hidden = "rules in A that nft wrote and iptables cannot show"
    assert verdict(rules, misprinted=["A"]) == [("ACCEPT", "A", 1, hidden)]
    assert verdict(rules, misprinted=["B"]) == [("ACCEPT", "A", 1)]


@pytest.mark.parametrize("name", ["unread", "few"])
def test_the_rule_at_a_site(name: str) -> None:
    made = program({"FORWARD": ["-p udp -j DROP", "-m set --match-set %s src -j DROP" % name]})
    outcome = made.walk("FORWARD", INBOUND)[0]
    assert outcome.denies
    assert outcome.site is not None
    assert made.rule(outcome.site).render() == "-m set --match-set %s src -j DROP" % name


def test_a_list_is_one_site() -> None:
    banned = ["-s %s -j DROP" % address(IPV4, number) for number in (9, 3, 5, 4)]
    outcomes = program({"FORWARD": [*banned, "-j ACCEPT"]}).walk("FORWARD", INBOUND)
    assert outcomes[0] == Outcome(
        "DROP", Site("FORWARD", 1, 4), join((*one(IPV4, 9), *of_network("10.0.0.3"), *of_network("10.0.0.4/31"))), ()
    )
    assert outcomes[1].site == Site("FORWARD", 5, 5)


# Whatever the rules are ----------------------------------------------------------------------------------------------


def chance() -> random.Random:
    return random.Random(1)


def hosts(count: int) -> t.List[str]:
    found = chance()
    return [str(ipaddress.IPv4Address(found.randrange(1 << 24, 0xE0000000))) for _number in range(count)]


def jumps(count: int, *between: str, times: int = 1) -> t.Dict[str, t.List[str]]:
    """Chains that each lead to the next."""
    found = {"C%d" % number: [*between, *["-j C%d" % (number + 1)] * times] for number in range(count)}
    return {"FORWARD": ["-j C0"], **found, "C%d" % count: ["-s 10.0.0.1 -j REJECT"]}


HARD: t.Mapping[str, t.Callable[[], Rules]] = {
    "200 deep": lambda: jumps(200),
    "5,000 deep": lambda: jumps(5000),
    "each chain leads twice to the next": lambda: jumps(200, times=2),
    "and marks, limits and texts on the way": lambda: jumps(
        200,
        "-s 10.0.0.0/29 -m limit --limit 1/sec -j MARK --set-xmark 0x1/0x2",
        "-s 10.0.0.2/31 -m string --string x --algo bm -j DROP",
        times=2,
    ),
    "a chain that leads to itself": lambda: {"FORWARD": ["-j A"], "A": ["-j A", "-j REJECT"]},
    "chains that all lead to all others": lambda: {
        "FORWARD": ["-j C0"],
        **{
            "C%d" % number: [
                "-s 10.0.0.%d -m string --string x%d --algo bm -j REJECT" % (number, number),
                *["-j C%d" % other for other in range(40)],
            ]
            for number in range(40)
        },
    },
    "a thousand texts": lambda: {
        "FORWARD": ["-s %s -m string --string x%d --algo bm -j DROP" % item[::-1] for item in enumerate(hosts(1000))]
    },
    "a thousand marks": lambda: {
        "FORWARD": ["-s %s -j MARK --set-xmark 0x%x/0xffffffff" % item[::-1] for item in enumerate(hosts(1000))]
    },
    "3,000 chains": lambda: {
        "FORWARD": ["-s %s -j C%d" % item[::-1] for item in enumerate(hosts(3000))],
        **{"C%d" % number: ["-p tcp -j REJECT"] for number in range(3000)},
    },
}


@pytest.mark.big
@pytest.mark.parametrize("peer", [SOURCE, DESTINATION])
@pytest.mark.parametrize("rules", HARD.values(), ids=HARD)
def test_hard_rules(rules: t.Callable[[], Rules], peer: str) -> None:
    made, flow = program(rules()), INBOUND._replace(peer=peer)
    sound(IPV4, made.walk("FORWARD", flow), EVERYTHING[IPV4])
    assert told(made.walk("FORWARD", flow), IPV4, 1)


@pytest.mark.parametrize("case", ["200 deep", "5,000 deep", "each chain leads twice to the next"])
def test_depth_is_no_excuse(case: str) -> None:
    outcomes = program(HARD[case]()).walk("FORWARD", INBOUND)
    last = Site("C5000" if "5,000" in case else "C200", 1, 1)
    assert told(outcomes, IPV4, 1) == [("REJECT", last, True)]
    assert told(outcomes, IPV4, 2) == [("DROP", None, True)]


def test_too_much_is_said() -> None:
    found = {
        reason
        for outcome in program(HARD["chains that all lead to all others"]()).walk("FORWARD", INBOUND)
        for reason in outcome.reasons
    }
    assert "chains that lead back to themselves" in found
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_walk, "_MOST_STEPS", 10)
        outcomes = program(HARD["200 deep"]()).walk("FORWARD", INBOUND)
    assert [(item.verdict, item.reasons) for item in outcomes] == [("DROP", ("more rules than were read",))]


# Speed and size ------------------------------------------------------------------------------------------------------


def mixed(count: int) -> t.Iterator[str]:
    """What is found in front of containers: bans, policies, ports, Docker's own."""
    made, addresses = chance(), hosts(count)
    yield "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
    for number in range(1, count):
        container = "172.16.%d.%d" % divmod(made.randrange(1000), 256)
        port, host, bridge = made.choice((80, 443, 8080, made.randrange(1, 65536))), addresses[number], number % 200
        yield made.choice(
            (
                "-s %s/32 -j DROP" % host,
                "-s %s/32 -j ACCEPT" % host,
                "-s %s/32 -d %s/32 -p tcp -m tcp --dport %d -j ACCEPT" % (host, container, port),
                "-d %s/32 ! -i br%d -o br%d -p tcp -m tcp --dport %d -j ACCEPT" % (container, bridge, bridge, port),
                "-p tcp -m conntrack --ctstate DNAT --ctorigdstport %d --ctdir ORIGINAL -j DROP" % (20000 + number),
                "-i br%d ! -o br%d -j A" % (bridge, bridge),
                "-p tcp -m multiport --dports %d,%d -j RETURN" % (port + 1, port + 2),
                "-s %s/32 -m limit --limit 3/min -j LOG" % host,
                "-s %s/32 -p udp -m udp --dport 1000:9000 -j A" % host,
            )
        )


BIG: t.Mapping[str, t.Callable[[int], Rules]] = {
    "mixed": lambda count: {"FORWARD": list(mixed(count)), "A": ["-o br1 -j DROP", "-j RETURN"]},
    "banned": lambda count: {"FORWARD": ["-s %s/32 -j DROP" % host for host in hosts(count)]},
    "banned with a log": lambda count: {
        "FORWARD": [line for host in hosts(count // 2) for line in ("-s %s -j LOG" % host, "-s %s -j DROP" % host)]
    },
    "banned and exempt in turn": lambda count: {
        "FORWARD": ["-s %s/32 -j %s" % (host, ("DROP", "ACCEPT")[n % 2]) for n, host in enumerate(hosts(count))]
    },
    "containers": lambda count: {
        "FORWARD": [
            "-d 172.%d.%d.%d/32 -p tcp -m tcp --dport 80 -j ACCEPT" % (16 + n // 65536, n // 256 % 256, n % 256)
            for n in range(count)
        ]
    },
}


def flows(count: int) -> t.Iterator[Flow]:
    base = int(ipaddress.ip_address("172.16.0.0"))
    for number in range(count):
        container = ((base + number, base + number),)
        yield INBOUND._replace(
            out_interface="br%d" % (number % 200),
            address=container,
            original_ports=(ANY_PORT, (20000 + number, 20000 + number)),
            reply=(container, PEER),
        )


@pytest.mark.big
@pytest.mark.parametrize("rules", BIG.values(), ids=BIG)
def test_ten_thousand_rules(rules: t.Callable[[int], Rules]) -> None:
    """In 40 MiB at most; how long it takes the benchmark says."""
    chains = chains_of(rules(10000))
    tracemalloc.start()
    try:
        made = Program(chains)
        for peer in (SOURCE, DESTINATION):
            for flow in flows(300):
                made.walk("FORWARD", flow._replace(peer=peer))
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()
    made = Program(chains)
    assert made.walk("FORWARD", next(flows(1)), of_network(ME))
    # Quadratic in anything, this would take minutes.
    assert all(made.walk("FORWARD", flow) for flow in flows(1000))
