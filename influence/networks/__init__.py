"""Fast exact curvature of feed-forward networks made of known layers."""

from influence.networks.adam import AdamState, adam
from influence.networks.dense import gauss_newton_matrix, gauss_newton_preconditioner
from influence.networks.sequential import SequentialObjective, network_objective

__all__ = [
    "AdamState",
    "SequentialObjective",
    "adam",
    "gauss_newton_matrix",
    "gauss_newton_preconditioner",
    "network_objective",
]
