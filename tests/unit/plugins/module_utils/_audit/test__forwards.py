# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A user's rules of FORWARD behind Docker's, and rules for interfaces that their packets do not pass."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._audit._places import never_read
from ansible_collections.quaywall.docker.tests.unit.audits import fixed, found, only
from ansible_collections.quaywall.docker.tests.unit.foreign import firewalld, libvirt, tailscale
from ansible_collections.quaywall.docker.tests.unit.snapshots import (
    ENGINES,
    IPV4,
    IPV6,
    Box,
    Document,
    edited,
    fixture,
    host,
    with_rules,
)

BOXES = (Box("httpd", "8080:80"), Box("db", "3306:3306"))


def forward(*lines: str, engine: str = "28.5") -> Document:
    return with_rules(host(engine, BOXES), IPV4, "filter", lines)


def places(document: Document) -> t.List[t.Tuple[str, str]]:
    """The chains and rules of findings above info."""
    return [
        (item.place.chain, item.place.rule)
        for item in found(never_read, document)
        if item.place is not None and item.severity != "info"
    ]


@pytest.mark.parametrize("engine", ENGINES)
def test_moby_24848_rules_behind_dockers(engine: str) -> None:
    document = forward(":SALT -", "-A SALT -p tcp --dport 80 -j DROP", "-A FORWARD -i eth0 -j SALT", engine=engine)
    finding = only(never_read, document)
    assert (finding.severity, finding.certainty) == ("medium", "definite")
    assert finding.place is not None
    assert (finding.place.chain, finding.place.rule) == ("FORWARD", "-i eth0 -j SALT")
    assert [(item.container, item.published, item.peers) for item in finding.affected] == [
        ("httpd", "8080->80/tcp", "anyone")
    ]
    assert finding.fix is not None
    assert finding.fix.loses == ("anyone: httpd (8080->80/tcp) over IPv4",)
    assert found(never_read, fixed(document, finding)) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_moby_29184_what_containers_send_out(engine: str) -> None:
    rule = "-d 10.0.0.0/8 -i docker0 -p udp -j DROP"
    document = forward("-A FORWARD -m state --state INVALID -j DROP", "-A FORWARD " + rule, engine=engine)
    finding = only(never_read, document)
    assert finding.place is not None
    assert finding.place.rule == rule
    assert "send to 10.0.0.0/8" in finding.message
    assert {item.container for item in finding.affected} == {"httpd", "db"}
    assert finding.fix is not None
    assert finding.fix.commands == (
        "iptables -w 10 -I DOCKER-USER 1 -d 10.0.0.0/8 -i docker0 -p udp -j DROP",
        "iptables -w 10 -D FORWARD -d 10.0.0.0/8 -i docker0 -p udp -j DROP",
    )
    assert found(never_read, fixed(document, finding)) == []


@pytest.mark.parametrize(
    "lines",
    [
        # The other direction than was meant is a rule for no packet: below.
        ["-A FORWARD -j REJECT --reject-with icmp-host-prohibited"],
        ["-A FORWARD -m conntrack --ctstate INVALID -j DROP"],
        ["-A FORWARD -i wg0 -o wg0 -j ACCEPT", "-A FORWARD -i wg0 -j DROP"],
        ["-A FORWARD -o virbr0 -j REJECT"],
        ["-A FORWARD -p tcp --dport 8080 -j DROP"],
        ["-A FORWARD -m geoip --source-country XX -j DROP"],
        # Above Docker's rules it does what it says.
        ["-I FORWARD -i eth0 -p tcp --dport 80 -j DROP"],
        ["-I DOCKER-USER -i eth0 -p tcp --dport 80 -j DROP", "-A FORWARD -i eth0 -p tcp --dport 80 -j DROP"],
        ["-A FORWARD -d 192.0.2.0/24 -o eth0 -j DROP"],
    ],
)
def test_what_may_stand_behind(lines: t.List[str]) -> None:
    assert places(forward(*lines)) == []


