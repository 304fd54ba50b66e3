# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Each playbook on the fleet, run by its name. What a host is in a bad way for never spoils what the others say."""

from __future__ import annotations

import json
import pathlib
import shutil
import threading
import time
import typing as t

import pytest

from fleet.fleet import (
    BAD_OPTION,
    DOCKER_DOWN,
    HEALTHY,
    HOSTILE_RULE,
    JUDGED,
    NAMES,
    NO_DOCKER,
    NO_PYTHON,
    OLD_PYTHON,
    OUTAGE,
    PWNED,
    UNGUARDED,
    UNJUDGED,
    UNREACHABLE,
    Fleet,
    Run,
)
from testbed import OFFICE, STRANGER

JUDGE: t.Final = "Judge the host"
WITH_POWER: t.Final = tuple(name for name in NAMES if name != UNREACHABLE)
ADMIN_UI: t.Final = {
    "name": "admin-ui",
    "container": "admin",
    "destination_port": ["8080"],
    "source": [OFFICE.v4],
    "action": "accept",
}


@pytest.fixture(scope="module")
def audit(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, pathlib.Path]:
    """The audit of all hosts in check mode, with snapshots and reports, and the folder that it was run in."""
    where = tmp_path_factory.mktemp("audit")
    before = fleet.rules(WITH_POWER)
    run = fleet.play("audit", "--check", "--diff", where=where, save_snapshots="kept")
    assert fleet.rules(WITH_POWER) == before
    return run, where


def findings(run: Run, host: str) -> dict[str, str]:
    """The checks that found something above info on a host, with the worst severity of each."""
    found = run.results(JUDGE)[host]["findings"]
    return {item["check"]: item["severity"] for item in reversed(found) if item["severity"] != "info"}


def ids(run: Run, host: str, check: str) -> list[str]:
    return [item["id"] for item in run.results(JUDGE)[host]["findings"] if item["check"] == check]


def reported(folder: pathlib.Path) -> str:
    return (folder / "audit.jsonl").read_text(encoding="utf-8")


# Audit ---------------------------------------------------------------------------------------------------------------


def test_everybody_gets_an_answer(audit: tuple[Run, pathlib.Path]) -> None:
    run, _where = audit
    assert run.rc == 0, run.stderr
    assert set(run.results(JUDGE)) == set(NAMES)
    assert not run.stats("changed")
    for name in HEALTHY:
        assert findings(run, name) == {}
    for name in OUTAGE:
        assert findings(run, name)["port_only_deny"] == "critical"
    for name in (DOCKER_DOWN, NO_DOCKER):
        assert findings(run, name) == {"snapshot_incomplete": "medium"}
    lines = {line.partition(": ")[0]: line for line in run.message("Say what was found on each host")}
    assert list(lines) == list(NAMES)
    assert "no_such_check" in lines[BAD_OPTION]
    assert "/opt/python-that-is-not-there" in lines[NO_PYTHON]
    assert "is not running" in lines[UNREACHABLE]
    assert "1 critical" in lines[OUTAGE[0]]
    assert run.message("Say where the reports are").endswith("/quaywall-report.")


def test_old_python(fleet: Fleet, audit: tuple[Run, pathlib.Path]) -> None:
    if not fleet.old_python:
        pytest.skip("This machine has neither Python 3.8 nor 3.9 (tests/pythons looks for them): install one.")
    run, _where = audit
    assert findings(run, OLD_PYTHON) == {}
    assert ids(run, OLD_PYTHON, "exposed") == ids(run, HEALTHY[0], "exposed")


def test_reports_are_written_in_check_mode(audit: tuple[Run, pathlib.Path]) -> None:
    _run, where = audit
    folder = where / "quaywall-report"
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"audit.html", "audit.sarif", "audit.junit.xml", "audit.jsonl"} <= files
    assert {f"metrics/{name}.prom" for name in NAMES} <= files
    text = reported(folder)
    for name in NAMES:
        assert f'"{name}"' in text
    assert "no_such_check" in text


def test_saved_snapshots_need_no_host(fleet: Fleet, audit: tuple[Run, pathlib.Path], place: pathlib.Path) -> None:
    live, where = audit
    assert sorted(path.stem for path in (where / "kept").iterdir()) == sorted(JUDGED)
    assert {path.stat().st_mode & 0o777 for path in (where / "kept").iterdir()} == {0o600}
    run = fleet.play("audit", where=place, inventory="localhost,", from_snapshots=str(where / "kept"))
    assert run.rc == 0, run.stderr
    for name in JUDGED:
        assert run.results(JUDGE)[name]["findings"] == live.results(JUDGE)[name]["findings"]


