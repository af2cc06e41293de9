"""Frozen networks whose pooled features feed a linear model; the only module that imports torchvision.

Every backbone takes images in 8-bit units (0…255, not necessarily whole numbers), resizes them where needed,
scales them and returns the features below the removed top layer. Batch norm is folded into the convolution
before it (in float64), which in evaluation mode is the same function and a quarter faster.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.data.fetch import Source, mirror_folder, obtain
from experiments.errors import ConfigError, UserError

MOBILENET = Source(
    "weights/mobilenet_v2_imagenet.pth",
    ("the TF2 model tf2_mobilenet_v2_1.0_224_ptq",),
    ("698234157e1b9c755857397f08fa27191a28e47dea393404dd13cbc90655f26f",),
    64 << 20,
)
# Mean and deviation, in [0, 1], of the input that torchvision's own MobileNetV2 weights were trained on.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SYMMETRIC = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # RGB in [-1, 1]
SMALLEST = {"inception_v3": 75, "mobilenet_v2": 32, "random_conv": 8}
LABELS = {"inception_v3": "Inception v3", "mobilenet_v2": "MobileNetV2", "random_conv": "random conv net"}


@dataclass
class Backbone:
    """A frozen network in evaluation mode.

    network: (b, 3, size, size) scaled -> (b, n_features). mean, deviation: of a channel, in [0, 1].
    origin: where the weights come from. fingerprint: sha256 over weights, size and scaling.
    """

    name: str
    network: nn.Module
    size: int
    n_features: int
    batch: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    origin: str
    fingerprint: str = ""

    def __post_init__(self) -> None:
        self.network.eval().requires_grad_(False)
        first = next(self.network.parameters())
        self.dtype, self.device = first.dtype, first.device
        digest = hashlib.sha256(repr((self.name, self.size, self.mean, self.deviation)).encode())
        for key, value in self.network.state_dict().items():
            digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        self.fingerprint = digest.hexdigest()

    @property
    def precision(self) -> str:
        """The dtype of the network's numbers, as numpy calls it."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def label(self) -> str:
        """The network's name as figures print it."""
        return LABELS[self.name]

    def images(self, pixels: Any) -> Tensor:
        """uint8 (b, height, width, 3) -> (b, 3, size, size) in 8-bit units, bilinear, rounded to 8 bits.

        What is rounded here is the stored image that an attack may not change.
        """
        x = torch.as_tensor(pixels, device=self.device).permute(0, 3, 1, 2).to(self.dtype)
        if x.shape[2:] != (self.size, self.size):
            shrinks = self.size < min(x.shape[2:])
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=shrinks).round()
        return x.contiguous(memory_format=torch.channels_last)

    def __call__(self, x: Tensor) -> Tensor:
        """Features (b, n_features) of images (b, 3, size, size) in 8-bit units; differentiable in x."""
        mean = x.new_tensor(self.mean).view(1, 3, 1, 1)
        deviation = x.new_tensor(self.deviation).view(1, 3, 1, 1)
        return self.network((x / 255 - mean) / deviation)

    def vjp(self, x: Tensor, cotangent: Tensor) -> Tensor:
        """∇_x of Σ cotangent·features(x), one vector-Jacobian product: (b, 3, size, size)."""
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            features = self(x)
        return torch.autograd.grad(features, x, cotangent.to(features))[0]


def fold_batch_norm(module: nn.Module) -> nn.Module:
    """Folds each batch norm that directly follows a convolution into it, in place; evaluation mode only."""
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    children = list(module.named_children())
    for (name, child), (following, after) in itertools.pairwise(children):
        if isinstance(child, nn.Conv2d) and isinstance(after, nn.BatchNorm2d):
            setattr(module, name, fuse_conv_bn_eval(child, after))
            setattr(module, following, nn.Identity())
    for _, child in children:
        fold_batch_norm(child)
    return module


