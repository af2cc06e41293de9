"""Unpenalised intercepts: autograd, scikit-learn, ``nn.Linear`` and dense algebra say the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from influence import (
    CG,
    Damped,
    DataError,
    Exact,
    Hessian,
    LinearObjective,
    LiSSA,
    Objective,
    fit,
    get_loss,
    leave_one_out,
    pert_loss,
    removal_change,
    self_influence,
    test_gradients,
    up_loss,
)
from influence.groups import group_change
from influence.objectives.data_matrix import SparseMatrix
from influence.objectives.streaming import ArraySource, stream
from tests.influence.problems import LOSSES, force_sparse, linear_data, oracle_losses, random_theta


def problem(loss: str, sparse: bool = False, shape=(30, 5), l2: float = 0.03) -> LinearObjective:
    X, y = linear_data(loss, n=shape[0], d=shape[1])
    c = 4 if loss == "cross_entropy" else None
    data = force_sparse(X) if sparse else X
    return LinearObjective(data, y, get_loss(loss, **LOSSES[loss]), l2, n_outputs=c, intercept=True)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_derivatives_equal_autograd(loss, sparse):
    objective = problem(loss, sparse)
    assert isinstance(objective.X, SparseMatrix) is sparse
    X, _ = linear_data(loss, n=30, d=5)
    theta = random_theta(objective)

    def value(t):
        W = t.reshape(objective.n_outputs, 6)
        return oracle_losses(objective, X @ W[:, :5].T + W[:, 5]).mean() + 0.015 * (W[:, :5] ** 2).sum()

    torch.testing.assert_close(objective.value(theta), value(theta))
    torch.testing.assert_close(objective.values(theta[:, None])[0], value(theta))
    point = theta.clone().requires_grad_(True)
    torch.testing.assert_close(objective.gradient(theta), torch.autograd.grad(value(point), point)[0])
    H = torch.autograd.functional.hessian(value, theta)
    operator = Hessian(objective, theta)
    torch.testing.assert_close(operator.dense(), H)
    torch.testing.assert_close(operator.diagonal(), H.diagonal())
    wide = torch.randn(objective.p, 70, dtype=torch.float64)
    torch.testing.assert_close(operator @ wide, H @ wide)
    inside = test_gradients(objective, theta, [0, 3])  # a shift of all classes' intercepts has no curvature
    for damping in (0.0, 0.2):
        damped = Damped(operator, damping)
        state = Exact().prepare(damped)
        assert state.form == "core"
        dense = H + damping * torch.eye(objective.p, dtype=torch.float64)
        truth = torch.linalg.lstsq(dense, inside, driver="gelsd").solution
        torch.testing.assert_close(Exact().solve(damped, inside).value, truth, rtol=1e-7, atol=1e-9)
        for preconditioner in ("none", "kronecker"):
            solution = CG(tolerance=1e-12, preconditioner=preconditioner).solve(damped, inside)
            torch.testing.assert_close(solution.value, truth, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("damping", [0.0, 0.2])
@pytest.mark.parametrize("loss", LOSSES)
def test_more_inputs_than_examples_go_through_the_gram_form(loss, damping):
    objective = problem(loss, shape=(9, 30))
    theta = fit(objective).theta
    damped = Damped(Hessian(objective, theta), damping)
    inside = test_gradients(objective, theta, [0, 3, 5])
    state = Exact().prepare(damped)
    assert state.form == "gram"
    dense = damped.dense()
    truth = torch.linalg.lstsq(dense, inside, driver="gelsd").solution
    torch.testing.assert_close(Exact().apply(state, inside).value, truth, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(state.quadratic(inside), (inside * truth).sum(0), rtol=1e-7, atol=1e-9)
    own = self_influence(objective, theta, damped, idx=torch.tensor([0, 3, 5]))
    torch.testing.assert_close(own, (inside * truth).sum(0), rtol=1e-7, atol=1e-9)
    s = Exact().apply(state, inside).value
    quick = removal_change(objective, theta, s, correction="leverage", operator=damped)
    slow = removal_change(
        objective, theta, s, correction="leverage", operator=damped, solver=CG(tolerance=1e-13)
    )
    torch.testing.assert_close(quick, slow, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["breast_cancer", "wine"])
def test_equals_scikit_learns_unpenalised_intercept(name):
    X, y = (load_breast_cancer if name == "breast_cancer" else load_wine)(return_X_y=True)
    X, binary, C = StandardScaler().fit_transform(X), name == "breast_cancer", 0.01
    peer = LogisticRegression(C=C, solver="newton-cg", tol=1e-11, max_iter=1000).fit(X, y)
    objective = LinearObjective(
        X,
        2 * y - 1 if binary else y,
        "logistic" if binary else "cross_entropy",
        1 / (C * len(y)),
        intercept=True,
    )
    theta = objective.theta_of(peer.coef_, peer.intercept_)
    assert float(objective.gradient(theta).norm()) < 1e-7
    W, b = objective.coefficients(fit(objective).theta)
    np.testing.assert_allclose(W, peer.coef_, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(b - b.mean() if len(b) > 1 else b, peer.intercept_, rtol=1e-5, atol=1e-7)


def test_scores_are_those_of_a_linear_layer_with_a_free_bias():
    """A column of ones with a penalty gives other scores; this is the case that failed."""
    X, y = load_breast_cancer(return_X_y=True)
    rows = np.r_[np.where(y == 1)[0], np.where(y == 0)[0][:40]]
    X, y = StandardScaler().fit_transform(X[rows]), 2 * y[rows] - 1
    l2 = 1 / (0.01 * len(y))
    ours = LinearObjective(X, y, "logistic", l2, intercept=True)
    theta = fit(ours).theta
    layer = nn.Linear(X.shape[1], 1).double()
    module = Objective(layer, "logistic", torch.tensor(X), torch.tensor(y), l2, l2_parameters="weights")
    worst = [int(ours.example_losses(theta).argmax())]
    s = Exact().solve(Hessian(ours, theta), test_gradients(ours, theta, worst)).value
    t = Exact().solve(Hessian(module, theta), test_gradients(module, theta, worst)).value
    torch.testing.assert_close(up_loss(ours, theta, s), up_loss(module, theta, t), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(
        pert_loss(ours, theta, s, torch.tensor([0, 3])), pert_loss(module, theta, t, torch.tensor([0, 3])),
        rtol=1e-7, atol=1e-9,
    )  # fmt: skip
    torch.testing.assert_close(
        self_influence(ours, theta, Hessian(ours, theta)),
        self_influence(module, theta, Hessian(module, theta)), rtol=1e-7, atol=1e-9,
    )  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES)
def test_removal_with_an_intercept_is_what_retraining_does(loss):
    objective = problem(loss, shape=(60, 4))
    theta = fit(objective).theta
    X, y = linear_data(loss, n=4, d=4, seed=9)
    test = objective.on(X, y)
    for removal in ("objective", "loss"):
        models = leave_one_out(objective, theta, list(range(60)), removal=removal)
        actual = (test.example_losses_many(models.thetas) - test.example_losses(theta)[:, None]).T
        s = Exact().solve(Hessian(objective, theta), test_gradients(test, theta, [0, 1, 2, 3])).value
        settings = {"removal": removal}
        plain = removal_change(objective, theta, s, **settings)
        corrected = removal_change(objective, theta, s, correction="leverage", **settings)
        few = removal_change(
            objective,
            theta,
            s,
            torch.tensor([5, 9]),
            correction="leverage",
            solver=CG(tolerance=1e-12),
            **settings,
        )
        torch.testing.assert_close(few, corrected[[5, 9]], rtol=1e-6, atol=1e-9)
        assert float((corrected - actual).norm()) < 0.7 * float((plain - actual).norm())
        group = group_change(objective, theta, [0, 1, 2], test, method="refit", **settings)
        step = group_change(objective, theta, [0, 1, 2], test, steps=3, **settings)
        torch.testing.assert_close(step, group, rtol=1e-3, atol=1e-5)


def test_streamed_data_and_lissa_know_the_intercept():
    objective = problem("cross_entropy")
    theta = fit(objective).theta
    X, y = linear_data("cross_entropy", n=30, d=5)
    streamed = stream(objective, ArraySource(X.numpy(), y.numpy()), batch_size=8)
    inside = test_gradients(objective, theta, [0, 3])
    torch.testing.assert_close(streamed.gradient(theta), objective.gradient(theta), rtol=1e-9, atol=1e-12)
    exact = Exact().solve(Hessian(objective, theta), inside).value
    torch.testing.assert_close(Exact().solve(Hessian(streamed, theta), inside).value, exact)
    torch.testing.assert_close(fit(streamed).theta, theta, rtol=1e-7, atol=1e-8)
    damped = Damped(Hessian(objective, theta), 0.3)
    exact = Exact().solve(damped, inside).value
    sampled = LiSSA(depth=400, repeats=20, batch=8, tolerance=0.5).solve(damped, inside).value
    assert float((sampled - exact).norm() / exact.norm()) < 0.1


def test_what_is_wrong_is_named():
    objective = problem("logistic")
    with pytest.raises(DataError, match="has 5 inputs but X has 6 columns"):
        objective.on(torch.zeros(2, 6, dtype=torch.float64), torch.tensor([1, -1]))
    with pytest.raises(DataError, match="needs intercepts; build it with intercept=False"):
        objective.theta_of(np.zeros((1, 5)))
    with pytest.raises(DataError, match=r"weights must have shape \(1, 5\)"):
        objective.theta_of(np.zeros((1, 6)), np.zeros(1))
    for weights in (torch.ones(3), torch.full((30,), float("nan"))):
        with pytest.raises(DataError, match="weights must"):
            objective.with_weights(weights)
