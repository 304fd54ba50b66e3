# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The chains that are ours alone, by example; what they do to packets is in test__baseline.py and in tests/kernel."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._chain import Table, parse_dump
from ansible_collections.quaywall.docker.plugins.module_utils._guard import (
    default_rules,
    guard_rules,
    own_chain,
    own_chains_beside,
    own_default,
    own_guard,
)
from ansible_collections.quaywall.docker.plugins.module_utils._plan import OwnChain, Plan
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6, Rule, parse
from ansible_collections.quaywall.docker.tests.unit.support import Kernel

HOOK = '-m comment --comment "quaywall: guard" -j QUAYWALL-GUARD'
STOP = '-m mark --mark 0x51574744 -m comment --comment "quaywall: guard" -j DROP'
MARK = "-j MARK --set-xmark 0x51574744/0xffffffff"
REPLIES = '-m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment "quaywall: established" -j RETURN'
DEFAULT = '-m comment --comment "quaywall: default drop" -j QUAYWALL-DEFAULT'
DENY = '-d 172.17.0.2/32 -m comment --comment "quaywall:web"'


def rules(*texts: str) -> t.List[Rule]:
    return [parse(text) for text in texts]


def table(kernel: Kernel, family: str = IPV4) -> Table:
    return next(iter(parse_dump(kernel.save(), family).tables.values()))


def texts(found: t.Iterable[Rule]) -> t.List[str]:
    return [rule.render() for rule in found]


def mangle(forward: t.Sequence[str] = (), post: t.Sequence[str] = (), **more: t.Sequence[str]) -> Kernel:
    chains = {name.replace("_", "-"): found for name, found in more.items()}
    return Kernel({"FORWARD": forward, "POSTROUTING": post, **chains}, "mangle")


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (DENY + " -j DROP", DENY + " -g QUAYWALL-DENY"),
        (DENY + " -j REJECT --reject-with icmp-port-unreachable", DENY + " -g QUAYWALL-DENY"),
        (DENY + " -j REJECT --reject-with tcp-reset", DENY + " -g QUAYWALL-DENY"),
        (DENY + " -j ACCEPT", DENY + " -j RETURN"),
        (DENY + " -j RETURN", DENY + " -j RETURN"),
        ('-m limit --limit 10/min %s -j LOG --log-prefix "x "' % DENY, None),
        (DEFAULT, None),
    ],
)
def test_each_rule_has_one_that_stands_for_it(rule: str, expected: t.Optional[str]) -> None:
    assert texts(guard_rules(rules(rule), [])) == [REPLIES] + ([] if expected is None else [expected])


def test_the_default_is_repeated_behind_the_policies() -> None:
    found = guard_rules(rules(DENY + " -j ACCEPT", DEFAULT), rules("-i docker0 -j RETURN", "-o docker0 -j DROP"))
    assert texts(found) == [REPLIES, DENY + " -j RETURN", "-i docker0 -j RETURN", "-o docker0 -g QUAYWALL-DENY"]


def test_default_rules() -> None:
    assert texts(default_rules(["br-b", "br-a"], [])) == [
        "-i br-a -j RETURN", "-i br-b -j RETURN", "-o br-a -j DROP", "-o br-b -j DROP",
    ]  # fmt: skip
    assert texts(default_rules(["br-a"], ["eth0", "wg+"])) == ["-i eth0 -o br-a -j DROP", "-i wg+ -o br-a -j DROP"]
    assert default_rules([], []) == default_rules([], ["eth0"]) == []


def write(kernel: Kernel, chains: t.Iterable[OwnChain]) -> None:
    own = tuple(chain for chain in chains if chain.changes)
    made = Plan((), (), (), False, False, (), own=own)
    if own:
        kernel.restore(made.transaction().partition("*filter\n")[0])


