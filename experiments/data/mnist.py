"""MNIST (LeCun, Cortes, Burges) from its IDX files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from experiments.data.archive import gunzip
from experiments.data.dataset import Dataset, Split
from experiments.data.errors import BadData
from experiments.data.fetch import Source
from experiments.data.prepare import prepared

N_VALIDATION = 5_000  # the first 5,000 training images (Fig. 2)
_MAX_CONTENT = 47_040_016
_BASE = "https://storage.googleapis.com/cvdf-datasets/mnist/"


def _source(name: str, digest: str) -> Source:
    urls = (_BASE + name, "https://ossci-datasets.s3.amazonaws.com/mnist/" + name)
    return Source(f"mnist/{name}", urls, (digest,), _MAX_CONTENT, gunzip=True)


# The publishers' gzip wrappers differ, so the digests are those of the uncompressed content.
SOURCES = {
    "train_images": _source(
        "train-images-idx3-ubyte.gz", "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
    ),
    "train_labels": _source(
        "train-labels-idx1-ubyte.gz", "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
    ),
    "test_images": _source(
        "t10k-images-idx3-ubyte.gz", "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
    ),
    "test_labels": _source(
        "t10k-labels-idx1-ubyte.gz", "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
    ),
}


def parse_idx(content: bytes, name: str, ndim: int) -> np.ndarray:
    """uint8 array of an IDX file.

    The sizes are multiplied as Python integers and compared before anything is allocated: a forged header
    cannot ask for memory.

    Raises:
        BadData: the declared shape is not exactly what the content holds.
    """
    header = 4 + 4 * ndim
    if len(content) < header or content[:2] != b"\0\0" or content[2] != 0x08 or content[3] != ndim:
        raise BadData(
            f"{name}: not an IDX file of {ndim}-dimensional unsigned bytes; replace it by the original."
        )
    shape = tuple(int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(ndim))
    if math.prod(shape) != len(content) - header:
        raise BadData(
            f"{name}: declares shape {shape} but holds {len(content) - header} values; replace it by the "
            "original."
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def read_pair(images_path: Path, labels_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """((n, 28, 28) uint8, (n,) uint8) of a pair of gzipped IDX files."""
    images = parse_idx(gunzip(images_path, _MAX_CONTENT), images_path.name, 3)
    labels = parse_idx(gunzip(labels_path, _MAX_CONTENT), labels_path.name, 1)
    if len(images) != len(labels):
        raise BadData(
            f"{images_path.name} holds {len(images)} images, {labels_path.name} {len(labels)} labels; they "
            "must agree."
        )
    if images.shape[1:] != (28, 28):
        raise BadData(f"{images_path.name}: images of {images.shape[1:]} pixels; MNIST's are 28 by 28.")
    if len(labels) and labels.max() > 9:
        raise BadData(f"{labels_path.name}: label {labels.max()} out of range 0..9.")
    return images, labels


class InfluenceMnist(tfds.core.GeneratorBasedBuilder):
    """60,000 + 10,000 images in file order."""

    name = "influence_mnist"
    VERSION = tfds.core.Version("1.0.0")
    files: dict[str, Path]
    settings: dict[str, Any]

    def _info(self) -> tfds.core.DatasetInfo:
        zlib = tfds.features.Encoding.ZLIB
        features = {
            "index": tfds.features.Scalar(np.int64),
            "image": tfds.features.Tensor(shape=(28, 28), dtype=np.uint8, encoding=zlib),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="MNIST handwritten digits in their original order.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {part: self._generate_examples(part) for part in ("train", "test")}

    def _generate_examples(self, part: str) -> Iterator[tuple[int, dict[str, Any]]]:
        images, labels = read_pair(self.files[f"{part}_images"], self.files[f"{part}_labels"])
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"index": i, "image": image, "label": int(label)}


def load(*, mirror: Any, cache: Any, classes: list[int] | None = None) -> Dataset:
    """X (n, 784) float64 pixels / 255: 5,000 validation, 55,000 training, 10,000 test images.

    classes: keep only these digits, e.g. [1, 7], relabelled 0, 1, ... in that order (11,894 training, 2,163
    test images).

    Raises:
        BadData: `classes` are not different digits of 0..9.
    """
    digits = list(range(10)) if classes is None else [int(digit) for digit in classes]
    if len(set(digits)) != len(digits) or not set(digits) <= set(range(10)) or len(digits) < 2:
        raise BadData(f"mnist: classes={digits}; give at least two different digits of 0..9.")
    arrays, manifest = prepared(InfluenceMnist, SOURCES, mirror=mirror, cache=cache)
    train, test = arrays["train"], arrays["test"]
    n = len(train["label"])
    return Dataset(
        name="mnist",
        train=_split(train, np.arange(N_VALIDATION, n), digits),
        test=_split(test, np.arange(len(test["label"])), digits),
        validation=_split(train, np.arange(N_VALIDATION), digits),
        classes=tuple(str(digit) for digit in digits),
        feature_names=None,
        manifest=manifest,
        image_shape=(28, 28),
    )


def _split(part: dict[str, np.ndarray], rows: np.ndarray, digits: list[int]) -> Split:
    rows = rows[np.isin(part["label"][rows], digits)]
    positions = np.full(10, -1)
    positions[digits] = np.arange(len(digits))
    X = part["image"][rows].reshape(len(rows), -1) / np.float64(255)
    return Split(X, positions[part["label"][rows]].astype(np.int64), rows.astype(np.int64))
