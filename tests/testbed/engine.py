# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The outer engine: the Docker engine in which the hosts of a bed run as containers.

The machine's own engine is used where one answers. Where none does, a dockerd of our own is started: in network and
mount namespaces of its own, with everything it writes below one state folder, so that the machine's network, firewall
and engine stay as they are.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import typing as t

STATE_VARIABLE = "QUAYWALL_BED_STATE"

# A Unix socket's path holds 107 bytes; dockerd appends up to 40 of its own to its exec-root.
_LONGEST_FOLDER_OF_SOCKETS = 64


class BedError(Exception):
    """The bed cannot do what it was asked to; the message is for a person."""


def say(line: str) -> None:
    """Tell the person what happens. On stderr: stdout belongs to answers (``testbed env``)."""
    print(f"testbed: {line}", file=sys.stderr, flush=True)


def state_folder() -> pathlib.Path:
    """Where our own engine keeps everything: ``$QUAYWALL_BED_STATE``, or ``.build/bed/engine`` in the repository."""
    chosen = os.environ.get(STATE_VARIABLE)
    if chosen:
        return pathlib.Path(chosen).resolve()
    return pathlib.Path(__file__).resolve().parents[2] / ".build" / "bed" / "engine"


@contextlib.contextmanager
def locked(name: str) -> t.Iterator[None]:
    """Hold a lock between processes: two test runs must not start two engines or build one image twice."""
    folder = state_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{name}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def ensure_command(command: str, package: str) -> None:
    """Install the Debian package of a command that is missing, after saying so."""
    if shutil.which(command, path=_PATH):
        return
    if not shutil.which("apt-get") or os.geteuid() != 0:
        raise BedError(f"The test bed needs {command} (Debian's {package}): install it, or start a Docker engine.")
    say(f"installing {package} with apt: the test bed needs {command}, which is not here; no service is started by it")
    with _services_do_not_start():
        install = ["install", "--yes", "--no-install-recommends", package]
        if _apt_get(*install).returncode:
            _apt_get("update")
            done = _apt_get(*install)
            if done.returncode:
                raise BedError(f"apt-get cannot install {package}:\n{done.stderr}")


