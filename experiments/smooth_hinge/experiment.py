"""Fig. 3: influence of a model whose loss has no second derivative.

A linear SVM is trained with the hinge, and its weights stay. Gradients, Hessian and test gradient are those
of SmoothHinge(s, t) = t log(1 + exp((1 - s)/t)) at each temperature t. At t = 0 that is the hinge, whose
Hessian is lambda I alone. The points of largest |predicted change| at t = 0 are left out, one at a time, and
the hinge SVM is trained again on the other n - 1. The actual change is that of the *hinge* loss of the test
point. The training gradient carries the L2 term, because the retrained objective keeps lambda relative to the
mean loss.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from omegaconf import DictConfig

from experiments.models import build
from experiments.models.svm import fit_hinge
from experiments.records.agreement import agreement, largest
from experiments.records.errors import ConfigError
from experiments.records.record import Record
from experiments.suite.context import Context, checked_test_index
from influence.curvature.operators import Hessian
from influence.leverage import corrected_change
from influence.losses import MarginLoss, get_loss
from influence.objectives.linear import LinearObjective
from influence.scores import predicted_change, test_gradients, up_loss
from influence.solvers import Exact


def run(cfg: DictConfig, context: Context) -> Record:
    """Hinge fit, influence at every temperature, hinge refits, comparison."""
    settings, l2 = cfg.experiment, cfg.model.l2
    data = context.data()
    train, test = (part.take(first(len(part), settings.multiple)) for part in (data.train, data.test))
    X, Z = np.asarray(train.X, dtype=np.float64), np.asarray(test.X, dtype=np.float64)
    y = build.targets_of(train.y, True).numpy()
    labels = build.targets_of(test.y, True).numpy()
    test_index, n = checked_test_index(settings.test_index, len(labels)), len(y)
    check(settings, n)

    with context.timer("fit"):
        w, gap = fit_hinge(X, y, l2, settings.tolerance, settings.largest_gap)
    predicted, corrected = {}, {}
    with context.timer(f"scores at {len(settings.temperatures)} temperatures"):
        for t in settings.temperatures:
            predicted[t], corrected[t] = scores(X, y, Z, labels, w, l2, t, test_index)
    removed = largest(predicted[0.0], settings.removed)

    before = hinge(Z[test_index] @ w * labels[test_index])
    journal = context.journal("retraining", key={"removed": removed.tolist()})

    def refits(points: np.ndarray) -> dict[str, np.ndarray]:
        actual, gaps = np.empty(len(points)), np.empty(len(points))
        with context.timer(f"{len(points)} refits"), context.progress(len(points), "refits") as advance:
            for done, point in enumerate(points):
                part = journal.get(int(point))
                if part is None:
                    keep = np.arange(n) != point
                    v, own = fit_hinge(X[keep], y[keep], l2, settings.tolerance, settings.largest_gap)
                    change = hinge(Z[test_index] @ v * labels[test_index]) - before
                    part = {"actual": np.array(change), "gap": np.array(own)}
                    journal.put(int(point), part)
                actual[done], gaps[done] = part["actual"].item(), part["gap"].item()
                advance(done + 1)
        return {"actual": actual, "duality_gap": gaps}

    found = context.retrained(removed, refits)
    actual, gaps = found["actual"], found["duality_gap"]

    margins = np.linspace(-1.0, 3.0, 201)
    curves = {label(t): smooth(margins, t) for t in settings.temperatures}
    train_margin, test_margin = y * (X @ w), labels * (Z @ w)
    return Record(
        experiment="smooth_hinge",
        metrics={
            "n_train": n,
            "n_test": len(labels),
            "n_parameters": X.shape[1],
            "l2": l2,
            "test_index": test_index,
            "test_label": data.classes[int(test.y[test_index])],
            "test_margin": float(test_margin[test_index]),
            "test_loss": before,
            "train_accuracy": float((train_margin > 0).mean()),
            "test_accuracy": float((test_margin > 0).mean()),
            "points_within_margin": int((train_margin < 1).sum()),
            "removed": len(removed),
            "actual_range": [float(actual.min()), float(actual.max())],
            "temperatures": {label(t): agreement(predicted[t][removed], actual) for t in predicted},
            "corrected": {label(t): agreement(corrected[t][removed], actual) for t in curved(corrected)},
            "size_ratio_at_0": float(np.abs(predicted[0.0][removed]).mean() / np.abs(actual).mean()),
            "fit": {"relative_duality_gap": gap, "refits_largest_relative_duality_gap": float(gaps.max())},
            "training_gradient": "objective",
        },
        arrays={
            "index": removed,
            "original_index": train.index[removed],
            "label": train.y[removed],
            "actual": actual,
            "duality_gap": gaps,
            **{f"predicted_{label(t)}": predicted[t][removed] for t in predicted},
            **{f"corrected_{label(t)}": corrected[t][removed] for t in curved(corrected)},
            "margin": margins,
            **{f"loss_{name}": curve for name, curve in curves.items()},
            "loss_logistic": np.logaddexp(0.0, -margins),
        },
        table=["index", "original_index", "label", "actual", *(f"predicted_{label(t)}" for t in predicted)],
        captions={
            "smooth_hinge": "The losses, and predicted against actual change of the hinge loss of test point "
            f"{test_index} when each of {len(removed)} training points is left out ({data.name}, n = {n}). "
            "Below the slope of a smoothed loss: the leverage-corrected scores."
        },
        certificates=[
            {"fit": "all training points", "method": "LinearSVC", "relative_duality_gap": gap},
            {
                "fit": "without one point each",
                "method": "LinearSVC",
                "count": len(removed),
                "largest_relative_duality_gap": float(gaps.max()),
            },
        ],
    )


def check(settings: Any, n: int) -> None:
    """Refuses settings under which there is nothing to compare."""
    if 0.0 not in settings.temperatures or min(settings.temperatures) < 0:
        raise ConfigError(
            "experiment.temperatures must not be negative and must hold 0.0: the points left out are chosen "
            "there."
        )
    if not 1 <= settings.removed <= n:
        raise ConfigError(f"experiment.removed={settings.removed}: give 1 to {n}, the training points.")


def first(n: int, multiple: int) -> np.ndarray:
    """Positions of the first floor(n / multiple) * multiple of n examples."""
    count = n // multiple * multiple if multiple >= 1 else 0
    if count < 2:
        raise ConfigError(f"experiment.multiple={multiple} leaves {count} of {n} examples.")
    return np.arange(count)


def scores(
    X: np.ndarray,
    y: np.ndarray,
    Z: np.ndarray,
    labels: np.ndarray,
    w: np.ndarray,
    l2: float,
    t: float,
    test_index: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted change (n,) of the test loss, all smoothed at temperature t, at the hinge's weights.

    The second is corrected for the point's own leverage.
    """
    train = LinearObjective(X, y, get_loss("smooth_hinge", temperature=t), l2)
    theta = torch.from_numpy(w.copy())
    gradient = test_gradients(train.on(Z, labels), theta, [test_index])
    hessian = Hessian(train, theta)
    s_test = Exact().solve(hessian, gradient).value
    change = predicted_change(up_loss(train, theta, s_test, "objective")[:, 0], train.n, "objective")
    corrected = corrected_change(train, theta, gradient, operator=hessian)[:, 0]
    return change.numpy(), corrected.numpy()


def curved(found: dict[float, np.ndarray]) -> list[float]:
    """The temperatures at which a point has a curvature of its own; the hinge's points have none."""
    return [t for t in found if t > 0]


def hinge(margin: float) -> float:
    """max(0, 1 - margin)."""
    return max(0.0, 1.0 - float(margin))


def smooth(margins: np.ndarray, t: float) -> np.ndarray:
    """SmoothHinge(margins, t); the hinge at 0."""
    loss = cast(MarginLoss, get_loss("smooth_hinge", temperature=t))
    return loss.of_margin(torch.from_numpy(margins)).numpy()


def label(t: float) -> str:
    """``t=0.001`` as it names metrics and arrays (no dot: dots separate the parts of a metric's path)."""
    return f"t{t:g}".replace(".", "_")
