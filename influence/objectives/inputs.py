"""Data as a person has them, and the inputs of a model: one tensor, or several in a tuple, list or mapping,
with the examples along the first
axis.

Everything that an objective does with inputs goes through these functions, so a model with two arguments or a
dictionary of token ids and masks is handled as one tensor is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler

from influence.arrays import as_tensor
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

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(keep, inputs)
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


def raw_length(inputs: Any) -> int:
    """How many examples inputs hold that are no tensors yet."""
    if isinstance(inputs, Mapping):
        return raw_length(next(iter(inputs.values()), ()))
    if isinstance(inputs, tuple):
        return raw_length(inputs[0]) if inputs else 0
    shape = getattr(inputs, "shape", None)  # a list has none
    return int(shape[0]) if shape else len(inputs)


# -- data as a person has them -----------------------------------------------------------------------------

_TARGET_NAMES = ("labels", "label", "targets", "target", "y")
_READ_AT_ONCE = 256  # examples of a Dataset


def as_data(inputs: Any, targets: Any, device: torch.device | None = None) -> tuple[Inputs, Tensor]:
    """Inputs and targets as tensors, on ``device`` where they were no tensors before.

    Takes tensors, numpy arrays, pandas and polars tables, lists of numbers, scipy's sparse matrices, tuples
    and mappings of them; or, with ``targets=None``, a Dataset or DataLoader. Its batches are ``(inputs,
    targets)``, ``(input, ..., targets)``, or mappings in which the targets are called "labels". One example
    without an axis of examples is taken as a batch of one, if its target is a single number.

    Raises:
        DataError: text, a shuffling DataLoader, batches that do not fit together, missing targets.
    """
    if isinstance(inputs, DataLoader | Dataset):
        if targets is not None:
            raise DataError("a Dataset or DataLoader brings its own targets; pass targets=None with it")
        inputs, targets = _read(inputs)
        to = device if device is not None else torch.device("cpu")
        return map_tensors(lambda tensor: tensor.to(to), inputs), targets.to(to)
    if targets is None:
        raise DataError("targets are missing; pass one per input (a Dataset or DataLoader holds its own)")
    found = _tensors(inputs, "the inputs", device)
    wanted = as_tensor(targets, "the targets", device)
    if wanted.ndim == 0:
        found, wanted = map_tensors(lambda tensor: tensor[None], found), wanted[None]
    return found, wanted


def _tensors(inputs: Any, what: str, device: torch.device | None) -> Inputs:
    if isinstance(inputs, Mapping):
        return {key: _tensors(part, f"{what} {key!r}", device) for key, part in inputs.items()}
    several = isinstance(inputs, tuple) or (
        isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], Tensor | np.ndarray)
    )
    if several:
        return tuple(_tensors(part, what, device) for part in inputs)
    return as_tensor(inputs, what, device)


def _read(source: DataLoader[Any] | Dataset[Any]) -> tuple[Inputs, Tensor]:
    loader = source if isinstance(source, DataLoader) else _ordered(source)
    check_order(loader)
    pairs = [split_batch(batch) for batch in loader]
    if not pairs:
        raise DataError("the DataLoader gives no batch; check its dataset")
    try:
        inputs = _joined([pair[0] for pair in pairs])
        return inputs, torch.cat([pair[1] for pair in pairs])
    except RuntimeError as error:
        raise DataError(
            f"the batches do not fit together ({str(error).splitlines()[0]}); let collate_fn pad them to one "
            "shape"
        ) from None


def _ordered(dataset: Dataset[Any]) -> DataLoader[Any]:
    if isinstance(dataset, IterableDataset):
        return DataLoader(dataset, batch_size=_READ_AT_ONCE)
    return DataLoader(dataset, batch_size=_READ_AT_ONCE, shuffle=False)


def check_order(loader: DataLoader[Any]) -> None:
    """Refuses a DataLoader whose order changes, or that drops examples.

    Raises:
        DataError: it does.
    """
    if isinstance(loader.dataset, IterableDataset):
        return
    batches = loader.batch_sampler
    sampler: Any = batches.sampler if isinstance(batches, BatchSampler) else batches or loader.sampler
    if not isinstance(sampler, SequentialSampler):
        raise DataError(
            f"the DataLoader draws its examples by {type(sampler).__name__}, so an index would not name the "
            "same example twice; pass DataLoader(..., shuffle=False)"
        )
    n = len(loader.dataset)  # type: ignore[arg-type]
    if loader.drop_last and loader.batch_size and n % loader.batch_size:
        raise DataError(
            f"the DataLoader drops {n % loader.batch_size} of {n} examples (drop_last=True); pass "
            "drop_last=False"
        )


def split_batch(batch: Any) -> tuple[Inputs, Tensor]:
    """A batch as inputs and targets.

    Raises:
        DataError: a mapping without targets, or another form.
    """
    if isinstance(batch, Mapping):
        found = [name for name in _TARGET_NAMES if name in batch]
        if not found:
            raise DataError(f"a batch has {', '.join(map(str, batch))} but no targets; call them 'labels'")
        return {key: part for key, part in batch.items() if key != found[0]}, batch[found[0]]
    if isinstance(batch, tuple | list) and len(batch) >= 2:
        *inputs, targets = batch
        return (inputs[0] if len(inputs) == 1 else tuple(inputs)), targets
    raise DataError(
        f"a batch must be (inputs, targets) or a mapping with 'labels', got {type(batch).__name__}; let the "
        "dataset give both"
    )


def _joined(parts: list[Inputs]) -> Inputs:
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if isinstance(first, Mapping):
        return {key: _joined([part[key] for part in parts]) for key in first}
    if isinstance(first, Iterable):
        return tuple(_joined(list(column)) for column in zip(*parts, strict=True))
    raise DataError(f"a batch holds {type(first).__name__}; let collate_fn make tensors of it")
