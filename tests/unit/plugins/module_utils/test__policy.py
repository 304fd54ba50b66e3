# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A policy, and the rules that it makes. The rules expected are the design's, or follow from its words."""

from __future__ import annotations

import ipaddress
import random
import typing as t

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ansible_collections.quaywall.docker.plugins.module_utils._chain import ACTION, OTHERWISE, Mark, mark_of
from ansible_collections.quaywall.docker.plugins.module_utils._inventory import (
    Binding,
    Container,
    Inventory,
    Network,
    parse_inventory,
)
from ansible_collections.quaywall.docker.plugins.module_utils._policy import (
    BridgeRoute,
    Compiled,
    Policy,
    PolicyError,
    compile_policy,
    conflict,
    first_conflict,
    shown,
)
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6, Rule, normalise, parse
from ansible_collections.quaywall.docker.plugins.module_utils._targets import look_alikes

# A host by hand ------------------------------------------------------------------------------------------------------

BRIDGE = Network("bridge", "b" * 64, "bridge", "docker0", False, ("172.17.0.0/16",))
APP = Network("app-net", "a" * 64, "bridge", "br-aaaaaaaaaaaa", False, ("172.30.0.0/24",))
DUAL = Network("dual-net", "d" * 64, "bridge", "br-dddddddddddd", True, ("172.31.0.0/24", "fd00:31::/64"))
LAN = Network("lan", "e" * 64, "macvlan", "", False, ("192.0.2.0/24",))
HOST = Network("host", "f" * 64, "host", "", False, ())
NONE = Network("none", "0" * 64, "null", "", False, ())
NETWORKS = (BRIDGE, APP, DUAL, LAN, HOST, NONE)


def published(host: int, port: int = 8080, protocol: str = "tcp", address: str = "", fixed: bool = True) -> Binding:
    return Binding(protocol, port, host, address, fixed)


def container(
    name: str = "admin",
    networks: t.Optional[t.Mapping[str, t.Tuple[str, ...]]] = None,
    current: t.Tuple[Binding, ...] = (),
    mode: str = "bridge",
    labels: t.Optional[t.Mapping[str, str]] = None,
    running: bool = True,
) -> Container:
    networks = {"bridge": ("172.17.0.10",)} if networks is None else networks
    ids = {network.name: network.id for network in NETWORKS}
    identity = "".join("%02x" % ord(char) for char in name).ljust(64, "0")[:64]
    return Container(
        name, identity, running, mode, labels or {}, networks, {key: ids.get(key, "") for key in networks}, current
    )


def compiled(
    options: t.Mapping[str, t.Any],
    *containers: Container,
    fixed: t.Tuple[Binding, ...] = (),
    routes: t.Sequence[BridgeRoute] = (),
    ip6_dnat: bool = False,
) -> Compiled:
    policy = Policy.from_options({"name": "admin-ui", **options})
    inventory = Inventory(containers or (container(),), {network.name: network for network in NETWORKS})
    return compile_policy(policy, inventory, lambda found: fixed, routes, ip6_dnat)


def texts(found: Compiled, family: str = IPV4) -> t.List[str]:
    """The rules without their comment."""
    fields = [[item for item in rule.fields if item.value != "comment"] for rule in found.rules.get(family, ())]
    return [" ".join([item.text for item in rule if item.name != "comment"]) for rule in fields]


EXAMPLE = {
    "container": "admin",
    "destination_port": ["8080"],
    "source": ["203.0.113.10/32"],
    "action": "accept",
    "otherwise": "drop",
}
DNAT_9000 = "-m conntrack --ctstate DNAT --ctorigdstport 9000 --ctdir ORIGINAL"

# The design's rules --------------------------------------------------------------------------------------------------


def test_the_designs_example_without_a_published_port() -> None:
    found = compiled(EXAMPLE)
    assert [rule.render() for rule in found.rules[IPV4]] == [
        (
            "-s 203.0.113.10/32 -d 172.17.0.10/32 ! -i docker0 -p tcp -m tcp --dport 8080 "
            '-m comment --comment "quaywall:admin-ui" -j ACCEPT'
        ),
        '-d 172.17.0.10/32 ! -i docker0 -p tcp -m tcp --dport 8080 -m comment --comment "quaywall:admin-ui" -j DROP',
    ]
    assert set(found.rules) == {IPV4}
    assert found.warnings == ()
    assert [(item.container, item.network, item.bridge, item.address) for item in found.endpoints] == [
        ("admin", "bridge", "docker0", "172.17.0.10")
    ]


def test_the_designs_example_with_a_published_port() -> None:
    """-p 9000:8080: the allow carries address and host port; the deny has an address-free half."""
    admin = container(current=(published(9000, fixed=False),))
    found = compiled(EXAMPLE, admin, fixed=(published(9000),))
    assert texts(found) == [
        "-s 203.0.113.10/32 -d 172.17.0.10/32 ! -i docker0 -p tcp -m tcp --dport 8080 %s -j ACCEPT" % DNAT_9000,
        "-p tcp %s -j DROP" % DNAT_9000,
        "-d 172.17.0.10/32 ! -i docker0 -p tcp -m tcp --dport 8080 -j DROP",
    ]


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        (
            "address",
            [
                "-s 203.0.113.10/32 -d 172.17.0.10/32 ! -i docker0 -p tcp -m tcp --dport 8080 -j ACCEPT",
                "-d 172.17.0.10/32 ! -i docker0 -p tcp -m tcp --dport 8080 -j DROP",
            ],
        ),
        (
            "published_port",
            ["-s 203.0.113.10/32 -p tcp %s -j ACCEPT" % DNAT_9000, "-p tcp %s -j DROP" % DNAT_9000],
        ),
    ],
)
def test_match_chooses_the_half(match: str, expected: t.List[str]) -> None:
    assert texts(compiled({**EXAMPLE, "match": match}, fixed=(published(9000),))) == expected


@pytest.mark.parametrize(
    ("action", "otherwise", "targets"),
    [
        ("accept", None, ["ACCEPT", "DROP"]),
        ("return", None, ["RETURN", "DROP"]),
        ("accept", "reject", ["ACCEPT", "REJECT --reject-with icmp-port-unreachable"]),
        ("accept", "none", ["ACCEPT"]),
        ("drop", None, ["DROP"]),
        ("reject", None, ["REJECT --reject-with icmp-port-unreachable"]),
        ("drop", "return", ["DROP", "RETURN"]),
    ],
)
def test_verdicts(action: str, otherwise: t.Optional[str], targets: t.List[str]) -> None:
    found = compiled({**EXAMPLE, "action": action, "otherwise": otherwise})
    assert [text.partition(" -j ")[2] for text in texts(found)] == targets
    marks = [mark_of(rule) for rule in found.rules[IPV4]]
    assert [mark.section for mark in marks if mark] == [ACTION, OTHERWISE][: len(targets)]


def test_without_sources_anyone_is_meant_and_nobody_is_left() -> None:
    assert texts(compiled({"container": "admin", "action": "drop"})) == [
        "-d 172.17.0.10/32 ! -i docker0 -p tcp -j DROP"
    ]


def test_same_network_filter_does_not_exempt_the_bridge() -> None:
    assert texts(compiled({**EXAMPLE, "same_network": "filter"})) == [
        "-s 203.0.113.10/32 -d 172.17.0.10/32 -p tcp -m tcp --dport 8080 -j ACCEPT",
        "-d 172.17.0.10/32 -p tcp -m tcp --dport 8080 -j DROP",
    ]


# Protocols and ports -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"protocol": "udp", "destination_port": ["53"]}, "-p udp -m udp --dport 53"),
        ({"protocol": "sctp", "destination_port": ["5:9"]}, "-p sctp -m sctp --dport 5:9"),
        ({"protocol": "icmp"}, "-p icmp"),
        ({"protocol": "all"}, ""),
        ({"destination_port": ["80", "443"]}, "-p tcp -m multiport --dports 80,443"),
        ({"destination_port": ["443", "80", "443"]}, "-p tcp -m multiport --dports 80,443"),
        ({"destination_port": ["80", "81:90", "85:100"]}, "-p tcp -m tcp --dport 80:100"),
        ({"destination_port": ["8000:8010", "9"]}, "-p tcp -m multiport --dports 9,8000:8010"),
        ({"destination_port": ["1:65535"]}, "-p tcp -m tcp --dport 1:65535"),
        ({"destination_port": [" 80 "]}, "-p tcp -m tcp --dport 80"),
    ],
)
def test_ports_and_protocols(options: t.Dict[str, t.Any], expected: str) -> None:
    found = texts(compiled({"container": "admin", "action": "drop", **options}))
    assert found == ["-d 172.17.0.10/32 ! -i docker0 %s-j DROP" % (expected + " " if expected else "")]


