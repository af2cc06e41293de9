"""The count of products with the data matrix, against what a call is known to multiply."""

from __future__ import annotations

import pytest
import torch

from experiments.suite.flops import ProductCount
from influence import CG, Hessian
from influence.errors import DataError
from tests.influence.problems import linear_problem, random_theta


def test_counts_columns_and_leaves_the_matrix_as_it_was() -> None:
    objective = linear_problem("cross_entropy")
    theta = random_theta(objective)
    with ProductCount(objective, nonzeros=10) as counted:
        objective.gradient(theta)  # X once, its transpose once, one column an output
    assert counted.columns == 2 * objective.n_outputs
    assert counted.flops == 2.0 * 10 * counted.columns
    objective.gradient(theta)
    assert counted.columns == 2 * objective.n_outputs
    assert "matmul" not in vars(objective.X)


def test_a_solve_costs_a_product_each_way_an_iteration() -> None:
    objective = linear_problem("logistic")
    hessian = Hessian(objective, random_theta(objective))
    hessian @ random_theta(objective)  # the outputs at theta, once
    with ProductCount(objective, nonzeros=1) as counted:
        solution = CG().solve(hessian, random_theta(objective, seed=3))
    assert counted.columns == 2 * (solution.iterations + 1)  # and one to verify the residual


def test_many_columns_at_once_count_as_many() -> None:
    objective = linear_problem("cross_entropy")
    hessian = Hessian(objective, random_theta(objective))
    V = random_theta(objective, k=40)
    hessian @ V  # the outputs at theta, once
    with ProductCount(objective, nonzeros=1) as counted:
        hessian @ V
    assert counted.columns == 2 * 40 * objective.n_outputs
    with ProductCount(objective, nonzeros=1) as counted:
        objective.directional(random_theta(objective), V)
    assert counted.columns == 41 * objective.n_outputs  # and the outputs at theta


def test_the_matrix_is_restored_after_an_error_and_none_is_needed() -> None:
    objective = linear_problem("logistic")
    with pytest.raises(DataError), ProductCount(objective, 1):
        objective.gradient(torch.zeros(3, dtype=torch.float64))
    assert "matmul" not in vars(objective.X)
    with ProductCount(object(), 1) as counted:
        pass
    assert counted.flops is None
