"""The dataclasses behind every YAML: a misspelt key or a wrong type fails while the config is composed.

Every room has its own ``schema.py``; adding an experiment adds one there::

    @register("experiment", "loo_linear")
    @ranged(removed=at_least(1))
    @dataclass
    class LooLinear(Experiment):
        name: str = "loo_linear"
        removed: int = 100

and its YAML begins with ``defaults: [/schema/experiment/loo_linear@_here_, _self_]``.

The range of every numeric setting is said once, beside its schema, and checked before a run takes its folder.
A number that is not finite lies in no range. Null is never out of range: the schema says where it may stand.
A list is in range if each of its numbers is.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf

from experiments.records.errors import ConfigError


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``; an open end does not belong to it."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False
    words: tuple[str, ...] = ()  # texts that may stand in place of a number

    def holds(self, value: float) -> bool:
        """Whether a finite ``value`` lies inside."""
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        low = f"{'more than' if self.low_open else 'at least'} {self.low:g}"
        high = f"{'less than' if self.high_open else 'at most'} {self.high:g}"
        parts = [low] * math.isfinite(self.low) + [high] * math.isfinite(self.high)
        return ", or ".join([" and ".join(parts) or "a finite number", *self.words])


def at_least(low: float, high: float = math.inf) -> Range:
    """Numbers from ``low`` to ``high``, both included."""
    return Range(low, high)


def above(low: float, high: float = math.inf) -> Range:
    """Numbers larger than ``low``, up to ``high``."""
    return Range(low, high, low_open=True)


NOT_NEGATIVE_OR_AUTO = Range(0, words=("auto",))
COUNT, POSITION, POSITIVE, NOT_NEGATIVE = at_least(1), at_least(0), above(0), at_least(0)
TOLERANCE = Range(0, 1, low_open=True, high_open=True)  # a norm or a residual that ends something
SEED = at_least(0, 2**32 - 1)  # what numpy's legacy generator takes


def ranged(**ranges: Range) -> Callable[[type], type]:
    """Class decorator for a schema: the range of each of its numeric fields, beside those it inherits."""

    def wrap(cls: type) -> type:
        cls.RANGES = getattr(cls, "RANGES", {}) | ranges  # type: ignore[attr-defined]  # made here
        return cls

    return wrap


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


def ranges_of(cls: type) -> dict[str, Range]:
    """The ranges of a schema class."""
    return dict(vars(cls).get("RANGES") or getattr(cls, "RANGES", {}))


def numeric_fields(cls: type) -> list[str]:
    """The fields of a schema that hold an int, a float, or a list of them."""
    return [f.name for f in fields(cls) if any(kind in str(f.type) for kind in ("int", "float"))]


def check(cfg: Any) -> None:
    """Raises ConfigError for the first number of a composed config that lies outside its range."""
    for path, value, allowed in numbers(cfg):
        if not allowed.holds(value):
            raise ConfigError(f"{path}={value}: give {allowed}.")


def numbers(node: Any, path: str = "") -> Iterator[tuple[str, float, Range]]:
    """Every number of a composed config with its dotted path and its range (any finite one if unsaid).

    Raises:
        ConfigError: a text stands where only a number, or another text, may.
    """
    if isinstance(node, DictConfig):
        kind = OmegaConf.get_type(node)
        ranges = ranges_of(kind) if isinstance(kind, type) and kind is not dict else {}
        for key in node:
            if OmegaConf.is_missing(node, key):
                continue
            inside, value = f"{path}.{key!s}".lstrip("."), node[key]
            allowed = ranges.get(str(key), Range())
            several = isinstance(value, ListConfig) and str(key) in ranges and not allowed.words
            for item in list(value) if several else [value]:
                if isinstance(item, (int, float)) and not isinstance(item, bool):
                    yield inside, item, allowed
                elif allowed.words and item not in allowed.words:
                    raise ConfigError(f"{inside}={item}: give {allowed}.")
                else:
                    yield from numbers(item, inside)
    elif isinstance(node, ListConfig):
        for item in node:
            if isinstance(item, (int, float)) and not isinstance(item, bool):
                yield path, item, Range()
            else:
                yield from numbers(item, path)
