# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What the module docker_user_rule does, from its options to its results."""

from __future__ import annotations

import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._beside import Beside, address_sets
from ansible_collections.quaywall.docker.plugins.module_utils._chain import (
    DOCKER_USER,
    GUARD_CHAIN,
    PROXY_CHAIN,
    Chain,
    docker_manages,
    is_established,
    mark_of,
    sets_of,
)
from ansible_collections.quaywall.docker.plugins.module_utils._iptables import FirewallError, State
from ansible_collections.quaywall.docker.plugins.module_utils._module._asked import access_of, collect_late
from ansible_collections.quaywall.docker.plugins.module_utils._module._edge import (
    FAMILY_TEXTS,
    Host,
    chain_diffs,
    chain_results,
    dead_rules,
    leave,
    make_host,
    policy_spec,
)
from ansible_collections.quaywall.docker.plugins.module_utils._plan import (
    OwnChain,
    Plan,
    jump_is_first,
    plan,
    with_policy,
)
from ansible_collections.quaywall.docker.plugins.module_utils._policy import (
    BridgeRoute,
    Compiled,
    Policy,
    PolicyError,
    check_name,
    compile_policy,
    conflict,
    list_sets,
)
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV6, Rule
from ansible_collections.quaywall.docker.plugins.module_utils._store import Json, Store, Stored, without_defaults

if t.TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

    from ansible_collections.quaywall.docker.plugins.module_utils._docker import Docker
    from ansible_collections.quaywall.docker.plugins.module_utils._inventory import Inventory
    from ansible_collections.quaywall.docker.plugins.module_utils._ipset import AddressSet
    from ansible_collections.quaywall.docker.plugins.module_utils._module._given import Collector


def argument_spec() -> t.Dict[str, t.Any]:
    """Options of one policy, as documented in the fragment C(policy)."""
    return {
        "name": {"type": "str", "required": True},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "baseline": {"type": "bool", "default": True},
        "ipset_threshold": {"type": "int", "default": 100},
        "drop_connections": {"type": "bool", "default": False},
        "show_access_changes": {"type": "bool"},
        **policy_spec(),
    }


def run_module(
    module: AnsibleModule,
    create_host: t.Callable[[AnsibleModule], Host] = make_host,
    store: t.Optional[Store] = None,
    collector: t.Optional[Collector] = None,
) -> None:
    """Bring one policy to the kernel (or take it away) and leave the module.

    :param collector: how the host is looked at for C(access_changes); by default a host of this module's own making.
    """
    look = collector or (collect_late if create_host is make_host else None)
    leave(module, "docker_user_rule", lambda: _run(module, create_host(module), store or Store(), look))


