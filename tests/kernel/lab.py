# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Machines made of namespaces: a network of their own, and a /run of their own, so that no lock is shared.

Nothing here uses the code under test except :func:`firewall`, which hands it a machine.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import threading
import typing as t
from pathlib import Path

from ansible_collections.quaywall.docker.plugins.module_utils._iptables import Firewall

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

ROOT = Path(__file__).resolve().parents[2]

IPV4, IPV6 = FAMILIES = ("ipv4", "ipv6")
NFT, LEGACY = VARIANTS = ("nft", "legacy")
COMMANDS = {IPV4: "iptables", IPV6: "ip6tables"}

_CLONE_FS = 0x00000200
_CLONE_NEWNS = 0x00020000
_CLONE_NEWNET = 0x40000000
_MS_NOSUID_NODEV = 0x2 | 0x4
_MS_REC_PRIVATE = 0x4000 | 0x40000

_libc = ctypes.CDLL(None, use_errno=True)

T = t.TypeVar("T")


def _ok(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _mount(source: str, target: str, kind: str, flags: int) -> None:
    _ok(_libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), None))


def _in_thread(function: Callable[[], T]) -> T:
    """Run in a thread that ends with it: namespaces that it entered leave the test's own thread alone."""
    results: list[T] = []
    errors: list[BaseException] = []

    def target() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001 -- raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """For child processes: the collection and these tests importable, every administrator's program found."""
    return {
        **os.environ,
        "PATH": os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin",
        "PYTHONPATH": "%s:%s" % (ROOT / ".build", ROOT / "tests"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LC_ALL": "C",
        **(extra or {}),
    }


def find(program: str) -> str | None:
    return shutil.which(program, path=environment()["PATH"])


def run_command(
    args: Sequence[str],
    data: bytes | None = None,
    extra: Mapping[str, str] | None = None,
    descriptors: Sequence[int] = (),
) -> tuple[int, bytes, bytes]:
    """The Runner that the code under test is given, in whatever namespaces the thread is."""
    done = subprocess.run(
        list(args), input=data or b"", capture_output=True, env=environment(extra), check=False, pass_fds=descriptors
    )
    return done.returncode, done.stdout, done.stderr


class Host:
    """A machine: a network namespace with lo up, and a mount namespace with an empty /run and its own /sys."""

    def __init__(self) -> None:
        self._net, self._mounts = _in_thread(self._make)

    @staticmethod
    def _make() -> tuple[int, int]:
        _ok(_libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET))
        _mount("none", "/", "", _MS_REC_PRIVATE)
        _mount("tmpfs", "/run", "tmpfs", _MS_NOSUID_NODEV)
        _mount("sysfs", "/sys", "sysfs", _MS_NOSUID_NODEV)
        # Probes are answered at once, whatever the rate of errors; no automatic address slows the tests down.
        for name, value in (("ipv4/icmp_ratelimit", "0"), ("ipv6/icmp/ratelimit", "0"), ("ipv4/ip_forward", "0")):
            Path("/proc/sys/net", name).write_text(value, encoding="ascii")
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True, env=environment())
        return (
            os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC),
            os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC),
        )

    def __enter__(self) -> t.Self:
        return self

    def __exit__(self, *_error: object) -> None:
        os.close(self._net)
        os.close(self._mounts)

    @property
    def network(self) -> str:
        """A path that C(ip link set ... netns) takes."""
        return "/proc/%d/fd/%d" % (os.getpid(), self._net)

    def call(self, function: Callable[..., T], *args: t.Any, **kwargs: t.Any) -> T:
        """Call a function on this machine; processes that it starts stay there."""

        def enter() -> T:
            _ok(_libc.unshare(_CLONE_FS))
            _ok(_libc.setns(self._mounts, _CLONE_NEWNS))
            _ok(_libc.setns(self._net, _CLONE_NEWNET))
            os.chdir(ROOT)
            return function(*args, **kwargs)

        return _in_thread(enter)

    def attempt(
        self, *command: str | bytes, data: bytes = b"", extra: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command, whatever comes of it."""
        return self.call(
            subprocess.run, command, input=data, capture_output=True, env=environment(extra), check=False, timeout=60
        )

    def run(self, *command: str | bytes, data: bytes = b"") -> bytes:
        """Run a command that must not fail; its output."""
        done = self.attempt(*command, data=data)
        assert done.returncode == 0, (command, data, done)
        return done.stdout

    def ip(self, commands: str) -> None:
        """Lines of C(ip -batch)."""
        self.run("ip", "-batch", "-", data=commands.encode())

    def sysctl(self, name: str, value: str) -> None:
        self.call(Path("/proc/sys/net", name).write_text, value, encoding="ascii")

    def read(self, path: str) -> str:
        return self.call(Path(path).read_text, encoding="utf-8")

    def start(self, *command: str, **kwargs: t.Any) -> subprocess.Popen[bytes]:
        """A process of its own session, which the test must end."""
        return self.call(subprocess.Popen, command, env=environment(), start_new_session=True, **kwargs)

    def python(self, *arguments: str, **kwargs: t.Any) -> subprocess.Popen[bytes]:
        """A driver of ours (C(python -m kernel.driver)) as a process of its own."""
        return self.start(sys.executable, "-m", "kernel.driver", *arguments, **kwargs)


def tool(family: str, variant: str, action: str = "") -> str:
    return "-".join([COMMANDS[family], variant] + ([action] if action else []))


_DATED = re.compile(rb"\A# Generated by [^\n]*\n|# Completed on [^\n]*\n")


def save(host: Host, variant: str, family: str, *options: str, table: str = "filter") -> bytes:
    """What iptables-save prints for one table, without the dates."""
    return _DATED.sub(b"", host.run(tool(family, variant, "save"), "-t", table, *options))


def load(host: Host, variant: str, family: str, text: str | bytes, *options: str) -> None:
    """Replace tables by iptables-restore (or add to them with C(--noflush))."""
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    host.run(tool(family, variant, "restore"), "--wait", "10", *options, data=data)


def listed(host: Host, variant: str, family: str, chain: str = "DOCKER-USER") -> bytes:
    """The rules of one chain as C(iptables -S) prints them, alone: no comment can pretend to be another."""
    printed = host.run(tool(family, variant), "-w", "10", "-S", chain)
    head, separator, rest = printed.partition(b"\n")
    assert separator and head.split()[1] == chain.encode(), printed
    return rest


class Counted(t.NamedTuple):
    """A rule of a chain with its counters, from a dump whose comments hold no newline."""

    spec: str
    counters: tuple[int, int]


def counted(dump: bytes, chain: str = "DOCKER-USER") -> list[Counted]:
    """The rules of a chain in what C(save -c) printed."""
    pattern = re.compile(r"\[(\d+):(\d+)\] -A %s (.*)" % re.escape(chain))
    found = [pattern.fullmatch(line) for line in dump.decode("utf-8", "surrogateescape").split("\n")]
    return [Counted(match[3], (int(match[1]), int(match[2]))) for match in found if match]


def lines_of(chain: str, rules: Iterable[str]) -> bytes:
    """Rules as C(iptables -S) prints them."""
    return "".join("-A %s %s\n" % (chain, rule) for rule in rules).encode("utf-8", "surrogateescape")


DOCKER_CHAINS = ("DOCKER", "DOCKER-FORWARD", "DOCKER-USER")


def docker_table(
    rules: Iterable[str], forward: Iterable[str] = ("-j DOCKER-USER", "-j DOCKER-FORWARD"), more: str = ""
) -> str:
    """A filter table as Docker leaves it, with the rules in DOCKER-USER."""
    lines = ["*filter", ":INPUT ACCEPT [0:0]", ":FORWARD DROP [0:0]", ":OUTPUT ACCEPT [0:0]"]
    lines += [":%s - [0:0]" % chain for chain in DOCKER_CHAINS]
    body = [("FORWARD", rule) for rule in forward] + [("DOCKER-USER", rule) for rule in rules]
    heads = [":%s - [0:0]" % name for name in more.split()]
    appended = ["-A %s %s" % item for item in body]
    return "".join(line + "\n" for line in [*lines, *heads, *appended, "COMMIT"])


def firewall(
    run: t.Any = run_command, finder: t.Any = find, own_wait: float = 60.0, xtables_wait: float = 20.0
) -> Firewall:
    """The code under test; call its methods by :meth:`Host.call`."""
    return Firewall(run, finder, own_wait=own_wait, xtables_wait=xtables_wait)
