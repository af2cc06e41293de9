"""A sweep's jobs as one record: which are done, and the metric against a setting, averaged over seeds.

Every ``--multirun`` can be collected: Hydra's ``multirun.yaml`` in its folder says which jobs to expect. A
setting whose name ends in ``seed`` is not an axis: jobs that differ in seeds alone are averaged, and the
interval is Student's for a mean (95 %).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.records import atomic, provenance
from experiments.records.csv import line as csv_line
from experiments.records.errors import UserError
from experiments.records.places import CONF
from experiments.records.record import Record
from experiments.records.table import one_line
from experiments.suite.folders import FAILED, FREE, OVERRIDES, SWEEP_MARKER, sweep_overrides

LEVEL = 0.95  # of the interval of a mean over seeds


def expected(name: str) -> list[dict[str, str]]:
    """The overrides of every job of ``conf/sweep/NAME.yaml``, by job number."""
    from omegaconf import OmegaConf

    path = CONF / "sweep" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise UserError(f"there is no sweep {name!r}: choose one of {known}.")
    params = OmegaConf.load(path).hydra.sweeper.params
    return product([f"{key}={value}" for key, value in params.items()])


def started(folder: Path) -> list[dict[str, str]]:
    """The overrides of every job of the sweep that was started in ``folder``, by job number."""
    from omegaconf import OmegaConf

    task = sweep_overrides(folder)
    sweeper = OmegaConf.select(OmegaConf.load(folder / SWEEP_MARKER), "hydra.sweeper") or {}
    if "BasicSweeper" not in str(sweeper.get("_target_") or "BasicSweeper"):
        return drawn(folder)
    params = sweeper.get("params") or {}
    return product([*(f"{key}={value}" for key, value in params.items()), *task])


def drawn(folder: Path) -> list[dict[str, str]]:
    """The overrides of every job of a search, whose sweeper draws them as it goes, by job number.

    Raises:
        UserError: no job has begun, or one was lost.
    """
    jobs = {
        int(path.parent.name): path for path in folder.glob(f"*/{OVERRIDES}") if path.parent.name.isdecimal()
    }
    lost = sorted(set(range(max(jobs, default=0) + 1)) - set(jobs))
    if lost:
        raise UserError(f"{folder} lacks job {lost[0]} of its search: it cannot be collected.")
    found = [
        dict(item.lstrip("+").split("=", 1) for item in json.loads(jobs[number].read_text()))
        for number in sorted(jobs)
    ]
    known = {key for job in found for key in job}
    return [{key: job.get(key, "") for key in sorted(known)} for job in found]


def name_of(folder: Path) -> str:
    """The sweep's choice of conf/sweep, or ``multirun``."""
    for override in sweep_overrides(folder):
        key, _, value = override.partition("=")
        if key.lstrip("+") == "sweep" and value != "null":
            return value
    return "multirun"


def product(overrides: Sequence[str]) -> list[dict[str, str]]:
    """Hydra's order: the first override varies slowest; a later one of the same key replaces an earlier."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    choices: dict[str, list[str]] = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.get_key_element()
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise UserError(f"{key} is swept over a continuous range: only listed jobs can be collected.")
        choices[key] = (
            list(override.sweep_string_iterator())
            if override.is_sweep_override()
            else [override.get_value_element_as_str()]
        )
    jobs: list[dict[str, str]] = [{}]
    for key, values in choices.items():
        if key not in FREE and not key.startswith("hydra"):
            jobs = [job | {key: value} for job in jobs for value in values]
    return jobs


def collect(folder: Path, name: str | None, y: str) -> list[dict[str, Any]]:
    """One row per job: number, overrides, status, value and data set (None unless done), why it failed.

    name: a sweep of conf/sweep, for a folder without Hydra's list of its jobs.

    Raises:
        UserError: the folder is not that of a sweep.
    """
    listed = (folder / SWEEP_MARKER).is_file()
    if not listed and name is None:
        raise UserError(f"{folder} holds no {SWEEP_MARKER}: name the output of a --multirun.")
    rows = []
    for number, overrides in enumerate(started(folder) if listed else expected(str(name))):
        own = folder / str(number)
        status, value, data, why = "missing", None, None, None
        if (own / "record.json").is_file():
            record = Record.load(own)
            status, value, data = "done", value_at(record, y), record.data
        elif own.is_dir():
            status, why = "failed", reason(own)
        row = {"job": number, "overrides": overrides, "status": status, "value": value}
        rows.append(row | {"data": data, "why": why})
    return rows


def reason(folder: Path) -> str:
    """What the failed job in ``folder`` said, in one line."""
    path = folder / FAILED
    return one_line(path.read_text()) if path.is_file() else "ended without a word: killed, or still running"


def value_at(record: Record, path: str) -> float:
    """The number at ``path`` of the record's metrics."""
    value: Any = record.metrics
    for part in path.replace("{solver}", str(record.metrics.get("solver"))).split("."):
        if not isinstance(value, Mapping) or not value or (part != "*" and part not in value):
            raise UserError(f"the records have no metric {path!r}: name one of their record.json.")
        value = value[sorted(value)[-1] if part == "*" else part]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"the metric {path!r} is no number: name one of the numbers in their record.json.")
    return float(value)


