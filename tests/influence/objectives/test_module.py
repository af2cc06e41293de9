"""The objective of any module: against autograd, finite differences and the closed form; bad input."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from influence.curvature.operators import Damped, GaussNewton, Hessian
from influence.errors import DataError, DeviceError
from influence.losses import get_loss
from influence.objectives.linear import LinearObjective
from influence.objectives.module import Objective
from influence.objectives.sequential import SequentialObjective, network_objective
from tests.influence.nets import NETS, block, losses_of, make_net, net_data
from tests.influence.problems import LOSSES, force_sparse, linear_data

IDX = torch.tensor([3, 3, 22, 0, 9])
KINDS = {"any module": Objective, "known layers": SequentialObjective}


def build(kind: str, name: str, **settings):
    X, y = net_data()
    settings = {"l2_parameters": "weights", "batch_size": 7} | settings
    return KINDS[kind](make_net(name), "cross_entropy", X, y, 0.03, **settings)


def close(ours, oracle, tolerance=1e-10):
    scale = float(oracle.abs().max()) + 1e-300
    assert float((ours.double() - oracle.double()).abs().max()) <= tolerance * scale


@pytest.fixture(params=[(kind, name) for kind in KINDS for name in NETS], ids=lambda p: f"{p[0]}-{p[1]}")
def problem(request):
    kind, name = request.param
    return make_net(name), build(kind, name)


def test_values_and_gradients_against_autograd(problem):
    net, o = problem
    X, y = net_data()
    mask = torch.cat([torch.full((w.numel(),), float(n[-4:] != "bias")) for n, w in net.named_parameters()])
    assert torch.equal(o.l2_mask, mask.double())
    T = block(o, 3, scale=0.3)

    def value(t):
        return losses_of(net, o, t, X, y).mean() + 0.015 * (mask * t * t).sum()

    close(o.values(T), torch.stack([value(t) for t in T.T]))
    close(o.value(T[:, 1]), value(T[:, 1]))
    oracle = torch.stack([torch.func.grad(value)(t) for t in T.T], 1)
    close(o.gradients(T), oracle)
    close(o.gradient(T[:, 2]), oracle[:, 2])
    J = torch.func.jacrev(lambda t: losses_of(net, o, t, X, y))(T[:, 0])
    close(o.example_losses(T[:, 0], IDX), losses_of(net, o, T[:, 0], X, y)[IDX])
    close(o.example_losses_many(T, IDX)[:, 2], losses_of(net, o, T[:, 2], X, y)[IDX])
    close(o.example_gradients(T[:, 0]), J)
    close(o.example_gradients(T[:, 0], IDX), J[IDX])
    V = block(o, 4, seed=2)
    close(o.directional(T[:, 0], V), J @ V)
    close(o.directional(T[:, 0], V, IDX), (J @ V)[IDX])


def test_second_derivatives_against_autograd(problem):
    net, o = problem
    X, y = net_data()
    theta, V = block(o, 1, scale=0.3)[:, 0], block(o, 3, seed=2)
    weights = torch.rand(len(IDX), dtype=torch.float64)

    def each(t):
        return losses_of(net, o, t, X, y)

    l2 = 0.03 * o.l2_mask[:, None] * V
    full = torch.func.hessian(lambda t: each(t).mean())(theta)
    close(o.hessian_product(theta, V), full @ V + l2)
    part = torch.func.hessian(lambda t: (weights * each(t)[IDX]).mean())(theta)
    close(o.hessian_product(theta, V, IDX, weights), part @ V + l2)
    J = torch.func.jacrev(lambda t: torch.func.functional_call(net, o.unflatten(t), (X,)))(theta)
    B = o.loss.output_hessian(o.outputs(theta), y)
    G = torch.einsum("nap,nab,nbq->npq", J, B, J)
    close(o.gauss_newton_product(theta, V), G.mean(0) @ V + l2)
    close(o.gauss_newton_product(theta, V, IDX), G[IDX].mean(0) @ V + l2)
    for operator, oracle in ((Hessian(o, theta), full @ V + l2), (GaussNewton(o, theta), G.mean(0) @ V + l2)):
        for _ in range(2):  # the second product uses what the first one kept
            close(Damped(operator, 0.5) @ V, oracle + 0.5 * V)

    def along(x, i, j):
        gradient = torch.func.grad(lambda t: losses_of(net, o, t, x[None], y[i : i + 1])[0])(theta)
        return gradient @ V[:, j]

    mixed = o.mixed(theta, V, IDX)
    assert mixed.shape == (len(IDX), *X.shape[1:], 3)
    for row, i in ((0, 3), (2, 22)):
        close(mixed[row, ..., 1], torch.func.grad(along)(X[i], i, 1))


def test_products_match_finite_differences():
    o = build("known layers", "smooth_conv")
    theta, V = block(o, 1, scale=0.3)[:, 0], block(o, 1, seed=2)
    h = 1e-5
    for objective in (o, build("any module", "smooth_conv")):
        ahead, behind = objective.gradient(theta + h * V[:, 0]), objective.gradient(theta - h * V[:, 0])
        close(objective.hessian_product(theta, V)[:, 0], (ahead - behind) / (2 * h), 1e-7)
        losses = objective.example_losses(theta + h * V[:, 0]) - objective.example_losses(theta - h * V[:, 0])
        close(objective.directional(theta, V)[:, 0], losses / (2 * h), 1e-7)


@pytest.mark.parametrize("chunk", [1, 5, 100])
@pytest.mark.parametrize("cache_bytes", [0, 40_000, 10**9])
def test_known_layers_do_not_depend_on_chunks_or_cache(chunk, cache_bytes):
    o = build("known layers", "pooled_conv", chunk=chunk, cache_bytes=cache_bytes)
    reference = build("any module", "pooled_conv")
    theta, V = o.initial(), block(o, 5)
    product = o.hessian_at(theta)
    for abreast in (1, 3):  # columns side by side, as on a GPU
        o._abreast = abreast
        for _ in range(2):
            close(product(V), reference.hessian_product(theta, V))
        close(o.gradients(0.2 * V), reference.gradients(0.2 * V))
        close(o.values(0.2 * V), reference.values(0.2 * V))
        close(o.directional(theta, V), reference.directional(theta, V))
        close(o.mixed(theta, V), reference.mixed(theta, V))


LINEAR = [
    (loss, dtype, sparse) for loss in LOSSES for dtype in (torch.float64, torch.float32) for sparse in (0, 1)
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("loss", "dtype", "sparse"), LINEAR)
@pytest.mark.parametrize("k", [1, 3])
def test_a_linear_module_agrees_with_the_closed_form(kind, loss, dtype, sparse, k):
    X, y = linear_data(loss)
    c, ell = (4 if loss == "cross_entropy" else 1), get_loss(loss, **LOSSES[loss])
    data = force_sparse(X, dtype) if sparse else X
    closed = LinearObjective(data, y, ell, 0.05, n_outputs=c, dtype=dtype)
    module = (
        nn.Sequential(nn.Linear(7, c, bias=False)) if kind == "known layers" else nn.Linear(7, c, bias=False)
    )
    o = KINDS[kind](module, ell, X, y, 0.05, batch_size=11, dtype=dtype)
    theta, T, V = block(o, 1)[:, 0], block(o, k, seed=5), block(o, k, seed=2)
    idx = torch.tensor([3, 0, 17, 17])
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    assert (o.n, o.p, o.n_outputs, o.dtype) == (closed.n, closed.p, closed.n_outputs, closed.dtype)
    calls = [
        ("outputs", (theta,)), ("outputs", (theta, idx)), ("value", (theta,)), ("values", (T,)),
        ("gradient", (theta,)), ("gradients", (T,)), ("example_losses", (theta,)),
        ("example_losses_many", (T, idx)), ("example_gradients", (theta, idx)), ("directional", (theta, V)),
        ("directional", (theta, V, idx)), ("mixed", (theta, V, idx)), ("hessian_product", (theta, V)),
        ("hessian_product", (theta, V, idx)), ("gauss_newton_product", (theta, V)),
    ]  # fmt: skip
    for name, arguments in calls:
        ours, oracle = getattr(o, name)(*arguments), getattr(closed, name)(*arguments)
        assert ours.shape == oracle.shape, name
        close(ours, oracle, tolerance)
    close(o.subset(idx[:3]).value(theta), closed.subset(idx[:3]).value(theta), tolerance)
    close(o.on(X[:1], y[:1]).example_losses(theta), closed.on(X[:1], y[:1]).example_losses(theta), tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_hinge_kinks_and_flat_tails(kind):
    """At the kink the loss's own subgradient is used; far out nothing overflows and curvature is λ alone."""
    X = torch.tensor([[1.0], [1e6], [-1e6]], dtype=torch.float64)
    y = torch.tensor([1, 1, -1])
    for loss in (get_loss("hinge"), get_loss("smooth_hinge", temperature=0.001)):
        o = KINDS[kind](nn.Sequential(nn.Linear(1, 1, bias=False)), loss, X, y, 0.1, dtype=torch.float64)
        theta = torch.ones(1, dtype=torch.float64)  # margins 1 (the kink), 1e6, 1e6
        closed = LinearObjective(X, y, loss, 0.1)
        close(o.gradient(theta), closed.gradient(theta))
        close(o.hessian_product(theta, theta[:, None]), closed.hessian_product(theta, theta[:, None]))
        assert torch.isfinite(o.mixed(theta, theta[:, None])).all()


