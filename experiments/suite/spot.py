"""A reviewer's minute: a committed record against a run that retrains only a few points, drawn by a seed.

The run's own command is composed again and run from the data on: fit, curvature, solves, all scores. Only the
retrained points cost much, so ``points`` of them, drawn by the reviewer's seed, are retrained, and the others
are taken from the record. Every number of the two records must then agree. A drawn number that was altered
differs itself; an altered one that was not drawn moves a coefficient that is computed from all of them.
A run without retrained points is repeated whole if it is short; of a sweep one job is repeated.
"""

from __future__ import annotations

import importlib
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from experiments.records.errors import UserError
from experiments.records.places import CONF
from experiments.records.provenance import machine
from experiments.records.record import Record
from experiments.suite import cli
from experiments.suite.context import Context
from experiments.suite.sweeps import value_at
from experiments.verification.claims import Spec
from experiments.verification.spots import FAILED, IMPOSSIBLE, PASSED, Spot

APART = (  # they do a few of their units alone, through Context.retrained, sample or first
    "loo_linear", "smooth_hinge", "leverage", "groups", "spam", "loo_cnn", "loo_cnn_stationary",
    "loo_cnn_truths", "lds", "fragility", "attack_group", "attack_single",
)  # fmt: skip
ATTACKS = ("attack_group", "attack_single")
NEEDED = {
    "loo_cnn": ("states", "changes"),
    "loo_cnn_stationary": ("states", "theta"),
    "loo_cnn_truths": ("states",),
    "lds": ("lds", "mean_change"),
    "fragility": ("index",),
    "attack_group": ("losses", "movement", "flipped", "margin_after", "picture_delta"),
    "attack_single": ("attempts", "images", "iterations", "ranked"),
}
LONGEST = 150.0  # seconds that the repetition of a whole run, or of a job, may have taken
LONGEST_JOB = 600.0  # the same for a job of a sweep that has no shorter one
WITHIN = 2e-3  # relative; 1 % is five times that, two machines differ by far less
# What is below is rounding, not a result: of an array against its largest, and of a single number.
ROUNDING, ROUNDING_ALONE = 1e-9, 1e-8
# A network computes the features, or is trained, in float32. Two processors order its sums differently, so do
# blocks of other sizes: 1.6e-6 was seen of features, 4e-6 of changes after a retraining.
ROUNDING_OF_A_NETWORK = 1e-5
# Steps along signs make one pixel in a million differ by a whole step: 1e-3 was seen after some tens of them.
ROUNDING_OF_AN_ATTACK = 3e-3
# How a solve or fit ended: below a tolerance that the settings state, and another on each machine. Before an
# attack's first step nothing has moved, so its movement is rounding alone.
NOT_COMPARED = (
    "gradient_norm", "iterations", "residual", "duality_gap", "times", "seconds", "products",
    "passes", "history", "relative_difference", "gradient_difference",
    "at.0.movement",
)  # fmt: skip
NEGATIVE = "hessian.negative"  # eigenvalues; a softmax net has a zero one, whose sign is rounding


