"""How a table is read: the options that every reader of tables takes, and how their values are checked."""

from __future__ import annotations

import csv
from dataclasses import Field, dataclass, field
from typing import Any

from experiments.records.errors import ConfigError

MISSING = ("", "na", "n/a", "#n/a", "nan", "null", "none", "?", "-", ".", "nat", "<na>")
SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|", "space": " "}


def option(default: Any, text: str, *choices: str) -> Any:
    """A dataclass field with its help and, if it has them, its allowed values."""
    meta = {"help": text, "choices": choices}
    if isinstance(default, tuple):
        return field(default_factory=lambda: default, metadata=meta)
    return field(default=default, metadata=meta)


@dataclass(frozen=True)
class Options:
    """Every field changes the result, and is refused where it cannot."""

    label: str | None = option(
        None, "the column with the labels; found by its name (label, class, target, y ...)"
    )
    id: str | None = option(None, "a column that names the rows: it is shown, and it is no feature")
    group: str | None = option(None, "rows with the same value are held out together (one patient)")
    weight: str | None = option(None, "a column with a weight for each row, 0 or more")
    ignore: tuple[str, ...] = option((), "columns that are no features, for instance [comment,date]")
    text: tuple[str, ...] = option((), "columns to read as free text, whatever their cells")
    numbers: tuple[str, ...] = option((), "columns to read as numbers; other cells count as missing")
    categories: tuple[str, ...] = option((), "columns to read as categories, numbers included")
    dates: tuple[str, ...] = option((), "columns to read as dates")
    keep: tuple[str, ...] = option((), "columns to keep that would be left out as ids, copies or leaks")
    task: str = option("auto", "whether the labels are classes or numbers", "auto", "classes", "numbers")
    join: bool = option(False, "true: labels that differ by spaces or by upper and lower case are one class")
    unlabelled: tuple[str, ...] = option((), "label values that stand for no label")
    missing: tuple[str, ...] = option(MISSING, "cells that count as missing in every other column")
    encoding: str = option("auto", "encoding of a text file, for instance utf-8, cp1252, shift_jis")
    separator: str = option("auto", "sign between cells: comma, semicolon, tab, pipe, space or one character")
    decimal: str = option("auto", "sign of decimal numbers", "auto", "point", "comma")
    header: str = option("auto", "whether the first line holds the names", "auto", "true", "false")
    skip: int = option(0, "lines above the header to leave out; titles and comments are found")
    quote: str = option(
        "auto", "quotation marks of cells; none: ordinary characters; single: '", "auto", "none", "single"
    )
    bad_rows: str = option(
        "refuse",
        "rows with too many or too few cells; fill: missing cells are empty",
        "refuse",
        "skip",
        "fill",
    )
    day_first: str = option("auto", "whether 03/04/2024 is the third of April", "auto", "true", "false")
    sheet: str | None = option(None, "the sheet of an Excel file; by default the first")
    levels: int = option(50, "categories of a column that get a feature each; rarer ones share one")
    words: int = option(20_000, "words of a text column that get a feature each, the most frequent ones")
    min_df: int = option(2, "rows that a word must occur in to get a feature")


def checked(item: Field[Any], value: Any) -> Any:  # noqa: C901  one branch per kind of option
    """``value`` in the type of the field."""
    kind, name = str(item.type), item.name
    if name == "header" and isinstance(value, bool):
        value = str(value).lower()
    if kind.startswith("tuple"):
        if isinstance(value, str):
            value = _listed(value.strip().removeprefix("[").removesuffix("]"))
            value = [part for part in value if part or name == "missing"]
        listed = tuple(str(part) for part in value)
        return (
            tuple({"": None, **dict.fromkeys(part.lower() for part in listed)})
            if name == "missing"
            else listed
        )
    if kind == "bool":
        if value in (True, False):
            return bool(value)
        if str(value).lower() not in ("true", "false"):
            raise ConfigError(f"{name}={value}: give true or false.")
        return str(value).lower() == "true"
    if kind.startswith(("int", "float")):
        if value is None or (value in ("auto", "null") and "None" in kind):
            return None
        try:
            number = int(value) if kind == "int" else float(value)
        except (TypeError, ValueError):
            what = "a whole number" if kind == "int" else "a number"
            raise ConfigError(f"{name}={value}: give {what}.") from None
        if name == "skip" and number < 0:
            raise ConfigError(f"skip={value}: give 0 or the number of lines above the header.")
        return number
    if value is None:
        return None
    choices = item.metadata["choices"]
    if choices and value not in choices:
        raise ConfigError(f"{name}={value}: choose from {', '.join(choices)}.")
    return str(value)


def _listed(text: str) -> list[str]:
    """The parts between commas; one that holds a comma stands in double quotation marks."""
    parts = next(csv.reader([text], skipinitialspace=True), [""])
    return [part.strip() for part in parts] or [""]


def separator_of(name: str) -> str | None:
    """The character of ``separator=``, None for auto."""
    if name == "auto":
        return None
    character = SEPARATORS.get(name, name)
    if len(character) != 1:
        raise ConfigError(f"separator={name}: give {', '.join(SEPARATORS)} or one character in quotes.")
    return character
