# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Real Docker hosts for tests: system containers with their own dockerd, and a client that sends packets.

>>> with Bed("mine") as bed:
...     bed.up([HostSpec("bookworm")])
...     bed.host("bookworm").run_workload("web", publish=["9000:8080"])
...     assert bed.client.connect(bed.host("bookworm").address(4), 9000, source=OFFICE).who == "web"
"""

from __future__ import annotations

from .engine import BedError, Engine, outer_engine
from .hosts import OFFICE, STRANGER, Bed, Client, Host, HostSpec, Source, Workload
from .images import SUITES, build_images
from .probe import Probe, StormReport

__all__ = [
    "OFFICE",
    "STRANGER",
    "SUITES",
    "Bed",
    "BedError",
    "Client",
    "Engine",
    "Host",
    "HostSpec",
    "Probe",
    "Source",
    "StormReport",
    "Workload",
    "build_images",
    "outer_engine",
]
