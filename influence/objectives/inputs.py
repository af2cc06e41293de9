"""Inputs of a model: one tensor, or several in a tuple, list or mapping, with the examples along the first
axis.

Everything that an objective does with inputs goes through these functions, so a model with two arguments or a
dictionary of token ids and masks is handled as one tensor is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from influence.errors import DataError

Inputs = Any  # Tensor | tuple[Inputs, ...] | list[Inputs] | dict[str, Inputs]


def map_tensors(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """The same structure with ``function`` applied to each tensor."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, Mapping):
        return {key: map_tensors(function, part) for key, part in inputs.items()}
    if isinstance(inputs, tuple | list):
        return type(inputs)(map_tensors(function, part) for part in inputs)
    raise DataError(
        f"inputs must be tensors or tuples, lists or mappings of them, got {type(inputs).__name__}"
    )


def leaves(inputs: Inputs) -> list[Tensor]:
    """The tensors in a fixed order."""
    found: list[Tensor] = []
    map_tensors(lambda tensor: (found.append(tensor), tensor)[1], inputs)
    return found


def take(inputs: Inputs, which: Any) -> Inputs:
    """The examples ``which`` (a slice, integers or a mask) of every tensor."""
    return map_tensors(lambda tensor: tensor[which], inputs)


def count(inputs: Inputs) -> int:
    """How many examples there are.

    Raises:
        DataError: no tensor, a tensor without an axis of examples, or lengths that differ.
    """
    lengths = {len(tensor) if tensor.ndim else -1 for tensor in leaves(inputs)}
    if -1 in lengths or not lengths:
        raise DataError("the inputs need a first axis that counts the examples; use x[None] for one example")
    if len(lengths) > 1:
        raise DataError(f"the input tensors hold {sorted(lengths)} examples; give each the same number")
    return lengths.pop()


def floating_leaf(inputs: Inputs) -> Tensor:
    """The one floating tensor of the inputs, in which derivatives are taken.

    Raises:
        DataError: there is none, or there are several.
    """
    floating = [tensor for tensor in leaves(inputs) if tensor.is_floating_point()]
    if len(floating) != 1:
        raise DataError(
            f"derivatives in the inputs need floating inputs, exactly one tensor, got {len(floating)}; embed "
            "the inputs first, or make the others part of the model"
        )
    return floating[0]


def with_floating(inputs: Inputs, value: Tensor) -> Inputs:
    """The same inputs with ``value`` in place of the one floating tensor."""
    return map_tensors(lambda tensor: value if tensor.is_floating_point() else tensor, inputs)


def convert(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """Floating tensors in ``dtype``; the others as they are."""
    return map_tensors(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, inputs)


def shape_of(inputs: Inputs) -> Any:
    """The shapes, in the structure of the inputs, for messages."""
    return (
        tuple(inputs.shape)
        if isinstance(inputs, Tensor)
        else [tuple(tensor.shape) for tensor in leaves(inputs)]
    )
