# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The laws of a plan, held against a small kernel that was written from the facts and not from the plan's own model."""

from __future__ import annotations

import typing as t
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.quaywall.docker.plugins.module_utils import _plan
from ansible_collections.quaywall.docker.plugins.module_utils._chain import (
    ACTION,
    DOCKER_USER,
    OTHERWISE,
    Mark,
    Table,
    comment_for,
    is_managed,
    mark_of,
    parse_dump,
)
from ansible_collections.quaywall.docker.plugins.module_utils._plan import (
    Delete,
    Insert,
    OwnChain,
    Plan,
    apply,
    established_rule,
    jump_is_first,
    plan,
    with_policy,
)
from ansible_collections.quaywall.docker.plugins.module_utils._rule import Rule, field, parse
from ansible_collections.quaywall.docker.tests.unit.support import Kernel, Stored

ESTABLISHED = '-m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment "quaywall: established" -j ACCEPT'
BAN = "-s 203.0.113.66/32 -j DROP"
JUMP = "-p tcp -j f2b"
OPEN = "-s 10.9.0.0/16 -j ACCEPT"
RETURN = "-j RETURN"
LATE = "-i eth9 -j DROP"

#: Rules of other tools: some can only deny, some let through, some are there twice, some try to look like ours.
FOREIGN = (
    BAN,
    JUMP,
    OPEN,
    RETURN,
    LATE,
    "",
    "-g elsewhere",
    "-s 10.8.0.0/16 -j RETURN",
    "-m comment --comment done -j RETURN",
    '-m comment --comment "quaywall: " -j ACCEPT',
    '-m comment --comment "see quaywall:web" -j DROP',
    '-m comment --comment "x\\"\\\\" -j DROP',
    "-m set --match-set a b src -j DROP",
    "-m limit --limit 5/min -j LOG --log-prefix x",
)


def managed(policy: str, number: int, target: str, section: str = "", priority: int = 500) -> Rule:
    natural = ACTION if target in ("ACCEPT", "RETURN") else OTHERWISE
    mark = Mark(policy, section or natural, priority)
    return Rule(
        (
            field("destination", "172.17.0.%d" % number),
            field("in_interface", "docker0", True),
            field("match", "comment"),
            field("comment", comment_for(mark, target)),
            field("jump", target),
        )
    )


names = st.sampled_from(("a", "b", "web", "db", "z.9"))
policy_rules = st.builds(
    lambda name, priority, numbers, targets: [
        managed(name, number, target, priority=priority) for number in numbers for target in targets
    ],
    names,
    st.sampled_from((0, 499, 500, 999)),
    st.lists(st.integers(2, 5), min_size=1, max_size=3, unique=True),
    st.lists(st.sampled_from(("ACCEPT", "RETURN", "DROP")), min_size=1, max_size=2, unique=True),
)


def block(groups: t.Iterable[t.Sequence[Rule]]) -> t.List[Rule]:
    rules: t.List[Rule] = []
    for group in groups:
        first = mark_of(group[0])
        assert first is not None
        rules = [rule for rule in rules if t.cast(Mark, mark_of(rule)).policy != first.policy] + list(group)
    return sorted(rules, key=lambda rule: t.cast(Mark, mark_of(rule)).key)


blocks = st.lists(policy_rules, max_size=4).map(block)
foreign_lists = st.lists(st.sampled_from(FOREIGN), max_size=7)
#: Any chain: rules of ours in any order and anywhere, some of them twice, between rules of others.
chains = st.lists(
    st.sampled_from(FOREIGN)
    | st.just(ESTABLISHED)
    | policy_rules.flatmap(lambda rules: st.sampled_from([rule.render() for rule in rules])),
    max_size=12,
)


def kernel(chain: t.Optional[t.Sequence[str]], jump: bool = True) -> Kernel:
    chains_there: t.Dict[str, t.Sequence[str]] = {
        "FORWARD": ["-j DOCKER-USER"] if jump and chain is not None else [],
        "f2b": ["-s 203.0.113.9/32 -j DROP", RETURN],
    }
    if chain is not None:
        chains_there[DOCKER_USER] = chain
    return Kernel(chains_there)


