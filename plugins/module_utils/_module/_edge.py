# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What every module needs of Ansible and the host: a way to find programs, Docker, and text that can be printed."""

from __future__ import annotations

import os
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils import _programs
from ansible_collections.quaywall.docker.plugins.module_utils._chain import DOCKER_USER, SET_PREFIX
from ansible_collections.quaywall.docker.plugins.module_utils._rule import IPV4, IPV6

if t.TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

    from ansible_collections.quaywall.docker.plugins.module_utils._connections import Connections
    from ansible_collections.quaywall.docker.plugins.module_utils._docker import Docker
    from ansible_collections.quaywall.docker.plugins.module_utils._ipset import AddressSet, Ipset
    from ansible_collections.quaywall.docker.plugins.module_utils._iptables import Change, Finder, Firewall, Runner

FAMILY_TEXTS = {IPV4: "IPv4", IPV6: "IPv6"}


def make_finder(module: AnsibleModule) -> Finder:
    """The module's way to find a program."""

    def find(program: str) -> t.Optional[str]:
        found: t.Optional[str] = module.get_bin_path(program, opt_dirs=["/usr/sbin", "/sbin", "/usr/local/sbin"])
        return found

    return find


def make_docker() -> Docker:
    """The engine of this host."""
    from ansible_collections.quaywall.docker.plugins.module_utils._docker import Docker

    return Docker()


def printable(value: t.Any) -> t.Any:
    """Text that JSON and a terminal can hold: bytes that are no UTF-8 and control characters are escaped."""
    if isinstance(value, str):
        if value.isprintable():  # no lone surrogate is
            return value
        text = value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
    if isinstance(value, list):
        return [printable(item) for item in value]
    return value


# What writes to DOCKER-USER ------------------------------------------------------------------------------------------


class Host(t.NamedTuple):
    """What a module that writes works with; tests give their own."""

    firewall: Firewall
    ipset: Ipset
    docker: t.Callable[[], Docker]
    connections: t.Callable[[], Connections]


class _LateIpset:
    """The ipsets of this host, whose code is read only if there is one of ours, or one is wanted: mostly there is none.

    Ansible compiles a module anew each time.
    """

    def __init__(self, run: Runner, find: Finder, descriptors: t.Callable[[], t.Sequence[int]]) -> None:
        self._run = run
        self._find = find
        self._descriptors = descriptors
        self._made: t.Optional[Ipset] = None

    def _ipset(self) -> Ipset:
        if self._made is None:
            from ansible_collections.quaywall.docker.plugins.module_utils._ipset import Ipset

            self._made = Ipset(self._run, self._find, self._descriptors)
        return self._made

    def _is_none_of_ours(self) -> bool:
        # Asking where the kernel has no sets would load a module.
        program = self._find("ipset") if os.path.isdir("/sys/module/ip_set") else None
        if program is None:
            return True
        rc, out, _err = self._run([program, "list", "-n"], None, {"LC_ALL": "C"}, self._descriptors())
        return rc == 0 and SET_PREFIX.encode() not in out

    def read(self, quick: bool = False) -> t.Dict[str, AddressSet]:
        return {} if self._made is None and self._is_none_of_ours() else self._ipset().read(quick)

    def prepare(self, wanted: t.Iterable[AddressSet], present: t.Mapping[str, AddressSet]) -> None:
        sets = list(wanted)
        if sets:
            self._ipset().prepare(sets, present)

    def undo(self) -> None:
        if self._made is not None:
            self._made.undo()

    def finish(self, keep: t.Collection[str]) -> t.Tuple[str, ...]:
        return () if self._made is None else self._made.finish(keep)


def make_host(module: AnsibleModule) -> Host:
    """The host that the module runs on."""
    from ansible_collections.quaywall.docker.plugins.module_utils._iptables import Firewall

    run, find = _programs.run, make_finder(module)

    def connections() -> Connections:
        from ansible_collections.quaywall.docker.plugins.module_utils._connections import Connections

        return Connections(run, find)

    firewall = Firewall(run, find)
    return Host(firewall, t.cast(t.Any, _LateIpset(run, find, firewall.descriptors)), make_docker, connections)


