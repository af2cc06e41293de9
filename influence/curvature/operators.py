"""Curvature as linear operators on vectors ``(p,)`` and blocks ``(p, k)``.

Operators compose: ``Damped(Hessian(objective, theta), 0.01)`` is ``H + 0.01·I`` for every solver alike, and
this is the only place where damping enters. ``Hessian`` is that of the whole trained objective, the L2 term
included (paper, section 2.1): ``H = (1/n) Σ ∇²ℓ(z_i, θ) + λI``.

An operator that knows more about itself says so through :meth:`Operator.split`: ``H = E C Eᵀ + μI`` with E of
orthonormal columns. A linear softmax model has such a form with a core C of (c−1)·(non-zero columns) rows
instead of c·d, because its loss never sees a shift common to all classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor

from influence.errors import DataError, DeviceError
from influence.objectives._base import Product, TrainingObjective
from influence.objectives.structure import GramFactor, Split

__all__ = ["Damped", "Dense", "ExampleOperator", "GaussNewton", "Hessian", "Operator"]


class Operator(ABC):
    """A symmetric linear map on p parameters. Subclasses define ``_apply`` on blocks ``(p, k)``.

    >>> import torch
    >>> class Twice(Operator):
    ...     shape, dtype, device = (2, 2), torch.float64, torch.device("cpu")
    ...
    ...     def _apply(self, V):
    ...         return 2 * V
    >>> Twice().dense()
    tensor([[2., 0.],
            [0., 2.]], dtype=torch.float64)
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device

    @abstractmethod
    def _apply(self, V: Tensor) -> Tensor:
        """The product with a block ``(p, k)``."""

    def __matmul__(self, V: Tensor) -> Tensor:
        """The product with a vector ``(p,)`` or a block ``(p, k)``.

        Raises:
            DataError: a block of the wrong height or dtype.
            DeviceError: a block on another device.
        """
        if V.shape[0] != self.shape[1] or V.ndim > 2:
            raise DataError(f"operator has {self.shape[1]} columns but the block has shape {tuple(V.shape)}")
        if V.device != self.device:
            raise DeviceError(f"operator is on {self.device} but the block on {V.device}; move one of them")
        if V.dtype != self.dtype:
            raise DataError(f"operator is {self.dtype} but the block {V.dtype}; convert the block")
        return self._apply(V[:, None])[:, 0] if V.ndim == 1 else self._apply(V)

    def dense(self, block: int = 256) -> Tensor:
        """The matrix ``(p, p)``, built from products with ``block`` unit vectors at a time."""
        p = self.shape[0]
        out = torch.empty(p, p, dtype=self.dtype, device=self.device)
        for start in range(0, p, block):
            stop = min(start + block, p)
            unit = torch.zeros(p, stop - start, dtype=self.dtype, device=self.device)
            unit[torch.arange(start, stop), torch.arange(stop - start)] = 1
            out[:, start:stop] = self @ unit
        return (out + out.T) / 2

    def diagonal(self) -> Tensor:
        """The diagonal ``(p,)``."""
        return self.dense().diagonal().clone()

    def sample(self, generator: torch.Generator, batch: int, replace: bool = True) -> Operator:
        """The same operator on ``batch`` training examples drawn by ``generator`` (LiSSA's ``H_B``)."""
        raise DataError(
            f"{type(self).__name__} has no examples to sample; use a Hessian or GaussNewton operator"
        )

    def lower_bound(self) -> float | None:
        """A proven lower bound of the spectrum (λ + δ for convex losses of linear outputs), or None."""
        return None

    def split(self) -> Split | None:
        """``E C Eᵀ + μI`` where the operator knows such a form, else None."""
        return None

    def gram(self) -> GramFactor | None:
        """``ZᵀZ/n + μI`` with fewer rows in Z than the core of :meth:`split` has, else None."""
        return None


class Dense(Operator):
    """An explicit symmetric matrix as an operator.

    >>> import torch
    >>> Dense(torch.tensor([[2.0, 1.0], [1.0, 3.0]])) @ torch.tensor([1.0, 0.0])
    tensor([2., 1.])
    """

    def __init__(self, matrix: Tensor) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise DataError(f"a dense operator needs a square matrix, got shape {tuple(matrix.shape)}")
        self.matrix = matrix
        self.shape = (len(matrix), len(matrix))
        self.dtype, self.device = matrix.dtype, matrix.device

    def _apply(self, V: Tensor) -> Tensor:
        return self.matrix @ V

    def dense(self, block: int = 256) -> Tensor:
        return self.matrix.clone()

    def diagonal(self) -> Tensor:
        return self.matrix.diagonal().clone()

    def sample(self, generator: torch.Generator, batch: int, replace: bool = True) -> Operator:
        return self


