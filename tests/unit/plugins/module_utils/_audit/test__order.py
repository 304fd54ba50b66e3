# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether FORWARD reads DOCKER-USER first, and rules that nothing is left for.

The layouts of FORWARD are those of the engines (docker-firewall-facts 1.2), and people's cases.
"""

from __future__ import annotations

import shlex
import typing as t

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._audit._order import (
    jump_missing,
    jump_not_first,
    jump_window,
    unreachable_rule,
)
from ansible_collections.quaywall.docker.tests.unit.audits import found, only
from ansible_collections.quaywall.docker.tests.unit.foreign import interface, tailscale, ufw_docker
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
    rules_of,
    with_rules,
    without_rules,
)

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import Finding

BOXES = (Box("admin", "9000:8080"), Box("shop", "8080:8080"))
OLD = ("20.10", "26.1")
ORIGINAL = "-p tcp -m conntrack --ctstate DNAT --ctorigdstport %d --ctdir ORIGINAL -j DROP"
GUARD = ORIGINAL % 9000
POLICY = '-m comment --comment "quaywall:%s"'


def small(*rules: str, engine: str = "28.5", **options: t.Any) -> Document:
    return host(engine, containers=BOXES, docker_user=rules, **options)


def done(document: Document, finding: Finding) -> Document:
    """The host after the commands of a fix, also those of iptables-restore."""
    assert finding.fix is not None
    assert finding.fix.tasks
    for line in finding.fix.commands:
        words = shlex.split(line)
        if words[0] == "printf":
            first, *lines, last = words[2 : words.index("|")]
            assert (first, last) == ("*filter", "COMMIT")
            assert words[words.index("|") + 1 :] == ["iptables-restore", "--noflush", "--wait", "10"]
        else:
            assert words[1:3] == ["-w", "10"]
            lines = [" ".join(words[3:])]
        family = IPV6 if finding.place is not None and finding.place.family == IPV6 else IPV4
        document = with_rules(document, family, "filter", lines)
    return document


# The jump ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_the_jump_is_missing(engine: str) -> None:
    document = without_rules(small(GUARD, engine=engine), IPV4, lambda line: line == "-A FORWARD -j DOCKER-USER")
    finding = only(jump_missing, document)
    assert (finding.severity, finding.certainty) == ("critical", "definite")
    assert finding.place is not None
    assert (finding.place.family, finding.place.chain, finding.place.position) == (IPV4, "FORWARD", 0)
    assert [(item.container, item.published, item.peers) for item in finding.affected] == [
        ("admin", "9000->8080/tcp", "anyone")
    ]
    assert "admin (9000->8080/tcp)" in finding.message
    assert finding.fix is not None
    assert finding.fix.commands == ("iptables -w 10 -I FORWARD 1 -j DOCKER-USER",)
    assert (finding.fix.gains, finding.fix.loses) == ((), ("anyone: admin (9000->8080/tcp) over IPv4",))
    after = done(document, finding)
    assert rules_of(after, IPV4, "filter", "FORWARD")[0] == "-j DOCKER-USER"
    assert found(jump_missing, after) == found(jump_not_first, after) == []


@pytest.mark.parametrize(
    ("document", "families"),
    [
        (small(), []),
        # Engines before 27 do nothing in ip6tables, 20.10 has no chain there at all.
        (small(engine="20.10", options={"ip6tables": True}), []),
        (with_rules(small(engine="26.1"), IPV6, "filter", ["-P FORWARD ACCEPT"]), []),
        (without_rules(small(ipv6=True), IPV6, lambda line: line == "-A FORWARD -j DOCKER-USER"), [IPV6]),
        # Docker is not there, and somebody's rules are.
        (with_rules(host("26.1", options={"iptables": False}), IPV4, "filter", [":DOCKER-USER -"]), []),
        (
            with_rules(
                host("26.1", options={"iptables": False}),
                IPV4,
                "filter",
                [":DOCKER-USER -", "-A DOCKER-USER -s 10.0.0.0/8 -j DROP"],
            ),
            [IPV4],
        ),
        # Another chain leads there.
        (
            with_rules(
                small(GUARD),
                IPV4,
                "filter",
                [":MINE -", "-A MINE -j DOCKER-USER", "-D FORWARD 1", "-I FORWARD -j MINE"],
            ),
            [],
        ),
        (host("29.7", BOXES, backend="nftables"), []),
    ],
)
def test_where_the_jump_is_missing(document: Document, families: t.List[str]) -> None:
    assert [item.place and item.place.family for item in found(jump_missing, document)] == families


@pytest.mark.parametrize("layout", ["new", "old"])
def test_moby_48560(layout: str) -> None:
    assert only(jump_missing, fixture("moby-48560", layout + "-unhooked")).severity == "critical"
    assert found(jump_missing, fixture("moby-48560", layout + "-hooked")) == []


def test_moby_48568_rules_of_nft_keep_docker_from_adding_the_jump() -> None:
    document = edited(small(), nft={"misprinted": {IPV4: ["filter DOCKER-USER"], IPV6: []}})
    document = without_rules(document, IPV4, lambda line: line == "-A FORWARD -j DOCKER-USER")
    assert "nft wrote" in only(jump_missing, document).message


def _last(document: Document) -> Document:
    """Docker's rules above the jump: after a reload of firewalld, or at a start with live-restore."""
    return with_rules(document, IPV4, "filter", ["-D FORWARD -j DOCKER-USER", "-A FORWARD -j DOCKER-USER"])


