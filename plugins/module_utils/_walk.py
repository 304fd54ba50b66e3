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
Semantics: iptables-extensions(8); conntrack's DNAT state and directions as measured.
"""

from __future__ import annotations

import heapq
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._chain import CONTINUING, DENYING, Chain
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import (
    EVERYTHING,
    NOTHING,
    Interval,
    Intervals,
    covers,
    intersect,
    join,
    of_network,
    of_range,
    overlaps,
    subtract,
    union,
)
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, Field, Rule, port_range, port_ranges

SOURCE = "source"
DESTINATION = "destination"

ANY_PORT: Interval = (0, 65535)

ACCEPT = "ACCEPT"
RETURN = "RETURN"

#: In a flow's conntrack addresses: the address that is left open.
PEER = "peer"
_End = t.Union[None, str, Intervals]

#: Chains nested deeper than this are not followed (the kernel follows 16 with nft); nor are walks of more steps.
_DEEPEST = 400
_MOST_STEPS = 100000


class Flow(t.NamedTuple):
    """Packets that differ in one address only.

    ``peer`` says which end that is, ``address`` is the other end's. ``states`` are the words of C(--ctstate) that hold.
    ``original`` are source and destination before any translation, ``reply`` those that replies carry: intervals,
    :data:`PEER`, or None where they are not known. ``flags`` are the TCP flags of packets of the flow. ``mark`` is None
    where it is not known. ``source_type`` and ``destination_type`` are words of C(-m addrtype).
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


class Site(t.NamedTuple):
    """Where a rule stands. ``position`` counts from 1; ``last`` is greater for a run of like rules taken as one."""

    chain: str
    position: int
    last: int


