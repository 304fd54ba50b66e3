# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""A packet's walk through the chains of one table, for all its possible peers at once.

A :class:`Flow` fixes all of a packet but one address, the peer's. :meth:`Program.walk` carries the set of peers from
rule to rule, as the kernel would carry a packet of each, and says for whom which rule decides. What a rule asks and the
flow does not say (a limit, an ipset that was not read, a match that is not understood) makes the answer possible
instead of definite, with the reason; such peers go both ways.

Rules are found by index (address, port, interface), so that a walk through 10,000 rules reads the few that may match.
Rules in a row that differ in their peers only (a list of banned addresses) are read as one, and rules that ask for the
peer only are read once for all flows.
Semantics: iptables-extensions(8), the kernel's xt_conntrack.c, xt_addrtype.c and xt_physdev.c; what packets do is asked
of the kernel in tests/kernel/test_walk.py.
"""

from __future__ import annotations

import bisect
import itertools
import re
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._chain import CONTINUING, DENYING, Chain
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import (
    EVERYTHING,
    NOTHING,
    Interval,
    Intervals,
    apart,
    covers,
    intersect,
    join,
    of_network,
    of_range,
    overlaps,
    size,
    subtract,
    union,
)
from ansible_collections.quaywall.docker.plugins.module_utils._rule import (
    IPV4,
    OPAQUE,
    Field,
    Rule,
    port_range,
    port_ranges,
)

SOURCE = "source"
DESTINATION = "destination"

ANY_PORT: Interval = (0, 65535)

ACCEPT = "ACCEPT"
RETURN = "RETURN"

#: In a flow's conntrack addresses: the address that is left open.
PEER = "peer"
_End = t.Union[None, str, Intervals]

_BUILTIN = frozenset(("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"))
#: Verdicts: a packet is read by no further rule of the table.
_VERDICTS = DENYING | {ACCEPT, "DNAT", "SNAT", "MASQUERADE", "REDIRECT", "NETMAP"}
_CONTINUING = CONTINUING | {"CT", "NOTRACK", "TEE", "ECN", "TCPOPTSTRIP"}
_MARKING = ("MARK", "CONNMARK")
#: Where conntrack says one of these there is no connection that could be asked for more.
_NO_CONNECTION = frozenset(("INVALID", "UNTRACKED"))

#: A walk that reads more rules follows no further chain (the kernel follows 16 deep with nft, any number with legacy).
_MOST_STEPS = 300000
#: Beyond these numbers what is possible is told in less detail.
_MOST_PIECES = 16
_MOST_REASONS = 8
#: Intervals that are kept for sets of peers that come again.
_MOST_KEPT = 150000
#: A chain of so few rules is read as it is.
_FEW = 8


class Flow(t.NamedTuple):
    """Packets that differ in one address only.

    ``peer`` says which end that is, ``address`` is the other end's. ``states`` are the words of C(--ctstate) that
    hold; C(INVALID) or C(UNTRACKED) alone (as everything is in the table raw) means that there is no connection to
    ask. ``original`` are source and destination before any translation, ``reply`` those that replies carry:
    intervals, :data:`PEER`, or None where they are not known. ``flags`` are the TCP flags of packets of the flow.
    ``mark`` is None where it is not known. ``bridge_port`` says whether they came in by a port of a bridge whose
    packets pass iptables, None where that is not known, ``bridged`` whether they leave by another port of it.
    ``source_type`` and ``destination_type`` are words of C(-m addrtype). Packets that come in through no interface
    are the host's own.
    """

    family: str
    peer: str
    protocol: str
    in_interface: str
    out_interface: str
    address: Intervals
    source_ports: Interval = ANY_PORT
    destination_ports: Interval = ANY_PORT
    states: t.FrozenSet[str] = frozenset(("NEW",))
    direction: str = "ORIGINAL"
    original: t.Tuple[_End, _End] = (None, None)
    original_ports: t.Tuple[Interval, Interval] = (ANY_PORT, ANY_PORT)
    reply: t.Tuple[_End, _End] = (None, None)
    reply_ports: t.Tuple[Interval, Interval] = (ANY_PORT, ANY_PORT)
    flags: t.Tuple[t.FrozenSet[str], ...] = (frozenset(("SYN",)),)
    mark: t.Optional[int] = 0
    bridged: bool = False
    source_type: str = "UNICAST"
    destination_type: str = "UNICAST"
    icmp_type: t.Optional[int] = None
    bridge_port: t.Optional[bool] = None


class Site(t.NamedTuple):
    """Where a rule stands. ``position`` counts from 1; ``last`` is greater for a run of like rules taken as one."""

    chain: str
    position: int
    last: int


class Outcome(t.NamedTuple):
    """What becomes of some peers' packets.

    ``verdict`` is a built-in target (C(ACCEPT), C(DROP), C(REJECT), C(DNAT)), the chain's policy, C(RETURN) where a
    user chain was left, or a target whose doing is not known. ``site`` is None where no rule decided: the policy did,
    or a user chain was walked to its end. ``reasons`` say what it hangs on; empty: definite.
    """

    verdict: str
    site: t.Optional[Site]
    peers: Intervals
    reasons: t.Tuple[str, ...]

    @property
    def denies(self) -> bool:
        return self.verdict in DENYING


# Tests ---------------------------------------------------------------------------------------------------------------
# Each takes a flow and an argument, and answers True, False, or None: it hangs on what the flow does not say.

_Test = t.Callable[[Flow, t.Any], t.Optional[bool]]


def _addresses_in(given: _End, wanted: Intervals) -> t.Optional[bool]:
    if given is None or isinstance(given, str):
        return None
    if given is wanted:
        return True
    if not overlaps(given, wanted):
        return False
    return True if covers(wanted, given) else None


def _ports_in(given: Interval, wanted: t.Sequence[Interval]) -> t.Optional[bool]:
    touched = False
    for low, high in wanted:
        if low <= given[0] and given[1] <= high:
            return True
        touched = touched or (low <= given[1] and given[0] <= high)
    return None if touched else False


def _test_address(flow: Flow, wanted: Intervals) -> t.Optional[bool]:
    return _addresses_in(flow.address, wanted)


def _test_in_interface(flow: Flow, pattern: str) -> bool:
    return interface_matches(pattern, flow.in_interface)


def _test_out_interface(flow: Flow, pattern: str) -> bool:
    return interface_matches(pattern, flow.out_interface)


def _test_protocol(flow: Flow, protocol: str) -> bool:
    return flow.protocol == protocol


def _test_source_ports(flow: Flow, wanted: t.Sequence[Interval]) -> t.Optional[bool]:
    return _ports_in(flow.source_ports, wanted)


def _test_destination_ports(flow: Flow, wanted: t.Sequence[Interval]) -> t.Optional[bool]:
    return _ports_in(flow.destination_ports, wanted)


def _test_either_ports(flow: Flow, wanted: t.Sequence[Interval]) -> t.Optional[bool]:
    answers = (_ports_in(flow.source_ports, wanted), _ports_in(flow.destination_ports, wanted))
    return True if True in answers else (None if None in answers else False)


def _test_tcp_flags(flow: Flow, wanted: t.Tuple[t.FrozenSet[str], t.FrozenSet[str]]) -> t.Optional[bool]:
    mask, compare = wanted
    answers = {flags & mask == compare for flags in flow.flags}
    return answers.pop() if len(answers) == 1 else None


def _test_states(flow: Flow, wanted: t.FrozenSet[str]) -> bool:
    return bool(flow.states & wanted)


def _test_direction(flow: Flow, direction: str) -> bool:
    return flow.direction == direction


def _test_original_source_port(flow: Flow, wanted: t.Sequence[Interval]) -> t.Optional[bool]:
    return _ports_in(flow.original_ports[0], wanted)


def _test_original_destination_port(flow: Flow, wanted: t.Sequence[Interval]) -> t.Optional[bool]:
    return _ports_in(flow.original_ports[1], wanted)


def _test_reply_source_port(flow: Flow, wanted: t.Sequence[Interval]) -> t.Optional[bool]:
    return _ports_in(flow.reply_ports[0], wanted)


def _test_reply_destination_port(flow: Flow, wanted: t.Sequence[Interval]) -> t.Optional[bool]:
    return _ports_in(flow.reply_ports[1], wanted)


def _test_conntrack_protocol(flow: Flow, protocol: str) -> t.Optional[bool]:
    # An ICMP error is related to a connection of another protocol.
    return None if "RELATED" in flow.states else flow.protocol == protocol


def _test_conntrack_address(flow: Flow, argument: t.Tuple[_ConntrackPeers, bool]) -> t.Optional[bool]:
    """True where the address is the open one: then the set of peers is narrowed instead."""
    (reply, index, wanted, _negated), for_peer = argument
    given = (flow.reply if reply else flow.original)[index]
    return for_peer if given == PEER else _addresses_in(given, wanted)


def _test_connection(flow: Flow, argument: t.Tuple[_Test, t.Any, bool]) -> t.Optional[bool]:
    """A test of conntrack's: without a connection only C(--ctstate) is looked at, which must be there then."""
    test, wanted, without = argument
    return without if flow.states <= _NO_CONNECTION else test(flow, wanted)