def test_only_one_batch_is_held(monkeypatch):
    """No pass of any call ever sees more than ``batch_size`` examples, whatever n is."""
    seen = []
    o = build("any module", "dense_net", batch_size=4)
    forward = o.model.forward
    monkeypatch.setattr(o.model, "forward", lambda x: (seen.append(len(x)), forward(x))[1])
    theta, V = o.initial(), block(o, 6)
    for call in (o.hessian_product, o.directional, o.mixed, o.gauss_newton_product):
        call(theta, V)
    o.gradients(V)
    o.example_gradients(theta)
    assert seen
    assert max(seen) <= 4


def test_frozen_parameters_stay_out_of_theta():
    net = make_net("dense_net")
    net[1].weight.requires_grad_(False)
    X, y = net_data()
    o = network_objective(net, "cross_entropy", X, y, 0.1)
    assert type(o) is Objective
    assert o.p == 5 + 3 * 5 + 3
    assert o.gradient(o.initial()).shape == (o.p,)


def test_which_objective_a_module_gets():
    X, y = net_data()
    for name in NETS:
        assert type(network_objective(make_net(name), "cross_entropy", X, y, 0.1)) is SequentialObjective
    shared = nn.Linear(5, 5)
    twice = nn.Sequential(
        nn.Flatten(), nn.Linear(180, 5), shared, nn.Tanh(), shared, nn.Linear(5, 3)
    ).double()
    for other in (
        twice,
        nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(224, 3)).double(),
        nn.Sequential(nn.Conv2d(2, 4, 3, padding="same"), nn.Flatten(), nn.Linear(360, 3)).double(),
        nn.Sequential(nn.Flatten(), nn.Linear(180, 3), nn.Softplus()).double(),
    ):
        o = network_objective(other, "cross_entropy", X, y, 0.1)
        assert type(o) is Objective
        assert torch.isfinite(o.hessian_product(o.initial(), block(o, 1))).all()
        with pytest.raises(DataError, match="use Objective"):
            SequentialObjective(other, "cross_entropy", X, y, 0.1)


