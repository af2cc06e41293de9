"""How far features must move to matter: one training image's features moved freely, and where a change lies.

The pixels of an attack move the features as far as half an 8-bit step lets them. Moving the features
themselves within a ball shows how far they would have to go, whatever the network.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.attacks.clean import Clean
from experiments.attacks.steps import Targets, test_gradients
from influence.retraining.perturbed import Changed, Refits

STEPS = 40  # of a tenth of the radius each: four radii of path


def moved_freely(
    refits: Refits, row: int, targets: Targets, radii: list[float], steps: int = STEPS
) -> dict[str, dict[str, float]]:
    """Flips and mean loss of one attack's targets, with the features of training image ``row`` moved at most
    ``radius``: ``{radius_R: {radius, flipped, loss}}``, the step of largest loss.

    Projected ascent along I_pert,loss in feature space, the radii side by side, with an exact refit each.
    """
    k, refits = len(radii), refits.fresh()
    size = torch.as_tensor(radii, dtype=refits.theta.dtype, device=refits.theta.device)[:, None, None]
    rows = torch.full((k, 1), row, device=refits.theta.device)
    origin = refits.X[rows]
    features = origin.clone()
    every = Targets(targets.features.expand(k, -1, -1), targets.y.expand(k, -1))
    thetas = refits.theta[:, None].repeat(1, k)
    s = torch.zeros_like(thetas)
    best = torch.full((k,), -torch.inf, dtype=thetas.dtype, device=thetas.device)
    flipped = torch.zeros(k, dtype=torch.long, device=thetas.device)
    for _ in range(steps + 1):
        changed = Changed(rows, features)
        correction = refits.correction(thetas, changed)
        thetas = refits.refit(thetas, changed, correction)
        margins = torch.einsum("ktd,dk->kt", every.features, thetas) * every.y
        losses = refits.loss.of_margin(margins).mean(1)
        flipped = torch.where(losses > best, (margins < 0).sum(1), flipped)
        best = torch.maximum(losses, best)
        s = refits.s_tests(thetas, changed, test_gradients(refits, thetas, every), s, correction)
        ascent = refits.cotangents(thetas, s, changed)
        ascent = ascent / ascent.norm(dim=2, keepdim=True).clamp(min=torch.finfo(ascent.dtype).tiny)
        features = within(features + size / 10 * ascent, origin, size)
    return {
        f"radius_{radius:g}".replace(".", "_"): {
            "radius": float(radius),
            "flipped": int(flipped[j]),
            "loss": float(best[j]),
        }
        for j, radius in enumerate(radii)
    }


def within(features: Tensor, origin: Tensor, radius: Tensor) -> Tensor:
    """``features (k, 1, d)`` drawn back into the balls around ``origin``."""
    moved = features - origin
    length = moved.norm(dim=2, keepdim=True)
    return origin + moved * (radius / length.clamp(min=torch.finfo(length.dtype).tiny)).clamp(max=1.0)


def principal(clean: Clean, row: int, features: Tensor, share: float = 0.9) -> dict[str, Any]:
    """The change of one image's features inside and outside the span of the leading principal components.

    The components of all training features that together hold ``share`` of their variance span the inside.
    ``typical_*``: root mean square distance of a training image from the mean, in the same part.
    """
    X = clean.objective.X.dense().cpu().numpy()
    centred = X - X.mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(X))
    values, vectors = values[::-1].clip(min=0), vectors[:, ::-1]
    held = np.cumsum(values) / values.sum()
    count = int(np.searchsorted(held, share)) + 1
    change = features.double().cpu().numpy() - X[row]
    inside = float(np.linalg.norm(vectors[:, :count].T @ change))
    whole = float(np.linalg.norm(change))
    return {
        "components": count,
        "variance_share": float(held[count - 1]),
        "change_inside": inside,
        "change_outside": float(np.sqrt(max(0.0, whole**2 - inside**2))),
        "typical_inside": float(np.sqrt(values[:count].sum())),
        "typical_outside": float(np.sqrt(values[count:].sum())),
    }
