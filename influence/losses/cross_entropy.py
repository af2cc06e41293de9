"""Softmax cross-entropy: of labels, soft labels and tokens, with label smoothing and class weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from influence.errors import DataError
from influence.losses._base import Loss, check_classes


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """``ℓ = −Σ_v q_v log softmax(o)_v`` with q the one-hot label, or a given distribution.

    For one label this is ``−log softmax(o)_y``: gradient ``p − e_y``, Hessian ``diag(p) − ppᵀ``. In general
    the gradient is ``s p − q`` and the Hessian ``s (diag(p) − ppᵀ)`` with ``s = Σ_v q_v``.

    Targets: labels ``(n,)`` in 0…c−1; soft labels ``(n, c)``, floating; for token outputs ``(n, T, V)``,
        labels
    ``(n, T)`` or soft labels ``(n, T, V)``. The loss of an example is the mean over its tokens that count.

    Args:
        label_smoothing: ε: q becomes ``(1 − ε) q + ε/V``.
        class_weights: ``(V,)``: q_v is multiplied by the weight of class v. The mean over examples is not
            divided by the sum of weights (torch's ``reduction="mean"`` divides by it).
        ignore_index: label that does not count: the loss of such an example or token is 0.
    """

    name: ClassVar[str] = "cross_entropy"
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    ignore_index: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing <= 1:
            raise DataError(f"label_smoothing must lie in [0, 1], got {self.label_smoothing}")
        if self.class_weights is not None:
            weights = tuple(float(w) for w in self.class_weights)
            if not all(0 <= w < float("inf") for w in weights):
                raise DataError(f"class_weights must be finite and >= 0, got {weights}")
            object.__setattr__(self, "class_weights", weights)

    # -- one label an example, nothing else: the formulas that everything of the paper uses ------------------

    def _plain(self, targets: Tensor) -> bool:
        settings = self.label_smoothing or self.class_weights is not None or self.ignore_index is not None
        return not settings and targets.ndim == 1 and not targets.is_floating_point()

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self._plain(targets):
            return F.cross_entropy(outputs, targets, reduction="none")
        logits, q = self._terms(outputs, targets)
        return -(q * torch.log_softmax(logits, dim=2)).sum(dim=(1, 2))

    def output_gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self._plain(targets):
            return torch.softmax(outputs, dim=1) - F.one_hot(targets, outputs.shape[1]).to(outputs.dtype)
        logits, q = self._terms(outputs, targets)
        mass = q.sum(dim=2, keepdim=True)
        return (mass * torch.softmax(logits, dim=2) - q).reshape(outputs.shape)

    def output_hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if not self._plain(targets):
            n, c = outputs.shape
            unit = torch.eye(c, dtype=outputs.dtype, device=outputs.device).expand(n, c, c)
            return self.output_hessian_product(outputs, targets, unit)
        p = torch.softmax(outputs, dim=1)
        return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]

    def output_hessian_product(self, outputs: Tensor, targets: Tensor, tangents: Tensor) -> Tensor:
        if not self._plain(targets):
            logits, q = self._terms(outputs, targets)
            mass = q.sum(dim=2, keepdim=True)[..., None]  # (n, T, 1, 1)
            soft = torch.softmax(logits, dim=2)[..., None]  # (n, T, V, 1)
            u = tangents.reshape(*logits.shape, -1)
            return (mass * soft * (u - (soft * u).sum(dim=2, keepdim=True))).reshape(tangents.shape)
        p = torch.softmax(outputs, dim=1)[:, :, None]
        return p * (tangents - (p * tangents).sum(dim=1, keepdim=True))

    def prepared_hessian_product(self, outputs: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
        if not self._plain(targets):
            return lambda u: self.output_hessian_product(outputs, targets, u.transpose(1, 2)).transpose(1, 2)
        p = torch.softmax(outputs, dim=1)[:, None, :]

        def product(u: Tensor) -> Tensor:
            pu = p * u
            return pu.sub_(p * pu.sum(dim=2, keepdim=True))

        return product

    def output_hessian_sqrt(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if not self._plain(targets):
            return super().output_hessian_sqrt(outputs, targets)
        # (diag(√p) − p√pᵀ)(diag(√p) − p√pᵀ)ᵀ = diag(p) − 2ppᵀ + p(√pᵀ√p)pᵀ = diag(p) − ppᵀ
        p = torch.softmax(outputs, dim=1)
        root = p.sqrt()
        return torch.diag_embed(root) - p[:, :, None] * root[:, None, :]

    def output_range(self, n_outputs: int, like: Tensor) -> Tensor:
        # Gradient and Hessian are orthogonal to the vector of ones: Helmert's contrasts span the rest.
        basis = torch.zeros(n_outputs, n_outputs - 1, dtype=like.dtype, device=like.device)
        for j in range(1, n_outputs):
            basis[:j, j - 1] = 1.0
            basis[j, j - 1] = -j
        return basis / basis.norm(dim=0)

    # -- the general form ------------------------------------------------------------------------------------

    def _terms(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and weighted target distributions, both ``(n, T, V)``."""
        n, c = outputs.shape
        if targets.is_floating_point():
            q = targets.to(outputs.dtype).reshape(n, -1, targets.shape[-1])
            counted = torch.ones_like(q[..., :1])
        else:
            labels = targets.reshape(n, -1)
            counted = torch.ones_like(labels, dtype=outputs.dtype)
            if self.ignore_index is not None:
                counted = (labels != self.ignore_index).to(outputs.dtype)
                labels = torch.where(labels == self.ignore_index, 0, labels)
            q, counted = F.one_hot(labels, c // labels.shape[1]).to(outputs.dtype), counted[..., None]
        classes = q.shape[2]
        q = q * (1 - self.label_smoothing) + self.label_smoothing / classes
        if self.class_weights is not None:
            q = q * torch.tensor(self.class_weights, dtype=outputs.dtype, device=outputs.device)
        share = counted / counted.sum(dim=1, keepdim=True).clamp(min=1)
        return outputs.reshape(n, -1, classes), q * share

    # -- targets ---------------------------------------------------------------------------------------------

    def prepare_targets(self, targets: Tensor, dtype: torch.dtype) -> Tensor:
        if targets.is_floating_point():
            return targets.to(dtype) if targets.ndim > 1 else targets
        targets = targets.long()
        return targets[:, 0] if targets.ndim == 2 and targets.shape[1] == 1 else targets

    def for_outputs(self, shape: tuple[int, ...], outputs: Tensor, targets: Tensor) -> Loss:
        wanted = shape if targets.is_floating_point() else shape[:-1]
        if tuple(targets.shape[1:]) != wanted:
            kind = "soft labels" if targets.is_floating_point() else "labels"
            raise DataError(
                f"the model's outputs {('n', *shape)} and {kind} {('n', *targets.shape[1:])} do not fit: the "
                "model must return (n, c), or (n, T, V) for labels (n, T), with the classes last "
                "(output=lambda o: o.movedim(1, -1) moves them there)"
            )
        if self.class_weights is not None and len(self.class_weights) != shape[-1]:
            raise DataError(
                f"there are {len(self.class_weights)} class_weights for {shape[-1]} classes; give one each"
            )
        return self

    def check_targets(self, targets: Tensor, n_outputs: int) -> None:
        labels = targets.ndim == 1
        if labels and len(targets) < 2:
            check_classes(self.name, targets)
        self._check_range(targets, n_outputs)
        if labels:
            check_classes(self.name, targets)

    def _check_range(self, targets: Tensor, n_outputs: int) -> None:
        if targets.is_floating_point():
            if targets.ndim == 1:
                raise DataError("cross_entropy needs integer targets; pass targets.long()")
            if not bool((targets >= 0).all()) or not bool(torch.isfinite(targets).all()):
                raise DataError("soft labels must be finite and >= 0; pass probabilities of the classes")
            return
        classes = n_outputs // (targets.shape[1] if targets.ndim > 1 else 1)
        counted = targets if self.ignore_index is None else targets[targets != self.ignore_index]
        low, high = (int(counted.min()), int(counted.max())) if counted.numel() else (0, 0)
        if low < 0 or high >= classes:
            ignored = " (ignore_index=-100 leaves labels of -100 out)" if low == -100 else ""
            raise DataError(
                f"targets span {low}…{high} but the model has {classes} outputs, so they must lie in "
                f"0…{classes - 1}; check the labels or the number of outputs{ignored}"
            )