@pytest.mark.parametrize("family", [IPV4, IPV6])
def test_the_guard_comes_changes_and_goes(family: str) -> None:
    kernel = mangle(["-j TTL --ttl-set 64"], ["-j CHECKSUM --checksum-fill"])
    before = kernel.save()
    first, second = rules(DENY + " -g QUAYWALL-DENY"), rules("-j RETURN")
    for wanted in (first, second):
        write(kernel, own_guard(table(kernel, family), wanted, family))
        assert kernel.texts("QUAYWALL-GUARD") == tuple(texts(wanted))
        assert kernel.texts("QUAYWALL-DENY") == (MARK,)
        # It is read before all else, and stops after all else was asked.
        assert kernel.texts("FORWARD") == (HOOK, "-j TTL --ttl-set 64")
        assert kernel.texts("POSTROUTING") == (STOP, "-j CHECKSUM --checksum-fill")
        assert not any(chain.changes for chain in own_guard(table(kernel, family), wanted, family))
    write(kernel, own_guard(table(kernel, family), None, family))
    assert kernel.save() == before
    assert not any(chain.changes for chain in own_guard(table(kernel, family), None, family))


def test_hooks_that_stand_twice_or_lead_nowhere_are_made_right() -> None:
    kernel = mangle([HOOK, "-j TTL --ttl-set 64", HOOK], [], QUAYWALL_GUARD=["-j RETURN"])
    wanted = rules("-j RETURN")
    write(kernel, own_guard(table(kernel), wanted, IPV4))
    assert kernel.texts("FORWARD").count(HOOK) == kernel.texts("POSTROUTING").count(STOP) == 1
    assert kernel.texts("QUAYWALL-DENY") == (MARK,)
    write(kernel, own_guard(table(kernel), None, IPV4))
    assert kernel.texts("FORWARD") == ("-j TTL --ttl-set 64",)
    assert sorted(kernel.chains) == ["FORWARD", "POSTROUTING"]


@pytest.mark.parametrize(
    ("ahead", "lifted"),
    [
        ("-j TTL --ttl-set 64", False),
        ("-p tcp -j TCPMSS --clamp-mss-to-pmtu", False),
        ("-s 203.0.113.9/32 -j DROP", False),
        ("-i eth0 -j ACCEPT", True),
        ("-j RETURN", True),
        ("-j somewhere", True),
    ],
)
def test_nothing_that_lets_pass_is_read_before_the_guard(ahead: str, lifted: bool) -> None:
    kernel = mangle([ahead, HOOK], [ahead, STOP], QUAYWALL_GUARD=["-j RETURN"], QUAYWALL_DENY=[MARK])
    wanted = rules("-j RETURN")
    chains = own_guard(table(kernel), wanted, IPV4)
    assert any(chain.changes for chain in chains) == lifted
    write(kernel, chains)
    assert kernel.texts("FORWARD") == ((HOOK, ahead) if lifted else (ahead, HOOK))
    assert kernel.texts("POSTROUTING") == ((STOP, ahead) if lifted else (ahead, STOP))
    assert not any(chain.changes for chain in own_guard(table(kernel), wanted, IPV4))


def test_a_chain_that_is_only_spelt_otherwise_is_no_change() -> None:
    kernel = Kernel({"FORWARD": [], "QUAYWALL-DEFAULT": ["-d 172.17.0.2/32 -m conntrack --ctstate NEW,DNAT -j DROP"]})
    same = rules("-m conntrack -d 172.17.0.2 --ctstate DNAT,NEW -j DROP")
    assert not own_default(table(kernel), same, IPV4).changes
    assert own_default(table(kernel), rules("-d 172.17.0.3 -j DROP"), IPV4).changes
    assert own_chain(table(kernel), "QUAYWALL-DEFAULT", None, IPV4).after is None


def test_beside_a_single_policy() -> None:
    kernel = mangle([HOOK], [STOP], QUAYWALL_GUARD=[REPLIES], QUAYWALL_DENY=[MARK])
    filtered = Kernel({"FORWARD": [], "DOCKER-USER": [], "QUAYWALL-DEFAULT": ["-o docker0 -j DROP"]})
    write(kernel, own_chains_beside(table(filtered), table(kernel), rules(DENY + " -j DROP"), IPV4, ()))
    # The default chain is not led to, so it closes nothing.
    assert kernel.texts("QUAYWALL-GUARD") == (REPLIES, DENY + " -g QUAYWALL-DENY")
    write(kernel, own_chains_beside(table(filtered), table(kernel), rules(DEFAULT), IPV4, ()))
    assert kernel.texts("QUAYWALL-GUARD") == (REPLIES, "-o docker0 -g QUAYWALL-DENY")
    write(kernel, own_chains_beside(table(filtered), table(kernel), [], IPV4, ()))
    assert sorted(kernel.chains) == ["FORWARD", "POSTROUTING"]
