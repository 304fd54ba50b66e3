# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Checks about who writes the rules and where: both variants of iptables, Docker's nftables, or nobody.

Every variant and every base chain on a hook is asked: a drop in one is final, an accept is not.
"""

from __future__ import annotations

import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import (
    CRITICAL,
    HIGH,
    INFO,
    LOW,
    MEDIUM,
    OUTGOING,
    PROXIED,
    PUBLISHED_PORT,
    Affected,
    Finding,
    Fix,
    Place,
    listed,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._fixes import command, command_task, shell
from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import (
    FAMILY_TEXTS,
    Endpoint,
    Family,
    Published,
    Survey,
    is_dockers,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._ways import (
    guards,
    mostly,
    ports_text,
    to_host,
    unique,
)
from ansible_collections.quaywall.docker.plugins.module_utils._chain import (
    DENYING,
    DOCKER_USER,
    FORWARD,
    is_bare_return,
    is_established,
)
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import join
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, Rule
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import docker_variant

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._walk import Outcome, Site

_COMMANDS = {"ipv4": "iptables", "ipv6": "ip6tables"}
#: Fields that say which container or port a rule is about.
_TELLING = ("destination", "destination_port", "destination_ports", "ctorigdst", "ctorigdstport")
_NFT_FAMILIES = {"ipv4": "ip", "ipv6": "ip6"}


# What a variant stops ------------------------------------------------------------------------------------------------


class _Stopped(t.NamedTuple):
    """What FORWARD stops: published ports and for whom, and what containers send out.

    ``by_policy``: nothing but its policy does.
    """

    ports: t.List[t.Tuple[Published, str]]
    endpoints: t.List[Endpoint]
    reasons: t.Tuple[str, ...]
    by_policy: bool

    def __bool__(self) -> bool:
        return bool(self.ports or self.endpoints)

    @property
    def affected(self) -> t.Tuple[Affected, ...]:
        return tuple(item.affected(peers=peers) for item, peers in self.ports) + tuple(
            Affected(item.container.name, item.address, item.network, "", OUTGOING) for item in self.endpoints
        )

    @property
    def senders(self) -> t.List[str]:
        return list(dict.fromkeys(item.container.name for item in self.endpoints))

    @property
    def text(self) -> str:
        ports = ports_text(item for item, _peers in self.ports)
        sent = "what %s send%s out" % (listed(self.senders), "s" if len(self.senders) == 1 else "")
        return " and ".join(([ports] if self.ports else []) + ([sent] if self.senders else []))


_Counts = t.Callable[["Outcome"], bool]


def _stopped(asked: Family, family: Family, counts: _Counts) -> _Stopped:
    """What FORWARD of one variant stops of the traffic of Docker's containers.

    :param asked: the family and variant whose FORWARD is asked.
    :param family: the family as Docker serves it.
    :param counts: whether a denial is one to be told.
    """
    ports: t.List[t.Tuple[Published, str]] = []
    endpoints: t.List[Endpoint] = []
    denials: t.List[Outcome] = []
    for published in family.published:
        if published.loopback or published.endpoint is None:
            continue
        # With Docker's nftables backend the DNAT is not in iptables' tables, but packets pass FORWARD all the same.
        flows = family.inbound(published._replace(dnat=True))
        found = [item for flow in flows for item in asked.walk(flow, FORWARD) if item.denies and counts(item)]
        if found:
            ports.append((published, family.peers_text(join(piece for item in found for piece in item.peers))))
            denials += found
    by_bridge: t.Dict[str, bool] = {}
    for endpoint in family.endpoints:
        if endpoint.bridge and endpoint.bridge not in by_bridge:
            found = [
                item
                for flow in family.outgoing(endpoint, "tcp", 443)
                for item in asked.walk(flow, FORWARD, family.remote)
                if item.denies and counts(item) and mostly(item.peers, family.name)
            ]
            by_bridge[endpoint.bridge] = bool(found)
            denials += found
        if by_bridge.get(endpoint.bridge):
            endpoints.append(endpoint)
    reasons = dict.fromkeys(reason for item in denials for reason in item.reasons)
    sure = any(not item.reasons for item in denials)
    return _Stopped(ports, endpoints, () if sure else tuple(reasons), all(item.site is None for item in denials))


def _policy_fix(asked: Family, stopped: _Stopped) -> t.Optional[Fix]:
    """FORWARD of this variant lets everything pass that no rule of it stops."""
    if not stopped.by_policy:
        return None
    words = command(asked, "-P", FORWARD, "ACCEPT")
    family = FAMILY_TEXTS[asked.name]
    return Fix(
        "Let FORWARD of this variant accept, as Docker's own rules drop what is not published. Other traffic that this "
        "host forwards is not stopped by that policy any more.",
        (command_task("FORWARD of %s iptables accepts" % asked.variant, words),),
        (shell(words),),
        gains=tuple("anyone: %s over %s" % (ports_text([item]), family) for item, _peers in stopped.ports)
        + tuple("%s: whom it connects to over %s" % (name, family) for name in stopped.senders),
    )


def _own_rules(family: Family) -> t.List[Rule]:
    """Rules of DOCKER-USER that somebody wrote to stop or allow something."""
    chain = family.docker_user
    rules = chain.rules if chain is not None else ()
    return [rule for rule in rules if not is_bare_return(rule) and not is_established(rule)]


# Both variants -------------------------------------------------------------------------------------------------------


def backend_mixed(survey: Survey) -> t.Iterator[Finding]:
    """Rules in the variant of iptables that Docker does not use: those that bite, and those that only seem to."""
    for family in survey.families:
        if family.other is not None:
            yield from _mixed_forward(family, family.other)
            yield from _mixed_docker_user(family, family.other)
            yield from _mixed_accept(family, family.other)
            yield from _mixed_input(family, family.other)


def _mixed_forward(family: Family, other: Family) -> t.Iterator[Finding]:
    stopped = _stopped(other, family, lambda item: item.site is None or item.site.chain not in other.user_chains)
    both = family.docker_manages and other.docker_manages
    forward = other.filter.chains.get(FORWARD)
    denies = forward is not None and forward.policy in DENYING and not family.endpoints
    if not (stopped or both or denies):
        return
    message = "Docker works with %s iptables for %s." % (family.variant, FAMILY_TEXTS[family.name])
    if both:
        message = "Docker's chains are in both variants of iptables for %s. It works with %s; those in %s are old." % (
            FAMILY_TEXTS[family.name],
            family.variant,
            other.variant,
        )
    if stopped:
        message += " FORWARD in %s stops %s: packets pass both, and what one drops the other cannot let in." % (
            other.variant,
            stopped.text,
        )
    elif denies:
        message += " FORWARD in %s drops what no rule there accepts, and containers' packets will pass both." % (
            other.variant
        )
    else:
        message += " They stop nothing now, and what they accept is asked again in %s." % family.variant
    yield Finding(
        "backend_mixed",
        HIGH,
        message,
        other.place(chain=FORWARD),
        stopped.affected,
        stopped.reasons,
        None if both else _policy_fix(other, stopped),
        other.variant,
    )


def _mixed_docker_user(family: Family, other: Family) -> t.Iterator[Finding]:
    rules = _own_rules(other)
    if not rules:
        return
    stopped = _stopped(other, family, lambda item: item.site is not None and item.site.chain in other.user_chains)
    if not other.jumps:
        said = "FORWARD in %s does not lead there, so nothing reads them." % other.variant
    else:
        said = "They are read all the same%s; what they accept is asked again in %s." % (
            " and stop %s" % stopped.text if stopped else ", but stop nothing",
            family.variant,
        )
    yield Finding(
        "backend_mixed",
        HIGH,
        "DOCKER-USER of %s iptables has %s, but Docker works with %s for %s. %s Move them to DOCKER-USER of %s."
        % (
            other.variant,
            _rules_text(rules),
            family.variant,
            FAMILY_TEXTS[family.name],
            said,
            family.variant,
        ),
        other.place(),
        stopped.affected,
        stopped.reasons,
        subject=other.variant,
    )


def _mixed_accept(family: Family, other: Family) -> t.Iterator[Finding]:
    """Rules that let somebody in to a published port, which the variant that Docker uses keeps closed."""
    idle: t.Dict[Site, t.List[Published]] = {}
    for published in family.published:
        for guard in guards(family, published):
            for item in other.walk(guard.flow, FORWARD):
                site = item.site
                if site is None or item.denies or is_dockers(site.chain) or site.chain in other.user_chains:
                    continue
                if any(field.name in _TELLING for field in other.rule(site).fields):
                    idle.setdefault(site, []).append(published)
    for site, ports in idle.items():
        yield Finding(
            "backend_mixed",
            HIGH,
            "Rule %d of %s in %s iptables lets %s in, but Docker works with %s for %s, and DOCKER-USER there keeps %s "
            "closed: packets pass both variants, and what one drops the other cannot let in."
            % (
                site.position,
                site.chain,
                other.variant,
                ports_text(ports),
                family.variant,
                FAMILY_TEXTS[family.name],
                "it" if len(unique(ports)) == 1 else "them",
            ),
            other.place(site),
            tuple(published.affected() for published in unique(ports)),
            subject=other.variant,
        )


def _rules_text(rules: t.Sized) -> str:
    return "1 rule" if len(rules) == 1 else "%d rules" % len(rules)


def _mixed_input(family: Family, other: Family) -> t.Iterator[Finding]:
    """INPUT is about the host's own ports, and about containers' only where docker-proxy serves them."""
    if "INPUT" not in other.filter.chains or not family.ways_in:
        return
    hit = []
    for published in family.published:
        served = published.proxied and not published.dnat and not published.loopback
        if served and family.name not in family.survey.nftables:
            outcomes = other.walk(to_host(family, published, family.ways_in[0]), "INPUT")
            if any(item.denies and not item.reasons and mostly(item.peers, family.name) for item in outcomes):
                hit.append(published)
    if hit:
        yield Finding(
            "backend_mixed",
            HIGH,
            "INPUT in %s iptables, which Docker does not use for %s, stops %s, which docker-proxy serves: packets pass "
            "both variants, and no rule in %s lets in what this one drops."
            % (other.variant, FAMILY_TEXTS[family.name], ports_text(hit), family.variant),
            other.place(chain="INPUT"),
            tuple(item.affected(traffic=PROXIED) for item in hit),
            subject=other.variant,
        )


# Docker's nftables ---------------------------------------------------------------------------------------------------


def backend_nftables(survey: Survey) -> t.Iterator[Finding]:
    """Rules in iptables that Docker's own tables in nftables do not ask, or that stop what these let in."""
    unsure: t.Tuple[str, ...] = ()
    if survey.snapshot.nft is None:
        unsure = ("whether nftables has the tables docker-bridges",)
    said = False
    for family in survey.families:
        if family.name not in survey.nftables:
            continue
        for finding in (_nftables_docker_user(family, unsure), _nftables_forward(family, unsure)):
            if finding is not None:
                said = True
                yield finding
    if survey.nftables and not said:
        yield Finding(
            "backend_nftables",
            INFO,
            "Docker keeps its rules in nftables' tables of its own (docker-bridges). Nothing reads DOCKER-USER there: "
            "policies of this collection would do nothing.",
            reasons=unsure,
        )