def test_a_pattern_chooses(fleet: Fleet, audit: tuple[Run, pathlib.Path], place: pathlib.Path) -> None:
    _run, where = audit
    limited = fleet.play("audit", "--limit", "forky", where=place, hosts="forky-1,trixie-1", skip_checks=["exposed"])
    assert (limited.rc, set(limited.results(JUDGE))) == (0, {"forky-1"})
    assert limited.results(JUDGE)["forky-1"]["findings"] == []
    options = {"from_snapshots": str(where / "kept"), "hosts": "trixie*"}
    saved = fleet.play("audit", where=place, inventory="localhost,", **options)
    assert (saved.rc, set(saved.results(JUDGE))) == (0, {"trixie-1", "trixie-2", "trixie-3"})


def test_fail_on_fails_those_hosts(fleet: Fleet, place: pathlib.Path) -> None:
    run = fleet.play("audit", where=place, hosts=f"{HEALTHY[0]},{OUTAGE[0]},{UNREACHABLE}", fail_on="critical")
    assert run.rc == 2
    assert run.stats("failures") == {OUTAGE[0], UNREACHABLE}
    assert (place / "quaywall-report" / "audit.jsonl").exists()
    wrong = fleet.play("audit", where=place, fail_on="severe")
    assert wrong.rc == 2
    assert "quaywall_fail_on is none, low, medium, high or critical" in wrong.message(
        "See that the severities are some"
    )


def test_previous(fleet: Fleet, audit: tuple[Run, pathlib.Path], place: pathlib.Path) -> None:
    _run, where = audit
    earlier = str(where / "quaywall-report" / "audit.jsonl")
    run = fleet.play("audit", where=place, hosts=f"{HEALTHY[0]},{OUTAGE[0]}", previous=earlier)
    assert run.rc == 0, run.stderr
    result = next(iter(run.results("Write the reports").values()))
    assert (result["comparison"]["new"], result["comparison"]["gone"]) == (0, 0)
    assert result["comparison"]["still"] > 0
    missing = fleet.play("audit", where=place, hosts=HEALTHY[0], previous="not-there.jsonl")
    assert missing.rc == 2
    assert "not-there.jsonl" in missing.message("See that the reports and the snapshots are written")


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("playbook", ["audit", "trace", "fix", "apply"])
@pytest.mark.parametrize("how", ["pattern", "limit", "inventory"])
def test_nobody_is_asked(fleet: Fleet, place: pathlib.Path, playbook: str, how: str) -> None:
    (place / "empty.json").write_text('{"all": {"hosts": {}}}', encoding="utf-8")
    if how == "pattern":
        run = fleet.play(playbook, where=place, hosts="nobody")
    elif how == "limit":
        run = fleet.play(playbook, "--limit", "forky", where=place, hosts="bookworm")
    else:
        run = fleet.play(playbook, where=place, inventory=str(place / "empty.json"))
    assert run.rc == 2
    assert "nobody is asked" in run.message("See that anybody is asked")


def test_no_snapshots(fleet: Fleet, place: pathlib.Path) -> None:
    (place / "snaps").mkdir()
    for playbook in ("audit", "trace"):
        run = fleet.play(playbook, where=place, inventory="localhost,", from_snapshots="snaps")
        assert run.rc == 2
        assert "There is no snapshot for the pattern all in snaps" in run.message("See that anybody is asked")
    for playbook, said in (("fix", "cannot be fixed"), ("apply", "cannot be changed")):
        run = fleet.play(playbook, where=place, inventory="localhost,", from_snapshots="snaps")
        assert run.rc == 2
        assert said in json.dumps(run.report)


def test_folders_that_cannot_be_written(fleet: Fleet, place: pathlib.Path) -> None:
    (place / "file").write_text("", encoding="utf-8")
    folders = {"report_dir": "file/reports", "save_snapshots": "file/kept"}
    run = fleet.play("audit", where=place, hosts="bookworm-1,bookworm-2,bookworm-4", **folders)
    assert run.rc == 2
    assert "1 critical" in "\n".join(run.message("Say what was found on each host"))
    assert "CRITICAL: port_only_deny" in "\n".join(run.message("Show the findings", OUTAGE[0]))
    said = run.message("See that the reports and the snapshots are written", "bookworm-1")
    assert "file/reports" in said
    assert "file/kept" in said


