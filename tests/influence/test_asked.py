"""What may be asked of a test point: every quantity against dense float64 and against retraining."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from influence import (
    CrossEntropy,
    DataError,
    Influence,
    LinearObjective,
    Logit,
    LogOdds,
    Margin,
    Output,
    Probability,
    fit,
    get_loss,
    last_layer,
)
from influence.objectives.module import Objective
from influence.objectives.streaming import ArraySource, stream

N, T, D, C = 60, 4, 5, 3


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(N + T, D, generator=g, dtype=torch.float64)
    W = torch.randn(D, C, generator=g, dtype=torch.float64)
    return x, (x @ W + torch.randn(N + T, C, generator=g, dtype=torch.float64)).argmax(1)


def net(hidden: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, hidden), nn.Tanh(), nn.Linear(hidden, C)).double()


def own(outputs: Tensor, targets: Tensor) -> Tensor:
    """A function of one's own: neither convex nor a loss."""
    return torch.sin(outputs[:, 0]) * outputs[:, 1] + outputs.square().sum(1).sqrt()


def margin(o: Tensor, y: Tensor) -> Tensor:
    rivals = o.clone()
    rivals[torch.arange(len(o)), y] = -torch.inf
    return o[torch.arange(len(o)), y] - rivals.max(1).values


ASKED: dict[str, tuple[Any, Callable[[Tensor, Tensor], Tensor]]] = {
    "loss": ("loss", lambda o, y: -torch.log_softmax(o, 1)[torch.arange(len(o)), y]),
    "margin": ("margin", margin),
    "margin of 2": (Margin(2), lambda o, y: margin(o, torch.full_like(y, 2))),
    "logit": ("logit", lambda o, y: o[torch.arange(len(o)), y]),
    "logit of 1": (Logit(1), lambda o, y: o[:, 1]),
    "probability": ("probability", lambda o, y: torch.softmax(o, 1)[torch.arange(len(o)), y]),
    "probability of 0": (Probability(0), lambda o, y: torch.softmax(o, 1)[:, 0]),
    "log_odds": ("log_odds", lambda o, y: torch.logit(torch.softmax(o, 1)[torch.arange(len(o)), y])),
    "log_odds of 1": (LogOdds(1), lambda o, y: torch.logit(torch.softmax(o, 1)[:, 1])),
    "output": (Output(2), lambda o, y: o[:, 2]),
    "function": (own, own),
    "another loss": (
        CrossEntropy(label_smoothing=0.2),
        lambda o, y: nn.functional.cross_entropy(o, y, label_smoothing=0.2, reduction="none"),
    ),
    "torch loss": (
        nn.CrossEntropyLoss(),
        lambda o, y: nn.functional.cross_entropy(o, y, reduction="none"),
    ),
}


