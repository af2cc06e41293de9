"""No derivative is trusted unseen: modules on which torch's fastest rules are wrong, missing, or fail."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from influence import (
    CG,
    Damped,
    DataError,
    Exact,
    GaussNewton,
    Hessian,
    Objective,
    test_gradients,
    up_loss,
)
from influence.objectives.passes import Method
from tests.influence.oracles import Differences, gap

N = 12
G = torch.Generator().manual_seed(0)
Y = torch.arange(N) % 3
IDS = torch.randint(1, 9, (N, 5), generator=G) * (torch.rand(N, 5, generator=G) < 0.7)
IDS[:, 0] = 1 + torch.arange(N) % 8
SEQ = torch.randn(N, 5, 4, generator=G, dtype=torch.float64)
X = torch.randn(N, 8, generator=G, dtype=torch.float64)


class Net(nn.Module):
    """A forward pass given as a function, over named parts."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        return self.run(self, x)


class Square(torch.autograd.Function):
    """x² in the older style, which torch.func refuses."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


class Once(Square):
    """x² whose gradient cannot be differentiated."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


class Straight(Square):
    """x² with the gradient of x."""

    @staticmethod
    def backward(ctx, g):
        return g


def zeroed(net, x):
    h = net.a(x)
    h[h < -1] = 0.0
    return net.fc(h)


def attend(net, x):
    q, k, v = net.a(x)[:, None].chunk(3, -1)
    return net.fc(F.scaled_dot_product_attention(q, k, v)[:, 0].mean(1))


def solved(net, x):
    matrices = net.a(x).reshape(-1, 3, 3) + 5 * torch.eye(3)
    return torch.linalg.solve(matrices, net.fc(x)[..., None])[..., 0]


def encoded(net, ids):
    return net.fc(net.t(net.e(ids), src_key_padding_mask=ids == 0)[:, 0])


def recomputed(net, x):
    return net.fc(checkpoint(lambda x: torch.tanh(net.a(x)), x, use_reentrant=False))


def bagged(net, ids):
    return net.fc(torch.tanh(net.e(ids)))


def averaged(net, ids):
    return net.fc(torch.tanh(net.e(ids)).mean(1))


def attended(net, x):
    return net.fc(net.a(x, x, x)[0].mean(1))


def last_state(net, x):
    return net.fc(net.r(x)[0][:, -1])


def squared(function):
    return lambda: Net(lambda net, x: net.fc(function.apply(net.a(x))), a=L(8, 6), fc=L(6, 3))


def recurrent(kind):
    return lambda: Net(last_state, r=kind(4, 5, batch_first=True), fc=L(5, 3))


def between(*parts):
    return lambda: nn.Sequential(L(8, 6), *parts, L(6, 3))


def encoder():
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=True)


def heads():
    return Net(attended, a=nn.MultiheadAttention(4, 2, batch_first=True), fc=L(4, 3))


def normed():
    return nn.Sequential(nn.utils.parametrizations.weight_norm(L(8, 6)), nn.Tanh(), L(6, 3))


def text(run, embedding=nn.Embedding, **more):
    return Net(run, e=embedding(9, 4, padding_idx=more.pop("padding_idx", None)), fc=L(4, 3), **more)


def tied():
    net = nn.Sequential(L(8, 4), nn.Tanh(), L(4, 8), nn.Tanh(), L(8, 4), L(4, 3))
    net[4].weight = net[0].weight
    return net


def shared():
    twice = L(8, 8)
    return nn.Sequential(twice, nn.Tanh(), twice, nn.Tanh(), L(8, 3))


def distances(net, x):
    return -torch.cdist(x, net.fc.weight)


