# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the walk says of a packet is what the kernel does with it: the same verdict, by the rule whose counter moved.

Rules by chance are loaded, packets by chance are sent through a host with two ways out and two bridges. A packet is
new, or of a connection that was there before: published by DNAT, masqueraded, bridged, not tracked, or of none at all.

QUAYWALL_WALK_PAIRS says how many packets (400), QUAYWALL_WALK_SEED where chance starts; a failure tells its own seed.
"""

from __future__ import annotations

import ipaddress
import itertools
import os
import random
import re
import socket
import struct
import time
import typing as t
from contextlib import ExitStack

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._audit._cover import Coverage
from ansible_collections.quaywall.docker.plugins.module_utils._chain import Chain, parse_dump
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import Intervals, join, of_network, overlaps
from ansible_collections.quaywall.docker.plugins.module_utils._walk import (
    ANY_PORT,
    DESTINATION,
    PEER,
    SOURCE,
    Flow,
    Outcome,
    Program,
)

from .lab import IPV4, IPV6, LEGACY, NFT, Host, load, save

if t.TYPE_CHECKING:
    from collections.abc import Iterator

PAIRS = int(os.environ.get("QUAYWALL_WALK_PAIRS") or 400)
SEED = int(os.environ.get("QUAYWALL_WALK_SEED") or 1)

#: How much of it is asked of which kernel.
SHARES = {(NFT, IPV4): 0.55, (LEGACY, IPV4): 0.15, (NFT, IPV6): 0.2, (LEGACY, IPV6): 0.1}
PACKETS_FOR_RULES = 12
#: Seconds until a packet must have come through.
PATIENCE = 5.0

# The network ---------------------------------------------------------------------------------------------------------


class Port(t.NamedTuple):
    """A way to the host: its interface there, and the one that packets are read by. ``number`` is in its addresses."""

    name: str
    number: int
    master: str = ""

    @property
    def interface(self) -> str:
        """By which iptables knows it."""
        return self.master or self.name

    @property
    def outer(self) -> str:
        return "w-" + self.name

    def hardware(self, inner: bool) -> str:
        return "02:00:00:00:%02x:%02x" % (inner, self.number)


OUTSIDE, FAR = Port("eth0", 1), Port("eth1", 2)
ONE, TWO, OTHER = Port("one", 3, "br-a"), Port("two", 4, "br-a"), Port("other", 5, "br-b")
PORTS = (OUTSIDE, FAR, ONE, TWO, OTHER)
_BRIDGES = {"br-a": 0x10, "br-b": 0x11}

GATEWAYS = {
    IPV4: {"eth0": "203.0.113.1/24", "eth1": "198.51.100.1/24", "br-a": "172.17.0.1/16", "br-b": "172.18.0.1/16"},
    IPV6: {"eth0": "2001:db8:1::1/64", "eth1": "2001:db8:2::1/64", "br-a": "fd00:a::1/64", "br-b": "fd00:b::1/64"},
}
#: Who is where. The last two addresses outside are not tracked and marked.
ADDRESSES = {
    IPV4: {
        OUTSIDE: ("203.0.113.10", "203.0.113.66", "203.0.113.130", "203.0.113.77", "203.0.113.88"),
        FAR: ("198.51.100.7", "198.51.100.9"),
        ONE: ("172.17.0.2",),
        TWO: ("172.17.0.3",),
        OTHER: ("172.18.0.2",),
    },
    IPV6: {
        OUTSIDE: ("2001:db8:1::10", "2001:db8:1::66", "2001:db8:1::130", "2001:db8:1::77", "2001:db8:1::88"),
        FAR: ("2001:db8:2::7", "2001:db8:2::9"),
        ONE: ("fd00:a::2",),
        TWO: ("fd00:a::3",),
        OTHER: ("fd00:b::2",),
    },
}
UNTRACKED = {IPV4: "203.0.113.77", IPV6: "2001:db8:1::77"}
MARKED = {IPV4: "203.0.113.88", IPV6: "2001:db8:1::88"}
#: Host port, container, its port.
PUBLISHED = ((9000, ONE, 8080), (8080, TWO, 8080), (53, OTHER, 53), (9001, ONE, 443))


class Network:
    """A host between all of them. Who they are is made up frame by frame: nobody answers by themselves."""

    def __init__(self, stack: ExitStack, variant: str, family: str) -> None:
        self.variant, self.family = variant, family
        self.host, self.world = stack.enter_context(Host()), stack.enter_context(Host())
        self._interfaces()
        self._tables()
        self._sockets = {port: stack.enter_context(self.world.call(_open, port.outer)) for port in PORTS}
        #: The next port of a packet's sender: no other packet has it.
        self.next_port = 10000
        self._tokens = itertools.count(1)
        #: Packets that were read, by their tokens: where, and what.
        self.arrived: dict[int, Port] = {}
        self.frames: dict[int, bytes] = {}

    def _interfaces(self) -> None:
        self.world.sysctl("ipv6/conf/default/disable_ipv6", "1")
        for name, value in (
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("bridge/bridge-nf-call-iptables", "1"),
            ("bridge/bridge-nf-call-ip6tables", "1"),
            ("netfilter/nf_conntrack_tcp_be_liberal", "1"),
        ):
            self.host.sysctl(name, value)
        lines = [
            "link add %s address 02:00:00:00:00:%02x type bridge mcast_snooping 0" % item for item in _BRIDGES.items()
        ]
        for port in PORTS:
            lines.append(
                "link add %s address %s type veth peer name %s address %s netns %s"
                % (port.name, port.hardware(True), port.outer, port.hardware(False), self.world.network)
            )
            # A bridge's own ports have no addresses that could be heard of.
            lines.append(
                "link set %s %s up" % (port.name, "master %s addrgenmode none" % port.master if port.master else "")
            )
        for family, gateways in GATEWAYS.items():
            for name, address in gateways.items():
                lines.append("link set %s up" % name)
                lines.append("addr add %s dev %s%s" % (address, name, " nodad" if family == IPV6 else ""))
            for port, addresses in ADDRESSES[family].items():
                lines += [
                    "neigh replace %s lladdr %s dev %s nud permanent" % (item, port.hardware(False), port.interface)
                    for item in addresses
                ]
        self.host.ip("".join(line + "\n" for line in lines))
        self.world.ip("".join("link set %s up\n" % port.outer for port in PORTS))
        for port in PORTS:
            if port.master:
                self.host.run("bridge", "fdb", "replace", port.hardware(False), "dev", port.name, "master", "static")

    def _tables(self) -> None:
        """DNAT and masquerading as Docker's, and packets that are not tracked or come with a mark."""
        own = GATEWAYS[self.family]["eth0"].partition("/")[0]
        lines = ["*nat", ":PREROUTING ACCEPT", ":POSTROUTING ACCEPT"]
        for number, port, inner in PUBLISHED:
            address = ADDRESSES[self.family][port][0]
            lines += [
                "-A PREROUTING -d %s -p %s --dport %d -j DNAT --to-destination %s:%d"
                % (own, protocol, number, "[%s]" % address if self.family == IPV6 else address, inner)
                for protocol in ("tcp", "udp")
            ]
        lines += ["-A POSTROUTING -o eth+ -s %s -j MASQUERADE" % ADDRESSES[self.family][port][0] for port in _INNER]
        lines += [
            "COMMIT",
            "*raw",
            ":PREROUTING ACCEPT",
            "-A PREROUTING -s %s -j CT --notrack" % UNTRACKED[self.family],
        ]
        lines += ["COMMIT", "*mangle", ":PREROUTING ACCEPT"]
        lines += ["-A PREROUTING -s %s -j MARK --set-mark 0x1" % MARKED[self.family], "COMMIT", ""]
        load(self.host, self.variant, self.family, "\n".join(lines))
        for name, kind, entries in SETS[self.family]:
            self.host.run("ipset", "create", name, kind, "family", "inet" if self.family == IPV4 else "inet6")
            for entry in entries:
                self.host.run("ipset", "add", name, entry)

    def load(self, policy: str, rules: t.Mapping[str, t.Sequence[str]]) -> None:
        heads = [":FORWARD %s [0:0]" % policy] + [":%s - [0:0]" % name for name in rules if name != "FORWARD"]
        body = ["-A %s %s" % (name, line) for name, lines in rules.items() for line in lines]
        load(self.host, self.variant, self.family, "\n".join(["*filter", *heads, *body, "COMMIT", ""]))

    def chains(self) -> dict[str, Chain]:
        """With counters."""
        dump = save(self.host, self.variant, self.family, "-c").decode()
        return dict(parse_dump(dump, self.family).tables["filter"].chains)

    def send(self, port: Port, packet: Packet, to: str) -> int:
        """Send from where a port leads to, to a hardware address; the packet's token."""
        token = next(self._tokens)
        kind = 0x0800 if self.family == IPV4 else 0x86DD
        frame = bytes.fromhex((to + port.hardware(False)).replace(":", "")) + struct.pack("!H", kind)
        self._sockets[port].send(frame + packet.render(self.family, token))
        return token

    def arrives(self, token: int, patience: float) -> Port | None:
        """Where a packet came out."""
        deadline = time.monotonic() + patience
        while True:
            for port, opened in self._sockets.items():
                for data in _received(opened):
                    found = _TOKEN.search(data)
                    if found is not None:
                        self.arrived[int(found.group(1), 16)] = port
                        self.frames[int(found.group(1), 16)] = data
            if token in self.arrived or time.monotonic() > deadline:
                return self.arrived.get(token)
            time.sleep(0.001)


