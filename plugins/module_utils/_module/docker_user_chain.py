# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What the module docker_user_chain does, from its options to its results."""

from __future__ import annotations

import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._baseline import Settings, parse_policies
from ansible_collections.quaywall.docker.plugins.module_utils._inventory import DockerError, DockerSdkMissing, Inventory
from ansible_collections.quaywall.docker.plugins.module_utils._module._asked import access_of, collect_late
from ansible_collections.quaywall.docker.plugins.module_utils._module._edge import (
    FAMILY_TEXTS,
    Host,
    chain_diffs,
    chain_results,
    dead_rules,
    leave,
    make_host,
    policy_spec,
)
from ansible_collections.quaywall.docker.plugins.module_utils._policy import BridgeRoute, Policy, PolicyError
from ansible_collections.quaywall.docker.plugins.module_utils._reconcile import Job, Result, bring
from ansible_collections.quaywall.docker.plugins.module_utils._store import Store, Stored, without_defaults

if t.TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

    from ansible_collections.quaywall.docker.plugins.module_utils._docker import Docker
    from ansible_collections.quaywall.docker.plugins.module_utils._inventory import Binding, Container
    from ansible_collections.quaywall.docker.plugins.module_utils._module._access import Access
    from ansible_collections.quaywall.docker.plugins.module_utils._module._given import Collector


def _rule_spec() -> t.Dict[str, t.Any]:
    return {"name": {"type": "str", "required": True}, **policy_spec()}


def argument_spec() -> t.Dict[str, t.Any]:
    """The module's options."""
    return {
        "rules": {"type": "list", "elements": "dict", "options": _rule_spec()},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "established": {"type": "str", "choices": ["accept", "return", "omit"], "default": "accept"},
        "default": {"type": "str", "choices": ["return", "drop"], "default": "return"},
        "outside_interfaces": {"type": "list", "elements": "str"},
        "foreign_rules": {"type": "str", "choices": ["keep", "remove"], "default": "keep"},
        "guard": {"type": "bool", "default": True},
        "ipset_threshold": {"type": "int", "default": 100},
        "missing_targets": {"type": "str", "choices": ["fail", "wait"], "default": "fail"},
        "store": {"type": "bool"},
        "drop_connections": {"type": "bool", "default": False},
        "show_access_changes": {"type": "bool"},
    }


def run_module(
    module: AnsibleModule,
    create_host: t.Callable[[AnsibleModule], Host] = make_host,
    store: t.Optional[Store] = None,
    collector: t.Optional[Collector] = None,
) -> None:
    """Bring the whole chain to the kernel (or take it away) and leave the module.

    :param collector: how the host is looked at for C(access_changes); by default a host of this module's own making.
    """
    look = collector or (collect_late if create_host is make_host else None)
    leave(module, "docker_user_chain", lambda: _run(module, create_host(module), store or Store(), look))


def _run(
    module: AnsibleModule, host: Host, store: Store, collector: t.Optional[Collector] = None
) -> t.Dict[str, t.Any]:
    options = module.params
    dry = bool(module.check_mode)
    access = access_of(module, collector)
    if options["state"] == "absent":
        result = bring(host.firewall, host.ipset, _nothing(), dry, None if options["store"] is False else store)
        return _results(module, result, result.changed, access)
    settings = Settings.from_options(options)
    rules = options["rules"] or []
    policies = parse_policies(rules, settings.ipset_threshold)
    wait = options["missing_targets"] == "wait"
    kept = bool(options["store"] or (options["store"] is None and store.exists()))
    docker, inventory = _look_up(host, policies, settings, wait, kept)

    def bindings(container: Container) -> t.Tuple[Binding, ...]:
        return () if docker is None else docker.bindings(container)

    job = Job(settings, policies, inventory, bindings, _bridge_routes, wait)
    stored = None
    if kept:
        stored = _stored(options, rules)
    result = bring(host.firewall, host.ipset, job, dry, store, stored)
    cut: t.List[str] = []
    if options["drop_connections"]:
        # Only here, as what a run does not need it should not pay for: Ansible compiles a module anew each time.
        from ansible_collections.quaywall.docker.plugins.module_utils._module._cut import cut_connections

        cut = cut_connections(host, result.changes, result.sets_after, dry)
    return _results(module, result, result.changed or bool(cut), access, cut)


