"""Hostile numbers: right to a stated bound of a dense float64 oracle, or an error that says what to change.

The bound of a solve is ``10³·p·ε·κ`` with ε the precision of the dtype and ``κ = (a·max‖x_i‖² + λ)/λ_min``.
An example's curvature is rounded relative to ``a‖x_i‖²``, a the largest curvature of its loss (1 for softmax
and logistic, 1/t² for the smooth hinge, whose margins are divided by t before they are rounded), even where
the loss is saturated and the curvature itself far smaller. CG's tolerance τ adds ``τ·κ``.
"""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from influence import (
    CG,
    Damped,
    Exact,
    Hessian,
    InfluenceError,
    LinearObjective,
    fit,
    get_loss,
    predicted_change,
    self_influence,
    up_loss,
)
from tests.helpers import examples

REMEDY = re.compile(
    r"raise|loosen|add damping|use float64|set l2|rescale|pass|check|choose|clean", re.IGNORECASE
)
QUIET = settings(
    max_examples=examples(25),
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    database=None,
)

problems = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10**6),
        "n": st.integers(4, 24),
        "d": st.integers(1, 7),
        "loss": st.sampled_from(["cross_entropy", "logistic", "smooth_hinge", "hinge"]),
        "duplicated": st.sampled_from([1, 2, 50]),
        "zero_features": st.booleans(),
        "separable": st.booleans(),
        "l2": st.sampled_from([1e-10, 1e-7, 1e-4, 1e-2, 1.0, 1e3]),
        "spread": st.sampled_from([0, 3, 6]),  # columns span 10^±spread/2: squared in the Hessian, up to 1e12
        "dtype": st.sampled_from([torch.float64, torch.float32]),
    }
)


def build(seed, n, d, loss, duplicated, zero_features, separable, l2, spread, dtype) -> LinearObjective:
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, generator=g, dtype=torch.float64)
    y = torch.randint(2, (n,), generator=g)
    y[0], y[1] = 0, 1
    if separable:  # each class has one constant row
        X = torch.where(y[:, None] == 1, X[1], X[0])
    if zero_features:
        X[:, -1] = 0
    X = X * torch.logspace(-spread / 2, spread / 2, d, dtype=torch.float64)
    X, y = X.repeat(duplicated, 1), y.repeat(duplicated)
    name = {"smooth_hinge": {"temperature": 0.01}}.get(loss, {})
    targets = y if loss == "cross_entropy" else y * 2 - 1
    return LinearObjective(X.to(dtype), targets, get_loss(loss, **name), l2, n_outputs=2, dtype=dtype)


def oracle(objective: LinearObjective, theta: torch.Tensor, damping: float = 0.0) -> torch.Tensor:
    """The damped Hessian, example by example in float64 from the same (rounded) data."""
    X, theta = objective.X.dense().double(), theta.double()
    outputs = X @ theta.reshape(objective.n_outputs, -1).T
    A = objective.loss.output_hessian(outputs, objective.targets)
    H = torch.einsum("nab,ni,nj->aibj", A, X, X).reshape(objective.p, objective.p) / objective.n
    return H + (objective.l2 + damping) * torch.eye(objective.p, dtype=torch.float64)


def outcome(compute):
    """What ``compute`` gives, or None and the advice in its error."""
    try:
        return compute(), ""
    except InfluenceError as error:
        return None, str(error)


def right_or_advice(solve, objective, H: torch.Tensor, b: torch.Tensor, tolerance: float) -> None:
    curvature = 1e4 if objective.loss.name == "smooth_hinge" else 1.0
    largest = curvature * float(objective.X.row_squares().double().max()) + objective.l2
    condition = largest / max(float(torch.linalg.eigvalsh(H)[0]), objective.l2)
    eps = torch.finfo(objective.dtype).eps
    found, advice = outcome(solve)
    if found is None:
        assert REMEDY.search(advice), advice
        # An error where the problem is easy for this precision would be a failure of its own.
        assert condition * eps * objective.p > 1e-9 or tolerance * condition > 1e-9, (condition, advice)
        return
    found = found.double()
    expected = torch.linalg.solve(H, b.double())
    bound = (1e3 * objective.p * eps + tolerance) * condition
    assert bool(torch.isfinite(found).all())
    error = float((found - expected).norm() / expected.norm().clamp(min=1e-300))
    assert error <= max(bound, 1e-13), (error, bound, condition)


@pytest.mark.parametrize(
    "solver",
    [
        Exact(form="core"),
        Exact(form="gram"),
        Exact(form="dense"),
        CG(),
        CG(preconditioner="jacobi"),
        CG(preconditioner="kronecker"),
    ],
    ids=["core", "gram", "dense", "cg", "jacobi", "kronecker"],
)
@QUIET
@given(problem=problems)
def test_solves(solver, problem) -> None:
    objective = build(**problem)
    g = torch.Generator().manual_seed(problem["seed"])
    theta = torch.randn(objective.p, generator=g, dtype=torch.float64).to(objective.dtype)
    b = torch.randn(objective.p, 2, generator=g, dtype=torch.float64).to(objective.dtype)
    tolerance = solver.tolerance if isinstance(solver, CG) else 0.0
    right_or_advice(
        lambda: solver.solve(Hessian(objective, theta), b).value,
        objective, oracle(objective, theta), b, tolerance,
    )  # fmt: skip


