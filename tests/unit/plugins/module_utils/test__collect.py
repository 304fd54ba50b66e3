# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshots of hosts in any state: what is there is in them, and what is not is a hole with a sentence."""

from __future__ import annotations

import json
import os
import typing as t

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils import _iptables
from ansible_collections.quaywall.docker.plugins.module_utils._collect import (
    collect,
    parse_dockerd,
    parse_interfaces,
    parse_proxy,
    parse_routes,
)
from ansible_collections.quaywall.docker.plugins.module_utils._docker import DockerSilent
from ansible_collections.quaywall.docker.plugins.module_utils._inventory import (
    DockerError,
    DockerSdkMissing,
    parse_inventory,
)
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import (
    PARTS,
    Interface,
    IpSet,
    Proxy,
    Snapshot,
    Socket,
    SwarmPort,
    from_json,
    to_json,
)
from ansible_collections.quaywall.docker.tests.unit.support import SHARED, capture, shared_text

CAPTURED = "docker-28.5-iptables-nft"
HEADS = ":INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n"
SET_RULE = "*filter\n%s-A FORWARD -m set --match-set bad src -j DROP\nCOMMIT\n" % HEADS

Output = t.Union[bytes, t.Tuple[int, bytes, bytes]]


class Engine:
    """What Docker answers; an exception is raised in place of an answer."""

    def __init__(self, answers: t.Any, services: t.Any = ()) -> None:
        self._answers = answers
        self._services = services

    def answers(self) -> t.Any:
        if isinstance(self._answers, Exception):
            raise self._answers
        return json.loads(json.dumps(self._answers))

    def services(self) -> t.Any:
        if isinstance(self._services, Exception):
            raise self._services
        return list(self._services)


class Host:
    """A captured host: its programs print what they printed there, its files are below a folder.

    A command that it does not know fails the test: nobody may ask a host for more than is written here.
    """

    def __init__(self, root: t.Any) -> None:
        folder = SHARED / "captures" / CAPTURED
        answers = capture(CAPTURED)
        self.root = root
        self.engine: t.Any = Engine(answers)
        self.programs: t.Dict[str, t.Dict[str, Output]] = {
            "iptables-save": {"--version": b"iptables-save v1.8.13 (nf_tables)\n"},
            "ip6tables-save": {"--version": b"ip6tables-save v1.8.13 (nf_tables)\n"},
            "iptables-nft-save": {"": shared_text(folder / "iptables-save.txt").encode()},
            "ip6tables-nft-save": {"": shared_text(folder / "ip6tables-save.txt").encode()},
            "iptables-legacy-save": {},
            "ip6tables-legacy-save": {},
            "nft": {"-j -t list ruleset": (folder / "nft-ruleset.json").read_bytes()},
            "ip": {
                "-j -d address": json.dumps(INTERFACES).encode(),
                "-4 -j route show table all": json.dumps(ROUTES).encode(),
                "-6 -j route show table all": json.dumps(ROUTES6).encode(),
            },
            "ipset": {"save": b"create bad hash:ip family inet hashsize 1024 maxelem 65536\nadd bad 192.0.2.1\n"},
        }
        proxy = "docker-proxy -proto tcp -host-ip :: -host-port 9000 -container-ip 172.17.0.2 -container-port 8080"
        self.process(10, "/usr/bin/dockerd", "-H", "fd://", "--userland-proxy=true")
        self.process(11, *("/usr/bin/" + proxy).split(), "-use-listen-fd")
        (root / "proc" / "thread-self").mkdir()
        (root / "proc" / "thread-self" / "ns").symlink_to("../10/ns")
        head = "  sl  local_address rem_address   st\n"
        self.file("/proc/thread-self/net/tcp", head + "   0: 00000000:0016 00000000:0000 0A 0\n")
        self.file("/proc/thread-self/net/udp", head)
        self.file("/proc/sys/net/ipv4/ip_forward", "1\n")
        self.file("/proc/sys/net/ipv4/conf/all/route_localnet", "0\n")
        self.file("/etc/docker/daemon.json", '{"live-restore": true, "insecure-registries": ["secret.example"]}')
        self.file("/etc/iptables/rules.v4", "*filter\n%sCOMMIT\n" % HEADS)
        self.file("/sys/module/ip_set/refcnt", "1\n")

    def file(self, path: str, text: t.Union[str, bytes]) -> None:
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(text if isinstance(text, bytes) else text.encode())

    def process(self, number: int, *words: str) -> None:
        self.file("/proc/%d/cmdline" % number, "\0".join(words) + "\0")
        (self.root / "proc" / str(number) / "ns").mkdir()
        (self.root / "proc" / str(number) / "ns" / "net").symlink_to("net:[1]")

    def run(
        self, args: t.Sequence[str], data: t.Any, extra: t.Mapping[str, str], descriptors: t.Sequence[int]
    ) -> t.Any:
        assert (data, dict(extra), list(descriptors)) == (None, {"LC_ALL": "C"}, [])
        output = self.programs[os.path.basename(args[0])][" ".join(args[1:])]
        return output if isinstance(output, tuple) else (0, output, b"")

    def find(self, program: str) -> t.Optional[str]:
        return "/usr/sbin/" + program if program in self.programs else None

    def docker(self) -> t.Any:
        failure: t.Optional[Exception] = self.engine if isinstance(self.engine, Exception) else None
        if failure is not None:
            raise failure
        return self.engine

    def snapshot(self) -> Snapshot:
        """The host's, which is the same from a file."""
        document = collect(self.run, self.find, self.docker, str(self.root))
        assert list(document)[2:-1] == list(PARTS)
        snapshot = from_json(document)
        assert from_json(json.loads(json.dumps(to_json(snapshot)).encode("utf-8"))) == snapshot
        for hole in snapshot.holes:
            assert hole.reason.isprintable() and hole.reason.endswith("."), hole
            assert "Reading it failed" not in hole.reason, hole
        return snapshot


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: t.Any) -> Host:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for family, name in (("ipv4", "ip_tables_names"), ("ipv6", "ip6_tables_names")):
        monkeypatch.setitem(_iptables._NAMES_FILES, family, str(tmp_path / "proc" / name))
    return Host(tmp_path)


