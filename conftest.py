# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""For every pytest session of this repository: tests/ and Molecule's verifiers alike, which is why it is at the top."""

from __future__ import annotations

import os
import sys

import pytest

try:
    import hypothesis
except ImportError:  # a session that only looks at hosts may do without
    pass
else:
    # A slow machine is not a failure; the blob replays a failing example anywhere.
    hypothesis.settings.register_profile("dev", deadline=None, print_blob=True)
    # The same examples each time: what CI says of a commit hangs on the commit alone. `make unit` looks for new ones.
    hypothesis.settings.register_profile("ci", deadline=None, print_blob=True, max_examples=300, derandomize=True)
    # The same laws again on another Python: what differs there is found by a few.
    hypothesis.settings.register_profile("versions", deadline=None, print_blob=True, max_examples=20, derandomize=True)
    hypothesis.settings.load_profile(os.environ.get("QUAYWALL_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))


def _skips_fail() -> bool:
    return os.environ.get("CI") == "true" or os.environ.get("QUAYWALL_NO_SKIP") == "1"


class _NoSkips:
    """Fails a session in which a test was skipped: a machine that cannot run a test has not passed it."""

    def __init__(self) -> None:
        self.skipped: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # An expected failure is reported as skipped too.
        if report.skipped:
            self.skipped.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.skipped.append(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.skipped and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.skipped:
            terminalreporter.write_line(f"{len(self.skipped)} skipped, which counts as a failure here", red=True)


def pytest_configure(config: pytest.Config) -> None:
    # ansible-playbook is beside this Python, also where nobody activated its environment.
    folder = os.path.dirname(sys.executable)
    if folder not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join(filter(None, (folder, os.environ.get("PATH"))))
    if _skips_fail():
        config.pluginmanager.register(_NoSkips(), "quaywall-no-skips")
