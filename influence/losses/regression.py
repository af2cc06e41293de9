"""Losses that are a sum over outputs: squared error, Huber, Poisson, binary cross-entropy with 0/1 labels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from influence.checks import checked_number
from influence.errors import DataError
from influence.losses._base import Loss


@dataclass(frozen=True)
class ElementwiseLoss(Loss):
    """``ℓ(o, y) = Σ_a φ(o_a, y_a)`` over the c outputs; subclasses give φ and its derivatives in o.

    Targets are ``(n, c)``, or ``(n,)`` for one output.
    """

    @abstractmethod
    def of_output(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """φ, elementwise."""

    @abstractmethod
    def slope(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """∂φ/∂o, elementwise."""

    @abstractmethod
    def curvature(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """∂²φ/∂o², elementwise."""

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.of_output(outputs, _alike(targets, outputs)).sum(dim=1)

    def output_gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.slope(outputs, _alike(targets, outputs))

    def output_hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.diag_embed(self.curvature(outputs, _alike(targets, outputs)))

    def output_hessian_product(self, outputs: Tensor, targets: Tensor, tangents: Tensor) -> Tensor:
        return self.curvature(outputs, _alike(targets, outputs))[:, :, None] * tangents

    def prepared_hessian_product(self, outputs: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
        curvature = self.curvature(outputs, _alike(targets, outputs))[:, None, :]
        return lambda u: curvature * u

    def output_hessian_sqrt(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.diag_embed(self.curvature(outputs, _alike(targets, outputs)).clamp(min=0).sqrt())

    def check_range(self, targets: Tensor, n_outputs: int) -> None:
        columns = targets.shape[1] if targets.ndim == 2 else 1
        if targets.ndim > 2 or columns != n_outputs:
            raise DataError(
                f"{self.name} needs a target per output: the model has {n_outputs} outputs but the targets "
                f"have shape {tuple(targets.shape)}"
            )


def _alike(targets: Tensor, outputs: Tensor) -> Tensor:
    return targets.reshape(outputs.shape).to(outputs.dtype)


@dataclass(frozen=True)
class SquaredError(ElementwiseLoss):
    """``½‖o − y‖²``. Mind the half: torch's MSELoss is ``‖o − y‖²/c``.

    >>> SquaredError().values(torch.tensor([[3.0]]), torch.tensor([1.0]))
    tensor([2.])
    """

    name: ClassVar[str] = "squared_error"

    def of_output(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * (outputs - targets) ** 2

    def slope(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs - targets

    def curvature(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.ones_like(outputs)


@dataclass(frozen=True)
class Huber(ElementwiseLoss):
    """``½r²`` for ``|r| ≤ δ``, else ``δ(|r| − ½δ)``, with ``r = o − y`` (Huber, 1964).

    Args:
        delta: δ > 0, where the loss turns linear.

    >>> import torch
    >>> Huber(1.0).values(torch.tensor([[0.5], [3.0]]), torch.zeros(2, 1))
    tensor([0.1250, 2.5000])
    """

    name: ClassVar[str] = "huber"
    delta: float = 1.0

    def __post_init__(self) -> None:
        checked_number("delta", self.delta, above=0.0)

    def of_output(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.huber_loss(outputs, targets, reduction="none", delta=self.delta)

    def slope(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).clamp(-self.delta, self.delta)

    def curvature(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets).abs() <= self.delta).to(outputs.dtype)


@dataclass(frozen=True)
class Poisson(ElementwiseLoss):
    """``e^o − y o``: the negative log-likelihood of a count y with rate ``e^o``, without ``log y!``.

    >>> import torch
    >>> Poisson().values(torch.zeros(2, 1), torch.tensor([[1.0], [2.0]]))
    tensor([1., 1.])
    """

    name: ClassVar[str] = "poisson"

    def of_output(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.exp(outputs) - targets * outputs

    def slope(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.exp(outputs) - targets

    def curvature(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.exp(outputs)

    def check_range(self, targets: Tensor, n_outputs: int) -> None:
        super().check_range(targets, n_outputs)
        if bool((targets < 0).any()):
            raise DataError(f"poisson needs targets >= 0, the smallest is {float(targets.min()):g}")


@dataclass(frozen=True)
class BinaryCrossEntropy(ElementwiseLoss):
    """``Σ_a w y_a log(1 + e^{−o_a}) + (1 − y_a) log(1 + e^{o_a})``: one or several labels, each 0 or 1.

    A target between 0 and 1 is the probability of the label.

    Args:
        positive_weight: w > 0, a factor of the positive part.

    >>> import torch
    >>> BinaryCrossEntropy().values(torch.zeros(2, 1), torch.tensor([0.0, 1.0]))
    tensor([0.6931, 0.6931])
    """

    name: ClassVar[str] = "binary_cross_entropy"
    positive_weight: float = 1.0

    def __post_init__(self) -> None:
        checked_number("positive_weight", self.positive_weight, above=0.0)

    def of_output(self, outputs: Tensor, targets: Tensor) -> Tensor:
        positive = self.positive_weight * targets * F.softplus(-outputs)
        return positive + (1 - targets) * F.softplus(outputs)

    def slope(self, outputs: Tensor, targets: Tensor) -> Tensor:
        positive = self.positive_weight * targets * torch.sigmoid(-outputs)
        return (1 - targets) * torch.sigmoid(outputs) - positive

    def curvature(self, outputs: Tensor, targets: Tensor) -> Tensor:
        weight = self.positive_weight * targets + 1 - targets
        return weight * torch.sigmoid(outputs) * torch.sigmoid(-outputs)

    def check_range(self, targets: Tensor, n_outputs: int) -> None:
        super().check_range(targets, n_outputs)
        if bool(((targets < 0) | (targets > 1)).any()):
            raise DataError("binary_cross_entropy needs targets in 0…1; convert labels −1/+1 by (y + 1) / 2")
