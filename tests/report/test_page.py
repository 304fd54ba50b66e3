# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The page in a browser: what it shows, filters, keys, both colour schemes, a phone, paper, and hostile texts."""

from __future__ import annotations

import re
import time
import typing as t

import pytest
from axe_playwright_python.sync_playwright import Axe

from ansible_collections.quaywall.docker.plugins.plugin_utils._report import _lines
from ansible_collections.quaywall.docker.tests.unit.reports import audits, hostile, report

if t.TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Page

PHONE: t.Final = {"viewport": {"width": 360, "height": 740}}
REAL = report(audits())


def shown(page: Page) -> list[tuple[str, str]]:
    """The findings that are listed: severity and check."""
    rows: list[list[str]] = page.evaluate(
        "[...document.querySelectorAll('.finding')].map((item) =>"
        " [item.querySelector('.badge').textContent, item.querySelector('.fold b').textContent])"
    )
    return [(row[0], row[1]) for row in rows]


def hosts(page: Page) -> list[str]:
    """The hosts in the list."""
    names: list[str] = page.locator("#hosts li:not([hidden]) .name").all_inner_texts()
    return names


def until(page: Page, expression: str, arg: t.Any = None) -> None:
    """Wait until this holds. Playwright's own way to wait would evaluate text in the page, which its policy forbids."""
    limit = time.monotonic() + 20
    while not page.evaluate(expression, arg):
        assert time.monotonic() < limit, expression
        page.wait_for_timeout(30)


def said(page: Page, sentence: str) -> None:
    """Wait until the page says so."""
    until(page, "(text) => document.getElementById('said').textContent === text", arg=sentence)


def focused(page: Page) -> str:
    text: str = page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()")
    return text


def found(*severities: str) -> list[tuple[str, str]]:
    """What was found on the fleet, as the audits returned it."""
    return sorted(
        (item.finding.severity, item.finding.check)
        for host in REAL.hosts
        for item in host.items
        if not severities or item.finding.severity in severities
    )


# What it shows -------------------------------------------------------------------------------------------------------


def test_the_summary(real: Path, opened: t.Any) -> None:
    page = opened(real)
    assert page.title() == "Audit"
    total = sum(REAL.summary.values())
    lead = f"{total} findings found on 5 hosts; 1 host could not be judged and 1 host could not be reached."
    assert page.inner_text(".lead") == lead
    for severity, count in REAL.summary.items():
        assert page.inner_text(f'.tile[data-severity="{severity}"] .number') == str(count)
    said(page, f"{total} findings on 4 hosts.")
    assert sorted(shown(page)) == found()
    order = hosts(page)
    assert {"db1", "web1", "web2"} == set(order[:3])
    # Nobody knows of these; then comes what is well.
    assert order[-3:] == ["away", "broken", "quiet"]
    assert "Failed to connect to the host via ssh." in page.inner_text('#hosts li:has-text("away")')


def test_a_finding_says_it_all(real: Path, opened: t.Any) -> None:
    page = opened(real, "#host=web1")
    page.click(".fold >> nth=0")
    finding = page.locator(".finding").first
    text = finding.inner_text()
    assert "-p tcp -m tcp --dport 8080 -j DROP" in text
    assert "IPv4 DOCKER-USER rule 1" in text
    groups = {group.locator("p").inner_text(): group.inner_text() for group in finding.locator(".group").all()}
    # As they are published: 8080 to shop, for which the rule was meant, 9000 to admin.
    assert "admin 9000->8080/tcp" in groups["\u2715 Not meant (1)"]
    assert "shop 8080->8080/tcp" in groups["\u2713 Meant (1)"]
    assert "Who gains access by it" in text
    assert finding.get_by_role("button", name="Copy tasks").is_visible()


def test_the_way_of_a_connection(real: Path, opened: t.Any) -> None:
    page = opened(real, "#host=web1")
    stations = {
        station.get_attribute("data-station"): station.get_attribute("aria-label")
        for station in page.locator(".station").all()
    }
    web1 = next(host for host in REAL.hosts if host.name == "web1")
    at_docker_user = [item for item in web1.items if item.finding.chain == "DOCKER-USER"]
    assert at_docker_user
    assert re.fullmatch(
        r"DOCKER-USER: \d findings, the worst critical\. Show only these", stations["docker_user"] or ""
    )
    assert stations["input"] == "INPUT: nothing was found"
    labels = [item.get_attribute("aria-label") for item in page.locator(".path .container").all()]
    assert labels[:2] == ["admin, 9000->8080/tcp: not meant", "shop, 8080->8080/tcp: meant"]
    # Told by more than a colour: by words, and by the frame.
    assert "not meant, 9000" in (page.text_content(".path .container >> nth=0") or "")
    dashes = page.evaluate(
        "[...document.querySelectorAll('.path .container .box')].map((box) => getComputedStyle(box).strokeDasharray)"
    )
    assert dashes[0] != "none"
    assert dashes[1] == "none"


