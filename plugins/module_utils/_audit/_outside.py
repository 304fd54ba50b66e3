# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Checks that tell what no rule in DOCKER-USER is about, or where it sees another port than one would think."""

from __future__ import annotations

import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import (
    INFO,
    PROXIED,
    Affected,
    Finding,
    Place,
    listed,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import FAMILY_TEXTS, Family, Survey
from ansible_collections.quaywall.docker.plugins.module_utils._audit._ways import ports_text
from ansible_collections.quaywall.docker.plugins.module_utils._chain import DENYING, FORWARD
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import (
    Intervals,
    join,
    of_network,
    subtract,
)
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6
from ansible_collections.quaywall.docker.plugins.module_utils._walk import DESTINATION, Flow

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._inventory import Container
    from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import Interface

# Outside of DOCKER-USER ----------------------------------------------------------------------------------------------


def outside_this_firewall(survey: Survey) -> t.Iterator[Finding]:
    """Containers and connections that no rule in DOCKER-USER is about, and whatever else decides about them."""
    yield from _own_networks(survey)
    for family in survey.families:
        yield from _host_to_containers(family)
        yield from _other_bridges(family)
        yield from _other_chains(survey, family)


def _own_networks(survey: Survey) -> t.Iterator[Finding]:
    kinds: t.Dict[str, t.List[t.Tuple[Container, str, str]]] = {}
    by_id = {container.id: container for container in survey.inventory.containers}
    for container in survey.running:
        mode = container.network_mode
        seen = {container.id}
        while mode.startswith("container:") and mode[10:] in by_id and mode[10:] not in seen:
            seen.add(mode[10:])
            mode = by_id[mode[10:]].network_mode
        if mode == "host":
            kinds.setdefault("host", []).append((container, "", ""))
        for name, addresses in container.networks.items():
            network = survey.inventory.network_of(container, name)
            if network is not None and network.driver in ("macvlan", "ipvlan"):
                kinds.setdefault(network.driver, []).append((container, name, addresses[0] if addresses else ""))
    for kind, found in sorted(kinds.items()):
        names = list(dict.fromkeys(container.name for container, _name, _address in found))
        one = len(names) == 1
        if kind == "host":
            text = "%s use%s the host's own network: INPUT decides who reaches %s, and no rule in DOCKER-USER does." % (
                listed(names),
                "s" if one else "",
                "it" if one else "them",
            )
        else:
            text = "%s %s on a %s network, past the host: no rule of this host's iptables decides who reaches %s." % (
                listed(names),
                "is" if one else "are",
                kind,
                "it" if one else "them",
            )
        yield Finding(
            "outside_this_firewall",
            INFO,
            text,
            affected=tuple(
                Affected(container.name, address, name, traffic="all traffic") for container, name, address in found
            ),
            subject=kind,
        )
    if survey.rootless:
        yield Finding(
            "outside_this_firewall",
            INFO,
            "Docker runs rootless: its rules are in a network namespace of its own, and published ports enter through "
            "INPUT. No rule in DOCKER-USER of the host is about them.",
            subject="rootless",
        )


def _host_to_containers(family: Family) -> t.Iterator[Finding]:
    """OUTPUT (or INPUT, for the replies) that keeps the host and docker-proxy from published ports."""
    host = family.host_addresses
    if not host or "OUTPUT" not in family.filter.chains:
        return
    found = []
    for published in family.published:
        endpoint = published.endpoint
        if endpoint is None:
            continue
        there = family.neighbour(endpoint, published.binding.protocol, published.binding.container_port)
        there = there._replace(in_interface="", source_type="LOCAL", bridged=False)
        back = there._replace(
            peer=DESTINATION,
            in_interface=endpoint.bridge,
            out_interface="",
            source_ports=there.destination_ports,
            destination_ports=(1024, 65535),
            states=frozenset(("ESTABLISHED",)),
            direction="REPLY",
            flags=(frozenset(("SYN", "ACK")),),
            source_type="UNICAST",
            destination_type="LOCAL",
        )
        for flow, chain in ((there, "OUTPUT"), (back, "INPUT")):
            outcomes = family.walk(flow, chain, host)
            if outcomes and all(item.denies and not item.reasons for item in outcomes):
                found.append((published, chain))
                break
    if not found:
        return
    chains = list(dict.fromkeys(chain for _published, chain in found))
    yield Finding(
        "outside_this_firewall",
        INFO,
        "The host itself and docker-proxy do not reach %s over %s, as %s stops %s: connections from here do not pass "
        "FORWARD, and clients outside are not touched. Let -o (and, for replies, -i) the containers' bridges pass "
        "there."
        % (
            ports_text([published for published, _chain in found]),
            FAMILY_TEXTS[family.name],
            " and ".join(chains),
            "them" if "OUTPUT" in chains else "the replies",
        ),
        family.place(chain=chains[0]),
        tuple(published.affected(traffic=PROXIED, peers="the host itself") for published, _chain in found),
        subject="host",
    )


def _other_bridges(family: Family) -> t.Iterator[Finding]:
    """Bridges of others (virtual machines') whose forwarded packets FORWARD's policy stops."""
    forward = family.filter.chains.get(FORWARD)
    if forward is None or forward.policy not in DENYING or not family.docker_manages:
        return
    stopped = [item.name for item in family.survey.snapshot.interfaces if _is_stopped(family, item)]
    if stopped:
        yield Finding(
            "outside_this_firewall",
            INFO,
            "FORWARD's policy %s stops what comes from %s over %s, as no rule lets it pass: %s not Docker's. If it is "
            "to be forwarded, accept it in DOCKER-USER (-i %s and, for replies, -o %s)."
            % (
                forward.policy,
                listed(stopped),
                FAMILY_TEXTS[family.name],
                "that bridge is" if len(stopped) == 1 else "those bridges are",
                stopped[0],
                stopped[0],
            ),
            family.place(chain=FORWARD),
            subject="bridges",
        )


def _is_stopped(family: Family, interface: Interface) -> bool:
    """True if nothing that comes from a bridge leaves the host, and no rule says so."""
    ways = family.ways_in
    if interface.kind != "bridge" or interface.name in family.survey.networks_by_bridge or not ways:
        return False
    subnets: Intervals = join(
        piece
        for address in interface.addresses
        if (":" in address) == (family.name == IPV6)
        for piece in of_network(address)
    )
    subnets = subtract(subnets, of_network("fe80::/10" if family.name == IPV6 else "169.254.0.0/16"))
    if not subnets or interface.name == ways[0]:
        return False
    flow = Flow(
        family=family.name,
        peer=DESTINATION,
        protocol="tcp",
        in_interface=interface.name,
        out_interface=ways[0],
        address=subnets,
        source_ports=(32768, 60999),
        destination_ports=(443, 443),
        mark=family.mark,
    )
    outcomes = family.walk(flow, FORWARD, family.remote)
    return bool(outcomes) and all(item.denies and item.site is None and not item.reasons for item in outcomes)


def _other_chains(survey: Survey, family: Family) -> t.Iterator[Finding]:
    """Base chains of nftables that stop packets too, and that nobody here reads."""
    if family.dump is None or not family.published:
        return
    found = survey.strangers(family.name, "prerouting", "forward", "input")
    if found:
        yield Finding(
            "outside_this_firewall",
            INFO,
            "Besides iptables, nftables has rules of its own for %s that may stop packets: this audit cannot tell %s."
            % (FAMILY_TEXTS[family.name], listed(found)),
            Place(family.name, "nft", "", ""),
            subject="nftables",
        )


def swarm_ingress(survey: Survey) -> t.Iterator[Finding]:
    """Ports of Swarm's routing mesh, which rules see with their published number."""
    ports: t.Dict[t.Tuple[str, int], t.Tuple[str, str]] = {}
    for item in survey.snapshot.swarm_ports:
        if item.mode == "ingress":
            text = "%d->%d/%s" % (item.published_port, item.target_port, item.protocol)
            ports[item.protocol, item.published_port] = (item.service, text)
    four = survey.family(IPV4)
    chain = four.table("nat").chains.get("DOCKER-INGRESS")
    sandbox = ""
    for rule in chain.rules if chain is not None else ():
        target, number = rule.value("to_destination"), rule.value("destination_port")
        if target is not None and number is not None and number.isdigit():
            sandbox = sandbox or target.rpartition(":")[0]
            protocol = rule.value("protocol") or ""
            ports.setdefault((protocol, int(number)), ("", "%s/%s" % (number, protocol)))
    if not ports:
        return
    texts = ["%s (%s)" % (service, text) if service else text for service, text in ports.values()]
    (_protocol, first), *_others = ports
    yield Finding(
        "swarm_ingress",
        INFO,
        "Swarm's routing mesh publishes %s. DOCKER-USER sees these packets on their way out to docker_gwbridge%s, with "
        "the published port (%d) and not the container's; which task answers, maybe on another node, is decided behind "
        "it." % (listed(texts, 10), " (%s)" % sandbox if sandbox else "", first),
        four.place(table="nat", chain="DOCKER-INGRESS") if chain is not None else None,
        tuple(Affected(service, sandbox, "ingress", text) for service, text in ports.values()),
    )
