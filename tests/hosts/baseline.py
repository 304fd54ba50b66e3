# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Puts on a host of the bed what the role firewall_baseline installs, in a second or two, and takes it away again.

The chain and the store are docker_user_chain's own work, the program and the units are the role's own files; only
Ansible between them is left out.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import pathlib
import re
import time
import typing as t

import jinja2
from hosts import modules

from ansible_collections.quaywall.docker.plugins.lookup import follower_program

if t.TYPE_CHECKING:
    from testbed.hosts import Host

ROLE: t.Final = modules.REPOSITORY / "roles" / "firewall_baseline"
PROGRAM: t.Final = "/usr/lib/quaywall/quaywall.pyz"
RUN: t.Final = f"/usr/bin/python3 -I {PROGRAM}"
PLUGIN: t.Final = "/usr/share/netfilter-persistent/plugins.d/40-quaywall"
POLICIES: t.Final = "/etc/quaywall/policies.json"
FOLLOWER: t.Final = "quaywall-follower.service"
UNITS: t.Final = ("quaywall-restore.service", FOLLOWER)


def render(name: str) -> str:
    """A template of the role, which know no variable but the interpreter."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    text = (ROLE / "templates" / f"{name}.j2").read_text(encoding="utf-8")
    return environment.from_string(text).render(firewall_baseline_python="/usr/bin/python3")


def write(host: Host, path: str, content: bytes | str, mode: str = "0644") -> None:
    """Write a file on the host."""
    data = content.encode() if isinstance(content, str) else content
    place = pathlib.PurePosixPath(path)
    script = f"mkdir -p {place.parent} && base64 -d >{path}.new && chmod {mode} {path}.new && mv {path}.new {path}"
    host.run(script, stdin=base64.b64encode(data).decode())


def apply(host: Host, *policies: t.Mapping[str, t.Any], **options: t.Any) -> modules.ModuleResult:
    """Bring chain and store to these policies, as the role does."""
    result = modules.docker_user_chain(host, rules=list(policies), missing_targets="wait", store=True, **options)
    assert not result.failed, result.message
    return result


def install(host: Host, *policies: t.Mapping[str, t.Any], **options: t.Any) -> None:
    """Policies, program and units; the follower runs afterwards, and has looked once."""
    modules.install(host)
    apply(host, *policies, **options)
    write(host, PROGRAM, follower_program.build(follower_program.closure(str(modules.REPOSITORY / PLUGINS))), "0755")
    for unit in UNITS:
        write(host, f"/etc/systemd/system/{unit}", render(unit))
    host.run(f"systemctl daemon-reload; systemctl enable --quiet {' '.join(UNITS)}; systemctl restart {FOLLOWER}")


PLUGINS: t.Final = "plugins/module_utils"

_REMOVE: t.Final = f"""
systemctl disable --quiet --now {" ".join(UNITS)}
rm -rf {" ".join(f"/etc/systemd/system/{unit}" for unit in UNITS)} {PLUGIN} {pathlib.PurePosixPath(PROGRAM).parent}
systemctl daemon-reload
systemctl reset-failed {" ".join(UNITS)}
true
"""


def remove(host: Host) -> None:
    """Take all of it away, in the role's order: first what would put the rules back."""
    host.run(_REMOVE)
    modules.install(host)
    result = modules.docker_user_chain(host, state="absent")
    assert not result.failed, result.message
    left = host.run("ls -d /etc/quaywall /var/lib/quaywall; iptables-save | grep -i quaywall", check=False).stdout
    assert left == ""


# What is there -------------------------------------------------------------------------------------------------------


def chain(host: Host, command: str = "iptables") -> list[str]:
    """The rules of DOCKER-USER; none if there is no such chain."""
    return host.run(f"{command} -S DOCKER-USER", check=False).stdout.splitlines()[1:]


_OURS: t.Final = (
    "iptables-save -t filter | grep -e DOCKER-USER -e QUAYWALL | sed 's/ \\[.*//'; "
    "iptables-save -t mangle | grep QUAYWALL | sed 's/ \\[.*//'; iptables -S FORWARD 1"
)


def ours(host: Host) -> str:
    """Chain, jump (and whether it is the first rule of FORWARD) and guard, as text that tells any difference."""
    return host.run(_OURS, check=False).stdout


def stored(host: Host) -> dict[str, t.Any]:
    """What the store says."""
    document: dict[str, t.Any] = json.loads(host.run(["cat", POLICIES]).stdout)
    return document


def right(host: Host) -> bool:
    """True if the program finds nothing to change."""
    done = host.run(f"{RUN} follow --check", check=False)
    assert done.returncode in (0, 3), done.stdout + done.stderr
    return done.returncode == 0


def within(seconds: float, what: t.Callable[[], bool], every: float = 0.01) -> float:
    """The seconds that it took; fails after the time that it may take."""
    start = time.monotonic()
    while not what():
        assert time.monotonic() - start < seconds, f"not within {seconds} s"
        time.sleep(every)
    return time.monotonic() - start


# Who did what when ---------------------------------------------------------------------------------------------------


class Line(t.NamedTuple):
    """A line of the follower's journal. ``at`` is seconds of time.time()."""

    at: float
    text: str


def journal(host: Host, since: float) -> list[Line]:
    """What the follower said since then (time.time(); hosts share the machine's clock)."""
    command = ["journalctl", "--no-pager", "-o", "json", "-u", FOLLOWER, f"--since=@{since:.6f}"]
    lines = []
    for line in host.run(command).stdout.splitlines():
        entry = json.loads(line)
        # What systemd says of the unit is under it as well.
        if entry.get("_COMM") != "systemd" and isinstance(entry.get("MESSAGE"), str):
            lines.append(Line(int(entry["__REALTIME_TIMESTAMP"]) / 1e6, entry["MESSAGE"]))
    return lines


@dataclasses.dataclass(frozen=True)
class Happening:
    """An event of Docker."""

    at: float
    """Seconds of time.time()"""
    what: str
    """Such as ``network connect``"""
    container: str
    """Its ID"""


def events(host: Host, since: float) -> list[Happening]:
    """What Docker says that happened since then."""
    command = ["docker", "events", "--since", f"{since:.6f}", "--until", f"{time.time():.6f}", "--format", "{{json .}}"]
    found = []
    for line in host.run(command).stdout.splitlines():
        event = json.loads(line)
        actor = event["Actor"]
        container = actor["Attributes"].get("container", actor["ID"])
        found.append(Happening(event["timeNano"] / 1e9, f"{event['Type']} {event['Action']}", container))
    return found


def addresses_in(line: str) -> list[str]:
    """The addresses that a line of the journal names."""
    return re.findall(r"\d+\.\d+\.\d+\.\d+", line)
