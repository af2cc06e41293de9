"""How well predicted changes agree with real ones, with confidence intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from influence.checks import checked_number
from influence.errors import DataError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value with its bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} … {self.high:.3f})"


@dataclass(frozen=True)
class Agreement:
    """Predicted against actual changes of m points.

    Attributes:
        m: points compared.
        pearson, spearman: correlations.
        slope: of the least-squares line *predicted = a + slope · actual*; 1 where sizes are right, below 1
            where the prediction is too small.
        error: mean absolute error over the mean absolute actual change.
        sign: share of points whose sign agrees.
    """

    m: int
    pearson: Estimate
    spearman: Estimate
    slope: Estimate
    error: float
    sign: float

    def __str__(self) -> str:
        return (
            f"{self.m} points: Pearson {self.pearson}, Spearman {self.spearman}, slope {self.slope}, error "
            f"{self.error:.1%} of the mean change, sign right for {self.sign:.1%}"
        )


def agreement(
    predicted: ArrayLike,
    actual: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Agreement:
    """Compare m predicted changes with the real ones.

    Args:
        predicted, actual: ``(m,)``, m ≥ 3.
        predicted: predicted changes ``(m,)``.
        actual: changes by retraining ``(m,)``.
        confidence: of the intervals, by resampling points (percentiles of the bootstrap).
        resamples: bootstrap samples.
        seed: of the bootstrap.

    Raises:
        DataError: different lengths, fewer than three points, NaN or infinite values, a setting out of range.
    """
    checked_number("confidence", confidence, above=0.0, below=1.0)
    checked_number("resamples", resamples, least=10, whole=True)
    x, y = np.asarray(predicted, dtype=np.float64), np.asarray(actual, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or len(x) < 3:
        raise DataError(
            f"agreement needs two equal vectors of at least 3 values, got {x.shape} and {y.shape}"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise DataError("agreement needs finite values; a model that did not converge is left out of it")
    draws = np.random.default_rng(seed).integers(len(x), size=(resamples, len(x)))
    draws = draws[(draws != draws[:, :1]).any(axis=1)]
    X, Y = x[draws], y[draws]

    def estimate(measure: Callable[[Floats, Floats], Floats]) -> Estimate:
        tail = (1 - confidence) / 2
        values = measure(X, Y)
        values = values[np.isfinite(values)]
        low, high = np.quantile(values, [tail, 1 - tail]) if len(values) else (np.nan, np.nan)
        return Estimate(float(measure(x[None], y[None])[0]), float(low), float(high))

    scale = float(np.abs(y).mean())
    error = float(np.abs(x - y).mean()) / scale if scale > 0 else float("inf")
    sign = float((np.sign(x) == np.sign(y)).mean())
    return Agreement(len(x), estimate(_pearson), estimate(_spearman), estimate(_slope), error, sign)


def _pearson(x: Any, y: Any) -> Floats:
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = (x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1))
    return found


def _spearman(x: Any, y: Any) -> Floats:
    from scipy.stats import rankdata  # scipy.stats takes a third of torch's own time to import

    return _pearson(rankdata(x, axis=1), rankdata(y, axis=1))


def _slope(x: Any, y: Any) -> Floats:
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = (x * y).sum(1) / (y * y).sum(1)
    return found


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rank correlation of two vectors; ties take their mean rank."""
    return float(_spearman(np.asarray(x, dtype=np.float64)[None], np.asarray(y, dtype=np.float64)[None])[0])