#: iproute2 6.1; old versions print an empty object for what they leave out.
INTERFACES = [
    {
        "ifindex": 1,
        "ifname": "lo",
        "flags": ["LOOPBACK", "UP", "LOWER_UP"],
        "addr_info": [
            {"family": "inet", "local": "127.0.0.1", "prefixlen": 8, "scope": "host", "label": "lo"},
            {"family": "inet6", "local": "::1", "prefixlen": 128, "scope": "host"},
        ],
    },
    {},
    {
        "ifindex": 4,
        "link": "veth1",
        "ifname": "veth0",
        "flags": ["BROADCAST", "MULTICAST"],
        "master": "br-1",
        "linkinfo": {"info_kind": "veth", "info_slave_kind": "bridge", "info_slave_data": {"state": "forwarding"}},
        "addr_info": [{"family": "inet", "local": "192.0.2.5", "address": "192.0.2.6", "prefixlen": 32}],
    },
]
ROUTES = [
    {"dst": "default", "gateway": "203.0.113.254", "dev": "eth0", "metric": 100, "flags": []},
    {"dst": "10.7.0.0/16", "via": {"family": "inet6", "host": "fd00:31::5"}, "dev": "br-1", "flags": []},
    {"type": "blackhole", "dst": "10.9.0.0/16", "flags": []},
    {"type": "local", "dst": "172.30.0.1", "dev": "br-1", "table": "local", "scope": "host", "flags": []},
    {},
]
ROUTES6 = [
    {"dst": "fe80::/64", "dev": "br-1", "metric": 256},
    {"type": "multicast", "dst": "ff00::/8", "dev": "br-1", "table": "local", "metric": 256},
    {"dst": "default", "gateway": "fe80::1", "dev": "eth0", "metric": 1024},
    {
        "dst": "fd88::/16",
        "metric": 1024,
        "nexthops": [{"gateway": "fd00:31::a", "dev": "br-1"}, {"gateway": "fd00:31::b", "dev": "br-1"}],
    },
]


