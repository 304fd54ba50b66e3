# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshots of machines: taking one changes nothing, and what it says is what the kernel does."""

from __future__ import annotations

import json
import socket
import struct
import typing as t
from pathlib import Path

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._collect import collect
from ansible_collections.quaywall.docker.plugins.module_utils._inventory import DockerError
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import (
    BaseChain,
    Interface,
    IpSet,
    Route,
    Snapshot,
    Socket,
    from_json,
)

from .lab import FAMILIES, IPV4, IPV6, LEGACY, NFT, Host, docker_table, find, load, run_command, save, tool
from .test_round_trip import FILES, rules_of

if t.TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DROP = "-p tcp -m tcp --dport 8080 -j DROP"
WITH_SET = "-m set --match-set bad,guys src -j DROP"


def no_docker() -> t.Any:
    raise DockerError("No Docker here.")


class Spy:
    """Runs commands and keeps them."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []

    def run(
        self, args: Sequence[str], data: bytes | None, extra: Mapping[str, str], descriptors: Sequence[int]
    ) -> tuple[int, bytes, bytes]:
        assert not data and not descriptors
        self.commands.append([Path(args[0]).name, *args[1:]])
        return run_command(args, data, extra, descriptors)


def taken(host: Host, spy: Spy | None = None) -> Snapshot:
    """The machine's snapshot, which is the same from a file."""
    document = host.call(collect, (spy or Spy()).run, find, no_docker)
    snapshot = from_json(document)
    assert from_json(json.loads(json.dumps(document))) == snapshot
    return snapshot


def holes(snapshot: Snapshot) -> dict[str, str]:
    return {hole.part: hole.reason for hole in snapshot.holes if hole.part != "docker"}


# Reading never writes -------------------------------------------------------------------------------------------------


