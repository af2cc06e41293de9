"""Influence by the full Hessian and by that of the last layer, and two kinds of retraining."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.fragility.nets import Shape, adam, hessian, kink, leave_out, newton
from influence.evaluation.agreement import spearman
from influence.objectives.module import Objective

FITS = ("stopped", "converged")
HESSIANS = ("full", "last_layer")
_RELATIVE = 1e-6  # least eigenvalue of a damped Hessian, relative to the largest


@dataclass
class Outcome:
    """One net under one kind of fit.

    spearman: of each Hessian's predictions with retraining, NaN if fewer than three models are there.
    damping: what made the full Hessian positive definite, 0 if it already was. compared: how many retrained
    models were compared. kink: the smallest |input| of an activation, over hidden units and training points.
    """

    gradient_norm: float
    damping: float
    compared: int
    kink: float
    spearman: dict[str, float] = field(default_factory=dict)


def positive(H: Tensor) -> tuple[Tensor, float]:
    """``H + δI`` and the least δ that makes it positive definite by a margin, 0 if it already is."""
    values = torch.linalg.eigvalsh(H)
    least = _RELATIVE * float(values[-1].abs())
    damping = max(0.0, least - float(values[0]))
    return H + damping * torch.eye(len(H), dtype=H.dtype), damping


def predicted(
    H: Tensor, objective: Any, theta: Tensor, test: Any, last: int, idx: Tensor
) -> tuple[dict[str, Tensor], float]:
    """Predicted changes ``(m,)`` of the worst test loss by each Hessian, and the damping of the full one."""
    g = test.example_gradients(theta, worst_test_point(test, theta))[0]
    own = objective.example_gradients(theta, idx)
    full, damping = positive(H)
    part, _ = positive(H[-last:, -last:])
    n = objective.n
    changes = {
        "full": own @ torch.linalg.solve(full, g) / n,
        "last_layer": own[:, -last:] @ torch.linalg.solve(part, g[-last:]) / n,
    }
    return changes, damping


def worst_test_point(test: Any, theta: Tensor) -> Tensor:
    """The test point of largest loss, as Basu et al. take it: ``(1,)``."""
    return test.example_losses(theta).argmax().reshape(1)


def stopped(
    shape: Shape, objective: Any, test: Any, idx: Tensor, start: Tensor, settings: Any
) -> tuple[Outcome, Tensor, dict[str, np.ndarray]]:
    """Adam for a fixed number of steps, and again from the same start without each point.

    Returns the outcome, θ of all points ``(p,)``, and the changes that were compared.
    """
    weights = torch.cat([without(idx, objective.n), torch.ones(1, objective.n, dtype=torch.float64)])
    X, y, l2 = objective.inputs, objective.targets, objective.l2
    thetas = adam(shape, start, X, y, weights, l2, settings.steps, settings.rate)
    theta = thetas[-1]
    H = hessian(shape, theta, X, y, l2)
    changes, damping = predicted(H, objective, theta, test, shape.last, idx)
    outcome = Outcome(float(objective.gradient(theta).norm()), damping, len(idx), kink(shape, theta, X))
    good = torch.ones(len(idx), dtype=torch.bool)
    return outcome, theta, _compared(outcome, test, theta, thetas[:-1].T, changes, good)


def without(idx: Tensor, n: int) -> Tensor:
    """Weights ``(m, n)`` of the examples, 0 for the one that each net is trained without."""
    weights = torch.ones(len(idx), n, dtype=torch.float64)
    weights[torch.arange(len(idx)), idx] = 0
    return weights


def converged(
    shape: Shape, objective: Any, test: Any, idx: Tensor, theta: Tensor, settings: Any
) -> tuple[Outcome, dict[str, np.ndarray]]:
    """From the stopped net on to a stationary point, and from there to one without each point."""
    X, y, l2 = objective.inputs, objective.targets, objective.l2
    theta, _ = newton(shape, theta, X, y, l2, settings.tolerance, settings.iterations)
    norm = float(objective.gradient(theta).norm())  # the library's own, as a certificate
    H = hessian(shape, theta, X, y, l2)
    changes, damping = predicted(H, objective, theta, test, shape.last, idx)
    if norm > settings.tolerance:  # there is no minimum to go on from
        outcome = Outcome(norm, damping, 0, kink(shape, theta, X), dict.fromkeys(HESSIANS, float("nan")))
        unknown = np.full(len(idx), np.nan)
        return outcome, {"actual": unknown, **{name: values.numpy() for name, values in changes.items()}}
    inverse, weights = torch.linalg.inv(positive(H)[0]), without(idx, objective.n)
    thetas, norms = leave_out(
        shape, theta, X, y, weights, l2, inverse, settings.tolerance, settings.iterations
    )
    good = norms <= settings.tolerance
    outcome = Outcome(norm, damping, int(good.sum()), kink(shape, theta, X))
    return outcome, _compared(outcome, test, theta, thetas.T, changes, good)


def _compared(
    outcome: Outcome, test: Any, theta: Tensor, thetas: Tensor, changes: dict[str, Tensor], good: Tensor
) -> dict[str, np.ndarray]:
    worst = worst_test_point(test, theta)
    losses = torch.stack([test.example_losses(column, worst)[0] for column in thetas.T])
    actual = (losses - test.example_losses(theta, worst)).numpy()
    for name in HESSIANS:
        values = changes[name].numpy()[good.numpy()]
        enough = len(values) >= 3
        outcome.spearman[name] = spearman(values, actual[good.numpy()]) if enough else float("nan")
    return {"actual": actual, **{name: values.numpy() for name, values in changes.items()}}


def objective_of(shape: Shape, seed: int, X: Tensor, y: Tensor, l2: float) -> Objective:
    """The objective of a fresh net; its ``initial()`` is where every training starts."""
    return Objective(shape.module(torch.Generator().manual_seed(seed)), "cross_entropy", X, y, l2)
