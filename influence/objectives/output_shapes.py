"""Losses for models whose output for one example has several axes: tokens times classes, images, sequences.

Objectives keep the outputs flat, ``(n, c)``. Here the loss that a person names meets the shape that the model
gives and the targets that come with it.
"""

from __future__ import annotations

from dataclasses import replace
from types import FunctionType
from typing import Any

from torch import Tensor, nn

from influence.errors import DataError
from influence.losses import CallableLoss, CrossEntropy, ElementwiseLoss, Loss, TokenCrossEntropy
from influence.losses.callables import Reshaped


def _of_torch(function: Any) -> bool:
    return isinstance(function, nn.Module) or (
        isinstance(function, FunctionType) and function.__module__ == "torch.nn.functional"
    )


def for_outputs(loss: Loss, shape: tuple[int, ...], targets: Tensor) -> tuple[Loss, Tensor]:
    """The loss and the targets for flat outputs of a model that gives ``shape`` for one example.

    ``cross_entropy`` of outputs ``(n, T, V)`` and labels ``(n, T)`` becomes that of every token. A sum over
    outputs takes targets of the outputs' shape. A function sees the outputs in their own shape.

    Raises:
        DataError: the loss has no meaning for such outputs and targets.
    """
    if isinstance(loss, CallableLoss) and shape in ((), (1,)) and _of_torch(loss.function):
        # torch's losses would broadcast outputs (m, 1) against targets (m,), or the reverse, to (m, m)
        shape = () if targets.ndim == 1 else (1,) if tuple(targets.shape[1:]) == (1,) else shape
    if isinstance(loss, CallableLoss) and len(shape) != 1:
        return replace(loss, function=Reshaped(loss.function, shape)), targets
    if len(shape) <= 1 or isinstance(loss, TokenCrossEntropy):
        return loss, targets
    given = tuple(targets.shape[1:])
    if isinstance(loss, ElementwiseLoss) and given == shape:
        return loss, targets.reshape(len(targets), -1)
    if isinstance(loss, CrossEntropy) and len(shape) == 2 and given == shape[:1]:
        if loss.label_smoothing or loss.class_weights is not None:
            raise DataError(
                "cross_entropy per token takes no label_smoothing or class_weights; pass a function of "
                "outputs (n, T, V) and targets (n, T)"
            )
        ignored = -100 if loss.ignore_index is None else loss.ignore_index
        return TokenCrossEntropy(ignored), targets
    if isinstance(loss, CrossEntropy) and given == shape[1:]:
        raise DataError(
            f"the model gives outputs {('n', *shape)} with the classes second; pass output=lambda o: "
            "o.flatten(2).transpose(1, 2), and targets.flatten(1)"
        )
    raise DataError(
        f"the model gives outputs {('n', *shape)} and the targets are {('n', *given)}: for {loss.name} it "
        "must return (n, c); labels per token (n, T) go with outputs (n, T, V), the classes last "
        "(output=lambda o: o.movedim(1, -1) moves them there)"
    )
