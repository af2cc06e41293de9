"""The objective that the front door makes of a model, a loss and data."""

from __future__ import annotations

from typing import Any

from torch import nn

from influence.errors import DataError
from influence.objectives._base import TrainingObjective
from influence.objectives.datasets import streamed_objective
from influence.objectives.penalties import Penalty
from influence.objectives.sequential import network_objective


def objective_of(
    model: nn.Module | TrainingObjective,
    loss: Any,
    data: Any,
    l2: Penalty,
    settings: dict[str, Any],
    stream: bool = False,
) -> TrainingObjective:
    """The objective itself, if one was given, or that of a module on data in memory or streamed.

    Args:
        model: a module, or an objective, which comes alone.
        loss, data, l2: as for :class:`~influence.api.Influence`.
        loss: of the outputs.
        data: the training data.
        l2: λ.
        settings: of the objective.
        stream: read a Dataset or DataLoader batch by batch.

    Raises:
        DataError: something is missing, or beside an objective.
    """
    if isinstance(model, TrainingObjective):
        if loss is not None or data is not None or l2 or settings or stream:
            raise DataError("the objective brings its own loss, data, l2 and settings; pass it alone")
        return model
    if not isinstance(model, nn.Module):
        raise DataError(f"model must be a torch.nn.Module or an objective, got {type(model).__name__}")
    if loss is None or data is None:
        raise DataError("pass a loss and the training data beside the model")
    if stream:
        return streamed_objective(model, loss, data, l2, **settings)
    inputs: Any
    targets: Any
    inputs, targets = data if isinstance(data, tuple) and len(data) == 2 else (data, None)
    return network_objective(model, loss, inputs, targets, l2, **settings)
