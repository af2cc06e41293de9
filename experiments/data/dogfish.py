"""Dog against fish: 900 training and 300 test images of each, as uint8 RGB arrays.

From Imagenette's originals (English springer against tench), from a mirror's tar of the same files, or from a
folder in ImageNet's layout (`<folder>/[train/]<synset>/*`) with any two lists of synsets. Images are resized
so that the shorter side is `size`, then cropped in the middle. A readable image that is not RGB (grey,
palette, CMYK, with alpha) is converted; one that cannot be read stops the preparation and is named.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from experiments.data.archive import read_archive
from experiments.data.dataset import Dataset, Split, permutation
from experiments.data.errors import BadData, FileMissing
from experiments.data.fetch import Fetched, Source, mirror_folder, obtain
from experiments.data.prepare import prepared

CLASSES = ("dog", "fish")
SYNSETS = {"dog": ("n02102040",), "fish": ("n01440764",)}  # English springer, tench
_MAX_IMAGE, _MAX_TOTAL = 32 << 20, 4 << 30
_MAX_PIXELS = 64_000_000

MIRROR_TAR = Source(
    "dogfish/imagenette2-224.tar",
    ("https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz",),
    ("dbbe8499eb6592fb1437209bcb895a01c0e30bf28a79f5bf1009632d544d500b",),
    _MAX_TOTAL,
)
ORIGINAL = Source(
    "dogfish/imagenette2-320.tgz",
    ("https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz",),
    ("569b4497c98db6dd29f335d1f109cf315fe127053cedf69010d047f0188e158c",),
    _MAX_TOTAL,
)


def decode(content: bytes, name: str, size: int) -> np.ndarray:
    """(size, size, 3) uint8 of an image file: converted to RGB, shorter side to `size` (bilinear), centre
    crop.

    Raises:
        BadData: the image cannot be read, or declares more pixels than any photograph has.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise BadData(
                    f"image {name} declares {image.width}×{image.height} pixels; refused: remove the file."
                )
            image.load()
            rgb = image if image.mode == "RGB" else image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadData(f"image {name} cannot be read ({error}); replace or remove the file.") from error
    if min(rgb.size) != size:
        factor = size / min(rgb.size)
        width, height = (max(size, round(side * factor)) for side in rgb.size)
        rgb = rgb.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (rgb.width - size) // 2, (rgb.height - size) // 2
    return np.asarray(rgb.crop((left, top, left + size, top + size)), dtype=np.uint8)


def choose(
    names: list[str], n_train: int, n_test: int, synsets: dict[str, tuple[str, ...]]
) -> dict[str, list[tuple[str, int]]]:
    """{"train": [(name, label)], "test": ...}: per class, by sorted name, the first `n_train` images and the
    first `n_test` of the rest.

    Where the names have `train/` and `val/` folders, training images come from the one, test images from the
    other.

    Raises:
        BadData: there are fewer images than asked for.
    """
    chosen: dict[str, list[tuple[str, int]]] = {"train": [], "test": []}
    for label, of_class in enumerate(CLASSES):
        mine = sorted(name for name in names if name.split("/")[-2] in synsets[of_class])
        test = [name for name in mine if "val" in name.split("/")[:-2]]
        train = [name for name in mine if "val" not in name.split("/")[:-2]]
        if not test:
            train, test = train[:n_train], train[n_train:]
        if len(train) < n_train or len(test) < n_test:
            raise BadData(
                f"dogfish: {len(train)} training and {len(test)} test images of {of_class} "
                f"({', '.join(synsets[of_class])}); "
                f"{n_train} + {n_test} are needed: add synsets, or lower train_per_class and test_per_class."
            )
        chosen["train"] += [(name, label) for name in train[:n_train]]
        chosen["test"] += [(name, label) for name in test[:n_test]]
    return chosen