def _nothing() -> Job:
    return Job(None, (), None, lambda container: (), tuple, True)


def _stored(options: t.Mapping[str, t.Any], rules: t.Sequence[t.Mapping[str, t.Any]]) -> Stored:
    spec = argument_spec()
    settings = {name: spec[name] for name in Settings._fields}
    policies = [{"name": rule["name"], **without_defaults(rule, policy_spec())} for rule in rules]
    return Stored(without_defaults(options, settings), tuple(sorted(policies, key=lambda policy: str(policy["name"]))))


def _bridge_routes() -> t.Sequence[BridgeRoute]:
    from ansible_collections.quaywall.docker.plugins.module_utils._host import bridge_routes

    return bridge_routes()


def _look_up(
    host: Host, policies: t.Sequence[Policy], settings: Settings, wait: bool, kept: bool
) -> t.Tuple[t.Optional[Docker], t.Optional[Inventory]]:
    """The engine, and what it has, where a policy or the default needs it, or a guard that is to last can use it."""
    needs = [policy.name for policy in policies if policy.needs_docker]
    if not needs and settings.default != "drop":
        if not (kept and settings.guard and policies):
            return None, None
        wait = True
    try:
        docker = host.docker()
        return docker, docker.inventory()
    except DockerSdkMissing:
        if not wait:
            raise
    except DockerError as error:
        if not wait:
            why = "policy %s must be looked up there" % needs[0] if needs else "default: drop needs its networks"
            raise PolicyError("%s (%s)" % (str(error).rstrip("."), why)) from error
    return None, None


def _results(
    module: AnsibleModule, result: Result, changed: bool, access: t.Optional[Access], cut: t.Sequence[str] = ()
) -> t.Dict[str, t.Any]:
    warnings = list(result.wanted.warnings)
    warnings += ["Policy %s waits: %s" % (name, why) for name, why in sorted(result.wanted.waiting.items())]
    warnings += ["IPv6 was left as it is: %s" % reason for reason in sorted(set(result.unread.values()))]
    warnings += [
        "There is no guard in %s, as its table mangle holds rules that were written with nft and not with iptables: "
        "move them to a table of their own, then run again." % FAMILY_TEXTS[family]
        for family in sorted(result.unguarded)
    ]
    warnings += dead_rules({rule for change in result.changes.values() for rule in change.plan.unreachable})
    for warning in warnings:
        module.warn(warning)
    found: t.Dict[str, t.Any] = {
        "changed": changed,
        "chains": chain_results(result.changes),
        "endpoints": [dict(endpoint._asdict()) for endpoint in result.wanted.endpoints],
        "sets": {name: len(made.networks) for name, made in sorted(result.sets_after.items())},
        "waiting": dict(result.wanted.waiting),
        "dropped_connections": list(cut),
    }
    if access is not None:
        found["access_changes"] = access.result(result.changes, result.sets_after)
    if module._diff:
        found["diff"] = [*chain_diffs(result.changes), *_set_diffs(result)]
    return found


def _set_diffs(result: Result) -> t.List[t.Dict[str, str]]:
    diffs = []
    for name in sorted({*result.sets_before, *result.sets_after}):
        one, two = result.sets_before.get(name), result.sets_after.get(name)
        if one != two:
            header = "ipset %s" % name
            before, after = (frozenset() if item is None else item.networks for item in (one, two))
            # Of a long list only what changes is of interest.
            diffs.append(
                {
                    "before_header": header,
                    "after_header": header,
                    "before": "".join(line + "\n" for line in sorted(before - after)[:_MOST_SHOWN]),
                    "after": "".join(line + "\n" for line in sorted(after - before)[:_MOST_SHOWN]),
                }
            )
    return diffs


#: Networks of a set that a diff shows, on each side.
_MOST_SHOWN = 100
