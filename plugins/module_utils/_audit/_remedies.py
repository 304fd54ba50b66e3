# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Policies that say what a foreign rule was meant to say: for whom, from where, and with which verdict.

Whom a rule stops and whom it spares is taken from the walk, so that a RETURN in front of it in its chain is kept as
C(source) just as its own C(! -s) is.
"""

from __future__ import annotations

import itertools
import re
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._audit import _fixes
from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import Fix, Json, listed
from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import (
    FAMILY_TEXTS,
    Endpoint,
    Hit,
    Published,
)
from ansible_collections.quaywall.docker.plugins.module_utils._chain import CONTINUING
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import (
    EVERYTHING,
    Intervals,
    join,
    networks,
    overlaps,
    size,
)
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV6, Rule, arguments
from ansible_collections.quaywall.docker.plugins.module_utils._walk import ACCEPT, RETURN, Flow, Outcome, Site

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._audit._rulings import (
        Meant,
        Ruling,
        Rulings,
        Scope,
        Stopped,
    )
    from ansible_collections.quaywall.docker.plugins.module_utils._inventory import Container

#: More policies, or more sources in one, are nothing that anybody reads.
_MOST_POLICIES = 20
_MOST_SOURCES = 20
#: Published ports of which a fix says who gains and who loses them.
_MOST_TOUCHED = 50

_PORT_FIELDS = ("destination_port", "destination_ports", "ports", "ctorigdstport")


class Peers(t.NamedTuple):
    """Whom a rule stops, and whom neither it nor another stops."""

    stopped: Intervals
    spared: Intervals


def peers_of(outcomes: t.Iterable[Outcome], ruling: Ruling) -> Peers:
    """Whom the rule stops of those that a walk was about."""
    outcomes = list(outcomes)
    return Peers(
        join(piece for outcome in outcomes if outcome.site == ruling.site for piece in outcome.peers),
        join(piece for outcome in outcomes if not outcome.denies for piece in outcome.peers),
    )


# Policies ------------------------------------------------------------------------------------------------------------


def deny_policies(
    rulings: Rulings, scope: Scope, verdict: str, name: str, target: Json, peers: Peers
) -> t.Optional[t.List[Json]]:
    """Policies that stop the same people by the same verdict, for one target; None if they cannot be said.

    :param target: the options that say what is protected.
    """
    stop = verdict.lower()
    # Whom it may stop and may spare, that hangs on what no policy can ask.
    if scope.more or stop not in ("drop", "reject") or overlaps(peers.stopped, peers.spared):
        return None
    options: t.Dict[str, t.Any] = {**_named(rulings, name), **target}
    inside = {"in_interface": _interface(scope)} if scope.in_interface else {}
    if not peers.spared:
        # Those that another rule stops anyhow may be stopped twice.
        return [{**options, **inside, "action": stop}]
    if size(peers.spared) > size(peers.stopped):
        sources = _sources(rulings, scope.sources if scope.named_sources and scope.sources else peers.stopped)
        return None if sources is None else [{**options, **inside, "source": sources, "action": stop}]
    sources = _sources(rulings, peers.spared)
    if sources is None:
        return None
    found: t.List[Json] = [{**options, "source": sources, "action": "return", "otherwise": stop}]
    if scope.in_interface:
        # What comes in elsewhere was none of the rule's business; otherwise has no interface.
        found.append(
            {
                **options,
                **_named(rulings, name + "-elsewhere"),
                "in_interface": _interface(scope, turned=True),
                "action": "return",
                "otherwise": "none",
            }
        )
    return found


def allow_policies(
    rulings: Rulings, scope: Scope, verdict: str, name: str, target: Json, peers: Intervals
) -> t.Optional[t.List[Json]]:
    """A policy that lets the same people in, for one target; None if it cannot be said."""
    if scope.more or verdict not in (ACCEPT, RETURN):
        return None
    options: t.Dict[str, t.Any] = {**_named(rulings, name), **target}
    if scope.in_interface:
        options["in_interface"] = _interface(scope)
    if peers != EVERYTHING[rulings.family.name]:
        sources = _sources(rulings, peers)
        if not sources:
            return None
        options["source"] = sources
    return [{**options, "action": verdict.lower(), "otherwise": "none"}]


def container_target(container: Container, protocol: str, ports: t.Iterable[int]) -> t.Dict[str, t.Any]:
    """The options that name ports of a container."""
    found: t.Dict[str, t.Any] = {"container": container.name}
    if protocol != "tcp":
        found["protocol"] = protocol
    numbers = sorted(set(ports))
    if numbers:
        found["destination_port"] = [str(port) for port in numbers]
    return found


def container_name(container: Container, protocol: str, ports: t.Iterable[int]) -> str:
    """A policy's name for ports of a container: C(shop-8080), C(dns-53-udp)."""
    words = [container.name, *(str(port) for port in sorted(set(ports))[:3])]
    return "-".join([*words, protocol] if protocol not in ("tcp", "all") else words)


