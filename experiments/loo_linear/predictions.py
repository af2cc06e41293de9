"""What each solver predicts for every training point, and how well that agrees with retraining."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from experiments.loo_linear.accounting import Work
from experiments.models import build
from experiments.records.agreement import agreement
from experiments.records.errors import ConfigError
from experiments.suite.context import Context
from influence.scores import predicted_change, self_influence, up_loss
from influence.solvers import Exact

CONVENTIONS = ("objective", "loss")


@dataclass
class Predictions:
    """What each solver predicts: scores {solver: {convention: (n,)}} in nats, and its solve in words.

    exact: the prepared exact solver of the undamped Hessian, if one of the solvers is.
    """

    scores: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    solves: dict[str, dict[str, Any]] = field(default_factory=dict)
    exact: Any = None


def predictions(
    solvers: dict[str, Any], work: Work, theta: torch.Tensor, hessian: Any, gradient: torch.Tensor
) -> Predictions:
    """s_test by every solver, and from it the predicted change of the test loss for every training point."""
    found = Predictions()
    for name, options in solvers.items():
        operator, solver = build.damped(hessian, options.damping), build.solver(options)
        state = work.prepare(name, solver, operator)
        if isinstance(solver, Exact) and operator is hessian:
            found.exact = state
        solution = work.solve(name, solver, state, gradient)
        with work.scoring(name):
            found.scores[name] = predicted(work.train, theta, solution.value)
        found.solves[name] = solution.summary() | build.chosen_damping(options.damping, operator)
    return found


def predicted(train: Any, theta: torch.Tensor, s_test: torch.Tensor) -> dict[str, np.ndarray]:
    """Predicted change (n,) of the test loss under each convention; one pass over the training set serves
    both.
    """
    plain = up_loss(train, theta, s_test, "loss")[:, 0]
    shift = float((train.l2 * train.l2_mask * theta) @ s_test[:, 0])
    upweighted = {"loss": plain, "objective": plain - shift}
    return {name: predicted_change(upweighted[name], train.n, name).numpy() for name in CONVENTIONS}


def comparison(
    mine: dict[str, np.ndarray], exact: np.ndarray | None, removed: np.ndarray, actual: np.ndarray
) -> dict[str, Any]:
    """Agreement with retraining under each convention, and of all n scores with the exact ones (n,) where
    there are any.
    """
    found: dict[str, Any] = {name: agreement(mine[name][removed], actual) for name in CONVENTIONS}
    if exact is not None:
        found["scores_relative_error"] = float(
            np.linalg.norm(mine["objective"] - exact) / np.linalg.norm(exact)
        )
    return found


def self_influences(
    context: Context, train: Any, theta: torch.Tensor, hessian: Any, state: Any, count: int
) -> dict[str, Any]:
    """Exact self-influence of the first ``count`` training points, from the factor; none at 0."""
    if not count:
        return {}
    if not 1 <= count <= train.n:
        raise ConfigError(f"experiment.self_influence={count}: give 0 to {train.n}.")
    with context.timer(f"self-influence of {count} points"):
        found = self_influence(train, theta, hessian, idx=torch.arange(count), state=state).numpy()
    return {
        "count": count,
        "mean": float(found.mean()),
        "median": float(np.median(found)),
        "largest": float(found.max()),
        "largest_index": int(found.argmax()),
    }


def accuracy(objective: Any, theta: torch.Tensor) -> float:
    """Share of examples whose label has the largest output."""
    outputs = objective.outputs(theta)
    if objective.n_outputs == 1:
        return float((outputs[:, 0].sign() == objective.targets).double().mean())
    return float((outputs.argmax(1) == objective.targets).double().mean())
