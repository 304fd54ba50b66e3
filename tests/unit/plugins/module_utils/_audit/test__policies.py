# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Policies that say in DOCKER-USER what a rule elsewhere was to say."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._audit._policies import Denied, closing, free_name
from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import Family, Survey
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import EVERYTHING, of_network, subtract
from ansible_collections.quaywall.docker.plugins.module_utils._policy import Policy
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import from_json
from ansible_collections.quaywall.docker.tests.unit.snapshots import Box, host

EVERYBODY = EVERYTHING[IPV4]


def family(*rules: str) -> Family:
    boxes = (Box("shop", "8080:80"), Box("dns", "53:53/udp"))
    return Survey(from_json(host("28.5", boxes, rules))).family(IPV4)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("shop", 8080), "shop-8080"),
        (("a b;c", 80, ""), "a-b-c-80"),
        (("taken", 1), "taken-1-2"),
        (("x" * 200, 80), "x" * 60),
    ],
)
def test_names(words: t.Tuple[t.Any, ...], expected: str) -> None:
    assert free_name({"taken-1"}, *words) == expected


@pytest.mark.parametrize(
    ("peers", "interface", "expected"),
    [
        (EVERYBODY, "", {"action": "drop"}),
        (EVERYBODY, "eth0", {"in_interface": "eth0", "action": "drop"}),
        (of_network("192.0.2.0/24"), "", {"source": ["192.0.2.0/24"], "action": "drop", "ip_version": "ipv4"}),
        (
            subtract(EVERYBODY, of_network("192.0.2.0/24")),
            "",
            {"source": ["192.0.2.0/24"], "action": "return", "otherwise": "drop", "ip_version": "ipv4"},
        ),
        # An interface goes with the action alone, and the rest of the Internet is no list that anybody reads.
        (subtract(EVERYBODY, of_network("192.0.2.0/24")), "eth0", None),
        (tuple((number, number) for number in range(0, 200, 2)), "", None),
    ],
)
def test_who(peers: t.Any, interface: str, expected: t.Optional[t.Dict[str, t.Any]]) -> None:
    found = family()
    shop = next(item for item in found.published if item.container.name == "shop")
    made = closing(found, [Denied(shop, peers, interface)])
    if expected is None:
        assert made is None
        return
    assert made is not None
    (options,) = made
    Policy.from_options(options)
    target = {"container": "shop", "destination_port": ["80"]}
    assert {key: value for key, value in options.items() if key != "name"} == {**target, **expected}


def test_names_that_are_taken_and_protocols() -> None:
    found = family('-d 172.17.0.3/32 -p udp -m comment --comment "quaywall:dns-53" -j DROP')
    dns = next(item for item in found.published if item.container.name == "dns")
    made = closing(found, [Denied(dns, EVERYBODY, verdict="REJECT")])
    assert made is not None
    assert made[0] == {
        "name": "dns-53-2",
        "container": "dns",
        "destination_port": ["53"],
        "protocol": "udp",
        "action": "reject",
    }
