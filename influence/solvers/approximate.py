"""An approximate inverse used by itself, and labelled as such."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from influence.curvature.operators import Operator
from influence.errors import DataError
from influence.solvers._base import Solution, Solver, Status, relative_residual
from influence.solvers.cg import CGState
from influence.solvers.preconditioners import Preconditioner, make_preconditioner


@dataclass(frozen=True)
class Approximate(Solver):
    """``X = M⁻¹ B`` with the approximation M of H that a preconditioner makes, such as EK-FAC's.

    The status is always ``APPROXIMATE``, never ``CONVERGED``. The residual ``‖B − H X‖/‖B‖`` is verified with
    H itself: it says how far X is from the solution that :class:`~.cg.CG` with the same preconditioner gives.

    Args:
        preconditioner: one of :mod:`.preconditioners`, or its name.
    """

    preconditioner: str | Preconditioner = "ekfac"

    def prepare(self, operator: Operator) -> CGState:
        made, name = make_preconditioner(self.preconditioner, operator)
        if made is None:
            raise DataError("Approximate needs a preconditioner, such as 'ekfac' or 'nystrom'; got 'none'")
        return CGState(operator, made, name)

    def _solve(self, state: CGState, B: Tensor) -> Solution:
        assert state.preconditioner is not None
        X = state.preconditioner(B)
        residual = relative_residual(state.operator, X, B)
        worst = float(residual.max()) if residual.numel() else 0.0
        stats: dict[str, Any] = {"preconditioner": state.named, "worst_residual": worst}
        return Solution(X, Status.APPROXIMATE, 0, residual, stats)
