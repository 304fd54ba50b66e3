# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Processes that tests start on a machine: C(python -m kernel.driver WHAT ...)."""

from __future__ import annotations

import json
import select
import socket
import sys
import time
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._iptables import FirewallError

from .lab import firewall, run_command
from .planners import parsed, policy_planner


def packets(address: str, port: str) -> None:
    """Send UDP packets until standard input ends; then say how many."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", (address, int(port)))
        print("started", flush=True)
        sent = 1
        while not select.select([sys.stdin], [], [], 0)[0]:
            for index in range(20):
                sender.sendto(b"%d" % index, (address, int(port)))
                sent += 1
    print(sent, flush=True)


def write(name: str, versions: str, seconds: str) -> None:
    """Write the versions of a policy (a JSON list of rules by family) in turn, for a while; end with the last one."""
    wanted = [policy_planner(name, parsed(version)) for version in json.loads(versions)]
    print("started", flush=True)
    sys.stdin.readline()
    code = firewall(own_wait=120)
    end = time.monotonic() + float(seconds)
    rounds = 0
    while time.monotonic() < end:
        for planner in wanted:
            try:
                code.change(planner, dry=False)
            except FirewallError as error:
                # Only this is allowed: others write so much that each try was overtaken. Then nothing is half done.
                if "changed by somebody else" not in str(error):
                    raise
                print("overtaken", flush=True)
        rounds += 1
    for planner in wanted[-1:]:
        while True:
            try:
                code.change(planner, dry=False)
                break
            except FirewallError as error:
                print("overtaken", flush=True)
                if "changed by somebody else" not in str(error):
                    raise
    print("rounds %d" % rounds, flush=True)


def once(name: str, path: str, delay: str = "0") -> None:
    """Write one policy, its rules by family from a file; say when it begins and when it is done.

    With a delay, each commit waits that many seconds before it starts, in a process of its own.
    """

    def slow(
        args: t.Sequence[str], data: bytes | None, extra: t.Mapping[str, str], fds: t.Sequence[int]
    ) -> tuple[int, bytes, bytes]:
        if args[0].endswith("-restore") and "--test" not in args:
            args = ["sh", "-c", 'sleep "$1"; shift; exec "$@"', "sh", delay, *args]
        return run_command(args, data, extra, fds)

    with open(path, encoding="utf-8") as file:
        planner = policy_planner(name, parsed(json.load(file)))
    print("started", flush=True)
    sys.stdin.readline()
    changes = firewall(slow if float(delay) else run_command).change(planner, dry=False)
    print("changed" if any(change.changed for change in changes.values()) else "the same", flush=True)


def main() -> None:
    commands: dict[str, t.Callable[..., None]] = {"packets": packets, "write": write, "once": once}
    commands[sys.argv[1]](*sys.argv[2:])


if __name__ == "__main__":
    main()
