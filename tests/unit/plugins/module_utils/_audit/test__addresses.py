# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rules about an address that nobody has, one that is another container's, and networks without containers."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._audit._addresses import (
    covers_no_container,
    stale_address,
    wrong_owner,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import Survey
from ansible_collections.quaywall.docker.plugins.module_utils._policy import Policy, compile_policy
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import from_json
from ansible_collections.quaywall.docker.tests.unit.audits import fixed, found, only
from ansible_collections.quaywall.docker.tests.unit.foreign import firewalld, libvirt, ufw_docker
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
)

CHECKS = (stale_address, wrong_owner, covers_no_container)
OFFICE = ["203.0.113.0/24"]

ADMIN = Box("admin", "9000:8080")
SHOP = Box("shop", "8080:8080")
DB = Box("db", "3306:3306", network="back")


def _bindings(container: t.Any) -> t.Any:
    return tuple(binding._replace(fixed=True) for binding in container.current_ports)


def rules(boxes: t.Sequence[Box], *policies: t.Dict[str, t.Any], **options: t.Any) -> t.Dict[str, t.List[str]]:
    """What docker_user_rule wrote for policies while these containers ran, as options of host()."""
    inventory = from_json(host("28.5", boxes, **options)).inventory
    found: t.Dict[str, t.List[str]] = {"docker_user": [], "docker_user6": []}
    for policy in policies:
        written = compile_policy(Policy.from_options(policy), inventory, _bindings, ip6_dnat=True).rules
        for key, family in (("docker_user", IPV4), ("docker_user6", IPV6)):
            found[key] += [rule.render() for rule in written.get(family, ())]
    return found


def said(check: t.Any, document: Document) -> t.List[t.Tuple[t.Any, ...]]:
    return [
        (item.place.chain, item.place.position, item.severity, item.certainty)
        for item in found(check, document)
        if item.place is not None
    ]


# An address that nobody has ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_foreign_rules_for_an_address_that_nobody_has(engine: str) -> None:
    given = ["-d 172.17.0.9 -p tcp --dport 80 -j DROP", "-d 172.17.0.2 -j RETURN", "-s 172.17.0.9 -j ACCEPT"]
    document = host(engine, [ADMIN], given)
    finding = only(stale_address, document)
    assert (finding.severity, finding.certainty, finding.subject) == ("high", "definite", "172.17.0.9")
    assert finding.place is not None
    assert (finding.place.chain, finding.place.position) == ("DOCKER-USER", 1)
    assert "Rules 1 and 3 of DOCKER-USER" in finding.message
    assert "network bridge" in finding.message
    assert finding.fix is not None
    assert (finding.fix.gains, finding.fix.loses) == ((), ())
    assert found(stale_address, fixed(document, finding)) == []


@pytest.mark.parametrize(
    "rule",
    [
        # A container's, the bridge's own, a whole network, the ends of it, other networks.
        "-d 172.17.0.2 -j DROP",
        "-d 172.17.0.1 -j DROP",
        "-d 172.17.0.0/16 -j DROP",
        "-d 172.17.255.255 -j DROP",
        "! -d 172.17.0.9 -j RETURN",
        "-d 10.0.0.9 -j DROP",
        "-d 203.0.113.9 -j DROP",
        # A stopped container's own, and what Swarm has on its gateway.
        "-d 172.30.0.7 -j DROP",
        "-d 172.18.0.9 -j DROP",
    ],
)
def test_addresses_that_are_somebody_s(rule: str) -> None:
    boxes = [ADMIN, Box("fixed", network="n", address="172.30.0.7", running=False)]
    document = host("28.5", boxes, [rule], networks=[Net("n", "172.30.0.0/24")], services=[("web", "8090:80")])
    gateway = next(item for item in document["docker"]["networks"] if item["Name"] == "docker_gwbridge")
    assert gateway["IPAM"]["Config"][0]["Subnet"] == "172.18.0.0/16"
    assert found(stale_address, document) == []


def test_a_stopped_container_may_have_had_it() -> None:
    document = host("28.5", [ADMIN, Box("old", "81:81", running=False)], ["-d 172.17.0.3 -j DROP"])
    assert "address of old" in only(stale_address, document).message


def test_ufw_automated_7_rules_in_a_chain_below() -> None:
    document = ufw_docker(host("28.5", [ADMIN]), route=["-s 172.17.0.9 -d 192.168.1.0/24 -j DROP"])
    assert said(stale_address, document) == [("ufw-user-forward", 1, "high", "definite")]


