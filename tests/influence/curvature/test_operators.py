"""Operators compose: products, dense matrices, diagonals, samples and forms all say the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from influence import Damped, Dense, GaussNewton, Hessian, Operator
from influence.curvature.operators import base_of, draw
from influence.errors import DataError
from tests.influence.problems import linear_problem


def theta_of(problem: object, seed: int = 1) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(problem.p, generator=g, dtype=torch.float64)  # type: ignore[attr-defined]


def hessian() -> Operator:
    problem = linear_problem("cross_entropy")
    return Hessian(problem, theta_of(problem))


def gauss_newton() -> Operator:
    problem = linear_problem("logistic")
    return GaussNewton(problem, theta_of(problem))


def matrix() -> Operator:
    g = torch.Generator().manual_seed(3)
    a = torch.randn(6, 6, generator=g, dtype=torch.float64)
    return Dense(a @ a.T)


def damped_twice() -> Operator:
    return Damped(Damped(hessian(), 0.25), 0.5)


KINDS = [hessian, gauss_newton, matrix, damped_twice]


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_every_view_of_an_operator_is_the_same_matrix(make: Callable[[], Operator]) -> None:
    operator = make()
    p = operator.shape[0]
    products = operator @ torch.eye(p, dtype=torch.float64)
    torch.testing.assert_close(operator.dense(), products, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(operator.dense(block=3), products, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(operator.diagonal(), products.diagonal(), rtol=1e-12, atol=1e-13)
    one = torch.ones(p, dtype=torch.float64)
    torch.testing.assert_close(operator @ one, (operator @ one[:, None])[:, 0])
    torch.testing.assert_close(products, products.T, rtol=1e-12, atol=1e-13)
    bound = operator.lower_bound()
    smallest = float(torch.linalg.eigvalsh(operator.dense())[0])
    assert bound is None or bound <= smallest + 1e-12


@pytest.mark.parametrize("make", [hessian, gauss_newton, damped_twice], ids=lambda make: make.__name__)
def test_the_core_form_is_the_same_matrix(make: Callable[[], Operator]) -> None:
    operator = make()
    form = operator.split()
    if form is None:
        pytest.skip("no core form")
    p = operator.shape[0]
    eye = torch.eye(p, dtype=torch.float64)
    inside = form.project(eye)
    rebuilt = form.lift(form.core() @ inside) + form.shift * eye
    torch.testing.assert_close(rebuilt, operator.dense(), rtol=1e-10, atol=1e-11)


def test_a_sample_of_all_examples_is_the_operator_and_a_generator_decides_the_draw() -> None:
    problem = linear_problem("cross_entropy")
    operator = Damped(Hessian(problem, theta_of(problem)), 0.1)
    everything = operator.sample(torch.Generator().manual_seed(0), problem.n, replace=False)
    torch.testing.assert_close(everything.dense(), operator.dense(), rtol=1e-12, atol=1e-13)
    first, again, other = (operator.sample(torch.Generator().manual_seed(s), 5).dense() for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_samples_average_to_the_whole() -> None:
    """Exactly: without replacement, the parts of a partition of the examples have the operator as their
    mean.
    """
    problem = linear_problem("logistic", n=40)
    operator = Hessian(problem, theta_of(problem))
    parts = [operator.on_examples(idx).dense() for idx in torch.randperm(40).split(10)]  # type: ignore[attr-defined]
    torch.testing.assert_close(sum(parts) / 4, operator.dense(), rtol=1e-11, atol=1e-12)


def test_what_cannot_be_drawn_is_refused() -> None:
    g = torch.Generator().manual_seed(0)
    assert sorted(draw(4, 4, False, g).tolist()) == [0, 1, 2, 3]
    for batch, replace in ((0, True), (5, False)):
        with pytest.raises(DataError, match="batch"):
            draw(4, batch, replace, g)


def test_wrong_blocks_and_wrong_dampings_are_named() -> None:
    operator = matrix()
    with pytest.raises(DataError, match="6 columns"):
        operator @ torch.ones(5, dtype=torch.float64)
    with pytest.raises(DataError, match="convert the block"):
        operator @ torch.ones(6)
    with pytest.raises(DataError, match="square"):
        Dense(torch.ones(2, 3))
    for damping in (-1.0, float("nan"), float("inf")):
        with pytest.raises(DataError, match="damping"):
            Damped(operator, damping)


def test_the_dampings_around_an_operator_add_up() -> None:
    inner = matrix()
    base, damping = base_of(Damped(Damped(inner, 0.25), 0.5))
    assert base is inner
    assert damping == 0.75