def by_container(hits: t.Iterable[Hit]) -> t.List[t.Tuple[Container, str, t.List[Hit]]]:
    """Hits by container and protocol, in their order."""
    found: t.Dict[t.Tuple[str, str], t.List[Hit]] = {}
    for hit in hits:
        found.setdefault((hit.published.container.id, hit.published.binding.protocol), []).append(hit)
    return [(group[0].published.container, key[1], group) for key, group in found.items()]


def policies_for_hits(rulings: Rulings, ruling: Ruling, hits: t.Sequence[Hit]) -> t.Optional[t.List[Json]]:
    """Policies that stop of each container what a deny stops of it now; None if they cannot be said."""
    found: t.List[Json] = []
    for container, protocol, group in by_container(hits):
        by_peers: t.Dict[Peers, t.List[Hit]] = {}
        for hit in group:
            by_peers.setdefault(peers_of(rulings.walk(hit.flow), ruling), []).append(hit)
        for peers, same in by_peers.items():
            ports = [hit.published.binding.container_port for hit in same]
            made = deny_policies(
                rulings,
                ruling.scope_for(same[0].published),
                ruling.verdict,
                container_name(container, protocol, ports),
                container_target(container, protocol, ports),
                peers,
            )
            if made is None:
                return None
            found += made
        if len(found) > _MOST_POLICIES:
            return None
    return found


def together(parts: t.Iterable[t.Optional[t.List[Json]]]) -> t.Optional[t.List[Json]]:
    """All policies; None if some cannot be said."""
    found: t.List[Json] = []
    for part in parts:
        if part is None:
            return None
        found += part
    return found


def policies_for_endpoint(
    rulings: Rulings, ruling: Ruling, scope: Scope, endpoint: Endpoint, whole: bool, flow: Flow
) -> t.Optional[t.List[Json]]:
    """Policies that say of a container, or of its whole network, what a deny says of its address.

    None if not all of its published ports are stopped for the same people: rules before this one would be overruled.

    :param flow: a connection from outside that the rule stops.
    """
    container = endpoint.container
    peers = peers_of(rulings.walk(flow), ruling)
    for published, inbound, outcomes in rulings.outcomes:
        there = published.endpoint is not None and (
            published.endpoint.bridge == endpoint.bridge if whole else published.container.id == container.id
        )
        named = there and scope.fits(published) and scope.comes_in(inbound.in_interface)
        if named and peers_of(outcomes, ruling) != peers:
            return None
    name = endpoint.network if whole else container.name
    target: t.Dict[str, t.Any] = {"network": endpoint.network} if whole else {"container": container.name}
    if scope.protocol != "tcp":
        target["protocol"] = scope.protocol or "all"
    if scope.ports is not None:
        ports = [str(low) if low == high else "%d:%d" % (max(low, 1), high) for low, high in scope.ports]
        target["destination_port"] = ports
        name = "-".join([name, *ports[:3]]).replace(":", "-")
    if scope.protocol not in ("", "all", "tcp"):
        name += "-" + scope.protocol
    return deny_policies(rulings, scope, ruling.verdict, name, target, peers)