def test_a_host_on_which_all_can_be_read(host: Host) -> None:
    snapshot = host.snapshot()
    answers = capture(CAPTURED)
    assert snapshot.holes == ()
    assert snapshot.inventory == parse_inventory(answers["containers"], answers["networks"])
    assert snapshot.engine is not None
    assert snapshot.engine.version == (28, 5, 2)
    assert snapshot.engine.options == {"live-restore": True, "userland-proxy": True}
    assert snapshot.default_variants == {"ipv4": "nft", "ipv6": "nft"}
    assert snapshot.data["iptables"]["version"] == "1.8.13"
    assert {key: set(dump.tables) for key, dump in snapshot.dumps.items()} == {
        ("ipv4", "nft"): {"filter", "nat", "raw"},
        ("ipv6", "nft"): {"filter", "nat", "raw"},
    }
    assert snapshot.nft is not None and snapshot.nft.base_chains == () and not any(snapshot.nft.misprinted.values())
    assert snapshot.proxies == (Proxy("tcp", "::", 9000, "172.17.0.2", 8080),)
    assert snapshot.listening == (Socket("tcp", "0.0.0.0", 22),)
    assert snapshot.interfaces == (
        Interface("lo", "", True, "", ("127.0.0.1/8", "::1/128")),
        Interface("veth0", "veth", False, "br-1", ("192.0.2.5/32",)),
    )
    assert [
        (route.destination, route.gateway, route.interface, route.table, route.type) for route in snapshot.routes
    ] == [
        ("0.0.0.0/0", "203.0.113.254", "eth0", "main", "unicast"),
        ("10.7.0.0/16", "fd00:31::5", "br-1", "main", "unicast"),
        ("10.9.0.0/16", "", "", "main", "blackhole"),
        ("172.30.0.1/32", "", "br-1", "local", "local"),
        ("::/0", "fe80::1", "eth0", "main", "unicast"),
        ("fd88::/16", "fd00:31::a", "br-1", "main", "unicast"),
        ("fd88::/16", "fd00:31::b", "br-1", "main", "unicast"),
    ]
    assert snapshot.sysctls == {"net.ipv4.ip_forward": "1", "net.ipv4.conf.all.route_localnet": "0"}
    assert set(snapshot.saved) == {"/etc/iptables/rules.v4"}
    # No rule uses a set, so nobody asked for them.
    assert snapshot.sets is None


def test_only_what_is_judged_is_kept(host: Host) -> None:
    """People put secrets into labels, commands and options."""
    answers = capture(CAPTURED)
    first = answers["containers"][0]
    first.update(
        Labels={"traefik.password": "hunter2", "com.docker.compose.project": "shop"}, Command="run --key hunter2"
    )
    first["NetworkSettings"]["Networks"]["bridge"] = {
        "NetworkID": "b" * 64,
        "IPAddress": "invalid IP",
        "DriverOpts": {"x": "hunter2"},
        "IPAMConfig": {"IPv4Address": "172.17.0.9", "LinkLocalIPs": ["hunter2"]},
    }
    first["Ports"] = [{"IP": "fe80::1%eth0", "PrivatePort": 80, "PublicPort": 80, "Type": "tcp"}]
    answers["info"].update(HttpProxy="http://user:hunter2@proxy", Labels=["hunter2"])
    answers["networks"][0]["Labels"] = {"x": "hunter2"}
    host.engine = Engine(answers)
    host.file("/etc/docker/daemon.json", '{"bridge": "none", "default-address-pools": "hunter2"}')
    snapshot = host.snapshot()
    assert "hunter2" not in json.dumps(snapshot.data)
    assert "secret.example" not in json.dumps(snapshot.data)
    assert snapshot.inventory is not None and snapshot.engine is not None
    kept = snapshot.data["docker"]["containers"][0]
    assert kept["Labels"] == {"com.docker.compose.project": "shop"}
    assert kept["Ports"][0]["IP"] == "fe80::1"
    assert kept["NetworkSettings"]["Networks"]["bridge"]["IPAddress"] == ""
    assert snapshot.inventory.containers[0].networks["bridge"] == ("172.17.0.9",)
    assert snapshot.engine.options == {"bridge": "none", "userland-proxy": True}


def test_sets_are_read_where_rules_use_them(host: Host) -> None:
    host.programs["iptables-nft-save"][""] = SET_RULE.encode()
    assert host.snapshot().sets == {"bad": IpSet("bad", "hash:ip", "ipv4", ("192.0.2.1",), True)}


