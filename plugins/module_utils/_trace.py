# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""A connection's way through a host: every hook and table that its first packet passes, and that its answer passes.

What one chain does is :meth:`_walk.Program.walk`'s to say; here is the order of hooks, what translation and routing do
between them, and where packets end: at a container, at docker-proxy (which connects anew), at the host, or nowhere.
A :class:`_Packet` stands for the packets of many senders at once, so that a table of who reaches what is walked by
port. The order is the kernel's: conntrack comes after the table raw, DNAT before the routing decision, masquerading
last. What the snapshot does not say makes a verdict possible, with a reason.
"""

from __future__ import annotations

import functools
import ipaddress
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import Endpoint, Family, Survey
from ansible_collections.quaywall.docker.plugins.module_utils._bridges import tables_of
from ansible_collections.quaywall.docker.plugins.module_utils._chain import DENYING, Chain
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import (
    EVERYTHING,
    NOTHING,
    Interval,
    Intervals,
    intersect,
    join,
    of_network,
    overlaps,
    subtract,
    union,
)
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6, Field, Rule
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import Route, Snapshot
from ansible_collections.quaywall.docker.plugins.module_utils._walk import (
    ACCEPT,
    ANY_PORT,
    DESTINATION,
    PEER,
    RETURN,
    SOURCE,
    Flow,
    Outcome,
    Program,
    Site,
)

DELIVERED = "delivered"
BLOCKED = "blocked"
POSSIBLE = "possible"

#: The tables of each hook, in the order of their priorities.
_HOOKS: t.Mapping[str, t.Tuple[str, ...]] = {
    "PREROUTING": ("raw", "mangle", "nat"),
    "INPUT": ("mangle", "filter", "security", "nat"),
    "FORWARD": ("mangle", "filter", "security"),
    "OUTPUT": ("raw", "mangle", "nat", "filter", "security"),
    "POSTROUTING": ("mangle", "nat"),
}
_TRANSLATING = frozenset(("DNAT", "REDIRECT", "SNAT", "MASQUERADE", "NETMAP"))
#: A bit that no mark has: in the table raw it stands for a packet that is not to be tracked.
_NOTRACK = 1 << 32
#: From which ports clients connect: what today's systems choose from, unless they are told otherwise.
CLIENT_PORTS: Interval = (32768, 65535)
_WITH_PORTS = frozenset(("tcp", "udp", "sctp", "dccp", "udplite"))
_ECHO = {"icmp": 8, "ipv6-icmp": 128}
_ECHO_REPLY = {"icmp": 0, "ipv6-icmp": 129}
_SYN = (frozenset(("SYN",)),)
_SYN_ACK = (frozenset(("SYN", "ACK")),)
_ANY_ADDRESS = frozenset(("", "0.0.0.0", "::"))
#: So many ways of one connection are told apart.
_MOST_WAYS = 64
#: docker-proxy may connect to a port that docker-proxy serves; not for ever.
_MOST_PROXIES = 4
_VARIANT_TEXTS = {"nft": "", "legacy": " of the legacy iptables", "nftables": " of Docker's nftables tables"}


class Decided(t.NamedTuple):
    """What decided: a rule, or a chain's policy (C(position) 0; C(rule) is empty)."""

    family: str
    variant: str
    table: str
    chain: str
    position: int
    rule: str


class Step(t.NamedTuple):
    """One thing that happens on the way, in words; ``decided`` is empty where no rule is part of it."""

    hook: str
    text: str
    decided: t.Optional[Decided] = None


class _Packet(t.NamedTuple):
    """Packets on their way, which differ in one address: the client's, in ``region``."""

    family: str
    region: Intervals
    protocol: str
    destination: int
    port: int
    in_interface: str
    out_interface: str
    source_ports: Interval
    original: t.Tuple[int, int]
    source_local: bool
    #: Where answers to it leave by.
    back: str
    icmp_type: t.Optional[int] = None
    states: t.FrozenSet[str] = frozenset(("NEW",))
    tracked: bool = True
    mark: t.Optional[int] = 0
    bridged: bool = False
    looped: bool = False
    reply: bool = False
    dnat: bool = False
    snat: bool = False
    #: What masquerading puts in place of the client; None: not known, or nothing is put there.
    masked: t.Optional[int] = None
    #: Where the first packet of a connection that docker-proxy makes comes from: the clients that it makes it for.
    clients: t.Optional[Intervals] = None
    proxies: int = 0
    reasons: t.Tuple[str, ...] = ()
    steps: t.Tuple[Step, ...] = ()

    def told(self, hook: str, text: str, decided: t.Optional[Decided] = None) -> _Packet:
        return self._replace(steps=(*self.steps, Step(hook, text, decided)))

    def hanging(self, reasons: t.Iterable[str]) -> _Packet:
        return self._replace(reasons=tuple(dict.fromkeys((*self.reasons, *reasons))))


class End(t.NamedTuple):
    """Where some clients' connections end. ``kind`` is container, host, elsewhere, swarm, or why they are blocked.

    ``fuzzy``: one of several rules does it, and which one hangs on what is not known.
    """

    clients: Intervals
    delivered: bool
    kind: str
    reasons: t.Tuple[str, ...]
    decided: t.Optional[Decided]
    steps: t.Tuple[Step, ...]
    family: str
    destination: int
    port: int
    #: Address and port that the client asked for where that was translated, else None.
    translated: t.Optional[t.Tuple[int, int]]
    proxied: bool
    reply: bool
    fuzzy: bool = False


class Start(t.NamedTuple):
    """Who sends: clients by their addresses (or the host itself), and by which interface they come in."""

    family: str
    region: Intervals
    in_interface: str
    local: bool
    back: str
    reasons: t.Tuple[str, ...] = ()


