"""``python -m experiments.export FOLDER [to=FILE.csv]``: the per-point table of a record as CSV."""

from __future__ import annotations

from pathlib import Path

from experiments.suite.commands import Command, Given, Option, Words

COMMAND = Command(
    "export",
    "Writes the per-point table of a record as CSV: one row per training point, as the figure shows them.",
    words=Words("FOLDER", help="output folder of a finished run, or a folder below results/"),
    options=(Option("to", None, "file to write; default FOLDER/points.csv", kind=Path, shown="FILE.csv"),),
    examples=(("results/loo_linear to=points.csv", "the 500 points of Fig. 2"),),
    notes="A text that a spreadsheet would take for a formula gets an apostrophe in front, so "
    "that opening the file "
    "computes nothing.",
)


def main(given: Given) -> None:
    """Writes the table beside the record, or to the file named by ``to=``."""
    from experiments.records import atomic
    from experiments.records.csv import csv_of
    from experiments.records.record import Record

    folder = Path(given.words[0])
    target = given["to"] or folder / "points.csv"
    atomic.write_text(target, csv_of(Record.load(folder)))
    print(target)


if __name__ == "__main__":
    COMMAND.run(main)
