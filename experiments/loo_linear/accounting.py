"""Seconds and floating-point operations of each part of the experiment. No number of the record depends on
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from experiments.suite.context import Context
from experiments.suite.flops import ProductCount
from influence.solvers import Exact, LiSSA
from influence.training import Fit, fit


class Work:
    """The steps of the experiment, timed, with their necessary floating-point operations beside the time.

    train: the objective. X: its data matrix, dense or sparse. ``product`` counts one pass through X and its
    transpose with one column per output.
    """

    def __init__(self, context: Context, train: Any, X: Any) -> None:
        self.context, self.train = context, train
        self.nonzeros = int(np.count_nonzero(X)) if isinstance(X, np.ndarray) else int(X.nnz)
        self.product = 4.0 * self.nonzeros * train.n_outputs

    def fit(self, tolerance: float) -> Fit:
        """The fit of all training points."""
        with (
            self.context.timer("fit") as timing,
            self.context.progress(100, "fit") as advance,
            ProductCount(self.train, self.nonzeros) as counted,
        ):
            fitted = fit(self.train, tolerance=tolerance, progress=advance)
        timing.flops = counted.flops
        return fitted

    def prepare(self, name: str, solver: Any, operator: Any) -> Any:
        """``solver.prepare(operator)``."""
        with self.context.timer(f"{name}: prepare") as timing:
            state = solver.prepare(operator)
        if isinstance(solver, Exact):
            timing.flops = self.factorisation(state)
        return state

    def solve(self, name: str, solver: Any, state: Any, gradient: torch.Tensor) -> Any:
        """``solver.apply(state, gradient)``; its status goes to the provenance."""
        with (
            self.context.timer(f"{name}: s_test") as timing,
            ProductCount(self.train, self.nonzeros) as counted,
        ):
            solution = solver.apply(state, gradient)
        timing.flops = (counted.flops or 0.0) + self.beyond_products(solver, state, solution) or None
        self.context.status(name, solution)
        return solution

    @contextmanager
    def scoring(self, name: str) -> Iterator[None]:
        """One pass over the training set: half a product."""
        with self.context.timer(f"{name}: {self.train.n} scores", flops=self.product / 2):
            yield

    def factor(self, hessian: Any) -> Any:
        """The Cholesky factor of the undamped Hessian."""
        with self.context.timer("factor of the undamped Hessian") as timing:
            state = Exact().prepare(hessian)
        timing.flops = self.factorisation(state)
        return state

    @contextmanager
    def retraining(self, count: int, state: Any) -> Iterator[list[float]]:
        """Retraining of ``count`` models. The list takes their Newton steps: a product and a solve each."""
        steps: list[float] = []
        with self.context.timer(f"{count} retrainings") as timing:
            yield steps
        timing.flops = sum(steps) * (self.product + 2.0 * len(state.factor) ** 2)

    def beyond_products(self, solver: Any, state: Any, solution: Any) -> float:
        """Work of one solve apart from products with X.

        Exact: two triangular systems. LiSSA: two products with a sampled batch and the update of the iterate,
        per step.
        """
        if isinstance(solver, Exact):
            return 2.0 * len(state.factor) ** 2
        if isinstance(solver, LiSSA):
            return float(solution.iterations * solver.repeats * (4.0 * solver.batch + 3.0) * self.train.p)
        return 0.0

    def factorisation(self, state: Any) -> float:
        """Work of forming the factored matrix from dense rows (its lower half), and of its Cholesky
        factor.
        """
        q = len(state.factor)
        return float(self.train.n) * q * q / max(1, self.train.n_outputs) + q**3 / 3
