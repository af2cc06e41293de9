"""The report of the committed records in a real browser, where there is one (marker ``slow``)."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest

from experiments.verification import report
from experiments.verification.claims import load
from experiments.verification.outcome import chosen, verify
from tests.browser import browser
from tests.helpers import ROOT

pytestmark = pytest.mark.slow
# Reaching over the right edge although nothing above it scrolls.
WIDE = """[...document.querySelectorAll('body *')].filter(e => {
  for (let p = e.parentElement; p; p = p.parentElement)
    if (['auto', 'scroll'].includes(getComputedStyle(p).overflowX)) return false;
  return e.getBoundingClientRect().right > %d + 1;
}).map(e => e.outerHTML.slice(0, 80))"""
FOCUSED = """(() => { const e = document.activeElement, r = e.getBoundingClientRect();
  return {tag: e.tagName, style: getComputedStyle(e).outlineStyle, seen: r.bottom > 0 && r.top < innerHeight,
          href: e.getAttribute('href')}; })()"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    claims = chosen(load(), ["paper", "gpu"], None)
    report.write(verify(claims, "results", ROOT / "results", path.parent), path)
    return path


def test_it_fits_phones_and_screens_light_and_dark_and_says_nothing(page: Path, tmp_path: Path) -> None:
    with browser(tmp_path) as chromium:
        backgrounds = set()
        for width in (390, 1280):
            for dark in (False, True):
                chromium.open(page, width, dark)
                assert chromium.value("document.documentElement.scrollWidth") <= width
                assert chromium.value(WIDE % width) == []
                backgrounds.add(chromium.value("getComputedStyle(document.body).backgroundColor"))
                chromium.value("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
        assert len(backgrounds) == 2
        broken = "[...document.images].filter(i => !i.alt || (i.complete && !i.naturalWidth)).length"
        assert chromium.value("document.images.length") >= 5
        assert chromium.value(broken) == 0
        requests = [event["request"]["url"] for event in chromium.said("Network.requestWillBeSent")]
        assert {url.split(":")[0] for url in requests} <= {"file", "data"}
        assert {url for url in requests if url.startswith("file:")} == {page.resolve().as_uri()}
        assert chromium.said("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown") == []


def test_every_stop_of_the_tab_key_is_seen(page: Path, tmp_path: Path) -> None:
    with browser(tmp_path) as chromium:
        chromium.open(page, 1280, False)
        stops = []
        for _ in range(1000):
            chromium.press("Tab", 9)
            stops.append(chromium.value(FOCUSED))
            if stops[-1]["tag"] == "BODY":
                break
        assert stops.pop()["tag"] == "BODY"  # all the way round
        assert len(stops) > 40
        assert stops[0]["href"] == "#content"
        assert [stop for stop in stops if stop["style"] == "none" or not stop["seen"]] == []
        links = {stop["href"] for stop in stops if stop["tag"] == "A"}
        assert links == set(
            chromium.value("[...document.querySelectorAll('a')].map(a => a.getAttribute('href'))")
        )


def test_it_prints_every_figure_and_claim_on_fewer_than_25_pages(page: Path, tmp_path: Path) -> None:
    with browser(tmp_path) as chromium:
        chromium.open(page, 1280, True)
        drawn = (
            "[...document.images].filter(i => i.complete && i.naturalWidth && i.loading !== 'lazy').length"
        )
        assert chromium.value(drawn) == chromium.value("document.images.length") >= 15
        chromium.ask("Emulation.setEmulatedMedia", media="print", features=[])
        assert chromium.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        hidden = (
            "[...document.images, ...document.querySelectorAll('table.claims td')].filter(e => !e.closest("
        )
        assert chromium.value(f"{hidden}'.absent') && !e.checkVisibility()).length") == 0
        pdf = base64.b64decode(chromium.ask("Page.printToPDF", printBackground=True)["data"])
        assert 5 < len(re.findall(rb"/Type\s*/Page\b", pdf)) < 25
