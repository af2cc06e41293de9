"""An attributor for dattri: its metrics and benchmarks then judge this library's influence.

    from influence.bridges.dattri import InfluenceAttributor
    attributor = InfluenceAttributor(task, "cross_entropy", l2=1e-3)
    attributor.cache(train_loader)
    score = attributor.attribute(train_loader, test_loader)             # (n, t), positive: helpful
    dattri.metric.lds(score, ground_truth)

A dattri task holds a loss as a function of parameters and data. Curvature by products needs its parts, so the
loss is named, and compared with the task's own on a few examples. Importing this module imports dattri, if it
is there. Checked against dattri 0.3.0.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Subset

from influence.api import Influence
from influence.bridges._scores import changes_on, own_changes
from influence.errors import DataError
from influence.losses import Asking
from influence.objectives.penalties import Penalty

_missing: ImportError | None = None
try:
    from dattri.algorithm.base import BaseAttributor
except ImportError as error:  # said when the class is used: its page in the reference needs no dattri
    _missing, BaseAttributor = error, object

_COMPARED = 8  # examples on which the task's functions are compared with the named ones
_RELATIVE, _ABSOLUTE = 1e-4, 1e-6  # a task computes in float32; confident losses are small
_BATCH = 64  # of a loader that makes its batches by a rule of its own


class InfluenceAttributor(BaseAttributor):  # type: ignore[misc]  # dattri has no types
    """Influence of training points on test points, as the mean over the task's checkpoints.

    Args:
        task: ``dattri.task.AttributionTask``: the network, its checkpoints, its loss, and its target.
        loss: what the task's loss is, as :class:`~influence.api.Influence` takes it.
        l2: λ of ``(λ/2)‖θ‖²`` beside the mean loss, if the checkpoints were trained with it.
        of: what the task's target is, as :meth:`~influence.api.Influence.influence_on` takes it.
        correction: ``"first_order"``, or ``"leverage"``: one Newton step without each point.
        settings: ``curvature``, ``damping``, ``solver`` and others of :class:`~influence.api.Influence`.

    Raises:
        ImportError: dattri is not installed.
    """

    def __init__(
        self,
        task: Any,
        loss: Any,
        l2: Penalty = 0.0,
        *,
        of: Asking = "loss",
        correction: str = "first_order",
        **settings: Any,
    ) -> None:
        if _missing is not None:
            raise ImportError(f"dattri cannot be imported ({_missing}): pip install dattri") from _missing
        self.task, self.loss, self.l2, self.of = task, loss, l2, of
        self.correction, self.settings = correction, settings
        self.influences: list[Influence] = []
        self._dataset: Any = None
        self._places: dict[int, int] = {}

    def cache(self, full_train_dataloader: DataLoader[Any]) -> None:
        """Reads the training data, and chooses curvature and solver for each checkpoint.

        Args:
            full_train_dataloader: all the training data, in a fixed order; batches ``(inputs, targets)``.

        Raises:
            DataError: an order that changes, data that the network cannot take, or a task whose loss is not
                ``loss``.
        """
        ordered = in_order(full_train_dataloader, "full_train_dataloader")
        self._dataset = full_train_dataloader.dataset
        self._places = {row: place for place, row in enumerate(_rows(full_train_dataloader))}
        self.influences = []
        for number in range(len(self.task.get_checkpoints())):
            parameters, _ = self.task.get_param(number)  # this loads the checkpoint into the task's model
            model = copy.deepcopy(self.task.model).eval()
            found = Influence(model, self.loss, ordered, self.l2, **self.settings)
            theirs = _each(self.task.loss_func, parameters, _first(ordered))
            ours = found.objective.example_losses(found.theta)[: len(theirs)]
            _compare("loss", self.loss, ours, theirs)
            self.influences.append(found)

    def attribute(self, train_dataloader: DataLoader[Any], test_dataloader: DataLoader[Any]) -> Tensor:
        """Predicted change of each test point's target when each training point is removed.

        Args:
            train_dataloader: the training points to score: those of ``cache``, or some of them from the same
                dataset. If nothing was cached, they are all the training data.
            test_dataloader: test points, in a fixed order.

        Returns:
            ``(n, t)``; of a loss in nats. Positive: the point lowers the target, as dattri's metrics take it.

        Raises:
            DataError: as for :meth:`cache`; training points of another dataset; or a target that is not
                ``of``.
            SolverError: a solve failed.
        """
        rows = self._rows_of(train_dataloader)
        batches = [_pair(batch) for batch in in_order(test_dataloader, "test_dataloader")]
        inputs, targets = (torch.cat([batch[part] for batch in batches]) for part in (0, 1))
        total: Tensor | None = None
        for number, influence in enumerate(self.influences):
            self._check_target(number, influence, inputs, targets)
            scores = changes_on(influence, inputs, targets, self.of, self.correction)[rows]
            total = scores if total is None else total + scores
        assert total is not None  # a task has a checkpoint
        return total / len(self.influences)

    def self_attribute(self, train_dataloader: DataLoader[Any]) -> Tensor:
        """Predicted change of each training point's own loss when it is removed: ``(n,)``, in nats.

        Args:
            train_dataloader: the training points to score, as for :meth:`attribute`.

        Raises:
            DataError: as for :meth:`attribute`.
            SolverError: a solve failed.
        """
        rows = self._rows_of(train_dataloader)
        own = [own_changes(influence, self.correction) for influence in self.influences]
        return torch.stack(own).mean(0)[rows]

    def _rows_of(self, loader: DataLoader[Any]) -> Tensor:
        """Positions of the loader's examples among the cached ones."""
        if not self.influences:
            self.cache(loader)
        in_order(loader, "train_dataloader")
        dataset: Any = loader.dataset
        rows = _rows(loader)
        if isinstance(dataset, Subset) and dataset is not self._dataset:
            dataset, rows = dataset.dataset, [int(dataset.indices[row]) for row in rows]
        unknown = [row for row in rows if row not in self._places]
        if dataset is not self._dataset or unknown:
            raise DataError(
                "train_dataloader gives examples that were not cached; pass a loader over the same Dataset "
                "object as to cache(), over a Subset of it, or with a sampler that draws some of it"
            )
        return torch.tensor([self._places[row] for row in rows])

    def _check_target(self, number: int, influence: Influence, inputs: Tensor, targets: Tensor) -> None:
        parameters, _ = self.task.get_param(number)
        few = (inputs[:_COMPARED], targets[:_COMPARED])
        theirs = _each(self.task.target_func, parameters, few)
        ours = influence.tests(few, self.of).example_losses(influence.theta)
        _compare("target", self.of, ours, theirs)


