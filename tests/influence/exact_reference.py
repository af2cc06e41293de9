"""Self-influences of a linear objective in 60 digits, from nothing but its data, loss and λ."""

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
        X = [[mp.mpf(float(v)) for v in row] for row in objective.X.dense().double()]
        n, d, c = objective.n, objective.d, objective.n_outputs
        W = [[mp.mpf(float(v)) for v in row] for row in theta.double().reshape(c, d)]
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
        for j in range(c * d):
            H[j][j] += mp.mpf(objective.l2) * int(objective.l2_mask[j]) + mp.mpf(damping)
        factor = _cholesky(H)
        return [mp.fsum(h * h for h in _forward(factor, g)) for g in gradients]


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