def seconds_of(record: Record, folder: Path, part: str) -> float:
    """Seconds of the processor, or of the clock where those were not counted, of the parts of the job in
    ``folder`` whose names begin with ``part``.

    Raises:
        UserError: the job has no such part.
    """
    prefix = part.replace("{solver}", str(record.metrics.get("solver")))
    timings = provenance.read(folder)["timings"]
    found = [
        each.get("processor_seconds", each["seconds"]) for each in timings if each["part"].startswith(prefix)
    ]
    if not found:
        known = ", ".join(each["part"] for each in timings)
        raise UserError(f"no part of {folder} begins with {prefix!r}: choose one of {known}.")
    return round(sum(found), 4)


def number_of(text: str) -> float:
    """A setting as a number; the last one of a list."""
    try:
        return float(text.strip("[]").split(",")[-1])
    except ValueError:
        raise UserError(f"x must be a setting with numbers, not {text!r}.") from None


@dataclass
class Point:
    """Jobs that differ in seeds alone: the place on the axis, the line, and one value a job."""

    line: str
    settings: dict[str, str]
    x: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def at(self) -> float:
        """Mean place on the axis: a metric there differs from seed to seed too."""
        return float(np.mean(self.x))

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.y))

    @property
    def half_width(self) -> float:
        """Half of the 95 % interval of the mean; NaN for a single job."""
        if len(self.y) < 2:
            return math.nan
        from scipy.stats import t

        error = float(np.std(self.y, ddof=1)) / math.sqrt(len(self.y))
        return float(t.ppf((1 + LEVEL) / 2, len(self.y) - 1)) * error


def points_of(rows: Sequence[dict[str, Any]], folder: Path, x: str, part: str) -> list[Point]:
    """The done jobs by place and line, in the order of the first job of each."""
    varied = varied_in([row["overrides"] for row in rows])
    seeds = seeds_in(varied, x)
    points: dict[Any, Point] = {}
    for row in rows:
        if row["status"] != "done":
            continue
        own, overrides = folder / str(row["job"]), row["overrides"]
        settings = {key: overrides[key] for key in varied if key not in seeds}
        point = points.setdefault(tuple(settings.items()), Point(label_of(overrides, varied, x), settings))
        record = Record.load(own)
        point.x.append(number_of(overrides[x]) if x in overrides else value_at(record, x))
        point.y.append(row["value"])
        if part:
            point.seconds.append(seconds_of(record, own, part))
    return list(points.values())


def record_of(
    name: str, rows: list[dict[str, Any]], folder: Path, x: str, y: str, log: str, part: str = ""
) -> Record:
    """The sweep as a record: the metric against the setting, a line for each choice of the others.

    part: the seconds of these parts stand beside the values; only a sweep's record holds times, because
    accuracy against time is what it is asked for.

    Raises:
        UserError: the jobs are of more than one experiment, data set or tier.
    """
    done = [row for row in rows if row["status"] == "done"]
    records = [Record.load(folder / str(row["job"])) for row in done]
    one = {(record.experiment, record.data, record.tier) for record in records}
    if len(one) > 1:
        raise UserError(f"{folder} holds jobs of more than one experiment, data set or tier: {sorted(one)}.")
    experiment, data, tier = one.pop()
    points = points_of(rows, folder, x, part)
    order = list(dict.fromkeys(point.line for point in points))
    seeded = any(len(point.y) > 1 for point in points)
    lines = {
        label: {
            "values": {f"{point.at:g}": point.mean for point in points if point.line == label},
            **extremes([(p.at, p.mean, p.line) for p in points if p.line == label]),
        }
        for label in order
    }
    spread = {
        "half_width": np.array([point.half_width for point in points]),
        "seeds": np.array([len(point.y) for point in points]),
    }
    return Record(
        experiment=f"sweep_{name}",
        metrics={
            "experiment": experiment,
            "x": x,
            "y": y,
            "log": log,
            "jobs": len(rows),
            "done": len(done),
            **extremes([(point.at, point.mean, point.line) for point in points]),
            "order": order,  # JSON sorts the keys of lines
            "lines": lines,
            "rows": rows,
        },
        arrays={
            "x": np.array([point.at for point in points]),
            "y": np.array([point.mean for point in points]),
            "line": np.array([order.index(point.line) for point in points]),
            **({"seconds": np.array([np.mean(point.seconds) for point in points])} if part else {}),
            **(spread if seeded else {}),
        },
        captions={f"sweep_{name}": caption(x, y, experiment, data, len(done), len(rows), seeded)},
        deviations=list(dict.fromkeys(note for record in records for note in record.deviations)),
        certificates=[
            {"job": row["job"], **record.certificates[0]}
            for row, record in zip(done, records, strict=True)
            if record.certificates
        ],
        data=data,
        tier=tier,
    )


