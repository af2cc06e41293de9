"""Prepared TFDS copies in the cache: built once, read back fast, and never trusted without their sha256.

TensorFlow is not needed: array_record files, read through `as_data_source`. Every builder stores an `index`
feature, which is asserted on each read, because a reordered data set would silently change every experiment.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.dataset import sha256_array
from experiments.data.errors import BadData
from experiments.data.fetch import Fetched, Source, cache_folder, obtain, write_atomically

_READ_AT_ONCE = 1000

Arrays = dict[str, dict[str, Any]]  # {split: {feature: array (n, ...) or list of bytes}}


def prepared(
    builder_class: Any,
    sources: dict[str, Source] | Callable[[], dict[str, Fetched]],
    *,
    mirror: str | os.PathLike[str] | None,
    cache: str | os.PathLike[str] | None,
    variant: str = "",
    **settings: Any,
) -> tuple[Arrays, dict[str, Any]]:
    """(arrays by split and feature, manifest), from the cache where its hashes hold, else built from the
    verified sources.

    `variant` tells copies of one builder with different settings apart. The builder receives `files` {key:
    Path} and `settings`.
    """
    root = cache_folder(cache) / "prepared" / (builder_class.name + (f"-{variant}" if variant else ""))
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / ".lock"):
        builder = _builder(builder_class, root)
        manifest_path = root / "manifest.json"
        if manifest_path.is_file() and Path(builder.data_dir).is_dir():
            try:
                manifest = json.loads(manifest_path.read_text())
                arrays = _read(builder)
                if _hashes(arrays) == manifest["arrays"]:
                    return arrays, manifest
                problem = "its arrays do not hash to what its manifest says"
            except (
                Exception
            ) as error:  # array_record, protobuf and zlib each have their own idea of a corrupt file
                problem = f"it cannot be read ({type(error).__name__}: {error})"
            warnings.warn(
                f"the prepared copy {builder.data_dir} is corrupt: {problem}; building it again.",
                stacklevel=2,
            )
        return _build(builder_class, root, sources, mirror, cache, settings)


def _build(
    builder_class: Any,
    root: Path,
    sources: dict[str, Source] | Callable[[], dict[str, Fetched]],
    mirror: str | os.PathLike[str] | None,
    cache: str | os.PathLike[str] | None,
    settings: dict[str, Any],
) -> tuple[Arrays, dict[str, Any]]:
    if callable(sources):
        files = sources()
    else:
        files = {key: obtain(source, mirror=mirror, cache=cache) for key, source in sources.items()}
    (root / "manifest.json").unlink(missing_ok=True)
    builder = _builder(builder_class, root)
    shutil.rmtree(builder.data_dir, ignore_errors=True)
    builder = _builder(
        builder_class, root
    )  # a builder remembers whether its folder was there when it was made
    builder.files = {key: file.path for key, file in files.items()}
    builder.settings = settings
    print(f"preparing {root.name} once, into {root}", file=sys.stderr)
    with _quiet_tfds():
        builder.download_and_prepare(download_dir=str(root / "downloads"))
    arrays = _read(builder)
    manifest: dict[str, Any] = {file.path.name: file.entry for file in files.values()}
    manifest["arrays"] = _hashes(arrays)
    write_atomically(root / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True).encode())
    return arrays, manifest


def _builder(builder_class: Callable[..., Any], root: Path) -> Any:
    return builder_class(data_dir=str(root), file_format="array_record")


def _read(builder: Any) -> Arrays:
    arrays: Arrays = {}
    for split in builder.info.splits:
        records = builder.as_data_source(split)
        n = len(records)
        columns: dict[str, Any] = {}
        for start in range(0, n, _READ_AT_ONCE):
            rows = records.__getitems__(list(range(start, min(n, start + _READ_AT_ONCE))))
            for key, first in rows[0].items():
                if isinstance(first, (bytes, str)):
                    columns.setdefault(key, []).extend(row[key] for row in rows)
                    continue
                first = np.asarray(first)
                if key not in columns:
                    columns[key] = np.empty((n, *first.shape), dtype=first.dtype)
                columns[key][start : start + len(rows)] = [row[key] for row in rows]
        if not np.array_equal(columns["index"], np.arange(n)):
            raise BadData(f"{builder.name}/{split}: the records are not in their original order.")
        arrays[split] = columns
    return arrays


def _hashes(arrays: Arrays) -> dict[str, str]:
    return {
        f"{split}/{key}": sha256_array(column)
        for split, part in arrays.items()
        for key, column in part.items()
    }


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process prepares, the others wait: jobs of a sweep start together on an empty cache."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """TFDS prints announcements to stdout, where our results go, and nested progress bars; both are kept
    back.
    """
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        tfds.enable_progress_bar()
