# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a rule names, and that the shorter form of the rules decides what the rules themselves decide."""

from __future__ import annotations

import typing as t

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.quaywall.docker.plugins.module_utils._audit._rulings import (
    Rulings,
    is_ban,
    rulings_of,
    scope_of,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import Survey
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import covers, join, of_network, subtract
from ansible_collections.quaywall.docker.plugins.module_utils._rule import parse
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import from_json
from ansible_collections.quaywall.docker.tests.unit.snapshots import (
    CAPTURES,
    IPV4,
    Box,
    Document,
    captured,
    host,
    with_rules,
)

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._walk import Outcome


def rulings(document: Document) -> Rulings:
    return rulings_of(Survey(from_json(document)).family(IPV4))


def chained(lines: t.Sequence[str]) -> Rulings:
    heads = [":MINE - [0:0]", ":BANS - [0:0]", ":LOGDROP - [0:0]", ":DEEP - [0:0]"]
    boxes = [Box("shop", "8080:8080"), Box("admin", "9000:8080"), Box("dns", "53:53/udp", network="app")]
    return rulings(with_rules(host("28.5", boxes), IPV4, "filter", [*heads, *lines]))


# What a rule names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "ports", "by_container"),
    [
        (["-p tcp -m tcp --dport 80 -j DROP"], ((80, 80),), False),
        (["-p tcp -m multiport --dports 80,8000:8010 -j DROP"], ((80, 80), (8000, 8010)), False),
        (["-p tcp -m tcp ! --dport 80 -j DROP"], ((0, 79), (81, 65535)), False),
        # A jump and the rule narrow each other.
        (["-p tcp -m tcp --dport 80:90 -j X", "-p tcp -m tcp ! --dport 85 -j DROP"], ((80, 84), (86, 90)), False),
        (["-p tcp -j X", "-j DROP"], None, False),
        (["-d 172.17.0.2/32 -j X", "-p tcp -m tcp --dport 80 -j DROP"], ((80, 80),), True),
        (["-d 172.17.0.0/16 -p tcp -m tcp --dport 80 -j DROP"], ((80, 80),), False),
        (["-m conntrack --ctorigdstport 9000 -j DROP"], None, True),
        (["-m set --match-set inside dst -j DROP"], None, True),
        (["-m set --match-set banned src -j DROP"], None, False),
    ],
)
def test_scopes(texts: t.Sequence[str], ports: t.Any, by_container: bool) -> None:
    scope = scope_of([parse(text) for text in texts])
    assert (scope.ports, scope.by_container) == (ports, by_container)


@pytest.mark.parametrize(
    ("ports", "wide"),
    [("80", False), ("8000:9000", False), ("1:1023", False), ("0:32767", True), ("1024:65535", True)],
)
def test_so_many_ports_that_it_is_about_none(ports: str, wide: bool) -> None:
    assert scope_of([parse("-p udp -m udp --dport %s -j DROP" % ports)]).wide is wide
    assert scope_of([parse("-p tcp -m tcp ! --dport 80 -j DROP")]).wide is False


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("-s 198.51.100.66/32 -j DROP", True),
        ("-s 198.51.100.0/24 -i eth0 -p tcp -j REJECT", True),
        ("-m set --match-set banned src -j DROP", True),
        ("-m iprange --src-range 198.51.100.1-198.51.100.9 -j DROP", True),
        ("! -s 198.51.100.66/32 -j DROP", False),
        ("-m set ! --match-set office src -j DROP", False),
        ("-s 0.0.0.0/1 -j DROP", False),
        ("-s 198.51.100.66/32 -p tcp -m tcp --dport 80 -j DROP", False),
        ("-s 198.51.100.66/32 -d 172.17.0.2/32 -j DROP", False),
        ("-p tcp -j DROP", False),
    ],
)
def test_bans(rule: str, expected: bool) -> None:
    assert is_ban(parse(rule)) is expected


# Rules that decide ---------------------------------------------------------------------------------------------------


