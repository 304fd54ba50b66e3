# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""nft's listings, as nft 1.0.6 to 1.1.7 printed them. What iptables makes of such rules, tests/kernel asks a kernel."""

from __future__ import annotations

import json
import typing as t

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._nftables import (
    iptables_tables,
    replace_table,
    summary,
    wanted_whole,
)
from ansible_collections.quaywall.docker.tests.unit.snapshots import CAPTURES
from ansible_collections.quaywall.docker.tests.unit.support import SHARED, capture

Object = t.Dict[str, t.Any]


def ruleset(name: str) -> t.List[Object]:
    capture(name)  # skips where there is none
    text = (SHARED / "captures" / name / "nft-ruleset.json").read_text(encoding="utf-8")
    found: t.List[Object] = json.loads(text)["nftables"]
    return found


def table(*chains: Object, family: str = "inet", name: str = "fw", **more: t.Any) -> t.List[Object]:
    """A table with its chains, each with its rules under ``rules``."""
    place = {"family": family, "table": name}
    found: t.List[Object] = [{"metainfo": {"version": "1.0.6"}}, {"table": {"family": family, "name": name, **more}}]
    for chain in chains:
        rules = chain.pop("rules", [])
        found.append({"chain": {**place, **chain}})
        found += [{"rule": {**place, "chain": chain["name"], "expr": expressions}} for expressions in rules]
    return found


def base(name: str = "in", **more: t.Any) -> Object:
    return {"name": name, "type": "filter", "hook": "forward", "prio": 0, "policy": "accept", **more}


def match(left: t.Any, right: t.Any, op: str = "==") -> Object:
    return {"match": {"op": op, "left": left, "right": right}}


SADDR = {"payload": {"protocol": "ip", "field": "saddr"}}
DPORT = {"payload": {"protocol": "tcp", "field": "dport"}}
FLAGS = {"payload": {"protocol": "tcp", "field": "flags"}}
IIF = {"meta": {"key": "iifname"}}
COUNTER = {"counter": {"packets": 0, "bytes": 0}}
DROP: Object = {"drop": None}


@pytest.mark.parametrize("name", CAPTURES)
def test_captured_hosts(name: str) -> None:
    """Docker wrote all of their rules: with iptables, or in tables of its own."""
    found = summary(ruleset(name))
    assert found["misprinted"] == {"ipv4": [], "ipv6": []}
    assert found["base_chains"] == []
    tables = {(item["table"]["family"], item["table"]["name"]) for item in found["docker"] if "table" in item}
    assert tables == ({("ip", "docker-bridges"), ("ip6", "docker-bridges")} if name.endswith("-nftables") else set())
    assert set(wanted_whole(ruleset(name))) == tables
    expected = ["filter", "nat"] if "20.10" in name or "26.1" in name else ["filter", "nat", "raw"]
    assert iptables_tables(ruleset(name))["ipv4"] == (["nat"] if name.endswith("-nftables") else expected)


@pytest.mark.parametrize(
    ("misprinted", "expressions"),
    [
        (False, [match(SADDR, "1.2.3.4"), COUNTER, DROP]),
        (
            False,
            [match(SADDR, {"prefix": {"addr": "1.2.3.0", "len": 24}}, "!="), match(DPORT, {"range": [80, 90]}), DROP],
        ),
        (False, [match({"&": [SADDR, "255.0.255.0"]}, "10.0.1.0"), DROP]),
        (False, [match({"&": [FLAGS, ["syn", "ack"]]}, "syn"), DROP]),
        (False, [match({"&": [FLAGS, {"|": ["fin", "syn"]}]}, {"|": ["fin", "syn"]}, "!="), DROP]),
        (False, [match(FLAGS, ["fin", "syn"], "!"), DROP]),
        (False, [match({"&": [{"meta": {"key": "mark"}}, 255]}, 1), {"jump": {"target": "x"}}]),
        (False, [match({"payload": {"protocol": "ip", "field": "protocol"}}, "icmp"), {"xt": {"type": "match"}}, DROP]),
        (False, [{"limit": {"rate": 10, "burst": 5, "per": "minute"}}, {"return": None}]),
        (False, [COUNTER, {"log": {"prefix": "foo", "group": 3}}]),
        (False, [COUNTER, {"mangle": {"key": {"meta": {"key": "nftrace"}}, "value": 1}}]),
        (False, []),
        (True, [match(SADDR, {"set": ["1.2.3.4", "1.2.3.5"]}), DROP]),
        (True, [match(SADDR, "@bad"), DROP]),
        (True, [match(SADDR, "@bad", "!="), match(DPORT, {"set": [80, 443]}), DROP]),
        (True, [match(SADDR, {"range": ["1.2.3.4", "1.2.3.9"]}), DROP]),
        (True, [match(SADDR, "1.2.3.4", "<"), DROP]),
        (True, [match(SADDR, "1.1.1.1"), match(SADDR, "2.2.2.2"), DROP]),
        (True, [match(IIF, {"set": ["eth0", "eth1"]}), DROP]),
        (True, [match({"&": [DPORT, 1]}, 1), DROP]),
        (True, [match(FLAGS, "syn"), DROP]),
        (True, [match({"payload": {"protocol": "icmp", "field": "type"}}, "echo-request", "!="), DROP]),
        (True, [match({"concat": [SADDR, DPORT]}, {"set": [{"concat": ["1.2.3.4", 80]}]}), DROP]),
        (True, [{"vmap": {"key": SADDR, "data": {"set": [["1.2.3.4", DROP]]}}}]),
        (True, [{"limit": {"rate": 10, "burst": 5, "per": "minute", "inv": True}}, DROP]),
        (True, [{"log": {"prefix": "bad"}}, DROP]),
        (True, [{"mangle": {"key": {"payload": {"protocol": "ip", "field": "ttl"}}, "value": 5}}]),
        (True, [{"something new": None}, DROP]),
        (True, [match(None, None)]),
        (True, None),
        (True, ["drop"]),
    ],
)
def test_misprinted_rules(misprinted: bool, expressions: t.Any) -> None:
    objects = table(
        base("FORWARD"), {"name": "DOCKER-USER", "rules": [[DROP], expressions]}, family="ip6", name="filter"
    )
    found = summary(objects)
    assert found["misprinted"] == {"ipv4": [], "ipv6": ["filter DOCKER-USER"] if misprinted else []}
    assert found["base_chains"] == []


