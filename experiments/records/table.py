"""Aligned tables paper | ours, from records alone."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.records.record import Record

HEADER = ("experiment", "metric", "paper", "ours", "where the paper's value stands")
WIDTH = 80  # of what is printed: a terminal's


def shown(value: Any) -> str:
    """A number to four significant digits; lists in brackets; what is missing as such."""
    if value is None:
        return "missing"
    if isinstance(value, (bool, str)):
        return str(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(shown(item) for item in value)}]"
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    close_to_one = 0.99 < abs(value) < 1  # 0.99999 must not be shown as 1
    return f"{value:.6f}".rstrip("0").rstrip(".") if close_to_one else f"{value:.4g}"


def one_line(content: Any) -> str:
    """A cell that stays in its row: white space as single spaces, control characters shown as such."""
    text = " ".join(str(content).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def rows_of(record: Record) -> list[tuple[str, ...]]:
    """One row per value of the paper."""
    rows = []
    for name, entry in (record.paper or {}).items():
        ours = record.metric(entry.get("metric", name))
        label = f"{record.experiment} ({record.data})"
        row = (label, name, shown(entry.get("value")), shown(ours), entry.get("where", ""))
        rows.append(tuple(one_line(cell) for cell in row))
    return rows


def fitted(header: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int | None] = ()) -> str:
    """Columns of text in at most ``WIDTH`` characters; a cell that is too long goes on below itself.

    widths: the width of each column, or None for one that may take what is left.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for place, name in enumerate(header):
        table.add_column(name, overflow="fold", width=widths[place] if widths else None)
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))  # markup in it is not read
    page = io.StringIO()
    Console(file=page, width=WIDTH, color_system=None, emoji=False, legacy_windows=False).print(table)
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines())


def paper_and_ours(record: Record) -> str:
    """The table of one record. Embedded data have no value in the paper: theirs stand alone."""
    if record.tier != "smoke":
        rows = rows_of(record)
        label = one_line(f"{record.experiment} ({record.data})")
        return "\n".join([label, fitted((*HEADER[1:4], "where it stands"), [row[1:] for row in rows])])
    lines = fitted(("metric", "ours"), [(row[1], row[3]) for row in rows_of(record)])
    note = f"(embedded data, {record.data}: a check of the method, not of the paper's numbers)"
    return "\n".join([lines, *textwrap.wrap(one_line(note), WIDTH)])


def markdown(records: list[Record]) -> str:
    """The README's table."""
    lines = [f"| {' | '.join(HEADER)} |", f"|{'---|' * len(HEADER)}"]
    for record in records:
        for row in rows_of(record):
            cells = (cell.replace("|", "\\|").replace("<", "&lt;") for cell in row)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def records_in(results: Path) -> list[Record]:
    """Every record one folder below ``results``, by name."""
    return [Record.load(path.parent) for path in sorted(results.glob("*/record.json"))]
