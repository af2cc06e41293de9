"""Every class of torch.nn that computes something, inside a small net, and how its derivatives are computed.

``python -m tests.influence.objectives.layer_table`` writes docs/layers.md; the test beside it compares.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from influence import DataError, Objective
from influence.objectives.passes import Method
from tests.influence.oracles import Differences, gap

PAGE = Path(__file__).resolve().parents[3] / "docs" / "layers.md"
COLUMNS = ("gradient", "Hessian", "Gauss-Newton", "directional", "per example", "mixed")
LIMIT = 1e-6
N = 4
Y = torch.tensor([0, 1, 2, 0])
D = torch.float64


def _data(*shape: int) -> torch.Tensor:
    return torch.randn(N, *shape, generator=torch.Generator().manual_seed(0), dtype=D)


INPUTS = {"vector": _data(6), "sequence": _data(2, 6), "image": _data(1, 4, 4), "volume": _data(1, 4, 4, 4)}
IDS = torch.tensor([[1, 2, 3], [4, 0, 5], [6, 7, 1], [2, 2, 8]])


class Around(nn.Module):
    """A head with parameters, the layer, and a linear readout: parameters sit on both sides of the layer."""

    def __init__(self, kind: str, layer: nn.Module, run: Callable[..., torch.Tensor] | None = None) -> None:
        super().__init__()
        heads = {
            "vector": lambda: nn.Linear(6, 6), "sequence": lambda: nn.Conv1d(2, 4, 1),
            "image": lambda: nn.Conv2d(1, 4, 1), "volume": lambda: nn.Conv3d(1, 4, 1), "ids": nn.Identity,
        }  # fmt: skip
        self.head, self.layer, self.run = heads[kind](), layer, run
        self.readout: nn.Module = nn.Identity()

    def features(self, x: torch.Tensor) -> torch.Tensor:
        h = self.head(x)
        h = self.layer(h) if self.run is None else self.run(self.layer, h)
        return (h[0] if isinstance(h, tuple) else h).flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.readout(self.features(x))


Spec = tuple[str, Callable[[], nn.Module], Callable[..., torch.Tensor] | None]


def _plain(kind: str, *arguments: object, **settings: object) -> Callable[[type[nn.Module]], Spec]:
    return lambda cls: (kind, lambda: cls(*arguments, **settings), None)


def _called(kind: str, run: Callable[..., torch.Tensor], *arguments: object, **settings: object):
    return lambda cls: (kind, lambda: cls(*arguments, **settings), run)


def _per_dimension(name: str, *arguments: object, **settings: object) -> dict[str, Callable]:
    kinds = {"1d": "sequence", "2d": "image", "3d": "volume"}
    return {f"{name}{d}": _plain(kind, *arguments, **settings) for d, kind in kinds.items()}


def _unpool(dimension: str) -> Callable[..., torch.Tensor]:
    pool = {"1d": F.max_pool1d, "2d": F.max_pool2d, "3d": F.max_pool3d}[dimension]

    def run(layer: nn.Module, h: torch.Tensor) -> torch.Tensor:
        pooled, where = pool(h, 2, return_indices=True)
        return layer(torch.tanh(pooled), where)

    return run


def _twice(layer: nn.Module, h: torch.Tensor) -> torch.Tensor:
    return layer(h, torch.tanh(h))


def _split(layer: nn.Module, h: torch.Tensor) -> torch.Tensor:
    return layer(h[:, :3], h[:, 3:])


_ELEMENTWISE = (
    "AlphaDropout CELU Dropout ELU FeatureAlphaDropout Flatten GELU Hardshrink Hardsigmoid Hardswish "
    "Hardtanh Identity LeakyReLU LogSigmoid Mish PReLU RReLU ReLU ReLU6 SELU SiLU Sigmoid Softplus "
    "Softshrink Softsign Tanh Tanhshrink"
)
SPECS: dict[str, Callable[[type[nn.Module]], Spec]] = {
    name: _plain("vector") for name in _ELEMENTWISE.split()
}
SPECS |= {name: _plain("vector", dim=1) for name in ("LogSoftmax", "Softmax", "Softmin", "GLU")}
SPECS |= _per_dimension("AdaptiveAvgPool", 2) | _per_dimension("AdaptiveMaxPool", 2)
SPECS |= _per_dimension("AvgPool", 2) | _per_dimension("MaxPool", 2) | _per_dimension("LPPool", 2, 2)
SPECS |= _per_dimension("BatchNorm", 4) | _per_dimension("InstanceNorm", 4, affine=True)
SPECS |= (
    _per_dimension("Conv", 4, 3, 2) | _per_dimension("ConvTranspose", 4, 3, 2) | _per_dimension("Dropout")
)
SPECS |= {f"{name}Pad{d}": spec for name in ("Circular", "Reflection", "Replication", "Zero")
          for d, spec in ((k[-2:], s) for k, s in _per_dimension("", 1).items())}  # fmt: skip
SPECS |= _per_dimension("ConstantPad", 1, 0.5)
SPECS |= {f"MaxUnpool{d}": _called(kind, _unpool(d), 2)
          for d, kind in (("1d", "sequence"), ("2d", "image"), ("3d", "volume"))}  # fmt: skip
SPECS |= {
    "FractionalMaxPool2d": _plain("image", 2, output_size=2),
    "FractionalMaxPool3d": _plain("volume", 2, output_size=2),
    "LazyLinear": _plain("vector", 5),
    "Linear": _plain("vector", 6, 5),
    "LayerNorm": _plain("vector", 6),
    "RMSNorm": _plain("vector", 6),
    "GroupNorm": _plain("sequence", 2, 4),
    "SyncBatchNorm": _plain("image", 4),
    "LocalResponseNorm": _plain("sequence", 2),
    "CrossMapLRN2d": _plain("image", 2),
    "Bilinear": _called("vector", _split, 3, 3, 4),
    "CosineSimilarity": _called("vector", lambda layer, h: layer(h[:, :3], h[:, 3:])[:, None]),
    "PairwiseDistance": _called("vector", lambda layer, h: layer(h[:, :3], h[:, 3:])[:, None]),
    "AdaptiveLogSoftmaxWithLoss": _called("vector", lambda layer, h: layer.log_prob(h), 6, 5, [2]),
    "Threshold": _plain("vector", 0.1, 0.0),
    "Unflatten": _plain("vector", 1, (2, 3)),
    "ChannelShuffle": _plain("image", 2),
    "PixelShuffle": _plain("image", 2),
    "PixelUnshuffle": _plain("image", 2),
    "Softmax2d": _plain("image"),
    "Unfold": _plain("image", 2),
    "Fold": _plain("sequence", (3, 4), 2),
    "Upsample": _plain("image", scale_factor=2, mode="bicubic"),
    "UpsamplingBilinear2d": _plain("image", scale_factor=2),
    "UpsamplingNearest2d": _plain("image", scale_factor=2),
    "Embedding": _called("ids", lambda layer, ids: torch.tanh(layer(ids)), 9, 3, padding_idx=0),
    "EmbeddingBag": _called("ids", lambda layer, ids: torch.tanh(layer(ids)), 9, 3, padding_idx=0),
    "RNN": _plain("sequence", 6, 3, batch_first=True),
    "GRU": _plain("sequence", 6, 3, batch_first=True),
    "LSTM": _plain("sequence", 6, 3, batch_first=True),
    "RNNCell": _plain("vector", 6, 3),
    "GRUCell": _plain("vector", 6, 3),
    "LSTMCell": _plain("vector", 6, 3),
    "MultiheadAttention": _called("sequence", lambda layer, h: layer(h, h, h)[0], 6, 2, batch_first=True),
    "TransformerEncoderLayer": _plain("sequence", 6, 2, 8, batch_first=True),
    "TransformerDecoderLayer": _called("sequence", _twice, 6, 2, 8, batch_first=True),
    "TransformerEncoder": lambda cls: (
        "sequence", lambda: cls(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), 1), None,
    ),
    "TransformerDecoder": lambda cls: (
        "sequence", lambda: cls(nn.TransformerDecoderLayer(6, 2, 8, batch_first=True), 1), _twice,
    ),
    "Transformer": _called("sequence", _twice, 6, 2, 1, 1, 8, batch_first=True),
    "Sequential": lambda cls: ("vector", lambda: cls(nn.Linear(6, 4), nn.Tanh()), None),
    "ModuleList": lambda cls: ("vector", lambda: cls([nn.Linear(6, 4)]), lambda layer, h: layer[0](h)),
    "ModuleDict": lambda cls: ("vector", lambda: cls({"a": nn.Linear(6, 4)}), lambda layer, h: layer["a"](h)),
    "ParameterList": lambda cls: (
        "vector", lambda: cls([torch.ones(6)]), lambda layer, h: torch.tanh(h * layer[0]),
    ),
    "ParameterDict": lambda cls: (
        "vector", lambda: cls({"a": torch.ones(6)}), lambda layer, h: torch.tanh(h * layer["a"]),
    ),
}  # fmt: skip
NOT_LAYERS = {
    "Container",
    "Module",
    "RNNBase",
    "RNNCellBase",
    "LinearCrossEntropyOptions",
}  # bases and settings


def layers() -> list[str]:
    """The classes of torch.nn in alphabetical order; losses, bases and lazy twins left out."""
    losses = {n for n in nn.modules.__all__ if n.endswith(("Loss", "Loss2d"))} - {
        "AdaptiveLogSoftmaxWithLoss"
    }
    names = set(nn.modules.__all__) - losses - NOT_LAYERS
    return sorted(n for n in names if not n.startswith("Lazy") or n == "LazyLinear")


def row(name: str) -> str:
    """The line of the table for one class: how each derivative is computed, all of them checked here."""
    cells = " | ".join(_cells(name))
    return f"| {name} | {cells} |"


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The net around the layer and its inputs."""
    kind, make, run = SPECS[name](vars(nn)[name])
    torch.manual_seed(3)
    model = Around(kind, make(), run).double().eval()
    inputs = IDS if kind == "ids" else INPUTS[kind]
    if name != "LazyLinear":
        with torch.no_grad():
            model.readout = nn.Linear(model.features(inputs).shape[1], 3).double()
    return model, inputs


