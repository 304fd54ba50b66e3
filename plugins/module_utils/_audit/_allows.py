# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Checks of foreign rules in DOCKER-USER that allow by port alone, and of rules that name a port nobody sees there."""

from __future__ import annotations

import bisect
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import (
    HIGH,
    Affected,
    Finding,
    Json,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._remedies import (
    allow_policies,
    by_container,
    container_name,
    container_target,
    fix,
    policies_for_meant,
    removal,
    together,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._reports import (
    affected_ports,
    by_port,
    denying,
    named,
    ports_text,
    reasons_of,
    side_hits,
    side_text,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._rulings import (
    Meant,
    Ruling,
    Rulings,
    Scope,
    holds,
    rulings_of,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import Hit, Published, Survey
from ansible_collections.quaywall.docker.plugins.module_utils._chain import DOCKER_USER
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import (
    EVERYTHING,
    Intervals,
    intersect,
    join,
    overlaps,
)
from ansible_collections.quaywall.docker.plugins.module_utils._walk import RETURN, Outcome, Program, Site

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._inventory import Container


def _returns(rulings: Rulings) -> Program:
    """The rules with each RETURN of a chain below DOCKER-USER that names a port as a verdict, so that it is seen."""
    return rulings.without(
        (),
        [
            ruling.site
            for ruling in rulings.allows
            if ruling.verdict == RETURN
            and ruling.site.chain != DOCKER_USER
            and not ruling.managed
            and any(scope.ports is not None for scope in ruling.scopes)
        ],
    )


def _peers(outcomes: t.Iterable[Outcome], wanted: t.Callable[[Outcome], bool]) -> Intervals:
    return join(piece for outcome in outcomes if wanted(outcome) for piece in outcome.peers)


# port_only_allow -----------------------------------------------------------------------------------------------------


def port_only_allow(survey: Survey) -> t.Iterator[Finding]:
    """Allows that match a destination port and no container, and let in whom a later deny would stop.

    Who gets in only by such rules is found by a walk without them. No finding if all of them were meant, nor for an
    exception to a deny that is by port too: that is what C(port_only_deny) is about.
    """
    for family in survey.families:
        rulings = rulings_of(family)
        candidates = [
            ruling for ruling in rulings.allows if not ruling.managed and any(by_port(scope) for scope in ruling.scopes)
        ]
        if not candidates or not rulings.denies:
            continue
        gains = _gains(rulings, candidates)
        for ruling in candidates:
            gained = [gain for gain in gains.get(ruling.site, ()) if by_port(ruling.scope_for(gain.hit.published))]
            hits = [gain.hit for gain in gained]
            meant = {
                hit.published.container.id
                for hit in hits
                if holds(ruling.scope_for(hit.published).ports or (), hit.published.binding.host_port)
            }
            if any(gain.rightly_closed and gain.hit.published.container.id not in meant for gain in gained):
                yield _port_only(rulings, ruling, hits, meant)


class _Gain(t.NamedTuple):
    """A published port that a rule opens, for whom, and whether what would stop them is no mistake itself."""

    hit: Hit
    rightly_closed: bool


def _gains(rulings: Rulings, candidates: t.Sequence[Ruling]) -> t.Dict[Site, t.List[_Gain]]:
    """The published ports that each rule opens, with those who get in only because of it."""
    sites = {ruling.site for ruling in candidates}
    without, marked = rulings.without(sites), _returns(rulings)
    ports = join(piece for ruling in candidates for scope in ruling.scopes for piece in scope.ports or ())
    starts = [low for low, _high in ports]
    found: t.Dict[Site, t.List[_Gain]] = {}
    for published, flow, outcomes in rulings.outcomes:
        index = bisect.bisect_right(starts, published.binding.container_port) - 1
        if index < 0 or published.binding.container_port > ports[index][1]:
            continue
        opened = [outcome for outcome in rulings.walk(flow, None, marked) if outcome.site in sites]
        if not opened:
            continue
        closed = [outcome for outcome in rulings.walk(flow, None, without) if outcome.denies]
        gained = intersect(_peers(outcomes, lambda outcome: not outcome.denies), _peers(closed, lambda outcome: True))
        rightly = join(
            piece for outcome in closed if not _is_by_port(rulings, outcome.site, published) for piece in outcome.peers
        )
        unsure = [] if any(not item.reasons for item in closed) else [text for item in closed for text in item.reasons]
        for outcome in opened:
            peers = intersect(gained, outcome.peers)
            if outcome.site is not None and overlaps(rulings.family.remote, peers):
                reasons = tuple(dict.fromkeys([*outcome.reasons, *unsure]))
                hit = Hit(published, flow, outcome._replace(peers=peers, reasons=reasons))
                found.setdefault(outcome.site, []).append(_Gain(hit, overlaps(peers, rightly)))
    return found


def _is_by_port(rulings: Rulings, site: t.Optional[Site], published: Published) -> bool:
    """True for a deny that is by port itself: whom it stops by mistake is its own finding, not the exception's."""
    deny = rulings.deny_at.get(site) if site is not None else None
    return deny is not None and not deny.managed and by_port(deny.scope_for(published))


def _port_only(rulings: Rulings, ruling: Ruling, hits: t.Sequence[Hit], meant: t.Collection[str]) -> Finding:
    scope = next(scope for scope in ruling.scopes if by_port(scope))
    right = [hit for hit in hits if hit.published.container.id in meant]
    wrong = [hit for hit in hits if hit.published.container.id not in meant]
    words = [
        "%s %s %s of every container, as DOCKER-USER is read after DNAT and sees the container's port."
        % (rulings.rule_text(ruling), _allowing(ruling), ports_text(scope))
    ]
    if right:
        words.append(
            "It opens %s, for which it was meant, as the rule names the host port, and %s, for which it was not, as "
            "only the inner port has that number: without the rule a later one would stop them."
            % (named(hit.published for hit in right), named(hit.published for hit in wrong))
        )
    else:
        words.append(
            "It opens %s, though the rule does not name the host port, only the inner port has that number: without "
            "the rule a later one would stop them." % named(hit.published for hit in wrong)
        )
    own = not right and _host_listens(rulings, scope)
    if own:
        words.append("The host itself listens there, which the rule may have been meant for.")
    return Finding(
        check="port_only_allow",
        severity=HIGH,
        message=" ".join(words),
        place=rulings.family.place(ruling.site),
        affected=tuple(affected_ports(rulings, hits, meant)),
        reasons=reasons_of(rulings, [hit.outcome for hit in wrong]),
        fix=fix(
            rulings,
            "Take the rule out: DOCKER-USER decides about containers only, and the host's own port is INPUT's business."
            if own
            else "Open by container what the rule was meant for, and nothing else."
            if right
            else "Open by name the containers that the rule opens now; leave out the policies of those that it was not "
            "meant for.",
            lambda: [] if own else _allow_policies(rulings, ruling, right or hits),
            removal(rulings, ruling),
            # Also those whom it opens to banned sources only.
            [item for item in rulings.family.published if any(one.fits(item) for one in ruling.scopes)],
        ),
    )


def _allowing(ruling: Ruling) -> str:
    return "returns at" if ruling.verdict == RETURN else "accepts"


def _host_listens(rulings: Rulings, scope: Scope) -> bool:
    """True if the host itself serves a port that the rule names; docker-proxy serves for containers."""
    snapshot = rulings.survey.snapshot
    proxied = {(proxy.protocol, proxy.host_port) for proxy in snapshot.proxies}
    return any(
        holds(scope.ports or (), socket.port)
        for socket in snapshot.listening
        if scope.protocol in ("", "all", socket.protocol)
        and (socket.protocol, socket.port) not in proxied
        and not socket.address.startswith("127.")
        and socket.address != "::1"
    )


def _allow_policies(rulings: Rulings, ruling: Ruling, hits: t.Sequence[Hit]) -> t.Optional[t.List[Json]]:
    return together(
        _allow_policy(
            rulings,
            ruling,
            ruling.scope_for(group[0].published),
            container,
            protocol,
            [hit.published.binding.container_port for hit in group],
        )
        for container, protocol, group in by_container(hits)
    )


def _allow_policy(
    rulings: Rulings, ruling: Ruling, scope: Scope, container: Container, protocol: str, ports: t.Sequence[int]
) -> t.Optional[t.List[Json]]:
    return allow_policies(
        rulings,
        scope,
        ruling.verdict,
        container_name(container, protocol, ports),
        container_target(container, protocol, ports),
        EVERYTHING[rulings.family.name] if scope.sources is None else scope.sources,
    )


# host_port_never_matches ---------------------------------------------------------------------------------------------


def host_port_never_matches(survey: Survey) -> t.Iterator[Finding]:
    """Denies and allows with the host port of a published port, while packets carry the inner port there.

    Only where that matters: somebody gets in whom the deny was to stop, or is stopped whom the allow was to let in. A
    rule whose port is some container's inner port too matches that one: C(port_only_deny) and C(port_only_allow).
    """
    for family in survey.families:
        rulings = rulings_of(family)
        named_ports = [
            ruling
            for ruling in (*rulings.denies, *rulings.allows)
            if not ruling.managed and any(scope.ports is not None for scope in ruling.scopes)
        ]
        marked: t.Optional[Program] = None
        for ruling in sorted(named_ports, key=lambda ruling: ruling.order):
            denies = ruling.verdict not in ("ACCEPT", RETURN)
            if not denies and not rulings.denies:
                continue
            if not denies and marked is None:
                marked = _returns(rulings)
            found = [
                (item, peers)
                for item in rulings.in_vain(ruling, None if denies else marked)
                if not _collides(rulings, ruling, item.port)
                for peers in [rulings.overlooked(ruling, item)]
                if peers
            ]
            if found:
                yield _never_matches(rulings, ruling, found, denies)


def _collides(rulings: Rulings, ruling: Ruling, port: int) -> bool:
    return any(
        not published.loopback and any(scope.fits(published) for scope in ruling.scopes)
        for published in rulings.family.published_by_container_port.get(port, ())
    )


def _never_matches(
    rulings: Rulings, ruling: Ruling, found: t.Sequence[t.Tuple[Meant, Intervals]], denies: bool
) -> Finding:
    scope = next(scope for scope in ruling.scopes if scope.ports is not None)
    items = [item for item, _peers_ in found]
    sides: t.List[Affected] = []
    if denies and by_port(scope):
        sides = side_hits(rulings, ruling, scope, ())
    ports = sorted({item.published.binding.container_port for item in items})
    message = (
        "%s %s %s, the host port of %s, and matches nothing of it: DOCKER-USER is read after DNAT and sees the "
        "container's port, %s. It stays %s."
        % (
            rulings.rule_text(ruling),
            denying(ruling) if denies else _allowing(ruling),
            ports_text(scope),
            named(item.published for item in items),
            " and ".join(str(port) for port in ports[:5]),
            "open" if denies else "closed",
        )
    )

    def policies() -> t.Optional[t.List[Json]]:
        if denies:
            return together(policies_for_meant(rulings, ruling, item) for item in items)
        plain = scope._replace(original_ports=None)
        return together(
            _allow_policy(rulings, ruling, plain, item.published.container, binding.protocol, [binding.container_port])
            for item in items
            for binding in [item.published.binding]
        )

    # A rule that matches something else besides stays.
    used = any(scope.fits(item) for scope in ruling.scopes for item in rulings.family.published)
    return Finding(
        check="host_port_never_matches",
        severity=HIGH,
        message=" ".join([message, *side_text(sides, "What it does stop is %s.")]),
        place=rulings.family.place(ruling.site),
        affected=(
            *(item.published.affected(peers=rulings.family.peers_text(peers), meant=True) for item, peers in found),
            *sides,
        ),
        reasons=reasons_of(
            rulings, [outcome for item in items for outcome in item.outcomes if outcome.site == ruling.site]
        ),
        fix=fix(
            rulings,
            "Say it by a policy for the container, which knows both its host port and its inner port.",
            policies,
            [] if used else removal(rulings, ruling),
            [item.published for item in items],
        ),
    )
