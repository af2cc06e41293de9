"""``python -m experiments.publish FOLDER [name=NAME] [to=results]``: the small record of a run, for a commit.

Copies record.json, config.yaml, provenance.json and the figures, and the arrays as far as they stay under 1
MB together (the figure's own arrays first, the largest dropped first, and named in the record). Adds
ro-crate-metadata.json, by which archives know the folder.
"""

from __future__ import annotations

import re
from pathlib import Path

from experiments.records import atomic, crate, provenance
from experiments.records.errors import ConfigError, UserError
from experiments.records.record import Record
from experiments.suite.commands import Command, Given, Option, Words
from experiments.suite.folders import require_own

LIMIT = 1_000_000  # bytes of arrays in a committed record
COMMAND = Command(
    "publish",
    "Copies the small records of finished runs into results/, to be committed: record.json, config.yaml, "
    "provenance.json, the figures, and the arrays as far as they stay under 1 MB together. Adds "
    "ro-crate-metadata.json, which describes them to archives.",
    words=Words("FOLDER", most=None, help="output folders of finished runs or collected sweeps"),
    options=(
        Option("name", None, "name of the new folder; default the experiment's name", shown="NAME"),
        Option("to", "results", "folder that receives it", kind=Path),
    ),
    examples=(("outputs/loo_linear/NOW", "writes results/loo_linear"),),
    notes="The largest arrays are left out first, and the record names them. "
    "Then write the tables again: python -m experiments.verify tier=paper,gpu from=results update=true.",
)


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
    crate.write(target)
    return sorted(dropped)


def without_places(text: str) -> str:
    """``text`` with FOLDER for every absolute path, which means nothing on another machine."""
    return re.sub(r"(?m)(^|[\s=])/[^\s'\"]+/[^\s'\"]*", r"\1FOLDER", text)


def main(given: Given) -> None:
    """Publishes the folders named; prints where each record went and which arrays were too large."""
    if given["name"] and len(given.words) > 1:
        raise ConfigError("name= goes with one folder: publish the folders one by one, or leave name= out.")
    for folder in map(Path, given.words):
        target = given["to"] / (given["name"] or Record.load(folder).experiment)
        dropped = publish(folder, target)
        print(f"{target}" + (f" (arrays left out for their size: {', '.join(dropped)})" if dropped else ""))


if __name__ == "__main__":
    COMMAND.run(main)
