"""Each row judged without itself, against refits without it; self-influence against a dense oracle."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.special import expit, softmax

from experiments.label_errors import logistic
from experiments.label_errors.held_out import classifier, group_folds, held_by_folds, probabilities
from experiments.label_errors.logistic import Design


def problem(n: int, d: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X with an intercept of 10, labels of a noisy linear model, weights with mean 1."""
    generator = np.random.default_rng(seed)
    X = np.c_[generator.normal(size=(n, d)), np.full(n, 10.0)]
    W = generator.normal(size=(d + 1, classes)) * np.r_[np.ones(d), 0.05][:, None]
    y = (X @ W + generator.gumbel(size=(n, classes))).argmax(1)
    y[:classes] = np.arange(classes)
    weights = generator.uniform(0.2, 2, n)
    return X, y, weights / weights.mean()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("l2", [1e-1, 1e-2])
def test_the_loss_without_a_row_is_that_of_a_refit_without_it(
    classes: int, l2: float, weighted: bool
) -> None:
    X, y, w = problem(120, 4, classes)
    weights = w if weighted else None
    fitted = classifier(Design(X), y, classes, l2, weights)
    assert fitted.form == ("logistic" if classes == 2 else "softmax")
    errors, plain = [], []
    for i in range(0, 120, 6):
        rest = np.arange(120) != i
        # The divisor of the mean loss stays n, as does λ: the row's weight alone is set to 0.
        again = classifier(
            Design(X[rest]),
            y[rest],
            classes,
            l2 * 120 / 119,
            None if weights is None else w[rest],
            held=False,
        )
        truth = -np.log(probabilities(again.form, X[[i]] @ again.W.T)[0, y[i]])
        errors.append(abs(fitted.held_loss[i] - truth))
        plain.append(abs(fitted.loss[i] - truth))
    assert max(errors) < 0.2 * max(plain)
    assert np.median(errors) < 0.03 * np.median(plain)


@pytest.mark.parametrize("classes", [2, 4])
def test_self_influence_is_that_of_the_dense_hessian(classes: int) -> None:
    X, y, _ = problem(60, 3, classes)
    l2 = 0.02
    fitted = classifier(Design(X), y, classes, l2)
    n, d = X.shape
    if classes == 2:
        p = expit(X @ fitted.W[1])
        H = (X * (p * (1 - p))[:, None]).T @ X / n + l2 * np.eye(d)
        G = (p - y)[:, None] * X
    else:
        P = softmax(X @ fitted.W.T, axis=1)
        A = np.einsum("na,ab->nab", P, np.eye(classes)) - np.einsum("na,nb->nab", P, P)
        H = np.einsum("nab,ni,nj->aibj", A, X, X).reshape(classes * d, -1) / n + l2 * np.eye(classes * d)
        G = np.einsum("na,ni->nai", P - np.eye(classes)[y], X).reshape(n, -1)
    np.testing.assert_allclose(fitted.self_influence, (G * np.linalg.solve(H, G.T).T).sum(1), rtol=1e-7)


