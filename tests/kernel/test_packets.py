# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Packets decide: the rules that real engines made, our policies in front of them, and somebody who connects.

Each case is a capture of a real host, set up again from namespaces: its rules, its bridges, and those of its containers
that matter here. Two of them have the same inner port, 8080: web-a is published on 9000, web-b on 8080.
"""

from __future__ import annotations

import json
import socket
import time
import typing as t
from contextlib import ExitStack

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._inventory import Binding, Container, parse_inventory
from ansible_collections.quaywall.docker.plugins.module_utils._policy import Policy, compile_policy

from .lab import COMMANDS, FAMILIES, IPV4, IPV6, Host, firewall, load, save, tool
from .planners import policy_planner

if t.TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ENGINES = ("20.10", "26.1", "28.5", "29.7")

FRIEND, STRANGER, OUTSIDE = "203.0.113.10", "203.0.113.66", "203.0.113.1"
FRIEND6, STRANGER6, OUTSIDE6 = "2001:db8:c::10", "2001:db8:c::66", "2001:db8:c::1"

#: Containers of the captures that are set up: their network, addresses and ports.
CONTAINERS = {
    "web-a": ("bridge", ("172.17.0.2/16",), (8080,)),
    "web-b": ("bridge", ("172.17.0.3/16",), (8080,)),
    "dns": ("app-net", ("172.30.0.53/24",), (53,)),
    "dual": ("dual-net", ("172.31.0.2/24", "fd00:31::2/64"), (8080,)),
    "twonets": ("dual-net", ("172.31.0.3/24", "fd00:31::3/64"), (8080,)),
}
GATEWAYS = {"bridge": ("172.17.0.1/16",), "app-net": ("172.30.0.1/24",), "dual-net": ("172.31.0.1/24", "fd00:31::1/64")}

#: Long enough for an answer on this machine; what is dropped takes all of it.
WAIT = 0.15


def plain(address: str) -> str:
    return address.partition("/")[0]


class Site:
    """A real host's rules, bridges and containers, and a client outside with two addresses of each family."""

    def __init__(self, folder: Path, variant: str, stack: ExitStack) -> None:
        self.variant = variant
        self.stack = stack
        api = json.loads((folder / "api.json").read_text(encoding="utf-8"))
        self.inventory = parse_inventory(api["containers"], api["networks"])
        self.host = stack.enter_context(Host())
        self.client = stack.enter_context(Host())
        self.machines = {name: stack.enter_context(Host()) for name in CONTAINERS}
        self.udp: dict[str, socket.socket] = {}
        self._networks()
        self.families = [IPV4]
        for family in FAMILIES:
            path = folder / ("%s-save.txt" % COMMANDS[family])
            if path.exists():
                load(self.host, variant, family, path.read_bytes())
                self.families = [*self.families, IPV6] if family == IPV6 else self.families
        self._servers()

    def _networks(self) -> None:
        for machine in (self.host, self.client, *self.machines.values()):
            for name in ("all", "default"):
                machine.sysctl("ipv6/conf/%s/accept_dad" % name, "0")
                machine.sysctl("ipv6/conf/%s/disable_ipv6" % name, "0")
        for name, value in (
            ("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1"),
            ("bridge/bridge-nf-call-iptables", "1"), ("bridge/bridge-nf-call-ip6tables", "1"),
        ):  # fmt: skip
            self.host.sysctl(name, value)
        self.host.ip("link add outside type veth peer name eth0 netns %s\n" % self.client.network)
        self._up(self.host, "outside", OUTSIDE + "/24", OUTSIDE6 + "/64")
        self._up(self.client, "eth0", FRIEND + "/24", STRANGER + "/24", FRIEND6 + "/64", STRANGER6 + "/64")
        # Somebody in the same network may also route to the containers' addresses.
        self.client.ip("route add 172.16.0.0/12 via %s\nroute add fd00::/16 via %s\n" % (OUTSIDE, OUTSIDE6))
        self.bridges = {name: self.inventory.networks[name].bridge for name in GATEWAYS}
        for name, bridge in self.bridges.items():
            self.host.ip("link add %s type bridge\n" % bridge)
            self._up(self.host, bridge, *GATEWAYS[name])
        for number, (name, (network, addresses, _ports)) in enumerate(CONTAINERS.items()):
            machine = self.machines[name]
            self.host.ip(
                "link add veth%d type veth peer name eth0 netns %s\nlink set veth%d master %s up\n"
                % (number, machine.network, number, self.bridges[network])
            )
            self._up(machine, "eth0", *addresses)
            for gateway in GATEWAYS[network]:
                machine.ip("route add default via %s\n" % plain(gateway))

    @staticmethod
    def _up(machine: Host, device: str, *addresses: str) -> None:
        lines = ["addr add %s dev %s%s" % (item, device, " nodad" if ":" in item else "") for item in addresses]
        machine.ip("".join(line + "\n" for line in ["link set %s up" % device, *lines]))

    def _servers(self) -> None:
        for name, (_network, _addresses, ports) in CONTAINERS.items():
            for port in ports:
                self.stack.enter_context(self.machines[name].call(listener, port))
        self.udp["dns"] = self.stack.enter_context(self.machines["dns"].call(datagrams, 53))
        for port in (9000, 8080, 8090):
            self.stack.enter_context(self.client.call(listener, port))

    def ready(self) -> None:
        """Wait until the slowest way is there."""
        deadline = time.monotonic() + 10
        while not all(self.inside("twonets", address, 8080) for address in ("172.31.0.2", "fd00:31::2")):
            assert time.monotonic() < deadline

    # Who gets through

    def outside(self, source: str, port: int, address: str = "") -> bool:
        target = address or (OUTSIDE6 if ":" in source else OUTSIDE)
        return connects(self.client, source, target, port)

    def inside(self, name: str, address: str, port: int) -> bool:
        return connects(self.machines[name], "", address, port)

    def asks(self, source: str, server: str, port: int) -> bool:
        """A question by UDP that is answered."""
        with self.client.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.bind((source, 0))
            asking.settimeout(WAIT)
            asking.sendto(b"question", (OUTSIDE, port))
            try:
                _data, sender = self.udp[server].recvfrom(100)
                self.udp[server].sendto(b"answer", sender)
                return asking.recv(100) == b"answer"
            except TimeoutError:
                return False

    # What is to be tested

    def bindings(self, container: Container) -> tuple[Binding, ...]:
        return tuple(binding._replace(fixed=True) for binding in container.current_ports)

    def apply(self, **options: t.Any) -> None:
        policy = Policy.from_options(options)
        compiled = compile_policy(policy, self.inventory, self.bindings, ip6_dnat=IPV6 in self.families)
        rules = {family: found for family, found in compiled.rules.items() if family in self.families}
        changes = self.host.call(firewall().change, policy_planner(policy.name, rules), dry=False)
        assert changes[IPV4].changed

    def remove(self, name: str) -> None:
        assert self.host.call(firewall().change, policy_planner(name, {}), dry=False)[IPV4].changed


