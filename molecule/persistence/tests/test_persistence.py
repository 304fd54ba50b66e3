# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who got in while hosts were rebooted, and what is left of the role when it was taken away: nothing."""

from __future__ import annotations

import json
import os
import pathlib
import typing as t

import pytest

testinfra_hosts = ["ansible://dockers"]

GUARDED = {"9000", "9101", "9102", "9200", "9300"}
STORMS = ("reboot", "reboot-without-follower", "power-cut", "daemon-restart", "fail-closed-reboot")


@pytest.fixture(scope="module")
def reports() -> dict[str, dict[str, t.Any]]:
    path = pathlib.Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "reboots.json"
    found: dict[str, dict[str, t.Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found


@pytest.fixture
def report(host: t.Any, reports: dict[str, dict[str, t.Any]]) -> dict[str, t.Any]:
    return reports[host.backend.get_pytest_id().rpartition("//")[2]]


def _everybody_tried(seen: dict[str, t.Any]) -> None:
    assert set(seen["forbidden"]) == GUARDED
    assert all(count["attempts"] > 20 for count in seen["forbidden"].values())


@pytest.mark.parametrize("happening", STORMS)
def test_who_is_forbidden_tried_all_the_time(report: dict[str, t.Any], happening: str) -> None:
    _everybody_tried(report[happening])


@pytest.mark.parametrize("happening", [*STORMS, "netfilter-persistent"])
def test_nobody_who_is_forbidden_got_in_at_any_moment(report: dict[str, t.Any], happening: str) -> None:
    seen = report[happening]
    for part in (seen, *seen.get("commands", {}).values()):
        counts = part.get("forbidden", {})
        assert {port: count["accepted"] for port, count in counts.items()} == dict.fromkeys(counts, 0)


@pytest.mark.parametrize("happening", ["reboot", "power-cut", "daemon-restart", "fail-closed-reboot"])
def test_what_is_allowed_was_reached_again(report: dict[str, t.Any], happening: str) -> None:
    seen = report[happening]
    assert {str(port) for port in seen["reached"]} == GUARDED
    assert seen["open_again"]
    print("allowed %.3f s after its container ran, load %.1f" % (seen["allowed_after"], seen["load"]))
    assert seen["allowed_after"] <= 5 * seen["load"]


def test_without_a_follower_what_needs_no_address_was_reached(report: dict[str, t.Any]) -> None:
    seen = report["reboot-without-follower"]
    assert seen["reached"] == [9200, 9300]
    assert seen["open_again"]
    assert seen["back"]


def test_docker_did_not_run_without_the_rules(report: dict[str, t.Any]) -> None:
    seen = report["fail-closed-broken"]
    assert (seen["docker"], seen["accepted"], seen["back"]) == ("inactive", 0, True)


def test_netfilter_persistent_brings_back_what_is_ours_and_nothing_else(report: dict[str, t.Any]) -> None:
    seen = report["netfilter-persistent"]
    if not seen["installed"]:
        return  # the host's image does not have it
    for part in (seen, *seen["commands"].values()):
        _everybody_tried(part)
        assert {str(port) for port in part["reached"]} == GUARDED
    assert seen["state"] == "active"
    assert seen["own_rule"]
    assert seen["rules_files_untouched"]
    assert seen["nat_untouched"]


def test_nothing_of_the_role_is_left(host: t.Any) -> None:
    for command in ("iptables-save", "ip6tables-save", "ipset list -name"):
        assert "quaywall" not in host.check_output(command).lower()
    # The folder of its own is to be gone too, so it is not where find begins.
    assert host.check_output("find /etc /usr/lib /usr/share /var/lib -iname '*quaywall*'") == ""
    # list-unit-files fails where there is none.
    listed = ("list-units --all --plain --no-legend", "list-unit-files --no-legend")
    units = "".join(host.run("systemctl %s 'quaywall*'" % command).stdout for command in listed)
    assert units == ""
    assert host.run("grep -s quaywall /etc/default/netfilter-persistent").rc != 0


def test_docker_and_other_tools_have_what_they_had(host: t.Any) -> None:
    chain = host.check_output("iptables -S DOCKER-USER")
    # It came in before the last reboot, which nobody made it outlive.
    assert "quaywall" not in chain
    assert host.service("docker").is_running
    assert len(host.check_output("docker ps --quiet").split()) == 10
