# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs a playbook of the collection on a host of the bed, with the real ``ansible-playbook``."""

from __future__ import annotations

import difflib
import json
import os
import pathlib
import re
import subprocess
import tempfile
import typing as t

from testbed import BedError, Host

_REPOSITORY: t.Final = pathlib.Path(__file__).resolve().parents[2]


class Run(t.NamedTuple):
    """What came of one run."""

    ok: int
    """Number of tasks that ran well."""
    changed: int
    """Number of tasks that changed something."""
    diff: list[str]
    """Lines of DOCKER-USER that came (``+``) or went (``-``), in short."""


def run_playbook(host: Host, playbook: str, group: str) -> Run:
    """Run the playbook with ``--diff`` on this one host of the group.

    :raises BedError: with Ansible's own output, if it fails.
    """
    report = ansible_playbook(host, playbook, group, "--diff")
    results = [result for play in report["plays"] for task in play["tasks"] for result in task["hosts"].values()]
    diffs = [diff for result in results for diff in result.get("diff", ())]
    return Run(
        ok=report["stats"][host.container]["ok"],
        changed=report["stats"][host.container]["changed"],
        diff=[line for diff in diffs for line in _diff_lines(diff["before"], diff["after"])],
    )


def run_task(host: Host, task: t.Mapping[str, t.Any], group: str) -> dict[str, t.Any]:
    """Run one task on this one host of the group; its result.

    :raises BedError: with Ansible's own output, if it fails.
    """
    with tempfile.TemporaryDirectory(prefix="quaywall-") as folder:
        playbook = pathlib.Path(folder) / "playbook.json"
        play = {"hosts": group, "gather_facts": False, "tasks": [dict(task)]}
        playbook.write_text(json.dumps([play]), encoding="utf-8")
        report = ansible_playbook(host, str(playbook), group)
    result: dict[str, t.Any] = report["plays"][0]["tasks"][0]["hosts"][host.container]
    return result


def ansible_playbook(
    host: Host | t.Sequence[Host],
    playbook: str,
    group: str,
    *options: str,
    pipelining: bool = True,
    keep_remote_files: bool = False,
) -> dict[str, t.Any]:
    """Run ``ansible-playbook`` and return what its JSON callback reports.

    :param host: the hosts of the group.
    :param playbook: its name or path.
    :raises BedError: with Ansible's own output, if it fails.
    """
    variables = {"ansible_connection": "community.docker.docker", "ansible_python_interpreter": "/usr/bin/python3"}
    hosts = [host] if isinstance(host, Host) else list(host)
    inventory = {group: {"hosts": {one.container: variables for one in hosts}}}
    # The person's own ansible.cfg has no say here.
    configuration = f"""\
[defaults]
stdout_callback = ansible.posix.json
keep_remote_files = {keep_remote_files}

[connection]
pipelining = {pipelining}
"""
    with tempfile.TemporaryDirectory(prefix="quaywall-") as folder:
        place = pathlib.Path(folder)
        (place / "inventory.json").write_text(json.dumps(inventory), encoding="utf-8")
        (place / "ansible.cfg").write_text(configuration, encoding="utf-8")
        done = subprocess.run(
            ["ansible-playbook", "--inventory", str(place / "inventory.json"), *options, playbook],
            env=_environment(hosts[0], place),
            cwd=place,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise BedError(f"ansible-playbook {playbook}: rc {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    report: dict[str, t.Any] = json.loads(done.stdout)
    return report


def _environment(host: Host, place: pathlib.Path) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
    return {
        **inherited,
        "ANSIBLE_CONFIG": str(place / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(_REPOSITORY / ".build"),
        "ANSIBLE_HOME": str(_REPOSITORY / ".build" / "ansible"),
        "DOCKER_HOST": host.bed.engine.address,
        "LC_ALL": "C.UTF-8",
    }


def _diff_lines(before: str, after: str) -> t.Iterator[str]:
    for line in difflib.ndiff(before.splitlines(), after.splitlines()):
        if line[0] in "+-":
            yield f"{line[0]} {_in_short(line[2:])}"


def _in_short(rule: str) -> str:
    """A rule without what only a machine needs to read."""
    rule = re.sub(r" -m comment --comment (\"[^\"]*\"|\S+)", "", rule)
    return re.sub(r"(^-A DOCKER-USER| -m \w+)(?= )", "", rule).strip()
