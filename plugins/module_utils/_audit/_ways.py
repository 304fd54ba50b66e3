# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Checks about the ways to a container that a rule in DOCKER-USER leaves open: IPv6, docker-proxy, its own address.

A port counts as closed if somebody's own rule stops more than half of all addresses that come in through an interface:
a ban list closes nothing, and what it lacks in the other family is no gap.
"""

from __future__ import annotations

import ipaddress
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import (
    DIRECT,
    HIGH,
    INFO,
    MEDIUM,
    PROXIED,
    Affected,
    Finding,
    Fix,
    Json,
    Place,
    listed,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._fixes import command, command_task, fix, shell
from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import (
    FAMILY_TEXTS,
    Endpoint,
    Family,
    Published,
    Survey,
    is_dockers,
)
from ansible_collections.quaywall.docker.plugins.module_utils._chain import DENYING, FORWARD, is_bare_return, mark_of
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import (
    EVERYTHING,
    NOTHING,
    Intervals,
    covers,
    intersect,
    join,
    of_network,
    size,
    subtract,
)
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6
from ansible_collections.quaywall.docker.plugins.module_utils._walk import (
    ANY_PORT,
    PEER,
    SOURCE,
    Flow,
    Outcome,
    Site,
)

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._inventory import Network

#: Tables and chains that a packet passes: before it is routed, when it is forwarded, and when it is for the host.
_ARRIVING = (("raw", "PREROUTING"), ("mangle", "PREROUTING"))
_FORWARDED = (("mangle", FORWARD), ("filter", FORWARD))
_LOCAL = (("mangle", "INPUT"), ("filter", "INPUT"))
_Reasons = t.Optional[t.Tuple[str, ...]]
_Leg = t.Tuple[t.Tuple[t.Tuple[str, str], ...], Flow]

#: A fix of more policies or rules than this is no fix that anybody reads.
_MOST_STEPS = 20
#: Each fix is planned in the whole chain: how many rules are looked at for fixes, before findings go without.
_MOST_PLANNED = 200000

_COMMANDS = {IPV4: "iptables", IPV6: "ip6tables"}
_ANYBODY = {IPV4: "0.0.0.0", IPV6: "::"}


# Who gets through ----------------------------------------------------------------------------------------------------


def mostly(peers: Intervals, family: str) -> bool:
    """True if these are more than half of all addresses."""
    half = EVERYTHING[family][0][1] // 2
    # What a list of banned addresses leaves has a thousand pieces, and the first or the last is often enough.
    if peers and (peers[0][1] - peers[0][0] >= half or peers[-1][1] - peers[-1][0] >= half):
        return True
    return size(peers) > half + 1


def through(family: Family, *legs: _Leg) -> t.Tuple[Intervals, t.Tuple[str, ...]]:
    """Who gets through all chains of both variants of iptables, and what that hangs on.

    Nothing is said where it is certain for more than half of all addresses.
    """
    everybody = EVERYTHING[family.name]
    within, certain = everybody, everybody
    reasons: t.Tuple[str, ...] = ()
    for variant in (family, family.other):
        for chains, flow in legs:
            for table, chain in chains:
                if variant is None or chain not in variant.table(table).chains:
                    continue
                seen = variant.arriving(flow, table) if chain == "PREROUTING" else flow
                passed = variant.passing(seen, chain, within, table)
                sure = [item for item in passed if not item.reasons]
                if len(sure) < len(passed):
                    certain = intersect(certain, _peers(sure))
                    new = [reason for item in passed for reason in item.reasons]
                    reasons += tuple(reason for reason in dict.fromkeys(new) if reason not in reasons)
                within = _peers(passed)
                if not within:
                    return NOTHING, ()
    if reasons and mostly(intersect(certain, within), family.name):
        return intersect(certain, within), ()
    return within, reasons


def _peers(outcomes: t.Sequence[Outcome]) -> Intervals:
    if len(outcomes) == 1:
        return outcomes[0].peers
    return join(piece for outcome in outcomes for piece in outcome.peers)


def to_host(family: Family, published: Published, interface: str) -> Flow:
    """A first packet from outside to the host's own port, before DNAT or for docker-proxy."""
    binding = published.binding
    address = family.host_side(binding) or EVERYTHING[family.name]
    port = (binding.host_port, binding.host_port)
    return Flow(
        family=family.name,
        peer=SOURCE,
        protocol=binding.protocol,
        in_interface=interface,
        out_interface="",
        address=address,
        destination_ports=port,
        original=(PEER, address),
        original_ports=(ANY_PORT, port),
        reply=(address, PEER),
        reply_ports=(port, ANY_PORT),
        mark=family.mark,
        destination_type="LOCAL",
    )


