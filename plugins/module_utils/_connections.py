# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Connections that are open when a policy closes the door: the only code that runs C(conntrack).

The chain lets in what belongs to a connection (ESTABLISHED comes first), so a new deny stops new connections only.
Which of the old ones it would have stopped is found by a walk with their first packet (:func:`denied`, pure).
"""

from __future__ import annotations

import errno
import ipaddress
import itertools
import os
import re
import socket
import struct
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._chain import DOCKER_USER
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import (
    Interval,
    Intervals,
    intersect,
    join,
    of_network,
    overlaps,
    subtract,
    union,
)
from ansible_collections.quaywall.docker.plugins.module_utils._iptables import FirewallError
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6
from ansible_collections.quaywall.docker.plugins.module_utils._walk import ANY_PORT, PEER, SOURCE, Flow

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._iptables import Finder, Runner
    from ansible_collections.quaywall.docker.plugins.module_utils._policy import IPNetwork
    from ansible_collections.quaywall.docker.plugins.module_utils._walk import Program

    Route = t.Tuple[IPNetwork, str]

_PROTOCOLS: t.Mapping[str, int] = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": 132}
_FAMILIES: t.Mapping[str, int] = {IPV4: socket.AF_INET, IPV6: socket.AF_INET6}


class Connection(t.NamedTuple):
    """A connection as conntrack has it: where its first packet went, and who answers (behind a DNAT the container)."""

    family: str
    protocol: str
    source: str
    source_port: int
    destination: str
    destination_port: int
    reply_source: str
    reply_source_port: int


# What the kernel has -------------------------------------------------------------------------------------------------

_LINE = re.compile(
    r"(tcp|udp|sctp) .*? src=(\S+) dst=(\S+) sport=(\d+) dport=(\d+) .*?src=(\S+) dst=\S+ sport=(\d+) dport=\d+ (.*)"
)


def parse(text: str, family: str) -> t.List[Connection]:
    """What C(conntrack -L -f FAMILY) printed, as far as it is TCP, UDP or SCTP.

    Connections of a conntrack zone are left out: Docker has none there, and the same addresses may be others there.
    """
    found: t.List[Connection] = []
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None or "zone" in line:
            continue
        protocol, source, destination, source_port, port, reply, reply_port, _rest = match.groups()
        found.append(
            Connection(family, protocol, source, int(source_port), destination, int(port), reply, int(reply_port))
        )
    return found


_NETLINK_NETFILTER = 12
_CT_DELETE = 1 << 8 | 2
_REQUEST_AND_ACK = 0x1 | 0x4
_NLMSG_ERROR = 2
_NESTED = 0x8000
_TUPLE_ORIG, _TUPLE_IP, _TUPLE_PROTO, _PROTO_NUM, _PROTO_SRC_PORT, _PROTO_DST_PORT = 1, 1, 2, 1, 2, 3
#: Numbers of the attributes with source and destination.
_IP = {IPV4: (1, 2), IPV6: (3, 4)}
#: Their answers fit into a socket's buffer.
_AT_ONCE = 64


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def deletion(connection: Connection, sequence: int) -> bytes:
    """The netlink message that makes the kernel forget one connection, named by its first packet."""
    family = _FAMILIES[connection.family]
    ends = zip(_IP[connection.family], (connection.source, connection.destination))
    addresses = b"".join([_attribute(kind, socket.inet_pton(family, address)) for kind, address in ends])
    protocol = _attribute(_PROTO_NUM, bytes((_PROTOCOLS[connection.protocol],)))
    protocol += _attribute(_PROTO_SRC_PORT, struct.pack("!H", connection.source_port))
    protocol += _attribute(_PROTO_DST_PORT, struct.pack("!H", connection.destination_port))
    named = _attribute(_TUPLE_IP | _NESTED, addresses) + _attribute(_TUPLE_PROTO | _NESTED, protocol)
    body = struct.pack("=BBH", family, 0, 0) + _attribute(_TUPLE_ORIG | _NESTED, named)
    return struct.pack("=IHHII", len(body) + 16, _CT_DELETE, _REQUEST_AND_ACK, sequence, 0) + body


def _delete(connections: t.Sequence[Connection]) -> t.List[int]:
    """Ask the kernel to forget connections; for each 0 or its error's number.

    C(conntrack -D) reads the whole table for each of them: 0.1 s where there are 50,000.
    """
    answers: t.List[int] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as kernel:
        kernel.settimeout(10)
        kernel.bind((0, 0))
        for start in range(0, len(connections), _AT_ONCE):
            some = connections[start : start + _AT_ONCE]
            kernel.send(b"".join([deletion(connection, start + index) for index, connection in enumerate(some)]))
            found: t.Dict[int, int] = {}
            while len(found) < len(some):
                data = kernel.recv(65536)
                while len(data) >= 20:
                    length, kind, _flags, sequence, _port, error = struct.unpack_from("=IHHIIi", data)
                    if kind == _NLMSG_ERROR and start <= sequence < start + len(some):
                        found[sequence] = -error
                    data = data[max(16, length + 3 & ~3) :]
            answers += [found[start + index] for index in range(len(some))]
    return answers


class Connections:
    """The kernel's connections.

    :param run: runs a command.
    :param find: finds a program.
    :param delete: makes the kernel forget connections: 0 or the error's number for each.
    """

    def __init__(
        self, run: Runner, find: Finder, delete: t.Callable[[t.Sequence[Connection]], t.List[int]] = _delete
    ) -> None:
        self._run = run
        self._find = find
        self._delete = delete

    def listed(self, family: str) -> t.List[Connection]:
        """The connections of a family by TCP, UDP and SCTP.

        :raises FirewallError: conntrack is missing or cannot list them.
        """
        program = self._find("conntrack")
        if program is None:
            raise FirewallError(
                "conntrack is not installed, and drop_connections needs it: install the package conntrack "
                "(conntrack-tools on some distributions), or set drop_connections to false."
            )
        command = [program, "-L", "-f", family]
        rc, out, err = self._run(command, None, {"LC_ALL": "C"}, ())
        if rc != 0:
            text = err.decode("utf-8", "replace")
            said = [line.strip() for line in text.splitlines() if line.strip()] or ["it gave no reason"]
            raise FirewallError(
                "conntrack cannot list the connections: %s." % said[0].rstrip("."),
                {"rc": rc, "cmd": command, "stdout": "", "stderr": text},
            )
        return parse(out.decode("ascii", "replace"), family)

    def drop(self, connections: t.Iterable[Connection]) -> int:
        """Make the kernel forget connections; one that has gone meanwhile is no error.

        :returns: how many it forgot.
        :raises FirewallError: the kernel refuses.
        """
        wanted = list(connections)
        if not wanted:
            return 0
        try:
            answers = self._delete(wanted)
        except OSError as error:
            raise FirewallError("The kernel cannot be asked to drop connections: %s." % error.strerror) from error
        refused = [answer for answer in answers if answer not in (0, errno.ENOENT)]
        if refused:
            raise FirewallError(
                "The kernel refused to drop %d of %d connections: %s."
                % (len(refused), len(wanted), os.strerror(refused[0]))
            )
        return answers.count(0)


# Who and where we are ------------------------------------------------------------------------------------------------

_NET = "/proc/thread-self/net"


def _lines(path: str) -> t.List[str]:
    try:
        with open(path) as file:
            return file.read().splitlines()
    except OSError:
        return []


def local_addresses(root: str = "") -> t.FrozenSet[str]:
    """The host's own addresses of both families, as conntrack prints them."""
    found: t.Set[str] = set()
    last = ""
    for line in _lines(root + _NET + "/fib_trie"):
        words = line.split()
        if words[:1] == ["|--"]:
            last = words[1]
        elif words[:3] == ["/32", "host", "LOCAL"]:
            found.add(last)
    for line in _lines(root + _NET + "/if_inet6"):
        found.add(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(line[:32])))
    return frozenset(found)