def test_icmp_of_ipv6_has_another_name() -> None:
    dual = container(networks={"dual-net": ("172.31.0.2", "fd00:31::2")})
    found = compiled({"container": "admin", "protocol": "icmp", "action": "reject"}, dual)
    assert texts(found) == [
        "-d 172.31.0.2/32 ! -i br-dddddddddddd -p icmp -j REJECT --reject-with icmp-port-unreachable"
    ]
    assert texts(found, IPV6) == [
        "-d fd00:31::2/128 ! -i br-dddddddddddd -p ipv6-icmp -j REJECT --reject-with icmp6-port-unreachable"
    ]


def slots(rule: Rule) -> int:
    value = rule.value("destination_ports")
    return 1 if value is None else sum(2 if ":" in part else 1 for part in value.split(","))


@given(st.sets(st.integers(1, 65535), min_size=1, max_size=60), st.booleans())
def test_multiport_has_fifteen_slots(numbers: t.Set[int], ranges: bool) -> None:
    """kernel-facts 4: 15 slots, a range takes two. Every port is in exactly one rule."""
    wanted = ["%d:%d" % (number, min(number + 1, 65535)) if ranges else str(number) for number in numbers]
    rules = compiled({"container": "admin", "action": "drop", "destination_port": wanted}).rules[IPV4]
    found: t.List[int] = []
    for rule in rules:
        assert slots(rule) <= 15
        for part in (rule.value("destination_ports") or rule.value("destination_port") or "").split(","):
            low, _colon, high = part.partition(":")
            found += range(int(low), int(high or low) + 1)
    expected = set(numbers)
    if ranges:
        expected |= {min(number + 1, 65535) for number in numbers}
    assert sorted(found) == sorted(expected)


def test_sixteen_ports_are_two_rules() -> None:
    ports = [str(port) for port in range(1000, 1032, 2)]
    found = texts(compiled({"container": "admin", "action": "drop", "destination_port": ports}))
    assert found == [
        "-d 172.17.0.10/32 ! -i docker0 -p tcp -m multiport --dports %s -j DROP" % ",".join(ports[:15]),
        "-d 172.17.0.10/32 ! -i docker0 -p tcp -m tcp --dport 1030 -j DROP",
    ]


# Sources and families ------------------------------------------------------------------------------------------------


def test_sources_of_both_families_go_to_their_own() -> None:
    dual = container(networks={"dual-net": ("172.31.0.2", "fd00:31::2")})
    found = compiled({"container": "admin", "source": ["203.0.113.10", "2001:DB8:5::/64"], "action": "accept"}, dual)
    assert texts(found) == [
        "-s 203.0.113.10/32 -d 172.31.0.2/32 ! -i br-dddddddddddd -p tcp -j ACCEPT",
        "-d 172.31.0.2/32 ! -i br-dddddddddddd -p tcp -j DROP",
    ]
    assert texts(found, IPV6) == [
        "-s 2001:db8:5::/64 -d fd00:31::2/128 ! -i br-dddddddddddd -p tcp -j ACCEPT",
        "-d fd00:31::2/128 ! -i br-dddddddddddd -p tcp -j DROP",
    ]


def test_sources_of_one_family_close_the_other() -> None:
    """Nobody of the other family is named, so all of it is everybody else."""
    dual = container(networks={"dual-net": ("172.31.0.2", "fd00:31::2")})
    found = compiled({"container": "admin", "source": ["203.0.113.10"], "action": "accept"}, dual)
    assert texts(found, IPV6) == ["-d fd00:31::2/128 ! -i br-dddddddddddd -p tcp -j DROP"]


@pytest.mark.parametrize("version", ["ipv4", "ipv6"])
def test_ip_version_takes_one_family(version: str) -> None:
    dual = container(networks={"dual-net": ("172.31.0.2", "fd00:31::2")})
    found = compiled({"container": "admin", "action": "drop", "ip_version": version}, dual)
    assert set(found.rules) == {version}
    assert {item.family for item in found.endpoints} == {version}


def test_ip_version_that_the_target_lacks() -> None:
    for version in ("ipv6", "both"):
        with pytest.raises(PolicyError, match="no IPv6 address"):
            compiled({"container": "admin", "action": "drop", "ip_version": version})


def test_a_source_of_host_bits_is_masked_and_one_that_is_everybody_has_no_s() -> None:
    found = compiled({**EXAMPLE, "source": ["203.0.113.77/24", "203.0.113.0/24", "0.0.0.0/0"]})
    assert texts(found) == [
        "-s 203.0.113.0/24 -d 172.17.0.10/32 ! -i docker0 -p tcp -m tcp --dport 8080 -j ACCEPT",
        "-d 172.17.0.10/32 ! -i docker0 -p tcp -m tcp --dport 8080 -j ACCEPT",
        "-d 172.17.0.10/32 ! -i docker0 -p tcp -m tcp --dport 8080 -j DROP",
    ]


def test_only_denied_sources_of_another_family_make_no_rule() -> None:
    with pytest.raises(PolicyError, match="no IP version in common"):
        compiled({"container": "admin", "source": ["2001:db8::1"], "action": "drop"})


# Interfaces ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interface", "expected"),
    [
        ("eth0", "-i eth0"),
        ("eth+", "-i eth+"),
        ("!wg0", "! -i wg0"),
        ("! wg0", "! -i wg0"),
    ],
)
def test_an_allow_has_the_interface_in_place_of_the_bridge(interface: str, expected: str) -> None:
    """The bridge's own traffic is never named by the deny that follows, so the allow need not exempt it."""
    found = compiled({**EXAMPLE, "in_interface": interface})
    assert texts(found) == [
        "-s 203.0.113.10/32 -d 172.17.0.10/32 %s -p tcp -m tcp --dport 8080 -j ACCEPT" % expected,
        "-d 172.17.0.10/32 ! -i docker0 -p tcp -m tcp --dport 8080 -j DROP",
    ]


def test_a_deny_on_an_interface() -> None:
    assert texts(compiled({"container": "admin", "action": "drop", "in_interface": "eth0"})) == [
        "-d 172.17.0.10/32 -i eth0 -p tcp -j DROP"
    ]


@pytest.mark.parametrize("interface", ["!eth0", "docker0", "docker+"])
def test_a_deny_on_an_interface_that_covers_the_bridge_spares_its_addresses(interface: str) -> None:
    """iptables takes one -i only ("multiple -i flags not allowed")."""
    found = texts(compiled({"container": "admin", "action": "drop", "in_interface": interface}))
    assert found
    for rule in found:
        assert rule.count(" -i ") == 1
        assert rule.startswith("! -s 172.17.0.0/16 -d 172.17.0.10/32 ")


def test_a_deny_of_sources_around_the_bridge() -> None:
    found = compiled(
        {"container": "admin", "action": "drop", "source": ["172.16.0.0/15", "10.0.0.0/8"], "in_interface": "!eth0"}
    )
    assert [text.partition(" ! -i eth0")[0] for text in texts(found)] == [
        "-s 172.16.0.0/16 -d 172.17.0.10/32",
        "-s 10.0.0.0/8 -d 172.17.0.10/32",
    ]


# Targets -------------------------------------------------------------------------------------------------------------


def test_labels_take_every_container_that_carries_them() -> None:
    one = container("shop-web-1", {"bridge": ("172.17.0.2",)}, labels={"app": "shop", "tier": "web"})
    two = container("shop-web-2", {"bridge": ("172.17.0.3",)}, labels={"app": "shop", "tier": "web", "x": "y"})
    other = container("shop-db", {"bridge": ("172.17.0.4",)}, labels={"app": "shop"})
    found = compiled({"labels": {"app": "shop", "tier": "web"}, "action": "drop"}, two, other, one)
    assert [text.split(" ")[1] for text in texts(found)] == ["172.17.0.2/32", "172.17.0.3/32"]


def test_a_label_without_a_value_is_an_empty_one() -> None:
    found = compiled({"labels": {"monitored": None}, "action": "drop"}, container(labels={"monitored": ""}))
    assert len(found.endpoints) == 1