def test_ipv6() -> None:
    document = host("28.5", [ADMIN], docker_user6=["-d fd00:17::9 -j DROP", "-d fd00:17::2 -j DROP"], ipv6=True)
    assert said(stale_address, document) == [("DOCKER-USER", 1, "high", "definite")]


def test_a_policy_s_container_has_moved() -> None:
    office = {"name": "office", "container": "admin", "source": OFFICE, "action": "accept"}
    now = [Box("admin", "9000:8080", address="172.17.0.9"), Box("shop", "8080:8080", address="172.17.0.7")]
    document = host("28.5", now, **rules([ADMIN, SHOP], office))
    finding = only(stale_address, document)
    assert "Policy office" in finding.message
    assert "Docker leads the policy's host port to admin" in finding.message
    assert finding.fix is not None
    assert finding.fix.tasks[0]["quaywall.docker.docker_user_rule"] == {**office, "otherwise": "drop"}


@pytest.mark.parametrize("layout", ["new", "old"])
def test_moby_32048_a_dnat_that_leads_nowhere(layout: str) -> None:
    document = fixture("moby-32048", layout)
    finding = only(stale_address, document)
    assert finding.place is not None
    assert (finding.place.table, finding.place.chain, finding.severity) == ("nat", "DOCKER", "high")
    assert "172.17.0.17, which no container has" in finding.message
    assert "before the rule for c2 (18968->18968/tcp)" in finding.message
    assert finding.fix is not None
    assert finding.fix.gains == ("anyone: c2 (18968->18968/tcp) over IPv4",)
    (line,) = finding.fix.commands
    assert line.startswith("iptables -w 10 -t nat -D DOCKER ")
    after = with_rules(document, IPV4, "nat", ["-D DOCKER " + finding.place.rule])
    assert found(stale_address, after) == found(stale_address, fixture("moby-32048", layout + "-control")) == []


def test_moby_10354() -> None:
    line = "-A DOCKER -d 192.168.100.72 ! -i docker0 -p tcp --dport 8301 -j DNAT --to-destination 172.17.0.70:8301"
    document = with_rules(host("20.10", [ADMIN]), IPV4, "nat", [line])
    assert "port 8301 to 172.17.0.70" in only(stale_address, document).message


def test_an_accept_of_docker_for_nobody() -> None:
    line = "-I DOCKER -d 172.17.0.70/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 8301 -j ACCEPT"
    document = with_rules(host("28.5", [ADMIN]), IPV4, "filter", [line])
    assert said(stale_address, document) == [("DOCKER", 1, "high", "definite")]
    assert found(stale_address, fixed(document, only(stale_address, document))) == []


# An address that is another container's ------------------------------------------------------------------------------

POLICIES: t.Dict[str, t.Dict[str, t.Any]] = {
    "accept": {"destination_port": ["8080"], "source": OFFICE, "action": "accept", "otherwise": "drop"},
    "return": {"source": OFFICE, "action": "return", "otherwise": "reject"},
    "drop": {"destination_port": ["8080"], "action": "drop", "otherwise": "none"},
    "some are dropped": {"source": [*OFFICE, "198.51.100.7/32"], "action": "drop", "otherwise": "none"},
    "all protocols": {"protocol": "all", "action": "drop", "otherwise": "none"},
    "interface": {"in_interface": "eth0", "source": OFFICE, "action": "accept", "otherwise": "drop"},
    "neighbours": {"action": "drop", "otherwise": "none", "same_network": "filter"},
    "priority": {"action": "reject", "otherwise": "none", "priority": 10},
}


@pytest.mark.parametrize("name", POLICIES)
def test_two_containers_have_changed_places(name: str) -> None:
    """As at a reboot: both run, and each has the other's address."""
    policy = {"name": "guard", "container": "admin", **POLICIES[name]}
    written = rules([ADMIN, SHOP], policy)
    assert found(wrong_owner, host("28.5", [ADMIN, SHOP], **written)) == []
    document = host("28.5", [SHOP, ADMIN], **written)
    finding = only(wrong_owner, document)
    assert (finding.severity, finding.certainty) == ("critical", "possible")
    assert finding.place is not None
    assert (finding.place.family, finding.place.chain) == (IPV4, "DOCKER-USER")
    assert [(item.container, item.meant) for item in finding.affected] == [("shop", False), ("admin", True)]
    assert "Policy guard (IPv4) is about 172.17.0.2, which is shop's now" in finding.message
    # The policy is told from its rules, and written again it is right.
    assert finding.fix is not None
    options = finding.fix.tasks[0]["quaywall.docker.docker_user_rule"]
    assert Policy.from_options(options) == Policy.from_options(policy)
    after = host("28.5", [SHOP, ADMIN], **rules([SHOP, ADMIN], options))
    assert [found(check, after) for check in CHECKS] == [[], [], []]


