# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Fixes: a policy for whom a rule was meant, the rule taken out, and who gains and who loses access by that.

What a fix does is found by doing it to the snapshot: the policies are compiled and planned by the very code that the
module docker_user_rule runs, and the chain that results is walked.
"""

from __future__ import annotations

import bisect
import functools
import shlex
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import Fix, Json, listed
from ansible_collections.quaywall.docker.plugins.module_utils._audit._survey import (
    FAMILY_TEXTS,
    Endpoint,
    Family,
    Published,
    Survey,
)
from ansible_collections.quaywall.docker.plugins.module_utils._chain import DOCKER_USER, FORWARD, Chain, mark_of
from ansible_collections.quaywall.docker.plugins.module_utils._intervals import (
    EVERYTHING,
    Intervals,
    intersect,
    join,
    size,
    subtract,
)
from ansible_collections.quaywall.docker.plugins.module_utils._plan import (
    Append,
    Delete,
    Insert,
    Operation,
    arrange,
    plan,
    with_policy,
)
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV6, Rule, arguments, parse
from ansible_collections.quaywall.docker.plugins.module_utils._walk import SOURCE

if t.TYPE_CHECKING:
    from ansible_collections.quaywall.docker.plugins.module_utils._inventory import Binding, Container
    from ansible_collections.quaywall.docker.plugins.module_utils._walk import Flow, Outcome, Program, Site

_MODULE = "quaywall.docker.docker_user_rule"
_COMMANDS = {"ipv4": "iptables", "ipv6": "ip6tables"}
#: Seconds that a command waits for the lock of legacy iptables.
_WAIT = ("-w", "10")

#: Connections of containers that stand for all that they open: to the web and to name servers.
_OWN = (("tcp", 443), ("udp", 53))
#: Containers whose own connections are looked at.
_MOST_ENDPOINTS = 50


def command(family: Family, *words: str) -> t.List[str]:
    """The arguments of an iptables command for the variant that Docker uses."""
    program = _COMMANDS[family.name]
    if family.survey.snapshot.default_variants.get(family.name, family.variant) != family.variant:
        program += "-" + family.variant
    return [program, *_WAIT, *words]


def shell(words: t.Sequence[str]) -> str:
    """A command as it is typed."""
    return " ".join(shlex.quote(word) for word in words)


def command_task(name: str, words: t.Sequence[str]) -> Json:
    """A task that runs a command."""
    return {"name": name, "ansible.builtin.command": {"argv": list(words)}, "changed_when": True}


def policy_task(options: Json) -> Json:
    """A task that writes a policy."""
    return {"name": "Policy %s" % options["name"], _MODULE: dict(options)}


def delete_words(family: Family, site: Site) -> t.List[str]:
    """The command that takes one rule out, by its text: a number would hit another rule if somebody wrote meanwhile."""
    return command(family, "-D", site.chain, *arguments(family.rule(site).render()))


def fix(
    family: Family,
    description: str,
    policies: t.Sequence[Json] = (),
    delete: t.Sequence[Site] = (),
    touched: t.Iterable[Published] = (),
) -> t.Optional[Fix]:
    """The fix that writes policies, then takes foreign rules out, in this order: nothing is open in between.

    :param policies: options of docker_user_rule.
    :param delete: rules of DOCKER-USER or of chains below it.
    :param touched: published ports whose access may change; who gains and loses is said of these.
    :returns: None if a policy cannot be written for what is there.
    """
    survey = family.survey
    compiled = _compiled(survey, policies)
    if compiled is None:
        return None
    touched = list(touched)
    commands: t.List[str] = []
    gains: t.List[str] = []
    loses: t.List[str] = []
    for other in survey.families:
        rules: t.Sequence[Rule] = other.docker_user.rules if other.docker_user is not None else ()
        if any(written.get(other.name) for _name, written in compiled):
            words, rules = _planned(other, compiled)
            commands += map(shell, words)
        elif other is not family:
            continue
        dead = delete if other is family else ()
        gained, lost = effects(other, rules, dead, touched)
        gains += gained
        loses += lost
    tasks: t.List[Json] = [policy_task(options) for options in policies]
    for site in delete:
        argv = delete_words(family, site)
        commands.append(shell(argv))
        tasks.append(command_task("Take the old rule out of %s" % site.chain, argv))
    return Fix(description, tuple(tasks), tuple(commands), tuple(gains), tuple(loses))


def _bindings(container: Container) -> t.Tuple[Binding, ...]:
    # Whether a host port is fixed only an inspection of the container tells; most are.
    return tuple(binding._replace(fixed=True) for binding in container.current_ports)


_Compiled = t.List[t.Tuple[str, t.Mapping[str, t.Sequence[Rule]]]]
_Key = t.Tuple[bool, int, str]

#: From so many rules on, those that do not matter are left out before they are read.
_MANY = 200

#: Stands for a policy's rule where there is none.
_NOBODY = Rule(())


def _compiled(survey: Survey, policies: t.Sequence[Json]) -> t.Optional[_Compiled]:
    """Names and rules of policies, as docker_user_rule would make them on this host; None if one cannot be written."""
    if not policies:
        return []
    # Ansible sends no bytecode: what most hosts do not need is not to be compiled at each audit.
    from ansible_collections.quaywall.docker.plugins.module_utils._policy import Policy, PolicyError, compile_policy

    six = survey.family(IPV6)
    ip6_dnat = six.dump is not None and six.docker_manages
    found: _Compiled = []
    try:
        for options in policies:
            policy = Policy.from_options(options)
            found.append((policy.name, compile_policy(policy, survey.inventory, _bindings, ip6_dnat=ip6_dnat).rules))
    except PolicyError:
        return None
    return found


class _Arrangement(t.NamedTuple):
    """DOCKER-USER with its baseline in order and no policy added yet: found once, as many fixes start from it.

    ``rules`` are those that ``operations`` lead to; the managed block begins at ``start`` with rules of ``keys``.
    """

    rules: t.Tuple[Rule, ...]
    operations: t.Tuple[Operation, ...]
    create_chain: bool
    add_jump: bool
    start: int
    keys: t.Tuple[_Key, ...]
    names: t.FrozenSet[str]


@functools.lru_cache(maxsize=4)
def _arrangement(family: Family) -> _Arrangement:
    chain = family.docker_user
    block = with_policy(chain, "", ())
    table = family.filter
    made = plan(table, block, established=True, add_return=True, family=family.name)
    marks = [mark for mark in map(mark_of, block) if mark is not None]
    rules = _rules(chain.rules if chain is not None else (), made.after, family)
    start = next((index for index, rule in enumerate(rules) if mark_of(rule) is not None), -1)
    if start < 0:
        empty = Chain(DOCKER_USER, None, ())
        arranged = arrange(chain or empty, table.chains, [_NOBODY], established=True, add_return=True)
        start = next(index for index, rule in enumerate(arranged) if rule is _NOBODY)
    return _Arrangement(
        rules,
        made.operations,
        made.create_chain,
        made.add_jump or not family.jumps,
        start,
        tuple(mark.key for mark in marks),
        frozenset(mark.policy for mark in marks),
    )


def _rules(before: t.Sequence[Rule], after: t.Sequence[str], family: Family) -> t.Tuple[Rule, ...]:
    """The rules of a plan: themselves, and not others like them, as those to be taken out are known by identity."""
    known: t.Dict[str, t.List[Rule]] = {}
    for rule in before:
        known.setdefault(rule.render(), []).append(rule)
    return tuple(known[text].pop(0) if known.get(text) else parse(text, family=family.name) for text in after)


def _planned(family: Family, compiled: _Compiled) -> t.Tuple[t.List[t.List[str]], t.Sequence[Rule]]:
    """The commands that write all policies, and the rules of DOCKER-USER that result."""
    base = _arrangement(family)
    if base.names.isdisjoint(name for name, _rules_of in compiled):
        rules, keys, operations = list(base.rules), list(base.keys), list(base.operations)
        for _name, written in compiled:
            for rule in written.get(family.name, ()):
                mark = mark_of(rule)
                place = bisect.bisect_right(keys, mark.key) if mark is not None else len(keys)
                if mark is not None:
                    keys.insert(place, mark.key)
                rules.insert(base.start + place, rule)
                operations.append(Insert(base.start + place + 1, rule.render()))
        return list(_commands(family, base.create_chain, base.add_jump, operations)), rules
    chain = family.docker_user
    block: t.Sequence[Rule] = with_policy(chain, "", ())
    for name, written in compiled:
        block = with_policy(Chain(DOCKER_USER, None, tuple(block)), name, written.get(family.name, ()))
    made = plan(family.filter, block, established=True, add_return=True, family=family.name)
    before = chain.rules if chain is not None else ()
    return (
        list(_commands(family, made.create_chain, made.add_jump, made.operations)),
        _rules(before, made.after, family),
    )


def _commands(
    family: Family, create_chain: bool, add_jump: bool, operations: t.Iterable[Operation]
) -> t.Iterator[t.List[str]]:
    if create_chain:
        yield command(family, "-N", DOCKER_USER)
    if add_jump:
        yield command(family, "-I", FORWARD, "1", "-j", DOCKER_USER)
    for operation in operations:
        words = arguments(operation.spec)
        if isinstance(operation, Delete):
            yield command(family, "-D", DOCKER_USER, *words)
        elif isinstance(operation, Append):
            yield command(family, "-A", DOCKER_USER, *words)
        else:
            yield command(family, "-I", DOCKER_USER, str(operation.position), *words)


def effects(
    family: Family, rules: t.Sequence[Rule], delete: t.Sequence[Site], touched: t.Iterable[Published]
) -> t.Tuple[t.List[str], t.List[str]]:
    """Who gains and who loses access when DOCKER-USER has these rules and others are taken out.

    From outside to published ports, which are looked at in this family, whichever they are given in; and of containers
    to other machines, which no policy takes from them.
    """
    gone: t.Dict[str, t.Set[int]] = {}
    for site in delete:
        gone.setdefault(site.chain, set()).add(id(family.rule(site)))
    known = _published(family)
    wanted = {_inner_port(item) for item in touched}
    found = sorted(place for key in wanted for place in known.get(key, ()))
    ports = [(family.published[place], family.inbound(family.published[place])) for place in found]
    before = family.program()
    few = len(rules) < _MANY
    rules = _that_matter(family, before, rules, [flow for _published, ways in ports for flow in ways])
    chains = dict(family.filter.chains)
    chains[DOCKER_USER] = Chain(DOCKER_USER, None, _without(rules, gone.get(DOCKER_USER, set())))
    for name, dead in gone.items():
        if name != DOCKER_USER:
            chains[name] = chains[name]._replace(rules=_without(chains[name].rules, dead))
    after = before.with_chains(chains, [DOCKER_USER, *gone])
    gains: t.List[str] = []
    loses: t.List[str] = []
    unanswered = _unanswered(family) if few else frozenset()
    for published, ways in ports:
        answers = family.replies(published) if id(published) in unanswered else ()
        before_in, after_in = _accepted(family, before, ways, answers), _accepted(family, after, ways, answers)
        for words, change in ((gains, subtract(after_in, before_in)), (loses, subtract(before_in, after_in))):
            if change:
                words.append(
                    "%s: %s over %s" % (family.peers_text(change), _port_text(published), FAMILY_TEXTS[family.name])
                )
    if few:
        gains += _own_gains(family, after)
    return gains, loses


def _inner_port(published: Published) -> t.Tuple[str, str, int]:
    return published.container.id, published.binding.protocol, published.binding.container_port


@functools.lru_cache(maxsize=4)
def _published(family: Family) -> t.Dict[t.Tuple[str, str, int], t.List[int]]:
    """By container and inner port, which of the family's published ports lead there."""
    found: t.Dict[t.Tuple[str, str, int], t.List[int]] = {}
    for place, published in enumerate(family.published):
        found.setdefault(_inner_port(published), []).append(place)
    return found


