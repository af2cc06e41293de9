"""``python -m experiments.label_errors.evidence.speed FOLDER``: the seconds and memory of two large tables.

The command runs as a user types it, on a file made here: 100,000 rows of 100 numbers in ten classes, and
5,000 texts over a vocabulary of 20,000 words in four classes; 5 % of the labels are wrong. Wall and processor
seconds are those of the whole process, its start included; memory is its largest resident size. The page of
the evidence, if the folder has one, is written anew.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from experiments.label_errors.evidence import show
from experiments.records import atomic
from experiments.records.errors import UserError
from experiments.suite.commands import Command, Given, Option, Words, names

RECORD = show.SPEED
WRONG = 0.05  # share of labels replaced
COMMAND = Command(
    "label_errors.evidence.speed",
    "Times the command label_errors on two large tables that it makes, and writes speed.json.",
    words=Words("FOLDER", help="receives speed.json"),
    options=(
        Option("repeats", "3", "runs of each; the medians are recorded", kind=int),
        Option(
            "only", None, "tables to time, of numbers and texts; the others stay in the record", kind=names
        ),
    ),
    examples=(("results/label_errors", "both tables, three times each"),),
)


def numbers(path: Path, rows: int = 100_000, columns: int = 100, classes: int = 10) -> np.ndarray:
    """A CSV of normal clouds, one a class; which labels are wrong ``(rows,)``."""
    import pandas as pd

    generator = np.random.default_rng(0)
    true = generator.integers(0, classes, rows)
    X = generator.normal(size=(rows, columns)) + generator.normal(0, 0.4, (classes, columns))[true]
    frame = pd.DataFrame(X.round(4), columns=[f"x{i}" for i in range(columns)])
    wrong = generator.random(rows) < WRONG
    shift = generator.integers(1, classes, rows)
    frame["label"] = [f"class {k}" for k in np.where(wrong, (true + shift) % classes, true)]
    frame.to_csv(path, index=False)
    return wrong


def texts(path: Path, rows: int = 5_000, words: int = 20_000, classes: int = 4) -> np.ndarray:
    """A CSV of texts of 120 words, a tenth of them of the class's own; which labels are wrong ``(rows,)``."""
    import pandas as pd

    generator = np.random.default_rng(0)
    true = generator.integers(0, classes, rows)
    shares = 1 / (20 + np.arange(words))
    common = generator.choice(words, (rows, 108), p=shares / shares.sum())
    own = generator.integers(0, 300, (rows, 12)) * classes + true[:, None]
    wrong = generator.random(rows) < WRONG
    given = np.where(wrong, (true + generator.integers(1, classes, rows)) % classes, true)
    frame = pd.DataFrame(
        {
            "text": [" ".join(f"w{word}" for word in line) for line in np.hstack([common, own])],
            "label": [f"class {k}" for k in given],
        }
    )
    frame.to_csv(path, index=False)
    return wrong


TABLES = {"numbers": numbers, "texts": texts}


def timed(path: Path, folder: Path) -> dict[str, float]:
    """Seconds and GiB of one run of the command; ``load``: how many other processes wanted a processor."""
    load, began = os.getloadavg()[0], time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.label_errors", str(path), "label=label", f"output={folder}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    said = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise UserError(f"the command failed: {(said.strip().splitlines() or ['no word'])[-1]}")
    return {
        "wall_seconds": time.perf_counter() - began,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "gib": usage.ru_maxrss / 2**20,
        "load": load,
    }


def measured(name: str, repeats: int) -> dict[str, Any]:
    """The medians of a table's runs, and the share of planted errors among as many first rows."""
    import pandas as pd

    with tempfile.TemporaryDirectory() as place:
        path, out = Path(place) / f"{name}.csv", Path(place) / "out"
        wrong = TABLES[name](path)
        runs = [timed(path, out) for _ in range(repeats)]
        first = pd.read_csv(out / "suspects.csv", usecols=["line"])["line"].to_numpy()[: int(wrong.sum())] - 2
        found: dict[str, Any] = {key: round(median(run[key] for run in runs), 2) for key in runs[0]}
        return found | {
            "runs": repeats,
            "rows": len(wrong),
            "recall": round(float(wrong[first].mean()), 3),
            "file_mib": round(path.stat().st_size / 2**20, 1),
            "cores": os.cpu_count(),
            "threads": os.environ.get("OMP_NUM_THREADS", "not set"),
        }


def main(given: Given) -> None:
    """Times what is asked for and writes the record."""
    import json

    path = Path(given.words[0]) / RECORD
    record = json.loads(path.read_text()) if path.is_file() else {}
    for name in given["only"] or TABLES:
        if name not in TABLES:
            raise UserError(f"there is no table {name!r}: choose from {', '.join(TABLES)}.")
        record[name] = measured(name, given["repeats"])
        print(f"{name}: {record[name]}")
        atomic.write_json(path, record)
    evidence = path.with_name(show.RECORD)
    if evidence.is_file():
        page = show.page(json.loads(evidence.read_text()), show.speeds(path.parent))
        atomic.write_text(path.with_name(show.PAGE), page)


if __name__ == "__main__":
    COMMAND.run(main)
