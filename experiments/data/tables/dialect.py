"""How a text is cut into cells: lines above the header, the separator, quotation marks, the header."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.data.tables.options import Options

CANDIDATES = ("\t", ";", "|", ",")
SAMPLE = 100  # lines that separators and headers are judged by
NUMBER = re.compile(r"\s*[-+]?(\d[\d., _]*|[.,]\d+)([eE][-+]?\d+)?\s*")
_TITLES = 10  # lines that may stand above the header
_DASHES = re.compile(r"\s*:?-{2,}:?\s*|\s*")

Row = tuple[int, list[str]]


@dataclass(frozen=True)
class Dialect:
    """The sign between cells, the one around them (None: ordinary characters), and how it is escaped."""

    separator: str
    quote: str | None = '"'
    escape: str | None = None
    spaces: bool = False  # blanks after a separator are no part of the cell

    def reader(self, text: str, strict: bool = True) -> Any:
        """A reader of the text's rows."""
        return csv.reader(
            io.StringIO(text, newline=""),
            delimiter=self.separator,
            quoting=csv.QUOTE_NONE if self.quote is None else csv.QUOTE_MINIMAL,
            quotechar=self.quote or '"',
            escapechar=self.escape,
            skipinitialspace=self.spaces,
            strict=strict and self.quote is not None,
        )


class QuoteError(Exception):
    """A quotation mark that closes no cell: on which line, and what the reader said."""

    def __init__(self, line: int, cause: str) -> None:
        super().__init__(cause)
        self.line, self.cause = line, cause


def rows_of(text: str, dialect: Dialect, skipped: int) -> Iterator[Row]:
    """(line, cells) of every row that is not empty."""
    reader = dialect.reader(text)
    line = 1
    try:
        for row in reader:
            if any(row):
                yield line + skipped, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise QuoteError(line + skipped, str(error)) from None


def without_preamble(text: str, skip: int, notes: list[str]) -> tuple[str, int, str | None]:
    """The text below ``skip`` lines, a ``sep=;`` line and comments; how many went; the separator named."""
    skipped, told = 0, None
    while text and skipped < skip:
        skipped, text = skipped + 1, text.partition("\n")[2]
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


def detected_separator(text: str, quote: str | None) -> str:
    """The sign that cuts the first lines into equally many cells; a comma if none does."""
    sample = text[: 4000 * SAMPLE]
    best, chosen = 0.0, ","
    titled, below = 0.9, ""  # the same for tables below lines of one cell
    for sign in CANDIDATES:
        widths = _widths(sample, Dialect(sign, quote))
        above = next((i for i, width in enumerate(widths) if width > 1), len(widths))
        rows = widths[above:]
        if not rows or above > _TITLES:
            continue
        share = float(np.mean([count in (rows[0], rows[0] + 1) for count in rows]))
        if above and len(rows) > 2 and share > titled:
            titled, below = share, sign
        elif not above and (share > best + 0.02 or best == 0):
            best, chosen = share, sign
    if below and best < 0.9:
        return below
    if best == 0:
        lines = [line.split() for line in sample.splitlines()[:SAMPLE] if line.strip()]
        if len(lines) > 2 and len(lines[0]) > 1 and len({len(cells) for cells in lines}) == 1:
            return " "
    return chosen


def _widths(sample: str, dialect: Dialect) -> list[int]:
    """Cells of each of the first rows that hold any."""
    rows = []
    for row in dialect.reader(sample, strict=False):
        if any(cell.strip() for cell in row):
            rows.append(len(row))
        if len(rows) == SAMPLE:
            break
    return rows


def detected_dialect(text: str, separator: str, told: str, notes: list[str]) -> Dialect:
    """The quotation marks of the text; ``told`` is the setting ``quote``."""
    if told != "auto":
        return Dialect(separator, {"none": None, "single": "'"}[told])
    sample, mark = text[: 4000 * SAMPLE], re.escape(separator)
    plain = Dialect(separator)
    if separator not in "\t " and re.search(rf'{mark} +"', sample):
        spaced = Dialect(separator, spaces=True)
        if _even(_widths(sample, spaced)) and not _even(_widths(sample, plain)):
            notes.append("Blanks between a separator and a quotation mark are no part of the cell.")
            return spaced
    if re.search(rf"(^|{mark})'[^'\n]*{mark}[^'\n]*'({mark}|\r?$)", sample, re.M):
        single = Dialect(separator, "'")
        if _even(_widths(sample, single)) and not _even(_widths(sample, plain)):
            notes.append("Cells stand in single quotation marks (found; quote=none reads them as they are).")
            return single
    return plain


def _even(widths: list[int]) -> bool:
    """Whether all rows are as wide as the most frequent width."""
    return len(set(widths)) == 1


def header(sample: list[Row], settings: Options, notes: list[str]) -> tuple[list[str], list[Row]]:
    """The names, and the rows of the sample that are data."""
    sample = _without_titles(sample, settings, notes)
    first = sample[0][1]
    told = settings.header
    if told == "auto" and _looks_like_data(first, [row for _, row in sample[1:]]):
        told = "false"
        notes.append(
            "The first line looks like data: the columns are column1, column2, ... (or set header=true)."
        )
    if told == "false":
        return [f"column{i}" for i in range(1, len(first) + 1)], sample
    below = sample[1:]
    if below and all(_DASHES.fullmatch(cell) for cell in below[0][1]) and any("--" in c for c in below[0][1]):
        notes.append(f"Line {below[0][0]} is a line of dashes and is no row.")
        below = below[1:]
    return first, below


def _without_titles(sample: list[Row], settings: Options, notes: list[str]) -> list[Row]:
    """The sample without lines of one cell above a table of several columns."""
    filled = [sum(bool(cell.strip()) for cell in row) for _, row in sample]
    if settings.header == "true" or Counter(filled).most_common(1)[0][0] < 2:
        return sample
    above = next((i for i, count in enumerate(filled) if count > 1), 0)
    if not 0 < above <= _TITLES or len(sample) - above < 3 or 1 in filled[above:][: 2 * above + 3]:
        return sample
    for line, row in sample[:above]:
        title = next(cell for cell in row if cell.strip())
        notes.append(f"Line {line} is read as a title: {title.strip()[:60]!r} (header=true or skip= decide).")
    return sample[above:]


def _looks_like_data(first: list[str], below: list[list[str]]) -> bool:
    """A cell of the first line is a number, or occurs again below in the same column more than once."""
    if any(NUMBER.fullmatch(cell) for cell in first):
        years = all(re.fullmatch(r"\s*(19|20)\d\d\s*", cell) for cell in first if NUMBER.fullmatch(cell))
        return not (years and any(cell.strip() and not NUMBER.fullmatch(cell) for cell in first))
    for place, cell in enumerate(first):
        if cell.strip() and sum(len(row) > place and row[place] == cell for row in below) > 1:
            return True
    return False
