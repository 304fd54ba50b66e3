# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Which rules of a chain nothing is left for, as the rules before them take all that they match.

A rule is a box: a set of values for each field that it asks about. To tell whether the boxes before it cover a rule's,
one packet out of its box is looked up among them. If no rule takes it, the rule is reached, and most rules are after
one look. Otherwise what that rule takes is cut out of the box, and a packet out of the rest is next, until nothing is
left. Rules are found by index, so that a look reads the few that may take the packet.

An error can be made in one direction only: what a rule matches is taken for too much where it is judged, for too little
where it covers others (a match that is not understood covers nothing), and whoever takes too long is reached.
Semantics: iptables-extensions(8), xt_conntrack.c.
"""

from __future__ import annotations

import bisect
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._chain import CONTINUING, DENYING, Chain
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import (
    EVERYTHING,
    Intervals,
    intersect,
    join,
    of_network,
    of_range,
    subtract,
)
from ansible_collections.quaywall.docker.plugins.module_utils._rule import OPAQUE, Field, Rule, port_ranges
from ansible_collections.quaywall.docker.plugins.module_utils._walk import ACCEPT, RETURN, Site

#: What a rule matches: by field a set of addresses or ports, or a set of values as the bits of a number. What is not
#: in it may have any value.
Box = t.Dict[str, t.Any]
Point = t.Dict[str, int]

_ADDRESSES = ("source", "destination", "ctorigsrc", "ctorigdst", "ctreplsrc", "ctrepldst")
# No service listens at port 0: a rule that is left nothing else has nothing to decide.
_PORTS: t.Mapping[str, Intervals] = {
    "source_port": ((0, 65535),),
    "destination_port": ((1, 65535),),
    "ctorigsrcport": ((0, 65535),),
    "ctorigdstport": ((1, 65535),),
    "ctreplsrcport": ((0, 65535),),
    "ctrepldstport": ((0, 65535),),
}
_PORT_FIELDS = {"source_ports": "source_port", "destination_ports": "destination_port"}
_SILENT = frozenset(("match", "comment", "limit_burst"))

#: Known fields of which only this is used: a packet has it or has not, the same in every rule.
_TOKENS = frozenset(
    (
        "mark",
        "connmark",
        "icmp_type",
        "icmpv6_type",
        "match_set",  # what is in a set today may be gone tomorrow
        "source_type",
        "destination_type",
        "ctstatus",
        "physdev_is_in",
        "physdev_in",
        "physdev_is_out",
        "physdev_out",
        "physdev_is_bridged",
        "fragment",
        "socket_exists",
        "uid_owner",
        "gid_owner",
    )
)
_TYPES = ("source_type", "destination_type")
_OF_TRACKING = frozenset(
    ("ctproto", "ctstatus", "ctdir", *(name for name in (*_ADDRESSES, *_PORTS) if name.startswith("ct")))
)

# What connection tracking may say of a packet: a connection's state, translations and direction, or no connection.
_TRACKED = tuple(
    (state, translations, direction)
    for state in ("NEW", "RELATED", "ESTABLISHED")
    for translations in ((), ("SNAT",), ("DNAT",), ("SNAT", "DNAT"))
    for direction in ("ORIGINAL", "REPLY")
    if (state, direction) != ("NEW", "REPLY")
)
_TRACKINGS = _TRACKED + tuple((state, (), "") for state in ("INVALID", "UNTRACKED"))
_ANY_TRACKING = (1 << len(_TRACKINGS)) - 1
_WITH_CONNECTION = (1 << len(_TRACKED)) - 1

_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG")
_ANY_FLAGS = (1 << 64) - 1

#: What is looked into for one rule, and for all rules of a table together.
_MOST_CUTS = 400
_ALL_CUTS = 40000
_ALL_TESTS = 500000
#: Rules below a jump that are taken for rules of the chain itself, for one chain and for all together.
_MOST_BELOW = 3000
_ALL_BELOW = 20000
_MOST_RETURNS = 16
_MOST_WAYS = 8
_DEEPEST = 100


class Ends(t.NamedTuple):
    """An interface that packets come in or go out through, and the addresses behind it.

    ``bridge``: packets may leave through it that came in through it.
    """

    interface: str
    addresses: Intervals
    bridge: bool


class Taker(t.NamedTuple):
    """A rule that takes packets from those behind it: where it stands, and what it does with them."""

    site: Site
    rule: Rule


class Dead(t.NamedTuple):
    """A rule that nothing is left for. ``takers`` take all that it matches, in the order in which they were found.

    ``strictly``: whatever packet comes; otherwise of the packets that the host's networks can send.
    """

    site: Site
    rule: Rule
    takers: t.Tuple[Taker, ...]
    strictly: bool


class _Entry(t.NamedTuple):
    position: int
    box: Box
    taker: Taker


class _Shape(t.NamedTuple):
    """A rule as boxes: ``over`` holds all that it matches (None: nothing), ``under`` (None: nothing) nothing else."""

    over: t.Optional[Box]
    under: t.Optional[Box]


class Space:
    """The values that the rules of some chains tell apart."""

    def __init__(
        self,
        family: str,
        chains: t.Iterable[Chain],
        interfaces: t.Iterable[str] = (),
    ) -> None:
        names = set(interfaces)
        beginnings: t.Set[str] = set()
        protocols: t.Set[str] = set()
        self._marks_change = False
        self._sets_change = False
        for chain in chains:
            for rule in chain.rules:
                for field in rule.fields:
                    if field.name in ("in_interface", "out_interface"):
                        (beginnings if field.value.endswith("+") else names).add(field.value)
                    elif field.name in ("protocol", "ctproto"):
                        protocols.add(field.value)
                    elif field.name == "jump":
                        self._marks_change = self._marks_change or field.value in ("MARK", "CONNMARK")
                        self._sets_change = self._sets_change or field.value == "SET"
        self._names = {name: 1 << bit for bit, name in enumerate(sorted(names))}
        # Any other interface, by the longest of the beginnings that rules name (the shortest is none at all).
        others = sorted({beginning[:-1] for beginning in beginnings} | {""})
        self._others = {beginning: 1 << bit for bit, beginning in enumerate(others, len(names))}
        self._patterns: t.Dict[str, int] = {}
        self._protocols = {name: 1 << bit for bit, name in enumerate(sorted(protocols), 1)}
        self._any_interface = (1 << (len(names) + len(others))) - 1
        self._any_protocol = (1 << (len(protocols) + 1)) - 1
        self._everything = EVERYTHING[family]
        self._firsts: t.Dict[str, int] = {}
        self._fields: t.Dict[t.Tuple[str, str, bool], t.Optional[t.Tuple[str, t.Any]]] = {}

    def whole(self, name: str) -> t.Any:
        """Every value of a field."""
        if name in _ADDRESSES:
            return self._everything
        if name in _PORTS:
            return _PORTS[name]
        if name in ("in_interface", "out_interface"):
            return self._any_interface
        if name in ("protocol", "ctproto"):
            return self._any_protocol
        if name == "tracking":
            return _ANY_TRACKING
        return _ANY_FLAGS if name == "tcp_flags" else 3

    def first(self, name: str) -> int:
        """The first value of a field: what a packet has there if nothing else is asked for."""
        found = self._firsts.get(name)
        if found is None:
            whole = self.whole(name)
            found = self._firsts[name] = whole & -whole if isinstance(whole, int) else whole[0][0]
        return found

    def interfaces(self, pattern: str) -> int:
        """The interfaces that a pattern matches."""
        known = self._patterns.get(pattern)
        if known is None:
            if not pattern.endswith("+"):
                known = self._names[pattern]
            else:
                beginning = pattern[:-1]
                found = [bit for name, bit in self._names.items() if name.startswith(beginning)]
                found += [bit for name, bit in self._others.items() if name.startswith(beginning)]
                known = sum(found)
            self._patterns[pattern] = known
        return known

    def shape(self, rule: Rule) -> _Shape:
        """The boxes of a rule."""
        over: Box = {}
        under: t.Optional[Box] = {}
        tracked = False
        for field in rule.fields:
            if field.name in _SILENT:
                continue
            if field.name in ("jump", "goto"):
                break
            if field.name in _TYPES and (rule.get("limit_interface_in") or rule.get("limit_interface_out")):
                continue  # another question than without these
            tracked = tracked or field.name in _OF_TRACKING
            key = (field.name, field.value, field.negated)
            if key not in self._fields:
                self._fields[key] = self._constraint(field)
            found = self._fields[key]
            if found is None:
                under = None
                continue
            if not _narrow(self, over, *found):
                return _Shape(None, None)
        if tracked:
            over, exact = self._with_connection(over, rule)
            under = under if exact else None
            if not over.get("tracking", 1):
                return _Shape(None, None)
        return _Shape(over, over if under is not None else None)

    def _with_connection(self, over: Box, rule: Rule) -> t.Tuple[Box, bool]:
        """Packets of no connection fail every question about it, unless their state was asked for and is right."""
        tracking = over.get("tracking", _ANY_TRACKING)
        states = rule.get("ctstate")
        if states is None or not tracking & ~_WITH_CONNECTION:
            return {**over, "tracking": tracking & _WITH_CONNECTION}, True
        asked = ("tracking", *_OF_TRACKING)
        return {name: values for name, values in over.items() if name.partition(" ")[0] not in asked}, False

    def _constraint(self, field: Field) -> t.Optional[t.Tuple[str, t.Any]]:
        """What a field asks for: the name in boxes and the values. None if it is not understood."""
        name, value = field.name, field.value
        try:
            found = self._positive(name, value)
        except (ValueError, LookupError):
            return None
        if found is None or not field.negated:
            return found
        whole = self.whole(found[0])
        return found[0], whole ^ (whole & found[1]) if isinstance(whole, int) else subtract(whole, found[1])

    def _positive(self, name: str, value: str) -> t.Optional[t.Tuple[str, t.Any]]:
        if name in _ADDRESSES:
            return name, of_network(value)
        if name in ("source_range", "destination_range"):
            return name[:-6], of_range(value)
        if name in _PORTS or name in _PORT_FIELDS:
            name = _PORT_FIELDS.get(name, name)
            return name, intersect(join(port_ranges(value)), _PORTS[name])
        if name in ("in_interface", "out_interface"):
            return name, self.interfaces(value)
        if name in ("protocol", "ctproto"):
            return name, self._any_protocol if value == "all" else self._protocols[value]
        if name in ("ctstate", "state"):
            words = set(value.split(","))
            return "tracking", _bits(state in words or words & {*also} for state, also, _direction in _TRACKINGS)
        if name == "ctdir":
            return "tracking", _bits(direction == value for _state, _also, direction in _TRACKINGS)
        if name == "tcp_flags":
            return "tcp_flags", _flags(value)
        changes = (self._marks_change and name in ("mark", "connmark")) or (self._sets_change and name == "match_set")
        if name in _TOKENS and not changes:
            return "%s %s" % (name, value), 2
        return None


def _bits(answers: t.Iterable[t.Any]) -> int:
    return sum(1 << bit for bit, answer in enumerate(answers) if answer)


def _flags(value: str) -> int:
    mask, compare = (
        sum(1 << bit for bit, flag in enumerate(_FLAGS) if flag in word.split(",")) for word in value.split(" ")
    )
    return _bits(combination & mask == compare for combination in range(64))


def _narrow(space: Space, box: Box, name: str, values: t.Any) -> bool:
    """Keep in a box what has these values; False if nothing has."""
    before = box.get(name)
    if before is None:
        box[name] = values
    else:
        box[name] = before & values if isinstance(values, int) else intersect(before, values)
    return bool(box[name])


def _common(space: Space, one: Box, two: Box) -> t.Optional[Box]:
    """What is in both boxes; None if nothing is."""
    box = dict(one)
    for name, values in two.items():
        if not _narrow(space, box, name, values):
            return None
    return box


def _without(space: Space, region: Box, box: Box) -> t.List[Box]:
    """What is in the first box and not in the second, in pieces."""
    pieces: t.List[Box] = []
    rest = region
    for name, wanted in box.items():
        have = rest.get(name)
        if have is None:
            have = space.whole(name)
        if isinstance(wanted, int):
            inside, outside = have & wanted, have & ~wanted
        else:
            inside, outside = intersect(have, wanted), subtract(have, wanted)
        if not inside:
            return [region]
        if outside:
            pieces.append({**rest, name: outside})
            rest = {**rest, name: inside}
    return pieces


# Looking up ----------------------------------------------------------------------------------------------------------


class _Index:
    """The rules of one chain that take packets, to be found by a packet."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._lists: t.Dict[t.Tuple[t.Any, ...], t.List[_Entry]] = {}
        self._rest: t.List[_Entry] = []
        self._sizes: t.Dict[str, t.Set[int]] = {"source": set(), "destination": set()}
        self._known: t.Set[t.FrozenSet[t.Tuple[str, t.Any]]] = set()
        #: The rule that leaves nothing.
        self.end: t.Optional[_Entry] = None

    def add(self, position: int, box: Box, taker: Taker) -> None:
        """Take a rule in; positions never go down."""
        known = frozenset(box.items())
        if self.end is not None or known in self._known:
            return
        self._known.add(known)
        entry = _Entry(position, box, taker)
        if not box:
            self.end = entry
            return
        best: t.Optional[t.List[t.Tuple[t.Any, ...]]] = None
        longest = len(self._rest)
        for keys in self._keys(box):
            # The shortest list is the fastest to read; where all are long, hostile rules are read slowly.
            length = max(len(self._lists.get(key, ())) for key in keys)
            if best is None or length < longest:
                best, longest = keys, length
        if best is None:
            self._rest.append(entry)
            return
        for key in best:
            if key[0] in self._sizes:
                self._sizes[key[0]].add(key[1])
            self._lists.setdefault(key, []).append(entry)

    def _keys(self, box: Box) -> t.Iterator[t.List[t.Tuple[t.Any, ...]]]:
        for name in ("destination", "source"):
            found = box.get(name)
            if found is not None and len(found) == 1:
                low, high = found[0]
                size = (high - low + 1).bit_length() - 1
                if high - low + 1 == 1 << size and not low & (high - low):
                    yield [(name, size, low >> size)]
        for name in ("ctorigdstport", "destination_port"):
            found = box.get(name)
            if found is not None and sum(high - low + 1 for low, high in found) <= 64:
                yield [(name, port) for low, high in found for port in range(low, high + 1)]
        for name in ("out_interface", "in_interface"):
            found = box.get(name)
            if found is not None and not found & (found - 1):
                yield [(name, found)]

    def lists(self, point: Point) -> t.Iterator[t.List[_Entry]]:
        """Where a rule that takes the packet may be; each list is in order."""
        lists = self._lists
        for name, sizes in self._sizes.items():
            for size in sizes:
                found = lists.get((name, size, point[name] >> size))
                if found:
                    yield found
        for name in ("ctorigdstport", "destination_port", "out_interface", "in_interface"):
            found = lists.get((name, point[name]))
            if found:
                yield found
        yield self._rest


