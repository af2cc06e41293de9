"""The minimisers behind :func:`influence.training.fit`. Each says why it stopped.

Newton's method is exact or truncated by CG, with a line search; L-BFGS has a strong Wolfe line search; Adam
runs on minibatches. A ``Stop`` is the parameters, the iterations, and the reason.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from influence.curvature.operators import Damped, Dense, Hessian, Operator
from influence.errors import ConvergenceError, NotConvergedWarning, NotPositiveDefiniteError
from influence.line_search import halved
from influence.objectives._base import TrainingObjective
from influence.objectives.determined import Determined
from influence.solvers._base import relative_residual
from influence.solvers.cg import CG
from influence.solvers.exact import Exact

Progress = Callable[[int], None] | None
REACHED, LIMIT, STAGNATED = "reached", "limit", "stagnated"

_DENSE_BELOW = 400  # parameters: a factor of the Hessian is then cheaper than a CG run
_WIDE_ABOVE = 2_000  # inputs of a linear model: preconditioned CG would begin with their eigenvectors
_GRAM_BELOW = 6_000  # outputs over all examples: the Gram form of such a model is then the cheaper solve
_SHORTEST = 1e-10  # step length at which a line search gives up
_SPOILT = 1e-3  # relative residual of a direct solve from which it is refined
_RAISES = 12  # how often a shift is raised after a failed line search before the fit counts as stagnated
_IDLE = 10  # Newton steps in a row that lower neither objective nor gradient: what is left is rounding
_ROUND, _PATIENCE = 20, 3  # L-BFGS steps per round, and rounds without progress before it starts anew


@dataclass(frozen=True)
class Stop:
    """Where a minimiser stopped: ``theta (p,)``, its iterations, and ``reached | limit | stagnated``."""

    theta: Tensor
    iterations: int
    reason: str


@dataclass(frozen=True)
class _Descent:
    """Whether a length of a step lowers the objective enough: θ, gradient and value there, or None."""

    objective: TrainingObjective
    theta: Tensor
    value: float
    norm: float  # of the gradient
    step: Tensor
    slope: float  # of the objective along the step
    noise: float  # of a value, from rounding

    def __call__(self, length: float) -> tuple[Tensor, Tensor, float] | None:
        theta = self.theta + length * self.step
        value, gradient = float(self.objective.value(theta)), self.objective.gradient(theta)
        enough = value <= self.value + 1e-4 * length * self.slope
        # Near the minimum the decrease drowns in rounding. There the gradient norm decides instead.
        if enough or (abs(value - self.value) <= self.noise and float(gradient.norm()) < self.norm):
            return theta, gradient, value
        return None


def newton(
    objective: TrainingObjective, theta: Tensor, tolerance: float, limit: int, progress: Progress
) -> Stop:
    """Newton's method; a Levenberg shift if the Hessian is not positive definite or a step does not help.

    Rounding along directions that the data do not determine can hold a small linear model up. The method then
    goes on within the space of the minimiser.
    """
    first = _newton(objective, theta, tolerance, limit, progress, None)
    if first.reason != STAGNATED or objective.p > _DENSE_BELOW:
        return first
    space = objective.determined()
    if space is None:
        return first
    done = first.iterations
    further = None if progress is None else (lambda count: progress(done + count))
    start = space.nearest(first.theta)
    second = _newton(objective, start, tolerance, max(limit - done, 1), further, space)
    lower = float(objective.gradient(second.theta).norm()) < float(objective.gradient(first.theta).norm())
    return Stop((second if lower else first).theta, done + second.iterations, second.reason)


def _newton(
    objective: TrainingObjective,
    theta: Tensor,
    tolerance: float,
    limit: int,
    progress: Progress,
    space: Determined | None,
) -> Stop:
    """The loop of :func:`newton`; with ``space``, all steps lie within it."""
    gradient, shift = objective.gradient(theta), 0.0
    value = float(objective.value(theta))
    rounding = 1e-14 if theta.dtype == torch.float64 else 50 * torch.finfo(theta.dtype).eps
    best, best_norm, lowest = theta, float("inf"), value
    failed, idle, iteration = 0, 0, 0
    while iteration < limit:
        norm = float(gradient.norm())
        if not norm > tolerance:
            return Stop(theta, iteration, REACHED)
        noise = rounding * max(1.0, abs(value))
        idle = 0 if norm < 0.99 * best_norm or value < lowest - noise else idle + 1
        if norm < best_norm:
            best, best_norm = theta, norm
        lowest = min(lowest, value)
        if idle >= _IDLE:
            return Stop(best, iteration, STAGNATED)
        try:
            if space is None:
                step, next_shift = _newton_step(objective, theta, gradient, norm, tolerance, shift, idle >= 2)
            else:
                step, next_shift = _step_within(objective, theta, gradient, shift, space), shift / 10
        except ConvergenceError:
            return Stop(best, iteration, STAGNATED)
        descent = _Descent(objective, theta, value, norm, step, float(gradient @ step), noise)
        _, found = halved(descent, _SHORTEST)
        if found is None:  # a step nearer to the gradient may still help
            failed += 1
            if failed > _RAISES:
                return Stop(best, iteration, STAGNATED)
            shift = max(10 * shift, 1e-6 * float(step.norm().clamp(min=1e-300).reciprocal() * norm))
            continue
        failed, shift = 0, next_shift
        theta, gradient, value = found
        iteration += 1
        if progress is not None:
            progress(iteration)
    return Stop(theta, limit, REACHED if float(gradient.norm()) <= tolerance else LIMIT)


def _newton_step(
    objective: TrainingObjective,
    theta: Tensor,
    gradient: Tensor,
    norm: float,
    tolerance: float,
    shift: float,
    careful: bool,
) -> tuple[Tensor, float]:
    """A direction of descent, and the shift to begin the next step with.

    careful: refine the solve; the rounding of an ill-conditioned factor may be what holds the fit up.

    Raises:
        ConvergenceError: no shift gives a direction of descent.
        NotPositiveDefiniteError: never; it is caught here, and the shift grows.
    """
    few = objective.p <= _DENSE_BELOW
    linear, rows = objective.linear_outputs, objective.n * objective.n_outputs
    wide = linear and objective.p > _WIDE_ABOVE * objective.n_outputs and rows <= _GRAM_BELOW
    small = few or rows <= _DENSE_BELOW or wide
    hessian: Operator = Hessian(objective, theta)
    if few and not linear:  # its columns are made once, whatever the shift turns out to be
        hessian = Dense(hessian.dense())
    for _ in range(60):
        operator = Damped(hessian, shift) if shift else hessian
        try:
            if small:
                step = -_solved(operator, gradient, careful)
                if float(gradient @ step) < 0:
                    return step, shift / 10
                raise NotPositiveDefiniteError("no descent direction")
            forcing = max(min(0.1, norm**0.5), 0.1 * tolerance / norm)
            inner = CG(
                tolerance=min(forcing, 0.5),
                max_iterations=500,
                preconditioner="kronecker" if linear else "none",
                raise_on_failure=False,
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotConvergedWarning)
                solution = inner.solve(operator, gradient)
            if bool(solution.value.any()) and float(gradient @ solution.value) > 0:
                return -solution.value, shift / 10
            raise NotPositiveDefiniteError("no descent direction")
        except NotPositiveDefiniteError:
            if few:
                return _by_eigenvalues(operator.dense(), gradient), shift
            shift = max(1e-6, 1e-3 * norm) if shift == 0.0 and not linear else max(10 * shift, 1e-12)
    raise ConvergenceError("newton found no positive definite model of the objective; raise l2")


def _step_within(
    objective: TrainingObjective, theta: Tensor, gradient: Tensor, shift: float, space: Determined
) -> Tensor:
    """The Newton step ``(p,)`` within the space of the minimiser, with the Hessian plus ``shift``·I."""
    basis = space.basis
    inner = basis.T @ (Hessian(objective, theta) @ basis)
    inner.diagonal().add_(shift)
    result: Tensor = basis @ _by_eigenvalues(inner, basis.T @ gradient)
    return result


def _solved(operator: Operator, gradient: Tensor, careful: bool) -> Tensor:
    """``operator⁻¹ gradient``, refined when asked for or when rounding has spoilt it."""
    state = Exact().prepare(operator)
    step = state.inverse(gradient[:, None])
    if careful or not float(relative_residual(operator, step, gradient[:, None])) <= _SPOILT:
        step = state.refined(gradient[:, None], 1e-14)[0]
    return step[:, 0]


def _by_eigenvalues(matrix: Tensor, gradient: Tensor) -> Tensor:
    """``−|H|⁻¹ g``: eigenvalues by their absolute value, after the columns are brought to one scale."""
    scale = matrix.diagonal().abs()
    scale = scale.clamp(min=float(scale.max()) * torch.finfo(matrix.dtype).eps ** 2)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale)).rsqrt()
    values, vectors = torch.linalg.eigh(scale[:, None] * matrix * scale)
    size = values.abs()
    size = size.clamp(min=float(size.max()) * torch.finfo(matrix.dtype).eps)
    result: Tensor = -scale * (vectors @ ((vectors.T @ (scale * gradient)) / size))
    return result


def lbfgs(
    objective: TrainingObjective, theta: Tensor, tolerance: float, limit: int, progress: Progress
) -> Stop:
    """L-BFGS to the tolerance or the limit; it starts anew, with no memory, when it no longer gets on."""
    best, best_value, best_norm = (
        theta,
        float(objective.value(theta)),
        float(objective.gradient(theta).norm()),
    )
    done, restarts = 0, 0
    while best_norm > tolerance and done < limit:
        began = (best_value, best_norm)
        run = _LBFGSRun(objective, best, tolerance)
        stalled = 0
        while done < limit and stalled < _PATIENCE and best_norm > tolerance:
            steps = run.advance(min(_ROUND, limit - done))
            done += steps
            if progress is not None:
                progress(done)
            point = run.parameter.detach()
            value, norm = float(objective.value(point)), float(objective.gradient(point).norm())
            # The value is what L-BFGS lowers; where it drowns in rounding, the gradient norm decides.
            noise = 50 * torch.finfo(theta.dtype).eps * max(1.0, abs(best_value))
            lower = value < best_value - noise or (value <= best_value + noise and norm < best_norm)
            if lower:
                best, best_value, best_norm = point.clone(), value, norm
            stalled = 0 if lower and steps else stalled + 1
        if stalled == _PATIENCE:
            restarts += 1
            if restarts > 1 and (best_value, best_norm) == began:
                return Stop(best, done, STAGNATED)
    return Stop(best, done, REACHED if best_norm <= tolerance else LIMIT)


class _LBFGSRun:
    """torch's L-BFGS from a point, a few steps at a time."""

    def __init__(self, objective: TrainingObjective, theta: Tensor, tolerance: float) -> None:
        self.objective = objective
        self.parameter = theta.clone().requires_grad_(True)
        self.optimizer = torch.optim.LBFGS(
            [self.parameter], lr=1.0, history_size=30, tolerance_grad=tolerance / objective.p**0.5,
            tolerance_change=0.0, line_search_fn="strong_wolfe",
        )  # fmt: skip

    def advance(self, steps: int) -> int:
        """At most ``steps`` further steps; how many were made."""
        self.optimizer.param_groups[0].update(max_iter=steps, max_eval=2 * steps)
        before = self._count()
        self.optimizer.step(self._closure)
        return max(self._count() - before, 0)

    def _count(self) -> int:
        return int(self.optimizer.state[self.parameter].get("n_iter", 0))

    def _closure(self) -> Tensor:
        point = self.parameter.detach()
        self.parameter.grad = self.objective.gradient(point)
        return self.objective.value(point)


def adam(
    objective: TrainingObjective,
    theta: Tensor,
    tolerance: float,  # noqa: ARG001  as the others
    limit: int,
    progress: Progress,
    learning_rate: float | Callable[[int], float],
    batch_size: int | None,
    generator: torch.Generator | None,
) -> Stop:
    """``limit`` steps of Adam on minibatches drawn by ``generator``."""
    rate = learning_rate if callable(learning_rate) else (lambda _: learning_rate)
    parameter = theta.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([parameter], lr=rate(0))
    generator = generator or torch.Generator().manual_seed(0)
    order, used = torch.randperm(objective.n, generator=generator), 0
    for step in range(limit):
        if batch_size is None or batch_size >= objective.n:
            parameter.grad = objective.gradient(parameter.detach())
        else:
            if used + batch_size > objective.n:
                order, used = torch.randperm(objective.n, generator=generator), 0
            batch = objective.subset(order[used : used + batch_size].to(objective.device))
            used += batch_size
            parameter.grad = batch.gradient(parameter.detach())
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.step()
        if progress is not None:
            progress(step + 1)
    return Stop(parameter.detach(), limit, LIMIT)
