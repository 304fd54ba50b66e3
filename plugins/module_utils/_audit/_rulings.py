# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The rules of DOCKER-USER that decide, what each of them names, and whom it really stops or lets in.

The rules are read in a shorter form that decides the same: a jump into a chain that denies whatever enters it (a
C(LOGDROP)) is itself the deny, and rules that only count or log are left out. Bans are left out too: a rule that denies
some sources whatever they want (fail2ban, CrowdSec, a set of addresses) does what it says, and thousands of them would
hide everything else. So nobody counts as stopped, here, only because he is banned.
"""

from __future__ import annotations

import bisect
import functools
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import (
    FAMILY_TEXTS,
    Endpoint,
    Family,
    Hit,
    Published,
    Survey,
)
from ansible_collections.quaywall.docker.plugins.module_utils._chain import (
    CONTINUING,
    DENYING,
    DOCKER_USER,
    Chain,
    is_managed,
    mark_of,
    only_established,
)
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import (
    EVERYTHING,
    NOTHING,
    Intervals,
    covers,
    intersect,
    join,
    of_network,
    of_range,
    overlaps,
    size,
    subtract,
)
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6, Rule, field, port_ranges
from ansible_collections.quaywall.docker.plugins.module_utils._walk import (
    ACCEPT,
    ANY_PORT,
    PEER,
    RETURN,
    SOURCE,
    Flow,
    Outcome,
    Program,
    Site,
    interface_matches,
)

ALL_PORTS: Intervals = (ANY_PORT,)
#: A rule for so many ports is not about a port: C(1:65535), C(0:32767), C(1024:65535).
_WIDE = 16384
#: Ways to one rule that are told apart, and jumps in a row that are followed.
_MOST_WAYS = 32
_DEEPEST = 400
#: Rounds in which chains are looked for that deny all that enters them.
_MOST_ROUNDS = 20
#: Ports that a program may choose to send from, though the kernel would not.
_LOW_PORTS = (1024, 32767)
_LOW_PORTS_REASON = "whether the container sends from a port below 32768, as dnsmasq does"
#: Rules that may be read again to find out what fixes do: of a host with so many rules not every finding has one.
_MOST_TRIED = 300000
#: Bits of a source's prefix from which on it is some sources, and not just about everybody.
_NARROW = 4


class Scope(t.NamedTuple):
    """What a rule, with the jumps of one way that leads to it, says of the packets that it is for.

    ``ports`` and ``original_ports`` are the destination's as DOCKER-USER sees it and as the client sent it, None for
    any; ``negated``: only by exclusion. ``by_container``: it names containers by address, host port or a set.
    ``named_sources``: it is for some sources only. ``more`` is what no policy of ours can say.
    """

    protocol: str = ""
    ports: t.Optional[Intervals] = None
    negated: bool = False
    original_ports: t.Optional[Intervals] = None
    original_address: str = ""
    destinations: t.Optional[Intervals] = None
    by_host: bool = False
    by_container: bool = False
    sources: t.Optional[Intervals] = None
    named_sources: bool = False
    in_interface: str = ""
    in_negated: bool = False
    out_interface: str = ""
    states: t.FrozenSet[str] = frozenset()
    direction: str = ""
    more: t.Tuple[str, ...] = ()

    @property
    def wide(self) -> bool:
        """True if it is for any port, or for so many that it is not about a port."""
        if self.ports is None:
            return True
        return not self.negated and size(self.ports) >= _WIDE

    def comes_in(self, interface: str) -> bool:
        """True if packets that come in through the interface match."""
        return not self.in_interface or interface_matches(self.in_interface, interface) != self.in_negated

    def fits(self, published: Published) -> bool:
        """True if connections to a published port may match, as far as ports and addresses tell."""
        binding, endpoint = published.binding, published.endpoint
        if self.protocol not in ("", "all", binding.protocol):
            return False
        if self.ports is not None and not holds(self.ports, binding.container_port):
            return False
        if self.original_ports is not None and not holds(self.original_ports, binding.host_port):
            return False
        return self.destinations is None or (endpoint is not None and holds(self.destinations, endpoint.number))


class Meant(t.NamedTuple):
    """A published port whose host port a rule names, while packets carry another one when the rule is read.

    ``outcomes`` are what would become of its traffic if packets carried the host port.
    """

    published: Published
    port: int
    outcomes: t.Tuple[Outcome, ...]


class Stopped(t.NamedTuple):
    """Answers that a rule stops, though what they answer went through.

    To connections of a container's own, or (with ``published``) of clients to a published port.
    """

    site: Site
    endpoint: Endpoint
    published: t.Optional[Published]
    peers: Intervals
    reasons: t.Tuple[str, ...]


class Ruling(t.NamedTuple):
    """A rule that denies or allows. ``order`` is its place in the order in which the rules are read.

    ``ways`` are the jumps that lead to it, ``scopes`` what it says by each.
    """

    site: Site
    rule: Rule
    verdict: str
    managed: bool
    order: int
    ways: t.Tuple[t.Tuple[Site, ...], ...]
    scopes: t.Tuple[Scope, ...]

    @property
    def scope(self) -> Scope:
        return self.scopes[0]

    def scope_for(self, published: Published) -> Scope:
        """What it says by the way that a connection to a published port comes."""
        return next((scope for scope in self.scopes if scope.fits(published)), self.scopes[0])


def holds(numbers: Intervals, number: int) -> bool:
    return any(low <= number <= high for low, high in numbers)


# What a rule says ----------------------------------------------------------------------------------------------------


def _narrowed(one: t.Optional[Intervals], two: Intervals, everything: Intervals, negated: bool) -> Intervals:
    known = everything if one is None else one
    return subtract(known, two) if negated else intersect(known, two)


class _Reader:
    """Collects the fields of rules into a scope."""

    def __init__(self, family: str) -> None:
        self._everything = EVERYTHING[family]
        self._said: t.Dict[str, t.Any] = {}
        self._more: t.List[str] = []
        self._positive_ports = False

    def read(self, rule: Rule) -> None:
        for item in rule.fields:
            name = item.name
            if name in ("jump", "goto"):
                break
            if name in ("match", "comment", "ctproto"):
                continue
            reader = _READERS.get(name)
            try:
                known = reader is not None and reader(self, item.value, item.negated)
            except ValueError:
                known = False
            if not known:
                self._more.append(item.text)

    def scope(self) -> Scope:
        if "ports" in self._said:
            self._said["negated"] = not self._positive_ports
        return Scope(more=tuple(self._more), **self._said)

    def _narrow(self, name: str, wanted: Intervals, negated: bool, everything: Intervals) -> None:
        self._said[name] = _narrowed(self._said.get(name), join(wanted), everything, negated)

    def protocol(self, value: str, negated: bool) -> bool:
        self._said["protocol"] = value
        return not negated

    def source(self, value: str, negated: bool) -> bool:
        self._narrow("sources", of_network(value), negated, self._everything)
        self._said["named_sources"] = self._said.get("named_sources", False) or not negated
        return True

    def source_range(self, value: str, negated: bool) -> bool:
        self._narrow("sources", of_range(value), negated, self._everything)
        self._said["named_sources"] = self._said.get("named_sources", False) or not negated
        return True

    def destination(self, value: str, negated: bool) -> bool:
        self._addresses(of_network(value), negated)
        return not negated

    def destination_range(self, value: str, negated: bool) -> bool:
        self._addresses(of_range(value), negated)
        return not negated

    def _addresses(self, wanted: Intervals, negated: bool) -> None:
        self._narrow("destinations", wanted, negated, self._everything)
        if not negated and len(wanted) == 1 and wanted[0][0] == wanted[0][1]:
            self._said["by_host"] = self._said["by_container"] = True

    def match_set(self, value: str, negated: bool) -> bool:
        if value.rpartition(" ")[2].split(",")[0] == "dst":
            self._said["by_container"] = self._said.get("by_container", False) or not negated
        elif not negated:
            self._said["named_sources"] = True
        return False

    def ports(self, value: str, negated: bool) -> bool:
        self._narrow("ports", tuple(port_ranges(value)), negated, ALL_PORTS)
        self._positive_ports = self._positive_ports or not negated
        return True

    def original_port(self, value: str, negated: bool) -> bool:
        self._narrow("original_ports", tuple(port_ranges(value)), negated, ALL_PORTS)
        self._said["by_container"] = self._said.get("by_container", False) or not negated
        return not negated

    def original_address(self, value: str, negated: bool) -> bool:
        self._said["original_address"] = value
        return not negated and "/" not in value

    def reply_address(self, value: str, negated: bool) -> bool:
        self._said["by_container"] = self._said.get("by_container", False) or (not negated and "/" not in value)
        return False

    def in_interface(self, value: str, negated: bool) -> bool:
        self._said["in_interface"], self._said["in_negated"] = value, negated
        return True

    def out_interface(self, value: str, negated: bool) -> bool:
        if not negated:
            self._said["out_interface"] = value
        # A container's bridge is what a policy for it implies.
        return not negated

    def states(self, value: str, negated: bool) -> bool:
        words = frozenset(value.split(","))
        self._said["states"] = words if not negated else frozenset()
        return bool(words & {"NEW", "DNAT"}) and not negated

    def direction(self, value: str, negated: bool) -> bool:
        self._said["direction"] = value
        return value == "ORIGINAL" and not negated

    def tcp_flags(self, value: str, negated: bool) -> bool:
        # The first packet of a connection; replies pass anyhow behind ESTABLISHED.
        mask, _blank, compare = value.partition(" ")
        return not negated and compare == "SYN" and "SYN" in mask.split(",")


_READERS: t.Mapping[str, t.Callable[[_Reader, str, bool], bool]] = {
    "protocol": _Reader.protocol,
    "source": _Reader.source,
    "source_range": _Reader.source_range,
    "destination": _Reader.destination,
    "destination_range": _Reader.destination_range,
    "match_set": _Reader.match_set,
    "destination_port": _Reader.ports,
    "destination_ports": _Reader.ports,
    "ports": _Reader.ports,
    "ctorigdstport": _Reader.original_port,
    "ctorigdst": _Reader.original_address,
    "ctreplsrc": _Reader.reply_address,
    "in_interface": _Reader.in_interface,
    "out_interface": _Reader.out_interface,
    "ctstate": _Reader.states,
    "state": _Reader.states,
    "ctdir": _Reader.direction,
    "tcp_flags": _Reader.tcp_flags,
}


def scope_of(rules: t.Iterable[Rule], family: str = IPV4) -> Scope:
    """What jumps and a rule, read one after the other, say together."""
    reader = _Reader(family)
    for rule in rules:
        reader.read(rule)
    return reader.scope()


_BARE = ("match", "comment", "jump", "goto", "reject_with")


def _unconditional(rule: Rule) -> bool:
    return all(item.name in _BARE and (item.name != "match" or item.value == "comment") for item in rule.fields)


def _is_narrow(value: str) -> bool:
    length = value.partition("/")[2]
    return not length.isdigit() or int(length) >= _NARROW


#: What a ban may say besides its sources.
_BAN_FIELDS = frozenset(("match", "comment", "source_range", "in_interface", "protocol", "ctstate", "state"))


def is_ban(rule: Rule) -> bool:
    """True if the rule, which denies, is for some sources, whatever they want: it names no destination."""
    sources = False
    for item in rule.fields:
        if item.name in ("jump", "goto"):
            break
        if item.name == "source":
            sources = sources or (not item.negated and _is_narrow(item.value))
        elif item.name == "match_set":
            if item.value.rpartition(" ")[2] != "src":
                return False
            sources = sources or not item.negated
        elif item.name not in _BAN_FIELDS:
            return False
        elif item.name == "source_range":
            sources = sources or not item.negated
    return sources


# The rules of a family -----------------------------------------------------------------------------------------------


class Rulings:
    """What the rules of DOCKER-USER and of the chains below it do, one family at a time."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._verdicts: t.Dict[str, str] = {}
        self._kept: t.Dict[str, t.List[int]] = {}
        self._left = _MOST_TRIED
        if self.judged:
            self._find_denying()

    @property
    def judged(self) -> bool:
        """True if there is anything to judge: user's rules, and Docker's own that forward published ports."""
        return self.family.docker_user is not None and self.family.docker_manages

    @property
    def survey(self) -> Survey:
        return self.family.survey

    @functools.cached_property
    def standing(self) -> t.Tuple[str, ...]:
        """Reasons that every verdict about these rules hangs on."""
        family = self.family
        reasons: t.List[str] = []
        read = family.jumps or any(
            rule.target == DOCKER_USER
            for name, chain in family.filter.chains.items()
            if name not in family.user_chains
            for rule in chain.rules
        )
        if not read:
            reasons.append("FORWARD, which does not read DOCKER-USER now")
        if family.survey.snapshot.inventory is None:
            reasons.append("which containers there are")
        return tuple(reasons)

    def affords(self) -> bool:
        """True if one more fix may be tried; each costs a reading of all rules."""
        if self._left <= 0:
            return False
        self._left -= len(self.family.reached)
        return True

    @functools.cached_property
    def policies(self) -> t.Set[str]:
        """The names of the policies that are there, in either family."""
        return {
            mark.policy
            for family in self.survey.families
            for rule in (family.docker_user.rules if family.docker_user is not None else ())
            for mark in [mark_of(rule)]
            if mark is not None
        }

    # The shorter form

    def _find_denying(self) -> None:
        """The chains that deny whatever enters them, and how."""
        chains = self.family.filter.chains
        misprinted = self.family.program().misprinted
        names = [name for name in self._in_order if name != DOCKER_USER and name not in misprinted]
        # Chains that are read last lead nowhere: mostly one round finds them all.
        for _round in range(_MOST_ROUNDS):
            found = 0
            for name in reversed(names):
                verdict = "" if name in self._verdicts else self._verdict_of(chains[name])
                if verdict:
                    self._verdicts[name] = verdict
                    found += 1
            if not found:
                return

    @property
    def _in_order(self) -> t.List[str]:
        """DOCKER-USER and the chains that it leads to, in the order in which they are first read."""
        return list(dict.fromkeys(item.site.chain for item in self.family.reached))

    def _verdict_of(self, chain: Chain) -> str:
        for rule in chain.rules:
            target = rule.target or ""
            verdict = target if target in DENYING else self._verdicts.get(target, "")
            if verdict and _unconditional(rule):
                return verdict
            if not (verdict or not target or target in CONTINUING):
                return ""
        return ""

    def _short(self, rule: Rule) -> t.Optional[Rule]:
        """The rule in the shorter form; None if it is not needed."""
        target = rule.target or ""
        if target in self._verdicts:
            head = []
            for item in rule.fields:
                if item.name in ("jump", "goto"):
                    break
                head.append(item)
            rule = Rule((*head, field("jump", self._verdicts[target])))
            target = self._verdicts[target]
        if target in DENYING:
            return None if is_ban(rule) else rule
        if target in CONTINUING and target not in ("MARK", "CONNMARK"):
            return None
        return rule if target else None

    @functools.cached_property
    def program(self) -> Program:
        """The table with the chains in the shorter form."""
        chains = dict(self.family.filter.chains)
        changed = []
        for name in self.family.user_chains - set(self._verdicts):
            rules: t.List[Rule] = []
            kept: t.List[int] = []
            same = True
            for position, rule in enumerate(chains[name].rules, 1):
                short = self._short(rule)
                same = same and short is rule
                if short is not None:
                    rules.append(short)
                    kept.append(position)
            if not same:
                self._kept[name] = kept
                chains[name] = chains[name]._replace(rules=tuple(rules))
                changed.append(name)
        return self.family.program().with_chains(chains, changed) if changed else self.family.program()

    def without(self, sites: t.Collection[Site], marked: t.Collection[Site] = ()) -> Program:
        """The table in the shorter form without some rules.

        :param marked: rules that become C(ACCEPT): what would only return from its chain is told from the rest.
        """
        program = self.program
        by_chain: t.Dict[str, t.Dict[int, bool]] = {}
        for site in (*sites, *marked):
            by_chain.setdefault(site.chain, {})[site.position] = site in marked
        chains = dict(program.chains)
        nothing, accept = Rule(()), field("jump", ACCEPT)
        for name, changes in by_chain.items():
            kept = self._kept.get(name)
            rules = list(chains[name].rules)
            for index, rule in enumerate(rules):
                change = changes.get(kept[index] if kept is not None else index + 1)
                if change is not None:
                    head = [item for item in rule.fields if item.name not in ("jump", "goto")]
                    rules[index] = Rule((*head, accept)) if change else nothing
            chains[name] = chains[name]._replace(rules=tuple(rules))
        return program.with_chains(chains, by_chain)

    def walk(
        self, flow: Flow, within: t.Optional[Intervals] = None, program: t.Optional[Program] = None
    ) -> t.List[Outcome]:
        """What becomes of a flow in DOCKER-USER, bans aside; the sites are those of the rules as they stand."""
        outcomes = (program or self.program).walk(DOCKER_USER, flow, within)
        return [outcome._replace(site=self._standing_site(outcome.site)) for outcome in outcomes]

    def _standing_site(self, site: t.Optional[Site]) -> t.Optional[Site]:
        if site is None:
            return None
        kept = self._kept.get(site.chain)
        position = site.position if kept is None else kept[site.position - 1]
        return Site(site.chain, position, position)

    # Rules that decide

    @functools.cached_property
    def _ways(self) -> t.Dict[str, t.List[t.Tuple[Site, ...]]]:
        """The jumps that lead to each chain, by each way (some of them, where there are many)."""
        chains = self.family.filter.chains
        jumps: t.Dict[str, t.List[t.Tuple[str, Site]]] = {}
        for item in self.family.reached:
            target = item.rule.target or ""
            if target in chains and target not in self._verdicts:
                jumps.setdefault(item.site.chain, []).append((target, item.site))
        found: t.Dict[str, t.List[t.Tuple[Site, ...]]] = {}
        stack: t.List[t.Tuple[str, t.Tuple[Site, ...]]] = [(DOCKER_USER, ())]
        while stack:
            name, way = stack.pop()
            known = found.setdefault(name, [])
            if len(known) >= _MOST_WAYS:
                continue
            known.append(way)
            if len(way) < _DEEPEST:
                passed = {site.chain for site in way} | {name}
                stack += [
                    (target, (*way, site)) for target, site in reversed(jumps.get(name, ())) if target not in passed
                ]
        return found

    def _rulings(self, wanted: t.Callable[[str], bool]) -> t.List[Ruling]:
        if not self.judged:
            return []
        found = []
        for order, item in enumerate(self.family.reached):
            if item.site.chain in self._verdicts:
                continue
            target = item.rule.target or ""
            verdict = self._verdicts.get(target, target)
            if not wanted(verdict) or (verdict in DENYING and self._short(item.rule) is None):
                continue
            ways = tuple(self._ways.get(item.site.chain, ())) or ((),)
            scopes = tuple(
                scope_of([*(self.family.rule(site) for site in way), item.rule], self.family.name) for way in ways
            )
            managed = is_managed(item.rule)
            found.append(Ruling(item.site, item.rule, verdict, managed, order, ways, scopes))
        return found

    @functools.cached_property
    def denies(self) -> t.List[Ruling]:
        """The rules that deny and are no bans, in the order in which they are read."""
        return self._rulings(lambda verdict: verdict in DENYING)

    @functools.cached_property
    def allows(self) -> t.List[Ruling]:
        """The rules that end the reading of their chain without a denial, in the order in which they are read."""
        return self._rulings(lambda verdict: verdict in (ACCEPT, RETURN))

    @functools.cached_property
    def deny_at(self) -> t.Dict[Site, Ruling]:
        return {ruling.site: ruling for ruling in self.denies}

    @functools.cached_property
    def established(self) -> t.List[Ruling]:
        """The rules that let replies pass and ask nothing else."""
        return [ruling for ruling in self.allows if only_established(ruling.rule) and _has_established(ruling.rule)]

    @functools.cached_property
    def established_first(self) -> t.Optional[int]:
        """The order of the first rule that lets every reply pass; None if there is no such rule in DOCKER-USER."""
        for ruling in self.established:
            rest = [item for item in ruling.rule.fields if item.name not in (*_BARE, "ctstate", "state")]
            if ruling.site.chain == DOCKER_USER and not rest:
                return ruling.order
        return None

    # Whom they hit

    @functools.cached_property
    def outcomes(self) -> t.List[t.Tuple[Published, Flow, t.List[Outcome]]]:
        """What becomes of first packets from outside to each published port, in the order of containers."""
        if not self.judged:
            return []
        return [
            (published, flow, self.walk(flow))
            for published in self.family.published
            if not published.loopback
            for flow in self.family.inbound(published)
        ]

    @functools.cached_property
    def hits(self) -> t.Dict[Site, t.List[Hit]]:
        """The published ports that each deny stops for somebody outside."""
        found: t.Dict[Site, t.List[Hit]] = {}
        remote = self.family.remote
        for published, flow, outcomes in self.outcomes:
            for outcome in outcomes:
                if outcome.site is not None and outcome.denies and overlaps(remote, outcome.peers):
                    found.setdefault(outcome.site, []).append(Hit(published, flow, outcome))
        return found

    def decides(self, ruling: Ruling, flow: Flow, within: t.Optional[Intervals] = None) -> t.List[Outcome]:
        """What a rule decides about a flow."""
        return [outcome for outcome in self.walk(flow, within) if outcome.site == ruling.site]

    def cut_off(self, ruling: Ruling, endpoint: Endpoint, protocol: str, port: int) -> t.List[Outcome]:
        """What a rule stops of a container's neighbours, those that are there."""
        near = self.by_bridge.get(endpoint.bridge, ())
        if len(near) < 2 or self.survey.bridge_netfilter(self.family.name) is not True:
            return []
        # Walked for everybody: a set of peers of its own for each container would be found out about each time.
        outcomes = self.decides(ruling, self.family.neighbour(endpoint, protocol, port))
        return [
            outcome
            for outcome in outcomes
            if any(item.number != endpoint.number and holds(outcome.peers, item.number) for item in near)
        ]

    @functools.cached_property
    def by_bridge(self) -> t.Dict[str, t.List[Endpoint]]:
        """The addresses of running containers by the bridge that they are on."""
        found: t.Dict[str, t.List[Endpoint]] = {}
        for endpoint in self.family.endpoints:
            if endpoint.bridge:
                found.setdefault(endpoint.bridge, []).append(endpoint)
        return found

    @functools.cached_property
    def _free(self) -> t.Dict[str, t.Optional[int]]:
        return {}

    def free_address(self, bridge: str) -> t.Optional[int]:
        """An address of a network that no container has: where one of its containers might be tomorrow."""
        if bridge not in self._free:
            network = self.survey.networks_by_bridge.get(bridge)
            found: t.Optional[int] = None
            for subnet in network.subnets if network is not None else ():
                if (":" in subnet) == (self.family.name == IPV6):
                    low, high = of_network(subnet)[0]
                    found = high - 1
                    while found > low + 1 and found in self.family.endpoints_by_number:
                        found -= 1
                    break
            self._free[bridge] = found
        return self._free[bridge]

    def stranger(self, scope: Scope, port: int) -> t.Optional[Flow]:
        """A first packet from outside to a container that is not there: whom a rule would hit, were it published."""
        bridge = self._bridge_for(scope)
        number = self.free_address(bridge)
        interfaces = [name for name in self.family.ways_in if scope.comes_in(name)]
        if number is None or not interfaces:
            return None
        address = ((number, number),)
        return Flow(
            family=self.family.name,
            peer=SOURCE,
            protocol=scope.protocol if scope.protocol not in ("", "all") else "tcp",
            in_interface=interfaces[0],
            out_interface=bridge,
            address=address,
            destination_ports=(port, port),
            states=frozenset(("NEW", "DNAT")),
            original=(PEER, None),
            # A host port that no rule names.
            original_ports=(ANY_PORT, (0, 0)),
            reply=(address, PEER),
            reply_ports=((port, port), ANY_PORT),
            mark=self.family.mark,
        )

    def _bridge_for(self, scope: Scope) -> str:
        networks = self.survey.networks_by_bridge
        named = [bridge for bridge in networks if interface_matches(scope.out_interface, bridge)]
        if scope.out_interface:
            return named[0] if named else ""
        for bridge, network in networks.items():
            subnets = [subnet for subnet in network.subnets if (":" in subnet) == (self.family.name == IPV6)]
            wanted = scope.destinations
            if wanted is None and subnets:
                return bridge
            if wanted is not None and any(overlaps(wanted, of_network(subnet)) for subnet in subnets):
                return bridge
        return ""

    def in_vain(self, ruling: Ruling, program: t.Optional[Program] = None) -> t.List[Meant]:
        """The published ports that a rule was meant for by their host port, and does not match.

        What the rule would do with the host port is walked: a rule about outgoing connections is not meant for them.
        """
        found: t.List[Meant] = []
        for scope in ruling.scopes:
            if scope.ports is None or scope.wide or scope.negated:
                continue
            for port in self.host_ports(scope.ports):
                for published in self.family.published_by_host_port[port]:
                    matched = scope._replace(original_ports=None)
                    turned = published._replace(binding=published.binding._replace(container_port=port))
                    if published.loopback or matched.fits(published) or not matched.fits(turned):
                        continue
                    for flow in self.family.inbound(published):
                        outcomes = tuple(self.walk(flow._replace(destination_ports=(port, port)), None, program))
                        if any(outcome.site == ruling.site for outcome in outcomes):
                            found.append(Meant(published, port, outcomes))
                            break
        return found

    def overlooked(self, ruling: Ruling, meant: Meant) -> Intervals:
        """Of those whom the rule was to stop who gets in, or of those whom it was to let in who does not.

        Nobody, if none of them is outside.
        """
        denies = ruling.verdict in DENYING
        wanted = join(piece for outcome in meant.outcomes if outcome.site == ruling.site for piece in outcome.peers)
        now = join(
            piece
            for flow in self.family.inbound(meant.published)
            for outcome in self.walk(flow)
            if outcome.denies != denies
            for piece in outcome.peers
        )
        peers = intersect(wanted, now)
        return peers if overlaps(self.family.remote, peers) else NOTHING

    def host_ports(self, ports: Intervals) -> t.Iterator[int]:
        """The host ports of published ports in these ranges."""
        for low, high in ports:
            known = self._all_host_ports
            for index in range(bisect.bisect_left(known, low), bisect.bisect_right(known, high)):
                yield known[index]

    @functools.cached_property
    def _all_host_ports(self) -> t.List[int]:
        return sorted(self.family.published_by_host_port)

    # Answers

    @functools.cached_property
    def stopped(self) -> t.List[Stopped]:
        """Answers that no rule lets pass before a deny stops them.

        Connections of containers to the web and to name servers stand for all that they open. A rule that names its
        sources stops them in both directions, as it says.
        """
        first = self.established_first
        if not self.denies or (first is not None and first < self.denies[0].order):
            return []
        found: t.List[Stopped] = []
        for endpoint in self.family.endpoints:
            if endpoint.bridge:
                for protocol, port in (("tcp", 443), ("udp", 53)):
                    found += self._stopped_to(endpoint, protocol, port)
        for published, flow, outcomes in self.outcomes:
            came = self.through(outcomes, self.family.remote)
            endpoint_or_none = published.endpoint
            if came and endpoint_or_none is not None:
                for reply in self.family.replies(published):
                    if reply.out_interface == flow.in_interface:
                        found += self._stopped_on(reply, came, endpoint_or_none, published)
        return found

    def through(self, outcomes: t.Iterable[Outcome], within: Intervals) -> Intervals:
        passed = join(piece for outcome in outcomes if not outcome.denies for piece in outcome.peers)
        # The very object, where it is all: what is known of it is found by its identity.
        return within if covers(passed, within) else intersect(passed, within)

    def _stopped_to(self, endpoint: Endpoint, protocol: str, port: int) -> t.Iterator[Stopped]:
        family = self.family
        out, back = family.outgoing(endpoint, protocol, port), family.outgoing_replies(endpoint, protocol, port)
        for first, answer in zip(out, back):
            went = self.through(self.walk(first, family.remote), family.remote)
            stopped = self._stopped_on(answer, went, endpoint, None)
            yield from stopped
            if protocol == "udp" and not stopped:
                low = answer._replace(destination_ports=_LOW_PORTS)
                for item in self._stopped_on(low, went, endpoint, None):
                    yield item._replace(reasons=(*item.reasons, _LOW_PORTS_REASON))

    def _stopped_on(
        self, flow: Flow, within: Intervals, endpoint: Endpoint, published: t.Optional[Published]
    ) -> t.List[Stopped]:
        if not within:
            return []
        return [
            Stopped(outcome.site, endpoint, published, outcome.peers, outcome.reasons)
            for outcome in self.walk(flow, within)
            if outcome.denies and outcome.site is not None and self._stops_answers(outcome, published)
        ]

    def _stops_answers(self, outcome: Outcome, published: t.Optional[Published]) -> bool:
        ruling = self.deny_at.get(outcome.site) if outcome.site is not None else None
        if ruling is None:
            return False
        if outcome.reasons and not any(scope.wide for scope in ruling.scopes):
            return False  # a few of the ports that answers may be for
        if published is None:
            return not all(scope.named_sources for scope in ruling.scopes)
        # Who names single machines out there means them: they are no clients of a published port.
        return not all(
            scope.destinations is not None and all(low == high for low, high in scope.destinations)
            for scope in ruling.scopes
        )

    # Words

    def rule_text(self, ruling: Ruling) -> str:
        """C(Rule 3 of DOCKER-USER), with the first jump that leads there from a chain of its own."""
        words = "Rule %d of %s" % (ruling.site.position, self.chain_text(ruling.site.chain))
        way = ruling.ways[0]
        return "%s, where rule %d of %s leads to," % (words, way[0].position, way[0].chain) if way else words

    def chain_text(self, chain: str = DOCKER_USER) -> str:
        return chain if self.family.name == IPV4 else "%s (%s)" % (chain, FAMILY_TEXTS[self.family.name])


def _has_established(rule: Rule) -> bool:
    return any("ESTABLISHED" in (rule.value(name) or "").split(",") for name in ("ctstate", "state"))


def rulings_of(family: Family) -> Rulings:
    """The rulings of a family, found once and kept with it."""
    kept = vars(family)
    if "rulings" not in kept:
        kept["rulings"] = Rulings(family)
    return t.cast(Rulings, kept["rulings"])
