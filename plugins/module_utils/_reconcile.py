# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Brings the kernel to what policies and settings say: for the module docker_user_chain and for the follower alike."""

from __future__ import annotations

import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._baseline import (
    NOTHING,
    Bindings,
    Settings,
    Wanted,
    compile_chain,
    parse_policies,
    plan_chain,
    plan_removal,
    rules_of,
)
from ansible_collections.quaywall.docker.plugins.module_utils._beside import Beside, address_sets
from ansible_collections.quaywall.docker.plugins.module_utils._chain import (
    MANGLE,
    docker_manages,
    is_managed,
    mark_of,
    set_name,
    sets_of,
)
from ansible_collections.quaywall.docker.plugins.module_utils._iptables import (
    LEGACY,
    Change,
    Firewall,
    FirewallError,
    State,
)
from ansible_collections.quaywall.docker.plugins.module_utils._policy import (
    BridgeRoute,
    Policy,
    PolicyError,
    long_lists,
)
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6, Parser, Rule
from ansible_collections.quaywall.docker.plugins.module_utils._store import Store, Stored, StoreError

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._inventory import Inventory
    from ansible_collections.quaywall.docker.plugins.module_utils._ipset import AddressSet, Ipset
    from ansible_collections.quaywall.docker.plugins.module_utils._plan import Plan

_FAMILY_TEXTS = {IPV4: "IPv4", IPV6: "IPv6"}


class Outdated(Exception):
    """What the job says was stored anew before its turn came."""


class Job(t.NamedTuple):
    """What the chain is to be; ``settings`` is None where all of ours is to go.

    ``inventory`` is None where Docker was not asked, or does not answer; ``ip6_dnat``, where its chains do not tell (at
    boot), whether Docker manages ip6tables too. ``current`` says, under the lock, whether this still is what is stored.
    ``settle`` is that of :func:`compile_chain`: policies by label may come to disagree when there is nobody to ask.
    """

    settings: t.Optional[Settings]
    policies: t.Sequence[Policy]
    inventory: t.Optional[Inventory]
    bindings: Bindings
    bridge_routes: t.Callable[[], t.Sequence[BridgeRoute]]
    wait: bool
    ip6_dnat: t.Optional[bool] = None
    current: t.Callable[[], bool] = lambda: True
    settle: bool = False


class Result(t.NamedTuple):
    """What became of a job."""

    changes: t.Mapping[str, Change]
    wanted: Wanted
    sets_before: t.Mapping[str, AddressSet]
    sets_after: t.Mapping[str, AddressSet]
    unread: t.Mapping[str, str]
    unguarded: t.FrozenSet[str]
    ip6_dnat: bool
    stored: bool

    @property
    def changed(self) -> bool:
        return (
            self.stored
            or self.sets_before != self.sets_after
            or any(change.changed for change in self.changes.values())
        )


def bring(
    firewall: Firewall,
    ipset: Ipset,
    job: Job,
    dry: bool,
    store: t.Optional[Store] = None,
    stored: t.Optional[Stored] = None,
    quick: bool = False,
) -> Result:
    """Bring the chain, the guard, the sets and the store to what the job says.

    :param store: where the policies are kept; it goes with all else of ours.
    :param stored: what to keep in the store; None leaves it alone.
    :param quick: for who looks often: an ipset that looks as before is not read again.
    :raises FirewallError: the kernel cannot be read or written; nothing is half done.
    :raises PolicyError: a policy cannot be put into rules.
    :raises StoreError: the policies cannot be stored; the kernel is as it was.
    :raises Outdated: the job is not what is stored any more; the kernel is as it was.
    """
    compiled: t.Dict[bool, Wanted] = {}
    unread: t.Dict[str, str] = {}
    unguarded: t.Set[str] = set()
    asked: t.Set[str] = set()
    dnat: t.List[bool] = [False]
    routes: t.List[t.Sequence[BridgeRoute]] = []

    def wanted_in(state: State) -> Wanted:
        if job.settings is None:
            return NOTHING
        dnat[0] = _docker_uses_ip6(state) or _unknown(job, state) or bool(job.ip6_dnat)
        if dnat[0] not in compiled:
            if not routes:
                routes.append(job.bridge_routes() if any(item.destination is not None for item in job.policies) else ())
            compiled[dnat[0]] = compile_chain(
                job.policies, job.inventory, job.bindings, routes[0], dnat[0], job.wait, job.settings, job.settle
            )
        return compiled[dnat[0]]

    def planner(state: State) -> t.Dict[str, Plan]:
        if not job.current():
            raise Outdated
        wanted = wanted_in(state)
        unread.clear()
        unread.update(state.unreadable)
        asked.clear()
        plans: t.Dict[str, Plan] = {}
        for family in sorted({*state.tables, *(name for name, rules in wanted.rules.items() if rules)}):
            if family == IPV6 and family not in state.tables and not _needs_ip6(job):
                continue
            if family in state.unreadable:
                raise FirewallError(state.unreadable[family])
            if family not in state.tables:
                raise FirewallError(
                    "%s is not installed, and a policy has %s addresses: install it, or write ip_version: ipv4."
                    % ("ip6tables" if family == IPV6 else "iptables", _FAMILY_TEXTS[family])
                )
            table, mangle = state.tables[family], state.mangle.get(family)
            known = _as_they_are(job, state, wanted)
            if job.settings is None:
                plans[family] = plan_removal(table, mangle, family)
                continue
            if job.settings.guard and mangle is None:
                unguarded.add(family)
            plans[family] = plan_chain(table, mangle, known, job.settings, family, _unknown(job, state))
            asked.update(name for rule in rules_of(table, known.unanswered) for name in sets_of(rule))
        return plans

    def sets() -> t.Tuple[t.Mapping[str, AddressSet], t.Collection[str]]:
        made = compiled.get(dnat[0], NOTHING)
        # A policy that waits for its container needs its set soon, and a long one is not made in a moment.
        mine = {set_name(policy.name, family) for policy in job.policies for family in long_lists(policy)}
        return address_sets(made.sets), asked | mine

    beside = Beside(ipset, sets, store, None if stored is None else lambda: stored, quick, forget=job.settings is None)
    changes = firewall.change(planner, dry, chain_needed=False, creates=job.settings is not None, companion=beside)
    return Result(
        changes,
        compiled.get(dnat[0], NOTHING),
        beside.present(),
        beside.after(),
        dict(unread),
        frozenset(unguarded),
        dnat[0],
        beside.will_store() if dry else beside.stored,
    )


