"""The training objective of any ``torch.nn.Module``, with every derivative that influence needs.

``R(θ) = (1/n) Σ_i L(z_i, θ) + (λ/2)‖m ⊙ θ‖²`` (Koh & Liang 2017, section 2), where ``L(z, θ) = ℓ(f_θ(x), y)``
and the 0/1 mask ``m`` says which parameters λ touches. Only the network ``f`` is differentiated by
``torch.func``; the loss ℓ brings its own output gradient ``g`` and output Hessian ``B``
(:mod:`influence.losses`), so hinge kinks and flat softmax tails are handled where they are understood.

All calls walk the data in batches of ``batch_size`` and keep no graph between batches, so memory is bounded
by the batch whatever n is. Shapes: n examples, p parameters, c outputs, k columns; a block is ``(p, k)``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vjp, vmap

from influence.errors import DataError, DeviceError
from influence.losses import Loss, get_loss
from influence.objectives._base import Product, TrainingObjective

ParameterRule = Callable[[str, nn.Parameter], bool]


class Objective(TrainingObjective):
    """Mean loss of ``model`` over ``(inputs, targets)`` plus an L2 term, as a function of one flat vector θ.

    Args:
        model: any module mapping ``(m, ...)`` inputs to ``(m, c)`` outputs (``(m,)`` is read as ``(m, 1)``),
            each row depending on its own input only. It is copied; parameters with ``requires_grad=False``
            stay fixed and are not part of θ.
        loss: a :class:`~influence.losses.Loss` or its name.
        inputs: ``(n, ...)`` finite.
        targets: ``(n,)`` labels as the loss wants them.
        l2: λ ≥ 0.
        l2_parameters: ``"all"``, ``"weights"`` (all but biases) or a rule ``(name, parameter) -> bool``.
        batch_size: examples held at a time, counted times columns where columns run together.
        dtype: floating type to compute in; default that of ``inputs``.

    Raises:
        DataError: NaN or infinite inputs, targets the loss cannot take, a negative λ, a module without
            trainable parameters, or one whose output for an example changes between passes or with its batch.
        DeviceError: module, inputs and targets are not all on one device.

    >>> import torch
    >>> model = torch.nn.Linear(3, 2).double()
    >>> x, y = torch.randn(8, 3, dtype=torch.float64), torch.randint(2, (8,))
    >>> train = Objective(model, "cross_entropy", x, y, l2=0.01)
    >>> train.n, train.p, tuple(train.gradient(train.initial()).shape)
    (8, 8, (8,))
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss | str,
        inputs: Tensor,
        targets: Tensor,
        l2: float,
        *,
        l2_parameters: str | ParameterRule = "all",
        batch_size: int = 1024,
        dtype: torch.dtype | None = None,
    ) -> None:
        dtype = dtype or (inputs.dtype if inputs.is_floating_point() else torch.get_default_dtype())
        if not dtype.is_floating_point:
            raise DataError(f"dtype must be a floating type, got {dtype}; use torch.float64")
        if not (l2 >= 0 and math.isfinite(l2)):
            raise DataError(f"l2 must be finite and >= 0, got {l2}")
        if int(batch_size) < 1:
            raise DataError(f"batch_size must be at least 1, got {batch_size}")
        self.model = copy.deepcopy(model).to(dtype)
        self.loss = get_loss(loss)
        self.l2 = float(l2)
        self.batch_size = int(batch_size)
        self.dtype = dtype
        trainable = [(name, w) for name, w in self.model.named_parameters() if w.requires_grad]
        if not trainable:
            raise DataError("the model has no parameter with requires_grad=True, so nothing can be trained")
        self._names = [name for name, _ in trainable]
        self._shapes = [w.shape for _, w in trainable]
        self._sizes = [w.numel() for _, w in trainable]
        self.p = sum(self._sizes)
        self.device = trainable[0][1].device
        for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers()):
            _same_device(f"the model's {name}", tensor.device, "its first parameter", self.device)
        self.l2_mask = _l2_mask(trainable, l2_parameters).to(self.dtype)
        self._set_data(inputs, targets)
        self.loss.check_targets(self.targets, self.n_outputs)
        self._check_determinism()

    # -- data ---------------------------------------------------------------------------------------------

    def _set_data(self, inputs: Tensor, targets: Tensor) -> None:
        _same_device("the inputs", inputs.device, "the model", self.device)
        _same_device("the targets", targets.device, "the model", self.device)
        if len(inputs) != len(targets) or len(inputs) == 0:
            raise DataError(f"got {len(inputs)} inputs and {len(targets)} targets; pass one target per input")
        self.inputs = inputs.to(self.dtype) if inputs.is_floating_point() else inputs
        self._targets = self.loss.prepare(targets, self.dtype)
        self.n = len(inputs)
        if self.inputs.is_floating_point():
            for rows in self.inputs.split(self.batch_size):
                if not bool(torch.isfinite(rows).all()):
                    raise DataError("the inputs hold NaN or infinite values; clean or impute them first")
        first = self._forward(self.initial(), self.inputs[:2])
        self.n_outputs = first.shape[1]
        self.loss.check_range(self.targets, self.n_outputs)

    def _check_determinism(self) -> None:
        """Two passes in different batches must agree: catches dropout and batch norm in training mode."""
        theta, m = self.initial(), min(self.n, 8)
        half = m // 2
        with torch.no_grad():
            first = self._forward(theta, self.inputs[:m])
            again = torch.cat([self._forward(theta, self.inputs[a:b]) for a, b in ((0, half), (half, m))])
        allowed = 1e-9 if self.dtype == torch.float64 else 1e-3
        if not torch.allclose(first, again, rtol=allowed, atol=allowed * (1 + float(first.abs().max()))):
            raise DataError(
                "the model's output for an example changes from pass to pass or with the batch around it "
                "(dropout or batch norm in training mode?); call model.eval() first"
            )

    @property
    def targets(self) -> Tensor:
        """``(n,)`` targets."""
        return self._targets

    def on(self, inputs: Tensor, targets: Tensor) -> Self:
        """The same model, loss and λ on other data, such as the test set (one example is enough)."""
        other = copy.copy(self)
        other._set_data(inputs, targets)
        return other

    def subset(self, idx: Tensor | slice) -> Self:
        """The objective restricted to the examples ``idx``; its mean is over those."""
        other = copy.copy(self)  # the data were checked when this objective was made
        take: Any = idx if isinstance(idx, slice) else self.index(idx)
        other.inputs, other._targets = self.inputs[take], self.targets[take]
        other.n = len(other.inputs)
        if other.n == 0:
            raise DataError("the subset holds no example; pass at least one index")
        return other

    # -- the network as a function of θ -------------------------------------------------------------------

    def initial(self) -> Tensor:
        """θ ``(p,)``: the module's own parameters at construction, flattened in the module's order."""
        own = dict(self.model.named_parameters())
        return torch.cat([own[name].detach().reshape(-1) for name in self._names])

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """``(p,)`` to the named parameters of the module (views of θ)."""
        parts = theta.split(self._sizes)
        return {n: t.reshape(s) for n, t, s in zip(self._names, parts, self._shapes, strict=True)}

    def module(self, theta: Tensor) -> nn.Module:
        """A copy of the module that carries θ as its parameters."""
        model = copy.deepcopy(self.model)
        with torch.no_grad():
            own = dict(model.named_parameters())
            for name, value in self.unflatten(self._vector(theta)).items():
                own[name].copy_(value)
        return model

    def _forward(self, theta: Tensor, x: Tensor) -> Tensor:
        outputs = functional_call(self.model, self.unflatten(theta), (x,))
        outputs = outputs[:, None] if outputs.ndim == 1 else outputs
        if outputs.ndim != 2 or len(outputs) != len(x):
            raise DataError(
                f"the model maps inputs {tuple(x.shape)} to {tuple(outputs.shape)}; it must return (n, c)"
            )
        return outputs

    def _batches(self, idx: Tensor | None, columns: int = 1) -> Iterator[tuple[Tensor, Tensor, slice]]:
        """Inputs, targets and place of each batch; fewer rows where ``columns`` run side by side."""
        rows = max(1, self.batch_size // max(1, columns))
        m = self.n if idx is None else len(idx)
        for start in range(0, m, rows):
            place = slice(start, min(start + rows, m))
            take = place if idx is None else idx[place]
            yield self.inputs[take], self.targets[take], place

    def _vector(self, theta: Tensor) -> Tensor:
        if theta.shape != (self.p,):
            raise DataError(f"theta has shape {tuple(theta.shape)}; this objective has {self.p} parameters")
        return self._same_kind(theta, "theta")

    def _block(self, block: Tensor) -> Tensor:
        if block.ndim != 2 or block.shape[0] != self.p:
            raise DataError(f"a block must be ({self.p}, k), got {tuple(block.shape)}; use v[:, None]")
        return self._same_kind(block, "the block")

    def _same_kind(self, tensor: Tensor, name: str) -> Tensor:
        _same_device(name, tensor.device, "the objective", self.device)
        if tensor.dtype != self.dtype:
            raise DeviceError(f"{name} is {tensor.dtype} but the objective is {self.dtype}; convert one")
        return tensor.detach()

    # -- values -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def outputs(self, theta: Tensor, idx: Tensor | None = None) -> Tensor:
        """f_θ(x_i): ``(m, c)``."""
        theta, idx = self._vector(theta), self.index(idx)
        return torch.cat([self._forward(theta, x) for x, _, _ in self._batches(idx)])

    def example_losses(self, theta: Tensor, idx: Tensor | None = None) -> Tensor:
        """L(z_i, θ): ``(m,)``, in nats, without the L2 term."""
        targets = self.targets if idx is None else self.targets[self.index(idx)]
        return self.loss.values(self.outputs(theta, idx), targets)

    def example_losses_many(self, thetas: Tensor, idx: Tensor | None = None) -> Tensor:
        """L(z_i, θ_j) for each column of ``thetas (p, k)``: ``(m, k)``."""
        columns = self._block(thetas).T.contiguous()
        return torch.stack([self.example_losses(theta, idx) for theta in columns], dim=1)

    def value(self, theta: Tensor) -> Tensor:
        """R(θ), a 0-d tensor."""
        return self.example_losses(theta).mean() + self.penalty(theta)

    def values(self, thetas: Tensor) -> Tensor:
        """R(θ_j) for each column: ``(p, k) -> (k,)``."""
        return self.example_losses_many(thetas).mean(dim=0) + self.penalty(thetas)

    # -- first derivatives --------------------------------------------------------------------------------

    def gradient(self, theta: Tensor) -> Tensor:
        """∇R(θ): ``(p,)``."""
        theta = self._vector(theta)
        total = torch.zeros_like(theta)
        for x, y, _ in self._batches(None):
            outputs, pull = vjp(lambda t, x=x: self._forward(t, x), theta)
            total += pull(self.loss.output_gradient(outputs, y))[0]
        return total / self.n + self.l2 * self.l2_mask * theta

    def gradients(self, thetas: Tensor) -> Tensor:
        """∇R at each column of ``thetas``: ``(p, k) -> (p, k)``.

        One pass per column: on a CPU, stacking parameters by ``vmap`` turns convolutions into grouped ones,
        which are slower. Networks of known layers do it side by side (:mod:`.sequential`).
        """
        return torch.stack([self.gradient(theta) for theta in self._block(thetas).T.contiguous()], dim=1)

    def example_gradients(self, theta: Tensor, idx: Tensor | None = None) -> Tensor:
        """∇L(z_i, θ): ``(m, p)``, without the L2 term; the result itself takes m·p numbers."""
        idx = self.index(idx)
        targets = self.targets if idx is None else self.targets[idx]
        return self.pull(theta, self.loss.output_gradient(self.outputs(theta, idx), targets), idx)

    def pull(self, theta: Tensor, cotangents: Tensor, idx: Tensor | None = None) -> Tensor:
        """``J_iᵀ u_i`` with J the outputs' Jacobian: ``cotangents (m, c) -> (m, p)``."""
        theta, idx = self._vector(theta), self.index(idx)

        def pulled(t: Tensor, x: Tensor, u: Tensor) -> Tensor:
            return (self._forward(t, x[None])[0] * u).sum()

        each = vmap(grad(pulled), in_dims=(None, 0, 0))
        out = torch.empty(self.count(idx), self.p, dtype=self.dtype, device=self.device)
        for x, _, place in self._batches(idx):
            out[place] = each(theta, x, cotangents[place])
        return out

    @torch.no_grad()
    def directional(self, theta: Tensor, V: Tensor, idx: Tensor | None = None) -> Tensor:
        """∇L(z_i, θ)·v_j for ``V (p, k)``: ``(m, k)``, one forward-mode pass a column."""
        theta, V, idx = self._vector(theta), self._block(V), self.index(idx)
        out = torch.empty(self.count(idx), V.shape[1], dtype=self.dtype, device=self.device)
        columns = V.T.contiguous()
        for x, y, place in self._batches(idx):
            for j, v in enumerate(columns):
                outputs, tangent = jvp(lambda t, x=x: self._forward(t, x), (theta,), (v,))
                out[place, j] = (self.loss.output_gradient(outputs, y) * tangent).sum(dim=1)
        return out

    # -- second derivatives -------------------------------------------------------------------------------

    def _reverse_over_forward(
        self,
        theta: Tensor,
        v: Tensor,
        x: Tensor,
        y: Tensor,
        w: Tensor | None,
        *,
        full: bool,
        wrt_inputs: bool,
    ) -> Tensor:
        """∇ of ``Σ_i w_i (g_iᵀ (J_i v) + (B_i J_i v)ᵀ f_i)`` with g and B held fixed.

        In θ this is ``Σ w_i ∇²L_i v``, in x it is ``∇_x (v·∇_θ L_i)`` row by row. The first term carries the
        curvature of the network; without it (``full=False``) this is the Gauss–Newton product.
        """

        def pairing(t: Tensor, x: Tensor) -> Tensor:
            outputs, tangent = jvp(lambda t: self._forward(t, x), (t,), (v,))
            fixed = outputs.detach()
            bent = self.loss.output_hessian_product(fixed, y, tangent.detach()[:, :, None])[:, :, 0]
            pairs = (bent * outputs).sum(dim=1)
            if full:
                pairs = pairs + (self.loss.output_gradient(fixed, y) * tangent).sum(dim=1)
            return pairs.sum() if w is None else (w * pairs).sum()

        point, argument = ((theta, x.detach()), 1) if wrt_inputs else ((theta.detach(), x), 0)
        leaf = point[argument].requires_grad_(True)
        with torch.enable_grad():
            return torch.autograd.grad(pairing(*point), leaf)[0]

    def _curvature_product(
        self, theta: Tensor, V: Tensor, idx: Tensor | None, weights: Tensor | None, *, full: bool
    ) -> Tensor:
        theta, V, idx = self._vector(theta), self._block(V), self.index(idx)
        total = torch.zeros_like(V)
        columns = V.T.contiguous()
        for x, y, place in self._batches(idx):
            w = None if weights is None else weights[place].to(self.dtype)
            for j, v in enumerate(columns):
                total[:, j] += self._reverse_over_forward(theta, v, x, y, w, full=full, wrt_inputs=False)
        return total / self.count(idx) + self.l2 * self.l2_mask[:, None] * V

    def hessian_product(
        self, theta: Tensor, V: Tensor, idx: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """``(1/m) Σ w_i ∇²L(z_i, θ) V + λ m ⊙ V``: ``(p, k) -> (p, k)``, exact, reverse over forward.

        ``idx (m,)`` chooses the examples (repeats allowed, default all), ``weights (m,)`` weighs them.
        """
        return self._curvature_product(theta, V, idx, weights, full=True)

    def hessian_at(self, theta: Tensor, idx: Tensor | None = None) -> Product:
        """The map V ↦ :meth:`hessian_product` at one θ."""
        return lambda V: self._curvature_product(theta, V, idx, None, full=True)

    def gauss_newton_at(self, theta: Tensor, idx: Tensor | None = None) -> Product:
        """The map V ↦ ``((1/m) Σ J_iᵀ B_i J_i + λ diag(m)) V`` with B the output Hessian, at one θ."""
        return lambda V: self._curvature_product(theta, V, idx, None, full=False)

    def mixed(self, theta: Tensor, S: Tensor, idx: Tensor | None = None) -> Tensor:
        """``∇_x (s_j·∇_θ L(x_i, θ))``: ``S (p, k) -> (m, *input_shape, k)`` (for I_pert,loss)."""
        theta, S, idx = self._vector(theta), self._block(S), self.index(idx)
        if not self.inputs.is_floating_point():
            raise DataError("derivatives in the inputs need floating inputs; embed them first")
        shape = (self.count(idx), *self.inputs.shape[1:], S.shape[1])
        out = torch.empty(shape, dtype=self.dtype, device=self.device)
        columns = S.T.contiguous()
        for x, y, place in self._batches(idx):
            for j, s in enumerate(columns):
                out[place, ..., j] = self._reverse_over_forward(
                    theta, s, x.clone(), y, None, full=True, wrt_inputs=True
                )
        return out

    def mixed_direction(self, theta: Tensor, index: int, delta: Tensor) -> Tensor:
        """``[∇_x∇_θ L(z)] δ`` of one example, δ of its input's shape: ``(p,)`` (for I_pert,params)."""
        theta, idx = self._vector(theta), self.index(torch.tensor([index]))
        x, y = self.inputs[idx], self.targets[idx]

        def gradient(inputs: Tensor) -> Tensor:
            outputs, pull = vjp(lambda t: self._forward(t, inputs), theta)
            return pull(self.loss.output_gradient(outputs, y))[0]

        return jvp(gradient, (x,), (delta[None].to(x),))[1]


def _l2_mask(trainable: list[tuple[str, nn.Parameter]], rule: str | ParameterRule) -> Tensor:
    """0/1 vector ``(p,)``: which parameters λ touches."""
    named: dict[str, ParameterRule] = {
        "all": lambda name, w: True,
        "weights": lambda name, w: name.rpartition(".")[2] != "bias",
    }
    if isinstance(rule, str):
        if rule not in named:
            raise DataError(f"l2_parameters must be 'all', 'weights' or a callable, got {rule!r}")
        rule = named[rule]
    return torch.cat([torch.full((w.numel(),), float(rule(n, w)), device=w.device) for n, w in trainable])


def _same_device(what: str, device: torch.device, other: str, expected: torch.device) -> None:
    if device != expected:
        raise DeviceError(f"{what}: on {device}, but {other} is on {expected}; move one with .to(device)")
