"""One attempt of Fig. 5: perturb m training images until the test image flips, or give up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from experiments.attacks.pixels import stored
from experiments.attacks.steps import SignSteps, Targets
from experiments.models.backbones import Backbone
from experiments.records.errors import UserError
from experiments.records.journal import Journal
from influence.retraining.perturbed import Refits
from influence.retraining.relabelled import LogisticRefits


@dataclass(frozen=True)
class Setting:
    """What all attempts of a run share."""

    backbone: Backbone
    refits: Refits
    alpha: float
    iterations: int
    tolerance: float  # gradient norm of the fit that verifies a flip

    def originals(self, pixels: np.ndarray) -> Tensor:
        """uint8 ``(..., height, width, 3)`` as the network sees it: ``(..., 3, size, size)``."""
        images = self.backbone.images(pixels.reshape(-1, *pixels.shape[-3:]))
        return images.reshape(*pixels.shape[:-3], *images.shape[1:]).contiguous()


@dataclass(frozen=True)
class Unit:
    """k attacks side by side: m training images each, ``rows (k, m)`` with their ``pixels``, and the targets.

    key: in the journal. places: ``(k,)`` of the test images among those attacked.
    """

    key: str
    places: np.ndarray
    rows: np.ndarray
    pixels: np.ndarray
    targets: Targets
    stop: bool = True


@dataclass(frozen=True)
class Attempts:
    """The work on one unit; ``setting`` is shared."""

    setting: Setting

    def __call__(self, unit: Unit, count: Callable[[int], None]) -> dict[str, np.ndarray]:
        return attempt(self.setting, unit.rows, unit.pixels, unit.targets, unit.stop, count)


@dataclass(frozen=True)
class Verifications:
    """The work of checking a unit's flips, from the images that the journal has of it on disk.

    Returns ``margin``, ``gradient_norm`` and ``identical`` of every flip, ``(f,)`` each.
    """

    setting: Setting
    journal: Journal

    def __call__(self, unit: Unit, count: Callable[[int], None]) -> dict[str, np.ndarray]:
        saved = self.journal.get(unit.key)
        if saved is None:
            raise UserError(f"the journal entry {unit.key!r} could not be read back: check the disk.")
        checks = [
            verified(self.setting, unit.rows[j], unit.pixels[j], delta, unit.targets.one(int(j)))
            for j, delta in zip(np.flatnonzero(saved["flipped"]), saved["delta"], strict=True)
        ]
        count(len(unit.places))
        names = ("margin", "gradient_norm", "identical")
        return {name: np.array([check[name] for check in checks]).reshape(-1) for name in names}


def attempt(
    setting: Setting,
    rows: np.ndarray,
    pixels: np.ndarray,
    targets: Targets,
    stop: bool = True,
    count: Callable[[int], None] = lambda over: None,
) -> dict[str, np.ndarray]:
    """Attacks k test images side by side, each through its own m training images ``rows (k, m)``.

    pixels: uint8 ``(k, m, height, width, 3)``, those images.
    stop: leave an attack at the first refit that flips it; else all iterations are done.
    count: told how many attacks have just come to their end.

    Returns arrays over the attacks: ``flipped``, ``iterations``, ``margin`` and ``loss`` of the test image
    under the last refit, ``movement (k, m)`` of the features, ``linf (k, m)`` and ``l2 (k, m)`` of the pixels
    in 8-bit units, and ``delta (f, m, 3, size, size)`` of the flipped ones: added to the original it gives
    the poisoned float image exactly.
    """
    began = time.perf_counter()
    refits = setting.refits.fresh()
    k, m = rows.shape
    device = setting.refits.theta.device
    index = torch.as_tensor(rows, device=device)
    originals = setting.originals(pixels)
    steps = SignSteps(setting.backbone, refits, originals, index, targets, setting.alpha)
    clean = setting.refits.objective.X.dense(index.ravel()).reshape(k, m, -1)
    out: dict[str, np.ndarray] = {
        "flipped": np.zeros(k, dtype=bool),
        "iterations": np.zeros(k, dtype=np.int64),
        **{name: np.zeros(k) for name in ("margin", "loss")},
        **{name: np.zeros((k, m)) for name in ("movement", "linf", "l2")},
    }
    deltas: dict[int, np.ndarray] = {}
    live = np.arange(k)
    for iteration in range(setting.iterations + 1):
        margins = steps.look()
        flipped = (margins < 0).all(1).cpu().numpy()
        last = iteration == setting.iterations
        over = np.full(len(live), last) | (flipped if stop else False)
        if over.any():
            delta = (steps.images - steps.originals).flatten(2).double()
            found = {
                "flipped": flipped,
                "iterations": np.full(len(live), iteration),
                "margin": margins.mean(1).cpu().numpy(),
                "loss": steps.losses(margins).cpu().numpy(),
                "movement": (steps.features - clean[live]).norm(dim=2).cpu().numpy(),
                "linf": delta.abs().amax(2).cpu().numpy(),
                "l2": delta.norm(dim=2).cpu().numpy(),
            }
            for name, values in found.items():
                out[name][live[over]] = values[over]
            for place in np.flatnonzero(over & flipped):
                deltas[int(live[place])] = (steps.images[place] - steps.originals[place]).cpu().numpy()
            count(int(over.sum()))
        if over.all():
            break
        steps.advance(torch.as_tensor(~over, device=device))
        live = live[~over]
    out["delta"] = np.stack([deltas[i] for i in sorted(deltas)]) if deltas else np.zeros((0, m))
    out["worst"] = refits.worst.saved()
    out["seconds"] = np.asarray(time.perf_counter() - began)
    return out


def verified(
    setting: Setting, rows: np.ndarray, pixels: np.ndarray, delta: np.ndarray, target: Targets
) -> dict[str, np.ndarray]:
    """One attack, from its saved images alone: ``rows (m,)``, their ``pixels``, ``delta``, its t targets.

    The images are put through the network one at a time and the top layer is fitted from zero by
    ``influence.retraining.relabelled``;
    nothing of the attack's own refit enters. Returns ``margin (t,)``, the fit's
    ``gradient_norm``, and whether rounding gives the stored images back: ``identical``.
    """
    objective, backbone = setting.refits.objective, setting.backbone
    originals = setting.originals(pixels)
    images = originals + torch.as_tensor(delta, device=originals.device)
    X = objective.X.dense().clone()
    with torch.inference_mode():
        for row, image in zip(rows, images, strict=True):
            x = image[None].contiguous(memory_format=torch.channels_last)
            X[int(row)] = backbone(x)[0].to(X)
    y = objective.targets.cpu().numpy()
    theta, certificate = LogisticRefits(X.cpu().numpy(), objective.l2).fit(y, tolerance=setting.tolerance)
    margin = target.features[0].cpu().numpy() @ theta * target.y[0].cpu().numpy()
    return {
        "margin": margin,
        "gradient_norm": np.asarray(certificate.gradient_norm),
        "identical": np.asarray(bool((stored(images) == stored(originals)).all())),
    }
