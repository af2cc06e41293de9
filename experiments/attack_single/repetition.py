"""The spot check of ``attack_single``: one test image's last attempt again, the rest from the record.

A record holds for each test image how its last attempt ended. The stages are put together from that, so that
counts and shares are computed anew. What a record does not hold apart (sizes of single images in attempts by
several, the screening's recall, Newton steps of all refits) stays as recorded.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.attacks import pictures, ranking
from experiments.attacks.campaign import Campaign
from experiments.attacks.outcome import Stage
from experiments.records.record import Record

SIZES = ("movement_median", "l2_median")  # medians over images: a record has the mean of an attempt's


def ranked_again(
    campaign: Campaign, record: Record, few: np.ndarray, screened: int | None, most: int
) -> np.ndarray:
    """The best ranked training images ``(k, most)``: recorded, and computed for the test images ``few``."""
    ranked = np.array(record.arrays["ranked"])
    parts = ranking.rankings(campaign.clean, campaign.context, campaign.chosen[few], screened, 1)
    ranked[few] = np.stack([part["order"][:most] for part in parts])
    return ranked


def stages_again(
    campaign: Campaign, record: Record, few: np.ndarray, rows: dict[str, np.ndarray]
) -> dict[str, Stage]:
    """The stages as recorded; the last attempts on the test images ``few`` are made and verified again."""
    arrays, total = record.arrays, len(campaign.chosen)
    last = arrays["attempts"] - 1  # which stage was the last, of each test image
    stages = {}
    for number, (name, chosen) in enumerate(rows.items()):
        stage = stages[name] = Stage(chosen.shape[1], total)
        stage.tried[:] = last >= number
        ended = last == number
        stage.flipped[:] = ended & (arrays["images"] > 0)
        for field in ("iterations", "margin", "loss"):
            getattr(stage, field)[ended] = arrays[field][ended]
        for field in ("movement", "l2", "linf"):
            getattr(stage, field)[ended] = arrays[field][ended][:, None]
        here = few[ended[few]]
        if len(here):
            own = campaign.stage(name, chosen, here)
            for field in ("flipped", "iterations", "margin", "loss", "movement", "l2", "linf"):
                getattr(stage, field)[here] = getattr(own, field)[here]
            stage.parts, stage.keys = own.parts, own.keys
            campaign.verify({name: own}, rows)
            stage.checks = own.checks
    return stages


def as_recorded(metrics: dict[str, Any], record: Record, stages: dict[str, Stage]) -> None:
    """Puts the record's own numbers where they cannot be computed from it; in place."""
    recorded = record.metrics
    for name, stage in stages.items():
        if stage.m > 1:
            metrics["attempts"][name] |= {each: recorded["attempts"][name][each] for each in SIZES}
    for name in ("screening", "refits"):
        metrics[name] = recorded[name]
    if metrics["sizes"]["images"] > 1:
        metrics["sizes"] = recorded["sizes"]
    again, before = metrics["verified"], recorded["verified"]
    tried = sum(len(check["margin"]) for stage in stages.values() for check in stage.checks)
    if again["confirmed"] == again["byte_identical"] == tried:  # else a flip was not confirmed: it differs
        metrics["verified"] = before


def recorded_examples(record: Record, size: int) -> list[tuple[int, int, np.ndarray]] | None:
    """The flips that the record shows, as ``pictures.examples`` gives them; None: it has reduced pictures."""
    if "picture_delta" not in record.arrays:
        return []
    changes = pictures.recorded_changes(record, size)
    if changes is None:
        return None
    places, lines = record.arrays["shown"], record.metrics["shown"]
    return [
        (int(place), line["row"], delta) for place, line, delta in zip(places, lines, changes, strict=True)
    ]
