"""No derivative of an unknown module is trusted unseen: each way is compared with differences before it is
used.

PyTorch's rules for forward over reverse are wrong for some layers (LayerNorm, InstanceNorm, ``linalg.solve``)
and missing for others (fused attention, GLU, cdist); ``vmap`` fails on recurrent layers. So an objective of
an unknown module takes a few of its examples, a random point near its θ and a random direction, all in
float64, and compares, for a quadratic function of the outputs in place of the loss (whose derivatives are
known):

- the gradient with central differences of the loss;
- the Hessian product with central differences of that gradient;
- the Gauss-Newton and directional products with central differences of the outputs;
- per-example gradients with the gradient of one example at a time;
- mixed derivatives with central differences of gradients, when they are first asked for.

The fastest way that agrees is taken. A kink (ReLU, max pooling) between the two points of a difference would
raise a false alarm. Differences at two steps must therefore agree with each other before anything is held
against them; if not, smaller steps and then other directions and fewer examples are tried.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from influence.errors import DataError
from influence.losses import Loss
from influence.objectives.inputs import Inputs, count, floating_leaf, leaves, take, with_floating
from influence.objectives.network import Network
from influence.objectives.passes import Batch, Method, Passes, Way

WAYS = tuple(Way(method, plain) for method in (Method.TRANSFORMS, Method.AUTOGRAD) for plain in (False, True))
LAST = Way(Method.DIFFERENCES, True)
_STEPS = (1e-5, 1e-6, 1e-7, 1e-8)  # relative to the size of the parameters
_AGREE = 1e-5  # relative; the wrong rules that were met are off by 1e-3 and more
_LOOSE = 1e-2  # the same formula in float32 against float64
_ROUNDING = 50 * torch.finfo(torch.float64).eps
_DRAWS = (1.0, 1.0, 0.5, 0.25, 0.0)  # share of the examples in each draw; at least one

_WORDS = {
    Method.TRANSFORMS: "torch.func",
    Method.AUTOGRAD: "reverse mode",
    Method.DIFFERENCES: "differences of gradients",
}


@dataclass
class Derivatives:
    """Which way each derivative of an objective is computed; shared by all objectives made from one.

    Attributes:
        gradient, hessian, gauss_newton, directional, per_example: chosen when the objective is made.
        mixed, mixed_direction: chosen at their first use; None before.
        notes: what a reader of the results should know, one sentence each.
    """

    gradient: Way = field(default_factory=Way)
    hessian: Way = field(default_factory=Way)
    gauss_newton: Way = field(default_factory=Way)
    directional: Way = field(default_factory=Way)
    per_example: Way = field(default_factory=Way)
    mixed: Way | None = None
    mixed_direction: Way | None = None
    notes: list[str] = field(default_factory=list)

    def by_differences(self) -> list[str]:
        """The derivatives that no exact way gives."""
        return [name for name, way in self.ways().items() if way.method is Method.DIFFERENCES]

    def ways(self) -> dict[str, Way]:
        """Name of each derivative and its way, as far as chosen."""
        all_of_them = {
            "gradient": self.gradient,
            "Hessian": self.hessian,
            "Gauss-Newton": self.gauss_newton,
            "directional": self.directional,
            "per-example": self.per_example,
            "mixed": self.mixed,
            "mixed direction": self.mixed_direction,
        }
        return {name: way for name, way in all_of_them.items() if way is not None}

    def __str__(self) -> str:
        parts = []
        for name, way in self.ways().items():
            fused = way.plain_kernels and way.method is not Method.DIFFERENCES
            kernels = ", without fused kernels" if fused else ""
            parts.append(f"{name}: {_WORDS[way.method]}{kernels}")
        return "; ".join(parts) + "".join(f". {note}" for note in self.notes)


@dataclass(frozen=True)
class Estimate:
    """A central difference and how exact it is: ``error`` bounds its rounding, in the norm of ``value``."""

    value: Tensor
    error: float

    def agrees(self, other: Tensor, relative: float = _AGREE) -> bool:
        """Whether ``other`` is the same up to ``relative`` and rounding."""
        if other.shape != self.value.shape or not bool(torch.isfinite(other).all()):
            return False
        gap = float((other - self.value).norm())
        return gap <= relative * max(float(self.value.norm()), float(other.norm())) + self.error


def central(
    function: Callable[[Tensor], Tensor], point: Tensor, along: Tensor, size: float
) -> Estimate | None:
    """The derivative of ``function`` along ``along``, or None if it does not settle as the step shrinks."""
    before: Estimate | None = None
    for relative in _STEPS:
        h = relative * size / float(along.norm())
        ahead, behind = function(point + h * along), function(point - h * along)
        rounding = _ROUNDING * float(torch.maximum(ahead.abs(), behind.abs()).norm()) / h
        now = Estimate((ahead - behind) / (2 * h), rounding)
        if before is not None and before.agrees(now.value) and bool(torch.isfinite(now.value).all()):
            return before  # the larger step of the two has the smaller rounding error
        before = now
    return None


class Probe(Loss):
    """``ℓ(o, c) = c·o + ½‖o‖²``: curved everywhere and without kinks, so that every derivative shows."""

    name: ClassVar[str] = "probe"

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (targets * outputs + 0.5 * outputs**2).sum(dim=1)

    def output_gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return targets + outputs

    def output_hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.diag_embed(torch.ones_like(outputs))

    def output_hessian_product(self, outputs: Tensor, targets: Tensor, tangents: Tensor) -> Tensor:
        return tangents


class Check:
    """Chooses :class:`Derivatives` for a network and examples of its data.

    Args:
        network: in the dtype of the objective.
        x: all examples; a few are taken.
        most: how many at most.

    Raises:
        DataError: the gradient is not that of the outputs, or the outputs are not differentiable.
    """

    def __init__(self, network: Network, x: Inputs, most: int = 8) -> None:
        self.network, self.loss = network, Probe()
        self.double = network if network.dtype == torch.float64 else network.to(torch.float64)
        n = count(x)
        m = min(n, most, 8 if network.p <= 100_000 else 4 if network.p <= 1_000_000 else 2)
        self.x = self.double.on_examples(take(x, torch.arange(m, device=leaves(x)[0].device) * n // m))
        self.m = m
        self._generator = torch.Generator().manual_seed(0)
        self.why = ""  # the last refusal of a way, in torch's words

    # -- what is compared ----------------------------------------------------------------------------------

    def choose(self) -> Derivatives:
        """The ways of everything but the mixed derivatives."""
        for share in _DRAWS:
            draw = self._draw(share)
            chosen = self._first_derivatives(draw)
            if chosen is None:
                continue
            second = self._second_derivatives(draw, chosen)
            if second is not None:
                return self._noted(second)
        raise DataError(
            f"differences of the {self._name()}'s gradients do not settle as their step shrinks, so its "
            "second derivatives mean nothing: it jumps somewhere, or changes from pass to pass; use smooth "
            "operations, and call model.eval()"
        )

    def choose_mixed(self, chosen: Derivatives) -> Way:
        """The way of ``∇_x (v·∇_θ ℓ)``."""
        for share in _DRAWS:
            draw = self._draw(share)
            oracle = central(draw.input_gradient, *draw.line)
            if oracle is not None:
                run = self._runner(draw, lambda p, way, t, v, b: p.mixed(way, t, v, b))
                return self._fastest(run, oracle)
        raise DataError(f"the {self._name()} is not differentiable in its inputs near them ({self.why})")

    def choose_mixed_direction(self, chosen: Derivatives) -> Way:
        """The way of ``∇_θ (δ·∇_x ℓ)``."""
        for share in _DRAWS:
            draw = self._draw(share)
            point = floating_leaf(draw.batch.x)
            delta = torch.randn(point.shape, generator=self._generator, dtype=torch.float64).to(point)

            def gradient(value: Tensor, draw: Draw = draw) -> Tensor:
                there = Batch(with_floating(draw.batch.x, value), draw.batch.y, draw.batch.w)
                return draw.passes.gradient(chosen.gradient, draw.theta, there)

            oracle = central(gradient, point, delta, max(1.0, float(point.norm())))
            if oracle is not None:

                def run(way: Way, dtype: torch.dtype, draw: Draw = draw, delta: Tensor = delta) -> Tensor:
                    passes, theta, batch = self._cast(draw, dtype)
                    return passes.mixed_direction(way, theta, batch, delta.to(dtype))

                return self._fastest(run, oracle)
        raise DataError(f"the {self._name()} is not differentiable in its inputs near them ({self.why})")

    def _first_derivatives(self, draw: Draw) -> Derivatives | None:
        losses = central(lambda t: draw.loss_at(t)[None], *draw.line)
        if losses is None:
            return None
        run = self._runner(draw, lambda p, way, t, v, b: p.gradient(way, t, b))
        for way in WAYS:
            # One number along v stands for the whole gradient: an error e shows as e·v, of the size of
            # |e||v|.
            g = self._attempt(run, way)
            scale = 0.0 if g is None else float((g * draw.v).norm())
            if g is not None and Estimate(losses.value, losses.error + _AGREE * scale).agrees(
                (g @ draw.v)[None]
            ):
                return Derivatives(gradient=way)
        self._refuse_gradient(draw)
        return None

    def _refuse_gradient(self, draw: Draw) -> None:
        """Says which parameter's gradient is wrong; if none is on its own, the draw met a kink."""
        passes = draw.passes
        g = self._attempt(self._runner(draw, lambda p, way, t, v, b: p.gradient(way, t, b)), WAYS[-1])
        if g is None:
            raise DataError(f"the {self._name()} has no gradient: {self.why}")
        start = 0
        for piece in self.network.pieces:
            v = torch.zeros_like(draw.v)
            v[start : start + piece.size] = draw.v[start : start + piece.size]
            start += piece.size
            if not bool(v.any()):
                continue
            losses = central(lambda t: draw.loss_at(t)[None], draw.theta, v, draw.size)
            if losses is None:
                continue
            losses = Estimate(losses.value, losses.error + _AGREE * float((g * v).norm()))
            if not losses.agrees((g @ v)[None]):
                owner = _owner(passes.network.model, piece.name)
                raise DataError(
                    f"the gradient in the parameter {piece.name} of {owner} is not that of the loss "
                    f"({float(g @ v):.6g} along a direction in which that changes by "
                    f"{float(losses.value):.6g}): an operation from there on has a wrong backward pass "
                    "(detach, no_grad, numpy, straight-through estimator, padding_idx, checkpoint with "
                    "use_reentrant=True); write it without, or freeze the parameter by requires_grad_(False)"
                )

    def _second_derivatives(self, draw: Draw, chosen: Derivatives) -> Derivatives | None:
        passes, batch, way = draw.passes, draw.batch, chosen.gradient
        hessian = central(lambda t: passes.gradient(way, t, batch), *draw.line)
        tangent = central(lambda t: passes.outputs(way, t, batch.x), *draw.line)
        if hessian is None or tangent is None:
            return None
        outputs = passes.outputs(way, draw.theta, batch.x)
        curved = passes._output_curvature(outputs, tangent.value, batch)
        straight = Estimate(
            passes._vjp_sum(way, draw.theta, batch.x, curved), tangent.error * _vjp_size(draw)
        )
        chosen.hessian = self._fastest(
            self._runner(draw, lambda p, way, t, v, b: p.curvature(way, t, v, b, full=True)), hessian
        )
        chosen.gauss_newton = self._fastest(
            self._runner(draw, lambda p, way, t, v, b: p.curvature(way, t, v, b, full=False)), straight
        )
        chosen.directional = self._fastest(
            self._runner(draw, lambda p, way, t, v, b: p.tangents(way, t, v, b.x)[1]), tangent
        )
        chosen.per_example = self._per_example(draw, chosen)
        return chosen

    def _per_example(self, draw: Draw, chosen: Derivatives) -> Way:
        passes, batch = draw.passes, draw.batch
        u = self.loss.output_gradient(passes.outputs(chosen.gradient, draw.theta, batch.x), batch.y)
        one_by_one = Way(Method.AUTOGRAD, True)
        oracle = Estimate(passes.vjp(one_by_one, draw.theta, batch.x, u), 0.0)
        together = passes.gradient(chosen.gradient, draw.theta, batch)
        if not Estimate(together, 0.0).agrees(batch.weigh(oracle.value).sum(0)):
            raise DataError(
                f"the {self._name()}'s gradients of single examples do not sum to the gradient of a batch: "
                "an example's output depends on the others; call model.eval()"
            )

        def run(way: Way, dtype: torch.dtype) -> Tensor:
            p, theta, b = self._cast(draw, dtype)
            return p.vjp(way, theta, b.x, u.to(dtype))

        return self._fastest(run, oracle)

    # -- choosing ------------------------------------------------------------------------------------------

    def _fastest(self, run: Callable[[Way, torch.dtype], Tensor], oracle: Estimate) -> Way:
        for way in WAYS:
            exact = self._attempt(run, way)
            if exact is not None:
                if oracle.agrees(exact):
                    return way
                off = float((exact - oracle.value).norm()) / (float(oracle.value.norm()) or 1.0)
                self.why = f"the rule of torch is off by {off:.1g} of its size"
        return LAST

    def _attempt(self, run: Callable[[Way, torch.dtype], Tensor], way: Way) -> Tensor | None:
        """The result in float64, or None if the way fails there or in the objective's own dtype."""
        try:
            exact = self._strictly(run, way, torch.float64)
            if self.network.dtype != torch.float64:
                own = self._strictly(run, way, self.network.dtype).double()
                if not Estimate(exact, 1e-6).agrees(own, _LOOSE):
                    self.why = (
                        f"it differs by more than {_LOOSE:.0%} between {self.network.dtype} and float64"
                    )
                    return None
        except DataError:
            raise
        except Exception as error:  # whatever torch raises for an operation without this rule
            self.why = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
            return None
        return exact

    @staticmethod
    def _strictly(run: Callable[[Way, torch.dtype], Tensor], way: Way, dtype: torch.dtype) -> Tensor:
        """The result; an operation that vmap does one example at a time counts as a failure."""
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            result = run(way, dtype)
        if any("performance drop" in str(warning.message) for warning in said):
            raise RuntimeError("vmap runs an operation of the model one example at a time")
        return result

    def _runner(
        self, draw: Draw, compute: Callable[[Passes, Way, Tensor, Tensor, Batch], Tensor]
    ) -> Callable[[Way, torch.dtype], Tensor]:
        def run(way: Way, dtype: torch.dtype) -> Tensor:
            passes, theta, batch = self._cast(draw, dtype)
            return compute(passes, way, theta, draw.v.to(dtype), batch)

        return run

    def _cast(self, draw: Draw, dtype: torch.dtype) -> tuple[Passes, Tensor, Batch]:
        if dtype == torch.float64:
            return draw.passes, draw.theta, draw.batch
        b = draw.batch
        batch = Batch(self.network.on_examples(b.x), b.y.to(dtype), b.weights.to(dtype))
        return Passes(self.network, self.loss, self.double), draw.theta.to(dtype), batch

    def _draw(self, share: float) -> Draw:
        """A random point near θ, a direction and weights; the point leaves kinks at exact zeros."""
        m = max(1, round(share * self.m))
        x, theta = take(self.x, slice(0, m)), self.double.initial()
        scale = self._scales(theta)
        noise, v = (
            torch.randn(len(theta), generator=self._generator, dtype=torch.float64).to(theta) * scale
            for _ in range(2)
        )
        passes, theta = Passes(self.double, self.loss, self.double), theta + 0.03 * noise
        outputs = passes.outputs(LAST, theta, x)
        slopes = torch.randn(outputs.shape, generator=self._generator, dtype=torch.float64).to(theta)
        weights = 0.5 + torch.rand(m, generator=self._generator, dtype=torch.float64).to(theta)
        size = float(outputs.square().mean().sqrt()) or 1.0
        return Draw(passes, theta, v, Batch(x, slopes * size, weights))

    def _scales(self, theta: Tensor) -> Tensor:
        """The size of each parameter tensor, spread over its coordinates."""
        parts = theta.split([piece.size for piece in self.network.pieces])
        sizes = [float(part.square().mean().sqrt()) if part.numel() else 0.0 for part in parts]
        typical = max(sizes) or 1.0
        return torch.cat(
            [torch.full_like(part, size or 0.1 * typical) for part, size in zip(parts, sizes, strict=True)]
        )

    def _name(self) -> str:
        return f"model {type(self.network.model).__name__}"

    def _noted(self, chosen: Derivatives) -> Derivatives:
        names = chosen.by_differences()
        if names:
            chosen.notes.append(
                f"No exact way to these derivatives of this model agrees with differences: {', '.join(names)}"
                f" ({self.why}). They are central differences of first derivatives in float64, good to about "
                "eight digits"
            )
        for piece in self.network.pieces:
            if piece.fixed is not None:
                chosen.notes.append(
                    f"Row {piece.fixed} of {piece.name} (padding_idx) is held fixed, no part of θ"
                )
        return chosen


