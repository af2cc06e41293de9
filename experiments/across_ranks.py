"""``python -m experiments.across_ranks FILE -- experiment=NAME``: the same record on several processes?"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from experiments.records import atomic
from experiments.records.errors import UserError
from experiments.records.record import Record
from experiments.suite.commands import Command, Given, Option, Words, names


def counts(text: str) -> list[int]:
    """Numbers of processes, separated by commas."""
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise ValueError(text)
    return found


COMMAND = Command(
    "across_ranks",
    "Does an experiment give the same record on several processes as on one? Runs it once for each number "
    "of processes (gloo, one thread each). Compares every array with the first run's. Adds the differences "
    "to a JSON file.",
    words=Words("FILE", help="JSON file that collects the comparisons"),
    options=(
        Option(
            "processes",
            "1,2,4",
            "numbers of processes; the others are compared with the first",
            counts,
        ),
        Option(
            "reuse", None, "journals of the first run that the other runs start with", names, shown="training"
        ),
        Option(
            "record",
            None,
            "folder of a published record, to compare the scores with",
            kind=Path,
            shown="FOLDER",
        ),
    ),
    rest="experiment=NAME [name=value ...]",
    examples=(("results/distributed.json -- experiment=readmission tier=paper", "three runs"),),
)
STATED = 1e-10  # results on several processes equal those on one to this, relative to the largest entry
NOTE = (
    "gradient_norm is what is left of a gradient at convergence, far below its tolerance: its digits are "
    "rounding, and are not held to the stated bound; times are of a machine shared with other work"
)


def launch(processes: int, settings: list[str], folder: Path) -> Record:
    """The record of the experiment on ``processes`` processes.

    Raises:
        UserError: the run failed; its last lines are shown.
    """
    module = ["-m", "experiments", *settings, "tracking=none", f"output={folder}"]
    if processes > 1:
        module = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *module]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *module], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(f"{processes} processes failed: {done.stderr[-2000:]}")
    return Record.load(folder)


def compared(one: Record, many: Record) -> dict[str, Any]:
    """Largest difference of each floating array over its largest entry; whether the others are equal.

    A NaN differs from every number, infinitely so.
    """
    found: dict[str, Any] = {}
    for name, a in one.arrays.items():
        b = many.arrays[name]
        if a.shape != b.shape:
            found[name] = f"shapes {a.shape} and {b.shape}"
        elif a.dtype.kind == "f":
            gap = np.where(np.isnan(a) & np.isnan(b), 0.0, np.nan_to_num(np.abs(a - b), nan=np.inf))
            found[name] = float(
                gap.max(initial=0) / max(float(np.abs(np.nan_to_num(a)).max(initial=0)), 1e-300)
            )
        else:
            found[name] = bool(np.array_equal(a, b))
    return found


def against(published: Record, record: Record) -> dict[str, Any]:
    """``compared`` for the scores alone: the rest may come from a longer protocol."""
    names = [name for name in published.arrays if name.startswith("scores")]
    one, many = (
        Record(item.experiment, {}, {name: item.arrays[name] for name in names})
        for item in (published, record)
    )
    return compared(one, many)


def hand_over(names: list[str], source: Path, target: Path) -> None:
    """Copies the journals ``names`` of one run's folder to another's."""
    for name in names:
        found = list(source.glob(f"journal/{name}-*"))
        if not found:
            raise UserError(f"reuse={name}: the first run kept no journal of that name.")
        for journal in found:
            shutil.copytree(journal, target / "journal" / journal.name)


def main(given: Given) -> None:
    """Runs, compares, and adds what it saw to the file.

    Raises:
        UserError: a run failed, or a journal of ``reuse=`` is missing.
    """
    counts, published, target = given["processes"], given["record"], Path(given.words[0])
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="influence-ranks-") as place:
        first: Record | None = None
        for count in counts:
            folder = Path(place) / str(count)
            reused = (given["reuse"] or []) if first is not None else []
            hand_over(reused, Path(place) / str(counts[0]), folder)
            record = launch(count, given.rest, folder)
            entry = description(folder)
            if reused:
                entry["reused_from_the_first_run"] = reused
            if first is None:
                first = record
                entry["commit"] = json.loads((folder / "provenance.json").read_text())["code"]["git_commit"]
            else:
                entry["relative_difference"] = compared(first, record)
            if published is not None:
                entry["scores_against_record"] = against(Record.load(published), record)
                print(f"{count} processes, against {published}: {entry['scores_against_record']}")
            result[str(count)] = entry
            print(f"{count} processes: {json.dumps(entry.get('relative_difference', {}))}", flush=True)
    before = json.loads(target.read_text()) if target.is_file() else {}
    before |= {"stated": STATED, "note": NOTE}
    shown = [text for text in given.rest if not text.startswith("data.mirror=")]
    atomic.write_json(target, before | {" ".join(shown): result})


def description(folder: Path) -> dict[str, Any]:
    """Seconds and memory of the run in ``folder``."""
    provenance = json.loads((folder / "provenance.json").read_text())
    return {
        "wall_seconds": provenance["wall_seconds"],
        "peak_mib_of_rank_0": provenance["peak_mib"],
        "timings": {part["part"]: part["seconds"] for part in provenance["timings"]},
    }


if __name__ == "__main__":
    COMMAND.run(main)
