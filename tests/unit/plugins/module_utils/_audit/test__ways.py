# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The ways that a rule in DOCKER-USER leaves open: who is named, and who is not on a host that has none."""

from __future__ import annotations

import shlex
import typing as t

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import Survey
from ansible_collections.quaywall.docker.plugins.module_utils._audit._ways import (
    direct_routing,
    exposed,
    ipv6_gap,
    proxy_bypass,
)
from ansible_collections.quaywall.docker.plugins.module_utils._rule import quote
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import from_json
from ansible_collections.quaywall.docker.tests.unit.snapshots import (
    CAPTURES,
    IPV4,
    IPV6,
    Box,
    Document,
    Net,
    captured,
    edited,
    fixture,
    host,
    with_rules,
    without_rules,
)

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import Finding

Check = t.Callable[[Survey], t.Iterator["Finding"]]

BOXES = (Box("shop", "8080:80"), Box("admin", "9000:8080"))
DUAL = Net("dual", "172.40.0.0/24", "fd00:40::/64")
DUAL_BOXES = (Box("shop", "8080:80", network="dual"), Box("admin", "9000:8080", network="dual"))
#: Closed by host port, by address, for an interface; and closed to most, not to all.
BY_PORT = "-p tcp -m conntrack --ctstate DNAT --ctorigdstport 8080 --ctdir ORIGINAL -j DROP"
EVERYTHING = "-i eth0 -j DROP"
BAN = "-s 198.51.100.0/24 -j DROP"


def found(check: Check, document: Document) -> t.List[Finding]:
    return list(check(Survey(from_json(document))))


def only(check: Check, document: Document) -> Finding:
    (finding,) = found(check, document)
    return finding


def names(finding: Finding) -> t.Set[t.Tuple[str, str]]:
    return {(item.container, item.published) for item in finding.affected}


def fixed(document: Document, finding: Finding) -> Document:
    """The host after a fix's commands."""
    assert finding.fix is not None
    assert len(finding.fix.tasks) > 0
    for line in finding.fix.commands:
        program, wait, seconds, *words = shlex.split(line)
        assert (wait, seconds) == ("-w", "10")
        table = "filter"
        if words[0] == "-t":
            table, words = words[1], words[2:]
        text = " ".join(quote(word) if words[at - 1] == "--comment" else word for at, word in enumerate(words))
        document = with_rules(document, IPV6 if program == "ip6tables" else IPV4, table, [text])
    return document


def dual(*rules: str, rules6: t.Sequence[str] = (), engine: str = "28.5", **more: t.Any) -> Document:
    return host(engine, DUAL_BOXES, rules, rules6, [DUAL], **more)


def without_ipv6(document: Document) -> Document:
    """The host has link-local addresses of IPv6 at most."""
    interfaces = [
        {**item, "addresses": [text for text in item["addresses"] if not text.startswith("2001:")]}
        for item in document["interfaces"]
    ]
    return edited(document, interfaces=interfaces)


# ipv6_gap --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "subject", "ports"),
    [
        ([BY_PORT], "Rule 1 of DOCKER-USER", {("shop", "8080->80/tcp")}),
        (["-s 203.0.113.9/32 -j RETURN", BY_PORT], "Rule 2 of DOCKER-USER", {("shop", "8080->80/tcp")}),
        (["-p tcp --dport 80:8080 -j REJECT"], "Rule 1", {("shop", "8080->80/tcp"), ("admin", "9000->8080/tcp")}),
        ([EVERYTHING], "Rule 1", {("shop", "8080->80/tcp"), ("admin", "9000->8080/tcp")}),
        (
            [BY_PORT.replace("-j", '-m comment --comment "quaywall:shop" -j')],
            "Policy shop",
            {("shop", "8080->80/tcp")},
        ),
    ],
)
def test_a_port_that_is_closed_on_ipv4_only(rules: t.List[str], subject: str, ports: t.Set[t.Tuple[str, str]]) -> None:
    finding = only(ipv6_gap, dual(*rules))
    assert (finding.severity, finding.certainty) == ("high", "definite")
    assert finding.message.startswith(subject)
    assert names(finding) == ports
    assert {item.peers for item in finding.affected} == {"anyone"}
    assert {item.address[:7] for item in finding.affected} == {"fd00:40"}
    repaired = fixed(dual(*rules), finding)
    assert not found(ipv6_gap, repaired)
    assert finding.fix is not None
    assert set(finding.fix.loses) == {"anyone: %s (%s) over IPv6" % port for port in ports}


