"""Labels that are numbers: linear regression, each row's prediction without the row, and what stands out.

``(1/2n) Σ w_i (θ·x_i − y_i)² + (λ/2)‖θ‖²`` on standardised targets. With ``q_i = x_iᵀ H⁻¹ x_i`` the residual
without row i is exactly ``e_i / (1 − w_i q_i/n)``; the self-influence is ``e_i² q_i``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from experiments.data.tables.features import Features
from experiments.label_errors import choose, logistic
from experiments.label_errors.held_out import group_folds
from experiments.label_errors.logistic import Design
from experiments.label_errors.ranking import rounded
from experiments.label_errors.settings import Settings

OUTLYING = 3.5  # robust standard deviations from which a residual counts as an error
_NORMAL = 1.4826  # of the median absolute deviation, for the standard deviation of normal errors


@dataclass
class Numbers:
    """What is known of each labelled row; arrays ``(m,)`` in the units of the target.

    Attributes:
        predicted: without the row itself.
        distance: the residual without the row, in robust standard deviations.
        scores, order, expected: as for classes; ``held_loss`` is half the squared distance.
        residual: prediction less target with the row, standardised; theta, l2, design: of the chosen model.
    """

    predicted: np.ndarray
    distance: np.ndarray
    scores: dict[str, np.ndarray]
    order: np.ndarray
    expected: tuple[int, int, int]
    explained: float
    design: Design
    theta: np.ndarray
    l2: float
    residual: np.ndarray
    name: str
    tried: tuple[tuple[float, float], ...]


def fit(design: Design, y: np.ndarray, w: np.ndarray, l2: float) -> tuple[np.ndarray, np.ndarray]:
    """θ̂ ``(d,)`` and ``q (n,)``, exact."""
    n = design.n
    if design.d <= n:
        factor = cho_factor(design.hessian(w, l2), lower=True)
        theta = cho_solve(factor, np.asarray(design.X.T @ (w * y)).ravel() / n)
        return theta, logistic.by_features(design, w, l2)
    root = np.sqrt(w)
    A = design.kernel * root[:, None] * root
    A.flat[:: n + 1] += n * l2
    dual = root * cho_solve(cho_factor(A, lower=True), root * y)
    return np.asarray(design.X.T @ dual).ravel(), logistic.by_rows(design, w, l2)


def held_residuals(design: Design, y: np.ndarray, w: np.ndarray, l2: float) -> np.ndarray:
    """Prediction less target without each row, ``(n,)``."""
    theta, q = fit(design, y, w, l2)
    return (np.asarray(design.X @ theta).ravel() - y) / np.maximum(1 - w * q / design.n, 1e-12)


def assess(
    features: Features,
    y: np.ndarray,
    weights: np.ndarray | None,
    groups: np.ndarray | None,
    settings: Settings,
    step: Callable[[str], None],
) -> Numbers:
    """Fits, holds out, ranks. Arguments as of ``assess.assess`` with ``y`` floats."""
    largest = float(np.abs(y).max()) or 1.0  # squares of targets near the largest float overflow
    unit = y / largest
    middle, spread = float(np.median(unit)), float(unit.std()) or 1.0
    z, w = (unit - middle) / spread, np.ones(len(y)) if weights is None else weights
    candidates: list[tuple[str, Any]] = [("linear", features.X)]
    if settings.model != "linear" and not choose.not_curved(features.X, 2, settings.model == "curved"):
        wide = [choose.curved(features.X, width, choose.LANDMARKS, settings.seed) for width in choose.WIDTHS]
        candidates = [*(candidates if settings.model == "auto" else []), *(("curved", X) for X in wide)]
    best: Any = None
    for name, X in candidates:
        step(f"fitting numbers with {name} features")
        l2, tried = _l2(X, z, w, settings)
        design = Design(X)
        held = held_residuals(design, z, w, l2)
        loss = float((w * np.minimum(held**2, 25.0)).mean())
        if best is None or loss < best[0]:
            best = (loss, name, design, l2, tried, held)
    _, name, design, l2, tried, held = best
    theta, q = fit(design, z, w, l2)
    residual = np.asarray(design.X @ theta).ravel() - z
    if groups is not None:
        held = _held_by_folds(design.X, z, w, l2, group_folds(groups, 10, settings.seed))
    scale = max(_NORMAL * float(np.median(np.abs(held - np.median(held)))), 1e-12)
    distance = held / scale
    scores = {
        "held_loss": 0.5 * distance**2,
        "held_margin": np.abs(distance),
        "loss": 0.5 * residual**2,
        "self_influence": residual**2 * q,
    }
    scores = {name: rounded(score) for name, score in scores.items()}
    far = np.abs(distance) > OUTLYING
    draws = np.random.default_rng(settings.seed).binomial(len(y), far.mean(), 200)
    low, high = int(np.quantile(draws, 0.05)), int(np.quantile(draws, 0.95))
    high = max(high, int((np.abs(distance) > OUTLYING - 1).sum()))
    low = min(low, int((np.abs(distance) > 2 * OUTLYING).sum()))
    return Numbers(
        ((z + held) * spread + middle) * largest,
        distance,
        scores,
        np.argsort(-scores[settings.rank], kind="stable"),
        (int(far.sum()), low, high),
        1 - float((w * held**2).sum() / max((w * (z - np.average(z, weights=w)) ** 2).sum(), 1e-300)),
        design,
        theta,
        l2,
        residual,
        name,
        tried,
    )


def _l2(X: Any, z: np.ndarray, w: np.ndarray, settings: Settings) -> tuple[float, Any]:
    """λ by the mean squared residual without the row, each cut at five standard deviations."""
    if settings.l2 is not None:
        return settings.l2, ()
    n, d = X.shape
    limit = choose.ROWS_OF_WORDS if d > n or d > 2000 else choose.ROWS
    rows = np.sort(np.random.default_rng(settings.seed).permutation(n)[:limit])
    design, part = Design(X[rows]), w[rows] / max(w[rows].mean(), 1e-12)
    tried = tuple(
        (l2, float((part * np.minimum(held_residuals(design, z[rows], part, l2) ** 2, 25.0)).mean()))
        for l2 in choose.GRID
    )
    return min(tried, key=lambda pair: pair[1])[0] * len(rows) / n, tried


def _held_by_folds(X: Any, z: np.ndarray, w: np.ndarray, l2: float, folds: np.ndarray) -> np.ndarray:
    out = np.empty(len(z))
    for fold in np.unique(folds):
        rest, rows = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        theta, _ = fit(Design(X[rest]), z[rest], w[rest], l2 * len(z) / len(rest))
        out[rows] = np.asarray(X[rows] @ theta).ravel() - z[rows]
    return out
