"""Leave-one-out ground truth: retrain without each of many points, all to a certified gradient norm.

The objective without point i is ``(1/(n−1)) Σ_{j≠i} w_j ℓ_j + (λ/2)‖m⊙θ‖²`` (λ relative to the mean loss), or
``(1/n) Σ_{j≠i} w_j ℓ_j + (λ/2)‖m⊙θ‖²`` with ``removal="loss"``. Its gradient at the full fit is known without
touching the data, and its Hessian differs from the full one by O(1/n). Newton steps with the *full* model's
factor therefore converge by a factor of hundreds each: three or four passes over the data, shared by a whole
block of models as fat matrix products, reach 1e-8.

A point of high leverage changes the Hessian by more than that. When its steps with the full factor converge
slowly, its model is fitted alone by Newton's method with its own Hessian; the others are not affected.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from influence.checks import checked_number
from influence.curvature.operators import Hessian
from influence.errors import ConvergenceError, DataError, NotConvergedWarning, NotPositiveDefiniteError
from influence.objectives._base import TrainingObjective
from influence.removal import TrainingGradient, removal_kind
from influence.retraining.retained import fit_alone
from influence.solvers.exact import Exact

_WATCH, _FALL = 10, 0.1  # a model whose gradient norm fell by less than this in so many steps goes on alone
_FACTOR_BELOW = 4000  # parameters: up to here the full model's factor is made when none is given


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
        iterations: ``(m,)`` passes over the data after the analytic first step; Newton steps of its own are
            counted for a model that was fitted alone.
        converged: ``(m,)`` booleans: the gradient norm is at most the tolerance.
        status: a word per model: ``"shared"`` (steps with the full model's factor), ``"alone"`` (its own
            Newton steps) or ``"not converged"``.
        removal: the convention of removal, ``"objective"`` or ``"loss"``.

    >>> import torch
    >>> from influence import LinearObjective, fit, leave_one_out
    >>> X = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    >>> train = LinearObjective(X, torch.tensor([-1, 1, 1, -1]), "logistic", l2=0.1)
    >>> found = leave_one_out(train, fit(train).theta, torch.tensor([0, 3]))
    >>> tuple(found.thetas.shape), found.converged.tolist()
    ((2, 2), [True, True])
    """

    thetas: Tensor
    gradient_norms: Tensor
    iterations: Tensor
    converged: Tensor
    status: tuple[str, ...]
    removal: str


def leave_one_out(
    objective: TrainingObjective,
    theta: Tensor,
    idx: Tensor | list[int],
    preconditioner: Callable[[Tensor], Tensor] | None = None,
    tolerance: float = 1e-8,
    block: int = 50,
    max_iterations: int = 100,
    journal: Journal | None = None,
    progress: Callable[[int], None] | None = None,
    *,
    removal: TrainingGradient | str = TrainingGradient.OBJECTIVE,
    raise_on_failure: bool = False,
) -> Retrained:
    """Refit without each of the training points ``idx``, warm-started at the full fit ``theta``.

    Args:
        objective: n ≥ 2 examples; a removed point takes its weight with it.
        theta: ``(p,)`` the full fit, stationary to well below ``tolerance`` or not: the actual gradient there
            is part of every step.
        idx: the points to leave out, one per model.
        preconditioner: applies (an approximation of) the full Hessian's inverse to ``(p, k)``, for instance
            ``Exact().prepare(Hessian(objective, theta)).inverse``. By default this factor is made for up to
            4,000 parameters; larger models are fitted one by one.
        tolerance: gradient norm of every retrained model.
        block: models side by side; part of the result's rounding, so keep it when bytes must repeat.
        max_iterations: steps with the full factor, and Newton steps of a model that is fitted alone.
        journal: finished blocks are stored there and taken from there.
        progress: called with the number of models done.
        removal: which retraining: :class:`~influence.removal.TrainingGradient`.
        raise_on_failure: raise when a model did not reach the tolerance. By default all models are returned
            and a warning names those points.

    Raises:
        ConvergenceError: a model did not reach the tolerance, with ``raise_on_failure``.
        DataError: an index out of range, a nested list of indices, n < 2, or a setting out of range.
    """
    theta = objective.vector(theta)
    checked_number("tolerance", tolerance, above=0.0)
    checked_number("block", block, least=1, whole=True)
    checked_number("max_iterations", max_iterations, least=1, whole=True)
    kind, idx = removal_kind(removal), _points(objective, idx)
    if preconditioner is None:
        preconditioner = full_factor(objective, theta)
    full_gradient = objective.gradient(theta)
    job = _Job(objective, theta, full_gradient, preconditioner, kind, float(tolerance), int(max_iterations))
    parts: list[dict[str, np.ndarray]] = []
    for start in range(0, len(idx), block):
        chosen = idx[start : start + block]
        key = f"{start:06d}-{len(chosen)}" + ("" if kind is TrainingGradient.OBJECTIVE else f"-{kind}")
        part = journal.get(key) if journal is not None else None
        if part is None:
            part = job.block(chosen)
            if journal is not None:
                journal.put(key, part)
        parts.append(part)
        if progress is not None:
            progress(min(start + block, len(idx)))
    return _collected(parts, idx, job, raise_on_failure)


