# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What a policy says of its published ports where no DNAT leads to the container, but docker-proxy.

Such packets are for the host itself, so DOCKER-USER never sees them. Measured on Engines 20.10 to 28.5: a SYN that
comes while nothing listens on the port, and that the host cannot answer (early in a boot, before its routes are
there), leaves an entry without DNAT in conntrack, for 120 s (C(nf_conntrack_tcp_timeout_syn_sent)). A connection from
the same source port takes that entry over, so that Docker's DNAT is not asked, and docker-proxy serves it. And a port
published on IPv6 of a container that has no IPv6 address is served by docker-proxy at all times. Pure.
"""

from __future__ import annotations

import ipaddress
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._binding import Binding
from ansible_collections.quaywall.docker.plugins.module_utils._chain import (
    ACTION,
    ALLOWING,
    DEFAULT_COMMENT,
    OTHERWISE,
    Mark,
    comment_for,
    mark_of,
)
from ansible_collections.quaywall.docker.plugins.module_utils._inventory import DockerError, DockerGone
from ansible_collections.quaywall.docker.plugins.module_utils._policy import (
    VERDICTS,
    Policy,
    Who,
    merge_ports,
    wanted_bindings,
    who_is_named,
)
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6, Field, Rule, field

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._inventory import Container, Inventory, Network
    from ansible_collections.quaywall.docker.plugins.module_utils._policy import Subject

Bindings = t.Callable[["Container"], t.Tuple[Binding, ...]]

#: Host ports: protocol, address of the host (empty for all), first and last.
HostPorts = t.Tuple[str, str, int, int]


def policy_bindings(
    policy: Policy, subjects: t.Sequence[Subject], inventory: t.Optional[Inventory], bindings: Bindings
) -> t.Tuple[t.Dict[str, t.Tuple[Binding, ...]], t.List[str]]:
    """The published ports of the containers that the policy protects, by the families that are its business.

    And warnings: of those that are on other networks too, and of those that Docker does not tell about.

    :param subjects: the policy's target, as it was looked up.
    :param inventory: what Docker has; None if it was not asked, and then only the subjects tell.
    """
    families = (IPV4, IPV6) if policy.ip_version in ("auto", "both") else (policy.ip_version,)
    if policy.target in ("container", "labels"):
        # Where it is on another network too, a host port may lead there, of which container_network says nothing.
        judged = [item for item in subjects if not policy.container_network or item.alone]
        return dict.fromkeys(families, tuple(b for item in judged for b in item.fixed + item.current)), []
    if inventory is None:
        return {}, []
    if policy.target == "published_port":
        published, untold = all_bindings(inventory, bindings, lambda binding: _is_published(policy, binding))
        return dict.fromkeys(families, published), untold
    network = inventory.networks.get(policy.network)
    found: t.Dict[str, t.List[Binding]] = {family: [] for family in families}
    warnings: t.List[str] = []
    for container in inventory.containers:
        leads = {family: _leads_to(policy, container, inventory, network, family) for family in families}
        concerned = any(map(any, leads.values()))
        known = (*_fixed(container, bindings, warnings), *container.current_ports) if concerned else ()
        for family, places in leads.items():
            if places and all(places):
                found[family] += known
        if known and any(any(places) and not all(places) for places in leads.values()):
            warnings.append(
                "Container %s is on other networks as well, and nobody can tell to which of them its published ports "
                "lead: what comes in to docker-proxy there (IPv6, as a rule) this policy leaves alone. Guard it with "
                "container: %s." % (container.name, container.name)
            )
    return {family: tuple(known) for family, known in found.items()}, warnings


def _leads_to(
    policy: Policy, container: Container, inventory: Inventory, network: t.Optional[Network], family: str
) -> t.List[bool]:
    """For each bridge network of the container: whether it is the policy's, or its address there is in this family.

    A published port leads to one of them, and nobody knows to which.
    """
    places = {name: inventory.network_of(container, name) for name in container.networks}
    bridged = {name: place for name, place in places.items() if place is not None and place.bridge}
    if policy.destination is None:
        return [place is network for place in bridged.values()]
    wanted = policy.destination
    found: t.List[bool] = []
    for name, place in bridged.items():
        # A container that does not run has no address yet: it gets one of the network's.
        known = [ipaddress.ip_network(text) for text in container.networks[name] or place.subnets]
        six = [item for item in known if item.version == 6]
        # docker-proxy leads what comes in by IPv6 to a container's IPv4 address where it has no other.
        reached = six if family == IPV6 and six else [item for item in known if item.version == 4]
        found.append(any(item.version == wanted.version and item.subnet_of(t.cast(t.Any, wanted)) for item in reached))
    return found


def all_bindings(
    inventory: Inventory, bindings: Bindings, wanted: t.Callable[[Binding], bool] = lambda binding: True
) -> t.Tuple[t.Tuple[Binding, ...], t.List[str]]:
    """The published ports of all containers, of those that do not run as well: docker-proxy comes with them.

    And a warning for each container that Docker does not tell about.
    """
    found: t.List[Binding] = []
    warnings: t.List[str] = []
    for container in inventory.containers:
        if container.network_mode in ("host", "none"):
            continue  # such a container may name ports, and Docker publishes none
        current = [binding for binding in container.current_ports if wanted(binding)]
        # What runs without such a port has none when it does not run either.
        if current or not (container.running and container.current_ports):
            found += current + [binding for binding in _fixed(container, bindings, warnings) if wanted(binding)]
    return tuple(found), warnings


def _fixed(container: Container, bindings: Bindings, warnings: t.List[str]) -> t.Tuple[Binding, ...]:
    """A container's fixed port bindings; none, and a warning, if Docker does not say: nobody named the container."""
    try:
        return bindings(container)
    except DockerGone:
        return ()  # it went meanwhile, and its ports with it
    except DockerError as error:
        warnings.append(
            "What container %s publishes is guarded at docker-proxy only as far as it runs now: %s"
            % (container.name, error)
        )
        return ()


