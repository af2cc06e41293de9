"""``python -m experiments.figures FOLDER ...`` draws each folder's figures again from its record."""

from __future__ import annotations

import sys
from pathlib import Path

from experiments.errors import UserError
from experiments.suite.cli import guarded


def main() -> None:
    """Draws the figures of every folder named on the command line."""
    from experiments.records.record import Record
    from experiments.suite.figures import draw

    folders = [argument for argument in sys.argv[1:] if not argument.startswith("debug=")]
    if not folders:
        raise UserError(
            "name at least one folder that holds a record.json: python -m experiments.figures FOLDER."
        )
    for folder in map(Path, folders):
        for path in draw(Record.load(folder), folder):
            print(path)


if __name__ == "__main__":
    guarded(main)
