# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""A policy, and policy + inventory -> rules.

:meth:`Policy.from_options` takes what a user declared and says in one sentence what is wrong with it;
:func:`compile_policy` makes the rules of each family. Pure: nothing here reads the host.
"""

from __future__ import annotations

import ipaddress
import re
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._binding import Binding, families
from ansible_collections.quaywall.docker.plugins.module_utils._chain import (
    ACTION,
    ALLOWING,
    DEFAULT_PRIORITY,
    OTHERWISE,
    POLICY_NAME,
    Mark,
    comment_for,
    mark_of,
    set_name,
    sets_of,
)
from ansible_collections.quaywall.docker.plugins.module_utils._rule import (
    DEFAULT_REJECT,
    IPV4,
    IPV6,
    Field,
    Rule,
    address_text,
    field,
    port_range,
    port_ranges,
)

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._inventory import Container, Endpoint, Inventory

FAMILIES = (IPV4, IPV6)
TARGETS = ("container", "labels", "network", "destination", "published_port")
PORT_PROTOCOLS = ("tcp", "udp", "sctp")

BOTH = "both"
BY_ADDRESS = "address"
BY_PUBLISHED_PORT = "published_port"

#: Options with few values. Ansible checks those of a task; what is stored on the host may have been edited.
_CHOICES = {
    "protocol": (*PORT_PROTOCOLS, "icmp", "all"),
    "action": ("accept", "return", "drop", "reject"),
    "otherwise": ("drop", "reject", "return", "none"),
    "same_network": ("allow", "filter"),
    "match": (BOTH, BY_ADDRESS, BY_PUBLISHED_PORT),
    "ip_version": ("auto", IPV4, IPV6, BOTH),
}

_ANY_ADDRESSES = ("0.0.0.0", "::")

#: The targets of what a policy says.
VERDICTS = {"accept": "ACCEPT", "return": "RETURN", "drop": "DROP", "reject": "REJECT"}

Ports = t.Tuple[t.Tuple[int, int], ...]
IPNetwork = t.Union[ipaddress.IPv4Network, ipaddress.IPv6Network]


class PolicyError(ValueError):
    """What is wrong with a policy, as one sentence for the person who wrote it."""


class Log(t.NamedTuple):
    """How denied packets are logged. ``limit`` is a rate such as C(10/min)."""

    prefix: str
    limit: str


class Policy(t.NamedTuple):
    """What the user declares: a named wish for one target, checked and normalised."""

    name: str
    target: str
    container: str
    labels: t.Mapping[str, str]
    network: str
    destination: t.Optional[IPNetwork]
    published_ports: t.Tuple[int, int]
    published_address: str
    container_network: str
    protocol: str
    destination_ports: Ports
    sources: t.Optional[t.Tuple[IPNetwork, ...]]
    in_interface: str
    in_interface_negated: bool
    action: str
    otherwise: str
    same_network: str
    match: str
    log: t.Optional[Log]
    priority: int
    ip_version: str
    ipset_threshold: int = 0

    @property
    def needs_docker(self) -> bool:
        """True if the target has to be looked up in Docker."""
        return self.target in ("container", "labels", "network")

    @classmethod
    def from_options(cls, options: t.Mapping[str, t.Any]) -> Policy:
        """The policy that the module's options declare.

        :raises PolicyError: with what was wrong, where, and what to write instead.
        """
        name = check_name(str(options["name"]))
        for option, choices in _CHOICES.items():
            if options.get(option) and options[option] not in choices:
                raise PolicyError("%s is %s: write %s." % (option, shown(options[option]), " or ".join(choices)))
        target = _target(options)
        protocol = str(options.get("protocol") or "tcp")
        ports = _destination_ports(options.get("destination_port"), protocol, target)
        sources = _sources(options.get("source"))
        in_interface, negated = _interface(options.get("in_interface"))
        action = options.get("action")
        if not action:
            raise PolicyError("No action is given: write accept, return, drop or reject for the sources named.")
        otherwise = options.get("otherwise")
        if otherwise is None:
            otherwise = "drop" if sources is not None and action in ("accept", "return") else "none"
        elif otherwise != "none" and sources is None and not in_interface:
            raise PolicyError(
                "otherwise is %s, but nobody is left for it: the action applies to anyone, as neither source nor "
                "in_interface is given. Name the sources, or leave otherwise out." % otherwise
            )
        match = str(options.get("match") or BOTH)
        if match == BY_PUBLISHED_PORT and target in ("network", "destination"):
            raise PolicyError(
                "match=published_port does not go with %s: only a container has published ports. "
                "Leave match out, or name the container, or the host port with published_port." % target
            )
        if match == BY_ADDRESS and target == "published_port":
            raise PolicyError(
                "match=address does not go with published_port, which has no address. Leave match out, "
                "or name the container."
            )
        if options.get("container_network") and target not in ("container", "labels"):
            raise PolicyError("container_network goes with container or labels only; here the target is %s." % target)
        if options.get("container_network") and match == BY_PUBLISHED_PORT:
            raise PolicyError(
                "match=published_port does not go with container_network, as a host port belongs to no network: leave "
                "one of them out."
            )
        published_address = _published_address(options.get("published_address"), target)
        if target == "published_port" and protocol == "icmp":
            raise PolicyError("protocol icmp has no ports, so it does not go with published_port.")
        priority = options.get("priority")
        priority = DEFAULT_PRIORITY if priority is None else int(priority)
        if not 0 <= priority <= 999:
            raise PolicyError("priority %d is out of range: write a number from 0 to 999." % priority)
        return cls(
            name=name,
            target=target,
            container=str(options.get("container") or ""),
            labels={str(key): _label(value) for key, value in (options.get("labels") or {}).items()},
            network=str(options.get("network") or ""),
            destination=_destination(options.get("destination")) if target == "destination" else None,
            published_ports=_published_ports(options["published_port"]) if target == "published_port" else (0, 0),
            published_address=published_address,
            container_network=str(options.get("container_network") or ""),
            protocol=protocol,
            destination_ports=ports,
            sources=sources,
            in_interface=in_interface,
            in_interface_negated=negated,
            action=str(action),
            otherwise=str(otherwise),
            same_network=str(options.get("same_network") or "allow"),
            match=match,
            log=_log(options.get("log"), name, (str(action), str(otherwise))),
            priority=priority,
            ip_version=str(options.get("ip_version") or "auto"),
            ipset_threshold=_threshold(options.get("ipset_threshold")),
        )


# Checks of single options --------------------------------------------------------------------------------------------


def check_name(name: str) -> str:
    """The name of a policy.

    :raises PolicyError: it is not 1 to 64 of C([A-Za-z0-9._-]).
    """
    if not POLICY_NAME.match(name):
        what = "has %d characters" % len(name) if len(name) > 64 else "has characters that a rule's comment cannot keep"
        raise PolicyError(
            "name %s %s: write 1 to 64 letters, digits, dots, underscores and dashes."
            % (shown(name), what if name else "is empty")
        )
    return name


def shown(value: t.Any) -> str:
    """A value in a message: quoted, on one line, cut where it is long."""
    text = ascii(value) if not isinstance(value, str) or not value.isprintable() else "'%s'" % value
    return text if len(text) <= 80 else text[:76] + "...'"


def _label(value: t.Any) -> str:
    """A label's value as Docker keeps it: YAML's true is the text true there, and no value is the empty text."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _target(options: t.Mapping[str, t.Any]) -> str:
    given = [name for name in TARGETS if options.get(name) is not None]
    if not given:
        raise PolicyError(
            "No target is given: name what the policy protects with one of container, labels, network, destination "
            "or published_port."
        )
    if len(given) > 1:
        raise PolicyError("A policy has one target, but %s are given: write a policy for each." % " and ".join(given))
    target = given[0]
    if not options[target]:
        raise PolicyError("%s is empty: say which one the policy protects." % target)
    return target