def test_a_host_that_was_not_judged(real: Path, opened: t.Any) -> None:
    page = opened(real, "#host=broken")
    assert page.inner_text(".hostmessage") == "The audit failed: The Docker daemon does not answer."
    assert page.locator(".path").count() == 0


# Filters -------------------------------------------------------------------------------------------------------------


def test_severities(real: Path, opened: t.Any) -> None:
    page = opened(real)
    page.click('.tile[data-severity="critical"]')
    said(page, "3 findings on 3 hosts.")
    assert sorted(shown(page)) == found("critical")
    assert sorted(hosts(page)) == ["db1", "web1", "web2"]
    assert page.get_attribute('.tile[data-severity="critical"]', "aria-pressed") == "true"
    page.click('.tile[data-severity="info"]')
    until(page, "document.querySelectorAll('.finding .s-info').length > 0")
    assert sorted(shown(page)) == found("critical", "info")
    page.click("#reset")
    said(page, f"{sum(REAL.summary.values())} findings on 4 hosts.")


def test_checks_and_hosts(real: Path, opened: t.Any) -> None:
    page = opened(real)
    page.select_option("#check", label="port_only_deny")
    said(page, "2 findings on 2 hosts.")
    assert shown(page) == [("critical", "port_only_deny")] * 2
    page.select_option("#hostpick", label="web2")
    said(page, "1 finding on 1 host.")
    assert page.inner_text(".results h2 bdi") == "web2"
    page.click("#back")
    said(page, "2 findings on 2 hosts.")


def test_search(real: Path, opened: t.Any) -> None:
    page = opened(real)
    page.fill("#search", "quie")
    until(page, "document.querySelectorAll('#hosts li:not([hidden])').length === 1")
    assert hosts(page) == ["quiet"]
    # A container's name finds what hits it.
    page.fill("#search", "ADMIN")
    until(page, "document.querySelectorAll('#hosts li:not([hidden])').length > 1")
    assert set(hosts(page)) == {"web1", "web2", "db1"}
    page.fill("#search", "no such thing")
    said(page, "No finding is left by these filters.")
    assert page.is_visible("#nohosts")
    page.keyboard.press("Escape")
    said(page, f"{sum(REAL.summary.values())} findings on 4 hosts.")
    assert focused(page) == "search"


def test_against_an_earlier_run(real: Path, opened: t.Any) -> None:
    page = opened(real)
    assert page.inner_text("#compared") == "Against the run of 2026-11-22 14:10:01 UTC"
    page.click('.chip[data-status="new"]')
    said(page, "1 finding on 1 host.")
    assert shown(page) == [("critical", "port_only_deny")]
    page.click('.chip[data-status="new"]')
    page.click('.chip[data-status="gone"]')
    said(page, "1 finding on 1 host.")
    page.wait_for_selector("text=It was so.")
    page.click('.chip[data-status="gone"]')
    page.click('.chip[data-status="not_judged"]')
    until(page, "document.querySelector('.finding .where').textContent.includes('away')")
    assert hosts(page) == ["away"]


def test_ignored_findings_are_there_when_asked_for(real: Path, opened: t.Any) -> None:
    page = opened(real, "#host=web2")
    assert "exposed" not in [check for _severity, check in shown(page)]
    page.check("#ignored")
    until(page, "[...document.querySelectorAll('.fold b')].some((item) => item.textContent === 'exposed')")
    page.click(".fold:has-text('exposed')")
    assert "Ignored because: It is known." in page.inner_text(".finding:has-text('exposed') .body")


def test_the_address_keeps_the_view(real: Path, opened: t.Any) -> None:
    page = opened(real)
    page.click('.tile[data-severity="critical"]')
    page.click('#hosts button:has-text("web1")')
    page.wait_for_selector(".path")
    address = page.evaluate("location.hash")
    assert address == "#host=web1&severity=critical"
    again = opened(real, address)
    assert shown(again) == [("critical", "port_only_deny")]
    page.go_back()
    page.wait_for_selector(".overview")
    assert page.evaluate("location.hash") == "#severity=critical"