def _test_source_type(flow: Flow, types: t.FrozenSet[str]) -> bool:
    return _type_is(flow, flow.source_type, types)


def _test_destination_type(flow: Flow, types: t.FrozenSet[str]) -> bool:
    return _type_is(flow, flow.destination_type, types)


def _type_is(flow: Flow, given: str, types: t.FrozenSet[str]) -> bool:
    if flow.family == IPV4:
        return given in types
    # The kernel asks for IPv6 type by type, and all that a routing table need not be asked for must hold.
    looked_up = types & {"LOCAL", "ANYCAST", "UNREACHABLE"}
    return not (
        ("MULTICAST" in types and given != "MULTICAST")
        or ("UNICAST" in types and given in ("MULTICAST", "UNSPEC"))
        or ("UNSPEC" in types and given != "UNSPEC")
        or (looked_up and given not in looked_up)
    )


def _test_source_type_of_interface(flow: Flow, types: t.FrozenSet[str]) -> t.Optional[bool]:
    # What is local may be so by another interface; then it counts as unicast.
    return _type_is(flow, "UNICAST", types) if flow.source_type == "UNICAST" else None


def _test_destination_type_of_interface(flow: Flow, types: t.FrozenSet[str]) -> t.Optional[bool]:
    return _type_is(flow, "UNICAST", types) if flow.destination_type == "UNICAST" else None


def _test_bridged(flow: Flow, _nothing: None) -> bool:
    return flow.bridged


def _test_bridge_port(flow: Flow, _wanted: t.Any) -> t.Optional[bool]:
    return flow.bridged or (False if not flow.in_interface else flow.bridge_port)


def _test_named_bridge_port(flow: Flow, _name: str) -> t.Optional[bool]:
    """Which of its ports it was is not known."""
    return False if _test_bridge_port(flow, None) is False else None


def _test_icmp_type(flow: Flow, wanted: t.Optional[int]) -> t.Optional[bool]:
    """An argument of None means every type."""
    if flow.protocol not in ("icmp", "ipv6-icmp"):
        return False
    return True if wanted is None else None if flow.icmp_type is None else flow.icmp_type == wanted


def _icmp_type(value: str) -> t.Optional[int]:
    """The type as iptables-save prints it; with a code it is not understood (ValueError)."""
    return None if value == "any" else int(value)


def _test_socket(flow: Flow, _wanted: t.Any) -> t.Optional[bool]:
    """No forwarded packet has a socket here; whose the host's own are is not known."""
    return False if flow.in_interface else None


def _test_never(_flow: Flow, _nothing: None) -> bool:
    return False


def _test_unknown(_flow: Flow, _nothing: None) -> None:
    return None


#: In flow.reply (else flow.original), the place there, addresses, negated.
_ConntrackPeers = t.Tuple[bool, int, Intervals, bool]

_CONNTRACK_ADDRESSES: t.Mapping[str, t.Tuple[bool, int]] = {
    "ctorigsrc": (False, 0),
    "ctorigdst": (False, 1),
    "ctreplsrc": (True, 0),
    "ctrepldst": (True, 1),
}
_CONNTRACK = frozenset(
    (
        "ctproto",
        *_CONNTRACK_ADDRESSES,
        "ctorigsrcport",
        "ctorigdstport",
        "ctreplsrcport",
        "ctrepldstport",
        "ctstatus",
        "ctexpire",
        "ctdir",
    )
)
_SILENT = frozenset(("match", "comment", "limit_burst", "limit_interface_in", "limit_interface_out"))


def interface_matches(pattern: str, name: str) -> bool:
    """True if C(-i pattern) matches the interface."""
    return name.startswith(pattern[:-1]) if pattern.endswith("+") else name == pattern


# One rule ------------------------------------------------------------------------------------------------------------


#: Test, argument, negated, what the answer hangs on where the flow does not say it.
_Check = t.Tuple[_Test, t.Any, bool, str]
#: An index, and the keys under which a rule is found there.
_Key = t.Tuple[str, t.Tuple[t.Any, ...]]


