# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Sets of addresses as sorted, disjoint intervals of integers, both ends included.

C(ipaddress) has networks only: what is left of the Internet when a thousand addresses are banned is no list of
networks that anybody wants to wait for.
"""

from __future__ import annotations

import bisect
import functools
import ipaddress
import itertools
import operator
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6

Interval = t.Tuple[int, int]
Intervals = t.Tuple[Interval, ...]

NOTHING: Intervals = ()
#: Every address of a family: always this very object, so that what is known of it is found by identity.
EVERYTHING: t.Mapping[str, Intervals] = {IPV4: ((0, 2**32 - 1),), IPV6: ((0, 2**128 - 1),)}


def join(pieces: t.Iterable[Interval]) -> Intervals:
    """Any intervals, in order and joined where they touch or overlap."""
    joined: t.List[Interval] = []
    for low, high in sorted(pieces):
        if joined and low <= joined[-1][1] + 1:
            if high > joined[-1][1]:
                joined[-1] = (joined[-1][0], high)
        else:
            joined.append((low, high))
    return tuple(joined)


def union(one: Intervals, two: Intervals) -> Intervals:
    """What is in either. A few intervals are put into many without a look at all of these."""
    if len(one) < len(two):
        one, two = two, one
    if not two:
        return one
    if len(two) * 8 > len(one):
        return join(one + two)
    joined: t.List[Interval] = []
    done = 0
    for piece in two:
        start = bisect.bisect_left(one, (piece[0],), done)
        if start > done and one[start - 1][1] >= piece[0] - 1:
            start -= 1
        end = bisect.bisect_left(one, (piece[1] + 2,), start)
        joined += one[done:start]
        touched = [piece, *one[start:end]]
        if joined and joined[-1][1] >= piece[0] - 1:
            touched.append(joined.pop())
        joined.append((min(low for low, _high in touched), max(high for _low, high in touched)))
        done = end
    joined += one[done:]
    return tuple(joined)


def intersect(one: Intervals, two: Intervals) -> Intervals:
    """What is in both. Where one holds all of the other, the other itself."""
    if len(one) > len(two):
        one, two = two, one
    if len(one) == 1 and len(two) == 1:
        return _intersect_ones(one, two)
    found: t.List[Interval] = []
    start = 0
    for low, high in one:
        start = _first(two, low, start)
        end = bisect.bisect_left(two, (high + 1,), start)
        if start == end:
            continue
        # Only the first and the last of them can reach over the edge.
        held = two[start:end]
        found += held
        if held[-1][1] > high:
            found[-1] = (held[-1][0], high)
        if held[0][0] < low:
            found[-len(held)] = (low, found[-len(held)][1])
        start = end - 1
    result = tuple(found)
    if len(result) == len(one) and result == one:
        return one
    return two if len(result) == len(two) and result == two else result


def _intersect_ones(one: Intervals, two: Intervals) -> Intervals:
    """By far the most are of one interval each."""
    (low, high), (first, last) = one[0], two[0]
    if first <= low and high <= last:
        return one
    if low <= first and last <= high:
        return two
    low, high = max(low, first), min(high, last)
    return ((low, high),) if low <= high else NOTHING


def _first(intervals: Intervals, low: int, start: int = 0) -> int:
    """The index of the first interval that does not end below a number."""
    index = bisect.bisect_left(intervals, (low + 1,), start)
    return index - 1 if index > start and intervals[index - 1][1] >= low else index


def subtract(one: Intervals, two: Intervals) -> Intervals:
    """What is in the first and not in the second; the first itself where they have nothing in common."""
    if not one or not two or one[-1][1] < two[0][0] or two[-1][1] < one[0][0]:
        return one
    if len(two) == 1:
        low, high = two[0]
        start = _first(one, low)
        end = bisect.bisect_left(one, (high + 1,), start)
        if start == end:
            return one
        edges = _gaps(two, one[start][0], one[end - 1][1])
        return one[:start] + tuple(edges) + one[end:]
    if len(two) < len(one):
        return intersect(one, tuple(_gaps(two, one[0][0], one[-1][1])))
    left: t.List[Interval] = []
    start = 0
    for low, high in one:
        start = _first(two, low, start)
        left += _gaps(two[start : bisect.bisect_left(two, (high + 1,), start)], low, high)
    result = tuple(left)
    return one if result == one else result


def _gaps(holes: t.Sequence[Interval], low: int, high: int) -> t.List[Interval]:
    """What of an interval lies between others, some of which may lie outside of it."""
    left: t.List[Interval] = []
    for first, last in holes:
        if first > low:
            left.append((low, min(first - 1, high)))
        if last >= low:
            low = last + 1
        if low > high:
            return left
    left.append((low, high))
    return left


def size(addresses: t.Collection[Interval]) -> int:
    """How many they are."""
    lower: int = sum(itertools.starmap(operator.sub, addresses))
    return len(addresses) - lower


def apart(groups: t.Iterable[Intervals]) -> t.List[t.Tuple[int, int, int]]:
    """Intervals in order, each with the number of the first group that holds it."""
    found: t.List[t.Tuple[int, int, int]] = []
    taken: t.List[Interval] = []
    for number, group in enumerate(groups):
        for low, high in group:
            start = bisect.bisect_left(taken, (low,))
            if start and taken[start - 1][1] >= low - 1:
                start -= 1
            end = bisect.bisect_left(taken, (high + 2,), start)
            held = taken[start:end]
            found += [(first, last, number) for first, last in _gaps(held, low, high)]
            taken[start:end] = [(min(low, held[0][0]), max(high, held[-1][1])) if held else (low, high)]
    return sorted(found)


def overlaps(one: Intervals, two: Intervals) -> bool:
    if len(one) > len(two):
        one, two = two, one
    if len(two) == 1:
        return bool(one) and one[0][0] <= two[0][1] and two[0][0] <= one[0][1]
    start = 0
    for low, high in one:
        start = _first(two, low, start)
        if start < len(two) and two[start][0] <= high:
            return True
    return False


def covers(one: Intervals, two: Intervals) -> bool:
    """True if the first holds all of the second."""
    if len(one) == 1 and two:
        return one[0][0] <= two[0][0] and two[-1][1] <= one[0][1]
    return intersect(one, two) == two


@functools.lru_cache(maxsize=32768)
def of_network(text: str) -> Intervals:
    """An address, a network, or an IPv4 address with a mask that is no prefix, as rules have them.

    :raises ValueError: it is none of these.
    """
    head, slash, mask = text.partition("/")
    number = _ipv4(head)
    if number is not None and (not slash or (mask.isascii() and mask.isdigit() and len(mask) < 3 and int(mask) <= 32)):
        free = (1 << 32 - int(mask or 32)) - 1
        return ((number & ~free, number | free),)
    if not slash:
        number = int(ipaddress.ip_address(head))
        return ((number, number),)
    if "." in mask:
        return _of_mask(int(ipaddress.IPv4Address(head)), int(ipaddress.IPv4Address(mask)))
    network = ipaddress.ip_network(text, strict=False)
    return ((int(network.network_address), int(network.broadcast_address)),)


def _ipv4(text: str) -> t.Optional[int]:
    """The number of an IPv4 address in its usual form, None for anything else: ipaddress takes ten times as long."""
    words = text.split(".")
    if len(words) != 4:
        return None
    number = 0
    for word in words:
        if not (word.isascii() and word.isdigit()) or len(word) > 3 or (word[0] == "0" and word != "0"):
            return None
        octet = int(word)
        if octet > 255:
            return None
        number = number << 8 | octet
    return number


def _of_mask(address: int, mask: int) -> Intervals:
    """Addresses that agree with one in the bits of a mask.

    :raises ValueError: they lie in more than 4,096 pieces.
    """
    free = ~mask & 0xFFFFFFFF
    tail = (free + 1) & ~free  # the free bits at the low end make one piece
    holes = [1 << bit for bit in range(32) if free >> bit & 1 and 1 << bit >= tail]
    if len(holes) > 12:
        raise ValueError("mask %s" % ipaddress.IPv4Address(mask))
    starts = [address & mask]
    for hole in holes:
        starts += [start | hole for start in starts]
    return join((start, start + tail - 1) for start in starts)


def of_range(text: str) -> Intervals:
    """Addresses as the match C(iprange) has them: C(10.0.0.1-10.0.0.9).

    :raises ValueError: it is no such range.
    """
    first, _dash, last = text.partition("-")
    low = ipaddress.ip_address(first)
    high = ipaddress.ip_address(last or first)
    if low.version != high.version or int(low) > int(high):
        raise ValueError(text)
    return ((int(low), int(high)),)


def networks(addresses: Intervals, family: str) -> t.Iterator[str]:
    """The addresses as networks, hosts without their prefix length."""
    make: t.Any = ipaddress.IPv4Address if family == IPV4 else ipaddress.IPv6Address
    for low, high in addresses:
        for network in ipaddress.summarize_address_range(make(low), make(high)):
            yield str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


def _networks_text(addresses: Intervals, family: str, most: int) -> str:
    shown: t.List[str] = []
    for text in networks(addresses, family):
        if len(shown) == most:
            return ", ".join(shown) + " and others"
        shown.append(text)
    return ", ".join(shown[:-1]) + " and " + shown[-1] if len(shown) > 1 else "".join(shown)


def text(addresses: Intervals, family: str, most: int = 4) -> str:
    """Who that is, for people: C(anyone), C(anyone but 203.0.113.0/24), C(10.0.0.0/8 and 192.0.2.1)."""
    rest = subtract(EVERYTHING[family], addresses)
    if not rest:
        return "anyone"
    if not addresses:
        return "nobody"
    if size(rest) < size(addresses):
        return "anyone but " + _networks_text(rest, family, most)
    return _networks_text(addresses, family, most)