# Keys ----------------------------------------------------------------------------------------------------------------


def test_all_of_it_by_keyboard(real: Path, opened: t.Any) -> None:
    page = opened(real)
    page.keyboard.press("Tab")
    assert focused(page) == "Skip to the findings"
    assert page.locator(".skip").bounding_box()["y"] >= 0
    page.keyboard.press("Enter")
    assert focused(page) == "results"
    # Down the list of hosts, into one, and back to where one was.
    page.focus("#hosts li:first-child button")
    first, second = hosts(page)[:2]
    page.keyboard.press("ArrowDown")
    assert second in focused(page)
    page.keyboard.press("Home")
    assert first in focused(page)
    page.keyboard.press("End")
    assert "quiet" in focused(page)
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    page.wait_for_selector(".path")
    assert page.inner_text(".results h2 bdi") == first
    assert focused(page) == "results"
    page.keyboard.press("Tab")
    assert focused(page) == "back"
    # A station of the way.
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "button"
    page.focus('.station[data-station="docker_user"]')
    page.keyboard.press(" ")
    page.wait_for_selector('.station[data-station="docker_user"][aria-pressed="true"]')
    assert page.evaluate("document.activeElement.dataset.station") == "docker_user"
    page.keyboard.press("Enter")
    page.wait_for_selector('.station[data-station="docker_user"][aria-pressed="false"]')
    # A finding.
    page.focus(".fold >> nth=0")
    page.keyboard.press("Enter")
    assert page.get_attribute(".fold >> nth=0", "aria-expanded") == "true"
    page.keyboard.press("Tab")
    page.keyboard.press("Escape")
    assert page.get_attribute(".fold >> nth=0", "aria-expanded") == "false"
    assert page.evaluate("document.activeElement.className") == "fold"
    page.keyboard.press("Escape")
    page.wait_for_selector(".overview")
    assert first in focused(page)


def test_the_focus_is_seen(real: Path, opened: t.Any) -> None:
    page = opened(real, "#host=web1")
    for _turn in range(40):
        page.keyboard.press("Tab")
        seen = page.evaluate(
            """() => {
              const item = document.activeElement;
              const ring = item.querySelector(".ring");
              const style = getComputedStyle(ring || item);
              return item === document.body || (ring ? style.stroke !== "none" : style.outlineStyle !== "none");
            }"""
        )
        assert seen, page.evaluate("document.activeElement.outerHTML.slice(0, 200)")


# Looks ---------------------------------------------------------------------------------------------------------------

VIEWS = ["", "#host=web1", "#host=away", "#severity=critical"]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible_in_both_colour_schemes(real: Path, opened: t.Any, scheme: str, view: str) -> None:
    page = opened(real, view, color_scheme=scheme, reduced_motion="reduce")
    if page.locator(".fold").count():
        page.click(".fold >> nth=0")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0] < 128")
    assert dark == (scheme == "dark")
    result = Axe().run(page)
    assert result.violations_count == 0, result.generate_report()


@pytest.mark.parametrize("width", [320, 360, 768, 1024, 1440])
def test_nothing_is_wider_than_the_window(real: Path, evil: Path, opened: t.Any, width: int) -> None:
    for folder, view in ((real, ""), (real, "#host=web1"), (evil, "")):
        page = opened(folder, view, viewport={"width": width, "height": 740})
        for fold in page.locator(".fold").all()[:3]:
            fold.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_phone_shows_the_way_from_top_to_bottom(real: Path, opened: t.Any) -> None:
    page = opened(real, "#host=web1", **PHONE, has_touch=True)
    boxes = [
        page.locator(f'.station[data-station="{name}"] .box').bounding_box() for name in ("prerouting", "docker_user")
    ]
    assert boxes[0]["y"] + boxes[0]["height"] < boxes[1]["y"]
    assert page.locator("#hosts").is_hidden()
    page.locator("#back").tap()
    page.wait_for_selector(".overview")
    page.locator("#hosts button >> nth=0").tap()
    page.wait_for_selector(".path")


def test_paper(real: Path, opened: t.Any) -> None:
    page = opened(real, "#host=web1")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".filters").is_hidden()
    folds = page.locator(".fold").all()
    assert [fold.get_attribute("aria-expanded") for fold in folds] == ["true"] * len(folds)
    assert page.pdf()[:5] == b"%PDF-"