def _one_port(part: str, where: str) -> t.Tuple[int, int]:
    hint = "write a port from 1 to 65535 or a range such as 8000:8010"
    text = part.strip()
    if not re.match(r"[0-9]{1,9}(:[0-9]{1,9})?\Z", text):
        raise PolicyError("%s %s is no port: %s." % (where, shown(part), hint))
    first, _colon, last = text.partition(":")
    low, high = int(first), int(last or first)
    if not (1 <= low <= 65535 and 1 <= high <= 65535):
        raise PolicyError("%s %s is outside 1 to 65535: %s." % (where, shown(part), hint))
    if low > high:
        raise PolicyError("%s %s ends before it begins: write %d:%d." % (where, shown(part), high, low))
    return low, high


def _destination_ports(value: t.Any, protocol: str, target: str) -> Ports:
    if value is None:
        return ()
    if not value:
        raise PolicyError("destination_port is an empty list: leave it out for every port, or name the ports.")
    if protocol not in PORT_PROTOCOLS:
        raise PolicyError(
            "destination_port does not go with protocol %s, which has no ports: choose tcp, udp or sctp, or leave "
            "destination_port out." % protocol
        )
    if target == "published_port":
        raise PolicyError(
            "destination_port does not go with published_port, which already says the port: leave destination_port out."
        )
    ports = [_one_port(str(part), "destination_port[%d]" % index) for index, part in enumerate(value)]
    return tuple(merge_ports(ports))


def merge_ports(ports: t.Iterable[t.Tuple[int, int]]) -> t.List[t.Tuple[int, int]]:
    """Port ranges in order, joined where they touch or overlap."""
    merged: t.List[t.Tuple[int, int]] = []
    for low, high in sorted(set(ports)):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged


def _published_ports(value: t.Any) -> t.Tuple[int, int]:
    return _one_port(str(value), "published_port")


def _published_address(value: t.Any, target: str) -> str:
    if value is None:
        return ""
    if target != "published_port":
        raise PolicyError("published_address goes with published_port only; here the target is %s." % target)
    try:
        address = ipaddress.ip_address(_without_zone(value))
    except ValueError:
        raise PolicyError(
            "published_address %s is no IP address: write the host's address that the port is published on."
            % shown(value)
        ) from None
    if address.is_unspecified:
        raise PolicyError("published_address %s means every address: leave it out." % address)
    return str(address)


def _without_zone(value: t.Any) -> str:
    """The text of an address. A zone (C(fe80::1%eth0)), which Python 3.9 and later read, is nothing for a rule."""
    text = str(value).strip()
    if "%" in text:
        raise ValueError("a zone such as %eth0 is no part of it; in_interface names an interface")
    return text


