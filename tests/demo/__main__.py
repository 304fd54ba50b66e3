# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tells the story, and measures every table of it with packets. Fails if a table is not what the story says."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import typing as t

import yaml

from testbed import OFFICE, STRANGER, Bed, BedError, HostSpec, Probe, Workload
from testbed.engine import state_folder

from .playbook import run_playbook, run_task

if t.TYPE_CHECKING:
    import io
    import types

BED: t.Final = "quaywall-demo"
HOST: t.Final = HostSpec("trixie")
PLAYBOOK: t.Final = "quaywall.docker.demo"
GROUP: t.Final = "quaywall_demo"
AUDIT: t.Final = "quaywall.docker.docker_fw_audit"

INNER_PORT: t.Final = 8080
PORTS: t.Final = {"admin": 9000, "shop": 8080}
"""The two containers and their host ports."""
REPOSITORY: t.Final = pathlib.Path(__file__).resolve().parents[2]

IN: t.Final = "gets in"
NOBODY: t.Final = "no answer"
SECONDS_TO_ANSWER: t.Final = 0.8

STOPPING: t.Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Table = dict[str, tuple[str, str]]
"""For each who: what came of trying the admin UI, and the shop."""

EVERYBODY: t.Final[Table] = {"office": (IN, IN), "stranger": (IN, IN), "neighbour": (IN, IN)}
AS_WANTED: t.Final[Table] = {"office": (IN, IN), "stranger": (NOBODY, IN), "neighbour": (IN, IN)}
CLOSED_TO_OUTSIDE: t.Final[Table] = {"office": (NOBODY, IN), "stranger": (NOBODY, IN), "neighbour": (IN, IN)}


class StoryError(Exception):
    """Something came out otherwise than the story says."""


class Voice:
    """Prints: in colours on a terminal that wants them, plain elsewhere."""

    def __init__(self) -> None:
        self._width = min(100, shutil.get_terminal_size((100, 24)).columns - 1)
        wanted = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self._codes = {"bold": "1", "green": "32", "red": "31", "cyan": "36", "dim": "2"} if wanted else {}

    def paint(self, text: str, colour: str) -> str:
        code = self._codes.get(colour)
        return f"\033[{code}m{text}\033[0m" if code else text

    def say(self, text: str, colour: str = "", first: str = "", rest: str = "") -> None:
        """Print a text, wrapped to the terminal's width."""
        filled = textwrap.fill(
            " ".join(text.split()), self._width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
        )
        print(self.paint(filled, colour))

    def step(self, number: int, text: str) -> None:
        print()
        self.say(text, "bold", f"{number}. ", "   ")

    def command(self, command: str) -> None:
        self.say(command, "cyan", "   # ", "     ")

    def note(self, text: str) -> None:
        self.say(text, "", "   ", "   ")

    def table(self, addresses: t.Mapping[str, str], table: Table, expected: Table) -> None:
        heads = [f"port {port} -> {name}" for name, port in PORTS.items()]
        print(self.paint(f"   {'':28}{heads[0]:22}{heads[1]}", "dim"))
        for who, cells in table.items():
            painted = [
                self.paint(f"{cell if cell == wanted else cell + ' (!)':22}", "green" if cell == IN else "red")
                for cell, wanted in zip(cells, expected[who], strict=True)
            ]
            print(f"   {who:12}{addresses[who]:16}{''.join(painted).rstrip()}")


