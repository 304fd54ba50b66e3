# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs on the host, in a network namespace beside it: opens connections through the host, one after the other.

<turns> <seconds> <address> <port> …     all ports in turn; prints {port: [seconds of one connection, …]}
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import time

# A connection that is closed so leaves nothing behind: there are only so many ports.
RESET = struct.pack("ii", 1, 0)


def connect(seconds: float, address: str, port: int) -> float:
    """How long one connection takes, of as many as there is time for."""
    done = 0
    start = time.perf_counter()
    while (now := time.perf_counter()) < start + seconds:
        with socket.socket() as client:
            client.settimeout(2)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.connect((address, port))
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
