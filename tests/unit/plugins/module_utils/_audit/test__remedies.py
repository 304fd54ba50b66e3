# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The law of fixes: after a fix its finding is gone, and nobody gained or lost access but those it names."""

from __future__ import annotations

import typing as t

from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.quaywall.docker.plugins.module_utils._audit._allows import (
    host_port_never_matches,
    port_only_allow,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._denies import (
    address_only,
    broad_deny,
    neighbours_cut_off,
    port_only_deny,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._replies import (
    established_late,
    established_missing,
    replies_or_egress_hit,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import Survey
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import Intervals, subtract
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import from_json
from ansible_collections.quaywall.docker.tests.unit.audits import Check, fixed, found
from ansible_collections.quaywall.docker.tests.unit.snapshots import IPV4, Box, Document, Net, host, with_rules

CHECKS: t.Sequence[Check] = (
    port_only_deny,
    broad_deny,
    port_only_allow,
    host_port_never_matches,
    neighbours_cut_off,
    replies_or_egress_hit,
    established_missing,
    established_late,
    address_only,
)

RULES = (
    "-p tcp --dport 8080 -j DROP",
    "-i eth0 -p tcp --dport 9000 -j DROP",
    "! -s 203.0.113.0/24 -i eth0 -p tcp --dport 8080 -j REJECT",
    "-p tcp ! --dport 8080 -i eth0 -j DROP",
    "-p udp --dport 53 -j DROP",
    "-i eth0 -p tcp --dport 443 -j LOGDROP",
    "-p tcp -m multiport --dports 80,443,8080 -j ACCEPT",
    "-p tcp --dport 8080 -j RETURN",
    "-i eth0 -p tcp --dport 81 -j ACCEPT",
    "-i eth0 -j DROP",
    "-i eth0 ! -s 192.0.2.2 -j DROP",
    "-o docker0 -j DROP",
    "-d 172.18.0.0/16 -j DROP",
    "-j DROP",
    "-j RETURN",
    "-s 10.0.0.0/8 -j RETURN",
    "-s 198.51.100.66 -j DROP",
    "-i docker0 -j ACCEPT",
    "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "-d 172.17.0.2 -p tcp --dport 8080 -j DROP",
    "-d 172.17.0.3 -s 203.0.113.0/24 -j ACCEPT",
    "-d 172.17.0.3 -j DROP",
    "-p tcp -m conntrack --ctorigdstport 8080 -j DROP",
    "! -s 203.0.113.0/24 -i eth0 -p tcp -m conntrack --ctorigdstport 9000 -j DROP",
    "-p tcp -m conntrack --ctstate DNAT --ctorigdstport 9000 --ctdir ORIGINAL -j DROP",
    "-p tcp -m conntrack --ctorigdstport 9000 -j MINE",
    "-p tcp --dport 8080 -j MINE",
    "-i eth0 -j MINE",
)
BELOW = (
    "-s 203.0.113.0/24 -j RETURN",
    "-s 198.51.100.7 -j REJECT",
    "-p tcp --dport 8080 -j DROP",
    "-p tcp --dport 81 -j RETURN",
    "-p tcp --dport 443 -j ACCEPT",
    "-d 172.17.0.3 -j DROP",
    "-m conntrack --ctstate ESTABLISHED -j RETURN",
    "-j DROP",
)
BASE = host(
    "28.5",
    [
        Box("shop", "8080:8080"),
        Box("admin", "9000:8080"),
        Box("web", "81:80", "443:443"),
        Box("dns", "53:53/udp", network="app"),
        Box("app", "8443:443", network="app"),
    ],
    networks=[Net("app", "172.18.0.0/16", bridge="br-app")],
)


def access(document: Document) -> t.Dict[str, Intervals]:
    """Who reaches each published port, by its name in gains and loses."""
    family = Survey(from_json(document)).family(IPV4)
    return {"%s (%s) over IPv4" % (item.container.name, item.text): family.let_in(item)[0] for item in family.published}


@settings(max_examples=50)
@given(
    st.lists(st.sampled_from(RULES), min_size=1, max_size=4, unique=True),
    st.lists(st.sampled_from(BELOW), max_size=3, unique=True),
)
def test_fixes(rules: t.Sequence[str], below: t.Sequence[str]) -> None:
    lines = [":MINE - [0:0]", ":LOGDROP - [0:0]", "-A LOGDROP -j LOG", "-A LOGDROP -j DROP"]
    lines += ["-A MINE " + rule for rule in below] + ["-A DOCKER-USER " + rule for rule in rules]
    document = with_rules(BASE, IPV4, "filter", lines)
    before = access(document)
    for check in CHECKS:
        for finding in found(check, document):
            if finding.fix is None:
                continue
            after = fixed(document, finding)
            assert finding.identity not in {item.identity for item in found(check, after)}
            now = access(after)
            for name, peers in before.items():
                assert any(name in words for words in finding.fix.gains) >= bool(subtract(now[name], peers)), finding
                assert any(name in words for words in finding.fix.loses) >= bool(subtract(peers, now[name])), finding
            if check not in (port_only_allow, host_port_never_matches):
                # What is put in place of a deny closes nothing else.
                assert finding.fix.loses == () or "does not stop" in finding.message, finding
