"""Kronecker-factored Gauss-Newton matrices of any module: K-FAC and EK-FAC.

For a layer ``y_t = W [x_t; 1]`` an example's Gauss-Newton block is ``Σ_t,u [x_t x_uᵀ] ⊗ [g_t g_uᵀ]``.
K-FAC (Martens & Grosse, 2015; Grosse & Martens, 2016, for convolutions) replaces its mean by a Kronecker
product ``A ⊗ G`` of ``A = mean x xᵀ`` and ``G = mean Σ g gᵀ``. EK-FAC (George et al., 2018) keeps the
eigenvectors of A and G and takes as eigenvalues the true second moments of the gradients along them. Layers
are taken to be independent of each other.

Linear and convolution layers have both factors; an embedding's A is the diagonal of its tokens' counts.
Weights of normalisation layers have their exact diagonal. Everything else (recurrent weights, grouped
convolutions, attention that does not call its layers) has a diagonal that is estimated with random signs:
``E[(Σ_i ε_i J_iᵀ s_i)²]`` is the diagonal of ``Σ_i J_iᵀ s_i s_iᵀ J_i``.

This is an approximation. As a preconditioner of :class:`~influence.solvers.cg.CG` it changes the number of
iterations alone; by itself it solves with status ``APPROXIMATE``
(:class:`~influence.solvers.approximate.Approximate`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from influence.errors import DataError
from influence.objectives.module import Objective

_NUMBERS = 2**24  # of per-example gradients held at once
_SIGNS = 4  # random sign vectors per batch for the diagonals
Product = Any


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


@dataclass(frozen=True)
class KroneckerFactors:
    """The approximate Gauss-Newton matrix of an objective, by layers.

    Attributes:
        blocks: one a layer.
        penalty: λ m ``(p,)``.
    """

    blocks: tuple[Rotated | Diagonal, ...]
    penalty: Tensor

    def product(self, V: Tensor) -> Tensor:
        """The approximation times ``V (p, k)``, penalty included."""
        out = torch.zeros_like(V)
        for block in self.blocks:
            block.apply(V, out, block.values)
        return out + self.penalty[:, None] * V

    def inverse(self, damping: float) -> Product:
        """``V ↦ (approximation + damping·I)⁻¹ V`` on blocks ``(p, k)``.

        Raises:
            DataError: penalty and damping are 0 where the approximation is singular.
        """
        factors = []
        for block in self.blocks:
            place = block.index[block.index >= 0]
            shifted = block.values + float(self.penalty[place].mean()) + damping
            # A curvature at the level of rounding would blow up what rounding left of a direction.
            floor = torch.finfo(shifted.dtype).eps * float(shifted.max())
            if not float(shifted.max()) > 0:
                raise DataError("a layer has no curvature at all; set l2 or damping above 0")
            factors.append(1 / shifted.clamp(min=floor))

        def apply(V: Tensor) -> Tensor:
            out = torch.zeros_like(V)
            for block, factor in zip(self.blocks, factors, strict=True):
                block.apply(V, out, factor)
            return out

        return apply


def kronecker_factors(
    objective: Objective,
    theta: Tensor,
    idx: Tensor | None = None,
    *,
    corrected: bool = True,
    examples: int | None = None,
    seed: int = 0,
) -> KroneckerFactors:
    """K-FAC or EK-FAC factors of a module objective's Gauss-Newton matrix at θ.

    Args:
        objective: its loss must be convex in the outputs.
        theta: ``(p,)`` fitted parameters.
        idx: the examples of the matrix; all by default.
        corrected: EK-FAC's eigenvalues (a second pass), or K-FAC's products.
        examples: from at most so many of them, evenly spaced; None for all.
        seed: of the random signs.

    Raises:
        DataError: an objective without a module.
    """
    if not isinstance(objective, Objective):
        raise DataError(
            f"Kronecker factors need the module of an Objective, got {type(objective).__name__}; "
            "use Kronecker() for a LinearObjective"
        )
    chosen = torch.arange(objective.n, device=objective.device) if idx is None else objective.index(idx)
    assert chosen is not None
    if examples is not None and examples < len(chosen):
        chosen = chosen[torch.arange(examples, device=chosen.device) * len(chosen) // examples]
    return _Collector(objective, theta, chosen, seed).factors(corrected)


class _Collector:
    """Passes over the examples with the inputs of every layer and the gradients at its outputs kept."""

    def __init__(self, objective: Objective, theta: Tensor, idx: Tensor, seed: int) -> None:
        self.objective, self.idx = objective, idx
        self.model = copy.deepcopy(objective.module(theta))
        self.places = _places(objective)
        self.generator = torch.Generator().manual_seed(seed)
        self.layers = _layers(self.model, self.places)
        covered = {name for layer in self.layers for name in layer.names}
        rest = self.places.keys() - covered
        self.others = {name: w for name, w in self.model.named_parameters() if name in rest}
        for name, weight in self.model.named_parameters():
            weight.requires_grad_(name in self.places)

    def factors(self, corrected: bool) -> KroneckerFactors:  # noqa: C901  two passes, read in order
        for captured, gradients in self._passes(signs=True):
            for layer in self.layers:
                layer.add_moments(captured.get(layer, []), gradients)
        unseen = [layer for layer in self.layers if layer.rows == 0]  # a module that forward never called
        for layer in unseen:
            self.layers.remove(layer)
        for layer in self.layers:
            layer.decompose()
        if corrected and self.layers:
            for captured, gradients in self._passes(signs=False):
                for layer in self.layers:
                    layer.add_values(captured.get(layer, []), gradients)
        n = len(self.idx)
        blocks: list[Rotated | Diagonal] = [layer.block(n, corrected) for layer in self.layers]
        lost = {name for layer in unseen for name in layer.names}
        for name, place in self.places.items():
            if name in lost or name in self.others:
                values = self._diagonals.get(name)
                flat = torch.zeros(place.numel(), dtype=self.objective.dtype, device=place.device)
                if values is not None:
                    flat = values.reshape(-1) / (n * _SIGNS)
                real = place.reshape(-1) >= 0
                flat = flat[real]
                # Few signs make a noisy estimate: half of it is the mean of its parameter.
                blocks.append(Diagonal(place.reshape(-1)[real], (flat + flat.mean()) / 2))
        return KroneckerFactors(tuple(blocks), self.objective.l2 * self.objective.l2_mask)

    def _passes(self, signs: bool) -> Iterator[tuple[dict[Any, list[tuple[Tensor, Tensor]]], list[Any]]]:
        """For each batch the layers' captured ``(input, output)`` and, for each column s of the roots of the
        output Hessians, the gradients of ``Σ_i f_iᵀ s_i`` at those outputs."""
        o = self.objective
        if signs:
            self._diagonals: dict[str, Tensor] = {}
        for rows in self.idx.split(o.batch_size):
            with _captured(self.layers) as captured, torch.enable_grad():
                outputs = _call(self.model, o.inputs, rows)
                outputs = outputs[:, None] if outputs.ndim == 1 else outputs
            roots = o.loss.output_hessian_sqrt(outputs.detach(), o.targets[rows])
            if o.weights is not None:
                roots = roots * o.weights[rows].clamp(min=0).sqrt()[:, None, None]
            points = [output for pairs in captured.values() for _, output in pairs]
            keys = [layer for layer, pairs in captured.items() for _ in pairs]
            gradients: list[dict[Any, list[Tensor]]] = []
            for r in range(roots.shape[2]):
                found: dict[Any, list[Tensor]] = {}
                if points:
                    pulled = torch.autograd.grad(
                        outputs, points, roots[:, :, r], retain_graph=True, allow_unused=True
                    )
                    for layer, point, g in zip(keys, points, pulled, strict=True):
                        found.setdefault(layer, []).append(torch.zeros_like(point) if g is None else g)
                gradients.append(found)
            if signs and self.others:
                self._add_diagonals(outputs, roots)
            yield captured, gradients

    def _add_diagonals(self, outputs: Tensor, roots: Tensor) -> None:
        weights = list(self.others.values())
        for _ in range(_SIGNS):
            shape = (len(roots), 1, roots.shape[2])
            signs = torch.randint(0, 2, shape, generator=self.generator).to(roots) * 2 - 1
            pulled = torch.autograd.grad(
                outputs, weights, (roots * signs).sum(2), retain_graph=True, allow_unused=True
            )
            for name, g in zip(self.others, pulled, strict=True):
                if g is not None:
                    self._diagonals[name] = self._diagonals.get(name, torch.zeros_like(g)) + g**2


class _KroneckerLayer:
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
        if corrected:
            assert self.values is not None
            values = self.values / n
        else:
            values = torch.outer(self.g.clamp(min=0) / n, self.a.clamp(min=0))
        return Rotated(self.index, self.left, self.right, values)


class _NormLayer(_KroneckerLayer):
    """A normalisation layer: the exact diagonal of its weights and biases, from per-example gradients."""

    def add_moments(self, pairs: list[tuple[Tensor, Tensor]], gradients: list[Any]) -> None:
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
        assert self.values is not None
        real = self.index >= 0
        return Diagonal(self.index[real], self.values[real] / n)


_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001  torch's base class


def _layers(model: nn.Module, places: Mapping[str, Tensor]) -> list[_KroneckerLayer]:
    """The layers with factors, in the order of the module; each parameter once."""
    found: list[_KroneckerLayer] = []
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
            found.append(_KroneckerLayer(module, names, index.contiguous()))
        elif isinstance(module, _NORMS):
            index = torch.cat([places[name].reshape(-1) for name in names])
            found.append(_NormLayer(module, names, index))
        else:
            continue
        taken.update(names)
    return found


def _simple(module: nn.Conv1d | nn.Conv2d) -> bool:
    return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def _places(objective: Objective) -> dict[str, Tensor]:
    """The place in θ of every entry of every trainable parameter; −1 for an entry that is no part of θ."""
    p = objective.p
    low = torch.arange(p, dtype=torch.float64, device=objective.device)
    first, second = objective.unflatten(low), objective.unflatten(low + p)
    return {name: torch.where(second[name] == w + p, w, -1).long() for name, w in first.items()}


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
def _captured(layers: list[_KroneckerLayer]) -> Iterator[dict[Any, list[tuple[Tensor, Tensor]]]]:
    """Every call's input and output of each layer while the block runs."""
    found: dict[Any, list[tuple[Tensor, Tensor]]] = {}
    handles = []
    for layer in layers:

        def keep(_: nn.Module, args: Any, output: Tensor, layer: _KroneckerLayer = layer) -> Tensor:
            found.setdefault(layer, []).append((args[0].detach(), output))
            return output.clone()  # what follows may work in place

        handles.append(layer.module.register_forward_hook(keep))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _call(model: nn.Module, inputs: Any, rows: Tensor) -> Tensor:
    outputs: Tensor
    if isinstance(inputs, Mapping):
        outputs = model(**{key: part[rows] for key, part in inputs.items()})
    elif isinstance(inputs, tuple | list):
        outputs = model(*(part[rows] for part in inputs))
    else:
        outputs = model(inputs[rows])
    return outputs