def test_rules_of_one_policy_are_one_finding() -> None:
    comment = '-m comment --comment "quaywall:shop" -j DROP'
    rules = [BY_PORT.replace("-j DROP", comment), "-d 172.40.0.3/32 ! -i br-x -p tcp --dport 8080 " + comment]
    finding = only(ipv6_gap, dual(*rules))
    assert names(finding) == {("shop", "8080->80/tcp"), ("admin", "9000->8080/tcp")}
    assert finding.place is not None
    assert finding.place.position == 0
    assert "shop" in finding.subject


@pytest.mark.parametrize(
    "document",
    [
        dual(BAN),
        dual(EVERYTHING, rules6=[EVERYTHING]),
        # It would be closed if the jump were there: that is said of the jump.
        without_rules(dual(EVERYTHING, rules6=[EVERYTHING]), IPV6, lambda line: line == "-A FORWARD -j DOCKER-USER"),
        with_rules(dual(EVERYTHING), IPV6, "filter", ["-I FORWARD 1 -i eth0 -j DROP"]),
        with_rules(dual(EVERYTHING), IPV6, "raw", ["-A PREROUTING -i eth0 -j DROP"]),
        host("28.5", BOXES, [EVERYTHING]),
        dual(EVERYTHING, engine="26.1"),
        host("28.5", [Box("shop", "127.0.0.1:8080:80", "[::1]:8080:80", network="dual")], [EVERYTHING], (), [DUAL]),
    ],
    ids=["ban", "both", "no jump", "FORWARD", "raw", "IPv4 only", "no ip6tables", "loopback"],
)
def test_no_gap(document: Document) -> None:
    assert not found(ipv6_gap, document)


def test_a_gap_on_one_interface() -> None:
    document = dual("-i eth0 -j DROP", rules6=["-i eth1 -j DROP"])
    document["interfaces"].append({"name": "eth1", "kind": "", "up": True, "master": "", "addresses": []})
    assert names(only(ipv6_gap, document)) == {("shop", "8080->80/tcp"), ("admin", "9000->8080/tcp")}
    assert not found(ipv6_gap, with_rules(document, IPV6, "filter", ["-A DOCKER-USER -i eth0 -j DROP"]))


@pytest.mark.parametrize(
    ("check", "document"), [(ipv6_gap, dual(EVERYTHING)), (proxy_bypass, host("28.5", BOXES, [EVERYTHING]))]
)
def test_a_host_that_nobody_reaches_over_ipv6(check: Check, document: Document) -> None:
    finding = only(check, without_ipv6(document))
    assert (finding.severity, finding.certainty) == ("info", "possible")
    unknown = only(check, edited(document, interfaces=None))
    assert (unknown.severity, unknown.certainty) == ("high", "possible")


# proxy_bypass ----------------------------------------------------------------------------------------------------


def test_docker_proxy_serves_what_is_closed() -> None:
    """The container sees the bridge's gateway as its client (kernel: OPEN smtp 172.17.0.1)."""
    document = fixture("mailu-2630", "v6-proxy")
    finding = only(proxy_bypass, document)
    assert (finding.severity, finding.certainty) == ("high", "definite")
    assert [(item.container, item.published, item.traffic, item.peers) for item in finding.affected] == [
        ("c1", "25->25/tcp", "docker-proxy", "anyone")
    ]
    assert not found(proxy_bypass, fixed(document, finding))
    assert finding.fix is not None
    assert finding.fix.loses == ("anyone: c1 (25->25/tcp) over IPv6",)


INPUT = "-A INPUT -i eth0 -p tcp -m tcp --dport 8080 -j DROP"


