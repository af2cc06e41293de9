"""Frozen networks whose pooled features feed a linear model; the only module that imports torchvision.

Every backbone takes images in 8-bit units (0…255, not necessarily whole numbers), resizes them where needed,
scales them and returns the features below the removed top layer. Batch norm is folded into the convolution
before it (in float64), which in evaluation mode is the same function and a quarter faster.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.data.fetch import Source, mirror_folder, obtain
from experiments.records.errors import ConfigError, UserError

MIRRORED = {
    "mobilenet_v2": Source(
        "weights/mobilenet_v2_imagenet.pth",
        ("the TF2 model tf2_mobilenet_v2_1.0_224_ptq",),
        ("698234157e1b9c755857397f08fa27191a28e47dea393404dd13cbc90655f26f",),
        64 << 20,
    ),
    "inception_v3_7a": Source(
        "weights/inception_v3_2015_to_mixed_7a.pth",
        ("the network of 2015-12-05, from TensorFlow's folded weights",),
        ("9d13d91f7d9baef03dbcc80dcddc9c86a2ae8e79e0128b04329a61f1e5baa676",),
        64 << 20,
    ),
}
COUNTER = ".num_batches_tracked"  # of a normalisation, beside its weights
AFTER_THE_CUT = ("Mixed_7b.", "Mixed_7c.", "AuxLogits.", "fc.")
TORCHVISION_INCEPTION = "0cc3c7bd"  # sha256 of torchvision's own file of Inception v3 begins so
# Mean and deviation, in [0, 1], of the input that torchvision's own MobileNetV2 weights were trained on.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SYMMETRIC = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # RGB in [-1, 1]
SMALLEST = {"inception_v3": 75, "inception_v3_7a": 75, "mobilenet_v2": 32, "random_conv": 8}
LABELS = {
    "inception_v3": "Inception v3",
    "inception_v3_7a": "Inception v3, cut after Mixed_7a",
    "mobilenet_v2": "MobileNetV2",
    "random_conv": "random conv net",
}


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
    count_padding: bool | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Backbone:
    """The backbone ``name``: inception_v3, inception_v3_7a, mobilenet_v2 or random_conv.

    weights: a state dict saved by torchvision; null: the mirror's file (all but inception_v3), or without a
    mirror torchvision's download. count_padding: whether Inception's average poolings count their padding, as
    torchvision's own network does and the network of 2015 does not; null: as the weights need, where these
    are known.

    Raises:
        ConfigError: an unknown name, a size too small, or a setting that the network does not have.
        UserError: the weights are missing or do not fit.
    """
    if name not in SMALLEST:
        raise ConfigError(f"backbone.name={name!r} is unknown; choose {', '.join(SMALLEST)}.")
    if size < SMALLEST[name] or batch < 1:
        raise ConfigError(
            f"backbone.size={size}, batch={batch}: {name} needs a size of at least {SMALLEST[name]} and a "
            "batch of at least 1."
        )
    inception = name.startswith("inception")
    if count_padding is not None and not inception:
        raise ConfigError(
            f"backbone.count_padding={count_padding}: {name} has no such pooling; leave it null."
        )
    mean, deviation = SYMMETRIC
    if name == "random_conv":
        network, n_features, origin = random_conv(seed), 512, f"random, seed {seed}"
    else:
        network, n_features = unloaded(name)
        state, digest, origin = state_of(name, weights, mirror)
        network.load_state_dict(check_state(network, state, origin, name))
        if not inception and digest not in MIRRORED[name].sha256:
            mean, deviation = IMAGENET
        if inception and not counts_padding(count_padding, digest, origin):
            leave_padding_out(network)
        network = headless(name, network)
    network = fold_batch_norm(network.eval().double()).to(dtype=dtype, device=device)
    network = network.to(memory_format=torch.channels_last)
    return Backbone(name, network, size, n_features, batch, mean, deviation, origin)


def unloaded(name: str) -> tuple[nn.Module, int]:
    """torchvision's model with its random weights, and its number of pooled features."""
    from torchvision import models

    if name == "mobilenet_v2":
        return models.mobilenet_v2(weights=None), 1280
    # Without transform_input: the images already are in [-1, 1], as the original network wants them.
    options = {"weights": None, "aux_logits": True, "init_weights": False, "transform_input": False}
    whole = models.inception_v3(**options)
    return (whole, 2048) if name == "inception_v3" else (cut(whole, "Mixed_7a"), 1280)


