"""Fits end with the certificate that they claim."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from influence import ConvergenceError, DataError, LinearObjective, NotConvergedWarning, fit
from influence.objectives.module import Objective
from tests.influence.problems import LOSSES, linear_data, linear_problem, oracle_value


@pytest.mark.parametrize("method", ["newton", "lbfgs"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shape", [(60, 7), (12, 40), (300, 150)])
def test_reaches_the_tolerance_and_says_so_truly(method, loss, shape):
    objective = linear_problem(loss, n=shape[0], d=shape[1], l2=0.02)
    tolerance = 1e-10 if method == "newton" else 1e-7
    result = fit(objective, method=method, tolerance=tolerance, max_iterations=500)
    X, _ = linear_data(loss, n=shape[0], d=shape[1])
    theta = result.theta.clone().requires_grad_(True)
    value = oracle_value(objective, X, theta)
    norm = float(torch.autograd.grad(value, theta)[0].norm())
    certificate = result.certificate
    assert certificate.converged
    assert norm <= tolerance * 1.01
    assert certificate.gradient_norm == pytest.approx(norm, abs=1e-13)
    assert certificate.value == pytest.approx(float(value.detach()), rel=1e-12)
    assert "seconds" not in certificate.to_dict()


@pytest.mark.parametrize("loss", ["logistic", "cross_entropy"])
def test_agrees_with_scikit_learn(loss):
    X, y = linear_data(loss, n=80, density=1.0)
    l2 = 0.03
    theta = fit(LinearObjective(X, y, loss, l2)).theta
    peer = LogisticRegression(
        C=1 / (len(y) * l2), fit_intercept=False, tol=1e-12, max_iter=5000, solver="newton-cg"
    )
    peer.fit(X.numpy(), y.numpy())
    np.testing.assert_allclose(theta.reshape(peer.coef_.shape).numpy(), peer.coef_, rtol=1e-5, atol=1e-7)


def test_more_inputs_than_examples_fit_without_a_matrix_of_inputs_by_inputs(monkeypatch):
    """The eigenvectors that precondition CG are for few inputs; here the n unknowns of the Gram form do."""

    def refused(*_, **__):
        raise AssertionError("no eigendecomposition of inputs by inputs")

    monkeypatch.setattr("influence.optimisers.CG.solve", refused)
    objective = linear_problem("cross_entropy", n=420, d=2_100, l2=0.02)
    result = fit(objective, tolerance=1e-10)
    assert result.certificate.gradient_norm <= 1e-10
    assert float(objective.gradient(result.theta).norm()) <= 1e-10


def test_newton_fits_a_net_from_a_random_start():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    X, y = linear_data("cross_entropy", n=40)
    objective = Objective(net, "cross_entropy", X, y, 0.05)
    result = fit(objective, tolerance=1e-9)
    assert result.certificate.gradient_norm <= 1e-9
    assert result.certificate.value < float(objective.value(objective.initial()))


def test_adam_lowers_the_objective_and_repeats_byte_for_byte():
    objective = linear_problem("cross_entropy", n=60)

    def run():
        generator = torch.Generator().manual_seed(3)
        with pytest.warns(NotConvergedWarning, match="adam stopped after 150"):
            return fit(
                objective, method="adam", max_iterations=150, batch_size=16,
                learning_rate=lambda s: 0.05 / (1 + s / 50), generator=generator, raise_on_failure=False,
            )  # fmt: skip

    first, second = run(), run()
    assert torch.equal(first.theta, second.theta)
    best = fit(objective).certificate.value
    start = float(objective.value(objective.initial()))
    assert best <= first.certificate.value < best + 0.2 * (start - best)
    assert not first.certificate.converged


def test_failures_are_named():
    objective = linear_problem("logistic")
    with pytest.raises(ConvergenceError, match=r"newton stopped after 1 iterations.*raise max_iterations"):
        fit(objective, max_iterations=1)
    with pytest.raises(DataError, match="newton, lbfgs, adam"):
        fit(objective, method="sgd")


def test_progress_is_reported():
    seen: list[int] = []
    fit(linear_problem("logistic"), progress=seen.append)
    assert seen == list(range(1, len(seen) + 1))
    assert seen


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("tolerance", float("nan")), ("tolerance", 0), ("tolerance", -1), ("tolerance", float("inf")),
        ("max_iterations", 0), ("max_iterations", 2.5), ("learning_rate", 0.0), ("batch_size", 0),
    ],
)  # fmt: skip
def test_every_setting_has_a_range(setting, value):
    with pytest.raises(DataError, match=rf"{setting} must be .*got {value}"):
        fit(linear_problem("logistic"), **{"method": "adam", setting: value})


class Normalised(nn.Module):
    """Layer normalisation written out: the objective has a long, flat valley."""

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        return centred * (centred.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt()


def normalised_net() -> Objective:
    torch.manual_seed(1)
    x = torch.randn(120, 5, dtype=torch.float64)
    y = ((x @ torch.randn(5, dtype=x.dtype) + 0.7 * torch.randn(120, dtype=x.dtype)) > 0).long()
    net = nn.Sequential(nn.Linear(5, 3), Normalised(), nn.Tanh(), nn.Linear(3, 2)).double()
    return Objective(net, "cross_entropy", x, y, 0.02)


def test_lbfgs_runs_to_its_limit_on_a_normalised_net():
    """Its gradient norm rises for long stretches while the objective falls; that is no reason to stop."""
    with pytest.raises(ConvergenceError, match=r"lbfgs stopped after 150 iter.*raise max.*method='newton'"):
        fit(normalised_net(), method="lbfgs", tolerance=1e-9, max_iterations=150)


def test_what_is_advised_where_lbfgs_reaches_its_limit_helps():
    X, y = linear_data("logistic", n=60, d=6, density=1.0)
    objective = LinearObjective(X * torch.logspace(-2, 2, 6).double(), y, "logistic", 1e-3)
    with pytest.raises(ConvergenceError, match=r"lbfgs stopped after 20 iter.*raise max.*method='newton'"):
        fit(objective, method="lbfgs", tolerance=1e-9, max_iterations=20)
    assert fit(objective, method="lbfgs", tolerance=1e-9).certificate.gradient_norm <= 1e-9
    assert fit(objective, tolerance=1e-9).certificate.gradient_norm <= 1e-9


def test_lbfgs_that_stagnates_is_ended_by_newton():
    """At a tolerance near rounding the value no longer falls; Newton's steps still lower the gradient."""
    objective = linear_problem("logistic", n=60)
    stalled = []
    result = fit(objective, method="lbfgs", tolerance=2e-16, raise_on_failure=False, progress=stalled.append)
    assert result.certificate.gradient_norm < 1e-14
    assert stalled == sorted(stalled)


def test_float32_reaches_its_default_tolerance_and_says_what_it_cannot():
    objective = linear_problem("logistic", n=60, dtype=torch.float32)
    assert fit(objective).certificate.tolerance == 1e-5
    with pytest.raises(ConvergenceError, match=r"no step lowers it.*use float64 instead of torch.float32"):
        fit(objective, tolerance=1e-12)
    with pytest.raises(ConvergenceError, match=r"no step lowers it further") as caught:
        fit(linear_problem("logistic", n=60), tolerance=1e-30)
    assert "float64" not in str(caught.value)
