# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who gains and who loses access by a plan, and the snapshot as it is with the plan carried out."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils import _changes
from ansible_collections.quaywall.docker.plugins.module_utils._baseline import (
    Settings,
    compile_chain,
    parse_policies,
    plan_chain,
    plan_removal,
)
from ansible_collections.quaywall.docker.plugins.module_utils._chain import DOCKER_USER, Table, parse_dump
from ansible_collections.quaywall.docker.plugins.module_utils._changes import AccessChange, access_changes, carried_out
from ansible_collections.quaywall.docker.plugins.module_utils._plan import Plan
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import Snapshot, from_json
from ansible_collections.quaywall.docker.tests.unit.snapshots import IPV4, IPV6, Box, Document, Net, host
from ansible_collections.quaywall.docker.tests.unit.support import Kernel

BOXES = (Box("admin", "9000:8080"), Box("shop", "8080:8080"), Box("far", "9100:8080", network="other"))
NETS = (Net("other", "172.18.0.0/16"),)
OFFICE = "203.0.113.10"
ADMIN = {
    "name": "admin-ui",
    "container": "admin",
    "destination_port": ["8080"],
    "source": [OFFICE],
    "action": "accept",
}
Planned = t.Dict[str, t.Tuple[str, Plan]]


def planned(
    document: Document, *policies: t.Mapping[str, t.Any], **settings: t.Any
) -> t.Tuple[Snapshot, Planned, t.Any]:
    """The snapshot, the plans of docker_user_chain for it, and the sets of these."""
    snapshot = from_json(document)
    options = Settings.from_options(settings)
    wanted = compile_chain(
        parse_policies(policies, options.ipset_threshold),
        snapshot.inventory,
        lambda item: item.current_ports,
        (),
        False,
        True,
    )
    plans: Planned = {}
    for family in (IPV4, IPV6):
        dump = snapshot.dumps.get((family, "nft"))
        if dump is not None:
            mangle = dump.tables.get("mangle") or Table("mangle", {})
            plans[family] = "nft", plan_chain(dump.tables["filter"], mangle, wanted, options, family, False)
    sets = [(name, IPV6 if name.endswith("-6") else IPV4, networks) for name, networks in wanted.sets.items()]
    return snapshot, plans, sets


def changed(document: Document, *policies: t.Mapping[str, t.Any], **settings: t.Any) -> t.List[AccessChange]:
    found, whole = access_changes(*planned(document, *policies, **settings))
    assert whole
    return found


def texts(found: t.Iterable[AccessChange]) -> t.List[str]:
    return [item.text for item in found]


def made(engine: str = "28.5", *docker_user: str, **more: t.Any) -> Document:
    return host(engine, BOXES, networks=NETS, docker_user=docker_user, **more)


# Who reaches what ----------------------------------------------------------------------------------------------------


def test_a_policy_closes_a_port_and_the_other_container_with_that_port_stays_open() -> None:
    assert texts(changed(made(), ADMIN)) == ["Blocked for anyone but 203.0.113.10: admin (9000->8080/tcp) over IPv4"]


def test_engines_that_let_in_whoever_routes_lose_that_way_too() -> None:
    """Up to Engine 27 the container's own address is reached from outside (docker-firewall-facts 4).

    The policy's allow carries the host port, so by that way it is not for the office either (design).
    """
    assert texts(changed(made("26.1"), ADMIN)) == [
        "Blocked for anyone but 203.0.113.10: admin (9000->8080/tcp) over IPv4",
        "Blocked for anyone: admin (172.17.0.2, port 8080/tcp) over IPv4",
    ]
    assert texts(changed(made("26.1"), {**ADMIN, "match": "address"})) == [
        "Blocked for anyone but 203.0.113.10: admin (9000->8080/tcp) over IPv4",
        "Blocked for anyone but 203.0.113.10: admin (172.17.0.2, port 8080/tcp) over IPv4",
    ]


def test_an_entry_says_it_piece_by_piece() -> None:
    (one,) = changed(made(), ADMIN)
    assert one == AccessChange(
        "blocked",
        "anyone but 203.0.113.10",
        "",
        "admin",
        "172.17.0.2",
        9000,
        "tcp",
        "9000->8080/tcp",
        IPV4,
        "definite",
        (),
    )


