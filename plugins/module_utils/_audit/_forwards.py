# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""A user's rules of FORWARD behind Docker's, and rules for interfaces that their packets do not pass."""

from __future__ import annotations

import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._audit._dockers import forward_is_of_docker
from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import (
    MEDIUM,
    NEIGHBOURS,
    OUTGOING,
    Affected,
    Finding,
    Fix,
    Place,
    listed,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._fixes import (
    command,
    command_task,
    delete_words,
    shell,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._inputs import INPUT
from ansible_collections.quaywall.docker.plugins.module_utils._audit._passage import (
    Callers,
    Stopped,
    conditions,
    is_spoken_for,
    key,
    one_fix,
    peers_in,
    peers_text,
    port_text,
    rules_text,
    verdict,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._policies import Denied
from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import (
    FAMILY_TEXTS,
    Endpoint,
    Family,
    is_foreign,
)
from ansible_collections.quaywall.docker.plugins.module_utils._chain import (
    CONTINUING,
    DENYING,
    DOCKER_USER,
    FORWARD,
    Chain,
    is_established,
)
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import (
    EVERYTHING,
    Intervals,
    covers,
    intersect,
    join,
    of_network,
    overlaps,
)
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV6, Rule, arguments, port_ranges
from ansible_collections.quaywall.docker.plugins.module_utils._walk import ACCEPT, Program, Site, interface_matches

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._inventory import Binding

_MOST_AFFECTED = 50


class OwnForward:
    """A user's rules in FORWARD, of which those behind Docker's do not see what Docker's accept."""

    def __init__(self, family: Family) -> None:
        self._family = family
        forward = family.filter.chains.get(FORWARD)
        rules: t.Tuple[Rule, ...] = forward.rules if forward is not None else ()
        nothing = Rule(())
        bridges = family.survey.networks_by_bridge
        own = tuple(
            nothing if rule.target == DOCKER_USER or forward_is_of_docker(rule, family.name, bridges) else rule
            for rule in rules
        )
        self.rules = own
        self._chains = {**family.filter.chains, FORWARD: Chain(FORWARD, ACCEPT, own)}
        self.callers = Callers(self._chains, [FORWARD])
        may_deny = any(rule.target in DENYING for name in self.callers.names for rule in self._chains[name].rules)
        self._program: t.Optional[Program] = (
            family.program().with_chains(self._chains, [FORWARD]) if forward is not None and may_deny else None
        )

    def findings(self) -> t.Iterator[Finding]:
        if self._program is None or not self._family.docker_manages:
            return
        found = self._inbound(self._program)
        for site in sorted(found):
            yield self._of_inbound(site, found[site])
        outgoing = self._outgoing(self._program)
        for site in sorted(outgoing):
            if site not in found:
                yield self._of_outgoing(site, outgoing[site])

    def _top(self, site: Site) -> t.Optional[Site]:
        """The rule of FORWARD itself that leads to a rule, if anything on the way asks what packets are."""
        top: t.Optional[Site] = None
        asked = False
        for item in self.callers.upwards(site):
            asked = asked or bool(conditions(self.callers.rule(item)))
            if item.chain == FORWARD and top is None:
                top = item
        return top if asked else None

    def _is_of_others(self, site: Site) -> bool:
        """True for a rule that is not understood, or that asks only about an interface that is none of Docker's.

        libvirt rejects what its own network is not to be sent, and nobody expects that to be about containers.
        """
        survey = self._family.survey
        if not self.callers.rule(site).understood:
            return True
        known = {route.interface for route in survey.snapshot.routes if route.destination in ("0.0.0.0/0", "::/0")}
        if not known:
            return False
        interfaces: t.Set[str] = set()
        for item in self.callers.upwards(site):
            rule = self.callers.rule(item)
            if set(conditions(rule)) - {"in_interface", "out_interface"}:
                return False
            interfaces |= {field.value for field in rule.fields if field.name in ("in_interface", "out_interface")}
        return bool(interfaces) and not any(
            interface_matches(pattern, name) for pattern in interfaces for name in (*known, *survey.networks_by_bridge)
        )

    def _inbound(self, program: Program) -> t.Dict[Site, t.List[Stopped]]:
        family = self._family
        found: t.Dict[Site, t.List[Stopped]] = {}
        for published in family.published:
            if published.loopback:
                continue
            for flow in family.inbound(published):
                for outcome in program.walk(FORWARD, flow, EVERYTHING[family.name]):
                    if not outcome.denies or outcome.site is None or self._is_of_others(outcome.site):
                        continue
                    top = self._top(outcome.site)
                    if top is None or is_spoken_for(family, published):
                        continue
                    let_in = intersect(family.let_in(published)[0], family.remote)
                    still = intersect(outcome.peers, let_in)
                    if still:
                        found.setdefault(top, []).append(
                            Stopped(published, outcome.site, flow.in_interface, outcome.peers, still, outcome.reasons)
                        )
        return found

    def _of_inbound(self, top: Site, stopped: t.List[Stopped]) -> Finding:
        family = self._family
        rule = self.callers.rule(top)
        ports: t.Dict[t.Tuple[str, Binding], t.List[Stopped]] = {}
        for item in stopped:
            ports.setdefault(key(item.published), []).append(item)
        sure = any(not item.reasons for item in stopped)
        interface = rule.value("in_interface") or ""
        denied = [
            Denied(
                items[0].published,
                join(piece for item in items for piece in item.said),
                verdict=verdict(self.callers.rule(t.cast(Site, items[0].site))),
            )
            for items in ports.values()
        ]
        return Finding(
            "never_read",
            MEDIUM,
            "%s (%s) %s not see connections to %s: Docker's rules, which accept them, are read before. What is to be"
            " denied of Docker's traffic belongs into DOCKER-USER."
            % (
                rules_text(top),
                FAMILY_TEXTS[family.name],
                "does" if top.last == top.position else "do",
                listed([port_text(items[0].published) for items in ports.values()]),
            ),
            self._place(top),
            tuple(
                items[0].published.affected(
                    peers=peers_text(family, join(piece for item in items for piece in item.open))
                )
                for items in ports.values()
            ),
            () if sure else tuple(dict.fromkeys(reason for item in stopped for reason in item.reasons)),
            one_fix(
                family,
                "Say it in DOCKER-USER, for the container.",
                denied,
                "" if interface.endswith("+") else interface,
            ),
        )

    def _place(self, site: Site) -> Place:
        return self._family.place(site)

    def _outgoing(self, program: Program) -> t.Dict[Site, t.Dict[str, Intervals]]:
        """By rule, what containers' connections it would deny that get out: by bridge, to whom."""
        family = self._family
        subnets = family.subnets
        found: t.Dict[Site, t.Dict[str, Intervals]] = {}
        for endpoint in self._speakers():
            for protocol in ("tcp", "udp"):
                for flow in family.outgoing(endpoint, protocol, 443):
                    flow = flow._replace(destination_ports=(1, 65535))  # noqa: PLW2901
                    for outcome in program.walk(FORWARD, flow, family.remote):
                        if not outcome.denies or outcome.site is None or self._is_of_others(outcome.site):
                            continue
                        top = self._top(outcome.site)
                        if top is None or not self._is_about_docker(outcome.site, subnets):
                            continue
                        real = family.walk(flow, FORWARD, outcome.peers)
                        out = peers_in(item for item in real if not item.denies and not item.reasons)
                        if out:
                            by_bridge = found.setdefault(top, {})
                            by_bridge[endpoint.bridge] = join((*by_bridge.get(endpoint.bridge, ()), *out))
        return found

    def _speakers(self) -> t.List[Endpoint]:
        """One container of each network, and those that rules name."""
        family = self._family
        found: t.Dict[t.Any, Endpoint] = {}
        for endpoint in family.endpoints:
            if endpoint.bridge:
                found.setdefault(endpoint.bridge, endpoint)
        for name in self.callers.names:
            for rule in self._chains[name].rules:
                source = rule.value("source")
                if source is not None and source.endswith(("/32", "/128")):
                    number = of_network(source)[0][0]
                    if number in family.endpoints_by_number:
                        found[number] = family.endpoints_by_number[number]
        return list(found.values())

    def _is_about_docker(self, site: Site, subnets: Intervals) -> bool:
        """True if a rule, or a jump that leads to it, names one of Docker's bridges or networks."""
        bridges = self._family.survey.networks_by_bridge
        for item in self.callers.upwards(site):
            rule = self.callers.rule(item)
            if rule.value("in_interface") in bridges:
                return True
            source = _network(rule, "source")
            if source is not None and overlaps(source, subnets):
                return True
        return False

    def _of_outgoing(self, top: Site, by_bridge: t.Mapping[str, Intervals]) -> Finding:
        family = self._family
        names = [family.survey.networks_by_bridge[bridge].name for bridge in by_bridge]
        whom = family.peers_text(join(piece for peers in by_bridge.values() for piece in peers))
        rule = self.callers.rule(top)
        moved: t.Optional[Fix] = None
        if rule.target in DENYING and family.docker_user is not None:
            first = family.docker_user.rules[:1]
            position = 2 if first and is_established(first[0]) else 1
            insert = command(family, "-I", DOCKER_USER, str(position), *arguments(rule.render()))
            delete = delete_words(family, top)
            moved = Fix(
                "Move it to the top of DOCKER-USER.",
                (
                    command_task("Write the rule where Docker's traffic passes", insert),
                    command_task("Take the rule out of FORWARD", delete),
                ),
                (shell(insert), shell(delete)),
                (),
                tuple(
                    "containers of network %s: %s over %s"
                    % (
                        family.survey.networks_by_bridge[bridge].name,
                        family.peers_text(peers),
                        FAMILY_TEXTS[family.name],
                    )
                    for bridge, peers in by_bridge.items()
                ),
            )
        return Finding(
            "never_read",
            MEDIUM,
            "Rule %d of FORWARD (%s) does not see what containers of %s send to %s: Docker's rules, which accept it,"
            " are read before. What is to be denied of Docker's traffic belongs into DOCKER-USER."
            % (top.position, FAMILY_TEXTS[family.name], listed(names), whom),
            self._place(top),
            tuple(
                Affected(endpoint.container.name, endpoint.address, endpoint.network, traffic=OUTGOING, peers=whom)
                for endpoint in family.endpoints
                if endpoint.bridge in by_bridge
            )[:_MOST_AFFECTED],
            fix=moved,
        )


# Interfaces that the packets do not pass -----------------------------------------------------------------------------


def wrong_interfaces(family: Family, own: OwnForward) -> t.Iterator[Finding]:
    """Rules for packets of an interface that they do not come through."""
    chains = family.filter.chains
    user = Callers(chains, [DOCKER_USER])
    host = Callers(chains, [INPUT, "OUTPUT"])
    yield from _loopback(family, user, host)
    if family.survey.snapshot.inventory is None:
        return
    seen: t.Set[Site] = set()
    for callers, starts in ((user, [DOCKER_USER]), (own.callers, [FORWARD]), (host, [INPUT])):
        coming = callers.interfaces("in_interface", [name for name in starts if name in chains])
        going = callers.interfaces("out_interface", [name for name in starts if name in chains])
        for name in callers.names:
            for position, rule in enumerate(callers.chains[name].rules, 1):
                site = Site(name, position, position)
                if site in seen or not is_foreign(rule) or rule.target in CONTINUING:
                    continue
                for ends, interface, address in (
                    (coming, "in_interface", "source"),
                    (going, "out_interface", "destination"),
                ):
                    found = _contradiction(family, rule, ends.get(name, frozenset()), interface, address)
                    if found is not None:
                        seen.add(site)
                        yield _never_matches(family, site, rule, interface, address, found)
                        break
                else:
                    if callers is not host and rule.target in DENYING:
                        seen.add(site)
                        yield from _unheard(family, site, rule, coming.get(name), going.get(name))


def _network(rule: Rule, name: str) -> t.Optional[Intervals]:
    """The addresses that a rule asks for; None if it does not, or by a mask that no list can tell."""
    value = rule.value(name)
    try:
        return None if value is None else of_network(value)
    except ValueError:
        return None


def _contradiction(
    family: Family, rule: Rule, ends: t.Optional[t.FrozenSet[str]], interface: str, address: str
) -> t.Optional[t.List[str]]:
    """The bridges of Docker's that a rule is bound to, if none of their networks has the address that it asks for."""
    named = rule.value(interface)
    names = frozenset((named,)) if named is not None else ends
    wanted = _network(rule, address)
    bridges = family.survey.networks_by_bridge
    if not names or wanted is None or not all(name in bridges for name in names):
        return None
    behind: t.List[t.Any] = []
    for name in names:
        subnets = [subnet for subnet in bridges[name].subnets if (":" in subnet) == (family.name == IPV6)]
        if not subnets:
            return None
        behind += [piece for subnet in subnets for piece in of_network(subnet)]
    for route in family.survey.snapshot.routes:
        if route.interface in names and route.family == family.name:
            behind += of_network(route.destination)
    return None if overlaps(wanted, join(behind)) else sorted(names)


def _unheard(
    family: Family,
    site: Site,
    rule: Rule,
    coming: t.Optional[t.FrozenSet[str]],
    going: t.Optional[t.FrozenSet[str]],
) -> t.Iterator[Finding]:
    """A deny among containers of one bridge, where bridges do not hand their packets to iptables."""
    survey = family.survey
    if survey.bridge_netfilter(family.name) is not False:
        return
    bridge = _one_bridge(family, rule, coming, going)
    if bridge is None:
        return
    source = _network(rule, "source")
    wanted = EVERYTHING[family.name] if rule.value("destination") is None else _network(rule, "destination") or ()
    near = [item for item in family.endpoints if item.bridge == bridge]
    reached = [item for item in near if overlaps(wanted, ((item.number, item.number),))]
    if len(near) < 2 or not reached:
        return
    network = survey.networks_by_bridge[bridge].name
    setting = "net.bridge.bridge-nf-call-%stables" % ("ip6" if family.name == IPV6 else "ip")
    peers = "containers of network %s" % network if source is None else family.peers_text(source)
    names = listed([item.container.name for item in reached])
    words = (["modprobe", "br_netfilter"], ["sysctl", "-w", setting + "=1"])
    yield Finding(
        "never_read",
        MEDIUM,
        "Rule %d of %s (%s) is for packets from container to container of network %s, and sees none of them: a bridge "
        "hands its packets to iptables only where %s is 1, and here %s. So nothing stops what it is to keep from %s."
        % (
            site.position,
            site.chain,
            FAMILY_TEXTS[family.name],
            network,
            setting,
            "it is 0" if setting in survey.snapshot.sysctls else "br_netfilter is not loaded",
            names,
        ),
        family.place(site),
        tuple(
            Affected(item.container.name, item.address, item.network, traffic=NEIGHBOURS, peers=peers)
            for item in reached[:_MOST_AFFECTED]
        ),
        fix=Fix(
            "Have bridges hand their packets to iptables. All rules see what containers of one network send each other "
            "then, also those that close a container to everybody. After a reboot it is as before, unless files in "
            "/etc/modules-load.d and /etc/sysctl.d say it too.",
            (
                command_task("Load br_netfilter", words[0]),
                command_task("Bridges hand their packets to iptables (%s)" % FAMILY_TEXTS[family.name], words[1]),
            ),
            tuple(shell(item) for item in words),
            loses=("%s: %s over %s" % (peers, names, FAMILY_TEXTS[family.name]),),
        ),
    )


def _one_bridge(
    family: Family, rule: Rule, coming: t.Optional[t.FrozenSet[str]], going: t.Optional[t.FrozenSet[str]]
) -> t.Optional[str]:
    """The bridge of Docker's that a rule's packets come in and go out through, as it says by name or address."""
    if any(field.negated for field in rule.fields if field.name in ("in_interface", "out_interface")):
        return None
    into, out = rule.value("in_interface"), rule.value("out_interface")
    first = coming if into is None else frozenset((into,))
    last = going if out is None else frozenset((out,))
    source, destination = _network(rule, "source"), _network(rule, "destination")
    for bridge, network in family.survey.networks_by_bridge.items():
        named = frozenset((bridge,))
        if first == last == named:
            return bridge
        if source is None or destination is None or first not in (None, named) or last not in (None, named):
            continue
        subnets = join(
            piece
            for subnet in network.subnets
            if (":" in subnet) == (family.name == IPV6)
            for piece in of_network(subnet)
        )
        if subnets and covers(subnets, join((*source, *destination))):
            return bridge
    return None


def _never_matches(
    family: Family, site: Site, rule: Rule, interface: str, address: str, bridges: t.List[str]
) -> Finding:
    value = str(rule.value(address))
    shown = value.rpartition("/")[0] if value.endswith(("/32", "/128")) else value
    coming = interface == "in_interface"
    survey = family.survey
    message = "Rule %d of %s (%s) can match no packet: it is for what %s through %s, %s %s, and %s %s." % (
        site.position,
        site.chain,
        FAMILY_TEXTS[family.name],
        "comes in" if coming else "goes out",
        listed(bridges),
        "the bridge of Docker's network" if len(bridges) == 1 else "the bridges of Docker's networks",
        listed([survey.networks_by_bridge[name].name for name in bridges]),
        shown,
        "is not behind it" if len(bridges) == 1 else "is behind none of them",
    )
    through = _route_to(family, of_network(value))
    if through:
        message += " %s %s %s." % (shown, "comes in through" if coming else "is reached through", through)
    reasons = ("the host's routes, which could not be read",) if not survey.snapshot.routes else ()
    return Finding(
        "never_read",
        MEDIUM,
        message,
        family.place(site),
        reasons=reasons,
        fix=_without(family, site, _for_source(family, rule) if coming and rule.target in DENYING else None),
    )


def _without(family: Family, site: Site, policies: t.Optional[Fix] = None) -> Fix:
    """The fix that takes out a rule that matches nothing, after what is to stand in its place."""
    before = policies or Fix("Delete it: nothing changes.")
    words = delete_words(family, site)
    return before._replace(
        tasks=(*before.tasks, command_task("Take the rule out of %s" % site.chain, words)),
        commands=(*before.commands, shell(words)),
    )


def _route_to(family: Family, wanted: Intervals) -> str:
    """The interface that the host reaches an address through."""
    best: t.Tuple[int, str] = (1 << 130, "")
    for route in family.survey.snapshot.routes:
        if route.family == family.name and route.type in ("", "unicast"):
            low, high = of_network(route.destination)[0]
            if low <= wanted[0][0] and wanted[-1][1] <= high and high - low < best[0]:
                best = (high - low, route.interface)
    return best[1]


def _for_source(family: Family, rule: Rule) -> t.Optional[Fix]:
    """What a deny for a source and a host's port was to be, if the port is published."""
    ports = rule.value("destination_port")
    if ports is None:
        return None
    low, high = port_ranges(ports)[0]
    source = of_network(str(rule.value("source")))
    denied = [
        Denied(published, source, verdict=verdict(rule))
        for published in (family.published_by_host_port.get(low, ()) if low == high else ())
        if published.dnat and not published.loopback and published.binding.protocol == rule.value("protocol")
    ]
    description = "Say it in DOCKER-USER, for the container, and delete the rule that matches nothing."
    return one_fix(family, description, denied) if denied else None


def _loopback(family: Family, user: Callers, host: Callers) -> t.Iterator[Finding]:
    """Rules of DOCKER-USER for the host's traffic with itself."""
    for name in user.names:
        if name in host.names:
            continue
        for position, rule in enumerate(user.chains[name].rules, 1):
            field = next((key for key in ("in_interface", "out_interface") if rule.value(key) == "lo"), None)
            if field is None or not is_foreign(rule):
                continue
            site = Site(name, position, position)
            yield Finding(
                "never_read",
                MEDIUM,
                "Rule %d of %s (%s) can match no packet: nothing that is forwarded %s through lo. What the host sends"
                " to itself passes OUTPUT and INPUT."
                % (
                    position,
                    name,
                    FAMILY_TEXTS[family.name],
                    "comes in" if field == "in_interface" else "goes out",
                ),
                family.place(site),
                fix=_without(family, site),
            )
