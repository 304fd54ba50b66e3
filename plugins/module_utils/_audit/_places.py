# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Checks about places: rules where Docker's traffic does not pass, and rules in chains that are Docker's own."""

from __future__ import annotations

import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._audit._dockers import CHAINS, is_of_docker
from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import MEDIUM, Finding, Fix
from ansible_collections.quaywall.docker.plugins.module_utils._audit._fixes import command_task, delete_words, shell
from ansible_collections.quaywall.docker.plugins.module_utils._audit._forwards import OwnForward, wrong_interfaces
from ansible_collections.quaywall.docker.plugins.module_utils._audit._inputs import Input, input_of_nftables
from ansible_collections.quaywall.docker.plugins.module_utils._audit._passage import key, one_fix, verdict
from ansible_collections.quaywall.docker.plugins.module_utils._audit._policies import Denied
from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import (
    FAMILY_TEXTS,
    Family,
    Published,
    Survey,
)
from ansible_collections.quaywall.docker.plugins.module_utils._chain import DENYING, FORWARD
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import EVERYTHING, Intervals, join
from ansible_collections.quaywall.docker.plugins.module_utils._walk import Site

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._inventory import Binding
    from ansible_collections.quaywall.docker.plugins.module_utils._rule import Rule


def never_read(survey: Survey) -> t.Iterator[Finding]:
    """Rules placed where what Docker forwards does not pass."""
    for family in survey.families:
        if family.dump is None:
            continue
        own = OwnForward(family)
        yield from wrong_interfaces(family, own)
        if family.name in survey.nftables:
            continue
        yield from Input(family).findings()
        yield from own.findings()
    yield from input_of_nftables(survey)


def docker_chain_edited(survey: Survey) -> t.Iterator[Finding]:
    """Rules in Docker's own chains that Docker did not write."""
    for family in survey.families:
        if family.dump is None:
            continue
        stopped: t.Optional[_Stopped] = None
        for table, name in CHAINS:
            chain = family.table(table).chains.get(name)
            for position, rule in enumerate(chain.rules if chain is not None else (), 1):
                why = ""
                if is_of_docker(table, name, rule, family.name):
                    why = _no_dnat_of_docker(family, rule) if (table, name) == ("nat", "DOCKER") else ""
                    if not why:
                        continue
                if stopped is None:
                    stopped = _stopped_by(family)
                yield _edited(family, table, Site(name, position, position), rule, why, stopped)


#: By the place of a rule, the published ports that it closes, and to whom.
_Stopped = t.Dict[t.Tuple[str, int], t.List[t.Tuple[Published, Intervals]]]


def _stopped_by(family: Family) -> _Stopped:
    found: _Stopped = {}
    for published in family.published:
        for flow in family.inbound(published) if not published.loopback else ():
            for outcome in family.walk(flow, FORWARD, EVERYTHING[family.name]):
                site = outcome.site
                # Of a run of like rules that was taken as one nobody knows which of them it was.
                if site is not None and site.last == site.position and outcome.denies and not outcome.reasons:
                    found.setdefault((site.chain, site.position), []).append((published, outcome.peers))
    return found


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


def _edited(family: Family, table: str, site: Site, rule: Rule, why: str, stopped: _Stopped) -> Finding:
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
        made = _instead(family, site, rule, stopped.get((site.chain, site.position), ()))
    elif rule.target == "DNAT":
        message += " Publish the port with the container instead (-p)."
    return Finding(
        "docker_chain_edited",
        MEDIUM,
        message,
        family.place(site, table),
        fix=made,
    )


def _instead(
    family: Family, site: Site, rule: Rule, stopped: t.Sequence[t.Tuple[Published, Intervals]]
) -> t.Optional[Fix]:
    """Policies that stop the same people, if all that the rule stops are published ports."""
    by_port: t.Dict[t.Tuple[str, Binding], t.List[t.Tuple[Published, Intervals]]] = {}
    for published, peers in stopped:
        by_port.setdefault(key(published), []).append((published, peers))
    if rule.target not in DENYING or not by_port:
        return None
    denied = [
        Denied(items[0][0], join(piece for _published, peers in items for piece in peers), verdict=verdict(rule))
        for items in by_port.values()
    ]
    interface = rule.value("in_interface") or ""
    found = one_fix(
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