def _as_they_are(job: Job, state: State, wanted: Wanted) -> Wanted:
    """Where Docker is only remembered, rules that are there know more of addresses than what is remembered."""
    if job.inventory is None or not job.inventory.remembered:
        return wanted
    looked_up = {policy.name for policy in job.policies if policy.needs_docker}
    there = {
        mark.policy
        for table in state.tables.values()
        for mark in map(mark_of, rules_of(table, looked_up))
        if mark is not None
    }
    rules = {family: _without(made, there) for family, made in wanted.rules.items()}
    proxied = {family: _without(made, there) for family, made in wanted.proxied.items()}
    return wanted._replace(rules=rules, unanswered=wanted.unanswered | there, proxied=proxied)


def _without(rules: t.Iterable[Rule], policies: t.Collection[str]) -> t.List[Rule]:
    return [rule for rule in rules for mark in [mark_of(rule)] if mark is None or mark.policy not in policies]


def _docker_uses_ip6(state: State) -> bool:
    return IPV6 in state.tables and docker_manages(state.tables[IPV6])


def _unknown(job: Job, state: State) -> bool:
    """True if nothing tells which families Docker uses: before it has ever run here, it may come to use either."""
    return job.inventory is None and job.ip6_dnat is None and not docker_manages(state.tables[IPV4])


def _needs_ip6(job: Job) -> bool:
    """True if a policy has IPv6; where it was only assumed, a host without ip6tables has nothing to guard."""
    return job.inventory is not None or any(
        policy.ip_version in (IPV6, "both") or _names_ip6(policy) for policy in job.policies
    )


def _names_ip6(policy: Policy) -> bool:
    return policy.destination is not None and policy.destination.version == 6


# The follower --------------------------------------------------------------------------------------------------------


class Outcome(t.NamedTuple):
    """What one run of the follower did, in plain words."""

    changed: bool
    messages: t.Tuple[str, ...]
    waiting: t.Mapping[str, str]
    warnings: t.Tuple[str, ...]


