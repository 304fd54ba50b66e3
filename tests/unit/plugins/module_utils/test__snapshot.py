# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshots from documents: of hosts that were captured, made by hand, and spoilt in any way."""

from __future__ import annotations

import copy
import json
import typing as t

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import (
    PARTS,
    BaseChain,
    Engine,
    Hole,
    Interface,
    IpSet,
    Proxy,
    Route,
    SnapshotError,
    Socket,
    SwarmPort,
    docker_variant,
    dump_fault,
    from_json,
    parse_sets,
    to_json,
)
from ansible_collections.quaywall.docker.tests.unit.snapshots import CAPTURES, captured
from ansible_collections.quaywall.docker.tests.unit.support import SHARED, absent, shared_files, shared_text

Document = t.Dict[str, t.Any]

HEAD = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n"
EMPTY = HEAD + "COMMIT\n"
DOCKER_USER = HEAD + ":DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\nCOMMIT\n"
DOCKER = HEAD + ":DOCKER - [0:0]\n:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\nCOMMIT\n"

CONTAINER = {
    "Id": "c" * 64,
    "Names": ["/web"],
    "Image": "app:1",
    "Ports": [{"IP": "0.0.0.0", "PrivatePort": 8080, "PublicPort": 9000, "Type": "tcp"}],
    "Labels": {"com.docker.compose.service": "web"},
    "State": "running",
    "HostConfig": {"NetworkMode": "bridge"},
    "NetworkSettings": {
        "Networks": {"bridge": {"NetworkID": "b" * 64, "IPAddress": "172.17.0.2", "GlobalIPv6Address": ""}}
    },
}
NETWORK = {
    "Name": "bridge",
    "Id": "b" * 64,
    "Driver": "bridge",
    "EnableIPv6": False,
    "IPAM": {"Config": [{"Subnet": "172.17.0.0/16"}]},
    "Options": {"com.docker.network.bridge.name": "docker0"},
}
#: Every part, with something in it.
WHOLE: Document = {
    "quaywall_snapshot": 1,
    "collected": "2026-11-23T06:42:45Z",
    "iptables": {
        "version": "1.8.13",
        "default": {"ipv4": "nft", "ipv6": "legacy"},
        "ipv4": {"nft": DOCKER, "legacy": None},
        "ipv6": {"nft": None, "legacy": EMPTY},
    },
    "ipsets": "create x hash:net family inet hashsize 1024\nadd x 10.0.0.0/8\n",
    "nft": {
        "misprinted": {"ipv4": ["filter DOCKER-USER"], "ipv6": []},
        "base_chains": [
            {
                "family": "inet",
                "table": "firewalld",
                "chain": "filter_FORWARD",
                "hook": "forward",
                "priority": 10,
                "policy": "accept",
                "rules": 12,
                "stops": True,
            }
        ],
        "docker": [{"table": {"family": "ip", "name": "docker-bridges", "handle": 2}}],
    },
    "docker": {
        "version": {"Version": "28.5.2+dfsg4", "ApiVersion": "1.51"},
        "info": {
            "ServerVersion": "28.5.2+dfsg4",
            "FirewallBackend": {"Driver": "iptables"},
            "LiveRestoreEnabled": True,
            "Swarm": {"LocalNodeState": "active", "ControlAvailable": True},
        },
        "daemon": {"userland-proxy": False, "bridge": None},
        "containers": [CONTAINER],
        "networks": [NETWORK],
    },
    "services": [
        {
            "name": "web",
            "ports": [{"protocol": "tcp", "published_port": 8080, "target_port": 80, "mode": "ingress"}],
        }
    ],
    "proxies": [
        {
            "protocol": "tcp",
            "host_address": "::",
            "host_port": 9000,
            "container_address": "172.17.0.2",
            "container_port": 8080,
        }
    ],
    "listening": [{"protocol": "tcp", "address": "0.0.0.0", "port": 22}],
    "sysctls": {"net.ipv4.ip_forward": "1"},
    "interfaces": [
        {"name": "eth0", "kind": "", "up": True, "master": "", "addresses": ["203.0.113.1/24", "fe80::1/64"]}
    ],
    "routes": [
        {
            "family": "ipv4",
            "destination": "0.0.0.0/0",
            "gateway": "203.0.113.254",
            "interface": "eth0",
            "table": "main",
            "type": "unicast",
            "metric": 0,
        }
    ],
    "saved": {"/etc/iptables/rules.v4": EMPTY},
    "holes": [{"part": "services", "reason": "The Swarm has no leader."}],
}


