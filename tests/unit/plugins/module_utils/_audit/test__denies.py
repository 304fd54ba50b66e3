# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Denies by port alone, far and wide, and by address alone: whom they hit, who was meant, and what the fix does.

Whom a rule hits is known from the facts: DOCKER-USER is read after DNAT, so --dport is the container's port there.
"""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._audit._denies import (
    address_only,
    broad_deny,
    neighbours_cut_off,
    port_only_deny,
)
from ansible_collections.quaywall.docker.tests.unit.audits import Check, fixed, found, hits, names, only
from ansible_collections.quaywall.docker.tests.unit.snapshots import (
    CAPTURES,
    ENGINES,
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

CHECKS: t.Sequence[Check] = (port_only_deny, broad_deny, neighbours_cut_off, address_only)

SHOP = Box("shop", "8080:8080")  # 172.17.0.2
ADMIN = Box("admin", "9000:8080")  # 172.17.0.3
ESTABLISHED = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"

BOTH = [("admin", "9000->8080/tcp", False), ("shop", "8080->8080/tcp", True)]


def pair(*rules: str, engine: str = "28.5", **options: t.Any) -> Document:
    """The design's host: one container publishes 9000:8080, one 8080:8080."""
    return host(engine, [SHOP, ADMIN], rules, **options)


def chained(*lines: str, containers: t.Sequence[Box] = (SHOP, ADMIN)) -> Document:
    return with_rules(host("28.5", containers), IPV4, "filter", lines)


def said(document: Document) -> t.List[t.Tuple[str, str]]:
    return [(finding.check, finding.severity) for check in CHECKS for finding in found(check, document)]


@pytest.mark.parametrize("name", CAPTURES)
def test_captured_hosts(name: str) -> None:
    assert said(captured(name)) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_healthy_hosts(engine: str) -> None:
    assert said(pair(engine=engine)) == []
    assert said(pair(ESTABLISHED, "-s 198.51.100.66 -j DROP", engine=engine)) == []


# port_only_deny ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["20.10", "26.1", "28.5", "29.7"])
def test_a_port_alone_hits_who_was_not_meant(engine: str) -> None:
    finding = only(port_only_deny, pair("-p tcp --dport 8080 -j DROP", engine=engine))
    assert (finding.severity, finding.certainty) == ("critical", "definite")
    assert hits(finding) == BOTH
    assert finding.place is not None
    assert (finding.place.family, finding.place.chain, finding.place.position) == (IPV4, "DOCKER-USER", 1)
    assert finding.place.rule == "-p tcp -m tcp --dport 8080 -j DROP"
    assert "shop (8080->8080/tcp), for which it was meant" in finding.message
    assert "admin (9000->8080/tcp), for which it was not" in finding.message
    assert {item.peers for item in finding.affected if item.published} == {"anyone"}


def test_what_is_routed_has_no_port_of_the_host_s() -> None:
    document = host(
        "28.5",
        [Box("a", "80:80", network="r")],
        ["-p tcp -m tcp --dport 80 -j DROP"],
        networks=[Net("r", gateway_mode="routed")],
    )
    message = only(port_only_deny, document).message
    assert "It stops a (80/tcp), for which it was meant, as the rule names its port;" in message


def test_traffic_between_containers_and_outgoing_connections_are_hit_too() -> None:
    rule = "-p tcp --dport 8080 -j DROP"
    finding = only(port_only_deny, pair(rule))
    assert names(finding, "traffic between containers") == ["admin", "shop"]
    assert names(finding, "outgoing connections") == ["admin", "shop"]
    # Without br_netfilter, neighbours' packets pass no rule; what comes in through eth0 is neither.
    assert names(only(port_only_deny, pair(rule, bridge_nf=False)), "traffic between containers") == []
    finding = only(port_only_deny, pair("-i eth0 " + rule))
    assert {item.traffic for item in finding.affected} == {"published port"}