def test_labels_that_nobody_carries() -> None:
    with pytest.raises(PolicyError, match="app=shop, tier=web") as caught:
        compiled({"labels": {"tier": "web", "app": "shop"}, "action": "drop"})
    one_sentence(caught.value)


def test_a_stopped_container_among_labelled_ones_is_left_out_with_a_word() -> None:
    one = container("a", {"bridge": ("172.17.0.2",)}, labels={"app": "shop"})
    two = container("b", {"bridge": ()}, labels={"app": "shop"}, running=False)
    found = compiled({"labels": {"app": "shop"}, "action": "drop"}, one, two)
    assert len(found.rules[IPV4]) == 1
    assert len(found.warnings) == 1
    assert "Container b is not running" in found.warnings[0]


def test_a_network() -> None:
    web = container("web", {"app-net": ("172.30.0.2",)}, mode="app-net")
    found = compiled({"network": "app-net", "source": ["203.0.113.10"], "action": "accept"}, web, container())
    assert texts(found) == [
        "-s 203.0.113.10/32 ! -i br-aaaaaaaaaaaa -o br-aaaaaaaaaaaa -p tcp -j ACCEPT",
        "! -i br-aaaaaaaaaaaa -o br-aaaaaaaaaaaa -p tcp -j DROP",
    ]
    assert [item.address for item in found.endpoints] == ["172.30.0.2"]


def test_a_dual_stack_network_has_both_families() -> None:
    found = compiled({"network": "dual-net", "action": "drop"})
    assert texts(found) == texts(found, IPV6) == ["! -i br-dddddddddddd -o br-dddddddddddd -p tcp -j DROP"]


def test_a_destination() -> None:
    routes = [
        BridgeRoute(ipaddress.ip_network("172.17.0.0/16"), "docker0"),
        BridgeRoute(ipaddress.ip_network("fd00:31::/64"), "br-dddddddddddd"),
    ]
    assert texts(compiled({"destination": "172.17.0.0/24", "action": "drop"}, routes=routes)) == [
        "-d 172.17.0.0/24 ! -i docker0 -p tcp -j DROP"
    ]
    assert texts(compiled({"destination": "10.99.0.5", "action": "drop"}, routes=routes)) == [
        "-d 10.99.0.5/32 -p tcp -j DROP"
    ]
    found = compiled({"destination": "fd00:31::2", "action": "drop"}, routes=routes)
    assert texts(found, IPV6) == ["-d fd00:31::2/128 ! -i br-dddddddddddd -p tcp -j DROP"]
    assert set(found.rules) == {IPV6}


def test_a_destination_across_two_bridges() -> None:
    routes = [
        BridgeRoute(ipaddress.ip_network("172.17.0.0/16"), "docker0"),
        BridgeRoute(ipaddress.ip_network("172.18.0.0/16"), "br-1"),
    ]
    options = {"destination": "172.16.0.0/12", "action": "drop"}
    with pytest.raises(PolicyError, match="br-1, docker0") as caught:
        compiled(options, routes=routes)
    one_sentence(caught.value)
    assert texts(compiled({**options, "same_network": "filter"}, routes=routes)) == ["-d 172.16.0.0/12 -p tcp -j DROP"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"published_port": "9000"}, "-p tcp -m conntrack --ctstate DNAT --ctorigdstport 9000 --ctdir ORIGINAL"),
        (
            {"published_port": "9000:9010", "protocol": "udp"},
            "-p udp -m conntrack --ctstate DNAT --ctorigdstport 9000:9010 --ctdir ORIGINAL",
        ),
        (
            {"published_port": "53", "published_address": "192.0.2.1"},
            "-p tcp -m conntrack --ctstate DNAT --ctorigdst 192.0.2.1 --ctorigdstport 53 --ctdir ORIGINAL",
        ),
        (
            {"published_port": "1:65535"},
            "-p tcp -m conntrack --ctstate DNAT --ctorigdstport 1:65535 --ctdir ORIGINAL",
        ),
    ],
)
def test_a_published_port(options: t.Dict[str, t.Any], expected: str) -> None:
    found = compiled({**options, "source": ["203.0.113.10"], "action": "accept"})
    assert texts(found) == ["-s 203.0.113.10/32 %s -j ACCEPT" % expected, "%s -j DROP" % expected]
    assert set(found.rules) == {IPV4}


def test_a_published_port_guards_ipv6_where_docker_forwards_it() -> None:
    options = {"published_port": "9000", "source": ["203.0.113.10"], "action": "accept"}
    found = compiled(options, ip6_dnat=True)
    assert texts(found, IPV6) == ["-p tcp %s -j DROP" % DNAT_9000]
    assert set(compiled({**options, "ip_version": "both"}).rules) == {IPV4, IPV6}
    found = compiled({"published_port": "53", "published_address": "2001:DB8::1", "action": "drop"})
    assert texts(found, IPV6) == [
        "-p tcp -m conntrack --ctstate DNAT --ctorigdst 2001:db8::1 --ctorigdstport 53 --ctdir ORIGINAL -j DROP"
    ]


def test_a_published_port_of_every_protocol() -> None:
    found = texts(compiled({"published_port": "53", "protocol": "all", "action": "drop"}))
    assert [text.split(" ")[1] for text in found] == ["tcp", "udp", "sctp"]


# Containers ----------------------------------------------------------------------------------------------------------


def test_a_container_on_two_networks_is_guarded_on_both() -> None:
    two = container(networks={"app-net": ("172.30.0.2",), "dual-net": ("172.31.0.3", "fd00:31::3")}, mode="app-net")
    found = compiled({"container": "admin", "action": "drop"}, two)
    assert texts(found) == [
        "-d 172.30.0.2/32 ! -i br-aaaaaaaaaaaa -p tcp -j DROP",
        "-d 172.31.0.3/32 ! -i br-dddddddddddd -p tcp -j DROP",
    ]
    assert texts(found, IPV6) == ["-d fd00:31::3/128 ! -i br-dddddddddddd -p tcp -j DROP"]
    only = compiled({"container": "admin", "container_network": "app-net", "action": "drop"}, two)
    assert texts(only) == ["-d 172.30.0.2/32 ! -i br-aaaaaaaaaaaa -p tcp -j DROP"]
    with pytest.raises(PolicyError, match="did you mean 'app-net'") as caught:
        compiled({"container": "admin", "container_network": "ap-net", "action": "drop"}, two)
    one_sentence(caught.value)


def test_the_network_of_another_container() -> None:
    owner = container("vpn", {"bridge": ("172.17.0.7",)}, mode="bridge")
    guest = container("torrent", {}, mode="container:" + owner.id)
    found = compiled({"container": "torrent", "action": "drop"}, guest, owner)
    assert texts(found) == ["-d 172.17.0.7/32 ! -i docker0 -p tcp -j DROP"]
    third = container("third", {}, mode="container:torrent")
    assert texts(compiled({"container": "third", "action": "drop"}, guest, owner, third)) == texts(found)


def test_the_ports_of_another_containers_network_are_published_by_that_one() -> None:
    """Docker refuses -p together with network_mode: container:..., so the bindings are the owner's."""
    owner = container("vpn", {"bridge": ("172.17.0.7",)}, current=(published(9000, fixed=False),))
    guest = container("torrent", {}, mode="container:vpn")
    policy = Policy.from_options({"name": "p", **EXAMPLE, "container": "torrent"})
    inventory = Inventory((guest, owner), {"bridge": BRIDGE})
    found = compile_policy(policy, inventory, lambda asked: (published(9000),) if asked == owner else ())
    assert texts(found) == [
        "-s 203.0.113.10/32 -d 172.17.0.7/32 ! -i docker0 -p tcp -m tcp --dport 8080 %s -j ACCEPT" % DNAT_9000,
        "-p tcp %s -j DROP" % DNAT_9000,
        "-d 172.17.0.7/32 ! -i docker0 -p tcp -m tcp --dport 8080 -j DROP",
    ]