def made(kind: str) -> tuple[Influence, Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """The front door, test points, and the outputs there as a function of θ, written without the library."""
    x, y = data()
    if kind == "linear":
        o = LinearObjective(x[:N], y[:N], "cross_entropy", 0.05)
        front = Influence(o, theta=fit(o).theta)
        return front, x[N:], y[N:], lambda t: x[N:] @ t.reshape(C, D).T
    if kind == "linear with intercept":
        o = LinearObjective(x[:N], y[:N], "cross_entropy", 0.05, intercept=True)
        front = Influence(o, theta=fit(o).theta)

        def affine(t: Tensor) -> Tensor:
            W = t.reshape(C, D + 1)
            return x[N:] @ W[:, :-1].T + W[:, -1]

        return front, x[N:], y[N:], affine
    model = (
        net()
        if kind == "sequential"
        else nn.Sequential(nn.Linear(D, 2), nn.Softsign(), nn.Linear(2, C)).double()
    )
    front = Influence(model, "cross_entropy", (x[:N], y[:N]), 0.05).fitted()
    assert (type(front.objective) is Objective) is (kind == "module")

    def outputs(t: Tensor) -> Tensor:
        return torch.func.functional_call(model, front.objective.unflatten(t), (x[N:],))  # type: ignore[attr-defined]

    return front, x[N:], y[N:], outputs


@pytest.fixture(scope="module", params=["linear", "linear with intercept", "sequential", "module"])
def case(request: pytest.FixtureRequest) -> tuple[Influence, Tensor, Tensor, Callable[[Tensor], Tensor]]:
    return made(request.param)


@pytest.mark.parametrize("name", ASKED)
def test_changes_are_those_of_a_dense_float64_computation(name: str, case: Any) -> None:
    front, x, y, outputs = case
    of, written = ASKED[name]
    theta = front.theta
    gradients = torch.autograd.functional.jacobian(lambda t: written(outputs(t), y), theta)  # (T, p)
    H = front.plan.operator.dense()
    each = front.objective.example_gradients(theta) + front.objective.penalty_gradient(theta)
    expected = each @ torch.linalg.pinv(H, hermitian=True) @ gradients.T / (N - 1)
    found = front.influence_on((x, y), k=3, of=of, correction="first_order")
    torch.testing.assert_close(found.changes, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.values, written(outputs(theta), y))
    together = front.influence_on((x, y), k=3, of=of, mean=True, correction="first_order")
    torch.testing.assert_close(together.changes, expected.mean(1, keepdim=True), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(together.values, written(outputs(theta), y).mean()[None])
    is_loss = name in ("loss", "another loss", "torch loss")
    for j in range(T):
        order = expected[:, j].argsort(descending=is_loss)
        assert found.helpful[j].indices == order[:3].tolist()
        assert found.harmful[j].indices == order.flip(0)[:3].tolist()
        sign = 1 if is_loss else -1
        assert all(sign * value > 0 for value in found.helpful[j].values)
    assert ("helpful" in str(found)) is is_loss
    assert ("raised by" in str(found)) is not is_loss


@pytest.mark.parametrize("name", ["margin", "probability of 0", "function"])
def test_the_check_retrains_and_asks_the_same(name: str) -> None:
    front, x, y, outputs = made("sequential")
    of, written = ASKED[name]
    for mean, index in ((False, 2), (True, 0)):
        found = front.check((x, y), k=6, of=of, mean=mean, index=index)
        assert bool(found.models.converged.all())
        assert found.top.pearson.value > 0.95

        def asked(t: Tensor, mean: bool = mean, index: int = index) -> Tensor:
            values = written(outputs(t), y)
            return values.mean() if mean else values[index]

        actual = torch.stack([asked(t) for t in found.models.thetas.T]) - asked(front.theta)
        torch.testing.assert_close(found.actual, actual, rtol=1e-6, atol=1e-9)
        predicted = front.influence_on((x, y), of=of, mean=mean).changes
        assert predicted is not None
        torch.testing.assert_close(found.predicted, predicted[found.idx, 0 if mean else index])


def test_groups_answer_for_what_is_asked() -> None:
    front, x, y, outputs = made("linear")
    group = list(range(7))
    rest = torch.arange(7, N)
    theta = fit(front.objective.subset(rest)).theta
    p = torch.softmax(outputs(theta), 1)[:, 1] - torch.softmax(outputs(front.theta), 1)[:, 1]
    found = front.of_group(group, (x, y), of=Probability(1))
    torch.testing.assert_close(found.change, p, rtol=1e-2, atol=1e-4)
    summed = front.influence_on((x, y), of=Probability(1), correction="first_order").changes
    assert summed is not None
    torch.testing.assert_close(found.summed, summed[group].sum(0))
    together = front.of_group(group, (x, y), of=Probability(1), mean=True)
    torch.testing.assert_close(together.change, found.change.mean()[None])


@pytest.mark.parametrize(
    ("loss", "targets", "labels"),
    [("logistic", (-1, 1), (-1, 1)), ("binary_cross_entropy", (0, 1), (0, 1))],
)
def test_binary_models_with_one_output(loss: str, targets: tuple[int, int], labels: tuple[int, int]) -> None:
    x, c = data()
    bits = (c == 0).long()
    y = torch.tensor(targets)[bits]
    front = Influence(nn.Linear(D, 1).double(), loss, (x[:N], y[:N]), 0.05).fitted()
    tests = (x[N:], y[N:])
    o = front.objective.on(*tests).outputs(front.theta)[:, 0]
    sign = 2.0 * bits[N:] - 1
    for of, expected in (
        ("margin", sign * o),
        ("logit", sign * o),
        ("log_odds", sign * o),
        ("probability", torch.sigmoid(sign * o)),
        (Probability(labels[1]), torch.sigmoid(o)),
        (Probability(labels[0]), torch.sigmoid(-o)),
        (Logit(labels[0]), -o),
        (Output(), o),
    ):
        torch.testing.assert_close(front.influence_on(tests, of=of).values, expected)
    with pytest.raises(DataError, match=f"the loss {loss} are {labels[0]} and 1"):
        front.influence_on(tests, of=Probability(2))


def test_several_labels_and_regression() -> None:
    x, c = data()
    labels = torch.stack([c == 0, c != 1], dim=1).double()
    many = Influence(nn.Linear(D, 2).double(), "binary_cross_entropy", (x[:N], labels[:N]), 0.05).fitted()
    tests = (x[N:], labels[N:])
    o = many.objective.on(*tests).outputs(many.theta)
    torch.testing.assert_close(many.influence_on(tests, of=Probability(1)).values, torch.sigmoid(o[:, 1]))
    with pytest.raises(DataError, match=r"several labels.*Log.*\(0\)|several labels.*Probability\(0\)"):
        many.influence_on(tests, of="probability")
    line = Influence(nn.Linear(D, 1).double(), "squared_error", (x[:N], x[:N].sum(1)), 0.05).fitted()
    predicted = line.objective.on(x[N:], x[N:].sum(1)).outputs(line.theta)[:, 0]
    torch.testing.assert_close(line.influence_on((x[N:], None), of="output").values, predicted)
    with pytest.raises(DataError, match=r"squared_error has no classes.*Output\(0\)"):
        line.influence_on((x[N:], x[N:].sum(1)), of="margin")


def test_hinge_models_have_margins_but_no_probabilities() -> None:
    x, c = data()
    y = 2 * (c == 0).long() - 1
    train = LinearObjective(x[:N], y[:N], get_loss("smooth_hinge", temperature=0.5), 0.05)
    front = Influence(train, theta=fit(train).theta)
    o = x[N:] @ front.theta
    torch.testing.assert_close(front.influence_on((x[N:], y[N:]), of="margin").values, y[N:] * o)
    torch.testing.assert_close(
        front.influence_on((x[N:], y[N:]), of="hinge").values, torch.relu(1 - y[N:] * o)
    )
    with pytest.raises(DataError, match="smooth_hinge has no probabilities"):
        front.influence_on((x[N:], y[N:]), of="probability")


def test_a_class_or_output_needs_no_target() -> None:
    front, x, y, _ = made("sequential")
    for of in (Probability(1), Output(0)):
        without, beside = front.influence_on((x, None), of=of), front.influence_on((x, y), of=of)
        torch.testing.assert_close(without.changes, beside.changes)
        torch.testing.assert_close(front.influence_on(x, of=of).changes, beside.changes)
    with pytest.raises(DataError, match="targets are missing"):
        front.influence_on((x, None), of="probability")
    with pytest.raises(DataError, match="targets are missing"):
        front.influence_on((x, None), of=own)


def test_a_function_sees_outputs_in_the_models_own_shape() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 4), nn.Tanh(), nn.Linear(4, 6)).double()
    ids = torch.randint(6, (24, 3))
    front = Influence(model, "cross_entropy", (ids[:20], ids[:20].roll(1, 1)), 0.1).fitted()

    def last_token(outputs: Tensor, targets: Tensor) -> Tensor:
        assert outputs.shape[1:] == (3, 6)
        assert targets.shape[1:] == (3,)
        return torch.softmax(outputs[:, -1], 1)[:, 2]

    tests = (ids[20:], ids[20:].roll(1, 1))
    found = front.influence_on(tests, of=last_token)
    outputs = front.objective.module(front.theta)(ids[20:])  # type: ignore[attr-defined]
    torch.testing.assert_close(found.values, torch.softmax(outputs[:, -1], 1)[:, 2].detach())
    with pytest.raises(DataError, match="token_cross_entropy has no classes"):
        front.influence_on(tests, of="margin")


