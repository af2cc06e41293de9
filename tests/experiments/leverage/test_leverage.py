"""The corrected score is a Newton step without the point, and the actual change is retraining."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.data import load
from experiments.leverage.experiment import chosen, penalties
from experiments.models import build
from experiments.records.errors import ConfigError
from experiments.records.record import Record
from experiments.suite.ending import JobFailed
from experiments.suite.job import execute
from influence.curvature.operators import Hessian
from influence.scores import test_gradients as gradients_of
from influence.training import fit
from tests.experiments.test_configs import composed

SMALL = (
    *("experiment=leverage", "tracking=none", "data.classes=[3,8]", "experiment.factors=[1.0,0.01]"),
    *("experiment.top=8", "experiment.random=5"),
)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    folder = tmp_path_factory.mktemp("leverage") / "run"
    return Record.load(execute(composed(*SMALL, f"output={folder}")))


def test_both_scores_are_those_of_dense_algebra(record: Record) -> None:
    """First order uses the Hessian of all points, the correction that of the others."""
    data = load("digits", classes=[3, 8])
    cfg = composed(*SMALL)
    train = build.linear_objective(data.train, cfg.model, 2)
    train.l2 = record.metrics["l2"][1]
    test = train.on(data.test.X, build.targets_of(data.test.y, False))
    theta = fit(train, tolerance=1e-11).theta
    H, n = Hessian(train, theta).dense(), train.n
    g = gradients_of(test, theta, [8])[:, 0]
    for place in (0, 3, 10):
        i = int(record.arrays["index"][1, place])
        own = train.example_gradients(theta, torch.tensor([i]))[0]
        first = torch.linalg.solve(H, own) @ g / n
        share = Hessian(train.subset(torch.tensor([i])), theta).dense() - train.l2 * torch.eye(train.p)
        newton = torch.linalg.solve(H - share / n, own) @ g / n
        assert record.arrays["first_order"][1, place] == pytest.approx(float(first), rel=1e-6)
        assert record.arrays["leverage_corrected"][1, place] == pytest.approx(float(newton), rel=1e-6)


def test_the_actual_change_is_that_of_a_model_fitted_from_zero(record: Record) -> None:
    data = load("digits", classes=[3, 8])
    train = build.linear_objective(data.train, composed(*SMALL).model, 2)
    test = train.on(data.test.X, build.targets_of(data.test.y, False))
    one = torch.tensor([8])
    before = test.example_losses(fit(train, tolerance=1e-11).theta, one)
    i = int(record.arrays["index"][0, 0])
    left = train.subset(torch.tensor([j for j in range(train.n) if j != i]))
    left.l2 = train.l2 * train.n / left.n  # (1/n) of the others, as the paper removes a point
    after = test.example_losses(fit(left, tolerance=1e-11).theta, one)
    assert record.arrays["actual"][0, 0] == pytest.approx(float(after - before), rel=1e-5)


def test_the_correction_matters_more_as_the_penalty_falls(record: Record) -> None:
    found = record.metrics["top"]
    assert record.metrics["l2"] == [0.01, 0.0001]
    assert abs(found["leverage"]["slope"][1] - 1) < abs(found["first_order"]["slope"][1] - 1)
    assert found["first_order"]["slope"][1] < found["first_order"]["slope"][0]
    assert min(found["error_falls"]) > 1
    assert record.metrics["not_converged"] == [0, 0]


def test_points_are_the_largest_and_others(record: Record) -> None:
    scores = np.array([0.1, -5.0, 3.0, 0.0, 0.2])
    index = chosen(scores, 2, 2, seed=0)
    assert index[:2].tolist() == [1, 2]
    assert set(index[2:]) < {0, 3, 4}
    for row in record.arrays["index"]:
        assert len(set(row)) == 13


def test_settings_that_say_nothing_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="falling"):
        penalties(composed(*SMALL, "experiment.factors=[0.1,1.0]").experiment, 100, 0.01)
    with pytest.raises(ConfigError, match="there are 10 points"):
        penalties(composed(*SMALL).experiment, 10, 0.01)
    with pytest.raises(JobFailed):
        execute(composed(*SMALL, f"output={tmp_path / 'x'}", "experiment.test_index=9999"))
    assert "out of range" in capsys.readouterr().err
