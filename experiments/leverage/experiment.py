"""Fig. 2 left at smaller λ: are predicted changes of the right size, and does the leverage correction help?

A linear model is fitted to convergence at each λ. First-order influence predicts what leaving out each
training point does to one test loss. Leverage-corrected influence takes a Newton step without the point. The
points of largest |predicted change|, and others drawn at random, are really left out, one at a time, and the
model is fitted again to a certified gradient norm. The retrained objective is (1/n) sum_{j != i} L(z_j) +
(lambda/2)||theta||^2, the paper's removal by epsilon = -1/n. So no score carries an L2 term ("loss").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from experiments.leverage.sizes import METHODS, Compared, Prepared, compared
from experiments.models import build
from experiments.records.agreement import largest
from experiments.records.errors import ConfigError, UserError
from experiments.records.record import Record
from experiments.suite.context import Context, checked_test_index
from influence.curvature.operators import Hessian
from influence.leverage import corrected_change
from influence.retraining.leave_one_out import leave_one_out
from influence.scores import predicted_change, test_gradients, up_loss
from influence.solvers import Exact
from influence.training import fit


def run(cfg: DictConfig, context: Context) -> Record:
    """At each λ: fit, both scores, retraining, comparison."""
    settings, data = cfg.experiment, context.data()
    train = build.linear_objective(data.train, cfg.model, len(data.classes))
    test = train.on(data.test.X, build.targets_of(data.test.y, train.loss.binary))
    l2s = penalties(settings, train.n, cfg.model.l2)

    theta, test_index, found, certificates = None, settings.test_index, [], []
    few = context.sample(len(l2s), "lambda fitted again", worth=settings.top + settings.random)
    record = context.earlier()
    if record is not None and test_index is None:
        test_index = record.metrics["test_index"]
    for row, l2 in enumerate(l2s):
        if record is not None and few is not None and row not in few:
            found.append(as_recorded(record, row, l2, settings.top))
            continue
        train.l2 = test.l2 = l2
        with context.timer(f"fit, lambda {l2:g}"):
            fitted = fit(train, theta, tolerance=settings.training_tolerance)
        theta = fitted.theta
        if test_index is None:
            test_index = first_mistake(test, theta)
        test_index = checked_test_index(test_index, test.n)
        each, certificate = at_one_penalty(context, settings, train, test, theta, test_index, row)
        found.append(each)
        certificates += [{"fit": f"all points, lambda {l2:g}", **fitted.certificate.to_dict()}, certificate]

    return Record(
        experiment="leverage",
        metrics={
            "n_train": train.n,
            "n_parameters": train.p,
            "l2": l2s,
            "test_index": test_index,
            "test_loss": [each.test_loss for each in found],
            "largest_leverage": [each.leverage for each in found],
            "not_converged": [int((~each.converged).sum()) for each in found],
            **summary(found),
        },
        arrays={
            name: np.stack([getattr(each, name) for each in found])
            for name in ("index", "actual", "first_order", "leverage_corrected", "converged")
        },
        captions={
            "leverage": f"Slope and largest error of predicted changes of the loss of test point "
            f"{test_index} against leave-one-out retraining, at {len(l2s)} values of lambda: "
            f"the {settings.top} most influential training points and {settings.random} random ones "
            f"({data.name}, n = {train.n}, p = {train.p})."
        },
        certificates=certificates,
    )


def as_recorded(record: Record, row: int, l2: float, top: int) -> Compared:
    """One λ of a record."""
    own = {name: values[row] for name, values in record.arrays.items()}
    return Compared(
        l2, record.metrics["test_loss"][row], own["index"], own["actual"], own["first_order"],
        own["leverage_corrected"], own["converged"], top,
    )  # fmt: skip


def penalties(settings: Any, n: int, l2: float) -> list[float]:
    """Every λ, the largest first.

    Raises:
        ConfigError: no factor, factors that do not fall, or more points than there are.
    """
    factors = [float(factor) for factor in settings.factors]
    if not factors or factors != sorted(set(factors), reverse=True):
        raise ConfigError(f"experiment.factors={factors}: give at least one, falling, such as [1,0.1].")
    if settings.top + settings.random > n:
        raise ConfigError(
            f"experiment.top={settings.top} and experiment.random={settings.random}: there are {n} points."
        )
    return [float(f"{factor * l2:.12g}") for factor in factors]


def first_mistake(test: Any, theta: torch.Tensor) -> int:
    """The first test point whose label has not the largest output."""
    outputs = test.outputs(theta)
    wrong = outputs[:, 0] * test.targets <= 0 if test.n_outputs == 1 else outputs.argmax(1) != test.targets
    if not bool(wrong.any()):
        raise UserError("every test point is classified correctly: name one by experiment.test_index.")
    return int(wrong.nonzero()[0, 0])


def at_one_penalty(
    context: Context, settings: Any, train: Any, test: Any, theta: torch.Tensor, test_index: int, row: int
) -> tuple[Compared, dict[str, Any]]:
    """Scores by one factor, and what retraining says of them."""
    hessian, one, l2 = Hessian(train, theta), torch.tensor([test_index]), train.l2
    with context.timer(f"factor, lambda {l2:g}"):
        state = Exact().prepare(hessian)
    gradient = test_gradients(test, theta, one)
    solution = Exact().apply(state, gradient)
    context.status(f"s_test, lambda {l2:g}", solution)
    scores = predicted_change(up_loss(train, theta, solution.value, "loss")[:, 0], train.n, "loss").numpy()
    index = chosen(scores, settings.top, settings.random, context.cfg.seed)
    points = torch.as_tensor(index)
    with context.timer(f"corrected scores of {len(index)} points, lambda {l2:g}"):
        corrected = corrected_change(train, theta, gradient, points, "loss", hessian, Prepared(state))[:, 0]
    before = float(test.example_losses(theta, one)[0])

    def work(removed: np.ndarray) -> dict[str, np.ndarray]:
        journal = context.journal(f"retraining-{l2:g}", key={"l2": l2, "removed": removed.tolist()})
        with (
            context.timer(f"{len(removed)} retrainings, lambda {l2:g}"),
            context.progress(len(removed), f"lambda {l2:g}") as advance,
        ):
            models = leave_one_out(
                train, theta, torch.as_tensor(removed), state.inverse, settings.retraining_tolerance,
                settings.block, journal=journal, progress=advance, removal="loss",
            )  # fmt: skip
        return {
            "actual": (test.example_losses_many(models.thetas, one)[0] - before).numpy(),
            "converged": models.converged.numpy(),
            "norms": models.gradient_norms.numpy(),
            "steps": models.iterations.numpy(),
            "alone": np.array([word == "alone" for word in models.status]),
        }

    models = context.retrained(index, work, row)
    certificate = {
        "fit": f"without one point each, lambda {l2:g}",
        "count": len(index),
        "tolerance": settings.retraining_tolerance,
        "largest_gradient_norm": float(models["norms"].max()),
        "iterations": [int(models["steps"].min()), int(models["steps"].max())],
        "fitted_alone": int(models["alone"].sum()),
    }
    found = Compared(
        l2, before, index, models["actual"], scores[index], corrected.numpy(), models["converged"],
        settings.top,
    )  # fmt: skip
    return found, certificate


def chosen(scores: np.ndarray, top: int, random: int, seed: int) -> np.ndarray:
    """The ``top`` points of largest |score|, then ``random`` of the others."""
    order = largest(scores, len(scores))
    drawn = np.random.default_rng(seed).permutation(len(scores) - top)[:random]
    return np.concatenate([order[:top], order[top:][np.sort(drawn)]])


def summary(found: Sequence[Compared]) -> dict[str, Any]:
    """{top, random: {first_order, leverage: {slope, pearson, ...: a value per λ}}}."""
    parts: dict[str, Any] = {}
    for part in ("top", "random"):
        rows = [compared(each, part) for each in found]
        parts[part] = {
            method: {name: [row[method][name] for row in rows] for name in rows[0][method]}
            for method in METHODS
        }
        first, second = (parts[part][method]["largest_error"] for method in METHODS)
        parts[part]["error_falls"] = [
            a / b if b else float("inf") for a, b in zip(first, second, strict=True)
        ]
    return parts
