# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Checks about what a reboot brings back: the saved rule files against the rules that are there."""

from __future__ import annotations

import collections
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import INFO, MEDIUM, Finding, Place
from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import (
    FAMILY_TEXTS,
    Family,
    Survey,
    is_dockers,
)
from ansible_collections.quaywall.docker.plugins.module_utils._chain import (
    DOCKER_USER,
    Chain,
    Dump,
    is_bare_return,
    is_managed,
)
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import covers, of_network
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV6, Rule, normalise

#: Chains of tools that write their rules, and the jump to them, by themselves when they start; ufw from files of its
#: own (/etc/ufw/after.rules), which is where ufw-docker keeps DOCKER-USER.
_COME_BACK = ("f2b-", "CROWDSEC", "ufw-", "ufw6-")


def _saved_files(survey: Survey, family: str) -> t.List[t.Tuple[str, Dump]]:
    return [
        (path, dump) for path, dump in sorted(survey.snapshot.saved.items()) if path.endswith("v6") == (family == IPV6)
    ]


def _lasting(chain: t.Optional[Chain]) -> t.List[Rule]:
    """Rules that only a saved file brings back: neither policies, whose addresses are looked up, nor other tools'."""
    rules = chain.rules if chain is not None else ()
    return [
        rule
        for rule in rules
        if not is_managed(rule) and not is_bare_return(rule) and not (rule.target or "").startswith(_COME_BACK)
    ]


def not_persistent(survey: Survey) -> t.Iterator[Finding]:
    """DOCKER-USER as it is, and as a boot would make it."""
    for family in survey.families:
        live = family.docker_user
        files = _saved_files(survey, family.name)
        ufw = any((rule.target or "").startswith("ufw") for rule in (live.rules if live is not None else ()))
        if family.dump is None or ufw:
            continue
        if files:
            for path, dump in files:
                yield from _differing(family, path, dump)
        elif _would_go(live, survey.snapshot.stored) and not survey.unread("saved"):
            yield Finding(
                "not_persistent",
                INFO,
                "No saved file has the rules of DOCKER-USER for %s: after a reboot they are gone, unless something "
                "else writes them again." % FAMILY_TEXTS[family.name],
                family.place(),
            )


def _would_go(chain: t.Optional[Chain], stored: bool) -> bool:
    """True if a boot without saved files would lose rules; stored policies are written again before Docker starts."""
    if stored:
        return bool(_lasting(chain))
    return chain is not None and any(not is_bare_return(rule) for rule in chain.rules)


def _differing(family: Family, path: str, dump: Dump) -> t.Iterator[Finding]:
    now, then = _lasting(family.docker_user), _lasting(dump.chain("filter", DOCKER_USER))
    lost, back = _difference(now, then, family.name)
    if lost or back:
        lacks = "lacks %s" % _quoted(lost) if lost else ""
        has = "has %s, which %s not there now" % (_quoted(back), "is" if len(back) == 1 else "are") if back else ""
        said = " and ".join(words for words in (lacks, has) if words)
    elif _texts(now, family.name) != _texts(then, family.name):
        said = "has its rules in another order"
    else:
        return
    yield Finding(
        "not_persistent",
        MEDIUM,
        "%s %s: after a reboot, or when the file is loaded, DOCKER-USER is another for %s than it is now. Save that "
        "chain alone, or keep its rules as policies: all that iptables-save prints holds Docker's own rules too."
        % (path, said, FAMILY_TEXTS[family.name]),
        family.place(),
        subject=path,
    )


def _texts(rules: t.Iterable[Rule], family: str) -> t.List[str]:
    return [normalise(rule, family).render() for rule in rules]


def _difference(one: t.List[Rule], two: t.List[Rule], family: str) -> t.Tuple[t.List[Rule], t.List[Rule]]:
    """The rules that only the one has, and those that only the other has, whatever their order."""
    one, two = _unpaired(one, two, Rule.render), _unpaired(two, one, Rule.render)
    if one and two:
        # A file that somebody wrote by hand spells them otherwise.
        one, two = (
            _unpaired(one, two, lambda rule: normalise(rule, family).render()),
            _unpaired(two, one, lambda rule: normalise(rule, family).render()),
        )
    return one, two


def _unpaired(one: t.List[Rule], two: t.List[Rule], key: t.Callable[[Rule], str]) -> t.List[Rule]:
    rest = collections.Counter(key(rule) for rule in two)
    left = []
    for rule in one:
        text = key(rule)
        if rest[text] > 0:
            rest[text] -= 1
        else:
            left.append(rule)
    return left


def _quoted(rules: t.Sequence[Rule]) -> str:
    first = rules[0].render()
    text = "`%s`" % (first if len(first) <= 120 else first[:117] + "...")
    return text if len(rules) == 1 else "%s and %d more" % (text, len(rules) - 1)


def saved_docker_rules(survey: Survey) -> t.Iterator[Finding]:
    """Saved files with rules that Docker writes by itself, for containers as they were then."""
    for family in survey.families:
        for path, dump in _saved_files(survey, family.name):
            found = list(_dockers_rules(family, dump))
            if found:
                table, chain, rule = found[0]
                yield Finding(
                    "saved_docker_rules",
                    MEDIUM,
                    "%s holds %s of Docker's own, such as `-A %s %s` (table %s). Docker writes them by itself for the "
                    "containers that run; loading the file puts those of an earlier time in their place, and ports "
                    "then lead to addresses that are nobody's or another container's. Save your own rules only."
                    % (path, "1 rule" if len(found) == 1 else "%d rules" % len(found), chain, rule, table),
                    Place(family.name, family.variant, table, chain),
                    subject=path,
                )


def _dockers_rules(family: Family, dump: Dump) -> t.Iterator[t.Tuple[str, str, str]]:
    """Table, chain and rule of what Docker wrote: DNAT to containers first, as that is what hurts."""
    found = []
    for table in dump.tables.values():
        for chain in table.chains.values():
            for rule in chain.rules:
                if is_dockers(chain.name) or _is_dockers(family, rule):
                    found.append((table.name, chain.name, rule))
    found.sort(key=lambda item: item[2].target != "DNAT")
    for table_name, chain_name, rule in found:
        yield table_name, chain_name, rule.render()


def _is_dockers(family: Family, rule: Rule) -> bool:
    """A rule of Docker's in a built-in chain of nat, as it was before Docker had chains for that."""
    target = rule.target
    source, out = rule.value("source"), rule.get("out_interface")
    if target == "MASQUERADE" and source is not None and out is not None and out.negated:
        return _is_containers(family, source)
    if target == "DNAT":
        destination = rule.value("to_destination") or ""
        address = destination[1:].partition("]")[0] if family.name == IPV6 else destination.partition(":")[0]
        return _is_containers(family, address)
    return False


def _is_containers(family: Family, network: str) -> bool:
    try:
        return bool(family.subnets) and covers(family.subnets, of_network(network))
    except ValueError:
        return False
