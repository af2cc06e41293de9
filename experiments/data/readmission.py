"""UCI Diabetes 130-US hospitals 1999-2008 (data set 296, CC BY 4.0), with the authors' split row by row."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from experiments.data.archive import read_member
from experiments.data.dataset import Dataset, Split
from experiments.data.errors import BadData
from experiments.data.fetch import Source
from experiments.data.prepare import prepared
from experiments.data.readmission_schema import (
    CLASSES,
    COUNTS,
    LEVELS,
    READMITTED,
    feature_names,
    indicators,
)

N_ROWS = 101_766
N_PER_CLASS = 10_000
_MEMBER = "diabetic_data.csv"
_MEMBER_SHA256 = "0689e7ec031237dc63031b938805c48377748761a3b26acab621567afa24df97"
_MAX_CSV = 32 << 20

SOURCE = Source(
    "diabetes/dataset_diabetes.zip",
    (
        "https://archive.ics.uci.edu/static/public/296/diabetes+130-us+hospitals+for+years+1999-2008.zip",
        "https://archive.ics.uci.edu/ml/machine-learning-databases/00296/dataset_diabetes.zip",
    ),
    # Of diabetic_data.csv: the publisher has packed the same file into several different archives.
    (_MEMBER_SHA256,),
    _MAX_CSV,
    member=_MEMBER,
)


def parse_csv(content: bytes, n_rows: int | None = N_ROWS) -> dict[str, np.ndarray]:
    """{"counts": (n, 8) int16, "indicators": (n, 119) uint8, "readmitted": (n,) position in READMITTED}.

    "None" and "?" are levels like any other, never missing values (section 5.3).

    Raises:
        BadData: a missing column, an unknown category, a count that is no number, or a number of rows
            other than `n_rows`.
    """
    import pandas as pd

    table = pd.read_csv(io.BytesIO(content), keep_default_na=False, na_filter=False, dtype=str)
    missing = [name for name in (*COUNTS, *LEVELS, "readmitted") if name not in table.columns]
    if missing:
        raise BadData(
            f"{_MEMBER}: column {', '.join(missing)} is missing; use the original file of UCI data set 296."
        )
    if n_rows is not None and len(table) != n_rows:
        raise BadData(
            f"{_MEMBER}: {len(table)} rows, {n_rows} expected; use the original file of UCI data set 296."
        )
    counts = np.empty((len(table), len(COUNTS)), dtype=np.int16)
    for j, name in enumerate(COUNTS):
        numbers = pd.to_numeric(table[name], errors="coerce").to_numpy(dtype=np.float64)
        bad = ~((numbers >= 0) & (numbers < 2**15) & (numbers == np.floor(numbers)))
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise BadData(
                f"{_MEMBER}: row {row} has {table[name][row]!r} in {name}; a small whole number is needed."
            )
        counts[:, j] = numbers
    readmitted = table["readmitted"].to_numpy(dtype=object)
    unknown = ~np.isin(readmitted.astype(str), READMITTED)
    if unknown.any():
        row = int(np.flatnonzero(unknown)[0])
        raise BadData(
            f"{_MEMBER}: row {row} has readmitted={readmitted[row]!r}; known: {', '.join(READMITTED)}."
        )
    dummies = np.hstack([indicators(column, table[column].to_numpy(dtype=object)) for column in LEVELS])
    codes = sum(position * (readmitted == level) for position, level in enumerate(READMITTED))
    return {"counts": counts, "indicators": dummies, "readmitted": np.asarray(codes, dtype=np.int64)}


class InfluenceReadmission(tfds.core.GeneratorBasedBuilder):
    """101,766 hospital stays in file order."""

    name = "influence_readmission"
    VERSION = tfds.core.Version("1.0.0")
    files: dict[str, Path]
    settings: dict[str, Any]

    def _info(self) -> tfds.core.DatasetInfo:
        n_indicators = len(feature_names()) - len(COUNTS)
        features = {
            "index": tfds.features.Scalar(np.int64),
            "counts": tfds.features.Tensor(shape=(len(COUNTS),), dtype=np.int16),
            "indicators": tfds.features.Tensor(shape=(n_indicators,), dtype=np.uint8),
            "readmitted": tfds.features.ClassLabel(names=list(READMITTED)),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Diabetes 130-US hospitals: 8 counts and 119 indicators a stay, in file order.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
            homepage="https://archive.ics.uci.edu/dataset/296",
            license="CC BY 4.0",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {"full": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        columns = parse_csv(read_member(self.files["archive"], _MEMBER, _MAX_CSV))
        for i in range(len(columns["readmitted"])):
            row = {"counts": columns["counts"][i], "indicators": columns["indicators"][i]}
            yield i, {"index": i, "readmitted": int(columns["readmitted"][i]), **row}


def authors_split(positive: np.ndarray, n_per_class: int, seed: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """(train rows, test rows) from `positive` (n,) bool, by the authors' calls in the authors' order."""
    generator = np.random.RandomState(seed)
    of_class = [np.flatnonzero(positive), np.flatnonzero(~positive)]
    for rows in of_class:
        generator.shuffle(rows)
    train = np.concatenate([rows[:n_per_class] for rows in of_class])
    test = np.concatenate([rows[n_per_class:] for rows in of_class])
    generator.shuffle(train)
    generator.shuffle(test)
    return train, test


def load(*, mirror: Any, cache: Any, seed: int = 2) -> Dataset:
    """X (n, 127) float64, unscaled: 20,000 balanced training stays, 81,766 test stays. y = 1: readmitted
    within 30 days.
    """
    arrays, manifest = prepared(InfluenceReadmission, {"archive": SOURCE}, mirror=mirror, cache=cache)
    columns = arrays["full"]
    X = np.hstack([columns["counts"].astype(np.float64), columns["indicators"].astype(np.float64)])
    positive = columns["readmitted"] == READMITTED.index("<30")
    train, test = authors_split(positive, N_PER_CLASS, seed)
    first, second = (
        Split(X[rows], positive[rows].astype(np.int64), rows.astype(np.int64)) for rows in (train, test)
    )
    return Dataset("readmission", first, second, None, CLASSES, feature_names(), manifest)
