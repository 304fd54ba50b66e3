# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Ten writers at once: runs of ours, and tools that know nothing of us and take no lock of ours."""

from __future__ import annotations

import json
import threading
import typing as t
from collections import Counter

from .lab import FAMILIES, IPV4, IPV6, Host, counted, docker_table, firewall, load, run_command, save, tool
from .planners import parsed, policy_planner

if t.TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping, Sequence

WRITERS = 5
SECONDS = 3.0
ADDRESS = {IPV4: "172.17.0.%d/32", IPV6: "fd00:17::%x/128"}


def rules_of(number: int, version: int) -> dict[str, list[str]]:
    """A policy's rules: an action and an otherwise that stay, and others that come and go with the version."""
    found = {}
    for family in FAMILIES:
        place = "-d %s ! -i docker0 -p tcp -m tcp --dport" % (ADDRESS[family] % (number + 16))
        comment = '-m comment --comment "quaywall:policy-%d"' % number
        rules = ["%s %d %s -j ACCEPT" % (place, port, comment) for port in range(8000, 8000 + 3 * version)]
        found[family] = [*rules, "%s 8080 %s -j DROP" % (place, comment)]
    return found


class Tool(threading.Thread):
    """A foreign tool: appends, inserts and deletes rules of its own with iptables, one at a time, as most do."""

    def __init__(self, host: Host, variant: str, number: int, stop: threading.Event) -> None:
        super().__init__()
        self.host, self.variant, self.number, self.stop = host, variant, number, stop
        self.family = FAMILIES[number % 2]
        self.there: list[str] = []
        self.done = 0
        self.errors: list[str] = []

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                self.once()
        except Exception as error:  # noqa: BLE001 -- told in the test's own thread
            self.errors.append(repr(error))

    def once(self) -> None:
        command = tool(self.family, self.variant)
        self.done += 1
        if self.done % 3 == 0 and self.there:
            spec = self.there.pop(0)
            self.host.run(command, "-w", "60", "-D", "DOCKER-USER", *spec.split(" "))
            return
        # Inserted rules deny, as a ban does; appended ones do not.
        how, target = ("-I", "DROP") if self.done % 2 else ("-A", "ACCEPT")
        spec = "-p udp -m udp --dport %d -m comment --comment tool-%d -j %s" % (
            self.done % 60000 + 1,
            self.number,
            target,
        )
        self.host.run(command, "-w", "60", how, "DOCKER-USER", *spec.split(" "))
        self.there.append(spec)


def test_ten_writers_lose_nothing_and_write_nothing_twice(host: Host, variant: str) -> None:
    own = {family: "-s %s -j DROP" % ("192.0.2.1/32" if family == IPV4 else "2001:db8::1/128") for family in FAMILIES}
    for family in FAMILIES:
        load(host, variant, family, docker_table([own[family], "-i eth9 -j ACCEPT", "-j RETURN"]))
    versions = [json.dumps([rules_of(number, version) for version in (0, 3, 1)]) for number in range(WRITERS)]
    ours: list[subprocess.Popen[bytes]] = []
    stop = threading.Event()
    tools = [Tool(host, variant, number, stop) for number in range(WRITERS)]
    said: list[bytes] = []
    try:
        for number in range(WRITERS):
            process = host.python("write", "policy-%d" % number, versions[number], str(SECONDS), stdin=-1, stdout=-1)
            ours.append(process)
        for process in ours:
            assert process.stdout is not None and process.stdout.readline() == b"started\n"
        for thread in tools:
            thread.start()
        for process in ours:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.flush()
        threading.Timer(SECONDS, stop.set).start()
        for process in ours:
            said.append(process.communicate(timeout=90)[0])
            assert process.returncode == 0
    finally:
        stop.set()
        for thread in tools:
            if thread.ident is not None:
                thread.join(90)
        for process in ours:
            if process.poll() is None:
                process.kill()
                process.communicate()
    assert [thread.errors for thread in tools] == [[]] * WRITERS
    print(
        "%s: %s rounds of ours, %d overtaken, %s changes by tools"
        % (
            variant,
            [int(text.split()[-1]) for text in said],
            sum(text.count(b"overtaken") for text in said),
            [thread.done for thread in tools],
        )
    )
    assert all(thread.done >= 3 for thread in tools)
    for family in FAMILIES:
        specs = [rule.spec for rule in counted(save(host, variant, family, "-c"))]
        judge(specs, own[family], family, [thread for thread in tools if thread.family == family])


