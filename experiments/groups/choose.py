"""Which groups are left out, and which test point is asked about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from experiments.data import Dataset
from experiments.data.readmission_schema import CHILDREN
from experiments.readmission.children import misclassified
from experiments.records.errors import UserError

KINDS = ("random", "one class", "most helpful", "most harmful")


@dataclass(frozen=True)
class Group:
    """A group of one of ``KINDS``: positions ``index (m,)`` in the training set, a ``share`` of all."""

    kind: str
    share: float
    index: np.ndarray


def groups_of(settings: Any, scores: np.ndarray, y: np.ndarray, label: int, seed: int) -> list[Group]:
    """All groups. A size is left out where the class, or the points of one sign, are fewer."""
    generator, n = np.random.default_rng(seed), len(scores)
    order = np.argsort(-scores, kind="stable")
    helpful, harmful = order[scores[order] > 0], order[::-1][scores[order[::-1]] < 0]
    mine = np.flatnonzero(y == label)
    found: list[Group] = []
    for share in settings.shares:
        size = max(2, round(share * n))
        for _ in range(settings.draws):
            found.append(Group("random", share, np.sort(generator.permutation(n)[:size])))
            if size < len(mine):
                found.append(Group("one class", share, np.sort(generator.permutation(mine)[:size])))
        for kind, points in (("most helpful", helpful), ("most harmful", harmful)):
            if size <= len(points):
                found.append(Group(kind, share, np.sort(points[:size])))
    return found


def mistake(test: Any, theta: torch.Tensor, data: Dataset, children: bool) -> int:
    """The first test point whose label has not the largest output; with ``children``, the first child.

    Raises:
        UserError: there is none.
    """
    rows = np.arange(test.n)
    if children and data.feature_names is not None:
        rows = np.flatnonzero(data.test.X[:, data.feature_names.index(CHILDREN)] == 1)
    if test.n_outputs == 1:
        wrong = misclassified(test, theta, rows)
    else:
        wrong = rows[(test.outputs(theta, torch.as_tensor(rows)).argmax(1).numpy() != data.test.y[rows])]
    if not len(wrong):
        raise UserError("every such test point is classified correctly: name one by experiment.test_index.")
    return int(wrong[0])
