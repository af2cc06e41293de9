"""Fig. 5, one test image at a time: imperceptible changes of few training images flip its prediction.

The top layer of a frozen network is a logistic regression on its features. For each correctly classified test
image the training images are ranked by ``‖I_pert,loss‖₁``. The first one is attacked, then the second, then
the top 2, 3, 5 and 10 together, until the prediction of the retrained model flips. An attempt is at most 100
iterations of ``x ← Π(x + α sign(I_pert,loss(x, z_test)))``. Π keeps x within half an 8-bit step of the
original, so the stored image does not change. After each iteration the features are computed again and the
top layer is refitted exactly. Every flip is verified by a fit from zero on the saved float images.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from omegaconf import DictConfig

from experiments.attack_single import repetition
from experiments.attacks import outcome, pictures, ranking
from experiments.attacks.campaign import Campaign
from experiments.attacks.clean import Clean, clean_model, described
from experiments.attacks.steps import FIT
from experiments.records import machine
from experiments.records.errors import ConfigError, UserError
from experiments.records.record import Record
from experiments.suite.context import Context

Found = list[tuple[int, int, np.ndarray]] | None  # flips to be shown; None: a record has reduced pictures
GROWS = "experiment.test_images"  # a run with more of them goes on in the same folder (experiments.suite.job)


def run(cfg: DictConfig, context: Context) -> Record:
    """Clean fit, rankings, attempts of every size, verification, what it took."""
    settings = cfg.experiment
    check(settings, cfg.device)
    clean = clean_model(cfg, context)
    chosen = choose(clean, settings.test_images, cfg.seed)
    most = max([settings.singles, *settings.together])
    workers = machine.workers(settings.workers, "threads", least=1)
    campaign = Campaign(context, clean, settings, chosen, workers)
    few = context.sample(len(chosen), "test image(s) attacked again", worth=settings.iterations)
    record = context.earlier()
    if record is None or few is None:
        parts = ranking.rankings(clean, context, chosen, settings.screened, workers)
        ranked = np.stack([part["order"][:most] for part in parts])
        recall = ranking.recall(
            clean, context, chosen[: settings.exact_rankings], settings.screened, most, workers
        )
    else:
        ranked = repetition.ranked_again(campaign, record, few, settings.screened, most)
    rows = {f"candidate {i + 1}": ranked[:, i : i + 1] for i in range(settings.singles)}
    rows |= {f"top {m}": ranked[:, :m] for m in settings.together}

    reach = campaign.full_length(rows["candidate 1"])
    if record is None or few is None:
        stages = attacked(campaign, rows)
        found: Found = pictures.examples(campaign.journal, stages, rows, settings.shown)
    else:
        recall, stages = {}, repetition.stages_again(campaign, record, few, rows)
        found = repetition.recorded_examples(record, clean.backbone.size)
    worst = outcome.worst(stages)
    per_image = outcome.per_test_image(list(stages.values()))
    if record is not None and found is None:
        arrays, shown = pictures.as_recorded(record), record.metrics["shown"]
    else:
        arrays, shown = pictures.arrays(clean, chosen, found or [])
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
    if record is not None:
        repetition.as_recorded(metrics, record, stages)
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
        certificates=[{"fit": "clean", **clean.certificate.to_dict()}, worst.certificate(FIT)],
    )


def attacked(campaign: Campaign, rows: dict[str, np.ndarray]) -> dict[str, outcome.Stage]:
    """Every stage on the test images that no earlier one flipped; every flip verified."""
    left = np.arange(len(campaign.chosen))
    stages: dict[str, outcome.Stage] = {}
    for name in rows:
        stages[name] = campaign.stage(name, rows[name], left)
        left = left[~stages[name].flipped[left]]
    campaign.verify(stages, rows)
    return stages


def check(settings: DictConfig, device: str) -> None:
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
    if device.startswith("cuda") and settings.workers != 1:
        raise ConfigError(f"experiment.workers={settings.workers}: with device={device} use 1, one thread.")
    for name in ("alpha", "iterations", "side_by_side"):
        if settings[name] <= 0:
            raise ConfigError(f"experiment.{name}={settings[name]}: give more than 0.")


def choose(clean: Clean, count: int | None, seed: int) -> np.ndarray:
    """Positions of ``count`` correctly classified test images in a seeded order; all of them where null."""
    right = clean.right(seed)
    if not len(right) or (count is not None and not 1 <= count <= len(right)):
        raise UserError(
            f"experiment.test_images={count}: {len(right)} test images are classified correctly; give 1 to "
            f"{len(right)}, or null."
        )
    return right[:count]