def _points(objective: TrainingObjective, idx: Any) -> Tensor:
    if objective.n < 2:
        raise DataError(f"leaving one out needs n >= 2, got {objective.n}")
    try:
        points = torch.as_tensor(idx)
    except (TypeError, ValueError):
        points = torch.empty(0, 0)
    if points.ndim > 1:
        raise DataError(
            "idx names one point per model, but a nested list came: flatten it, or retrain without groups by "
            "influence.groups.group_change(..., method='refit')"
        )
    if points.is_floating_point() and points.numel():
        raise DataError(f"idx must be integers, got {points.dtype}; pass idx.long()")
    points = points.reshape(-1).long()
    outside = points[(points < 0) | (points >= objective.n)]
    if len(outside):
        raise DataError(f"removed point {int(outside[0])} does not exist; use 0…{objective.n - 1}")
    return points


def full_factor(objective: TrainingObjective, theta: Tensor) -> Callable[[Tensor], Tensor] | None:
    """The inverse of the full Hessian by one factor where that is cheap and it is positive definite."""
    rows = min(objective.p, objective.n * objective.n_outputs if objective.linear_outputs else objective.p)
    if rows > _FACTOR_BELOW:
        return None
    try:
        return Exact(verify=False).prepare(Hessian(objective, theta)).inverse
    except NotPositiveDefiniteError:
        return None


def _collected(
    parts: list[dict[str, np.ndarray]], idx: Tensor, job: _Job, raise_on_failure: bool
) -> Retrained:
    names = ("thetas", "gradient_norms", "iterations", "alone")
    if not parts:
        theta, none = job.theta, torch.empty(0)
        return Retrained(theta.new_empty(job.objective.p, 0), none, none, none.bool(), (), str(job.kind))
    for part in parts:  # a journal of an earlier version has no models that were fitted alone
        part.setdefault("alone", np.zeros(len(part["iterations"]), dtype=bool))
    found = {name: torch.from_numpy(np.concatenate([p[name] for p in parts], axis=-1)) for name in names}
    norms = found["gradient_norms"]
    converged = norms <= job.tolerance
    words = [
        "not converged" if not done else "alone" if alone else "shared"
        for done, alone in zip(converged.tolist(), found["alone"].tolist(), strict=True)
    ]
    if not bool(converged.all()):
        _failed(idx, norms, converged, job, raise_on_failure)
    return Retrained(found["thetas"], norms, found["iterations"], converged, tuple(words), str(job.kind))


def _failed(idx: Tensor, norms: Tensor, converged: Tensor, job: _Job, raise_on_failure: bool) -> None:
    bad = (~converged).nonzero()[:, 0]
    named = ", ".join(f"{int(idx[j])} ({float(norms[j]):.3g})" for j in bad[:10].tolist())
    more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
    precision = "use float64, " if job.objective.dtype != torch.float64 else ""
    message = (
        f"retraining without point {named}{more} stopped at a gradient norm above {job.tolerance:.3g}: "
        f"{precision}raise max_iterations or l2, loosen tolerance, or rescale the features"
    )
    if raise_on_failure:
        raise ConvergenceError(message)
    warnings.warn(message, NotConvergedWarning, stacklevel=4)


