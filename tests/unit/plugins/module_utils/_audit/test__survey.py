# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a survey finds on captured hosts and on hosts made up as the engines program them."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import Family, Survey
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import of_range
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import from_json
from ansible_collections.quaywall.docker.tests.unit.snapshots import (
    Box,
    Net,
    captured,
    edited,
    host,
    with_rules,
)

WITH_IPTABLES = ("docker-20.10-iptables-nft", "docker-26.1-iptables-nft", "docker-28.5-iptables-nft")


def survey(document: t.Dict[str, t.Any]) -> Survey:
    return Survey(from_json(document))


def small(*rules: str, engine: str = "28.5", **options: t.Any) -> Family:
    boxes = (Box("admin", "9000:8080"), Box("shop", "8080:8080"))
    return survey(host(engine, containers=boxes, docker_user=rules, **options)).family(IPV4)


# The ten containers of the captured hosts, as their captures' README and API answers say.
@pytest.mark.parametrize("name", WITH_IPTABLES)
def test_published_ports_lead_where_the_nat_table_says(name: str) -> None:
    four = survey(captured(name)).family(IPV4)
    found = {
        (item.container.name, item.text): (item.endpoint and item.endpoint.address, item.dnat, item.proxied)
        for item in four.published
    }
    assert found["web-a", "9000->8080/tcp"] == ("172.17.0.2", True, True)
    assert found["dns", "53->53/udp"] == ("172.30.0.53", True, True)
    # On two networks, the DNAT leads to one of them.
    assert found["twonets", "8091->8080/tcp"] == ("172.31.0.3", True, True)
    assert found["local-only", "127.0.0.1:8081->8080/tcp"] == ("172.17.0.4", True, True)
    assert len(found) == 11
    assert [item.container.name for item in four.published if item.loopback] == ["local-only"]
    assert {four.peers_text(four.let_in(item)[0]) for item in four.published if not item.loopback} == {"anyone"}


def test_ipv6_of_an_ipv4_only_container_is_docker_proxys() -> None:
    six = survey(captured("docker-28.5-iptables-nft")).family(IPV6)
    found = {item.container.name: (item.endpoint is not None, item.dnat, item.proxied) for item in six.published}
    assert found["web-a"] == (False, False, True)
    assert found["dual"] == (True, True, True)


@pytest.mark.parametrize("name", WITH_IPTABLES)
def test_containers_reach_out_and_answers_come_back(name: str) -> None:
    four = survey(captured(name)).family(IPV4)
    for endpoint in four.endpoints:
        flows = [
            *four.outgoing(endpoint, "tcp", 443),
            *four.outgoing_replies(endpoint, "tcp", 443),
        ]
        assert {outcome.verdict for flow in flows for outcome in four.walk(flow, "FORWARD", four.remote)} == {"ACCEPT"}
    replies = [flow for item in four.published if not item.loopback for flow in four.replies(item)]
    assert {outcome.verdict for flow in replies for outcome in four.walk(flow, "FORWARD")} == {"ACCEPT"}


def test_neighbours_pass_and_other_networks_do_not() -> None:
    four = survey(captured("docker-28.5-iptables-nft")).family(IPV4)
    endpoint = next(item for item in four.endpoints if item.container.name == "web-a")
    within = four.neighbours_of(endpoint)
    assert within == (*of_range("172.17.0.0-172.17.0.1"), *of_range("172.17.0.3-172.17.255.255"))
    assert {item.verdict for item in four.walk(four.neighbour(endpoint, "tcp", 8080), "FORWARD", within)} == {"ACCEPT"}
    # Engine 28 and later: nobody routes to a container's own address.
    (flow,) = four.direct(endpoint, "tcp", 8080)
    assert {item.verdict for item in four.walk(flow, "PREROUTING", None, "raw")} == {"DROP"}


def test_denials_name_everybody_that_a_rule_stops() -> None:
    four = small("-s 203.0.113.0/24 -j RETURN", "-p tcp -m tcp --dport 8080 -j DROP")
    found = {
        site.position: {(hit.published.text, four.peers_text(hit.outcome.peers)) for hit in hits}
        for site, hits in four.denials.items()
    }
    outside = "anyone but 203.0.113.0/24"
    assert found == {2: {("9000->8080/tcp", outside), ("8080->8080/tcp", outside)}}
    assert {site.position for site in four.allowances} == {1}
    admin = four.published_by_host_port[9000][0]
    assert four.peers_text(four.let_in(admin)[0]) == "203.0.113.0/24"


def test_what_hangs_on_something_is_said() -> None:
    four = small("-p tcp -m tcp --dport 8080 -m limit --limit 1/sec -j ACCEPT", "-p tcp -m tcp --dport 8080 -j DROP")
    peers, reasons = four.let_in(four.published[0])
    assert four.peers_text(peers) == "anyone"
    assert reasons == ("the rate limit",)


