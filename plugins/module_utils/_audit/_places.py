# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Checks about places: rules where Docker's traffic does not pass, and rules in chains that are Docker's own."""

from __future__ import annotations

import ipaddress
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._audit._dockers import (
    CHAINS,
    forward_is_of_docker,
    is_of_docker,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import (
    INFO,
    MEDIUM,
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
    fix,
    shell,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._policies import Denied, closing
from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import (
    FAMILY_TEXTS,
    Endpoint,
    Family,
    Published,
    Survey,
    is_foreign,
)
from ansible_collections.quaywall.docker.plugins.module_utils._chain import (
    CONTINUING,
    DENYING,
    DOCKER_USER,
    Chain,
    is_established,
)
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import (
    EVERYTHING,
    Intervals,
    intersect,
    join,
    of_network,
    overlaps,
    subtract,
)
from ansible_collections.quaywall.docker.plugins.module_utils._inventory import Binding, Container
from ansible_collections.quaywall.docker.plugins.module_utils._plan import FORWARD
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6, Rule, arguments, port_ranges
from ansible_collections.quaywall.docker.plugins.module_utils._walk import (
    ACCEPT,
    ANY_PORT,
    PEER,
    SOURCE,
    Flow,
    Outcome,
    Program,
    Site,
    interface_matches,
)

INPUT = "INPUT"

_MOST_AFFECTED = 50
#: A rule names a port if it names no more than these.
_MOST_PORTS = 4096
#: Not the Internet: what is open to these only is not open to everybody.
_PRIVATE = {
    IPV4: ("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"),
    IPV6: ("fc00::/7", "fe80::/10"),
}
#: What cannot be the Internet's default: with less than this share of all addresses denied, it is a list of bans.
_MOST_BANNED = 0.25

_VERBS = {"DROP": "drops", "REJECT": "rejects", "TARPIT": "holds"}
_INFINITIVES = {"DROP": "drop", "REJECT": "reject", "TARPIT": "hold"}


def never_read(survey: Survey) -> t.Iterator[Finding]:
    """Rules placed where what Docker forwards does not pass."""
    for family in survey.families:
        if family.dump is None:
            continue
        own = _OwnForward(family)
        yield from _wrong_interfaces(family, own)
        if family.name in survey.nftables:
            continue
        yield from _Input(family).findings()
        yield from own.findings()
    yield from _input_of_nftables(survey)


# Chains and their callers --------------------------------------------------------------------------------------------


class _Callers:
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


def _conditions(rule: Rule) -> t.List[str]:
    """The names of the fields that a rule asks about, without those of its target and its comment."""
    found: t.List[str] = []
    for field in rule.fields:
        if field.name in ("jump", "goto"):
            break
        if field.name not in ("match", "comment", "limit", "limit_burst", "ctstate", "state"):
            found.append(field.name)
    return found


def _names_port(rule: Rule, port: int) -> bool:
    """True if a rule is about this destination port, and not about most ports."""
    for name in ("destination_port", "destination_ports", "ports"):
        value = rule.value(name)
        if value is not None:
            ranges = port_ranges(value)
            if any(low <= port <= high for low, high in ranges):
                return sum(high - low + 1 for low, high in ranges) <= _MOST_PORTS
    return False


def _port_text(published: Published) -> str:
    return "%s (%s)" % (published.container.name, published.text)


def _peers(outcomes: t.Iterable[Outcome]) -> Intervals:
    return join(piece for outcome in outcomes for piece in outcome.peers)


def _peers_text(family: Family, peers: Intervals) -> str:
    """Who of those out there: addresses that nobody there has do not matter."""
    others = subtract(family.remote, peers)
    if sum(high - low + 1 for low, high in others) < sum(high - low + 1 for low, high in peers):
        return family.peers_text(subtract(EVERYTHING[family.name], others))
    return family.peers_text(peers)


def _public(peers: Intervals, family: str) -> Intervals:
    for network in _PRIVATE[family]:
        peers = subtract(peers, of_network(network))
    return peers


def _spoken_for(family: Family) -> t.Set[t.Tuple[str, Binding]]:
    """Published ports about which DOCKER-USER says something: whoever wrote that knows where it belongs."""
    found = {_key(hit.published) for hits in family.denials.values() for hit in hits}
    for site, hits in family.allowances.items():
        if site.chain != DOCKER_USER or _conditions(family.rule(site)):
            found |= {_key(hit.published) for hit in hits}
    return found


def _key(published: Published) -> t.Tuple[str, Binding]:
    return published.container.id, published.binding


def _verdict(rule: Rule) -> str:
    return "REJECT" if rule.target == "REJECT" else "DROP"


def _one_fix(family: Family, description: str, denied: t.Sequence[Denied], interface: str = "") -> t.Optional[Fix]:
    """The fix that writes policies for these; with the interface if that can be said."""
    policies = None
    if len(denied) > 20:
        return None
    if interface:
        policies = closing(family, [item._replace(interface=interface) for item in denied])
    if policies is None:
        policies = closing(family, denied)
    return None if policies is None else fix(family, description, policies, touched=[item.published for item in denied])


# INPUT ---------------------------------------------------------------------------------------------------------------


class _Stopped(t.NamedTuple):
    """A published port of which INPUT denies somebody who gets in all the same.

    ``said`` are all whom INPUT denies it, ``open`` those of them who get in; ``site`` is the rule that does it.
    """

    published: Published
    site: t.Optional[Site]
    interface: str
    said: Intervals
    open: Intervals
    reasons: t.Tuple[str, ...]


class _Input:
    """What INPUT says of ports whose connections are forwarded, as DNAT comes before it."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._chains = family.filter.chains
        self._callers = _Callers(self._chains, [INPUT])

    def findings(self) -> t.Iterator[Finding]:
        start = self._chains.get(INPUT)
        if start is None or not (start.rules or start.policy in DENYING):
            return
        spoken = _spoken_for(self._family)
        named: t.Dict[Site, t.List[_Stopped]] = {}
        bans: t.Dict[str, t.List[_Stopped]] = {}
        default: t.List[_Stopped] = []
        for published in [*_forwarded(self._family), *_of_swarm(self._family)]:
            if _key(published) in spoken:
                continue
            general: t.List[_Stopped] = []
            for item in self._stopped(published):
                site = None if item.site is None else self._naming(item.site, published.binding.host_port)
                if site is not None:
                    named.setdefault(site, []).append(item)
                else:
                    general.append(item)
            if self._is_default(general):
                default += general
            else:
                for item in general:
                    bans.setdefault(item.site.chain if item.site is not None else INPUT, []).append(item)
        for site in sorted(named):
            yield self._named(site, named[site])
        for chain in sorted(bans):
            found = [item for item in bans[chain] if _public(item.open, self._family.name)]
            if found:
                yield self._banned(chain, found)
        default = [item for item in default if _public(item.open, self._family.name)]
        if default:
            yield self._default(default)
        yield from self._allowing(set(named))

    # What INPUT does

    def _flow(self, published: Published, interface: str) -> Flow:
        """A first packet to the host's port, as INPUT would see it if it came there."""
        family, binding = self._family, published.binding
        own = [
            piece
            for item in family.survey.snapshot.interfaces
            if item.name == interface
            for address in item.addresses
            if (":" in address) == (family.name == IPV6)
            for piece in of_network(address.partition("/")[0])
        ][:1]
        published_at = binding.host_address not in ("", "0.0.0.0", "::")
        host = family.host_side(binding) if published_at else (tuple(own) or family.host_side(binding))
        port = (binding.host_port, binding.host_port)
        return Flow(
            family=family.name,
            peer=SOURCE,
            protocol=binding.protocol,
            in_interface=interface,
            out_interface="",
            address=host or EVERYTHING[family.name],
            destination_ports=port,
            original=(PEER, host),
            original_ports=(ANY_PORT, port),
            reply=(host, PEER),
            reply_ports=(port, ANY_PORT),
            destination_type="LOCAL",
        )

    def _ways(self) -> t.List[str]:
        """Outside interfaces that INPUT's rules tell apart, and one of the others."""
        patterns = {
            field.value
            for name in self._callers.names
            for rule in self._chains[name].rules
            for field in rule.fields
            if field.name == "in_interface"
        }
        outside = self._family.survey.outside
        named = [name for name in outside if any(interface_matches(pattern, name) for pattern in patterns)]
        others = [name for name in outside if name not in named]
        return [name for name in outside if name in named or name in others[:1]]

    def _stopped(self, published: Published) -> t.Iterator[_Stopped]:
        family = self._family
        let_in: t.Optional[Intervals] = None
        for interface in self._ways():
            outcomes = family.walk(self._flow(published, interface), INPUT, EVERYTHING[family.name])
            accepted = _peers(outcome for outcome in outcomes if not outcome.denies)
            for outcome in outcomes:
                if not outcome.denies or self._is_obscure(outcome, published):
                    continue
                if let_in is None:
                    let_in = intersect(family.let_in(published)[0], family.remote)
                found = intersect(outcome.peers, let_in)
                # Whoever is denied in any case is denied for certain.
                reasons = outcome.reasons if overlaps(outcome.peers, accepted) else ()
                if found:
                    yield _Stopped(published, outcome.site, interface, outcome.peers, found, reasons)

    def _is_obscure(self, outcome: Outcome, published: Published) -> bool:
        """True for a rule of which is not understood what it stops, and that does not name the port either."""
        if outcome.site is None:
            return False
        rule = self._callers.rule(outcome.site)
        return not rule.understood and not _names_port(rule, published.binding.host_port)

    def _naming(self, site: Site, port: int) -> t.Optional[Site]:
        """The rule that names the port: the one that decides, or a jump that leads to it."""
        for item in self._callers.upwards(site):
            if _names_port(self._callers.rule(item), port):
                return item
        return None

    def _is_default(self, stopped: t.Sequence[_Stopped]) -> bool:
        everything = EVERYTHING[self._family.name][0][1] + 1
        said = join(piece for item in stopped for piece in item.said)
        return sum(high - low + 1 for low, high in said) > everything * _MOST_BANNED

    # Findings

    def _affected(self, stopped: t.Iterable[_Stopped], meant: t.Optional[bool]) -> t.Tuple[Affected, ...]:
        by_port: t.Dict[t.Tuple[str, Binding], t.List[_Stopped]] = {}
        for item in stopped:
            by_port.setdefault(_key(item.published), []).append(item)
        return tuple(
            items[0].published.affected(
                peers=_peers_text(self._family, join(piece for item in items for piece in item.open)),
                meant=meant,
            )
            for items in by_port.values()
        )

    def _denied(self, stopped: t.Iterable[_Stopped]) -> t.List[Denied]:
        """What INPUT says of each port, for a policy."""
        by_port: t.Dict[t.Tuple[str, Binding], t.List[_Stopped]] = {}
        for item in stopped:
            by_port.setdefault(_key(item.published), []).append(item)
        return [
            Denied(
                items[0].published,
                join(piece for item in items for piece in item.said),
                verdict="DROP" if items[0].site is None else _verdict(self._callers.rule(items[0].site)),
            )
            for items in by_port.values()
        ]

    def _reasons(self, stopped: t.Sequence[_Stopped]) -> t.Tuple[str, ...]:
        if any(not item.reasons for item in stopped):
            return ()
        return tuple(dict.fromkeys(reason for item in stopped for reason in item.reasons))

    def _words(self, stopped: t.Iterable[_Stopped]) -> str:
        return listed(list(dict.fromkeys(_port_text(item.published) for item in stopped)))

    def _where(self, stopped: t.Sequence[_Stopped]) -> str:
        """Where a connection to the first port goes."""
        published = stopped[0].published
        binding, endpoint = published.binding, published.endpoint
        address = endpoint.address if endpoint is not None else "the container"
        if ":" in address:
            address = "[%s]" % address
        return "Docker leads port %d to %s:%d" % (binding.host_port, address, binding.container_port)

    def _named(self, site: Site, stopped: t.List[_Stopped]) -> Finding:
        family = self._family
        rule = self._callers.rule(site)
        verb = _INFINITIVES.get(str(rule.target), "stop")
        ports = sorted({item.published.binding.host_port for item in stopped})
        interface = rule.value("in_interface") or ""
        whom = _peers_text(family, join(piece for item in stopped for piece in item.open))
        return Finding(
            "never_read",
            MEDIUM,
            "Rule %d of %s (%s) is to %s connections%s to %s, but INPUT is for services of the host itself: %s"
            " and forwards the connection, which INPUT never sees. Open all the same: %s."
            % (
                site.position,
                site.chain,
                FAMILY_TEXTS[family.name],
                verb,
                "" if whom == "anyone" else " of %s" % whom,
                "port%s %s" % ("" if len(ports) == 1 else "s", listed([str(port) for port in ports])),
                self._where(stopped),
                self._words(stopped),
            ),
            family.place(site),
            self._affected(stopped, True),
            self._reasons(stopped),
            _one_fix(
                family,
                "Say it where Docker's traffic passes: in DOCKER-USER, for the container. The rule in INPUT may stay"
                " for a service of the host on that port, or go.",
                self._denied(stopped),
                "" if interface.endswith("+") else interface,
            ),
        )

    def _banned(self, chain: str, stopped: t.List[_Stopped]) -> Finding:
        family = self._family
        sites = {item.site for item in stopped if item.site is not None}
        site = sites.pop() if len(sites) == 1 else None
        whom = _peers_text(family, join(piece for item in stopped for piece in item.open))
        return Finding(
            "never_read",
            MEDIUM,
            "%s (%s) keeps %s from the host itself only: it is read from INPUT, and connections to published ports are"
            " forwarded and never pass there. Open to them all the same: %s. Have DOCKER-USER read the same bans."
            % (
                "Rule %d of %s" % (site.position, chain) if site is not None else "Chain %s" % chain,
                FAMILY_TEXTS[family.name],
                whom,
                self._words(stopped),
            ),
            family.place(site, chain=chain),
            self._affected(stopped, None),
            self._reasons(stopped),
            _one_fix(family, "Keep them out in DOCKER-USER too, for each container.", self._denied(stopped)),
        )

    def _default(self, stopped: t.List[_Stopped]) -> Finding:
        family = self._family
        sites = {item.site for item in stopped}
        site = sites.pop() if len(sites) == 1 else None
        start = self._chains[INPUT]
        by = "rule %d of %s" % (site.position, site.chain) if site is not None else "its policy %s" % start.policy
        if site is None and start.policy not in DENYING:
            by = "its last rules"
        return Finding(
            "never_read",
            MEDIUM,
            "INPUT (%s) denies what none of its rules allows, by %s, but that is for services of the host itself:"
            " connections to published ports are forwarded and never pass INPUT. Open all the same: %s. For each of"
            " them that is not for everybody, write a policy." % (FAMILY_TEXTS[family.name], by, self._words(stopped)),
            family.place(site, chain=INPUT),
            self._affected(stopped, None),
            self._reasons(stopped),
            _one_fix(
                family,
                "Give these ports what INPUT says of them. Leave out the policies of those that are for everybody.",
                self._denied(stopped),
            ),
            subject="default",
        )

    def _allowing(self, denying: t.Collection[Site]) -> t.Iterator[Finding]:
        """Rules that allow a published port in INPUT: they open nothing, and without them nothing closes."""
        family = self._family
        found: t.Dict[Site, t.List[Published]] = {}
        for published in [*_forwarded(family), *_of_swarm(family)]:
            for interface in self._ways():
                for outcome in family.walk(self._flow(published, interface), INPUT, EVERYTHING[family.name]):
                    if outcome.verdict != ACCEPT or outcome.site is None:
                        continue
                    site = self._naming(outcome.site, published.binding.host_port)
                    if site is not None and site not in denying:
                        items = found.setdefault(site, [])
                        if published not in items:
                            items.append(published)
        for site in sorted(found):
            ports = found[site]
            yield Finding(
                "never_read",
                INFO,
                "Rule %d of %s (%s) allows a port that Docker forwards: it does not decide about %s, neither to open"
                " nor, once it is gone, to close."
                % (
                    site.position,
                    site.chain,
                    FAMILY_TEXTS[family.name],
                    listed([_port_text(published) for published in ports]),
                ),
                family.place(site),
                tuple(published.affected() for published in ports),
            )


def _forwarded(family: Family) -> t.List[Published]:
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


def _of_swarm(family: Family) -> t.List[Published]:
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


# FORWARD -------------------------------------------------------------------------------------------------------------


class _OwnForward:
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
        self.callers = _Callers(self._chains, [FORWARD])
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
            asked = asked or bool(_conditions(self.callers.rule(item)))
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
            if set(_conditions(rule)) - {"in_interface", "out_interface"}:
                return False
            interfaces |= {field.value for field in rule.fields if field.name in ("in_interface", "out_interface")}
        return bool(interfaces) and not any(
            interface_matches(pattern, name) for pattern in interfaces for name in (*known, *survey.networks_by_bridge)
        )

    def _inbound(self, program: Program) -> t.Dict[Site, t.List[_Stopped]]:
        family = self._family
        spoken = _spoken_for(family)
        found: t.Dict[Site, t.List[_Stopped]] = {}
        for published in family.published:
            if published.loopback or _key(published) in spoken:
                continue
            for flow in family.inbound(published):
                for outcome in program.walk(FORWARD, flow, EVERYTHING[family.name]):
                    if not outcome.denies or outcome.site is None or self._is_of_others(outcome.site):
                        continue
                    top = self._top(outcome.site)
                    let_in = intersect(family.let_in(published)[0], family.remote)
                    still = intersect(outcome.peers, let_in)
                    if top is not None and still:
                        found.setdefault(top, []).append(
                            _Stopped(published, outcome.site, flow.in_interface, outcome.peers, still, outcome.reasons)
                        )
        return found

    def _of_inbound(self, top: Site, stopped: t.List[_Stopped]) -> Finding:
        family = self._family
        rule = self.callers.rule(top)
        ports: t.Dict[t.Tuple[str, Binding], t.List[_Stopped]] = {}
        for item in stopped:
            ports.setdefault(_key(item.published), []).append(item)
        sure = any(not item.reasons for item in stopped)
        interface = rule.value("in_interface") or ""
        denied = [
            Denied(
                items[0].published,
                join(piece for item in items for piece in item.said),
                verdict=_verdict(self.callers.rule(t.cast(Site, items[0].site))),
            )
            for items in ports.values()
        ]
        return Finding(
            "never_read",
            MEDIUM,
            "Rule %d of FORWARD (%s) does not see connections to %s: Docker's rules, which accept them, are read"
            " before. What is to be denied of Docker's traffic belongs into DOCKER-USER."
            % (
                top.position,
                FAMILY_TEXTS[family.name],
                listed([_port_text(items[0].published) for items in ports.values()]),
            ),
            self._place(top),
            tuple(
                items[0].published.affected(
                    peers=_peers_text(family, join(piece for item in items for piece in item.open))
                )
                for items in ports.values()
            ),
            () if sure else tuple(dict.fromkeys(reason for item in stopped for reason in item.reasons)),
            _one_fix(
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
                        out = _peers(item for item in real if not item.denies and not item.reasons)
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
            source = rule.value("source")
            if source is not None and overlaps(of_network(source), subnets):
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


def _wrong_interfaces(family: Family, own: _OwnForward) -> t.Iterator[Finding]:
    """Rules for packets of an interface that they do not come through."""
    chains = family.filter.chains
    user = _Callers(chains, [DOCKER_USER])
    host = _Callers(chains, [INPUT, "OUTPUT"])
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


def _contradiction(
    family: Family, rule: Rule, ends: t.Optional[t.FrozenSet[str]], interface: str, address: str
) -> t.Optional[t.List[str]]:
    """The bridges of Docker's that a rule is bound to, if none of their networks has the address that it asks for."""
    named = rule.value(interface)
    names = frozenset((named,)) if named is not None else ends
    value = rule.value(address)
    bridges = family.survey.networks_by_bridge
    if not names or value is None or not all(name in bridges for name in names):
        return None
    try:
        wanted = of_network(value)
    except ValueError:
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
        fix=_for_source(family, rule) if coming and rule.target in DENYING else None,
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
        Denied(published, source, verdict=_verdict(rule))
        for published in (family.published_by_host_port.get(low, ()) if low == high else ())
        if published.dnat and not published.loopback and published.binding.protocol == rule.value("protocol")
    ]
    return _one_fix(family, "Say it in DOCKER-USER, for the container.", denied) if denied else None


def _loopback(family: Family, user: _Callers, host: _Callers) -> t.Iterator[Finding]:
    """Rules of DOCKER-USER for the host's traffic with itself."""
    for name in user.names:
        if name in host.names:
            continue
        for position, rule in enumerate(user.chains[name].rules, 1):
            field = next((key for key in ("in_interface", "out_interface") if rule.value(key) == "lo"), None)
            if field is None or not is_foreign(rule):
                continue
            site = Site(name, position, position)
            words = delete_words(family, site)
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
                fix=Fix(
                    "Delete it: nothing changes.",
                    (command_task("Take the rule out of %s" % name, words),),
                    (shell(words),),
                ),
            )


# nftables ------------------------------------------------------------------------------------------------------------


def _input_of_nftables(survey: Survey) -> t.Iterator[Finding]:
    """Tables of nftables that stop packets to the host itself, and nothing that is forwarded."""
    nft = survey.snapshot.nft
    if nft is None:
        return
    families = {"ip": (IPV4,), "ip6": (IPV6,), "inet": (IPV4, IPV6)}
    covering = {
        (chain.family, chain.table)
        for chain in nft.base_chains
        if chain.stops and chain.hook in ("forward", "prerouting", "ingress")
    }
    for chain in nft.base_chains:
        if not chain.stops or chain.hook != "input" or (chain.family, chain.table) in covering:
            continue
        ports: t.List[Published] = []
        for name in families.get(chain.family, ()):
            family = survey.family(name)
            spoken = _spoken_for(family)
            ports += [
                published
                for published in [*_forwarded(family), *_of_swarm(family)]
                if _key(published) not in spoken
                and _public(intersect(family.let_in(published)[0], family.remote), name)
            ]
        if not ports:
            continue
        names = list(dict.fromkeys(_port_text(published) for published in ports))
        yield Finding(
            "never_read",
            MEDIUM,
            "Chain %s of nftables' table %s %s stops packets to the host itself only (hook input). Connections to"
            " published ports are forwarded and never pass there: whatever it is to keep out reaches %s. Hook the same"
            " rules to forward, or write policies." % (chain.chain, chain.family, chain.table, listed(names)),
            Place(ports[0].family, "nft", chain.table, chain.chain),
            tuple(dict.fromkeys(published.affected() for published in ports)),
            ("what chain %s of table %s %s stops" % (chain.chain, chain.family, chain.table),),
        )


# Docker's own chains -------------------------------------------------------------------------------------------------


def docker_chain_edited(survey: Survey) -> t.Iterator[Finding]:
    """Rules in Docker's own chains that Docker did not write."""
    for family in survey.families:
        if family.dump is None:
            continue
        for table, name in CHAINS:
            chain = family.table(table).chains.get(name)
            for position, rule in enumerate(chain.rules if chain is not None else (), 1):
                site = Site(name, position, position)
                why = ""
                if is_of_docker(table, name, rule, family.name):
                    why = _no_dnat_of_docker(family, rule) if (table, name) == ("nat", "DOCKER") else ""
                    if not why:
                        continue
                yield _edited(family, table, site, rule, why)


def _no_dnat_of_docker(family: Family, rule: Rule) -> str:
    """Why a DNAT that has Docker's shape is none of Docker's; empty if it may be."""
    target, host_port = rule.value("to_destination"), rule.value("destination_port")
    if target is None or host_port is None:
        return ""
    if not any(field.name == "in_interface" for field in rule.fields) and _has_proxy(family):
        return "it has no exception for the container's own bridge, which Docker's have while docker-proxy is on"
    address, _colon, port = target.rpartition(":")
    container = family.survey.owners.get(address.strip("[]"))
    if container is None or not port.isdigit() or not host_port.isdigit():
        return ""
    wanted = (rule.value("protocol"), int(host_port), int(port))
    if any((item.protocol, item.host_port, item.container_port) == wanted for item in container.current_ports):
        return ""
    return "%s does not publish that port" % container.name


def _has_proxy(family: Family) -> bool:
    """True if Docker leaves the host's traffic with itself to docker-proxy: then its jump in OUTPUT spares loopback."""
    output = family.table("nat").chains.get("OUTPUT")
    return output is not None and any(
        rule.target == "DOCKER" and field.name == "destination" and field.negated
        for rule in output.rules
        for field in rule.fields
    )


def _edited(family: Family, table: str, site: Site, rule: Rule, why: str) -> Finding:
    message = (
        "Rule %d of %s in table %s (%s) is not Docker's%s. Docker empties this chain and fills it anew when it starts,"
        % (
            site.position,
            site.chain,
            table,
            FAMILY_TEXTS[family.name],
            ": " + why if why else "",
        )
    )
    message += " so the rule is gone then."
    made: t.Optional[Fix] = None
    if table == "filter":
        message += " Rules of yours belong into DOCKER-USER."
        made = _instead(family, site, rule)
    elif rule.target == "DNAT":
        message += " Publish the port with the container instead (-p)."
    return Finding(
        "docker_chain_edited",
        MEDIUM,
        message,
        family.place(site, table),
        fix=made,
    )


def _instead(family: Family, site: Site, rule: Rule) -> t.Optional[Fix]:
    """Policies that stop the same people, if all that the rule stops are published ports."""
    if rule.target not in DENYING:
        return None
    stopped: t.Dict[t.Tuple[str, Binding], t.List[t.Tuple[Published, Intervals]]] = {}
    for published in family.published:
        for flow in family.inbound(published) if not published.loopback else ():
            for outcome in family.walk(flow, FORWARD, EVERYTHING[family.name]):
                if outcome.site is not None and outcome.site[:2] == site[:2] and not outcome.reasons:
                    stopped.setdefault(_key(published), []).append((published, outcome.peers))
    if not stopped:
        return None
    denied = [
        Denied(items[0][0], join(piece for _published, peers in items for piece in peers), verdict=_verdict(rule))
        for items in stopped.values()
    ]
    interface = rule.value("in_interface") or ""
    found = _one_fix(
        family,
        "Say it in DOCKER-USER, for the container, and take the rule out.",
        denied,
        "" if interface.endswith("+") else interface,
    )
    if found is None:
        return None
    words = delete_words(family, site)
    return found._replace(
        tasks=(*found.tasks, command_task("Take the rule out of Docker's chain", words)),
        commands=(*found.commands, shell(words)),
    )
