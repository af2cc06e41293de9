"""Whatever the data are: leave_one_out ends and its certificates are true; predictions carry weights."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from influence import (
    Exact,
    Hessian,
    LinearObjective,
    NotConvergedWarning,
    fit,
    get_loss,
    leave_one_out,
    removal_change,
)
from influence.retraining.retained import retained
from tests.helpers import examples

EXAMPLES = examples(16)


def problem(seed: int) -> LinearObjective:
    """Separable, noisy or duplicate rows; λ from 1e-8; feature scales from 1e-6 to 1e6, the same or mixed."""
    draw = np.random.default_rng(seed)
    n, d = int(draw.integers(4, 25)), int(draw.integers(1, 10))
    X = draw.normal(size=(n, d)) * 10.0 ** draw.uniform(-6, 6)
    if draw.random() < 0.3:
        X = X * 10.0 ** draw.uniform(-2, 2, size=d)
    kind = draw.choice(["separable", "noise", "duplicates"])
    if kind == "duplicates":
        X = X[draw.integers(0, max(2, n // 3), size=n)]
    score = X @ draw.normal(size=d)
    upper = (score > np.median(score)).astype(int)
    loss = str(draw.choice(["logistic", "cross_entropy", "smooth_hinge"]))
    y = upper if kind == "separable" else draw.integers(0, 2, size=n)
    y[:2] = [0, 1]
    chosen = get_loss(loss, temperature=0.3) if loss == "smooth_hinge" else get_loss(loss)
    objective = LinearObjective(
        X, y if loss == "cross_entropy" else 2 * y - 1, chosen, 10.0 ** draw.uniform(-8, 0),
        intercept=bool(draw.random() < 0.3),
    )  # fmt: skip
    weights = torch.from_numpy(draw.uniform(0, 3, size=n))
    return objective.with_weights(weights) if draw.random() < 0.3 else objective


@settings(max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES < 1000)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["objective", "loss"]))
@example(180448925, "objective")  # λ below the rounding of the curvature: no point reached the tolerance once
def test_leave_one_out_ends_and_its_certificates_are_true(seed, removal):
    objective = problem(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)
        theta = fit(objective, tolerance=1e-8, raise_on_failure=False).theta
        found = leave_one_out(objective, theta, list(range(objective.n)), removal=removal)
    assert found.thetas.shape == (objective.p, objective.n)
    assert torch.equal(found.converged, found.gradient_norms <= 1e-8)
    size = float(objective.X.row_squares().max()) ** 0.5
    for j in (0, objective.n - 1):
        left = retained(objective, [j], removal)
        norm = left.factor * float(left.objective.gradient(found.thetas[:, j]).norm())
        # The gradient itself is known to rounding only, which features of size 1e6 amplify.
        assert norm == pytest.approx(float(found.gradient_norms[j]), rel=1e-6, abs=1e-13 * size + 1e-15)
    assert int(found.converged.sum()) >= objective.n - 1


@settings(max_examples=examples(10), deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["objective", "loss"]))
def test_predictions_are_the_derivative_of_leaving_out_ever_less_of_a_point(seed, removal):
    """The ε of the paper: a point that loses a part ε of its weight moves θ by ε times the prediction."""
    draw = np.random.default_rng(seed)
    n, d = 20, 3
    X, y = draw.normal(size=(n, d)), draw.choice([-1, 1], size=n)
    y[:2] = [1, -1]
    weights = torch.from_numpy(draw.uniform(0.2, 3, size=n))
    objective = LinearObjective(X, y, "logistic", 0.05).with_weights(weights)
    theta, i = fit(objective, tolerance=1e-13, raise_on_failure=False).theta, int(draw.integers(n))
    S = torch.eye(d, dtype=torch.float64)  # the change of θ itself
    s = Exact().solve(Hessian(objective, theta), S).value
    predicted = removal_change(objective, theta, s, torch.tensor([i]), removal=removal)[0]
    part = 1e-5
    less = weights.clone()
    less[i] *= 1 - part
    moved = objective.with_weights(less)
    if removal == "objective":  # n falls with the point, so that λ weighs more
        moved = objective.with_weights(less * n / (n - part))
    refit = fit(moved, theta, tolerance=1e-13, raise_on_failure=False).theta
    scale = (n - 1) / n if removal == "objective" else 1.0
    torch.testing.assert_close((refit - theta) / part, predicted * scale, rtol=2e-3, atol=1e-7)
