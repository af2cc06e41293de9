"""``python -m experiments.sweep OUT sweep=NAME x=SETTING y=METRIC [log=x|y|xy] [time=PART]``: what became of
a sweep.

Lists the jobs that conf/sweep/NAME.yaml expects, in the order in which Hydra numbers them: done, failed (its
folder holds no record; with the reason, unless it was killed) or missing (never started). Draws
OUT/sweep_NAME.svg and .png and writes OUT/sweep.json; once every job is done, OUT also is a record like that
of a single run, for python -m experiments.publish.
Exit code 1 unless every job is done. METRIC is a dotted path into the record's metrics, where ``*`` is the
last entry and ``{solver}`` the run's solver; SETTING may be such a path too, for one metric against another.
With time=PART the figure also shows the metric against the seconds of each job's parts whose names begin with
PART.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.errors import UserError
from experiments.records import atomic, provenance
from experiments.records.record import Record
from experiments.suite.cli import CONF, JobFailed, guarded
from experiments.suite.folders import FAILED
from experiments.table import one_line

USAGE = "usage: python -m experiments.sweep OUT sweep=NAME x=SETTING y=METRIC [log=x|y|xy] [time=PART]."


def expected(name: str) -> list[dict[str, str]]:
    """The overrides of every job of a sweep, by job number."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    path = CONF / "sweep" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise UserError(f"there is no sweep {name!r}: choose one of {known}.")
    params = OmegaConf.load(path).hydra.sweeper.params
    overrides = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    choices = []
    for override in overrides:
        key = override.get_key_element()
        values = (
            list(override.sweep_string_iterator())
            if override.is_sweep_override()
            else [override.get_value_element_as_str()]
        )
        choices.append([(key, value) for value in values])
    return [dict(job) for job in itertools.product(*choices)]


def collect(folder: Path, name: str, y: str) -> list[dict[str, Any]]:
    """One row a job: number, overrides, status, value and data set (None unless done), why it failed."""
    rows = []
    for number, overrides in enumerate(expected(name)):
        own = folder / str(number)
        status, value, data, why = "missing", None, None, None
        if (own / "record.json").is_file():
            record = Record.load(own)
            status, value, data = "done", value_at(record, y), record.data
        elif own.is_dir():
            status, why = "failed", reason(own)
        rows.append(
            {
                "job": number,
                "overrides": overrides,
                "status": status,
                "value": value,
                "data": data,
                "why": why,
            }
        )
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
    return float(value)


def seconds_of(record: Record, folder: Path, part: str) -> float:
    """Seconds of the processor, or of the clock where those were not counted, of the parts of the job in
    ``folder`` whose names begin with ``part``.
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


def record_of(
    name: str, rows: list[dict[str, Any]], folder: Path, x: str, y: str, log: str, part: str = ""
) -> Record:
    """The finished jobs as a record of their own, so that a sweep is sealed, drawn and verified like a run.

    Metrics: ``lines``, one for each choice of the settings that vary beside ``x`` ("all" where none does),
    with ``values`` {x: y} and the ``highest`` and ``lowest`` of them; the same two over all lines; ``rows``.
    With ``part``, the array ``seconds`` says how long each job's parts of that name took: of all records
    only a sweep's holds times, because accuracy against time is what it is asked for.
    """
    done = [row for row in rows if row["status"] == "done"]
    records = [Record.load(folder / str(row["job"])) for row in done]
    varied = varied_in([row["overrides"] for row in rows])
    seconds = [
        seconds_of(record, folder / str(row["job"]), part)
        for record, row in zip(records, done, strict=True)
        if part
    ]
    lines: dict[str, dict[str, float]] = {}
    points = []
    for row in done:
        swept = x in row["overrides"]
        at = number_of(row["overrides"][x]) if swept else value_at(Record.load(folder / str(row["job"])), x)
        others = label_of(row["overrides"], varied, x)
        lines.setdefault(others, {})[f"{at:g}"] = row["value"]
        points.append((at, row["value"], others))
    one = {(record.experiment, record.data, record.tier) for record in records}
    if len(one) > 1:
        raise UserError(f"{folder} holds jobs of more than one experiment, data set or tier: {sorted(one)}.")
    experiment, data, tier = one.pop()
    return Record(
        experiment=f"sweep_{name}",
        metrics={
            "experiment": experiment,
            "x": x,
            "y": y,
            "log": log,
            "jobs": len(rows),
            "done": len(done),
            **extremes(points),
            "lines": {
                label: {"values": values, **extremes([point for point in points if point[2] == label])}
                for label, values in lines.items()
            },
            "rows": rows,
        },
        arrays={
            "x": np.array([point[0] for point in points]),
            "y": np.array([point[1] for point in points]),
            "line": np.array([list(lines).index(point[2]) for point in points]),
            **({"seconds": np.array(seconds)} if part else {}),
        },
        captions={
            f"sweep_{name}": f"{y} against {x} ({experiment}, {data}, {len(done)} of {len(rows)} jobs)."
        },
        deviations=list(dict.fromkeys(note for record in records for note in record.deviations)),
        certificates=[
            {"job": row["job"], **record.certificates[0]}
            for row, record in zip(done, records, strict=True)
            if record.certificates
        ],
        data=data,
        tier=tier,
    )


def varied_in(jobs: list[dict[str, str]]) -> list[str]:
    """The settings that differ between jobs."""
    return [key for key in jobs[0] if len({job[key] for job in jobs}) > 1]


def label_of(overrides: Mapping[str, str], varied: list[str], x: str) -> str:
    """The name of a job's line: the settings that vary beside ``x``; "all" where none does."""
    return ", ".join(f"{key.split('.')[-1]} {overrides[key]}" for key in varied if key != x) or "all"