def generation() -> int:
    """nftables' generation (NFT_MSG_GETGEN): one more after each transaction of anybody in this namespace."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as netlink:
        netlink.send(struct.pack("=IHHIIBBH", 20, (10 << 8) | 16, 1, 0, 0, 0, 0, 0))
        return int(struct.unpack_from(">I", netlink.recv(4096), 24)[0])


def state(host: Host) -> dict[str, t.Any]:
    """All that asking could have changed."""
    modules = Path("/proc/modules")
    return {
        "generation": host.call(generation),
        "ruleset": host.run("nft", "list", "ruleset"),
        "sets": host.run("ipset", "save"),
        "modules": {line.split()[0] for line in modules.read_text().splitlines()} if modules.exists() else None,
        "loaded": sorted(path.name for path in Path("/sys/module").iterdir()),
        **{
            name: host.read("/proc/thread-self/net/" + name)
            for name in ("ip_tables_names", "ip6_tables_names", "ip_tables_matches", "ip6_tables_targets")
        },
        "links": host.run("ip", "-o", "link"),
    }


def fresh(host: Host) -> None:
    """A machine on which nobody ever asked for a rule."""


def ruled(host: Host) -> None:
    for family in FAMILIES:
        load(host, NFT, family, docker_table([DROP]))


def legacy(host: Host) -> None:
    for family in FAMILIES:
        load(host, LEGACY, family, docker_table([DROP]))


def mixed(host: Host) -> None:
    load(host, NFT, IPV4, docker_table([DROP]))
    load(host, LEGACY, IPV6, docker_table([DROP]))


def with_sets(host: Host) -> None:
    host.run("ipset", "restore", data=b"create bad,guys hash:net\nadd bad,guys 203.0.113.0/24\n")
    load(host, NFT, IPV4, docker_table([WITH_SET]))


def with_maps(host: Host) -> None:
    load(host, NFT, IPV4, docker_table([DROP]))
    host.run("nft", "-f", "-", data=FOREIGN.encode())


def incompatible(host: Host) -> None:
    load(
        host,
        NFT,
        IPV4,
        docker_table([DROP])
        + docker_table([]).replace("*filter", "*security").replace(":FORWARD DROP", ":FORWARD ACCEPT"),
    )
    host.run("nft", 'add rule ip filter DOCKER-USER ct state invalid log prefix "x" drop')


#: Tables of other tools: with verdict maps, jumps, and a blocklist that nobody needs to see.
FOREIGN = """
table inet foreign {
    set blocklist {
        type ipv4_addr
        elements = { 192.0.2.1, 192.0.2.2 }
    }
    map verdicts {
        type ifname : verdict
        elements = { "eth0" : jump judge, "eth1" : accept }
    }
    chain judge {
        tcp dport 1 reject
    }
    chain harmless {
        counter accept
    }
    chain by_map {
        type filter hook forward priority 10; policy accept;
        iifname vmap @verdicts
    }
    chain by_policy {
        type filter hook input priority filter; policy drop;
        ct state established accept
    }
    chain by_jump {
        type filter hook prerouting priority raw; policy accept;
        ip saddr @blocklist goto judge
    }
    chain never {
        type filter hook output priority 5; policy accept;
        jump harmless
    }
}
table ip docker-bridges {
    map jumps {
        type ifname : verdict
        elements = { "docker0" : jump docker0 }
    }
    chain docker0 {
        counter drop
    }
    chain filter-FORWARD {
        type filter hook forward priority filter; policy accept;
        oifname vmap @jumps
    }
}
table ip asleep {
    flags dormant
    chain forward {
        type filter hook forward priority filter; policy drop;
    }
}
"""


@pytest.mark.parametrize("prepare", [fresh, ruled, legacy, mixed, with_sets, with_maps, incompatible])
def test_taking_a_snapshot_changes_nothing(host: Host, prepare: t.Callable[[Host], None]) -> None:
    prepare(host)
    before = state(host)
    spy = Spy()
    first = taken(host, spy)
    assert state(host) == before
    again = taken(host)
    assert state(host) == before
    if prepare is fresh:
        assert {**again.data, "collected": ""} == {**first.data, "collected": ""}
    # Not even a command that could write: whether it did depends on the kernel.
    for program, *arguments in spy.commands:
        if program == "nft":
            assert arguments[0] == "-j" and "list" in arguments[1:3]
        elif program == "ip":
            assert arguments[-1] == "address" or "show" in arguments
        elif program == "ipset":
            assert arguments == ["save"] and prepare is with_sets
        else:
            assert program.endswith("-save") and arguments in ([], ["--version"], ["-t", "filter"])


def test_nothing_is_asked_where_there_is_nothing(host: Host) -> None:
    spy = Spy()
    snapshot = taken(host, spy)
    asked = [command for command in spy.commands if command[-1] != "--version"]
    assert sorted(command[0] for command in asked) == ["ip", "ip", "ip", "nft"]
    assert (snapshot.dumps, snapshot.sets, holes(snapshot)) == ({}, None, {})


# What it says ---------------------------------------------------------------------------------------------------------


def test_the_rules_of_each_family_and_variant(host: Host) -> None:
    mixed(host)
    snapshot = taken(host)
    assert set(snapshot.dumps) == {(IPV4, NFT), (IPV6, LEGACY)}
    for (family, variant), dump in snapshot.dumps.items():
        chain = dump.chain("filter", "DOCKER-USER")
        assert chain is not None
        assert chain.render() == ["-A DOCKER-USER " + DROP]
        text = snapshot.data["iptables"][family][variant]
        assert save(host, variant, family).decode() in text
    assert snapshot.default_variants[IPV4] in (NFT, LEGACY)
    assert holes(snapshot) == {}


def test_sets_and_bytes_that_are_no_text(host: Host) -> None:
    with_sets(host)
    rule = b'-A DOCKER-USER -m comment --comment "\xff\xe4 \\"" -j DROP\n'
    load(host, NFT, IPV4, b"*filter\n" + rule + b"COMMIT\n", "--noflush")
    snapshot = taken(host)
    assert snapshot.sets == {"bad,guys": IpSet("bad,guys", "hash:net", IPV4, ("203.0.113.0/24",), True)}
    chain = snapshot.dumps[IPV4, NFT].chain("filter", "DOCKER-USER")
    assert chain is not None
    assert chain.render()[-1] == r'-A DOCKER-USER -m comment --comment "\xff\xe4 \"" -j DROP'


def test_tables_of_other_tools(host: Host) -> None:
    with_maps(host)
    snapshot = taken(host)
    assert holes(snapshot) == {}
    assert snapshot.nft is not None
    # nft 1.0.6 does not say which tables are switched off.
    assert {chain for chain in snapshot.nft.base_chains if chain.table != "asleep"} == {
        BaseChain("inet", "foreign", "by_map", "forward", 10, "accept", 1, True),
        BaseChain("inet", "foreign", "by_policy", "input", 0, "drop", 1, True),
        BaseChain("inet", "foreign", "by_jump", "prerouting", -300, "accept", 1, True),
        BaseChain("inet", "foreign", "never", "output", 5, "accept", 1, False),
    }
    elements = [item["map"]["elem"] for item in snapshot.nft.docker if "map" in item]
    assert elements == [[["docker0", {"jump": {"target": "docker0"}}]]]
    assert "192.0.2.1" not in json.dumps(snapshot.data)
    assert snapshot.nft.misprinted == {IPV4: frozenset(), IPV6: frozenset()}


def test_a_table_that_iptables_cannot_show(host: Host) -> None:
    """kernel-facts 2: nothing of the table is printed, with return code 0. The other tables are there."""
    incompatible(host)
    snapshot = taken(host)
    assert set(holes(snapshot)) == {"iptables_ipv4_nft_filter"}
    assert "nft list table ip filter" in holes(snapshot)["iptables_ipv4_nft_filter"]
    assert set(snapshot.dumps[IPV4, NFT].tables) == {"security"}


def test_a_rule_that_iptables_fails_on(host: Host) -> None:
    """iptables 1.8.9 fails on all tables (return code 3) for one rule in one; later ones print it without its match."""
    ruled(host)
    host.run("nft", "add table ip mangle; add chain ip mangle FORWARD { type filter hook forward priority mangle; }")
    host.run("nft", "add rule ip mangle FORWARD meta length 100 drop")
    saved = host.attempt(tool(IPV4, NFT, "save"))
    snapshot = taken(host)
    if saved.returncode == 0 and b"incompatible" not in saved.stdout:
        assert ("mangle", "FORWARD") in snapshot.nft.misprinted[IPV4]
        return
    assert set(holes(snapshot)) == {"iptables_ipv4_nft_mangle"}
    assert set(snapshot.dumps[IPV4, NFT].tables) == {"filter"}


def test_interfaces_routes_and_sockets(host: Host) -> None:
    host.ip(
        "link add br-1 type bridge\nlink set br-1 up\naddress add 172.30.0.1/24 dev br-1\n"
        "link add out type veth peer name in\nlink set in master br-1\nlink set out up\n"
        "address add fd00:31::1/64 dev out nodad\naddress add 203.0.113.1/24 dev out\n"
        "route add default via 203.0.113.254 dev out metric 100\nroute add blackhole 10.9.0.0/16\n"
        "route add 10.6.0.0/16 via 203.0.113.7 table 77\n"
        "route add 10.8.0.0/16 nexthop via 172.30.0.2 dev br-1 nexthop via 172.30.0.3 dev br-1\n"
    )
    host.sysctl("ipv4/conf/br-1/route_localnet", "1")

    def listen() -> list[socket.socket]:
        found = [socket.create_server(("127.0.0.1", 8080)), socket.create_server(("::", 8081), family=socket.AF_INET6)]
        client = socket.create_connection(("127.0.0.1", 8080))
        waiting = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _number in range(2)]
        waiting[0].bind(("0.0.0.0", 53))
        waiting[1].bind(("127.0.0.1", 54))
        waiting[1].connect(("127.0.0.1", 55))
        return [*found, client, *waiting]

    sockets = host.call(listen)
    try:
        snapshot = taken(host)
    finally:
        for opened in sockets:
            opened.close()
    assert set(snapshot.listening) == {
        Socket("tcp", "127.0.0.1", 8080),
        Socket("tcp", "::", 8081),
        Socket("udp", "0.0.0.0", 53),
    }
    found = {item.name: item for item in snapshot.interfaces}
    assert found["lo"] == Interface("lo", "", True, "", ("127.0.0.1/8", "::1/128"))
    assert found["br-1"][:4] == ("br-1", "bridge", True, "") and "172.30.0.1/24" in found["br-1"].addresses
    assert found["in"][:4] == ("in", "veth", False, "br-1")
    assert {"fd00:31::1/64", "203.0.113.1/24"} <= set(found["out"].addresses)
    assert {
        Route(IPV4, "172.30.0.0/24", "", "br-1", "main", "unicast", 0),
        Route(IPV4, "172.30.0.1/32", "", "br-1", "local", "local", 0),
        Route(IPV4, "10.9.0.0/16", "", "", "main", "blackhole", 0),
        Route(IPV4, "10.8.0.0/16", "172.30.0.2", "br-1", "main", "unicast", 0),
        Route(IPV4, "10.8.0.0/16", "172.30.0.3", "br-1", "main", "unicast", 0),
    } <= set(snapshot.routes)
    assert snapshot.sysctls["net.ipv4.conf.br-1.route_localnet"] == "1"
    assert snapshot.sysctls["net.ipv4.ip_forward"] == "0"
    assert "net.ipv4.conf.out.route_localnet" not in snapshot.sysctls
    assert holes(snapshot) == {}


# What iptables misprints ----------------------------------------------------------------------------------------------

#: Rules as people write them with nft. Whether iptables prints them rightly is for the kernel to say.
NATIVE = """
ip saddr 1.2.3.4 drop
ip saddr != 1.2.3.0/24 tcp dport 80 drop
ip saddr 1.2.3.4-1.2.3.9 drop
ip saddr { 1.2.3.4, 1.2.3.5 } drop
ip saddr @members drop
ip saddr != @members tcp dport { 80, 443 } drop
ip saddr < 5.5.5.5 drop
ip saddr . tcp dport { 1.2.3.4 . 80 } drop
ip saddr vmap { 1.2.3.4 : drop }
ip daddr { 10.0.0.0/8 } drop
ip saddr 1.1.1.1 ip saddr 2.2.2.2 drop
ip protocol > 5 drop
ip ttl set 5
tcp dport 80-90 drop
tcp dport != 80-90 drop
tcp dport { 80, 443 } drop
tcp dport != { 80, 443 } drop
tcp dport & 1 == 1 drop
tcp dport 80 tcp dport != 81 drop
tcp sport 53 tcp dport 1000-2000 accept
tcp sequence 5 drop
udp length 5 drop
udp dport 53 counter accept
iifname "eth*" drop
iifname { "eth0", "eth1" } drop
iifname != "eth1" iifname != "eth2" drop
oifname != "br0" drop
meta l4proto { tcp, udp } drop
meta l4proto > 6 drop
meta mark & 0xff == 1 drop
meta mark | 1 == 3 drop
icmp type { echo-request, echo-reply } drop
icmp type != echo-request drop
icmp code 1 drop
tcp flags == syn drop
tcp flags & (syn | ack) == syn drop
tcp flags { syn, ack } drop
limit rate 10/minute accept
log group 3
counter drop comment "hello"
""".strip().splitlines()


def rules_in(host: Host, chain: str, family: str = "ip") -> list[list[t.Any]]:
    """What nft says of each rule in the filter table's chain, without counters."""
    listed = json.loads(host.run("nft", "-j", "list", "chain", family, "filter", chain))["nftables"]
    return [
        [part for part in item["rule"]["expr"] if not part.keys() & {"counter", "continue"}]
        for item in listed
        if "rule" in item
    ]


