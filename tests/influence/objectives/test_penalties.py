"""Weight decay by parameter group: everything that λ enters, against dense float64 by autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from influence import (
    CG,
    Damped,
    DataError,
    Exact,
    GaussNewton,
    Hessian,
    Influence,
    LinearObjective,
    Objective,
    fit,
    leave_groups_out,
    leave_one_out,
    network_objective,
    self_influence,
    up_loss,
)
from influence.objectives.sequential import SequentialObjective
from influence.retraining.stationary import WeightedNet
from influence.score_files import stream_scores

N, D, C = 40, 4, 3
DECAY = {"0.*": 0.03, "2.weight": 0.2, "2.bias": 0.01}


def data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(N, D, generator=g, dtype=torch.float64)
    y = torch.randint(C, (N,), generator=g)
    y[:C] = torch.arange(C)
    return x, y


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, 3), nn.Tanh(), nn.Linear(3, C)).double()


def decay_vector() -> Tensor:
    """λ of every coordinate of θ, written out."""
    return torch.cat(
        [
            torch.full((3 * D + 3,), 0.03, dtype=torch.float64),
            torch.full((C * 3,), 0.2, dtype=torch.float64),
            torch.full((C,), 0.01, dtype=torch.float64),
        ]
    )


def oracle(theta: Tensor, keep: Tensor | None = None) -> Tensor:
    x, y = data()
    shapes = [w.shape for w in net().parameters()]
    parts = [
        part.reshape(shape)
        for part, shape in zip(theta.split([s.numel() for s in shapes]), shapes, strict=True)
    ]
    o = torch.tanh(x @ parts[0].T + parts[1]) @ parts[2].T + parts[3]
    losses = nn.functional.cross_entropy(o, y, reduction="none")
    return (losses if keep is None else losses[keep]).mean() + 0.5 * (decay_vector() * theta**2).sum()


@pytest.fixture(params=["known layers", "any module"], scope="module")
def objective(request: pytest.FixtureRequest) -> Objective:
    made = (network_objective if request.param == "known layers" else Objective)(
        net(), "cross_entropy", *data(), DECAY
    )
    assert isinstance(made, SequentialObjective) is (request.param == "known layers")
    return made


@pytest.fixture(scope="module")
def theta(objective: Objective) -> Tensor:
    return fit(objective).theta


def test_value_gradient_and_hessian(objective: Objective) -> None:
    at = objective.initial() + 0.1
    thetas = torch.stack([at, 2 * at], dim=1)
    torch.testing.assert_close(objective.value(at), oracle(at))
    torch.testing.assert_close(objective.values(thetas), torch.stack([oracle(t) for t in thetas.T]))
    gradient = torch.autograd.functional.jacobian(oracle, at)
    torch.testing.assert_close(objective.gradient(at), gradient)
    torch.testing.assert_close(objective.gradients(thetas)[:, 0], gradient)
    H = torch.autograd.functional.hessian(oracle, at)
    torch.testing.assert_close(Hessian(objective, at).dense(), H)
    torch.testing.assert_close(objective.penalty_gradient(at), decay_vector() * at)
    unpenalised = Objective(net(), "cross_entropy", *data(), 0.0)
    G = GaussNewton(unpenalised, at).dense() + torch.diag(decay_vector())
    torch.testing.assert_close(GaussNewton(objective, at).dense(), G)
    sampled = torch.tensor([3, 3, 7])
    V = torch.eye(objective.p, dtype=torch.float64)
    part = unpenalised.hessian_product(at, V, sampled) + torch.diag(decay_vector())
    torch.testing.assert_close(objective.hessian_product(at, V, sampled), part)


@pytest.mark.parametrize("preconditioner", ["none", "jacobi", "ekfac", "kfac", "nystrom(rank=10)"])
def test_cg_with_every_preconditioner(objective: Objective, theta: Tensor, preconditioner: str) -> None:
    H = torch.autograd.functional.hessian(oracle, theta)
    B = torch.randn(objective.p, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    solver = CG(tolerance=1e-11, preconditioner=preconditioner, max_iterations=500)
    found = solver.solve(Hessian(objective, theta), B).value
    torch.testing.assert_close(found, torch.linalg.solve(H, B), rtol=1e-7, atol=1e-9)


def test_exact_scores_and_self_influence(objective: Objective, theta: Tensor) -> None:
    H = torch.autograd.functional.hessian(oracle, theta) + 0.01 * torch.eye(objective.p, dtype=torch.float64)
    operator = Damped(Hessian(objective, theta), 0.01)
    G = objective.example_gradients(theta)
    torch.testing.assert_close(
        self_influence(objective, theta, operator), (G * torch.linalg.solve(H, G.T).T).sum(1)
    )
    s = Exact().solve(operator, G[:2].T.contiguous()).value
    whole = G + decay_vector() * theta
    torch.testing.assert_close(up_loss(objective, theta, s), -whole @ torch.linalg.solve(H, G[:2].T))
    torch.testing.assert_close(up_loss(objective, theta, s, "loss"), -G @ torch.linalg.solve(H, G[:2].T))


def steepness(theta: Tensor, keep: Tensor, factor: float) -> float:
    """Gradient norm of the oracle without some examples, their mean loss times ``factor``."""

    def value(t: Tensor) -> Tensor:
        penalty = 0.5 * (decay_vector() * t**2).sum()
        return factor * (oracle(t, keep) - penalty) + penalty

    return float(torch.autograd.functional.jacobian(value, theta).norm())


@pytest.mark.parametrize("removal", ["objective", "loss"])
def test_retraining_ends_where_the_oracle_is_stationary(
    objective: Objective, theta: Tensor, removal: str
) -> None:
    one = leave_one_out(objective, theta, [5], tolerance=1e-10, removal=removal)
    some = leave_groups_out(objective, theta, [[1, 2, 3]], tolerance=1e-10, removal=removal)
    for found, gone in ((one, [5]), (some, [1, 2, 3])):
        keep = ~torch.isin(torch.arange(N), torch.tensor(gone))
        factor = 1.0 if removal == "objective" else (N - len(gone)) / N
        assert bool(found.converged.all())
        assert steepness(found.thetas[:, 0], keep, factor) < 1e-9
        assert steepness(theta, keep, factor) > 1e-4


def test_the_front_door_predicts_and_checks_it() -> None:
    x, y = data()
    front = Influence(net(), "cross_entropy", (x, y), DECAY).fitted()
    assert "l2 by parameter group, 0.01 to 0.2" in front.explain()
    check = front.check((x[:2], y[:2]), k=5)
    assert check.top.pearson.value > 0.95
    assert bool(check.models.converged.all())
    net_of = WeightedNet(front.objective, "torch")  # type: ignore[arg-type]
    torch.testing.assert_close(
        net_of.hessian(front.theta), torch.autograd.functional.hessian(oracle, front.theta)
    )


def test_a_number_with_a_rule_is_the_same_as_a_mapping() -> None:
    by_rule = Objective(net(), "cross_entropy", *data(), 0.1, l2_parameters="weights")
    by_name = Objective(net(), "cross_entropy", *data(), {"*.weight": 0.1, "*.bias": 0})
    at = by_rule.initial()
    torch.testing.assert_close(by_rule.gradient(at), by_name.gradient(at), rtol=0, atol=0)
    assert by_name.penalty_words() == by_rule.penalty_words() == "l2 0.1 on all but 6 parameters"
    none = Objective(net(), "cross_entropy", *data(), {"*": 0})
    assert none.l2 == 0
    assert not bool(none.penalty_gradient(at).any())


def test_scores_on_disk_know_the_decay(tmp_path: Any, objective: Objective, theta: Tensor) -> None:
    s = torch.ones(objective.p, 1, dtype=torch.float64)
    stream_scores(objective, theta, s, tmp_path)
    other = Objective(net(), "cross_entropy", *data(), DECAY | {"2.bias": 0.02})
    with pytest.raises(DataError, match="holds scores of other settings"):
        stream_scores(other, theta, s, tmp_path)


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(D, D, bias=False), nn.Linear(D, D, bias=False)
        self.decode.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(torch.tanh(self.encode(x)))


def test_a_tied_parameter_answers_to_each_of_its_names() -> None:
    x, _ = data()
    for name in ("encode.weight", "decode.weight"):
        made = Objective(Tied().double(), "squared_error", x, x, {name: 0.3})
        assert made.l2 == 0.3
        assert made.p == D * D
    with pytest.raises(DataError, match=r"encode\.weight is named by 'encode\.\*' and 'decode\.\*'"):
        Objective(Tied().double(), "squared_error", x, x, {"encode.*": 0.3, "decode.*": 0.2})


@pytest.mark.parametrize(
    ("l2", "settings", "said"),
    [
        ({"0.*": 0.1}, {}, r"2\.weight is named by no entry; the parameters are 0\.weight, 0\.bias"),
        ({"*": 0.1, "2.bias": 0}, {}, r"2\.bias is named by '\*' and '2\.bias'"),
        ({"*": 0.1, "head.*": 0}, {}, r"l2\['head\.\*'\] names no parameter of the model"),
        ({}, {}, r"0\.weight is named by no entry"),
        ({"*": -1.0}, {}, r"l2\['\*'\] must be finite and >= 0, got -1\.0"),
        ({"*": float("nan")}, {}, r"l2\['\*'\] must be finite"),
        ({"*": "much"}, {}, r"l2\['\*'\] must be finite and >= 0, got 'much'"),
        ({"*": True}, {}, r"l2\['\*'\] must be finite and >= 0, got True"),
        ({"*": 0.1}, {"l2_parameters": "weights"}, "leave l2_parameters out"),
        ("0.1x", {}, "l2 must be finite and >= 0, got '0.1x'"),
        ([0.1, 0.2], {}, r"l2 must be finite and >= 0, got \[0\.1, 0\.2\]"),
        (0.1, {"l2_parameters": 3}, "l2_parameters must be 'all', 'weights' or a callable, got int"),
    ],
)
def test_what_names_no_decay_is_one_sentence(l2: Any, settings: dict[str, Any], said: str) -> None:
    for build in (network_objective, Objective):
        with pytest.raises(DataError, match=said):
            build(net(), "cross_entropy", *data(), l2, **settings)


def test_frozen_parameters_and_linear_objectives_have_no_groups() -> None:
    model = net()
    model[0].requires_grad_(False)
    with pytest.raises(DataError, match=r"l2\['0\.\*'\] names frozen parameters only"):
        Objective(model, "cross_entropy", *data(), {"0.*": 0.1, "2.*": 0.1})
    assert Objective(model, "cross_entropy", *data(), {"*.weight": 0.1, "*.bias": 0.0}).p == 12
    with pytest.raises(DataError, match="l2 must be a finite number"):
        LinearObjective(*data(), "cross_entropy", {"*": 0.1})  # type: ignore[arg-type]