@pytest.mark.parametrize("engine", ENGINES)
def test_dockers_own_rules_above_the_jump(engine: str) -> None:
    document = _last(small(GUARD, engine=engine))
    finding = only(jump_not_first, document)
    jump = rules_of(document, IPV4, "filter", "FORWARD").index("-j DOCKER-USER") + 1
    assert finding.place is not None
    assert (finding.severity, finding.certainty) == ("critical", "definite")
    assert (finding.place.chain, finding.place.position, finding.place.rule) == ("FORWARD", jump, "-j DOCKER-USER")
    assert [(item.container, item.peers) for item in finding.affected] == [("admin", "anyone"), ("shop", "anyone")]
    assert finding.fix is not None
    assert finding.fix.loses == ("anyone: admin (9000->8080/tcp) over IPv4",)
    after = done(document, finding)
    assert rules_of(after, IPV4, "filter", "FORWARD").count("-j DOCKER-USER") == 1
    assert found(jump_not_first, after) == []


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["-I FORWARD -i eth0 -j ACCEPT"], ["rule 1 of FORWARD accepts"]),
        (["-I FORWARD -p tcp --dport 8080 -j ACCEPT"], ["rule 1 of FORWARD accepts"]),
        ([":MINE -", "-A MINE -j ACCEPT", "-I FORWARD -j MINE"], ["rule 1 of MINE accepts"]),
        # firewalld's rules above Docker's.
        (
            ["-I FORWARD -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT"],
            ["rule 1 of FORWARD accepts"],
        ),
        # Nobody gets in before, whatever stands there.
        (["-I FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"], []),
        (["-I FORWARD -s 192.0.2.66 -j DROP"], []),
        (["-I FORWARD -i wg0 -j ACCEPT"], []),
        (["-I FORWARD -o virbr0 -j ACCEPT"], []),
        ([":f2b -", "-A f2b -s 192.0.2.66 -j REJECT", "-A f2b -j RETURN", "-I FORWARD -j f2b"], []),
        (["-I FORWARD -p tcp --dport 9000 -j ACCEPT"], []),
        # Read for one interface only; the rules of Docker accept the rest.
        (["-D FORWARD 1", "-I FORWARD -i eth1 -j DOCKER-USER"], ["of DOCKER accept"]),
        (["-D FORWARD 1", "-I FORWARD -i eth0 -j DOCKER-USER"], []),
        # What containers send out, where DOCKER-USER has something to say about it.
        (["-I FORWARD -i docker0 -j ACCEPT"], []),
        (["-I DOCKER-USER -d 10.0.0.0/8 -i docker0 -j DROP", "-I FORWARD -i docker0 -j ACCEPT"], ["rule 1 of FORWARD"]),
    ],
)
def test_what_may_stand_before_the_jump(lines: t.List[str], said: t.List[str]) -> None:
    findings = found(jump_not_first, with_rules(small(GUARD), IPV4, "filter", lines))
    assert len(findings) == len(said)
    assert all(text in finding.message for text, finding in zip(said, findings))


def test_before_the_jump_what_is_not_understood_is_possible() -> None:
    document = with_rules(small(GUARD), IPV4, "filter", ["-I FORWARD -m geoip --source-country XX -j ACCEPT"])
    finding = only(jump_not_first, document)
    assert finding.certainty == "possible"
    assert "geoip" in finding.reasons[0]


