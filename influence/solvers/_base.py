"""What every solver shares: its settings are a frozen dataclass, ``prepare`` is apart from ``apply``, and a
failure is a status with advice, raised or recorded but never silent."""

from __future__ import annotations

import enum
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from influence.curvature.operators import Operator
from influence.errors import DataError, NotConvergedWarning, NotPositiveDefiniteError, SolverError


class Status(enum.Enum):
    """How a solve ended. The texts are advice; ``{…}`` is filled from ``Solution.stats``.

    >>> Status.CONVERGED.value
    'converged'
    """

    CONVERGED = "converged"
    MAX_ITERATIONS = "max_iterations"
    INACCURATE = "inaccurate"
    NEGATIVE_CURVATURE = "negative_curvature"
    NOT_POSITIVE_DEFINITE = "not_positive_definite"
    DIVERGED = "diverged"
    TRUNCATED = "truncated"
    NOISY = "noisy"
    UNKNOWN_BIAS = "unknown_bias"
    APPROXIMATE = "approximate"

    def advice(self, stats: dict[str, Any]) -> str:
        """One sentence: the cause and what to change."""
        wider = "use float64, " if stats.get("precision") == "float32" else ""
        return _ADVICE[self].format_map(_Filled({"wider": wider, "found_by": "", **stats}))


_ADVICE = {
    Status.CONVERGED: "the solve reached its tolerance",
    Status.MAX_ITERATIONS: (
        "stopped after {iterations} iterations at a relative residual of {worst_residual}: raise "
        "max_iterations, loosen tolerance, add damping or choose a preconditioner"
    ),
    Status.INACCURATE: (
        "rounding keeps the verified residual at {worst_residual}, above the tolerance {tolerance}: "
        "{wider}scale the features, loosen tolerance or add damping"
    ),
    Status.NEGATIVE_CURVATURE: (
        "negative curvature met ({curvature}{found_by}): raise damping or l2 above {needed_damping}"
    ),
    Status.NOT_POSITIVE_DEFINITE: (
        "the operator is not positive definite (pivot {pivot} of the Cholesky factor; {spectrum}): "
        "raise damping or l2 above {needed_damping}"
    ),
    Status.DIVERGED: (
        "the iterate grew out of bounds at step {step} with scale {scale}: use scale='auto' or a scale of at "
        "least {working_scale}{more_damping}"
    ),
    Status.TRUNCATED: (
        "depth {depth} is too short for scale {scale} and smallest eigenvalue {smallest}: the remaining bias "
        "may be {bias} of the solution; use a depth of {needed_depth}, a smaller scale or more damping"
    ),
    Status.APPROXIMATE: (
        "an approximation by {preconditioner} whose verified residual is {worst_residual}: for the solution "
        "itself use CG(preconditioner={preconditioner!r})"
    ),
    Status.UNKNOWN_BIAS: (
        "the truncation bias is not known, because estimating the smallest eigenvalue would cost more than "
        "depth {depth} and {repeats} repeats do: use spectrum='full' ({products} example products), or raise "
        "depth or repeats, or solve with a GaussNewton operator and damping"
    ),
    Status.NOISY: (
        "the standard error over {repeats} repeats is {worst_error} of the solution, above the tolerance "
        "{tolerance}: raise repeats (the error falls as their square root) or batch"
    ),
}


class _Filled(dict[str, Any]):
    def __missing__(self, key: str) -> str:
        return "unknown"

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        return f"{value:.3g}" if isinstance(value, float) else value