def test_many_containers_of_a_network_are_said_in_one() -> None:
    boxes = [Box("box%d" % number, network="app") for number in range(8)]
    finding = only(port_only_deny, host("28.5", [*boxes, Box("web", "80:80")], ["-p tcp --dport 80 -j DROP"]))
    assert names(finding, "outgoing connections") == ["8 containers", "web"]


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ("-p tcp --dport 8080", BOTH),
        ("-p tcp --dport 8000:8100", BOTH),
        ("-p tcp -m multiport --dports 22,8080", BOTH),
        # Everything but 9000: admin's host port is spared, its inner port is not.
        ("-p tcp ! --dport 9000", BOTH),
        ("-p tcp -m multiport ! --dports 22,9000", BOTH),
        # Of both ports, one is a host port of each.
        ("-p tcp -m multiport --dports 8080,9000", [(name, port, True) for name, port, _meant in BOTH]),
        # Networks and interfaces name no container.
        ("-d 172.17.0.0/16 -p tcp --dport 8080", BOTH),
        ("-o docker0 -p tcp --dport 8080", BOTH),
        ("-p tcp --dport 8080 -m conntrack --ctstate NEW", BOTH),
    ],
)
def test_ports_of_all_kinds(match: str, expected: t.List[t.Tuple[str, str, bool]]) -> None:
    finding = only(port_only_deny, pair("-i eth0 %s -j REJECT" % match))
    assert hits(finding) == expected
    assert finding.severity == ("high" if all(meant for _name, _port, meant in expected) else "critical")


@pytest.mark.parametrize(
    ("lines", "place"),
    [
        # A chain that only logs and drops is the drop itself, and the jump to it is the rule.
        (
            (":LOGDROP - [0:0]", "-A LOGDROP -m limit --limit 3/min -j LOG", "-A LOGDROP -j DROP"),
            ("DOCKER-USER", 1, "LOGDROP"),
        ),
        ((":MINE - [0:0]", "-A MINE -s 198.51.100.0/24 -j RETURN", "-A MINE -j DROP"), ("MINE", 2, "MINE")),
        (
            (":MINE - [0:0]", ":DEEP - [0:0]", "-A MINE -p tcp -j DEEP", "-A DEEP ! -s 198.51.100.0/24 -j DROP"),
            ("DEEP", 1, "MINE"),
        ),
    ],
)
@pytest.mark.parametrize("jump", ["-j", "-g"])
def test_the_port_may_be_the_jump_s(lines: t.Sequence[str], place: t.Tuple[str, int, str], jump: str) -> None:
    document = chained(*lines, "-A DOCKER-USER -i eth0 -p tcp --dport 8080 %s %s" % (jump, place[2]))
    finding = only(port_only_deny, document)
    assert finding.place is not None
    assert (finding.place.chain, finding.place.position) == place[:2]
    assert hits(finding) == BOTH
    after = fixed(document, finding)
    assert said(after) == []
    assert finding.fix is not None
    peers = "anyone but 198.51.100.0/24" if place[0] != "DOCKER-USER" else "anyone"
    assert (finding.fix.gains, finding.fix.loses) == (("%s: admin (9000->8080/tcp) over IPv4" % peers,), ())


def test_one_chain_for_several_ports() -> None:
    """Each way to the drop has its own port; both jumps go."""
    document = chained(
        ":MINE - [0:0]",
        "-A MINE -s 198.51.100.0/24 -j RETURN",
        "-A MINE -j DROP",
        "-A DOCKER-USER -i eth0 -p tcp --dport 8080 -j MINE",
        "-A DOCKER-USER -i eth0 -p tcp --dport 5432 -j MINE",
        containers=(SHOP, ADMIN, Box("db", "5432:5432"), Box("other", "81:80")),
    )
    finding = only(port_only_deny, document)
    assert hits(finding) == [BOTH[0], ("db", "5432->5432/tcp", True), BOTH[1]]
    assert said(fixed(document, finding)) == []


