"""Leave-one-out ground truth: retrain without each of many points, all to a certified gradient norm.

The objective without point i is ``(1/(n−1)) Σ_{j≠i} ℓ_j + (λ/2)‖θ‖²`` (λ relative to the mean loss). Its
gradient at the full fit is known without touching the data, and its Hessian differs from the full one by
O(1/n), so Newton steps with the *full* model's factor converge by a factor of hundreds each: three or four
passes over the data, shared by a whole block of models as fat matrix products, reach 1e-8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from influence.errors import ConvergenceError, DataError
from influence.objectives._base import TrainingObjective


class Journal(Protocol):
    """Where finished blocks are kept, so that a killed run goes on where it was."""

    def get(self, key: str) -> dict[str, np.ndarray] | None:
        """The arrays stored under ``key``, or None."""

    def put(self, key: str, arrays: dict[str, np.ndarray]) -> None:
        """Store arrays under ``key`` atomically."""


@dataclass(frozen=True)
class Retrained:
    """Retrained models, one a column.

    Attributes:
        thetas: ``(p, m)`` parameters.
        gradient_norms: ``(m,)`` ‖∇‖ of each model's own leave-one-out objective.
        iterations: ``(m,)`` passes over the data after the analytic first step.
    """

    thetas: Tensor
    gradient_norms: Tensor
    iterations: Tensor


def leave_one_out(
    objective: TrainingObjective,
    theta: Tensor,
    idx: Tensor | list[int],
    preconditioner: Callable[[Tensor], Tensor],
    tolerance: float = 1e-8,
    block: int = 50,
    max_iterations: int = 100,
    journal: Journal | None = None,
    progress: Callable[[int], None] | None = None,
) -> Retrained:
    """Refit without each of the training points ``idx``, warm-started at the full fit ``theta``.

    Args:
        objective: n ≥ 2 examples; any object with ``gradients`` and ``example_gradients``.
        theta: ``(p,)`` the full fit, stationary to well below ``tolerance`` or not: the actual gradient there
            is part of every step.
        preconditioner: applies (an approximation of) the full Hessian's inverse to ``(p, k)``, for instance
            ``Exact().prepare(Hessian(objective, theta)).inverse``.
        tolerance: gradient norm of every retrained model.
        block: models side by side; part of the result's rounding, so keep it when bytes must repeat.
        journal: finished blocks are stored there and taken from there.
        progress: called with the number of models done.

    Raises:
        ConvergenceError: a model did not reach the tolerance; names the point and what to change.
        DataError: an index out of range, n < 2.
    """
    idx = torch.as_tensor(idx).reshape(-1).long()
    if objective.n < 2:
        raise DataError(f"leaving one out needs n >= 2, got {objective.n}")
    outside = idx[(idx < 0) | (idx >= objective.n)]
    if len(outside):
        raise DataError(f"removed point {int(outside[0])} does not exist; use 0…{objective.n - 1}")
    full_gradient = objective.gradient(theta)
    parts: list[dict[str, np.ndarray]] = []
    for start in range(0, len(idx), block):
        chosen = idx[start : start + block]
        key = f"{start:06d}-{len(chosen)}"
        part = journal.get(key) if journal is not None else None
        if part is None:
            part = _block(objective, theta, chosen, full_gradient, preconditioner, tolerance, max_iterations)
            if journal is not None:
                journal.put(key, part)
        parts.append(part)
        if progress is not None:
            progress(min(start + block, len(idx)))
    if not parts:
        return Retrained(torch.empty(objective.p, 0), torch.empty(0), torch.empty(0))
    tensors = {
        name: torch.from_numpy(np.concatenate([part[name] for part in parts], axis=-1)) for name in parts[0]
    }
    return Retrained(tensors["thetas"], tensors["gradient_norms"], tensors["iterations"])


def _block(
    objective: TrainingObjective,
    theta: Tensor,
    idx: Tensor,
    full_gradient: Tensor,
    preconditioner: Callable[[Tensor], Tensor],
    tolerance: float,
    max_iterations: int,
) -> dict[str, np.ndarray]:
    n, k = objective.n, len(idx)
    device_idx = idx.to(theta.device)
    thetas = theta[:, None].repeat(1, k)
    gradients = _without(objective, thetas, full_gradient[:, None].expand(-1, k), device_idx, n)
    norms = gradients.norm(dim=0)
    iterations = torch.zeros(k, dtype=torch.long)
    steps = preconditioner(gradients)
    live = torch.arange(k, device=theta.device)
    for iteration in range(1, max_iterations + 1):
        candidates = thetas[:, live] - steps
        new = _without(objective, candidates, objective.gradients(candidates), device_idx[live], n)
        new_norms = new.norm(dim=0)
        better = new_norms < norms[live]
        taken = live[better]
        thetas[:, taken], norms[taken] = candidates[:, better], new_norms[better]
        gradients[:, taken] = new[:, better]
        iterations[live.cpu()] = iteration
        # A step that made the gradient larger is halved; the others go on from where they are.
        halved = steps[:, ~better] / 2
        still = norms[live] > tolerance
        next_live = torch.cat([live[better & still], live[~better]])
        if not len(next_live):
            break
        fresh = live[better & still]
        steps = torch.cat([preconditioner(gradients[:, fresh]), halved], dim=1)
        live = next_live
    if bool((norms > tolerance).any()):
        worst = int(norms.argmax())
        raise ConvergenceError(
            f"retraining without point {int(idx[worst])} stopped at a gradient norm of "
            f"{float(norms[worst]):.3g} after {max_iterations} steps, above {tolerance:.3g}: use float64, "
            "loosen tolerance, raise max_iterations, or give a better preconditioner"
        )
    return {
        "thetas": thetas.cpu().numpy(),
        "gradient_norms": norms.cpu().numpy(),
        "iterations": iterations.numpy(),
    }


def _without(objective: TrainingObjective, thetas: Tensor, gradients: Tensor, idx: Tensor, n: int) -> Tensor:
    """Gradient of each column's leave-one-out objective, from the full objective's gradients there."""
    l2 = objective.l2 * objective.l2_mask[:, None] * thetas
    return (n * (gradients - l2) - objective.paired_gradients(thetas, idx)) / (n - 1) + l2