def test_rules_are_told_by_where_they_stand() -> None:
    """Bans and what only logs are left out, and a LOGDROP is the drop where it is jumped to; numbers stay."""
    found = chained(
        [
            "-A LOGDROP -j LOG",
            "-A LOGDROP -m limit --limit 1/sec -j REJECT",
            "-A LOGDROP -j DROP",
            "-A DEEP -j LOGDROP",
            "-A DOCKER-USER -s 198.51.100.66/32 -j DROP",
            "-A DOCKER-USER -j LOG",
            "-A DOCKER-USER -i eth0 -p tcp -m tcp --dport 8080 -g DEEP",
            "-A DOCKER-USER -i eth0 -p udp -j MINE",
            "-A MINE -s 203.0.113.0/24 -j RETURN",
            "-A MINE -m tcp -p tcp --dport 1 -j MINE",
            "-A MINE -j DROP",
        ]
    )
    assert [(item.site.chain, item.site.position, item.verdict) for item in found.denies] == [
        ("DOCKER-USER", 3, "DROP"),
        ("MINE", 3, "DROP"),
    ]
    assert {site: [hit.published.container.name for hit in hits] for site, hits in found.hits.items()} == {
        found.denies[0].site: ["admin", "shop"],
        found.denies[1].site: ["dns"],
    }


def test_each_way_to_a_rule_has_its_scope() -> None:
    found = chained(
        [
            "-A DOCKER-USER -p tcp -m tcp --dport 80 -j MINE",
            "-A DOCKER-USER -d 172.17.0.2/32 -j MINE",
            "-A MINE -s 203.0.113.0/24 -j RETURN",
            "-A MINE -j DROP",
        ]
    )
    (ruling,) = found.denies
    assert [(scope.ports, scope.by_container) for scope in ruling.scopes] == [(((80, 80),), False), (None, True)]


@pytest.mark.parametrize("name", CAPTURES)
def test_a_fresh_engine_has_no_rule_to_judge(name: str) -> None:
    found = rulings(captured(name))
    assert (found.denies, found.stopped) == ([], [])


MATCHES = (
    "-p tcp -m tcp --dport 8080",
    "-p tcp -m multiport --dports 53,9000",
    "-p udp -m udp --dport 0:32767",
    "-p tcp -m tcp ! --dport 9000",
    "-d 172.17.0.2/32",
    "-d 172.17.0.0/16 -i eth0",
    "-i docker0",
    "! -i docker0",
    "-o docker0",
    "-s 203.0.113.0/24",
    "! -s 203.0.113.0/24",
    "-s 198.51.100.66/32",
    "-p tcp -m conntrack --ctorigdstport 9000",
    "-m conntrack --ctstate DNAT --ctdir ORIGINAL",
    "-m conntrack --ctstate RELATED,ESTABLISHED",
    "",
)
TARGETS = (
    "-j DROP",
    "-j REJECT",
    "-j ACCEPT",
    "-j RETURN",
    "-j LOG",
    "-j MINE",
    "-g MINE",
    "-j LOGDROP",
    "-j DEEP",
    "",
)
BANS = {"-s 203.0.113.0/24": "203.0.113.0/24", "-s 198.51.100.66/32": "198.51.100.66/32"}

a_rule = st.tuples(st.sampled_from(MATCHES), st.sampled_from(TARGETS)).map(lambda pair: " ".join(pair).strip())
chains = st.dictionaries(st.sampled_from(("MINE", "LOGDROP", "DEEP")), st.lists(a_rule, max_size=4), max_size=3)


def stopped(outcomes: t.Iterable[Outcome]) -> t.Any:
    return join(piece for outcome in outcomes if outcome.denies for piece in outcome.peers)


@settings(max_examples=150)
@given(st.lists(a_rule, max_size=5), chains)
def test_the_shorter_form_decides_the_same(rules: t.Sequence[str], below: t.Mapping[str, t.Sequence[str]]) -> None:
    """Whoever is stopped by the rules is stopped by their shorter form, if he is not only banned."""
    lines = ["-A DOCKER-USER %s" % rule for rule in rules]
    lines += ["-A %s %s" % (chain, rule) for chain, inner in below.items() for rule in inner]
    found = chained([line.strip() for line in lines])
    banned = join(piece for network in BANS.values() for piece in of_network(network))
    for published in found.family.published:
        for flow in (*found.family.inbound(published), *found.family.replies(published)):
            plain, short = stopped(found.family.walk(flow)), stopped(found.walk(flow))
            if flow.peer == "source":
                assert subtract(plain, banned) == subtract(short, banned)
                assert covers(plain, short)
            else:
                assert plain == short
            for outcome in found.walk(flow):
                if outcome.denies and outcome.site is not None:
                    assert outcome.site in found.deny_at