# Closed ports --------------------------------------------------------------------------------------------------------


class Guard(t.NamedTuple):
    """Somebody's own rule that closes a published port, for one flow from outside."""

    published: Published
    flow: Flow
    table: str
    site: Site


def _guard(family: Family, published: Published, flow: Flow) -> t.Optional[Guard]:
    within = EVERYTHING[family.name]
    for table, chain in _FORWARDED:
        if chain not in family.table(table).chains:
            continue
        passed = family.passing(flow, chain, within, table)
        if not any(mostly(item.peers, family.name) for item in passed):
            # Most likely one rule says it all; bans are of an address each.
            site = _far_denier(family, family.briefly(flow, chain, within, table))
            if site is None:
                site = _denier(family, family.walk(flow, chain, within, table))
            if site is not None:
                return Guard(published, flow, table, site)
        within = _peers(passed)
    return None


def _own_denials(outcomes: t.Iterable[Outcome]) -> t.Iterator[t.Tuple[Site, Intervals]]:
    """What rules of somebody's own deny for certain."""
    for item in outcomes:
        if item.verdict in DENYING and item.site is not None and not item.reasons and not is_dockers(item.site.chain):
            yield item.site, item.peers


def _far_denier(family: Family, outcomes: t.Iterable[Outcome]) -> t.Optional[Site]:
    """The rule of somebody's own that stops more than half."""
    half = EVERYTHING[family.name][0][1] // 2
    for site, peers in _own_denials(outcomes):
        if peers[-1][1] - peers[0][0] >= half and size(peers) > half:
            return site
    return None


def _denier(family: Family, outcomes: t.Iterable[Outcome]) -> t.Optional[Site]:
    """The rule of somebody's own that stops the most, if such rules stop more than half."""
    sizes = {site: size(peers) for site, peers in _own_denials(outcomes)}
    half = EVERYTHING[family.name][0][1] // 2
    return max(sizes, key=lambda site: sizes[site]) if sum(sizes.values()) > half else None


def _closed_to(family: Family, guard: Guard) -> str:
    """To whom a port is closed, in words."""
    return family.peers_text(subtract(EVERYTHING[family.name], through(family, (_FORWARDED, guard.flow))[0]))


def guards(family: Family, published: Published) -> t.List[Guard]:
    """What closes a published port, by the interfaces that rules tell apart; found once and kept with the family."""
    if published.loopback:
        return []
    kept: t.Dict[int, t.Tuple[Published, t.List[Guard]]] = vars(family).setdefault("guards", {})
    if id(published) not in kept:
        found = [_guard(family, published, flow) for flow in family.inbound(published)]
        # With the port itself, so that no other one gets its id.
        kept[id(published)] = (published, [guard for guard in found if guard is not None])
    return kept[id(published)][1]


_Key = t.Tuple[str, str, int]


def _key(published: Published) -> _Key:
    """The same container's same port, wherever it is published."""
    return (published.container.id, published.binding.protocol, published.binding.container_port)


class _Open(t.NamedTuple):
    """A port that is closed by a guard, and another way that leads to it."""

    guard: Guard
    published: Published
    peers: Intervals
    reasons: t.Tuple[str, ...]


def _by_guard(family: Family, found: t.Iterable[_Open]) -> t.List[t.Tuple[str, Place, t.List[_Open]]]:
    """Ports by what closes them: a policy, which may have several rules, or a rule. With its words and its place."""
    groups: t.Dict[t.Tuple[str, ...], t.Tuple[str, Place, t.List[_Open]]] = {}
    for item in found:
        table, site = item.guard.table, item.guard.site
        mark = mark_of(family.rule(site, table))
        if mark is not None:
            key: t.Tuple[str, ...] = ("policy", mark.policy)
            words, place = "Policy %s" % mark.policy, family.place(table=table, chain=site.chain)
        else:
            key = (table, site.chain, str(site.position))
            inside = "" if table == "filter" else " (table %s)" % table
            words, place = "Rule %d of %s%s" % (site.position, site.chain, inside), family.place(site, table)
        groups.setdefault(key, (words, place, []))[2].append(item)
    return list(groups.values())


