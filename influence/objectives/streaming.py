"""Data read from disk, or made, batch by batch; :mod:`influence.score_files` writes scores part by part.

Memory is bounded by one batch and one part of scores, whatever n is::

    source = ArraySource(np.load("X.npy", mmap_mode="r"), y)
    template = LinearObjective(X_few, y_few, "cross_entropy", 0.01, n_outputs=1000)
    train = stream(template, source)                       # an objective: each call is a pass over the file
    scores = stream_scores(train, theta, s_tests, folder)         # resumable; scores.top(column=0, count=10)
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from influence.errors import DataError
from influence.objectives.data_matrix import DenseMatrix
from influence.objectives.inputs import map_tensors
from influence.objectives.partitioned import Part, PartitionedLinear, PartitionedObjective, unpenalised


class Source(Protocol):
    """Where examples come from: ``n`` of them, read by position."""

    n: int

    def read(self, start: int, stop: int) -> tuple[Any, Any]:
        """Inputs ``(m, ...)`` and targets ``(m,)`` of the examples start…stop−1."""

    def take(self, idx: np.ndarray) -> tuple[Any, Any]:
        """Inputs and targets of chosen examples, in that order."""


class ArraySource:
    """Arrays, memory-mapped or not, or anything else that is indexed like them (HDF5, zarr).

    A memory-mapped array is mapped anew for each batch: the pages of earlier batches would count as this
    process's memory for as long as the mapping lives.

    Args:
        inputs: ``(n, ...)``.
        targets: ``(n,)``.

    Raises:
        DataError: the lengths differ.
    """

    def __init__(self, inputs: Any, targets: Any) -> None:
        if len(inputs) != len(targets):
            raise DataError(f"got {len(inputs)} inputs and {len(targets)} targets; pass one target per input")
        self.inputs, self.targets, self.n = inputs, targets, len(inputs)

    def read(self, start: int, stop: int) -> tuple[Any, Any]:
        """The examples start…stop−1."""
        return self._pick(slice(start, stop))

    def take(self, idx: np.ndarray) -> tuple[Any, Any]:
        """The examples ``idx``."""
        return self._pick(idx)

    def _pick(self, which: slice | np.ndarray) -> tuple[Any, Any]:
        inputs, targets = (np.array(_mapped_anew(a)[which]) for a in (self.inputs, self.targets))
        return inputs, targets


def _mapped_anew(array: Any) -> Any:
    if not isinstance(array, np.memmap) or not isinstance(array.base, mmap.mmap):
        return array  # not a whole mapping: views of one stay as they are
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    return np.memmap(array.filename, array.dtype, "r", array.offset, array.shape, order)


class ProducedSource:
    """Examples made on demand.

    Args:
        n: how many there are.
        produce: ``(start, stop) -> (inputs, targets)``; the same answer for the same examples each time.
    """

    def __init__(self, n: int, produce: Callable[[int, int], tuple[Any, Any]]) -> None:
        self.n, self.read = n, produce

    def take(self, idx: np.ndarray) -> tuple[Any, Any]:
        """The examples ``idx``, made one by one."""
        pairs = [self.read(int(i), int(i) + 1) for i in idx]
        inputs, targets = (np.concatenate([np.asarray(pair[side]) for pair in pairs]) for side in (0, 1))
        return inputs, targets


class ChosenSource:
    """The examples ``idx`` of another source."""

    def __init__(self, source: Source, idx: np.ndarray) -> None:
        self.source, self.idx, self.n = source, idx, len(idx)

    def read(self, start: int, stop: int) -> tuple[Any, Any]:
        """The chosen examples start…stop−1."""
        return self.source.take(self.idx[start:stop])

    def take(self, idx: np.ndarray) -> tuple[Any, Any]:
        """The chosen examples ``idx``."""
        return self.source.take(self.idx[idx])


def stream(template: Any, source: Source, batch_size: int | None = None) -> StreamedObjective:
    """The objective of ``template``'s model, loss and λ over the examples of ``source``.

    Args:
        template: an :class:`Objective` or :class:`LinearObjective` built on a few of the examples (give
            ``n_outputs`` where those may not hold the last class).
        source: the examples, read part by part.
        batch_size: examples in memory at a time; by default the template's.

    Raises:
        DataError: fewer than one example; later, from any call: NaN or infinite inputs, wrong targets.
    """
    kind = StreamedLinear if template.linear_outputs else StreamedObjective
    return kind(template, source, batch_size or template.batch_size)


class StreamedObjective(PartitionedObjective):
    """The calls of :class:`~.module.Objective`; each is one pass over the source in batches.

    Nothing is kept between batches. Results of n rows (``example_losses``, ``directional``) hold n·k numbers;
    where those do not fit use :func:`~influence.score_files.stream_scores`.
    """

    resident = False

    def __init__(self, template: Any, source: Source, batch_size: int) -> None:
        if source.n < 1:
            raise DataError("the source holds no example; check its path")
        if batch_size < 1:
            raise DataError(f"batch_size must be at least 1, got {batch_size}")
        super().__init__(template, source.n)
        self.source, self.batch_size = source, batch_size
        self._unpenalised = unpenalised(template)

    def _parts(self, idx: Tensor | None) -> Iterator[Part]:
        m = self.n if idx is None else len(idx)
        for start in range(0, m, self.batch_size):
            place = slice(start, min(start + self.batch_size, m))
            chosen = np.arange(place.start, place.stop) if idx is None else idx[place].cpu().numpy()
            if bool((np.diff(chosen) == 1).all()):
                inputs, targets = self.source.read(int(chosen[0]), int(chosen[-1]) + 1)
            else:
                inputs, targets = self.source.take(chosen)
            yield self._part(inputs, targets, place), None, place

    def _part(self, inputs: Any, targets: Any, place: slice) -> Any:
        targets = torch.as_tensor(targets)
        if (
            isinstance(inputs, tuple | list | Mapping) and not self._linear
        ):  # the objective checks the tensors
            return self._unpenalised.on(
                map_tensors(lambda part: part.to(self.device), inputs), targets.to(self.device)
            )
        inputs = torch.as_tensor(inputs)
        if len(inputs) != place.stop - place.start:
            raise DataError(
                f"the source gave {len(inputs)} examples for {place.start}…{place.stop - 1}; it must give all"
            )
        if inputs.is_floating_point() or self._linear:
            inputs = inputs.to(self.dtype)
            if not bool(torch.isfinite(inputs).all()):
                raise DataError(
                    f"the inputs of the examples {place.start}…{place.stop - 1} hold NaN or infinite values; "
                    "clean or impute them first"
                )
        inputs = inputs.to(self.device)
        return self._unpenalised.on(DenseMatrix(inputs) if self._linear else inputs, targets.to(self.device))

    def reading_words(self) -> str | None:
        """That the data are not held."""
        return f"training data: read {self.batch_size:,} at a time in every pass, never held"

    _linear = False

    def subset(self, idx: Any) -> StreamedObjective:
        """Restricted to the examples ``idx``."""
        chosen = ChosenSource(self.source, self.index(idx).cpu().numpy())
        other = type(self)(self.template, chosen, self.batch_size)
        other.l2 = self.l2
        return other


class StreamedLinear(PartitionedLinear, StreamedObjective):
    """A streamed linear objective, with direct solves and Kronecker preconditioning."""

    _linear = True