def _is_published(policy: Policy, binding: Binding) -> bool:
    low, high = policy.published_ports
    address = policy.published_address
    same = not address or binding.host_address in ("", address) or _is_any(binding.host_address)
    return low <= binding.host_port <= high and same and policy.protocol in ("all", binding.protocol)


def _is_any(address: str) -> bool:
    return address in ("0.0.0.0", "::")


def host_ports(found: t.Iterable[Binding], family: str, published_address: str = "") -> t.Tuple[HostPorts, ...]:
    """The host ports of published ports in one family, joined where they touch."""
    groups: t.Dict[t.Tuple[str, str], t.Set[t.Tuple[int, int]]] = {}
    for binding in found:
        if binding.serves(family):
            address = "" if _is_any(binding.host_address) else binding.host_address
            key = (binding.protocol, address or published_address)
            groups.setdefault(key, set()).add((binding.host_port, binding.host_port))
    return tuple(
        (protocol, address, low, high)
        for (protocol, address), ports in sorted(groups.items())
        for low, high in merge_ports(ports)
    )


def proxy_lines(policy: Policy, found: t.Sequence[Binding], family: str) -> t.Tuple[Rule, ...]:
    """The policy's rules for its published ports, where they come in for the host itself.

    :param found: those of its containers.
    """
    if policy.published_address and (":" in policy.published_address) != (family == IPV6):
        return ()
    return _lines(policy, host_ports(wanted_bindings(policy, found, family), family, policy.published_address), family)


def renewed_lines(policy: Policy, lines: t.Iterable[Rule], family: str) -> t.Tuple[Rule, ...]:
    """The policy's rules as they are to be, for the host ports that those in the kernel name.

    For a time when Docker does not answer: who may come in is what the policy says now.

    :param lines: the rules of all policies in the kernel.
    """
    ports: t.Dict[HostPorts, None] = {}
    low, high = policy.published_ports if policy.target == "published_port" else (0, 65535)
    for rule in lines:
        mark = mark_of(rule)
        first, _colon, last = (rule.value("destination_port") or "").partition(":")
        if mark is None or mark.policy != policy.name or not first.isdigit():
            continue
        address = (rule.value("destination") or "").partition("/")[0]
        wanted = max(int(first), low), min(int(last or first), high)
        if wanted[0] <= wanted[1]:
            ports.setdefault((rule.value("protocol") or "tcp", address, *wanted))
    return _lines(policy, tuple(ports), family)


def _lines(policy: Policy, ports: t.Sequence[HostPorts], family: str) -> t.Tuple[Rule, ...]:
    lines: t.List[Rule] = []
    everybody: t.Tuple[Who, ...] = (None,)
    for section, verdict, who in (
        (ACTION, policy.action, who_is_named(policy, family)),
        (OTHERWISE, policy.otherwise, everybody),
    ):
        if verdict == "none":
            continue
        target = "RETURN" if VERDICTS[verdict] in ALLOWING else "DROP"
        end = [
            field("match", "comment"),
            field("comment", comment_for(Mark(policy.name, section, policy.priority), target)),
            field("jump", target),
        ]
        for these in ports:
            for source in who:
                lines.append(Rule((*_from(policy, section, source, these), *_to(source, these), *end)))
    return tuple(dict.fromkeys(lines))


def _from(policy: Policy, section: str, source: Who, ports: HostPorts) -> t.List[Field]:
    fields: t.List[Field] = []
    if source is not None and not isinstance(source, str) and source.prefixlen:
        fields.append(field("source", str(source)))
    if ports[1]:
        fields.append(field("destination", ports[1]))
    if section == ACTION and policy.in_interface:
        fields.append(field("in_interface", policy.in_interface, policy.in_interface_negated))
    return fields


def _to(source: Who, ports: HostPorts) -> t.List[Field]:
    protocol, _address, low, high = ports
    fields = [field("protocol", protocol), field("match", protocol), field("destination_port", "%d:%d" % (low, high))]
    if isinstance(source, str):
        fields += [field("match", "set"), field("match_set", source + " src")]
    return fields


def default_lines(ports: t.Iterable[HostPorts], outside: t.Sequence[str]) -> t.List[Rule]:
    """What drops everything that no policy let in.

    :param ports: of all containers.
    :param outside: the interfaces that strangers come in through; none: all that were not left out before.
    """
    interfaces: t.List[t.List[Field]] = [[field("in_interface", name)] for name in outside] or [[]]
    end = [field("match", "comment"), field("comment", DEFAULT_COMMENT), field("jump", "DROP")]
    return [
        Rule((*([field("destination", item[1])] if item[1] else []), *incoming, *_to(None, item), *end))
        for incoming in interfaces
        for item in ports
    ]
