# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Which chains lead to a rule, and what is said of connections that are forwarded where they do not pass."""

from __future__ import annotations

import ipaddress
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._audit._policies import Denied, closing, written
from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import Endpoint, Family, Published, Survey
from ansible_collections.quaywall.docker.plugins.module_utils._chain import DOCKER_USER, Chain
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import (
    EVERYTHING,
    Intervals,
    join,
    of_network,
    size,
    subtract,
)
from ansible_collections.quaywall.docker.plugins.module_utils._inventory import Binding, Container
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6, Rule, port_ranges
from ansible_collections.quaywall.docker.plugins.module_utils._walk import ACCEPT, RETURN, Outcome, Site

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import Fix

_MOST_PORTS = 4096
#: With less than this share of all addresses denied, it is a list of bans.
MOST_BANNED = 0.25
#: Not the Internet: what is open to these only is not open to everybody.
_PRIVATE = {
    IPV4: ("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"),
    IPV6: ("fc00::/7", "fe80::/10"),
}


class Callers:
    """The chains that one leads to, and which rules lead to each."""

    def __init__(self, chains: t.Mapping[str, Chain], start: t.Iterable[str]) -> None:
        self.chains = chains
        self.names: t.Dict[str, None] = {}
        self.of: t.Dict[str, t.List[Site]] = {}
        todo = [name for name in start if name in chains][::-1]
        while todo:
            name = todo.pop()
            if name in self.names:
                continue
            self.names[name] = None
            for position, rule in enumerate(chains[name].rules, 1):
                target = rule.target
                if target is not None and target in chains:
                    self.of.setdefault(target, []).append(Site(name, position, position))
                    todo.append(target)

    def rule(self, site: Site) -> Rule:
        return self.chains[site.chain].rules[site.position - 1]

    def upwards(self, site: Site) -> t.Iterator[Site]:
        """A rule, the rules that lead to its chain, those that lead there, and so on: the nearest first."""
        todo = [site]
        done: t.Set[str] = set()
        for item in todo:
            yield item
            if item.chain not in done:
                done.add(item.chain)
                todo += self.of.get(item.chain, ())

    def interfaces(self, field: str, start: t.Iterable[str]) -> t.Dict[str, t.Optional[t.FrozenSet[str]]]:
        """By chain the interfaces that packets there come in (or go out) through; None: any."""
        found: t.Dict[str, t.Optional[t.FrozenSet[str]]] = dict.fromkeys(start, None)
        todo = list(found)
        while todo:
            name = todo.pop()
            for rule in self.chains[name].rules if name in self.chains else ():
                target = rule.target
                if target is None or target not in self.chains or target == name:
                    continue
                value = rule.value(field)
                passed = found[name] if value is None else frozenset((value,))
                if target not in found:
                    found[target] = passed
                    todo.append(target)
                    continue
                before = found[target]
                both = None if before is None or passed is None else before | passed
                if both != before:
                    found[target] = both
                    todo.append(target)
        return found


def conditions(rule: Rule) -> t.List[str]:
    """The names of the fields that a rule asks about, without those of its target and its comment."""
    found: t.List[str] = []
    for field in rule.fields:
        if field.name in ("jump", "goto"):
            break
        if field.name not in ("match", "comment", "limit", "limit_burst", "ctstate", "state"):
            found.append(field.name)
    return found


def names_port(rule: Rule, port: int) -> bool:
    """True if a rule is about this destination port, and not about most ports."""
    for name in ("destination_port", "destination_ports", "ports"):
        value = rule.value(name)
        if value is not None:
            ranges = port_ranges(value)
            if any(low <= port <= high for low, high in ranges):
                return size(ranges) <= _MOST_PORTS
    return False


def rules_text(site: Site) -> str:
    """C(Rule 4 of INPUT), or C(Rules 4 to 9 of INPUT) for a run of like rules that was taken as one."""
    if site.last > site.position:
        return "Rules %d to %d of %s" % (site.position, site.last, site.chain)
    return "Rule %d of %s" % (site.position, site.chain)


def port_text(published: Published) -> str:
    return "%s (%s)" % (published.container.name, published.text)


def peers_in(outcomes: t.Iterable[Outcome]) -> Intervals:
    return join(piece for outcome in outcomes for piece in outcome.peers)


def peers_text(family: Family, peers: Intervals) -> str:
    """Who of those out there: addresses that nobody there has do not matter."""
    others = subtract(family.remote, peers)
    if size(others) < size(peers):
        return family.peers_text(subtract(EVERYTHING[family.name], others))
    return family.peers_text(peers)


def public(peers: Intervals, family: str) -> Intervals:
    for network in _PRIVATE[family]:
        peers = subtract(peers, of_network(network))
    return peers


def share(peers: Intervals, family: str) -> float:
    """How much of all addresses that is."""
    return size(peers) / (EVERYTHING[family][0][1] + 1)