def test_snapshots_that_cannot_be_judged(fleet: Fleet, audit: tuple[Run, pathlib.Path], place: pathlib.Path) -> None:
    _run, where = audit
    snapshots = place / "snaps"
    shutil.copytree(where / "kept", snapshots)
    newer = json.loads((snapshots / "forky-1.json").read_text(encoding="utf-8"))
    newer["quaywall_snapshot"] = 99
    (snapshots / "newer.json").write_text(json.dumps(newer), encoding="utf-8")
    (snapshots / "cut.json").write_text('{"quaywall_snapshot": 1, ', encoding="utf-8")
    (snapshots / "<b>{{ 1 + 1 }}.json").write_text(json.dumps(newer), encoding="utf-8")
    run = fleet.play("audit", where=place, inventory="localhost,", from_snapshots="snaps")
    assert run.rc == 0, run.stderr
    lines = run.message("Say what was found on each host")
    assert len(lines) == len(JUDGED) + 3
    assert next(line for line in lines if line.startswith("newer: ")).count("99") == 1
    assert "no JSON" in next(line for line in lines if line.startswith("cut: "))
    assert any(line.startswith("<b>{{ 1 + 1 }}: ") for line in lines)
    assert "<b>{{" not in (place / "quaywall-report" / "audit.html").read_text(encoding="utf-8")


# Trace ---------------------------------------------------------------------------------------------------------------


def test_trace_answers_on_every_host(fleet: Fleet, place: pathlib.Path) -> None:
    hosts = f"{HEALTHY[2]},{OUTAGE[0]},{OUTAGE[2]},{OLD_PYTHON}"
    run = fleet.play("trace", "--check", where=place, hosts=hosts, source=OFFICE.v4, port=9000)
    assert run.rc == 0, run.stderr
    for name in (HEALTHY[2], OLD_PYTHON):
        assert run.message("Show the answer, and the way there", name)[0].startswith("Delivered: ")
        assert fleet.reached(name, 9000, OFFICE) == "admin"
    for name in (OUTAGE[0], OUTAGE[2]):
        said = run.message("Show the answer, and the way there", name)
        assert said[0].startswith("Blocked: rule 1 of DOCKER-USER drops it, because Docker forwards port 9000 to admin")
        assert len(said) > 3
        assert fleet.reached(name, 9000, OFFICE) is None


def test_trace_says_who_did_not_answer_as_expected(fleet: Fleet, place: pathlib.Path) -> None:
    run = fleet.play("trace", where=place, source=OFFICE.v4, port=9000, expect="delivered")
    assert run.rc == 2
    assert run.stats("failures") == {*OUTAGE, DOCKER_DOWN, NO_DOCKER, UNREACHABLE, NO_PYTHON}
    nothing = fleet.play("trace", where=place, hosts=HEALTHY[0])
    assert nothing.rc == 2
    assert "source" in nothing.message("See that the host answered, and as expected")


def test_trace_of_saved_snapshots_makes_a_table(
    fleet: Fleet, audit: tuple[Run, pathlib.Path], place: pathlib.Path
) -> None:
    _run, where = audit
    options: dict[str, t.Any] = {"from_snapshots": str(where / "kept"), "sources": [OFFICE.v4, STRANGER.v4]}
    run = fleet.play("trace", where=place, inventory="localhost,", hosts="forky-*:!forky-3", **options)
    assert run.rc == 0, run.stderr
    verdicts = {
        name: {(item["source"], item["port"]): item["verdict"] for item in result["reachability"]}
        for name, result in run.results("Ask the host").items()
    }
    both = {(source.v4, port) for source in (OFFICE, STRANGER) for port in (8080, 9000)}
    assert verdicts == {"forky-1": dict.fromkeys(both, "delivered"), "forky-2": dict.fromkeys(both, "blocked")}


# Fix -----------------------------------------------------------------------------------------------------------------


def test_fix_lists_and_changes_nothing(fleet: Fleet, place: pathlib.Path) -> None:
    before = fleet.rules(WITH_POWER)
    run = fleet.play("fix", where=place)
    assert run.stats("failures") == set(UNJUDGED)
    said = "\n".join(run.message("Show the fixes", OUTAGE[0]))
    assert ids(run, OUTAGE[0], "port_only_deny")[0] + "  CRITICAL: port_only_deny: " in said
    assert "gains access: anyone: admin (9000->8080/tcp) over IPv4" in said
    assert run.message("Show the fixes", HEALTHY[0]) == ["The audit proposes no fix here."]
    assert "no_such_check" in run.message("Show the fixes", BAD_OPTION)[0]
    unknown = fleet.play("fix", where=place, hosts=OUTAGE[0], fix="0123456789ab")
    assert unknown.rc == 2
    assert "no host has a fix 0123456789ab" in unknown.message("See that all that are wanted are there")
    assert fleet.rules(WITH_POWER) == before


