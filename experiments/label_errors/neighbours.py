"""What a row's nearest rows say of its label, the row itself left out: a second opinion beside the models."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from experiments.data.tables.features import INTERCEPT

COUNTS = (5, 10, 20)  # nearest rows; the count with the smallest loss is taken
PRIOR = 2.0  # rows' worth of the classes' shares in each vote
WORK = 2e10  # multiplications of all distances up to which they are computed
_ROWS = 1024


def affordable(X: Any) -> bool:
    """Whether all pairs of rows can be compared in a few seconds."""
    n = X.shape[0]
    width = X.nnz / max(1, n) if sp.issparse(X) else X.shape[1]
    return n > 2 * COUNTS[-1] and n * n * (width + 10) <= WORK


def probabilities(
    X: Any,
    y: np.ndarray,
    classes: int,
    weights: np.ndarray | None,
    groups: np.ndarray | None,
    counts: tuple[int, ...] = COUNTS,
    kernel: np.ndarray | None = None,
) -> tuple[np.ndarray, int]:
    """``(m, c)`` shares of the classes among each row's nearest rows, and how many rows were asked.

    Args:
        X: ``(m, d)`` with the intercept last; entries of a dense X are cut at ±4.
        y: ``(n,)`` targets.
        classes: c.
        weights: of a row's vote. groups: rows of a row's own group are not asked. counts: of rows to try.
        groups: ``(n,)`` rows that belong together.
        counts: neighbours asked for.
        kernel: ``X Xᵀ (m, m)`` of a sparse X, if it is known.
    """
    near = _nearest(X, groups, kernel if sp.issparse(X) else None)
    w = np.ones(len(y)) if weights is None else weights
    prior = np.bincount(y, weights=w, minlength=classes) / w.sum()
    votes, best = np.zeros((len(y), classes)), (np.inf, np.zeros(0), 0)
    rows = np.arange(len(y))
    for k in range(near.shape[1]):
        other = near[:, k]
        votes[rows, y[other]] += w[other] * (other >= 0)
        if k + 1 in counts:
            total = votes.sum(1, keepdims=True)
            shares = (votes + PRIOR * prior) / (total + PRIOR)
            loss = float((-w * np.log(np.maximum(shares[rows, y], 1e-12))).mean())
            if loss < best[0]:
                best = (loss, shares, k + 1)
    return best[1], best[2]


def _nearest(X: Any, groups: np.ndarray | None, kernel: np.ndarray | None) -> np.ndarray:
    """``(m, 20)`` places of the nearest rows, nearest first, −1 where there are none."""
    Z = X[:, :-1] if sp.issparse(X) else np.clip(X[:, :-1], -4, 4)
    Z = Z.tocsr() if sp.issparse(Z) else Z
    square = np.asarray(Z.multiply(Z).sum(1)).ravel() if sp.issparse(Z) else (Z * Z).sum(1)
    near = np.empty((len(square), COUNTS[-1]), dtype=np.int64)
    for start in range(0, len(square), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(square)))
        product: Any = Z[rows] @ Z.T if kernel is None else kernel[rows] - INTERCEPT**2
        distance = square[None, :] - 2 * (product.toarray() if sp.issparse(product) else product)
        if groups is None:
            distance[np.arange(len(rows)), rows] = np.inf
        else:
            distance[groups[rows][:, None] == groups[None, :]] = np.inf
        distance = np.round(distance, 9)  # equal rows stay equal, whatever the rounding of the product
        part = np.argpartition(distance, COUNTS[-1], axis=1)[:, : COUNTS[-1]]
        part.sort(axis=1)
        order = np.argsort(np.take_along_axis(distance, part, axis=1), axis=1, kind="stable")
        part = np.take_along_axis(part, order, axis=1)
        near[rows] = np.where(np.isinf(np.take_along_axis(distance, part, axis=1)), -1, part)
    return near