#: Flags of a route: it is used; it refuses.
_RTF_UP, _RTF_REJECT = 0x1, 0x200


def all_routes(root: str = "") -> t.List[Route]:
    """Networks and the interfaces that lead there, by way of a gateway too; the default route among them."""
    found: t.Dict[Route, None] = {}
    for line in _lines(root + _NET + "/route")[1:]:
        words = line.split()
        if len(words) < 8 or int(words[3], 16) & (_RTF_UP | _RTF_REJECT) != _RTF_UP:
            continue
        # The kernel prints the bytes of an address as one number in the machine's own order.
        address, mask = (socket.inet_ntoa(struct.pack("=I", int(words[column], 16))) for column in (1, 7))
        found[ipaddress.IPv4Network((address, mask)), words[0]] = None
    for line in _lines(root + _NET + "/ipv6_route"):
        words = line.split()
        if len(words) < 10 or int(words[8], 16) & (_RTF_UP | _RTF_REJECT) != _RTF_UP or words[9] == "lo":
            continue
        six = ipaddress.IPv6Address(int(words[0], 16))
        found[ipaddress.IPv6Network((six, int(words[1], 16)), strict=False), words[9]] = None
    return list(found)


# Whom the chain would not let in -------------------------------------------------------------------------------------


class _Ways:
    """Which interfaces lead to an address: those of the narrowest network that holds it."""

    def __init__(self, routes: t.Iterable[Route], family: str) -> None:
        self._bits = 32 if family == IPV4 else 128
        by_length: t.Dict[int, t.Dict[int, t.Tuple[str, ...]]] = {}
        for network, interface in routes:
            if network.max_prefixlen != self._bits:
                continue
            level = by_length.setdefault(network.prefixlen, {})
            key = int(network.network_address) >> self._bits - network.prefixlen
            level[key] = tuple(dict.fromkeys((*level.get(key, ()), interface)))
        self._levels = sorted(by_length.items(), reverse=True)

    def to(self, address: int) -> t.Tuple[str, ...]:
        for length, level in self._levels:
            found = level.get(address >> self._bits - length)
            if found is not None:
                return found
        return ()