def _run(
    module: AnsibleModule, host: Host, store: Store, collector: t.Optional[Collector] = None
) -> t.Dict[str, t.Any]:
    options = module.params
    policy = None if options["state"] == "absent" else Policy.from_options(options)
    name = check_name(str(options["name"]))
    kept = store.read()
    settings = None if kept is None else kept.settings
    engine = _Engine(host, policy)
    # Before any lock is taken, as far as it is known now: Docker may take its time.
    engine.ask(settings is not None and bool(settings.get("guard", True)))
    compiled: t.Dict[t.Tuple[bool, bool], Compiled] = {}
    unread: t.Set[str] = set()
    dead: t.Set[str] = set()
    late: t.Dict[str, str] = {}
    asked: t.Set[str] = set()

    def planner(state: State) -> t.Dict[str, Plan]:
        ip6_dnat = IPV6 in state.tables and docker_manages(state.tables[IPV6])
        guarded = _is_guarded(state, settings)
        engine.ask(guarded)
        # Endpoints are looked up once; whether IPv6 takes part may depend on the chains that were found.
        if policy is not None and (ip6_dnat, guarded) not in compiled:
            compiled[ip6_dnat, guarded] = _compile(policy, engine, ip6_dnat, guarded)
        made = compiled.get((ip6_dnat, guarded), _NOTHING)
        rules = made.rules
        unread.update(state.unreadable.values())
        asked.clear()
        plans: t.Dict[str, Plan] = {}
        for family in sorted({*state.tables, *(family for family in rules if rules[family])}):
            if family in state.unreadable:
                raise FirewallError(state.unreadable[family])
            if family not in state.tables:
                raise FirewallError(
                    "%s is not installed, and the target has %s addresses: install it, or write ip_version: ipv4."
                    % ("ip6tables" if family == IPV6 else "iptables", FAMILY_TEXTS[family])
                )
            block = with_policy(state.tables[family].chains.get(DOCKER_USER), name, rules.get(family, ()))
            asked.update(used for rule in block for used in sets_of(rule))
            mine = rules.get(family, ())
            own: t.Sequence[OwnChain] = ()
            if guarded:
                own, used = _own_chains(state, family, block, policy, name, made.proxied.get(family, ()), engine)
                asked.update(used)
            plans[family] = _plan_family(state, family, policy, mine, block, bool(options["baseline"]), settings, own)
            dead.update(plans[family].unreachable)
            managed = bool(rules.get(family)) or _has_managed(state, family)
            if managed and not plans[family].add_jump and not jump_is_first(state.tables[family]):
                late[family] = _how_to_lift_the_jump(state, family)
        return plans

    def sets() -> t.Tuple[t.Mapping[str, AddressSet], t.Collection[str]]:
        made = dict(next(iter(compiled.values())).sets if compiled else {})
        # Rules for docker-proxy that were renewed without a look-up may ask one that no other rule does.
        renewed = {} if policy is None else list_sets(policy)
        return address_sets({**made, **{name: found for name, found in renewed.items() if name in asked}}), asked

    def stored() -> t.Optional[Stored]:
        return _stored(store, name, None if policy is None else options)

    beside = Beside(host.ipset, sets, store, stored)
    dry = bool(module.check_mode)
    access = access_of(module, collector)
    changes = host.firewall.change(planner, dry=dry, chain_needed=policy is not None, companion=beside)
    last = next(iter(compiled.values()), None)
    warnings = list(last.warnings) if last is not None else []
    for warning in warnings + _seen_beside(unread, dead, late):
        module.warn(warning)
    cut: t.List[str] = []
    if options["drop_connections"] and policy:
        # Only here, as what a run does not need it should not pay for: Ansible compiles a module anew each time.
        from ansible_collections.quaywall.docker.plugins.module_utils._module._cut import cut_connections

        cut = cut_connections(host, changes, beside.after(), dry)
    result: t.Dict[str, t.Any] = {
        "changed": bool(cut)
        or any(change.changed for change in changes.values())
        or beside.present() != beside.after()
        or (beside.will_store() if dry else beside.stored),
        "endpoints": [dict(endpoint._asdict()) for endpoint in last.endpoints] if last is not None else [],
        "chains": chain_results(changes),
        "dropped_connections": cut,
    }
    if access is not None:
        result["access_changes"] = access.result(changes, beside.after())
    if module._diff:
        result["diff"] = chain_diffs(changes)
    return result


def _seen_beside(unread: t.Iterable[str], dead: t.Iterable[str], late: t.Mapping[str, str]) -> t.List[str]:
    """Warnings of what was found besides the policy."""
    warnings = ["IPv6 was left as it is: %s" % reason for reason in sorted(unread)]
    warnings += dead_rules(dead)
    for family, advice in sorted(late.items()):
        warnings.append(
            "The %s FORWARD chain reads other rules before it jumps to DOCKER-USER, and what they accept no policy "
            "stops: %s." % (FAMILY_TEXTS[family], advice)
        )
    return warnings


def _stored(store: Store, name: str, options: t.Optional[t.Mapping[str, t.Any]]) -> t.Optional[Stored]:
    """What the store is to hold, where the role keeps one: else the follower would take the change back."""
    found = store.read()
    if found is None:
        return None
    policies = [policy for policy in found.policies if policy.get("name") != name]
    if options is not None:
        mine = {"name": name, **without_defaults(options, policy_spec())}
        # A threshold of its own is kept only where it is another one than the chain's.
        threshold = argument_spec()["ipset_threshold"]["default"]
        if options["ipset_threshold"] != found.settings.get("ipset_threshold", threshold):
            mine["ipset_threshold"] = options["ipset_threshold"]
        policies.append(mine)
    return found._replace(policies=tuple(sorted(policies, key=lambda policy: str(policy.get("name")))))


_NOTHING = Compiled({}, (), (), {}, {})


class _Engine:
    """The engine, where the policy needs a look-up, or the guard would like to know the ports that it is for.

    :raises DockerError: the policy must be looked up, and the engine does not answer.
    """

    def __init__(self, host: Host, policy: t.Optional[Policy]) -> None:
        self._host = host
        needed = policy is not None and policy.needs_docker
        self._asked = needed or policy is None
        self.docker: t.Optional[Docker] = host.docker() if needed else None
        self._inventory: t.Optional[Inventory] = None

    def ask(self, guarded: bool) -> None:
        """For the guard, once: if the engine does not answer, the guard stays with the ports that it knows."""
        if self._asked or not guarded:
            return
        from ansible_collections.quaywall.docker.plugins.module_utils._inventory import DockerError

        self._asked = True
        try:
            self.docker = self._host.docker()
            self.inventory()
        except DockerError:
            self.docker = None

    def inventory(self) -> t.Optional[Inventory]:
        """What Docker has; None where it was not asked."""
        if self._inventory is None and self.docker is not None:
            self._inventory = self.docker.inventory()
        return self._inventory

    def bridges(self) -> t.Optional[t.List[str]]:
        """Those of Docker's networks; None where it was not asked."""
        found = self.inventory()
        return None if found is None else [network.bridge for network in found.networks.values() if network.bridge]


