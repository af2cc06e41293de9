"""Projected sign steps on the pixels of training images, several attacks side by side (section 5.2).

One iteration is a forward pass whose graph is kept, one low-rank update of the factored Hessian, the exact
refit of every changed top layer, ``s_test`` at the new parameters, the closed-form cotangent in feature space
and one backward pass. Features of images that no attack changes are never computed again:

    x ← Π(x + α sign(I_pert,loss(x, z_test)))
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.attacks.pixels import step
from experiments.models.backbones import Backbone
from influence.retraining.perturbed import Changed, Refits, Worst


@dataclass(frozen=True)
class Targets:
    """What each attack raises the mean loss of: test ``features (k, t, d)`` and labels ``y (k, t)``, ±1."""

    features: Tensor
    y: Tensor

    def of(self, models: Tensor) -> Targets:
        """Those of the attacks ``models`` (a mask)."""
        return Targets(self.features[models], self.y[models])

    def one(self, model: int) -> Targets:
        """Those of one attack."""
        return Targets(self.features[model : model + 1], self.y[model : model + 1])


class SignSteps:
    """k attacks side by side, on m training images each.

    Args:
        backbone: frozen; images go through it ``backbone.batch`` at a time.
        refits: the clean top layer.
        originals: ``(k, m, 3, size, size)`` whole numbers, in 8-bit units.
        rows: ``(k, m)`` positions of these images in the training set.
        targets: of each attack.
        alpha: length of a step, in 8-bit units.
        refactor: looks between two new factors of the top layer's Hessian, for one attack alone; null: that
            of the clean model serves all the way.

    Attributes:
        images: as ``originals``, after the steps so far.
        features: ``(k, m, d)`` of ``images`` at the last ``look``.
        thetas, previous: ``(p, k)`` the top layers trained on them, and on the images one step before.
    """

    def __init__(
        self,
        backbone: Backbone,
        refits: Refits,
        originals: Tensor,
        rows: Tensor,
        targets: Targets,
        alpha: float,
        refactor: int | None = None,
    ) -> None:
        self.backbone, self.refits, self.alpha = backbone, refits, alpha
        self.refactor, self.since_factor = refactor, 0
        self.originals, self.images, self.rows, self.targets = originals, originals.clone(), rows, targets
        self.thetas = refits.theta[:, None].repeat(1, len(rows))
        self.previous = self.thetas
        self.s_tests = torch.zeros_like(self.thetas)
        self.features = torch.empty(0)
        self._graphs: list[tuple[Tensor, Tensor]] = []

    def begin(self) -> None:
        """Begins a part that can be resumed: counts of its own, and the next look takes a new factor."""
        self.refits.worst = Worst()
        self.since_factor = self.refactor or 0

    def look(self) -> Tensor:
        """Refits to the images as they are; margins ``y·o (k, t)`` of the targets, below 0 where flipped."""
        self._graphs = []
        for chunk in self.images.flatten(0, 1).split(self.backbone.batch):
            x = chunk.contiguous(memory_format=torch.channels_last).requires_grad_(True)
            with torch.enable_grad():
                self._graphs.append((x, self.backbone(x)))
        found = torch.cat([features.detach() for _, features in self._graphs])
        self.features = found.to(self.thetas.dtype).reshape(*self.rows.shape, -1)
        start = 2 * self.thetas - self.previous  # steps are short and alike, so the next refit is about there
        self.previous, changed = self.thetas, Changed(self.rows, self.features)
        if self.refactor is not None and self.since_factor >= self.refactor:
            self.refits, self.since_factor = self.refits.rebased(start[:, 0], changed), 0
        self.since_factor += 1
        self.correction = self.refits.correction(start, changed)
        self.thetas = self.refits.refit(start, changed, self.correction)
        return torch.einsum("ktd,dk->kt", self.targets.features, self.thetas) * self.targets.y

    def losses(self, margins: Tensor) -> Tensor:
        """The mean loss of each attack's targets: ``(k, t) -> (k,)``, in nats."""
        return self.refits.loss.of_margin(margins).mean(1)

    def advance(self, models: Tensor) -> None:
        """One step of the attacks ``models`` (a mask) by the last ``look``; the others leave."""
        pixels = self.influence(models)
        self.originals, images = self.originals[models], self.images[models]
        self.images = step(images, self.originals, pixels, self.alpha)
        self.rows, self.targets = self.rows[models], self.targets.of(models)
        self.thetas, self.previous = self.thetas[:, models], self.previous[:, models]
        self._graphs = []

    def influence(self, models: Tensor) -> Tensor:
        """I_pert,loss of the images of the attacks ``models`` (k' of them) as they were at the last ``look``.

        ``(k', m, 3, size, size)``; the graphs of that look are used up. Keeps those attacks' ``s_tests``.
        """
        changed, thetas = Changed(self.rows, self.features).of(models), self.thetas[:, models]
        gradients = test_gradients(self.refits, thetas, self.targets.of(models))
        self.s_tests = self.refits.s_tests(
            thetas, changed, gradients, self.s_tests[:, models], self.correction.of(models)
        )
        cotangent = torch.zeros_like(self.features)
        cotangent[models] = self.refits.cotangents(thetas, self.s_tests, changed)
        return self._feature_gradients(cotangent, models)[models]

    def _feature_gradients(self, cotangent: Tensor, models: Tensor) -> Tensor:
        """∇_x of every image, from the graphs of the last ``look``; zero if an attack is over."""
        wanted = models.repeat_interleave(self.rows.shape[1]).split(self.backbone.batch)
        chunks = cotangent.flatten(0, 1).split(self.backbone.batch)
        gradients = []
        for (x, features), v, live in zip(self._graphs, chunks, wanted, strict=True):
            if bool(live.any()):
                gradients.append(torch.autograd.grad(features, x, v.to(features))[0])
            else:
                gradients.append(torch.zeros_like(x))
        return torch.cat(gradients).reshape(self.images.shape)


FIT = "top layer after every attack step"  # what the refits' certificate is about


def test_gradients(refits: Refits, thetas: Tensor, targets: Targets) -> Tensor:
    """∇θ of the mean loss of each attack's targets: ``(p, k)``."""
    margins = torch.einsum("ktd,dk->kt", targets.features, thetas) * targets.y
    slopes = targets.y * refits.loss.slope(margins) / margins.shape[1]
    return torch.einsum("kt,ktd->dk", slopes, targets.features)


test_gradients.__test__ = False  # type: ignore[attr-defined]  # the field's name for it; not a test