def caption(x: str, y: str, experiment: str, data: str, done: int, jobs: int, seeded: bool) -> str:
    """One sentence, and one about the intervals."""
    bars = " Bars: 95 % intervals of the mean over seeds." if seeded else ""
    return f"{y} against {x} ({experiment}, {data}, {done} of {jobs} jobs).{bars}"


def table_of(points: Sequence[Point], x: str, y: str) -> str:
    """The points as CSV: settings, place, mean, 95 % interval, number of jobs."""
    keys = list(points[0].settings) if points else []
    text = csv_line([*keys, x, y, "low", "high", "n"] if x not in keys else [*keys, y, "low", "high", "n"])
    for point in points:
        half = point.half_width
        interval = ["", ""] if math.isnan(half) else [point.mean - half, point.mean + half]
        place = [] if x in keys else [point.at]
        text += csv_line([*point.settings.values(), *place, point.mean, *interval, len(point.y)])
    return text


def varied_in(jobs: Sequence[Mapping[str, str]]) -> list[str]:
    """The settings that differ between jobs."""
    return [key for key in jobs[0] if len({job[key] for job in jobs}) > 1]


def seeds_in(varied: Sequence[str], x: str) -> list[str]:
    """The settings that are averaged over: seeds, unless one is the axis."""
    return [key for key in varied if key.split(".")[-1].endswith("seed") and key != x]


def label_of(overrides: Mapping[str, str], varied: Sequence[str], x: str) -> str:
    """The name of a job's line: the settings that vary beside ``x`` and the seeds; "all" where none does."""
    others = [key for key in varied if key != x and key not in seeds_in(varied, x)]
    return ", ".join(f"{key.split('.')[-1]} {overrides[key]}" for key in others) or "all"


def extremes(points: list[tuple[float, float, str]]) -> dict[str, dict[str, Any]]:
    """Where the metric is highest and lowest; empty if every value is NaN."""
    known = [point for point in points if not math.isnan(point[1])]
    if not known:
        return {}
    ends = {
        "highest": max(known, key=lambda point: point[1]),
        "lowest": min(known, key=lambda point: point[1]),
    }
    return {name: dict(zip(("x", "y", "line"), point, strict=True)) for name, point in ends.items()}


def provenance_of(record: Record, folder: Path, command: list[str]) -> dict[str, Any]:
    """The first job's provenance, with one timing per job and the sweep's own command."""
    numbers = [row["job"] for row in record.metrics["rows"] if row["status"] == "done"]
    jobs = [provenance.read(folder / str(number)) for number in numbers]
    timings = [
        {"part": f"job {number}", "seconds": job["wall_seconds"], "peak_mib": job["peak_mib"]}
        for number, job in zip(numbers, jobs, strict=True)
    ]
    kept = ("code", "versions", "machine", "data", "seed", "started_utc")
    return {key: jobs[0][key] for key in kept} | {
        "command": command,
        "sweep": sweep_overrides(folder) if (folder / SWEEP_MARKER).is_file() else record.experiment,
        "commits": sorted({str(job["code"]["git_commit"]) for job in jobs}),
        "wall_seconds": round(sum(job["wall_seconds"] for job in jobs), 2),
        "peak_mib": max(job["peak_mib"] for job in jobs),
        "timings": timings,
    }


def save(record: Record, folder: Path, command: list[str]) -> None:
    """Makes ``folder`` itself the record of the whole sweep, as a single run's folder is of its own."""
    record.save(folder)
    head = "# Job 0; every job's own settings are in record.json.\n"
    atomic.write_text(folder / "config.yaml", head + (folder / "0" / "config.yaml").read_text())
    atomic.write_json(folder / "provenance.json", provenance_of(record, folder, command))
