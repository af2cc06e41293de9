"""Leave-one-out retraining against refits from scratch, one at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from influence import ConvergenceError, DataError, Exact, Hessian, fit, leave_one_out
from influence.objectives.module import Objective
from tests.influence.problems import LOSSES, linear_data, linear_problem


class Memory(dict):
    """A journal that lives in memory and counts what is put into it."""

    puts = 0

    def put(self, key, arrays):
        self.puts += 1
        self[key] = {name: array.copy() for name, array in arrays.items()}


def setup(kind: str):
    if kind == "net":
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
        X, y = linear_data("cross_entropy", n=30, d=3, c=3, density=1.0)
        objective = Objective(net, "cross_entropy", X, y, 0.1)
    else:
        objective = linear_problem(kind, n=60, l2=0.05)
    theta = fit(objective, tolerance=1e-11).theta
    return objective, theta, Exact().prepare(Hessian(objective, theta))


@pytest.mark.parametrize("kind", [*LOSSES, "net"])
@pytest.mark.parametrize("block", [3, 50])
def test_equals_refits_without_the_point(kind, block):
    objective, theta, factor = setup(kind)
    idx = [0, 5, 17, 23]
    seen: list[int] = []
    result = leave_one_out(
        objective, theta, idx, factor.inverse, tolerance=1e-10, block=block, progress=seen.append
    )
    assert seen[-1] == len(idx)
    for column, i in enumerate(idx):
        rest = objective.subset(torch.arange(objective.n) != i)
        own = float(rest.gradient(result.thetas[:, column]).norm())
        assert own <= 1.01e-10
        assert float(result.gradient_norms[column]) == pytest.approx(own, abs=1e-13)
        truth = fit(rest, theta, tolerance=1e-11).theta
        torch.testing.assert_close(result.thetas[:, column], truth, rtol=1e-7, atol=1e-8)
    assert float((result.thetas - theta[:, None]).norm(dim=0).min()) > 1e-6


def test_converges_with_a_rough_preconditioner_too():
    objective, theta, factor = setup("cross_entropy")
    rough = leave_one_out(objective, theta, [1, 2], lambda g: 4 * g / 3, tolerance=1e-8, max_iterations=20000)
    exact = leave_one_out(objective, theta, [1, 2], factor.inverse, tolerance=1e-8)
    torch.testing.assert_close(rough.thetas, exact.thetas, rtol=1e-4, atol=1e-6)
    assert int(rough.iterations.min()) > int(exact.iterations.max())


def test_a_journal_resumes_to_the_same_bytes():
    objective, theta, factor = setup("cross_entropy")
    idx = list(range(10))
    whole, part = Memory(), Memory()
    full = leave_one_out(objective, theta, idx, factor.inverse, block=3, journal=whole)
    assert whole.puts == 4
    stop_after = 2

    def stop(done: int) -> None:
        if done >= 3 * stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leave_one_out(objective, theta, idx, factor.inverse, block=3, journal=part, progress=stop)
    assert part.puts == stop_after
    resumed = leave_one_out(objective, theta, idx, factor.inverse, block=3, journal=part)
    assert part.puts == 4
    assert np.array_equal(full.thetas.numpy(), resumed.thetas.numpy())
    assert np.array_equal(full.gradient_norms.numpy(), resumed.gradient_norms.numpy())


def test_failures_are_named():
    objective, theta, factor = setup("logistic")
    with pytest.raises(DataError, match="removed point 60 does not exist; use 0…59"):
        leave_one_out(objective, theta, [60], factor.inverse)
    with pytest.raises(ConvergenceError, match=r"without point 4 .*better preconditioner"):
        leave_one_out(objective, theta, [4], lambda g: 0 * g, max_iterations=3)
    empty = leave_one_out(objective, theta, [], factor.inverse)
    assert empty.thetas.shape == (objective.p, 0)
