"""Fitted scikit-learn models: their own objective, weights and λ.

    influence = from_sklearn(LogisticRegression(C=10).fit(X, y), X, y)
    print(influence.influence_on((X_test, y_test)))

scikit-learn minimises ``C Σ s_i ℓ_i + ½‖w‖²`` (or ``Σ s_i ℓ_i + α‖w‖²`` for ridge). Divided by n·C this is
``(1/n) Σ s_i ℓ_i + (λ/2)‖w‖²`` with ``λ = 1/(n C)``. Intercepts carry no penalty, except in liblinear, which
treats them as one more feature of value ``intercept_scaling``. A refit without a row keeps C, that is, λ
relative to the *sum* of the losses: the convention of removal is ``"loss"``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from influence.api import Influence
from influence.errors import DataError
from influence.losses import Asking, Loss, OfClass, get_loss
from influence.objectives._base import TrainingObjective
from influence.objectives.linear import LinearObjective
from influence.scores import warn_unless_stationary

SUPPORTED = "LogisticRegression, LinearSVC, Ridge, RidgeClassifier, and pipelines that end in one"


def from_sklearn(
    estimator: Any, X: Any, y: Any, sample_weight: Any = None, **settings: Any
) -> SklearnInfluence:
    """Influence of the rows of ``X`` on a fitted model.

    Args:
        estimator: fitted; one of LogisticRegression (binary or multinomial, L2 penalty or none), LinearSVC
            (two classes), Ridge, RidgeClassifier, or a Pipeline that ends in one.
        X, y: what it was fitted on, before the pipeline's own steps.
        X: ``(n, d)`` inputs.
        y: ``(n,)`` targets.
        sample_weight: ``(n,)`` as given to ``fit``.
        settings: ``curvature``, ``damping`` and ``solver`` of :class:`~influence.api.Influence`.

    Raises:
        DataError: an estimator that is not supported or not fitted, or a setting that has no such objective.

    It warns if the fit is not stationary: scikit-learn's tolerance is loose. ``fitted()`` goes on from there.
    """
    steps, last = _unwrapped(estimator)
    fitted = _read(last, _through(steps, X), y, sample_weight)
    found = SklearnInfluence(fitted.objective, theta=fitted.theta, removal="loss", **settings)
    found.steps, found.fitted_model = steps, fitted
    warn_unless_stationary(fitted.objective, fitted.theta)
    return found


class SklearnInfluence(Influence):
    """:class:`~influence.api.Influence` whose test points are raw rows and labels."""

    steps: tuple[Any, ...] = ()
    fitted_model: Fitted

    def _points(self, inputs: Any, targets: Any) -> TrainingObjective:
        """The test points after the pipeline's steps."""
        return self.objective.on(self.fitted_model.widened(_through(self.steps, inputs)), targets)

    def _labels(self, targets: Any) -> Any:
        """Labels encoded as in training."""
        if targets is None:
            raise DataError("pass test points as (X, y)")
        return self.fitted_model.encoded(targets)

    def _encoded(self, of: Asking) -> Asking:
        """Classes by the names that scikit-learn knows."""
        if not isinstance(of, OfClass) or of.label is None or self.fitted_model.classes is None:
            return of
        return replace(of, label=self._code(of.label))

    def _code(self, label: Any) -> Any:
        if self.fitted_model.classes is None:
            return label
        (code,) = self.fitted_model.encoded([label])
        return int(code)


@dataclass
class Fitted:
    """A fitted model in this library's terms.

    Attributes:
        objective, theta: what it minimised, and where it stopped.
        classes: labels in the order of the outputs; None for regression.
        scaling: value of the extra feature that stands for a penalised intercept; None without one.
    """

    objective: LinearObjective
    theta: Tensor
    classes: np.ndarray[Any, Any] | None
    scaling: float | None

    def widened(self, X: Any) -> Any:
        """X with the feature of a penalised intercept."""
        return _widened(X, self.scaling)

    def encoded(self, y: Any) -> np.ndarray[Any, Any]:
        """Labels or numbers as the loss takes them."""
        return _encoded(y, self.classes, self.objective.loss)


def _unwrapped(estimator: Any) -> tuple[tuple[Any, ...], Any]:
    """The transformers before the last step, and the last step."""
    try:
        from sklearn.pipeline import Pipeline
    except ImportError:
        raise DataError("scikit-learn is not installed: pip install scikit-learn") from None
    if not isinstance(estimator, Pipeline):
        return (), estimator
    *before, (_, last) = estimator.steps
    inner, final = _unwrapped(last)
    own = tuple(step for _, step in before if step is not None and not isinstance(step, str))
    return (*own, *inner), final


def _through(steps: tuple[Any, ...], X: Any) -> Any:
    for step in steps:
        X = step.transform(X)
    return X if sp.issparse(X) else np.asarray(X, dtype=np.float64)


def _widened(X: Any, scaling: float | None) -> Any:
    if scaling is None:
        return X
    column = np.full((X.shape[0], 1), scaling)
    return sp.hstack([X, column]).tocsr() if sp.issparse(X) else np.hstack([X, column])


def _encoded(y: Any, classes: np.ndarray[Any, Any] | None, loss: Loss) -> np.ndarray[Any, Any]:
    given = np.asarray(y)
    if classes is None:
        return given.astype(np.float64)
    unknown = ~np.isin(given, classes)
    if bool(unknown.any()):
        raise DataError(f"the label {given[unknown][0]!r} is none of the model's classes {classes.tolist()}")
    codes = np.searchsorted(classes, given)
    if loss.binary or len(classes) == 2:
        return 2.0 * codes - 1.0
    return codes


