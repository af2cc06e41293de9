"""Closed forms of a linear model's Hessian: its small dense core, its Gram (Woodbury) form, its diagonal.

With ``A_i`` the Hessian of the loss in the outputs, ``H = (1/n) Σ A_i ⊗ x_i x_iᵀ + λI``. Two exact reductions
make it cheap: A_i lives in the span Q of the loss's output gradients (for softmax the c−1 contrasts), and
columns of X that are zero everywhere contribute nothing. Outside of both H is λI.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

_TRIANGLE = 128  # width of the column strips when only the upper triangle of XᵀDX is computed
KRONECKER_ROWS = 8192  # from which a preconditioner estimates XᵀX: more no longer pay for the product
_ROWS = 2048  # rows of X that are dense at once while the core is assembled


@dataclass(frozen=True)
class Split:
    """``H = E C Eᵀ + μI`` with orthonormal E ``(p, q)``.

    Attributes:
        q: rows of the core.
        project: Eᵀ V, ``(p, k) -> (q, k)``.
        lift: E U, ``(q, k) -> (p, k)``.
        core: builds C ``(q, q)``; costs the assembly, so call it once.
        shift: μ.
    """

    p: int
    q: int
    project: Callable[[Tensor], Tensor]
    lift: Callable[[Tensor], Tensor]
    core: Callable[[], Tensor]
    shift: float

    def shifted(self, damping: float) -> Split:
        """The split of the operator plus ``damping``·I."""
        return replace(self, shift=self.shift + damping)


@dataclass(frozen=True)
class GramFactor:
    """``H = ZᵀZ/n + μI`` with Z ``(m, p)`` never formed.

    Attributes:
        m: rows of Z (examples × rank of the output Hessian).
        n: the divisor.
        forward: Z V, ``(p, k) -> (m, k)``.
        backward: Zᵀ U, ``(m, k) -> (p, k)``.
        gram: builds Z Zᵀ ``(m, m)``.
        root: gives L_i with ``L_i L_iᵀ = A_i``, ``(n, c, r)``, computed once and only where it is asked for;
            row (i, a) of Z is ``L_i[:, a] ⊗ x_i``.
        shift: μ.
        free: orthonormal E ``(p, r)``, the directions that λ does not touch: H is then ``… − gap·E Eᵀ``. None
            where there are none.
        gap: λ.
    """

    m: int
    n: int
    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor], Tensor]
    gram: Callable[[], Tensor]
    root: Callable[[], Tensor]
    shift: float
    free: Tensor | None = None
    gap: float = 0.0

    def shifted(self, damping: float) -> GramFactor:
        """The factor of the operator plus ``damping``·I."""
        return replace(self, shift=self.shift + damping)


@dataclass(frozen=True)
class Freed:
    """What unpenalised directions add to the inverse K⁻¹ of ``K = ZᵀZ/n + μI``: ``H⁻¹ = K⁻¹ + Y T⁻¹ Yᵀ``.

    ``Y = K⁻¹E (p, r)`` and ``T = I/gap − EᵀK⁻¹E`` by Woodbury's identity; ``root`` is T's Cholesky factor.
    T is formed as ``(1/gap − 1/μ)I + (ZE)ᵀ(ZZᵀ + nμI)⁻¹ZE/μ``, which cancels nothing.
    """

    Y: Tensor
    root: Tensor
    least: float  # the smallest eigenvalue of T times μ; 1 is well conditioned

    @classmethod
    def of(cls, gram: GramFactor, inner: Callable[[Tensor], Tensor]) -> Freed | None:
        """``inner`` applies ``(ZZᵀ + nμI)⁻¹`` to ``(m, k)``."""
        if gram.free is None or gram.gap <= 0:
            return None
        ZE = gram.forward(gram.free)
        solved = inner(ZE)
        Y = (gram.free - gram.backward(solved)) / gram.shift
        T = ZE.T @ solved / gram.shift
        T.diagonal().add_(1 / gram.gap - 1 / gram.shift)
        least = float(torch.linalg.eigvalsh(T)[0]) * gram.shift
        return cls(Y, torch.linalg.cholesky(T), least)

    def add(self, solved: Tensor, B: Tensor) -> Tensor:
        """``H⁻¹ B`` from ``K⁻¹ B``."""
        return solved + self.Y @ torch.cholesky_solve(self.Y.T @ B, self.root)

    def squares(self, along: Tensor) -> Tensor:
        """``bᵀ Y T⁻¹ Yᵀ b`` from ``along = Yᵀ b (r, k)``: ``(k,)``."""
        half: Tensor = torch.linalg.solve_triangular(self.root, along, upper=False)
        return (half * half).sum(0)

    def blocks(self, along: Tensor) -> Tensor:
        """``V_i T⁻¹ V_iᵀ`` of ``along (m, r, f)``: ``(m, r, r)``."""
        half: Tensor = torch.linalg.solve_triangular(self.root, along.transpose(1, 2), upper=False)
        return half.transpose(1, 2) @ half


def _at(objective: Any, theta: Tensor, idx: Tensor | None) -> tuple[Any, Tensor, Tensor, Tensor | None]:
    X, y = objective._data(idx)
    o = X.matmul(theta.reshape(objective.n_outputs, objective.d).T)
    weights = objective.weights
    return X, y, o, weights if weights is None or idx is None else weights[idx]


def linear_split(objective: Any, theta: Tensor, idx: Tensor | None = None) -> Split:
    """The split of a linear objective's Hessian at θ."""
    X, _ = objective._data(idx)
    basis = objective.loss.output_range(objective.n_outputs, theta)
    active = X.column_mask().nonzero()[:, 0]
    core = partial(linear_core, objective, theta, idx, active, basis)
    free = objective.l2_mask[: objective.d] == 0
    return make_split(objective.n_outputs, objective.d, basis, active, core, objective.l2, free)


