# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Twelve hosts over three engines, some of them in a bad way, and ``ansible-playbook`` as a person runs it."""

from __future__ import annotations

import concurrent.futures
import json
import os
import pathlib
import subprocess
import typing as t

from testbed import SUITES, Bed, BedError, Host, HostSpec, Source

_REPOSITORY: t.Final = pathlib.Path(__file__).resolve().parents[2]

NAMES: t.Final = tuple(f"{suite}-{number}" for suite in SUITES for number in range(1, 5))

OUTAGE: t.Final = ("bookworm-2", "trixie-2", "forky-2")
"""Somebody closed port 8080, meant for shop; admin is down too."""
OLD_PYTHON: t.Final = "bookworm-3"
"""Ansible uses a Python 3.8 or 3.9 there."""
UNREACHABLE: t.Final = "bookworm-4"
"""It has no power."""
DOCKER_DOWN: t.Final = "trixie-3"
BAD_OPTION: t.Final = "trixie-4"
"""Its variables have an option that the audit refuses."""
NO_DOCKER: t.Final = "forky-3"
NO_PYTHON: t.Final = "forky-4"
"""Its variables name a Python that is not there."""
UNGUARDED: t.Final = "trixie-1"
"""Its variables say that the role is to do without the guard: Engine 26.1 then has moments without policies."""
HEALTHY: t.Final = ("bookworm-1", "trixie-1", "forky-1")
UNJUDGED: t.Final = (UNREACHABLE, BAD_OPTION, NO_PYTHON)
JUDGED: t.Final = tuple(name for name in NAMES if name not in UNJUDGED)

PWNED: t.Final = "/tmp/quaywall-pwned"
HOSTILE_RULE: t.Final = "forky-2"
HOSTILE: t.Final = "{{ lookup('pipe', 'touch " + PWNED + "') }} $(touch " + PWNED + ") <script>"
"""A comment of a rule, which fixes repeat."""

_CONTAINERS: t.Final = """
docker run --detach --name admin --hostname admin --publish 0.0.0.0:9000:8080 workload serve 8080
docker run --detach --name shop --hostname shop --publish 0.0.0.0:8080:8080 workload serve 8080
"""
# Each is an inotify instance, of which a user has 128 on many machines.
_LIGHTER: t.Final = "systemctl stop systemd-ask-password-console.path systemd-ask-password-wall.path"

Results = dict[str, dict[str, t.Any]]


class Run(t.NamedTuple):
    """What came of one ``ansible-playbook``."""

    rc: int
    report: dict[str, t.Any]
    stderr: str

    def results(self, task: str) -> Results:
        """The results of a task by host; of one that ran several times the last."""
        return {
            host: result
            for play in self.report["plays"]
            for item in play["tasks"]
            if item["task"]["name"].rpartition(" : ")[2] == task
            for host, result in item["hosts"].items()
        }

    def message(self, task: str, host: str = "") -> t.Any:
        """What a task said on a host, or where it ran once."""
        found = self.results(task)
        return (found[host] if host else next(iter(found.values())))["msg"]

    def stats(self, what: str) -> set[str]:
        """The hosts of which the recap counts any of it, such as C(failures)."""
        return {host for host, counts in self.report["stats"].items() if counts[what]}


def old_python() -> pathlib.Path | None:
    """A Python 3.8 or 3.9 of this machine."""
    found = subprocess.run([_REPOSITORY / "tests" / "pythons"], capture_output=True, text=True, check=True).stdout
    return next((pathlib.Path(line) for line in found.splitlines() if line.endswith(("3.8", "3.9"))), None)


