"""Text with separators (CSV, TSV and their relatives) as a table, with the line each row begins on."""

from __future__ import annotations

import csv
import itertools
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from experiments.data.tables.dialect import (
    NUMBER,
    SAMPLE,
    Dialect,
    QuoteError,
    detected_dialect,
    detected_separator,
    header,
    rows_of,
    without_preamble,
)
from experiments.data.tables.options import SEPARATORS, Options, separator_of
from experiments.data.tables.plain import rows_below
from experiments.records.errors import UserError

_CHUNK = 20_000  # rows turned into columns at a time: a list of Python texts takes ten times their memory
_MOSTLY = 0.6  # share of a column's cells that must be numbers to tell the decimal sign
_POINT = re.compile(r"\s*[-+]?\d*\.\d+([eE][-+]?\d+)?\s*")
_COMMA = re.compile(r"\s*[-+]?\d*,\d+([eE][-+]?\d+)?\s*")


def parse(text: str, name: str, settings: Options, notes: list[str]) -> tuple[Any, np.ndarray, str | None]:
    """The table ``(DataFrame of str, lines (n,), decimal sign or None)``; UserError names the line."""
    csv.field_size_limit(2**31 - 1)
    text, skipped, told = without_preamble(text, settings.skip, notes)
    if not text.strip():
        raise UserError(f"{name} has no rows; give a header line and one row per line.")
    separator = separator_of(settings.separator) or told
    if separator is None:
        separator = detected_separator(text, {"none": None, "single": "'"}.get(settings.quote, '"'))
        if separator != ",":
            word = next(key for key, value in SEPARATORS.items() if value == separator)
            notes.append(f"Cells are separated by {word}s (found; separator= sets another).")
    if separator == " ":
        text = "\n".join(re.sub(r"[ \t]+", " ", line.strip()) for line in text.splitlines())
    dialect = detected_dialect(text, separator, settings.quote, notes)
    attempts = [(dialect, "")]
    if dialect.quote and '\\"' in text:
        escaped = replace(dialect, escape="\\")
        attempts.append((escaped, "A backslash stands before quotation marks inside cells."))
    if dialect.quote and separator == "\t":
        plain = replace(dialect, quote=None)
        attempts.append(
            (plain, "Quotation marks are ordinary characters (they do not pair; the file has tabs).")
        )
    first: QuoteError | None = None
    for attempt, said in attempts:
        told_before = len(notes)
        try:
            found = _table(text, name, attempt, skipped, settings, notes)
        except QuoteError as error:
            del notes[told_before:]
            first = first or error
            continue
        if said:
            notes.append(said)
        return found
    assert first is not None
    raise UserError(
        f"{name}: line {first.line} has a quotation mark that closes no cell ({first.cause}); "
        'write it twice ("") inside a quoted cell, or set quote=none to read it as it stands.'
    )


def _table(
    text: str, name: str, dialect: Dialect, skipped: int, settings: Options, notes: list[str]
) -> tuple[Any, np.ndarray, str | None]:
    rows = rows_of(text, dialect, skipped)
    sample = list(itertools.islice(rows, SAMPLE + 1))
    if not sample:
        raise UserError(f"{name} has no rows; give a header line and one row per line.")
    names, body = header(sample, settings, notes)
    width, trailing = len(names), False
    if all(len(row) == width + 1 for _, row in body) and body:
        if all(not row[-1].strip() for _, row in body):
            trailing = True
            notes.append("Every row ends with a separator; the empty last cell is no column.")
        else:
            notes.append("Every row has one cell more than the header: the first holds row names.")
            names = ["row names", *names]
            width += 1
    collected = _Columns(name, width, settings.bad_rows, notes, trailing)
    for place, row in body:
        collected.add(place, row)
    below = None if trailing else rows_below(text, dialect, sample[-1][0] - skipped, width)
    if below is None:
        for place, row in rows:
            collected.add(place, row)
    else:
        collected.take(below[0], below[1] + skipped)
    frame, lines = collected.table(distinct_names(names, notes), names)
    if width < 2:
        raise UserError(
            f"{name} has one column only, {names[0][:40]!r}; set separator= to the sign between its cells."
        )
    return frame, lines, _decimal(frame, dialect.separator, settings, notes)


def distinct_names(names: list[str], notes: list[str]) -> list[str]:
    """Column names, each once: a second ``x`` becomes ``x (2)``, a nameless third column ``column3``."""
    found: list[str] = []
    for place, raw in enumerate(names, start=1):
        name = raw.strip() or f"column{place}"
        if name in found:
            count = 2
            while f"{name} ({count})" in found or f"{name} ({count})" in names:
                count += 1
            notes.append(f"Two columns are called {name!r}; the later one is {name} ({count}) here.")
            name = f"{name} ({count})"
        found.append(name)
    return found


