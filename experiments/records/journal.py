"""The journal: finished units of work on disk, so that a killed run loses only the unit in flight."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.records.atomic import key_hash, npz_bytes, read_npz, sha256, write_bytes


class Journal:
    """Arrays by key in one folder: a part file a unit, and ``index.jsonl`` with each part's sha256.

    A part is moved into place whole and only then named in the index: a kill between the two leaves a part
    without a name. That, a torn last line, a missing part and one whose sha256 differs all count as not done.
    The folder's name holds a hash of ``identity`` (config, data, the caller's key): work done for anything
    else is never found. ``call`` says what stands beside each part of this call: when the call began (seconds
    since 1970) and its peak memory so far in MiB (:func:`earlier_calls`).
    """

    def __init__(
        self, root: Path, name: str, identity: Any, call: Callable[[], tuple[float, float]] | None = None
    ) -> None:
        self._call = call
        self.folder = root / f"{name}-{key_hash(identity)[:16]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._index = self.folder / "index.jsonl"
        self._parts: dict[str, tuple[str, str]] = {}
        self._read()

    def _read(self) -> None:
        content = self._index.read_bytes() if self._index.exists() else b""
        for line in content.split(b"\n"):
            try:
                entry = json.loads(line)
                self._parts[entry["key"]] = (entry["file"], entry["sha256"])
            except (ValueError, KeyError, TypeError):
                continue  # torn by a kill: that unit is done again
        if content and not content.endswith(b"\n"):
            self._append(b"\n")  # what follows must not be glued to the torn line

    def _append(self, line: bytes) -> None:
        with open(self._index, "ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def __len__(self) -> int:
        return len(self._parts)

    def get(self, key: Any) -> dict[str, np.ndarray] | None:
        """The arrays put under ``key``, or None if they are not there or not whole."""
        name, digest = self._parts.get(str(key), ("", ""))
        path = self.folder / name
        inside = name == Path(name).name  # a forged line must not reach files elsewhere
        if not name or not inside or not path.is_file() or sha256(path.read_bytes()) != digest:
            return None
        return read_npz(path)

    def put(self, key: Any, arrays: Mapping[str, Any]) -> None:
        """Keeps ``arrays`` under ``key``; on disk when this returns."""
        content = npz_bytes({name: np.asarray(value) for name, value in arrays.items()})
        file = f"{key_hash(str(key))[:16]}.npz"
        write_bytes(self.folder / file, content)
        digest = sha256(content)
        line: dict[str, Any] = {"key": str(key), "file": file, "sha256": digest}
        if self._call is not None:
            began, peak = self._call()
            line |= {"began": began, "at": time.time(), "peak_mib": round(peak, 1)}
        self._append(json.dumps(line).encode() + b"\n")
        self._parts[str(key)] = (file, digest)


def earlier_calls(root: Path, began: float) -> list[tuple[float, float]]:
    """Seconds until its last unit, and peak MiB, of each call but that of ``began``: from the journals."""
    found: dict[float, tuple[float, float]] = {}
    for index in sorted(root.glob("*/index.jsonl")):
        for line in index.read_bytes().split(b"\n"):
            try:
                entry = json.loads(line)
                call, at, peak = (float(entry[name]) for name in ("began", "at", "peak_mib"))
            except (ValueError, KeyError, TypeError):
                continue
            if call != began:
                seconds, most = found.get(call, (0.0, 0.0))
                found[call] = max(seconds, at - call), max(most, peak)
    return [found[call] for call in sorted(found)]
