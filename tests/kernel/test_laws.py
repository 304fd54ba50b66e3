# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The laws of a change, with the kernel as judge: it holds what was planned, and foreign rules are sacred."""

from __future__ import annotations

import typing as t
from collections import Counter

import pytest
from hypothesis import Phase, event, given, settings
from hypothesis import strategies as st

from .lab import (
    FAMILIES,
    IPV4,
    IPV6,
    NFT,
    VARIANTS,
    Host,
    counted,
    docker_table,
    firewall,
    lines_of,
    listed,
    load,
    save,
)
from .planners import parsed, policy_planner

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from ansible_collections.quaywall.docker.plugins.module_utils._iptables import Change

NETS = {
    IPV4: ("192.0.2.0/24", "198.51.100.7/32", "203.0.113.128/25", "172.17.0.10/32", "172.18.0.3/32"),
    IPV6: ("2001:db8::/32", "2001:db8:5::7/128", "fd00:1::/64", "fd00:17::10/128", "fd00:18::3/128"),
}

#: As the kernel prints them. Those of bans, an administrator's, another tool's, and near misses of our comment.
FOREIGN = {
    family: (
        "-j RETURN",
        "-j ACCEPT",
        "-j DROP",
        "-s %s -j DROP" % nets[0],
        "-s %s -j ACCEPT" % nets[1],
        "-d %s ! -i docker0 -p tcp -m tcp --dport 8080 -j DROP" % nets[3],
        "-p tcp -m multiport --dports 22,80,8000:8010 -j BANS",
        "-p udp -m udp --sport 53 -g BANS",
        "-i eth0 -m comment --comment quaywall -j RETURN",
        '-i eth0 -m comment --comment "quaywall: admin-ui" -j ACCEPT',
        '-m comment --comment "quaywall:admin ui" -j ACCEPT',
        '-m comment --comment "quaywall:admin-ui priority 5000" -j ACCEPT',
        "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-m conntrack --ctstate DNAT --ctorigdstport 9000 --ctdir ORIGINAL -j DROP",
        '-m limit --limit 3/min -j LOG --log-prefix "DENY: "',
        "-m statistic --mode random --probability 0.50000000000",
        '-m string --string "GET /admin" --algo bm -j DROP',
        "-m mark --mark 0x1/0xff -j MARK --set-xmark 0x2/0xffffffff",
    )
    for family, nets in NETS.items()
}

NAMES = ("admin-ui", "db", "z.9_x")


def managed_rules(family: str) -> st.SearchStrategy[str]:
    """Rules such as policies make, of random policies, sections and priorities."""
    verdicts = ("ACCEPT", "RETURN", "DROP")

    def render(name: str, source: str, destination: str, port: int, verdict: str, section: str, priority: int) -> str:
        natural = "action" if verdict in ("ACCEPT", "RETURN") else "otherwise"
        comment = "quaywall:" + name
        comment += "" if section == natural else " " + section
        comment += "" if priority == 500 else " priority %d" % priority
        head = "-s %s " % source if source else ""
        # iptables-save quotes a comment that has anything else in it, and a colon is such a thing.
        return '%s-d %s ! -i docker0 -p tcp -m tcp --dport %d -m comment --comment "%s" -j %s' % (
            head,
            destination,
            port,
            comment,
            verdict,
        )

    return st.builds(
        render,
        st.sampled_from(NAMES),
        st.sampled_from(("", *NETS[family][:3])),
        st.sampled_from(NETS[family][3:]),
        st.sampled_from((80, 443, 8080)),
        st.sampled_from(verdicts),
        st.sampled_from(("action", "otherwise")),
        st.sampled_from((500, 500, 500, 0, 7, 999)),
    )


ESTABLISHED = '-m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment "quaywall: established" -j ACCEPT'
FORWARDS = (
    ("-j DOCKER-USER", "-j DOCKER-FORWARD"),
    ("-i eth0 -j ACCEPT", "-j DOCKER-USER", "-j DOCKER-FORWARD"),
    ("-j DOCKER-FORWARD",),
    (),
)


class Case(t.NamedTuple):
    chains: dict[str, list[str]]
    forward: dict[str, tuple[str, ...]]
    name: str
    wanted: dict[str, list[str]]
    baseline: bool
    ip6_chain: bool


@st.composite
def cases(draw: st.DrawFn) -> Case:
    chains: dict[str, list[str]] = {}
    wanted: dict[str, list[str]] = {}
    name = draw(st.sampled_from(NAMES))
    for family in FAMILIES:
        managed = draw(st.lists(managed_rules(family), max_size=7))
        if draw(st.booleans()):
            managed.append(ESTABLISHED)
        foreign = draw(st.lists(st.sampled_from(FOREIGN[family]), max_size=7))
        chains[family] = list(draw(st.permutations(managed + foreign)))
        mine = [rule for rule in managed if "quaywall:%s" % name in rule.replace(" ", '"').split('"')]
        kept = draw(st.lists(st.sampled_from(mine), max_size=4, unique=True)) if mine else []
        new = draw(st.lists(managed_rules(family), max_size=4))
        renamed = [_with_name(rule, name) for rule in new]
        wanted[family] = list(dict.fromkeys(draw(st.permutations(kept + renamed))))
    forward = {family: draw(st.sampled_from(FORWARDS)) for family in FAMILIES}
    return Case(chains, forward, name, wanted, draw(st.booleans()), draw(st.sampled_from((True, True, True, False))))


