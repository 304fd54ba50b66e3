# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is told of containers and connections that no rule in DOCKER-USER is about."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._audit._outside import (
    outside_this_firewall,
    swarm_ingress,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import Survey
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import from_json
from ansible_collections.quaywall.docker.tests.unit.snapshots import (
    IPV4,
    Box,
    Document,
    captured,
    edited,
    fixture,
    host,
    with_rules,
)

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import Finding


def outside(document: Document) -> t.Dict[str, Finding]:
    """Findings by subject; all of them are info."""
    found = list(outside_this_firewall(Survey(from_json(document))))
    assert {finding.severity for finding in found} <= {"info"}
    return {finding.subject: finding for finding in found}


def test_nothing_to_tell() -> None:
    assert not outside(host("28.5", [Box("shop", "8080:80"), Box("gone", network="host", running=False)]))


@pytest.mark.parametrize("name", ["docker-20.10-iptables-nft", "docker-28.5-iptables-nft", "docker-29.7-nftables"])
def test_the_host_s_network(name: str) -> None:
    assert [item.container for item in outside(captured(name))["host"].affected] == ["hostnet"]


def test_a_container_in_another_s_network() -> None:
    boxes = [Box("a", network="host"), Box("b", network="container:a"), Box("c"), Box("d", network="container:c")]
    assert [item.container for item in outside(host("28.5", boxes))["host"].affected] == ["a", "b"]


@pytest.mark.parametrize("driver", ["macvlan", "ipvlan"])
def test_a_network_past_the_host(driver: str) -> None:
    document = host("28.5", [Box("a", network="lan", address="192.168.9.2"), Box("b")])
    for network in document["docker"]["networks"]:
        if network["Name"] == "lan":
            network["Driver"] = driver
    (item,) = outside(document)[driver].affected
    assert (item.container, item.address, item.network) == ("a", "192.168.9.2", "lan")


@pytest.mark.parametrize("variant", ["old", "new"])
def test_output_that_keeps_the_host_from_its_containers(variant: str) -> None:
    """moby-21167: the host and docker-proxy time out, a client outside gets through."""
    (item,) = outside(fixture("moby-21167", variant))["host"].affected
    assert (item.container, item.published, item.peers) == ("c1", "8090->80/tcp", "the host itself")


def test_input_that_stops_the_replies() -> None:
    """moby-20243, as far as its listing goes: INPUT lets in some ports and no ESTABLISHED."""
    lines = ["-P INPUT DROP", "-A INPUT -i lo -j ACCEPT", "-A INPUT -p tcp --dport 22 -j ACCEPT"]
    document = with_rules(host("20.10", [Box("nginx", "8090:80")]), IPV4, "filter", lines)
    assert "INPUT stops the replies" in outside(document)["host"].message
    lines = ["-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"]
    assert "host" not in outside(with_rules(document, IPV4, "filter", lines))


@pytest.mark.parametrize(
    ("variant", "said"), [("old", True), ("new", True), ("old-control", False), ("new-control", False)]
)
def test_another_s_bridge(variant: str, said: bool) -> None:
    """moby-39439: a guest behind br1 does not get out while FORWARD's policy is DROP."""
    assert ("bridges" in outside(fixture("moby-39439", variant))) == said


def test_another_s_bridge_with_its_own_rules() -> None:
    document = with_rules(fixture("moby-39439", "new"), IPV4, "filter", ["-A FORWARD -i br1 -j ACCEPT"])
    assert "bridges" not in outside(document)


def test_chains_of_nftables_that_stop_packets() -> None:
    chain = {"family": "inet", "table": "firewalld", "chain": "filter_FORWARD", "hook": "forward", "priority": 10}
    document = host("28.5", [Box("shop", "8080:80")])
    for stops in (True, False):
        nft = {"base_chains": [{**chain, "policy": "accept", "rules": 3, "stops": stops}]}
        assert ("nftables" in outside(edited(document, nft=nft))) == stops


def test_rootless() -> None:
    document = host("28.5", [Box("shop", "8080:80")], options={"iptables": False})
    info = {"SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless"]}
    assert "rootless" in outside(edited(document, docker={"info": info}))


# Swarm -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["20.10", "28.5"])
def test_the_routing_mesh(engine: str) -> None:
    document = host(engine, [Box("shop", "8080:80")], services=[("api", "8081:80"), ("dns", "53:5353/udp")])
    (finding,) = swarm_ingress(Survey(from_json(document)))
    assert finding.severity == "info"
    assert [(item.container, item.published) for item in finding.affected] == [
        ("api", "8081->80/tcp"),
        ("dns", "53->5353/udp"),
    ]
    # A worker cannot ask for services; its nat table tells the ports.
    (finding,) = swarm_ingress(Survey(from_json(edited(document, services=None))))
    assert [(item.container, item.published) for item in finding.affected] == [("", "8081/tcp"), ("", "53/udp")]
    assert not list(swarm_ingress(Survey(from_json(host(engine, [Box("shop", "8080:80")])))))