def table(host: Kernel) -> Table:
    return parse_dump(host.save()).tables["filter"]


def foreign(rules: t.Iterable[Stored]) -> t.List[Stored]:
    return [rule for rule in rules if not is_managed(parse(rule.text))]


def longest_kept(before: t.Sequence[str], after: t.Sequence[str]) -> int:
    """How many rules of ours can stay: the longest common subsequence that has every foreign rule in it."""

    def parts(rules: t.Sequence[str]) -> t.List[t.List[str]]:
        found: t.List[t.List[str]] = [[]]
        for text in rules:
            if is_managed(parse(text)):
                found[-1].append(text)
            else:
                found.append([])
        return found

    def common(one: t.Sequence[str], two: t.Sequence[str]) -> int:
        row = [0] * (len(two) + 1)
        for left in one:
            above = row[:]
            for index, right in enumerate(two):
                row[index + 1] = above[index] + 1 if left == right else max(row[index], above[index + 1])
        return row[-1]

    return sum(common(one, two) for one, two in zip(parts(before), parts(after)))


def check_laws(host: Kernel, made: Plan, wanted: t.Sequence[Rule], established: bool, add_return: bool) -> None:
    """Carries the plan out on the kernel and looks at what became of it."""
    before = list(host.chains.get(DOCKER_USER, ()))
    texts = tuple(rule.text for rule in before)
    assert made.before == texts
    # The plan's own model, and the kernel's.
    assert apply(made.operations, made.before) == made.after
    host.restore(made.transaction(), test=True)
    assert tuple(rule.text for rule in host.chains.get(DOCKER_USER, ())) == texts
    host.restore(made.transaction())
    after = host.chains.get(DOCKER_USER, [])
    assert tuple(rule.text for rule in after) == made.after
    # Again: nothing to do.
    again = plan(table(host), wanted, established, add_return)
    assert again.empty
    assert again.before == again.after == made.after
    # Foreign rules: the very same ones, in their order. Only the baseline's RETURN may have come, at the end.
    kept = foreign(after)
    if len(kept) > len(foreign(before)):
        assert kept.pop() == after[-1]
        assert after[-1].text == RETURN
        assert add_return
        assert RETURN not in texts
    assert kept == foreign(before)
    # What we write is all there, in order, once each.
    ours = [rule.text for rule in after if is_managed(parse(rule.text))]
    assert ours == [ESTABLISHED] * established + [rule.render() for rule in wanted]
    if established:
        assert after[0].text == ESTABLISHED
    assert not add_return or RETURN in made.after
    if RETURN in made.after:
        behind = made.after[made.after.index(RETURN) :]
        assert not any(is_managed(parse(text)) for text in behind)
        assert made.unreachable == tuple(behind[1:])
    else:
        assert made.unreachable == ()
    # Rules of ours that could stay did stay, and kept their counters.
    if len(set(texts)) == len(texts):
        stayed = {rule.serial for rule in after} & {rule.serial for rule in before if is_managed(parse(rule.text))}
        assert len(stayed) == longest_kept(texts, made.after)


@given(chains, blocks, st.booleans(), st.booleans())
def test_laws(before: t.List[str], wanted: t.List[Rule], established: bool, add_return: bool) -> None:
    host = kernel(before)
    made = plan(table(host), wanted, established, add_return)
    assert not made.create_chain
    assert not made.add_jump
    check_laws(host, made, wanted, established, add_return)


@given(chains, blocks, st.booleans())
def test_laws_of_many_rules_at_once(before: t.List[str], wanted: t.List[Rule], add_return: bool) -> None:
    """Written from the last to the first, which more than these few would be."""
    host = kernel(before)
    with mock.patch.object(_plan, "_FEW", 0):
        check_laws(host, plan(table(host), wanted, True, add_return), wanted, True, add_return)