def _nftables_docker_user(family: Family, unsure: t.Tuple[str, ...]) -> t.Optional[Finding]:
    rules = _own_rules(family)
    if not rules:
        return None
    # What they would stop if they were read.
    meant = [
        published
        for published in family.published
        if not published.loopback
        and any(item.denies for flow in family.inbound(published._replace(dnat=True)) for item in family.walk(flow))
    ]
    if family.jumps:
        said = (
            "An old jump in FORWARD still leads there. What they drop stays dropped%s, until the next boot or until "
            "somebody takes the jump out; what they accept is asked again in Docker's tables."
            % (" (%s)" % ports_text(meant) if meant else "")
        )
    else:
        said = "Nothing reads them%s." % (": %s is open to everyone" % ports_text(meant) if meant else "")
        if len({published.container.id for published in meant}) > 1:
            said = said.replace(" is open", " are open")
    return Finding(
        "backend_nftables",
        CRITICAL,
        "DOCKER-USER has %s for %s, but Docker keeps its rules in nftables' tables of its own, which know no such "
        "chain. %s Write such rules in a table of your own, with a chain at the hook forward and priority filter - 1, "
        "or let Docker use iptables (firewall-backend)." % (_rules_text(rules), FAMILY_TEXTS[family.name], said),
        family.place(),
        tuple(published.affected() for published in meant),
        unsure,
        subject=DOCKER_USER,
    )


