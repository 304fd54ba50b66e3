# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rules of INPUT for ports that Docker forwards: the classic, as people's cases tell it."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._audit._places import never_read
from ansible_collections.quaywall.docker.tests.unit.audits import fixed, found, only
from ansible_collections.quaywall.docker.tests.unit.foreign import (
    crowdsec,
    crowdsec_nftables,
    fail2ban,
    firewalld,
    firewalld_nftables,
    ufw,
    ufw_docker,
)
from ansible_collections.quaywall.docker.tests.unit.snapshots import (
    ENGINES,
    IPV4,
    IPV6,
    Box,
    Document,
    fixture,
    host,
    with_rules,
)

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import Finding

BOXES = (Box("httpd", "8080:80"), Box("db", "3306:3306"))
DENY = "-p tcp -m tcp --dport %d -j DROP"


def said(findings: t.Iterable[Finding]) -> t.List[t.Tuple[str, str, int, t.List[str]]]:
    """Severity, place, and the ports that a finding names."""
    return [
        (item.severity, item.place.chain, item.place.position, [hit.published for hit in item.affected])
        for item in findings
        if item.place is not None
    ]


def with_input(*rules: str, engine: str = "28.5", **options: t.Any) -> Document:
    document = host(engine, containers=BOXES, **options)
    return with_rules(document, IPV4, "filter", ["-A INPUT " + rule for rule in rules])


@pytest.mark.parametrize("layout", ["new", "old"])
def test_distribution_3246(layout: str) -> None:
    """Two rules deny port 9000; that of UDP says nothing of the container, which publishes TCP."""
    document = fixture("distribution-3246", layout)
    finding = only(never_read, document)
    assert said([finding]) == [("medium", "INPUT", 1, ["9000->9000/tcp"])]
    assert (finding.certainty, finding.affected[0].meant, finding.affected[0].peers) == ("definite", True, "anyone")
    assert "INPUT is for services of the host itself" in finding.message
    assert "Docker leads port 9000 to 172.17.0.2:9000" in finding.message
    assert finding.fix is not None
    (task,) = finding.fix.tasks
    assert task["quaywall.docker.docker_user_rule"] == {
        "name": "c1-9000",
        "container": "c1",
        "destination_port": ["9000"],
        "action": "drop",
    }
    assert finding.fix.loses == ("anyone: c1 (9000->9000/tcp) over IPv4",)
    assert found(never_read, fixed(document, finding)) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_ufw_deny_moby_4737_plexx(engine: str) -> None:
    document = ufw(host(engine, BOXES), [DENY % 8080])
    named, default = [item for item in found(never_read, document) if item.place and item.place.family == IPV4]
    assert said([named]) == [("medium", "ufw-user-input", 2, ["8080->80/tcp"])]
    # What is not named at all is denied by the policy; rask-752.
    assert said([default]) == [("medium", "INPUT", 0, ["3306->3306/tcp"])]
    assert "its policy DROP" in default.message


def test_firewalld_moby_43207() -> None:
    rule = "-A IN_public_deny -p tcp -m tcp --dport 3306 -m conntrack --ctstate NEW,UNTRACKED -j DROP"
    named, default = found(never_read, firewalld(host("28.5", BOXES), rule))
    assert said([named]) == [("medium", "IN_public_deny", 1, ["3306->3306/tcp"])]
    assert said([default]) == [("medium", "IN_public", 9, ["8080->80/tcp"])]


def test_stroebitzer() -> None:
    boxes = (Box("a", "58080:80"), Box("b", "443:443", "80:80"), Box("c", "53306:3306"))
    document = with_rules(
        host("20.10", boxes),
        IPV4,
        "filter",
        [
            "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "-A INPUT -p tcp --dport 80 -j ACCEPT",
            "-A INPUT -p tcp --dport 443 -j ACCEPT",
            "-A INPUT -j DROP",
        ],
    )
    assert said(found(never_read, document)) == [
        ("medium", "INPUT", 4, ["58080->80/tcp", "53306->3306/tcp"]),
        ("info", "INPUT", 2, ["80->80/tcp"]),
        ("info", "INPUT", 3, ["443->443/tcp"]),
    ]


