"""Newton's method for small networks: exact Hessian products, Gauss–Newton preconditioner, damping.

Adam leaves a network at a gradient norm of 1e-3 or so, where the quadratic model behind influence has a
linear term that drowns leave-one-out differences. From there each step here solves ``(H + μI) d = −∇R`` by
CG, with ``(G + μI)⁻¹`` as preconditioner (:mod:`.dense`), and μ follows the ratio of actual to predicted
decrease (Nocedal & Wright 2006, algorithm 4.1 in its Levenberg–Marquardt form).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from influence.curvature import Damped, Hessian
from influence.errors import ConvergenceError, NotConvergedWarning
from influence.networks.dense import gauss_newton_matrix
from influence.objective import Objective
from influence.solvers.cg import CG
from influence.training import Certificate, Fit

_SHARE = 0.95  # of the output Hessians' trace in the preconditioner; more buys no iterations
_STALE = 25  # CG iterations that say the preconditioner belongs to a θ too far away


def newton(
    objective: Objective,
    start: Tensor,
    tolerance: float = 1e-6,
    max_iterations: int = 60,
    *,
    damping: float = 1e-2,
    raise_on_failure: bool = True,
    progress: Callable[[int], None] | None = None,
    journal: Any = None,
) -> Fit:
    """Minimise ``objective.value`` from ``start (p,)`` to a gradient norm of ``tolerance``.

    Args:
        damping: first μ; it falls fourfold after a good step and rises after a bad one.
        raise_on_failure: raise when the tolerance was not reached, or return with a warning.
        progress: called with the number of iterations done.
        journal: anything with ``get(key)`` and ``put(key, arrays)``; a stopped fit goes on where it was.

    Raises:
        ConvergenceError: the gradient norm stayed above the tolerance.
    """
    began, theta, mu, done, gauss_newton = time.perf_counter(), start.detach().clone(), damping, 0, None
    saved = journal.get("newton") if journal is not None else None
    if saved is not None:
        theta = torch.as_tensor(saved["theta"], dtype=objective.dtype, device=objective.device)
        mu, done = float(saved["mu"]), int(saved["done"])
    value, gradient = float(objective.value(theta)), objective.gradient(theta)
    while done < max_iterations and float(gradient.norm()) > tolerance and mu < 1e6:
        if gauss_newton is None:
            gauss_newton = gauss_newton_matrix(objective, theta, share=_SHARE)
        step, decrease, iterations = _step(objective, theta, gradient, gauss_newton, mu, tolerance)
        candidate = theta + step
        new_value, new_gradient = float(objective.value(candidate)), objective.gradient(candidate)
        # Near the minimum the decrease drowns in rounding; there the gradient norm decides instead.
        flat = decrease < 1e-13 * max(1.0, abs(value))
        ratio = (value - new_value) / decrease if not flat else float(new_gradient.norm() < gradient.norm())
        if ratio > 0.05:
            theta, value, gradient = candidate, new_value, new_gradient
        mu = mu / 4 if ratio > 0.75 else mu * 4 if ratio < 0.25 else mu
        if iterations > _STALE:
            gauss_newton = None
        done += 1
        if progress is not None:
            progress(done)
        if journal is not None:
            journal.put("newton", {"theta": theta.cpu().numpy(), "mu": _array(mu), "done": _array(done)})
    norm = float(gradient.norm())
    seconds = time.perf_counter() - began
    certificate = Certificate("newton", norm, value, done, norm <= tolerance, tolerance, seconds)
    if not certificate.converged:
        message = (
            f"newton stopped after {done} iterations at a gradient norm of {norm:.3g}, above "
            f"{tolerance:.3g}: start from a better trained network, raise max_iterations or loosen tolerance"
        )
        if raise_on_failure or norm != norm:
            raise ConvergenceError(message)
        warnings.warn(message, NotConvergedWarning, stacklevel=2)
    return Fit(theta, certificate)


def _step(
    objective: Objective, theta: Tensor, gradient: Tensor, gauss_newton: Tensor, mu: float, tolerance: float
) -> tuple[Tensor, float, int]:
    """The step, the decrease that the damped model promises, and the CG iterations it took."""
    damped = gauss_newton.clone()
    damped.diagonal().add_(mu)
    factor = torch.linalg.cholesky(damped)
    norm = float(gradient.norm())
    forcing = max(min(0.01, norm), 0.1 * tolerance / norm)
    solver = CG(
        tolerance=forcing,
        max_iterations=100,
        preconditioner=lambda block: torch.cholesky_solve(block, factor),
        raise_on_failure=False,
    )
    operator = Damped(Hessian(objective, theta), mu)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)
        solution = solver.solve(operator, gradient)
    step = -solution.value
    if not float(step @ gradient) < 0:  # negative curvature met at once: a preconditioned gradient step
        step = -torch.cholesky_solve(gradient[:, None], factor)[:, 0]
    decrease = -float(gradient @ step) - 0.5 * float(step @ (operator @ step))
    if decrease <= 0:
        decrease = -0.5 * float(gradient @ step)
    return step, decrease, solution.iterations


def _array(value: float) -> Any:
    return torch.tensor(value, dtype=torch.float64).numpy()
