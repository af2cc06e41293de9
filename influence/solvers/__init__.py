"""Solvers of ``(H + δI) X = B``: direct, conjugate gradients, LiSSA."""

from influence.solvers._base import Solution, Solver, Status
from influence.solvers.cg import CG
from influence.solvers.exact import Exact
from influence.solvers.factors import ExactState
from influence.solvers.lissa import LiSSA

__all__ = ["CG", "Exact", "ExactState", "LiSSA", "Solution", "Solver", "Status"]