@dataclass(frozen=True)
class _Job:
    """What all blocks share."""

    objective: TrainingObjective
    theta: Tensor
    full_gradient: Tensor
    preconditioner: Callable[[Tensor], Tensor] | None
    kind: TrainingGradient
    tolerance: float
    max_iterations: int

    def block(self, idx: Tensor) -> dict[str, np.ndarray]:
        """The models without each of ``idx (k,)``."""
        k = len(idx)
        thetas = self.theta[:, None].repeat(1, k)
        iterations = torch.zeros(k, dtype=torch.long)
        if self.preconditioner is None:
            norms = torch.full((k,), float("inf"), dtype=self.theta.dtype, device=self.theta.device)
        else:
            norms = self._shared(idx.to(self.theta.device), thetas, iterations, self.preconditioner)
        alone = ~(norms <= self.tolerance).cpu()
        for j in alone.nonzero()[:, 0].tolist():
            self._alone(int(idx[j]), j, thetas, norms, iterations)
        return {
            "thetas": thetas.cpu().numpy(),
            "gradient_norms": norms.cpu().numpy(),
            "iterations": iterations.numpy(),
            "alone": alone.numpy(),
        }

    def _shared(
        self, idx: Tensor, thetas: Tensor, iterations: Tensor, precondition: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Steps with the full model's factor, in place; the gradient norms ``(k,)`` reached."""
        k = len(idx)
        gradients = self._without(thetas, self.full_gradient[:, None].expand(-1, k), idx)
        norms = gradients.norm(dim=0)
        steps = precondition(gradients)
        live, watched = torch.arange(k, device=thetas.device), norms.clone()
        for iteration in range(1, self.max_iterations + 1):
            candidates = thetas[:, live] - steps
            new = self._without(candidates, self.objective.gradients(candidates), idx[live])
            new_norms = new.norm(dim=0)
            better = new_norms < norms[live]
            taken = live[better]
            thetas[:, taken], norms[taken] = candidates[:, better], new_norms[better]
            gradients[:, taken] = new[:, better]
            iterations[live.cpu()] = iteration
            # A step that made the gradient larger is halved; the others go on from where they are.
            halved = steps[:, ~better] / 2
            still = norms[live] > self.tolerance
            next_live = torch.cat([live[better & still], live[~better]])
            if not len(next_live):
                break
            fresh = live[better & still]
            steps = torch.cat([precondition(gradients[:, fresh]), halved], dim=1)
            live = next_live
            if iteration % _WATCH == 0:
                moving = norms[live] <= _FALL * watched[live]
                live, steps = live[moving], steps[:, moving]
                watched = norms.clone()
                if not len(live):
                    break
        result: Tensor = norms
        return result

    def _alone(self, point: int, j: int, thetas: Tensor, norms: Tensor, iterations: Tensor) -> None:
        """The model without ``point`` by Newton's method with its own Hessian, in place in column j."""
        theta, norm, taken = fit_alone(
            self.objective, [point], self.kind, self.theta, thetas[:, j], self.tolerance, self.max_iterations
        )
        iterations[j] += taken
        if theta is not None and norm < float(norms[j]):
            thetas[:, j], norms[j] = theta, norm

    def _without(self, thetas: Tensor, gradients: Tensor, idx: Tensor) -> Tensor:
        """Gradient of each column's leave-one-out objective, from the full objective's gradients there."""
        objective, n = self.objective, self.objective.n
        own = objective.paired_gradients(thetas, idx)
        if objective.weights is not None:
            own = own * objective.example_weights(idx)
        if self.kind is TrainingGradient.LOSS:
            return gradients - own / n
        l2 = objective.l2 * objective.l2_mask[:, None] * thetas
        return (n * (gradients - l2) - own) / (n - 1) + l2
