# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Checks of foreign rules in DOCKER-USER that deny: by port alone, far and wide, or by an address alone.

``meant`` is decided by what a rule's port says: a container that publishes a port under that *host* number was meant,
one that is hit only as its inner port has that number was not.
"""

from __future__ import annotations

import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import (
    CRITICAL,
    HIGH,
    MEDIUM,
    NEIGHBOURS,
    OUTGOING,
    Affected,
    Finding,
    Fix,
    Json,
    listed,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._remedies import (
    deny_policies,
    established_fix,
    fix,
    joined,
    narrowing_fix,
    peers_of,
    policies_for_endpoint,
    policies_for_hits,
    policies_for_meant,
    removal,
    together,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._reports import (
    PORT_PROTOCOLS,
    affected_ports,
    by_port,
    denying,
    named,
    network_of,
    on_network,
    port_of,
    ports_text,
    reasons_of,
    side_hits,
    side_text,
    where_text,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._rulings import (
    Meant,
    Ruling,
    Rulings,
    Scope,
    holds,
    rulings_of,
)
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import (
    intersect,
    join,
    overlaps,
    size,
    subtract,
)
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4
from ansible_collections.quaywall.docker.plugins.module_utils._walk import ACCEPT, PEER, Flow, Outcome

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import (
        Endpoint,
        Hit,
        Survey,
    )

#: Containers that a fix writes policies for in place of a rule that hits all.
_MOST_CLOSED = 5
#: What containers ask for, to find out if they can.
_ASKED = (("tcp", 443), ("udp", 53))
#: Ports that Docker chooses by itself, for -P and for -p without a host port.
_CHOSEN = (32768, 60999)


# port_only_deny ------------------------------------------------------------------------------------------------------


def port_only_deny(survey: Survey) -> t.Iterator[Finding]:
    """Denies that match a destination port and no container.

    A rule for so many ports that it is about none is :func:`broad_deny`'s; one whose port is a host port and nobody's
    inner port is C(host_port_never_matches); one that nothing reaches is C(unreachable_rule). A published port of the
    routing mesh keeps its number, so a rule that hits nothing else is right.
    """
    for family in survey.families:
        rulings = rulings_of(family)
        for ruling in rulings.denies:
            if not ruling.managed and any(by_port(scope) for scope in ruling.scopes):
                yield from _port_only(rulings, ruling)


def _port_only(rulings: Rulings, ruling: Ruling) -> t.Iterator[Finding]:
    hits = [hit for hit in rulings.hits.get(ruling.site, ()) if by_port(ruling.scope_for(hit.published))]
    missed = rulings.in_vain(ruling)
    scope = next((scope for scope in ruling.scopes if by_port(scope)), ruling.scope)
    outcomes = [hit.outcome for hit in hits]
    if not hits:
        outcomes = _on_stranger(rulings, ruling, scope)
        if not outcomes or _in_mesh(rulings, scope) or any(rulings.overlooked(ruling, item) for item in missed):
            return
        missed = []
    meant = {
        hit.published.container.id
        for hit in hits
        if holds(ruling.scope_for(hit.published).ports or (), hit.published.binding.host_port)
    }
    wrong = [hit for hit in hits if hit.published.container.id not in meant]
    sides = side_hits(rulings, ruling, scope, [hit.published for hit in hits])
    yield Finding(
        check="port_only_deny",
        severity=CRITICAL if wrong else HIGH,
        message=_port_only_message(rulings, ruling, scope, hits, meant, missed, sides),
        place=rulings.family.place(ruling.site),
        affected=(*affected_ports(rulings, hits, meant), *sides),
        reasons=reasons_of(rulings, [hit.outcome for hit in wrong] or outcomes),
        fix=_port_only_fix(rulings, ruling, scope, hits, meant, missed),
    )


def _on_stranger(rulings: Rulings, ruling: Ruling, scope: Scope) -> t.List[Outcome]:
    """What the rule does to a published port that nobody has; nothing if it is not reached."""
    flow = rulings.stranger(scope, port_of(scope))
    return rulings.decides(ruling, flow, rulings.family.remote) if flow is not None else []


def _in_mesh(rulings: Rulings, scope: Scope) -> bool:
    """True if the routing mesh publishes a port that the rule is for."""
    return rulings.family.name == IPV4 and any(
        holds(scope.ports or (), port.published_port)
        for port in rulings.survey.snapshot.swarm_ports
        if port.mode == "ingress" and scope.protocol in ("", "all", port.protocol)
    )


def _port_only_message(
    rulings: Rulings,
    ruling: Ruling,
    scope: Scope,
    hits: t.Sequence[Hit],
    meant: t.Collection[str],
    missed: t.Sequence[Meant],
    sides: t.Sequence[Affected],
) -> str:
    what = ports_text(scope)
    words = [
        "%s %s %s of every container%s, as DOCKER-USER is read after DNAT and sees the container's port."
        % (rulings.rule_text(ruling), denying(ruling), what, where_text(rulings, scope))
    ]
    right = named(hit.published for hit in hits if hit.published.container.id in meant)
    # What is routed has no port of the host's.
    routed = all(hit.published.routed for hit in hits if hit.published.container.id in meant)
    its_port = "its port" if routed else "the host port"
    wrong = named(hit.published for hit in hits if hit.published.container.id not in meant)
    if right and wrong:
        words.append(
            "It stops %s, for which it was meant, as the rule names %s, and %s, for which it was not, as "
            "only the inner port has that number." % (right, its_port, wrong)
        )
    elif right:
        words.append(
            "It stops %s, for which it was meant, as the rule names %s; the next container with that inner port is "
            "stopped as well." % (right, its_port)
        )
    elif wrong:
        words.append(
            "It stops %s, for which it was not meant: the rule does not name the host port, only the inner port has "
            "that number." % wrong
        )
    else:
        words.append("No published port leads there now; the next one that does is stopped, whatever its host port is.")
    if missed:
        words.append(
            "%s, for which it was meant by the host port, it does not stop." % named(item.published for item in missed)
        )
    words += side_text(sides)
    return " ".join(words)


def _port_only_fix(
    rulings: Rulings,
    ruling: Ruling,
    scope: Scope,
    hits: t.Sequence[Hit],
    meant: t.Collection[str],
    missed: t.Sequence[Meant],
) -> t.Optional[Fix]:
    right = [hit for hit in hits if hit.published.container.id in meant]
    if not hits:
        description = "Close the host port by a policy that no other container's inner port can match."
    elif right or missed:
        description = "Close by container what the rule was meant for, and leave the others alone."
    else:
        # Nobody can say which of them it was for, so whatever is closed stays closed, by name.
        right = list(hits)
        description = (
            "Close the containers by name that the rule stops now; leave out the policies of those that it was not "
            "meant for."
        )

    def policies() -> t.Optional[t.List[Json]]:
        if not hits:
            return _port_policies(rulings, ruling, scope)
        return together(
            [policies_for_hits(rulings, ruling, right), *(policies_for_meant(rulings, ruling, item) for item in missed)]
        )

    touched = [hit.published for hit in hits] + [item.published for item in missed]
    # By another way it may be a rule for a container, and a good one.
    gone = removal(rulings, ruling) if all(by_port(scope) for scope in ruling.scopes) else None
    return fix(rulings, description, policies, gone, touched)


def _port_policies(rulings: Rulings, ruling: Ruling, scope: Scope) -> t.Optional[t.List[Json]]:
    flow = rulings.stranger(scope, port_of(scope))
    # A host port that somebody has is his, and other rules decide about it.
    if flow is None or scope.negated or scope.ports is None or any(rulings.host_ports(scope.ports)):
        return None
    found: t.List[Json] = []
    for low, high in scope.ports:
        ports = str(low) if low == high else "%d:%d" % (low, high)
        target: t.Dict[str, t.Any] = {"published_port": ports}
        if scope.protocol not in ("", "tcp"):
            target["protocol"] = scope.protocol
        name = "port-%s" % ports.replace(":", "-")
        made = deny_policies(rulings, scope, ruling.verdict, name, target, peers_of(rulings.walk(flow), ruling))
        if made is None:
            return None
        found += made
    return found


# broad_deny ----------------------------------------------------------------------------------------------------------


def broad_deny(survey: Survey) -> t.Iterator[Finding]:
    """Denies without a port (or for so many that it is none) and without a container, which stop what nobody listed.

    A default-deny is one on purpose, and no finding, if rules let somebody in first (or it spares somebody itself, as
    C(! -s) does) and containers' own connections and the answers to them pass: so Docker's documentation and ufw-docker
    have it. Where other rules say what containers may open, that the rest is stopped is on purpose too.
    Nor is a rule a finding that names its sources (a ban), a network that somebody made, or that asks what is not
    known (a rate, a country), as it is for some packets only.
    """
    for family in survey.families:
        rulings = rulings_of(family)
        cut = {item.site for item in rulings.stopped if item.published is None and not item.reasons}
        for ruling in rulings.denies:
            hits = rulings.hits.get(ruling.site, ())
            if ruling.managed or not any(_is_broad(rulings, ruling, hit) for hit in hits):
                continue
            spared = _spares(rulings, ruling, hits)
            sent = _stops_sending(rulings, ruling)
            if not spared or sent or ruling.site in cut:
                yield _broad(rulings, ruling, hits, spared, sent)


def broad_scope(rulings: Rulings, scope: Scope) -> bool:
    """True if a rule says neither port nor container nor sources, and no network but Docker's default one."""
    network = network_of(rulings, scope)
    default = rulings.survey.networks_by_bridge.get("docker0")
    named_network = bool(network) and (default is None or network != default.name)
    return scope.wide and not scope.by_container and not scope.named_sources and not named_network