@pytest.mark.parametrize("mode", ["container:" + "9" * 64, "container:loop"])
def test_the_network_of_a_container_that_is_gone(mode: str) -> None:
    with pytest.raises(PolicyError, match="does not exist any more") as caught:
        compiled({"container": "loop", "action": "drop"}, container("loop", {}, mode=mode))
    one_sentence(caught.value)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (container(networks={"host": ()}, mode="host"), "INPUT"),
        (container(networks={"none": ()}, mode="none"), "no network"),
        (container(networks={"lan": ("192.0.2.9",)}, mode="lan"), "macvlan"),
        (container(networks={"gone": ("192.0.2.9",)}, mode="gone"), "unknown"),
    ],
    ids=["host", "none", "macvlan", "a network that is not listed"],
)
def test_a_container_that_docker_user_cannot_guard(found: Container, words: str) -> None:
    with pytest.raises(PolicyError, match=words) as caught:
        compiled({"container": "admin", "action": "drop"}, found)
    one_sentence(caught.value)
    assert "admin" in str(caught.value)


def test_a_container_that_is_on_a_macvlan_too_is_guarded_where_it_can_be() -> None:
    both = container(networks={"bridge": ("172.17.0.10",), "lan": ("192.0.2.9",)})
    found = compiled({"container": "admin", "action": "drop"}, both)
    assert texts(found) == ["-d 172.17.0.10/32 ! -i docker0 -p tcp -j DROP"]
    assert len(found.warnings) == 1
    assert "lan (macvlan)" in found.warnings[0]


@pytest.mark.parametrize(("driver", "target"), [("lan", "macvlan"), ("host", "host"), ("none", "null")])
def test_a_network_that_docker_user_does_not_see(driver: str, target: str) -> None:
    with pytest.raises(PolicyError, match="driver %s" % target):
        compiled({"network": driver, "action": "drop"})


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("admim", "did you mean 'admin'"),
        ("adm", "did you mean 'admin'"),
        ("zzz", "there is 'admin'"),
    ],
)
def test_an_unknown_container_is_answered_with_names(wanted: str, words: str) -> None:
    with pytest.raises(PolicyError, match=words) as caught:
        compiled({"container": wanted, "action": "drop"})
    assert "'%s'" % wanted in str(caught.value)
    one_sentence(caught.value)


def test_look_alikes() -> None:
    assert look_alikes("x", []) == "there is none at all."
    assert look_alikes("shop-web", ["shop-web-1", "shop-web-2", "db"]).startswith("did you mean 'shop-web-")
    many = look_alikes("\x1b[31m", ["c%d" % number for number in range(20)])
    assert many.endswith(" and more.")
    assert many.count("'c") == 8


def test_an_unknown_network() -> None:
    with pytest.raises(PolicyError, match="did you mean 'app-net'"):
        compiled({"network": "appnet", "action": "drop"})


def test_a_network_whose_name_another_one_has_too() -> None:
    policy = Policy.from_options({"name": "x", "network": "dup", "action": "drop"})
    networks = [{"Name": "dup", "Id": digit * 64, "Driver": "bridge"} for digit in "12"]
    with pytest.raises(PolicyError, match="2 networks 'dup'") as caught:
        compile_policy(policy, parse_inventory([], networks))
    assert "1" * 12 in one_sentence(caught.value)
    assert "2" * 12 in one_sentence(caught.value)


# Stopped containers --------------------------------------------------------------------------------------------------


def test_a_stopped_container_is_guarded_on_its_fixed_ports_before_it_starts() -> None:
    found = compiled(EXAMPLE, container(networks={"bridge": ()}, running=False), fixed=(published(9000),))
    rules = texts(found)
    assert "-p tcp %s -j DROP" % DNAT_9000 in rules
    # What lets through needs an address, or an old allow would open whoever has the port next.
    assert [rule for rule in rules if rule.endswith("ACCEPT")] == []
    assert len(found.warnings) == 1
    assert found.endpoints == ()


def test_a_stopped_container_with_a_static_address() -> None:
    stopped = container(networks={"app-net": ("172.30.0.10",)}, mode="app-net", running=False)
    assert texts(compiled({"container": "admin", "action": "drop"}, stopped)) == [
        "-d 172.30.0.10/32 ! -i br-aaaaaaaaaaaa -p tcp -j DROP"
    ]


@pytest.mark.parametrize(
    ("options", "fixed"),
    [({}, ()), ({"destination_port": ["81"]}, (published(9000),)), ({"match": "address"}, (published(9000),))],
    ids=["no port", "another port", "match: address"],
)
def test_a_stopped_container_without_anything_to_guard(
    options: t.Dict[str, t.Any], fixed: t.Tuple[Binding, ...]
) -> None:
    with pytest.raises(PolicyError, match="Container admin is not running and has no address yet") as caught:
        compiled({**EXAMPLE, **options}, container(networks={"bridge": ()}, running=False), fixed=fixed)
    one_sentence(caught.value)


def test_a_stopped_container_of_two_families_is_guarded_in_both() -> None:
    stopped = container(networks={"dual-net": ()}, mode="dual-net", running=False)
    found = compiled(EXAMPLE, stopped, fixed=(published(9000),))
    assert texts(found, IPV6) == ["-p tcp %s -j DROP" % DNAT_9000]


def test_a_stopped_container_with_one_static_address_of_two_is_guarded_in_both() -> None:
    stopped = container(networks={"dual-net": ("172.31.0.80",)}, mode="dual-net", running=False)
    found = compiled(EXAMPLE, stopped, fixed=(published(9000),))
    assert texts(found, IPV6) == ["-p tcp %s -j DROP" % DNAT_9000]


# Published ports of containers ---------------------------------------------------------------------------------------


def test_host_ports_that_docker_chose_are_in_the_allow_and_not_in_the_guard() -> None:
    """The next run has another host port, so a guard by it would hit somebody else."""
    found = compiled(EXAMPLE, container(current=(published(32768, fixed=False),)))
    assert texts(found) == [
        (
            "-s 203.0.113.10/32 -d 172.17.0.10/32 ! -i docker0 -p tcp -m tcp --dport 8080 "
            "-m conntrack --ctstate DNAT --ctorigdstport 32768 --ctdir ORIGINAL -j ACCEPT"
        ),
        "-d 172.17.0.10/32 ! -i docker0 -p tcp -m tcp --dport 8080 -j DROP",
    ]


def test_a_port_that_is_named_and_not_published_is_reached_by_address() -> None:
    found = compiled(
        {**EXAMPLE, "destination_port": ["8080", "9999"]},
        container(current=(published(9000, fixed=False),)),
        fixed=(published(9000),),
    )
    rules = texts(found)
    assert "-s 203.0.113.10/32 -d 172.17.0.10/32 ! -i docker0 -p tcp -m tcp --dport 9999 -j ACCEPT" in rules
    assert "-d 172.17.0.10/32 ! -i docker0 -p tcp -m multiport --dports 8080,9999 -j DROP" in rules


def test_other_published_ports_of_the_container_are_left_alone() -> None:
    found = compiled(EXAMPLE, fixed=(published(9000), published(9443, 8443), published(9000, 8080, "udp")))
    assert not any("9443" in rule or "udp" in rule for rule in texts(found))


def test_a_port_that_is_published_on_one_address_is_guarded_there() -> None:
    dual = container(networks={"dual-net": ("172.31.0.2", "fd00:31::2")})
    fixed = (published(9000, address="192.0.2.1"), published(9000, address="2001:db8::1"))
    found = compiled(EXAMPLE, dual, fixed=fixed)
    tail = "--ctorigdstport 9000 --ctdir ORIGINAL -j DROP"
    assert "-p tcp -m conntrack --ctstate DNAT --ctorigdst 192.0.2.1 " + tail in texts(found)
    assert "-p tcp -m conntrack --ctstate DNAT --ctorigdst 2001:db8::1 " + tail in texts(found, IPV6)
    assert not any("2001" in rule for rule in texts(found))


def test_a_port_that_is_published_in_one_family_is_guarded_in_that_one() -> None:
    """0.0.0.0:9000 and [::]:9000 may be two containers'."""
    dual = container(networks={"dual-net": ("172.31.0.2", "fd00:31::2")})
    for address, family, other in (("0.0.0.0", IPV4, IPV6), ("::", IPV6, IPV4)):
        found = compiled(EXAMPLE, dual, fixed=(published(9000, address=address),))
        assert "-p tcp %s -j DROP" % DNAT_9000 in texts(found, family)
        assert not any("9000" in rule for rule in texts(found, other))