def test_ipv6_is_said_and_mended_there() -> None:
    document = host("28.5", [SHOP, ADMIN], [ESTABLISHED], ["-i eth0 -p tcp --dport 8080 -j DROP"], ipv6=True)
    finding = only(port_only_deny, document)
    assert finding.place is not None
    assert finding.place.family == IPV6
    assert "DOCKER-USER (IPv6)" in finding.message
    assert hits(finding) == BOTH
    assert finding.fix is not None
    assert {command.split(" ")[0] for command in finding.fix.commands} == {"ip6tables"}
    assert found(port_only_deny, fixed(document, finding)) == []


@pytest.mark.parametrize(
    "rules",
    [
        # A container is named: by address, by host port, by a set.
        ["-d 172.17.0.3 -p tcp --dport 8080 -j DROP"],
        ["-p tcp --dport 8080 -m conntrack --ctstate DNAT --ctorigdstport 8080 --ctdir ORIGINAL -j DROP"],
        ["-p tcp --dport 8080 -m set --match-set guarded dst -j DROP"],
        # What containers may not open is no rule for published ports.
        ["-i docker0 -p tcp --dport 25 -j DROP"],
        ["-o eth0 -p tcp --dport 8080 -j DROP"],
        ["-s 172.17.0.0/16 -p tcp --dport 8080 -j DROP"],
        ["-d 203.0.113.0/24 -p tcp --dport 8080 -j DROP"],
        # Nothing reaches it.
        ["-j RETURN", "-p tcp --dport 8080 -j DROP"],
        ["-p tcp -j ACCEPT", "-i eth0 -p tcp --dport 8080 -j DROP"],
        # No port, or all of them.
        ["-i eth0 -p tcp --dport 1:65535 -j DROP"],
        ["-p tcp --sport 8080 -j DROP"],
        # A policy of ours, which is declared.
        ['-p tcp --dport 8080 -m comment --comment "quaywall:mine" -j DROP'],
        # Sources that are banned from a port, as fail2ban does it with a set.
        ["-p tcp -m multiport --dports 80,8080 -m set --match-set f2b src -j REJECT"],
    ],
)
def test_what_is_no_deny_by_port(rules: t.Sequence[str]) -> None:
    document = pair(*rules)
    if "f2b" in rules[0]:
        document = edited(document, ipsets="create f2b hash:ip family inet\nadd f2b 198.51.100.66\n")
        # Whom it bans is in the set: so its hits are real, and of one host only.
        assert all(item.peers == "198.51.100.66" for one in found(port_only_deny, document) for item in one.affected)
        return
    assert found(port_only_deny, document) == []


def test_fail2ban_s_chain_is_no_deny_by_port() -> None:
    lines = (":f2b - [0:0]", "-A f2b -s 198.51.100.66/32 -j REJECT", "-A f2b -j RETURN")
    document = chained(*lines, "-A DOCKER-USER -p tcp -m multiport --dports 80,8080 -j f2b")
    assert said(document) == []


def test_nobody_has_the_port_yet() -> None:
    document = pair("-i eth0 -p tcp --dport 3306 -j DROP")
    finding = only(port_only_deny, document)
    assert (finding.severity, hits(finding)) == ("high", [])
    assert "No published port leads there now" in finding.message
    after = fixed(document, finding)
    assert said(after) == []


def test_the_host_port_is_closed_already() -> None:
    """By another rule; what this one does stop is what containers open to that port of others."""
    rules = [
        "-p tcp -m conntrack --ctstate DNAT --ctorigdstport 9000 --ctdir ORIGINAL -j DROP",
        "-p tcp --dport 9000 -j DROP",
    ]
    finding = only(port_only_deny, pair(*rules))
    assert (finding.severity, hits(finding)) == ("high", [])
    assert names(finding, "outgoing connections") == ["admin", "shop"]


