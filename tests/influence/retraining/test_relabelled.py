"""LogisticRefits against dense oracles and against LinearObjective, fit and self_influence."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from influence.curvature.operators import Hessian
from influence.errors import ConvergenceError, DataError
from influence.objectives.linear import LinearObjective
from influence.retraining import relabelled
from influence.retraining.relabelled import LogisticRefits
from influence.scores import self_influence
from influence.solvers import Status
from influence.training import fit
from tests.influence.exact_reference import exact_self_influence


def problem(n: int, d: int, seed: int = 0, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Sparse count-like features (n, d) and noisy labels ±1."""
    generator = np.random.RandomState(seed)
    X = generator.poisson(0.4, (n, d)).astype(float) * scale
    y = np.where(X @ generator.randn(d) + 0.5 * generator.randn(n) > 0, 1.0, -1.0)
    y[:2] = [1, -1]
    return X, y


def dense_oracle(X: np.ndarray, y: np.ndarray, theta: np.ndarray, l2: float) -> np.ndarray:
    """s_i² x_iᵀH⁻¹x_i by the d × d Hessian."""
    s = 1 / (1 + np.exp(y * (X @ theta)))
    H = (X * (s * (1 - s))[:, None]).T @ X / len(X) + l2 * np.eye(X.shape[1])
    return s**2 * np.einsum("ij,ij->i", X, np.linalg.solve(H, X.T).T)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("n", "d"), [(60, 15), (40, 90), (30, 30)])
@pytest.mark.parametrize("l2", [1e-4, 1e-1])
def test_fit_and_self_influence_agree_with_oracles(n: int, d: int, l2: float, sparse: bool) -> None:
    X, y = problem(n, d)
    refits = LogisticRefits(sp.csr_matrix(X) if sparse else X, l2)
    theta, certificate = refits.fit(y, tolerance=1e-11)
    objective = LinearObjective(X, y, "logistic", l2)
    reference = fit(objective, tolerance=1e-11).theta
    np.testing.assert_allclose(theta, reference.numpy(), rtol=0, atol=1e-9 / l2)
    assert certificate.converged
    assert certificate.gradient_norm == pytest.approx(
        np.linalg.norm(refits.value_and_gradient(theta, y)[1]), rel=1e-6
    )
    assert float(objective.gradient(torch.as_tensor(theta)).norm()) <= 1.1e-11
    assert certificate.value == pytest.approx(float(objective.value(torch.as_tensor(theta))), rel=1e-12)
    mine = refits.self_influence(theta, y)
    np.testing.assert_allclose(mine, dense_oracle(X, y, theta, l2), rtol=1e-7, atol=1e-12)
    at = torch.as_tensor(theta)
    general = self_influence(objective, at, Hessian(objective, at)).numpy()
    np.testing.assert_allclose(mine, general, rtol=1e-6, atol=1e-11)
    unsquared = refits.self_influence(theta, y, squared=False)
    np.testing.assert_allclose(
        mine, unsquared * (1 - np.exp(-refits.losses(theta, y))), rtol=1e-7, atol=1e-12
    )


def test_saturated_examples_keep_their_digits() -> None:
    """Margins of hundreds: D_ii underflows, where the formula by the inverse's diagonal would be 0/0."""
    X, y = problem(40, 60, seed=3)
    X[5] *= 300
    X[6] *= 1e5
    refits = LogisticRefits(X, 1e-3)
    theta = np.random.RandomState(1).randn(60)
    y[5:7] = -np.sign(X[5:7] @ theta)  # wrong and certain: s = 1, D = 0
    assert abs(X[6] @ theta) > 800
    H_small = dense_oracle(X, y, theta, 1e-3)
    np.testing.assert_allclose(refits.self_influence(theta, y), H_small, rtol=1e-6, atol=1e-12)


def test_warm_start_reaches_the_same_minimum() -> None:
    X, y = problem(80, 120)
    refits = LogisticRefits(sp.csr_matrix(X), 1e-3)
    theta, _ = refits.fit(y)
    changed = y.copy()
    changed[10:20] *= -1
    cold, _ = refits.fit(changed, tolerance=1e-10)
    warm, certificate = refits.fit(changed, start=theta, tolerance=1e-10)
    np.testing.assert_allclose(warm, cold, atol=1e-6)
    assert certificate.iterations > 0
    again, done = refits.fit(changed, start=warm, tolerance=1e-10)
    np.testing.assert_array_equal(again, warm)
    assert done.iterations == 0