def _network(value: t.Any, where: str) -> IPNetwork:
    try:
        return ipaddress.ip_network(_without_zone(value), strict=False)
    except ValueError as error:
        reason = str(error)
        if "%" in str(value):
            pass
        elif "/" in str(value):
            try:
                address = ipaddress.ip_address(str(value).strip().partition("/")[0])
                reason = "a prefix length is 0 to %d for %s" % (
                    address.max_prefixlen,
                    "IPv4" if address.version == 4 else "IPv6",
                )
            except ValueError:
                reason = "the part before the slash is no IP address"
        else:
            reason = "names are not looked up"
        raise PolicyError(
            "%s %s is no IP address or network (%s): write for instance 203.0.113.10, 203.0.113.0/24 or 2001:db8::/64."
            % (where, shown(value), reason)
        ) from None


def _sources(value: t.Any) -> t.Optional[t.Tuple[IPNetwork, ...]]:
    if value is None:
        return None
    if not value:
        # A template that came out empty must not open the container to everybody.
        raise PolicyError("source is an empty list: leave source out for anyone, or name addresses or networks.")
    found = [_network(item, "source[%d]" % index) for index, item in enumerate(value)]
    return tuple(dict.fromkeys(found))


def _threshold(value: t.Any) -> int:
    threshold = 0 if value is None else int(value)
    if threshold < 0:
        raise PolicyError("ipset_threshold %d is negative: write a number of sources, or 0 for no ipset." % threshold)
    return threshold


def _destination(value: t.Any) -> IPNetwork:
    found = _network(value, "destination")
    if found.prefixlen == 0:
        raise PolicyError(
            "destination %s means every container and every forwarded connection of this host, so a rule for it would "
            "not protect one target but decide about all: name a container, labels, a network or a smaller CIDR."
            % found
        )
    return found


def _interface(value: t.Any) -> t.Tuple[str, bool]:
    if value is None:
        return "", False
    text = str(value).strip()
    negated = text.startswith("!")
    name = text[1:].strip() if negated else text
    if not _is_interface(name):
        raise PolicyError(
            "in_interface %s is no interface name: write up to 15 characters such as eth0, eth+ or !wg0." % shown(value)
        )
    return name, negated


def interface_name(value: t.Any, where: str) -> str:
    """The name of an interface, or the beginning of names with C(+).

    :raises PolicyError: it is none.
    """
    name = str(value).strip()
    if not _is_interface(name):
        raise PolicyError("%s %s is no interface name: write up to 15 characters such as eth0." % (where, shown(value)))
    return name


def _is_interface(name: str) -> bool:
    # A colon would be an alias such as eth0:1, which packets do not come in through: the rule would never match.
    return bool(re.match(r"[A-Za-z0-9_.@][A-Za-z0-9_.@-]{0,14}\+?\Z", name)) and len(name) <= 15


_LIMIT_UNITS = {"s": "sec", "m": "min", "h": "hour", "d": "day"}


def _log(value: t.Any, name: str, verdicts: t.Tuple[str, str]) -> t.Optional[Log]:
    if value is None:
        return None
    if not set(verdicts) & {"drop", "reject"}:
        raise PolicyError("log logs what the denying rule stops, but this policy denies nothing: leave log out.")
    prefix = value.get("prefix")
    # 29 bytes: longer prefixes are cut by iptables without a word.
    prefix = "quaywall:%s " % name[:19] if prefix is None else str(prefix)
    size = len(prefix.encode("utf-8", "surrogateescape"))
    if size > 29:
        raise PolicyError("log.prefix %s has %d bytes, and the kernel keeps 29: shorten it." % (shown(prefix), size))
    if not prefix.strip() or not prefix.isprintable():
        raise PolicyError("log.prefix %s must be printable text on one line." % shown(prefix))
    limit = str(value.get("limit") or "10/minute")
    found = re.match(r"([1-9][0-9]{0,5})/(s|sec|second|m|min|minute|h|hour|d|day)\Z", limit)
    if not found:
        raise PolicyError("log.limit %s is no rate: write for instance 10/minute or 2/second." % shown(limit))
    try:
        # The rate as iptables prints it: 60/minute is 1/sec there.
        rate = field("limit", "%s/%s" % (found.group(1), _LIMIT_UNITS[found.group(2)[0]])).value
    except ValueError:
        raise PolicyError(
            "log.limit %s is more than the 10000 a second that the kernel can tell apart: write for instance 10/minute."
            % shown(limit)
        ) from None
    return Log(prefix, rate)


# Rules ---------------------------------------------------------------------------------------------------------------


class BridgeRoute(t.NamedTuple):
    """A network that is directly connected to a bridge of the host, from the routing table."""

    network: IPNetwork
    bridge: str


class Compiled(t.NamedTuple):
    """The rules of a policy by family, what they were made from, and what its user should know.

    ``sets`` are the ipsets that the rules ask: names and networks, as C(ipset save) prints them. ``proxied`` are the
    rules for what comes in to docker-proxy, where they were asked for.
    """

    rules: t.Mapping[str, t.Tuple[Rule, ...]]
    endpoints: t.Tuple[Endpoint, ...]
    warnings: t.Tuple[str, ...]
    sets: t.Mapping[str, t.FrozenSet[str]] = {}
    proxied: t.Mapping[str, t.Tuple[Rule, ...]] = {}


