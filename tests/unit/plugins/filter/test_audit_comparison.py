# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is gone, still there, new and worse between two audits of a host."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.quaywall.docker.plugins.filter.audit_comparison import FilterModule

compare = FilterModule().filters()["audit_comparison"]
Finding = t.Dict[str, t.Any]


def finding(number: str, *touched: str, **fields: t.Any) -> Finding:
    """A finding as the module returns it, with what a comparison reads of it."""
    affected = [{"container": name, "published": "9000->8080/tcp", "traffic": "published port"} for name in touched]
    plain = {"check": "port_only_deny", "severity": "critical", "family": "ipv4", "message": "It drops."}
    return {"id": number, **plain, "affected": affected, **fields}


def result(*findings: Finding) -> t.Dict[str, t.Any]:
    return {"msg": "%d findings." % len(findings), "findings": list(findings)}


def test_by_id() -> None:
    one, two, three = finding("1", "a"), finding("2", "a"), finding("3", "b", severity="info")
    found = compare(result(one, two), result(two, three))
    assert (found["gone"], found["still"], found["new"]) == ([one], [two], [three])
    assert found["lines"] == [
        "1 gone, 1 still there, 1 new.",
        "gone: 1 CRITICAL: port_only_deny: It drops.",
        "still there: 2 CRITICAL: port_only_deny: It drops.",
    ]


def test_equal() -> None:
    found = compare(result(finding("1", "a")), result(finding("1", "a", message="It still drops.")))
    assert (found["gone"], found["new"], found["worse"]) == ([], [], [])
    assert compare(result(), result())["lines"] == ["0 gone, 0 still there, 0 new."]


@pytest.mark.parametrize(
    ("severity", "worse_from", "worse"),
    [
        ("critical", "high", True),
        ("high", "high", True),
        ("medium", "high", False),
        ("medium", "medium", True),
        ("low", "info", True),
        ("info", "low", False),
    ],
)
def test_severity(severity: str, worse_from: str, worse: bool) -> None:
    found = compare(result(), result(finding("1", "a", severity=severity)), worse_from=worse_from)
    assert bool(found["worse"]) == worse


@pytest.mark.parametrize(
    ("before", "after", "worse"),
    [
        # The rule has another text, and touches the same containers, or fewer.
        (finding("1", "a", "b"), finding("2", "a", "b"), False),
        (finding("1", "a", "b"), finding("2", "b"), False),
        (finding("1", "a"), finding("2", "a", "b"), True),
        (finding("1", "a"), finding("2", "a", severity="high"), False),
        # What was less severe before is worse now.
        (finding("1", "a", severity="high"), finding("2", "a"), True),
        (finding("1", "a", check="broad_deny"), finding("2", "a"), True),
        (finding("1", "a", family="ipv6"), finding("2", "a"), True),
        # Closed in one way now: in the other it was open before as well.
        (finding("1", "a", severity="high"), finding("2", "a", check="proxy_bypass", severity="high"), False),
        (
            finding("1", "a", severity="high"),
            finding("2", "a", check="ipv6_gap", family="ipv6", severity="high"),
            False,
        ),
        (finding("1", "a", severity="info"), finding("2", "a", check="proxy_bypass", severity="high"), True),
        (finding("1", "b", severity="high"), finding("2", "a", check="direct_routing", severity="high"), True),
        # It is about no container: nobody can tell.
        (finding("1"), finding("2"), True),
    ],
)
def test_another_rule_for_the_same(before: Finding, after: Finding, worse: bool) -> None:
    found = compare(result(before), result(after))
    assert [item["id"] for item in found["new"]] == ["2"]
    assert bool(found["worse"]) == worse


def test_not_judged_afterwards() -> None:
    found = compare(result(finding("1", "a")), {"failed": True, "msg": "No iptables."})
    assert (found["gone"], found["still"]) == ([], [])
    assert found["worse"] == ["It could not be judged afterwards: No iptables."]
    assert found["lines"][0] == found["worse"][0]
    assert compare(result(), {})["worse"] == ["It could not be judged afterwards: it gave no answer."]


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="worse_from is one of info, low"):
        compare(result(), result(), worse_from="severe")
    with pytest.raises(TypeError, match="two results of docker_fw_audit"):
        compare(result(), [])