@dataclass(frozen=True)
class Draw:
    """A point θ, a direction v and weighted examples, in float64."""

    passes: Passes
    theta: Tensor
    v: Tensor
    batch: Batch

    @property
    def size(self) -> float:
        """The size of the steps: that of v, whose coordinates have the size of their parameters."""
        return float(self.v.norm())

    @property
    def line(self) -> tuple[Tensor, Tensor, float]:
        """Point, direction and size for :func:`central`."""
        return self.theta, self.v, self.size

    def input_gradient(self, theta: Tensor) -> Tensor:
        """``w_i ∇_x ℓ_i(θ)``."""
        return self.passes.input_gradient(LAST, theta, self.batch)

    def loss_at(self, theta: Tensor) -> Tensor:
        """``Σ w_i ℓ_i(θ)``."""
        losses = self.passes.loss.values(self.passes.outputs(LAST, theta, self.batch.x), self.batch.y)
        return (self.batch.weights * losses).sum()


def _vjp_size(draw: Draw) -> float:
    """A rough size of ``J``, by which errors in ``J v`` grow on their way back."""
    outputs = draw.passes.outputs(LAST, draw.theta, draw.batch.x)
    back = draw.passes._vjp_sum(LAST, draw.theta, draw.batch.x, torch.ones_like(outputs))
    return 10 * float(back.norm())


def _owner(model: nn.Module, name: str) -> str:
    module = name.rpartition(".")[0]
    kind = type(model.get_submodule(module)).__name__ if module else type(model).__name__
    return f"{kind} {module!r}" if module else kind