def _nftables_forward(family: Family, unsure: t.Tuple[str, ...]) -> t.Optional[Finding]:
    forward = family.filter.chains.get(FORWARD)
    stopped = _stopped(family, family, lambda item: item.site is None or not _is_users(family, item.site.chain))
    denies = forward is not None and forward.policy in DENYING and not family.endpoints
    if not (stopped or denies):
        return None
    what = stopped.text if stopped else "what containers will publish and send"
    return Finding(
        "backend_nftables",
        CRITICAL,
        "FORWARD of %s stops %s. Docker lets that pass in nftables' tables of its own, but a drop elsewhere is final.%s"
        % (
            _COMMANDS[family.name],
            what,
            " It is the policy that does, from when Docker used iptables or by somebody else."
            if not stopped or stopped.by_policy
            else "",
        ),
        family.place(chain=FORWARD),
        stopped.affected,
        stopped.reasons + unsure,
        _policy_fix(family, stopped) if stopped or denies else None,
        FORWARD,
    )


def _is_users(family: Family, chain: str) -> bool:
    return chain in family.user_chains or is_dockers(chain)


# Nobody --------------------------------------------------------------------------------------------------------------


def docker_iptables_off(survey: Survey) -> t.Iterator[Finding]:
    """Docker writes no rules, as it was told, or those that it wrote are gone."""
    engine = survey.snapshot.engine
    four = survey.family(IPV4)
    hidden = four.dump is not None and {"filter", "nat"} & set(four.dump.incompatible)
    if engine is None or survey.snapshot.inventory is None or survey.rootless or hidden:
        return
    tables = ["iptables_%s_%s_%s" % (IPV4, four.variant, table) for table in ("filter", "nat")]
    if IPV4 in survey.nftables or any(map(survey.unread, tables)):
        return
    ports = [published for published in four.published if not published.loopback and not published.routed]
    off = str(engine.options.get("iptables")).lower() == "false"
    fix: t.Optional[Fix] = None
    if off:
        message = (
            'Docker is told to leave iptables alone ("iptables": false): it forwards no port, keeps no networks apart '
            "and makes no DOCKER-USER. %sPublished ports are served by docker-proxy, through INPUT. Take the option "
            "out and restart Docker, or write all of that yourself."
            % ("The rules of Docker's that are there are old. " if four.docker_manages else "")
        )
    else:
        gone = _gone(four, ports)
        if not gone:
            return
        message = (
            "Containers run, but %s has %s: somebody flushed them, as a restart of iptables.service or a reload "
            "of netfilter-persistent does. %sRestart Docker to have them back."
            % (
                "nftables" if engine.backend.startswith("nftables") and engine.version >= (29,) else "iptables",
                gone,
                "Ports are served by docker-proxy only, through INPUT, where no rule in DOCKER-USER is asked. "
                if any(published.proxied and not published.dnat for published in ports)
                else "",
            )
        )
        fix = Fix(
            "Restart Docker, which writes its rules anew. Containers are restarted with it unless live-restore is on.",
            (
                {
                    "name": "Restart Docker",
                    "ansible.builtin.service": {"name": "docker", "state": "restarted"},
                },
            ),
            ("systemctl restart docker",),
            gains=tuple("anyone whom DOCKER-USER lets in: %s over IPv4" % ports_text([item]) for item in ports),
        )
    yield Finding(
        "docker_iptables_off",
        HIGH,
        message,
        four.place(chain=FORWARD),
        tuple(item.affected(traffic=PROXIED if item.proxied and not item.dnat else PUBLISHED_PORT) for item in ports),
        fix=fix,
        subject="off" if off else "gone",
    )