def test_a_container_that_has_no_such_port_is_another_one() -> None:
    written = rules(
        [ADMIN, SHOP], {"name": "guard", "container": "admin", "destination_port": ["8080"], "action": "drop"}
    )
    document = host("28.5", [Box("mail", "25:25"), ADMIN], **written)
    finding = only(wrong_owner, document)
    assert finding.certainty == "definite"
    assert [(item.container, item.meant) for item in finding.affected] == [("mail", False), ("admin", True)]


@pytest.mark.parametrize(
    ("now", "certainty"),
    [
        # The container is gone, and its address is shop's.
        ([SHOP], "possible"),
        # It may be the same container, published on another port.
        ([Box("admin", "9001:8080")], "possible"),
        # Nobody publishes the port, and nothing says whose the address was.
        ([Box("plain"), SHOP], ""),
        ([ADMIN], ""),
        ([Box("admin", "9000:8080"), SHOP], ""),
    ],
)
def test_what_the_rules_of_a_policy_tell(now: t.List[Box], certainty: str) -> None:
    written = rules([ADMIN, SHOP], {"name": "guard", "container": "admin", "source": OFFICE, "action": "accept"})
    findings = found(wrong_owner, host("28.5", now, **written))
    assert [item.certainty for item in findings] == ([certainty] if certainty else [])


@pytest.mark.parametrize(
    "policy",
    [
        {"container": "admin", "action": "drop", "match": "published_port"},
        {"published_port": "9000", "action": "drop"},
        {"destination": "172.17.0.2", "action": "drop"},
        {"network": "bridge", "action": "drop"},
        # An address alone says nothing of whom it was for.
        {"container": "admin", "action": "drop", "match": "address"},
    ],
)
def test_nothing_tells_whose_it_was(policy: t.Dict[str, t.Any]) -> None:
    written = rules([ADMIN, SHOP], {"name": "guard", **policy})
    assert found(wrong_owner, host("28.5", [SHOP, ADMIN], **written)) == []


def test_a_network_that_was_made_anew() -> None:
    """The same subnet on another bridge: its containers are others, or at least the exempt bridge is gone."""
    net = Net("back", "172.30.0.0/24")
    written = rules([DB], {"name": "guard", "container": "db", "action": "drop", "match": "address"}, networks=[net])
    assert found(wrong_owner, host("28.5", [DB], networks=[net], **written)) == []
    again = Net("back", "172.30.0.0/24", identity="f" * 64)
    finding = only(wrong_owner, host("28.5", [DB], networks=[again], **written))
    assert finding.certainty == "possible"
    assert "is on br-ffffffffffff now" in finding.message
    assert found(covers_no_container, host("28.5", [DB], networks=[again], **written)) == []


def test_replicas_by_label_share_a_policy() -> None:
    labels = {"com.docker.compose.service": "app"}
    one, two = Box("app-1", "8001:80", labels=labels), Box("app-2", "8002:80", labels=labels)
    three = Box("app-3", labels=labels)
    written = rules([one, two, three], {"name": "app", "labels": labels, "source": OFFICE, "action": "accept"})
    for boxes in ([one, two, three], [two, one, three], [three, two, one]):
        assert found(wrong_owner, host("28.5", boxes, **written)) == []


