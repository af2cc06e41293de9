"""Claims: what the paper says, what is expected here, and whether a record bears it out.

``conf/claims/RUN.yaml`` holds a ``run`` (an experiment at one tier, its command and measured cost) and its
``claims``, each on a metric of that run's record. This module reads it strictly and judges one claim against
one record; ``experiments.verify`` does so for many.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import yaml

from experiments.records.errors import ConfigError
from experiments.records.places import CONF, WORK
from experiments.records.record import Record
from experiments.records.table import shown

PATH = CONF / "claims"
TIERS = ("smoke", "paper", "gpu")
TOLERANCES = ("deterministic", "stochastic")  # stochastic: another seed gives another number
REPRODUCED, PARTLY, NOT_REPRODUCED, NOT_RUN = "reproduced", "partly", "not reproduced", "not run"
STATUSES = (REPRODUCED, PARTLY, NOT_REPRODUCED, NOT_RUN)
# Embedded data are not the paper's: their claims are about the method, and nothing is reproduced by them.
METHOD_WORDS = {
    REPRODUCED: "holds",
    PARTLY: "holds partly",
    NOT_REPRODUCED: "does not hold",
    NOT_RUN: NOT_RUN,
}
MARK = "†"  # beside a bound that was set or moved after its number was seen
# Plain values only, as yaml.safe_load makes them; libyaml, where PyYAML has it, parses ten times as fast.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
AGREEMENT = 1e-9  # relative: a metric and the same number computed again from the record's arrays

T = TypeVar("T")


@dataclass(frozen=True)
class Bound:
    """What a metric must satisfy: exactly one of the five. A list satisfies it if each of its items does."""

    at_least: float | None = None
    at_most: float | None = None
    between: tuple[float, float] | None = None
    near: tuple[float, float] | None = None  # value, largest distance
    equals: Any = None

    @classmethod
    def read(cls, given: Any, where: str) -> Bound:
        """From YAML; raises ConfigError for anything but one known kind with numbers in it."""
        kinds = [field.name for field in fields(cls)]
        if not isinstance(given, Mapping) or len(given) != 1 or not set(given) <= set(kinds):
            raise ConfigError(f"{where}: a bound is one of {', '.join(kinds)}, not {given!r}.")
        (kind, value), *_ = given.items()
        if kind in ("between", "near"):
            if not isinstance(value, list) or len(value) != 2 or not all(map(_is_number, value)):
                raise ConfigError(f"{where}: {kind} needs two numbers, not {value!r}.")
            value = tuple(value)
            if (kind == "between" and value[0] > value[1]) or (kind == "near" and value[1] <= 0):
                raise ConfigError(f"{where}: no number satisfies {kind} {list(value)}.")
        elif kind != "equals" and not _is_number(value):
            raise ConfigError(f"{where}: {kind} needs a number, not {value!r}.")
        return cls(**{kind: value})

    @property
    def limits(self) -> tuple[float, float]:
        """Smallest and largest number allowed (not for ``equals``)."""
        if self.between is not None:
            return self.between
        if self.near is not None:
            return self.near[0] - self.near[1], self.near[0] + self.near[1]
        low = -math.inf if self.at_least is None else self.at_least
        high = math.inf if self.at_most is None else self.at_most
        return low, high

    def holds(self, value: Any) -> bool:
        """Whether ``value`` satisfies it; what is missing, empty, not finite or no number never does."""
        if self.equals is not None:
            alike = isinstance(value, type(self.equals)) or (_is_number(value) and _is_number(self.equals))
            return alike and isinstance(value, bool) == isinstance(self.equals, bool) and value == self.equals
        if isinstance(value, (list, tuple)):
            return len(value) > 0 and all(self.holds(item) for item in value)
        low, high = self.limits
        return _is_number(value) and low <= value <= high

    def violations(self) -> list[Any]:
        """Values just outside: each of them must fail."""
        if self.equals is not None:
            return [None, _other(self.equals)]
        found: list[Any] = [None, math.nan, math.inf, -math.inf]
        for limit, sign in zip(self.limits, (-1, 1), strict=True):
            if math.isfinite(limit):
                found.append(limit + sign * max(1e-9, 1e-6 * abs(limit)))
        return found

    def __str__(self) -> str:
        if self.equals is not None:
            return f"= {shown(self.equals)}"
        if self.near is not None:
            return f"{shown(self.near[0])} ± {shown(self.near[1])}"
        if self.between is not None:
            return f"{shown(self.between[0])} to {shown(self.between[1])}"
        return f"≥ {shown(self.at_least)}" if self.at_least is not None else f"≤ {shown(self.at_most)}"


@dataclass(frozen=True)
class Spec:
    """A run: an experiment at one tier. ``name`` is its folder below results/ or below a verification.

    ``sweep``: the run is a sweep (``overrides`` name it), and this is what its collector is told.
    """

    name: str
    overrides: str
    tier: str
    minutes: float | None = None  # of its record, where there is one, else an estimate by hand
    gib: float | None = None  # peak memory, likewise
    all_cores: bool = False  # it uses all cores by itself, so it runs alone
    section: str | None = None  # of the paper; these three hold for each claim that does not say otherwise
    figure: str = ""
    tolerance: str = "deterministic"
    sweep: str = ""
    extension: bool = False  # it asks what the paper does not; it runs after the paper's own figures
    measured: bool = False  # minutes and gib are those of a record

    @property
    def cost(self) -> str:
        """Minutes and memory in words; "" if nothing is known."""
        parts = [] if self.minutes is None else [f"{self.minutes:.3g} min"]
        parts += [] if self.gib is None else [f"{self.gib:.3g} GiB"]
        return ", ".join(parts) + " (an estimate)" * (bool(parts) and not self.measured)

    @property
    def arguments(self) -> list[str]:
        """The overrides as a list."""
        return shlex.split(self.overrides)

    @property
    def experiment(self) -> str:
        """The experiment's name."""
        return dict(item.split("=", 1) for item in self.arguments)["experiment"]

    @property
    def recorded_as(self) -> str:
        """The name that its record gives itself."""
        given = dict(item.split("=", 1) for item in self.arguments)
        return f"sweep_{given['sweep']}" if self.sweep else given["experiment"]

    @property
    def command(self) -> str:
        """The exact command; the real data's folder comes from data.mirror= or INFLUENCE_MIRROR."""
        if self.sweep:
            jobs = f"python -m experiments --multirun {self.overrides} output=OUT"
            return f"{jobs} && python -m experiments.sweep OUT {self.sweep}"
        return f"python -m experiments {self.overrides}"


