"""Frozen layers run once: the numbers are those of the whole network, and nothing stale is ever used."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from influence import Damped, DataError, Exact, Hessian, Influence, Objective, test_gradients, up_loss
from influence.objectives.inputs import take
from tests.influence.oracles import by_double_backward, damped_scores, gap

N, TEST, L2, D = 14, 3, 0.02, torch.float64
G = torch.Generator().manual_seed(0)
IMAGES = torch.randn(N + TEST, 1, 6, 6, generator=G, dtype=D)
VECTORS = torch.randn(N + TEST, 5, generator=G, dtype=D)
IDS = torch.randint(9, (N + TEST, 4), generator=G)
Y = torch.arange(N + TEST) % 3


class Net(nn.Module):
    """Parts and a forward pass over them; counts the examples that its body sees."""

    def __init__(self, run: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, *x: Any) -> Any:
        return self.run(self, *x)


SEEN: list[int] = []


class Counted(nn.Module):
    """A part that says how many examples it was run on."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, *x: Any) -> Any:
        SEEN.append(len(x[0]))
        return self.part(*x)


def frozen(net: nn.Module, *names: str) -> nn.Module:
    for name in names:
        net.get_submodule(name).requires_grad_(False)
    return net


def resnet() -> nn.Module:
    """As torchvision's: the root calls its parts one by one, with an operation in place between them."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = net.relu(net.bn(net.stem(x)))
        h = F.relu(net.block(h) + h, inplace=True)
        return net.fc(net.pool(h).flatten(1))

    net = Net(
        run, stem=Counted(nn.Conv2d(1, 3, 3)), bn=nn.BatchNorm2d(3), relu=nn.ReLU(inplace=True),
        block=nn.Conv2d(3, 3, 3, padding=1), pool=nn.AdaptiveAvgPool2d(1), fc=nn.Linear(3, 3),
    ).double()  # fmt: skip
    net(IMAGES)  # running statistics
    return frozen(net, "stem", "bn", "block").eval()


def sequence() -> nn.Module:
    body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten())
    return frozen(nn.Sequential(Counted(body), nn.Linear(32, 4), nn.Tanh(), nn.Linear(4, 3)).double(), "0")


def transformer() -> nn.Module:
    """Embeddings and the first layer frozen, the second adapted by low ranks, its base frozen."""

    def run(net: Any, ids: Tensor) -> Tensor:
        h = net.e(ids) + net.place.weight
        for layer in net.layers:
            h = layer(h)
        h = h + net.base(h) + net.up(net.down(h))
        return net.fc(h.mean(1))

    layers = nn.ModuleList(
        [
            Counted(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)),
            nn.Sequential(nn.Linear(4, 4), nn.Tanh()),
        ]
    )
    net = Net(
        run, e=nn.Embedding(9, 4), place=nn.Embedding(4, 4), layers=layers, base=nn.Linear(4, 4),
        down=nn.Linear(4, 2, bias=False), up=nn.Linear(2, 4, bias=False), fc=nn.Linear(4, 3),
    ).double()  # fmt: skip
    nn.init.zeros_(net.up.weight)  # as adapters start: what enters it does not matter at that θ
    return frozen(net, "e", "place", "layers", "base").eval()


def siamese() -> nn.Module:
    """One frozen encoder that is called twice, and a mapping as its output."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(5, 4)

        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"state": torch.tanh(self.fc(x)), "none": None, "pair": (x.sum(1), 3)}

    def run(net: Any, a: Tensor, b: Tensor) -> Tensor:
        left, right = net.body(a), net.body(b)
        return net.fc((net.mix(left["state"]) - right["state"]).abs()) + left["pair"][0][:, None]

    return frozen(Net(run, body=Counted(Encoder()), mix=nn.Linear(4, 4), fc=nn.Linear(4, 3)).double(), "body")


def after() -> nn.Module:
    """A frozen layer behind a trained one, which may not be kept."""

    def run(net: Any, x: Tensor) -> Tensor:
        return net.last(net.behind(torch.tanh(net.first(net.body(x)))))

    parts = {name: nn.Linear(4, 4) for name in ("first", "behind")}
    net = Net(run, body=Counted(nn.Linear(5, 4)), last=nn.Linear(4, 3), **parts).double()
    return frozen(net, "body", "behind")


NETS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "ResNet": (resnet, IMAGES),
    "sequence": (sequence, IMAGES),
    "transformer": (transformer, IDS),
    "siamese": (siamese, (VECTORS, VECTORS.roll(1, 0))),
    "after": (after, VECTORS),
}


