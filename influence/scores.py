"""Influence scores. Sign and 1/n conventions stand here once; tests hold them against retraining.

With ``H`` the (damped) Hessian of the trained objective and ``s_test = H⁻¹ ∇L(z_test)``:

- ``I_up,params(z)        = −H⁻¹ ∇L(z)``                               dθ/dε when z is upweighted by ε
- ``I_up,loss(z, z_test)  = −s_test · ∇L(z)``                          paper, eq. 2
- ``I_pert,loss(z, z_test) = −∇_x (s_test · ∇L(z))``                   paper, eq. 5

Removing z is ε = −1/n, so the predicted change of the test loss is ``−I_up,loss / n``: **positive = the point
was helpful**. The test gradient and test loss never carry the L2 term. The training gradient may, see
:class:`TrainingGradient`.
"""

from __future__ import annotations

import enum
from typing import Any

import torch
from torch import Tensor

from influence.curvature.operators import Operator
from influence.errors import DataError
from influence.objectives._base import TrainingObjective
from influence.solvers import Exact, Solution, Solver


class TrainingGradient(enum.StrEnum):
    """Which gradient of the removed point enters, that is, which retraining is predicted.

    LOSS: ``∇L(z)``. Removal leaves ``(1/n) Σ_{j≠i} L_j + (λ/2)‖θ‖²``; the first-order change is
        ``H⁻¹∇L(z)/n``. The paper's formula.
    OBJECTIVE: ``∇L(z) + λθ̂``. Removal leaves ``(1/(n−1)) Σ_{j≠i} L_j + (λ/2)‖θ‖²``, λ relative to the mean
        loss; the first-order change is ``H⁻¹(∇L(z) + λθ̂)/(n−1)``. The authors' released code, and the
        protocol of the retrainings here.
    """

    LOSS = "loss"
    OBJECTIVE = "objective"


def test_gradients(test_objective: TrainingObjective, theta: Tensor, idx: Tensor | list[int]) -> Tensor:
    """``∇L(z_test, θ)`` of the examples ``idx`` of a test objective, without L2: ``(p, k)``."""
    idx = torch.as_tensor(idx, device=theta.device).reshape(-1)
    return test_objective.example_gradients(theta, idx).T.contiguous()


test_gradients.__test__ = False  # the field's name for it; not a test


def s_test(operator: Operator, solver: Solver, gradients: Tensor) -> Solution:
    """``s_test = (H + δI)⁻¹ ∇L(z_test)`` for a block ``(p, k)`` (paper, section 3)."""
    return solver.solve(operator, gradients)


def up_params(
    objective: TrainingObjective,
    theta: Tensor,
    operator: Operator,
    solver: Solver,
    idx: Tensor | list[int],
    training_gradient: TrainingGradient | str = TrainingGradient.LOSS,
) -> Tensor:
    """``I_up,params(z_i) = −(H + δI)⁻¹ ∇L(z_i)`` for the training points ``idx``: ``(p, k)``.

    Raises:
        SolverError: the solve failed.
    """
    idx = torch.as_tensor(idx, device=theta.device).reshape(-1)
    block = objective.example_gradients(theta, idx).T
    if TrainingGradient(training_gradient) is TrainingGradient.OBJECTIVE:
        block = block + (objective.l2 * objective.l2_mask * theta)[:, None]
    return -solver.solve(operator, block.contiguous()).value


def up_loss(
    objective: TrainingObjective,
    theta: Tensor,
    s_tests: Tensor,
    training_gradient: TrainingGradient | str = TrainingGradient.LOSS,
    idx: Tensor | None = None,
) -> Tensor:
    """``I_up,loss(z_i, z_test_j) = −s_test_j · ∇L(z_i)`` for all n training points in one pass.

    Args:
        s_tests: ``(p, k)``, or ``(p,)`` for one test point.
        idx: training points; all by default.

    Returns:
        ``(n, k)``, or ``(n,)``: nats per unit of upweighting.
    """
    block = s_tests[:, None] if s_tests.ndim == 1 else s_tests
    scores = -objective.directional(theta, block, idx)
    if TrainingGradient(training_gradient) is TrainingGradient.OBJECTIVE:
        scores -= (objective.l2 * objective.l2_mask * theta) @ block
    return scores[:, 0] if s_tests.ndim == 1 else scores


def predicted_change(
    scores: Tensor, n: int, training_gradient: TrainingGradient | str = TrainingGradient.LOSS
) -> Tensor:
    """Predicted change of the test loss when a point is removed, from ``I_up,loss``, in nats.

    ``−I/n`` for ``LOSS`` and ``−I/(n−1)`` for ``OBJECTIVE``. Positive = helpful.
    """
    objective = TrainingGradient(training_gradient) is TrainingGradient.OBJECTIVE
    if n < 2:
        raise DataError(f"removing a point needs n >= 2, got {n}")
    return -scores / (n - 1 if objective else n)


def pert_loss(
    objective: TrainingObjective, theta: Tensor, s_tests: Tensor, idx: Tensor | None = None
) -> Tensor:
    """``I_pert,loss(z_i, z_test_j) = −∇_x (s_test_j · ∇L(z_i))``: ``(m, *input shape, k)``.

    A small change δ of x_i moves the test loss by about ``I_pert,loss · δ / n``. One test point ``(p,)``
    drops the last axis.
    """
    block = s_tests[:, None] if s_tests.ndim == 1 else s_tests
    out = -objective.mixed(theta, block, idx)
    return out[..., 0] if s_tests.ndim == 1 else out


def pert_params(
    objective: TrainingObjective, theta: Tensor, operator: Operator, solver: Solver, index: int, delta: Tensor
) -> Tensor:
    """``dθ/dε = −(H + δI)⁻¹ [∇_x∇_θ L(z)] δ`` when x of one training point moves along ``delta``: ``(p,)``.

    Paper, section 2.2. Moving x by δ changes θ by about this over n.
    """
    return -solver.solve(operator, objective.mixed_direction(theta, index, delta)).value


def self_influence(
    objective: TrainingObjective,
    theta: Tensor,
    operator: Operator,
    solver: Solver | None = None,
    idx: Tensor | None = None,
    block: int = 512,
    state: Any = None,
) -> Tensor:
    """``∇L(z_i)ᵀ (H + δI)⁻¹ ∇L(z_i)`` for the training points ``idx`` (all by default): ``(m,)``, ≥ 0.

    This is ``−I_up,loss(z_i, z_i)``, the quantity that ranks suspects in Fig. 6. Without a solver, or with
    ``Exact``, it costs half a triangular solve a point from one factor; otherwise one block solve for
    ``block`` points at a time.

    Args:
        state: a prepared ``Exact`` state, to reuse its factor.
    """
    rows = torch.arange(objective.n, device=theta.device) if idx is None else torch.as_tensor(idx)
    out = torch.empty(len(rows), dtype=objective.dtype, device=theta.device)
    exact = solver is None or isinstance(solver, Exact) or state is not None
    if exact and state is None:
        state = (solver or Exact()).prepare(operator)
    if exact and state.form == "gram":
        closed = objective.gram_quadratics(theta, state.factor, state.gram, rows)
        if closed is not None:
            return closed
    if exact:
        return objective.self_quadratics(theta, state.quadratic, rows, block)
    if not exact:
        state = solver.prepare(operator)
    for start in range(0, len(rows), block):
        gradients = objective.example_gradients(theta, rows[start : start + block]).T.contiguous()
        out[start : start + block] = (gradients * solver.apply(state, gradients).value).sum(0)
    return out