def _read(estimator: Any, X: Any, y: Any, sample_weight: Any) -> Fitted:
    from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
    from sklearn.svm import LinearSVC

    name = type(estimator).__name__
    readers = {LogisticRegression: _logistic, LinearSVC: _svc, Ridge: _ridge, RidgeClassifier: _ridge}
    reader = readers.get(type(estimator))
    if reader is None:
        raise DataError(f"{name} is not supported; supported are {SUPPORTED}")
    if "coef_" not in vars(estimator):
        raise DataError(f"this {name} is not fitted; call fit first")
    n = X.shape[0]
    if len(np.asarray(y)) != n:
        raise DataError(f"X has {n} rows but y has {len(np.asarray(y))} targets; pass what it was fitted on")
    weights = np.ones(n) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    if weights.shape != (n,):
        raise DataError(f"sample_weight must have shape ({n},), got {weights.shape}")
    settings = estimator.get_params()
    if settings.get("class_weight") is not None:
        weights = weights * _class_weights(settings["class_weight"], y, weights)
    return reader(estimator, settings, X, y, weights)


def _class_weights(class_weight: Any, y: Any, weights: Any) -> Any:
    """The factor of every row; "balanced" counts rows by their own weights, as scikit-learn's fits do."""
    from sklearn.utils.class_weight import compute_sample_weight

    if class_weight != "balanced":
        return compute_sample_weight(class_weight, y)
    classes, codes = np.unique(np.asarray(y), return_inverse=True)
    return weights.sum() / (len(classes) * np.bincount(codes, weights))[codes]


def _logistic(estimator: Any, settings: dict[str, Any], X: Any, y: Any, weights: Any) -> Fitted:
    penalty = settings.get("penalty", "deprecated")
    if penalty not in ("deprecated", "l2", None) or settings.get("l1_ratio") not in (None, 0, 0.0):
        raise DataError("an L1 penalty has no second derivative; only the L2 penalty or none is supported")
    C = math.inf if penalty is None else float(settings["C"])
    l2 = 0.0 if math.isinf(C) else 1.0 / (C * X.shape[0])
    classes = estimator.classes_
    if len(classes) > 2 and settings.get("solver") == "liblinear":
        raise DataError("liblinear fits one model per class; use another solver for one multinomial model")
    loss = "logistic" if len(classes) == 2 else "cross_entropy"
    scaling = None
    if settings["fit_intercept"] and settings.get("solver") == "liblinear":
        scaling = float(settings["intercept_scaling"])
    return _linear(estimator, loss, X, y, l2, weights, classes, settings["fit_intercept"], scaling)


def _svc(estimator: Any, settings: dict[str, Any], X: Any, y: Any, weights: Any) -> Fitted:
    if len(estimator.classes_) != 2 or settings["penalty"] != "l2":
        raise DataError("LinearSVC is supported for two classes and the L2 penalty")
    l2 = 1.0 / (float(settings["C"]) * X.shape[0])
    scaling = float(settings["intercept_scaling"]) if settings["fit_intercept"] else None
    return _linear(
        estimator, settings["loss"], X, y, l2, weights, estimator.classes_, settings["fit_intercept"], scaling
    )


def _ridge(estimator: Any, settings: dict[str, Any], X: Any, y: Any, weights: Any) -> Fitted:
    if settings.get("positive"):
        raise DataError("Ridge(positive=True) is a constrained fit, which influence does not describe")
    alpha = np.asarray(settings["alpha"], dtype=np.float64)
    if alpha.ndim and not bool((alpha == alpha.flat[0]).all()):
        raise DataError("one alpha per target is not supported; fit each target alone")
    classes = getattr(estimator, "classes_", None)  # RidgeClassifier has them, Ridge has none
    l2 = float(alpha.flat[0]) / X.shape[0]
    return _linear(estimator, "squared_error", X, y, l2, weights, classes, settings["fit_intercept"], None)


def _linear(
    estimator: Any,
    loss: str,
    X: Any,
    y: Any,
    l2: float,
    weights: Any,
    classes: np.ndarray[Any, Any] | None,
    intercept: bool,
    scaling: float | None,
) -> Fitted:
    """The objective, and the fitted coefficients as its θ."""
    chosen = get_loss(loss)
    targets: Any = _encoded(y, classes, chosen)
    if classes is not None and loss == "squared_error" and len(classes) > 2:  # RidgeClassifier: −1 and +1
        targets = np.where(targets[:, None] == np.arange(len(classes))[None], 1.0, -1.0)
    free = bool(intercept) and scaling is None
    outputs = len(classes) if loss == "cross_entropy" and classes is not None else None
    given = None if bool((weights == 1).all()) else torch.as_tensor(weights)
    objective = LinearObjective(
        _widened(X, scaling), targets, chosen, l2, n_outputs=outputs, weights=given, intercept=free
    )
    coefficients = np.atleast_2d(np.asarray(estimator.coef_, dtype=np.float64))
    offsets = np.broadcast_to(np.asarray(estimator.intercept_, dtype=np.float64), (len(coefficients),))
    if scaling is not None:
        coefficients = np.hstack([coefficients, offsets[:, None] / scaling])
    theta = objective.theta_of(coefficients, offsets.copy() if free else None)
    return Fitted(objective, theta, classes, scaling)