class Place(t.NamedTuple):
    """Where a rule of one family protects: the fields that name it, and the bridge whose own traffic is exempt.

    A ``routed`` place is reached at its own address, never through a host port.
    """

    fields: t.Tuple[Field, ...]
    bridge: str
    subnets: t.Tuple[IPNetwork, ...]
    routed: bool = False


class Subject(t.NamedTuple):
    """One container (or other target) as the rules see it."""

    places: t.Mapping[str, t.Tuple[Place, ...]]
    fixed: t.Tuple[Binding, ...]
    current: t.Tuple[Binding, ...]
    #: It is on no other bridge network than those of the policy, so that its host ports lead there.
    alone: bool = True


class _Match(t.NamedTuple):
    """What a rule matches besides source and incoming interface."""

    place: t.Optional[Place]
    protocol: str
    ports: Ports
    conntrack: t.Tuple[Field, ...]


def compile_policy(
    policy: Policy,
    inventory: t.Optional[Inventory] = None,
    bindings: t.Callable[[Container], t.Tuple[Binding, ...]] = lambda container: (),
    bridge_routes: t.Sequence[BridgeRoute] = (),
    ip6_dnat: bool = False,
    proxied: bool = False,
) -> Compiled:
    """The rules of a policy.

    :param inventory: what Docker has, for a target that must be looked up there.
    :param bindings: gives the fixed port bindings of a container.
    :param bridge_routes: networks behind the host's bridges, for a target that is an address.
    :param ip6_dnat: Docker manages ip6tables too, so ports published on IPv6 are forwarded as those on IPv4 are.
    :param proxied: there is a guard, which also judges what comes in to docker-proxy.
    :raises PolicyError: the target is not there, or no rule in DOCKER-USER can protect it.
    """
    warnings: t.List[str] = []
    endpoints: t.List[Endpoint] = []
    if policy.target == "published_port":
        subjects = [_published_subject(policy)]
        wide = {IPV4, IPV6} if ip6_dnat else {IPV4}
        present = families([policy.published_address]) if policy.published_address else wide
    elif policy.destination is not None:
        subjects = [_destination_subject(policy, policy.destination, bridge_routes)]
        present = families([str(policy.destination)])
    elif inventory is None:
        raise PolicyError("%s must be looked up in Docker, and nothing was read from there." % policy.target)
    else:
        # Only here, as what a run does not need it should not pay for: Ansible compiles a module anew each time.
        from ansible_collections.quaywall.docker.plugins.module_utils._targets import find_target

        subjects, endpoints, present, warnings = find_target(policy, inventory, bindings, ip6_dnat, proxied)
    chosen = _families(policy, sorted(present))
    rules = {family: _rules(policy, subjects, family) for family in chosen}
    beside: t.Dict[str, t.Tuple[Rule, ...]] = {}
    if proxied and (inventory is not None or any(subject.fixed or subject.current for subject in subjects)):
        from ansible_collections.quaywall.docker.plugins.module_utils import _proxy

        found, told = _proxy.policy_bindings(policy, subjects, inventory, bindings)
        if {policy.action, policy.otherwise} & {"drop", "reject"}:
            warnings = [*warnings, *told]
        beside = {family: _proxy.proxy_lines(policy, known, family) for family, known in found.items()}
    if not any(rules.values()) and not any(beside.values()):
        raise PolicyError(_nothing(policy))
    return Compiled(
        rules,
        tuple(item for item in endpoints if item.family in chosen),
        tuple(warnings),
        _sets(policy, [*rules.items(), *beside.items()]),
        beside,
    )


def _sets(policy: Policy, rules: t.Iterable[t.Tuple[str, t.Sequence[Rule]]]) -> t.Dict[str, t.FrozenSet[str]]:
    """The ipsets that the policy's rules ask, with their networks."""
    asked = {name for _family, made in rules for rule in made for name in sets_of(rule)}
    return {name: found for name, found in list_sets(policy).items() if name in asked} if asked else {}


def list_sets(policy: Policy) -> t.Dict[str, t.FrozenSet[str]]:
    """All ipsets of a policy with long lists of sources, with their networks."""
    return {set_name(policy.name, family): found for family, found in long_lists(policy).items() if found is not None}


#: Long lists by the identity of a policy's sources: to make one anew each time takes longer than all the rest.
_LONG_LISTS: t.Dict[int, t.Tuple[t.Any, int, t.Dict[str, t.Optional[t.FrozenSet[str]]]]] = {}


def long_lists(policy: Policy) -> t.Mapping[str, t.Optional[t.FrozenSet[str]]]:
    """The families of which the policy has more sources than rules are made for, each with what its ipset is to hold.

    None where that is everybody: a set cannot hold such a network, and the others add nothing to it.
    """
    if policy.sources is None or not 0 < policy.ipset_threshold < len(policy.sources):
        return {}
    known = _LONG_LISTS.get(id(policy.sources))
    if known is not None and known[0] is policy.sources and known[1] == policy.ipset_threshold:
        return known[2]
    found: t.Dict[str, t.Optional[t.FrozenSet[str]]] = {}
    for family in FAMILIES:
        named = _sources_of(policy, family)
        if len(named) > policy.ipset_threshold:
            everybody = any(source.prefixlen == 0 for source in named)
            found[family] = None if everybody else frozenset(map(_element, named))
    if len(_LONG_LISTS) >= 256:
        _LONG_LISTS.clear()
    _LONG_LISTS[id(policy.sources)] = policy.sources, policy.ipset_threshold, found
    return found