def test_a_table_that_is_switched_off() -> None:
    """iptables prints its rules as if they were read; nft 1.0.6 prints the table's name in place of the flag."""
    for flags in ("dormant", ["dormant"], "filter"):
        found = summary(table(base("FORWARD"), family="ip", name="filter", flags=flags))
        assert found["misprinted"]["ipv4"] == ["filter FORWARD"]
    assert summary(table(base(), flags=["dormant"]))["base_chains"] == []
    assert len(summary(table(base(), flags="fw"))["base_chains"]) == 1


JUDGE = {"name": "judge"}
JUMP = {"jump": {"target": "judge"}}


@pytest.mark.parametrize(
    ("stops", "chains", "maps"),
    [
        (False, [base()], []),
        (True, [base(policy="drop")], []),
        (True, [base(rules=[[match(IIF, "eth0"), {"reject": {"type": "tcp reset"}}]])], []),
        (True, [base(rules=[[{"queue": {"num": 0}}]])], []),
        (True, [base(rules=[[{"xt": {"type": "target", "name": "REJECT"}}]])], []),
        (False, [base(rules=[[{"xt": {"type": "target", "name": "LOG"}}, {"accept": None}]])], []),
        (True, [base(rules=[[JUMP]]), {**JUDGE, "rules": [[DROP]]}], []),
        (False, [base(), {**JUDGE, "rules": [[DROP]]}], []),
        (False, [base(rules=[[JUMP]]), {**JUDGE, "rules": [[{"goto": {"target": "judge"}}], [JUMP]]}], []),
        (
            True,
            [base(rules=[[{"vmap": {"key": IIF, "data": {"set": [["a", JUMP]]}}}]]), {**JUDGE, "rules": [[DROP]]}],
            [],
        ),
        (True, [base(rules=[[{"vmap": {"key": IIF, "data": "@m"}}]])], [["a", DROP]]),
        (False, [base(rules=[[{"vmap": {"key": IIF, "data": "@m"}}]])], [["a", {"accept": None}]]),
        # Its elements are not there: it may.
        (True, [base(rules=[[{"vmap": {"key": IIF, "data": "@m"}}]])], None),
    ],
)
def test_base_chains_that_stop_packets(stops: bool, chains: t.List[Object], maps: t.Any) -> None:
    objects = table(*[dict(chain) for chain in chains])
    head = {"family": "inet", "name": "m", "table": "fw", "type": "ifname", "map": "verdict"}
    objects.append({"map": {**head, "elem": maps} if maps is not None else head})
    found = summary(objects)["base_chains"]
    assert [chain["stops"] for chain in found] == [stops]
    assert found[0]["rules"] == len(chains[0].get("rules", []))
    assert wanted_whole(objects) == [("inet", "fw")]


def test_ten_thousand_chains_deep() -> None:
    chains = [
        {"name": "c%d" % number, "rules": [[{"jump": {"target": "c%d" % (number + 1)}}]]} for number in range(10000)
    ]
    chains[0].update(base("c0"))
    assert not summary(table(*chains))["base_chains"][0]["stops"]


def test_a_whole_table_replaces_its_terse_one() -> None:
    terse = table(base(), name="docker-bridges", family="ip") + table(base(), name="other")
    whole = table(base(), {"name": "more"}, name="docker-bridges", family="ip")
    found = replace_table(terse, ("ip", "docker-bridges"), whole)
    names = [item["chain"]["name"] for item in summary(found)["docker"] if "chain" in item]
    assert names == ["in", "more"]
    assert [chain["table"] for chain in summary(found)["base_chains"]] == ["other"]


def test_a_name_that_is_a_command_is_not_handed_to_nft() -> None:
    """nft joins its arguments and reads them as a script."""
    for name in ("x; flush ruleset", "x\nflush ruleset", "", "-f", "{", "x y"):
        objects = table(base(), name=name)
        objects.append({"map": {"family": "inet", "name": "m", "table": name, "map": "verdict"}})
        assert wanted_whole(objects) == []
    objects = table(base(), family="inet; flush ruleset", name="docker-bridges")
    assert wanted_whole(objects) == []