def cut(network: nn.Module, last: str) -> nn.Sequential:
    """Inception v3 from the stem to the block ``last``, then the mean over the map that it leaves."""
    kept: OrderedDict[str, nn.Module] = OrderedDict()
    for name, child in network.named_children():
        if name != "AuxLogits":
            kept[name] = child
        if name == last:
            break
    kept["avgpool"], kept["flatten"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(kept)


def headless(name: str, model: Any) -> nn.Module:
    """The model with its top layer (and Inception's auxiliary one) removed."""
    if name == "inception_v3":
        model.fc, model.AuxLogits, model.dropout = nn.Identity(), None, nn.Identity()
    elif name == "mobilenet_v2":
        model.classifier = nn.Identity()
    return model


class WithoutPadding(nn.Module):
    """Turns 3 × 3 averages at stride 1 that counted one zero of padding into averages of what is there.

    A border pixel's average was over nine values, of which three were padding, a corner's five.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, height, width) -> the same shape."""
        height, width = (self._share(side, x) for side in x.shape[2:])
        return x * (height[:, None] * width)

    @staticmethod
    def _share(side: int, like: Tensor) -> Tensor:
        """3 over the number of real pixels below the window, for every place along one side."""
        share = like.new_ones(side)
        share[[0, -1]] = 1.5 if side > 1 else 3.0
        return share


def leave_padding_out(network: nn.Module) -> None:
    """Lets the average poolings of Inception's blocks leave padding out, in place."""
    for name, block in network.named_children():
        pooled = dict(block.named_children()).get("branch_pool")
        if pooled is not None and name.startswith("Mixed_"):
            block.branch_pool = nn.Sequential(WithoutPadding(), pooled)


def counts_padding(asked: bool | None, digest: str, origin: str) -> bool:
    """Whether the weights were trained with average poolings that count padding.

    Raises:
        UserError: the file's origin is not known and nobody said.
    """
    if asked is not None:
        return asked
    if digest in MIRRORED["inception_v3_7a"].sha256:
        return False
    if digest.startswith(TORCHVISION_INCEPTION):
        return True
    raise UserError(
        f"whether average poolings count padding is not known for these weights ({origin}): pass "
        "backbone.count_padding=true for weights that torchvision's network was made for, false for those of "
        "the network of 2015."
    )


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


def state_of(name: str, weights: str | None, mirror: str | None) -> tuple[dict[str, Tensor], str, str]:
    """The state dict, the sha256 of its file (what is known of it), and where it comes from."""
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise UserError(
                f"backbone.weights={weights} is not a file; give a state dict saved by torchvision."
            )
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return read_state(path), digest, f"file, sha256 {digest}"
    source = MIRRORED.get(name)
    if source is not None:
        folder = mirror_folder(mirror)
        places = [] if folder is None else [folder / source.path, folder / Path(source.path).name]
        if any(place.is_file() for place in places):
            found = obtain(source, mirror=mirror)
            return read_state(found.path), found.sha256, f"mirror, sha256 {found.sha256}"
        if folder is not None:  # torchvision's own file holds another network
            raise UserError(
                f"{source.path}, the weights of {name} with sha256 {source.sha256[0]}, is not in the mirror "
                f"{folder}; add this file to the mirror, or pass backbone.weights=FILE."
            )
    if name == "inception_v3_7a":
        raise UserError(
            f"the weights of {name} ({MIRRORED[name].path}, sha256 {MIRRORED[name].sha256[0]}) cannot be "
            "downloaded; pass data.mirror=FOLDER with that file, or backbone.weights=FILE."
        )
    from torchvision.models import get_model_weights

    try:
        best = get_model_weights(name).IMAGENET1K_V1
        state = best.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"the weights of {name} could not be downloaded ({error}): connect to the network once, or pass "
            "backbone.weights=FILE, a state dict saved by torchvision."
        ) from error
    # torchvision's file names end with the first eight digits of the sha256 that check_hash has compared.
    return state, Path(best.url).stem.rsplit("-", 1)[-1], f"torchvision {best}"


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


def check_state(network: nn.Module, state: dict[str, Tensor], origin: str, name: str) -> dict[str, Tensor]:
    """The part of ``state`` that ``network`` has; of a whole Inception v3, layers after the cut are left out.

    Raises:
        UserError: keys are missing, unknown or wrongly shaped; it names the first of them and what they
            mean.
    """
    wanted = network.state_dict()
    if name == "inception_v3_7a":
        state = {key: value for key, value in state.items() if not key.startswith(AFTER_THE_CUT)}
    # How many batches a normalisation has seen is for training alone; files of folded weights leave it out.
    counters = {key: value for key, value in wanted.items() if key.endswith(COUNTER)}
    state = counters | state
    describe: list[tuple[str, Callable[[], list[str]]]] = [
        ("lack the keys", lambda: sorted(wanted.keys() - state.keys())),
        ("have unknown keys", lambda: sorted(state.keys() - wanted.keys())),
        ("have other shapes at", lambda: [k for k in wanted if wanted[k].shape != state[k].shape]),
    ]
    for problem, find in describe:
        keys = find()
        if not keys:
            continue
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        remedy = f"give the state dict of torchvision's {name.removesuffix('_7a')}"
        if name == "inception_v3" and problem == "lack the keys" and cut_state(state):
            remedy = "they end after Mixed_7a, so use backbone=inception_v3_7a"
        raise UserError(f"the weights ({origin}) {problem} {', '.join(keys[:3])}{more}; {remedy}.")
    return state


def cut_state(state: dict[str, Tensor]) -> bool:
    """Whether these are weights of Inception v3 up to Mixed_7a and no further."""
    has = {key.split(".")[0] for key in state if not key.endswith(COUNTER)}
    return "Mixed_7a" in has and not has & {part.rstrip(".") for part in AFTER_THE_CUT}