def test_a_port_of_the_routing_mesh_keeps_its_number() -> None:
    document = host("28.5", [Box("other", "81:81")], ["-p tcp --dport 8090 -j DROP"], services=[("web", "8090:80")])
    assert found(port_only_deny, document) == []


def test_meant_for_the_host_port_of_one_and_hits_another() -> None:
    document = host("28.5", [Box("db", "8080:5432"), ADMIN], ["-i eth0 -p tcp --dport 8080 -j DROP"])
    finding = only(port_only_deny, document)
    assert hits(finding) == [("admin", "9000->8080/tcp", False)]
    assert "db (8080->5432/tcp), for which it was meant" in finding.message
    assert finding.fix is not None
    assert finding.fix.gains == ("anyone: admin (9000->8080/tcp) over IPv4",)
    assert finding.fix.loses == ("anyone: db (8080->5432/tcp) over IPv4",)
    assert said(fixed(document, finding)) == []


def test_sources_verdict_and_interface_are_kept() -> None:
    document = pair("! -s 203.0.113.0/24 -i eth0 -p tcp --dport 8080 -j REJECT")
    finding = only(port_only_deny, document)
    assert {item.peers for item in finding.affected} == {"anyone but 203.0.113.0/24"}
    assert finding.fix is not None
    options = [task["quaywall.docker.docker_user_rule"] for task in finding.fix.tasks[:-1]]
    assert [(item["name"], item["action"], item["otherwise"]) for item in options] == [
        ("shop-8080", "return", "reject"),
        ("shop-8080-elsewhere", "return", "none"),
    ]
    assert (options[0]["source"], options[1]["in_interface"]) == (["203.0.113.0/24"], "!eth0")
    assert finding.fix.gains == ("anyone but 203.0.113.0/24: admin (9000->8080/tcp) over IPv4",)
    assert finding.fix.loses == ()
    assert said(fixed(document, finding)) == []


def test_some_sources_are_stopped() -> None:
    document = pair("-s 198.51.100.0/24 -i eth0 -p tcp --dport 8080 -j DROP")
    finding = only(port_only_deny, document)
    assert finding.fix is not None
    options = finding.fix.tasks[0]["quaywall.docker.docker_user_rule"]
    assert (options["source"], options["in_interface"], options["action"]) == (["198.51.100.0/24"], "eth0", "drop")
    assert said(fixed(document, finding)) == []


@pytest.mark.parametrize(
    "match", ["-m limit --limit 10/min", "-m string --string x --algo bm", "-m time --weekdays Mon"]
)
def test_what_it_hangs_on_makes_it_possible(match: str) -> None:
    finding = only(port_only_deny, pair("-i eth0 -p tcp --dport 8080 %s -j DROP" % match))
    assert finding.certainty == "possible"
    assert hits(finding) == BOTH
    # A policy asks nothing of the kind, so there is none in its place.
    assert finding.fix is None


def test_the_jump_may_be_missing() -> None:
    document = without_rules(
        pair("-i eth0 -p tcp --dport 8080 -j DROP"), IPV4, lambda line: line == "-A FORWARD -j DOCKER-USER"
    )
    finding = only(port_only_deny, document)
    assert finding.reasons == ("FORWARD, which does not read DOCKER-USER now",)


def test_a_rule_that_stands_there_twice_goes_twice() -> None:
    rule = "-i eth0 -p tcp --dport 8080 -j DROP"
    document = pair(rule, rule)
    finding = only(port_only_deny, document)
    assert said(fixed(document, finding)) == []


@pytest.mark.parametrize("variant", ["old-portonly", "new-portonly"])
def test_docs_8357_by_port(variant: str) -> None:
    document = fixture("docs-8357-a", variant)
    finding = only(port_only_deny, document)
    assert finding.severity == "critical"
    assert hits(finding) == [("c1", "7777->6379/tcp", False), ("c2", "8888->6379/tcp", False)]
    # Nobody can say who was meant: both stay closed, each by its name.
    assert finding.fix is not None
    assert (finding.fix.gains, finding.fix.loses) == ((), ())
    assert said(fixed(document, finding)) == []


