"""A Dataset or DataLoader that is read batch by batch and never held: :func:`streamed_objective`."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from influence.errors import DataError
from influence.losses import LossLike, get_loss
from influence.objectives.inputs import Inputs, check_order, is_dataset, leaves, split_batch
from influence.objectives.penalties import Penalty
from influence.objectives.sequential import network_objective
from influence.objectives.streaming import StreamedObjective, stream

_FEW = 64  # examples, evenly spaced, on which the model is looked at


class DatasetSource:
    """The examples of a Dataset or DataLoader, in its own order and collated by its own ``collate_fn``.

    A number is kept of every example that was read. When the example is read again and is another one, as
    under a random augmentation, that is refused: scores of moving data mean nothing.

    Args:
        data: a Dataset with a length, or a DataLoader of one that neither shuffles nor drops.

    Raises:
        DataError: no length, no example, a shuffling DataLoader; later, from any call: an example that
            changed, or batches of another form.
    """

    def __init__(self, data: Dataset[Any] | DataLoader[Any]) -> None:
        self.collate: Any = default_collate
        if isinstance(data, DataLoader):
            check_order(data)
            self.collate, data = data.collate_fn, data.dataset
        if isinstance(data, IterableDataset) or not isinstance(data, Sized):
            raise DataError(
                f"stream=True needs a Dataset with a length and an index, got {type(data).__name__}; an "
                "example must be found again by its number"
            )
        self.data, self.n = data, len(data)
        if self.n < 1:
            raise DataError("the Dataset holds no example; check its path")
        self._seen = np.full(self.n, np.nan)

    def read(self, start: int, stop: int) -> tuple[Inputs, Tensor]:
        """Inputs and targets of the examples start…stop−1."""
        return self.take(np.arange(start, stop))

    def take(self, idx: np.ndarray[Any, Any]) -> tuple[Inputs, Tensor]:
        """Inputs and targets of the examples ``idx``, in that order.

        Raises:
            DataError: an example is another one than before, or they cannot be collated.
        """
        try:
            batch = self.collate([self.data[int(i)] for i in idx])
        except (RuntimeError, TypeError) as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DataError(
                f"the examples cannot be made a batch ({said}); give a collate_fn that can"
            ) from None
        inputs, targets = split_batch(batch)
        self._compare(idx, [*leaves(inputs), torch.as_tensor(targets)])
        return inputs, torch.as_tensor(targets)

    def _compare(self, idx: np.ndarray[Any, Any], tensors: list[Tensor]) -> None:
        if any(len(tensor) != len(idx) for tensor in tensors):
            raise DataError(
                f"{len(idx)} examples were collated to {len(tensors[0])}; collate_fn must keep each"
            )
        now, size = np.zeros(len(idx)), np.zeros(len(idx))
        for place, tensor in enumerate(tensors):
            flat = tensor.detach().reshape(len(idx), -1).double().cpu().nan_to_num()
            weights = torch.sin(torch.arange(flat.shape[1], dtype=torch.float64) + place + 1)
            now += (flat * weights).sum(1).numpy()
            size += flat.abs().sum(1).numpy()
        before = self._seen[idx]
        moved = np.abs(now - before) > 1e-9 * (1 + size)  # False where it is read for the first time
        if moved.any():
            raise DataError(
                f"example {idx[moved][0]} is not the same when it is read again (a random augmentation?); "
                "make the Dataset give the same example each time"
            )
        self._seen[idx] = np.where(np.isnan(before), now, before)


def streamed_objective(
    model: nn.Module, loss: LossLike, data: Any, l2: Penalty, **settings: Any
) -> StreamedObjective:
    """:func:`~.sequential.network_objective` over data that are read batch by batch.

    Args:
        model, loss, l2, **settings: as for :class:`~.module.Objective`; ``weights`` are not taken.
        model: any module.
        loss: of its outputs.
        data: a Dataset or DataLoader with a length and a fixed order.
        l2: λ, or one per parameter group.
        settings: ``batch_size`` says how many examples are held; by default that of the DataLoader, or 256.

    Raises:
        DataError: other data, weights, or data that change from pass to pass.
    """
    if not is_dataset(data):
        raise DataError(f"stream=True needs a Dataset or DataLoader, got {type(data).__name__}")
    if settings.get("weights") is not None:
        raise DataError("streamed data take no weights; hold the data in memory, or weigh inside the loss")
    settings.pop("weights", None)
    own = data.batch_size if isinstance(data, DataLoader) else None
    settings.setdefault("batch_size", own or 256)
    source = DatasetSource(data)
    few = min(source.n, _FEW, max(8, int(settings["batch_size"])))
    idx = np.unique(np.arange(few) * source.n // few)
    inputs, targets = source.take(idx)
    if get_loss(loss).classes and bool((targets == targets[0]).all()):
        other = _of_another_class(source, targets[0], int(settings["batch_size"]))
        idx = np.append(idx, np.array(other, dtype=idx.dtype))
        inputs, targets = source.take(idx)
    template = network_objective(model, loss, inputs, targets, l2, **settings)
    found: StreamedObjective = stream(template, source, template.batch_size)
    return found


def _of_another_class(source: DatasetSource, target: Tensor, batch: int) -> list[int]:
    """The first example whose target differs, in a list; none if there is no such example."""
    for start in range(0, source.n, batch):
        targets = source.read(start, min(start + batch, source.n))[1]
        differs = (targets != target).reshape(len(targets), -1).any(dim=1)
        if bool(differs.any()):
            return [start + int(differs.nonzero()[0])]
    return []
