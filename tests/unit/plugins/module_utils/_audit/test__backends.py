# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who writes the rules: both variants of iptables, Docker's nftables, nobody; and what could not be read."""

from __future__ import annotations

import shlex
import typing as t

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._audit._backends import (
    backend_mixed,
    backend_nftables,
    docker_iptables_off,
    snapshot_incomplete,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import Survey
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
BOTH = {("shop", "8080->80/tcp"), ("admin", "9000->8080/tcp")}
NEW = [":DOCKER-USER - [0:0]", "-A DOCKER-USER -p tcp --dport 80 -j DROP"]
JUMP = "-A FORWARD -j DOCKER-USER"
LEGACY = "legacy"


def found(check: Check, document: Document) -> t.List[Finding]:
    return list(check(Survey(from_json(document))))


def only(check: Check, document: Document) -> Finding:
    (finding,) = found(check, document)
    return finding


def ports(finding: Finding) -> t.Set[t.Tuple[str, str]]:
    return {(item.container, item.published) for item in finding.affected if item.published}


def small(engine: str = "28.5") -> Document:
    return host(engine, BOXES)


def legacy(*lines: str, family: str = IPV4, table: str = "filter", engine: str = "28.5") -> Document:
    return with_rules(small(engine), family, table, lines, variant=LEGACY)


@pytest.mark.parametrize("name", CAPTURES)
@pytest.mark.parametrize("check", [backend_mixed, docker_iptables_off, snapshot_incomplete])
def test_captured_hosts_have_none_of_it(check: Check, name: str) -> None:
    assert not found(check, captured(name))


# backend_mixed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["20.10", "28.5"])
def test_a_policy_in_the_other_variant_bites(engine: str) -> None:
    """A legacy DROP wins over an nft ACCEPT."""
    document = legacy("-P FORWARD DROP", engine=engine)
    finding = only(backend_mixed, document)
    assert (finding.severity, finding.certainty) == ("high", "definite")
    assert ports(finding) == BOTH
    assert {item.traffic for item in finding.affected} == {"published port", "outgoing connections"}
    assert finding.place is not None
    assert (finding.place.variant, finding.place.chain) == (LEGACY, "FORWARD")
    assert finding.fix is not None
    (line,) = finding.fix.commands
    assert shlex.split(line) == ["iptables-legacy", "-w", "10", "-P", "FORWARD", "ACCEPT"]
    assert not found(backend_mixed, with_rules(document, IPV4, "filter", ["-P FORWARD ACCEPT"], variant=LEGACY))


@pytest.mark.parametrize(
    ("lines", "hit"),
    [
        (["-A FORWARD -i eth0 -p tcp --dport 80 -j DROP"], {("shop", "8080->80/tcp")}),
        (["-A FORWARD -s 198.51.100.0/24 -j REJECT"], BOTH),
        ([*NEW, JUMP], {("shop", "8080->80/tcp")}),
        # Nothing reads them.
        (NEW, set()),
        ([*NEW[:1], "-A DOCKER-USER -s 10.0.0.0/8 -j ACCEPT"], set()),
        # Docker's chains are there as well, from before.
        ([":DOCKER - [0:0]", "-A FORWARD -o docker0 -j DOCKER"], set()),
        ([":DOCKER - [0:0]", "-P FORWARD DROP", "-A FORWARD -i docker0 -j ACCEPT"], BOTH),
    ],
)
def test_rules_in_the_other_variant(lines: t.List[str], hit: t.Set[t.Tuple[str, str]]) -> None:
    finding = only(backend_mixed, legacy(*lines))
    assert finding.severity == "high"
    assert ports(finding) == hit
    assert finding.fix is None


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["-P INPUT DROP", "-A INPUT -p tcp --dport 22 -j ACCEPT"],
        ["-A FORWARD -j ACCEPT"],
        ["-A FORWARD -p tcp --dport 80 -j ACCEPT"],
        [":DOCKER-USER - [0:0]", "-A DOCKER-USER -j RETURN"],
    ],
    ids=["empty", "INPUT", "ACCEPT", "open in both", "RETURN"],
)
def test_a_harmless_mixture(lines: t.List[str]) -> None:
    assert not found(backend_mixed, legacy(*lines))


def test_an_accept_that_allows_nothing() -> None:
    document = host("28.5", BOXES, ["-i eth0 -j DROP"])
    finding = only(
        backend_mixed, with_rules(document, IPV4, "filter", ["-A FORWARD -p tcp --dport 80 -j ACCEPT"], variant=LEGACY)
    )
    assert ports(finding) == {("shop", "8080->80/tcp")}
    assert "keeps it closed" in finding.message


