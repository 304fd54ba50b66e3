#!/usr/bin/python

# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_fw_report
short_description: Write reports about the audits of many hosts, on the controller
version_added: 1.0.0
author:
  - The quaywall.docker authors (@quaywall)
description:
  - Takes what M(quaywall.docker.docker_fw_audit) returned on many hosts, and writes a web page for people, SARIF for
    code-scanning pages, JUnit XML for CI services, metrics for Prometheus, and JSON Lines.
  - Compares with an earlier run if there is one, and says which findings are new, still there, or gone.
  - A host whose audit failed, or that could not be reached, stands in each report with the reason, and never keeps
    the others out.
  - Runs on the controller only, and asks no host. Run it once for all hosts, with C(run_once).
extends_documentation_fragment:
  - quaywall.docker._attributes
attributes:
  check_mode:
    support: full
    details:
      - The reports are written in check mode, too. They are what the play says, and no state of a managed system.
  diff_mode:
    support: none
  idempotent:
    support: full
    details:
      - RV(ignore:changed) is always V(false). The reports have the time in them.
  platform:
    support: full
    platforms: all
  action:
    description:
      - Indicates this has a corresponding action plugin so some parts of the options can be executed on the controller.
    support: full
options:
  audits:
    description:
      - The result of M(quaywall.docker.docker_fw_audit) by the name of its host. One that failed (C(failed)) or did not
        reach its host (C(unreachable)) is reported with its C(msg).
      - What is no result of an audit makes its host one that failed.
      - One of O(audits) and O(registered) is needed.
    type: dict
  registered:
    description:
      - The name of the variable in which the audit's result is registered on each host, in place of O(audits). A host
        without it is one that failed.
      - For many hosts this is much faster than O(audits), in which Ansible looks at every single text.
    type: str
  hosts:
    description:
      - The hosts of O(registered). By default all hosts of the play, those that failed or were not reached too
        (C(ansible_play_hosts_all)).
    type: list
    elements: str
  directory:
    description:
      - The folder for the reports, on the controller. It is made if it is missing. A relative path starts where Ansible
        was started.
      - The files are C(audit.html), C(audit.sarif), C(audit.junit.xml), C(audit.jsonl) and C(metrics/HOST.prom). What
        is there is written over, each file whole or not at all. Metrics of hosts that are not in this report stay.
    type: path
    required: true
  formats:
    description:
      - What to write.
      - V(html) is one page for all hosts. It needs no network, and a browser of 2023 or later.
      - V(sarif) is SARIF 2.1.0, with a rule for each check and a result for each finding. A rule's C(security-severity)
        is that of its most severe finding in this run.
      - V(junit) is JUnit XML, with a suite for each host and a case for each check.
      - V(prometheus) are metrics for the textfile collector of node_exporter, a file for each host.
      - V(jsonl) is JSON Lines, see the notes. A later run can be compared with it.
    type: list
    elements: str
    choices: [html, sarif, junit, prometheus, jsonl]
    default: [html, sarif, junit, prometheus, jsonl]
  previous:
    description:
      - The C(audit.jsonl) of an earlier run, on the controller. It may be the one in O(directory), which is read before
        it is written over.
      - A finding is the same if its host and its C(id) are. Findings of hosts that are not judged this time are neither
        gone nor there. They are kept in C(audit.jsonl), so that the next run can be compared with them. Hosts that
        this report is not about are listed, and not kept.
    type: path
  title:
    description: The title of the page.
    type: str
    default: Container firewall audit
  junit_fail_on:
    description: In V(junit), findings of this severity or a higher one are failures. Others are the case's output.
    type: str
    choices: [none, info, low, medium, high, critical]
    default: low
notes:
  - Each line of C(audit.jsonl) is a JSON object with C(quaywall_report), the version of the format, which is 1, and
    C(type). The first is the C(run), with C(at), C(title), C(collection_version), C(hosts), C(summary), C(comparison)
    and C(earlier_at). Then comes each C(host), with C(host), C(state) (V(judged), V(failed) or V(unreachable)),
    C(message) and C(summary), and after it each C(finding) of it, which has C(host), C(status) (V(new), V(still),
    V(gone), V(not_judged), or null where there was no earlier run) and what
    RV(quaywall.docker.docker_fw_audit#module:findings) or RV(quaywall.docker.docker_fw_audit#module:ignored) have.
  - The metrics are C(quaywall_audit_success), C(quaywall_audit_timestamp_seconds),
    C(quaywall_audit_findings) by C(check) and C(severity), C(quaywall_audit_severity_findings) by C(severity),
    C(quaywall_audit_ignored_findings) by C(check) and C(severity), and C(quaywall_audit_compared_findings) by
    C(status). Each has the label C(host). A host that was not judged has no numbers of findings.
  - A text that came from a host, and that Ansible would take for a template, is C(!unsafe) in the tasks of the page.
seealso:
  - module: quaywall.docker.docker_fw_audit
"""

EXAMPLES = r"""
# In a play over all hosts. With ignore_errors, and ignore_unreachable: true for the play, hosts that cannot be judged
# or reached go on to the report, which says why.
- name: Judge the host
  quaywall.docker.docker_fw_audit:
  register: audit
  ignore_errors: true # noqa: ignore-errors

- name: Write the reports
  quaywall.docker.docker_fw_report:
    registered: audit
    directory: reports
  run_once: true

- name: Say what is new since the last run
  quaywall.docker.docker_fw_report:
    registered: audit
    directory: reports
    previous: reports/audit.jsonl
    formats: [html, jsonl]
  register: report
  run_once: true

- name: Fail if there is something new
  ansible.builtin.assert:
    that: report.comparison.new == 0
    fail_msg: "{{ report.msg }}"
  run_once: true

- name: Report about snapshots that were judged in a loop, without any host
  quaywall.docker.docker_fw_report:
    audits: "{{ dict(judged.results | map(attribute='item') | zip(judged.results)) }}"
    directory: reports
"""

RETURN = r"""
msg:
  description: What was found, in a line. When something could not be written, which file and why.
  type: str
  returned: always
  sample: >-
    12 hosts (11 judged, 1 unreachable), 3 findings (1 critical, 2 info). The reports are in /srv/reports.
files:
  description: The files that were written, by format.
  type: dict
  returned: success, or failure because a file could not be written
  contains:
    html:
      description: The page.
      type: str
      sample: /srv/reports/audit.html
    sarif:
      description: The SARIF file.
      type: str
      sample: /srv/reports/audit.sarif
    junit:
      description: The JUnit XML file.
      type: str
      sample: /srv/reports/audit.junit.xml
    jsonl:
      description: The JSON Lines file.
      type: str
      sample: /srv/reports/audit.jsonl
    prometheus:
      description: The files of metrics, one for each host.
      type: list
      elements: str
      sample: [/srv/reports/metrics/web1.prom]
hosts:
  description: How many hosts were C(judged), C(failed) or were C(unreachable).
  type: dict
  returned: success, or failure because a file could not be written
  sample: {"judged": 11, "failed": 0, "unreachable": 1}
summary:
  description: How many findings there are of each severity on all hosts, without those that are ignored.
  type: dict
  returned: success, or failure because a file could not be written
  sample: {"critical": 1, "high": 0, "medium": 0, "low": 0, "info": 2}
comparison:
  description: >-
    How many findings are C(new), C(still) there, C(gone), or C(not_judged) as their host was not, against O(previous).
    Null without it.
  type: dict
  returned: success, or failure because a file could not be written
  sample: {"new": 1, "still": 2, "gone": 0, "not_judged": 4}
"""
