# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who is said to gain or lose access by a plan is who does, by packets; and the kernel has then what was foretold."""

from __future__ import annotations

import ipaddress
import itertools
import json
import typing as t
from contextlib import ExitStack

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._changes import AccessChange, access_changes, carried_out
from ansible_collections.quaywall.docker.plugins.module_utils._collect import parse_interfaces, parse_routes
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import Snapshot, from_json

from . import chains
from .lab import FAMILIES, VARIANTS, tool
from .test_chain import FRIEND, FRIEND6, LAN, LAN6, STRANGER, STRANGER6, WEB, Site

if t.TYPE_CHECKING:
    from collections.abc import Iterator

SOURCES = {
    "friend": (FRIEND, FRIEND6, "outside"),
    "stranger": (STRANGER, STRANGER6, "outside"),
    "lan": (LAN, LAN6, "lan0"),
}
#: Each way of the test of the whole chain that is into a container: who, which container, whether by the host's port.
WAYS = {
    "%s to %s%s" % (who, name, ", published" if published else ""): (who, name, published)
    for who, name, published in (
        ("friend", "web", False),
        ("friend", "web", True),
        ("stranger", "web", False),
        ("stranger", "web", True),
        ("stranger", "other", False),
        ("stranger", "far", False),
        ("lan", "far", False),
        ("web", "far", False),
        ("far", "web", False),
        ("other", "web", False),
    )
}
FAR: t.Final = {"name": "far", "container": "far", "source": [LAN, LAN6], "action": "return", "otherwise": "reject"}
BANS: t.Final = ["-s %s -j DROP" % STRANGER, "-p tcp -m tcp --dport 8080 -j DROP"]
BANS6: t.Final = ["-s %s -j DROP" % STRANGER6, "-p tcp -m tcp --dport 8080 -j DROP"]
SETS: t.Final = {"ipset_threshold": 2}
MANY: t.Final = [FRIEND, FRIEND6, "192.0.2.1", "192.0.2.9", "192.0.2.64/26", "2001:db8:7::1", "2001:db8:9::/64"]


def snapshot_of(site: Site) -> Snapshot:
    """The host as docker_fw_audit would take it; containers are those of the test."""
    host = site.host
    routes = []
    for family, option in zip(FAMILIES, ("-4", "-6"), strict=True):
        routes += parse_routes(json.loads(host.run("ip", option, "-j", "route", "show", "table", "all")), family)
    networks = [
        {
            "Name": network.name,
            "Id": network.id,
            "Driver": "bridge",
            "EnableIPv6": True,
            "IPAM": {"Config": [{"Subnet": subnet} for subnet in network.subnets]},
            "Options": {"com.docker.network.bridge.name": network.bridge},
        }
        for network in chains.NETWORKS.values()
    ]
    containers = []
    for name, (_digit, network) in chains.PLACES.items():
        four, six = chains.addresses(name)
        endpoint = {"NetworkID": network.id, "IPAddress": four, "GlobalIPv6Address": six}
        ports = [
            {"IP": address, "PrivatePort": 8080, "PublicPort": 9000, "Type": "tcp"} for address in ("0.0.0.0", "::")
        ]
        containers.append(
            {
                "Id": name.ljust(64, "0"),
                "Names": ["/" + name],
                "State": "running",
                "Ports": ports if name == "web" else [],
                "NetworkSettings": {"Networks": {network.name: endpoint}},
            }
        )
    names = [
        "net.ipv4.ip_forward",
        "net.ipv6.conf.all.forwarding",
        "net.bridge.bridge-nf-call-iptables",
        "net.bridge.bridge-nf-call-ip6tables",
    ]
    sysctls = {}
    for name in names:
        done = host.attempt("sysctl", "-n", name)
        if done.returncode == 0:
            sysctls[name] = done.stdout.decode().strip()
    dumps = {
        family: {site.variant: host.run(tool(family, site.variant, "save")).decode("utf-8", "backslashreplace")}
        for family in FAMILIES
    }
    return from_json(
        {
            "quaywall_snapshot": 1,
            "iptables": {"version": "1.8", "default": dict.fromkeys(FAMILIES, site.variant), **dumps},
            "ipsets": host.run("ipset", "save").decode(),
            "nft": {"misprinted": {}, "base_chains": [], "docker": []},
            "docker": {
                "version": {"Version": "28.5.2"},
                "info": {},
                "containers": containers,
                "networks": networks,
            },
            "services": [],
            "proxies": [],
            "listening": [],
            "sysctls": sysctls,
            "interfaces": parse_interfaces(json.loads(host.run("ip", "-j", "-d", "address"))),
            "routes": routes,
            "saved": {},
        }
    )