def test_tools_that_are_about_other_networks() -> None:
    document = host("28.5", BOXES)
    assert places(libvirt(document)) == places(tailscale(document)) == []


# No packet comes that way --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("-A DOCKER-USER -i lo -j ACCEPT", "comes in through lo"),
        ("-A DOCKER-USER -o lo -j DROP", "goes out through lo"),
        ("-A DOCKER-USER -s 192.0.2.1 -i docker0 -j DROP", "192.0.2.1 comes in through eth0"),
        ("-A DOCKER-USER -d 192.0.2.1 -o docker0 -j DROP", "192.0.2.1 is reached through eth0"),
        ("-A FORWARD -d 10.0.0.0/8 -o docker0 -p udp -j DROP", "10.0.0.0/8 is not behind it"),
        ("-A INPUT -s 192.0.2.1 -i docker0 -j DROP", "192.0.2.1 is not behind it"),
    ],
)
def test_no_packet_matches(line: str, text: str) -> None:
    finding = only(never_read, forward(line))
    assert (finding.severity, finding.certainty) == ("medium", "definite")
    assert text in finding.message
    assert finding.place is not None
    assert finding.place.chain == line.split(" ")[1]


@pytest.mark.parametrize(
    "lines",
    [
        ["-A DOCKER-USER -s 172.17.0.0/24 -i docker0 -j DROP"],
        ["-A DOCKER-USER ! -s 172.17.0.0/16 -i docker0 -j DROP"],
        ["-A DOCKER-USER ! -i lo -s 192.0.2.1 -j DROP"],
        ["-A DOCKER-USER -s 192.0.2.1 ! -i docker0 -j DROP"],
        ["-A DOCKER-USER -s 192.0.2.1 -i br+ -j DROP"],
        ["-A DOCKER-USER -s 192.0.2.1 -i eth0 -j DROP"],
        # Read from INPUT too.
        [":BOTH -", "-A BOTH -i lo -j ACCEPT", "-A INPUT -j BOTH", "-A DOCKER-USER -j BOTH"],
    ],
)
def test_packets_match(lines: t.List[str]) -> None:
    assert places(forward(*lines)) == []


def test_a_network_behind_a_container() -> None:
    """A container that is a router: the host's routes tell."""
    document = forward("-A DOCKER-USER -d 10.8.0.0/24 -o docker0 -j DROP")
    assert len(found(never_read, document)) == 1
    route = {
        "family": IPV4,
        "destination": "10.8.0.0/24",
        "gateway": "172.17.0.2",
        "interface": "docker0",
        "table": "main",
        "type": "unicast",
        "metric": 0,
    }
    assert found(never_read, edited(document, routes=[*document["routes"], route])) == []
    assert only(never_read, edited(document, routes=None)).certainty == "possible"


def test_libnetwork_2651_the_zone_of_the_bridges() -> None:
    """A rich rule for a client outside, in the zone that only containers come in through."""
    rule = (
        "-A IN_docker_deny -s 192.168.222.1/32 -p tcp -m tcp --dport 8080 -m conntrack --ctstate NEW,UNTRACKED"
        " -j REJECT --reject-with icmp-port-unreachable"
    )
    document = firewalld(host("28.5", BOXES), rule)
    finding = next(item for item in found(never_read, document) if item.place and item.place.chain == "IN_docker_deny")
    assert "192.168.222.1 comes in through eth0" in finding.message
    assert finding.fix is not None
    assert finding.fix.tasks[0]["quaywall.docker.docker_user_rule"] == {
        "name": "httpd-8080-ipv4",
        "container": "httpd",
        "destination_port": ["80"],
        "source": ["192.168.222.1"],
        "action": "reject",
        "ip_version": "ipv4",
    }


# Packets that stay on a bridge ----------------------------------------------------------------------------------------

