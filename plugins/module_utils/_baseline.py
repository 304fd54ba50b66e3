# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The whole chain DOCKER-USER from a list of policies and a few settings. Pure: nothing here reads the host."""

from __future__ import annotations

import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._chain import (
    ALLOWING,
    DEFAULT_CHAIN,
    DOCKER_USER,
    OTHERWISE,
    Table,
    docker_manages,
    mark_of,
)
from ansible_collections.quaywall.docker.plugins.module_utils._guard import (
    DEFAULT_RULE,
    default_rules,
    guard_rules,
    kept_proxy_bridges,
    kept_proxy_default,
    kept_proxy_lines,
    own_default,
    own_guard,
    own_proxy,
    proxy_rules,
)
from ansible_collections.quaywall.docker.plugins.module_utils._inventory import (
    Binding,
    Container,
    Endpoint,
    Inventory,
)
from ansible_collections.quaywall.docker.plugins.module_utils._plan import OwnChain, Plan, plan, with_policy
from ansible_collections.quaywall.docker.plugins.module_utils._policy import (
    BridgeRoute,
    Policy,
    PolicyError,
    compile_policy,
    conflicts,
    first_conflict,
    interface_name,
    list_sets,
    told_conflict,
)
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6, Rule

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._proxy import HostPorts

#: The bridge of Docker's own network, which every engine has unless it was told otherwise.
_FIRST_BRIDGE = "docker0"

Bindings = t.Callable[[Container], t.Tuple[Binding, ...]]


class Settings(t.NamedTuple):
    """What holds for the whole chain.

    ``established`` is C(accept), C(return) or C(omit); ``default`` C(return) or C(drop); ``outside_interfaces`` narrow
    what the default drops; ``foreign_rules`` is C(keep) or C(remove).
    """

    established: str = "accept"
    default: str = "return"
    outside_interfaces: t.Tuple[str, ...] = ()
    foreign_rules: str = "keep"
    guard: bool = True
    ipset_threshold: int = 100

    @classmethod
    def from_options(cls, options: t.Mapping[str, t.Any]) -> Settings:
        """The settings that a module's options or a stored document declare; what is left out is the default.

        :raises PolicyError: with what was wrong, where, and what to write instead.
        """
        none = cls()
        given = {name: options[name] for name in cls._fields if options.get(name) is not None}
        made = none._replace(**given)
        for name, choices in (
            ("established", ("accept", "return", "omit")),
            ("default", ("return", "drop")),
            ("foreign_rules", ("keep", "remove")),
        ):
            if getattr(made, name) not in choices:
                raise PolicyError("%s is %r: write %s." % (name, getattr(made, name), " or ".join(choices)))
        interfaces = tuple(
            interface_name(name, "outside_interfaces[%d]" % index)
            for index, name in enumerate(made.outside_interfaces or ())
        )
        if made.ipset_threshold < 0:
            raise PolicyError(
                "ipset_threshold %d is negative: write a number of sources, or 0 for no ipset." % made.ipset_threshold
            )
        if interfaces and made.default != "drop":
            raise PolicyError(
                "outside_interfaces says what default: drop is for, but default is %s: leave it out." % made.default
            )
        if made.default == "drop" and made.established == "omit":
            raise PolicyError(
                "default: drop with established: omit would drop the answers to the containers' own connections: "
                "write established: accept or return."
            )
        return made._replace(outside_interfaces=interfaces)


class Wanted(t.NamedTuple):
    """What the chain is to hold.

    ``rules`` are those of all policies by family, in no order; ``sets`` the ipsets that they ask; ``waiting`` says of
    policies without rules what they wait for; ``unanswered`` are those of them that Docker could not be asked about,
    and ``looked_up`` is false if it was not asked at all, or did not answer. ``proxied`` are the policies' rules for
    what comes in to docker-proxy, ``host_ports`` those of all containers, for the default. ``unproxied`` are policies
    with rules of which Docker was not asked where docker-proxy serves them.
    """

    rules: t.Mapping[str, t.Sequence[Rule]]
    sets: t.Mapping[str, t.FrozenSet[str]]
    bridges: t.Mapping[str, t.Tuple[str, ...]]
    endpoints: t.Tuple[Endpoint, ...]
    warnings: t.Tuple[str, ...]
    waiting: t.Mapping[str, str]
    unanswered: t.FrozenSet[str] = frozenset()
    looked_up: bool = True
    proxied: t.Mapping[str, t.Sequence[Rule]] = {}
    host_ports: t.Mapping[str, t.Tuple[HostPorts, ...]] = {}
    unproxied: t.Tuple[Policy, ...] = ()


