"""Curvature as operators: Hessian, Gauss-Newton, damping, spectrum."""

from influence.curvature.operators import Damped, Dense, GaussNewton, Hessian, Operator
from influence.curvature.spectrum import EigenReport, auto_damping, damped, eigenvalue_report

__all__ = [
    "Damped",
    "Dense",
    "EigenReport",
    "GaussNewton",
    "Hessian",
    "Operator",
    "auto_damping",
    "damped",
    "eigenvalue_report",
]
