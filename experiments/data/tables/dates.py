"""Cells as dates: in one format, or in two if every cell can be read in one way only."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MOSTLY = 0.9  # a column with this share of numbers (dates) is one of them with stray cells
DATE_FORMATS = (
    *("%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y/%m/%d", "%d %b %Y", "%b %d, %Y"),
    *("%d %B %Y", "%B %d, %Y", "%d-%b-%Y", "%d-%b-%y", "%d/%m/%y", "%m/%d/%y", "%d.%m.%y", "%Y.%m.%d"),
)
ISO = "ISO8601"
_CLOCK = ("%H:%M", "%H:%M:%S", "%I:%M %p", "%I:%M:%S %p")  # a time without a day
_TIMES = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
_LIKE = r"\d.*[-/. :].*\d|\d{1,2}.*[A-Za-z]{3}.*\d"  # what a cell looks like that may be a date
_LONG = 60  # signs from which a cell is no date
_SAMPLE = 200  # cells that formats are tried on
_FORCED = 0.01  # share of dates that is enough if the user says that the column holds dates


@dataclass
class Dates:
    """A column as dates.

    Attributes:
        values: ``(n,)`` datetime64, NaT for cells that are none; None if the column cannot be read as dates.
        note: the formats, in a phrase.
        words: what the reader should know, a phrase each.
    """

    values: np.ndarray | None
    note: str = ""
    words: list[str] = field(default_factory=list)


def dates_of(series: Any, missing: np.ndarray, day_first: str, forced: bool) -> Dates | None:
    """The dates of a column, None if it holds none.

    Args:
        series: the column, ``(n,)``.
        missing: ``(n,)`` cells that count as missing.
        day_first: ``auto``, or ``true`` or ``false`` as the user says.
        forced: the user says that these are dates.
    """
    texts = series.astype("str").str.strip().mask(missing)
    present = texts[~missing]
    sample = present.iloc[:_SAMPLE].str.slice(0, _LONG)
    if not forced and sample.str.contains(_LIKE, regex=True).mean() < MOSTLY:
        return None
    if float(present.iloc[:_SAMPLE].str.len().mean()) > _LONG:
        return None
    read = {form: parsed(sample, form).notna().to_numpy() for form in _forms(day_first)}
    form = max(read, key=lambda key: read[key].mean(), default=None)
    if form is None or not read[form].any():
        return None
    if read[form].mean() < MOSTLY:
        second = _second(form, read)
        if second is not None and (read[form] | read[second]).mean() >= MOSTLY:
            found = _in_two(texts, missing, form, second, list(read))
            if found.values is not None or not forced:
                return found
        if not forced:
            return _in_several(read)
        if read[form].mean() < _FORCED:
            return None
    return _in_one(texts, missing, form, list(read), forced)


def _in_one(texts: Any, missing: np.ndarray, form: str, forms: list[str], forced: bool) -> Dates | None:
    """The dates in one format; if day and month can change places, the order that more cells fit."""
    dates, note, words = parsed(texts, form), _note(form), []
    present = ~missing
    twin = _twin(form)
    if twin in forms and twin != form:
        other = parsed(texts, twin)
        if other[present].notna().all() and dates[present].notna().all():
            words.append(f"day and month cannot be told apart; it is read {note} (day_first= sets it)")
        elif other[present].notna().mean() > dates[present].notna().mean():
            dates, note = other, _note(twin)
    if not forced and dates[present].notna().mean() < MOSTLY:
        return None
    return Dates(dates.to_numpy(dtype="datetime64[s]"), note, words)


def _in_two(texts: Any, missing: np.ndarray, first: str, second: str, forms: list[str]) -> Dates:
    """The dates in two formats, if no cell can be read as two different days."""
    one, two = (parsed(texts, form) for form in (first, second))
    both = (one.notna() & two.notna() & (one != two)).to_numpy()
    doubtful = both.any()
    for form, dates in ((first, one), (second, two)):
        twin = _twin(form)
        if twin != form and twin in forms:
            cells = dates.notna().to_numpy()
            doubtful |= bool(parsed(texts[cells], twin).notna().all())
    names = f"{spoken(first)} and {spoken(second)}"
    if doubtful:
        return Dates(
            None,
            words=[
                f"its cells are dates in two formats, {names}, and some can be read as two different days: "
                "it is not read as dates (day_first= may decide, or write all dates in one format)"
            ],
        )
    dates = one.where(one.notna(), two)
    counts = int(one.notna().sum()), int((one.isna() & two.notna()).sum())
    word = f"its dates have two formats: {spoken(first)} (cells: {counts[0]}) "
    word += f"and {spoken(second)} ({counts[1]})"
    values = dates.to_numpy(dtype="datetime64[s]")
    if np.isnat(values[~missing]).mean() > 1 - MOSTLY:
        return Dates(None, words=[f"{word}; too many other cells are no dates, so it is not read as dates"])
    return Dates(values, f"as {names}", [word])


def _in_several(read: dict[str, np.ndarray]) -> Dates | None:
    """What is said of a column of dates in three formats or more; None if its cells are no dates."""
    if np.any([cells for form, cells in read.items() if form not in _CLOCK], axis=0).mean() < MOSTLY:
        return None
    return Dates(
        None,
        words=[
            "its cells are dates in more than two formats: it is not read as dates (write them in one format)"
        ],
    )


def _second(first: str, read: dict[str, np.ndarray]) -> str | None:
    """The format that reads most of what the first one left; a time of day goes with times of day only."""
    others = [form for form in read if form != first and (form in _CLOCK) == (first in _CLOCK)]
    best = max(others, key=lambda form: (read[form] & ~read[first]).sum(), default=None)
    return best if best is not None and (read[best] & ~read[first]).any() else None


def _forms(day_first: str) -> list[str]:
    """The formats worth trying, the preferred order of day and month first."""
    first = "%d" if day_first == "true" else "%m"
    forms = [ISO, "%Y%m%d", *_CLOCK]
    for day in DATE_FORMATS:
        numeric = "%b" not in day and "%B" not in day and not day.startswith("%Y")
        if numeric and day_first != "auto" and not day.startswith(first):
            continue
        forms += [day + time for time in _TIMES]
    return forms


def _twin(form: str) -> str:
    """The format with day and month in each other's place."""
    return form.replace("%d", "\0").replace("%m", "%d").replace("\0", "%m")


def _note(form: str) -> str:
    return "" if form == ISO else f"as {spoken(form)}"


def spoken(form: str) -> str:
    """A format in words: day/month/year."""
    if form == ISO:
        return "year-month-day"
    words = {"d": "day", "m": "month", "b": "month", "B": "month", "Y": "year", "y": "year", "H": "hour"}
    words |= {"I": "hour", "M": "minute", "S": "second", "p": "AM/PM"}
    return re.sub("%(.)", lambda found: words[found.group(1)], form)


def parsed(texts: Any, form: str) -> Any:
    """The cells as dates, NaT for those that do not fit the format."""
    import pandas as pd

    return pd.to_datetime(texts, format=form, errors="coerce", utc=True).dt.tz_localize(None)
