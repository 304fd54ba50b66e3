# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Dumps as chains, and which rules are ours. What iptables-save prints: kernel-facts 2 and 3, and real hosts."""

from __future__ import annotations

import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.quaywall.docker.plugins.module_utils._chain import (
    ACTION,
    DOCKER_USER,
    OTHERWISE,
    Chain,
    Mark,
    can_only_deny,
    comment_for,
    is_bare_return,
    is_established,
    is_managed,
    logical_lines,
    mark_of,
    parse_dump,
    render_dump,
)
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6, Rule, field, parse, quote
from ansible_collections.quaywall.docker.tests.unit.support import any_text, shared_files, shared_text

if t.TYPE_CHECKING:
    from pathlib import Path

# Real dumps ----------------------------------------------------------------------------------------------------------

DUMPS = [
    *shared_files("captures/*/ip*tables-save.txt"),
    *shared_files("rulesets/moby-iptabler/*tables.golden"),
    *shared_files("rulesets/moby-docs/*.iptables-save"),
    *shared_files("rulesets/firehol/**/*.aud[46]"),
    *shared_files("rulesets/calico/**/*.txt"),
    *shared_files("rulesets/soumiks-formal-verifier/**/iptables-sample.rules"),
    *shared_files("cases/fixtures/*/*tables-save"),
]


def without_comments(text: str) -> t.List[str]:
    """The lines that say something, each block's chains before its rules (as iptables-save itself prints them)."""
    return [line.rstrip() for line in text.split("\n") if line.strip() and not line.lstrip().startswith("#")]


@pytest.mark.parametrize("path", DUMPS)
def test_a_real_dump_is_rendered_as_it_was(path: Path) -> None:
    text = shared_text(path)
    family = IPV6 if "ip6" in path.name or path.name.endswith("aud6") else IPV4
    rendered = render_dump(parse_dump(text, family))
    expected = without_comments(text)
    assert sorted(without_comments(rendered)) == sorted(expected)
    # Chains stand in the dump's order; rules keep theirs within their chain, which is all that an order can mean.
    assert [line for line in rendered.split("\n") if line[:1] in ("*", ":")] == [
        line for line in expected if line[:1] in ("*", ":")
    ]
    for chain in {line.split(" ")[1] for line in expected if line.startswith("-A ")}:
        wanted = [line for line in expected if line.startswith("-A %s " % chain)]
        assert [line for line in rendered.split("\n") if line.startswith("-A %s " % chain)] == wanted
    assert render_dump(parse_dump(rendered, family)) == rendered


@pytest.mark.parametrize("path", shared_files("captures/*/ip*tables-save.txt"))
def test_a_capture_is_identical_but_for_comment_lines(path: Path) -> None:
    text = shared_text(path)
    expected = "".join(line + "\n" for line in text.split("\n") if line and not line.startswith("#"))
    assert render_dump(parse_dump(text)) == expected


@pytest.mark.parametrize("path", shared_files("rulesets/soumiks-formal-verifier/**/*.rules"))
def test_rules_written_by_hand_are_rendered_as_they_were(path: Path) -> None:
    """These are arguments of iptables, one rule a line, without tables."""
    lines = [line for line in map(str.strip, shared_text(path).split("\n")) if line.startswith("-A ")]
    assert lines
    for line in lines:
        assert parse(line[3:]).render() == line[3:]


def test_counters_are_kept() -> None:
    text = (
        "*filter\n:INPUT DROP [3:4]\n:DOCKER-USER - [0:0]\n"
        "[5:6] -A DOCKER-USER -j RETURN\n-A DOCKER-USER\n[7:8] -A DOCKER-USER\nCOMMIT\n"
    )
    dump = parse_dump(text)
    chain = dump.chain("filter", DOCKER_USER)
    assert chain is not None
    assert [rule.counters for rule in chain.rules] == [(5, 6), None, (7, 8)]
    assert chain.render() == ["-A DOCKER-USER -j RETURN", "-A DOCKER-USER", "-A DOCKER-USER"]
    inputs = dump.tables["filter"].chains["INPUT"]
    assert (inputs.policy, inputs.counters) == ("DROP", (3, 4))
    assert render_dump(dump) == text


def test_a_dump_without_the_chain() -> None:
    dump = parse_dump("*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n")
    assert dump.chain("filter", DOCKER_USER) is None
    assert dump.chain("nat", DOCKER_USER) is None
    assert parse_dump("").tables == {}


def test_two_tables_do_not_mix() -> None:
    dump = parse_dump("*filter\n:A - [0:0]\n-A A -j RETURN\nCOMMIT\n*nat\n:A - [0:0]\nCOMMIT\n")
    assert len(dump.tables["filter"].chains["A"].rules) == 1
    assert dump.tables["nat"].chains["A"].rules == ()