def _element(network: IPNetwork) -> str:
    """A network as ipset prints it."""
    address = address_text(network.network_address)
    return address if network.prefixlen == network.max_prefixlen else "%s/%d" % (address, network.prefixlen)


def _nothing(policy: Policy) -> str:
    if policy.match == BY_PUBLISHED_PORT:
        return (
            "%s publishes no fixed %s host port that this policy names, so match=published_port has nothing to match: "
            "publish it with -p HOST:CONTAINER, or choose match=both." % (_target_text(policy), policy.protocol)
        )
    return (
        "Policy %s makes no rule for %s, as the sources named and its addresses have no IP version in common: name "
        "sources of its IP version." % (policy.name, _target_text(policy))
    )


def _target_text(policy: Policy) -> str:
    if policy.target == "container":
        return "Container %s" % policy.container
    if policy.target == "labels":
        return "No container labelled %s" % labels_text(policy.labels)
    if policy.target == "network":
        return "Network %s" % policy.network
    return "The target"


def labels_text(labels: t.Mapping[str, str]) -> str:
    return ", ".join("%s=%s" % item for item in sorted(labels.items()))


def _families(policy: Policy, present: t.Sequence[str]) -> t.List[str]:
    if policy.ip_version == "auto":
        return list(present)
    wanted = list(FAMILIES) if policy.ip_version == "both" else [policy.ip_version]
    if policy.target == "published_port" and not policy.published_address:
        return wanted
    missing = [family for family in wanted if family not in present]
    if missing:
        raise PolicyError(
            "ip_version is %s, but the target has no %s address: write ip_version: auto, or give the target one."
            % (policy.ip_version, " and no ".join("IPv4" if family == IPV4 else "IPv6" for family in missing))
        )
    return wanted


# Targets that need no look-up


def _destination_subject(policy: Policy, destination: IPNetwork, bridge_routes: t.Sequence[BridgeRoute]) -> Subject:
    near = [
        route
        for route in bridge_routes
        if route.network.version == destination.version and route.network.overlaps(destination)
    ]
    bridges = sorted({route.bridge for route in near})
    if len(bridges) > 1 and policy.same_network == "allow":
        raise PolicyError(
            "destination %s spans the bridges %s, and one rule cannot exempt the traffic inside each of them: write a "
            "policy for each network, or same_network: filter." % (destination, ", ".join(bridges))
        )
    place = Place(
        (field("destination", str(destination)),),
        bridges[0] if bridges else "",
        tuple(route.network for route in near),
    )
    return Subject({IPV4 if destination.version == 4 else IPV6: (place,)}, (), ())


def _published_subject(policy: Policy) -> Subject:
    protocols = PORT_PROTOCOLS if policy.protocol == "all" else (policy.protocol,)
    low, high = policy.published_ports
    # Container ports do not matter here, so each host port stands for itself.
    fixed = tuple(
        Binding(protocol, port, port, policy.published_address, True)
        for protocol in protocols
        for port in range(low, high + 1)
    )
    return Subject({}, fixed, ())


# Matches


def is_wanted(policy: Policy, binding: Binding) -> bool:
    """True if the policy names this published port."""
    if policy.protocol not in ("all", binding.protocol):
        return False
    ports = policy.destination_ports
    return not ports or any(low <= binding.container_port <= high for low, high in ports)


def wanted_bindings(policy: Policy, bindings: t.Iterable[Binding], family: str) -> t.List[Binding]:
    """The published ports that the policy names in this family; all of its addresses are the empty address."""
    return [
        binding._replace(host_address="") if binding.host_address in _ANY_ADDRESSES else binding
        for binding in bindings
        if is_wanted(policy, binding) and binding.serves(family)
    ]


def _dnat(binding_address: str, low: int, high: int) -> t.Tuple[Field, ...]:
    """Came in through a published port: replies and a container's own connections to such a port do not match."""
    fields = [field("match", "conntrack"), field("ctstate", "DNAT")]
    if binding_address:
        fields.append(field("ctorigdst", binding_address))
    fields += [field("ctorigdstport", "%d:%d" % (low, high)), field("ctdir", "ORIGINAL")]
    return tuple(fields)


def _port_matches(policy: Policy, place: t.Optional[Place], ports: Ports) -> t.List[_Match]:
    return [_Match(place, policy.protocol, part, ()) for part in _chunks(ports)]


def _chunks(ports: Ports) -> t.List[Ports]:
    """Lists of ports that one rule can hold: multiport has 15 slots, a range takes two."""
    chunks: t.List[t.List[t.Tuple[int, int]]] = [[]]
    room = 15
    for low, high in ports:
        size = 1 if low == high else 2
        if size > room:
            chunks.append([])
            room = 15
        chunks[-1].append((low, high))
        room -= size
    return [tuple(chunk) for chunk in chunks]


