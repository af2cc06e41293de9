"""A fitted logistic regression with its training and test data, for the bridges' tests."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import TensorDataset

from influence import Influence
from tests.influence.own import D

L2 = 0.05


def trained(
    n: int, tests: int, noise: float = 0.0, seed: int = 0, flipped: int = 0
) -> tuple[nn.Module, TensorDataset, TensorDataset]:
    """``n`` training and ``tests`` test points of two classes; the first ``flipped`` labels are wrong."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n + tests, 4, generator=generator, dtype=D)
    y = (x[:, 0] + noise * torch.randn(n + tests, generator=generator, dtype=D) > 0).long()
    y[:flipped] = 1 - y[:flipped]
    model = nn.Linear(4, 2).double()
    influence = Influence(model, "cross_entropy", (x[:n], y[:n]), L2).fitted()
    with torch.no_grad():
        nn.utils.vector_to_parameters(influence.theta, model.parameters())
    return model, TensorDataset(x[:n], y[:n]), TensorDataset(x[n:], y[n:])
