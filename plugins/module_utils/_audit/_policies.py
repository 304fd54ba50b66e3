# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Policies that say in DOCKER-USER what a rule elsewhere was to say: options of the module docker_user_rule."""

from __future__ import annotations

import itertools
import re
import typing as t
import weakref

from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import Fix
from ansible_collections.quaywall.docker.plugins.module_utils._audit._fixes import fix, policy_task
from ansible_collections.quaywall.docker.plugins.module_utils._chain import mark_of
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import (
    EVERYTHING,
    Intervals,
    networks,
    subtract,
)

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import Json
    from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import Family, Published, Survey

#: More sources than this are no policy that somebody wants to read.
_MOST_SOURCES = 16


# Rules and ports that are looked at for fixes, of one host: who gains and who loses is found by planning and walking.
_MOST_LOOKS = 12000
_LOOKS: t.MutableMapping[t.Any, int] = weakref.WeakKeyDictionary()


class Denied(t.NamedTuple):
    """Who is to be kept from a published port.

    ``interface``: only who comes in through it; empty: whichever way. ``verdict`` is a target such as C(DROP).
    """

    published: Published
    peers: Intervals
    interface: str = ""
    verdict: str = "DROP"


def policy_names(survey: Survey) -> t.Set[str]:
    """The names of the policies that the host has."""
    return {
        mark.policy
        for family in survey.families
        if family.docker_user is not None
        for mark in map(mark_of, family.docker_user.rules)
        if mark is not None
    }


def free_name(taken: t.Collection[str], *words: t.Any) -> str:
    """A valid name for a policy that no other one has, always the same for the same words."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", "-".join(str(word) for word in words if word != ""))[:60]
    for number in itertools.count(2):
        if name not in taken:
            break
        name = "%s-%d" % (re.sub(r"-\d+\Z", "", name) if number > 2 else name, number)
    return name


def written(
    family: Family, description: str, policies: t.Sequence[Json], touched: t.Sequence[Published]
) -> t.Optional[Fix]:
    """The fix that writes policies; its tasks alone, if a big host has had many fixes already."""
    survey = family.survey
    looks = sum(
        len(other.published) + (len(other.docker_user.rules) if other.docker_user is not None else 0)
        for other in survey.families
    )
    _LOOKS[survey] = _LOOKS.get(survey, 0) + looks
    if _LOOKS[survey] > _MOST_LOOKS and _LOOKS[survey] > looks:
        return Fix(description, tuple(policy_task(options) for options in policies))
    return fix(family, description, policies, touched=touched)


def closing(family: Family, denied: t.Sequence[Denied]) -> t.Optional[t.List[Json]]:
    """The policies that keep all of them out; None if they cannot be said in few words."""
    taken = policy_names(family.survey)
    found: t.List[Json] = []
    for item in denied:
        who = _who(family, item)
        if who is None:
            return None
        # Who is named has an address of one family; that policy is not to close the other.
        one_family = {"ip_version": family.name} if "source" in who else {}
        binding = item.published.binding
        name = free_name(taken, item.published.container.name, binding.host_port, one_family.get("ip_version", ""))
        taken.add(name)
        options: t.Dict[str, t.Any] = {"name": name, **_target(family, item.published, denied)}
        if binding.protocol != "tcp":
            options["protocol"] = binding.protocol
        options.update(who)
        options.update(one_family)
        found.append(options)
    return found


def _who(family: Family, item: Denied) -> t.Optional[t.Dict[str, t.Any]]:
    """Sources and what becomes of them."""
    deny = "reject" if item.verdict == "REJECT" else "drop"
    where = {"in_interface": item.interface} if item.interface else {}
    everybody = EVERYTHING[family.name]
    if item.peers == everybody:
        return {**where, "action": deny}
    named = _sources(item.peers, family)
    others = None if where else _sources(subtract(everybody, item.peers), family)
    if others is not None and (named is None or len(others) <= len(named)):
        return {"source": others, "action": "return", "otherwise": deny}
    return None if named is None else {**where, "source": named, "action": deny}


def _sources(peers: Intervals, family: Family) -> t.Optional[t.List[str]]:
    found = list(itertools.islice(networks(peers, family.name), _MOST_SOURCES + 1))
    return found if 0 < len(found) <= _MOST_SOURCES else None


def _target(family: Family, published: Published, denied: t.Sequence[Denied]) -> t.Dict[str, t.Any]:
    """The container and its port; the host port where another one leads to the same, or no container is known."""
    binding = published.binding
    container = published.container
    kept = [
        other
        for other in family.published
        if other.container.id == container.id
        and other.binding.container_port == binding.container_port
        and other.binding.protocol == binding.protocol
        and not any(other == item.published for item in denied)
    ]
    if container.id and published.endpoint is not None and not kept:
        return {"container": container.name, "destination_port": [str(binding.container_port)]}
    target: t.Dict[str, t.Any] = {"published_port": str(binding.host_port)}
    if binding.host_address not in ("", "0.0.0.0", "::"):
        target["published_address"] = binding.host_address
    return target
