"""Groups: one Newton step against a dense solve, refits against fits of the rest, sets against all sets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import nn

from influence import CG, Damped, DataError, Exact, Hessian, LinearObjective, Objective, fit
from influence.groups import group_change, most_influential_set
from influence.retraining.groups import leave_groups_out
from influence.retraining.retained import retained
from tests.influence.problems import LOSSES, linear_data, linear_problem

GROUPS = [[0, 5, 7], [1], list(range(10, 24))]


def problem(loss: str, shape=(40, 5), weighted: bool = False):
    objective = linear_problem(loss, n=shape[0], d=shape[1], l2=0.02)
    if weighted:
        objective = objective.with_weights(torch.linspace(0.2, 3.0, shape[0], dtype=torch.float64))
    X, y = linear_data(loss, n=4, d=shape[1], seed=9)
    return objective, fit(objective).theta, objective.on(X, y)


@pytest.mark.parametrize("removal", ["objective", "loss"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_one_newton_step_equals_a_dense_solve(loss, weighted, removal):
    objective, theta, test = problem(loss, weighted=weighted)
    for solver in (None, CG(tolerance=1e-12), Exact()):
        ours = group_change(objective, theta, GROUPS, test, removal=removal, solver=solver)
        linear = group_change(
            objective, theta, GROUPS, test, [1, 3], removal=removal, solver=solver, evaluate=False
        )
        assert ours.shape == (3, 4)
        for row, group in enumerate(GROUPS):
            left = retained(objective, group, removal).objective
            step = torch.linalg.solve(Hessian(left, theta).dense(), left.gradient(theta))
            truth = test.example_losses(theta - step) - test.example_losses(theta)
            torch.testing.assert_close(ours[row], truth, rtol=1e-7, atol=1e-9)
            slopes = -test.example_gradients(theta, torch.tensor([1, 3])) @ step
            torch.testing.assert_close(linear[row], slopes, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("removal", ["objective", "loss"])
@pytest.mark.parametrize("loss", LOSSES)
def test_refits_side_by_side_equal_fits_of_the_rest(loss, removal):
    objective, theta, test = problem(loss, weighted=True)
    seen: list[int] = []
    found = leave_groups_out(objective, theta, GROUPS, 1e-10, removal=removal, block=2, progress=seen.append)
    assert seen == [2, 3]
    assert found.status == ("shared",) * 3
    change = group_change(objective, theta, GROUPS, test, method="refit", removal=removal, tolerance=1e-10)
    for row, group in enumerate(GROUPS):
        left = retained(objective, group, removal)
        truth = fit(left.objective, tolerance=1e-11).theta
        torch.testing.assert_close(found.thetas[:, row], truth, rtol=1e-7, atol=1e-8)
        own = left.factor * float(left.objective.gradient(found.thetas[:, row]).norm())
        assert own == pytest.approx(float(found.gradient_norms[row]), abs=1e-13)
        real = test.example_losses(truth) - test.example_losses(theta)
        torch.testing.assert_close(change[row], real, rtol=1e-6, atol=1e-8)


def test_a_group_of_one_is_leave_one_out_and_sums_add_up():
    objective, theta, test = problem("cross_entropy")
    singles = [[i] for i in range(objective.n)]
    each = group_change(objective, theta, singles, test, method="sum")
    whole = group_change(objective, theta, [3, 9, 11], test, method="sum")
    torch.testing.assert_close(whole, each[[3, 9, 11]].sum(0))
    mask = torch.zeros(objective.n, dtype=torch.bool)
    mask[[3, 9, 11]] = True
    torch.testing.assert_close(group_change(objective, theta, mask, test, method="sum"), whole)
    torch.testing.assert_close(
        group_change(objective, theta, torch.tensor([[3, 9, 11]]), test, method="sum")[0], whole
    )


def test_groups_of_digits_newton_mends_the_size_that_sums_miss():
    digits = load_digits()
    rows = np.random.RandomState(0).permutation(1797)
    X, y = digits.data[rows] / 16, digits.target[rows]
    train = LinearObjective(X[397:], y[397:], "cross_entropy", 1e-2)
    test = train.on(X[:397], y[:397])
    theta = fit(train).theta
    worst = [int(test.example_losses(theta).argmax())]
    single = group_change(train, theta, [[i] for i in range(train.n)], test, worst, method="sum")[:, 0]
    order = single.argsort(descending=True).numpy()
    draw, groups = np.random.RandomState(1), []
    for share in (0.01, 0.05, 0.2):
        size = int(share * train.n)
        groups += [draw.choice(train.n, size, replace=False), order[:size], order[-size:]]
        groups += [np.where(y[397:] == c)[0][: min(size, 100)] for c in (1, 8)]
    change = {
        method: group_change(train, theta, groups, test, worst, method=method, tolerance=1e-7)[:, 0].numpy()
        for method in ("sum", "newton", "refit")
    }
    error = {m: np.abs(change[m] - change["refit"]).mean() / np.abs(change["refit"]).mean() for m in change}
    assert error["newton"] <= 0.12, error
    twice = group_change(train, theta, groups, test, worst, steps=2)[:, 0].numpy()
    assert np.abs(twice - change["refit"]).mean() <= 0.02 * np.abs(change["refit"]).mean()
    assert error["sum"] > 2 * error["newton"], error
    assert spearmanr(change["sum"], change["refit"])[0] > 0.9


def test_a_network_takes_a_damped_step_and_is_refitted():
    torch.manual_seed(0)
    X, y = linear_data("cross_entropy", n=30, d=3, c=3, density=1.0)
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    objective = Objective(net, "cross_entropy", X, y, 0.1)
    theta = fit(objective, tolerance=1e-9).theta
    operator = Damped(Hessian(objective, theta), 0.05)
    ours = group_change(objective, theta, [0, 4, 9], objective, [2], operator=operator, evaluate=False)
    left = retained(objective, [0, 4, 9]).objective
    dense = Hessian(left, theta).dense() + 0.05 * torch.eye(objective.p, dtype=torch.float64)
    step = torch.linalg.solve(dense, left.gradient(theta))
    truth = -objective.example_gradients(theta, torch.tensor([2]))[0] @ step
    assert float(ours[0]) == pytest.approx(float(truth), rel=1e-7)
    refit = group_change(objective, theta, [0, 4, 9], objective, [2], method="refit")
    assert float(refit[0]) * float(ours[0]) > 0


def test_the_greedy_set_is_at_least_the_sums_and_nearly_the_best():
    """Two copies of one helpful point hide each other's effect from single scores."""
    torch.manual_seed(3)
    X = torch.randn(14, 2, dtype=torch.float64)
    y = torch.where(X[:, 0] + 0.3 * torch.randn(14, dtype=torch.float64) > 0, 1, -1)
    X[1], y[1] = X[0], y[0]
    objective = LinearObjective(X, y, "logistic", 0.05)
    theta, test = fit(objective).theta, objective.on(X[:1] + 0.1, y[:1])
    found = most_influential_set(objective, theta, test, 0, 3)
    brute = {
        group: float(change)
        for group, change in zip(
            itertools.combinations(range(14), 3),
            group_change(objective, theta, [*itertools.combinations(range(14), 3)], test, method="refit")[
                :, 0
            ],
            strict=True,
        )
    }
    assert found.refitted == pytest.approx(brute[tuple(sorted(found.idx.tolist()))], abs=1e-7)
    assert found.refitted >= found.sum_refitted - 1e-12
    assert found.refitted >= 0.95 * max(brute.values())
    assert abs(found.predicted - found.refitted) < abs(found.sum_predicted - found.sum_refitted)
    lowers = most_influential_set(objective, theta, test, 0, 2, raises=False)
    assert lowers.refitted < 0 < found.refitted


