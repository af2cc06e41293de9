"""Files that are either whole or not there: written temporary, flushed to disk, moved into place."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.records.errors import BusyError


def write_bytes(path: Path, content: bytes) -> None:
    """Writes ``content`` to ``path`` atomically; raises OSError and leaves no trace where it can't."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """``write_bytes`` of UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """``value`` as JSON with sorted keys; see ``jsonable`` for numbers that JSON does not have."""
    write_text(path, json.dumps(jsonable(value), indent=1, sort_keys=True, allow_nan=False) + "\n")


def jsonable(value: Any) -> Any:
    """Plain JSON values: numpy scalars and arrays unpacked, non-finite floats as {"non_finite": "nan"}.

    Raises:
        TypeError: anything else, so that nothing is recorded by its ``repr`` by accident.
    """
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)) or hasattr(value, "tolist"):
        return jsonable(value.tolist())
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else {"non_finite": str(value)}
    raise TypeError(
        f"{type(value).__name__} {value!r} cannot stand in a record; give numbers, texts, lists, dicts."
    )


def unjsonable(value: Any) -> Any:
    """The inverse of ``jsonable`` for non-finite numbers."""
    if isinstance(value, dict):
        if set(value) == {"non_finite"}:
            return float(value["non_finite"])
        return {key: unjsonable(item) for key, item in value.items()}
    return [unjsonable(item) for item in value] if isinstance(value, list) else value


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The arrays as an uncompressed .npz whose bytes depend on names and contents alone (no time stamps)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            part = io.BytesIO()
            array = np.asarray(arrays[name], order="C")  # ascontiguousarray would make a number a vector
            np.lib.format.write_array(part, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0)), part.getvalue())
    return buffer.getvalue()


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def sha256(content: bytes) -> str:
    """Hexadecimal sha256 of ``content``."""
    return hashlib.sha256(content).hexdigest()


def key_hash(value: Any) -> str:
    """sha256 of a JSON-able value, keys sorted."""
    return sha256(json.dumps(jsonable(value), sort_keys=True).encode())


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds ``folder``/.lock; raises BusyError at once where another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                f"another run is writing {folder}; wait for it or choose another output=."
            ) from None
        yield
