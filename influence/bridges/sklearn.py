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

SUPPORTED = (
    "LogisticRegression, LinearSVC, LinearRegression, Ridge, RidgeClassifier, and pipelines that end in one"
)
_INSTEAD = {
    "LogisticRegressionCV": "fit LogisticRegression(C=model.C_[0]) on the same data",
    "RidgeCV": "fit Ridge(alpha=model.alpha_) on the same data",
    "RidgeClassifierCV": "fit RidgeClassifier(alpha=model.alpha_) on the same data",
    "SGDClassifier": "it stops wherever its steps end; fit LogisticRegression or LinearSVC",
    "SGDRegressor": "it stops wherever its steps end; fit Ridge",
    "Lasso": "an L1 penalty has no second derivative",
    "ElasticNet": "an L1 penalty has no second derivative",
    "CalibratedClassifierCV": "it averages several models; pass one of them, fitted on all the data",
    "OneVsRestClassifier": "it holds one model per class; pass one of its estimators_ with its own labels",
}


def from_sklearn(
    estimator: Any, X: Any, y: Any, sample_weight: Any = None, **settings: Any
) -> SklearnInfluence:
    """Influence of the rows of ``X`` on a fitted model.

    Args:
        estimator: fitted; one of LogisticRegression (binary or multinomial, L2 penalty or none), LinearSVC
            (two classes), LinearRegression, Ridge, RidgeClassifier, or a Pipeline that ends in one.
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
    fitted = _read(last, _through(steps, last, X), y, sample_weight)
    found = SklearnInfluence(fitted.objective, theta=fitted.theta, removal="loss", **settings)
    found.steps, found.last, found.fitted_model = steps, last, fitted
    warn_unless_stationary(fitted.objective, fitted.theta)
    return found


class SklearnInfluence(Influence):
    """:class:`~influence.api.Influence` whose test points are raw rows and labels."""

    steps: tuple[Any, ...] = ()
    last: Any = None
    fitted_model: Fitted

    def explain(self) -> str:
        """What was chosen and why, and what is held fixed, in a few lines."""
        lines = [super().explain()]
        if self.steps:
            names = ", ".join(type(step).__name__ for step in self.steps)
            lines.append(f"held fixed: the pipeline's {names}, which a refit of the pipeline would fit anew")
        if getattr(self.last, "class_weight", None) == "balanced":  # regressions of scikit-learn have none
            lines.append("class_weight='balanced': the weights stay, which a refit would balance anew")
        return "\n".join(lines)

    def _points(self, inputs: Any, targets: Any) -> TrainingObjective:
        """The test points after the pipeline's steps."""
        return self.objective.on(self.fitted_model.widened(_through(self.steps, self.last, inputs)), targets)

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
        codes = _encoded(y, self.classes, self.objective.loss)
        targets: np.ndarray[Any, Any] = _plus_minus(codes, self.classes, self.objective.loss)
        return targets


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


def _through(steps: tuple[Any, ...], last: Any, X: Any) -> Any:
    """X after the pipeline's steps, as the last one takes it.

    Raises:
        DataError: a step that cannot take X, columns of other names or in another number, text, NaN.
    """
    try:
        for step in steps:
            X = step.transform(X)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"the pipeline's {type(step).__name__} cannot take X ({said})") from None
    # scikit-learn sets these names only after a fit on a table, and only a table has columns.
    names, given = getattr(last, "feature_names_in_", None), getattr(X, "columns", None)
    if names is not None and given is not None and list(names) != list(given):
        raise DataError(
            f"X has the columns {_few(given)}, but the model was fitted on {_few(names)}; give the same "
            "columns in the same order"
        )
    if not sp.issparse(X):
        try:
            X = np.asarray(X, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(f"X must hold numbers ({error}); encode text first, in the pipeline") from None
        X = X[None] if X.ndim == 1 else X
    wanted = getattr(last, "n_features_in_", None)  # scikit-learn sets it in fit
    if X.ndim != 2 or (wanted is not None and X.shape[1] != wanted):
        raise DataError(f"X must have shape (n, {wanted}), as the model was fitted on, got {X.shape}")
    return X


def _few(names: Any, most: int = 6) -> str:
    listed = list(map(str, names))
    return ", ".join(listed[:most]) + (", …" if len(listed) > most else "")


def _widened(X: Any, scaling: float | None) -> Any:
    if scaling is None:
        return X
    column = np.full((X.shape[0], 1), scaling)
    return sp.hstack([X, column]).tocsr() if sp.issparse(X) else np.hstack([X, column])


def _encoded(y: Any, classes: np.ndarray[Any, Any] | None, loss: Loss) -> np.ndarray[Any, Any]:
    given = np.atleast_1d(np.asarray(y))
    given = given[:, 0] if given.ndim == 2 and given.shape[1] == 1 else given
    if classes is None:
        return given.astype(np.float64)
    unknown = ~np.isin(given, classes)
    if bool(unknown.any()):
        raise DataError(f"the label {given[unknown][0]!r} is none of the model's classes {classes.tolist()}")
    codes = np.searchsorted(classes, given)
    if loss.binary or len(classes) == 2:
        return 2.0 * codes - 1.0
    return codes


def _plus_minus(codes: Any, classes: np.ndarray[Any, Any] | None, loss: Loss) -> Any:
    """−1 and +1 for each class, where a RidgeClassifier has one output per class."""
    if classes is None or loss.name != "squared_error" or len(classes) == 2:
        return codes
    return np.where(codes[:, None] == np.arange(len(classes))[None], 1.0, -1.0)


def _read(estimator: Any, X: Any, y: Any, sample_weight: Any) -> Fitted:
    from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, RidgeClassifier
    from sklearn.svm import LinearSVC

    name = type(estimator).__name__
    readers = {
        LogisticRegression: _logistic,
        LinearSVC: _svc,
        LinearRegression: _ridge,
        Ridge: _ridge,
        RidgeClassifier: _ridge,
    }
    reader = readers.get(type(estimator))
    if reader is None:
        if isinstance(estimator, type):
            raise DataError(f"pass a fitted model, not the class {estimator.__name__}")
        found = getattr(estimator, "best_estimator_", None)  # only a search of scikit-learn has one
        hint = "pass its best_estimator_" if found is not None else _INSTEAD.get(name)
        raise DataError(f"{name} is not supported{f' ({hint})' if hint else ''}; supported are {SUPPORTED}")
    if "coef_" not in vars(estimator):
        raise DataError(f"this {name} is not fitted; call fit first")
    n = X.shape[0]
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] == 1:  # scikit-learn takes a column for a vector
        y = y[:, 0]
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
    if settings["loss"] == "hinge":
        raise DataError(
            "the hinge loss has no second derivative, and its kinks carry the fit; fit LinearSVC with its "
            "default loss='squared_hinge'"
        )
    l2 = 1.0 / (float(settings["C"]) * X.shape[0])
    scaling = float(settings["intercept_scaling"]) if settings["fit_intercept"] else None
    return _linear(
        estimator, settings["loss"], X, y, l2, weights, estimator.classes_, settings["fit_intercept"], scaling
    )


def _ridge(estimator: Any, settings: dict[str, Any], X: Any, y: Any, weights: Any) -> Fitted:
    if settings.get("positive"):
        raise DataError("positive=True is a constrained fit, which influence does not describe")
    alpha = np.asarray(settings.get("alpha", 0.0), dtype=np.float64)  # LinearRegression has none
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
    targets: Any = _plus_minus(_encoded(y, classes, chosen), classes, chosen)
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
