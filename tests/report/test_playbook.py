# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The action as Ansible runs it: from results that were registered, in check mode too, and with what can go wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from ansible_collections.quaywall.docker.plugins.action import docker_fw_report
from ansible_collections.quaywall.docker.tests.unit.reports import HOSTILE, audits, report
from ansible_collections.quaywall.docker.tests.unit.snapshots import Box, host
from ansible_collections.quaywall.docker.tests.unit.support import ROOT

REPORT: t.Final = "quaywall.docker.docker_fw_report"
NAMES: t.Final = ["audit.html", "audit.jsonl", "audit.junit.xml", "audit.sarif", "metrics"]


def play(folder: Path, tasks: list[t.Any], *options: str, hosts: t.Any = None, **of_play: t.Any) -> dict[str, t.Any]:
    """Run tasks; the result of the last one on each host."""
    here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    inventory = {"all": {"hosts": hosts or {"one": None}, "vars": here}}
    (folder / "inventory.yml").write_text(json.dumps(inventory), encoding="utf-8")
    (folder / "play.yml").write_text(
        json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks, **of_play}]), encoding="utf-8"
    )
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".build"),
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
    }
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "inventory.yml", "play.yml", *options]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert "{" in done.stdout, done.stderr
    tasks_done = json.loads(done.stdout[done.stdout.index("{") :])["plays"][0]["tasks"]
    results: dict[str, t.Any] = tasks_done[-1]["hosts"]
    return results


def reported(folder: Path, *options: str, **arguments: t.Any) -> dict[str, t.Any]:
    """The result of one task that writes reports."""
    (result,) = play(folder, [{REPORT: arguments}], *options).values()
    return t.cast("dict[str, t.Any]", result)


@pytest.mark.parametrize("options", [[], ["--check"]], ids=["run", "check"])
def test_results_of_a_play(tmp_path: Path, options: list[str]) -> None:
    """Real audits: one that finds something and fails for it, one of a newer snapshot, and a host that is not there."""
    snapshot = host(
        "28.5", [Box("shop", "8080:8080"), Box("admin", "9000:8080")], ["-p tcp -m tcp --dport 8080 -j DROP"]
    )
    away = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    tasks = [
        {
            "quaywall.docker.docker_fw_audit": {"snapshot": "{{ given | default(omit) }}", "fail_on": "high"},
            "register": "audit",
            "ignore_errors": True,
            "ignore_unreachable": True,
        },
        {REPORT: {"registered": "audit", "directory": "reports"}, "run_once": True},
    ]
    hosts = {
        "bad": {"given": json.dumps(snapshot)},
        "newer": {"given": json.dumps(dict(snapshot, quaywall_snapshot=99))},
        "good": {"given": json.dumps(host("28.5", []))},
        "away": away,
    }
    result = next(iter(play(tmp_path, tasks, *options, hosts=hosts).values()))
    assert result["changed"] is False
    assert result["hosts"] == {"judged": 2, "failed": 1, "unreachable": 1}
    assert result["summary"]["critical"] == 1
    assert result["comparison"] is None
    assert sorted(os.listdir(tmp_path / "reports")) == NAMES
    assert set(result["files"]) == set(docker_fw_report.FORMATS)
    assert [Path(file).is_file() for file in result["files"]["prometheus"]] == [True] * 4
    lines = [json.loads(line) for line in (tmp_path / "reports" / "audit.jsonl").read_text().splitlines()]
    messages = {line["host"]: line["message"] for line in lines if line["type"] == "host"}
    assert "reads version 1" in messages["newer"]
    assert "Connection refused" in messages["away"]
    assert result["msg"].startswith("4 hosts (2 judged, 1 failed, 1 unreachable), ")


def test_given_and_compared(tmp_path: Path) -> None:
    first = reported(tmp_path, audits=audits(), directory=str(tmp_path / "a" / "b"))
    assert first["summary"] == report(audits()).summary
    now = audits()
    now["web1"]["findings"].pop(0)
    now["web2"] = {"unreachable": True, "msg": "x"}
    second = reported(
        tmp_path, audits=now, directory=str(tmp_path / "a" / "b"), previous=str(tmp_path / "a" / "b" / "audit.jsonl")
    )
    here = report(audits())
    count = {item.name: len(item.items) for item in here.hosts}
    assert second["comparison"] == {
        "new": 0,
        "still": sum(count.values()) - 1 - count["web2"],
        "gone": 1,
        "not_judged": count["web2"],
    }