class Routes:
    """The routing decision of one family, by the snapshot's routes and addresses."""

    def __init__(self, snapshot: Snapshot, family: str) -> None:
        self._bits = 32 if family == IPV4 else 128
        self._levels: t.Dict[int, t.Dict[int, t.List[Route]]] = {}
        self._others: t.List[t.Tuple[Intervals, Route]] = []
        self._local: t.Set[int] = set()
        self._asked: t.Dict[int, t.Tuple[t.Optional[Route], t.Tuple[str, ...]]] = {}
        self.known = any(route.family == family for route in snapshot.routes)
        six = family == IPV6
        for interface in snapshot.interfaces:
            for address in interface.addresses:
                if (":" in address) == six:
                    self._local.add(of_network(address.partition("/")[0])[0][0])
                    if not self.known:
                        network = str(ipaddress.ip_interface(address).network)
                        self._add(Route(family, network, "", interface.name, "main", "unicast", 0))
        self._local_networks: Intervals = of_network("127.0.0.0/8" if family == IPV4 else "::1")
        for route in snapshot.routes:
            if route.family != family:
                continue
            if route.table == "local":
                if route.type == "local":
                    self._local_networks = union(self._local_networks, of_network(route.destination))
            elif route.table in ("main", "default", "254", "253"):
                self._add(route)
            else:
                self._others.append((of_network(route.destination), route))

    def _add(self, route: Route) -> None:
        network = of_network(route.destination)[0]
        length = self._bits - (network[1] - network[0]).bit_length()
        key = network[0] >> (self._bits - length)
        self._levels.setdefault(length, {}).setdefault(key, []).append(route)

    def local(self, address: int) -> bool:
        return address in self._local or overlaps(self._local_networks, ((address, address),))

    def to(self, address: int) -> t.Tuple[t.Optional[Route], t.Tuple[str, ...]]:
        """The route that is taken, and what that hangs on."""
        known = self._asked.get(address)
        if known is None:
            known = self._asked[address] = self._looked_up(address)
        return known

    def _looked_up(self, address: int) -> t.Tuple[t.Optional[Route], t.Tuple[str, ...]]:
        reasons: t.Tuple[str, ...] = ()
        taken: t.Optional[Route] = None
        for length in sorted(self._levels, reverse=True):
            found = self._levels[length].get(address >> (self._bits - length))
            if found:
                best = min(route.metric for route in found)
                routes = [route for route in found if route.metric == best]
                taken = routes[0]
                if len({route.interface for route in routes}) > 1:
                    reasons += ("which of several routes is taken",)
                break
        for network, route in self._others:
            if overlaps(network, ((address, address),)) and (taken is None or route.interface != taken.interface):
                reasons += ("whether routing table %s is asked" % route.table,)
                break
        return taken, reasons

    def split(self, region: Intervals) -> t.List[t.Tuple[t.Optional[Route], Intervals]]:
        """Addresses by the routes that lead to them."""
        if len(region) == 1 and region[0][0] == region[0][1]:
            return [(self.to(region[0][0])[0], region)]
        found: t.List[t.Tuple[t.Optional[Route], Intervals]] = []
        for length in sorted(self._levels, reverse=True):
            for routes in self._levels[length].values():
                route = min(routes, key=lambda item: item.metric)
                inside = intersect(region, of_network(route.destination))
                if inside:
                    found.append((route, inside))
                    region = subtract(region, inside)
        return found + ([(None, region)] if region else [])