@pytest.mark.parametrize(
    "document",
    [
        host("28.5", BOXES),
        host("28.5", BOXES, [BAN]),
        host("28.5", BOXES, [EVERYTHING], options={"userland-proxy": False}),
        host("28.5", [Box("shop", "0.0.0.0:8080:80")], [EVERYTHING]),
        host("28.5", [Box("shop", "[::1]:8080:80")], [EVERYTHING]),
        dual(EVERYTHING, rules6=[EVERYTHING]),
        with_rules(host("28.5", BOXES, [BY_PORT]), IPV6, "filter", [INPUT]),
        with_rules(host("26.1", BOXES, [BY_PORT]), IPV6, "filter", ["-P INPUT DROP"]),
        with_rules(host("26.1", BOXES, [BY_PORT]), IPV6, "filter", ["-P INPUT DROP"], variant="legacy"),
        with_rules(host("28.5", BOXES, [BY_PORT]), IPV6, "raw", ["-A PREROUTING -p tcp --dport 8080 -j DROP"]),
        host("29.7", BOXES, backend="nftables"),
    ],
    ids=["open", "ban", "no proxy", "0.0.0.0", "::1", "DNAT", "INPUT", "policy", "legacy", "raw", "nft"],
)
def test_no_bypass(document: Document) -> None:
    assert not found(proxy_bypass, document)


def test_only_what_is_closed_and_served() -> None:
    finding = only(proxy_bypass, with_rules(host("26.1", BOXES, [EVERYTHING]), IPV6, "filter", [INPUT]))
    assert names(finding) == {("admin", "9000->8080/tcp")}


@pytest.mark.parametrize("engine", ["20.10", "26.1", "28.5", "29.7"])
def test_a_port_without_its_dnat(engine: str) -> None:
    """A rule of Docker's nat table was taken out: docker-proxy takes the connection, in INPUT."""
    document = without_rules(
        host(engine, [Box("shop", "0.0.0.0:8080:80"), Box("admin", "0.0.0.0:9000:8080")], [EVERYTHING]),
        IPV4,
        lambda line: "--dport 8080 -j DNAT" in line,
        "nat",
    )
    finding = only(proxy_bypass, document)
    assert names(finding) == {("shop", "8080->80/tcp")}
    assert not found(proxy_bypass, fixed(document, finding))


def test_what_is_not_known_makes_it_possible() -> None:
    document = host("28.5", BOXES, [BY_PORT])
    finding = only(proxy_bypass, edited(document, proxies=None))
    assert finding.reasons == ("whether docker-proxy serves the port",)
    chain = {"family": "inet", "table": "fw", "chain": "in", "hook": "input", "priority": 0, "policy": "drop"}
    chains = [{**chain, "rules": 1, "stops": True}]
    finding = only(proxy_bypass, edited(document, nft={"base_chains": chains}))
    assert finding.reasons == ("what nftables' chain in of table inet fw stops",)
    rule = "-A INPUT -p tcp --dport 8080 -m limit --limit 5/min -j DROP"
    finding = only(proxy_bypass, with_rules(document, IPV6, "filter", [rule]))
    assert finding.reasons == ("the rate limit",)


# direct_routing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "ports"),
    [
        (host("26.1", [Box("nginx", "127.0.0.1:8080:80")]), {("nginx", "127.0.0.1:8080->80/tcp")}),
        (
            host("28.5", [Box("nginx", "127.0.0.1:8080:80")], options={"allow-direct-routing": True}),
            {("nginx", "127.0.0.1:8080->80/tcp")},
        ),
        (host("26.1", BOXES, [BY_PORT]), {("shop", "8080->80/tcp")}),
        (host("26.1", BOXES, forward_policy="ACCEPT"), {("shop", ""), ("admin", "")}),
        (host("20.10", [Box("db", "5432")], forward_policy="ACCEPT"), {("db", "")}),
    ],
    ids=["26.1", "allowed", "by host port", "policy", "unpublished"],
)
def test_reached_at_its_own_address(document: Document, ports: t.Set[t.Tuple[str, str]]) -> None:
    finding = only(direct_routing, document)
    assert (finding.severity, finding.certainty) == ("medium", "definite")
    assert names(finding) == ports
    assert {item.traffic for item in finding.affected} == {"direct routing"}
    assert not found(direct_routing, fixed(document, finding))