def ports_text(published: t.Iterable[Published], most: int = 5) -> str:
    """C(shop (8080->80/tcp, 8443->443/tcp) and admin (9000->8080/tcp))."""
    ports: t.Dict[str, t.List[str]] = {}
    for item in published:
        texts = ports.setdefault(item.container.name, [])
        if item.text not in texts:
            texts.append(item.text)
    return listed(["%s (%s)" % (name, ", ".join(texts)) for name, texts in ports.items()], most)


def unique(published: t.Iterable[Published]) -> t.List[Published]:
    """Each published port once."""
    return list({(_key(item), item.binding): item for item in published}.values())


def _all_reasons(found: t.Iterable[_Open], more: t.Iterable[str] = ()) -> t.Tuple[str, ...]:
    return tuple(dict.fromkeys([reason for item in found for reason in item.reasons] + list(more)))


def _host_ports(published: t.Iterable[Published]) -> t.List[t.Tuple[str, str, int, int]]:
    """Protocol, host address (empty: all) and host ports, runs of ports as ranges."""
    groups: t.Dict[t.Tuple[str, str], t.List[t.Tuple[int, int]]] = {}
    for item in published:
        binding = item.binding
        address = "" if binding.host_address in _ANYBODY.values() else binding.host_address
        groups.setdefault((binding.protocol, address), []).append((binding.host_port, binding.host_port))
    return [(*key, low, high) for key, ports in sorted(groups.items()) for low, high in join(ports)]


def _ipv6_outside(survey: Survey) -> t.Optional[bool]:
    """Whether machines beyond the host's own links can reach it over IPv6; None if its addresses were not read."""
    if not survey.snapshot.interfaces:
        return None
    link_local = of_network("fe80::/10")
    outside = set(survey.outside)
    return any(
        ":" in address and not covers(link_local, of_network(address.partition("/")[0]))
        for interface in survey.snapshot.interfaces
        if interface.name in outside
        for address in interface.addresses
    )


def _ipv6_severity(survey: Survey) -> t.Tuple[str, t.Tuple[str, ...]]:
    """How bad a way in over IPv6 is, and what that hangs on."""
    outside = _ipv6_outside(survey)
    if outside is None:
        return HIGH, ("whether the host has an IPv6 address that others reach",)
    if not outside:
        # Neighbours on the link reach its link-local address at most.
        return INFO, ("whether the host gets an IPv6 address that others reach: it has none now",)
    return HIGH, ()


# IPv6 ----------------------------------------------------------------------------------------------------------------


def ipv6_gap(survey: Survey) -> t.Iterator[Finding]:
    """A port that is closed on IPv4 and that DNAT or a route leads to over IPv6, where no rule closes it."""
    four, six = survey.families
    forwarded = {(_key(item), item.binding.host_port): item for item in six.published if item.dnat}
    routed = {_key(item): item for item in six.published if item.routed}
    if not forwarded and not routed:
        return
    found = []
    for published in four.published:
        twin = forwarded.get((_key(published), published.binding.host_port)) or routed.get(_key(published))
        flows = [] if twin is None else six.inbound(twin)
        if twin is None or not flows:
            continue
        for guard in guards(four, published):
            flow = flows[0]._replace(in_interface=guard.flow.in_interface)
            if any(item.denies and mostly(item.peers, IPV6) for item in six.briefly(flow)):
                continue  # closed, if only FORWARD read it: that is jump_missing's
            arriving = flow if twin.routed else to_host(six, twin, guard.flow.in_interface)
            peers, reasons = through(six, (_ARRIVING, arriving), (_FORWARDED, flow))
            if mostly(peers, IPV6):
                found.append(_Open(guard, twin, peers, reasons))
    severity, unsure = _ipv6_severity(survey)
    unsure += survey.strangers(IPV6, "prerouting", "forward")
    planned = 0
    for words, place, opens in _by_guard(four, found):
        ports = unique(item.published for item in opens)
        planned += len(six.docker_user.rules) if six.docker_user is not None else 0
        yield Finding(
            "ipv6_gap",
            severity,
            "%s closes %s to %s on IPv4. Over IPv6 %s, and there %s gets in: ip6tables has a DOCKER-USER chain of its "
            "own."
            % (
                words,
                ports_text(ports),
                _closed_to(four, opens[0].guard),
                _over_ipv6(ports),
                six.peers_text(opens[0].peers),
            ),
            place,
            tuple(item.published.affected(peers=six.peers_text(item.peers)) for item in _once(opens)),
            _all_reasons(opens, unsure),
            _ipv6_fix(six, ports) if planned <= _MOST_PLANNED else None,
            words if not place.rule else "",
        )


