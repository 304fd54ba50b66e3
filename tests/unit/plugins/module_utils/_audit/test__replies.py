# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Denies that answers run into, and each said once: docs-21708, docs-8357-a, ufw-docker-4, and conntrack as measured.

Measured on a kernel: --ctorigdstport 8080 matches both directions of a client's connection, and both of a container's
own connection to a remote port 8080; with --ctdir ORIGINAL and -i eth0, or with --ctstate DNAT, only the client's.
"""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._audit._replies import (
    established_late,
    established_missing,
    replies_or_egress_hit,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._ways import direct_routing
from ansible_collections.quaywall.docker.tests.unit.audits import Check, fixed, found, names, only
from ansible_collections.quaywall.docker.tests.unit.snapshots import (
    CAPTURES,
    ENGINES,
    IPV4,
    IPV6,
    Box,
    Document,
    captured,
    edited,
    fixture,
    host,
    with_rules,
)

CHECKS: t.Sequence[Check] = (replies_or_egress_hit, established_missing, established_late)

SHOP = Box("shop", "8080:8080")  # 172.17.0.2
ADMIN = Box("admin", "9000:8080")  # 172.17.0.3
ESTABLISHED = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"


def pair(*rules: str, **options: t.Any) -> Document:
    return host("28.5", [SHOP, ADMIN], rules, **options)


def said(document: Document) -> t.List[str]:
    return [finding.check for check in CHECKS for finding in found(check, document)]


@pytest.mark.parametrize("engine", ENGINES)
def test_healthy_hosts(engine: str) -> None:
    assert said(host(engine, [SHOP, ADMIN])) == []
    assert said(host(engine, [SHOP, ADMIN], [ESTABLISHED, "-i eth0 ! -s 192.0.2.2 -j DROP"])) == []


@pytest.mark.parametrize("name", CAPTURES)
def test_captured_hosts(name: str) -> None:
    assert said(captured(name)) == []


# replies_or_egress_hit -----------------------------------------------------------------------------------------------

PORT = "-p tcp -m conntrack --ctorigdstport 8080"


@pytest.mark.parametrize(
    ("rules", "traffic"),
    [
        # What containers open to port 8080 of others, and of each other.
        ([PORT + " -j DROP"], {"outgoing connections", "traffic between containers"}),
        ([ESTABLISHED, PORT + " -j REJECT"], {"outgoing connections", "traffic between containers"}),
        ([PORT + " --ctdir ORIGINAL -j DROP"], {"outgoing connections", "traffic between containers"}),
        # Only what answers them.
        (["-i eth0 " + PORT + " -j DROP"], {"replies"}),
        # The office may connect, and its answers have another source.
        (["! -s 203.0.113.0/24 " + PORT + " --ctstate DNAT -j DROP"], {"replies"}),
    ],
)
def test_a_host_port_in_any_direction(rules: t.Sequence[str], traffic: t.Set[str]) -> None:
    document = pair(*rules)
    finding = only(replies_or_egress_hit, document)
    assert (finding.severity, finding.certainty) == ("high", "definite")
    assert {item.traffic for item in finding.affected} == traffic
    assert said(document) == ["replies_or_egress_hit"]
    assert finding.fix is not None
    # As measured: who may connect, and is not answered, gets in by the fix.
    gains = ("203.0.113.0/24: shop (8080->8080/tcp) over IPv4",) if "! -s" in rules[0] else ()
    assert (finding.fix.gains, finding.fix.loses) == (gains, ())
    assert said(fixed(document, finding)) == []


@pytest.mark.parametrize(
    "rules",
    [
        [PORT + " --ctstate DNAT --ctdir ORIGINAL -j DROP"],
        ["-i eth0 " + PORT + " --ctdir ORIGINAL -j DROP"],
        ["-i eth0 " + PORT + " --ctstate DNAT --ctdir ORIGINAL -j REJECT"],
        [ESTABLISHED, "-i eth0 " + PORT + " -j DROP"],
        # Docker's documentation allows by it, which harms nobody.
        [PORT + " -j ACCEPT"],
        ["-j RETURN", PORT + " -j DROP"],
    ],
)
def test_a_host_port_for_those_who_connect(rules: t.Sequence[str]) -> None:
    assert said(pair(*rules)) == []


@pytest.mark.parametrize(
    ("engine", "port", "direct"),
    [("20.10", 8080, True), ("26.1", 8080, True), ("28.5", 8080, False), ("26.1", 9000, False)],
)
def test_what_the_rule_closes_at_a_containers_own_address_stays_closed(engine: str, port: int, direct: bool) -> None:
    """As measured: up to Engine 27 one reaches a container by routing, and 8080 is then the port connected to."""
    document = host(engine, [SHOP, ADMIN], ["-p tcp -m conntrack --ctorigdstport %d -j DROP" % port])
    fix = only(replies_or_egress_hit, document).fix
    assert fix is not None
    policies = [task["quaywall.docker.docker_user_rule"] for task in fix.tasks[:-1]]
    assert [(item.get("published_port"), item.get("container"), item.get("match")) for item in policies] == [
        (str(port), None, None),
        *([(None, "shop", "address")] if direct else []),
    ]
    assert ("own addresses" in fix.description) is direct
    after = fixed(document, only(replies_or_egress_hit, document))
    before = [finding.affected for finding in found(direct_routing, document)]
    assert [finding.affected for finding in found(direct_routing, after)] == before


def test_what_it_lacks_is_named() -> None:
    def lacks(rule: str) -> str:
        return only(replies_or_egress_hit, pair(rule)).message.partition("without ")[2].partition(".")[0]

    assert lacks(PORT + " -j DROP") == "--ctstate DNAT and --ctdir ORIGINAL"
    assert lacks(PORT + " --ctdir ORIGINAL -j DROP") == "--ctstate DNAT"
    assert lacks("! -s 203.0.113.0/24 " + PORT + " --ctstate DNAT -j DROP") == "--ctdir ORIGINAL"


@pytest.mark.parametrize("variant", ["new", "old"])
def test_docs_8357_a(variant: str) -> None:
    """The jumps say the port; what the kernel stopped is said of the first: c1's connection to a remote port 7777."""
    document = fixture("docs-8357-a", variant)
    first, _second = found(replies_or_egress_hit, document)
    assert first.place is not None
    assert (first.place.chain, first.place.position) == ("DOCKER-USER", 1)
    assert [(item.container, item.traffic, item.peers) for item in first.affected] == [
        (name, "replies", "port 7777 of other machines") for name in ("c1", "c2")
    ]
    assert first.fix is not None
    options = first.fix.tasks[0]["quaywall.docker.docker_user_rule"]
    assert (options["published_port"], options["source"], options["otherwise"]) == (
        "7777",
        ["192.168.56.0/24"],
        "reject",
    )
    assert said(document) == ["replies_or_egress_hit"] * 2
    # The policy's baseline lets answers pass, so the other jump does no harm any more.
    assert said(fixed(document, first)) == []


