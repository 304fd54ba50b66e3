# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The difference between DOCKER-USER as it is and as it should be, and the chain that results.

Laws (property tests): ``apply(plan) == plan.after``; planning again from ``plan.after`` is empty; foreign rules keep
text and order.
"""

from __future__ import annotations

import bisect
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._chain import (
    DOCKER_USER,
    ESTABLISHED_COMMENT,
    FILTER,
    FORWARD,
    GUARD_CHAIN,
    MANGLE,
    PROXY_CHAIN,
    Chain,
    Table,
    can_only_deny,
    is_bare_return,
    is_default,
    is_established,
    is_managed,
    mark_of,
    only_established,
)
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, Rule, field, normalise, parse


class Delete(t.NamedTuple):
    """Take out a rule of ours, named by its text: a number would hit a foreign rule if somebody wrote in between."""

    spec: str


class Insert(t.NamedTuple):
    """Put a rule of ours at a position (from 1), counted when the lines before it have been carried out."""

    position: int
    spec: str


class Append(t.NamedTuple):
    """Put a rule behind all others, also behind those that somebody else writes meanwhile."""

    spec: str


Operation = t.Union[Delete, Insert, Append]


class OwnChain(t.NamedTuple):
    """A chain that is all ours, as it is and as it is to be; None where there is none. It is written as a whole.

    ``hooks`` are the rules elsewhere in the table that lead to it: those to delete, and those to insert at the top.
    """

    table: str
    name: str
    before: t.Optional[t.Tuple[str, ...]]
    after: t.Optional[t.Tuple[str, ...]]
    deletes: t.Tuple[t.Tuple[str, str], ...] = ()
    inserts: t.Tuple[t.Tuple[str, str], ...] = ()

    @property
    def changes(self) -> bool:
        return self.before != self.after or bool(self.deletes or self.inserts)

    def reverse(self) -> OwnChain:
        return OwnChain(self.table, self.name, self.after, self.before, self.inserts, self.deletes)


class Plan(t.NamedTuple):
    """What one transaction does to one family's filter table, and what one does to its mangle table before.

    ``before`` and ``after`` are the chain's rules; ``create_chain`` and ``add_jump`` say whether DOCKER-USER is made
    and whether FORWARD gets its jump at the top, ``lift_jump`` the place (from 1) of the one that it loses for it or 0.
    ``unreachable`` are foreign rules behind an unconditional RETURN. ``own`` are the chains that are ours alone.
    """

    before: t.Tuple[str, ...]
    after: t.Tuple[str, ...]
    operations: t.Tuple[Operation, ...]
    create_chain: bool
    add_jump: bool
    unreachable: t.Tuple[str, ...]
    lift_jump: int = 0
    own: t.Tuple[OwnChain, ...] = ()

    @property
    def empty(self) -> bool:
        return not (
            self.operations or self.create_chain or self.add_jump or self.lift_jump or any(o.changes for o in self.own)
        )

    def transaction(self) -> str:
        """The plan as input of C(iptables-restore --noflush): a COMMIT for mangle where it changes, one for filter.

        The guard comes first: it only denies, so that nothing is open between the two.
        """
        lines = []
        if self.create_chain:
            lines.append(":%s - [0:0]" % DOCKER_USER)
        if self.lift_jump:
            lines.append("-D %s -j %s" % (FORWARD, DOCKER_USER))
        if self.add_jump or self.lift_jump:
            lines.append("-I %s 1 -j %s" % (FORWARD, DOCKER_USER))
        operations = [_line(operation) for operation in self.operations]
        # A chain must be there before a rule leads to it, and nothing may lead to it when it goes.
        made = [chain for chain in self._own(FILTER) if chain.after is not None]
        gone = [chain for chain in self._own(FILTER) if chain.after is None]
        return _mangle(self._own(MANGLE)) + _table(FILTER, [*_write(made), *lines, *operations, *_write(gone)])

    def guard_after(self) -> t.Mapping[str, t.Tuple[str, ...]]:
        """The rules of the guard's chains as they will be, without those that stay as they are."""
        return {c.name: c.after or () for c in self._own(MANGLE) if c.name in (GUARD_CHAIN, PROXY_CHAIN)}

    def _own(self, table: str) -> t.List[OwnChain]:
        return [chain for chain in self.own if chain.table == table and chain.changes]

    def undo(self) -> str:
        """The transaction that takes the plan back, as long as nobody else changed our rules since."""
        deleted: t.Dict[str, int] = {}
        for operation in self.operations:
            if isinstance(operation, Delete):
                deleted[operation.spec] = deleted.get(operation.spec, 0) + 1
        lines = [_line(Delete(operation.spec)) for operation in self.operations if not isinstance(operation, Delete)]
        for index, spec in enumerate(self.before):
            if deleted.get(spec):
                deleted[spec] -= 1
                lines.append(_line(Insert(index + 1, spec)))
        if self.add_jump or self.lift_jump:
            lines.append("-D %s -j %s" % (FORWARD, DOCKER_USER))
        if self.lift_jump:
            lines.append("-I %s %d -j %s" % (FORWARD, self.lift_jump, DOCKER_USER))
        if self.create_chain:
            lines.append("-X %s" % DOCKER_USER)
        back = [chain.reverse() for chain in self._own(FILTER)]
        made = [chain for chain in back if chain.after is not None]
        gone = [chain for chain in back if chain.after is None]
        return _table(FILTER, [*_write(made), *lines, *_write(gone)]) + self.undo_guard()

    def undo_guard(self) -> str:
        """The transaction that takes back what the plan did to mangle; empty if that is nothing."""
        return _mangle([chain.reverse() for chain in reversed(self._own(MANGLE))])


