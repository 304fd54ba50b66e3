# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reports: what becomes of the results of many hosts, and of those of an earlier run."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._audit._checks import CHECKS
from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import SEVERITIES
from ansible_collections.quaywall.docker.plugins.plugin_utils._report._about import ABOUT, about
from ansible_collections.quaywall.docker.plugins.plugin_utils._report._lines import read, render
from ansible_collections.quaywall.docker.plugins.plugin_utils._report._model import ReportError, natural
from ansible_collections.quaywall.docker.plugins.plugin_utils._report._path import STATIONS, station
from ansible_collections.quaywall.docker.plugins.plugin_utils._report._time import stamp
from ansible_collections.quaywall.docker.tests.unit.reports import AT, HOSTILE, audits, hostile, report

Result = t.Dict[str, t.Any]


def made(number: int, **values: t.Any) -> Result:
    finding = {"id": "%012x" % number, "check": "exposed", "severity": "info", "message": "It is so."}
    finding.update(values)
    return finding


def result(*numbers: int, **values: t.Any) -> Result:
    return dict({"msg": "x", "findings": [made(number) for number in numbers], "ignored": []}, **values)


def again(results: t.Mapping[str, t.Any], before: t.Mapping[str, t.Any]) -> t.Any:
    return report(results, read("".join(render(report(before, at=AT - 86400))), "audit.jsonl"))


def statuses(rep: t.Any, name: str) -> t.Tuple[t.List[str], t.List[str], t.List[str]]:
    """What is there and how, what is gone, and what was not judged, by the finding's last digit."""
    (found,) = [item for item in rep.hosts if item.name == name]
    return (
        [item.finding.id[-1] + item.status for item in found.items],
        [finding.id[-1] for finding in found.gone],
        [finding.id[-1] for finding in found.carried],
    )


# Hosts ---------------------------------------------------------------------------------------------------------------


def test_every_host_is_in_the_report() -> None:
    rep = report(audits())
    assert [host.name for host in rep.hosts] == ["away", "broken", "db1", "old", "quiet", "web1", "web2"]
    assert rep.states == {"judged": 5, "failed": 1, "unreachable": 1}
    assert list(rep.summary) == list(reversed(SEVERITIES))
    # One rule by port each on web1 and web2 stops a container that it was not meant for; the broad one on db1 too.
    assert rep.summary["critical"] == 3
    assert rep.comparison is None
    by_name = {host.name: host for host in rep.hosts}
    assert by_name["away"].message == "Failed to connect to the host via ssh."
    assert by_name["broken"].message == "The Docker daemon does not answer."
    assert {finding.check for finding in by_name["web2"].ignored} == {"exposed"}
    assert "exposed" not in {item.finding.check for item in by_name["web2"].items}


@pytest.mark.parametrize(
    ("given", "state", "sentence"),
    [
        (None, "failed", "There is no result of docker_fw_audit for this host."),
        ("text", "failed", "There is no result of docker_fw_audit for this host."),
        ({}, "failed", "The result for this host is none of docker_fw_audit: it has no findings."),
        ({"skipped": True}, "failed", "The audit was skipped on this host."),
        ({"unreachable": True}, "unreachable", "The host could not be reached."),
        ({"unreachable": True, "failed": True, "msg": "No route"}, "unreachable", "No route"),
        ({"failed": True}, "failed", "The audit failed and did not say why."),
        ({"findings": 1}, "failed", "The result for this host is none of docker_fw_audit: findings is no list."),
        (
            {"findings": ["x"]},
            "failed",
            "The result for this host is none of docker_fw_audit: findings[0] is no dictionary.",
        ),
        (
            {"findings": [made(1), made(2, severity="fatal")]},
            "failed",
            "The result for this host is none of docker_fw_audit: findings[1].severity is 'fatal'.",
        ),
        (
            {"findings": [], "ignored": [made(1, message=None)]},
            "failed",
            "The result for this host is none of docker_fw_audit: ignored[0].message is missing.",
        ),
        (
            {"findings": [made(1, affected=[3])]},
            "failed",
            "The result for this host is none of docker_fw_audit: findings[0].affected has what is no dictionary.",
        ),
        (
            {"findings": [made(1, position="1")]},
            "failed",
            "The result for this host is none of docker_fw_audit: findings[0].position is no number.",
        ),
        (
            {"findings": [made(1, fix=[])]},
            "failed",
            "The result for this host is none of docker_fw_audit: findings[0].fix is no dictionary.",
        ),
        # With fail_on, the message of a task that failed is the whole report.
        (result(1, failed=True, msg="1 finding: 1 info.\nINFO: ..."), "judged", "1 finding: 1 info."),
    ],
)
def test_a_bad_result_is_a_host_with_a_sentence(given: t.Any, state: str, sentence: str) -> None:
    rep = report({"good": result(1), "it": given})
    assert [(host.state, host.message) for host in rep.hosts] == [("judged", "x"), (state, sentence)]
    assert rep.summary["info"] == (2 if state == "judged" else 1)


