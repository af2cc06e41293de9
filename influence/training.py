"""Fitting an objective, with a certificate: the gradient norm that the returned parameters really have."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from influence.curvature.operators import Damped, Hessian
from influence.errors import ConvergenceError, DataError, NotConvergedWarning, NotPositiveDefiniteError
from influence.objectives._base import TrainingObjective
from influence.solvers.cg import CG
from influence.solvers.exact import Exact

_DENSE_BELOW = 400  # parameters: a factor of the Hessian is then cheaper than a CG run


@dataclass(frozen=True)
class Certificate:
    """How a fit ended.

    Attributes:
        method: newton, lbfgs or adam.
        gradient_norm: ‖∇value(θ)‖₂ at the returned θ, recomputed on all data.
        value: the objective there, in nats.
        iterations: outer iterations (Newton, L-BFGS) or steps (Adam).
        converged: gradient_norm ≤ tolerance.
        tolerance: what was asked for.
        seconds: wall time; not part of any record that must repeat byte for byte.
    """

    method: str
    gradient_norm: float
    value: float
    iterations: int
    converged: bool
    tolerance: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Everything but the wall time, so that equal runs give equal records."""
        return {key: value for key, value in asdict(self).items() if key != "seconds"}


@dataclass(frozen=True)
class Fit:
    """Fitted parameters ``theta (p,)`` and their certificate."""

    theta: Tensor
    certificate: Certificate


def fit(
    objective: TrainingObjective,
    start: Tensor | None = None,
    method: str = "newton",
    tolerance: float = 1e-10,
    max_iterations: int = 200,
    *,
    learning_rate: float | Callable[[int], float] = 1e-3,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
    raise_on_failure: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Fit:
    """Minimise ``objective.value``.

    Args:
        objective: an :class:`Objective` or :class:`LinearObjective`.
        start: θ₀ ``(p,)``; the objective's ``initial()`` by default.
        method: ``"newton"`` (exact or truncated-CG steps with a line search; reaches 1e-10 in float64),
            ``"lbfgs"`` (strong Wolfe) or ``"adam"`` (minibatches drawn by ``generator``).
        tolerance: gradient norm to reach.
        max_iterations: outer iterations, or Adam steps.
        learning_rate: Adam's rate, or a function of the step.
        batch_size: Adam's minibatch; all examples by default.
        raise_on_failure: raise when the tolerance was not reached, or return with a warning.
        progress: called with the number of iterations done.

    Raises:
        ConvergenceError: the gradient norm stayed above the tolerance, or became NaN.
        DataError: an unknown method.
    """
    methods = {"newton": _newton, "lbfgs": _lbfgs, "adam": _adam}
    if method not in methods:
        raise DataError(f"unknown method {method!r}; known methods are {', '.join(methods)}")
    began = time.perf_counter()
    theta = (objective.initial() if start is None else start).detach().clone()
    extra = {"learning_rate": learning_rate, "batch_size": batch_size, "generator": generator}
    theta, iterations = methods[method](objective, theta, tolerance, max_iterations, progress, **extra)
    norm, value = float(objective.gradient(theta).norm()), float(objective.value(theta))
    certificate = Certificate(
        method, norm, value, iterations, norm <= tolerance, tolerance, time.perf_counter() - began
    )
    if not certificate.converged:
        message = (
            f"{method} stopped after {iterations} iterations at a gradient norm of {norm:.3g}, above "
            f"{tolerance:.3g}: raise max_iterations, loosen tolerance, raise l2 or rescale the features"
        )
        if raise_on_failure or norm != norm:
            raise ConvergenceError(message)
        warnings.warn(message, NotConvergedWarning, stacklevel=2)
    return Fit(theta, certificate)


def _newton(
    objective: TrainingObjective, theta: Tensor, tolerance: float, limit: int, progress: Any, **_: Any
) -> tuple[Tensor, int]:
    """Newton's method; a Levenberg shift where the Hessian is not positive definite."""
    gradient, shift = objective.gradient(theta), 0.0
    value = float(objective.value(theta))
    for iteration in range(limit):
        norm = float(gradient.norm())
        if not norm > tolerance:
            return theta, iteration
        step, shift = _newton_step(objective, theta, gradient, norm, tolerance, shift)
        slope = float(gradient @ step)
        length = 1.0
        while True:
            candidate = theta + length * step
            new_value = float(objective.value(candidate))
            new_gradient = objective.gradient(candidate)
            # Near the minimum the decrease drowns in rounding; there the gradient norm decides instead.
            noise = 1e-14 * max(1.0, abs(value))
            enough = new_value <= value + 1e-4 * length * slope
            if enough or (abs(new_value - value) <= noise and float(new_gradient.norm()) < norm):
                break
            length *= 0.5
            if length < 1e-10:
                return theta, iteration
        theta, gradient, value = candidate, new_gradient, new_value
        if progress is not None:
            progress(iteration + 1)
    return theta, limit


def _newton_step(
    objective: TrainingObjective, theta: Tensor, gradient: Tensor, norm: float, tolerance: float, shift: float
) -> tuple[Tensor, float]:
    small = objective.p <= _DENSE_BELOW or objective.n * objective.n_outputs <= _DENSE_BELOW
    linear = objective.linear_outputs
    for _ in range(60):
        hessian = Hessian(objective, theta)
        operator = Damped(hessian, shift) if shift else hessian
        try:
            if small:
                return -Exact(verify=False).solve(operator, gradient).value, shift / 10
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
            shift = max(1e-6, 1e-3 * norm) if shift == 0.0 and not linear else max(10 * shift, 1e-12)
    raise ConvergenceError("newton found no positive definite model of the objective; raise l2")


def _lbfgs(
    objective: TrainingObjective, theta: Tensor, tolerance: float, limit: int, progress: Any, **_: Any
) -> tuple[Tensor, int]:
    parameter = theta.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [parameter], lr=1.0, max_iter=20, history_size=30, tolerance_grad=tolerance / objective.p**0.5,
        tolerance_change=0.0, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        point = parameter.detach()
        parameter.grad = objective.gradient(point)
        return objective.value(point)

    best, best_norm, stalled, done = theta, float("inf"), 0, 0
    while done < limit and stalled < 3:
        optimizer.step(closure)
        done += 1
        norm = float(objective.gradient(parameter.detach()).norm())
        stalled = 0 if norm < best_norm else stalled + 1
        if norm < best_norm:
            best, best_norm = parameter.detach().clone(), norm
        if progress is not None:
            progress(done)
        if best_norm <= tolerance:
            break
    return best, optimizer.state[parameter].get("n_iter", done)


def _adam(
    objective: TrainingObjective,
    theta: Tensor,
    tolerance: float,
    limit: int,
    progress: Any,
    learning_rate: float | Callable[[int], float],
    batch_size: int | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, int]:
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
    return parameter.detach(), limit


__all__ = ["Certificate", "Fit", "fit"]
