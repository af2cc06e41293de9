"""Per-example losses as functions of a model's outputs, with their first two derivatives in the outputs.

Shapes: n examples, c outputs, k columns. Outputs of more axes, such as tokens times classes, come flattened
    to
``(n, c)``. Everything downstream (gradients, Hessians, Gauss-Newton, influence) is built from ``values``,
``output_gradient`` and ``output_hessian``, so a new loss is one class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from influence.errors import DataError


@dataclass(frozen=True)
class Loss(ABC):
    """A per-example loss ``ℓ(o, y)`` and its derivatives in the outputs ``o``.

    Subclasses define ``values``, ``output_gradient`` and ``output_hessian``; binary losses get by with three
    scalar functions of the margin ``m = y·o`` (see :class:`~influence.losses.margin.MarginLoss`).

    Attributes:
        name: for messages and records.
        binary: whether it takes one output and targets in {−1, +1}.
        convex: whether ℓ is convex in the outputs, so that Gauss-Newton is positive semi-definite.
    """

    name: ClassVar[str] = ""
    binary: ClassVar[bool] = False
    convex: ClassVar[bool] = True
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

    def prepare_targets(self, targets: Tensor, dtype: torch.dtype) -> Tensor:
        """Targets in the type that this loss takes: floating ones in ``dtype``."""
        return targets.to(dtype) if targets.is_floating_point() else targets

    def for_outputs(self, shape: tuple[int, ...], outputs: Tensor, targets: Tensor) -> Loss:
        """This loss for a model whose outputs for one example have ``shape`` (flattened for the loss).

        Raises:
            DataError: outputs of that shape do not fit the targets.
        """
        return self

    def check_targets(self, targets: Tensor, n_outputs: int) -> None:
        """Refuse targets that this loss cannot be trained on.

        Raises:
            DataError: a target out of range, a wrong shape; for classes, fewer than two examples or one
                class.
        """
        self._check_range(targets, n_outputs)

    def _check_range(self, targets: Tensor, n_outputs: int) -> None:
        """Raises DataError for targets that this loss cannot take, at training or test time."""
        if targets.is_floating_point() and not bool(torch.isfinite(targets).all()):
            raise DataError("the targets hold NaN or infinite values; clean or impute them first")


def check_classes(name: str, targets: Tensor) -> None:
    """Raises DataError for fewer than two labels ``(n,)``, or if all are equal."""
    if targets.ndim != 1 or len(targets) < 2:
        raise DataError(
            f"{name} needs a vector of at least 2 targets, got shape {tuple(targets.shape)}; "
            "pass more examples"
        )
    if bool((targets == targets[0]).all()):
        raise DataError(
            f"all {len(targets)} targets are {targets[0].item():g}: one class is empty, "
            "so there is nothing to fit; check the labels or the split"
        )
