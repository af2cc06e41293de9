"""What is kept of each λ, how both scores compare with retraining, and one factor for all solves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from influence.curvature.operators import Operator
from influence.evaluation.agreement import Estimate, agreement
from influence.solvers import ExactState, Solution, Solver, Status

METHODS = ("first_order", "leverage")


@dataclass(frozen=True)
class Compared:
    """At one λ: the points ``index (m,)``, the ``top`` most influential first, with their actual change of
    the test loss and both predictions, in nats. converged (m,): the retrained model met its tolerance.
    """

    l2: float
    test_loss: float
    index: np.ndarray
    actual: np.ndarray
    first_order: np.ndarray
    leverage_corrected: np.ndarray
    converged: np.ndarray
    top: int

    @property
    def leverage(self) -> float:
        """How many times larger than the first-order change the corrected one is at most."""
        return float(np.max(np.abs(self.leverage_corrected[: self.top] / self.first_order[: self.top])))


def compared(found: Compared, part: str) -> dict[str, dict[str, float]]:
    """Agreement of each method with retraining on the ``top`` or the ``random`` points."""
    rows = slice(0, found.top) if part == "top" else slice(found.top, None)
    good, actual = found.converged[rows], found.actual[rows]
    predictions = {"first_order": found.first_order[rows], "leverage": found.leverage_corrected[rows]}
    return {method: numbers(predictions[method][good], actual[good]) for method in METHODS}


def numbers(predicted: np.ndarray, actual: np.ndarray) -> dict[str, float]:
    """Slope, correlations with intervals, and errors relative to the largest and the mean change."""
    report = agreement(predicted, actual)
    found: dict[str, Any] = {}
    for name in ("slope", "pearson", "spearman"):
        estimate: Estimate = getattr(report, name)
        found |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    error = np.abs(predicted - actual)
    found["largest_error"] = float(error.max() / np.abs(actual).max())
    found["mean_error"] = report.error
    found["same_sign"] = report.sign
    return found


@dataclass(frozen=True)
class Prepared(Solver):
    """Solves by a factor that was made before; its operator must be the one that is asked about."""

    state: ExactState

    def prepare(self, operator: Operator) -> ExactState:
        """The factor made before.

        Raises:
            ValueError: an operator of another size.
        """
        if operator.shape != self.state.operator.shape:
            raise ValueError(f"the factor is of {self.state.operator.shape}, not of {operator.shape}")
        return self.state

    def _solve(self, state: ExactState, B: Tensor) -> Solution:
        return Solution(state.inverse(B), Status.CONVERGED, 0, B.new_zeros(B.shape[1]), {})


__all__ = ["METHODS", "Compared", "Prepared", "compared", "numbers"]
