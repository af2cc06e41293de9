"""The label column: which one it is, classes or numbers, and which values are the same class."""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from experiments.data.tables.dates import MOSTLY
from experiments.data.tables.kinds import missing_cells, numbers_of
from experiments.data.tables.options import Options
from experiments.data.tables.reading import Table
from experiments.records.errors import UserError

NAMES = ("label", "labels", "class", "target", "y", "category", "outcome", "species", "diagnosis", "v1")
RARE = 5  # rows of a class below which little can be said of it
MANY = 20  # different whole numbers up to which a label column of numbers holds classes
_BLANK = {"", "nan", "nat", "<na>"}  # of a label; NA, None and null can be names of classes


@dataclass
class Labels:
    """The labels of the rows that have one.

    Attributes:
        name: of the column.
        kept: ``(m,)`` places of the rows with a label.
        y: ``(m,)`` class numbers, or floats where ``classes`` is empty (regression).
        classes: names, in order.
        given: ``(n,)`` the cells as they stand, for every row of the table.
    """

    name: str
    kept: np.ndarray
    y: np.ndarray
    classes: tuple[str, ...]
    given: np.ndarray
    notes: list[str] = field(default_factory=list)

    @property
    def regression(self) -> bool:
        """Whether the labels are numbers rather than classes."""
        return not self.classes


def label_column(table: Table, settings: Options) -> str:
    """The name of the label column; UserError lists the columns."""
    columns = [str(name) for name in table.frame.columns]
    if settings.label is None:
        lower = {name.lower().strip(): name for name in reversed(columns)}
        found = [lower[name] for name in NAMES if name in lower]
        if found:
            table.notes.append(f"The labels are in column {found[0]!r} (by its name; label= names another).")
            return found[0]
        few = [name for name in columns if 1 < table.frame[name].nunique() <= 20]
        hint = f" (few values: {', '.join(map(repr, few[:5]))})" if few else ""
        raise UserError(
            f"{table.name} has no column called label: set label= to one of {_shown(columns)}{hint}."
        )
    return column_called(table, settings.label, "label")


def column_called(table: Table, name: str, option: str) -> str:
    """The column ``name``, or that of the place ``name`` from 1 (-1: the last); else UserError."""
    columns = [str(column) for column in table.frame.columns]
    if name in columns:
        return name
    if name.lstrip("-").isdigit() and 1 <= abs(int(name)) <= len(columns):
        place = int(name)
        return columns[place - 1 if place > 0 else place]
    raise UserError(f"{table.name} has no column {name!r}; it has {_shown(columns)}: set {option}=.")


def _shown(columns: list[str]) -> str:
    return ", ".join(map(repr, columns[:20])) + (", ..." if len(columns) > 20 else "")