def _once(found: t.Iterable[_Open]) -> t.List[_Open]:
    """One for each port, whichever interfaces lead there."""
    return list({(_key(item.published), item.published.binding): item for item in reversed(list(found))}.values())[::-1]


def _over_ipv6(ports: t.Sequence[Published]) -> str:
    what = "the same port" if len(ports) == 1 else "these ports"
    if not any(item.routed for item in ports):
        return "Docker forwards %s too" % what
    containers = {item.container.id for item in ports}
    whose = "the container's own address" if len(containers) == 1 else "the containers' own addresses"
    return "%s reached at %s too" % (what + (" is" if len(ports) == 1 else " are"), whose)


def _ipv6_fix(six: Family, ports: t.Sequence[Published]) -> t.Optional[Fix]:
    policies: t.List[Json] = [
        {
            "name": "-".join(["ipv6", item.container.name, item.binding.protocol, str(item.binding.container_port)]),
            "container": item.container.name,
            "destination_port": [str(item.binding.container_port)],
            "protocol": item.binding.protocol,
            "ip_version": IPV6,
            "action": "drop",
        }
        for item in ports
        if item.routed
    ]
    for protocol, address, low, high in _host_ports([item for item in ports if not item.routed]):
        number = "%d" % low if low == high else "%d-%d" % (low, high)
        options: t.Dict[str, t.Any] = {
            "name": "-".join(["ipv6", protocol, number] + ([address.replace(":", ".")] if address else [])),
            "published_port": number.replace("-", ":"),
            "protocol": protocol,
            "ip_version": IPV6,
            "action": "drop",
        }
        if address:
            options["published_address"] = address
        policies.append(options)
    if len(policies) > _MOST_STEPS:
        return None
    return fix(
        six,
        "Close the port on IPv6 too. To let somebody in there, name their IPv6 networks as source, and action: accept.",
        policies,
        touched=ports,
    )


# docker-proxy --------------------------------------------------------------------------------------------------------


def proxy_bypass(survey: Survey) -> t.Iterator[Finding]:
    """A port that is closed in DOCKER-USER and that docker-proxy serves, so that INPUT decides."""
    four, six = survey.families
    if IPV4 in survey.nftables:
        return
    for family in (four, six):
        found = [item for item in _proxied(survey, family) if mostly(item.peers, family.name)]
        severity, unsure = (HIGH, ()) if family is four else _ipv6_severity(survey)
        unsure += survey.strangers(family.name, "prerouting", "input")
        if family.dump is None and survey.unread("iptables_" + family.name):
            unsure += ("what %s lets in" % _COMMANDS[family.name],)
        for words, place, opens in _by_guard(four, found):
            ports = unique(item.published for item in opens)
            yield Finding(
                "proxy_bypass",
                severity,
                "%s closes %s to %s, but docker-proxy serves %s over %s, as %s. Such connections end at the host: "
                "INPUT of %s decides about them, which lets in %s, and DOCKER-USER never sees them. The container sees "
                "the host as their client."
                % (
                    words,
                    ports_text(ports),
                    _closed_to(four, opens[0].guard),
                    "the port" if len(ports) == 1 else "these ports",
                    FAMILY_TEXTS[family.name],
                    "Docker forwards nothing to the container there"
                    if family is six
                    else "the nat table has no rule that leads to the container",
                    _COMMANDS[family.name],
                    family.peers_text(opens[0].peers),
                ),
                place,
                tuple(
                    item.published.affected(traffic=PROXIED, peers=family.peers_text(item.peers))
                    for item in _once(opens)
                ),
                _all_reasons(opens, unsure),
                _input_fix(family, ports),
                "%s %s" % (family.name, words if not place.rule else ""),
            )


