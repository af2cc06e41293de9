"""Losses against autograd, and at the edges where a naive formula overflows."""

from __future__ import annotations

import math

import pytest
import torch

from influence import DataError, get_loss

SETTINGS = [
    ("cross_entropy", {}),
    ("logistic", {}),
    ("smooth_hinge", {"temperature": 1.0}),
    ("smooth_hinge", {"temperature": 0.1}),
]


def batch(name: str, n: int = 12, c: int = 5):
    g = torch.Generator().manual_seed(0)
    if name == "cross_entropy":
        return torch.randn(n, c, generator=g, dtype=torch.float64), torch.arange(n) % c
    return torch.randn(n, 1, generator=g, dtype=torch.float64) * 2, torch.tensor([-1.0, 1.0] * (n // 2))


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_derivatives_match_autograd(name, settings):
    loss = get_loss(name, **settings)
    outputs, targets = batch(name)
    for i in range(len(outputs)):
        row, y = outputs[i], targets[i : i + 1]

        def value(o, y=y):
            return loss.values(o[None], y)[0]

        gradient = torch.autograd.functional.jacobian(value, row)
        hessian = torch.autograd.functional.hessian(value, row)
        torch.testing.assert_close(loss.output_gradient(row[None], y)[0], gradient, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(loss.output_hessian(row[None], y)[0], hessian, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
@pytest.mark.parametrize("k", [1, 3])
def test_hessian_forms_agree(name, settings, k):
    loss = get_loss(name, **settings)
    outputs, targets = batch(name)
    n, c = outputs.shape
    u = torch.randn(n, c, k, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    dense = torch.einsum("nab,nbk->nak", loss.output_hessian(outputs, targets), u)
    torch.testing.assert_close(loss.output_hessian_product(outputs, targets, u), dense)
    prepared = loss.prepared_hessian_product(outputs, targets)(u.transpose(1, 2))
    torch.testing.assert_close(prepared.transpose(1, 2), dense)
    root = loss.output_hessian_sqrt(outputs, targets)
    torch.testing.assert_close(root @ root.transpose(1, 2), loss.output_hessian(outputs, targets))
    Q = loss.output_range(c, outputs)
    torch.testing.assert_close(Q.T @ Q, torch.eye(Q.shape[1], dtype=torch.float64))
    gradient = loss.output_gradient(outputs, targets)
    torch.testing.assert_close(gradient @ Q @ Q.T, gradient)


@pytest.mark.parametrize("temperature", [1e-3, 1e-2, 1.0])
@pytest.mark.parametrize("score", [-1e6, -30.0, 0.0, 1.0 - 1e-9, 1.0, 1.0 + 1e-9, 30.0, 1e6])
def test_smooth_hinge_never_overflows(temperature, score):
    loss = get_loss("smooth_hinge", temperature=temperature)
    outputs, y = torch.tensor([[score]], dtype=torch.float64), torch.tensor([1.0])
    value = loss.values(outputs, y).item()
    hinge = max(0.0, 1 - score)
    assert hinge <= value <= hinge + temperature * math.log(2) * (1 + 1e-12)
    for derived in (loss.output_gradient(outputs, y), loss.output_hessian(outputs, y)):
        assert bool(torch.isfinite(derived).all())
    assert -1 <= loss.output_gradient(outputs, y).item() <= 0


def test_smooth_hinge_at_zero_temperature_is_the_hinge():
    smooth, hinge = get_loss("smooth_hinge", temperature=0), get_loss("hinge")
    outputs = torch.tensor([[-2.0], [0.999], [1.0], [1.5]], dtype=torch.float64)
    y = torch.ones(4)
    for call in ("values", "output_gradient", "output_hessian"):
        torch.testing.assert_close(getattr(smooth, call)(outputs, y), getattr(hinge, call)(outputs, y))
    assert hinge.output_hessian(outputs, y).abs().sum() == 0
    assert hinge.output_gradient(outputs, y)[:, 0].tolist() == [-1, -1, 0, 0]


@pytest.mark.parametrize("margin", [-800.0, 800.0])
def test_logistic_is_exact_far_out(margin):
    loss = get_loss("logistic")
    value = loss.values(torch.tensor([[margin]], dtype=torch.float64), torch.tensor([1.0])).item()
    assert value == pytest.approx(max(0.0, -margin), abs=1e-300)


@pytest.mark.parametrize(
    ("name", "targets", "says"),
    [
        ("logistic", torch.tensor([0, 1, 1]), "2\\*y - 1"),
        ("logistic", torch.tensor([1, 1, 1]), "one class is empty"),
        ("logistic", torch.tensor([1]), "at least 2"),
        ("cross_entropy", torch.tensor([0, 1, 3]), "0…2"),
        ("cross_entropy", torch.tensor([-1, 1, 2]), "0…2"),
        ("cross_entropy", torch.tensor([0.0, 1.0]), "integer"),
    ],
)
def test_bad_targets_are_named(name, targets, says):
    with pytest.raises(DataError, match=says):
        get_loss(name).check_targets(targets, 1 if name == "logistic" else 3)


def test_unknown_loss_lists_the_known_ones():
    with pytest.raises(DataError, match="cross_entropy, hinge, logistic, smooth_hinge"):
        get_loss("squared")
    with pytest.raises(DataError, match="temperature"):
        get_loss("smooth_hinge", sharpness=1.0)