class _Item:
    """A rule as the walk reads it, or a run of rules that differ in their peers only."""

    __slots__ = (
        "before",
        "change",
        "conntrack_peers",
        "goto",
        "key",
        "last",
        "marks",
        "others",
        "peers",
        "position",
        "target",
        "tests",
    )

    def __init__(self, position: int) -> None:
        self.tests: t.Tuple[_Check, ...] = ()
        #: None: any peer.
        self.peers: t.Optional[Intervals] = None
        #: All others, once they were asked for and are many.
        self.others: t.Optional[Intervals] = None
        self.conntrack_peers: t.Tuple[_ConntrackPeers, ...] = ()
        #: Tests of the packet's mark, which rules change: mark, mask, negated.
        self.marks: t.Tuple[t.Tuple[int, int, bool], ...] = ()
        self.target = ""
        self.goto = False
        #: What the target does to the mark: mask and value; None: not known.
        self.change: t.Optional[t.Tuple[int, int]] = None
        self.position = position
        self.last = position
        #: How many rules of the chain's list stand before it.
        self.before = 0
        self.key: _Key = ("", ())

    def at(self, position: int) -> _Item:
        """The same rule at another place, or in another chain."""
        item = _Item(position)
        item.tests, item.peers, item.conntrack_peers, item.marks = (
            self.tests,
            self.peers,
            self.conntrack_peers,
            self.marks,
        )
        item.target, item.goto, item.change, item.key = self.target, self.goto, self.change, self.key
        return item

    def match(self, flow: Flow) -> t.Optional[t.Tuple[str, ...]]:
        """None if the rule does not match; else what it hangs on."""
        reasons: t.Tuple[str, ...] = ()
        for test, argument, negated, reason in self.tests:
            answer = test(flow, argument)
            if answer is None:
                reasons += (reason,)
            elif answer == negated:
                return None
        return reasons

    def inside(self, flow: Flow, region: Intervals) -> Intervals:
        """The peers of a region that the rule matches."""
        inside = region if self.peers is None else intersect(region, self.peers)
        for reply, index, wanted, negated in self.conntrack_peers:
            if (flow.reply if reply else flow.original)[index] == PEER and not flow.states <= _NO_CONNECTION:
                inside = subtract(inside, wanted) if negated else intersect(inside, wanted)
        return inside

    @property
    def many(self) -> bool:
        """True if it is worth to keep what is found out about its peers."""
        return self.peers is not None and len(self.peers) > _FEW and not self.conntrack_peers

    @property
    def plain(self) -> bool:
        """True for a verdict that is the same for every flow."""
        return self.peers is not None and not (self.tests or self.marks or self.conntrack_peers) and self.final

    @property
    def final(self) -> bool:
        """True for a target that a packet does not come back from, whatever else the rule says."""
        return self.target in DENYING or self.target in (ACCEPT, RETURN)


class _Compiler:
    """Makes items of the rules of one family, for one open end."""

    def __init__(
        self,
        family: str,
        peer: str,
        sets: t.Mapping[str, Intervals],
        networks: t.Dict[str, t.Optional[Intervals]],
    ) -> None:
        self.family = family
        self._peer = peer
        self._sets = sets
        self._checks: t.Dict[t.Tuple[Field, bool], t.Tuple[_Check, t.Optional[_Key]]] = {}
        self._networks = networks
        #: By identity, as the same rule may stand in many chains that are tried; with the rule, which keeps its id.
        self._known: t.Dict[int, t.Tuple[Rule, t.Optional[_Item]]] = {}

    def items(self, rules: t.Iterable[Rule]) -> t.List[_Item]:
        """The rules that decide something, runs as one."""
        found: t.List[_Item] = []
        run: t.List[_Item] = []
        for position, rule in enumerate(rules, 1):
            known = self._known.get(id(rule))
            if known is None:
                known = self._known[id(rule)] = rule, self._compile(rule, position)
            if known[1] is None:
                continue
            item = known[1].at(position)
            if run and not _alike(run[0], item):
                found.append(_joined(run))
                run = []
            run.append(item)
        if run:
            found.append(_joined(run))
        return found

    def _compile(self, rule: Rule, position: int) -> t.Optional[_Item]:
        """None for a rule that no verdict hangs on."""
        item = _Item(position)
        tests: t.List[_Check] = []
        unknown: t.List[str] = []
        keys: t.Dict[str, t.Tuple[t.Any, ...]] = {}
        for index, field in enumerate(rule.fields):
            name = field.name
            if name in _SILENT:
                continue
            if name in ("jump", "goto"):
                item.target, item.goto = field.value, name == "goto"
                break
            if name == OPAQUE:
                hidden = _hidden_target(field)
                if hidden is None:
                    unknown.append(field.text)
                    continue
                item.target, item.goto = hidden
                break
            if name in (SOURCE, DESTINATION, "source_range", "destination_range", "match_set"):
                self._address(item, field, tests, keys)
            elif name == "mark":
                item.marks += ((*_mark_and_mask(field.value), field.negated),)
            elif name in _CONNTRACK_ADDRESSES:
                self._conntrack_address(item, field, _has_state(rule, index), tests)
            else:
                check, key = self._check(rule, index, field)
                tests.append(check)
                if key is not None:
                    keys.setdefault(*key)
        if unknown:
            tests.append((_test_unknown, None, False, " ".join(unknown)))
        if item.target in _MARKING:
            if item.target == "CONNMARK" and "--restore-mark" not in rule.render():
                return None
            item.change = _mark_change(rule)
        elif not item.target or item.target in _CONTINUING:
            return None
        item.tests = tuple(tests)
        item.key = next(((name, keys[name]) for name in _INDEXES if name in keys), item.key)
        return item

    def _address(
        self, item: _Item, field: Field, tests: t.List[_Check], keys: t.Dict[str, t.Tuple[t.Any, ...]]
    ) -> None:
        if field.name == "match_set":
            name, _blank, flags = field.value.partition(" ")
            end = {"src": SOURCE, "dst": DESTINATION}.get(flags, "")
            addresses = self._sets.get(name) if end else None
            reason = "what is in ipset %s" % name
        else:
            end = SOURCE if field.name.startswith(SOURCE) else DESTINATION
            addresses = self._network(field)
            reason = field.text
        if addresses is None:
            tests.append((_test_unknown, None, False, reason))
        elif end == self._peer:
            wanted = subtract(EVERYTHING[self.family], addresses) if field.negated else addresses
            item.peers = wanted if item.peers is None else intersect(item.peers, wanted)
        else:
            tests.append((_test_address, addresses, field.negated, field.text))
            if not field.negated and len(addresses) == 1 and addresses[0][0] == addresses[0][1]:
                keys["address"] = (addresses[0][0],)

    def _conntrack_address(self, item: _Item, field: Field, with_state: bool, tests: t.List[_Check]) -> None:
        addresses = self._network(field)
        if addresses is None:
            tests.append((_test_unknown, None, False, field.text))
            return
        wanted = (*_CONNTRACK_ADDRESSES[field.name], addresses, field.negated)
        item.conntrack_peers += (wanted,)
        argument = (_test_conntrack_address, (wanted, not field.negated), field.negated != with_state)
        tests.append((_test_connection, argument, field.negated, field.text))

    def _network(self, field: Field) -> t.Optional[Intervals]:
        """The addresses that a field names; None if they are too many, or none."""
        if field.value not in self._networks:
            try:
                found = of_range(field.value) if field.name.endswith("_range") else of_network(field.value)
                self._networks[field.value] = found if found[-1][1] <= EVERYTHING[self.family][0][1] else None
            except ValueError:
                self._networks[field.value] = None
        return self._networks[field.value]

    def _check(self, rule: Rule, index: int, field: Field) -> t.Tuple[_Check, t.Optional[_Key]]:
        """The test of a field, and where it is found by what it asks for."""
        named = field.name
        if named in _CONNTRACK:
            special = _has_state(rule, index)
        else:
            special = named in _OF_INTERFACE and any(item.name.startswith("limit_interface_") for item in rule.fields)
        known = self._checks.get((field, special))
        if known is None:
            try:
                known = _make_check(field, special), _key(field)
            except (ValueError, LookupError):
                known = (_test_unknown, None, False, field.text), None
            self._checks[field, special] = known
        return known


