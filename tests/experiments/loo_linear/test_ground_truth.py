"""A recorded ground truth is the retrained one, and one of another problem is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.records.record import Record
from experiments.suite.ending import JobFailed
from experiments.suite.job import execute
from tests.experiments.test_configs import composed

SMALL = ("experiment=loo_linear", "tracking=none", "experiment.removed=6", "experiment.self_influence=20")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return execute(composed(*SMALL, f"output={tmp_path_factory.mktemp('first')}"))


def again(folder: Path, first: Path, *overrides: str) -> Record:
    given = (*SMALL, f"output={folder}", f"experiment.retrained={first}", *overrides)
    return Record.load(execute(composed(*given)))


@pytest.mark.usefixtures("undrawn")
def test_a_recorded_ground_truth_is_the_retrained_one(first: Path, tmp_path: Path) -> None:
    whole, asked = Record.load(first), again(tmp_path, first)
    for name in ("index", "actual", "gradient_norm", "predicted_cg"):
        np.testing.assert_array_equal(asked.arrays[name], whole.arrays[name])
    assert asked.metrics["pearson"] == whole.metrics["pearson"]
    assert set(asked.metrics["solvers"]) == {"cg"}  # the others stand in the first record
    error = asked.metrics["solvers"]["cg"]["scores_relative_error"]
    assert error == whole.metrics["solvers"]["cg"]["scores_relative_error"]
    assert whole.metrics["self_influence"]["count"] == 20
    assert "self_influence" not in asked.metrics


@pytest.mark.usefixtures("undrawn")
def test_a_loose_solve_shows_against_the_recorded_scores(first: Path, tmp_path: Path) -> None:
    loose = again(tmp_path, first, "solver.tolerance=1.0e-2").metrics["solvers"]["cg"]
    assert 1e-5 < loose["scores_relative_error"] < 0.1


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("model.l2=0.02", "l2"),
        ("experiment.test_index=9", "test_index"),
        ("data.classes=[0,1,2,3]", "data"),
    ],
)
def test_another_problem_is_refused(
    first: Path, tmp_path: Path, override: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(JobFailed):
        again(tmp_path, first, override)
    said = capsys.readouterr().err
    assert "another problem" in said
    assert named in said


def test_a_folder_without_a_record_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(JobFailed):
        again(tmp_path / "run", tmp_path / "nothing")
    assert "holds no record.json" in capsys.readouterr().err
