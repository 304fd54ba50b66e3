# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs the collection's modules (and one of Ansible's own) on a host of the bed with the host's own Python.

Ansible's way there and back (which Molecule and the benchmark take) costs seconds a task; this costs what the module
itself costs, so that a test can afford to run it a hundred times.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import pathlib
import tarfile
import typing as t

import ansible

if t.TYPE_CHECKING:
    from testbed.hosts import Host

PLACE: t.Final = "/opt/quaywall-test"
REPOSITORY: t.Final = pathlib.Path(__file__).resolve().parents[2]

_RUN = f"""
import importlib, sys
sys.path.insert(0, {PLACE!r})
from ansible.module_utils import basic
basic._ANSIBLE_ARGS, basic._ANSIBLE_PROFILE = sys.stdin.buffer.read(), "legacy"
importlib.import_module(sys.argv[1]).main()
"""

_PLACES: t.Final = {
    "docker_user_rule": "ansible_collections.quaywall.docker.plugins.modules.docker_user_rule",
    "docker_user_chain": "ansible_collections.quaywall.docker.plugins.modules.docker_user_chain",
    "docker_fw_audit": "ansible_collections.quaywall.docker.plugins.modules.docker_fw_audit",
    "iptables": "ansible.modules.iptables",
}


class ModuleResult(t.NamedTuple):
    """What a module returned."""

    data: dict[str, t.Any]

    @property
    def changed(self) -> bool:
        return bool(self.data.get("changed"))

    @property
    def failed(self) -> bool:
        return bool(self.data.get("failed"))

    @property
    def message(self) -> str:
        return str(self.data.get("msg", ""))

    @property
    def warnings(self) -> list[str]:
        return [item if isinstance(item, str) else str(item) for item in self.data.get("warnings", [])]


@functools.lru_cache(maxsize=1)
def _archive() -> bytes:
    """ansible.module_utils of the controller and the collection's plugins."""
    core = pathlib.Path(ansible.__file__).parent
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for part in (
            "__init__.py",
            "release.py",
            "_vendor",
            "module_utils",
            "modules/__init__.py",
            "modules/iptables.py",
        ):
            archive.add(core / part, f"ansible/{part}", filter=_sources)
        archive.add(REPOSITORY / "plugins", "ansible_collections/quaywall/docker/plugins", filter=_sources)
    return packed.getvalue()


def _sources(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in member.name else member


def install(host: Host) -> None:
    """Bring the modules to the host, in place of those that are there."""
    unpack = f"rm -rf {PLACE} && mkdir -p {PLACE} && base64 -d | tar -xz -C {PLACE}"
    host.run(unpack, stdin=base64.b64encode(_archive()).decode())


def command(module: str = "docker_user_rule") -> list[str]:
    """The command that runs a module with JSON arguments from standard input."""
    return ["python3", "-B", "-c", _RUN, _PLACES[module]]


def arguments(check: bool = False, diff: bool = False, **options: t.Any) -> str:
    """Standard input of :func:`command`."""
    internal = {"_ansible_check_mode": check, "_ansible_diff": diff, "_ansible_remote_tmp": "/tmp"}
    return json.dumps({"ANSIBLE_MODULE_ARGS": {**options, **internal}})


def _run(host: Host, module: str, check: bool, diff: bool, options: dict[str, t.Any]) -> ModuleResult:
    done = host.run(command(module), stdin=arguments(check, diff, **options), check=False)
    try:
        return ModuleResult(json.loads(done.stdout))
    except ValueError as error:
        raise AssertionError(f"no JSON from the module: {done.stdout!r} {done.stderr!r}") from error


def iptables(host: Host, **options: t.Any) -> ModuleResult:
    """Run ansible.builtin.iptables on the host."""
    return _run(host, "iptables", False, False, options)


def docker_user_rule(host: Host, check: bool = False, diff: bool = False, **options: t.Any) -> ModuleResult:
    """Run docker_user_rule on the host."""
    return _run(host, "docker_user_rule", check, diff, options)


def docker_user_chain(host: Host, check: bool = False, diff: bool = False, **options: t.Any) -> ModuleResult:
    """Run docker_user_chain on the host."""
    return _run(host, "docker_user_chain", check, diff, options)


def docker_fw_audit(host: Host, check: bool = False, **options: t.Any) -> ModuleResult:
    """Run docker_fw_audit on the host."""
    return _run(host, "docker_fw_audit", check, False, options)
