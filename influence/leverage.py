"""Leverage-corrected influence: one Newton step of the objective without the point, for all points at once.

First-order influence uses the Hessian of all n points. The Hessian without point i is smaller, and that
matters for a point of high leverage: with a small λ the first-order change is several times too small. Let
J_i ``(c, p)`` be the Jacobian of the outputs, A_i and r_i the Hessian and gradient of the loss in the
outputs, and w_i the weight. The point's own curvature is ``w_i J_iᵀ A_i J_i / n``, and Woodbury's identity
gives the step without it:

    θ₋ᵢ − θ ≈ (1/n) H̃⁻¹ [ J_iᵀ (I − B_i M_i)⁻¹ (w_i r_i + B_i J_i h) + g ]
    M_i = J_i H̃⁻¹ J_iᵀ,  B_i = w_i A_i / n,  h = H̃⁻¹ g

For the removal ``"loss"``, ``H̃ = H`` and ``g = 0``. For ``"objective"``, ``H̃ = H − λ diag(m)/n`` and ``g
= λ m⊙θ``. The change of a test loss is its gradient times this step, so ``J_i s`` and c × c matrices are
all that is needed of a point. For a linear model this is exactly one Newton step of the retraining. For a
network it is one step with the Gauss-Newton matrix of the removed point. Sources: Cook & Weisberg (1982);
Rubinstein & Hopkins (2025), arXiv 2506.06656.

Cost, with r ≤ c contrasts of the outputs and d inputs: the inverse of the core, ``(r·d)³``, and ``r(r+1)d²``
operations per point, about as many as self-influence takes. With more parameters than examples: a factor and
n·r triangular solves of the Gram matrix, ``(r·n)³``. For other objectives: r solves per point.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from influence.curvature.operators import Damped, ExampleOperator, Hessian, Operator, base_of
from influence.errors import DataError, HighLeverageWarning, NotPositiveDefiniteError
from influence.losses import Loss
from influence.objectives._base import TrainingObjective
from influence.objectives.structure import Freed, GramFactor, Split
from influence.removal import TrainingGradient, removal_kind
from influence.solvers import Exact, Solver

CORRECTIONS = ("first_order", "leverage")
_CORE_BELOW = 12_000  # rows of a core or Gram matrix that is inverted
_DENSE_BELOW = 4_000  # parameters of other objectives for which Exact is the default
_ALONE = 0.9  # share of a point in the curvature that its step needs, from which on a warning names it
_BLOCK = 256  # points whose Jacobians are held at once


def check_correction(correction: str) -> None:
    """Raises DataError for an unknown correction."""
    if correction not in CORRECTIONS:
        known = " or ".join(map(repr, CORRECTIONS))
        raise DataError(f"correction must be {known}, got {correction!r}")


@dataclass(frozen=True)
class Blocks:
    """What the correction needs of m points, on the r contrasts Q of the outputs.

    Attributes:
        leverage: ``Qᵀ J_i H̃⁻¹ J_iᵀ Q``, ``(m, r, r)``.
        along: ``Qᵀ J_i H̃⁻¹ V``, ``(m, r, k)``.
        inverse: ``H̃⁻¹ V``, ``(p, k)``.
    """

    leverage: Tensor
    along: Tensor
    inverse: Tensor


def corrected_change(
    objective: TrainingObjective,
    theta: Tensor,
    gradients: Tensor,
    idx: Tensor | None = None,
    removal: TrainingGradient | str = TrainingGradient.OBJECTIVE,
    operator: Operator | None = None,
    solver: Solver | None = None,
) -> Tensor:
    """Change of test losses by one Newton step without each point: positive = helpful.

    Args:
        objective: what was minimised, with its training data.
        theta: ``(p,)`` fitted parameters.
        gradients: ``∇L(z_test)``, ``(p, k)``.
        idx: training points ``(m,)``; all by default.
        removal: the convention of removal, ``"objective"`` or ``"loss"``.
        operator: the (damped) Hessian or Gauss-Newton matrix of all training points; the Hessian by default.
        solver: makes the solves; by default one factor in closed form, or ``Exact`` up to 4,000 parameters.

    Returns:
        ``(m, k)``, in nats.

    Raises:
        DataError: an operator of another objective, or more parameters than the default solver is for.
        NotPositiveDefiniteError: the operator is not positive definite, or not without one of the points.

    Warns with :class:`~influence.errors.HighLeverageWarning` of points that make up nearly all of the
    curvature that their step needs.
    """
    kind, chosen = removal_kind(removal), objective.index(idx)
    operator = Hessian(objective, theta) if operator is None else operator
    left, shift, share = _without_share(objective, theta, operator, kind)
    block = torch.cat([gradients, shift[:, None]], dim=1)
    found = leverage_blocks(left, theta, block, chosen, operator, solver, share)
    r, B = _own(objective, theta, chosen)
    k = gradients.shape[1]
    jacobian = r + (B @ found.along[:, :, k:])[:, :, 0]
    _check_own_share(objective.loss, B, found.leverage, chosen)
    corrected = torch.linalg.solve(_identity(B) - B @ found.leverage, jacobian[:, :, None])
    change = (found.along[:, :, :k] * corrected).sum(1) + shift @ found.inverse[:, :k]
    result: Tensor = change / objective.n
    return result


def corrected_self_influence(
    objective: TrainingObjective,
    theta: Tensor,
    idx: Tensor | None = None,
    operator: Operator | None = None,
    solver: Solver | None = None,
) -> Tensor:
    """``r_iᵀ M_i (I − B_i M_i)⁻¹ w_i r_i``: n times the change of a point's own loss without it: ``(m,)``.

    Arguments and errors as for :func:`corrected_change`; the removal is ``"loss"``.
    """
    chosen = objective.index(idx)
    operator = Hessian(objective, theta) if operator is None else operator
    left, _, _ = _without_share(objective, theta, operator, TrainingGradient.LOSS)
    found = leverage_blocks(left, theta, theta.new_zeros(objective.p, 0), chosen, operator, solver)
    r, B = _own(objective, theta, chosen)
    _check_own_share(objective.loss, B, found.leverage, chosen)
    corrected = torch.linalg.solve(_identity(B) - B @ found.leverage, r[:, :, None])
    own = _own_gradient(objective, theta, chosen)
    result: Tensor = (own[:, None, :] @ found.leverage @ corrected)[:, 0, 0]
    return result


def _without_share(
    objective: TrainingObjective, theta: Tensor, operator: Operator, kind: TrainingGradient
) -> tuple[TrainingObjective, Tensor, float]:
    """The objective whose Hessian is H̃, g, and the share of λ and of the damping that H̃ keeps."""
    base, _ = base_of(operator)
    if not isinstance(base, ExampleOperator) or base.objective is not objective or base.idx is not None:
        raise DataError(
            "the correction needs the Hessian or GaussNewton operator (damped or not) of this objective over "
            "all its examples; pass operator=Damped(Hessian(objective, theta), damping)"
        )
    if objective.n < 2:
        raise DataError(f"removing a point needs n >= 2, got {objective.n}")
    if kind is TrainingGradient.LOSS:
        return objective, torch.zeros_like(theta), 1.0
    share = 1 - 1 / objective.n
    left = copy.copy(objective)
    left.l2 = objective.l2 * share
    return left, objective.penalty_gradient(theta), share


def _own_gradient(objective: TrainingObjective, theta: Tensor, idx: Tensor | None) -> Tensor:
    """``Qᵀ r_i`` without the weight: ``(m, r)``."""
    targets = objective.targets if idx is None else objective.targets[idx]
    r = objective.loss.output_gradient(objective.outputs(theta, idx), targets)
    return r @ objective.loss.output_range(objective.n_outputs, theta)


def _own(objective: TrainingObjective, theta: Tensor, idx: Tensor | None) -> tuple[Tensor, Tensor]:
    """``w_i Qᵀ r_i (m, r)`` and ``B_i = w_i Qᵀ A_i Q / n (m, r, r)``."""
    targets = objective.targets if idx is None else objective.targets[idx]
    A = objective.loss.output_hessian(objective.outputs(theta, idx), targets)
    basis, weights = objective.loss.output_range(objective.n_outputs, theta), objective.example_weights(idx)
    B = torch.einsum("ca,ncd,db->nab", basis, A, basis) * (weights / objective.n)[:, None, None]
    return _own_gradient(objective, theta, idx) * weights[:, None], B


def own_share(B: Tensor, M: Tensor, convex: bool = True) -> Tensor:
    """The largest eigenvalue of ``B_i M_i``, or a bound of at most 0.9: ``(m, r, r), (m, r, r) -> (m,)``.

    It is the largest share of a point in the curvature along any direction. At 1 nothing is left without it.

    Args:
        B: the Hessians of the loss in the outputs, with weights and 1/n.
        M: the leverage of :class:`Blocks`.
        convex: whether all B are positive semi-definite. The trace is then a bound.
    """
    share = torch.einsum("nab,nba->n", B, M)
    if B.shape[1] == 1:
        return share
    close = (share > _ALONE).nonzero()[:, 0] if convex else torch.arange(len(share), device=share.device)
    values, vectors = torch.linalg.eigh(M[close])
    root = vectors * values.clamp(min=0).sqrt()[:, None, :]
    share[close] = torch.linalg.eigvalsh(root.transpose(1, 2) @ B[close] @ root)[:, -1]
    return share


def _check_own_share(loss: Loss, B: Tensor, M: Tensor, idx: Tensor | None) -> None:
    """Warns of points that hold nearly all of the curvature that their step needs.

    Raises:
        NotPositiveDefiniteError: no curvature is left without a point.
    """
    share = own_share(B, M, loss.convex)

    def named(which: Tensor) -> str:
        points = which.nonzero()[:, 0]
        first = ", ".join(str(int(i)) for i in (points if idx is None else idx[points])[:5])
        return first + (f" and {len(points) - 5} more" if len(points) > 5 else "")

    gone = ~(share < 1)
    if bool(gone.any()):
        raise NotPositiveDefiniteError(
            f"without training point {named(gone)} the curvature is not positive definite, so one Newton "
            "step has no minimum: leave such points out of idx, raise l2 or damping, or use leave_one_out"
        )
    high = share > _ALONE
    if bool(high.any()):
        warnings.warn(
            f"one Newton step without training point {named(high)} may overshoot: up to "
            f"{100 * float(share.max()):.3g} % of the curvature that it needs is the point's own; check it "
            "by leave_one_out, or raise l2",
            HighLeverageWarning,
            stacklevel=3,
        )


def _identity(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


def leverage_blocks(
    left: TrainingObjective,
    theta: Tensor,
    V: Tensor,
    idx: Tensor | None,
    operator: Operator,
    solver: Solver | None = None,
    share: float = 1.0,
) -> Blocks:
    """The blocks of the points ``idx`` with ``H̃`` the curvature of ``left``, of the kind of ``operator``,
    damped by ``share`` of its damping; ``V (p, k)``.

    Raises:
        DataError: more parameters than the default solver is for.
        NotPositiveDefiniteError: H̃ is not positive definite.
    """
    base, damping = base_of(operator)
    assert isinstance(base, ExampleOperator)
    H: Operator = type(base)(left, theta)
    if damping:  # like λ, the damping stays relative to the mean loss
        H = Damped(H, damping * share)
    if solver is None or isinstance(solver, Exact):
        split, gram = H.split(), H.gram()
        if gram is not None and gram.shift > 0 and gram.m < min(_CORE_BELOW, split.q if split else left.p):
            found = _by_gram(left, theta, V, idx, H, gram)
            if found is not None:
                return found
        if split is not None and split.q <= _CORE_BELOW:
            found = _by_core(left, V, idx, H, split)
            if found is not None:
                return found
    if solver is None:
        if left.p > _DENSE_BELOW:
            raise DataError(
                f"a matrix of {left.p} parameters is too large to factor for the correction: pass "
                "solver=CG(), and a few points as idx"
            )
        solver = Exact()
    return _by_solves(left, theta, V, idx, H, solver)


def _factor(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The Cholesky factor of ``D matrix D`` with ones on its diagonal, and D ``(q,)``."""
    diagonal = matrix.diagonal()
    if not bool((diagonal > 0).all()):
        raise _indefinite()
    scale = diagonal.rsqrt()
    factor, info = torch.linalg.cholesky_ex(scale[:, None] * matrix * scale)
    if int(info) or not bool(torch.isfinite(factor).all()):
        raise _indefinite()
    return factor, scale


