"""The images that a figure of an attack shows, at the size that the network sees them, and the float ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.attacks.clean import Clean
from experiments.attacks.outcome import Stage
from experiments.attacks.pixels import HALF_STEP, stored
from experiments.attacks.shown import change_of, kept
from experiments.records.journal import Journal
from experiments.records.record import Record


def examples(
    journal: Journal, stages: dict[str, Stage], rows: dict[str, np.ndarray], count: int
) -> list[tuple[int, int, np.ndarray]]:
    """The first flips by one image, each by another one: (place of the test image, training row, delta).

    delta: ``(size, size, 3)``. Where fewer training images did it, fewer are shown.
    """
    found: dict[int, tuple[int, int, np.ndarray]] = {}
    for name, stage in stages.items():
        for key, places in stage.keys if stage.m == 1 else []:
            won = np.flatnonzero(stage.flipped[places])
            new = [i for i, place in enumerate(won) if int(rows[name][places[place], 0]) not in found]
            if not new or len(found) >= count:
                continue
            saved = journal.get(key)
            if saved is None:
                continue
            for i in new:
                place = int(places[won[i]])
                row = int(rows[name][place, 0])
                if row not in found and len(found) < count:
                    found[row] = (place, row, saved["delta"][i][0].transpose(1, 2, 0))
    return list(found.values())


def recorded_changes(record: Record, size: int) -> np.ndarray | None:
    """The changes in 8-bit steps that a record keeps, ``(f, size, size, 3)`` float32; None: reduced ones.

    To a 254th of a step, as a published record has them; exactly where the record holds the float images.
    """
    arrays = record.arrays
    if arrays["picture_delta"].shape[1] != size:
        return None
    if "poisoned" in arrays:
        delta = arrays["poisoned"].astype(np.float64) - arrays["picture_original"]
    else:
        delta = change_of(arrays["picture_delta"])
    return delta.clip(-HALF_STEP, HALF_STEP).astype(np.float32)


def as_recorded(record: Record) -> dict[str, np.ndarray]:
    """The record's own pictures."""
    return {name: value for name, value in record.arrays.items() if name.startswith(("picture_", "shown"))}


def arrays(
    clean: Clean, chosen: np.ndarray, found: list[tuple[int, int, np.ndarray]]
) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """The figure's images and a line about each.

    ``poisoned``: the float images; ``picture_original``, ``picture_test`` and ``picture_delta`` (int8, the
    change in 254ths of a step): at full size, for the committed record.
    """
    if not found:
        return {}, []
    places, rows = (np.array([item[i] for item in found]) for i in (0, 1))
    delta = np.stack([item[2] for item in found])
    originals = stored(clean.backbone.images(clean.data.train.X[rows]))
    tests = clean.backbone.images(clean.data.test.X[chosen[places]])
    names, data = clean.data.classes, clean.data
    lines = [
        {
            "test_index": int(chosen[place]),
            "test_label": names[int(data.test.y[chosen[place]])],
            "flipped_to": names[1 - int(data.test.y[chosen[place]])],
            "row": int(row),
            "row_label": names[int(data.train.y[row])],
        }
        for place, row in zip(places, rows, strict=True)
    ]
    return {
        "poisoned": originals.astype(np.float32) + delta,
        "picture_original": originals,
        "picture_delta": kept(delta),
        "picture_test": stored(tests),
        "shown": places,
    }, lines
