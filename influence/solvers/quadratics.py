"""Self-influences ``∇ℓ_iᵀ H⁻¹ ∇ℓ_i`` with a bound of their rounding error and a status, as every solve has.

The factor of :class:`~.exact.Exact` gives them fastest. How far rounding may have moved them follows from the
factor: with E the error of the factored matrix M, scaled to a unit diagonal, the relative error is
``‖Ẽ‖‖M̃⁻¹‖``, and Cholesky's ``‖Ẽ‖`` does not depend on the scale of a feature (Higham, *Accuracy and
Stability of Numerical Algorithms*, section 10.1). The Gram form adds what its difference
``(‖b‖² − ‖C⁻¹Zb‖²)/μ`` cancels. Where that is above the tolerance, linear objectives are computed again from
their least-squares form in float64 (:mod:`influence.curvature.least_squares`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from influence.curvature.least_squares import LeastSquares, ReducedLinear, inverse_norm
from influence.curvature.operators import ExampleOperator, Operator, base_of
from influence.errors import NotPositiveDefiniteError
from influence.losses import CrossEntropy
from influence.objectives._base import TrainingObjective
from influence.objectives.linear import LinearObjective
from influence.solvers._base import Solver, Status
from influence.solvers.exact import Exact, default_tolerance
from influence.solvers.factors import CoreFactor, DenseFactor, ExactState, GramForm

_SAMPLE = 4  # points whose solve is verified with the operator
NEGLIGIBLE = 1e-6  # of the largest value: what an error is measured against where a value is smaller
_ROWS = 1024  # rows of X made dense at a time
_AFFORDABLE = 1e12  # operations of a QR factor that is made without asking


@dataclass(frozen=True)
class Quadratics:
    """Self-influences and how far they can be trusted.

    Attributes:
        value: ``∇ℓ_iᵀ H⁻¹ ∇ℓ_i``, ``(m,)``, ≥ 0.
        error: ``(m,)`` bound of the error of each value.
        status: ``CONVERGED``, or ``INACCURATE`` where an error is above the tolerance, measured against its
            value or a millionth of the largest value, or where the residual of a sample of the solves is; of
            an iterative solver, that of its solves.
        stats: ``form``, ``tolerance``, ``worst_error`` and, of a sample of the points, ``worst_residual``.
    """

    value: Tensor
    error: Tensor
    status: Status
    stats: dict[str, Any] = field(default_factory=dict)

    @property
    def advice(self) -> str:
        """One sentence: how accurate the values are and what would make them more so."""
        if self.status is Status.INACCURATE and "worst_error" in self.stats:
            worst, tolerance = self.stats["worst_error"], self.stats["tolerance"]
            wider = "use float64, " if self.value.dtype != torch.float64 else ""
            return (
                f"rounding may have moved a self-influence by {worst:.3g} of its value (residual of a sample "
                f"{self.stats.get('worst_residual', 0.0):.3g}), above the tolerance {tolerance:.3g}: "
                f"{wider}scale the features, raise l2 or damping, or loosen tolerance"
            )
        return self.status.advice(self.stats)


def self_quadratics(
    objective: TrainingObjective,
    theta: Tensor,
    operator: Operator,
    solver: Solver,
    idx: Tensor,
    block: int = 512,
    state: Any = None,
) -> Quadratics:
    """``∇ℓ_iᵀ H⁻¹ ∇ℓ_i`` of the training points ``idx (m,)`` by any solver, with error bounds.

    Args:
        objective: what was minimised, with its training data.
        theta: ``(p,)`` fitted parameters.
        operator: the curvature, damping included.
        solver: what solves with it.
        idx: training points ``(m,)``; all by default.
        block: training points at a time.
        state: what the solver has prepared for ``operator``; made here by default.

    Raises:
        NotPositiveDefiniteError: the operator has no factor and no least-squares form.
    """
    if isinstance(state, ExactState) or (state is None and isinstance(solver, Exact)):
        tolerance = solver.tolerance if isinstance(solver, Exact) else None
        return _exact(objective, theta, operator, solver, idx, block, state, tolerance)
    return _by_solver(objective, theta, operator, solver, idx, block, state)


def _exact(
    objective: TrainingObjective,
    theta: Tensor,
    operator: Operator,
    solver: Solver,
    idx: Tensor,
    block: int,
    state: ExactState | None,
    tolerance: float | None,
) -> Quadratics:
    if tolerance is None:
        tolerance = default_tolerance(objective.dtype)
    quick, singular = None, None
    try:
        state = solver.prepare(operator) if state is None else state
        quick = by_factor(state, objective, theta, idx, block, tolerance)
        if quick.status is Status.CONVERGED:
            return quick
    except NotPositiveDefiniteError as failure:
        singular = failure
    again = by_least_squares(operator, objective, theta, idx, block, tolerance)
    if again is None and quick is None:
        assert singular is not None
        raise singular
    if quick is None or (again is not None and again.status is Status.CONVERGED):
        assert again is not None
        return again
    if again is None:
        return quick
    better = again.error <= quick.error
    value, error = (
        torch.where(better, a, b) for a, b in ((again.value, quick.value), (again.error, quick.error))
    )
    return finished(value, error, tolerance, again.stats if bool(better.any()) else quick.stats)


def finished(value: Tensor, error: Tensor, tolerance: float, stats: dict[str, Any]) -> Quadratics:
    """The result with its status; ``error`` is absolute."""
    tiny = torch.finfo(value.dtype).tiny
    error = torch.where(torch.isfinite(value) & ~error.isnan(), error, math.inf) + tiny
    value = value.nan_to_num(0.0, 0.0, 0.0).clamp(min=0)
    largest = float(value.max()) if len(value) else 0.0
    floor = max(NEGLIGIBLE * largest, 4 * tiny / tolerance)
    worst = float((error / value.clamp(min=floor)).max()) if len(value) else 0.0
    accurate = worst <= tolerance and stats.get("worst_residual", 0.0) <= tolerance
    status = Status.CONVERGED if accurate else Status.INACCURATE
    return Quadratics(value, error, status, {**stats, "tolerance": tolerance, "worst_error": worst})


# -- from the factor of Exact


def by_factor(
    state: ExactState, objective: TrainingObjective, theta: Tensor, idx: Tensor, block: int, tolerance: float
) -> Quadratics:
    """Self-influences from a prepared factor, with the bound of their rounding error."""
    value = state.self_quadratics(objective, theta, idx, block)
    error = _factor_error(state, objective, theta, idx, value)
    stats: dict[str, Any] = {"form": state.form}
    if len(idx):
        sample = idx[torch.linspace(0, len(idx) - 1, min(_SAMPLE, len(idx))).long()]
        B = objective.example_gradients(theta, sample).T.contiguous()
        stats["worst_residual"] = float(state.refined(B, tolerance)[1].max())
    return finished(value, error, tolerance, stats)


def _factor_error(
    state: ExactState, objective: TrainingObjective, theta: Tensor, idx: Tensor, value: Tensor
) -> Tensor:
    """Absolute ``(m,)``: one term each for the factor, the outputs, softmax's differences, cancellation."""
    eps, n = torch.finfo(value.dtype).eps, objective.n
    growth = 4 * math.sqrt(n + len(state.factor)) * eps
    amplified = _scaled_inverse_norm(state.factor)
    outputs = _output_error(objective, theta, eps)
    softmax = eps if isinstance(objective.loss, CrossEntropy) and objective.linear_outputs else 0.0
    if isinstance(state, GramForm):
        shift, squares = state.gram.shift, _squares(objective, theta, idx)
        error = growth * squares * (1 + math.sqrt(amplified)) ** 2 / shift + 4 * outputs * value
        if state.freed is not None:  # an intercept's part is divided by its own small matrix
            error = error * (1 + 2 / max(state.freed.least, eps))
        if softmax:
            spread = float(objective.X.row_squares().sum()) / (n * shift)  # type: ignore[attr-defined]
            error = error + 4 * softmax * (spread * value + (value * squares / shift).sqrt())
            error = error + 4 * softmax * (value / shift).sqrt() * _row_norms(objective, theta, idx)
        return error
    error = value * amplified * (growth + 4 * outputs)
    if isinstance(state, CoreFactor) and state.split.q < state.split.p and state.split.shift > 0:
        error = error + growth**2 * _squares(objective, theta, idx) / state.split.shift
        if softmax:  # r_i is orthogonal to the vector of ones but for its rounding
            error = error + (4 * softmax * _row_norms(objective, theta, idx)) ** 2 / state.split.shift
    if softmax:
        error = error + value * amplified * softmax * _softmax_share(state, objective, theta)
        off = 4 * softmax * _scaled_rows(state, objective, theta, idx, value)  # ‖D δb‖ of δr = 4 eps
        error = error + 2 * (value * amplified).sqrt() * off + amplified * off**2
    return error