class Tracer:
    """Walks connections over one snapshot; what was compiled for one is kept for the next."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.survey = Survey(snapshot)
        self.routes = {family: Routes(snapshot, family) for family in (IPV4, IPV6)}
        self._programs: t.Dict[t.Tuple[str, str, str], t.Optional[Program]] = {}
        self._variants: t.Dict[str, t.List[Family]] = {}
        self._silent: t.Dict[t.Tuple[str, str, str, str], bool] = {}
        self._bridges = {family: tables_of(snapshot, family) for family in self.survey.nftables}

    # The way

    def ends(self, start: Start, destination: int, port: int, protocol: str, source_ports: Interval) -> t.List[End]:
        """Where the connections of all clients of a start end, with answers looked at too."""
        packet = _Packet(
            family=start.family,
            region=start.region,
            protocol=protocol,
            destination=destination,
            port=port,
            in_interface=start.in_interface,
            out_interface="",
            source_ports=source_ports if protocol in _WITH_PORTS else ANY_PORT,
            original=(destination, port),
            source_local=start.local,
            back=start.back,
            icmp_type=_ECHO.get(protocol),
            reasons=start.reasons,
        )
        found: t.List[End] = []
        missing = self._unread(start.family)
        if missing:
            packet = packet.hanging(missing)
            self._end(packet.told("rules", "what could not be read may stop it"), found, "unknown")
        if start.local:
            self._output(packet, found)
        else:
            self._arrive(packet, found)
        return found[:_MOST_WAYS]

    def _unread(self, family: str) -> t.Tuple[str, ...]:
        """What of the rules could not be read."""
        missing = self._bridges[family][1] if family in self._bridges else ()
        return missing + tuple(
            "what was not read: %s" % hole.reason.rstrip(".")
            for hole in self.snapshot.holes
            if hole.part == "iptables"
            or (hole.part + "_").startswith("iptables_%s_" % family)
            or hole.part in ("routes", "interfaces", "nft")
        )

    def _arrive(self, packet: _Packet, ends: t.List[End]) -> None:
        if self._to_itself(packet):
            text = "%s is the container's own address: nothing leaves it, and no rule of the host reads it"
            self._end(packet.told("delivery", text % self.address(packet)), ends, "container")
            return
        bridge = self._same_bridge(packet)
        if bridge:
            passes = self.survey.bridge_netfilter(packet.family)
            if passes is not True:
                reason = ("whether bridge-nf-call-iptables is on",) if passes is None else ()
                free = packet.told("bridge", "stays on the bridge %s, and no rule reads it there" % bridge)
                self._at_container(free._replace(out_interface=bridge).hanging(reason), ends, free=True)
                if passes is False:
                    return
                packet = packet.hanging(reason)
            packet = packet._replace(bridged=True)
        for passed in self._hook([packet], "PREROUTING", ends):
            self._routed(passed, bridge, ends)

    def _to_itself(self, packet: _Packet) -> bool:
        """True for a container's packet to an address of its own."""
        known = self.survey.family(packet.family).endpoints_by_number
        target, sender = known.get(packet.destination), known.get(packet.region[0][0])
        if target is None or sender is None or target.container.id != sender.container.id:
            return False
        return packet.region == ((sender.number, sender.number),) and sender.bridge == packet.in_interface

    def _same_bridge(self, packet: _Packet) -> str:
        """The bridge that both ends are on, of those that Docker made; empty for none."""
        target = self.survey.family(packet.family).endpoints_by_number.get(packet.destination)
        if target is not None and target.bridge and target.bridge == packet.in_interface:
            return target.bridge
        return ""

    def _routed(self, packet: _Packet, bridge: str, ends: t.List[End]) -> None:
        """The routing decision."""
        routes, family = self.routes[packet.family], packet.family
        if bridge and not packet.dnat:
            self._forward(packet._replace(out_interface=bridge), ends)
            return
        loopback = of_network("127.0.0.0/8" if family == IPV4 else "::1")
        here = ((packet.destination, packet.destination),)
        if packet.in_interface != "lo" and overlaps(loopback, here) and not self._localnet(packet):
            gone = packet.told("routing", "the kernel refuses an address of loopback that comes in from outside")
            self._end(gone, ends, "martian")
            return
        if routes.local(packet.destination):
            self._input(packet.told("routing", "%s is the host's own" % self.address(packet)), ends)
            return
        name = "net.ipv4.ip_forward" if family == IPV4 else "net.ipv6.conf.all.forwarding"
        if self.snapshot.sysctls.get(name, "").strip() == "0":
            self._end(packet.told("routing", "%s is 0, so the host forwards nothing" % name), ends, "forwarding")
            return
        route, reasons = routes.to(packet.destination)
        if route is None or not route.interface or route.type != "unicast":
            if not routes.known:
                self._unknown(packet.hanging(("the host's routes, which are not in the snapshot",)), ends)
            else:
                self._end(packet.told("routing", "no route leads to %s" % self.address(packet)), ends, "route")
            return
        packet = packet.told("routing", "forwarded to %s by %s" % (self.address(packet), route.interface))
        self._forward(packet._replace(out_interface=route.interface).hanging(reasons), ends)

    def _localnet(self, packet: _Packet) -> bool:
        names = ("net.ipv4.conf.all.route_localnet", "net.ipv4.conf.%s.route_localnet" % packet.in_interface)
        return packet.family == IPV4 and any(self.snapshot.sysctls.get(name, "").strip() == "1" for name in names)

    def _forward(self, packet: _Packet, ends: t.List[End]) -> None:
        if packet.in_interface == packet.out_interface and packet.in_interface in self.survey.networks_by_bridge:
            packet = packet._replace(bridged=bool(self.survey.bridge_netfilter(packet.family)))
            if packet.bridged and packet.region == ((packet.destination, packet.destination),):
                # Docker lets bridges send packets back where they came from only in place of docker-proxy.
                engine = self.snapshot.engine
                if engine is None or engine.options.get("userland-proxy") is not False:
                    text = "the bridge %s does not send a packet back to the container that it came from"
                    self._end(packet.told("bridge", text % packet.out_interface), ends, "hairpin")
                    return
        for passed in self._hook(self._hook([packet], "FORWARD", ends), "POSTROUTING", ends):
            self._at_container(passed, ends)

    def _at_container(self, packet: _Packet, ends: t.List[End], free: bool = False) -> None:
        """Where a packet gets that leaves by an interface: a container, or another machine."""
        family = self.survey.family(packet.family)
        endpoint = family.endpoints_by_number.get(packet.destination)
        kind = "elsewhere"
        if endpoint is not None:
            kind = "container"
            packet = packet.told("delivery", "reaches %s" % self.named(endpoint, packet.port))
        elif overlaps(family.subnets, ((packet.destination, packet.destination),)):
            network = self.survey.networks_by_bridge.get(packet.out_interface)
            if network is None or network.name != "docker_gwbridge":
                self._end(packet.told("delivery", "nobody has %s" % self.address(packet)), ends, "nobody")
                return
            kind = "swarm"
            packet = packet.told("delivery", "reaches Swarm's routing mesh, which hands it to the service")
        else:
            packet = packet.told("delivery", "leaves the host by %s" % packet.out_interface)
        self._answered(packet, kind, ends, free)

    def _input(self, packet: _Packet, ends: t.List[End]) -> None:
        packet = packet._replace(out_interface="", bridged=False)
        for passed in self._hook([packet], "INPUT", ends):
            self._at_host(passed, ends)

    def _at_host(self, packet: _Packet, ends: t.List[End]) -> None:
        """Who listens there: docker-proxy, another program, or nobody."""
        if packet.protocol not in _WITH_PORTS:
            self._answered(packet.told("delivery", "reaches the host, which answers itself"), "host", ends)
            return
        address = self.address(packet)
        for proxy in self.snapshot.proxies:
            wide = proxy.host_address in _ANY_ADDRESS and (not proxy.host_address or self._of_family(packet, proxy))
            if (
                (proxy.protocol, proxy.host_port) == (packet.protocol, packet.port)
                and (wide or proxy.host_address == address)
                and proxy.container_address
            ):
                text = "docker-proxy takes it and connects to %s itself"
                where = self._endpoint_text(proxy.container_address, proxy.container_port)
                self._proxied(packet.told("delivery", text % where), proxy.container_address, proxy, ends)
                return
        if any(self._heard(packet, item.protocol, item.address, item.port) for item in self.snapshot.listening):
            self._answered(packet.told("delivery", "reaches a program of the host"), "host", ends)
            return
        if self.survey.unread("listening") or self.survey.unread("proxies"):
            self._unknown(packet.hanging(("whether somebody listens on the host, which was not read",)), ends)
            return
        text = "nobody listens on port %d of the host, and no rule forwards it" % packet.port
        self._end(packet.told("delivery", text), ends, "unserved")

    @staticmethod
    def _of_family(packet: _Packet, proxy: t.Any) -> bool:
        return (":" in proxy.host_address) == (packet.family == IPV6)

    def _heard(self, packet: _Packet, protocol: str, address: str, port: int) -> bool:
        if (protocol, port) != (packet.protocol, packet.port):
            return False
        if address in _ANY_ADDRESS:
            return address == "::" or packet.family == IPV4
        return address == self.address(packet)

    def _proxied(self, packet: _Packet, target: str, proxy: t.Any, ends: t.List[End]) -> None:
        """docker-proxy's own connection, in place of the client's; then the client's answer."""
        if packet.proxies >= _MOST_PROXIES:
            self._end(packet.told("delivery", "docker-proxy connects to itself"), ends, "loop")
            return
        family = IPV6 if ":" in target else IPV4
        number = of_network(target)[0][0]
        own = self.own_address(family, number)
        made = _Packet(
            family=family,
            region=((own, own),) if own is not None else EVERYTHING[family],
            protocol=packet.protocol,
            destination=number,
            port=proxy.container_port,
            in_interface="",
            out_interface="",
            source_ports=CLIENT_PORTS,
            original=(number, proxy.container_port),
            source_local=True,
            back="",
            clients=packet.clients or packet.region,
            proxies=packet.proxies + 1,
            reasons=packet.reasons,
            steps=packet.steps,
        )
        inner: t.List[End] = []
        missing = self._unread(family) if family != packet.family else ()
        if missing:
            made = made.hanging(missing)
            self._end(made.told("rules", "what could not be read may stop it"), inner, "unknown")
        self._output(made, inner)
        self._before_proxy(packet, inner, ends)

    def _before_proxy(self, packet: _Packet, inner: t.Sequence[End], ends: t.List[End]) -> None:
        """Ends of docker-proxy's connection, those that reach something with the client's answer looked at."""
        for end in inner:
            if not end.delivered:
                ends.append(end)
                continue
            last = packet._replace(reasons=end.reasons, steps=end.steps)
            outer: t.List[End] = []
            self._answered(last, "host", outer)
            ends += [
                item._replace(
                    kind=end.kind if item.delivered else item.kind,
                    family=end.family,
                    destination=end.destination,
                    port=end.port,
                    translated=packet.original,
                    proxied=True,
                )
                for item in outer
            ]

    def _output(self, packet: _Packet, ends: t.List[End]) -> None:
        """A packet of the host's own."""
        routes = self.routes[packet.family]
        leaving, reasons = self._way_out(packet)
        if leaving is None:
            if not routes.known:
                self._unknown(packet.hanging(("the host's routes, which are not in the snapshot",)), ends)
            else:
                self._end(packet.told("routing", "no route leads to %s" % self.address(packet)), ends, "route")
            return
        packet = packet._replace(out_interface=leaving, in_interface="").hanging(reasons)
        packet = packet.told("routing", "the host itself sends it by %s" % leaving)
        for passed in self._hook([packet], "OUTPUT", ends):
            again, reasons = self._way_out(passed)
            if again is None:
                self._end(passed.told("routing", "no route leads to %s" % self.address(passed)), ends, "route")
                continue
            moved = passed._replace(out_interface=again).hanging(reasons)
            for sent in self._hook([moved], "POSTROUTING", ends):
                if again != "lo":
                    self._at_container(sent, ends)
                    continue
                looped = sent._replace(in_interface="lo", out_interface="", looped=True)
                for arrived in self._hook([looped], "PREROUTING", ends):
                    self._input(arrived, ends)

    def _way_out(self, packet: _Packet) -> t.Tuple[t.Optional[str], t.Tuple[str, ...]]:
        routes = self.routes[packet.family]
        if routes.local(packet.destination):
            return "lo", ()
        route, reasons = routes.to(packet.destination)
        if route is None or not route.interface or route.type != "unicast":
            return None, ()
        return route.interface, reasons

    # Answers

    def _answered(self, packet: _Packet, kind: str, ends: t.List[End], free: bool = False) -> None:
        """A packet has arrived: its answer goes the way back."""
        if free:
            self._end(packet, ends, kind)
            return
        words = {word for word, done in (("DNAT", packet.dnat), ("SNAT", packet.snat)) if done}
        answer = packet._replace(
            reply=True,
            states=frozenset({"ESTABLISHED"} | words),
            mark=0,
            icmp_type=_ECHO_REPLY.get(packet.protocol),
        )
        if kind == "host":
            if packet.looped:
                path = [("OUTPUT", "", "lo"), ("POSTROUTING", "", "lo"), ("PREROUTING", "lo", ""), ("INPUT", "lo", "")]
            else:
                back = packet.back or packet.in_interface
                path = [("OUTPUT", "", back), ("POSTROUTING", "", back)]
        elif packet.source_local:
            path = [("PREROUTING", packet.out_interface, ""), ("INPUT", packet.out_interface, "")]
        else:
            back = packet.back or packet.in_interface
            into = packet.out_interface
            path = [("PREROUTING", into, ""), ("FORWARD", into, back), ("POSTROUTING", into, back)]
        passing = [answer.told("answer", "the answer goes back")] if not packet.reply else [answer]
        for hook, into, out in path:
            passing = self._hook([item._replace(in_interface=into, out_interface=out) for item in passing], hook, ends)
        for item in passing:
            self._end(item, ends, kind)

    # Hooks

    def _hook(self, packets: t.List[_Packet], hook: str, ends: t.List[End]) -> t.List[_Packet]:
        for table in _HOOKS[hook]:
            passed: t.List[_Packet] = []
            for packet in packets:
                passed += self._table(packet, hook, table, ends)
            packets = passed
            if table == "raw":
                seen = [each for packet in passed for each in self._tracked(packet)]
                packets = [packet for packet in seen if not self._foreign(packet, ends)]
            if table == "nat" and hook == "OUTPUT":
                packets = [packet for packet in packets if not self._stuck(packet, ends)]
            packets = packets[:_MOST_WAYS]
        if packets:
            strange = self.survey.strangers(packets[0].family, hook.lower())
            if strange:
                unsure = [packet.hanging(strange) for packet in packets]
                for packet in unsure:
                    self._end(packet.told(hook, "perhaps stopped by nftables"), ends, "nftables")
                return unsure
        return packets

    def _foreign(self, packet: _Packet, ends: t.List[End]) -> bool:
        """True for an answer that conntrack does not know as one, and that is so not translated back.

        Or that it takes for a connection of its own, which may be translated as any other.
        """
        if packet.reply and packet.states == {"NEW"}:
            self._unknown(packet.hanging(("how conntrack takes answers to what it does not track",)), ends)
            return True
        if not packet.reply or packet.tracked or not (packet.dnat or packet.snat):
            return False
        self._end(
            packet.told("conntrack", "the answer is not tracked, so it is not translated back"), ends, "untracked"
        )
        return True

    def _stuck(self, packet: _Packet, ends: t.List[End]) -> bool:
        """True where a translation of the host's own packet leaves it without a way: loopback's stay on the host."""
        if not packet.dnat or packet.family != IPV4 or not overlaps(of_network("127.0.0.0/8"), packet.region):
            return False
        leaving, _reasons = self._way_out(packet)
        if leaving in (None, "lo") or self._localnet(packet._replace(in_interface=leaving or "")):
            return False
        text = "the kernel sends nothing from an address of loopback by %s (route_localnet is off there)"
        self._end(packet.told("routing", text % leaving), ends, "martian")
        return True

    def _tracked(self, packet: _Packet) -> t.List[_Packet]:
        """What conntrack does: a packet that a rule of the table raw did not want tracked has no connection.

        Both ways, where nobody knows whether the rule matches.
        """
        if packet.mark is None and not packet.looped and self._has_notrack(packet.family):
            either = packet.hanging(("whether the connection is tracked",))
            return [self._with_connection(either), self._without_connection(either)]
        if packet.mark is not None and packet.mark & _NOTRACK:
            return [self._without_connection(packet._replace(mark=packet.mark & ~_NOTRACK))]
        return [self._with_connection(packet)]

    @staticmethod
    def _with_connection(packet: _Packet) -> _Packet:
        if packet.reply and not packet.tracked:
            # An answer to what was not tracked is the first packet that conntrack sees.
            word = "INVALID" if packet.protocol == "tcp" else "NEW"
            return packet._replace(states=frozenset((word,)))
        return packet

    @staticmethod
    def _without_connection(packet: _Packet) -> _Packet:
        return packet._replace(tracked=False, states=frozenset(("UNTRACKED",)))

    def _has_notrack(self, family: str) -> bool:
        """True if a rule of the table raw keeps anything from being tracked."""
        return any(
            _as_mark(rule) is not rule
            for variant in self.variants(family)
            for chain in variant.table("raw").chains.values()
            for rule in chain.rules
        )

    def _table(self, packet: _Packet, hook: str, table: str, ends: t.List[End]) -> t.List[_Packet]:
        if table == "nat" and (not packet.tracked or packet.reply or (packet.looped and hook == "PREROUTING")):
            return [packet]
        packets = [packet]
        for variant in self.variants(packet.family):
            passed: t.List[_Packet] = []
            for item in packets:
                done = item.snat if hook in ("POSTROUTING", "INPUT") else item.dnat
                if table == "nat" and done:
                    passed.append(item)
                else:
                    passed += self._chain(item, variant, hook, table, ends)
            packets = passed
        return packets

    def variants(self, family: str) -> t.List[Family]:
        """The variants of iptables that hook into this family, and Docker's own tables of nftables."""
        if family not in self._variants:
            one = self.survey.family(family)
            found = [one] if one.other is None else [one, one.other]
            if family in self._bridges:
                dump, _missing = self._bridges[family]
                made = Family(self.survey, family, "nftables")
                made.dump = dump
                found.append(made)
            self._variants[family] = found
        return self._variants[family]

    def _program(self, variant: Family, table: str, looped: bool = False) -> Program:
        if looped:
            # A packet that has a connection keeps it: NOTRACK does nothing then.
            return variant.program(table, marked=True)
        key = (variant.name, variant.variant, table)
        program = self._programs.get(key)
        if program is None:
            program = variant.program(table, marked=True)
            if table == "raw":
                chains, changed = _with_notrack(program.chains)
                if changed:
                    program = program.with_chains(chains, changed)
            self._programs[key] = program
        return program

    def _is_silent(self, variant: Family, table: str, hook: str) -> bool:
        """True if a hook's chain does nothing to anybody."""
        key = (variant.name, variant.variant, table, hook)
        if key not in self._silent:
            chain = variant.table(table).chains.get(hook)
            program = None if chain is None else self._program(variant, table)
            self._silent[key] = (
                chain is None
                or program is None
                or (not chain.rules and chain.policy in (None, ACCEPT) and hook not in program.misprinted)
            )
        return self._silent[key]

    def _chain(self, packet: _Packet, variant: Family, hook: str, table: str, ends: t.List[End]) -> t.List[_Packet]:
        """Packets through one chain: those that go on, each as it goes on."""
        if self._is_silent(variant, table, hook):
            return [packet]
        program = self._program(variant, table, packet.looped)
        flow, within = self._flow(packet, hook, table)
        marks: t.List[t.Tuple[Intervals, t.Optional[int]]] = []
        outcomes = program.walk(hook, flow, within, marks=marks)
        if within is not packet.region:
            # All clients' packets look the same here.
            outcomes = [item._replace(peers=packet.region) for item in outcomes]
            marks = [(packet.region, mark) for _peers, mark in marks]
        reading = _Reading(packet, variant, hook, table, program, flow.peer)
        passes, stops = _sorted_out(outcomes, marks, flow.mark, table)
        blocked = _joined([item.peers for item in stops])
        found: t.List[_Packet] = []
        free = _joined([part.region for part in passes])
        for part in passes:
            others = _joined([other.region for other in passes if other.way != part.way])
            others = union(others, blocked) if blocked else others
            for region, reasons in _split(part.region, others, part.reasons):
                found.append(self._passed(reading, part, region, reasons))
        taken: Intervals = NOTHING
        for item in reversed(stops):
            # Of several that may do it, the last one does what the others leave.
            region = subtract(item.peers, taken) if taken else item.peers
            taken = union(taken, region)
            fuzzy = any(other is not item and overlaps(other.peers, region) for other in stops)
            for clients, reasons in _split(region, free, item.reasons):
                step = reading.step(item, clients)
                stopped = packet._replace(region=clients, steps=(*packet.steps, step)).hanging(reasons)
                self._end(stopped, ends, "denied", step.decided, fuzzy)
        return [item for item in found if not self._lost(item, ends)]

    def _passed(self, reading: _Reading, part: _Part, region: Intervals, reasons: t.Tuple[str, ...]) -> _Packet:
        step = reading.step(part.outcome, region)
        packet = reading.packet._replace(region=region, mark=part.mark)
        if reasons:
            packet = packet.hanging(reasons)
        if part.way[0] is None:
            return packet._replace(steps=(*packet.steps, step))
        return self._translated(packet, reading, part.outcome, step)

    def _translated(self, packet: _Packet, reading: _Reading, outcome: Outcome, step: Step) -> _Packet:
        """What DNAT, REDIRECT, SNAT and MASQUERADE do."""
        rule = reading.program.rule(outcome.site) if outcome.site is not None else Rule(())
        verdict = outcome.verdict
        if verdict in ("DNAT", "REDIRECT"):
            address, port = packet.destination, packet.port
            unknown = False
            if verdict == "DNAT":
                target = _target(rule.value("to_destination") or "")
                unknown = target is None
                if target is not None:
                    address = packet.destination if target[0] is None else target[0]
                    port = target[1] or packet.port
            else:
                name = packet.in_interface or "lo"
                own = self.address_of(packet.family, name)
                address = own if own is not None else packet.destination
                unknown = own is None
                ports = rule.value("to_ports") or ""
                unknown = unknown or "-" in ports
                port = int(ports) if ports.isdigit() else packet.port
            changed = (address, port) != (packet.destination, packet.port)
            packet = packet._replace(
                destination=address,
                port=port,
                dnat=True,
                states=packet.states | ({"DNAT"} if changed else frozenset()),
                steps=(*packet.steps, step),
            )
            return packet.hanging(("where %s leads" % rule.render(),)) if unknown else packet
        masked: t.Optional[int] = None
        if verdict == "SNAT":
            target = _target(rule.value("to_source") or "")
            masked = target[0] if target is not None else None
        elif verdict == "MASQUERADE":
            masked = self._masquerade(packet)
        return packet._replace(snat=True, masked=masked, steps=(*packet.steps, step))

    def _masquerade(self, packet: _Packet) -> t.Optional[int]:
        """The address that stands for the sender's: of the interface, or for loopback another one of the host."""
        if packet.out_interface != "lo":
            return self.address_of(packet.family, packet.out_interface)
        if packet.family == IPV6:
            return packet.destination
        names = ["lo", *(interface.name for interface in self.snapshot.interfaces)]
        loopback = of_network("127.0.0.0/8")
        found = (self.address_of(packet.family, name) for name in names)
        return next((own for own in found if own is not None and not overlaps(loopback, ((own, own),))), None)

    def _lost(self, packet: _Packet, ends: t.List[End]) -> bool:
        """True where a translation leads nobody knows where."""
        if packet.reasons and packet.reasons[-1].startswith("where "):
            self._unknown(packet, ends)
            return True
        return False

    def address_of(self, family: str, name: str) -> t.Optional[int]:
        """The first address of an interface."""
        for interface in self.snapshot.interfaces:
            if interface.name == name:
                for address in interface.addresses:
                    text = address.partition("/")[0]
                    if (":" in text) == (family == IPV6) and not ipaddress.ip_address(text).is_link_local:
                        return of_network(text)[0][0]
        return None

    def own_address(self, family: str, destination: int) -> t.Optional[int]:
        """The address that the host sends from to a destination."""
        if self.routes[family].local(destination):
            return destination
        route, _reasons = self.routes[family].to(destination)
        own = self.address_of(family, route.interface) if route is not None else None
        if own is None:
            own = next(
                (found for name in self.survey.outside for found in [self.address_of(family, name)] if found), None
            )
        return own

    def _flow(self, packet: _Packet, hook: str, table: str) -> t.Tuple[Flow, Intervals]:
        """The packets as a chain sees them, and for whom it is walked."""
        here = ((packet.destination, packet.destination),)
        states = packet.states
        if table == "raw" and not packet.looped:
            states = frozenset(("INVALID",))
        ports = (packet.port, packet.port) if packet.protocol in _WITH_PORTS else ANY_PORT
        asked = ((packet.original[0], packet.original[0]),)
        asked_port = (packet.original[1], packet.original[1]) if packet.protocol in _WITH_PORTS else ANY_PORT
        local = "LOCAL" if packet.source_local else "UNICAST"
        target = "LOCAL" if self.routes[packet.family].local(packet.destination) else "UNICAST"
        masked: t.Any = PEER
        if packet.snat:
            masked = None if packet.masked is None else ((packet.masked, packet.masked),)
        flow = Flow(
            family=packet.family,
            peer=SOURCE,
            protocol=packet.protocol,
            in_interface=packet.in_interface,
            out_interface=packet.out_interface,
            address=here,
            source_ports=packet.source_ports,
            destination_ports=ports,
            states=states,
            original=(PEER, asked),
            original_ports=(packet.source_ports, asked_port),
            reply=(here, masked),
            reply_ports=(ports, packet.source_ports),
            flags=_SYN,
            mark=packet.mark,
            # Where a packet goes is not known before FORWARD.
            bridged=packet.bridged and hook in ("FORWARD", "POSTROUTING"),
            source_type=local,
            destination_type=target,
            icmp_type=packet.icmp_type,
            bridge_port=self._came_by_bridge_port(packet),
        )
        if not packet.reply:
            if packet.snat and packet.looped and hook in ("PREROUTING", "INPUT"):
                # Masqueraded on its way out, it comes in from that address.
                return flow._replace(original=(packet.region, asked)), self._hidden(packet)
            return flow, packet.region
        flow = flow._replace(
            peer=DESTINATION,
            source_ports=ports,
            destination_ports=packet.source_ports,
            direction="REPLY" if packet.tracked else "ORIGINAL",
            flags=_SYN_ACK,
            source_type=target,
            destination_type=local,
        )
        if packet.snat and (hook == "PREROUTING" or (packet.looped and hook != "INPUT")):
            # The client's address is put back only after the table mangle.
            return flow._replace(original=(packet.region, asked), destination_type="LOCAL"), self._hidden(packet)
        return flow, packet.region

    def _came_by_bridge_port(self, packet: _Packet) -> t.Optional[bool]:
        """Whether br_netfilter knows a port of a bridge that the packet came in by."""
        kind = self._kinds.get(packet.in_interface)
        if not packet.in_interface or packet.in_interface == "lo" or (kind is not None and kind != "bridge"):
            return False
        return None if kind is None else self.survey.bridge_netfilter(packet.family)

    @functools.cached_property
    def _kinds(self) -> t.Dict[str, str]:
        return {interface.name: interface.kind for interface in self.snapshot.interfaces}

    @staticmethod
    def _hidden(packet: _Packet) -> Intervals:
        """What is seen of a sender that is masqueraded."""
        return EVERYTHING[packet.family] if packet.masked is None else ((packet.masked, packet.masked),)

    # Ends

    def _end(
        self,
        packet: _Packet,
        ends: t.List[End],
        kind: str,
        decided: t.Optional[Decided] = None,
        fuzzy: bool = False,
    ) -> None:
        delivered = kind in ("container", "host", "elsewhere", "swarm")
        if delivered and decided is None:
            decided = _letting_in(packet.steps)
        ends.append(
            End(
                clients=packet.clients if packet.clients is not None else packet.region,
                delivered=delivered,
                kind=kind,
                reasons=packet.reasons,
                decided=decided,
                steps=packet.steps,
                family=packet.family,
                destination=packet.destination,
                port=packet.port,
                translated=packet.original if packet.dnat else None,
                proxied=packet.proxies > 0,
                reply=packet.reply,
                fuzzy=fuzzy,
            )
        )

    def _unknown(self, packet: _Packet, ends: t.List[End]) -> None:
        """It gets through or not."""
        self._end(packet, ends, "elsewhere")
        self._end(packet, ends, "unknown")

    # Words

    def address(self, packet: _Packet) -> str:
        return address_text(packet.family, packet.destination)

    def named(self, endpoint: Endpoint, port: int) -> str:
        """C(web-b (172.17.0.3:8080))."""
        return "%s (%s)" % (endpoint.container.name, with_port(endpoint.address, port))

    def _endpoint_text(self, address: str, port: int) -> str:
        container = self.survey.owners.get(address)
        return "%s (%s)" % (container.name, with_port(address, port)) if container else with_port(address, port)

    def endpoint(self, end: End) -> t.Optional[Endpoint]:
        """The container that a connection gets to, or would have got to."""
        return self.survey.family(end.family).endpoints_by_number.get(end.destination)


