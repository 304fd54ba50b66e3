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

import ipaddress
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils import _binding
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6

Json = t.Mapping[str, t.Any]
Binding = _binding.Binding
families = _binding.families


class DockerError(Exception):
    """Docker could not be asked, as one sentence."""


class DockerGone(DockerError):
    """The engine answers that there is no such container or network (any more)."""


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
    fixed only an inspection can tell. ``static`` are the addresses that its user chose: it has no others there.
    """

    name: str
    id: str
    running: bool
    network_mode: str
    labels: t.Mapping[str, str]
    networks: t.Mapping[str, t.Tuple[str, ...]]
    network_ids: t.Mapping[str, str]
    current_ports: t.Tuple[Binding, ...]
    static: t.Mapping[str, t.Tuple[str, ...]] = {}

    def stopped(self) -> Container:
        """The container when it does not run: what Docker gave it may be another's next."""
        networks = {name: self.static.get(name, ()) for name in self.networks}
        return self._replace(running=False, networks=networks, current_ports=())


class Inventory(t.NamedTuple):
    """All containers and networks of one engine at one moment.

    ``networks`` are by name. Engines up to 24 let several have one name: all but the first are by their ID.
    ``remembered`` is true for what a host had at another time: addresses that Docker gives are not in it.
    """

    containers: t.Tuple[Container, ...]
    networks: t.Mapping[str, Network]
    remembered: bool = False

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

    # What one event changes. A container or network that is not there is left out of the change.

    def with_container(self, container: Container) -> Inventory:
        """With this container in place of the one with its ID."""
        others = tuple(item for item in self.containers if item.id != container.id)
        return self._replace(containers=(*others, container))

    def without_container(self, identity: str) -> Inventory:
        return self._replace(containers=tuple(item for item in self.containers if item.id != identity))

    def with_network(self, network: Network) -> Inventory:
        """With this network in place of the one with its ID."""
        networks = self.without_network(network.id).networks
        key = network.id if network.name in networks else network.name
        return self._replace(networks={**networks, key: network})

    def without_network(self, identity: str) -> Inventory:
        return self._replace(networks={key: item for key, item in self.networks.items() if item.id != identity})

    def with_endpoints(self, network: Network, addresses: t.Mapping[str, t.Tuple[str, ...]]) -> Inventory:
        """With the network, and with these containers (by ID) on it at these addresses, and no other at any."""
        containers = []
        for container in self.containers:
            if container.id in addresses:
                containers.append(_joined(container, network, addresses[container.id]))
            else:
                containers.append(_left(container, network.id))
        return self.with_network(network)._replace(containers=tuple(containers))

    def without_endpoint(self, identity: str, network_id: str) -> Inventory:
        """Without the addresses that Docker gave this container on the network."""
        containers = tuple(_left(item, network_id) if item.id == identity else item for item in self.containers)
        return self._replace(containers=containers)

    def stopped(self) -> Inventory:
        """With no container running."""
        return self._replace(containers=tuple(item.stopped() for item in self.containers))


def _joined(container: Container, network: Network, addresses: t.Tuple[str, ...]) -> Container:
    return container._replace(
        networks={**container.networks, network.name: addresses},
        network_ids={**container.network_ids, network.name: network.id},
    )


def _left(container: Container, network_id: str) -> Container:
    changed = {
        name: container.static.get(name, ())
        for name, addresses in container.networks.items()
        if addresses and container.network_ids.get(name) == network_id
    }
    return container._replace(networks={**container.networks, **changed}) if changed else container


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


def _static(endpoints: t.Mapping[t.Any, t.Any]) -> t.Dict[str, t.Tuple[str, ...]]:
    """The addresses that the user chose, by network."""
    found: t.Dict[str, t.Tuple[str, ...]] = {}
    for name, endpoint in endpoints.items():
        addresses = _addresses({"IPAMConfig": (endpoint or {}).get("IPAMConfig")})
        if addresses:
            found[str(name)] = addresses
    return found


def parse_endpoints(item: Json) -> t.Dict[str, t.Tuple[str, ...]]:
    """The addresses of the containers (by ID) on the network of C(GET /networks/<id>)."""
    found: t.Dict[str, t.Tuple[str, ...]] = {}
    for identity, endpoint in (item.get("Containers") or {}).items():
        # An endpoint that no container has joined yet is listed as "ep-" and its own ID.
        if not str(identity).startswith("ep-"):
            addresses = (str((endpoint or {}).get(key) or "") for key in ("IPv4Address", "IPv6Address"))
            found[str(identity)] = tuple(address.partition("/")[0] for address in addresses if address)
    return found


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
                    _host_address(port.get("IP")),
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
        static=_static(networks),
    )


class Inspection(t.NamedTuple):
    """What C(GET /containers/<id>/json) tells: the container, its fixed port bindings, whether it has others too."""

    container: Container
    bindings: t.Tuple[Binding, ...]
    chosen: bool


