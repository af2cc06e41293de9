"""Wrong labels: flipping some on purpose, and how well scores find them again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from influence.checks import checked_number
from influence.errors import DataError


def flip_labels(
    targets: Tensor, share: float, seed: int = 0, n_classes: int | None = None
) -> tuple[Tensor, Tensor]:
    """Targets with a random ``share`` set to another class, and the mask ``(n,)`` of those.

    Targets in {−1, +1} change their sign. Others are classes 0…c−1, and the new one is drawn from the c−1
    others.

    Raises:
        DataError: a share outside (0, 1), or a single class.
    """
    checked_number("share", share, above=0.0, below=1.0)
    n, generator = len(targets), torch.Generator().manual_seed(seed)
    chosen = torch.randperm(n, generator=generator)[: max(1, round(share * n))].to(targets.device)
    flipped = torch.zeros(n, dtype=torch.bool, device=targets.device)
    flipped[chosen] = True
    found = targets.clone()
    if bool((targets == -1).any()):
        found[chosen] = -found[chosen]
        return found, flipped
    classes = int(targets.max()) + 1 if n_classes is None else n_classes
    if classes < 2:
        raise DataError("flipping labels needs at least two classes; pass n_classes")
    shift = torch.randint(1, classes, (len(chosen),), generator=generator).to(targets.device, targets.dtype)
    found[chosen] = (found[chosen] + shift) % classes
    return found, flipped


def auc(scores: ArrayLike, flipped: ArrayLike) -> float:
    """Area under the ROC curve: the chance that a flipped label has the larger score than a right one.

    Raises:
        DataError: different lengths, or only one kind of label.
    """
    from scipy.stats import rankdata  # scipy.stats takes a third of torch's own time to import

    values, wrong = _both(scores, flipped)
    ranks, m = rankdata(values), int(wrong.sum())
    return float((ranks[wrong].sum() - m * (m + 1) / 2) / (m * (len(values) - m)))


def recall(
    scores: ArrayLike, flipped: ArrayLike, shares: Sequence[float] = (0.05, 0.1, 0.2, 0.3)
) -> list[float]:
    """Share of the flipped labels among the first ``shares`` of all examples, largest scores first.

    Raises:
        DataError: different lengths, only one kind of label, or a share outside (0, 1].
    """
    values, wrong = _both(scores, flipped)
    found = np.cumsum(wrong[np.argsort(-values, kind="stable")])
    for share in shares:
        if not 0 < share <= 1:
            raise DataError(f"shares must lie in (0, 1], got {share}")
    return [float(found[max(1, round(share * len(values))) - 1] / wrong.sum()) for share in shares]


def _both(scores: ArrayLike, flipped: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    values, wrong = np.asarray(scores, dtype=np.float64), np.asarray(flipped, dtype=bool)
    if values.ndim != 1 or values.shape != wrong.shape:
        raise DataError(f"scores and flipped must be equal vectors, got {values.shape} and {wrong.shape}")
    if wrong.all() or not wrong.any():
        raise DataError("flipped must hold both kinds: at least one flipped label and one right one")
    return values, wrong
