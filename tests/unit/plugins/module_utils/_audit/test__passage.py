# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which chains lead to a rule, and checks of order, place and addresses on chains of any rules at all."""

from __future__ import annotations

import typing as t

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.quaywall.docker.plugins.module_utils._audit._addresses import (
    covers_no_container,
    stale_address,
    wrong_owner,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._order import (
    jump_missing,
    jump_not_first,
    jump_window,
    unreachable_rule,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._passage import Callers, names_port
from ansible_collections.quaywall.docker.plugins.module_utils._audit._places import docker_chain_edited, never_read
from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import Survey
from ansible_collections.quaywall.docker.plugins.module_utils._chain import Chain
from ansible_collections.quaywall.docker.plugins.module_utils._rule import parse
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import from_json
from ansible_collections.quaywall.docker.plugins.module_utils._walk import Site
from ansible_collections.quaywall.docker.tests.unit.snapshots import FAMILIES, IPV6, Box, host
from ansible_collections.quaywall.docker.tests.unit.support import any_text, known_rules

CHECKS = (
    jump_missing,
    jump_not_first,
    jump_window,
    unreachable_rule,
    never_read,
    docker_chain_edited,
    stale_address,
    wrong_owner,
    covers_no_container,
)


def chains(**rules: t.Sequence[str]) -> t.Dict[str, Chain]:
    return {name: Chain(name, None, tuple(parse(text) for text in texts)) for name, texts in rules.items()}


def test_callers() -> None:
    table = chains(
        IN=["-i eth0 -j A", "-i eth1 -j A", "-j B", "-g C"],
        A=["-j C"],
        B=["-i eth2 -j C", "-j B"],
        C=["-j DROP"],
        OTHER=["-j C"],
    )
    callers = Callers(table, ["IN"])
    assert set(callers.names) == {"IN", "A", "B", "C"}
    # The nearest first, and all of them.
    upwards = [site[:2] for site in callers.upwards(Site("C", 1, 1))]
    assert upwards[0] == ("C", 1)
    assert set(upwards[1:4]) == {("A", 1), ("B", 1), ("IN", 4)}
    assert set(upwards) == {("C", 1), ("A", 1), ("B", 1), ("IN", 4), ("IN", 1), ("IN", 2), ("IN", 3), ("B", 2)}
    coming = callers.interfaces("in_interface", ["IN"])
    assert coming["A"] == {"eth0", "eth1"}
    assert coming["B"] is None
    assert coming["C"] is None
    assert Callers(table, ["A"]).interfaces("in_interface", ["A"]) == {"A": None, "C": None}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-p tcp -m tcp --dport 80 -j DROP", True),
        ("-p tcp -m multiport --dports 22,79:81 -j DROP", True),
        ("-p tcp -m tcp --dport 1:1024 -j DROP", True),
        ("-p tcp -m tcp --dport 1:65535 -j DROP", False),
        ("-p tcp -m tcp ! --dport 22 -j DROP", False),
        ("-p tcp -m tcp --sport 80 -j DROP", False),
        ("-j DROP", False),
    ],
)
def test_names_port(text: str, expected: bool) -> None:
    assert names_port(parse(text), 80) is expected


# Any rules at all ----------------------------------------------------------------------------------------------------

_PLACES = ("DOCKER-USER", "DOCKER-USER", "FORWARD", "INPUT", "DOCKER", "DOCKER-FORWARD", "X", "Y")
_HOSTS = {
    family: host("26.1", [Box("a", "8080:80"), Box("-j", "1:1")], ipv6=family == IPV6, options={"ip6tables": True})
    for family in FAMILIES
}


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_rule_is_an_error(family: str, data: t.Any) -> None:
    known = known_rules(family).map(lambda rule: rule.render())
    jumps = st.sampled_from(["-j X", "-g Y", "-j Y", "-j DROP", "-j RETURN"])
    rules = data.draw(
        st.lists(
            st.tuples(st.sampled_from(_PLACES), st.one_of(known, st.tuples(known, jumps).map(" ".join), any_text)),
            max_size=8,
        )
    )
    lines = "".join("-A %s %s\n" % item for item in rules if "\n" not in item[1])
    document = dict(_HOSTS[family])
    dump = document["iptables"][family]["nft"]
    dump = dump.replace("*filter\n", "*filter\n:X - [0:0]\n:Y - [0:0]\n")
    dump = dump.replace("-A FORWARD -j DOCKER-USER\n", "-A FORWARD -j DOCKER-USER\n" + lines, 1)
    document["iptables"] = {**document["iptables"], family: {"nft": dump, "legacy": None}}
    survey = Survey(from_json(document))
    for check in CHECKS:
        for finding in check(survey):
            assert finding.check == check.__name__
            assert finding.to_result()["id"]
