"""Whole matrices of scores, as libraries that compare attributions ask for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from influence.api import Influence
from influence.losses import Asking
from influence.removal import TrainingGradient
from influence.scores import self_influence

_NUMBERS = 10**7  # scores asked for at a time: an answer of more keeps only the most helpful and harmful


def changes_on(
    influence: Influence, inputs: Any, targets: Any, of: Asking = "loss", correction: str = "first_order"
) -> Tensor:
    """Predicted change of each test point's loss when each training point is removed: ``(n, t)``.

    λ stays relative to the sum of the losses, so the L2 term is no part of a point's influence.

    Args:
        influence: of the trained model.
        inputs: of the test points, ``(t, ...)``.
        targets: ``(t,)`` or ``(t, ...)``.
        of: what is asked of each test point.
        correction: as for :meth:`~influence.api.Influence.influence_on`.

    Raises:
        DataError: test points of another kind than the training points.
        SolverError: the solve failed.
    """
    step = max(1, _NUMBERS // influence.objective.n)
    parts = []
    for start in range(0, len(inputs), step):
        some = (inputs[start : start + step], targets[start : start + step])
        found = influence.influence_on(
            some, k=1, of=of, correction=correction, removal=TrainingGradient.LOSS.value
        )
        assert found.changes is not None  # few enough to be kept
        parts.append(found.changes)
    return torch.cat(parts, dim=1)


def own_changes(influence: Influence, correction: str = "first_order") -> Tensor:
    """Predicted change of each training point's own loss when it is removed: ``(n,)``.

    The diagonal of :func:`changes_on` of the training points, without the other n² - n numbers.

    Raises:
        SolverError: a solve failed.
    """
    plan, objective = influence.plan, influence.objective
    scores = self_influence(objective, influence.theta, plan.operator, plan.solver, correction=correction)
    return scores / objective.n
