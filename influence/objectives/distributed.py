"""The training set spread over processes by ``torch.distributed``: gloo on CPUs, NCCL on CUDA devices.

Every rank runs the same program. :func:`shard` keeps one contiguous block of the examples on each rank and
answers the calls of an ordinary objective: means over examples are all-reduced sums, rows are all-reduced
into their places, and both come out equal, bit for bit, on every rank. Parameters, right-hand sides and the
factors of direct solvers are replicated, so fits, CG, Cholesky, LiSSA and scores know nothing of ranks::

    distributed.join()                                     # under torchrun; alone it does nothing
    train = distributed.shard(LinearObjective(X, y, "cross_entropy", 0.01))

Where no rank can hold all data, each builds its own part: see :class:`ShardedObjective`.

A rank that dies breaks the connections of the others, a rank that hangs runs into ``timeout``: both end in a
:class:`~influence.errors.DistributedError` on the ranks that are left.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

from influence.errors import DataError, DeviceError, DistributedError
from influence.objectives.partitioned import Part, PartitionedLinear, PartitionedObjective, unpenalised

TIMEOUT = "INFLUENCE_TIMEOUT"  # seconds; the environment variable that join() reads
_DEFAULT_TIMEOUT = 600.0


def rank() -> int:
    """This process's number, 0 when alone."""
    return dist.get_rank() if active() else 0


def size() -> int:
    """How many processes there are, 1 when alone."""
    return dist.get_world_size() if active() else 1


def active() -> bool:
    """Whether this process has joined a group."""
    return dist.is_available() and dist.is_initialized()


def join(device: str = "cpu", timeout: float | None = None) -> bool:
    """Join the group that ``torchrun`` announces in the environment; False when there is none.

    Args:
        device: ``"cpu"`` (gloo) or ``"cuda"`` (NCCL, one device a rank: the one of its local rank).
        timeout: seconds that a rank waits for the others; by default ``INFLUENCE_TIMEOUT``, else 600.

    Raises:
        DeviceError: more ranks on this machine than CUDA devices.
        DistributedError: the others cannot be reached.
    """
    if active():
        return True
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
        return False
    seconds = timeout if timeout is not None else _timeout()
    cuda = device.startswith("cuda")
    if cuda:
        local, devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= devices:
            raise DeviceError(
                f"rank {os.environ['RANK']} wants CUDA device {local} but this machine has {devices}: start "
                f"at most {devices} processes per machine"
            )
        torch.cuda.set_device(local)
    with _collective():
        # With CUDA, texts and host tensors still travel by gloo.
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(seconds=seconds))
    return True


def _timeout() -> float:
    text = os.environ.get(TIMEOUT, "")
    try:
        seconds = float(text) if text else _DEFAULT_TIMEOUT
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e7:
        raise DataError(f"{TIMEOUT}={text!r} must be a positive number of seconds")
    return seconds


def leave() -> None:
    """Leave the group; harmless when there is none."""
    if active():
        dist.destroy_process_group()


@contextlib.contextmanager
def _collective() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        mine, of = os.environ.get("RANK", "?"), os.environ.get("WORLD_SIZE", "?")
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DistributedError(
            f"rank {mine} of {of} lost the others ({reason[:160]}): one of them died, hung, or ran another "
            "config; start the job again with the same output= and it goes on from its journal"
        ) from error


def all_reduce(tensor: Tensor, largest: bool = False) -> Tensor:
    """The sum (or the largest) over ranks, the same bits on each.

    Raises:
        DistributedError: a rank did not answer.
    """
    if size() > 1:
        tensor = tensor.contiguous()
        with _collective():
            dist.all_reduce(tensor, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM)
    return tensor


def from_first(value: Any) -> Any:
    """Rank 0's ``value`` (anything picklable) on every rank."""
    if size() == 1:
        return value
    box = [value if rank() == 0 else None]
    with _collective():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def rows_of(n: int, rank_: int | None = None, size_: int | None = None) -> slice:
    """The contiguous block of n examples that a rank holds; blocks differ in length by one at most.

    Raises:
        DataError: fewer examples than ranks.
    """
    r, ranks = rank() if rank_ is None else rank_, size() if size_ is None else size_
    if n < ranks:
        raise DataError(f"{n} examples cannot be spread over {ranks} ranks: start at most {n} processes")
    each, more = divmod(n, ranks)
    start = r * each + min(r, more)
    return slice(start, start + each + (r < more))


