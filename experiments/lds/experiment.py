"""LDS: which attribution predicts how models of random subsets rank on each test point?

A linear model is fitted to 5,000 training points. Each of 500 test points gets a score per training point, by
several methods: exact first-order influence, influence with the leverage correction, LiSSA, and baselines
that need no Hessian. Then a hundred models are fitted to random halves of the data, to a certified gradient
norm. For each model, the scores of the points that it was not trained on are summed. The linear datamodelling
score (Park et al. 2023) of a test point is Spearman's correlation of these sums with its losses, over the
models. The sizes are dattri's public setting of MNIST with a linear model (Deng et al. 2024).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from experiments.models import build
from experiments.records.errors import ConfigError
from experiments.records.record import Record
from experiments.suite.context import Context
from influence.curvature.operators import Hessian
from influence.evaluation.baselines import gradient_cosine, gradient_dot, representer_points, trak
from influence.evaluation.retraining import lds, over_test_points, train_on_subsets
from influence.scores import removal_change, test_gradients
from influence.solvers import Exact
from influence.training import fit


def run(cfg: DictConfig, context: Context) -> Record:
    """Fit, attributions, models of subsets, one table."""
    settings, data = cfg.experiment, context.data()
    part = data.train.take(first(settings.n_train, len(data.train), "n_train"))
    tested = data.test.take(first(settings.n_test, len(data.test), "n_test"))
    few = context.sample(settings.n_test, "test points scored again")
    labels = tested.y
    tested = tested if few is None else tested.take(few)
    train = build.linear_objective(part, cfg.model, len(data.classes))
    test = train.on(tested.X, build.targets_of(tested.y, train.loss.binary))
    with context.timer("fit"):
        fitted = fit(train, tolerance=settings.training_tolerance)
    theta = fitted.theta
    with context.timer("factor"):
        state = Exact().prepare(Hessian(train, theta))
    scores, solve = attributions(cfg, context, train, theta, test, state)

    journal = context.journal("subsets")
    with (
        context.timer(f"{settings.masks} models of subsets"),
        context.progress(settings.masks, "models of subsets") as advance,
    ):
        subsets = train_on_subsets(
            train, theta, test, masks=settings.masks, share=settings.share, seed=cfg.seed,
            tolerance=settings.retraining_tolerance, preconditioner=state.inverse, journal=journal,
            progress=advance,
        )  # fmt: skip
    table: dict[str, dict[str, float]] = {}
    each = {}
    for name, found in scores.items():
        each[name] = lds(subsets, found, seed=cfg.seed)[1].numpy()
    changes = (subsets.losses - test.example_losses(theta)[:, None]).numpy().mean(1)
    record = context.earlier()
    if record is not None and few is not None:
        changes = among(record.arrays["mean_change"], few, changes)
        each = {
            name: among(record.arrays["lds"][place], few, values)
            for place, (name, values) in enumerate(each.items())
        }
        solve = record.metrics["lissa"]  # it is about all test points
    for name, values in each.items():
        estimate = over_test_points(values, seed=cfg.seed)
        table[name] = {"lds": estimate.value, "low": estimate.low, "high": estimate.high}
    models = subsets.models
    return Record(
        experiment="lds",
        metrics={
            "n_train": train.n,
            "n_test": len(labels),
            "n_parameters": train.p,
            "l2": train.l2,
            "masks": settings.masks,
            "not_converged": int((~models.converged).sum()),
            "methods": table,
            "lissa": solve,
            "projections": settings.projections,
        },
        arrays={
            "method": np.array(list(scores)),
            "lds": np.stack(list(each.values())),
            "label": labels,
            "mean_change": changes,
        },
        captions={
            "lds": f"Linear datamodelling score of each attribution, with its 95 % interval over "
            f"{len(labels)} test points, and its values at each of them: {settings.masks} models trained on "
            f"{settings.share:.0%} of {train.n} training points ({data.name})."
        },
        certificates=[
            {"fit": "all training points", **fitted.certificate.to_dict()},
            {
                "fit": "random subsets",
                "count": settings.masks,
                "tolerance": settings.retraining_tolerance,
                "largest_gradient_norm": float(models.gradient_norms.max()),
            },
        ],
    )


def among(all_values: np.ndarray, places: np.ndarray, values: np.ndarray) -> np.ndarray:
    """``all_values`` with ``values`` at ``places``."""
    found = np.array(all_values)
    found[places] = values
    return found


def first(count: int, n: int, name: str) -> np.ndarray:
    """Positions of the first ``count`` of ``n`` examples.

    Raises:
        ConfigError: there are fewer.
    """
    if count > n:
        raise ConfigError(f"experiment.{name}={count}: give at most {n}, the points there are.")
    return np.arange(count)


def attributions(
    cfg: DictConfig, context: Context, train: Any, theta: torch.Tensor, test: Any, state: Any
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """``{method: (n, k)}``, and the solve of LiSSA in words."""
    hessian = Hessian(train, theta)
    gradients = test_gradients(test, theta, torch.arange(test.n))
    exact = Exact().apply(state, gradients)
    context.status("exact", exact)
    operator, solver = build.damped(hessian, cfg.solver.damping), build.solver(cfg.solver)
    with context.timer("lissa"):
        sampled = solver.apply(solver.prepare(operator), gradients)
    context.status("lissa", sampled)
    scores = {"first_order": removal_change(train, theta, exact.value)}
    with context.timer("leverage"):
        scores["leverage"] = removal_change(
            train, theta, exact.value, correction="leverage", operator=hessian
        )
    scores["lissa"] = removal_change(train, theta, sampled.value)
    with context.timer("baselines"):
        scores["trak"] = trak(train, theta, test, dimensions=cfg.experiment.projections, seed=cfg.seed)
        scores["representer_points"] = representer_points(train, theta, test)
        scores["gradient_dot"] = gradient_dot(train, theta, test)
        scores["gradient_cosine"] = gradient_cosine(train, theta, test)
    error = float((sampled.value - exact.value).norm() / exact.value.norm())
    return scores, sampled.summary() | {"relative_error": error}
