"""The leverage correction against one dense Newton step per point, written out with autograd's matrices."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from influence import (
    CG,
    Damped,
    DataError,
    Exact,
    GaussNewton,
    Hessian,
    HighLeverageWarning,
    LinearObjective,
    NotPositiveDefiniteError,
    Objective,
    fit,
    leave_one_out,
    removal_change,
    self_influence,
    test_gradients,
)
from influence.leverage import corrected_change, own_share
from influence.objectives.streaming import ArraySource, stream
from tests.influence.problems import LOSSES, linear_data, linear_problem


def oracle(objective, theta: Tensor, gradients: Tensor, kind: str, damping: float = 0.0) -> Tensor:
    """One Newton step without each point, point by point: ``(n, k)``. The point's own curvature is
    ``J_iᵀ A_i J_i`` (its Hessian, for a linear model)."""
    n, eye = objective.n, torch.eye(objective.p, dtype=torch.float64)
    whole, weights = Hessian(objective, theta).dense(), objective.example_weights()
    penalty = objective.l2 * torch.diag(objective.l2_mask)
    out = []
    for i in range(n):
        one = torch.tensor([i])
        own = GaussNewton(objective.subset(one), theta).dense() - penalty  # carries w_i
        g = weights[i] * objective.example_gradients(theta, one)[0]
        if kind == "loss":
            step = torch.linalg.solve(n * whole - own + n * damping * eye, g)
        else:
            left = n * whole - penalty - own + (n - 1) * damping * eye
            step = torch.linalg.solve(left, g + objective.l2 * objective.l2_mask * theta)
        out.append(gradients.T @ step)
    return torch.stack(out)


def problem(kind: str, shape: tuple[int, int], weighted: bool, sparse: bool = False):
    objective = linear_problem(kind, l2=0.01, n=shape[0], d=shape[1], sparse=sparse)
    if weighted:
        objective = objective.with_weights(torch.linspace(0.0, 3.0, shape[0], dtype=torch.float64))
    theta = fit(objective).theta
    X, y = linear_data(kind, n=4, d=shape[1], seed=9)
    return objective, theta, test_gradients(objective.on(X, y), theta, [0, 1, 2])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(30, 5), (9, 25)])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_closed_form_is_one_newton_step_without_the_point(loss, shape, weighted):
    objective, theta, gradients = problem(loss, shape, weighted)
    idx = torch.tensor([3, 0, 7])
    for damping in (0.0, 0.05):
        operator = Damped(Hessian(objective, theta), damping)
        s = Exact().solve(operator, gradients).value
        for kind in ("objective", "loss"):
            truth = oracle(objective, theta, gradients, kind, damping)
            ours = removal_change(objective, theta, s, removal=kind, correction="leverage", operator=operator)
            torch.testing.assert_close(ours, truth, rtol=1e-8, atol=1e-10)
            solver = CG(tolerance=1e-13)
            few = corrected_change(objective, theta, gradients, idx, kind, operator, solver)
            torch.testing.assert_close(few, truth[idx], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("sparse", [False, True])
def test_streamed_and_sparse_data_give_the_same(sparse):
    objective, theta, gradients = problem("cross_entropy", (40, 6), False, sparse)
    ours = corrected_change(objective, theta, gradients)
    torch.testing.assert_close(ours, oracle(objective, theta, gradients, "objective"), rtol=1e-8, atol=1e-10)
    source = ArraySource(objective.X.dense().numpy(), objective.targets.numpy())
    streamed = corrected_change(stream(objective, source, batch_size=7), theta, gradients)
    torch.testing.assert_close(streamed, ours, rtol=1e-9, atol=1e-12)


def test_a_network_takes_one_step_with_the_points_gauss_newton_block():
    torch.manual_seed(0)
    X, y = linear_data("cross_entropy", n=24, d=3, c=3, density=1.0)
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    objective = Objective(net, "cross_entropy", X, y, 0.1, l2_parameters="weights")
    theta = fit(objective, tolerance=1e-9).theta
    gradients = test_gradients(objective, theta, [0, 5])
    for kind in ("objective", "loss"):
        operator = Damped(Hessian(objective, theta), 0.05)
        ours = corrected_change(objective, theta, gradients, None, kind, operator)
        truth = oracle(objective, theta, gradients, kind, 0.05)
        torch.testing.assert_close(ours, truth, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shape", [(30, 5), (9, 25)])
def test_corrected_self_influence_is_the_points_own_change(loss, shape):
    objective, theta, _ = problem(loss, shape, True)
    operator = Hessian(objective, theta)
    truth = torch.stack(
        [
            oracle(objective, theta, test_gradients(objective, theta, [i]), "loss")[i, 0] * objective.n
            for i in range(objective.n)
        ]
    )
    ours = self_influence(objective, theta, operator, correction="leverage")
    torch.testing.assert_close(ours, truth, rtol=1e-8, atol=1e-10)
    plain = self_influence(objective, theta, operator)
    assert bool((ours >= plain - 1e-12).all()), "leaving the point out lowers the curvature"


@pytest.mark.parametrize(("l2", "plain", "largest"), [(1e-2, 0.96, 0.05), (1e-4, 0.51, 0.12)])
def test_digits_the_correction_mends_the_slope(l2, plain, largest):
    """Against retraining without each of the 100 most influential of 1,400 digits."""
    digits = load_digits()
    rows = np.random.RandomState(0).permutation(1797)
    X, y = digits.data[rows] / 16, digits.target[rows]
    train = LinearObjective(X[397:], y[397:], "cross_entropy", l2)
    test = train.on(X[:397], y[:397])
    theta = fit(train).theta
    losses = test.example_losses(theta)
    worst = torch.tensor([int(losses.argmax())])
    s = Exact().solve(Hessian(train, theta), test_gradients(test, theta, worst)).value
    scores = removal_change(train, theta, s)[:, 0]
    top = scores.abs().argsort(descending=True)[:100]
    corrected = removal_change(train, theta, s, correction="leverage")[top, 0]
    models = leave_one_out(train, theta, top)
    actual = test.example_losses_many(models.thetas, worst)[0] - losses[worst]

    def slope(found: Tensor) -> float:
        return float(np.polyfit(actual.numpy(), found.numpy(), 1)[0])

    assert slope(scores[top]) == pytest.approx(plain, abs=0.02)
    assert slope(corrected) == pytest.approx(1, abs=0.03)
    assert float((corrected - actual).abs().max() / actual.abs().max()) < largest


@pytest.mark.parametrize("r", [1, 3])
@pytest.mark.parametrize("convex", [True, False])
def test_the_own_share_is_the_largest_eigenvalue(r, convex):
    g = torch.Generator().manual_seed(r)
    A, L = (torch.randn(50, r, r, generator=g, dtype=torch.float64) for _ in range(2))
    B, M = A @ A.transpose(1, 2) / r, L @ L.transpose(1, 2) / r
    if not convex:
        B = B - torch.eye(r, dtype=torch.float64) / 2
    largest = torch.linalg.eigvals(B @ M).real.max(dim=1).values
    found = own_share(B, M, convex)
    high = largest > 0.9
    assert 0 < int(high.sum()) < 50
    torch.testing.assert_close(found[high], largest[high])
    assert bool((found[~high] <= 0.9).all()) or r > 1
    assert bool((found >= largest - 1e-9).all())


def lonely(l2: float):
    """Three points of one direction, and one alone in another: it holds all of that curvature but λ."""
    X = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    objective = LinearObjective(X, torch.tensor([-1, 1, 1, -1]), "logistic", l2)
    return objective, fit(objective).theta


def test_a_point_that_holds_nearly_all_of_its_curvature_is_named():
    objective, theta = lonely(1e-6)
    with pytest.warns(HighLeverageWarning, match=r"training point 3 may overshoot: up to 9\d\.?\d? % of"):
        self_influence(objective, theta, Hessian(objective, theta), correction="leverage")
    gradient = torch.ones(2, 1, dtype=torch.float64)
    with pytest.warns(HighLeverageWarning, match="training point 3 "):
        corrected_change(objective, theta, gradient, torch.tensor([0, 3]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        corrected_change(objective, theta, gradient, torch.tensor([0, 1, 2]))


def test_a_point_without_which_no_curvature_is_left_is_refused_by_name():
    """Another point of negative weight holds it: the step without it leads to a maximum."""
    objective, theta = lonely(1e-3)
    negative = LinearObjective(
        torch.cat([objective.X.dense(), torch.tensor([[0.0, 1.0]], dtype=torch.float64)]),
        torch.tensor([-1, 1, 1, -1, -1]), "logistic", 1e-3,
    ).with_weights(torch.tensor([1.0, 1.0, 1.0, 1.0, -0.5], dtype=torch.float64))  # fmt: skip
    with pytest.raises(NotPositiveDefiniteError, match="without training point 3 the curvature is not"):
        corrected_change(negative, theta, torch.ones(2, 1, dtype=torch.float64))


def test_what_is_wrong_is_named():
    objective, theta, gradients = problem("logistic", (30, 5), False)
    s = Exact().solve(Hessian(objective, theta), gradients).value
    with pytest.raises(DataError, match="correction must be 'first_order' or 'leverage', got 'second'"):
        removal_change(objective, theta, s, correction="second")
    other = Hessian(objective.subset(torch.arange(10)), theta)
    with pytest.raises(DataError, match="of this objective over all its examples"):
        removal_change(objective, theta, s, correction="leverage", operator=other)
    operator = Hessian(objective, theta)
    state = Exact().prepare(operator)
    with pytest.raises(DataError, match="leave state out"):
        self_influence(objective, theta, operator, state=state, correction="leverage")