def make_split(
    c: int,
    d: int,
    basis: Tensor,
    active: Tensor,
    core: Callable[[], Tensor],
    shift: float,
    free: Tensor | None = None,
) -> Split:
    """The split on the output contrasts ``basis (c, r)`` and the non-zero columns ``active`` of X.

    free: ``(d,)`` columns that λ = ``shift`` does not touch. The core is then made smaller by λ there, so
        that
    what is added to its whole diagonal, λ and any damping, comes to the damping alone.
    """
    r, da = basis.shape[1], len(active)
    unpenalised = None if free is None or not bool(free.any()) else free[active].repeat(r).nonzero()[:, 0]

    def shifted_core() -> Tensor:
        C = core()
        if unpenalised is not None:
            C[unpenalised, unpenalised] -= shift
        return C

    def project(V: Tensor) -> Tensor:
        k = V.shape[1]
        return torch.einsum("cr,cdk->rdk", basis, V.reshape(c, d, k)[:, active]).reshape(r * da, k)

    def lift(U: Tensor) -> Tensor:
        k = U.shape[1]
        out = torch.zeros(c, d, k, dtype=U.dtype, device=U.device)
        out[:, active] = torch.einsum("cr,rdk->cdk", basis, U.reshape(r, da, k))
        return out.reshape(c * d, k)

    return Split(c * d, r * da, project, lift, shifted_core, shift)


def linear_core(objective: Any, theta: Tensor, idx: Tensor | None, active: Tensor, basis: Tensor) -> Tensor:
    """The core ``(1/m) Σ QᵀA_iQ ⊗ x_i x_iᵀ`` over the columns ``active``, without λ."""
    X, y, o, weights = _at(objective, theta, idx)
    A = objective.loss.output_hessian(o, y)
    if weights is not None:
        A = A * weights[:, None, None]
    return assemble_core(X, active, torch.einsum("ca,ncd,db->nab", basis, A, basis))