def load(
    name: str,
    *,
    weights: str | None = None,
    size: int,
    batch: int = 4,
    mirror: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Backbone:
    """The backbone ``name``: inception_v3, mobilenet_v2 or random_conv.

    weights: a state dict saved by torchvision; null: the mirror's file (MobileNetV2), else torchvision's
    download. ConfigError: unknown name, size too small. UserError: weights that are missing or do not fit.
    """
    if name not in SMALLEST:
        raise ConfigError(f"backbone.name={name!r} is unknown; choose {', '.join(SMALLEST)}.")
    if size < SMALLEST[name] or batch < 1:
        raise ConfigError(
            f"backbone.size={size}, batch={batch}: {name} needs a size of at least {SMALLEST[name]} and a "
            "batch of at least 1."
        )
    mean, deviation = SYMMETRIC
    if name == "random_conv":
        network, n_features, origin = random_conv(seed), 512, f"random, seed {seed}"
    else:
        network, n_features = unloaded(name)
        state, origin, symmetric = state_of(name, weights, mirror)
        check_state(network, state, origin)
        network.load_state_dict(state)
        mean, deviation = SYMMETRIC if symmetric or name == "inception_v3" else IMAGENET
        network = headless(name, network)
    network = fold_batch_norm(network.eval().double()).to(dtype=dtype, device=device)
    network = network.to(memory_format=torch.channels_last)
    return Backbone(name, network, size, n_features, batch, mean, deviation, origin)


def unloaded(name: str) -> tuple[nn.Module, int]:
    """torchvision's model with its random weights, and its number of pooled features."""
    from torchvision import models

    if name == "inception_v3":
        # Without transform_input: the images already are in [-1, 1], as the original network wants them.
        options = {"weights": None, "aux_logits": True, "init_weights": False, "transform_input": False}
        return models.inception_v3(**options), 2048
    return models.mobilenet_v2(weights=None), 1280


def headless(name: str, model: Any) -> nn.Module:
    """The model with its top layer (and Inception's auxiliary one) removed."""
    if name == "inception_v3":
        model.fc, model.AuxLogits, model.dropout = nn.Identity(), None, nn.Identity()
    else:
        model.classifier = nn.Identity()
    return model


def random_conv(seed: int) -> nn.Module:
    """Two tanh convolutions and a 4 × 4 average pool: 512 features, smooth for finite differences."""
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(16, 32, 3, padding=1), nn.Tanh(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            scale = fan_in**-0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return network


def state_of(name: str, weights: str | None, mirror: str | None) -> tuple[dict[str, Tensor], str, bool]:
    """The state dict, where it comes from, and whether it was trained on RGB in [-1, 1]."""
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise UserError(
                f"backbone.weights={weights} is not a file; give a state dict saved by torchvision."
            )
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return read_state(path), f"file, sha256 {digest}", digest in MOBILENET.sha256
    if name == "mobilenet_v2":
        folder = mirror_folder(mirror)
        if folder is not None and (folder / MOBILENET.path).is_file():
            found = obtain(MOBILENET, mirror=mirror)
            return read_state(found.path), f"mirror, sha256 {found.sha256}", True
    from torchvision.models import get_model_weights

    try:
        best = get_model_weights(name).IMAGENET1K_V1
        return best.get_state_dict(progress=False, check_hash=True), f"torchvision {best}", False
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"the weights of {name} could not be downloaded ({error}): connect to the network once, or pass "
            "backbone.weights=FILE, a state dict saved by torchvision."
        ) from error


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict, read without running any code that the file might hold."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different type for each kind of damage
        raise UserError(
            f"{path} is not a state dict ({type(error).__name__}); save one with "
            "torch.save(model.state_dict(), FILE)."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(
            f"{path} does not hold a state dict of tensors; save model.state_dict(), not the model."
        )
    return state


def check_state(network: nn.Module, state: dict[str, Tensor], origin: str) -> None:
    """UserError naming the first missing, unknown or wrongly shaped key."""
    wanted = network.state_dict()
    describe: list[tuple[str, Callable[[], list[str]]]] = [
        ("lack the keys", lambda: sorted(wanted.keys() - state.keys())),
        ("have unknown keys", lambda: sorted(state.keys() - wanted.keys())),
        ("have other shapes at", lambda: [k for k in wanted if wanted[k].shape != state[k].shape]),
    ]
    for problem, find in describe:
        keys = find()
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise UserError(
                f"the weights ({origin}) {problem} {', '.join(keys[:3])}{more}; give the state dict of the "
                "torchvision model that backbone.name says."
            )