def _scaled_rows(
    state: ExactState, objective: TrainingObjective, theta: Tensor, idx: Tensor, value: Tensor
) -> Tensor:
    """``‖D (1 ⊗ x_i)‖`` with ``D = diag(M)^−½``: how much an error of r_i counts beside M ``(m,)``."""
    diagonal = (state.factor**2).sum(1)
    if not len(diagonal):  # every column of X is zero: nothing is factored, and nothing is lost
        return torch.zeros_like(value)
    if isinstance(objective, LinearObjective):
        X = objective.X
        mask = X.column_mask() if isinstance(state, CoreFactor) else torch.ones(X.d, dtype=torch.bool)
        columns = int(mask.sum())
        if columns and len(diagonal) % columns == 0:
            spread = (1 / diagonal).reshape(-1, columns).sum(0)
            parts = [X.dense(rows)[:, mask] ** 2 @ spread for rows in idx.split(_ROWS)]
            return torch.cat(parts).sqrt() if parts else value
    r: Tensor = objective.output_gradients(theta, idx).norm(dim=1)  # type: ignore[attr-defined]
    lowest, highest = float(diagonal.min()), float(diagonal.max())
    return value.sqrt() / r.clamp(min=torch.finfo(r.dtype).eps) * math.sqrt(highest / max(lowest, 1e-300))


