"""``python -m experiments.label_errors.evidence``: errors planted in many tables, and what finds them."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

from experiments.suite.commands import Command, Given, Option, Words, names

COMMAND = Command(
    "label_errors.evidence",
    "Plants label errors in clean tables and measures which rank finds them: ours, cleanlab's and others.",
    words=Words("FOLDER", help="receives one JSON file a table, then evidence.json, the figure and the page"),
    options=(
        Option("tables", None, "folder of the tables that export_tables.py wrote", kind=Path, shown="FOLDER"),
        Option("mirror", None, "folder of original files with enron1/enron1.tar.gz", shown="FOLDER"),
        Option("peer", None, "python of an environment with cleanlab", kind=Path, shown="PYTHON"),
        Option("only", None, "names of tables to measure; the others are read from FOLDER", kind=names),
    ),
    examples=(("results/label_errors tables=tables peer=.peers/bin/python mirror=data", "everything"),),
)


def main(given: Given) -> None:
    """Measures what is not there yet, then writes record, figure and page from all that is."""
    from experiments.label_errors.evidence import measure, show
    from experiments.label_errors.evidence.tables import SOURCES, load
    from experiments.records import atomic
    from experiments.suite.progress import progress

    folder = Path(given.words[0])
    parts = folder / "tables"
    for source in SOURCES:
        path = parts / f"{source.name.replace(' ', '_').replace(':', '')}.json"
        if path.is_file() or (given["only"] and source.name not in given["only"]):
            continue
        frame = load(source, given["tables"] or Path("tables"), given["mirror"])
        with progress(30, source.name) as advance:
            found = measure.measured(frame, given["peer"], advance)
        found |= {"name": source.name, "origin": source.origin, "machine": machine()}
        atomic.write_json(path, found)
        print(
            f"{source.name}: {found['rows']} rows, {found['features']} features, {found['classes']} classes"
        )
    measured = [json.loads(path.read_text()) for path in sorted(parts.glob("*.json"))]
    if measured:
        show.write(measured, folder)


def machine() -> dict[str, Any]:
    """Where the seconds come from."""
    return {"python": platform.python_version(), "threads": os.environ.get("OMP_NUM_THREADS", "not set")}


if __name__ == "__main__":
    COMMAND.run(main)