class Reconciler:
    """Brings the kernel to what is stored on this host."""

    def __init__(self, firewall: Firewall, ipset: Ipset, store: Store) -> None:
        self._firewall = firewall
        self._ipset = ipset
        self._store = store
        self._variants: t.Mapping[str, str] = {}
        self._version: t.Optional[t.Tuple[int, int, int]] = None
        self._policies: t.Optional[t.Tuple[Settings, t.Sequence[Policy]]] = None
        #: Whether Docker manages ip6tables too, as it was at the last run; None before the first.
        self.ip6_dnat: t.Optional[bool] = None

    def legacy(self) -> bool:
        """True if the chain is in the legacy variant, of whose changes nobody is told."""
        return LEGACY in self._variants.values()

    def _stored_policies(self) -> t.Optional[t.Tuple[Settings, t.Sequence[Policy]]]:
        """The settings and the policies; they are read again only if they were stored anew, as there may be many."""
        version = self._store.version()
        if version is None or self._policies is None or version != self._version:
            self._policies = None
            stored = self._store.read()
            if stored is None:
                return None
            try:
                settings = Settings.from_options(stored.settings)
                self._policies = settings, parse_policies(stored.policies, settings.ipset_threshold)
            except PolicyError as error:
                raise StoreError("%s: %s" % (self._store.path, error)) from error
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise StoreError(
                    "%s holds what no playbook writes there (%s): run the playbook again, which writes it anew."
                    % (self._store.path, error)
                ) from error
            self._version = version
        return self._policies

    def run(
        self,
        inventory: t.Optional[Inventory],
        bindings: Bindings,
        dry: bool = False,
        ip6_dnat: t.Optional[bool] = None,
    ) -> Outcome:
        """Bring the kernel to the stored policies.

        :param inventory: what Docker has; None if it does not answer and nothing is remembered.
        :param ip6_dnat: whether Docker manages ip6tables, where its chains do not tell (at boot); None: not known.
        :raises FirewallError: the kernel cannot be read or written.
        :raises StoreError: the stored policies cannot be read, or are wrong.
        """
        wanted = self._stored_policies()
        if wanted is None:
            return Outcome(False, (), {}, ("There are no stored policies on this host (%s)." % self._store.path,))
        settings, policies = wanted
        version = self._version

        def current() -> bool:
            return self._store.version() == version

        job = Job(settings, policies, inventory, bindings, _bridge_routes, True, ip6_dnat, current, True)
        try:
            result = bring(self._firewall, self._ipset, job, dry, quick=True)
        except Outdated:
            # A playbook came first. Who stores anew is done soon.
            return self.run(inventory, bindings, dry, ip6_dnat)
        except PolicyError as error:
            raise StoreError("%s: %s" % (self._store.path, error)) from error
        self._variants = {family: change.variant for family, change in result.changes.items()}
        if inventory is not None:
            self.ip6_dnat = result.ip6_dnat
        return Outcome(
            result.changed, tuple(messages(result)), result.wanted.waiting, (*result.wanted.warnings, *_gaps(result))
        )


def _bridge_routes() -> t.Sequence[BridgeRoute]:
    from ansible_collections.quaywall.docker.plugins.module_utils._host import bridge_routes

    return bridge_routes()


def _gaps(result: Result) -> t.List[str]:
    found = ["IPv6 was left as it is: %s" % reason for reason in sorted(set(result.unread.values()))]
    found += [
        "There is no guard in %s, as its table mangle holds rules that were not written with iptables."
        % _FAMILY_TEXTS[family]
        for family in sorted(result.unguarded)
    ]
    return found


def messages(result: Result) -> t.List[str]:
    """What was changed, a line for each kind of change, in plain words."""
    lines: t.List[str] = []
    for family, change in sorted(result.changes.items()):
        plan = change.plan
        where = "%s DOCKER-USER" % _FAMILY_TEXTS[family]
        if plan.create_chain:
            lines.append("%s: made the chain" % where)
        if plan.add_jump:
            lines.append("%s: put its jump into FORWARD" % where)
        if plan.lift_jump:
            lines.append("%s: moved its jump to the top of FORWARD" % where)
        before, after = _by_policy(change.before, family), _by_policy(change.after, family)
        for name in sorted({*before, *after}, key=str):
            if before.get(name) != after.get(name):
                lines.append("%s: %s" % (where, _said(name, before.get(name, []), after.get(name, []))))
        if plan.operations and not lines:
            lines.append("%s: put the rules in their order" % where)
        if any(own.table != MANGLE for own in plan.own):
            lines.append("%s: brought the default into line with Docker's networks" % where)
        if any(own.table == MANGLE for own in plan.own):
            lines.append("%s: brought the guard in mangle into line" % where)
    names = {*result.sets_before, *result.sets_after}
    for name in sorted(names):
        one, two = result.sets_before.get(name), result.sets_after.get(name)
        if one != two:
            lines.append("ipset %s: %s" % (name, "removed" if two is None else "holds %d networks" % len(two.networks)))
    return lines


def _said(name: t.Optional[str], before: t.Sequence[str], after: t.Sequence[str]) -> str:
    who = "policy %s" % name if name is not None else "the baseline"
    if not after:
        return "took %s out (%d rules)" % (who, len(before))
    places = sorted({word for line in after for word in _addresses(line)})
    at = " for %s" % ", ".join(places[:4]) + (" and %d more" % (len(places) - 4) if len(places) > 4 else "")
    return "%s %s (%d rules)%s" % ("wrote" if not before else "rewrote", who, len(after), at if places else "")


def _addresses(line: str) -> t.List[str]:
    words = line.split(" ")
    return [
        two.partition("/")[0] if two.endswith(("/32", "/128")) else two
        for one, two in zip(words, words[1:])
        if one == "-d"
    ]


def _by_policy(lines: t.Iterable[str], family: str) -> t.Dict[t.Optional[str], t.List[str]]:
    """Rules of ours by their policy; None for the baseline. Rules of others are left out."""
    parser = Parser(family)
    found: t.Dict[t.Optional[str], t.List[str]] = {}
    for line in lines:
        if "quaywall" in line:
            rule = parser.parse(line)
            if is_managed(rule):
                mark = mark_of(rule)
                found.setdefault(None if mark is None else mark.policy, []).append(line)
    return found