def _scaled_inverse_norm(factor: Tensor) -> float:
    """‖M̃⁻¹‖ with ``M = C Cᵀ`` scaled to a unit diagonal."""
    root = factor.norm(dim=1)[:, None]

    def solve(V: Tensor) -> Tensor:
        result: Tensor = root * torch.cholesky_solve(root * V.to(factor), factor)
        return result

    return max(1.0, inverse_norm(solve, len(factor)))


def _output_error(objective: TrainingObjective, theta: Tensor, eps: float) -> float:
    """Relative error of a loss's derivatives that the rounding of ``o = W x`` causes."""
    if not isinstance(objective, LinearObjective):
        return 0.0
    reduced = ReducedLinear(objective, theta, None, 0.0)
    for _, x in objective.X.dense_batches(objective.batch_size):
        reduced.outputs(x)
    return reduced.output_error * eps


def _squares(objective: TrainingObjective, theta: Tensor, idx: Tensor) -> Tensor:
    """‖∇ℓ_i‖²: ``(m,)``."""
    if isinstance(objective, LinearObjective):
        return (objective.output_gradients(theta, idx) ** 2).sum(1) * objective.X.row_squares()[idx]
    return objective.self_quadratics(theta, lambda B: (B * B).sum(0), idx)


def _row_norms(objective: TrainingObjective, theta: Tensor, idx: Tensor) -> Tensor:
    """‖x_i‖ of a linear objective: ``(m,)``."""
    if isinstance(objective, LinearObjective):
        return objective.X.row_squares()[idx].sqrt()
    r: Tensor = objective.output_gradients(theta, idx).norm(dim=1)  # type: ignore[attr-defined]
    return _squares(objective, theta, idx).sqrt() / r.clamp(min=torch.finfo(r.dtype).eps)