def _own_gains(family: Family, after: Program) -> t.List[str]:
    """The containers that reach other machines by a fix, as a line of C(gains): more than half of all addresses."""
    names = [
        endpoint.container.name
        for endpoint, reached in _cut_off(family)
        if any(
            size(subtract(now, then)) * 2 > size(family.remote)
            for now, then in zip(_reached(family, after, endpoint), reached)
        )
    ]
    return ["%s: other machines over %s" % (listed(names), FAMILY_TEXTS[family.name])] if names else []


@functools.lru_cache(maxsize=4)
def _cut_off(family: Family) -> t.List[t.Tuple[Endpoint, t.List[Intervals]]]:
    """Containers whose own connections do not all work, and whom they reach. A ban list cuts nobody off."""
    most = size(family.remote)
    near = [endpoint for endpoint in family.endpoints if endpoint.bridge][:_MOST_ENDPOINTS]
    found = [(endpoint, _reached(family, family.program(), endpoint)) for endpoint in near]
    return [(endpoint, reached) for endpoint, reached in found if any(size(peers) * 2 < most for peers in reached)]


def _reached(family: Family, program: Program, endpoint: Endpoint) -> t.List[Intervals]:
    """Whom a container's connections reach, and get answers from, for each of those that stand for all."""
    found = []
    for protocol, port in _OWN:
        flows = zip(family.outgoing(endpoint, protocol, port), family.outgoing_replies(endpoint, protocol, port))
        answered = [_passed(family, program, back, _passed(family, program, out, family.remote)) for out, back in flows]
        found.append(join(piece for peers in answered for piece in peers))
    return found


