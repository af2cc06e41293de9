"""Fig. 1: what each component of influence does, in binary logistic regression.

``I_up,loss(z, z_test) = -grad L(z_test) H^-1 grad L(z)``, with ``grad L = -sigmoid(-y w x) y x``. Two factors
can be left out. Without the training loss' factor ``sigmoid(-y w x)`` the training gradient becomes ``-y x``.
Without H, s_test becomes the test gradient. The full score of every training point is set against the three
others. All are predicted changes times n, as in the figure. If H is left out and no input is negative, the
sign says only whether the labels agree. Then every same-label point looks helpful, every other one harmful.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from experiments.models import build
from experiments.records.errors import ConfigError
from experiments.records.record import Record
from experiments.suite.context import Context, checked_test_index
from influence.curvature.operators import Hessian
from influence.scores import test_gradients, up_loss
from influence.training import fit

VARIANTS = ("full", "no_train_loss", "no_hessian", "neither")


def run(cfg: DictConfig, context: Context) -> Record:
    """Fit, s_test, four score vectors, and the share of same-label points that each calls harmful."""
    settings = cfg.experiment
    data = context.data()
    train = build.linear_objective(data.train, cfg.model, len(data.classes))
    if train.loss.name != "logistic":
        raise ConfigError(f"components needs model=logistic, not {cfg.model.loss}.")
    test = train.on(data.test.X, build.targets_of(data.test.y, True))
    test_index = checked_test_index(settings.test_index, test.n)

    with context.timer("fit"), context.progress(100, "fit") as advance:
        fitted = fit(train, tolerance=settings.training_tolerance, progress=advance)
    theta = fitted.theta
    gradient = test_gradients(test, theta, [test_index])
    operator = build.damped(Hessian(train, theta), cfg.solver.damping)
    with context.timer("s_test"):
        solution = build.solver(cfg.solver).solve(operator, gradient)
    context.status(cfg.solver.name, solution)
    with context.timer(f"4 x {train.n} scores"):
        score = variants(train, theta, solution.value, gradient)

    same = data.train.y == data.test.y[test_index]
    ranked = np.flatnonzero(same)[np.argsort(score["full"][same], kind="stable")]
    if not 1 <= settings.harmful_rank <= len(ranked):
        raise ConfigError(
            f"experiment.harmful_rank={settings.harmful_rank}: there are {len(ranked)} same-label points."
        )
    harmful = int(ranked[settings.harmful_rank - 1])
    margin = float(test.outputs(theta, torch.tensor([test_index]))[0, 0] * test.targets[test_index])
    return Record(
        experiment="components",
        metrics={
            "n_train": train.n,
            "n_test": test.n,
            "n_parameters": train.p,
            "l2": train.l2,
            **build.chosen_damping(cfg.solver.damping, operator),
            "test_index": test_index,
            "test_label": data.classes[int(data.test.y[test_index])],
            "test_loss": float(test.example_losses(theta)[test_index]),
            "test_margin": margin,
            "test_accuracy": float((test.outputs(theta)[:, 0].sign() == test.targets).double().mean()),
            "harmful": {
                "rank": settings.harmful_rank,
                "index": harmful,
                "original_index": int(data.train.index[harmful]),
                "score": float(score["full"][harmful]),
            },
            "same_label": int(same.sum()),
            "other_label": int((~same).sum()),
            "variants": {name: shares(score[name], score["full"], same) for name in VARIANTS},
        },
        arrays={
            **score,
            "same_label": same,
            "test_image": image(data, data.test, test_index),
            "harmful_image": image(data, data.train, harmful),
        },
        captions={
            "components": f"Influence on test point {test_index} of all {train.n} training points "
            f"({data.name}), against the same without the training loss, without H, and without both."
        },
        certificates=[{"fit": "all training points", **fitted.certificate.to_dict()}],
    )


def variants(
    train: Any, theta: torch.Tensor, s_test: torch.Tensor, gradient: torch.Tensor
) -> dict[str, np.ndarray]:
    """n times the predicted change (n,) of each variant; positive = helpful."""
    y = train.targets
    without_loss = {
        name: (-y * train.outputs(direction[:, 0])[:, 0]).numpy()  # (-y x) . direction
        for name, direction in (("no_train_loss", s_test), ("neither", gradient))
    }
    return {
        "full": -up_loss(train, theta, s_test, "loss")[:, 0].numpy(),
        "no_train_loss": without_loss["no_train_loss"],
        "no_hessian": -up_loss(train, theta, gradient, "loss")[:, 0].numpy(),
        "neither": without_loss["neither"],
    }


def shares(score: np.ndarray, full: np.ndarray, same: np.ndarray) -> dict[str, float]:
    """How often the score's sign contradicts the label's agreement, and its correlation with the full one."""
    return {
        "same_label_harmful": float((score[same] < 0).mean()),
        "other_label_helpful": float((score[~same] > 0).mean()),
        "pearson_with_full": float(np.corrcoef(score, full)[0, 1]),
    }


def image(data: Any, split: Any, test_index: int) -> np.ndarray:
    """One example in its picture's shape (a single row where it has none)."""
    x = np.asarray(split.X[test_index], dtype=np.float64)
    return x.reshape(data.image_shape or (1, -1))
