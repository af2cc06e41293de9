"""How well predictions meet the truth: the coefficients that the figures and claims quote."""

from __future__ import annotations

import numpy as np
from scipy import stats


def agreement(predicted: np.ndarray, actual: np.ndarray) -> dict[str, float]:
    """Pearson, Spearman, least-squares slope of predicted on actual, and errors, of two (m,) arrays.

    A coefficient is NaN if one side is constant.
    """
    constant = np.ptp(predicted) == 0 or np.ptp(actual) == 0 or len(actual) < 2
    error = np.abs(predicted - actual)
    centred = actual - actual.mean()
    return {
        "pearson": float("nan") if constant else float(stats.pearsonr(predicted, actual)[0]),
        "spearman": float("nan") if constant else float(stats.spearmanr(predicted, actual)[0]),
        "slope": float("nan") if constant else float(centred @ predicted / (centred @ centred)),
        "max_error": float(error.max()),
        "mean_error": float(error.mean()),
        "same_sign": float(np.mean(np.sign(predicted) == np.sign(actual))),
    }


def largest(scores: np.ndarray, count: int) -> np.ndarray:
    """Positions of the ``count`` scores of largest absolute value, largest first; ties by position."""
    return np.argsort(-np.abs(scores), kind="stable")[:count]


def least_lead(ahead: np.ndarray, behind: np.ndarray) -> float:
    """By how many standard errors ``ahead`` exceeds ``behind``, both (repeats, m), in the column where that
    is least: mean over standard error of the paired differences. NaN for one repeat, ±inf where all differ
    alike.
    """
    difference = np.asarray(ahead, dtype=np.float64) - behind
    if len(difference) < 2:
        return float("nan")
    error = difference.std(0, ddof=1) / len(difference) ** 0.5
    with np.errstate(divide="ignore", invalid="ignore"):
        return float((difference.mean(0) / error).min())