class InfluenceDogfish(tfds.core.GeneratorBasedBuilder):
    """The chosen images, class by class, each class sorted by name."""

    name = "influence_dogfish"
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
            "label": tfds.features.ClassLabel(names=list(CLASSES)),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Dog and fish images, resized, in the order of their names.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        contents = dict(_files(next(iter(self.files.values())), self.settings["synsets"]))
        chosen = choose(
            list(contents), self.settings["n_train"], self.settings["n_test"], self.settings["synsets"]
        )
        return {part: self._generate_examples(rows, contents) for part, rows in chosen.items()}

    def _generate_examples(
        self, rows: list[tuple[str, int]], contents: dict[str, bytes]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (name, label) in enumerate(rows):
            image = decode(contents[name], name, self.settings["size"])
            yield i, {"index": i, "name": name, "image": image, "label": label}


def _files(path: Path, synsets: dict[str, tuple[str, ...]]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every image of the wanted synsets, from an archive or a folder."""
    every = {synset for names in synsets.values() for synset in names}

    def wanted(name: str) -> bool:
        return len(name.split("/")) >= 2 and name.split("/")[-2] in every

    if path.is_dir():
        for file in sorted(path.rglob("*")):
            name = file.relative_to(path.parent).as_posix()
            if file.is_file() and wanted(name):
                yield name, file.read_bytes()
    else:
        yield from read_archive(path, max_file=_MAX_IMAGE, max_total=_MAX_TOTAL, wanted=wanted)


def _archive(mirror: Any, cache: Any) -> Fetched:
    """The mirror's tar where there is one, else Imagenette's original."""
    folder = mirror_folder(mirror)
    if folder is not None and any(
        (folder / name).is_file() for name in (MIRROR_TAR.path, "imagenette2-224.tar")
    ):
        return obtain(MIRROR_TAR, mirror=mirror, cache=cache)
    return obtain(ORIGINAL, mirror=mirror, cache=cache)


def _folder(path: Path, synsets: dict[str, tuple[str, ...]]) -> Fetched:
    """A user's folder, identified by the names and bytes of its images."""
    if not path.is_dir():
        raise FileMissing(
            f"data.folder={path} is not a folder; give one in ImageNet's layout, <folder>/<synset>/*.JPEG."
        )
    digest = hashlib.sha256()
    for name, content in _files(path, synsets):
        digest.update(f"{name}\0{len(content)}\0".encode() + hashlib.sha256(content).digest())
    return Fetched(path, digest.hexdigest(), str(path))


def load(
    *,
    mirror: Any,
    cache: Any,
    size: int = 224,
    train_per_class: int = 900,
    test_per_class: int = 300,
    seed: int = 0,
    folder: str | None = None,
    dog: list[str] | None = None,
    fish: list[str] | None = None,
) -> Dataset:
    """X (n, size, size, 3) uint8, y = 1: fish. Each part shuffled by `seed`; extra: "name" of each image's
    file.

    folder: an ImageNet folder instead of Imagenette; dog, fish: its lists of synsets (default: springer and
    tench).

    Raises:
        BadData: a synset is given for both classes, or a number is below 1.
    """
    synsets = {"dog": tuple(dog or SYNSETS["dog"]), "fish": tuple(fish or SYNSETS["fish"])}
    if set(synsets["dog"]) & set(synsets["fish"]):
        raise BadData("dogfish: a synset is given for both dog and fish; keep it in one list.")
    if size < 1 or train_per_class < 1 or test_per_class < 1:
        raise BadData("dogfish: size, train_per_class and test_per_class must be at least 1.")
    file: Fetched | None = None
    if folder is not None:
        file = _folder(Path(folder).expanduser(), synsets)
        origin = file.sha256
    else:
        names = (MIRROR_TAR.path, "imagenette2-224.tar")
        root = mirror_folder(mirror)
        origin = (
            MIRROR_TAR.sha256[0] if root and any((root / n).is_file() for n in names) else ORIGINAL.sha256[0]
        )
    what = f"{origin} {size} {train_per_class} {test_per_class} {synsets}"
    arrays, manifest = prepared(
        InfluenceDogfish,
        lambda: {"images": file or _archive(mirror, cache)},
        mirror=mirror,
        cache=cache,
        variant=f"{size}px-{hashlib.sha256(what.encode()).hexdigest()[:12]}",
        size=size,
        n_train=train_per_class,
        n_test=test_per_class,
        synsets=synsets,
    )
    splits = []
    for part in ("train", "test"):
        columns = arrays[part]
        order = permutation(len(columns["label"]), seed)
        names = np.array([name.decode() for name in columns["name"]])[order]
        y = columns["label"][order].astype(np.int64)
        splits.append(Split(columns["image"][order], y, order.astype(np.int64), {"name": names}))
    train, test = splits
    return Dataset("dogfish", train, test, None, CLASSES, None, manifest, (size, size, 3))
