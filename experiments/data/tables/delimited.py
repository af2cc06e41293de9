"""Text with separators (CSV, TSV and their relatives) as rows of cells, with the line each row begins on."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from typing import Any

import numpy as np

from experiments.data.tables.options import SEPARATORS, Options, separator_of
from experiments.errors import UserError

CANDIDATES = ("\t", ";", "|", ",")
_SAMPLE = 100  # lines that separators and headers are judged by
_CHUNK = 20_000  # rows turned into columns at a time: a list of Python texts takes ten times their memory
_NUMBER = re.compile(r"\s*[-+]?(\d[\d., _]*|[.,]\d+)([eE][-+]?\d+)?\s*")
_MOSTLY = 0.6  # share of a column's cells that must be numbers to tell the decimal sign
_POINT = re.compile(r"\s*[-+]?\d*\.\d+([eE][-+]?\d+)?\s*")
_COMMA = re.compile(r"\s*[-+]?\d*,\d+([eE][-+]?\d+)?\s*")


def parse(text: str, name: str, settings: Options, notes: list[str]) -> tuple[Any, np.ndarray, str | None]:
    """The table ``(DataFrame of str, lines (n,), decimal sign or None)``; UserError names the line."""
    csv.field_size_limit(2**31 - 1)
    text, skipped, told = _without_preamble(text, notes)
    separator = separator_of(settings.separator) or told
    if separator is None:
        separator = detected_separator(text, settings.quote == "none")
        if separator != ",":
            word = next(key for key, value in SEPARATORS.items() if value == separator)
            notes.append(f"Cells are separated by {word}s (found; separator= sets another).")
    if separator == " ":
        text = "\n".join(re.sub(r"[ \t]+", " ", line.strip()) for line in text.splitlines())
    quoting = settings.quote != "none"
    try:
        return _table(text, name, separator, quoting, skipped, settings, notes)
    except _Quote as error:
        if separator != "\t" or not quoting:
            raise UserError(
                f"{name}: line {error.line} has a quotation mark that closes no cell ({error.cause}); "
                'write it twice ("") inside a quoted cell, or set quote=none to read it as it stands.'
            ) from None
        notes.append("Quotation marks are ordinary characters (they do not pair; the file has tabs).")
        return _table(text, name, separator, False, skipped, settings, notes)


class _Quote(Exception):
    def __init__(self, line: int, cause: str) -> None:
        super().__init__(cause)
        self.line, self.cause = line, cause


def _without_preamble(text: str, notes: list[str]) -> tuple[str, int, str | None]:
    """The text below a ``sep=;`` line and comments, how many lines went, the separator named."""
    skipped, told = 0, None
    while text:
        line, _, rest = text.partition("\n")
        found = re.fullmatch(r'"?sep=(.)"?\r?', line.strip(" "), re.I)
        if found and told is None:
            told = found.group(1)
            notes.append(f"Line {skipped + 1} names the separator, {told!r}, and is no row.")
        elif line.startswith("#") and _is_comment(line, rest):
            notes.append(f"Line {skipped + 1} is read as a comment: {line.strip()[:60]!r}.")
        elif line.strip(" \t\r,;|") == "" and rest.strip():
            pass  # an empty line above the header
        else:
            break
        text, skipped = rest, skipped + 1
    return text, skipped, told


def _is_comment(line: str, rest: str) -> bool:
    """Whether a line with ``#`` in front is no header: it has fewer separators than the lines below."""
    below = [part for part in rest.split("\n", 5)[:5] if part.strip()]
    return bool(below) and all(
        all(line.count(sign) < part.count(sign) for part in below) or not any(sign in part for part in below)
        for sign in CANDIDATES
    )


