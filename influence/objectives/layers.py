"""Layers with their first and second directional derivatives written as matrix products.

Every layer maps ``x -> y`` and offers four passes, the last two being the R-operator of the first two
(Pearlmutter, 1994):

- ``forward(x, w) -> y, saved`` and ``backward(saved, g, w) -> gx, gw`` with ``g = ∂L/∂y``;
- ``tangent(saved, dx, w, dw) -> dy, dsaved`` and
  ``backward_tangent(saved, dsaved, g, dg, w, dw) -> dgx, dgw``, the derivatives of both along ``(dx, dw)``.

Convolutions are matrix products of patches (im2col) by weights; their transposes gather too instead of
scattering: a strided convolution's transpose is a stride-1 product over small windows that writes all ``s²``
phases of a pixel block at once. At a fixed θ everything ``saved`` is computed once (:mod:`.sequential`).

Tensors are channels-last with one leading axis: ``(m, N, H, W, C)`` or ``(m, N, F)``, where m is 1 or the
number of parameter vectors (or of tangents) side by side. Parameters of an affine layer are
``w = (W (m, K, O), b (m, O) | None)``, with K ordered ``(kernel row, kernel column, channel)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Weights = tuple[Tensor, Tensor | None]


def product(a: Tensor, b: Tensor) -> Tensor:
    """``(m|1, r, s) @ (m|1, s, t)`` without ever copying a broadcast operand."""
    if a.shape[0] == b.shape[0] == 1:
        return torch.mm(a[0], b[0])[None]
    m = max(a.shape[0], b.shape[0])
    return torch.bmm(a.expand(m, -1, -1), b.expand(m, -1, -1))


def transposed_product(*pairs: tuple[Tensor, Tensor]) -> Tensor:
    """``(Σ a b)ᵀ`` of pairs ``(m|1, r, s), (m|1, s, t)``: ``(m, t, r)``.

    With few columns t and many rows r a BLAS multiplies twice as fast when the long axis is the one it
    vectorises; the transpose back rides on the bias or on a reordering that is due anyway.
    """
    m = max(len(part) for pair in pairs for part in pair)
    out: Tensor | None = None
    for a, b in pairs:
        if m == 1:
            out = torch.mm(b[0].T, a[0].T) if out is None else out.addmm_(b[0].T, a[0].T)
        else:
            wide = b.transpose(1, 2).expand(m, -1, -1), a.transpose(1, 2).expand(m, -1, -1)
            out = torch.bmm(*wide) if out is None else out.baddbmm_(*wide)
    assert out is not None  # there is a pair
    return out[None] if m == 1 else out


def rows_first(rows: Tensor, bias: Tensor | None) -> Tensor:
    """``(m, t, r) -> (m, r, t)`` in memory, plus a bias ``(m, t)``."""
    if bias is None:
        return rows.transpose(1, 2).contiguous()
    out = torch.empty(rows.shape[0], rows.shape[2], rows.shape[1], dtype=rows.dtype, device=rows.device)
    return torch.add(rows.transpose(1, 2), bias[:, None, :], out=out)


class Layer:
    """A layer without parameters; the passes of the identity."""

    @property
    def size(self) -> int:
        """Number of parameters."""
        return 0

    def unpack(self, block: Tensor) -> Any:
        """This layer's rows ``(size, m)`` of a parameter block as its weights."""
        return None

    def pack(self, w: Any) -> Tensor | None:
        """Inverse of :meth:`unpack`."""
        return None

    def forward(self, x: Tensor, w: Any) -> tuple[Tensor, Any]:
        """The outputs, and what the other passes need of this one."""
        return x, None

    def tangent(self, saved: Any, dx: Tensor | None, w: Any, dw: Any) -> tuple[Tensor | None, Any]:
        """The outputs' derivative along ``dx`` and ``dw``, and what of it the backward tangent needs."""
        return dx, None

    def vjp(self, saved: Any, g: Tensor, w: Any) -> Tensor:
        """∂L/∂x from ``g = ∂L/∂y``."""
        return g

    def backward(self, saved: Any, g: Tensor, w: Any, need_input: bool = True) -> tuple[Tensor | None, Any]:
        """∂L/∂x (where needed) and the gradient of the weights."""
        return (self.vjp(saved, g, w) if need_input else None), None

    def backward_tangent(
        self, saved: Any, dsaved: Any, g: Tensor, dg: Tensor, w: Any, dw: Any, need_input: bool = True
    ) -> tuple[Tensor | None, Any]:
        """The derivative of :meth:`backward` along the tangents ``dsaved``, ``dg`` and ``dw``."""
        return dg, None

    def example_gradients(self, saved: Any, g: Tensor) -> Tensor | None:
        """∂L_i/∂θ_layer for each example, ``(N, size)``; needs m = 1."""
        return None

    def curve(self, saved: Any, g: Tensor) -> Any:
        """What :meth:`backward_tangent` needs of g alone, computed once at a fixed θ."""
        return saved