def test_before_the_jump_without_published_ports() -> None:
    document = host("28.5", [Box("app")])
    assert found(jump_not_first, with_rules(document, IPV4, "filter", ["-I FORWARD -i eth0 -j ACCEPT"])) != []
    assert found(jump_not_first, with_rules(document, IPV4, "filter", ["-I FORWARD -i eth1 -j ACCEPT"])) == []


def test_tailscale_above_the_jump() -> None:
    """Its packets pass DOCKER-USER by; while nothing is there that is about them, that is no matter."""
    assert found(jump_not_first, tailscale(small(), first=True)) == []
    finding = only(jump_not_first, tailscale(small(GUARD), first=True))
    assert [(item.container, item.peers) for item in finding.affected] == [("admin", "anyone through tailscale0")]
    assert found(jump_not_first, tailscale(small(GUARD))) == []


# Moments without the jump --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "options", "certainty"),
    [
        ("20.10", {}, "definite"),
        ("26.1", {}, "definite"),
        ("28.5", {}, ""),
        ("29.7", {}, ""),
        ("28.5", {"live-restore": True}, "definite"),
        ("29.7", {"live-restore": True}, "possible"),
    ],
)
def test_moments_without_the_jump(engine: str, options: t.Dict[str, t.Any], certainty: str) -> None:
    findings = found(jump_window, small("-s 192.0.2.0/24 -j RETURN", GUARD, engine=engine, options=options))
    assert [(item.severity, item.certainty) for item in findings] == ([("low", certainty)] if certainty else [])
    for finding in findings:
        assert [(item.container, item.peers) for item in finding.affected] == [("admin", "anyone but 192.0.2.0/24")]


@pytest.mark.parametrize(
    ("rules", "guards"),
    [
        # Nothing is denied, so nothing is open for a moment.
        (["-s 10.0.0.0/8 -j RETURN"], []),
        ([], []),
        (["-p tcp --dport 9000 -j DROP"], []),
        # mangle FORWARD denies the same.
        ([GUARD], ["-A FORWARD " + GUARD]),
    ],
)
def test_nothing_is_open_in_these_moments(rules: t.List[str], guards: t.List[str]) -> None:
    document = small(*rules, engine="26.1")
    assert found(jump_window, with_rules(document, IPV4, "mangle", guards) if guards else document) == []


@pytest.mark.parametrize(
    ("rules", "stays"),
    [
        (["-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", GUARD], True),
        (["-i eth0 -p tcp -m conntrack --ctstate NEW -j DROP"], True),
        (["-d 172.17.0.0/16 -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j DROP"], True),
        ([GUARD], False),
        (["-i eth0 -j DROP", "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"], False),
    ],
)
def test_who_got_in_may_be_stopped_afterwards(rules: t.List[str], stays: bool) -> None:
    """Kernel facts 5: all that got in still carried data where ESTABLISHED comes first."""
    assert ("stays in" in only(jump_window, small(*rules, engine="26.1")).message) == stays


def test_a_guard_for_some_is_no_guard_for_others() -> None:
    document = small(GUARD, ORIGINAL % 8080, engine="26.1")
    finding = only(jump_window, with_rules(document, IPV4, "mangle", ["-A FORWARD " + GUARD]))
    assert [item.container for item in finding.affected] == ["shop"]


# Rules that nothing is left for --------------------------------------------------------------------------------------


def dead(document: Document) -> t.List[t.Tuple[str, int, str]]:
    return [
        (item.place.chain, item.place.position, item.severity)
        for item in found(unreachable_rule, document)
        if item.place is not None
    ]


ESTABLISHED = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (["-j RETURN", "-s 192.0.2.1/32 -j DROP", "-p tcp -j DROP"], [2, 3]),
        (["-i eth0 -j DROP", "-s 192.0.2.1/32 -i eth0 -j ACCEPT"], [2]),
        # eth0 alone leads out of the host.
        (["-i eth0 -j DROP", "-s 192.0.2.1/32 -j ACCEPT"], [2]),
        (["-s 10.0.0.0/9 -j DROP", "-s 10.128.0.0/9 -j DROP", "-s 10.0.0.0/8 -j ACCEPT"], [3]),
        # The same is said twice, and on this host only: no matter.
        (["-i eth0 -j DROP", "-s 192.0.2.1/32 -j DROP"], []),
        # What stands there by good custom.
        ([ESTABLISHED, ESTABLISHED.replace("ACCEPT", "RETURN"), GUARD, "-j RETURN", "-j RETURN"], []),
        ([GUARD, "-d 172.17.0.2/32 ! -i docker0 -p tcp --dport 8080 -j DROP"], []),
        (["-j DROP", "-j RETURN"], []),
        (["-j LOG", GUARD], []),
    ],
)
def test_rules_that_nothing_is_left_for(rules: t.List[str], expected: t.List[int]) -> None:
    document = small(*rules)
    assert dead(document) == [("DOCKER-USER", position, "medium") for position in expected]
    # Without them the host is the same, and nothing is said of it any more.
    while found(unreachable_rule, document):
        document = done(document, found(unreachable_rule, document)[0])
    assert len(rules_of(document, IPV4, "filter", "DOCKER-USER")) == len(rules) - len(expected)


