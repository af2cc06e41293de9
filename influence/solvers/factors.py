"""Factored operators: what :class:`~.exact.Exact` prepares, one class a form.

- :class:`DenseFactor`: ``H = C Cᵀ``, p × p.
- :class:`CoreFactor`: ``H = E K Eᵀ + μI`` with a small dense core K.
- :class:`GramForm`: ``H = ZᵀZ/n + μI`` through ``ZZᵀ + nμI = C Cᵀ`` (Woodbury), for more parameters than
  examples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from influence.curvature.operators import ExampleOperator, Operator, base_of
from influence.objectives._base import TrainingObjective
from influence.objectives.structure import Freed, GramFactor, Split
from influence.solvers._base import relative_residual

_REFINEMENTS = 4  # of a solve whose residual is above the tolerance


@dataclass(frozen=True)
class ExactState(ABC):
    """A factored operator.

    Attributes:
        operator: H.
        factor: the lower Cholesky factor of the matrix that was factored, ``(rows, rows)``.
        form: which matrix that is, as ``Exact(form=...)`` names it.
    """

    operator: Operator
    factor: Tensor
    form: ClassVar[str]

    @abstractmethod
    def inverse(self, B: Tensor) -> Tensor:
        """H⁻¹ B, ``(p, k) -> (p, k)``, unverified."""

    def careful_inverse(self, B: Tensor) -> Tensor:
        """:meth:`inverse` with twice the work where rounding inside of it can be kept smaller."""
        return self.inverse(B)

    def refined(self, B: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
        """H⁻¹ B and its verified residual ``(k,)``; columns whose residual is above ``tolerance`` are refined
        as long as that makes it smaller."""
        X = self.inverse(B)
        residual = relative_residual(self.operator, X, B)
        for _ in range(_REFINEMENTS):
            if bool((residual <= tolerance).all()):
                break
            again = not bool((residual < 1).all())
            candidate = self.careful_inverse(B) if again else X + self.careful_inverse(B - self.operator @ X)
            after = relative_residual(self.operator, candidate, B)
            better = after < residual
            X, residual = torch.where(better, candidate, X), torch.where(better, after, residual)
            if not bool(better.any()):
                break
        return X, residual

    @abstractmethod
    def quadratic(self, B: Tensor) -> Tensor:
        """``b_jᵀ H⁻¹ b_j`` a column, ``(p, k) -> (k,)``: half a solve each."""

    def self_quadratics(
        self, objective: TrainingObjective, theta: Tensor, idx: Tensor, block: int = 512
    ) -> Tensor:
        """``∇ℓ_iᵀ H⁻¹ ∇ℓ_i`` of the training points ``idx``: ``(m,)``."""
        return objective.self_quadratics(theta, self.quadratic, idx, block)


@dataclass(frozen=True)
class DenseFactor(ExactState):
    """The factor of the dense p × p matrix."""

    form = "dense"

    def inverse(self, B: Tensor) -> Tensor:
        return torch.cholesky_solve(B.to(self.factor.dtype), self.factor)

    def quadratic(self, B: Tensor) -> Tensor:
        half = torch.linalg.solve_triangular(self.factor, B, upper=False)
        result: Tensor = (half * half).sum(0)
        return result


@dataclass(frozen=True)
class CoreFactor(ExactState):
    """The factor of the core plus its shift; outside of the core's span H is ``split.shift``·I."""

    split: Split
    form = "core"

    def inverse(self, B: Tensor) -> Tensor:
        s, B = self.split, B.to(self.factor.dtype)
        inside = s.project(B)
        solved = s.lift(torch.cholesky_solve(inside, self.factor))
        if s.q == s.p:
            return solved
        outside = B - s.lift(inside)
        return solved + outside / s.shift if s.shift > 0 else solved

    def careful_inverse(self, B: Tensor) -> Tensor:
        s = self.split
        inside = s.project(B)
        solved = s.lift(torch.cholesky_solve(inside, self.factor))
        if s.q == s.p or s.shift <= 0:
            return solved
        outside = B - s.lift(inside)
        # What rounding left of the inside would be divided by a small shift: project it out again.
        for _ in range(2):
            outside = outside - s.lift(s.project(outside))
        return solved + outside / s.shift

    def quadratic(self, B: Tensor) -> Tensor:
        s = self.split
        inside = s.project(B)
        half = torch.linalg.solve_triangular(self.factor, inside, upper=False)
        value = (half * half).sum(0)
        if s.shift > 0 and s.q < s.p:  # the square of the difference: a difference of squares is all rounding
            value += ((B - s.lift(inside)) ** 2).sum(0) / s.shift
        result: Tensor = value
        return result


@dataclass(frozen=True)
class GramForm(ExactState):
    """The factor of ``ZZᵀ + nμI``."""

    gram: GramFactor
    form = "gram"

    @cached_property
    def freed(self) -> Freed | None:
        """What directions without penalty, such as an intercept, add to the inverse."""
        return Freed.of(self.gram, lambda B: torch.cholesky_solve(B, self.factor))

    def inverse(self, B: Tensor) -> Tensor:
        g, B = self.gram, B.to(self.factor.dtype)
        inner = torch.cholesky_solve(g.forward(B), self.factor)
        solved = (B - g.backward(inner)) / g.shift
        return solved if self.freed is None else self.freed.add(solved, B)

    def quadratic(self, B: Tensor) -> Tensor:
        g = self.gram
        half = torch.linalg.solve_triangular(self.factor, g.forward(B), upper=False)
        result: Tensor = ((B * B).sum(0) - (half * half).sum(0)) / g.shift
        return result if self.freed is None else result + self.freed.squares(self.freed.Y.T @ B)

    def self_quadratics(
        self, objective: TrainingObjective, theta: Tensor, idx: Tensor, block: int = 512
    ) -> Tensor:
        base = base_of(self.operator)[0]
        whole = isinstance(base, ExampleOperator) and base.idx is None and base.objective is objective
        closed = objective.gram_quadratics(theta, self.factor, self.gram, idx) if whole else None
        if closed is None:
            return super().self_quadratics(objective, theta, idx, block)
        if self.freed is None:
            return closed
        return closed + self.freed.squares(objective.directional(theta, self.freed.Y, idx).T)