def _indefinite() -> NotPositiveDefiniteError:
    return NotPositiveDefiniteError(
        "the curvature is not positive definite, so one Newton step has no minimum: raise damping or l2"
    )


def _by_core(
    left: TrainingObjective, V: Tensor, idx: Tensor | None, H: Operator, split: Split
) -> Blocks | None:
    """From the inverse of the core: ``H̃ = E C Eᵀ + μI``."""
    if split.shift <= 0 and split.q < split.p:
        raise _indefinite()
    core = split.core()
    core.diagonal().add_(split.shift)
    factor, scale = _factor(core)
    del core
    inverse = torch.cholesky_inverse(factor).mul_(scale[:, None]).mul_(scale)
    del factor

    def solve(B: Tensor) -> Tensor:
        inside = split.project(B)
        solved = split.lift(inverse @ inside)
        return solved if split.q == split.p else solved + (B - split.lift(inside)) / split.shift

    leverage = left.core_blocks(inverse, idx)
    if leverage is None:
        return None
    solved = solve(V)
    solved = solved + solve(V - H @ solved)  # one step of refinement: the inverse was formed
    along = left.output_tangents(solved, idx)
    assert along is not None  # whoever has core_blocks has them
    return Blocks(leverage, _contrasts(left, along), solved)


def _by_gram(
    left: TrainingObjective,
    theta: Tensor,  # noqa: ARG001  as its sibling
    V: Tensor,
    idx: Tensor | None,
    H: Operator,
    gram: GramFactor,
) -> Blocks | None:
    """From ``ZZᵀ + nμI = C Cᵀ``: ``H̃⁻¹ = (I − Zᵀ(CCᵀ)⁻¹Z)/μ`` (Woodbury)."""
    matrix = gram.gram()
    matrix.diagonal().add_(gram.n * gram.shift)
    factor, scale = _factor(matrix)
    del matrix

    def inner(B: Tensor) -> Tensor:
        return scale[:, None] * torch.cholesky_solve(scale[:, None] * B, factor)

    freed = Freed.of(gram, inner)

    def solve(B: Tensor) -> Tensor:
        solved = (B - gram.backward(inner(gram.forward(B)))) / gram.shift
        return solved if freed is None else freed.add(solved, B)

    leverage = left.gram_blocks(factor, scale, gram, idx)
    if leverage is None:
        return None
    if freed is not None:
        along = left.output_tangents(freed.Y, idx)
        assert along is not None  # whoever has gram_blocks has them
        leverage = leverage + freed.blocks(_contrasts(left, along))
    solved = solve(V)
    solved = solved + solve(V - H @ solved)
    along = left.output_tangents(solved, idx)
    assert along is not None  # whoever has gram_blocks has them
    return Blocks(leverage, _contrasts(left, along), solved)