T, A, D = Method.TRANSFORMS, Method.AUTOGRAD, Method.DIFFERENCES
L = nn.Linear
CASES = {  # name: (module, inputs, ways of (gradient, Hessian, per-example))
    "mlp": (between(nn.Tanh()), X, (T, T, T)),
    "LayerNorm": (between(nn.LayerNorm(6), nn.Tanh()), X, (T, A, T)),
    "RMSNorm": (between(nn.RMSNorm(6), nn.Tanh()), X, (T, T, T)),
    "GroupNorm": (between(nn.GroupNorm(2, 6), nn.Tanh()), X, (T, T, T)),
    "linalg.solve": (lambda: Net(solved, a=L(8, 9), fc=L(8, 3)), X, (T, A, T)),
    "padding_idx": (lambda: text(averaged, padding_idx=0), IDS, (T, T, T)),
    "EmbeddingBag": (lambda: text(bagged, nn.EmbeddingBag, padding_idx=0), IDS, (T, T, T)),
    "sdpa": (lambda: Net(attend, a=L(4, 12), fc=L(4, 3)), SEQ, (T, T, T)),
    "MultiheadAttention": (heads, SEQ, (T, T, T)),
    "encoder with mask": (lambda: text(encoded, t=encoder()), IDS, (T, A, T)),
    "LSTM": (recurrent(nn.LSTM), SEQ, (T, T, A)),
    "GRU": (recurrent(nn.GRU), SEQ, (T, T, A)),
    "RNN": (recurrent(nn.RNN), SEQ, (T, T, A)),
    "h[mask] = 0": (lambda: Net(zeroed, a=L(8, 6), fc=L(6, 3)), X, (T, T, A)),
    "weight_norm": (normed, X, (T, T, T)),
    "GLU": (lambda: nn.Sequential(L(8, 6), nn.GLU(), L(3, 3)), X, (T, A, T)),
    "tied parameters": (tied, X, (T, T, T)),
    "a module twice": (shared, X, (T, T, T)),
    "cdist": (lambda: Net(distances, fc=L(8, 3, bias=False)), X, (T, A, T)),
    "checkpoint": (lambda: Net(recomputed, a=L(8, 6), fc=L(6, 3)), X, (A, A, A)),
    "Function": (squared(Square), X, (A, A, A)),
    "once_differentiable": (squared(Once), X, (A, D, A)),
}


def make(name: str, dtype: torch.dtype = torch.float64) -> Objective:
    build, inputs, _ = CASES[name]
    torch.manual_seed(1)
    model = build().to(dtype).eval()
    return Objective(model, "cross_entropy", inputs, Y, 0.0, batch_size=5, dtype=dtype)