def test_one_model_a_class_where_a_factor_of_all_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, _ = problem(120, 4, 3)
    together = classifier(Design(X), y, 3, 1e-2)
    monkeypatch.setattr("experiments.label_errors.held_out.CORE", 5)
    apart = classifier(Design(X), y, 3, 1e-2)
    assert (together.form, apart.form) == ("softmax", "one-vs-rest")
    np.testing.assert_allclose(apart.held.sum(1), 1)
    assert np.corrcoef(together.held_loss, apart.held_loss)[0, 1] > 0.95
    rest = np.arange(120) != 7
    again = classifier(Design(X[rest]), y[rest], 3, 1e-2 * 120 / 119, held=False)
    truth = probabilities("one-vs-rest", X[[7]] @ again.W.T)[0]
    np.testing.assert_allclose(apart.held[7], truth, atol=0.01)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_both_factors_give_the_same_quadratics(sparse: bool, weighted: bool) -> None:
    generator = np.random.default_rng(3)
    X = generator.normal(size=(40, 60)) * (generator.random((40, 60)) < 0.3)
    design = Design(sp.csr_matrix(X) if sparse else X)
    signs = np.where(generator.random(40) < 0.5, 1.0, -1.0)
    w = generator.uniform(0.1, 2, 40) if weighted else None
    theta, norm = logistic.fit(design, signs, 1e-3, w)
    assert norm <= 1e-8
    f = X @ theta
    D = expit(f) * expit(-f) * (1 if w is None else w)
    H = (X * D[:, None]).T @ X / 40 + 1e-3 * np.eye(60)
    truth = (X * np.linalg.solve(H, X.T).T).sum(1)
    np.testing.assert_allclose(logistic.by_features(design, D, 1e-3), truth, rtol=1e-8)
    np.testing.assert_allclose(logistic.by_rows(design, D, 1e-3), truth, rtol=1e-8)
    np.testing.assert_allclose(logistic.factored(design, theta, 1e-3, w).quadratics(), truth, rtol=1e-8)
    rows = np.array([3, 0, 17])
    pairs = X @ np.linalg.solve(H, X[rows].T)
    for factor in (logistic.FeatureFactor(design, D, 1e-3), logistic.RowFactor(design, D, 1e-3)):
        np.testing.assert_allclose(factor.between(rows), pairs, rtol=1e-7, atol=1e-9 * np.abs(pairs).max())


def test_quadratics_of_rows_that_the_model_is_sure_of_do_not_cancel() -> None:
    X = np.random.default_rng(0).normal(size=(30, 50))
    D = np.full(30, 1e-12)
    truth = (X**2).sum(1) / 1e-3  # without curvature H is λI
    np.testing.assert_allclose(logistic.by_rows(Design(X), D, 1e-3), truth, rtol=1e-6)
    pairs = logistic.RowFactor(Design(X), D, 1e-3).between(np.arange(3))
    np.testing.assert_allclose(pairs, X @ X[:3].T / 1e-3, rtol=1e-6, atol=1e-6 * np.abs(pairs).max())


def test_the_kernel_is_the_same_however_often_a_column_has_entries() -> None:
    generator = np.random.default_rng(4)
    X = generator.normal(size=(70, 90)) * (generator.random((70, 90)) < generator.random(90) ** 3)
    np.testing.assert_allclose(Design(sp.csr_matrix(X)).kernel, X @ X.T, atol=1e-12)
    assert Design(X).known_kernel() is None
    empty = sp.csr_matrix((70, 3))
    np.testing.assert_array_equal(Design(empty).kernel, np.zeros((70, 70)))


def test_a_fit_is_the_minimum() -> None:
    X, y, w = problem(80, 5, 2)
    signs = np.where(y == 1, 1.0, -1.0)
    theta, norm = logistic.fit(Design(X), signs, 1e-2, w)
    gradient = X.T @ (-w * signs * expit(-signs * (X @ theta))) / 80 + 1e-2 * theta
    np.testing.assert_allclose(gradient, 0, atol=1e-8)
    assert norm <= 1e-8


def test_approximate_leave_one_out_agrees_with_true_folds() -> None:
    X, y, _ = problem(400, 6, 3, seed=4)
    fitted = classifier(Design(X), y, 3, 1e-3)
    folds = np.arange(400) % 40
    truth = held_by_folds(X, y, 3, 1e-3, None, folds)
    rows = np.arange(400)
    assert np.corrcoef(np.log(truth[rows, y]), -fitted.held_loss)[0, 1] > 0.99
    assert abs(np.log(truth[rows, y]).mean() + fitted.mean_held_loss) < 0.02
    assert fitted.loss.mean() < fitted.mean_held_loss  # a row sees itself


def test_groups_are_never_split() -> None:
    groups = np.random.default_rng(0).integers(0, 30, 200)
    folds = group_folds(groups, 10, seed=1)
    assert all(len(set(folds[groups == g])) == 1 for g in range(30))
    assert set(folds) == set(range(10))
    sizes = np.bincount(folds)
    assert sizes.max() < 2 * sizes.min()
    np.testing.assert_array_equal(folds, group_folds(groups, 10, seed=1))