def detected_separator(text: str, plain: bool = False) -> str:
    """The sign that cuts the first lines into equally many cells; a comma if none does."""
    sample = text[: 400 * _SAMPLE * 10]
    best, chosen = (0.0, 0), ","
    for sign in CANDIDATES:
        quoting: Any = csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL
        rows = []
        for row in csv.reader(io.StringIO(sample, newline=""), delimiter=sign, quoting=quoting):
            if any(cell.strip() for cell in row):
                rows.append(len(row))
            if len(rows) == _SAMPLE:
                break
        if not rows or rows[0] < 2:
            continue
        share = float(np.mean([count in (rows[0], rows[0] + 1) for count in rows]))
        if share > best[0] + 0.02 or (share > best[0] - 0.02 and best[0] == 0):
            best, chosen = (share, rows[0]), sign
    if best[0] == 0:
        lines = [line.split() for line in sample.splitlines()[:_SAMPLE] if line.strip()]
        if len(lines) > 2 and len(lines[0]) > 1 and len({len(cells) for cells in lines}) == 1:
            return " "
    return chosen


def _table(
    text: str, name: str, separator: str, quoting: bool, skipped: int, settings: Options, notes: list[str]
) -> tuple[Any, np.ndarray, str | None]:
    rows = _rows(text, separator, quoting, skipped)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{name} has no rows; give a header line and one row per line.")
    sample = [first]
    for row in rows:
        sample.append(row)
        if len(sample) > _SAMPLE:
            break
    names, body = _header(sample, settings, notes)
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
    for place, row in rows:
        collected.add(place, row)
    frame, lines = collected.table(distinct_names(names, notes), names)
    if width < 2:
        raise UserError(
            f"{name} has one column only, {names[0][:40]!r}; set separator= to the sign between its cells."
        )
    return frame, lines, _decimal(frame, separator, settings, notes)


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


def _rows(text: str, separator: str, quoting: bool, skipped: int) -> Any:
    """(line, cells) of every row that is not empty."""
    mode: Any = csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, quoting=mode, strict=quoting)
    line = 1
    try:
        for row in reader:
            if any(row):
                yield line + skipped, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise _Quote(line + skipped, str(error)) from None


def _header(
    sample: list[tuple[int, list[str]]], settings: Options, notes: list[str]
) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names, and the rows of the sample that are data."""
    first = sample[0][1]
    told = settings.header
    if told == "auto" and _looks_like_data(first, [row for _, row in sample[1:]]):
        told = "false"
        notes.append(
            "The first line looks like data: the columns are column1, column2, ... (or set header=true)."
        )
    if told == "false":
        return [f"column{i}" for i in range(1, len(first) + 1)], sample
    return first, sample[1:]


def _looks_like_data(first: list[str], below: list[list[str]]) -> bool:
    """A cell of the first line is a number, or occurs again below in the same column more than once."""
    if any(_NUMBER.fullmatch(cell) for cell in first):
        years = all(re.fullmatch(r"\s*(19|20)\d\d\s*", cell) for cell in first if _NUMBER.fullmatch(cell))
        return not (years and any(cell.strip() and not _NUMBER.fullmatch(cell) for cell in first))
    for place, cell in enumerate(first):
        if cell.strip() and sum(len(row) > place and row[place] == cell for row in below) > 1:
            return True
    return False


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
        remedy = "quote cells that hold the separator" if more else "complete the row"
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
        cells = [cell for cell in frame[name].iloc[:_SAMPLE] if cell.strip()]
        if not cells or np.mean([bool(_NUMBER.fullmatch(cell)) for cell in cells]) < _MOSTLY:
            continue
        decimal = [cell for cell in cells if _COMMA.fullmatch(cell)]
        grouped = [cell for cell in decimal if re.fullmatch(r"\s*[-+]?[1-9]\d{0,2},\d{3}\s*", cell)]
        commas += len(decimal) > 0 and (len(grouped) < len(decimal) or separator == ";")
        points += any(_POINT.fullmatch(cell) for cell in cells)
    if commas and not points:
        notes.append("Numbers have decimal commas (found; decimal=point reads them otherwise).")
        return ","
    return "." if points else None
