"""Which patients did it: influences on the misclassified children, and patients left out for real."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from experiments.data import Dataset, Split
from experiments.models import build
from experiments.readmission.children import (
    READMITTED,
    ranks_and_ratios,
)
from experiments.suite.context import Context
from influence.curvature.operators import Hessian
from influence.leverage import corrected_change
from influence.retraining.leave_one_out import leave_one_out
from influence.scores import predicted_change, test_gradients, up_loss
from influence.solvers import Exact


@dataclass
class Influences:
    """Of every training patient on each of the test ``points``, the chosen test point first.

    scores (n, points): predicted changes of the test loss in nats. corrected (n,): those of the first point
    by one Newton step without the patient. s_test (p, points). factor: the prepared exact solver.
    """

    points: list[int]
    scores: np.ndarray
    corrected: np.ndarray
    s_test: torch.Tensor
    factor: Any
    damping: dict[str, float]  # what solver.damping=auto chose; empty otherwise


@dataclass
class Retrained:
    """index (m,): the patients really left out one by one. actual (m,): the change of the test loss in
    nats.
    """

    index: np.ndarray
    actual: np.ndarray
    certificate: dict[str, Any]


def influences(
    cfg: DictConfig, context: Context, train: Any, theta: torch.Tensor, test: Any, points: list[int]
) -> Influences:
    """s_test of every point by one factorisation, and all training patients' scores."""
    convention = cfg.experiment.training_gradient
    hessian = build.damped(Hessian(train, theta), cfg.solver.damping)
    solver = build.solver(cfg.solver)
    with context.timer("factor"):
        state = solver.prepare(hessian)
    with context.timer(f"s_test of {len(points)} test points"):
        gradients = test_gradients(test, theta, points)
        solution = solver.apply(state, gradients)
    context.status(cfg.solver.name, solution)
    factor = state if isinstance(solver, Exact) else Exact().prepare(Hessian(train, theta))
    with context.timer(f"{train.n} x {len(points)} scores"):
        raw = up_loss(train, theta, solution.value, convention)
        scores = predicted_change(raw, train.n, convention).numpy()
    with context.timer(f"{train.n} leverage-corrected scores"):
        corrected = corrected_change(train, theta, gradients[:, :1], removal=convention, operator=hessian)
    return Influences(
        points,
        scores,
        corrected[:, 0].numpy(),
        solution.value,
        factor,
        build.chosen_damping(cfg.solver.damping, hessian),
    )


def left_out(
    context: Context,
    settings: DictConfig,
    train: Any,
    theta: torch.Tensor,
    test: Any,
    top: np.ndarray,
    found: Influences,
) -> Retrained:
    """The patients ``top`` (m,) really left out, one by one, and the change of the chosen test loss."""
    with context.timer(f"{len(top)} retrainings"), context.progress(len(top), "retraining") as advance:
        retrained = leave_one_out(
            train,
            theta,
            torch.as_tensor(top),
            preconditioner=found.factor.inverse,
            tolerance=settings.tolerance,
            progress=advance,
            raise_on_failure=True,
        )
    one = torch.tensor(found.points[:1])
    actual = test.example_losses_many(retrained.thetas, one)[0] - test.example_losses(theta, one)[0]
    certificate = {
        "fit": "without one patient each",
        "count": len(top),
        "tolerance": settings.tolerance,
        "largest_gradient_norm": float(retrained.gradient_norms.max()),
    }
    return Retrained(top, actual.numpy(), certificate)


def of_children(found: Influences, children: np.ndarray, modified: Split) -> dict[str, Any]:
    """The scores of the four children on the chosen test point, and their ranks among all patients."""
    scores, ill = found.scores[:, 0], modified.y[children] == READMITTED
    return {
        "children": {str(int(i)): float(scores[i]) for i in children},
        "readmitted_children": sorted(scores[children[ill]].tolist()),
        "other_child": float(scores[children[~ill]][0]),
        **ranks_and_ratios(scores, children),
    }


def arrays_of(
    data: Dataset,
    modified: Split,
    children: np.ndarray,
    theta: torch.Tensor,
    found: Influences,
    truth: Retrained,
) -> dict[str, np.ndarray]:
    """The patients left out with their ages, every score, and the children with what they have."""
    names, top = data.feature_names or (), truth.index
    ages = [i for i, name in enumerate(names) if name.startswith("age=")]
    return {
        "index": top,
        "predicted": found.scores[top, 0],
        "corrected": found.corrected[top],
        "actual": truth.actual,
        "readmitted": modified.y[top],
        "age": np.array([names[ages[k]] for k in modified.X[top][:, ages].argmax(1)]),
        "original_index": modified.index[top],
        "scores": found.scores[:, 0],
        "test_points": np.array(found.points),
        "children": children,
        "children_scores": found.scores[children],
        "children_values": modified.X[children],
        "coefficients": theta.numpy(),
        "features": np.array(names),
    }
