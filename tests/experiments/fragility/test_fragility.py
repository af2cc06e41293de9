"""Nets side by side are the library's nets, and influence is right at a minimum and not before it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.fragility.experiment import check
from experiments.fragility.nets import Shape, adam, gradients, hessian, kink, leave_out, newton
from experiments.fragility.predictions import objective_of, positive, without
from experiments.records.errors import ConfigError
from experiments.records.record import Record
from experiments.suite.job import execute
from influence.curvature.operators import Hessian
from tests.experiments.test_configs import composed

SMALL = (
    *("experiment=fragility", "tracking=none", "experiment.depths=[1]", "experiment.widths=[3]"),
    *("experiment.decays=[0.01]", "experiment.removed=6", "experiment.steps=80"),
)


def problem(activation: str) -> tuple[Shape, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    X = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    return Shape(4, 3, 2, 5, activation), X, torch.randint(0, 3, (30,), generator=generator)


@pytest.mark.parametrize("activation", ["tanh", "selu"])
def test_derivatives_are_those_of_the_library_s_objective(activation: str) -> None:
    shape, X, y = problem(activation)
    objective = objective_of(shape, 1, X, y, 0.02)
    theta = objective.initial()
    ones = torch.ones(1, 30, dtype=torch.float64)
    torch.testing.assert_close(gradients(shape, theta[None], X, y, ones, 0.02)[0], objective.gradient(theta))
    torch.testing.assert_close(hessian(shape, theta, X, y, 0.02), Hessian(objective, theta).dense())
    assert shape.last == 3 * 6


def test_leaving_out_ends_at_the_minimum_without_the_point() -> None:
    shape, X, y = problem("tanh")
    objective = objective_of(shape, 1, X, y, 0.05)
    theta, norm = newton(shape, objective.initial(), X, y, 0.05, 1e-9, 100)
    assert norm <= 1e-9
    assert float(objective.gradient(theta).norm()) <= 1e-8
    inverse = torch.linalg.inv(positive(hessian(shape, theta, X, y, 0.05))[0])
    weights = without(torch.tensor([4, 7]), 30)
    thetas, norms = leave_out(shape, theta, X, y, weights, 0.05, inverse, 1e-8, 60)
    assert float(norms.max()) <= 1e-8
    kept = torch.tensor([i for i in range(30) if i != 4])
    left = objective.subset(kept)
    left.l2 = 0.05 * 30 / 29  # the same minimum: (1/n) of the others
    assert float(left.gradient(thetas[0]).norm()) <= 1e-7
    assert float((thetas[0] - theta).norm()) > 1e-4


def test_minima_of_selu_nets_lie_at_kinks_and_the_search_gives_up() -> None:
    """A unit's input is 0 for some point there, and the gradient does not vanish: no influence there."""
    shape, X, y = problem("selu")
    ones = torch.ones(1, 30, dtype=torch.float64)
    start = adam(shape, objective_of(shape, 1, X, y, 0.02).initial(), X, y, ones, 0.02, 300, 0.01)[0]
    theta, norm = newton(shape, start, X, y, 0.02, 1e-6, 100_000)
    assert norm > 1e-3
    assert kink(shape, theta, X) < 1e-5 < kink(shape, start, X)
    smooth, X, y = problem("tanh")
    start = adam(smooth, objective_of(smooth, 1, X, y, 0.02).initial(), X, y, ones, 0.02, 300, 0.01)[0]
    assert newton(smooth, start, X, y, 0.02, 1e-6, 1000)[1] <= 1e-6


def test_convergence_decides(tmp_path: Path) -> None:
    by = Record.load(execute(composed(*SMALL, f"output={tmp_path / 'run'}"))).metrics["by"]
    assert by["converged"]["full"]["decayed"]["all"] > 0.9
    assert by["stopped"]["full"]["decayed"]["all"] < by["converged"]["full"]["decayed"]["all"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("experiment.activations=[relu]", "choose from tanh, selu"),
        ("experiment.depths=[2,2]", "each once"),
        ("experiment.removed=999", "there are 120"),
    ],
)
def test_settings_that_say_nothing_are_refused(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check(composed(*SMALL, override).experiment, 120)
