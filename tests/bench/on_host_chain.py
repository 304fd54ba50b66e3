# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs on the host: a module that writes all its rules, and then finds them there; each time in a process of its own.

<repetitions> <arguments> <script> <command …>     the script brings the host to where nothing is yet; prints
{"nothing": [{"wall": s, "cpu": s}, …], "no change": […], "rules": n, "guard": n, "networks": n}
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time


def run(command: list[str], given: str, changes: bool) -> dict[str, float]:
    result = pathlib.Path(given + ".result")
    with open(given, "rb") as stdin, result.open("wb") as stdout:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdin=stdin, stdout=stdout)
        # Of the process and of the children that it waited for.
        _pid, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
    text = result.read_text(encoding="utf-8")
    if os.waitstatus_to_exitcode(status) or json.loads(text).get("changed") is not changes:
        sys.exit(f"it failed, or changed something or nothing: {text[:2000]}")
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime}


def count(command: list[str], what: str) -> int:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.count(what)


def main() -> None:
    repetitions, given, script, *command = sys.argv[1:]
    measured: dict[str, list[dict[str, float]]] = {"nothing": [], "no change": []}
    for _turn in range(int(repetitions)):
        subprocess.run(["sh", script], check=True)
        measured["nothing"].append(run(command, given, True))
        measured["no change"].append(run(command, given, False))
    counts = {
        "rules": count(["iptables-save", "-t", "filter"], "\n-A DOCKER-USER "),
        "guard": count(["iptables-save", "-t", "mangle"], "\n-A QUAYWALL-"),
        "networks": count(["ipset", "save"], "\nadd "),
    }
    print(json.dumps({**measured, **counts}))


if __name__ == "__main__":
    main()
