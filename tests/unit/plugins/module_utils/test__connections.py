# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which connections a chain would not let in. That they are cut then is seen in tests/kernel/test_connections.py."""

from __future__ import annotations

import errno
import ipaddress
import struct
import sys
import typing as t

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._chain import parse_dump
from ansible_collections.quaywall.docker.plugins.module_utils._connections import (
    Connection,
    Connections,
    all_routes,
    deletion,
    denied,
    local_addresses,
    parse,
)
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import join, of_network
from ansible_collections.quaywall.docker.plugins.module_utils._iptables import FirewallError
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6
from ansible_collections.quaywall.docker.plugins.module_utils._walk import Program

FRIEND, STRANGER, HOST = "203.0.113.10", "203.0.113.66", "203.0.113.1"
A, B, ROUTER = "172.17.0.2", "172.17.0.3", "172.17.0.1"
ROUTES = [(ipaddress.ip_network("172.17.0.0/16"), "docker0"), (ipaddress.ip_network("172.18.0.0/16"), "br-1")]
SOURCES = [(ipaddress.ip_network("0.0.0.0/0"), "eth0"), (ipaddress.ip_network("10.8.0.0/24"), "wg0")]
OWN = {HOST, ROUTER, "127.0.0.1"}


def conn(source: str, **more: t.Any) -> Connection:
    """To web-a, which is published on port 9000."""
    return Connection(IPV4, "tcp", source, 40000, HOST, 9000, A, 8080)._replace(**more)


OPEN = {
    "friend": conn(FRIEND),
    "stranger": conn(STRANGER),
    "stranger to the other container": conn(STRANGER, destination_port=8080, reply_source=B),
    "stranger by its address": conn(STRANGER, destination=A, destination_port=8080),
    "neighbour": conn(B, destination=A, destination_port=8080),
    "another network": conn("172.18.0.9"),
    "outgoing": conn(A, destination=STRANGER, destination_port=8080, reply_source=STRANGER),
    "the host": conn(HOST, destination=A, destination_port=8080),
    "to the host": conn(STRANGER, destination_port=8080, reply_source=HOST),
    "container to the host": conn(A, destination=ROUTER, destination_port=8080, reply_source=ROUTER),
    "stranger by UDP": conn(STRANGER, protocol="udp"),
}


def program(*rules: str, more: str = "", **options: t.Any) -> Program:
    lines = ["*filter", ":FORWARD DROP [0:0]", ":DOCKER-USER - [0:0]", *(":%s - [0:0]" % name for name in more.split())]
    lines += [rule if rule.startswith("-A ") else "-A DOCKER-USER " + rule for rule in rules]
    return Program(parse_dump("\n".join([*lines, "COMMIT", ""])).tables["filter"].chains, IPV4, **options)


def names(made: Program, **more: t.Any) -> t.Set[str]:
    options: t.Dict[str, t.Any] = {"local": OWN, "sources": SOURCES}
    options.update(more)
    found = denied(OPEN.values(), made, ROUTES, **options)
    return {name for name, one in OPEN.items() if one in found}


ESTABLISHED = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
TO_A = "-d 172.17.0.2/32 ! -i docker0 -p tcp -m tcp --dport 8080"
ALL_TO_A = {"stranger", "stranger by its address", "another network"}


# Which ones ---------------------------------------------------------------------------------------------------------


def test_established_does_not_save_it() -> None:
    made = program(ESTABLISHED, "-s 203.0.113.10/32 %s -j ACCEPT" % TO_A, TO_A + " -j DROP", "-j RETURN")
    assert names(made) == ALL_TO_A
    assert names(program(ESTABLISHED, "-j RETURN")) == names(program()) == set()


@pytest.mark.parametrize("verdict", ["DROP", "REJECT --reject-with icmp-port-unreachable"])
def test_a_deny_by_the_published_port(verdict: str) -> None:
    made = program(
        ESTABLISHED, "-p tcp -m conntrack --ctstate DNAT --ctorigdstport 9000 --ctdir ORIGINAL -j " + verdict
    )
    assert names(made) == {"friend", "stranger", "another network"}


def test_those_who_are_not_read_are_left_alone() -> None:
    """What the host itself sends and gets, and what containers began, whatever the chain says."""
    assert names(program(ESTABLISHED, "-j DROP")) == {
        *ALL_TO_A,
        "friend",
        "stranger to the other container",
        "neighbour",
        "stranger by UDP",
    }


