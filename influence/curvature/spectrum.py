"""What the spectrum of an operator says about damping, scale and depth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from influence.curvature.operators import Damped, Operator
from influence.errors import DataError

_DENSE_BELOW = 3000  # parameters: up to here the whole spectrum is affordable


@dataclass(frozen=True)
class EigenReport:
    """Extreme eigenvalues of an operator and the damping that they call for.

    Attributes:
        smallest, largest: of the operator as given, its damping included.
        n_negative: how many are below zero; None where only the extremes were estimated.
        advised_damping: extra damping that makes the operator positive definite with a margin: 0 when it
            already is, else ``1.5·|smallest|`` plus a millionth of the largest.
        exact: from a dense decomposition; else by Lanczos, which sees the extremes from inside, so that the
            true smallest eigenvalue may lie somewhat lower.

    >>> import torch
    >>> from influence import Dense
    >>> print(eigenvalue_report(Dense(torch.diag(torch.tensor([-1.0, 2.0], dtype=torch.float64)))))
    eigenvalues -1 … 2, 1 negative; add damping 1.5
    """

    smallest: float
    largest: float
    n_negative: int | None
    advised_damping: float
    exact: bool

    def __str__(self) -> str:
        negative = "" if self.n_negative is None else f", {self.n_negative} negative"
        advice = f"add damping {self.advised_damping:.3g}" if self.advised_damping else "no damping needed"
        return f"eigenvalues {self.smallest:.3g} … {self.largest:.3g}{negative}; {advice}"


def eigenvalue_report(operator: Operator, iterations: int = 80, seed: int = 0) -> EigenReport:
    """Extreme eigenvalues: dense up to 3,000 parameters, by Lanczos beyond (``iterations`` products)."""
    exact = operator.shape[0] <= _DENSE_BELOW
    if exact:
        values = torch.linalg.eigvalsh(operator.dense())
        smallest, largest = float(values[0]), float(values[-1])
        negative: int | None = int((values < 0).sum())
    else:
        (smallest, largest), negative = lanczos_extremes(operator, iterations, seed), None
    size = max(abs(largest), abs(smallest))
    floor = torch.finfo(operator.dtype).eps * size * operator.shape[0]
    advised = 0.0 if smallest > floor else 1.5 * abs(smallest) + 1e-6 * size
    return EigenReport(smallest, largest, negative, advised, exact)


def auto_damping(operator: Operator, iterations: int = 80, seed: int = 0) -> float:
    """The damping that makes ``operator`` positive definite with a margin; 0 where it already is.

    At a θ̃ that is no minimum this is what makes the quadratic model ``L(θ̃) + ∇Lᵀd + ½ dᵀ(H + δI)d`` of
    section 4.2 of the paper have a minimum at all.
    """
    return eigenvalue_report(operator, iterations, seed).advised_damping


def damped(operator: Operator, damping: float | str) -> Operator:
    """``operator + damping·I``; ``"auto"`` takes :func:`auto_damping`, 0 returns the operator itself.

    Raises:
        DataError: a negative damping, or a text other than ``"auto"``.
    """
    if isinstance(damping, str):
        if damping != "auto":
            raise DataError(f"damping must be a number >= 0 or 'auto', got {damping!r}")
        damping = auto_damping(operator)
    return Damped(operator, damping) if damping else operator


def lanczos_extremes(operator: Operator, iterations: int = 80, seed: int = 0) -> tuple[float, float]:
    """Smallest and largest Ritz values after ``iterations`` Lanczos steps with full reorthogonalisation."""
    p = operator.shape[0]
    steps = min(iterations, p)
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(p, generator=generator, dtype=torch.float64).to(operator.device, operator.dtype)
    basis = torch.zeros(p, steps, dtype=operator.dtype, device=operator.device)
    alphas, betas = [], []
    v = v / v.norm()
    for j in range(steps):
        basis[:, j] = v
        w = operator @ v
        alphas.append(float(v @ w))
        for _ in range(2):
            w = w - basis[:, : j + 1] @ (basis[:, : j + 1].T @ w)
        beta = float(w.norm())
        if beta <= 1e-12 * max(1.0, abs(alphas[0])) or j == steps - 1:
            break
        betas.append(beta)
        v = w / beta
    triangle = torch.diag(torch.tensor(alphas, dtype=torch.float64))
    off = torch.tensor(betas[: len(alphas) - 1], dtype=torch.float64)
    if len(off):
        triangle += torch.diag(off, 1) + torch.diag(off, -1)
    values = torch.linalg.eigvalsh(triangle)
    return float(values[0]), float(values[-1])


def power_iteration(operator: Operator, iterations: int, start: Tensor) -> float:
    """Largest eigenvalue in absolute value, from below: ``start (p,)`` is a non-zero vector."""
    v, value = start / start.norm(), 0.0
    for _ in range(iterations):
        w = operator @ v
        norm = float(w.norm())
        if norm == 0.0 or norm != norm:
            return value
        value, v = norm, w / norm
    return value