def _deny_matches(policy: Policy, subject: Subject, family: str) -> t.List[_Match]:
    """Address-free half first, as it holds when an address has moved; then the address half."""
    matches: t.List[_Match] = []
    # A host port belongs to no network: with container_network, Docker may lead it to another one.
    if policy.match != BY_ADDRESS and not policy.container_network:
        groups: t.Dict[t.Tuple[str, str], t.List[t.Tuple[int, int]]] = {}
        for binding in wanted_bindings(policy, subject.fixed, family):
            groups.setdefault((binding.protocol, binding.host_address), []).append(
                (binding.host_port, binding.host_port)
            )
        for (protocol, address), ports in groups.items():
            for low, high in merge_ports(ports):
                matches.append(_Match(None, protocol, (), _dnat(address, low, high)))
    if policy.match != BY_PUBLISHED_PORT:
        for place in subject.places.get(family, ()):
            matches += _port_matches(policy, place, policy.destination_ports)
    return matches


def _allow_matches(policy: Policy, subject: Subject, family: str) -> t.List[_Match]:
    """What lets through says address and host port where it can: a moved address must not open another container."""
    places = subject.places.get(family, ())
    if policy.match == BY_ADDRESS:
        return [match for place in places for match in _port_matches(policy, place, policy.destination_ports)]
    known = subject.fixed if policy.match == BY_PUBLISHED_PORT else subject.fixed + subject.current
    published = wanted_bindings(policy, known, family)
    pairs = _port_pairs(published)
    if policy.match == BY_PUBLISHED_PORT or not subject.places:
        return [
            _Match(None, protocol, (), _dnat(address, first[0], first[1]))
            for protocol, address, first, ports in _without_container_ports(pairs)
        ]
    matches: t.List[_Match] = []
    covered = {binding.container_port for binding in published}
    rest = _ports_without(policy.destination_ports, covered)
    for place in places:
        if place.routed:
            matches += _port_matches(policy, place, policy.destination_ports)
            continue
        for protocol, address, host_ports, ports in pairs:
            matches.append(_Match(place, protocol, (ports,), _dnat(address, host_ports[0], host_ports[1])))
        # A port that is named but not published can be reached by routing to the address only.
        if rest or not published:
            matches += _port_matches(policy, place, rest if published else policy.destination_ports)
    return matches


_Pair = t.Tuple[str, str, t.Tuple[int, int], t.Tuple[int, int]]


def _port_pairs(bindings: t.Iterable[Binding]) -> t.List[_Pair]:
    """Protocol, host address, host ports and container ports of bindings, runs of both joined into ranges."""
    pairs: t.List[_Pair] = []
    ordered = sorted({(item.protocol, item.host_address, item.host_port, item.container_port) for item in bindings})
    for protocol, address, host_port, port in ordered:
        if pairs:
            last = pairs[-1]
            if last[:2] == (protocol, address) and last[2][1] + 1 == host_port and last[3][1] + 1 == port:
                pairs[-1] = (protocol, address, (last[2][0], host_port), (last[3][0], port))
                continue
        pairs.append((protocol, address, (host_port, host_port), (port, port)))
    return pairs


def _without_container_ports(pairs: t.Iterable[_Pair]) -> t.List[_Pair]:
    """The pairs with host ports joined wherever they touch, whatever the container ports are."""
    groups: t.Dict[t.Tuple[str, str], t.List[t.Tuple[int, int]]] = {}
    for protocol, address, host_ports, _ports in pairs:
        groups.setdefault((protocol, address), []).append(host_ports)
    return [
        (protocol, address, host_ports, host_ports)
        for (protocol, address), found in groups.items()
        for host_ports in merge_ports(found)
    ]


def _ports_without(ports: Ports, covered: t.Set[int]) -> Ports:
    """The port ranges without single ports."""
    rest: t.List[t.Tuple[int, int]] = []
    for low, high in ports:
        start = low
        for port in sorted(covered):
            if start <= port <= high:
                if start < port:
                    rest.append((start, port - 1))
                start = port + 1
        if start <= high:
            rest.append((start, high))
    return tuple(rest)


# Rules from matches


def _rules(policy: Policy, subjects: t.Sequence[Subject], family: str) -> t.Tuple[Rule, ...]:
    rules: t.List[Rule] = []
    everybody: t.Tuple[Who, ...] = (None,)
    sources = who_is_named(policy, family)
    for section, verdict, who in ((ACTION, policy.action, sources), (OTHERWISE, policy.otherwise, everybody)):
        if verdict == "none":
            continue
        allowing = VERDICTS[verdict] in ALLOWING
        for subject in subjects:
            matches = (_allow_matches if allowing else _deny_matches)(policy, subject, family)
            for match in matches:
                for source in who:
                    rules += _rule_group(policy, section, verdict, source, match, family)
    return tuple(dict.fromkeys(rules))


#: Whom a rule is for: a network, everybody (None), or the networks of an ipset.
Who = t.Union[IPNetwork, None, str]


def who_is_named(policy: Policy, family: str) -> t.Tuple[Who, ...]:
    """Whom the policy's action is for, in one family: everybody where it names no sources."""
    if policy.sources is None:
        return (None,)
    lists = long_lists(policy)
    if family not in lists:
        return tuple(_sources_of(policy, family))
    return (None,) if lists[family] is None else (set_name(policy.name, family),)