def _is_broad(rulings: Rulings, ruling: Ruling, hit: Hit) -> bool:
    """True if the rule stops nearly everybody, and for certain."""
    remote = rulings.family.remote
    return (
        not hit.outcome.reasons
        and broad_scope(rulings, ruling.scope_for(hit.published))
        and size(intersect(remote, hit.outcome.peers)) * 2 > size(remote)
    )


def _spares(rulings: Rulings, ruling: Ruling, hits: t.Sequence[Hit]) -> bool:
    """True if somebody gets in: past the rule itself, or by a rule in front of it."""
    remote = rulings.family.remote
    for hit in hits:
        if any(not item.denies and overlaps(remote, item.peers) for item in rulings.walk(hit.flow)):
            return True
    return any(
        allow.order < ruling.order
        and (allow.verdict == ACCEPT or allow.site.chain == "DOCKER-USER")
        and any(_lets_in(rulings, scope) for scope in allow.scopes)
        for allow in rulings.allows
    )


def _lets_in(rulings: Rulings, scope: Scope) -> bool:
    """True if an allow may be for connections from outside: not for replies, nor for what containers send."""
    if scope.states and "NEW" not in scope.states and "DNAT" not in scope.states:
        return False
    if not any(scope.comes_in(name) for name in rulings.family.ways_in):
        return False
    if scope.out_interface and scope.out_interface in rulings.survey.outside:
        return False
    return scope.sources is None or overlaps(scope.sources, rulings.family.remote)