def _key(field: Field) -> t.Optional[_Key]:
    if field.negated:
        return None
    if field.name in ("destination_port", "destination_ports", "ctorigdstport"):
        ranges = port_ranges(field.value)
        if size(ranges) > 64:
            return None
        ports = tuple({port for low, high in ranges for port in range(low, high + 1)})
        return ("original_port" if field.name == "ctorigdstport" else "port"), ports
    if field.name in ("in_interface", "out_interface") and not field.value.endswith("+"):
        return field.name, (field.value,)
    return None


def _hidden_target(field: Field) -> t.Optional[t.Tuple[str, bool]]:
    """The target in words that could not be read, and whether it is gone to; C(?) if no word of a line could be."""
    if field.text.startswith(("-j ", "-g ")):
        return field.text[3:].partition(" ")[0], field.text[1] == "g"
    return ("?", False) if re.search(r'".* -[jg] ', field.text, re.DOTALL) else None


def _has_state(rule: Rule, index: int) -> bool:
    """True if C(--ctstate) is asked by the match that a field belongs to."""
    start = end = index
    while start and rule.fields[start].name != "match":
        start -= 1
    while end < len(rule.fields) and rule.fields[end].name != "match":
        end += 1
    return any(field.name == "ctstate" for field in rule.fields[start:end])


def _alike(one: _Item, two: _Item) -> bool:
    """True if rules that stand one after the other differ in their peers only."""
    return (
        one.target == two.target
        and one.peers is not None
        and two.peers is not None
        and one.final
        and one.tests == two.tests
        and one.marks == two.marks
        and not (one.conntrack_peers or two.conntrack_peers)
    )


def _joined(run: t.List[_Item]) -> _Item:
    """A run as one item: a list of banned addresses is one set of peers."""
    item = run[0]
    if len(run) > 1:
        item.last = run[-1].position
        item.peers = join(piece for one in run for piece in one.peers or ())
    return item


def _words(value: str) -> t.FrozenSet[str]:
    return frozenset(value.split(","))


def _tcp_flag_sets(value: str) -> t.Tuple[t.FrozenSet[str], ...]:
    return tuple(frozenset() if word == "NONE" else _words(word) for word in value.split(" "))


def _mark_and_mask(value: str) -> t.Tuple[int, int]:
    mark, _slash, mask = value.partition("/")
    return int(mark, 16), int(mask or "0xffffffff", 16)


def _mark_change(rule: Rule) -> t.Optional[t.Tuple[int, int]]:
    """The bits of the mark that a rule's target clears, and those that it turns then; None if that is not known."""
    value, _slash, mask = (rule.value("set_xmark") or "").partition("/")
    try:
        return int(mask or "0xffffffff", 0), int(value, 0)
    except ValueError:
        return None


def _nothing(_value: str) -> None:
    return None


def _one_port_range(value: str) -> t.Sequence[Interval]:
    return (port_range(value),)


_PROTOCOL_OF_NUMBER = {"1": "icmp", "6": "tcp", "17": "udp", "58": "ipv6-icmp", "132": "sctp"}

#: The test of a field, what makes its argument, and what a verdict hangs on where the flow does not say it.
_TESTS: t.Mapping[str, t.Tuple[_Test, t.Callable[[str], t.Any], str]] = {
    "in_interface": (_test_in_interface, str, ""),
    "out_interface": (_test_out_interface, str, ""),
    "protocol": (_test_protocol, str, ""),
    "source_port": (_test_source_ports, port_ranges, "the source port"),
    "source_ports": (_test_source_ports, port_ranges, "the source port"),
    "destination_port": (_test_destination_ports, port_ranges, "the destination port"),
    "destination_ports": (_test_destination_ports, port_ranges, "the destination port"),
    "ports": (_test_either_ports, port_ranges, "the ports"),
    "tcp_flags": (_test_tcp_flags, _tcp_flag_sets, "the TCP flags"),
    "ctstate": (_test_states, _words, ""),
    "state": (_test_states, _words, ""),
    "ctdir": (_test_direction, str, ""),
    "ctproto": (_test_conntrack_protocol, lambda value: _PROTOCOL_OF_NUMBER.get(value, value), ""),
    "ctorigsrcport": (_test_original_source_port, _one_port_range, ""),
    "ctorigdstport": (_test_original_destination_port, _one_port_range, ""),
    "ctreplsrcport": (_test_reply_source_port, _one_port_range, ""),
    "ctrepldstport": (_test_reply_destination_port, _one_port_range, ""),
    "source_type": (_test_source_type, _words, ""),
    "destination_type": (_test_destination_type, _words, ""),
    "limit": (_test_unknown, _nothing, "the rate limit"),
    "physdev_is_bridged": (_test_bridged, _nothing, ""),
    "physdev_is_in": (_test_bridge_port, _nothing, ""),
    "physdev_is_out": (_test_bridged, _nothing, ""),
    "physdev_in": (_test_named_bridge_port, str, ""),
    "physdev_out": (_test_named_bridge_port, str, ""),
    # Packets are walked whole.
    "fragment": (_test_never, _nothing, ""),
    "socket_exists": (_test_socket, _nothing, ""),
    "uid_owner": (_test_socket, _nothing, ""),
    "gid_owner": (_test_socket, _nothing, ""),
    "icmp_type": (_test_icmp_type, _icmp_type, ""),
    "icmpv6_type": (_test_icmp_type, _icmp_type, ""),
}


_OF_INTERFACE: t.Mapping[str, _Test] = {
    "source_type": _test_source_type_of_interface,
    "destination_type": _test_destination_type_of_interface,
}


def _make_check(field: Field, special: bool) -> _Check:
    """``special``: the match asks for C(--ctstate) too, or for addresses of one interface."""
    if field.name == "protocol" and field.value == "all":
        return (_test_never, None, not field.negated, "")
    test, argument, reason = _TESTS.get(field.name, (_test_unknown, _nothing, ""))
    wanted, reason = argument(field.value), reason or field.text
    if field.name in _CONNTRACK:
        return (_test_connection, (test, wanted, field.negated != special), field.negated, reason)
    return (_OF_INTERFACE[field.name] if special else test, wanted, field.negated, reason)


# A chain -------------------------------------------------------------------------------------------------------------

#: The one that leaves the fewest candidates first.
_INDEXES = ("address", "original_port", "port", "out_interface", "in_interface")