def test_fix_in_check_mode_changes_nothing(fleet: Fleet, audit: tuple[Run, pathlib.Path], place: pathlib.Path) -> None:
    before = fleet.rules(OUTAGE)
    (fix,) = ids(audit[0], OUTAGE[0], "port_only_deny")
    run = fleet.play("fix", "--check", where=place, hosts=f"{OUTAGE[0]},{OUTAGE[1]}", fix=[fix])
    assert run.rc == 0, run.stderr
    assert run.message("Say what is gone and what is left", OUTAGE[0])[0] == "Check mode: nothing is applied."
    assert fleet.rules(OUTAGE) == before


def test_fix_applies_what_is_confirmed(fleet: Fleet, audit: tuple[Run, pathlib.Path], place: pathlib.Path) -> None:
    before = fleet.rules(HEALTHY)
    outage, hostile = ids(audit[0], HOSTILE_RULE, "port_only_deny")
    wanted = f"{outage}, {HOSTILE_RULE}:{hostile}"
    one, two, three = OUTAGE
    run = fleet.play("fix", where=place, hosts=f"{one},{three},{HEALTHY[0]}", fix=wanted)
    assert run.rc == 0, run.stderr
    for name in (one, three):
        gone = [line for line in run.message("Say what is gone and what is left", name) if line.startswith("gone: ")]
        assert any(outage in line for line in gone)
        for source in (OFFICE, STRANGER):
            assert fleet.reached(name, 9000, source) == "admin"
            assert fleet.reached(name, 8080, source) is None
    # The other outage was not confirmed, and the hostile comment stays text.
    assert fleet.reached(two, 9000, OFFICE) is None
    assert "2525 -m comment" not in fleet.rules([HOSTILE_RULE])[HOSTILE_RULE].replace("--ctorigdstport", "")
    assert not pathlib.Path(PWNED).exists()
    assert fleet.host(HOSTILE_RULE).run(["test", "-e", PWNED], check=False).returncode == 1
    assert fleet.rules(HEALTHY) == before
    again = fleet.play("fix", where=place, hosts=one, fix=outage)
    assert again.rc == 2
    assert f"no host has a fix {outage}" in again.message("See that all that are wanted are there")


def test_fix_by_host_leaves_the_others_alone(
    fleet: Fleet, audit: tuple[Run, pathlib.Path], place: pathlib.Path
) -> None:
    fleet.host(HEALTHY[0]).run("iptables -I DOCKER-USER -p tcp --dport 8080 -j DROP")
    two = OUTAGE[1]
    (fix,) = ids(audit[0], two, "port_only_deny")
    run = fleet.play("fix", where=place, hosts=f"{two},{HEALTHY[0]}", fix=f"{two}:{fix}")
    assert run.rc == 0, run.stderr
    assert fleet.reached(two, 9000, STRANGER) == "admin"
    assert fleet.reached(HEALTHY[0], 9000, STRANGER) is None
    fleet.host(HEALTHY[0]).run("iptables -D DOCKER-USER -p tcp --dport 8080 -j DROP")


# Apply ---------------------------------------------------------------------------------------------------------------


def test_apply_in_check_mode_changes_nothing(fleet: Fleet, place: pathlib.Path) -> None:
    before = fleet.rules(WITH_POWER)
    hosts = (HEALTHY[0], DOCKER_DOWN, NO_DOCKER, *UNJUDGED)
    options: dict[str, t.Any] = {"serial": "100%", "firewall_baseline_install_packages": False}
    options.update(firewall_baseline_policies=[ADMIN_UI], hosts=",".join(hosts))
    run = fleet.play("apply", "--check", "--diff", where=place, **options)
    assert run.rc == 2
    assert run.stats("failures") == set(UNJUDGED)
    diffs = run.results("Say who may reach the containers")[HEALTHY[0]]["diff"]
    assert "quaywall:admin-ui" in "".join(item["after"] for item in diffs)
    assert fleet.rules(WITH_POWER) == before