def assemble_core(X: Any, columns: Tensor, B: Tensor) -> Tensor:
    """``(1/n) Σ B_i ⊗ x_i x_iᵀ`` over the given columns of X: ``(r·d', r·d')``.

    Each of the r(r+1)/2 blocks XᵀD_abX is symmetric, so only its upper triangle is multiplied out.
    """
    n, r = B.shape[0], B.shape[1]
    da = len(columns)
    all_columns = da == X.d
    core = torch.zeros(r, da, r, da, dtype=X.dtype, device=X.device)
    blocks = torch.zeros(r * (r + 1) // 2, da, da, dtype=X.dtype, device=X.device)
    pairs = [(a, b) for a in range(r) for b in range(a, r)]
    for rows, dense in X.dense_batches(_ROWS):
        x = dense if all_columns else dense[:, columns].contiguous()
        wx = torch.empty_like(x)  # one for all pairs: fresh memory costs more than the product that fills it
        for block, (a, b) in zip(blocks, pairs, strict=True):
            torch.mul(x, B[rows, a, b, None], out=wx)
            for j in range(0, da, _TRIANGLE):
                stop = min(j + _TRIANGLE, da)
                block[j:stop, j:].addmm_(wx[:, j:stop].T, x[:, j:])
    for block, (a, b) in zip(blocks, pairs, strict=True):
        block /= n
        full = torch.triu(block)
        full = full + torch.triu(block, 1).T
        core[a, :, b, :] = full
        core[b, :, a, :] = full
    return core.reshape(r * da, r * da)


def linear_gram(objective: Any, theta: Tensor, idx: Tensor | None = None) -> GramFactor:
    """The Gram form of a linear objective's Hessian at θ; Z has one row an example and output contrast."""
    X, _ = objective._data(idx)
    c = objective.n_outputs
    Q = objective.loss.output_range(c, theta)
    r = Q.shape[1]

    @cache  # an eigendecomposition an example: more than the whole core, where n is large and p small
    def root() -> Tensor:
        _, y, o, weights = _at(objective, theta, idx)
        L = objective.loss.output_hessian_sqrt(o, y)  # A_i = L_i L_iᵀ
        if weights is not None:
            L = L * weights.sqrt()[:, None, None]
        if r == c:
            result: Tensor = L
            return result
        small = torch.einsum("ca,ncd->nad", Q, L)  # drop the contrast that the loss never sees
        values, vectors = torch.linalg.eigh(small @ small.transpose(1, 2))
        return torch.einsum("ca,nab->ncb", Q, vectors * values.clamp(min=0).sqrt()[:, None, :])

    def forward(V: Tensor) -> Tensor:
        along = objective._tangents(X, V)  # (n, k, c)
        return torch.einsum("nkc,ncr->nrk", along, root()).reshape(X.n * r, V.shape[1])

    def backward(U: Tensor) -> Tensor:
        k = U.shape[1]
        spread = torch.einsum("nrk,ncr->nkc", U.reshape(X.n, r, k), root()).reshape(X.n, k * c)
        result: Tensor = objective._block(X.rmatmul(spread.contiguous()))
        return result

    def gram() -> Tensor:
        K = kernel_matrix(X)
        flat = root().permute(0, 2, 1).reshape(X.n * r, c)
        if c == 1:
            return K * (flat @ flat.T)
        return (K[:, None, :, None] * (flat @ flat.T).reshape(X.n, r, X.n, r)).reshape(X.n * r, X.n * r)

    free = None
    if not bool(objective.l2_mask[-1]):  # the last column of X is the intercept's
        free = torch.zeros(c, objective.d, r, dtype=X.dtype, device=X.device)
        free[:, -1] = Q
        free = free.reshape(c * objective.d, r)
    return GramFactor(X.n * r, X.n, forward, backward, gram, root, objective.l2, free, objective.l2)


def linear_gram_quadratics(
    objective: Any, theta: Tensor, factor: Tensor, gram: GramFactor, idx: Tensor, block: int = 1024
) -> Tensor:
    """``∇ℓ_iᵀ H⁻¹ ∇ℓ_i = (‖r_i‖²‖x_i‖² − ‖C⁻¹Z∇ℓ_i‖²)/μ`` with ``CCᵀ = ZZᵀ + nμI`` (Woodbury): ``(m,)``."""
    X, root = objective.X, gram.root()
    out = torch.empty(len(idx), dtype=X.dtype, device=X.device)
    for start in range(0, len(idx), block):
        rows = idx[start : start + block]
        x, r = X.dense(rows), objective.output_gradients(theta, rows)
        kernel = X.matmul(x.T.contiguous())  # (n, m)
        along = torch.einsum("ncr,mc->nrm", root, r) * kernel[:, None, :]
        half = torch.linalg.solve_triangular(factor, along.reshape(gram.m, len(rows)), upper=False)
        square = (r * r).sum(1) * (x * x).sum(1)
        out[start : start + block] = (square - (half * half).sum(0)).clamp(min=0) / gram.shift
    return out


def linear_core_blocks(X: Any, inverse: Tensor, active: Tensor) -> Tensor:
    """``x_iᵀ [C⁻¹]_ab x_i`` for every row of X and pair of contrasts: ``(m, r, r)``.

    inverse: ``C⁻¹ (r·d', r·d')`` over the ``active`` columns.
    """
    da = len(active)
    r = len(inverse) // da if da else 1
    out = torch.zeros(X.n, r, r, dtype=X.dtype, device=X.device)
    all_columns = da == X.d
    parts = inverse.reshape(r, da, r, da)
    for rows, dense in X.dense_batches(_ROWS):
        x = dense if all_columns else dense[:, active].contiguous()
        for a in range(r):
            for b in range(a, r):
                out[rows, a, b] = torch.linalg.vecdot(x @ parts[a, :, b], x)
                out[rows, b, a] = out[rows, a, b]
    return out


def linear_gram_blocks(
    objective: Any, factor: Tensor, scale: Tensor, gram: GramFactor, idx: Tensor | None, block: int = 256
) -> Tensor:
    """``(‖x_i‖² I − (Z(Q ⊗ x_i))ᵀ (ZZᵀ + nμI)⁻¹ Z(Q ⊗ x_i))/μ``: ``(m, r, r)`` (Woodbury)."""
    X, root = objective.X, gram.root()
    basis = objective.loss.output_range(objective.n_outputs, root)
    r = basis.shape[1]
    seen = torch.einsum("nca,cb->nab", root, basis)
    places = torch.arange(objective.n, device=X.device) if idx is None else idx
    out = torch.empty(len(places), r, r, dtype=X.dtype, device=X.device)
    for start in range(0, len(places), block):
        x = X.dense(places[start : start + block])
        kernel = X.matmul(x.T.contiguous())  # (n, m)
        along = torch.einsum("nab,nm->namb", seen, kernel).reshape(gram.m, -1)
        half = torch.linalg.solve_triangular(factor, scale[:, None] * along, upper=False)
        half = half.reshape(gram.m, len(x), r)
        square = torch.eye(r, dtype=X.dtype, device=X.device) * (x * x).sum(1)[:, None, None]
        out[start : start + block] = (square - torch.einsum("qma,qmb->mab", half, half)) / gram.shift
    return out


def kernel_matrix(X: Any) -> Tensor:
    """X Xᵀ ``(n, n)`` by strips of columns of Xᵀ, without making all of a sparse X dense."""
    out = torch.empty(X.n, X.n, dtype=X.dtype, device=X.device)
    for rows, dense in X.dense_batches(512):
        out[:, rows] = X.matmul(dense.T.contiguous())
    return (out + out.T) / 2


def linear_diagonal(objective: Any, theta: Tensor, idx: Tensor | None = None) -> Tensor:
    """The Hessian's diagonal ``(p,)``: ``(1/n) Σ (A_i)_aa x_ij² + λ``."""
    X, y, o, weights = _at(objective, theta, idx)
    A = objective.loss.output_hessian(o, y).diagonal(dim1=1, dim2=2)
    if weights is not None:
        A = A * weights[:, None]
    result: Tensor = X.column_squares(A.contiguous()).T.reshape(-1) / X.n + objective.l2 * objective.l2_mask
    return result


def linear_kronecker(
    objective: Any, theta: Tensor, idx: Tensor | None, damping: float
) -> Callable[[Tensor], Tensor]:
    """``(Ā ⊗ XᵀX/m + (λ+δ)I)⁻¹`` with ``Ā = mean A_i``, by two small eigendecompositions.

    XᵀX is taken over at most 8,192 evenly spaced rows, weighted by each row's curvature ``tr A_i``, so that
    setting it up costs a few Hessian products.
    """
    n = objective.n if idx is None else len(idx)
    sampled = torch.arange(0, n, max(1, n // KRONECKER_ROWS), device=objective.device)
    left, right, weight = kronecker_sums(objective, theta, idx, sampled)
    return kronecker_inverse(left / n, right, weight, objective.l2 + damping)


def kronecker_sums(
    objective: Any, theta: Tensor, idx: Tensor | None, sampled: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``Σ A_i (c, c)`` of all rows; ``Σ tr(A_i) x_i x_iᵀ (d, d)`` and ``Σ tr A_i`` of the ``sampled``."""
    X, y, o, weights = _at(objective, theta, idx)
    A = objective.loss.output_hessian(o, y)
    if weights is not None:
        A = A * weights[:, None, None]
    x, trace = X.dense(sampled), A.diagonal(dim1=1, dim2=2).sum(1)[sampled]
    return A.sum(0), (x * trace[:, None]).T @ x, trace.sum()


def kronecker_inverse(
    left: Tensor, right: Tensor, weight: Tensor, shift: float
) -> Callable[[Tensor], Tensor]:
    """``(left ⊗ right/weight + shift·I)⁻¹`` on blocks ``(c·d, k)``."""
    if float(weight) <= 0:
        return lambda block: block / shift if shift > 0 else block
    c, d = len(left), len(right)
    a, lq = torch.linalg.eigh(left)
    b, rq = torch.linalg.eigh(right / weight)
    scale = a.clamp(min=0)[:, None] * b.clamp(min=0)[None, :] + shift
    inverse = 1 / scale.clamp(min=torch.finfo(scale.dtype).eps * float(scale.max()))

    def apply(block: Tensor) -> Tensor:
        k = block.shape[1]
        v = torch.tensordot(lq.T, block.reshape(c, d * k), 1).reshape(c, d, k)
        v = torch.matmul(rq.T, v) * inverse[:, :, None]
        v = torch.matmul(rq, v).reshape(c, d * k)
        result: Tensor = (lq @ v).reshape(c * d, k)
        return result

    return apply
