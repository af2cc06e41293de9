"""One data matrix, many labellings: fast refits and exact self-influence of sparse logistic regression.

Label fixing (paper, section 5.4) fits the same X thousands of times with a few labels changed. What the
labels do not touch is shared: X in both layouts and the Gram matrix ``K = X Xᵀ``. All work is numpy on one
matrix, so that a worker process with one thread repeats it to the byte.

With margins ``f = Xθ``, ``s_i = σ(−y_i f_i)`` and ``D = diag s(1−s)``, the Hessian is ``H = XᵀDX/n + λI``.
For ``A = nλI + D^½ K D^½`` (n × n) Woodbury gives ``D^½ X H⁻¹ Xᵀ D^½ = n (I − nλ A⁻¹)``, hence

    ∇ℓ_iᵀ H⁻¹ ∇ℓ_i = s_i² · x_iᵀ H⁻¹ x_i,    x_iᵀ H⁻¹ x_i = n (1 − nλ (A⁻¹)_ii) / D_ii

for all i from the diagonal of one inverse. Where D_ii is so small that this cancels, the form
``x_iᵀ H⁻¹ x_i = (K_ii − ‖C⁻¹ D^½ K e_i‖²)/λ`` with ``A = C Cᵀ`` is used instead. Where d < n, all of them
come from the d × d factor ``H = L Lᵀ`` as ``‖L⁻¹ x_i‖²``.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from scipy.linalg import cho_solve, lapack, solve_triangular
from scipy.special import expit, log_expit

from influence.curvature.least_squares import inverse_norm
from influence.curvature.operators import Hessian
from influence.errors import ConvergenceError, DataError, NotConvergedWarning, NotPositiveDefiniteError
from influence.line_search import halved
from influence.objectives.linear import LinearObjective
from influence.solvers import Status
from influence.solvers.quadratics import NEGLIGIBLE, Quadratics, by_least_squares, finished
from influence.training import Certificate

Solved = tuple[np.ndarray, np.ndarray, Callable[[np.ndarray], np.ndarray]]  # values, bounds, H⁻¹

# Below this leverage D_ii K_ii/(nλ), 1 − nλ(A⁻¹)_ii keeps fewer than ten digits.
_CANCELS = 1e-6
_TOLERANCE = 1e-6  # relative error of a self-influence from which it is computed again
_EPS = float(np.finfo(np.float64).eps)
_INNER = 2000  # CG steps inside one Newton step
_ROWS = 1024  # rows of X made dense at a time
_REFINED = 256  # right-hand sides of a refined solve
_FORCING = 0.5  # relative residual of an early Newton step; later ones follow the square root of the gradient


def _stored(X: Any) -> Any:
    """X in float64: compressed rows if it is sparse, else one block of memory."""
    return X.tocsr().astype(np.float64) if sp.issparse(X) else np.ascontiguousarray(X, dtype=np.float64)


class LogisticRefits:
    """Binary logistic regression without intercept on a fixed X ``(n, d)``, dense or sparse, float64.

    Args:
        X: numpy array or scipy sparse matrix.
        l2: λ > 0 of ``(1/n) Σ log(1 + exp(−y_i θ·x_i)) + (λ/2)‖θ‖²``.

    Raises:
        DataError: NaN or infinite features, n < 2, λ ≤ 0.
    """

    def __init__(self, X: Any, l2: float) -> None:
        self.X = _stored(X)
        values = self.X.data if sp.issparse(self.X) else self.X
        if not np.isfinite(values).all():
            raise DataError("X holds NaN or infinite features; clean them before fitting")
        if self.X.shape[0] < 2:
            raise DataError(f"n = {self.X.shape[0]} examples; at least 2 are needed")
        if not (0 < l2 < float("inf")):
            raise DataError(f"l2 must be finite and > 0 here, got {l2}")
        self.n, self.d = self.X.shape
        self.l2 = float(l2)
        self._xt = self.X.T.tocsr() if sp.issparse(self.X) else self.X.T
        self.flops = 0.0  # of all products with X and its transpose in ``fit`` so far
        self._product = 2.0 * len(values.ravel())

    @cached_property
    def kernel(self) -> np.ndarray:
        """``X Xᵀ (n, n)``; X itself never becomes dense."""
        if not sp.issparse(self.X):
            full: np.ndarray = self.X @ self._xt
            return full
        K = np.empty((self.n, self.n))
        for start in range(0, self.n, _ROWS):  # a sparse product of all rows would hold K twice
            (self.X[start : start + _ROWS] @ self._xt).toarray(out=K[start : start + _ROWS])
        return K

    @property
    def self_influence_flops(self) -> float:
        """Necessary floating-point work of ``self_influence``: a factor and a triangular inverse or solve."""
        n, d = float(self.n), float(self.d)
        return n * d**2 * 2 + d**3 / 3 if d < n else 2 * n**3 / 3

    def _labels(self, y: np.ndarray) -> np.ndarray:
        y = np.asarray(y, dtype=np.float64)
        if y.shape != (self.n,) or not np.isin(y, (-1.0, 1.0)).all():
            raise DataError(f"labels must be {self.n} values of -1 and +1")
        return y

    def value_and_gradient(self, theta: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
        """The objective at θ in nats, and its gradient ``(d,)``, from one pass over X each way."""
        f = self.X @ theta
        value = self._mean_loss(f, y) + 0.5 * self.l2 * float(theta @ theta)
        return value, self._xt @ (-y * expit(-y * f)) / self.n + self.l2 * theta

    def losses(self, theta: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Per-example losses ``(n,)`` without the L2 term."""
        result: np.ndarray = -log_expit(y * (self.X @ theta))
        return result

    def _mean_loss(self, f: np.ndarray, y: np.ndarray) -> float:
        return float(-log_expit(y * f).mean())

    def fit(
        self,
        y: np.ndarray,
        start: np.ndarray | None = None,
        tolerance: float = 1e-8,
        max_iterations: int = 200,
    ) -> tuple[np.ndarray, Certificate]:
        """θ̂ ``(d,)`` by Newton's method, each step by conjugate gradients on the sparse products.

        Args:
            y: ``(n,)`` labels −1, +1.
            start: θ₀; zeros by default. The fit of nearby labels is a good one.
            tolerance: gradient norm to reach.
            max_iterations: Newton steps at most.

        Raises:
            ConvergenceError: the gradient norm stayed above the tolerance.
        """
        began, y = time.perf_counter(), self._labels(y)
        theta = np.zeros(self.d) if start is None else np.array(start, dtype=np.float64)
        iterations = 0
        while True:
            f = self.X @ theta
            s = expit(-y * f)
            gradient = self._xt @ (-y * s) / self.n + self.l2 * theta
            self.flops += 2 * self._product
            norm = float(np.linalg.norm(gradient))
            if not norm > tolerance or iterations == max_iterations:
                break
            iterations += 1
            step = self._newton_step(s * (1 - s), gradient, norm, tolerance)
            length, _ = halved(self._descent(theta, f, y, step, float(gradient @ step)), 1e-10)
            theta = theta + length * step
        final = self.value_and_gradient(theta, y)[0]
        certificate = Certificate(
            "newton-cg", norm, final, iterations, norm <= tolerance, tolerance, time.perf_counter() - began
        )
        if not certificate.converged:
            raise ConvergenceError(
                f"newton-cg stopped after {iterations} iterations at a gradient norm of {norm:.3g}, above "
                f"{tolerance:.3g}: loosen tolerance, raise l2 or rescale the features"
            )
        return theta, certificate

    def _descent(
        self, theta: np.ndarray, f: np.ndarray, y: np.ndarray, step: np.ndarray, slope: float
    ) -> Callable[[float], bool | None]:
        """Says of a length of the step whether the objective falls enough."""
        along = self.X @ step
        self.flops += self._product
        value: Any = self._mean_loss(f, y) + 0.5 * self.l2 * theta @ theta
        rounding = 1e-14 * max(1.0, abs(value))  # near the minimum the decrease drowns in rounding

        def falls(length: float) -> bool | None:
            candidate = theta + length * step
            new = self._mean_loss(f + length * along, y) + 0.5 * self.l2 * candidate @ candidate
            return bool(new <= value + 1e-4 * length * slope + rounding) or None

        return falls

    def _newton_step(self, D: np.ndarray, gradient: np.ndarray, norm: float, tolerance: float) -> np.ndarray:
        """Approximate ``−H⁻¹ gradient``: CG to a residual that shrinks with the gradient (Dembo et al.,
        1982).
        """
        goal = max(min(_FORCING, norm**0.5) * norm, 0.3 * tolerance)
        x, residual = np.zeros(self.d), -gradient
        direction, square = residual.copy(), norm * norm
        for _ in range(_INNER):
            curved = self._xt @ (D * (self.X @ direction)) / self.n + self.l2 * direction
            self.flops += 2 * self._product
            length = square / float(direction @ curved)
            x += length * direction
            residual -= length * curved
            new = float(residual @ residual)
            if new**0.5 <= goal:
                break
            direction *= new / square
            direction += residual
            square = new
        return x

    def self_influence(self, theta: np.ndarray, y: np.ndarray, squared: bool = True) -> np.ndarray:
        """``∇ℓ_iᵀ H⁻¹ ∇ℓ_i = s_i² x_iᵀH⁻¹x_i`` for all n, exact: ``(n,)``, ≥ 0.

        This is ``−I_up,loss(z_i, z_i)``. One factor and one triangular inverse of size n, 2n³/3 operations;
        where d < n one factor and n solves of size d. A value that rounding may have moved by more than 1e-6
        of itself is computed again by refined solves, and if that does not help, by QR. If neither does, this
        warns (NotConvergedWarning).

        Args:
            theta: ``(p,)`` fitted parameters.
            y: ``(n,)`` targets.
            squared: False gives ``s_i x_iᵀH⁻¹x_i`` instead, which the authors' stored figure was made with.

        Raises:
            NotPositiveDefiniteError: λ is so small that the matrix to factor is singular in float64.
        """
        found = self.verified_self_influence(theta, y, squared)
        if found.status is not Status.CONVERGED:
            warnings.warn(f"LogisticRefits: {found.advice}", NotConvergedWarning, stacklevel=2)
        return found.value.numpy()

    def verified_self_influence(self, theta: np.ndarray, y: np.ndarray, squared: bool = True) -> Quadratics:
        """:meth:`self_influence` with a bound of each value's error and a status."""
        y = self._labels(y)
        f = self.X @ theta
        s = expit(-y * f)
        D = expit(f) * expit(-f)
        own = s * s if squared else s
        quadratic, error, solve = self._by_features(D) if self.d < self.n else self._by_examples(D)
        terms = 4 * _EPS * (2 + np.sqrt(self.d)) * (1 + np.abs(f).max())  # of s and D
        found = self._judged(quadratic, error + terms * np.abs(quadratic), own, "factor")
        if found.status is not Status.CONVERGED:
            level = max(NEGLIGIBLE * float(found.value.max()), np.finfo(float).tiny)
            bad = np.flatnonzero(found.error.numpy() > _TOLERANCE * np.maximum(found.value.numpy(), level))
            again, bound = self._refined(D, solve, bad)
            better = bound < error[bad]
            quadratic[bad], error[bad] = np.where(better, (again, bound), (quadratic[bad], error[bad]))
            found = self._judged(quadratic, error + terms * np.abs(quadratic), own, "factor, refined")
        return (
            found if found.status is Status.CONVERGED else self._by_least_squares(theta, y, s, found, squared)
        )

    def _judged(self, quadratic: np.ndarray, error: np.ndarray, own: np.ndarray, form: str) -> Quadratics:
        value = torch.from_numpy(np.maximum(quadratic, 0.0) * own)
        return finished(value, torch.from_numpy(error * own), _TOLERANCE, {"form": form})

    def _refined(
        self, D: np.ndarray, solve: Callable[[np.ndarray], np.ndarray], rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """``x_iᵀ H⁻¹ x_i`` of ``rows`` by solves with iterative refinement, and bounds of their errors.

        With any u and ``r = x − H u``: ``xᵀH⁻¹x = uᵀ(x + r) + rᵀH⁻¹r``. The last term is at most ``‖r‖²/λ``,
        of second order. What remains is the rounding of r and of the product.
        """
        out, error = np.empty(len(rows)), np.empty(len(rows))
        rounding = 4 * _EPS * np.sqrt(self.n + self.d)
        size = abs(self.X)
        for start in range(0, len(rows), _REFINED):
            part = slice(start, start + _REFINED)
            chosen = self.X[rows[part]]
            V = np.ascontiguousarray((chosen.toarray() if sp.issparse(chosen) else chosen).T)
            U = np.zeros_like(V)
            R = V
            for _ in range(2):
                U = U + solve(R)
                R = V - (self._xt @ (D[:, None] * (self.X @ U)) / self.n + self.l2 * U)
            out[part] = np.einsum("ij,ij->j", U, V + R)
            absolute = np.abs(U)
            sizes = size.T @ (D[:, None] * (size @ absolute)) / self.n + self.l2 * absolute + 2 * np.abs(V)
            wrong = rounding * sizes  # of each component of R
            length = np.linalg.norm(np.abs(R) + wrong, axis=0)
            error[part] = np.einsum("ij,ij->j", absolute, wrong) + length**2 / self.l2
        return out, error

    def _by_least_squares(
        self, theta: np.ndarray, y: np.ndarray, s: np.ndarray, quick: Quadratics, squared: bool
    ) -> Quadratics:
        """The values again by QR; each keeps the smaller error."""
        objective = LinearObjective(self.X, torch.from_numpy(y), "logistic", self.l2, check=False)
        at = torch.from_numpy(theta)
        rows = torch.arange(self.n)
        again = by_least_squares(Hessian(objective, at), objective, at, rows, 512, _TOLERANCE)
        if again is None:
            return quick
        scale = 1.0 if squared else torch.from_numpy(1 / np.maximum(s, np.finfo(float).tiny))
        better = again.error * scale <= quick.error
        value = torch.where(better, again.value * scale, quick.value)
        error = torch.where(better, again.error * scale, quick.error)
        return finished(value, error, _TOLERANCE, again.stats)

    def _singular(self) -> NotPositiveDefiniteError:
        return NotPositiveDefiniteError(f"the Hessian is singular in float64; raise l2 = {self.l2}")

    def _by_features(self, D: np.ndarray) -> Solved:
        """All ``x_iᵀ H⁻¹ x_i (n,)`` by the d × d factor, bounds of their rounding errors, and H⁻¹."""
        weighted = self.X.multiply(D[:, None]).tocsr() if sp.issparse(self.X) else self.X * D[:, None]
        H = self._xt @ weighted
        H = (H.toarray() if sp.issparse(H) else H) / self.n
        H.flat[:: self.d + 1] += self.l2
        factor, info = lapack.dpotrf(H.T, lower=1, overwrite_a=1, clean=1)
        if info != 0:
            raise self._singular()
        out = np.empty(self.n)
        for start in range(0, self.n, _ROWS):
            rows = self.X[start : start + _ROWS]
            dense = rows.toarray() if sp.issparse(rows) else rows
            half = solve_triangular(factor, dense.T, lower=True, check_finite=False)
            out[start : start + _ROWS] = np.einsum("ij,ij->j", half, half)
        unit = np.sqrt(np.einsum("ij,ij->i", factor, factor))[:, None]
        amplified = _scaled_norm(
            lambda V: unit * cho_solve((factor, True), unit * V, check_finite=False), self.d
        )
        bound = 4 * _EPS * np.sqrt(self.n + self.d) * amplified * out
        return out, bound, lambda V: cho_solve((factor, True), V, check_finite=False)

    def _by_examples(self, D: np.ndarray) -> Solved:
        """All ``x_iᵀ H⁻¹ x_i (n,)`` by the n × n factor of A, bounds of their rounding errors, and H⁻¹."""
        root, shift = np.sqrt(D), self.n * self.l2
        A = self.kernel * root[:, None]
        A *= root
        A.flat[:: self.n + 1] += shift
        factor, info = lapack.dpotrf(A.T, lower=1, overwrite_a=1, clean=1)  # A = Aᵀ; A.T is Fortran order
        if info == 0:
            inverse, info = lapack.dtrtri(factor, lower=1, overwrite_c=1)
        if info != 0:
            raise self._singular()
        diagonal = np.einsum("ij,ij->j", inverse, inverse)  # A⁻¹ = C⁻ᵀ C⁻¹
        own = self.kernel.diagonal()
        small = np.flatnonzero(D * own < _CANCELS * shift)
        with np.errstate(divide="ignore", invalid="ignore"):
            quadratic = self.n * (1 - shift * diagonal) / D
        if len(small):
            half = inverse @ (root[:, None] * self.kernel[:, small])
            quadratic[small] = (own[small] - np.einsum("ij,ij->j", half, half)) / self.l2
        unit = np.sqrt(shift + D * own)[:, None]
        amplified = _scaled_norm(lambda V: unit * (inverse.T @ (inverse @ (unit * V))), self.n)
        growth = 4 * _EPS * np.sqrt(2 * self.n)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            error = growth * amplified * self.n * shift * diagonal / D
        error[small] = growth * (1 + np.sqrt(amplified)) ** 2 * own[small] / self.l2

        def solve(V: np.ndarray) -> np.ndarray:
            within = inverse.T @ (inverse @ (root[:, None] * (self.X @ V)))
            found: np.ndarray = (V - self._xt @ (root[:, None] * within)) / self.l2
            return found

        return quadratic, error, solve


def _scaled_norm(solve: Callable[[np.ndarray], np.ndarray], rows: int) -> float:
    """‖M̃⁻¹‖ from solves with the matrix M̃ of unit diagonal."""
    return max(1.0, inverse_norm(lambda V: torch.from_numpy(solve(V.numpy())), rows, iterations=5))