def kept_out(family: Family, published: Published) -> t.Tuple[Intervals, t.Tuple[str, ...]]:
    """Whom DOCKER-USER keeps from a published port, and what that hangs on if it is not certain of any of them.

    Found from those who are let through: bans may be thousands, and each is a decision of its own.
    """
    everybody = EVERYTHING[family.name]
    denied: t.List[Intervals] = []
    reasons: t.Dict[str, None] = {}
    sure = False
    for flow in family.inbound(published):
        outcomes = family.walk(flow)
        through = join(piece for outcome in outcomes if not outcome.denies for piece in outcome.peers)
        certainly = subtract(everybody, through)
        unsure = [outcome for outcome in outcomes if outcome.denies and outcome.reasons]
        denied.append(certainly)
        denied += [outcome.peers for outcome in unsure]
        sure = sure or bool(certainly)
        reasons.update((reason, None) for outcome in unsure for reason in outcome.reasons)
    return join(piece for peers in denied for piece in peers), () if sure else tuple(reasons)


def is_spoken_for(family: Family, published: Published) -> bool:
    """True if DOCKER-USER says something of a published port that is no ban: whoever wrote that knows his way."""
    if share(kept_out(family, published)[0], family.name) > MOST_BANNED:
        return True
    return any(
        outcome.verdict in (ACCEPT, RETURN)
        and outcome.site is not None
        and (outcome.site.chain != DOCKER_USER or conditions(family.rule(outcome.site)))
        and share(outcome.peers, family.name) > MOST_BANNED
        for flow in family.inbound(published)
        for outcome in family.walk(flow)
    )


def key(published: Published) -> t.Tuple[str, Binding]:
    return published.container.id, published.binding


def verdict(rule: Rule) -> str:
    return "REJECT" if rule.target == "REJECT" else "DROP"


def one_fix(family: Family, description: str, denied: t.Sequence[Denied], interface: str = "") -> t.Optional[Fix]:
    """The fix that writes policies for these; with the interface if that can be said."""
    policies = None
    if len(denied) > 20:
        return None
    if interface:
        policies = closing(family, [item._replace(interface=interface) for item in denied])
    if policies is None:
        policies = closing(family, denied)
    if policies is None:
        return None
    return written(family, description, policies, [item.published for item in denied])


# Published ports -----------------------------------------------------------------------------------------------------


class Stopped(t.NamedTuple):
    """A published port of which INPUT denies somebody who gets in all the same.

    ``said`` are all whom INPUT denies it, ``open`` those of them who get in; ``site`` is the rule that does it.
    """

    published: Published
    site: t.Optional[Site]
    interface: str
    said: Intervals
    open: Intervals
    reasons: t.Tuple[str, ...]


def forwarded(family: Family) -> t.List[Published]:
    """Published ports that nothing but DNAT serves to the outside."""
    served = _served_by_host(family.survey)
    return [
        published
        for published in family.published
        if published.dnat
        and not published.loopback
        and (published.binding.protocol, published.binding.host_port) not in served
    ]


def _served_by_host(survey: Survey) -> t.Set[t.Tuple[str, int]]:
    """Ports at which something else than Docker listens: there, rules in INPUT have something to decide."""
    snapshot = survey.snapshot
    if survey.unread("proxies"):
        return set()
    dockers = {(proxy.protocol, proxy.host_port, _address(proxy.host_address)) for proxy in survey.snapshot.proxies}
    if snapshot.engine is not None and snapshot.engine.options.get("userland-proxy") is False:
        # Engines before 28 keep the ports with sockets of their own then.
        dockers |= {
            (binding.protocol, binding.host_port, _address(binding.host_address))
            for container in survey.running
            for binding in container.current_ports
        }
    return {
        (socket.protocol, socket.port)
        for socket in snapshot.listening
        if (socket.protocol, socket.port, _address(socket.address)) not in dockers
    }


def _address(text: str) -> str:
    # One socket may serve all addresses of both families.
    return "" if text in ("0.0.0.0", "::") else text


def of_swarm(family: Family) -> t.List[Published]:
    """Ports of Swarm's routing mesh, each as a published port of its service."""
    survey = family.survey
    gateway = next((item for item in survey.inventory.networks.values() if item.name == "docker_gwbridge"), None)
    found: t.List[Published] = []
    for port in survey.snapshot.swarm_ports:
        targets = family.dnats.get((port.protocol, port.published_port), ())
        if port.mode != "ingress" or gateway is None or not targets:
            continue
        binding = Binding(port.protocol, port.published_port, port.published_port, "", True)
        container = Container("service " + port.service, "", True, "", {}, {}, {}, (binding,))
        number = targets[0][1]
        address = str((ipaddress.IPv4Address if family.name == IPV4 else ipaddress.IPv6Address)(number))
        endpoint = Endpoint(container, gateway.name, gateway.bridge, family.name, address, number)
        found.append(Published(container, binding, family.name, endpoint, dnat=True, proxied=False))
    return found
