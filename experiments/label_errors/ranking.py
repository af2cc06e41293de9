"""From scores to an order that does not depend on rounding: equal rows stay in the order of the file."""

from __future__ import annotations

import numpy as np

_DIGITS = 9  # of a score that are looked at; the last ones differ between processors and counts of threads
_FLOOR = 1e-15  # of the largest score: below it a difference is rounding, whatever the score's own size


def rounded(scores: np.ndarray) -> np.ndarray:
    """``(n,)`` scores to nine digits, so that rows that are equal have equal scores."""
    largest = np.abs(scores).max(initial=0.0)
    if largest == 0 or not np.isfinite(largest):
        return scores
    size = np.maximum(np.abs(scores), _FLOOR * 10.0**_DIGITS * largest)
    unit = 10.0 ** (np.floor(np.log10(size)) - (_DIGITS - 1))
    result: np.ndarray = np.round(scores / unit) * unit
    return result


def order_of(scores: np.ndarray) -> np.ndarray:
    """``(n,)`` rows, the largest score first; rows whose scores differ by rounding only by their place."""
    return np.argsort(-rounded(scores), kind="stable")
