"""Networks of middle size for the benchmark: a multilayer perceptron and a residual net for small images."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from experiments.models.networks import SHAPES, tanh_cnn
from experiments.records.errors import ConfigError

# Hidden units of each perceptron.
PERCEPTRONS: dict[str, tuple[int, ...]] = {"mlp": (512, 256), "mlp_small": (16, 12)}
# Channels of each stage of two (small: one) residual blocks; all but the first halve the sides.
RESIDUAL: dict[str, tuple[tuple[int, ...], int]] = {
    "resnet18": ((64, 128, 256, 512), 2),  # He et al. (2016) in its form for 32x32 images: 11.2 million
    "resnet_small": ((4, 6), 1),
}


class Block(nn.Module):
    """``relu(x + conv(relu(conv(x))))`` with batch norms, and a 1x1 convolution where the shape changes."""

    def __init__(self, narrow: int, wide: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(narrow, wide, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(wide)
        same = stride == 1 and narrow == wide
        short = (nn.Conv2d(narrow, wide, 1, stride, bias=False), nn.BatchNorm2d(wide))
        self.short = nn.Identity() if same else nn.Sequential(*short)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, c, h, w) -> (n, c', h/s, w/s)``."""
        inner = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(inner + self.short(x))


class ResidualNet(nn.Module):
    """A convolution, stages of residual blocks, the mean over places, a linear layer."""

    def __init__(self, channels: tuple[int, ...], blocks: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, channels[0], 3, padding=1, bias=False), nn.BatchNorm2d(channels[0]), nn.ReLU()
        )
        found, narrow = [], channels[0]
        for number, wide in enumerate(channels):
            for repeat in range(blocks):
                found.append(Block(narrow, wide, 2 if number and not repeat else 1))
                narrow = wide
        self.blocks = nn.Sequential(*found)
        self.head = nn.Linear(narrow, classes)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, 1, side, side) -> (n, classes)``."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def network(name: str, side: int, classes: int, generator: torch.Generator) -> nn.Module:
    """The benchmark's network ``name`` for one-channel images of ``side`` pixels, freshly initialised.

    Raises:
        ConfigError: an unknown name.
    """
    if name in SHAPES:
        return tanh_cnn(name, side, classes, generator)
    seed = int(torch.randint(2**31, (1,), generator=generator))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if name in PERCEPTRONS:
            sizes = (side * side, *PERCEPTRONS[name], classes)
            layers: list[nn.Module] = [nn.Flatten()]
            for number, (narrow, wide) in enumerate(pairwise(sizes)):
                layers += [nn.ReLU()] if number else []
                layers.append(nn.Linear(narrow, wide))
            return nn.Sequential(*layers).eval()
        if name in RESIDUAL:
            return ResidualNet(*RESIDUAL[name], classes).eval()
    known = " or ".join([*SHAPES, *PERCEPTRONS, *RESIDUAL])
    raise ConfigError(f"network {name!r} is unknown: choose {known}.")


def only_last_block(model: nn.Module) -> nn.Module:
    """The model with all but its last residual block and its head held fixed."""
    assert isinstance(model, ResidualNet)
    model.requires_grad_(False)
    model.blocks[-1].requires_grad_(True)
    model.head.requires_grad_(True)
    return model