def _sources_of(policy: Policy, family: str) -> t.List[IPNetwork]:
    version = 4 if family == IPV4 else 6
    return [source for source in policy.sources or () if source.version == version]


def _rule_group(policy: Policy, section: str, verdict: str, source: Who, match: _Match, family: str) -> t.List[Rule]:
    """The rules for one source and one match: one, unless the own bridge's addresses are cut out of the source."""
    incoming: t.List[Field] = []
    from_set: t.List[Field] = []
    if isinstance(source, str):
        from_set, source = [field("match", "set"), field("match_set", source + " src")], None
    sources: t.List[t.List[Field]] = [[] if source is None else [field("source", str(source))]]
    bridge = match.place.bridge if match.place is not None and policy.same_network == "allow" else ""
    if section == ACTION and policy.in_interface:
        incoming.append(field("in_interface", policy.in_interface, policy.in_interface_negated))
        covers_bridge = policy.in_interface_negated != _interface_matches(policy.in_interface, bridge)
        if bridge and covers_bridge and VERDICTS[verdict] not in ALLOWING and match.place is not None:
            # iptables takes one -i only, so the own network is exempt by its addresses.
            sources = _sources_outside(source, match.place.subnets, family)
    elif bridge:
        incoming.append(field("in_interface", bridge, True))
    return [
        rule
        for fields in sources
        for rule in _with_log(policy, section, verdict, [*fields, *_head(match, incoming)], match, family, from_set)
    ]


