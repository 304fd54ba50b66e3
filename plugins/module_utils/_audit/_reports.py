# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What findings about rules of DOCKER-USER share: whom they name, what they hang on, and their words."""

from __future__ import annotations

import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import (
    NEIGHBOURS,
    OUTGOING,
    Affected,
    listed,
)
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import (
    Intervals,
    covers,
    join,
    of_network,
    subtract,
)
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._audit._rulings import Ruling, Rulings, Scope
    from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import Endpoint, Hit, Published
    from ansible_collections.quaywall.docker.plugins.module_utils._walk import Outcome

#: Containers of one network that are named one by one.
_FEW = 3
PORT_PROTOCOLS = ("tcp", "udp", "sctp")


def by_port(scope: Scope) -> bool:
    return not scope.wide and not scope.by_container


def port_of(scope: Scope) -> int:
    """One port that the rule is for."""
    low, high = (scope.ports or ((80, 80),))[0]
    return min(max(low, 1), high)


def denying(ruling: Ruling) -> str:
    return "rejects" if ruling.verdict == "REJECT" else "drops"


def ports_text(scope: Scope) -> str:
    """C(port 8080), C(ports 80 and 8000 to 8010), C(every port but 443)."""
    ports = scope.ports or ()
    if scope.negated:
        return "every port but %s" % ranges_text(subtract(((0, 65535),), ports))
    return "%s %s" % ("port" if len(ports) == 1 and ports[0][0] == ports[0][1] else "ports", ranges_text(ports))


def ranges_text(ports: Intervals) -> str:
    return listed([str(low) if low == high else "%d to %d" % (low, high) for low, high in ports], 8)


def named(published: t.Iterable[Published]) -> str:
    """C(shop (8080->8080/tcp) and admin (9000->8080/tcp)), each once."""
    return listed(list(dict.fromkeys("%s (%s)" % (item.container.name, item.text) for item in published)))


def where_text(rulings: Rulings, scope: Scope) -> str:
    network = network_of(rulings, scope)
    return " on network %s" % network if network else ""


def network_of(rulings: Rulings, scope: Scope) -> str:
    """The one network that a rule names by its bridge or by addresses inside of it; empty if it names none."""
    networks = rulings.survey.networks_by_bridge
    if scope.out_interface:
        network = networks.get(scope.out_interface)
        return network.name if network is not None else ""
    if scope.destinations:
        for network in networks.values():
            own = join(
                piece
                for subnet in network.subnets
                if (":" in subnet) == (rulings.family.name != IPV4)
                for piece in of_network(subnet)
            )
            if own and covers(own, scope.destinations):
                return network.name
    return ""


def affected_ports(rulings: Rulings, hits: t.Iterable[Hit], meant: t.Optional[t.Collection[str]]) -> t.List[Affected]:
    """Each published port once, with all whom it is closed to."""
    found: t.Dict[t.Tuple[str, str], t.List[Hit]] = {}
    for hit in hits:
        found.setdefault((hit.published.container.id, hit.published.text), []).append(hit)
    return [
        group[0].published.affected(
            peers=rulings.family.peers_text(join(piece for hit in group for piece in hit.outcome.peers)),
            meant=None if meant is None else group[0].published.container.id in meant,
        )
        for group in found.values()
    ]


def reasons_of(rulings: Rulings, outcomes: t.Iterable[Outcome]) -> t.Tuple[str, ...]:
    """What it hangs on: nothing if one of the outcomes is definite."""
    outcomes = list(outcomes)
    found = list(rulings.standing)
    if outcomes and all(outcome.reasons for outcome in outcomes):
        found += [reason for outcome in outcomes for reason in outcome.reasons]
    return tuple(dict.fromkeys(found))


def side_hits(rulings: Rulings, ruling: Ruling, scope: Scope, published: t.Iterable[Published]) -> t.List[Affected]:
    """What else a rule stops that names no container: connections between containers and outgoing ones."""
    family = rulings.family
    protocol = scope.protocol if scope.protocol in PORT_PROTOCOLS else "tcp"
    served: t.Dict[str, t.Tuple[Endpoint, int]] = {}
    for item in published:
        if item.endpoint is not None and item.endpoint.bridge:
            served.setdefault(item.endpoint.bridge, (item.endpoint, item.binding.container_port))
    neighbours: t.List[Affected] = []
    outgoing: t.List[Affected] = []
    for bridge, endpoints in rulings.by_bridge.items():
        if not scope.comes_in(bridge):
            continue
        endpoint, port = served.get(bridge, (endpoints[0], port_of(scope)))
        if rulings.cut_off(ruling, endpoint, protocol, port):
            neighbours += on_network(endpoints, NEIGHBOURS, "containers of its network")
        if any(rulings.decides(ruling, flow, family.remote) for flow in family.outgoing(endpoint, protocol, port)):
            outgoing += on_network(endpoints, OUTGOING, ports_text(scope) + " of other machines")
    return neighbours + outgoing


def on_network(endpoints: t.Sequence[Endpoint], traffic: str, peers: str) -> t.List[Affected]:
    """The containers of a network, one by one where they are few."""
    if len(endpoints) <= _FEW:
        return [
            Affected(item.container.name, item.address, item.network, traffic=traffic, peers=peers)
            for item in endpoints
        ]
    words = "%d containers" % len(endpoints)
    return [Affected(words, network=endpoints[0].network, traffic=traffic, peers=peers)]


def side_text(sides: t.Sequence[Affected], words: str = "It also stops %s.") -> t.List[str]:
    """A sentence about what is hit besides connections from outside."""
    parts = []
    for traffic, what in (
        (NEIGHBOURS, "connections between containers on %s, as bridged packets pass iptables here"),
        (OUTGOING, "connections of containers on %s to %s"),
    ):
        found = [item for item in sides if item.traffic == traffic]
        if found:
            networks = listed(list(dict.fromkeys(item.network for item in found)))
            parts.append(what % ((networks, found[0].peers) if traffic == OUTGOING else networks))
    return [words % ", and ".join(parts)] if parts else []
