# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Killed at any moment: each family's chain is the old one or the new one, and the next run works."""

from __future__ import annotations

import json
import os
import random
import signal
import time
import typing as t
from collections import Counter

import pytest

from .lab import FAMILIES, IPV4, Host, docker_table, firewall, listed, load
from .planners import parsed, policy_planner

if t.TYPE_CHECKING:
    import subprocess
    from pathlib import Path

RULES = 200
MOMENTS = 25  # of each variant and each way to kill: a hundred in all

PLACES = {family: "-d 172.17.0.16/32" if family == IPV4 else "-d fd00:17::16/128" for family in FAMILIES}


def big(version: int) -> dict[str, list[str]]:
    """Two hundred rules, half of which differ between versions."""
    return {
        family: [
            '%s -p tcp -m tcp --dport %d -m comment --comment "quaywall:big" -j ACCEPT'
            % (PLACES[family], number + (10000 * version if number % 2 else 0))
            for number in range(1, RULES + 1)
        ]
        for family in FAMILIES
    }


FOREIGN = ("-i eth9 -j DROP", "-i eth8 -j ACCEPT", "-j RETURN")
ESTABLISHED = '-m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment "quaywall: established" -j ACCEPT'


def chain(version: int, family: str) -> bytes:
    rules = [ESTABLISHED, FOREIGN[0], *big(version)[family], *FOREIGN[1:]]
    return "".join("-A DOCKER-USER %s\n" % rule for rule in rules).encode()


def run_of_ours(host: Host, path: Path) -> subprocess.Popen[bytes]:
    return host.python("once", "big", str(path), stdin=-1, stdout=-1)


def go(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    process.stdin.write(b"go\n")
    process.stdin.flush()


@pytest.mark.parametrize("group", [False, True], ids=["the process", "its whole group"])
def test_killed_at_any_moment(host: Host, variant: str, group: bool, tmp_path: Path) -> None:
    paths = []
    for version in (0, 1):
        paths.append(tmp_path / str(version))
        paths[-1].write_text(json.dumps(big(version)), encoding="utf-8")
    for family in FAMILIES:
        load(host, variant, family, docker_table(FOREIGN))
    code = firewall()
    host.call(code.change, policy_planner("big", parsed(big(0))), dry=False)
    old = 0
    assert [listed(host, variant, family) for family in FAMILIES] == [chain(0, family) for family in FAMILIES]

    # How long a whole run takes here and now; moments are spread over that, and a bit more.
    process = run_of_ours(host, paths[1])
    started = time.monotonic()
    go(process)
    assert process.communicate(timeout=60)[0] == b"changed\n"
    whole = time.monotonic() - started
    old = 1

    chance = random.Random(20260101)
    seen: Counter[str] = Counter()
    following = run_of_ours(host, paths[1 - old])
    try:
        for number in range(MOMENTS):
            new = 1 - old
            process, following = following, run_of_ours(host, paths[old])
            go(process)
            time.sleep(whole * (number + chance.random()) / MOMENTS)
            if group:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            if not group:
                # A restore that was running goes on by itself, for some milliseconds.
                settle(host, following.pid)
            states = []
            for family in FAMILIES:
                found = listed(host, variant, family)
                assert found in (chain(old, family), chain(new, family))
                states.append("new" if found == chain(new, family) else "old")
            seen["+".join(states)] += 1
            # A normal run works at once: no lock is left, and nothing of a half done change.
            started = time.monotonic()
            host.call(code.change, policy_planner("big", parsed(big(new))), dry=False)
            assert time.monotonic() - started < 10
            assert [listed(host, variant, family) for family in FAMILIES] == [chain(new, family) for family in FAMILIES]
            old = new
    finally:
        following.kill()
        following.communicate()
    print("%s, %s: %s" % (variant, "group" if group else "process", dict(seen)))
    assert seen["old+old"] > 0


def settle(host: Host, other: int) -> None:
    """Wait until no process but one is left on the machine."""
    deadline = time.monotonic() + 10
    network = host.call(os.readlink, "/proc/thread-self/ns/net")
    while time.monotonic() < deadline:
        pids = {int(pid) for pid in os.listdir("/proc") if pid.isdigit()}
        if not any(_runs_there(pid, network) for pid in pids - {other, os.getpid()}):
            return
        time.sleep(0.002)
    raise AssertionError("iptables still runs")


def _runs_there(pid: int, network: str) -> bool:
    try:
        if os.readlink("/proc/%d/ns/net" % pid) != network:
            return False
        with open("/proc/%d/stat" % pid, encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_next_run_waits_for_what_a_killed_one_left_running(host: Host, variant: str, tmp_path: Path) -> None:
    """Its iptables-restore lives on and commits; a run that planned before that would write every rule again."""
    path = tmp_path / "0"
    path.write_text(json.dumps(big(0)), encoding="utf-8")
    for family in FAMILIES:
        load(host, variant, family, docker_table(FOREIGN))
    process = host.python("once", "big", str(path), "0.5", stdin=-1, stdout=-1)
    following = run_of_ours(host, path)
    go(process)
    time.sleep(0.35)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    go(following)
    assert following.communicate(timeout=60)[0] in (b"changed\n", b"the same\n")
    time.sleep(0.6)
    assert [listed(host, variant, family) for family in FAMILIES] == [chain(0, family) for family in FAMILIES]
