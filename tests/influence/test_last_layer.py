"""The last layer in closed form equals the same layer as a module with everything else frozen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from influence import DataError, Objective
from influence.last_layer import last_layer


def network(bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 5), nn.Tanh(),
        nn.Linear(5, 3, bias=bias),
    ).double()  # fmt: skip


def data(n: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 1, 4, 4, generator=generator, dtype=torch.float64), torch.arange(n) % 3


@pytest.mark.parametrize(("bias", "rule"), [(True, "weights"), (True, "all"), (False, "weights")])
def test_derivatives_are_those_of_the_network_with_the_rest_frozen(bias: bool, rule: str) -> None:
    model, (x, y) = network(bias).train(), data()
    found = last_layer(model, x, y, "cross_entropy", 0.05, l2_parameters=rule, batch_size=7)
    assert model.training
    frozen = network(bias).eval()
    for name, parameter in frozen.named_parameters():
        parameter.requires_grad_(name.startswith("6."))
    whole = Objective(frozen, "cross_entropy", x, y, 0.05, l2_parameters=rule)
    assert found.objective.p == whole.p
    theta = whole.initial()
    assert float(found.objective.value(found.theta)) == pytest.approx(float(whole.value(theta)), rel=1e-10)
    ours, theirs = found.objective.gradient(found.theta), whole.gradient(theta)
    assert float(ours.norm()) == pytest.approx(float(theirs.norm()), rel=1e-9)
    answer = found.fitted().influence_on((x[:2], y[:2]), k=3)
    assert answer.solution.status.value == "converged"
    assert found.check((x[:2], y[:2]), k=5).top.pearson.value > 0.99
    assert "only 6 is retrained" in found.explain()


def test_a_data_loader_gives_the_same() -> None:
    x, y = data()
    loader = DataLoader(TensorDataset(x, y), batch_size=11)
    one = last_layer(network(), loader, None, "cross_entropy", 0.05)
    other = last_layer(network(), x, y, "cross_entropy", 0.05)
    torch.testing.assert_close(one.objective.gradient(one.theta), other.objective.gradient(other.theta))
    shuffled = DataLoader(TensorDataset(x, y), batch_size=11, shuffle=True)
    with pytest.raises(DataError, match="shuffles or drops"):
        last_layer(network(), shuffled, None, "cross_entropy", 0.05)


def test_what_is_no_last_layer_is_one_sentence() -> None:
    x, y = data()
    with pytest.raises(DataError, match="not the last layer"):
        last_layer(network(), x, y, "cross_entropy", 0.05, layer="4")
    with pytest.raises(DataError, match="not the last layer"):
        last_layer(nn.Sequential(network(), nn.LogSoftmax(1)), x, y, "cross_entropy", 0.05)
    with pytest.raises(DataError, match="there are 4, 6"):
        last_layer(network(), x, y, "cross_entropy", 0.05, layer="head")
    with pytest.raises(DataError, match=r"has no nn\.Linear"):
        last_layer(nn.Conv2d(1, 1, 1), x, y, "cross_entropy", 0.05)
    with pytest.raises(DataError, match="it needs one vector"):
        last_layer(nn.Linear(4, 3).double(), x, y, "cross_entropy", 0.05)
    with pytest.raises(DataError, match="l2_parameters"):
        last_layer(network(), x, y, "cross_entropy", 0.05, l2_parameters="some")
