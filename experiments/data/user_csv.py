"""A labelled table of the user's own as one feature matrix, for ``data=csv``; :mod:`.tables` reads it.

Every column but the label and those left out becomes features: numbers standardised, dates as parts,
categories as indicators, texts as tf-idf of their words. A column of 10 stands for the intercept, which the
linear models do not have.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.dataset import Dataset, Split, arrays_manifest, permutation
from experiments.data.errors import BadData, DataError, FileMissing
from experiments.data.tables.options import Options, checked
from experiments.records.errors import UserError

_KEYS = "|".join(item.name for item in fields(Options))


def load(
    *,
    mirror: Any = None,
    cache: Any = None,
    path: str,
    test_fraction: float = 0.0,
    seed: int = 0,
    **given: Any,
) -> Dataset:
    """X (n, features) of every column but the label and those left out; y and the classes of the label.

    Args:
        mirror: folder of original files; not used here.
        cache: folder of prepared copies; not used here.
        path: a CSV, TSV, Parquet or Excel file.
        test_fraction: share of rows set aside as test set, chosen by ``seed`` (0: all rows train). Means,
            categories and vocabularies are those of the training part.
        given: fields of :class:`.tables.options.Options`, for instance ``label``, ``id``, ``text``.
        seed: of the rows set aside.

    Split.index is the row of the table, from 0; Split.extra has the cells of all columns as they stand in the
    file, the id first.

    Raises:
        FileMissing: there is no such file.
        BadData: what is wrong with its content, in one sentence.
        DataError: a file that cannot be read.
    """
    if str(path) == "???":  # the config's mark for a setting that must be given
        raise FileMissing("data=csv needs the file to read: set data.path=FILE.csv.")
    if not Path(path).expanduser().is_file():
        raise FileMissing(f"data.path={path} is not a file; give the CSV to read.")
    if not 0 <= test_fraction < 1:
        raise BadData(f"data.test_fraction={test_fraction}; it must lie in [0, 1).")
    try:
        return _loaded(path, test_fraction, seed, _options(given))
    except DataError:
        raise
    except UserError as error:
        # The same reader serves the command label_errors, whose settings have no "data." before them.
        raise BadData(_with_data(str(error))) from error


def _with_data(text: str) -> str:
    return re.sub(rf"(?<![\w.])({_KEYS})=", r"data.\1=", text)


def _options(given: dict[str, Any]) -> Options:
    """The reader's options; None leaves one at its default."""
    known = {item.name: item for item in fields(Options)}
    if unknown := sorted(set(given) - set(known)):
        names = ", ".join(["path", "test_fraction", "seed", *known])
        raise BadData(f"data set 'csv' has no option {', '.join(unknown)}; it takes {names}.")
    values = {name: checked(known[name], value) for name, value in given.items() if value is not None}
    return Options(**values)


def _loaded(path: str, test_fraction: float, seed: int, options: Options) -> Dataset:
    from experiments.data.tables import features, labels, reading

    table = reading.read(path, options)
    found = labels.read_labels(table, labels.label_column(table, options), options)
    if found.regression:
        raise UserError(
            f"{path}: the labels in {found.name!r} are numbers, and this experiment is for classes; set "
            "task=classes, or use python -m experiments.label_errors."
        )
    special = {}
    shown = labels.column_called(table, options.id, "id") if options.id else None
    if shown:
        special[shown] = "it names the rows"
    columns = features.read_columns(table, found, options, special)
    n = len(found.kept)
    order = permutation(n, seed)
    rows = {"train": np.sort(order[: n - round(n * test_fraction)])}
    rows["test"] = np.setdiff1d(order, rows["train"])
    for note in [*table.notes, *found.notes]:
        print(f"- {_with_data(note)}")
    encoded = features.encode(columns, options, n, lambda name: None, rows["train"])
    names = sorted((str(name) for name in table.frame.columns), key=lambda name: name != shown)
    cells = {name: table.frame[name].to_numpy(dtype=object)[found.kept] for name in names}
    splits = {
        part: Split(
            encoded.X[index],
            found.y[index],
            found.kept[index].astype(np.int64),
            {name: column[index] for name, column in cells.items()},
        )
        for part, index in rows.items()
    }
    content = Path(path).expanduser().read_bytes()
    file = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content), "source": str(path)}
    manifest = {Path(path).name: file, "arrays": arrays_manifest(**splits)}
    return Dataset(
        "csv", splits["train"], splits["test"], None, found.classes, tuple(encoded.names), manifest
    )
