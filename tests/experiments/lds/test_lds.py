"""LDS: the score is what scipy computes from models fitted anew, and noise scores nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from experiments.data import load
from experiments.lds.experiment import first
from experiments.models import build
from experiments.records.record import Record
from experiments.suite.ending import JobFailed
from experiments.suite.job import execute
from influence.curvature.operators import Hessian
from influence.evaluation.retraining import lds, train_on_subsets
from influence.scores import test_gradients as gradients_of
from influence.training import fit
from tests.experiments.test_configs import composed

SMALL = (
    *("experiment=lds", "tracking=none", "data.classes=[3,8]", "experiment.n_train=80", "solver.depth=200"),
    *("experiment.n_test=5", "experiment.masks=12", "experiment.projections=16"),
)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    folder = tmp_path_factory.mktemp("lds") / "run"
    return Record.load(execute(composed(*SMALL, f"output={folder}")))


def test_the_score_is_that_of_models_fitted_one_by_one(record: Record) -> None:
    data, cfg = load("digits", classes=[3, 8]), composed(*SMALL)
    part = data.train.take(first(80, len(data.train), "n_train"))
    train = build.linear_objective(part, cfg.model, 2)
    test = train.on(data.test.X[:5], build.targets_of(data.test.y[:5], False))
    theta = fit(train, tolerance=1e-10).theta
    g = gradients_of(test, theta, torch.arange(5))
    s = torch.linalg.solve(Hessian(train, theta).dense(), g)
    own = train.example_gradients(theta, torch.arange(80)) + train.l2 * theta
    scores = own @ s / 79  # the predicted change without each point
    subsets = train_on_subsets(train, theta, test, masks=12, seed=0, tolerance=1e-9)
    losses = np.stack(
        [
            test.example_losses(fit(train.subset(mask.nonzero()[:, 0]), tolerance=1e-10).theta).numpy()
            for mask in subsets.masks.T
        ],
        axis=1,
    )
    expected = (scores.T @ (~subsets.masks).double()).numpy()
    each = [spearmanr(a, b)[0] for a, b in zip(expected, losses, strict=True)]
    place = record.arrays["method"].tolist().index("first_order")
    np.testing.assert_allclose(record.arrays["lds"][place], each, atol=1e-9)
    assert record.metrics["methods"]["first_order"]["lds"] == pytest.approx(np.mean(each))
    shuffled, _ = lds(subsets, scores[torch.randperm(80, generator=torch.Generator().manual_seed(1))])
    assert shuffled.value < record.metrics["methods"]["first_order"]["lds"] - 0.3


def test_every_method_is_in_the_table(record: Record) -> None:
    table = record.metrics["methods"]
    assert list(record.arrays["method"])[:3] == ["first_order", "leverage", "lissa"]
    assert set(table) == set(record.arrays["method"].tolist())
    assert all(row["low"] <= row["lds"] <= row["high"] for row in table.values())
    assert table["first_order"]["lds"] > table["gradient_cosine"]["lds"]
    assert record.metrics["not_converged"] == 0


def test_more_points_than_there_are_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(JobFailed):
        execute(composed(*SMALL, "experiment.n_train=100000", f"output={tmp_path / 'x'}"))
    assert "give at most" in capsys.readouterr().err