@pytest.mark.parametrize(
    ("rules", "options"),
    [
        # Each with what INPUT says in its own words.
        (["-s 10.0.0.5 -p tcp --dport 8080 -j ACCEPT", DENY % 8080], ("10.0.0.5", "return", "drop")),
        (["! -s 10.0.0.0/8 -p tcp --dport 8080 -j REJECT"], ("10.0.0.0/8", "return", "reject")),
        (["-s 198.51.100.0/24 -p tcp --dport 8080 -j DROP"], ("198.51.100.0/24", "drop", None)),
        (["-p tcp -m multiport --dports 22,8080 -j REJECT"], (None, "reject", None)),
        ([":LOGGED"], ()),
    ],
)
def test_the_fix_says_the_same_of_the_container(rules: t.List[str], options: t.Tuple[t.Any, ...]) -> None:
    if not options:
        lines = [":LOGGED -", "-A LOGGED -j LOG", "-A LOGGED -j DROP", "-A INPUT -p tcp --dport 8080 -j LOGGED"]
        document = with_rules(host("28.5", BOXES), IPV4, "filter", lines)
        options = (None, "drop", None)
    else:
        document = with_input(*rules)
    finding = next(item for item in found(never_read, document) if item.severity == "medium")
    assert finding.fix is not None
    written = finding.fix.tasks[0]["quaywall.docker.docker_user_rule"]
    source, action, otherwise = options
    assert written.get("source") == (None if source is None else [source])
    assert (written["action"], written.get("otherwise")) == (action, otherwise)
    assert [item for item in found(never_read, fixed(document, finding)) if item.severity != "info"] == []


def test_the_fix_keeps_the_interface() -> None:
    finding = only(never_read, with_input("-i eth0 -p tcp --dport 8080 -j DROP"))
    assert finding.fix is not None
    assert finding.fix.tasks[0]["quaywall.docker.docker_user_rule"]["in_interface"] == "eth0"


def test_the_fix_spares_the_other_host_port_of_the_same_port() -> None:
    document = with_rules(host("28.5", [Box("a", "8080:80", "8081:80")]), IPV4, "filter", ["-A INPUT " + DENY % 8080])
    finding = only(never_read, document)
    assert finding.fix is not None
    assert finding.fix.tasks[0]["quaywall.docker.docker_user_rule"]["published_port"] == "8080"
    assert finding.fix.loses == ("anyone: a (8080->80/tcp) over IPv4",)


@pytest.mark.parametrize(
    "document",
    [
        # Nobody of those whom INPUT denies gets in.
        with_input(DENY % 8080, docker_user=["-d 172.17.0.2 -p tcp --dport 80 -j DROP"]),
        # DOCKER-USER has its own say about the port.
        with_input(
            DENY % 8080,
            docker_user=["-s 203.0.113.9 -d 172.17.0.2 -j RETURN", "-d 172.17.0.2 -p tcp --dport 80 -j DROP"],
        ),
        # Another port, another protocol, the host itself, containers.
        with_input(DENY % 80),
        with_input("-p udp -m udp --dport 8080 -j DROP"),
        with_input("-i lo -p tcp --dport 8080 -j DROP"),
        with_input("-i docker0 -p tcp --dport 8080 -j DROP"),
        with_input("-m conntrack --ctstate INVALID -j DROP"),
        # Something of the host listens there too, at another address.
        with_rules(
            host("28.5", [Box("a", "203.0.113.1:8080:80")], listening=[("tcp", "10.0.0.1", 8080)]),
            IPV4,
            "filter",
            ["-A INPUT " + DENY % 8080],
        ),
        # Published for the host alone.
        with_rules(host("28.5", [Box("a", "127.0.0.1:8080:80")]), IPV4, "filter", ["-A INPUT " + DENY % 8080]),
        # On IPv6 docker-proxy serves it: there INPUT is right.
        with_rules(host("28.5", BOXES), IPV6, "filter", ["-A INPUT " + DENY % 8080]),
        # The host's own network.
        with_rules(
            host("28.5", [Box("a", network="host", listens=[8080])]), IPV4, "filter", ["-A INPUT " + DENY % 8080]
        ),
        # Private addresses are nobody's default: ufw-docker lets them in on purpose.
        ufw_docker(host("28.5", BOXES), "new"),
        ufw_docker(host("28.5", BOXES), "old", inbound=["-p tcp -m tcp --dport 22 -j ACCEPT"]),
    ],
    ids=range(13),
)
def test_input_is_right(document: Document) -> None:
    assert [item for item in found(never_read, document) if item.severity != "info"] == []


