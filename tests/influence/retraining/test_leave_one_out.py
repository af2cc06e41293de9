"""Leave-one-out retraining against refits from scratch, one at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

from influence import (
    ConvergenceError,
    DataError,
    Exact,
    Hessian,
    LinearObjective,
    NotConvergedWarning,
    fit,
    leave_one_out,
)
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
    with pytest.raises(ConvergenceError, match=r"without point 4 \(.*raise max_iterations"):
        leave_one_out(
            objective, theta, [4], lambda g: 0 * g, max_iterations=1, tolerance=1e-13, raise_on_failure=True
        )
    with pytest.raises(DataError, match=r"nested list.*group_change"):
        leave_one_out(objective, theta, [[0, 1, 2], [3, 4, 5]], factor.inverse)
    for wrong in ({"tolerance": float("nan")}, {"tolerance": 0}, {"block": 0}, {"block": -1},
                  {"max_iterations": 0}, {"removal": "sum"}):  # fmt: skip
        with pytest.raises(DataError, match=f"{next(iter(wrong))}.* must be .*got"):
            leave_one_out(objective, theta, [4], factor.inverse, **wrong)
    empty = leave_one_out(objective, theta, [], factor.inverse)
    assert empty.thetas.shape == (objective.p, 0)


@pytest.mark.parametrize("removal", ["objective", "loss"])
def test_a_removed_point_takes_its_weight_with_it(removal):
    base = linear_problem("logistic", n=40, l2=0.05)
    weights = torch.linspace(0.2, 5.0, 40, dtype=torch.float64)
    objective = base.with_weights(weights)
    theta = fit(objective).theta
    found = leave_one_out(objective, theta, [0, 20, 39], removal=removal, tolerance=1e-11)
    assert found.removal == removal
    for column, i in enumerate([0, 20, 39]):
        keep = torch.arange(40) != i
        if removal == "loss":
            left = base.with_weights(weights * keep)
        else:
            left = base.subset(keep).with_weights(weights[keep])
        torch.testing.assert_close(found.thetas[:, column], fit(left).theta, rtol=1e-8, atol=1e-9)


def cancer(n: int = 469):
    data = load_breast_cancer()
    rows = np.random.RandomState(0).permutation(569)[100:][:n]
    X = (data.data - data.data.mean(0)) / data.data.std(0)
    return X[rows], 2 * data.target[rows] - 1


@pytest.mark.parametrize("l2", [1e-3, 1e-4])
def test_points_whose_shared_steps_stall_are_fitted_alone(l2):
    X, y = cancer()
    objective = LinearObjective(X, y, "logistic", l2)
    theta = fit(objective).theta
    found = leave_one_out(objective, theta, list(range(objective.n)))
    assert bool(found.converged.all())
    assert 0 < found.status.count("alone") < 10
    for column in [found.status.index("alone"), 0]:
        left = objective.subset(torch.arange(objective.n) != column)
        assert float(left.gradient(found.thetas[:, column]).norm()) <= 1e-8


def test_a_point_that_cannot_be_retrained_costs_no_other():
    X, y = cancer(60)
    objective = LinearObjective(X, y, "logistic", 1e-4)
    theta = fit(objective).theta
    with pytest.warns(NotConvergedWarning, match=r"without point .* stopped .*raise max_iterations"):
        found = leave_one_out(objective, theta, list(range(60)), max_iterations=2, tolerance=1e-7)
    assert 0 < int(found.converged.sum()) < 60
    assert found.status.count("not converged") == 60 - int(found.converged.sum())
    assert torch.equal(found.gradient_norms <= 1e-7, found.converged)


def test_a_net_at_a_minimum_is_retrained_where_shared_steps_fail():
    torch.manual_seed(0)
    x, y = torch.randn(200, 5, dtype=torch.float64), torch.randint(0, 3, (200,))
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    objective = Objective(net, "cross_entropy", x[:150], y[:150], 0.01)
    theta = fit(objective, method="lbfgs", tolerance=1e-6).theta
    found = leave_one_out(objective, theta, [77, 119, 48, 0])
    assert bool(found.converged.all())
    for column, i in enumerate([77, 119, 48, 0]):
        left = objective.subset(torch.arange(150) != i)
        assert float(left.gradient(found.thetas[:, column]).norm()) <= 1e-8
        assert float(left.value(found.thetas[:, column])) <= float(left.value(theta))
