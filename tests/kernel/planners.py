# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Planners for :meth:`Firewall.change`, put together as the module docker_user_rule does it."""

from __future__ import annotations

import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._chain import DOCKER_USER, is_established
from ansible_collections.quaywall.docker.plugins.module_utils._iptables import FirewallError
from ansible_collections.quaywall.docker.plugins.module_utils._plan import Plan, plan, with_policy
from ansible_collections.quaywall.docker.plugins.module_utils._rule import Rule, parse

if t.TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ansible_collections.quaywall.docker.plugins.module_utils._iptables import State

    Planner = Callable[[State], Mapping[str, Plan]]


def parsed(rules: Mapping[str, Sequence[str]]) -> dict[str, list[Rule]]:
    return {family: [parse(spec, family) for spec in specs] for family, specs in rules.items()}


def policy_planner(name: str, rules: Mapping[str, Sequence[Rule]], baseline: bool = True) -> Planner:
    """The rules of one policy put among those of the others; none takes the policy away."""

    def planner(state: State) -> dict[str, Plan]:
        plans = {}
        for family in sorted({*state.tables, *(family for family, found in rules.items() if found)}):
            if family not in state.tables:
                raise FirewallError(state.unreadable.get(family, "%s is not installed." % family))
            table = state.tables[family]
            chain = table.chains.get(DOCKER_USER)
            mine = rules.get(family, ())
            block = with_policy(chain, name, mine)
            present = chain is not None and any(is_established(rule) for rule in chain.rules)
            plans[family] = plan(
                table,
                block,
                established=bool(block) and (present or (baseline and any(rules.values()))),
                add_return=bool(mine) and baseline,
                family=family,
            )
        return plans

    return planner
