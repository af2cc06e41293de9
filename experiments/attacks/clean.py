"""The clean model of an attack: features, the converged top layer, its factor, and the test images."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from experiments.attacks.steps import Targets
from experiments.data.dataset import Dataset, permutation
from experiments.models import backbones, build
from experiments.models.backbones import Backbone
from experiments.models.features import features
from experiments.suite.context import Context, Timing
from experiments.suite.parallel.memory import keep_freed
from influence.objectives.linear import LinearObjective
from influence.retraining.perturbed import Refits
from influence.retraining.relabelled import LogisticRefits
from influence.training import Certificate, fit


@dataclass
class Clean:
    """Everything that no attack changes.

    test_features, test_y: of the whole test split; margins: ``y·o`` of it. distance: between the means of the
    two classes' training features; pair_distance: the median between two images of different classes.
    work: floating-point operations of one image, forward and backward.
    """

    data: Dataset
    backbone: Backbone
    refits: Refits
    certificate: Certificate
    test_features: Tensor
    test_y: Tensor
    margins: np.ndarray
    distance: float
    pair_distance: float
    work: tuple[float, float]

    @property
    def objective(self) -> LinearObjective:
        """The clean top layer's."""
        return self.refits.objective

    @property
    def n(self) -> int:
        """Training images."""
        return self.objective.n

    def targets(self, positions: np.ndarray) -> Targets:
        """One test image an attack: those at ``positions (k,)``."""
        index = torch.as_tensor(positions, device=self.test_y.device)
        return Targets(self.test_features[index][:, None], self.test_y[index][:, None])

    def right(self, seed: int) -> np.ndarray:
        """Positions of the correctly classified test images, in a seeded order."""
        order = permutation(len(self.margins), seed)
        return order[self.margins[order] > 0]

    def loss_without(self, row: int, targets: Targets) -> float:
        """The targets' mean loss of the model fitted without the training image ``row``, in nats.

        The others still count 1/n each, as they do where the image's own loss and gradient have become
        nothing: an attack that ends here has not turned its image against the targets, only taken its
        influence away.
        """
        objective, refits = self.objective, self.refits
        weights = torch.ones(objective.n, dtype=objective.dtype, device=objective.device)
        weights[row] = 0.0
        theta = fit(objective.with_weights(weights), refits.theta, tolerance=refits.tolerance).theta
        return float(refits.loss.of_margin(targets.features[0] @ theta * targets.y[0]).mean())


def clean_model(cfg: DictConfig, context: Context) -> Clean:
    """Features of all images, the fit of the top layer, and its factor; all noted in the run."""
    settings = cfg.experiment
    build.only_logistic(cfg.model, "the attacked top layer")
    data = context.data()
    if cfg.device == "cpu":
        keep_freed()
    backbone = backbones.load(**cfg.backbone, device=cfg.device)
    work = backbone_work(backbone)
    X, X_test = both_features(cfg, context, data, backbone, work[0])
    y, y_test = (build.targets_of(split.y, True).to(cfg.device) for split in (data.train, data.test))
    objective = LinearObjective(torch.as_tensor(X, device=cfg.device), y, cfg.model.loss, cfg.model.l2)
    with context.timer("clean fit and factor"):
        logistic = LogisticRefits(X, cfg.model.l2)
        found, certificate = logistic.fit(y.cpu().numpy(), tolerance=settings.training_tolerance)
        theta = torch.as_tensor(found, device=cfg.device)
        refits = Refits(objective, theta, settings.tolerance)
    test_features = torch.as_tensor(X_test, device=cfg.device)
    notes(context, backbone, data)
    zeros, ones = (torch.as_tensor(X[data.train.y == label]) for label in (0, 1))
    means = [X[data.train.y == label].mean(0) for label in (0, 1)]
    return Clean(
        data,
        backbone,
        refits,
        certificate,
        test_features,
        y_test,
        (y_test * (test_features @ theta)).cpu().numpy(),
        float(np.linalg.norm(means[0] - means[1])),
        float(torch.cdist(zeros, ones).median()),
        work,
    )


def both_features(
    cfg: DictConfig, context: Context, data: Dataset, backbone: Backbone, work: float
) -> tuple[np.ndarray, np.ndarray]:
    """Features of the training and the test images; their time stays known when a resumed run reads them."""
    journal, began, computed = context.journal("features"), time.perf_counter(), 0
    n, n_test = len(data.train), len(data.test)
    found = []
    with context.progress(n + n_test, "features") as advance:
        for split, before in ((data.train, 0), (data.test, n)):

            def count(done: int, before: int = before) -> None:
                nonlocal computed
                computed = before + done
                advance(computed)

            found.append(features(backbone, split.X, cache=cfg.data.data_dir, progress=count))
    seconds = np.asarray(time.perf_counter() - began)
    if computed == n + n_test:
        journal.put("all", {"seconds": seconds})
    measured = journal.get("all")
    if measured is None:
        context.timings.append(Timing("features, read from the cache", None, float(seconds)))
    else:
        label = f"features of {n + n_test} images"
        seconds = measured["seconds"].item()
        context.timings.append(Timing(label, work * (n + n_test), seconds, dtype=backbone.precision))
    return found[0], found[1]


def notes(context: Context, backbone: Backbone, data: Dataset) -> None:
    """What differs from the paper's setting."""
    if backbone.name == "inception_v3_7a":
        context.note(
            f"The network is {backbone.label} ({backbone.n_features:,} features, {backbone.origin}): the "
            "paper's network less its last two blocks."
        )
    elif backbone.name != "inception_v3":
        context.note(
            f"The network is {backbone.label} at {backbone.size} x {backbone.size} pixels "
            f"({backbone.origin}), not Inception v3 at 299 x 299."
        )
    if data.name in ("dogfish", "one_dog"):
        context.note(
            "The classes are English springer and tench, not the paper's broad dog and fish synsets."
        )
    height, width = data.train.X.shape[1:3]
    if (height, width) != (backbone.size, backbone.size):
        context.note(
            f"The images are {height} x {width} pixels resized to {backbone.size} x {backbone.size} and "
            "rounded to 8 bits: that is the stored image which an attack leaves unchanged."
        )


def backbone_work(backbone: Backbone) -> tuple[float, float]:
    """Floating-point operations for one image: forward, and forward with the gradient in its pixels."""
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.zeros(1, 3, backbone.size, backbone.size, dtype=backbone.dtype, device=backbone.device)
    found: list[float] = []
    for backward in (False, True):
        with FlopCounterMode(display=False) as counter:
            if backward:
                backbone.vjp(x, torch.ones(1, backbone.n_features))
            else:
                with torch.no_grad():
                    backbone(x)
        found.append(float(counter.get_total_flops()))
    return found[0], found[1]


def described(clean: Clean) -> dict[str, Any]:
    """The clean model as a record's metrics have it."""
    right = clean.margins > 0
    return {
        "backbone": clean.backbone.label,
        "backbone_size": clean.backbone.size,
        "n_features": clean.backbone.n_features,
        "n_train": clean.n,
        "n_test": len(right),
        "classes": list(clean.data.classes),
        "test_accuracy": float(right.mean()),
        "test_correct": int(right.sum()),
        "class_distance": clean.distance,
        "class_distance_of_pairs": clean.pair_distance,
        "theta_norm": float(clean.refits.theta.norm()),
    }
