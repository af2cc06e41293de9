"""The evidence: how errors are planted, what is measured, and that the committed page is of its record."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from experiments.label_errors.evidence import measure, show, speed
from experiments.label_errors.evidence.plant import planted
from experiments.label_errors.evidence.tables import SOURCES, load
from tests.helpers import ROOT

RESULTS = ROOT / "results" / "label_errors"


@pytest.mark.parametrize("kind", ["uniform", "likely"])
def test_planted_errors_are_as_many_as_said_and_all_wrong(kind: str) -> None:
    generator = np.random.default_rng(0)
    y = generator.integers(0, 4, 200)
    likely = generator.dirichlet(np.ones(4), 200)
    found, wrong = planted(y, likely, kind, 0.1, 3)
    assert wrong.sum() == 20
    np.testing.assert_array_equal(found != y, wrong)
    again, _ = planted(y, likely, kind, 0.1, 3)
    np.testing.assert_array_equal(found, again)
    assert (planted(y, likely, kind, 0.1, 4)[0] != found).any()


def test_likely_errors_go_where_the_model_doubts() -> None:
    y = np.zeros(100, dtype=int)
    likely = np.tile([0.99, 0.01, 0.0], (100, 1))
    likely[:20] = [0.4, 0.6, 0.0]
    found, wrong = planted(y, likely, "likely", 0.1, 0)
    assert wrong[:20].sum() >= 8
    assert set(found[wrong]) == {1}


def test_a_table_is_measured_from_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SEEDS", 1)
    source = next(source for source in SOURCES if source.name == "breast_cancer")
    frame = load(source, ROOT, None).iloc[:120]
    found = measure.measured(frame, None, lambda count: None)
    assert len(found["cases"]) == 6
    record = show.summary([found | {"name": "tumours", "origin": "sklearn", "machine": {}}])
    assert record["mean_recall"]["held_loss"] > record["mean_recall"]["self_influence_fixed"]
    assert 0.5 < record["mean_auroc"]["held_loss"] <= 1
    assert "tumours" in show.page(record, {})


def test_the_committed_page_is_that_of_the_committed_record() -> None:
    record = json.loads((RESULTS / "evidence.json").read_text())
    assert (RESULTS / "README.md").read_text() == show.page(record, show.speeds(RESULTS))
    assert len(record["tables"]) >= 20
    best = max(record["mean_recall"], key=lambda method: record["mean_recall"][method])
    assert best == "held_loss"  # the default rank is the one that the evidence supports
    assert record["mean_recall"]["self_influence_fixed"] == min(record["mean_recall"].values())


def test_the_committed_figure_is_that_of_the_committed_record(tmp_path: Path) -> None:
    record = json.loads((RESULTS / "evidence.json").read_text())
    show.draw(record, tmp_path / show.FIGURE)
    drawn = (tmp_path / f"{show.FIGURE}.svg").read_text()
    assert drawn == (RESULTS / f"{show.FIGURE}.svg").read_text()


def test_the_command_is_timed_and_the_page_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(speed.TABLES, "numbers", partial(speed.numbers, rows=300, columns=5, classes=3))
    (tmp_path / "evidence.json").write_text((RESULTS / "evidence.json").read_text())
    speed.COMMAND.run(speed.main, [str(tmp_path), "repeats=1", "only=numbers"])
    found = json.loads((tmp_path / "speed.json").read_text())["numbers"]
    assert (found["rows"], found["runs"]) == (300, 1)
    assert found["processor_seconds"] > 0
    assert found["wall_seconds"] > 0
    assert 0.05 < found["gib"] < 8
    assert "## Speed" in (tmp_path / "README.md").read_text()
    assert "numbers: " in capsys.readouterr().out
