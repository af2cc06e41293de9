"""Prepared TFDS copies: order, hashes, repair, and a cache shared by several processes."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.data import mnist
from experiments.data.errors import BadData, FileMissing
from experiments.data.fetch import Fetched
from experiments.data.prepare import prepared

N_TRAIN, N_TEST = 1050, 30


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim)
    return header + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def small_files(folder: Path) -> dict[str, Fetched]:
    """A small MNIST in IDX form."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.RandomState(0)
    files = {}
    for part, n in (("train", N_TRAIN), ("test", N_TEST)):
        images = generator.randint(0, 256, (n, 28, 28)).astype(np.uint8)
        for what, array in (("images", images), ("labels", (np.arange(n) % 10).astype(np.uint8))):
            path = folder / f"{part}_{what}.gz"
            path.write_bytes(gzip.compress(idx(array), compresslevel=1, mtime=0))
            files[f"{part}_{what}"] = Fetched(path, "0" * 64, "test")
    return files


def prepare(tmp_path: Path, refuse: bool = False) -> tuple[dict, dict]:
    def sources() -> dict[str, Fetched]:
        if refuse:
            raise FileMissing("no source")
        return small_files(tmp_path / "files")

    return prepared(mnist.InfluenceMnist, sources, mirror=None, cache=tmp_path / "cache")


def test_arrays_come_back_whole_in_order_and_without_the_sources(tmp_path: Path) -> None:
    arrays, manifest = prepare(tmp_path)
    images, labels = mnist.read_pair(tmp_path / "files/train_images.gz", tmp_path / "files/train_labels.gz")
    np.testing.assert_array_equal(arrays["train"]["image"], images)
    np.testing.assert_array_equal(arrays["train"]["label"], labels)
    np.testing.assert_array_equal(arrays["test"]["index"], np.arange(N_TEST))
    assert manifest["train_images.gz"]["source"] == "test"
    again, same = prepare(tmp_path, refuse=True)
    np.testing.assert_array_equal(again["train"]["image"], images)
    assert same == manifest
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("damage", ["record", "truncated", "manifest", "array hash", "half prepared"])
def test_a_corrupt_copy_is_noticed_and_built_again(tmp_path: Path, damage: str) -> None:
    _, manifest = prepare(tmp_path)
    root = tmp_path / "cache/prepared/influence_mnist"
    record = next(root.rglob("*train.array_record*"))
    if damage == "record":
        content = bytearray(record.read_bytes())
        content[len(content) // 2] ^= 0xFF
        record.write_bytes(bytes(content))
    elif damage == "truncated":
        record.write_bytes(record.read_bytes()[:-100])
    elif damage == "manifest":
        (root / "manifest.json").write_text('{"arrays": ')
    elif damage == "array hash":
        changed = {**manifest, "arrays": {**manifest["arrays"], "train/label": "0" * 64}}
        (root / "manifest.json").write_text(json.dumps(changed))
    else:
        (root / "manifest.json").unlink()
        record.unlink()
    if damage == "half prepared":
        _, again = prepare(tmp_path)
    else:
        with pytest.warns(UserWarning, match="is corrupt"):
            _, again = prepare(tmp_path)
    assert again == manifest


def test_corrupt_and_no_source_is_an_error(tmp_path: Path) -> None:
    prepare(tmp_path)
    (tmp_path / "cache/prepared/influence_mnist/manifest.json").write_text("{}")
    with pytest.warns(UserWarning, match="is corrupt"), pytest.raises(FileMissing):
        prepare(tmp_path, refuse=True)


def _job(tmp_path: str) -> str:
    return json.dumps(prepare(Path(tmp_path))[1]["arrays"], sort_keys=True)


def test_two_processes_on_an_empty_cache_agree(tmp_path: Path) -> None:
    small_files(tmp_path / "files")
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        first, second = pool.map(_job, [str(tmp_path)] * 2, chunksize=1)
    assert first == second
    assert not list((tmp_path / "cache").rglob("*incomplete*"))


IMAGES = np.zeros((2, 28, 28), dtype=np.uint8)
BROKEN_IDX = {
    "empty": b"",
    "another type": b"\0\0\x0d\x03" + bytes(12),
    "labels for images": idx(np.zeros(4, dtype=np.uint8)),
    "one byte short": idx(IMAGES)[:-1],
    "one byte more": idx(IMAGES) + b"x",
    "gigantic": b"\0\0\x08\x03" + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1) + bytes(9),
    "overflowing to the right size": b"\0\0\x08\x03" + struct.pack(">3I", 2**31, 2**31, 4),
}


@pytest.mark.parametrize("case", BROKEN_IDX)
def test_broken_idx_is_refused_without_allocating(case: str) -> None:
    with pytest.raises(BadData, match="replace it by the original"):
        mnist.parse_idx(BROKEN_IDX[case], "file", 3)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES, np.zeros(3, dtype=np.uint8), "2 images.*3 labels"),
        (IMAGES[:, :27], np.zeros(2, dtype=np.uint8), "28 by 28"),
        (IMAGES, np.array([1, 10], dtype=np.uint8), "label 10 out of range"),
    ],
)
def test_images_and_labels_must_fit(
    tmp_path: Path, images: np.ndarray, labels: np.ndarray, message: str
) -> None:
    for name, array in (("images", images), ("labels", labels)):
        (tmp_path / name).write_bytes(gzip.compress(idx(array)))
    with pytest.raises(BadData, match=message):
        mnist.read_pair(tmp_path / "images", tmp_path / "labels")
