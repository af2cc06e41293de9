"""The parameters of a linear model that its data determine, apart from those that the penalty alone does.

The loss sees W only through the outputs ``W x_i``. Softmax sees only their differences. Along all other
directions the curvature is λ or zero. Where λ is below the rounding of the data's curvature, a Newton step is
noise along them. That noise spoils the outputs. The minimiser along them is known in closed form, so a solve
can leave them out. This holds for ``W (c, d)`` with one penalty mask for all outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_RANK = 8.0  # rounding units, times the larger side, below which a singular value counts as zero


@dataclass(frozen=True)
class Determined:
    """The space of the minimiser.

    Attributes:
        basis: orthonormal ``(p, r)``; the minimiser lies in its span.
        outputs: orthonormal ``(c, r_c)``: the outputs that the loss sees.
        blind: ``(d, q)``: input directions v with ``X v = 0``.
        penalised: ``(d,)`` the squared penalty mask of the inputs.
    """

    basis: Tensor
    outputs: Tensor
    blind: Tensor
    penalised: Tensor

    def nearest(self, theta: Tensor) -> Tensor:
        """θ ``(p,)`` of the least penalty among those with the loss of ``theta``, up to rounding."""
        W = theta.reshape(len(self.outputs), -1)
        W = self.outputs @ (self.outputs.T @ W)
        if self.blind.shape[1]:
            weighed = self.penalised[:, None] * self.blind
            W = W - (W @ weighed) @ torch.linalg.pinv(self.blind.T @ weighed, hermitian=True) @ self.blind.T
        return W.reshape(-1)


def determined(X: Tensor, mask: Tensor, outputs: Tensor) -> Determined | None:
    """What data ``X (n, d)`` determine, or None where they determine everything.

    Args:
        X: the inputs of the examples that count, at least one; the column of ones included.
        mask: ``(d,)`` which inputs λ touches.
        outputs: orthonormal ``(c, r_c)`` range of the outputs that the loss sees.
    """
    scale = X.abs().amax(0)  # no squares: they would leave the range of the type
    scale = torch.where(scale > 0, scale, torch.ones_like(scale)).reciprocal()
    scaled = X * scale
    if len(X) > X.shape[1]:
        scaled = torch.linalg.qr(scaled, mode="r")[1]
    _, values, rows = torch.linalg.svd(scaled, full_matrices=True)
    floor = _RANK * torch.finfo(X.dtype).eps * max(X.shape) * float(values.max())
    rank = int((values > floor).sum())
    blind = scale[:, None] * rows[rank:].T
    blind = blind / blind.abs().amax(0)
    blind = blind / blind.square().sum(0).sqrt()
    penalised = mask.square()
    seen = torch.eye(X.shape[1], dtype=X.dtype, device=X.device)
    if blind.shape[1]:
        weighed = penalised[:, None] * blind
        full, singular, _ = torch.linalg.svd(weighed, full_matrices=True)
        lost = int((singular > floor / max(float(values.max()), 1.0)).sum())
        seen = full[:, lost:]
    basis = torch.kron(outputs.contiguous(), seen.contiguous())
    if basis.shape[1] == basis.shape[0]:
        return None
    return Determined(basis, outputs, blind, penalised)
