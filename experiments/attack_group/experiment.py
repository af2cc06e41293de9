"""Fig. 5, many test images at once: one changed training image against 30 test images of one class.

The attack is that of ``attack_single``, with three differences. The gradient is that of the mean test loss of
all 30 images, the steps are shorter, and there are 2,000 of them. The paper used 30 photographs of one dog,
which were not released. ``data=one_dog`` has thirty others. ``data=dogfish`` gives correctly classified test
images of one class. The record also says how far the features must move: the attacked image's features are
moved freely, without the network.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from experiments.attacks import outcome, pictures
from experiments.attacks.attempt import Setting, verified
from experiments.attacks.clean import Clean, clean_model, described
from experiments.attacks.pixels import rank
from experiments.attacks.reach import moved_freely, principal
from experiments.attacks.side_by_side import compared
from experiments.attacks.steps import FIT, SignSteps, Targets, test_gradients
from experiments.records.errors import ConfigError, UserError
from experiments.records.record import Record
from experiments.suite.context import Context, Timing
from experiments.suite.parallel.threads import Count

GROWS = "experiment.iterations"  # a run with more of them goes on in the same folder (experiments.suite.job)
OF_THE_IMAGE = ("pixel_linf", "pixel_l2", "subspace", "verified")
STATE = ("images", "thetas", "previous", "s_tests")  # what the next step depends on


def run(cfg: DictConfig, context: Context) -> Record:
    """Clean fit, the image to attack, 2,000 steps, verification."""
    settings = cfg.experiment
    for name in ("alpha", "iterations", "checkpoint", "refactor"):
        if settings[name] <= 0:
            raise ConfigError(f"experiment.{name}={settings[name]}: give more than 0.")
    clean = clean_model(cfg, context)
    certainty = certainties(clean)
    chosen = group(clean, settings, certainty, cfg.seed)
    targets = Targets(clean.test_features[chosen][None], clean.test_y[chosen][None])
    with (
        context.timer("ranking"),
        context.progress(settings.screened or clean.n, "ranking, gradients") as advance,
    ):
        thetas = clean.refits.theta[:, None]
        s = (clean.refits.inverse @ test_gradients(clean.refits, thetas, targets))[:, 0]
        order, norms = rank(
            clean.backbone,
            clean.objective,
            clean.refits.theta,
            s,
            clean.data.train.X,
            screened=settings.screened,
            progress=Count(advance),
        )
    row = attacked_row(settings, certainty, order)
    setting = Setting(
        clean.backbone, clean.refits, settings.alpha, settings.iterations, settings.training_tolerance
    )
    rows, pixels = np.array([row]), clean.data.train.X[[row]]
    index = torch.as_tensor(rows[None], device=cfg.device)
    steps = SignSteps(
        clean.backbone,
        clean.refits,
        setting.originals(pixels[None]),
        index,
        targets,
        settings.alpha,
        settings.refactor,
    )
    with context.timer("features moved freely"):
        free = moved_freely(clean.refits, row, targets, list(settings.radii))
    former = compared(cfg, context, clean, row, targets, settings.compared) if settings.compared else None
    taken = context.first(settings.iterations, "iterations repeated")
    curve, certificate = walk(context, clean, steps, settings, taken)
    delta = (steps.images - steps.originals)[0].cpu().numpy()
    record = context.earlier()
    if record is not None:  # a spot check goes on with what was recorded
        curve, kept = continued(curve, record), pictures.recorded_changes(record, clean.backbone.size)
        delta = delta if kept is None else kept.transpose(0, 3, 1, 2)
    with context.timer("verification from the saved image"):
        check = verified(setting, rows, pixels, delta, targets)
    with torch.inference_mode():
        x = steps.originals[0] + torch.as_tensor(delta, device=cfg.device)
        x = x.contiguous(memory_format=torch.channels_last)
        last_features = clean.backbone(x)[0].to(clean.objective.dtype).clone()
    if clean.data.name == "one_dog":
        context.note(
            f"The {len(chosen)} photographs of one dog are not the authors', which were not released."
        )
    else:
        context.note(
            f"The {len(chosen)} test images are different images of one class, not photographs of one animal."
        )
    names, y = clean.data.classes, clean.data.train.y
    found = [(0, row, delta[0].transpose(1, 2, 0))]
    images, _ = pictures.arrays(clean, chosen, found)
    place = np.flatnonzero(order.cpu().numpy() == row)
    metrics: dict[str, Any] = {
        **described(clean),
        "attacked": len(chosen),
        "test_class": names[int(clean.data.test.y[chosen[0]])],
        "flipped": int((curve["margin_after"] < 0).sum()),
        "flipped_at_most": int(curve["flipped"].max()),
        "loss_before": float(curve["losses"][0]),
        "loss_after": float(curve["losses"][-1]),
        "loss_without": clean.loss_without(row, targets),
        "row": row,
        "original_index": int(clean.data.train.index[row]),
        "row_class": names[int(y[row])],
        "certainty": float(certainty[row]),
        "certainty_rank": int((certainty < certainty[row]).sum()) + 1,
        "least_certain": float(certainty.min()),
        "rank": int(place[0]) + 1 if len(place) else None,  # by the pixel norm of I_pert,loss
        "best_ranked": [int(i) for i in order[:10]],
        "at": waypoints(curve),
        "iterations": settings.iterations,
        "pixel_linf": float(np.abs(delta).max()),
        "pixel_l2": float(np.linalg.norm(delta.astype(np.float64))),
        "feature_movement": float(curve["movement"][-1]),
        "movement_over_class_distance": float(curve["movement"][-1] / clean.distance),
        "largest_movement": float(curve["movement"].max()),
        "features_moved_freely": free,
        "side_by_side": former,
        "subspace": principal(clean, row, last_features),
        "verified": {
            "flipped": int((check["margin"] < 0).sum()),
            "byte_identical": bool(check["identical"]),
            "gradient_norm": float(check["gradient_norm"]),
        },
    }
    if record is not None and kept is None:  # its image is not there to be looked at again
        metrics |= {name: record.metrics[name] for name in OF_THE_IMAGE if name in record.metrics}
        images = pictures.as_recorded(record)
    what = f"{len(chosen)} test images of the class {metrics['test_class']}"
    if clean.data.name == "one_dog":
        what = f"{len(chosen)} photographs of one {metrics['test_class']}"
    return Record(
        experiment="attack_group",
        metrics=metrics,
        arrays={
            "index": chosen,
            **curve,
            "ranked": order.cpu().numpy(),
            "norms": norms.cpu().numpy(),
            **images,
        },
        table=["index", "margin_before", "margin_after"],
        captions={
            "attack_group": f"One training image, changed by less than half an 8-bit step, against "
            f"{what} ({clean.backbone.label}, at {clean.backbone.size} pixels, {clean.data.name}, "
            f"n = {clean.n})."
        },
        certificates=[{"fit": "clean", **clean.certificate.to_dict()}, certificate],
    )


def attacked_row(settings: DictConfig, certainty: np.ndarray, order: torch.Tensor) -> int:
    """The training image to attack: ``row``, else the least certain one or the best ranked one."""
    if settings.attacked not in ("least_certain", "best_ranked"):
        raise ConfigError(
            f"experiment.attacked={settings.attacked!r} is unknown; choose least_certain or best_ranked."
        )
    if settings.row is None:
        return int(certainty.argmin() if settings.attacked == "least_certain" else order[0])
    if not 0 <= settings.row < len(certainty):
        raise UserError(
            f"experiment.row={settings.row} is out of range: the training images are 0..{len(certainty) - 1}."
        )
    return int(settings.row)


def waypoints(curve: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Flips, mean loss and feature movement after 0, 250, 500, 1,000, 2,000 iterations and at the end."""
    last = len(curve["losses"]) - 1
    return {
        str(i): {
            "flipped": int(curve["flipped"][i]),
            "loss": float(curve["losses"][i]),
            "movement": float(curve["movement"][i]),
        }
        for i in sorted({0, 250, 500, 1000, 2000, last})
        if i <= last
    }


