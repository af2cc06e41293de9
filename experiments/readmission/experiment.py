"""Section 5.3: domain mismatch. A model predicts whether a diabetic patient is readmitted within 30 days.

Of the 24 children in training, 3 are readmitted. All 20 healthy children but the last are removed, so that 3
of 4 are; the refitted model then takes many children of the test set for readmitted, although none was. For
one of these, every training patient's influence on its loss is computed: the four children stand out. The
experiment does the same for every misclassified child, leaves the most influential patients out for real, and
compares with what one would look at otherwise: the model's coefficients. ``I_pert,loss`` names the features
that carry it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from experiments.data.readmission_schema import CHILDREN
from experiments.errors import ConfigError, UserError
from experiments.models import build
from experiments.readmission.children import (
    READMITTED,
    described,
    every_point,
    misclassified,
    named,
    ranks_and_ratios,
    stopped,
    without_healthy_children,
)
from experiments.records.agreement import agreement, largest
from experiments.records.record import Record
from experiments.suite.context import Context
from influence.curvature.operators import Hessian
from influence.retraining.leave_one_out import leave_one_out
from influence.scores import TrainingGradient, pert_loss, predicted_change, test_gradients, up_loss
from influence.solvers import Exact
from influence.training import fit


def run(cfg: DictConfig, context: Context) -> Record:
    """Fit on all patients, remove the healthy children, fit again, ask which patients did it."""
    settings = cfg.experiment
    data = context.data()
    if data.feature_names is None or CHILDREN not in data.feature_names:
        raise UserError(
            f"data={data.name} has no column {CHILDREN}: use data=readmission or readmission_synthetic."
        )
    if settings.training_gradient not in [kind.value for kind in TrainingGradient]:
        raise ConfigError(
            f"experiment.training_gradient={settings.training_gradient}: choose loss or objective."
        )
    child = data.feature_names.index(CHILDREN)
    rows, removed = without_healthy_children(data.train, child)
    modified = data.train.take(rows)
    test_children = np.flatnonzero(data.test.X[:, child] == 1)

    models: dict[str, dict[str, Any]] = {}
    certificates = []
    for name, split in (("original", data.train), ("modified", modified)):
        train = build.linear_objective(split, cfg.model, 2)
        with (
            context.timer(f"fit, {name}", flops=6 * 2.0 * train.n * train.d**2),
            context.progress(10, name) as advance,
        ):
            fitted = fit(train, tolerance=settings.tolerance, progress=advance)
        certificates.append({"fit": name, **fitted.certificate.to_dict()})
        models[name] = {"train": train, "theta": fitted.theta, "split": split}
    train, theta = models["modified"]["train"], models["modified"]["theta"]
    test = train.on(data.test.X, build.targets_of(data.test.y, True))
    wrong = {name: misclassified(test, models[name]["theta"], test_children) for name in models}
    test_index = settings.test_index
    if test_index is None:
        if not len(wrong["modified"]):
            raise UserError(
                "no child of the test set is misclassified: name a test point by experiment.test_index."
            )
        test_index = int(wrong["modified"][0])
    build.checked_test_index(test_index, test.n)

    points = [test_index, *(int(i) for i in wrong["modified"] if i != test_index)]
    hessian = build.damped(Hessian(train, theta), cfg.solver.damping)
    solver = build.solver(cfg.solver)
    with context.timer("factor"):
        state = solver.prepare(hessian)
    with context.timer(f"s_test of {len(points)} test points"):
        solution = solver.apply(state, test_gradients(test, theta, points))
    context.status(cfg.solver.name, solution)
    factor = state if isinstance(solver, Exact) else Exact().prepare(Hessian(train, theta))
    with context.timer(f"{train.n} x {len(points)} scores"):
        raw = up_loss(train, theta, solution.value, settings.training_gradient)
        scores = predicted_change(raw, train.n, settings.training_gradient).numpy()
    children = np.flatnonzero(modified.X[:, child] == 1)

    top = largest(scores[:, 0], settings.shown)
    if not set(children) <= set(top):
        top = np.concatenate([top, np.setdiff1d(children, top)])
    with context.timer(f"{len(top)} retrainings"), context.progress(len(top), "retraining") as advance:
        retrained = leave_one_out(
            train,
            theta,
            torch.as_tensor(top),
            preconditioner=factor.inverse,
            tolerance=settings.tolerance,
            progress=advance,
        )
    one = torch.tensor([test_index])
    actual = test.example_losses_many(retrained.thetas, one)[0] - test.example_losses(theta, one)[0]
    certificates.append(
        {
            "fit": "without one patient each",
            "count": len(top),
            "tolerance": settings.tolerance,
            "largest_gradient_norm": float(retrained.gradient_norms.max()),
        }
    )
    with context.timer("I_pert,loss on the children"):
        perturbed = pert_loss(train, theta, solution.value[:, 0], torch.as_tensor(children)).numpy()

    metrics: dict[str, Any] = {
        "test_index": test_index,
        "test_children": len(test_children),
        "test_children_readmitted": int(data.test.y[test_children].sum()),
        "removed": len(removed),
        "l2": train.l2,
        "training_gradient": settings.training_gradient,
    }
    for name, model in models.items():
        metrics[name] = described(model, test, child, test_index) | {
            "children_misclassified": len(wrong[name])
        }
    if settings.stopped_after is not None:
        with context.timer(f"two L-BFGS fits stopped after {settings.stopped_after} iterations"):
            metrics["stopped"] = stopped(models, test, test_children, settings.stopped_after)
        context.note(
            "The authors' fit had stopped before it converged, ours is fitted to a gradient norm of "
            f"{settings.tolerance:g}; an L-BFGS fit stopped after {settings.stopped_after} iterations stands "
            "beside it as `stopped`."
        )
    ill = modified.y[children] == READMITTED
    metrics["children"] = {str(int(i)): float(scores[i, 0]) for i in children}
    metrics["readmitted_children"] = sorted(scores[children[ill], 0].tolist())
    metrics["other_child"] = float(scores[children[~ill], 0][0])
    metrics |= ranks_and_ratios(scores[:, 0], children)
    metrics["children_checked"] = every_point(scores, children, points, wrong["modified"])
    metrics["retraining"] = agreement(scores[top, 0], actual.numpy())
    metrics["pert_loss"] = {
        str(int(i)): named(perturbed[j], data.feature_names, modified.X[i], child, settings.features)
        for j, i in enumerate(children)
    }
    ages = [i for i, name in enumerate(data.feature_names) if name.startswith("age=")]
    return Record(
        experiment="readmission",
        metrics=metrics,
        arrays={
            "index": top,
            "predicted": scores[top, 0],
            "actual": actual.numpy(),
            "readmitted": modified.y[top],
            "age": np.array([data.feature_names[ages[k]] for k in modified.X[top][:, ages].argmax(1)]),
            "original_index": modified.index[top],
            "scores": scores[:, 0],
            "test_points": np.array(points),
            "children": children,
            "children_scores": scores[children],
            "children_values": modified.X[children],
            "pert_loss": perturbed,
            "coefficients": theta.numpy(),
            "features": np.array(data.feature_names),
        },
        table=["index", "original_index", "age", "readmitted", "predicted", "actual"],
        captions={
            "readmission": f"The {settings.shown} training patients of largest influence on test point "
            f"{test_index}, a child wrongly taken for readmitted; the coefficients one would look "
            f"at instead; "
            f"and the features through which the {len(children)} children act ({data.name}, n = {train.n})."
        },
        certificates=certificates,
    )
