# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The action docker_fw_audit: what it asks of the host, and what it makes of the answer."""

from __future__ import annotations

import copy
import json
import types
import typing as t

import pytest
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.quaywall.docker.plugins.action import docker_fw_audit as action
from ansible_collections.quaywall.docker.plugins.module_utils._module import docker_fw_audit, docker_fw_snapshot
from ansible_collections.quaywall.docker.tests.unit.snapshots import Box, Document, host

READ = "quaywall.docker.docker_fw_snapshot"
PORT_ONLY = "-p tcp -m tcp --dport 8080 -j DROP"

Result = t.Dict[str, t.Any]


def two_containers() -> Document:
    boxes = (Box("admin", "9000:8080"), Box("shop", "8080:8080"))
    return copy.deepcopy(host("28.5", containers=boxes, docker_user=(PORT_ONLY,)))


class Task:
    """A task of the action. ``asked`` are the modules that it ran, with their arguments."""

    def __init__(self, answer: t.Union[Result, Exception, None] = None, seconds: int = 0, **options: t.Any) -> None:
        self.asked: t.List[t.Tuple[str, t.Any, t.Any]] = []
        self._answer = answer
        task = types.SimpleNamespace(args=options, async_val=seconds, check_mode=False)
        connection = types.SimpleNamespace(_shell=types.SimpleNamespace(tmpdir=""))
        self._action = action.ActionModule(task, connection, None, None, None, None)
        self._action._execute_module = self._execute

    def _execute(
        self, module_name: str, module_args: t.Any = None, task_vars: t.Any = None, wrap_async: t.Any = None
    ) -> Result:
        assert task_vars == {"seen": True}
        self.asked.append((module_name, module_args, wrap_async))
        if isinstance(self._answer, Exception):
            raise self._answer
        assert self._answer is not None, "the host was asked"
        return self._answer

    def run(self) -> Result:
        found = self._action.run(task_vars={"seen": True})
        # As it goes to the process that has all hosts.
        return t.cast(Result, json.loads(json.dumps(found)))


def read(capsys: pytest.CaptureFixture[str], document: Document) -> Result:
    """What the module that reads prints on a host."""

    def main() -> None:
        docker_fw_snapshot.run_module(AnsibleModule(argument_spec={}, supports_check_mode=True), lambda _: document)

    with patch_module_args({}), pytest.raises(SystemExit):
        main()
    return t.cast(Result, json.loads(capsys.readouterr().out))


def by_the_module(capsys: pytest.CaptureFixture[str], document: Document, **options: t.Any) -> Result:
    """What the module that reads and judges prints on a host."""

    def main() -> None:
        module = AnsibleModule(argument_spec=docker_fw_audit.argument_spec(), supports_check_mode=True)
        docker_fw_audit.run_module(module, lambda _: document)

    with patch_module_args(options), pytest.raises(SystemExit):
        main()
    return t.cast(Result, json.loads(capsys.readouterr().out))


@pytest.mark.parametrize(
    "options",
    [{}, {"return_snapshot": True, "skip_checks": ["exposed"]}, {"fail_on": "high", "checks": "port_only_deny"}],
    ids=["all", "snapshot", "failing"],
)
def test_it_is_what_the_module_says_on_the_host(capsys: pytest.CaptureFixture[str], options: Result) -> None:
    document = two_containers()
    task = Task(read(capsys, document), **options)
    found = task.run()
    assert task.asked == [(READ, {}, None)]
    expected = by_the_module(capsys, document, **options)
    # A module that does not fail leaves that out; an action says so.
    assert found.pop("failed") == expected.pop("failed", False)
    assert found == expected


def test_what_ansible_knows_of_the_host_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    beside = {"warnings": ["Python may move."], "ansible_facts": {"discovered_interpreter_python": "/usr/bin/python3"}}
    found = Task({**read(capsys, two_containers()), **beside}).run()
    assert {key: found[key] for key in beside} == beside
    assert found["summary"]["critical"] == 1
    assert "snapshot" not in found


@pytest.mark.parametrize("kind", ["data", "text"])
def test_a_snapshot_that_is_given_needs_no_host(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    document = two_containers()
    task = Task(snapshot=document if kind == "data" else json.dumps(document))
    found = task.run()
    assert task.asked == []
    assert found["findings"] == by_the_module(capsys, document)["findings"]
    assert found["invocation"]["module_args"]["snapshot"] == "(given)"


def test_snapshots_that_are_none() -> None:
    newer = Task(snapshot=dict(two_containers(), quaywall_snapshot=99)).run()
    assert newer["failed"] and "reads version 1" in newer["msg"]
    torn = Task(snapshot='{"quaywall_snapshot": 1').run()
    assert torn["failed"] and "no JSON" in torn["msg"]


def test_a_host_that_answers_with_something_else() -> None:
    found = Task({"snapshot": {"quaywall_snapshot": 1, "iptables": 7}}).run()
    assert found["failed"]
    assert "In the snapshot" in found["msg"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"checks": []}, "checks is an empty list"),
        ({"checks": ["x"]}, "checks[0]: there is no check 'x'"),
        ({"ignore": [{"check": "exposed", "reason": " "}]}, "ignore[0].reason is empty"),
        ({"fail_on": "info"}, "value of fail_on must be one of"),
        ({"when": "now"}, "Unsupported parameters"),
    ],
)
def test_bad_options_before_a_host_is_asked(options: Result, sentence: str) -> None:
    task = Task(**options)
    with pytest.raises(AnsibleActionFail) as failed:
        task.run()
    assert sentence in str(failed.value)
    assert task.asked == []


def test_a_host_that_cannot_be_read() -> None:
    answer = {"failed": True, "msg": "No python interpreters found for host", "rc": 127}
    assert Task(dict(answer)).run() == answer


def test_a_host_that_is_not_reached() -> None:
    with pytest.raises(AnsibleConnectionFailure):
        Task(AnsibleConnectionFailure("no route to host")).run()


def test_async_is_the_hosts_own_work() -> None:
    job = {"ansible_job_id": "j1.2", "started": 1}
    task = Task(dict(job), seconds=60, fail_on="high")
    assert task.run() == job
    assert task.asked == [("quaywall.docker.docker_fw_audit", None, 60)]


def test_a_fault_of_ours_is_a_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: t.Any) -> t.NoReturn:
        raise RuntimeError("boom")

    monkeypatch.setattr(action, "judged", broken)
    found = Task(read(capsys, two_containers())).run()
    assert found["failed"]
    assert found["msg"] == "Unexpected error in docker_fw_audit: boom. Please report it."
    assert "RuntimeError" in found["exception"]
