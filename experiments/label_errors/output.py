"""suspects.csv, report.json and the ten rows in the terminal."""

from __future__ import annotations

import csv
import io
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.label_errors.page import html
from experiments.records import atomic
from experiments.records.csv import cell

if TYPE_CHECKING:
    from experiments.label_errors.findings import Findings

SUSPECTS, PAGE, REPORT = "suspects.csv", "report.html", "report.json"
SHOWN = 10
# Cells that stay as they are: ASCII that begins with a letter or digit, and negative numbers. pandas matches
# a whole column in C++ only if a pattern has no \U in it.
HARMLESS = r"[A-Za-z0-9_.][\x20-\x7e]*|-[0-9]+([.,][0-9]+)*([eE][-+]?[0-9]+)?"
NAMED = 8  # columns with missing cells that are named in the terminal
_WIDTH = 80
_CHUNK = 20_000  # rows whose cells are Python texts at once


def save(found: Findings, folder: Path) -> dict[str, Path]:
    """Writes the three files."""
    paths = {name: folder / name for name in (SUSPECTS, PAGE, REPORT)}
    atomic.write_text(paths[SUSPECTS], csv_text(found.suspects))
    atomic.write_text(paths[PAGE], html(found))
    atomic.write_json(paths[REPORT], report(found))
    return paths


def report(found: Findings) -> dict[str, Any]:
    """The summary, the columns and the notes: numbers and names, none of the table's cells."""
    return {
        "summary": found.summary,
        "columns": [
            {
                "name": column.name,
                "read_as": column.kind,
                "missing": column.missing,
                "encoded": column.encoded,
                "features": column.features,
                "note": column.note,
            }
            for column in found.columns
        ],
        "notes": found.notes,
        "settings": {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in vars(found.settings).items()
        },
    }


def csv_text(frame: Any) -> str:
    """A DataFrame as CSV of which a spreadsheet computes nothing.

    Lines end in CR LF (RFC 4180): with LF alone a carriage return within a cell would end a line elsewhere.
    """
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow([cell(str(name)) for name in frame.columns])
    for start in range(0, len(frame), _CHUNK):
        part = frame.iloc[start : start + _CHUNK]
        columns = [_cells(part.iloc[:, place]) for place in range(part.shape[1])]
        writer.writerows(zip(*columns, strict=True))
    return out.getvalue()


def _cells(column: Any) -> list[str]:
    """The cells of a column as harmless texts. Only odd ones are looked at one by one."""
    import pandas as pd

    if column.dtype.kind in "iuf" or pd.api.types.is_numeric_dtype(column.dtype):
        lines = column.to_csv(index=False, header=False, lineterminator="\n").split("\n")[:-1]
        return ["" if text == '""' else text for text in lines]  # a line of one empty cell
    texts = column.astype("str").fillna("")
    harmless = texts.str.fullmatch(HARMLESS).to_numpy(dtype=bool, na_value=False)
    values: list[str] = texts.tolist()
    for place in np.flatnonzero(~harmless):
        values[place] = cell(values[place])
    return values


def terminal(found: Findings, width: int = _WIDTH) -> str:
    """The summary and the first ten suspects, no line wider than ``width``."""
    summary = found.summary
    low, high = summary["expected_errors_interval_90"]
    what = "outlying targets" if summary["task"] == "numbers" else "wrong labels"
    kinds: dict[str, int] = {}
    for column in found.columns:
        kinds[column.kind] = kinds.get(column.kind, 0) + 1
    read = ", ".join(f"{count} {plural(kind, count)}" for kind, count in kinds.items())
    lines = [
        *wrapped(f"{summary['labelled_rows']} rows, label {found.labels.name!r}; columns: {read}.", width),
        *wrapped(f"About {summary['expected_errors']} {what} (90 % interval {low} to {high}).", width),
        *_missing(found, width),
        "",
        *table_lines(found, width),
    ]
    return "\n".join(lines)


