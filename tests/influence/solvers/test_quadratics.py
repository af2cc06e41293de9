"""Self-influences against 60 digits, whatever the scale of the features: within their bound, or said so."""

import os

import mpmath as mp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from influence import (
    CG,
    Damped,
    Exact,
    Hessian,
    LinearObjective,
    NotConvergedWarning,
    SolverError,
    Status,
    self_influence,
    verified_self_influence,
)
from tests.influence.exact_reference import exact_self_influence

EXAMPLES = int(os.environ.get("INFLUENCE_EXAMPLES", "25"))  # 5,000 ran once; see the commit
SHAPES = {"cross_entropy": [(12, 2), (5, 3), (8, 4)], "logistic": [(12, 3), (4, 7), (6, 12), (9, 9)]}


@st.composite
def problems(draw: st.DrawFn) -> tuple[LinearObjective, torch.Tensor]:
    """A linear objective and θ: one scale for all features or one each, n < p and n > p, any λ."""
    loss = draw(st.sampled_from(["cross_entropy", "logistic"]))
    n, d = draw(st.sampled_from(SHAPES[loss]))
    dtype = draw(st.sampled_from([torch.float64, torch.float32]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    logs = st.floats(-8, 8)
    scales = [draw(logs)] * d if draw(st.booleans()) else [draw(logs) for _ in range(d)]
    X = torch.randn(n, d, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):  # nearly collinear features
        X[:, -1] = X[:, 0] + 10.0 ** draw(st.floats(-8, 0)) * X[:, -1]
    X = X * 10.0 ** torch.tensor(scales, dtype=torch.float64)
    y = torch.arange(n) % (3 if loss == "cross_entropy" else 2)
    y = y if loss == "cross_entropy" else 2 * y - 1
    weights = torch.rand(n, generator=generator) if draw(st.booleans()) else None
    o = LinearObjective(X, y, loss, 10.0 ** draw(st.floats(-10, 3)), dtype=dtype)
    o = o if weights is None else o.with_weights(weights)
    size = 10.0 ** draw(st.floats(-2, 1.3))  # of the outputs: unsure to confident
    theta = torch.randn(o.n_outputs, d, generator=generator, dtype=torch.float64)
    theta = size * theta / 10.0 ** torch.tensor(scales, dtype=torch.float64) / d**0.5
    return o, theta.reshape(-1).to(dtype)


def check(o: LinearObjective, theta: torch.Tensor, solver: Exact) -> Status:
    try:
        found = verified_self_influence(o, theta, Hessian(o, theta), solver)
    except SolverError:
        return Status.NOT_POSITIVE_DEFINITE
    truth = exact_self_influence(o, theta)
    for value, error, true in zip(found.value.tolist(), found.error.tolist(), truth, strict=True):
        assert abs(mp.mpf(value) - true) <= error, (value, error, float(true), found.stats)
    if found.status is Status.CONVERGED:
        largest = max(truth)
        for value, true in zip(found.value.tolist(), truth, strict=True):
            off = abs(mp.mpf(value) - true)
            assert off <= 2 * found.stats["tolerance"] * max(true, largest * mp.mpf("1e-6"), mp.mpf("1e-30"))
    return found.status


@settings(max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES < 1000)
@given(problems(), st.sampled_from(["auto", "core", "gram", "dense"]))
def test_every_value_is_within_its_error_bound(problem, form):
    check(*problem, Exact(form=form))
