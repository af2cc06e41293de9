"""Self-influences against 60 digits, whatever the scale of the features: within their bound, or said so."""

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
from influence.solvers.quadratics import by_least_squares
from tests.helpers import examples
from tests.influence.exact_reference import exact_self_influence

EXAMPLES = examples(12)
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
    truth = [
        t * mp.mpf(float(w)) for t, w in zip(exact_self_influence(o, theta), o.example_weights(), strict=True)
    ]
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


def scaled(n: int, d: int, c: int, scale: float, l2: float, dtype=torch.float64):
    """An objective with features of one size and θ of outputs near 1: ``(objective, θ)``."""
    g = torch.Generator().manual_seed(0)
    X = scale * torch.randn(n, d, generator=g, dtype=torch.float64)
    y = torch.arange(n) % c if c > 1 else 2 * (torch.arange(n) % 2) - 1
    o = LinearObjective(X, y, "cross_entropy" if c > 1 else "logistic", l2, dtype=dtype)
    theta = torch.randn(o.p, generator=g, dtype=torch.float64) / scale / d**0.5 / 3
    return o, theta.to(dtype)


@pytest.mark.parametrize(
    ("n", "d", "c", "scale", "l2", "dtype"),
    [
        (12, 2, 3, 1e4, 1e-10, torch.float64),
        (12, 2, 3, 1e5, 1e-10, torch.float64),
        (6, 14, 1, 1e3, 1e-6, torch.float64),
        (6, 14, 1, 1e5, 1e-6, torch.float64),
        (12, 2, 3, 1e2, 1e-4, torch.float32),
        (6, 14, 1, 1e2, 1e-3, torch.float32),
    ],
)
def test_badly_scaled_features_are_right(n, d, c, scale, l2, dtype):
    o, theta = scaled(n, d, c, scale, l2, dtype)
    truth = torch.tensor([float(v) for v in exact_self_influence(o, theta)], dtype=dtype)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    found = verified_self_influence(o, theta, Hessian(o, theta))
    torch.testing.assert_close(found.value, truth, rtol=tolerance, atol=0)
    assert found.status is Status.CONVERGED
    assert found.stats["worst_residual"] < 1e-3
    assert bool((found.error <= found.stats["tolerance"] * found.value).all())


def test_exact_refines_a_solve_that_a_small_shift_spoils():
    o, theta = scaled(12, 2, 3, 1e4, 1e-10)
    operator = Hessian(o, theta)
    G = o.example_gradients(theta).T.contiguous()
    solution = Exact().solve(operator, G)
    truth = torch.tensor([float(v) for v in exact_self_influence(o, theta)], dtype=torch.float64)
    torch.testing.assert_close((G * solution.value).sum(0), truth, rtol=1e-8, atol=0)


def test_damping_parts_and_weights_enter():
    o, theta = scaled(12, 3, 3, 1e3, 1e-8)
    weighted = o.with_weights(torch.linspace(0, 2, 12))
    truth = exact_self_influence(weighted, theta, damping=0.5)
    found = verified_self_influence(weighted, theta, Damped(Hessian(weighted, theta), 0.5))
    expected = [float(t) * w for t, w in zip(truth, weighted.weights.tolist(), strict=True)]
    torch.testing.assert_close(found.value, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)
    part = torch.tensor([0, 1, 2, 5, 7, 9])
    sub = o.subset(part)
    operator = Hessian(o, theta, part)
    inside = verified_self_influence(o, theta, operator, idx=part)
    alone = verified_self_influence(sub, theta, Hessian(sub, theta))
    torch.testing.assert_close(inside.value, alone.value, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("n", "d", "c"), [(12, 3, 3), (6, 14, 1)])
def test_a_column_that_the_hessian_never_saw_counts_with_the_shift_alone(n, d, c):
    o, theta = scaled(n, d, c, 1.0, 1e-3)
    X = o.X.dense().clone()
    X[:-1, 0] = 0  # only the last example uses the first input
    o = LinearObjective(X, o.targets, o.loss, 1e-3)
    rest, last = torch.arange(n - 1), torch.tensor([n - 1])
    operator = Hessian(o, theta, rest)
    b = o.example_gradients(theta, last)[0]
    oracle = float(b @ torch.linalg.solve(operator.dense(), b))
    for found in (
        verified_self_influence(o, theta, operator, idx=last),
        by_least_squares(operator, o, theta, last, 512, 1e-6),
    ):
        assert float(found.value) == pytest.approx(oracle, rel=1e-9)
        assert abs(float(found.value) - oracle) <= float(found.error) + 1e-12 * oracle


def test_what_no_form_can_give_is_raised_or_warned_of():
    o, theta = scaled(8, 4, 1, 1.0, 0.0)
    X = o.X.dense().clone()
    X[:, 1] = X[:, 0] * (1 + 1e-14)  # singular to rounding, and no L2 term
    o = LinearObjective(X, o.targets, "logistic", 0.0)
    with pytest.raises(SolverError, match=r"raise (l2 or damping|damping or l2)"):
        self_influence(o, theta, Hessian(o, theta))
    with pytest.warns(NotConvergedWarning, match=r"rounding may have moved .* scale the features"):
        self_influence(o, theta, Hessian(o, theta), Exact(raise_on_failure=False))
    doubtful = verified_self_influence(o, theta, Hessian(o, theta))
    assert doubtful.status is Status.INACCURATE
    assert "float64" not in doubtful.advice  # it is float64 already


def test_iterative_solvers_bound_their_error_and_reuse_their_state():
    o, theta = scaled(30, 4, 1, 1.0, 1e-2)
    operator = Hessian(o, theta)
    exact = self_influence(o, theta, operator)
    for tolerance in (1e-2, 1e-6, 1e-12):
        solver = CG(tolerance=tolerance)
        found = verified_self_influence(o, theta, operator, solver, state=solver.prepare(operator))
        assert bool(((found.value - exact).abs() <= found.error + 1e-13).all())
        assert float((found.error / exact).max()) < 100 * tolerance