def brute_force(model: nn.Module, inputs: Any) -> tuple[Tensor, float]:
    """Scores through the whole network, and the damping."""
    several = inputs if isinstance(inputs, tuple) else (inputs,)

    def losses(rows: slice) -> Tensor:
        return F.cross_entropy(model(*(x[rows] for x in several)), Y[rows], reduction="none")

    return damped_scores(*by_double_backward(model, losses, N, N + TEST, L2), N, 0.1)


def made(name: str, **settings: Any) -> tuple[Objective, Objective, nn.Module]:
    build, inputs = NETS[name]
    torch.manual_seed(1)
    model = build()
    o = Objective(model, "cross_entropy", take(inputs, slice(0, N)), Y[:N], L2, batch_size=5, **settings)
    return o, o.on(take(inputs, slice(N, N + TEST)), Y[N:]), model


@pytest.mark.parametrize("name", NETS)
def test_scores_are_those_of_the_whole_network_and_the_body_runs_once(name: str) -> None:
    o, tests, model = made(name)
    expected, shift = brute_force(model, NETS[name][1])
    theta = o.initial()
    SEEN.clear()
    gradients = test_gradients(tests, theta, list(range(TEST)))
    operator = Damped(Hessian(o, theta), shift)
    scores = up_loss(o, theta, Exact().solve(operator, gradients), training_gradient="loss")
    assert gap(scores, expected) < 1e-8
    calls = 2 if name == "siamese" else 1
    assert sum(SEEN) <= (TEST + 1) * calls  # the test points; the training points were run when o was made
    SEEN.clear()
    again = theta + 0.1
    o.gradient(again)
    o.example_gradients(again, torch.tensor([3, 1]))
    o.directional(again, gradients)
    o.gauss_newton_product(again, gradients)
    o.subset([2, 4, 5]).hessian_product(again, gradients)
    o.with_weights(torch.ones(N)).value(again)
    assert SEEN == []


def whole(name: str) -> Objective:
    return made(name, cache_bytes=0)[0]


@pytest.mark.parametrize("name", NETS)
def test_every_call_gives_what_it_gives_without_keeping(name: str) -> None:
    kept, plain = made(name)[0], whole(name)
    assert kept._frozen is not None
    assert plain._frozen is None
    g = torch.Generator().manual_seed(3)
    theta = plain.initial() + 0.3 * torch.randn(plain.p, generator=g, dtype=D)
    V = torch.randn(plain.p, 2, generator=g, dtype=D)
    idx = torch.tensor([9, 2, 2])
    for call in (
        lambda o: o.value(theta),
        lambda o: o.gradient(theta),
        lambda o: o.outputs(theta, idx),
        lambda o: o.example_gradients(theta, idx),
        lambda o: o.directional(theta, V, idx),
        lambda o: o.hessian_product(theta, V),
        lambda o: o.gauss_newton_product(theta, V, idx),
        lambda o: o.subset(idx).gradient(theta),
        lambda o: o.module(theta)(*_arguments(o)),
    ):
        torch.testing.assert_close(call(kept), call(plain), rtol=1e-10, atol=1e-12)


def _arguments(o: Objective) -> tuple[Any, ...]:
    return o.inputs if isinstance(o.inputs, tuple) else (o.inputs,)


def test_derivatives_in_the_inputs_go_through_the_frozen_layers() -> None:
    kept, plain = made("ResNet")[0], whole("ResNet")
    theta = kept.initial()
    S = torch.randn(kept.p, 1, generator=torch.Generator().manual_seed(5), dtype=D)
    torch.testing.assert_close(kept.mixed(theta, S), plain.mixed(theta, S))
    assert float(plain.mixed(theta, S).abs().max()) > 1e-6
    delta = torch.ones(1, 6, 6, dtype=D)
    torch.testing.assert_close(kept.mixed_direction(theta, 2, delta), plain.mixed_direction(theta, 2, delta))


def test_what_is_kept_is_never_stale() -> None:
    torch.manual_seed(1)
    model, x = sequence(), IMAGES[:N].clone()
    o = Objective(model, "cross_entropy", x, Y[:N], L2)
    theta = o.initial()
    before = o.gradient(theta)
    with torch.no_grad():
        model[0].part[0].weight.mul_(2.0)  # the person's module goes on to train
    x.mul_(-1.0)  # and so do the person's data
    x.numpy()[:] = 3.0
    torch.testing.assert_close(o.gradient(theta), before, rtol=0, atol=0)
    o.inputs.mul_(1.5)  # the objective's own data, in place
    changed = Objective(sequence_as(o), "cross_entropy", 1.5 * IMAGES[:N], Y[:N], L2, cache_bytes=0)
    torch.testing.assert_close(o.gradient(theta), changed.gradient(theta))
    assert gap(o.gradient(theta), before) > 1e-3
    o.inputs = IMAGES[:N]  # and exchanged
    torch.testing.assert_close(o.gradient(theta), before)
    other = o.on(IMAGES[:4] + 1, Y[:4])
    torch.testing.assert_close(
        other.outputs(theta), o.module(theta)(IMAGES[:4] + 1).detach(), rtol=1e-10, atol=1e-12
    )


