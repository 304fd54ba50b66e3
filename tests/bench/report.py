# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What reports of a big fleet take: to write, on disk, and until the page can be used in a browser. No host needed."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import typing as t

from ansible_collections.quaywall.docker.plugins.module_utils._audit._checks import audit
from ansible_collections.quaywall.docker.plugins.module_utils._audit._finding import SEVERITIES
from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import from_json
from ansible_collections.quaywall.docker.tests.unit.snapshots import Box, host

Result = dict[str, t.Any]

HOSTS: t.Final = 1_000
FINDINGS: t.Final = 20


def _situations() -> t.Iterator[Result]:
    """Findings of real audits: hosts of three engines with rules as people write them."""
    boxes = [
        Box("shop", "8080:8080"),
        Box("admin", "9000:8080"),
        Box("db", "5432:5432"),
        Box("mail", "25:25", "[::]:2525:25"),
        Box("cache", "127.0.0.1:6379:6379"),
        Box("api", "8443:443", "8081:80"),
    ]
    chains = (
        ["-p tcp -m tcp --dport 8080 -j DROP"],
        ["-i eth0 ! -s 203.0.113.0/24 -j DROP"],
        ["-d 172.17.0.2/32 -p tcp -m tcp --dport 8080 -j DROP", "-d 172.17.0.99/32 -j DROP"],
        ["-p tcp -m tcp --dport 443 -j ACCEPT", "-i eth0 -j DROP"],
        ["-p tcp -m conntrack --ctorigdstport 9000 -j DROP"],
        ["-p tcp -m tcp --dport 9000 -j DROP", "-j RETURN", "-p tcp -m tcp --dport 5432 -j DROP"],
    )
    for engine, rules in itertools.product(("20.10", "26.1", "28.5"), chains):
        for finding in audit(from_json(host(engine, boxes, rules))):
            yield finding.to_result()


def fleet(hosts: int = HOSTS, findings: int = FINDINGS) -> dict[str, Result]:
    """Results of so many audits. Names, addresses and ids are each host's own, so that hardly a text is there twice."""
    texts = [json.dumps(finding) for finding in _situations()]
    audits = {}
    for number in range(hosts):
        some = []
        for place in range(findings):
            text = texts[(number * 7 + place) % len(texts)]
            for name in ("shop", "admin", "db", "mail", "cache", "api"):
                text = text.replace(f'"{name}', f'"{name}-{number}').replace(f" {name} (", f" {name}-{number} (")
            text = text.replace("172.17.0.", f"172.{18 + number // 250}.{number % 250}.")
            finding = json.loads(text)
            finding["id"] = hashlib.sha256(f"{number} {place}".encode()).hexdigest()[:12]
            some.append(finding)
        some.sort(key=lambda finding: -SEVERITIES.index(finding["severity"]))
        audits[f"node{number:04d}.example.org"] = {"findings": some, "ignored": [], "msg": f"{findings} findings."}
    return audits


def write(audits: dict[str, Result], folder: pathlib.Path) -> float:
    """The seconds of the task that writes all reports, as Ansible runs it after an audit of so many hosts."""
    variables = {name: {"audit": result} for name, result in audits.items()}
    inventory = {"all": {"hosts": list(audits)}, "_meta": {"hostvars": variables}}
    (folder / "inventory.json").write_text(json.dumps(inventory), encoding="utf-8")
    script = folder / "inventory.sh"
    script.write_text(f"#!/bin/sh\ncat {folder}/inventory.json\n", encoding="utf-8")
    script.chmod(0o755)
    report = {"registered": "audit", "directory": str(folder / "reports")}
    task = {"name": "report", "run_once": True, "quaywall.docker.docker_fw_report": report}
    play = [{"hosts": "all", "connection": "local", "gather_facts": False, "tasks": [task]}]
    (folder / "playbook.json").write_text(json.dumps(play), encoding="utf-8")
    command = ["ansible-playbook", "-i", "inventory.sh", "playbook.json"]
    repository = pathlib.Path(__file__).resolve().parents[2]
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(repository / ".build"),
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "ANSIBLE_LOCALHOST_WARNING": "False",
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    document = json.loads(done.stdout[done.stdout.index("{") :])
    duration = document["plays"][0]["tasks"][0]["task"]["duration"]
    start, end = (time.mktime(time.strptime(duration[key][:19], "%Y-%m-%dT%H:%M:%S")) for key in ("start", "end"))
    fractions = [float("0" + duration[key][19:].rstrip("Z")) for key in ("start", "end")]
    return end - start + fractions[1] - fractions[0]


def usable(page_file: pathlib.Path, times: int) -> list[float]:
    """The seconds from opening the page, in a browser that just started, until a click on a filter was answered."""
    from playwright.sync_api import sync_playwright

    found = []
    with sync_playwright() as playwright:
        for _turn in range(times):
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
            page = browser.new_page()
            start = time.perf_counter()
            page.goto(page_file.as_uri(), wait_until="commit")
            page.wait_for_selector("html[data-ready]")
            page.click('.tile[data-severity="critical"]')
            page.wait_for_function("document.querySelectorAll('.finding .s-high, .finding .s-info').length === 0")
            found.append(time.perf_counter() - start)
            browser.close()
    return found


def rows(times: int) -> t.Iterator[tuple[str, list[float], float, str]]:
    """For each row its job, what was measured, the bound, and the unit."""
    audits = fleet()
    job = f"report of {HOSTS:,} hosts x {FINDINGS} findings"
    with tempfile.TemporaryDirectory(prefix="quaywall-bench-") as name:
        folder = pathlib.Path(name)
        yield f"{job}: task, all formats", [write(audits, folder) for _turn in range(times)], 10.0, "s"
        page = folder / "reports" / "audit.html"
        yield f"{job}: page", [page.stat().st_size / 2**20], 15.0, "MiB"
        yield f"{job}: until a filter is answered", usable(page, times), 2.0, "s"


if __name__ == "__main__":
    for row in rows(3):
        print(*row, file=sys.stderr)
