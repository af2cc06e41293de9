"""Objectives whose examples are never all in one place: spread over ranks, or read from disk in batches.

Every quantity of :class:`~.module.Objective` is a mean over examples or has one row an example.
Means are summed part by part, rows are put in their places, and everything above (fits, operators, solvers,
scores, retraining) works as it does on data in memory. A part is an ordinary objective on some of the
examples with λ = 0; the L2 term is added once, here.

Subclasses say where the parts come from: :mod:`.distributed` and :mod:`.streaming`.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from influence.errors import DataError
from influence.losses import Asking
from influence.objectives._base import Product, TrainingObjective
from influence.objectives.inputs import floating_leaf
from influence.objectives.structure import (
    KRONECKER_ROWS,
    Split,
    kronecker_inverse,
    kronecker_sums,
    linear_core,
    linear_core_blocks,
    linear_diagonal,
    make_split,
)

# (part, rows within the part or None for all of them, their places in the result)
Part = tuple[Any, Tensor | None, Any]


def unpenalised(objective: Any) -> Any:
    """The same objective with λ = 0 (a shallow copy)."""
    part = copy.copy(objective)
    part.l2 = 0.0
    return part


class PartitionedObjective(TrainingObjective):
    """The calls of :class:`~.module.Objective` over parts.

    Args:
        template: an objective of the same model and loss on any of the data; gives shapes and λ.
        n: how many examples there are in all.
    """

    resident = True  # whether parts stay in memory, so that a product prepared on one may be kept

    def __init__(self, template: Any, n: int) -> None:
        self.template, self.n = template, n
        self.p, self.loss, self.n_outputs = template.p, template.loss, template.n_outputs
        self.dtype, self.device, self.batch_size = template.dtype, template.device, template.batch_size
        self.l2, self.l2_mask = template.l2, template.l2_mask
        self._targets: Tensor | None = None

    # -- what subclasses define ---------------------------------------------------------------------------

    @abstractmethod
    def _parts(self, idx: Tensor | None) -> Iterator[Part]:
        """The parts of the training set, or of the examples ``idx``."""

    def _reduce(self, tensor: Tensor, largest: bool = False) -> Tensor:
        """Combine what each process has: the sum, or the largest."""
        return tensor

    def _one_target(self, part: Any, rows: Tensor | None) -> Tensor:
        result: Tensor = part.targets if rows is None else part.targets[rows]
        return result

    # -- sums and rows ------------------------------------------------------------------------------------

    def _sum(self, compute: Callable[..., Tensor], like: Tensor, idx: Tensor | None = None) -> Tensor:
        """Sum of ``compute(part, rows, places)`` over all parts."""
        total = torch.zeros_like(like, memory_format=torch.contiguous_format)
        for part in self._parts(self.index(idx)):
            total += compute(*part)
        return self._reduce(total)

    def _rows(
        self, compute: Callable[..., Tensor], shape: tuple[int, ...], idx: Any = None, dtype: Any = None
    ) -> Tensor:
        """``(m, *shape)``: the rows of every part in their places."""
        idx = self.index(idx)
        m = self.n if idx is None else len(idx)
        out = torch.zeros(m, *shape, dtype=dtype or self.dtype, device=self.device)
        for part, rows, places in self._parts(idx):
            out[places] = compute(part, rows, places)
        return self._reduce(out)

    @property
    def targets(self) -> Tensor:
        """``(n,)`` targets of all examples, gathered when first asked for."""
        if self._targets is None:
            like = self.template.targets
            self._targets = self._rows(
                lambda part, rows, _: self._one_target(part, rows), tuple(like.shape[1:]), None, like.dtype
            )
        return self._targets

    # -- the calls of Objective ---------------------------------------------------------------------------

    def initial(self) -> Tensor:
        """θ₀ ``(p,)``, the template's."""
        result: Tensor = self.template.initial()
        return result

    def on(self, inputs: Any, targets: Any) -> Any:
        """The same model, loss and λ on other data held in memory, such as the test set; not partitioned."""
        other = self.template.on(inputs, targets)
        other.l2 = self.l2
        return other

    def asking(self, of: Asking, theta: Tensor) -> Any:
        """Refused: its parts keep the loss.

        Raises:
            DataError: always, unless the loss itself is asked for.
        """
        if isinstance(of, str) and of == "loss":
            return super().asking(of, theta)
        raise DataError(
            "test points that are spread over parts answer for their loss alone; hold them in memory: "
            "objective.on(inputs, targets)"
        )

    def fixed_words(self) -> str | None:
        """As the template says."""
        result: str | None = self.template.fixed_words()
        return result

    def vector(self, theta: Any) -> Tensor:
        """θ ``(p,)`` from whatever the template takes."""
        result: Tensor = self.template.vector(theta)
        return result

    def outputs(self, theta: Tensor, idx: Any = None) -> Tensor:
        """f_θ(x_i): ``(m, c)``."""
        return self._rows(lambda part, rows, _: part.outputs(theta, rows), (self.n_outputs,), idx)

    def example_losses(self, theta: Tensor, idx: Any = None) -> Tensor:
        """L(z_i, θ) without L2: ``(m,)``."""
        return self._rows(lambda part, rows, _: part.example_losses(theta, rows), (), idx)

    def example_losses_many(self, thetas: Tensor, idx: Any = None) -> Tensor:
        """L(z_i, θ_j): ``(p, k) -> (m, k)``."""
        shape = (thetas.shape[1],)
        return self._rows(lambda part, rows, _: part.example_losses_many(thetas, rows), shape, idx)

    def example_gradients(self, theta: Tensor, idx: Any = None) -> Tensor:
        """∇L(z_i, θ) without L2: ``(m, p)``; ask for few at a time."""
        return self._rows(lambda part, rows, _: part.example_gradients(theta, rows), (self.p,), idx)

    def vjp(self, theta: Tensor, cotangents: Tensor, idx: Any = None) -> Tensor:
        """``J_iᵀ u_i``: ``(m, c) -> (m, p)``."""
        return self._rows(lambda part, rows, at: part.vjp(theta, cotangents[at], rows), (self.p,), idx)

    def directional(self, theta: Tensor, V: Tensor, idx: Any = None) -> Tensor:
        """∇L(z_i, θ)·v_j: ``(p, k) -> (m, k)``."""
        return self._rows(lambda part, rows, _: part.directional(theta, V, rows), (V.shape[1],), idx)

    def mixed(self, theta: Tensor, S: Tensor, idx: Any = None) -> Tensor:
        """∇_x (s_j·∇_θ L(x_i)): ``(p, k) -> (m, *input shape, k)``."""
        shape = (*self._input_shape(), S.shape[1])
        return self._rows(lambda part, rows, _: part.mixed(theta, S, rows), shape, idx)

    def _input_shape(self) -> tuple[int, ...]:
        return tuple(floating_leaf(self.template.inputs).shape[1:])

    def mixed_direction(self, theta: Tensor, index: int, delta: Tensor) -> Tensor:
        """``[∇_x∇_θ L(z)] δ`` of one example: ``(*input shape) -> (p,)``."""

        def one(part: Any, rows: Tensor | None, _: Any) -> Tensor:
            result: Tensor = part.mixed_direction(theta, 0 if rows is None else int(rows[0]), delta)
            return result

        return self._sum(one, theta, torch.tensor([index]))

    def paired_gradients(self, thetas: Tensor, idx: Tensor) -> Tensor:
        """``∇L(z_{i_j}, θ_j)`` for k pairs: ``(p, k), (k,) -> (p, k)``."""

        def pairs(part: Any, rows: Tensor | None, places: Any) -> Tensor:
            rows = torch.arange(part.n, device=self.device) if rows is None else rows
            result: Tensor = part.paired_gradients(thetas[:, places], rows).T
            return result

        return self._rows(pairs, (self.p,), idx).T.contiguous()

    def value(self, theta: Tensor) -> Tensor:
        """R(θ), 0-d."""
        return self.values(self.vector(theta)[:, None])[0]

    def values(self, thetas: Tensor) -> Tensor:
        """R(θ_j): ``(p, k) -> (k,)``."""
        total = self._sum(lambda part, *_: part.values(thetas) * part.n, thetas[0])
        return total / self.n + self.penalty(thetas)

    def gradient(self, theta: Tensor) -> Tensor:
        """∇R(θ): ``(p,)``."""
        theta = self.vector(theta)
        total = self._sum(lambda part, *_: part.gradient(theta) * part.n, theta)
        return total / self.n + self.l2 * self.l2_mask * theta

    def gradients(self, thetas: Tensor) -> Tensor:
        """∇R(θ_j): ``(p, k) -> (p, k)``."""
        total = self._sum(lambda part, *_: part.gradients(thetas) * part.n, thetas)
        return total / self.n + self.l2 * self.l2_mask[:, None] * thetas

    # -- curvature ----------------------------------------------------------------------------------------

    def self_quadratics(
        self, theta: Tensor, quadratic: Callable[[Tensor], Tensor], idx: Any = None, block: int = 512
    ) -> Tensor:
        """``q(∇L(z_i))``, q a function ``(p, k) -> (k,)`` of columns: ``(m,)``, each part on its own."""

        def own(part: Any, rows: Tensor | None, _: Any) -> Tensor:
            rows = torch.arange(part.n, device=self.device) if rows is None else rows
            pieces = (part.example_gradients(theta, some).T.contiguous() for some in rows.split(block))
            return torch.cat([quadratic(piece) for piece in pieces])

        return self._rows(own, (), idx)

    def hessian_at(self, theta: Tensor, idx: Any = None) -> Callable[[Tensor], Tensor]:
        """V ↦ ∇²R(θ) V for blocks ``(p, k)``."""
        return self._product_at("hessian", theta, idx)

    def gauss_newton_at(self, theta: Tensor, idx: Any = None) -> Callable[[Tensor], Tensor]:
        """V ↦ the Gauss–Newton matrix times V."""
        return self._product_at("gauss_newton", theta, idx)

    def hessian_product(
        self, theta: Tensor, V: Tensor, idx: Any = None, weights: Tensor | None = None
    ) -> Tensor:
        """``(1/m) Σ w_i ∇²L_i V + λ m ⊙ V``."""
        if weights is None:
            return self.hessian_at(theta, idx)(V)

        def one(part: Any, rows: Tensor | None, places: Any) -> Tensor:
            w = weights[places]
            result: Tensor = part.hessian_product(theta, V, rows, weights=w) * len(w)
            return result

        return self._sum(one, V, idx) / self.count(self.index(idx)) + self.l2 * self.l2_mask[:, None] * V

    def _product_at(self, kind: str, theta: Tensor, idx: Any) -> Callable[[Tensor], Tensor]:
        idx, count = self.index(idx), self.count(self.index(idx))

        def prepared() -> Iterator[tuple[Callable[[Tensor], Tensor], int]]:
            for part, rows, _ in self._parts(idx):
                yield _prepare(part, kind, theta, rows), part.n if rows is None else len(rows)

        kept = list(prepared()) if self.resident else None

        def product(V: Tensor) -> Tensor:
            total = torch.zeros_like(V, memory_format=torch.contiguous_format)
            for apply, m in prepared() if kept is None else kept:
                total += apply(V) * m
            return self._reduce(total) / count + self.l2 * self.l2_mask[:, None] * V

        return product


