# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Rules of INPUT, where the host's own services are guarded, for ports that Docker forwards."""

from __future__ import annotations

import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import (
    INFO,
    MEDIUM,
    Affected,
    Finding,
    Place,
    listed,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._passage import (
    MOST_BANNED,
    Callers,
    Stopped,
    forwarded,
    is_spoken_for,
    key,
    names_port,
    of_swarm,
    one_fix,
    peers_in,
    peers_text,
    port_text,
    public,
    rules_text,
    share,
    verdict,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._policies import Denied
from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import (
    FAMILY_TEXTS,
    Family,
    Published,
    Survey,
)
from ansible_collections.quaywall.docker.plugins.module_utils._chain import DENYING
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import (
    EVERYTHING,
    Intervals,
    intersect,
    join,
    of_network,
    overlaps,
)
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6
from ansible_collections.quaywall.docker.plugins.module_utils._walk import (
    ACCEPT,
    ANY_PORT,
    PEER,
    SOURCE,
    Flow,
    Outcome,
    Site,
    interface_matches,
)

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._inventory import Binding

INPUT = "INPUT"
_INFINITIVES = {"DROP": "drop", "REJECT": "reject", "TARPIT": "hold"}


#: An interface, and what becomes of those who come in through it.
_Way = t.Tuple[str, t.List[Outcome]]


class Input:
    """What INPUT says of ports whose connections are forwarded, as DNAT comes before it."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._chains = family.filter.chains
        self._callers = Callers(self._chains, [INPUT])
        self._addresses = {
            item.name: [
                address.partition("/")[0] for address in item.addresses if (":" in address) == (family.name == IPV6)
            ]
            for item in family.survey.snapshot.interfaces
        }

    def findings(self) -> t.Iterator[Finding]:
        start = self._chains.get(INPUT)
        if start is None or not (start.rules or start.policy in DENYING):
            return
        named: t.Dict[Site, t.List[Stopped]] = {}
        bans: t.Dict[str, t.List[Stopped]] = {}
        default: t.List[Stopped] = []
        allowing: t.Dict[Site, t.List[Published]] = {}
        ways = self._ways()
        for published in [*forwarded(self._family), *of_swarm(self._family)]:
            outcomes = [
                (way, self._family.walk(self._flow(published, way), INPUT, EVERYTHING[self._family.name]))
                for way in ways
            ]
            self._note_allowing(published, outcomes, allowing)
            general: t.List[Stopped] = []
            for item in self._stopped(published, outcomes):
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
            found = [item for item in bans[chain] if public(item.open, self._family.name)]
            if found:
                yield self._banned(chain, found)
        default = [item for item in default if public(item.open, self._family.name)]
        if default:
            yield self._default(default)
        for site in sorted(set(allowing) - set(named)):
            yield self._allowing(site, allowing[site])

    # What INPUT does

    def _flow(self, published: Published, interface: str) -> Flow:
        """A first packet to the host's port, as INPUT would see it if it came there."""
        family, binding = self._family, published.binding
        host = family.host_side(binding)
        own = self._addresses.get(interface)
        if own and binding.host_address in ("", "0.0.0.0", "::"):
            host = of_network(own[0])
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
            mark=family.mark,
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

    def _stopped(self, published: Published, ways: t.Sequence[_Way]) -> t.Iterator[Stopped]:
        family = self._family
        let_in: t.Optional[Intervals] = None
        for interface, outcomes in ways:
            accepted: t.Optional[Intervals] = None
            for outcome in outcomes:
                if not outcome.denies or self._is_obscure(outcome, published):
                    continue
                if let_in is None:
                    if is_spoken_for(family, published):
                        return
                    let_in = intersect(family.let_in(published)[0], family.remote)
                if accepted is None:
                    accepted = peers_in(other for other in outcomes if not other.denies)
                found = intersect(outcome.peers, let_in)
                # Whoever is denied in any case is denied for certain.
                reasons = outcome.reasons if overlaps(outcome.peers, accepted) else ()
                if found:
                    yield Stopped(published, outcome.site, interface, outcome.peers, found, reasons)

    def _is_obscure(self, outcome: Outcome, published: Published) -> bool:
        """True for a rule of which is not understood what it stops, and that does not name the port either."""
        if outcome.site is None:
            return False
        rule = self._callers.rule(outcome.site)
        return not rule.understood and not names_port(rule, published.binding.host_port)

    def _naming(self, site: Site, port: int) -> t.Optional[Site]:
        """The rule that names the port: the one that decides, or a jump that leads to it."""
        for item in self._callers.upwards(site):
            if names_port(self._callers.rule(item), port):
                return item
        return None

    def _is_default(self, stopped: t.Sequence[Stopped]) -> bool:
        return share(join(piece for item in stopped for piece in item.said), self._family.name) > MOST_BANNED

    # Findings

    def _affected(self, stopped: t.Iterable[Stopped], meant: t.Optional[bool]) -> t.Tuple[Affected, ...]:
        by_port: t.Dict[t.Tuple[str, Binding], t.List[Stopped]] = {}
        for item in stopped:
            by_port.setdefault(key(item.published), []).append(item)
        return tuple(
            items[0].published.affected(
                peers=peers_text(self._family, join(piece for item in items for piece in item.open)),
                meant=meant,
            )
            for items in by_port.values()
        )

    def _denied(self, stopped: t.Iterable[Stopped]) -> t.List[Denied]:
        """What INPUT says of each port, for a policy."""
        by_port: t.Dict[t.Tuple[str, Binding], t.List[Stopped]] = {}
        for item in stopped:
            by_port.setdefault(key(item.published), []).append(item)
        return [
            Denied(
                items[0].published,
                join(piece for item in items for piece in item.said),
                verdict="DROP" if items[0].site is None else verdict(self._callers.rule(items[0].site)),
            )
            for items in by_port.values()
        ]

    def _reasons(self, stopped: t.Sequence[Stopped]) -> t.Tuple[str, ...]:
        if any(not item.reasons for item in stopped):
            return ()
        return tuple(dict.fromkeys(reason for item in stopped for reason in item.reasons))

    def _words(self, stopped: t.Iterable[Stopped]) -> str:
        return listed(list(dict.fromkeys(port_text(item.published) for item in stopped)))

    def _where(self, stopped: t.Sequence[Stopped]) -> str:
        """Where a connection to the first port goes."""
        published = stopped[0].published
        binding, endpoint = published.binding, published.endpoint
        address = endpoint.address if endpoint is not None else "the container"
        if ":" in address:
            address = "[%s]" % address
        return "Docker leads port %d to %s:%d" % (binding.host_port, address, binding.container_port)

    def _named(self, site: Site, stopped: t.List[Stopped]) -> Finding:
        family = self._family
        rule = self._callers.rule(site)
        verb = _INFINITIVES.get(str(rule.target), "stop")
        ports = sorted({item.published.binding.host_port for item in stopped})
        interface = rule.value("in_interface") or ""
        whom = peers_text(family, join(piece for item in stopped for piece in item.open))
        return Finding(
            "never_read",
            MEDIUM,
            "%s (%s) %s to %s connections%s to %s, but INPUT is for services of the host itself: %s"
            " and forwards the connection, which INPUT never sees. Open all the same: %s."
            % (
                rules_text(site),
                FAMILY_TEXTS[family.name],
                "is" if site.last == site.position else "are",
                verb,
                "" if whom == "anyone" else " of %s" % whom,
                "port%s %s" % ("" if len(ports) == 1 else "s", listed([str(port) for port in ports])),
                self._where(stopped),
                self._words(stopped),
            ),
            family.place(site),
            self._affected(stopped, True),
            self._reasons(stopped),
            one_fix(
                family,
                "Say it where Docker's traffic passes: in DOCKER-USER, for the container. The rule in INPUT may stay"
                " for a service of the host on that port, or go.",
                self._denied(stopped),
                "" if interface.endswith("+") else interface,
            ),
        )

    def _banned(self, chain: str, stopped: t.List[Stopped]) -> Finding:
        family = self._family
        sites = {item.site for item in stopped if item.site is not None}
        site = sites.pop() if len(sites) == 1 else None
        whom = peers_text(family, join(piece for item in stopped for piece in item.open))
        return Finding(
            "never_read",
            MEDIUM,
            "%s (%s) keeps %s from the host itself only: it is read from INPUT, and connections to published ports are"
            " forwarded and never pass there. Open to them all the same: %s. Have DOCKER-USER read the same bans."
            % (
                rules_text(site) if site is not None else "Chain %s" % chain,
                FAMILY_TEXTS[family.name],
                whom,
                self._words(stopped),
            ),
            family.place(site, chain=chain),
            self._affected(stopped, None),
            self._reasons(stopped),
            one_fix(family, "Keep them out in DOCKER-USER too, for each container.", self._denied(stopped)),
        )

    def _default(self, stopped: t.List[Stopped]) -> Finding:
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
            one_fix(
                family,
                "Give these ports what INPUT says of them. Leave out the policies of those that are for everybody.",
                self._denied(stopped),
            ),
            subject="default",
        )

    def _note_allowing(
        self, published: Published, ways: t.Sequence[_Way], found: t.Dict[Site, t.List[Published]]
    ) -> None:
        """Rules that allow the port in INPUT: they open nothing, and without them nothing closes."""
        sites = {
            self._naming(outcome.site, published.binding.host_port)
            for _interface, outcomes in ways
            for outcome in outcomes
            if outcome.verdict == ACCEPT and outcome.site is not None
        }
        for site in sites:
            if site is not None:
                found.setdefault(site, []).append(published)

    def _allowing(self, site: Site, ports: t.Sequence[Published]) -> Finding:
        family = self._family
        return Finding(
            "never_read",
            INFO,
            "%s (%s) allows a port that Docker forwards: it does not decide about %s, neither to open nor,"
            " once it is gone, to close."
            % (
                rules_text(site),
                FAMILY_TEXTS[family.name],
                listed([port_text(published) for published in ports]),
            ),
            family.place(site),
            tuple(published.affected() for published in ports),
        )


def input_of_nftables(survey: Survey) -> t.Iterator[Finding]:
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
            ports += [
                published
                for published in [*forwarded(family), *of_swarm(family)]
                if not is_spoken_for(family, published)
                and public(intersect(family.let_in(published)[0], family.remote), name)
            ]
        if not ports:
            continue
        names = list(dict.fromkeys(port_text(published) for published in ports))
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
