# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Packets and what came of them, as seen from the test: one probe, a storm of them, a server that others reach."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import subprocess
import threading
import typing as t

from .engine import BedError

AGENT: t.Final = (pathlib.Path(__file__).resolve().parent / "agent.py").read_text(encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class Probe:
    """What came of one connection attempt or datagram."""

    outcome: str
    """``open``, ``refused`` (RST or ICMP port unreachable), ``unreachable`` (other ICMP), ``timeout`` or ``error``."""
    who: str = ""
    """The name of the workload that answered; empty if nobody did (docker-proxy opens without a server behind it)."""
    detail: str = ""
    seconds: float = 0.0

    @property
    def open(self) -> bool:
        return self.outcome == "open"


@dataclasses.dataclass
class StormReport:
    """What came of a storm of connections. Filled when the storm is over."""

    attempts: int = 0
    outcomes: dict[str, int] = dataclasses.field(default_factory=dict)
    opened: list[tuple[float, str]] = dataclasses.field(default_factory=list)
    """Each opened connection: ``time.monotonic()`` of its start (one clock for the whole machine), and who answered."""

    @property
    def accepted(self) -> int:
        return len(self.opened)

    @property
    def who(self) -> dict[str, int]:
        """How often each workload answered; the empty name is "opened, but nobody answered"."""
        counts: dict[str, int] = {}
        for moment_and_name in self.opened:
            counts[moment_and_name[1]] = counts.get(moment_and_name[1], 0) + 1
        return counts


class Popen(t.Protocol):
    """Starts a command somewhere inside the bed, with pipes to it."""

    def __call__(self, argv: t.Sequence[str], **options: t.Any) -> subprocess.Popen[str]: ...


def agent_command(*arguments: str) -> list[str]:
    return ["python3", "-u", "-c", AGENT, *arguments]


class Agent:
    """The agent at one place of the bed. Started at the first request and kept: a probe then takes milliseconds."""

    def __init__(self, popen: Popen, place: str) -> None:
        self._popen = popen
        self._place = place
        self._process: subprocess.Popen[str] | None = None
        self._one_at_a_time = threading.Lock()

    def ask(self, do: str, **request: t.Any) -> dict[str, t.Any]:
        with self._one_at_a_time:
            if self._process is None or self._process.poll() is not None:
                pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
                self._process = self._popen(agent_command("requests"), **pipes)
            process = self._process
            assert process.stdin and process.stdout and process.stderr
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps({"do": do, **request}) + "\n")
                process.stdin.flush()
            line = process.stdout.readline()
            if not line:
                raise BedError(f"the agent in {self._place} died: {process.stderr.read()}")
        answer: dict[str, t.Any] = json.loads(line)
        if "failed" in answer:
            raise BedError(f"{do} {request} in {self._place}: {answer['failed']}")
        return answer

    def probe(self, do: str, **request: t.Any) -> Probe:
        return Probe(**self.ask(do, **request))

    def close(self) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            assert process.stdin and process.stdout and process.stderr
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.wait(timeout=10)
            process.stdout.close()
            process.stderr.close()


@contextlib.contextmanager
def storm(popen: Popen, **request: t.Any) -> t.Iterator[StormReport]:
    """Connect at a steady pace while the body runs. The report is complete when the context ends."""
    report = StormReport()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = popen(agent_command("storm", json.dumps(request)), **pipes)
    assert process.stdout
    if process.stdout.readline() != "started\n":
        raise BedError(f"the storm did not start: {process.communicate()[1]}")
    try:
        yield report
    finally:
        output, errors = process.communicate(timeout=60)
    if process.returncode or not output:
        raise BedError(f"the storm broke off: {errors}")
    result = json.loads(output)
    report.attempts = result["attempts"]
    report.outcomes = result["outcomes"]
    report.opened = [(float(opened[0]), str(opened[1])) for opened in result["opened"]]


class Visits:
    """A server in the client, reached by others."""

    def __init__(self, agent: Agent, port: int) -> None:
        self._agent = agent
        self._port = port

    def peers(self) -> list[str]:
        """The source addresses of those who came so far, in order."""
        peers: list[str] = self._agent.ask("peers", port=self._port)["peers"]
        return peers


@contextlib.contextmanager
def listening(agent: Agent, port: int, name: str) -> t.Iterator[Visits]:
    agent.ask("listen", port=port, name=name)
    try:
        yield Visits(agent, port)
    finally:
        agent.ask("close", port=port)
