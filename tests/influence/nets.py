"""Small networks and their dense float64 oracles, by autograd on the module itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from influence.objectives.module import Objective

SIDE = (9, 10)  # rows and columns differ, so that a swap shows


def smooth_conv() -> nn.Module:
    """Strided, padded and bias-free convolutions between tanh, then the paper's mean and linear layer."""
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(3, 4, 3, stride=2, bias=False),
        nn.Tanh(),
        nn.Conv2d(4, 5, 1),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 3),
    )


def pooled_conv() -> nn.Module:
    """Uneven strides and kernels, ReLU, mean-pooling that drops a row, flattening in torch's order."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 3, (2, 3), stride=(1, 2), padding=(0, 1)), nn.ReLU(), nn.Dropout(0.5)),
        nn.Conv2d(3, 4, 2),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 4, bias=False),
        nn.Tanh(),
        nn.Linear(4, 3),
    )


def dense_net() -> nn.Module:
    """Fully connected from flattened images."""
    return nn.Sequential(nn.Flatten(), nn.Linear(180, 5), nn.Tanh(), nn.Linear(5, 3))


NETS = {"smooth_conv": smooth_conv, "pooled_conv": pooled_conv, "dense_net": dense_net}


def net_data(n: int = 23, c: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """``(n, 2, 9, 10)`` inputs and labels with every class present."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(c, (n,), generator=g)
    y[:c] = torch.arange(c)
    return torch.randn(n, 2, *SIDE, generator=g, dtype=torch.float64), y


def make_net(name: str, seed: int = 0) -> nn.Module:
    """The net ``name`` in float64 and evaluation mode."""
    torch.manual_seed(seed)
    return NETS[name]().double().eval()


def block(objective: Objective, k: int, seed: int = 1, scale: float = 1.0) -> Tensor:
    """A random ``(p, k)``."""
    g = torch.Generator().manual_seed(seed)
    V = torch.randn(objective.p, k, generator=g, dtype=torch.float64) * scale
    return V.to(objective.dtype)


def losses_of(net: nn.Module, objective: Objective, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each example, written without the code under test."""
    outputs = torch.func.functional_call(net, objective.unflatten(theta), (x,))
    return nn.functional.cross_entropy(outputs, y, reduction="none")