def test_the_interface_that_somebody_comes_from() -> None:
    made = program("-i eth0 -o docker0 -p tcp -j DROP")
    everybody = {"friend", "stranger", "stranger to the other container", "stranger by its address"}
    assert names(made) == everybody
    assert names(program("-i wg0 -o docker0 -j DROP")) == set()
    assert names(program("-i br-1 -o docker0 -j DROP")) == {"another network"}
    assert names(program("-i br+ -o docker0 -j DROP")) == {"another network"}
    assert names(program("-i docker0 -o docker0 -j DROP")) == {"neighbour"}
    assert denied([conn("10.8.0.7")], program("-i wg0 -j DROP"), ROUTES, OWN, SOURCES) == [conn("10.8.0.7")]


def test_a_source_whose_interface_is_not_known() -> None:
    """It is denied only if it is so from wherever it may come."""
    assert names(program("-i eth0 -o docker0 -j DROP"), sources=()) == set()
    assert names(program("-i eth0 -s 203.0.113.66/32 -j ACCEPT", TO_A + " -j DROP"), sources=()) == {
        "friend",
        "another network",
    }
    assert "stranger" in names(program("-i docker0 -j ACCEPT", TO_A + " -j DROP"), sources=())
    assert "stranger" not in names(program("-i eth+ -j ACCEPT", TO_A + " -j DROP"), sources=())
    assert "stranger" not in names(program("! -i eth+ -j ACCEPT", TO_A + " -j DROP"), sources=())
    assert "stranger" not in names(
        program("-j MINE", TO_A + " -j DROP", "-A MINE -i eth0 -j ACCEPT", "-A MINE -j MINE", more="MINE"), sources=()
    )


def test_two_interfaces_lead_to_the_source() -> None:
    two = [*SOURCES, (ipaddress.ip_network("0.0.0.0/0"), "eth1")]
    assert names(program("-i eth0 -o docker0 -j DROP"), sources=two) == set()
    assert "stranger" in names(program("-i eth0 -j DROP", "-i eth1 -j DROP"), sources=two)


@pytest.mark.parametrize(
    "rule",
    [
        "-m limit --limit 10/min -j DROP",
        "-m set --match-set friends src -j DROP",
        "-m mark --mark 0x1 -j DROP",
        "-m string --string x --algo bm -j DROP",
        "-p tcp -j SOMETHING",
        "-m conntrack --ctstate ESTABLISHED -j DROP",
    ],
)
def test_what_is_not_certain_is_left_alone(rule: str) -> None:
    assert names(program(rule)) == set()


def test_an_unknown_rule_in_front_of_a_deny() -> None:
    assert names(program("-m mark --mark 0x1 -j ACCEPT", TO_A + " -j DROP")) == set()
    # What only counts or logs decides nothing.
    assert names(program("-m limit --limit 10/min -j LOG", TO_A + " -j DROP")) == {*ALL_TO_A, "friend"}


def test_a_set_of_friends() -> None:
    rules = ("-m set --match-set friends src %s -j ACCEPT" % TO_A, TO_A + " -j DROP")
    assert names(program(*rules)) == set()
    friends = join(of_network("203.0.113.10") + of_network("10.0.0.0/8"))
    assert names(program(*rules, sets={"friends": friends})) == ALL_TO_A


def test_a_rule_that_asks_for_the_source_port() -> None:
    made = program("-p tcp -m tcp --sport 1:1023 -j ACCEPT", TO_A + " -j DROP")
    low, high = conn(STRANGER, source_port=1023), conn(STRANGER, source_port=1024)
    assert denied([low, high], made, ROUTES, OWN, SOURCES) == [high]
    made = program("-m conntrack --ctorigsrcport 1024 -j DROP")
    assert denied([low, high], made, ROUTES, OWN, SOURCES) == [high]
    made = program("-p tcp -m multiport --ports 1023 -j DROP")
    assert denied([low, high], made, ROUTES, OWN, SOURCES) == [low]


def test_the_order_is_kept_and_another_family_is_not_asked_about() -> None:
    made = program("-j DROP")
    wanted = [conn("198.51.100.%d" % number, source_port=number) for number in (9, 3, 200, 5)]
    six = Connection(IPV6, "tcp", "2001:db8::1", 1, "2001:db8::2", 2, "fd00::2", 3)
    routes = [*ROUTES, (ipaddress.ip_network("fd00::/64"), "docker0")]
    assert denied([*wanted, six, wanted[0]], made, routes, OWN, SOURCES) == wanted
    assert denied([*wanted, six], Program(made.chains, IPV6), routes) == [six]


def test_ten_thousand_connections_to_one_port_are_one_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    made = program("-s 10.0.0.0/9 -j ACCEPT", TO_A + " -j DROP")
    flows: t.List[t.Any] = []
    walk = made.walk
    monkeypatch.setattr(made, "walk", lambda *args: (flows.append(args[1]), walk(*args))[1])
    many = [conn("10.%d.%d.1" % (number >> 8, number & 255), source_port=number) for number in range(1024, 11024)]
    many += [one._replace(source=one.source.replace("10.", "11.", 1)) for one in many]
    found = denied(many, made, ROUTES, OWN)
    assert {one.source.partition(".")[0] for one in found} == {"11"}
    assert len(found) == 10000
    assert len(flows) == 1