def is_about(change: AccessChange, who: str, name: str, published: bool, six: bool) -> bool:
    if (change.container, bool(change.published), change.family == "ipv6") != (name, published, six):
        return False
    # What nobody publishes and no rule names is one entry.
    if not published and change.port not in ((8080,) if name == "web" else (8080, 0)):
        return False
    if who not in SOURCES:
        return who in change.source.replace(" and ", ", ").split(", ")
    address, interface = ipaddress.ip_address(SOURCES[who][six]), SOURCES[who][2]
    if change.in_interface not in ("", interface):
        return False
    if change.source == "anyone":
        return True
    words = change.source.removeprefix("anyone but ").replace(" and ", ", ").split(", ")
    if not words[0][0].isdigit() and ":" not in words[0]:
        return False  # containers
    assert "others" not in words
    inside = any(address in ipaddress.ip_network(word) for word in words)
    return inside != change.source.startswith("anyone but ")


@pytest.fixture(scope="module", params=VARIANTS)
def made(request: pytest.FixtureRequest) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(str(request.param), stack)


@pytest.fixture
def site(made: Site) -> Site:
    made.reset()
    return made


@pytest.mark.parametrize(
    ("user", "steps"),
    [
        ({}, [([WEB], {}), ([WEB, FAR], {}), ([FAR], {}), ([], {})]),
        ({}, [([WEB], {"default": "drop"}), ([WEB, FAR], {"default": "drop", "guard": False}), ([WEB], {})]),
        ({}, [([{**WEB, "match": "both", "same_network": "filter"}], {}), ([{**WEB, "in_interface": "lan0"}], {})]),
        ({}, [([{**WEB, "source": MANY}], SETS), ([{**FAR, "source": MANY}], SETS), ([WEB], {})]),
        ({"ipv4": BANS, "ipv6": BANS6}, [([WEB], {}), ([WEB], {"foreign_rules": "remove"})]),
        ({}, [([], {"default": "drop", "outside_interfaces": ["lan0"]}), ([FAR], {"established": "return"})]),
    ],
    ids=["policies", "default", "filter and interface", "sets", "rules of others", "outside"],
)  # fmt: skip
def test_who_gains_and_who_loses(site: Site, user: t.Any, steps: t.Any) -> None:
    site.reset(user)
    before = site.ways()
    changed = 0
    for policies, options in steps:
        snapshot = snapshot_of(site)
        dry = site.host.call(chains.apply, policies, dry=True, **options)
        plans = {family: (change.variant, change.plan) for family, change in dry.changes.items()}
        sets = [(item.name, item.family, item.networks) for item in dry.sets_after.values()]
        told, whole = access_changes(snapshot, plans, sets)
        assert whole
        assert {item.certainty for item in told} <= {"definite"}, [item.text for item in told]
        site.apply(*policies, **options)
        after = site.ways()
        for (way, asked), six in itertools.product(WAYS.items(), (False, True)):
            name = way + (", IPv6" if six else "")
            about = {item.becomes for item in told if is_about(item, *asked, six)}
            really = {"reachable" if after[name] else "blocked"} if after[name] != before[name] else set()
            assert about == really, (name, [item.text for item in told], policies, options)
            changed += bool(really)
        as_foretold(site, carried_out(snapshot, plans, sets))
        before = after
    assert changed > 2


def as_foretold(site: Site, foretold: Snapshot) -> None:
    """The kernel has the very rules and sets."""
    now = snapshot_of(site)
    for key, dump in foretold.dumps.items():
        for table in ("filter", "mangle"):
            chains_now = {name: chain.render() for name, chain in now.dumps[key].tables[table].chains.items()}
            chains_then = {name: chain.render() for name, chain in dump.tables[table].chains.items()}
            assert chains_then == chains_now
    assert now.sets is not None and foretold.sets is not None
    for name, found in now.sets.items():
        assert set(found.entries) == set(foretold.sets[name].entries)
        assert found.family == foretold.sets[name].family
