"""Aligned tables paper | ours, from records alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from experiments.records.record import Record

HEADER = ("experiment", "metric", "paper", "ours", "where the paper's value stands")


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


def aligned(rows: list[tuple[str, ...]]) -> str:
    """Columns padded to one width."""
    widths = [max(len(row[column]) for row in [HEADER, *rows]) for column in range(len(HEADER))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    head = "  ".join(cell.ljust(width) for cell, width in zip(HEADER, widths, strict=True)).rstrip()
    return "\n".join([head, "  ".join("-" * width for width in widths), *lines])


def paper_and_ours(record: Record) -> str:
    """The table of one record. Embedded data have no value in the paper: theirs stand alone."""
    if record.tier != "smoke":
        return aligned(rows_of(record))
    rows = [(row[1], row[3]) for row in rows_of(record)]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name.ljust(width)}  {value}" for name, value in rows]
    return "\n".join(
        [*lines, f"(embedded data, {record.data}: a check of the method, not of the paper's numbers)"]
    )


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
