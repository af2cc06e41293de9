"""Linear models in closed form: outputs ``o_i = W x_i``, parameters ``θ = vec(W)`` with W ``(c, d)``.

θ has the order of ``torch.nn.Linear(d, c, bias=False).weight.reshape(-1)``. With r_i the gradient and A_i the
Hessian of the loss in the outputs, an example's gradient is ``r_i ⊗ x_i`` and its Hessian ``A_i ⊗ x_i x_iᵀ``,
so a Hessian product is two products with X, and per-example gradients are never formed unless asked for.

The objective is ``(1/n) Σ w_i ℓ(W x_i, y_i) + (λ/2)‖m⊙θ‖²``. The paper's models have no intercept. With
``intercept=True`` X gets a last column of ones, so that W is ``(c, d + 1)``, and the mask m leaves the
intercepts unpenalised, as scikit-learn does. Everything below then holds for the wider X.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from influence.checks import checked_number
from influence.errors import DataError, DeviceError
from influence.losses import LossLike, get_loss
from influence.objectives._base import Product, TrainingObjective
from influence.objectives.data_matrix import DataMatrix, as_matrix, checked_weights, with_ones
from influence.objectives.determined import Determined, determined
from influence.objectives.structure import (
    GramFactor,
    Split,
    linear_core_blocks,
    linear_diagonal,
    linear_gram,
    linear_gram_blocks,
    linear_gram_quadratics,
    linear_kronecker,
    linear_split,
)

# Columns (outputs × right-hand sides) worked on at once: n × 32 float64 numbers stay near the cache. From
# _WIDE on, blocks of rows are multiplied with all columns instead, _NUMBERS of their products at a time.
_COLUMNS, _WIDE, _NUMBERS = 32, 64, {"cpu": 2**20}


class LinearObjective(TrainingObjective):
    """Mean loss of a linear model plus L2, with the calls of :class:`influence.objectives.module.Objective`.

    Args:
        X: ``(n, d)`` numpy, torch (dense or CSR) or scipy sparse; stored dense or CSR by density.
        y: ``(n,)`` targets, {−1, +1} for binary losses, 0…c−1 for cross_entropy.
        loss: a :class:`Loss` or its name.
        l2: λ ≥ 0, on all parameters but the intercepts.
        n_outputs: c; by default 1 for binary losses and ``max(y) + 1`` for cross_entropy.
        batch_size: rows made dense at once where a pass needs dense rows.
        dtype: float64 (default) or float32.
        weights: ``(n,)`` finite weights of the examples.
        intercept: an unpenalised intercept per output. Of softmax's intercepts only the differences are
            determined; their sum stays 0.

    Attributes:
        d: columns of X and of W, the column of ones included.
        features: inputs that the caller gives, without the column of ones.

    Raises:
        DataError: NaN or infinite features, targets out of range, an empty class, n < 2, λ < 0.
        DeviceError: X and y on different devices.

    >>> import torch
    >>> X = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    >>> train = LinearObjective(X, torch.tensor([-1, 1, 1, -1]), "logistic", l2=0.1)
    >>> train.n, train.p, round(float(train.value(torch.zeros(2, dtype=torch.float64))), 4)
    (4, 2, 0.6931)
    """

    def __init__(
        self,
        X: Any,
        y: Any,
        loss: LossLike,
        l2: float,
        *,
        n_outputs: int | None = None,
        batch_size: int = 4096,
        dtype: torch.dtype = torch.float64,
        weights: Tensor | None = None,
        device: torch.device | str | None = None,
        check: bool = True,
        intercept: bool = False,
    ) -> None:
        self.loss = get_loss(loss)
        self.X: DataMatrix = as_matrix(X, dtype, device)
        self.intercept, self.features = bool(intercept), self.X.d
        if self.intercept:
            self.X = with_ones(self.X)
        if isinstance(y, Tensor) and device is None and y.device != self.X.device:
            raise DeviceError(f"X is on {self.X.device} but y on {y.device}; move them to one device")
        targets = self.loss.prepare(y, self.X.dtype, self.X.device)
        self.n_outputs = (
            1 if self.loss.binary else n_outputs or (self.loss.outputs_of(targets) if len(targets) else 1)
        )
        self.n, self.d = self.X.n, self.X.d
        if len(targets) != self.n:
            raise DataError(f"X has {self.n} rows but y has {len(targets)} targets; pass one target per row")
        checked_number("l2", l2, least=0.0)
        if check:
            self.loss.check_targets(targets, self.n_outputs)
        self._targets, self.l2, self.batch_size = targets, float(l2), batch_size
        self.weights = None if weights is None else checked_weights(weights, self.n, self.X)
        self.p = self.n_outputs * self.d
        self.dtype, self.device = self.X.dtype, self.X.device
        self.l2_mask = torch.ones(self.p, dtype=self.dtype, device=self.device)
        if self.intercept:
            self.l2_mask.reshape(self.n_outputs, self.d)[:, -1] = 0

    linear_outputs = True

    @property
    def targets(self) -> Tensor:
        """``(n,)`` targets."""
        return self._targets

    # ---- shapes -----------------------------------------------------------------------------------------

    def initial(self) -> Tensor:
        """θ = 0, ``(p,)``."""
        return torch.zeros(self.p, dtype=self.dtype, device=self.device)

    def on(self, X: Any, y: Any) -> LinearObjective:
        """The same model on other data, for instance the test set (one class alone is allowed there)."""
        matrix, targets = as_matrix(X, self.dtype, self.device), self.loss.prepare(y, self.dtype, self.device)
        if matrix.d != self.features:
            raise DataError(
                f"the model has {self.features} inputs but X has {matrix.d} columns; pass the same features"
            )
        if len(targets) != matrix.n:
            raise DataError(f"X has {matrix.n} rows, y has {len(targets)} targets; pass one target per row")
        if len(targets):  # one class alone is allowed, a label out of range is not
            self.loss.check_range(targets, self.n_outputs)
        return self._with(with_ones(matrix) if self.intercept else matrix, targets, None)

    def subset(self, idx: Tensor) -> LinearObjective:
        """The same model on the examples ``idx`` (indices or a boolean mask)."""
        chosen = self.index(idx)
        if chosen is None:
            return self
        weights = None if self.weights is None else self.weights[chosen]
        return self._with(self.X.rows(chosen), self.targets[chosen], weights)

    def with_weights(self, weights: Tensor | None) -> LinearObjective:
        """The same data with mean loss ``(1/n) Σ w_i ℓ_i``, or without weights; λ stays."""
        checked = None if weights is None else checked_weights(weights, self.n, self.X)
        return self._with(self.X, self.targets, checked)

    def _with(self, X: DataMatrix, y: Tensor, weights: Tensor | None) -> LinearObjective:
        """The same model on a matrix that has its column of ones already."""
        other = copy.copy(self)
        other.X, other._targets, other.weights, other.n = X, y, weights, X.n
        return other

    def coefficients(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """θ as weights ``(c, features)`` and intercepts ``(c,)``, zeros without an intercept."""
        W = self._matrix(theta)
        if self.intercept:
            return W[:, :-1], W[:, -1]
        return W, torch.zeros(self.n_outputs, dtype=self.dtype, device=self.device)

    def theta_of(self, weights: Any, intercepts: Any = None) -> Tensor:
        """θ ``(p,)`` of weights ``(c, features)`` and intercepts ``(c,)``, such as scikit-learn's ``coef_``
        and ``intercept_``.

        Raises:
            DataError: wrong shapes, or intercepts for a model that has none.
        """
        W = torch.as_tensor(weights, dtype=self.dtype, device=self.device)
        b = None
        if intercepts is not None:
            b = torch.as_tensor(intercepts, dtype=self.dtype, device=self.device)
        if W.shape != (self.n_outputs, self.features) or (b is not None and b.shape != (self.n_outputs,)):
            raise DataError(
                f"weights must have shape ({self.n_outputs}, {self.features}) and intercepts "
                f"({self.n_outputs},), got {tuple(W.shape)} and {None if b is None else tuple(b.shape)}"
            )
        if (b is not None) is not self.intercept:
            missing = "needs" if self.intercept else "has no"
            raise DataError(f"the model {missing} intercepts; build it with intercept={not self.intercept}")
        return (W if b is None else torch.cat([W, b[:, None]], dim=1)).reshape(self.p)

    def _matrix(self, theta: Tensor) -> Tensor:
        """W ``(c, d)``."""
        return self.vector(theta).reshape(self.n_outputs, self.d)

    def _shrunk(self, block: Tensor) -> Tensor:
        """m ⊙ V: what λ touches, ``(p,)`` or ``(p, k)``."""
        if not self.intercept:
            return block
        return block * (self.l2_mask if block.ndim == 1 else self.l2_mask[:, None])

    def _columns(self, block: Tensor) -> Tensor:
        """``(p, k) -> (d, k·c)``, the c columns of one right-hand side side by side."""
        k = block.shape[1]
        return block.reshape(self.n_outputs, self.d, k).permute(1, 2, 0).reshape(self.d, k * self.n_outputs)

    def _block(self, columns: Tensor) -> Tensor:
        """Inverse of :meth:`_columns`: ``(d, k·c) -> (p, k)``."""
        k = columns.shape[1] // self.n_outputs
        return columns.reshape(self.d, k, self.n_outputs).permute(2, 0, 1).reshape(self.p, k)

    def _strips(self, k: int) -> Iterator[slice]:
        step = max(1, _COLUMNS // self.n_outputs)
        for start in range(0, k, step):
            yield slice(start, min(start + step, k))

    def _wide(self, k: int) -> int:
        """Rows to multiply with k right-hand sides at a time, 0 where strips of columns are better."""
        columns = k * self.n_outputs
        if columns < _WIDE:
            return 0
        return max(256, _NUMBERS.get(self.device.type, 2**26) // columns)

    def _data(self, idx: Tensor | None) -> tuple[DataMatrix, Tensor]:
        if idx is None:
            return self.X, self.targets
        idx = self.index(idx)
        return self.X.rows(idx), self.targets[idx]

    def _tangents(self, X: DataMatrix, block: Tensor) -> Tensor:
        """Outputs of every example along every column: ``(p, k) -> (n, k, c)``."""
        return X.matmul(self._columns(block)).reshape(X.n, block.shape[1], self.n_outputs)

    # ---- values and gradients ---------------------------------------------------------------------------

    def outputs(self, theta: Tensor, idx: Tensor | None = None) -> Tensor:
        """W x_i: ``(p,) -> (n, c)``."""
        X, _ = self._data(idx)
        return X.matmul(self._matrix(theta).T)

    def example_losses(self, theta: Tensor, idx: Tensor | None = None) -> Tensor:
        """ℓ_i without the L2 term: ``(n,)``."""
        X, y = self._data(idx)
        return self.loss.values(X.matmul(self._matrix(theta).T), y)

    def example_losses_many(self, thetas: Tensor, idx: Tensor | None = None) -> Tensor:
        """ℓ_i at k parameter vectors: ``(p, k) -> (n, k)``."""
        X, y = self._data(idx)
        out = torch.empty(X.n, thetas.shape[1], dtype=self.dtype, device=self.device)
        for cols in self._strips(thetas.shape[1]):
            o = self._tangents(X, thetas[:, cols])
            m = o.shape[1]
            losses = self.loss.values(o.reshape(-1, self.n_outputs), y.repeat_interleave(m, dim=0))
            out[:, cols] = losses.reshape(X.n, m)
        return out

    def value(self, theta: Tensor) -> Tensor:
        """(1/n) Σ w_i ℓ_i + (λ/2)‖θ‖², 0-d."""
        theta, losses = self.vector(theta), self.example_losses(theta)
        mean = losses.mean() if self.weights is None else (losses * self.weights).sum() / self.n
        return mean + 0.5 * self.l2 * theta.dot(self._shrunk(theta))

    def values(self, thetas: Tensor) -> Tensor:
        """:meth:`value` at k parameter vectors: ``(p, k) -> (k,)``."""
        losses = self.example_losses_many(thetas)
        mean = losses.mean(0) if self.weights is None else self.weights @ losses / self.n
        return mean + 0.5 * self.l2 * (thetas * self._shrunk(thetas)).sum(0)

    def gradient(self, theta: Tensor) -> Tensor:
        """∇ of :meth:`value`: ``(p,)``."""
        return self.gradients(self.vector(theta)[:, None])[:, 0]

    def gradients(self, thetas: Tensor) -> Tensor:
        """∇ of :meth:`value` at k parameter vectors at once: ``(p, k) -> (p, k)``."""
        out = torch.empty_like(thetas)
        for cols in self._strips(thetas.shape[1]):
            o = self._tangents(self.X, thetas[:, cols])
            m = o.shape[1]
            r = self.loss.output_gradient(
                o.reshape(-1, self.n_outputs), self.targets.repeat_interleave(m, dim=0)
            )
            r = r.reshape(self.n, m * self.n_outputs)
            if self.weights is not None:
                r = r * self.weights[:, None]
            out[:, cols] = self._block(self.X.rmatmul(r)) / self.n
        return out + self.l2 * self._shrunk(thetas)

    def example_gradients(self, theta: Tensor, idx: Tensor | None = None) -> Tensor:
        """∇ℓ_i = r_i ⊗ x_i without the L2 term: ``(m, p)``; ask for few at a time."""
        X, y = self._data(idx)
        r = self.loss.output_gradient(X.matmul(self._matrix(theta).T), y)
        return (r[:, :, None] * X.dense()[:, None, :]).reshape(X.n, self.p)

    def output_gradients(self, theta: Tensor, idx: Tensor | None = None) -> Tensor:
        """r_i = ∇_o ℓ_i: ``(m, c)``."""
        X, y = self._data(idx)
        return self.loss.output_gradient(X.matmul(self._matrix(theta).T), y)

    def paired_gradients(self, thetas: Tensor, idx: Tensor) -> Tensor:
        """``∇ℓ_{i_j}(θ_j)`` for k pairs of parameters and example: ``(p, k), (k,) -> (p, k)``."""
        k = thetas.shape[1]
        x, y = self.X.dense(idx), self.targets[idx]
        o = torch.einsum("cdk,kd->kc", thetas.reshape(self.n_outputs, self.d, k), x)
        r = self.loss.output_gradient(o, y)
        return torch.einsum("kc,kd->cdk", r, x).reshape(self.p, k)

    def directional(self, theta: Tensor, V: Tensor, idx: Tensor | None = None) -> Tensor:
        """∇ℓ_i · v_j for all i and j, no L2, no per-example gradient: ``(p, k) -> (n, k)``."""
        X, y = self._data(idx)
        r = self.loss.output_gradient(X.matmul(self._matrix(theta).T), y)
        out = torch.empty(X.n, V.shape[1], dtype=self.dtype, device=self.device)
        if wide := self._wide(V.shape[1]):
            for rows, outputs in X.row_products(self._columns(V), wide):
                along = outputs.reshape(len(outputs), V.shape[1], self.n_outputs)
                torch.matmul(along, r[rows, :, None], out=out[rows, :, None])
            return out
        for cols in self._strips(V.shape[1]):
            out[:, cols] = (self._tangents(X, V[:, cols]) * r[:, None, :]).sum(2)
        return out

    def mixed(self, theta: Tensor, S: Tensor, idx: Tensor | None = None) -> Tensor:
        """∇_x (s_j · ∇_θ ℓ(x_i)) = S_jᵀ r_i + Wᵀ A_i S_j x_i: ``(p, k) -> (m, features, k)``."""
        X, y = self._data(idx)
        c, k = self.n_outputs, S.shape[1]
        W = self._matrix(theta)
        o = X.matmul(W.T)
        r = self.loss.output_gradient(o, y)
        along = self._tangents(X, S).permute(0, 2, 1)  # (m, c, k)
        curved = self.loss.output_hessian_product(o, y, along)
        first = torch.einsum("mc,cdk->mdk", r, S.reshape(c, self.d, k))
        return (first + torch.einsum("cd,mck->mdk", W, curved))[:, : self.features]

    def mixed_direction(self, theta: Tensor, index: int, delta: Tensor) -> Tensor:
        """``[∇_x∇_θ ℓ(z)] δ = r ⊗ δ + A W δ ⊗ x`` for one example: ``(features,) -> (p,)``."""
        idx = self.index([index])
        x, y = self.X.dense(idx), self.targets[idx]
        W = self._matrix(theta)
        if self.intercept:
            delta = torch.cat([delta, delta.new_zeros(1)])
        o = x @ W.T
        curved = self.loss.output_hessian_product(o, y, (W @ delta)[None, :, None])[0, :, 0]
        r = self.loss.output_gradient(o, y)[0]
        return (torch.outer(r, delta) + torch.outer(curved, x[0])).reshape(self.p)

    # ---- curvature --------------------------------------------------------------------------------------

    def output_tangents(self, V: Tensor, idx: Tensor | None = None) -> Tensor:
        """``V_j x_i``: ``(p, k) -> (m, k, c)``."""
        return self._tangents(self._data(idx)[0], V)

    def backward(self, rows: Tensor) -> Tensor:
        """``Σ_i u_ij ⊗ x_i``, the transpose of :meth:`output_tangents`: ``(n, k·c) -> (p, k)``."""
        return self._block(self.X.rmatmul(rows))

    def vjp(self, theta: Tensor, cotangents: Tensor, idx: Tensor | None = None) -> Tensor:
        """``u_i ⊗ x_i``: ``(m, c) -> (m, p)``."""
        X, _ = self._data(idx)
        return (cotangents[:, :, None] * X.dense()[:, None, :]).reshape(X.n, self.p)

    def hessian_at(self, theta: Tensor, idx: Tensor | None = None) -> Product:
        """V ↦ ∇²value(θ) V for blocks ``(p, k)``, with the outputs at θ computed once."""
        X, y = self._data(idx)
        o = X.matmul(self._matrix(theta).T)
        weights = None if self.weights is None else (self.weights if idx is None else self.weights[idx])
        curve = self.loss.prepared_hessian_product(o, y)

        def wide_product(V: Tensor, size: int) -> Tensor:
            def inner(rows: slice, outputs: Tensor) -> Tensor:
                u = outputs.reshape(len(outputs), V.shape[1], self.n_outputs)
                u = self.loss.prepared_hessian_product(o[rows], y[rows])(u)
                if weights is not None:
                    u = u * weights[rows, None, None]
                return u.reshape(len(u), -1)

            out = self._block(X.through(self._columns(V), size, inner)) / X.n
            return out.add_(self._shrunk(V), alpha=self.l2) if self.l2 else out

        def product(V: Tensor) -> Tensor:
            if size := self._wide(V.shape[1]):
                return wide_product(V, size)
            out = torch.empty_like(V)
            for cols in self._strips(V.shape[1]):
                u = curve(self._tangents(X, V[:, cols]))
                if weights is not None:
                    u = u * weights[:, None, None]
                out[:, cols] = self._block(X.rmatmul(u.reshape(X.n, -1))) / X.n
            return out.add_(self._shrunk(V), alpha=self.l2) if self.l2 else out

        return product

    def determined(self) -> Determined | None:
        """The space of the minimiser: row space of X, and the outputs that the loss sees. Forms X densely."""
        mask = self.l2_mask.reshape(self.n_outputs, self.d)[0]
        counted = None if self.weights is None else self.weights.nonzero()[:, 0]
        return determined(self.X.dense(counted), mask, self.loss.output_range(self.n_outputs, self.l2_mask))

    def undetermined(self) -> Tensor | None:
        """The sum of softmax's intercepts, which stays what it is: ``(p, 1)``, or None."""
        if (
            not self.intercept
            or self.loss.output_range(self.n_outputs, self.l2_mask).shape[1] == self.n_outputs
        ):
            return None
        direction = torch.zeros(self.n_outputs, self.d, dtype=self.dtype, device=self.device)
        direction[:, -1] = self.n_outputs**-0.5
        return direction.reshape(self.p, 1)

    def split_at(self, theta: Tensor, idx: Tensor | None = None) -> Split:
        """The Hessian as ``E C Eᵀ + λI`` with a small dense core (:mod:`.structure`)."""
        return linear_split(self, theta, idx)

    def gram_at(self, theta: Tensor, idx: Tensor | None = None) -> GramFactor | None:
        """The Hessian as ``ZᵀZ/n + λI``, for p > n; None where negative weights leave no real Z."""
        if self.weights is not None and bool((self.weights < 0).any()):
            return None
        return linear_gram(self, theta, idx)

    def core_blocks(self, inverse: Tensor, idx: Tensor | None = None) -> Tensor:
        """``(I ⊗ x_i)ᵀ H⁻¹ (I ⊗ x_i)`` on the contrasts: ``(m, r, r)``, a product per pair of them."""
        active = self.X.column_mask().nonzero()[:, 0]
        return linear_core_blocks(self._data(idx)[0], inverse, active)

    def gram_blocks(
        self, factor: Tensor, scale: Tensor, gram: GramFactor, idx: Tensor | None = None
    ) -> Tensor:
        """The same from a factor of the Gram matrix: ``(m, r, r)``."""
        return linear_gram_blocks(self, factor, scale, gram, idx)

    def diagonal_at(self, theta: Tensor, idx: Tensor | None = None) -> Tensor:
        """The Hessian's diagonal ``(p,)``."""
        return linear_diagonal(self, theta, idx)

    def largest_example_curvature(self, theta: Tensor, idx: Tensor | None = None) -> float:
        """A bound of the largest eigenvalue of any single example's Hessian, λ included.

        ``λ_max(A_i)‖x_i‖² + λ`` with λ_max(A_i) bounded by its largest absolute row sum.
        """
        X, y = self._data(idx)
        A = self.loss.output_hessian(X.matmul(self._matrix(theta).T), y)
        if self.weights is not None:
            A = A * (self.weights if idx is None else self.weights[idx])[:, None, None]
        return float((A.abs().sum(2).max(1).values * X.row_squares()).max()) + self.l2

    def kronecker_at(self, theta: Tensor, idx: Tensor | None, damping: float) -> Callable[[Tensor], Tensor]:
        """A Kronecker-factored approximation of ``(H + damping·I)⁻¹`` for preconditioning."""
        return linear_kronecker(self, theta, idx, damping)

    def gram_quadratics(self, theta: Tensor, factor: Tensor, gram: GramFactor, idx: Tensor) -> Tensor:
        """``∇ℓ_iᵀ H⁻¹ ∇ℓ_i`` from a Cholesky factor of ``ZZᵀ + nμI``: ``(m,)``; no gradient is formed."""
        return linear_gram_quadratics(self, theta, factor, gram, idx)

    def gauss_newton_at(self, theta: Tensor, idx: Tensor | None = None) -> Product:
        """Equal to the Hessian: a linear model's outputs have no curvature of their own."""
        return self.hessian_at(theta, idx)
