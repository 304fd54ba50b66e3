# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The fleet: twelve real hosts, one set for all tests. The tests run in their order: those that only look come first.

``QUAYWALL_BED`` sets the bed's name, ``QUAYWALL_BED_KEEP=1`` leaves it running, as in tests/hosts.
"""

from __future__ import annotations

import os
import pathlib
import typing as t

import pytest

from fleet.fleet import Fleet
from testbed import Bed

BED = f"{os.environ.get('QUAYWALL_BED') or 'quaywall'}-fleet"


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Fleet]:
    """All hosts, in the state that each is to be in."""
    bed = Bed(BED)
    keep = os.environ.get("QUAYWALL_BED_KEEP") == "1"
    try:
        fleet = Fleet(bed, tmp_path_factory.mktemp("fleet"))
        fleet.up()
        yield fleet
    finally:
        if keep:
            bed.close()
        else:
            bed.down()


@pytest.fixture
def place(tmp_path: pathlib.Path) -> pathlib.Path:
    """An empty folder, where a person would be."""
    return tmp_path