NOTHING = Wanted({}, {}, {}, (), (), {})


def parse_policies(options: t.Iterable[t.Mapping[str, t.Any]], ipset_threshold: int) -> t.List[Policy]:
    """The policies of a list of options.

    :param ipset_threshold: of the policies that say none of their own, as one that docker_user_rule stored may.
    :raises PolicyError: one is wrong (the sentence begins with its place in the list), or two have one name.
    """
    found: t.Dict[str, int] = {}
    policies: t.List[Policy] = []
    for index, given in enumerate(options):
        try:
            if given.get("name") is None:
                raise PolicyError("It has no name: give it one, 1 to 64 letters, digits, dots, underscores and dashes.")
            policy = Policy.from_options({"ipset_threshold": ipset_threshold, **given})
        except PolicyError as error:
            raise PolicyError("rules[%d] (%s): %s" % (index, given.get("name"), error)) from error
        if policy.name in found:
            raise PolicyError(
                "rules[%d] and rules[%d] are both named %s: give each policy a name of its own."
                % (found[policy.name], index, policy.name)
            )
        found[policy.name] = index
        policies.append(policy)
    return policies


def compile_chain(
    policies: t.Sequence[Policy],
    inventory: t.Optional[Inventory],
    bindings: Bindings,
    bridge_routes: t.Sequence[BridgeRoute],
    ip6_dnat: bool,
    wait: bool,
    settings: t.Optional[Settings] = None,
    settle: bool = False,
) -> Wanted:
    """The rules of all policies; the parameters are those of :func:`compile_policy`.

    :param wait: a policy whose target is not there makes no rule, and is among the waiting.
    :param settings: say whether there is a guard, and what the default is.
    :param settle: where two policies disagree about everybody else, who denies is right, and a warning says so.
    :raises PolicyError: a target is not there, or cannot be protected; two policies disagree.
    """
    guard = settings is not None and settings.guard
    proxied: t.Dict[str, t.List[Rule]] = {IPV4: [], IPV6: []}
    rules: t.Dict[str, t.List[Rule]] = {IPV4: [], IPV6: []}
    sets: t.Dict[str, t.FrozenSet[str]] = {}
    endpoints: t.List[Endpoint] = []
    warnings: t.List[str] = []
    waiting: t.Dict[str, str] = {}
    unanswered: t.Set[str] = set()
    unproxied: t.List[Policy] = []
    for policy in policies:
        if policy.needs_docker and inventory is None and wait:
            unanswered.add(policy.name)
            waiting[policy.name] = "Docker does not answer, and nothing was looked up there before."
            continue
        try:
            compiled = compile_policy(policy, inventory, bindings, bridge_routes, ip6_dnat, guard)
        except PolicyError as error:
            if not wait:
                raise PolicyError("Policy %s: %s" % (policy.name, error)) from error
            waiting[policy.name] = str(error)
            continue
        if guard and inventory is None:
            unproxied.append(policy)
            sets.update(list_sets(policy))
        for family, made in compiled.rules.items():
            rules[family] += made
        for family, made in compiled.proxied.items():
            proxied[family] += made
        sets.update(compiled.sets)
        endpoints += compiled.endpoints
        warnings += ["Policy %s: %s" % (policy.name, warning) for warning in compiled.warnings]
    for family, all_of_family in rules.items():
        conflict = first_conflict(all_of_family)
        if conflict is not None:
            if not settle:
                raise PolicyError(conflict)
            rules[family], told = _settled(all_of_family)
            warnings += told
    if settle:
        proxied = {family: _closed(lines) for family, lines in proxied.items()}
    host_ports: t.Mapping[str, t.Tuple[HostPorts, ...]] = {}
    if guard and settings is not None and settings.default == "drop" and inventory is not None:
        host_ports, told = _host_ports(inventory, bindings)
        warnings += told
    return Wanted(
        rules,
        sets,
        _bridges(inventory),
        tuple(endpoints),
        tuple(warnings),
        waiting,
        frozenset(unanswered),
        inventory is not None,
        proxied,
        host_ports,
        tuple(unproxied),
    )


