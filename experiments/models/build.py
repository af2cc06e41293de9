"""From config to numerics: objectives and solvers, with errors that name the setting to change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from omegaconf import DictConfig

from experiments.records.errors import ConfigError

if TYPE_CHECKING:
    from experiments.data import Split
    from influence.objectives.linear import LinearObjective


def loss_of(model: DictConfig) -> Any:
    """The per-example loss of ``cfg.model``."""
    from influence.losses import get_loss

    if model.loss == "smooth_hinge":
        if model.temperature is None:
            raise ConfigError("model.loss=smooth_hinge needs model.temperature, e.g. 0.001.")
        return get_loss("smooth_hinge", temperature=model.temperature)
    return get_loss(model.loss)


def only_logistic(model: DictConfig, what: str) -> None:
    """ConfigError unless the model is the logistic regression that ``what`` is."""
    if model.loss != "logistic":
        raise ConfigError(f"model.loss={model.loss}: {what} is a logistic regression; use model=logistic.")
    if model.temperature is not None:
        raise ConfigError(
            f"model.temperature={model.temperature}: the logistic loss has none; leave it null."
        )


def targets_of(y: np.ndarray, binary: bool) -> torch.Tensor:
    """Labels 0..C-1 as int64 classes, or as -1.0/+1.0 for a binary loss."""
    labels = torch.as_tensor(y)
    if not binary:
        return labels
    if len(y) and int(labels.max()) > 1:
        raise ConfigError(
            "a binary loss needs two classes: choose two with data.classes=[1,7], or "
            "model.loss=cross_entropy."
        )
    return labels.to(torch.float64) * 2 - 1


def linear_objective(split: Split, model: DictConfig, n_classes: int) -> LinearObjective:
    """The objective of a linear model on one split, in float64; under torchrun, spread over the ranks."""
    from influence.objectives import distributed
    from influence.objectives.linear import LinearObjective

    loss = loss_of(model)
    outputs = 1 if loss.binary else n_classes
    return distributed.shard(
        LinearObjective(split.X, targets_of(split.y, loss.binary), loss, model.l2, n_outputs=outputs)
    )


def solver(settings: DictConfig) -> Any:
    """The solver of ``cfg.solver`` (without its damping: that belongs to the operator)."""
    from influence import solvers

    options = {str(key): value for key, value in settings.items() if key not in ("name", "damping")}
    kind = {"exact": "Exact", "cg": "CG", "lissa": "LiSSA"}.get(settings.name)
    if kind is None or not hasattr(solvers, kind):
        raise ConfigError(f"solver.name={settings.name!r} is unknown; choose exact, cg or lissa.")
    if settings.name == "lissa" and options["scale"] is None:
        options["scale"] = "auto"
    return getattr(solvers, kind)(**options)


def damped(operator: Any, damping: float | str) -> Any:
    """``operator + damping I``; the operator itself at 0. "auto": what makes it positive definite.

    Raises:
        ConfigError: a negative damping.
    """
    from influence.curvature import spectrum

    if not isinstance(damping, str) and damping < 0:
        raise ConfigError(f"solver.damping={damping}: damping must not be negative.")
    return spectrum.damped(operator, damping)


def chosen_damping(setting: float | str, operator: Any) -> dict[str, float]:
    """``{"damping": δ}`` if ``setting`` left it to the Hessian's spectrum: the record then names it."""
    from influence.curvature.operators import base_of

    return {"damping": base_of(operator)[1]} if isinstance(setting, str) else {}
