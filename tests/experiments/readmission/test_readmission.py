"""Section 5.3: the planted mismatch is found in an embedded cohort and, where the mirror is, in real data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from experiments.data import Split, load, readmission
from experiments.data.archive import read_member
from experiments.data.fetch import obtain
from experiments.data.readmission_schema import CHILDREN, feature_names
from experiments.readmission.children import (
    READMITTED,
    misclassified,
    ranks_and_ratios,
    without_healthy_children,
)
from experiments.records.record import Record
from experiments.suite.ending import JobFailed
from experiments.suite.job import execute
from influence.curvature.operators import Hessian
from influence.objectives.linear import LinearObjective
from influence.scores import predicted_change, test_gradients, up_loss
from influence.solvers import Exact
from influence.training import fit
from tests.experiments.test_configs import composed
from tests.helpers import mirror

L2 = 1e-4


@pytest.fixture(scope="module")
def record(embedded: Callable[[str], Path]) -> Record:
    """The embedded run."""
    return Record.load(embedded("readmission"))


def fitted(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """θ̂ by scikit-learn."""
    model = LogisticRegression(C=1 / (len(y) * L2), fit_intercept=False, tol=1e-12, solver="newton-cholesky")
    return model.fit(X, y).coef_[0]


def modified() -> tuple[Split, Split, int]:
    """The embedded cohort without its healthy children but one, its test part, the column of the children."""
    data = load("readmission_synthetic")
    assert data.feature_names is not None
    child = data.feature_names.index(CHILDREN)
    return data.train.take(without_healthy_children(data.train, child)[0]), data.test, child


def test_the_planted_mismatch_is_found(record: Record) -> None:
    metrics, a = record.metrics, record.arrays
    assert metrics["removed"] == 20
    assert metrics["original"]["train_children"] == [3, 24]
    assert metrics["modified"]["train_children"] == [3, 4]
    assert metrics["test_children_readmitted"] == 0
    assert metrics["modified"]["children_misclassified"] > metrics["original"]["children_misclassified"]
    assert metrics["children_lead"]
    assert set(a["index"][:4]) == set(a["children"])
    assert set(a["age"][:4]) == {CHILDREN}
    assert metrics["modified"]["coefficient_rank"] > 1  # the coefficients do not put it first
    helpful = [score > 0 for score in metrics["children"].values()]
    assert sorted(helpful) == [False, False, False, True]  # three harm, the healthy one helps
    assert metrics["children_checked"]["count"] == metrics["modified"]["children_misclassified"]


def test_corrected_scores_are_nearer_to_the_truth(record: Record) -> None:
    """One Newton step without each patient: the same quantity by a dense solve, and closer to the refits."""
    metrics, a = record.metrics, record.arrays
    first, corrected = metrics["retraining"], metrics["retraining_corrected"]
    assert corrected["max_error"] < 0.6 * first["max_error"]
    train, test, _ = modified()
    X, sign = train.X, np.where(train.y == READMITTED, 1.0, -1.0)
    theta = a["coefficients"]
    p = 1 / (1 + np.exp(sign * (X @ theta)))
    n, H = len(X), (X.T * (p * (1 - p))) @ X / len(X) + L2 * np.eye(X.shape[1])
    z = test.X[metrics["test_index"]]
    truth = 1.0 if test.y[metrics["test_index"]] == READMITTED else -1.0
    ascent = -truth * z / (1 + np.exp(truth * (z @ theta)))
    for i, score in zip(a["index"][:5], a["corrected"][:5], strict=True):
        own = -p[i] * sign[i] * X[i] + L2 * theta
        left = H - (p[i] * (1 - p[i]) * np.outer(X[i], X[i]) + L2 * np.eye(len(theta))) / n
        assert score == pytest.approx(ascent @ np.linalg.solve(left, own) / n, rel=1e-6)


def test_models_and_removals_agree_with_scikit_learn(record: Record) -> None:
    train, test, child = modified()
    theta = fitted(train.X, train.y)
    np.testing.assert_allclose(record.arrays["coefficients"], theta, atol=1e-5)
    children = np.flatnonzero(test.X[:, child] == 1)
    wrong = children[test.X[children] @ theta > 0]
    assert len(wrong) == record.metrics["modified"]["children_misclassified"]
    position = record.metrics["test_index"]
    assert position == wrong[0]

    def loss(theta: np.ndarray) -> float:
        return float(np.log1p(np.exp(test.X[position] @ theta)))  # not readmitted

    for rank in (0, 1, 5):
        keep = np.arange(len(train)) != record.arrays["index"][rank]
        without = fitted(train.X[keep], train.y[keep])
        actual = loss(without) - loss(theta)
        assert record.arrays["actual"][rank] == pytest.approx(actual, abs=1e-7)
        assert np.sign(record.arrays["predicted"][rank]) == np.sign(actual)


def test_the_scores_agree_with_a_dense_solve(record: Record) -> None:
    """All of them, by numpy alone: with the L2 term, over n − 1."""
    train, test, _ = modified()
    theta, y = record.arrays["coefficients"], 2.0 * train.y - 1
    s = 1 / (1 + np.exp(y * (train.X @ theta)))
    n = len(y)
    H = (train.X * (s * (1 - s))[:, None]).T @ train.X / n + L2 * np.eye(train.X.shape[1])
    x = test.X[record.metrics["test_index"]]
    s_test = np.linalg.solve(H, x / (1 + np.exp(-x @ theta)))
    gradients = -(y * s)[:, None] * train.X + L2 * theta
    np.testing.assert_allclose(record.arrays["scores"], gradients @ s_test / (n - 1), rtol=1e-6, atol=1e-12)


def test_who_is_removed_and_who_stands_where() -> None:
    X = np.array([[1.0], [1], [0], [1], [1], [0]])
    split = Split(X, np.array([0, READMITTED, 0, 0, 0, 1]), np.arange(6))
    kept, removed = without_healthy_children(split, 0)
    assert removed.tolist() == [0, 3]
    assert kept.tolist() == [1, 2, 4, 5]
    found = ranks_and_ratios(np.array([0.1, -5.0, 0.2, 3.0, -0.5]), np.array([1, 3]))
    assert found["ranks"] == [1, 2]
    assert found["children_lead"]
    assert found["ratios"] == [10.0, 6.0]
    assert not ranks_and_ratios(np.array([0.1, -5.0, 0.2, 3.0, -0.5]), np.array([1, 4]))["children_lead"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data=breast_cancer", "use data=readmission or readmission_synthetic"),
        ("experiment.training_gradient=none", "choose loss or objective"),
        ("experiment.test_index=999999", "out of range"),
        ("data.n_train=11", "must be even"),
    ],
)
def test_wrong_settings(
    override: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["experiment=readmission", "tracking=none", override, f"output={tmp_path / 'o'}"]
    with pytest.raises(JobFailed):
        execute(composed(*settings))
    (said,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    assert message in said
    assert not (tmp_path / "o" / "record.json").exists()


def test_the_real_children(tmp_path: Path) -> None:
    """The authors' split, and their four children, on the UCI data; reference values of float64 code.

    Read without the prepared copy, which test_loaders makes: that takes longer than all of this.
    """
    archive = readmission.SOURCE
    path = obtain(archive, mirror=mirror(), cache=tmp_path).path
    columns = readmission.parse_csv(read_member(path, str(archive.member), archive.max_bytes))
    X = np.hstack([columns["counts"], columns["indicators"]]).astype(np.float64)
    positive = columns["readmitted"] == readmission.READMITTED.index("<30")
    rows, others = readmission.authors_split(positive, readmission.N_PER_CLASS)
    full = Split(X[rows], positive[rows].astype(np.int64), rows)
    child = feature_names().index(CHILDREN)
    train = full.take(without_healthy_children(full, child)[0])
    assert len(train) == 19_980
    objective = LinearObjective(train.X, torch.as_tensor(2.0 * train.y - 1), "logistic", L2)
    theta = fit(objective, tolerance=1e-10).theta
    assert float(theta.norm()) == pytest.approx(4.8049, abs=1e-4)
    children = np.flatnonzero(X[others, child] == 1)
    test = objective.on(X[others], torch.as_tensor(2.0 * positive[others] - 1))
    assert len(children) == 137
    assert len(misclassified(test, theta, children)) == 30
    state = Exact().prepare(Hessian(objective, theta))
    solution = Exact().apply(state, test_gradients(test, theta, [1742]))
    raw = up_loss(objective, theta, solution.value, "objective")[:, 0]
    scores = predicted_change(raw, objective.n, "objective").numpy()
    four = [9366, 11116, 13685, 19590]
    assert sorted(np.argsort(-np.abs(scores))[:4]) == four
    np.testing.assert_allclose(scores[four], [-0.1176, -0.0792, -0.1192, 0.0976], atol=5e-4)
