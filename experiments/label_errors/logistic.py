"""Weighted logistic regression on a fixed matrix, and ``xᵀ H⁻¹ x`` of every row from one factor.

``(1/n) Σ w_i log(1 + exp(−s_i θ·x_i)) + (λ/2)‖θ‖²``, s_i = ±1. With ``D = diag(w σ(1−σ))`` the Hessian is
``H = XᵀDX/n + λI``. With fewer features than rows, ``q_i = xᵀ_i H⁻¹ x_i = ‖L⁻¹x_i‖²`` with ``H = LLᵀ``;
otherwise, with ``K = XXᵀ`` and ``A = nλI + D^½ K D^½ = CCᵀ`` (Woodbury),

    q_i = n (1 − nλ (A⁻¹)_ii) / D_ii,    or (K_ii − ‖C⁻¹ D^½ K e_i‖²)/λ where that cancels.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.linalg import lapack, solve_triangular
from scipy.special import expit

from influence.errors import NotPositiveDefiniteError

_CANCELS = 1e-6  # leverage below which 1 − nλ(A⁻¹)_ii keeps fewer than ten digits
_DIRECT = 1500  # features up to which a Newton step factors H
_OFTEN = 0.05  # share of rows with an entry from which a column of a sparse X is multiplied as a dense one
_ROWS = 2048
_STEPS = 100


class Design:
    """X ``(n, d)`` dense or CSR with what every fit on it shares."""

    def __init__(self, X: Any) -> None:
        self.X: Any = X.tocsr() if sp.issparse(X) else np.ascontiguousarray(X, dtype=np.float64)
        self.n, self.d = self.X.shape

    @cached_property
    def kernel(self) -> np.ndarray:
        """``X Xᵀ (n, n)``. A sparse product costs the square of a column: frequent ones are dense."""
        if not sp.issparse(self.X):
            return self.X @ self.X.T
        columns = self.X.tocsc()
        often = np.diff(columns.indptr) > _OFTEN * self.n
        dense, rare = columns[:, often].toarray(), columns[:, ~often].tocsr()
        K, transposed = np.empty((self.n, self.n)), rare.T.tocsr()
        for start in range(0, self.n, _ROWS):
            rows = slice(start, start + _ROWS)
            (rare[rows] @ transposed).toarray(out=K[rows])
            K[rows] += dense[rows] @ dense.T
        return K

    def known_kernel(self) -> np.ndarray | None:
        """:attr:`kernel` if it has been computed, None otherwise."""
        return vars(self).get("kernel")

    def hessian(self, D: np.ndarray, l2: float) -> np.ndarray:
        """``XᵀDX/n + λI``, ``(d, d)``."""
        weighted = self.X.multiply(D[:, None]).tocsr() if sp.issparse(self.X) else self.X * D[:, None]
        H = self.X.T @ weighted
        H = np.asarray(H.toarray() if sp.issparse(H) else H) / self.n
        H.flat[:: self.d + 1] += l2
        return H


def fit(
    design: Design,
    signs: np.ndarray,
    l2: float,
    weights: np.ndarray | None = None,
    start: np.ndarray | None = None,
    tolerance: float = 1e-8,
) -> tuple[np.ndarray, float]:
    """θ̂ ``(d,)`` by Newton's method with a line search, and the gradient norm that it reached."""
    X, n = design.X, design.n
    w = np.ones(n) if weights is None else weights
    theta = np.zeros(design.d) if start is None else np.array(start, dtype=np.float64)
    f = X @ theta
    norm = np.inf
    for _ in range(_STEPS):
        s = expit(-signs * f)
        gradient = X.T @ (-w * signs * s) / n + l2 * theta
        norm = float(np.linalg.norm(gradient))
        if norm <= tolerance:
            break
        D = w * s * (1 - s)
        step = -_solved(design, D, l2, gradient, norm)
        along, slope, length = X @ step, float(gradient @ step), 1.0
        value = _value(signs, f, w, theta, l2)
        while length > 1e-10:
            candidate = theta + length * step
            new = _value(signs, f + length * along, w, candidate, l2)
            if new <= value + 1e-4 * length * slope + 1e-14 * max(1.0, abs(value)):
                break
            length *= 0.5
        theta, f = theta + length * step, f + length * along
    return theta, norm


def _value(signs: np.ndarray, f: np.ndarray, w: np.ndarray, theta: np.ndarray, l2: float) -> float:
    return float((w * np.logaddexp(0, -signs * f)).mean() + 0.5 * l2 * theta @ theta)


def _solved(design: Design, D: np.ndarray, l2: float, gradient: np.ndarray, norm: float) -> np.ndarray:
    """``H⁻¹ gradient``, exactly for few features, by conjugate gradients for many."""
    if design.d <= _DIRECT:
        factor, info = lapack.dpotrf(design.hessian(D, l2), lower=1)
        if info != 0:
            raise _singular(l2)
        return lapack.dpotrs(factor, gradient, lower=1)[0]
    X, goal = design.X, max(min(0.1, norm**0.5) * norm, 1e-10)
    x, residual = np.zeros(design.d), gradient.copy()
    direction, square = residual.copy(), norm * norm
    for _ in range(1000):
        curved = X.T @ (D * (X @ direction)) / design.n + l2 * direction
        length = square / float(direction @ curved)
        x += length * direction
        residual -= length * curved
        new = float(residual @ residual)
        if new**0.5 <= goal:
            break
        direction = residual + (new / square) * direction
        square = new
    return x