def certainties(clean: Clean) -> np.ndarray:
    """p of the right class of every training image under the clean model: ``(n,)``."""
    outputs = clean.objective.outputs(clean.refits.theta)[:, 0]
    return torch.sigmoid(outputs * clean.objective.targets).cpu().numpy()


def group(clean: Clean, settings: DictConfig, certainty: np.ndarray, seed: int) -> np.ndarray:
    """Correctly classified test images of one class, in a seeded order.

    Without ``target_class``, of the only class of the test split, or of that of the least certain training
    image.

    Raises:
        UserError: fewer test images of the class are classified correctly than asked for.
    """
    label, classes = settings.target_class, np.unique(clean.data.test.y)
    if label is None and len(classes) == 1:
        label = int(classes[0])
    elif label is None:
        label = int(clean.data.train.y[int(certainty.argmin())])
    right = clean.right(seed)
    right = right[clean.data.test.y[right] == label]
    if not 1 <= settings.test_images <= len(right):
        raise UserError(
            f"experiment.test_images={settings.test_images}: {len(right)} test images of class {label} are "
            f"classified correctly; give 1 to {len(right)}."
        )
    return right[: settings.test_images]


def walk(
    context: Context, clean: Clean, steps: SignSteps, settings: DictConfig, iterations: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """``iterations`` steps: the curve and the refits' certificate.

    The curve has ``losses``, ``flipped`` (how many) and ``movement`` ``(iterations + 1,)``, before the first
    and after every step, and ``margin_before`` and ``margin_after`` ``(t,)``.

    Every ``checkpoint`` iterations the state goes to the journal, and a killed run takes it up from there.
    """
    journal = context.journal("steps")
    clean_features = clean.objective.X.dense(steps.rows[0])
    parts: list[dict[str, np.ndarray]] = []
    always = torch.ones(1, dtype=torch.bool, device=steps.rows.device)
    with context.progress(iterations, "steps") as advance:
        for start in range(0, iterations + 1, settings.checkpoint):
            stop = min(start + settings.checkpoint, iterations + 1)
            part = journal.get(f"{start}-{stop}")  # the last part of a shorter run took one step less
            if part is None:
                began = time.perf_counter()
                steps.begin()
                seen: dict[str, list[np.ndarray]] = {"margins": [], "losses": [], "movement": []}
                for iteration in range(start, stop):
                    margins = steps.look()
                    seen["margins"].append(margins[0].cpu().numpy())
                    seen["losses"].append(steps.losses(margins).cpu().numpy())
                    seen["movement"].append((steps.features[0] - clean_features).norm(dim=1).cpu().numpy())
                    if iteration < iterations:
                        steps.advance(always)
                part = {name: np.stack(values) for name, values in seen.items()}
                part |= {name: getattr(steps, name).cpu().numpy() for name in STATE}
                part["worst"] = steps.refits.worst.saved()
                part["seconds"] = np.asarray(time.perf_counter() - began)
                journal.put(f"{start}-{stop}", part)
            else:
                for name in STATE:
                    setattr(steps, name, torch.as_tensor(part[name], device=always.device))
            parts.append(part)
            advance(stop - 1)
    worst = outcome.worst_of(parts)
    looks = iterations + 1
    context.timings.append(
        Timing(
            f"{looks} image iterations",
            clean.work[1] * looks + clean.refits.flops(worst.products),
            sum(part["seconds"].sum() for part in parts),
            dtype=clean.backbone.precision,
        )
    )
    every, losses, movement = (
        np.concatenate([part[name] for part in parts]) for name in ("margins", "losses", "movement")
    )
    curve = {
        "margin_before": every[0],
        "margin_after": every[-1],
        "losses": losses[:, 0],
        "flipped": (every < 0).sum(1),
        "movement": movement[:, 0],
    }
    return curve, worst.certificate(FIT)


def continued(curve: dict[str, np.ndarray], record: Record) -> dict[str, np.ndarray]:
    """The curve of a few iterations, and from there on the recorded one."""
    found = {"margin_before": curve["margin_before"], "margin_after": record.arrays["margin_after"]}
    for name in ("losses", "flipped", "movement"):
        own = curve[name]
        found[name] = np.concatenate([own, record.arrays[name][len(own) :]])
    return found