def test_the_last_layer_and_streamed_training_data_serve_it_too() -> None:
    x, y = data()
    model = net().float()
    front = last_layer(model, x[:N].float(), y[:N], "cross_entropy", 0.1).fitted()
    found = front.influence_on((x[N:].float(), None), of=Probability(2))
    features = torch.tanh(model[0](x[N:].float())).detach().double()
    W = front.theta.reshape(C, -1)
    torch.testing.assert_close(
        found.values, torch.softmax(features @ W[:, :-1].T + W[:, -1], 1)[:, 2], rtol=1e-5, atol=1e-7
    )
    few = LinearObjective(x[:20], y[:20], "cross_entropy", 0.05, n_outputs=C)
    streamed = stream(few, ArraySource(x[:N].numpy(), y[:N].numpy()), 16)
    whole = LinearObjective(x[:N], y[:N], "cross_entropy", 0.05)
    theta = fit(whole).theta
    ours = Influence(streamed, theta=theta).influence_on((x[N:], y[N:]), of="margin").changes
    torch.testing.assert_close(
        ours, Influence(whole, theta=theta).influence_on((x[N:], y[N:]), of="margin").changes
    )
    with pytest.raises(DataError, match="hold them in memory"):
        Influence(whole, theta=theta).influence_on(streamed, of="margin")


