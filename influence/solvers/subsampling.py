"""A preconditioner for CG from a part of the training set: the Hessian there, inverted roughly.

The Hessian of a few thousand evenly spaced examples costs a small part of a product with all of them, and is
near enough to H that each outer iteration gains a factor of four or so. Its systems are solved by CG as well,
preconditioned by the part's own Kronecker factors, and only to a tenth: so the map is not the same linear one
each time, and the outer recurrence has to be the flexible one (Notay, 2000; Polak and Ribière's formula).
What CG returns is the solution of the full system to its own tolerance; only the time depends on the part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_TOLERANCE, _ITERATIONS = 0.1, 60  # of the inner solve


@dataclass(frozen=True)
class RoughInverse:
    """``R (p, k) -> (p, k)``: H_S⁻¹ R to a relative residual of a tenth, H_S from the chosen examples."""

    product: Callable[[Tensor], Tensor]
    factors: Callable[[Tensor], Tensor]

    def __call__(self, R: Tensor) -> Tensor:
        X, residual, Z = torch.zeros_like(R), R, self.factors(R)
        P, rz = Z, (R * Z).sum(0)
        goal = _TOLERANCE * R.norm(dim=0)
        for _ in range(_ITERATIONS):
            HP = self.product(P)
            curvature = (P * HP).sum(0)
            if not bool((curvature > 0).all()):  # a zero column, or a part of negative weights: good enough
                return torch.where((X * R).sum(0) > 0, X, self.factors(R))
            step = rz / curvature
            X, residual = X + step * P, residual - step * HP
            if not bool((residual.norm(dim=0) > goal).any()):
                break
            Z = self.factors(residual)
            following = (residual * Z).sum(0)
            P, rz = Z + (following / rz) * P, following
        return X
