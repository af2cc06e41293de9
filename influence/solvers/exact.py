"""Direct solves by one Cholesky factor, reused for every right-hand side.

Three forms, the cheapest that fits: the dense core of a linear model (``H = E C Eᵀ + μI``), the n × n Gram
matrix when there are more parameters than examples (Woodbury), or the dense p × p matrix.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from influence.curvature.operators import Operator
from influence.errors import DataError, NotPositiveDefiniteError, SolverError
from influence.solvers._base import Solution, Solver, Status
from influence.solvers.factors import CoreFactor, DenseFactor, ExactState, GramForm


@dataclass(frozen=True)
class Exact(Solver):
    """Cholesky in the operator's dtype (float64 unless the objective says otherwise).

    Args:
        form: ``"auto"`` picks the cheapest of ``"core"``, ``"gram"``, ``"dense"``.
        tolerance: the verified relative residual above which the status is ``INACCURATE``; by default 1e-6 in
            float64 and 1e-3 in float32, whose residual is about 1e-7 times the condition number.
        verify: check the residual of every solve with one operator product.
        raise_on_failure: raise on failure, or return the status with a warning.

    Raises (on ``prepare``):
        NotPositiveDefiniteError: with the smallest eigenvalue where p allows, and the damping that would do.

    >>> import torch
    >>> from influence import Dense
    >>> operator = Dense(torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64)))
    >>> solution = Exact().solve(operator, torch.ones(2, 1, dtype=torch.float64))
    >>> solution.value.T, solution.status.name
    (tensor([[1.0000, 0.2500]], dtype=torch.float64), 'CONVERGED')
    """

    form: str = "auto"
    tolerance: float | None = None
    verify: bool = True

    def __post_init__(self) -> None:
        if self.form not in ("auto", "core", "gram", "dense"):
            raise DataError(f"Exact form must be 'auto', 'core', 'gram' or 'dense', got {self.form!r}")
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise DataError(f"Exact tolerance must lie in (0, 1) or be None, got {self.tolerance}")

    def prepare(self, operator: Operator) -> ExactState:
        split = operator.split() if self.form in ("auto", "core") else None
        gram = operator.gram() if self.form in ("auto", "gram") else None
        if gram is not None and gram.shift > 0 and (self.form == "gram" or split is None or gram.m < split.q):
            _refuse_beyond_memory(gram.m, operator.dtype, operator.device, "the Gram form")
            matrix = gram.gram()
            matrix.diagonal().add_(gram.n * gram.shift)
            return GramForm(operator, self._factor(matrix, operator), gram)
        if split is not None:
            if split.shift <= 0 and split.q < split.p:
                raise NotPositiveDefiniteError(
                    f"the Hessian is singular: {split.p - split.q} of {split.p} directions (unused inputs or "
                    "a shift common to all classes) have no curvature; set l2 or damping above 0"
                )
            _refuse_beyond_memory(split.q, operator.dtype, operator.device, "the core of the linear model")
            core = split.core()
            core.diagonal().add_(split.shift)
            return CoreFactor(operator, self._factor(core, operator), split)
        _refuse_beyond_memory(
            operator.shape[0], operator.dtype, operator.device, f"{operator.shape[0]} parameters"
        )
        return DenseFactor(operator, self._factor(operator.dense(), operator))

    def _factor(self, matrix: Tensor, operator: Operator) -> Tensor:
        if matrix.numel() == 0:  # every feature is zero everywhere: H = μI has no core
            return matrix
        factor, info = torch.linalg.cholesky_ex(matrix)
        pivot = int(info)
        diagonal = factor.diagonal()
        # A pivot at the level of rounding of its own diagonal entry means singular: the solve would return
        # noise. Beside its own entry, since features may have any scale.
        left = diagonal**2 / matrix.diagonal().abs().clamp(min=torch.finfo(matrix.dtype).tiny)
        if pivot == 0 and bool(left.min() <= matrix.shape[0] * torch.finfo(matrix.dtype).eps):
            pivot = int(left.argmin()) + 1
        if pivot == 0 and bool(torch.isfinite(diagonal).all()):
            result: Tensor = factor
            return result
        stats: dict[str, Any] = {"pivot": pivot, "spectrum": "spectrum not computed", "needed_damping": "0"}
        if matrix.shape[0] <= 4000 and bool(torch.isfinite(matrix).all()):
            values = torch.linalg.eigvalsh(matrix)
            gram = operator.gram() if matrix.shape[0] != operator.shape[0] and self.form == "gram" else None
            scale = 1 if gram is None else gram.n
            smallest, negative = float(values[0]) / scale, int((values < 0).sum())
            stats["spectrum"] = f"smallest eigenvalue {smallest:.3g}, {negative} negative"
            stats["needed_damping"] = max(-smallest, float(values[-1]) * 1e-12)
        raise NotPositiveDefiniteError(f"Exact: {Status.NOT_POSITIVE_DEFINITE.advice(stats)}")

    def _solve(self, state: ExactState, B: Tensor) -> Solution:
        tolerance = default_tolerance(B.dtype) if self.tolerance is None else self.tolerance
        stats: dict[str, Any] = {
            "form": state.form,
            "rows": state.factor.shape[0],
            "tolerance": tolerance,
            "precision": str(B.dtype).removeprefix("torch."),
        }
        if not self.verify:
            residual = torch.zeros(B.shape[1], dtype=B.dtype, device=B.device)
            return Solution(state.inverse(B), Status.CONVERGED, 0, residual, stats)
        X, residual = state.refined(B, tolerance)
        stats["worst_residual"] = float(residual.max()) if residual.numel() else 0.0
        status = Status.CONVERGED if stats["worst_residual"] <= tolerance else Status.INACCURATE
        return Solution(X, status, 0, residual, stats)


def default_tolerance(dtype: torch.dtype) -> float:
    """Of direct solves: 1e-6 in float64, 1e-3 in float32."""
    return 1e-6 if dtype == torch.float64 else 1e-3


def _refuse_beyond_memory(rows: int, dtype: torch.dtype, device: torch.device, what: str) -> None:
    """Refuse a matrix that cannot fit beside its factor.

    Raises:
        SolverError: with both sizes, and with what would fit.
    """
    needed = 2 * rows**2 * torch.finfo(dtype).bits // 8
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory
    else:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise SolverError(
            f"Exact: the {rows} x {rows} matrix of {what} and its factor take {needed / 2**30:,.0f} GiB and "
            f"this machine has {there / 2**30:,.0f}: use CG(), with preconditioner='ekfac' for a network"
        )
