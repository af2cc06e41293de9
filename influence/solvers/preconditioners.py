"""Approximations of H⁻¹ that make CG converge in fewer iterations; the answer does not depend on them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from influence.curvature import Operator, base_of
from influence.errors import DataError

Preconditioner = Callable[[Tensor], Tensor]


def make_preconditioner(choice: str | Preconditioner | None, operator: Operator) -> Preconditioner | None:
    """The preconditioner called ``choice`` for ``operator``, or None for ``"none"``.

    Raises:
        DataError: an unknown name, or ``"kronecker"`` for an objective that is not linear.
    """
    if choice is None or choice == "none":
        return None
    if callable(choice):
        return choice
    if choice == "jacobi":
        diagonal = operator.diagonal()
        if not bool((diagonal > 0).all()):
            raise DataError("the Jacobi preconditioner needs a positive diagonal; raise damping")
        return lambda block: block / diagonal[:, None]
    if choice == "kronecker":
        base, damping = base_of(operator)
        objective = getattr(base, "objective", None)
        make = getattr(objective, "kronecker_at", None)
        if make is None:
            raise DataError(
                "the Kronecker preconditioner is for objectives that offer one (LinearObjective); use "
                "'none', 'jacobi' or a callable"
            )
        return make(base.theta, base.idx, damping)
    raise DataError(f"unknown preconditioner {choice!r}; known: none, jacobi, kronecker, or a callable")