def test_bytes_that_are_no_text(host: Host) -> None:
    host.programs["iptables-nft-save"][""] = b"*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -i \xff -j DROP\nCOMMIT\n"
    host.programs["ip"]["-j -d address"] = b'[{"ifname": "\xff\\ud800"}]'
    answers = capture(CAPTURED)
    answers["containers"][0]["Names"] = ["/\ud800"]
    host.engine = Engine(answers)
    snapshot = host.snapshot()
    assert snapshot.holes == ()
    chain = snapshot.dumps["ipv4", "nft"].chain("filter", "FORWARD")
    assert chain is not None
    assert chain.render() == ["-A FORWARD -i \\xff -j DROP"]
    assert [item.name for item in snapshot.interfaces] == ["\\xed\\xb3\\xbf\\xed\\xa0\\x80"]


LEGACY_DUMP = b"*filter\n" + HEADS.encode() + b"COMMIT\n"


def test_legacy_tables_are_read_only_where_the_kernel_has_them(host: Host) -> None:
    host.file("/proc/ip_tables_names", "nat\nfilter\n")
    host.file("/proc/ip6_tables_names", "")
    host.programs["iptables-legacy-save"][""] = LEGACY_DUMP
    assert set(host.snapshot().dumps) == {("ipv4", "nft"), ("ipv4", "legacy"), ("ipv6", "nft")}
    del host.programs["iptables-legacy-save"]
    snapshot = host.snapshot()
    assert [hole.part for hole in snapshot.holes] == ["iptables_ipv4_legacy"]


def test_nothing_loads_nftables(host: Host) -> None:
    """On a host with legacy iptables only: neither nft nor iptables-nft is run, whoever would load it."""
    host.file("/proc/modules", "ip_tables 1 1 - Live\n")
    host.file("/proc/config.gz", "")
    host.file("/proc/ip_tables_names", "filter\n")
    host.programs["iptables-legacy-save"][""] = LEGACY_DUMP
    host.programs["nft"].clear()
    host.programs["iptables-nft-save"].clear()
    host.programs["ip6tables-nft-save"].clear()
    snapshot = host.snapshot()
    assert set(snapshot.dumps) == {("ipv4", "legacy")}
    assert snapshot.holes == ()
    assert snapshot.nft is not None


# Docker's options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("-H fd:// --containerd=/run/containerd/containerd.sock", {}),
        ("--iptables=false --ip6tables=0", {"iptables": False, "ip6tables": False}),
        ("--iptables false --live-restore", {"iptables": False, "live-restore": True}),
        ("--userland-proxy=false -b none", {"userland-proxy": False, "bridge": "none"}),
        ("--firewall-backend nftables --bridge=br0", {"firewall-backend": "nftables", "bridge": "br0"}),
        (
            "--allow-direct-routing --ip-forward-no-drop --debug",
            {"allow-direct-routing": True, "ip-forward-no-drop": True},
        ),
        ("--config-file /x.json --iptables", {"config-file": "/x.json", "iptables": True}),
        ("--label --iptables-x=false --bridge", {"bridge": ""}),
    ],
)
def test_dockerds_command_line(words: str, options: t.Dict[str, t.Any]) -> None:
    assert parse_dockerd(words.split()) == options


def test_another_configuration_file(host: Host) -> None:
    host.file("/proc/10/cmdline", "dockerd\0--config-file=/etc/other.json\0--iptables=false\0")
    host.file("/etc/other.json", '{"firewall-backend": "nftables", "iptables": true}')
    engine = host.snapshot().engine
    assert engine is not None
    assert engine.options == {"firewall-backend": "nftables", "iptables": False}


@pytest.mark.parametrize(
    ("words", "proxy"),
    [
        (
            "-proto udp -host-ip 127.0.0.1 -host-port 53 -container-ip 172.17.0.3 -container-port 5353",
            ("udp", "127.0.0.1", 53, "172.17.0.3", 5353),
        ),
        ("--proto=tcp --host-port=80 --container-port=81 -use-listen-fd", ("tcp", "", 80, "", 81)),
        ("--help", None),
        ("-host-port x -container-port 1", None),
        ("-container-port 1 -host-port", None),
    ],
)
def test_docker_proxys_command_line(words: str, proxy: t.Optional[t.Tuple[t.Any, ...]]) -> None:
    found = parse_proxy(words.split())
    assert (None if found is None else tuple(found.values())) == proxy