def policies_for_meant(rulings: Rulings, ruling: Ruling, meant: Meant) -> t.Optional[t.List[Json]]:
    """Policies that do to a container what a deny was meant to do to it."""
    binding, container = meant.published.binding, meant.published.container
    return deny_policies(
        rulings,
        ruling.scope._replace(original_ports=None),
        ruling.verdict,
        container_name(container, binding.protocol, [binding.container_port]),
        container_target(container, binding.protocol, [binding.container_port]),
        peers_of(meant.outcomes, ruling),
    )


def _named(rulings: Rulings, name: str) -> t.Dict[str, t.Any]:
    """The name of a policy that is not there yet, and the family that it is for."""
    family = rulings.family
    tail = "-ipv6" if family.name == IPV6 else ""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[: 58 - len(tail)].strip("-") or "policy"
    names = itertools.chain([plain + tail], ("%s%s-%d" % (plain, tail, number) for number in itertools.count(2)))
    return {"name": next(found for found in names if found not in rulings.policies), "ip_version": family.name}


def _interface(scope: Scope, turned: bool = False) -> str:
    return ("!" if scope.in_negated != turned else "") + scope.in_interface


def _sources(rulings: Rulings, addresses: Intervals) -> t.Optional[t.List[str]]:
    found = list(itertools.islice(networks(addresses, rulings.family.name), _MOST_SOURCES + 1))
    return found if len(found) <= _MOST_SOURCES else None


# What goes -----------------------------------------------------------------------------------------------------------


def removal(
    rulings: Rulings, ruling: Ruling, ways: t.Optional[t.Sequence[t.Tuple[Site, ...]]] = None
) -> t.Optional[t.List[Site]]:
    """The rules to take out so that a ruling decides nothing any more; None if that would undo more than it.

    Where a jump names the port, the jump goes, if its chain holds nothing else. A rule that stands there twice goes
    twice.

    :param ways: those by which it is to decide nothing any more; default: all.
    """
    ways = ruling.ways if ways is None else ways
    own = rulings.family.rule(ruling.site)
    if _names_port(own):
        return _twins(rulings, ruling.site)
    alone = _twins(rulings, ruling.site) if len(ruling.ways) == 1 else None
    jumps: t.List[Site] = []
    below: t.Set[str] = {ruling.site.chain}
    for way in ways:
        naming = [index for index, site in enumerate(way) if _names_port(rulings.family.rule(site))]
        if naming:
            jumps.append(way[naming[0]])
            below |= {site.chain for site in way[naming[0] + 1 :]}
    if own.get("destination") is not None or len(jumps) < len(ways) or _holds_more(rulings, ruling, below):
        return alone
    return list(dict.fromkeys(twin for site in jumps for twin in _twins(rulings, site)))


def _holds_more(rulings: Rulings, ruling: Ruling, chains: t.Collection[str]) -> bool:
    """True if chains decide by other rules too, bans among them; a RETURN alone decides nothing."""
    nothing = {None, RETURN, *CONTINUING, *chains}
    return any(
        rule.target not in nothing and (name, position) != ruling.site[:2]
        for name in chains
        for position, rule in enumerate(rulings.family.filter.chains[name].rules, 1)
    )


def _names_port(rule: Rule) -> bool:
    return any(rule.get(name) is not None for name in _PORT_FIELDS)