def _walk(family: Family, program: Program, flow: Flow, within: Intervals) -> t.List[Outcome]:
    """What filter FORWARD does. Of the rules as they are the family may know it already."""
    if program is family.program() and within is EVERYTHING[family.name]:
        return family.briefly(flow, FORWARD, within)
    return program.walk(FORWARD, flow, within, briefly=True)


def _passed(family: Family, program: Program, flow: Flow, within: Intervals) -> Intervals:
    if not within:
        return ()
    return join(
        piece
        for outcome in _walk(family, program, flow, within)
        if not outcome.denies
        for piece in intersect(outcome.peers, within)
    )


def _that_matter(
    family: Family, program: Program, rules: t.Sequence[Rule], flows: t.Sequence[Flow]
) -> t.Sequence[Rule]:
    """The rules of DOCKER-USER without those there now that none of the flows can match: few are left of thousands."""
    chain = family.docker_user
    if chain is None or len(rules) < _MANY:
        return rules
    lane = program.lane(DOCKER_USER, SOURCE)
    kept = {
        id(rule)
        for flow in flows
        for item in lane.candidates(flow, EVERYTHING[family.name])
        for rule in chain.rules[item.position - 1 : item.last]
    }
    present = _present(family)
    return [rule for rule in rules if id(rule) in kept or id(rule) not in present]


