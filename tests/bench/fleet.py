# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What an audit of many hosts takes, beside a ping of the same: fifty names in the inventory for one host."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import tempfile
import time
import typing as t

from testbed import BedError

if t.TYPE_CHECKING:
    from testbed import Host

HOSTS: t.Final = 50
FORKS: t.Final = 10

_REPOSITORY: t.Final = pathlib.Path(__file__).resolve().parents[2]
_PLAYS: t.Final = {"ping": "ansible.builtin.ping", "sdk": "only_ask_docker", "audit": "quaywall.docker.docker_fw_audit"}

_ONLY_ASK_DOCKER: t.Final = """\
import sys

from ansible.module_utils.basic import AnsibleModule

sys.modules["paramiko"] = None  # as the audit does it: most of what the SDK imports is for ssh
import docker

module = AnsibleModule(argument_spec={}, supports_check_mode=True)
module.exit_json(changed=False, containers=len(docker.APIClient(version="auto").containers(all=True)))
"""
"""The least that a module does which asks Docker through its SDK."""


def measure(host: Host, repetitions: int) -> dict[str, list[float]]:
    """The seconds of whole runs of ``ansible-playbook``, taken in turn, pipelining on.

    :returns: C(ping), C(sdk) (a module that counts the containers) and C(audit) are a play of one task each;
        C(playbook) is quaywall.docker.audit with all reports.
    """
    with tempfile.TemporaryDirectory(prefix="quaywall-bench-") as folder:
        place = pathlib.Path(folder)
        variables = {
            "ansible_connection": "community.docker.docker",
            "ansible_host": host.container,
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_user": "root",
        }
        inventory = {"all": {"hosts": {f"node{number:02d}": variables for number in range(HOSTS)}}}
        (place / "inventory.json").write_text(json.dumps(inventory), encoding="utf-8")
        (place / "ansible.cfg").write_text(f"[defaults]\nforks = {FORKS}\n[connection]\npipelining = True\n")
        (place / "library").mkdir()
        (place / "library" / "only_ask_docker.py").write_text(_ONLY_ASK_DOCKER, encoding="utf-8")
        playbooks = {"playbook": "quaywall.docker.audit"}
        for name, module in _PLAYS.items():
            play = {"hosts": "all", "gather_facts": False, "tasks": [{"name": name, module: {}}]}
            (place / f"{name}.json").write_text(json.dumps([play]), encoding="utf-8")
            playbooks[name] = f"{name}.json"
        times: dict[str, list[float]] = {name: [] for name in playbooks}
        for turn in range(repetitions + 1):
            for name in playbooks if turn % 2 else list(playbooks)[::-1]:
                seconds = _run(host, place, playbooks[name])
                if turn:  # in the first one the module's code is compiled and kept on the host
                    times[name].append(seconds)
    return times


def _run(host: Host, place: pathlib.Path, playbook: str) -> float:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
    environment = {
        **inherited,
        "ANSIBLE_CONFIG": str(place / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(_REPOSITORY / ".build"),
        "ANSIBLE_HOME": str(_REPOSITORY / ".build" / "ansible"),
        "DOCKER_HOST": host.bed.engine.address,
        "LC_ALL": "C.UTF-8",
    }
    start = time.perf_counter()
    done = subprocess.run(
        ["ansible-playbook", "--inventory", "inventory.json", playbook],
        cwd=place,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise BedError(f"ansible-playbook {playbook}: rc {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return seconds
