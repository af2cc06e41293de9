"""I_pert,loss down to the pixels of training images, through a frozen backbone (section 5.2).

The model is linear in the features φ(x) of the backbone, so ∇_φ (s · ∇_θ L) is known in closed form
(``LinearObjective.mixed``), and ∇_x follows by one vector-Jacobian product with it: no second derivative of
the network is ever taken, and a batch of images takes one backward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from experiments.models.backbones import Backbone
from influence.objectives.linear import LinearObjective
from influence.scores import pert_loss

HALF_STEP = 0.5 - 2.0**-10  # of 8 bits; short of a half, which would round to the even neighbour


def pixel_influence(
    backbone: Backbone, objective: LinearObjective, theta: Tensor, s_test: Tensor, images: Tensor, idx: Tensor
) -> Tensor:
    """I_pert,loss(x_i, z_test) for the training images ``idx``: (b, 3, size, size), nats per 8-bit step, × n.

    objective: the top layer on features, in which row i is the feature vector of ``images[k]``, i = idx[k].
    s_test: (p,). A small change δ of an image moves the test loss by I_pert,loss · δ / n.
    """
    cotangent = pert_loss(objective, theta, s_test, idx)
    return backbone.vjp(images, cotangent)


def rank(
    backbone: Backbone,
    objective: LinearObjective,
    theta: Tensor,
    s_test: Tensor,
    pixels: np.ndarray,
    *,
    screened: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Training images by ‖I_pert,loss‖₁, largest first: positions (m,) and norms (m,).

    screened: only the so many images whose feature-space cotangent is longest go through the network; null:
    all n, the exact ranking. pixels: uint8 (n, height, width, 3). progress: told how many more are done.
    """
    idx = torch.arange(objective.n, device=objective.device)
    if screened is not None:
        lengths = pert_loss(objective, theta, s_test, idx).norm(dim=1)
        idx = lengths.argsort(descending=True, stable=True)[:screened]
    norms = torch.empty(len(idx), dtype=objective.dtype)
    for start in range(0, len(idx), backbone.batch):
        rows = idx[start : start + backbone.batch]
        images = backbone.images(pixels[rows.cpu().numpy()])
        gradient = pixel_influence(backbone, objective, theta, s_test, images, rows)
        norms[start : start + len(rows)] = gradient.abs().double().flatten(1).sum(1)
        if progress:
            progress(len(rows))
    order = norms.argsort(descending=True, stable=True)
    return idx[order], norms[order]


def step(images: Tensor, originals: Tensor, gradient: Tensor, alpha: float) -> Tensor:
    """One projected sign step, ``Π(x + α sign(I_pert,loss))``, in 8-bit units.

    Π keeps x within half an 8-bit step of the original and in 0…255, so that rounding to 8 bits gives the
    original back, byte for byte.
    """
    moved = images + alpha * gradient.sign()
    moved = torch.minimum(torch.maximum(moved, originals - HALF_STEP), originals + HALF_STEP)
    return moved.clamp(0.0, 255.0)


def stored(images: Tensor) -> np.ndarray:
    """The images as they would be stored, uint8 (b, height, width, 3)."""
    return images.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