class Story:
    """The steps, on a bed that is up."""

    def __init__(self, bed: Bed, voice: Voice) -> None:
        self.voice = voice
        self.host = bed.host(HOST.name)
        self.client = bed.client
        self.address = self.host.address(4)
        self._number = 0
        for name, port in PORTS.items():
            self._start(name, port)
        self.neighbour = self.host.run_workload("neighbour")

    def _start(self, name: str, port: int) -> Workload:
        return self.host.run_workload(name, publish=[f"{port}:{INNER_PORT}"])

    # What is measured

    def measure(self) -> Table:
        """Who gets in now: one connection for each cell."""
        table: Table = {}
        for who, source in (("office", OFFICE), ("stranger", STRANGER)):
            probes = {
                name: self.client.connect(self.address, port, source=source, timeout=SECONDS_TO_ANSWER)
                for name, port in PORTS.items()
            }
            table[who] = _cells(probes)
        inside = {name: self.host.workload(name).address() for name in PORTS}
        table["neighbour"] = _cells(
            {
                name: self.neighbour.connect(address, INNER_PORT, timeout=SECONDS_TO_ANSWER)
                for name, address in inside.items()
            }
        )
        return table

    def show(self, expected: Table) -> None:
        """Measure, print, and compare with what the story says."""
        table = self.measure()
        self.voice.table(
            {"office": OFFICE.v4, "stranger": STRANGER.v4, "neighbour": self.neighbour.address()}, table, expected
        )
        wrong = [
            f"{who} at {name}: {cell}, and not: {wanted}"
            for who, cells in table.items()
            for name, cell, wanted in zip(PORTS, cells, expected[who], strict=True)
            if cell != wanted
        ]
        if wrong:
            raise StoryError(f"step {self._number} came out otherwise than the story says: {'; '.join(wrong)}.")

    def step(self, text: str) -> None:
        self._number += 1
        self.voice.step(self._number, text)

    def on_host(self, command: str) -> None:
        self.voice.command(command)
        self.host.run(command)

    def run_playbook(self, changed: int) -> list[str]:
        self.voice.command(f"ansible-playbook --diff {PLAYBOOK}")
        run = run_playbook(self.host, PLAYBOOK, GROUP)
        self.voice.note(f"ok={run.ok} changed={run.changed}")
        if run.changed != changed:
            raise StoryError(f"step {self._number}: the playbook changed {run.changed} tasks, and not {changed}.")
        return run.diff

    def rules(self) -> str:
        return self.host.run("iptables -S DOCKER-USER").stdout

    # The steps

    def tell(self) -> None:
        self.as_docker_leaves_it()
        self.rule_in_input()
        self.rule_for_a_port()
        self.policy_for_a_container()
        self.once_more()
        self.container_moves()

    def as_docker_leaves_it(self) -> None:
        self.step("As Docker leaves it: everybody gets in everywhere.")
        self.show(EVERYBODY)

    def rule_in_input(self) -> None:
        self.step(
            """The usual way to close a port, a rule in INPUT, changes nothing: a published port is forwarded into the
            container, and forwarded packets never pass INPUT."""
        )
        self.on_host("iptables -I INPUT -p tcp --dport 9000 -j DROP")
        self.show(EVERYBODY)
        self.host.run("iptables -D INPUT -p tcp --dport 9000 -j DROP")

    def rule_for_a_port(self) -> None:
        # With this switch, which Docker turns on, iptables also sees what containers of one network say to each other.
        switch = self.host.run("cat /proc/sys/net/bridge/bridge-nf-call-iptables", check=False).stdout.strip()
        neighbour, aside = (NOBODY, "Even the neighbour is cut off.") if switch == "1" else (IN, "")
        self.step(
            f"""Docker's chain for users is DOCKER-USER. A rule there, meant to close host port 8080 (the shop), takes
            down both: Docker has already put the container's port in place of the host's, and inside both listen on
            8080. {aside}"""
        )
        self.on_host("iptables -I DOCKER-USER -p tcp --dport 8080 -j DROP")
        self.show({"office": (NOBODY, NOBODY), "stranger": (NOBODY, NOBODY), "neighbour": (neighbour, neighbour)})
        self.audit()
        self.host.run("iptables -D DOCKER-USER -p tcp --dport 8080 -j DROP")

    def audit(self) -> None:
        self.step("The audit finds that rule, says whom it hits, and hands over what to write instead.")
        task = {AUDIT: {"checks": ["port_only_deny"]}}
        self.voice.command(f"ansible {GROUP} -m {AUDIT} -a checks=port_only_deny")
        (finding,) = run_task(self.host, task, GROUP)["findings"]
        self.voice.say(f"{finding['severity'].upper()}: {finding['message']}", "", "   ", "   ")
        for item in finding["affected"]:
            if item["published"]:
                meant = "meant" if item["meant"] else "not meant"
                print(self.voice.paint(f"   {item['container']:12}{item['published']:28}{meant}", "dim"))
        self.voice.note("Instead:")
        print(self.voice.paint(textwrap.indent(_yaml(finding["fix"]["tasks"][:1]), "   "), "dim"))
        meant_for = {item["container"]: item["meant"] for item in finding["affected"] if item["published"]}
        if meant_for != {"admin": False, "shop": True}:
            raise StoryError(f"step {self._number}: the audit says {meant_for}.")

    def policy_for_a_container(self) -> None:
        self.step(
            """That rule is gone again. Now a policy for a container instead of a rule for a port. It keeps the stranger
            away from admin; the shop stays open to everybody, and the neighbour reaches both."""
        )
        print(self.voice.paint(textwrap.indent(_task(), "   "), "dim"))
        for line in self.run_playbook(changed=1):
            self.voice.say(line, "green" if line[0] == "+" else "red", "   ", "       ")
        self.voice.note("(The rules in short: each also carries the policy's name in a comment.)")
        self.show(AS_WANTED)

    def once_more(self) -> None:
        self.step("Running it again changes nothing.")
        before = self.rules()
        self.run_playbook(changed=0)
        if self.rules() != before:
            raise StoryError(f"step {self._number}: DOCKER-USER is not what it was:\n{before}{self.rules()}")

    def container_moves(self) -> None:
        self.step(
            """The container is made anew while the stranger keeps trying, and comes back with another address; the old
            one belongs to a newcomer. Rules for addresses alone would guard the wrong container now. This policy holds
            the host port too: until it is told the new address, nobody outside reaches admin."""
        )
        admin = self.host.workload("admin")
        before = admin.address()
        with self.client.storm(self.address, PORTS["admin"], source=STRANGER, every=0.01) as storm:
            admin.remove()
            newcomer = self.host.run_workload("newcomer").address()
            after = self._start("admin", PORTS["admin"]).address()
            time.sleep(1)
        if newcomer != before:
            raise StoryError(f"step {self._number}: admin was {before} and is {after}, the newcomer is {newcomer}.")
        self.voice.note(
            f"""admin was {before} and is {after}. The stranger tried {storm.attempts} times meanwhile and got in
            {storm.accepted} times."""
        )
        if storm.accepted:
            raise StoryError(f"step {self._number}: the stranger got in, to {storm.who}.")
        self.show(CLOSED_TO_OUTSIDE)
        self.step("The playbook puts the new address in place of the old one, and the office is back.")
        self.run_playbook(changed=1)
        self.show(AS_WANTED)