def _cells(name: str) -> list[str]:
    model, inputs = build(name)
    try:
        o = Objective(model, "cross_entropy", inputs, Y, 0.0, dtype=D)
    except DataError as error:
        said = str(error).partition(" (")[0]
        return [f"refused: {said}"] + [""] * (len(COLUMNS) - 1)
    theta = o.initial()
    oracle = Differences(o, lambda out, y: F.cross_entropy(out, y, reduction="none"))
    v = torch.randn(o.p, generator=torch.Generator().manual_seed(5), dtype=D) * theta.abs().mean()
    V, chosen = v[:, None], o.derivatives
    along = oracle.along(oracle.value, theta, v)[None]
    results = [
        (chosen.gradient, (o.gradient(theta) @ v)[None], along),
        (chosen.hessian, o.hessian_product(theta, V)[:, 0], oracle.hessian(theta, v)),
        (chosen.gauss_newton, o.gauss_newton_product(theta, V)[:, 0], oracle.gauss_newton(theta, v)),
        (chosen.directional, o.directional(theta, V)[:, 0], oracle.directional(theta, v)),
        (chosen.per_example, o.example_gradients(theta), oracle.example_gradients(theta)),
    ]
    if o.inputs.is_floating_point():
        mixed = o.mixed(theta, V)[..., 0]
        results.append((chosen.mixed, mixed, oracle.mixed(theta, v)))
    cells = []
    for column, (way, ours, exact) in zip(COLUMNS, results, strict=False):
        off = gap(ours, exact)
        if off > LIMIT:
            raise AssertionError(f"{name}: the {column} derivative is off by {off:.1g}")
        cells.append("ok, by differences" if way.method is Method.DIFFERENCES else "ok")
    return cells + ["no floating input"] * (len(COLUMNS) - len(cells))


HEAD = f"""# Layers

This table has every class of `torch.nn` that computes something. Each ran in evaluation mode, inside a
small net with parameters on both sides of it. Each cell was compared with central differences in float64
to 0.000001. "ok" means that an exact way agrees. "ok, by differences" means that no exact way does. Then
central differences of first derivatives are used. A refusal is the sentence that an objective of such a
module raises.

This page is written by `python -m tests.influence.objectives.layer_table` and compared by a test.

| layer | {" | ".join(COLUMNS)} |
|---{"|---" * len(COLUMNS)}|
"""


def main() -> None:
    """Write the page."""
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(HEAD + "\n".join(row(name) for name in layers()) + "\n")


if __name__ == "__main__":
    main()
