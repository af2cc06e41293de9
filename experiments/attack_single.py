"""Fig. 5, one test image at a time: imperceptible changes of few training images flip its prediction.

The top layer of a frozen network is a logistic regression on its features. For each correctly classified test
image the training images are ranked by ``‖I_pert,loss‖₁``; the first is attacked, then the second, then the
top 2, 3, 5 and 10 together, until the prediction of the retrained model flips. An attempt is at most 100
iterations of ``x ← Π(x + α sign(I_pert,loss(x, z_test)))``, where Π keeps x within half an 8-bit step of the
original, so that the stored image does not change; after each the features are computed again and the top
layer is refitted exactly. Every flip is verified by a fit from zero on the saved float images.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from omegaconf import DictConfig

from experiments.attacks import outcome, pictures, ranking
from experiments.attacks.attempt import Setting, attempt, verified
from experiments.attacks.clean import Clean, clean_model, described
from experiments.attacks.refit import Worst
from experiments.data.dataset import permutation
from experiments.errors import ConfigError, UserError
from experiments.record import Record
from experiments.run import Run, Timing


def run(cfg: DictConfig, run: Run) -> Record:
    """Clean fit, rankings, attempts of every size, verification, what it took."""
    settings = cfg.experiment
    check(settings)
    clean = clean_model(cfg, run)
    chosen = choose(clean, settings.test_images, cfg.seed)
    most = max([settings.singles, *settings.together])
    ranked = ranking.screened(clean, run, chosen, settings.screened, most)
    recall = ranking.recall(clean, run, chosen[: settings.exact_rankings], settings.screened, most)
    setting = Setting(clean.backbone, clean.refits, clean.data.train.X, settings.alpha, settings.iterations)
    reach = full_length(run, clean, setting, chosen[: settings.full_length], ranked, settings.side_by_side)

    rows = {f"candidate {i + 1}": ranked[:, i : i + 1] for i in range(settings.singles)}
    rows |= {f"top {m}": ranked[:, :m] for m in settings.together}
    left = np.arange(len(chosen))
    stages: dict[str, outcome.Stage] = {}
    for name in rows:
        stages[name] = campaign(cfg, run, clean, setting, chosen, name, rows[name], left)
        left = left[~stages[name].flipped[left]]
    worst = Worst()
    for stage in stages.values():
        for part in stage.parts:
            worst.add(Worst.of(part["worst"]))
    per_image = outcome.per_test_image(list(stages.values()))
    found = pictures.examples(run.journal("attempts"), stages, rows, settings.shown)
    arrays, shown = pictures.arrays(clean, setting, chosen, found)
    metrics: dict[str, Any] = {
        **described(clean),
        "attacked": len(chosen),
        "training_images_attacked": len(np.unique(ranked[:, : settings.singles])),
        "flipped": outcome.cumulative(stages),
        "attempts": {name: stage.summary() for name, stage in stages.items()},
        "sizes": outcome.sizes(stages, clean.distance),
        "full_length": reach,
        "screening": recall,
        "verified": outcome.verification(stages),
        "refits": {"newton_steps": worst.newton_steps / max(1, worst.refits)},
        "shown": shown,
    }
    return Record(
        experiment="attack_single",
        metrics=metrics,
        arrays={
            "index": chosen,
            "original_index": clean.data.test.index[chosen],
            "label": clean.data.test.y[chosen],
            "certainty": 1 / (1 + np.exp(-clean.margins[chosen])),
            **per_image,
            "ranked": ranked,
            **arrays,
        },
        table=["index", "original_index", "label", "certainty", *per_image],
        captions={
            "attack_single": f"Training images changed by less than half an 8-bit step flip test images "
            f"({clean.backbone.label} at {clean.backbone.size} pixels, {clean.data.name}, n = {clean.n}, "
            f"{len(chosen)} test images)."
        },
        certificates=[{"fit": "clean", **clean.certificate.to_dict()}, worst.certificate()],
    )


def check(settings: DictConfig) -> None:
    """ConfigError for settings that make no attack."""
    if settings.singles < 1 or any(m < 2 for m in settings.together):
        raise ConfigError(
            f"experiment.singles={settings.singles}, together={list(settings.together)}: give at least one "
            "candidate, and groups of 2 or more."
        )
    most = max([settings.singles, *settings.together])
    if settings.screened is not None and settings.screened < most:
        raise ConfigError(
            f"experiment.screened={settings.screened} ranks too few training images: give {most} or more."
        )
    for name in ("alpha", "iterations", "side_by_side"):
        if settings[name] <= 0:
            raise ConfigError(f"experiment.{name}={settings[name]}: give more than 0.")


def choose(clean: Clean, count: int | None, seed: int) -> np.ndarray:
    """Positions of ``count`` correctly classified test images in a seeded order; all of them where null."""
    order = permutation(len(clean.margins), seed)
    right = order[clean.margins[order] > 0]
    if not len(right) or (count is not None and not 1 <= count <= len(right)):
        raise UserError(
            f"experiment.test_images={count}: {len(right)} test images are classified correctly; give 1 to "
            f"{len(right)}, or null."
        )
    return right[:count]


def in_chunks(places: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Consecutive pieces of at most ``size``: always the same ones, so that a resumed run repeats them."""
    for start in range(0, len(places), size):
        yield places[start : start + size]


