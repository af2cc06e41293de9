"""The blocks of Kronecker factors, and how each kind of layer collects its own.

See :mod:`influence.curvature.kronecker` for the mathematics and the sources.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_NUMBERS = 2**24  # of per-example gradients held at once


@dataclass(frozen=True)
class Rotated:
    """A layer's block ``(U_g ⊗ U_a) diag(S) (U_g ⊗ U_a)ᵀ``.

    Attributes:
        index: places in θ of the layer's ``(out, in)`` weights, its bias as a last column; −1 where an entry
            is no part of θ.
        left: U_g ``(out, out)``.
        right: U_a ``(in, in)``, or None for the identity.
        values: S ``(out, in)``, the penalty not included.
    """

    index: Tensor
    left: Tensor
    right: Tensor | None
    values: Tensor

    def apply(self, V: Tensor, out: Tensor, factor: Tensor) -> None:
        """Add this block with the eigenvalues ``factor`` times ``V (p, k)`` to ``out``."""
        W = V[self.index.clamp(min=0)].permute(2, 0, 1)  # (k, out, in)
        W = torch.where(self.index < 0, 0.0, W) if bool((self.index < 0).any()) else W
        W = self.left.T @ W
        W = (W if self.right is None else W @ self.right) * factor
        W = self.left @ (W if self.right is None else W @ self.right.T)
        real = self.index >= 0
        out[self.index[real]] = W.permute(1, 2, 0)[real]


@dataclass(frozen=True)
class Diagonal:
    """Parameters ``index (m,)`` of θ whose block is taken to be diagonal, ``values (m,)``."""

    index: Tensor
    values: Tensor

    def apply(self, V: Tensor, out: Tensor, factor: Tensor) -> None:
        """Write the values ``factor`` times ``V (p, k)`` to ``out``."""
        out[self.index] = factor[:, None] * V[self.index]


class KroneckerLayer:
    """A Linear, convolution or Embedding with what is known of its factors."""

    def __init__(self, module: nn.Module, names: list[str], index: Tensor) -> None:
        self.module, self.names, self.index = module, names, index
        self.bias = len(names) == 2
        self.rows = 0
        self.A: Tensor | None = None
        self.G: Tensor | None = None
        self.values: Tensor | None = None

    @property
    def diagonal(self) -> bool:
        """Whether A is diagonal: of an embedding, whose inputs are one-hot."""
        return isinstance(self.module, nn.Embedding)

    def patches(self, x: Tensor) -> Tensor:
        """What the weights multiply: ``(m, T, in)``; of an embedding the token numbers ``(m, T)``."""
        if isinstance(self.module, nn.Embedding):
            return x.reshape(len(x), -1)
        a = _unfolded(self.module, x) if isinstance(self.module, nn.Conv1d | nn.Conv2d) else x
        a = a.reshape(len(a), -1, a.shape[-1])
        return torch.cat([a, torch.ones_like(a[..., :1])], dim=2) if self.bias else a

    def signals(self, g: Tensor) -> Tensor:
        """Gradients at the outputs as ``(m, T, out)``."""
        if isinstance(self.module, nn.Conv1d | nn.Conv2d):
            return g.flatten(2).transpose(1, 2)
        return g.reshape(len(g), -1, g.shape[-1])

    def add_moments(self, pairs: list[tuple[Tensor, Tensor]], gradients: list[Any]) -> None:
        """Add a batch's part of A and G, from each call's inputs and the gradients of its outputs."""
        for call, (x, _) in enumerate(pairs):
            a = self.patches(x)
            self.rows += a.shape[0] * a.shape[1]
            if self.diagonal:
                own = torch.bincount(a.reshape(-1), minlength=self.index.shape[1]).to(
                    gradients[0][self][call]
                )
            else:
                flat = a.reshape(-1, a.shape[2])
                own = flat.T @ flat
            self.A = own if self.A is None else self.A + own
            for found in gradients:
                g = self.signals(found[self][call])
                flat = g.reshape(-1, g.shape[2])
                self.G = flat.T @ flat if self.G is None else self.G.addmm_(flat.T, flat)

    def decompose(self) -> None:
        """The eigenvectors and eigenvalues of A and G, which are then let go."""
        assert self.A is not None
        assert self.G is not None
        if self.diagonal:
            self.a, self.right = self.A / self.rows, None
        else:
            self.a, self.right = torch.linalg.eigh(self.A / self.rows)
        self.g, self.left = torch.linalg.eigh(self.G)
        self.A = self.G = None

    def add_values(self, pairs: list[tuple[Tensor, Tensor]], gradients: list[Any]) -> None:
        """EK-FAC: the sum over examples and columns of ``(U_gᵀ ∇ U_a)²``, ∇ the layer's whole gradient."""
        rotated = [self._rotated(x) for x, _ in pairs]
        if self.values is None:
            like = self.left
            self.values = torch.zeros(self.index.shape, dtype=like.dtype, device=like.device)
        for found in gradients:
            signals = [self.signals(g) @ self.left for g in found.get(self, [])]
            if not signals:
                continue
            a, g = torch.cat(rotated, dim=1), torch.cat(signals, dim=1)
            if self.diagonal:
                self._add_tokens(a, g)
            elif a.shape[1] == 1:
                self.values.addmm_((g[:, 0] ** 2).T, a[:, 0] ** 2)
            else:
                step = max(1, _NUMBERS // self.values.numel())
                for start in range(0, len(a), step):
                    part = slice(start, start + step)
                    self.values += (g[part].transpose(1, 2) @ a[part]).square_().sum(0)

    def _rotated(self, x: Tensor) -> Tensor:
        a = self.patches(x)
        return a if self.right is None else a @ self.right

    def _add_tokens(self, tokens: Tensor, g: Tensor) -> None:
        """An embedding's example gradient has one row a different token: the sum of that token's signals."""
        assert self.values is not None
        m, T = tokens.shape
        key = tokens + self.index.shape[1] * torch.arange(m, device=tokens.device)[:, None]
        unique, where = torch.unique(key.reshape(-1), return_inverse=True)
        sums = torch.zeros(len(unique), g.shape[2], dtype=g.dtype, device=g.device)
        sums.index_add_(0, where, g.reshape(m * T, -1))
        self.values.index_add_(1, unique % self.index.shape[1], (sums**2).T.contiguous())

    def block(self, n: int, corrected: bool) -> Rotated:
        """The layer's block of a mean over n examples; ``corrected`` has the eigenvalues of EK-FAC."""
        if corrected:
            assert self.values is not None
            values = self.values / n
        else:
            values = torch.outer(self.g.clamp(min=0) / n, self.a.clamp(min=0))
        return Rotated(self.index, self.left, self.right, values)


class NormLayer(KroneckerLayer):
    """A normalisation layer: the exact diagonal of its weights and biases, from per-example gradients."""

    def add_moments(self, pairs: list[tuple[Tensor, Tensor]], gradients: list[Any]) -> None:
        """Add a batch's part of the exact diagonal."""
        shape = torch.Size(cast(Tensor, self.module.weight).shape)
        for call, (x, _) in enumerate(pairs):
            plain = _normalised(self.module, x)
            self.rows += len(x)
            for found in gradients:
                g = found[self][call]
                each = [_per_example(g * plain, self.module, shape)]
                each += [_per_example(g, self.module, shape)] if self.bias else []
                own = torch.cat([(part**2).sum(0) for part in each])
                self.values = own if self.values is None else self.values + own

    def decompose(self) -> None:
        """Nothing to decompose."""

    def add_values(self, pairs: list[tuple[Tensor, Tensor]], gradients: list[Any]) -> None:
        """The first pass knows everything."""

    def block(self, n: int, corrected: bool) -> Any:  # noqa: ARG002  as the other layers
        """The exact diagonal of a mean over n examples."""
        assert self.values is not None
        real = self.index >= 0
        return Diagonal(self.index[real], self.values[real] / n)


_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001  torch's base class


def layers_of(model: nn.Module, places: Mapping[str, Tensor]) -> list[KroneckerLayer]:
    """The layers with factors, in the order of the module; each parameter once."""
    found: list[KroneckerLayer] = []
    taken: set[str] = set()
    for prefix, module in model.named_modules():
        weight, bias = (f"{prefix}.{part}" if prefix else part for part in ("weight", "bias"))
        names = [name for name in (weight, bias) if name in places and name not in taken]
        plain = isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Embedding)
        if weight not in names or (isinstance(module, nn.Conv1d | nn.Conv2d) and not _simple(module)):
            continue
        if plain:
            index = places[weight].reshape(len(places[weight]), -1)
            index = index.T if isinstance(module, nn.Embedding) else index
            if len(names) == 2:
                index = torch.cat([index, places[bias][:, None]], dim=1)
            found.append(KroneckerLayer(module, names, index.contiguous()))
        elif isinstance(module, _NORMS):
            index = torch.cat([places[name].reshape(-1) for name in names])
            found.append(NormLayer(module, names, index))
        else:
            continue
        taken.update(names)
    return found


