# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rules in Docker's own chains that Docker did not write."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._audit._places import docker_chain_edited
from ansible_collections.quaywall.docker.tests.unit.audits import fixed, found, only
from ansible_collections.quaywall.docker.tests.unit.snapshots import (
    CAPTURES,
    ENGINES,
    IPV4,
    IPV6,
    Box,
    Document,
    captured,
    edited,
    host,
    rules_of,
    with_rules,
)

BOXES = (Box("httpd", "8080:80"), Box("admin", "8081:8080"))


def changed(table: str, *lines: str, engine: str = "28.5", **options: t.Any) -> Document:
    return with_rules(host(engine, BOXES, **options), IPV4, table, lines)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_denial_in_dockers_chain(engine: str) -> None:
    document = changed("filter", "-I DOCKER -p tcp --dport 80 -j REJECT", engine=engine)
    finding = only(docker_chain_edited, document)
    assert (finding.severity, finding.certainty) == ("medium", "definite")
    assert finding.place is not None
    assert (finding.place.table, finding.place.chain, finding.place.position) == ("filter", "DOCKER", 1)
    assert "is gone then" in finding.message
    assert finding.fix is not None
    assert finding.fix.tasks[0]["quaywall.docker.docker_user_rule"] == {
        "name": "httpd-8080",
        "container": "httpd",
        "destination_port": ["80"],
        "action": "reject",
    }
    # It is closed before and after, and by what lasts.
    assert (finding.fix.gains, finding.fix.loses) == ((), ())
    after = fixed(document, finding)
    assert found(docker_chain_edited, after) == []
    assert any("--ctorigdstport 8080" in rule for rule in rules_of(after, IPV4, "filter", "DOCKER-USER"))


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("filter", "-I DOCKER -s 10.0.0.0/8 -j ACCEPT"),
        ("filter", "-A DOCKER-FORWARD -i eth0 -o docker0 -j ACCEPT"),
        ("filter", "-A DOCKER-CT -j ACCEPT"),
        ("filter", "-A DOCKER-BRIDGE -o docker0 -m comment --comment mine -j DOCKER"),
        ("filter", "-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j ACCEPT"),
        ("nat", "-A DOCKER -p tcp --dport 81 -j RETURN"),
        ("nat", "-I DOCKER -p tcp --dport 81 -j REDIRECT --to-ports 82"),
        # Docker does this without docker-proxy only; moby-41872.
        ("nat", "-A DOCKER -d 127.0.0.1/32 -p tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80"),
        # The container publishes no such port.
        ("nat", "-A DOCKER ! -i docker0 -p tcp --dport 2222 -j DNAT --to-destination 172.17.0.2:22"),
    ],
)
def test_not_dockers(table: str, line: str) -> None:
    finding = only(docker_chain_edited, changed(table, line))
    assert finding.place is not None
    assert (finding.place.table, finding.place.chain) == (table, line.split(" ")[1])
    assert finding.fix is None


def test_without_docker_proxy_dnat_has_no_exception() -> None:
    assert found(docker_chain_edited, host("28.5", BOXES, options={"userland-proxy": False})) == []


def test_links_without_icc() -> None:
    """C(docker run --link): written by moby's ChainInfo.Link."""
    document = changed(
        "filter",
        "-A DOCKER -s 172.17.0.3 -d 172.17.0.2 -i docker0 -o docker0 -p tcp --dport 80 -j ACCEPT",
        "-A DOCKER -s 172.17.0.2 -d 172.17.0.3 -i docker0 -o docker0 -p tcp --sport 80 -j ACCEPT",
    )
    assert found(docker_chain_edited, document) == []


def test_own_chains_are_ones_own() -> None:
    lines = [":DOCKER-MAN -", "-A DOCKER-MAN -i eth0 -j RETURN", "-A DOCKER-USER -j DOCKER-MAN"]
    assert found(docker_chain_edited, changed("filter", *lines, "-A FORWARD -j DOCKER-MAN")) == []


@pytest.mark.parametrize("name", CAPTURES)
def test_real_hosts(name: str) -> None:
    assert found(docker_chain_edited, captured(name)) == []


@pytest.mark.parametrize("ipv6", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_made_up_hosts(engine: str, ipv6: bool) -> None:
    boxes = [Box("a", "80:80", "53:53/udp", "127.0.0.1:81:81"), Box("b", "82:80/sctp", network="n")]
    options = {"ip6tables": True} if ipv6 else {}
    document = host(engine, boxes, ipv6=ipv6, options=options, services=[("web", "8090:80")])
    assert found(docker_chain_edited, document) == []
    broken = with_rules(document, IPV6, "filter", ["-I DOCKER -s 2001:db8::/32 -j DROP"]) if ipv6 else document
    assert len(found(docker_chain_edited, broken)) == ipv6


def test_what_is_missing_is_no_error() -> None:
    document = changed("filter", "-I DOCKER -p tcp --dport 80 -j REJECT")
    for part in ("docker", "nft", "interfaces", "routes", "iptables"):
        found(docker_chain_edited, edited(document, **{part: None}))