def listener(port: int) -> socket.socket:
    """For both families. The kernel itself shakes hands."""
    made = socket.socket(socket.AF_INET6)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    made.bind(("::", port))
    made.listen(1024)
    return made


def datagrams(port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(("0.0.0.0", port))
    made.settimeout(WAIT)
    return made


def connection(machine: Host, source: str, address: str, port: int) -> socket.socket:
    made = machine.call(socket.socket, socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        if source:
            made.bind((source, 0))
        made.settimeout(WAIT)
        made.connect((address, port))
    except OSError:
        made.close()
        raise
    return made


def connects(machine: Host, source: str, address: str, port: int) -> bool:
    try:
        connection(machine, source, address, port).close()
    except (TimeoutError, ConnectionRefusedError, OSError):
        return False
    return True


#: One of each layout: a FORWARD chain with rules of each bridge (up to 27), and DOCKER-FORWARD (from 28).
LAYOUTS = ("20.10", "28.5")


@pytest.fixture(params=ENGINES)
def site(request: pytest.FixtureRequest, variant: str, shared: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        made = Site(shared / "captures" / ("docker-%s-iptables-nft" % request.param), variant, stack)
        made.ready()
        yield made


def reached(site: Site) -> dict[str, bool]:
    """Every way that a policy may close, or must not."""
    found = {
        "friend to web-a": site.outside(FRIEND, 9000),
        "stranger to web-a": site.outside(STRANGER, 9000),
        "stranger to web-b": site.outside(STRANGER, 8080),
        "friend to dual": site.outside(FRIEND, 8090),
        "stranger to dual": site.outside(STRANGER, 8090),
        "stranger to twonets": site.outside(STRANGER, 8091),
        "friend asks dns": site.asks(FRIEND, "dns", 53),
        "stranger asks dns": site.asks(STRANGER, "dns", 53),
        "stranger to dns by TCP": site.outside(STRANGER, 53),
        "neighbour to web-a": site.inside("web-b", "172.17.0.2", 8080),
        "neighbour to dual": site.inside("twonets", "172.31.0.2", 8080),
        "neighbour to dual, IPv6": site.inside("twonets", "fd00:31::2", 8080),
        "web-a to a remote port 9000": site.inside("web-a", STRANGER, 9000),
        "web-a to a remote port 8080": site.inside("web-a", STRANGER, 8080),
        "web-b to a remote port 9000": site.inside("web-b", STRANGER, 9000),
        "dual to a remote port 8090": site.inside("dual", STRANGER, 8090),
    }
    if IPV6 in site.families:
        found |= {
            "friend to dual, IPv6": site.outside(FRIEND6, 8090),
            "stranger to dual, IPv6": site.outside(STRANGER6, 8090),
            "stranger to twonets, IPv6": site.outside(STRANGER6, 8091),
            "dual to a remote port 8090, IPv6": site.inside("dual", STRANGER6, 8090),
        }
    return found


CLOSED = {"stranger to web-a", "stranger to dual", "stranger to dual, IPv6", "stranger asks dns"}


def protect(site: Site, **more: t.Any) -> None:
    site.apply(name="web-a", container="web-a", destination_port=["8080"], source=[FRIEND], action="accept", **more)
    both = [FRIEND + "/32", FRIEND6 + "/128"]
    site.apply(name="dual", container="dual", destination_port=["8080"], source=both, action="accept", **more)
    site.apply(name="dns", container="dns", protocol="udp", source=[FRIEND], action="accept", **more)


def test_only_those_who_are_named_get_in_and_nobody_else_is_hurt(site: Site) -> None:
    judge(site, "both")


@pytest.mark.parametrize("site", LAYOUTS, indirect=True)
@pytest.mark.parametrize("match", ["address", "published_port"])
def test_half_of_the_rules_does_the_same(site: Site, match: str) -> None:
    judge(site, match)


def judge(site: Site, match: str) -> None:
    assert all(reached(site).values())
    # Engines up to 27 let somebody who routes to the container's address in; newer ones have their own rule for it.
    routed = site.outside(STRANGER, 8080, "172.17.0.2")
    with connection(site.client, STRANGER, OUTSIDE, 9000) as open_before:
        protect(site, match=match)
        found = reached(site)
        assert {name for name, open_now in found.items() if not open_now} == CLOSED & set(found)
        if match != "published_port":
            assert not site.outside(STRANGER, 8080, "172.17.0.2")
        assert site.outside(STRANGER, 8080, "172.17.0.3") == routed
        # A connection that was open stays open, in both directions.
        open_before.sendall(b"x")
        deadline = time.monotonic() + 5
        while unacknowledged(open_before):
            assert time.monotonic() < deadline
            time.sleep(0.005)
    for name in ("web-a", "dual", "dns"):
        site.remove(name)
    assert all(reached(site).values())
    for family in site.families:
        assert b"quaywall" not in save(site.host, site.variant, family)


def unacknowledged(connected: socket.socket) -> int:
    """Segments that the other side has not confirmed (tcpi_unacked)."""
    return int.from_bytes(connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)[24:28], "little")


@pytest.mark.parametrize("site", LAYOUTS, indirect=True)
def test_a_moved_container_is_neither_open_nor_opens_another(site: Site) -> None:
    """web-a was re-created at web-b's address, and nobody has told us: what we denied stays denied."""
    protect(site)
    rules = save(site.host, site.variant, IPV4, table="nat")
    moved = rules.replace(
        b"--dport 9000 -j DNAT --to-destination 172.17.0.2:", b"--dport 9000 -j DNAT --to-destination 172.17.0.3:"
    )
    assert moved != rules
    load(site.host, site.variant, IPV4, moved)
    assert not site.outside(STRANGER, 9000)
    # Fail closed: an address that may be another container's is not left allowed.
    assert not site.outside(FRIEND, 9000)
    assert site.outside(STRANGER, 8080)


@pytest.mark.parametrize("site", LAYOUTS, indirect=True)
def test_refused_is_told_at_once(site: Site) -> None:
    site.apply(name="web-a", container="web-a", source=[FRIEND], action="return", otherwise="reject")
    site.apply(name="dual", container="dual", action="reject")
    assert site.outside(FRIEND, 9000)
    for source, port in ((STRANGER, 9000), (FRIEND, 8090), (STRANGER, 8090)):
        with pytest.raises(ConnectionRefusedError):
            connection(site.client, source, OUTSIDE, port)
    assert site.outside(STRANGER, 8080)
    if IPV6 in site.families:
        # How soon ICMPv6 is told is the kernel's business; that nothing gets in is ours.
        assert not site.outside(FRIEND6, 8090)
        assert site.outside(STRANGER6, 8091)
    assert site.inside("web-b", "172.17.0.2", 8080)
    assert site.inside("twonets", "fd00:31::2", 8080)


@pytest.mark.parametrize("site", LAYOUTS, indirect=True)
def test_a_whole_network_and_a_host_port(site: Site) -> None:
    site.apply(name="net", network="dual-net", protocol="all", action="drop")
    site.apply(name="port", published_port="9000", source=[FRIEND], action="accept")
    found = reached(site)
    closed = {"stranger to web-a", "friend to dual", "stranger to dual", "stranger to twonets"}
    closed |= {name + ", IPv6" for name in closed}
    assert {name for name, open_now in found.items() if not open_now} == closed & set(found)


@pytest.mark.parametrize("site", LAYOUTS, indirect=True)
def test_without_the_bridge_exempt_neighbours_are_filtered_too(site: Site) -> None:
    """The proof that these tests see what a bridge passes to iptables."""
    site.apply(name="web-a", container="web-a", destination_port=["8080"], action="drop", same_network="filter")
    assert not site.inside("web-b", "172.17.0.2", 8080)
    assert site.inside("web-a", "172.17.0.3", 8080)


@pytest.mark.parametrize("site", LAYOUTS, indirect=True)
def test_the_rule_that_this_collection_is_there_to_prevent(site: Site) -> None:
    """The usual advice for host port 8080 closes the wrong container as well."""
    site.host.run(
        tool(IPV4, site.variant), "-w", "10", "-I", "DOCKER-USER", "-p", "tcp", "--dport", "8080", "-j", "DROP"
    )
    assert not site.outside(FRIEND, 9000)
    assert not site.outside(FRIEND, 8080)
