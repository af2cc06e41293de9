"""A labelled table of the user's own: numeric columns, short categories and free text, as one feature matrix.

How a column is read, unless `text` says otherwise: every cell a number: numeric, standardised by the training
part; at most 20 different values: one indicator a value; anything else: word counts. A column of ones stands
for the intercept, which the linear models do not have.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from experiments.data.dataset import Dataset, Split, arrays_manifest, permutation
from experiments.data.errors import BadData, FileMissing

MAX_LEVELS = 20  # more different strings than this make a column text
SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t"}  # by name: a shell takes ";" for its own
_MISSING = {"", "na", "n/a", "nan", "null", "none", "?"}
_MOSTLY = 0.9  # a column with this share of numbers is a numeric one with mistakes, not text
_WORD = r"(?u)\b\w+\b"


def read_table(path: str | Path, separator: str = ",") -> Any:
    """The CSV as a pandas table of strings, nothing read as missing. FileMissing, BadData with the cause."""
    import pandas as pd

    file = Path(path).expanduser()
    if str(path) == "???":  # the config's mark for a setting that must be given
        raise FileMissing("data=csv needs the file to read: set data.path=FILE.csv.")
    if not file.is_file():
        raise FileMissing(f"data.path={path} is not a file; give the CSV to read.")
    content = file.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise BadData(f"{file}: line {line} is not valid UTF-8; save the file as UTF-8.") from error
    try:
        table = pd.read_csv(
            io.StringIO(text), dtype=str, keep_default_na=False, na_filter=False, sep=separator
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError) as error:
        raise BadData(
            f"{file} cannot be read as CSV ({str(error).strip()}); give a header line and one row a line."
        ) from error
    if not isinstance(table.index, pd.RangeIndex):
        raise BadData(
            f"{file}: rows have more cells than the header line has names; quote cells that hold commas."
        )
    return table


def _no_column(path: Any, option: str, name: str, columns: list[str]) -> str:
    """The sentence for a column that is not there."""
    what = "label column" if option == "label" else "column"
    shown = ", ".join(map(repr, columns[:20])) + (", ..." if len(columns) > 20 else "")
    remedy = f"set data.{option}."
    for word, character in SEPARATORS.items():
        if len(columns) == 1 and character in columns[0]:
            remedy = f"if its cells are separated by {word}s, set data.separator={word}."
    return f"{path} has no {what} {name!r}; it has {shown}: {remedy}"


def _numbers(column: Any) -> np.ndarray | None:
    """(n,) floats where every cell is a number, None where few are; BadData where all but some are."""
    import pandas as pd

    numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    finite = np.isfinite(numbers)
    if finite.all():
        return numbers
    others = column[~finite].str.strip().str.lower()
    stray = ~others.isin(_MISSING | {"inf", "-inf", "infinity", "-infinity"})
    if finite.any() and (not stray.any() or finite.mean() >= _MOSTLY):
        row = int(np.flatnonzero(~finite)[0])
        raise BadData(
            f"data.path: column {column.name!r} has {column.iloc[row]!r} in data row {row + 1}, where a "
            "finite number is needed "
            f"({int((~finite).sum())} such cells); fill or remove these rows, or leave the column out by "
            f"data.ignore=[{column.name}]."
        )
    return None


def _features(
    table: Any, name: str, is_text: bool, train: np.ndarray, min_df: int
) -> tuple[sp.csr_matrix, list[str]]:
    """(n, features of one column) CSR and their names; statistics and vocabulary from the rows `train`."""
    from sklearn.feature_extraction.text import CountVectorizer

    column = table[name]
    numbers = None if is_text else _numbers(column)
    if numbers is not None:
        deviation = numbers[train].std()
        scaled = (numbers - numbers[train].mean()) / (deviation if deviation > 0 else 1.0)
        return sp.csr_matrix(scaled[:, None]), [name]
    levels = sorted(set(column.iloc[train]))
    if not is_text and len(levels) <= MAX_LEVELS:
        values = column.to_numpy(dtype=object)
        # A category of the test part alone gets no indicator: the model has learnt nothing about it.
        dummies = np.stack([values == level for level in levels], axis=1).astype(np.float64)
        return sp.csr_matrix(dummies), [f"{name}={level}" for level in levels]
    vectorizer = CountVectorizer(token_pattern=_WORD, min_df=min_df, dtype=np.float64)
    try:
        vectorizer.fit(column.iloc[train])
    except ValueError as error:
        raise BadData(
            f"data.path: column {name!r} has no word that occurs in {min_df} rows; lower data.min_df, or, if "
            f"it only tells the rows apart, set data.id={name}."
        ) from error
    counts = vectorizer.transform(column).tocsr()
    return counts, [f"{name}:{word}" for word in vectorizer.get_feature_names_out()]


def load(
    *,
    mirror: Any = None,
    cache: Any = None,
    path: str,
    label: str = "label",
    id: str | None = None,
    text: list[str] | None = None,
    ignore: list[str] | None = None,
    min_df: int = 2,
    separator: str = "comma",
    test_fraction: float = 0.0,
    seed: int = 0,
) -> Dataset:
    """X (n, features) CSR float64 of every column but `label`, `id` and `ignore`; classes are the sorted
    values of `label`.

    text: columns to read as free text whatever their cells. test_fraction: share of rows set aside as test
    set, chosen by `seed` (0: all rows train). Split.index is the data row, from 0; Split.extra has the cells
    of all columns as they stand in the file, `id` first. BadData: missing column, empty label, NaN, one class
    only, n < 2.
    """
    separator = SEPARATORS.get(separator, separator)
    if len(separator) != 1:
        raise BadData(
            f"data.separator={separator!r}; give {', '.join(SEPARATORS)} or one character in quotes."
        )
    table = read_table(path, separator)
    asked = {"label": [label], "id": [id] if id else [], "text": text or (), "ignore": ignore or ()}
    for option, names in asked.items():
        for name in names:
            if name not in table.columns:
                raise BadData(_no_column(path, option, name, list(table.columns)))
    if not 0 <= test_fraction < 1:
        raise BadData(f"data.test_fraction={test_fraction}; it must lie in [0, 1).")
    n = len(table)
    if n < 2:
        raise BadData(f"{path} has {n} data rows; at least 2 are needed.")
    labels = table[label].str.strip()
    empty = np.flatnonzero(labels.str.lower().isin(_MISSING))
    if len(empty):
        raise BadData(
            f"{path}: data row {empty[0] + 1} has no label in column {label!r} ({len(empty)} such rows); "
            "fill or remove it."
        )
    classes = tuple(sorted(set(labels)))
    if len(classes) < 2:
        raise BadData(
            f"{path}: column {label!r} holds one class only, {classes[0]!r}; at least 2 are needed."
        )
    if len(classes) > n // 2:
        raise BadData(
            f"{path}: column {label!r} holds {len(classes)} different values in {n} rows; is it the label? "
            "Set data.label."
        )
    names = [name for name in table.columns if name not in (label, id, *(ignore or ()))]
    if not names:
        raise BadData(
            f"{path} has no column beside the label {label!r} and those left out; features are needed."
        )
    order = permutation(n, seed)
    rows = {"train": np.sort(order[: n - round(n * test_fraction)])}
    rows["test"] = np.setdiff1d(order, rows["train"])
    parts = [_features(table, name, name in (text or ()), rows["train"], min_df) for name in names]
    X = sp.hstack([*[part for part, _ in parts], sp.csr_matrix(np.ones((n, 1)))], format="csr")
    X.sort_indices()
    features = (*(feature for _, found in parts for feature in found), "intercept")
    y = np.array([classes.index(value) for value in labels], dtype=np.int64)
    cells = {
        name: table[name].to_numpy(dtype=object) for name in sorted(table.columns, key=lambda c: c != id)
    }
    splits = {
        part: Split(
            X[index],
            y[index],
            index.astype(np.int64),
            {name: column[index] for name, column in cells.items()},
        )
        for part, index in rows.items()
    }
    import hashlib

    content = Path(path).expanduser().read_bytes()
    file = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content), "source": str(path)}
    manifest = {Path(path).name: file, "arrays": arrays_manifest(**splits)}
    return Dataset("csv", splits["train"], splits["test"], None, classes, features, manifest)
