# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Targets that are looked up in Docker: containers, by name or labels, and networks."""

from __future__ import annotations

import ipaddress
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._inventory import (
    Binding,
    Container,
    DockerGone,
    Endpoint,
    Inventory,
    Network,
)
from ansible_collections.quaywall.docker.plugins.module_utils._policy import (
    BOTH,
    BY_ADDRESS,
    FAMILIES,
    IPNetwork,
    Place,
    Policy,
    PolicyError,
    Subject,
    is_wanted,
    labels_text,
    shown,
    wanted_bindings,
)
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6, field


class Found(t.NamedTuple):
    """What the inventory says of a target: how rules know it, where it is, in which families, and what to warn of."""

    subjects: t.List[Subject]
    endpoints: t.List[Endpoint]
    families: t.Set[str]
    warnings: t.List[str]


def find_target(
    policy: Policy,
    inventory: Inventory,
    bindings: t.Callable[[Container], t.Tuple[Binding, ...]],
    ip6_dnat: bool,
    proxied: bool = False,
) -> Found:
    """Look the policy's target up; the parameters are those of :func:`compile_policy`.

    :raises PolicyError: it is not there, or no rule in DOCKER-USER can protect it.
    """
    if policy.target == "network":
        return _network(policy, inventory)
    found = Found([], [], set(), [])
    for container in _containers(policy, inventory):
        try:
            _add_container(found, policy, container, inventory, bindings, ip6_dnat, proxied)
        except PolicyError as error:
            if policy.target == "container":
                raise
            # One that cannot be guarded must not keep the others with its labels unguarded.
            found.warnings.append(str(error))
        except DockerGone as error:
            if policy.target == "container":
                raise
            found.warnings.append(str(error))
    if not found.subjects:
        raise PolicyError(found.warnings[-1])
    return found


def look_alikes(wanted: str, names: t.Iterable[str]) -> str:
    """A half sentence that names what looks like the name that was not found, or all where they are few."""
    import difflib

    known = sorted(names)
    close = difflib.get_close_matches(wanted, known, 3, 0.5)
    close += [name for name in known if name not in close and (wanted in name or name in wanted)][: 5 - len(close)]
    if close:
        return "did you mean %s?" % " or ".join(shown(name) for name in close)
    if known:
        return "there is %s%s." % (", ".join(shown(name) for name in known[:8]), " and more" if len(known) > 8 else "")
    return "there is none at all."


def _containers(policy: Policy, inventory: Inventory) -> t.List[Container]:
    if policy.target == "labels":
        found = inventory.labelled(policy.labels)
        if not found:
            raise PolicyError(
                "No container carries the labels %s: start it first, or protect its host port with published_port."
                % labels_text(policy.labels)
            )
        return found
    container = inventory.container(policy.container)
    if container is None:
        raise PolicyError(
            "There is no container %s on this host; %s"
            % (shown(policy.container), look_alikes(policy.container, [item.name for item in inventory.containers]))
        )
    return [container]


def _add_container(
    found: Found,
    policy: Policy,
    container: Container,
    inventory: Inventory,
    bindings: t.Callable[[Container], t.Tuple[Binding, ...]],
    ip6_dnat: bool,
    proxied: bool,
) -> None:
    """Add what there is to protect of one container."""
    owner = _network_owner(container, inventory)
    _check_network_mode(container, owner)
    networks = _bridge_networks(policy, owner, inventory, found.warnings)
    endpoints = [
        Endpoint(container.name, container.id, name, network.bridge, address, IPV6 if ":" in address else IPV4)
        for name, network in networks.items()
        for address in owner.networks[name]
    ]
    places: t.Dict[str, t.List[Place]] = {family: [] for family in FAMILIES}
    for endpoint in endpoints:
        network = networks[endpoint.network]
        routed = endpoint.family in network.routed
        place = Place((field("destination", endpoint.address),), endpoint.bridge, _subnets(network), routed)
        places[endpoint.family].append(place)
    fixed = bindings(owner) if policy.match != BY_ADDRESS else ()
    others = [inventory.network_of(owner, name) for name in owner.networks if name not in networks]
    alone = not any(network is not None and network.bridge for network in others)
    subject = Subject({family: tuple(known) for family, known in places.items()}, fixed, owner.current_ports, alone)
    # The other family's address may come when it starts or joins another network: its published ports are guarded now.
    guarded = not policy.container_network and any(is_wanted(policy, binding) for binding in fixed)
    dual = guarded and (
        any(network.ipv6 for network in networks.values()) or (ip6_dnat and bool(wanted_bindings(policy, fixed, IPV6)))
    )
    if not endpoints:
        state = "runs but has no address now" if owner.running else "is not running and has no address yet"
        if not guarded:
            no_port = ", and no port that the policy names is published on a fixed host port"
            raise PolicyError(
                "Container %s %s%s: start it first, or protect its host port with published_port."
                % (container.name, state, "" if policy.match == BY_ADDRESS else no_port)
            )
        found.warnings.append(
            "Container %s %s: what the policy denies is guarded on its published ports already, what it allows follows "
            "when the container has an address and is looked up again." % (container.name, state)
        )
    found.warnings.extend(_gaps(policy, container, subject, ip6_dnat, proxied))
    found.subjects.append(subject)
    found.endpoints.extend(endpoints)
    found.families.update({endpoint.family for endpoint in endpoints} or {IPV4}, {IPV6} if dual else ())