@pytest.mark.parametrize("variant", ["new-control", "old-control", "new-portonly", "old-portonly"])
def test_docs_8357_a_without_it(variant: str) -> None:
    assert said(fixture("docs-8357-a", variant)) == []


@pytest.mark.parametrize(
    "rule",
    ["! -s 192.0.2.2 -i eth0 -j DROP", "-i eth0 -j DROP", "! -i docker0 -j REJECT", "-i eth+ -p udp -j DROP"],
)
def test_all_that_comes_in_through_an_interface(rule: str) -> None:
    document = pair(rule)
    finding = only(replies_or_egress_hit, document)
    assert finding.place is not None
    assert finding.place.position == 1
    assert names(finding, "replies") == ["admin", "shop"]
    assert said(document) == ["replies_or_egress_hit"]
    assert finding.fix is not None
    (task,) = finding.fix.tasks
    assert task["ansible.builtin.iptables"]["ctstate"] == ["RELATED", "ESTABLISHED"]
    assert said(fixed(document, finding)) == []


@pytest.mark.parametrize("variant", ["new", "old"])
def test_docs_21708(variant: str) -> None:
    document = fixture("docs-21708", variant)
    assert said(document) == ["replies_or_egress_hit"]
    finding = only(replies_or_egress_hit, document)
    assert [(item.container, item.traffic) for item in finding.affected] == [("c1", "replies")]
    assert "name servers" in finding.message
    assert said(fixed(document, finding)) == []