def edited(path: t.Sequence[t.Union[str, int]], value: t.Any, document: t.Optional[Document] = None) -> Document:
    """A copy of the document with one value replaced; None as value takes the key away."""
    changed = copy.deepcopy(document or WHOLE)
    inner: t.Any = changed
    for step in path[:-1]:
        inner = inner[step]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return changed


def one_sentence(error: SnapshotError) -> str:
    text = str(error)
    assert text.isprintable() and text.isascii(), text
    assert text.endswith(".") and len(text) < 500, text
    for trace in ("Traceback", "Error:", "NoneType", "object has no"):
        assert trace not in text
    return text


def test_every_part() -> None:
    snapshot = from_json(WHOLE)
    assert snapshot.data == to_json(snapshot) == WHOLE
    assert set(snapshot.dumps) == {("ipv4", "nft"), ("ipv6", "legacy")}
    assert set(snapshot.dumps["ipv4", "nft"].tables["filter"].chains) > {"DOCKER", "DOCKER-USER"}
    assert snapshot.default_variants == {"ipv4": "nft", "ipv6": "legacy"}
    assert snapshot.sets == {"x": IpSet("x", "hash:net", "ipv4", ("10.0.0.0/8",), True)}
    assert snapshot.nft is not None
    assert snapshot.nft.misprinted == {"ipv4": {("filter", "DOCKER-USER")}, "ipv6": frozenset()}
    assert snapshot.nft.base_chains == (
        BaseChain("inet", "firewalld", "filter_FORWARD", "forward", 10, "accept", 12, True),
    )
    assert snapshot.nft.docker == ({"table": {"family": "ip", "name": "docker-bridges", "handle": 2}},)
    assert snapshot.engine == Engine((28, 5, 2), "iptables", True, True, {"userland-proxy": False})
    assert snapshot.inventory is not None
    assert [item.name for item in snapshot.inventory.containers] == ["web"]
    assert snapshot.inventory.networks["bridge"].bridge == "docker0"
    assert snapshot.swarm_ports == (SwarmPort("web", "tcp", 8080, 80, "ingress"),)
    assert snapshot.proxies == (Proxy("tcp", "::", 9000, "172.17.0.2", 8080),)
    assert snapshot.listening == (Socket("tcp", "0.0.0.0", 22),)
    assert snapshot.sysctls == {"net.ipv4.ip_forward": "1"}
    assert snapshot.interfaces == (Interface("eth0", "", True, "", ("203.0.113.1/24", "fe80::1/64")),)
    assert snapshot.routes == (Route("ipv4", "0.0.0.0/0", "203.0.113.254", "eth0", "main", "unicast", 0),)
    assert set(snapshot.saved) == {"/etc/iptables/rules.v4"}
    assert snapshot.holes == (Hole("services", "The Swarm has no leader."),)


@pytest.mark.parametrize("name", CAPTURES)
def test_captured_hosts(name: str) -> None:
    """captures/README.md says which engine each is, and that it has ten containers."""
    document = captured(name)
    snapshot = from_json(document)
    assert from_json(to_json(snapshot)) == snapshot
    assert from_json(json.loads(json.dumps(document))) == snapshot
    _docker, version, backend = name.split("-", 2)
    assert snapshot.engine is not None and snapshot.inventory is not None
    assert ".".join(map(str, snapshot.engine.version)).startswith(version + ".")
    assert backend.startswith(snapshot.engine.backend)
    assert len(snapshot.inventory.containers) == 10
    assert docker_variant(snapshot, "ipv4") == "nft"
    assert snapshot.holes == ()


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_a_hole(part: str) -> None:
    for document in (edited([part], None), {**WHOLE, part: None}):
        document["holes"] = []
        found = from_json(document)
        if part == "ipsets" and part in document:
            assert found.holes == ()
            assert found.sets is None
        else:
            assert [hole.part for hole in found.holes] == [part]
            assert part in found.holes[0].reason
        # It says why itself.
        document["holes"] = [{"part": part, "reason": "No."}]
        assert from_json(document).holes == (Hole(part, "No."),)