def _stops_sending(rulings: Rulings, ruling: Ruling) -> t.List[Endpoint]:
    """The containers whose own connections the rule stops, if no rule says which of them may pass."""
    family = rulings.family
    if any(
        allow.order < ruling.order and any(_lets_out(rulings, scope) for scope in allow.scopes)
        for allow in rulings.allows
    ):
        return []
    found: t.List[Endpoint] = []
    for bridge, endpoints in rulings.by_bridge.items():
        if any(scope.comes_in(bridge) for scope in ruling.scopes):
            flows = [flow for protocol, port in _ASKED for flow in family.outgoing(endpoints[0], protocol, port)]
            outcomes = [rulings.decides(ruling, flow, family.remote) for flow in flows]
            if all(any(not item.reasons for item in items) for items in outcomes):
                found += endpoints
    return found


def _lets_out(rulings: Rulings, scope: Scope) -> bool:
    """True if an allow is about what containers send, in whatever way it says so."""
    if scope.states and "NEW" not in scope.states:
        return False
    if scope.in_interface and any(scope.comes_in(bridge) for bridge in rulings.by_bridge):
        return True
    if scope.out_interface in rulings.survey.outside:
        return True
    return scope.named_sources and overlaps(scope.sources or (), rulings.family.subnets)


def _broad(
    rulings: Rulings, ruling: Ruling, hits: t.Sequence[Hit], spared: bool, sent: t.Sequence[Endpoint]
) -> Finding:
    words = [
        "%s %s whatever %s, no matter which container it is for: %s."
        % (
            rulings.rule_text(ruling),
            denying(ruling),
            _comes_text(rulings, ruling, hits),
            named(hit.published for hit in hits),
        )
    ]
    if not spared:
        words.append("Nobody is let in before it.")
    elif not sent:
        words.append("With it go the answers to containers' own connections, which no rule names.")
    if sent:
        words.append("It also stops all connections that containers open to other machines, which no rule names.")
    made = _broad_fix(rulings, ruling, hits, spared, bool(sent))
    if made is None:
        words.append(
            "Write a policy for each container that shall be closed, or let replies pass first and then those that "
            "shall get in."
        )
    by_bridge: t.Dict[str, t.List[Endpoint]] = {}
    for endpoint in sent:
        by_bridge.setdefault(endpoint.bridge, []).append(endpoint)
    return Finding(
        check="broad_deny",
        severity=CRITICAL,
        message=" ".join(words),
        place=rulings.family.place(ruling.site),
        affected=(
            *affected_ports(rulings, hits, None),
            *(one for near in by_bridge.values() for one in on_network(near, OUTGOING, "other machines")),
        ),
        reasons=rulings.standing,
        fix=made,
    )