# Swarm ---------------------------------------------------------------------------------------------------------------

SERVICE = {
    "Spec": {"Name": "web"},
    "Endpoint": {
        "Ports": [
            {"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress"},
            {"TargetPort": 1},
        ]
    },
}


@pytest.mark.parametrize(
    ("swarm", "services", "ports", "hole"),
    [
        ({"LocalNodeState": "inactive"}, AssertionError(), (), ""),
        (
            {"LocalNodeState": "active", "ControlAvailable": True},
            [SERVICE, {}],
            (SwarmPort("web", "tcp", 8080, 80, "ingress"),),
            "",
        ),
        ({"LocalNodeState": "active", "ControlAvailable": False}, AssertionError(), (), "audit a manager"),
        ({"LocalNodeState": "active", "ControlAvailable": True}, DockerError("There is no leader."), (), "no leader"),
    ],
)
def test_services(host: Host, swarm: t.Any, services: t.Any, ports: t.Any, hole: str) -> None:
    answers = capture(CAPTURED)
    answers["info"]["Swarm"] = swarm
    host.engine = Engine(answers, services)
    snapshot = host.snapshot()
    assert snapshot.swarm_ports == ports
    assert [item.part for item in snapshot.holes] == (["services"] if hole else [])
    assert all(hole in item.reason for item in snapshot.holes)
    assert snapshot.engine is not None
    assert snapshot.engine.swarm is (swarm["LocalNodeState"] == "active")


# Holes ---------------------------------------------------------------------------------------------------------------

SEGFAULT: Output = (-11, b"", b"")
TRACE = "Traceback (most recent call last):\n  File x\nModuleNotFoundError: No module named 'docker'\n"


def gone(*programs: str) -> t.Callable[[Host], None]:
    def change(host: Host) -> None:
        for program in programs:
            del host.programs[program]

    return change


def says(program: str, arguments: str, output: Output) -> t.Callable[[Host], None]:
    def change(host: Host) -> None:
        host.programs[program][arguments] = output

    return change


def engine(answers: t.Any) -> t.Callable[[Host], None]:
    return lambda host: setattr(host, "engine", answers)


def answers_with(part: str, value: t.Any) -> t.Callable[[Host], None]:
    return lambda host: setattr(host, "engine", Engine({**capture(CAPTURED), part: value}))


def file(path: str, text: t.Union[str, bytes]) -> t.Callable[[Host], None]:
    return lambda host: host.file(path, text)


def folder(path: str) -> t.Callable[[Host], None]:
    def change(host: Host) -> None:
        place = host.root / path.lstrip("/")
        if place.exists():
            place.unlink()
        place.mkdir()

    return change


RULESET = "-j -t list ruleset"
ALL_NFT = {"iptables_ipv4_nft", "iptables_ipv6_nft"}


