"""Solvers of ``(H + δI) X = B``: direct, conjugate gradients, LiSSA; preconditioners and approximations."""

from influence.solvers._base import Solution, Solver, Status
from influence.solvers.approximate import Approximate
from influence.solvers.cg import CG
from influence.solvers.exact import Exact
from influence.solvers.factors import ExactState
from influence.solvers.lissa import LiSSA
from influence.solvers.preconditioners import (
    EKFAC,
    KFAC,
    GaussNewtonFactor,
    Jacobi,
    Kronecker,
    Nystrom,
    Preconditioner,
    Subsample,
)

__all__ = [
    "CG",
    "EKFAC",
    "KFAC",
    "Approximate",
    "Exact",
    "ExactState",
    "GaussNewtonFactor",
    "Jacobi",
    "Kronecker",
    "LiSSA",
    "Nystrom",
    "Preconditioner",
    "Solution",
    "Solver",
    "Status",
    "Subsample",
]