def read_labels(table: Table, name: str, settings: Options) -> Labels:
    """Classes or numbers; UserError if there is nothing to learn."""
    series, notes = table.frame[name], []
    given = series.astype("str").to_numpy(dtype=object, na_value="")
    texts = np.array([cell.strip() for cell in given], dtype=object)
    blank = np.array([cell.lower() in _BLANK for cell in texts]) | series.isna().to_numpy(bool, na_value=True)
    blank |= np.isin(texts, list(settings.unlabelled)) | np.isin(given, list(settings.unlabelled))
    kept = np.flatnonzero(~blank)
    if blank.any():
        first = int(np.flatnonzero(blank)[0])
        notes.append(
            f"{int(blank.sum())} of {len(blank)} rows have no label: they are left out (first: {table.place} "
            f"{table.lines[first]})."
        )
    if len(kept) < 4:
        raise UserError(f"{table.name} has {len(kept)} rows with a label in {name!r}; at least 4 are needed.")
    numbers = _as_numbers(series.iloc[kept], settings, table.decimal)
    if settings.task == "numbers" and numbers is None:
        raise UserError(f"task=numbers, but column {name!r} holds {texts[kept][0]!r}; set task=classes.")
    if numbers is not None and settings.task != "classes" and _continuous(numbers, settings.task):
        if len(np.unique(numbers)) < 2:
            raise UserError(
                f"{table.name}: every label in {name!r} is {numbers[0]:g}; at least 2 values are needed."
            )
        notes.append(f"The labels in {name!r} are numbers: outlying ones are sought (or set task=classes).")
        return Labels(name, kept, numbers, (), given, notes)
    values = _classes(given[kept], settings.join, notes)
    words = sorted({value for value in values if value.lower() in settings.missing})
    for word in words:
        count = int((values == word).sum())
        notes.append(f"{word!r} is a class here (rows: {count}); unlabelled=[{word}] reads it as no label.")
    classes = tuple(sorted(set(values), key=_order))
    if len(classes) < 2:
        raise UserError(
            f"{table.name}: column {name!r} holds one class only, {classes[0]!r}; at least 2 are needed."
        )
    if len(classes) > max(2, len(kept) // 2):
        _refuse_stray(table, series, kept, texts, settings)
        raise UserError(
            f"{table.name}: column {name!r} holds {len(classes)} values in {len(kept)} rows; is it the "
            "label? Set label=."
        )
    place = {value: number for number, value in enumerate(classes)}
    y = np.array([place[value] for value in values], dtype=np.int64)
    rare = [f"{value!r} ({count})" for value, count in sorted(Counter(values).items()) if count < RARE]
    if rare:
        more = ", ..." if len(rare) > 8 else ""
        notes.append(f"Classes with fewer than {RARE} rows: {', '.join(rare[:8])}{more}.")
    return Labels(name, kept, y, classes, given, notes)


def _refuse_stray(table: Table, series: Any, kept: np.ndarray, texts: np.ndarray, settings: Options) -> None:
    """UserError that names the cell, where nearly all labels are numbers."""
    part = series.iloc[kept]
    numbers, _ = numbers_of(part, np.zeros(len(part), dtype=bool), table.decimal)
    stray = np.flatnonzero(~np.isfinite(numbers))
    if 0 < len(stray) <= (1 - MOSTLY) * len(part):
        cell = texts[kept[stray[0]]]
        raise UserError(
            f"{table.name}: {len(part) - len(stray)} of {len(part)} labels in {series.name!r} are finite "
            f"numbers; {cell[:40]!r} on {table.place} {table.lines[kept[stray[0]]]} is none: set "
            f"unlabelled=[{cell[:40]}]."
        )


def _as_numbers(series: Any, settings: Options, decimal: str | None) -> np.ndarray | None:
    """Floats where every label is a finite number, else None."""
    if series.dtype.kind in "mM":
        raise UserError(f"column {series.name!r} holds times, which are no labels; name another by label=.")
    if series.dtype.kind == "b":
        return None
    numbers, _ = numbers_of(series, np.zeros(len(series), dtype=bool), decimal)
    return numbers if np.isfinite(numbers).all() else None


def _continuous(numbers: np.ndarray, task: str) -> bool:
    """Whether numbers are measured rather than names of classes."""
    if task == "numbers":
        return True
    values = np.unique(numbers)
    whole = bool((values == np.floor(values)).all())
    return len(values) > MANY or (not whole and len(values) > max(5, 0.05 * len(numbers)))


def _order(value: str) -> tuple[int, float, str]:
    try:
        return (0, float(value), value)
    except ValueError:
        return (1, 0.0, value)


def _classes(given: np.ndarray, join: bool, notes: list[str]) -> np.ndarray:
    """``(m,)`` class names. Equal booleans and equal numbers are one class; other spellings are told."""
    spellings: dict[str, Counter[str]] = {}
    for cell in given:
        spellings.setdefault(_key(cell), Counter())[cell] += 1
    alike: dict[str, list[str]] = {}
    for key, counts in spellings.items():
        alike.setdefault(_alike(key), []).append(key)
        if len(counts) > 1:
            notes.append(
                f"{', '.join(map(_shown_cell, sorted(counts)))} are one class: they are the same value."
            )
    name = {key: counts.most_common(1)[0][0].strip() for key, counts in spellings.items()}
    for keys in alike.values():
        if len(keys) == 1:
            continue
        size = {key: sum(spellings[key].values()) for key in keys}
        listed = ", ".join(f"{_shown_cell(key)} ({size[key]})" for key in sorted(keys))
        largest = max(sorted(keys), key=lambda key: size[key])
        for key in keys:
            name[key] = name[largest] if join else key  # told apart by their spaces and letters
        told = (
            "are joined"
            if join
            else "differ by spaces, case or invisible signs only; join=true makes them one"
        )
        notes.append(f"The classes {listed} {told}.")
    return np.array([name[_key(cell)] for cell in given], dtype=object)


def _alike(key: str) -> str:
    """Equal for cells that a reader takes for the same word."""
    text = unicodedata.normalize("NFKC", key)
    text = "".join(sign for sign in text if unicodedata.category(sign) != "Cf")
    return " ".join(text.casefold().split())


def _shown_cell(cell: str) -> str:
    """The cell in quotes; letters built of several signs by their codes."""
    return repr(cell) if unicodedata.is_normalized("NFC", cell) else ascii(cell)


def _key(cell: str) -> str:
    """Equal for cells of the same value: 1 and 1.0, true and TRUE, é in one sign or two."""
    cell = unicodedata.normalize("NFC", cell)
    text = cell.strip()
    if text.lower() in ("true", "false"):
        return text.lower()
    try:
        number = float(text)
    except ValueError:
        return cell
    return f"{number:.17g}" if np.isfinite(number) else cell


def weights_of(table: Table, name: str | None, kept: np.ndarray, settings: Options) -> np.ndarray | None:
    """``(m,)`` weights with mean 1; UserError names the first bad row."""
    if name is None:
        return None
    name = column_called(table, name, "weight")
    series = table.frame[name].iloc[kept]
    numbers, _ = numbers_of(series, missing_cells(series, settings), table.decimal)
    bad = ~(np.isfinite(numbers) & (numbers >= 0))
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise UserError(
            f"{table.name}: {table.place} {table.lines[kept[row]]} has the weight {str(series.iloc[row])!r}; "
            "a weight is a finite number, 0 or more."
        )
    if not numbers.sum() > 0:
        raise UserError(f"{table.name}: every weight in {name!r} is 0; some must be above 0.")
    return numbers / numbers.mean()
