"""Scores written to disk part by part, for more training points and test points than memory holds.

A run that was killed goes on with the parts that are missing. A folder of other settings is refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from influence.errors import DataError
from influence.objectives import distributed
from influence.removal import TrainingGradient
from influence.scores import up_loss
from influence.solvers import Solution


class StreamedScores:
    """Scores ``(n, k)`` on disk in parts of ``rows`` training points; read one part at a time."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        manifest = self.folder / "scores.json"
        if not manifest.is_file():
            raise DataError(
                f"{self.folder} holds no scores.json; write scores there with stream_scores first"
            )
        self.settings: dict[str, Any] = json.loads(manifest.read_text())
        self.n, self.k, self.rows = (int(self.settings[name]) for name in ("n", "k", "rows"))

    def path(self, start: int) -> Path:
        """The file of the part that begins at training point ``start``."""
        return self.folder / _name(start)

    def part(self, start: int) -> np.ndarray | None:
        """``(m, k)`` scores of the part at ``start``; None where it is not there or not whole."""
        try:
            with np.load(self.path(start), allow_pickle=False) as archive:  # checks the zip's CRC
                scores = archive["scores"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        return scores if scores.shape == (min(self.rows, self.n - start), self.k) else None

    def missing(self) -> list[int]:
        """Starts of the parts that are not there."""
        return [start for start in range(0, self.n, self.rows) if self.part(start) is None]

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        """``(start, scores (m, k))`` of every part in order.

        Raises:
            DataError: a part is missing or damaged.
        """
        for start in range(0, self.n, self.rows):
            scores = self.part(start)
            if scores is None:
                raise DataError(f"{self.path(start)} is missing or damaged; call stream_scores again")
            yield start, scores

    def column(self, j: int) -> np.ndarray:
        """``(n,)`` scores for one test point."""
        return np.concatenate([scores[:, j] for _, scores in self])

    def top(self, column: int = 0, count: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """The ``count`` training points of largest |score| for one test point: indices and scores."""
        index, value = np.empty(0, np.int64), np.empty(0)
        for start, scores in self:
            index = np.concatenate([index, start + np.arange(len(scores))])
            value = np.concatenate([value, scores[:, column]])
            keep = np.argsort(-np.abs(value), kind="stable")[:count]
            index, value = index[keep], value[keep]
        return index, value


def stream_scores(
    objective: Any,
    theta: Tensor,
    s_tests: Tensor | Solution,
    folder: Path | str,
    *,
    rows: int = 65536,
    training_gradient: TrainingGradient | str = TrainingGradient.OBJECTIVE,
    progress: Callable[[int], None] | None = None,
) -> StreamedScores:
    """``I_up,loss`` of all n training points for k test points, to disk in parts of ``rows × k`` numbers.

    A part is moved into place when it is whole, and a part that is there is not computed again: a killed run
    is resumed by the same call. In a distributed job all ranks call it and rank 0 writes.

    Args:
        objective: any objective; a streamed one where the data do not fit either.
        theta: ``(p,)`` fitted parameters.
        s_tests: ``(p, k)``.
        training_gradient: the convention of removal, as in :func:`~influence.scores.up_loss`.
        folder: one set of scores a folder.
        rows: training points a part.
        progress: called with the number of training points done.

    Raises:
        DataError: the folder holds scores of other parameters, other s_test or another data set.
        OSError: it cannot be written; no half part is left.
    """
    theta, s_tests = objective.vector(theta), s_tests.value if isinstance(s_tests, Solution) else s_tests
    if s_tests.ndim != 2 or rows < 1:
        raise DataError(f"s_tests must be (p, k) and rows >= 1, got {tuple(s_tests.shape)} and {rows}")
    folder = Path(folder)
    settings = {
        "n": objective.n, "k": s_tests.shape[1], "rows": rows, "dtype": str(objective.dtype),
        "training_gradient": str(TrainingGradient(training_gradient)), "l2": objective.l2,
        "l2_mask_sha256": _digest(objective.l2_mask),
        "theta_sha256": _digest(theta), "s_test_sha256": _digest(s_tests),
    }  # fmt: skip
    answer: tuple[set[int], str | None] = (set(), None)
    if distributed.rank() == 0:
        answer = _begin(folder, settings)
    missing, refusal = distributed.from_first(answer)
    if refusal:
        raise DataError(refusal)
    for start in range(0, objective.n, rows):
        stop = min(start + rows, objective.n)
        if start in missing:
            idx = torch.arange(start, stop, device=theta.device)
            scores = up_loss(objective, theta, s_tests, training_gradient, idx)
            if distributed.rank() == 0:
                content = io.BytesIO()
                np.savez(content, scores=scores.cpu().numpy())
                _write(folder / _name(start), content.getvalue())
        if progress is not None:
            progress(stop)
    return StreamedScores(folder)


def _begin(folder: Path, settings: dict[str, Any]) -> tuple[set[int], str | None]:
    """Starts of the parts that are to be computed, or why the folder cannot be used."""
    manifest = folder / "scores.json"
    if not manifest.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _write(manifest, (json.dumps(settings, indent=1, sort_keys=True) + "\n").encode())
    elif json.loads(manifest.read_text()) != settings:
        return set(), f"{folder} holds scores of other settings; choose another folder or remove it"
    return set(StreamedScores(folder).missing()), None


def _name(start: int) -> str:
    return f"scores-{start:012d}.npz"


def _digest(tensor: Tensor) -> str:
    content = np.ascontiguousarray(tensor.detach().cpu().numpy())
    return hashlib.sha256(repr((content.dtype.str, content.shape)).encode() + content.tobytes()).hexdigest()


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all: written beside, flushed, moved into place."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
