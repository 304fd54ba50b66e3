# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sets of addresses: the same answers as Python's sets of small integers, and as ipaddress for what addresses mean."""

from __future__ import annotations

import ipaddress
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.quaywall.docker.plugins.module_utils._intervals import (
    EVERYTHING,
    Intervals,
    apart,
    covers,
    intersect,
    join,
    networks,
    of_network,
    of_range,
    overlaps,
    subtract,
    text,
    union,
)
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6

MOST = 60

_numbers = st.integers(0, MOST)
_pieces = st.lists(st.tuples(_numbers, st.sampled_from((0, 0, 0, 1, 9))).map(lambda pair: (pair[0], sum(pair))))
# Few and many: the two are not treated alike.
sets = _pieces.map(join) | st.sets(_numbers, min_size=12).map(lambda found: join((number, number) for number in found))


def model(intervals: Intervals) -> t.Set[int]:
    assert all(low <= high for low, high in intervals)
    assert all(before[1] + 1 < after[0] for before, after in zip(intervals, intervals[1:]))
    return {number for low, high in intervals for number in range(low, high + 1)}


@given(_pieces)
def test_join(pieces: t.List[t.Tuple[int, int]]) -> None:
    assert model(join(pieces)) == {number for low, high in pieces for number in range(low, high + 1)}


@given(sets, sets)
def test_two_sets(one: Intervals, two: Intervals) -> None:
    assert model(union(one, two)) == model(one) | model(two)
    assert model(intersect(one, two)) == model(one) & model(two)
    assert model(subtract(one, two)) == model(one) - model(two)
    assert overlaps(one, two) == bool(model(one) & model(two))
    assert covers(one, two) == (model(one) >= model(two))


@given(sets, sets)
def test_what_does_not_change_is_the_same_object(one: Intervals, two: Intervals) -> None:
    """The walk finds what it knows of a set by its identity."""
    if not overlaps(one, two):
        assert subtract(one, two) is one
    if one and covers(one=two, two=one):
        assert intersect(one, two) is one
    assert union(one, ()) is one


@given(st.lists(sets, max_size=6))
def test_apart(groups: t.List[Intervals]) -> None:
    first: t.Dict[int, int] = {}
    for number, group in enumerate(groups):
        for item in model(group):
            first.setdefault(item, number)
    found = apart(groups)
    assert found == sorted(found)
    told = [(item, number) for low, high, number in found for item in range(low, high + 1)]
    assert len(told) == len(dict(told))
    assert dict(told) == first


# Addresses -----------------------------------------------------------------------------------------------------------


@given(st.ip_addresses(), st.data())
def test_a_network(address: t.Any, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, address.max_prefixlen))
    expected = ipaddress.ip_network("%s/%d" % (address, length), strict=False)
    assert of_network("%s/%d" % (address, length)) == ((int(expected[0]), int(expected[-1])),)
    assert of_network(str(address)) == ((int(address), int(address)),)
    if address.version == 4:
        assert of_network("%s/%s" % (address, expected.netmask)) == of_network(str(expected))


@given(st.ip_addresses(v=4), st.sets(st.integers(0, 31), max_size=9), st.ip_addresses(v=4))
def test_a_mask_that_is_no_prefix(address: t.Any, free: t.Set[int], other: t.Any) -> None:
    mask = 0xFFFFFFFF - sum(1 << bit for bit in free)
    found = of_network("%s/%s" % (address, ipaddress.IPv4Address(mask)))
    assert sum(high - low + 1 for low, high in found) == 1 << len(free)
    for number in (int(other), int(address), int(address) ^ (int(other) & ~mask)):
        assert overlaps(found, ((number, number),)) == ((number & mask) == (int(address) & mask))


@pytest.mark.parametrize(
    "value",
    [
        "",
        "x",
        "10.0.0",
        "10.0.0.256",
        "10.0.0.1/",
        "10.0.0.1/33",
        "10.0.0.1/x",
        "10.0.0.\u0661",
        "10.0.0.1/\u0661",
        "fd00::/129",
        "10.0.0.0/85.85.85.85",  # too many pieces
    ],
)
def test_what_is_no_network(value: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 -- whichever the words are
        of_network(value)


def test_a_range() -> None:
    assert of_range("10.0.0.1-10.0.0.9") == ((0x0A000001, 0x0A000009),)
    assert of_range("fd00::1-fd00::2") == ((0xFD << 120 | 1, 0xFD << 120 | 2),)
    assert of_range("10.0.0.1") == ((0x0A000001, 0x0A000001),)
    for value in ("10.0.0.9-10.0.0.1", "10.0.0.1-fd00::1", "", "-"):
        with pytest.raises(ValueError):  # noqa: PT011
            of_range(value)


# Words ---------------------------------------------------------------------------------------------------------------


@given(sets)
def test_networks(one: Intervals) -> None:
    assert join(piece for found in networks(one, IPV4) for piece in of_network(found)) == one


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        ((), "nobody"),
        (EVERYTHING[IPV4], "anyone"),
        (of_network("192.0.2.1"), "192.0.2.1"),
        (of_network("192.0.2.0/24"), "192.0.2.0/24"),
        (join(of_network("10.0.0.0/8") + of_network("192.0.2.1")), "10.0.0.0/8 and 192.0.2.1"),
        (subtract(EVERYTHING[IPV4], of_network("203.0.113.0/24")), "anyone but 203.0.113.0/24"),
        (of_range("10.0.0.1-10.0.0.30"), "10.0.0.1, 10.0.0.2/31, 10.0.0.4/30, 10.0.0.8/29 and others"),
    ],
)
def test_text(addresses: Intervals, expected: str) -> None:
    assert text(addresses, IPV4) == expected


def test_text_of_the_other_family() -> None:
    assert text(EVERYTHING[IPV6], IPV6) == "anyone"
    assert text(of_network("fd00::/8"), IPV6) == "fd00::/8"
    assert text(subtract(EVERYTHING[IPV6], of_network("::1")), IPV6) == "anyone but ::1"
