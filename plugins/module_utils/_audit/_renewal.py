# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What the rules of a policy still say about it: addresses, host ports, and the options that wrote them."""

from __future__ import annotations

import typing as t
import weakref

from ansible_collections.quaywall.docker.plugins.module_utils._audit._dockers import looks_like_bridge
from ansible_collections.quaywall.docker.plugins.module_utils._chain import ACTION, DEFAULT_PRIORITY, Mark, mark_of
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import join, of_network
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6, Rule, normalise, port_ranges
from ansible_collections.quaywall.docker.plugins.module_utils._walk import Site

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import Family, Survey
    from ansible_collections.quaywall.docker.plugins.module_utils._inventory import Binding, Container

#: A protocol with a host port.
HostPort = t.Tuple[str, int]

_HOST = {IPV4: "/32", IPV6: "/128"}
#: More host ports in one rule are a range that nobody published one by one.
_MOST_PORTS = 64


class PolicyRules(t.NamedTuple):
    """The rules of one policy in one family.

    ``addresses`` are single addresses that rules protect, with those rules' sites; ``bridges`` the bridge that each
    address was on; ``paired`` the host ports that stand with it; ``address_free`` those that stand alone, as the half
    without addresses has only ports that are fixed. ``ports`` are those inside the container.
    """

    name: str
    rules: t.List[t.Tuple[Site, Rule, Mark]]
    addresses: t.Dict[int, t.List[Site]]
    bridges: t.Dict[int, str]
    paired: t.Dict[int, t.Set[HostPort]]
    address_free: t.Set[HostPort]
    ports: t.List[t.Tuple[int, int]]

    @property
    def sites(self) -> t.List[Site]:
        return [site for site, _rule, _mark in self.rules]

    @property
    def host_ports(self) -> t.Set[HostPort]:
        """All host ports that the policy names."""
        return self.address_free.union(*self.paired.values())

    def publishing(self, survey: Survey, ports: t.Iterable[HostPort]) -> t.Dict[str, Container]:
        """The running containers that publish some host ports, by ID."""
        publishers = _publishers(survey)
        return {container.id: container for port in sorted(ports) for container in publishers.get(port, ())}

    def published_by(self, survey: Survey) -> t.List[Container]:
        """The running containers that publish any of the policy's host ports."""
        return list(self.publishing(survey, self.host_ports).values())


_Publishers = t.Dict[HostPort, t.List["Container"]]
_KNOWN_PUBLISHERS: t.MutableMapping[t.Any, _Publishers] = weakref.WeakKeyDictionary()
_KNOWN_POLICIES: t.MutableMapping[t.Any, t.List[PolicyRules]] = weakref.WeakKeyDictionary()


def _publishers(survey: Survey) -> _Publishers:
    known = _KNOWN_PUBLISHERS.get(survey)
    if known is not None:
        return known
    found: _Publishers = {}
    for container in survey.running:
        for binding in container.current_ports:
            containers = found.setdefault((binding.protocol, binding.host_port), [])
            if container not in containers:
                containers.append(container)
    _KNOWN_PUBLISHERS[survey] = found
    return found


def policies_of(family: Family) -> t.List[PolicyRules]:
    """The policies that have rules in DOCKER-USER, in their order there."""
    known = _KNOWN_POLICIES.get(family)
    if known is not None:
        return known
    found: t.Dict[str, PolicyRules] = {}
    chain = family.docker_user
    for position, rule in enumerate(chain.rules if chain is not None else (), 1):
        mark = mark_of(rule)
        if mark is None:
            continue
        item = found.setdefault(mark.policy, PolicyRules(mark.policy, [], {}, {}, {}, set(), []))
        item.rules.append((Site(chain.name if chain is not None else "", position, position), rule, mark))
        _take_in(item, item.rules[-1][0], rule, family.name)
    _KNOWN_POLICIES[family] = list(found.values())
    return _KNOWN_POLICIES[family]


def _take_in(item: PolicyRules, site: Site, rule: Rule, family: str) -> None:
    ports = _host_ports(rule)
    for low, high in _inner_ports(rule):
        if (low, high) not in item.ports:
            item.ports.append((low, high))
    value = rule.value("destination")
    if value is None or not value.endswith(_HOST[family]):
        if value is None and rule.get("out_interface") is None:
            item.address_free.update(ports)
        return
    number = of_network(value)[0][0]
    item.addresses.setdefault(number, []).append(site)
    if ports:
        item.paired.setdefault(number, set()).update(ports)
    bridge = _own_bridge(rule)
    if bridge:
        item.bridges[number] = bridge


