# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What tracing takes, over a snapshot that is in memory already. Runs on the host.

    python3 on_host_trace.py <repetitions> <sources> <ports> <snapshot>

Prints JSON, a list for each of: ``parsed`` (the snapshot as text to its value), ``first`` (one packet, with all that is
made of the rules for it), ``walk`` (the next packets, each to another port), ``table`` (all sources to all ports), and
``mebibytes`` (the most memory so far, once for each repetition).
"""

from __future__ import annotations

import json
import pathlib
import resource
import sys
import time


def main() -> None:
    from ansible_collections.quaywall.docker.plugins.module_utils._reach import Judge, Question
    from ansible_collections.quaywall.docker.plugins.module_utils._snapshot import from_json

    repetitions, sources, ports, path = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    document = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    found: dict[str, list[float]] = {name: [] for name in ("parsed", "first", "walk", "table", "mebibytes")}
    for _turn in range(repetitions):
        start = time.perf_counter()
        snapshot = from_json(document)
        found["parsed"].append(time.perf_counter() - start)
        start = time.perf_counter()
        judge = Judge(snapshot)
        published = [
            ("tcp", item.binding.host_port)
            for item in judge.survey.family("ipv4").published
            if item.binding.protocol == "tcp" and item.binding.host_address in ("", "0.0.0.0")
        ]
        judge.answer(Question("198.18.7.7", "", published[0][1]))
        found["first"].append(time.perf_counter() - start)
        for protocol, port in published[1:21]:
            start = time.perf_counter()
            judge.answer(Question("198.19.9.9", "", port, protocol))
            found["walk"].append(time.perf_counter() - start)
        if sources:
            judge = Judge(snapshot)
            asked = ["198.18.%d.%d" % (number % 256, number % 250 + 1) for number in range(sources)]
            # Where fewer are published, others are asked for again.
            wanted = [published[number % len(published)] for number in range(ports)]
            start = time.perf_counter()
            judge.table(asked, wanted)
            found["table"].append(time.perf_counter() - start)
        found["mebibytes"].append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