def test_what_iptables_misprints_is_told(host: Host) -> None:
    """What it prints is loaded into another chain: where that is another rule, it was a misprint."""
    wrong = []
    for rule in NATIVE:
        load(host, NFT, IPV4, docker_table([], more="COPY"))
        host.run("nft", "-f", "-", data=b"add set ip filter members { type ipv4_addr; }\nflush chain ip filter COPY\n")
        host.run("nft", "add rule ip filter DOCKER-USER " + rule)
        snapshot = taken(host)
        assert snapshot.nft is not None
        told = ("filter", "DOCKER-USER") in snapshot.nft.misprinted[IPV4]
        assert told == bool(snapshot.nft.misprinted[IPV4])
        chain = snapshot.dumps[IPV4, NFT].chain("filter", "DOCKER-USER") if (IPV4, NFT) in snapshot.dumps else None
        if chain is None:
            assert holes(snapshot), rule
        else:
            copied = "*filter\n" + "".join("-A COPY %s\n" % printed.render() for printed in chain.rules) + "COMMIT\n"
            loaded = host.attempt(tool(IPV4, NFT, "restore"), "--noflush", data=copied.encode()).returncode == 0
            native = [[part for part in found if "xt" not in part] for found in rules_in(host, "COPY")]
            same = loaded and native == rules_in(host, "DOCKER-USER")
            wrong.append(rule) if not same else None
            assert same or told, (rule, copied)
        host.run("nft", "delete", "table", "ip", "filter")
    # Of these it is known (kernel-facts 2).
    assert {"ip saddr != @members tcp dport { 80, 443 } drop", 'iifname { "eth0", "eth1" } drop'} <= set(wrong)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_iptables_wrote_is_no_misprint(shared: Path, family: str) -> None:
    """The rules of netfilter's own tests."""
    accepted = 0
    for pattern in FILES[family]:
        for path in sorted((shared / "rulesets" / "netfilter").glob(pattern)):
            lines = list(rules_of(path))
            texts = ["*%s\n-A %s %s\nCOMMIT\n" % (line.table, line.chain, line.rule) for line in lines]
            with Host() as host:
                restore = [tool(family, NFT, "restore"), "--noflush"]
                if host.attempt(*restore, data="".join(texts).encode()).returncode == 0:
                    accepted += len(texts)
                else:
                    accepted += sum(host.attempt(*restore, data=text.encode()).returncode == 0 for text in texts)
                snapshot = taken(host)
            assert snapshot.nft is not None
            assert snapshot.nft.misprinted == {IPV4: frozenset(), IPV6: frozenset()}, path.name
    assert accepted >= 540