@dataclass(frozen=True)
class Affine(Layer):
    """Fully connected: ``y = x W + b``. ``weight`` is the torch shape ``(O, K)``."""

    shape: tuple[int, ...]
    bias: bool

    @property
    def size(self) -> int:
        return self.weight_size + (self.shape[0] if self.bias else 0)

    @property
    def weight_size(self) -> int:
        """Numbers in the weight, the bias left out."""
        return torch.Size(self.shape).numel()

    def unpack(self, block: Tensor) -> Weights:
        flat = block[: self.weight_size].T
        return self._matrix(flat), (block[self.weight_size :].T if self.bias else None)

    def pack(self, w: Weights) -> Tensor:
        W, b = w
        flat = self._flat(W)
        return flat.T if b is None else torch.cat([flat, b], dim=1).T

    def _matrix(self, flat: Tensor) -> Tensor:
        return flat.reshape(-1, *self.shape).transpose(1, 2).contiguous()

    def _flat(self, W: Tensor) -> Tensor:
        return W.transpose(1, 2).reshape(len(W), -1)

    def patches(self, x: Tensor) -> Tensor:
        """The rows that the weights multiply: ``(m, N·L, K)`` with L output places an example."""
        return x

    def _outputs(self, rows: Tensor, saved: tuple[Tensor, tuple[int, ...]]) -> Tensor:
        return rows

    def _rows(self, y: Tensor) -> Tensor:
        return y.reshape(y.shape[0], -1, y.shape[-1])

    def _input_vjp(self, shape: tuple[int, ...], *pairs: tuple[Tensor, Tensor]) -> Tensor:
        """The transposed map: the sum of ``∂L/∂x`` over pairs ``(∂L/∂y, W)``; ``shape`` is x's."""
        return rows_first(transposed_product(*((g, W.transpose(1, 2)) for g, W in pairs)), None)

    def start(self, x: Tensor) -> Any:
        """What is saved of the input, the same for all weights."""
        return self.patches(x), tuple(x.shape)

    def forward(self, x: Tensor, w: Weights, saved: Any = None) -> tuple[Tensor, Any]:
        saved = self.start(x) if saved is None else saved
        return self._outputs(rows_first(transposed_product((saved[0], w[0])), w[1]), saved), saved

    def tangent(self, saved: Any, dx: Tensor | None, w: Weights, dw: Weights) -> tuple[Tensor, Any]:
        dP = None if dx is None else self.patches(dx)
        pairs = [(saved[0], dw[0])] if dP is None else [(saved[0], dw[0]), (dP, w[0])]
        return self._outputs(rows_first(transposed_product(*pairs), dw[1]), saved), dP

    def vjp(self, saved: Any, g: Tensor, w: Weights) -> Tensor:
        return self._input_vjp(saved[1], (g, w[0]))

    def backward(
        self, saved: Any, g: Tensor, w: Weights, need_input: bool = True
    ) -> tuple[Tensor | None, Weights]:
        rows = self._rows(g)
        # (gᵀP)ᵀ rather than Pᵀg: the thin operand first is what the BLAS multiplies fastest.
        gW = product(rows.transpose(1, 2), saved[0]).transpose(1, 2)
        gx = self.vjp(saved, g, w) if need_input else None
        return gx, (gW, rows.sum(dim=1) if self.bias else None)

    def backward_tangent(
        self,
        saved: Any,
        dsaved: Tensor | None,
        g: Tensor,
        dg: Tensor,
        w: Weights,
        dw: Weights,
        need_input: bool = True,
    ) -> tuple[Tensor | None, Weights]:
        _, (dgW, dgb) = self.backward(saved, dg, w, need_input=False)
        if dsaved is not None:
            dgW = dgW + product(self._rows(g).transpose(1, 2), dsaved).transpose(1, 2)
        dgx = self._input_vjp(saved[1], (dg, w[0]), (g, dw[0])) if need_input else None
        return dgx, (dgW, dgb)

    def example_gradients(self, saved: Any, g: Tensor) -> Tensor:
        n, rows = g.shape[1], self._rows(g)[0]
        G = rows.reshape(n, -1, rows.shape[-1])
        W = torch.bmm(G.transpose(1, 2), saved[0][0].reshape(n, G.shape[1], -1)).transpose(1, 2)
        flat = self._flat(W)
        return torch.cat([flat, G.sum(dim=1)], dim=1) if self.bias else flat