@pytest.mark.parametrize("variant", ["new-fixed", "old-fixed", "new-control", "old-control"])
def test_docs_21708_fixed(variant: str) -> None:
    assert said(fixture("docs-21708", variant)) == []


# established_missing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "containers"),
    [
        # A container is closed, with what answers it.
        (["-d 172.17.0.2 -j DROP"], ["shop"]),
        (["-d 172.17.0.0/16 -j DROP"], ["admin", "shop"]),
        (["! -s 203.0.113.0/24 -o docker0 -j REJECT"], ["admin", "shop"]),
        (["-p tcp ! --dport 22 -i eth0 -j DROP"], ["admin", "shop"]),
        # Clients get in; what answers them is for private addresses.
        (["-i docker0 -d 10.0.0.0/8 -j REJECT"], ["admin", "shop"]),
        # Not for those that come in through eth0.
        (["-i docker0 -m conntrack --ctstate ESTABLISHED -j ACCEPT", "-d 172.17.0.2 -j DROP"], ["shop"]),
    ],
)
def test_no_rule_lets_answers_pass(rules: t.Sequence[str], containers: t.Sequence[str]) -> None:
    document = pair(*rules)
    assert said(document) == ["established_missing"]
    finding = only(established_missing, document)
    assert (finding.severity, finding.certainty) == ("high", "definite")
    assert names(finding, "replies") == containers
    assert finding.place is not None
    assert (finding.place.chain, finding.place.position) == ("DOCKER-USER", 0)
    assert said(fixed(document, finding)) == []


@pytest.mark.parametrize(
    "rules",
    [
        # Nothing to run into; falling off the end returns.
        [],
        ["-j RETURN"],
        ["-i eth0 -p tcp --dport 8080 -j DROP"],
        ["-d 172.17.0.2 -p tcp --dport 8080 -j DROP"],
        ["-m conntrack --ctstate NEW -d 172.17.0.2 -j DROP"],
        ["-m conntrack --ctstate INVALID -j DROP"],
        # It is there.
        [ESTABLISHED, "-d 172.17.0.2 -j DROP"],
        ["-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN", "-d 172.17.0.2 -j DROP"],
        ["-m state --state RELATED,ESTABLISHED -j ACCEPT", "-d 172.17.0.2 -j DROP"],
        ["-i eth0 -m conntrack --ctstate ESTABLISHED -j ACCEPT", "-d 172.17.0.2 -j DROP"],
        ["! -d 172.17.0.0/16 -j RETURN", "-m conntrack ! --ctstate NEW -j ACCEPT", "-d 172.17.0.2 -j DROP"],
        # Bans, which are for both directions.
        ["-s 198.51.100.66 -j DROP"],
        ["-s 10.0.0.0/8 -j REJECT"],
        ["-m set --match-set banned src -j DROP"],
        # What containers must not reach, and who is no client.
        ["-d 169.254.169.254 -j DROP"],
        ["-i docker0 -d 192.0.2.25 -p tcp -j REJECT"],
        # Containers may not open it at all, so nothing answers.
        ["-i docker0 -p udp -j DROP", "-i docker0 -o eth0 -p tcp --syn -j DROP"],
    ],
)
def test_answers_pass(rules: t.Sequence[str]) -> None:
    assert said(pair(*rules)) == []


