"""Arrays with their origin: what every loader returns and every experiment takes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from experiments.data.errors import BadData


@dataclass(frozen=True)
class Split:
    """One part of a data set.

    X: (n, ...) numpy array or scipy CSR matrix; floats, or uint8 pixels for colour images (n, height, width,
    3).
    y: (n,) int64 labels 0..C-1, positions in `Dataset.classes`.
    index: (n,) int64, position of each example in its original file (or in the sorted list of files).
    extra: per-example facts that are not features (mail names, ages, ...), each of length n.
    """

    X: Any
    y: np.ndarray
    index: np.ndarray
    extra: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.X.shape[0])

    def take(self, rows: np.ndarray) -> Split:
        """The examples at positions `rows` (m,), in that order."""
        rows = np.asarray(rows)
        extra = {key: np.asarray(value)[rows] for key, value in self.extra.items()}
        return Split(self.X[rows], self.y[rows], self.index[rows], extra)


@dataclass(frozen=True)
class Dataset:
    """A data set, split, with the names of its classes and features and the sha256 manifest of its origin.

    manifest: {file: {"sha256", "bytes", "source"}, ..., "arrays": {name: sha256}}.
    image_shape: (height, width) if a row of X is a flattened grey image, (height, width, 3) for colour,
    else None.
    """

    name: str
    train: Split
    test: Split
    validation: Split | None
    classes: tuple[str, ...]
    feature_names: tuple[str, ...] | None
    manifest: dict[str, Any]
    image_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        parts = {"train": self.train, "test": self.test, "validation": self.validation}
        for part, split in parts.items():
            if split is not None:
                check_split(f"{self.name}/{part}", split, len(self.classes))
        if len(self.train) < 2:
            raise BadData(f"{self.name}: {len(self.train)} training examples; at least 2 are needed.")
        counts = np.bincount(self.train.y, minlength=len(self.classes))
        if (counts == 0).any():
            empty = ", ".join(self.classes[i] for i in np.flatnonzero(counts == 0))
            raise BadData(
                f"{self.name}: no training example of class {empty}; add some or leave the class out."
            )
        if len(self.classes) < 2:
            raise BadData(
                f"{self.name}: only the class {self.classes[0]!r} occurs; at least 2 classes are needed."
            )


def is_sparse(array: Any) -> bool:
    """Whether ``array`` is a matrix of scipy."""
    from scipy.sparse import issparse  # imported here, so that --help answers without scipy

    return bool(issparse(array))


def check_split(name: str, split: Split, n_classes: int) -> None:
    """Raise BadData if lengths differ, a feature is not finite, or a label lies outside 0..n_classes-1."""
    n = int(split.X.shape[0])
    if split.y.shape != (n,) or split.index.shape != (n,):
        raise BadData(
            f"{name}: {n} rows of features, {split.y.shape} labels, {split.index.shape} indices; all must "
            "agree."
        )
    if n and (split.y.min() < 0 or split.y.max() >= n_classes):
        row = int(np.flatnonzero((split.y < 0) | (split.y >= n_classes))[0])
        raise BadData(f"{name}: row {row} has label {split.y[row]}; labels must lie in 0..{n_classes - 1}.")
    values = split.X.data if is_sparse(split.X) else split.X
    # One sum is a tenth of the cost of isfinite over 55,000 images, and is not finite where any value is not.
    if np.issubdtype(values.dtype, np.floating) and not np.isfinite(np.sum(values)):
        dense = split.X.tocoo() if is_sparse(split.X) else None
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            row = int(dense.row[bad[0][0]]) if dense is not None else int(bad[0][0])
            raise BadData(
                f"{name}: row {row} holds a NaN or infinite feature; remove or impute it before loading."
            )


def sha256_array(array: Any) -> str:
    """sha256 over dtype, shape and C-order bytes of an array (n, ...), a CSR matrix, or a list of byte
    strings.
    """
    digest = hashlib.sha256()
    if is_sparse(array):
        parts = [array.indptr.astype(np.int64), array.indices.astype(np.int64), array.data]
        digest.update(repr(array.shape).encode())
    elif isinstance(array, (list, tuple)):
        parts = []
        for item in array:
            raw = item if isinstance(item, bytes) else str(item).encode()
            digest.update(len(raw).to_bytes(8, "little") + raw)
    elif np.asarray(array).dtype.kind in "OU":
        return sha256_array([str(item) for item in np.asarray(array).ravel()])
    else:
        parts = [np.asarray(array)]
    for part in parts:
        digest.update(f"{part.dtype.str}{part.shape}".encode())
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def arrays_manifest(**splits: Split | None) -> dict[str, str]:
    """{"train/X": sha256, "train/y": ...} for data sets made in memory."""
    hashes = {}
    for part, split in splits.items():
        if split is not None:
            hashes[f"{part}/X"] = sha256_array(split.X)
            hashes[f"{part}/y"] = sha256_array(split.y)
    return hashes


def permutation(n: int, seed: int) -> np.ndarray:
    """(n,) seeded order by numpy's legacy generator, whose streams never change between versions."""
    order = np.arange(n)
    np.random.RandomState(seed).shuffle(order)
    return order