class _Index:
    """Items in order, and where to find those that a flow may match."""

    def __init__(self, items: t.List[_Item]) -> None:
        self.items = items
        self._by_key: t.Dict[str, t.Dict[t.Any, t.List[_Item]]] = {name: {} for name in _INDEXES}
        self._rest: t.List[_Item] = []
        self._by_range: t.Dict[t.Tuple[str, Intervals], t.List[_Item]] = {}
        if len(items) <= _FEW:
            self._rest = items
            return
        for item in items:
            name, keys = item.key
            if name:
                for key in keys:
                    self._by_key[name].setdefault(key, []).append(item)
            else:
                self._rest.append(item)

    def candidates(self, flow: Flow) -> t.List[_Item]:
        """The items that the flow may match, in order."""
        if self._rest is self.items:
            return self.items
        original_port = (ANY_PORT if flow.states <= _NO_CONNECTION else flow.original_ports[1],)
        lists = [
            self._rest,
            self._among("address", flow.address),
            self._among("original_port", original_port),
            self._among("port", (flow.destination_ports,)),
            self._by_key["out_interface"].get(flow.out_interface),
            self._by_key["in_interface"].get(flow.in_interface),
        ]
        found = [items for items in lists if items]
        if len(found) == 1:
            return found[0]
        return sorted(itertools.chain.from_iterable(found), key=_position)

    def _among(self, name: str, wanted: Intervals) -> t.Optional[t.List[_Item]]:
        known = self._by_key[name]
        if not known:
            return None
        if len(wanted) == 1 and wanted[0][0] == wanted[0][1]:
            return known.get(wanted[0][0])
        found = self._by_range.get((name, wanted))
        if found is None:
            items = {
                item.position: item for key, group in known.items() if overlaps(((key, key),), wanted) for item in group
            }
            if len(self._by_range) >= 16:
                self._by_range.clear()
            found = self._by_range[name, wanted] = [items[position] for position in sorted(items)]
        return found


def _position(item: _Item) -> int:
    return item.position


class _List:
    """Rules of a chain that ask for the peer only, and decide: what they decide is the same for every flow.

    A walk leaves them out on its way, and asks at the end what each would have decided. Until then it must only know
    who is *gone* by the time that it comes to another rule.
    """

    def __init__(self, chain: str, items: t.Sequence[_Item], family: str) -> None:
        self.size = len(items)
        self._half = EVERYTHING[family][0][1] // 2
        #: Peers in order, with the number of the rule that decides about them.
        self._spans = apart([item.peers or NOTHING for item in items])
        own: t.List[t.List[Interval]] = [[] for _item in items]
        for low, high, number in self._spans:
            own[number].append((low, high))
        self._outcomes = [
            Outcome(item.target, Site(chain, item.position, item.last), tuple(peers), ()) if peers else None
            for item, peers in zip(items, own)
        ]
        self._returning = {number for number, item in enumerate(items) if item.target == RETURN}
        self._asked: t.Dict[t.Tuple[bool, bool], t.List[t.Optional[Outcome]]] = {(True, False): self._outcomes}

    def _between(self, low: int, high: int) -> t.Tuple[int, int]:
        start = bisect.bisect_left(self._spans, (low + 1,))
        if start and self._spans[start - 1][1] >= low:
            start -= 1
        return start, bisect.bisect_left(self._spans, (high + 1,), start)

    def _inside(self, region: Intervals, count: int) -> t.List[t.Tuple[int, int, int]]:
        """The peers of a region that the first rules decide about, in order, and by which."""
        spans = self._spans
        found: t.List[t.Tuple[int, int, int]] = []
        if len(region) > len(spans):
            start, end = 0, len(region)
            for low, high, number in spans:
                if number < count:
                    start = max(bisect.bisect_left(region, (low + 1,), start) - 1, start)
                    while start < end and region[start][1] < low:
                        start += 1
                    while start < end and region[start][0] <= high:
                        first, last = region[start]
                        found.append((max(first, low), min(last, high), number))
                        if last > high:
                            break  # it may reach into the next one
                        start += 1
            return found
        for low, high in region:
            start, end = self._between(low, high)
            inner = [span for span in spans[start:end] if span[2] < count]
            if inner and inner[0][0] < low:
                inner[0] = (low, *inner[0][1:])
            if inner and inner[-1][1] > high:
                inner[-1] = (inner[-1][0], high, inner[-1][2])
            found += inner
        return found

    def gone(self, region: Intervals, count: int) -> Intervals:
        """The peers of a region that the first rules decide about."""
        return tuple([span[:2] for span in self._inside(region, count)])

    def returning(self, count: int) -> Intervals:
        """The peers that the first rules send back."""
        if not self._returning:
            return NOTHING
        return join((low, high) for low, high, number in self._spans if number < count and number in self._returning)

    def decided(self, regions: t.Sequence[t.Tuple[Intervals, int]], leaves: bool, briefly: bool) -> t.List[Outcome]:
        """What the rules decide about regions, each of which only the first rules are read for.

        ``leaves``: whether RETURN is a verdict; ``briefly``: without denials of a few addresses.
        """
        known = self._asked.get((leaves, briefly))
        if known is None:
            known = self._asked[leaves, briefly] = [
                None
                if outcome is None
                or (outcome.verdict == RETURN and not leaves)
                or (briefly and outcome.denies and outcome.peers[-1][1] - outcome.peers[0][0] < self._half)
                else outcome
                for outcome in self._outcomes
            ]
        found: t.Dict[int, t.List[Interval]] = {}
        whole: t.Optional[t.Tuple[Intervals, int]] = None
        for region, count in regions:
            if whole is None and self._is_most(region):
                whole = region, count
                continue
            for low, high, number in self._inside(region, count):
                if known[number] is not None:
                    found.setdefault(number, []).append((low, high))
        if whole is not None:
            return self._most(*whole, found, known)
        parts = [(known[number], found[number]) for number in sorted(found)]
        return [outcome._replace(peers=join(peers)) for outcome, peers in parts if outcome is not None]

    def _is_most(self, region: Intervals) -> bool:
        return (
            len(region) * 8
            < len(self._spans)
            < 2 * sum(end - start for start, end in (self._between(low, high) for low, high in region))
        )

    def _most(
        self,
        region: Intervals,
        count: int,
        found: t.Dict[int, t.List[Interval]],
        known: t.List[t.Optional[Outcome]],
    ) -> t.List[Outcome]:
        """What is decided about a region that leaves few peers out: the rules that these do not touch are not read."""
        low = -1
        for first, last in (*region, (1 << 129, 0)):
            start, end = self._between(low + 1, first - 1)
            for _first, _last, number in self._spans[start:end]:
                if number < count:
                    found.setdefault(number, [])
            low = last
        outcomes: t.List[t.Optional[Outcome]] = []
        done = 0
        for number in sorted(found):
            outcomes += known[done : min(number, count)]
            done = number + 1
            outcome = known[number]
            if outcome is not None:
                peers = join([*found[number], *(intersect(outcome.peers, region) if number < count else ())])
                outcomes += [outcome._replace(peers=peers)] if peers else []
        return list(filter(None, outcomes + known[done:count]))


