"""``python -m experiments.sweep OUT x=SETTING y=METRIC [sweep=NAME] [log=x|y|xy] [time=PART]``: collects a
sweep.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

from experiments.records import atomic
from experiments.records.errors import UserError
from experiments.records.table import fitted
from experiments.suite.commands import Command, Given, Option, Words
from experiments.suite.ending import JobFailed
from experiments.suite.folders import SWEEP_MARKER
from experiments.suite.sweeps import Point, collect, name_of, points_of, record_of, save, table_of

COMMAND = Command(
    "sweep",
    "Collects the jobs of a sweep. OUT is the output of any --multirun. Lists its jobs as Hydra numbers "
    "them: done, failed (with the reason) or missing (never started). Draws OUT/sweep_NAME.svg and .png and "
    "writes OUT/sweep.json and OUT/sweep.csv. Jobs that differ in seeds alone are averaged: the table, the "
    "CSV and the figure give mean, 95 % interval and number. Once every job is done, OUT is also a record "
    "like that of a single run, ready for the command publish.",
    words=Words("OUT", help="output folder of the sweep"),
    options=(
        Option("sweep", None, "name of a file in conf/sweep/; default the one that was run", shown="NAME"),
        Option("x", None, "the swept setting, or a metric of the records", shown="SETTING", required=True),
        Option(
            "y",
            None,
            "dotted path into the metrics of each record; * stands for the last entry, {solver} for the "
            "run's solver",
            shown="METRIC",
            required=True,
        ),
        Option("log", None, "logarithmic axes", choices=("x", "y", "xy"), shown="x"),
        Option(
            "time",
            None,
            "also draw the metric against the seconds of each job's parts whose names begin with PART",
            shown="PART",
        ),
    ),
    examples=(
        (
            "OUT sweep=damping x=solver.damping y=pearson log=x time={solver}",
            "after python -m experiments --multirun experiment=loo_linear sweep=damping output=OUT",
        ),
    ),
    exit_codes="0 every job is done, 1 a job failed or is missing, 2 a setting is wrong",
)


def show(rows: list[dict[str, Any]]) -> None:
    """Prints a row per job, and how many are done."""
    cells = [
        (
            str(row["job"]),
            row["status"],
            "" if row["value"] is None else f"{row['value']:.6g}",
            " ".join(f"{key}={value}" for key, value in row["overrides"].items())
            + f" ({row['why']})" * bool(row["why"]),
        )
        for row in rows
    ]
    print(fitted(("job", "status", "value", "settings"), cells))
    print(f"{sum(row['status'] == 'done' for row in rows)} of {len(rows)} jobs done")


def show_means(points: list[Point], y: str) -> None:
    """Prints mean, interval and number of each group of seeds; nothing if there is one job a group."""
    if all(len(point.y) < 2 for point in points):
        return
    cells = []
    for point in points:
        settings = " ".join(f"{key}={value}" for key, value in point.settings.items()) or "all jobs"
        half = point.half_width
        interval = "" if math.isnan(half) else f"{point.mean - half:.6g} to {point.mean + half:.6g}"
        cells.append((f"{point.mean:.6g}", interval, str(len(point.y)), settings))
    print(f"\n{y}: mean over seeds, 95 % interval, n")
    print(fitted(("mean", "95 % interval", "n", "settings"), cells))


def main(given: Given) -> None:
    """Collects the sweep: prints its jobs, draws its figure, and makes its folder a record once all are done.

    Raises:
        JobFailed: a job failed or is missing (exit code 1).
        UserError: there is no such sweep, setting or metric.
    """
    folder, x, y = Path(given.words[0]), given["x"], given["y"]
    listed = (folder / SWEEP_MARKER).is_file()
    name = given["sweep"] or (name_of(folder) if listed else None)
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
        part = given["time"] or ""
        record = record_of(str(name), rows, folder, x, y, given["log"] or "", part)
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
    COMMAND.run(main)