def _task() -> str:
    """The task of the playbook, as it is written there."""
    text = (REPOSITORY / "playbooks" / "demo.yml").read_text(encoding="utf-8")
    return textwrap.dedent(text.partition("  tasks:\n")[2]).rstrip()


def _yaml(tasks: list[dict[str, t.Any]]) -> str:
    return yaml.safe_dump(tasks, sort_keys=False).rstrip()


def _cells(probes: t.Mapping[str, Probe]) -> tuple[str, str]:
    admin, shop = (_cell(probe, name) for name, probe in probes.items())
    return admin, shop


def _cell(probe: Probe, name: str) -> str:
    if probe.outcome == "timeout":
        return NOBODY
    if probe.open:
        return IN if probe.who == name else f"reaches {probe.who or 'nobody'}"
    return probe.outcome


@contextlib.contextmanager
def only_one() -> t.Iterator[None]:
    """Two demonstrations at once would take each other's bed away."""
    folder = state_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{BED}.lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoryError("another demonstration is running; wait for its end.") from error
        yield


def introduce(voice: Voice) -> None:
    print()
    voice.say(
        """Two web servers run in containers on a Docker host. Each listens on port 8080 inside its container, and
        Docker publishes it on a port of the host:"""
    )
    print("   host port 9000 -> admin    meant for the office only")
    print("   host port 8080 -> shop     meant for everybody")
    voice.say(
        """The neighbour is a third container on that host; it calls the other two directly. Each cell below is one
        connection, tried at that moment."""
    )


def take_down(bed: Bed) -> None:
    # What an interrupted command had asked for may still be on its way into being.
    while bed.down():
        time.sleep(0.2)


def how_to_look_around() -> str:
    testbed = "PYTHONPATH=tests python3 -m testbed"
    commands = {
        f"{testbed} shell --bed {BED} {HOST.name} iptables -S DOCKER-USER": "the rules",
        f"{testbed} shell --bed {BED} {HOST.name}": "a shell on the Docker host",
        f"{testbed} shell --bed {BED} client": "a shell where the packets come from",
        f"{testbed} down {BED}": "takes both down",
    }
    return "\n".join(f"   {command:88}  {what}" for command, what in commands.items())


def demonstrate(voice: Voice, keep: bool) -> None:
    with only_one():
        start = time.monotonic()
        voice.say(
            """Starting a Docker host and a client that sends the packets. They run in containers of their own; this
            machine's firewall is not touched. (Only the first time, their images are built: a minute or two.)"""
        )
        bed = Bed(BED)
        try:
            take_down(bed)
            bed.up([HOST])
            introduce(voice)
            Story(bed, voice).tell()
            print(f"\nEvery table came out as told. It took {time.monotonic() - start:.0f} s.")
        finally:
            if keep:
                print("Host and client stay up, as KEEP is set. To look around:", how_to_look_around(), sep="\n")
            else:
                # A second Ctrl-C must not leave half of the bed behind.
                for number in STOPPING:
                    signal.signal(number, signal.SIG_IGN)
                take_down(bed)
                print("Host and client are removed. `KEEP=1 make demo` leaves them up to look around.")


def _stopped(number: int, frame: types.FrameType | None) -> t.NoReturn:
    raise KeyboardInterrupt


def main() -> int:
    t.cast("io.TextIOWrapper", sys.stdout).reconfigure(line_buffering=True)
    for number in STOPPING:
        signal.signal(number, _stopped)
    keep = os.environ.get("KEEP", "") not in ("", "0")
    try:
        demonstrate(Voice(), keep)
    except KeyboardInterrupt:
        print("demo: stopped.", file=sys.stderr)
        return 130
    except (StoryError, BedError, subprocess.TimeoutExpired) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
