"""Deletion diagnostics of statsmodels: DFBETAS, Cook's distance, PRESS, and Pregibon's step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from influence import Exact, Hessian, LinearObjective, fit, leave_one_out, removal_change

statsmodels = pytest.importorskip(
    "statsmodels.api", reason="statsmodels is the oracle here: pip install '.[dev]'"
)
N, D = 60, 4
CLOSE = {"rtol": 1e-8, "atol": 1e-10}


def data() -> tuple[np.ndarray, np.ndarray]:
    """X with a column of ones, and three rows of high leverage; y with noise."""
    rng = np.random.default_rng(0)
    X = np.column_stack([np.ones(N), rng.normal(size=(N, D - 1))])
    X[:3, 1:] *= 6
    return X, X @ np.array([0.5, 1.0, -2.0, 0.3]) + rng.normal(size=N)


def changes(objective: LinearObjective, theta: torch.Tensor) -> np.ndarray:
    """θ without point i, less θ, by one leverage-corrected step: (n, p)."""
    every = Exact().solve(Hessian(objective, theta), torch.eye(objective.p, dtype=torch.float64)).value
    return removal_change(objective, theta, every, correction="leverage").numpy()


@pytest.mark.parametrize("way", ["leverage", "retraining"])
def test_least_squares_without_each_point_is_what_statsmodels_says(way: str) -> None:
    X, y = data()
    oracle = statsmodels.OLS(y, X).fit()
    told = oracle.get_influence()
    objective = LinearObjective(X, y[:, None], "squared_error", l2=0.0)
    theta = fit(objective, tolerance=1e-13).theta
    np.testing.assert_allclose(theta.numpy(), oracle.params, **CLOSE)
    if way == "leverage":
        change = changes(objective, theta)
    else:
        inverse = Exact().prepare(Hessian(objective, theta)).inverse
        change = leave_one_out(objective, theta, torch.arange(N), inverse, tolerance=1e-13).thetas.T.numpy()
        change = change - theta.numpy()
    np.testing.assert_allclose(-change, told.dfbeta, **CLOSE)

    press = y - np.einsum(
        "ij,ij->i", X, theta.numpy() + change
    )  # the residual of a point that was not fitted
    np.testing.assert_allclose(press, told.resid_press, **CLOSE)

    residual = y - X @ theta.numpy()
    variance = residual @ residual / (N - D)
    cook = np.einsum("ij,jk,ik->i", change, X.T @ X, change) / (D * variance)
    np.testing.assert_allclose(cook, told.cooks_distance[0], **CLOSE)

    without = (residual @ residual - residual * press) / (N - 1 - D)  # the variance without each point
    scale = np.sqrt(without[:, None] * np.diag(np.linalg.inv(X.T @ X)))
    np.testing.assert_allclose(-change / scale, told.dfbetas, **CLOSE)


def test_the_corrected_step_of_a_logistic_model_is_pregibons() -> None:
    """Its Cook's distance and its change of the parameters, and how far both are from real retraining."""
    X, y = data()
    labels = (y > np.median(y)).astype(float)
    labels[10:14] = 1 - labels[10:14]  # so that the classes overlap and a minimum exists
    oracle = statsmodels.GLM(labels, X, family=statsmodels.families.Binomial()).fit(tol=1e-14, maxiter=200)
    told = oracle.get_influence()
    objective = LinearObjective(X, 2 * labels - 1, "logistic", l2=0.0)
    theta = fit(objective, tolerance=1e-13).theta
    np.testing.assert_allclose(theta.numpy(), oracle.params, **CLOSE)
    change = changes(objective, theta)
    np.testing.assert_allclose(-change, told.d_params, **CLOSE)
    information = X.T @ (X * (oracle.mu * (1 - oracle.mu))[:, None])
    cook = np.einsum("ij,jk,ik->i", change, information, change) / D
    np.testing.assert_allclose(cook, told.cooks_distance[0], **CLOSE)
    refits = np.array(
        [
            statsmodels.GLM(np.delete(labels, i), np.delete(X, i, 0), family=statsmodels.families.Binomial())
            .fit(tol=1e-12)
            .params
            for i in range(N)
        ]
    )
    assert np.corrcoef((refits - oracle.params).ravel(), change.ravel())[0, 1] > 0.95
