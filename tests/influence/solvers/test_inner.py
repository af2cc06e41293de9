"""Inner conjugate gradients: each column's own system, against dense solves."""

from __future__ import annotations

import torch

from influence.solvers.inner import inner_cg
from tests.influence.problems import spd


def test_each_column_reaches_its_own_goal_and_then_stays():
    matrices = torch.stack([spd(12, 50.0, seed) for seed in range(3)])
    B = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    goal = torch.tensor([1e-12, 1e-2, 1e-12], dtype=torch.float64)

    def product(V):
        return torch.einsum("kij,jk->ik", matrices, V)

    X, steps = inner_cg(product, B, goal, lambda R: R, limit=100)
    residual = (product(X) - B).norm(dim=0) / B.norm(dim=0)
    assert bool((residual <= 2 * goal + 1e-14).all())
    assert float(residual[1]) > 1e-6  # it stopped when it had what was asked
    oracle = torch.stack([torch.linalg.solve(matrices[j], B[:, j]) for j in (0, 2)], dim=1)
    torch.testing.assert_close(X[:, [0, 2]], oracle, rtol=1e-9, atol=1e-9)
    again, none = inner_cg(product, B, goal * 3, lambda R: R, X, limit=100)
    assert none == 0
    assert torch.equal(again, X)
    assert steps <= 20


def test_a_column_without_positive_curvature_stays_at_its_start_and_the_other_is_solved():
    matrices = torch.stack([-torch.eye(4, dtype=torch.float64), spd(4, 5.0)])
    B = torch.ones(4, 2, dtype=torch.float64)
    goal = torch.full((2,), 1e-12, dtype=torch.float64)
    X, _ = inner_cg(lambda V: torch.einsum("kij,jk->ik", matrices, V), B, goal, lambda R: R, limit=50)
    assert not bool(X[:, 0].any())
    torch.testing.assert_close(X[:, 1], torch.linalg.solve(matrices[1], B[:, 1]), rtol=1e-9, atol=1e-9)