def test_without_the_proxy_old_engines_keep_the_port_themselves() -> None:
    document = with_input(DENY % 8080, engine="26.1", options={"userland-proxy": False})
    assert said(found(never_read, document)) == [("medium", "INPUT", 1, ["8080->80/tcp"])]


def test_ipv6_that_is_forwarded() -> None:
    document = with_rules(host("28.5", BOXES, ipv6=True), IPV6, "filter", ["-A INPUT " + DENY % 8080])
    finding = only(never_read, document)
    assert finding.place is not None
    assert finding.place.family == IPV6
    assert "[fd00:17::2]:80" in finding.message


def test_bans() -> None:
    document = fail2ban(host("28.5", BOXES), "web", "INPUT", "80,8080", "198.51.100.1", "198.51.100.7")
    finding = only(never_read, document)
    assert said([finding]) == [("medium", "INPUT", 1, ["8080->80/tcp"])]
    assert finding.affected[0].peers == "198.51.100.1 and 198.51.100.7"
    assert found(never_read, fail2ban(host("28.5", BOXES), "web", "DOCKER-USER", "80", "198.51.100.1")) == []


def test_bans_of_crowdsec() -> None:
    """Its set, on INPUT alone."""
    finding = only(never_read, crowdsec(host("28.5", BOXES), "INPUT"))
    assert said([finding]) == [("medium", "CROWDSEC_CHAIN", 1, ["3306->3306/tcp", "8080->80/tcp"])]
    assert "192.0.2.66" in finding.message
    assert found(never_read, crowdsec(host("28.5", BOXES), "INPUT", "DOCKER-USER")) == []


def test_ha_crowdsec_31_tables_of_nftables_on_input_alone() -> None:
    finding = only(never_read, crowdsec_nftables(host("28.5", BOXES), "input"))
    assert (finding.severity, finding.certainty) == ("medium", "possible")
    assert "hook input" in finding.message
    assert {item.container for item in finding.affected} == {"httpd", "db"}
    assert found(never_read, crowdsec_nftables(host("28.5", BOXES), "input", "forward")) == []
    assert found(never_read, firewalld_nftables(host("28.5", BOXES))) == []
    assert found(never_read, crowdsec_nftables(host("28.5"), "input")) == []


def test_swarm() -> None:
    document = with_rules(host("28.5", services=[("web", "8090:80")]), IPV4, "filter", ["-A INPUT " + DENY % 8090])
    finding = only(never_read, document)
    assert finding.affected[0].container == "service web"
    assert finding.fix is not None
    assert finding.fix.tasks[0]["quaywall.docker.docker_user_rule"]["published_port"] == "8090"


def test_what_a_rule_asks_that_is_not_known_makes_it_possible() -> None:
    finding = only(never_read, with_input("-p tcp -m tcp --dport 8080 -m recent --rcheck --name bad --rsource -j DROP"))
    assert finding.certainty == "possible"
    # What may deny anything is no rule for a port.
    assert found(never_read, with_input("-m recent --rcheck --name bad --rsource -j DROP")) == []
