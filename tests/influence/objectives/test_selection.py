"""Parameters chosen by name, pattern, rule or place: θ is theirs, the rest of the module stays as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from influence import DataError, Hessian, Influence, Objective, network_objective
from influence.objectives.sequential import SequentialObjective

D, C, N = 4, 3, 30


def data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    y = torch.randint(C, (N,), generator=g)
    y[:C] = torch.arange(C)
    return torch.randn(N, D, generator=g, dtype=torch.float64), y


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, 3), nn.Tanh(), nn.Linear(3, C)).double()


CHOSEN: list[tuple[Any, list[str]]] = [
    ("last", ["2.weight", "2.bias"]),
    ("2.*", ["2.weight", "2.bias"]),
    ("*.weight", ["0.weight", "2.weight"]),
    (["0.bias", "2.b*"], ["0.bias", "2.bias"]),
    (lambda name, w: w.ndim == 1, ["0.bias", "2.bias"]),
    ("*", ["0.weight", "0.bias", "2.weight", "2.bias"]),
]


@pytest.mark.parametrize(("chosen", "names"), CHOSEN)
@pytest.mark.parametrize("build", [network_objective, Objective])
def test_theta_is_the_chosen_part_and_its_hessian_a_block(build: Any, chosen: Any, names: list[str]) -> None:
    x, y = data()
    model = net()
    part = build(model, "cross_entropy", x, y, 0.1, parameters=chosen)
    assert [piece.name for piece in part.network.pieces] == names
    assert all(w.requires_grad for w in model.parameters())  # the person's module is not touched
    whole = Objective(net(), "cross_entropy", x, y, 0.1)
    places, start = [], 0
    for piece in whole.network.pieces:
        places += list(range(start, start + piece.size)) if piece.name in names else []
        start += piece.size
    at = whole.initial()
    torch.testing.assert_close(part.initial(), at[places], rtol=0, atol=0)
    H = Hessian(whole, at).dense()[places][:, places]
    torch.testing.assert_close(Hessian(part, part.initial()).dense(), H)
    torch.testing.assert_close(part.gradient(part.initial()), whole.gradient(at)[places])
    torch.testing.assert_close(part.vector(model), at[places])
    assert part.vector(model.state_dict()).shape == (part.p,)


def test_all_of_a_net_of_known_layers_keeps_its_fast_path() -> None:
    x, y = data()
    assert isinstance(
        network_objective(net(), "cross_entropy", x, y, 0.1, parameters="*"), SequentialObjective
    )


def test_a_frozen_parameter_may_be_chosen_and_explain_names_the_rest() -> None:
    x, y = data()
    model = net()
    model.requires_grad_(False)
    front = Influence(model, "cross_entropy", (x, y), 0.1, parameters="last").fitted()
    assert "held fixed: 15 of 27 parameters (0.weight, 0.bias)" in front.explain()
    retrained = front.objective.module(front.theta)  # type: ignore[attr-defined]
    torch.testing.assert_close(retrained[0].weight, model[0].weight, rtol=0, atol=0)
    check = front.check((x[:1], y[:1]), k=5)
    assert check.top.pearson.value > 0.98
    assert "held fixed" not in Influence(net(), "cross_entropy", (x, y), 0.1).explain()


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ("head.*", r"parameters: 'head\.\*' names none of the model's: 0\.weight, 0\.bias"),
        (["0.*", "1.*"], r"'1\.\*' names none"),
        ([], "chooses none of the model's 4"),
        (lambda name, w: False, "chooses none of the model's 4"),
        (3, r"a rule \(name, parameter\) -> bool, got 3"),
        ([0], r"a rule \(name, parameter\) -> bool, got \[0\]"),
    ],
)
def test_a_choice_of_nothing_is_one_sentence(chosen: Any, said: str) -> None:
    for build in (network_objective, Objective):
        with pytest.raises(DataError, match=said):
            build(net(), "cross_entropy", *data(), 0.1, parameters=chosen)
