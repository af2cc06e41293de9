"""Newton steps against dense algebra, refits against fits from zero, and the children of section 5.3."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.data import load
from experiments.groups.choose import KINDS, groups_of
from experiments.models import build
from experiments.records.record import Record
from experiments.suite.ending import JobFailed
from experiments.suite.job import execute
from influence.curvature.operators import Hessian
from influence.training import fit
from tests.experiments.test_configs import composed

SMALL = (
    *("experiment=groups", "tracking=none", "data.classes=[3,8]", "experiment.shares=[0.02,0.2]"),
    "experiment.draws=1",
)
CHILDREN = (
    *("experiment=groups", "tracking=none", "data=readmission_synthetic", "model=logistic", "model.l2=1e-3"),
    *("experiment.children=true", "experiment.random_groups=20", "experiment.test_index=null"),
    *("experiment.shares=[0.05]", "data.n_train=1500", "data.n_test=1500"),
)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    folder = tmp_path_factory.mktemp("groups") / "run"
    return Record.load(execute(composed(*SMALL, f"output={folder}")))


def test_newton_steps_and_refits_are_those_of_dense_algebra(record: Record) -> None:
    data, cfg = load("digits", classes=[3, 8]), composed(*SMALL)
    train = build.linear_objective(data.train, cfg.model, 2)
    test = train.on(data.test.X, build.targets_of(data.test.y, False))
    theta, one = fit(train, tolerance=1e-11).theta, torch.tensor([8])
    before = test.example_losses(theta, one)
    # The groups drawn at random do not depend on the scores, so they can be drawn again.
    scores = np.zeros(train.n)
    groups = groups_of(cfg.experiment, scores, data.train.y, int(data.test.y[8]), 0)
    assert [g.kind for g in groups] == ["random", "one class"] * 2
    rows = [i for i, kind in enumerate(record.arrays["kind"]) if kind in ("random", "one class")]
    for row, group in zip(rows, groups, strict=True):
        kept = torch.tensor(np.setdiff1d(np.arange(train.n), group.index))
        left, at = train.subset(kept), theta
        for name in ("newton", "newton_twice"):
            at = at - torch.linalg.solve(Hessian(left, at).dense(), left.gradient(at))
            change = float(test.example_losses(at, one) - before)
            assert record.arrays[name][row] == pytest.approx(change, rel=1e-5, abs=1e-9)
        refit = float(test.example_losses(fit(left, tolerance=1e-11).theta, one) - before)
        assert record.arrays["refit"][row] == pytest.approx(refit, rel=1e-4, abs=1e-8)


def test_the_sum_misjudges_sizes_and_newton_steps_do_not(record: Record) -> None:
    found = record.metrics["all"]
    errors = [found[name]["relative_error"] for name in ("sum", "newton", "newton_twice")]
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < errors[0] / 2
    assert set(record.metrics["by_kind"]) == set(KINDS)


def test_helpful_groups_hold_helpful_points_and_no_size_exceeds_its_points() -> None:
    settings = composed(*SMALL, "experiment.shares=[0.2,0.6]").experiment
    scores, y = np.linspace(-1, 1, 50), np.repeat([0, 1], 25)
    found = groups_of(settings, scores, y, 1, 0)
    by = {(group.kind, group.share): group.index for group in found}
    assert (scores[by["most helpful", 0.2]] > 0.5).all()
    assert (scores[by["most harmful", 0.2]] < -0.5).all()
    assert (y[by["one class", 0.2]] == 1).all()
    assert {key for key in by if key[1] == 0.6} == {("random", 0.6)}


def test_the_readmitted_children_move_a_child_more_than_random_patients(tmp_path: Path) -> None:
    found = Record.load(execute(composed(*CHILDREN, f"output={tmp_path / 'run'}"))).metrics["children"]
    assert len(found["children"]) == len(found["readmitted"]) + 1
    assert found["readmitted_children"]["refit"] < 0  # without them the child's loss falls
    assert found["times_the_largest_random_group"] > 3
    assert found["random_groups"]["count"] == 20


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["experiment.children=true", "experiment.random_groups=5"], "needs a column"),
        (["experiment.children=true"], "give both or none"),
        (["experiment.random_groups=5"], "give both or none"),
        (["experiment.shares=[0.2,0.1]"], "rising"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    tmp_path: Path, overrides: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(JobFailed):
        execute(composed(*SMALL, *overrides, f"output={tmp_path / 'x'}"))
    assert words in capsys.readouterr().err