def campaign(
    cfg: DictConfig,
    run: Run,
    clean: Clean,
    setting: Setting,
    chosen: np.ndarray,
    name: str,
    rows: np.ndarray,
    left: np.ndarray,
) -> outcome.Stage:
    """The attempts ``name`` on every test image not flipped yet, ``left``, each flip verified at once.

    A journal entry is one chunk of attacks side by side; its verification reads the entry back from disk.
    """
    journal, checks = run.journal("attempts"), run.journal("verification")
    stage = outcome.Stage(rows.shape[1], len(chosen))
    with run.progress(len(left), name) as advance:
        for places in in_chunks(left, max(1, cfg.experiment.side_by_side // stage.m)):
            key = f"{name}, {places[0]}-{places[-1]}"
            targets = clean.targets(chosen[places])
            if journal.get(key) is None:
                journal.put(key, attempt(setting, rows[places], targets))
            saved = journal.get(key)
            if saved is None:
                raise UserError(f"the journal entry {key!r} could not be read back: check the disk.")
            check = checks.get(key)
            if check is None:
                check = verification(cfg, clean, setting, chosen, rows, places, saved)
                checks.put(key, check)
            stage.add(key, places, saved, check)
            advance(int(stage.tried.sum()))
    outcome.timing(run, name, stage, clean)
    return stage


def verification(
    cfg: DictConfig,
    clean: Clean,
    setting: Setting,
    chosen: np.ndarray,
    rows: np.ndarray,
    places: np.ndarray,
    saved: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """``verified`` of each flip in ``saved``, stacked; empty arrays where there is none."""
    won = places[saved["flipped"]]
    found = [
        verified(
            setting, rows[place], delta, clean.targets(chosen[[place]]), cfg.experiment.training_tolerance
        )
        for place, delta in zip(won, saved["delta"], strict=True)
    ]
    names = ("margin", "gradient_norm", "identical")
    return {name: np.array([item[name] for item in found]).reshape(-1) for name in names}


def full_length(
    run: Run, clean: Clean, setting: Setting, chosen: np.ndarray, ranked: np.ndarray, side_by_side: int
) -> dict[str, Any]:
    """How far all iterations move the features of the best ranked image, for the first test images.

    The flips stop early, so their movement says how much was needed; this says how much there is.
    """
    journal = run.journal("full length")
    parts = []
    for places in in_chunks(np.arange(len(chosen)), side_by_side):
        key = f"{places[0]}-{places[-1]}"
        part = journal.get(key)
        if part is None:
            part = attempt(setting, ranked[places, :1], clean.targets(chosen[places]), stop=False)
            del part["delta"]
            journal.put(key, part)
        parts.append(part)
    seconds = sum(part["seconds"].sum() for part in parts)
    images = len(chosen) * (setting.iterations + 1)
    run.timings.append(Timing(f"full length: {images} image iterations", clean.work[1] * images, seconds))
    movement = np.concatenate([part["movement"] for part in parts]) if parts else np.zeros((0, 1))
    return {
        "test_images": len(chosen),
        "movement": outcome.median(movement),
        "movement_over_class_distance": outcome.median(movement / clean.distance),
        "flipped": int(sum(part["flipped"].sum() for part in parts)),
    }
