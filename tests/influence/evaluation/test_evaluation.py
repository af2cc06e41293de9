"""The evaluations against their definitions, and on problems whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import roc_auc_score
from torch import nn

from influence import (
    Damped,
    DataError,
    Exact,
    Hessian,
    LinearObjective,
    Objective,
    fit,
    removal_change,
    self_influence,
    test_gradients,
    up_loss,
)
from influence.evaluation.agreement import agreement
from influence.evaluation.baselines import gradient_cosine, gradient_dot, representer_points, tracin, trak
from influence.evaluation.brittleness import brittleness
from influence.evaluation.comparison import compare_methods, table
from influence.evaluation.damping import damping_report
from influence.evaluation.labels import auc, flip_labels, recall
from influence.evaluation.retraining import check_by_retraining, lds, train_on_subsets
from tests.influence.problems import linear_data, linear_problem


def problem(loss: str = "cross_entropy", n: int = 80, l2: float = 0.02):
    objective = linear_problem(loss, n=n, d=6, l2=l2)
    X, y = linear_data(loss, n=12, d=6, seed=9)
    return objective, fit(objective).theta, objective.on(X, y)


def scores_of(objective, theta, test, idx):
    s = Exact().solve(Hessian(objective, theta), test_gradients(test, theta, idx)).value
    return removal_change(objective, theta, s)


def test_agreement_has_the_values_of_scipy_and_intervals_that_hold_them():
    draw = np.random.default_rng(0)
    actual = draw.normal(size=200)
    predicted = 0.5 * actual + 0.1 * draw.normal(size=200)
    found = agreement(predicted, actual)
    assert found.pearson.value == pytest.approx(pearsonr(predicted, actual)[0])
    assert found.spearman.value == pytest.approx(spearmanr(predicted, actual)[0])
    assert found.slope.value == pytest.approx(np.polyfit(actual, predicted, 1)[0])
    assert found.slope.low < 0.5 < found.slope.high
    assert found.slope.high - found.slope.low < 0.06
    assert found.error == pytest.approx(np.abs(predicted - actual).mean() / np.abs(actual).mean())
    assert str(found) == str(agreement(predicted, actual))
    for wrong in ([1.0, 2.0], [1.0, np.nan, 2.0]):
        with pytest.raises(DataError, match="agreement needs"):
            agreement(wrong, wrong)


def test_a_check_compares_the_top_and_random_points_with_retraining():
    objective, theta, test = problem()
    scores = scores_of(objective, theta, test, [3])[:, 0]
    found = check_by_retraining(objective, theta, test, 3, scores, k=8, random=10)
    assert len(found.idx.unique()) == 18
    assert set(found.idx[:8].tolist()) == set(scores.abs().argsort(descending=True)[:8].tolist())
    assert found.top.pearson.value > 0.95
    assert found.random.pearson.value > 0.95
    assert "random points, 10 points" in str(found)
    wrong = check_by_retraining(objective, theta, test, 3, -scores, k=8, random=10)
    assert wrong.top.pearson.value < -0.95


def test_lds_of_influence_is_high_and_of_noise_low():
    objective, theta, test = problem(n=120)
    subsets = train_on_subsets(objective, theta, test, masks=30)
    assert subsets.masks.sum(0).tolist() == [60] * 30
    left = objective.subset(subsets.masks[:, 4])
    refit = fit(left).theta
    torch.testing.assert_close(subsets.losses[:, 4], test.example_losses(refit), rtol=1e-4, atol=1e-5)
    scores = scores_of(objective, theta, test, list(range(test.n)))
    value, each = lds(subsets, scores)
    expected = (scores.T @ (~subsets.masks).double())[2]
    assert float(each[2]) == pytest.approx(spearmanr(expected, subsets.losses[2])[0])
    assert value.low <= value.value <= value.high
    assert value.value > 0.75, value
    noise, _ = lds(subsets, torch.randn(scores.shape, generator=torch.Generator().manual_seed(0)).double())
    assert abs(noise.value) < 0.25


def test_flipped_labels_are_found_by_self_influence():
    X, y = linear_data("logistic", n=200, d=5, density=1.0)
    X[:, -1] = torch.randn(200, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    y = torch.where(X[:, 0] + X[:, 1] > 0, 1, -1)
    given, flipped = flip_labels(y, 0.1, seed=1)
    assert int(flipped.sum()) == 20
    assert bool((given[flipped] == -y[flipped]).all())
    assert bool((given[~flipped] == y[~flipped]).all())
    objective = LinearObjective(X, given, "logistic", 0.01)
    theta = fit(objective).theta
    own = self_influence(objective, theta, Hessian(objective, theta)).numpy()
    assert auc(own, flipped) == pytest.approx(roc_auc_score(flipped, own))
    assert auc(own, flipped) > 0.9
    assert recall(own, flipped, [0.1, 1.0]) == [
        pytest.approx(float(flipped[np.argsort(-own)[:20]].double().mean())), 1.0
    ]  # fmt: skip
    classes, moved = flip_labels(torch.arange(30) % 3, 0.5)
    assert bool((classes != torch.arange(30) % 3).eq(moved).all())
    with pytest.raises(DataError, match="both kinds"):
        auc(own, np.zeros(200))


def test_a_prediction_falls_without_its_helpful_points_before_random_ones():
    objective, theta, test = problem("logistic", n=80, l2=0.05)
    margins = (test.outputs(theta)[:, 0] * test.targets).clone()
    margins[margins <= 0] = float("inf")
    index = int(margins.argmin())  # right, but narrowly
    scores = scores_of(objective, theta, test, [index])[:, 0]
    found = brittleness(objective, theta, test, index, scores, (1, 5, 15, 30))
    assert bool((found.top[1:] > found.random[1:]).all())
    assert found.flips_at is not None
    assert not bool(found.random_flips[0])


def test_baselines_are_what_they_say():
    objective, theta, test = problem("cross_entropy")
    idx = torch.tensor([1, 4])
    G, g = objective.example_gradients(theta), test.example_gradients(theta, idx).T
    torch.testing.assert_close(gradient_dot(objective, theta, test, idx), G @ g)
    norms = G.norm(dim=1)[:, None] * g.norm(dim=0)
    torch.testing.assert_close(gradient_cosine(objective, theta, test, idx), (G @ g) / norms)
    both = tracin(objective, [theta, 0.5 * theta], [0.1, 0.2], test, idx)
    other = gradient_dot(objective, 0.5 * theta, test, idx)
    torch.testing.assert_close(both, 0.1 * (G @ g) + 0.2 * other)
    with pytest.raises(DataError, match="2 checkpoints and 1 rates"):
        tracin(objective, [theta, theta], [0.1], test, idx)


@pytest.mark.parametrize("loss", ["cross_entropy", "logistic"])
def test_representer_points_add_up_to_the_output(loss):
    objective, theta, test = problem(loss)
    idx = torch.tensor([1, 4])
    parts = representer_points(objective, theta, test, idx).sum(0)
    outputs, targets = test.outputs(theta, idx), test.targets[idx]
    expected = outputs[:, 0] * targets if loss == "logistic" else outputs[torch.arange(2), targets]
    torch.testing.assert_close(parts, expected, rtol=1e-7, atol=1e-8)


def test_trak_without_projection_is_the_formula():
    objective, theta, test = problem("logistic")
    idx = torch.tensor([1, 4])
    left = 1 - (-objective.example_losses(theta)).exp()
    features = -objective.example_gradients(theta) / left[:, None]
    test_left = 1 - (-test.example_losses(theta, idx)).exp()
    test_features = -test.example_gradients(theta, idx) / test_left[:, None]
    gram = features.T @ features + 1e-3 * (features**2).sum() / objective.p * torch.eye(objective.p).double()
    expected = (features @ torch.linalg.solve(gram, test_features.T)) * left[:, None]
    torch.testing.assert_close(trak(objective, theta, test, idx, ridge=1e-3), expected, rtol=1e-7, atol=1e-9)
    projected = trak(objective, theta, test, idx, ridge=1e-3, dimensions=5)
    assert spearmanr(projected[:, 0], expected[:, 0])[0] > 0.4


def test_one_table_says_whether_influence_beats_a_dot_product():
    objective, theta, test = problem(n=60)
    found = compare_methods(
        objective, theta, test, 3, points=24, further={"noise": torch.linspace(-1, 1, 60).double()}
    )
    assert found["influence"].spearman.value > found["gradient dot"].spearman.value
    assert found["influence, leverage"].error <= found["influence"].error
    assert abs(found["noise"].spearman.value) < 0.6
    text = table(found)
    assert len(text.splitlines()) == len(found) + 1
    assert "representer points" in text


@pytest.mark.parametrize("krylov", [False, True])
def test_a_damping_report_equals_a_solve_at_each_damping(krylov, monkeypatch):
    objective, theta, test = problem("logistic")
    if krylov:
        monkeypatch.setattr("influence.evaluation.damping._DENSE_BELOW", 0)
    gradients = test_gradients(test, theta, [0, 3])
    report = damping_report(objective, theta, gradients)
    assert bool(report.positive_definite.all())
    for m in (0, 5, 9):
        operator = Damped(Hessian(objective, theta), float(report.dampings[m]))
        s = Exact().solve(operator, gradients).value
        torch.testing.assert_close(
            report.scores[m], removal_change(objective, theta, s), rtol=1e-6, atol=1e-9
        )
    assert report.best == float(report.dampings[0])  # at the minimum of a convex objective less is better
    assert float(report.remaining[0]) < 0.1 < 0.5 < float(report.remaining[-1])
    assert str(report).endswith(f"best: {report.best:.2e}")


def test_a_damping_report_of_a_net_marks_what_is_not_positive_definite():
    torch.manual_seed(0)
    X, y = linear_data("cross_entropy", n=40, d=4, c=3, density=1.0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    objective = Objective(net, "cross_entropy", X, y, 1e-3)
    theta = fit(objective, method="adam", max_iterations=60, learning_rate=0.02, raise_on_failure=False).theta
    report = damping_report(objective, theta, test_gradients(objective, theta, [0]), points=4)
    smallest = float(torch.linalg.eigvalsh(Hessian(objective, theta).dense())[0])
    assert smallest < 0
    assert torch.equal(report.positive_definite, report.dampings + smallest > 0)
    assert bool(report.remaining[~report.positive_definite].isnan().all())
    assert report.best in report.dampings[report.positive_definite].tolist()
    with pytest.raises(DataError, match="rising numbers"):
        damping_report(
            objective, theta, torch.ones(objective.p, 1).double(), dampings=torch.tensor([1.0, 0.5])
        )
    operator = Damped(Hessian(objective, theta), 0.1)
    with pytest.raises(DataError, match="undamped"):
        damping_report(objective, theta, torch.ones(objective.p, 1).double(), operator=operator)


def test_up_loss_and_the_dot_product_have_opposite_signs_by_convention():
    """A baseline is positive for helpful points; I_up,loss is negative for them."""
    objective, theta, test = problem()
    g = test_gradients(test, theta, [2])
    torch.testing.assert_close(
        gradient_dot(objective, theta, test, [2]), -up_loss(objective, theta, g, "loss")
    )
