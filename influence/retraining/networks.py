"""Adam on one network or on many side by side, all fed the same minibatches (Kingma & Ba, 2015).

Leave-one-out retraining of a network (Koh & Liang 2017, section 4.2) goes on from θ̃ without one point. All
such runs here, and one on all data, see the same batches in the same order, so what they share (minibatch
noise, and the drift of a θ̃ that is not stationary) cancels in their differences, which are what is measured.

A step's batch depends on the seed and the step alone, so a stopped run goes on exactly where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from influence.errors import DataError
from influence.objectives.compiled import compiled_net
from influence.objectives.module import Objective
from influence.retraining.leave_one_out import Journal

_BETAS, _EPSILON = (0.9, 0.999), 1e-8
_SAVE_EVERY = 500  # steps between two entries in the journal


@dataclass(frozen=True)
class AdamState:
    """Where m runs stand: parameters and both moments ``(p, m)``, and the number of steps taken."""

    thetas: Tensor
    first: Tensor
    second: Tensor
    step: int

    def repeat(self, m: int) -> AdamState:
        """The state of one run as the start of m equal ones."""
        thetas, first, second = (t.repeat(1, m) for t in (self.thetas, self.first, self.second))
        return AdamState(thetas, first, second, self.step)

    def to(self, dtype: torch.dtype) -> AdamState:
        """The same state in another floating type."""
        return AdamState(self.thetas.to(dtype), self.first.to(dtype), self.second.to(dtype), self.step)


def start(theta: Tensor) -> AdamState:
    """A fresh run from ``theta (p,)``."""
    zero = torch.zeros_like(theta)[:, None]
    return AdamState(theta.detach().clone()[:, None], zero, zero.clone(), 0)


def piecewise(rates: Sequence[tuple[int, float]]) -> Callable[[int], float]:
    """The learning rate that changes to ``rate`` from each ``step`` on: ``[(0, 1e-4), (110_000, 1e-5), …]``.

    Raises:
        DataError: no rate for step 0, steps that do not rise, or a rate that is not positive.
    """
    steps = [int(step) for step, _ in rates]
    if not steps or steps[0] != 0 or steps != sorted(set(steps)) or any(not rate > 0 for _, rate in rates):
        raise DataError(f"learning rates need rising steps from 0 and positive rates, got {list(rates)}")
    return lambda t: next(float(rate) for step, rate in reversed(list(rates)) if t >= step)


def batch_at(n: int, size: int, seed: int, step: int) -> Tensor:
    """The examples of a step: each pass over the data is a fresh permutation, its remainder left out."""
    epoch, place = divmod(step, n // size)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    return order[place * size : (place + 1) * size]


# Gradient of each run's own objective on one batch: ``thetas (p, m), batch (b,), left_out (m,) -> (p, m)``.
BatchGradients = Callable[[Tensor, Tensor, Tensor], Tensor]


def batch_gradients(objective: Objective, kernel: str = "auto") -> tuple[BatchGradients, str]:
    """The fastest gradients on minibatches for :func:`adam`, and how they are computed, in words.

    Args:
        objective: what was minimised, with its training data.
        kernel: ``"auto"`` takes the compiled kernel (:mod:`influence.objectives.compiled`) where it can be
            had, ``"compiled"`` insists on it, ``"torch"`` does without it. Both ways agree to rounding.

    Raises:
        DataError: an unknown ``kernel``, or ``"compiled"`` where there is none; the message says why.
    """
    if kernel not in ("auto", "compiled", "torch"):
        raise DataError(f"kernel must be auto, compiled or torch, got {kernel!r}")
    net, reason = (None, "") if kernel == "torch" else compiled_net(objective)
    if net is None:
        if kernel == "compiled":
            raise DataError(f"no compiled kernel: {reason}; use kernel='auto' or 'torch'")
        return (lambda thetas, batch, left_out: _gradients(objective, thetas, batch, left_out)), "torch"
    penalty = objective.l2 * objective.l2_mask[:, None]

    def gradients(thetas: Tensor, batch: Tensor, left_out: Tensor) -> Tensor:
        counts = len(batch) - torch.isin(left_out, batch).to(thetas.dtype)
        return net.gradients(thetas, batch, skip=left_out) / counts + penalty * thetas

    return gradients, "compiled"


def adam(
    objective: Objective,
    state: AdamState,
    steps: int,
    rate: Callable[[int], float],
    batch_size: int,
    seed: int,
    *,
    left_out: Tensor | None = None,
    offset: int = 0,
    gradients: BatchGradients | None = None,
    journal: Journal | None = None,
    key: str = "adam",
    progress: Callable[[int], None] | None = None,
) -> AdamState:
    """``steps`` steps of m runs from ``state``.

    Args:
        objective: what was minimised, with its training data.
        state: where the run starts.
        steps: how many steps.
        rate: learning rate as a function of the step counted from this call.
        batch_size: examples a step; equal seeds mean equal batches.
        seed: of the generator; equal seeds give equal answers.
        offset: number of the first batch, for a run that goes on in several calls.
        left_out: ``(m,)`` the training point that each run never sees, −1 for none. Where a batch holds it,
            that run takes the mean over the others.
        gradients: how batches are differentiated (:func:`batch_gradients`); by ``objective`` as a default.
        journal: the state is stored under ``key`` from time to time and taken up from there.
        key: names the run in its journal.
        progress: called with the steps done.

    Raises:
        DataError: a batch larger than the data or smaller than 2, a left-out point that does not exist.
    """
    n, m = objective.n, state.thetas.shape[1]
    if not 2 <= batch_size <= n:
        raise DataError(f"batch_size must lie in 2…{n}, got {batch_size}")
    left_out = torch.full((m,), -1) if left_out is None else left_out.cpu()
    if left_out.shape != (m,) or int(left_out.min()) < -1 or int(left_out.max()) >= n:
        raise DataError(f"left_out needs {m} entries in -1…{n - 1}, got {left_out.tolist()}")
    if gradients is None:
        gradients, _ = batch_gradients(objective, "torch")
    saved = journal.get(key) if journal is not None else None
    done, origin = 0, state.step
    thetas, first, second = state.thetas.clone(), state.first.clone(), state.second.clone()
    if saved is not None:
        like: dict[str, Any] = {"dtype": objective.dtype, "device": objective.device}
        thetas, first, second = (torch.as_tensor(saved[k], **like) for k in ("thetas", "first", "second"))
        done = int(saved["done"].item())
    for t in range(done, steps):
        batch = batch_at(n, batch_size, seed, offset + t)
        g = gradients(thetas, batch, left_out)
        count = origin + t + 1
        first.mul_(_BETAS[0]).add_(g, alpha=1 - _BETAS[0])
        second.mul_(_BETAS[1]).addcmul_(g, g, value=1 - _BETAS[1])
        scale = (second / (1 - _BETAS[1] ** count)).sqrt_().add_(_EPSILON)
        thetas.addcdiv_(first, scale, value=-rate(t) / (1 - _BETAS[0] ** count))
        if progress is not None:
            progress(t + 1)
        if journal is not None and ((t + 1) % _SAVE_EVERY == 0 or t + 1 == steps):
            arrays = {"thetas": thetas, "first": first, "second": second, "done": torch.tensor(t + 1)}
            journal.put(key, {name: value.cpu().numpy() for name, value in arrays.items()})
    return AdamState(thetas, first, second, origin + steps)


def _gradients(objective: Objective, thetas: Tensor, batch: Tensor, left_out: Tensor) -> Tensor:
    """Gradient of each run's own objective on one batch, ``(p, m)``."""
    device, size = objective.device, len(batch)
    gradients = objective.subset(batch.to(device)).gradients(thetas)
    hit = torch.isin(left_out, batch).nonzero()[:, 0]
    if len(hit):
        columns = hit.to(device)
        own = objective.paired_gradients(thetas[:, columns], left_out[hit].to(device))
        l2 = objective.l2 * objective.l2_mask[:, None] * thetas[:, columns]
        gradients[:, columns] = (size * (gradients[:, columns] - l2) - own) / (size - 1) + l2
    return gradients
