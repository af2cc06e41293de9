"""The dense Gauss–Newton matrix of a small network, and the preconditioner it makes for exact Hessian solves.

``G = (1/m) Σ J_iᵀ B_i J_i + λ diag(mask)`` with ``B_i = Σ_r e_ir u_ir u_irᵀ`` is a sum of outer products of
the rows ``√e_ir J_iᵀ u_ir``. A confident example has a B_i near zero and an unsure one hesitates between two
or three classes, so few of the n·c rows carry nearly all of the trace: ``share`` says how much is wanted.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from influence.errors import DataError, NotPositiveDefiniteError
from influence.objectives.module import Objective

_ROWS = 2048  # rows of Jacobians held at once
_STRIP = 512  # columns of the upper triangle computed at once


@torch.no_grad()
def gauss_newton_matrix(
    objective: Objective, theta: Tensor, idx: Tensor | None = None, share: float = 1.0
) -> Tensor:
    """G at θ, λ included: ``(p, p)``.

    Args:
        objective: what was minimised, with its training data.
        theta: ``(p,)`` fitted parameters.
        idx: examples ``(m,)``; all by default.
        share: part of the output Hessians' total trace to keep, in (0, 1]; 1 gives G exactly.

    Raises:
        DataError: ``share`` outside (0, 1].
    """
    if not 0 < share <= 1:
        raise DataError(f"share must lie in (0, 1], got {share}")
    examples = torch.arange(objective.n, device=objective.device) if idx is None else objective.index(idx)
    outputs = objective.outputs(theta, examples)
    values, vectors = torch.linalg.eigh(objective.loss.output_hessian(outputs, objective.targets[examples]))
    values = values.clamp(min=0)
    floor = _cut(values, share)
    G = torch.zeros(objective.p, objective.p, dtype=objective.dtype, device=objective.device)
    for r in range(values.shape[1]):
        chosen = (values[:, r] > floor).nonzero()[:, 0]
        for rows in chosen.split(_ROWS):
            cotangents = vectors[rows, :, r] * values[rows, r, None].sqrt()
            _add_gram(G, objective.vjp(theta, cotangents, examples[rows]))
    G = torch.triu(G) / len(examples)
    G = G + torch.triu(G, 1).T
    G.diagonal().add_(objective.l2 * objective.l2_mask)
    return G


def _cut(values: Tensor, share: float) -> float:
    """The eigenvalue above which ``share`` of their sum lies."""
    if share == 1:
        return 0.0
    ordered = values.flatten().sort(descending=True).values
    kept = int((ordered.cumsum(0) < share * ordered.sum()).sum())
    return float(ordered[min(kept + 1, len(ordered) - 1)])


def _add_gram(G: Tensor, rows: Tensor) -> None:
    """``G += rowsᵀ rows`` on and above the diagonal (blocks below it are left alone)."""
    for start in range(0, len(G), _STRIP):
        stop = min(start + _STRIP, len(G))
        G[:stop, start:stop].addmm_(rows[:, :stop].T, rows[:, start:stop])


def gauss_newton_preconditioner(
    objective: Objective, theta: Tensor, damping: float, share: float = 0.999, idx: Tensor | None = None
) -> Callable[[Tensor], Tensor]:
    """``V ↦ (G + δI)⁻¹ V`` by one Cholesky factor: ``(p, k) -> (p, k)``, for ``CG(preconditioner=...)``.

    The answer of CG does not depend on it; only the number of iterations does. Suits p up to some thousands
    (``p²`` numbers are held).

    Raises:
        NotPositiveDefiniteError: G + δI is singular to working precision.
    """
    G = gauss_newton_matrix(objective, theta, idx, share)
    G.diagonal().add_(damping)
    factor, info = torch.linalg.cholesky_ex(G)
    if int(info):
        raise NotPositiveDefiniteError(
            f"the Gauss-Newton matrix plus {damping:g} is singular to working precision; raise damping"
        )
    return lambda block: torch.cholesky_solve(block, factor)
