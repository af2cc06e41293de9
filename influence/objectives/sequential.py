"""Objectives of feed-forward networks with the forward pass, the backward signals and the patches at θ kept.

At a fixed θ a Hessian product then costs one R-forward and one R-backward of matrix products
(:mod:`.layers`) instead of two autograd passes that recompute everything. What is kept is bounded by
``cache_bytes``; chunks beyond it are recomputed at each product, so memory stays bounded at any n.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from influence.errors import DataError
from influence.losses import LossLike
from influence.objectives.layers import Affine, translate
from influence.objectives.module import Objective
from influence.objectives.penalties import ParameterRule, Penalty
from influence.objectives.ready import plain_module
from influence.objectives.selection import with_parameters


@dataclass
class Pass:
    """One chunk at one θ (or at m of them): everything that its Hessian products need."""

    saved: list[Any]
    signals: list[Tensor | None]  # ∂(Σ w_i L_i)/∂y at the output of each layer with parameters
    outputs: Tensor  # (m, N, c)
    targets: Tensor  # (N,)
    weights: Tensor | None  # (N,)

    def bytes(self) -> int:
        """Memory held, in bytes."""
        return sum(t.numel() * t.element_size() for t in _tensors([self.saved, self.signals]))


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for part in tree:
            yield from _tensors(part)


class SequentialObjective(Objective):
    """:class:`~.module.Objective` of a ``Sequential`` of known layers: same calls and results.

    Args:
        chunk: examples worked on at once; by default so few that a layer's patches stay near the cache of a
            CPU, or ``batch_size`` on other devices.
        cache_bytes: memory for what is kept at a fixed θ (see :meth:`hessian_at`); default 2.5 GiB.
        model, loss, inputs, targets, l2, **settings: as for :class:`~.module.Objective`.

    Raises:
        DataError: a layer that is not known (:func:`network_objective` falls back instead).
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossLike,
        inputs: Any,
        targets: Any,
        l2: Penalty,
        *,
        l2_parameters: str | ParameterRule = "all",
        weights: Tensor | None = None,
        batch_size: int = 1024,
        dtype: torch.dtype | None = None,
        chunk: int | None = None,
        cache_bytes: int = int(2.5 * 2**30),
    ) -> None:
        layers = translate(model)
        if layers is None or not any(layer.size for layer in layers):
            raise DataError("the model is not a Sequential of known layers; use Objective instead")
        self.layers, self.cache_bytes = layers, cache_bytes
        # The first layer with parameters: nothing below it needs a gradient.
        self._first = next(i for i, layer in enumerate(layers) if layer.size)
        settings: dict[str, Any] = {"l2_parameters": l2_parameters, "batch_size": batch_size, "dtype": dtype}
        settings["weights"] = weights
        super().__init__(model, loss, inputs, targets, l2, **settings)
        if sum(layer.size for layer in layers) != self.p:
            raise DataError("a module appears twice in the model; use Objective instead")
        # Columns and models side by side: many small products keep a GPU busy, a CPU loses its cache by them.
        self._abreast = 1 if self.device.type == "cpu" else 16
        self.chunk = chunk or (self._cache_sized_chunk() if self.device.type == "cpu" else self.batch_size)

    def _choose_derivatives(self) -> None:
        """Nothing to choose: the rules of the known layers are written out here and tested one by one."""

    def _cache_sized_chunk(self, budget: int = 3 * 2**20) -> int:
        """Examples whose largest saved tensor takes about ``budget`` bytes."""
        one = self._run(self._weights(self.initial()[:, None]), self.inputs[:1], self.targets[:1], None)
        largest = max(t.numel() * t.element_size() for t in _tensors(one.saved))
        return max(1, min(self.batch_size, budget // largest))

    # -- passes -------------------------------------------------------------------------------------------

    def _weights(self, block: Tensor) -> list[Any]:
        """A block ``(p, m)`` as each layer's weights."""
        parts = block.split([layer.size for layer in self.layers])
        return [layer.unpack(part) for layer, part in zip(self.layers, parts, strict=True)]

    def _flat(self, gradients: list[Any]) -> Tensor:
        """Inverse of :meth:`_weights`: ``(p, m)``."""
        packed = [layer.pack(g) for layer, g in zip(self.layers, gradients, strict=True)]
        return torch.cat([part for part in packed if part is not None])

    def _columns(self, block: Tensor) -> Iterator[tuple[slice, list[Any]]]:
        """Groups of columns that run side by side, as weights."""
        for start in range(0, block.shape[1], self._abreast):
            group = slice(start, min(start + self._abreast, block.shape[1]))
            yield group, self._weights(block[:, group])

    def _chunks(self, idx: Tensor | None) -> Iterator[tuple[Tensor, Tensor, slice]]:
        m = self.count(idx)
        for start in range(0, m, self.chunk):
            place = slice(start, min(start + self.chunk, m))
            take = place if idx is None else idx[place]
            yield self.inputs[take], self.targets[take], place

    def _start(self, x: Tensor) -> tuple[Tensor, Any]:
        """Inputs in the layers' layout, and what the first layer saves of them whatever its weights are."""
        x = (x if x.ndim == 2 else x.permute(0, 2, 3, 1))[None].contiguous()
        layer = self.layers[0]
        return x, layer.start(x) if isinstance(layer, Affine) and layer.size else None

    def _propagate(self, w: list[Any], begun: tuple[Tensor, Any]) -> tuple[Tensor, list[Any]]:
        """Forward: outputs ``(m, N, c)`` and what each layer saves."""
        x, first = begun
        saved: list[Any] = []
        for layer, wl in zip(self.layers, w, strict=True):
            begins = isinstance(layer, Affine) and not saved and first is not None
            x, kept = cast(Affine, layer).forward(x, wl, first) if begins else layer.forward(x, wl)
            saved.append(kept)
        return x, saved

    def _output_gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        m, n, c = outputs.shape
        return self.loss.output_gradient(outputs.reshape(m * n, c), _repeated(targets, m)).reshape(m, n, c)

    def _run(self, w: list[Any], x: Tensor, y: Tensor, weights: Tensor | None) -> Pass:
        """Forward and backward of one chunk, with everything kept."""
        outputs, saved = self._propagate(w, self._start(x))
        g: Any = self._output_gradient(outputs, y)
        if weights is not None:
            g = g * weights[None, :, None]
        signals: list[Tensor | None] = [None] * len(self.layers)
        for i in reversed(range(len(self.layers))):
            layer, plain = self.layers[i], saved[i]
            signals[i] = g if layer.size else None
            saved[i] = layer.curve(plain, g)
            if i:
                g = layer.vjp(plain, g, w[i])
        return Pass(saved, signals, outputs, y, weights)

    def _tangents(self, saved: list[Any], w: list[Any], dw: list[Any]) -> tuple[Tensor, list[Any]]:
        """R-forward: the outputs' tangents ``(k, N, c)`` and what each layer saves of its own."""
        dx: Any = None
        dsaved = []
        for layer, kept, wl, dwl in zip(self.layers, saved, w, dw, strict=True):
            dx, d = layer.tangent(kept, dx, wl, dwl)
            dsaved.append(d)
        return dx, dsaved

    def _backward_tangent(
        self, kept: Pass, w: list[Any], dw: list[Any], *, full: bool = True, to_inputs: bool = False
    ) -> tuple[Tensor, list[Any]]:
        """R-backward: tangents of ∂L/∂x (where asked ``to_inputs``) and of every layer's gradient.

        With ``full=False`` the network is taken as linear in θ: the Gauss–Newton product.
        """
        do, dsaved = self._tangents(kept.saved, w, dw)
        curved = self.loss.output_hessian_product(kept.outputs[0], kept.targets, do.permute(1, 2, 0))
        dg: Any = curved.permute(2, 0, 1).contiguous()
        if kept.weights is not None:
            dg = dg * kept.weights[None, :, None]
        out: list[Any] = [None] * len(self.layers)
        for i in reversed(range(0 if to_inputs else self._first, len(self.layers))):
            layer, saved, deeper = self.layers[i], kept.saved[i], to_inputs or i > self._first
            if full:
                g = cast(Tensor, kept.signals[i])
                dg, out[i] = layer.backward_tangent(saved, dsaved[i], g, dg, w[i], dw[i], deeper)
            else:
                dg, out[i] = layer.backward(saved, dg, w[i], deeper)
        return dg, out

    # -- the calls of Objective ---------------------------------------------------------------------------

    @torch.no_grad()
    def outputs(self, theta: Tensor, idx: Tensor | None = None) -> Tensor:
        w = self._weights(self._vector(theta)[:, None])
        return torch.cat(
            [self._propagate(w, self._start(x))[0][0] for x, _, _ in self._chunks(self.index(idx))]
        )

    @torch.no_grad()
    def example_losses_many(self, thetas: Tensor, idx: Tensor | None = None) -> Tensor:
        thetas, idx = self._block(thetas), self.index(idx)
        out = torch.empty(self.count(idx), thetas.shape[1], dtype=self.dtype, device=self.device)
        groups = list(self._columns(thetas))
        for x, y, place in self._chunks(idx):
            begun = self._start(x)
            for columns, w in groups:
                o = self._propagate(w, begun)[0]
                losses = self.loss.values(o.reshape(-1, self.n_outputs), _repeated(y, len(o)))
                out[place, columns] = losses.reshape(len(o), len(y)).T
        return out

    def gradient(self, theta: Tensor) -> Tensor:
        return self.gradients(self._vector(theta)[:, None])[:, 0]

    @torch.no_grad()
    def gradients(self, thetas: Tensor) -> Tensor:
        """∇R at each column of ``thetas``: ``(p, k) -> (p, k)``; each chunk of data is visited once."""
        thetas = self._block(thetas)
        total = torch.zeros_like(thetas)
        groups = list(self._columns(thetas))
        for x, y, place in self._chunks(None):
            begun = self._start(x)
            counted = None if self.weights is None else self.weights[place]
            for columns, w in groups:
                total[:, columns] += self._summed_gradients(w, begun, y, counted)
        return total / self.n + self.l2 * self.l2_mask[:, None] * thetas

    def _summed_gradients(
        self, w: list[Any], begun: tuple[Tensor, Any], y: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """``Σ_i w_i ∇L(z_i, θ_j)`` over one chunk at m vectors given as layer weights: ``(p, m)``."""
        outputs, saved = self._propagate(w, begun)
        g: Any = self._output_gradient(outputs, y)
        if weights is not None:
            g = g * weights[None, :, None]
        out: list[Any] = [None] * len(self.layers)
        for i in reversed(range(self._first, len(self.layers))):
            g, out[i] = self.layers[i].backward(saved[i], g, w[i], i > self._first)
        return self._flat(out)

    @torch.no_grad()
    def vjp(self, theta: Tensor, cotangents: Tensor, idx: Tensor | None = None) -> Tensor:
        theta, idx = self._vector(theta), self.index(idx)
        w = self._weights(theta[:, None])
        out = torch.empty(self.count(idx), self.p, dtype=self.dtype, device=self.device)
        for x, _, place in self._chunks(idx):
            saved, g = self._propagate(w, self._start(x))[1], cotangents[None, place]
            rows: list[Any] = []
            for i in reversed(range(self._first, len(self.layers))):
                layer = self.layers[i]
                if layer.size:
                    rows.append(layer.example_gradients(saved[i], g))
                if i > self._first:
                    g = layer.vjp(saved[i], g, w[i])
            out[place] = torch.cat(rows[::-1], dim=1)
        return out

    @torch.no_grad()
    def directional(self, theta: Tensor, V: Tensor, idx: Tensor | None = None) -> Tensor:
        theta, V, idx = self._vector(theta), self._block(V), self.index(idx)
        w, groups = self._weights(theta[:, None]), list(self._columns(V))
        out = torch.empty(self.count(idx), V.shape[1], dtype=self.dtype, device=self.device)
        for x, y, place in self._chunks(idx):
            outputs, saved = self._propagate(w, self._start(x))
            g = self._output_gradient(outputs, y)
            for columns, dw in groups:
                out[place, columns] = (self._tangents(saved, w, dw)[0] * g).sum(dim=2).T
        return out

    @torch.no_grad()
    def mixed(self, theta: Tensor, S: Tensor, idx: Tensor | None = None) -> Tensor:
        theta, S, idx = self._vector(theta), self._block(S), self.index(idx)
        w, groups = self._weights(theta[:, None]), list(self._columns(S))
        shape = (self.count(idx), *self.inputs.shape[1:], S.shape[1])
        out = torch.empty(shape, dtype=self.dtype, device=self.device)
        for x, y, place in self._chunks(idx):
            kept = self._run(w, x, y, None)
            for columns, dw in groups:
                dgx, _ = self._backward_tangent(kept, w, dw, to_inputs=True)
                to_torch = (1, 2, 0) if dgx.ndim == 3 else (1, 4, 2, 3, 0)
                out[place, ..., columns] = dgx.permute(to_torch)
        return out

    def hessian_at(
        self, theta: Tensor, idx: Tensor | None = None, weights: Tensor | None = None
    ) -> Callable[[Tensor], Tensor]:
        """V ↦ :meth:`hessian_product` at one θ, keeping up to ``cache_bytes`` between calls."""
        return self._product_at(theta, idx, weights, full=True, budget=self.cache_bytes)

    def gauss_newton_at(self, theta: Tensor, idx: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """V ↦ :meth:`gauss_newton_product` at one θ, keeping activations like :meth:`hessian_at`."""
        return self._product_at(theta, idx, None, full=False, budget=self.cache_bytes)

    def _curvature_product(
        self, theta: Tensor, V: Tensor, idx: Tensor | None, weights: Tensor | None, *, full: bool
    ) -> Tensor:
        return self._product_at(theta, idx, weights, full=full, budget=0)(V)

    def _product_at(
        self, theta: Tensor, idx: Tensor | None, weights: Tensor | None, *, full: bool, budget: int
    ) -> Callable[[Tensor], Tensor]:
        theta, idx, count = self._vector(theta), self.index(idx), self.count(self.index(idx))
        own = self._weights_of(idx)
        weights = own if weights is None else weights.to(self.dtype) * (1 if own is None else own)
        w = self._weights(theta[:, None])
        ready: dict[int, Pass] = {}
        room = budget

        def kept_at(x: Tensor, y: Tensor, place: slice) -> Pass:
            nonlocal room
            if place.start in ready:
                return ready[place.start]
            kept = self._run(w, x, y, None if weights is None else weights[place])
            if kept.bytes() <= room:
                room -= kept.bytes()
                ready[place.start] = kept
            return kept

        @torch.no_grad()
        def product(V: Tensor) -> Tensor:
            V = self._block(V)
            total = torch.zeros_like(V)
            groups = list(self._columns(V))
            for x, y, place in self._chunks(idx):
                kept = kept_at(x, y, place)
                for columns, dw in groups:
                    total[:, columns] += self._flat(self._backward_tangent(kept, w, dw, full=full)[1])
            return total / count + self.l2 * self.l2_mask[:, None] * V

        return product


def _repeated(targets: Tensor, m: int) -> Tensor:
    """The targets m times, one copy after another: ``(n, ...) -> (m·n, ...)``."""
    return targets.repeat(m, *[1] * (targets.ndim - 1))


def network_objective(
    model: nn.Module, loss: LossLike, inputs: Any, targets: Any, l2: Penalty, **settings: Any
) -> Objective:
    """The fastest objective for ``model``: :class:`SequentialObjective` where every layer is known, else
    :class:`~.module.Objective`. Arguments and errors are those of the latter."""
    model = with_parameters(plain_module(model), settings.pop("parameters", None))
    known = translate(model)
    names = [name for name, _ in model.named_parameters()]
    whole = len(names) == len(list(model.named_parameters(remove_duplicate=False)))
    if known is None or not whole or not any(layer.size for layer in known):
        return Objective(model, loss, inputs, targets, l2, **settings)
    return SequentialObjective(model, loss, inputs, targets, l2, **settings)