class _Part(t.NamedTuple):
    """Packets that go on from a chain in one way: translated by the rule at a site (or not), and with a mark."""

    way: t.Tuple[t.Optional[Site], t.Optional[int]]
    region: Intervals
    outcome: Outcome
    mark: t.Optional[int]
    reasons: t.Tuple[str, ...]


class _Reading(t.NamedTuple):
    """A chain that is read for some packets."""

    packet: _Packet
    variant: Family
    hook: str
    table: str
    program: Program
    peer: str

    def step(self, outcome: Outcome, region: Intervals) -> Step:
        """What an outcome is in words."""
        place = "%s %s" % (self.table, self.hook)
        suffix = _VARIANT_TEXTS.get(self.variant.variant, "")
        site = outcome.site
        if site is None:
            decided = Decided(self.packet.family, self.variant.variant, self.table, self.hook, 0, "")
            if outcome.verdict in DENYING:
                return Step(self.hook, "%s%s: no rule decides, and the policy drops it" % (place, suffix), decided)
            return Step(self.hook, "%s%s: no rule decides, and the policy lets it pass" % (place, suffix), decided)
        site = self.program.exact(site, self.peer, region)
        rule = self.program.rule(site).render()
        decided = Decided(self.packet.family, self.variant.variant, self.table, site.chain, site.position, rule)
        verb = {"ACCEPT": "accepts", "DROP": "drops", "REJECT": "rejects", "RETURN": "returns"}.get(
            outcome.verdict, "does %s to" % outcome.verdict
        )
        if outcome.verdict in _TRANSLATING:
            verb = "translates"
        perhaps = "perhaps " if outcome.reasons else ""
        text = "%s%s: rule %d of %s %s%s it: %s" % (place, suffix, site.position, site.chain, perhaps, verb, rule)
        return Step(self.hook, text, decided)