class SpotContext(Context):
    """The context of a run that retrains a few of the points of ``record``."""

    def __init__(self, cfg: DictConfig, output: Path, record: Record, points: int, seed: int) -> None:
        super().__init__(cfg, output, "spot")
        self.record, self.points = record, points
        self.draw = np.random.default_rng(seed)
        self.drawn: dict[str, int] = {}

    def retrained(
        self,
        index: np.ndarray,
        work: Callable[[np.ndarray], dict[str, np.ndarray]],
        row: int | None = None,
        axis: int = 0,
        share: int = 1,
        what: str = "points retrained",
    ) -> dict[str, np.ndarray]:
        """A few points by ``work``, the others as the record has them."""
        chosen = self.chosen(len(index), what, share)
        found = {}
        for name, values in work(np.asarray(index)[chosen]).items():
            own = np.moveaxis(values, axis, 0)
            whole = self.record.arrays.get(name)
            if whole is not None and row is not None:
                whole = whole[row] if row < len(whole) else None
            if whole is not None:
                whole = np.moveaxis(np.array(whole), axis, 0)
                if whole.size == len(index) * own[0].size:  # points on two axes, such as flips and repeats
                    whole = whole.reshape(len(index), *own.shape[1:])
            # What the record does not hold (how each fit ended), or holds of another number of points.
            if whole is None or whole.shape[1:] != own.shape[1:] or len(whole) != len(index):
                whole = np.resize(own, (len(index), *own.shape[1:]))
            whole[chosen] = own
            found[name] = np.moveaxis(whole, 0, axis)
        return found

    def chosen(self, total: int, what: str, worth: int, each: int = 1) -> np.ndarray:
        """Positions of as many of ``total`` units, worth so many points, as were asked for; counted."""
        count = min(-(-self.points // worth), total)
        self.drawn[what] = self.drawn.get(what, 0) + count * each
        return np.sort(self.draw.permutation(total)[:count])

    def sample(self, count: int, what: str, each: int = 1, worth: int | None = None) -> np.ndarray | None:
        """Positions of a few of ``count`` units."""
        return self.chosen(count, what, worth or each, each)

    def first(self, count: int, what: str) -> int:
        """As many steps as points were asked for."""
        self.drawn[what] = min(self.points, count)
        return self.drawn[what]

    def earlier(self) -> Record | None:
        """The record that is checked."""
        return self.record

    def recorded(self, name: str) -> np.ndarray | None:
        """The array ``name`` of the record.

        Raises:
            UserError: the record has none.
        """
        return have(self.record, name)


def have(record: Record, name: str) -> np.ndarray:
    """An array of the record; UserError if there is none."""
    if name not in record.arrays:
        raise UserError(f"the record lacks the array {name}, from which the check would go on.")
    return record.arrays[name]


def composed(arguments: list[str]) -> DictConfig:
    """The config of a command, without tracking and on no output of a user's."""
    cli.prepare()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=[*arguments, "tracking=none"])


def check(spec: Spec, record: Record, provenance: Mapping[str, Any], points: int, seed: int) -> Spot:
    """The spot check of one run's record; never raises for what a record or its data lack."""
    try:
        if spec.sweep:
            return of_a_sweep(spec, record, provenance, seed)
        return of_a_run(spec, record, provenance, points, seed)
    except (UserError, OSError) as error:
        return Spot(IMPOSSIBLE, f"its run cannot be repeated here: {error}")


def of_a_run(spec: Spec, record: Record, provenance: Mapping[str, Any], points: int, seed: int) -> Spot:
    """Retrains ``points`` of a run's points, or repeats it whole."""
    name, took = spec.experiment, float(provenance.get("wall_seconds", np.inf))
    if name == "benchmark":
        return Spot(IMPOSSIBLE, "its numbers are times and depend on the machine")
    if name not in APART and took > LONGEST:
        return Spot(IMPOSSIBLE, f"nothing in it can be repeated apart, and the whole took {took:.0f} s")
    for array in NEEDED.get(name, ()):
        have(record, array)
    cfg = composed([*spec.arguments, *as_many_threads(spec.arguments, provenance)])
    with tempfile.TemporaryDirectory(prefix="spot-") as folder:
        context = SpotContext(cfg, Path(folder), record, points, seed)
        again = repeated(cfg, context)
    what = ", ".join(f"{count} {unit}" for unit, count in context.drawn.items()) or "repeated whole"
    found = differences(record, again, rounding(cfg))
    return made_elsewhere(cfg, provenance, found) or judged(found, what)


def as_many_threads(arguments: list[str], provenance: Mapping[str, Any]) -> list[str]:
    """The recorded number of threads as a setting: another number sums in another order."""
    count = provenance.get("machine", {}).get("torch_threads")
    given = any(item.startswith("threads=") for item in arguments)
    return [] if count is None or given else [f"threads={count}"]


def made_elsewhere(cfg: DictConfig, provenance: Mapping[str, Any], found: list[str]) -> Spot | None:
    """What is to be said of differences from an attack that another kind of processor made, if there are any.

    Steps along signs take another path there, so that such differences prove nothing: 0.8 % was seen.
    """
    there = provenance.get("machine", {}).get("processor")
    if not found or cfg.experiment.name not in ATTACKS or there in (None, machine(cfg.device)["processor"]):
        return None
    return Spot(
        IMPOSSIBLE, f"it was made on {there}, whose attacks take another path: {'; '.join(found[:3])}"
    )


def rounding(cfg: DictConfig) -> float:
    """What is rounding in an array, relative to its largest entry."""
    if cfg.experiment.name in ATTACKS:
        return ROUNDING_OF_AN_ATTACK
    single = any(cfg.experiment.get(name) == "float32" for name in ("dtype", "retraining_dtype"))
    return ROUNDING_OF_A_NETWORK if single or cfg.get("backbone") is not None else ROUNDING


def of_a_sweep(spec: Spec, record: Record, provenance: Mapping[str, Any], seed: int) -> Spot:
    """Repeats one job of a sweep, drawn by the seed."""
    rows = [row for row in record.metrics["rows"] if row["status"] == "done"]
    times = {each["part"]: each["seconds"] for each in provenance.get("timings", [])}
    for longest in (LONGEST, LONGEST_JOB):
        short = [row for row in rows if times.get(f"job {row['job']}", np.inf) <= longest]
        if short:
            break
    else:
        return Spot(IMPOSSIBLE, f"each of its jobs took more than {LONGEST_JOB:.0f} s")
    row = short[int(np.random.default_rng(seed).integers(len(short)))]
    fixed = [item for item in spec.arguments if not item.startswith("sweep=")]
    jobs = [item for item in shlex.split(" ".join(fixed)) if item.split("=")[0] not in row["overrides"]]
    jobs += as_many_threads(jobs, provenance)
    cfg = composed([*jobs, *(f"{key}={value}" for key, value in row["overrides"].items())])
    with tempfile.TemporaryDirectory(prefix="spot-") as folder:
        again = repeated(cfg, Context(cfg, Path(folder), "spot"))
    found = unlike(f"rows.{row['job']}.value", row["value"], value_at(again, record.metrics["y"]))
    own = own_values(record)
    what = f"job {row['job']} of {len(rows)} repeated"
    return judged(own, what) if own else made_elsewhere(cfg, provenance, found) or judged(found, what)


def own_values(record: Record) -> list[str]:
    """Where a sweep's arrays are not its rows: each point is the mean of its jobs."""
    rows = [row["value"] for row in record.metrics["rows"] if row["status"] == "done"]
    y = record.arrays["y"]
    if len(y) == len(rows):
        return [line for place, value in enumerate(rows) for line in unlike(f"y.{place}", y[place], value)]
    return []


def repeated(cfg: DictConfig, context: Context) -> Record:
    """The run of ``cfg`` in ``context``."""
    found: Record = importlib.import_module(f"experiments.{cfg.experiment.name}.experiment").run(cfg, context)
    return found


def judged(found: list[str], what: str) -> Spot:
    """Passed if nothing differs; else the first few differences."""
    if not found:
        return Spot(PASSED, what)
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return Spot(FAILED, f"{what}: {'; '.join(found[:3])}{more}")


def differences(record: Record, again: Record, rounding: float = ROUNDING) -> list[str]:
    """Each number, text and array of ``record`` that is not that of ``again``."""
    ours, theirs = dict(flat(record.metrics)), dict(flat(again.metrics))
    found = [line for name in ours if name in theirs for line in unlike(name, ours[name], theirs[name])]
    found += [f"{name} is not in the repetition" for name in ours if name not in theirs]
    for name, values in record.arrays.items():
        if name not in again.arrays:
            found.append(f"the array {name} is not in the repetition")
        else:
            found += unlike(name, values, np.asarray(again.arrays[name]), rounding)
    return found


def flat(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested dicts and lists by dotted path, less what is not compared."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if not any(word in str(key) for word in NOT_COMPARED):
                yield from flat(value, f"{path}.{key}".strip("."))
    elif isinstance(node, (list, tuple)):
        for place, value in enumerate(node):
            yield from flat(value, f"{path}.{place}")
    else:
        yield path, node


def unlike(name: str, ours: Any, theirs: Any, rounding: float = ROUNDING) -> list[str]:
    """A sentence if two values differ by more than rounding; none for names that are not compared."""
    if any(word in name for word in NOT_COMPARED):
        return []
    a, b = np.asarray(ours), np.asarray(theirs)
    if a.shape != b.shape:
        return [f"{name} has the shape {a.shape}, the repetition {b.shape}"]
    if a.dtype.kind not in "fiu" or b.dtype.kind not in "fiu":
        return [] if np.array_equal(a, b) else [f"{name} is {ours!r:.40}, repeated {theirs!r:.40}"]
    a, b = a.astype(float), b.astype(float)
    size = rounding * float(np.abs(b[np.isfinite(b)]).max(initial=0.0)) if b.ndim else ROUNDING_ALONE
    if name == NEGATIVE and min(a, b) > 0:
        size = 1.0  # the zero one is among them or not
    bad = ~np.isclose(a, b, rtol=WITHIN, atol=size, equal_nan=True)
    if not bad.any():
        return []
    place = tuple(int(i) for i in np.argwhere(bad)[0])
    where = f"[{', '.join(map(str, place))}]" if place else ""
    return [f"{name}{where} is {a[place]:.6g}, repeated {b[place]:.6g}"]
