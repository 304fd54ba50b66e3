# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The whole chain on a machine, by the code that the modules and the follower share.

C(python -m kernel.chains WHAT ...) does it in a process of its own, as tests of killed and of simultaneous runs need.
"""

from __future__ import annotations

import json
import sys
import time
import types
import typing as t
from pathlib import Path

from ansible_collections.quaywall.docker.plugins.module_utils._baseline import Settings, parse_policies
from ansible_collections.quaywall.docker.plugins.module_utils._inventory import (
    Binding,
    Container,
    Inventory,
    Network,
)
from ansible_collections.quaywall.docker.plugins.module_utils._ipset import Ipset
from ansible_collections.quaywall.docker.plugins.module_utils._iptables import FirewallError
from ansible_collections.quaywall.docker.plugins.module_utils._module import docker_user_chain, docker_user_rule
from ansible_collections.quaywall.docker.plugins.module_utils._module._edge import Host as Parts
from ansible_collections.quaywall.docker.plugins.module_utils._reconcile import Job, Reconciler, Result, bring
from ansible_collections.quaywall.docker.plugins.module_utils._store import Store

from .lab import find, firewall, run_command

FIRST = Network("bridge", "1" * 64, "bridge", "docker0", True, ("172.17.0.0/16", "fd00:17::/64"))
SECOND = Network("second", "2" * 64, "bridge", "br-two", True, ("172.18.0.0/16", "fd00:18::/64"))
NETWORKS = {"bridge": FIRST, "second": SECOND}
#: Each with the last digit of its addresses, and its network.
PLACES = {"web": (2, FIRST), "other": (3, FIRST), "far": (2, SECOND)}
#: web is published: -p 9000:8080.
PUBLISHED = Binding("tcp", 8080, 9000, "", True)


def addresses(name: str) -> tuple[str, str]:
    digit, network = PLACES[name]
    four, six = network.subnets
    return four.replace("0.0/16", "0.%d" % digit), six.replace("::/64", "::%d" % digit)


def _container(name: str) -> Container:
    network = PLACES[name][1]
    return Container(
        name,
        name.ljust(64, "0"),
        True,
        network.name,
        {},
        {network.name: addresses(name)},
        {network.name: network.id},
        (),
    )


INVENTORY = Inventory(tuple(map(_container, PLACES)), NETWORKS)


def bindings(container: Container) -> tuple[Binding, ...]:
    return (PUBLISHED,) if container.name == "web" else ()


def apply(
    policies: t.Sequence[t.Mapping[str, t.Any]],
    inventory: Inventory | None = INVENTORY,
    dry: bool = False,
    run: t.Any = run_command,
    **settings: t.Any,
) -> Result:
    """Bring this machine to the policies."""
    made = Settings.from_options(settings)
    job = Job(made, parse_policies(policies, made.ipset_threshold), inventory, bindings, tuple, inventory is None)
    code = firewall(run)
    return bring(code, Ipset(run, find, code.descriptors), job, dry)


def remove(dry: bool = False) -> Result:
    return bring(firewall(), Ipset(run_command, find), Job(None, (), None, bindings, tuple, True), dry)


# The modules and the follower ----------------------------------------------------------------------------------------


class _Docker:
    def inventory(self) -> Inventory:
        return INVENTORY

    def bindings(self, container: Container) -> tuple[Binding, ...]:
        return bindings(container)


def run_module(what: t.Any, options: t.Mapping[str, t.Any], store: Store) -> dict[str, t.Any]:
    """What a module does between its options and its result."""
    spec = what.argument_spec()
    params = {name: spec[name].get("default") for name in spec} | dict(options)
    module = types.SimpleNamespace(params=params, check_mode=False, _diff=False, warn=lambda text: None)
    code = firewall()
    parts = Parts(code, Ipset(run_command, find, code.descriptors), _Docker, None)  # type: ignore[arg-type]
    result: dict[str, t.Any] = what._run(module, parts, store)
    return result


def follower(store: Store) -> Reconciler:
    code = firewall()
    return Reconciler(code, Ipset(run_command, find, code.descriptors), store)


# Processes -----------------------------------------------------------------------------------------------------------


def _wait_for_go() -> None:
    print("started", flush=True)
    sys.stdin.readline()


def once(path: str, delay: str = "0") -> None:
    """Bring this machine to what a file says. With a delay, each set is filled that many seconds later, by a child."""

    def slow(
        args: t.Sequence[str], data: bytes | None, extra: t.Mapping[str, str], fds: t.Sequence[int]
    ) -> tuple[int, bytes, bytes]:
        if args[0].endswith("ipset") and args[1] == "restore":
            args = ["sh", "-c", 'sleep "$1"; shift; exec "$@"', "sh", delay, *args]
        return run_command(args, data, extra, fds)

    document = json.loads(Path(path).read_text(encoding="utf-8"))
    _wait_for_go()
    result = apply(document["policies"], None, run=slow if float(delay) else run_command, **document["settings"])
    print("changed" if result.changed else "the same", flush=True)


def loop(what: str, directory: str, seconds: str) -> None:
    """Write as one of the modules or the follower does, for a while."""
    store = Store(directory, directory)
    runs = 0
    wanted = json.loads((Path(directory) / what).read_text(encoding="utf-8"))
    _wait_for_go()
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end or runs % len(wanted):
        try:
            if what == "follower":
                follower(store).run(INVENTORY, bindings)
            else:
                run_module(
                    docker_user_chain if what == "chain" else docker_user_rule, wanted[runs % len(wanted)], store
                )
        except FirewallError as error:
            print(error, flush=True)
            raise
        runs += 1
        # The lock is nobody's for a moment: whoever waits looks for it every 10 ms.
        time.sleep(0.03)
    print(runs, flush=True)


if __name__ == "__main__":
    {"once": once, "loop": loop}[sys.argv[1]](*sys.argv[2:])