def _joined(regions: t.Sequence[Intervals]) -> Intervals:
    if len(regions) == 1:
        return regions[0]
    return join(piece for region in regions for piece in region)


def _split(
    region: Intervals, others: Intervals, reasons: t.Tuple[str, ...]
) -> t.List[t.Tuple[Intervals, t.Tuple[str, ...]]]:
    """What happens for certain as nothing else does, and what hangs on the reasons."""
    if not others or not reasons:
        return [(region, ())]
    parts = [(subtract(region, others), ()), (intersect(region, others), reasons)]
    return [(part, why) for part, why in parts if part]


def _sorted_out(
    outcomes: t.Sequence[Outcome],
    marks: t.Sequence[t.Tuple[Intervals, t.Optional[int]]],
    before: t.Optional[int],
    table: str,
) -> t.Tuple[t.List[_Part], t.List[Outcome]]:
    """The packets that go on, by the way in which they do, and outcomes that stop them."""
    stops: t.List[Outcome] = []
    parts: t.Dict[t.Tuple[t.Optional[Site], t.Optional[int]], t.List[_Part]] = {}
    for outcome in outcomes:
        translates = table == "nat" and outcome.verdict in _TRANSLATING
        if outcome.verdict not in (ACCEPT, RETURN) and not translates:
            stops.append(outcome)
            continue
        for whole, mark in _marked(outcome, marks, before):
            way = (outcome.site if translates else None, mark)
            group = parts.setdefault(way, [])
            # Nothing hangs on which of several rules lets it pass.
            region = subtract(whole, _joined([known.region for known in group])) if group else whole
            if region:
                group.append(_Part(way, region, outcome, mark, outcome.reasons))
    return [part for group in parts.values() for part in group], stops