def _gaps(policy: Policy, container: Container, subject: Subject, ip6_dnat: bool, guard: bool) -> t.List[str]:
    """Ways into the container that the policy means to close and no rule in DOCKER-USER can.

    :param guard: what comes in to docker-proxy is judged too, unless the policy leaves IPv6 out.
    """
    if not {policy.action, policy.otherwise} & {"drop", "reject"}:
        return []
    gaps: t.List[str] = []
    proxied = [] if ip6_dnat and subject.places[IPV6] else wanted_bindings(policy, subject.current, IPV6)
    if guard and policy.ip_version != IPV4 and (subject.alone or not policy.container_network):
        proxied = []
    if proxied:
        gaps.append(
            "Container %s is published on IPv6 as well (host port %s), and docker-proxy serves that: it comes in by "
            "INPUT of ip6tables, where no policy stops it. Publish it with -p 0.0.0.0:HOST:CONTAINER, or set "
            '"userland-proxy": false in /etc/docker/daemon.json.' % (container.name, _host_ports(proxied))
        )
    known = {(binding.protocol, binding.container_port) for binding in subject.fixed}
    passing = [
        binding
        for binding in subject.current
        if is_wanted(policy, binding) and (binding.protocol, binding.container_port) not in known
    ]
    if passing and policy.match == BOTH:
        gaps.append(
            "Container %s is published on a host port that Docker chooses anew at each start (now %s), so only its "
            "address is guarded: re-created, it is open until this task runs again. Publish it with -p HOST:CONTAINER."
            % (container.name, _host_ports(passing))
        )
    return gaps


def _host_ports(bindings: t.Iterable[Binding]) -> str:
    return ", ".join(str(port) for port in sorted({binding.host_port for binding in bindings}))


def _check_network_mode(container: Container, owner: Container) -> None:
    """Refuse containers whose packets never pass DOCKER-USER."""
    if owner.network_mode == "host" or set(owner.networks) == {"host"}:
        raise PolicyError(
            "Container %s uses the host's network, so its ports are the host's own and packets to them never pass "
            "DOCKER-USER: guard them in the INPUT chain." % container.name
        )
    if owner.network_mode == "none" or set(owner.networks) == {"none"}:
        raise PolicyError(
            "Container %s has no network, so nobody can reach it and there is nothing to guard." % container.name
        )


def _bridge_networks(
    policy: Policy, owner: Container, inventory: Inventory, warnings: t.List[str]
) -> t.Dict[str, Network]:
    """The container's networks that DOCKER-USER sees and the policy means."""
    names = list(owner.networks)
    if policy.container_network:
        if policy.container_network not in names:
            raise PolicyError(
                "Container %s is not on network %s; %s"
                % (owner.name, shown(policy.container_network), look_alikes(policy.container_network, names))
            )
        names = [policy.container_network]
    seen: t.Dict[str, Network] = {}
    unseen: t.List[str] = []
    for name in names:
        network = inventory.network_of(owner, name)
        if network is not None and network.bridge:
            seen[name] = network
        else:
            unseen.append("%s (%s)" % (name, network.driver if network is not None else "unknown"))
    if unseen and not seen:
        raise PolicyError(
            "Container %s is on %s only: packets to it do not pass the host's bridges and DOCKER-USER, so no rule "
            "there can guard it." % (owner.name, ", ".join(unseen))
        )
    if unseen:
        warnings.append(
            "Container %s is also on %s, which DOCKER-USER does not see: there it is not guarded."
            % (owner.name, ", ".join(unseen))
        )
    return seen


def _subnets(network: Network) -> t.Tuple[IPNetwork, ...]:
    return tuple(ipaddress.ip_network(subnet, strict=False) for subnet in network.subnets)


def _network_owner(container: Container, inventory: Inventory) -> Container:
    """The container whose network this one uses (C(network_mode: container:...)), or itself."""
    seen = {container.id}
    owner = container
    while owner.network_mode.startswith("container:"):
        wanted = owner.network_mode.partition(":")[2]
        found = inventory.container(wanted)
        if found is None or found.id in seen:
            raise PolicyError(
                "Container %s uses the network of container %s, which does not exist any more: re-create it."
                % (container.name, shown(wanted[:12]))
            )
        seen.add(found.id)
        owner = found
    return owner


def _network(policy: Policy, inventory: Inventory) -> Found:
    network = inventory.networks.get(policy.network)
    if network is None:
        raise PolicyError(
            "There is no network %s on this host; %s"
            % (shown(policy.network), look_alikes(policy.network, inventory.networks))
        )
    same = sorted(other.id[:12] for other in inventory.networks.values() if other.name == network.name)
    if len(same) > 1:
        raise PolicyError(
            "There are %d networks %s on this host (%s), so it cannot be told which one is meant: remove those that "
            "are not needed." % (len(same), shown(policy.network), ", ".join(same))
        )
    if not network.bridge:
        raise PolicyError(
            "Network %s is of driver %s: packets to its containers do not pass the host's bridges and DOCKER-USER, so "
            "no rule there can guard it." % (policy.network, network.driver)
        )
    place = Place((field("out_interface", network.bridge),), network.bridge, _subnets(network))
    endpoints = [
        Endpoint(container.name, container.id, name, network.bridge, address, IPV6 if ":" in address else IPV4)
        for container in inventory.containers
        for name, addresses in container.networks.items()
        for address in addresses
        if inventory.network_of(container, name) is network
    ]
    present = {IPV4, IPV6} if network.ipv6 else {IPV4}
    return Found([Subject(dict.fromkeys(present, (place,)), (), ())], endpoints, present, [])
