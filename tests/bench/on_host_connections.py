# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs on the host, in a network namespace beside it: tries connections through the host, one after the other.

<turns> <seconds> <address> <port> …     all ports in turn; prints {port: [seconds of one connection, …]}

Where the ports lead to nobody listens: a server would be what is measured. The refusal proves that the host let both
the attempt and the answer through.
"""

from __future__ import annotations

import errno
import json
import socket
import sys
import time


def connect(seconds: float, address: str, port: int) -> float:
    """How long one connection takes, of as many as there is time for."""
    done = 0
    start = time.perf_counter()
    while (now := time.perf_counter()) < start + seconds:
        with socket.socket() as client:
            client.settimeout(2)
            answer = client.connect_ex((address, port))
        if answer != errno.ECONNREFUSED:
            sys.exit(f"{address} port {port}: not refused by the container, but {errno.errorcode.get(answer, answer)}")
        done += 1
    return (now - start) / done


def main() -> None:
    turns, seconds, address, *ports = sys.argv[1:]
    measured: dict[str, list[float]] = {port: [] for port in ports}
    for port in ports:
        connect(0.2, address, int(port))
    for turn in range(int(turns)):
        for port in ports if turn % 2 else ports[::-1]:
            measured[port].append(connect(float(seconds), address, int(port)))
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