def _simple(module: nn.Conv1d | nn.Conv2d) -> bool:
    return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def _unfolded(module: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """Patches ``(m, T, channels · kernel)`` in the order of the weights."""
    pairs = [module.kernel_size, module.dilation, module.padding, module.stride]
    if isinstance(module, nn.Conv1d):
        x = x[:, :, None]
        settings: Any = [(0 if which == 2 else 1, part[0]) for which, part in enumerate(pairs)]
    else:
        settings = pairs
    return F.unfold(x, *settings).transpose(1, 2)


def _normalised(module: nn.Module, x: Tensor) -> Tensor:
    """The output of a normalisation layer before its weight and bias."""
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(x, module.normalized_shape, eps=module.eps)
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(x, module.num_groups, eps=module.eps)
    assert isinstance(module, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001
    training = module.running_mean is None
    return F.batch_norm(x, module.running_mean, module.running_var, training=training, eps=module.eps)


def _per_example(g: Tensor, module: nn.Module, shape: torch.Size) -> Tensor:
    """Sum over the places that share the weights: ``(m, size)``."""
    if isinstance(module, nn.LayerNorm):
        return g.reshape(len(g), -1, shape.numel()).sum(1)
    return g.reshape(len(g), shape.numel(), -1).sum(2)


@contextmanager
def captured_calls(layers: list[KroneckerLayer]) -> Iterator[dict[Any, list[tuple[Tensor, Tensor]]]]:
    """Every call's input and output of each layer while the block runs."""
    found: dict[Any, list[tuple[Tensor, Tensor]]] = {}
    handles = []
    for layer in layers:

        def keep(_: nn.Module, args: Any, output: Tensor, layer: KroneckerLayer = layer) -> Tensor:
            found.setdefault(layer, []).append((args[0].detach(), output))
            return output.clone()  # what follows may work in place

        handles.append(layer.module.register_forward_hook(keep))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