def test_another_way_in_is_another_matter() -> None:
    rules = ["-i eth0 -j DROP", "-s 192.0.2.1/32 -j ACCEPT"]
    assert dead(interface(small(*rules), "eth1", "198.51.100.1/24")) == []


def test_in_words() -> None:
    finding = only(unreachable_rule, small("-i eth0 -j DROP", "-s 192.0.2.1/32 -i eth0 -j ACCEPT"))
    assert "rule 1 already drops every packet that it matches" in finding.message
    assert "has to stand before rule 1 of DOCKER-USER" in finding.message
    assert finding.fix is not None
    assert finding.fix.commands == ("iptables -w 10 -D DOCKER-USER -s 192.0.2.1/32 -i eth0 -j ACCEPT",)
    assert (finding.fix.gains, finding.fix.loses) == ((), ())


def test_a_rule_that_stands_there_twice_goes_by_its_number() -> None:
    document = small("-s 192.0.2.0/24 -j DROP", "-s 192.0.2.1/32 -j RETURN", GUARD, "-s 192.0.2.1/32 -j RETURN")
    fixes = [item.fix.commands for item in found(unreachable_rule, document) if item.fix is not None]
    assert fixes == [
        ("iptables -w 10 -D DOCKER-USER -s 192.0.2.1/32 -j RETURN",),
        ("iptables -w 10 -D DOCKER-USER 4",),
    ]


def test_a_policy_without_effect() -> None:
    rule = "-s 203.0.113.0/24 -d 172.17.0.2/32 ! -i docker0 -p tcp -m tcp --dport 8080 %s -j ACCEPT" % (
        POLICY % "office"
    )
    deny = "-d 172.17.0.2/32 ! -i docker0 -p tcp -m tcp --dport 8080 %s -j DROP" % (POLICY % "office")
    # A foreign RETURN for everybody: the denial is never read.
    finding = only(unreachable_rule, small("-j RETURN", deny))
    assert "policy office" in finding.message
    assert "rule 1 of DOCKER-USER" in finding.message
    assert finding.fix is None
    # A foreign denial of all that comes in: nobody is let in.
    assert "policy office" in only(unreachable_rule, small("-i eth0 -j DROP", rule, deny)).message
    # Policies add up, and what two of them deny is denied once.
    assert found(unreachable_rule, small(rule, deny, deny.replace("office", "other"))) == []
    assert found(unreachable_rule, small("-s 203.0.113.0/24 -j ACCEPT", rule, deny)) == []


def test_a_foreign_rule_behind_a_policy() -> None:
    deny = "-d 172.17.0.2/32 ! -i docker0 -p tcp -m tcp --dport 8080 %s -j DROP" % (POLICY % "office")
    document = small(deny, "-s 198.51.100.1/32 -d 172.17.0.2/32 -i eth0 -p tcp -m tcp --dport 8080 -j ACCEPT")
    assert "rule 1 (policy office) already drops" in only(unreachable_rule, document).message


@pytest.mark.parametrize("layout", ["new", "old"])
def test_ufw_docker_12(layout: str) -> None:
    """RETURN for containers' sources stands before the jump that leads to the deny."""
    finding = only(unreachable_rule, fixture("ufw-docker-12", layout))
    assert finding.place is not None
    assert (finding.place.chain, finding.place.position) == ("ufw-user-forward", 1)
    assert "rule 2 of DOCKER-USER already returns" in finding.message
    assert "before rule 2 of DOCKER-USER" in finding.message


