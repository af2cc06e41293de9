"""Approximations of H⁻¹ that make CG converge in fewer iterations; the answer does not depend on them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from influence.curvature.operators import ExampleOperator, Operator, base_of
from influence.errors import DataError

Preconditioner = Callable[[Tensor], Tensor]
OF_OBJECTIVE = ("kronecker", "subsample")


def make_preconditioner(choice: str | Preconditioner | None, operator: Operator) -> Preconditioner | None:
    """The preconditioner called ``choice`` for ``operator``, or None for ``"none"``.

    Raises:
        DataError: an unknown name, or one that the objective does not offer: ``"kronecker"`` is for linear
            ones, ``"subsample"`` for linear ones that are not spread over processes or streamed.
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
    if choice in OF_OBJECTIVE:
        base, damping = base_of(operator)
        made = None
        if isinstance(base, ExampleOperator):
            at = base.objective.kronecker_at if choice == "kronecker" else base.objective.subsampled_at
            made = at(base.theta, base.idx, damping)
        if made is None:
            raise DataError(
                f"the preconditioner {choice!r} is for objectives that offer one (LinearObjective"
                f"{', whole' if choice == 'subsample' else ''}); use 'none', 'jacobi' or a callable"
            )
        return made
    known = ", ".join(["none", "jacobi", *OF_OBJECTIVE])
    raise DataError(f"unknown preconditioner {choice!r}; known: {known}, or a callable")
