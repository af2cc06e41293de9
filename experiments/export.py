"""``python -m experiments.export FOLDER [to=FILE.csv]``: the per-point table of a record as CSV.

A text that a spreadsheet would take for a formula (a mail's subject may begin with ``=``) is written with an
apostrophe before it, so that opening the list computes nothing.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.errors import UserError
from experiments.records import atomic
from experiments.records.record import Record

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%")


def cell(value: Any) -> str:
    """``value`` as a cell; numbers as they are, texts made harmless."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, (bool, int, float)):
        return repr(value)
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
    if re.fullmatch(r"-\d+([.,]\d+)*([eE][-+]?\d+)?", text):
        return text  # a negative number computes nothing
    # Spreadsheets skip blanks and invisible signs of all scripts, and some take the wide ＝ for =.
    visible = text.lstrip("".join({sign for sign in text if sign.isspace() or not sign.isprintable()}))
    first = unicodedata.normalize("NFKC", visible[:1])
    return f"'{text}" if first.startswith(FORMULA) or text.startswith(FORMULA) else text


def line(values: Iterable[Any]) -> str:
    """A row as a line of CSV (RFC 4180), each value by ``cell``.

    Not by csv.writer: where lines end in "\\n" it leaves a carriage return bare, which ends a line elsewhere.
    """
    cells = [cell(value) for value in values]
    quoted = [
        f'"{text.replace(chr(34), chr(34) * 2)}"' if set(text) & set(',"\r\n') else text for text in cells
    ]
    return (",".join(quoted) if quoted != [""] else '""') + "\n"


def csv_of(record: Record) -> str:
    """The per-point table, one row a point.

    Raises:
        UserError: the record has no table, or its arrays are not there.
    """
    if not record.table or any(name not in record.arrays for name in record.table):
        raise UserError(f"the record of {record.experiment} holds no per-point table to export.")
    rows = zip(*(record.arrays[name] for name in record.table), strict=True)
    return "".join(line(row) for row in (record.table, *rows))


def main() -> None:
    """Writes the table beside the record, or to the file named by ``to=``."""
    folders = [argument for argument in sys.argv[1:] if "=" not in argument]
    options = dict(argument.split("=", 1) for argument in sys.argv[1:] if "=" in argument)
    if len(folders) != 1 or set(options) - {"to", "debug"}:
        raise UserError("usage: python -m experiments.export FOLDER [to=FILE.csv].")
    target = Path(options.get("to", Path(folders[0]) / "points.csv"))
    atomic.write_text(target, csv_of(Record.load(Path(folders[0]))))
    print(target)


if __name__ == "__main__":
    from experiments.suite.cli import guarded

    guarded(main)
