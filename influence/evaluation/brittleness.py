"""Brittleness: how few training points a prediction rests on (Ilyas et al. 2022, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from influence.checks import checked_number
from influence.errors import DataError
from influence.objectives._base import TrainingObjective
from influence.retraining.groups import leave_groups_out


@dataclass(frozen=True)
class Brittleness:
    """One test point's prediction without its most helpful training points, beside random ones.

    Attributes:
        counts: how many points were left out.
        top, random: ``(g,)`` change of the test loss in nats, without the most helpful and without random
            points.
        top_flips, random_flips: ``(g,)`` booleans: the predicted class changed.
        flips_at: the smallest count whose removal changed the predicted class, or None.
    """

    counts: tuple[int, ...]
    top: Tensor
    random: Tensor
    top_flips: Tensor
    random_flips: Tensor

    @property
    def flips_at(self) -> int | None:
        """The smallest count at which the prediction changes; None if it never does."""
        return next((c for c, flip in zip(self.counts, self.top_flips.tolist(), strict=True) if flip), None)


def brittleness(
    objective: TrainingObjective,
    theta: Tensor,
    test: TrainingObjective,
    test_index: int,
    scores: Tensor,
    counts: Sequence[int] = (1, 2, 5, 10, 20, 50),
    *,
    seed: int = 0,
    **settings: Any,
) -> Brittleness:
    """Refit without the ``counts`` most helpful points, and without as many random ones.

    Args:
        objective: what was minimised, with its training data.
        theta: ``(p,)`` fitted parameters.
        test: the same model and loss on test data.
        test_index: position of the test point in ``test``.
        scores: ``(n,)`` predicted changes by removal, positive = helpful.
        counts: sizes of the sets, each below n.
        settings: of :func:`~influence.retraining.groups.leave_groups_out`.
        seed: of the generator; equal seeds give equal answers.

    Raises:
        DataError: scores of the wrong shape or a count out of range.
    """
    theta = objective.vector(theta)
    if scores.shape != (objective.n,):
        raise DataError(f"scores must have shape ({objective.n},), got {tuple(scores.shape)}")
    for count in counts:
        checked_number("each of counts", count, least=1, below=objective.n, whole=True)
    order = scores.argsort(descending=True, stable=True)
    drawn = torch.randperm(objective.n, generator=torch.Generator().manual_seed(seed)).to(order.device)
    groups = [order[:c] for c in counts] + [drawn[:c] for c in counts]
    thetas = leave_groups_out(objective, theta, groups, **settings).thetas.to(theta.device)
    one = test.index([test_index])
    change = test.example_losses_many(thetas, one)[0] - test.example_losses(theta, one)
    before = _class(test.outputs(theta, one))
    flips = torch.tensor([_class(test.outputs(column, one)) != before for column in thetas.T])
    g = len(counts)
    return Brittleness(tuple(int(c) for c in counts), change[:g], change[g:], flips[:g], flips[g:])


def _class(outputs: Tensor) -> int:
    """The predicted class of one example ``(1, c)``."""
    return int(outputs[0, 0] > 0) if outputs.shape[1] == 1 else int(outputs[0].argmax())