def _marked(
    outcome: Outcome, marks: t.Sequence[t.Tuple[Intervals, t.Optional[int]]], before: t.Optional[int]
) -> t.List[t.Tuple[Intervals, t.Optional[int]]]:
    """An outcome's peers by the marks of their packets."""
    values = {mark for _peers, mark in marks}
    if len(values) < 2:
        return [(outcome.peers, values.pop() if values else before)]
    regions = {
        value: intersect(outcome.peers, _joined([peers for peers, mark in marks if mark == value])) for value in values
    }
    found: t.List[t.Tuple[Intervals, t.Optional[int]]] = []
    several: Intervals = NOTHING
    for value, region in regions.items():
        for other, more in regions.items():
            if other != value:
                several = union(several, intersect(region, more))
    for value, region in regions.items():
        alone = subtract(region, several)
        if alone:
            found.append((alone, value))
    if several:
        found.append((several, None))
    return found


def _with_notrack(chains: t.Mapping[str, Chain]) -> t.Tuple[t.Dict[str, Chain], t.List[str]]:
    """The chains with C(-j NOTRACK) and C(-j CT --notrack) as marks of their own bit; the names of changed ones."""
    found = dict(chains)
    changed: t.List[str] = []
    if not any(_as_mark(rule) is not rule for chain in chains.values() for rule in chain.rules):
        return found, changed
    for name, chain in chains.items():
        rules = [_state_as_mark(_as_mark(rule)) for rule in chain.rules]
        if any(one is not two for one, two in zip(rules, chain.rules)):
            found[name] = chain._replace(rules=tuple(rules))
            changed.append(name)
    return found, changed


