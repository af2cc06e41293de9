"""Every score against finite differences of actual retraining, and against each other across solvers.

The truth here is a refit in float64 to a gradient norm of 1e-12 with a point re-weighted, removed or moved;
no formula of the package is used to make it but the objective itself.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import influence
from influence import (
    CG,
    Damped,
    DataError,
    Exact,
    Hessian,
    LinearObjective,
    LiSSA,
    NotConvergedWarning,
    TrainingGradient,
    fit,
    get_loss,
    leave_one_out,
    predicted_change,
    removal_change,
    self_influence,
    test_gradients,
    up_loss,
    up_params,
)
from influence.objectives.module import Objective
from tests.influence.problems import LOSSES, linear_data, linear_problem

TIGHT = 1e-12


class Weighted:
    """``objective`` with one example's loss counted ``1 + n·ε`` times: the ε of the paper's upweighting."""

    def __init__(self, objective: Objective, index: int, epsilon: float) -> None:
        self.__dict__.update(inner=objective, one=objective.subset(torch.tensor([index])), epsilon=epsilon)

    def __getattr__(self, name: str):
        return getattr(self.inner, name)

    def value(self, theta):
        return self.inner.value(theta) + self.epsilon * self.one.example_losses(theta)[0]

    def gradient(self, theta):
        return self.inner.gradient(theta) + self.epsilon * self.one.example_gradients(theta)[0]


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def net_problem() -> tuple[Objective, torch.Tensor]:
    X, y = linear_data("cross_entropy", n=25, d=3, c=3, density=1.0)
    X[:, -1] = torch.linspace(-1, 1, 25)
    objective = Objective(small_net(), "cross_entropy", X, y, 0.1)
    start = fit(objective, method="lbfgs", tolerance=1e-6, raise_on_failure=False).theta
    return objective, fit(objective, start, tolerance=TIGHT).theta


def problem(kind: str):
    if kind == "net":
        return net_problem()
    objective = linear_problem(kind, l2=0.1)
    return objective, fit(objective, tolerance=TIGHT).theta


def reweighted(objective, theta, index: int, epsilon: float) -> torch.Tensor:
    if isinstance(objective, LinearObjective):
        weights = torch.ones(objective.n, dtype=torch.float64)
        weights[index] += objective.n * epsilon
        return fit(objective.with_weights(weights), theta, tolerance=TIGHT).theta
    # Newton's steps may use the unweighted Hessian: the fit is judged by the re-weighted gradient alone.
    return fit(Weighted(objective, index, epsilon), theta, tolerance=1e-11).theta


def moved(objective, theta, index: int, delta: torch.Tensor) -> torch.Tensor:
    X = (objective.X.dense() if isinstance(objective, LinearObjective) else objective.inputs).clone()
    X[index] += delta
    return fit(rebuilt(objective, X), theta, tolerance=TIGHT).theta


def rebuilt(objective, X):
    if isinstance(objective, LinearObjective):
        c = objective.n_outputs
        y = objective.targets
        return LinearObjective(X, y, objective.loss, objective.l2, n_outputs=None if c == 1 else c)
    return objective.on(X, objective.targets)


KINDS = [*LOSSES, "net"]


@pytest.mark.parametrize("kind", KINDS)
def test_up_params_is_the_derivative_of_the_reweighted_fit(kind):
    objective, theta = problem(kind)
    operator = Hessian(objective, theta)
    idx = [0, 3, 11]
    ours = up_params(objective, theta, operator, Exact(), idx, "loss")
    h = 1e-4
    for column, i in enumerate(idx):
        truth = (reweighted(objective, theta, i, h) - reweighted(objective, theta, i, -h)) / (2 * h)
        error = float((ours[:, column] - truth).norm() / truth.norm())
        assert error < 1e-4, (i, error)


@pytest.mark.parametrize("kind", KINDS)
def test_up_loss_is_the_derivative_of_the_test_loss(kind):
    objective, theta = problem(kind)
    test = objective.on(*_test_data(kind))
    G = test_gradients(test, theta, [0, 2])
    s = influence.s_test(Hessian(objective, theta), Exact(), G).value
    ours = up_loss(objective, theta, s, "loss")
    assert ours.shape == (objective.n, 2)
    h = 1e-4
    for i in (0, 3, 11):
        plus = test.example_losses(reweighted(objective, theta, i, h))
        minus = test.example_losses(reweighted(objective, theta, i, -h))
        truth = ((plus - minus) / (2 * h))[[0, 2]]
        torch.testing.assert_close(ours[i], truth, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(up_loss(objective, theta, s[:, 1], "loss"), ours[:, 1])
    torch.testing.assert_close(up_loss(objective, theta, s, "loss", idx=torch.tensor([11, 0])), ours[[11, 0]])


def _test_data(kind: str):
    name = "cross_entropy" if kind == "net" else kind
    size = {"d": 3, "c": 3} if kind == "net" else {}
    X, y = linear_data(name, n=5, seed=9, density=1.0, **size)
    return X, y


@pytest.mark.parametrize("kind", [*LOSSES])
@pytest.mark.parametrize("convention", list(TrainingGradient))
def test_each_convention_predicts_its_own_retraining(kind, convention):
    """First order in 1/n: the error of the prediction falls as 1/n², the change itself as 1/n."""
    errors = []
    for copies in (4, 16):
        X, y = linear_data(kind, n=30)
        objective = LinearObjective(
            X.repeat(copies, 1), y.repeat(copies), get_loss(kind, **LOSSES[kind]), 0.1,
            n_outputs=4 if kind == "cross_entropy" else None,
        )  # fmt: skip
        theta = fit(objective, tolerance=TIGHT).theta
        test = objective.on(*_test_data(kind))
        s = Exact().solve(Hessian(objective, theta), test_gradients(test, theta, [1])).value
        predicted = predicted_change(up_loss(objective, theta, s, convention), objective.n, convention)[5, 0]
        keep = torch.arange(objective.n) != 5
        if convention is TrainingGradient.OBJECTIVE:
            refit = fit(objective.subset(keep), theta, tolerance=TIGHT).theta
        else:
            refit = fit(objective.with_weights(keep.double()), theta, tolerance=TIGHT).theta
        actual = (test.example_losses(refit) - test.example_losses(theta))[1]
        errors.append(abs(float(predicted - actual)) / abs(float(actual)))
    assert errors[1] < 0.35 * errors[0], errors
    assert errors[1] < 0.05, errors


def test_positive_means_helpful():
    """Removing a duplicate of the test point hurts; removing its mislabelled twin helps."""
    X, y = linear_data("logistic", n=40, density=1.0)
    twin, label = X[0].clone(), y[0].clone()
    X = torch.cat([X, twin[None], twin[None]])
    y = torch.cat([y, label[None], -label[None]])
    objective = LinearObjective(X, y, "logistic", 0.1)
    theta = fit(objective).theta
    test = objective.on(twin[None], label[None])
    s = Exact().solve(Hessian(objective, theta), test_gradients(test, theta, [0])).value
    change = predicted_change(up_loss(objective, theta, s), objective.n)[:, 0]
    assert change[-2] > 0 > change[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_pert_loss_and_pert_params_match_perturbed_retraining(kind):
    objective, theta = problem(kind)
    test = objective.on(*_test_data(kind))
    operator = Hessian(objective, theta)
    s = Exact().solve(operator, test_gradients(test, theta, [0, 1])).value
    idx = torch.tensor([2, 7])
    ours = influence.pert_loss(objective, theta, s, idx)
    d = ours.shape[1]
    assert ours.shape == (2, d, 2)
    h = 1e-4
    g = torch.Generator().manual_seed(0)
    for row, i in enumerate(idx.tolist()):
        delta = torch.randn(d, generator=g, dtype=torch.float64)
        up, down = moved(objective, theta, i, h * delta), moved(objective, theta, i, -h * delta)
        truth = ((test.example_losses(up) - test.example_losses(down)) / (2 * h))[:2] * objective.n
        torch.testing.assert_close(delta @ ours[row], truth, rtol=1e-4, atol=1e-6)
        params = influence.pert_params(objective, theta, operator, Exact(), i, delta)
        truth = (up - down) / (2 * h) * objective.n
        assert float((params - truth).norm() / truth.norm()) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_self_influence_by_every_route(kind):
    objective, theta = problem(kind)
    operator = Damped(Hessian(objective, theta), 0.05)
    G = objective.example_gradients(theta)
    oracle = (G * torch.linalg.solve(operator.dense(), G.T).T).sum(1)
    for solver in (None, Exact(), CG(tolerance=1e-12)):
        torch.testing.assert_close(
            self_influence(objective, theta, operator, solver), oracle, rtol=1e-8, atol=1e-10
        )
    idx = torch.tensor([9, 1])
    torch.testing.assert_close(self_influence(objective, theta, operator, idx=idx, block=1), oracle[idx])
    # −I_up,loss(z, z) is what the ranking of Fig. 6 uses
    s = Exact().solve(operator, G[idx].T.contiguous()).value
    own = -up_loss(objective, theta, s, "loss", idx=idx).diagonal()
    torch.testing.assert_close(own, oracle[idx], rtol=1e-8, atol=1e-10)
    assert bool((oracle >= 0).all())


@pytest.mark.parametrize("loss", LOSSES)
def test_self_influence_when_parameters_outnumber_examples(loss):
    objective = linear_problem(loss, n=8, d=40, density=0.5)
    theta = fit(objective).theta
    operator = Hessian(objective, theta)
    G = objective.example_gradients(theta)
    oracle = (G * torch.linalg.solve(operator.dense(), G.T).T).sum(1)
    state = Exact().prepare(operator)
    assert state.form == "gram"
    ours = self_influence(objective, theta, operator, state=state)
    torch.testing.assert_close(ours, oracle, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", ["cg", "cg-jacobi", "lissa"])
@pytest.mark.parametrize("damping", [0.1, 1.0])
def test_scores_agree_across_solvers(kind, solver, damping):
    objective, theta = problem(kind)
    operator = Damped(Hessian(objective, theta), damping)
    test = objective.on(*_test_data(kind))
    G = test_gradients(test, theta, [0, 1])
    exact = Exact().solve(operator, G).value
    chosen = {
        "cg": CG(tolerance=1e-12),
        "cg-jacobi": CG(tolerance=1e-12, preconditioner="jacobi"),
        "lissa": LiSSA(
            depth=150 if kind == "net" else 3000, repeats=20, batch=8, tolerance=0.3, scale="auto"
        ),
    }[solver]
    value = chosen.solve(operator, G).value
    ours, oracle = up_loss(objective, theta, value), up_loss(objective, theta, exact)
    if solver == "lissa":
        assert float((ours - oracle).norm() / oracle.norm()) < 0.15
    else:
        torch.testing.assert_close(ours, oracle, rtol=1e-8, atol=1e-9)
        pert = influence.pert_loss(objective, theta, value)
        torch.testing.assert_close(pert, influence.pert_loss(objective, theta, exact), rtol=1e-7, atol=1e-8)


def test_conventions_differ_by_one_constant():
    objective, theta = problem("cross_entropy")
    s = torch.randn(objective.p, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    difference = up_loss(objective, theta, s, "objective") - up_loss(objective, theta, s, "loss")
    torch.testing.assert_close(difference, difference[:1].expand_as(difference))
    assert float(difference.abs().max()) > 1e-6
    with pytest.raises(DataError, match="'other'"):
        up_loss(objective, theta, s, "other")
    with pytest.raises(DataError, match="n >= 2"):
        predicted_change(torch.zeros(1), 1)


@pytest.mark.parametrize("convention", list(TrainingGradient))
def test_a_removed_point_is_predicted_with_its_weight(convention):
    X, y = linear_data("logistic", n=80, d=4, density=1.0)
    X[:, -1] = torch.linspace(-1, 1, 80)
    weights = torch.linspace(0.2, 5.0, 80, dtype=torch.float64)
    objective = LinearObjective(X, y, "logistic", 0.05).with_weights(weights)
    theta = fit(objective, tolerance=TIGHT).theta
    test = objective.on(X[:3], y[:3])
    s = Exact().solve(Hessian(objective, theta), test_gradients(test, theta, [0])).value
    predicted = removal_change(objective, theta, s, removal=convention)[:, 0]
    models = leave_one_out(objective, theta, list(range(80)), removal=convention).thetas
    actual = test.example_losses_many(models)[0] - test.example_losses(theta)[0]
    slope = float(predicted @ actual / (predicted @ predicted))
    assert abs(slope - 1) < 0.15, slope  # 2.9 when the weight is left out
    assert float(torch.corrcoef(torch.stack([predicted, actual]))[0, 1]) > 0.98
    both = predicted_change(up_loss(objective, theta, s, convention), objective.n, convention)[:, 0]
    assert torch.equal(predicted, both)


def test_the_defaults_predict_what_leave_one_out_does():
    """With a strong λ the two conventions disagree even about signs; the defaults belong together."""
    objective = linear_problem("cross_entropy", n=60, l2=1.0)
    theta = fit(objective, tolerance=TIGHT).theta
    test = objective.on(*_test_data("cross_entropy"))
    s = Exact().solve(Hessian(objective, theta), test_gradients(test, theta, [1])).value
    models = leave_one_out(objective, theta, list(range(60))).thetas
    actual = test.example_losses_many(models)[1] - test.example_losses(theta)[1]
    predicted = predicted_change(up_loss(objective, theta, s), objective.n)[:, 0]
    other = predicted_change(up_loss(objective, theta, s, "loss"), objective.n, "loss")[:, 0]

    def apart(found: torch.Tensor) -> float:
        return float((found - actual).norm() / actual.norm())

    assert apart(predicted) < 0.1
    assert apart(other) > 3 * apart(predicted)
    assert torch.equal(removal_change(objective, theta, s)[:, 0], predicted)


def test_a_theta_that_is_not_stationary_is_warned_of():
    objective = linear_problem("logistic", n=60)
    theta = fit(objective).theta
    s = torch.ones(objective.p, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        removal_change(objective, theta, s)
    with pytest.warns(NotConvergedWarning, match=r"not stationary: its gradient norm is 0\."):
        removal_change(objective, theta + 1.0, s)


@pytest.mark.parametrize("weighted", [False, True])
def test_self_influence_takes_the_state_of_its_own_solver(weighted):
    objective = linear_problem("cross_entropy")
    if weighted:
        objective = objective.with_weights(torch.linspace(0.5, 2.0, objective.n, dtype=torch.float64))
    theta = fit(objective).theta
    operator, solver = Hessian(objective, theta), CG(tolerance=1e-12)
    G = objective.example_gradients(theta)
    oracle = objective.example_weights() * (G * torch.linalg.solve(operator.dense(), G.T).T).sum(1)
    with_state = self_influence(objective, theta, operator, solver, state=solver.prepare(operator))
    torch.testing.assert_close(with_state, oracle, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(self_influence(objective, theta, operator), oracle, rtol=1e-8, atol=1e-10)
    with pytest.raises(DataError, match=r"CG\(\)\.prepare"):
        self_influence(objective, theta, operator, solver, state=Exact().prepare(operator))
    for block in (0, -1):
        with pytest.raises(DataError, match=f"block must be at least 1, got {block}"):
            self_influence(objective, theta, operator, block=block)
