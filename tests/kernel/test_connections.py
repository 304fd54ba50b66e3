# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Open connections when a policy closes the door: which of them are cut, asked of real sockets and conntrack."""

from __future__ import annotations

import socket
import time
import typing as t
from contextlib import ExitStack

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils import _host
from ansible_collections.quaywall.docker.plugins.module_utils._chain import parse_dump
from ansible_collections.quaywall.docker.plugins.module_utils._connections import (
    Connection,
    Connections,
    all_routes,
    denied,
    local_addresses,
)
from ansible_collections.quaywall.docker.plugins.module_utils._walk import Program

from .lab import FAMILIES, IPV4, IPV6, Host, docker_table, find, load, run_command, save, tool

if t.TYPE_CHECKING:
    from collections.abc import Iterator

FRIEND, STRANGER, OUTSIDE, ROUTER = "203.0.113.10", "203.0.113.66", "203.0.113.1", "172.17.0.1"
FRIEND6, STRANGER6, OUTSIDE6, ROUTER6 = "2001:db8:c::10", "2001:db8:c::66", "2001:db8:c::1", "fd00:17::1"
A, B = "172.17.0.2", "172.17.0.3"
A6, B6 = "fd00:17::2", "fd00:17::3"

ESTABLISHED = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"

NAT = """*nat
:PREROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 9000 -j DNAT --to-destination {a}:8080
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination {b}:8080
-A POSTROUTING -s {network} ! -o docker0 -j MASQUERADE
COMMIT
"""


class Lab:
    """A client with two addresses, a host with Docker's rules, and two containers with the same inner port."""

    def __init__(self, variant: str, stack: ExitStack) -> None:
        self.variant = variant
        self.stack = stack
        self.host, self.client, self.a, self.b = machines = [stack.enter_context(Host()) for _number in range(4)]
        for machine in machines:
            for name in ("all", "default"):
                machine.sysctl("ipv6/conf/%s/accept_dad" % name, "0")
                machine.sysctl("ipv6/conf/%s/disable_ipv6" % name, "0")
        self.host.ip("link add docker0 type bridge\n")
        self.up(self.host, "docker0", ROUTER + "/16", ROUTER6 + "/64")
        self.host.ip("link add outside type veth peer name eth0 netns %s\n" % self.client.network)
        self.up(self.host, "outside", OUTSIDE + "/24", OUTSIDE6 + "/64")
        self.up(self.client, "eth0", FRIEND + "/24", STRANGER + "/24", FRIEND6 + "/64", STRANGER6 + "/64")
        for number, (machine, four, six) in enumerate(((self.a, A, A6), (self.b, B, B6))):
            self.host.ip("link add veth%d type veth peer name eth0 netns %s\n" % (number, machine.network))
            self.host.ip("link set veth%d master docker0 up\n" % number)
            self.up(machine, "eth0", four + "/16", six + "/64")
            machine.ip("route add default via %s\nroute add default via %s\n" % (ROUTER, ROUTER6))
        for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            self.host.sysctl(name, "1")
        for name in ("iptables", "ip6tables"):
            self.host.sysctl("bridge/bridge-nf-call-" + name, "1")
        load(self.host, variant, IPV4, NAT.format(a=A, b=B, network="172.17.0.0/16"))
        load(self.host, variant, IPV6, NAT.format(a="[%s]" % A6, b="[%s]" % B6, network="fd00:17::/64"))
        self.chain([ESTABLISHED])
        self.listeners = {
            (name, port): stack.enter_context(machine.call(listener, port))
            for name, machine in (("a", self.a), ("b", self.b), ("client", self.client), ("host", self.host))
            for port in (8080, 7000)
        }
        deadline = time.monotonic() + 10
        while not all(self.tries(address) for address in (A, A6)):
            assert time.monotonic() < deadline

    def tries(self, address: str) -> bool:
        try:
            self.connect(self.b, "", address, 8080)[0].close()
        except OSError:
            return False
        return True

    @staticmethod
    def up(machine: Host, device: str, *addresses: str) -> None:
        lines = ["addr add %s dev %s%s" % (item, device, " nodad" if ":" in item else "") for item in addresses]
        machine.ip("".join(line + "\n" for line in ["link set %s up" % device, *lines]))

    def chain(self, rules: list[str], rules6: list[str] | None = None) -> None:
        """Write DOCKER-USER anew; rules with an address are IPv4's where none are given for IPv6."""
        six = [rule for rule in rules if "-d " not in rule] if rules6 is None else rules6
        forward = ("-j DOCKER-USER", "-j ACCEPT")
        load(self.host, self.variant, IPV4, docker_table(rules, forward))
        load(self.host, self.variant, IPV6, docker_table(six, forward))

    def connect(self, machine: Host, source: str, address: str, port: int) -> tuple[socket.socket, socket.socket]:
        """Both ends of a connection."""
        made = machine.call(socket.socket, socket.AF_INET6 if ":" in address else socket.AF_INET)
        try:
            made.settimeout(2)
            if source:
                made.bind((source, 0))
            made.connect((address, port))
            own = made.getsockname()[:2]
        except OSError:
            made.close()
            raise
        self.stack.enter_context(made)
        for (_name, at), listening in self.listeners.items():
            listening.setblocking(False)
            while True:
                try:
                    other, peer = listening.accept()
                except BlockingIOError:
                    break
                self.stack.enter_context(other)
                if peer[1] == own[1]:
                    other.settimeout(2)
                    return made, other
                assert at
        raise ConnectionError("nobody has accepted it")

    def cut(self, *families: str, **more: t.Any) -> list[Connection]:
        def run() -> list[Connection]:
            found = []
            connections = Connections(run_command, find)
            for family in families or FAMILIES:
                text = save(self.host, self.variant, family).decode()
                program = Program(parse_dump(text, family).tables["filter"].chains, family)
                routes = _host.bridge_routes()
                own = local_addresses()
                wanted = denied(connections.listed(family), program, routes, own, all_routes(), **more)
                assert connections.drop(wanted) == len(wanted)
                found += wanted
            return found

        return self.host.call(run)

    def listed(self, family: str = IPV4) -> list[Connection]:
        return self.host.call(Connections(run_command, find).listed, family)