def test_the_guard_in_mangle_counts() -> None:
    document = host("28.5", containers=(Box("admin", "9000:8080"),))
    document["iptables"]["ipv4"]["nft"] += "*mangle\n:FORWARD DROP [0:0]\nCOMMIT\n"
    four = survey(document).family(IPV4)
    assert four.let_in(four.published[0]) == ((), ())


def test_rules_are_reached_through_jumps_each_once() -> None:
    document = host("28.5", containers=(Box("admin", "9000:8080"),))
    rules = (
        ":a - [0:0]",
        "-A a -p tcp -m tcp --dport 22 -j DROP",
        "-A DOCKER-USER -p tcp -j a",
        "-A DOCKER-USER -j a",
        "-A DOCKER-USER -j RETURN",
        "-A DOCKER-USER -s 192.0.2.1/32 -j DROP",
    )
    four = survey(with_rules(document, IPV4, "filter", rules)).family(IPV4)
    sites = [(item.site.chain, item.site.position, len(item.path)) for item in four.reached]
    assert sites == [
        ("DOCKER-USER", 1, 0),
        ("a", 1, 1),
        ("DOCKER-USER", 2, 0),
        ("DOCKER-USER", 3, 0),
        ("DOCKER-USER", 4, 0),
    ]


def test_ways_in_are_those_that_rules_tell_apart() -> None:
    def ways(*rules: str) -> t.List[str]:
        document = host("28.5", containers=(Box("admin", "9000:8080"),), docker_user=rules)
        document["interfaces"] += [
            {"name": name, "kind": "", "up": True, "master": "", "addresses": []} for name in ("eth1", "wg0")
        ]
        return survey(document).family(IPV4).ways_in

    assert ways() == ["eth0"]
    assert ways("-i eth1 -j DROP") == ["eth0", "eth1"]
    assert ways("-i wg+ -j ACCEPT", "! -i eth0 -j DROP") == ["eth0", "eth1", "wg0"]


@pytest.mark.parametrize("missing", ["docker", "iptables", "interfaces", "routes", "sysctls", "nft", "proxies"])
def test_a_hole_leaves_an_answer(missing: str) -> None:
    found = survey(edited(dict(small("-p tcp -m tcp --dport 8080 -j DROP").survey.snapshot.data), **{missing: None}))
    for family in found.families:
        assert family.denials is not None
        assert found.outside
        assert all(len(family.let_in(item)) == 2 for item in family.published)


@pytest.mark.parametrize(
    ("table", "chain", "rule", "known"),
    [
        ("mangle", "PREROUTING", "-s 192.0.2.0/24 -j MARK --set-xmark 0x1/0xffffffff", False),
        ("mangle", "FORWARD", "-j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff", False),
        ("raw", "PREROUTING", "-i eth0 -j MARK --set-xmark 0x1/0x1", False),
        ("nat", "PREROUTING", "-s 192.0.2.0/24 -j MARK --set-xmark 0x1/0xffffffff", False),
        ("mangle", "POSTROUTING", "-j MARK --set-xmark 0x1/0xffffffff", True),
        ("mangle", "PREROUTING", "-m mark --mark 0x1 -j ACCEPT", True),
    ],
)
def test_the_mark_of_packets_that_others_mark_is_not_known(table: str, chain: str, rule: str, known: bool) -> None:
    document = host("28.5", [Box("admin", "9000:8080")], ["-m mark --mark 0x1 -j DROP"])
    family = survey(with_rules(document, IPV4, table, ["-A %s %s" % (chain, rule)])).family(IPV4)
    (flow,) = family.inbound(family.published[0])
    assert flow.mark == (0 if known else None)
    assert family.let_in(family.published[0])[1] == (() if known else ("the packet's mark",))


def test_ports_that_are_reached_at_the_container_s_own_address() -> None:
    """Gateway mode routed: the engine lists them without a host port, and with an address."""
    boxes = (Box("a", "8080:80", "81", network="r"), Box("b", "9000:80"))
    whole = survey(host("28.5", boxes, networks=[Net("r", gateway_mode="routed")]))
    family = whole.family(IPV4)
    routed, other = family.published
    assert (routed.container.name, routed.text, routed.routed, routed.dnat) == ("a", "80/tcp", True, False)
    assert (other.container.name, other.text, other.routed, other.dnat) == ("b", "9000->80/tcp", False, True)
    (flow,) = family.inbound(routed)
    assert routed.endpoint is not None
    assert flow.address == flow.original[1] == ((routed.endpoint.number, routed.endpoint.number),)
    assert (flow.states, flow.original_ports[1]) == (frozenset(("NEW",)), (80, 80))
    assert family.let_in(routed) == (((0, 2**32 - 1),), ())
    assert not [item for item in whole.family(IPV6).published if item.routed]