_INDEXED = ("source", "destination", "ctorigdstport", "destination_port", "out_interface", "in_interface")


class _Side:
    """Where packets come in, or where they go out."""

    def __init__(self, space: Space, ends: t.Sequence[Ends]) -> None:
        self._ends = [(space.interfaces(item.interface), item) for item in ends]
        self._by_bit: t.Dict[int, t.List[t.Tuple[int, Ends]]] = {}
        for bit, item in self._ends:
            self._by_bit.setdefault(bit, []).append((bit, item))
        # Docker's networks do not overlap; whatever does is looked at each time.
        self._always = [found for found in self._ends if not found[1].bridge]
        self._sorted: t.List[t.Tuple[int, int, t.Tuple[int, Ends]]] = []
        last = -1
        pieces = [(low, high, end) for end in self._ends if end[1].bridge for low, high in end[1].addresses]
        for low, high, end in sorted(pieces, key=lambda piece: piece[:2]):
            if low > last:
                self._sorted.append((low, high, end))
                last = high
            elif end not in self._always:
                self._always.append(end)
        self._lows = [low for low, _high, _found in self._sorted]

    def __bool__(self) -> bool:
        return bool(self._ends)

    def at(self, mask: t.Optional[int], addresses: t.Optional[Intervals]) -> t.Iterator[t.Tuple[int, bool, int]]:
        """The ends that are among these interfaces and have one of these addresses: bit, bridge or not, address."""
        for bit, item in self._candidates(mask, addresses):
            if mask is None or mask & bit:
                found = item.addresses if addresses is None else intersect(item.addresses, addresses)
                if found:
                    yield bit, item.bridge, found[0][0]

    def _candidates(self, mask: t.Optional[int], addresses: t.Optional[Intervals]) -> t.Iterable[t.Tuple[int, Ends]]:
        if mask is not None and not mask & (mask - 1):
            return self._by_bit.get(mask, ())
        if addresses is None or len(addresses) > 8:
            return self._ends
        return self._near(addresses)

    def _near(self, addresses: Intervals) -> t.Iterator[t.Tuple[int, Ends]]:
        yield from self._always
        for low, high in addresses:
            index = max(bisect.bisect_right(self._lows, low) - 1, 0)
            while index < len(self._sorted) and self._sorted[index][0] <= high:
                yield self._sorted[index][2]
                index += 1


