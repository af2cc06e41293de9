"""Conjugate gradients inside a Newton step, for the models that are retrained side by side.

Three loops of conjugate gradients remain. They treat a finished column differently, and the rounding
of committed records depends on it. :class:`~influence.solvers.cg.CG` drops the column and verifies the
residual. This one freezes the column. :class:`~influence.solvers.subsampling.RoughInverse` goes on with every
column until all have reached a tenth.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Apply = Callable[[Tensor], Tensor]


def inner_cg(
    product: Apply,
    B: Tensor,
    goal: Tensor,
    precondition: Apply,
    start: Tensor | None = None,
    *,
    limit: int,
) -> tuple[Tensor, int]:
    """Solve a system per column by the residual of the recurrence, without a status.

    A caller that needs the true residual computes it from the solution.

    Args:
        product: ``(p, k) -> (p, k)``, each column by its own positive definite matrix.
        B: right-hand sides ``(p, k)``.
        goal: relative residuals ``(k,)``. A column stops there, or when its curvature is not positive.
        precondition: ``(p, k) -> (p, k)``.
        start: where X begins; zero by default.
        limit: the largest number of steps.

    Returns:
        X ``(p, k)`` and the number of steps.
    """
    X = torch.zeros_like(B) if start is None else start.clone()
    R = B.clone() if start is None else B - product(X)
    scale = B.norm(dim=0).clamp(min=torch.finfo(B.dtype).tiny)
    Z = precondition(R)
    P, rz = Z, (R * Z).sum(0)
    for step in range(limit):
        open_ = R.norm(dim=0) > goal * scale
        if not bool(open_.any()):
            return X, step
        HP = product(P)
        curvature = (P * HP).sum(0)
        open_ &= curvature > 0
        if not bool(open_.any()):
            return X, step
        alpha = torch.where(open_, rz / curvature, torch.zeros_like(rz))
        # Not in place: a preconditioner may return R itself, and P would then change with it.
        X = torch.addcmul(X, alpha.expand_as(P), P)
        R = torch.addcmul(R, alpha.expand_as(P), HP, value=-1)
        Z = precondition(R)
        following = (R * Z).sum(0)
        P = Z + torch.where(open_, following / rz, torch.zeros_like(rz)) * P
        rz = following
    return X, limit