def test_a_run_of_ports_is_one_rule() -> None:
    fixed = tuple(published(7000 + number, 7000 + number) for number in range(3))
    found = compiled({"container": "admin", "source": ["203.0.113.10"], "action": "accept"}, fixed=fixed)
    assert texts(found) == [
        (
            "-s 203.0.113.10/32 -d 172.17.0.10/32 ! -i docker0 -p tcp -m tcp --dport 7000:7002 "
            "-m conntrack --ctstate DNAT --ctorigdstport 7000:7002 --ctdir ORIGINAL -j ACCEPT"
        ),
        "-p tcp -m conntrack --ctstate DNAT --ctorigdstport 7000:7002 --ctdir ORIGINAL -j DROP",
        "-d 172.17.0.10/32 ! -i docker0 -p tcp -j DROP",
    ]


def test_nothing_is_published_for_match_published_port() -> None:
    with pytest.raises(PolicyError, match="publishes no fixed tcp host port") as caught:
        compiled({**EXAMPLE, "match": "published_port"})
    one_sentence(caught.value)


# Log, priority, names ------------------------------------------------------------------------------------------------


def test_log_is_in_front_of_each_denying_rule() -> None:
    found = compiled({**EXAMPLE, "log": {"prefix": "admin: ", "limit": "2/second"}})
    assert [rule.render() for rule in found.rules[IPV4]][1:] == [
        (
            "-d 172.17.0.10/32 ! -i docker0 -p tcp -m tcp --dport 8080 -m limit --limit 2/sec "
            '-m comment --comment "quaywall:admin-ui" -j LOG --log-prefix "admin: "'
        ),
        '-d 172.17.0.10/32 ! -i docker0 -p tcp -m tcp --dport 8080 -m comment --comment "quaywall:admin-ui" -j DROP',
    ]


@pytest.mark.parametrize(
    ("limit", "printed"),
    [
        ("10/minute", "10/min"),
        ("10/m", "10/min"),
        ("1/s", "1/sec"),
        ("3/hour", "3/hour"),
        ("5/day", "5/day"),
        ("60/minute", "1/sec"),
        ("24/day", "1/hour"),
        ("300/second", "303/sec"),
    ],
)
def test_log_rates_are_those_that_iptables_prints(limit: str, printed: str) -> None:
    """iptables 1.8.9: a rate that is kept otherwise than it is printed would be a change on every run."""
    found = compiled({**EXAMPLE, "log": {"limit": limit}})
    assert "--limit %s " % printed in texts(found)[1]


def test_log_prefix_is_the_policys_name_where_none_is_given() -> None:
    policy = Policy.from_options({**EXAMPLE, "name": "x" * 64, "log": {}})
    assert policy.log is not None
    assert policy.log.prefix.startswith("quaywall:x")
    assert len(policy.log.prefix.encode()) <= 29


def test_priority_is_in_the_comment_where_it_is_not_the_default() -> None:
    found = compiled({**EXAMPLE, "priority": 10})
    marks = [mark_of(rule) for rule in found.rules[IPV4]]
    assert [(mark.policy, mark.priority) for mark in marks if mark] == [("admin-ui", 10)] * 2


@pytest.mark.parametrize("name", ["a", "x" * 64, "A.b_c-9", "..", "a-"])
def test_names_at_the_limits(name: str) -> None:
    assert Policy.from_options({**EXAMPLE, "name": name}).name == name


# Bad input -----------------------------------------------------------------------------------------------------------


def one_sentence(error: BaseException) -> str:
    """One line, that begins and ends like a sentence, without a trace of Python in it."""
    text = str(error)
    assert text == text.strip()
    assert text.isprintable(), text
    assert text.endswith((".", "?")), text
    assert "Traceback" not in text
    assert "ValueError" not in text
    assert len(text) < 400, text
    return text


OK = {"name": "admin-ui", "container": "admin", "action": "accept", "source": ["203.0.113.10"]}


def bad(expected: t.Sequence[str], drop: t.Sequence[str] = (), **options: t.Any) -> t.Any:
    changed = {key: value for key, value in OK.items() if key not in drop}
    changed.update(options)
    label = ", ".join("%s=%.20r" % item for item in options.items()) or "without " + " and ".join(drop)
    return pytest.param(changed, expected, id=ascii(label))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        bad(["container", "labels", "network", "destination", "published_port"], drop=["container"]),
        bad(["container and destination"], destination="10.0.0.1"),
        bad(["container and labels and network"], labels={"a": "b"}, network="x"),
        bad(["container is empty"], container=""),
        bad(["labels is empty"], drop=["container"], labels={}),
        bad(["network is empty"], drop=["container"], network=""),
        bad(["0.0.0.0/0", "every container", "smaller"], drop=["container"], destination="0.0.0.0/0"),
        bad(["::/0", "every container"], drop=["container"], destination="::/0"),
        bad(["0.0.0.0/0", "every container"], drop=["container"], destination="10.0.0.0/0"),
        bad(["destination", "'web'", "203.0.113"], drop=["container"], destination="web"),
        bad(["destination_port[0]", "'0'", "1 to 65535"], destination_port=["0"]),
        bad(["destination_port[1]", "'65536'", "1 to 65535"], destination_port=["80", "65536"]),
        bad(["destination_port[0]", "'9:5'", "5:9"], destination_port=["9:5"]),
        bad(["destination_port[0]", "'http;reboot'", "8000:8010"], destination_port=["http;reboot"]),
        bad(["destination_port[0]", "'80-90'", "8000:8010"], destination_port=["80-90"]),
        bad(["destination_port[0]", "'-1'"], destination_port=["-1"]),
        bad(["destination_port[0]", "'1e3'"], destination_port=["1e3"]),
        bad(["destination_port[0]", "\\n"], destination_port=["80\n-j"]),
        bad(["destination_port[0]", "''"], destination_port=[""]),
        bad(["destination_port[0]", "'80:'"], destination_port=["80:"]),
        bad(["destination_port[0]"], destination_port=["\u0663"]),
        bad(["destination_port", "empty"], destination_port=[]),
        bad(["destination_port", "icmp", "tcp"], destination_port=["80"], protocol="icmp"),
        bad(["destination_port", "all", "tcp"], destination_port=["80"], protocol="all"),
        bad(["source[1]", "'10.0.0.1/33'", "0 to 32"], source=["10.0.0.1", "10.0.0.1/33"]),
        bad(["source[0]", "'2001:db8::/129'", "0 to 128"], source=["2001:db8::/129"]),
        bad(["source[0]", "'web'", "203.0.113"], source=["web"]),
        bad(["source[0]", "'300.1.1.1'"], source=["300.1.1.1"]),
        bad(["source[0]", "'fe80::1%eth0'", "zone", "in_interface"], source=["fe80::1%eth0"]),
        bad(["destination", "'fd00::1%eth0/64'", "zone"], drop=["container"], destination="fd00::1%eth0/64"),
        bad(
            ["published_address", "'fe80::1%e'"], drop=["container"], published_port="80", published_address="fe80::1%e"
        ),
        bad(["source[0]", "'web/24'"], source=["web/24"]),
        bad(["source[2]", "''"], source=["10.0.0.1", "10.0.0.2", ""]),
        bad(["source[0]"], source=["10.0.0.1\n-A"]),
        bad(["source", "empty"], source=[]),
        bad(["30 bytes", "29"], log={"prefix": "x" * 30}),
        bad(["30 bytes", "29"], log={"prefix": "\u00e4" * 15}),
        bad(["log.prefix", "one line"], log={"prefix": "a\nb"}),
        bad(["log.prefix"], log={"prefix": ""}),
        bad(["log.limit", "'often'", "10/minute"], log={"limit": "often"}),
        bad(["log.limit", "'10001/second'"], log={"limit": "10001/second"}),
        bad(["log.limit", "'0/second'"], log={"limit": "0/second"}),
        bad(["log", "denies nothing"], log={}, otherwise="none"),
        bad(["name", "65 characters", "64"], name="x" * 65),
        bad(["name", '"'], name='a"b'),
        bad(["name", "a'b"], name="a'b"),
        bad(["name", "\\n", "letters"], name="a\nb"),
        bad(["name", "\\n"], name="a\n"),
        bad(["name", "letters"], name="h\u00e4fen"),
        bad(["name", "a b"], name="a b"),
        bad(["name", "empty"], name=""),
        bad(["action", "accept, return, drop or reject"], drop=["action"]),
        bad(["otherwise is drop", "nobody is left"], drop=["source"], otherwise="drop"),
        bad(["match=published_port", "network"], drop=["container"], network="x", match="published_port"),
        bad(
            ["match=published_port", "destination"], drop=["container"], destination="10.0.0.1", match="published_port"
        ),
        bad(["match=address", "published_port"], drop=["container"], published_port="80", match="address"),
        bad(["container_network", "network"], drop=["container"], network="x", container_network="y"),
        bad(["published_address", "container"], published_address="192.0.2.1"),
        bad(["published_address", "'x'"], drop=["container"], published_port="80", published_address="x"),
        bad(["published_address", "0.0.0.0"], drop=["container"], published_port="80", published_address="0.0.0.0"),
        bad(["published_port", "'0'"], drop=["container"], published_port="0"),
        bad(["published_port", "9:5", "5:9"], drop=["container"], published_port="9:5"),
        bad(["icmp", "published_port"], drop=["container"], published_port="80", protocol="icmp"),
        bad(["destination_port", "published_port"], drop=["container"], published_port="80", destination_port=["80"]),
        bad(["in_interface", "'eth0;x'"], in_interface="eth0;x"),
        bad(["in_interface", "x" * 16], in_interface="x" * 16),
        bad(["in_interface", "''"], in_interface=""),
        bad(["in_interface", "'eth0:1'"], in_interface="eth0:1"),
        bad(["in_interface", "'!'"], in_interface="!"),
        bad(["in_interface", "'-j'"], in_interface="-j"),
        bad(["in_interface", "\\n"], in_interface="eth0\n-j"),
        bad(["priority 1000", "999"], priority=1000),
        bad(["priority -1"], priority=-1),
    ],
)
def test_bad_input_is_answered_with_one_sentence(options: t.Dict[str, t.Any], expected: t.Sequence[str]) -> None:
    with pytest.raises(PolicyError) as caught:
        Policy.from_options(options)
    text = one_sentence(caught.value)
    for words in expected:
        assert words in text