def _line(operation: Operation) -> str:
    if isinstance(operation, Delete):
        return "-D %s %s" % (DOCKER_USER, operation.spec)
    if isinstance(operation, Append):
        return "-A %s %s" % (DOCKER_USER, operation.spec)
    return "-I %s %d %s" % (DOCKER_USER, operation.position, operation.spec)


def _mangle(chains: t.Sequence[OwnChain]) -> str:
    return _table(MANGLE, _write(chains)) if chains else ""


def _write(chains: t.Sequence[OwnChain]) -> t.List[str]:
    """Lines that bring chains of ours to what they are to be."""
    lines: t.List[str] = []
    # A chain that is named is made, or emptied, in the same transaction.
    lines += [":%s - [0:0]" % chain.name for chain in chains]
    for chain in chains:
        lines += ["-D %s %s" % hook for hook in chain.deletes]
        lines += ["-A %s %s" % (chain.name, spec) for spec in chain.after or ()]
        lines += ["-I %s 1 %s" % hook for hook in chain.inserts]
    lines += ["-X %s" % chain.name for chain in chains if chain.after is None]
    return lines


def _table(name: str, lines: t.Sequence[str]) -> str:
    return "".join(line + "\n" for line in ["*" + name, *lines, "COMMIT"])


def established_rule(target: str = "ACCEPT") -> Rule:
    """The baseline's first rule: replies and established connections pass."""
    return Rule(
        (
            field("match", "conntrack"),
            field("ctstate", "RELATED,ESTABLISHED"),
            field("match", "comment"),
            field("comment", ESTABLISHED_COMMENT),
            field("jump", target),
        )
    )


RETURN_RULE = parse("-j RETURN")


def arrange(
    chain: Chain,
    chains: t.Mapping[str, Chain],
    managed: t.Sequence[Rule],
    established: bool,
    add_return: bool,
    family: str = IPV4,
    established_target: str = "ACCEPT",
    keep_foreign: bool = True,
) -> t.List[Rule]:
    """The rules of DOCKER-USER in their right order.

    ESTABLISHED first; then foreign rules from the top that can only deny (or have nothing left to allow behind
    ESTABLISHED), so that the bans of other tools hold; then the managed block, so that no foreign ACCEPT or RETURN
    opens what a policy closes; then the other foreign rules with the first bare RETURN among them where it stands.

    :param managed: the rules of all policies in the order of the managed block, without the baseline.
    :param keep_foreign: False takes the rules of others out.
    """
    foreign = [rule for rule in chain.rules if not is_managed(rule)] if keep_foreign else []
    judged: t.Dict[str, bool] = {}
    lead = 0
    while lead < len(foreign) and (
        can_only_deny(foreign[lead], chains, judged) or (established and only_established(foreign[lead]))
    ):
        lead += 1
    rules: t.List[Rule] = []
    if established:
        # A comment alone is no proof: without its match, the first rule would open every policy.
        first = established_rule(established_target)
        wanted = _identity(first, family)
        present = [rule for rule in chain.rules if is_established(rule) and _identity(rule, family) == wanted]
        rules.append(present[0] if present else first)
    rules += foreign[:lead]
    rules += managed
    rules += foreign[lead:]
    if add_return and not any(is_bare_return(rule) for rule in foreign):
        rules.append(RETURN_RULE)
    return rules