def policy_spec() -> t.Dict[str, t.Any]:
    """Options of one policy besides its name."""
    return {
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
        "ip_version": {"type": "str", "choices": ["auto", "ipv4", "ipv6", "both"], "default": "auto"},
    }


def leave(module: AnsibleModule, name: str, body: t.Callable[[], t.Dict[str, t.Any]]) -> None:
    """Do what a module that writes does, and leave with its result, or with a sentence that says what was wrong.

    :param name: the module's.
    :param body: does it all and returns the results.
    """
    import traceback

    from ansible_collections.quaywall.docker.plugins.module_utils._iptables import FirewallError
    from ansible_collections.quaywall.docker.plugins.module_utils._policy import PolicyError

    try:
        if os.geteuid() != 0:
            module.fail_json(msg="Reading and writing iptables needs root: add become: true to the task or the play.")
        result = body()
    except FirewallError as error:
        module.fail_json(msg=str(error), **{key: printable(value) for key, value in error.details.items()})
    except PolicyError as error:
        module.fail_json(msg=str(error))
    except Exception as error:  # noqa: BLE001 -- a traceback is no answer, and never the chain's state
        # Only here, as what a run does not need it should not pay for: Ansible compiles a module anew each time.
        from ansible.module_utils.basic import missing_required_lib

        from ansible_collections.quaywall.docker.plugins.module_utils._inventory import DockerError, DockerSdkMissing
        from ansible_collections.quaywall.docker.plugins.module_utils._store import StoreError

        if isinstance(error, DockerSdkMissing):
            module.fail_json(msg=missing_required_lib("docker"), exception=error.trace)
        if isinstance(error, (DockerError, StoreError)):
            module.fail_json(msg=str(error))
        module.fail_json(
            msg="Unexpected error in %s: %s. Please report it." % (name, error), exception=traceback.format_exc()
        )
    else:
        module.exit_json(**result)


def chain_results(changes: t.Mapping[str, Change]) -> t.Dict[str, t.Any]:
    """The result C(chains): each family's DOCKER-USER and guard, before and after."""
    return {
        family: {
            "variant": change.variant,
            "before": lines(change.before),
            "after": lines(change.after),
            "guard": {"before": list(map(printable, change.guard[0])), "after": list(map(printable, change.guard[1]))},
        }
        for family, change in changes.items()
    }


def chain_diffs(changes: t.Mapping[str, Change]) -> t.List[t.Dict[str, str]]:
    """The diff of each family: DOCKER-USER, and the chains of ours that change with it."""
    diffs = []
    for family, change in changes.items():
        header = "%s DOCKER-USER (%s)" % (FAMILY_TEXTS[family], change.variant)
        diffs.append(_diff(header, lines(change.before), lines(change.after)))
        for own in change.plan.own:
            if own.changes:
                header = "%s %s, table %s (%s)" % (FAMILY_TEXTS[family], own.name, own.table, change.variant)
                before, after = (
                    ["-A %s %s" % (own.name, printable(rule)) for rule in rules or ()]
                    for rules in (own.before, own.after)
                )
                before += ["-A %s %s" % hook for hook in own.deletes]
                after += ["-A %s %s" % hook for hook in own.inserts]
                diffs.append(_diff(header, before, after))
    return diffs


def _diff(header: str, before: t.Sequence[str], after: t.Sequence[str]) -> t.Dict[str, str]:
    return {
        "before_header": header,
        "after_header": header,
        "before": "".join(line + "\n" for line in before),
        "after": "".join(line + "\n" for line in after),
    }


def lines(rules: t.Iterable[str]) -> t.List[str]:
    return ["-A %s %s" % (DOCKER_USER, printable(rule)) for rule in rules]


def dead_rules(rules: t.Iterable[str]) -> t.List[str]:
    """Warnings of rules that nothing reads."""
    return [
        "This rule of another tool stands behind an unconditional RETURN in DOCKER-USER, so nothing reads it: %s"
        % printable(rule)
        for rule in sorted(rules)
    ]