def _state_as_mark(rule: Rule) -> Rule:
    """Ask for the bit in place of conntrack's state, which is UNTRACKED from NOTRACK on and INVALID before."""
    found: t.List[Field] = []
    group: t.List[Field] = []
    for field in (*rule.fields, Field("match", "", False, "")):
        if field.name in ("match", "jump", "goto"):
            asks = [item for item in group if _asks_for_tracking(item)]
            # Without a connection only the state is looked at.
            found += [item for item in group if not asks or not item.name.startswith("ct") or item.name == "ctstate"]
            group = []
        group.append(field)
    fields = [_as_bit(field) if _asks_for_tracking(field) else field for field in found]
    return Rule(tuple(fields), rule.counters) if fields != list(rule.fields) else rule


def _asks_for_tracking(field: Field) -> bool:
    """True if a state's answer differs between UNTRACKED and INVALID."""
    words = field.value.split(",") if field.name in ("ctstate", "state") else []
    return ("INVALID" in words) != ("UNTRACKED" in words)


def _as_bit(field: Field) -> Field:
    bit = _NOTRACK if "UNTRACKED" in field.value else 0
    return Field("mark", "0x%x/0x%x" % (bit, _NOTRACK), field.negated, field.text)


def _as_mark(rule: Rule) -> Rule:
    if rule.target not in ("CT", "NOTRACK"):
        return rule
    if rule.target == "CT" and "--notrack" not in rule.render():
        return rule
    fields = []
    for field in rule.fields:
        if field.name in ("jump", "goto"):
            break
        fields.append(field)
    bit = "0x%x/0x%x" % (_NOTRACK, _NOTRACK)
    fields += [Field("jump", "MARK", False, "-j NOTRACK"), Field("set_xmark", bit, False, "")]
    return Rule(tuple(fields), rule.counters)


def _target(text: str) -> t.Optional[t.Tuple[t.Optional[int], int]]:
    """Address (None: as it is) and port (0: as it is) that a translation leads to; None where that is a range."""
    address, port = text, ""
    if text.startswith("["):
        address, _bracket, port = text[1:].partition("]")
        port = port.lstrip(":")
    elif text.count(":") == 1:
        address, _colon, port = text.partition(":")
    try:
        return (int(ipaddress.ip_address(address)) if address else None), int(port or "0")
    except ValueError:
        return None


def _letting_in(steps: t.Sequence[Step]) -> t.Optional[Decided]:
    """The rule or policy of the table filter that lets a packet pass; the first packet's, not its answer's."""
    found = None
    for step in steps:
        if step.hook == "delivery":
            break
        if step.decided is not None and step.decided.table == "filter":
            found = step.decided
    return found


@functools.lru_cache(maxsize=4096)
def address_text(family: str, number: int) -> str:
    return str((ipaddress.IPv4Address if family == IPV4 else ipaddress.IPv6Address)(number))


def with_port(address: str, port: int) -> str:
    if not port:
        return address
    return "[%s]:%d" % (address, port) if ":" in address else "%s:%d" % (address, port)