def test_docker_s_documented_rule_for_tcp_leaves_answers_to_udp_out() -> None:
    document = pair("-p tcp -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "-i eth0 -j DROP")
    assert "no rule before it lets all established connections pass" in only(replies_or_egress_hit, document).message
    assert "lets established" in only(replies_or_egress_hit, pair("-i eth0 -j DROP")).message


def test_a_policy_of_ours_stops_answers_as_any_rule_does() -> None:
    """baseline: false, and no rule of anybody's in front."""
    document = pair('-d 172.17.0.2 ! -i docker0 -m comment --comment "quaywall:shop" -j DROP')
    assert names(only(established_missing, document), "replies") == ["shop"]


@pytest.mark.parametrize("variant", ["new", "old"])
def test_ufw_docker_4(variant: str) -> None:
    """The kernel let an answer to port 40000 pass and stopped one to 20000: Linux takes the first, dnsmasq may not."""
    document = fixture("ufw-docker-4", variant)
    assert said(document) == ["established_missing"]
    finding = only(established_missing, document)
    assert finding.certainty == "possible"
    assert finding.reasons == ("whether the container sends from a port below 32768, as dnsmasq does",)
    assert names(finding, "replies") == ["c1"]
    assert said(fixed(document, finding)) == []


def test_ufw_docker_s_documented_rule_for_name_servers() -> None:
    rules = ["-p udp -m udp --sport 53 --dport 1024:65535 -j RETURN", "-d 172.16.0.0/12 -p udp --dport 0:32767 -j DROP"]
    assert said(pair(*rules)) == []


def test_ipv6() -> None:
    document = host("28.5", [SHOP, ADMIN], [], ["-d fd00:17::2 -j DROP"], ipv6=True)
    finding = only(established_missing, document)
    assert finding.place is not None
    assert finding.place.family == IPV6
    assert "DOCKER-USER (IPv6)" in finding.message
    assert names(finding, "replies") == ["shop"]
    assert finding.fix is not None
    assert finding.fix.commands[0].startswith("ip6tables -w 10 -I DOCKER-USER 1 ")
    assert said(fixed(document, finding)) == []


def test_where_docker_uses_another_variant_than_the_plain_name() -> None:
    document = edited(pair("-d 172.17.0.2 -j DROP"), iptables={"default": {IPV4: "legacy", IPV6: "legacy"}})
    finding = only(established_missing, document)
    assert finding.fix is not None
    assert finding.fix.commands[0].startswith("iptables-nft ")
    assert finding.fix.tasks[0]["ansible.builtin.command"]["argv"][0] == "iptables-nft"


# established_late ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "position"),
    [
        (["-d 172.17.0.2 -j DROP", ESTABLISHED], 2),
        (["-i eth0 -j DROP", "-s 10.0.0.0/8 -j ACCEPT", "-m state --state ESTABLISHED -j RETURN"], 3),
        (["-i eth0 ! -s 192.0.2.2 -j DROP", "-i eth0 -m conntrack --ctstate ESTABLISHED -j ACCEPT"], 2),
    ],
)
def test_answers_are_let_in_too_late(rules: t.Sequence[str], position: int) -> None:
    document = pair(*rules)
    assert said(document) == ["established_late"]
    finding = only(established_late, document)
    assert finding.place is not None
    assert (finding.place.chain, finding.place.position) == ("DOCKER-USER", position)
    assert "rule 1 of DOCKER-USER stops the answers" in finding.message
    assert finding.fix is not None
    # The module iptables would find the rule, further down, and do nothing.
    assert "ansible.builtin.command" in finding.fix.tasks[0]
    assert said(fixed(document, finding)) == []


def test_in_chains_below() -> None:
    lines = (
        ":MINE - [0:0]",
        ":OTHER - [0:0]",
        "-A MINE -d 172.17.0.2/32 -j DROP",
        "-A OTHER -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A DOCKER-USER -j MINE",
        "-A DOCKER-USER -j OTHER",
    )
    document = with_rules(pair(), IPV4, "filter", lines)
    finding = only(established_late, document)
    assert finding.place is not None
    assert finding.place.chain == "OTHER"
    assert "rule 1 of MINE stops" in finding.message


def test_one_that_is_not_for_these_answers_is_not_late() -> None:
    assert said(pair("-d 172.17.0.2 -j DROP", "-i docker0 -m conntrack --ctstate ESTABLISHED -j ACCEPT")) == [
        "established_missing"
    ]


@pytest.mark.parametrize("variant", ["new-late", "old-late"])
def test_docs_21708_late(variant: str) -> None:
    document = fixture("docs-21708", variant)
    assert said(document) == ["established_late"]
    assert said(fixed(document, only(established_late, document))) == []