def unreachable(rules: t.Sequence[Rule]) -> t.List[Rule]:
    """Foreign rules that nothing reads, as they stand behind an unconditional RETURN."""
    for index, rule in enumerate(rules):
        if is_bare_return(rule):
            return [dead for dead in rules[index + 1 :] if not is_managed(dead)]
    return []


def _longest_increasing(values: t.Sequence[int]) -> t.List[int]:
    """Indexes of one longest increasing subsequence (patience sorting, n log n)."""
    tails: t.List[int] = []
    tail_indexes: t.List[int] = []
    previous: t.List[int] = []
    for index, value in enumerate(values):
        place = bisect.bisect_left(tails, value)
        previous.append(tail_indexes[place - 1] if place else -1)
        if place == len(tails):
            tails.append(value)
            tail_indexes.append(index)
        else:
            tails[place] = value
            tail_indexes[place] = index
    chosen: t.List[int] = []
    index = tail_indexes[-1] if tail_indexes else -1
    while index >= 0:
        chosen.append(index)
        index = previous[index]
    return chosen[::-1]


def _identity(rule: Rule, family: str) -> str:
    """What makes two rules the same, however a version of iptables prints them."""
    return normalise(rule, family).render()


def _operations(
    before: t.Sequence[Rule],
    after: t.Sequence[Rule],
    family: str,
    is_managed: t.Callable[[Rule], bool] = is_managed,
) -> t.Tuple[t.List[Operation], t.List[Rule]]:
    """The fewest deletes and inserts of managed rules that lead from before to after, and the rules that result.

    Foreign rules are the same in both and in the same order. A managed rule stays where it is (and keeps its counters)
    if its order among those that stay, and to every foreign rule, is right. It stays as it is spelt there: versions of
    iptables print the same rule differently.
    """
    if len(before) == len(after) and all(
        one == two or _identity(one, family) == _identity(two, family) for one, two in zip(before, after)
    ):
        # Also where a rule stands twice: writing both again, as below, would never come to an end.
        return [], list(before)
    # Foreign rules are anchors. A managed rule can stay only between the same two anchors.
    places: t.Dict[str, t.List[t.Tuple[int, int]]] = {}
    anchor = 0
    for index, rule in enumerate(before):
        if is_managed(rule):
            places.setdefault(_identity(rule, family), []).append((anchor, index))
        else:
            anchor += 1
    candidates: t.List[t.Tuple[int, int]] = []  # (index in after, index in before)
    anchor = 0
    managed_after = [is_managed(rule) for rule in after]
    for index, rule in enumerate(after):
        if not managed_after[index]:
            anchor += 1
            continue
        found = places.get(_identity(rule, family)) if places else None
        # Of rules that stand there twice none can be told from the other by its text: all are written again.
        if found is not None and len(found) == 1 and found[0][0] == anchor:
            candidates.append((index, found[0][1]))
    kept_pairs = [candidates[index] for index in _longest_increasing([pair[1] for pair in candidates])]
    kept_after = dict(kept_pairs)
    kept_before = set(kept_after.values())
    operations: t.List[Operation] = [
        Delete(rule.render()) for index, rule in enumerate(before) if is_managed(rule) and index not in kept_before
    ]
    operations += _inserts(after, [index for index, own in enumerate(managed_after) if own and index not in kept_after])
    return operations, [before[kept_after[index]] if index in kept_after else rule for index, rule in enumerate(after)]


#: Rules that stand together and are written from the first to the last, as a person would.
_FEW = 64


def _inserts(after: t.Sequence[Rule], indexes: t.Sequence[int]) -> t.Iterator[Insert]:
    """Inserts that bring the rules at these indexes, in order, to their places.

    Where many stand together they are written from the last to the first, each at the place of the first: nft looks for
    the rule that a number means by going through the chain, in the kernel too, unless the number is 1.
    """
    start = 0
    while start < len(indexes):
        end = start + 1
        while end < len(indexes) and indexes[end] == indexes[end - 1] + 1:
            end += 1
        together = indexes[start:end]
        if len(together) > _FEW:
            yield from (Insert(together[0] + 1, after[index].render()) for index in reversed(together))
        else:
            yield from (Insert(index + 1, after[index].render()) for index in together)
        start = end