def _with_name(rule: str, name: str) -> str:
    for other in NAMES:
        rule = rule.replace('"quaywall:%s' % other, '"quaywall:%s' % name)
    return rule


def is_ours(spec: str) -> bool:
    """Told by this test's own pools: no rule of FOREIGN is ours, every other is."""
    return spec not in FOREIGN[IPV4] and spec not in FOREIGN[IPV6]


def most_that_can_stay(before: list[str], after: list[str]) -> int:
    """How many managed rules need no rewriting: between the same two foreign rules, a longest common subsequence."""
    total = 0
    for one, two in zip(_between_foreign(before), _between_foreign(after), strict=False):
        row = [0] * (len(two) + 1)
        for left in one:
            previous = row[:]
            for index, right in enumerate(two):
                row[index + 1] = previous[index] + 1 if left == right else max(row[index], previous[index + 1])
        total += row[-1]
    return total


def _between_foreign(specs: list[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for spec in specs:
        if is_ours(spec):
            parts[-1].append(spec)
        else:
            parts.append([])
    return parts


def the_tables(host: Host, variant: str) -> dict[str, bytes]:
    return {family: save(host, variant, family, "-c") for family in FAMILIES}


@pytest.fixture(scope="module", params=VARIANTS)
def place(request: pytest.FixtureRequest) -> Iterator[tuple[Host, str]]:
    with Host() as made:
        yield made, str(request.param)


def load_case(host: Host, variant: str, case: Case) -> dict[str, bytes]:
    """Every rule gets counters that no other has; what the kernel then holds."""
    number = 0
    for family in FAMILIES:
        rules = []
        for spec in case.chains[family]:
            number += 1
            rules.append("%s -c %d %d" % (spec, number, number * 1000))
        text = docker_table(rules, case.forward[family], more="BANS")
        if family == IPV6 and not case.ip6_chain:
            text = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [3:400]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"
        load(host, variant, family, text)
    found = the_tables(host, variant)
    for family in FAMILIES:
        there = family == IPV4 or case.ip6_chain
        assert [rule.spec for rule in counted(found[family])] == (case.chains[family] if there else [])
    return found


@settings(max_examples=60, phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink))
@given(case=cases())
def test_the_kernel_holds_what_was_planned(place: tuple[Host, str], case: Case) -> None:
    host, variant = place
    before = load_case(host, variant, case)
    planner = policy_planner(case.name, parsed(case.wanted), case.baseline)
    judge = firewall()

    dry = host.call(judge.change, planner, dry=True)
    assert the_tables(host, variant) == before

    changes = host.call(judge.change, planner, dry=False)
    assert {family: (change.before, change.after) for family, change in changes.items()} == {
        family: (change.before, change.after) for family, change in dry.items()
    }
    after = the_tables(host, variant)
    for family, change in changes.items():
        assert change.variant == variant
        judge_family(variant, family, case, before[family], after[family], change)

    # Planning again is empty, and so is the change.
    again = host.call(judge.change, planner, dry=False)
    assert all(change.plan.empty and not change.changed for change in again.values())
    assert the_tables(host, variant) == after
    event("%s, %s" % (variant, "changed" if any(change.changed for change in changes.values()) else "as it was"))


def judge_family(variant: str, family: str, case: Case, old: bytes, new: bytes, change: Change) -> None:
    before, after = counted(old), counted(new)
    specs = [rule.spec for rule in after]
    assert specs == list(change.after)
    assert [rule.spec for rule in before] == list(change.before)

    # Foreign rules: text, order and counters. Only a bare RETURN may be added, once, at the end.
    foreign_before = [rule for rule in before if not is_ours(rule.spec)]
    foreign_after = [rule for rule in after if not is_ours(rule.spec)]
    if foreign_after != foreign_before:
        assert foreign_after[:-1] == foreign_before
        assert foreign_after[-1] == ("-j RETURN", (0, 0)) == after[-1]
        assert all(rule.spec != "-j RETURN" for rule in foreign_before)
        assert case.baseline and case.wanted[family]

    # The policy's rules are there, each once; the other policies' are the same rules as before.
    mine = Counter(spec for spec in specs if _name_of(spec) == case.name)
    assert mine == Counter(case.wanted[family])
    others = Counter(rule.spec for rule in before if _name_of(rule.spec) not in (None, case.name))
    assert Counter(spec for spec in specs if _name_of(spec) not in (None, case.name)) == others

    # Of ours as many as possible kept their counters.
    ours = Counter(rule.spec for rule in before if is_ours(rule.spec))
    # ip6tables-nft 1.8.9 takes no counters from anybody, so there only packets can tell (below).
    if all(number == 1 for number in ours.values()) and (family, variant) != (IPV6, NFT):
        kept = [rule for rule in after if is_ours(rule.spec) and rule in set(before)]
        assert len(kept) == most_that_can_stay([rule.spec for rule in before], specs)
    assert all(rule.counters == (0, 0) or rule in before for rule in after)

    # ESTABLISHED is first wherever it is, and policies are sorted: all actions, then all otherwises.
    if ESTABLISHED in specs:
        assert specs.index(ESTABLISHED) == 0 and specs.count(ESTABLISHED) == 1
    keys = [_key_of(spec) for spec in specs if _name_of(spec) is not None]
    assert keys == sorted(keys)

    # The jump: first if it was missing, untouched if it was there.
    forward = [rule.spec for rule in counted(new, "FORWARD")]
    there = family == IPV4 or case.ip6_chain
    old_forward = list(case.forward[family]) if there else []
    guarded = any(_name_of(spec) is not None for spec in specs)
    missing = "-j DOCKER-USER" not in old_forward
    assert forward == (["-j DOCKER-USER", *old_forward] if guarded and missing else old_forward)
    assert (b":DOCKER-USER - [" in new) == (there or bool(specs))


def _name_of(spec: str) -> str | None:
    _head, found, rest = spec.partition('--comment "quaywall:')
    if not found or not is_ours(spec) or spec == ESTABLISHED:
        return None
    return rest.partition('"')[0].split(" ")[0]


def _key_of(spec: str) -> tuple[bool, int, str]:
    words = spec.partition('--comment "quaywall:')[2].partition('"')[0].split(" ")
    allowing = spec.endswith(("-j ACCEPT", "-j RETURN"))
    otherwise = "otherwise" in words or (not allowing and "action" not in words)
    priority = int(words[words.index("priority") + 1]) if "priority" in words else 500
    return (otherwise, priority, words[0])


def test_a_rule_of_ours_that_stands_twice_is_no_obstacle(host: Host, variant: str) -> None:
    """Somebody restored a dump over itself: another policy can be written, and this one again."""
    twice = '-d 172.17.0.10/32 -m comment --comment "quaywall:db" -j DROP'
    other = '-d 172.17.0.11/32 -m comment --comment "quaywall:admin-ui" -j DROP'
    load(host, variant, IPV4, docker_table([twice, "-i eth0", twice]))
    load(host, variant, IPV6, docker_table([]))
    judge = firewall()
    for number in range(2):
        change = host.call(judge.change, policy_planner("admin-ui", parsed({IPV4: [other]}), False), dry=False)[IPV4]
        assert change.changed == (number == 0)
        assert listed(host, variant, IPV4) == lines_of("DOCKER-USER", change.after)
        assert listed(host, variant, IPV4).count(b"admin-ui") == 1
    assert b"quaywall:db" in listed(host, variant, IPV4)
    host.call(judge.change, policy_planner("db", parsed({IPV4: [twice]}), False), dry=False)
    assert listed(host, variant, IPV4).count(b"quaywall:db") == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_counters_of_a_chain_in_use_go_on_counting(host: Host, variant: str, family: str) -> None:
    """Packets that pass while we write are all counted by the foreign rule in front of ours, and by ours that stays."""
    address = {IPV4: "127.0.0.1", IPV6: "::1"}[family]
    foreign = "-p udp -m udp --dport 9 -m comment --comment count"
    ours = '-p udp -m udp --dport 9 -m comment --comment "quaywall:stay" -j ACCEPT'
    text = docker_table([foreign, ours])
    load(host, variant, family, text.replace("-A FORWARD", "-A OUTPUT -j DOCKER-USER\n-A FORWARD", 1))
    load(host, variant, IPV6 if family == IPV4 else IPV4, docker_table([]))
    come = '-d %s -p tcp -m comment --comment "quaywall:come" -j DROP' % NETS[family][3]
    stream = host.python("packets", address, "9", stdout=-1, stdin=-1)
    assert stream.stdout is not None and stream.stdin is not None
    with stream, stream.stdin, stream.stdout:
        try:
            assert stream.stdout.readline() == b"started\n"
            judge = firewall()
            for number in range(20):
                planner = policy_planner("come", parsed({family: [come] if number % 2 == 0 else []}))
                changes = host.call(judge.change, planner, dry=False)
                assert changes[family].changed
            stream.stdin.close()
            sent = int(stream.stdout.readline())
        finally:
            stream.kill()
    found = {rule.spec: rule.counters[0] for rule in counted(save(host, variant, family, "-c"))}
    assert sent > 1000
    assert found[foreign] == sent
    assert found[ours] == sent
    assert come not in found