# What the kernel has ------------------------------------------------------------------------------------------------

LISTED = """\
tcp      6 431999 ESTABLISHED src=203.0.113.66 dst=203.0.113.1 sport=40000 dport=9000 src=172.17.0.2 dst=203.0.113.66 \
sport=8080 dport=40000 [ASSURED] mark=0 use=1
udp      17 29 src=203.0.113.66 dst=203.0.113.1 sport=40000 dport=53 [UNREPLIED] src=172.17.0.3 dst=203.0.113.66 \
sport=53 dport=40000 mark=0 use=1
icmp     1 29 src=203.0.113.66 dst=203.0.113.1 type=8 code=0 id=7 src=203.0.113.1 dst=203.0.113.66 type=0 code=0 id=7 \
mark=0 use=1
tcp      6 300 ESTABLISHED src=10.0.0.1 dst=10.0.0.2 sport=1 dport=2 packets=3 bytes=180 src=10.0.0.2 dst=10.0.0.1 \
sport=2 dport=1 packets=2 bytes=120 [ASSURED] [OFFLOAD] mark=0 secctx=system_u:object_r:unlabeled_t:s0 use=2
tcp      6 300 ESTABLISHED src=10.0.0.1 dst=10.0.0.2 sport=3 dport=2 src=10.0.0.2 dst=10.0.0.1 sport=2 dport=3 \
[ASSURED] mark=0 zone=7 use=2
sctp     132 9 ESTABLISHED src=10.0.0.1 dst=10.0.0.2 sport=5 dport=6 src=10.0.0.2 dst=10.0.0.1 sport=6 dport=5 use=1
gre      47 29 timeout=30, stream_timeout=180 src=1.2.3.4 dst=1.2.3.5 srckey=0x0 dstkey=0x0 src=1.2.3.5 dst=1.2.3.4 \
srckey=0x0 dstkey=0x0 use=1

nonsense
"""


def test_what_conntrack_printed() -> None:
    assert parse(LISTED, IPV4) == [
        conn(STRANGER),
        conn(STRANGER, protocol="udp", destination_port=53, reply_source=B, reply_source_port=53),
        Connection(IPV4, "tcp", "10.0.0.1", 1, "10.0.0.2", 2, "10.0.0.2", 2),
        Connection(IPV4, "sctp", "10.0.0.1", 5, "10.0.0.2", 6, "10.0.0.2", 6),
    ]
    assert parse("", IPV4) == []


def runner(rc: int, out: str, err: str, calls: t.List[t.Any]) -> t.Any:
    def run(*args: t.Any) -> t.Tuple[int, bytes, bytes]:
        calls.append(args)
        return rc, out.encode(), err.encode()

    return run


def find(name: str) -> t.Optional[str]:
    return "/sbin/" + name


def nothing_is_deleted(_connections: t.Sequence[Connection]) -> t.List[int]:
    raise AssertionError


def test_listed() -> None:
    calls: t.List[t.Any] = []
    err = "conntrack v1.4.7 (conntrack-tools): 4 flow entries have been shown.\n"
    found = Connections(runner(0, LISTED, err, calls), find, nothing_is_deleted).listed(IPV4)
    assert found == parse(LISTED, IPV4)
    assert calls == [(["/sbin/conntrack", "-L", "-f", "ipv4"], None, {"LC_ALL": "C"}, ())]


def test_conntrack_is_missing_or_refuses() -> None:
    missing = Connections(runner(0, "", "", []), lambda _name: None, nothing_is_deleted)
    with pytest.raises(FirewallError, match=r"install the package conntrack .*or set drop_connections to false"):
        missing.listed(IPV4)
    error = "conntrack v1.4.7 (conntrack-tools): Operation failed: Operation not permitted.\n"
    with pytest.raises(FirewallError, match=r"cannot list the connections: .*Operation not permitted") as caught:
        Connections(runner(1, "", error, []), find).listed(IPV6)
    assert caught.value.details["cmd"] == ["/sbin/conntrack", "-L", "-f", "ipv6"]
    with pytest.raises(FirewallError, match="it gave no reason"):
        Connections(runner(-9, "", "", []), find).listed(IPV6)


def test_drop() -> None:
    asked: t.List[Connection] = []

    def delete(connections: t.Sequence[Connection]) -> t.List[int]:
        asked.extend(connections)
        return [0, errno.ENOENT, 0]

    three = [conn(FRIEND), conn(STRANGER), conn(STRANGER, source_port=1)]
    assert Connections(runner(1, "", "", []), find, delete).drop(iter(three)) == 2
    assert asked == three
    assert Connections(runner(1, "", "", []), find, nothing_is_deleted).drop([]) == 0