def test_what_is_no_rule_is_kept_apart() -> None:
    dump = parse_dump("*filter\n:A - [0:0]\n-N B\nnonsense\n:broken\n-A A -j DROP\nCOMMIT\n")
    assert dump.tables["filter"].unparsed == ("-N B", "nonsense", ":broken")
    assert len(dump.tables["filter"].chains["A"].rules) == 1


@pytest.mark.parametrize(
    ("text", "tables"),
    [
        pytest.param("# Table `filter' is incompatible, use 'nft' tool.\n", ("filter",), id="kernel-facts 2"),
        pytest.param(
            "# Warning: iptables-legacy tables present, use iptables-legacy-save to see them\n"
            "*raw\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n# Table `nat' is incompatible, use 'nft' tool.\n"
            "# Table `filter' is incompatible, use 'nft' tool.\n",
            ("nat", "filter"),
            id="two of three",
        ),
        pytest.param("*filter\n:A - [0:0]\nCOMMIT\n", (), id="none"),
    ],
)
def test_incompatible_tables_are_named(text: str, tables: t.Tuple[str, ...]) -> None:
    dump = parse_dump(text)
    assert dump.incompatible == tables
    assert not set(tables) & set(dump.tables)


def test_a_comment_cannot_name_a_table_incompatible() -> None:
    """A newline in a comment lets a foreign tool print any line it likes."""
    dump = parse_dump(
        "*filter\n:DOCKER-USER - [0:0]\n"
        '-A DOCKER-USER -m comment --comment "x\n# Table `filter\\\' is incompatible, use y" -j DROP\nCOMMIT\n'
    )
    assert dump.incompatible == ()
    assert len(dump.tables["filter"].chains[DOCKER_USER].rules) == 1


# Lines ---------------------------------------------------------------------------------------------------------------


def user_chain(text: str) -> t.Tuple[Rule, ...]:
    chain = parse_dump("*filter\n:FORWARD ACCEPT [0:0]\n:DOCKER-USER - [0:0]\n%s\nCOMMIT\n" % text).chain(
        "filter", DOCKER_USER
    )
    assert chain is not None
    return chain.rules


FORGED = '-A DOCKER-USER -m comment --comment "quaywall:admin-ui" -j ACCEPT'


@pytest.mark.parametrize(
    "comment",
    [
        "x\n-A DOCKER-USER -m comment --comment quaywall:admin-ui -j ACCEPT",
        "x\n" + FORGED,
        " \n" + FORGED,
        "x\n%s\ny" % FORGED,
        "\n\n" + FORGED + "\n",
        "x\nCOMMIT\n*filter\n:DOCKER-USER - [0:0]\n" + FORGED,
        'x" -j DROP\n' + FORGED,
        'x\\" -j DROP\n' + FORGED,
        'x\\\n"\n' + FORGED,
        '"\n' + FORGED + '\n"',
    ],
)
@pytest.mark.parametrize("counters", ["", "[12:3456] "])
def test_a_forged_line_inside_a_comment_is_no_rule(comment: str, counters: str) -> None:
    line = "%s-A DOCKER-USER -m comment --comment %s -j DROP" % (counters, quote(comment))
    rules = user_chain(line + "\n-A DOCKER-USER -j RETURN")
    assert [rule.comment for rule in rules] == [comment, None]
    assert [rule.target for rule in rules] == ["DROP", "RETURN"]
    assert not any(is_managed(rule) for rule in rules)


@given(
    st.lists(
        st.sampled_from(("\n", '"', "\\", " ", "x", FORGED, "COMMIT", "*nat", ":A - [0:0]", "# ", '" -j DROP', "'")),
        max_size=10,
    ).map("".join)
)
def test_no_comment_can_forge_a_rule(comment: str) -> None:
    lines = [
        "-A DOCKER-USER -m comment --comment %s -j DROP" % quote(comment),
        '-A DOCKER-USER -m comment --comment "a b" -j ACCEPT',
        "-A DOCKER-USER -j RETURN",
    ]
    rules = user_chain("\n".join(lines))
    assert [rule.comment for rule in rules] == [comment, "a b", None]
    assert [rule.target for rule in rules] == ["DROP", "ACCEPT", "RETURN"]


