"""``python -m experiments.publish FOLDER [name=NAME] [to=results]``: the small record of a run, to be
committed.

Copies record.json, config.yaml, provenance.json and the figures, and the arrays as far as they stay under 1
MB together (the figure's own arrays first, the largest dropped first, and named in the record).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from experiments.errors import UserError
from experiments.records import atomic, provenance
from experiments.records.record import Record
from experiments.suite.folders import require_own

LIMIT = 1_000_000  # bytes of arrays in a committed record


def publish(folder: Path, target: Path) -> list[str]:
    """Copies the record of ``folder`` to ``target``; the names of the arrays left out for their size."""
    require_own(target, ["record.json"])
    record, origin = Record.load(folder), provenance.read(folder)
    dropped = []
    while len(atomic.npz_bytes(record.arrays)) > LIMIT:
        name = max(record.arrays, key=lambda key: (record.arrays[key].nbytes, key))
        del record.arrays[name]
        dropped.append(name)
    if set(dropped) & set(record.table):
        raise UserError(
            f"{folder}: the per-point table alone is over {LIMIT} bytes of arrays; record fewer points."
        )
    record.save(target)
    for path in (*folder.glob("*.svg"), *folder.glob("*.png")):
        atomic.write_bytes(target / path.name, path.read_bytes())
    atomic.write_text(target / "config.yaml", without_places((folder / "config.yaml").read_text()))
    origin["command"] = [without_places(part) for part in origin.get("command", [])]
    atomic.write_json(target / "provenance.json", origin | {"arrays_left_out": sorted(dropped)})
    return sorted(dropped)


def without_places(text: str) -> str:
    """``text`` with FOLDER for every absolute path, which means nothing on another machine."""
    return re.sub(r"(?m)(^|[\s=])/[^\s'\"]+/[^\s'\"]*", r"\1FOLDER", text)


def main() -> None:
    """Publishes the folders named on the command line."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:] if "=" in argument)
    folders = [Path(argument) for argument in sys.argv[1:] if "=" not in argument]
    if not folders or set(options) - {"name", "to", "debug"} or ("name" in options and len(folders) > 1):
        raise UserError("usage: python -m experiments.publish FOLDER [FOLDER ...] [name=NAME] [to=results].")
    for folder in folders:
        name = options.get("name") or Record.load(folder).experiment
        target = Path(options.get("to", "results")) / name
        dropped = publish(folder, target)
        print(f"{target}" + (f" (arrays left out for their size: {', '.join(dropped)})" if dropped else ""))


if __name__ == "__main__":
    from experiments.suite.cli import guarded

    guarded(main)
