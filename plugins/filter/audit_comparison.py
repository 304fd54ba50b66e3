# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: audit_comparison
short_description: Say what an audit found that an earlier one of the same host did not
version_added: 1.0.0
author:
  - The quaywall.docker authors (@quaywall)
description:
  - Compares two results of M(quaywall.docker.docker_fw_audit) for one host, before and after something was done to it.
  - Findings are the same if their RV(quaywall.docker.docker_fw_audit#module:findings[].id) is.
  - A rule that stands for another has findings with ids of their own. What is new is therefore worse only if it touches
    a published port of a container that no finding of the same check, of the same IP version, and at least as severe,
    touched before. The checks V(ipv6_gap), V(proxy_bypass) and V(direct_routing) find a port that is closed in one way
    and open in another, and nothing where it is open in both. What they find newly is therefore no worse either if the
    port had a finding of any check that was at least as severe.
positional: after
options:
  _input:
    description: The earlier result.
    type: dict
    required: true
  after:
    description: The later result.
    type: dict
    required: true
  worse_from:
    description: What is less severe is never worse.
    type: str
    choices: [info, low, medium, high, critical]
    default: high
"""

EXAMPLES = r"""
- name: Judge the host before
  quaywall.docker.docker_fw_audit:
  register: before

- name: Only the office reaches the admin UI
  quaywall.docker.docker_user_rule:
    name: admin-ui
    container: admin
    source: [203.0.113.10/32]
    action: accept

- name: Judge the host after
  quaywall.docker.docker_fw_audit:
  register: after

- name: See that it is no worse
  ansible.builtin.assert:
    that: comparison.worse | length == 0
    fail_msg: "{{ comparison.worse | join('\n') }}"
  vars:
    comparison: "{{ before | quaywall.docker.audit_comparison(after, worse_from='critical') }}"
"""

RETURN = r"""
_value:
  description: What became of the findings.
  type: dict
  contains:
    gone:
      description: The findings that are not there any more.
      type: list
      elements: dict
    still:
      description: The findings that are still there, as they are now.
      type: list
      elements: dict
    new:
      description: The findings that were not there before.
      type: list
      elements: dict
    worse:
      description: >-
        A line for each new finding that makes the host worse, and one if it was judged before and could not be judged
        after.
      type: list
      elements: str
    lines:
      description: All of it for people, a line each. Findings of the severity V(info) are counted only.
      type: list
      elements: str
      sample: ["1 gone, 0 still there, 0 new."]
"""

import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import INFO, SEVERITIES

Finding = t.Mapping[str, t.Any]


#: Checks for a port that is closed in one way and open in another: of one that was open in both they say nothing, so
#: that a rule which closes the one makes nothing worse.
ANOTHER_WAY = ("ipv6_gap", "proxy_bypass", "direct_routing")


def audit_comparison(before: t.Any, after: t.Any, worse_from: str = "high") -> t.Dict[str, t.Any]:
    """The filter."""
    if worse_from not in SEVERITIES:
        raise ValueError("audit_comparison: worse_from is one of %s." % ", ".join(SEVERITIES))
    if not isinstance(before, t.Mapping) or not isinstance(after, t.Mapping):
        raise TypeError("audit_comparison compares two results of docker_fw_audit.")
    old: t.Sequence[Finding] = before.get("findings", ())
    now: t.Sequence[Finding] = after.get("findings", ())
    judged = "findings" in after
    old_ids, new_ids = {item["id"] for item in old}, {item["id"] for item in now}
    # Of a host that was not judged nobody knows what is gone.
    gone = [item for item in old if item["id"] not in new_ids] if judged else []
    still = [item for item in now if item["id"] in old_ids]
    new = [item for item in now if item["id"] not in old_ids]
    lines, worse = [], []
    if not judged:
        lines.append("It could not be judged afterwards: %s" % after.get("msg", "it gave no answer."))
        worse += lines
    lines.append("%d gone, %d still there, %d new." % (len(gone), len(still), len(new)))
    for word, findings in (("gone", gone), ("still there", still), ("new", new)):
        lines += ["%s: %s %s" % (word, item["id"], _text(item)) for item in findings if item["severity"] != INFO]
    least = SEVERITIES.index(worse_from)
    worse += ["Worse than before: %s" % _text(item) for item in new if _rank(item) >= least and _is_more(item, old)]
    return {"gone": gone, "still": still, "new": new, "worse": worse, "lines": lines}


def _rank(finding: Finding) -> int:
    return SEVERITIES.index(finding["severity"])


def _text(finding: Finding) -> str:
    return "%s: %s: %s" % (finding["severity"].upper(), finding["check"], finding["message"])


def _is_more(finding: Finding, old: t.Iterable[Finding]) -> bool:
    """Whether a new finding touches more than those of its kind did before."""
    touched = set(_touched(finding))
    known = {
        place
        for item in old
        if _rank(item) >= _rank(finding)
        and (
            finding["check"] in ANOTHER_WAY or (item["check"], item["family"]) == (finding["check"], finding["family"])
        )
        for place in _touched(item)
    }
    return not touched or not touched <= known


def _touched(finding: Finding) -> t.Iterator[t.Tuple[str, str]]:
    for item in finding["affected"]:
        yield item["container"], item["published"]


class FilterModule:
    """The filter, for Ansible."""

    def filters(self) -> t.Dict[str, t.Callable[..., t.Any]]:
        return {"audit_comparison": audit_comparison}
