# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What the checks ask about a snapshot, found once: published ports, ways in, and what the rules do to each.

A survey answers about the variant of iptables that Docker uses, one family at a time. Everything is computed when it
is first asked for, and from indexes: a host may have 1,000 containers and 10,000 rules.
"""

from __future__ import annotations

import functools
import ipaddress
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import Affected, Place
from ansible_collections.quaywall.docker.plugins.module_utils._chain import (
    DENYING,
    DOCKER_CHAINS,
    DOCKER_USER,
    FORWARD,
    GUARD_DENY_CHAIN,
    GUARD_MARK,
    Chain,
    Dump,
    Table,
    docker_manages,
    mark_of,
)
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import (
    EVERYTHING,
    Intervals,
    intersect,
    join,
    of_network,
    subtract,
    text,
)
from ansible_collections.quaywall.docker.plugins.module_utils._inventory import Binding, Container, Inventory, Network
from ansible_collections.quaywall.docker.plugins.module_utils._plan import is_jump
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6, Rule, parse, port_ranges
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import Snapshot, docker_variant
from ansible_collections.quaywall.docker.plugins.module_utils._walk import (
    ANY_PORT,
    DESTINATION,
    PEER,
    RETURN,
    SOURCE,
    Flow,
    Outcome,
    Program,
    Site,
    interface_matches,
)

FAMILIES = (IPV4, IPV6)
FAMILY_TEXTS = {IPV4: "IPv4", IPV6: "IPv6"}

_ESTABLISHED_FLAGS = (
    frozenset(("ACK",)),
    frozenset(("PSH", "ACK")),
    frozenset(("FIN", "ACK")),
)
_REPLY_FLAGS = (frozenset(("SYN", "ACK")), *_ESTABLISHED_FLAGS)

#: Table, chain, flow, and within which peers.
_Walked = t.Tuple[str, str, Flow, t.Optional[Intervals]]

#: Linux' default for ports of outgoing connections (net.ipv4.ip_local_port_range).
_EPHEMERAL = (32768, 60999)


class Endpoint(t.NamedTuple):
    """One address of a running container. ``number`` is the address as an integer."""

    container: Container
    network: str
    bridge: str
    family: str
    address: str
    number: int


class Published(t.NamedTuple):
    """A port of a running container that is published in one family.

    ``endpoint`` is where DNAT (or docker-proxy) leads to, None if that is not known; ``dnat`` says whether a DNAT rule
    does it, ``proxied`` whether docker-proxy serves the host port in this family. ``routed``: reached at the
    container's own address and port (gateway mode routed).
    """

    container: Container
    binding: Binding
    family: str
    endpoint: t.Optional[Endpoint]
    dnat: bool
    proxied: bool
    routed: bool = False

    @property
    def loopback(self) -> bool:
        """Published for the host itself only."""
        address = self.binding.host_address
        return bool(address) and ipaddress.ip_address(address).is_loopback

    @property
    def text(self) -> str:
        """C(9000->8080/tcp), with the host's address where it is not every one."""
        binding = self.binding
        address = binding.host_address
        if address in ("", "0.0.0.0", "::"):
            address = ""
        elif ":" in address:
            address = "[%s]:" % address
        else:
            address += ":"
        if self.routed:
            return "%d/%s" % (binding.container_port, binding.protocol)
        return "%s%d->%d/%s" % (address, binding.host_port, binding.container_port, binding.protocol)

    def affected(self, **more: t.Any) -> Affected:
        """The published port as a finding names it."""
        endpoint = self.endpoint
        return Affected(
            container=self.container.name,
            address=endpoint.address if endpoint is not None else "",
            network=endpoint.network if endpoint is not None else "",
            published=self.text,
            **more,
        )


class Hit(t.NamedTuple):
    """A rule that decides about packets of a flow, and for whom."""

    published: Published
    flow: Flow
    outcome: Outcome