def listener(port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    made.bind(("::", port))
    made.listen(1024)
    return made


Ends = tuple[socket.socket, socket.socket]


def alive(ends: Ends) -> bool:
    """True if what either side says gets to the other."""
    one, two = ends
    try:
        one.sendall(b"question")
        two.settimeout(0.5)
        if two.recv(100) != b"question":
            return False
        two.sendall(b"answer")
        one.settimeout(0.5)
        return one.recv(100) == b"answer"
    except OSError:
        return False


@pytest.fixture
def lab(variant: str) -> Iterator[Lab]:
    with ExitStack() as stack:
        yield Lab(variant, stack)


def test_the_connection_that_a_new_deny_means_is_cut_and_no_other(lab: Lab) -> None:
    kept = {
        "friend": lab.connect(lab.client, FRIEND, OUTSIDE, 9000),
        "stranger to the other container": lab.connect(lab.client, STRANGER, OUTSIDE, 8080),
        "neighbour": lab.connect(lab.b, "", A, 8080),
        "outgoing": lab.connect(lab.a, "", STRANGER, 8080),
        "host to the container": lab.connect(lab.host, "", A, 8080),
        "to the host itself": lab.connect(lab.client, STRANGER, OUTSIDE, 7000),
        "container to the host": lab.connect(lab.a, "", ROUTER, 7000),
        "friend, IPv6": lab.connect(lab.client, FRIEND6, OUTSIDE6, 9000),
        "neighbour, IPv6": lab.connect(lab.b, "", A6, 8080),
        "outgoing, IPv6": lab.connect(lab.a, "", STRANGER6, 8080),
        "host to the container, IPv6": lab.connect(lab.host, "", A6, 8080),
        "to the host itself, IPv6": lab.connect(lab.client, STRANGER6, OUTSIDE6, 7000),
    }
    closed = {
        "stranger": lab.connect(lab.client, STRANGER, OUTSIDE, 9000),
        "stranger, IPv6": lab.connect(lab.client, STRANGER6, OUTSIDE6, 9000),
    }
    rule = "-d %s ! -i docker0 -p tcp -m tcp --dport 8080 -j %s"
    lab.chain(
        [ESTABLISHED, "-s %s " % FRIEND + rule % (A, "ACCEPT"), rule % (A, "DROP"), "-j RETURN"],
        [ESTABLISHED, "-s %s " % FRIEND6 + rule % (A6, "ACCEPT"), rule % (A6, "DROP"), "-j RETURN"],
    )
    # The proof that they would go on.
    assert all(alive(ends) for ends in (*kept.values(), *closed.values()))
    found = lab.cut()
    assert {(one.source, one.destination, one.destination_port) for one in found} == {
        (STRANGER, OUTSIDE, 9000),
        (STRANGER6, OUTSIDE6, 9000),
    }
    assert {name for name, ends in closed.items() if alive(ends)} == set()
    assert {name for name, ends in kept.items() if not alive(ends)} == set()
    assert lab.cut() == []


def test_by_the_published_port(lab: Lab) -> None:
    """The half without an address, and neither the other container nor outgoing connections to that port."""
    kept = [
        lab.connect(lab.client, STRANGER, OUTSIDE, 8080),
        lab.connect(lab.a, "", STRANGER, 8080),
        lab.connect(lab.b, "", A, 8080),
    ]
    ends = lab.connect(lab.client, STRANGER, OUTSIDE, 9000)
    rule = "-p tcp -m conntrack --ctstate DNAT --ctorigdstport 9000 --ctdir ORIGINAL -j DROP"
    lab.chain([ESTABLISHED, rule])
    assert len(lab.cut()) == 1
    assert not alive(ends)
    assert all(map(alive, kept))


def test_all_that_comes_from_outside(lab: Lab) -> None:
    """C(default: drop), by interface: the default route and the routes tell where somebody comes from."""
    kept = [lab.connect(lab.b, "", A, 8080), lab.connect(lab.a, "", STRANGER, 8080)]
    ends = [lab.connect(lab.client, STRANGER, OUTSIDE, 9000), lab.connect(lab.client, FRIEND, OUTSIDE, 8080)]
    lab.chain([ESTABLISHED, "-i elsewhere -o docker0 -j DROP"])
    assert lab.cut() == []
    lab.chain([ESTABLISHED, "-i outside -o docker0 -j DROP"])
    assert len(lab.cut(IPV4)) == 2
    assert not any(map(alive, ends))
    assert all(map(alive, kept))


@pytest.mark.parametrize("speaks_first", ["client", "container"])
def test_a_cut_connection_does_not_come_back(lab: Lab, speaks_first: str) -> None:
    """conntrack takes up connections in the middle: the container's next packet looks like one of its own making.

    Its way out has another port (8080) than the client's connection (9000), so the client refuses it.
    """
    ends = lab.connect(lab.client, STRANGER, OUTSIDE, 9000)
    lab.chain([ESTABLISHED, "-d %s ! -i docker0 -p tcp -m tcp --dport 8080 -j DROP" % A])
    assert len(lab.cut(IPV4)) == 1
    assert not alive(ends if speaks_first == "client" else (ends[1], ends[0]))
    assert not alive(ends)


@pytest.mark.parametrize("guarded", [False, True])
def test_published_on_the_same_port_a_container_that_speaks_brings_it_back(lab: Lab, guarded: bool) -> None:
    """Why a chain that is to cut connections needs a rule for those that begin in the middle.

    What the container says next looks like a connection of its own; it leaves by the very port that the client knows,
    and the client's answers belong to it.
    """
    ends = lab.connect(lab.client, STRANGER, OUTSIDE, 8080)
    outgoing = lab.connect(lab.b, "", STRANGER, 8080)
    middle = (
        "-i docker0 ! -o docker0 -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack --ctstate NEW -j DROP"
    )
    deny = "-d %s ! -i docker0 -p tcp -m tcp --dport 8080 -j DROP" % B
    lab.chain([ESTABLISHED, *([middle] if guarded else []), deny])
    assert len(lab.cut(IPV4)) == 1
    assert alive((ends[1], ends[0])) != guarded
    assert alive(ends) != guarded
    assert alive(outgoing)
    lab.connect(lab.b, "", STRANGER, 7000)


def test_what_has_gone_meanwhile_is_no_error(lab: Lab) -> None:
    lab.connect(lab.client, STRANGER, OUTSIDE, 9000)
    lab.connect(lab.client, STRANGER6, OUTSIDE6, 9000)
    for family in FAMILIES:
        (one,) = [one for one in lab.listed(family) if one.destination_port == 9000]
        drop = Connections(run_command, find).drop
        assert lab.host.call(drop, [one]) == 1
        assert lab.host.call(drop, [one, one]) == 0


def test_a_thousand_connections_are_cut_at_once(lab: Lab) -> None:
    """Among many others: each is asked for by its own ends, and not looked for in the whole table."""

    def send() -> None:
        for _number in range(20):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
                sending.bind((STRANGER, 0))
                for port in range(30000, 30500):
                    sending.sendto(b"x", (A, port))

    lab.client.ip("route add 172.17.0.0/16 via %s\n" % OUTSIDE)
    lab.client.call(send)
    before = len([one for one in lab.listed() if one.protocol == "udp"])
    assert before > 5000
    lab.chain([ESTABLISHED, "-d %s ! -i docker0 -p udp -m udp --dport 30000:30099 -j DROP" % A])
    started = time.monotonic()
    found = lab.cut(IPV4)
    taken = time.monotonic() - started
    assert len(found) >= before // 5
    assert {one.destination_port for one in found} == set(range(30000, 30100))
    assert len([one for one in lab.listed() if one.protocol == "udp"]) == before - len(found)
    assert taken < 3, taken


def test_reading_leaves_the_table_as_it_is(lab: Lab) -> None:
    lab.connect(lab.client, STRANGER, OUTSIDE, 9000)
    rules = lab.host.run(tool(IPV4, lab.variant, "save"))
    before = sorted(lab.listed())
    assert before
    assert sorted(lab.listed()) == before
    assert lab.host.run(tool(IPV4, lab.variant, "save")).count(b"\n") == rules.count(b"\n")


def test_addresses_and_routes_of_the_host(lab: Lab) -> None:
    own = lab.host.call(local_addresses)
    assert {OUTSIDE, ROUTER, OUTSIDE6, ROUTER6, "127.0.0.1", "::1"} <= own
    assert not own & {A, A6, FRIEND, STRANGER6, "172.17.255.255", "172.17.0.0"}
    lab.host.ip("route add default via %s\nroute add default via %s\n" % (FRIEND, FRIEND6))
    lab.host.ip("route add unreachable 192.0.2.0/24\nroute add 198.51.100.0/24 via %s\n" % A)
    found = {(str(network), interface) for network, interface in lab.host.call(all_routes)}
    assert found >= {
        ("0.0.0.0/0", "outside"),
        ("::/0", "outside"),
        ("172.17.0.0/16", "docker0"),
        ("fd00:17::/64", "docker0"),
        ("198.51.100.0/24", "docker0"),
        ("203.0.113.0/24", "outside"),
    }
    assert "192.0.2.0/24" not in {network for network, _interface in found}
