# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The reports' formats: what is in them, and that no text of a host gets out of its place.

What readers of these formats make of them is tested in tests/report, where such readers are installed.
"""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import re
import typing as t
import xml.etree.ElementTree as ET
import zlib
from pathlib import Path

import pytest

from ansible_collections.quaywall.docker.plugins.module_utils._audit._checks import CHECKS
from ansible_collections.quaywall.docker.plugins.plugin_utils._report import (
    _html,
    _junit,
    _lines,
    _prometheus,
    _sarif,
    _yaml,
)
from ansible_collections.quaywall.docker.tests.unit.reports import HOSTILE, audits, hostile, report
from ansible_collections.quaywall.docker.tests.unit.support import ROOT

ASSETS = ROOT / "plugins" / "plugin_utils" / "_report"
REAL = report(audits())
HOSTILE_ONE = report(hostile(audits()["web1"]))


def assets() -> _html.Assets:
    return _html.Assets(*((ASSETS / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")))


# YAML ----------------------------------------------------------------------------------------------------------------


def test_tasks_are_written_as_people_write_them() -> None:
    tasks = [
        {
            "name": "Policy shop-8080",
            "quaywall.docker.docker_user_rule": {"name": "shop-8080", "destination_port": ["8080", "a:b"], "log": {}},
        },
        {
            "name": "Yes",
            "ansible.builtin.command": {"argv": ["iptables", "-w", "10", "!"]},
            "changed_when": True,
            "loop": None,
        },
    ]
    assert _yaml.render(tasks) == (
        "- name: Policy shop-8080\n"
        "  quaywall.docker.docker_user_rule:\n"
        "    name: shop-8080\n"
        "    destination_port:\n"
        '      - "8080"\n'
        '      - "a:b"\n'
        "    log: {}\n"
        '- name: "Yes"\n'
        "  ansible.builtin.command:\n"
        "    argv:\n"
        "      - iptables\n"
        '      - "-w"\n'
        '      - "10"\n'
        '      - "!"\n'
        "  changed_when: true\n"
        "  loop: null\n"
    )


@pytest.mark.parametrize("text", ["{{ x }}", "a {% raw %} b", "{# c #}", 'x\n{{ "y" }}'])
def test_no_text_of_a_host_is_a_template_on_the_controller(text: str) -> None:
    assert _yaml.render([{"name": text}]) == "- name: !unsafe %s\n" % json.dumps(text)


# SARIF ---------------------------------------------------------------------------------------------------------------


def sarif(rep: t.Any) -> t.Dict[str, t.Any]:
    run: t.Dict[str, t.Any] = json.loads("".join(_sarif.render(rep)))["runs"][0]
    return run


def test_a_result_of_sarif() -> None:
    run = sarif(REAL)
    rules = run["tool"]["driver"]["rules"]
    by_check = {rule["id"]: rule for rule in rules}
    assert by_check["port_only_deny"]["properties"]["security-severity"] == "9.5"
    assert by_check["exposed"]["defaultConfiguration"] == {"level": "note"}
    (result,) = [
        item for item in run["results"] if item["properties"]["host"] == "web1" and item["ruleId"] == "port_only_deny"
    ]
    assert rules[result["ruleIndex"]]["id"] == "port_only_deny"
    assert result["level"] == "error"
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": "web1/ipv4/filter/DOCKER-USER"}
    assert place["region"] == {"startLine": 1, "snippet": {"text": "-p tcp -m tcp --dport 8080 -j DROP"}}
    # As the host publishes it: 8080 to shop, 9000 to admin.
    meant = {item["container"]: item["meant"] for item in result["properties"]["containers"] if item["published"]}
    assert meant == {"shop": True, "admin": False}
    assert "quaywall.docker.docker_user_rule" in result["properties"]["fix"]["tasks"]


def test_hosts_that_were_not_judged_are_notifications() -> None:
    (invocation,) = sarif(REAL)["invocations"]
    assert invocation["executionSuccessful"] is False
    assert [item["message"]["text"] for item in invocation["toolExecutionNotifications"]] == [
        "away: Failed to connect to the host via ssh.",
        "broken: The Docker daemon does not answer.",
    ]


def test_ignored_findings_are_suppressed() -> None:
    suppressed = [item for item in sarif(REAL)["results"] if "suppressions" in item]
    assert {(item["properties"]["host"], item["ruleId"]) for item in suppressed} == {("web2", "exposed")}
    assert suppressed[0]["suppressions"][0]["justification"] == "It is known."


def test_fingerprints_are_each_findings_own() -> None:
    result = audits()["web1"]
    twice = {"a": dict(result, findings=result["findings"] * 2), "b": result}
    found = [item["partialFingerprints"] for item in sarif(report(twice))["results"]]
    for name in ("quaywallFinding/v1", "primaryLocationLineHash"):
        assert len({item[name] for item in found}) == len(found) == 3 * len(result["findings"])


def test_hostile_texts_in_sarif() -> None:
    run = sarif(HOSTILE_ONE)
    for result in run["results"]:
        uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        assert re.fullmatch(r"(?:[A-Za-z0-9._~-]|%[0-9A-F]{2})+(?:/(?:[A-Za-z0-9._~-]|%[0-9A-F]{2})+)*", uri), uri
        # No link and no placeholder is left in a message (SARIF 2.1.0, 3.11.5 and 3.11.6).
        text = result["message"]["text"].replace("{{", "").replace("}}", "")
        assert not re.search(r"[{}]|(?<!\\)(?:\\\\)*[][]", text), text


# JUnit ---------------------------------------------------------------------------------------------------------------


def junit(rep: t.Any, fail_on: str = "low") -> t.Any:
    return ET.fromstring("".join(_junit.render(rep, tuple(CHECKS), fail_on)).encode("utf-8"))


def test_a_suite_for_each_host_and_a_case_for_each_check() -> None:
    root = junit(REAL)
    suites = {suite.get("name"): suite for suite in root}
    assert list(suites) == [host.name for host in REAL.hosts]
    assert [case.get("name") for case in suites["web1"]] == list(CHECKS)
    failed = {case.get("name") for case in suites["web1"] if case.find("failure") is not None}
    assert failed == {item.finding.check for item in REAL.hosts[5].items if item.finding.severity != "info"}
    assert suites["web1"].get("failures") == str(len(failed))
    assert "docker_user_rule" not in (suites["quiet"].findtext("testcase/failure") or "")
    (error,) = suites["away"].findall("testcase/error")
    assert error.get("message") == "Failed to connect to the host via ssh."
    for name in ("tests", "failures", "errors", "skipped"):
        assert root.get(name) == str(sum(int(suite.get(name)) for suite in root))


@pytest.mark.parametrize(("fail_on", "failing"), [("none", 0), ("critical", 3), ("info", None)])
def test_from_which_severity_on_a_case_fails(fail_on: str, failing: t.Optional[int]) -> None:
    root = junit(REAL, fail_on)
    checks = {(host.name, item.finding.check) for host in REAL.hosts for item in host.items}
    assert int(root.get("failures")) == (len(checks) if failing is None else failing)
    # What is no failure is told all the same.
    told = "".join(root.itertext())
    for host in REAL.hosts:
        for item in host.items:
            assert item.finding.message in told


def test_checks_that_were_not_made_are_skipped() -> None:
    result = dict(audits()["web1"], invocation={"module_args": {"checks": None, "skip_checks": ["wrong_owner"]}})
    root = junit(report({"a": result}))
    assert [case.get("name") for case in root.iter("testcase") if case.find("skipped") is not None] == ["wrong_owner"]


def test_hostile_texts_in_xml() -> None:
    root = junit(HOSTILE_ONE)
    names = {suite.get("name") for suite in root}
    assert HOSTILE[0] in names
    assert "\\x00\\x1b[31m\x7f" in names
    assert {element.tag for element in root.iter()} == {
        "testsuites",
        "testsuite",
        "testcase",
        "failure",
        "error",
        "system-out",
    }


# Prometheus ----------------------------------------------------------------------------------------------------------


def test_metrics_of_a_host() -> None:
    web2 = next(host for host in REAL.hosts if host.name == "web2")
    text = _prometheus.render(REAL, web2)
    assert 'quaywall_audit_success{host="web2"} 1\n' in text
    assert 'quaywall_audit_timestamp_seconds{host="web2"} 1795443001\n' in text
    assert 'quaywall_audit_findings{host="web2",check="port_only_deny",severity="critical"} 1\n' in text
    assert 'quaywall_audit_severity_findings{host="web2",severity="medium"} 0\n' in text
    assert 'quaywall_audit_ignored_findings{host="web2",check="exposed",severity="info"} 1\n' in text


@pytest.mark.parametrize("name", ["away", "broken"])
def test_a_host_that_was_not_judged_has_no_numbers(name: str) -> None:
    text = _prometheus.render(REAL, next(host for host in REAL.hosts if host.name == name))
    samples = [line for line in text.split("\n") if line and not line.startswith("#")]
    assert [line.partition("{")[0] for line in samples] == [
        "quaywall_audit_success",
        "quaywall_audit_timestamp_seconds",
    ]
    assert samples[0].endswith(" 0")


# The page ------------------------------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """The elements of a page, and the texts of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: t.List[t.Tuple[str, t.Dict[str, t.Optional[str]]]] = []
        self.scripts: t.List[str] = []
        self.styles: t.List[str] = []
        self._into: t.Optional[t.List[str]] = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: t.List[t.Tuple[str, t.Optional[str]]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._into = {"script": self.scripts, "style": self.styles}.get(tag)
        if self._into is not None:
            self._into.append("")

    def handle_data(self, data: str) -> None:
        if self._into is not None:
            self._into[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._into = None


def page(rep: t.Any) -> t.Tuple[str, Page]:
    text = "".join(_html.render(rep, assets()))
    return text, Page(text)


def data(parsed: Page) -> t.Tuple[t.Dict[str, t.Any], t.List[t.Any]]:
    """The index, and what was packed."""
    kinds = [attributes for tag, attributes in parsed.elements if tag == "script"]
    texts = {item.get("id"): text for item, text in zip(kinds, parsed.scripts) if item.get("id")}
    pieces = [
        json.loads(zlib.decompress(base64.b64decode(text), -15)) for name, text in texts.items() if "piece" in str(name)
    ]
    return json.loads(texts["index"]), pieces


def test_everything_is_in_the_page() -> None:
    _text, parsed = page(REAL)
    index, pieces = data(parsed)
    for host, (name, state, message, piece, place, rows) in zip(REAL.hosts, index["hosts"]):
        assert (name, state, message) == (host.name, host.state, host.message)
        details = pieces[piece][place]
        assert len(rows) == len(details) == len(host.items) + len(host.ignored)
        for item, row, detail in zip(host.items, rows, details):
            finding = item.finding
            assert (detail["id"], detail["message"], detail["rule"]) == (finding.id, finding.message, finding.rule)
            assert (index["severities"][row[0]], index["checks"][row[1]][0]) == (finding.severity, finding.check)
            assert index["strings"][row[4]] == finding.chain
            assert detail["affected"] == [list(hit) for hit in finding.affected]


def test_the_page_runs_its_own_script_and_asks_nobody() -> None:
    text, parsed = page(REAL)
    policy = next(attributes["content"] for tag, attributes in parsed.elements if "http-equiv" in attributes)
    run = [
        script
        for script, (_tag, attributes) in zip(parsed.scripts, [item for item in parsed.elements if item[0] == "script"])
        if "type" not in attributes
    ]
    hashes = [
        "'sha256-%s'" % base64.b64encode(hashlib.sha256(part.encode("utf-8")).digest()).decode("ascii")
        for part in (*run, *parsed.styles)
    ]
    assert policy == "default-src 'none'; script-src %s; style-src %s; base-uri 'none'; form-action 'none'" % tuple(
        hashes
    )
    for tag, attributes in parsed.elements:
        assert not {"src", "href", "style", "action"} & set(attributes) or (tag, attributes.get("href")) == (
            "a",
            "#results",
        )
    # Policies do not cover these: the script makes no HTML out of text, and no address out of data.
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "fetch(",
        "XMLHttp",
        "import(",
    ):
        assert word not in assets().script, word
    assert "http:" not in text.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize("name", ["page.html", "page.css", "page.js"])
def test_files_of_the_page(name: str) -> None:
    text = Path(ASSETS / name).read_bytes()
    assert b"\r" not in text, "a policy's hash is of the text with line feeds"


def test_hostile_texts_make_no_element() -> None:
    _text, plain = page(
        report({"host%d" % number: result for number, result in enumerate(hostile(audits()["web1"]).values())})
    )
    _text, parsed = page(HOSTILE_ONE)
    assert [tag for tag, _attributes in parsed.elements if tag != "script"] == [
        tag for tag, _attributes in plain.elements if tag != "script"
    ]
    assert {name for _tag, attributes in parsed.elements for name in attributes} == {
        name for _tag, attributes in plain.elements for name in attributes
    }
    index, pieces = data(parsed)
    assert HOSTILE[0] in index["strings"]
    assert {host[0] for host in index["hosts"]} == {host.name for host in HOSTILE_ONE.hosts}
    assert pieces


def test_what_would_not_be_seen_is_spelt() -> None:
    text, _parsed = page(report({"a\u202eb": {"failed": True, "msg": "x\x1b[31m\u200by"}}))
    shown = text.partition('<script type="application/json"')[0]
    assert "<bdi>a\\u202eb</bdi>" in shown
    assert "x\\u001b[31m\\u200by" in shown


def test_lines_are_lines() -> None:
    for line in "".join(_lines.render(HOSTILE_ONE)).split("\n")[:-1]:
        assert json.loads(line)["quaywall_report"] == 1
