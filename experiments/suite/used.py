"""A record names only what was used: a choice that an experiment would ignore is refused before it runs.

The groups model, solver and backbone are shared by all experiments, and every choice of them composes with
every experiment. ``USES`` says what each experiment does with them. Whatever else is chosen would stand in
the record beside numbers that it had no part in.
"""

from __future__ import annotations

from dataclasses import dataclass, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.records.errors import ConfigError

LINEAR = {  # model and its losses
    "logistic": ("logistic",),
    "softmax": ("cross_entropy",),
    "svm": ("hinge", "smooth_hinge"),
}
NETWORKS = {"tanh_cnn": ("cross_entropy",), "tanh_cnn_small": ("cross_entropy",)}
ANY = ("exact", "cg", "lissa")


@dataclass(frozen=True)
class Use:
    """models: the names that it fits; empty: it makes its own. losses: those of them that it takes; None:
    all. solvers: the names that it solves by; empty: it has a solver of its own. preconditioners: those of
    conjugate gradients; None: any that the library has. backbone: whether it computes features. cuda: whether
    it can compute on a GPU.
    """

    models: tuple[str, ...]
    losses: tuple[str, ...] | None = None
    solvers: tuple[str, ...] = ()
    preconditioners: tuple[str, ...] | None = None
    backbone: bool = False
    cuda: bool = False


USES = {
    "components": Use(("logistic",), solvers=ANY),
    "loo_linear": Use(("softmax", "logistic", "svm"), ("cross_entropy", "logistic", "smooth_hinge"), ANY),
    "loo_cnn": Use(tuple(NETWORKS), solvers=ANY, preconditioners=("none", "gauss_newton"), cuda=True),
    "loo_cnn_stationary": Use(tuple(NETWORKS)),
    "loo_cnn_truths": Use(tuple(NETWORKS)),
    "smooth_hinge": Use(("svm",), ("hinge",)),
    "rbf_vs_inception": Use(("logistic",), solvers=ANY, backbone=True),
    "readmission": Use(("logistic",), solvers=ANY),
    "spam": Use(("logistic",)),
    "attack_single": Use(("logistic",), backbone=True, cuda=True),
    "attack_group": Use(("logistic",), backbone=True, cuda=True),
    "benchmark": Use(("softmax",)),
    "leverage": Use(("softmax", "logistic"), ("cross_entropy", "logistic")),
    "groups": Use(("softmax", "logistic"), ("cross_entropy", "logistic")),
    "fragility": Use(()),
    "lds": Use(("softmax", "logistic"), ("cross_entropy", "logistic"), ("lissa",)),
}


def check(cfg: DictConfig) -> None:
    """Raises ConfigError for a model, loss, solver, backbone or device that the experiment does not use."""
    name, use = str(cfg.experiment.name), USES.get(str(cfg.experiment.name))
    if use is None:
        return
    _model(name, use, cfg.model)
    _choice(name, "solver", use.solvers, cfg.solver)
    if cfg.solver is not None:
        _own_name("solver", cfg.solver)
        _preconditioner(name, use, cfg.solver)
    _backbone(name, use, cfg.backbone)
    settings = cfg.experiment
    if settings.get("autograd_examples") is not None and settings.get("autograd_tolerance") is None:
        raise ConfigError(
            "experiment.autograd_examples is for experiment.autograd_tolerance: give both or none."
        )
    if str(cfg.device) != "cpu" and not use.cuda:
        raise ConfigError(f"experiment={name} computes on the processor alone: use device=cpu.")


def _own_name(group: str, chosen: Any) -> None:
    """A choice is made by its group: another name alone would leave the settings of the first."""
    kind = OmegaConf.get_type(chosen)
    made: Any = kind() if isinstance(kind, type) and is_dataclass(kind) else chosen
    name = made.name
    if chosen.name != name:
        raise ConfigError(
            f"{group}.name={chosen.name} contradicts {group}={name}: choose {group}={chosen.name}."
        )


def _backbone(name: str, use: Use, backbone: Any) -> None:
    if use.backbone and backbone is None:
        raise ConfigError(f"experiment={name} needs a backbone: choose one, such as backbone=mobilenet_v2.")
    if not use.backbone and backbone is not None:
        raise ConfigError(f"experiment={name} uses no backbone: leave backbone out.")
    if backbone is None:
        return
    drawn = backbone.name == "random_conv"
    if drawn and backbone.weights is not None:
        raise ConfigError(
            "backbone.weights: random_conv draws its weights; leave it null, or set backbone.seed."
        )
    if not drawn and backbone.seed != 0:
        raise ConfigError(f"backbone.seed={backbone.seed}: {backbone.name} draws nothing; leave it at 0.")


def _model(name: str, use: Use, model: Any) -> None:
    if not use.models:
        if model is not None:
            raise ConfigError(f"experiment={name} makes its own nets: leave model={model.name} out.")
        return
    if model is None or model.name not in use.models:
        given = "no model" if model is None else f"model.name={model.name}"
        raise ConfigError(f"experiment={name} cannot use {given}: choose model={' or '.join(use.models)}.")
    losses = [loss for loss in (LINEAR | NETWORKS)[model.name] if use.losses is None or loss in use.losses]
    if model.loss not in losses:
        raise ConfigError(
            f"model.loss={model.loss} is not one that experiment={name} fits as model={model.name}: use "
            f"{' or '.join(losses)}, or another model."
        )
    temperature = model.get("temperature")
    if temperature is not None and model.loss != "smooth_hinge":
        raise ConfigError(
            f"model.temperature={temperature}: {model.loss} has no temperature; leave it null, or use "
            "model.loss=smooth_hinge."
        )


def _choice(name: str, group: str, known: tuple[str, ...], chosen: Any) -> None:
    if chosen is None:
        if known:
            raise ConfigError(f"experiment={name} needs a {group}: choose {group}={' or '.join(known)}.")
    elif not known:
        raise ConfigError(f"experiment={name} uses no {group}: leave {group}={chosen.name} out.")
    elif chosen.name not in known:
        raise ConfigError(f"experiment={name} cannot use {group}={chosen.name}: choose {' or '.join(known)}.")


def _preconditioner(name: str, use: Use, solver: Any) -> None:
    chosen = solver.get("preconditioner")
    if chosen is not None and use.preconditioners is not None and chosen not in use.preconditioners:
        raise ConfigError(
            f"solver.preconditioner={chosen}: experiment={name} takes {' or '.join(use.preconditioners)}."
        )
