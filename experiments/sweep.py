"""``python -m experiments.sweep OUT x=SETTING y=METRIC [sweep=NAME] [log=x|y|xy] [time=PART]``: what
became of a sweep.

OUT is the output of any ``--multirun``. Lists its jobs in the order in which Hydra numbers them: done, failed
(its folder holds no record; with the reason, unless it was killed) or missing (never started). Draws
OUT/sweep_NAME.svg and .png and writes OUT/sweep.json and OUT/sweep.csv. Jobs that differ in seeds alone are
averaged: mean, 95 % interval and number stand in the table, the CSV and the figure. Once every job is done,
OUT also is a record like that of a single run, for python -m experiments.publish.
Exit code 1 unless every job is done. METRIC is a dotted path into the record's metrics, where ``*`` is the
last entry and ``{solver}`` the run's solver; SETTING may be such a path too, for one metric against another.
With time=PART the figure also shows the metric against the seconds of each job's parts whose names begin with
PART. NAME is that of conf/sweep, else ``multirun``.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

from experiments.errors import UserError
from experiments.records import atomic
from experiments.suite.cli import JobFailed, guarded
from experiments.suite.folders import SWEEP_MARKER
from experiments.suite.sweeps import Point, collect, name_of, points_of, record_of, save, table_of

USAGE = "usage: python -m experiments.sweep OUT x=SETTING y=METRIC [sweep=NAME] [log=x|y|xy] [time=PART]."


def show(rows: list[dict[str, Any]]) -> None:
    """Prints a line a job, and how many are done."""
    for row in rows:
        settings = " ".join(f"{key}={value}" for key, value in row["overrides"].items())
        value = "" if row["value"] is None else f"{row['value']:.6g}"
        why = f"  ({row['why']})" * bool(row["why"])
        print(f"{row['job']:>4}  {row['status']:<8} {value:<12} {settings}{why}")
    print(f"{sum(row['status'] == 'done' for row in rows)} of {len(rows)} jobs done")


def show_means(points: list[Point], y: str) -> None:
    """Prints mean, interval and number of each group of seeds; nothing where there is one job a group."""
    if all(len(point.y) < 2 for point in points):
        return
    print(f"\n{y}: mean over seeds, 95 % interval, n")
    for point in points:
        settings = " ".join(f"{key}={value}" for key, value in point.settings.items()) or "all jobs"
        half = point.half_width
        interval = "" if math.isnan(half) else f"[{point.mean - half:.6g}, {point.mean + half:.6g}]"
        print(f"{point.mean:<12.6g} {interval:<26} {len(point.y):>3}  {settings}")


def main() -> None:
    """Collects the sweep named on the command line."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:] if "=" in argument)
    folders = [Path(argument) for argument in sys.argv[1:] if "=" not in argument]
    if len(folders) != 1 or not {"x", "y"} <= set(options) <= {"sweep", "x", "y", "log", "time", "debug"}:
        raise UserError(USAGE)
    folder, x, y = folders[0], options["x"], options["y"]
    listed = (folder / SWEEP_MARKER).is_file()
    name = options.get("sweep") or (name_of(folder) if listed else None)
    rows = collect(folder, name, y)
    if x not in rows[0]["overrides"]:
        try:
            collect(folder, name, x)
        except UserError:
            swept = ", ".join(rows[0]["overrides"])
            raise UserError(
                f"x={x} is not swept and no metric of the records: choose one of {swept}."
            ) from None
    show(rows)
    atomic.write_json(folder / "sweep.json", {"x": x, "y": y, "jobs": rows})
    done = sum(row["status"] == "done" for row in rows)
    if done:
        part = options.get("time", "")
        record = record_of(str(name), rows, folder, x, y, options.get("log", ""), part)
        points = points_of(rows, folder, x, part)
        show_means(points, y)
        atomic.write_text(folder / "sweep.csv", table_of(points, x, y))
        if done == len(rows):
            save(record, folder, ["python", "-m", "experiments.sweep", *sys.argv[1:]])
        from experiments.suite.figures import draw

        draw(record, folder)
    if done < len(rows):
        raise JobFailed(1)


if __name__ == "__main__":
    guarded(main)