def test_without_a_script(real: Path, opened: t.Any) -> None:
    page = opened(real, ready=False, java_script_enabled=False)
    assert "This page shows its findings with a script" in page.inner_text("noscript")
    assert set(hosts(page)) == {host.name for host in REAL.hosts}


# Copying -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clipboard", [True, False], ids=["clipboard", "the old way"])
def test_copying(real: Path, opened: t.Any, clipboard: bool) -> None:
    script = "" if clipboard else "Object.defineProperty(navigator, 'clipboard', { value: undefined });"
    page = opened(real, "#host=web1", script=script)
    if clipboard:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click(".fold >> nth=0")
    page.evaluate("document.body.append(Object.assign(document.createElement('textarea'), { id: 'paste' }))")
    web1 = next(host for host in REAL.hosts if host.name == "web1")
    fix = web1.items[0].finding.fix
    assert fix is not None
    for name, text in (("Copy tasks", fix.playbook), ("Copy commands", "".join(line + "\n" for line in fix.commands))):
        page.get_by_role("button", name=name).first.click()
        until(page, "document.getElementById('said').textContent === 'Copied.'")
        page.fill("#paste", "")
        page.focus("#paste")
        page.keyboard.press("Control+V")
        assert page.input_value("#paste") == text
        page.evaluate("document.getElementById('said').textContent = ''")


# Hostile texts -------------------------------------------------------------------------------------------------------


def test_hostile_texts_are_texts(evil: Path, opened: t.Any) -> None:
    page = opened(evil)
    names = [host.name for host in report(hostile(audits()["web1"])).hosts]
    for number in range(len(names)):
        page.select_option("#hostpick", index=number + 1)
        until(
            page,
            "(host) => document.querySelector('#hosts [aria-current]').parentElement.dataset.host === host",
            arg=str(number),
        )
        until(page, "(name) => document.querySelector('.results h2 bdi').textContent.length > 0", arg=str(number))
        page.evaluate("document.querySelectorAll('.finding').forEach((item) => item.open(true))")
        if not names[number].startswith("<b>"):
            page.wait_for_selector(".finding .body .copyable")
            assert page.locator(".station").count() == 8
    assert page.evaluate("window.hacked") is None
    strange = page.evaluate(
        "document.querySelectorAll('img, iframe, object, embed, link, base, form, i, [onerror], [onclick], [style],"
        " a:not(.skip)').length"
    )
    assert strange == 0
    assert page.evaluate("document.querySelectorAll('script').length") == page.evaluate(
        "document.querySelectorAll('script#index, script[id^=piece-], body > script:last-of-type').length"
    )


def test_what_would_not_be_seen_is_spelt(evil: Path, opened: t.Any) -> None:
    page = opened(evil)
    number = next(i for i, host in enumerate(report(hostile(audits()["web1"])).hosts) if "\u202e" in host.name)
    page.select_option("#hostpick", index=number + 1)
    until(page, "document.querySelector('.results h2 bdi')?.textContent === 'a\\\\u202eb\\\\u200bc'")
    page.click(".fold >> nth=0")
    assert "\u202e" not in page.evaluate("document.querySelector('main').innerText")


def test_the_policy_stops_a_script_that_got_in(real: Path, browser: t.Any) -> None:
    page = browser.new_page()
    page.goto((real / "audit.html").as_uri())
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), { text: 'window.hacked = 1' }))"
    )
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=\"x\" onerror=\"window.hacked = 2\">')")
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None
    page.context.close()


# A big fleet ---------------------------------------------------------------------------------------------------------


def test_long_lists_come_in_parts(opened: t.Any, write: t.Any, tmp_path: Path) -> None:
    base = audits()["web1"]
    page = opened(write(tmp_path, {f"node{number:03d}": base for number in range(300)}))
    count = 300 * len(base["findings"])
    said(page, f"{count:,} findings on 300 hosts.")
    assert len(shown(page)) == 50
    page.click(".more")
    until(page, "document.querySelectorAll('.finding').length === 100")
    page.fill("#search", "node299")
    said(page, f"{len(base['findings'])} findings on 1 host.")


def test_lines_are_beside_the_page(real: Path) -> None:
    earlier = _lines.read((real / "audit.jsonl").read_text(encoding="utf-8"), "audit.jsonl")
    assert set(earlier.hosts) == {host.name for host in REAL.hosts}
