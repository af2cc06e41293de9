"""Fitted scikit-learn models: θ is the minimum of the objective read off them, and refits agree."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

pytest.importorskip("sklearn")
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import (
    Lasso,
    LinearRegression,
    LogisticRegression,
    Ridge,
    RidgeClassifier,
    RidgeCV,
)
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from influence import DataError
from influence.bridges.sklearn import from_sklearn

X2, Y2 = load_breast_cancer(return_X_y=True)
X2 = StandardScaler().fit_transform(X2)[:120, :6]
Y2 = np.where(Y2[:120] == 1, "benign", "malignant")
X3, Y3 = load_wine(return_X_y=True)
X3 = StandardScaler().fit_transform(X3)[::2, :5]
Y3 = Y3[::2]
XR, YR = load_diabetes(return_X_y=True)
XR, YR = XR[:100] * 10, YR[:100] / 50
WEIGHTS = np.random.default_rng(0).uniform(0.3, 3.0, 300)

TIGHT: dict[str, Any] = {"tol": 1e-12, "max_iter": 20_000}
MODELS = {
    "logistic": (LogisticRegression(C=0.5, **TIGHT), X2, Y2),
    "logistic balanced": (LogisticRegression(C=0.5, class_weight="balanced", **TIGHT), X2, Y2),
    "logistic without intercept": (LogisticRegression(C=2.0, fit_intercept=False, **TIGHT), X2, Y2),
    "liblinear": (
        LogisticRegression(C=0.5, solver="liblinear", intercept_scaling=3.0, **TIGHT), X2, Y2,
    ),
    "multinomial": (LogisticRegression(C=0.3, solver="newton-cg", **TIGHT), X3, Y3),
    "svc": (LinearSVC(C=0.2, dual=False, **TIGHT), X2, Y2),
    "ridge": (Ridge(alpha=2.0, solver="cholesky"), XR, YR),
    "ridge two targets": (Ridge(alpha=2.0, solver="cholesky"), XR, np.stack([YR, YR**2], 1)),
    "ridge classifier": (RidgeClassifier(alpha=3.0, solver="cholesky"), X3, Y3),
    "ridge classifier, two classes": (RidgeClassifier(alpha=3.0, solver="cholesky"), X2, Y2),
    "pipeline": (make_pipeline(StandardScaler(), LogisticRegression(C=0.5, **TIGHT)), X2 * 7 + 3, Y2),
}  # fmt: skip


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_the_fit_is_the_minimum_of_the_objective_read_off_it(name: str, weighted: bool) -> None:
    estimator, X, y = MODELS[name]
    weights = WEIGHTS[: len(X)] if weighted else None
    if name == "pipeline":
        fit_settings = {} if weights is None else {"logisticregression__sample_weight": weights}
    else:
        fit_settings = {} if weights is None else {"sample_weight": weights}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator.fit(X, y, **fit_settings)
        found = from_sklearn(estimator, X, y, weights)
    scale = float(found.objective.example_gradients(found.theta).norm(dim=1).mean())
    assert found.gradient_norm < 1e-5 * scale, found.gradient_norm / scale


@pytest.mark.parametrize("name", ["logistic", "multinomial", "ridge"])
def test_removal_agrees_with_refits_by_scikit_learn(name: str) -> None:
    """A refit keeps C, so λ stays relative to the sum of the losses: the convention is ``"loss"``."""
    estimator, X, y = MODELS[name]
    estimator.fit(X[:60], y[:60])
    found = from_sklearn(estimator, X[:60], y[:60])
    test = (X[60:61], y[60:61])
    changes = found.influence_on(test).changes
    assert changes is not None
    tests = found.tests(test)
    before = float(tests.example_losses(found.theta)[0])
    actual = []
    for i in range(0, 60, 3):
        keep = np.arange(60) != i
        estimator.fit(X[:60][keep], y[:60][keep])
        theta = from_sklearn(estimator, X[:60][keep], y[:60][keep]).theta
        actual.append(float(tests.example_losses(theta)[0]) - before)
    predicted = changes[::3, 0].numpy()
    assert np.corrcoef(predicted, actual)[0, 1] > 0.999
    assert np.abs(predicted - actual).max() < 0.1 * np.abs(actual).max()


def test_texts_through_a_pipeline_stay_sparse() -> None:
    texts = [
        "cheap pills now",
        "meeting at noon",
        "cheap watches",
        "lunch at noon",
        "pills and watches",
        "see you",
    ]
    y = [1, 0, 1, 0, 1, 0]
    model = make_pipeline(CountVectorizer(), LogisticRegression(**TIGHT)).fit(texts, y)
    found = from_sklearn(model, texts, y)
    answer = found.influence_on((["cheap lunch"], [1]), k=2)
    assert len(answer.helpful[0]) == 2
    assert sp.issparse(CountVectorizer().fit_transform(texts))


def test_a_loose_fit_is_warned_of_and_fitted_goes_on_from_it() -> None:
    loose = LogisticRegression(C=100.0, max_iter=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loose.fit(X2, Y2)
    with pytest.warns(UserWarning, match="not stationary"):
        found = from_sklearn(loose, X2, Y2)
    assert found.fitted().gradient_norm < 1e-9


REFUSED = [
    (
        Lasso().fit(XR, YR),
        XR,
        YR,
        "Lasso is not supported .an L1 penalty has no second derivative",
    ),
    (LogisticRegression(), X2, Y2, "not fitted"),
    (LogisticRegression(l1_ratio=0.5, solver="saga", max_iter=20), X2, Y2, "L1 penalty"),
    (LinearSVC(), X3, Y3, "two classes"),
    (Ridge(positive=True), XR, YR, "constrained"),
    (LinearRegression(positive=True), XR, YR, "constrained"),
    (RidgeCV(), XR, YR, "fit Ridge.alpha=model.alpha_"),
    (LinearSVC(loss="hinge"), X2, Y2, "default loss='squared_hinge'"),
    (GridSearchCV(Ridge(), {"alpha": [1.0]}), XR, YR, "pass its best_estimator_"),
]


@pytest.mark.parametrize(("estimator", "X", "y", "said"), REFUSED, ids=range(len(REFUSED)))
def test_what_has_no_such_objective_is_one_sentence(estimator: Any, X: Any, y: Any, said: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if said != "not fitted":
            estimator.fit(X, y)
    with pytest.raises(DataError, match=said):
        from_sklearn(estimator, X, y)


def test_labels_and_rows_must_be_those_of_the_fit() -> None:
    model = LogisticRegression().fit(X2, Y2)
    with pytest.raises(DataError, match="120 rows but y has 119"):
        from_sklearn(model, X2, Y2[:-1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = from_sklearn(model, X2, Y2)
    with pytest.raises(DataError, match="none of the model's classes"):
        found.influence_on((X2[:1], ["unknown"]))


@pytest.mark.parametrize("scale", [1.0, 1e2])
def test_least_squares_without_a_penalty_are_the_refits(scale: float) -> None:
    """No damping enters, however differently the features are scaled: changes are those of a refit."""
    X = XR[:60] * np.array([scale, *[1.0] * 9])
    model = LinearRegression().fit(X, YR[:60])
    found = from_sklearn(model, X, YR[:60])
    row = XR[60:61] * np.array([scale, *[1.0] * 9])
    changes = found.influence_on((row, YR[60:61]), correction="leverage").changes
    assert changes is not None

    def loss(fitted: Any) -> float:
        return float(0.5 * (fitted.predict(row)[0] - YR[60]) ** 2)

    for i in range(0, 60, 7):
        keep = np.arange(60) != i
        actual = loss(LinearRegression().fit(X[keep], YR[:60][keep])) - loss(model)
        # the correction is one exact step in the outputs; the loss of the test point is taken to first order
        gap = float(model.predict(row)[0] - YR[60])
        moved = (LinearRegression().fit(X[keep], YR[:60][keep]).predict(row)[0] - model.predict(row)[0]) * gap
        assert float(changes[i, 0]) == pytest.approx(float(moved), rel=1e-4)
        assert actual == pytest.approx(moved + moved**2 / (2 * gap**2), rel=1e-6)


def test_an_unpenalised_logistic_model_is_not_damped_either() -> None:
    model = LogisticRegression(C=np.inf, **TIGHT).fit(X2[:, :2], Y2)
    found = from_sklearn(model, X2[:, :2], Y2)
    weak = from_sklearn(LogisticRegression(C=1e9, **TIGHT).fit(X2[:, :2], Y2), X2[:, :2], Y2)
    test = (X2[:3, :2], Y2[:3])
    ours, theirs = found.influence_on(test).changes, weak.influence_on(test).changes
    assert ours is not None
    assert theirs is not None
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-4, atol=1e-8)


def test_columns_are_those_of_the_fit() -> None:
    import pandas as pd

    names = list("abcdef")
    table = pd.DataFrame(X2, columns=names)
    model = LogisticRegression(**TIGHT).fit(table, Y2)
    found = from_sklearn(model, table, Y2)
    plain = found.influence_on((X2[:2], Y2[:2])).changes
    assert plain is not None
    named = found.influence_on((table[:2], Y2[:2])).changes
    np.testing.assert_array_equal(named, plain)
    with pytest.raises(DataError, match="give the same columns in the same order"):
        found.influence_on((table[names[::-1]][:2], Y2[:2]))
    with pytest.raises(DataError, match=r"X must have shape \(n, 6\)"):
        found.influence_on((X2[:2, :5], Y2[:2]))
    with pytest.raises(DataError, match="X must hold numbers"):
        found.influence_on((np.array([["a"] * 6]), Y2[:1]))
    one = found.influence_on((X2[0], Y2[0])).changes
    np.testing.assert_allclose(one, plain[:, :1])
    column = from_sklearn(model, table, Y2[:, None]).influence_on((X2[:2], Y2[:2, None])).changes
    np.testing.assert_allclose(column, plain)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(**TIGHT)).fit(X2, Y2)
    with pytest.raises(DataError, match="the pipeline's StandardScaler cannot take X"):
        from_sklearn(pipeline, X2, Y2).influence_on((X2[:2, :5], Y2[:2]))
    with pytest.raises(DataError, match="not the class LogisticRegression"):
        from_sklearn(LogisticRegression, X2, Y2)


@pytest.mark.parametrize("name", ["ridge classifier", "multinomial", "ridge two targets"])
def test_labels_of_test_points_are_those_of_training_points(name: str) -> None:
    """What is asked of training points as test points is their own loss."""
    estimator, X, y = MODELS[name]
    found = from_sklearn(estimator.fit(X, y), X, y)
    tests = found.tests((X[:5], y[:5]))
    own = found.objective.example_losses(found.theta)[:5]
    np.testing.assert_allclose(tests.example_losses(found.theta), own, rtol=1e-12)


def test_explain_says_what_a_refit_would_do_anew() -> None:
    estimator = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", **TIGHT))
    said = from_sklearn(estimator.fit(X2, Y2), X2, Y2).explain()
    assert "held fixed: the pipeline's StandardScaler" in said
    assert "which a refit would balance anew" in said
    assert "anew" not in from_sklearn(LogisticRegression(**TIGHT).fit(X2, Y2), X2, Y2).explain()