def sequence_as(o: Objective) -> nn.Module:
    return o.module(o.initial())


def test_work_in_place_on_a_kept_output_does_not_spoil_it() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        return net.fc(F.relu(net.body(x), inplace=True).add_(1.0))

    torch.manual_seed(0)
    net = frozen(Net(run, body=nn.Linear(5, 4), fc=nn.Linear(4, 3)).double(), "body")
    o = Objective(net, "cross_entropy", VECTORS[:N], Y[:N], L2)
    assert o._frozen is not None
    theta = o.initial()
    first = o.gradient(theta)
    for _ in range(3):
        torch.testing.assert_close(o.gradient(theta), first, rtol=0, atol=0)
    torch.testing.assert_close(o.outputs(theta), net(VECTORS[:N]).detach())


def batch_norm_in_training() -> nn.Module:
    net = resnet()
    net.bn.train()
    return net


def dropout() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.Dropout(0.5), nn.Linear(4, 3)).double()
    return frozen(net, "1")


@pytest.mark.parametrize("build", [batch_norm_in_training, dropout])
def test_frozen_layers_that_change_from_pass_to_pass_are_refused(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    with pytest.raises(DataError, match=r"call model\.eval\(\) first"):
        Objective(build(), "cross_entropy", IMAGES[:N], Y[:N], L2)


class Remembers(nn.Module):
    """Hands its result on by an attribute, so that skipping it would leave the last one there."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 4)
        self.state: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.state = torch.tanh(self.fc(x))
        return x


def remembering() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        net.body(x)
        return net.fc(net.body.state)

    return frozen(Net(run, body=Remembers(), fc=nn.Linear(4, 3)).double(), "body")


def by_sign() -> nn.Module:
    """Looks at its frozen features only to choose a branch."""

    def run(net: Any, x: Tensor) -> Tensor:
        mask = (net.body(x) > 0).to(x.dtype)
        return net.fc(mask * x[:, :4])

    return frozen(Net(run, body=nn.Linear(5, 4), fc=nn.Linear(4, 3)).double(), "body")


def sequence_first() -> nn.Module:
    """The frozen recurrent layer has the examples along the second axis."""

    def run(net: Any, x: Tensor) -> Tensor:
        return net.fc(net.body(x[:, :, None].transpose(0, 1))[0][-1])

    return frozen(Net(run, body=nn.GRU(1, 4), fc=nn.Linear(4, 3)).double(), "body")


@pytest.mark.parametrize("build", [remembering, by_sign, sequence_first])
def test_networks_whose_outputs_cannot_be_kept_so_simply_are_still_right(
    build: Callable[[], nn.Module],
) -> None:
    torch.manual_seed(0)
    model = build()
    kept = Objective(copy.deepcopy(model), "cross_entropy", VECTORS[:N], Y[:N], L2)
    theta = kept.initial() + 0.1
    plain = Objective(model, "cross_entropy", VECTORS[:N], Y[:N], L2, cache_bytes=0)
    V = torch.ones(plain.p, 1, dtype=D)
    torch.testing.assert_close(kept.outputs(theta), plain.outputs(theta))
    torch.testing.assert_close(kept.hessian_product(theta, V), plain.hessian_product(theta, V))
    assert (kept._frozen is None) is (build is not by_sign)


def test_memory_is_bounded_and_that_is_said() -> None:
    o, _, _ = made("sequence", cache_bytes=20 * 32 * 8)
    assert "they run once" in str(o.fixed_words())
    few, _, _ = made("sequence", cache_bytes=10 * 32 * 8)
    assert "run in every pass" in str(few.fixed_words())
    torch.testing.assert_close(few.gradient(few.initial()), o.gradient(o.initial()))
    front = Influence(o)
    assert "they run once" in front.explain()


def test_streamed_data_run_the_body_once_a_batch() -> None:
    torch.manual_seed(1)
    data = torch.utils.data.TensorDataset(IMAGES[:N], Y[:N])
    front = Influence(sequence(), "cross_entropy", data, L2, stream=True, batch_size=7, damping=1.0)
    theta, V = front.theta, torch.ones(front.objective.p, 5, dtype=D)
    SEEN.clear()
    product = front.objective.hessian_product(theta, V)
    assert sum(SEEN) <= 2 * N  # of five columns
    torch.testing.assert_close(product, whole("sequence").hessian_product(theta, V))