@pytest.mark.parametrize("name", CASES)
def test_every_derivative_agrees_with_differences(name):
    o = make(name)
    assert (
        o.derivatives.gradient.method,
        o.derivatives.hessian.method,
        o.derivatives.per_example.method,
    ) == CASES[name][2]
    theta, oracle = o.initial(), Differences(o, lambda out, y: F.cross_entropy(out, y, reduction="none"))
    v, w = torch.randn(2, o.p, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    limit = 1e-7 if CASES[name][2][1] is not D else 1e-6
    assert gap(o.gradient(theta), oracle.gradient(theta)) < 1e-9
    o.gradient(2 * theta)
    assert torch.equal(o.initial(), theta)  # torch leaves θ behind in a module that appears twice
    assert abs(float(oracle.along(oracle.value, theta, v) - o.gradient(theta) @ v)) < 1e-8
    Hv = o.hessian_product(theta, v[:, None])[:, 0]
    assert gap(Hv, oracle.hessian(theta, v)) < limit
    assert abs(float(w @ Hv - v @ o.hessian_product(theta, w[:, None])[:, 0])) < limit * float(
        v.norm() * w.norm()
    )
    assert gap(o.gauss_newton_product(theta, v[:, None])[:, 0], oracle.gauss_newton(theta, v)) < limit
    assert gap(o.directional(theta, v[:, None])[:, 0], oracle.directional(theta, v)) < limit
    assert gap(o.example_gradients(theta), oracle.example_gradients(theta)) < 1e-9
    if o.inputs.is_floating_point():
        mixed = o.mixed(theta, v[:, None])[..., 0]
        assert gap(mixed, oracle.mixed(theta, v)) < limit
        delta = torch.randn(
            o.inputs.shape[1:], generator=torch.Generator().manual_seed(4), dtype=torch.float64
        )
        assert float(o.mixed_direction(theta, 2, delta) @ v) == pytest.approx(
            float((mixed[2] * delta).sum()), rel=1e-6
        )


@pytest.mark.parametrize(
    "name",
    ["LSTM", "GRU", "RNN", "sdpa", "encoder with mask", "EmbeddingBag", "LayerNorm", "once_differentiable"],
)
def test_float32_agrees_with_float64(name):
    """In float32 torch takes other kernels (oneDNN's LSTM), so the choice is made for them."""
    o, wide = make(name, torch.float32), make(name)
    v = torch.randn(o.p, 1, generator=torch.Generator().manual_seed(3))
    theta = o.initial()
    for ours, exact in (
        (o.hessian_product(theta, v), wide.hessian_product(theta.double(), v.double())),
        (o.directional(theta, v), wide.directional(theta.double(), v.double())),
        (o.example_gradients(theta), wide.example_gradients(theta.double())),
    ):
        assert ours.dtype == torch.float32
        assert gap(ours.double(), exact) < 1e-4


def test_scores_of_a_layer_norm_net_are_those_of_the_dense_hessian():
    """CG said converged and the scores were 60 % off."""
    o = make("LayerNorm")
    theta, damping = o.initial(), 12.0
    gradients = test_gradients(o, theta, [0, 1])

    def loss(t):
        return F.cross_entropy(torch.func.functional_call(o.model, o.unflatten(t), (X,)), Y)

    dense = torch.autograd.functional.hessian(loss, theta) + damping * torch.eye(o.p)
    right = -o.example_gradients(theta) @ torch.linalg.solve(dense, gradients)
    for solver in (Exact(), CG(tolerance=1e-10)):
        s = solver.solve(Damped(Hessian(o, theta), damping), gradients)
        assert gap(up_loss(o, theta, s.value), right) < 1e-7


def test_the_padding_row_is_held_fixed_and_the_hessian_symmetric():
    o = make("padding_idx")
    assert o.p == 8 * 4 + 4 * 3 + 3
    assert "padding_idx" in str(o.derivatives)
    theta = o.initial()
    H = Hessian(o, theta) @ torch.eye(o.p, dtype=torch.float64)
    assert gap(H, H.T) < 1e-12
    row = o.model.e.weight[0]
    assert torch.equal(o.module(theta + 1).e.weight[0], row)
    assert torch.equal(o.module(theta + 1).e.weight[1], o.model.e.weight[1] + 1)
    gradients = test_gradients(o, theta, [0, 1])
    answers = [
        s.solve(Damped(GaussNewton(o, theta), 0.3), gradients).value for s in (CG(tolerance=1e-10), Exact())
    ]
    assert gap(*answers) < 1e-8


def test_what_is_computed_by_differences_is_said():
    o = make("once_differentiable")
    assert o.derivatives.by_differences() == ["Hessian", "Gauss-Newton", "directional"]
    assert "central differences of first derivatives" in str(o.derivatives)
    assert make("mlp").derivatives.by_differences() == []


def masked(net, ids):
    return net.fc(F.embedding(ids, net.e.weight, padding_idx=0).mean(1))


def reentrant(net, x):
    return net.fc(checkpoint(net.a, x, use_reentrant=True))


def jumps(net, x):
    return net.fc(3 * net.a(x).sign() + torch.exp(30 * net.a(x)).frac())


@pytest.mark.parametrize(
    ("model", "inputs", "says"),
    [
        (squared(Straight), X, "a.weight of Linear 'a'"),
        (lambda: text(masked), IDS, "e.weight of Embedding 'e'.*padding_idx"),
        (lambda: Net(reentrant, a=L(8, 6), fc=L(6, 3)), X, "use_reentrant"),
        (lambda: Net(jumps, a=L(8, 6), fc=L(6, 3)), X, "settle|not that of"),
        (lambda: nn.Sequential(nn.Embedding(9, 4, max_norm=1.0), nn.Flatten(), L(20, 3)), IDS, "max_norm"),
    ],
    ids=["straight-through", "masked embedding", "reentrant", "jumps", "max_norm"],
)
def test_modules_that_cannot_be_differentiated_are_refused_by_name(model, inputs, says):
    torch.manual_seed(1)
    with pytest.raises(DataError, match=says):
        Objective(model().double(), "cross_entropy", inputs, Y, 0.0, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(3))
def test_kinks_raise_no_false_alarm(seed):
    """Thousands of ReLUs and max-poolings, biases at zero, inputs with exact zeros."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 24, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(24, 16, 3, padding=1), nn.ReLU(),
        nn.Flatten(), L(16 * 36, 64), nn.ReLU(), L(64, 3),
    )  # fmt: skip
    for part in net:
        if isinstance(part, L | nn.Conv2d):
            nn.init.zeros_(part.bias)
    images = torch.randn(N, 1, 14, 14).clamp(min=0)
    o = Objective(net, "cross_entropy", images, Y, 0.0)
    ways = o.derivatives.ways().values()
    assert all(way.method is Method.TRANSFORMS and not way.plain_kernels for way in ways)


def test_subsets_and_test_sets_are_not_checked_again(monkeypatch):
    o = make("mlp")
    seen = []
    forward = o.model.forward
    monkeypatch.setattr(o.model, "forward", lambda x: (seen.append(len(x)), forward(x))[1])
    part, test = o.subset(torch.arange(3)), o.on(X[:2], Y[:2])
    assert len(seen) == 1  # on() asks for the number of outputs
    assert part.derivatives is o.derivatives
    assert test.derivatives is o.derivatives


def test_torch_settings_are_left_as_they_were():
    before = (
        torch.backends.mkldnn.enabled,
        torch.backends.cudnn.enabled,
        torch.backends.mha.get_fastpath_enabled(),
    )
    state = torch.get_rng_state()
    make("encoder with mask")
    assert before == (
        torch.backends.mkldnn.enabled,
        torch.backends.cudnn.enabled,
        torch.backends.mha.get_fastpath_enabled(),
    )
    torch.manual_seed(5)
    state = torch.get_rng_state()
    Objective(nn.Linear(8, 3).double(), "cross_entropy", X, Y, 0.0)
    torch.manual_seed(5)
    assert torch.equal(state, torch.get_rng_state())
