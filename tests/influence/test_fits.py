"""A Fit stands for its parameters wherever θ is taken, and a Solution for its value in a right-hand side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from influence import (
    CG,
    Exact,
    Fit,
    GaussNewton,
    Hessian,
    Influence,
    LinearObjective,
    fit,
    group_change,
    leave_groups_out,
    leave_one_out,
    network_objective,
    pert_loss,
    pert_params,
    removal_change,
    self_influence,
    test_gradients,
    up_loss,
    up_params,
    verified_self_influence,
)
from influence.evaluation.retraining import check_by_retraining, train_on_subsets
from influence.objectives._base import TrainingObjective
from influence.objectives.streaming import ArraySource, stream
from influence.score_files import stream_scores
from influence.scores import mean_test_gradient


def data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(24, 3, generator=g, dtype=torch.float64), torch.arange(24) % 3


@pytest.fixture(scope="module", params=["linear", "network", "streamed"])
def fitted(request: pytest.FixtureRequest) -> tuple[TrainingObjective, Fit]:
    x, y = data()
    if request.param == "network":
        objective: TrainingObjective = network_objective(nn.Linear(3, 3).double(), "cross_entropy", x, y, 0.1)
    else:
        objective = LinearObjective(x, y, "cross_entropy", 0.1)
    found = fit(objective)
    if request.param == "streamed":
        objective = stream(objective, ArraySource(x.numpy(), y.numpy()), 10)
    return objective, found


def _s(o: TrainingObjective) -> Tensor:
    return torch.ones(o.p, 2, dtype=o.dtype)


TAKERS: dict[str, Callable[[Any, Any], Any]] = {
    "value": lambda o, t: o.value(t),
    "gradient": lambda o, t: o.gradient(t),
    "outputs": lambda o, t: o.outputs(t),
    "losses": lambda o, t: o.example_losses(t),
    "example gradients": lambda o, t: o.example_gradients(t),
    "directional": lambda o, t: o.directional(t, _s(o)),
    "hessian product": lambda o, t: o.hessian_product(t, _s(o)),
    "mixed": lambda o, t: o.mixed(t, _s(o)),
    "hessian": lambda o, t: Hessian(o, t) @ _s(o),
    "gauss newton": lambda o, t: GaussNewton(o, t) @ _s(o),
    "front door": lambda o, t: Influence(o, theta=t).theta,
    "fit": lambda o, t: fit(o, t).theta,
    "test gradients": lambda o, t: test_gradients(o, t, [1]),
    "mean gradient": lambda o, t: mean_test_gradient(o, t),
    "up_params": lambda o, t: up_params(o, t, Hessian(o, t), Exact(), [1]),
    "up_loss": lambda o, t: up_loss(o, t, _s(o)),
    "removal_change": lambda o, t: removal_change(o, t, _s(o)),
    "leverage": lambda o, t: removal_change(o, t, _s(o), correction="leverage"),
    "pert_loss": lambda o, t: pert_loss(o, t, _s(o)),
    "pert_params": lambda o, t: pert_params(o, t, Hessian(o, t), Exact(), 0, torch.ones(3).double()),
    "self_influence": lambda o, t: self_influence(o, t, Hessian(o, t)),
    "self_influence, leverage": lambda o, t: self_influence(o, t, Hessian(o, t), correction="leverage"),
    "verified": lambda o, t: verified_self_influence(o, t, Hessian(o, t)).value,
    "group sum": lambda o, t: group_change(o, t, [0, 1], o.on(*data()), method="sum"),
    "group newton": lambda o, t: group_change(o, t, [0, 1], o.on(*data())),
    "leave_one_out": lambda o, t: leave_one_out(o, t, [3]).thetas,
    "leave_groups_out": lambda o, t: leave_groups_out(o, t, [[3, 4]]).thetas,
    "check": lambda o, t: check_by_retraining(o, t, o.on(*data()), 0, torch.arange(24) / 24, 3, 3).actual,
    "subsets": lambda o, t: train_on_subsets(o, t, o.on(*data()), masks=3).losses,
}


@pytest.mark.parametrize("name", TAKERS)
def test_a_fit_is_taken_for_its_parameters(name: str, fitted: tuple[TrainingObjective, Fit]) -> None:
    objective, found = fitted
    ours, expected = TAKERS[name](objective, found), TAKERS[name](objective, found.theta)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_scores_on_disk(fitted: tuple[TrainingObjective, Fit], tmp_path: Path) -> None:
    objective, found = fitted
    solution = Exact().solve(Hessian(objective, found), test_gradients(objective, found, [0, 1]))
    ours = stream_scores(objective, found, solution, tmp_path / "a")
    plain = stream_scores(objective, found.theta, solution.value, tmp_path / "b")
    assert [part.tolist() for part in ours.top(0, 5)] == [part.tolist() for part in plain.top(0, 5)]


def test_a_solution_is_a_right_hand_side(fitted: tuple[TrainingObjective, Fit]) -> None:
    objective, found = fitted
    operator = Hessian(objective, found)
    once = Exact().solve(operator, _s(objective))
    H = operator.dense()
    expected = torch.linalg.solve(H, torch.linalg.solve(H, _s(objective)))
    torch.testing.assert_close(Exact().solve(operator, once).value, expected)
    torch.testing.assert_close(CG(tolerance=1e-12).solve(operator, once).value, expected)