@QUIET
@given(problem=problems)
@example(
    problem={
        "seed": 0, "n": 6, "d": 3, "loss": "logistic", "duplicated": 50, "zero_features": True,
        "separable": True, "l2": 1e-10, "spread": 6, "dtype": torch.float32,
    }
)  # fmt: skip
def test_fits_end_certified_or_say_what_to_change(problem) -> None:
    if problem["loss"] == "hinge":
        problem = problem | {"loss": "logistic"}  # the hinge has no gradient to certify at its kinks
    objective = build(**problem)
    tolerance = 1e-9 if objective.dtype == torch.float64 else 1e-3
    fitted, advice = outcome(lambda: fit(objective, tolerance=tolerance, max_iterations=300))
    if fitted is None:
        assert REMEDY.search(advice), advice
        return
    assert fitted.certificate.gradient_norm <= tolerance
    # the certificate is the gradient of the objective itself, redone in float64
    X, theta = objective.X.dense().double(), fitted.theta.double()
    outputs = X @ theta.reshape(objective.n_outputs, -1).T
    r = objective.loss.output_gradient(outputs, objective.targets)
    gradient = (r.T @ X).reshape(-1) / objective.n + objective.l2 * theta
    slack = 1e-12 if objective.dtype == torch.float64 else 1e-2 * float(X.abs().max()) ** 2
    assert float(gradient.norm()) <= tolerance + slack


@QUIET
@given(problem=problems)
def test_duplicated_rows_score_alike_and_scores_are_finite(problem) -> None:
    problem = problem | {"duplicated": 2}
    objective = build(**problem)
    theta = torch.randn(objective.p, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    theta = theta.to(objective.dtype)
    damped = Damped(Hessian(objective, theta), 0.1)
    gradient = objective.example_gradients(theta, [0]).T.contiguous()
    found, advice = outcome(
        lambda: (self_influence(objective, theta, damped), Exact().solve(damped, gradient).value)
    )
    if found is None:
        assert REMEDY.search(advice), advice
        return
    own, s = found
    scores = predicted_change(up_loss(objective, theta, s), objective.n)
    half = objective.n // 2
    eps = 1e4 * torch.finfo(objective.dtype).eps
    for values in (own, scores[:, 0]):
        assert bool(torch.isfinite(values).all())
        torch.testing.assert_close(
            values[:half], values[half:], rtol=eps, atol=eps * float(values.abs().max())
        )
    assert bool((own >= -eps * own.abs().max()).all())  # a quadratic form of an inverse


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [1e-30, 1e30, 1e150])
def test_sizes_at_the_ends_of_the_range(size: float, dtype: torch.dtype) -> None:
    """Inputs whose squares under- or overflow: an error or finite numbers, never NaN."""
    X = torch.tensor([[1.0, -1.0], [0.5, 2.0], [-1.0, 0.3], [2.0, 1.0]], dtype=torch.float64) * size

    def scores():
        objective = LinearObjective(X.to(dtype), torch.tensor([1, -1, 1, -1]), "logistic", 0.1, dtype=dtype)
        theta = fit(objective, tolerance=1e-4).theta
        gradient = objective.example_gradients(theta, [0]).T.contiguous()
        return up_loss(objective, theta, Exact().solve(Hessian(objective, theta), gradient).value)

    found, advice = outcome(scores)
    assert bool(torch.isfinite(found).all()) if found is not None else REMEDY.search(advice), advice


def test_features_that_are_all_zero_leave_the_penalty() -> None:
    objective = LinearObjective(torch.zeros(4, 3), torch.tensor([1, -1, 1, -1]), "logistic", 0.5)
    theta = fit(objective).theta
    assert float(theta.abs().max()) == 0.0
    b = torch.ones(3, 1, dtype=torch.float64)
    for solver in (Exact(), Exact(form="gram"), Exact(form="dense"), CG()):
        torch.testing.assert_close(solver.solve(Hessian(objective, theta), b).value, 2 * b)
    assert float(self_influence(objective, theta, Hessian(objective, theta)).abs().max()) == 0.0


def test_a_feature_of_zeros_has_no_influence() -> None:
    objective = build(3, 12, 4, "logistic", 1, True, False, 1e-3, 0, torch.float64)
    theta = fit(objective).theta
    assert float(theta[-1]) == 0.0
    s = Exact().solve(Hessian(objective, theta), objective.example_gradients(theta, [2]).T.contiguous()).value
    assert float(s[-1].abs().max()) == 0.0
