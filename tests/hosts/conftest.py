# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One bed for all tests on real Docker hosts.

``QUAYWALL_BED`` sets its name, so that two people can test on one machine; ``QUAYWALL_BED_KEEP=1`` leaves it
running, for a look at what a failing test left and for a quicker next run. ``QUAYWALL_HOSTS_PART`` chooses a part of
the tests, each with a bed of its own (tests/hosts/run): a suite's name for those that run once on a host of each suite,
``rest`` for the others.
"""

from __future__ import annotations

import concurrent.futures
import os
import typing as t

import pytest

from testbed import SUITES, Bed, Client, Host, HostSpec

PART: t.Final = os.environ.get("QUAYWALL_HOSTS_PART") or ""
BED: t.Final = "-".join(filter(None, (os.environ.get("QUAYWALL_BED") or "quaywall", "pytest", PART)))

_BY_SUITE: t.Final = ("docker_host", "installed")
"""The fixtures that are a host of one suite after the other."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not PART:
        return
    if PART != "rest" and PART not in SUITES:
        raise pytest.UsageError(f"QUAYWALL_HOSTS_PART is one of {', '.join(SUITES)} and rest, not {PART!r}.")
    mine = [item for item in items if _part_of(item) == PART]
    config.hook.pytest_deselected(items=[item for item in items if item not in mine])
    items[:] = mine


def _part_of(item: pytest.Item) -> str:
    """The suite, for a test that needs one host of it and nothing else."""
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    return next((str(parameters[name]) for name in _BY_SUITE if name in parameters), "rest")


@pytest.fixture(scope="session")
def bed() -> t.Iterator[Bed]:
    """A host of each suite, or of the one whose part it is, and a client."""
    bed = Bed(BED)
    try:
        bed.up([PART] if PART in SUITES else SUITES)
        yield bed
    finally:
        if os.environ.get("QUAYWALL_BED_KEEP") == "1":
            bed.close()
        else:
            bed.down()


@pytest.fixture(scope="session")
def client(bed: Bed) -> Client:
    """Where packets come from."""
    return bed.client


@pytest.fixture
def hosts(bed: Bed) -> list[Host]:
    """A host of each suite, empty."""
    hosts = [bed.host(name) for name in SUITES]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(Host.reset, hosts))
    return hosts


@pytest.fixture(params=SUITES)
def docker_host(bed: Bed, request: pytest.FixtureRequest) -> Host:
    """One host after the other, each empty: the test runs once per suite."""
    host = bed.host(request.param)
    host.reset()
    return host


@pytest.fixture(scope="session")
def _legacy_host(bed: Bed) -> Host:
    bed.up([HostSpec("legacy", suite="bookworm", iptables="legacy")])
    return bed.host("legacy")


@pytest.fixture
def legacy_host(_legacy_host: Host) -> Host:
    """A host whose iptables is iptables-legacy, empty."""
    _legacy_host.reset()
    return _legacy_host


@pytest.fixture
def start_host(bed: Bed) -> t.Iterator[t.Callable[[HostSpec], Host]]:
    """Start a host of a special kind for one test."""
    started = []

    def start(spec: HostSpec) -> Host:
        started.append(spec.name)
        bed.up([spec])
        return bed.host(spec.name)

    yield start
    for name in started:
        bed.remove(name)
