# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The chains that are ours alone: what DOCKER-USER ends with where the default is to drop, and the guard.

The guard repeats the denies of DOCKER-USER in the table mangle, which no engine touches: Engines up to 27 take the jump
to DOCKER-USER away for a moment at each C(docker network create), 28.5 with live-restore stands in front of it at each
start. In mangle FORWARD (read before filter) a denied packet gets a mark; in mangle POSTROUTING (read after filter) one
that still carries it is dropped. So DOCKER-USER denies first, with its REJECT, its LOG and its counters, and the guard
stops only what nobody asked DOCKER-USER about. What comes in to docker-proxy (:mod:`_proxy` says when) is for the host
itself: mangle INPUT drops it.
"""

from __future__ import annotations

import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._chain import (
    ALLOWING,
    DEFAULT_CHAIN,
    DEFAULT_COMMENT,
    FILTER,
    FORWARD,
    GUARD_CHAIN,
    GUARD_COMMENT,
    GUARD_DENY_CHAIN,
    GUARD_MARK,
    INPUT,
    MANGLE,
    POSTROUTING,
    PROXY_CHAIN,
    Table,
    can_only_deny,
    is_default,
    mark_of,
)
from ansible_collections.quaywall.docker.plugins.module_utils._plan import OwnChain, established_rule, with_policy
from ansible_collections.quaywall.docker.plugins.module_utils._rule import Field, Rule, field, normalise, parse

_FORWARD_HOOK = parse('-m comment --comment "%s" -j %s' % (GUARD_COMMENT, GUARD_CHAIN))
_POSTROUTING_HOOK = parse('-m mark --mark %s -m comment --comment "%s" -j DROP' % (GUARD_MARK, GUARD_COMMENT))
_INPUT_HOOK = parse('-m comment --comment "%s" -j %s' % (GUARD_COMMENT, PROXY_CHAIN))
_DENY = parse("-j MARK --set-xmark %s/0xffffffff" % GUARD_MARK)

#: What DOCKER-USER ends with where everything that no policy lets in is dropped.
DEFAULT_RULE = Rule((field("match", "comment"), field("comment", DEFAULT_COMMENT), field("jump", DEFAULT_CHAIN)))


def default_rules(bridges: t.Iterable[str], outside: t.Sequence[str]) -> t.List[Rule]:
    """The rules of the default chain.

    :param bridges: the interfaces of Docker's networks.
    :param outside: the interfaces that strangers come in through; none: all but the bridges.
    """
    known = sorted(bridges)
    to = [field("out_interface", bridge) for bridge in known]
    drop = field("jump", "DROP")
    if outside:
        return [Rule((field("in_interface", name), out, drop)) for name in outside for out in to]
    # RETURN leads back to DOCKER-USER, where the rules of other tools are read.
    inside = [Rule((field("in_interface", bridge), field("jump", "RETURN"))) for bridge in known]
    return inside + [Rule((out, drop)) for out in to]


def _guarding(rule: Rule) -> t.Optional[Rule]:
    """The rule of the guard that stands for one of DOCKER-USER; None for one that decides nothing."""
    target = rule.target
    if target == "LOG":
        return None
    fields = [item for item in rule.fields if item.name not in ("jump", "goto", "reject_with")]
    end: Field = field("jump", "RETURN") if target in ALLOWING else field("goto", GUARD_DENY_CHAIN)
    return Rule((*fields, end))


def guard_rules(managed: t.Sequence[Rule], default: t.Sequence[Rule]) -> t.List[Rule]:
    """The rules of the guard.

    :param managed: the managed block of DOCKER-USER.
    :param default: the rules of the default chain; empty if the default is to return.
    """
    found = [established_rule("RETURN"), *managed, *default]
    guarding = [_guarding(rule) for rule in found if rule.comment != DEFAULT_COMMENT]
    return [rule for rule in guarding if rule is not None]


def own_chain(
    table: Table,
    name: str,
    wanted: t.Optional[t.Sequence[Rule]],
    family: str,
    hooks: t.Sequence[t.Tuple[str, Rule]] = (),
) -> OwnChain:
    """A chain of ours as it is and is to be.

    :param wanted: its rules; None if it is to go.
    :param hooks: the rules of other chains that belong to it, each wanted once while the chain is there, and in front
        of all that may let a packet pass.
    """
    chain = table.chains.get(name)
    before = None if chain is None else tuple(rule.render() for rule in chain.rules)
    after = None if wanted is None else tuple(rule.render() for rule in wanted)
    # Versions of iptables print the same rule differently: what is there stays as it is spelt.
    if chain is not None and wanted is not None and _same(chain.rules, wanted, family):
        after = before
    deletes: t.List[t.Tuple[str, str]] = []
    inserts: t.List[t.Tuple[str, str]] = []
    for place, hook in hooks:
        there = _rules(table, place)
        found = [index for index, rule in enumerate(there) if _same([rule], [hook], family)]
        reached = bool(found) and all(can_only_deny(rule, table.chains) for rule in there[: found[0]])
        keep = 1 if wanted is not None and reached else 0
        deletes += [(place, there[index].render()) for index in found[keep:]]
        if wanted is not None and not keep:
            inserts.append((place, hook.render()))
    return OwnChain(table.name, name, before, after, tuple(deletes), tuple(inserts))


def _rules(table: Table, name: str) -> t.Tuple[Rule, ...]:
    chain = table.chains.get(name)
    return () if chain is None else chain.rules


def _same(one: t.Sequence[Rule], two: t.Sequence[Rule], family: str) -> bool:
    return len(one) == len(two) and all(
        left == right or normalise(left, family).render() == normalise(right, family).render()
        for left, right in zip(one, two)
    )


def own_default(table: Table, wanted: t.Optional[t.Sequence[Rule]], family: str) -> OwnChain:
    """The default chain; None if the default is to return."""
    return own_chain(table._replace(name=FILTER), DEFAULT_CHAIN, wanted, family)


def own_guard(table: Table, wanted: t.Optional[t.Sequence[Rule]], family: str) -> t.Tuple[OwnChain, ...]:
    """The guard's chains in the table mangle; None if it is to go."""
    table = table._replace(name=MANGLE)
    deny = own_chain(table, GUARD_DENY_CHAIN, None if wanted is None else [_DENY], family)
    hooks = [(FORWARD, _FORWARD_HOOK), (POSTROUTING, _POSTROUTING_HOOK)]
    guard = own_chain(table, GUARD_CHAIN, wanted, family, hooks)
    # One that goes must not be led to any more.
    return (guard, deny) if wanted is None else (deny, guard)