def test_the_same_bytes_each_time() -> None:
    X, y = problem(70, 100)
    runs = []
    for _ in range(2):
        refits = LogisticRefits(sp.csr_matrix(X), 1e-4)
        theta, _ = refits.fit(y)
        runs.append(theta.tobytes() + refits.self_influence(theta, y).tobytes())
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    ("X", "l2", "message"),
    [
        (np.array([[1.0], [np.nan]]), 0.1, "NaN or infinite"),
        (sp.csr_matrix([[1.0], [np.inf]]), 0.1, "NaN or infinite"),
        (np.ones((1, 2)), 0.1, "at least 2"),
        (np.ones((2, 2)), 0.0, "l2 must be finite and > 0"),
    ],
)
def test_bad_input_is_named(X: object, l2: float, message: str) -> None:
    with pytest.raises(DataError, match=message):
        LogisticRefits(X, l2)


def test_bad_labels_and_unreachable_tolerance() -> None:
    X, y = problem(30, 5)
    refits = LogisticRefits(X, 0.1)
    for labels in (y[:-1], (y + 1) / 2):
        with pytest.raises(DataError, match="30 values of -1 and"):
            refits.fit(labels)
    with pytest.raises(ConvergenceError, match="loosen tolerance"):
        refits.fit(y, max_iterations=1)


@pytest.mark.parametrize(("n", "d"), [(12, 3), (6, 9)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4, 1e7])
@pytest.mark.parametrize("l2", [1e-10, 1e-3])
def test_self_influences_are_right_whatever_the_scale_of_the_features(
    n: int, d: int, scale: float, l2: float
) -> None:
    generator = np.random.RandomState(0)
    X, y = scale * generator.randn(n, d), np.where(np.arange(n) % 2, 1.0, -1.0)
    theta = generator.randn(d) / scale
    found = LogisticRefits(X, l2).verified_self_influence(theta, y)
    truth = exact_self_influence(LinearObjective(X, y, "logistic", l2), torch.from_numpy(theta))
    for value, error, true in zip(found.value.tolist(), found.error.tolist(), truth, strict=True):
        assert abs(value - true) <= error
        assert abs(value - true) <= 1e-6 * true
    assert found.status is Status.CONVERGED


@pytest.mark.parametrize(("n", "d"), [(12, 4), (6, 9), (10, 10)])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("l2", [1e-8, 1e-4, 1.0])
def test_refined_solves_are_within_their_bounds(n: int, d: int, sparse: bool, l2: float) -> None:
    X, y = problem(n, d, seed=3)
    theta = 3 * np.random.RandomState(1).randn(d)  # confident here and there
    refits = LogisticRefits(sp.csr_matrix(X) if sparse else X, l2)
    f = X @ theta
    D = 1 / (1 + np.exp(-f)) / (1 + np.exp(f))
    _, _, solve = refits._by_features(D) if d < n else refits._by_examples(D)
    found, bound = refits._refined(D, solve, np.arange(n))
    truth = exact_self_influence(LinearObjective(X, y, "logistic", l2), torch.from_numpy(theta))
    s = 1 / (1 + np.exp(y * f))
    for i, true in enumerate(truth):
        terms = 1e-13 * float(true)  # of s and D, which the caller adds
        assert abs(float(found[i] * s[i] ** 2) - float(true)) <= bound[i] * s[i] ** 2 + terms
        assert bound[i] <= 1e-6 * found[i] or not X[i].any()


def test_confident_mails_need_no_qr(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in Enron1: the quick form cancels for confident examples, and a few refined solves mend that."""
    monkeypatch.setattr(relabelled, "by_least_squares", lambda *_: pytest.fail("QR was asked for"))
    monkeypatch.setattr(relabelled, "_CANCELS", 0.0)  # the other form would save so small a problem
    X, y = problem(60, 90, seed=5)
    refits = LogisticRefits(sp.csr_matrix(X), 1e-4)
    theta = 40 * refits.fit(y)[0] / np.abs(X @ refits.fit(y)[0]).max()
    found = refits.verified_self_influence(theta, y, squared=False)
    assert found.stats["form"] == "factor, refined"
    assert found.status is Status.CONVERGED
    truth = exact_self_influence(LinearObjective(X, y, "logistic", 1e-4), torch.from_numpy(theta))
    s = 1 / (1 + np.exp(y * (X @ theta)))
    for value, error, true, own in zip(found.value.tolist(), found.error.tolist(), truth, s, strict=True):
        assert abs(value - float(true) / own) <= error + 1e-12 * value
