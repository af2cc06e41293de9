"""Losses of one example as functions of the model's outputs, with two derivatives each.

Shapes: n examples, c outputs. :func:`get_loss` takes a name, a :class:`Loss`, a loss module of torch, or a
plain function ``loss(outputs, targets)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeGuard

from torch import Tensor, nn

from influence.errors import DataError
from influence.losses._base import Loss
from influence.losses.asked import Asked, check_asked
from influence.losses.callables import CallableLoss, from_module
from influence.losses.classification import CrossEntropy, TokenCrossEntropy
from influence.losses.margin import Hinge, Logistic, MarginLoss, SmoothHinge, SquaredHinge
from influence.losses.quantities import (
    QUANTITIES,
    Logit,
    LogOdds,
    Margin,
    OfClass,
    Output,
    Probability,
    Quantity,
    get_quantity,
)
from influence.losses.regression import BinaryCrossEntropy, ElementwiseLoss, Huber, Poisson, SquaredError

Asking = str | Loss | Quantity | nn.Module | Callable[[Tensor, Tensor], Tensor]
LossLike = str | Loss | nn.Module | Callable[[Tensor, Tensor], Tensor]

_LOSSES: dict[str, type[Loss]] = {
    cls.name: cls
    for cls in (
        CrossEntropy, Logistic, Hinge, SmoothHinge, SquaredHinge, SquaredError, Huber, Poisson,
        BinaryCrossEntropy, TokenCrossEntropy,
    )
}  # fmt: skip


_OTHER_NAMES = {
    "mse": "squared_error, which is half of it",
    "l2": "squared_error",
    "bce": "binary_cross_entropy",
    "ce": "cross_entropy",
    "nll": "cross_entropy, on outputs before log_softmax",
    "multilabel": "binary_cross_entropy",
}


def is_loss(of: Any) -> TypeGuard[str | Loss | nn.Module]:
    """Whether ``of`` is a loss: its name, a :class:`Loss`, or a loss module of torch."""
    torch_loss = isinstance(of, nn.Module) and type(of).__module__ == "torch.nn.modules.loss"
    return isinstance(of, Loss) or torch_loss or (isinstance(of, str) and of in _LOSSES)


def get_loss(name: LossLike, **settings: Any) -> Loss:
    """The loss called ``name``; ``settings`` are its fields (``temperature`` of smooth_hinge).

    A :class:`Loss` is returned as it is. A loss module of torch and a function become losses that autograd
    differentiates (:class:`CallableLoss`).

    Raises:
        DataError: an unknown name or setting; the message lists the known ones.

    >>> get_loss("huber", delta=2.0)
    Huber(delta=2.0)
    """
    if isinstance(name, Loss):
        return name
    if isinstance(name, type):
        raise DataError(f"pass a loss, not its class: {name.__name__}()")
    if isinstance(name, nn.Module):
        return from_module(name)
    if not isinstance(name, str):
        if callable(name):
            return CallableLoss(name, **settings)
        raise DataError(f"a loss is a name, a Loss, a loss module or a function, got {type(name).__name__}")
    if name not in _LOSSES:
        hint = f" (for {name} use {_OTHER_NAMES[name]})" if name in _OTHER_NAMES else ""
        raise DataError(
            f"unknown loss {name!r}{hint}; known losses are {', '.join(sorted(_LOSSES))}; a function "
            "loss(outputs, targets), a torch loss module and a subclass of influence.Loss work too"
        )
    try:
        return _LOSSES[name](**settings)
    except TypeError:
        known = ", ".join(field.name for field in fields(_LOSSES[name])) or "none"
        raise DataError(f"loss {name} has settings {known}, got {', '.join(settings)}") from None


__all__ = [
    "QUANTITIES",
    "Asked",
    "Asking",
    "BinaryCrossEntropy",
    "CallableLoss",
    "CrossEntropy",
    "ElementwiseLoss",
    "Hinge",
    "Huber",
    "LogOdds",
    "Logistic",
    "Logit",
    "Loss",
    "LossLike",
    "Margin",
    "MarginLoss",
    "OfClass",
    "Output",
    "Poisson",
    "Probability",
    "Quantity",
    "SmoothHinge",
    "SquaredError",
    "SquaredHinge",
    "TokenCrossEntropy",
    "check_asked",
    "get_loss",
    "get_quantity",
    "is_loss",
]