@pytest.mark.parametrize(
    ("change", "parts", "words"),
    [
        (engine(DockerSdkMissing(TRACE)), {"docker"}, "No module named 'docker'): install python3-docker"),
        (engine(DockerSdkMissing("")), {"docker"}, "install python3-docker"),
        (
            engine(DockerSilent("unix:///x", "timed out")),
            {"docker"},
            "(timed out): restart it (systemctl restart docker).",
        ),
        (engine(Engine(DockerError("Docker refused GET /info."))), {"docker"}, "refused GET /info"),
        (answers_with("containers", [{"Id": "x", "Ports": "x"}]), {"docker"}, "has an unknown form"),
        (answers_with("containers", [{"Id": 5}]), {"docker"}, "docker.containers[0].Id must be a text"),
        (answers_with("networks", {"a": 1}), {"docker"}, "has an unknown form"),
        (answers_with("info", None), {"docker"}, "has an unknown form"),
        (file("/etc/docker/daemon.json", '{"iptables": fal'), {"docker"}, "/etc/docker/daemon.json is no JSON object"),
        (file("/etc/docker/daemon.json", "[1]"), {"docker"}, "/etc/docker/daemon.json is no JSON object"),
        (file("/etc/docker/daemon.json", b'{"\xff": "'), {"docker"}, "no JSON object"),
        (folder("/etc/docker/daemon.json"), {"docker"}, "Docker's options are not known"),
        (folder("/etc/iptables/rules.v4"), {"saved"}, "/etc/iptables/rules.v4 cannot be read"),
        (file("/etc/iptables/rules.v4", "<html>"), {"saved"}, "no whole dump"),
        (gone("nft"), {"nft"}, "install the package nftables"),
        (says("nft", RULESET, SEGFAULT), {"nft"}, "was ended by signal 11"),
        (
            says("nft", RULESET, (1, b"", b"Error: JSON support not compiled-in\n")),
            {"nft"},
            "JSON support not compiled-in",
        ),
        (says("nft", RULESET, b'{"nftables": [{"table'), {"nft"}, "no JSON"),
        (says("nft", RULESET, b"[" * 100000), {"nft"}, "no JSON"),
        (says("nft", RULESET, b'{"nftables": {}}'), {"nft"}, "something else than a list"),
        (
            gone("iptables-nft-save", "ip6tables-nft-save", "iptables-save", "ip6tables-save"),
            ALL_NFT,
            "install the package",
        ),
        (says("iptables-nft-save", "", b"*filter\n:INPUT"), {"iptables_ipv4_nft"}, "no whole dump"),
        (gone("ip"), {"interfaces", "routes"}, "install the package iproute2"),
        (says("ip", "-j -d address", (255, b"", b'Option "-j" is unknown\n')), {"interfaces"}, "is unknown"),
        (says("ip", "-6 -j route show table all", b"[{},"), {"routes"}, "no JSON"),
        (folder("/proc/thread-self/net/tcp"), {"listening"}, "/proc/net cannot be read"),
    ],
)
def test_what_cannot_be_read_is_a_hole(
    host: Host, change: t.Callable[[Host], None], parts: t.Set[str], words: str
) -> None:
    """With a sentence; and all the rest is as before."""
    whole = host.snapshot()
    change(host)
    snapshot = host.snapshot()
    assert {hole.part for hole in snapshot.holes} == parts
    assert all(words in hole.reason for hole in snapshot.holes), snapshot.holes
    touched = {part.split("_")[0] for part in parts}
    for part in set(PARTS) - touched:
        assert snapshot.data[part] == whole.data[part], part


def test_sets_that_cannot_be_read(host: Host) -> None:
    host.programs["iptables-nft-save"][""] = SET_RULE.encode()
    host.programs["ipset"]["save"] = (1, b"", b"ipset v7.17: Kernel error received: Operation not permitted\n")
    snapshot = host.snapshot()
    assert [hole.part for hole in snapshot.holes] == ["ipsets"]
    assert "Operation not permitted" in snapshot.holes[0].reason
    assert snapshot.sets is None
    host.programs["ipset"]["save"] = b"create bad\n"
    assert [hole.part for hole in host.snapshot().holes] == ["ipsets"]
    del host.programs["ipset"]
    assert "install the package ipset" in host.snapshot().holes[0].reason
    (host.root / "sys" / "module" / "ip_set" / "refcnt").unlink()
    (host.root / "sys" / "module" / "ip_set").rmdir()
    assert "mount /sys" in host.snapshot().holes[0].reason


def test_one_table_that_iptables_cannot_show(host: Host) -> None:
    """kernel-facts 2: with return code 0, a comment in its place."""
    text = "*raw\nCOMMIT\n# Table `filter' is incompatible, use 'nft' tool.\n"
    host.programs["iptables-nft-save"][""] = text.encode()
    snapshot = host.snapshot()
    assert [hole.part for hole in snapshot.holes] == ["iptables_ipv4_nft_filter"]
    assert "nft list table ip filter" in snapshot.holes[0].reason
    assert set(snapshot.dumps["ipv4", "nft"].tables) == {"raw"}
    # A comment may say so too.
    comment = "x\n# Table `filter' is incompatible"
    text = '*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -m comment --comment "%s" -j DROP\nCOMMIT\n' % comment
    host.programs["iptables-nft-save"][""] = text.encode()
    assert host.snapshot().holes == ()