def test_a_port_that_is_routed_in_ipv6_is_a_gap_too() -> None:
    """Gateway mode routed: no host port and no DNAT, the container's own address is asked for."""
    boxes, nets = [Box("a", "80:80", network="r")], [Net("r", "172.20.0.0/16", "fd00:20::/64", gateway_mode="routed")]
    rule = "-d 172.20.0.2/32 -p tcp -m tcp --dport 80 -j DROP"
    finding = only(ipv6_gap, host("28.5", boxes, [rule], networks=nets))
    assert "a (80/tcp)" in finding.message
    assert "the same port is reached at the container's own address too" in finding.message
    assert finding.fix is not None
    (task,) = finding.fix.tasks
    assert task["quaywall.docker.docker_user_rule"]["container"] == "a"
    closed = ["-d fd00:20::2/128 -p tcp -m tcp --dport 80 -j DROP"]
    assert not found(ipv6_gap, host("28.5", boxes, [rule], closed, networks=nets))


@pytest.mark.parametrize(
    "document",
    [
        host("20.10", BOXES),
        host("26.1", [*BOXES, Box("db", "5432")]),
        host("28.5", [Box("nginx", "127.0.0.1:8080:80")]),
        host("28.5", BOXES, [BY_PORT], forward_policy="ACCEPT"),
        host("29.7", [*BOXES, Box("db", "5432")], forward_policy="ACCEPT"),
        host("26.1", BOXES, ["-d 172.17.0.2 ! -i docker0 -p tcp --dport 80 -j DROP"]),
        host("26.1", BOXES, [EVERYTHING], forward_policy="ACCEPT"),
        host("26.1", [Box("nginx", "127.0.0.1:8080:80", "8080:80")]),
        host("26.1", [Box("nginx", "127.0.0.1:8080:80")], [EVERYTHING]),
        host("26.1", BOXES, [BY_PORT], sysctls={"net.ipv4.ip_forward": "0"}),
        host("28.5", [Box("a", "80:80", "81", network="r")], networks=[Net("r", gateway_mode="routed")]),
        host("29.7", BOXES, backend="nftables"),
        host("26.1", BOXES, options={"iptables": False}),
    ],
)
def test_not_reached_or_published_for_all(document: Document) -> None:
    assert not found(direct_routing, document)


@pytest.mark.parametrize(
    ("table", "rule", "stopped"),
    [
        # In the table raw no connection was looked up: a packet is of none, and no question about one is answered.
        ("raw", "-m conntrack --ctstate NEW -j DROP", False),
        ("raw", "-m conntrack ! --ctstate DNAT -j DROP", True),
        ("raw", "-m conntrack --ctstate INVALID -j DROP", True),
        ("mangle", "-m conntrack --ctstate NEW -j DROP", True),
        ("mangle", "-m conntrack --ctstate INVALID -j DROP", False),
    ],
)
def test_what_prerouting_sees(table: str, rule: str, stopped: bool) -> None:
    document = host("26.1", [Box("nginx", "127.0.0.1:8080:80")])
    assert bool(found(direct_routing, with_rules(document, IPV4, table, ["-A PREROUTING " + rule]))) is not stopped


# A neighbour's packet for 127.0.0.1:8081 passes FORWARD on a real kernel in both: the new layout's has no drop for it.
@pytest.mark.parametrize(("variant", "spoofed"), [("old", "let in too"), ("new", "is let in: DNAT")])
def test_a_port_for_the_host_alone(variant: str, spoofed: str) -> None:
    document = fixture("moby-45610", variant)
    finding = only(direct_routing, document)
    assert names(finding) == {("c2", "127.0.0.1:8081->80/tcp")}
    assert spoofed in finding.message
    assert ("own address" in finding.message) == (variant == "old")
    assert not found(direct_routing, fixed(document, finding))


@pytest.mark.parametrize("variant", ["old-fwd-drop", "new-fwd-drop"])
def test_the_policy_keeps_neighbours_out(variant: str) -> None:
    assert not found(direct_routing, fixture("moby-34164", variant))


