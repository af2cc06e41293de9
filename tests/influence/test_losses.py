"""Losses against autograd, and at the edges where a naive formula overflows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from influence import (
    CrossEntropy,
    DataError,
    Hessian,
    LinearObjective,
    Loss,
    Objective,
    fit,
    get_loss,
    removal_change,
)

SETTINGS = [
    ("cross_entropy", {}),
    ("cross_entropy", {"label_smoothing": 0.2}),
    ("cross_entropy", {"class_weights": (0.5, 2.0, 1.0, 0.0, 3.0)}),
    ("cross_entropy", {"ignore_index": 3}),
    ("soft labels", {}),
    ("soft labels", {"class_weights": (0.5, 2.0, 1.0, 0.1, 3.0), "label_smoothing": 0.1}),
    ("token_cross_entropy", {}),
    ("token_cross_entropy", {"reduction": "sum", "ignore_index": -1}),
    ("logistic", {}),
    ("smooth_hinge", {"temperature": 1.0}),
    ("smooth_hinge", {"temperature": 0.1}),
    ("squared_hinge", {}),
    ("squared_error", {}),
    ("huber", {"delta": 0.7}),
    ("poisson", {}),
    ("binary_cross_entropy", {}),
    ("binary_cross_entropy", {"positive_weight": 3.0}),
    ("callable", {}),
    ("MSELoss", {}),
]


def make(name: str, settings: dict[str, object]) -> Loss:
    if name == "callable":
        return get_loss(lambda o, y: (torch.sin(o) * y + o**4).sum(dim=1))
    if name == "MSELoss":
        return get_loss(torch.nn.MSELoss())
    return get_loss("cross_entropy" if name == "soft labels" else name, **settings)


def batch(name: str, n: int = 12, c: int = 5, ignored: int = -100):
    g = torch.Generator().manual_seed(0)
    outputs = torch.randn(n, c, generator=g, dtype=torch.float64)
    if name == "cross_entropy":
        return outputs, torch.arange(n) % c
    if name == "soft labels":
        return outputs, torch.rand(n, c, generator=g, dtype=torch.float64).softmax(1)
    if name == "token_cross_entropy":  # three tokens of four classes, some left out
        outputs = torch.randn(n, 12, generator=g, dtype=torch.float64)
        targets = torch.randint(4, (n, 3), generator=g)
        targets[::2, 1] = ignored
        return outputs, targets
    if name in ("squared_error", "huber", "callable", "MSELoss"):
        return outputs, torch.randn(n, c, generator=g, dtype=torch.float64)
    if name == "poisson":
        return outputs, torch.randint(5, (n, c), generator=g).double()
    if name == "binary_cross_entropy":
        return outputs, torch.randint(2, (n, c), generator=g).double()
    return torch.randn(n, 1, generator=g, dtype=torch.float64) * 2, torch.tensor([-1.0, 1.0] * (n // 2))


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_derivatives_match_autograd(name, settings):
    loss = make(name, settings)
    outputs, targets = batch(name, ignored=settings.get("ignore_index", -100))
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
    loss = make(name, settings)
    outputs, targets = batch(name, ignored=settings.get("ignore_index", -100))
    n, c = outputs.shape
    u = torch.randn(n, c, k, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    dense = torch.einsum("nab,nbk->nak", loss.output_hessian(outputs, targets), u)
    torch.testing.assert_close(loss.output_hessian_product(outputs, targets, u), dense)
    prepared = loss.prepared_hessian_product(outputs, targets)(u.transpose(1, 2))
    torch.testing.assert_close(prepared.transpose(1, 2), dense)
    if loss.convex:
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
    with pytest.raises(DataError, match="cross_entropy, hinge, huber, logistic"):
        get_loss("squared")
    with pytest.raises(DataError, match="temperature"):
        get_loss("smooth_hinge", sharpness=1.0)


def test_a_hessian_without_a_root_is_refused() -> None:
    loss, (outputs, targets) = make("callable", {}), batch("callable")
    assert bool((torch.linalg.eigvalsh(loss.output_hessian(outputs, targets)) < 0).any())
    with pytest.raises(DataError, match="not convex in the outputs"):
        loss.output_hessian_sqrt(outputs, targets)


def test_torch_agrees_where_it_has_the_same_loss() -> None:
    outputs, targets = batch("cross_entropy")
    for smoothing in (0.0, 0.3):
        ours = get_loss("cross_entropy", label_smoothing=smoothing).values(outputs, targets)
        theirs = torch.nn.functional.cross_entropy(
            outputs, targets, reduction="none", label_smoothing=smoothing
        )
        torch.testing.assert_close(ours, theirs)
    weights = torch.tensor([0.5, 2.0, 1.0, 0.0, 3.0], dtype=torch.float64)
    ours = CrossEntropy(class_weights=tuple(weights.tolist())).values(outputs, targets)
    torch.testing.assert_close(
        ours, torch.nn.functional.cross_entropy(outputs, targets, weights, reduction="none")
    )
    o, y = batch("token_cross_entropy")
    theirs = torch.stack(
        [
            torch.nn.functional.cross_entropy(a.reshape(3, 4), b, ignore_index=-100)
            for a, b in zip(o, y, strict=True)
        ]
    )
    torch.testing.assert_close(get_loss("token_cross_entropy").values(o, y), theirs)
    for module in (torch.nn.MSELoss(), torch.nn.HuberLoss(), torch.nn.BCEWithLogitsLoss()):
        o, y = batch("binary_cross_entropy")
        each = torch.stack([module(a, b) for a, b in zip(o, y, strict=True)])
        torch.testing.assert_close(get_loss(module).values(o, y), each)


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return x**2

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        return g


REFUSED = [
    (lambda: get_loss("mse"), "for mse use squared_error"),
    (lambda: get_loss(3), "a loss is a name"),
    (lambda: get_loss("huber", delta=-1.0), "delta"),
    (lambda: get_loss("cross_entropy", label_smoothing=1.5), "label_smoothing"),
    (lambda: get_loss(torch.nn.CrossEntropyLoss(weight=torch.ones(5))), "class_weights"),
    (lambda: get_loss("poisson").check_targets(torch.tensor([-1.0, 2.0]), 1), ">= 0"),
    (lambda: get_loss("binary_cross_entropy").check_targets(torch.tensor([-1.0, 1.0]), 1), "0…1"),
    (lambda: get_loss("squared_error").check_targets(torch.zeros(4, 2), 3), "a target per output"),
    (lambda: get_loss("squared_error").prepare([1.0, float("nan")], torch.float64), "NaN"),
    (lambda: get_loss("squared_error").prepare(["a", "b"], torch.float64), "the targets hold text"),
    (lambda: get_loss("cross_entropy").check_targets(torch.full((4, 3), 0.5), 3), "sum to 1"),
    (lambda: get_loss("token_cross_entropy").check_targets(torch.zeros(4, dtype=torch.long), 3), r"\(n, T\)"),
    (lambda: get_loss(lambda o, y: (-o.square() - 1).log().sum()).check_targets(torch.zeros(4), 2), "NaN or"),
    (lambda: get_loss(lambda o, y: o.nothing).check_targets(torch.zeros(4), 2), "fails on outputs"),
]


@pytest.mark.parametrize(("act", "said"), REFUSED, ids=range(len(REFUSED)))
def test_what_no_loss_can_take_is_one_sentence(act, said) -> None:
    with pytest.raises(DataError, match=said):
        act()


def test_labels_of_any_integer_kind_are_converted() -> None:
    x = np.random.default_rng(0).normal(size=(20, 3))
    y = np.arange(20) % 3
    expected = fit(LinearObjective(x, y, "cross_entropy", 0.1)).theta
    for kind in (np.int32, np.uint8, np.int8):
        torch.testing.assert_close(
            fit(LinearObjective(x, y.astype(kind), "cross_entropy", 0.1)).theta, expected
        )
    torch.testing.assert_close(fit(LinearObjective(x, y.tolist(), "cross_entropy", 0.1)).theta, expected)
    module = Objective(torch.nn.Linear(3, 3, bias=False).double(), "cross_entropy", torch.tensor(x),
                       torch.tensor(y.astype(np.uint8)), 0.1)  # fmt: skip
    torch.testing.assert_close(fit(module).theta, expected, rtol=1e-6, atol=1e-8)


REGRESSIONS = [
    ("squared_error", {}, 2), ("huber", {"delta": 0.7}, 1), ("poisson", {}, 1),
    ("binary_cross_entropy", {}, 3), ("soft labels", {}, 3), ("MSELoss", {}, 2),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings", "c"), REGRESSIONS)
def test_removal_is_predicted_for_every_loss(name, settings, c) -> None:
    """Leave one out for real: the leverage-corrected change agrees."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(40, 3, generator=g, dtype=torch.float64)
    _, y = batch(name, 40, c)
    y = y[:, 0] if c == 1 else y
    loss = make(name, settings)
    linear = LinearObjective(x.numpy(), y.numpy(), loss, 0.05)
    module = Objective(torch.nn.Linear(3, c, bias=False).double(), loss, x, y, 0.05)
    theta = fit(linear).theta
    torch.testing.assert_close(module.gradient(theta), linear.gradient(theta), rtol=1e-8, atol=1e-10)
    V = torch.randn(linear.p, 2, generator=g, dtype=torch.float64)
    torch.testing.assert_close(module.hessian_product(theta, V), linear.hessian_product(theta, V))
    gradients = linear.example_gradients(theta, torch.tensor([7])).T.contiguous()
    s = torch.linalg.solve(Hessian(linear, theta).dense(), gradients)
    predicted = removal_change(linear, theta, s, correction="leverage")[:, 0]
    actual = []
    for i in range(40):
        keep = torch.arange(40) != i
        refit = fit(LinearObjective(x[keep].numpy(), y[keep].numpy(), loss, 0.05, n_outputs=c)).theta
        one = torch.tensor([7])
        actual.append(float(linear.example_losses(refit, one) - linear.example_losses(theta, one)))
    assert np.corrcoef(predicted.numpy(), actual)[0, 1] > 0.98


def test_a_table_and_its_column_are_data() -> None:
    pd = pytest.importorskip("pandas")
    x = np.random.default_rng(0).normal(size=(20, 3))
    table = pd.DataFrame(x, index=range(5, 25), columns=["a", "b", "c"])  # no row 0
    column = pd.Series(np.arange(20) % 3, index=range(5, 25))
    expected = fit(LinearObjective(x, column.to_numpy(), "cross_entropy", 0.1)).theta
    torch.testing.assert_close(fit(LinearObjective(table, column, "cross_entropy", 0.1)).theta, expected)
    with pytest.raises(DataError, match="the entries of X hold text"):
        LinearObjective(table.assign(d="text"), column, "cross_entropy", 0.1)
