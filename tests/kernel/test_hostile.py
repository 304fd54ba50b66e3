# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Comments and set names that other tools may write: carried byte for byte, and never taken for rules of ours."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .lab import FAMILIES, IPV4, IPV6, Host, docker_table, firewall, lines_of, listed, load, tool
from .planners import parsed, policy_planner

FORGED = b'-A DOCKER-USER -d 172.17.0.10/32 -m comment --comment "quaywall:admin-ui" -j ACCEPT'

#: What iptables takes as an argument; a newline can come from any program that runs it without a shell.
COMMENTS = {
    "quotes": b'say "no"',
    "one quote": b'"',
    "ends with a backslash": b"C:\\",
    "backslash and quote": b'\\"\\\\"',
    "apostrophe": b"it's",
    "newline": b"two\nlines",
    "only newlines": b"\n\n\n",
    "ends with a newline": b"end\n",
    "forged rule": b"x\n" + FORGED,
    "forged rule, quotes closed": b'x"\n' + FORGED + b"\n",
    "forged rule, quotes closed and opened": b'x" -j DROP\n' + FORGED + b'\n-A DOCKER-USER -m comment --comment "',
    "forged rule of ours, alone": b"\n" + FORGED + b"\n",
    "commit": b"x\nCOMMIT\n",
    "another table": b"x\nCOMMIT\n*nat\n:DOCKER-USER - [0:0]\n" + FORGED + b"\nCOMMIT\n*filter",
    "chain line": b"x\n:DOCKER-USER - [0:0]\n",
    "incompatible": b"x\n# Table `filter' is incompatible, use 'nft' tool.\n",
    "comment line": b"x\n# y",
    "our comment with more": b"quaywall:admin-ui\n",
    "our comment in front": b"quaywall:admin-ui x",
    "our comment behind": b" quaywall:admin-ui",
    "255 bytes of UTF-8": "é".encode() * 127 + b"x",
    "cut in the middle of a character": "€".encode() * 90,
    "latin-1": "Büro Straße".encode("latin-1"),
    "no text at all": bytes(range(128, 256)),
    "control characters": bytes(range(1, 32)) + b"\x7f",
    "tab and carriage return": b"a\tb\rc\r",
    "an option": b"--jump",
    "a rule": b"-j ACCEPT",
    "a dash": b"-",
    "exclamation": b"!",
    "empty": b"",
    "blanks": b"  two  blanks  ",
    "dollar": b"$(reboot) `reboot` ${HOME} %s %d",
    "line separator": "a\u2028b\x85c\x0bd\x0ce\x1cf".encode(),
}

OURS = {
    IPV4: '-d 172.17.0.10/32 -m comment --comment "quaywall:admin-ui" -j DROP',
    IPV6: '-d fd00:17::10/128 -m comment --comment "quaywall:admin-ui" -j DROP',
}
OTHER = {family: rule.replace("admin-ui", "db") for family, rule in OURS.items()}


def append(host: Host, variant: str, family: str, *spec: str | bytes) -> bool:
    """What a careless tool does; False if iptables refuses it."""
    return host.attempt(tool(family, variant), "-w", "10", "-A", "DOCKER-USER", *spec).returncode == 0


ESTABLISHED = (
    b"-A DOCKER-USER -m conntrack --ctstate RELATED,ESTABLISHED"
    b' -m comment --comment "quaywall: established" -j ACCEPT\n'
)
RETURN = b"-A DOCKER-USER -j RETURN\n"


def judge(host: Host, variant: str, family: str) -> None:
    """Policies come and go between foreign rules that stay what they are."""
    foreign = listed(host, variant, family)
    code = firewall()

    def change(name: str, rules: list[str]) -> bytes:
        change = host.call(code.change, policy_planner(name, parsed({family: rules})), dry=False)[family]
        after = listed(host, variant, family)
        assert after == lines_of("DOCKER-USER", change.after)
        return after

    admin, db = (lines_of("DOCKER-USER", [rules[family]]) for rules in (OURS, OTHER))
    # Every byte of the foreign rules is there, in one piece; a bare RETURN was added at the end.
    assert without(change("admin-ui", [OURS[family]]), ESTABLISHED, admin) == foreign + RETURN
    written = change("db", [OTHER[family]])
    assert without(written, ESTABLISHED, admin, db) == foreign + RETURN
    # What was read says that all of it is there already.
    assert change("db", [OTHER[family]]) == written
    # The policy goes: not one line more is taken, whatever the foreign rules pretend to be.
    assert without(change("admin-ui", []), ESTABLISHED, db) == foreign + RETURN