def test_rules_that_come_to_the_top_together_need_no_search() -> None:
    many = [managed("p%04d" % number, 3, "DROP") for number in range(500)]
    made = plan(table(kernel([RETURN])), many, True, True)
    assert {operation.position for operation in made.operations if isinstance(operation, Insert)} == {1}
    assert apply(made.operations, [RETURN]) == made.after == (ESTABLISHED, *(rule.render() for rule in many), RETURN)


@given(chains, blocks, st.booleans(), st.booleans(), st.booleans())
def test_undo_brings_the_chain_back(
    before: t.List[str], wanted: t.List[Rule], established: bool, add_return: bool, there: bool
) -> None:
    host = kernel(before if there else None)
    made = plan(table(host), wanted, established, add_return)
    saved = host.save()
    host.restore(made.transaction())
    host.restore(made.undo())
    assert host.save() == saved


@given(
    foreign_lists,
    st.lists(st.tuples(st.booleans(), policy_rules, st.booleans()), min_size=20, max_size=20),
    st.lists(st.tuples(st.integers(0, 19), st.sampled_from(FOREIGN), st.floats(0, 1)), max_size=4),
)
@settings(max_examples=40)
def test_twenty_changes_one_after_the_other(
    others: t.List[str],
    changes: t.List[t.Tuple[bool, t.List[Rule], bool]],
    writes: t.List[t.Tuple[int, str, float]],
) -> None:
    """Policies come, change and go, as the module does it, while other tools write at the top, middle and end."""
    host = kernel(["-s 10.1.1.1/32 -j DROP", *others, "-s 10.1.1.2/32 -j ACCEPT"])
    present: t.Dict[str, t.List[Rule]] = {}
    for step, (gone, rules, baseline) in enumerate(changes):
        for when, text, where in writes:
            if when == step:
                host.insert(DOCKER_USER, round(where * len(host.chains[DOCKER_USER])), text)
        name = t.cast(Mark, mark_of(rules[0])).policy
        rules = [] if gone else rules  # noqa: PLW2901 -- the policy as it is to be
        chain = table(host).chains[DOCKER_USER]
        wanted = with_policy(chain, name, rules)
        present.pop(name, None)
        if rules:
            present[name] = rules
        assert sorted(rule.render() for rule in wanted) == sorted(r.render() for part in present.values() for r in part)
        established = bool(wanted) and baseline
        check_laws(
            host,
            plan(table(host), wanted, established, bool(rules) and baseline),
            wanted,
            established,
            bool(rules) and baseline,
        )


ACCEPTED = "-i lo -j ACCEPT"
own_texts = st.none() | st.lists(st.sampled_from((BAN, "-o docker0 -j DROP", "-i docker0 -j RETURN")), max_size=3)
own_chains = st.builds(
    lambda found, wanted: OwnChain(
        "filter", "QUAYWALL-DEFAULT", None if found is None else tuple(found), None if wanted is None else tuple(wanted)
    ),
    own_texts,
    own_texts,
)