def test_a_model_that_returns_a_vector_is_a_binary_model():
    class Margin(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(4, dtype=torch.float64))

        def forward(self, x):
            return x @ self.w

    X = torch.randn(6, 4, dtype=torch.float64)
    o = Objective(Margin(), "logistic", X, torch.tensor([1, -1, 1, -1, 1, -1]), 0.1)
    assert o.outputs(o.initial()).shape == (6, 1)


def bad(**change):
    X, y = net_data()
    given = {"model": make_net("dense_net"), "inputs": X, "targets": y, "l2": 0.1} | change
    model, inputs, targets, l2 = (given.pop(key) for key in ("model", "inputs", "targets", "l2"))
    return Objective(model, "cross_entropy", inputs, targets, l2, **given)


X0, Y0 = net_data()
NAN = X0.clone()
NAN[20, 1, 3, 4] = float("nan")
INF = X0.clone()
INF[0, 0, 0, 0] = float("inf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": NAN}, "NaN or infinite"),
        ({"inputs": INF}, "NaN or infinite"),
        ({"targets": Y0 + 1}, "0…2"),
        ({"targets": -Y0}, "0…2"),
        ({"targets": Y0.double()}, "integer targets"),
        ({"targets": torch.zeros_like(Y0)}, "one class is empty"),
        ({"targets": Y0[:5]}, "one target per input"),
        ({"inputs": X0[:1], "targets": Y0[:1]}, "at least 2"),
        ({"inputs": X0[:0], "targets": Y0[:0]}, "one target per input"),
        ({"l2": -1e-9}, "l2 must be"),
        ({"l2": float("nan")}, "l2 must be"),
        ({"batch_size": 0}, "batch_size"),
        ({"l2_parameters": "biases"}, "l2_parameters"),
        ({"dtype": torch.int64}, "floating type"),
        ({"model": nn.Flatten()}, "nothing can be trained"),
        ({"model": nn.Conv2d(2, 3, 3).double()}, "must return"),
        (
            {"model": nn.Sequential(nn.Flatten(), nn.Linear(180, 3), nn.Dropout(0.5)).double()},
            r"call model.eval\(\)",
        ),
        (
            {"model": nn.Sequential(nn.Flatten(), nn.Linear(180, 3), nn.BatchNorm1d(3)).double()},
            r"call model.eval\(\)",
        ),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(DataError, match=message):
        bad(**change)


