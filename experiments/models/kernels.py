"""The RBF kernel on pixels as explicit features, so that a kernel SVM is a linear one."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from experiments.records.errors import UserError

SMALLEST_PIVOT = 1e-3  # float32 distances leave about this much of an image that occurs twice


def scaled(pixels: np.ndarray) -> np.ndarray:
    """uint8 images (n, ...) as rows in [-1, 1], (n, d) float32."""
    return pixels.reshape(len(pixels), -1).astype(np.float32) / np.float32(127.5) - 1


def squared_distances(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """‖a_i − b_j‖²: (n, d), (m, d) -> (n, m) float64. Products in float32: pixels have 8 bits."""
    norms_a, norms_b = (np.einsum("nd,nd->n", X, X, dtype=np.float64) for X in (A, B))
    return np.maximum(norms_a[:, None] + norms_b[None] - 2.0 * (A @ B.T).astype(np.float64), 0.0)


def rbf_features(train: np.ndarray, test: np.ndarray, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, n) and (m, n) with inner products exp(−γ‖x − x'‖²) wherever a training image is involved.

    They are the first n columns of the lower Cholesky factor of the kernel of both stacked (section 5.1): its
    first n rows are the factor L of the training kernel, the rest K(test, train) L⁻ᵀ.

    Raises:
        UserError: the kernel is not positive definite, for instance because a training image occurs twice.
    """
    inner = squared_distances(train, train)
    np.fill_diagonal(inner, 0.0)
    try:
        factor = np.linalg.cholesky(np.exp(-gamma * inner))
    except np.linalg.LinAlgError:
        factor = np.zeros((1, 1))
    if factor.diagonal().min() < SMALLEST_PIVOT:  # or no more than rounding
        raise UserError(
            f"the RBF kernel at experiment.gamma={gamma:g} is not positive definite: remove training images "
            "that occur twice, or raise experiment.gamma."
        )
    across = np.exp(-gamma * squared_distances(test, train))
    return factor, scipy.linalg.solve_triangular(factor, across.T, lower=True).T