def _proxied(survey: Survey, family: Family) -> t.Iterator[_Open]:
    """Ports that are closed on IPv4 and served by docker-proxy in a family, with who reaches it."""
    four = survey.family(IPV4)
    unread = ("whether docker-proxy serves the port",) if survey.unread("proxies") else ()
    own = _endpoints(four)
    for published in family.published:
        if published.dnat or published.routed or published.loopback or not (published.proxied or unread):
            continue
        binding = published.binding
        if family is four and (not _has_nat(four) or (binding.protocol, binding.host_port) in four.dnats):
            continue  # docker_iptables_off says it, or it leads somewhere
        twin = _forwarded_twin(four, published, own)
        if twin is None:
            continue
        for guard in guards(four, twin):
            flow = to_host(family, published, guard.flow.in_interface)
            peers, reasons = through(family, (_ARRIVING + _LOCAL, flow))
            yield _Open(guard, published, peers, reasons + (() if published.proxied else unread))


def _has_nat(family: Family) -> bool:
    return family.docker_manages and "DOCKER" in family.table("nat").chains


def _endpoints(family: Family) -> t.Dict[str, t.List[Endpoint]]:
    found: t.Dict[str, t.List[Endpoint]] = {}
    for endpoint in family.endpoints:
        found.setdefault(endpoint.container.id, []).append(endpoint)
    return found


def _forwarded_twin(four: Family, published: Published, own: t.Mapping[str, t.List[Endpoint]]) -> t.Optional[Published]:
    """The same port as DNAT leads to it on IPv4, or would if it did: that is what rules were written for."""
    for twin in four.published_by_host_port.get(published.binding.host_port, ()):
        if _key(twin) == _key(published) and twin.dnat and not twin.loopback:
            return twin
    endpoints = own.get(published.container.id)
    if not endpoints:
        return None
    binding = published.binding._replace(host_address="")
    return published._replace(binding=binding, family=IPV4, endpoint=endpoints[0], dnat=True)


def _input_fix(family: Family, ports: t.Sequence[Published]) -> t.Optional[Fix]:
    tasks: t.List[Json] = []
    commands: t.List[str] = []
    for protocol, address, low, high in _host_ports(ports):
        number = "%d" % low if low == high else "%d:%d" % (low, high)
        destination = {"destination": address} if address else {}
        words = ["-I", "INPUT", *(["-d", address] if address else []), "!", "-i", "lo", "-p", protocol]
        words += ["-m", protocol, "--dport", number, "-j", "DROP"]
        options = {
            "chain": "INPUT",
            "action": "insert",
            **destination,
            "in_interface": "!lo",
            "protocol": protocol,
            "destination_port": number,
            "jump": "DROP",
        }
        tasks.append(_rule_task(family, "docker-proxy's port %s/%s is closed" % (number, protocol), options, words))
        commands.append(shell(command(family, *words)))
    if len(tasks) > _MOST_STEPS:
        return None
    return Fix(
        "Close the port in INPUT of %s. Or publish it on 0.0.0.0 only (-p 0.0.0.0:HOST:CONTAINER), or switch Docker's "
        "userland-proxy off: then nothing listens there." % _COMMANDS[family.name]
        if family.name == IPV6
        else "Close the port in INPUT of iptables. Restarting Docker puts back the nat rules that are missing.",
        tuple(tasks),
        tuple(commands),
        loses=tuple("anyone: %s over %s" % (ports_text([item]), FAMILY_TEXTS[family.name]) for item in ports),
    )


def _rule_task(family: Family, name: str, options: t.Mapping[str, t.Any], words: t.Sequence[str]) -> Json:
    """A task that writes one rule; into Docker's variant of iptables, where the module would write into the other."""
    if family.survey.snapshot.default_variants.get(family.name, family.variant) != family.variant:
        return command_task(name, command(family, *words))
    return {"name": name, "ansible.builtin.iptables": {"ip_version": family.name, **options}}


# The container's own address -----------------------------------------------------------------------------------------


class _Reached(t.NamedTuple):
    """A way to a container that does not lead through a published port.

    ``published`` is None where every port is reached. ``direct`` is what it hangs on that packets for the container's
    own address get in, ``spoofed`` the same of packets for 127.0.0.1 that come from outside; None: they do not.
    """

    endpoint: Endpoint
    published: t.Optional[Published]
    direct: _Reasons
    spoofed: _Reasons = None


