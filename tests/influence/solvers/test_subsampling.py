"""A preconditioner from a part of the examples: CG finds the same solution with it, in fewer products."""

from __future__ import annotations

import pytest
import torch

from influence import CG, Damped, Hessian, LinearObjective
from influence.solvers import Subsample
from influence.solvers.subsampling import RoughInverse
from tests.influence.problems import linear_problem


def ill_conditioned(loss: str, n: int = 3000, d: int = 15) -> LinearObjective:
    """Correlated inputs of very different sizes: what a preconditioner is for."""
    g = torch.Generator().manual_seed(0)
    mixing = torch.randn(d, d, generator=g, dtype=torch.float64)
    X = torch.randn(n, d, generator=g, dtype=torch.float64) @ (
        torch.logspace(-2, 1, d).double()[:, None] * mixing
    )
    y = (
        torch.randint(3, (n,), generator=g)
        if loss == "cross_entropy"
        else torch.randint(2, (n,), generator=g) * 2 - 1
    )
    return LinearObjective(X, y, loss, 1e-6)


@pytest.mark.parametrize("loss", ["cross_entropy", "logistic"])
@pytest.mark.parametrize("damping", [0.0, 1e-5])
def test_the_solution_is_the_dense_one_in_fewer_products(loss: str, damping: float) -> None:
    problem = ill_conditioned(loss)
    g = torch.Generator().manual_seed(2)
    theta = 0.1 * torch.randn(problem.p, generator=g, dtype=torch.float64)
    operator = Damped(Hessian(problem, theta), damping)
    B = torch.randn(problem.p, 3, generator=g, dtype=torch.float64)
    exact = torch.linalg.solve(operator.dense(), B)
    plain = CG(tolerance=1e-8).solve(operator, B)
    helped = CG(tolerance=1e-8, preconditioner=Subsample(size=400)).solve(operator, B)
    error = (helped.value - exact).norm(dim=0) / exact.norm(dim=0)
    assert float(error.max()) < 1e-4
    assert helped.iterations < plain.iterations / 2
    assert helped.status.name == "CONVERGED"


def test_the_rough_inverse_solves_its_own_part_to_a_tenth() -> None:
    problem = ill_conditioned("cross_entropy")
    theta = torch.zeros(problem.p, dtype=torch.float64)
    made = Subsample(size=400).make(Damped(Hessian(problem, theta), 0.05))
    assert made.varies
    inverse = made.product
    assert isinstance(inverse, RoughInverse)
    chosen = torch.arange(400) * 3000 // 400
    part = Damped(Hessian(problem.subset(chosen), theta), 0.05)
    R = torch.randn(problem.p, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    residual = (R - part @ inverse(R)).norm(dim=0) / R.norm(dim=0)
    assert float(residual.max()) <= 0.1


def test_few_examples_have_their_kronecker_factors_alone() -> None:
    problem = linear_problem("logistic")
    theta = torch.zeros(problem.p, dtype=torch.float64)
    made = Subsample().make(Damped(Hessian(problem, theta), 0.1))
    assert not made.varies
    found = made.product
    assert not isinstance(found, RoughInverse)
    R = torch.ones(problem.p, 1, dtype=torch.float64)
    assert float((R * found(R)).sum()) > 0  # positive definite, as CG needs it
