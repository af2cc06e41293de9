"""``python -m experiments.label_errors FILE [key=value ...]``: which labels of a table are wrong?"""

from __future__ import annotations

import sys
from pathlib import Path

from experiments.label_errors.settings import help_text, parse


def folder_of(file: str) -> Path:
    """Where the results go unless ``output=`` says otherwise: beside you, by the file's name."""
    stem = Path(file).name
    for ending in (".gz", ".csv", ".tsv", ".txt", ".parquet", ".xlsx", ".xls", ".data"):
        stem = stem.removesuffix(ending)
    return Path(f"{stem or 'table'}-label-errors")


def main() -> None:
    """Reads the command line, ranks, writes, prints."""
    arguments = sys.argv[1:]
    if not arguments or {"--help", "-h"} & set(arguments):
        print(help_text())
        return
    file, chosen = parse(arguments)
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
    from experiments.suite.cli import guarded

    guarded(main, debug="debug=true" in sys.argv[1:])
