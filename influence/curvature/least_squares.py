"""``bᵀ H⁻¹ b`` of a linear model without squaring its condition number.

``H = ZᵀZ + diag(μ)`` has the triangular factor R of the stacked matrix ``[diag(√μ); Z]``, so that
``bᵀH⁻¹b = ‖R⁻ᵀ b‖²``. Householder's QR finds R from Z itself: its error grows with the condition number of R
with unit columns, the square root of that of H, and does not depend on the scale of a column (Higham,
*Accuracy and Stability of Numerical Algorithms*, chapters 19 and 20). For fewer rows than columns,
``Zᵀ = Q T`` reduces the problem to the span of Q, where ``H = T Tᵀ + μI``; outside of it H is μI.

Everything here is float64, whatever the objective computes in. Z is never held where it has more rows than
columns: R takes it in by blocks of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from influence.losses import CrossEntropy, Loss, SmoothHinge
from influence.objectives.linear import LinearObjective

EPS = torch.finfo(torch.float64).eps
LARGEST = 100_000_000  # numbers of Z or of R; a larger problem has no least-squares form here
_ROWS = 1024  # rows of X a block


@dataclass(frozen=True)
class LeastSquares:
    """A factored ``ZᵀZ + diag(μ)``.

    Attributes:
        R: upper triangular, ``(q, q)``; with a basis ``(rows, rows)``.
        shift: μ ``(q,)``.
        basis: Q ``(q, rows)`` with orthonormal columns, or None where R has all q columns.
        columns: T ``(rows, rows)`` of ``Zᵀ = Q T``, with a basis.
        contrasts: how many output contrasts the q rows are made of, each with all features.
    """

    R: Tensor
    shift: Tensor
    basis: Tensor | None = None
    columns: Tensor | None = None
    contrasts: int = 1

    def quadratic(self, B: Tensor, uncertain: float = 0.0) -> tuple[Tensor, Tensor]:
        """``v_j = b_jᵀ H⁻¹ b_j`` and a bound of its error: ``(q, k) -> (k,), (k,)``.

        Householder's R is that of a matrix whose columns are off by a relative e. With ``x = H⁻¹b`` the first
        order of that in v is ``2 xᵀ(δZ)ᵀZx``, and ``2 xᵀδb`` for the error of b; the second order follows.
        ``uncertain`` is the relative error of the numbers in Z and B themselves, added to e.
        """
        e = 8.0 * math.sqrt(len(self.R) + 16) * EPS + uncertain
        if self.basis is None:
            half = torch.linalg.solve_triangular(self.R.T, B, upper=False)
            value = (half * half).sum(0)
            x = torch.linalg.solve_triangular(self.R, half, upper=True).abs()
            norms = self.R.norm(dim=0)
            wide = self._over_contrasts(norms[:, None])[:, 0]
            reach = wide @ x
            first = 2 * value.sqrt() * reach + 2 * (x * self._over_contrasts(B)).sum(0)
            grown = self._amplification() * float((wide / norms).max()) if len(norms) else 0.0
            scaled = (self._over_contrasts(B) / norms[:, None]).norm(dim=0)
            second = reach**2 + value * len(self.R) * grown**2 + (scaled * self._amplification()) ** 2
            return value, e * first + e**2 * second
        assert self.columns is not None  # it comes with the basis
        mu, inside = float(self.shift[0]), self.basis.T @ B
        half = torch.linalg.solve_triangular(self.R.T, inside, upper=False)
        outside = B - self.basis @ inside
        value = (half * half).sum(0) + (outside * outside).sum(0) / mu
        y = torch.linalg.solve_triangular(self.R, half, upper=True)
        x = (y.norm(dim=0) ** 2 + outside.norm(dim=0) ** 2 / mu**2).sqrt()
        reach = B.norm(dim=0) + self.columns.norm(dim=0) @ (self.columns.T @ y).abs()
        # The second QR, of [Tᵀ; √μ I], is stable by columns and mixes the examples' scales.
        mixed = self.R.norm(dim=0) @ y.abs()
        first = 2 * x * reach + 2 * value.sqrt() * mixed
        grown = value * len(self.R) * self._amplification() ** 2
        return value, e * first + e**2 * (reach**2 / mu + (self.columns.norm() * x) ** 2 + mixed**2 + grown)

    def _over_contrasts(self, B: Tensor) -> Tensor:
        """The norm over output contrasts of each feature's rows: ``(q, k) -> (q, k)``. The change of basis to
        contrasts keeps the relative error of that norm, not of each contrast."""
        parts = B.reshape(self.contrasts, -1, B.shape[1]).norm(dim=0)
        result: Tensor = parts.repeat(self.contrasts, 1)
        return result

    def _amplification(self) -> float:
        """``‖R̃⁻¹‖`` with R̃ = R scaled to unit columns; infinite where R is singular."""
        norms = self.R.norm(dim=0)
        if not bool((self.R.diagonal().abs() > EPS * norms).all()):
            return math.inf
        unit = self.R / norms

        def solve(V: Tensor) -> Tensor:
            half = torch.linalg.solve_triangular(unit.T, V, upper=False)
            result: Tensor = torch.linalg.solve_triangular(unit, half, upper=True)
            return result

        return max(1.0, math.sqrt(inverse_norm(solve, len(self.R))))

    def solve(self, B: Tensor) -> Tensor:
        """H⁻¹ B: ``(q, k) -> (q, k)``."""
        inside = B if self.basis is None else self.basis.T @ B
        half = torch.linalg.solve_triangular(self.R.T, inside, upper=False)
        solved: Tensor = torch.linalg.solve_triangular(self.R, half, upper=True)
        if self.basis is None:
            return solved
        outside = B - self.basis @ inside
        outside = outside - self.basis @ (self.basis.T @ outside)  # rounding left some of the inside there
        result: Tensor = self.basis @ solved + outside / self.shift[0]
        return result


def inverse_norm(solve: Callable[[Tensor], Tensor], rows: int, iterations: int = 10) -> float:
    """‖A⁻¹‖ of a symmetric positive definite A from solves with it: power iteration, then doubled."""
    if rows == 0:
        return 1.0
    V = torch.randn(rows, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    best = 0.0
    for _ in range(iterations):
        V = solve(V / V.norm(dim=0)).double()
        norms = V.norm(dim=0)
        if not bool((torch.isfinite(norms) & (norms > 0)).all()):
            return math.inf
        best = max(best, float(norms.max()))
    return 2 * best


class ReducedLinear:
    """A linear objective's Hessian in its own coordinates: output contrasts × non-zero columns of X.

    Args:
        objective: of any dtype; computed in float64.
        theta: ``(p,)``.
        idx: the examples of the Hessian, None for all.
        damping: δ.
    """

    def __init__(self, objective: LinearObjective, theta: Tensor, idx: Tensor | None, damping: float) -> None:
        self.all = objective
        self.part = objective if idx is None else objective.subset(idx)
        self.c, self.d = objective.n_outputs, objective.d
        self.W = theta.double().reshape(self.c, self.d)
        self.basis = objective.loss.output_range(self.c, self.W)  # (c, r)
        self.active = self.part.X.column_mask()
        self.columns = self.active.nonzero()[:, 0]
        self.r, self.q = self.basis.shape[1], self.basis.shape[1] * len(self.columns)
        penalty = objective.l2 * objective.l2_mask.double().reshape(self.c, self.d)[0] + damping
        self.penalty = penalty  # (d,): of an input's weights, the same for every output
        self.shift = penalty[self.columns].repeat(self.r)
        self.m = self.part.n * self.c
        self.eps = EPS
        self.output_error = 0.0  # in units of eps: the largest relative error of r_i and L_i so far

    def blocks(self) -> Iterator[Tensor]:
        """Z by blocks of rows ``(m', q)``; row (i, a) is ``√(w_i/n) (Qᵀ L_i)[:, a] ⊗ x_i``."""
        part, step = self.part, max(1, _ROWS // self.c)
        for rows, x in part.X.dense_batches(step):
            x = x.double()
            _, L = accurate_terms(part.loss, self.outputs(x), part.targets[rows])
            if part.weights is not None:
                L = L * part.weights[rows].double().sqrt()[:, None, None]
            small = torch.einsum("cr,nca->nar", self.basis, L) / math.sqrt(part.n)
            yield (small[:, :, :, None] * x[:, None, None, self.columns]).reshape(len(x) * self.c, self.q)

    def outputs(self, x: Tensor) -> Tensor:
        """W x of dense rows ``(m, d) -> (m, c)``; keeps account of ``output_error``."""
        x, sensitive = x.double(), 1.0
        if isinstance(self.part.loss, SmoothHinge):
            sensitive = 1 / max(self.part.loss.temperature, 1e-300)
        size = float((x.abs() @ self.W.abs().T).max()) if len(x) else 0.0
        self.output_error = max(self.output_error, 4 + (2 + math.sqrt(self.d)) * (1 + size) * sensitive)
        return x @ self.W.T

    def gradients(self, objective: LinearObjective, rows: Tensor) -> tuple[Tensor, Tensor]:
        """``∇ℓ_i`` of the examples ``rows`` of ``objective`` in these coordinates ``(q, k)``, and what lies
        outside of them: ``‖r_i‖² Σ x_ij²/μ_j`` over the columns unused by the Hessian's examples ``(k,)``.
        """
        x = objective.X.dense(rows).double()
        r, _ = accurate_terms(objective.loss, self.outputs(x), objective.targets[rows])
        inside = (r @ self.basis)[:, :, None] * x[:, None, self.columns]
        spare = x[:, ~self.active]
        outside = (r * r).sum(1) * torch.where(spare != 0, spare**2 / self.penalty[~self.active], 0.0).sum(1)
        return inside.reshape(len(rows), self.q).T.contiguous(), outside

    def tall(self) -> LeastSquares | None:
        """R of all q columns, by blocks of rows: about ``2 m q²`` operations."""
        if self.q**2 > LARGEST:
            return None
        R = self.shift.sqrt().diag()
        for block in self.blocks():
            R = torch.linalg.qr(torch.cat([block, R]), mode="r").R
        return LeastSquares(R, self.shift, contrasts=self.r)

    def wide(self) -> LeastSquares | None:
        """R in the span of Z's rows: ``2 m² q`` operations; None unless one μ > 0 serves all columns."""
        same = len(self.shift) and bool((self.shift == self.shift[0]).all()) and float(self.shift[0]) > 0
        if not same or self.m * self.q > LARGEST:
            return None
        Z = torch.cat(list(self.blocks()))
        Q, T = torch.linalg.qr(Z.T)
        start = self.shift[0].sqrt() * torch.eye(len(T), dtype=T.dtype, device=T.device)
        R = torch.linalg.qr(torch.cat([T.T, start]), mode="r").R
        return LeastSquares(R, self.shift, Q, T)

    def residual(self, factor: LeastSquares, B: Tensor) -> float:
        """Worst ``‖b − H x‖/‖b‖`` of the solutions x of ``factor``, H from its definition."""
        X = factor.solve(B)
        HX = self.shift[:, None] * X
        for Z in self.blocks():
            HX += Z.T @ (Z @ X)
        norms = B.norm(dim=0)
        return float(((B - HX).norm(dim=0) / torch.where(norms > 0, norms, 1.0)).max()) if B.shape[1] else 0.0


def accurate_terms(loss: Loss, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """``r (n, c)`` and L ``(n, c, c)`` with ``A = L Lᵀ``, each to full relative accuracy.

    For softmax ``1 − p_a`` is the sum of the other probabilities: as a difference it loses all digits of a
    confident prediction.
    """
    if not isinstance(loss, CrossEntropy):
        targets = targets.to(outputs.dtype)
        return loss.output_gradient(outputs, targets), loss.output_hessian_sqrt(outputs, targets)
    p = torch.softmax(outputs, dim=1)
    c = p.shape[1]
    others = (p[:, None, :] * (1 - torch.eye(c, dtype=p.dtype, device=p.device))).sum(2)  # 1 − p_a
    own = torch.nn.functional.one_hot(targets, c).bool()
    L = -p[:, :, None].expand(-1, -1, c).clone()
    L.diagonal(dim1=1, dim2=2).copy_(others)  # column a: e_a − p
    return torch.where(own, -others, p), L * p.sqrt()[:, None, :]
