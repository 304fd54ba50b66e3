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
import ipaddress
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
    if not one or not two:
        return one or two
    return join(one + two)


def intersect(one: Intervals, two: Intervals) -> Intervals:
    """What is in both. Where one holds all of the other, the other itself."""
    if len(one) > len(two):
        one, two = two, one
    found: t.List[Interval] = []
    for low, high in one:
        index = max(bisect.bisect_right(two, (low, low)) - 1, 0)
        while index < len(two) and two[index][0] <= high:
            if two[index][1] >= low:
                found.append((max(low, two[index][0]), min(high, two[index][1])))
            index += 1
    result = tuple(found)
    if result == one:
        return one
    return two if result == two else result


def subtract(one: Intervals, two: Intervals) -> Intervals:
    """What is in the first and not in the second; the first itself where they have nothing in common."""
    if not one or not two or one[-1][1] < two[0][0] or two[-1][1] < one[0][0]:
        return one
    left: t.List[Interval] = []
    for low, high in one:
        index = max(bisect.bisect_right(two, (low, low)) - 1, 0)
        start = low
        while index < len(two) and two[index][0] <= high:
            first, last = two[index]
            if last >= start:
                if first > start:
                    left.append((start, first - 1))
                start = last + 1
            index += 1
        if start <= high:
            left.append((start, high))
    result = tuple(left)
    return one if result == one else result


def overlaps(one: Intervals, two: Intervals) -> bool:
    return bool(intersect(one, two))


def covers(one: Intervals, two: Intervals) -> bool:
    """True if the first holds all of the second."""
    return intersect(one, two) == two


def of_network(text: str) -> Intervals:
    """An address, a network, or an IPv4 address with a mask that is no prefix, as rules have them.

    :raises ValueError: it is none of these.
    """
    head, slash, mask = text.partition("/")
    if not slash:
        number = int(ipaddress.ip_address(head))
        return ((number, number),)
    if "." in mask:
        return _of_mask(int(ipaddress.IPv4Address(head)), int(ipaddress.IPv4Address(mask)))
    network = ipaddress.ip_network(text, strict=False)
    return ((int(network.network_address), int(network.broadcast_address)),)


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
    if sum(high - low + 1 for low, high in rest) < sum(high - low + 1 for low, high in addresses):
        return "anyone but " + _networks_text(rest, family, most)
    return _networks_text(addresses, family, most)
