# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What the module docker_user_rule does, from its options to its results."""

from __future__ import annotations

import os
import traceback
import typing as t

from ansible.module_utils.basic import missing_required_lib

from ansible_collections.quaywall.docker.plugins.module_utils._chain import (
    DOCKER_USER,
    docker_manages,
    is_established,
    mark_of,
)
from ansible_collections.quaywall.docker.plugins.module_utils._inventory import DockerError, DockerSdkMissing
from ansible_collections.quaywall.docker.plugins.module_utils._iptables import (
    Change,
    Firewall,
    FirewallError,
    State,
)
from ansible_collections.quaywall.docker.plugins.module_utils._module._edge import (
    make_docker,
    make_finder,
    make_runner,
    printable,
)
from ansible_collections.quaywall.docker.plugins.module_utils._plan import Plan, jump_is_first, plan, with_policy
from ansible_collections.quaywall.docker.plugins.module_utils._policy import (
    Compiled,
    Policy,
    PolicyError,
    check_name,
    compile_policy,
    conflict,
)
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6, Rule

if t.TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

    from ansible_collections.quaywall.docker.plugins.module_utils._docker import Docker

_FAMILY_TEXTS = {IPV4: "IPv4", IPV6: "IPv6"}


def argument_spec() -> t.Dict[str, t.Any]:
    """Options of one policy, as documented in the fragment C(policy)."""
    return {
        "name": {"type": "str", "required": True},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "container": {"type": "str"},
        "labels": {"type": "dict"},
        "network": {"type": "str"},
        "destination": {"type": "str"},
        "published_port": {"type": "str"},
        "published_address": {"type": "str"},
        "container_network": {"type": "str"},
        "protocol": {"type": "str", "choices": ["tcp", "udp", "sctp", "icmp", "all"], "default": "tcp"},
        "destination_port": {"type": "list", "elements": "str"},
        "source": {"type": "list", "elements": "str"},
        "in_interface": {"type": "str"},
        "action": {"type": "str", "choices": ["accept", "return", "drop", "reject"]},
        "otherwise": {"type": "str", "choices": ["drop", "reject", "return", "none"]},
        "same_network": {"type": "str", "choices": ["allow", "filter"], "default": "allow"},
        "match": {"type": "str", "choices": ["both", "address", "published_port"], "default": "both"},
        "log": {
            "type": "dict",
            "options": {"prefix": {"type": "str"}, "limit": {"type": "str", "default": "10/minute"}},
        },
        "priority": {"type": "int", "default": 500},
        "baseline": {"type": "bool", "default": True},
        "ip_version": {"type": "str", "choices": ["auto", "ipv4", "ipv6", "both"], "default": "auto"},
    }


def make_firewall(module: AnsibleModule) -> Firewall:
    """The host's firewall, with the module's way to run and find programs."""
    return Firewall(make_runner(module), make_finder(module))


def run_module(
    module: AnsibleModule,
    create_firewall: t.Callable[[AnsibleModule], Firewall] = make_firewall,
    create_docker: t.Callable[[], Docker] = make_docker,
) -> None:
    """Bring one policy to the kernel (or take it away) and leave the module."""
    try:
        if os.geteuid() != 0:
            module.fail_json(msg="Reading and writing iptables needs root: add become: true to the task or the play.")
        result = _run(module, create_firewall(module), create_docker)
    except DockerSdkMissing as error:
        module.fail_json(msg=missing_required_lib("docker"), exception=error.trace)
    except FirewallError as error:
        module.fail_json(msg=str(error), **{key: printable(value) for key, value in error.details.items()})
    except (PolicyError, DockerError) as error:
        module.fail_json(msg=str(error))
    except Exception as error:  # noqa: BLE001 -- a traceback is no answer, and never the chain's state
        module.fail_json(
            msg="Unexpected error in docker_user_rule: %s. Please report it." % error, exception=traceback.format_exc()
        )
    else:
        module.exit_json(**result)


