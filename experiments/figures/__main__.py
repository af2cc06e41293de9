"""``python -m experiments.figures FOLDER ...`` draws each folder's figures again from its record."""

from __future__ import annotations

import sys
from pathlib import Path

from experiments.cli import guarded
from experiments.errors import UserError


def main() -> None:
    """Draws the figures of every folder named on the command line."""
    from experiments.figures import draw
    from experiments.record import Record

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