@pytest.mark.parametrize("name", CAPTURES)
def test_captured_hosts_have_one_port_for_the_host_alone(name: str) -> None:
    """Engine 28 and later guard it."""
    findings = [item for item in found(direct_routing, captured(name)) if item.severity != "info"]
    expected = [{("local-only", "127.0.0.1:8081->8080/tcp")}] if name < "docker-28" else []
    assert [names(item) for item in findings] == expected
    assert not found(ipv6_gap, captured(name))
    assert not found(proxy_bypass, captured(name))


@pytest.mark.parametrize(
    ("subnet", "rules", "severity"),
    [("fd00:40::/64", [], "info"), ("2a00:40::/64", [], "medium"), ("fd00:40::/64", [BY_PORT], "medium")],
    ids=["private", "global", "guarded"],
)
def test_ipv6_without_rules_of_docker(subnet: str, rules: t.List[str], severity: str) -> None:
    nets = [Net("dual", "172.40.0.0/24", subnet)]
    document = host("20.10", [DUAL_BOXES[0]], [*rules, "-d 172.40.0.2 -j DROP"][: 2 * len(rules)], (), nets)
    finding = only(direct_routing, document)
    assert finding.place is not None
    assert (finding.place.family, finding.severity) == (IPV6, severity)
    # Replies to what containers ask outside carry their addresses, so no rule for these is offered.
    assert finding.fix is None
    assert not found(direct_routing, edited(document, sysctls={"net.ipv6.conf.all.forwarding": "0"}))


def test_a_network_that_is_to_be_unprotected() -> None:
    nets = [Net("open", "172.41.0.0/24", gateway_mode="nat-unprotected")]
    finding = only(direct_routing, host("28.5", [Box("a", "80:80", network="open")], networks=nets))
    assert finding.severity == "info"
    shut = only(direct_routing, host("28.5", [Box("a", "127.0.0.1:80:80", network="open")], networks=nets))
    # The network was made to be reached so; a rule that closes the port was not.
    assert shut.severity == "info"
    close = "-p tcp -m conntrack --ctstate DNAT --ctorigdstport 80 --ctdir ORIGINAL -j DROP"
    guarded = only(
        direct_routing, host("28.5", [Box("a", "80:80", network="open")], networks=nets, docker_user=[close])
    )
    assert guarded.severity == "medium"


def test_without_sysctls_it_is_possible() -> None:
    document = edited(host("26.1", [Box("nginx", "127.0.0.1:8080:80")]), sysctls=None)
    assert only(direct_routing, document).reasons == ("whether the host forwards packets (net.ipv4.ip_forward)",)


# exposed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["20.10", "26.1", "28.5", "29.7"])
def test_what_no_rule_is_about(engine: str) -> None:
    boxes = [*BOXES, Box("own", "127.0.0.1:1:1"), Box("db", "5432")]
    finding = only(exposed, host(engine, boxes))
    assert finding.severity == "info"
    assert [(item.container, item.published, item.peers) for item in finding.affected] == [
        ("admin", "9000->8080/tcp", "anyone over IPv4 and IPv6"),
        ("shop", "8080->80/tcp", "anyone over IPv4 and IPv6"),
    ]
    assert finding.message.startswith("2 ports of 2 containers are published to anyone")


@pytest.mark.parametrize(
    ("rules", "ports"),
    [
        ([EVERYTHING], set()),
        ([BY_PORT], {"admin"}),
        (["-d 172.17.0.2 -j ACCEPT"], {"admin"}),
        ([BAN, "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"], {"admin", "shop"}),
        (["-s 10.0.0.0/8 -j RETURN", "-j RETURN", EVERYTHING], {"admin", "shop"}),
    ],
)
def test_a_rule_says_something(rules: t.List[str], ports: t.Set[str]) -> None:
    boxes = [Box("shop", "0.0.0.0:8080:80"), Box("admin", "0.0.0.0:9000:8080")]
    assert {item.container for one in found(exposed, host("26.1", boxes, rules)) for item in one.affected} == ports


def test_many_ports_are_one_finding() -> None:
    boxes = [Box("box%d" % number, "%d:80" % (8000 + number)) for number in range(200)]
    finding = only(exposed, host("28.5", boxes))
    assert len(finding.affected) == 200
    assert len(finding.message) < 500