def shard(objective: Any) -> Any:
    """This rank's share of an objective that every rank has built alike; the objective itself when alone.

    Args:
        objective: an :class:`Objective`, :class:`LinearObjective` or one over parts, of n examples.

    Raises:
        DataError: fewer examples than ranks, or ranks that disagree on n, p or λ.
    """
    if size() == 1:
        return objective
    n = objective.n
    shapes = (n, objective.p, objective.l2 * float(objective.l2_mask.mean()))
    first = from_first(shapes)
    if first != shapes:
        raise DataError(
            f"(n, p, mean l2) is {shapes} on rank {rank()} but {first} on rank 0: give "
            "every rank the same config and data"
        )
    rows = rows_of(n)
    local = objective.subset(torch.arange(rows.start, rows.stop, device=objective.device))
    return sharded(local, rows, n)


def sharded(local: Any, rows: slice | Tensor, n: int) -> ShardedObjective:
    """The objective of n examples of which this rank holds ``rows`` in ``local``.

    ``local`` may be built from this rank's own part of the data alone, for instance a
    :class:`~influence.objectives.streaming.StreamedObjective` over a file; every example must be some rank's.

    Raises:
        DataError: the ranks' rows are not each of 0…n−1 once.
    """
    kind = ShardedLinear if local.linear_outputs else ShardedObjective
    places = torch.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
    objective = kind(local, places.to(local.device), n, local)
    if not torch.equal(objective.owners(), torch.ones(n, dtype=torch.int64, device=local.device)):
        raise DataError(f"the ranks' rows are not each of 0…{n - 1} once; use distributed.rows_of(n)")
    return objective


class ShardedObjective(PartitionedObjective):
    """An objective whose examples are spread over the ranks; the same calls, the same answers on each.

    Args:
        local: this rank's part; None where it holds none of them (a subset may miss a rank).
        places: ``(m,)`` where its examples stand among all n.
        n: examples of all ranks.
        template: an objective of the same model, for shapes and λ.

    Raises (from every call):
        DistributedError: another rank died, hung, or is elsewhere in the program.
    """

    def __init__(self, local: Any | None, places: Tensor, n: int, template: Any) -> None:
        super().__init__(template, n)
        self.local = None if local is None or not len(places) else unpenalised(local)
        self.places: Tensor | slice = places
        self._own = places
        self._local_of = torch.full((n,), -1, dtype=torch.int64, device=self.device)
        self._local_of[places] = torch.arange(len(places), device=self.device)
        if bool((places[1:] - places[:-1] == 1).all()) and len(places):
            self.places = slice(int(places[0]), int(places[-1]) + 1)

    def owners(self) -> Tensor:
        """``(n,)`` how many ranks hold each example; a sound objective has ones."""
        return all_reduce((self._local_of >= 0).long())

    def _parts(self, idx: Tensor | None) -> Iterator[Part]:
        if self.local is None:
            return
        if idx is None:
            yield self.local, None, self.places
            return
        own = self._local_of[idx]
        at = (own >= 0).nonzero()[:, 0]
        if len(at):
            yield self.local, own[at], at

    def _reduce(self, tensor: Tensor, largest: bool = False) -> Tensor:
        return all_reduce(tensor, largest)

    def subset(self, idx: Any) -> Self:
        """Restricted to the examples ``idx``, in that order; each stays on the rank that holds it."""
        idx = self.index(idx)
        own = self._local_of[idx]
        at = (own >= 0).nonzero()[:, 0]
        local = self.local.subset(own[at]) if self.local is not None and len(at) else None
        other = type(self)(local, at, len(idx), self.template)
        other.l2 = self.l2
        return other


class ShardedLinear(PartitionedLinear, ShardedObjective):
    """A linear objective over ranks, with direct solves, Kronecker preconditioning and LiSSA."""

    def __init__(self, local: Any | None, places: Tensor, n: int, template: Any) -> None:
        super().__init__(local, places, n, template)
        self._weighted = template.weights is not None
        self._weights: Tensor | None = None

    @property
    def weights(self) -> Tensor | None:  # type: ignore[override]  # gathered when asked for; never set
        """``(n,)`` weights of all examples, gathered when first asked for; None without weights."""
        if self._weighted and self._weights is None:
            self._weights = self._rows(lambda part, *_: part.weights, ())
        return self._weights

    def subset(self, idx: Any) -> Self:
        other = super().subset(idx)
        other._weighted = self._weighted
        return other

    def with_weights(self, weights: Tensor | None) -> ShardedLinear:
        """The same data with mean loss ``(1/n) Σ w_i ℓ_i``, or with no weights."""
        if weights is not None and weights.shape != (self.n,):
            raise DataError(f"weights must have shape ({self.n},), got {tuple(weights.shape)}")
        own = None if weights is None else weights.to(self.device)[self.places]
        local = None if self.local is None else self.local.with_weights(own)
        other = type(self)(local, self._own, self.n, self.template)
        other.l2, other._weighted = self.l2, weights is not None
        return other