class _Columns:
    """Rows gathered into columns, a chunk at a time; rows of another width are refused, skipped or filled."""

    def __init__(self, name: str, width: int, bad: str, notes: list[str], trailing: bool) -> None:
        self.name, self.width, self.bad, self.notes, self.trailing = name, width, bad, notes, trailing
        self.rows: list[list[str]] = []
        self.lines: list[int] = []
        self.parts: list[Any] = []
        self.odd: Counter[str] = Counter()
        self.first_odd: dict[str, int] = {}

    def add(self, line: int, row: list[str]) -> None:
        if len(row) != self.width:
            kept = self._mended(line, row)
            if kept is None:
                return
            row = kept
        self.rows.append(row)
        self.lines.append(line)
        if len(self.rows) == _CHUNK:
            self._flush()

    def take(self, frame: Any, lines: np.ndarray) -> None:
        """Further rows, all of the right width, as a DataFrame."""
        self._flush()
        self.parts.append(frame)
        self.lines += lines.tolist()

    def _mended(self, line: int, row: list[str]) -> list[str] | None:
        """A row of another width as it is to be read, None to leave it out."""
        if len(row) > self.width and not any(cell.strip() for cell in row[self.width :]):
            if not (self.trailing and len(row) == self.width + 1):
                self._note("trimmed", line)
            return row[: self.width]
        if self.bad == "skip" or (self.bad == "fill" and len(row) > self.width):
            self._note("skipped", line)
            return None
        if self.bad == "fill":
            self._note("filled", line)
            return row + [""] * (self.width - len(row))
        more = len(row) > self.width
        remedy = (
            "quote cells that hold the separator, set skip= to the number of lines above the header"
            if more
            else "complete the row"
        )
        also = "" if more else ", bad_rows=fill to read the missing ones as empty"
        raise UserError(
            f"{self.name}: line {line} has {len(row)} cells, the table has {self.width} columns; {remedy}, "
            f"or set bad_rows=skip to leave such rows out{also}."
        )

    def _note(self, what: str, line: int) -> None:
        self.odd[what] += 1
        self.first_odd.setdefault(what, line)

    def _flush(self) -> None:
        import pandas as pd

        if self.rows:
            columns = zip(*self.rows, strict=True)
            self.parts.append(
                pd.DataFrame({i: pd.array(cells, dtype="str") for i, cells in enumerate(columns)})
            )
            self.rows = []

    def table(self, names: list[str], raw: list[str]) -> tuple[Any, np.ndarray]:
        """The DataFrame and the lines; nameless columns without a cell are dropped."""
        import pandas as pd

        self._flush()
        words = {
            "trimmed": "with empty cells that have no column: they are dropped",
            "skipped": "left out: a wrong number of cells",
            "filled": "with too few cells: the missing ones are empty",
        }
        for what, count in self.odd.items():
            rows = "1 row" if count == 1 else f"{count} rows"
            self.notes.append(f"{rows} {words[what]} (the first on line {self.first_odd[what]}).")
        if not self.parts:
            return pd.DataFrame({name: pd.array([], dtype="str") for name in names}), np.zeros(
                0, dtype=np.int64
            )
        frame = pd.concat(self.parts, ignore_index=True) if len(self.parts) > 1 else self.parts[0]
        frame.columns = names
        empty = [
            name
            for name, given in zip(names, raw, strict=True)
            if not given.strip() and (frame[name] == "").all()
        ]
        if empty:
            self.notes.append(f"{len(empty)} columns have neither a name nor a cell and are left out.")
            frame = frame.drop(columns=empty)
        return frame, np.asarray(self.lines, dtype=np.int64)


def _decimal(frame: Any, separator: str, settings: Options, notes: list[str]) -> str | None:
    """The decimal sign of the file, None if nothing tells."""
    if settings.decimal != "auto":
        return {"point": ".", "comma": ","}[settings.decimal]
    commas = points = 0
    for name in frame.columns:
        cells = [cell for cell in frame[name].iloc[:SAMPLE] if cell.strip()]
        if not cells or np.mean([bool(NUMBER.fullmatch(cell)) for cell in cells]) < _MOSTLY:
            continue
        decimal = [cell for cell in cells if _COMMA.fullmatch(cell)]
        grouped = [cell for cell in decimal if re.fullmatch(r"\s*[-+]?[1-9]\d{0,2},\d{3}\s*", cell)]
        commas += len(decimal) > 0 and (len(grouped) < len(decimal) or separator == ";")
        points += any(_POINT.fullmatch(cell) for cell in cells)
    if commas and not points:
        notes.append("Numbers have decimal commas (found; decimal=point reads them otherwise).")
        return ","
    return "." if points else None