# broad_deny ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rules",
    [
        ["-j DROP"],
        ["-i eth0 -j DROP"],
        [ESTABLISHED, "-i eth0 -j DROP"],
        ["! -i docker0 -j REJECT"],
        ["-p tcp -j DROP"],
        ["-i eth0 -p tcp --dport 1:65535 -j DROP"],
        ["-i eth0 -p tcp -m multiport --dports 1:1023,1024:65535 -j DROP"],
        ["-d 172.16.0.0/12 -i eth0 -j DROP"],
        ["-o docker0 -i eth0 -j DROP"],
        # What lets containers out lets nobody in.
        [ESTABLISHED, "-i docker0 -j ACCEPT", "-i eth0 -j DROP"],
        # Two containers' own rules by ban, and everybody else.
        ["-s 198.51.100.66 -j DROP", "-i eth0 -j DROP"],
    ],
)
def test_a_deny_of_everything(rules: t.Sequence[str]) -> None:
    document = pair(*rules)
    finding = only(broad_deny, document)
    assert finding.severity == "critical"
    assert [name for name, _port, _meant in hits(finding)] == ["admin", "shop"]
    assert "Nobody is let in before it." in finding.message
    assert finding.place is not None
    assert finding.place.position == len(rules)
    assert finding.fix is not None
    # As measured: answers run into such a rule, and a policy lets them pass.
    gains = () if ESTABLISHED in rules else ("admin and shop: other machines over IPv4",)
    assert (finding.fix.gains, finding.fix.loses) == (gains, ())
    assert said(fixed(document, finding)) == []


@pytest.mark.parametrize(
    "rules",
    [
        # Docker's documentation, and what ufw-docker ends with.
        [ESTABLISHED, "! -s 192.0.2.2 -i eth0 -j DROP"],
        [ESTABLISHED, "-i eth0 -m iprange ! --src-range 192.0.2.1-192.0.2.3 -j DROP"],
        [ESTABLISHED, "-s 10.0.0.0/8 -j RETURN", "-i eth0 -j DROP"],
        [ESTABLISHED, "-i eth0 -p tcp --dport 443 -j ACCEPT", "-i eth0 -j DROP"],
        [ESTABLISHED, "-d 172.17.0.3 -p tcp --dport 8080 -j ACCEPT", "-i eth0 -j REJECT"],
        # Bans.
        ["-s 198.51.100.66 -j DROP"],
        ["-s 10.0.0.0/8 -p tcp -j DROP"],
        ["-m set --match-set banned src -j DROP"],
        # Some packets, nobody knows which.
        ["-i eth0 -m limit --limit 100/sec -j DROP"],
        ["-i eth0 -m geoip --source-country XX -j DROP"],
        # Neither connections from outside, nor all of them.
        ["-m conntrack --ctstate INVALID -j DROP"],
        ["-i docker0 -d 10.0.0.0/8 -j REJECT"],
        ["-i docker0 -j DROP"],
        ["-d 172.17.0.3 -j DROP"],
        ["-p icmp -j DROP"],
        ['-i eth0 -m comment --comment "quaywall:mine" -j DROP'],
    ],
)
def test_a_deny_that_is_not_of_everything(rules: t.Sequence[str]) -> None:
    assert found(broad_deny, pair(*rules)) == []


def test_a_network_that_somebody_made_is_named_on_purpose() -> None:
    boxes = [Box("db", "5432:5432", network="back"), SHOP]
    net = Net("back", "172.30.0.0/24")
    for rule in ("-i eth0 -o %s -j DROP" % net.bridge, "-i eth0 -d 172.30.0.0/24 -j DROP"):
        assert found(broad_deny, host("28.5", boxes, [rule], networks=[net])) == []


def test_nothing_is_published() -> None:
    assert found(broad_deny, host("28.5", [Box("app")], ["-i eth0 -j DROP"])) == []


