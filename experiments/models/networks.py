"""Networks of the experiments: the paper's all-tanh convolutional net, and a small one for 8x8 digits."""

from __future__ import annotations

import math

import torch
from torch import nn

from experiments.records.errors import ConfigError

# (kernel, channels, stride) of each convolution; all without padding, each followed by tanh.
SHAPES: dict[str, tuple[tuple[int, int, int], ...]] = {
    # Koh & Liang's net for MNIST: 28 -> 26 -> 12 -> 10 -> 4 -> 2 pixels per side; 2,616 parameters.
    "tanh_cnn": ((3, 8, 1), (3, 8, 2), (3, 8, 1), (3, 8, 2), (3, 8, 1), (1, 10, 1)),
    # The same idea on 8x8 digits: 8 -> 6 -> 2 pixels per side; 442 parameters.
    "tanh_cnn_small": ((3, 4, 1), (3, 6, 2), (1, 10, 1)),
}


def tanh_cnn(name: str, side: int, classes: int, generator: torch.Generator) -> nn.Sequential:
    """The net ``name`` for one-channel images of ``side`` pixels, in float64, freshly initialised.

    Convolutions with tanh, mean over the last map, one linear layer with bias. Weights are drawn from a
    normal of standard deviation 2/sqrt(k k c_in) (linear: 1/sqrt(c_in)) cut at two of them; biases are 0.

    Raises:
        ConfigError: an unknown name, or images too small for it.
    """
    if name not in SHAPES:
        raise ConfigError(f"model.name={name!r} is no network: choose {' or '.join(SHAPES)}.")
    layers: list[nn.Module] = []
    channels, size = 1, side
    for kernel, wide, stride in SHAPES[name]:
        layers += [nn.Conv2d(channels, wide, kernel, stride=stride, dtype=torch.float64), nn.Tanh()]
        channels, size = wide, (size - kernel) // stride + 1
        if size < 1:
            raise ConfigError(f"model.name={name!r} needs larger images than {side}x{side} pixels.")
    layers += [
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, classes, dtype=torch.float64),
    ]
    net = nn.Sequential(*layers)
    for layer in net:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan_in = layer.weight[0].numel()
            deviation = (2.0 if isinstance(layer, nn.Conv2d) else 1.0) / math.sqrt(fan_in)
            nn.init.trunc_normal_(
                layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation, generator=generator
            )
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return net


def images(pixels: torch.Tensor) -> torch.Tensor:
    """``(n, side*side)`` or ``(n, side, side)`` pixels as ``(n, 1, side, side)``."""
    side = math.isqrt(pixels[0].numel())
    return pixels.reshape(len(pixels), 1, side, side)