@given(
    st.sampled_from(("name", "container", "destination", "published_port", "in_interface", "published_address")),
    st.text(),
)
def test_any_text_gives_a_policy_or_one_sentence(option: str, text: str) -> None:
    options: t.Dict[str, t.Any] = {"name": "x", "action": "drop", option: text}
    if option in ("name", "in_interface"):
        options["container"] = "admin"
    if option == "published_address":
        options["published_port"] = "80"
    try:
        policy = Policy.from_options(options)
    except PolicyError as error:
        one_sentence(error)
    else:
        try:
            compiled(options)
        except PolicyError as error:
            one_sentence(error)
        assert policy.name


@given(st.sampled_from(("source", "destination_port")), st.lists(st.text() | st.integers(), max_size=3))
def test_any_list_gives_a_policy_or_one_sentence_with_the_index(option: str, values: t.List[t.Any]) -> None:
    try:
        Policy.from_options({"name": "x", "action": "drop", "container": "admin", option: values})
    except PolicyError as error:
        text = one_sentence(error)
        assert "%s[" % option in text or not values


def test_shown_is_short_and_on_one_line() -> None:
    assert shown("a b") == "'a b'"
    assert shown("\x1b[31m\n") == "'\\x1b[31m\\n'"
    assert len(shown("x" * 1000)) == 80
    assert len(shown("\n" * 1000)) <= 80


# Conflicts -----------------------------------------------------------------------------------------------------------


def otherwise(
    name: str, verdict: str, fixed: t.Tuple[Binding, ...] = (published(9000),), **options: t.Any
) -> t.Tuple[Policy, t.Tuple[Rule, ...]]:
    policy = Policy.from_options({"name": name, **EXAMPLE, "otherwise": verdict, **options})
    inventory = Inventory((container(),), {network.name: network for network in NETWORKS})
    return policy, compile_policy(policy, inventory, lambda found: fixed).rules[IPV4]


@pytest.mark.parametrize(
    ("options", "there"),
    [
        ({}, True),
        ({"destination_port": ["80", "8080"]}, True),
        ({"destination_port": ["8000:9000"]}, True),
        ({"destination_port": None}, True),
        ({"protocol": "all", "destination_port": None}, True),
        ({"destination_port": ["81"]}, False),
        ({"protocol": "udp", "destination_port": ["8080"]}, False),
        ({"verdict": "drop"}, False),
        ({"verdict": "none"}, False),
    ],
)
@pytest.mark.parametrize("fixed", [(), (published(9000),)], ids=["not published", "published"])
def test_two_otherwises_that_differ_are_found(
    fixed: t.Tuple[Binding, ...], options: t.Dict[str, t.Any], there: bool
) -> None:
    policy, rules = otherwise("first", "drop", fixed)
    _other, others = otherwise("second", **{"verdict": "return", "fixed": fixed, **options})
    found = conflict(policy, rules, others)
    assert (found is not None) == there
    if found is not None:
        assert "same endpoint and port first says drop and second says return" in found
        assert "quaywall:second" in found


@pytest.mark.parametrize("fixed", [(), (published(9000),)], ids=["not published", "published"])
def test_a_network_and_a_container_on_it_can_disagree(fixed: t.Tuple[Binding, ...]) -> None:
    policy, rules = otherwise("first", "return", fixed)
    _other, others = otherwise("second", "drop", container=None, network="bridge")
    assert conflict(policy, rules, others) is not None
    _other, others = otherwise("second", "drop", container=None, network="app-net")
    assert conflict(policy, rules, others) is None


def test_two_published_ports_on_their_own_addresses_do_not_disagree() -> None:
    options = {"container": None, "destination_port": None, "published_port": "53"}
    policy, rules = otherwise("first", "drop", **options, published_address="192.0.2.1")
    other = otherwise("second", "reject", **options, published_address="192.0.2.2")[1]
    assert conflict(policy, rules, other) is None
    assert conflict(policy, rules, otherwise("second", "reject", **options)[1]) is not None


def test_a_policy_is_in_no_conflict_with_itself() -> None:
    policy, rules = otherwise("first", "drop")
    _old, old = otherwise("first", "return")
    assert conflict(policy, rules, old) is None


def test_log_is_no_otherwise() -> None:
    policy, rules = otherwise("first", "drop", log={})
    _other, others = otherwise("second", "drop", log={})
    assert conflict(policy, rules, others) is None
    assert conflict(policy, rules, otherwise("second", "reject", log={})[1]) is not None


_CONFLICT_TARGETS: t.Tuple[t.Dict[str, t.Any], ...] = (
    {"container": "one"},
    {"container": "two"},
    {"container": "both"},
    {"labels": {"tier": "web"}},
    {"network": "bridge"},
    {"network": "dual-net"},
    {"destination": "172.17.0.2"},
    {"destination": "172.17.0.0/29"},
    {"destination": "172.31.0.7"},
    {"destination": "fd00:31::2"},
    {"destination": "fd00:31::/120"},
    {"published_port": "9000"},
    {"published_port": "9000:9001"},
    {"published_port": "9001", "published_address": "192.0.2.1"},
    {"published_port": "9001", "published_address": "192.0.2.2"},
)
_CONFLICT_INVENTORY = Inventory(
    (
        container("one", {"bridge": ("172.17.0.2",)}, labels={"tier": "web"}),
        container("two", {"bridge": ("172.17.0.3",)}, labels={"tier": "web"}),
        container("both", {"bridge": ("172.17.0.4",), "dual-net": ("172.31.0.2", "fd00:31::2")}),
    ),
    {network.name: network for network in NETWORKS},
)
_CONFLICT_BINDINGS = {
    "one": (published(9000),),
    "two": (published(9001, 80), published(9001, 81, "udp")),
    "both": (published(9002, address="192.0.2.1"), published(9003, 8081)),
}


def _conflict_pool() -> t.List[t.Tuple[Policy, t.Dict[str, t.Tuple[Rule, ...]]]]:
    chance = random.Random(20261123)
    found = []
    while len(found) < 400:
        options: t.Dict[str, t.Any] = {
            "name": "p%d" % len(found),
            "source": ["203.0.113.10", "2001:db8::1"],
            "action": chance.choice(("accept", "return", "drop")),
            "otherwise": chance.choice(("drop", "reject", "return")),
            "match": chance.choice((None, None, "address", "published_port")),
            "same_network": chance.choice(("allow", "filter")),
            "protocol": chance.choice(("tcp", "tcp", "udp", "all")),
            "log": chance.choice((None, {})),
            **chance.choice(_CONFLICT_TARGETS),
        }
        if options["otherwise"] == "return":
            options["log"] = None if options["action"] != "drop" else options["log"]
        if options["protocol"] != "all" and "published_port" not in options:
            options["destination_port"] = chance.choice((None, ["8080"], ["80", "81"], ["8000:8100"]))
        try:
            policy = Policy.from_options(options)
            routes = (BridgeRoute(ipaddress.ip_network("172.17.0.0/16"), "docker0"),)
            made = compile_policy(policy, _CONFLICT_INVENTORY, lambda c: _CONFLICT_BINDINGS[c.name], routes, True)
        except PolicyError:
            continue
        found.append((policy, dict(made.rules)))
    return found


