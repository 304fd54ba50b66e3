# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Checks about addresses: rules for one that nobody has, for one that is another container's, for empty networks."""

from __future__ import annotations

import bisect
import functools
import ipaddress
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._audit._dockers import looks_like_bridge
from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import (
    CRITICAL,
    DIRECT,
    HIGH,
    INFO,
    MEDIUM,
    Affected,
    Finding,
    Fix,
    listed,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._fixes import (
    command,
    command_task,
    delete_words,
    shell,
)
from ansible_collections.quaywall.docker.plugins.module_utils._audit._forwards import OwnForward
from ansible_collections.quaywall.docker.plugins.module_utils._audit._passage import Callers
from ansible_collections.quaywall.docker.plugins.module_utils._audit._policies import written
from ansible_collections.quaywall.docker.plugins.module_utils._audit._renewal import PolicyRules, policies_of, renewed
from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import (
    FAMILY_TEXTS,
    Endpoint,
    Family,
    Survey,
)
from ansible_collections.quaywall.docker.plugins.module_utils._chain import (
    CONTINUING,
    DENYING,
    DOCKER_USER,
    is_established,
    is_managed,
    mark_of,
)
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import Intervals, join, of_network, overlaps
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6, Rule, arguments
from ansible_collections.quaywall.docker.plugins.module_utils._walk import Site, interface_matches

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._inventory import Container, Network

_SWARM_GATEWAY = "docker_gwbridge"
_HOST = {IPV4: "/32", IPV6: "/128"}

#: The networks that Docker takes for its own accord, if nobody says otherwise (default-address-pools).
_POOLS = (
    *((ipaddress.IPv4Network("172.%d.0.0/16" % number), 16) for number in range(17, 32)),
    (ipaddress.IPv4Network("192.168.0.0/16"), 20),
)
#: Rules for networks as wide as these are about whatever may be there, or nobody.
_WIDEST = {IPV4: 15, IPV6: 47}


class _Addresses:
    """Whose an address of one family is."""

    def __init__(self, family: Family) -> None:
        self.family = family
        survey = family.survey
        self._networks: t.List[t.Tuple[int, int, Network]] = sorted(
            (
                (low, high, network)
                for network in survey.networks_by_bridge.values()
                if network.name != _SWARM_GATEWAY
                for subnet in network.subnets
                if (":" in subnet) == (family.name == IPV6)
                for low, high in of_network(subnet)
            ),
            key=lambda item: item[:2],
        )
        self._lows = [item[0] for item in self._networks]

    def network(self, number: int) -> t.Optional[Network]:
        """Docker's network that an address belongs to, Swarm's own left out: who is there the API does not say."""
        index = bisect.bisect_right(self._lows, number) - 1
        if index < 0 or number > self._networks[index][1]:
            return None
        return self._networks[index][2]

    @functools.cached_property
    def taken(self) -> t.Set[int]:
        """Addresses that are somebody's, but no running container's: gateways', Swarm's, fixed ones of the stopped."""
        family = self.family
        survey = family.survey
        found: t.Set[int] = set()
        for low, high, _network in self._networks:
            found |= {low, high, low + 1}
        texts = [
            address
            for container in survey.inventory.containers
            for addresses in container.networks.values()
            for address in addresses
        ]
        texts += _gateways(survey)
        for item in survey.snapshot.interfaces:
            texts += [address.partition("/")[0] for address in item.addresses]
        for text in texts:
            try:
                found.add(int(ipaddress.ip_address(text)))
            except ValueError:
                continue
        ingress = family.table("nat").chains.get("DOCKER-INGRESS")
        for rule in ingress.rules if ingress is not None else ():
            number = _destination_of(rule)
            if number is not None:
                found.add(number)
        return found

    def is_stale(self, number: int) -> bool:
        """True for an address out of Docker's networks that nobody has."""
        return (
            number not in self.family.endpoints_by_number
            and self.network(number) is not None
            and number not in self.taken
        )

    @functools.cached_property
    def stopped(self) -> t.Dict[str, t.List[str]]:
        """Containers that do not run, by network: their addresses are given anew when they start."""
        found: t.Dict[str, t.List[str]] = {}
        for container in self.family.survey.inventory.containers:
            if not container.running:
                for name in container.networks:
                    found.setdefault(name, []).append(container.name)
        return {name: sorted(names) for name, names in found.items()}

    def text(self, number: int) -> str:
        """An address as it is written."""
        return str((ipaddress.IPv4Address if self.family.name == IPV4 else ipaddress.IPv6Address)(number))

    @functools.cached_property
    def running(self) -> t.List[int]:
        """The addresses of running containers, in order."""
        return sorted(self.family.endpoints_by_number)

    def holds_container(self, addresses: Intervals) -> bool:
        """True if a running container has one of these addresses."""
        for low, high in addresses:
            index = bisect.bisect_left(self.running, low)
            if index < len(self.running) and self.running[index] <= high:
                return True
        return False


def _gateways(survey: Survey) -> t.Iterator[str]:
    """The gateways of Docker's networks, from the document itself: the inventory has no use for them."""
    docker = survey.snapshot.data.get("docker") or {}
    for network in docker.get("networks") or ():
        for config in (network.get("IPAM") or {}).get("Config") or ():
            if config.get("Gateway"):
                yield str(config["Gateway"]).partition("/")[0]


def _destination_of(rule: Rule) -> t.Optional[int]:
    """The address that a DNAT leads to."""
    target = rule.value("to_destination")
    if target is None:
        return None
    address = target
    if target.startswith("["):
        address = target[1:].partition("]")[0]
    elif target.count(":") == 1:
        address = target.partition(":")[0]
    try:
        return int(ipaddress.ip_address(address))
    except ValueError:
        return None


def _host(rule: Rule, name: str, family: str) -> t.Optional[int]:
    """The single address that a rule asks for."""
    value = rule.value(name)
    if value is None or not value.endswith(_HOST[family]):
        return None
    return of_network(value)[0][0]


def _user_rules(family: Family) -> t.Iterator[t.Tuple[Site, Rule]]:
    """The rules of DOCKER-USER and below, then a user's of FORWARD and below, each once."""
    seen: t.Set[str] = set()
    for callers in (Callers(family.filter.chains, [DOCKER_USER]), OwnForward(family).callers):
        for name in callers.names:
            if name in seen:
                continue
            seen.add(name)
            for position, rule in enumerate(callers.chains[name].rules, 1):
                yield Site(name, position, position), rule


def _deleted(family: Family, sites: t.Sequence[Site], description: str) -> Fix:
    """The fix that takes rules out that decide nothing now: nobody gains or loses anything."""
    words = [delete_words(family, site) for site in sites]
    return Fix(
        description,
        tuple(command_task("Take the rule out of %s" % site.chain, item) for site, item in zip(sites, words)),
        tuple(shell(item) for item in words),
    )


def _rules_text(sites: t.Sequence[Site]) -> str:
    """C(rule 3 of DOCKER-USER), C(rules 3 and 4 of DOCKER-USER)."""
    groups: t.Dict[str, t.List[str]] = {}
    for site in sites:
        groups.setdefault(site.chain, []).append(str(site.position))
    return " and ".join(
        "rule%s %s of %s" % ("" if len(numbers) == 1 else "s", listed(numbers), name)
        for name, numbers in groups.items()
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


# An address that nobody has ------------------------------------------------------------------------------------------


class _Stale(t.NamedTuple):
    """Rules about one address that nobody has. ``policy``: they are this policy's."""

    policy: str
    number: int
    sites: t.List[Site]


def _stale_rules(addresses: _Addresses) -> t.List[_Stale]:
    family = addresses.family
    found: t.Dict[t.Tuple[str, int], _Stale] = {}
    for site, rule in _user_rules(family):
        for name in ("destination", "source"):
            number = _host(rule, name, family.name)
            if number is None or not addresses.is_stale(number):
                continue
            mark = mark_of(rule)
            policy = mark.policy if mark is not None else ""
            item = found.setdefault((policy, number), _Stale(policy, number, []))
            if site not in item.sites:
                item.sites.append(site)
    return list(found.values())


def stale_address(survey: Survey) -> t.Iterator[Finding]:
    """Rules about an address in one of Docker's networks that no container has."""
    if survey.snapshot.inventory is None:
        return
    for family in survey.families:
        if family.dump is None:
            continue
        addresses = _Addresses(family)
        for item in _stale_rules(addresses):
            yield _stale(addresses, item)
        yield from _left_behind(addresses)


def _stale(addresses: _Addresses, item: _Stale) -> Finding:
    family = addresses.family
    network = addresses.network(item.number)
    name = network.name if network is not None else ""
    address = addresses.text(item.number)
    several = len(item.sites) > 1
    message = "%s (%s) %s about %s, an address in Docker's network %s that no container has." % (
        _sentence(_rules_text(item.sites)),
        FAMILY_TEXTS[family.name],
        "are" if several else "is",
        address,
        name,
    )
    made: t.Optional[Fix] = None
    if item.policy:
        rules = next(rules for rules in policies_of(family) if rules.name == item.policy)
        message += " Policy %s wrote %s: its container is gone, stopped, or has another address now." % (
            item.policy,
            "them" if several else "it",
        )
        owners = rules.published_by(family.survey)
        if len(owners) == 1:
            message += " Docker leads the policy's host port to %s." % owners[0].name
            made = _renewal(family, rules, owners[0], [])
        message += " Run docker_user_rule again for this policy."
    else:
        message += " %s no container now, and %s whichever one gets the address next." % (
            "They protect and stop" if several else "It protects and stops",
            "hit" if several else "hits",
        )
        made = _deleted(
            family,
            item.sites,
            "Delete %s. If a container is meant, name it in a policy of docker_user_rule, which keeps no address."
            % ("them" if several else "it"),
        )
    stopped = addresses.stopped.get(name)
    if stopped:
        message += " It may have been the address of %s, not running now: addresses are given anew at each start." % (
            listed(stopped, 3)
        )
    return Finding(
        "stale_address",
        HIGH,
        message,
        family.place(item.sites[0]),
        fix=made,
        subject=address,
    )


def _left_behind(addresses: _Addresses) -> t.Iterator[Finding]:
    """Docker's own rules, and others of nat, that lead to an address that nobody has."""
    family = addresses.family
    reported: t.Set[int] = set()
    for name, chain in family.table("nat").chains.items():
        if name == "DOCKER-INGRESS":
            continue
        dnats: t.Dict[t.Tuple[t.Optional[str], t.Optional[str]], t.List[int]] = {}
        for position, rule in enumerate(chain.rules, 1):
            if rule.target == "DNAT":
                dnats.setdefault(_port_of(rule), []).append(position)
        for positions in dnats.values():
            for index, position in enumerate(positions):
                rule = chain.rules[position - 1]
                number = _destination_of(rule)
                if number is not None and addresses.is_stale(number):
                    reported.add(number)
                    later = [chain.rules[other - 1] for other in positions[index + 1 : index + 10]]
                    yield _dead_dnat(addresses, Site(name, position, position), rule, number, later)
    docker = family.filter.chains.get("DOCKER")
    for position, rule in enumerate(docker.rules if docker is not None else (), 1):
        number = _host(rule, "destination", family.name)
        if number is not None and number not in reported and addresses.is_stale(number):
            reported.add(number)
            yield _dead_accept(addresses, Site("DOCKER", position, position), number)


def _port_of(rule: Rule) -> t.Tuple[t.Optional[str], t.Optional[str]]:
    return rule.value("protocol"), rule.value("destination_port")


def _dead_dnat(addresses: _Addresses, site: Site, rule: Rule, number: int, later: t.Sequence[Rule]) -> Finding:
    family = addresses.family
    address = addresses.text(number)
    port = rule.value("destination_port") or ""
    words = command(family, "-t", "nat", "-D", site.chain, *arguments(rule.render()))
    message = "Rule %d of %s in table nat (%s) leads %s to %s, which no container has: who connects gets no answer." % (
        site.position,
        site.chain,
        FAMILY_TEXTS[family.name],
        "port %s" % port if port else "connections",
        address,
    )
    gains: t.Tuple[str, ...] = ()
    affected: t.Tuple[Affected, ...] = ()
    live = _shadowed(family, rule, later)
    if live is not None:
        endpoint, inner = live
        published = "%s->%s/%s" % (port, inner, rule.value("protocol"))
        name = "%s (%s)" % (endpoint.container.name, published)
        message += " It stands before the rule for %s, which therefore gets none of these connections." % name
        gains = ("anyone: %s over %s" % (name, FAMILY_TEXTS[family.name]),)
        affected = (Affected(endpoint.container.name, endpoint.address, endpoint.network, published),)
    message += " A container that is gone left it behind, or a saved file brought it back."
    return Finding(
        "stale_address",
        HIGH,
        message,
        family.place(site, "nat"),
        affected,
        fix=Fix(
            "Delete the rule that leads nowhere.",
            (command_task("Take the dead DNAT out of %s" % site.chain, words),),
            (shell(words),),
            gains,
        ),
        subject=address,
    )


def _shadowed(family: Family, rule: Rule, later: t.Iterable[Rule]) -> t.Optional[t.Tuple[Endpoint, str]]:
    """The container, with its port, that a later DNAT for the same port leads to."""
    host = rule.value("destination")
    for other in later:
        if host is not None and host != other.value("destination"):
            continue
        number = _destination_of(other)
        endpoint = family.endpoints_by_number.get(number) if number is not None else None
        if endpoint is not None:
            return endpoint, str(other.value("to_destination")).rpartition(":")[2]
    return None


def _dead_accept(addresses: _Addresses, site: Site, number: int) -> Finding:
    family = addresses.family
    address = addresses.text(number)
    return Finding(
        "stale_address",
        HIGH,
        "Rule %d of DOCKER (%s) accepts connections to %s, an address that no container has: whichever container gets"
        " it next is open at that port to who routes to it. A container that is gone left the rule behind, or a saved"
        " file brought it back." % (site.position, FAMILY_TEXTS[family.name], address),
        family.place(site),
        fix=_deleted(family, [site], "Delete the rule; a restart of Docker does it, too."),
        subject=address,
    )


# An address that is another container's ------------------------------------------------------------------------------


def wrong_owner(survey: Survey) -> t.Iterator[Finding]:
    """Policies whose address is another container's now."""
    if survey.snapshot.inventory is None:
        return
    for family in survey.families:
        for rules in policies_of(family):
            suspects = _suspects(family, rules)
            if suspects:
                yield _wrong(family, rules, suspects)


class _Suspect(t.NamedTuple):
    """An address of a policy that seems to be another container's, and why."""

    endpoint: Endpoint
    why: str
    reasons: t.Tuple[str, ...]
    rightful: t.Tuple[Container, ...]


def _suspects(family: Family, rules: PolicyRules) -> t.List[_Suspect]:
    found = []
    for number in rules.addresses:
        endpoint = family.endpoints_by_number.get(number)
        suspect = None if endpoint is None else _suspect(family, rules, endpoint)
        if suspect is not None:
            found.append(suspect)
    return found


def _wrong(family: Family, rules: PolicyRules, suspects: t.Sequence[_Suspect]) -> Finding:
    rightful = list({container.id: container for item in suspects for container in item.rightful}.values())
    reasons = tuple(dict.fromkeys(reason for item in suspects for reason in item.reasons))
    if len(suspects) > 1 and len(suspects) > len(rightful):
        reasons += ("which of its addresses another container has",)
    first = min(rules.addresses[item.endpoint.number][0] for item in suspects)
    message = "Policy %s (%s) is about %s. %s What it denies or allows there hits %s%s. Run docker_user_rule again." % (
        rules.name,
        FAMILY_TEXTS[family.name],
        listed(["%s, which is %s's now" % (item.endpoint.address, item.endpoint.container.name) for item in suspects]),
        " ".join(dict.fromkeys(item.why for item in suspects)),
        listed(list(dict.fromkeys(item.endpoint.container.name for item in suspects))),
        ", and no longer %s at its address" % listed([container.name for container in rightful]) if rightful else "",
    )
    affected = [item for suspect in suspects for item in _touched(family, suspect.endpoint.container, meant=False)]
    affected += [item for container in rightful for item in _touched(family, container, meant=True)]
    return Finding(
        "wrong_owner",
        CRITICAL,
        message,
        family.place(first),
        tuple(affected),
        reasons,
        _renewal(family, rules, rightful[0], [item.endpoint for item in suspects]) if len(rightful) == 1 else None,
        subject=rules.name,
    )


def _touched(family: Family, container: Container, meant: bool) -> t.List[Affected]:
    """A container with its published ports, or alone if it has none."""
    found = [item.affected(meant=meant) for item in family.published if item.container.id == container.id]
    if found:
        return found
    address = next(
        (endpoint.address for endpoint in family.endpoints if endpoint.container.id == container.id),
        "",
    )
    return [Affected(container.name, address, traffic=DIRECT, meant=meant)]


def _suspect(family: Family, rules: PolicyRules, endpoint: Endpoint) -> t.Optional[_Suspect]:
    """Why an address of a policy seems to be another container's; None if nothing speaks for it."""
    owner = endpoint.container
    paired = rules.paired.get(endpoint.number)
    ports = paired or rules.host_ports
    doubt = "whether policy %s is for %s after all: its rules keep no container's name" % (rules.name, owner.name)
    if ports:
        publishing = rules.publishing(family.survey, ports)
        if owner.id in publishing:
            return None
        elsewhere = tuple(
            container
            for identity, container in publishing.items()
            if not any(number in rules.addresses for number in _numbers(family, container))
        )
        text = listed(["port %d" % port for _protocol, port in sorted(ports)], 3)
        if elsewhere:
            sure = _other_ports(owner, rules) and not _other_ports(elsewhere[0], rules)
            why = "Docker leads its host %s to %s." % (text, listed([container.name for container in elsewhere]))
            return _Suspect(endpoint, why, () if sure else (doubt,), elsewhere)
        fixed = ports & rules.address_free
        if not publishing and fixed and len(rules.addresses) == 1 and owner.current_ports:
            shown = listed(sorted({"%d" % item.host_port for item in owner.current_ports}), 3)
            why = "Its host %s is published by nobody, and %s publishes %s." % (text, owner.name, shown)
            return _Suspect(endpoint, why, (doubt,), ())
    bridge = rules.bridges.get(endpoint.number)
    if bridge and endpoint.bridge and bridge != endpoint.bridge:
        why = "The address was on bridge %s, and is on %s now." % (bridge, endpoint.bridge)
        return _Suspect(endpoint, why, (doubt,), ())
    return None


def _numbers(family: Family, container: Container) -> t.Iterator[int]:
    for addresses in container.networks.values():
        for address in addresses:
            if (":" in address) == (family.name == IPV6):
                yield int(ipaddress.ip_address(address))


def _other_ports(container: Container, rules: PolicyRules) -> bool:
    """True if the container publishes ports, and none of those inside that the policy names."""
    inner = [item.container_port for item in container.current_ports]
    return bool(inner and rules.ports) and not any(low <= port <= high for port in inner for low, high in rules.ports)


def _renewal(family: Family, rules: PolicyRules, container: Container, others: t.Sequence[Endpoint]) -> t.Optional[Fix]:
    """The policy written again, if its options can be told from its rules."""
    options = renewed(family, rules, container)
    if options is None:
        return None
    names = {container.id, *(endpoint.container.id for endpoint in others)}
    return written(
        family,
        "Run the policy again, for %s: these are the options that its rules show." % container.name,
        [options],
        [item for item in family.published if item.container.id in names],
    )


# Networks without containers -----------------------------------------------------------------------------------------


class _Empty(t.NamedTuple):
    """Rules about a network that holds no container."""

    what: str
    sites: t.List[Site]
    severity: str
    reasons: t.Tuple[str, ...]


def covers_no_container(survey: Survey) -> t.Iterator[Finding]:
    """Rules meant for the containers of a network that has none."""
    if survey.snapshot.inventory is None:
        return
    for family in survey.families:
        if family.dump is None:
            continue
        addresses = _Addresses(family)
        stale = {site for item in _stale_rules(addresses) for site in item.sites}
        wrong = {site for item in policies_of(family) if _suspects(family, item) for site in item.sites}
        networks = _Networks(addresses)
        found: t.Dict[str, _Empty] = {}
        for site, rule in _user_rules(family):
            if site in stale or site in wrong or is_established(rule) or rule.target in CONTINUING:
                continue
            empty = networks.empty(rule)
            if empty is not None:
                found.setdefault(empty.what, empty).sites.append(site)
        for empty in found.values():
            yield _covers_nothing(family, empty)


def _covers_nothing(family: Family, empty: _Empty) -> Finding:
    several = len(empty.sites) > 1
    foreign = [site for site in empty.sites if not is_managed(family.rule(site))]
    policies = list(
        dict.fromkeys(mark.policy for mark in (mark_of(family.rule(site)) for site in empty.sites) if mark is not None)
    )
    message = "%s (%s) %s about %s." % (
        _sentence(_rules_text(empty.sites)),
        FAMILY_TEXTS[family.name],
        "are" if several else "is",
        empty.what,
    )
    if policies:
        message += " Run docker_user_rule again for %s." % (
            "policy " + policies[0] if len(policies) == 1 else "policies " + listed(policies)
        )
    made: t.Optional[Fix] = None
    if foreign and empty.severity != INFO:
        message += " If containers are meant, name them or their network in a policy: it follows them."
        made = _deleted(
            family,
            foreign,
            "Delete what covers no container; write a policy of docker_user_rule for those that are meant.",
        )
    return Finding(
        "covers_no_container",
        empty.severity,
        message,
        family.place(empty.sites[0]),
        reasons=empty.reasons,
        fix=made,
        subject=empty.what,
    )


class _Networks:
    """Which networks rules are about, and whether containers are in them."""

    def __init__(self, addresses: _Addresses) -> None:
        self._addresses = addresses
        self._family = addresses.family
        survey = self._family.survey
        self._bridges = survey.networks_by_bridge
        self._interfaces = {item.name for item in survey.snapshot.interfaces}
        self._peopled = {endpoint.bridge for family in survey.families for endpoint in family.endpoints}
        self._docker = [
            (of_network(subnet), network)
            for network in survey.networks_by_bridge.values()
            for subnet in network.subnets
            if (":" in subnet) == (self._family.name == IPV6)
        ]
        own = self._family.name
        others = [item.destination for item in survey.snapshot.routes if item.family == own]
        others = [text for text in others if text not in ("0.0.0.0/0", "::/0")]
        others += [address for item in survey.snapshot.interfaces for address in item.addresses]
        self._known: Intervals = join(
            piece for text in others if (":" in text) == (own == IPV6) for piece in of_network(text)
        )
        self._networks: t.Dict[str, t.Optional[t.Tuple[str, t.Tuple[str, ...]]]] = {}

    def empty(self, rule: Rule) -> t.Optional[_Empty]:
        """The network without containers that a rule is about; None if there is none."""
        for field in rule.fields:
            if field.name in ("in_interface", "out_interface") and self._is_gone(field.value):
                return _Empty("bridge %s, which does not exist any more" % field.value, [], MEDIUM, ())
        found = self._by_bridge(rule) or self._by_network(rule)
        if found is None:
            return None
        what, reasons = found
        # A policy for a network waits for its containers.
        return _Empty(what, [], INFO if is_managed(rule) else MEDIUM, reasons)

    def _is_gone(self, name: str) -> bool:
        """True for the bridge of a network of Docker's that was removed: made again, it gets another name."""
        return (
            looks_like_bridge(name)
            and name.startswith("br-")
            and name not in self._bridges
            and name not in self._interfaces
        )

    def _by_bridge(self, rule: Rule) -> t.Optional[t.Tuple[str, t.Tuple[str, ...]]]:
        if rule.target not in DENYING:
            return None
        for name in ("out_interface", "in_interface"):
            network = self._bridges.get(rule.value(name) or "")
            if network is not None and network.bridge not in self._peopled and network.name != _SWARM_GATEWAY:
                return "Docker's network %s, in which no container runs" % network.name, ()
        return None

    def _by_network(self, rule: Rule) -> t.Optional[t.Tuple[str, t.Tuple[str, ...]]]:
        value = rule.value("destination")
        if value is None:
            return None
        if value not in self._networks:
            self._networks[value] = self._judge(value)
        found = self._networks[value]
        if found is None or not found[1]:
            return found
        coming = rule.value("in_interface")
        if coming in self._bridges:
            return None  # about what containers send out
        # From outside to a network that only outside is a way to: whatever the network is, it is not forwarded to.
        if coming is not None and any(interface_matches(coming, name) for name in self._family.survey.outside):
            return found[0], ()
        return found

    def _judge(self, value: str) -> t.Optional[t.Tuple[str, t.Tuple[str, ...]]]:
        try:
            network = ipaddress.ip_network(value)
        except ValueError:
            return None
        if network.prefixlen <= _WIDEST[self._family.name]:
            return None
        wanted = of_network(value)
        of_docker = [item for subnet, item in self._docker if overlaps(subnet, wanted)]
        if of_docker:
            host = network.prefixlen == network.max_prefixlen
            if host or self._addresses.holds_container(wanted) or any(n.name == _SWARM_GATEWAY for n in of_docker):
                return None
            return "%s, where no container runs (Docker's network %s)" % (
                value,
                listed([item.name for item in of_docker]),
            ), ()
        if not network.is_private or overlaps(wanted, self._known) or not self._is_of_pool(network):
            return None
        what = "%s, which is in none of Docker's networks and known to no route or interface of the host" % value
        return what, ("whether %s is a network beyond the host's router" % value,)

    def _is_of_pool(self, network: t.Any) -> bool:
        """True for a network such as Docker gives without being told, or an address in one."""
        if network.version == 6:
            return False
        return any(network.prefixlen in (length, 32) and network.subnet_of(pool) for pool, length in _POOLS)