def factored(
    design: Design, theta: np.ndarray, l2: float, weights: np.ndarray | None = None
) -> FeatureFactor | RowFactor:
    """H at θ, factored in the smaller of its two forms.

    Raises:
        NotPositiveDefiniteError: λ is so small that H is singular in float64.
    """
    f = np.asarray(design.X @ theta).ravel()
    D = expit(f) * expit(-f) * (1.0 if weights is None else weights)
    return FeatureFactor(design, D, l2) if design.d <= design.n else RowFactor(design, D, l2)


class FeatureFactor:
    """``H = LLᵀ``, ``(d, d)``; D ``(n,)`` is the curvature of each loss, weights included."""

    def __init__(self, design: Design, D: np.ndarray, l2: float) -> None:
        self.design = design
        self.lower, info = lapack.dpotrf(design.hessian(D, l2), lower=1, clean=1)
        if info != 0:
            raise _singular(l2)

    @property
    def nbytes(self) -> int:
        """Memory that keeping it takes."""
        return int(self.lower.nbytes)

    def quadratics(self) -> np.ndarray:
        """``x_iᵀ H⁻¹ x_i`` of every row, ``(n,)``."""
        design = self.design
        out = np.empty(design.n)
        for start in range(0, design.n, _ROWS):
            block = slice(start, start + _ROWS)
            half = solve_triangular(self.lower, dense(design.X[block]).T, lower=True, check_finite=False)
            out[block] = np.einsum("ij,ij->j", half, half)
        return out

    def between(self, rows: np.ndarray) -> np.ndarray:
        """``x_iᵀ H⁻¹ x_j`` of every row i and the b given rows j, ``(n, b)``."""
        solved = lapack.dpotrs(self.lower, dense(self.design.X[rows]).T, lower=1)[0]
        return np.asarray(self.design.X @ solved)


class RowFactor:
    """``A = nλI + D^½ K D^½ = CCᵀ`` by ``C⁻¹ (n, n)``: H where features outnumber rows."""

    def __init__(self, design: Design, D: np.ndarray, l2: float) -> None:
        self.design, self.D, self.l2, self.root = design, D, l2, np.sqrt(D)
        A = design.kernel * self.root[:, None]
        A *= self.root
        A.flat[:: design.n + 1] += design.n * l2
        factor, info = lapack.dpotrf(A.T, lower=1, overwrite_a=1, clean=1)  # A = Aᵀ; A.T is Fortran order
        if info == 0:
            self.inverse, info = lapack.dtrtri(factor, lower=1, overwrite_c=1)
        if info != 0:
            raise _singular(l2)
        # Of these rows the loss has no curvature to speak of, and the short form would cancel.
        self.flat = np.flatnonzero(D * design.kernel.diagonal() < _CANCELS * design.n * l2)

    @property
    def nbytes(self) -> int:
        """Memory that keeping it takes."""
        return int(self.inverse.nbytes)

    def quadratics(self) -> np.ndarray:
        """``x_iᵀ H⁻¹ x_i`` of every row, ``(n,)``."""
        n, K, flat = self.design.n, self.design.kernel, self.flat
        diagonal = np.einsum("ij,ij->j", self.inverse, self.inverse)  # A⁻¹ = C⁻ᵀ C⁻¹
        with np.errstate(divide="ignore", invalid="ignore"):
            found = n * (1 - n * self.l2 * diagonal) / self.D
        if len(flat):
            half = self.inverse @ (self.root[:, None] * K[:, flat])
            found[flat] = (K.diagonal()[flat] - np.einsum("ij,ij->j", half, half)) / self.l2
        return found

    def between(self, rows: np.ndarray) -> np.ndarray:
        """``x_iᵀ H⁻¹ x_j`` of every row i and the b given rows j, ``(n, b)``.

        ``XH⁻¹Xᵀ = n D^-½ A⁻¹ D^½ K``, or ``(K − K D^½ A⁻¹ D^½ K)/λ`` where D is nearly 0.
        """
        n, K, flat = self.design.n, self.design.kernel, self.flat
        solved = self.inverse.T @ (self.inverse @ (self.root[:, None] * K[:, rows]))
        with np.errstate(divide="ignore", invalid="ignore"):
            found = n * solved / self.root[:, None]
        if len(flat):
            found[flat] = (K[np.ix_(flat, rows)] - K[flat] @ (self.root[:, None] * solved)) / self.l2
        return found


def by_features(design: Design, D: np.ndarray, l2: float) -> np.ndarray:
    """All q_i from the ``(d, d)`` factor; D ``(n,)`` the curvature of each loss, weights included."""
    return FeatureFactor(design, D, l2).quadratics()


def by_rows(design: Design, D: np.ndarray, l2: float) -> np.ndarray:
    """All q_i from the ``(n, n)`` factor."""
    return RowFactor(design, D, l2).quadratics()


def dense(X: Any) -> np.ndarray:
    """X as a dense array."""
    return X.toarray() if sp.issparse(X) else np.asarray(X)


def _singular(l2: float) -> NotPositiveDefiniteError:
    return NotPositiveDefiniteError(f"the Hessian is singular in float64; raise l2 = {l2}")