class _Lane:
    """The items of one chain for one open end."""

    def __init__(self, chain: Chain, compiler: _Compiler) -> None:
        items = compiler.items(chain.rules)
        plain = [item for item in items if item.plain]
        self.list: t.Optional[_List] = None
        if len(plain) > _FEW:
            self.list = _List(chain.name, plain, compiler.family)
            before = 0
            for item in items:
                item.before = before
                before += item.plain
            items = [item for item in items if not item.plain]
        self._index = _Index(items)
        self._views: t.Dict[int, t.Tuple[Intervals, t.Optional[_Index]]] = {}

    def candidates(self, flow: Flow, within: Intervals) -> t.List[_Item]:
        """The items that the flow may match for some of these peers, in order."""
        if within is EVERYTHING[flow.family] or len(self._index.items) <= _FEW:
            return self._index.candidates(flow)
        return self._view(within).candidates(flow)

    def _view(self, within: Intervals) -> _Index:
        """The items that some peers may match; looked for only if these come again."""
        known = self._views.get(id(within))
        if known is None:
            if len(self._views) >= 4:
                self._views.clear()
            # The set is kept so that no other one gets its id.
            self._views[id(within)] = (within, None)
            return self._index
        if known[1] is not None:
            return known[1]
        items = [item for item in self._index.items if item.peers is None or overlaps(item.peers, within)]
        view = self._index if len(items) == len(self._index.items) else _Index(items)
        self._views[id(within)] = (within, view)
        return view


# The walk ------------------------------------------------------------------------------------------------------------


class _Piece(t.NamedTuple):
    """Some of the peers on their way: what it hangs on that they are here, and the mark of their packets."""

    region: Intervals
    reasons: t.Tuple[str, ...]
    mark: t.Optional[int]


class _Kept:
    """Answers about sets of peers, found by their identity. The oldest go when there are too many."""

    def __init__(self) -> None:
        self._known: t.Dict[t.Any, t.Tuple[t.Any, int, t.Tuple[Intervals, ...]]] = {}
        self._weight = 0

    def get(self, key: t.Any) -> t.Any:
        """None if it is not known."""
        found = self._known.get(key)
        return None if found is None else found[0]

    def keep(self, key: t.Any, answer: t.Any, *regions: Intervals) -> None:
        """Keep an answer; and the regions whose identity it is found by, so that no other one gets it."""
        weight = sum(map(len, regions)) + 1
        self._weight += weight - self._known.pop(key, (None, 0, ()))[1]
        self._known[key] = (answer, weight, regions)
        while self._weight > _MOST_KEPT:
            self._weight -= self._known.pop(next(iter(self._known)))[1]


class Program:
    """The chains of one table of one family, ready to be walked.

    :param chains: by name.
    :param sets: contents of ipsets that hold addresses only.
    :param misprinted: chains whose rules are not what they seem, as nft wrote some that iptables cannot show.
    """

    def __init__(
        self,
        chains: t.Mapping[str, Chain],
        family: str = IPV4,
        sets: t.Optional[t.Mapping[str, Intervals]] = None,
        misprinted: t.Collection[str] = (),
    ) -> None:
        self.chains = chains
        self.family = family
        self.misprinted = frozenset(misprinted)
        networks: t.Dict[str, t.Optional[Intervals]] = {}
        self._compilers = {peer: _Compiler(family, peer, sets or {}, networks) for peer in (SOURCE, DESTINATION)}
        self._lanes: t.Dict[t.Tuple[str, str], _Lane] = {}
        self._splits = _Kept()

    def rule(self, site: Site) -> Rule:
        """The rule (the first of a run) at a site."""
        return self.chains[site.chain].rules[site.position - 1]

    def lane(self, name: str, peer: str) -> _Lane:
        lane = self._lanes.get((name, peer))
        if lane is None:
            lane = self._lanes[name, peer] = _Lane(self.chains[name], self._compilers[peer])
        return lane

    def with_chains(self, chains: t.Mapping[str, Chain], changed: t.Iterable[str]) -> Program:
        """The same table with some chains changed; what is known of the others is kept."""
        other = Program(chains, self.family, None, self.misprinted)
        gone = frozenset(changed)
        other._compilers = self._compilers
        other._lanes = {key: lane for key, lane in self._lanes.items() if key[0] not in gone}
        return other

    def inside(self, item: _Item, flow: Flow, region: Intervals) -> Intervals:
        """The peers of a region that an item matches."""
        if not item.many:
            return item.inside(flow, region)
        known: t.Optional[Intervals] = self._splits.get((item, id(region), "inside"))
        if known is None:
            known = item.inside(flow, region)
            self._splits.keep((item, id(region), "inside"), known, region, known)
        return known

    def outside(self, item: _Item, region: Intervals, inside: Intervals) -> Intervals:
        """The other peers of the region."""
        if inside is region:
            return NOTHING
        if not item.many:
            return subtract(region, inside)
        known: t.Optional[Intervals] = self._splits.get((item, id(region), "outside"))
        if known is None:
            if item.others is None:
                item.others = subtract(EVERYTHING[self.family], item.peers or NOTHING)
            known = intersect(region, item.others)
            self._splits.keep((item, id(region), "outside"), known, region, known)
        return known

    def alive(self, found: t.Optional[_List], region: Intervals, count: int) -> Intervals:
        """The peers of a region that the first rules of a chain's list do not decide about; itself if these are all."""
        if found is None or not count:
            return region
        key = (found, id(region), count)
        known: t.Optional[Intervals] = self._splits.get(key)
        if known is None:
            gone = found.gone(region, count)
            known = subtract(region, gone)
            if len(gone) > _FEW or len(region) > _FEW:
                self._splits.keep(key, known, region, known)
        return known

    def decided(
        self, found: _List, regions: t.Sequence[t.Tuple[Intervals, int]], leaves: bool, briefly: bool
    ) -> t.Tuple[t.List[Outcome], Intervals]:
        """What the rules of a chain's list decide about regions, each of which only the first are read for.

        Second, the peers that they send back; ``leaves``: whether that is a verdict. ``briefly``: without denials of
        a few.
        """
        region, count = regions[0]
        key = (found, id(region), count, leaves, briefly)
        known: t.Optional[t.Tuple[t.List[Outcome], Intervals]] = self._splits.get(key) if len(regions) == 1 else None
        if known is None:
            back = [] if leaves else [intersect(region, self._returning(found, count)) for region, count in regions]
            known = found.decided(regions, leaves, briefly), _together(back) if back else NOTHING
            if len(regions) == 1 and len(region) > _FEW:
                self._splits.keep(key, known, region, known[1], *[outcome.peers for outcome in known[0]])
        return known

    def _returning(self, found: _List, count: int) -> Intervals:
        known: t.Optional[Intervals] = self._splits.get((found, count))
        if known is None:
            known = found.returning(count)
            self._splits.keep((found, count), known, known)
        return known

    def exact(self, site: Site, peer: str, peers: Intervals) -> Site:
        """Of a run of rules the first one that is for some of these peers."""
        if site.last > site.position:
            rules = self.chains[site.chain].rules[site.position - 1 : site.last]
            for offset, rule in enumerate(rules):
                (item,) = self._compilers[peer].items([rule])
                if item.peers is not None and overlaps(item.peers, peers):
                    position = site.position + offset
                    return Site(site.chain, position, position)
        return site

    def walk(
        self,
        chain: str,
        flow: Flow,
        within: t.Optional[Intervals] = None,
        briefly: bool = False,
        marks: t.Optional[t.List[t.Tuple[Intervals, t.Optional[int]]]] = None,
    ) -> t.List[Outcome]:
        """What becomes of the flow's packets in a chain, for the peers given (default: everybody).

        For a built-in chain the policy decides what no rule does; a user chain ends with the verdict C(RETURN). The
        peers of all definite outcomes are disjoint and, with those of possible ones, everybody.

        :param briefly: lists leave out denials that do not reach over half of all addresses: a list of a thousand
            banned ones is as many outcomes.
        :param marks: is filled with peers and the marks that their packets have in the end.
        """
        within = EVERYTHING[self.family] if within is None else within
        if not within:
            return []
        found = self.chains.get(chain)
        if found is None:
            return [Outcome(ACCEPT if chain in _BUILTIN else RETURN, None, within, ())]
        if not found.rules and chain not in self.misprinted:
            return [Outcome(found.policy or RETURN, None, within, ())]
        walk = _Walk(self, flow, within, briefly)
        outcomes = walk.run(chain)
        if marks is not None:
            marks += walk.marks
        return outcomes