def test_almost_nothing_is_a_snapshot() -> None:
    found = from_json({"quaywall_snapshot": 1, "future": [1]})
    assert {hole.part for hole in found.holes} == set(PARTS)
    assert (found.dumps, found.sets, found.nft, found.engine, found.inventory) == ({}, None, None, None, None)


def test_half_of_docker_is_no_inventory() -> None:
    found = from_json(edited(["docker", "networks"], None))
    assert found.inventory is None
    assert found.engine is not None
    assert "docker" in {hole.part for hole in found.holes}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (None, "this is nothing"),
        ([], "this is a list"),
        ("*filter", "from_json"),
        (b"{}", "something else"),
        ({}, "no key quaywall_snapshot"),
        ({"changed": False, "snapshot": WHOLE}, "not its whole result"),
        ({**WHOLE, "quaywall_snapshot": 2}, "version is the number 2"),
        ({**WHOLE, "quaywall_snapshot": 10**5000}, "version is a number"),
        ({**WHOLE, "quaywall_snapshot": "1"}, 'version is the text "1"'),
        ({**WHOLE, "quaywall_snapshot": True}, "version is true"),
        ({**WHOLE, "holes": [{"part": "docker"}]}, "holes[0].reason must be a text, and is nothing"),
        (edited(["docker"], ["x"]), "docker must be a mapping, and is a list"),
        (
            edited(["docker", "containers", 0, "Ports"], "x"),
            'docker.containers[0].Ports must be a list, and is the text "x"',
        ),
        (edited(["docker", "containers", 0, "Ports", 0, "PublicPort"], 65536), "Ports[0].PublicPort must be a port"),
        (edited(["docker", "containers", 0, "Ports", 0, "PublicPort"], True), "Ports[0].PublicPort must be a port"),
        (edited(["docker", "containers", 0, "Ports", 0, "PrivatePort"], None), "Ports[0].PrivatePort must be a port"),
        (edited(["docker", "containers", 0, "Id"], None), "docker.containers[0].Id must be a text, and is nothing"),
        (edited(["docker", "networks", 0, "IPAM", "Config", 0, "Subnet"], "x"), "Config[0].Subnet must be a network"),
        (
            edited(
                ["docker", "containers", 0, "NetworkSettings", "Networks"], {'\x1b[2J"]': {"IPAddress": "fe80::1%a"}}
            ),
            "IP address",
        ),
        (edited(["routes", 0, "family"], "ip"), "routes[0].family must be ipv4 or ipv6"),
        (edited(["interfaces", 0, "addresses", 0], "203.0.113.1"), "interfaces[0].addresses[0] must be a network"),
        (edited(["iptables", "default", "ipv4"], "nf_tables"), "iptables.default.ipv4 must be nft or legacy"),
        (edited(["iptables", "ipv4", "nft"], DOCKER.encode()), "iptables.ipv4.nft must be a text"),
        (edited(["iptables", "ipv4", "nft"], DOCKER[:-8]), "iptables.ipv4.nft is no whole dump"),
        (edited(["iptables", "ipv6", "legacy"], "-P INPUT ACCEPT\n"), "does not begin with a table"),
        (edited(["nft", "misprinted", "ipv4", 0], "DOCKER-USER"), "nft.misprinted.ipv4[0] must be a text such as"),
        (edited(["sysctls"], {1: "1"}), "sysctls must be a mapping with texts as keys"),
        (edited(["ipsets"], "Name: x\n"), "line 1 of ipsets is none that ipset save prints"),
        (edited(["ipsets"], "create x hash:ip\nadd y 10.0.0.1\n"), "line 2 of ipsets"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_snapshot(document: t.Any, words: str) -> None:
    with pytest.raises(SnapshotError) as caught:
        from_json(document)
    assert words in one_sentence(caught.value)


# Truncated ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", shared_files("captures/*/*tables-save.txt"))
def test_a_dump_that_is_cut_off_is_noticed(path: t.Any) -> None:
    """Wherever it is cut, but right between two tables: there nothing can tell."""
    text = shared_text(path)
    assert dump_fault(text) == ""
    start, inside, cuts = 0, False, 0
    for line in text.splitlines(keepends=True):
        inside = (inside or line.startswith("*")) and line != "COMMIT\n"
        for end in (start + 3, start + len(line) // 2, start + len(line)):
            if inside or (line.startswith("# Generated") and end > start + 2):
                cuts += 1
                assert dump_fault(text[:end]), text[start:end]
        start += len(line)
    assert cuts > 40


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        EMPTY,
        EMPTY.rstrip("\n"),
        EMPTY + "# Completed on Mon Nov 23 06:42:45 2026\n",
        "# Warning: iptables-legacy tables present, use iptables-legacy-save to see them\n",
        "# Table `filter' is incompatible, use 'nft' tool.\n",
        EMPTY + "# Table `nat' is incompatible, use 'nft' tool.\n",
        HEAD + '-A INPUT -m comment --comment "x\nCOMMIT\n*nat\n-A" -j DROP\nCOMMIT\n',
    ],
)
def test_whole_dumps(text: str) -> None:
    assert dump_fault(text) == ""


