"""Conjugate gradients on a block of right-hand sides (Hestenes & Stiefel, 1952; paper, section 3).

CG minimises ``½ tᵀHt − bᵀt`` for every column b of the block. The columns run their own recurrences but share
each Hessian product, and a column leaves the block when it has converged. The residual in the answer is
recomputed from the definition, not taken from the recurrence.

Negative curvature: a direction d with ``dᵀHd ≤ 0`` ends that column. Its last iterate before d is returned
with status ``NEGATIVE_CURVATURE`` and with the damping above which this direction has positive curvature, so
the answer is that of the subspace on which H was positive definite and is never silently taken for H⁻¹b.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from influence.curvature.operators import Operator
from influence.errors import DataError
from influence.solvers._base import Solution, Solver, Status, relative_residual
from influence.solvers.preconditioners import (
    Inverse,
    Preconditioner,
    Product,
    make_preconditioner,
    named,
)

_RESTARTS = 3  # from the true residual, when rounding made the recurrence drift from it


@dataclass(frozen=True)
class CGState:
    """An operator with its preconditioner and what a record calls that."""

    operator: Operator
    preconditioner: Inverse | None
    named: str


@dataclass(frozen=True)
class CG(Solver):
    """Settings of conjugate gradients.

    Args:
        tolerance: relative residual ``‖b − Hx‖/‖b‖`` at which a column stops.
        max_iterations: per column; by default ``min(10 p, 1000)``, enough for every experiment here.
        preconditioner: one of :mod:`.preconditioners` or its name: ``"none"``, ``"jacobi"``, ``"kronecker"``
            (linear models: ``XᵀX/n ⊗ mean A_i``), ``"subsample"`` (linear models: H of some thousand
            examples, the fewest products for large n), ``"gauss_newton"`` (networks of some thousand
            parameters), ``"kfac"`` and ``"ekfac"`` (any network), ``"nystrom"`` (any operator); or a callable
            ``(p, k) -> (p, k)`` that applies an approximation of H⁻¹. One that ``varies`` from call to call
            makes CG the flexible one (Notay, 2000).
        raise_on_failure: raise on failure, or return the status with a warning.

    >>> import torch
    >>> from influence import Dense
    >>> operator = Dense(torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64)))
    >>> solution = CG(tolerance=1e-12).solve(operator, torch.ones(2, 1, dtype=torch.float64))
    >>> solution.value.T, solution.status.name
    (tensor([[1.0000, 0.2500]], dtype=torch.float64), 'CONVERGED')
    """

    tolerance: float = 1e-10
    max_iterations: int | None = None
    preconditioner: str | Preconditioner | Product = "none"

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise DataError(f"CG tolerance must lie in (0, 1), got {self.tolerance}")
        if self.max_iterations is not None and self.max_iterations < 1:
            raise DataError(f"CG max_iterations must be at least 1, got {self.max_iterations}")
        if isinstance(self.preconditioner, str):
            named(self.preconditioner)  # refuses an unknown one now, not after the training

    def prepare(self, operator: Operator) -> CGState:
        return CGState(operator, *make_preconditioner(self.preconditioner, operator))

    def _solve(self, state: CGState, B: Tensor) -> Solution:
        operator, preconditioner = state.operator, state.preconditioner
        limit = self.max_iterations or min(10 * operator.shape[0], 1000)
        X, counts = torch.zeros_like(B), torch.zeros(B.shape[1], dtype=torch.long)
        curvature: float | None = None
        negative = torch.zeros(B.shape[1], dtype=torch.bool)
        residual = torch.where(B.norm(dim=0) > 0, 1.0, 0.0).to(B.dtype)
        for _ in range(_RESTARTS):
            open_ = ((residual > self.tolerance).cpu() & ~negative & (counts < limit)).nonzero()[:, 0]
            if not len(open_):
                break
            R = B[:, open_] - operator @ X[:, open_] if bool(counts.any()) else B[:, open_].clone()
            norms = B[:, open_].norm(dim=0)
            run = _Run(operator, preconditioner, R, self.tolerance * norms, limit - counts[open_])
            X[:, open_] += run.result
            counts[open_] += run.counts
            negative[open_] |= run.negative
            if run.lowest_curvature is not None:
                curvature = min(curvature or 0.0, run.lowest_curvature)
            before = residual[open_]
            residual[open_] = relative_residual(operator, X[:, open_], B[:, open_])
            if bool((residual[open_] > 0.5 * before).all()):
                break  # rounding, not iterations, is what stands in the way
        return self._report(X, residual, counts, negative, curvature, limit, state.named)

    def _report(
        self,
        X: Tensor,
        residual: Tensor,
        counts: Tensor,
        negative: Tensor,
        curvature: float | None,
        limit: int,
        named: str,
    ) -> Solution:
        worst = float(residual.max()) if residual.numel() else 0.0
        iterations = int(counts.max()) if counts.numel() else 0
        stats: dict[str, Any] = {
            "iterations": iterations,
            "iterations_per_column": counts.tolist(),
            "worst_residual": worst,
            "tolerance": self.tolerance,
            "preconditioner": named,
            "precision": str(X.dtype).removeprefix("torch."),
        }
        if bool(negative.any()):
            status = Status.NEGATIVE_CURVATURE
            stats |= {"curvature": curvature, "needed_damping": abs(curvature or 0.0)}
        elif worst <= self.tolerance:
            status = Status.CONVERGED
        elif bool((counts >= limit).any()):
            status = Status.MAX_ITERATIONS
        else:
            status = Status.INACCURATE
        return Solution(X, status, iterations, residual, stats)


class _Run:
    """One CG run from zero on residuals R until each column's norm is below ``goal``."""

    def __init__(
        self,
        operator: Operator,
        preconditioner: Inverse | None,
        R: Tensor,
        goal: Tensor,
        limit: Tensor,
    ) -> None:
        k = R.shape[1]
        self.result = torch.zeros_like(R)
        self.counts = torch.zeros(k, dtype=torch.long)
        self.negative = torch.zeros(k, dtype=torch.bool)
        self.lowest_curvature: float | None = None
        precondition = preconditioner or Inverse(lambda block: block)
        varies = precondition.varies
        live = torch.arange(k)
        X, Z = torch.zeros_like(R), precondition(R)
        P, rz = Z.clone(), (R * Z).sum(0)
        for step in range(1, int(limit.max()) + 1 if k else 1):
            HP = operator @ P
            curvature, square = (P * HP).sum(0), (P * P).sum(0)
            bad = ~(curvature > 1e-15 * square)  # NaN counts as bad
            alpha = torch.where(bad, torch.zeros_like(rz), rz / curvature)
            X += alpha * P
            before, R = R, R - alpha * HP
            self.counts[live] = step
            if bool(bad.any()):
                rayleigh = float((curvature / square)[bad].min())
                self.lowest_curvature = min(rayleigh, self.lowest_curvature or 0.0)
                self.negative[live[bad.cpu()]] = True
            done = (R.norm(dim=0) <= goal) | bad | (limit.to(R.device) <= step)
            if bool(done.any()):
                self.result[:, live[done.cpu()]] = X[:, done]
                keep = ~done
                if not bool(keep.any()):
                    return
                live, goal, limit = live[keep.cpu()], goal[keep], limit[keep.cpu()]
                X, R, P, rz, before = X[:, keep], R[:, keep], P[:, keep], rz[keep], before[:, keep]
            Z = precondition(R)
            rz_next = (R * Z).sum(0)
            beta = ((R - before) * Z).sum(0) / rz if varies else rz_next / rz
            P, rz = Z + beta * P, rz_next
        self.result[:, live] = X
