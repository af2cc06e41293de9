"""Fast exact curvature of feed-forward networks made of known layers."""

from influence.networks.dense import gauss_newton_matrix, gauss_newton_preconditioner
from influence.networks.newton import newton
from influence.networks.sequential import SequentialObjective, network_objective

__all__ = [
    "SequentialObjective",
    "gauss_newton_matrix",
    "gauss_newton_preconditioner",
    "network_objective",
    "newton",
]
