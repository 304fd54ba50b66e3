# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module docker_fw_trace from its options to its results, on snapshots."""

from __future__ import annotations

import json
import typing as t

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.quaywall.docker.plugins.module_utils._module import docker_fw_trace
from ansible_collections.quaywall.docker.tests.unit.snapshots import IPV4, Box, Document, host, with_rules

CLIENT = "198.51.100.7"
BOXES = (Box("web-a", "9000:8080"), Box("web-b", "8080:8080"))
PORT_ONLY = "-p tcp -m tcp --dport 8080 -j DROP"


def two_apps() -> Document:
    document = host("28.5", BOXES, docker_user=[PORT_ONLY])
    return with_rules(document, IPV4, "filter", ["-A INPUT -p tcp -m tcp --dport 8080 -j ACCEPT"])


def _nothing_to_collect(module: AnsibleModule) -> t.Mapping[str, t.Any]:
    raise AssertionError("the host was read")


def run(
    capsys: pytest.CaptureFixture[str], document: t.Optional[Document] = None, check: bool = False, **options: t.Any
) -> t.Dict[str, t.Any]:
    """Run the module on a document that its collector hands out; with a snapshot given, nothing may be collected."""
    collector = _nothing_to_collect if document is None else lambda module: document

    def main() -> None:
        module = AnsibleModule(
            argument_spec=docker_fw_trace.argument_spec(), supports_check_mode=True, **docker_fw_trace.CONSTRAINTS
        )
        docker_fw_trace.run_module(module, collector)

    with patch_module_args({**options, "_ansible_check_mode": check}), pytest.raises(SystemExit):
        main()
    result: t.Dict[str, t.Any] = json.loads(capsys.readouterr().out)
    return result


def test_the_answer_is_the_same_in_check_mode(capsys: pytest.CaptureFixture[str]) -> None:
    results = [run(capsys, two_apps(), check, source=CLIENT, port=9000) for check in (True, False)]
    assert results[0] == results[1]
    result = results[0]
    assert result["changed"] is False
    assert result["verdict"] == "blocked"
    assert result["container"] == {
        "name": "web-a",
        "address": "172.17.0.2",
        "port": 8080,
        "network": "bridge",
        "bridge": "docker0",
    }
    assert result["decided_by"] == {
        "family": "ipv4",
        "variant": "nft",
        "table": "filter",
        "chain": "DOCKER-USER",
        "position": 1,
        "rule": PORT_ONLY,
    }
    for words in ("rule 1 of DOCKER-USER", "web-a (172.17.0.2:8080)", "rule 1 of INPUT", "is never read", "to let it"):
        assert words in result["msg"]
    assert [step["hook"] for step in result["walk"]][-2:] == ["routing", "FORWARD"]
    assert result["walk"][-1]["rule"] == result["decided_by"]
    assert len(result["report"]) == len(result["walk"])


@pytest.mark.parametrize("as_text", [False, True], ids=["data", "text"])
def test_a_snapshot_is_all_that_is_read(capsys: pytest.CaptureFixture[str], as_text: bool) -> None:
    document = two_apps()
    given = json.dumps(document) if as_text else document
    result = run(capsys, source=CLIENT, port=9000, snapshot=given)
    assert result["verdict"] == "blocked"
    assert result["invocation"]["module_args"]["snapshot"] == "(given)"


@pytest.mark.parametrize(("expect", "failed"), [("blocked", False), ("delivered", True)])
def test_what_is_expected(capsys: pytest.CaptureFixture[str], expect: str, failed: bool) -> None:
    result = run(capsys, two_apps(), source=CLIENT, port=9000, expect=expect)
    assert bool(result.get("failed")) == failed
    assert result["msg"].startswith("Blocked: rule 1 of DOCKER-USER")


def test_a_possible_verdict_is_never_expected(capsys: pytest.CaptureFixture[str]) -> None:
    document = host("28.5", BOXES, docker_user=["-m limit --limit 1/second -j DROP"])
    for expect in ("blocked", "delivered"):
        assert run(capsys, document, source=CLIENT, port=9000, expect=expect)["failed"]


def test_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys, two_apps(), sources=[CLIENT, "host"])
    assert result["msg"] == "4 connections: 2 delivered, 2 blocked."
    assert result["report"] == [
        "port      at           container  198.51.100.7  host",
        "9000/tcp  203.0.113.1  web-a      no            yes",
        "8080/tcp  203.0.113.1  web-b      no            yes",
    ]
    cells = [(cell["source"], cell["port"], cell["container"], cell["verdict"]) for cell in result["reachability"]]
    assert cells == [
        (CLIENT, 9000, "web-a", "blocked"),
        ("host", 9000, "web-a", "delivered"),
        (CLIENT, 8080, "web-b", "blocked"),
        ("host", 8080, "web-b", "delivered"),
    ]
    failed = run(capsys, two_apps(), sources=[CLIENT, "host"], ports=["9000", "53/udp"], expect="blocked")
    assert failed["failed"]
    assert failed["msg"].startswith("1 of 4 connections are not blocked.\nhost to port 9000/tcp: Delivered")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"source": CLIENT}, "port is required with protocol tcp"),
        ({"port": 80}, "one of the following is required"),
        ({"source": CLIENT, "sources": [CLIENT], "port": 80}, "mutually exclusive"),
        ({"sources": []}, "sources is an empty list"),
        ({"sources": [CLIENT], "ports": []}, "ports is an empty list"),
        ({"sources": [CLIENT], "ports": ["http"]}, "ports[0]: 'http' is no port"),
        ({"sources": [CLIENT], "ports": ["0"]}, "ports[0]: '0' is no port"),
        ({"source": CLIENT, "port": 80, "source_port": 0}, "source_port: 0 is none"),
        ({"source": CLIENT, "port": 80, "snapshot": "{"}, "snapshot is no JSON"),
        ({"source": CLIENT, "port": 80, "snapshot": {}}, "This is no snapshot"),
        ({"source": "nobody", "port": 80}, "neither an address nor a container"),
    ],
)
def test_what_cannot_be_asked(capsys: pytest.CaptureFixture[str], options: t.Dict[str, t.Any], words: str) -> None:
    result = run(capsys, two_apps(), **options)
    assert result["failed"]
    assert words in result["msg"]
    assert "exception" not in result
