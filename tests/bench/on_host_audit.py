# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs on the host: the module docker_fw_audit over a snapshot, each time in a process of its own.

<repetitions> <snapshot> <command …>     prints [{"seconds": s, "mebibytes": m}, …]
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time


def main() -> None:
    repetitions, snapshot, *command = sys.argv[1:]
    document = json.loads(pathlib.Path(snapshot).read_text(encoding="utf-8"))
    arguments = json.dumps({"ANSIBLE_MODULE_ARGS": {"snapshot": document, "_ansible_remote_tmp": "/tmp"}})
    given = pathlib.Path(snapshot + ".arguments")
    given.write_text(arguments, encoding="utf-8")
    measured = []
    for _turn in range(int(repetitions)):
        with given.open("rb") as stdin, open(snapshot + ".result", "wb") as stdout:
            start = time.perf_counter()
            process = subprocess.Popen(command, stdin=stdin, stdout=stdout)
            _pid, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - start
        if os.waitstatus_to_exitcode(status):
            sys.exit(pathlib.Path(snapshot + ".result").read_text(encoding="utf-8")[-2000:])
        measured.append({"seconds": seconds, "mebibytes": usage.ru_maxrss / 1024})
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
