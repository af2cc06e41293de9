"""The space of a linear model's minimiser: right dimension, nothing lost, and fits that need it."""

from __future__ import annotations

import pytest
import torch

from influence import LinearObjective, fit
from tests.influence.retraining.test_properties import problem


def made(loss: str, n: int, d: int, intercept: bool, rank: int, columns: float = 1.0) -> LinearObjective:
    g = torch.Generator().manual_seed(n + d)
    X = torch.randn(n, rank, generator=g, dtype=torch.float64) @ torch.randn(
        rank, d, generator=g, dtype=torch.float64
    )
    X = X * torch.logspace(0, columns, d, dtype=torch.float64)
    y = torch.arange(n) % 3 if loss == "cross_entropy" else 2 * (torch.arange(n) % 2) - 1
    return LinearObjective(X, y, loss, 0.01, intercept=intercept)


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("columns", [0.0, 4.0])
@pytest.mark.parametrize(
    ("loss", "n", "d", "rank"),
    [
        ("logistic", 6, 9, 6),
        ("logistic", 20, 5, 3),
        ("cross_entropy", 6, 9, 6),
        ("cross_entropy", 20, 5, 3),
        ("cross_entropy", 20, 5, 5),
    ],
)
def test_the_minimiser_lies_in_the_space_and_the_nearest_point_keeps_the_loss(
    loss, n, d, rank, columns, intercept
):
    objective = made(loss, n, d, intercept, rank, columns)
    space = objective.determined()
    c = objective.n_outputs
    inputs = torch.linalg.matrix_rank(objective.X.dense() / objective.X.dense().norm(dim=0))
    assert space.basis.shape == (objective.p, int(inputs) * (c - 1 if c > 1 else 1))
    eye = torch.eye(space.basis.shape[1], dtype=torch.float64)
    torch.testing.assert_close(space.basis.T @ space.basis, eye, rtol=0, atol=1e-12)
    best = fit(objective, tolerance=1e-10, raise_on_failure=False).theta
    inside = space.basis @ (space.basis.T @ best)
    torch.testing.assert_close(inside, best, rtol=1e-6, atol=1e-9)
    theta = torch.randn(objective.p, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    near = space.nearest(theta)
    torch.testing.assert_close(
        objective.example_losses(near), objective.example_losses(theta), rtol=1e-8, atol=1e-8
    )
    assert float(objective.penalty(near)) < float(objective.penalty(theta))
    # The least penalty: the point lies in the space, so a second step changes nothing.
    torch.testing.assert_close(space.basis @ (space.basis.T @ near), near, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(space.nearest(near), near, rtol=1e-8, atol=1e-10)


def test_data_that_determine_everything_have_no_smaller_space():
    assert made("logistic", 20, 5, False, 5).determined() is None
    assert made("logistic", 20, 5, True, 5).determined() is None


def test_examples_of_weight_zero_determine_nothing():
    objective = made("logistic", 8, 5, False, 5)
    weights = torch.zeros(8, dtype=torch.float64)
    weights[:2] = 1
    assert objective.with_weights(weights).determined().basis.shape == (5, 2)


def test_a_fit_reaches_its_tolerance_where_the_penalty_is_below_the_rounding_of_the_curvature():
    """Rows of norm 6e7, λ = 9e-7: the step along the sum of the classes was noise, and spoilt the outputs."""
    objective = problem(180448925)
    found = fit(objective, tolerance=1e-8, raise_on_failure=False)
    assert found.certificate.converged
    W = found.theta.reshape(objective.n_outputs, -1)
    assert float(W.sum(0).abs().max()) <= 1e-6 * float(W.abs().max())
