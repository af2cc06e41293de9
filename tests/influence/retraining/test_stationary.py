"""A small net at a stationary point: certificate, curvature, and influence as the derivative there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from influence.curvature.operators import Hessian
from influence.errors import ConvergenceError, DataError
from influence.objectives.compiled import compiled_net
from influence.objectives.module import Objective
from influence.objectives.sequential import network_objective
from influence.retraining.stationary import (
    WeightedNet,
    curvature_at,
    descend,
    reweighted,
    stationary,
)

KERNELS = ["torch", "compiled"]


def problem(n: int = 60) -> Objective:
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    y = torch.arange(n) % 3
    X = torch.randn(n, 1, 6, 6, generator=g, dtype=torch.float64) + y[:, None, None, None].double() / 2
    return network_objective(net.double(), "cross_entropy", X, y, 0.01, l2_parameters="weights")


def net_of(kernel: str, objective: Objective) -> WeightedNet:
    if kernel == "compiled" and compiled_net(objective)[0] is None:
        pytest.skip("no C compiler on this machine")
    return WeightedNet(objective, kernel)


@pytest.fixture(scope="module")
def settled():
    """A net at its minimum, with the curvature there."""
    objective = problem()
    net = WeightedNet(objective, "torch")
    found = stationary(net, objective.initial(), 1e-11, passes=50)
    return objective, net, found, curvature_at(net, found.theta)


@pytest.mark.parametrize("kernel", KERNELS)
def test_values_and_gradients_of_less_weight(kernel):
    objective = problem()
    net = net_of(kernel, objective)
    assert net.path == kernel
    thetas = objective.initial()[:, None] + 0.1 * torch.arange(3, dtype=torch.float64)
    epsilon, removed = torch.tensor([0.0, 0.01, 1 / 60], dtype=torch.float64), torch.tensor([0, 7, 59])
    values, gradients = net.evaluate(thetas, epsilon, removed)
    for j in range(3):
        theta, i = thetas[:, j].contiguous(), removed[j : j + 1]
        value = objective.value(theta) - epsilon[j] * objective.example_losses(theta, i)[0]
        gradient = objective.gradient(theta) - epsilon[j] * objective.example_gradients(theta, i)[0]
        torch.testing.assert_close(values[j], value, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(gradients[:, j], gradient, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(net.hessian(theta), Hessian(objective, theta).dense(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_net_becomes_stationary(kernel, settled):
    objective, _, expected, _ = settled
    found = stationary(net_of(kernel, objective), objective.initial(), 1e-11, passes=50)
    assert found.gradient_norm <= 1e-11
    assert float(objective.gradient(found.theta).norm()) <= 1.1e-11
    assert found.value == pytest.approx(expected.value, abs=1e-10)
    values = [value for _, value, _ in found.history]
    assert values == sorted(values, reverse=True)
    assert found.history[-1][0] == found.passes


def test_the_curvature_leaves_the_flat_direction_out(settled):
    _, net, _, curvature = settled
    u = net.flat()
    assert float((curvature.matrix @ u).norm()) < 1e-12
    assert len(curvature.eigenvalues) == net.p - 1
    assert float(curvature.eigenvalues[0]) > 0  # a minimum, not a saddle
    b = torch.linspace(-1, 1, net.p, dtype=torch.float64)
    b = b - (u @ b) * u
    for damping in (0.0, 0.3):
        x = curvature.solve(b[:, None], damping)[:, 0]
        torch.testing.assert_close(curvature.matrix @ x + damping * x, b, rtol=1e-8, atol=1e-9)
    assert float((b @ curvature.positive(b[:, None], 1e-4))[0]) > 0


def test_influence_is_the_derivative_in_the_weight(settled):
    """First order at ε → 0, and second-order errors: a tenth of the weight, a hundredth of the error."""
    _, net, found, curvature = settled
    removed = torch.tensor([3, 20, 41])
    gradients = torch.stack([net.example_gradient(found.theta, int(i)) for i in removed], dim=1)
    first = curvature.solve(gradients)
    errors = []
    for fraction in (1e-2, 1e-3):
        epsilon = fraction / net.n
        starts = found.theta[:, None].repeat(1, 3)
        done = reweighted(net, starts, epsilon, removed, lambda B: curvature.positive(B, 1e-4), 1e-12)
        assert float(done.gradient_norms.max()) <= 1e-12
        errors.append(float((done.thetas - found.theta[:, None] - epsilon * first).norm()))
    assert errors[0] < 1e-4 * float(first.norm())
    assert errors[1] == pytest.approx(errors[0] / 100, rel=0.2)


def test_a_whole_point_is_left_out_as_by_retraining(settled):
    objective, net, found, curvature = settled
    i, epsilon = torch.tensor([3]), 1 / net.n
    done = reweighted(net, found.theta[:, None], epsilon, i, lambda B: curvature.positive(B, 1e-4), 1e-10)
    kept = torch.tensor([j for j in range(net.n) if j != 3])
    rest = objective.subset(kept)
    theta = done.thetas[:, 0].contiguous()
    gradient = rest.gradient(theta) - rest.l2 * rest.l2_mask * theta  # mean loss over n - 1
    own = gradient * len(kept) / net.n + objective.l2 * objective.l2_mask * theta
    assert float(own.norm()) < 1e-9


def test_problems_side_by_side_do_not_mix():
    def evaluate(thetas, columns):  # Rosenbrock valleys of different steepness
        a = 10.0 * (1 + columns.double())
        x, y = thetas
        values = (1 - x) ** 2 + a * (y - x**2) ** 2
        return values, torch.stack([-2 * (1 - x) - 4 * a * x * (y - x**2), 2 * a * (y - x**2)])

    starts = torch.tensor([[-1.2, 0.0, 2.0], [1.0, -1.0, 2.0]], dtype=torch.float64)
    together = descend(evaluate, starts, lambda B: B, 1e-9, 500)
    assert float((together.thetas - 1).abs().max()) < 1e-8
    for j in range(3):
        own = starts[:, j : j + 1]
        alone = descend(lambda t, _, j=j: evaluate(t, torch.tensor([j])), own, lambda B: B, 1e-9, 500)
        assert torch.equal(alone.thetas[:, 0], together.thetas[:, j])
        assert alone.passes[0] == together.passes[j]


def test_too_few_passes_are_said():
    objective = problem()
    with pytest.raises(ConvergenceError, match="allow more passes"):
        stationary(WeightedNet(objective, "torch"), objective.initial(), 1e-11, passes=2, shares=2)
    with pytest.raises(DataError, match="kernel"):
        WeightedNet(objective, "fast")


class Memory(dict):
    """A journal in memory."""

    def put(self, key, arrays):
        self[key] = {name: np.copy(value) for name, value in arrays.items()}


def test_a_stopped_descent_goes_on_where_it_was(settled):
    objective, net, expected, _ = settled
    journal = Memory()
    with pytest.raises(ConvergenceError):
        stationary(net, objective.initial(), 1e-11, passes=50, shares=1, journal=journal)
    again = stationary(net, objective.initial(), 1e-11, passes=50, journal=journal)
    assert torch.equal(again.theta, expected.theta)
    assert again.passes == expected.passes