def _gone(four: Family, ports: t.Sequence[Published]) -> str:
    """Which of Docker's rules are not there, though containers run; empty if none are missing."""
    nat = "DOCKER" in four.table("nat").chains
    if not four.docker_manages:
        if not any(endpoint.bridge for endpoint in four.endpoints):
            return ""
        return "none of Docker's chains in the filter table" if nat else "none of Docker's chains"
    led = any((item.binding.protocol, item.binding.host_port) in four.dnats for item in ports)
    return "none of Docker's rules in the nat table" if ports and not (nat and led) else ""


# What was not read ---------------------------------------------------------------------------------------------------

#: By part of the snapshot: what could not be judged without it, and how much that is.
_UNJUDGED = {
    "nft": (LOW, "whether nft wrote rules that iptables misprints, and what other tables of nftables stop"),
    "ipsets": (LOW, "whom rules with an ipset are about"),
    "services": (INFO, "the names of the services behind Swarm's published ports"),
    "proxies": (LOW, "which ports docker-proxy serves, past DOCKER-USER"),
    "listening": (INFO, "where containers with the host's network listen"),
    "sysctls": (LOW, "whether packets between containers pass iptables, and whether the host forwards any"),
    "interfaces": (LOW, "which interfaces lead outside, and whether the host has an IPv6 address"),
    "routes": (LOW, "which interfaces lead outside"),
    "saved": (LOW, "whether rules come back after a reboot"),
}