def _interface_matches(pattern: str, name: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("+") else name == pattern


def _sources_outside(
    source: t.Optional[IPNetwork], subnets: t.Sequence[IPNetwork], family: str
) -> t.List[t.List[Field]]:
    """Source fields for a source without the own network's addresses."""
    own = [subnet for subnet in subnets if subnet.version == (4 if family == IPV4 else 6)]
    if source is None:
        if len(own) == 1:
            return [[field("source", str(own[0]), True)]]
        source = ipaddress.ip_network("0.0.0.0/0" if family == IPV4 else "::/0")
    left: t.List[t.Any] = [source]
    for subnet in own:
        remaining: t.List[t.Any] = []
        for piece in left:
            if not piece.overlaps(subnet):
                remaining.append(piece)
            elif piece.prefixlen < subnet.prefixlen:
                remaining += sorted(piece.address_exclude(subnet))
        left = remaining
    return [[field("source", str(piece))] for piece in left]


def _head(match: _Match, incoming: t.Sequence[Field]) -> t.List[Field]:
    place = list(match.place.fields) if match.place is not None else []
    out = [item for item in place if item.name == "out_interface"]
    return [item for item in place if item.name != "out_interface"] + list(incoming) + out


def _with_log(
    policy: Policy,
    section: str,
    verdict: str,
    head: t.List[Field],
    match: _Match,
    family: str,
    from_set: t.Sequence[Field],
) -> t.List[Rule]:
    fields = [item for item in head if not (item.name == "source" and item.value in ("0.0.0.0/0", "::/0"))]
    protocol = match.protocol
    if protocol == "icmp" and family == IPV6:
        protocol = "ipv6-icmp"
    if protocol != "all":
        fields.append(field("protocol", protocol))
    if match.ports:
        low, high = match.ports[0]
        if len(match.ports) == 1:
            fields += [field("match", protocol), field("destination_port", "%d:%d" % (low, high))]
        else:
            ports = ",".join("%d:%d" % item for item in match.ports)
            fields += [field("match", "multiport"), field("destination_ports", ports)]
    fields += match.conntrack
    fields += from_set
    mark = Mark(policy.name, section, policy.priority)
    target = VERDICTS[verdict]
    rules = []
    if policy.log is not None and target not in ALLOWING:
        limit = [field("match", "limit"), field("limit", policy.log.limit)]
        log = [field("jump", "LOG"), field("log_prefix", policy.log.prefix)]
        rules.append(Rule(tuple(fields + limit + _comment(mark, "LOG") + log)))
    jump = [field("jump", target)]
    if target == "REJECT":
        jump.append(field("reject_with", DEFAULT_REJECT[family], family=family))
    rules.append(Rule(tuple(fields + _comment(mark, target) + jump)))
    return rules


def _comment(mark: Mark, target: str) -> t.List[Field]:
    return [field("match", "comment"), field("comment", comment_for(mark, target))]


# Conflicts between policies ------------------------------------------------------------------------------------------


def conflict(policy: Policy, rules: t.Sequence[Rule], others: t.Sequence[Rule]) -> t.Optional[str]:
    """Two different otherwises for the same endpoint and port, as a sentence.

    :param rules: the rules of the policy.
    :param others: the managed rules of the other policies.
    """
    mine = [rule for rule in rules if _is_otherwise(rule)]
    for other in others:
        mark = mark_of(other)
        if mark is None or mark.policy == policy.name or not _is_otherwise(other):
            continue
        for rule in mine:
            if rule.target != other.target and _overlap(rule, other):
                verdicts = str(rule.target).lower(), str(other.target).lower()
                return disagreement(policy.name, verdicts[0], mark.policy, verdicts[1], other)
    return None


def first_conflict(rules: t.Sequence[Rule]) -> t.Optional[str]:
    """Two different otherwises for the same endpoint and port among the rules of all policies, as a sentence."""
    for one, other in conflicts(rules):
        return told_conflict(one, other)
    return None


def told_conflict(rule: Rule, other: Rule) -> str:
    """Two rules of policies that disagree, as a sentence."""
    (name, _section, _priority), (second, _section2, _priority2) = _mark_of(rule), _mark_of(other)
    return disagreement(name, str(rule.target).lower(), second, str(other.target).lower(), other)


def _mark_of(rule: Rule) -> Mark:
    return t.cast(Mark, mark_of(rule))


def conflicts(rules: t.Sequence[Rule]) -> t.Iterator[t.Tuple[Rule, Rule]]:
    """Rules of two policies with different otherwises for the same endpoint and port."""
    by_target: t.Dict[str, t.List[Rule]] = {}
    for rule in rules:
        if _is_otherwise(rule):
            by_target.setdefault(str(rule.target), []).append(rule)
    targets = sorted(by_target, key=lambda target: len(by_target[target]))
    for index, target in enumerate(targets[:-1]):
        others = _ByEndpoint(rule for other in targets[index + 1 :] for rule in by_target[other])
        for rule in by_target[target]:
            for other in others.near(rule):
                one, two = mark_of(rule), mark_of(other)
                if one is not None and two is not None and one.policy != two.policy and _overlap(rule, other):
                    yield rule, other


class _ByEndpoint:
    """Rules, to be found by the one address or host port that they are for: few are for more."""

    def __init__(self, rules: t.Iterable[Rule]) -> None:
        self._all: t.List[Rule] = []
        self._found: t.Dict[t.Optional[str], t.List[Rule]] = {}
        for rule in rules:
            self._all.append(rule)
            for key in self._keys(rule):
                self._found.setdefault(key, []).append(rule)

    @staticmethod
    def _keys(rule: Rule) -> t.List[t.Optional[str]]:
        """The one address and the one host port; None for what is for more than one of them."""
        destination, port = rule.value("destination"), rule.value("ctorigdstport")
        keys: t.List[t.Optional[str]] = []
        if destination is not None:
            keys.append(destination if destination.endswith(("/32", "/128")) else None)
        if port is not None:
            keys.append(None if ":" in port else port)
        return keys or [None]

    def near(self, rule: Rule) -> t.Sequence[Rule]:
        keys = self._keys(rule)
        if None in keys:
            return self._all
        return [found for key in [*keys, None] for found in self._found.get(key, ())]


def disagreement(one: str, verdict: str, two: str, other_verdict: str, rule: Rule) -> str:
    """Two policies with different otherwises, as a sentence."""
    return (
        "Policies %s and %s disagree about everybody else: for the same endpoint and port %s says %s and %s "
        "says %s. Give both the same otherwise, or one of them otherwise: none. The other's rule: %s"
        % (one, two, one, verdict, two, other_verdict, rule.render())
    )


def _is_otherwise(rule: Rule) -> bool:
    mark = mark_of(rule)
    return mark is not None and mark.section == OTHERWISE and rule.target != "LOG"


def _overlap(one: Rule, two: Rule) -> bool:
    """True if some packet to an endpoint matches both otherwise rules."""
    if any(_apart(one.value(name), two.value(name)) for name in ("destination", "ctorigdst")):
        return False
    first, second = one.value("protocol"), two.value("protocol")
    if first is not None and second is not None and first != second:
        return False
    for names in (("destination_port", "destination_ports"), ("ctorigdstport",)):
        if not _ranges_overlap(_ranges(one, names), _ranges(two, names)):
            return False
    if any(None not in (one.value(name), two.value(name)) for name in ("destination", "ctorigdstport")):
        return True
    # An address rule and a host-port rule protect the same endpoint only by chance; a network's rule and an address's
    # do if the address is on its bridge.
    bridge = _bridge(one)
    return bridge is not None and bridge == _bridge(two)


def _apart(one: t.Optional[str], two: t.Optional[str]) -> bool:
    """True if both networks are given and no address is in both."""
    if one is None or two is None or one == two:
        return False
    if one.endswith(("/32", "/128")) and two.endswith(("/32", "/128")):
        return True  # two hosts; most rules are, and there may be many
    return not t.cast(t.Any, ipaddress.ip_network(one)).overlaps(ipaddress.ip_network(two))


def _bridge(rule: Rule) -> t.Optional[str]:
    incoming = rule.get("in_interface")
    return rule.value("out_interface") or (incoming.value if incoming is not None and incoming.negated else None)


def _ranges(rule: Rule, names: t.Iterable[str]) -> t.Optional[t.List[t.Tuple[int, int]]]:
    for name in names:
        value = rule.value(name)
        if value is not None:
            return port_ranges(value) if name == "destination_ports" else [port_range(value)]
    return None


def _ranges_overlap(
    one: t.Optional[t.Sequence[t.Tuple[int, int]]], two: t.Optional[t.Sequence[t.Tuple[int, int]]]
) -> bool:
    if one is None or two is None:
        return True
    return any(low <= last and first <= high for low, high in one for first, last in two)
