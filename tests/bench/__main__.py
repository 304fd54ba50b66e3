# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How long things take, each beside a peer that does a like job in the same run on the same host.

Prints a table of medians and their ratios, and writes every single time to ``.build/bench.json``. Nothing is asserted:
a clock is no judge of a run on somebody else's machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import json
import os
import pathlib
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import typing as t

from demo.playbook import ansible_playbook
from hosts import baseline, modules

from ansible_collections.quaywall.docker.tests.unit.snapshots import large
from bench import fleet, report
from testbed import SUITES, Bed, BedError, Host, HostSpec

if t.TYPE_CHECKING:
    import types

BED: t.Final = "quaywall-bench"
GROUP: t.Final = "quaywall_bench"
REPOSITORY: t.Final = pathlib.Path(__file__).resolve().parents[2]
RESULT: t.Final = REPOSITORY / ".build" / "bench.json"

PLACE: t.Final = "/opt/quaywall-bench"
"""What is needed on the host."""

RULE: t.Final = "quaywall.docker.docker_user_rule"
CHAIN: t.Final = "quaywall.docker.docker_user_chain"
IPTABLES: t.Final = "ansible.builtin.iptables"
PING: t.Final = "ansible.builtin.ping"
AUDIT: t.Final = "quaywall.docker.docker_fw_audit"

LEGACY: t.Final = "legacy"
"""The bed's second host, on which Docker's chains are of the legacy variant."""

NOTHING: t.Final = """\
for iptables in iptables ip6tables; do
    $iptables -F DOCKER-USER 2>/dev/null && $iptables -A DOCKER-USER -j RETURN
    $iptables -t mangle -F
    $iptables -t mangle -X
done
ipset list -name | xargs --no-run-if-empty -n 1 ipset destroy
"""
"""What a host is brought back to: DOCKER-USER as Docker makes it. No engine writes to mangle."""

NEAR: t.Final = "192.0.2.1", "192.0.2.2", "192.0.2.0/24"
"""The host's address towards a network namespace beside it, that one's, and the network of both."""

Task = dict[str, t.Any]
Times = list[float]


@dataclasses.dataclass
class Row:
    """One job and its peer."""

    job: str
    peer: str
    times: Times
    peer_times: Times
    to_reach: float | None = None
    unit: str = "s"

    @property
    def median(self) -> float:
        return statistics.median(self.times)

    @property
    def peer_median(self) -> float:
        return statistics.median(self.peer_times)

    @property
    def ratio(self) -> float:
        return self.median / self.peer_median

    @property
    def met(self) -> bool | None:
        return None if self.to_reach is None else self.ratio <= self.to_reach

    def cells(self) -> list[str]:
        """The row as printed."""
        target = "" if self.to_reach is None else f"<= {self.to_reach:g}"
        met = {None: "", True: "met", False: "not met"}[self.met]
        medians = [_quantity(amount, self.unit) for amount in (self.median, self.peer_median)]
        return [self.job, self.peer, *medians, f"{self.ratio:.2f}", target, met, str(len(self.times))]

    def to_json(self) -> dict[str, t.Any]:
        """The row with every time in it."""
        medians = {"median": self.median, "peer_median": self.peer_median, "ratio": self.ratio, "met": self.met}
        return {**dataclasses.asdict(self), **medians}


HEADS: t.Final = ["job", "peer", "median", "peer's", "ratio", "to reach", "", "n"]


def _quantity(amount: float, unit: str) -> str:
    return _seconds(amount) if unit == "s" else f"{amount:.0f} {unit}"


def _seconds(seconds: float) -> str:
    if seconds < 0.001:
        return f"{seconds * 1e6:.1f} us"
    return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"


def say(line: str) -> None:
    """What happens now. On stderr: the table alone is the output."""
    print(f"bench: {line}", file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True)
class Size:
    """How much of everything."""

    repetitions: int
    policies: int
    rounds: int
    dumps: tuple[int, ...]
    audits: int
    chains: int
    rules: int
    networks: int
    rest: float