def test_what_takes_a_rule_out_opens() -> None:
    document = made("28.5", "-p tcp -m tcp --dport 8080 -j DROP")
    found = changed(document, {**ADMIN, "destination_port": None}, foreign_rules="remove")
    assert sorted(texts(found)) == sorted(
        [
            "Reachable for 203.0.113.10: admin (9000->8080/tcp) over IPv4",
            "Reachable for shop in by docker0: admin (172.17.0.2, port 8080/tcp) over IPv4",
            "Reachable for anyone: shop (8080->8080/tcp) over IPv4",
            "Reachable for admin in by docker0: shop (172.17.0.3, port 8080/tcp) over IPv4",
            "Reachable for anyone: far (9100->8080/tcp) over IPv4",
        ]
    )


def test_there_and_back() -> None:
    document = made("26.1")
    snapshot, plans, sets = planned(document, ADMIN, default="drop")
    after = carried_out(snapshot, plans, sets)
    back: Planned = {}
    for family, (variant, _plan) in plans.items():
        tables = after.dumps[family, variant].tables
        back[family] = variant, plan_removal(tables["filter"], tables["mangle"], family)
    there, whole = access_changes(snapshot, plans, sets)
    again, _whole = access_changes(after, back)
    assert whole
    turned = {"blocked": "reachable", "reachable": "blocked"}
    assert there
    assert {item._replace(becomes=turned[item.becomes]) for item in there} == set(again)


def test_nothing_changes_by_a_plan_that_is_empty() -> None:
    snapshot, plans, sets = planned(made(), ADMIN)
    after = carried_out(snapshot, plans, sets)
    dump = after.dumps[IPV4, "nft"]
    wanted = compile_chain(
        parse_policies([ADMIN], 100), after.inventory, lambda item: item.current_ports, (), False, True
    )
    same = plan_chain(dump.tables["filter"], dump.tables["mangle"], wanted, Settings.from_options({}), IPV4, False)
    assert same.empty
    assert access_changes(after, {IPV4: ("nft", same)}) == ([], True)


def test_what_hangs_on_something_is_possible() -> None:
    document = made("28.5", "-p tcp -m tcp --dport 8080 -m limit --limit 1/sec -j ACCEPT")
    (one,) = changed(document, {**ADMIN, "source": None, "action": "drop"})
    # The rule that accepts now and then stands behind the policy.
    assert (one.becomes, one.source, one.certainty) == ("blocked", "anyone", "definite")
    established = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
    document = made("28.5", established, "-p tcp -m tcp --dport 8080 -m limit --limit 1/sec -j RETURN", "-j DROP")
    found = changed(document, ADMIN, foreign_rules="remove")
    assert {(item.becomes, item.certainty) for item in found if item.container == "shop" and item.published} == {
        ("reachable", "possible")
    }
    assert all("limit" in " ".join(item.reasons) for item in found if item.certainty == "possible")


def test_interfaces_are_named_where_they_differ() -> None:
    document = made()
    tunnel = {"name": "wg0", "kind": "wireguard", "up": True, "master": "", "addresses": ["10.9.0.1/24"]}
    document = {**document, "interfaces": [*document["interfaces"], tunnel]}
    assert texts(changed(document, {**ADMIN, "in_interface": "wg0"})) == [
        "Blocked for anyone in by eth0: admin (9000->8080/tcp) over IPv4",
        "Blocked for anyone but 203.0.113.10 in by wg0: admin (9000->8080/tcp) over IPv4",
    ]
    assert [item.in_interface for item in changed(document, ADMIN)] == [""]
    assert texts(changed(document, default="drop", outside_interfaces=["wg0"])) == [
        "Blocked for anyone in by wg0: %s over IPv4" % port
        for port in ("admin (9000->8080/tcp)", "far (9100->8080/tcp)", "shop (8080->8080/tcp)")
    ]


def test_many_sources_are_a_set() -> None:
    sources = ["192.0.2.%d" % number for number in range(0, 20, 2)]
    found = changed(made(), {**ADMIN, "source": sources}, ipset_threshold=3)
    assert len(found) == 1
    assert found[0].source.startswith("anyone but 192.0.2.0, 192.0.2.2")
    assert found[0].certainty == "definite"