def proxy_rules(bridges: t.Iterable[str], lines: t.Sequence[Rule]) -> t.Optional[t.List[Rule]]:
    """The guard's rules for what comes in to docker-proxy; None if there are none.

    Also where they stop nobody: docker_user_rule adds the denies of one policy, and knows no other's lines but these.

    :param bridges: the interfaces of Docker's networks: containers reach a published port by docker-proxy as a rule.
    :param lines: the rules of all policies and of the default, in their order.
    """
    if not lines:
        return None
    passing = ["lo", *sorted(bridges)]
    inside = [Rule((field("in_interface", name), field("jump", "RETURN"))) for name in passing]
    return [established_rule("RETURN"), *inside, *lines]


def kept_proxy_lines(mangle: Table, policies: t.Optional[t.Collection[str]] = None) -> t.List[Rule]:
    """The rules of some policies (None: of all) for docker-proxy, as they are in the kernel."""
    marked = [(rule, mark_of(rule)) for rule in _rules(mangle, PROXY_CHAIN)]
    return [rule for rule, mark in marked if mark is not None and (policies is None or mark.policy in policies)]


def kept_proxy_default(mangle: Table) -> t.List[Rule]:
    """The rules of the default for docker-proxy, as they are in the kernel."""
    return [rule for rule in _rules(mangle, PROXY_CHAIN) if is_default(rule)]


def kept_proxy_bridges(mangle: Table) -> t.List[str]:
    """The interfaces that the rules for docker-proxy let pass now."""
    passing = [rule.value("in_interface") for rule in _rules(mangle, PROXY_CHAIN) if rule.comment is None]
    return [name for name in passing if name is not None and name != "lo"]


def own_proxy(table: Table, wanted: t.Optional[t.Sequence[Rule]], family: str) -> OwnChain:
    """The guard's chain for docker-proxy in the table mangle; None if it is to go."""
    return own_chain(table._replace(name=MANGLE), PROXY_CHAIN, wanted, family, [(INPUT, _INPUT_HOOK)])


def proxy_lines_beside(mangle: Table, name: str, proxied: t.Sequence[Rule]) -> t.List[Rule]:
    """The rules of all policies and of the default for docker-proxy, with these of one policy among them.

    :param name: the policy's.
    """
    others = kept_proxy_lines(mangle)
    others = [rule for rule in others for mark in [mark_of(rule)] if mark is None or mark.policy != name]
    return [*with_policy(None, "", [*others, *proxied]), *kept_proxy_default(mangle)]


def own_chains_beside(
    table: Table,
    mangle: Table,
    block: t.Sequence[Rule],
    family: str,
    lines: t.Sequence[Rule],
    bridges: t.Optional[t.Iterable[str]] = None,
) -> t.List[OwnChain]:
    """For a change of one policy: the guard, where there is one, repeats what the block denies then.

    :param lines: all rules for docker-proxy then.
    :param bridges: those of Docker's networks; None where they were not looked up, and stay as they are.
    """
    chain = table.chains.get(DEFAULT_CHAIN)
    default = chain.rules if chain is not None and any(is_default(rule) for rule in block) else ()
    own = own_guard(mangle, guard_rules(block, default) if block else None, family)
    if bridges is None:
        bridges = kept_proxy_bridges(mangle)
    return [made for made in (*own, own_proxy(mangle, proxy_rules(bridges, lines), family)) if made.changes]