def test_one_table_that_iptables_fails_on(host: Host) -> None:
    failure: Output = (3, b"*raw\n", b"iptables-nft-save v1.8.9 (nf_tables): Parsing nftables rule failed\n")
    dump = b"*%s\nCOMMIT\n"
    host.programs["iptables-nft-save"] = {
        "": failure,
        "-t filter": dump % b"filter",
        "-t nat": failure,
        "-t raw": dump % b"raw",
    }
    snapshot = host.snapshot()
    assert [hole.part for hole in snapshot.holes] == ["iptables_ipv4_nft_nat"]
    assert "Parsing nftables rule failed" in snapshot.holes[0].reason
    assert set(snapshot.dumps["ipv4", "nft"].tables) == {"filter", "raw"}


def test_without_root(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    readlink = os.readlink

    def refuse(path: str, **more: t.Any) -> str:
        if "thread-self" not in path:
            raise PermissionError(13, "Permission denied", path)
        return readlink(path, **more)

    monkeypatch.setattr(os, "readlink", refuse)
    for program in list(host.programs):
        if program != "ip":
            host.programs[program].clear()
    snapshot = host.snapshot()
    iptables = {"iptables_%s_%s" % (family, variant) for family in ("ipv4", "ipv6") for variant in ("nft", "legacy")}
    assert {hole.part for hole in snapshot.holes} == {"nft", "proxies"} | iptables
    assert all("add become: true" in hole.reason for hole in snapshot.holes)
    assert snapshot.inventory is not None
    assert snapshot.dumps == {}


def test_without_anything(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """No program, no /proc, no Docker: all is a hole, and still a snapshot."""
    host.programs.clear()
    host.engine = RuntimeError("Segmentation fault in a library\n")
    host.root = host.root / "nothing"
    document = collect(host.run, host.find, host.docker, str(host.root))
    snapshot = from_json(document)
    parts = {"nft", "docker", "proxies", "listening", "sysctls", "interfaces", "routes"}
    assert {hole.part for hole in snapshot.holes} == parts | ALL_NFT
    assert all(hole.reason.isprintable() for hole in snapshot.holes)


def test_a_host_without_iptables(host: Host) -> None:
    """With Docker's nftables backend it needs none: there is nothing to be read, so nothing is missing."""
    path = SHARED / "captures" / "docker-29.7-nftables" / "nft-ruleset.json"
    objects = [
        item
        for item in json.loads(path.read_text(encoding="utf-8"))["nftables"]
        if all("nat" not in (value.get("table"), value.get("name")) for value in item.values())
    ]
    for name in ("iptables", "ip6tables"):
        for suffix in ("-save", "-nft-save", "-legacy-save"):
            del host.programs[name + suffix]
    host.programs["nft"][RULESET] = json.dumps({"nftables": objects}).encode()
    for family in ("ip", "ip6"):
        whole = [item for item in objects if any(value.get("family") == family for value in item.values())]
        host.programs["nft"]["-j list table %s docker-bridges" % family] = json.dumps({"nftables": whole}).encode()
    snapshot = host.snapshot()
    assert snapshot.holes == ()
    assert snapshot.nft is not None
    assert len(snapshot.nft.docker) == len(objects) - 1  # but for what nft says of itself


@pytest.mark.parametrize("parse", [parse_interfaces, lambda items: parse_routes(items, "ipv4")])
def test_what_ip_leaves_out(parse: t.Any) -> None:
    assert parse([]) == parse([{}, {"flags": []}]) == []


@pytest.mark.parametrize("away", [1, 99])
def test_a_jump_that_docker_is_putting_back(host: Host, monkeypatch: pytest.MonkeyPatch, away: int) -> None:
    """Engines up to 27 take it away for a moment at each network create; one that stays away is told."""
    waited: t.List[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    text = host.programs["iptables-nft-save"][""]
    assert isinstance(text, bytes)
    without = text.replace(b"-A FORWARD -j DOCKER-USER\n", b"")
    looks = [without] * away
    ask = host.run

    def run(args: t.Sequence[str], *rest: t.Any) -> t.Any:
        if os.path.basename(args[0]) == "iptables-nft-save":
            return 0, looks.pop() if looks else text, b""
        return ask(args, *rest)

    monkeypatch.setattr(host, "run", run)
    chain = host.snapshot().dumps["ipv4", "nft"].chain("filter", "FORWARD")
    assert chain is not None
    assert any(rule.target == "DOCKER-USER" for rule in chain.rules) is (away == 1)
    assert len(waited) == (1 if away == 1 else 3)
