"""What one column holds: numbers, dates, categories, text, or nothing that a model can use."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from experiments.data.tables.dates import MOSTLY, dates_of, parsed
from experiments.data.tables.options import Options

WORDS = 3.0  # mean words a cell from which a column of many values is text
_ID_NAME = re.compile(
    r"(^|[\W_])(id|ids|uuid|guid|index|idx|key|rowid|rownames?|row names|nr|no|num|number)$", re.I
)
_UNITS = "%|€|\\$|£|¥|kg|g|mg|km|m|cm|mm|ml|l|h|min|s|years?|yrs?|°|°C|°F|k"
_AFFIXED = re.compile(
    rf"\s*[€$£¥]?\s*([-+]?)\s*[€$£¥]?\s*([\d.,'_ \u00a0\u202f]*\d[.]?)([eE][-+]?\d+)?\s*({_UNITS})?\s*"
)
_COMPACT = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])")
_LONG_COLUMN = 1000  # cells from which the short way to numbers is worth while
_FIRST = 50  # cells that are looked at before a whole column is
_LONG = 60  # signs from which a cell is no number


@dataclass
class Column:
    """One column as read.

    Attributes:
        kind: number, date, category, text; or why it is no feature: id, constant, copy, leak, ignored.
        missing: cells that count as missing, stray ones included.
        values: floats for numbers, datetime64 for dates, objects (None: missing) for categories and texts.
        note: what the reader should know, in a phrase.
        encoded: how it enters the model, in a phrase; features: in how many numbers a row.
    """

    name: str
    kind: str
    missing: int = 0
    values: Any = None
    note: str = ""
    encoded: str = ""
    features: int = 0
    words: list[str] = field(default_factory=list)  # further notes

    @property
    def used(self) -> bool:
        """Whether the column is a feature."""
        return self.kind in ("number", "date", "category", "text")

    def left_out(self, kind: str, note: str) -> None:
        """Turns the column into one that is no feature."""
        self.kind, self.note, self.values = kind, note, None


def missing_cells(series: Any, settings: Options) -> np.ndarray:
    """``(n,)`` True if a cell counts as missing."""
    found = series.isna().to_numpy(dtype=bool, na_value=True)
    if series.dtype.kind in "biufcmM":
        return found
    stripped = series.astype("str").str.strip().str.lower()
    return found | stripped.isin(list(settings.missing)).to_numpy(dtype=bool, na_value=True)


def kind_of(series: Any, settings: Options, decimal: str | None, where: Callable[[int], str]) -> Column:
    """Reads a column; ``where(i)`` says where row i stands (``line 12``)."""
    name = str(series.name)
    numbers = _clean_numbers(series, settings)
    if numbers is not None:
        return Column(name, "number", 0, numbers)
    missing = missing_cells(series, settings)
    return _kind_of(name, series, missing, settings, decimal, where)


def _kind_of(
    name: str,
    series: Any,
    missing: np.ndarray,
    settings: Options,
    decimal: str | None,
    where: Callable[[int], str],
) -> Column:
    """The same the long way: one kind after the other is tried."""
    import pandas as pd

    forced = _forced(series, missing, settings)
    if missing.all():
        return Column(name, "constant", int(missing.sum()), note="every cell is missing")
    if forced is None and pd.api.types.is_datetime64_any_dtype(series.dtype):
        return _dates(name, _naive(series), missing)
    if series.dtype.kind == "c":
        return Column(name, "ignored", int(missing.sum()), note="complex numbers; give two columns")
    if forced == "text":
        return Column(name, "text", int(missing.sum()), _objects(series, missing))
    if forced == "categories" or (forced is None and isinstance(series.dtype, pd.CategoricalDtype)):
        return Column(name, "category", int(missing.sum()), _objects(series, missing))
    if forced != "dates":
        column = _number_column(name, series, missing, settings, decimal, where, forced == "numbers")
        if column is not None:
            return column
    said: list[str] = []
    if forced in (None, "dates"):
        column = _date_column(name, series, missing, settings, where, forced == "dates", said)
        if column is not None:
            return column
    column = _words_column(name, _objects(series, missing), missing)
    column.words = said
    return column


def _clean_numbers(series: Any, settings: Options) -> np.ndarray | None:
    """``(n,)`` the cells of a long column if each is a finite number and nothing else, None otherwise.

    The short way to what ``_number_column`` finds, in C++. Needs pyarrow and texts that it holds.
    """
    if len(series) < _LONG_COLUMN or getattr(series.dtype, "storage", "") != "pyarrow":
        return None
    if any(str(series.name) in vars(settings)[kind] for kind in ("text", "categories", "dates")):
        return None
    if any(np.isfinite(_number(word, None)[0]) for word in settings.missing):
        return None
    if series.iloc[:_FIRST].astype("str").str.fullmatch(_COMPACT).all():
        return None  # these may be days
    import pyarrow as pa

    try:
        found = pa.array(series.array).cast(pa.float64())
    except pa.ArrowInvalid:  # a cell is no number
        return None
    numbers = np.array(found, dtype=np.float64)
    return numbers if found.null_count == 0 and bool(np.isfinite(numbers).all()) else None


def _forced(series: Any, missing: np.ndarray, settings: Options) -> str | None:
    """The kind that a setting names for the column; dates for days written as 20240131."""
    for kind in ("numbers", "dates", "categories", "text"):
        if str(series.name) in vars(settings)[kind]:
            return kind
    return "dates" if _compact(series, missing) else None


def _objects(series: Any, missing: np.ndarray) -> np.ndarray:
    """``(n,)`` texts, None if missing."""
    values = series.astype("str").to_numpy(dtype=object, na_value=None)
    found: np.ndarray = np.where(missing, None, values)  # type: ignore[assignment]  # its stub knows no None
    return found


def _number_column(
    name: str,
    series: Any,
    missing: np.ndarray,
    settings: Options,
    decimal: str | None,
    where: Callable[[int], str],
    forced: bool,
) -> Column | None:
    """The column as numbers, None if too few cells are numbers."""
    numbers, how = numbers_of(series, missing, decimal)
    finite = np.isfinite(numbers)
    stray = ~finite & ~missing
    share = finite.sum() / max(1, (~missing).sum())
    if not forced and (share < MOSTLY or not finite.any()):
        return None
    if not finite.any():
        return Column(name, "constant", len(numbers), note="no cell is a number")
    column = Column(name, "number", int((~finite).sum()), np.where(finite, numbers, np.nan), how)
    if stray.any():
        row = int(np.flatnonzero(stray)[0])
        column.words.append(
            f"column {name!r}: {int(stray.sum())} cells are no finite number and count as missing, the first "
            f"is {str(series.iloc[row])[:40]!r} on {where(row)}"
        )
    return column


def numbers_of(series: Any, missing: np.ndarray, decimal: str | None) -> tuple[np.ndarray, str]:
    """``(n,)`` floats (NaN: none) and how the cells were written, empty for plain numbers."""
    import pandas as pd

    if series.dtype.kind in "biufc" or isinstance(series.dtype, pd.BooleanDtype):
        return series.to_numpy(dtype=np.float64, na_value=np.nan), ""
    numbers = pd.to_numeric(series.mask(missing), errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    numbers = numbers.copy()  # it may be read-only
    rest = ~np.isfinite(numbers) & ~missing
    if not rest.any():
        return numbers, ""
    if rest.sum() > 1000 and rest[:: max(1, len(rest) // 1000)].mean() > 0.5:
        sample = np.flatnonzero(rest)[:200]
        if np.mean([np.isfinite(_number(str(series.iloc[i]), decimal)[0]) for i in sample]) < 0.5:
            return numbers, ""
    found: dict[str, tuple[float, str]] = {}
    ways: dict[str, int] = {}
    for place in np.flatnonzero(rest):
        cell = str(series.iloc[place])
        if cell not in found:
            found[cell] = _number(cell, decimal)
        numbers[place], way = found[cell]
        if way and np.isfinite(numbers[place]):
            ways[way] = ways.get(way, 0) + 1
    return numbers, ", ".join(sorted(ways))


def _number(cell: str, decimal: str | None) -> tuple[float, str]:
    """A cell as a number and how it is written; NaN if it is none. Accountants write (5) for -5."""
    text = cell.strip().replace("\N{MINUS SIGN}", "-")
    if len(text) > _LONG:
        return np.nan, ""
    bracketed = re.fullmatch(r"\(([^()+-]*\d[^()+-]*)\)", text)
    if bracketed is not None:
        return -_plain(bracketed.group(1), decimal)[0], "negative in brackets"
    return _plain(text, decimal)


def _plain(text: str, decimal: str | None) -> tuple[float, str]:
    """The same without brackets around it."""
    if re.fullmatch(r"[-+]?0[xX][0-9a-fA-F]+", text):
        return float(int(text, 16)), "hexadecimal"
    match = _AFFIXED.fullmatch(text)
    if match is None:
        return np.nan, ""
    sign, body, power, unit = match.groups()
    way = "with units" if unit or re.search(r"[€$£¥]", text) else ""
    if decimal == ",":
        if re.fullmatch(r"\d*(,\d+)?|\d{1,3}([. \u00a0\u202f']\d{3})+(,\d+)?", body) is None:
            return np.nan, ""
        plain, way = re.sub(r"[. \u00a0\u202f']", "", body).replace(",", "."), way or "decimal commas"
    elif re.fullmatch(r"\d{1,3}([,'_ \u00a0\u202f]\d{3})+(\.\d*)?", body):
        plain, way = re.sub(r"[,'_ \u00a0\u202f]", "", body), way or "thousands separators"
    elif re.fullmatch(r"\d*\.?\d*", body):
        plain = body
    elif re.fullmatch(r"\d*,\d+", body) and decimal is None:
        plain, way = body.replace(",", "."), way or "decimal commas"
    else:
        return np.nan, ""
    try:
        return float(sign + plain + (power or "")), way
    except (ValueError, OverflowError):
        return np.nan, ""


def _compact(series: Any, missing: np.ndarray) -> bool:
    """Whether every cell is a day written as 20240131."""
    if series.dtype.kind in "fbmMc" or missing.all():
        return False
    first = series.iloc[:_FIRST][~missing[:_FIRST]].astype("str")
    if not first.str.fullmatch(_COMPACT).all():
        return False
    cells = series[~missing].astype("str")
    return bool(cells.str.fullmatch(_COMPACT).all()) and bool(parsed(cells, "%Y%m%d").notna().all())


def _naive(series: Any) -> np.ndarray:
    import pandas as pd

    return pd.to_datetime(series, utc=True).dt.tz_localize(None).to_numpy(dtype="datetime64[s]")


def _dates(name: str, values: np.ndarray, missing: np.ndarray, note: str = "") -> Column:
    return Column(name, "date", int((np.isnat(values) | missing).sum()), values, note)


def _date_column(
    name: str,
    series: Any,
    missing: np.ndarray,
    settings: Options,
    where: Callable[[int], str],
    forced: bool,
    said: list[str],
) -> Column | None:
    """The column as dates, None if too few cells are; ``said`` then gets what the reader should know."""
    found = dates_of(series, missing, settings.day_first, forced)
    if found is None:
        return None
    words = [f"column {name!r}: {word}" for word in found.words]
    if found.values is None:
        said += words
        return None
    column = _dates(name, found.values, missing, found.note)
    stray = np.isnat(column.values) & ~missing
    if stray.any():
        row = int(np.flatnonzero(stray)[0])
        words.append(
            f"column {name!r}: {int(stray.sum())} cells are no date and count as missing, the first is "
            f"{str(series.iloc[row])[:40]!r} on {where(row)}"
        )
    column.words = words
    return column


def _words_column(name: str, values: np.ndarray, missing: np.ndarray) -> Column:
    """Text where cells have several words and many values, a category otherwise."""
    present = values[~missing]
    distinct = len(set(present))
    words = float(np.mean([len(re.findall(r"\w+", cell[:2000])) for cell in present[:2000]]))
    length = float(np.mean([len(cell) for cell in present[:2000]]))
    many = distinct > 20 and distinct > 0.2 * len(present)
    text = (words > WORDS and (many or distinct > 100)) or (
        words > 1.5 and distinct > 0.5 * len(present) and many
    )
    text = text or (many and length > 15 and words > 1 and distinct > 0.5 * len(present))
    return Column(name, "text" if text else "category", int(missing.sum()), values)


def looks_like_id(column: Column, rows: int) -> str:
    """Why a column only tells the rows apart; empty if it may hold more."""
    if column.missing or rows < 20:
        return ""
    if column.kind == "number":
        values = column.values
        whole = bool((values == np.floor(values)).all()) and float(np.abs(values).max()) < 2**53
        if not whole or len(np.unique(values)) < rows:
            return ""
        if bool((np.abs(np.diff(values)) == 1).all()):
            return "it counts the rows"
        return "its name and its whole numbers, each once" if _ID_NAME.search(column.name) else ""
    if column.kind in ("category", "text"):
        distinct = len(set(column.values))
        single = float(np.mean([len(cell[:2000].split()) == 1 for cell in column.values[:2000]])) > 0.95
        if distinct >= 0.95 * rows and single:
            return "nearly every cell is a value of its own"
        if distinct == rows and _ID_NAME.search(column.name) and column.kind == "category":
            return "its name, and every cell is a value of its own"
    return ""
