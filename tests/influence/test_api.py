"""The front door gives the numbers of the calls below it, and says what it chose."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import influence.api
from influence import (
    CG,
    Damped,
    DataError,
    Exact,
    Hessian,
    Influence,
    LinearObjective,
    Objective,
    fit,
    removal_change,
    self_influence,
    test_gradients,
)


def data(n: int = 90, d: int = 5, c: int = 3, seed: int = 0, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    W = torch.randn(d, c, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, c, generator=generator, dtype=torch.float64)
    return x, (x @ W + spread * noise).argmax(1)


def net(d: int = 5, c: int = 3, width: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(d, width), nn.Tanh(), nn.Linear(width, c)).double()


@pytest.mark.parametrize("correction", ["first_order", "leverage"])
def test_scores_are_those_of_the_calls_below(correction: str) -> None:
    x, y = data()
    objective = LinearObjective(x[:80].numpy(), y[:80].numpy(), "cross_entropy", 0.02)
    theta = fit(objective).theta
    found = Influence(objective, theta=theta).influence_on(
        (x[80:].numpy(), y[80:].numpy()), k=4, correction=correction
    )
    operator = Hessian(objective, theta)
    tests = objective.on(x[80:].numpy(), y[80:].numpy())
    s = Exact().solve(operator, test_gradients(tests, theta, list(range(10)))).value
    expected = removal_change(objective, theta, s, correction=correction, operator=operator)
    assert found.changes is not None
    torch.testing.assert_close(found.changes, expected, rtol=1e-8, atol=1e-12)
    for j in range(10):
        order = expected[:, j].argsort(descending=True)
        assert found.helpful[j].indices == order[:4].tolist()
        assert found.harmful[j].indices == order.flip(0)[:4].tolist()
        assert all(value > 0 for value in found.helpful[j].values)
        assert all(value < 0 for value in found.harmful[j].values)


def test_many_test_points_keep_only_the_top_and_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = data()
    whole = Influence(net(), "cross_entropy", (x[:80], y[:80]), 0.05).fitted()
    every = whole.influence_on((x[80:], y[80:]), correction="first_order")
    monkeypatch.setattr(influence.api, "_NUMBERS", 70)  # seven training points at a time
    monkeypatch.setattr(influence.api, "_KEEP", 10)
    parts = whole.influence_on((x[80:], y[80:]), correction="first_order")
    assert parts.changes is None
    assert every.changes is not None
    assert [top.indices for top in parts.helpful] == [top.indices for top in every.helpful]
    assert [top.indices for top in parts.harmful] == [top.indices for top in every.harmful]


def test_a_trained_network_is_taken_as_it_is_and_checked_by_retraining() -> None:
    x, y = data()
    model = net()
    trained = Influence(model, "cross_entropy", (x[:80], y[:80]), 0.05).fitted()
    with torch.no_grad():
        torch.nn.utils.vector_to_parameters(trained.theta, model.parameters())
    influence_of = Influence(model, "cross_entropy", (x[:80], y[:80]), 0.05)
    torch.testing.assert_close(influence_of.theta, trained.theta)
    assert influence_of.gradient_norm < 1e-8
    assert influence_of.plan.damping == 0
    check = influence_of.check((x[80:], y[80:]), k=6)
    assert bool(check.models.converged.all())
    assert check.top.pearson.value > 0.95
    assert 0.7 < check.top.slope.value < 1.4


def test_a_network_away_from_a_minimum_is_damped_and_that_is_said() -> None:
    x, y = data()
    rough = Influence(net(), "cross_entropy", (x, y), 0.001)
    said = rough.explain()
    assert f"gradient norm at theta: {rough.gradient_norm:.3g}" in said
    assert rough.gradient_norm > 1e-3
    assert rough.plan.damping > 0
    assert "damped quadratic model" in said
    rough.influence_on((x[:1], y[:1]))  # positive definite: the factor exists
    wide = Influence(net(), "cross_entropy", (x, y), 0.001, curvature="gauss_newton", solver="cg")
    assert wide.plan.curvature == "Gauss-Newton"
    assert isinstance(wide.plan.solver, CG)
    assert wide.influence_on((x[:1], y[:1])).solution.status.value == "converged"


def test_what_is_given_is_used() -> None:
    x, y = data()
    given = Influence(
        net(), "cross_entropy", (x, y), 0.001, curvature="hessian", damping=2.5, solver=CG(tolerance=1e-6)
    )
    assert isinstance(given.plan.operator, Damped)
    assert given.plan.operator.damping == 2.5
    assert isinstance(given.plan.solver, CG)
    assert given.plan.solver.tolerance == 1e-6
    assert float(given.influence_on((x[:2], y[:2])).solution.residual.max()) <= 1e-6


def test_suspects_rank_a_flipped_label_first() -> None:
    x, y = data(n=120, spread=0.1)
    sure = (x @ torch.linalg.lstsq(x, nn.functional.one_hot(y).double()).solution).amax(1).argmax()
    y[sure] = (y[sure] + 1) % 3
    found = Influence(net(), "cross_entropy", (x, y), 0.02).fitted()
    suspects = found.suspects()
    assert suspects.top(1).indices == [int(sure)]
    expected = self_influence(found.objective, found.theta, found.plan.operator)
    torch.testing.assert_close(suspects.self_influence, expected)
    assert bool((suspects.left_out_loss >= suspects.loss - 1e-9).all())
    with pytest.raises(DataError, match="by must be one of"):
        suspects.top(3, by="residual")


def test_a_group_is_more_than_its_sum() -> None:
    x, y = data()
    found = Influence(net(width=3), "cross_entropy", (x[:80], y[:80]), 0.05).fitted()
    effect = found.of_group(range(12), (x[80:], y[80:]))
    assert effect.change.shape == effect.summed.shape == (10,)
    with pytest.raises(DataError):
        found.of_group([], (x[80:], y[80:]))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"curvature": "fisher"}, "curvature must be one of auto, hessian, gauss_newton"),
        ({"damping": -1.0}, "damping"),
        ({"damping": float("nan")}, "damping"),
        ({"damping": "some"}, "damping must be a number >= 0 or 'auto'"),
        ({"solver": "gmres"}, "solver must be one of auto, exact, cg"),
    ],
)
def test_wrong_choices_are_one_sentence(settings: dict[str, object], said: str) -> None:
    x, y = data()
    with pytest.raises(DataError, match=said):
        Influence(net(), "cross_entropy", (x, y), 0.01, **settings)


def test_an_objective_comes_alone_and_a_model_does_not() -> None:
    x, y = data()
    objective = Objective(net(), "cross_entropy", x, y, 0.01)
    with pytest.raises(DataError, match="pass it alone"):
        Influence(objective, "cross_entropy", (x, y))
    with pytest.raises(DataError, match="pass a loss and the training data"):
        Influence(net())
    with pytest.raises(DataError, match=r"must be a torch\.nn\.Module"):
        Influence("model", "cross_entropy", (x, y))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="k must be"):
        Influence(objective).influence_on((x[:1], y[:1]), k=0)


class Siamese(nn.Module):
    """Two inputs and an output that is a mapping, as in libraries of language models."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(torch.tanh(self.body(left) - self.body(right)))}


def test_data_come_as_loaders_and_models_take_several_inputs() -> None:
    x, y = data()
    whole = Influence(net(), "cross_entropy", (x, y), 0.05)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16)
    read = Influence(net(), "cross_entropy", loader, 0.05)
    torch.testing.assert_close(read.objective.gradient(read.theta), whole.objective.gradient(whole.theta))
    shuffled = torch.utils.data.DataLoader(loader.dataset, batch_size=16, shuffle=True)
    with pytest.raises(DataError, match="shuffle"):
        Influence(net(), "cross_entropy", shuffled, 0.05)
    torch.manual_seed(0)
    model, pair = Siamese().double(), (x, x.flip(0))
    found = Influence(model, "cross_entropy", (pair, y), 0.05).fitted()
    answer = found.influence_on(((x[:2], x[:2].flip(1)), y[:2]), k=2)
    assert answer.solution.status.value == "converged"
    assert len(answer.helpful) == 2
