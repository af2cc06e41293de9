"""Data bundled with scikit-learn, so that every experiment has a variant that needs no network."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np

from experiments.data.dataset import Dataset, Split, arrays_manifest, permutation, sha256_array
from experiments.data.errors import BadData


@functools.cache  # the files are parsed once in a process, of which a sweep runs many jobs
def _bundled(name: str) -> tuple[Any, dict[str, Any]]:
    """The bunch and its source; nobody may write into either, so loaders take copies of their rows."""
    import sklearn
    import sklearn.datasets

    bunch = getattr(sklearn.datasets, f"load_{name}")()
    source = f"scikit-learn {sklearn.__version__}: sklearn.datasets.load_{name}"
    for array in (bunch.data, bunch.target):
        array.setflags(write=False)
    return bunch, {"sha256": sha256_array(bunch.data), "bytes": bunch.data.nbytes, "source": source}


def load_digits(*, mirror: Any = None, cache: Any = None, classes: list[int] | None = None) -> Dataset:
    """1,797 digits of 8×8 pixels in [0, 1], X (n, 64), split in file order in MNIST's proportions.

    The last seventh is the test set, the first twelfth of the rest validation: 128 validation, 1,413
    training, 256 test images.
    classes: keep only these digits, relabelled 0, 1, ... in that order.

    Raises:
        BadData: `classes` are not different digits of 0..9.
    """
    bunch, source = _bundled("digits")
    digits = list(range(10)) if classes is None else [int(digit) for digit in classes]
    if len(set(digits)) != len(digits) or not set(digits) <= set(range(10)) or len(digits) < 2:
        raise BadData(f"digits: classes={digits}; give at least two different digits of 0..9.")
    n = len(bunch.target)
    n_rest = n - n // 7
    bounds = {"validation": (0, n_rest // 12), "train": (n_rest // 12, n_rest), "test": (n_rest, n)}
    splits = {}
    for part, (start, stop) in bounds.items():
        rows = np.arange(start, stop)
        rows = rows[np.isin(bunch.target[rows], digits)]
        y = np.array([digits.index(label) for label in bunch.target[rows]], dtype=np.int64)
        splits[part] = Split(bunch.data[rows] / 16.0, y, rows)
    names = tuple(str(digit) for digit in digits)
    manifest = {"digits": source, "arrays": arrays_manifest(**splits)}
    return Dataset(
        "digits", **splits, classes=names, feature_names=None, manifest=manifest, image_shape=(8, 8)
    )


def load_digit_pairs(
    *,
    mirror: Any = None,
    cache: Any = None,
    classes: tuple[int, int] | list[int] = (3, 8),
    scale: int = 4,
    brightness: int = 255,
    train_per_class: int = 120,
    test_per_class: int = 50,
    seed: int = 0,
) -> Dataset:
    """Two classes of digits as colour images, X (n, 8·scale, 8·scale, 3) uint8: the stand-in for dog and
    fish.

    Each pixel is repeated `scale` times in both directions; the three channels are equal. The brightest pixel
    is `brightness`: in dark images half an 8-bit step is a large part of what there is to see. The first
    `train_per_class` images of each class train, the next `test_per_class` test (as for dogfish), each part
    then shuffled by `seed`.

    Raises:
        BadData: `classes` are not two different digits, a number is out of range, or there are too few
            images.
    """
    bunch, source = _bundled("digits")
    pair = [int(digit) for digit in classes]
    if len(pair) != 2 or pair[0] == pair[1] or not set(pair) <= set(range(10)):
        raise BadData(f"digit_pairs: classes={pair}; give two different digits of 0..9.")
    if scale < 1 or train_per_class < 1 or test_per_class < 1:
        raise BadData("digit_pairs: scale, train_per_class and test_per_class must be at least 1.")
    if not 1 <= brightness <= 255:
        raise BadData(f"digit_pairs: brightness={brightness}; give 1 to 255.")
    levels = np.rint(bunch.images * (brightness / 16)).astype(np.uint8)
    rows: dict[str, list[int]] = {"train": [], "test": []}
    for digit in pair:
        of_class = np.flatnonzero(bunch.target == digit)
        if len(of_class) < train_per_class + test_per_class:
            raise BadData(
                f"digit_pairs: {len(of_class)} images of {digit}, fewer than {train_per_class} + "
                f"{test_per_class}."
            )
        rows["train"] += of_class[:train_per_class].tolist()
        rows["test"] += of_class[train_per_class : train_per_class + test_per_class].tolist()
    splits = {}
    for part, chosen in rows.items():
        index = np.array(chosen, dtype=np.int64)[permutation(len(chosen), seed)]
        grey = levels[index].repeat(scale, axis=1).repeat(scale, axis=2)
        y = (bunch.target[index] == pair[1]).astype(np.int64)
        splits[part] = Split(np.repeat(grey[..., None], 3, axis=3), y, index)
    manifest = {"digits": source, "arrays": arrays_manifest(**splits)}
    shape = (8 * scale, 8 * scale, 3)
    names = (str(pair[0]), str(pair[1]))
    return Dataset(
        "digit_pairs",
        **splits,
        validation=None,
        classes=names,
        feature_names=None,
        manifest=manifest,
        image_shape=shape,
    )


def load_iris(*, mirror: Any = None, cache: Any = None, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """150 iris flowers of three kinds, 4 measurements standardised by the training part's mean and deviation.

    Shuffled by `seed`, the last `test_fraction` test. No column of ones: for nets with biases.

    Raises:
        BadData: `test_fraction` does not lie between 0 and 1.
    """
    bunch, source, splits = _standardised("iris", test_fraction, seed)
    features = tuple(str(name) for name in bunch.feature_names)
    classes = tuple(str(name) for name in bunch.target_names)
    manifest = {"iris": source, "arrays": arrays_manifest(**splits)}
    return Dataset("iris", splits["train"], splits["test"], None, classes, features, manifest)


def load_breast_cancer(
    *,
    mirror: Any = None,
    cache: Any = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    intercept: bool = True,
) -> Dataset:
    """569 tumours, 30 measurements standardised by the training part's mean and deviation: the stand-in for
    spam.

    Shuffled by `seed`, the last `test_fraction` test. intercept: append a column of ones, because the linear
    models have no intercept.

    Raises:
        BadData: `test_fraction` does not lie between 0 and 1.
    """
    bunch, source, splits = _standardised("breast_cancer", test_fraction, seed)
    if intercept:
        ones = {part: np.ones((len(split), 1)) for part, split in splits.items()}
        splits = {part: replace(split, X=np.hstack([split.X, ones[part]])) for part, split in splits.items()}
    features = tuple(str(name) for name in bunch.feature_names) + (("intercept",) if intercept else ())
    classes = tuple(str(name) for name in bunch.target_names)
    manifest = {"breast_cancer": source, "arrays": arrays_manifest(**splits)}
    return Dataset("breast_cancer", splits["train"], splits["test"], None, classes, features, manifest)


def _standardised(name: str, test_fraction: float, seed: int) -> tuple[Any, dict[str, Any], dict[str, Split]]:
    """A bundled table, its source, and its two parts, standardised by the training part."""
    bunch, source = _bundled(name)
    if not 0 < test_fraction < 1:
        raise BadData(f"{name}: test_fraction={test_fraction}; it must lie between 0 and 1.")
    order = permutation(len(bunch.target), seed)
    n_train = len(order) - round(len(order) * test_fraction)
    rows = {"train": order[:n_train], "test": order[n_train:]}
    mean, deviation = bunch.data[rows["train"]].mean(0), bunch.data[rows["train"]].std(0)
    splits = {
        part: Split((bunch.data[index] - mean) / deviation, bunch.target[index].astype(np.int64), index)
        for part, index in rows.items()
    }
    return bunch, source, splits
