"""The images that a figure of an attack shows, small enough for a committed record, and the whole ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from experiments.attacks.clean import Clean
from experiments.attacks.outcome import Stage
from experiments.attacks.pixels import stored
from experiments.records.journal import Journal

SIDE = 112  # pixels a side at most in the figure: every second, third, … pixel, so that steps keep their size


def thinned(images: np.ndarray) -> np.ndarray:
    """Every so-manieth pixel of ``(..., height, width, 3)``, so that at most SIDE a side are left."""
    stride = -(-images.shape[-2] // SIDE)
    return images[..., ::stride, ::stride, :]


def examples(
    journal: Journal, stages: dict[str, Stage], rows: dict[str, np.ndarray], count: int
) -> list[tuple[int, int, np.ndarray]]:
    """The first flips by one image: (place of the test image, training row, delta ``(size, size, 3)``)."""
    found: list[tuple[int, int, np.ndarray]] = []
    for name, stage in stages.items():
        for key, places in stage.keys if stage.m == 1 else []:
            won = np.flatnonzero(stage.flipped[places])
            if len(won) and len(found) < count:
                saved = journal.get(key)
                deltas: Iterable[Any] = saved["delta"][: count - len(found)] if saved is not None else []
                found += [
                    (int(places[i]), int(rows[name][places[i], 0]), delta[0].transpose(1, 2, 0))
                    for i, delta in zip(won, deltas, strict=False)
                ]
    return found


def arrays(
    clean: Clean, chosen: np.ndarray, found: list[tuple[int, int, np.ndarray]]
) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """The figure's images and a line about each.

    ``poisoned``: the whole float images; ``picture_original``, ``picture_delta`` (float16, 8-bit units) and
    ``picture_test``: thinned.
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
        "picture_original": thinned(originals),
        "picture_delta": thinned(delta).astype(np.float16),
        "picture_test": thinned(stored(tests)),
        "shown": places,
    }, lines