def judge(specs: list[str], own: str, family: str, tools: list[Tool]) -> None:
    # Ours: every policy's last version, no rule missing, none twice.
    wanted = Counter(rule for number in range(WRITERS) for rule in rules_of(number, 1)[family])
    assert Counter(spec for spec in specs if '"quaywall:policy-' in spec) == wanted
    assert specs.count(ESTABLISHED) == 1
    # Theirs: what each tool put in and did not take out, no rule missing, none twice.
    for thread in tools:
        mark = "--comment tool-%d " % thread.number
        assert Counter(spec for spec in specs if mark in spec) == Counter(thread.there)
        # Each tool's own order: inserted ones newest first, appended ones oldest first.
        for target, order in (("DROP", -1), ("ACCEPT", 1)):
            mine = [spec for spec in specs if mark in spec and spec.endswith(target)]
            assert mine == [spec for spec in thread.there if spec.endswith(target)][::order]
    assert [spec for spec in specs if "tool-" not in spec and "quaywall:" not in spec] == [
        own,
        "-i eth9 -j ACCEPT",
        "-j RETURN",
    ]
    # The block of ours: actions before otherwises, each by name.
    block = [spec for spec in specs if '"quaywall:policy-' in spec]
    keys = [(spec.endswith("DROP"), spec.partition('"quaywall:policy-')[2].partition('"')[0]) for spec in block]
    assert keys == sorted(keys)
    # No ACCEPT of anybody else is read before a denial of ours.
    last = max(index for index, spec in enumerate(specs) if '"quaywall:policy-' in spec)
    assert not [spec for spec in specs[:last] if spec.endswith("ACCEPT") and "quaywall" not in spec]


ESTABLISHED = '-m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment "quaywall: established" -j ACCEPT'


def test_a_chain_that_is_flushed_all_the_time_is_whole_in_the_end(host: Host, variant: str) -> None:
    """Somebody restarts a firewall that flushes and refills the chain, in one transaction, while we write."""
    for family in FAMILIES:
        load(host, variant, family, docker_table(["-j RETURN"]))
    flush = b"*filter\n-F DOCKER-USER\n-A DOCKER-USER -i eth9 -j DROP\n-A DOCKER-USER -j RETURN\nCOMMIT\n"
    process = host.python("write", "policy-1", json.dumps([rules_of(1, 0), rules_of(1, 3)]), "2", stdin=-1, stdout=-1)
    try:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"started\n"
        process.stdin.write(b"go\n")
        process.stdin.flush()
        for number in range(40):
            host.run(tool(FAMILIES[number % 2], variant, "restore"), "--noflush", "--wait", "60", data=flush)
        process.communicate(timeout=60)
        assert process.returncode == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    for family in FAMILIES:
        specs = [rule.spec for rule in counted(save(host, variant, family, "-c"))]
        assert specs == [ESTABLISHED, "-i eth9 -j DROP", *rules_of(1, 3)[family], "-j RETURN"]


def test_runs_of_ours_never_overlap(host: Host, variant: str) -> None:
    """The own lock: from the first reading to the last look nobody else of ours runs a command."""
    for family in FAMILIES:
        load(host, variant, family, docker_table(["-j RETURN"]))
    log: list[int] = []
    start = threading.Barrier(4)

    def one(number: int) -> None:
        def run(
            args: Sequence[str], data: bytes | None, extra: Mapping[str, str], fds: Sequence[int]
        ) -> tuple[int, bytes, bytes]:
            log.append(number)
            return run_command(args, data, extra, fds)

        start.wait()
        firewall(run).change(policy_planner("policy-%d" % number, parsed(rules_of(number, 1))), dry=False)

    threads = [threading.Thread(target=host.call, args=(one, number)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    turns = [number for index, number in enumerate(log) if index == 0 or log[index - 1] != number]
    assert sorted(turns) == [0, 1, 2, 3]
