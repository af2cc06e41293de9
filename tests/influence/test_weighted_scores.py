"""``up_loss`` of weighted objectives against 60 digits, whatever the scales, λ, shapes and duplicates."""

from __future__ import annotations

import mpmath as mp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from influence import (
    Exact,
    Hessian,
    LinearObjective,
    SolverError,
    Status,
    predicted_change,
    removal_change,
    up_loss,
)
from influence import test_gradients as gradients_of_tests
from tests.helpers import examples
from tests.influence.exact_reference import DIGITS, exact_derivatives, exact_solve

EXAMPLES = examples(16)
SHAPES = {"cross_entropy": [(12, 2), (7, 3), (5, 4)], "logistic": [(12, 3), (4, 7), (6, 10), (9, 9)]}
pytestmark = [
    pytest.mark.filterwarnings("ignore:theta is not stationary"),
    pytest.mark.filterwarnings("ignore:Exact. rounding keeps"),  # a status, which is what is checked
]


@st.composite
def problems(draw: st.DrawFn) -> tuple[LinearObjective, LinearObjective, torch.Tensor]:
    """A weighted linear objective, two test points with weights and an L2 term of their own, and θ."""
    loss = draw(st.sampled_from(["cross_entropy", "logistic"]))
    n, d = draw(st.sampled_from(SHAPES[loss]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    logs = st.floats(-8, 8)
    same = draw(st.booleans())
    scale = 10.0 ** torch.tensor(
        [draw(logs)] * d if same else [draw(logs) for _ in range(d)], dtype=torch.float64
    )
    X = scale * torch.randn(n + 2, d, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):  # duplicate rows, which keep labels and weights of their own
        X[:n] = X[torch.randint(max(2, n // 2), (n,), generator=generator)]
    y = torch.arange(n + 2) % (3 if loss == "cross_entropy" else 2)
    y = y if loss == "cross_entropy" else 2 * y - 1
    c = 3 if loss == "cross_entropy" else None
    weights = 10.0 ** draw(st.floats(-3, 3)) * torch.rand(n, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):
        weights[draw(st.integers(0, n - 1))] = 0
    dtype = draw(st.sampled_from([torch.float64, torch.float32]))
    l2 = 10.0 ** draw(st.floats(-10, 3))
    train = LinearObjective(X[:n], y[:n], loss, l2, n_outputs=c, dtype=dtype).with_weights(weights)
    test = LinearObjective(X[n:], y[n:], loss, 0.5, n_outputs=c, dtype=dtype)
    test = test.with_weights(torch.tensor([3.0, 0.2]))  # which may not enter
    theta = torch.randn(train.n_outputs, d, generator=generator, dtype=torch.float64) / scale / d**0.5
    return train, test, (10.0 ** draw(st.floats(-2, 1)) * theta).reshape(-1).to(dtype)


def sum_of(a: list, b: list) -> mp.mpf:
    return mp.fsum(x * y for x, y in zip(a, b, strict=True))


def numbers(values: torch.Tensor) -> list[mp.mpf]:
    return [mp.mpf(float(v)) for v in values]


def check(train: LinearObjective, test: LinearObjective, theta: torch.Tensor, removal: str) -> Status | None:
    """Every score is within the error that its own rounding and the residual of ``s_test`` explain."""
    eps = torch.finfo(train.dtype).eps
    B = gradients_of_tests(test, theta, [0, 1])
    try:
        solution = Exact(raise_on_failure=False).solve(Hessian(train, theta), B)
    except SolverError:
        return None
    scores = up_loss(train, theta, solution, removal)
    changes = predicted_change(scores, train.n, removal)
    assert torch.equal(changes, removal_change(train, theta, solution, removal=removal))
    divisor = train.n - 1 if removal == "objective" else train.n
    with mp.workdps(DIGITS):
        H, gradients, penalty = exact_derivatives(train, theta)
        tests = exact_derivatives(test, theta)[1]
        # Rounding of an output is relative to Σ|θ_j x_j|, and moves the derivatives of the loss by that.
        doubt = [_doubt(objective, theta) for objective in (train, test)]
        weights = numbers(train.example_weights())
        for j in range(2):
            s, b = numbers(solution.value[:, j]), numbers(B[:, j])
            size = mp.sqrt(sum_of(b, b))
            off = [x - t for x, t in zip(b, tests[j], strict=True)]
            assert mp.sqrt(sum_of(off, off)) <= 8 * eps * doubt[1][j] * _length(test, j), "the test gradient"
            residual = [x - sum_of(row, s) for x, row in zip(b, H, strict=True)]
            if solution.status is Status.CONVERGED:
                reported = float(solution.residual[j])
                assert mp.sqrt(sum_of(residual, residual)) <= (
                    2 * reported * size + 64 * eps * _reach(H, s, max(doubt[0])) + mp.mpf("1e-300")
                ), "the residual"
            whole, unexplained = exact_solve(H, b), exact_solve(H, residual)
            for i, g in enumerate(gradients):
                v = [weights[i] * x for x in g]
                v = [x + q for x, q in zip(v, penalty, strict=True)] if removal == "objective" else v
                true = sum_of(whole, v) / divisor
                rounding = weights[i] * _spread(train, i, s) * doubt[0][i] + _absolute(penalty, s)
                allowed = abs(sum_of(unexplained, v)) + 16 * (train.p + 4) * eps * rounding + mp.mpf("1e-37")
                found = mp.mpf(float(changes[i, j]))
                assert abs(found - true) <= allowed / divisor, (float(found), float(true), float(allowed))
    return solution.status


def _doubt(objective: LinearObjective, theta: torch.Tensor) -> list[float]:
    outputs = objective.X.dense().double().abs() @ theta.double().reshape(objective.n_outputs, -1).T.abs()
    return (1 + outputs.sum(1)).tolist()


def _length(objective: LinearObjective, i: int) -> float:
    return float(objective.X.dense()[i].double().norm()) * objective.n_outputs


def _spread(objective: LinearObjective, i: int, s: list) -> mp.mpf:
    """``Σ_aj |x_j s_aj|``: what the derivative of the loss by the outputs is multiplied by."""
    x = numbers(objective.X.dense()[i]) * objective.n_outputs
    return _absolute(x, s)


def _absolute(a: list, b: list) -> mp.mpf:
    return mp.fsum(abs(x * y) for x, y in zip(a, b, strict=True))


def _reach(H: list, s: list, doubt: float) -> mp.mpf:
    """``‖|H||s|‖`` with the diagonal's share of every entry: what a product with H may round to."""
    root = [mp.sqrt(H[j][j]) for j in range(len(H))]
    along = mp.fsum(r * abs(x) for r, x in zip(root, s, strict=True))
    return doubt * len(s) * mp.sqrt(mp.fsum((r * along) ** 2 for r in root))


@settings(max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES < 1000)
@given(problems(), st.sampled_from(["objective", "loss"]))
def test_weighted_scores_are_within_what_rounding_and_the_residual_explain(problem, removal):
    check(*problem, removal)


@pytest.mark.parametrize("removal", ["objective", "loss"])
@pytest.mark.parametrize(("n", "d"), [(12, 3), (5, 9)])
def test_a_well_scaled_problem_is_right_to_ten_digits_and_a_wrong_weight_would_show(n, d, removal):
    g = torch.Generator().manual_seed(n)
    X = torch.randn(n + 2, d, generator=g, dtype=torch.float64)
    y = 2 * (torch.arange(n + 2) % 2) - 1
    weights = torch.linspace(0, 3, n, dtype=torch.float64)
    train = LinearObjective(X[:n], y[:n], "logistic", 0.1).with_weights(weights)
    test = LinearObjective(X[n:], y[n:], "logistic", 0.0)
    theta = torch.randn(d, generator=g, dtype=torch.float64)
    assert check(train, test, theta, removal) is Status.CONVERGED
    s = Exact().solve(Hessian(train, theta), gradients_of_tests(test, theta, [0, 1]))
    found = up_loss(train, theta, s, removal)
    G = torch.stack([train.example_gradients(theta, torch.tensor([i]))[0] for i in range(n)])
    v = weights[:, None] * G + (train.l2 * theta if removal == "objective" else 0)
    H = (G.T * 0).new_zeros(d, d)
    for x, w, m in zip(X[:n], weights, (X[:n] @ theta), strict=True):
        p = torch.sigmoid(m)
        H += w * p * (1 - p) * torch.outer(x, x) / n
    oracle = -v @ torch.linalg.solve(
        H + train.l2 * torch.eye(d, dtype=torch.float64), gradients_of_tests(test, theta, [0, 1])
    )
    torch.testing.assert_close(found, oracle, rtol=1e-10, atol=1e-13)
    unweighted = up_loss(train, theta, s, removal) - up_loss(train.with_weights(None), theta, s, removal)
    assert float(unweighted.abs().max()) > 0.1 * float(found.abs().max())


def test_weights_can_be_taken_away_again():
    X, y = torch.eye(3, dtype=torch.float64), torch.tensor([1, -1, 1])
    plain = LinearObjective(X, y, "logistic", 0.1)
    again = plain.with_weights(torch.tensor([1.0, 2.0, 3.0])).with_weights(None)
    theta = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64)
    assert again.weights is None
    assert torch.equal(again.gradient(theta), plain.gradient(theta))
