"""What stands against our own code: a hand-written CG, and dense float64 solves as the reference.

Nothing here imports ``influence``: the reference is an independent computation.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse as sp
import torch
from torch import Tensor

from experiments.benchmark.harness import Adapter, Problem, Work, serve


def matrices(problem: Problem) -> tuple[Any, Any]:
    """X and its transpose as products want them: CSR below a density of 0.4 in float64, else dense."""
    X = problem.X
    sparse = problem.dtype == torch.float64 and float((X != 0).sum()) < 0.4 * X.numel()
    if not (problem.options.get("sparse", sparse) and X.numel() > 250_000):
        return X, X.T
    rows = sp.csr_matrix(X.numpy())
    both = []
    for matrix in (rows, rows.T.tocsr()):
        starts, columns, values = map(torch.from_numpy, (matrix.indptr, matrix.indices, matrix.data))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            both.append(torch.sparse_csr_tensor(starts, columns, values, matrix.shape))
    return both[0], both[1]


def weights_of(problem: Problem) -> Tensor:
    """W (c, d)."""
    return problem.theta.reshape(int(problem.facts["classes"]), -1)


def cg(problem: Problem) -> Work:
    """The shortest program for task A: CG on softmax regression, one right-hand side, no checks."""
    X, XT = matrices(problem)
    W, n, l2 = weights_of(problem), problem.n, problem.l2
    x, y = problem.test_X[0], int(problem.test_y[0])

    def work() -> tuple[Tensor, dict[str, Any]]:
        P = torch.softmax(X @ W.T.contiguous(), 1)
        r = torch.softmax(W @ x, 0)
        r[y] -= 1
        b = torch.outer(x, r)  # (d, c)
        s, g, d = torch.zeros_like(b), b.clone(), b.clone()
        gg, goal, steps = (g * g).sum(), problem.options["tolerance"] * b.norm(), 0
        while g.norm() > goal:
            U = X @ d
            U = P * (U - (P * U).sum(1, keepdim=True))
            Hd = (XT @ U) / n + l2 * d
            alpha = gg / (d * Hd).sum()
            s += alpha * d
            g -= alpha * Hd
            new = (g * g).sum()
            d = g + (new / gg) * d
            gg, steps = new, steps + 1
        R = P.clone()
        R[torch.arange(n), problem.y] -= 1
        return (R * (X @ s)).sum(1, keepdim=True), {"iterations": steps}

    return work


def dense_hessian(problem: Problem) -> np.ndarray:
    """(1/n) Σ (diag p − ppᵀ) ⊗ x xᵀ + λI, block by block: (p, p)."""
    X, W, n = problem.X, weights_of(problem), problem.n
    P = torch.softmax(X @ W.T, 1)
    c, d = W.shape
    H = torch.empty(c, d, c, d, dtype=torch.float64)
    for a in range(c):
        for b in range(a, c):
            block = X.T @ (X * (P[:, a] * (float(a == b) - P[:, b]))[:, None]) / n
            H[a, :, b, :], H[b, :, a, :] = block, block.T
    H = H.reshape(c * d, c * d)
    H.diagonal().add_(problem.l2 + problem.damping)
    return H.numpy()


def dense(problem: Problem) -> Work:
    """The reference: dense float64 Hessian, Cholesky, scores of all training points on all test points."""
    W = weights_of(problem)

    def gradients(X: Tensor, y: Tensor) -> Tensor:
        R = torch.softmax(X @ W.T, 1)
        R[torch.arange(len(y)), y] -= 1
        return R

    def work() -> Tensor:
        factor = scipy.linalg.cho_factor(dense_hessian(problem), overwrite_a=True, check_finite=False)
        R = gradients(problem.X, problem.y)
        c, d = W.shape
        if problem.options.get("self"):
            first = None if problem.options["self"] is True else int(problem.options["self"])
            G = (R[:first, :, None] * problem.X[:first, None, :]).reshape(-1, c * d).numpy()
            return torch.from_numpy((G * scipy.linalg.cho_solve(factor, G.T).T).sum(1))
        Rt = gradients(problem.test_X, problem.test_y)
        if problem.options.get("corrected"):
            return one_step(problem, factor, R, Rt[0])
        B = (Rt[:, :, None] * problem.test_X[:, None, :]).reshape(len(Rt), c * d)
        S = torch.from_numpy(scipy.linalg.cho_solve(factor, B.numpy().T)).reshape(c, d, len(Rt))
        out = torch.zeros(problem.n, len(Rt), dtype=torch.float64)
        for a in range(c):
            out += R[:, a : a + 1] * (problem.X @ S[a])
        return out

    return work


def one_step(problem: Problem, factor: Any, R: Tensor, r: Tensor) -> Tensor:
    """∇L(test)ᵀ (H − H_i/n)⁻¹ ∇L_i / n of the first points, each by the identity of Woodbury: (m, 1).

    H_i is the curvature of the point's own loss alone, without λ. R (n, c) and r (c,) are ∂loss/∂outputs.
    """
    W, n, rows = weights_of(problem), problem.n, int(problem.options["corrected"])
    c = len(W)
    b = torch.outer(r, problem.test_X[0]).reshape(-1).numpy()
    found = np.empty((rows, 1))
    for i in range(rows):
        x, p = problem.X[i].numpy(), torch.softmax(W @ problem.X[i], 0).numpy()
        J = np.kron(np.eye(c), x)  # (c, p): the outputs' Jacobian
        own = (np.diag(p) - np.outer(p, p)) / n
        solved = scipy.linalg.cho_solve(factor, J.T, check_finite=False)
        middle = np.linalg.solve(np.eye(c) - own @ (J @ solved), R[i].numpy())
        found[i, 0] = b @ (solved @ middle) / n
    return torch.from_numpy(found)


def load() -> dict[str, Adapter]:
    """The methods of this adapter."""
    return {"cg": cg, "dense": dense}


if __name__ == "__main__":
    serve(load)