@given(
    st.none() | chains,
    st.lists(st.sampled_from(("-j DOCKER-USER", ACCEPTED)), max_size=4),
    blocks,
    st.sampled_from(("ACCEPT", "RETURN", "")),
    st.booleans(),
    st.booleans(),
    own_chains,
)
def test_laws_of_the_whole_chain(
    before: t.Optional[t.List[str]],
    forward: t.List[str],
    wanted: t.List[Rule],
    established: str,
    keep_foreign: bool,
    lift_jump: bool,
    own: OwnChain,
) -> None:
    """What docker_user_chain asks of a plan: a chain and a jump in any case, another first rule, no foreign rules."""
    host = kernel(before)
    host.chains["FORWARD"] = [
        Stored(900 + number, text) for number, text in enumerate(forward) if before is not None or text == ACCEPTED
    ]
    if own.before is not None:
        host.chains[own.name] = [Stored(950 + number, text) for number, text in enumerate(own.before)]

    def made_here(chain: OwnChain) -> Plan:
        return plan(
            table(host),
            wanted,
            established=bool(established),
            add_return=True,
            established_target=established or "ACCEPT",
            keep_foreign=keep_foreign,
            own=[chain] if chain.changes else [],
            need_chain=True,
            lift_jump=lift_jump,
        )

    def contents() -> t.Dict[str, t.Tuple[str, ...]]:
        return {name: host.texts(name) for name in host.chains}

    there, others = contents(), foreign(host.chains.get(DOCKER_USER, []))
    made = made_here(own)
    assert apply(made.operations, made.before) == made.after
    host.restore(made.transaction())
    assert host.texts(DOCKER_USER) == made.after
    assert (host.texts(own.name) if own.name in host.chains else None) == own.after
    assert made_here(own._replace(before=own.after)).empty
    found = [rule.text for rule in host.chains[DOCKER_USER]]
    assert [text for text in found if is_managed(parse(text))] == [
        *([ESTABLISHED.replace("-j ACCEPT", "-j " + established)] if established else []),
        *(rule.render() for rule in wanted),
    ]
    kept = foreign(host.chains[DOCKER_USER])
    if not keep_foreign:
        assert [rule.text for rule in kept] == [RETURN]
    elif RETURN in made.before:
        assert kept == others
    else:
        assert kept[-1].text == RETURN
        assert kept[:-1] == others
    jumps = [text for text in host.texts("FORWARD") if text == "-j DOCKER-USER"]
    assert len(jumps) == max(1, forward.count("-j DOCKER-USER") if before is not None else 0)
    assert host.texts("FORWARD")[0] == "-j DOCKER-USER" or not lift_jump
    # The rules of others in FORWARD keep their order.
    assert [text for text in host.texts("FORWARD") if text == ACCEPTED] == [t for t in forward if t == ACCEPTED]
    host.restore(made.undo())
    assert contents() == there


# By example ----------------------------------------------------------------------------------------------------------

ALLOW = managed("web", 2, "ACCEPT")
DENY = managed("web", 2, "DROP")


def arranged(before: t.Sequence[str], *rules: Rule, established: bool = True, add_return: bool = True) -> t.List[str]:
    host = kernel(before)
    made = plan(table(host), rules, established, add_return)
    host.restore(made.transaction())
    assert host.texts(DOCKER_USER) == made.after
    return list(made.after)


def test_the_designs_chain() -> None:
    assert arranged([RETURN], ALLOW, DENY) == [ESTABLISHED, ALLOW.render(), DENY.render(), RETURN]
    assert arranged([], ALLOW, DENY) == [ESTABLISHED, ALLOW.render(), DENY.render(), RETURN]
    assert established_rule().render() == ESTABLISHED


@pytest.mark.parametrize(
    "edited",
    [
        '-m comment --comment "quaywall: established" -j ACCEPT',
        ESTABLISHED.replace("RELATED,", "NEW,"),
        ESTABLISHED.replace("-j ACCEPT", "-j DROP"),
        "-s 10.0.0.0/8 " + ESTABLISHED,
    ],
)
def test_a_first_rule_that_somebody_edited_is_made_anew(edited: str) -> None:
    """Its comment alone would keep an ACCEPT for everybody in front of all policies."""
    assert arranged([edited, DENY.render(), RETURN], DENY) == [ESTABLISHED, DENY.render(), RETURN]


def test_without_the_baseline_nothing_is_added() -> None:
    assert arranged([], DENY, established=False, add_return=False) == [DENY.render()]
    assert arranged([LATE, RETURN], DENY, established=False, add_return=False) == [LATE, DENY.render(), RETURN]


def test_bans_at_the_top_stay_in_front_and_what_opens_comes_after() -> None:
    assert arranged([JUMP, BAN, OPEN, LATE, RETURN], DENY) == [
        ESTABLISHED,
        JUMP,
        BAN,
        DENY.render(),
        OPEN,
        LATE,
        RETURN,
    ]


def test_a_return_in_the_middle_is_not_moved_and_dead_rules_are_told() -> None:
    host = kernel([BAN, RETURN, OPEN, LATE])
    made = plan(table(host), [DENY], True, True)
    assert list(made.after) == [ESTABLISHED, BAN, DENY.render(), RETURN, OPEN, LATE]
    assert made.unreachable == (OPEN, LATE)