# Networks without containers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("-i br-0123456789ab -j DROP", ("medium", "definite")),
        ("-d 172.17.0.2 ! -i br-0123456789ab -j DROP", ("medium", "definite")),
        # A network that Docker may have had; or one beyond the router.
        ("-d 172.20.0.0/16 -j DROP", ("medium", "possible")),
        ("-d 172.20.0.5 -j DROP", ("medium", "possible")),
        ("-d 192.168.16.0/20 -j DROP", ("medium", "possible")),
        ("-d 172.20.0.0/16 -i eth0 -j DROP", ("medium", "definite")),
        # What containers send out is about networks that have none.
        ("-d 172.20.0.0/16 -i docker0 -j DROP", None),
        ("-d 10.20.0.0/16 -j DROP", None),
        ("-d 192.168.0.0/16 -j DROP", None),
        ("-d 172.16.0.0/12 -j DROP", None),
        ("-d 203.0.113.0/24 -j DROP", None),
        ("-d 198.51.100.0/24 -j DROP", None),
        # Docker's networks, with containers and without.
        ("-d 172.17.0.0/16 -j DROP", None),
        ("-d 172.17.128.0/17 -j DROP", ("medium", "definite")),
        ("-d 172.30.0.0/24 -j DROP", ("medium", "definite")),
        ("-o br-empty -j DROP", ("medium", "definite")),
        ("-o br-empty -j ACCEPT", None),
        ("-o docker0 -j DROP", None),
        # Interfaces that are none of Docker's come and go.
        ("-i wg0 -j DROP", None),
        ("-o br-lan -j DROP", None),
    ],
)
def test_networks(rule: str, expected: t.Optional[t.Tuple[str, str]]) -> None:
    nets = [Net("empty", "172.30.0.0/24", bridge="br-empty")]
    document = host("28.5", [ADMIN], [rule], networks=nets)
    findings = found(covers_no_container, document)
    assert [(item.severity, item.certainty) for item in findings] == ([] if expected is None else [expected])
    for finding in findings:
        assert finding.place is not None
        assert (finding.place.chain, finding.place.position) == ("DOCKER-USER", 1)
        assert found(covers_no_container, fixed(document, finding)) == []


def test_rules_for_one_network_are_one_finding() -> None:
    given = ["-i br-0123456789ab -j DROP", "-s 10.0.0.0/8 -j RETURN", "-o br-0123456789ab -j DROP"]
    finding = only(covers_no_container, host("28.5", [ADMIN], given))
    assert "Rules 1 and 3 of DOCKER-USER" in finding.message


def test_a_policy_for_a_network_waits_for_its_containers() -> None:
    written = rules([DB], {"name": "back", "network": "back", "action": "drop"})
    stopped = Box("db", "3306:3306", network="back", running=False)
    finding = only(covers_no_container, host("28.5", [stopped], **written))
    assert finding.severity == "info"
    gone = found(covers_no_container, host("28.5", [ADMIN], **written))
    assert [(item.severity, "policy back" in item.message) for item in gone] == [("medium", True)]


def test_one_fact_is_said_once() -> None:
    """A rule with an address that nobody has is that check's."""
    document = host("28.5", [ADMIN], ["-d 172.17.0.9 ! -i br-0123456789ab -j DROP"])
    assert [len(found(check, document)) for check in CHECKS] == [1, 0, 0]


@pytest.mark.parametrize("check", CHECKS)
def test_tools_and_real_hosts(check: t.Any) -> None:
    for document in (
        *(captured(name) for name in CAPTURES),
        *(ufw_docker(host("28.5", [DB]), age) for age in ("old", "new")),
        firewalld(host("28.5", [ADMIN])),
        libvirt(host("28.5", [ADMIN])),
        *(fixture("moby-48560", variant) for variant in ("new-hooked", "old-hooked")),
    ):
        assert found(check, document) == []


@pytest.mark.parametrize("check", CHECKS)
def test_what_is_missing_is_no_error(check: t.Any) -> None:
    given = ["-d 172.17.0.9 -j DROP", "-i br-0123456789ab -j DROP", "-d 172.20.0.0/16 -j DROP"]
    document = host("28.5", [ADMIN], given)
    for part in ("nft", "interfaces", "routes", "iptables"):
        found(check, edited(document, **{part: None}))
    # Whose an address is, Docker alone knows.
    assert found(check, edited(document, docker=None)) == []


def test_many_policies_are_told_without_end() -> None:
    """After a reboot every policy of a big host is about another container."""
    boxes = [Box("app%d" % number, "%d:80" % (8000 + number)) for number in range(300)]
    policies = [
        {"name": "app%d" % number, "container": "app%d" % number, "source": OFFICE, "action": "accept"}
        for number in range(300)
    ]
    document = host("28.5", boxes[::-1], **rules(boxes, *policies))
    findings = list(wrong_owner(Survey(from_json(document))))
    assert len(findings) == 300
    assert all(item.fix is not None and item.fix.tasks for item in findings)
