"""Redrawing a committed record gives the committed picture: no figure shows what its record does not hold."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pytest

from experiments.records.record import Record
from experiments.suite.figures import draw
from experiments.suite.sweep_figure import order_of
from tests.helpers import ROOT

FOLDERS = sorted(path.parent for path in (ROOT / "results").glob("*/record.json"))
PINNED = dict(re.findall(r"(?m)^([a-z0-9-]+)==(\S+)", (ROOT / "constraints.txt").read_text()))


def numbered(svg: str) -> str:
    """The text with its clipping rectangles named by their order.

    Matplotlib names a rectangle by a hash of its corners to the last bit. That bit depends on the machine;
    the corners themselves stand in the text with six decimals.
    """
    names = list(dict.fromkeys(re.findall(r'<clipPath id="(p[0-9a-f]{10})"', svg)))
    return re.sub(r"\bp[0-9a-f]{10}\b", lambda found: f"clip{names.index(found[0])}", svg)


def test_every_committed_figure_is_compared() -> None:
    drawn = {path.parent for path in (ROOT / "results").rglob("*") if path.suffix in (".png", ".svg")}
    evidence = {ROOT / "results" / "label_errors"}  # no run: tests/experiments/label_errors/test_evidence.py
    assert drawn - evidence == set(FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_redrawn_record_is_the_committed_picture(folder: Path, tmp_path: Path) -> None:
    if mpl.__version__ != PINNED["matplotlib"] or importlib.metadata.version("numpy") != PINNED["numpy"]:
        pytest.skip(f"the committed figures were drawn with matplotlib {PINNED['matplotlib']}")
    draw(Record.load(folder), tmp_path)
    committed = {path.name for path in folder.iterdir() if path.suffix in (".png", ".svg")}
    assert {path.name for path in tmp_path.iterdir()} == committed
    for name in sorted(committed):
        if name.endswith(".svg"):
            assert numbered((tmp_path / name).read_text()) == numbered((folder / name).read_text()), name
        else:
            ours, theirs = (matplotlib.image.imread(place / name) for place in (tmp_path, folder))
            assert ours.shape == theirs.shape, name
            assert np.array_equal(ours, theirs), name


@pytest.mark.parametrize("name", [folder.name for folder in FOLDERS if folder.name.startswith("sweep_")])
def test_the_lines_of_a_sweep_carry_their_own_labels(name: str) -> None:
    """The right panel takes points from arrays and labels from metrics: each value must be its label's."""
    record = Record.load(ROOT / "results" / name)
    for number, label in enumerate(order_of(record)):
        mine = record.arrays["line"] == number
        points = {
            f"{x:g}": y for x, y in zip(record.arrays["x"][mine], record.arrays["y"][mine], strict=True)
        }
        assert points == record.metrics["lines"][label]["values"], label