def _broad_fix(rulings: Rulings, ruling: Ruling, hits: t.Sequence[Hit], spared: bool, sent: bool) -> t.Optional[Fix]:
    if not spared:
        if len({hit.published.container.id for hit in hits}) > _MOST_CLOSED:
            return None
        return fix(
            rulings,
            "Close by name the containers that the rule stops, and nothing else.",
            lambda: policies_for_hits(rulings, ruling, hits),
            removal(rulings, ruling),
            [hit.published for hit in hits],
        )
    established = [item for item in rulings.stopped if item.site == ruling.site]
    first = rulings.established_first
    late = first is None or first > ruling.order
    made = established_fix(rulings, established) if late else None
    if not sent:
        return made
    narrowed = narrowing_fix(rulings, ruling)
    return narrowed if made is None or narrowed is None else joined(made, narrowed)


def _comes_text(rulings: Rulings, ruling: Ruling, hits: t.Sequence[Hit]) -> str:
    scope = ruling.scope_for(hits[0].published)
    parts = ["comes in"]
    if scope.in_interface:
        parts.append("%sthrough %s" % ("not " if scope.in_negated else "", scope.in_interface))
    peers = rulings.family.peers_text(join(piece for hit in hits for piece in hit.outcome.peers))
    if peers != "anyone":
        parts.append("from %s" % peers)
    return " ".join(parts)


# neighbours_cut_off --------------------------------------------------------------------------------------------------


def neighbours_cut_off(survey: Survey) -> t.Iterator[Finding]:
    """Denies for a container or a network that also stop that container's neighbours.

    Packets between containers of one bridge pass iptables where br_netfilter has them do so. Only where there are
    neighbours, and only for rules that stop others too: one against neighbours alone is meant so.
    """
    for family in survey.families:
        if survey.bridge_netfilter(family.name) is not True:
            continue
        rulings = rulings_of(family)
        for ruling in rulings.denies:
            if not ruling.managed:
                yield from _neighbours(rulings, ruling)


def _neighbours(rulings: Rulings, ruling: Ruling) -> t.Iterator[Finding]:
    family = rulings.family
    for scope in ruling.scopes:
        for endpoint in _guarded(rulings, scope):
            if not scope.comes_in(endpoint.bridge):
                continue
            protocol, port = _served(rulings, scope, endpoint)
            outcomes = rulings.cut_off(ruling, endpoint, protocol, port)
            if not outcomes:
                continue
            hits = rulings.hits.get(ruling.site, ())
            direct = family.direct(endpoint, protocol, port)
            if not hits and not any(rulings.decides(ruling, flow, family.remote) for flow in direct):
                continue
            yield _neighbours_finding(rulings, ruling, scope, endpoint, hits, direct, outcomes)
            return


def _guarded(rulings: Rulings, scope: Scope) -> t.List[Endpoint]:
    """The container that a rule names by its address, or one of the network that it names."""
    if scope.by_host and scope.destinations:
        found = rulings.family.endpoints_by_number.get(scope.destinations[0][0])
        return [found] if found is not None and found.bridge else []
    if scope.by_container or not network_of(rulings, scope):
        return []
    for endpoints in rulings.by_bridge.values():
        for endpoint in endpoints:
            if (not scope.destinations or holds(scope.destinations, endpoint.number)) and (
                not scope.out_interface or scope.out_interface == endpoint.bridge
            ):
                return [endpoint]
    return []


def _served(rulings: Rulings, scope: Scope, endpoint: Endpoint) -> t.Tuple[str, int]:
    """A protocol and port of the container that the rule is for: a published one if there is any."""
    for binding in endpoint.container.current_ports:
        fits = scope.protocol in ("", "all", binding.protocol)
        if fits and (scope.ports is None or holds(scope.ports, binding.container_port)):
            return binding.protocol, binding.container_port
    return (scope.protocol if scope.protocol in PORT_PROTOCOLS else "tcp"), port_of(scope)