class Reached(t.NamedTuple):
    """A rule that is read on the way through DOCKER-USER. ``path`` are the jumps that lead to it."""

    site: Site
    rule: Rule
    path: t.Tuple[Rule, ...]

    def value(self, name: str) -> t.Optional[str]:
        """The value of a field that is not negated, of the rule or of a jump that leads to it."""
        for rule in (self.rule, *reversed(self.path)):
            value = rule.value(name)
            if value is not None:
                return value
        return None


class Survey:
    """What the checks ask about a snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.inventory = snapshot.inventory or Inventory((), {})
        self._families: t.Dict[str, Family] = {}

    @functools.cached_property
    def running(self) -> t.List[Container]:
        """Containers that run, by name."""
        found = [container for container in self.inventory.containers if container.running]
        return sorted(found, key=lambda container: container.name)

    @functools.cached_property
    def networks_by_bridge(self) -> t.Dict[str, Network]:
        """Docker's bridge networks by the name of their interface."""
        return {network.bridge: network for network in self.inventory.networks.values() if network.bridge}

    @functools.cached_property
    def outside(self) -> t.List[str]:
        """Interfaces that lead out of the host, the default route's first."""
        default = [
            route.interface
            for route in self.snapshot.routes
            if route.destination in ("0.0.0.0/0", "::/0") and route.interface
        ]
        named = [
            item.name
            for item in self.snapshot.interfaces
            if item.name != "lo" and not item.master and item.name not in self.networks_by_bridge
        ]
        if not self.snapshot.interfaces:
            named = [route.interface for route in self.snapshot.routes if route.interface not in ("", "lo")]
        found = dict.fromkeys([*default, *named] or ["eth0"])
        return [name for name in found if name not in self.networks_by_bridge]

    @functools.cached_property
    def routed_ports(self) -> t.Dict[str, t.List[Binding]]:
        """By container what is published without a host port: reached at its own address (gateway mode routed).

        A port that is only exposed has no address in the engine's list.
        """
        found: t.Dict[str, t.List[Binding]] = {}
        if not any(network.routed for network in self.inventory.networks.values()):
            return found
        for item in (self.snapshot.data.get("docker") or {}).get("containers") or ():
            for port in item.get("Ports") or ():
                if port.get("IP") and not port.get("PublicPort") and port.get("PrivatePort"):
                    number, address = int(port["PrivatePort"]), str(port["IP"])
                    binding = Binding(str(port.get("Type") or "tcp"), number, number, address, False)
                    found.setdefault(str(item.get("Id")), []).append(binding)
        return found

    def bridge_netfilter(self, family: str) -> t.Optional[bool]:
        """Whether packets between containers of one bridge pass iptables; None if it is not known."""
        name = "net.bridge.bridge-nf-call-%stables" % ("ip" if family == IPV4 else "ip6")
        value = self.snapshot.sysctls.get(name)
        if value is None:
            # Without br_netfilter the name does not exist.
            return False if self.snapshot.sysctls else None
        return value.strip() == "1"

    @functools.cached_property
    def nftables(self) -> t.FrozenSet[str]:
        """The families whose rules Docker keeps in nftables' tables of its own, where nothing reads DOCKER-USER.

        C(/info) alone is no proof: 28.2 to 28.5 name that backend and use iptables all the same.
        """
        snapshot = self.snapshot
        names = {"ip": IPV4, "ip6": IPV6}
        if snapshot.nft is not None:
            tables = [item["table"] for item in snapshot.nft.docker if isinstance(item.get("table"), dict)]
            found = {names[key] for key in (str(table.get("family")) for table in tables) if key in names}
        else:
            engine = snapshot.engine
            told = engine is not None and engine.backend.startswith("nftables") and engine.version >= (29,)
            found = set(FAMILIES) if told else set()
        return frozenset(family for family in found if not self.family(family).docker_manages)

    @property
    def rootless(self) -> bool:
        """True if the engine has a network namespace of its own, and its rules there."""
        info = (self.snapshot.data.get("docker") or {}).get("info") or {}
        return any("rootless" in option for option in info.get("SecurityOptions") or ())

    def unread(self, part: str) -> bool:
        """True if a part of the snapshot could not be read, or something in it, or all that it is in."""
        names = [hole.part + "_" for hole in self.snapshot.holes]
        return any(name.startswith(part + "_") or (part + "_").startswith(name) for name in names)

    def strangers(self, family: str, *hooks: str) -> t.Tuple[str, ...]:
        """Reasons: chains of nftables besides iptables' and Docker's that may stop packets at one of the hooks."""
        if self.snapshot.nft is None:
            return ()
        families = ("inet", "ip" if family == IPV4 else "ip6")
        return tuple(
            "what nftables' chain %s of table %s %s stops" % (chain.chain, chain.family, chain.table)
            for chain in self.snapshot.nft.base_chains
            if chain.stops and chain.hook in hooks and chain.family in families and chain.table != "docker-bridges"
        )

    def family(self, family: str) -> Family:
        """The survey of one family."""
        if family not in self._families:
            self._families[family] = Family(self, family)
        return self._families[family]

    @property
    def families(self) -> t.List[Family]:
        """The surveys of both families, also of one that has no rules."""
        return [self.family(family) for family in FAMILIES]

    @functools.cached_property
    def owners(self) -> t.Dict[str, Container]:
        """Running containers by each of their addresses, as text."""
        return {
            address: container
            for container in self.running
            for addresses in container.networks.values()
            for address in addresses
        }