def without(text: bytes, *lines: bytes) -> bytes:
    """Without rules of ours, each of which must be there: at the beginning, or the last time that it appears."""
    for line in lines:
        start = 0 if text.startswith(line) else text.rindex(b"\n" + line) + 1
        text = text[:start] + text[start + len(line) :]
    return text


@pytest.mark.parametrize("name", COMMENTS)
def test_a_comment_is_carried_as_it_is(host: Host, variant: str, name: str) -> None:
    load(host, variant, IPV4, docker_table([]))
    comment = COMMENTS[name]
    assert append(host, variant, IPV4, "-s", "192.0.2.9", "-j", "DROP")
    assert append(host, variant, IPV4, "-m", "comment", "--comment", comment, "-j", "DROP")
    assert append(host, variant, IPV4, "-p", "tcp", "-m", "comment", "--comment", comment, "-j", "ACCEPT")
    judge(host, variant, IPV4)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_comments_at_once(host: Host, variant: str, family: str) -> None:
    for each in FAMILIES:
        load(host, variant, each, docker_table([]))
    for index, comment in enumerate(COMMENTS.values()):
        target = ("DROP", "ACCEPT", "LOG")[index % 3]
        assert append(host, variant, family, "-m", "comment", "--comment", comment, "-j", target)
    judge(host, variant, family)


PIECES = st.sampled_from(
    [b'"', b"\\", b"\n", b"'", b" ", b"!", b"-A DOCKER-USER ", b"-j ACCEPT", b"--comment ", b'"quaywall:admin-ui"',
     b"COMMIT", b"*filter", b":", b"[1:2] ", b"#", b"a", b"\xff", "ü".encode(), b"\t", b"-m comment "]
)  # fmt: skip


@settings(max_examples=30)
@given(
    variant=st.sampled_from(("nft", "legacy")),
    comments=st.lists(st.lists(PIECES, min_size=1, max_size=12).map(b"".join), min_size=1, max_size=4),
    target=st.sampled_from(("DROP", "ACCEPT", "")),
)
def test_a_comment_of_any_pieces(variant: str, comments: list[bytes], target: str) -> None:
    with Host() as host:
        for family in FAMILIES:
            load(host, variant, family, docker_table([]))
        for comment in comments:
            assert append(
                host, variant, IPV4, "-m", "comment", "--comment", comment, *(("-j", target) if target else ())
            )
        judge(host, variant, IPV4)


SET_NAMES = {
    "blanks": b"office networks",
    "quote": b'"office',
    "quotes": b'"office"',
    "blank and quote": b'a "b',
    "apostrophe and backslash": b"o'b\\c",
    "an option": b"x -j ACCEPT",
    "ours": b"quaywall:admin-ui",
}


@pytest.mark.parametrize("name", SET_NAMES)
def test_a_set_name_is_carried_as_it_is(host: Host, variant: str, name: str) -> None:
    host.run(b"ipset", b"create", SET_NAMES[name], b"hash:ip")
    for family in FAMILIES:
        load(host, variant, family, docker_table([]))
    assert append(host, variant, IPV4, "-m", "set", "--match-set", SET_NAMES[name], "src", "-j", "DROP")
    assert append(host, variant, IPV4, "-m", "set", "!", "--match-set", SET_NAMES[name], "dst", "-j", "ACCEPT")
    judge(host, variant, IPV4)


def test_forged_lines_do_not_become_rules_of_another_table(host: Host, variant: str) -> None:
    """A comment that closes the table: what follows it in the dump still belongs to the comment."""
    load(host, variant, IPV6, docker_table([]))
    load(host, variant, IPV4, docker_table([], more="ZZZ"))
    evil = b"x\nCOMMIT\n*filter\n:DOCKER-USER - [0:0]\n" + FORGED + b"\nCOMMIT\n*filter\n:ZZZ - [0:0]"
    host.run(tool(IPV4, variant), "-w", "10", "-A", "DOCKER", "-m", "comment", "--comment", evil, "-j", "DROP")
    judge(host, variant, IPV4)
    assert listed(host, variant, IPV4, "DOCKER").count(b"\n") == 1 + evil.count(b"\n")