def snapshot_incomplete(survey: Survey) -> t.Iterator[Finding]:
    """What could not be judged, as a part of the host could not be read or shows what is not there."""
    groups: t.Dict[t.Tuple[str, str, str], t.List[str]] = {}
    parts = set()
    for hole in survey.snapshot.holes:
        parts.add(hole.part)
        groups.setdefault((*_unjudged(survey, hole.part), hole.reason), []).append(hole.part)
    for (family, variant), dump in survey.snapshot.dumps.items():
        for table in dump.incompatible:
            part = "iptables_%s_%s_%s" % (family, variant, table)
            if part not in parts:
                why = "iptables cannot show the %s %s table, as nft wrote rules there." % (FAMILY_TEXTS[family], table)
                groups.setdefault((*_unjudged(survey, part), why), []).append(part)
    for (severity, what, reason), names in groups.items():
        yield Finding(
            "snapshot_incomplete",
            severity,
            "%s So it could not be judged %s." % (reason, what),
            subject=" ".join(names),
        )
    yield from _misprinted(survey)


def _unjudged(survey: Survey, part: str) -> t.Tuple[str, str]:
    """How much it matters that a part is missing, and what could not be judged without it."""
    if part == "docker":
        if survey.snapshot.inventory is None:
            return MEDIUM, "which containers a rule stops or lets in, and whether it was meant for them"
        return LOW, "how Docker was told to treat the firewall"
    words = part.split("_", 3)
    if words[0] != "iptables":
        return _UNJUDGED.get(part, (LOW, "what depends on it"))
    if len(words) < 3 or words[1] not in FAMILY_TEXTS:
        return MEDIUM, "who reaches which container"
    family, variant = words[1], words[2]
    if docker_variant(survey.snapshot, family) != variant:
        return LOW, "whether rules in %s iptables stop anything over %s" % (variant, FAMILY_TEXTS[family])
    if len(words) == 4 and words[3] not in ("filter", "nat"):
        return LOW, "what the table %s stops over %s" % (words[3], FAMILY_TEXTS[family])
    return MEDIUM, "who reaches which container over %s" % FAMILY_TEXTS[family]


def _misprinted(survey: Survey) -> t.Iterator[Finding]:
    if survey.snapshot.nft is None:
        return
    for family in survey.families:
        # A chain may seem to be empty, so that no rule of it is reached.
        read = family.user_chains | {FORWARD} | {item.rule.target for item in family.reached}
        for table, chain in sorted(survey.snapshot.nft.misprinted.get(family.name, ())):
            asked = family.variant == "nft" and table == "filter" and chain in read
            yield Finding(
                "snapshot_incomplete",
                MEDIUM if asked else LOW,
                "nft wrote rules in %s of table %s of %s, and iptables shows them as something else or not at all. So "
                "it could not be judged for certain who gets past them. `nft list chain %s %s %s` shows them; move "
                "them to a table of their own."
                % (chain, table, _COMMANDS[family.name], _NFT_FAMILIES[family.name], table, chain),
                Place(family.name, "nft", table, chain),
                subject="misprinted",
            )