def _interfaces_asked(program: Program) -> t.Tuple[t.List[str], bool]:
    """Names that differ for the rules that DOCKER-USER leads to, and whether these rules may ask for a source port."""
    names: t.Dict[str, None] = {}
    ports = False
    seen: t.Set[str] = set()
    chains = [DOCKER_USER]
    while chains:
        name = chains.pop()
        if name in seen or name not in program.chains:
            continue
        seen.add(name)
        for rule in program.chains[name].rules:
            for field in rule.fields:
                if field.name == "in_interface":
                    names[field.value[:-1] + "~" if field.value.endswith("+") else field.value] = None
                elif field.name in ("jump", "goto"):
                    chains.append(field.value)
                elif field.name in _SOURCE_PORTS:
                    ports = True
    return list(names), ports


_SOURCE_PORTS = frozenset(("source_port", "source_ports", "ports", "ctorigsrcport", "ctrepldstport"))
#: No rule names such an interface: the name is longer than an interface's can be.
_UNKNOWN = "of an unknown name"


def _number(address: str) -> int:
    return of_network(address)[0][0]


def _flow(one: Connection, in_interface: str, out_interface: str, source_ports: Interval) -> Flow:
    """The first packets to where a connection went, from anybody."""
    container, there = of_network(one.reply_source), of_network(one.destination)
    port, asked = (one.reply_source_port,) * 2, (one.destination_port,) * 2
    translated = (one.destination, one.destination_port) != (one.reply_source, one.reply_source_port)
    return Flow(
        one.family,
        SOURCE,
        one.protocol,
        in_interface,
        out_interface,
        container,
        source_ports,
        port,
        states=frozenset(("NEW", "DNAT") if translated else ("NEW",)),
        original=(PEER, there),
        original_ports=(source_ports, asked),
        reply=(container, PEER),
        reply_ports=(port, source_ports),
        mark=None,
        bridged=in_interface == out_interface and not translated,
    )


def _judged(program: Program, flows: t.Iterable[Flow], within: Intervals) -> t.Tuple[Intervals, Intervals]:
    """Of some peers those that are certainly denied by whichever way they come, and those that perhaps are."""
    certain = perhaps = within
    for flow in flows:
        outcomes = program.walk(DOCKER_USER, flow, within)
        sure = join(itertools.chain(*[item.peers for item in outcomes if item.denies and not item.reasons]))
        unsure = join(itertools.chain(*[item.peers for item in outcomes if item.reasons]))
        perhaps = intersect(perhaps, union(sure, unsure))
        certain = intersect(certain, subtract(sure, unsure))
    return certain, perhaps


def denied(
    connections: t.Iterable[Connection],
    program: Program,
    routes: t.Iterable[Route],
    local: t.Collection[str] = (),
    sources: t.Iterable[Route] = (),
) -> t.List[Connection]:
    """The connections into containers that the chain DOCKER-USER certainly denies if they are made now.

    :param program: the filter table of the family, with the contents of the sets that its rules use.
    :param routes: the containers' networks and bridges (:func:`_host.bridge_routes`); what does not lead there, as
        connections that a container made and those to the host itself, is left alone.
    :param local: the host's own addresses (:func:`local_addresses`): DOCKER-USER does not read what is from or for it.
    :param sources: other networks and the interfaces from which they come (:func:`all_routes`). A source that no route
        names may come from any interface but these: it is denied only if it is so from each that a rule asks for.
    """
    bridges = list(routes)
    inside = _Ways(bridges, program.family)
    around = _Ways([*bridges, *sources], program.family)
    names, asks_ports = _interfaces_asked(program)
    known = {interface for _network, interface in bridges}
    elsewhere = tuple(name for name in [_UNKNOWN, *names] if name not in known)
    own = frozenset(local)

    groups: t.Dict[t.Tuple[t.Any, ...], t.Dict[Connection, int]] = {}
    for one in connections:
        if one.family != program.family or one.source in own or one.reply_source in own:
            continue
        out = inside.to(_number(one.reply_source))
        if out:
            number = _number(one.source)
            key = (out, around.to(number) or elsewhere, one.protocol, one.reply_source, one.reply_source_port)
            groups.setdefault((*key, one.destination, one.destination_port), {})[one] = number

    found: t.Set[Connection] = set()
    for (out, ways, *_where), group in groups.items():
        pairs = list(itertools.product(ways, out))
        # All that go to one port are walked as one.
        flows = [_flow(next(iter(group)), enters, leaves, ANY_PORT) for enters, leaves in pairs]
        certain, perhaps = _judged(program, flows, join((number, number) for number in set(group.values())))
        for one, number in group.items():
            peer = ((number, number),)
            if overlaps(certain, peer):
                found.add(one)
            elif asks_ports and overlaps(perhaps, peer):
                exact = [_flow(one, enters, leaves, (one.source_port,) * 2) for enters, leaves in pairs]
                if _judged(program, exact, peer)[0]:
                    found.add(one)
    return [one for one in dict.fromkeys(itertools.chain(*groups.values())) if one in found]