def test_rules_of_ours_behind_a_return_are_brought_in_front_of_it() -> None:
    assert arranged([RETURN, DENY.render()], DENY) == [ESTABLISHED, DENY.render(), RETURN]


def test_a_rule_that_stays_is_not_written_again() -> None:
    host = kernel([ESTABLISHED, ALLOW.render(), DENY.render(), RETURN])
    other = managed("other", 3, "DROP")
    made = plan(table(host), [ALLOW, other, DENY], True, True)
    assert made.operations == (Insert(3, other.render()),)
    gone = plan(table(host), [DENY], True, True)
    assert gone.operations == (Delete(ALLOW.render()),)


@pytest.mark.parametrize(
    ("printed", "written"),
    [
        pytest.param(
            '-d 172.17.0.2/32 -p tcp -m tcp --dport 80 -m comment --comment "quaywall:web" -j DROP',
            "-p tcp -d 172.17.0.2 --dport 80 -m comment --comment quaywall:web -j DROP",
            id="another order and no /32",
        ),
        pytest.param(
            "-m conntrack --ctstate NEW,DNAT -m comment --comment quaywall:x -j REJECT "
            "--reject-with icmp-port-unreachable",
            "-m conntrack --ctstate DNAT,NEW -m comment --comment quaywall:x -j REJECT",
            id="states and the default of REJECT",
        ),
    ],
)
def test_a_rule_that_is_only_spelt_otherwise_is_no_change(printed: str, written: str) -> None:
    """Versions of iptables print differently. What is there and means the same stays, and is what `after` shows."""
    host = kernel([ESTABLISHED, printed, RETURN])
    made = plan(table(host), [parse(written)], True, True)
    assert made.empty
    assert made.after == made.before


@pytest.mark.parametrize("here", [True, False])
def test_a_rule_that_is_only_spelt_otherwise_stays_while_others_change(here: bool) -> None:
    printed = '-d 172.17.0.2/32 -m comment --comment "quaywall:web" -j REJECT --reject-with icmp-port-unreachable'
    written = parse('-d 172.17.0.2 -m comment --comment "quaywall:web" -j REJECT')
    other = managed("zzz", 9, "DROP")
    host = kernel([ESTABLISHED, printed, *([] if here else [other.render()]), RETURN])
    made = plan(table(host), [written, other] if here else [written], True, True)
    host.restore(made.transaction())
    assert host.texts(DOCKER_USER) == made.after
    assert printed in made.after
    assert len(made.operations) == 1


def test_a_chain_that_is_not_there_is_made_with_its_jump() -> None:
    host = kernel(None)
    host.chains["FORWARD"] = [Stored(900, "-i lo -j ACCEPT")]
    made = plan(table(host), [DENY], True, True)
    assert made.create_chain
    assert made.add_jump
    assert made.transaction() == (
        "*filter\n:DOCKER-USER - [0:0]\n-I FORWARD 1 -j DOCKER-USER\n"
        "-I DOCKER-USER 1 %s\n-I DOCKER-USER 2 %s\n-A DOCKER-USER -j RETURN\nCOMMIT\n" % (ESTABLISHED, DENY.render())
    )
    host.restore(made.transaction())
    assert host.texts("FORWARD") == ("-j DOCKER-USER", "-i lo -j ACCEPT")
    assert jump_is_first(table(host))
    assert plan(table(host), [DENY], True, True).empty
    host.restore(made.undo())
    assert host.texts("FORWARD") == ("-i lo -j ACCEPT",)
    assert DOCKER_USER not in host.chains


@given(chains, blocks, st.booleans(), st.booleans())
def test_a_chain_that_is_there_is_never_flushed(
    before: t.List[str], wanted: t.List[Rule], established: bool, add_return: bool
) -> None:
    text = plan(table(kernel(before)), wanted, established, add_return).transaction()
    assert ":DOCKER-USER" not in text
    assert text.count("COMMIT\n") == 1
    assert text.startswith("*filter\n")
    assert text.endswith("\nCOMMIT\n")


def test_nothing_wanted_and_nothing_there_makes_no_chain() -> None:
    made = plan(table(kernel(None)), [], False, False)
    assert made.empty
    assert made.transaction() == "*filter\nCOMMIT\n"


