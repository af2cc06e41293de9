"""The training objective of any ``torch.nn.Module``, with every derivative that influence needs.

``R(θ) = (1/n) Σ_i w_i L(z_i, θ) + (λ/2) Σ_j m_j θ_j²`` (Koh & Liang 2017, section 2), where ``L(z, θ) =
ℓ(f_θ(x), y)``, ``w_i`` are weights (1 unless given) and ``m`` says how much λ touches each parameter. Only
the network ``f`` is differentiated by torch, in ways that were checked on a few examples
(:mod:`.derivatives`). The loss ℓ brings its own output gradient ``g`` and output Hessian ``B``
(:mod:`influence.losses`), so hinge kinks and flat softmax tails are handled where they are understood.

All calls walk the data in batches of ``batch_size`` and keep no graph between batches, so memory is bounded
by the batch whatever n is. Shapes: n examples, p parameters, c outputs, k columns; a block is ``(p, k)``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from influence.errors import DataError, DeviceError
from influence.fits import Fit
from influence.losses import LossLike, get_loss
from influence.objectives import checked
from influence.objectives._base import Product, TrainingObjective
from influence.objectives.derivatives import Check, Derivatives
from influence.objectives.frozen import Frozen, Kept, find, own_copy
from influence.objectives.inputs import Inputs, as_data, count, floating_leaf, leaves, map_tensors, take
from influence.objectives.network import Network, Output, same_device
from influence.objectives.output_shapes import for_outputs
from influence.objectives.passes import Batch, Passes, Way
from influence.objectives.penalties import ParameterRule, Penalty, penalty_of
from influence.objectives.ready import plain_module
from influence.objectives.selection import Chosen, with_parameters
from influence.objectives.taps import Known


class Objective(TrainingObjective):
    """Mean loss of ``model`` over ``(inputs, targets)`` plus an L2 term, as a function of one flat vector θ.

    Args:
        model: any module mapping ``(m, ...)`` inputs to ``(m, c)`` outputs (``(m,)`` is read as ``(m, 1)``),
            or to ``(m, ...)`` for losses of such outputs, each row depending on its own input only. It is
            copied; parameters with ``requires_grad=False`` stay fixed and are not part of θ, nor is the
            padding row of an embedding.
        loss: its name, a :class:`~influence.losses.Loss`, a torch loss module, or a function of outputs and
            targets (:func:`~influence.losses.get_loss`).
        inputs: ``(n, ...)`` finite: a tensor, array, table, list or sparse matrix; a tuple or mapping of them
            for a model that takes several; or a Dataset or DataLoader in a fixed order, with
            ``targets=None``.
        targets: ``(n,)`` labels as the loss wants them, or ``(n, ...)``.
        l2: λ ≥ 0; or a mapping of parameter names or patterns (``{"body.*": 1e-3, "head.*": 0}``) to λ, in
            which each trainable parameter is named exactly once.
        l2_parameters: ``"all"``, ``"weights"`` (all but biases) or a rule ``(name, parameter) -> bool``.
        weights: ``(n,)`` weights of the examples; 1 each by default.
        batch_size: examples held at a time, counted times columns where columns run together.
        output: which of the model's outputs the loss takes: a position, a key or attribute, or a function;
            needed only for models with several (``logits`` is found by itself).
        parameters: which are θ; the others are held fixed. A name, a pattern (``"head.*"``), a list of them,
            ``"last"``, or a rule ``(name, parameter) -> bool``; by default all with ``requires_grad=True``.
        dtype: floating type to compute in; default that of ``inputs``, or of the model for integer inputs.
        cache_bytes: memory for what frozen layers return, so that they run once (:mod:`.frozen`); 2.5 GiB by
            default. If it does not suffice, or is 0, they run in every pass.

    Raises:
        DataError: NaN or infinite inputs, targets the loss cannot take, a negative λ, a module without
            trainable parameters, one whose output for an example changes between passes or with its batch, or
            one without a gradient that agrees with differences of its outputs.
        DeviceError: module, inputs and targets are not all on one device.

    >>> import torch
    >>> model = torch.nn.Linear(3, 2).double()
    >>> x, y = torch.randn(8, 3, dtype=torch.float64), torch.randint(2, (8,))
    >>> train = Objective(model, "cross_entropy", x, y, l2=0.01)
    >>> train.n, train.p, tuple(train.gradient(train.initial()).shape)
    (8, 8, (8,))
    """

    derivatives: Derivatives
    """Which way each derivative is computed; ``str()`` of it says it in words."""

    inputs: Inputs
    _frozen: Frozen | None = None  # the frozen calls whose outputs are kept

    def __init__(
        self,
        model: nn.Module,
        loss: LossLike,
        inputs: Inputs,
        targets: Tensor,
        l2: Penalty,
        *,
        l2_parameters: str | ParameterRule = "all",
        weights: Tensor | None = None,
        batch_size: int = 1024,
        dtype: torch.dtype | None = None,
        output: Output = None,
        parameters: Chosen = None,
        cache_bytes: int = int(2.5 * 2**30),
    ) -> None:
        inputs, targets = as_data(inputs, targets)
        model = with_parameters(plain_module(model), parameters)
        dtype = dtype or checked.dtype_of(model, inputs)
        if dtype not in (torch.float32, torch.float64):
            raise DataError(
                f"dtype must be a floating type, torch.float32 or torch.float64, got {dtype}; use "
                "torch.float64"
            )
        if int(batch_size) < 1:
            raise DataError(f"batch_size must be at least 1, got {batch_size}")
        self.network = Network(model, dtype, output)
        self.loss = self._asked = get_loss(loss)
        self.batch_size = int(batch_size)
        self.dtype, self.device, self.p = dtype, self.network.device, self.network.p
        self.derivatives = Derivatives()
        self.l2, self.l2_mask = penalty_of(self.network, l2, l2_parameters)
        self._set_data(inputs, targets)
        self.loss.check_targets(self.targets, self.n_outputs)
        self.weights = checked.weights_of(weights, self.n, self.l2_mask)
        checked.check_determinism(lambda x: self._outputs_of(self.initial(), x), self.inputs, dtype)
        self._frozen = find(self.network, self.inputs, int(cache_bytes))
        if self._frozen is not None:
            self.inputs = own_copy(self.inputs)
        self._choose_derivatives()
        if any(w.dtype in (torch.float16, torch.bfloat16) for w in model.parameters()):
            self.derivatives.notes.append(f"The model is in half precision and is computed in {dtype}")

    # -- data ---------------------------------------------------------------------------------------------

    def _set_data(self, inputs: Inputs, targets: Tensor) -> None:
        inputs, targets = as_data(inputs, targets, self.device)
        inputs, targets = map_tensors(Tensor.detach, inputs), targets.detach()
        for tensor in leaves(inputs):
            same_device("the inputs", tensor.device, "the model", self.device)
        same_device("the targets", targets.device, "the model", self.device)
        n = count(inputs)
        if n != len(targets) or n == 0:
            raise DataError(f"got {n} inputs and {len(targets)} targets; pass one target per input")
        self.inputs, self._kept = self.network.on_examples(inputs), Kept()
        if self._frozen is not None:
            self.inputs = own_copy(self.inputs)
        self.n = n
        for tensor in leaves(self.inputs):
            if tensor.is_floating_point():
                for rows in tensor.split(self.batch_size):
                    if not bool(torch.isfinite(rows).all()):
                        raise DataError("the inputs hold NaN or infinite values; clean or impute them first")
        self.n_outputs = self._outputs_of(self.initial(), take(self.inputs, slice(0, 2))).shape[1]
        self.loss, targets = for_outputs(self._asked, self.network.output_shape, targets)
        self._targets = self.loss.prepare(targets, self.dtype, self.device)
        self.loss.check_range(self.targets, self.n_outputs)

    def _choose_derivatives(self) -> None:
        """The fastest ways that agree with differences (:mod:`.derivatives`)."""
        self.derivatives = self._check(known=True).choose()

    def _check(self, known: bool = False) -> Check:
        outputs = self._known() if known else None
        x = self.inputs if outputs is None else Known(self.inputs, outputs)
        return Check(self.network, x, self.batch_size)

    def _known(self) -> tuple[Tensor, ...] | None:
        """What the frozen calls return for all examples, computed once; None if all layers are run."""
        known = self._frozen and self._kept.outputs_for(self._frozen, self.inputs, self.batch_size)
        return known or None

    @property
    def targets(self) -> Tensor:
        """``(n,)`` targets."""
        return self._targets

    def fixed_words(self) -> str | None:
        """Which parameters are held fixed, in words; None if there are none."""
        words = checked.fixed_words(self.network.model)
        if words is None or self._frozen is None:
            return words
        return f"{words}; {self._frozen.words(self.n)}"

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of the model's outputs for one example; they are kept flat, ``(m, c)``."""
        return self.network.output_shape

    @property
    def model(self) -> nn.Module:
        """The objective's copy of the module, with the parameters of :meth:`initial`."""
        return self.network.model

    def on(self, inputs: Inputs, targets: Tensor) -> Self:
        """The same model, loss and λ on other data without weights, such as the test set (one will do)."""
        other = copy.copy(self)
        other.weights = None
        inputs, targets = as_data(inputs, targets, self.device)
        inputs = checked.with_axis(inputs, targets, self.inputs)
        with checked.taking(inputs, self.inputs):
            other._set_data(inputs, targets)
        return other

    def subset(self, idx: Tensor | slice) -> Self:
        """The objective restricted to the examples ``idx``; its mean is over those, their weights stay."""
        other = copy.copy(self)  # the data were checked when this objective was made
        chosen: Any = idx if isinstance(idx, slice) else self.index(idx)
        other.inputs, other._targets = take(self.inputs, chosen), self.targets[chosen]
        other.weights = None if self.weights is None else self.weights[chosen]
        other._kept = self._kept.chosen(self.inputs, other.inputs, chosen)
        other.n = len(other._targets)
        if other.n == 0:
            raise DataError("the subset holds no example; pass at least one index")
        return other

    def with_weights(self, weights: Tensor | None) -> Self:
        """The same objective with other weights ``(n,)`` of the examples, or with none."""
        other = copy.copy(self)
        other.weights = checked.weights_of(weights, self.n, self.l2_mask)
        return other

    # -- the network as a function of θ -------------------------------------------------------------------

    def initial(self) -> Tensor:
        """θ ``(p,)``: the module's own parameters at construction, flattened in the module's order."""
        return self.network.initial()

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """``(p,)`` to the named parameters of the module (views of θ)."""
        return self.network.unflatten(theta)

    def module(self, theta: Tensor) -> nn.Module:
        """A copy of the module that carries θ as its parameters."""
        return self.network.module(self._vector(theta))

    @property
    def _passes(self) -> Passes:
        if torch.is_inference_mode_enabled():
            raise DataError("torch computes no derivative inside torch.inference_mode(); use torch.no_grad()")
        return Passes(self.network, self.loss, self._double)

    @property
    def _double(self) -> Network | None:
        """The network in float64, for derivatives by differences; made when one is needed."""
        if not self.derivatives.by_differences():
            return None
        return self.network if self.dtype == torch.float64 else self.network.to(torch.float64)

    def _outputs_of(self, theta: Tensor, x: Inputs) -> Tensor:
        return self._passes.outputs(self.derivatives.gradient, theta, x)

    def _batches(
        self, idx: Tensor | None, weights: Tensor | None = None, *, whole: bool = False
    ) -> Iterator[tuple[Batch, slice]]:
        """Batches of the examples ``idx`` with their weights, and the place of each.

        ``whole``: the frozen layers run too, as derivatives in the inputs need.
        """
        m = self.n if idx is None else len(idx)
        outputs = None if whole else self._known()
        inputs = self.inputs if outputs is None else Known(self.inputs, outputs)
        for start in range(0, m, self.batch_size):
            place = slice(start, min(start + self.batch_size, m))
            chosen: Any = place if idx is None else idx[place]
            w = None if weights is None else weights[place]
            yield Batch(take(inputs, chosen), self.targets[chosen], w), place

    def _weights_of(self, idx: Tensor | None) -> Tensor | None:
        """The weights of the examples ``idx``, or None if each is 1."""
        return None if self.weights is None else self.example_weights(idx)

    def vector(self, theta: Any) -> Tensor:
        """θ ``(p,)`` from a vector, a fit, a module of the same architecture or its state dict.

        Raises:
            DataError: another number of parameters, or another architecture.
        """
        if isinstance(theta, Fit):
            theta = theta.theta
        if isinstance(theta, nn.Module):
            theta = dict(plain_module(theta).named_parameters(remove_duplicate=False))
        if isinstance(theta, np.ndarray | list):
            theta = torch.tensor(theta, dtype=self.dtype, device=self.device)
        if isinstance(theta, Mapping):
            theta = self.network.flatten(theta).to(self.device, self.dtype)
        return self._vector(theta)

    def _vector(self, theta: Any) -> Tensor:
        if isinstance(theta, nn.Module | Mapping | Fit | np.ndarray | list):
            return self.vector(theta)
        if not isinstance(theta, Tensor):
            raise DataError(
                f"theta must be a vector ({self.p},), a module or a state dict, got {type(theta).__name__}"
            )
        if theta.shape != (self.p,):
            raise DataError(f"theta has shape {tuple(theta.shape)}; this objective has {self.p} parameters")
        return self._same_kind(theta, "theta")

    def _block(self, block: Tensor) -> Tensor:
        if block.ndim != 2 or block.shape[0] != self.p:
            raise DataError(f"a block must be ({self.p}, k), got {tuple(block.shape)}; use v[:, None]")
        return self._same_kind(block, "the block")

    def _same_kind(self, tensor: Tensor, name: str) -> Tensor:
        same_device(name, tensor.device, "the objective", self.device)
        if tensor.dtype != self.dtype:
            raise DeviceError(f"{name} is {tensor.dtype} but the objective is {self.dtype}; convert one")
        return tensor.detach()

    # -- values -------------------------------------------------------------------------------------------

    def outputs(self, theta: Tensor, idx: Tensor | None = None) -> Tensor:
        """f_θ(x_i): ``(m, c)``."""
        theta, idx = self._vector(theta), self.index(idx)
        return torch.cat([self._outputs_of(theta, batch.x) for batch, _ in self._batches(idx)])

    def example_losses(self, theta: Tensor, idx: Tensor | None = None) -> Tensor:
        """L(z_i, θ): ``(m,)``, in nats, without weight and without the L2 term."""
        targets = self.targets if idx is None else self.targets[self.index(idx)]
        return self.loss.values(self.outputs(theta, idx), targets)

    def example_losses_many(self, thetas: Tensor, idx: Tensor | None = None) -> Tensor:
        """L(z_i, θ_j) for each column of ``thetas (p, k)``: ``(m, k)``."""
        columns = self._block(thetas).T.contiguous()
        return torch.stack([self.example_losses(theta, idx) for theta in columns], dim=1)

    def value(self, theta: Tensor) -> Tensor:
        """R(θ), a 0-d tensor."""
        theta = self._vector(theta)
        losses = self.example_losses(theta)
        return (losses if self.weights is None else self.weights * losses).mean() + self.penalty(theta)

    def values(self, thetas: Tensor) -> Tensor:
        """R(θ_j) for each column: ``(p, k) -> (k,)``."""
        losses = self.example_losses_many(thetas)
        weighted = losses if self.weights is None else self.weights[:, None] * losses
        return weighted.mean(dim=0) + self.penalty(thetas)

    # -- first derivatives --------------------------------------------------------------------------------

    def gradient(self, theta: Tensor) -> Tensor:
        """∇R(θ): ``(p,)``."""
        theta = self._vector(theta)
        total = torch.zeros_like(theta)
        passes = self._passes
        for batch, _ in self._batches(None, self.weights):
            total += passes.gradient(self.derivatives.gradient, theta, batch)
        return total / self.n + self.penalty_gradient(theta)

    def gradients(self, thetas: Tensor) -> Tensor:
        """∇R at each column of ``thetas``: ``(p, k) -> (p, k)``.

        One pass per column: on a CPU, stacking parameters by ``vmap`` turns convolutions into grouped ones,
        which are slower. Networks of known layers do it side by side (:mod:`.sequential`).
        """
        return torch.stack([self.gradient(theta) for theta in self._block(thetas).T.contiguous()], dim=1)

    def example_gradients(self, theta: Tensor, idx: Tensor | None = None) -> Tensor:
        """∇L(z_i, θ): ``(m, p)``, without weight and L2 term; the result itself takes m·p numbers."""
        idx = self.index(idx)
        targets = self.targets if idx is None else self.targets[idx]
        return self.vjp(theta, self.loss.output_gradient(self.outputs(theta, idx), targets), idx)

    def vjp(self, theta: Tensor, cotangents: Tensor, idx: Tensor | None = None) -> Tensor:
        """``J_iᵀ u_i`` with J the outputs' Jacobian: ``cotangents (m, c) -> (m, p)``."""
        theta, idx = self._vector(theta), self.index(idx)
        out = torch.empty(self.count(idx), self.p, dtype=self.dtype, device=self.device)
        passes = self._passes
        for batch, place in self._batches(idx):
            out[place] = passes.vjp(self.derivatives.per_example, theta, batch.x, cotangents[place])
        return out

    @torch.no_grad()
    def directional(self, theta: Tensor, V: Tensor, idx: Tensor | None = None) -> Tensor:
        """∇L(z_i, θ)·v_j for ``V (p, k)``: ``(m, k)``, one pass per column."""
        theta, V, idx = self._vector(theta), self._block(V), self.index(idx)
        out = torch.empty(self.count(idx), V.shape[1], dtype=self.dtype, device=self.device)
        columns = V.T.contiguous()
        passes = self._passes
        for batch, place in self._batches(idx):
            for j, v in enumerate(columns):
                outputs, tangent = passes.tangents(self.derivatives.directional, theta, v, batch.x)
                out[place, j] = (self.loss.output_gradient(outputs, batch.y) * tangent).sum(dim=1)
        return out

    # -- second derivatives -------------------------------------------------------------------------------

    def _curvature_product(
        self, theta: Tensor, V: Tensor, idx: Tensor | None, weights: Tensor | None, *, full: bool
    ) -> Tensor:
        theta, V, idx = self._vector(theta), self._block(V), self.index(idx)
        own = self._weights_of(idx)
        if weights is not None:
            own = weights.to(self.dtype) if own is None else own * weights.to(self.dtype)
        total = torch.zeros_like(V)
        columns = V.T.contiguous()
        passes = self._passes
        way = self.derivatives.hessian if full else self.derivatives.gauss_newton
        for batch, _ in self._batches(idx, own):
            for j, v in enumerate(columns):
                total[:, j] += passes.curvature(way, theta, v, batch, full=full)
        return total / self.count(idx) + self.l2 * self.l2_mask[:, None] * V

    def hessian_product(
        self, theta: Tensor, V: Tensor, idx: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """``(1/m) Σ w_i ∇²L(z_i, θ) V + λ m ⊙ V``: ``(p, k) -> (p, k)``.

        ``idx (m,)`` chooses the examples (repeats allowed, default all), ``weights (m,)`` weighs them, on top
        of the objective's own weights.
        """
        return self._curvature_product(theta, V, idx, weights, full=True)

    def hessian_at(self, theta: Tensor, idx: Tensor | None = None) -> Product:
        """The map V ↦ :meth:`hessian_product` at one θ."""
        return lambda V: self._curvature_product(theta, V, idx, None, full=True)

    def gauss_newton_at(self, theta: Tensor, idx: Tensor | None = None) -> Product:
        """The map V ↦ ``((1/m) Σ w_i J_iᵀ B_i J_i + λ diag(m)) V`` with B the output Hessian, at one θ."""
        return lambda V: self._curvature_product(theta, V, idx, None, full=False)

    def mixed(self, theta: Tensor, S: Tensor, idx: Tensor | None = None) -> Tensor:
        """``∇_x (s_j·∇_θ L(x_i, θ))``: ``S (p, k) -> (m, *input_shape, k)`` (for I_pert,loss)."""
        theta, S, idx = self._vector(theta), self._block(S), self.index(idx)
        shape = (self.count(idx), *floating_leaf(self.inputs).shape[1:], S.shape[1])
        way = self._mixed_way()
        out = torch.empty(shape, dtype=self.dtype, device=self.device)
        columns = S.T.contiguous()
        passes = self._passes
        for batch, place in self._batches(idx, whole=True):
            for j, s in enumerate(columns):
                out[place, ..., j] = passes.mixed(way, theta, s, batch)
        return out

    def mixed_direction(self, theta: Tensor, index: int, delta: Tensor) -> Tensor:
        """``[∇_x∇_θ L(z)] δ`` of one example, δ of its input's shape: ``(p,)`` (for I_pert,params)."""
        theta, idx = self._vector(theta), self.index(torch.tensor([index]))
        x = floating_leaf(self.inputs)
        batch = next(iter(self._batches(idx, whole=True)))[0]
        chosen = self.derivatives
        if chosen.mixed_direction is None:
            chosen.mixed_direction = self._check().choose_mixed_direction(chosen)
        return self._passes.mixed_direction(chosen.mixed_direction, theta, batch, delta[None].to(x))

    def _mixed_way(self) -> Way:
        chosen = self.derivatives
        if chosen.mixed is None:
            chosen.mixed = self._check().choose_mixed(chosen)
        return chosen.mixed
