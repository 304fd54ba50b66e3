# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module docker_fw_audit from its options to its results, on snapshots."""

from __future__ import annotations

import json
import typing as t

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.quaywall.docker.plugins.module_utils._audit._checks import CHECKS
from ansible_collections.quaywall.docker.plugins.module_utils._module import docker_fw_audit
from ansible_collections.quaywall.docker.tests.unit.snapshots import Box, Document, host

PORT_ONLY = "-p tcp -m tcp --dport 8080 -j DROP"
BOXES = (Box("admin", "9000:8080"), Box("shop", "8080:8080"))


def two_containers(*rules: str) -> Document:
    return host("28.5", containers=BOXES, docker_user=rules)


def _nothing_to_collect(module: AnsibleModule) -> t.Mapping[str, t.Any]:
    raise AssertionError("the host was read")


def run(
    capsys: pytest.CaptureFixture[str],
    document: t.Optional[Document] = None,
    check: bool = False,
    **options: t.Any,
) -> t.Dict[str, t.Any]:
    """Run the module on a document that its collector hands out; with a snapshot given, nothing may be collected."""
    collector = _nothing_to_collect if document is None else lambda module: document

    def main() -> None:
        module = AnsibleModule(argument_spec=docker_fw_audit.argument_spec(), supports_check_mode=True)
        docker_fw_audit.run_module(module, collector)

    with patch_module_args({**options, "_ansible_check_mode": check}), pytest.raises(SystemExit):
        main()
    result: t.Dict[str, t.Any] = json.loads(capsys.readouterr().out)
    return result


def test_it_names_both_containers_and_marks_one_as_not_meant(capsys: pytest.CaptureFixture[str]) -> None:
    results = [run(capsys, two_containers(PORT_ONLY), check=check) for check in (True, False)]
    assert results[0] == results[1]
    (finding,) = [item for item in results[0]["findings"] if item["check"] == "port_only_deny"]
    assert (finding["severity"], finding["certainty"], finding["rule"]) == ("critical", "definite", PORT_ONLY)
    assert (finding["family"], finding["chain"], finding["position"]) == ("ipv4", "DOCKER-USER", 1)
    hit = {
        item["container"]: (item["published"], item["meant"])
        for item in finding["affected"]
        if item["traffic"] == "published port"
    }
    assert hit == {"admin": ("9000->8080/tcp", False), "shop": ("8080->8080/tcp", True)}
    assert finding["fix"]["gains"] == ["anyone: admin (9000->8080/tcp) over IPv4"]
    assert not results[0].get("failed")
    assert results[0]["changed"] is False
    assert results[0]["summary"]["critical"] == 1
    assert any("admin" in line and line.startswith("CRITICAL: port_only_deny") for line in results[0]["report"])


@pytest.mark.parametrize("as_text", [False, True], ids=["data", "text"])
def test_a_snapshot_that_was_returned_is_judged_the_same(capsys: pytest.CaptureFixture[str], as_text: bool) -> None:
    live = run(capsys, two_containers(PORT_ONLY), return_snapshot=True)
    kept = live.pop("snapshot")
    again = run(capsys, snapshot=json.dumps(kept) if as_text else kept)
    assert {key: again[key] for key in live if key != "invocation"} == {
        key: live[key] for key in live if key != "invocation"
    }
    assert "snapshot" not in again
    # Not even beside the result, where Ansible repeats the options.
    assert again["invocation"]["module_args"]["snapshot"] == "(given)"
    assert set(again["invocation"]["module_args"]) == set(live["invocation"]["module_args"])


@pytest.mark.parametrize(
    ("fail_on", "failed"),
    [("none", False), ("critical", True), ("high", True), ("low", True)],
)
def test_fail_on_a_critical_finding(capsys: pytest.CaptureFixture[str], fail_on: str, failed: bool) -> None:
    result = run(capsys, two_containers(PORT_ONLY), fail_on=fail_on)
    assert bool(result.get("failed")) is failed
    assert result["findings"]
    if failed:
        assert "admin" in result["msg"]


def test_fail_on_does_not_fail_for_less(capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys, two_containers(), fail_on="low")
    assert not result.get("failed")
    assert {item["severity"] for item in result["findings"]} <= {"info"}


