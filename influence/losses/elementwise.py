"""Losses that are a sum (or mean) over the outputs: squared error, Huber, Poisson, binary cross-entropy.

Targets have the shape of the outputs; ``(n,)`` goes with one output. Several outputs are several targets an
example (regression with several outputs, several labels an example).
"""

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
class ElementwiseLoss(Loss):
    """``ℓ(o, y) = Σ_a φ(o_a, y_a)``: subclasses give φ and its first two derivatives in o.

    Args:
        average: take the mean over an example's outputs in place of the sum.
    """

    average: bool = False

    @abstractmethod
    def of(self, o: Tensor, y: Tensor) -> Tensor:
        """φ, elementwise."""

    @abstractmethod
    def slope(self, o: Tensor, y: Tensor) -> Tensor:
        """∂φ/∂o."""

    @abstractmethod
    def curvature(self, o: Tensor, y: Tensor) -> Tensor:
        """∂²φ/∂o²."""

    def _paired(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, float]:
        share = 1 / outputs.shape[1] if self.average else 1.0
        return outputs, targets.to(outputs.dtype).reshape(outputs.shape), share

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        o, y, share = self._paired(outputs, targets)
        return share * self.of(o, y).sum(dim=1)

    def output_gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        o, y, share = self._paired(outputs, targets)
        return share * self.slope(o, y)

    def _diagonal(self, outputs: Tensor, targets: Tensor) -> Tensor:
        o, y, share = self._paired(outputs, targets)
        return share * self.curvature(o, y)

    def output_hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.diag_embed(self._diagonal(outputs, targets))

    def output_hessian_product(self, outputs: Tensor, targets: Tensor, tangents: Tensor) -> Tensor:
        return self._diagonal(outputs, targets)[:, :, None] * tangents

    def prepared_hessian_product(self, outputs: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
        diagonal = self._diagonal(outputs, targets)[:, None, :]
        return lambda u: diagonal * u

    def output_hessian_sqrt(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.diag_embed(self._diagonal(outputs, targets).sqrt())

    def prepare_targets(self, targets: Tensor, dtype: torch.dtype) -> Tensor:
        return targets.to(dtype)

    def _check_range(self, targets: Tensor, n_outputs: int) -> None:
        size = targets[0].numel() if len(targets) else n_outputs
        if size != n_outputs:
            raise DataError(
                f"{self.name} needs one target per output: the model has {n_outputs} outputs but each "
                f"example {size} targets; change one of them"
            )
        if not bool(torch.isfinite(targets).all()):
            raise DataError("the targets hold NaN or infinite values; clean or impute them first")


@dataclass(frozen=True)
class SquaredError(ElementwiseLoss):
    """``½(o − y)²``, summed over the outputs; with ``half=False`` and ``average=True`` torch's mse."""

    name: ClassVar[str] = "squared_error"
    half: bool = True

    @property
    def _factor(self) -> float:
        return 0.5 if self.half else 1.0

    def of(self, o: Tensor, y: Tensor) -> Tensor:
        return self._factor * (o - y) ** 2

    def slope(self, o: Tensor, y: Tensor) -> Tensor:
        return 2 * self._factor * (o - y)

    def curvature(self, o: Tensor, y: Tensor) -> Tensor:
        return torch.full_like(o, 2 * self._factor)


@dataclass(frozen=True)
class Huber(ElementwiseLoss):
    """``½r²`` for ``|r| ≤ δ``, else ``δ(|r| − δ/2)``, with ``r = o − y`` (Huber, 1964)."""

    name: ClassVar[str] = "huber"
    delta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.delta < float("inf"):
            raise DataError(f"huber delta must be finite and > 0, got {self.delta}")

    def of(self, o: Tensor, y: Tensor) -> Tensor:
        r = (o - y).abs()
        return torch.where(r <= self.delta, 0.5 * r**2, self.delta * (r - 0.5 * self.delta))

    def slope(self, o: Tensor, y: Tensor) -> Tensor:
        return (o - y).clamp(-self.delta, self.delta)

    def curvature(self, o: Tensor, y: Tensor) -> Tensor:
        return ((o - y).abs() <= self.delta).to(o.dtype)


@dataclass(frozen=True)
class Poisson(ElementwiseLoss):
    """``e^o − y·o`` for counts y ≥ 0 with mean ``e^o`` (log link); without the constant ``log y!``."""

    name: ClassVar[str] = "poisson"

    def of(self, o: Tensor, y: Tensor) -> Tensor:
        return torch.exp(o) - y * o

    def slope(self, o: Tensor, y: Tensor) -> Tensor:
        return torch.exp(o) - y

    def curvature(self, o: Tensor, y: Tensor) -> Tensor:
        return torch.exp(o)

    def _check_range(self, targets: Tensor, n_outputs: int) -> None:
        super()._check_range(targets, n_outputs)
        if bool((targets < 0).any()):
            raise DataError(f"poisson needs counts >= 0, got {float(targets.min()):g}; check the targets")


@dataclass(frozen=True)
class BinaryCrossEntropy(ElementwiseLoss):
    """``−(c y log σ(o) + (1 − y) log(1 − σ(o)))`` for labels y in [0, 1], one or several an example.

    Args:
        positive_weights: c for each output; 1 by default.
    """

    name: ClassVar[str] = "binary_cross_entropy"
    positive_weights: tuple[float, ...] | None = None

    def _positive(self, o: Tensor) -> Tensor:
        if self.positive_weights is None:
            return torch.ones((), dtype=o.dtype, device=o.device)
        return torch.tensor(self.positive_weights, dtype=o.dtype, device=o.device)

    def of(self, o: Tensor, y: Tensor) -> Tensor:
        return -(self._positive(o) * y * F.logsigmoid(o) + (1 - y) * F.logsigmoid(-o))

    def slope(self, o: Tensor, y: Tensor) -> Tensor:
        return (1 - y) * torch.sigmoid(o) - self._positive(o) * y * torch.sigmoid(-o)

    def curvature(self, o: Tensor, y: Tensor) -> Tensor:
        return (1 - y + self._positive(o) * y) * torch.sigmoid(o) * torch.sigmoid(-o)

    def _check_range(self, targets: Tensor, n_outputs: int) -> None:
        super()._check_range(targets, n_outputs)
        if not bool(((targets >= 0) & (targets <= 1)).all()):
            raise DataError(f"{self.name} needs targets in [0, 1]; convert labels -1 and 1 by (y + 1) / 2")
        if self.positive_weights is not None and len(self.positive_weights) not in (1, n_outputs):
            raise DataError(f"positive_weights must hold 1 or {n_outputs} numbers; give one per output")
