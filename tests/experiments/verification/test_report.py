"""The report stands alone, escapes everything, can be read unseen. (In a browser: test_report_browser.py.)"""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from experiments.records.atomic import write_bytes, write_json
from experiments.records.record import Record
from experiments.verification import recipes, report
from experiments.verification.arrays import meaning
from experiments.verification.claims import Bound, Spec, judge
from experiments.verification.outcome import Verification, verify
from tests.experiments.verification import verifying
from tests.helpers import ROOT

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>\' onload="alert(3) {{ 7*7 }} & </style>'
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4"></svg>'
SPEAKS_TO_OTHERS = ("src", "href", "action", "data", "poster", "srcset", "formaction", "xlink:href", "ping")
VOID = {"meta", "link", "br", "img", "hr"}


class Page(HTMLParser):
    """Tags in order, and whether each that was opened was closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def verification(tmp_path: Path, **changes: object) -> Verification:
    """One claim that holds, one that is missed, and one that was not run; texts as given."""
    text = str(changes.get("text", "plain"))
    folder = tmp_path / "loo_linear"
    verifying.record(
        captions={"loo_linear": text, "other": text},
        deviations=[text],
        certificates=[{"method": text, "gradient_norm": 1e-11}],
        paper={"pearson": {"value": text, "where": text}},
    ).save(folder)
    parts = [{"part": text, "seconds": 1.25, "peak_mib": 100.0, "share_of_matrix_rate": 0.5}]
    data = {"mnist/x.gz": {"sha256": "0" * 64, "source": text}, "arrays": {"x": "1"}}
    details = {"seed": 0, "code": {"git_describe": text}, "timings": parts, "data": data, "solvers": {}}
    write_json(folder / "provenance.json", details)
    for name, content in (("loo_linear.svg", SVG), ("loo_linear.png", b"png"), ("other.png", b"png")):
        write_bytes(folder / name, content)
    claims = [
        verifying.claim(sentence=text, where=text, reason=text, fails_when=text, paper=text, section="4.1"),
        verifying.claim(id="missed", figure=text, bound=Bound(at_least=2)),
        verifying.claim(id="absent", run=Spec(text.replace("/", "-"), "experiment=spam tier=paper", "paper")),
    ]
    found = verify(claims, "results", tmp_path, tmp_path / "out")
    found.details["code"] = {"git_describe": text, "git_dirty": True}
    return found


@pytest.mark.parametrize("text", ["plain", HOSTILE])
def test_nothing_leaves_the_page_and_nothing_runs(tmp_path: Path, text: str) -> None:
    html = report.render(verification(tmp_path, text=text))
    page = Page(html)
    assert page.open == []
    assert not page.named("script")
    assert {tag for tag, _ in page.tags} & {
        "iframe",
        "object",
        "embed",
        "form",
        "base",
        "svg",
        "video",
    } == set()
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in SPEAKS_TO_OTHERS:
            if name in attributes:
                assert attributes[name].startswith(("data:", "#")), (tag, attributes)
    style = re.search(r"<style>(.*?)</style>", html, re.S)
    assert style
    assert not re.search(r"url\(|@import|@font-face", style.group(1))
    policies = [meta["content"] for meta in page.named("meta") if "http-equiv" in meta]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_hostile_text_is_shown_as_it_is(tmp_path: Path) -> None:
    words = "".join(Page(report.render(verification(tmp_path, text=HOSTILE))).words)
    assert words.count(HOSTILE) >= 8


def test_it_can_be_read_without_seeing_it_and_without_a_mouse(tmp_path: Path) -> None:
    page = Page(report.render(verification(tmp_path)))
    assert page.named("html") == [{"lang": "en"}]
    images = page.named("img")
    assert len(images) == 2
    assert all(len(image["alt"]) > 20 for image in images)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [link["href"] for link in page.named("a")]
    assert "#content" in links  # skips the navigation
    assert {link[1:] for link in links} <= set(ids)
    regions = [a for _, a in page.tags if a.get("class") == "scroll"]
    assert regions
    assert all(region["tabindex"] == "0" and region["aria-label"] for region in regions)
    assert all("scope" in cell for cell in page.named("th"))
    assert [a.get("name") for a in page.named("meta")].count("viewport") == 1


def test_it_says_what_was_found(tmp_path: Path) -> None:
    page = Page(report.render(verification(tmp_path)))
    words = " ".join(page.words)
    for text in (
        "✓ reproduced",
        "✗ not reproduced",
        "– not run",
        "outside ≥ 2",
        "no record in",
        "Run it again",
    ):
        assert text in words, text
    assert "python -m experiments experiment=loo_linear tier=paper" in words
    assert "1e-11" in words
    assert {a["href"] for a in page.named("a")} >= {"#missed", "#run-2"}


def test_the_top_shows_every_claim_and_what_the_records_were_made_with(tmp_path: Path) -> None:
    found = verification(tmp_path)
    partly = verifying.claim(
        id="half", bound=Bound(at_least=2), partly=Bound(at_least=0.5), partly_reason="because"
    )
    found.verdicts.append(judge(partly, verifying.record()))
    outcome = found.outcomes["loo_linear"]
    outcome.provenance |= {
        "started_utc": "2026-11-25T11:05:35Z",
        "wall_seconds": 5400.0,
        "machine": {"processor": "A processor", "cores": 2, "device": "cpu"},
        "versions": {"torch": "2.14.1"},
    }
    page = Page(report.render(found))
    marks = {a["href"]: a["aria-label"] for a in page.named("a") if a.get("class", "").startswith("mark ")}
    assert marks == {f"#{v.claim.id}": f"{v.claim.id}: {v.word}" for v in found.verdicts}
    words = " ".join(" ".join(page.words).split())
    assert "half : ours" in words
    assert "because" in words
    assert "1 of 3, 1 partly" in words  # a partly one is not counted as reproduced
    for text in ("2026-11-25", "A processor", "2 cores", "torch 2.14.1", "1 h 30 min"):
        assert text in words, text
    links = {a["href"] for a in page.named("a")}
    assert {"#run-1-figure-1", "#run-1-record", "#run-1-command"} <= links
    assert not [image for image in page.named("img") if "loading" in image]  # else a print has gaps


def test_every_array_of_the_committed_records_has_its_meaning_said() -> None:
    folders = [path.parent for path in (ROOT / "results").glob("*/record.json")]
    assert len(folders) > 15
    unsaid = [
        f"{record.experiment}.{name}"
        for record in map(Record.load, folders)
        for name in record.arrays
        if not meaning(record.experiment, name)
    ]
    assert unsaid == []


def test_runs_on_files_without_a_public_source_say_so_and_how_to_go_without(tmp_path: Path) -> None:
    assert recipes.needed(tmp_path / "config.yaml", {"mnist/x.gz": {}}) == []
    (tmp_path / "config.yaml").write_text("backbone: {name: mobilenet_v2, weights: null}\n")
    files = [file for file, _ in recipes.needed(tmp_path / "config.yaml", {"imagenette2-224.tar": {}})]
    assert files == ["dogfish/imagenette2-224.tar", "weights/mobilenet_v2_imagenet.pth"]
    (tmp_path / "config.yaml").write_text("backbone: {name: mobilenet_v2, weights: own.pth}\n")
    assert recipes.needed(tmp_path / "config.yaml", {}) == []
    found = verification(tmp_path)
    assert "without a public source" not in report.render(found)
    (tmp_path / "loo_linear" / "config.yaml").write_text("backbone: {name: inception_v3_7a, weights: null}\n")
    html = report.render(found)
    assert html.count("rests on a file without a public source") == 2  # once a claim of that run
    assert "inception-2015-12-05.tgz" in html


def test_only_wide_figures_scroll_on_a_phone(tmp_path: Path) -> None:
    for name, content, expected in (
        ("a.svg", b'<svg viewBox="0 0 900 300">', 3.0),
        ("b.png", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes([0, 0, 1, 0, 0, 0, 2, 0]), 0.5),
        ("c.png", b"png", 1.0),
    ):
        (tmp_path / name).write_bytes(content)
        assert report.proportion(tmp_path / name) == expected


def test_figures_are_inline_and_the_smaller_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = verification(tmp_path)
    first, second = Page(report.render(found)).named("img")
    assert base64.b64decode(first["src"].removeprefix("data:image/svg+xml;base64,")) == SVG
    assert base64.b64decode(second["src"].removeprefix("data:image/png;base64,")) == b"png"
    monkeypatch.setattr(report, "ROOM", 100)
    page = Page(report.render(found))
    assert len(page.named("img")) == 1
    assert "Too large for this page: loo_linear.svg" in " ".join(page.words)
    monkeypatch.setattr(report, "LIMIT", 100)
    with pytest.raises(ValueError, match="the limit is 100"):
        report.write(found, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
