# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs on the host: what modules take there, as Ansible sent them. All in turn, again and again.

<repetitions> <name>=<file> …     prints {name: [{"wall": s, "cpu": s}, …]}
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time


def run(file: str) -> dict[str, float]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run([sys.executable, file], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode or json.loads(done.stdout).get("changed"):
        sys.exit(f"{file}: it failed or changed something: {done.stdout!r} {done.stderr!r}")
    return {"wall": wall, "cpu": after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime}


def main() -> None:
    repetitions = int(sys.argv[1])
    files = dict(argument.split("=", 1) for argument in sys.argv[2:])
    times: dict[str, list[dict[str, float]]] = {name: [] for name in files}
    for file in files.values():
        run(file)  # what was never read from the disk is read now
    for repetition in range(repetitions):
        # Nobody is always the one who comes first.
        names = list(files) if repetition % 2 else list(files)[::-1]
        for name in names:
            times[name].append(run(files[name]))
    print(json.dumps(times))


if __name__ == "__main__":
    main()