_CONFLICT_POOL = _conflict_pool()


@given(st.lists(st.integers(0, len(_CONFLICT_POOL) - 1), max_size=7, unique=True))
def test_the_index_of_all_conflicts_finds_what_all_pairs_find(
    numbers: t.List[int],
) -> None:
    found = [_CONFLICT_POOL[number] for number in numbers]
    for family in (IPV4, IPV6):
        rules = [rule for _policy, made in found for rule in made.get(family, ())]
        pairs = [conflict(policy, made.get(family, ()), rules) for policy, made in found]
        said = first_conflict(rules)
        assert (said is None) == (not any(pairs))
        if said is not None:
            # What is told is a pair that disagrees.
            named = {policy.name: (policy, made.get(family, ())) for policy, made in found}
            (one, mine), (_two, others) = (named[said.split(" ")[index]] for index in (1, 3))
            assert conflict(one, mine, others) is not None


def test_the_pool_of_policies_has_conflicts_of_every_kind() -> None:
    """Else the law above would prove nothing."""
    kinds = set()
    for one_policy, one_rules in _CONFLICT_POOL[:120]:
        for two_policy, two_rules in _CONFLICT_POOL[120:240]:
            if conflict(one_policy, one_rules.get(IPV4, ()), two_rules.get(IPV4, ())) is not None:
                kinds.add(tuple(sorted((one_policy.target, two_policy.target))))
    assert {
        ("container", "container"), ("container", "labels"), ("container", "network"), ("container", "published_port"),
        ("container", "destination"), ("destination", "network"), ("published_port", "published_port"),
        ("destination", "destination"), ("labels", "published_port"),
    } <= kinds  # fmt: skip


# Long lists of sources -----------------------------------------------------------------------------------------------


def test_sources_above_the_threshold_are_a_set() -> None:
    given = {**EXAMPLE, "source": ["203.0.113.%d" % number for number in range(4)] + ["2001:db8::/32"]}
    found = compiled({**given, "ipset_threshold": 3})
    # Of `echo -n admin-ui | sha256sum`.
    name = "quaywall-fd61a95cd67c5bb4-4"
    assert dict(found.sets) == {name: frozenset("203.0.113.%d" % number for number in range(4))}
    assert (
        texts(found)[0]
        == "-d 172.17.0.10/32 ! -i docker0 -p tcp -m tcp --dport 8080 -m set --match-set %s src -j ACCEPT" % name
    )
    assert dict(compiled({**given, "ipset_threshold": 4}).sets) == {}
    assert dict(compiled({**given, "ipset_threshold": 0}).sets) == {}
    assert dict(compiled(given).sets) == {}


@pytest.mark.parametrize("everybody", ["0.0.0.0/0", "203.0.113.7/0"])
def test_everybody_in_a_long_list_needs_no_set(everybody: str) -> None:
    given = {**EXAMPLE, "source": ["203.0.113.1", "203.0.113.2", everybody], "ipset_threshold": 2}
    found = compiled(given)
    head = "-d 172.17.0.10/32 ! -i docker0 -p tcp -m tcp --dport 8080 -j "
    assert texts(found) == [head + "ACCEPT", head + "DROP"]
    assert dict(found.sets) == {}


def test_each_family_counts_its_own_sources() -> None:
    given = {"container": "dual", "action": "accept", "source": ["203.0.113.1", "2001:db8::1", "2001:db8::/64", "::/1"]}
    dual = container("dual", {"dual-net": ("172.31.0.2", "fd00:31::2")})
    found = compiled({**given, "ipset_threshold": 2}, dual)
    assert [name[-2:] for name in found.sets] == ["-6"]
    assert set(*found.sets.values()) == {"2001:db8::1", "2001:db8::/64", "::/1"}
    everybody = compiled({**given, "source": [*given["source"], "::/0"], "ipset_threshold": 2}, dual)
    assert dict(everybody.sets) == {}


def test_a_denied_set_spares_the_own_network() -> None:
    given = {"action": "drop", "source": ["172.17.0.9", "203.0.113.2"], "in_interface": "docker+", "ipset_threshold": 1}
    found = compiled({**given, "container": "admin"})
    (rule,) = texts(found)
    assert rule.startswith("! -s 172.17.0.0/16 -d 172.17.0.10/32 -i docker+ -p tcp -m set --match-set quaywall-")


# Laws ----------------------------------------------------------------------------------------------------------------


def _addresses(networks: t.Sequence[str]) -> t.Dict[str, t.Tuple[str, ...]]:
    known = {
        "bridge": ("172.17.0.10",),
        "app-net": ("172.30.0.2",),
        "dual-net": ("172.31.0.3", "fd00:31::3"),
        "lan": ("192.0.2.9",),
    }
    return {name: known[name] for name in networks}


bindings = st.lists(
    st.builds(
        Binding,
        st.sampled_from(("tcp", "udp")),
        st.sampled_from((53, 80, 443, 8080, 8081)),
        st.integers(1, 65535),
        st.sampled_from(("", "", "192.0.2.1", "127.0.0.1", "2001:db8::1")),
        st.just(True),
    ),
    max_size=4,
    unique=True,
).map(tuple)

hosts = st.builds(
    lambda networks, current, running: container(
        networks=_addresses(networks) if running else dict.fromkeys(networks, ()),
        current=tuple(item._replace(fixed=False) for item in current),
        running=running,
    ),
    st.lists(st.sampled_from(("bridge", "app-net", "dual-net", "lan")), min_size=1, max_size=3, unique=True),
    bindings,
    st.booleans(),
)

targets = st.one_of(
    st.just({"container": "admin"}),
    st.just({"container": "admin"}),
    st.sampled_from(("bridge", "app-net", "dual-net")).map(lambda name: {"network": name}),
    st.sampled_from(("172.17.0.0/16", "10.0.0.5", "fd00:31::3", "172.16.0.0/12")).map(lambda ip: {"destination": ip}),
    st.sampled_from(("80", "9000:9010")).map(lambda port: {"published_port": port}),
    st.just({"published_port": "80", "published_address": "192.0.2.1"}),
)

some_options = st.fixed_dictionaries(
    {
        "action": st.sampled_from(("accept", "return", "drop", "reject")),
        "otherwise": st.sampled_from((None, None, "drop", "reject", "return", "none")),
        "source": st.none()
        | st.lists(
            st.sampled_from(
                ("203.0.113.10", "172.16.0.0/12", "0.0.0.0/0", "2001:db8::/32", "fd00::/16", "::/0", "::ffff:10.0.0.1")
            ),
            min_size=1,
            max_size=3,
        ),
        "protocol": st.sampled_from(("tcp", "tcp", "udp", "sctp", "icmp", "all")),
        "destination_port": st.none()
        | st.lists(st.sampled_from(("53", "80", "443", "8000:8100", "1:65535")), min_size=1, max_size=4),
        "in_interface": st.sampled_from((None, None, "eth0", "!eth0", "docker0", "!docker0", "br+")),
        "same_network": st.sampled_from(("allow", "filter")),
        "match": st.sampled_from(("both", "both", "address", "published_port")),
        "log": st.sampled_from((None, None, {}, {"prefix": 'a "b" \\', "limit": "90/minute"})),
        "priority": st.sampled_from((500, 0, 999)),
        "ip_version": st.sampled_from(("auto", "auto", "ipv4", "ipv6", "both")),
    }
)

ROUTES = (BridgeRoute(ipaddress.ip_network("172.17.0.0/16"), "docker0"),)


def attempt(
    target: t.Dict[str, t.Any],
    options: t.Dict[str, t.Any],
    host: Container,
    fixed: t.Tuple[Binding, ...],
    ip6_dnat: bool = False,
) -> Compiled:
    try:
        return compiled({**options, **target}, host, fixed=fixed, routes=ROUTES, ip6_dnat=ip6_dnat)
    except PolicyError as error:
        one_sentence(error)
        assume(False)
        raise


