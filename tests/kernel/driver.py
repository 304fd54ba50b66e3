# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Processes that tests start on a machine: C(python -m kernel.driver WHAT ...)."""

from __future__ import annotations

import select
import socket
import sys


def packets(address: str, port: str) -> None:
    """Send UDP packets until standard input ends; then say how many."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", (address, int(port)))
        print("started", flush=True)
        sent = 1
        while not select.select([sys.stdin], [], [], 0)[0]:
            for index in range(20):
                sender.sendto(b"%d" % index, (address, int(port)))
                sent += 1
    print(sent, flush=True)


def main() -> None:
    commands = {"packets": packets}
    commands[sys.argv[1]](*sys.argv[2:])


if __name__ == "__main__":
    main()
