"""Parts of the readmission experiment: the planted mismatch, a model in numbers, where the children stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from experiments.data.dataset import Split
from experiments.records.agreement import largest
from experiments.records.errors import UserError

READMITTED = 1  # the positive class


@dataclass
class Model:
    """A fit: its objective, parameters (p,), the patients it was fitted to, and the fit's certificate."""

    train: Any
    theta: torch.Tensor
    split: Split
    certificate: dict[str, Any]


def without_healthy_children(train: Split, child: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows kept, rows removed): every child that was not readmitted goes, but the last."""
    healthy = np.flatnonzero((train.X[:, child] == 1) & (train.y != READMITTED))
    if len(healthy) < 2:
        raise UserError(
            f"the training set has {len(healthy)} children not readmitted: at least 2 are needed."
        )
    removed = healthy[:-1]
    return np.setdiff1d(np.arange(len(train)), removed), removed


def misclassified(test: Any, theta: torch.Tensor, rows: np.ndarray) -> np.ndarray:
    """Those of ``rows`` whose output has the wrong sign."""
    idx = torch.as_tensor(rows)
    wrong = test.outputs(theta, idx)[:, 0].sign() != test.targets[idx]
    return rows[wrong.numpy()]


def described(model: Model, test: Any, child: int, test_index: int) -> dict[str, Any]:
    """One model in numbers."""
    theta, split = model.theta, model.split
    margin = float(test.outputs(theta, torch.tensor([test_index]))[0, 0] * test.targets[test_index])
    is_child = split.X[:, child] == 1
    order = np.argsort(-theta.abs().numpy(), kind="stable")
    return {
        "n_train": len(split),
        "train_children": [int(split.y[is_child].sum()), int(is_child.sum())],
        "theta_norm": float(theta.norm()),
        "test_accuracy": float((test.outputs(theta)[:, 0].sign() == test.targets).double().mean()),
        "probability_true_class": 1 / (1 + np.exp(-margin)),
        "coefficient": float(theta[child]),
        "coefficient_rank": int(np.flatnonzero(order == child)[0]) + 1,
    }


def stopped(models: dict[str, Model], test: Any, children: np.ndarray, iterations: int) -> dict[str, Any]:
    """The same two models by L-BFGS from zero, given up after ``iterations``: what an early stop does."""
    from scipy.optimize import minimize

    from influence.retraining.relabelled import LogisticRefits

    found: dict[str, Any] = {"iterations": iterations}
    for name, model in models.items():
        objective, split = model.train, model.split
        plain = LogisticRefits(sp.csr_matrix(split.X), objective.l2)  # two thirds of the entries are zero
        y = 2.0 * split.y - 1
        result = minimize(
            plain.value_and_gradient,
            np.zeros(objective.p),
            args=(y,),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": iterations, "maxfun": 10 * iterations, "gtol": 1e-8, "ftol": 0.0},
        )
        theta = torch.as_tensor(result.x)
        found[name] = {
            "iterations": int(result.nit),
            "gradient_norm": float(objective.gradient(theta).norm()),
            "theta_norm": float(theta.norm()),
            "test_accuracy": float((test.outputs(theta)[:, 0].sign() == test.targets).double().mean()),
            "children_misclassified": len(misclassified(test, theta, children)),
        }
    return found


def ranks_and_ratios(scores: np.ndarray, children: np.ndarray) -> dict[str, Any]:
    """The children among all n by |score|: their ranks, and ratios to the largest score of the others."""
    ranks = np.empty(len(scores), dtype=int)
    ranks[np.argsort(-np.abs(scores), kind="stable")] = np.arange(1, len(scores) + 1)
    others = np.delete(np.abs(scores), children).max()
    ratios = np.abs(scores[children]) / others
    return {
        "ranks": [int(rank) for rank in ranks[children]],
        "next_largest": float(others),
        "ratios": [float(ratio) for ratio in ratios],
        "ratios_range": [float(ratios.min()), float(ratios.max())],
        "children_lead": bool(ranks[children].max() == len(children)),
    }


def every_point(
    scores: np.ndarray, children: np.ndarray, points: list[int], wrong: np.ndarray
) -> dict[str, Any]:
    """The same for every misclassified child: scores (n, points), one row a child of the test set."""
    rows = [
        {
            "test_index": point,
            "scores": scores[children, column].tolist(),
            **ranks_and_ratios(scores[:, column], children),
        }
        for column, point in enumerate(points)
        if point in wrong
    ]
    return {
        "points": rows,
        "count": len(rows),
        "children_lead": sum(row["children_lead"] for row in rows),
        "smallest_ratio": min((row["ratios_range"][0] for row in rows), default=None),
    }


def named(
    gradient: np.ndarray, names: tuple[str, ...], x: np.ndarray, feature: int, count: int
) -> dict[str, Any]:
    """One patient's I_pert,loss by name: the largest of all features and of those the patient has (value not
    0).

    `feature` is the one whose rank by |I_pert,loss| is given, in either list.
    """
    order = largest(gradient, len(gradient))
    present = order[x[order] != 0]
    found: dict[str, Any] = {}
    for what, chosen in (("of_all", order), ("of_present", present)):
        at = np.flatnonzero(chosen == feature)
        found[f"age_rank_{what}"] = int(at[0]) + 1 if len(at) else None
        found[what] = [
            {"feature": names[j], "I_pert,loss": float(gradient[j]), "value": float(x[j])}
            for j in chosen[:count]
        ]
    return found