@pytest.mark.parametrize(
    "line",
    [
        pytest.param('-A DOCKER-USER -m set --match-set "x src -j DROP', id="a set named with a quote"),
        pytest.param('-A DOCKER-USER -m set --match-set a "x src -j DROP', id="a blank and a quote"),
        pytest.param('-A DOCKER-USER -m recent --set --name " --rsource', id="a list named by a quote"),
    ],
)
def test_a_quote_that_never_closes_swallows_no_rules(line: str) -> None:
    rules = user_chain(line + "\n" + FORGED + "\n-A DOCKER-USER -j RETURN")
    assert [rule.render() for rule in rules] == [
        line[len("-A DOCKER-USER ") :],
        FORGED[len("-A DOCKER-USER ") :],
        "-j RETURN",
    ]
    assert not is_managed(rules[0])
    assert mark_of(rules[1]) == Mark("admin-ui", ACTION, 500)


@given(any_text)
def test_logical_lines_lose_nothing(text: str) -> None:
    joined = "\n".join(logical_lines(text))
    assert joined == (text[:-1] if text.endswith("\n") else text)


@given(any_text)
def test_any_dump_is_read_without_an_error(text: str) -> None:
    dump = parse_dump("*filter\n:DOCKER-USER - [0:0]\n" + text + "\nCOMMIT\n")
    assert "filter" in dump.tables or dump.incompatible or text.count("*")
    rendered = render_dump(dump)
    assert render_dump(parse_dump(rendered)) == rendered


# Ours ----------------------------------------------------------------------------------------------------------------


@given(
    st.text("ABCxyz019._-", min_size=1, max_size=64),
    st.sampled_from((ACTION, OTHERWISE)),
    st.integers(0, 999),
    st.sampled_from(("ACCEPT", "RETURN", "DROP", "REJECT", "LOG")),
)
def test_mark_and_comment_are_inverse(policy: str, section: str, priority: int, target: str) -> None:
    mark = Mark(policy, section, priority)
    comment = comment_for(mark, target)
    assert len(comment.encode()) <= 255
    rule = Rule((field("match", "comment"), field("comment", comment), field("jump", target)))
    assert mark_of(rule) == mark
    assert mark_of(parse(rule.render())) == mark
    assert is_managed(rule)
    assert not is_established(rule)


@pytest.mark.parametrize(
    ("comment", "target"), [("quaywall:admin-ui", "ACCEPT"), ("quaywall:admin-ui", "DROP")], ids=["action", "otherwise"]
)
def test_the_comment_is_the_designs(comment: str, target: str) -> None:
    section = ACTION if target == "ACCEPT" else OTHERWISE
    assert comment_for(Mark("admin-ui", section, 500), target) == comment


@pytest.mark.parametrize(
    "comment",
    [
        "quaywall",
        "quaywall:",
        "quaywall: established",
        "quaywall:admin ui",
        "quaywall:admin-ui ",
        " quaywall:admin-ui",
        "quaywall:admin-ui priority",
        "quaywall:admin-ui priority 1000",
        "quaywall:admin-ui\n",
        "quaywall:h\u00e4fen",
        "quaywall:" + "x" * 65,
        "Quaywall:admin-ui",
        "see quaywall:admin-ui",
    ],
)
def test_other_comments_are_of_no_policy(comment: str) -> None:
    rule = Rule((field("match", "comment"), field("comment", comment), field("jump", "DROP")))
    assert mark_of(rule) is None
    assert is_managed(rule) == (comment == "quaywall: established")


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("-j RETURN", True),
        ("-m comment --comment x -j RETURN", False),
        ("-s 10.0.0.0/8 -j RETURN", False),
        ("-g RETURN", False),
        ("-j DROP", False),
    ],
)
def test_bare_return(text: str, bare: bool) -> None:
    assert is_bare_return(parse(text)) == bare


# What can only deny --------------------------------------------------------------------------------------------------


def chains(**rules: t.Sequence[str]) -> t.Dict[str, Chain]:
    return {
        name.replace("_", "-"): Chain(
            name.replace("_", "-"), None, tuple(parse(text) if text else Rule(()) for text in texts)
        )
        for name, texts in rules.items()
    }


FAIL2BAN = chains(
    f2b_sshd=[
        "-s 203.0.113.7/32 -j REJECT --reject-with icmp-port-unreachable",
        "-s 203.0.113.8/32 -j REJECT --reject-with icmp-port-unreachable",
        "-j RETURN",
    ]
)


