"""Per-example losses as functions of a model's outputs, with their first two derivatives in the outputs.

Shapes: n examples, c outputs, k columns. Binary losses take outputs ``(n, 1)`` and targets in {−1, +1};
cross-entropy takes outputs ``(n, c)`` and integer targets in {0, …, c−1}. Everything downstream (gradients,
Hessians, Gauss–Newton, influence) is built from these four functions, so a new loss is one class here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from influence.errors import DataError


@dataclass(frozen=True)
class Loss(ABC):
    """A per-example loss ``ℓ(o, y)`` and its derivatives in the outputs ``o``.

    Subclasses define ``values``, ``output_gradient`` and ``output_hessian``; binary losses get by with two
    scalar functions of the margin ``m = y·o`` (see :class:`MarginLoss`).
    """

    name: ClassVar[str] = ""
    binary: ClassVar[bool] = False
    convex: ClassVar[bool] = True  # in the outputs: the Gauss-Newton matrix is then positive semi-definite

    @abstractmethod
    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """ℓ(o_i, y_i): ``(n, c), (n,) -> (n,)``, in nats."""

    @abstractmethod
    def output_gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """∇_o ℓ(o_i, y_i): ``(n, c), (n,) -> (n, c)``."""

    @abstractmethod
    def output_hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """∇²_o ℓ(o_i, y_i): ``(n, c), (n,) -> (n, c, c)``."""

    def output_hessian_product(self, outputs: Tensor, targets: Tensor, tangents: Tensor) -> Tensor:
        """∇²_o ℓ(o_i, y_i) u_ij: ``tangents (n, c, k) -> (n, c, k)``."""
        return torch.einsum("nab,nbk->nak", self.output_hessian(outputs, targets), tangents)

    def prepared_hessian_product(self, outputs: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
        """``u (n, k, c) -> ∇²_o ℓ u (n, k, c)`` with everything that depends on the outputs done once."""
        hessian = self.output_hessian(outputs, targets)
        return lambda u: torch.einsum("nab,nkb->nka", hessian, u)

    def output_hessian_sqrt(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """L_i with ``L_i L_iᵀ = ∇²_o ℓ_i``: ``(n, c, c)``; the loss must be convex in its outputs."""
        values, vectors = torch.linalg.eigh(self.output_hessian(outputs, targets))
        return vectors * values.clamp(min=0).sqrt()[:, None, :]

    def output_range(self, n_outputs: int, like: Tensor) -> Tensor:
        """Orthonormal ``(c, r)`` basis of the space in which all output gradients and Hessians lie."""
        return torch.eye(n_outputs, dtype=like.dtype, device=like.device)

    def check_targets(self, targets: Tensor, n_outputs: int) -> None:
        """Refuse targets that this loss cannot take.

        Raises:
            DataError: a target out of range, a wrong shape, fewer than two examples, or one class only.
        """
        if targets.ndim != 1 or len(targets) < 2:
            raise DataError(
                f"{self.name} needs a vector of at least 2 targets, got shape {tuple(targets.shape)}; "
                "pass more examples"
            )
        self._check_range(targets, n_outputs)
        if bool((targets == targets[0]).all()):
            raise DataError(
                f"all {len(targets)} targets are {targets[0].item():g}: one class is empty, "
                "so there is nothing to fit; check the labels or the split"
            )

    @abstractmethod
    def _check_range(self, targets: Tensor, n_outputs: int) -> None:
        """Raises DataError for targets that this loss cannot take."""


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Softmax cross-entropy, ``−log softmax(o)_y``: gradient ``p − e_y``, Hessian ``diag(p) − ppᵀ``."""

    name: ClassVar[str] = "cross_entropy"

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none")

    def output_gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.softmax(outputs, dim=1) - F.one_hot(targets, outputs.shape[1]).to(outputs.dtype)

    def output_hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        p = torch.softmax(outputs, dim=1)
        return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]

    def output_hessian_product(self, outputs: Tensor, targets: Tensor, tangents: Tensor) -> Tensor:
        p = torch.softmax(outputs, dim=1)[:, :, None]
        return p * (tangents - (p * tangents).sum(dim=1, keepdim=True))

    def prepared_hessian_product(self, outputs: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
        p = torch.softmax(outputs, dim=1)[:, None, :]

        def product(u: Tensor) -> Tensor:
            pu = p * u
            return pu.sub_(p * pu.sum(dim=2, keepdim=True))

        return product

    def output_hessian_sqrt(self, outputs: Tensor, targets: Tensor) -> Tensor:
        # (diag(√p) − p√pᵀ)(diag(√p) − p√pᵀ)ᵀ = diag(p) − 2ppᵀ + p(√pᵀ√p)pᵀ = diag(p) − ppᵀ
        p = torch.softmax(outputs, dim=1)
        root = p.sqrt()
        return torch.diag_embed(root) - p[:, :, None] * root[:, None, :]

    def output_range(self, n_outputs: int, like: Tensor) -> Tensor:
        # p − e_y and diag(p) − ppᵀ are orthogonal to the vector of ones: Helmert's contrasts span the rest.
        basis = torch.zeros(n_outputs, n_outputs - 1, dtype=like.dtype, device=like.device)
        for j in range(1, n_outputs):
            basis[:j, j - 1] = 1.0
            basis[j, j - 1] = -j
        return basis / basis.norm(dim=0)

    def _check_range(self, targets: Tensor, n_outputs: int) -> None:
        if targets.is_floating_point():
            raise DataError("cross_entropy needs integer targets; pass targets.long()")
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= n_outputs:
            raise DataError(
                f"targets span {low}…{high} but the model has {n_outputs} outputs, so they must lie in "
                f"0…{n_outputs - 1}; check the labels or the number of outputs"
            )


@dataclass(frozen=True)
class MarginLoss(Loss):
    """A binary loss of the margin ``m = y·o`` with ``y ∈ {−1, +1}``: subclasses give φ, φ′ and φ″."""

    binary: ClassVar[bool] = True

    @abstractmethod
    def of_margin(self, margin: Tensor) -> Tensor:
        """φ(m)."""

    @abstractmethod
    def slope(self, margin: Tensor) -> Tensor:
        """φ′(m); at a kink, one subgradient."""

    @abstractmethod
    def curvature(self, margin: Tensor) -> Tensor:
        """φ″(m); zero where φ is piecewise linear."""

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.of_margin(targets.to(outputs.dtype) * outputs[:, 0])

    def output_gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        y = targets.to(outputs.dtype)
        return (y * self.slope(y * outputs[:, 0]))[:, None]

    def output_hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        y = targets.to(outputs.dtype)
        return self.curvature(y * outputs[:, 0])[:, None, None]  # y² = 1

    def output_hessian_product(self, outputs: Tensor, targets: Tensor, tangents: Tensor) -> Tensor:
        return self.output_hessian(outputs, targets) * tangents

    def prepared_hessian_product(self, outputs: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
        hessian = self.output_hessian(outputs, targets)
        return lambda u: hessian * u

    def output_hessian_sqrt(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.output_hessian(outputs, targets).sqrt()

    def _check_range(self, targets: Tensor, n_outputs: int) -> None:
        if n_outputs != 1:
            raise DataError(f"{self.name} is a binary loss and needs 1 output, but the model has {n_outputs}")
        if not bool(((targets == 1) | (targets == -1)).all()):
            raise DataError(f"{self.name} needs targets in {{-1, +1}}; convert 0/1 labels by 2*y - 1")


@dataclass(frozen=True)
class Logistic(MarginLoss):
    """Binary logistic loss ``log(1 + e^{−m})``."""

    name: ClassVar[str] = "logistic"

    def of_margin(self, margin: Tensor) -> Tensor:
        return -F.logsigmoid(margin)

    def slope(self, margin: Tensor) -> Tensor:
        return -torch.sigmoid(-margin)

    def curvature(self, margin: Tensor) -> Tensor:
        return torch.sigmoid(margin) * torch.sigmoid(-margin)


@dataclass(frozen=True)
class Hinge(MarginLoss):
    """Hinge loss ``max(0, 1 − m)``; subgradient 0 at the kink, curvature 0 everywhere."""

    name: ClassVar[str] = "hinge"

    def of_margin(self, margin: Tensor) -> Tensor:
        return torch.relu(1 - margin)

    def slope(self, margin: Tensor) -> Tensor:
        return -(margin < 1).to(margin.dtype)

    def curvature(self, margin: Tensor) -> Tensor:
        return torch.zeros_like(margin)


@dataclass(frozen=True)
class SmoothHinge(MarginLoss):
    """``SmoothHinge(m, t) = t·log(1 + exp((1 − m)/t))`` (paper, section 4.3); at t = 0 the hinge itself.

    Written as ``relu(1 − m) + t·log1p(exp(−|1 − m|/t))`` so that nothing overflows however small t is.
    """

    name: ClassVar[str] = "smooth_hinge"
    temperature: float = 0.001

    def __post_init__(self) -> None:
        if not (0 <= self.temperature < float("inf")):
            raise DataError(f"smooth_hinge temperature must be finite and >= 0, got {self.temperature}")

    def of_margin(self, margin: Tensor) -> Tensor:
        gap = 1 - margin
        if self.temperature == 0:
            return torch.relu(gap)
        tail = torch.log1p(torch.exp(-gap.abs() / self.temperature))
        return torch.relu(gap) + self.temperature * tail

    def slope(self, margin: Tensor) -> Tensor:
        if self.temperature == 0:
            return -(margin < 1).to(margin.dtype)
        return -torch.sigmoid((1 - margin) / self.temperature)

    def curvature(self, margin: Tensor) -> Tensor:
        if self.temperature == 0:
            return torch.zeros_like(margin)
        z = (1 - margin) / self.temperature
        return torch.sigmoid(z) * torch.sigmoid(-z) / self.temperature


_LOSSES: dict[str, type[Loss]] = {cls.name: cls for cls in (CrossEntropy, Logistic, Hinge, SmoothHinge)}


def get_loss(name: str | Loss, **settings: float) -> Loss:
    """The loss called ``name``; ``settings`` are its fields (``temperature`` of smooth_hinge).

    Raises:
        DataError: an unknown name or setting; the message lists the known ones.
    """
    if isinstance(name, Loss):
        return name
    if name not in _LOSSES:
        raise DataError(f"unknown loss {name!r}; known losses are {', '.join(sorted(_LOSSES))}")
    try:
        return _LOSSES[name](**settings)
    except TypeError:
        known = ", ".join(_LOSSES[name].__dataclass_fields__) or "none"
        raise DataError(f"loss {name} has settings {known}, got {', '.join(settings)}") from None
