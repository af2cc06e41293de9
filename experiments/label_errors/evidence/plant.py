"""Label errors planted in a clean table: uniform ones, and ones towards the class that is likely anyway."""

from __future__ import annotations

import numpy as np

KINDS = ("uniform", "likely")
RATES = (0.05, 0.1, 0.2)
SEEDS = 5
METHODS = {
    "held_loss": "ours: loss without the row (default)",
    "held_margin": "ours: margin without the row",
    "linear": "loss without the row, linear model alone",
    "loss": "training loss, λ chosen",
    "loss_fixed": "training loss, λ = 0.01",
    "self_influence": "self-influence, λ chosen",
    "self_influence_fixed": "self-influence, λ = 0.01",
    "cleanlab": "cleanlab, out-of-fold, the same models",
    "cleanlab_linear": "cleanlab, out-of-fold, linear model",
    "neighbours": "10 nearest rows",
}


def planted(
    y: np.ndarray, likely: np.ndarray, kind: str, rate: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Labels ``(n,)`` with a share ``rate`` of them wrong, and which ones ``(n,)``.

    Args:
        y: ``(n,)`` targets.
        likely: ``(n, c)`` probabilities of the classes by a model of the clean labels, without each row.
        kind: ``uniform``: rows and new classes are drawn alike. ``likely``: a row is drawn in proportion to
            the probability of the other classes, and its new class in proportion to its own.
        rate: share of the labels.
        seed: of the generator; equal seeds give equal answers.
    """
    generator = np.random.default_rng([seed, round(1000 * rate), KINDS.index(kind)])
    n, classes = likely.shape
    count = max(1, round(rate * n))
    rows, found = np.arange(n), y.copy()
    if kind == "uniform":
        chosen = generator.choice(n, count, replace=False)
        found[chosen] = (y[chosen] + generator.integers(1, classes, count)) % classes
    else:
        other = likely + 1e-6
        other[rows, y] = 0.0
        weight = other.sum(1)
        chosen = generator.choice(n, count, replace=False, p=weight / weight.sum())
        found[chosen] = [generator.choice(classes, p=other[i] / weight[i]) for i in chosen]
    wrong = np.zeros(n, dtype=bool)
    wrong[chosen] = True
    return found, wrong