@functools.lru_cache(maxsize=4)
def _present(family: Family) -> t.FrozenSet[int]:
    """The rules of DOCKER-USER, by identity: the family keeps them."""
    return frozenset(map(id, family.docker_user.rules if family.docker_user is not None else ()))


def _without(rules: t.Sequence[Rule], dead: t.Set[int]) -> t.Tuple[Rule, ...]:
    return tuple(rule for rule in rules if id(rule) not in dead)


def _port_text(published: Published) -> str:
    return "%s (%s)" % (published.container.name, published.text)


def _accepted(family: Family, program: Program, ways: t.Sequence[Flow], answers: t.Sequence[Flow] = ()) -> Intervals:
    """Who may get through filter FORWARD by any of the ways in, and is answered if answers are given."""
    everybody = EVERYTHING[family.name]
    if answers:
        return join(
            piece
            for flow, answer in zip(ways, answers)
            for piece in _passed(family, program, answer, _passed(family, program, flow, everybody))
        )
    found = [
        outcome.peers for flow in ways for outcome in _walk(family, program, flow, everybody) if not outcome.denies
    ]
    # What a list of banned addresses leaves has thousands of pieces.
    return found[0] if len(found) == 1 else join(piece for peers in found for piece in peers)


@functools.lru_cache(maxsize=4)
def _unanswered(family: Family) -> t.FrozenSet[int]:
    """Published ports, by identity, of which somebody may get in and not be answered: policies let answers pass."""
    program, everybody = family.program(), EVERYTHING[family.name]
    found = set()
    for published in family.published:
        for flow, answer in zip(family.inbound(published), family.replies(published)):
            came = _passed(family, program, flow, everybody)
            if came and _passed(family, program, answer, came) != came:
                found.add(id(published))
    return frozenset(found)