@dataclass(frozen=True)
class Claim:
    """One claim. ``metric`` may be compared with a second one: ``minus`` (difference) or ``over`` (ratio)."""

    id: str
    sentence: str
    section: str
    figure: str
    run: Spec
    metric: str
    paper: Any  # the paper's value: a number, a text, or null where it gives none
    where: str  # where that value stands
    bound: Bound
    reason: str  # why this bound
    fails_when: str  # an input, a mistake or a setting with which the claim is false
    tolerance: str
    minus: str | None = None
    over: str | None = None
    from_arrays: Mapping[str, Any] | None = None  # {statistic: [arrays]}: computes the metric again
    partly: Bound | None = None
    partly_reason: str | None = None
    moved: Sequence[Mapping[str, Any]] = ()  # date, old bound and reason of each change made after a run
    seen: Mapping[str, Any] | None = None  # date and what was seen before the bound was set
    headline: bool = False  # shown in the README's table even where it is reproduced
    missed: str = ""  # what is known of it where the record does not bear it out; it stays a miss

    @property
    def tier(self) -> str:
        """The tier of its run."""
        return self.run.tier

    @property
    def after_its_number(self) -> bool:
        """Whether the bound was set or moved after its number was seen; every table marks it."""
        return self.seen is not None or bool(self.moved)