@pytest.mark.parametrize("text", ["{}", "-A INPUT -j DROP\n", HEAD, EMPTY + "*nat\n", EMPTY + "-A INPUT -j DROP\n"])
def test_a_saved_file_that_is_no_dump_is_a_hole(text: str) -> None:
    """People write these files by hand; the rest of the host is judged all the same."""
    found = from_json({**WHOLE, "saved": {"/etc/iptables/rules.v4": text, "/etc/iptables/rules.v6": EMPTY}})
    assert set(found.saved) == {"/etc/iptables/rules.v6"}
    assert [hole.part for hole in found.holes] == ["services", "saved"]
    assert "/etc/iptables/rules.v4 is no whole dump" in found.holes[1].reason


# Sets -----------------------------------------------------------------------------------------------------------------

#: What ipset 7.17 printed.
SAVED_SETS = """\
create qw hash:net family inet hashsize 1024 maxelem 65536 bucketsize 12 initval 0xca932881
add qw 0.0.0.0/1
add qw 10.1.0.0/16 nomatch
create a b;c hash:ip family inet hashsize 1024 maxelem 65536 timeout 600 counters comment bucketsize 12 initval 0x1
add a b;c 1.2.3.4 timeout 29 packets 0 bytes 0 comment "hello add x"
create six hash:net family inet6 hashsize 1024 maxelem 65536 bucketsize 12 initval 0xac287f25
add six fd00::/8
create p bitmap:port range 1-1000
add p 80
add p 90
create ipport hash:ip,port family inet hashsize 1024 maxelem 65536 bucketsize 12 initval 0x00ba39b3
add ipport 1.2.3.4,tcp:80
create "x hash:ip family inet hashsize 1024 maxelem 65536 bucketsize 12 initval 0x0752b7c4
create ipm hash:ip family inet hashsize 1024 maxelem 65536 netmask 24 bucketsize 12 initval 0x35f67bfb
add ipm 1.2.3.0
create l list:set size 8
add l qw
add l a b;c
"""


def test_sets() -> None:
    assert list(parse_sets(SAVED_SETS).values()) == [
        IpSet("qw", "hash:net", "ipv4", ("0.0.0.0/1",), False),
        IpSet("a b;c", "hash:ip", "ipv4", ("1.2.3.4",), True),
        IpSet("six", "hash:net", "ipv6", ("fd00::/8",), True),
        IpSet("p", "bitmap:port", "ipv4", ("80", "90"), True),
        IpSet("ipport", "hash:ip,port", "ipv4", ("1.2.3.4,tcp:80",), True),
        IpSet('"x', "hash:ip", "ipv4", (), True),
        IpSet("ipm", "hash:ip", "ipv4", ("1.2.3.0/24",), True),
        IpSet("l", "list:set", "ipv4", ("qw",), False),
    ]


