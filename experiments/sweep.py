"""``python -m experiments.sweep OUT sweep=NAME x=SETTING y=METRIC [log=x|y|xy]``: what became of a sweep.

Lists the jobs that conf/sweep/NAME.yaml expects, in the order in which Hydra numbers them: done, failed (its
folder holds no record; with the reason, unless it was killed) or missing (never started). Draws OUT/sweep.svg
and .png and writes OUT/sweep.json.
Exit code 1 unless every job is done. METRIC is a dotted path into the record's metrics, where ``*`` is the
last entry and ``{solver}`` the run's solver.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import atomic
from experiments.cli import CONF, JobFailed, guarded
from experiments.errors import UserError
from experiments.job import FAILED
from experiments.record import Record
from experiments.table import one_line

USAGE = "usage: python -m experiments.sweep OUT sweep=NAME x=SETTING y=METRIC [log=x|y|xy]."


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


def number_of(text: str) -> float:
    """A setting as a number; the last one of a list."""
    try:
        return float(text.strip("[]").split(",")[-1])
    except ValueError:
        raise UserError(f"x must be a setting with numbers, not {text!r}.") from None


def draw(rows: list[dict[str, Any]], x: str, y: str, log: str, path: Path) -> None:
    """The metric against the swept setting, a line for each choice of the others."""
    from experiments.figures import style

    figure, axes = style.panels(1, 1, width=6.2, height=4.2)
    panel = axes[0][0]
    lines: dict[str, list[tuple[float, float]]] = {}
    varied = [key for key in rows[0]["overrides"] if len({row["overrides"][key] for row in rows}) > 1]
    for row in rows:
        others = ", ".join(f"{k.split('.')[-1]} {row['overrides'][k]}" for k in varied if k != x)
        if row["status"] == "done":
            lines.setdefault(others, []).append((number_of(row["overrides"][x]), row["value"]))
    for label, points in lines.items():
        points.sort()
        panel.plot(*zip(*points, strict=True), marker="o", markersize=4, label=label or None)
    if "x" in log:
        panel.set_xscale("log")
    if "y" in log:
        panel.set_yscale("log")
    panel.set_xlabel(x)
    panel.set_ylabel(y)
    panel.set_title(", ".join(sorted({str(row["data"]) for row in rows if row["status"] == "done"})))
    if len(lines) > 1:
        panel.legend(fontsize=8)
    style.save(figure, path)


def main() -> None:
    """Collects the sweep named on the command line."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:] if "=" in argument)
    folders = [Path(argument) for argument in sys.argv[1:] if "=" not in argument]
    if len(folders) != 1 or not {"sweep", "x", "y"} <= set(options) <= {"sweep", "x", "y", "log", "debug"}:
        raise UserError(USAGE)
    rows = collect(folders[0], options["sweep"], options["y"])
    if options["x"] not in rows[0]["overrides"]:
        raise UserError(f"x={options['x']} is not swept: choose one of {', '.join(rows[0]['overrides'])}.")
    for row in rows:
        settings = " ".join(f"{key}={value}" for key, value in row["overrides"].items())
        shown = "" if row["value"] is None else f"{row['value']:.6g}"
        why = f"  ({row['why']})" * bool(row["why"])
        print(f"{row['job']:>4}  {row['status']:<8} {shown:<12} {settings}{why}")
    done = sum(row["status"] == "done" for row in rows)
    print(f"{done} of {len(rows)} jobs done")
    atomic.write_json(folders[0] / "sweep.json", {"x": options["x"], "y": options["y"], "jobs": rows})
    if done:
        draw(rows, options["x"], options["y"], options.get("log", ""), folders[0] / "sweep")
    if done < len(rows):
        raise JobFailed(1)


if __name__ == "__main__":
    guarded(main)
