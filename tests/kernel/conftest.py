# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Machines for the tests, and the proof that the real one was left alone."""

from __future__ import annotations

import os
import re
import subprocess
import typing as t
from pathlib import Path

import pytest

from .lab import ROOT, VARIANTS, Host, environment

if t.TYPE_CHECKING:
    from collections.abc import Iterator

# Docker comes and goes on a developer's machine (the test bed is made of it); what it names are its networks.
_DOCKER_NETWORK = re.compile(r"br-[0-9a-f]{12}|docker0|veth[0-9a-f]+")


def _machine() -> dict[str, t.Any]:
    """What the tests could have changed on the machine if they had left their namespaces."""
    done = subprocess.run(
        ["nft", "--stateless", "list", "ruleset"], capture_output=True, check=True, env=environment(), text=True
    )
    names = ("ip_tables_names", "ip6_tables_names")
    sysctls = ("ipv4/ip_forward", "ipv4/icmp_ratelimit", "ipv6/icmp/ratelimit", "bridge/bridge-nf-call-iptables")
    return {
        "rules": [line for line in done.stdout.splitlines() if not _DOCKER_NETWORK.search(line)],
        "tables": [(Path("/proc/thread-self/net") / name).read_text(encoding="ascii") for name in names],
        "sysctls": [
            path.read_text(encoding="ascii")
            for path in (Path("/proc/sys/net") / name for name in sysctls)
            if path.exists()
        ],
        "network": os.readlink("/proc/thread-self/ns/net"),
        "mounts": os.readlink("/proc/thread-self/ns/mnt"),
    }


@pytest.fixture(scope="session", autouse=True)
def machine_is_left_alone() -> Iterator[None]:
    before = _machine()
    yield
    assert _machine() == before


@pytest.fixture(scope="session", autouse=True)
def root_is_needed() -> None:
    # In CI a skip is a failure (conftest.py at the top); at home the other layers go on without root.
    if os.geteuid() != 0:
        pytest.skip("Network namespaces need root: run `make kernel` as root.")


@pytest.fixture
def host() -> Iterator[Host]:
    with Host() as made:
        yield made


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with captures of real hosts and public rule sets, which is not part of the repository."""
    folder = Path(os.environ.get("QUAYWALL_SHARED") or ROOT.parent / "shared")
    if not (folder / "captures").is_dir() or not (folder / "rulesets").is_dir():
        pytest.skip("%s has no captures/ and rulesets/: set QUAYWALL_SHARED to the folder that has them." % folder)
    return folder
