"""Data as a person has them, and the inputs of a model.

Inputs are one tensor, or several in a tuple, list or mapping. The examples lie along the first axis.

Everything that an objective does with inputs goes through these functions, so a model with two arguments or a
dictionary of token ids and masks is handled as one tensor is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sized
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
        parts = [map_tensors(function, part) for part in inputs]
        named = isinstance(inputs, tuple) and hasattr(inputs, "_fields")  # a NamedTuple takes them one by one
        return type(inputs)(*parts) if named else type(inputs)(parts)
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


def versions(inputs: Inputs) -> list[int]:
    """How often each tensor was changed in place; torch does not count it for inference tensors."""
    return [0 if tensor.is_inference() else tensor._version for tensor in leaves(inputs)]


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
_TWICE = 4  # examples that are read twice
_TABLES = ("numpy", "pandas", "polars", "scipy", "torch")


def as_data(inputs: Any, targets: Any, device: torch.device | None = None) -> tuple[Inputs, Tensor]:
    """Inputs and targets as tensors, on ``device`` where they were no tensors before.

    Takes tensors, numpy arrays, pandas and polars tables, lists of numbers, scipy's sparse matrices, tuples
    and mappings of them; or, with ``targets=None``, a Dataset or DataLoader. Its batches are ``(inputs,
    targets)``, ``(input, ..., targets)``, or mappings in which the targets are called "labels". One example
    without an axis of examples is taken as a batch of one, if its target is a single number.

    Raises:
        DataError: text, a shuffling DataLoader, batches that do not fit together, missing targets.
    """
    if isinstance(inputs, DataLoader | Dataset) or (targets is None and is_dataset(inputs)):
        if targets is not None:
            raise DataError("a Dataset or DataLoader brings its own targets; pass targets=None with it")
        inputs, targets = _read(inputs)
        to = device if device is not None else torch.device("cpu")
        return map_tensors(lambda tensor: tensor.to(to), inputs), targets.to(to)
    if targets is None and isinstance(inputs, Mapping) and has_targets(inputs):
        inputs, targets = split_batch(inputs)
    if targets is None:
        raise DataError(
            "targets are missing; pass (inputs, targets), or a Dataset, DataLoader, mapping or list of pairs "
            "that holds its own"
        )
    if _is_stack(inputs, targets):
        inputs = [as_tensor(part, "the inputs", device) for part in inputs]
        inputs = torch.stack(inputs)
    found = _tensors(inputs, "the inputs", device)
    wanted = as_tensor(targets, "the targets", device)
    if wanted.ndim == 0:
        found, wanted = map_tensors(lambda tensor: tensor[None], found), wanted[None]
    return found, wanted


def _is_stack(inputs: Any, targets: Any) -> bool:
    """Whether ``inputs`` is a list of examples, one per target, and not of the several inputs of a model."""
    if not isinstance(inputs, list) or not inputs or not isinstance(inputs[0], Tensor | np.ndarray):
        return False
    n = len(targets) if isinstance(targets, Sized) else 1
    shapes = {tuple(part.shape) for part in inputs if isinstance(part, Tensor | np.ndarray)}
    return len(inputs) == n and len(shapes) == 1 and next(iter(shapes))[:1] != (n,)


def _tensors(inputs: Any, what: str, device: torch.device | None) -> Inputs:
    if isinstance(inputs, Mapping):
        return {key: _tensors(part, f"{what} {key!r}", device) for key, part in inputs.items()}
    several = isinstance(inputs, tuple) or (
        isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], Tensor | np.ndarray)
    )
    if several:
        return tuple(_tensors(part, what, device) for part in inputs)
    return as_tensor(inputs, what, device)


def has_targets(data: Any) -> bool:
    """Whether ``data`` brings targets of its own."""
    return is_dataset(data) or (isinstance(data, Mapping) and any(name in data for name in _TARGET_NAMES))


def is_dataset(data: Any) -> bool:
    """Whether ``data`` gives one example after another, each with its target: ``len(data)`` and ``data[i]``.

    Datasets of other libraries and lists of pairs or mappings do; arrays, tables and lists of inputs do not.
    """
    if isinstance(data, Dataset | DataLoader):
        return True
    if isinstance(data, Tensor | np.ndarray | Mapping | tuple | str) or not isinstance(data, Sized):
        return False
    if type(data).__module__.partition(".")[0] in _TABLES or not len(data):
        return False
    if not hasattr(data, "__getitem__"):  # datasets of other libraries share no base class
        return False
    try:
        first = data[0]
    except Exception:  # whatever the object does without such an index
        return False
    if isinstance(first, Mapping):
        return any(name in first for name in _TARGET_NAMES)
    tensors = isinstance(first, tuple | list) and any(isinstance(part, Tensor | np.ndarray) for part in first)
    return tensors and len(first) > 1


def _read(source: Any) -> tuple[Inputs, Tensor]:
    loader = source if isinstance(source, DataLoader) else _ordered(source)
    check_order(loader)
    check_repeats(loader.dataset)
    one_by_one = loader.batch_size is None and loader.batch_sampler is None
    pairs = [_with_axis(split_batch(batch), one_by_one) for batch in loader]
    if not pairs:
        raise DataError("the DataLoader gives no batch; check its dataset")
    try:
        inputs, targets = _joined([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs])
    except (RuntimeError, TypeError) as error:
        raise DataError(
            f"the batches do not fit together ({str(error).splitlines()[0]}); let collate_fn pad them to one "
            "shape"
        ) from None
    whole: Any = None if one_by_one or isinstance(loader.dataset, IterableDataset) else loader.dataset
    if whole is not None and len(targets) != len(whole):
        raise DataError(
            f"the DataLoader made {len(targets)} examples of the {len(whole)} in its dataset, so an index "
            "would not name the same example; collate_fn must keep each"
        )
    return inputs, targets


def _with_axis(pair: tuple[Inputs, Any], one_by_one: bool) -> tuple[Inputs, Tensor]:
    """A batch; of a loader with ``batch_size=None``, which gives example by example, a batch of one."""
    inputs, targets = pair[0], torch.as_tensor(pair[1])
    if one_by_one and targets.ndim == 0:
        return map_tensors(lambda tensor: tensor[None], inputs), targets[None]
    return inputs, targets


def check_repeats(dataset: Any) -> None:
    """Refuses data that are others when they are read again: scores of moving data mean nothing.

    Raises:
        DataError: they are.
    """
    if isinstance(dataset, IterableDataset):
        twice = [next(iter(dataset), None) for _ in "ab"]
        pairs = [] if twice[1] is None else [tuple(twice)]  # a stream that can be read once only
    else:
        n = len(dataset)
        pairs = [(dataset[i], dataset[i]) for i in sorted({j * n // _TWICE for j in range(min(n, _TWICE))})]
    if any(_differ(a, b) for a, b in pairs):
        raise DataError(
            "the Dataset gives another example when it is read again (a random augmentation or order?), so "
            "an index would not name the same example twice; make it give the same each time"
        )


def _differ(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor | np.ndarray):
        a, b = np.asarray(a), np.asarray(b)
        return a.shape != b.shape or not bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, Mapping):
        return any(_differ(part, b[key]) for key, part in a.items())
    if isinstance(a, tuple | list):
        return len(a) != len(b) or any(_differ(p, q) for p, q in zip(a, b, strict=True))
    return isinstance(a, int | float | str) and a != b and a == a


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
        if loader.drop_last and loader.batch_size:
            raise DataError("the DataLoader may drop its last batch (drop_last=True); pass drop_last=False")
        return
    batches = loader.batch_sampler
    sampler: Any = batches.sampler if isinstance(batches, BatchSampler) else batches or loader.sampler
    if not isinstance(sampler, SequentialSampler):
        raise DataError(
            f"the DataLoader draws its examples by {type(sampler).__name__}, so an index would not name the "
            "same example twice; pass DataLoader(..., shuffle=False)"
        )
    n = len(loader.dataset)  # type: ignore[arg-type]
    if isinstance(batches, BatchSampler) and batches.drop_last and n % batches.batch_size:
        raise DataError(
            f"the DataLoader drops {n % batches.batch_size} of {n} examples (drop_last=True); pass "
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
