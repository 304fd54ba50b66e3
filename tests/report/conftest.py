# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reports on disk, as the collection writes them, and a real browser that looks at the page."""

from __future__ import annotations

import contextlib
import os
import shutil
import typing as t
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from ansible_collections.quaywall.docker.plugins.action import docker_fw_report
from ansible_collections.quaywall.docker.plugins.plugin_utils._report import _lines
from ansible_collections.quaywall.docker.tests.unit.reports import AT, audits, hostile, report

if t.TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


def _write(folder: Path, results: dict[str, t.Any], before: dict[str, t.Any] | None = None) -> Path:
    """All formats of a report, compared with an earlier run where there is one."""
    earlier = None
    if before is not None:
        earlier = _lines.read("".join(_lines.render(report(before, at=AT - 86400))), "audit.jsonl")
    _files, faults = docker_fw_report.write(report(results, earlier), str(folder), docker_fw_report.FORMATS, "low")
    assert faults == []
    return folder


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reports of real audits, against a run in which web1 had one finding less and another one, and away was judged."""
    now = audits()
    before = audits()
    first, *rest = before["web1"]["findings"]
    before["web1"]["findings"] = [*rest, dict(first, id="0" * 12, message="It was so.")]
    before["away"] = before["web2"]
    return _write(tmp_path_factory.mktemp("real"), now, before)


@pytest.fixture(scope="session")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reports in which every text that can come from a host is hostile."""
    return _write(tmp_path_factory.mktemp("evil"), hostile(audits()["web1"]))


@pytest.fixture(scope="session")
def browser() -> t.Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    assert program, "no Chromium here: make setup-report"
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=arguments)
        yield started
        started.close()


@pytest.fixture
def write() -> t.Callable[[Path, dict[str, t.Any]], Path]:
    return _write


class Opener:
    """Opens pages, and says what happened on them that must not."""

    def __init__(self, browser: Browser, stack: contextlib.ExitStack) -> None:
        self.browser = browser
        self.stack = stack
        self.faults: list[str] = []

    def __call__(self, folder: Path, address: str = "", ready: bool = True, script: str = "", **options: t.Any) -> Page:
        """The page of a folder's reports.

        :param options: of the browser's context: C(color_scheme), C(viewport) and so on.
        """
        context = self.browser.new_context(**options)
        self.stack.callback(context.close)
        if script:
            context.add_init_script(script)
        page = context.new_page()
        uri = (folder / "audit.html").as_uri()
        page.on(
            "request", lambda request: request.url.startswith(uri) or self.faults.append("asked for " + request.url)
        )
        page.on("dialog", lambda dialog: (self.faults.append("dialog: " + dialog.message), dialog.dismiss()))
        page.on("console", lambda message: self.faults.append(message.text))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.goto(uri + address)
        if ready:
            page.wait_for_selector("html[data-ready]")
        return page


@pytest.fixture
def opened(browser: Browser) -> t.Iterator[Opener]:
    """Opens pages; a test in which one asked for anything, or complained, has failed."""
    with contextlib.ExitStack() as stack:
        opener = Opener(browser, stack)
        yield opener
        assert opener.faults == []
