"""The dataclasses behind every YAML: a misspelt key or a wrong type fails while the config is composed.

Every room has its own ``schema.py``; adding an experiment adds one there::

    @register("experiment", "loo_linear")
    @dataclass
    class LooLinear(Experiment):
        name: str = "loo_linear"
        removed: int = 100

and its YAML begins with ``defaults: [/schema/experiment/loo_linear@_here_, _self_]``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from experiments.ranges import COUNT, NOT_NEGATIVE_OR_AUTO, POSITIVE, SEED, ranged


@dataclass
class Experiment:
    """What to compute. ``name`` is the folder ``experiments/<name>`` whose ``experiment.py`` does it."""

    name: str = MISSING
    paper: dict[str, Any] = field(default_factory=dict)  # the paper's values: {metric: {value, where}}


@dataclass
class Data:
    """Which data set. Further keys of a subclass go to the loader ``experiments.data.load`` by name."""

    name: str = MISSING
    # folder with the original files; null: that of INFLUENCE_MIRROR, else the network
    mirror: str | None = None
    data_dir: str | None = None  # folder that keeps prepared data sets; null: one in the user's cache


@ranged(l2=POSITIVE)
@dataclass
class Model:
    """Which model and objective. ``l2`` is lambda of (lambda/2)*||theta||^2 beside the *mean* loss."""

    name: str = MISSING
    loss: str = MISSING  # loss of one example: cross_entropy, logistic, hinge or smooth_hinge
    l2: float = MISSING  # lambda of (lambda/2)*||theta||^2, added to the mean loss


@ranged(damping=NOT_NEGATIVE_OR_AUTO)
@dataclass
class Solver:
    """How ``s_test = (H + damping I)^-1 v`` is computed."""

    name: str = MISSING
    # delta of (H + delta I), in units of H; auto: what makes H positive definite, 0 if it already is
    damping: Any = 0.0


@dataclass
class Backbone:
    """A frozen network whose features are the inputs of a linear model."""

    name: str = MISSING
    weights: str | None = None  # a state-dict file; null: torchvision's own download


@dataclass
class Tracking:
    """Where the run is mirrored. Our own record.json stays the record."""

    name: str = MISSING
    project: str = "influence-replication"  # project in W&B
    entity: str | None = None  # owner of that project in W&B
    tags: list[str] = field(default_factory=list)  # further tags of the W&B run


@dataclass
class Tier:
    """How large a run: smoke (embedded data), paper (real data), gpu (the paper's own step counts)."""

    name: str = MISSING
    profile: bool = False  # measure the machine's matrix-product rate and give each part's share of it


@ranged(seed=SEED, threads=COUNT)
@dataclass
class Config:
    """The whole config of one run."""

    experiment: Experiment = MISSING
    data: Data = MISSING
    model: Model | None = None
    solver: Solver | None = None
    backbone: Backbone | None = None
    tracking: Tracking = MISSING
    tier: Tier = MISSING
    seed: int = 0  # seeds every generator of the run
    # threads of torch; null: torch's own choice. Results are the same bytes for the same number
    threads: int | None = None
    device: str = "cpu"  # cpu, cuda or cuda:N
    output: str | None = None  # folder of the run; null: outputs/<experiment>/<time>-<four letters>
    debug: bool = False  # true: full tracebacks
    optimise: str | None = None  # metric that a sweeper such as Optuna minimises or maximises


REGISTRY: dict[str, dict[str, type]] = {}


def register(group: str, name: str) -> Callable[[type], type]:
    """Class decorator: stores a dataclass as ``schema/<group>/<name>`` in Hydra's ConfigStore."""

    def wrap(cls: type) -> type:
        REGISTRY.setdefault(group, {})[name] = cls
        ConfigStore.instance().store(
            group=f"schema/{group}", name=name, node=cls, provider="experiments.schema"
        )
        return cls

    return wrap


def register_all() -> None:
    """Imports the ``schema.py`` of every room (dataclasses only) and stores the root schema."""
    ConfigStore.instance().store(name="root_schema", node=Config, provider="experiments.schema")
    register("tier", "tier")(Tier)
    register("tracking", "tracking")(Tracking)
    for room in sorted(Path(__file__).parent.glob("*/schema.py")):
        importlib.import_module(f"experiments.{room.parent.name}.schema")
