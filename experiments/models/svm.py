"""Linear SVMs trained with the hinge itself, each with a certificate that it is optimal."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.optimize import lsq_linear

from experiments.records.errors import UserError

_NEAR = 1e-4  # margins this close to 1 may carry any dual weight in [0, 1]


def fit_hinge(
    X: np.ndarray, y: np.ndarray, l2: float, tolerance: float, largest_gap: float
) -> tuple[np.ndarray, float]:
    """Weights (d,) minimising ``mean(max(0, 1 - y Xw)) + (l2/2)||w||^2``, and their relative duality gap.

    scikit-learn's LinearSVC (liblinear) without intercept, C = 1/(n l2). X (n, d), y (n,) in {-1, +1}.

    Raises:
        UserError: the gap exceeds ``largest_gap``.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    machine = LinearSVC(
        C=1 / (len(y) * l2),
        loss="hinge",
        fit_intercept=False,
        tol=tolerance,
        max_iter=1_000_000,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the gap below decides
        w = machine.fit(X, y).coef_[0]
    gap = duality_gap(w, X, y, l2)
    if not gap <= largest_gap:
        raise UserError(
            f"the hinge SVM has a relative duality gap of {gap:.2g}, above {largest_gap:.2g}: lower "
            "experiment.tolerance or raise experiment.largest_gap."
        )
    return w, gap


def duality_gap(w: np.ndarray, X: np.ndarray, y: np.ndarray, l2: float) -> float:
    """(P(w) - D(a)) / P(w) for a dual point a made from w; it bounds ``||w - w*||^2 l2 / 2`` by gap * P.

    a_i is 1 inside the margin, 0 outside, and on it the weights in [0, 1] that best express l2 w as
    ``(1/n) sum a_i y_i x_i``. D(a) = mean(a) - ||(1/n) sum a_i y_i x_i||^2 / (2 l2).
    """
    n = len(y)
    margin = y * (X @ w)
    primal = np.maximum(0, 1 - margin).mean() + l2 / 2 * w @ w
    a = (margin < 1).astype(np.float64)
    on = np.flatnonzero(np.abs(margin - 1) < _NEAR)
    a[on] = 0
    rest = l2 * w - (a * y) @ X / n
    if len(on):
        columns = (X[on] * y[on, None]).T / n
        a[on] = lsq_linear(columns * n, rest * n, bounds=(0, 1), tol=1e-14).x
    combined = (a * y) @ X / n
    dual = a.mean() - combined @ combined / (2 * l2)
    return float((primal - dual) / primal)