def _compile(policy: Policy, engine: _Engine, ip6_dnat: bool, guarded: bool) -> Compiled:
    routes: t.Sequence[BridgeRoute] = ()
    if policy.target == "destination":
        from ansible_collections.quaywall.docker.plugins.module_utils._host import bridge_routes

        routes = bridge_routes()
    if engine.docker is None:
        return compile_policy(policy, bridge_routes=routes, ip6_dnat=ip6_dnat)
    return compile_policy(policy, engine.inventory(), engine.docker.bindings, routes, ip6_dnat, guarded)


def _how_to_lift_the_jump(state: State, family: str) -> str:
    if docker_manages(state.tables[family]):
        return "restart Docker, which moves the jump to the top"
    command = "ip6tables" if family == IPV6 else "iptables"
    return "run `%s -D FORWARD -j DOCKER-USER` and `%s -I FORWARD -j DOCKER-USER`" % (command, command)


def _has_managed(state: State, family: str) -> bool:
    chain = state.tables[family].chains.get(DOCKER_USER)
    return chain is not None and any(mark_of(rule) is not None for rule in chain.rules)


def _plan_family(
    state: State,
    family: str,
    policy: t.Optional[Policy],
    rules: t.Sequence[Rule],
    block: t.Sequence[Rule],
    baseline: bool,
    settings: t.Optional[Json],
    own: t.Sequence[OwnChain],
) -> Plan:
    """The plan that puts the policy's rules among those of the other policies.

    :param settings: those of the whole chain; None where they are not stored.
    :param own: the guard's chains.
    """
    table = state.tables[family]
    chain = table.chains.get(DOCKER_USER)
    if policy is not None:
        found = conflict(policy, rules, block)
        if found is not None:
            raise PolicyError(found)
    present = chain is not None and any(is_established(rule) for rule in chain.rules)
    wanted = baseline and policy is not None and (settings is None or settings.get("established") != "omit")
    return plan(
        table,
        block,
        # Where it is stored that there is a baseline, the last policy does not take it along.
        established=(present and settings is not None) or (bool(block) and (present or wanted)),
        add_return=bool(rules) and baseline,
        family=family,
        established_target=_established_target(chain, settings),
        own=own,
    )


def _is_guarded(state: State, settings: t.Optional[Json]) -> bool:
    """True if a guard is wanted: of one with nothing to deny only the other family's, or the store, can tell."""
    if settings is not None and bool(settings.get("guard", True)):
        return True
    return any(chain in table.chains for table in state.mangle.values() for chain in (GUARD_CHAIN, PROXY_CHAIN))


def _own_chains(
    state: State,
    family: str,
    block: t.Sequence[Rule],
    policy: t.Optional[Policy],
    name: str,
    proxied: t.Sequence[Rule],
    engine: _Engine,
) -> t.Tuple[t.Sequence[OwnChain], t.Set[str]]:
    """The guard as it is with these policies, and the ipsets that it asks besides those that the block does.

    :param proxied: the policy's rules for docker-proxy, as far as they were looked up.
    """
    mangle = state.mangle.get(family)
    if mangle is None:
        return (), set()
    # Only here, as what a run does not need it should not pay for: Ansible compiles a module anew each time.
    from ansible_collections.quaywall.docker.plugins.module_utils._guard import (
        kept_proxy_lines,
        own_chains_beside,
        proxy_lines_beside,
    )

    if policy is not None and engine.docker is None:
        from ansible_collections.quaywall.docker.plugins.module_utils._proxy import renewed_lines

        proxied = renewed_lines(policy, kept_proxy_lines(mangle), family)
    lines = proxy_lines_beside(mangle, name, proxied)
    own = own_chains_beside(state.tables[family], mangle, block, family, lines, engine.bridges())
    return own, {used for rule in lines for used in sets_of(rule)}


def _established_target(chain: t.Optional[Chain], settings: t.Optional[Json]) -> str:
    """What the first rule does with replies: what docker_user_chain was told stays as it is."""
    if settings is not None and settings.get("established") == "return":
        return "RETURN"
    for rule in () if chain is None else chain.rules:
        if is_established(rule) and rule.target == "RETURN":
            return "RETURN"
    return "ACCEPT"
