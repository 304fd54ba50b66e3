# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Public rule sets, whole: parsed without a rest, and walked by packets that say all of themselves without a doubt."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._chain import parse_dump
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6
from ansible_collections.quaywall.docker.plugins.module_utils._walk import DESTINATION, PEER, SOURCE, Flow, Program
from ansible_collections.quaywall.docker.tests.unit.support import shared_files, shared_text

FILES = [
    *shared_files("rulesets/moby-iptabler/*tables.golden"),
    *shared_files("rulesets/moby-docs/*.iptables-save"),
    *shared_files("rulesets/firehol/**/*.aud[46]"),
    *shared_files("rulesets/calico/**/*.txt"),
    *shared_files("rulesets/soumiks-formal-verifier/**/iptables-sample.rules"),
]
HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
#: Words of conntrack, direction, and TCP flags of a packet.
MOMENTS = (
    (("NEW",), "ORIGINAL", "SYN"),
    (("NEW", "DNAT"), "ORIGINAL", "SYN"),
    (("ESTABLISHED",), "REPLY", "ACK"),
    (("INVALID",), "ORIGINAL", "RST"),
)


def flows(family: str, hook: str, peer: str) -> t.Iterator[Flow]:
    number = int.from_bytes(bytes((172, 17, 0, 2)), "big") if family == IPV4 else 0xFD00 << 112 | 2
    here = ((number, number),)
    for protocol in ("tcp", "udp", "icmp" if family == IPV4 else "ipv6-icmp"):
        for states, direction, flag in MOMENTS:
            client, port = (33000, 33000), (8080, 8080)
            yield Flow(
                family=family,
                peer=peer,
                protocol=protocol,
                in_interface="" if hook in ("OUTPUT", "POSTROUTING") else "eth0",
                out_interface="" if hook in ("PREROUTING", "INPUT") else "docker0",
                address=here,
                source_ports=client,
                destination_ports=port,
                states=frozenset(states),
                direction=direction,
                original=(PEER, here),
                original_ports=(client, port),
                reply=(here, PEER),
                reply_ports=(port, client),
                flags=(frozenset((flag,)),),
                icmp_type=8 if family == IPV4 else 128,
            )


@pytest.mark.parametrize("path", FILES)
def test_a_rule_set_is_walked_without_an_unknown(path: t.Any) -> None:
    family = IPV6 if path.name.endswith(".aud6") or "ip6tables" in path.name else IPV4
    dump = parse_dump(shared_text(path), family)
    assert dump.tables
    walked = 0
    for name, table in dump.tables.items():
        assert not table.unparsed
        program = Program(table.chains, family)
        for hook in HOOKS:
            for peer in (SOURCE, DESTINATION) if hook in table.chains else ():
                for flow in flows(family, hook, peer):
                    outcomes = program.walk(hook, flow)
                    assert [item for item in outcomes if item.reasons] == [], (name, hook)
                    walked += len(outcomes)
    assert walked