class Outcome(t.NamedTuple):
    """What becomes of some peers' packets.

    ``verdict`` is a built-in target (C(ACCEPT), C(DROP), C(REJECT)), the chain's policy, C(RETURN) where a user chain
    was walked to its end, or a target whose doing is not known. ``site`` is None where no rule decided. ``reasons`` say
    what it hangs on; empty: definite.
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


def _test_original_source_port(flow: Flow, wanted: Interval) -> t.Optional[bool]:
    return _ports_in(flow.original_ports[0], (wanted,))


def _test_original_destination_port(flow: Flow, wanted: Interval) -> t.Optional[bool]:
    return _ports_in(flow.original_ports[1], (wanted,))


def _test_reply_source_port(flow: Flow, wanted: Interval) -> t.Optional[bool]:
    return _ports_in(flow.reply_ports[0], (wanted,))


def _test_reply_destination_port(flow: Flow, wanted: Interval) -> t.Optional[bool]:
    return _ports_in(flow.reply_ports[1], (wanted,))


def _test_original_source(flow: Flow, wanted: Intervals) -> t.Optional[bool]:
    return _addresses_in(flow.original[0], wanted)


def _test_original_destination(flow: Flow, wanted: Intervals) -> t.Optional[bool]:
    return _addresses_in(flow.original[1], wanted)


def _test_reply_source(flow: Flow, wanted: Intervals) -> t.Optional[bool]:
    return _addresses_in(flow.reply[0], wanted)


def _test_reply_destination(flow: Flow, wanted: Intervals) -> t.Optional[bool]:
    return _addresses_in(flow.reply[1], wanted)


def _test_source_type(flow: Flow, types: t.FrozenSet[str]) -> bool:
    return flow.source_type in types


def _test_destination_type(flow: Flow, types: t.FrozenSet[str]) -> bool:
    return flow.destination_type in types


def _test_mark(flow: Flow, wanted: t.Tuple[int, int]) -> t.Optional[bool]:
    return None if flow.mark is None else flow.mark & wanted[1] == wanted[0]


def _test_bridged(flow: Flow, _nothing: None) -> bool:
    return flow.bridged


def _test_never(_flow: Flow, _nothing: None) -> bool:
    return False


def _test_unknown(_flow: Flow, _nothing: None) -> None:
    return None


#: With the place of the address in Flow.original or Flow.reply.
_CONNTRACK_ADDRESS_TESTS: t.Mapping[str, t.Tuple[_Test, str, int]] = {
    "ctorigsrc": (_test_original_source, "original", 0),
    "ctorigdst": (_test_original_destination, "original", 1),
    "ctreplsrc": (_test_reply_source, "reply", 0),
    "ctrepldst": (_test_reply_destination, "reply", 1),
}
_SILENT = frozenset(("match", "comment", "limit_burst"))


def interface_matches(pattern: str, name: str) -> bool:
    """True if C(-i pattern) matches the interface."""
    return name.startswith(pattern[:-1]) if pattern.endswith("+") else name == pattern


# One rule ------------------------------------------------------------------------------------------------------------


class _Item:
    """A rule as the walk reads it, or a run of rules that differ in their peers only."""

    __slots__ = ("_splits", "conntrack_peers", "goto", "keys", "last", "peers", "position", "target", "tests")

    def __init__(self, position: int) -> None:
        self.tests: t.Tuple[t.Tuple[_Test, t.Any, bool, str], ...] = ()
        #: None: any peer.
        self.peers: t.Optional[Intervals] = None
        self.conntrack_peers: t.Tuple[t.Tuple[str, int, Intervals, bool], ...] = ()
        self.target = ""
        self.goto = False
        self.position = position
        self.last = position
        #: Index and keys under which the rule is found.
        self.keys: t.Tuple[str, t.Tuple[t.Any, ...]] = ("", ())
        self._splits: t.Dict[int, t.Tuple[Intervals, Intervals, Intervals]] = {}

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

    def split(self, flow: Flow, region: Intervals) -> t.Tuple[Intervals, Intervals]:
        """The peers that the rule matches, and the others."""
        if self.peers is None and not self.conntrack_peers:
            return region, NOTHING
        known = self._splits.get(id(region))
        if known is not None:
            return known[1], known[2]
        inside = region if self.peers is None else intersect(region, self.peers)
        for which, index, wanted, negated in self.conntrack_peers:
            ends = flow.original if which == "original" else flow.reply
            if ends[index] == PEER:
                inside = subtract(inside, wanted) if negated else intersect(inside, wanted)
        rest = subtract(region, inside)
        if not self.conntrack_peers:
            if len(self._splits) >= 64:
                self._splits.clear()
            # The region is kept so that no other one gets its id.
            self._splits[id(region)] = (region, inside, rest)
        return inside, rest


class _Compiler:
    """Makes items of the rules of one family, for one open end."""

    def __init__(self, family: str, peer: str, sets: t.Mapping[str, Intervals]) -> None:
        self._family = family
        self._peer = peer
        self._sets = sets
        self._tests: t.Dict[t.Tuple[str, str, bool, str], t.Tuple[_Test, t.Any, bool, str]] = {}

    def compile(self, rule: Rule, position: int) -> _Item:
        item = _Item(position)
        tests: t.List[t.Tuple[_Test, t.Any, bool, str]] = []
        keys: t.Dict[str, t.Tuple[t.Any, ...]] = {}
        for field in rule.fields:
            name = field.name
            if name in _SILENT:
                continue
            if name in ("jump", "goto"):
                item.target, item.goto = field.value, name == "goto"
                break
            if name in (SOURCE, DESTINATION, "source_range", "destination_range", "match_set"):
                self._address(item, field, tests, keys)
            elif name in _CONNTRACK_ADDRESS_TESTS:
                test, which, index = _CONNTRACK_ADDRESS_TESTS[name]
                addresses = of_network(field.value)
                item.conntrack_peers += ((which, index, addresses, field.negated),)
                tests.append((_unless_peer(test, which, index), (addresses, field.negated), field.negated, field.text))
            else:
                tests.append(self._test(field))
                self._key(field, keys)
        item.tests = tuple(tests)
        item.keys = self._best(item, keys)
        return item

    def _address(
        self,
        item: _Item,
        field: Field,
        tests: t.List[t.Tuple[_Test, t.Any, bool, str]],
        keys: t.Dict[str, t.Tuple[t.Any, ...]],
    ) -> None:
        if field.name == "match_set":
            name, flags = field.value.split(" ")
            end = {"src": SOURCE, "dst": DESTINATION}.get(flags, "")
            addresses = self._sets.get(name)
            if addresses is None or not end:
                tests.append((_test_unknown, None, False, "what is in ipset %s" % name))
                return
        else:
            end = SOURCE if field.name.startswith(SOURCE) else DESTINATION
            try:
                addresses = of_range(field.value) if field.name.endswith("_range") else of_network(field.value)
            except ValueError:
                tests.append((_test_unknown, None, False, field.text))
                return
        if end == self._peer:
            wanted = subtract(EVERYTHING[self._family], addresses) if field.negated else addresses
            item.peers = wanted if item.peers is None else intersect(item.peers, wanted)
            return
        tests.append((_test_address, addresses, field.negated, field.text))
        if not field.negated and len(addresses) == 1 and addresses[0][0] == addresses[0][1]:
            keys["address"] = (addresses[0][0],)

    def _key(self, field: Field, keys: t.Dict[str, t.Tuple[t.Any, ...]]) -> None:
        if field.negated:
            return
        if field.name in ("destination_port", "destination_ports", "ctorigdstport"):
            name = "original_port" if field.name == "ctorigdstport" else "port"
            ranges = port_ranges(field.value)
            if name not in keys and sum(high - low + 1 for low, high in ranges) <= 64:
                keys[name] = tuple({port for low, high in ranges for port in range(low, high + 1)})
        elif field.name in ("in_interface", "out_interface") and not field.value.endswith("+"):
            keys[field.name] = (field.value,)

    def _best(self, item: _Item, keys: t.Mapping[str, t.Tuple[t.Any, ...]]) -> t.Tuple[str, t.Tuple[t.Any, ...]]:
        """The index that leaves the fewest candidates."""
        host = item.peers is not None and len(item.peers) == 1 and item.peers[0][0] == item.peers[0][1]
        if self._peer == DESTINATION and host and "address" not in keys:
            return "", ()
        for name in ("address", "original_port", "port", "out_interface", "in_interface"):
            if name in keys:
                return name, keys[name]
        return "", ()

    def _test(self, field: Field) -> t.Tuple[_Test, t.Any, bool, str]:
        key = (field.name, field.value, field.negated, field.text)
        known = self._tests.get(key)
        if known is None:
            try:
                known = _make_test(field)
            except (ValueError, LookupError):
                known = (_test_unknown, None, False, field.text)
            self._tests[key] = known
        return known


def _unless_peer(test: _Test, which: str, index: int) -> _Test:
    """The test, true where the address is the open one: then the set of peers is narrowed instead."""

    def answer(flow: Flow, argument: t.Tuple[Intervals, bool]) -> t.Optional[bool]:
        if (flow.original if which == "original" else flow.reply)[index] == PEER:
            return not argument[1]
        return test(flow, argument[0])

    return answer


def _words(value: str) -> t.FrozenSet[str]:
    return frozenset(value.split(","))


def _tcp_flag_sets(value: str) -> t.Tuple[t.FrozenSet[str], ...]:
    return tuple(frozenset() if word == "NONE" else _words(word) for word in value.split(" "))


def _mark_and_mask(value: str) -> t.Tuple[int, int]:
    mark, _slash, mask = value.partition("/")
    return int(mark, 16), int(mask or "0xffffffff", 16)


def _nothing(_value: str) -> None:
    return None


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
    "ctproto": (_test_protocol, lambda value: _PROTOCOL_OF_NUMBER.get(value, value), ""),
    "ctorigsrcport": (_test_original_source_port, port_range, ""),
    "ctorigdstport": (_test_original_destination_port, port_range, ""),
    "ctreplsrcport": (_test_reply_source_port, port_range, ""),
    "ctrepldstport": (_test_reply_destination_port, port_range, ""),
    "source_type": (_test_source_type, _words, ""),
    "destination_type": (_test_destination_type, _words, ""),
    "mark": (_test_mark, _mark_and_mask, "the packet's mark"),
    "limit": (_test_unknown, _nothing, "the rate limit"),
    "physdev_is_bridged": (_test_bridged, _nothing, ""),
    # Packets are walked whole, and no forwarded packet has a socket here.
    "fragment": (_test_never, _nothing, ""),
    "socket_exists": (_test_never, _nothing, ""),
    "uid_owner": (_test_never, _nothing, ""),
    "gid_owner": (_test_never, _nothing, ""),
}


def _make_test(field: Field) -> t.Tuple[_Test, t.Any, bool, str]:
    if field.name == "protocol" and field.value == "all":
        return (_test_never, None, not field.negated, "")
    test, argument, reason = _TESTS.get(field.name, (_test_unknown, _nothing, ""))
    return (test, argument(field.value), field.negated, reason or field.text)


# A chain -------------------------------------------------------------------------------------------------------------


class _Lane:
    """The items of one chain, and where to find those that a flow may match."""

    def __init__(self, chain: Chain, compiler: _Compiler) -> None:
        self.policy = chain.policy
        self._indexes: t.Dict[str, t.Dict[t.Any, t.List[_Item]]] = {
            name: {} for name in ("address", "original_port", "port", "out_interface", "in_interface")
        }
        self._rest: t.List[_Item] = []
        self._by_range: t.Dict[t.Tuple[str, Interval], t.List[_Item]] = {}
        self._by_region: t.Dict[int, t.Tuple[Intervals, t.List[_Item]]] = {}
        for position, rule in enumerate(chain.rules, 1):
            item = compiler.compile(rule, position)
            name, keys = item.keys
            if name:
                for key in keys:
                    self._indexes[name].setdefault(key, []).append(item)
            elif not (self._rest and _joined(self._rest[-1], item)):
                self._rest.append(item)

    def candidates(self, flow: Flow, within: Intervals) -> t.List[_Item]:
        """The items that the flow may match, in order."""
        lists = [self._of_region(within)] if self._rest else []
        if len(flow.address) == 1 and flow.address[0][0] == flow.address[0][1]:
            self._add(lists, "address", flow.address[0][0])
        elif self._indexes["address"]:
            lists += self._indexes["address"].values()
        self._add_ports(lists, "original_port", flow.original_ports[1])
        self._add_ports(lists, "port", flow.destination_ports)
        self._add(lists, "out_interface", flow.out_interface)
        self._add(lists, "in_interface", flow.in_interface)
        if len(lists) < 2:
            return lists[0] if lists else []
        if len(lists) == 2 and len(lists[0]) + len(lists[1]) < 40:
            return sorted(lists[0] + lists[1], key=_position)
        return list(heapq.merge(*lists, key=_position))

    def _add(self, lists: t.List[t.List[_Item]], name: str, key: t.Any) -> None:
        found = self._indexes[name].get(key)
        if found:
            lists.append(found)

    def _add_ports(self, lists: t.List[t.List[_Item]], name: str, ports: Interval) -> None:
        if ports[0] == ports[1]:
            self._add(lists, name, ports[0])
            return
        found = self._by_range.get((name, ports))
        if found is None:
            items = {
                id(item): item
                for port, group in self._indexes[name].items()
                if ports[0] <= port <= ports[1]
                for item in group
            }
            found = self._by_range[name, ports] = sorted(items.values(), key=_position)
        if found:
            lists.append(found)

    def _of_region(self, within: Intervals) -> t.List[_Item]:
        known = self._by_region.get(id(within))
        if known is None:
            items = [item for item in self._rest if item.peers is None or overlaps(item.peers, within)]
            if len(self._by_region) >= 64:
                self._by_region.clear()
            known = self._by_region[id(within)] = (within, items)
        return known[1]


def _position(item: _Item) -> int:
    return item.position


def _joined(one: _Item, two: _Item) -> bool:
    """Take a rule into the run before it, if they differ in their peers only: a list of banned addresses is one."""
    if (
        one.last + 1 != two.position
        or one.peers is None
        or two.peers is None
        or one.target != two.target
        or one.goto
        or two.goto
        or one.tests != two.tests
        or one.conntrack_peers
        or two.conntrack_peers
        or not (one.target in DENYING or one.target == ACCEPT)
    ):
        return False
    # In order and apart, as most lists are: the union costs nothing.
    one.peers = (
        one.peers + two.peers if one.peers and two.peers[0][0] > one.peers[-1][1] + 1 else union(one.peers, two.peers)
    )
    one.last = two.position
    return True


# The walk ------------------------------------------------------------------------------------------------------------

_Piece = t.Tuple[Intervals, t.Tuple[str, ...]]


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
        self._compilers = {peer: _Compiler(family, peer, sets or {}) for peer in (SOURCE, DESTINATION)}
        self._lanes: t.Dict[t.Tuple[str, str], _Lane] = {}

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
        other._compilers = self._compilers
        other._lanes = {key: lane for key, lane in self._lanes.items() if key[0] not in set(changed)}
        return other

    def walk(self, chain: str, flow: Flow, within: t.Optional[Intervals] = None) -> t.List[Outcome]:
        """What becomes of the flow's packets in a chain, for the peers given (default: everybody).

        For a built-in chain the policy decides what no rule does; a user chain ends with the verdict C(RETURN). The
        peers of all definite outcomes are disjoint and, with those of possible ones, everybody.
        """
        if chain not in self.chains:
            return [Outcome(ACCEPT, None, within or EVERYTHING[self.family], ())]
        return _Walk(self, flow, EVERYTHING[self.family] if within is None else within).run(chain)


class _Walk:
    def __init__(self, program: Program, flow: Flow, within: Intervals) -> None:
        self._program = program
        self._flow = flow
        self._within = within
        self._outcomes: t.List[Outcome] = []
        self._active: t.Set[str] = set()
        self._passed: t.Dict[str, _Piece] = {}
        self._steps = 0

    def run(self, chain: str) -> t.List[Outcome]:
        if not self._within:
            return []
        left = self._chain(chain, [(self._within, ())])
        policy = self._program.chains[chain].policy or RETURN
        for region, reasons in left:
            self._outcomes.append(Outcome(policy, None, region, reasons))
        return self._outcomes

    def _decide(self, chain: str, item: _Item, verdict: str, piece: _Piece) -> None:
        self._outcomes.append(Outcome(verdict, Site(chain, item.position, item.last), *piece))

    def _chain(self, name: str, pieces: t.List[_Piece]) -> t.List[_Piece]:
        """Carry pieces through a chain; those that come back from it."""
        if name in self._active or len(self._active) > _DEEPEST or self._steps > _MOST_STEPS:
            reason = "chain %s, which leads back to itself" % name if name in self._active else "chains nested too deep"
            return [(region, _also(reasons, (reason,))) for region, reasons in pieces]
        if len(pieces) == 1 and self._passed.get(name) == pieces[0]:
            return pieces  # the same peers came through before, and all came back
        asked = pieces[0] if len(pieces) == 1 else None
        if name in self._program.misprinted:
            pieces = [
                (region, _also(reasons, ("rules in %s that nft wrote and iptables cannot show" % name,)))
                for region, reasons in pieces
            ]
        self._active.add(name)
        top = len(self._active) == 1
        back: t.List[_Piece] = []
        for item in self._program.lane(name, self._flow.peer).candidates(self._flow, self._within):
            if not pieces:
                break
            self._steps += 1
            unsure = item.match(self._flow)
            if unsure is None or self._continues(item.target):
                continue
            pieces = self._item(name, item, unsure, pieces, back, top)
        self._active.discard(name)
        result = _merged(pieces + back)
        if asked is not None and result == [asked]:
            self._passed[name] = asked
            return [asked]
        return result

    def _continues(self, target: str) -> bool:
        if target in ("MARK", "CONNMARK"):
            self._flow = self._flow._replace(mark=None)
        return not target or target in CONTINUING

    def _item(
        self,
        chain: str,
        item: _Item,
        unsure: t.Tuple[str, ...],
        pieces: t.List[_Piece],
        back: t.List[_Piece],
        top: bool,
    ) -> t.List[_Piece]:
        """Carry pieces past one rule that matches: those that go on to the next rule."""
        target = item.target
        on: t.List[_Piece] = []
        for piece in pieces:
            inside, rest = item.split(self._flow, piece[0])
            if not inside:
                on.append(piece)
                continue
            if rest:
                on.append((rest, piece[1]))
            taken = (inside, _also(piece[1], unsure)) if unsure or inside is not piece[0] else piece
            if target == RETURN:
                if top and self._program.chains[chain].policy is None:
                    self._decide(chain, item, RETURN, taken)
                else:
                    back.append(taken)
            elif target == ACCEPT or target in DENYING:
                self._decide(chain, item, target, taken)
            elif target in self._program.chains:
                returned = self._chain(target, [taken])
                if item.goto:
                    back += returned
                else:
                    on += returned
            else:
                # A target that is not known: perhaps it lets the packet on, perhaps not.
                self._decide(chain, item, target, (inside, _also(taken[1], ("what %s does" % target,))))
                on.append((inside, _also(taken[1], ("what %s does" % target,))))
            if unsure:
                on.append(taken)
        merged = _merged(on)
        # The same set as the same object: what is known of it is found by its identity.
        return pieces if merged == pieces else merged


def _also(reasons: t.Tuple[str, ...], more: t.Tuple[str, ...]) -> t.Tuple[str, ...]:
    return reasons + tuple(reason for reason in more if reason not in reasons) if more else reasons


def _merged(pieces: t.List[_Piece]) -> t.List[_Piece]:
    """Pieces that hang on the same as one."""
    if len(pieces) < 2:
        return pieces
    groups: t.Dict[t.Tuple[str, ...], t.List[Intervals]] = {}
    for region, reasons in pieces:
        groups.setdefault(reasons, []).append(region)
    if len(groups) == len(pieces):
        return pieces
    return [
        (regions[0] if len(regions) == 1 else join(piece for region in regions for piece in region), reasons)
        for reasons, regions in groups.items()
    ]
