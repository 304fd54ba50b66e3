# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What a plan does to who reaches what: connections are traced over the host's snapshot, and over the same with the
plan carried out.

Asked is for every way into a container that the plan may touch: its published ports, and its own address, from outside
and from other containers. What the plan cannot touch is left out before anything is walked: rules say what they are
about.
"""

from __future__ import annotations

import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import listed
from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import (
    FAMILY_TEXTS,
    Endpoint,
    Family,
    Published,
)
from ansible_collections.quaywall.docker.plugins.module_utils._chain import (
    DEFAULT_CHAIN,
    DOCKER_USER,
    FILTER,
    FORWARD,
    GUARD_CHAIN,
    GUARD_DENY_CHAIN,
    MANGLE,
    Chain,
    Dump,
    Table,
)
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import (
    EVERYTHING,
    NOTHING,
    Intervals,
    intersect,
    join,
    of_network,
    overlaps,
    subtract,
    text,
    union,
)
from ansible_collections.quaywall.docker.plugins.module_utils._plan import Plan, is_jump
from ansible_collections.quaywall.docker.plugins.module_utils._rule import Parser, Rule, port_ranges
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import IpSet, Snapshot
from ansible_collections.quaywall.docker.plugins.module_utils._trace import CLIENT_PORTS, Start, Tracer
from ansible_collections.quaywall.docker.plugins.module_utils._walk import ACCEPT, RETURN, interface_matches

REACHABLE = "reachable"
BLOCKED = "blocked"
DEFINITE = "definite"
POSSIBLE = "possible"
#: So many connections are traced, before and after.
MOST_TRACED = 20000
_MOST_NAMED = 5

#: A plan, and the variant of iptables that it is for.
Planned = t.Mapping[str, t.Tuple[str, Plan]]


class AccessChange(t.NamedTuple):
    """Who reaches a port no more, or does now.

    ``becomes`` is C(reachable) or C(blocked). ``published`` is C(9000->8080/tcp), empty for the container's own
    address; there ``port`` 0 stands for every port that nobody publishes and no rule names.
    """

    becomes: str
    source: str
    in_interface: str
    container: str
    address: str
    port: int
    protocol: str
    published: str
    family: str
    certainty: str
    reasons: t.Tuple[str, ...]

    @property
    def text(self) -> str:
        """The change as a person says it."""
        word = {REACHABLE: "Reachable", BLOCKED: "Blocked"}[self.becomes]
        where = self.published
        if not where:
            port = "port %d/%s" % (self.port, self.protocol) if self.port else "every other %s port" % self.protocol
            where = "%s, %s" % (self.address, port)
        inside = " in by %s" % self.in_interface if self.in_interface else ""
        perhaps = " (possible: it hangs on %s)" % "; ".join(self.reasons) if self.certainty == POSSIBLE else ""
        return "%s for %s%s: %s (%s) over %s%s" % (
            word,
            self.source,
            inside,
            self.container,
            where,
            FAMILY_TEXTS[self.family],
            perhaps,
        )


# The snapshot with the plan carried out ------------------------------------------------------------------------------


def carried_out(snapshot: Snapshot, plans: Planned, sets: t.Iterable[t.Tuple[str, str, t.Iterable[str]]]) -> Snapshot:
    """The snapshot as it will be: with the plans' chains, and with these sets.

    :param sets: name, family and networks of each set of ours.
    """
    dumps = dict(snapshot.dumps)
    for family, (variant, plan) in plans.items():
        dumps[family, variant] = _dump_after(dumps.get((family, variant)) or Dump({}), plan, family)
    known = dict(snapshot.sets or {})
    for name, family, networks in sets:
        known[name] = IpSet(name, "hash:net", family, tuple(networks), True)
    return snapshot._replace(dumps=dumps, sets=known)


def _dump_after(dump: Dump, plan: Plan, family: str) -> Dump:
    tables = {name: table._replace(chains=dict(table.chains)) for name, table in dump.tables.items()}
    chains = tables.setdefault(FILTER, Table(FILTER, {})).chains
    if plan.create_chain or plan.after or DOCKER_USER in chains:
        chains[DOCKER_USER] = _chain(DOCKER_USER, plan.after, family, chains.get(DOCKER_USER))
    if plan.add_jump or plan.lift_jump:
        forward = chains.get(FORWARD) or Chain(FORWARD, ACCEPT, ())
        others = list(forward.rules)
        if plan.lift_jump:
            others.pop(next(index for index, rule in enumerate(others) if is_jump(rule)))
        jump = Parser(family).parse("-j %s" % DOCKER_USER)
        chains[FORWARD] = forward._replace(rules=(jump, *others))
    for own in plan.own:
        inside = tables.setdefault(own.table, Table(own.table, {})).chains
        for place, spec in own.deletes:
            found = inside.get(place)
            left = [] if found is None else list(found.rules)
            dead = next((index for index, rule in enumerate(left) if rule.render() == spec), None)
            if found is not None and dead is not None:
                del left[dead]
                inside[place] = found._replace(rules=tuple(left))
        for place, spec in own.inserts:
            found = inside.get(place) or Chain(place, ACCEPT, ())
            inside[place] = found._replace(rules=(Parser(family).parse(spec), *found.rules))
        if own.after is None:
            inside.pop(own.name, None)
        else:
            inside[own.name] = _chain(own.name, own.after, family, inside.get(own.name))
    return dump._replace(tables=tables)


def _chain(name: str, lines: t.Iterable[str], family: str, before: t.Optional[Chain]) -> Chain:
    """A chain of these rules; those that are there already are the same objects."""
    known = {} if before is None else {rule.render(): rule for rule in before.rules}
    parser = Parser(family)
    return Chain(name, None, tuple(known.get(line) or parser.parse(line) for line in lines))


# What the plan may touch ---------------------------------------------------------------------------------------------


class Scope(t.NamedTuple):
    """What rules that come or go may be about; None: everything."""

    addresses: t.Optional[Intervals]
    host_ports: t.Optional[Intervals]
    #: Protocols and ports that such rules name.
    ports: t.FrozenSet[t.Tuple[str, int]]
    rules: t.Tuple[Rule, ...]

    def covers(self, address: int, host_port: int = -1) -> bool:
        if self.addresses is None or self.host_ports is None:
            return True
        inside = overlaps(self.addresses, ((address, address),))
        return inside or overlaps(self.host_ports, ((host_port, host_port),))

    def enters_by(self, interface: str) -> bool:
        """True if such a rule may match what comes in by an interface."""
        return any(_may_enter(rule, interface) for rule in self.rules)


def _may_enter(rule: Rule, interface: str) -> bool:
    return all(
        interface_matches(field.value, interface) != field.negated
        for field in rule.fields
        if field.name == "in_interface"
    )


def scope_of(plan: Plan, family: str) -> Scope:
    """What the rules are about that the plan writes, takes out or moves."""
    if plan.add_jump or plan.lift_jump:
        return Scope(None, None, frozenset(), (Rule(()),))
    parser = Parser(family)
    rules = [parser.parse(line) for line in _changed_lines(plan)]
    at_host = [parser.parse(line) for line in _changed_lines(plan, True)]
    addresses: t.Optional[Intervals] = NOTHING
    host_ports: t.Optional[Intervals] = NOTHING
    named: t.Set[t.Tuple[str, int]] = set()
    for rule in [*rules, *at_host]:
        values = {field.name: field.value for field in rule.fields if not field.negated}
        ports = values.get("destination_port")
        if ports is not None and rule not in at_host:
            named |= {(values.get("protocol", "tcp"), low) for low, _high in port_ranges(ports)}
        asked = values.get("ctorigdstport") if rule not in at_host else ports
        if "destination" in values and rule not in at_host and addresses is not None:
            addresses = union(addresses, of_network(values["destination"]))
        elif asked is not None and host_ports is not None:
            host_ports = join([*host_ports, *port_ranges(asked)])
        else:
            addresses = host_ports = None
    return Scope(addresses, host_ports, frozenset(named), (*rules, *at_host))


def _changed_lines(plan: Plan, at_host: bool = False) -> t.List[str]:
    """The rules that come or go.

    :param at_host: those about what comes in to docker-proxy, which are about ports of the host.
    """
    found: t.Set[str] = set()
    if not at_host:
        found = {*plan.before} ^ {*plan.after}
        # At the end of the chain a RETURN is where everything goes anyhow. What the default's jump leads to is below.
        found -= {lines[-1] for lines in (plan.before, plan.after) if lines and lines[-1] == "-j RETURN"}
        found = {line for line in found if not line.endswith("-j " + DEFAULT_CHAIN)}
    for own in plan.own:
        if own.name == GUARD_DENY_CHAIN or at_host != (own.table == MANGLE and own.name != GUARD_CHAIN):
            continue
        before, after = own.before or (), own.after or ()
        changed = {*before} ^ {*after}
        if own.table == MANGLE and not (before and after):
            # Of a whole chain the first ones only let pass what it is not for.
            lines = before or after
            while lines and lines[0].endswith("-j " + RETURN) and "--dport" not in lines[0] and " -d " not in lines[0]:
                changed.discard(lines[0])
                lines = lines[1:]
        found |= changed
    return sorted(found)


# Who reaches what ----------------------------------------------------------------------------------------------------


class _Asked(t.NamedTuple):
    """A way to a container's port: what is connected to, and how it is called.

    ``endpoint`` is of the other family where docker-proxy leads from one to the other.
    """

    family: str
    endpoint: Endpoint
    address: int
    port: int
    protocol: str
    published: t.Optional[Published] = None
    #: Stands for all that nobody names.
    every: bool = False


class _Reached(t.NamedTuple):
    """Of the clients of a start those that get through, those that do not, and what it hangs on for the others."""

    through: Intervals
    stopped: Intervals
    reasons: t.Tuple[str, ...]


def access_changes(
    snapshot: Snapshot,
    plans: Planned,
    sets: t.Iterable[t.Tuple[str, str, t.Iterable[str]]] = (),
    goes_on: t.Callable[[], bool] = lambda: True,
) -> t.Tuple[t.List[AccessChange], bool]:
    """Who gains and who loses access by the plans, and whether all of it was looked at: from outside first.

    :param plans: of each family; what a plan says of DOCKER-USER counts, where the snapshot is of another moment.
    :param sets: as in :func:`carried_out`.
    :param goes_on: False ends the search.
    """
    plans = {family: made for family, made in plans.items() if not made[1].empty}
    before = Tracer(_as_planned(snapshot, plans))
    after = Tracer(carried_out(before.snapshot, plans, sets))
    found: t.List[AccessChange] = []
    left = MOST_TRACED
    scopes = {family: scope_of(made, family) for family, (_variant, made) in sorted(plans.items())}
    for inside in (False, True):
        for family, scope in scopes.items():
            for asked in _ways(before, after, family, scope):
                starts = _starts(before, after, asked, scope, inside)
                left -= len(starts)
                if left < 0 or not goes_on():
                    return found, False
                found += _changed(before, after, asked, starts)
    return found, True


def _as_planned(snapshot: Snapshot, plans: Planned) -> Snapshot:
    """The snapshot with DOCKER-USER as the plans found it: somebody may have written in between."""
    dumps = dict(snapshot.dumps)
    for family, (variant, plan) in plans.items():
        dump = dumps.get((family, variant)) or Dump({})
        chain = dump.chain(FILTER, DOCKER_USER)
        if chain is not None and tuple(rule.render() for rule in chain.rules) != plan.before:
            table = dump.tables[FILTER]
            chains = {**table.chains, DOCKER_USER: _chain(DOCKER_USER, plan.before, family, chain)}
            dumps[family, variant] = dump._replace(tables={**dump.tables, FILTER: table._replace(chains=chains)})
    return snapshot._replace(dumps=dumps)


def _ways(before: Tracer, after: Tracer, family: str, scope: Scope) -> t.Iterator[_Asked]:
    """The ways into containers that the plan may touch."""
    survey = before.survey.family(family)
    others = [endpoint for other in before.survey.families if other is not survey for endpoint in other.endpoints]
    inner: t.Dict[int, t.Dict[t.Tuple[str, int], None]] = {}
    for item in survey.published:
        endpoint, binding = item.endpoint, item.binding
        if item.loopback:
            continue
        if endpoint is not None:
            inner.setdefault(endpoint.number, {})[binding.protocol, binding.container_port] = None
        elif item.proxied:
            endpoint = next((one for one in others if one.container.id == item.container.id), None)
        number = endpoint.number if endpoint is not None and endpoint.family == family else -1
        if endpoint is None or item.routed or not scope.covers(number, binding.host_port):
            continue
        address = _host_address(before, family, item)
        if address is not None:
            yield _Asked(family, endpoint, address, binding.host_port, binding.protocol, item)
    unnamed = min(survey.unnamed_port, after.survey.family(family).unnamed_port)
    for endpoint in survey.endpoints:
        if not endpoint.bridge or not scope.covers(endpoint.number):
            continue
        ports = dict.fromkeys([*inner.get(endpoint.number, ()), *sorted(scope.ports)])
        for protocol, port in ports:
            yield _Asked(family, endpoint, endpoint.number, port, protocol)
        yield _Asked(family, endpoint, endpoint.number, unnamed, "tcp", every=True)


def _host_address(tracer: Tracer, family: str, published: Published) -> t.Optional[int]:
    """Where somebody outside connects to for a published port."""
    if published.binding.host_address not in ("", "0.0.0.0", "::"):
        return of_network(published.binding.host_address)[0][0]
    own = (tracer.address_of(family, name) for name in tracer.survey.outside)
    return next((address for address in own if address is not None), None)


def _starts(before: Tracer, after: Tracer, asked: _Asked, scope: Scope, inside: bool) -> t.List[t.Tuple[Start, str]]:
    """Who may connect: everybody outside, by each interface that rules tell apart; or the containers of each bridge.

    With the bridge's name, where they are containers.
    """
    family = asked.family
    survey = before.survey.family(family)
    if not inside:
        names = dict.fromkeys([*survey.ways_in, *after.survey.family(family).ways_in])
        return [(Start(family, EVERYTHING[family], name, False, name), "") for name in names if scope.enters_by(name)]
    bridges: t.Dict[str, t.List[Endpoint]] = {}
    for endpoint in survey.endpoints:
        if endpoint.bridge and endpoint.container.id != asked.endpoint.container.id:
            bridges.setdefault(endpoint.bridge, []).append(endpoint)
    return [
        (Start(family, join((one.number, one.number) for one in endpoints), bridge, False, bridge), bridge)
        for bridge, endpoints in bridges.items()
        if scope.enters_by(bridge)
    ]


def _reached(tracer: Tracer, start: Start, asked: _Asked) -> _Reached:
    ends = tracer.ends(start, asked.address, asked.port, asked.protocol, CLIENT_PORTS)
    through = join(piece for end in ends if end.delivered for piece in end.clients)
    stopped = join(piece for end in ends if not end.delivered for piece in end.clients)
    both = intersect(through, stopped)
    if not both:
        return _Reached(through, stopped, ())
    reasons = tuple(dict.fromkeys(reason for end in ends for reason in end.reasons))
    return _Reached(subtract(through, both), subtract(stopped, both), reasons)


def _changed(
    before: Tracer, after: Tracer, asked: _Asked, starts: t.Sequence[t.Tuple[Start, str]]
) -> t.Iterator[AccessChange]:
    family = asked.family
    groups: t.Dict[t.Tuple[str, str, t.Tuple[str, ...], str], t.List[str]] = {}
    survey = before.survey.family(family)
    outside = [start.in_interface for start, bridge in starts if not bridge]
    for start, bridge in starts:
        old, new = _reached(before, start, asked), _reached(after, start, asked)
        lost, gained = intersect(old.through, new.stopped), intersect(old.stopped, new.through)
        reasons = tuple(dict.fromkeys(old.reasons + new.reasons))
        perhaps_lost = subtract(subtract(old.through, new.through), lost)
        perhaps_lost = union(perhaps_lost, subtract(subtract(new.stopped, old.stopped), lost))
        perhaps_gained = subtract(subtract(old.stopped, new.stopped), gained)
        perhaps_gained = union(perhaps_gained, subtract(subtract(new.through, old.through), gained))
        for becomes, certainty, peers in (
            (BLOCKED, DEFINITE, lost),
            (BLOCKED, POSSIBLE, perhaps_lost),
            (REACHABLE, DEFINITE, gained),
            (REACHABLE, POSSIBLE, perhaps_gained),
        ):
            if peers:
                who = _names(survey, peers) if bridge else text(peers, family)
                why = reasons if certainty == POSSIBLE else ()
                groups.setdefault((becomes, certainty, why, who), []).append(start.in_interface)
    for (becomes, certainty, why, who), interfaces in groups.items():
        # The same for all that is outside needs no interface's name.
        shown = [""] if set(outside) <= set(interfaces) and outside else interfaces
        for interface in shown:
            yield AccessChange(
                becomes,
                who,
                interface,
                asked.endpoint.container.name,
                asked.endpoint.address,
                0 if asked.every else asked.port,
                asked.protocol,
                asked.published.text if asked.published is not None else "",
                family,
                certainty,
                why,
            )


def _names(family: Family, peers: Intervals) -> str:
    """The containers whose addresses these are."""
    found = [item.container.name for item in family.endpoints if overlaps(peers, ((item.number, item.number),))]
    return listed(sorted(set(found)), _MOST_NAMED)