def test_ipv6_is_looked_at_by_itself() -> None:
    boxes = (Box("dual", "9000:8080", network="two"),)
    document = host("28.5", boxes, networks=[Net("two", "172.20.0.0/16", "fd00:20::/64")])
    found = changed(document, {**ADMIN, "container": "dual", "source": ["2001:db8::1", OFFICE]})
    assert texts(found) == [
        "Blocked for anyone but 203.0.113.10: dual (9000->8080/tcp) over IPv4",
        # From link-local addresses Docker does not translate; docker-proxy serves them, which no policy stops.
        "Blocked for anyone but 2001:db8::1 and fe80::/10: dual (9000->8080/tcp) over IPv6",
    ]


def test_too_many_ways_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_changes, "MOST_TRACED", 1)
    _found, whole = access_changes(*planned(made(), ADMIN, default="drop"))
    assert not whole


def test_who_is_in_a_hurry_is_told_what_comes_from_outside_first() -> None:
    left = [True, True, True]
    found, whole = access_changes(
        *planned(made("26.1"), ADMIN, default="drop"), goes_on=lambda: bool(left and left.pop())
    )
    assert not whole
    assert texts(found) == [
        "Blocked for anyone but 203.0.113.10: admin (9000->8080/tcp) over IPv4",
        "Blocked for anyone: far (9100->8080/tcp) over IPv4",
        "Blocked for anyone: shop (8080->8080/tcp) over IPv4",
    ]


def test_a_policy_for_one_container_traces_none_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: t.List[str] = []
    reached = _changes._reached

    def counted(tracer: t.Any, start: t.Any, way: t.Any) -> t.Any:
        asked.append(way.endpoint.container.name)
        return reached(tracer, start, way)

    document = made()
    snapshot, plans, sets = planned(document)
    settled = carried_out(snapshot, plans, sets)
    dump = settled.dumps[IPV4, "nft"]
    wanted = compile_chain(
        parse_policies([ADMIN], 100), settled.inventory, lambda item: item.current_ports, (), False, True
    )
    mangle = dump.tables.get("mangle") or Table("mangle", {})
    more = plan_chain(dump.tables["filter"], mangle, wanted, Settings.from_options({}), IPV4, False)
    monkeypatch.setattr(_changes, "_reached", counted)
    access_changes(settled, {IPV4: ("nft", more)})
    assert set(asked) == {"admin"}


# The snapshot with the plan carried out ------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"default": "drop"}, {"guard": False}, {"foreign_rules": "remove"}])
@pytest.mark.parametrize(
    "docker_user", [(), ("-j RETURN",), ("-s 192.0.2.0/24 -j DROP", "-p tcp -j ACCEPT", "-j RETURN")]
)
def test_carried_out_is_what_the_transaction_makes(
    docker_user: t.Tuple[str, ...], settings: t.Dict[str, t.Any]
) -> None:
    document = made("26.1", *docker_user)
    snapshot, plans, sets = planned(document, ADMIN, **settings)
    after = carried_out(snapshot, plans, sets)
    variant, plan = plans[IPV4]
    tables = snapshot.dumps[IPV4, variant].tables
    for part in plan.transaction().split("COMMIT\n")[:-1]:
        name = part.partition("\n")[0][1:]
        there = tables.get(name) or Table(name, {})
        rules = {key: [rule.render() for rule in chain.rules] for key, chain in there.chains.items()}
        for hook in ("FORWARD", "POSTROUTING"):
            rules.setdefault(hook, [])
        kernel = Kernel(rules, name)
        kernel.restore(part + "COMMIT\n")
        expected = parse_dump(kernel.save()).tables[name].chains
        found = after.dumps[IPV4, variant].tables[name].chains
        assert {key: chain.render() for key, chain in found.items() if chain.rules} == {
            key: chain.render() for key, chain in expected.items() if chain.rules
        }
    # And who asked still has the old one.
    assert snapshot.dumps[IPV4, variant].tables["filter"].chains[DOCKER_USER].render() == [
        "-A DOCKER-USER " + rule.render() for rule in tables["filter"].chains[DOCKER_USER].rules
    ]
