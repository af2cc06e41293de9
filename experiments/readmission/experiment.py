"""Section 5.3: domain mismatch. A model predicts whether a diabetic patient is readmitted within 30 days.

Of the 24 children in training, 3 are readmitted. Then 20 of them are removed: all healthy ones but the last.
Now 3 of the 4 children in training are readmitted. The refitted model takes many children of the test set for
readmitted, although none was. For one of these, every training patient's influence on its loss is computed:
the four children stand out. The experiment does the same for every misclassified child. It leaves the most
influential patients out for real. It also shows what one would look at otherwise: the model's coefficients.
``I_pert,loss`` names the features through which the four children act.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from experiments.data import Dataset, Split
from experiments.data.readmission_schema import CHILDREN
from experiments.models import build
from experiments.readmission.children import (
    Model,
    described,
    every_point,
    misclassified,
    named,
    stopped,
    without_healthy_children,
)
from experiments.readmission.influences import arrays_of, influences, left_out, of_children
from experiments.records.agreement import agreement, largest
from experiments.records.errors import ConfigError, UserError
from experiments.records.record import Record
from experiments.suite.context import Context, checked_test_index
from influence.removal import TrainingGradient
from influence.scores import pert_loss
from influence.training import fit


def run(cfg: DictConfig, context: Context) -> Record:
    """Fit on all patients, remove the healthy children, fit again, ask which patients did it."""
    settings, data = cfg.experiment, context.data()
    child = column_of_children(data, settings)
    rows, removed = without_healthy_children(data.train, child)
    modified = data.train.take(rows)
    splits = {"original": data.train, "modified": modified}
    models = {name: fitted(name, split, cfg, context) for name, split in splits.items()}
    train, theta = models["modified"].train, models["modified"].theta
    test = train.on(data.test.X, build.targets_of(data.test.y, True))

    test_children = np.flatnonzero(data.test.X[:, child] == 1)
    wrong = {name: misclassified(test, model.theta, test_children) for name, model in models.items()}
    test_index = chosen(settings.test_index, wrong["modified"], test.n)
    points = [test_index, *(int(i) for i in wrong["modified"] if i != test_index)]

    found = influences(cfg, context, train, theta, test, points)
    children = np.flatnonzero(modified.X[:, child] == 1)
    top = largest(found.scores[:, 0], settings.shown)
    if not set(children) <= set(top):
        top = np.concatenate([top, np.setdiff1d(children, top)])
    truth = left_out(context, settings, train, theta, test, top, found)
    with context.timer("I_pert,loss on the children"):
        perturbed = pert_loss(train, theta, found.s_test[:, 0], torch.as_tensor(children)).numpy()

    metrics: dict[str, Any] = {
        "test_index": test_index,
        "test_children": len(test_children),
        "test_children_readmitted": int(data.test.y[test_children].sum()),
        "removed": len(removed),
        "l2": train.l2,
        "training_gradient": settings.training_gradient,
        **found.damping,
    }
    for name, model in models.items():
        metrics[name] = described(model, test, child, test_index) | {
            "children_misclassified": len(wrong[name])
        }
    if settings.stopped_after is not None:
        metrics["stopped"] = stopped_early(context, settings, models, test, test_children)
    metrics |= of_children(found, children, modified)
    metrics["children_checked"] = every_point(found.scores, children, points, wrong["modified"])
    metrics["retraining"] = agreement(found.scores[top, 0], truth.actual)
    metrics["retraining_corrected"] = agreement(found.corrected[top], truth.actual)
    metrics["pert_loss"] = {
        str(int(i)): named(perturbed[j], data.feature_names or (), modified.X[i], child, settings.features)
        for j, i in enumerate(children)
    }
    return Record(
        experiment="readmission",
        metrics=metrics,
        arrays=arrays_of(data, modified, children, theta, found, truth) | {"pert_loss": perturbed},
        table=["index", "original_index", "age", "readmitted", "predicted", "corrected", "actual"],
        captions={
            "readmission": f"The {settings.shown} training patients of largest influence on test point "
            f"{test_index}, a child wrongly taken for readmitted; the coefficients one would look "
            f"at instead; "
            f"and the features through which the {len(children)} children act ({data.name}, n = {train.n})."
        },
        certificates=[*(model.certificate for model in models.values()), truth.certificate],
    )


def column_of_children(data: Dataset, settings: DictConfig) -> int:
    """The column of X that says whether a patient is a child.

    Raises:
        UserError: the data have none.
        ConfigError: ``training_gradient`` is no convention.
    """
    if data.feature_names is None or CHILDREN not in data.feature_names:
        raise UserError(
            f"data={data.name} has no column {CHILDREN}: use data=readmission or readmission_synthetic."
        )
    if settings.training_gradient not in [kind.value for kind in TrainingGradient]:
        raise ConfigError(
            f"experiment.training_gradient={settings.training_gradient}: choose loss or objective."
        )
    return data.feature_names.index(CHILDREN)


def fitted(name: str, split: Split, cfg: DictConfig, context: Context) -> Model:
    """Logistic regression on ``split``, fitted to convergence."""
    train = build.linear_objective(split, cfg.model, 2)
    with (
        context.timer(f"fit, {name}", flops=6 * 2.0 * train.n * train.d**2),
        context.progress(10, name) as advance,
    ):
        found = fit(train, tolerance=cfg.experiment.tolerance, progress=advance)
    return Model(train, found.theta, split, {"fit": name, **found.certificate.to_dict()})


def chosen(test_index: int | None, wrong: np.ndarray, n: int) -> int:
    """The test point asked about: the one named, or the first misclassified child.

    Raises:
        UserError: none is named and no child is misclassified, or there are not so many test points.
    """
    if test_index is None:
        if not len(wrong):
            raise UserError(
                "no child of the test set is misclassified: name a test point by experiment.test_index."
            )
        test_index = int(wrong[0])
    return checked_test_index(test_index, n)


def stopped_early(
    context: Context, settings: DictConfig, models: dict[str, Model], test: Any, test_children: np.ndarray
) -> dict[str, Any]:
    """The same two models by a fit that stops early, as the authors' had."""
    with context.timer(f"two L-BFGS fits stopped after {settings.stopped_after} iterations"):
        found = stopped(models, test, test_children, settings.stopped_after)
    context.note(
        "The authors' fit had stopped before it converged, ours is fitted to a gradient norm of "
        f"{settings.tolerance:g}; an L-BFGS fit stopped after {settings.stopped_after} iterations stands "
        "beside it as `stopped`."
    )
    return found