def test_input_of_the_other_variant_and_docker_proxy() -> None:
    finding = only(backend_mixed, legacy("-P INPUT DROP", "-A INPUT -p tcp --dport 9000 -j ACCEPT", family=IPV6))
    assert [(item.container, item.traffic) for item in finding.affected] == [("shop", "docker-proxy")]


def test_the_default_is_not_what_docker_uses() -> None:
    document = edited(legacy("-P FORWARD DROP"), iptables={"default": {IPV4: LEGACY, IPV6: LEGACY}})
    fix = only(backend_mixed, document).fix
    assert fix is not None
    assert fix.commands == ("iptables -w 10 -P FORWARD ACCEPT",)


# backend_nftables ------------------------------------------------------------------------------------------------


def nftables(*lines: str, family: str = IPV4) -> Document:
    return with_rules(host("29.7", BOXES, backend="nftables"), family, "filter", lines)


def test_without_rules_it_is_told_that_policies_do_nothing() -> None:
    for document in (host("29.7", BOXES, backend="nftables"), captured("docker-29.7-nftables")):
        assert only(backend_nftables, document).severity == "info"
    assert not found(backend_nftables, small("29.7"))


def test_rules_that_nothing_reads() -> None:
    finding = only(backend_nftables, nftables(*NEW))
    assert (finding.severity, finding.certainty) == ("critical", "definite")
    assert ports(finding) == {("shop", "8080->80/tcp")}
    assert "Nothing reads them: shop (8080->80/tcp) is open to everyone." in finding.message


def test_rules_that_an_old_jump_leads_to() -> None:
    """LAB: FORWARD -> DOCKER-USER is left when the backend is switched, and what is in it still drops."""
    finding = only(backend_nftables, nftables(*NEW, JUMP))
    assert (finding.severity, ports(finding)) == ("critical", {("shop", "8080->80/tcp")})
    assert "still leads there" in finding.message


def test_a_policy_of_before() -> None:
    """moby-50566: iptables' policy DROP stops what Docker's tables let in."""
    document = fixture("moby-50566", "nft-plus-iptables-drop")
    finding = only(backend_nftables, document)
    assert (finding.severity, ports(finding)) == ("critical", {("c3", "8080->80/tcp")})
    assert finding.fix is not None
    assert finding.fix.commands == ("iptables -w 10 -P FORWARD ACCEPT",)
    repaired = with_rules(document, IPV4, "filter", ["-P FORWARD ACCEPT"])
    assert only(backend_nftables, repaired).severity == "info"
    assert only(backend_nftables, fixture("moby-50566", "nft-only")).severity == "info"


def test_the_engine_s_word_alone_is_no_proof() -> None:
    """28.2 to 28.5 say nftables and go on with iptables; where nft was not read, 29 and later are believed."""
    said = {"info": {"FirewallBackend": {"Driver": "nftables"}}}
    assert not found(backend_nftables, edited(small(), docker=said))
    assert not found(backend_nftables, edited(small("29.7"), docker=said, nft=None))
    finding = only(backend_nftables, edited(nftables(*NEW), nft=None))
    assert (finding.severity, finding.certainty) == ("critical", "possible")


# docker_iptables_off ---------------------------------------------------------------------------------------------


def test_docker_is_told_to_leave_it() -> None:
    finding = only(docker_iptables_off, host("28.5", BOXES, options={"iptables": False}))
    assert (finding.severity, finding.fix, ports(finding)) == ("high", None, BOTH)
    assert {item.traffic for item in finding.affected} == {"docker-proxy"}
    old = edited(small(), docker={"daemon": {"iptables": False}})
    assert "are old" in only(docker_iptables_off, old).message


def test_rules_were_flushed() -> None:
    """moby-12294: a restart of the iptables service takes Docker's chains away."""
    finding = only(docker_iptables_off, fixture("moby-12294", "wiped"))
    assert finding.severity == "high"
    assert finding.fix is not None
    assert finding.fix.commands == ("systemctl restart docker",)


@pytest.mark.parametrize("table", ["nat", "filter", ""])
def test_one_table_was_flushed(table: str) -> None:
    document = small()
    text = document["iptables"][IPV4]["nft"]
    kept = [] if not table else [part for part in text.split("COMMIT\n") if "*%s\n" % table not in part]
    document["iptables"][IPV4]["nft"] = "COMMIT\n".join(kept) or None
    finding = only(docker_iptables_off, document)
    assert (finding.subject, ports(finding)) == ("gone", BOTH)


