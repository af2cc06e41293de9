"""The per-point table of a record as CSV.

A text that a spreadsheet would take for a formula (a mail's subject may begin with ``=``) is written with an
apostrophe before it, so that opening the list computes nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container, Iterable
from typing import Any

from experiments.records.errors import UserError
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


def distinct(name: str, taken: Container[str]) -> str:
    """``name`` with as many underscores behind it as make it differ from those taken."""
    while name in taken:
        name += "_"
    return name


def csv_of(record: Record) -> str:
    """The per-point table, one row per point.

    Raises:
        UserError: the record has no table, or its arrays are not there.
    """
    if not record.table or any(name not in record.arrays for name in record.table):
        raise UserError(f"the record of {record.experiment} holds no per-point table to export.")
    rows = zip(*(record.arrays[name] for name in record.table), strict=True)
    return "".join(line(row) for row in (record.table, *rows))
