"""Which model looks at the labels: λ and curved features, chosen by the loss of each row without itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from experiments.data.tables.features import INTERCEPT, Features
from experiments.label_errors.held_out import Fitted, classifier
from experiments.label_errors.logistic import Design
from experiments.label_errors.settings import Settings
from experiments.records.errors import UserError
from influence.errors import InfluenceError

GRID = (1e-1, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5)  # λ of the mean loss, largest first
ROWS = 2000  # rows that λ is chosen on; λ·rows carries over to all
ROWS_OF_WORDS = 1500  # the same where features outnumber rows
WORSE = 1.15  # a loss this much above the best ends the search
LANDMARKS = 80  # rows that the curved features measure the distance to
WIDTHS = (0.5, 2.0)  # of the kernel: exp(−width ‖x − x'‖² / median)
_CURVED_WORK = 1.5e11  # floating-point operations of one factor up to which curved features are tried
_CURVED_INPUTS = 200  # features that distances are still meaningful in


@dataclass(frozen=True)
class Model:
    """A fitted classifier and the matrix that it was fitted on.

    Attributes:
        name: ``linear`` or ``curved``.
        design: its X is ``(m, d)`` with the intercept last.
        fitted: with the rows weighted as ``weights`` says.
        tried: (λ, mean leave-one-out loss) of the search.
    """

    name: str
    design: Design
    fitted: Fitted
    weights: np.ndarray | None
    tried: tuple[tuple[float, float], ...]


def chosen_l2(
    X: Any, y: np.ndarray, classes: int, weights: np.ndarray | None, seed: int
) -> tuple[float, tuple[tuple[float, float], ...]]:
    """λ with the smallest mean leave-one-out loss, and what was tried.

    On a part of many rows, drawn by ``seed`` with every class in it; the penalty ``λ·rows`` carries over.

    Raises:
        UserError: no model could be fitted at any λ.
    """
    n, d = X.shape
    limit = ROWS_OF_WORDS if d > n or d > 2000 else ROWS
    rows = _part(y, limit, seed) if n > limit else np.arange(n)
    part, labels = Design(X[rows]), y[rows]
    w = None if weights is None else weights[rows] / max(weights[rows].mean(), 1e-12)
    found: list[tuple[float, float]] = []
    start, best = None, np.inf
    for l2 in GRID:
        try:
            fitted = classifier(part, labels, classes, l2, w, start)
        except InfluenceError:  # singular at a λ this small: the larger ones stand
            break
        loss = _mean(fitted.held_loss, w)
        found.append((l2, loss))
        start, best = fitted.W, min(best, loss)
        if loss > WORSE * best:
            break
    if not found:
        raise UserError(
            "no model could be fitted at any l2; look for columns with extreme values, or set l2=."
        )
    l2 = min(found, key=lambda pair: pair[1])[0]
    return l2 * len(rows) / n, tuple(found)


def _mean(losses: np.ndarray, weights: np.ndarray | None) -> float:
    return float(losses.mean() if weights is None else (losses * weights).mean())


def _part(y: np.ndarray, size: int, seed: int) -> np.ndarray:
    """``size`` rows or a few more, at least two of each class where it has them."""
    order = np.random.default_rng(seed).permutation(len(y))
    chosen = set(order[:size].tolist())
    for k in np.unique(y):
        chosen.update(order[y[order] == k][:2].tolist())
    return np.array(sorted(chosen))


def models(
    features: Features,
    y: np.ndarray,
    classes: int,
    weights: np.ndarray | None,
    settings: Settings,
    step: Callable[[str], None],
) -> list[Model]:
    """The linear model, and a curved one where the table allows it."""
    found = []
    X = features.X
    if settings.model != "curved":
        step("choosing l2")
        l2, tried = _l2(X, y, classes, weights, settings)
        step(f"fitting {classes} classes on {X.shape[0]} rows and {X.shape[1]} features")
        design = Design(X)
        fitted = classifier(design, y, classes, l2, weights, keep=True)
        found.append(Model("linear", design, fitted, weights, tried))
    if settings.model == "linear":
        return found
    why = not_curved(X, classes, settings.model == "curved")
    if why:
        if settings.model == "curved":
            raise UserError(f"model=curved does not fit this table: {why}; set model=linear.")
        return found
    best: tuple[float, Any, float, Any] | None = None
    for width in WIDTHS:
        step("trying curved features")
        wide = curved(X, width, _landmarks(classes), settings.seed)
        l2, tried = _l2(wide, y, classes, weights, settings)
        loss = min((pair[1] for pair in tried), default=0.0)
        if best is None or loss < best[0]:
            best = (loss, wide, l2, tried)
    assert best is not None
    step("fitting with curved features")
    _, wide, l2, tried = best
    design = Design(wide)
    fitted = classifier(design, y, classes, l2, weights, keep=True)
    found.append(Model("curved", design, fitted, weights, tried))
    return found


def _l2(
    X: Any, y: np.ndarray, classes: int, weights: np.ndarray | None, settings: Settings
) -> tuple[float, tuple[tuple[float, float], ...]]:
    return (settings.l2, ()) if settings.l2 is not None else chosen_l2(X, y, classes, weights, settings.seed)


def not_curved(X: Any, classes: int, forced: bool) -> str:
    """Why curved features are not tried; empty if they are."""
    n, d = X.shape
    if sp.issparse(X):
        return "it has words or very many categories"
    if d > _CURVED_INPUTS and not forced:
        return f"it has {d} features"
    wide = d + (_landmarks(classes))
    pairs = 1 if classes == 2 else classes * (classes - 1) / 2
    if 2 * pairs * n * wide**2 > _CURVED_WORK and not forced:
        return f"{n} rows and {classes} classes would take minutes"
    return "" if n >= 20 else f"it has {n} rows"


def curved(X: np.ndarray, width: float, landmarks: int, seed: int) -> np.ndarray:
    """X with up to ``landmarks`` features of a Gaussian kernel before its intercept (Nyström).

    The kernel is ``exp(−width ‖x − x'‖² / m)`` with m the median squared distance, on X without the
    intercept, each entry cut at ±4 so that one extreme cell does not set the distances.
    """
    from scipy.spatial.distance import cdist

    Z, generator = np.clip(X[:, :-1], -4, 4), np.random.default_rng(seed)
    places = np.sort(generator.choice(len(Z), min(landmarks, len(Z)), replace=False))
    sample = Z[generator.choice(len(Z), min(500, len(Z)), replace=False)]
    median = float(np.median(cdist(sample, sample, "sqeuclidean")))
    gamma = width / median if median > 0 else 1.0
    kernel = np.exp(-gamma * cdist(Z, Z[places], "sqeuclidean"))
    values, vectors = np.linalg.eigh(kernel[places])
    kept = values > 1e-8 * values[-1]
    extra = kernel @ (vectors[:, kept] / np.sqrt(values[kept]))
    extra = 5.0 * (extra - extra.mean(0))
    return np.hstack([X[:, :-1], extra, np.full((len(X), 1), INTERCEPT)])


def _landmarks(classes: int) -> int:
    """Landmarks for so many classes: the factor grows with the cube of classes times features."""
    return LANDMARKS if classes <= 4 else max(20, 320 // classes)