# Coverage ------------------------------------------------------------------------------------------------------------


class _Frame(t.NamedTuple):
    """A chain that packets have been through up to a position."""

    rules: _Index
    before: int


class _Way(t.NamedTuple):
    """A way into a chain: what packets that come that way have, and what was read before."""

    box: Box
    frames: t.Tuple[_Frame, ...]


class Coverage:
    """Which rules of some chains nothing is left for.

    :param family: the family of the rules.
    :param chains: all chains of the table.
    :param roots: chains that are read from somewhere else; nothing is known of what comes there.
    :param judged: the chains whose rules are judged, those below after those above.
    :param distrusted: chains whose rules are not what they seem.
    :param coming: where packets come in, or nothing if that is not known.
    :param going: where packets go out.
    """

    def __init__(
        self,
        family: str,
        chains: t.Mapping[str, Chain],
        roots: t.Collection[str],
        judged: t.Sequence[str],
        distrusted: t.Collection[str] = (),
        coming: t.Sequence[Ends] = (),
        going: t.Sequence[Ends] = (),
    ) -> None:
        self._chains = chains
        self._roots = frozenset(roots)
        self._judged = [name for name in judged if name in chains]
        self._distrusted = frozenset(distrusted)
        below = self._below(self._judged)
        self._space = Space(
            family,
            [chains[name] for name in below],
            [item.interface for item in (*coming, *going)],
        )
        self._any_packet = {name: self._space.first(name) for name in _INDEXED}
        self._coming = _Side(self._space, coming)
        self._going = _Side(self._space, going)
        self._shapes: t.Dict[int, _Shape] = {}
        self._taken: t.Dict[str, t.List[t.Tuple[Box, Taker]]] = {}
        self._cuts = _ALL_CUTS
        self._tests = _ALL_TESTS
        self._spare = _ALL_BELOW
        self._indexes = {name: self._indexed(name) for name in self._judged}
        self._parents = self._jumps(below)

    def _below(self, names: t.Iterable[str]) -> t.List[str]:
        found: t.Dict[str, None] = {}
        todo = list(names)[::-1]
        while todo:
            name = todo.pop()
            if name not in found:
                found[name] = None
                todo += [str(rule.target) for rule in self._chains[name].rules if rule.target in self._chains]
        return list(found)

    def _jumps(self, below: t.Iterable[str]) -> t.Dict[str, t.List[t.Tuple[str, int, Rule]]]:
        """By chain the rules that lead there from chains that are judged."""
        found: t.Dict[str, t.List[t.Tuple[str, int, Rule]]] = {name: [] for name in below}
        for name in self._judged:
            for position, rule in enumerate(self._chains[name].rules, 1):
                if rule.target in found:
                    found[str(rule.target)].append((name, position, rule))
        return found

    def _shape(self, rule: Rule) -> _Shape:
        known = self._shapes.get(id(rule))
        if known is None:
            known = self._shapes[id(rule)] = self._space.shape(rule)
        return known

    # What rules take

    def _indexed(self, name: str) -> _Index:
        index = _Index(self._space)
        if name in self._distrusted:
            return index
        for position, rule in enumerate(self._chains[name].rules, 1):
            target = rule.target
            if target is None or target in CONTINUING:
                continue
            under = self._shape(rule).under
            if under is None:
                continue
            taker = Taker(Site(name, position, position), rule)
            if target in DENYING or target in (ACCEPT, RETURN) or rule.get("goto") is not None:
                index.add(position, under, taker)
            elif target in self._chains:
                for box, inner in self._takes(target, 1):
                    common = _common(self._space, under, box)
                    self._spare -= 1
                    if self._spare < 0:
                        break
                    if common is not None:
                        index.add(position, common, inner)
            if index.end is not None:
                break
        return index

    def _takes(self, name: str, depth: int) -> t.List[t.Tuple[Box, Taker]]:
        """What surely does not come back from a chain."""
        if name in self._taken:
            return self._taken[name]
        taken: t.List[t.Tuple[Box, Taker]] = []
        self._taken[name] = taken  # a loop takes nothing that is known
        if name in self._distrusted or depth > _DEEPEST:
            return taken
        returned: t.List[Box] = []
        for position, rule in enumerate(self._chains[name].rules, 1):
            target = rule.target
            if target is None or target in CONTINUING:
                continue
            shape = self._shape(rule)
            if shape.over is None:
                continue
            if target == RETURN or rule.get("goto") is not None or not self._known(target):
                returned.append(shape.over)
                if not shape.over or len(returned) > _MOST_RETURNS:
                    break
                continue
            if shape.under is None:
                continue
            taker = Taker(Site(name, position, position), rule)
            inside = [({}, taker)] if target not in self._chains else self._takes(target, depth + 1)
            for box, inner in inside:
                common = _common(self._space, shape.under, box)
                if common is None or any(_common(self._space, common, other) is not None for other in returned):
                    continue
                if len(taken) >= _MOST_BELOW or self._spare <= 0:
                    return taken
                self._spare -= 1
                taken.append((common, inner))
                if not common:
                    return taken
        return taken

    def _known(self, target: str) -> bool:
        return target in self._chains or target in DENYING or target == ACCEPT

    # Judging

    def dead(self, wanted: t.Callable[[Rule], bool], of_the_host: t.Callable[[Dead], bool]) -> t.Iterator[Dead]:
        """The rules that nothing is left for.

        :param wanted: whether a rule is to be judged.
        :param of_the_host: whether a rule is to be named that something is left for, but nothing that the host's
            networks can send.
        """
        for name in self._judged:
            ways = self._ways(name)
            if name in self._distrusted or not ways:
                continue
            index = self._indexes[name]
            for position, rule in enumerate(self._chains[name].rules, 1):
                over = self._shape(rule).over
                if over is None or not wanted(rule):
                    continue
                found = self._judge(Site(name, position, position), rule, over, ways, _Frame(index, position))
                if found is not None and (found.strictly or of_the_host(found)):
                    yield found

    def _judge(self, site: Site, rule: Rule, over: Box, ways: t.List[_Way], own: _Frame) -> t.Optional[Dead]:
        regions = []
        for way in ways:
            common = _common(self._space, over, way.box) if way.box else over
            if common is not None:
                regions.append((common, (*way.frames, own)))
        realistic: t.List[_Entry] = []
        if self._coming:
            for region, frames in regions:
                found = self._covered(region, frames, realistic=True)
                if found is None:
                    return None
                realistic += found
        strict: t.List[_Entry] = []
        for region, frames in regions:
            found = self._covered(region, frames, realistic=False)
            if found is None:
                return Dead(site, rule, self._takers(over, realistic), False) if realistic else None
            strict += found
        return Dead(site, rule, self._takers(over, strict), True) if strict else None

    def _takers(self, over: Box, entries: t.Sequence[_Entry]) -> t.Tuple[Taker, ...]:
        """The rules that take what a box holds; one alone if it takes everything."""
        found: t.Dict[Site, Taker] = {}
        for entry in entries:
            if not _without(self._space, over, entry.box):
                return (entry.taker,)
            found[entry.taker.site] = entry.taker
        return tuple(found[site] for site in sorted(found))

    def _ways(self, name: str) -> t.List[_Way]:
        """The ways into a chain on which something is left; one that says nothing if there are too many."""
        anything = [_Way({}, ())]
        if name in self._roots:
            return anything
        ways: t.List[_Way] = []
        for parent, position, rule in self._parents.get(name, ()):
            for above in [_Way({}, ())] if parent in self._roots else self._ways_of_parent(parent, name):
                over = self._shape(rule).over
                box = None if over is None else _common(self._space, above.box, over)
                if box is None:
                    continue
                frames = (*above.frames, _Frame(self._indexes[parent], position))
                if self._covered(box, frames, realistic=False) is None:
                    ways.append(_Way(box, frames))
                if len(ways) > _MOST_WAYS:
                    return anything
        return ways

    def _ways_of_parent(self, parent: str, name: str) -> t.List[_Way]:
        """As :meth:`_ways`, one step only: further up nothing is asked, which may only find too few dead rules."""
        found = []
        for grandparent, position, rule in self._parents.get(parent, ()):
            over = self._shape(rule).over
            if over is not None and grandparent != name:
                found.append(_Way(over, (_Frame(self._indexes[grandparent], position),)))
        return found if 0 < len(found) <= _MOST_WAYS else [_Way({}, ())]

    def _covered(self, region: Box, frames: t.Tuple[_Frame, ...], realistic: bool) -> t.Optional[t.List[_Entry]]:
        """The rules that take all of a box; None if something is left, or that would take too long to tell."""
        takers: t.List[_Entry] = []
        todo = [region]
        for _step in range(_MOST_CUTS):
            if not todo:
                return takers
            rest = todo.pop()
            point = self._point(rest, realistic)
            if point is None:
                continue
            self._cuts -= 1
            entry = self._first(point, frames)
            if entry is None or self._cuts < 0:
                return None
            takers.append(entry)
            todo += _without(self._space, rest, entry.box)
        return None

    def _first(self, point: Point, frames: t.Tuple[_Frame, ...]) -> t.Optional[_Entry]:
        """The rule that takes a packet."""
        space = self._space
        for rules, before in frames:
            if rules.end is not None and rules.end.position < before:
                return rules.end
            best: t.Optional[_Entry] = None
            limit = before
            for entries in rules.lists(point):
                for entry in entries:
                    if entry.position >= limit:
                        break
                    self._tests -= 1
                    if self._tests < 0:
                        return None
                    if _holds(space, entry.box, point):
                        best, limit = entry, entry.position
                        break
            if best is not None:
                return best
        return None

    def _point(self, region: Box, realistic: bool) -> t.Optional[Point]:
        """A packet out of a box; None if the host's networks cannot send one."""
        point = dict(self._any_packet)
        for name, values in region.items():
            point[name] = values & -values if isinstance(values, int) else values[0][0]
        if realistic:
            found = self._pair(region)
            if found is None:
                return None
            (point["in_interface"], point["source"]), (point["out_interface"], point["destination"]) = found
        return point

    def _pair(self, region: Box) -> t.Optional[t.Tuple[t.Tuple[int, int], t.Tuple[int, int]]]:
        """Where a packet may come in and where it may go out, each with an address."""
        for come, bridge, source in self._coming.at(region.get("in_interface"), region.get("source")):
            for go, _bridge, destination in self._going.at(region.get("out_interface"), region.get("destination")):
                if come != go or bridge:
                    return (come, source), (go, destination)
        return None


def _holds(space: Space, box: Box, point: Point) -> bool:
    for name, values in box.items():
        value = point.get(name)
        if value is None:
            value = space.first(name)
        if isinstance(values, int):
            if not values & value:
                return False
        elif len(values) == 1:
            if not values[0][0] <= value <= values[0][1]:
                return False
        elif not any(low <= value <= high for low, high in values):
            return False
    return True


def is_opaque(rule: Rule) -> bool:
    """True if a rule counts or measures: read twice, it does something else the second time."""
    return any(field.name in (OPAQUE, "limit") for field in rule.fields)
