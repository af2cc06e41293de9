"""The settings of ``python -m experiments.label_errors``: defaults, help, and how they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from difflib import get_close_matches
from typing import Any

from experiments.errors import ConfigError

MISSING = ("", "na", "n/a", "#n/a", "nan", "null", "none", "?", "-", ".", "nat", "<na>")
SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|", "space": " "}
RANKS = ("held_loss", "held_margin", "loss", "self_influence")


def _set(default: Any, text: str, *choices: str) -> Any:
    """A dataclass field with its help and, if it has them, its allowed values."""
    meta = {"help": text, "choices": choices}
    if isinstance(default, tuple):
        return field(default_factory=lambda: default, metadata=meta)
    return field(default=default, metadata=meta)


@dataclass(frozen=True)
class Settings:
    """Every field changes the result, and is refused where it cannot."""

    label: str | None = _set(
        None, "the column with the labels; found by its name (label, class, target, y ...)"
    )
    id: str | None = _set(None, "a column that names the rows: it is shown, and it is no feature")
    group: str | None = _set(None, "rows with the same value are held out together (one patient, one author)")
    weight: str | None = _set(None, "a column with a weight for each row, 0 or more")
    ignore: tuple[str, ...] = _set((), "columns that are no features, for instance [comment,date]")
    text: tuple[str, ...] = _set((), "columns to read as free text, whatever their cells")
    numbers: tuple[str, ...] = _set((), "columns to read as numbers; other cells count as missing")
    categories: tuple[str, ...] = _set((), "columns to read as categories, numbers included")
    dates: tuple[str, ...] = _set((), "columns to read as dates")
    keep: tuple[str, ...] = _set((), "columns to keep that would be left out as ids, copies or leaks")
    task: str = _set("auto", "are the labels classes or numbers", "auto", "classes", "numbers")
    join: bool = _set(False, "true: labels that differ by spaces or by upper and lower case are one class")
    unlabelled: tuple[str, ...] = _set((), "label values that mean: this row has no label")
    missing: tuple[str, ...] = _set(MISSING, "cells that count as missing in every other column")
    encoding: str = _set("auto", "of a text file, for instance utf-8, cp1252, shift_jis")
    separator: str = _set("auto", "between cells: comma, semicolon, tab, pipe, space or one character")
    decimal: str = _set("auto", "sign of decimal numbers", "auto", "point", "comma")
    header: str = _set("auto", "does the first line hold the names", "auto", "true", "false")
    quote: str = _set("auto", "none: quotation marks are ordinary characters", "auto", "none")
    bad_rows: str = _set(
        "refuse",
        "rows with too many or too few cells; fill: missing cells are empty",
        "refuse",
        "skip",
        "fill",
    )
    day_first: str = _set("auto", "is 03/04/2024 the third of April", "auto", "true", "false")
    sheet: str | None = _set(None, "the sheet of an Excel file; by default the first")
    levels: int = _set(50, "categories of a column that get a feature each; rarer ones share one")
    words: int = _set(20_000, "words of a text column that get a feature each, the most frequent ones")
    model: str = _set(
        "auto",
        "features as they are, curved ones beside them, or what predicts better",
        "auto",
        "linear",
        "curved",
    )
    l2: float | None = _set(None, "regularisation; by default chosen by the leave-one-out loss")
    rank: str = _set("held_loss", "what the list is sorted by", *RANKS)
    rows: int = _set(10_000, "suspects on the page; suspects.csv has every row")
    seed: int = _set(0, "of the rows that λ is chosen on and of the curved features")
    output: str | None = _set(None, "folder of the results; by default the file's name and -label-errors")
    debug: bool = _set(False, "true: an error shows its traceback")


def help_text() -> str:
    """What ``--help`` prints."""
    lines = [
        "python -m experiments.label_errors FILE [key=value ...]",
        "",
        "Which labels of your table are wrong? FILE is CSV, TSV, Parquet or Excel, also as .gz.",
        "Writes suspects.csv, report.html (open it in a browser) and report.json, and prints ten rows.",
        "",
    ]
    width = max(len(item.name) for item in fields(Settings)) + 1
    for item in fields(Settings):
        choices = item.metadata["choices"]
        tail = f" ({', '.join(choices)}; default {item.default})" if choices else _default(item)
        lines.append(f"  {item.name + '=':<{width}} {item.metadata['help']}{tail}")
    lines += ["", "A list is [a,b]. Exit codes: 0 done, 1 the table cannot be used, 2 a wrong setting."]
    return "\n".join(lines)


def _default(item: Field[Any]) -> str:
    if item.name == "missing":
        return ""
    value = item.default
    return f" (default {value})" if isinstance(value, (int, float)) and not isinstance(value, bool) else ""


def parse(arguments: Sequence[str]) -> tuple[str, Settings]:
    """The file and the settings of a command line.

    Raises:
        ConfigError: no file or two, an unknown key, a value that the key cannot take.
    """
    files = [argument for argument in arguments if not _is_setting(argument)]
    given: dict[str, Any] = {}
    for argument in arguments:
        if _is_setting(argument):
            key, _, value = argument.partition("=")
            given[key] = value
    if len(files) != 1:
        raise ConfigError(
            f"{len(files)} files are named; give one: python -m experiments.label_errors FILE [key=value]."
        )
    return files[0], settings(**given)


def _is_setting(argument: str) -> bool:
    key, sign, _ = argument.partition("=")
    return bool(sign) and key.replace("_", "").isalnum()


def settings(**given: Any) -> Settings:
    """Settings from texts or values; ConfigError names the key, its value and what it can be."""
    known = {item.name: item for item in fields(Settings)}
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in known:
            close = get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(f"there is no setting {key!r}: {hint}there are {', '.join(known)}.")
        values[key] = _value(known[key], value)
    found = Settings(**values)
    if found.levels < 1 or found.words < 1 or found.rows < 1:
        raise ConfigError("levels=, words= and rows= must be 1 or more.")
    if found.l2 is not None and not 0 < found.l2 < float("inf"):
        raise ConfigError(f"l2={found.l2}: it must be above 0 and finite.")
    return found


def _value(item: Field[Any], value: Any) -> Any:
    """``value`` in the type of the field."""
    kind, name = str(item.type), item.name
    if name == "header" and isinstance(value, bool):
        value = str(value).lower()
    if kind.startswith("tuple"):
        if isinstance(value, str):
            value = [part.strip() for part in value.strip().removeprefix("[").removesuffix("]").split(",")]
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
            return int(value) if kind == "int" else float(value)
        except (TypeError, ValueError):
            what = "a whole number" if kind == "int" else "a number"
            raise ConfigError(f"{name}={value}: give {what}.") from None
    if value is None:
        return None
    choices = item.metadata["choices"]
    if choices and value not in choices:
        raise ConfigError(f"{name}={value}: choose from {', '.join(choices)}.")
    return str(value)


def separator_of(name: str) -> str | None:
    """The character of ``separator=``, None for auto."""
    if name == "auto":
        return None
    character = SEPARATORS.get(name, name)
    if len(character) != 1:
        raise ConfigError(f"separator={name}: give {', '.join(SEPARATORS)} or one character in quotes.")
    return character