def direct_routing(survey: Survey) -> t.Iterator[Finding]:
    """What is reached at a container's own address, though it is published for nobody or closed to most."""
    four = survey.family(IPV4)
    if not four.docker_manages:
        return
    guarded = {published.container.id for published in four.published if guards(four, published)}
    shut = guarded | {published.container.id for published in four.published if published.loopback}
    for family in survey.families:
        setting = "net.ipv4.ip_forward" if family is four else "net.ipv6.conf.all.forwarding"
        forwards = survey.snapshot.sysctls.get(setting)
        if forwards == "0" or family.name in survey.nftables:
            continue
        if family.dump is None and survey.unread("iptables_" + family.name):
            continue
        unsure = survey.strangers(family.name, "prerouting", "forward")
        if forwards is None:
            unsure += ("whether the host forwards packets (%s)" % setting,)
        groups: t.Dict[t.Tuple[str, str], t.List[_Reached]] = {}
        for item in _reached_directly(family):
            groups.setdefault((item.endpoint.network, item.endpoint.bridge), []).append(item)
        for (name, bridge), found in sorted(groups.items()):
            yield _direct_finding(family, name, bridge, found, unsure, shut, guarded)


def _reached_directly(family: Family) -> t.Iterator[_Reached]:
    published: t.Dict[int, t.Dict[_Key, t.List[Published]]] = {}
    for item in family.published:
        if item.endpoint is not None:
            published.setdefault(item.endpoint.number, {}).setdefault(_key(item), []).append(item)
    unnamed = family.unnamed_port
    for endpoint in family.endpoints:
        if not endpoint.bridge:
            continue
        every = _direct(family, endpoint, "tcp", unnamed, family.ways_in)
        if every is not None:
            yield _Reached(endpoint, None, every)
        for several in published.get(endpoint.number, {}).values():
            yield from _reached_port(family, endpoint, several, every is None)


def _reached_port(
    family: Family, endpoint: Endpoint, several: t.Sequence[Published], ask: bool
) -> t.Iterator[_Reached]:
    """One port of a container, if it is reached in a way that it is not published for.

    :param ask: whether it is reached at the container's own address is not known yet.
    """
    flows = [flow for item in several if not item.loopback for flow in family.inbound(item)]
    own = [item for item in several if item.loopback]
    if not flows and not own:
        return
    public = {flow.in_interface for flow in flows if mostly(through(family, (_FORWARDED, flow))[0], family.name)}
    closed = [interface for interface in family.ways_in if interface not in public]
    binding = several[0].binding
    direct = _direct(family, endpoint, binding.protocol, binding.container_port, closed) if ask else None
    # DNAT comes before the kernel looks whether such an address may come from outside. On IPv6 it looks first.
    spoofed = _first(
        family,
        [
            ((_ARRIVING, to_host(family, item, flow.in_interface)), (_FORWARDED, flow))
            for item in own
            if item.dnat and family.name == IPV4
            for flow in family.inbound(item)
            if flow.in_interface in closed
        ],
    )
    if direct is not None or spoofed is not None:
        yield _Reached(endpoint, (own or several)[0], direct, spoofed)


def _direct(family: Family, endpoint: Endpoint, protocol: str, port: int, interfaces: t.Sequence[str]) -> _Reasons:
    """None if most are kept out; else what it hangs on that they reach a port at the container's own address."""
    flows = [flow for flow in family.direct(endpoint, protocol, port) if flow.in_interface in interfaces]
    return _first(family, [((_ARRIVING, flow), (_FORWARDED, flow)) for flow in flows])


def _first(family: Family, ways: t.Iterable[t.Tuple[_Leg, ...]]) -> _Reasons:
    for legs in ways:
        peers, reasons = through(family, *legs)
        if mostly(peers, family.name):
            return reasons
    return None


def _direct_finding(
    family: Family,
    name: str,
    bridge: str,
    found: t.Sequence[_Reached],
    unsure: t.Tuple[str, ...],
    shut: t.Collection[str],
    guarded: t.Collection[str],
) -> Finding:
    mode = _gateway_mode(family.survey, bridge, family.name)
    severity = MEDIUM
    if not any(item.published is not None or item.endpoint.container.id in shut for item in found):
        # Nothing that was to be closed is open: it was asked for, or is Docker's default for IPv6 up to Engine 26.
        near = not family.docker_manages and all(_is_private(item.endpoint) for item in found)
        severity = INFO if near else MEDIUM
    if mode in ("nat-unprotected", "routed") and not any(item.endpoint.container.id in guarded for item in found):
        # The network was made to be reached so.
        severity = INFO
    hangs_on = [reason for item in found for reason in (item.direct or ()) + (item.spoofed or ())]
    return Finding(
        "direct_routing",
        severity,
        " ".join(_direct_sentences(family, name, mode, found)),
        Place(family.name, family.variant, "raw", "PREROUTING"),
        tuple(_direct_affected(item) for item in found),
        tuple(dict.fromkeys([*hangs_on, *unsure])),
        _raw_fix(family, name, bridge, found) if severity != INFO else None,
        name,
    )


