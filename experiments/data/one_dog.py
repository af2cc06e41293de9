"""Photographs of one dog as the test split, beside the training images of `dogfish` (Fig. 5, many at once).

The authors attacked thirty photographs of one dog, which were not released. Here they come from the sequence
"dog" of DAVIS: sixty frames of one golden retriever, of which `count` evenly spaced ones are taken in the
order of their names: thirty of sixty are the frames 0, 2, 4, … 58. A folder of one's own photographs works
the same way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from experiments.data import dogfish
from experiments.data.archive import read_archive
from experiments.data.dataset import Dataset, Split
from experiments.data.errors import BadData, FileMissing
from experiments.data.fetch import Fetched, Source, obtain
from experiments.data.prepare import prepared

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_MAX_IMAGE, _MAX_TOTAL = 32 << 20, 4 << 30
SEQUENCE = Source(
    "dogfish/one_dog.tar",
    ("https://data.vision.ee.ethz.ch/csergi/share/davis/DAVIS-2017-trainval-480p.zip",),
    ("cab1addcca5b9ca16b3d83102e702ff97f4a9c936c74a9f46a6d20789ad05970",),
    2 << 30,
    folder="dog",
)


class InfluenceOneDog(tfds.core.GeneratorBasedBuilder):
    """All photographs, resized and cropped, in the order of their names."""

    name = "influence_one_dog"
    VERSION = tfds.core.Version("1.0.0")
    files: dict[str, Path]
    settings: dict[str, Any]

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "index": tfds.features.Scalar(np.int64),
            "name": tfds.features.Text(),
            "image": tfds.features.Tensor(
                shape=(None, None, 3), dtype=np.uint8, encoding=tfds.features.Encoding.ZLIB
            ),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Photographs, resized, in the order of their names.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {"photos": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        contents = sorted(_photographs(self.files["photos"]))
        for i, (name, content) in enumerate(contents):
            image = dogfish.decode(content, name, self.settings["size"])
            yield i, {"index": i, "name": name, "image": image}


def _photographs(path: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the sequence's frames in an archive, or of every image below a folder."""
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file() and file.suffix.lower() in IMAGES:
                yield file.relative_to(path).as_posix(), file.read_bytes()
        return

    def wanted(name: str) -> bool:
        place = PurePosixPath(name)
        return place.parent.name == SEQUENCE.folder and place.suffix == ".jpg"

    for name, content in read_archive(path, max_file=_MAX_IMAGE, max_total=_MAX_TOTAL, wanted=wanted):
        yield PurePosixPath(name).name, content


def _folder(path: Path) -> Fetched:
    """A user's folder, identified by the names and bytes of its images."""
    if not path.is_dir():
        raise FileMissing(f"data.photos={path} is not a folder; give one that holds photographs.")
    digest, found = hashlib.sha256(), 0
    for name, content in _photographs(path):
        digest.update(f"{name}\0{len(content)}\0".encode() + hashlib.sha256(content).digest())
        found += 1
    if not found:
        raise FileMissing(f"data.photos={path} holds no image ({', '.join(IMAGES)}).")
    return Fetched(path, digest.hexdigest(), str(path))


def evenly(n: int, count: int | None) -> np.ndarray:
    """Positions of ``count`` of ``n`` photographs, evenly spaced from the first on; all where null."""
    if count is not None and not 1 <= count <= n:
        raise BadData(f"one_dog: data.count={count}, but there are {n} photographs; give 1 to {n}, or null.")
    return np.arange(n) if count is None else np.arange(count) * n // count


def load(
    *,
    mirror: Any,
    cache: Any,
    photos: str | None = None,
    label: str = "dog",
    count: int | None = 30,
    size: int = 224,
    train_per_class: int = 900,
    test_per_class: int = 300,
    seed: int = 0,
    folder: str | None = None,
    dog: list[str] | None = None,
    fish: list[str] | None = None,
) -> Dataset:
    """Train: that of ``dogfish`` with the same options. Test: ``count`` photographs, all of class ``label``.

    photos: a folder of images instead of the sequence. X (n, size, size, 3) uint8, y = 1: fish;
    test.index: positions in the sorted names; extra: "name" of each file.

    Raises:
        BadData: `label` is no class.
    """
    if label not in dogfish.CLASSES:
        raise BadData(f"one_dog: data.label={label!r} is unknown; choose {' or '.join(dogfish.CLASSES)}.")
    # The test images of dogfish are not used: asking for as many lets one prepared copy serve both.
    animals = dogfish.load(
        mirror=mirror,
        cache=cache,
        size=size,
        train_per_class=train_per_class,
        test_per_class=test_per_class,
        seed=seed,
        folder=folder,
        dog=dog,
        fish=fish,
    )
    own = _folder(Path(photos).expanduser()) if photos is not None else None
    origin = own.sha256 if own is not None else SEQUENCE.sha256[0]
    arrays, manifest = prepared(
        InfluenceOneDog,
        lambda: {"photos": own or obtain(SEQUENCE, mirror=mirror, cache=cache)},
        mirror=mirror,
        cache=cache,
        variant=f"{size}px-{hashlib.sha256(f'{origin} {size}'.encode()).hexdigest()[:12]}",
        size=size,
    )
    columns = arrays["photos"]
    chosen = evenly(len(columns["index"]), count)
    names = np.array([name.decode() for name in columns["name"]])[chosen]
    y = np.full(len(chosen), dogfish.CLASSES.index(label), dtype=np.int64)
    test = Split(columns["image"][chosen], y, chosen.astype(np.int64), {"name": names})
    whole = animals.manifest | manifest
    whole["arrays"] = animals.manifest["arrays"] | manifest["arrays"]
    return Dataset("one_dog", animals.train, test, None, animals.classes, None, whole, animals.image_shape)