@given(targets, some_options, hosts, bindings, st.booleans())
def test_laws_of_every_rule(
    target: t.Dict[str, t.Any],
    options: t.Dict[str, t.Any],
    host: Container,
    fixed: t.Tuple[Binding, ...],
    ip6_dnat: bool,
) -> None:
    found = attempt(target, options, host, fixed, ip6_dnat)
    for family, rules in found.rules.items():
        assert len(set(rules)) == len(rules)
        for rule in rules:
            text = rule.render()
            # It is the same rule when it is read back, in the form that iptables prints: the kernel shows no change.
            assert parse(text, family) == rule
            assert normalise(rule, family).render() == text
            assert rule.understood
            assert "\n" not in text
            # Never an unscoped port rule.
            scope = [rule.value(name) for name in ("destination", "out_interface", "ctorigdstport")]
            assert any(scope), text
            mark = mark_of(rule)
            assert mark is not None
            assert (mark.policy, mark.priority) == ("admin-ui", options["priority"])
            # One incoming interface and one port match, or iptables refuses the rule.
            assert text.count("-i ") <= 1
            assert slots(rule) <= 15
            # Each family has its own addresses.
            for name in ("source", "destination", "ctorigdst"):
                item = rule.get(name)
                assert item is None or (":" in item.value) == (family == IPV6)
            # A match by host port is one of a connection's first direction, and only after DNAT.
            if rule.value("ctorigdstport"):
                assert (rule.value("ctstate"), rule.value("ctdir")) == ("DNAT", "ORIGINAL")


@given(some_options, hosts, bindings)
def test_an_allow_for_a_published_container_says_address_and_host_port(
    options: t.Dict[str, t.Any], host: Container, fixed: t.Tuple[Binding, ...]
) -> None:
    """Or an old allow opens another container that gets the address, or the port (kernel-facts 6: 156 accepted)."""
    found = attempt({"container": "admin"}, {**options, "match": "both"}, host, fixed)
    for family, rules in found.rules.items():
        for rule in rules:
            if rule.target not in ("ACCEPT", "RETURN"):
                continue
            assert rule.value("destination"), rule.render()
            ports = {item.container_port for item in (*fixed, *host.current_ports) if item.serves(family)}
            exact = rule.value("destination_port")
            if rule.value("protocol") in ("tcp", "udp") and exact and ":" not in exact and int(exact) in ports:
                protocols = {
                    item.protocol
                    for item in (*fixed, *host.current_ports)
                    if item.serves(family) and item.container_port == int(exact)
                }
                assert rule.value("ctorigdstport") or rule.value("protocol") not in protocols, rule.render()


@given(some_options, hosts, bindings)
def test_what_is_denied_is_denied_on_every_endpoint(
    options: t.Dict[str, t.Any], host: Container, fixed: t.Tuple[Binding, ...]
) -> None:
    """Fail closed: no address of the container is left out, whatever is published."""
    found = attempt(
        {"container": "admin"}, {**options, "match": "both", "otherwise": "drop", "in_interface": "eth0"}, host, fixed
    )
    for family, rules in found.rules.items():
        last = [rule for rule in rules if rule.target == "DROP" and t.cast(Mark, mark_of(rule)).section == OTHERWISE]
        denied = {rule.value("destination") for rule in last}
        for endpoint in found.endpoints:
            if endpoint.family == family:
                assert "%s/%d" % (endpoint.address, 32 if family == IPV4 else 128) in denied


@given(targets, some_options, hosts, bindings)
def test_the_same_wish_makes_the_same_rules(
    target: t.Dict[str, t.Any], options: t.Dict[str, t.Any], host: Container, fixed: t.Tuple[Binding, ...]
) -> None:
    """Docker lists ports in any order; rules that change places would be a change. Fixed bindings come sorted."""
    fixed = tuple(sorted(fixed))
    found = attempt(target, options, host, fixed)
    turned = host._replace(current_ports=host.current_ports[::-1])
    assert attempt(target, options, turned, fixed).rules == found.rules


# Ways in that a person would not think of ----------------------------------------------------------------------------


def test_a_host_port_on_ipv6_is_guarded_before_the_container_has_an_ipv6_address() -> None:
    """It may join a dual-stack network while it runs; Docker then forwards the port for IPv6 too."""
    found = compiled(EXAMPLE, container(), fixed=(published(9000),), ip6_dnat=True)
    assert texts(found, IPV6) == ["-p tcp %s -j DROP" % DNAT_9000]
    for options in ({"match": "address"}, {"ip_version": "ipv4"}, {"container_network": "bridge"}):
        found = compiled({**EXAMPLE, **options}, container(), fixed=(published(9000),), ip6_dnat=True)
        assert texts(found, IPV6) == []
    assert texts(compiled(EXAMPLE, container(), fixed=(published(9000),)), IPV6) == []


@pytest.mark.parametrize(
    ("options", "addresses", "ip6_dnat", "warned"),
    [
        ({}, ("172.17.0.10",), False, True),
        ({}, ("172.17.0.10",), True, True),
        ({}, ("172.17.0.10", "fd00::a"), False, True),
        ({}, ("172.17.0.10", "fd00::a"), True, False),
        ({"destination_port": ["81"]}, ("172.17.0.10",), True, False),
        ({"otherwise": "none"}, ("172.17.0.10",), True, False),
    ],
)
def test_what_docker_proxy_serves_on_ipv6_is_said(
    options: t.Dict[str, t.Any], addresses: t.Tuple[str, ...], ip6_dnat: bool, warned: bool
) -> None:
    current = tuple(Binding("tcp", 8080, 9000, address, False) for address in ("0.0.0.0", "::"))
    host = container(networks={"bridge": addresses}, current=current)
    found = compiled({**EXAMPLE, **options}, host, fixed=(published(9000),), ip6_dnat=ip6_dnat)
    assert [("docker-proxy" in text and "9000" in text and "admin" in text) for text in found.warnings] == [
        True
    ] * warned


def test_a_host_port_that_docker_chose_is_said() -> None:
    current = (Binding("tcp", 8080, 32768, "0.0.0.0", False),)
    found = compiled(EXAMPLE, container(current=current))
    assert [("32768" in text and "anew" in text) for text in found.warnings] == [True]
    assert compiled({**EXAMPLE, "match": "address"}, container(current=current)).warnings == ()
    assert compiled({**EXAMPLE, "otherwise": "none"}, container(current=current)).warnings == ()


def test_on_a_routed_network_the_address_is_what_is_allowed() -> None:
    network = Network("routed", "e" * 64, "bridge", "br-eeeeeeeeeeee", False, ("172.28.0.0/24",), frozenset({IPV4}))
    host = container(networks={"routed": ("172.28.0.2",)}, mode="routed")
    host = host._replace(network_ids={"routed": network.id})
    policy = Policy.from_options({"name": "admin-ui", **EXAMPLE})
    found = compile_policy(policy, Inventory((host,), {"routed": network}), lambda item: (published(9000),))
    assert texts(found)[0] == (
        "-s 203.0.113.10/32 -d 172.28.0.2/32 ! -i br-eeeeeeeeeeee -p tcp -m tcp --dport 8080 -j ACCEPT"
    )


def test_container_network_leaves_the_host_port_to_the_other_networks() -> None:
    host = container(networks={"bridge": ("172.17.0.10",), "app-net": ("172.30.0.10",)})
    found = compiled({**EXAMPLE, "container_network": "app-net"}, host, fixed=(published(9000),))
    assert texts(found)[1:] == ["-d 172.30.0.10/32 ! -i br-aaaaaaaaaaaa -p tcp -m tcp --dport 8080 -j DROP"]
    with pytest.raises(PolicyError, match="container_network"):
        compiled({**EXAMPLE, "container_network": "app-net", "match": "published_port"}, host)


def test_one_that_cannot_be_guarded_does_not_keep_the_others_unguarded() -> None:
    good = container("web-1", labels={"app": "shop"})
    bad = container("web-2", {"host": ()}, mode="host", labels={"app": "shop"})
    options = {"labels": {"app": "shop"}, "action": "drop"}
    found = compiled(options, good, bad)
    assert texts(found) == ["-d 172.17.0.10/32 ! -i docker0 -p tcp -j DROP"]
    assert [("web-2" in text and "INPUT" in text) for text in found.warnings] == [True]
    with pytest.raises(PolicyError, match="web-2"):
        compiled(options, bad)