def _twins(rulings: Rulings, site: Site) -> t.List[Site]:
    """The rules of the same chain that say the same, the rule itself among them."""
    kept: t.Dict[str, t.Dict[t.Any, t.List[int]]] = vars(rulings).setdefault("twins", {})
    if site.chain not in kept:
        positions: t.Dict[t.Any, t.List[int]] = {}
        for position, rule in enumerate(rulings.family.filter.chains[site.chain].rules, 1):
            positions.setdefault(rule.fields, []).append(position)
        kept[site.chain] = positions
    same = kept[site.chain][rulings.family.rule(site).fields]
    return [Site(site.chain, position, position) for position in same]


def fix(
    rulings: Rulings,
    description: str,
    policies: t.Callable[[], t.Optional[t.Sequence[Json]]],
    delete: t.Optional[t.Sequence[Site]],
    touched: t.Iterable[Published],
) -> t.Optional[Fix]:
    """The fix that writes policies and takes rules out; None if there are none to be said, or too many to be tried.

    :param policies: gives them, or None if they cannot be said.
    """
    if delete is None or not rulings.affords():
        return None
    made = policies()
    if made is None or len(made) > _MOST_POLICIES:
        return None
    return _fixes.fix(rulings.family, description, made, delete, itertools.islice(touched, _MOST_TOUCHED))


def narrowing_fix(rulings: Rulings, ruling: Ruling) -> t.Optional[Fix]:
    """The fix that has a deny without an interface hold for what comes in from outside only; None for other rules."""
    family = rulings.family
    outside = family.survey.outside[:_MOST_SOURCES]
    if ruling.scope.in_interface or not outside or len(ruling.ways) > 1:
        return None
    chain, position = ruling.site.chain, str(ruling.site.position)
    text = arguments(family.rule(ruling.site).render())
    commands = [_fixes.command(family, "-I", chain, position, "-i", name, *text) for name in reversed(outside)]
    commands += [_fixes.delete_words(family, site) for site in _twins(rulings, ruling.site)]
    return Fix(
        "Have the rule stop only what comes in through %s." % listed(outside),
        tuple(_fixes.command_task("Narrow the rule in %s" % chain, words) for words in commands),
        tuple(_fixes.shell(words) for words in commands),
        ("containers: other machines over %s" % FAMILY_TEXTS[family.name],),
    )


def joined(one: Fix, two: Fix) -> Fix:
    """Both fixes, one after the other: the later first, as it counts rules and the earlier one moves them."""
    return Fix(
        "%s %s" % (one.description, two.description),
        two.tasks + one.tasks,
        two.commands + one.commands,
        tuple(dict.fromkeys(two.gains + one.gains)),
        two.loses + one.loses,
    )


# Replies -------------------------------------------------------------------------------------------------------------


def established_fix(rulings: Rulings, stopped: t.Iterable[Stopped]) -> Fix:
    """The fix that lets replies pass before any other rule is read."""
    family = rulings.family
    words = ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", ACCEPT]
    argv = _fixes.command(family, "-I", "DOCKER-USER", "1", *words)
    name = "Let replies pass before any other rule of DOCKER-USER is read (%s)" % FAMILY_TEXTS[family.name]
    usual = family.survey.snapshot.default_variants.get(family.name, family.variant) == family.variant
    task: Json
    if rulings.established or not usual:
        # The module iptables does nothing where the rule stands already, wherever that is.
        task = _fixes.command_task(name, argv)
    else:
        options = {
            "chain": "DOCKER-USER",
            "action": "insert",
            "rule_num": "1",
            "match": ["conntrack"],
            "ctstate": ["RELATED", "ESTABLISHED"],
            "jump": ACCEPT,
            "ip_version": family.name,
            "wait": "10",
        }
        task = {"name": name, "ansible.builtin.iptables": options}
    names = list(dict.fromkeys(item.endpoint.container.name for item in stopped))
    gains = ["%s: answers over %s" % (listed(names), FAMILY_TEXTS[family.name])] if names else []
    return Fix(
        "Put a rule first that lets replies and established connections pass.",
        (task,),
        (_fixes.shell(argv),),
        tuple(gains),
    )
