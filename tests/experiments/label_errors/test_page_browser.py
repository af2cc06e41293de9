"""The page in Chromium: 10,000 suspects, wide and narrow, light and dark, by keys alone."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.label_errors import find_label_errors
from experiments.label_errors.page import html
from tests.browser import Browser, browser

pytestmark = pytest.mark.slow
CODES = {"j": 74, "k": 75, "a": 65, "r": 82, "u": 85, "n": 78, "p": 80, "/": 191, "Enter": 13, "Escape": 27}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = np.random.default_rng(0)
    n = 10_000
    k = generator.integers(0, 3, n)
    frame = pd.DataFrame({f"x{i}": generator.normal(size=n) + 2 * (k == i) for i in range(3)})
    frame["note"] = [f"<b>note</b> {i} ‮right to left‬" for i in range(n)]
    frame["who"] = [f"=P-{i:05d}" for i in range(n)]
    wrong = generator.random(n) < 0.05
    frame["label"] = np.array(["red", "green", "blue"])[np.where(wrong, (k + 1) % 3, k)]
    found = find_label_errors(frame, label="label", id="who", categories=["note"], model="linear", l2=1e-3)
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html(found), encoding="utf-8")
    return path


def press(chromium: Browser, *keys: str) -> None:
    for key in keys:
        chromium.press(key, CODES[key])


def test_the_page_by_keys_alone(page: Path, tmp_path: Path) -> None:
    with browser(tmp_path) as chromium:
        chromium.open(page, 1280, dark=False)
        rows = "document.querySelectorAll('#list tbody tr')"
        assert chromium.value(f"{rows}.length") == 50
        assert "10000 of 10000 suspects" in chromium.value("document.getElementById('count').textContent")
        press(chromium, "j", "j", "a", "j", "r", "j", "a", "u")
        selected = "document.querySelector('#list tr[aria-selected=true]').textContent"
        assert chromium.value(selected).startswith("5")
        assert chromium.value("document.activeElement.getAttribute('aria-selected')") == "true"
        text = chromium.value("labelErrors.exported()")
        found = list(csv.DictReader(io.StringIO(text)))
        assert [row["decision"] for row in found] == ["accepted", "rejected"]
        assert found[0]["label"] != found[0]["given"]
        assert found[1]["label"] == found[1]["given"]
        assert all(row["who"].startswith("'=P-") for row in found)  # a spreadsheet computes nothing
        press(chromium, "n")
        assert "Page 2 of 200" in chromium.value("document.getElementById('page').textContent")
        press(chromium, "Enter")
        assert chromium.value("document.activeElement.id") == "detail"
        assert chromium.value("document.querySelectorAll('.beside')[0].rows[0].cells.length") == 7
        assert chromium.value("document.querySelectorAll('.beside b').length") == 0  # <b> is text
        press(chromium, "Escape", "/")
        assert chromium.value("document.activeElement.id") == "search"
        chromium.ask("Input.insertText", text="=P-00042")
        deadline = time.monotonic() + 30
        while "1 of 10000" not in chromium.value("document.getElementById('count').textContent"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        press(chromium, "Escape")
        chromium.open(page, 1280, dark=False)  # the decisions are still there
        assert "2 decided, 1 accepted" in chromium.value("document.getElementById('count').textContent")
        assert not chromium.said("Runtime.exceptionThrown", "Log.entryAdded")
        assert len(chromium.said("Network.requestWillBeSent")) == 2  # the page itself, twice


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_and_can_be_read(page: Path, tmp_path: Path, width: int, dark: bool) -> None:
    with browser(tmp_path) as chromium:
        chromium.open(page, width, dark)
        assert chromium.value("document.documentElement.scrollWidth") <= width
        press(chromium, "j", "Enter")
        assert chromium.value("document.documentElement.scrollWidth") <= width
        assert chromium.value("document.getElementById('detail').getBoundingClientRect().width") > 300
        luminance = """(function () {
          const of = c => { const v = c.match(/[\\d.]+/g).slice(0, 3).map(x => { x /= 255;
            return x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4; }); return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
          const back = of(getComputedStyle(document.body).backgroundColor);
          return [...document.querySelectorAll('p, td, th, h1, h2, h3, summary, label')].filter(e => e.offsetParent).map(e => {
            const front = of(getComputedStyle(e).color); return (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05); }); })()"""  # fmt: skip  # noqa: E501
        assert min(chromium.value(luminance)) >= 4.5
        named = "[...document.querySelectorAll('button, select, input')].filter(e => !(e.textContent.trim() || e.labels?.length || e.ariaLabel)).length"  # noqa: E501
        assert chromium.value(named) == 0