def test_a_missing_jump_is_put_at_the_top_and_one_that_stands_lower_is_told() -> None:
    host = kernel([RETURN], jump=False)
    made = plan(table(host), [DENY], True, True)
    assert made.add_jump
    assert not made.create_chain
    host.restore(made.transaction())
    assert host.texts("FORWARD") == ("-j DOCKER-USER",)
    host.insert("FORWARD", 0, "-i lo -j ACCEPT")
    assert not plan(table(host), [DENY], True, True).add_jump
    assert not jump_is_first(table(host))
    assert not jump_is_first(table(kernel([], jump=False)))


@pytest.mark.parametrize("operations", [[Delete("-j DROP")], [Insert(0, "-j DROP")], [Insert(3, "-j DROP")]])
def test_apply_refuses_what_the_kernel_refuses(operations: t.List[t.Union[Delete, Insert]]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 -- list.remove says it in its own words
        apply(operations, ["-j RETURN"])


def test_rules_of_a_policy_replace_only_its_own() -> None:
    there = [
        managed("a", 2, "ACCEPT"),
        managed("b", 2, "ACCEPT", priority=10),
        managed("a", 2, "DROP"),
        managed("c", 3, "DROP", section=ACTION),
    ]
    host = kernel([rule.render() for rule in there] + [LATE])
    fresh = [managed("a", 4, "ACCEPT"), managed("a", 4, "DROP")]
    found = with_policy(table(host).chains[DOCKER_USER], "a", fresh)
    # Actions by priority and name, then otherwises: the design's order of the managed block.
    assert found == [there[1], fresh[0], there[3], fresh[1]]
    assert with_policy(table(host).chains[DOCKER_USER], "c", []) == [there[1], there[0], there[2]]
    assert with_policy(None, "a", fresh) == fresh


def test_a_rule_of_ours_that_stands_twice_is_cleaned_up_when_its_policy_is_written() -> None:
    host = kernel([ESTABLISHED, DENY.render(), DENY.render(), RETURN])
    made = plan(table(host), [DENY], True, True)
    host.restore(made.transaction())
    assert host.texts(DOCKER_USER) == made.after == (ESTABLISHED, DENY.render(), RETURN)


@given(chains, policy_rules)
def test_a_rule_of_ours_that_stands_twice_stops_nobody(before: t.List[str], rules: t.List[Rule]) -> None:
    """Whatever is there, a policy that was written is not written again: with duplicates of other policies too."""
    host = kernel(before)
    name = t.cast(Mark, mark_of(rules[0])).policy
    for turn in range(2):
        wanted = with_policy(table(host).chains[DOCKER_USER], name, rules)
        made = plan(table(host), wanted, True, True)
        host.restore(made.transaction())
        assert host.texts(DOCKER_USER) == made.after
        assert made.empty or not turn


@pytest.mark.parametrize(
    "somebodys_established",
    [
        "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN",
        "-i eth0 -m state --state ESTABLISHED -j ACCEPT",
    ],
)
def test_a_ban_behind_somebodys_own_established_rule_holds(somebodys_established: str) -> None:
    ban, allow = "-s 198.51.100.66/32 -j DROP", '-d 172.17.0.2/32 -m comment --comment "quaywall:web" -j ACCEPT'
    dump = parse_dump(
        "*filter\n:FORWARD ACCEPT [0:0]\n:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\n"
        "-A DOCKER-USER %s\n-A DOCKER-USER %s\n-A DOCKER-USER -j RETURN\nCOMMIT\n" % (somebodys_established, ban)
    )
    with_baseline = plan(dump.tables["filter"], [parse(allow)], established=True, add_return=True)
    assert list(with_baseline.after[1:]) == [somebodys_established, ban, allow, "-j RETURN"]
    # Without our own rule in front, theirs still lets packets through that a policy would stop.
    without = plan(dump.tables["filter"], [parse(allow)], established=False, add_return=False)
    assert list(without.after) == [allow, somebodys_established, ban, "-j RETURN"]
