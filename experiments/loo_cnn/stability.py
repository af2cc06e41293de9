"""What several seeds agree on: coefficients over seeds, and how stable each point's rank is."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats


def spread(values: list[float]) -> dict[str, float]:
    """Mean, standard deviation (n - 1), least and greatest."""
    array = np.asarray(values, dtype=np.float64)
    deviation = float(array.std(ddof=1)) if len(array) > 1 else float("nan")
    return {
        "mean": float(array.mean()),
        "deviation": deviation,
        "least": float(array.min()),
        "greatest": float(array.max()),
    }


def ranks(scores: np.ndarray) -> np.ndarray:
    """Place of each point by falling |score|, 1 the largest: ``(seeds, n) -> (seeds, n)``."""
    return np.stack([stats.rankdata(-np.abs(row), method="ordinal") for row in scores])


def stability(scores: np.ndarray, actual: np.ndarray, count: int) -> dict[str, Any]:
    """How alike the seeds are.

    Args:
        scores: predicted changes ``(seeds, n)``.
        actual: actual changes ``(seeds, n)``, NaN if a seed did not leave the point out.
        count: points that each seed leaves out.
    """
    pairs = list(combinations(range(len(scores)), 2))
    order = ranks(scores)
    chosen = order <= count
    shared = (np.isfinite(actual).sum(0) >= 2).nonzero()[0]
    found: dict[str, Any] = {
        "points_chosen_by_any_seed": int(chosen.any(0).sum()),
        "points_chosen_by_all_seeds": int(chosen.all(0).sum()),
        "points_retrained_by_two_seeds": len(shared),
    }
    if not pairs:
        return found
    return found | {
        "spearman_of_predictions": float(
            np.mean([stats.spearmanr(scores[a], scores[b])[0] for a, b in pairs])
        ),
        "overlap_of_chosen": float(np.mean([(chosen[a] & chosen[b]).sum() / count for a, b in pairs])),
        "spearman_of_actual": _over_pairs(actual, pairs),
        "spearman_of_predicted_for_the_same_points": _over_pairs(
            np.where(np.isfinite(actual), scores, np.nan), pairs
        ),
        "median_rank_deviation_of_chosen": float(
            np.median(order[:, chosen.any(0)].std(0, ddof=1)) if chosen.any() else np.nan
        ),
    }


def _over_pairs(values: np.ndarray, pairs: list[tuple[int, int]]) -> float:
    """Mean Spearman over pairs of seeds, over the points that both have; pairs with ten or more of them."""
    found = []
    for a, b in pairs:
        both = np.isfinite(values[a]) & np.isfinite(values[b])
        if both.sum() >= 10:
            found.append(stats.spearmanr(values[a, both], values[b, both])[0])
    return float(np.mean(found)) if found else float("nan")


def mean_over_seeds(scores: np.ndarray, actual: np.ndarray, least: int) -> dict[str, np.ndarray]:
    """Points left out by at least ``least`` seeds: their index, and mean and deviation of both changes."""
    index = (np.isfinite(actual).sum(0) >= least).nonzero()[0]
    own = actual[:, index]
    found = {"index": index}
    for name, values in (
        ("predicted", np.where(np.isfinite(own), scores[:, index], np.nan)),
        ("actual", own),
    ):
        several = least > 1 and len(index)
        found[f"{name}_mean"] = np.nanmean(values, 0) if len(index) else np.zeros(0)
        found[f"{name}_deviation"] = np.nanstd(values, 0, ddof=1) if several else np.zeros(len(index))
    return found
