"""``python -m experiments.label_errors FILE [key=value ...]``: which labels of a table are wrong?"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from experiments.label_errors.settings import Settings, settings
from experiments.suite.commands import Command, Given, Option, Words


def folder_of(file: str) -> Path:
    """Where the results go unless ``output=`` says otherwise: beside you, by the file's name."""
    stem = Path(file).name
    packed = (".gz", ".bz2", ".xz", ".zip")
    for ending in (*packed, ".csv", ".tsv", ".txt", ".parquet", ".xlsx", ".xls", ".data"):
        stem = stem.removesuffix(ending)
    return Path(f"{stem or 'table'}-label-errors")


def options() -> tuple[Option, ...]:
    """A command's option for every field of the settings; ``settings`` converts and checks the values."""
    found = []
    for item in fields(Settings):
        default, choices = item.default, item.metadata["choices"]
        if isinstance(default, bool):
            default = str(default).lower()
        shown = None if default is None or item.name in LISTS else str(default)
        hint = "[A,B]" if item.name in LISTS else item.name.upper()
        found.append(Option(item.name, shown, item.metadata["help"], choices=choices, shown=hint))
    return tuple(found)


LISTS = {item.name for item in fields(Settings) if str(item.type).startswith("tuple")}
COMMAND = Command(
    "label_errors",
    "Which labels of your table are wrong? Writes suspects.csv, report.html (open it in a browser) and "
    "report.json, and prints the ten most suspicious rows.",
    words=Words("FILE", help="a table: CSV, TSV, Parquet or Excel, also as .gz or .zip"),
    options=options(),
    examples=(
        ("tickets.csv label=category", "any number of classes, numbers, dates, text and missing cells"),
        ("houses.csv label=price id=address", "labels that are numbers: outlying ones are sought"),
    ),
    notes="Each row is judged by models that have not seen its label (leave-one-out influence); the list is "
    "sorted by the loss of the given label. What was detected is printed: encoding, separator, ids, copies "
    "of the label, missing cells.",
)


def main(given: Given) -> None:
    """Ranks, writes, prints."""
    file = given.words[0]
    named = {name: text for name, text in given.values.items() if name != "debug" and text is not None}
    chosen = settings(**named)
    from experiments.label_errors.find import find
    from experiments.label_errors.output import PAGE, SUSPECTS, save, terminal, wrapped
    from experiments.label_errors.progress import said

    with said() as step:
        found = find(file, step=step, **vars(chosen))
        step("writing the page")
        paths = save(found, Path(chosen.output) if chosen.output else folder_of(file))
    for note in found.notes:
        print("\n".join(wrapped(f"- {note}", 80)))
    print()
    print(terminal(found))
    print()
    print(f"page: {paths[PAGE]}")
    print(f"table: {paths[SUSPECTS]}")


if __name__ == "__main__":
    COMMAND.run(main)