def _prepare(part: TrainingObjective, kind: str, theta: Tensor, rows: Tensor | None) -> Product:
    return (part.hessian_at if kind == "hessian" else part.gauss_newton_at)(theta, rows)


class PartitionedLinear(PartitionedObjective):
    """The further calls of :class:`~.linear.LinearObjective`, so that its direct solver, its
    preconditioner and LiSSA work on parts: the small core is summed over parts and factored everywhere."""

    linear_outputs = True

    @property
    def d(self) -> int:
        """Inputs of the model."""
        result: int = self.template.d
        return result

    @property
    def X(self) -> PartitionedMatrix:
        """Gives out chosen rows of X; all of it is nowhere."""
        return PartitionedMatrix(self)

    def _input_shape(self) -> tuple[int, ...]:
        return (self.template.features,)

    def undetermined(self) -> Tensor | None:
        """As on data in memory."""
        result: Tensor | None = self.template.undetermined()
        return result

    def output_gradients(self, theta: Tensor, idx: Any = None) -> Tensor:
        """∇_o ℓ_i: ``(m, c)``."""
        return self._rows(lambda part, rows, _: part.output_gradients(theta, rows), (self.n_outputs,), idx)

    def split_at(self, theta: Tensor, idx: Any = None) -> Split:
        """The Hessian as ``E C Eᵀ + λI``; C is summed over the parts when it is built."""
        mask = self._sum(lambda part, *_: part.X.column_mask().to(self.dtype), self.l2_mask[: self.d])
        active = (mask > 0).nonzero()[:, 0]
        basis = self.loss.output_range(self.n_outputs, theta)
        q = basis.shape[1] * len(active)

        def one(part: Any, rows: Tensor | None, _: Any) -> Tensor:
            return linear_core(part, theta, rows, active, basis) * (part.n if rows is None else len(rows))

        def core() -> Tensor:
            like = torch.empty(q, q, dtype=self.dtype, device=self.device)
            return self._sum(one, like, idx) / self.count(self.index(idx))

        free = self.l2_mask[: self.d] == 0
        return make_split(self.n_outputs, self.d, basis, active, core, self.l2, free)

    def core_blocks(self, inverse: Tensor, idx: Any = None) -> Tensor:
        """As on data in memory: ``(m, r, r)``, part by part."""
        mask = self._sum(lambda part, *_: part.X.column_mask().to(self.dtype), self.l2_mask[: self.d])
        active = (mask > 0).nonzero()[:, 0]
        r = max(1, len(inverse) // max(1, len(active)))

        def own(part: Any, rows: Tensor | None, _: Any) -> Tensor:
            return linear_core_blocks(part._data(rows)[0], inverse, active)

        return self._rows(own, (r, r), idx)

    def output_tangents(self, V: Tensor, idx: Any = None) -> Tensor:
        """``V_j x_i``: ``(p, k) -> (m, k, c)``."""
        shape = (V.shape[1], self.n_outputs)
        return self._rows(lambda part, rows, _: part.output_tangents(V, rows), shape, idx)

    def diagonal_at(self, theta: Tensor, idx: Any = None) -> Tensor:
        """The Hessian's diagonal ``(p,)``."""

        def one(part: Any, rows: Tensor | None, _: Any) -> Tensor:
            return linear_diagonal(part, theta, rows) * (part.n if rows is None else len(rows))

        return self._sum(one, theta, idx) / self.count(self.index(idx)) + self.l2 * self.l2_mask

    def largest_example_curvature(self, theta: Tensor, idx: Any = None) -> float:
        """A bound of the largest eigenvalue of any single example's Hessian, λ included."""
        largest = torch.zeros(1, dtype=self.dtype, device=self.device)
        for part, rows, _ in self._parts(self.index(idx)):
            largest = largest.clamp(min=part.largest_example_curvature(theta, rows))
        return float(self._reduce(largest, largest=True)) + self.l2

    def kronecker_at(self, theta: Tensor, idx: Any, damping: float) -> Callable[[Tensor], Tensor]:
        """A Kronecker-factored approximation of ``(H + damping·I)⁻¹``, from the same rows as in memory."""
        count = self.count(self.index(idx))
        step = max(1, count // KRONECKER_ROWS)
        c, d = self.n_outputs, self.d
        like = torch.empty(c * c + d * d + 1, dtype=self.dtype, device=self.device)

        def one(part: Any, rows: Tensor | None, places: Any) -> Tensor:
            at = torch.arange(places.start, places.stop) if isinstance(places, slice) else places
            sampled = (at % step == 0).nonzero()[:, 0].to(self.device)
            left, right, weight = kronecker_sums(part, theta, rows, sampled)
            return torch.cat([left.reshape(-1), right.reshape(-1), weight.reshape(1)])

        sums = self._sum(one, like, idx)
        left, right = sums[: c * c].reshape(c, c) / count, sums[c * c : -1].reshape(d, d)
        return kronecker_inverse(left, right, sums[-1], self.l2 + damping)


class PartitionedMatrix:
    """X of a partitioned linear objective: gives out chosen rows, dense, and has none of the products of a
    :class:`~influence.objectives.data_matrix.DataMatrix`, which would need all of them.
    """

    def __init__(self, objective: PartitionedLinear) -> None:
        self._objective = objective
        self.n, self.d = objective.n, objective.d
        self.dtype, self.device = objective.dtype, objective.device

    def dense(self, idx: Tensor | slice | None = None) -> Tensor:
        """Rows ``idx`` of all parts as a dense matrix ``(m, d)``; all of them by default."""
        if idx is None or isinstance(idx, slice):
            idx = torch.arange(self.n, device=self.device)[idx if idx is not None else slice(None)]
        return self._objective._rows(lambda part, rows, _: part.X.dense(rows), (self.d,), idx)