#: The pieces that are to go through a chain, and whether leaving that ends the walk.
_Call = t.Tuple[str, t.List[_Piece], bool]
_Calls = t.Generator[_Call, t.List[_Piece], t.List[_Piece]]


class _Visit:
    """A walk's way through one chain."""

    __slots__ = ("back", "chain", "leaves", "list", "stopped")

    def __init__(self, chain: str, leaves: bool, found: t.Optional[_List]) -> None:
        self.chain = chain
        #: Whether RETURN is a verdict: it leaves a user chain that was asked about.
        self.leaves = leaves
        self.list = found
        #: Pieces that a rule sends back to where the chain was jumped to from.
        self.back: t.List[_Piece] = []
        #: Pieces whose peers are all gone, and how many rules of the list were read for them.
        self.stopped: t.List[t.Tuple[_Piece, int]] = []


class _Taken(t.NamedTuple):
    """What a rule takes of a piece: of the peers that it is for (``whole``) those that are not gone by then."""

    piece: _Piece
    whole: Intervals
    taken: _Piece
    hangs: bool


class _Walk:
    def __init__(self, program: Program, flow: Flow, within: Intervals, briefly: bool) -> None:
        self._program = program
        self._briefly = briefly
        self._flow = flow
        self._within = within
        self._outcomes: t.List[Outcome] = []
        self._policy: t.Optional[str] = None
        self._active: t.Set[str] = set()
        #: What was said: lists by their chain, all else by rule, verdict and reasons.
        self._said: t.Set[t.Any] = set()
        self._passed = _Kept()
        #: Marks that packets have when something is decided about them.
        self.marks: t.List[t.Tuple[Intervals, t.Optional[int]]] = []
        self._steps = 0
        #: True once something may have been said of some peers and then of others.
        self._again = False

    def run(self, chain: str) -> t.List[Outcome]:
        self._policy = self._program.chains[chain].policy
        left = self._carried(chain, [_Piece(self._within, (), self._flow.mark)])
        for piece in left:
            self._outcomes.append(Outcome(self._policy or RETURN, None, piece.region, piece.reasons))
            self.marks.append((piece.region, piece.mark))
        return _gathered(self._outcomes) if self._again or len(left) > 1 else self._outcomes

    def _carried(self, chain: str, pieces: t.List[_Piece]) -> t.List[_Piece]:
        """Carry pieces through a chain; those that come back. Chains may be nested by the thousand."""
        stack = [self._chain(chain, pieces, True)]
        answer: t.Optional[t.List[_Piece]] = None
        while stack:
            try:
                # The first thing that a generator is sent must be None.
                name, pieces, final = stack[-1].send(t.cast("t.List[_Piece]", answer))
            except StopIteration as done:
                stack.pop()
                answer = done.value
                continue
            if name in self._active or self._steps > _MOST_STEPS:
                reason = "chains that lead back to themselves" if name in self._active else "more rules than were read"
                answer = [_also(piece, (reason,)) for piece in pieces]
                continue
            key = (name, final, *[(id(piece.region), piece.reasons, piece.mark) for piece in pieces])
            answer = self._passed.get(key)
            if answer is None:
                stack.append(self._chain(name, pieces, final, key))
        return answer or []

    def _chain(self, name: str, pieces: t.List[_Piece], final: bool, key: t.Tuple[t.Any, ...] = ()) -> _Calls:
        entered = pieces
        if name in self._program.misprinted:
            hidden = "rules in %s that nft wrote and iptables cannot show" % name
            pieces = [_also(piece, (hidden,)) for piece in pieces]
        flow, chains = self._flow, self._program.chains
        lane = self._program.lane(name, flow.peer)
        visit = _Visit(name, final and self._policy is None, lane.list)
        self._active.add(name)
        for item in lane.candidates(flow, self._within):
            if not pieces:
                break
            self._steps += len(pieces)
            unsure = item.match(flow)
            if unsure is None:
                continue
            if item.target in chains:
                pieces = yield from self._jump(visit, item, unsure, pieces, final and item.goto)
            else:
                pieces = self._item(visit, item, unsure, pieces)
        self._active.discard(name)
        if visit.list is not None:
            pieces = self._ended(visit, visit.list, pieces)
        result = entered
        if visit.back or pieces is not entered:
            result = self._merged([], pieces + visit.back, entered)
        if key:
            # The same pieces come back from it whenever they get there; what was decided was said.
            self._passed.keep(key, result, *[piece.region for piece in itertools.chain(entered, result)])
        return result

    def _taken(self, visit: _Visit, item: _Item, unsure: t.Tuple[str, ...], piece: _Piece) -> t.Optional[_Taken]:
        for mark, mask, negated in item.marks:
            if piece.mark is None:
                unsure += ("the packet's mark",)
            elif (piece.mark & mask == mark) == negated:
                return None
        whole = piece.region
        if item.peers is not None or item.conntrack_peers:
            whole = self._program.inside(item, self._flow, whole)
        inside = self._program.alive(visit.list, whole, item.before) if whole else whole
        if not inside:
            return None
        taken = piece if inside is piece.region else _Piece(inside, piece.reasons, piece.mark)
        return _Taken(piece, whole, _also(taken, unsure) if unsure else taken, bool(unsure))

    def _left(self, visit: _Visit, item: _Item, found: _Taken) -> t.List[_Piece]:
        """What of a piece a rule may leave for the next one."""
        piece = found.piece
        if found.taken.region is not found.whole:
            stopped = piece if found.whole is piece.region else piece._replace(region=found.whole)
            visit.stopped.append((stopped, item.before))
        rest = self._program.outside(item, piece.region, found.whole)
        left = [piece._replace(region=rest)] if rest else []
        return [*left, found.taken] if found.hangs else left

    def _jump(
        self, visit: _Visit, item: _Item, unsure: t.Tuple[str, ...], pieces: t.List[_Piece], final: bool
    ) -> _Calls:
        """Carry pieces past a rule that leads to another chain: those that go on to the next rule."""
        tried = [(piece, self._taken(visit, item, unsure, piece)) for piece in pieces]
        found = [taken for _piece, taken in tried if taken is not None]
        if not found:
            return pieces
        sent = [taken.taken for taken in found]
        if len(sent) > 1:
            sent = self._merged([], sent, pieces)
        returned = yield item.target, sent, final
        if returned == sent and not item.goto and not any(taken.hangs for taken in found):
            return pieces  # the common case by far: nothing in the chain is for these packets
        same = [piece for piece, taken in tried if taken is None]
        on = [left for taken in found for left in self._left(visit, item, taken)]
        if not item.goto:
            on += returned
        elif visit.leaves:
            for piece in returned:
                self._say(RETURN, visit.chain, item, piece)
        else:
            visit.back += returned
        return self._merged(same, on, pieces)

    def _item(self, visit: _Visit, item: _Item, unsure: t.Tuple[str, ...], pieces: t.List[_Piece]) -> t.List[_Piece]:
        """Carry pieces past a rule that matches: those that go on to the next rule."""
        same: t.List[_Piece] = []
        on: t.List[_Piece] = []
        for piece in pieces:
            found = self._taken(visit, item, unsure, piece)
            if found is None:
                same.append(piece)
                continue
            taken = found.taken
            on += self._left(visit, item, found)
            if item.target in _VERDICTS or (item.target == RETURN and visit.leaves):
                self._say(item.target, visit.chain, item, taken)
            elif item.target == RETURN:
                visit.back.append(taken)
            elif item.target in _MARKING:
                on.append(_marked(taken, item.change))
            else:
                # A target that is not known: perhaps it lets the packet on, perhaps not.
                unknown = _also(taken, ("what %s does" % item.target,))
                self._say(item.target, visit.chain, item, unknown)
                on.append(unknown._replace(mark=None))
        return self._merged(same, on, pieces)

    def _say(self, verdict: str, chain: str, item: _Item, piece: _Piece) -> None:
        key = (item, verdict, piece.reasons)
        self._again = self._again or key in self._said
        self._said.add(key)
        self.marks.append((piece.region, piece.mark))
        self._outcomes.append(Outcome(verdict, Site(chain, item.position, item.last), piece.region, piece.reasons))

    def _ended(self, visit: _Visit, rules: _List, pieces: t.List[_Piece]) -> t.List[_Piece]:
        """Say what the rules of the chain's list decided; the pieces that are left at its end."""
        left: t.List[_Piece] = []
        groups: t.Dict[t.Tuple[t.Tuple[str, ...], t.Optional[int]], t.List[t.Tuple[Intervals, int]]] = {}
        for piece, count in visit.stopped:
            groups.setdefault((piece.reasons, piece.mark), []).append((piece.region, count))
        for piece in pieces:
            region = self._program.alive(rules, piece.region, rules.size)
            if region is piece.region:
                left.append(piece)
                continue
            left += [piece._replace(region=region)] if region else []
            groups.setdefault((piece.reasons, piece.mark), []).append((piece.region, rules.size))
        if groups:
            self._again = self._again or len(groups) > 1 or visit.chain in self._said
            self._said.add(visit.chain)
        for (reasons, mark), regions in groups.items():
            outcomes, back = self._program.decided(rules, regions, visit.leaves, self._briefly)
            self.marks += [(outcome.peers, mark) for outcome in outcomes]
            visit.back += [_Piece(back, reasons, mark)] if back else []
            self._outcomes += [outcome._replace(reasons=reasons) for outcome in outcomes] if reasons else outcomes
        return left if len(left) != len(pieces) or any(a is not b for a, b in zip(left, pieces)) else pieces

    def _merged(self, same: t.List[_Piece], changed: t.List[_Piece], before: t.List[_Piece]) -> t.List[_Piece]:
        """Pieces that hang on the same as one.

        What was there before is the same object again, as what is known of it is found by that.
        """
        if not changed:
            return before if len(same) == len(before) else same
        result = list(same)
        for piece in changed:
            for index, other in enumerate(result):
                if piece.reasons == other.reasons and piece.mark == other.mark:
                    result[index] = other._replace(region=union(other.region, piece.region))
                    self._steps += len(result[index].region) >> 8
                    break
            else:
                result.append(piece)
        if len(result) > _MOST_PIECES:
            result = _coarse(result)
            self._steps += sum([len(piece.region) for piece in result]) >> 4
        known = 0
        for index, piece in enumerate(result):
            for other in before:
                if piece is other or (len(piece.region) == len(other.region) and piece == other):
                    result[index] = other
                    known += 1
                    break
        return before if known == len(result) == len(before) else result