def test_apply_stops_where_a_host_gets_worse(fleet: Fleet, place: pathlib.Path) -> None:
    options: dict[str, t.Any] = {"hosts": ",".join(HEALTHY), "firewall_baseline_policies": [ADMIN_UI]}
    last = HEALTHY[2]
    before = fleet.rules([last])
    run = fleet.play("apply", where=place, serial=1, worse_from="low", **options)
    assert run.rc == 2
    assert run.stats("failures") == {UNGUARDED}
    said = run.message("Show the batch", UNGUARDED)
    assert said[0].startswith(f"{UNGUARDED}: Worse than before: LOW: jump_window: ")
    assert said[-1] == f"The rollout stops, as {UNGUARDED} failed. Not begun: {last}."
    assert fleet.rules([last]) == before
    assert fleet.reached(HEALTHY[0], 9000, OFFICE) == "admin"
    assert fleet.reached(HEALTHY[0], 9000, STRANGER) is None
    # Whoever runs it again has read that: what was there before is not new.
    run = fleet.play("apply", where=place, worse_from="low", **options)
    assert run.rc == 0, run.stderr
    for name in HEALTHY:
        assert fleet.reached(name, 9000, OFFICE) == "admin"
        assert fleet.reached(name, 9000, STRANGER) is None
    # And again it changes nothing.
    before = fleet.rules([last])
    run = fleet.play("apply", where=place, **{**options, "hosts": last})
    assert (run.rc, run.stats("changed")) == (0, set())
    assert fleet.rules([last]) == before


def test_apply_stops_at_hosts_that_fail(fleet: Fleet, place: pathlib.Path) -> None:
    before = fleet.rules(OUTAGE)
    options: dict[str, t.Any] = {"firewall_baseline_policies": [{**ADMIN_UI, "action": "no-such-action"}]}
    run = fleet.play("apply", where=place, hosts=f"{UNREACHABLE},{OUTAGE[0]}", serial=1, **options)
    assert run.rc == 2
    assert "is not running" in run.message("Show the batch")[0]
    assert run.message("Show the batch")[-1].endswith(f"Not begun: {OUTAGE[0]}.")
    # A batch is finished on all of its hosts.
    run = fleet.play("apply", where=place, hosts=f"{OUTAGE[0]},{OUTAGE[1]}", serial=2, **options)
    assert run.rc == 2
    assert set(run.results("Judge the host again")) == {OUTAGE[0], OUTAGE[1]}
    assert "The role failed in " in run.message("Show the batch")[0]
    assert fleet.rules(OUTAGE) == before
    # And a limit lets some fail.
    options = {"firewall_baseline_policies": [ADMIN_UI], "serial": 2, "max_fail_percentage": 100}
    run = fleet.play("apply", where=place, hosts=f"{UNREACHABLE},{OLD_PYTHON}", **options)
    assert run.rc == 2
    assert run.stats("failures") == {UNREACHABLE}
    assert fleet.reached(OLD_PYTHON, 9000, OFFICE) == "admin"
    assert fleet.reached(OLD_PYTHON, 9000, STRANGER) is None


def test_apply_says_who_was_lost_on_the_way(fleet: Fleet, place: pathlib.Path) -> None:
    lost, other, waiting = "trixie-2", "forky-2", "bookworm-2"
    inventory = json.loads(fleet.inventory.read_text(encoding="utf-8"))
    host = inventory["dockers"]["children"]["trixie"]["hosts"][lost]
    host.update(ansible_connection="community.docker.docker_api", ansible_docker_docker_host=fleet.bed.engine.address)
    (place / "inventory.json").write_text(json.dumps(inventory), encoding="utf-8")

    def power_cut() -> None:
        machine, deadline = fleet.host(lost), time.monotonic() + 60
        while machine.run(["test", "-e", "/usr/lib/quaywall"], check=False).returncode and time.monotonic() < deadline:
            time.sleep(0.05)
        fleet.bed.engine.docker("kill", machine.container)

    watcher = threading.Thread(target=power_cut)
    watcher.start()
    run = fleet.play(
        "apply",
        where=place,
        inventory=str(place / "inventory.json"),
        hosts=f"{lost},{other},{waiting}",
        serial=2,
        max_fail_percentage=100,
        firewall_baseline_policies=[],
    )
    watcher.join()
    assert run.rc in {2, 4}
    assert f"{lost}: It was lost on the way." in run.message("Show the batch")
    assert run.results("Judge the host before").keys() == {lost, other}
