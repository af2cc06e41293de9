"""Twins of torch's layers whose fused kernels cannot be differentiated twice, or are differentiated wrongly.

``nn.EmbeddingBag`` has no second derivative in torch. The fused weight norm has one that is wrong (24 % off
in its directions in a small net). Both are replaced by the same function of the same parameters, in plain
operations.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _WeightNorm


class PlainWeightNorm(nn.Module):
    """``g v / ‖v‖``, the norm over all axes but ``dim`` (Salimans & Kingma, 2016)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        axes = [axis for axis in range(v.ndim) if axis != self.dim % v.ndim or self.dim == -1]
        return v * (g / v.square().sum(axes, keepdim=True).sqrt())


class PlainEmbeddingBag(nn.Module):
    """Sum, mean or maximum of the embeddings of each row of ids ``(m, T)``; padding does not count."""

    def __init__(self, bag: nn.EmbeddingBag) -> None:
        super().__init__()
        self.weight = bag.weight
        self.mode, self.padding_idx = bag.mode, bag.padding_idx

    def forward(
        self, ids: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        if ids.ndim != 2 or offsets is not None:
            raise ValueError("an EmbeddingBag needs ids (m, T), one row per example, without offsets")
        rows = F.embedding(ids, self.weight)  # (m, T, d)
        counted = torch.ones_like(ids) if self.padding_idx is None else (ids != self.padding_idx)
        if self.mode == "max":
            lowest = torch.finfo(rows.dtype).min
            largest = rows.masked_fill(counted[:, :, None] == 0, lowest).amax(dim=1)
            return largest * (counted.sum(dim=1, keepdim=True) > 0)
        weights = counted.to(rows.dtype) if per_sample_weights is None else counted * per_sample_weights
        total = (rows * weights[:, :, None]).sum(dim=1)
        return total / counted.sum(dim=1, keepdim=True).clamp(min=1) if self.mode == "mean" else total


def substitute(model: nn.Module) -> bool:
    """Replaces such layers inside ``model`` in place; says whether there were any."""
    found = False
    for parent in list(model.modules()):
        for name, part in list(parent.named_children()):
            twin = _twin(part)
            if twin is not None:
                parent._modules[name] = twin.train(part.training)
                found = True
    return found


def _twin(part: nn.Module) -> nn.Module | None:
    if type(part) is nn.EmbeddingBag:
        return PlainEmbeddingBag(part)
    if type(part) is _WeightNorm:
        return PlainWeightNorm(part.dim)
    return None