def _missing(found: Findings, width: int) -> list[str]:
    """How many cells were filled in, column by column, the emptiest first."""
    gaps = sorted(
        ((column.missing, column.name) for column in found.columns if column.used and column.missing),
        key=lambda gap: -gap[0],
    )
    if not gaps:
        return []
    listed = ", ".join(f"{printable(name)} {count}" for count, name in gaps[:NAMED])
    more = f" and {len(gaps) - NAMED} more columns" if len(gaps) > NAMED else ""
    return wrapped(
        f"Missing cells: {listed}{more}. They are filled in, and a feature marks them; report.html says how.",
        width,
    )


def plural(kind: str, count: int) -> str:
    """The word for so many columns of a kind."""
    words = {"category": "categories", "copy": "copies", "text": "texts", "leak": "leaks"}
    if count == 1 or kind == "ignored":
        return kind
    return words.get(kind, kind + "s")


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """The text in lines of at most ``width`` columns of the terminal."""
    lines, now = [], indent
    for word in text.split(" "):
        piece = word
        while columns(indent + piece) > width:
            cut = clipped(piece, width - len(indent), "")
            lines.append(now) if now.strip() else None
            lines.append(indent + cut)
            piece, now = piece[len(cut) :], indent
        if columns(now + " " + piece) > width and now.strip():
            lines.append(now)
            now = indent + piece
        else:
            now = now + piece if not now.strip() else f"{now} {piece}"
    return [*lines, now]


def columns(text: str) -> int:
    """Columns of a terminal that a text takes."""
    return sum(
        0 if unicodedata.combining(sign) else 2 if unicodedata.east_asian_width(sign) in "WF" else 1
        for sign in text
    )


def printable(value: Any) -> str:
    """A cell on one line, without control characters or marks that turn the direction of writing."""
    text = " ".join(str(value).split())
    return "".join(
        sign if unicodedata.category(sign)[0] != "C" else "\N{REPLACEMENT CHARACTER}" for sign in text
    )


def clipped(text: str, width: int, mark: str = "\N{HORIZONTAL ELLIPSIS}") -> str:
    """At most ``width`` columns of the text."""
    if columns(text) <= width:
        return text
    out, room = "", width - len(mark)
    for sign in text:
        if columns(out + sign) > room:
            break
        out += sign
    return out + mark


def table_lines(found: Findings, width: int) -> list[str]:
    """Rank, line, given and proposed label, probability, and the beginning of the row."""
    frame, place = found.suspects, found.table.place
    numbers = found.summary["task"] == "numbers"
    head = ["", place, "given", "proposed", "deviations" if numbers else "p(given)", "row"]
    names = list(frame.columns)
    ours = names[: len(names) - len(found.own)]
    key = "deviations" if numbers else "probability_of_given"
    column = {name.rstrip("_"): name for name in ours}
    dull = {column.name for column in found.columns if column.kind in ("id", "constant", "copy")}
    own = [
        name for name in found.own if name != found.labels.name and (name not in dull or name == found.shown)
    ]
    rows = []
    for at in range(min(SHOWN, len(frame))):
        row = frame.iloc[at]
        number = f"{row[column[key]]:.2g}" if numbers else f"{row[column[key]]:.3f}"
        rest = ", ".join(f"{printable(name)}={printable(row[name])}" for name in own)
        given, proposed = row[column["given"]], row[column["proposed"]]
        shown = [f"{given:.4g}", f"{proposed:.4g}"] if numbers else [printable(given), printable(proposed)]
        rows.append([str(at + 1), str(row[column[place]]), *shown, number, rest])
    widths = [max(columns(line[i]) for line in [head, *rows]) for i in range(5)]
    widths[2], widths[3] = min(widths[2], 14), min(widths[3], 14)
    left = width - sum(widths) - 2 * 5
    lines = []
    for line in [head, *rows]:
        cells = [clipped(cell, size) for cell, size in zip(line[:5], widths, strict=True)]
        padded = [
            " " * (size - columns(cell)) + cell if i in (0, 1, 4) else cell + " " * (size - columns(cell))
            for i, (cell, size) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append("  ".join([*padded, clipped(line[5], left)]).rstrip())
    return lines
