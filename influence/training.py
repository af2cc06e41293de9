"""Fitting an objective, with a certificate: the gradient norm that the returned parameters really have."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from influence import optimisers
from influence.checks import checked_number
from influence.errors import ConvergenceError, DataError, NotConvergedWarning
from influence.fits import Certificate, Fit
from influence.objectives._base import TrainingObjective

METHODS = ("newton", "lbfgs", "adam")
_LIMITS = {"newton": 200, "lbfgs": 4000, "adam": 200}


def default_tolerance(dtype: torch.dtype) -> float:
    """The gradient norm that a fit reaches by default: 1e-10 in float64, 1e-5 in narrower types."""
    return 1e-10 if dtype == torch.float64 else 1e-5


def fit(
    objective: TrainingObjective,
    start: Any = None,
    method: str = "newton",
    tolerance: float | None = None,
    max_iterations: int | None = None,
    *,
    learning_rate: float | Callable[[int], float] = 1e-3,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
    raise_on_failure: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Fit:
    """Minimise ``objective.value``.

    Args:
        objective: any training objective.
        start: θ₀ ``(p,)``, or a :class:`Fit`; the objective's ``initial()`` by default.
        method: ``"newton"`` (exact or truncated-CG steps with a line search; reaches 1e-10 in float64),
            ``"lbfgs"`` (strong Wolfe; Newton's method goes on if it stagnates) or ``"adam"`` (minibatches
            drawn by ``generator``).
        tolerance: gradient norm to reach; by default 1e-10 in float64 and 1e-5 in float32.
        max_iterations: Newton steps (200 by default), L-BFGS steps (4,000) or Adam steps (200).
        learning_rate: Adam's rate, or a function of the step.
        batch_size: Adam's minibatch; all examples by default.
        generator: of the starting point, if ``start`` is not given.
        raise_on_failure: raise when the tolerance was not reached, or return with a warning.
        progress: called with the number of iterations done.

    Raises:
        ConvergenceError: the gradient norm stayed above the tolerance, or became NaN.
        DataError: an unknown method, or a setting out of range.
    """
    if method not in METHODS:
        raise DataError(f"unknown method {method!r}; known methods are {', '.join(METHODS)}")
    tolerance = default_tolerance(objective.dtype) if tolerance is None else tolerance
    limit = _LIMITS[method] if max_iterations is None else max_iterations
    checked_number("tolerance", tolerance, above=0.0)
    checked_number("max_iterations", limit, least=1, whole=True)
    if not callable(learning_rate):
        checked_number("learning_rate", learning_rate, above=0.0)
    if batch_size is not None:
        checked_number("batch_size", batch_size, least=1, whole=True)
    theta = objective.initial() if start is None else objective.vector(start)
    began = time.perf_counter()
    theta = theta.detach().clone()
    if method == "adam":
        stop = optimisers.adam(
            objective, theta, tolerance, limit, progress, learning_rate, batch_size, generator
        )
    elif method == "lbfgs":
        method, stop = _lbfgs_then_newton(objective, theta, tolerance, limit, progress)
    else:
        stop = optimisers.newton(objective, theta, tolerance, limit, progress)
    norm, value = float(objective.gradient(stop.theta).norm()), float(objective.value(stop.theta))
    certificate = Certificate(
        method, norm, value, stop.iterations, norm <= tolerance, tolerance, time.perf_counter() - began
    )
    if not certificate.converged:
        message = _advice(certificate, stop.reason, objective)
        if raise_on_failure or norm != norm:
            raise ConvergenceError(message)
        warnings.warn(message, NotConvergedWarning, stacklevel=2)
    return Fit(stop.theta, certificate)


def _lbfgs_then_newton(
    objective: TrainingObjective, theta: Tensor, tolerance: float, limit: int, progress: optimisers.Progress
) -> tuple[str, optimisers.Stop]:
    """L-BFGS; where it stagnates above the tolerance, Newton's method with what is left of the limit."""
    first = optimisers.lbfgs(objective, theta, tolerance, limit, progress)
    if first.reason != optimisers.STAGNATED:
        return "lbfgs", first
    done = first.iterations
    further = None if progress is None else (lambda count: progress(done + count))
    second = optimisers.newton(objective, first.theta, tolerance, max(limit - done, 1), further)
    return "lbfgs+newton", optimisers.Stop(second.theta, done + second.iterations, second.reason)


def _advice(certificate: Certificate, reason: str, objective: TrainingObjective) -> str:
    """Where the fit stopped, why, and what can help: only what does."""
    found = certificate
    narrow = objective.dtype != torch.float64
    told = (
        f"{found.method} stopped after {found.iterations} iterations at a gradient norm of "
        f"{found.gradient_norm:.3g}, above {found.tolerance:.3g}"
    )
    if found.gradient_norm != found.gradient_norm:
        return f"{told}: the objective became NaN; rescale the features or lower learning_rate"
    if reason == optimisers.STAGNATED:
        precision = f"use float64 instead of {objective.dtype}, " if narrow else ""
        return (
            f"{told}, and no step lowers it further, so more iterations cannot help: {precision}loosen "
            "tolerance, raise l2 or rescale the features"
        )
    other = ", use method='newton'" if found.method == "lbfgs" else ""
    return f"{told}: raise max_iterations{other}, loosen tolerance, raise l2 or rescale the features"


__all__ = ["METHODS", "Certificate", "Fit", "default_tolerance", "fit"]
