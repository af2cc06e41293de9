"""The images that a figure of an attack shows, at the size that the network sees them, and the float ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.attacks.clean import Clean
from experiments.attacks.outcome import Stage
from experiments.attacks.pixels import stored
from experiments.attacks.shown import kept
from experiments.records.journal import Journal


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