NEAR = "172.17.0.2/32", "172.17.0.3/32"


def bridged(rule: str, bridge_nf: bool = False) -> Document:
    return with_rules(host("26.1", BOXES, bridge_nf=bridge_nf), IPV4, "filter", [rule])


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        ("-I DOCKER-USER -i docker0 -o docker0 -j DROP", ["db", "httpd"]),
        ("-I DOCKER-USER -s %s -d %s -j DROP" % NEAR, ["db"]),
        ("-I DOCKER-USER -s %s -d %s -i docker0 -p tcp --dport 3306 -j REJECT" % NEAR, ["db"]),
        ("-I FORWARD -s 172.17.0.0/16 -d 172.17.0.3/32 -j DROP", ["db"]),
    ],
)
def test_dfw_568_bridges_keep_their_packets(rule: str, names: t.List[str]) -> None:
    """Kernel: with bridge-nf-call-iptables 0, iptables sees nothing of what stays on a bridge."""
    finding = only(never_read, bridged(rule))
    assert (finding.severity, finding.certainty) == ("medium", "definite")
    assert "br_netfilter is not loaded" in finding.message
    assert [(item.container, item.traffic) for item in finding.affected] == [
        (name, "traffic between containers") for name in names
    ]
    assert finding.fix is not None
    assert finding.fix.commands == ("modprobe br_netfilter", "sysctl -w net.bridge.bridge-nf-call-iptables=1")
    assert found(never_read, bridged(rule, bridge_nf=True)) == []
    assert (
        "it is 0"
        in only(never_read, edited(bridged(rule), sysctls={"net.bridge.bridge-nf-call-iptables": "0"})).message
    )
    assert found(never_read, edited(bridged(rule), sysctls=None)) == []


@pytest.mark.parametrize(
    "rule",
    [
        "-I DOCKER-USER -i docker0 -j DROP",
        "-I DOCKER-USER ! -i docker0 -o docker0 -j DROP",
        "-I DOCKER-USER -d 172.17.0.3/32 -j DROP",
        "-I DOCKER-USER -i docker0 -o docker0 -j ACCEPT",
        "-I DOCKER-USER -s 172.17.0.2/32 -d 172.17.0.3/32 -i eth0 -j DROP",
        "-I DOCKER-USER -s 172.17.0.2/32 -d 10.0.0.0/8 -j DROP",
    ],
)
def test_other_packets_than_those_that_stay_on_a_bridge(rule: str) -> None:
    assert not [item for item in found(never_read, bridged(rule)) if "bridge-nf" in item.message]


@pytest.mark.parametrize("layout", ["new", "old"])
def test_ufw_docker_12_the_other_direction(layout: str) -> None:
    """Its deny for the bridge is bound to what goes out to containers."""
    assert places(fixture("ufw-docker-12", layout)) == [
        ("ufw-user-forward", "-d 203.0.113.5/32 -o docker0 -j DROP"),
    ]


def test_ipv6() -> None:
    document = host("28.5", BOXES, ipv6=True, docker_user6=["-s 2001:db8::1 -i docker0 -j DROP"])
    finding = only(never_read, document)
    assert finding.place is not None
    assert finding.place.family == IPV6
    assert "2001:db8::1 is not behind it" in finding.message


def test_what_is_missing_is_no_error() -> None:
    document = forward("-A FORWARD -i docker0 -d 10.0.0.0/8 -j DROP", "-A INPUT -p tcp --dport 8080 -j DROP")
    for part in ("docker", "nft", "interfaces", "routes", "iptables", "proxies", "listening", "services"):
        found(never_read, edited(document, **{part: None}))
    loop = [":A -", ":B -", "-A A -j B", "-A B -j A", "-A INPUT -j A", "-A FORWARD -j A", "-A DOCKER-USER -j A"]
    found(never_read, with_rules(document, IPV4, "filter", loop))
