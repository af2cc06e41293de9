"""Derivatives of one batch of a network, each in several ways that a check chooses among
(:mod:`.derivatives`).

With outputs ``o_i = f(θ, x_i)``, the loss's gradient ``g_i`` and Hessian ``B_i`` in the outputs and weights
``w_i``:

- gradient ``Σ w_i J_iᵀ g_i``;
- Hessian product ``Σ w_i (Σ_a g_ia ∇²f_ia v + J_iᵀ B_i J_i v)``; without its first term, Gauss-Newton;
- directional ``g_i·J_i v``, from the tangents ``J_i v``;
- per-example ``J_iᵀ u_i``;
- mixed ``∇_x (v·∇_θ ℓ_i)`` and mixed direction ``∇_θ (δ·∇_x ℓ)``.

The three methods: ``TRANSFORMS``, the fastest (forward mode, reverse over forward, vmap of gradients, by
torch.func); ``AUTOGRAD``, plain reverse mode and double backward (``J v`` as the derivative in u of
``(Jᵀu)·v``), examples one by one; ``DIFFERENCES``, central differences of first derivatives in float64.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap

from influence.losses import Loss
from influence.objectives.inputs import Inputs, floating_leaf, map_tensors, take, with_floating
from influence.objectives.network import Network

STEP = 1e-5  # of central differences, relative to the size of θ: error about STEP² + 1e-16/STEP


class Method(enum.StrEnum):
    """How a derivative is computed, fastest first."""

    TRANSFORMS = "torch.func"
    AUTOGRAD = "autograd"
    DIFFERENCES = "differences"


@dataclass(frozen=True)
class Way:
    """A method, and whether attention and recurrent layers run without fused kernels."""

    method: Method = Method.TRANSFORMS
    plain_kernels: bool = False

    def __str__(self) -> str:
        return self.method.value + (", plain kernels" if self.plain_kernels else "")


def _vjp(function: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """``torch.func.vjp`` of a function of one tensor, with the type that it has then."""
    outputs, back, *_ = vjp(function, at)
    return outputs, lambda cotangent: back(cotangent)[0]


def _jvp(function: Callable[[Tensor], Tensor], at: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
    """``torch.func.jvp`` of a function of one tensor, with the type that it has then."""
    outputs, tangent, *_ = jvp(function, (at,), (along,))
    return outputs, tangent


@dataclass(frozen=True)
class Batch:
    """A few examples: inputs, targets ``(m, ...)`` and weights ``(m,)`` or None."""

    x: Inputs
    y: Tensor
    w: Tensor | None = None

    @property
    def weights(self) -> Tensor:
        """``(m,)``, ones if none were given."""
        return torch.ones(len(self.y), device=self.y.device) if self.w is None else self.w

    def weigh(self, rows: Tensor) -> Tensor:
        """``w_i`` times the row i."""
        return rows if self.w is None else rows * self.w[:, None]


@dataclass(frozen=True)
class Passes:
    """The derivatives of a batch for one network and loss.

    Args:
        network: in the objective's dtype.
        loss: of its outputs.
        double: the same network in float64, for differences.
    """

    network: Network
    loss: Loss
    double: Network | None = None

    def outputs(self, way: Way, theta: Tensor, x: Inputs) -> Tensor:
        """f_θ(x): ``(m, c)``, without a graph."""
        with torch.no_grad(), self.network.settings(way.plain_kernels):
            return self.network(theta, x)

    # -- first derivatives ---------------------------------------------------------------------------------

    def gradient(self, way: Way, theta: Tensor, batch: Batch) -> Tensor:
        """``Σ w_i J_iᵀ g_i``: ``(p,)``."""
        with self.network.settings(way.plain_kernels):
            if way.method is Method.TRANSFORMS:
                outputs, back = _vjp(lambda t: self.network(t, batch.x), theta)
                return back(batch.weigh(self.loss.output_gradient(outputs, batch.y)))
            bound = self.network.bind(theta)
            outputs = bound.outputs(batch.x)
            g = batch.weigh(self.loss.output_gradient(outputs.detach(), batch.y))
            return bound.gradient(outputs, g)

    def vjp(self, way: Way, theta: Tensor, x: Inputs, u: Tensor) -> Tensor:
        """``J_iᵀ u_i``: ``(m, c) -> (m, p)``."""
        with self.network.settings(way.plain_kernels):
            if way.method is Method.TRANSFORMS:

                def paired(t: Tensor, x: Inputs, u: Tensor) -> Tensor:
                    return (self.network(t, map_tensors(lambda a: a[None], x))[0] * u).sum()

                each: Tensor = vmap(grad(paired), in_dims=(None, 0, 0))(theta, x, u)
                return each
            bound = self.network.bind(theta)
            one = (slice(i, i + 1) for i in range(len(u)))
            return torch.stack([bound.gradient(bound.outputs(take(x, i)), u[i]) for i in one])

    def tangents(self, way: Way, theta: Tensor, v: Tensor, x: Inputs) -> tuple[Tensor, Tensor]:
        """Outputs and ``J_i v``: both ``(m, c)``."""
        if way.method is Method.DIFFERENCES:
            return self.outputs(way, theta, x), self._output_difference(way, theta, v, x)
        with self.network.settings(way.plain_kernels):
            if way.method is Method.TRANSFORMS:
                with torch.no_grad():
                    return _jvp(lambda t: self.network(t, x), theta, v)
            bound = self.network.bind(theta)
            outputs = bound.outputs(x)
            u = torch.zeros_like(outputs).requires_grad_(True)
            with torch.enable_grad():
                pairing = bound.gradient(outputs, u, create_graph=True) @ v
            return outputs.detach(), _gradient(pairing, u)

    # -- second derivatives --------------------------------------------------------------------------------

    def curvature(self, way: Way, theta: Tensor, v: Tensor, batch: Batch, *, full: bool) -> Tensor:
        """The Hessian product, or with ``full=False`` the Gauss-Newton product: ``(p,)``."""
        if way.method is Method.DIFFERENCES:
            if full:
                return self._gradient_difference(way, theta, v, batch)
            outputs, tangent = self.tangents(way, theta, v, batch.x)
            return self._vjp_sum(way, theta, batch.x, self._output_curvature(outputs, tangent, batch))
        with self.network.settings(way.plain_kernels):
            if way.method is Method.TRANSFORMS:
                return self._reverse_over_forward(theta, v, batch, batch.x, theta.detach(), full=full)
            return self._double_backward(theta, v, batch, None, full=full)

    def mixed(self, way: Way, theta: Tensor, s: Tensor, batch: Batch) -> Tensor:
        """``∇_x (s·∇_θ ℓ_i)``: the shape of the one floating input."""
        point = floating_leaf(batch.x).detach().clone()
        if way.method is Method.DIFFERENCES:
            return self._mixed_difference(way, theta, s, batch)
        with self.network.settings(way.plain_kernels):
            if way.method is Method.TRANSFORMS:
                return self._reverse_over_forward(theta, s, batch, None, point, full=True)
            return self._double_backward(theta, s, batch, point, full=True)

    def mixed_direction(self, way: Way, theta: Tensor, batch: Batch, delta: Tensor) -> Tensor:
        """``∇_θ (δ·∇_x ℓ)`` summed over the batch, δ of the shape of its floating input: ``(p,)``."""
        point = floating_leaf(batch.x)
        if way.method is Method.DIFFERENCES:
            return self._input_difference(way, theta, batch, delta)
        with self.network.settings(way.plain_kernels):
            if way.method is Method.TRANSFORMS:

                def gradient(value: Tensor) -> Tensor:
                    x = with_floating(batch.x, value)
                    outputs, back = _vjp(lambda t: self.network(t, x), theta)
                    return back(batch.weigh(self.loss.output_gradient(outputs, batch.y)))

                return _jvp(gradient, point, delta)[1]
            bound = self.network.bind(theta)
            value = point.detach().clone().requires_grad_(True)
            outputs = bound.outputs(with_floating(batch.x, value))
            fixed = outputs.detach()
            u = batch.weigh(self.loss.output_gradient(fixed, batch.y)).requires_grad_(True)
            with torch.enable_grad():
                pairing = (torch.autograd.grad(outputs, value, u, create_graph=True)[0] * delta).sum()
            curved, tangent = bound.gradient(pairing), _gradient(pairing, u)
            return curved + bound.gradient(outputs, self._output_curvature(fixed, tangent, batch))

    def _output_curvature(self, outputs: Tensor, tangent: Tensor, batch: Batch) -> Tensor:
        """``w_i B_i J_i v``: ``(m, c)``."""
        product = self.loss.output_hessian_product(outputs, batch.y, tangent[:, :, None])[:, :, 0]
        return batch.weigh(product)

    def _reverse_over_forward(
        self, theta: Tensor, v: Tensor, batch: Batch, x: Inputs | None, point: Tensor, *, full: bool
    ) -> Tensor:
        """∇ of ``Σ_i w_i (g_iᵀ (J_i v) + (B_i J_i v)ᵀ f_i)`` with g and B held fixed, in θ or (x None) in x.

        In θ this is ``Σ w_i ∇²ℓ_i v``, in x it is ``∇_x (v·∇_θ ℓ_i)`` row by row. The first term carries the
        curvature of the network; without it (``full=False``) this is the Gauss-Newton product.
        """

        def pairing(t: Tensor, x: Inputs) -> Tensor:
            outputs, tangent = _jvp(lambda t: self.network(t, x), t, v)
            fixed = outputs.detach()
            curved = self.loss.output_hessian_product(fixed, batch.y, tangent.detach()[:, :, None])[:, :, 0]
            pairs: Tensor = (curved * outputs).sum(dim=1)
            if full:
                pairs = pairs + (self.loss.output_gradient(fixed, batch.y) * tangent).sum(dim=1)
            return pairs.sum() if batch.w is None else (batch.w * pairs).sum()

        leaf = point.requires_grad_(True)
        with torch.enable_grad():
            total = pairing(theta, with_floating(batch.x, leaf)) if x is None else pairing(leaf, x)
            return torch.autograd.grad(total, leaf)[0]

    def _double_backward(
        self, theta: Tensor, v: Tensor, batch: Batch, point: Tensor | None, *, full: bool
    ) -> Tensor:
        """The same by reverse mode alone: ``∂/∂θ`` (or ``∂/∂x``) and ``∂/∂u`` of ``v·Jᵀu`` at ``u = w g``."""
        bound = self.network.bind(theta)
        value = None if point is None else point.requires_grad_(True)
        outputs = bound.outputs(batch.x if value is None else with_floating(batch.x, value))
        fixed = outputs.detach()
        u = batch.weigh(self.loss.output_gradient(fixed, batch.y)).requires_grad_(True)
        with torch.enable_grad():
            pairing = bound.gradient(outputs, u, create_graph=True) @ v
        curved = self._output_curvature(fixed, _gradient(pairing, u), batch)
        if value is not None:
            return _gradient(pairing, value) + _gradient(outputs, value, curved)
        straight = bound.gradient(outputs, curved)
        return straight + bound.gradient(pairing) if full else straight

    def _vjp_sum(self, way: Way, theta: Tensor, x: Inputs, u: Tensor) -> Tensor:
        """``Σ J_iᵀ u_i``: ``(p,)``."""
        with self.network.settings(way.plain_kernels):
            bound = self.network.bind(theta)
            return bound.gradient(bound.outputs(x), u)

    # -- differences: in float64, whatever the objective computes in ---------------------------------------

    def _in_double(self) -> Passes:
        return Passes(self.double or self.network.to(torch.float64), self.loss)

    def _gradient_difference(self, way: Way, theta: Tensor, v: Tensor, batch: Batch) -> Tensor:
        passes, plain = self._in_double(), Way(Method.AUTOGRAD, way.plain_kernels)
        batch64, point, along, h = _doubled(passes.network, batch, theta, v)
        ahead, behind = (passes.gradient(plain, point + s * along, batch64) for s in (h, -h))
        return ((ahead - behind) / (2 * h)).to(theta.dtype)

    def _output_difference(self, way: Way, theta: Tensor, v: Tensor, x: Inputs) -> Tensor:
        passes = self._in_double()
        batch64, point, along, h = _doubled(passes.network, Batch(x, theta), theta, v)
        ahead, behind = (passes.outputs(way, point + s * along, batch64.x) for s in (h, -h))
        return ((ahead - behind) / (2 * h)).to(theta.dtype)

    def _mixed_difference(self, way: Way, theta: Tensor, s: Tensor, batch: Batch) -> Tensor:
        passes = self._in_double()
        batch64, point, along, h = _doubled(passes.network, batch, theta, s)
        ahead, behind = (passes.input_gradient(way, point + t * along, batch64) for t in (h, -h))
        return ((ahead - behind) / (2 * h)).to(theta.dtype)

    def _input_difference(self, way: Way, theta: Tensor, batch: Batch, delta: Tensor) -> Tensor:
        passes, plain = self._in_double(), Way(Method.AUTOGRAD, way.plain_kernels)
        batch64 = doubled(passes.network, batch)
        point, along = floating_leaf(batch64.x), delta.double()
        h = step(point, along)
        ahead, behind = (
            passes.gradient(
                plain,
                theta.double(),
                Batch(with_floating(batch64.x, point + s * along), batch64.y, batch64.w),
            )
            for s in (h, -h)
        )
        return ((ahead - behind) / (2 * h)).to(theta.dtype)

    def input_gradient(self, way: Way, theta: Tensor, batch: Batch) -> Tensor:
        """``w_i ∇_x ℓ_i``: the shape of the floating input."""
        with self.network.settings(way.plain_kernels):
            value = floating_leaf(batch.x).detach().clone().requires_grad_(True)
            outputs = self.network.bind(theta).outputs(with_floating(batch.x, value))
            g = batch.weigh(self.loss.output_gradient(outputs.detach(), batch.y))
            return _gradient(outputs, value, g)


def step(point: Tensor, along: Tensor, relative: float = STEP) -> float:
    """The step h for which ``h·along`` is ``relative`` of the point's size."""
    size = float(along.norm())
    return relative * max(float(point.norm()), 1.0) / size if size else 1.0


def _gradient(outputs: Tensor, leaf: Tensor, u: Tensor | None = None) -> Tensor:
    return torch.autograd.grad(
        outputs, leaf, u, retain_graph=True, allow_unused=True, materialize_grads=True
    )[0]


def doubled(network: Network, batch: Batch) -> Batch:
    """The batch for a network in float64."""
    y = batch.y.double() if batch.y.is_floating_point() else batch.y
    return Batch(network.on_examples(batch.x), y, None if batch.w is None else batch.w.double())


def _doubled(network: Network, batch: Batch, theta: Tensor, v: Tensor) -> tuple[Batch, Tensor, Tensor, float]:
    point, along = theta.double(), v.double()
    return doubled(network, batch), point, along, step(point, along)