def _contrasts(objective: TrainingObjective, along: Tensor) -> Tensor:
    """``(m, k, c) -> (m, r, k)``."""
    basis = objective.loss.output_range(objective.n_outputs, along)
    return torch.einsum("mkc,cr->mrk", along, basis)


def _by_solves(
    left: TrainingObjective, theta: Tensor, V: Tensor, idx: Tensor | None, H: Operator, solver: Solver
) -> Blocks:
    """By r solves per point with any solver, ``_BLOCK`` points at a time."""
    state = solver.prepare(H)
    solved = solver.apply(state, V).value if V.shape[1] else V
    basis = left.loss.output_range(left.n_outputs, theta)
    r = basis.shape[1]
    rows = torch.arange(left.n, device=left.device) if idx is None else idx
    leverage = theta.new_empty(len(rows), r, r)
    along = theta.new_empty(len(rows), r, V.shape[1])
    for start in range(0, len(rows), _BLOCK):
        some = slice(start, min(start + _BLOCK, len(rows)))
        jacobians = []
        for column in basis.T:
            jacobian = left.vjp(theta, column.expand(some.stop - start, -1), rows[some])
            if jacobian is None:
                raise DataError(
                    f"{type(left).__name__} has no Jacobians of its outputs, which the correction needs; use "
                    "correction='first_order'"
                )
            jacobians.append(jacobian)
        J = torch.stack(jacobians, dim=1)  # (b, r, p)
        solutions = solver.apply(state, J.reshape(-1, left.p).T.contiguous()).value
        solutions = solutions.T.reshape(J.shape)
        leverage[some] = J @ solutions.transpose(1, 2)
        along[some] = J @ solved
    return Blocks((leverage + leverage.transpose(1, 2)) / 2, along, solved)


__all__ = [
    "CORRECTIONS",
    "Blocks",
    "corrected_change",
    "corrected_self_influence",
    "leverage_blocks",
    "own_share",
]