def _with_guard(chains: t.Mapping[str, Chain]) -> t.Mapping[str, Chain]:
    """The chains of mangle with the guard's marks as what they come to: POSTROUTING drops what carries them."""
    posted = chains.get("POSTROUTING")
    if GUARD_DENY_CHAIN not in chains or posted is None:
        return chains
    hook = {"match", "mark", "comment", "jump"}
    if not any(
        rule.value("mark") == GUARD_MARK and rule.target == "DROP" and {item.name for item in rule.fields} <= hook
        for rule in posted.rules
    ):
        return chains
    return {**chains, GUARD_DENY_CHAIN: chains[GUARD_DENY_CHAIN]._replace(rules=(parse("-j DROP"),))}


class Family:
    """What the checks ask about one family, in the variant of iptables that Docker uses unless another is named."""

    def __init__(self, survey: Survey, family: str, variant: str = "") -> None:
        self.survey = survey
        self.name = family
        self.variant = variant or docker_variant(survey.snapshot, family)
        self.dump: t.Optional[Dump] = survey.snapshot.dumps.get((family, self.variant))
        self._programs: t.Dict[t.Tuple[str, bool], Program] = {}
        self._walks: t.Dict[_Walked, t.List[Outcome]] = {}
        self._brief: t.Dict[_Walked, t.List[Outcome]] = {}

    @functools.cached_property
    def other(self) -> t.Optional[Family]:
        """The same family in the other variant of iptables; None if nothing is there."""
        for family, variant in self.survey.snapshot.dumps:
            if family == self.name and variant != self.variant:
                return Family(self.survey, family, variant)
        return None

    # Tables and chains

    def table(self, name: str) -> Table:
        """A table, without chains if it is not there."""
        return (self.dump.tables if self.dump is not None else {}).get(name) or Table(name, {})

    @property
    def filter(self) -> Table:
        return self.table("filter")

    @property
    def docker_user(self) -> t.Optional[Chain]:
        return self.filter.chains.get(DOCKER_USER)

    @property
    def docker_manages(self) -> bool:
        """True if Docker's own chains are there."""
        return docker_manages(self.filter)

    @functools.cached_property
    def jumps(self) -> bool:
        """True if FORWARD reads DOCKER-USER at all."""
        forward = self.filter.chains.get(FORWARD)
        return forward is not None and any(is_jump(rule) for rule in forward.rules)

    def place(self, site: t.Optional[Site] = None, table: str = "filter", chain: str = DOCKER_USER) -> Place:
        """Where a rule (or a whole chain) stands, for a finding."""
        if site is None:
            return Place(self.name, self.variant, table, chain)
        rule = self.table(table).chains[site.chain].rules[site.position - 1]
        return Place(self.name, self.variant, table, site.chain, site.position, rule.render())

    def rule(self, site: Site, table: str = "filter") -> Rule:
        return self.table(table).chains[site.chain].rules[site.position - 1]

    @functools.cached_property
    def reached(self) -> t.List[Reached]:
        """The rules that DOCKER-USER leads to, each once (by the first way there), in the order in which they are read.

        A rule behind an unconditional verdict is among them.
        """
        found: t.List[Reached] = []
        seen: t.Set[str] = set()
        chains = self.filter.chains
        if DOCKER_USER not in chains:
            return found
        # A stack of our own: chains may be nested deeper than Python likes.
        stack: t.List[t.Tuple[str, int, t.Tuple[Rule, ...]]] = [(DOCKER_USER, 0, ())]
        seen.add(DOCKER_USER)
        while stack:
            name, index, path = stack.pop()
            rules = chains[name].rules
            while index < len(rules):
                rule = rules[index]
                index += 1
                found.append(Reached(Site(name, index, index), rule, path))
                target = rule.target
                if target in chains and target not in seen and target is not None:
                    seen.add(target)
                    stack.append((name, index, path))
                    stack.append((target, 0, (*path, rule)))
                    break
        return found

    @functools.cached_property
    def user_chains(self) -> t.FrozenSet[str]:
        """DOCKER-USER and the chains that it leads to."""
        return frozenset(item.site.chain for item in self.reached) | {DOCKER_USER}

    # Containers

    @functools.cached_property
    def endpoints(self) -> t.List[Endpoint]:
        """The addresses of running containers on Docker's bridges."""
        found = []
        for container in self.survey.running:
            for name, addresses in container.networks.items():
                network = self.survey.inventory.network_of(container, name)
                for address in addresses:
                    if (":" in address) == (self.name == IPV6):
                        number = int(ipaddress.ip_address(address))
                        bridge = network.bridge if network is not None else ""
                        found.append(Endpoint(container, name, bridge, self.name, address, number))
        return found

    @functools.cached_property
    def endpoints_by_number(self) -> t.Dict[int, Endpoint]:
        return {endpoint.number: endpoint for endpoint in self.endpoints}

    @functools.cached_property
    def subnets(self) -> Intervals:
        """All addresses of Docker's networks on bridges."""
        return join(
            piece
            for network in self.survey.inventory.networks.values()
            if network.bridge
            for subnet in network.subnets
            if (":" in subnet) == (self.name == IPV6)
            for piece in of_network(subnet)
        )

    @functools.cached_property
    def host_addresses(self) -> Intervals:
        """The host's own addresses."""
        return join(
            piece
            for interface in self.survey.snapshot.interfaces
            for address in interface.addresses
            if (":" in address) == (self.name == IPV6)
            for piece in of_network(address.partition("/")[0])
        )

    @functools.cached_property
    def remote(self) -> Intervals:
        """Addresses out there: neither the host's nor Docker's, nor loopback or multicast."""
        everything = EVERYTHING[self.name]
        own = ("127.0.0.0/8", "224.0.0.0/3", "0.0.0.0/8") if self.name == IPV4 else ("::/127", "ff00::/8", "fe80::/10")
        for network in own:
            everything = subtract(everything, of_network(network))
        return subtract(subtract(everything, self.subnets), self.host_addresses)

    @functools.cached_property
    def dnats(self) -> t.Dict[t.Tuple[str, int], t.List[t.Tuple[t.Optional[Intervals], int, int]]]:
        """Where the nat table leads: by protocol and host port, (host addresses or None for all, address, port)."""
        found: t.Dict[t.Tuple[str, int], t.List[t.Tuple[t.Optional[Intervals], int, int]]] = {}
        for chain in self.table("nat").chains.values():
            for rule in chain.rules:
                target = rule.value("to_destination")
                ports = rule.value("destination_port")
                if target is None or ports is None:
                    continue
                address, port = _destination(target)
                ranges = port_ranges(ports)
                if address is None or ranges[0][0] != ranges[0][1]:
                    continue
                host = rule.value("destination")
                entry = (_hosts(host) if host else None, address, port or ranges[0][0])
                found.setdefault((rule.value("protocol") or "", ranges[0][0]), []).append(entry)
        return found

    @functools.cached_property
    def published(self) -> t.List[Published]:
        """Published ports of running containers that are served in this family."""
        proxies = {
            (proxy.protocol, proxy.host_port)
            for proxy in self.survey.snapshot.proxies
            if (":" in proxy.host_address) == (self.name == IPV6)
        }
        by_container: t.Dict[str, t.List[Endpoint]] = {}
        for endpoint in self.endpoints:
            by_container.setdefault(endpoint.container.id, []).append(endpoint)
        found: t.List[Published] = []
        for container in self.survey.running:
            own = by_container.get(container.id, [])
            for binding in container.current_ports:
                if binding.serves(self.name):
                    led = self._dnat_endpoint(binding, own)
                    somewhere = led or (own[0] if own else None)
                    proxied = (binding.protocol, binding.host_port) in proxies
                    found.append(Published(container, binding, self.name, somewhere, led is not None, proxied))
            place = next((item for item in own if self.name in self._modes(item)), None)
            for binding in self.survey.routed_ports.get(container.id, ()) if place is not None else ():
                if binding.serves(self.name):
                    found.append(Published(container, binding, self.name, place, False, False, routed=True))
        return found

    def _modes(self, endpoint: Endpoint) -> t.FrozenSet[str]:
        """The families in which ports are reached at the endpoint's own address."""
        network = self.survey.inventory.network_of(endpoint.container, endpoint.network)
        return network.routed if network is not None else frozenset()

    def _dnat_endpoint(self, binding: Binding, own: t.Sequence[Endpoint]) -> t.Optional[Endpoint]:
        numbers = {endpoint.number: endpoint for endpoint in own}
        for host, address, port in self.dnats.get((binding.protocol, binding.host_port), ()):
            wanted = binding.host_address
            if host is not None and wanted not in ("", "0.0.0.0", "::") and not intersect(host, of_network(wanted)):
                continue
            if address in numbers and port == binding.container_port:
                return numbers[address]
        return None

    @functools.cached_property
    def published_by_host_port(self) -> t.Dict[int, t.List[Published]]:
        found: t.Dict[int, t.List[Published]] = {}
        for item in self.published:
            found.setdefault(item.binding.host_port, []).append(item)
        return found

    @functools.cached_property
    def published_by_container_port(self) -> t.Dict[int, t.List[Published]]:
        found: t.Dict[int, t.List[Published]] = {}
        for item in self.published:
            found.setdefault(item.binding.container_port, []).append(item)
        return found

    # Flows

    @functools.cached_property
    def mark(self) -> t.Optional[int]:
        """The mark of packets that come to DOCKER-USER; None if rules that are read before may have marked them."""
        variants = [self] if self.other is None else [self, self.other]
        return None if any(variant.marks_packets for variant in variants) else 0

    @functools.cached_property
    def marks_packets(self) -> bool:
        """True if a rule that is read before the filter table's writes marks."""
        before = (("raw", ("PREROUTING",)), ("mangle", ("PREROUTING", FORWARD)), ("nat", ("PREROUTING",)))
        return any(
            rule.target in ("MARK", "CONNMARK")
            for table, hooks in before
            for name in self._read_by(table, hooks)
            for rule in self.table(table).chains[name].rules
        )

    @functools.cached_property
    def ways_in(self) -> t.List[str]:
        """Outside interfaces, of those that no rule names only the first: rules treat the others the same."""
        read = self._read_by("filter", (FORWARD, DOCKER_USER))
        patterns = {
            field.value
            for name in ("filter", "raw", "mangle")
            for chain in self.table(name).chains.values()
            if name != "filter" or chain.name in read
            for rule in chain.rules
            for field in rule.fields
            if field.name in ("in_interface", "out_interface")
        } - set(self.survey.networks_by_bridge)
        named = [name for name in self.survey.outside if any(interface_matches(pattern, name) for pattern in patterns)]
        others = [name for name in self.survey.outside if name not in named]
        chosen = set(named + others[:1])
        return [name for name in self.survey.outside if name in chosen]

    def _read_by(self, table: str, hooks: t.Iterable[str]) -> t.Set[str]:
        """Chains of a table and those that they lead to."""
        chains = self.table(table).chains
        seen: t.Set[str] = set()
        todo = [name for name in hooks if name in chains]
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            todo += [rule.target for rule in chains[name].rules if rule.target in chains and rule.target is not None]
        return seen

    @functools.cached_property
    def unnamed_port(self) -> int:
        """A port that no rule names and nobody publishes: what happens to it happens to all that are not published."""
        named = join(
            ports
            for table in ("raw", "mangle", "filter")
            for chain in self.table(table).chains.values()
            for rule in chain.rules
            for field in rule.fields
            if field.name in ("destination_port", "destination_ports", "ports", "ctorigdstport")
            for ports in port_ranges(field.value)
        )
        port = 65535
        for low, high in reversed(named):
            if low <= port <= high and low > 1:
                port = low - 1
        return max(port, 1)

    def inbound(self, published: Published) -> t.List[Flow]:
        """A first packet from outside to a published port, as FORWARD sees it, by each way in that rules tell apart.

        Empty for a port that no DNAT leads to the container.
        """
        endpoint = published.endpoint
        if endpoint is None or not (published.dnat or published.routed):
            return []
        binding = published.binding
        port = (binding.container_port, binding.container_port)
        address = ((endpoint.number, endpoint.number),)
        host_port = port if published.routed else (binding.host_port, binding.host_port)
        host = address if published.routed else self.host_side(binding)
        return [
            Flow(
                family=self.name,
                peer=SOURCE,
                protocol=binding.protocol,
                in_interface=interface,
                out_interface=endpoint.bridge,
                address=address,
                destination_ports=port,
                states=frozenset(("NEW",) if published.routed else ("NEW", "DNAT")),
                original=(PEER, host),
                original_ports=(ANY_PORT, host_port),
                reply=(address, PEER),
                reply_ports=(port, ANY_PORT),
                mark=self.mark,
            )
            for interface in self.ways_in
        ]

    def host_side(self, binding: Binding) -> t.Optional[Intervals]:
        """The host's addresses that a port is published on; None if they are not known."""
        if binding.host_address not in ("", "0.0.0.0", "::"):
            return of_network(binding.host_address)
        addresses = subtract(self.host_addresses, of_network("127.0.0.0/8" if self.name == IPV4 else "::1"))
        return addresses or None

    def replies(self, published: Published) -> t.List[Flow]:
        """What the container answers to a client outside."""
        return [
            flow._replace(
                peer=DESTINATION,
                in_interface=flow.out_interface,
                out_interface=flow.in_interface,
                source_ports=flow.destination_ports,
                destination_ports=(1024, 65535),
                states=(flow.states - {"NEW"}) | {"ESTABLISHED"},
                direction="REPLY",
                flags=_REPLY_FLAGS,
            )
            for flow in self.inbound(published)
        ]

    def outgoing(self, endpoint: Endpoint, protocol: str, port: int) -> t.List[Flow]:
        """A container's first packet to somebody outside; walk it for the peers of :attr:`remote`."""
        address = ((endpoint.number, endpoint.number),)
        return [
            Flow(
                family=self.name,
                peer=DESTINATION,
                protocol=protocol,
                in_interface=endpoint.bridge,
                out_interface=interface,
                address=address,
                source_ports=_EPHEMERAL,
                destination_ports=(port, port),
                original=(address, PEER),
                original_ports=(_EPHEMERAL, (port, port)),
                reply=(PEER, None),
                reply_ports=((port, port), ANY_PORT),
                mark=self.mark,
            )
            for interface in self.ways_in
        ]

    def outgoing_replies(self, endpoint: Endpoint, protocol: str, port: int) -> t.List[Flow]:
        """What comes back to a container from somebody outside; walk it for the peers of :attr:`remote`."""
        return [
            flow._replace(
                peer=SOURCE,
                in_interface=flow.out_interface,
                out_interface=flow.in_interface,
                source_ports=flow.destination_ports,
                destination_ports=_EPHEMERAL,
                states=frozenset(("ESTABLISHED", "SNAT")),
                direction="REPLY",
                flags=_REPLY_FLAGS,
            )
            for flow in self.outgoing(endpoint, protocol, port)
        ]

    def neighbour(self, endpoint: Endpoint, protocol: str, port: int) -> Flow:
        """A first packet from a container of the same bridge; it passes iptables with bridge-nf-call-iptables only."""
        address = ((endpoint.number, endpoint.number),)
        ports = (port, port)
        return Flow(
            family=self.name,
            peer=SOURCE,
            protocol=protocol,
            in_interface=endpoint.bridge,
            out_interface=endpoint.bridge,
            address=address,
            destination_ports=ports,
            original=(PEER, address),
            original_ports=(ANY_PORT, ports),
            reply=(address, PEER),
            reply_ports=(ports, ANY_PORT),
            mark=self.mark,
            bridged=True,
        )

    def neighbours_of(self, endpoint: Endpoint) -> Intervals:
        """The addresses of the endpoint's network, its own left out."""
        network = self.survey.networks_by_bridge.get(endpoint.bridge)
        subnets = [
            piece
            for subnet in (network.subnets if network is not None else ())
            if (":" in subnet) == (self.name == IPV6)
            for piece in of_network(subnet)
        ]
        return subtract(join(subnets), ((endpoint.number, endpoint.number),))

    def direct(self, endpoint: Endpoint, protocol: str, port: int) -> t.List[Flow]:
        """A first packet from outside that is sent to the container's own address; raw PREROUTING sees it too."""
        neighbour = self.neighbour(endpoint, protocol, port)
        return [neighbour._replace(in_interface=interface, bridged=False) for interface in self.ways_in]

    @staticmethod
    def arriving(flow: Flow, table: str) -> Flow:
        """A flow as PREROUTING of a table sees it: where it goes is not known yet, and DNAT was not done.

        The table raw comes before connections are looked up.
        """
        if table == "raw":
            return flow._replace(out_interface="", states=frozenset(("INVALID",)), mark=0)
        return flow._replace(out_interface="", states=flow.states - {"DNAT"})

    # Walks

    def program(self, table: str = "filter", marked: bool = False) -> Program:
        """The chains of a table, ready to be walked.

        :param marked: for walks that go on to POSTROUTING with the packet's mark: the guard's own drop is there.
        """
        marked = marked and table == "mangle"
        if (table, marked) not in self._programs:
            snapshot = self.survey.snapshot
            misprinted: t.List[str] = []
            if snapshot.nft is not None and self.variant == "nft":
                misprinted = [
                    chain for name, chain in snapshot.nft.misprinted.get(self.name, frozenset()) if name == table
                ]
            chains = self.table(table).chains
            effective = _with_guard(chains) if table == "mangle" and not marked else chains
            self._programs[table, marked] = Program(effective, self.name, self._sets, misprinted)
        return self._programs[table, marked]

    @functools.cached_property
    def _sets(self) -> t.Dict[str, Intervals]:
        found: t.Dict[str, Intervals] = {}
        for name, item in (self.survey.snapshot.sets or {}).items():
            plain = item.complete and item.kind in ("hash:ip", "hash:net", "bitmap:ip")
            if plain and item.family == self.name:
                pieces = [_entry(entry) for entry in item.entries]
                # A set with an entry that is not understood is not known.
                if all(pieces):
                    found[name] = join(piece for several in pieces for piece in several)
        return found

    def walk(
        self, flow: Flow, chain: str = DOCKER_USER, within: t.Optional[Intervals] = None, table: str = "filter"
    ) -> t.List[Outcome]:
        """What becomes of a flow in a chain; see :meth:`Program.walk`."""
        key = (table, chain, flow, within)
        found = self._walks.get(key)
        if found is None:
            found = self._walks[key] = self.program(table).walk(chain, flow, within)
        return found

    def briefly(
        self, flow: Flow, chain: str = DOCKER_USER, within: t.Optional[Intervals] = None, table: str = "filter"
    ) -> t.List[Outcome]:
        """The same, perhaps without denials that do not reach far, which may be thousands."""
        key = (table, chain, flow, within)
        found = self._walks.get(key) or self._brief.get(key)
        if found is None:
            found = self._brief[key] = self.program(table).walk(chain, flow, within, briefly=True)
        return found

    def passing(
        self, flow: Flow, chain: str = DOCKER_USER, within: t.Optional[Intervals] = None, table: str = "filter"
    ) -> t.List[Outcome]:
        """The same without any denials."""
        return [outcome for outcome in self.briefly(flow, chain, within, table) if outcome.verdict not in DENYING]

    @functools.cached_property
    def denials(self) -> t.Dict[Site, t.List[Hit]]:
        """The rules of DOCKER-USER (and chains below it) that stop connections from outside to published ports."""
        return self._hits(lambda outcome: outcome.denies)

    @functools.cached_property
    def allowances(self) -> t.Dict[Site, t.List[Hit]]:
        """The rules of DOCKER-USER (and chains below it) that end its reading for such connections without a denial."""
        return self._hits(lambda outcome: outcome.verdict in ("ACCEPT", RETURN))

    def _hits(self, wanted: t.Callable[[Outcome], bool]) -> t.Dict[Site, t.List[Hit]]:
        found: t.Dict[Site, t.List[Hit]] = {}
        for published in self.published:
            if published.loopback:
                continue
            for flow in self.inbound(published):
                for outcome in self.walk(flow):
                    if outcome.site is not None and wanted(outcome):
                        found.setdefault(outcome.site, []).append(Hit(published, flow, outcome))
        return found

    def let_in(self, published: Published) -> t.Tuple[Intervals, t.Tuple[str, ...]]:
        """Who outside reaches a published port by FORWARD (mangle's and filter's), and what that hangs on.

        Only peers that get through for certain are in the set if nothing is said; with reasons, all that may.
        """
        accepted: t.List[Intervals] = []
        reasons: t.List[str] = []
        for flow in self.inbound(published):
            within: Intervals = EVERYTHING[self.name]
            for table in ("mangle", "filter"):
                if FORWARD not in self.table(table).chains:
                    continue
                passed = self.passing(flow, FORWARD, within, table)
                for outcome in passed:
                    reasons += [reason for reason in outcome.reasons if reason not in reasons]
                within = join(piece for outcome in passed for piece in outcome.peers)
            accepted.append(within)
        return join(piece for pieces in accepted for piece in pieces), tuple(reasons)

    # Words

    def peers_text(self, peers: Intervals) -> str:
        return text(peers, self.name)

    def owner_text(self, address: str) -> str:
        """A container's name with its address, or the address alone."""
        container = self.survey.owners.get(address)
        return "%s (%s)" % (container.name, address) if container is not None else address


def is_dockers(chain: str) -> bool:
    """True for a chain that Docker makes and edits."""
    return chain in DOCKER_CHAINS and chain != DOCKER_USER


def is_foreign(rule: Rule) -> bool:
    """True unless the rule belongs to a policy of ours."""
    return mark_of(rule) is None


def _destination(target: str) -> t.Tuple[t.Optional[int], int]:
    """Address and port of C(--to-destination); None for what is no single address, 0 for no port."""
    address, port = target, ""
    if target.startswith("["):
        address, _bracket, port = target[1:].partition("]")
    elif target.count(":") == 1:
        address, _colon, port = target.partition(":")
    try:
        return int(ipaddress.ip_address(address)), int(port.lstrip(":") or "0")
    except ValueError:
        return None, 0


def _hosts(value: str) -> t.Optional[Intervals]:
    """The addresses that a DNAT is for; None where a mask that is no prefix leaves too many pieces."""
    try:
        return of_network(value)
    except ValueError:
        return None


def _entry(entry: str) -> Intervals:
    address = entry.partition(" ")[0]
    try:
        return of_network(address)
    except ValueError:
        return ()