def _settled(rules: t.Sequence[Rule]) -> t.Tuple[t.List[Rule], t.List[str]]:
    """The rules without those that let everybody else in where another policy denies it; and who disagrees."""
    told: t.Dict[t.Tuple[str, ...], str] = {}
    opening: t.Set[int] = set()
    for pair in conflicts(rules):
        told.setdefault(tuple(sorted(str(rule.comment) for rule in pair)), told_conflict(*pair))
        opening |= {id(rule) for rule in pair if rule.target in ALLOWING}
    return [rule for rule in rules if id(rule) not in opening], sorted(told.values())


def _closed(lines: t.Sequence[Rule]) -> t.List[Rule]:
    """The rules for docker-proxy without those that let everybody else in to a port where another policy denies it."""
    others = [(rule, mark) for rule in lines for mark in [mark_of(rule)] if mark is not None]
    others = [(rule, mark) for rule, mark in others if mark.section == OTHERWISE]
    denying = [(rule, mark.policy) for rule, mark in others if rule.target not in ALLOWING]
    opening = {
        id(rule)
        for rule, mark in others
        if rule.target in ALLOWING and any(policy != mark.policy and _meet(rule, denied) for denied, policy in denying)
    }
    return [rule for rule in lines if id(rule) not in opening]


def _meet(one: Rule, two: Rule) -> bool:
    """True if two rules for docker-proxy are about one host port."""
    addresses = {one.value("destination"), two.value("destination")} - {None}
    first, second = (_ports(rule) for rule in (one, two))
    same = one.value("protocol") == two.value("protocol") and len(addresses) < 2
    return same and first[0] <= second[1] and second[0] <= first[1]


def _ports(rule: Rule) -> t.Tuple[int, int]:
    low, _colon, high = str(rule.value("destination_port")).partition(":")
    return int(low), int(high or low)


def _host_ports(inventory: Inventory, bindings: Bindings) -> t.Tuple[t.Dict[str, t.Tuple[HostPorts, ...]], t.List[str]]:
    """The published ports of all containers on the host, and warnings."""
    # Only here, as what a run does not need it should not pay for: Ansible compiles a module anew each time.
    from ansible_collections.quaywall.docker.plugins.module_utils._proxy import all_bindings, host_ports

    found, warnings = all_bindings(inventory, bindings)
    return {family: host_ports(found, family) for family in (IPV4, IPV6)}, warnings


def _bridges(inventory: t.Optional[Inventory]) -> t.Dict[str, t.Tuple[str, ...]]:
    """The bridges of Docker's networks, by the families that they carry."""
    if inventory is None:
        return {IPV4: (_FIRST_BRIDGE,), IPV6: (_FIRST_BRIDGE,)}
    found = [network for network in inventory.networks.values() if network.bridge]
    return {
        IPV4: tuple(sorted({network.bridge for network in found})),
        IPV6: tuple(sorted({network.bridge for network in found if network.ipv6})),
    }


