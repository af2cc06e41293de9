"""What an attack iteration costs, as it was and as it is, on the same images in one run.

As it was: the top layer's solves by conjugate gradients that the clean inverse alone preconditions, on
MobileNetV2 at 448 pixels. As it is: a low-rank update an iteration. The network's passes are timed apart.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from experiments.attacks.clean import Clean, backbone_work
from experiments.attacks.pixels import step
from experiments.attacks.steps import Targets, test_gradients
from experiments.data.fetch import mirror_folder
from experiments.models import backbones
from experiments.models.backbones import MIRRORED
from experiments.suite.context import Context, Timing
from influence.retraining.perturbed import Changed, Correction, Refits

FORMER = ("mobilenet_v2", 448)  # the network and size of the attacks before November 2026


class TopLayer:
    """One attack's refit, ``s_test`` and feature-space cotangent, with or without the low-rank update."""

    def __init__(self, refits: Refits, row: Tensor, targets: Targets, updated: bool) -> None:
        self.refits, self.row, self.targets, self.updated = refits.fresh(), row, targets, updated
        self.theta = self.previous = refits.theta[:, None]
        self.s_test = torch.zeros_like(self.theta)
        self.seconds = 0.0

    def __call__(self, features: Tensor) -> Tensor:
        """The cotangent ``(1, 1, d)`` of the attacked image's ``features (1, 1, d)``."""
        began = time.process_time()
        changed, start = Changed(self.row, features), 2 * self.theta - self.previous
        if self.updated:
            correction = self.refits.correction(start, changed)
        else:  # of rank 0: the clean inverse alone
            none = features.new_zeros(1, 0, features.shape[2])
            correction = Correction(self.refits.inverse, none, features.new_zeros(1, 0, 0))
        self.previous, self.theta = self.theta, self.refits.refit(start, changed, correction)
        gradients = test_gradients(self.refits, self.theta, self.targets)
        self.s_test = self.refits.s_tests(self.theta, changed, gradients, self.s_test, correction)
        found = self.refits.cotangents(self.theta, self.s_test, changed)
        self.seconds += time.process_time() - began
        return found


def compared(
    cfg: DictConfig, context: Context, clean: Clean, row: int, targets: Targets, iterations: int
) -> dict[str, Any]:
    """``iterations`` of one attack with both top layers: how far their pixel gradients differ, and the work.

    gradient_difference: largest over the iterations, relative to the largest component. The seconds, of
    processor time, go to the run's timings.
    """
    backbone = clean.backbone
    rows = torch.tensor([[row]], device=clean.refits.theta.device)
    originals = backbone.images(clean.data.train.X[[row]])
    layers = [TopLayer(clean.refits, rows, targets, updated) for updated in (False, True)]
    images, difference, clock = originals.clone(), 0.0, Clock()
    for _ in range(iterations):
        x = images.detach().requires_grad_(True)
        with clock.running(), torch.enable_grad():
            graph = backbone(x)
        features = graph.detach().to(clean.refits.theta)[None]
        before, now = (layer(features)[0].to(graph) for layer in layers)
        with clock.running():
            gradient = torch.autograd.grad(graph, x, now, retain_graph=True)[0]
        former = torch.autograd.grad(graph, x, before)[0]
        difference = max(difference, float((gradient - former).abs().max() / former.abs().max()))
        images = step(images, originals, gradient, cfg.experiment.alpha)
    names = ("conjugate gradients from the clean inverse", "a low-rank update an iteration")
    for name, layer in zip(names, layers, strict=True):
        noted(context, f"{iterations} top layers: {name}", layer.seconds, None, backbone)
    noted(
        context,
        f"{iterations} passes of {backbone.label}",
        clock.seconds,
        clean.work[1] * iterations,
        backbone,
    )
    former_passes(cfg, context, iterations)
    counts = [layer.refits.worst.products / max(1, iterations) for layer in layers]
    return {
        "iterations": iterations,
        "gradient_difference": difference,
        "products_before": counts[0],
        "products_now": counts[1],
    }


def former_passes(cfg: DictConfig, context: Context, iterations: int) -> None:
    """Times the passes of the former network too, where a mirror has its weights."""
    folder = mirror_folder(cfg.backbone.mirror)
    name, size = FORMER
    if folder is None or not (folder / Path(MIRRORED[name].path)).is_file():
        return
    former = backbones.load(name, size=size, batch=1, mirror=str(folder), device=cfg.device)
    work, clock = backbone_work(former)[1], Clock()
    x = former.images(torch.zeros(1, size, size, 3, dtype=torch.uint8).numpy())
    for _ in range(iterations):
        with clock.running():
            former.vjp(x, x.new_ones(1, former.n_features))
    noted(
        context,
        f"{iterations} passes of {former.label} at {size} pixels",
        clock.seconds,
        work * iterations,
        former,
    )


def noted(
    context: Context, part: str, seconds: float, flops: float | None, backbone: backbones.Backbone
) -> None:
    """A timing of processor seconds."""
    timing = Timing(f"side by side, {part}", flops, seconds, dtype=backbone.precision)
    timing.processor = seconds
    context.timings.append(timing)


class Clock:
    """Processor seconds, summed over the blocks in which it runs."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts a block."""
        began = time.process_time()
        yield
        self.seconds += time.process_time() - began
