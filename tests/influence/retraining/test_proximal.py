"""Proximal Bregman responses against a minimiser that knows only autograd, and against their derivative."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from influence.curvature.networks import gauss_newton_matrix
from influence.errors import DataError
from influence.losses import CrossEntropy
from influence.objectives.module import Objective
from influence.objectives.sequential import network_objective
from influence.retraining.proximal import ProximalNet, proximal_responses

N, DELTA, L2 = 30, 0.05, 0.02


def built(loss: str, kind=Objective):
    """A net whose parameters are no minimum, its data, and θ̃."""
    g = torch.Generator().manual_seed(5)
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    X = torch.randn(N, 4, generator=g, dtype=torch.float64)
    y = torch.arange(N) % 3 if loss == "cross_entropy" else torch.randn(N, 3, generator=g).double()
    objective = kind(net, loss, X, y, L2, l2_parameters="weights")
    theta = torch.randn(objective.p, generator=g, dtype=torch.float64) * 0.7
    return objective, theta


def divergence(loss: str, outputs: Tensor, at: Tensor, y: Tensor) -> Tensor:
    """D by its definition."""
    kind = {"cross_entropy": nn.CrossEntropyLoss(reduction="none")}.get(loss)
    value = kind or (lambda o, t: 0.5 * (o - t).square().sum(dim=1))
    at = at.detach().requires_grad_()
    (slope,) = torch.autograd.grad(value(at, y).sum(), at)
    return value(outputs, y) - value(at, y).detach() - (slope * (outputs - at.detach())).sum(dim=1)


def forward(objective: Objective, theta: Tensor) -> Tensor:
    """The net's outputs, written out."""
    W, b, V, c = torch.split(theta, [20, 5, 15, 3])
    return torch.tanh(objective.inputs @ W.reshape(5, 4).T + b) @ V.reshape(3, 5).T + c


def by_definition(objective: Objective, loss: str, theta: Tensor, start: Tensor, i: int, epsilon: float):
    at, outputs = forward(objective, start), forward(objective, theta)
    moved = theta - start
    value = divergence(loss, outputs, at, objective.targets).mean()
    value = value + 0.5 * L2 * (objective.l2_mask * moved).square().sum() + 0.5 * DELTA * moved.square().sum()
    own = objective.loss.values(outputs, objective.targets) - objective.loss.values(at, objective.targets)
    return value - epsilon * own[i]


@pytest.mark.parametrize("kind", [Objective, network_objective])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_values_and_gradients_are_those_of_the_definition(loss: str, kind):
    objective, start = built(loss, kind)
    plain, _ = built(loss)
    net = ProximalNet(objective, start, DELTA)
    g = torch.Generator().manual_seed(1)
    thetas = start[:, None] + 0.3 * torch.randn(objective.p, 3, generator=g, dtype=torch.float64)
    epsilon, removed = torch.tensor([0.0, 1 / N, 0.5 / N], dtype=torch.float64), torch.tensor([2, 7, 29])
    values, gradients = net.evaluate(thetas, epsilon, removed)
    for j in range(3):
        theta = thetas[:, j].clone().requires_grad_()
        value = by_definition(plain, loss, theta, start, int(removed[j]), float(epsilon[j]))
        (gradient,) = torch.autograd.grad(value, theta)
        torch.testing.assert_close(values[j], value.detach(), rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(gradients[:, j], gradient, rtol=1e-10, atol=1e-12)
    values, gradients = net.evaluate(start[:, None], epsilon[:1], removed[:1])
    assert abs(float(values[0])) < 1e-14
    assert float(gradients.norm()) < 1e-14  # θ̃ is the minimum at ε = 0, though not of the training


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_responses_are_minima_and_their_derivative_is_gauss_newton_influence(loss: str):
    objective, start = built(loss, network_objective)
    removed = torch.tensor([0, 11, 4])
    G = gauss_newton_matrix(objective, start) + DELTA * torch.eye(objective.p, dtype=torch.float64)
    expected = torch.linalg.solve(G, objective.example_gradients(start, removed).T) / N
    errors = []
    for share in (0.02, 0.01):
        found = proximal_responses(objective, start, removed, DELTA, share=share, tolerance=1e-12)
        assert float(found.gradient_norms.max()) <= 1e-12
        moved = (found.thetas - start[:, None]) / share
        errors.append(float((moved - expected).norm() / expected.norm()))
    assert errors[1] < 0.01
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)  # the next order of the share alone is left


def test_a_whole_point_is_taken_away_and_the_gradient_vanishes():
    objective, start = built("cross_entropy", network_objective)
    plain, _ = built("cross_entropy")
    found = proximal_responses(objective, start, torch.tensor([3]), DELTA, tolerance=1e-11)
    theta = found.thetas[:, 0].clone().requires_grad_()
    value = by_definition(plain, "cross_entropy", theta, start, 3, 1 / N)
    (gradient,) = torch.autograd.grad(value, theta)
    assert float(gradient.norm()) < 1e-10
    assert float(value.detach()) < 0  # lower than at θ̃


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": CrossEntropy(label_smoothing=0.1)}, "proximal Bregman response is known for"),
        ({"loss": "huber"}, "not for huber"),
        ({"damping": 0.0}, "damping"),
        ({"share": 0.0}, "share"),
        ({"share": 1.5}, "share must be at most 1"),
        ({"idx": [N]}, "index"),
        ({"kernel": "fast"}, "kernel must be"),
    ],
)
def test_what_cannot_be_done_is_refused(change: dict, message: str):
    base, start = built("squared_error" if change.get("loss") == "huber" else "cross_entropy")
    objective = base
    if "loss" in change:
        net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        objective = Objective(net, change["loss"], base.inputs, base.targets, L2)
    with pytest.raises(DataError, match=message):
        proximal_responses(
            objective,
            start,
            torch.tensor(change.get("idx", [0])),
            change.get("damping", DELTA),
            share=change.get("share", 1.0),
            kernel=change.get("kernel", "auto"),
        )