def test_text_that_utf8_cannot_hold() -> None:
    rep = report(hostile(audits()["web1"]))
    for line in render(rep):
        line.encode("utf-8")
    assert {"\\xff", "\\ud800"} < {host.name for host in rep.hosts}


def test_hosts_are_in_the_order_that_people_expect() -> None:
    names = ["web10", "web9", "a", "10.0.0.2", "10.0.0.10", "Web1"]
    assert sorted(names, key=natural) == ["10.0.0.2", "10.0.0.10", "Web1", "a", "web9", "web10"]


def test_which_checks_were_made() -> None:
    options = {"checks": ["exposed", "never_read"], "skip_checks": ["exposed"]}
    rep = report({"a": result(invocation={"module_args": options}), "b": result()})
    assert [host.checks for host in rep.hosts] == [("never_read",), None]


# An earlier run ------------------------------------------------------------------------------------------------------


def test_new_still_there_and_gone() -> None:
    rep = again({"a": result(1, 2)}, {"a": result(2, 3)})
    assert statuses(rep, "a") == (["1new", "2still"], ["3"], [])
    assert rep.comparison == {"new": 1, "still": 1, "gone": 1, "not_judged": 0}
    assert rep.earlier_at == "2026-11-22T14:10:01Z"


def test_findings_with_the_same_id_are_counted() -> None:
    assert statuses(again({"a": result(1, 1, 1)}, {"a": result(1, 1)}), "a") == (["1still", "1still", "1new"], [], [])
    assert statuses(again({"a": result(1)}, {"a": result(1, 1)}), "a") == (["1still"], ["1"], [])


def test_the_same_id_on_another_host_is_another_finding() -> None:
    rep = again({"a": result(1), "b": result()}, {"a": result(), "b": result(1)})
    assert statuses(rep, "a") == (["1new"], [], [])
    assert statuses(rep, "b") == ([], ["1"], [])


@pytest.mark.parametrize("now", [{"unreachable": True, "msg": "x"}, {"failed": True, "msg": "x"}, None])
def test_what_was_not_judged_is_neither_gone_nor_there(now: t.Any) -> None:
    first = {"a": result(1, 2)}
    rep = again({"a": now}, first)
    assert statuses(rep, "a") == ([], [], ["1", "2"])
    assert rep.comparison == {"new": 0, "still": 0, "gone": 0, "not_judged": 2}
    # The run after it still knows what was there.
    kept = read("".join(render(rep)), "audit.jsonl")
    assert statuses(report({"a": result(2, 3)}, kept), "a") == (["2still", "3new"], ["1"], [])


def test_ignored_findings_are_not_compared() -> None:
    ignored = {"ignored": [made(1, ignored_because="known")]}
    # Lived with from now on: not gone. Not lived with any more: new.
    assert statuses(again({"a": result(**ignored)}, {"a": result(1)}), "a") == ([], [], [])
    assert statuses(again({"a": result(1)}, {"a": result(**ignored)}), "a") == (["1new"], [], [])


def test_hosts_that_are_asked_no_more() -> None:
    rep = again({"a": result(), "new": result(1)}, {"a": result(), "b10": result(1), "b9": result()})
    assert rep.not_asked == ("b9", "b10")
    assert statuses(rep, "new") == (["1new"], [], [])
    assert rep.comparison == {"new": 1, "still": 0, "gone": 0, "not_judged": 0}