def _softmax_share(state: ExactState, objective: TrainingObjective, theta: Tensor) -> float:
    """How large the absolute error of ``diag p − ppᵀ`` is beside the diagonal of the factored matrix."""
    if not isinstance(objective, LinearObjective):
        doubt = 1 - torch.softmax(objective.outputs(theta), dim=1).max(dim=1).values
        return 4 / max(float(doubt.mean()), torch.finfo(doubt.dtype).eps)
    X, diagonal = objective.X, (state.factor**2).sum(1)
    weights = torch.ones(X.n, dtype=X.dtype, device=X.device)
    weights = weights if objective.weights is None else objective.weights.abs()
    squares = X.column_squares(weights[:, None])[:, 0] / X.n
    each = squares if isinstance(state, DenseFactor) else squares[X.column_mask()]
    if len(diagonal) and len(each) and len(diagonal) % len(each) == 0:
        return 4 * float((each.repeat(len(diagonal) // len(each)) / diagonal).max())
    # The Hessian of a part of the examples, with fewer columns: which ones does not matter for a bound.
    lowest = float(diagonal.min()) if len(diagonal) else 1.0
    return 4 * float(squares.max()) / max(lowest, torch.finfo(X.dtype).tiny)


# -- from the least-squares form


def by_least_squares(
    operator: Operator,
    objective: TrainingObjective,
    theta: Tensor,  # noqa: ARG001  as its sibling
    idx: Tensor,
    block: int,
    tolerance: float,
) -> Quadratics | None:
    """Self-influences of a linear objective by QR in float64, or None: no such form, or too large."""
    base, damping = base_of(operator)
    if not isinstance(base, ExampleOperator) or not isinstance(objective, LinearObjective):
        return None
    problem = base.objective
    if not isinstance(problem, LinearObjective):
        return None
    if problem.weights is not None and bool((problem.weights < 0).any()):
        return None
    reduced = ReducedLinear(problem, base.theta, base.idx, damping)
    found: Quadratics | None = None
    for factor in _factors(reduced):
        result = _from_factor(reduced, factor, objective, idx, block, tolerance)
        if found is None or result.stats["worst_error"] < found.stats["worst_error"]:
            found = result
        if found.status is Status.CONVERGED:
            break
    return found


def _factors(reduced: ReducedLinear) -> Any:
    m, q = reduced.m, reduced.q
    if q > m and 2.0 * m * m * q <= _AFFORDABLE and (factor := reduced.wide()) is not None:
        yield factor
    if 2.0 * (m + q) * q * q <= _AFFORDABLE and (factor := reduced.tall()) is not None:
        yield factor


def _from_factor(
    reduced: ReducedLinear,
    factor: LeastSquares,
    objective: LinearObjective,
    idx: Tensor,
    block: int,
    tolerance: float,
) -> Quadratics:
    values, errors = [], []
    for rows in idx.split(block):
        B, outside = reduced.gradients(objective, rows)
        uncertain = reduced.output_error * reduced.eps
        value, error = factor.quadratic(B, uncertain if reduced.c > 1 else 0.0)
        total = value + outside
        values.append(total)
        errors.append(error + 8 * uncertain * total)
    value, error = torch.cat(values), torch.cat(errors)
    stats: dict[str, Any] = {"form": "least squares"}
    if len(idx):
        sample = idx[torch.linspace(0, len(idx) - 1, min(_SAMPLE, len(idx))).long()]
        stats["worst_residual"] = reduced.residual(factor, reduced.gradients(objective, sample)[0])
    error = error + torch.finfo(objective.dtype).eps * value  # rounding to the objective's dtype
    return finished(value.to(objective.dtype), error.to(objective.dtype), tolerance, stats)


# -- by any other solver


def _by_solver(
    objective: TrainingObjective,
    theta: Tensor,
    operator: Operator,
    solver: Solver,
    idx: Tensor,
    block: int,
    state: Any,
) -> Quadratics:
    """``bᵀx`` from solves ``Hx ≈ b``: with ``r = b − Hx`` the error is ``rᵀx + rᵀH⁻¹r``, and
    ``rᵀH⁻¹r ≤ ‖r‖²/μ`` with a proven lower bound μ of the spectrum; without one ``‖r‖‖x‖`` stands for it."""
    state = solver.prepare(operator) if state is None else state
    values, errors = [torch.empty(0, dtype=objective.dtype, device=theta.device)], []
    status, lowest = Status.CONVERGED, operator.lower_bound()
    stats: dict[str, Any] = {}
    eps = torch.finfo(objective.dtype).eps
    for rows in idx.split(block):
        B = objective.example_gradients(theta, rows).T.contiguous()
        solution = solver.apply(state, B)
        X = solution.value
        R = B - operator @ X
        size = R.norm(dim=0)
        rest = size**2 / lowest if lowest is not None and lowest > 0 else size * X.norm(dim=0)
        values.append((B * X).sum(0))
        errors.append((R * X).sum(0).abs() + rest + 8 * eps * B.norm(dim=0) * X.norm(dim=0))
        if solution.status is not Status.CONVERGED or not stats:
            status, stats = solution.status, dict(solution.stats)
    stats.setdefault("worst_residual", 0.0)
    error = torch.cat(errors) if errors else values[0]
    return Quadratics(torch.cat(values), error, status, stats)