@dataclass(frozen=True)
class Conv(Affine):
    """2-D convolution, zero padding, no dilation or groups. ``shape`` is torch's ``(O, C, kh, kw)``."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)

    def _matrix(self, flat: Tensor) -> Tensor:
        W = flat.reshape(-1, *self.shape).permute(0, 3, 4, 2, 1)
        return W.reshape(len(W), -1, self.shape[0]).contiguous()

    def _flat(self, W: Tensor) -> Tensor:
        out, channels, kh, kw = self.shape
        return W.reshape(-1, kh, kw, channels, out).permute(0, 4, 3, 1, 2).reshape(len(W), -1)

    def patches(self, x: Tensor) -> Tensor:
        ph, pw = self.padding
        if ph or pw:
            x = _padded(x, (ph, ph), (pw, pw))
        return _windows(x, (self.shape[2], self.shape[3]), self.stride)

    def _outputs(self, rows: Tensor, saved: tuple[Tensor, tuple[int, ...]]) -> Tensor:
        _, n, height, width, _ = saved[1]
        return rows.view(rows.shape[0], n, *self._out_size(height, width), -1)

    def _out_size(self, height: int, width: int) -> tuple[int, int]:
        (kh, kw), (sh, sw), (ph, pw) = self.shape[2:], self.stride, self.padding
        return (height + 2 * ph - kh) // sh + 1, (width + 2 * pw - kw) // sw + 1

    def _input_vjp(self, shape: tuple[int, ...], *pairs: tuple[Tensor, Tensor]) -> Tensor:
        """``x[s·a + r] = Σ_τ g[a − τ] W[s·τ + r]``: windows of g by a matrix that holds every phase r."""
        out, channels, kh, kw = self.shape
        (sh, sw), (ph, pw) = self.stride, self.padding
        height, width = shape[2] + 2 * ph, shape[3] + 2 * pw
        qh, qw = -(-kh // sh), -(-kw // sw)  # window of g that reaches one block of s × s pixels
        ah, aw = -(-height // sh), -(-width // sw)  # blocks
        windowed = []
        for g, W in pairs:
            kernel = W.reshape(-1, kh, kw, channels, out)
            kernel = F.pad(kernel, (0, 0, 0, 0, 0, qw * sw - kw, 0, qh * sh - kh))
            kernel = kernel.reshape(-1, qh, sh, qw, sw, channels, out).flip(1, 3)
            matrix = kernel.permute(0, 1, 3, 6, 2, 4, 5).reshape(len(W), qh * qw * out, sh * sw * channels)
            below, right = max(0, ah - g.shape[2]), max(0, aw - g.shape[3])
            around = _padded(g, (qh - 1, below), (qw - 1, right))[:, :, : ah + qh - 1, : aw + qw - 1]
            windowed.append((_windows(around, (qh, qw), (1, 1)), matrix))
        x = transposed_product(*windowed)
        x = x.view(len(x), sh, sw, channels, -1, ah, aw).permute(0, 4, 5, 1, 6, 2, 3)
        x = x.reshape(len(x), -1, ah * sh, aw * sw, channels)
        if (ph, pw) == (0, 0) and x.shape[2:4] == shape[2:4]:
            return x
        return x[:, :, ph : ph + shape[2], pw : pw + shape[3]].contiguous()


def _padded(x: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    """Zeros around maps. Not ``F.pad``: it takes five axes for ``(N, C, D, H, W)``, reordering memory."""
    m, n, height, width, channels = x.shape
    out = x.new_zeros(m, n, height + sum(rows), width + sum(columns), channels)
    out[:, :, rows[0] : rows[0] + height, columns[0] : columns[0] + width] = x
    return out


def _windows(x: Tensor, kernel: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """im2col of channels-last maps: ``(m, N, H, W, C) -> (m, N·L, kh·kw·C)``."""
    (kh, kw), (sh, sw) = kernel, stride
    m, n, height, width, channels = x.shape
    if (kh, kw, sh, sw) == (1, 1, 1, 1):
        return x.reshape(m, n * height * width, channels)
    a, b, c, d, e = x.stride()
    oh, ow = (height - kh) // sh + 1, (width - kw) // sw + 1
    view = x.as_strided((m, n, oh, ow, kh, kw, channels), (a, b, c * sh, d * sw, c, d, e), x.storage_offset())
    return view.reshape(m, n * oh * ow, kh * kw * channels)


class Elementwise(Layer, ABC):
    """``y = φ(x)``: saves φ′ and, once g is known, φ″·g."""

    @abstractmethod
    def _values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """φ and φ′."""

    @abstractmethod
    def _second(self, y: Tensor, slope: Tensor) -> Tensor | None:
        """φ″ from φ and φ′, or None where it is zero."""

    def forward(self, x: Tensor, w: Any) -> tuple[Tensor, Any]:
        y, slope = self._values(x)
        return y, (y, slope)

    def tangent(self, saved: Any, dx: Tensor | None, w: Any, dw: Any) -> tuple[Tensor | None, Any]:
        return (None, None) if dx is None else (saved[1] * dx, dx)

    def vjp(self, saved: Any, g: Tensor, w: Any) -> Tensor:
        result: Tensor = saved[1] * g
        return result

    def curve(self, saved: Any, g: Tensor) -> Any:
        second = self._second(saved[0], saved[1])
        return (None if second is None else second.mul_(g)), saved[1]

    def backward_tangent(
        self, saved: Any, dsaved: Any, g: Tensor, dg: Tensor, w: Any, dw: Any, need_input: bool = True
    ) -> tuple[Tensor, Any]:
        out = saved[1] * dg
        if saved[0] is not None and dsaved is not None:
            out = out.addcmul_(saved[0], dsaved)
        return out, None


class Tanh(Elementwise):
    """φ = tanh, φ′ = 1 − φ², φ″ = −2 φ φ′."""

    def _values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # tanh(x) = 2σ(2x) − 1: right to one unit of rounding of 1, and several times faster than torch.tanh.
        y = torch.sigmoid(x + x).mul_(2).sub_(1)
        return y, (y * y).neg_().add_(1)

    def _second(self, y: Tensor, slope: Tensor) -> Tensor:
        return (y * slope).mul_(-2)


class ReLU(Elementwise):
    """φ = max(0, ·); φ″ is zero almost everywhere."""

    def _values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.relu(x), (x > 0).to(x.dtype)

    def _second(self, y: Tensor, slope: Tensor) -> None:
        return None


class Linearized(Layer, ABC):
    """A parameterless linear map: subclasses give it and its transpose."""

    @abstractmethod
    def _map(self, x: Tensor) -> Tensor:
        """The map: batch first."""

    @abstractmethod
    def _transpose(self, g: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Its transpose; ``shape`` is that of the map's input."""

    def forward(self, x: Tensor, w: Any) -> tuple[Tensor, Any]:
        return self._map(x), tuple(x.shape)

    def tangent(self, saved: Any, dx: Tensor | None, w: Any, dw: Any) -> tuple[Tensor | None, Any]:
        return (None if dx is None else self._map(dx)), None

    def vjp(self, saved: Any, g: Tensor, w: Any) -> Tensor:
        return self._transpose(g, saved)

    def backward_tangent(
        self, saved: Any, dsaved: Any, g: Tensor, dg: Tensor, w: Any, dw: Any, need_input: bool = True
    ) -> tuple[Tensor, Any]:
        return self._transpose(dg, saved), None


