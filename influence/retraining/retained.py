"""The objective that is left when training points are taken out, under either convention of removal.

:class:`~influence.removal.TrainingGradient` states the two conventions. With m of n points removed:

- ``"objective"`` leaves ``(1/(n−m)) Σ_kept w_j ℓ_j + (λ/2)‖m⊙θ‖²``, which is ``objective.subset(kept)``.
- ``"loss"`` leaves ``(1/n) Σ_kept w_j ℓ_j + (λ/2)‖m⊙θ‖²``. It is ``(n−m)/n`` times the objective of the kept
  points with ``λ n/(n−m)``, so both have the same minimiser.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from influence.errors import ConvergenceError, DataError, NotConvergedWarning
from influence.objectives._base import TrainingObjective
from influence.removal import TrainingGradient, removal_kind
from influence.training import fit


@dataclass(frozen=True)
class Retained:
    """``objective`` has the retraining's minimiser. Its gradient times ``factor`` is the retraining's."""

    objective: TrainingObjective
    factor: float


def retained(
    objective: TrainingObjective, removed: Any, removal: TrainingGradient | str = TrainingGradient.OBJECTIVE
) -> Retained:
    """What is left of ``objective`` without the examples ``removed``.

    Raises:
        DataError: no example is left, an index out of range or named twice, or an unknown convention.
    """
    kind, gone = removal_kind(removal), removed_index(objective, removed)
    keep = torch.ones(objective.n, dtype=torch.bool, device=objective.device)
    keep[gone] = False
    kept = objective.subset(keep.nonzero()[:, 0])
    if kind is TrainingGradient.OBJECTIVE:
        return Retained(kept, 1.0)
    other = copy.copy(kept)
    other.l2 = objective.l2 * objective.n / kept.n
    return Retained(other, kept.n / objective.n)


def fit_alone(
    objective: TrainingObjective,
    removed: Any,
    kind: TrainingGradient,
    theta: Tensor,
    shared: Tensor,
    tolerance: float,
    max_iterations: int,
) -> tuple[Tensor | None, float, int]:
    """The model without ``removed``, by Newton's method with its own Hessian.

    Args:
        objective: the whole objective.
        removed: the examples taken out.
        kind: the convention of removal.
        theta: ``(p,)`` the full fit.
        shared: ``(p,)`` where steps shared with other models have led. A linear model begins there, and then
            at the full fit if that fails: it may be saturated there. A network begins at the full fit:
            because shared steps may have led it towards a saddle.
        tolerance: gradient norm to reach.
        max_iterations: Newton steps at most, from each start.

    Returns:
        θ ``(p,)`` of the least gradient norm, that norm, and the iterations; None and infinity if no start
        gives a model.
    """
    left = retained(objective, removed, kind)
    starts = [theta]
    if objective.linear_outputs and not torch.equal(shared, theta):
        starts.insert(0, shared.clone())
    best, least, iterations = None, float("inf"), 0
    for start in starts:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotConvergedWarning)
                found = fit(
                    left.objective, start, tolerance=tolerance / left.factor, max_iterations=max_iterations,
                    raise_on_failure=False,
                )  # fmt: skip
        except ConvergenceError:
            continue
        iterations += found.certificate.iterations
        norm = left.factor * found.certificate.gradient_norm
        if norm < least:
            best, least = found.theta, norm
        if norm <= tolerance:
            break
    return best, least, iterations


def removed_index(objective: TrainingObjective, removed: Any) -> Tensor:
    """The removed examples as distinct integers ``(m,)``, at least one fewer than n.

    Raises:
        DataError: an index out of range or named twice, a nested list, or all examples.
    """
    given = removed if isinstance(removed, Tensor) else torch.as_tensor(removed)
    given = given.long() if given.numel() == 0 else given
    if given.ndim > 1:
        raise DataError(
            f"one group of examples is a flat list of indices, got shape {tuple(given.shape)}: pass groups "
            "one by one"
        )
    gone = objective.index(given)
    assert gone is not None  # only None gives None
    if len(gone.unique()) != len(gone):
        raise DataError(f"a group names each example once, got {gone.tolist()[:20]}")
    if len(gone) >= objective.n:
        raise DataError(f"removing all {objective.n} examples leaves nothing to fit; name fewer")
    return gone
