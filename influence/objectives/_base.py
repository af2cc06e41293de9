"""The contract of every training objective: what operators, solvers, scores and retraining may ask of one.

    R(θ) = (1/n) Σ_i w_i ℓ(f_θ(x_i), y_i) + (λ/2) Σ_j m_j θ_j²

with weights ``w_i`` (1 unless given) and a mask ``m`` of numbers in 0…1 that says how much λ touches each
parameter, 0 or 1 unless λ differs between groups of parameters (Koh & Liang 2017, section 2). Shapes: n
examples, p parameters, c outputs, k columns. A block of vectors is ``(p, k)``.

Every call walks the data in batches of ``batch_size``, so memory is bounded by the batch and not by n·p.
What only some objectives can do is a method that returns None here. Nothing is looked up by name.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self, overload

import torch
from torch import Tensor

from influence.errors import DataError
from influence.fits import Fit
from influence.losses import Asking, Loss, check_asked, get_loss, get_quantity, is_loss
from influence.objectives.determined import Determined
from influence.objectives.output_shapes import for_outputs
from influence.objectives.structure import GramFactor, Split

Product = Callable[[Tensor], Tensor]
Index = Tensor | slice | list[int] | None


class TrainingObjective(ABC):
    """What is minimised, as a function of one flat vector θ ``(p,)``.

    Attributes:
        n: number of training examples.
        p: number of parameters.
        n_outputs: c, outputs of the model for one example.
        l2: λ ≥ 0 of the penalty.
        l2_mask: m ``(p,)``, in 0…1.
        loss: the loss of one example as a function of its outputs.
        weights: ``(n,)`` weights of the examples, or None where each is 1.
        batch_size: examples that a pass holds at a time.
        dtype, device: of θ and of every result.
        linear_outputs: whether the outputs are linear in θ (Hessian and Gauss-Newton are then equal).

    An index argument ``idx`` names examples: integers (negative ones count from the end), a boolean mask
    ``(n,)``, or None for all of them. An index out of range raises DataError.
    """

    n: int
    p: int
    n_outputs: int
    l2: float
    l2_mask: Tensor
    loss: Loss
    batch_size: int
    dtype: torch.dtype
    device: torch.device
    weights: Tensor | None = None
    linear_outputs: bool = False

    # -- required: values and first derivatives ------------------------------------------------------------

    @property
    @abstractmethod
    def targets(self) -> Tensor:
        """The targets ``(n, ...)`` as the loss takes them."""

    @abstractmethod
    def initial(self) -> Tensor:
        """The parameters to start from: ``(p,)``."""

    @abstractmethod
    def outputs(self, theta: Tensor, idx: Tensor | None = None) -> Tensor:
        """f_θ(x_i): ``(m, c)``."""

    @abstractmethod
    def example_losses(self, theta: Tensor, idx: Tensor | None = None) -> Tensor:
        """ℓ_i without weight and without the L2 term: ``(m,)``, in nats."""

    @abstractmethod
    def example_losses_many(self, thetas: Tensor, idx: Tensor | None = None) -> Tensor:
        """ℓ_i at every column of ``thetas (p, k)``: ``(m, k)``."""

    @abstractmethod
    def value(self, theta: Tensor) -> Tensor:
        """R(θ), a 0-d tensor."""

    @abstractmethod
    def values(self, thetas: Tensor) -> Tensor:
        """R at every column of ``thetas (p, k)``: ``(k,)``."""

    @abstractmethod
    def gradient(self, theta: Tensor) -> Tensor:
        """∇R(θ): ``(p,)``."""

    @abstractmethod
    def gradients(self, thetas: Tensor) -> Tensor:
        """∇R at every column: ``(p, k) -> (p, k)``."""

    @abstractmethod
    def example_gradients(self, theta: Tensor, idx: Tensor | None = None) -> Tensor:
        """∇ℓ_i without weight and without the L2 term: ``(m, p)``. Ask for few examples at a time."""

    @abstractmethod
    def directional(self, theta: Tensor, V: Tensor, idx: Tensor | None = None) -> Tensor:
        """∇ℓ_i · v_j without weight, without a per-example gradient: ``V (p, k) -> (m, k)``."""

    # -- required: second derivatives ----------------------------------------------------------------------

    @abstractmethod
    def hessian_at(self, theta: Tensor, idx: Tensor | None = None) -> Product:
        """The map V ↦ ∇²R(θ) V on blocks ``(p, k)``; over the examples ``idx`` the mean is theirs."""

    @abstractmethod
    def gauss_newton_at(self, theta: Tensor, idx: Tensor | None = None) -> Product:
        """The map V ↦ ((1/n) Σ w_i J_iᵀ ∇²_o ℓ_i J_i + λ diag(m)) V on blocks ``(p, k)``."""

    @abstractmethod
    def mixed(self, theta: Tensor, S: Tensor, idx: Tensor | None = None) -> Tensor:
        """∇_x (s_j · ∇_θ ℓ_i): ``S (p, k) -> (m, *input shape, k)`` (paper, eq. 5)."""

    @abstractmethod
    def mixed_direction(self, theta: Tensor, index: int, delta: Tensor) -> Tensor:
        """[∇_x ∇_θ ℓ(z)] δ of one example: δ of its input's shape ``-> (p,)`` (paper, section 2.2)."""

    # -- required: other data ------------------------------------------------------------------------------

    @abstractmethod
    def on(self, inputs: Any, targets: Any) -> TrainingObjective:
        """The same model, loss and λ on other data, such as the test set; without weights."""

    @abstractmethod
    def subset(self, idx: Any) -> Self:
        """The objective of the examples ``idx`` alone; its mean is over those, their weights stay."""

    def asking(self, of: Asking, theta: Tensor) -> Self:
        """The same model and data with another quantity in place of the loss, and without weights and λ.

        Everything that is asked of a test set then answers for that quantity: values, gradients, scores,
        groups and retraining.

        Args:
            of: ``"loss"``, ``"margin"``, ``"log_odds"``, ``"logit"``, ``"probability"``, ``"output"``, a
                :class:`~influence.losses.Quantity` of a named class, another loss, or a function
                ``(outputs, targets) -> (m,)`` whose rows depend on their own outputs alone. A function sees
                the outputs in the model's own shape.
            theta: ``(p,)``, where it must be finite and differentiable.

        Raises:
            DataError: an unknown quantity, one without meaning for this loss, or a function that returns
                another shape, NaN, or numbers without a right gradient.
        """
        other = copy.copy(self)
        other.weights, other.l2 = None, 0.0
        if isinstance(of, str) and of == "loss":
            return other
        shape = self.output_shape
        if is_loss(of):
            other.loss, targets = for_outputs(get_loss(of), shape, self.targets)
            if targets is not self.targets:
                raise DataError(f"the loss {other.loss.name} takes targets of another shape than those here")
            other.loss.check_range(targets, self.n_outputs)
            return other
        asked = get_quantity(of, self.loss, self.n_outputs, shape)
        check_asked(asked, self.outputs(theta), self.targets)
        other.loss = asked
        return other

    # -- the same for all ----------------------------------------------------------------------------------

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of the model's outputs for one example; objectives keep them flat, ``(m, c)``."""
        return (self.n_outputs,)

    @overload
    def index(self, idx: None) -> None: ...

    @overload
    def index(self, idx: Tensor | slice | list[int]) -> Tensor: ...

    def index(self, idx: Any) -> Tensor | None:
        """``idx`` as integers 0…n−1 on the device of the objective, or None for all examples.

        Raises:
            DataError: an index out of range, or a mask of the wrong length.
        """
        if idx is None:
            return None
        if isinstance(idx, slice):
            return torch.arange(self.n, device=self.device)[idx]
        chosen = torch.as_tensor(idx, device=self.device)
        if chosen.dtype == torch.bool:
            if chosen.shape != (self.n,):
                raise DataError(f"a mask of examples must have shape ({self.n},), got {tuple(chosen.shape)}")
            chosen = chosen.nonzero()[:, 0]
        if chosen.is_floating_point() and chosen.numel():
            raise DataError(f"example indices must be integers, got {chosen.dtype}; pass idx.long()")
        chosen = chosen.reshape(-1).long()
        outside = chosen[(chosen < -self.n) | (chosen >= self.n)]
        if len(outside):
            raise DataError(
                f"example index {int(outside[0])} is out of range for {self.n} examples; use 0…{self.n - 1}"
            )
        return torch.where(chosen < 0, chosen + self.n, chosen)

    def vector(self, theta: Any) -> Tensor:
        """θ as one vector ``(p,)``; a :class:`~influence.fits.Fit` stands for its parameters.

        An objective of a module takes a module or a state dict as well.

        Raises:
            DataError: another number of parameters.
        """
        if isinstance(theta, Fit):
            theta = theta.theta
        if not isinstance(theta, Tensor) or theta.shape != (self.p,):
            got = tuple(theta.shape) if isinstance(theta, Tensor) else type(theta).__name__
            raise DataError(f"theta must have shape ({self.p},), got {got}")
        return theta

    def count(self, idx: Tensor | None) -> int:
        """How many examples ``idx`` names."""
        return self.n if idx is None else len(idx)

    def example_weights(self, idx: Tensor | None = None) -> Tensor:
        """w_i: ``(m,)``, ones where the objective has no weights."""
        if self.weights is None:
            return torch.ones(self.count(idx), dtype=self.dtype, device=self.device)
        return self.weights if idx is None else self.weights[idx]

    def penalty(self, theta: Tensor) -> Tensor:
        """(λ/2) Σ m_j θ_j² of ``(p,)`` or of each column of ``(p, k)``."""
        mask = self.l2_mask if theta.ndim == 1 else self.l2_mask[:, None]
        return 0.5 * self.l2 * (mask * theta**2).sum(dim=0)

    def fixed_words(self) -> str | None:
        """Which parameters of the model are held fixed, in words; None if there are none."""
        return None

    def reading_words(self) -> str | None:
        """How the data are read, in words; None if they are in memory."""
        return None

    def penalty_words(self) -> str:
        """λ for a reader; the smallest and largest if it differs between parameters."""
        least = float(self.l2_mask.min())
        if least in (0.0, 1.0) and bool(((self.l2_mask == 0) | (self.l2_mask == 1)).all()):
            free = int((self.l2_mask == 0).sum())
            return f"l2 {self.l2:g}" + (f" on all but {free:,} parameters" if free and self.l2 else "")
        return f"l2 by parameter group, {self.l2 * least:g} to {self.l2:g}"

    def penalty_gradient(self, theta: Tensor) -> Tensor:
        """λ m ⊙ θ of ``(p,)`` or of each column of ``(p, k)``."""
        mask = self.l2_mask if theta.ndim == 1 else self.l2_mask[:, None]
        return self.l2 * mask * theta

    def hessian_product(self, theta: Tensor, V: Tensor, idx: Tensor | None = None) -> Tensor:
        """∇²R(θ) V: ``(p, k) -> (p, k)``."""
        return self.hessian_at(theta, idx)(V)

    def gauss_newton_product(self, theta: Tensor, V: Tensor, idx: Tensor | None = None) -> Tensor:
        """The Gauss-Newton matrix times V: ``(p, k) -> (p, k)``."""
        return self.gauss_newton_at(theta, idx)(V)

    def paired_gradients(self, thetas: Tensor, idx: Tensor) -> Tensor:
        """∇ℓ of example i_j at parameters θ_j, without weight: ``(p, k), (k,) -> (p, k)``."""
        columns = [self.example_gradients(thetas[:, j], idx[j : j + 1])[0] for j in range(thetas.shape[1])]
        return torch.stack(columns, dim=1)

    def self_quadratics(
        self, theta: Tensor, quadratic: Product, idx: Tensor | None = None, block: int = 512
    ) -> Tensor:
        """``q(∇ℓ_i)`` for a function q of columns, ``(p, k) -> (k,)``: ``(m,)``, ``block`` at a time."""
        rows = torch.arange(self.n, device=self.device) if idx is None else idx
        pieces = (self.example_gradients(theta, some).T.contiguous() for some in rows.split(block))
        parts = [quadratic(piece) for piece in pieces]
        return torch.cat(parts) if parts else torch.empty(0, dtype=self.dtype, device=self.device)

    # -- what only some can do: None unless overridden -----------------------------------------------------

    def undetermined(self) -> Tensor | None:
        """Orthonormal directions ``(p, r)`` along which R never changes, so that no fit moves there, or None.

        They are those of softmax's unpenalised intercepts, whose differences alone are determined.
        """
        return None

    def determined(self) -> Determined | None:
        """The space in which the minimiser of a small linear model lies, or None where it is all of ℝᵖ."""
        return None

    def split_at(self, theta: Tensor, idx: Tensor | None = None) -> Split | None:
        """The Hessian as ``E C Eᵀ + λI`` with a small dense core C, or None."""
        return None

    def gram_at(self, theta: Tensor, idx: Tensor | None = None) -> GramFactor | None:
        """The Hessian as ``ZᵀZ/n + λI`` for p > n (Woodbury), or None."""
        return None

    def gram_quadratics(self, theta: Tensor, factor: Tensor, gram: GramFactor, idx: Tensor) -> Tensor | None:
        """``∇ℓ_iᵀ H⁻¹ ∇ℓ_i`` from a Cholesky factor of ``ZZᵀ + nμI``: ``(m,)``, or None."""
        return None

    def gram_blocks(
        self, factor: Tensor, scale: Tensor, gram: GramFactor, idx: Tensor | None = None
    ) -> Tensor | None:
        """``Qᵀ J_i H⁻¹ J_iᵀ Q (m, r, r)`` from a factor of ``D(ZZᵀ + nμI)D``, D = diag(scale), or None.

        Q ``(c, r)`` is the range of the outputs that the loss sees (:meth:`Loss.output_range`).
        """
        return None

    def core_blocks(self, inverse: Tensor, idx: Tensor | None = None) -> Tensor | None:
        """``Qᵀ J_i H⁻¹ J_iᵀ Q (m, r, r)`` from the inverse of the shifted core, or None."""
        return None

    def output_tangents(self, V: Tensor, idx: Tensor | None = None) -> Tensor | None:
        """``J_i v_j``, ``(p, k) -> (m, k, c)``, where the outputs are linear in θ, else None."""
        return None

    def vjp(self, theta: Tensor, cotangents: Tensor, idx: Tensor | None = None) -> Tensor | None:
        """``J_iᵀ u_i`` with J the Jacobian of the outputs: ``cotangents (m, c) -> (m, p)``, or None."""
        return None

    def diagonal_at(self, theta: Tensor, idx: Tensor | None = None) -> Tensor | None:
        """The diagonal of the Hessian ``(p,)`` in closed form, or None."""
        return None

    def kronecker_at(self, theta: Tensor, idx: Tensor | None, damping: float) -> Product | None:
        """A Kronecker-factored approximation of ``(H + damping·I)⁻¹``, or None."""
        return None

    def largest_example_curvature(self, theta: Tensor, idx: Tensor | None = None) -> float | None:
        """A bound of the largest eigenvalue of any single example's Hessian, λ included, or None."""
        return None