class Fleet:
    """The hosts, the client, and an inventory."""

    def __init__(self, bed: Bed, folder: pathlib.Path) -> None:
        self.bed = bed
        self.folder = folder
        self.inventory = folder / "inventory.json"
        self.old_python = old_python()

    def host(self, name: str) -> Host:
        return self.bed.host(name)

    def up(self) -> None:
        """Start all of them. Twice six, as a host needs more inotify instances while it boots."""
        for some in (NAMES[::2], NAMES[1::2]):
            self.bed.up([HostSpec(name, suite=name.partition("-")[0]) for name in some])
            self._everywhere(some, lambda name: self.host(name).run(_LIGHTER, check=False))
        self._everywhere(NAMES, self._prepare)
        self._write_inventory()

    def rules(self, names: t.Iterable[str]) -> dict[str, str]:
        """All rules of hosts, without counters."""
        script = "for save in iptables-save ip6tables-save; do $save | sed '/^#/d; s/ \\[.*//'; done"
        return {name: self.host(name).run(script).stdout for name in names}

    def reached(self, name: str, port: int, source: Source) -> str | None:
        """Which container answers on a published port of a host."""
        return self.bed.client.connect(self.host(name).address(4), port, source=source).who or None

    def _everywhere(self, names: t.Iterable[str], job: t.Callable[[str], object]) -> None:
        with concurrent.futures.ThreadPoolExecutor(max_workers=4) as pool:
            list(pool.map(job, names))

    def _prepare(self, name: str) -> None:
        host = self.host(name)
        if name == UNREACHABLE:
            self.bed.engine.docker("kill", host.container)
        elif name == NO_DOCKER:
            host.run("systemctl stop docker.socket docker containerd")
            host.run("dpkg --force-depends --remove docker.io docker-cli containerd runc python3-docker", check=False)
            host.run("! command -v docker dockerd && ! python3 -c 'import docker'")
        elif name != NO_PYTHON:
            host.run(f"set -e\n{_CONTAINERS}")
            if name in OUTAGE:
                host.run("iptables -I DOCKER-USER -p tcp --dport 8080 -j DROP")
            if name == HOSTILE_RULE:
                comment = ["-m", "comment", "--comment", HOSTILE]
                host.run(["iptables", "-A", "DOCKER-USER", "-p", "tcp", "--dport", "2525", *comment, "-j", "DROP"])
            if name == DOCKER_DOWN:
                host.run("systemctl stop docker.socket docker")
            if name == OLD_PYTHON and self.old_python:
                self._install_python(host, self.old_python)

    def _install_python(self, host: Host, python: pathlib.Path) -> None:
        """Give the host this machine's Python, with the Docker SDK that the host has."""
        home = python.parents[1]
        left_out = [f"--exclude={name}" for name in ("test", "tests", "site-packages", "__pycache__", "*.a", "share")]
        tar = subprocess.Popen(
            ["tar", "-C", home, *left_out, "-cf-", "bin/" + python.name, "lib"], stdout=subprocess.PIPE
        )
        extract = ["docker", "exec", "--interactive", host.container, "sh", "-c"]
        # At the same place: where its library is, is in the program.
        script = 'set -e; mkdir -p "$1" && tar -C "$1" -xf- && mkdir -p "$1/lib/$2/site-packages"; '
        script += 'echo /usr/lib/python3/dist-packages >"$1/lib/$2/site-packages/debian.pth"; '
        script += '"$1/bin/$2" -c "import docker"'
        with tar:
            done = subprocess.run(
                [*extract, script, "sh", str(home), python.name],
                stdin=tar.stdout,
                env=self.bed.engine.environment,
                capture_output=True,
                text=True,
                check=False,
            )
        if done.returncode:
            raise BedError(f"{python} does not run on {host.container}:\n{done.stderr}")

    def _write_inventory(self) -> None:
        variables = {
            "ansible_connection": "community.docker.docker",
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_user": "root",
        }
        hosts: dict[str, dict[str, t.Any]] = {name: {"ansible_host": self.host(name).container} for name in NAMES}
        if self.old_python:
            hosts[OLD_PYTHON]["ansible_python_interpreter"] = str(self.old_python)
        # The other connection plugin takes a container without power for a module that fails.
        hosts[UNREACHABLE]["ansible_connection"] = "community.docker.docker_api"
        hosts[UNREACHABLE]["ansible_docker_docker_host"] = self.bed.engine.address
        hosts[NO_PYTHON]["ansible_python_interpreter"] = "/opt/python-that-is-not-there"
        hosts[BAD_OPTION]["quaywall_ignore"] = [{"check": "no_such_check", "reason": "a typing error"}]
        hosts[BAD_OPTION]["firewall_baseline_audit_ignore"] = hosts[BAD_OPTION]["quaywall_ignore"]
        hosts[UNGUARDED]["firewall_baseline_guard"] = False
        children = {
            suite: {"hosts": {name: hosts[name] for name in NAMES if name.startswith(f"{suite}-")}} for suite in SUITES
        }
        inventory = {"dockers": {"children": children, "vars": variables}}
        self.inventory.write_text(json.dumps(inventory, indent=1), encoding="utf-8")

    def play(self, playbook: str, *options: str, where: pathlib.Path, inventory: str = "", **variables: t.Any) -> Run:
        """Run a playbook of the collection by its name.

        :param where: the folder that the person is in.
        :param inventory: another inventory than the fleet's.
        :param variables: extra variables, without the prefix C(quaywall_).
        """
        extra = {
            name if name.startswith("firewall_baseline_") else f"quaywall_{name}": value
            for name, value in variables.items()
        }
        command = ["ansible-playbook", f"quaywall.docker.{playbook}", "--inventory", inventory or str(self.inventory)]
        done = subprocess.run(
            [*command, *options, *(["--extra-vars", json.dumps(extra)] if extra else [])],
            cwd=where,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        try:
            report = json.loads(done.stdout[done.stdout.index("{\n") :])
        except ValueError:
            report = {"plays": [], "stats": {}}
        return Run(done.returncode, report, done.stdout[-2000:] + done.stderr if not report["plays"] else done.stderr)

    def _environment(self) -> dict[str, str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
        configuration = self.folder / "ansible.cfg"
        configuration.write_text(
            "[defaults]\nstdout_callback = ansible.posix.json\nforks = 10\n[connection]\npipelining = True\n",
            encoding="utf-8",
        )
        return {
            **inherited,
            "ANSIBLE_CONFIG": str(configuration),
            "ANSIBLE_COLLECTIONS_PATH": str(_REPOSITORY / ".build"),
            "ANSIBLE_HOME": str(_REPOSITORY / ".build" / "ansible"),
            "DOCKER_HOST": self.bed.engine.address,
            "LC_ALL": "C.UTF-8",
        }