def test_drop_is_refused() -> None:
    refusing = Connections(runner(0, "", "", []), find, lambda _connections: [0, errno.EPERM])
    with pytest.raises(FirewallError, match="refused to drop 1 of 2 connections: Operation not permitted"):
        refusing.drop([conn(FRIEND), conn(STRANGER)])

    def delete(_connections: t.Sequence[Connection]) -> t.List[int]:
        raise OSError(errno.EPROTONOSUPPORT, "Protocol not supported")

    with pytest.raises(FirewallError, match="cannot be asked to drop connections: Protocol not supported"):
        Connections(runner(0, "", "", []), find, delete).drop([conn(FRIEND)])


@pytest.mark.parametrize(
    ("one", "size"),
    [
        (conn(STRANGER), 72),
        (Connection(IPV6, "udp", "2001:db8::1", 40000, "2001:db8::2", 9000, "fd00::2", 8080), 96),
    ],
)
def test_the_message_that_drops_one(one: Connection, size: int) -> None:
    message = deletion(one, 7)
    length, kind, flags, sequence, port = struct.unpack_from("=IHHII", message)
    assert (length, kind, flags, sequence, port) == (len(message), 0x102, 5, 7, 0)
    assert len(message) == size
    for address in (one.source, one.destination):
        assert ipaddress.ip_address(address).packed in message
    assert struct.pack("!H", 40000) in message
    assert struct.pack("!H", 9000) in message
    assert struct.pack("!H", 8080) not in message


# Who and where we are -----------------------------------------------------------------------------------------------

FIB_TRIE = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     +-- 172.17.0.0/16 2 0 2
        |-- 172.17.0.0
           /16 link UNICAST
        |-- 172.17.0.1
           /32 host LOCAL
        |-- 172.17.255.255
           /32 link BROADCAST
Local:
  +-- 0.0.0.0/0 3 0 5
        |-- 127.0.0.0
           /8 host LOCAL
        |-- 127.0.0.1
           /32 host LOCAL
"""
IF_INET6 = """\
00000000000000000000000000000001 01 80 10 80       lo
fd000017000000000000000000000001 05 40 00 80  docker0
"""


def host(root: t.Any, files: t.Mapping[str, str]) -> str:
    folder = root / "proc/thread-self/net"
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return str(root)


def test_own_addresses(tmp_path: t.Any) -> None:
    root = host(tmp_path, {"fib_trie": FIB_TRIE, "if_inet6": IF_INET6})
    assert local_addresses(root) == {"172.17.0.1", "127.0.0.1", "::1", "fd00:17::1"}
    assert local_addresses(root + "/nowhere") == frozenset()


def number(address: str) -> str:
    """An address as this machine's kernel prints it."""
    return "%08X" % int.from_bytes(ipaddress.IPv4Address(address).packed, sys.byteorder)


def test_all_routes(tmp_path: t.Any) -> None:
    lines = ["Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask"]
    for interface, network, gateway, flags, mask in [
        ("eth0", "0.0.0.0", "203.0.113.254", "0003", "0.0.0.0"),
        ("eth0", "203.0.113.0", "0.0.0.0", "0001", "255.255.255.0"),
        ("*", "192.0.2.0", "0.0.0.0", "0200", "255.255.255.0"),
        ("eth1", "198.51.100.0", "0.0.0.0", "0000", "255.255.255.0"),
    ]:
        lines.append("\t".join([interface, number(network), number(gateway), flags, "0", "0", "0", number(mask)]))
    any_six = "0" * 32
    six = [
        ("fd000017000000000000000000000000", "40", any_six, "00000001", "docker0"),
        (any_six, "00", "fe800000000000000000000000000001", "00000003", "eth0"),
        (any_six, "00", any_six, "00200200", "lo"),
        ("fd000017000000000000000000000001", "80", any_six, "80200001", "lo"),
    ]
    texts = ["%s %s %s 00 %s 00000100 00000001 00000000 %s %8s\n" % (a, b, any_six, c, d, e) for a, b, c, d, e in six]
    root = host(tmp_path, {"route": "\n".join([*lines, "short", ""]), "ipv6_route": "".join([*texts, "short\n"])})
    assert {(str(network), interface) for network, interface in all_routes(root)} == {
        ("0.0.0.0/0", "eth0"),
        ("203.0.113.0/24", "eth0"),
        ("fd00:17::/64", "docker0"),
        ("::/0", "eth0"),
    }
    assert all_routes(root + "/nowhere") == []
