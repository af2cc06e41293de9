"""Scores of a linear objective in 60 digits, from nothing but its data, weights, loss and λ."""

from __future__ import annotations

import mpmath as mp
import torch

from influence import LinearObjective

DIGITS = 60


def exact_self_influence(
    objective: LinearObjective, theta: torch.Tensor, damping: float = 0.0
) -> list[mp.mpf]:
    """``∇ℓ_iᵀ (H + δI)⁻¹ ∇ℓ_i`` of every example, by a Cholesky factor of the whole p × p matrix."""
    with mp.workdps(DIGITS):
        H, gradients, _ = exact_derivatives(objective, theta, damping)
        factor = _cholesky(H)
        return [mp.fsum(h * h for h in _forward(factor, g)) for g in gradients]


def exact_derivatives(
    objective: LinearObjective, theta: torch.Tensor, damping: float = 0.0
) -> tuple[list, list, list]:
    """``H + δI``, every ``∇ℓ_i`` without its weight, and ``λ m⊙θ``. Call it inside ``mp.workdps(DIGITS)``."""
    X = [[mp.mpf(float(v)) for v in row] for row in objective.X.dense().double()]
    n, d, c = objective.n, objective.d, objective.n_outputs
    flat = [mp.mpf(float(v)) for v in theta.double()]
    W = [flat[a * d : (a + 1) * d] for a in range(c)]
    weights = [mp.mpf(float(w)) for w in objective.example_weights()]
    H = [[mp.mpf(0)] * (c * d) for _ in range(c * d)]
    gradients = []
    for i, x in enumerate(X):
        out = [mp.fsum(w * v for w, v in zip(row, x, strict=True)) for row in W]
        r, A = _terms(objective, out, objective.targets[i])
        gradients.append([r[a] * x[j] for a in range(c) for j in range(d)])
        for a in range(c):
            for b in range(c):
                for j in range(d):
                    scale = weights[i] * A[a][b] * x[j] / n
                    row = H[a * d + j]
                    for k in range(d):
                        row[b * d + k] += scale * x[k]
    penalty = [mp.mpf(objective.l2) * int(m) for m in objective.l2_mask]
    for j in range(c * d):
        H[j][j] += penalty[j] + mp.mpf(damping)
    return H, gradients, [m * t for m, t in zip(penalty, flat, strict=True)]


def exact_solve(H: list, b: list) -> list:
    """``H⁻¹ b`` by a Cholesky factor. Call it inside ``mp.workdps(DIGITS)``."""
    L = _cholesky(H)
    h = _forward(L, b)
    for i in reversed(range(len(h))):
        h[i] = (h[i] - mp.fsum(L[k][i] * h[k] for k in range(i + 1, len(h)))) / L[i][i]
    return h


def _terms(objective: LinearObjective, out: list[mp.mpf], target: torch.Tensor) -> tuple[list, list]:
    if objective.loss.name == "cross_entropy":
        e = [mp.e**v for v in out]
        p = [v / mp.fsum(e) for v in e]
        r = [v - (a == int(target)) for a, v in enumerate(p)]
        return r, [[(p[a] if a == b else 0) - p[a] * p[b] for b in range(len(p))] for a in range(len(p))]
    y = int(target)
    s = 1 / (1 + mp.e ** (y * out[0]))
    return [-y * s], [[s * (1 - s)]]


def _cholesky(H: list) -> list:
    L: list = []
    for i, row in enumerate(H):
        new: list = []
        for j in range(i + 1):
            rest = row[j] - mp.fsum(new[k] * (L[j][k] if j < i else new[k]) for k in range(j))
            new.append(mp.sqrt(rest) if i == j else rest / L[j][j])
        L.append(new)
    return L


def _forward(L: list, b: list) -> list:
    h: list = []
    for i, row in enumerate(L):
        h.append((b[i] - mp.fsum(row[k] * h[k] for k in range(i))) / row[i])
    return h