_INNER = (ONE, TWO, OTHER)
_TOKEN = re.compile(rb"token ([0-9a-f]{8})")
_PACKET_OUTGOING = 4


def _open(interface: str) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    made.bind((interface, 0))
    made.setblocking(False)
    return made


def _received(opened: socket.socket) -> Iterator[bytes]:
    while True:
        try:
            data, sender = opened.recvfrom(2000)
        except BlockingIOError:
            return
        # An ICMP error holds what it is about; it is no packet that came through.
        six = data[12:14] == b"\x86\xdd"
        first, last, number = _ECHO[IPV6 if six else IPV4]
        protocol, kind = data[20 if six else 23], data[54 if six else 34] if len(data) > 54 else 0
        echo = protocol == number and kind in (first, last)
        if sender[2] != _PACKET_OUTGOING and (protocol in _PROTOCOLS.values() or echo):
            yield data


# Packets -------------------------------------------------------------------------------------------------------------

_FLAGS = {"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16, "URG": 32}
_PROTOCOLS = {"tcp": 6, "udp": 17}
#: An echo request's and reply's type, and the protocol's number.
_ECHO = {IPV4: (8, 0, 1), IPV6: (128, 129, 58)}


def _sum(data: bytes) -> int:
    total = sum(struct.unpack("!%dH" % (len(data + b"\0") // 2), data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Packet(t.NamedTuple):
    """A packet as it is sent."""

    source: str
    destination: str
    protocol: str
    source_port: int
    destination_port: int
    flags: frozenset[str] = frozenset()

    def render(self, family: str, token: int) -> bytes:
        payload = b"token %08x" % token
        number = _PROTOCOLS.get(self.protocol, _ECHO[family][2])
        ends = ipaddress.ip_address(self.source).packed + ipaddress.ip_address(self.destination).packed
        ports = struct.pack("!HH", self.source_port, self.destination_port)
        if self.protocol == "icmp":
            # Its number is the client's port, which is the source of what is asked.
            kind = _ECHO[family]["answer" in self.flags]
            asked = self.destination_port if "answer" in self.flags else self.source_port
            data = struct.pack("!BBHHH", kind, 0, 0, asked, 1) + payload
            pseudo = ends + struct.pack("!II", len(data), number) if family == IPV6 else b""
            data = data[:2] + struct.pack("!H", _sum(pseudo + data)) + data[4:]
            return self._outer(family, token, number, ends) + data
        if self.protocol == "udp":
            head, tail = ports + struct.pack("!H", 8 + len(payload)), payload
        else:
            flags = sum(_FLAGS[flag] for flag in self.flags)
            head, tail = ports + struct.pack("!IIBBH", 1000, 1000, 0x50, flags, 60000), b"\0\0" + payload
        length = len(head) + 2 + len(tail)
        pseudo = ends + struct.pack("!II", length, number)
        check = _sum(pseudo + head + b"\0\0" + tail) or 0xFFFF
        return self._outer(family, token, number, ends, length) + head + struct.pack("!H", check) + tail

    @staticmethod
    def _outer(family: str, token: int, number: int, ends: bytes, length: int = 22) -> bytes:
        if family == IPV6:
            return struct.pack("!IHBB", 6 << 28, length, number, 60) + ends
        outer = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, token & 0xFFFF, 0, 60, number, 0) + ends
        return outer[:10] + struct.pack("!H", _sum(outer)) + outer[12:]


class Way(t.NamedTuple):
    """A connection that somebody opens. ``target`` is where the first packet is sent to, if that is translated."""

    protocol: str
    client: Port
    client_address: str
    client_port: int
    server: Port
    server_address: str
    server_port: int
    target: tuple[str, int] | None = None
    #: The host's address, where the client is behind it.
    masked: str = ""

    def first(self, flags: str = "SYN") -> Packet:
        address, port = self.target or (self.server_address, self.server_port)
        return Packet(self.client_address, address, self.protocol, self.client_port, port, _flags(flags))

    def reply(self, flags: str = "SYN,ACK") -> Packet:
        if self.protocol == "icmp":
            flags = "answer"
        address = self.masked or self.client_address
        return Packet(self.server_address, address, self.protocol, self.server_port, self.client_port, _flags(flags))


def _flags(text: str) -> frozenset[str]:
    return frozenset(text.split(","))


class Shot(t.NamedTuple):
    """A packet of a connection, what was sent before it (and let through), and what FORWARD sees of it."""

    way: Way
    before: tuple[str, ...]
    #: "first" or "reply", and its flags.
    what: str
    flags: str
    states: frozenset[str]

    @property
    def replies(self) -> bool:
        return self.what == "reply"

    def ends(self) -> tuple[Port, Port]:
        return (self.way.server, self.way.client) if self.replies else (self.way.client, self.way.server)

    def bridged(self) -> bool:
        """To another one on the same bridge: br_netfilter bridges also what it has translated itself."""
        return bool(self.way.client.master) and self.way.client.master == self.way.server.master

    def flow(self, family: str, peer: str) -> Flow:
        """All packets like it, of any peer."""
        way = self.way
        client, server = _one(way.client_address), _one(way.server_address)
        target, target_port = way.target or (way.server_address, way.server_port)
        client_ports, server_ports = (way.client_port, way.client_port), (way.server_port, way.server_port)
        asked_ports, icmp_type = (target_port, target_port), None
        if way.protocol == "icmp":
            client_ports = server_ports = asked_ports = ANY_PORT
            icmp_type = _ECHO[family][self.replies]
        seen = "SNAT" in self.states
        original: list[t.Any] = [client, _one(target)]
        reply: list[t.Any] = [server, _one(way.masked) if seen else client]
        client_is_peer = (peer == SOURCE) != self.replies
        if client_is_peer:
            original[0] = PEER
            reply[1] = reply[1] if seen else PEER
        else:
            reply[0] = PEER
            original[1] = original[1] if way.target else PEER
        into, out = self.ends()
        return Flow(
            family=family,
            peer=peer,
            protocol="ipv6-icmp" if (way.protocol, family) == ("icmp", IPV6) else way.protocol,
            in_interface=into.interface,
            out_interface=out.interface,
            address=server if client_is_peer else client,
            source_ports=server_ports if self.replies else client_ports,
            destination_ports=client_ports if self.replies else server_ports,
            states=self.states,
            direction="REPLY" if self.replies else "ORIGINAL",
            original=(original[0], original[1]),
            original_ports=(client_ports, asked_ports),
            reply=(reply[0], reply[1]),
            reply_ports=(server_ports, client_ports),
            flags=(_flags(self.flags),),
            mark=int((way.server_address if self.replies else way.client_address) == MARKED[family]),
            bridged=self.bridged(),
            icmp_type=icmp_type,
            bridge_port=bool(into.master),
        )

    def peer(self, peer: str) -> Intervals:
        client_is_peer = (peer == SOURCE) != self.replies
        return _one(self.way.client_address if client_is_peer else self.way.server_address)


def _one(address: str) -> Intervals:
    number = int(ipaddress.ip_address(address))
    return ((number, number),)


def fire(network: Network, shot: Shot, what: str, flags: str) -> int:
    """Send one of a connection's packets."""
    way = shot.way
    packet = way.reply(flags) if what == "reply" else way.first(flags)
    sender, receiver = (way.server, way.client) if what == "reply" else (way.client, way.server)
    if shot.bridged() and (what == "reply" or way.target is None):
        return network.send(sender, packet, receiver.hardware(False))
    bridge = sender.master
    return network.send(sender, packet, "02:00:00:00:00:%02x" % _BRIDGES[bridge] if bridge else sender.hardware(True))


# By chance -----------------------------------------------------------------------------------------------------------


def a_way(chance: random.Random, network: Network) -> Way:
    addresses = ADDRESSES[network.family]
    network.next_port += 1
    protocol, port = chance.choice(("tcp", "udp")), network.next_port
    kind = chance.choice(("published", "published", "direct", "outgoing", "neighbour", "across", "inner"))
    outside = chance.choice((OUTSIDE, OUTSIDE, FAR))
    if chance.random() < 0.1:
        protocol, kind = "icmp", chance.choice(("direct", "outgoing", "neighbour", "across"))
    if kind in ("published", "inner"):
        number, server, inner = chance.choice(PUBLISHED)
        client = chance.choice([item for item in _INNER if item != server]) if kind == "inner" else outside
        own = GATEWAYS[network.family]["eth0"].partition("/")[0]
        source = chance.choice([item for item in addresses[client] if item != UNTRACKED[network.family]])
        return Way(protocol, client, source, port, server, addresses[server][0], inner, (own, number))
    ends = {
        "direct": (outside, chance.choice(_INNER)),
        "outgoing": (chance.choice(_INNER), outside),
        "neighbour": (ONE, TWO),
        "across": chance.choice(((ONE, OTHER), (OTHER, TWO))),
    }
    client, server = ends[kind]
    masked = GATEWAYS[network.family][outside.name].partition("/")[0] if kind == "outgoing" else ""
    source, target = chance.choice(addresses[client]), chance.choice(addresses[server])
    return Way(protocol, client, source, port, server, target, chance.choice((80, 443, 8080, 53)), None, masked)


def a_shot(chance: random.Random, network: Network) -> Shot:
    way = a_way(chance, network)
    translated = ["DNAT"] if way.target else []
    if UNTRACKED[network.family] in (way.client_address, way.server_address):
        # Answers to it are of no connection that was seen, so they are new ones; here only it asks.
        if way.client_address != UNTRACKED[network.family]:
            return a_shot(chance, network)
        return Shot(way, (), "first", chance.choice(("SYN", "ACK")), frozenset(("UNTRACKED",)))
    kind = chance.choice(("new", "new", "again", "reply", "known", "known reply", "invalid"))
    if kind == "invalid":
        if way.protocol != "tcp" or way.target:
            return a_shot(chance, network)
        return Shot(way, (), "first", chance.choice(("FIN,ACK", "RST", "URG")), frozenset(("INVALID",)))
    if kind == "new":
        # A segment from the middle of a connection is picked up (nf_conntrack_tcp_loose).
        flags = chance.choice(("SYN", "SYN", "ACK"))
        return Shot(way, (), "first", flags, frozenset(("NEW", *translated)))
    if kind == "again":
        return Shot(way, ("first",), "first", "SYN", frozenset(("NEW", *translated, *(["SNAT"] if way.masked else []))))
    translated += ["SNAT"] if way.masked else []
    states = frozenset(("ESTABLISHED", *translated))
    if kind == "reply":
        return Shot(way, ("first",), "reply", "SYN,ACK", states)
    flags = chance.choice(("ACK", "PSH,ACK", "FIN,ACK"))
    return Shot(way, ("first", "reply"), "reply" if kind == "known reply" else "first", flags, states)


#: Sets, with their kind. The last one holds pairs, which the walk does not know.
SETS = {
    IPV4: (
        ("few", "hash:ip", ("203.0.113.10", "172.17.0.2", "198.51.100.9")),
        ("nets", "hash:net", ("203.0.113.64/26", "172.18.0.0/16")),
        ("pairs", "hash:ip,port", ("203.0.113.10,tcp:8080", "172.17.0.3,udp:8080")),
    ),
    IPV6: (
        ("few", "hash:ip", ("2001:db8:1::10", "fd00:a::2", "2001:db8:2::9")),
        ("nets", "hash:net", ("2001:db8:1::/120", "fd00:b::/64")),
        ("pairs", "hash:ip,port", ("2001:db8:1::10,tcp:8080", "fd00:a::3,udp:8080")),
    ),
}


class Rules:
    """Rules by chance, out of what the walk reads and some that it does not."""

    def __init__(self, chance: random.Random, family: str) -> None:
        self.chance, self.family = chance, family
        self.addresses = [item for items in ADDRESSES[family].values() for item in items]
        self.own = GATEWAYS[family]["eth0"].partition("/")[0]

    def _maybe_not(self, text: str) -> str:
        return "! " + text if self.chance.random() < 0.25 else text

    def _network(self) -> str:
        lengths = (32, 32, 26, 24, 16, 8) if self.family == IPV4 else (128, 128, 124, 64, 32)
        return "%s/%d" % (self.chance.choice(self.addresses), self.chance.choice(lengths))

    def _ports(self) -> str:
        return self.chance.choice(("8080", "443", "80:443", "53", "1024:", ":1023", "20000:", "9000:9001"))

    def _protocol(self) -> tuple[str, str]:
        protocol = self.chance.choice(("tcp", "udp"))
        kind = self.chance.randrange(7)
        if kind == 0:
            return "", ""
        if kind == 6:
            types = ("8", "0", "3", "any") if self.family == IPV4 else ("128", "129", "1")
            name, option = ("icmp", "--icmp-type") if self.family == IPV4 else ("ipv6-icmp", "--icmpv6-type")
            module = "icmp" if self.family == IPV4 else "icmp6"
            return "-p %s -m %s %s" % (name, module, self._maybe_not("%s %s" % (option, self.chance.choice(types)))), ""
        if kind == 1:
            return self._maybe_not(
                "-p " + self.chance.choice((protocol, "icmp" if self.family == IPV4 else "ipv6-icmp"))
            ), ""
        if kind == 2:
            ports = ",".join(self.chance.sample(("8080", "443", "80", "53", "9000", "20000:40000"), 2))
            option = self._maybe_not("--%s %s" % (self.chance.choice(("dports", "dports", "sports", "ports")), ports))
            return "-p %s -m multiport %s" % (protocol, option), protocol
        if kind == 3:
            flags = self.chance.choice(("FIN,SYN,RST,ACK SYN", "SYN,ACK ACK", "FIN,RST NONE", "ALL ACK"))
            return "-p tcp -m tcp " + self._maybe_not("--tcp-flags " + flags), "tcp"
        option = self.chance.choice(("--dport", "--dport", "--sport"))
        return "-p %s -m %s %s" % (protocol, protocol, self._maybe_not("%s %s" % (option, self._ports()))), protocol

    def _conntrack(self) -> str:
        states = ",".join(
            self.chance.sample(("NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED", "DNAT", "SNAT"), 2)
        )
        options = {
            "--ctstate": self.chance.choice(("NEW", "DNAT", "INVALID", "RELATED,ESTABLISHED", states)),
            "--ctproto": self.chance.choice(("tcp", "udp")),
            "--ctorigsrc": self._network(),
            "--ctorigdst": self.chance.choice((self.own, self._network())),
            "--ctreplsrc": self._network(),
            "--ctrepldst": self.chance.choice((self.own, self._network())),
            "--ctorigsrcport": self._ports(),
            "--ctorigdstport": self.chance.choice(("9000", "8080", "53", "9000:9001")),
            "--ctreplsrcport": self._ports(),
            "--ctrepldstport": self._ports(),
            "--ctstatus": self.chance.choice(("SEEN_REPLY", "CONFIRMED", "ASSURED")),
        }
        chosen = self.chance.sample(sorted(options), self.chance.choice((1, 1, 2)))
        words = [self._maybe_not("%s %s" % (name, options[name])) for name in chosen]
        if self.chance.random() < 0.3:
            words.append("--ctdir " + self.chance.choice(("ORIGINAL", "REPLY")))
        return "-m conntrack " + " ".join(words)

    def _match(self) -> str:
        """One match; conntrack's is what matters most."""
        chance = self.chance
        kind = chance.random()
        if kind < 0.35:
            return self._conntrack() if kind > 0.03 else self._unknown()
        low, high = sorted((ipaddress.ip_address(item) for item in chance.sample(self.addresses, 2)), key=int)
        end = chance.choice(("src", "dst"))
        module, option = chance.choice(
            (
                ("state", "--state " + chance.choice(("NEW", "ESTABLISHED", "INVALID,NEW"))),
                ("iprange", "--%s-range %s-%s" % (end, low, high)),
                ("set", "--match-set %s %s" % (chance.choice(("few", "nets")), end)),
                ("addrtype", "--%s-type %s" % (end, chance.choice(("LOCAL", "UNICAST", "UNICAST,LOCAL", "MULTICAST")))),
                ("mark", "--mark " + chance.choice(("0x1", "0x0/0x1", "0x2/0x2"))),
                ("physdev", chance.choice(("--physdev-is-bridged", "--physdev-is-in", "--physdev-is-out"))),
                ("comment", '--comment "a rule"'),
            )
        )
        more = chance.choice(("", "", " --limit-iface-in", " --limit-iface-out")) if module == "addrtype" else ""
        return "-m %s %s%s" % (module, option if module == "comment" else self._maybe_not(option), more)

    def _unknown(self) -> str:
        return self.chance.choice(
            (
                "-m limit --limit 1/hour --limit-burst 1",
                "-m set --match-set pairs src,dst",
                "-m set ! --match-set pairs dst,dst",
                "-m length --length 0:50",
                "-m statistic --mode nth --every 2 --packet 0",
                "-m connmark --mark 0x0",
                "-m physdev --physdev-in one",
                "-m physdev ! --physdev-in two",
            )
        )

    def _rule(self, later: t.Sequence[str]) -> str:
        chance = self.chance
        words = []
        if chance.random() < 0.35:
            words.append(self._maybe_not("%s %s" % (chance.choice(("-s", "-d")), self._network())))
        if chance.random() < 0.25:
            names = ("eth0", "eth1", "br-a", "br-b", "eth+", "br+", "e+")
            words.append(self._maybe_not("%s %s" % (chance.choice(("-i", "-o")), chance.choice(names))))
        protocol, only = self._protocol() if chance.random() < 0.5 else ("", "")
        words.append(protocol)
        if self.family == IPV4 and chance.random() < 0.03:
            words.append(self._maybe_not("-f"))
        words += [self._match() for _number in range(chance.choice((0, 1, 1, 1, 2)))]
        words.append(self._target(later, only))
        return " ".join(word for word in words if word)

    def _target(self, later: t.Sequence[str], protocol: str) -> str:
        jumps = ["-j " + name for name in later] + ["-g " + name for name in later]
        reset = " --reject-with tcp-reset" if protocol == "tcp" else ""
        plain = ["-j ACCEPT", "-j DROP", "-j REJECT", "-j REJECT" + reset, "-j RETURN"]
        others = (
            "",
            "-j LOG",
            "-j MARK --set-xmark 0x1/0x1",
            "-j MARK --set-mark 0x2",
            "-j MARK --set-xmark 0x3/0x2",
            "-j CONNMARK --save-mark",
            "-j CONNMARK --restore-mark",
        )
        return self.chance.choice((*plain, *jumps, self.chance.choice(others), self.chance.choice(others)))

    def make(self) -> dict[str, list[str]]:
        names = ("FORWARD", "A", "B", "C", "DOCKER-USER")
        rules = {}
        for index, name in enumerate(names):
            rules[name] = [self._rule(names[index + 1 :]) for _number in range(self.chance.randrange(2, 9))]
            if self.chance.random() < 0.3:
                # A list, as those who ban leave it; sometimes long enough for the walk to read it in another way.
                end, some = self.chance.choice(("-s", "-d")), self.chance.choice((3, 12))
                targets = self.chance.choice((("DROP",), ("DROP", "ACCEPT"), ("RETURN", "REJECT")))
                rules[name][1:1] = [
                    "%s %s -j %s" % (end, self._network(), self.chance.choice(targets)) for _number in range(some)
                ]
        return rules


# What happened -------------------------------------------------------------------------------------------------------

_DECIDES = ("ACCEPT", "DROP", "REJECT")


def moved(before: dict[str, Chain], after: dict[str, Chain]) -> list[tuple[str, int, str]]:
    """The rules whose counters moved, with their targets."""
    found = []
    for name, chain in after.items():
        for index, (old, new) in enumerate(zip(before[name].rules, chain.rules, strict=True)):
            if old.counters != new.counters:
                found.append((name, index + 1, new.target or ""))
    return found


def decided(network: Network, before: dict[str, Chain], token: int) -> tuple[t.Any, dict[str, Chain], list[t.Any]]:
    """Verdict, chain and position: of the rule that moved, or the policy if none of those that decide did."""
    deadline = time.monotonic() + PATIENCE
    while True:
        after = network.chains()
        found = moved(before, after)
        ends = [item for item in found if item[2] in _DECIDES]
        if len(ends) == 1:
            return (ends[0][2], *ends[0][:2]), after, found
        assert not ends, found
        policy, last = after["FORWARD"], before["FORWARD"]
        if policy.counters != last.counters:
            return (policy.policy, None, None), after, found
        assert time.monotonic() < deadline, (token, found)
        time.sleep(0.002)


def told(outcomes: list[Outcome], peer: Intervals) -> list[tuple[t.Any, ...]]:
    return [(item.verdict, item.site, item.reasons) for item in outcomes if overlaps(item.peers, peer)]


def agrees(said: list[tuple[t.Any, ...]], end: tuple[t.Any, ...]) -> bool:
    """One certain answer that is right, or possible ones of which one is."""
    verdict, chain, position = end
    right = [
        item
        for item in said
        if item[0] == verdict
        and (item[1] is None) == (chain is None)
        and (item[1] is None or (item[1].chain == chain and item[1].position <= position <= item[1].last))
    ]
    return bool(right) and (len(said) == 1 or all(item[2] for item in said))


def story(
    seed: int, flow: Flow, shot: Shot, said: t.Any, end: t.Any, path: list[t.Any], chains: t.Mapping[str, Chain]
) -> str:
    """All that a person needs to make a case of it."""
    read = ["%s %d: %s" % (name, place, chains[name].rules[place - 1].render()) for name, place, _target in path]
    rules = [
        "%s %d: %s" % (chain.name, place, rule.render())
        for chain in chains.values()
        for place, rule in enumerate(chain.rules, 1)
    ]
    head = [
        "QUAYWALL_WALK_SEED=%d" % seed,
        "sent: %s" % (shot,),
        "flow: %s" % (flow,),
        "the walk says: %s" % (said,),
        "the kernel did: %s, having read" % (end,),
    ]
    return "\n".join([*head, *read, "of", *rules])


@pytest.fixture(scope="module", params=SHARES, ids="-".join)
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    with ExitStack() as stack:
        yield Network(stack, *request.param)


def test_the_kernel_does_as_the_walk_says(network: Network) -> None:
    variant, family = network.variant, network.family
    wanted = max(1, int(PAIRS * SHARES[variant, family]))
    sets = {
        name: join(piece for entry in entries for piece in of_network(entry))
        for name, kind, entries in SETS[family]
        if kind != "hash:ip,port"
    }
    certain = pairs = dead = 0
    for seed in itertools.count(SEED):
        if pairs >= wanted:
            break
        chance = random.Random("%s %s %d" % (variant, family, seed))
        network.next_port = 20000 + seed * 50 % 40000
        shots = [a_shot(chance, network) for _number in range(min(PACKETS_FOR_RULES, wanted - pairs))]
        rules, policy = Rules(chance, family).make(), chance.choice(("ACCEPT", "DROP"))
        network.load("ACCEPT", {"FORWARD": []})
        for shot in shots:
            for what in shot.before:
                token = fire(network, shot, what, "SYN,ACK" if what == "reply" else "SYN")
                assert network.arrives(token, PATIENCE) is not None, (seed, shot, what)
        network.load(policy, rules)
        before = network.chains()
        program = Program(before, family, sets)
        # What the audit says of rules that nothing reaches is the walk's, asked for all packets at once.
        coverage = Coverage(family, before, ["FORWARD"], list(before))
        unread = {item.site[:2] for item in coverage.dead(lambda rule: True, lambda item: False)}
        dropped = []
        for shot in shots:
            token = fire(network, shot, shot.what, shot.flags)
            end, before, path = decided(network, before, token)
            pairs += 1
            assert not unread & {place[:2] for place in path}, (seed, shot, unread, path)
            dead += len(unread)
            for peer in (SOURCE, DESTINATION):
                said = told(program.walk("FORWARD", shot.flow(family, peer)), shot.peer(peer))
                assert not unread & {item[1][:2] for item in said if item[1] is not None and item[1][1] == item[1][2]}
                certain += len(said) == 1
                if not agrees(said, end):
                    pytest.fail(story(seed, shot.flow(family, peer), shot, said, end, path, before))
            if end[0] == "ACCEPT":
                assert network.arrives(token, PATIENCE) == shot.ends()[1], (seed, shot)
            else:
                dropped.append(token)
        network.arrives(0, 0)
        assert not set(dropped) & set(network.arrived), (seed, dropped)
    # Most of what is asked is not left open: the walk must not agree by saying that all may be.
    print("%d packets, %d of %d answers certain" % (pairs, certain, 2 * pairs))
    assert pairs < 50 or certain > 2 * pairs * 0.7
    assert pairs < 50 or dead


# Cases ---------------------------------------------------------------------------------------------------------------


def way_to(network: Network, client: Port, server: Port, published: int = 0) -> Way:
    """From the first address of a port to another's port 8080; ``published`` is the host's port that is asked."""
    addresses, own = ADDRESSES[network.family], GATEWAYS[network.family]["eth0"].partition("/")[0]
    network.next_port += 1
    target = (own, published) if published else None
    return Way("tcp", client, addresses[client][0], network.next_port, server, addresses[server][0], 8080, target)


def shot_at(network: Network, kind: str) -> Shot:
    inbound = way_to(network, OUTSIDE, ONE, 9000)
    direct = way_to(network, OUTSIDE, ONE)
    hairpin = way_to(network, ONE, TWO, 8080)
    new, known = frozenset(("NEW", "DNAT")), frozenset(("ESTABLISHED", "DNAT"))
    return {
        "inbound": Shot(inbound, (), "first", "SYN", new),
        "answer": Shot(inbound, ("first",), "reply", "SYN,ACK", known),
        "direct": Shot(direct, (), "first", "SYN", frozenset(("NEW",))),
        "of no connection": Shot(direct, (), "first", "FIN,ACK", frozenset(("INVALID",))),
        "not tracked": Shot(
            direct._replace(client_address=UNTRACKED[network.family]), (), "first", "SYN", frozenset(("UNTRACKED",))
        ),
        "by the host's port on one bridge": Shot(hairpin, (), "first", "SYN", new),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "rules", "expected"),
    [
        # Where there is no connection, only --ctstate is looked at.
        ("of no connection", ["-m conntrack --ctorigdstport 8080 -j DROP", "-j REJECT"], ("REJECT", 2)),
        ("of no connection", ["-m conntrack --ctstate INVALID --ctorigdstport 1 -j REJECT"], ("REJECT", 1)),
        ("not tracked", ["-m conntrack ! --ctorigdstport 1 -j DROP", "-j REJECT"], ("REJECT", 2)),
        ("not tracked", ["-m conntrack ! --ctstate NEW ! --ctorigdstport 8080 -j REJECT"], ("REJECT", 1)),
        # What br_netfilter translates and what stays on its bridge is bridged.
        ("by the host's port on one bridge", ["-m physdev --physdev-is-bridged -j REJECT"], ("REJECT", 1)),
        ("inbound", ["-m physdev --physdev-is-bridged -j DROP", "-j REJECT"], ("REJECT", 2)),
        ("by the host's port on one bridge", ["-m physdev --physdev-is-in --physdev-is-out -j REJECT"], ("REJECT", 1)),
        ("inbound", ["-m physdev --physdev-is-in -j DROP", "-m physdev ! --physdev-is-out -j REJECT"], ("REJECT", 2)),
        ("inbound", ["-m physdev --physdev-in one -j DROP", "-m physdev ! --physdev-in one -j REJECT"], ("REJECT", 2)),
        ("answer", ["-m physdev ! --physdev-is-in -j DROP", "-m physdev --physdev-is-in -j REJECT"], ("REJECT", 2)),
        ("inbound", ["-m addrtype --dst-type LOCAL -j DROP", "-m addrtype --src-type LOCAL -j DROP"], ("ACCEPT", 0)),
        ("inbound", ["-m conntrack --ctstate DNAT,ESTABLISHED -j REJECT"], ("REJECT", 1)),
        ("inbound", ["-m conntrack ! --ctstate DNAT,ESTABLISHED -j DROP"], ("ACCEPT", 0)),
        ("inbound", ["-p tcp -m multiport ! --dports 9000,443 -j REJECT"], ("REJECT", 1)),
        ("direct", ["-m conntrack --ctstate DNAT -j DROP"], ("ACCEPT", 0)),
        ("direct", ["-m conntrack --ctorigdstport 8080 -j REJECT"], ("REJECT", 1)),
        ("answer", ["-m conntrack --ctstate NEW -j DROP"], ("ACCEPT", 0)),
        ("answer", ["-m conntrack --ctorigdstport 9000 -j REJECT"], ("REJECT", 1)),
        ("answer", ["-m conntrack --ctorigdstport 9000 --ctdir ORIGINAL -j DROP"], ("ACCEPT", 0)),
        ("answer", ["-m conntrack --ctreplsrcport 8080 --ctstate DNAT --ctdir REPLY -j REJECT"], ("REJECT", 1)),
        ("inbound", ["-j RETURN", "-j DROP"], ("ACCEPT", 0)),
        ("inbound", ["-g A", "-j DROP"], ("ACCEPT", 0)),
        ("inbound", ["-j B", "-j REJECT"], ("REJECT", 2)),
        ("inbound", ["-j MARK --set-xmark 0x3/0x2", "-j MARK --set-xmark 0x1/0x0", "-m mark --mark 0x2 -j REJECT"],
         ("REJECT", 3)),
    ],
)  # fmt: skip
def test_a_case(network: Network, kind: str, rules: list[str], expected: tuple[str, int]) -> None:
    judge(network, shot_at(network, kind), {"FORWARD": rules, "A": ["-j RETURN"], "B": ["-g A", "-j DROP"]}, expected)


def test_types_of_addresses(network: Network) -> None:
    """For IPv6 an address must be of all the types that are named, as far as no routing table is asked."""
    expected = ("REJECT", 1) if network.family == IPV4 else ("DROP", 2)
    rules = ["-m addrtype --dst-type UNICAST,LOCAL -j REJECT", "-m addrtype --dst-type UNICAST -j DROP"]
    judge(network, shot_at(network, "direct"), {"FORWARD": rules}, expected)


def judge(network: Network, shot: Shot, rules: t.Mapping[str, t.Sequence[str]], expected: tuple[str, int]) -> None:
    """What the kernel does, and what the walk says of either end: a verdict of FORWARD, and by which rule."""
    network.load("ACCEPT", {"FORWARD": []})
    for what in shot.before:
        assert network.arrives(fire(network, shot, what, "SYN"), PATIENCE) is not None
    network.load("ACCEPT", rules)
    before = network.chains()
    end, after, _path = decided(network, before, fire(network, shot, shot.what, shot.flags))
    assert (end[0], end[2] or 0) == expected
    for peer in (SOURCE, DESTINATION):
        said = told(Program(after, network.family).walk("FORWARD", shot.flow(network.family, peer)), shot.peer(peer))
        assert [(item[0], item[1].position if item[1] else 0, item[2]) for item in said] == [(*expected, ())]


def test_in_the_table_raw_there_is_no_connection(network: Network) -> None:
    """So whoever walks a packet there says INVALID, whatever it is later."""
    variant, family = network.variant, network.family
    before = save(network.host, variant, family, table="raw")
    source = ADDRESSES[family][OUTSIDE][0]
    rules = [
        "-A PREROUTING -s %s -m conntrack --ctstate %s -j ACCEPT\n" % (source, word) for word in ("NEW", "INVALID")
    ]
    network.load("ACCEPT", {"FORWARD": []})
    load(network.host, variant, family, "*raw\n:PREROUTING ACCEPT\n%sCOMMIT\n" % "".join(rules))
    token = fire(network, shot_at(network, "direct"), "first", "SYN")
    assert network.arrives(token, PATIENCE) == ONE
    dump = save(network.host, variant, family, "-c", table="raw").decode()
    chain = parse_dump(dump, family).tables["raw"].chains["PREROUTING"]
    assert [rule.counters is not None and rule.counters[0] for rule in chain.rules] == [0, 1]
    load(network.host, variant, family, before)
