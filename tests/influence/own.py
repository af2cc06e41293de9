"""A small net of one's own: its data, our answer, and the same by hand."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from influence import Influence
from tests.influence.oracles import by_double_backward

N, TEST, L2, DAMPING, D = 16, 3, 0.05, 2.0, torch.float64
G = torch.Generator().manual_seed(0)
X = torch.randn(N + TEST, 4, generator=G, dtype=D)
Y = torch.arange(N + TEST) % 3
R = torch.randn(N + TEST, generator=G, dtype=D)
TRAIN, TESTS = slice(0, N), slice(N, N + TEST)


def net(outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, outputs)).double()


def ours(
    model: Any, loss: Any = "cross_entropy", train: Any = None, test: Any = None, **settings: Any
) -> Tensor:
    train = (X[TRAIN], Y[TRAIN]) if train is None else train
    test = (X[TESTS], Y[TESTS]) if test is None else test
    influence = Influence(model, loss, train, L2, damping=DAMPING, curvature="hessian", **settings)
    changes = influence.influence_on(test, correction="first_order").changes
    assert changes is not None
    return changes


def by_hand(model: nn.Module, loss: Any = None, x: Tensor = X, y: Tensor = Y) -> Tensor:
    """Changes by removal ``(N, TEST)`` from double backward and a dense solve, without the library."""
    model = copy.deepcopy(model)
    each_loss = loss or (lambda o, t: F.cross_entropy(o, t, reduction="none"))

    def losses(rows: slice) -> Tensor:
        return each_loss(model(x[rows].clone()), y[rows])

    H, each = by_double_backward(model, losses, N, N + TEST, L2)
    theta = torch.cat([w.detach().reshape(-1) for w in model.parameters() if w.requires_grad])
    s = torch.linalg.solve(H + DAMPING * torch.eye(len(H), dtype=D), each[TESTS].T)
    return (each[TRAIN] + L2 * theta) @ s / (N - 1)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)