def _neighbours_finding(
    rulings: Rulings,
    ruling: Ruling,
    scope: Scope,
    endpoint: Endpoint,
    hits: t.Sequence[Hit],
    direct: t.Sequence[Flow],
    outcomes: t.Sequence[Outcome],
) -> Finding:
    container = endpoint.container
    whole = not scope.by_host
    near = rulings.by_bridge[endpoint.bridge]
    what = "network %s" % endpoint.network if whole else "%s (%s)" % (container.name, endpoint.address)
    others = [item.container.name for item in near if item.number != endpoint.number]
    flow = hits[0].flow if hits else direct[0]
    return Finding(
        check="neighbours_cut_off",
        severity=MEDIUM,
        message="%s closes %s also to its own network: packets between containers of one bridge pass iptables here, "
        "and the rule does not leave out what comes in through %s. It stops %s."
        % (
            rulings.rule_text(ruling),
            what,
            endpoint.bridge,
            "the containers of %s among each other" % endpoint.network if whole else listed(others),
        ),
        place=rulings.family.place(ruling.site),
        affected=tuple(
            on_network(near, NEIGHBOURS, "containers of its network")
            if whole
            else [
                Affected(
                    container.name,
                    endpoint.address,
                    endpoint.network,
                    traffic=NEIGHBOURS,
                    peers=listed(others),
                )
            ]
        ),
        reasons=reasons_of(rulings, outcomes),
        fix=fix(
            rulings,
            "Close it by a policy, which leaves the own network out.",
            lambda: policies_for_endpoint(rulings, ruling, scope, endpoint, whole, flow),
            removal(rulings, ruling),
            [hit.published for hit in hits],
        ),
    )


# address_only --------------------------------------------------------------------------------------------------------


def address_only(survey: Survey) -> t.Iterator[Finding]:
    """Denies of a published port that hold only as long as the container has its address.

    Decided by a walk to an address of its network that is free: who is not stopped there gets in while addresses move.
    An address that is static does not move. A host port that Docker chose (above 32767) has no policy that would hold.
    """
    for family in survey.families:
        rulings = rulings_of(family)
        static = _static_addresses(survey)
        for ruling in rulings.denies:
            if ruling.managed or not any(scope.by_host for scope in ruling.scopes):
                continue
            hits = [
                hit
                for hit in rulings.hits.get(ruling.site, ())
                if ruling.scope_for(hit.published).by_host
                and not _CHOSEN[0] <= hit.published.binding.host_port <= _CHOSEN[1]
                and hit.published.endpoint is not None
                and hit.published.endpoint.address not in static
                and _opens_elsewhere(rulings, hit)
            ]
            if hits and hits[0].published.endpoint is not None:
                yield _address(rulings, ruling, hits, hits[0].published.endpoint)


def _opens_elsewhere(rulings: Rulings, hit: Hit) -> bool:
    """True if some of those that are stopped would get in at another address."""
    free = rulings.free_address(hit.flow.out_interface)
    if free is None:
        return True
    address = ((free, free),)
    moved = hit.flow._replace(address=address, reply=(address, PEER))
    stopped = join(piece for item in rulings.walk(moved) if item.denies for piece in item.peers)
    return overlaps(rulings.family.remote, subtract(hit.outcome.peers, stopped))


def _static_addresses(survey: Survey) -> t.Set[str]:
    """Addresses that their containers ask for, so that they have them again when they are made anew."""
    found: t.Set[str] = set()
    docker = survey.snapshot.data.get("docker") or {}
    for item in docker.get("containers") or ():
        for endpoint in ((item.get("NetworkSettings") or {}).get("Networks") or {}).values():
            config = (endpoint or {}).get("IPAMConfig") or {}
            found |= {str(config[name]) for name in ("IPv4Address", "IPv6Address") if config.get(name)}
    return found


def _address(rulings: Rulings, ruling: Ruling, hits: t.Sequence[Hit], endpoint: Endpoint) -> Finding:
    published = hits[0].published
    return Finding(
        check="address_only",
        severity=MEDIUM,
        message="%s closes %s only as long as the container has the address %s. When it is made anew or the host "
        "boots, it may have another one, and the port is open until somebody corrects the rule."
        % (
            rulings.rule_text(ruling),
            named(hit.published for hit in hits),
            endpoint.address,
        ),
        place=rulings.family.place(ruling.site),
        affected=tuple(affected_ports(rulings, hits, None)),
        reasons=reasons_of(rulings, [hit.outcome for hit in hits]),
        fix=fix(
            rulings,
            "Close it by a policy, which also holds at the host port, wherever the container is.",
            lambda: policies_for_endpoint(rulings, ruling, ruling.scope_for(published), endpoint, False, hits[0].flow),
            removal(rulings, ruling),
            [hit.published for hit in hits],
        ),
    )