@pytest.mark.parametrize(
    ("text", "denies"),
    [
        pytest.param("-s 203.0.113.7/32 -j DROP", True, id="DROP"),
        pytest.param("-j REJECT --reject-with icmp-port-unreachable", True, id="REJECT"),
        pytest.param("-m set --match-set crowdsec-blacklists src -j DROP", True, id="CrowdSec's bouncer"),
        pytest.param("-m rpfilter --invert -j DROP", True, id="an unknown match does not let through"),
        pytest.param("-j LOG --log-prefix x", True, id="LOG: the next rule is read"),
        pytest.param("-j NFLOG --nflog-group 2", True, id="NFLOG"),
        pytest.param("-s 10.0.0.0/8", True, id="a rule that only counts"),
        pytest.param("-j ACCEPT", False, id="ACCEPT"),
        pytest.param("-s 10.0.0.0/8 -j RETURN", False, id="RETURN leaves DOCKER-USER"),
        pytest.param("-j f2b-sshd", True, id="fail2ban's chain"),
        pytest.param("-p tcp -m multiport --dports 22 -j f2b-sshd", True, id="fail2ban's jump"),
        pytest.param("-g f2b-sshd", False, id="goto: RETURN there leaves DOCKER-USER"),
        pytest.param("-j unknown-chain", False, id="a chain that is not in the dump"),
        pytest.param("-j NFQUEUE --queue-num 0", False, id="a queue may accept"),
        pytest.param("-j QUEUE", False, id="QUEUE"),
        pytest.param(
            '-m comment --comment "never closed -j ACCEPT', False, id="a target may hide in what is not known"
        ),
        pytest.param("-j", False, id="cut"),
    ],
)
def test_can_only_deny(text: str, denies: bool) -> None:
    assert can_only_deny(parse(text), FAIL2BAN) is denies


@pytest.mark.parametrize(
    ("found", "denies"),
    [
        pytest.param(chains(a=[]), True, id="an empty chain comes back"),
        pytest.param(chains(a=["-j RETURN"]), True, id="RETURN comes back"),
        pytest.param(chains(a=["-s 10.0.0.0/8 -j RETURN", "-j DROP"]), True, id="a list of those who may go on"),
        pytest.param(chains(a=["-j DROP", "-s 10.0.0.0/8 -j ACCEPT"]), False, id="an ACCEPT anywhere"),
        pytest.param(chains(a=["-j b"], b=["-j DROP"]), True, id="a chain of chains"),
        pytest.param(chains(a=["-j b"], b=["-j ACCEPT"]), False, id="ACCEPT one level down"),
        pytest.param(chains(a=["-g b"], b=["-j DROP"]), False, id="a goto in it"),
        pytest.param(chains(a=["-j a"]), False, id="a loop of one"),
        pytest.param(chains(a=["-j b"], b=["-j a"]), False, id="a loop of two"),
        pytest.param(chains(a=["-j nowhere"]), False, id="a hole"),
    ],
)
def test_can_only_deny_looks_into_chains(found: t.Dict[str, Chain], denies: bool) -> None:
    assert can_only_deny(parse("-j a"), found) is denies


def test_a_loop_that_is_entered_twice_has_one_answer() -> None:
    """What was asked first must not decide what the second rule is told."""
    found = chains(a=["-j b", "-j ACCEPT"], b=["-j a"], c=["-j b"])
    judged: t.Dict[str, bool] = {}
    assert [can_only_deny(parse("-j " + name), found, judged) for name in "bca"] == [False] * 3
    assert [can_only_deny(parse("-j " + name), found) for name in "abc"] == [False] * 3


def deep(levels: int, last: str) -> t.Dict[str, Chain]:
    found = {"c%d" % level: Chain("c%d" % level, None, (parse("-j c%d" % (level + 1)),)) for level in range(levels)}
    found["c%d" % levels] = Chain("c%d" % levels, None, (parse(last),))
    return found


@pytest.mark.parametrize("levels", [20, 200])
@pytest.mark.parametrize(("last", "denies"), [("-j DROP", True), ("-j ACCEPT", False)])
def test_a_deep_nest_of_chains(levels: int, last: str, denies: bool) -> None:
    assert can_only_deny(parse("-j c0"), deep(levels, last)) is denies


@pytest.mark.parametrize(("last", "denies"), [("-j DROP", True), ("-j ACCEPT", False)])
def test_a_wide_graph_is_asked_once_per_chain(last: str, denies: bool) -> None:
    """40 levels with two jumps each are 2^40 ways."""
    found = {"c%d" % level: Chain("c%d" % level, None, (parse("-j c%d" % (level + 1)),) * 2) for level in range(40)}
    found["c40"] = Chain("c40", None, (parse(last),))
    assert can_only_deny(parse("-j c0"), found) is denies


def test_thousands_of_quotes_that_never_close_are_lines_of_their_own() -> None:
    # Quadratic, this would take hours.
    rule = '-A A -m set --match-set "x src -m comment --comment "a b" -j DROP'
    text = "\n".join(["*filter", ":A - [0:0]", *[rule] * 5000, "COMMIT", ""])
    assert sum(line == rule for line in logical_lines(text)) == 5000