FULL: t.Final = Size(
    repetitions=21,
    policies=100,
    rounds=3,
    dumps=(1_000, 10_000, 100_000),
    audits=7,
    chains=7,
    rules=10_000,
    networks=100_000,
    rest=30,
)
QUICK: t.Final = Size(
    repetitions=7,
    policies=20,
    rounds=1,
    dumps=(1_000, 10_000),
    audits=3,
    chains=3,
    rules=10_000,
    networks=100_000,
    rest=10,
)


class Bench:
    """All measurements, on a host that is up and empty."""

    def __init__(self, host: Host, suite: str, size: Size) -> None:
        self.host = host
        self.suite = suite
        self.size = size
        self.rows: list[Row] = []

    def run(self, only: str = "") -> None:
        self.install()
        if only:
            for name in only.split(","):
                getattr(self, name)()
            return
        self.one_audit()
        self.big_audits()
        self.traces()
        self.one_rule()
        self.many_policies()
        self.whole_chain()
        self.many_rules()
        self.long_list()
        self.dumps()
        self.at_rest()
        self.fleets()
        self.reports()

    def install(self) -> None:
        """Ten containers, the collection's code, and what measures it."""
        target = f"{PLACE}/ansible_collections/quaywall/docker"
        self.host.run(["mkdir", "-p", target])
        self.host.run(f"cat > {PLACE}/nothing", stdin=NOTHING)
        here = pathlib.Path(__file__).resolve().parent
        copy = self.host.bed.engine.docker
        copy("cp", str(REPOSITORY / "plugins"), f"{self.host.container}:{target}/plugins")
        for file in sorted(path.name for path in here.glob("on_host_*.py")):
            copy("cp", str(here / file), f"{self.host.container}:{PLACE}/{file}")
        for number in range(10):
            self.host.run_workload(f"web-{number}", publish=[f"{9000 + number}:8080"])

    # Ansible

    def play(self, tasks: list[Task], **options: bool) -> dict[str, Times]:
        """Run tasks in one play; the seconds that each took, by its name, from its start to its result.

        :raises BedError: a task failed, or changed something where none shall.
        """
        play = {"hosts": GROUP, "gather_facts": False, "tasks": tasks}
        with tempfile.TemporaryDirectory(prefix="quaywall-bench-") as folder:
            playbook = pathlib.Path(folder) / "playbook.json"
            playbook.write_text(json.dumps([play]), encoding="utf-8")
            report = ansible_playbook(self.host, str(playbook), GROUP, **options)
        times: dict[str, Times] = {}
        for task in report["plays"][0]["tasks"]:
            name = task["task"]["name"]
            if task["hosts"][self.host.container]["changed"] and name != "prepare":
                raise BedError(f"{name}: it changed something, and nothing was left to change.")
            times.setdefault(name, []).append(_duration(task["task"]["duration"]))
        return times

    def whole_play(self, tasks: list[Task]) -> float:
        """The seconds of a whole ``ansible-playbook`` with these tasks."""
        play = {"hosts": GROUP, "gather_facts": False, "tasks": tasks}
        with tempfile.TemporaryDirectory(prefix="quaywall-bench-") as folder:
            playbook = pathlib.Path(folder) / "playbook.json"
            playbook.write_text(json.dumps([play]), encoding="utf-8")
            start = time.perf_counter()
            ansible_playbook(self.host, str(playbook), GROUP)
            return time.perf_counter() - start

    def on_host(self, tasks: dict[str, Task]) -> dict[str, list[dict[str, float]]]:
        """What modules take on the host, without Ansible's way there and back: wall and CPU time, by name."""
        folders = {name: f"{PLACE}/sent/{number}" for number, name in enumerate(tasks)}
        self.host.run(["rm", "-rf", f"{PLACE}/sent"])
        sent = [{"name": name, **task, "vars": {"ansible_remote_tmp": folders[name]}} for name, task in tasks.items()]
        self.play(sent, pipelining=False, keep_remote_files=True)
        files = []
        for name, folder in folders.items():
            found = self.host.run(f"echo {folder}/*/AnsiballZ_*.py").stdout.split()
            if len(found) != 1:
                raise BedError(f"{name}: one module was sent to the host, and {found} is there.")
            files.append(f"{name}={found[0]}")
        command = ["python3", f"{PLACE}/on_host_modules.py", str(self.size.repetitions), *files]
        done = self.host.run(command, timeout=600)
        times: dict[str, list[dict[str, float]]] = json.loads(done.stdout)
        return times

    # The measurements

    def one_audit(self) -> None:
        """The audit of a host with ten containers and 50 rules, against the least that a module can do."""
        say(f"an audit, {self.size.repetitions} times")
        for number in range(50):
            container = f"-d 172.17.0.{number % 10 + 2}/32 ! -i docker0"
            match = container if number % 2 else f"-m conntrack --ctstate DNAT --ctorigdstport {9000 + number}"
            self.host.run(f"iptables -A DOCKER-USER -s 192.0.2.{number}/32 {match} -p tcp -j DROP")
        tasks: dict[str, Task] = {"ping": {PING: {}}, "audit": {AUDIT: {}}}
        names = list(tasks)
        turns = [name for turn in range(self.size.repetitions) for name in (names if turn % 2 else names[::-1])]
        task_times = self.play([{"name": "prepare", PING: {}}, *({"name": name, **tasks[name]} for name in turns)])
        module_times = self.on_host(tasks)
        self.host.run("iptables -F DOCKER-USER")
        job = "audit of 10 containers and 50 rules"
        self.rows.append(Row(f"{job}: task", "ping", task_times["audit"], task_times["ping"], 2.5))
        self.module_rows(f"{job}: module on the host", "ping", module_times["audit"], module_times["ping"], 2.5)

    def reports(self) -> None:
        """Reports of a big fleet, against the bounds."""
        say(f"reports of {report.HOSTS} hosts, {self.size.rounds} times")
        for job, times, bound, unit in report.rows(self.size.rounds):
            self.rows.append(Row(job, "the bound", times, [bound], 1, unit))

    def fleets(self) -> None:
        """An audit of fifty hosts with ten forks, against a ping of the same."""
        say(f"an audit of {fleet.HOSTS} hosts, {self.size.chains} times")
        times = fleet.measure(self.host, self.size.chains)
        job, peer = f"audit of {fleet.HOSTS} hosts, {fleet.FORKS} forks", "play with a ping"
        self.rows.append(Row(f"{job}: play", peer, times["audit"], times["ping"], 1.5))
        self.rows.append(Row(f"{job}: only asking Docker through its SDK", peer, times["sdk"], times["ping"]))
        self.rows.append(Row(f"{job}: playbook with reports", peer, times["playbook"], times["ping"]))

    def big_audits(self) -> None:
        """Audits of big snapshots, against the bound and against half the size."""
        modules.install(self.host)
        found = {size: self._big_audit(*size) for size in ((1_000, 10_000), (500, 10_000), (1_000, 5_000))}
        full = found[1_000, 10_000]
        times, memory = ([run[kind] for run in full] for kind in ("seconds", "mebibytes"))
        job = "audit of 1,000 containers and 10,000 rules"
        self.rows.append(Row(f"{job}: module", "the bound", times, [3.0], 1))
        self.rows.append(Row(f"{job}: memory", "the bound", memory, [300.0], 1, "MiB"))
        for size, what in (((500, 10_000), "500 containers"), ((1_000, 5_000), "5,000 rules")):
            self.rows.append(Row(f"{job}: module", what, times, [run["seconds"] for run in found[size]], 2.2))

    def _big_audit(self, containers: int, rules: int) -> list[dict[str, float]]:
        say(f"an audit of {containers} containers and {rules} rules, {self.size.audits} times")
        place = f"{PLACE}/snapshot-{containers}-{rules}.json"
        self.host.run(f"cat > {place}", stdin=json.dumps(large(containers, rules)))
        command = ["python3", f"{PLACE}/on_host_audit.py", str(self.size.audits), place]
        done = self.host.run([*command, *modules.command("docker_fw_audit")], timeout=600)
        measured: list[dict[str, float]] = json.loads(done.stdout)
        return measured

    def traces(self) -> None:
        """Walks over big snapshots and a table of who reaches what, against the bounds and against half the size."""
        full, half = self._traces(1_000, 10_000), self._traces(1_000, 5_000)
        job = "trace over 10,000 rules"
        self.rows.append(Row(f"{job}: one packet", "the bound", full["walk"], [0.02], 1))
        self.rows.append(
            Row(f"{job}: the first packet, rules indexed", "5,000 rules", full["first"], half["first"], 2.2)
        )
        self.rows.append(Row(f"{job}: memory", "5,000 rules", full["mebibytes"], half["mebibytes"], 2.2, "MiB"))
        table = self._traces(500, 1_000, 100, 500)["table"]
        self.rows.append(Row("table of 100 sources and 500 ports over 1,000 rules", "the bound", table, [5.0], 1))

    def _traces(self, containers: int, rules: int, sources: int = 0, ports: int = 0) -> dict[str, list[float]]:
        say(f"traces over {containers} containers and {rules} rules, {self.size.audits} times")
        place = f"{PLACE}/traced-{containers}-{rules}.json"
        self.host.run(f"cat > {place}", stdin=json.dumps(large(containers, rules)))
        numbers = [str(number) for number in (self.size.audits, sources, ports)]
        done = self.host.run(["python3", f"{PLACE}/on_host_trace.py", *numbers, place], timeout=600)
        measured: dict[str, list[float]] = json.loads(done.stdout)
        return measured

    def one_rule(self) -> None:
        """One rule that is there already, against the least that a module can do."""
        say(f"one rule, {self.size.repetitions} times each")
        tasks: dict[str, Task] = {
            "ping": {PING: {}},
            "port": {RULE: {"name": "port", "published_port": "9000", "action": "drop"}},
            "container": {RULE: {"name": "container", "container": "web-1", "action": "drop"}},
        }
        self.play([{"name": "prepare", **task} for task in tasks.values()])
        names = list(tasks)
        turns = [name for turn in range(self.size.repetitions) for name in (names if turn % 2 else names[::-1])]
        # The first task of a play opens the connection.
        task_times = self.play([{"name": "prepare", PING: {}}, *({"name": name, **tasks[name]} for name in turns)])
        module_times = self.on_host(tasks)
        for name, job, to_reach in (
            ("port", "one rule, no look-up", 1.5),
            ("container", "one rule, container looked up", 2.0),
        ):
            self.rows.append(Row(f"{job}: task", "ping", task_times[name], task_times["ping"], to_reach))
            self.module_rows(f"{job}: module on the host", "ping", module_times[name], module_times["ping"], to_reach)

    def module_rows(
        self,
        job: str,
        peer: str,
        times: list[dict[str, float]],
        peer_times: list[dict[str, float]],
        to_reach: float | None,
    ) -> None:
        for kind, what in (("wall", ""), ("cpu", ", CPU only")):
            mine, others = ([time[kind] for time in some] for some in (times, peer_times))
            self.rows.append(Row(job + what, peer, mine, others, to_reach if kind == "wall" else None))

    def many_policies(self) -> None:
        """Many policies in a loop, all there already, against the built-in module that looks for the same rules."""
        count = self.size.policies
        say(f"{count} policies in a loop, {self.size.rounds} times")
        # Address and host port in turn. The built-in module cannot say the host port: it looks at each address twice.
        addresses = [f"172.17.{200 + number // 200}.{number % 200 + 1}" for number in range(count // 2)]
        by_address = [{"name": f"address-{address}", "destination": address} for address in addresses]
        by_port = [{"name": f"port-{port}", "port": str(port)} for port in range(10000, 10000 + count - len(addresses))]
        ours: Task = {
            RULE: {
                "name": "{{ item.name }}",
                "destination": "{{ item.destination | default(omit) }}",
                "published_port": "{{ item.port | default(omit) }}",
                "action": "drop",
            },
            "loop": by_address + by_port,
        }
        theirs: Task = {
            IPTABLES: {
                "chain": "DOCKER-USER",
                "destination": "{{ item.destination }}",
                "in_interface": "!docker0",
                "protocol": "tcp",
                "comment": "quaywall:{{ item.name }} action",
                "jump": "DROP",
            },
            "loop": (by_address * 3)[:count],
        }
        self.play([{"name": "prepare", **ours}])
        tasks = [{"name": "ours", **ours}, {"name": "theirs", **theirs}]
        for pipelining, setting in ((True, "pipelining"), (False, "Ansible's defaults")):
            times: dict[str, Times] = {"ours": [], "theirs": []}
            for turn in range(self.size.rounds):
                # The first task of a play opens the connection.
                turns = [{"name": "prepare", PING: {}}, *(tasks if turn % 2 else tasks[::-1])]
                measured = self.play(turns, pipelining=pipelining)
                for name, some in times.items():
                    some += [seconds / count for seconds in measured[name]]
            self.rows.append(
                Row(
                    f"one of {count} in a loop: task, {setting}", "iptables module", times["ours"], times["theirs"], 1.1
                )
            )
        one = {"ours": {**ours, "loop": by_address[:1]}, "theirs": {**theirs, "loop": by_address[:1]}}
        module_times = self.on_host(one)
        job = f"one of {count} in a loop: module on the host"
        self.module_rows(job, "iptables module", module_times["ours"], module_times["theirs"], None)

    def whole_chain(self) -> None:
        """Many policies in one task, from nothing, against the built-in module in a loop and against a ping."""
        count = self.size.policies
        addresses = [f"172.17.200.{number + 1}" for number in range(count)]
        policies = [{"name": f"address-{address}", "destination": address, "action": "drop"} for address in addresses]
        theirs: Task = {
            IPTABLES: {
                "chain": "DOCKER-USER",
                "action": "insert",
                "destination": "{{ item }}",
                "in_interface": "!docker0",
                "protocol": "tcp",
                "comment": "quaywall:address-{{ item }}",
                "jump": "DROP",
            },
            "loop": addresses,
        }
        plays = {"ours": {CHAIN: {"rules": policies}}, "ping": {PING: {}}, "theirs": theirs}
        say(f"playbooks with {count} policies, {self.size.chains} times")
        times: dict[str, Times] = {name: [] for name in plays}
        for turn in range(self.size.chains):
            for name in plays if turn % 2 else list(plays)[::-1]:
                if name == "theirs" and turn >= self.size.rounds:
                    continue
                self.host.run(["sh", f"{PLACE}/nothing"])
                times[name].append(self.whole_play([{"name": name, **plays[name]}]))
        job = f"{count} policies in one task, from nothing: playbook"
        self.rows.append(Row(job, f"iptables module, {count} times", times["ours"], times["theirs"], 0.067))
        self.rows.append(Row(job, "playbook with a ping", times["ours"], times["ping"], 1.6))
        self.host.run(["sh", f"{PLACE}/nothing"])

    def chain_on_host(self, name: str, rules: list[dict[str, t.Any]]) -> dict[str, t.Any]:
        """What the module takes on the host: from nothing, and when there is nothing to do."""
        place = f"{PLACE}/{name}.json"
        self.host.run(f"cat > {place}", stdin=modules.arguments(rules=rules))
        command = ["python3", f"{PLACE}/on_host_chain.py", str(self.size.chains), place, f"{PLACE}/nothing"]
        done = self.host.run([*command, *modules.command("docker_user_chain")], timeout=900)
        measured: dict[str, t.Any] = json.loads(done.stdout)
        return measured

    def many_rules(self) -> None:
        """A chain of many rules, against the bounds: a policy makes four rules in one case, one in the other."""
        modules.install(self.host)
        count = self.size.rules
        four = [
            {
                "name": f"policy-{number}",
                "destination": f"172.20.{number // 250}.{number % 250 + 1}",
                "destination_port": ["8080"],
                "source": [f"203.0.{number // 250}.{number % 250}", f"198.51.{number % 256}.0/24", "192.0.2.7"],
                "action": "accept",
            }
            for number in range(count // 4)
        ]
        one = [
            {"name": f"policy-{number}", "destination": f"172.20.{number // 250}.{number % 250 + 1}", "action": "drop"}
            for number in range(count)
        ]
        for policies in (four, one):
            say(f"a chain of {count} rules, {len(policies)} policies, {self.size.chains} times")
            found = self.chain_on_host("rules", policies)
            job = f"{found['rules']} rules + {found['guard']} of the guard, {len(policies)} policies"
            self.bound_rows(f"{job}, from nothing: module", found["nothing"], 3.0)
            self.bound_rows(f"{job}, no change: module", found["no change"], 2.0)

    def bound_rows(self, job: str, times: list[dict[str, float]], bound: float) -> None:
        """Wall time against a bound. CPU time tells how much of it the module had to wait for others."""
        self.rows.append(Row(job, "the bound", [time["wall"] for time in times], [bound], 1))
        self.rows.append(Row(f"{job}, CPU only", "the bound", [time["cpu"] for time in times], [bound]))

    def long_list(self) -> None:
        """A policy with very many sources, and what one connection costs then."""
        modules.install(self.host)
        count = self.size.networks
        here, there, near = NEAR
        networks = [f"{11 + number // 65536}.{number // 256 % 256}.{number % 256}.0/24" for number in range(count - 1)]
        few = [f"203.0.113.{number}" for number in range(9)]
        policies = [
            {"name": "few", "container": "few", "source": [*few, near], "action": "accept"},
            {"name": "many", "container": "many", "source": [*networks, near], "action": "accept"},
        ]
        # Nobody listens where these host ports lead to.
        workloads = [self.host.run_workload("few", publish=["9100:81"])]
        workloads.append(self.host.run_workload("many", publish=["9101:81"]))
        say(f"a list of {count} networks, {self.size.chains} times")
        found = self.chain_on_host("list", policies[1:])
        if found["networks"] != count:
            raise BedError(f"{count} networks are wanted in the set, and {found['networks']} are there.")
        job = f"a list of {count} networks"
        self.bound_rows(f"{job}, from nothing: module", found["nothing"], 3.0)
        self.bound_rows(f"{job}, no change: module", found["no change"], 3.0)
        say(f"connections, {self.size.repetitions} times")
        self.host.run(["sh", f"{PLACE}/nothing"])
        self.host.run(modules.command("docker_user_chain"), stdin=modules.arguments(rules=policies))
        self.host.run(f"""
            ip netns add bench && ip link add bench0 type veth peer name bench1 netns bench
            ip address add {here}/24 dev bench0 && ip link set bench0 up
            ip -n bench address add {there}/24 dev bench1 && ip -n bench link set bench1 up
            ip -n bench route add default via {here}
        """)
        command = ["ip", "netns", "exec", "bench", "python3", f"{PLACE}/on_host_connections.py"]
        done = self.host.run([*command, str(self.size.repetitions), "0.5", here, "9100", "9101"], timeout=300)
        times: dict[str, Times] = json.loads(done.stdout)
        self.rows.append(Row(f"a connection let in by {job}", "by a list of 10", times["9101"], times["9100"], 1.1))
        self.host.run("ip netns delete bench")
        for workload in workloads:
            workload.remove()
        self.host.run(["sh", f"{PLACE}/nothing"])

    def at_rest(self) -> None:
        """What the follower does while nothing happens; of legacy chains nobody tells it, so that it has to look."""
        say("the follower at rest")
        rest = self.size.rest
        found = {"nft": self._at_rest(self.host)}
        bed = self.host.bed
        bed.up([HostSpec(LEGACY, suite=self.suite, iptables="legacy")], client=False)
        found[LEGACY] = self._at_rest(bed.host(LEGACY))
        bed.remove(LEGACY)
        for variant, measured in found.items():
            job = f"follower at rest ({variant})"
            wake_ups, looks = measured["wake-ups"], ("one a second", rest) if variant == LEGACY else ("the bound", 1.0)
            self.rows.append(
                Row(
                    f"{job}: wake-ups in {rest:g} s",
                    looks[0],
                    [wake_ups],
                    [looks[1]],
                    None if variant == LEGACY else 1,
                    "",
                )
            )
            self.rows.append(Row(f"{job}: memory", "the bound", [measured["mebibytes"]], [60.0], 1, "MiB"))
            self.rows.append(Row(f"{job}: CPU in {rest:g} s", "that time", [measured["cpu"]], [rest]))

    def _at_rest(self, host: Host) -> dict[str, float]:
        if host is not self.host:
            host.run(["mkdir", "-p", PLACE])
            here = pathlib.Path(__file__).resolve().parent
            host.bed.engine.docker("cp", str(here / "on_host_rest.py"), f"{host.container}:{PLACE}/on_host_rest.py")
            host.run_workload("web-0", publish=["9000:8080"])
        baseline.install(host, {"name": "web", "container": "web-0", "source": ["203.0.113.0/24"], "action": "accept"})
        try:
            time.sleep(5)  # what it was started by is over
            process = host.run(["systemctl", "show", "-P", "MainPID", baseline.FOLLOWER]).stdout.strip()
            command = ["python3", f"{PLACE}/on_host_rest.py", process, str(self.size.rest)]
            measured: dict[str, float] = json.loads(host.run(command).stdout)
        finally:
            baseline.remove(host)
        return measured

    def dumps(self) -> None:
        """Parsing and rendering what iptables-save prints."""
        parsing: dict[int, Times] = {}
        for variant in ("nft", "legacy"):
            for rules in self.size.dumps if variant == "nft" else (10_000,):
                repetitions = self.size.repetitions if rules < 100_000 else 5
                say(f"a dump of {rules} rules ({variant}), {repetitions} times")
                script = ["python3", f"{PLACE}/on_host_dump.py", PLACE, variant, str(rules), str(repetitions)]
                done = self.host.run(["unshare", "--net", *script], timeout=600, check=variant == "nft")
                if done.returncode:
                    say(f"left out: {done.stderr.strip().splitlines()[-1]}")
                    continue
                found = json.loads(done.stdout)
                both = [parse + render for parse, render in zip(found["parse"], found["render"], strict=True)]
                save = "iptables-save" if variant == "nft" else "iptables-legacy-save"
                self.rows.append(
                    Row(f"parse and render {rules} rules", save, both, found["save"], 10 if rules == 10_000 else None)
                )
                if variant == "nft":
                    parsing[rules] = [seconds / rules for seconds in both]
        for rules in self.size.dumps[1:]:
            fewer = self.size.dumps[self.size.dumps.index(rules) - 1]
            self.rows.append(
                Row(f"one rule of {rules}, parsed and rendered", f"one of {fewer}", parsing[rules], parsing[fewer], 1.5)
            )


def _duration(duration: dict[str, str]) -> float:
    start, end = (dt.datetime.fromisoformat(duration[key]) for key in ("start", "end"))
    return (end - start).total_seconds()


def machine(host: Host) -> dict[str, t.Any]:
    """What the numbers were measured on."""
    cpus = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = re.search(r"^model name\s*:\s*(.*)", cpus, re.MULTILINE)
    ansible = subprocess.run(["ansible", "--version"], capture_output=True, text=True, check=True).stdout
    ask = "python3 -V; iptables --version; docker version --format 'Docker {{.Server.Version}}'"
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": model.group(1) if model else platform.machine(),
        "kernel": platform.release(),
        "controller": [f"Python {platform.python_version()}", ansible.splitlines()[0].strip()],
        "host": host.run(ask).stdout.splitlines(),
        "load": os.getloadavg(),
    }


def describe(about: dict[str, t.Any]) -> str:
    """The machine in a sentence."""
    return (
        f"{about['cores']} cores ({about['processor']}), Linux {about['kernel']}; "
        f"controller: {', '.join(about['controller'])}; host: {', '.join(about['host'])}; "
        f"load when it started: {about['load'][0]:.1f}"
    )


def table(rows: list[Row]) -> str:
    """Aligned columns, numbers to the right."""
    lines = [HEADS, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADS))]
    left = (0, 1, 6)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _stopped(number: int, frame: types.FrameType | None) -> t.NoReturn:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/bench/run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer of everything: a look, not a result")
    parser.add_argument("--suite", choices=SUITES, default="bookworm", help="which host of the test bed")
    parser.add_argument("--only", default="", help="measurements (methods of Bench, comma list) and no others")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _stopped)
    try:
        with Bed(BED) as bed:
            bed.down()
            say(f"starting a host; all in all it takes {'five minutes' if arguments.quick else 'half an hour'}")
            bed.up([HostSpec(arguments.suite)], client=False)
            bench = Bench(bed.host(arguments.suite), arguments.suite, QUICK if arguments.quick else FULL)
            about = machine(bench.host)
            print(describe(about), flush=True)
            bench.run(arguments.only)
            about["load at the end"] = os.getloadavg()
    except KeyboardInterrupt:
        print("bench: stopped.", file=sys.stderr)
        return 130
    except (BedError, subprocess.TimeoutExpired) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(table(bench.rows))
    result = {"quick": arguments.quick, "machine": about, "rows": [row.to_json() for row in bench.rows]}
    if arguments.only:
        return 0
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"Each single time is in {RESULT.relative_to(REPOSITORY)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