def plan_chain(
    table: Table, mangle: t.Optional[Table], wanted: Wanted, settings: Settings, family: str, unknown: bool
) -> Plan:
    """The plan for one family.

    :param mangle: the table of the guard; None if it cannot be read, and then it is left alone.
    :param unknown: nothing is known of Docker on this host yet, so that it may come to use either family.
    :raises PolicyError: a rule of others is to be removed, and cannot be named to iptables-restore.
    """
    bridges = wanted.bridges.get(family, ())
    if not wanted.looked_up:
        bridges = _closed_bridges(table) or bridges
    default = default_rules(bridges, settings.outside_interfaces) if settings.default == "drop" else []
    if settings.foreign_rules == "remove":
        _check_removable(table, family)
    # With live-restore containers run on while Docker does not answer: what is there is all that guards them.
    block = _in_order([*wanted.rules.get(family, ()), *rules_of(table, wanted.unanswered)])
    if default:
        block.append(DEFAULT_RULE)
    uses = family == IPV4 or unknown or docker_manages(table) or DOCKER_USER in table.chains or bool(block)
    own: t.List[OwnChain] = [own_default(table, default or None, family)]
    if mangle is not None:
        guard = guard_rules(block, default) if settings.guard and block else None
        own += own_guard(mangle, guard, family)
        own.append(own_proxy(mangle, _proxied(mangle, wanted, settings, family), family))
    return plan(
        table,
        block,
        established=uses and settings.established != "omit",
        add_return=uses,
        family=family,
        established_target=settings.established.upper() if settings.established != "omit" else "ACCEPT",
        keep_foreign=settings.foreign_rules == "keep",
        own=[chain for chain in own if chain.changes],
        need_chain=uses,
        lift_jump=uses,
    )


def _proxied(mangle: Table, wanted: Wanted, settings: Settings, family: str) -> t.Optional[t.List[Rule]]:
    """The guard's rules for what comes in to docker-proxy."""
    if not settings.guard:
        return None
    found = [*wanted.proxied.get(family, ()), *kept_proxy_lines(mangle, wanted.unanswered)]
    if wanted.unproxied:
        from ansible_collections.quaywall.docker.plugins.module_utils._proxy import renewed_lines

        kept = kept_proxy_lines(mangle)
        found += [rule for policy in wanted.unproxied for rule in renewed_lines(policy, kept, family)]
    lines = _in_order(found)
    if settings.default == "drop":
        from ansible_collections.quaywall.docker.plugins.module_utils._proxy import default_lines

        ports = wanted.host_ports.get(family, ())
        looked_up = default_lines(ports, settings.outside_interfaces)
        lines += looked_up if wanted.looked_up else kept_proxy_default(mangle)
    # Containers on a network that carries no IPv6 may still reach the host by it.
    bridges = [bridge for known in wanted.bridges.values() for bridge in known]
    passing = [] if wanted.looked_up else kept_proxy_bridges(mangle)
    return proxy_rules({*bridges, *passing}, lines)


def _check_removable(table: Table, family: str) -> None:
    """Refuse to remove rules whose comments hold line breaks: a line of ours would end there, and another one begin."""
    chain = table.chains.get(DOCKER_USER)
    for number, rule in enumerate(chain.rules if chain is not None else (), 1):
        if "\n" in rule.render():
            raise PolicyError(
                "foreign_rules: remove cannot remove rule %d of DOCKER-USER, as its comment holds a line break: take "
                "it out with `%s -D DOCKER-USER %d`, then run again."
                % (number, "ip6tables" if family == IPV6 else "iptables", number)
            )


def rules_of(table: Table, policies: t.Collection[str]) -> t.List[Rule]:
    """The rules of some policies, as they are in DOCKER-USER."""
    chain = table.chains.get(DOCKER_USER)
    marked = [(rule, mark_of(rule)) for rule in chain.rules] if chain is not None and policies else []
    return [rule for rule, mark in marked if mark is not None and mark.policy in policies]


def _closed_bridges(table: Table) -> t.Tuple[str, ...]:
    """The bridges that the default chain closes now."""
    chain = table.chains.get(DEFAULT_CHAIN)
    found = {rule.value("out_interface") for rule in chain.rules} if chain is not None else set()
    return tuple(sorted(bridge for bridge in found if bridge is not None))


def _in_order(rules: t.Sequence[Rule]) -> t.List[Rule]:
    return with_policy(None, "", rules)


def plan_removal(table: Table, mangle: t.Optional[Table], family: str) -> Plan:
    """The plan that takes all of ours out; what is of Docker or of other tools stays."""
    own: t.List[OwnChain] = [own_default(table, None, family)]
    if mangle is not None:
        own += own_guard(mangle, None, family)
        own.append(own_proxy(mangle, None, family))
    chains = [chain for chain in own if chain.changes]
    return plan(table, (), established=False, add_return=False, family=family, own=chains)
