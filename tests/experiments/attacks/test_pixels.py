"""Influence down to the pixels against real retraining; the batched ranking; the step that stays unseen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from experiments.attacks import pixels as attack
from experiments.data.embedded import load_digit_pairs
from experiments.models import backbones
from influence.curvature.operators import Hessian
from influence.objectives.linear import LinearObjective
from influence.scores import s_test, test_gradients
from influence.solvers import Exact
from influence.training import fit

N = 40


@pytest.fixture(scope="module")
def setting():
    """Two digits, a random float64 network, a converged top layer and s_test of one test image."""
    data = load_digit_pairs(train_per_class=N // 2, test_per_class=5)
    backbone = backbones.load("random_conv", size=32, batch=7, dtype=torch.float64)

    def features(x: np.ndarray) -> torch.Tensor:
        return backbone(backbone.images(x)).detach()

    y, y_test = (torch.as_tensor(split.y * 2.0 - 1) for split in (data.train, data.test))
    objective = LinearObjective(features(data.train.X), y, "logistic", 0.01)
    theta = fit(objective, tolerance=1e-13).theta
    test = objective.on(features(data.test.X), y_test)
    solved = s_test(Hessian(objective, theta), Exact(), test_gradients(test, theta, [2]))
    return data, backbone, objective, theta, test, solved.value[:, 0]


@pytest.mark.parametrize("position", [0, 11, 29])
def test_pixel_influence_predicts_retraining_on_the_changed_image(setting, position: int) -> None:
    data, backbone, objective, theta, test, s = setting
    idx = torch.tensor([position])
    image = backbone.images(data.train.X[idx.numpy()])
    gradient = attack.pixel_influence(backbone, objective, theta, s, image, idx)
    direction = gradient.sign()

    def loss(size: float) -> float:
        X = objective.X.dense().clone()
        X[position] = backbone(image + size * direction)[0]
        moved = LinearObjective(X, objective.targets, "logistic", objective.l2)
        return float(test.example_losses(fit(moved, theta, tolerance=1e-13).theta, torch.tensor([2]))[0])

    h = 0.05  # of an 8-bit step
    change = (loss(h) - loss(-h)) / (2 * h)
    assert change == pytest.approx(float((gradient * direction).sum()) / N, rel=1e-3)


def test_the_batched_ranking_equals_one_image_at_a_time(setting) -> None:
    data, backbone, objective, theta, _, s = setting
    order, norms = attack.rank(backbone, objective, theta, s, data.train.X)
    alone = torch.stack([
        attack.pixel_influence(
            backbone, objective, theta, s, backbone.images(data.train.X[i : i + 1]), torch.tensor([i])
        ).abs().sum()
        for i in range(N)
    ])  # fmt: skip
    torch.testing.assert_close(norms, alone[order], rtol=1e-10, atol=0)
    assert bool((norms[:-1] >= norms[1:]).all())


def test_screening_keeps_the_leaders_and_their_norms(setting) -> None:
    data, backbone, objective, theta, _, s = setting
    order, norms = attack.rank(backbone, objective, theta, s, data.train.X)
    some, their_norms = attack.rank(backbone, objective, theta, s, data.train.X, screened=20)
    assert some[0] == order[0]
    where = [int((order == i).nonzero()[0, 0]) for i in some]
    torch.testing.assert_close(their_norms, norms[where], rtol=1e-10, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_leave_the_stored_image_byte_identical(setting, dtype: torch.dtype) -> None:
    data = setting[0]
    images = np.concatenate([data.train.X[:2], np.full((1, 32, 32, 3), 255, np.uint8)])
    backbone = backbones.load("random_conv", size=32, dtype=dtype)
    originals = backbone.images(images)
    x, generator = originals.clone(), torch.Generator().manual_seed(0)
    up = torch.randn(x.shape, generator=generator, dtype=dtype)
    for _ in range(40):  # 0.02 of a step each: the box is reached after 25
        x = attack.step(x, originals, up, 0.02)
    assert 0.49 < float((x - originals).abs().max()) < 0.5
    assert float(x.min()) >= 0
    assert float(x.max()) <= 255
    np.testing.assert_array_equal(attack.stored(x), images)
