"""Fast exact curvature of feed-forward networks made of known layers."""

from influence.networks.sequential import SequentialObjective, network_objective

__all__ = ["SequentialObjective", "network_objective"]
