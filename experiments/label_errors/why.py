"""Why a row is a suspect: the training rows and the features that speak against its label.

A training row j changes the loss of row i's given label by ``−∇ℓ_iᵀ H⁻¹ ∇ℓ_j w_j / n`` (influence of j on i's
own prediction, eq. 2 of the paper). Positive: j contradicts the label of i; negative: j supports it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from scipy.special import expit

from experiments.data.tables.features import Features
from experiments.label_errors.choose import Model
from experiments.label_errors.held_out import objective_of
from experiments.label_errors.logistic import Design, FeatureFactor, dense
from influence import Exact, Hessian

COUNT = 5  # training rows, and features, named on each side
WORK = 6e10  # floating-point operations spent on this in all
_BLOCK = 64  # suspects whose influences are held at once
_CELLS = 4_000_000  # numbers of suspects and features that are held at once
_CG = (200, 1e-4)  # steps and relative residual of a solve where features outnumber rows


@dataclass(frozen=True)
class Reasons:
    """For k suspects ``rows (k,)``: ``against`` and ``support (k, 5)`` places of training rows, −1: none.

    ``against_size`` and ``support_size`` ``(k, 5)``: the change of the suspect's loss in nats, absolute.
    """

    rows: np.ndarray
    against: np.ndarray
    support: np.ndarray
    against_size: np.ndarray
    support_size: np.ndarray


def affordable(n: int, columns: int, wanted: int) -> int:
    """How many suspects can be explained, at least 20."""
    return int(max(20, min(wanted, WORK / (4.0 * max(1, n) * max(1, columns)))))


def reasons(influence: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> Reasons:
    """The strongest training rows on either side.

    Args:
        influence: gives ``(n, b)`` changes of the losses of b rows by each training row.
        rows: ``(k,)`` places of the suspects.
    """
    parts = []
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        change = influence(block)
        change[block, np.arange(len(block))] = 0.0  # a row is no witness of itself
        parts.append((*_largest(change), *_largest(-change)))
    if not parts:
        empty = np.zeros((0, COUNT))
        return Reasons(rows, empty.astype(int), empty.astype(int), empty, empty)
    against, a, support, b = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Reasons(rows, against, support, a, b)


def _largest(change: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``(b, 5)`` places of the largest positive entries of each column and the entries; −1 and 0 beyond."""
    count = min(COUNT, len(change))
    top = np.argpartition(-change, count - 1, axis=0)[:count]
    values = np.take_along_axis(change, top, axis=0)
    order = np.lexsort((top, -values), axis=0)
    top, values = np.take_along_axis(top, order, axis=0).T, np.take_along_axis(values, order, axis=0).T
    if count < COUNT:
        top = np.pad(top, ((0, 0), (0, COUNT - count)), constant_values=-1)
        values = np.pad(values, ((0, 0), (0, COUNT - count)))
    return np.where(values > 0, top, -1), np.maximum(values, 0.0)