def test_many_containers_get_advice() -> None:
    boxes = [Box("box%d" % number, "%d:80" % (9000 + number)) for number in range(9)]
    finding = only(broad_deny, host("28.5", boxes, ["-i eth0 -j DROP"]))
    assert finding.fix is None
    assert "Write a policy for each container" in finding.message


@pytest.mark.parametrize("variant", ["new", "old", "new-late", "old-late"])
def test_docs_21708_stops_the_answers_too(variant: str) -> None:
    """Somebody may connect, so the DROP is on purpose; that no name server's answer comes back is not."""
    document = fixture("docs-21708", variant)
    finding = only(broad_deny, document)
    assert hits(finding) == [("c1", "8080->80/tcp", None)]
    assert finding.affected[0].peers == "anyone but 192.0.2.2"
    assert "answers" in finding.message
    assert found(broad_deny, fixed(document, finding)) == []


@pytest.mark.parametrize("variant", ["new-fixed", "old-fixed", "new-control", "old-control"])
def test_docs_21708_as_its_documentation_has_it_now(variant: str) -> None:
    assert said(fixture("docs-21708", variant)) == []


def test_containers_cannot_open_anything_any_more() -> None:
    """The office is let in; the DROP at the end has no interface, and so is for what containers send too."""
    rules = [ESTABLISHED, "-s 203.0.113.0/24 -j ACCEPT", "-j DROP"]
    document = pair(*rules)
    finding = only(broad_deny, document)
    assert names(finding, "outgoing connections") == ["admin", "shop"]
    after = fixed(document, finding)
    assert said(after) == []
    # Rules that say what containers may open make it a decision.
    assert found(broad_deny, pair(*rules[:2], "-i docker0 -p tcp --dport 443 -j ACCEPT", rules[2])) == []


# neighbours_cut_off --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule",
    [
        "-d 172.17.0.2 -p tcp --dport 8080 -j DROP",
        "-d 172.17.0.2 -j DROP",
        "! -s 203.0.113.0/24 -d 172.17.0.2 -p tcp --dport 8080 -j REJECT",
        "-d 172.17.0.2 -p tcp -m multiport --dports 443,8080 -j DROP",
    ],
)
def test_neighbours_are_cut_off(rule: str) -> None:
    document = pair(rule)
    finding = only(neighbours_cut_off, document)
    assert finding.severity == "medium"
    assert [(item.container, item.traffic, item.peers) for item in finding.affected] == [
        ("shop", "traffic between containers", "admin")
    ]
    assert said(fixed(document, finding)) == []


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("-d 172.17.0.2 -p tcp --dport 8080 -j DROP", {"bridge_nf": False}),
        ("-d 172.17.0.2 ! -i docker0 -p tcp --dport 8080 -j DROP", {}),
        ("-d 172.17.0.2 -i eth0 -p tcp --dport 8080 -j DROP", {}),
        ("! -s 172.17.0.0/16 -d 172.17.0.2 -p tcp --dport 8080 -j DROP", {}),
        # Against the neighbours themselves: meant so.
        ("-s 172.17.0.3 -d 172.17.0.2 -j DROP", {}),
        ("-i docker0 -d 172.17.0.2 -p tcp --dport 8080 -j DROP", {}),
        ('-d 172.17.0.2 -p tcp --dport 8080 -m comment --comment "quaywall:mine" -j DROP', {}),
        ("-d 172.17.0.99 -p tcp --dport 8080 -j DROP", {}),
    ],
)
def test_neighbours_are_not_cut_off(rule: str, options: t.Dict[str, t.Any]) -> None:
    assert found(neighbours_cut_off, pair(rule, **options)) == []


def test_who_has_no_neighbours_has_none_to_lose() -> None:
    boxes = [Box("shop", "8080:8080", network="a"), Box("admin", "9000:8080", network="b")]
    assert found(neighbours_cut_off, host("28.5", boxes, ["-d 172.18.0.2 -p tcp --dport 8080 -j DROP"])) == []


