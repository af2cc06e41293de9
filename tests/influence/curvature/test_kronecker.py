"""Kronecker factors against the dense Gauss-Newton matrix, layer by layer."""

import pytest
import torch
from torch import nn

from influence import GaussNewton, LinearObjective, Objective
from influence.curvature.kronecker import kronecker_factors
from influence.curvature.kronecker_layers import Diagonal, Rotated
from influence.errors import DataError


class Tokens(nn.Module):
    """Token ids through an embedding with repeated tokens, a norm and a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.embed(x))).mean(1))


class Shared(nn.Module):
    """One layer called twice, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        for _ in range(2):
            x = nn.functional.relu(self.layer(x), inplace=True)
        return self.head(x)


NETS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), (5,)),
    "conv": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1, stride=2),
            nn.BatchNorm2d(3),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(12, 3),
        ),
        (2, 4, 4),
    ),
    "conv1d": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 3, 3), nn.GroupNorm(1, 3), nn.Tanh(), nn.Flatten(), nn.Linear(9, 3)
        ),
        (2, 5),
    ),
    "tokens": (Tokens, None),
    "shared": (Shared, (5,)),
    "grouped": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)),
        (2, 4, 4),
    ),
}


def problem(name: str, n: int = 20) -> tuple[Objective, torch.Tensor]:
    torch.manual_seed(0)
    make, shape = NETS[name]
    x = torch.randint(7, (n, 5)) if shape is None else torch.randn(n, *shape, dtype=torch.float64)
    net = make().double().eval()
    o = Objective(
        net,
        "cross_entropy",
        x,
        torch.arange(n) % 3,
        0.02,
        l2_parameters="weights",
        batch_size=8,
        dtype=torch.float64,
    )
    return o, o.initial()


@pytest.mark.parametrize("name", NETS)
def test_ekfac_has_the_true_curvature_along_its_own_directions(name):
    """What EK-FAC promises: in the eigenbasis of its factors the diagonal is that of the true matrix."""
    o, theta = problem(name)
    true = GaussNewton(o, theta).dense() - o.l2 * torch.diag(o.l2_mask)
    factors = kronecker_factors(o, theta)
    seen = torch.zeros(o.p, dtype=torch.long)
    for block in factors.blocks:
        place = block.index.reshape(-1)
        seen[place] += 1
        if isinstance(block, Diagonal):
            exact = name != "grouped"  # a grouped convolution's diagonal is an estimate
            error = (true.diagonal()[place] - block.values).abs().max() / block.values.max()
            assert float(error) < (1e-9 if exact else 3.0)
            assert bool((block.values >= 0).all())
            continue
        assert isinstance(block, Rotated)
        right = torch.eye(block.values.shape[1]).double() if block.right is None else block.right
        U = torch.kron(block.left.contiguous(), right.contiguous())
        torch.testing.assert_close((U.T @ true[place][:, place] @ U).diagonal(), block.values.reshape(-1))
    assert bool((seen == 1).all())  # every parameter once


@pytest.mark.parametrize("corrected", [False, True])
def test_the_inverse_is_that_of_the_product(corrected):
    o, theta = problem("conv")
    factors = kronecker_factors(o, theta, corrected=corrected)
    eye = torch.eye(o.p, dtype=torch.float64)
    # The penalty is a layer's mean in the inverse, so it is compared where every parameter has the same.
    uniform = type(factors)(factors.blocks, torch.full_like(factors.penalty, 0.02))
    product = uniform.product(eye) + 0.1 * eye
    torch.testing.assert_close(product @ uniform.inverse(0.1)(eye), eye, rtol=0, atol=1e-9)
    torch.testing.assert_close(product, product.T)


def test_kfac_is_near_the_truth_and_ekfac_nearer():
    o, theta = problem("mlp", n=60)
    true = GaussNewton(o, theta).dense()
    eye = torch.eye(o.p, dtype=torch.float64)
    kfac, ekfac = (
        float((kronecker_factors(o, theta, corrected=c).product(eye) - true).norm() / true.norm())
        for c in (False, True)
    )
    assert ekfac < kfac < 1


def test_parts_and_seeds():
    o, theta = problem("grouped")
    V = torch.ones(o.p, 1, dtype=torch.float64)
    same = [kronecker_factors(o, theta, seed=s).product(V) for s in (0, 0, 1)]
    assert torch.equal(same[0], same[1])
    assert not torch.equal(same[0], same[2])
    part = kronecker_factors(o, theta, torch.arange(0, 20, 2)).product(V)
    spaced = kronecker_factors(o, theta, examples=10).product(V)
    torch.testing.assert_close(part, spaced)


def test_objectives_without_a_module_are_refused():
    o = LinearObjective(torch.randn(6, 2), torch.arange(6) % 2, "cross_entropy", 0.1)
    with pytest.raises(DataError, match=r"use Kronecker\(\)"):
        kronecker_factors(o, o.initial())