def test_bad_arguments_are_named():
    o = bad()
    with pytest.raises(DataError, match=r"has 923 parameters"):
        o.value(o.initial()[:-1])
    with pytest.raises(DataError, match=r"use v\[:, None\]"):
        o.directional(o.initial(), o.initial())
    with pytest.raises(DeviceError, match="float32"):
        o.value(o.initial().float())
    with pytest.raises(DataError, match="out of range for 23 examples"):
        o.outputs(o.initial(), torch.tensor([0, 23]))
    with pytest.raises(DataError, match="no example"):
        o.subset(torch.tensor([], dtype=torch.long))
    with pytest.raises(DataError, match="0…2"):
        o.on(X0, Y0 + 3)


def test_mixed_devices_are_refused():
    with pytest.raises(DeviceError, match="move one with"):
        bad(inputs=X0.to("meta"))
    with pytest.raises(DeviceError, match="the targets: on meta"):
        bad(targets=Y0.to("meta"))
    half = make_net("dense_net")
    half[3].to("meta")
    with pytest.raises(DeviceError, match="first parameter"):
        bad(model=half)
    o = bad()
    with pytest.raises(DeviceError, match="objective"):
        o.value(o.initial().to("meta"))


def test_the_callers_module_is_left_alone():
    net = make_net("dense_net")
    before = [w.detach().clone() for w in net.parameters()]
    o = bad(model=net)
    with torch.no_grad():
        net[1].weight.add_(1)
    assert torch.equal(o.initial(), torch.cat([w.reshape(-1) for w in before]))
    carried = o.module(torch.arange(o.p, dtype=torch.float64))
    assert torch.equal(
        torch.cat([w.detach().reshape(-1) for w in carried.parameters()]), torch.arange(o.p).double()
    )