def of_classes(model: Model, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The influence of every row on the losses of given rows, for a classifier."""
    fitted, design = model.fitted, model.design
    w = np.ones(design.n) if model.weights is None else model.weights
    if fitted.form == "softmax":
        return _softmax(model, y, w)
    outputs = np.asarray(design.X @ fitted.W.T)
    modelled = [1] if fitted.form == "logistic" else list(range(len(fitted.W)))
    between = [factor.between for factor in fitted.factors] or [
        _between(design, w * expit(outputs[:, k]) * expit(-outputs[:, k]), fitted.l2, lazy=len(modelled) > 1)
        for k in modelled
    ]
    if fitted.form == "logistic":
        signs = np.where(y == 1, 1.0, -1.0)
        slope = -signs * expit(-signs * outputs[:, 1])
        return lambda rows: -(slope * w)[:, None] * between[0](rows) * slope[rows] / design.n

    def influence(rows: np.ndarray) -> np.ndarray:
        total = np.zeros((design.n, len(rows)))
        for k in modelled:
            signs = np.where(y == k, 1.0, -1.0)
            slope = -signs * expit(-signs * outputs[:, k])  # of the training loss of model k
            # of −log of the normalised probability of the given class, in output k
            own = -((y[rows] == k) - fitted.seen[rows, k]) * expit(-outputs[rows, k])
            total -= (slope * w)[:, None] * between[k](rows) * own / design.n
        return total

    return influence


def _softmax(model: Model, y: np.ndarray, w: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    fitted = model.fitted
    objective = objective_of(
        model.design.X, torch.from_numpy(y), "cross_entropy", fitted.l2, model.weights, len(fitted.W)
    )
    theta = torch.from_numpy(np.ascontiguousarray(fitted.W)).reshape(-1)
    state = fitted.factors[0] if fitted.factors else Exact(form="core").prepare(Hessian(objective, theta))

    def influence(rows: np.ndarray) -> np.ndarray:
        gradients = objective.example_gradients(theta, torch.from_numpy(rows)).T.contiguous()
        scores = -objective.directional(theta, state.inverse(gradients)).numpy()
        return scores * w[:, None] / model.design.n

    return influence


def of_numbers(
    design: Design, residual: np.ndarray, w: np.ndarray, l2: float
) -> Callable[[np.ndarray], np.ndarray]:
    """The same for linear regression with residuals ``prediction − target``."""
    between = _between(design, w, l2)
    return lambda rows: -(residual * w)[:, None] * between(rows) * residual[rows] / design.n


def _between(
    design: Design, D: np.ndarray, l2: float, lazy: bool = False
) -> Callable[[np.ndarray], np.ndarray]:
    """``rows -> X H⁻¹ X_rowsᵀ (n, b)`` with ``H = XᵀDX/n + λI``.

    lazy: the factor is made again in every call, for there are several that would not fit together.
    """
    X: Any = design.X
    if design.d <= min(design.n, 6000):
        if not lazy:
            return FeatureFactor(design, D, l2).between
        return lambda rows: FeatureFactor(design, D, l2).between(rows)
    transposed = X.T.tocsr() if sp.issparse(X) else X.T

    def conjugate(rows: np.ndarray) -> np.ndarray:
        B = dense(X[rows]).T.copy()
        solved, residual = np.zeros_like(B), B.copy()
        direction, square = residual.copy(), (residual**2).sum(0)
        goal = _CG[1] ** 2 * square
        for _ in range(_CG[0]):
            curved = transposed @ (D[:, None] * (X @ direction)) / design.n + l2 * direction
            length = square / np.maximum((direction * curved).sum(0), 1e-300)
            solved += length * direction
            residual -= length * curved
            new = (residual**2).sum(0)
            if bool((new <= goal).all()):
                break
            direction = residual + new / np.maximum(square, 1e-300) * direction
            square = new
        return np.asarray(X @ solved)

    return conjugate


def contributions(
    features: Features, W: np.ndarray, given: np.ndarray, proposed: np.ndarray, rows: np.ndarray
) -> list[list[tuple[int, str, float]]]:
    """What pulls each suspect from its given to its proposed class: (column, feature or "", log-odds).

    The linear part of the model: ``(W_proposed − W_given)_f (x_f − mean of x_f)``, summed over the
    features of a column, and word by word for text. Largest first, positive ones only.

    Args:
        features: ``(n, d)`` inputs as numbers.
        W: ``(c, ≥ d)``; for regression ``(1, d)`` times the sign of the proposed change.
        given, proposed: ``(k,)`` classes of the suspects.
        given: the labels as they are.
        proposed: the labels proposed instead.
        rows: of which rows.
    """
    d = len(features.names) - 1
    mean = np.asarray(features.X[:, :d].mean(0)).ravel()
    owner, words = features.owner[:d], np.array([c.kind == "text" for c in features.columns])
    own = np.flatnonzero(words[owner])
    other = np.flatnonzero(~words[owner])
    size = max(1, min(512, _CELLS // d))
    found = []
    for start in range(0, len(rows), size):
        block = slice(start, start + size)
        value = W[proposed[block], :d] - W[given[block], :d]
        value *= dense(features.X[rows[block], :d]) - mean
        best = _first(value[:, own]) if len(own) else np.zeros((len(value), 0), dtype=np.int64)
        for one, places in zip(value, best, strict=True):
            sums = np.bincount(owner[other], weights=one[other], minlength=len(words))
            items = [(int(c), "", float(sums[c])) for c in np.argsort(-sums)[:COUNT] if sums[c] > 1e-9]
            items += [(int(owner[f]), features.names[f], float(one[f])) for f in own[places] if one[f] > 1e-3]
            found.append(sorted(items, key=lambda item: -item[2])[:COUNT])
    return found


def _first(values: np.ndarray) -> np.ndarray:
    """``(k, 5)`` places of the largest entries of each row, by place; all of them if there are fewer."""
    width = values.shape[1]
    if width <= COUNT:
        return np.tile(np.arange(width), (len(values), 1))
    return np.sort(np.argpartition(values, width - COUNT, axis=1)[:, width - COUNT :], axis=1)