def extremes(points: list[tuple[float, float, str]]) -> dict[str, dict[str, Any]]:
    """Where the metric is highest and lowest; empty where every value is NaN."""
    known = [point for point in points if not math.isnan(point[1])]
    return {
        name: dict(zip(("x", "y", "line"), pick(known, key=lambda point: point[1]), strict=True))
        for name, pick in (("highest", max), ("lowest", min))
        if known
    }


def provenance_of(record: Record, folder: Path, name: str) -> dict[str, Any]:
    """The first job's provenance, with one timing a job and the sweep's own command."""
    jobs = [provenance.read(folder / str(job)) for job in range(len(record.arrays["x"]))]
    timings = [
        {"part": f"job {number}", "seconds": job["wall_seconds"], "peak_mib": job["peak_mib"]}
        for number, job in enumerate(jobs)
    ]
    kept = ("code", "versions", "machine", "data", "seed", "started_utc")
    return {key: jobs[0][key] for key in kept} | {
        "command": ["python", "-m", "experiments.sweep", *sys.argv[1:]],
        "sweep": f"conf/sweep/{name}.yaml",
        "commits": sorted({str(job["code"]["git_commit"]) for job in jobs}),
        "wall_seconds": round(sum(job["wall_seconds"] for job in jobs), 2),
        "peak_mib": max(job["peak_mib"] for job in jobs),
        "timings": timings,
    }


def save(record: Record, name: str, folder: Path) -> None:
    """Makes ``folder`` itself the record of the whole sweep, as a single run's folder is of its own."""
    record.save(folder)
    head = f"# Job 0; every job's own settings are in record.json (conf/sweep/{name}.yaml).\n"
    atomic.write_text(folder / "config.yaml", head + (folder / "0" / "config.yaml").read_text())
    atomic.write_json(folder / "provenance.json", provenance_of(record, folder, name))


def main() -> None:
    """Collects the sweep named on the command line."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:] if "=" in argument)
    folders = [Path(argument) for argument in sys.argv[1:] if "=" not in argument]
    known = {"sweep", "x", "y", "log", "time", "debug"}
    if len(folders) != 1 or not {"sweep", "x", "y"} <= set(options) <= known:
        raise UserError(USAGE)
    rows = collect(folders[0], options["sweep"], options["y"])
    if options["x"] not in rows[0]["overrides"]:
        try:
            collect(folders[0], options["sweep"], options["x"])
        except UserError:
            swept = ", ".join(rows[0]["overrides"])
            raise UserError(
                f"x={options['x']} is not swept and no metric of the records: choose one of {swept}."
            ) from None
    for row in rows:
        settings = " ".join(f"{key}={value}" for key, value in row["overrides"].items())
        shown = "" if row["value"] is None else f"{row['value']:.6g}"
        why = f"  ({row['why']})" * bool(row["why"])
        print(f"{row['job']:>4}  {row['status']:<8} {shown:<12} {settings}{why}")
    done = sum(row["status"] == "done" for row in rows)
    print(f"{done} of {len(rows)} jobs done")
    atomic.write_json(folders[0] / "sweep.json", {"x": options["x"], "y": options["y"], "jobs": rows})
    if done:
        name, log = options["sweep"], options.get("log", "")
        part = options.get("time", "")
        record = record_of(name, rows, folders[0], options["x"], options["y"], log, part)
        if done == len(rows):
            save(record, name, folders[0])
        from experiments.suite.figures import draw

        draw(record, folders[0])
    if done < len(rows):
        raise JobFailed(1)


if __name__ == "__main__":
    guarded(main)