class ExampleOperator(Operator):
    """An operator that is a mean over training examples plus λ."""

    def __init__(self, objective: TrainingObjective, theta: Tensor, idx: Tensor | None = None) -> None:
        """At ``theta (p,)``, over the examples ``idx``; by default over all of them."""
        theta = objective.vector(theta)
        self.objective, self.theta, self.idx = objective, theta.detach(), idx
        self.shape = (objective.p, objective.p)
        self.dtype, self.device = objective.dtype, objective.device
        self._prepared: Product | None = None

    @abstractmethod
    def _prepare(self) -> Product:
        """The product with blocks at θ, with everything that depends on θ alone done once."""

    @abstractmethod
    def _convex(self) -> bool:
        """Whether the mean over examples is positive semi-definite whatever the data are."""

    def _apply(self, V: Tensor) -> Tensor:
        if self._prepared is None:
            self._prepared = self._prepare()
        return self._prepared(V)

    def on_examples(self, idx: Tensor) -> Self:
        """The same operator over the examples ``idx`` of the objective instead."""
        return type(self)(self.objective, self.theta, idx)

    def sample(self, generator: torch.Generator, batch: int, replace: bool = True) -> Operator:
        n = self.objective.count(self.idx)
        idx = draw(n, batch, replace, generator).to(self.device)
        return self.on_examples(idx if self.idx is None else self.idx[idx])

    def lower_bound(self) -> float | None:
        weights = self.objective.weights
        if weights is not None and bool((weights < 0).any()):
            return None  # a loss counted negatively is concave
        return self.objective.l2 * float(self.objective.l2_mask.min()) if self._convex() else None


class Hessian(ExampleOperator):
    """``(1/n) Σ ∇²ℓ(z_i, θ) + λI`` of an objective at θ, over all examples or over ``idx``.

    >>> import torch
    >>> from influence import LinearObjective
    >>> X = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    >>> train = LinearObjective(X, torch.tensor([-1, 1, 1, -1]), "logistic", l2=0.1)
    >>> Hessian(train, torch.zeros(2, dtype=torch.float64)).dense()
    tensor([[0.4750, 0.1875],
            [0.1875, 0.2875]], dtype=torch.float64)
    """

    def _prepare(self) -> Product:
        return self.objective.hessian_at(self.theta, self.idx)

    def _convex(self) -> bool:
        return self.objective.linear_outputs and self.objective.loss.convex

    def split(self) -> Split | None:
        return self.objective.split_at(self.theta, self.idx)

    def gram(self) -> GramFactor | None:
        return self.objective.gram_at(self.theta, self.idx)

    def diagonal(self) -> Tensor:
        closed = self.objective.diagonal_at(self.theta, self.idx)
        return super().diagonal() if closed is None else closed


class GaussNewton(Hessian):
    """``(1/n) Σ J_iᵀ ∇²_o ℓ_i J_i + λI``: positive semi-definite for every convex loss; equals the Hessian
    where the outputs are linear in θ (Schraudolph, 2002).

    >>> import torch
    >>> from influence import LinearObjective
    >>> X = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    >>> train = LinearObjective(X, torch.tensor([-1, 1, 1, -1]), "logistic", l2=0.1)
    >>> theta = torch.zeros(2, dtype=torch.float64)
    >>> torch.equal(GaussNewton(train, theta).dense(), Hessian(train, theta).dense())  # linear outputs
    True
    """

    def _prepare(self) -> Product:
        return self.objective.gauss_newton_at(self.theta, self.idx)

    def _convex(self) -> bool:
        return self.objective.loss.convex


class Damped(Operator):
    """``H + δI``.

    Args:
        operator: H.
        damping: δ ≥ 0. The result is what every solver solves with, so δ means the same to all of them.

    >>> import torch
    >>> operator = Damped(Dense(torch.diag(torch.tensor([-1.0, 2.0]))), 1.5)
    >>> operator @ torch.ones(2)
    tensor([0.5000, 3.5000])
    """

    def __init__(self, operator: Operator, damping: float) -> None:
        if not (0 <= damping < float("inf")):
            raise DataError(f"damping must be finite and >= 0, got {damping}")
        self.operator, self.damping = operator, float(damping)
        self.shape, self.dtype, self.device = operator.shape, operator.dtype, operator.device

    def _apply(self, V: Tensor) -> Tensor:
        return (self.operator @ V).add_(V, alpha=self.damping)

    def dense(self, block: int = 256) -> Tensor:
        out = self.operator.dense(block)
        out.diagonal().add_(self.damping)
        return out

    def diagonal(self) -> Tensor:
        return self.operator.diagonal() + self.damping

    def sample(self, generator: torch.Generator, batch: int, replace: bool = True) -> Operator:
        return Damped(self.operator.sample(generator, batch, replace), self.damping)

    def lower_bound(self) -> float | None:
        inner = self.operator.lower_bound()
        return None if inner is None else inner + self.damping

    def split(self) -> Split | None:
        inner = self.operator.split()
        return None if inner is None else inner.shifted(self.damping)

    def gram(self) -> GramFactor | None:
        inner = self.operator.gram()
        return None if inner is None else inner.shifted(self.damping)


def draw(n: int, batch: int, replace: bool, generator: torch.Generator) -> Tensor:
    """``batch`` example indices out of n; without replacement at most n of them."""
    if batch < 1 or (not replace and batch > n):
        raise DataError(f"batch must lie in 1…{n}, got {batch}")
    if replace:
        return torch.randint(n, (batch,), generator=generator)
    return torch.randperm(n, generator=generator)[:batch]


def base_of(operator: Operator) -> tuple[Operator, float]:
    """The undamped operator and the sum of all dampings around it."""
    damping = 0.0
    while isinstance(operator, Damped):
        damping += operator.damping
        operator = operator.operator
    return operator, damping
