# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a boot would make of DOCKER-USER, and what of Docker's is in a saved file."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._audit._saved import not_persistent, saved_docker_rules
from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import Survey
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import STORED_POLICIES, from_json
from ansible_collections.quaywall.docker.plugins.module_utils._store import Store
from ansible_collections.quaywall.docker.tests.unit.snapshots import (
    CAPTURES,
    IPV4,
    IPV6,
    Box,
    Document,
    captured,
    edited,
    host,
)

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import Finding

BOXES = (Box("shop", "8080:80"),)
V4, V6 = "/etc/iptables/rules.v4", "/etc/iptables/rules.v6"
ONE, TWO = "-s 198.51.100.9/32 -j DROP", "-i eth0 -p tcp -m tcp --dport 80 -j DROP"
POLICY = '-d 172.17.0.2/32 ! -i docker0 -p tcp -m comment --comment "quaywall:shop" -j DROP'
ESTABLISHED = '-m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment "quaywall: established" -j ACCEPT'


def file(*rules: str) -> str:
    """A saved filter table with these rules in DOCKER-USER; without that chain if there are none."""
    chain = [":DOCKER-USER - [0:0]"] if rules else []
    lines = ["*filter", ":INPUT ACCEPT [0:0]", ":FORWARD ACCEPT [0:0]", *chain]
    return "".join(line + "\n" for line in [*lines, *("-A DOCKER-USER " + rule for rule in rules), "COMMIT"])


def lasting(document: Document) -> t.List[Finding]:
    return list(not_persistent(Survey(from_json(document))))


def dockers(document: Document) -> t.List[Finding]:
    return list(saved_docker_rules(Survey(from_json(document))))


@pytest.mark.parametrize("name", CAPTURES)
def test_captured_hosts_have_none_of_it(name: str) -> None:
    assert not lasting(captured(name))
    assert not dockers(captured(name))


@pytest.mark.parametrize(
    ("live", "saved", "said"),
    [
        ([ONE], file(), "lacks `%s`" % ONE),
        ([ONE, TWO], file(ONE), "lacks `%s`" % TWO),
        ([], file(ONE, "-j RETURN"), "has `%s`, which is not there now" % ONE),
        ([], file(ONE, TWO), "and 1 more, which are not there now"),
        ([TWO], file(ONE), "lacks `%s` and has `%s`" % (TWO, ONE)),
        ([ONE, TWO], file(TWO, ONE), "another order"),
        ([ONE, ONE], file(ONE), "lacks `%s`" % ONE),
    ],
)
def test_the_file_and_the_chain_differ(live: t.List[str], saved: str, said: str) -> None:
    (finding,) = lasting(host("20.10", BOXES, live, saved={V4: saved}))
    assert finding.severity == "medium"
    assert finding.message.startswith(V4)
    assert said in finding.message
    assert finding.place is not None
    assert (finding.place.family, finding.subject) == (IPV4, V4)


@pytest.mark.parametrize(
    ("live", "saved"),
    [
        ([], file()),
        ([ONE], file(ONE, "-j RETURN")),
        ([TWO], file("-p tcp -i eth0 --dport 80 -j DROP")),
        # Policies are looked up and written anew; of other tools' chains their services take care.
        ([ESTABLISHED, POLICY], file()),
        ([], file(ESTABLISHED, POLICY)),
        (["-p tcp -j f2b-traefik"], file()),
        (["-j ufw-user-forward", ONE], file()),
    ],
)
def test_a_boot_changes_nothing(live: t.List[str], saved: str) -> None:
    assert not lasting(host("20.10", BOXES, live, saved={V4: saved}))


def test_each_family_has_its_file() -> None:
    document = host("28.5", BOXES, [ONE], ["-s 2001:db8::/32 -j DROP"], saved={V4: file(ONE), V6: file()})
    (finding,) = lasting(document)
    assert finding.place is not None
    assert (finding.place.family, finding.subject) == (IPV6, V6)


def test_without_a_saved_file_it_is_only_told() -> None:
    for rules in ([ONE], [ESTABLISHED, POLICY]):
        assert [finding.severity for finding in lasting(host("28.5", BOXES, rules))] == ["info"]
    assert not lasting(host("28.5", BOXES))
    assert not lasting(host("28.5", BOXES, ["-j ufw-user-forward"]))
    assert not lasting(edited(host("28.5", BOXES, [ONE]), saved=None))


# saved_docker_rules ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["20.10", "28.5", "29.7"])
def test_all_of_iptables_save(engine: str) -> None:
    document = host(engine, BOXES)
    (finding,) = dockers(edited(document, saved={V4: document["iptables"][IPV4]["nft"]}))
    assert (finding.severity, finding.subject) == ("medium", V4)
    assert "--to-destination 172.17.0.2:80" in finding.message


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("-A PREROUTING -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80", True),
        ("-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE", True),
        ("-A PREROUTING -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.0.0.2:80", False),
        ("-A PREROUTING -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2-172.17.0.9", False),
        ("-A POSTROUTING -s 10.8.0.0/24 ! -o wg0 -j MASQUERADE", False),
        ("-A POSTROUTING -o eth0 -j MASQUERADE", False),
    ],
)
def test_single_rules_of_nat(rule: str, said: bool) -> None:
    text = "*nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n%s\nCOMMIT\n" % rule
    assert bool(dockers(host("28.5", BOXES, saved={V4: text}))) == said


def test_an_own_file() -> None:
    assert not dockers(host("28.5", BOXES, saved={V4: file(ONE, "-j RETURN"), V6: file()}))


@pytest.mark.parametrize(("rules", "there"), [([ESTABLISHED, POLICY], False), ([ESTABLISHED, POLICY, ONE], True)])
def test_stored_policies_come_back(rules: t.List[str], there: bool) -> None:
    """What else is in the chain does not."""
    document = host("28.5", list(BOXES), rules)
    assert Store().path == STORED_POLICIES
    assert bool(lasting(edited(document, saved={STORED_POLICIES: ""}))) == there
    assert lasting(document)
