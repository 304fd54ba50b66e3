# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The rules that Docker writes, held against what engines and moby's own tests print."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._audit import _dockers
from ansible_collections.quaywall.docker.plugins.module_utils._chain import parse_dump
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6, parse
from ansible_collections.quaywall.docker.tests.unit.support import shared_files, shared_text

DUMPS = [
    *shared_files("rulesets/moby-iptabler/*.golden"),
    *shared_files("rulesets/moby-docs/*.iptables-save"),
    *shared_files("captures/*/ip*-save.txt"),
]


@pytest.mark.parametrize("path", DUMPS)
def test_every_rule_of_docker_is_known(path: t.Any) -> None:
    family = IPV6 if "ip6tables" in path.name else IPV4
    dump = parse_dump(shared_text(path), family)
    for table, name in _dockers.CHAINS:
        chain = dump.chain(table, name)
        for rule in chain.rules if chain is not None else ():
            assert _dockers.is_of_docker(table, name, rule, family), rule.render()
    forward = dump.chain("filter", "FORWARD")
    for rule in forward.rules if forward is not None else ():
        bridges = ("br-dummy", "bridge1")
        assert _dockers.forward_is_of_docker(rule, family, bridges), rule.render()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-i docker0 ! -o docker0 -j ACCEPT", True),
        ("-i br-0123456789ab -o br-0123456789ab -j DROP", True),
        ("-i br-0123456789ab -o docker0 -j ACCEPT", False),
        ("-i wg0 -o wg0 -j ACCEPT", False),
        ("-i app0 -o app0 -j ACCEPT", True),
        ("-j DOCKER-USER", True),
        ("-i eth0 -j DOCKER-USER", False),
        ("-j DOCKER-ISOLATION-STAGE-1", True),
        ("-j DOCKER-MAN", False),
        # As 28.0.0 alone had it, and as another version of iptables prints it.
        ("-m set --match-set docker-ext-bridges-v4 dst -j DOCKER", True),
        ("-o docker0 -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT", True),
        ("-o docker0 -j ACCEPT", False),
    ],
)
def test_forward(text: str, expected: bool) -> None:
    assert _dockers.forward_is_of_docker(parse(text), IPV4, ("app0",)) is expected