def plan(
    table: Table,
    managed: t.Sequence[Rule],
    established: bool,
    add_return: bool,
    family: str = IPV4,
    established_target: str = "ACCEPT",
    keep_foreign: bool = True,
    own: t.Sequence[OwnChain] = (),
    need_chain: bool = False,
    lift_jump: bool = False,
) -> Plan:
    """The plan for one family's filter table.

    :param managed: the rules of all policies in the order of the managed block; empty takes ours out.
    :param established: ESTABLISHED is to be the first rule.
    :param add_return: a bare RETURN is to be there.
    :param established_target: what becomes of ESTABLISHED, C(ACCEPT) or C(RETURN).
    :param keep_foreign: False takes the rules of others out of DOCKER-USER.
    :param own: the chains that are ours alone, as they are and are to be.
    :param need_chain: DOCKER-USER and its jump are to be there even if no policy is.
    :param lift_jump: the jump is to be the first rule of FORWARD.
    """
    chain = table.chains.get(DOCKER_USER)
    forward = table.chains.get(FORWARD)
    before = chain if chain is not None else Chain(DOCKER_USER, None, ())
    after = arrange(before, table.chains, managed, established, add_return, family, established_target, keep_foreign)
    operations, after = _operations(before.rules, after, family, is_managed if keep_foreign else _everything)
    # The RETURN that the baseline adds is foreign from then on: it is never commented, so never taken out by us.
    if keep_foreign and after and is_bare_return(after[-1]) and not any(map(is_bare_return, before.rules)):
        # Appended: at a number it could come to stand in front of a rule that somebody else just wrote, and kill that.
        operations.append(Append(after[-1].render()))
    jump = 1 + next((index for index, rule in enumerate(forward.rules if forward else ()) if is_jump(rule)), -1)
    return Plan(
        before=tuple(rule.render() for rule in before.rules),
        after=tuple(rule.render() for rule in after),
        operations=tuple(operations),
        create_chain=chain is None and (need_chain or bool(after)),
        add_jump=not jump and (need_chain or bool(managed)),
        unreachable=tuple(rule.render() for rule in unreachable(after)),
        lift_jump=jump if lift_jump and jump > 1 else 0,
        own=tuple(own),
    )


def _everything(rule: Rule) -> bool:
    return True


def is_jump(rule: Rule) -> bool:
    """True for C(-j DOCKER-USER) alone, the jump that Docker keeps in FORWARD."""
    return len(rule.fields) == 1 and rule.fields[0].name == "jump" and rule.fields[0].value == DOCKER_USER


def jump_is_first(table: Table) -> bool:
    """True if FORWARD reads DOCKER-USER before anything else."""
    forward = table.chains.get(FORWARD)
    return forward is not None and bool(forward.rules) and is_jump(forward.rules[0])


def apply(operations: t.Iterable[Operation], before: t.Sequence[str]) -> t.Tuple[str, ...]:
    """What the kernel makes of the operations: the model that the property tests hold against the kernel.

    :raises ValueError: a rule to delete is not there, or a position is beyond the end; the kernel refuses these too.
    """
    rules = list(before)
    for operation in operations:
        if isinstance(operation, Delete):
            rules.remove(operation.spec)
        elif isinstance(operation, Append):
            rules.append(operation.spec)
        else:
            if not 1 <= operation.position <= len(rules) + 1:
                raise ValueError("position %d of %d" % (operation.position, len(rules)))
            rules.insert(operation.position - 1, operation.spec)
    return tuple(rules)


def with_policy(chain: t.Optional[Chain], name: str, rules: t.Sequence[Rule]) -> t.List[Rule]:
    """The managed block with the rules of one policy replaced (or taken out, if there are none)."""
    others = [] if chain is None else [rule for rule in chain.rules if mark_of(rule) is not None or is_default(rule)]
    block = [rule for rule in others if _policy(rule) != name] + list(rules)
    # The sort is stable: rules of one policy keep the order that they were made in.
    return sorted(block, key=_key)


def _policy(rule: Rule) -> t.Optional[str]:
    mark = mark_of(rule)
    return None if mark is None else mark.policy


def _key(rule: Rule) -> t.Tuple[bool, int, str]:
    mark = mark_of(rule)
    return (True, 1000, "") if mark is None else mark.key
