"""Binary losses of the margin ``m = y·o`` with targets −1 and +1: logistic, hinge and its smoothings."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from influence.errors import DataError
from influence.losses._base import Loss


@dataclass(frozen=True)
class MarginLoss(Loss):
    """A binary loss of the margin ``m = y·o`` with ``y ∈ {−1, +1}``: subclasses give φ, φ′ and φ″."""

    binary: ClassVar[bool] = True
    classes: ClassVar[bool] = True

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

    def check_range(self, targets: Tensor, n_outputs: int) -> None:
        if targets.ndim != 1:
            raise DataError(f"{self.name} needs one target per example, got shape {tuple(targets.shape)}")
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
class SquaredHinge(MarginLoss):
    """Squared hinge ``max(0, 1 − m)²``, the loss of scikit-learn's LinearSVC."""

    name: ClassVar[str] = "squared_hinge"

    def of_margin(self, margin: Tensor) -> Tensor:
        return torch.relu(1 - margin) ** 2

    def slope(self, margin: Tensor) -> Tensor:
        return -2 * torch.relu(1 - margin)

    def curvature(self, margin: Tensor) -> Tensor:
        return 2 * (margin < 1).to(margin.dtype)


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
