"""What every loss offers: values per example and two derivatives in the outputs.

Shapes: n examples, c outputs, k columns. Everything downstream (gradients, Hessians, Gauss-Newton products,
influence) is built from these calls, so a new loss is one class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from influence.arrays import as_tensor
from influence.errors import DataError


@dataclass(frozen=True)
class Loss(ABC):
    """A loss ``ℓ(o, y)`` of one example and its derivatives in the outputs ``o``.

    Subclasses define ``values``, ``output_gradient``, ``output_hessian`` and ``check_range``.

    Attributes:
        name: what :func:`~influence.losses.get_loss` knows it by.
        binary: whether targets are −1 and +1 for one output.
        convex: whether ℓ is convex in o. The Gauss-Newton matrix is then positive semi-definite.
        classes: whether targets name classes, so that one class alone leaves nothing to fit.

    >>> import torch
    >>> from influence import get_loss
    >>> loss = get_loss("logistic")
    >>> loss.values(torch.zeros(2, 1), torch.tensor([-1, 1]))
    tensor([0.6931, 0.6931])
    """

    name: ClassVar[str] = ""
    binary: ClassVar[bool] = False
    classes: ClassVar[bool] = False

    @property
    def convex(self) -> bool:
        """Whether ℓ is convex in the outputs."""
        return True

    @abstractmethod
    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """ℓ(o_i, y_i): ``(n, c), (n, ...) -> (n,)``."""

    @abstractmethod
    def output_gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """∇_o ℓ(o_i, y_i): ``(n, c), (n, ...) -> (n, c)``."""

    @abstractmethod
    def output_hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """∇²_o ℓ(o_i, y_i): ``(n, c), (n, ...) -> (n, c, c)``."""

    def output_hessian_product(self, outputs: Tensor, targets: Tensor, tangents: Tensor) -> Tensor:
        """∇²_o ℓ(o_i, y_i) u_ij: ``tangents (n, c, k) -> (n, c, k)``."""
        return torch.einsum("nab,nbk->nak", self.output_hessian(outputs, targets), tangents)

    def prepared_hessian_product(self, outputs: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
        """``u (n, k, c) -> ∇²_o ℓ u (n, k, c)`` with everything that depends on the outputs done once."""
        hessian = self.output_hessian(outputs, targets)
        return lambda u: torch.einsum("nab,nkb->nka", hessian, u)

    def output_hessian_sqrt(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """L_i with ``L_i L_iᵀ = ∇²_o ℓ_i``: ``(n, c, c)``.

        Raises:
            DataError: an output Hessian has a negative eigenvalue, so that it has no real root.
        """
        values, vectors = torch.linalg.eigh(self.output_hessian(outputs, targets))
        if not self.convex and bool((values < -1e-9 * values.abs().max()).any()):
            raise DataError(
                f"the loss {self.name} is not convex in the outputs at theta, so its Gauss-Newton matrix has "
                "no root; use the Hessian with conjugate gradients and damping"
            )
        result: Tensor = vectors * values.clamp(min=0).sqrt()[:, None, :]
        return result

    def output_range(self, n_outputs: int, like: Tensor) -> Tensor:
        """Orthonormal ``(c, r)`` basis of the space in which all output gradients and Hessians lie."""
        return torch.eye(n_outputs, dtype=like.dtype, device=like.device)

    def outputs_of(self, targets: Tensor) -> int:
        """How many outputs a model needs at least for these targets."""
        return targets.shape[1] if targets.ndim > 1 else 1

    def prepare(self, targets: Any, dtype: torch.dtype, device: torch.device | str | None = None) -> Tensor:
        """Targets as this loss takes them: a tensor of the right type; lists and numpy arrays are converted.

        Raises:
            DataError: targets that are no numbers, or NaN.
        """
        tensor = placed(targets, device)
        if tensor.is_complex():
            raise DataError(f"{self.name} needs real targets, got {tensor.dtype}")
        return finite(tensor.to(dtype), "the targets")

    def check_targets(self, targets: Tensor, n_outputs: int) -> None:
        """Refuse training targets that this loss cannot take.

        Raises:
            DataError: a target out of range, a wrong shape, fewer than two examples, or one class only.
        """
        if targets.ndim < 1 or len(targets) < 2:
            raise DataError(
                f"{self.name} needs at least 2 targets, got shape {tuple(targets.shape)}; pass more examples"
            )
        self.check_range(targets, n_outputs)
        if self.classes and bool((targets == targets[0]).all()):
            raise DataError(
                f"all {len(targets)} targets are {_shown(targets[0])}: one class is empty, "
                "so there is nothing to fit; check the labels or the split"
            )

    def check_range(self, targets: Tensor, n_outputs: int) -> None:  # noqa: B027 - a loss may take any target
        """Raises DataError for targets that this loss cannot take."""


def placed(targets: Any, device: torch.device | str | None) -> Tensor:
    """``targets`` as a tensor on ``device``; where they are if it is None.

    Raises:
        DataError: text or other objects, or a ragged list.
    """
    tensor = as_tensor(targets, "the targets", device)
    return tensor if device is None else tensor.to(device)


def finite(targets: Tensor, what: str) -> Tensor:
    """``targets``, none of them NaN or infinite.

    Raises:
        DataError: one is.
    """
    if targets.is_floating_point() and not bool(torch.isfinite(targets).all()):
        raise DataError(f"{what} hold NaN or infinite values; clean or drop those examples first")
    return targets


def _shown(target: Tensor) -> str:
    return f"{target.item():g}" if target.ndim == 0 else str(target.tolist())