def _run(module: AnsibleModule, firewall: Firewall, create_docker: t.Callable[[], Docker]) -> t.Dict[str, t.Any]:
    options = module.params
    policy = None if options["state"] == "absent" else Policy.from_options(options)
    name = check_name(str(options["name"]))
    docker = create_docker() if policy is not None and policy.needs_docker else None
    compiled: t.Dict[bool, Compiled] = {}
    unread: t.Set[str] = set()
    dead: t.Set[str] = set()
    late: t.Dict[str, str] = {}

    def planner(state: State) -> t.Dict[str, Plan]:
        ip6_dnat = IPV6 in state.tables and docker_manages(state.tables[IPV6])
        # Endpoints are looked up once; whether IPv6 takes part may depend on the chains that were found.
        if policy is not None and ip6_dnat not in compiled:
            compiled[ip6_dnat] = _compile(policy, docker, ip6_dnat)
        rules = compiled[ip6_dnat].rules if policy is not None else {}
        unread.update(state.unreadable.values())
        plans: t.Dict[str, Plan] = {}
        for family in sorted({*state.tables, *(family for family in rules if rules[family])}):
            if family in state.unreadable:
                raise FirewallError(state.unreadable[family])
            if family not in state.tables:
                raise FirewallError(
                    "%s is not installed, and the target has %s addresses: install it, or write ip_version: ipv4."
                    % ("ip6tables" if family == IPV6 else "iptables", _FAMILY_TEXTS[family])
                )
            plans[family] = _plan_family(state, family, name, policy, rules.get(family, ()), bool(options["baseline"]))
            if plans[family].unreachable:
                dead.update(plans[family].unreachable)
            guarded = bool(rules.get(family)) or _has_managed(state, family)
            if guarded and not plans[family].add_jump and not jump_is_first(state.tables[family]):
                late[family] = _how_to_lift_the_jump(state, family)
        return plans

    changes = firewall.change(planner, dry=bool(module.check_mode), chain_needed=policy is not None)
    last = next(iter(compiled.values()), None)
    warnings = list(last.warnings) if last is not None else []
    warnings += ["IPv6 was left as it is: %s" % reason for reason in sorted(unread)]
    for rule in sorted(dead):
        warnings.append(
            "This rule of another tool stands behind an unconditional RETURN in DOCKER-USER, so nothing reads it: %s"
            % printable(rule)
        )
    for family, advice in sorted(late.items()):
        warnings.append(
            "The %s FORWARD chain reads other rules before it jumps to DOCKER-USER, and what they accept no policy "
            "stops: %s." % (_FAMILY_TEXTS[family], advice)
        )
    for warning in warnings:
        module.warn(warning)
    return _result(module, changes, last)


def _compile(policy: Policy, docker: t.Optional[Docker], ip6_dnat: bool) -> Compiled:
    if docker is None:
        if policy.target != "destination":
            return compile_policy(policy, ip6_dnat=ip6_dnat)
        from ansible_collections.quaywall.docker.plugins.module_utils._host import bridge_routes

        return compile_policy(policy, bridge_routes=bridge_routes())
    return compile_policy(policy, docker.inventory(), docker.bindings, ip6_dnat=ip6_dnat)


def _how_to_lift_the_jump(state: State, family: str) -> str:
    if docker_manages(state.tables[family]):
        return "restart Docker, which moves the jump to the top"
    command = "ip6tables" if family == IPV6 else "iptables"
    return "run `%s -D FORWARD -j DOCKER-USER` and `%s -I FORWARD -j DOCKER-USER`" % (command, command)


def _has_managed(state: State, family: str) -> bool:
    chain = state.tables[family].chains.get(DOCKER_USER)
    return chain is not None and any(mark_of(rule) is not None for rule in chain.rules)


def _plan_family(
    state: State, family: str, name: str, policy: t.Optional[Policy], rules: t.Sequence[Rule], baseline: bool
) -> Plan:
    """The plan that puts the policy's rules among those of the other policies."""
    table = state.tables[family]
    chain = table.chains.get(DOCKER_USER)
    block = with_policy(chain, name, rules)
    if policy is not None:
        found = conflict(policy, rules, block)
        if found is not None:
            other, other_verdict, verdict, rule = found
            raise PolicyError(
                "Policies %s and %s disagree about everybody else: for the same endpoint and port %s says %s and %s "
                "says %s. Give both the same otherwise, or one of them otherwise: none. The other's rule: %s"
                % (name, other, name, verdict, other, other_verdict, rule)
            )
    present = chain is not None and any(is_established(rule) for rule in chain.rules)
    return plan(
        table,
        block,
        established=bool(block) and (present or (baseline and policy is not None)),
        add_return=bool(rules) and baseline,
        family=family,
    )


def _result(
    module: AnsibleModule, changes: t.Mapping[str, Change], compiled: t.Optional[Compiled]
) -> t.Dict[str, t.Any]:
    result: t.Dict[str, t.Any] = {
        "changed": any(change.changed for change in changes.values()),
        "endpoints": [dict(endpoint._asdict()) for endpoint in compiled.endpoints] if compiled is not None else [],
        "chains": {
            family: {
                "variant": change.variant,
                "before": _lines(change.before),
                "after": _lines(change.after),
            }
            for family, change in changes.items()
        },
    }
    if module._diff:
        result["diff"] = [
            {
                "before_header": "%s DOCKER-USER (%s)" % (_FAMILY_TEXTS[family], change.variant),
                "after_header": "%s DOCKER-USER (%s)" % (_FAMILY_TEXTS[family], change.variant),
                "before": "".join(line + "\n" for line in _lines(change.before)),
                "after": "".join(line + "\n" for line in _lines(change.after)),
            }
            for family, change in changes.items()
        ]
    return result


def _lines(rules: t.Iterable[str]) -> t.List[str]:
    return ["-A %s %s" % (DOCKER_USER, printable(rule)) for rule in rules]