@dataclass(frozen=True)
class Solution:
    """The answer to ``A X = B``.

    Attributes:
        value: X, ``(p, k)``, or ``(p,)`` for a single right-hand side.
        status: how it ended.
        iterations: of the slowest column; 0 for direct solvers.
        residual: ``(k,)`` verified ``‖B − A X‖ / ‖B‖``.
        stats: numbers behind the status (iterations a column, eigenvalue bounds, standard errors, …).

    >>> import torch
    >>> from influence import Dense, Exact
    >>> operator = Dense(torch.eye(3, dtype=torch.float64))
    >>> solution = Exact().solve(operator, torch.ones(3, 2, dtype=torch.float64))
    >>> tuple(solution.value.shape), solution.iterations, tuple(solution.residual.shape)
    ((3, 2), 0, (2,))
    """

    value: Tensor
    status: Status
    iterations: int
    residual: Tensor
    stats: dict[str, Any] = field(default_factory=dict)

    @property
    def advice(self) -> str:
        """What the status advises, with this solve's numbers."""
        return self.status.advice(self.stats)

    def summary(self) -> dict[str, Any]:
        """Plain numbers for a record."""
        worst = float(self.residual.max()) if self.residual.numel() else 0.0
        own = {"status": self.status.value, "iterations": self.iterations, "worst_residual": worst}
        named = self.stats.get("preconditioner")
        return own if named is None else {**own, "preconditioner": named}


@dataclass(frozen=True)
class Solver(ABC):
    """Settings of a solver. ``solve`` = ``prepare`` once per operator + ``apply`` once per block.

    Args:
        raise_on_failure: raise unless converged, or return the status with a warning.

    >>> import torch
    >>> from influence import Dense, Exact
    >>> solver = Exact()
    >>> state = solver.prepare(Dense(4 * torch.eye(2, dtype=torch.float64)))  # once
    >>> one = torch.ones(2, 1, dtype=torch.float64)
    >>> [float(solver.apply(state, b * one).value[0, 0]) for b in (4.0, 12.0)]
    [1.0, 3.0]
    """

    raise_on_failure: bool = field(default=True, kw_only=True)

    @abstractmethod
    def prepare(self, operator: Operator) -> Any:
        """Whatever depends on the operator alone (a factor, a preconditioner, a scale)."""

    @abstractmethod
    def _solve(self, state: Any, B: Tensor) -> Solution:
        """The solution of a block ``(p, k)``."""

    def apply(self, state: Any, B: Tensor | Solution) -> Solution:
        """Solve for a block ``(p, k)``, a vector ``(p,)`` or the value of another solution.

        Raises:
            DataError: NaN or infinity in B.
            SolverError: a failure, when ``raise_on_failure``; the message is the status's advice.
        """
        if isinstance(B, Solution):
            B = B.value
        if not bool(torch.isfinite(B).all()):
            raise DataError("the right-hand side holds NaN or infinity; check the test gradients and the fit")
        solution = self._solve(state, B[:, None] if B.ndim == 1 else B)
        if B.ndim == 1:
            stats, value = solution.stats, solution.value[:, 0]
            solution = Solution(value, solution.status, solution.iterations, solution.residual, stats)
        self.report(solution.status, solution.advice)
        return solution

    def report(self, status: Status, advice: str) -> None:
        """Raise or warn unless ``status`` is ``CONVERGED``, or ``APPROXIMATE`` by a solver chosen for that.

        Raises:
            SolverError: when ``raise_on_failure``; its text is the solver's name and ``advice``.
        """
        if status in (Status.CONVERGED, Status.APPROXIMATE):
            return
        message = f"{type(self).__name__}: {advice}"
        if self.raise_on_failure:
            raise failure(status)(message)
        warnings.warn(message, NotConvergedWarning, stacklevel=3)

    def solve(self, operator: Operator, B: Tensor | Solution) -> Solution:
        """``prepare`` and ``apply`` in one call."""
        return self.apply(self.prepare(operator), B)


def failure(status: Status) -> type[SolverError]:
    """The error class that belongs to a status."""
    indefinite = (Status.NEGATIVE_CURVATURE, Status.NOT_POSITIVE_DEFINITE)
    return NotPositiveDefiniteError if status in indefinite else SolverError


def relative_residual(operator: Operator, X: Tensor, B: Tensor) -> Tensor:
    """``‖B − A X‖ / ‖B‖`` a column, 0 where B is 0: ``(k,)``."""
    norms = B.norm(dim=0)
    result: Tensor = (B - operator @ X).norm(dim=0) / torch.where(norms > 0, norms, torch.ones_like(norms))
    return result