def _is_private(endpoint: Endpoint) -> bool:
    """True for an address that nobody far away can send packets to."""
    return ipaddress.ip_address(endpoint.address).is_private


def _direct_sentences(family: Family, name: str, mode: str, found: t.Sequence[_Reached]) -> t.Iterator[str]:
    what = []
    every = [item.endpoint.container.name for item in found if item.published is None]
    if every:
        what.append("every port of %s" % listed(list(dict.fromkeys(every))))
    some = [item.published for item in found if item.direct is not None and item.published is not None]
    for loopback, words in ((True, "published for the host itself only"), (False, "closed where published")):
        ports = [item for item in some if item.loopback == loopback]
        if ports:
            what.append("%s, %s," % (ports_text(ports), words))
    if what:
        yield (
            "In network %s %s can be reached over %s by whoever routes packets for the container's own address to this "
            "host, such as a machine on the same segment, %s."
            % (name, " and ".join(what), FAMILY_TEXTS[family.name], _why_direct(family, mode, bool(every)))
        )
    spoofed = [item.published for item in found if item.spoofed is not None and item.published is not None]
    told = {(_key(item), item.binding) for item in some}
    if spoofed:
        how = "DNAT sends it on before the kernel looks where it came from, and no rule in the raw table drops it."
        if all((_key(item), item.binding) in told for item in spoofed):
            yield "A packet for 127.0.0.1 that such a machine sends here is let in too: %s" % how
        else:
            yield (
                "%s published for the host itself only, but a packet for 127.0.0.1 that a machine on the same segment "
                "sends here is let in: %s" % (ports_text(spoofed) + (" is" if len(spoofed) == 1 else " are"), how)
            )


def _why_direct(family: Family, mode: str, every: bool) -> str:
    engine = family.survey.snapshot.engine
    version = engine.version if engine is not None else ()
    if not family.docker_manages:
        return "as Docker writes no rules for IPv6 here (ip6tables is off)"
    if mode == "nat-unprotected":
        return "as the network's gateway mode is nat-unprotected"
    if version >= (28,):
        return "as Docker's drops in the raw table are not there (allow-direct-routing, or somebody took them out)"
    shown = "Docker Engine %s" % ".".join(map(str, version[:2])) if version else "this Docker Engine"
    why = "%s has no drops in the raw table against that (28 and later have)" % shown
    return "as FORWARD lets through what no rule names, and %s" % why if every else "as %s" % why


def _direct_affected(item: _Reached) -> Affected:
    endpoint, who = item.endpoint, "who routes to this host"
    if item.published is not None:
        return item.published.affected(traffic=DIRECT, peers=who)
    return Affected(endpoint.container.name, endpoint.address, endpoint.network, "", DIRECT, who)


def _gateway_mode(survey: Survey, bridge: str, family: str) -> str:
    network = survey.networks_by_bridge.get(bridge)
    shown = (survey.snapshot.data.get("docker") or {}).get("networks") or ()
    for item in shown:
        if network is not None and item.get("Id") == network.id:
            return str((item.get("Options") or {}).get("com.docker.network.bridge.gateway_mode_" + family) or "")
    return ""