def test_gone_findings_stay_gone() -> None:
    rep = again({"a": result()}, {"a": result(1)})
    assert statuses(report({"a": result(1)}, read("".join(render(rep)), "f")), "a") == (["1new"], [], [])


# JSON Lines ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("results", [audits(), hostile(audits()["web1"])], ids=["real", "hostile"])
def test_what_is_written_is_read(results: t.Mapping[str, t.Any]) -> None:
    rep = report(results)
    earlier = read("".join(render(rep)), "audit.jsonl")
    assert earlier.at == stamp(AT) == "2026-11-23T14:10:01Z"
    assert {name: item.findings for name, item in earlier.hosts.items()} == {
        host.name: tuple(item.finding for item in host.items) for host in rep.hosts
    }
    compared = report(results, earlier).comparison
    assert compared == {"new": 0, "still": sum(rep.summary.values()), "gone": 0, "not_judged": 0}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "previous: f does not say of which run it is: it is no audit.jsonl, or only a part."),
        ("{", "previous: line 1 of f is no JSON"),
        ("[]\n", "previous: line 1 of f is none of an audit.jsonl of this collection."),
        ('{"a": 1}', "previous: line 1 of f is none of an audit.jsonl of this collection."),
        (
            '{"quaywall_report": 1, "type": "run", "at": "x"}\n\n{"quaywall_report": 2, "type": "host"}\n',
            (
                "previous: line 3 of f is of version 2 of the format, and this collection reads versions up to 1: "
                "take the collection that wrote it, or a newer one."
            ),
        ),
        ('{"quaywall_report": 1, "type": "x"}', "previous: line 1 of f is about neither a run, a host nor a finding."),
        (
            '{"quaywall_report": 1, "type": "host", "host": "a"}',
            "previous: line 1 of f does not say how the host was found.",
        ),
        (
            '{"quaywall_report": 1, "type": "finding", "host": "a", "id": "1"}',
            "previous: line 1 of f.check is missing.",
        ),
    ],
)
def test_a_file_that_cannot_be_compared_with(text: str, sentence: str) -> None:
    with pytest.raises(ReportError) as caught:
        read(text, "f")
    assert str(caught.value).startswith(sentence)


# Checks --------------------------------------------------------------------------------------------------------------


def test_each_check_has_its_help() -> None:
    assert list(ABOUT) == [name for name in ABOUT if name in CHECKS]
    assert set(ABOUT) == set(CHECKS)
    for name, help_ in ABOUT.items():
        assert not help_.title.endswith("."), name
        assert help_.what.endswith("."), name
        assert help_.advice.endswith("."), name
    assert about("of_tomorrow").title == "of_tomorrow"


@pytest.mark.parametrize(
    ("check", "table", "chain", "expected"),
    [
        ("port_only_deny", "filter", "DOCKER-USER", "docker_user"),
        ("port_only_deny", "filter", "APPS", "docker_user"),
        ("docker_chain_edited", "filter", "DOCKER", "docker_chains"),
        ("docker_chain_edited", "filter", "DOCKER-FORWARD", "docker_chains"),
        ("docker_chain_edited", "nat", "DOCKER", "prerouting"),
        ("never_read", "filter", "INPUT", "input"),
        ("never_read", "filter", "ufw-user-input", "input"),
        ("never_read", "filter", "ufw-before-forward", "forward"),
        ("never_read", "filter", "OUTPUT", "host"),
        ("jump_missing", "filter", "DOCKER-USER", "forward"),
        ("proxy_bypass", "filter", "DOCKER-USER", "proxy"),
        ("direct_routing", "", "", "routing"),
        ("exposed", "", "", "docker_user"),
        ("snapshot_incomplete", "", "", "host"),
        ("of_tomorrow", "", "", "host"),
    ],
)
def test_where_a_finding_is_on_the_way(check: str, table: str, chain: str, expected: str) -> None:
    rep = report({"a": {"findings": [made(1, check=check, table=table, chain=chain)]}})
    assert station(rep.hosts[0].items[0].finding) == expected
    assert expected in STATIONS


def test_hostile_texts_are_what_they_are_for() -> None:
    assert len(set(HOSTILE)) == len(HOSTILE)
