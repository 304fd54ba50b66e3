# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs on the host: how often a process wakes up by itself while nothing happens.

<process> <seconds>     prints {"wake-ups": n of all threads, "cpu": s with its children, "mebibytes": m}
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import sys
import time


def wake_ups(process: pathlib.Path) -> int:
    states = [(thread / "status").read_text(encoding="ascii") for thread in (process / "task").iterdir()]
    return sum(
        int(number)
        for state in states
        for number in re.findall(r"^voluntary_ctxt_switches:\s+(\d+)", state, re.MULTILINE)
    )


def cpu(process: pathlib.Path) -> float:
    """User and system time, that of children that are done included."""
    fields = (process / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    process = pathlib.Path("/proc", sys.argv[1])
    before = wake_ups(process), cpu(process)
    time.sleep(float(sys.argv[2]))
    after = wake_ups(process), cpu(process)
    found = re.search(r"^VmRSS:\s+(\d+) kB", (process / "status").read_text(encoding="ascii"), re.MULTILINE)
    memory = int(found.group(1)) / 1024 if found else 0.0
    print(json.dumps({"wake-ups": after[0] - before[0], "cpu": after[1] - before[1], "mebibytes": memory}))


if __name__ == "__main__":
    main()