# Which variant --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nft", "legacy", "default", "expected"),
    [
        (DOCKER, None, "nft", "nft"),
        (None, DOCKER, "legacy", "legacy"),
        (EMPTY, DOCKER, "nft", "legacy"),
        (DOCKER_USER, DOCKER, "nft", "legacy"),
        (DOCKER, DOCKER_USER, "legacy", "nft"),
        (DOCKER, DOCKER, "legacy", "legacy"),
        (DOCKER_USER, EMPTY, "legacy", "nft"),
        (EMPTY, EMPTY, "legacy", "legacy"),
        (EMPTY, None, "legacy", "legacy"),
        (None, EMPTY, None, "legacy"),
        (EMPTY, EMPTY, None, "nft"),
        (None, None, None, "nft"),
    ],
)
def test_the_variant_that_docker_uses(
    nft: t.Optional[str], legacy: t.Optional[str], default: t.Optional[str], expected: str
) -> None:
    iptables = {"default": {"ipv4": default}, "ipv4": {"nft": nft, "legacy": legacy}}
    assert docker_variant(from_json({**WHOLE, "iptables": iptables}), "ipv4") == expected


# Spoilt in any way ----------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=20),
        st.sampled_from(
            ["", "::", "10.0.0.0/8", "nft", DOCKER, DOCKER[:60], SAVED_SETS, "create x", "*", "COMMIT", "\ud800"]
        ),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def paths_of(value: t.Any, path: t.Tuple[t.Union[str, int], ...] = ()) -> t.Iterator[t.Tuple[t.Union[str, int], ...]]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths_of(inner, (*path, key))


PATHS = list(paths_of(WHOLE))


def judge(document: t.Any) -> None:
    try:
        snapshot = from_json(document)
    except SnapshotError as error:
        one_sentence(error)
    else:
        assert from_json(to_json(snapshot)) == snapshot
        for family in ("ipv4", "ipv6"):
            assert docker_variant(snapshot, family) in ("nft", "legacy")


@given(st.lists(st.tuples(st.sampled_from(PATHS), json_values), min_size=1, max_size=3))
@example([(("iptables", "ipv4", "nft"), HEAD)])
def test_a_changed_document_is_a_snapshot_or_a_sentence(changes: t.List[t.Tuple[t.Any, t.Any]]) -> None:
    document = WHOLE
    for path, value in changes:
        try:
            document = edited(path, value, document)
        except (LookupError, TypeError):
            continue  # what an earlier change took away
    judge(document)


@given(json_values)
def test_anything_is_a_snapshot_or_a_sentence(value: t.Any) -> None:
    judge(value)
    judge({**dict.fromkeys(PARTS, value), "quaywall_snapshot": 1})


@given(st.data())
def test_a_file_that_is_cut_off_or_edited(data: st.DataObject) -> None:
    """A snapshot's text with one piece replaced, as far as it is JSON still."""
    text = json.dumps(WHOLE)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 40)))
    piece = data.draw(st.text(max_size=5) | st.sampled_from(['"', "{}", "[]", "null", "-1", "\\n", "*"]))
    try:
        document = json.loads(text[:start] + piece + text[end:])
    except ValueError:
        return
    judge(document)


@pytest.mark.skipif(not (SHARED / "captures").is_dir(), reason=absent("captures"))
@given(st.sampled_from(CAPTURES), st.data())
def test_a_captured_host_that_is_cut_off(name: str, data: st.DataObject) -> None:
    document = captured(name)
    paths = list(paths_of(document))
    path = data.draw(st.sampled_from(paths))
    inner: t.Any = document
    for step in path:
        inner = inner[step]
    shorter = inner[: data.draw(st.integers(0, len(inner)))] if isinstance(inner, (str, list)) else None
    judge(edited(path, shorter, document))


def test_hostile_names_are_data() -> None:
    """From the snapshot to what it says, and no further: no name is a path, a pattern or a sentence of ours."""
    name = '\x1b[31m"; rm -rf / #\n*filter\u202e%s{{ x }}'
    container = {**CONTAINER, "Names": ["/" + name], "Labels": {"com.docker.x": name}}
    document = {**WHOLE, "docker": {**WHOLE["docker"], "containers": [container]}}
    found = from_json(document)
    assert found.inventory is not None
    assert found.inventory.containers[0].labels == {"com.docker.x": name}
    with pytest.raises(SnapshotError) as caught:
        from_json(edited(["docker", "networks", 0, "Options"], {name: 1}, document))
    assert "Options" in one_sentence(caught.value)
