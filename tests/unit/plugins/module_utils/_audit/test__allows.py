# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Allows by port alone (moby-4737-b, ufw-docker-readme), and rules with a host port where packets carry another."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._audit._allows import (
    host_port_never_matches,
    port_only_allow,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._denies import broad_deny, port_only_deny
from ansible_collections.quaywall.docker.tests.unit.audits import Check, fixed, found, hits, names, only
from ansible_collections.quaywall.docker.tests.unit.snapshots import (
    IPV4,
    IPV6,
    Box,
    Document,
    fixture,
    host,
    with_rules,
)

CHECKS: t.Sequence[Check] = (port_only_allow, host_port_never_matches, port_only_deny, broad_deny)

SHOP = Box("shop", "8080:8080")  # 172.17.0.2
ADMIN = Box("admin", "9000:8080")  # 172.17.0.3
ESTABLISHED = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
DROP = "-i eth0 -j DROP"

BOTH = [("admin", "9000->8080/tcp", False), ("shop", "8080->8080/tcp", True)]

#: The README's block (its conntrack form), where C(ufw route) writes into ufw-user-forward.
UFW_DOCKER = (
    ":ufw-user-forward - [0:0]",
    ":ufw-docker-logging-deny - [0:0]",
    "-A DOCKER-USER -j ufw-user-forward",
    "-A DOCKER-USER -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN",
    "-A DOCKER-USER -m conntrack --ctstate INVALID -j DROP",
    "-A DOCKER-USER -i docker0 -o docker0 -j ACCEPT",
    *("-A DOCKER-USER -s %s -j RETURN" % net for net in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")),
    *(
        "-A DOCKER-USER -d %s -m conntrack --ctstate NEW -j ufw-docker-logging-deny" % net
        for net in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
    ),
    "-A DOCKER-USER -j RETURN",
    '-A ufw-docker-logging-deny -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix "[UFW DOCKER BLOCK] "',
    "-A ufw-docker-logging-deny -j DROP",
)


def pair(*rules: str) -> Document:
    return host("28.5", [SHOP, ADMIN], rules)


def said(document: Document) -> t.List[str]:
    return [finding.check for check in CHECKS for finding in found(check, document)]


# port_only_allow -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", ["ACCEPT", "RETURN"])
@pytest.mark.parametrize(
    "match", ["--dport 8080", "-m multiport --dports 443,8080", "--dport 8000:8100", "! --dport 9000"]
)
def test_a_port_alone_opens_who_was_not_meant(match: str, verdict: str) -> None:
    document = pair(ESTABLISHED, "-i eth0 -p tcp %s -j %s" % (match, verdict), DROP)
    finding = only(port_only_allow, document)
    assert (finding.severity, finding.certainty) == ("high", "definite")
    assert hits(finding) == BOTH
    assert finding.place is not None
    assert finding.place.position == 2
    assert finding.fix is not None
    assert finding.fix.gains == ()
    assert finding.fix.loses == ("anyone: admin (9000->8080/tcp) over IPv4",)
    assert said(fixed(document, finding)) == []


def test_only_those_who_get_in_by_it_are_named() -> None:
    """The office gets in by the rule before."""
    rules = ["-s 203.0.113.0/24 -j ACCEPT", "-s 203.0.112.0/23 -i eth0 -p tcp --dport 8080 -j ACCEPT", DROP]
    finding = only(port_only_allow, pair(ESTABLISHED, *rules))
    assert {item.peers for item in finding.affected} == {"203.0.112.0/24"}
    assert finding.fix is not None
    options = finding.fix.tasks[0]["quaywall.docker.docker_user_rule"]
    assert (options["source"], options["action"], options["otherwise"]) == (["203.0.112.0/23"], "accept", "none")


@pytest.mark.parametrize(
    "rules",
    [
        # No deny, so nobody gets in because of it.
        ["-p tcp --dport 8080 -j ACCEPT"],
        # The deny comes first, or is for others.
        [DROP, "-p tcp --dport 8080 -j ACCEPT"],
        ["-i eth0 -p tcp --dport 8080 -j ACCEPT", "-i eth0 -p udp -j DROP"],
        ["-i eth0 -p tcp --dport 443 -j ACCEPT", DROP],
        # A container is named.
        ["-d 172.17.0.3 -p tcp --dport 8080 -j ACCEPT", DROP],
        ["-p tcp --dport 8080 -m conntrack --ctorigdstport 8080 --ctdir ORIGINAL -j ACCEPT", DROP],
        # What containers may open.
        ["-i docker0 -p tcp --dport 8080 -j ACCEPT", DROP],
        # No port.
        ["-s 10.0.0.0/8 -p tcp -j RETURN", DROP],
        ["-i eth0 -p tcp --dport 1:65535 -j ACCEPT", DROP],
        ['-p tcp --dport 8080 -m comment --comment "quaywall:mine" -j ACCEPT', DROP],
        # An exception to a deny by port, which is the one that hits whom it should not.
        ["-s 10.0.0.0/8 -p tcp --dport 8080 -j ACCEPT", "-i eth0 -p tcp --dport 8080 -j DROP"],
    ],
)
def test_what_is_no_allow_by_port(rules: t.Sequence[str]) -> None:
    assert found(port_only_allow, pair(ESTABLISHED, *rules)) == []


def test_only_who_was_meant_gets_in() -> None:
    boxes = [Box("web", "443:443"), Box("app", "8443:8443")]
    rules = [ESTABLISHED, "-i eth0 -p tcp -m multiport --dports 443,8443 -j ACCEPT", DROP]
    assert said(host("28.5", boxes, rules)) == []


def test_a_return_of_a_chain_below() -> None:
    lines = (
        ":MINE - [0:0]",
        "-A MINE -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN",
        "-A MINE -p tcp -m tcp --dport 8080 -j RETURN",
        "-A MINE -j DROP",
        "-A DOCKER-USER -i eth0 -j MINE",
    )
    document = with_rules(pair(), IPV4, "filter", lines)
    finding = only(port_only_allow, document)
    assert finding.place is not None
    assert (finding.place.chain, finding.place.position) == ("MINE", 2)
    assert hits(finding) == BOTH
    assert found(port_only_allow, fixed(document, finding)) == []


def test_ipv6() -> None:
    six = [ESTABLISHED, "-i eth0 -p tcp --dport 8080 -j ACCEPT", DROP]
    document = host("28.5", [SHOP, ADMIN], docker_user6=six, ipv6=True)
    finding = only(port_only_allow, document)
    assert finding.place is not None
    assert finding.place.family == IPV6
    assert hits(finding) == BOTH
    after = fixed(document, finding)
    assert said(after) == []


@pytest.mark.parametrize("variant", ["new", "old"])
def test_moby_4737_b(variant: str) -> None:
    """ufw's ACCEPT is for the host's own service on port 123, so it goes from here, and the container is closed."""
    document = fixture("moby-4737-b", variant)
    finding = only(port_only_allow, document)
    assert hits(finding) == [("c1", "456->123/tcp", False)]
    assert "The host itself listens there" in finding.message
    assert finding.fix is not None
    assert finding.fix.loses == ("anyone: c1 (456->123/tcp) over IPv4",)
    assert said(fixed(document, finding)) == ["broad_deny"]  # nobody is let in any more, which is to be said then


def test_ufw_docker_s_readme() -> None:
    boxes = [Box("web1", "8080:80"), Box("web2", "8081:80")]
    document = with_rules(host("28.5", boxes), IPV4, "filter", UFW_DOCKER)
    assert said(document) == []
    allowed = with_rules(document, IPV4, "filter", ["-A ufw-user-forward -p tcp -m tcp --dport 80 -j ACCEPT"])
    finding = only(port_only_allow, allowed)
    assert hits(finding) == [("web1", "8080->80/tcp", False), ("web2", "8081->80/tcp", False)]
    assert finding.place is not None
    assert finding.place.chain == "ufw-user-forward"
    # By name, both stay as they are.
    assert finding.fix is not None
    assert (finding.fix.gains, finding.fix.loses) == ((), ())
    assert said(fixed(allowed, finding)) == []
    # For one container, as the README has it too.
    rule = "-A ufw-user-forward -d 172.17.0.2/32 -p tcp -m tcp --dport 80 -j ACCEPT"
    assert said(with_rules(document, IPV4, "filter", [rule])) == []


# host_port_never_matches ---------------------------------------------------------------------------------------------

WEB = Box("web", "8080:80")  # 172.17.0.2


@pytest.mark.parametrize(
    "rule",
    [
        "-i eth0 -p tcp --dport 8080 -j DROP",
        "-i eth0 -p tcp --dport 8080 -j REJECT",
        "-i eth0 -p tcp -m multiport --dports 22,8080 -j DROP",
        "-i eth0 -p tcp --dport 8000:8100 -j DROP",
        # By address, and by host port: packets carry the inner port all the same.
        "-d 172.17.0.2 -i eth0 -p tcp --dport 8080 -j DROP",
        "-i eth0 -p tcp --dport 8080 -m conntrack --ctorigdstport 8080 --ctdir ORIGINAL -j DROP",
    ],
)
def test_a_deny_that_looks_right_and_does_nothing(rule: str) -> None:
    document = host("28.5", [WEB, Box("other", "81:81")], [rule])
    finding = only(host_port_never_matches, document)
    assert (finding.severity, finding.certainty) == ("high", "definite")
    assert hits(finding) == [("web", "8080->80/tcp", True)]
    assert "sees the container's port, 80." in finding.message
    assert finding.message.endswith("It stays open.")
    assert finding.fix is not None
    assert finding.fix.loses == ("anyone: web (8080->80/tcp) over IPv4",)
    assert finding.fix.gains == ()
    assert said(document) == ["host_port_never_matches"]
    assert said(fixed(document, finding)) == []


def test_an_allow_that_looks_right_and_does_nothing() -> None:
    rules = [ESTABLISHED, "-s 203.0.113.0/24 -i eth0 -p tcp --dport 8080 -j ACCEPT", DROP]
    document = host("28.5", [WEB], rules)
    finding = only(host_port_never_matches, document)
    assert hits(finding) == [("web", "8080->80/tcp", True)]
    assert finding.affected[0].peers == "203.0.113.0/24"
    assert finding.message.endswith("It stays closed.")
    assert finding.fix is not None
    assert finding.fix.gains == ("203.0.113.0/24: web (8080->80/tcp) over IPv4",)
    assert said(fixed(document, finding)) == []


def test_what_it_stops_instead() -> None:
    """Without an interface it is about what containers open to that port of others."""
    finding = only(host_port_never_matches, host("28.5", [WEB], ["-p tcp --dport 8080 -j DROP"]))
    assert names(finding, "outgoing connections") == ["web"]
    assert "What it does stop is connections of containers on bridge to port 8080 of other machines." in finding.message


def test_a_return_of_a_chain_below_that_does_nothing() -> None:
    lines = (
        ":MINE - [0:0]",
        "-A MINE -p tcp -m tcp --dport 8080 -j RETURN",
        "-A MINE -j DROP",
        "-A DOCKER-USER -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A DOCKER-USER -i eth0 -j MINE",
    )
    document = with_rules(host("28.5", [WEB]), IPV4, "filter", lines)
    finding = only(host_port_never_matches, document)
    assert finding.place is not None
    assert finding.place.chain == "MINE"


@pytest.mark.parametrize(
    "rules",
    [
        # The inner port is some container's too: that is port_only_deny's.
        ["-i eth0 -p tcp --dport 81 -j DROP"],
        # Nobody's host port; another protocol.
        ["-i eth0 -p tcp --dport 8081 -j DROP"],
        ["-i eth0 -p udp --dport 8080 -j DROP"],
        # About what containers open themselves, to that port of others.
        ["-i docker0 -p tcp --dport 8080 -j DROP"],
        ["-s 172.17.0.0/16 -p tcp --dport 8080 -j REJECT"],
        ["-d 203.0.113.0/24 -p tcp --dport 8080 -j DROP"],
        # Somebody else's address; not reached; closed anyhow; not needed.
        ["-d 172.17.0.3 -i eth0 -p tcp --dport 8080 -j DROP"],
        ["-j RETURN", "-i eth0 -p tcp --dport 8080 -j DROP"],
        ["-p tcp -m conntrack --ctorigdstport 8080 --ctdir ORIGINAL -j DROP", "-i eth0 -p tcp --dport 8080 -j DROP"],
        ["-i eth0 -p tcp --dport 8080 -j ACCEPT"],
        ["-i eth0 -p tcp --dport 1:65535 -j DROP"],
        ['-i eth0 -p tcp --dport 8080 -m comment --comment "quaywall:mine" -j DROP'],
    ],
)
def test_what_does_not_look_right_or_does_something(rules: t.Sequence[str]) -> None:
    document = host("28.5", [WEB, Box("other", "81:81")], rules)
    assert found(host_port_never_matches, document) == []


def test_published_for_the_host_alone() -> None:
    document = host("28.5", [Box("web", "127.0.0.1:8080:80")], ["-i eth0 -p tcp --dport 8080 -j DROP"])
    assert found(host_port_never_matches, document) == []


def test_the_rest_of_a_rule_stays() -> None:
    """443 is some container's inner port, 8080 is web's host port: the rule goes on to do what it does."""
    boxes = [WEB, Box("tls", "443:443")]
    document = host("28.5", boxes, ["-i eth0 -p tcp -m multiport --dports 443,8080 -j DROP"])
    finding = only(host_port_never_matches, document)
    assert hits(finding) == [("web", "8080->80/tcp", True)]
    assert finding.fix is not None
    assert not [command for command in finding.fix.commands if " -D " in command]
    assert found(host_port_never_matches, fixed(document, finding)) == []
