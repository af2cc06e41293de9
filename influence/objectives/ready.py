"""A module made ready to be differentiated: taken out of its wrappers, copied, and in one floating type."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from influence.errors import DataError


def plain_module(model: nn.Module) -> nn.Module:
    """The module inside a compiled or data-parallel one.

    Raises:
        DataError: a scripted or traced module, whose Python code is not there to be differentiated.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise DataError(
            f"{type(model).__name__} is a scripted module; pass the nn.Module that it was made from"
        )
    if type(model).__name__ == "OptimizedModule":  # torch.compile's; its import would cost a second
        return plain_module(model.get_submodule("_orig_mod"))
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return plain_module(model.module)
    if not isinstance(model, nn.Module):
        raise DataError(f"the model must be a torch.nn.Module, got {type(model).__name__}")
    return model


def twin_of(model: nn.Module) -> nn.Module:
    """A deep copy. Results of earlier passes that a module keeps in an attribute are copied as constants."""
    memo: dict[int, Any] = {}
    for part in model.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = _constant(value)
    return copy.deepcopy(model, memo)


def _constant(tensor: Tensor) -> Tensor:
    try:
        return tensor.detach().clone()
    except RuntimeError:  # a tensor of a transform that has ended; the next pass makes it anew
        return torch.empty(0)


def copied(model: nn.Module) -> nn.Module:
    """A copy of the module whose embeddings can be differentiated.

    Raises:
        DataError: it cannot be copied, or an embedding changes its own weights.
    """
    try:
        twin = twin_of(model)
    except (RuntimeError, TypeError) as error:
        raise DataError(
            f"the model {type(model).__name__} cannot be copied ({str(error).strip().splitlines()[0]}); take "
            "what cannot be copied out of its attributes, or give it a __deepcopy__"
        ) from None
    for name, part in twin.named_modules():
        if isinstance(part, nn.Embedding | nn.EmbeddingBag):
            if part.max_norm is not None:
                raise DataError(
                    f"the embedding {name or 'itself'} has max_norm, which changes its weights in every "
                    "pass; renormalise them once and set max_norm=None"
                )
            part.sparse = False  # the gradient is needed dense
    return twin


def cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module in another floating type, in place.

    What is complex stays complex: ``module.to(dtype)`` drops imaginary parts, such as those of rotary
    embeddings.
    """

    def converted(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(torch.complex128 if dtype == torch.float64 else torch.complex64)
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    model._apply(converted)
    return model