@dataclass(frozen=True)
class Verdict:
    """A claim's outcome. ``accepted`` is false for every miss: those decide the exit code."""

    claim: Claim
    status: str
    ours: Any = None
    remark: str = ""

    @property
    def accepted(self) -> bool:
        """Reproduced, or partly where the claim says what partly means and why."""
        return self.status in (REPRODUCED, PARTLY)

    @property
    def word(self) -> str:
        """The status as tables print it."""
        return METHOD_WORDS[self.status] if self.claim.tier == "smoke" else self.status


def measured(spec: Spec, results: Path) -> Spec:
    """``spec`` with the minutes and the memory of its record in ``results``, where there is one."""
    try:
        content = json.loads((results / spec.name / "provenance.json").read_text())
        took, peak = float(content["wall_seconds"]), float(content["peak_mib"])
    except (OSError, ValueError, KeyError, TypeError):
        return spec
    return replace(spec, minutes=took / 60, gib=peak / 1024, measured=True)


def load(path: Path = PATH, results: Path = WORK / "results") -> list[Claim]:
    """All claims of a folder of YAML files, by tier, section and run; costs are those of the records.

    Raises:
        ConfigError: a key, a tier, a bound or an id is not as it should be.
    """
    found: list[Claim] = []
    for file in path.rglob("*.yaml"):
        name = file.relative_to(path).with_suffix("").as_posix()
        content = _LOADER(file.read_text()).get_single_data()
        if not isinstance(content, Mapping) or set(content) != {"run", "claims"}:
            raise ConfigError(f"{file.name}: a file of claims has the keys run and claims, and no other.")
        spec = _build(Spec, {"name": name, **content["run"]}, f"run {name}")
        if spec.tier not in TIERS:
            raise ConfigError(f"run {name}: tier {spec.tier!r} is unknown; choose {', '.join(TIERS)}.")
        if "measured" in content["run"]:
            raise ConfigError(f"run {name}: measured is not set by hand: it says that there is a record.")
        spec = measured(spec, results)
        found += [_claim(given, spec) for given in content["claims"]]
    ids = [claim.id for claim in found]
    repeated = sorted({name for name in ids if ids.count(name) > 1})
    if repeated:
        raise ConfigError(f"the ids {', '.join(repeated)} occur twice.")
    return sorted(found, key=lambda claim: (TIERS.index(claim.tier), claim.run.section or "", claim.run.name))


def _claim(given: Mapping[str, Any], spec: Spec) -> Claim:
    where = f"claim {given.get('id', given)}"
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", str(given.get("id"))):
        raise ConfigError(f"{where}: an id is made of lower-case letters, digits and hyphens.")
    if "run" in given:
        raise ConfigError(f"{where}: unknown run: a claim's run is that of its file.")
    values = {"section": spec.section, "figure": spec.figure, "tolerance": spec.tolerance} | dict(given)
    if values["tolerance"] not in TOLERANCES:
        raise ConfigError(f"{where}: the tolerance is {' or '.join(TOLERANCES)}.")
    if ("partly" in values) != ("partly_reason" in values):
        raise ConfigError(f"{where}: partly and partly_reason go together.")
    if "minus" in values and "over" in values:
        raise ConfigError(f"{where}: give minus or over, not both.")
    if "seen" in values and set(values["seen"]) != {"date", "what"}:
        raise ConfigError(f"{where}: seen has a date and a what.")
    if spec.tier == "smoke" and values.get("paper") is not None:
        raise ConfigError(f"{where}: embedded data have no value in the paper; paper must be null.")
    values["run"] = spec
    values["bound"] = Bound.read(values.get("bound"), where)
    if "partly" in values:
        values["partly"] = Bound.read(values["partly"], where)
    return _build(Claim, values, where)


def _build(cls: Callable[..., T], values: Mapping[str, Any], where: str) -> T:
    known = {field.name: field for field in fields(cast(Any, cls))}
    unknown = set(values) - set(known)
    missing = [name for name, field in known.items() if field.default is MISSING and name not in values]
    if unknown or missing:
        words = [f"unknown {', '.join(sorted(unknown))}"] * bool(unknown)
        words += [f"missing {', '.join(missing)}"] * bool(missing)
        raise ConfigError(f"{where}: {'; '.join(words)} (it has {', '.join(known)}).")
    return cls(**values)