class GlobalMean(Linearized):
    """Mean over the map, ``(H, W) -> (1, 1)``."""

    def _map(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3), keepdim=True)

    def _transpose(self, g: Tensor, shape: tuple[int, ...]) -> Tensor:
        return (g / (shape[2] * shape[3])).expand(-1, -1, shape[2], shape[3], -1).contiguous()


@dataclass(frozen=True)
class MeanPool(Linearized):
    """Mean over ``kernel × kernel`` tiles; rows and columns beyond the last tile are dropped."""

    kernel: int

    def _map(self, x: Tensor) -> Tensor:
        k, (m, n, height, width, channels) = self.kernel, x.shape
        h, w = height // k, width // k
        tiles = x[:, :, : h * k, : w * k].reshape(m, n, h, k, w, k, channels)
        return tiles.mean(dim=(3, 5))

    def _transpose(self, g: Tensor, shape: tuple[int, ...]) -> Tensor:
        k = self.kernel
        big = (g / k**2).repeat_interleave(k, dim=2).repeat_interleave(k, dim=3)
        return _padded(big, (0, shape[2] - big.shape[2]), (0, shape[3] - big.shape[3]))


class Flatten(Linearized):
    """Maps to vectors in torch's order ``(C, H, W)``."""

    def _map(self, x: Tensor) -> Tensor:
        return x if x.ndim == 3 else x.permute(0, 1, 4, 2, 3).reshape(x.shape[0], x.shape[1], -1)

    def _transpose(self, g: Tensor, shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 3:
            return g
        _, n, height, width, channels = shape
        maps = g.reshape(g.shape[0], n, channels, height, width)
        return maps.permute(0, 1, 3, 4, 2).contiguous()


def translate(module: nn.Module) -> list[Layer] | None:
    """The layers of a ``Sequential`` of known modules, or None where one is not known exactly."""
    if _altered(module):
        return None
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        layers: list[Layer] = []
        for child in module:
            part = translate(child)
            if part is None:
                return None
            layers += part
        return layers
    if any(not w.requires_grad for w in module.parameters()):
        return None
    return _known(module, type(module))


def _altered(module: Any) -> bool:
    """Whether a call of the module is more than its class's ``forward``: hooks, or one of its own."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "forward")
    return any(vars(module).get(name) for name in names)


def _known(module: Any, kind: type[nn.Module]) -> list[Layer] | None:
    """The one layer of a module that has no children."""
    if kind is nn.Linear:
        return [Affine(tuple(module.weight.shape), module.bias is not None)]
    if kind is nn.Conv2d:
        plain = module.groups == 1 and module.dilation == (1, 1) and not isinstance(module.padding, str)
        if not plain or module.padding_mode != "zeros":
            return None
        bias, shape = module.bias is not None, tuple(module.weight.shape)
        return [Conv(shape, bias, tuple(module.stride), tuple(module.padding))]
    if kind is nn.AvgPool2d:
        k = module.kernel_size
        plain = isinstance(k, int) and module.stride == k and module.padding == 0 and not module.ceil_mode
        return [MeanPool(k)] if plain else None
    if kind is nn.AdaptiveAvgPool2d:
        return [GlobalMean()] if module.output_size in (1, (1, 1)) else None
    if kind is nn.Flatten:
        return [Flatten()] if (module.start_dim, module.end_dim) == (1, -1) else None
    if kind is nn.Identity or (isinstance(module, nn.Dropout) and not module.training):
        return []
    known: dict[type[nn.Module], type[Layer]] = {nn.Tanh: Tanh, nn.ReLU: ReLU}
    return [known[kind]()] if kind in known else None
