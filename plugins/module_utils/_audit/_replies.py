# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Checks of denies in DOCKER-USER that answers and containers' own connections run into.

Each deny is said once, by the first of these that is true:

1. It matches C(--ctorigdstport), which also holds for answers and for containers' own connections to such a port:
   :func:`replies_or_egress_hit`, about that rule.
2. A rule that would let the answers pass stands behind it: :func:`established_late`, about that rule.
3. It is for all that comes in through an interface: :func:`replies_or_egress_hit`, about the deny.
4. Else: :func:`established_missing`, about the chain.

All is found by walks. That falling off the chain's end returns is no fault.
"""

from __future__ import annotations

import itertools
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._audit._denies import broad_scope
from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import (
    HIGH,
    NEIGHBOURS,
    OUTGOING,
    REPLIES,
    Affected,
    Finding,
    Fix,
    Json,
    listed,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._remedies import (
    container_name,
    container_target,
    deny_policies,
    established_fix,
    fix,
    peers_of,
    removal,
    together,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._reports import (
    PORT_PROTOCOLS,
    denying,
    on_network,
    ranges_text,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._rulings import (
    Ruling,
    Rulings,
    Scope,
    Stopped,
    holds,
    rulings_of,
)
from ansible_collections.quaywall.docker.plugins.module_utils._walk import Flow, Outcome, Site, interface_matches

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import (
        Endpoint,
        Family,
        Published,
        Survey,
    )

#: Networks that are walked one by one.
_MOST_NETWORKS = 50


def _by_host_port(ruling: Ruling) -> bool:
    return any(scope.original_ports is not None for scope in ruling.scopes)


def _late(rulings: Rulings, item: Stopped) -> t.Optional[Ruling]:
    """The first rule behind a deny that would let the answers pass."""
    deny = rulings.deny_at[item.site]
    bridge = item.endpoint.bridge
    for ruling in rulings.established:
        if ruling.order <= deny.order:
            continue
        for scope in ruling.scopes:
            # Answers to a container come in from outside, those of a container through its bridge.
            ways = rulings.family.ways_in if item.published is None else [bridge]
            out = [bridge] if item.published is None else rulings.family.ways_in
            if (
                any(scope.comes_in(name) for name in ways)
                and (not scope.out_interface or any(interface_matches(scope.out_interface, name) for name in out))
                and scope.destinations is None
                and scope.sources is None
            ):
                return ruling
    return None


def _definite(reasons: t.Iterable[t.Tuple[str, ...]]) -> t.Tuple[str, ...]:
    """What all of it hangs on: nothing if anything is definite."""
    found = list(reasons)
    return () if not all(found) else tuple(dict.fromkeys(reason for one in found for reason in one))


# replies_or_egress_hit -----------------------------------------------------------------------------------------------


def replies_or_egress_hit(survey: Survey) -> t.Iterator[Finding]:
    """Denies by host port that ask neither for the direction nor for DNAT, and those for all of an interface.

    C(--ctorigdstport) is the port that a connection was opened to, by whomever and in both directions. The finding is
    about the rule that says it, which may be the jump that leads to the deny.
    """
    for family in survey.families:
        rulings = rulings_of(family)
        by_site: t.Dict[Site, t.List[_Hit]] = {}
        for ruling in rulings.denies:
            if not ruling.managed and _by_host_port(ruling):
                for site, hit in _by_naming_rule(rulings, ruling).items():
                    by_site.setdefault(site, []).append(hit)
        for site, found in sorted(by_site.items(), key=lambda item: item[1][0].ruling.order):
            yield _host_port(rulings, site, found)
        for ruling, items in _interface_wide(rulings):
            yield _interface_wide_finding(rulings, ruling, items)


def _names_host_port(rulings: Rulings, site: Site) -> bool:
    return rulings.family.rule(site).get("ctorigdstport") is not None


class _Side(t.NamedTuple):
    """What else a deny by host port stops, as findings name it and in words."""

    affected: t.Tuple[Affected, ...]
    reasons: t.Tuple[str, ...]
    words: str


class _Hit(t.NamedTuple):
    """A deny by host port, by one way that leads to it, and what else it stops."""

    ruling: Ruling
    way: t.Tuple[Site, ...]
    scope: Scope
    sides: t.List[_Side]


def _by_naming_rule(rulings: Rulings, ruling: Ruling) -> t.Dict[Site, _Hit]:
    """What a deny by host port stops besides, by the rule or jump that names the port."""
    found: t.Dict[Site, _Hit] = {}
    first = rulings.established_first
    passed = first is not None and first < ruling.order
    for way, scope in zip(ruling.ways, ruling.scopes):
        site = next((site for site in (*way, ruling.site) if _names_host_port(rulings, site)), None)
        if scope.original_ports is None or site is None or site in found:
            continue
        if scope.direction == "ORIGINAL" and scope.states == {"DNAT"}:
            continue
        if passed and not any(scope.comes_in(bridge) for bridge in rulings.by_bridge):
            continue  # neither answers nor what containers send can reach it
        sides = [*_own_connections(rulings, ruling, scope), *([] if passed else _clients(rulings, ruling, scope))]
        if sides:
            found[site] = _Hit(ruling, way, scope, sides)
    return found


def _host_port(rulings: Rulings, site: Site, found: t.Sequence[_Hit]) -> Finding:
    ruling, way, scope, _sides = found[0]
    sides = [side for hit in found for side in hit.sides]
    lacking = [
        words
        for words, there in (
            ("--ctstate DNAT", scope.states == {"DNAT"}),
            ("--ctdir ORIGINAL", scope.direction == "ORIGINAL"),
        )
        if not there
    ]
    ports = ranges_text(scope.original_ports or ())
    what = "%s by the port that a connection was opened to, %s" % (denying(ruling), ports)
    if site != ruling.site:
        what = "leads to a rule that " + what
    return Finding(
        check="replies_or_egress_hit",
        severity=HIGH,
        message="Rule %d of %s %s, without %s. So it also stops %s."
        % (
            site.position,
            rulings.chain_text(site.chain),
            what,
            " and ".join(lacking),
            listed(list(dict.fromkeys(side.words for side in sides))),
        ),
        place=rulings.family.place(site),
        affected=tuple(dict.fromkeys(item for side in sides for item in side.affected)),
        reasons=(*rulings.standing, *_definite(side.reasons for side in sides)),
        fix=_host_port_fix(rulings, ruling, site, way, scope) if len(found) == 1 else None,
    )


def _own_connections(rulings: Rulings, ruling: Ruling, scope: Scope) -> t.Iterator[_Side]:
    """What containers open to that port of other machines and of each other, and the answers."""
    there = "port %s of other machines" % ranges_text(scope.original_ports or ())
    found: t.Dict[str, t.List[t.Tuple[t.Sequence[Endpoint], t.Sequence[Outcome]]]] = {}
    for near in list(rulings.by_bridge.values())[:_MOST_NETWORKS]:
        endpoints = near
        if scope.by_host and scope.destinations is not None:
            endpoints = [item for item in near if holds(scope.destinations, item.number)]
        if endpoints:
            for traffic, touched, outcomes in _of_network(rulings, ruling, scope, endpoints[0], near):
                found.setdefault(traffic, []).append((touched or endpoints, outcomes))
    for traffic, peers, words in (
        (OUTGOING, there, "connections of containers on %s to " + there),
        (REPLIES, there, "the answers to connections of containers on %s to " + there),
        (NEIGHBOURS, "containers of its network", "connections between containers on %s to that port"),
    ):
        if traffic in found:
            networks = listed([touched[0].network for touched, _outcomes in found[traffic]])
            yield _side(
                [one for touched, _outcomes in found[traffic] for one in on_network(touched, traffic, peers)],
                [outcome for _touched, outcomes in found[traffic] for outcome in outcomes],
                words % networks,
            )


def _of_network(
    rulings: Rulings, ruling: Ruling, scope: Scope, endpoint: Endpoint, near: t.Sequence[Endpoint]
) -> t.Iterator[t.Tuple[str, t.Sequence[Endpoint], t.List[Outcome]]]:
    """What the rule stops of one container, and so of its network. Without endpoints: of those that the rule names."""
    family = rulings.family
    protocol = scope.protocol if scope.protocol in PORT_PROTOCOLS else "tcp"
    port = _first_port(scope)
    for out, back in zip(family.outgoing(endpoint, protocol, port), family.outgoing_replies(endpoint, protocol, port)):
        stopped = rulings.decides(ruling, out, family.remote)
        if stopped:
            yield OUTGOING, near, stopped
            break
        went = rulings.through(rulings.walk(out, family.remote), family.remote)
        stopped = rulings.decides(ruling, back, went) if went else []
        if stopped:
            yield REPLIES, (), stopped
            break
    if scope.comes_in(endpoint.bridge):
        stopped = rulings.cut_off(ruling, endpoint, protocol, port)
        if stopped:
            yield NEIGHBOURS, near, stopped


def _side(affected: t.Iterable[Affected], outcomes: t.Iterable[Outcome], words: str) -> _Side:
    return _Side(tuple(affected), _definite(outcome.reasons for outcome in outcomes), words)


def _first_port(scope: Scope) -> int:
    low, high = (scope.original_ports or ((80, 80),))[0]
    return min(max(low, 1), high)


def _clients(rulings: Rulings, ruling: Ruling, scope: Scope) -> t.Iterator[_Side]:
    """The answers of published ports to those who got in."""
    family = rulings.family
    for published in _published(rulings, scope):
        for flow, reply in zip(family.inbound(published), family.replies(published)):
            came = rulings.through(rulings.walk(flow), family.remote)
            stopped = rulings.decides(ruling, reply, came) if came else []
            if stopped:
                peers = "those who may connect"
                affected = [published.affected(traffic=REPLIES, peers=peers)]
                words = "the answers of %s (%s) to %s" % (published.container.name, published.text, peers)
                yield _side(affected, stopped, words)
                break


def _published(rulings: Rulings, scope: Scope) -> t.List[Published]:
    return [
        published
        for port in rulings.host_ports(scope.original_ports or ())
        for published in rulings.family.published_by_host_port[port]
        if not published.loopback and scope.protocol in ("", "all", published.binding.protocol)
    ]


def _host_port_fix(
    rulings: Rulings, ruling: Ruling, site: Site, way: t.Tuple[Site, ...], scope: Scope
) -> t.Optional[Fix]:
    published = [item for item in _published(rulings, scope) if scope.fits(item)]

    gone = removal(rulings, ruling, [way])
    # What the other denies stop that a jump leads to, they go on to stop.
    others = [other for other in rulings.denies if other.site != ruling.site and site in itertools.chain(*other.ways)]

    direct: t.List[t.Tuple[Published, Flow]] = []

    def policies() -> t.Optional[t.List[Json]]:
        if scope.by_host or (others and site not in (gone or ())):
            return None
        direct.extend(_closed_directly(rulings, ruling, published))
        ports = scope.original_ports or ()
        return together(
            itertools.chain(
                (_port_policies(rulings, ruling, scope, item, published) for item in ports),
                (_own_address_policies(rulings, ruling, scope, item, flow) for item, flow in direct),
            )
        )

    made = fix(
        rulings,
        "Say it by a policy for the published port, which is about connections from outside only.",
        policies,
        gone,
        published,
    )
    if made is None or not direct:
        return made
    return made._replace(description=made.description + " What the rule closes at containers' own addresses stays so.")


def _port_policies(
    rulings: Rulings, ruling: Ruling, scope: Scope, ports: t.Tuple[int, int], published: t.Iterable[Published]
) -> t.Optional[t.List[Json]]:
    low, high = ports
    flows = [flow for item in published for flow in rulings.family.inbound(item)]
    flows = [flow for flow in flows if low <= flow.original_ports[1][0] <= high]
    stranger = rulings.stranger(scope, 80)
    if stranger is not None:
        flows.append(stranger._replace(original_ports=(stranger.original_ports[0], (low, low))))
    if not flows:
        return None
    text = str(low) if low == high else "%d:%d" % (max(low, 1), high)
    target: t.Dict[str, t.Any] = {"published_port": text}
    if scope.protocol != "tcp":
        target["protocol"] = scope.protocol or "all"
    if scope.original_address:
        target["published_address"] = scope.original_address
    name = "port-%s" % text.replace(":", "-")
    return deny_policies(rulings, scope, ruling.verdict, name, target, peers_of(rulings.walk(flows[0]), ruling))


def _closed_directly(
    rulings: Rulings, ruling: Ruling, published: t.Iterable[Published]
) -> t.Iterator[t.Tuple[Published, Flow]]:
    """What the rule also stops at containers' own addresses: there the port that is connected to is the container's."""
    family = rulings.family
    for item in published:
        if item.endpoint is None or item.routed:
            continue
        for flow in family.direct(item.endpoint, item.binding.protocol, item.binding.container_port):
            if rulings.decides(ruling, flow) and all(_arrives(family, flow, table) for table in ("raw", "mangle")):
                yield item, flow
                break


def _arrives(family: Family, flow: Flow, table: str) -> bool:
    chain = "PREROUTING"
    there = chain in family.table(table).chains
    return not there or any(
        not outcome.denies for outcome in family.walk(family.arriving(flow, table), chain, table=table)
    )


def _own_address_policies(
    rulings: Rulings, ruling: Ruling, scope: Scope, published: Published, flow: Flow
) -> t.Optional[t.List[Json]]:
    binding, container = published.binding, published.container
    target = container_target(container, binding.protocol, [binding.container_port])
    target["match"] = "address"
    name = container_name(container, binding.protocol, [binding.container_port])
    return deny_policies(rulings, scope, ruling.verdict, name, target, peers_of(rulings.walk(flow), ruling))


# Rules for all that comes in -----------------------------------------------------------------------------------------


def _grouped(
    rulings: Rulings,
) -> t.Tuple[t.Dict[Site, t.List[Stopped]], t.Dict[Site, t.List[Stopped]], t.List[Stopped]]:
    """What stops answers: by interface-wide deny, by the rule that comes too late, and the rest."""
    wide: t.Dict[Site, t.List[Stopped]] = {}
    late: t.Dict[Site, t.List[Stopped]] = {}
    rest: t.List[Stopped] = []
    behind: t.Dict[t.Tuple[Site, str, bool], t.Optional[Ruling]] = {}
    for item in rulings.stopped:
        ruling = rulings.deny_at[item.site]
        if not ruling.managed and _by_host_port(ruling):
            continue
        key = (item.site, item.endpoint.bridge, item.published is None)
        if key not in behind:
            behind[key] = _late(rulings, item)
        found = behind[key]
        if found is not None:
            late.setdefault(found.site, []).append(item)
        elif not ruling.managed and any(_is_interface_wide(rulings, scope) for scope in ruling.scopes):
            wide.setdefault(item.site, []).append(item)
        else:
            rest.append(item)
    return wide, late, rest


def _is_interface_wide(rulings: Rulings, scope: Scope) -> bool:
    outside = bool(scope.in_interface) and any(scope.comes_in(name) for name in rulings.family.ways_in)
    return outside and broad_scope(rulings, scope)


def _interface_wide(rulings: Rulings) -> t.List[t.Tuple[Ruling, t.List[Stopped]]]:
    return [(rulings.deny_at[site], items) for site, items in _grouped(rulings)[0].items()]


def _interface_wide_finding(rulings: Rulings, ruling: Ruling, items: t.Sequence[Stopped]) -> Finding:
    scope = next(scope for scope in ruling.scopes if scope.in_interface)
    some = any(item.order < ruling.order for item in rulings.established)
    return Finding(
        check="replies_or_egress_hit",
        severity=HIGH,
        message="%s %s what comes in %sthrough %s%s, and no rule before it lets %sestablished connections pass. So it "
        "also stops %s."
        % (
            rulings.rule_text(ruling),
            denying(ruling),
            "not " if scope.in_negated else "",
            scope.in_interface,
            " from others than it names" if scope.sources is not None else "",
            "all " if some else "",
            _answers_text(items),
        ),
        place=rulings.family.place(ruling.site),
        affected=_affected(items),
        reasons=(*rulings.standing, *_definite(item.reasons for item in items)),
        fix=established_fix(rulings, items),
    )


def _answers_text(items: t.Sequence[Stopped]) -> str:
    """C(the answers of other machines, such as name servers, to web and db)."""
    parts = []
    own = _names(item for item in items if item.published is None)
    if own:
        parts.append("the answers of other machines, such as name servers, to %s" % listed(own))
    served = dict.fromkeys(
        "%s (%s)" % (item.published.container.name, item.published.text) for item in items if item.published is not None
    )
    if served:
        parts.append("the answers of %s to those who may connect" % listed(list(served)))
    return " and ".join(parts)


def _names(items: t.Iterable[Stopped]) -> t.List[str]:
    return list(dict.fromkeys(item.endpoint.container.name for item in items))


def _affected(items: t.Iterable[Stopped]) -> t.Tuple[Affected, ...]:
    by_bridge: t.Dict[str, t.Dict[int, Endpoint]] = {}
    served: t.Dict[t.Tuple[str, str], Affected] = {}
    for item in items:
        if item.published is None:
            by_bridge.setdefault(item.endpoint.bridge, {})[item.endpoint.number] = item.endpoint
        else:
            key = (item.published.container.id, item.published.text)
            served[key] = item.published.affected(traffic=REPLIES, peers="those who may connect")
    found = [one for near in by_bridge.values() for one in on_network(list(near.values()), REPLIES, "other machines")]
    return (*found, *served.values())


# established_missing, established_late -------------------------------------------------------------------------------


def established_missing(survey: Survey) -> t.Iterator[Finding]:
    """Answers that run into a deny, and no rule anywhere that would let them pass."""
    for family in survey.families:
        rulings = rulings_of(family)
        items = _grouped(rulings)[2]
        if not items:
            continue
        yield Finding(
            check="established_missing",
            severity=HIGH,
            message="No rule of %s lets established connections pass before others are read, so %s %s."
            % (
                rulings.chain_text(),
                _stopping(rulings, items, "stop"),
                _answers_text(items),
            ),
            place=family.place(),
            affected=_affected(items),
            reasons=(*rulings.standing, *_definite(item.reasons for item in items)),
            fix=established_fix(rulings, items),
        )


def _stopping(rulings: Rulings, items: t.Iterable[Stopped], words: str) -> str:
    """C(rules 4 and 6 of DOCKER-USER stop)."""
    by_chain: t.Dict[str, t.List[int]] = {}
    for chain, position in sorted({(item.site.chain, item.site.position) for item in items}):
        by_chain.setdefault(chain, []).append(position)
    parts = [
        "rule%s %s of %s"
        % (
            "" if len(positions) == 1 else "s",
            listed([str(position) for position in positions]),
            rulings.chain_text(chain),
        )
        for chain, positions in by_chain.items()
    ]
    single = len(parts) == 1 and parts[0].startswith("rule ")
    return "%s %s" % (listed(parts), words + "s" if single else words)


def established_late(survey: Survey) -> t.Iterator[Finding]:
    """A rule that lets answers pass, behind a deny that they run into."""
    for family in survey.families:
        rulings = rulings_of(family)
        for site, items in _grouped(rulings)[1].items():
            yield Finding(
                check="established_late",
                severity=HIGH,
                message="Rule %d of %s lets established connections pass, but too late: before it, %s %s."
                % (
                    site.position,
                    rulings.chain_text(site.chain),
                    _stopping(rulings, items, "stop"),
                    _answers_text(items),
                ),
                place=family.place(site),
                affected=_affected(items),
                reasons=(*rulings.standing, *_definite(item.reasons for item in items)),
                fix=established_fix(rulings, items),
            )