def _host_ports(rule: Rule) -> t.Set[HostPort]:
    value = rule.value("ctorigdstport")
    if value is None:
        return set()
    low, high = port_ranges(value)[0]
    if high - low >= _MOST_PORTS:
        return set()
    return {(rule.value("protocol") or "tcp", port) for port in range(low, high + 1)}


def _inner_ports(rule: Rule) -> t.List[t.Tuple[int, int]]:
    value = rule.value("destination_port") or rule.value("destination_ports")
    return port_ranges(value) if value is not None else []


def _own_bridge(rule: Rule) -> str:
    """The bridge whose own traffic a rule exempts."""
    field = rule.get("in_interface")
    return field.value if field is not None and field.negated else ""


# The policy written again --------------------------------------------------------------------------------------------


def renewed(family: Family, rules: PolicyRules, container: Container) -> t.Optional[t.Dict[str, t.Any]]:
    """The options of docker_user_rule that write the same rules for a container; None if they cannot be told.

    Proved by writing them: but for addresses and bridges, they are the rules that are there.
    """
    # As in _fixes: compiled only for a host that needs it.
    from ansible_collections.quaywall.docker.plugins.module_utils._policy import Policy, PolicyError, compile_policy

    options = _options(family, rules, container)
    survey = family.survey
    try:
        policy = Policy.from_options(options)
        six = survey.family(IPV6)
        ip6_dnat = six.dump is not None and six.docker_manages
        written = compile_policy(policy, survey.inventory, _bindings, ip6_dnat=ip6_dnat).rules.get(family.name, ())
    except PolicyError:
        return None
    before = {_without_address(rule, family.name) for _site, rule, _mark in rules.rules}
    return options if {_without_address(rule, family.name) for rule in written} == before else None


def _bindings(container: Container) -> t.Tuple[Binding, ...]:
    return tuple(binding._replace(fixed=True) for binding in container.current_ports)


def _without_address(rule: Rule, family: str) -> str:
    fields = tuple(
        field
        for field in normalise(rule, family).fields
        if not (field.name == "destination" and field.value.endswith(_HOST[family]))
        and not (field.name == "in_interface" and field.negated and looks_like_bridge(field.value))
    )
    return Rule(fields).render()


def _options(family: Family, rules: PolicyRules, container: Container) -> t.Dict[str, t.Any]:
    options: t.Dict[str, t.Any] = {"name": rules.name, "container": container.name}
    every = [(rule, mark) for _site, rule, mark in rules.rules if rule.target != "LOG"]
    protocols = {rule.value("protocol") or "all" for rule, _mark in every}
    by_address = {rule.value("protocol") or "all" for rule, _mark in every if rule.value("destination") is not None}
    protocol = (by_address or protocols).pop()
    if protocol != "tcp":
        options["protocol"] = "icmp" if protocol == "ipv6-icmp" else protocol
    # The half with addresses names the ports as they were given; a host port's pair names its own one.
    plain = [rule for rule, _mark in every if rule.get("ctorigdstport") is None] or [rule for rule, _mark in every]
    ports = join(piece for rule in plain for piece in _inner_ports(rule))
    if ports:
        options["destination_port"] = ["%d" % low if low == high else "%d:%d" % (low, high) for low, high in ports]
    actions = [rule for rule, mark in every if mark.section == ACTION]
    others = [rule for rule, mark in every if mark.section != ACTION]
    sources = dict.fromkeys(rule.value("source") for rule in actions)
    named = [source for source in sources if source is not None]
    if named:
        options["source"] = named
    interface = next((_from_interface(rule) for rule in actions if _from_interface(rule)), "")
    if interface:
        options["in_interface"] = interface
    if actions:
        options["action"] = str(actions[0].target).lower()
        options["otherwise"] = str(others[0].target).lower() if others else "none"
    elif others:
        # The action's sources are of the other family.
        options["action"] = str(others[0].target).lower()
    if not rules.bridges and rules.addresses and not interface:
        options["same_network"] = "filter"
    if rules.addresses and not rules.host_ports:
        options["match"] = "address"
    priority = rules.rules[0][2].priority
    if priority != DEFAULT_PRIORITY:
        options["priority"] = priority
    _log(options, rules)
    return options


def _from_interface(rule: Rule) -> str:
    """The interface that a policy's action is limited to."""
    field = rule.get("in_interface")
    if field is None or (field.negated and looks_like_bridge(field.value)):
        return ""
    return ("!" if field.negated else "") + field.value


def _log(options: t.Dict[str, t.Any], rules: PolicyRules) -> None:
    for _site, rule, _mark in rules.rules:
        if rule.target == "LOG" and rule.value("log_prefix") is not None and rule.value("limit") is not None:
            options["log"] = {"prefix": rule.value("log_prefix"), "limit": rule.value("limit")}
            return
