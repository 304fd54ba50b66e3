# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Checks about order: whether FORWARD reads DOCKER-USER first, and rules that nothing is left for."""

from __future__ import annotations

import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._audit._cover import (
    Coverage,
    Dead,
    Ends,
    Taker,
    is_opaque,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._dockers import forward_is_of_docker
from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import (
    CRITICAL,
    INFO,
    LOW,
    MEDIUM,
    Affected,
    Finding,
    Fix,
    Json,
    listed,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._fixes import (
    command,
    command_task,
    delete_words,
    shell,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._passage import kept_out
from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import (
    FAMILY_TEXTS,
    Endpoint,
    Family,
    Published,
    Survey,
    is_foreign,
)
from ansible_collections.quaywall.docker.plugins.module_utils._chain import (
    ALLOWING,
    DENYING,
    DOCKER_USER,
    FORWARD,
    Chain,
    is_bare_return,
    is_established,
    mark_of,
    only_established,
)
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import (
    EVERYTHING,
    NOTHING,
    Intervals,
    join,
    of_network,
    subtract,
)
from ansible_collections.quaywall.docker.plugins.module_utils._plan import is_jump
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV6, Rule, parse
from ansible_collections.quaywall.docker.plugins.module_utils._walk import RETURN, SOURCE, Flow, Outcome, Program, Site

_VERBS = {"ACCEPT": "accepts", RETURN: "returns", "DROP": "drops", "REJECT": "rejects", "TARPIT": "holds"}
_MOST_PROBES = 32
_MOST_LOOKS = 50
_DEFAULT_ROUTES = ("0.0.0.0/0", "::/0")


# Rules in words ------------------------------------------------------------------------------------------------------


def _rules_text(sites: t.Sequence[Site], chain: str) -> str:
    """C(rule 2), C(rules 2 and 3), C(rule 2 of DOCKER-USER): chains are named where they are others."""
    groups: t.Dict[str, t.List[str]] = {}
    for site in sites:
        groups.setdefault(site.chain, []).append(str(site.position))
    return " and ".join(
        "%s %s%s"
        % ("rule" if len(numbers) == 1 else "rules", listed(numbers), "" if name == chain else " of %s" % name)
        for name, numbers in groups.items()
    )


def _policy(rule: Rule) -> str:
    mark = mark_of(rule)
    return "" if mark is None else mark.policy


def _manages(family: Family) -> bool:
    """True where Docker keeps a family's rules in iptables."""
    return family.docker_manages and family.name not in family.survey.nftables


# Chains that are read ------------------------------------------------------------------------------------------------


def _read_from(family: Family, start: str) -> t.List[str]:
    """A chain and those that it leads to, in the order in which they are found."""
    chains = family.filter.chains
    found: t.Dict[str, None] = {}
    todo = [start] if start in chains else []
    while todo:
        name = todo.pop()
        if name not in found:
            found[name] = None
            todo += [str(rule.target) for rule in chains[name].rules if rule.target in chains]
    return list(found)


def _read_elsewhere(family: Family, below: t.Collection[str]) -> t.Set[str]:
    """Chains that others than those named lead to: nothing is known of what comes there."""
    inside = set(below)
    return {
        str(rule.target)
        for name, chain in family.filter.chains.items()
        if name not in inside
        for rule in chain.rules
        if rule.target in inside
    }


# The jump ------------------------------------------------------------------------------------------------------------


def _jump_flows(family: Family) -> t.List[t.Tuple[t.Optional[Published], Flow]]:
    """First packets from outside to published ports; to networks of Docker's if nothing is published."""
    found: t.List[t.Tuple[t.Optional[Published], Flow]] = [
        (published, flow)
        for published in family.published
        if not published.loopback
        for flow in family.inbound(published)
    ]
    if found:
        return found
    probes: t.List[t.Tuple[t.Optional[Published], Flow]] = []
    for network in list(family.survey.networks_by_bridge.values())[:_MOST_PROBES]:
        subnets = [subnet for subnet in network.subnets if (":" in subnet) == (family.name == IPV6)]
        for interface in family.ways_in if subnets else ():
            flow = Flow(
                family=family.name,
                peer=SOURCE,
                protocol="tcp",
                in_interface=interface,
                out_interface=network.bridge,
                address=of_network(subnets[0]),
                destination_ports=(1, 65535),
                states=frozenset(("NEW", "DNAT")),
                mark=family.mark,
            )
            probes.append((None, flow))
    return probes


def _let_past(family: Family) -> t.Tuple[t.List[Affected], t.List[Outcome]]:
    """Whom FORWARD lets in before DOCKER-USER was read, and by which rules."""
    chains = {**family.filter.chains, DOCKER_USER: Chain(DOCKER_USER, None, (parse("-j DROP", family.name),))}
    program = family.program().with_chains(chains, [DOCKER_USER])
    everybody = EVERYTHING[family.name]
    affected: t.Dict[Affected, None] = {}
    decisive: t.List[Outcome] = []
    uplinks = {route.interface for route in family.survey.snapshot.routes if route.destination in _DEFAULT_ROUTES}
    for published, flow in _jump_flows(family):
        past = [outcome for outcome in program.walk(FORWARD, flow, everybody) if not outcome.denies]
        if published is None:
            past = [outcome for outcome in past if not outcome.reasons]
        uplink = not uplinks or flow.in_interface in uplinks
        if past and not uplink and not any(outcome.denies for outcome in family.walk(flow)):
            # A tunnel's or a hypervisor's own rules, and nothing that DOCKER-USER has to say about its packets.
            continue
        if past and published is not None:
            peers = family.peers_text(join(piece for outcome in past for piece in outcome.peers))
            affected[published.affected(peers=peers if uplink else "%s through %s" % (peers, flow.in_interface))] = None
        decisive += past
    return list(affected), decisive or _let_out(family, program)


def _let_out(family: Family, program: Program) -> t.List[Outcome]:
    """Outgoing connections that DOCKER-USER denies and FORWARD lets out before."""
    found: t.List[Outcome] = []
    for endpoint in _one_per_bridge(family)[:_MOST_PROBES]:
        for flow in family.outgoing(endpoint, "tcp", 443):
            flow = flow._replace(destination_ports=(1, 65535))  # noqa: PLW2901
            denied = [outcome.peers for outcome in family.walk(flow, within=family.remote) if outcome.denies]
            within = join(piece for peers in denied for piece in peers)
            found += [
                outcome
                for outcome in (program.walk(FORWARD, flow, within) if within else ())
                if not outcome.denies and not outcome.reasons
            ]
    return found


def _one_per_bridge(family: Family) -> t.List[Endpoint]:
    found: t.Dict[str, Endpoint] = {}
    for endpoint in family.endpoints:
        if endpoint.bridge:
            found.setdefault(endpoint.bridge, endpoint)
    return list(found.values())


def _restored(family: Family, lines: t.Sequence[str], task: str) -> t.Tuple[Json, str]:
    """A task and a command that do several things in one transaction."""
    program, _wait, seconds = command(family)
    words = [program + "-restore", "--noflush", "--wait", seconds]
    text = ["*filter", *lines, "COMMIT"]
    done: Json = {
        "name": task,
        "ansible.builtin.command": {"argv": words, "stdin": "\n".join(text)},
        "changed_when": True,
    }
    return done, "printf '%%s\\n' %s | %s" % (shell(text), shell(words))


def _jump_first(family: Family) -> Fix:
    """The jump at the top of FORWARD, in one transaction: there is no moment without it."""
    forward = family.filter.chains[FORWARD]
    there = sum(is_jump(rule) for rule in forward.rules)
    after = Chain(
        FORWARD,
        forward.policy,
        (parse("-j " + DOCKER_USER, family.name), *(rule for rule in forward.rules if not is_jump(rule))),
    )
    program = family.program().with_chains({**family.filter.chains, FORWARD: after}, [FORWARD])
    gains, loses = _changed(family, program)
    name = "FORWARD reads %s first (%s)" % (DOCKER_USER, FAMILY_TEXTS[family.name])
    if not there:
        words = command(family, "-I", FORWARD, "1", "-j", DOCKER_USER)
        task, line = command_task(name, words), shell(words)
    else:
        lines = ["-D %s -j %s" % (FORWARD, DOCKER_USER)] * there
        task, line = _restored(family, [*lines, "-I %s 1 -j %s" % (FORWARD, DOCKER_USER)], name)
    return Fix(
        "Put the jump to %s at the top of FORWARD. Docker does this when it starts, too." % DOCKER_USER,
        (task,),
        (line,),
        tuple(gains),
        tuple(loses),
    )


def _changed(family: Family, program: Program) -> t.Tuple[t.List[str], t.List[str]]:
    """Who gains and who loses access to published ports when FORWARD is walked in another program."""
    gains: t.List[str] = []
    loses: t.List[str] = []
    everybody = EVERYTHING[family.name]
    for published in family.published:
        sides: t.List[Intervals] = []
        for walked in (family.program(), program):
            outcomes = [
                outcome for flow in family.inbound(published) for outcome in walked.walk(FORWARD, flow, everybody)
            ]
            sides.append(join(piece for outcome in outcomes if not outcome.denies for piece in outcome.peers))
        for words, change in ((gains, subtract(sides[1], sides[0])), (loses, subtract(sides[0], sides[1]))):
            if change:
                port = "%s (%s)" % (published.container.name, published.text)
                words.append("%s: %s over %s" % (family.peers_text(change), port, FAMILY_TEXTS[family.name]))
    return gains, loses


def jump_missing(survey: Survey) -> t.Iterator[Finding]:
    """FORWARD does not lead to DOCKER-USER at all."""
    for family in survey.families:
        chain = family.docker_user
        if chain is None or FORWARD not in family.filter.chains or family.name in survey.nftables:
            continue
        rules = [rule for rule in chain.rules if not is_bare_return(rule)]
        if not (family.docker_manages or rules) or DOCKER_USER in _read_from(family, FORWARD):
            continue
        text = FAMILY_TEXTS[family.name]
        message = "FORWARD does not read %s on %s, so nothing that stands there has any effect." % (DOCKER_USER, text)
        affected = _would_be_guarded(family)
        if affected:
            names = dict.fromkeys("%s (%s)" % (item.container, item.published) for item in affected)
            message += " %s would be guarded by its rules and is open." % listed(list(names))
        elif not rules:
            message += " No rule is there yet; the next one will be without effect."
        if DOCKER_USER in family.program().misprinted:
            message += (
                " The chain holds rules that nft wrote and iptables cannot show, and with these Docker does not add"
                " the jump: write them with iptables."
            )
        yield Finding(
            "jump_missing",
            CRITICAL,
            message,
            family.place(chain=FORWARD),
            tuple(dict.fromkeys(affected)),
            fix=_jump_first(family),
        )


def _would_be_guarded(family: Family) -> t.List[Affected]:
    """Published ports with those whom DOCKER-USER would keep from them."""
    found: t.List[Affected] = []
    texts: t.Dict[Intervals, str] = {}
    for published in family.published:
        peers = NOTHING if published.loopback else kept_out(family, published)[0]
        if peers:
            if peers not in texts:
                texts[peers] = family.peers_text(peers)
            found.append(published.affected(peers=texts[peers]))
    return found


def jump_not_first(survey: Survey) -> t.Iterator[Finding]:
    """Rules of FORWARD let in what Docker forwards before DOCKER-USER is read."""
    for family in survey.families:
        forward = family.filter.chains.get(FORWARD)
        if forward is None or family.docker_user is None or family.name in survey.nftables:
            continue
        if not forward.rules or is_jump(forward.rules[0]) or DOCKER_USER not in _read_from(family, FORWARD):
            continue
        affected, outcomes = _let_past(family)
        if not outcomes:
            continue
        place = family.place(chain=FORWARD)
        for position, rule in enumerate(forward.rules, 1):
            if rule.target == DOCKER_USER:
                place = family.place(Site(FORWARD, position, position))
                break
        sites = sorted({outcome.site for outcome in outcomes if outcome.site is not None})
        who = "the policy of FORWARD"
        if sites:
            who = _rules_text(sites, "")
        names = ["%s (%s)" % (item.container, item.published) for item in affected]
        what = "connections to %s" % listed(names) if names else "what Docker forwards"
        if not names and not all(outcome.site is None for outcome in outcomes):
            what = "what Docker forwards, among it connections that %s is to stop" % DOCKER_USER
        sure = any(not outcome.reasons for outcome in outcomes)
        reasons = () if sure else tuple(dict.fromkeys(reason for item in outcomes for reason in item.reasons))
        yield Finding(
            "jump_not_first",
            CRITICAL,
            "FORWARD does not read %s first on %s: %s %s %s before. No rule of %s can stop them."
            % (
                DOCKER_USER,
                FAMILY_TEXTS[family.name],
                who,
                "accept" if who.startswith("rules") or " and " in who else "accepts",
                what,
                DOCKER_USER,
            ),
            place,
            tuple(affected),
            reasons,
            _jump_first(family),
        )


def jump_window(survey: Survey) -> t.Iterator[Finding]:
    """Moments in which Docker takes the jump away, or its own rules stand above it."""
    engine = survey.snapshot.engine
    if engine is None or not engine.version:
        return
    version = ".".join(str(number) for number in engine.version[:2])
    reasons: t.Tuple[str, ...] = ()
    if engine.version < (28,):
        when = (
            "Engine %s takes the jump to %s away and puts it back whenever a network is made; for about 10 ms "
            "nothing reads the chain" % (version, DOCKER_USER)
        )
    elif engine.live_restore:
        when = (
            "Engine %s with live-restore puts its own rules above the jump to %s whenever the daemon starts, for "
            "about 60 ms" % (version, DOCKER_USER)
        )
        if engine.version >= (29,):
            reasons = ("whether Engine %s does as 28.5, where this was seen" % version,)
    else:
        return
    for family in survey.families:
        if not (_manages(family) and family.jumps):
            continue
        affected, unsure, stay = _guarded_by_the_jump_alone(family)
        if not affected:
            continue
        names = dict.fromkeys("%s (%s)" % (item.container, item.published) for item in affected)
        jump = [is_jump(rule) for rule in family.filter.chains[FORWARD].rules].index(True) + 1
        yield Finding(
            "jump_window",
            LOW,
            "%s (%s). Who connects in such a moment to %s gets in%s."
            " The guard of docker_user_chain closes these moments in mangle, which Docker leaves alone; without it, %s"
            " only when nobody can connect."
            % (
                when,
                FAMILY_TEXTS[family.name],
                listed(list(names)),
                ", and stays in, as established connections pass" if stay else "",
                "make networks" if engine.version < (28,) else "restart Docker",
            ),
            family.place(Site(FORWARD, jump, jump)),
            affected,
            reasons or unsure,
        )


def _guarded_by_the_jump_alone(family: Family) -> t.Tuple[t.Tuple[Affected, ...], t.Tuple[str, ...], bool]:
    """Published ports that DOCKER-USER closes to somebody and mangle FORWARD does not, and what that hangs on.

    And whether a connection that was made while DOCKER-USER was not read is left alone when it is read again.
    """
    affected: t.Dict[Affected, None] = {}
    reasons: t.List[str] = []
    sure = False
    texts: t.Dict[Intervals, str] = {}
    stay = False
    looks = _MOST_LOOKS
    guarded = FORWARD in family.table("mangle").chains
    for published in family.published:
        peers, unsure = (NOTHING, ()) if published.loopback else kept_out(family, published)
        for flow in family.inbound(published) if peers and guarded else ():
            for outcome in family.walk(flow, FORWARD, peers, "mangle"):
                if outcome.denies and not outcome.reasons:
                    peers = subtract(peers, outcome.peers)
        if peers:
            if peers not in texts:
                texts[peers] = family.peers_text(peers)
            affected[published.affected(peers=texts[peers])] = None
            sure = sure or not unsure
            reasons += unsure
            if not stay and looks:
                looks -= 1
                stay = _stays(family, published, peers)
    return tuple(affected), () if sure else tuple(dict.fromkeys(reasons)), stay


def _stays(family: Family, published: Published, peers: Intervals) -> bool:
    """True if packets of an established connection pass DOCKER-USER for one of those who may make none."""
    return any(
        not outcome.denies
        for flow in family.inbound(published)
        for outcome in family.walk(
            flow._replace(states=(flow.states - {"NEW"}) | {"ESTABLISHED"}, flags=(frozenset(("ACK",)),)), within=peers
        )
    )


# Rules that nothing is left for --------------------------------------------------------------------------------------


def unreachable_rule(survey: Survey) -> t.Iterator[Finding]:
    """Rules of DOCKER-USER and below it, and a user's rules of FORWARD, that decide about no packet."""
    for family in survey.families:
        chains = list(dict.fromkeys(item.site.chain for item in family.reached))
        coverage = Coverage(
            family.name,
            family.filter.chains,
            {DOCKER_USER, *_read_elsewhere(family, chains)},
            chains,
            family.program().misprinted,
            _ends(family, "coming"),
            _ends(family, "going"),
        )
        twins = _Twins(family)
        named: t.Set[Site] = set()
        for dead in coverage.dead(_is_judged, _is_contradicted):
            named.add(dead.site)
            found = _unreachable(family, dead, twins)
            if found is not None:
                yield found
        yield from _own_of_forward(family, twins)
        yield from _second_jumps(family, [*chains, FORWARD], twins)
        yield from _idle_returns(family, chains, named, twins)


def _ends(family: Family, side: str) -> t.List[Ends]:
    """The interfaces of the host with the addresses behind them; nothing if they are not known."""
    survey = family.survey
    if not survey.snapshot.interfaces:
        return []
    behind: t.Dict[str, t.List[str]] = {}
    for route in survey.snapshot.routes:
        if route.family == family.name and route.interface in survey.networks_by_bridge and "/" in route.destination:
            behind.setdefault(route.interface, []).append(route.destination)
    found: t.List[Ends] = []
    for name, network in survey.networks_by_bridge.items():
        subnets = [subnet for subnet in network.subnets if (":" in subnet) == (family.name == IPV6)]
        pieces = [piece for subnet in subnets + behind.get(name, []) for piece in of_network(subnet)]
        if pieces:
            found.append(Ends(name, join(pieces), True))
    others = [
        item
        for item in survey.snapshot.interfaces
        if item.name != "lo" and not item.master and item.name not in survey.networks_by_bridge
    ]
    outside = subtract(EVERYTHING[family.name], family.subnets) if side == "coming" else family.remote
    return [Ends(item.name, outside, item.kind == "bridge") for item in others] + found


def _kind(rule: Rule) -> str:
    target = rule.target
    return "allows" if target in ALLOWING else "denies" if target in DENYING else ""


def _is_judged(rule: Rule) -> bool:
    """Not what stands there twice by good custom: a last RETURN, and the passage of established connections."""
    if rule.target is None or is_bare_return(rule) or is_established(rule):
        return False
    if _kind(rule) == "allows" and only_established(rule):
        return False
    return is_foreign(rule) or bool(_kind(rule))


def _is_contradicted(dead: Dead) -> bool:
    kind = _kind(dead.rule)
    return bool(kind) and any(_kind(taker.rule) not in ("", kind) for taker in dead.takers)


class _Twins:
    """Which rules have the same text as one before them: a command that names the text would hit that one."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._firsts: t.Dict[str, t.Dict[str, int]] = {}

    def has(self, site: Site) -> bool:
        if site.chain not in self._firsts:
            firsts: t.Dict[str, int] = {}
            for position, rule in enumerate(self._family.filter.chains[site.chain].rules, 1):
                firsts.setdefault(rule.render(), position)
            self._firsts[site.chain] = firsts
        return self._firsts[site.chain][self._family.rule(site).render()] != site.position


def _deleted(family: Family, site: Site, twins: _Twins, description: str) -> Fix:
    """The fix that takes a rule out which nothing reaches: nobody gains or loses anything."""
    if twins.has(site):
        words = command(family, "-D", site.chain, str(site.position))
        description += " The command names its number, as another rule has the same text: run no other one before it."
    else:
        words = delete_words(family, site)
    return Fix(description, (command_task("Take the dead rule out of %s" % site.chain, words),), (shell(words),))


def _unreachable(family: Family, dead: Dead, twins: _Twins) -> t.Optional[Finding]:
    """The finding about a dead rule; None where that is as it should be."""
    rule, site = dead.rule, dead.site
    contradicted = _is_contradicted(dead)
    policy = _policy(rule)
    if policy and not contradicted:
        return None  # policies add up, and what is said twice holds once
    takers = _takers_text(dead.takers, site.chain)
    every = "every packet that it matches"
    if not dead.strictly:
        every = "all that the networks of this host can send to it"
    message = "Nothing is left for rule %d of %s (%s): %s already %s." % (
        site.position,
        site.chain,
        FAMILY_TEXTS[family.name],
        takers,
        _taking(dead.takers, every),
    )
    first = dead.takers[0]
    before = "%s %d of %s" % ("rule", first.site.position, first.site.chain)
    if policy:
        message += " It belongs to policy %s, which has no effect here." % policy
        if is_foreign(first.rule) and _kind(first.rule) == "allows":
            message += (
                " Delete or narrow %s, or run docker_user_rule again: it puts policies above such rules." % before
            )
        elif is_foreign(first.rule):
            message += " Delete or narrow %s: rules that deny stay above policies." % before
        else:
            message += " Policy %s is read before it: give this one a lower priority." % _policy(first.rule)
        return Finding("unreachable_rule", MEDIUM, message, family.place(site))
    if contradicted:
        message += " If it is to decide, it has to stand before %s." % before
        text = "Delete it: nothing changes. If it is to decide, write it before %s instead." % before
    else:
        verb = "does" if len(dead.takers) == 1 else "do"
        text = "Delete it: nothing changes, as %s %s the same." % (takers, verb)
    return Finding(
        "unreachable_rule",
        MEDIUM,
        message,
        family.place(site),
        fix=_deleted(family, site, twins, text),
    )


def _takers_text(takers: t.Sequence[Taker], chain: str) -> str:
    """Who takes it all, with whose rules they are."""
    policies = {_policy(taker.rule) for taker in takers} - {""}
    text = _rules_text([taker.site for taker in takers], chain)
    if len(takers) > 1:
        text += " together"
    elif policies:
        text += " (policy %s)" % policies.pop()
    return text


def _taking(takers: t.Sequence[Taker], what: str) -> str:
    verbs = {_VERBS.get(str(taker.rule.target), "takes") for taker in takers}
    verb = verbs.pop() if len(verbs) == 1 else "takes"
    return "%s %s" % (verb if len(takers) == 1 else verb[:-1], what)


def _own_of_forward(family: Family, twins: _Twins) -> t.Iterator[Finding]:
    """A user's rules of FORWARD that nothing is left for behind others of a user; behind Docker's is never_read's."""
    forward = family.filter.chains.get(FORWARD)
    if forward is None:
        return
    bridges = family.survey.networks_by_bridge
    nothing = Rule(())
    rules = tuple(nothing if forward_is_of_docker(rule, family.name, bridges) else rule for rule in forward.rules)
    if all(rule is nothing for rule in rules):
        return
    chains = {**family.filter.chains, FORWARD: forward._replace(rules=rules)}
    coverage = Coverage(family.name, chains, [FORWARD], [FORWARD], family.program().misprinted)
    for dead in coverage.dead(_is_judged, lambda dead: False):
        found = _unreachable(family, dead, twins)
        if found is not None:
            yield found


def _second_jumps(family: Family, chains: t.Iterable[str], twins: _Twins) -> t.Iterator[Finding]:
    """Jumps that another one like them made already: what comes back from a chain comes back from it again."""
    table = family.filter.chains
    bridges = family.survey.networks_by_bridge
    misprinted = family.program().misprinted
    for name in chains:
        first: t.Dict[t.Tuple[t.Tuple[str, str, bool], ...], int] = {}
        for position, rule in enumerate(table[name].rules if name in table and name not in misprinted else (), 1):
            if rule.value("jump") not in table or is_opaque(rule):
                continue
            of_docker = name == FORWARD and forward_is_of_docker(rule, family.name, bridges)
            if of_docker and not is_jump(rule):
                continue
            key = tuple(
                (field.name, field.value, field.negated)
                for field in rule.fields
                if field.name not in ("match", "comment")
            )
            before = first.setdefault(key, position)
            if before == position:
                continue
            target = str(rule.target)
            counts = any(is_opaque(inner) for below in _read_from(family, target) for inner in table[below].rules)
            reasons = ("what the rules below %s count" % target,) if counts else ()
            site = Site(name, position, position)
            yield Finding(
                "unreachable_rule",
                MEDIUM,
                "Rule %d of %s (%s) jumps to %s as rule %d did: what came back from there comes back again, so it"
                " changes nothing." % (position, name, FAMILY_TEXTS[family.name], target, before),
                family.place(site),
                reasons=reasons,
                fix=_deleted(family, site, twins, "Delete the second jump: nothing changes."),
            )


# RETURN that changes nothing -----------------------------------------------------------------------------------------


def _idle_returns(
    family: Family, chains: t.Sequence[str], named: t.Collection[Site], twins: _Twins
) -> t.Iterator[Finding]:
    """RETURN in front of nothing but RETURN: taken for a permission, it is none."""
    if not family.jumps:
        return
    idle = _Idle(family, chains)
    for name in chains:
        for position, rule in enumerate(family.filter.chains[name].rules, 1):
            if rule.target != RETURN or len(rule.fields) < 2 or not is_foreign(rule) or only_established(rule):
                continue
            site = Site(name, position, position)
            if site in named or name in family.program().misprinted or not idle.after(name, position):
                continue
            dropped = _dropped_later(family, site, rule)
            message = (
                "Rule %d of %s (%s) returns packets, and nothing behind it would have stopped them: with or without it,"
                " Docker's own rules decide next." % (position, name, FAMILY_TEXTS[family.name])
            )
            if dropped is not None:
                message += (
                    " These drop what comes to %s (%s) without a published port. RETURN is no permission: ACCEPT lets"
                    " packets through, past Docker's isolation too." % (dropped.container.name, dropped.address)
                )
            yield Finding(
                "unreachable_rule",
                INFO if dropped is None else MEDIUM,
                message,
                family.place(site),
                fix=_deleted(
                    family,
                    site,
                    twins,
                    "Delete it: nothing changes. If it is to let packets through, write ACCEPT instead.",
                ),
            )


class _Idle:
    """Behind which rules of DOCKER-USER and its chains nothing is decided any more."""

    def __init__(self, family: Family, chains: t.Sequence[str]) -> None:
        self._chains = family.filter.chains
        self._elsewhere = _read_elsewhere(family, chains) - {DOCKER_USER}
        self._callers: t.Dict[str, t.List[t.Tuple[str, int, Rule]]] = {}
        for name in chains:
            for position, rule in enumerate(self._chains[name].rules, 1):
                if rule.target in self._chains:
                    self._callers.setdefault(str(rule.target), []).append((name, position, rule))
        self._returning: t.Dict[str, bool] = {}
        # From the chains furthest down: what is not known yet decides something.
        self._only_returns: t.Dict[str, bool] = {}
        self._from: t.Dict[str, int] = {}
        for name in reversed(chains):
            self._from[name] = self._first_idle(name)
            self._only_returns[name] = self._from[name] == 1

    def _first_idle(self, name: str) -> int:
        """The position from which on a chain decides nothing."""
        rules = self._chains[name].rules
        position = len(rules) + 1
        while position > 1:
            target = rules[position - 2].target
            if not (target is None or target == RETURN or self._only_returns.get(str(target), False)):
                break
            position -= 1
        return position

    def after(self, name: str, position: int) -> bool:
        """True if nothing is decided behind a rule, up to the end of DOCKER-USER."""
        return self._from[name] <= position + 1 and self._after_chain(name)

    def _after_chain(self, name: str) -> bool:
        if name not in self._returning:
            self._returning[name] = False  # a loop does not end
            callers = self._callers.get(name, ())
            self._returning[name] = name == DOCKER_USER or (
                name not in self._elsewhere
                and bool(callers)
                and all(caller.get("goto") is None and self.after(above, at) for above, at, caller in callers)
            )
        return self._returning[name]


def _dropped_later(family: Family, site: Site, rule: Rule) -> t.Optional[Endpoint]:
    """A container that the returned packets are sent to and that Docker's own rules keep them from, if there is one."""
    if FORWARD not in family.filter.chains:
        return None
    if rule.value("destination") is None and rule.value("out_interface") is None:
        return None  # not about containers in particular
    port = next((int(value) for value in (rule.value("destination_port"),) if value and value.isdigit()), 9)
    protocol = rule.value("protocol") or "tcp"
    for endpoint in _one_per_bridge(family)[:_MOST_PROBES]:
        for flow in family.direct(endpoint, protocol, port):
            returned = [
                outcome
                for outcome in family.walk(flow, site.chain, family.remote)
                if outcome.site == site and not outcome.reasons
            ]
            peers = join(piece for outcome in returned for piece in outcome.peers)
            after = family.walk(flow, FORWARD, peers) if peers else []
            if after and all(outcome.denies and not outcome.reasons for outcome in after):
                return endpoint
    return None