def test_ids_stay_when_other_rules_come_and_containers_move(capsys: pytest.CaptureFixture[str]) -> None:
    def found(document: Document) -> t.Any:
        (finding,) = run(capsys, document, checks=["port_only_deny"])["findings"]
        return finding["id"], finding["position"]

    first = found(two_containers(PORT_ONLY))
    moved = host(
        "28.5",
        containers=(Box("first", "7000:70"), *BOXES),
        docker_user=("-s 198.51.100.66/32 -j DROP", PORT_ONLY),
    )
    assert found(moved) == (first[0], 2)


@pytest.mark.parametrize(
    ("rule", "ignored"),
    [
        (None, True),
        (PORT_ONLY, True),
        ("-A DOCKER-USER " + PORT_ONLY, True),
        ("-p tcp --dport 8080 -j DROP", True),
        ("-p tcp --dport 8081 -j DROP", False),
    ],
)
def test_ignored_findings_are_shown_with_their_reason(
    capsys: pytest.CaptureFixture[str], rule: t.Optional[str], ignored: bool
) -> None:
    ignore = {"check": "port_only_deny", "reason": "nobody may", **({} if rule is None else {"rule": rule})}
    result = run(capsys, two_containers(PORT_ONLY), ignore=[ignore], fail_on="critical")
    assert bool(result.get("failed")) is not ignored
    assert result["summary"]["critical"] == (0 if ignored else 1)
    assert [item["ignored_because"] for item in result["ignored"]] == (["nobody may"] if ignored else [])


def test_checks_are_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    document = two_containers(PORT_ONLY)
    assert {item["check"] for item in run(capsys, document, checks=["port_only_deny"])["findings"]} == {
        "port_only_deny"
    }
    assert "port_only_deny" not in {
        item["check"] for item in run(capsys, document, skip_checks=["port_only_deny"])["findings"]
    }


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"checks": ["port_only"]}, "checks[0]: there is no check 'port_only'; the checks are address_only, "),
        ({"skip_checks": ["x"]}, "skip_checks[0]: there is no check 'x'"),
        ({"checks": []}, "checks is an empty list"),
        ({"skip_checks": sorted(CHECKS)}, "skip_checks names every check"),
        ({"ignore": [{"check": "x", "reason": "y"}]}, "ignore[0].check: there is no check 'x'"),
        ({"ignore": [{"check": "port_only_deny", "reason": " "}]}, "ignore[0].reason is empty"),
        ({"ignore": [{"check": "port_only_deny", "reason": "y", "rule": ""}]}, "ignore[0].rule is empty"),
        ({"ignore": [{"check": "port_only_deny"}]}, "missing required arguments: reason"),
        ({"fail_on": "bad"}, "value of fail_on must be one of: none, low, medium, high, critical, got: bad"),
        ({"snapshot": "{"}, "snapshot is no JSON"),
        ({"snapshot": "host7.json"}, "snapshot is no JSON"),
        ({"snapshot": []}, "snapshot"),
        ({"snapshot": {}}, "quaywall_snapshot"),
        ({"snapshot": {"quaywall_snapshot": 2}}, "2"),
    ],
)
def test_bad_input_gets_one_sentence(
    capsys: pytest.CaptureFixture[str], options: t.Dict[str, t.Any], sentence: str
) -> None:
    result = run(capsys, None if "snapshot" in options else host("28.5"), **options)
    assert result["failed"]
    assert sentence in result["msg"]
    assert "Traceback" not in json.dumps(result)


def test_an_unexpected_error_is_no_traceback_on_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(module: AnsibleModule) -> t.Mapping[str, t.Any]:
        raise RuntimeError("out of order")

    with patch_module_args({}):
        module = AnsibleModule(argument_spec=docker_fw_audit.argument_spec(), supports_check_mode=True)
        with pytest.raises(SystemExit):
            docker_fw_audit.run_module(module, broken)
    result = json.loads(capsys.readouterr().out)
    assert result["msg"] == "Unexpected error in docker_fw_audit: out of order. Please report it."


def test_hostile_names_are_data(capsys: pytest.CaptureFixture[str]) -> None:
    document = two_containers(PORT_ONLY)
    for item in document["docker"]["containers"]:
        item["Names"] = ["/\x1b[2J\n<script>{{ lookup('pipe', 'id') }}"]
    result = run(capsys, document)
    assert all(line.isprintable() for line in result["report"])
    assert all(item["message"].isprintable() for item in result["findings"])