@pytest.fixture(scope="module")
def untrained() -> Influence:
    x, y = data()
    return Influence(net(), "cross_entropy", (x[:N], y[:N]), 0.05)


class Rounded(torch.autograd.Function):
    """A straight-through estimator: its backward pass is not its derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


@pytest.mark.parametrize(
    ("of", "said"),
    [
        ("accuracy", r"of must be 'loss', 'margin', 'log_odds'.*got 'accuracy'"),
        (3, "of must be a name, a quantity, a Loss, or a function.*got int"),
        (Probability(3), r"there is no class 3; .* 0…2"),
        (Probability(-1), r"there is no class -1"),
        (Logit(1.5), r"Logit takes an integer, got 1\.5"),
        (Output(), r"3 outputs; say which one"),
        (Output(3), r"Output\(3\) does not exist"),
        ("output", r"3 outputs; say which one"),
        (lambda o, y: o, r"one number per test point, shape \(4,\), got \(4, 3\)"),
        (lambda o, y: o.sum(), r"one number per test point, shape \(4,\), got \(\)"),
        (lambda o, y: float(o.sum()), r"must return a tensor \(m,\), got float; stay in torch"),
        (lambda o, y: o.argmax(1), r"got torch.int64; a class or a count has no gradient"),
        (lambda o, y: (o.argmax(1) == y).double(), "without a gradient in the outputs"),
        (lambda o, y: o.detach()[:, 0], "without a gradient in the outputs"),
        (lambda o, y: torch.ones(len(o)), "without a gradient in the outputs"),
        (lambda o, y: o.round()[:, 0], "gradient of zero everywhere"),
        (lambda o, y: Rounded.apply(o)[:, 0], "differs from differences of its values"),
        (lambda o, y: torch.log(-(o[:, 0] ** 2)), "value that is NaN or infinite at test point 0"),
        (
            lambda o, y: (o - o.detach()).norm(dim=1).sqrt(),
            "gradient that is NaN or infinite at test point 0",
        ),
        (lambda o, y: o[:, 0] - o[:, 0].mean(), "another number when the batch holds other points too"),
        (lambda o, y: o[:, 7], "fails on outputs"),
        (lambda o: o[:, 0], "fails on outputs"),
        (lambda o, y: o[:, 0].numpy(), r"must return a tensor \(m,\), got ndarray; stay in torch"),
        (get_loss("squared_error"), "squared_error"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(of: Any, said: str, untrained: Influence) -> None:
    x, y = data()
    front = untrained
    for ask in (front.influence_on, front.check):
        with pytest.raises(DataError, match=said) as found:
            ask((x[N:], y[N:]), of=of)
        assert "\n" not in str(found.value)


def test_an_index_is_one_test_point() -> None:
    front, x, y, _ = made("linear")
    with pytest.raises(DataError, match="pass one of the two"):
        front.check((x, y), k=4, mean=True, index=1)
    with pytest.raises(DataError, match="out of range for 4 examples"):
        front.check((x, y), k=4, index=4)
    a, b = front.check((x, y), k=4, index=-1), front.check((x, y), k=4, index=T - 1)
    torch.testing.assert_close(a.actual, b.actual)


def test_a_clipped_function_may_be_flat_at_the_test_points() -> None:
    front, x, y, _ = made("linear")
    found = front.influence_on((x, y), of=lambda o, t: torch.relu(o[:, 0] - 50))
    assert found.changes is not None
    assert not bool(found.changes.any())


def test_float32_objectives_and_functions_with_float32_tensors_of_their_own() -> None:
    x, y = data()
    front = Influence(net().float(), "cross_entropy", (x[:N].float(), y[:N]), 0.05).fitted()
    w = torch.tensor([1.0, -2.0, 0.5])
    found = front.influence_on((x[N:].float(), y[N:]), of=lambda o, t: torch.tanh(o @ w))
    expected = torch.tanh(front.objective.on(x[N:].float(), y[N:]).outputs(front.theta) @ w)
    torch.testing.assert_close(found.values, expected)
