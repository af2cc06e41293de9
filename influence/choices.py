"""What the front door chooses, by size and by what it finds at θ, with a reason for each choice."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from influence.checks import checked_number
from influence.curvature.operators import Damped, GaussNewton, Hessian, Operator
from influence.curvature.spectrum import eigenvalue_report, lanczos_extremes
from influence.errors import DataError, NotPositiveDefiniteError
from influence.objectives._base import TrainingObjective
from influence.solvers import CG, Exact, Solver

DENSE_BELOW = 3000  # unknowns: up to here a dense factor costs seconds, and the whole spectrum can be seen
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-5}
_RELATIVE_DAMPING = 1e-4  # of the largest eigenvalue, if nothing smaller is known to be enough
_TINY_DAMPING = 1e-10  # of it, if a float64 factor is made: only directions without curvature notice
CURVATURES = ("auto", "hessian", "gauss_newton")
SOLVERS = ("auto", "exact", "cg")


@dataclass(frozen=True)
class Plan:
    """The curvature, damping and solver of all solves, each with its reason.

    Attributes:
        operator: the damped curvature at θ.
        solver: how its systems are solved.
        curvature, damping: names for a reader: ``"Hessian"`` or ``"Gauss-Newton"``, and δ.
        factored: whether one factor serves every solve, so that leverage correction costs little more.
        reasons: one sentence each.
    """

    operator: Operator
    solver: Solver
    curvature: str
    damping: float
    factored: bool
    reasons: tuple[str, ...]


def make_plan(
    objective: TrainingObjective,
    theta: Tensor,
    curvature: str = "auto",
    damping: float | str = "auto",
    solver: str | Solver = "auto",
) -> Plan:
    """Chooses what is ``"auto"`` and keeps what is given.

    Raises:
        DataError: an unknown name, or a damping that is not a number >= 0.
        NotPositiveDefiniteError: the curvature asked for is indefinite and the damping given is too small.
    """
    theta = objective.vector(theta)
    if curvature not in CURVATURES:
        raise DataError(f"curvature must be one of {', '.join(CURVATURES)}, got {curvature!r}")
    if isinstance(damping, str) and damping != "auto":
        raise DataError(f"damping must be a number >= 0 or 'auto', got {damping!r}")
    if not isinstance(damping, str):
        checked_number("damping", damping, least=0.0)
    unknowns = _unknowns(objective, theta)
    direct = isinstance(solver, Exact) or solver == "exact" or (solver == "auto" and unknowns <= DENSE_BELOW)
    base, name, delta, reasons = _curvature(objective, theta, unknowns, curvature, damping, direct)
    operator = Damped(base, delta) if delta else base
    chosen, factored, why = _solver(objective, unknowns, solver)
    return Plan(operator, chosen, name, delta, factored, (*reasons, why))


def _unknowns(objective: TrainingObjective, theta: Tensor) -> int:
    """Rows of the smallest matrix that a direct solver would factor."""
    split, gram = objective.split_at(theta), objective.gram_at(theta)
    sizes = [objective.p]
    if split is not None:
        sizes.append(split.q)
    if gram is not None:
        sizes.append(gram.m)
    return min(sizes)


def _curvature(
    objective: TrainingObjective,
    theta: Tensor,
    unknowns: int,
    curvature: str,
    damping: float | str,
    direct: bool,
) -> tuple[Operator, str, float, list[str]]:
    """The undamped operator, its name, δ, and why."""
    given = None if isinstance(damping, str) else float(damping)
    if objective.linear_outputs and curvature == "auto" and objective.loss.convex:
        reason = "the Hessian is exact and positive semi-definite, because the outputs are linear in theta"
        return _convex(objective, theta, given, reason, direct)
    if curvature == "gauss_newton" or (curvature == "auto" and unknowns > DENSE_BELOW):
        why = "it was asked for" if curvature == "gauss_newton" else (
            f"with {objective.p:,} parameters the Hessian's smallest eigenvalue cannot be seen, and the "
            "Gauss-Newton matrix is never indefinite"
        )  # fmt: skip
        operator = GaussNewton(objective, theta)
        delta, more = (given, "damping as given") if given is not None else _relative(operator)
        return operator, "Gauss-Newton", delta, [f"Gauss-Newton matrix: {why}", more]
    hessian = Hessian(objective, theta)
    if given is not None:
        return hessian, "Hessian", given, ["Hessian", "damping as given"]
    report = eigenvalue_report(hessian)
    if report.advised_damping:
        return hessian, "Hessian", report.advised_damping, [
            f"Hessian, whose smallest eigenvalue at theta is {report.smallest:.3g}",
            f"damping {report.advised_damping:.3g} makes it positive definite; theta is then the minimum of "
            "a damped quadratic model, not of the objective",
        ]  # fmt: skip
    return hessian, "Hessian", 0.0, [
        f"Hessian: it is positive definite at theta (smallest eigenvalue {report.smallest:.3g})",
        "no damping",
    ]  # fmt: skip


def _convex(
    objective: TrainingObjective, theta: Tensor, given: float | None, reason: str, direct: bool
) -> tuple[Operator, str, float, list[str]]:
    operator = Hessian(objective, theta)
    if given is not None:
        return operator, "Hessian", given, [f"Hessian: {reason}", "damping as given"]
    if objective.l2 > 0:
        return operator, "Hessian", 0.0, [f"Hessian: {reason}", "no damping: l2 keeps it positive definite"]
    if direct and objective.dtype == torch.float64:
        largest = lanczos_extremes(operator, 15)[1]
        delta = _TINY_DAMPING * largest
        why = (
            f"damping {delta:.3g}, 1e-10 of the largest eigenvalue, because l2 is 0: only directions without "
            "curvature notice"
        )
        return operator, "Hessian", delta, [f"Hessian: {reason}", why]
    delta, more = _relative(operator)
    return operator, "Hessian", delta, [f"Hessian: {reason}", f"{more}, because l2 is 0"]


def _relative(operator: Operator) -> tuple[float, str]:
    largest = lanczos_extremes(operator, 15)[1]
    delta = _RELATIVE_DAMPING * largest
    return delta, f"damping {delta:.3g}, a ten-thousandth of the largest eigenvalue ({largest:.3g})"


def _solver(objective: TrainingObjective, unknowns: int, solver: str | Solver) -> tuple[Solver, bool, str]:
    if isinstance(solver, Solver):
        return solver, isinstance(solver, Exact), f"{type(solver).__name__} as given"
    if solver not in SOLVERS:
        raise DataError(f"solver must be one of {', '.join(SOLVERS)} or a Solver, got {solver!r}")
    cg = CG(
        tolerance=_TOLERANCE.get(objective.dtype, 1e-5),
        max_iterations=5000,
        preconditioner="kronecker" if objective.linear_outputs else "none",
    )
    if solver == "cg":
        return cg, False, "conjugate gradients as asked for"
    if solver == "exact" or unknowns <= DENSE_BELOW:
        return Exact(), True, f"one Cholesky factor of {unknowns:,} unknowns serves every solve"
    return cg, False, f"conjugate gradients to a residual of {cg.tolerance:g}: {unknowns:,} unknowns are many"


def prepared(plan: Plan) -> object:
    """The solver's state for the operator of ``plan``.

    Raises:
        NotPositiveDefiniteError: the damping given is too small; the message names what would do.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        try:
            return plan.solver.prepare(plan.operator)
        except NotPositiveDefiniteError as error:
            raise NotPositiveDefiniteError(f"{error}; or pass damping='auto'") from None
