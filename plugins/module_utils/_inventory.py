# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Containers, networks and published ports as values, made from what the Docker Engine API answers.

The shapes are those of API 1.41 (Engine 20.10) to 1.55 (29.7): C(GET /containers/json?all=1), C(GET /networks) and
C(GET /containers/<id>/json).
"""

from __future__ import annotations

import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6

Json = t.Mapping[str, t.Any]


class DockerError(Exception):
    """Docker could not be asked, as one sentence."""


class DockerSdkMissing(DockerError):
    """The Docker SDK for Python cannot be imported; ``trace`` says why."""

    def __init__(self, trace: str) -> None:
        super().__init__("The Docker SDK for Python is missing.")
        self.trace = trace


class Endpoint(t.NamedTuple):
    """One address of a container on one network, with its bridge."""

    container: str
    container_id: str
    network: str
    bridge: str
    address: str
    family: str


class Binding(t.NamedTuple):
    """A container port that is published: C(-p host_address:host_port:container_port/protocol).

    ``host_address`` is empty for all addresses, C(0.0.0.0) or C(::) for all of one family: the same host port may
    be one container's in IPv4 and another's in IPv6. ``fixed`` is false for a host port that Docker chose for this run.
    """

    protocol: str
    container_port: int
    host_port: int
    host_address: str
    fixed: bool

    def serves(self, family: str) -> bool:
        """True if the port is published on an address of the family."""
        if not self.host_address:
            return True
        return (":" in self.host_address) == (family == IPV6)


class Network(t.NamedTuple):
    """A Docker network.

    ``bridge`` is the interface's name, empty unless the driver is bridge. ``routed`` are the families whose published
    ports are reached at the container's own address, without DNAT (gateway mode C(routed), Engine 27 and later).
    """

    name: str
    id: str
    driver: str
    bridge: str
    ipv6: bool
    subnets: t.Tuple[str, ...]
    routed: t.FrozenSet[str] = frozenset()


class Container(t.NamedTuple):
    """A container as the list shows it.

    ``networks`` maps a network's name to the addresses there (none while it is not running, unless they are static),
    ``network_ids`` to the network's ID. ``current_ports`` are its published ports while it runs; which of them are
    fixed only an inspection can tell.
    """

    name: str
    id: str
    running: bool
    network_mode: str
    labels: t.Mapping[str, str]
    networks: t.Mapping[str, t.Tuple[str, ...]]
    network_ids: t.Mapping[str, str]
    current_ports: t.Tuple[Binding, ...]


class Inventory(t.NamedTuple):
    """All containers and networks of one engine at one moment.

    ``networks`` are by name. Engines up to 24 let several have one name: all but the first are by their ID.
    """

    containers: t.Tuple[Container, ...]
    networks: t.Mapping[str, Network]

    def container(self, wanted: str) -> t.Optional[Container]:
        """The container of that name or ID (a unique beginning of 12 or more digits will do)."""
        for container in self.containers:
            if wanted in (container.name, container.id):
                return container
        if len(wanted) >= 12:
            found = [container for container in self.containers if container.id.startswith(wanted)]
            if len(found) == 1:
                return found[0]
        return None

    def labelled(self, labels: t.Mapping[str, str]) -> t.List[Container]:
        """The containers that carry all of the labels, by name."""
        wanted = set(labels.items())
        found = [container for container in self.containers if wanted <= set(container.labels.items())]
        return sorted(found, key=lambda container: container.name)

    def network_of(self, container: Container, name: str) -> t.Optional[Network]:
        """The network that the container knows under that name."""
        network_id = container.network_ids.get(name, "")
        for network in self.networks.values():
            if network.id == network_id:
                return network
        return self.networks.get(name)


def parse_network(item: Json) -> Network:
    """One element of C(GET /networks)."""
    options = item.get("Options") or {}
    driver = str(item.get("Driver") or "")
    identity = str(item.get("Id") or "")
    bridge = ""
    if driver == "bridge":
        bridge = str(options.get("com.docker.network.bridge.name") or "br-" + identity[:12])
    config = (item.get("IPAM") or {}).get("Config") or []
    subnets = tuple(str(entry["Subnet"]) for entry in config if entry.get("Subnet"))
    routed = frozenset(
        family for family in (IPV4, IPV6) if options.get("com.docker.network.bridge.gateway_mode_" + family) == "routed"
    )
    name = str(item.get("Name") or "")
    return Network(name, identity, driver, bridge, bool(item.get("EnableIPv6")), subnets, routed)


def _addresses(endpoint: Json) -> t.Tuple[str, ...]:
    static = endpoint.get("IPAMConfig") or {}
    found = (
        endpoint.get("IPAddress") or static.get("IPv4Address"),
        endpoint.get("GlobalIPv6Address") or static.get("IPv6Address"),
    )
    return tuple(str(address) for address in found if address)


def parse_container(item: Json) -> Container:
    """One element of C(GET /containers/json?all=1)."""
    names = [str(name).lstrip("/") for name in item.get("Names") or []]
    # A linked container has further names with a slash in them; its own has none.
    own = [name for name in names if "/" not in name]
    networks = (item.get("NetworkSettings") or {}).get("Networks") or {}
    ports = []
    for port in item.get("Ports") or []:
        if port.get("PublicPort"):
            ports.append(
                Binding(
                    str(port.get("Type") or "tcp"),
                    int(port["PrivatePort"]),
                    int(port["PublicPort"]),
                    str(port.get("IP") or ""),
                    False,
                )
            )
    return Container(
        name=(own or names or [str(item["Id"])[:12]])[0],
        id=str(item["Id"]),
        running=item.get("State") in ("running", "paused", "restarting"),
        network_mode=str((item.get("HostConfig") or {}).get("NetworkMode") or ""),
        labels={str(key): str(value) for key, value in (item.get("Labels") or {}).items()},
        networks={str(name): _addresses(endpoint or {}) for name, endpoint in networks.items()},
        network_ids={str(name): str((endpoint or {}).get("NetworkID") or "") for name, endpoint in networks.items()},
        current_ports=tuple(dict.fromkeys(ports)),
    )


def parse_inventory(containers: t.Iterable[Json], networks: t.Iterable[Json]) -> Inventory:
    """All containers and networks, by the two lists of the API."""
    found: t.Dict[str, Network] = {}
    for network in map(parse_network, networks):
        found[network.id if network.name in found else network.name] = network
    return Inventory(tuple(parse_container(item) for item in containers), found)


def parse_bindings(inspection: Json) -> t.Tuple[Binding, ...]:
    """The fixed port bindings of C(GET /containers/<id>/json), known even before the container has ever run.

    A binding without a host port, or with a range to choose from, is not fixed and not among them.
    """
    bindings: t.List[Binding] = []
    for port, hosts in ((inspection.get("HostConfig") or {}).get("PortBindings") or {}).items():
        number, _slash, protocol = str(port).partition("/")
        for host in hosts or []:
            host_port = str(host.get("HostPort") or "")
            if host_port.isdigit() and host_port != "0":
                bindings.append(
                    Binding(
                        protocol or "tcp",
                        int(number),
                        int(host_port),
                        str(host.get("HostIp") or ""),
                        True,
                    )
                )
    return tuple(sorted(set(bindings)))


def families(addresses: t.Iterable[str]) -> t.Set[str]:
    """The families of some addresses."""
    return {IPV6 if ":" in address else IPV4 for address in addresses}