def parse_inspection(item: Json) -> Inspection:
    """The answer to C(GET /containers/<id>/json), in the words of the list."""
    settings, host = item.get("NetworkSettings") or {}, item.get("HostConfig") or {}
    ports = []
    for port, hosts in (settings.get("Ports") or {}).items():
        number, _slash, protocol = str(port).partition("/")
        for place in hosts or []:
            ports.append(
                {
                    "Type": protocol,
                    "PrivatePort": int(number),
                    "PublicPort": int(place.get("HostPort") or 0),
                    "IP": place.get("HostIp"),
                }
            )
    container = parse_container(
        {
            "Id": item["Id"],
            "Names": [str(item.get("Name") or "").lstrip("/")] if item.get("Name") else [],
            "State": (item.get("State") or {}).get("Status"),
            "HostConfig": host,
            "Labels": (item.get("Config") or {}).get("Labels"),
            "NetworkSettings": settings,
            "Ports": ports,
        }
    )
    bindings = parse_bindings(item)
    wanted = sum(len(hosts or ()) for hosts in (host.get("PortBindings") or {}).values())
    return Inspection(container, bindings, bool(host.get("PublishAllPorts")) or wanted > len(bindings))


def parse_inventory(containers: t.Iterable[Json], networks: t.Iterable[Json]) -> Inventory:
    """All containers and networks, by the two lists of the API."""
    found: t.Dict[str, Network] = {}
    for network in map(parse_network, networks):
        found[network.id if network.name in found else network.name] = network
    return Inventory(tuple(parse_container(item) for item in containers), found)


def _host_address(given: t.Any) -> str:
    """An address as the kernel prints it; all addresses where it is none, as older engines take names too."""
    try:
        return str(ipaddress.ip_address(str(given or "")))
    except ValueError:
        return ""


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
                        _host_address(host.get("HostIp")),
                        True,
                    )
                )
    return tuple(sorted(set(bindings)))


# What is stored, for a time when Docker does not answer

Bindings = t.Callable[[Container], t.Tuple[Binding, ...]]


def to_stored(inventory: Inventory, bindings: Bindings) -> t.Dict[str, t.Any]:
    """What still holds after a reboot, as JSON: everything but the addresses that Docker gives."""
    containers = []
    for container in sorted(inventory.containers, key=lambda item: (item.name, item.id)):
        containers.append(
            {
                "name": container.name,
                "id": container.id,
                "network_mode": container.network_mode,
                "labels": dict(sorted(container.labels.items())),
                "networks": {
                    name: {
                        "id": container.network_ids.get(name, ""),
                        "static": list(container.static.get(name, ())),
                    }
                    for name in sorted(container.networks)
                },
                "bindings": [list(binding[:4]) for binding in bindings(container)],
            }
        )
    networks = [
        {**network._asdict(), "subnets": list(network.subnets), "routed": sorted(network.routed)}
        for network in sorted(inventory.networks.values(), key=lambda item: (item.name, item.id))
    ]
    return {"containers": containers, "networks": networks}


def from_stored(stored: Json) -> t.Tuple[Inventory, Bindings]:
    """The inventory that was stored, with no container running, and the fixed port bindings of its containers.

    :raises ValueError: somebody else wrote it.
    """
    try:
        fixed: t.Dict[str, t.Tuple[Binding, ...]] = {}
        containers = []
        for item in stored["containers"]:
            static = {name: tuple(map(str, place["static"])) for name, place in item["networks"].items()}
            containers.append(
                Container(
                    name=str(item["name"]),
                    id=str(item["id"]),
                    running=False,
                    network_mode=str(item["network_mode"]),
                    labels={str(key): str(value) for key, value in item["labels"].items()},
                    networks=static,
                    network_ids={name: str(place["id"]) for name, place in item["networks"].items()},
                    current_ports=(),
                    static={name: addresses for name, addresses in static.items() if addresses},
                )
            )
            fixed[str(item["id"])] = tuple(
                Binding(str(protocol), int(port), int(host_port), str(address), True)
                for protocol, port, host_port, address in item["bindings"]
            )
        inventory = Inventory(tuple(containers), {}, True)
        for item in stored["networks"]:
            subnets, routed = tuple(map(str, item["subnets"])), frozenset(map(str, item["routed"]))
            words = [str(item[key]) for key in ("name", "id", "driver", "bridge")]
            network = Network(words[0], words[1], words[2], words[3], bool(item["ipv6"]), subnets, routed)
            inventory = inventory.with_network(network)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError("What is stored of Docker's containers cannot be read (%r)." % error) from error

    def bindings(container: Container) -> t.Tuple[Binding, ...]:
        return fixed.get(container.id, ())

    return inventory, bindings