def test_no_text_of_a_result_is_a_template(tmp_path: Path) -> None:
    finding = {"id": "1", "check": "exposed", "severity": "low", "message": "{{ lookup('pipe', 'touch hacked') }}"}
    (tmp_path / "result.json").write_text(json.dumps({"a": {"findings": [finding]}}), encoding="utf-8")
    given = "{{ lookup('ansible.builtin.file', 'result.json') | from_json }}"
    reported(tmp_path, audits=given, directory="reports", formats=["jsonl", "html"])
    assert finding["message"] in (tmp_path / "reports" / "audit.jsonl").read_text()
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"audits": {}}, "There is no host to report about, and nothing was written."),
        ({"audits": ["a"]}, "audits is no dictionary: give the result of docker_fw_audit by the name of its host"),
        ({}, "one of the following is required: audits, registered."),
        ({"audits": {"a": 1}, "registered": "x"}, "parameters are mutually exclusive: audits|registered."),
        ({"registered": "x", "hosts": []}, "There is no host to report about, and nothing was written."),
        ({"audits": {"a": 1}, "formats": []}, "formats is an empty list: leave it out for all of them, or name some."),
        ({"audits": {"a": 1}, "formats": ["pdf"]}, "value of formats must be one or more of: html, sarif, junit"),
        ({"audits": {"a": 1}, "previous": "/nonexistent"}, "previous: /nonexistent cannot be read (No such file"),
        ({"audits": {"a": 1}, "previous": "/"}, "previous: / cannot be read (Is a directory)."),
        ({"audits": {"a": 1}, "colour": "red"}, "colour. Supported parameters include: audits, directory, formats"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, arguments: dict[str, t.Any], sentence: str) -> None:
    result = reported(tmp_path, directory=str(tmp_path / "reports"), **arguments)
    assert result["failed"]
    assert sentence in result["msg"]
    assert not (tmp_path / "reports").exists()


def test_a_file_of_a_newer_version(tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").write_text('{"quaywall_report": 2, "type": "run"}\n')
    result = reported(tmp_path, directory="reports", audits={"a": 1}, previous="old.jsonl")
    assert "old.jsonl is of version 2 of the format, and this collection reads versions up to 1" in result["msg"]


# Files ---------------------------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """A file is where the folder is to be: that stops root, too."""
    (tmp_path / "reports").write_text("mine")
    result = reported(tmp_path, directory="reports", audits=audits())
    assert result["failed"]
    assert result["msg"] == f"directory: {tmp_path}/reports cannot be made (File exists), so no report was written."
    assert (tmp_path / "reports").read_text() == "mine"


def test_one_file_never_stops_the_others(tmp_path: Path) -> None:
    (tmp_path / "reports" / "audit.sarif").mkdir(parents=True)
    (tmp_path / "reports" / "metrics" / "web1.prom").mkdir(parents=True)
    result = reported(tmp_path, directory="reports", audits=audits())
    assert result["failed"]
    assert "audit.sarif and metrics/web1.prom: cannot be written in" in result["msg"]
    assert set(result["files"]) == {"html", "jsonl", "junit", "prometheus"}
    assert len(result["files"]["prometheus"]) == len(audits()) - 1
    assert not list((tmp_path / "reports").glob("**/.quaywall-*"))


def test_files_that_are_there_stay_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "audit.html").write_text("before")

    def broken(*_arguments: t.Any) -> t.Iterator[str]:
        yield "half"
        raise KeyError("x")

    monkeypatch.setattr(docker_fw_report._html, "render", broken)
    files, faults = docker_fw_report.write(report(audits()), str(tmp_path), ("html", "jsonl"), "low")
    assert faults == ["audit.html: not written by a fault of this collection (KeyError('x')), please report it."]
    assert set(files) == {"jsonl"}
    assert (tmp_path / "audit.html").read_text() == "before"


def test_files_have_the_mode_that_new_files_have(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        docker_fw_report.write(report(audits()), str(tmp_path), ("jsonl",), "low")
    finally:
        os.umask(before)
    assert (tmp_path / "audit.jsonl").stat().st_mode & 0o777 == 0o640


def test_names_of_files() -> None:
    names = ["web1", "WEB1", "../../etc/passwd", "a b", "a/b", ".", "..", "", "x" * 300, *HOSTILE[:-4]]
    found = docker_fw_report.file_names(names)
    assert found[0] == "web1"
    assert len({name.lower() for name in found}) == len(names)
    for name in found:
        assert "/" not in name
        assert not name.startswith(".")
        assert name.isascii()
        assert name.isprintable()
        assert 0 < len(name) < 120