def test_a_network_is_cut_off_from_itself() -> None:
    net = Net("back", "172.30.0.0/24")
    boxes = [Box("db", "5432:5432", network="back"), Box("app", network="back")]
    document = host("28.5", boxes, ["-o %s -j DROP" % net.bridge], networks=[net])
    finding = only(neighbours_cut_off, document)
    assert names(finding, "traffic between containers") == ["app", "db"]
    assert said(fixed(document, finding)) == []


# address_only --------------------------------------------------------------------------------------------------------

BY_HOST_PORT = "-p tcp -m conntrack --ctstate DNAT --ctorigdstport 8080 --ctdir ORIGINAL -j DROP"


@pytest.mark.parametrize(
    ("rules", "position"),
    [
        (["-d 172.17.0.2 ! -i docker0 -p tcp --dport 8080 -j DROP"], 1),
        (["-d 172.17.0.2 ! -i docker0 -j REJECT"], 1),
        # The host port is asked for besides, not instead.
        (["-d 172.17.0.2 -i eth0 " + BY_HOST_PORT], 1),
        # Another one's host port.
        ([BY_HOST_PORT.replace("8080", "9000"), "-d 172.17.0.2 -i eth0 -p tcp --dport 8080 -j DROP"], 2),
        # For fewer people than the address.
        (["-s 10.0.0.0/8 " + BY_HOST_PORT, "-d 172.17.0.2 -i eth0 -p tcp --dport 8080 -j DROP"], 2),
    ],
)
def test_an_address_alone(rules: t.Sequence[str], position: int) -> None:
    document = pair(*rules)
    finding = only(address_only, document)
    assert finding.severity == "medium"
    assert hits(finding) == [("shop", "8080->8080/tcp", None)]
    assert finding.place is not None
    assert finding.place.position == position
    assert finding.fix is not None
    # The policy lets the answers pass that a rule for all ports stops.
    gains = ("shop: other machines over IPv4",) if "port" not in rules[0] else ()
    assert (finding.fix.gains, finding.fix.loses) == (gains, ())
    assert found(address_only, fixed(document, finding)) == []


@pytest.mark.parametrize(
    "rules",
    [
        # An address-free half, wherever it is in the chain; or something that stops them all the same.
        ["-d 172.17.0.2 -i eth0 -p tcp --dport 8080 -j DROP", BY_HOST_PORT],
        [BY_HOST_PORT, "-d 172.17.0.2 -i eth0 -p tcp --dport 8080 -j DROP"],
        ["-d 172.17.0.2 -i eth0 -p tcp --dport 8080 -j DROP", "-i eth0 -j DROP"],
        # Nothing of it is published, or nobody is stopped.
        ["-d 172.17.0.2 -i eth0 -p tcp --dport 9999 -j DROP"],
        ["-d 172.17.0.9 -i eth0 -p tcp --dport 8080 -j DROP"],
        ["-j RETURN", "-d 172.17.0.2 -i eth0 -p tcp --dport 8080 -j DROP"],
        ['-d 172.17.0.2 -i eth0 -p tcp --dport 8080 -m comment --comment "quaywall:mine" -j DROP'],
    ],
)
def test_an_address_that_may_move(rules: t.Sequence[str]) -> None:
    assert found(address_only, pair(*rules)) == []


def test_a_static_address_and_a_host_port_that_docker_chose() -> None:
    rule = "-d 172.30.0.7 -i eth0 -p tcp --dport 8080 -j DROP"
    net = Net("app", "172.30.0.0/24")
    for box, count in (
        (Box("web", "80:8080", network="app", address="172.30.0.7"), 0),
        (Box("web", "32771:8080"), 0),
        (Box("web", "80:8080"), 1),
    ):
        text = rule if box.address else rule.replace("172.30.0.7", "172.17.0.2")
        assert len(found(address_only, host("28.5", [box], [text], networks=[net]))) == count
