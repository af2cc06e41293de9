"""From what a person passes as ``loss``: a name, one of ours, a torch loss module, a torch function, a
function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from influence.errors import DataError
from influence.losses._base import Loss
from influence.losses.cross_entropy import CrossEntropy
from influence.losses.elementwise import BinaryCrossEntropy, Huber, Poisson, SquaredError
from influence.losses.function import FunctionLoss
from influence.losses.margin import Hinge, Logistic, SmoothHinge

_LOSSES: dict[str, type[Loss]] = {
    cls.name: cls
    for cls in (CrossEntropy, Logistic, Hinge, SmoothHinge, SquaredError, Huber, Poisson, BinaryCrossEntropy)
}
_FUNCTIONS: dict[Callable[..., Tensor], Loss] = {
    F.mse_loss: SquaredError(average=True, half=False),
    F.huber_loss: Huber(average=True),
    F.cross_entropy: CrossEntropy(ignore_index=-100),
    F.binary_cross_entropy_with_logits: BinaryCrossEntropy(average=True),
}


def get_loss(name: str | Loss | nn.Module | Callable[..., Any], **settings: Any) -> Loss:
    """The loss that ``name`` means.

    Args:
        name: a known name (``mse`` is the mean over the outputs of the squared error); a :class:`Loss`; a
            torch loss module, whose reduction must be "none" or "mean"; or a function ``(outputs, targets) ->
            (m,)`` or mean.
        settings: fields of the loss of that name, such as ``temperature`` of smooth_hinge.

    Raises:
        DataError: an unknown name or setting, listing the known ones; a torch loss whose sum is no mean of
            losses.
    """
    if isinstance(name, Loss):
        return name
    if isinstance(name, nn.Module):
        return _of_module(name)
    if callable(name):
        return _FUNCTIONS[name] if name in _FUNCTIONS else FunctionLoss(function=name)
    if name == "mse":
        return SquaredError(average=True, half=False)
    if name not in _LOSSES:
        known = ", ".join(sorted([*_LOSSES, "mse"]))
        raise DataError(
            f"unknown loss {name!r}; known losses are {known}, and any function of (outputs, targets) will do"
        )
    try:
        return _LOSSES[name](**settings)
    except TypeError:
        known = ", ".join(_LOSSES[name].__dataclass_fields__) or "none"
        raise DataError(f"loss {name} has settings {known}, got {', '.join(settings)}") from None


def _of_module(module: nn.Module) -> Loss:
    kind = type(module).__name__
    reduction = module.__dict__.get("reduction", "mean")
    weight = module._buffers.get("weight")
    if reduction == "sum":
        raise DataError(f"{kind} has reduction='sum', but an objective is a mean; pass reduction='mean'")
    if isinstance(module, nn.CrossEntropyLoss):
        if weight is not None and reduction == "mean":
            raise DataError(
                "CrossEntropyLoss with class weights and reduction='mean' divides by the sum of weights, "
                "which is no mean of losses; pass reduction='none' for (1/n) Σ w_y ℓ"
            )
        weights = None if weight is None else tuple(weight.tolist())
        return CrossEntropy(module.label_smoothing, weights, module.ignore_index)
    if isinstance(module, nn.MSELoss):
        return SquaredError(average=True, half=False)
    if isinstance(module, nn.HuberLoss):
        return Huber(average=True, delta=module.delta)
    if isinstance(module, nn.PoissonNLLLoss) and module.log_input and not module.full:
        return Poisson(average=True)
    if isinstance(module, nn.BCEWithLogitsLoss) and weight is None:
        positive = module._buffers.get("pos_weight")
        return BinaryCrossEntropy(
            average=True,
            positive_weights=None if positive is None else tuple(positive.reshape(-1).tolist()),
        )
    return FunctionLoss(function=module)
