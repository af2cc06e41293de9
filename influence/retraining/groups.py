"""Retraining without groups of training points, to a certified gradient norm.

Linear models of the same data run side by side: Newton's method with each model's own Hessian, every step
by conjugate gradients that share each pass over the data and are preconditioned by the full model's factor.
Other models, and a model that does not converge that way, are fitted one by one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from influence.checks import checked_number
from influence.errors import ConvergenceError, DataError, NotConvergedWarning
from influence.objectives._base import Product, TrainingObjective
from influence.objectives.linear import LinearObjective
from influence.objectives.many import ManyLinear
from influence.removal import TrainingGradient, removal_kind
from influence.retraining.leave_one_out import Journal, Retrained, full_factor
from influence.retraining.retained import fit_alone, removed_index
from influence.solvers.inner import inner_cg

_INNER, _STEPS, _FORCING = (
    300,
    40,
    0.1,
)  # CG iterations a Newton step, Newton steps, relative residual of a step


def leave_groups_out(
    objective: TrainingObjective,
    theta: Tensor,
    groups: Sequence[Any],
    tolerance: float = 1e-8,
    *,
    removal: TrainingGradient | str = TrainingGradient.OBJECTIVE,
    preconditioner: Product | None = None,
    block: int = 20,
    max_iterations: int = 100,
    journal: Journal | None = None,
    progress: Callable[[int], None] | None = None,
    raise_on_failure: bool = False,
) -> Retrained:
    """Refit without each of ``groups``, warm-started at the full fit ``theta (p,)``.

    Args:
        objective: what was minimised, with its training data.
        theta: ``(p,)`` fitted parameters.
        groups: index lists or masks, one per model; a group takes the weights of its points with it.
        tolerance: gradient norm of every retrained model.
        removal: the convention (:mod:`influence.removal`).
        preconditioner: applies an approximation of the full Hessian's inverse to ``(p, k)``; by default one
            factor up to 4,000 parameters, none beyond.
        block: linear models side by side; ``n · block · c`` numbers are held a few times.
        max_iterations: Newton steps of a model that is fitted alone.
        journal: finished blocks are stored there and taken from there.
        progress: called with the number of models done.
        raise_on_failure: raise when a model did not converge; by default a warning names it.

    Returns:
        One model per group; ``status`` is ``"shared"`` for models that ran side by side, else ``"alone"`` or
        ``"not converged"``.

    Raises:
        ConvergenceError: a model did not converge, with ``raise_on_failure``.
        DataError: a group that is empty, nested, out of range, or everything; a setting out of range.
    """
    theta = objective.vector(theta)
    checked_number("tolerance", tolerance, above=0.0)
    checked_number("block", block, least=1, whole=True)
    checked_number("max_iterations", max_iterations, least=1, whole=True)
    kind = removal_kind(removal)
    gone = [removed_index(objective, group) for group in groups]
    for place, group in enumerate(gone):
        if not len(group):
            raise DataError(f"group {place} is empty; name at least one example to leave out")
    side_by_side = isinstance(objective, LinearObjective)
    if side_by_side and preconditioner is None:
        preconditioner = full_factor(objective, theta)
    parts = []
    for start in range(0, len(gone), block):
        some = gone[start : start + block]
        key = f"groups-{start:06d}-{len(some)}-{kind}"
        part = journal.get(key) if journal is not None else None
        if part is None:
            work = _Work(objective, theta, some, kind, float(tolerance), int(max_iterations), preconditioner)
            part = work.run()
            if journal is not None:
                journal.put(key, part)
        parts.append(part)
        if progress is not None:
            progress(start + len(some))
    return _collected(parts, theta, float(tolerance), str(kind), raise_on_failure)


def _collected(
    parts: list[dict[str, np.ndarray]], theta: Tensor, tolerance: float, kind: str, raise_on_failure: bool
) -> Retrained:
    if not parts:
        none = torch.empty(0)
        return Retrained(theta.new_empty(len(theta), 0), none, none, none.bool(), (), kind)
    found = {name: torch.from_numpy(np.concatenate([p[name] for p in parts], axis=-1)) for name in parts[0]}
    converged = found["gradient_norms"] <= tolerance
    words = [
        "not converged" if not done else "alone" if alone else "shared"
        for done, alone in zip(converged.tolist(), found["alone"].tolist(), strict=True)
    ]
    bad = (~converged).nonzero()[:, 0].tolist()
    if bad:
        named = ", ".join(f"{j} ({float(found['gradient_norms'][j]):.3g})" for j in bad[:10])
        message = (
            f"retraining without group {named} stopped at a gradient norm above {tolerance:.3g}: raise "
            "max_iterations or l2, loosen tolerance, or rescale the features"
        )
        if raise_on_failure:
            raise ConvergenceError(message)
        warnings.warn(message, NotConvergedWarning, stacklevel=3)
    return Retrained(
        found["thetas"], found["gradient_norms"], found["iterations"], converged, tuple(words), kind
    )


@dataclass
class _Work:
    """One block of models."""

    objective: TrainingObjective
    theta: Tensor
    groups: list[Tensor]
    kind: TrainingGradient
    tolerance: float
    max_iterations: int
    preconditioner: Product | None

    def run(self) -> dict[str, np.ndarray]:
        k = len(self.groups)
        thetas = self.theta[:, None].repeat(1, k)
        norms = torch.full((k,), float("inf"), dtype=thetas.dtype, device=thetas.device)
        iterations = torch.zeros(k, dtype=torch.long)
        if isinstance(self.objective, LinearObjective):
            norms = self._together(self.objective, thetas, iterations)
        alone = ~(norms <= self.tolerance).cpu()
        for j in alone.nonzero()[:, 0].tolist():
            theta, norm, taken = fit_alone(
                self.objective, self.groups[j], self.kind, self.theta, thetas[:, j], self.tolerance,
                self.max_iterations,
            )  # fmt: skip
            iterations[j] += taken
            if theta is not None and norm < float(norms[j]):
                thetas[:, j], norms[j] = theta, norm
        return {
            "thetas": thetas.cpu().numpy(),
            "gradient_norms": norms.cpu().numpy(),
            "iterations": iterations.numpy(),
            "alone": alone.numpy(),
        }

    def _together(self, objective: LinearObjective, thetas: Tensor, iterations: Tensor) -> Tensor:
        """Newton's method on all models at once, in place; the gradient norms ``(k,)`` reached."""
        n, k = objective.n, len(self.groups)
        W = objective.example_weights()[:, None].repeat(1, k)
        counts = torch.tensor([n - len(group) for group in self.groups], dtype=W.dtype, device=W.device)
        for j, group in enumerate(self.groups):
            W[group, j] = 0
        divisor = counts if self.kind is TrainingGradient.OBJECTIVE else torch.full_like(counts, n)
        many = ManyLinear(objective, W / divisor, torch.full_like(counts, objective.l2))
        gradients = many.gradients(thetas)
        norms = gradients.norm(dim=0)
        for _ in range(_STEPS):
            live = (norms > self.tolerance).nonzero()[:, 0]
            if not len(live):
                break
            some, g = many.of(live), gradients[:, live]
            forcing = norms[live].clamp(max=_FORCING).maximum(0.1 * self.tolerance / norms[live])
            steps = self._solve(some.hessians_at(thetas[:, live]), g, forcing.clamp(max=_FORCING))
            length = torch.ones_like(forcing)
            for _ in range(40):
                candidates = thetas[:, live] - length * steps
                new = some.gradients(candidates)
                # A Newton step of a convex objective lowers the gradient norm once it is short enough.
                worse = ~(new.norm(dim=0) < norms[live])
                if not bool(worse.any()):
                    break
                length = torch.where(worse, length / 2, length)
            better = ~worse
            iterations[live.cpu()] += 1
            taken = live[better]
            thetas[:, taken], gradients[:, taken] = candidates[:, better], new[:, better]
            norms[taken] = new[:, better].norm(dim=0)
            if not bool(better.any()):
                break
        result: Tensor = norms
        return result

    def _solve(self, product: Product, B: Tensor, goal: Tensor) -> Tensor:
        """CG on all systems at once to relative residuals ``goal (k,)``."""
        return inner_cg(product, B, goal, self.preconditioner or (lambda block: block), limit=_INNER)[0]