@pytest.mark.parametrize("layout", ["new", "old"])
def test_luci_dockerman_54_return_is_no_permission(layout: str) -> None:
    finding = only(unreachable_rule, fixture("luci-dockerman-54", layout + "-return"))
    assert finding.severity == "medium"
    assert "RETURN is no permission" in finding.message
    assert found(unreachable_rule, fixture("luci-dockerman-54", layout + "-accept")) == []


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (["-s 10.0.0.0/8 -j RETURN"], [("DOCKER-USER", 1, "info")]),
        (["-s 10.0.0.0/8 -j RETURN", GUARD], []),
        (["-s 10.0.0.0/8 -j RETURN", "-j ACCEPT"], []),
        ([GUARD, "-s 10.0.0.0/8 -j RETURN", "-j RETURN"], [("DOCKER-USER", 2, "info")]),
        ([ESTABLISHED.replace("ACCEPT", "RETURN")], []),
        (["-s 10.0.0.0/8 %s -j RETURN" % (POLICY % "office")], []),
    ],
)
def test_return_before_nothing(rules: t.List[str], expected: t.List[t.Tuple[str, int, str]]) -> None:
    assert dead(small(*rules)) == expected


def test_moby_24848_a_second_jump() -> None:
    lines = [":SALT -", "-A SALT -p tcp --dport 22 -j DROP", "-A FORWARD -i eth0 -j SALT", "-A FORWARD -i eth0 -j SALT"]
    document = with_rules(host("20.10", BOXES), IPV4, "filter", lines)
    finding = only(unreachable_rule, document)
    forward = rules_of(document, IPV4, "filter", "FORWARD")
    assert finding.place is not None
    assert finding.place.position == len(forward)
    assert "as rule %d did" % (len(forward) - 1) in finding.message
    assert finding.fix is not None
    assert finding.fix.commands == ("iptables -w 10 -D FORWARD %d" % len(forward),)
    assert found(unreachable_rule, done(document, finding)) == []
    # A chain that counts may do another thing the second time.
    counting = with_rules(document, IPV4, "filter", ["-I SALT -m limit --limit 3/min -j ACCEPT"])
    assert only(unreachable_rule, counting).certainty == "possible"


def test_a_second_jump_to_docker_user() -> None:
    """A saved file that was loaded with --noflush leaves one behind each time."""
    document = with_rules(small(GUARD), IPV4, "filter", ["-A FORWARD -j DOCKER-USER"])
    assert dead(document) == [("FORWARD", 3, "medium")]
    assert rules_of(done(document, only(unreachable_rule, document)), IPV4, "filter", "FORWARD") == [
        "-j DOCKER-USER",
        "-j DOCKER-FORWARD",
    ]


def test_own_rules_of_forward() -> None:
    lines = ["-A FORWARD -i wg0 -j DROP", "-A FORWARD -s 10.8.0.2/32 -i wg0 -j ACCEPT"]
    assert dead(with_rules(small(), IPV4, "filter", lines)) == [("FORWARD", 4, "medium")]
    # Behind Docker's rules is another check's.
    lines = ["-A FORWARD -d 172.17.0.2/32 -o docker0 -p tcp --dport 8080 -j DROP"]
    assert dead(with_rules(small(), IPV4, "filter", lines)) == []


@pytest.mark.parametrize("age", ["old", "new"])
def test_the_rules_of_ufw_docker_are_all_read(age: str) -> None:
    assert found(unreachable_rule, ufw_docker(small(), age, route=["-p tcp -m tcp --dport 80 -j ACCEPT"])) == []


@pytest.mark.parametrize("name", CAPTURES)
@pytest.mark.parametrize("check", [jump_missing, jump_not_first, jump_window, unreachable_rule])
def test_real_hosts(check: t.Any, name: str) -> None:
    assert found(check, captured(name)) == []


@pytest.mark.parametrize("check", [jump_missing, jump_not_first, jump_window, unreachable_rule])
def test_what_is_missing_is_no_error(check: t.Any) -> None:
    document = small(GUARD, engine="20.10")
    for part in ("docker", "nft", "interfaces", "routes", "iptables", "ipsets"):
        found(check, edited(document, **{part: None}))
    loop = [":A -", ":B -", "-A A -j B", "-A B -j A", "-I DOCKER-USER -j A", "-I FORWARD -j A"]
    found(check, with_rules(document, IPV4, "filter", loop))
    deep = [":C%d -" % number for number in range(200)]
    deep += ["-A C%d -j C%d" % (number, number + 1) for number in range(199)]
    found(check, with_rules(document, IPV4, "filter", [*deep, "-A C199 -j DROP", "-I DOCKER-USER -j C0"]))