def lookup(metrics: Any, path: str) -> Any:
    """The value at a dotted path through dicts and lists (a key may hold dots itself), or None."""
    if not path:
        return metrics
    parts = path.split(".")
    if isinstance(metrics, (list, tuple)):
        position = int(parts[0]) if re.fullmatch(r"-?\d+", parts[0]) else None
        if position is None or not -len(metrics) <= position < len(metrics):
            return None
        return lookup(metrics[position], ".".join(parts[1:]))
    if not isinstance(metrics, Mapping):
        return None
    for length in range(len(parts), 0, -1):
        key = ".".join(parts[:length])
        if key in metrics:
            return lookup(metrics[key], ".".join(parts[length:]))
    return None


def value_of(claim: Claim, record: Record) -> Any:
    """The number that the claim is about, or None if the record has not got it."""
    value = lookup(record.metrics, claim.metric)
    other = claim.minus or claim.over
    if other is None:
        return value
    second = lookup(record.metrics, other)
    if isinstance(value, (list, tuple)) and isinstance(second, (list, tuple)) and len(value) == len(second):
        pairs = list(zip(value, second, strict=True))
    else:
        pairs = [(value, second)]
    if not all(_is_number(a) and _is_number(b) for a, b in pairs):
        return None
    if claim.over and any(b == 0 for _, b in pairs):
        return math.nan
    found = [a - b if claim.minus else a / b for a, b in pairs]
    return found if isinstance(value, (list, tuple)) else found[0]


def judge(claim: Claim, record: Record) -> Verdict:
    """The claim against a record."""
    value = value_of(claim, record)
    if value is None:
        return Verdict(claim, NOT_REPRODUCED, None, f"the record has no {claim.metric}")
    if record.experiment != claim.run.recorded_as or record.tier != claim.tier:
        remark = f"the record is one of {record.experiment} at tier {record.tier}"
        return Verdict(claim, NOT_REPRODUCED, value, remark)
    if claim.from_arrays is not None:
        again = recomputed(claim.from_arrays, record)
        stated = lookup(record.metrics, claim.metric)
        if again is None:
            return Verdict(claim, NOT_REPRODUCED, value, "the record lacks the arrays that show its metric")
        if not _is_number(stated) or abs(again - stated) > AGREEMENT * max(abs(again), 1e-12):
            remark = f"the record's arrays give {shown(again)}, not {shown(stated)}"
            return Verdict(claim, NOT_REPRODUCED, value, remark)
    if claim.bound.holds(value):
        return Verdict(claim, REPRODUCED, value)
    if claim.partly is not None and claim.partly.holds(value):
        return Verdict(claim, PARTLY, value, claim.partly_reason or "")
    known = f"; {claim.missed}" * bool(claim.missed)
    return Verdict(claim, NOT_REPRODUCED, value, f"outside {claim.bound}{known}")


def recomputed(source: Mapping[str, Any], record: Record) -> float | None:
    """The statistic named in ``from_arrays`` of the record's arrays, or None if they are not there."""
    from experiments.records.agreement import agreement, least_lead

    (name, arrays), *_ = source.items()
    parts = [str(array).partition(".") for array in arrays]  # "fixed.1": the second row of fixed
    if not all(array in record.arrays for array, _, _ in parts):
        return None
    found = [
        np.asarray(record.arrays[array][int(row)] if row else record.arrays[array], dtype=np.float64)
        for array, _, row in parts
    ]
    if name == "least_lead":
        return least_lead(*found)
    if name == "mean":
        return float(found[0].mean())
    if name == "min":
        return float(found[0].min())
    if name == "max":
        return float(found[0].max())
    return agreement(found[0], found[1])[name]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _other(value: Any) -> Any:
    """A value of the same kind that is not ``value``."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return [*value, 0] if isinstance(value, list) else f"{value}?"
