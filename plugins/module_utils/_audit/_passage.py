# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Which chains lead to a rule, and what is said of connections that are forwarded where they do not pass."""

from __future__ import annotations

import ipaddress
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._audit._fixes import fix
from ansible_collections.quaywall.docker.plugins.module_utils._audit._policies import Denied, closing
from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import Endpoint, Family, Published, Survey
from ansible_collections.quaywall.docker.plugins.module_utils._chain import DOCKER_USER, Chain
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import (
    EVERYTHING,
    Intervals,
    join,
    of_network,
    subtract,
)
from ansible_collections.quaywall.docker.plugins.module_utils._inventory import Binding, Container
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6, Rule, port_ranges
from ansible_collections.quaywall.docker.plugins.module_utils._walk import Outcome, Site

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import Fix

_MOST_PORTS = 4096
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
        for name in todo:
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
                return sum(high - low + 1 for low, high in ranges) <= _MOST_PORTS
    return False


def port_text(published: Published) -> str:
    return "%s (%s)" % (published.container.name, published.text)


def peers_in(outcomes: t.Iterable[Outcome]) -> Intervals:
    return join(piece for outcome in outcomes for piece in outcome.peers)


def peers_text(family: Family, peers: Intervals) -> str:
    """Who of those out there: addresses that nobody there has do not matter."""
    others = subtract(family.remote, peers)
    if sum(high - low + 1 for low, high in others) < sum(high - low + 1 for low, high in peers):
        return family.peers_text(subtract(EVERYTHING[family.name], others))
    return family.peers_text(peers)


def public(peers: Intervals, family: str) -> Intervals:
    for network in _PRIVATE[family]:
        peers = subtract(peers, of_network(network))
    return peers


def spoken_for(family: Family) -> t.Set[t.Tuple[str, Binding]]:
    """Published ports about which DOCKER-USER says something: whoever wrote that knows where it belongs."""
    found = {key(hit.published) for hits in family.denials.values() for hit in hits}
    for site, hits in family.allowances.items():
        if site.chain != DOCKER_USER or conditions(family.rule(site)):
            found |= {key(hit.published) for hit in hits}
    return found


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
    return None if policies is None else fix(family, description, policies, touched=[item.published for item in denied])


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
    return [
        published
        for published in family.published
        if published.dnat and not published.loopback and not _is_served_by_host(family.survey, published.binding)
    ]


def _is_served_by_host(survey: Survey, binding: Binding) -> bool:
    """True if something else than Docker listens at the port, so that rules in INPUT have something to decide."""
    snapshot = survey.snapshot
    anywhere = ("", "0.0.0.0", "::")
    if survey.unread("proxies"):
        return False
    proxies = [
        proxy.host_address
        for proxy in snapshot.proxies
        if (proxy.protocol, proxy.host_port) == (binding.protocol, binding.host_port)
    ]
    engine = snapshot.engine
    if engine is not None and engine.options.get("userland-proxy") is False:
        # Engines before 28 keep the port with a socket of their own.
        proxies.append(binding.host_address)
    return any(
        (socket.protocol, socket.port) == (binding.protocol, binding.host_port)
        and not any(
            address == socket.address or (address in anywhere and socket.address in anywhere) for address in proxies
        )
        for socket in snapshot.listening
    )


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