def _raw_fix(family: Family, name: str, bridge: str, found: t.Sequence[_Reached]) -> t.Optional[Fix]:
    """What Engine 28 does for each container: nobody else's packets for its address get in."""
    network = family.survey.networks_by_bridge.get(bridge)
    subnets = [subnet for subnet in _subnets(network) if (":" in subnet) == (family.name == IPV6)]
    postrouting = family.table("nat").chains.get("POSTROUTING")
    hidden = {
        rule.value("source")
        for rule in (postrouting.rules if postrouting is not None else ())
        if rule.target in ("MASQUERADE", "SNAT")
    }
    rules: t.List[t.Tuple[str, str]] = []
    loses: t.List[str] = []
    if any(item.direct is not None for item in found):
        if not subnets or not hidden.issuperset(subnets):
            return None  # replies from outside carry the containers' own addresses
        rules += [(subnet, bridge) for subnet in subnets]
        loses.append("who routes packets to this host: containers of network %s at their own addresses" % name)
    if any(item.spoofed is not None for item in found):
        rules.append(("127.0.0.0/8", "lo"))
        loses.append("who sends packets for 127.0.0.1 to this host from outside: what is published there")
    tasks, commands = [], []
    for destination, interface in rules:
        words = ["-t", "raw", "-I", "PREROUTING", "-d", destination, "!", "-i", interface, "-j", "DROP"]
        options = {
            "table": "raw",
            "chain": "PREROUTING",
            "action": "insert",
            "destination": destination,
            "in_interface": "!" + interface,
            "jump": "DROP",
        }
        tasks.append(_rule_task(family, "Only %s sends packets for %s" % (interface, destination), options, words))
        commands.append(shell(command(family, *words)))
    return Fix(
        "Drop packets for these addresses that come from elsewhere, before DNAT, as Engine 28 does. Published ports "
        "stay as they are, as their packets are for the host's addresses then. The rules are gone after a reboot "
        "unless something writes them again.",
        tuple(tasks),
        tuple(commands),
        loses=tuple(loses),
    )


def _subnets(network: t.Optional[Network]) -> t.Sequence[str]:
    return network.subnets if network is not None else ()


# Open ports ----------------------------------------------------------------------------------------------------------


def exposed(survey: Survey) -> t.Iterator[Finding]:
    """Ports that are published to everyone and that no rule says anything about: one finding for all of them."""
    found: t.Dict[t.Tuple[_Key, str], t.Tuple[Published, t.List[str]]] = {}
    reasons: t.List[str] = []
    for family in survey.families:
        if IPV4 in survey.nftables or family.name in survey.nftables:
            continue
        hook = set()
        for published, why in _exposed(survey, family):
            found.setdefault((_key(published), published.text), (published, []))[1].append(FAMILY_TEXTS[family.name])
            reasons += [reason for reason in why if reason not in reasons]
            hook.add("forward" if published.dnat or published.routed else "input")
        reasons += survey.strangers(family.name, *sorted(hook))
    if not found:
        return
    ports = [published for published, _families in found.values()]
    containers = len({published.container.id for published in ports})
    yield Finding(
        "exposed",
        INFO,
        "%s published to anyone, and no rule says who may reach %s: %s."
        % (
            "1 port of 1 container is"
            if len(ports) == 1
            else "%d ports of %d container%s are" % (len(ports), containers, "" if containers == 1 else "s"),
            "it" if len(ports) == 1 else "them",
            ports_text(ports, 10),
        ),
        affected=tuple(
            published.affected(peers="anyone over %s" % " and ".join(families))
            for published, families in found.values()
        ),
        reasons=tuple(reasons),
    )


def _exposed(survey: Survey, family: Family) -> t.Iterator[t.Tuple[Published, t.Tuple[str, ...]]]:
    four = survey.family(IPV4)
    closed = {_key(item.published) for item in _proxied(survey, family)} if family.name == IPV6 else set()
    for published in family.published:
        if published.loopback:
            continue
        for flow in family.inbound(published):
            peers, why = through(family, (_FORWARDED, flow))
            if mostly(peers, family.name) and _nobody_decides(family, family.briefly(flow)):
                yield published, why
                break
        else:
            proxied = published.proxied and not published.dnat and four.docker_manages
            if proxied and family is not four and _key(published) not in closed and family.ways_in:
                flow = to_host(family, published, family.ways_in[0])
                peers, why = through(family, (_ARRIVING + _LOCAL, flow))
                if mostly(peers, family.name) and _nobody_decides(family, family.briefly(flow, "INPUT")):
                    yield published, why


def _nobody_decides(family: Family, outcomes: t.Iterable[Outcome]) -> bool:
    """True if most packets come to the end of a chain without any rule's word; a last RETURN for all is none."""
    return any(
        not item.denies
        and (item.site is None or is_bare_return(family.rule(item.site)))
        and mostly(item.peers, family.name)
        for item in outcomes
    )