@pytest.mark.parametrize(
    "document",
    [
        small("20.10"),
        host("28.5", [Box("own", "127.0.0.1:8080:80")]),
        host("28.5", [Box("db")]),
        host("28.5", [Box("a", "80:80", network="r")], networks=[Net("r", gateway_mode="routed")]),
        edited(host("28.5"), iptables={IPV4: {"nft": None}}),
        edited(small(), iptables=None),
        edited(small(), iptables={IPV4: {"nft": None}}, holes=[{"part": "iptables_ipv4_nft", "reason": "Why."}]),
        edited(small(), docker=None, iptables={IPV4: {"nft": None}}),
        edited(
            small(),
            docker={"info": {"SecurityOptions": ["name=rootless"]}},
            iptables={IPV4: {"nft": "# Nothing\n"}, IPV6: {"nft": None}},
        ),
        edited(small(), iptables={IPV4: {"nft": "# Table `filter' is incompatible, use 'nft' tool.\n"}}),
        host("29.7", BOXES, backend="nftables"),
        host("29.7", BOXES, options={"ip6tables": False}),
    ],
    ids=[
        "old",
        "loopback",
        "unpublished",
        "routed",
        "nothing runs",
        "unread",
        "hole",
        "no docker",
        "rootless",
        "incompatible",
        "nftables",
        "ip6tables",
    ],
)
def test_docker_s_rules_are_there_or_not_known(document: Document) -> None:
    assert not found(docker_iptables_off, document)


# snapshot_incomplete ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "severity"),
    [
        ("docker", "medium"),
        ("iptables", "medium"),
        ("iptables_ipv4_nft", "medium"),
        ("iptables_ipv6_nft_filter", "medium"),
        ("iptables_ipv4_nft_mangle", "low"),
        ("iptables_ipv4_legacy", "low"),
        ("nft", "low"),
        ("ipsets", "low"),
        ("proxies", "low"),
        ("sysctls", "low"),
        ("interfaces", "low"),
        ("routes", "low"),
        ("saved", "low"),
        ("services", "info"),
        ("listening", "info"),
        ("something", "low"),
    ],
)
def test_a_hole(part: str, severity: str) -> None:
    document = edited(small(), holes=[{"part": part, "reason": "It was locked."}])
    if part == "docker":
        document["docker"] = None
    finding = only(snapshot_incomplete, document)
    assert (finding.severity, finding.subject) == (severity, part)
    assert finding.message.startswith("It was locked. So it could not be judged ")


def test_docker_s_options_are_a_small_hole() -> None:
    reason = "/etc/docker/daemon.json is no JSON object."
    finding = only(snapshot_incomplete, edited(small(), holes=[{"part": "docker", "reason": reason}]))
    assert finding.severity == "low"


def test_the_same_reason_is_said_once() -> None:
    holes = [{"part": "iptables_%s_nft" % family, "reason": "Only root may."} for family in (IPV4, IPV6)]
    holes += [{"part": "iptables_ipv4_nft_nat", "reason": "Only root may."}]
    findings = found(snapshot_incomplete, edited(small(), holes=holes))
    assert [finding.subject for finding in findings] == ["iptables_ipv4_nft iptables_ipv4_nft_nat", "iptables_ipv6_nft"]


def test_a_table_that_iptables_cannot_show() -> None:
    document = without_rules(small(), IPV4, lambda line: False)
    document["iptables"][IPV4]["nft"] = "# Table `filter' is incompatible, use 'nft' tool.\n"
    assert only(snapshot_incomplete, document).severity == "medium"


@pytest.mark.parametrize(
    ("chain", "severity"),
    [("filter DOCKER-USER", "medium"), ("filter FORWARD", "medium"), ("filter MINE", "medium"), ("nat MINE", "low")],
)
def test_a_misprinted_chain(chain: str, severity: str) -> None:
    document = with_rules(small(), IPV4, "filter", [":MINE - [0:0]", "-A DOCKER-USER -j MINE"])
    finding = only(snapshot_incomplete, edited(document, nft={"misprinted": {IPV4: [chain]}}))
    assert finding.severity == severity
    assert "nft list chain ip %s" % chain in finding.message
    assert finding.place is not None
    assert "%s %s" % (finding.place.table, finding.place.chain) == chain