def _also(piece: _Piece, more: t.Tuple[str, ...]) -> _Piece:
    """The piece, hanging on more; itself if it does already."""
    reasons = piece.reasons
    for reason in more:
        if reason not in reasons and len(reasons) < _MOST_REASONS:
            reasons += (reason,)
    return piece if reasons is piece.reasons else piece._replace(reasons=reasons)


def _marked(piece: _Piece, change: t.Optional[t.Tuple[int, int]]) -> _Piece:
    mark: t.Optional[int] = None
    if change is not None:
        mask, value = change
        if piece.mark is not None:
            mark = (piece.mark & ~mask) ^ value
        elif mask == 0xFFFFFFFF:
            mark = value
    return piece if mark == piece.mark else piece._replace(mark=mark)


def _together(regions: t.Sequence[Intervals]) -> Intervals:
    first, *others = sorted(regions, key=len, reverse=True)
    # A long one is not sorted again.
    return union(first, join(piece for region in others for piece in region))


def _coarse(pieces: t.List[_Piece]) -> t.List[_Piece]:
    """What is certain without its marks if these are many, and all that is not as one."""
    certain = [piece for piece in pieces if not piece.reasons]
    unsure = [piece for piece in pieces if piece.reasons]
    if len(certain) >= _MOST_PIECES // 2:
        certain = [_Piece(_together([piece.region for piece in certain]), (), None)]
    if unsure:
        whole = _Piece(_together([piece.region for piece in unsure]), (), unsure[0].mark)
        for piece in unsure:
            whole = _also(whole, piece.reasons)
        if any(piece.mark != whole.mark for piece in unsure):
            whole = whole._replace(mark=None)
        certain.append(whole)
    return certain


def _gathered(outcomes: t.List[Outcome]) -> t.List[Outcome]:
    """What one rule does for one reason as one outcome."""
    groups: t.Dict[t.Any, t.List[Intervals]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.verdict, outcome.site, outcome.reasons), []).append(outcome.peers)
    if len(groups) == len(outcomes):
        return outcomes
    return [Outcome(verdict, site, _together(regions), reasons) for (verdict, site, reasons), regions in groups.items()]