def _apt_get(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["apt-get", "--quiet", "--option=DPkg::Lock::Timeout=300", *arguments],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@contextlib.contextmanager
def _services_do_not_start() -> t.Iterator[None]:
    """Keep a package from starting its services, now and at boot: Docker would rewrite the machine's firewall."""
    units = ("docker.service", "docker.socket", "containerd.service")
    guard = pathlib.Path("/usr/sbin/policy-rc.d")
    if guard.exists() or shutil.which("dockerd", path=_PATH):
        yield
        return
    guard.write_text("#!/bin/sh\nexit 101\n", encoding="ascii")
    guard.chmod(0o755)
    try:
        yield
    finally:
        guard.unlink()
        if shutil.which("systemctl"):
            subprocess.run(["systemctl", "--quiet", "disable", *units], capture_output=True, check=False)


class Engine:
    """A Docker engine, by the address where it answers."""

    def __init__(self, address: str, *, own: bool) -> None:
        self.address = address
        """What ``DOCKER_HOST`` must say."""
        self.own = own
        """True if we started it: it then has no network beyond its own namespace."""

    @property
    def environment(self) -> dict[str, str]:
        environment = {**os.environ, "DOCKER_HOST": self.address}
        environment.pop("DOCKER_CONTEXT", None)
        return environment

    def docker(
        self, *arguments: str, check: bool = True, stdin: str | None = None, timeout: float | None = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run the docker CLI against this engine."""
        done = subprocess.run(
            ["docker", *arguments],
            env=self.environment,
            input="" if stdin is None else stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            raise BedError(f"docker {' '.join(arguments)[:300]}: rc {done.returncode}\n{done.stderr}{done.stdout}")
        return done

    def popen(self, *arguments: str, **options: t.Any) -> subprocess.Popen[str]:
        """Start the docker CLI against this engine and leave it running."""
        return subprocess.Popen(["docker", *arguments], env=self.environment, text=True, **options)

    def answers(self) -> bool:
        try:
            return self.docker("version", "--format", "{{.Server.Version}}", check=False, timeout=10).returncode == 0
        except (OSError, subprocess.TimeoutExpired):
            return False


class OwnEngine:
    """The dockerd that we start ourselves: started once, found again by later calls, stopped when asked to."""

    def __init__(self, state: pathlib.Path | None = None) -> None:
        self.state = state or state_folder()
        self._sockets = self.state
        if len(os.fsencode(self.state)) > _LONGEST_FOLDER_OF_SOCKETS:
            digest = hashlib.sha256(os.fsencode(self.state)).hexdigest()[:12]
            self._sockets = pathlib.Path("/run") / f"quaywall-bed-{digest}"
        self.engine = Engine(f"unix://{self._sockets / 'docker.sock'}", own=True)

    @property
    def _pidfile(self) -> pathlib.Path:
        return self._sockets / "docker.pid"

    def pid(self) -> int | None:
        """The process ID of the dockerd, if it lives; a number that another process got since does not count."""
        try:
            pid = int(self._pidfile.read_text(encoding="ascii"))
            command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        return pid if os.fsencode(f"--pidfile={self._pidfile}") in command else None

    def running(self) -> bool:
        return self.pid() is not None and self.engine.answers()

    def start(self) -> Engine:
        """Start the dockerd, unless it runs, and wait until it answers."""
        with locked("engine"):
            if not self.running():
                self._start()
        return self.engine

    def _start(self) -> None:
        if os.geteuid() != 0:
            raise BedError("No Docker engine answers, and only root can start one: start Docker, or run this as root.")
        ensure_command("ip", "iproute2")
        ensure_command("dockerd", "docker.io")
        ensure_command("docker", "docker-cli")  # a package of its own from Debian 13 on
        say(f"no Docker engine answers: starting one below {self.state}, in a network namespace of its own")
        self.state.mkdir(parents=True, exist_ok=True)
        self._sockets.mkdir(parents=True, exist_ok=True)
        self._pidfile.unlink(missing_ok=True)
        dockerd = [
            "dockerd",
            f"--data-root={self.state / 'data'}",
            f"--exec-root={self._sockets / 'exec'}",
            f"--pidfile={self._pidfile}",
            f"--host={self.engine.address}",
            # A plain switch between hosts and client: no bridge, no rules, no proxy of its own.
            "--bridge=none",
            "--iptables=false",
            "--ip-forward=false",
            "--userland-proxy=false",
        ]
        namespaces = ["unshare", "--net", "--mount", "--propagation=slave", "--"]
        prepare = ["/bin/sh", "-c", 'ip link set lo up && exec "$@"', "dockerd"]
        log_path = self.state / "dockerd.log"
        with open(log_path, "ab") as log:
            child = subprocess.Popen(
                [*namespaces, *prepare, *dockerd],
                env={**os.environ, "PATH": _PATH},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )
        deadline = time.monotonic() + 30
        while not self.engine.answers():
            if child.poll() is not None or time.monotonic() > deadline:
                tail = log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-10:]
                raise BedError("dockerd does not start; the end of its log:\n" + "\n".join(tail))
            time.sleep(0.1)
        child.returncode = 0  # it outlives us on purpose: no warning about a child left behind

    def stop(self) -> None:
        """Stop the dockerd and all that runs in it. Images stay."""
        with locked("engine"):
            pid = self.pid()
            if pid is None:
                return
            if self.engine.answers():
                containers = self.engine.docker("ps", "--all", "--quiet").stdout.split()
                if containers:
                    self.engine.docker("rm", "--force", "--volumes", *containers)
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + 30
            while self.pid() is not None:
                if time.monotonic() > deadline:
                    say(f"dockerd {pid} does not stop: killing it")
                    os.kill(pid, signal.SIGKILL)
                time.sleep(0.1)

    def purge(self) -> None:
        """Stop the dockerd and remove all that it ever wrote."""
        self.stop()
        for folder in (self.state, self._sockets):
            shutil.rmtree(folder, ignore_errors=True)


def running_engine() -> Engine | None:
    """The engine to use, if one runs: ours, else the machine's."""
    own = OwnEngine()
    if own.running():
        return own.engine
    if not shutil.which("docker"):
        return None
    context = ["docker", "context", "inspect", "--format", "{{.Endpoints.docker.Host}}"]
    address = subprocess.run(context, capture_output=True, text=True, check=False).stdout.strip()
    machines = Engine(address, own=False)
    return machines if address not in ("", own.engine.address) and machines.answers() else None


def outer_engine() -> Engine:
    """The engine to use; where none runs, ours is started."""
    return running_engine() or OwnEngine().start()