def test_what_is_wrong_is_named():
    objective, theta, test = problem("logistic")
    for groups, message in (
        ([[0, 1], []], "group 1 is empty"),
        ([0, 0], "each example once"),
        ([99], "99 is out of range"),
        (list(range(40)), "removing all 40"),
    ):
        with pytest.raises(DataError, match=message):
            group_change(objective, theta, groups, test)
    with pytest.raises(DataError, match="method must be one of sum, newton, refit, got 'exact'"):
        group_change(objective, theta, [0], test, method="exact")
    with pytest.raises(DataError, match="of this objective over all"):
        group_change(objective, theta, [0], test, operator=Hessian(test, theta))
    for k in (0, 40, 2.5):
        with pytest.raises(DataError, match=f"k must be an integer >= 1 and < 40, got {k}"):
            most_influential_set(objective, theta, test, 0, k)


def test_further_newton_steps_never_raise_the_objective():
    """Whole steps raise it here from 0.033 to 1.65 and 85; shortened ones end at the refit."""
    generator = torch.Generator().manual_seed(55)
    X = 3 * torch.randn(60, 30, generator=generator, dtype=torch.float64)
    y = torch.where(torch.rand(60, generator=generator) < 0.5, -1, 1)
    train = LinearObjective(X, y, "logistic", l2=1e-3)
    theta = fit(train).theta
    group = torch.arange(60)[y == 1][:20]
    refit = group_change(train, theta, group, train, method="refit", tolerance=1e-11)
    stepped = group_change(train, theta, group, train, steps=20)
    torch.testing.assert_close(stepped, refit, rtol=1e-6, atol=1e-8)