def in_order(loader: DataLoader[Any], name: str) -> DataLoader[Any]:
    """The loader's examples in its own order, by a loader that draws them one after the other.

    Raises:
        DataError: a stream, single examples instead of batches, an order that changes, or dropped examples.
    """
    if isinstance(loader.dataset, IterableDataset):
        raise DataError(f"{name} reads a stream, whose examples have no index; pass a Dataset with a length")
    if loader.batch_sampler is None:
        raise DataError(f"{name} gives single examples (batch_size=None); pass a batch_size")
    first, second = _rows(loader), _rows(loader)
    if first != second:
        raise DataError(f"{name} draws its examples in another order each time; pass shuffle=False")
    if loader.drop_last and loader.batch_size and len(first) % loader.batch_size:
        raise DataError(f"{name} drops its last batch (drop_last=True); pass drop_last=False")
    some: Any = loader.dataset
    if first != list(range(len(some))):
        some = Subset(some, first)
    return DataLoader(some, batch_size=loader.batch_size or _BATCH, collate_fn=loader.collate_fn)


def _rows(loader: DataLoader[Any]) -> list[int]:
    """The rows of the dataset in the order in which the loader draws them."""
    batches: Any = loader.batch_sampler
    if not isinstance(batches, BatchSampler):
        return [int(row) for batch in batches for row in batch]
    return [int(row) for row in loader.sampler]


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, Sequence) or len(batch) != 2:
        raise DataError("a batch must be (inputs, targets); wrap the Dataset so that it gives such pairs")
    return batch[0], batch[1]


def _first(loader: DataLoader[Any]) -> tuple[Tensor, Tensor]:
    inputs, targets = _pair(next(iter(loader)))
    return inputs[:_COMPARED], targets[:_COMPARED]


def _each(function: Callable[..., Tensor], parameters: Tensor, data: tuple[Tensor, Tensor]) -> Tensor:
    """A task's function at each example alone, as dattri differentiates it."""
    inputs, targets = data
    with torch.no_grad():
        values = [function(parameters, (inputs[i : i + 1], targets[i : i + 1])) for i in range(len(inputs))]
    return torch.stack([value.reshape(()) for value in values])


def _compare(what: str, named: Any, ours: Tensor, theirs: Tensor) -> None:
    theirs = theirs.to(ours)
    if not torch.allclose(ours, theirs, rtol=_RELATIVE, atol=_ABSOLUTE):
        i = int((ours - theirs).abs().argmax())
        raise DataError(
            f"the task's {what} of example {i} is {float(theirs[i]):.6g}, but {named!r} gives "
            f"{float(ours[i]):.6g}; name the {what} that the task has"
        )
