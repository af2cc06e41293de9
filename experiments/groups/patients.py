"""Section 5.3 as a question about groups: are the children of the training set excessively influential?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from experiments.data import Dataset, Split
from experiments.data.readmission_schema import CHILDREN
from experiments.readmission.children import READMITTED, without_healthy_children
from experiments.records.errors import ConfigError
from influence.groups import group_change, most_influential_set


def planted(data: Dataset) -> Split:
    """The training patients without the healthy children but the last.

    Raises:
        ConfigError: the data have no column of children.
    """
    if data.feature_names is None or CHILDREN not in data.feature_names:
        raise ConfigError(
            f"experiment.children=true needs a column {CHILDREN}, which data={data.name} lacks: use "
            "data=readmission or data=readmission_synthetic, or experiment.children=false."
        )
    rows, _ = without_healthy_children(data.train, data.feature_names.index(CHILDREN))
    return data.train.take(rows)


def of_children(
    settings: Any,
    seed: int,
    data: Dataset,
    split: Split,
    train: Any,
    test: Any,
    theta: torch.Tensor,
    test_index: int,
    scores: np.ndarray,
) -> dict[str, Any]:
    """All children, and those readmitted: three answers, and the refits of random groups of equal size."""
    column = (data.feature_names or ()).index(CHILDREN)
    children = np.flatnonzero(split.X[:, column] == 1)
    ill = children[split.y[children] == READMITTED]
    found: dict[str, Any] = {"children": children.tolist(), "readmitted": ill.tolist()}
    for name, index in (("all_children", children), ("readmitted_children", ill)):
        group = torch.as_tensor(index)
        stepped = group_change(train, theta, group, test, [test_index])
        refit = group_change(
            train, theta, group, test, [test_index], method="refit",
            tolerance=settings.retraining_tolerance,
        )  # fmt: skip
        found[name] = {
            "sum": float(scores[index].sum()),
            "newton": float(stepped[0]),
            "refit": float(refit[0]),
        }
    generator = np.random.default_rng(seed + 1)
    drawn = [
        torch.as_tensor(generator.permutation(train.n)[: len(ill)]) for _ in range(settings.random_groups)
    ]
    peers = group_change(train, theta, drawn, test, [test_index])[:, 0].abs().numpy()
    found["random_groups"] = {"count": len(drawn), "mean": float(peers.mean()), "largest": float(peers.max())}
    found["times_the_largest_random_group"] = abs(found["readmitted_children"]["refit"]) / float(peers.max())
    best = most_influential_set(
        train, theta, test, test_index, len(ill), raises=False, tolerance=settings.retraining_tolerance
    )
    found["most_harmful_set"] = {
        "greedy": sorted(best.idx.tolist()),
        "refit": best.refitted,
        "predicted": best.predicted,
        "is_the_readmitted_children": sorted(best.idx.tolist()) == ill.tolist(),
        "by_single_effects": sorted(best.sum_idx.tolist()),
    }
    return found
