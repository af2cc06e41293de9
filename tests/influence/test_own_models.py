"""Models and losses as people bring them: the right number, or one sentence. Never wrong in silence."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from influence import DataError
from tests.influence.own import TESTS, TRAIN, D, N, R, X, Y, by_hand, close, net, ours


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("targets", [R, R[:, None]])
@pytest.mark.parametrize("loss", [nn.MSELoss(), F.mse_loss, "squared_error"])
def test_one_number_per_example_with_and_without_its_axis(loss: Any, targets: Tensor, shape: Any) -> None:
    model = nn.Sequential(*net(1), nn.Unflatten(1, (1,)) if shape else nn.Flatten(0))
    found = ours(model, loss, (X[TRAIN], targets[TRAIN]), (X[TESTS], targets[TESTS]))
    half = 0.5 if loss == "squared_error" else 1.0
    close(found, by_hand(net(1), lambda o, t: half * (o[:, 0] - t) ** 2, y=R))


# -- losses ------------------------------------------------------------------------------------------------


def focal(outputs: Tensor, targets: Tensor) -> Tensor:
    each = F.cross_entropy(outputs, targets, reduction="none")
    return (1 - torch.exp(-each)) ** 2 * each


@pytest.mark.parametrize(
    "loss",
    [lambda o, t: focal(o, t).mean(), lambda o, t: focal(o, t).sum(), focal],
    ids=["mean", "sum", "none"],
)
def test_a_function_may_average_sum_or_list_its_examples(loss: Callable[..., Tensor]) -> None:
    close(ours(net(), loss), by_hand(net(), focal))


def test_a_function_may_list_its_outputs_too() -> None:
    three = 0.3 * torch.stack([R, R.abs(), -R], 1)
    found = ours(net(), lambda o, t: (o - t) ** 2, (X[TRAIN], three[TRAIN]), (X[TESTS], three[TESTS]))
    close(found, by_hand(net(), lambda o, t: ((o - t) ** 2).sum(1), y=three))


def contrastive(outputs: Tensor, targets: Tensor) -> Tensor:
    z = F.normalize(outputs, dim=1)
    other = ~torch.eye(len(z), dtype=torch.bool)
    same = ((targets[:, None] == targets[None]) & other).to(z.dtype)
    log_shares = z @ z.T - torch.logsumexp((z @ z.T).masked_fill(~other, -1e9), 1, keepdim=True)
    return -(log_shares * same).sum() / same.sum().clamp(min=1)


class Centres(nn.Module):
    """A loss with parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.zeros(3, 3, dtype=D))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - self.centres[targets]).square().sum(1)


PENALISED = net()
MIXING: dict[str, tuple[Any, Any, str]] = {
    "contrastive": (contrastive, None, "no loss per example"),
    "centred by the batch": (lambda o, t: F.cross_entropy(o - o.mean(0), t), None, "no loss per example"),
    "divided by class weights": (
        lambda o, t: F.cross_entropy(o, t, weight=torch.tensor([1.0, 2.0, 0.5], dtype=o.dtype)),
        None,
        "no loss per example",
    ),
    "broadcast": (
        lambda o, t: ((o - t) ** 2).mean(),
        R,
        r"outputs \(4, 1\) broadcast against targets \(4,\)",
    ),
    "parameters of its own": (Centres(), None, "depends on parameters of its own"),
    "a penalty on the model": (
        lambda o, t: F.cross_entropy(o, t) + 0.1 * PENALISED[0].weight.square().sum(),
        None,
        "their penalty into l2",
    ),
}


@pytest.mark.parametrize("name", MIXING)
def test_a_loss_that_is_not_of_one_example_and_its_outputs_is_refused(name: str) -> None:
    loss, targets, said = MIXING[name]
    data = None if targets is None else (X[TRAIN], targets[TRAIN])
    with pytest.raises(DataError, match=said):
        ours(net(3 if targets is None else 1), loss, data)


def test_frozen_parameters_of_a_loss_are_constants() -> None:
    loss = Centres().requires_grad_(False)
    loss.centres += torch.eye(3, dtype=D)
    close(ours(net(), loss), by_hand(net(), loss))


def test_losses_of_probabilities_and_of_truth_values() -> None:
    bits = Y > 0
    shares = nn.Sequential(*net(1), nn.Sigmoid())
    data = ((X[TRAIN], bits[TRAIN]), (X[TESTS], bits[TESTS]))
    expected = by_hand(
        net(1), lambda o, t: F.binary_cross_entropy_with_logits(o[:, 0], t.double(), reduction="none"), y=bits
    )
    close(ours(shares, nn.BCELoss(), *data), expected)
    close(ours(net(1), nn.BCEWithLogitsLoss(), *data), expected)
    named = nn.Sequential(*net(), nn.Softmax(1))
    close(ours(named, lambda o, t: -o.gather(1, t[:, None]).log().mean()), by_hand(net()))


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (
            lambda o, t: F.cross_entropy(o.detach(), t),
            "gradient in the outputs that differs from differences",
        ),
        (lambda o, t: (o.argmax(1) != t).double().mean(), "a gradient of zero wherever one looks"),
        (nn.CrossEntropyLoss, r"not its class: CrossEntropyLoss\(\)"),
    ],
)
def test_a_loss_without_a_gradient_is_refused(loss: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        ours(net(), loss)


class Noisy(nn.Module):
    """Draws random numbers in evaluation mode too, so rarely that two passes agree."""

    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.draw = net(), draw

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + self.draw(x))


def seeded(x: Tensor) -> Tensor:
    torch.manual_seed(0)
    return 0.1 * torch.randn(4, dtype=x.dtype)


def test_a_model_that_draws_random_numbers_is_refused_unless_it_seeds_them() -> None:
    for draw in (
        lambda x: F.dropout(x, 1e-6) - x,
        lambda x: 1e-12 * torch.randn_like(x),
        lambda x: 0.0 * np.random.rand(),
    ):
        with pytest.raises(DataError, match="draws random numbers in every pass"):
            ours(Noisy(draw).eval())
    rare = nn.Sequential(*net()[:2], nn.Dropout(1e-6), net()[2]).train()
    with pytest.raises(DataError, match=r"call model\.eval\(\) first"):
        ours(rare)
    close(ours(rare.eval()), by_hand(net()))
    close(ours(Noisy(seeded)), by_hand(Noisy(seeded)))


def test_another_thread_that_draws_is_not_taken_for_the_model() -> None:
    stop = threading.Event()

    def draw() -> None:
        while not stop.is_set():
            torch.rand(10)

    # Both nets are made before the other thread starts: it would draw between a seed and their weights.
    plain, model = net(), Noisy(lambda x: F.dropout(x, 1e-6) - x).eval()
    other = threading.Thread(target=draw)
    other.start()
    try:
        for _ in range(5):
            close(ours(plain), by_hand(plain))
            with pytest.raises(DataError, match="draws random numbers in every pass"):
                ours(model)
    finally:
        stop.set()
        other.join()


# -- models ------------------------------------------------------------------------------------------------


class Doubling(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def hooked(register: str) -> nn.Module:
    model = net()
    if register == "forward":
        model[0].register_forward_hook(lambda part, given, found: 2 * found)
    elif register == "before":
        model[2].register_forward_pre_hook(lambda part, given: (given[0] + 1,))
    elif register == "patched":
        model[1].forward = torch.sin
    else:
        model = Doubling(*net())
    return model


@pytest.mark.parametrize("register", ["forward", "before", "patched", "subclass"])
def test_known_layers_that_do_more_than_their_class_lose_the_fast_path(register: str) -> None:
    close(ours(hooked(register)), by_hand(hooked(register)))


class Remembers(nn.Module):
    """Keeps a result with its graph in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> Tensor:
        self.hidden = self.net[:2](x)
        return self.net[2](self.hidden)


def test_a_module_that_keeps_results_of_earlier_passes() -> None:
    model = Remembers()
    model(X)  # holds a graph before it comes
    close(ours(model, l2_parameters="all"), by_hand(net()))
    old = net()
    nn.utils.weight_norm(old[0])
    new = net()
    nn.utils.parametrizations.weight_norm(new[0])
    found, expected = ours(old), ours(new)
    torch.testing.assert_close(found, expected)


class Locked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.lock = net(), threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Logarithm(nn.Module):
    """Outputs that are NaN, everywhere or at one example."""

    def __init__(self, where: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.where = net(), where

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(self.where(x)[:, None], torch.nan, self.net(x))


IMAGES = X[TRAIN].reshape(N, 1, 2, 2)
AWKWARD: dict[str, tuple[Callable[[], Any], str]] = {
    "a lock": (lambda: ours(Locked()), "cannot be copied .cannot pickle '_thread.lock' object"),
    "NaN": (
        lambda: ours(Logarithm(lambda x: x[:, 0] < 9)),
        "outputs are NaN or infinite on its",
    ),
    "NaN at one": (
        lambda: ours(Logarithm(lambda x: (x == X[N - 1]).all(1))),
        f"the loss of training point {N - 1} is NaN or infinite",
    ),
    "other features": (
        lambda: ours(net(), test=(X[TESTS, :3], Y[TESTS])),
        "those that it was made with have",
    ),
    "nested": (
        lambda: ours(net(), train=(torch.nested.nested_tensor(list(X[TRAIN])), Y[TRAIN])),
        "to_padded_tensor",
    ),
    "whole numbers": (lambda: ours(net(), train=((3 * X[TRAIN]).long(), Y[TRAIN])), "pass floating inputs"),
    "images and masks": (
        lambda: ours(nn.Conv2d(1, 3, 1).double(), train=(IMAGES, Y[:N, None, None].expand(N, 2, 2))),
        "with the classes second",
    ),
}


@pytest.mark.parametrize("name", AWKWARD)
def test_what_cannot_be_done_is_one_sentence(name: str) -> None:
    call, said = AWKWARD[name]
    with pytest.raises(DataError, match=said):
        call()


def test_inference_mode_is_named() -> None:
    with torch.inference_mode(), pytest.raises(DataError, match=r"inside torch\.inference_mode"):
        ours(nn.Sequential(net(), nn.LayerNorm(3)).double())
    with torch.no_grad():
        found = ours(net())
    close(found, by_hand(net()))


class Spoils(nn.Module):
    """Works on its inputs in place."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.change = net(), change

    def forward(self, x: Tensor) -> Tensor:
        self.change(x)
        return self.net(x)


@pytest.mark.parametrize("change", [lambda x: x.sub_(0.5), lambda x: x.clamp_(-1, 1), F.relu_])
def test_work_in_place_on_the_inputs_leaves_the_data_alone(change: Callable[[Tensor], Any]) -> None:
    model, x = Spoils(change), X.clone()
    found = ours(model, train=(x[TRAIN], Y[TRAIN]), test=(x[TESTS], Y[TESTS]))
    assert torch.equal(x, X)
    close(found, by_hand(model))


class Rotates(nn.Module):
    """A complex buffer, as of rotary embeddings, of which a cast to a real type would drop a part."""

    def __init__(self, trained: bool = False, held: bool = False) -> None:
        super().__init__()
        self.net = net()
        turn = torch.polar(torch.ones(2, dtype=D), torch.tensor([0.4, 1.1], dtype=D)).to(torch.complex64)
        if trained or held:
            self.turn = nn.Parameter(turn, requires_grad=trained)
        else:
            self.register_buffer("turn", turn)

    def forward(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.reshape(-1, 2, 2).contiguous())
        return self.net(torch.view_as_real(pairs * self.turn.to(pairs.dtype)).reshape(-1, 4))


@pytest.mark.parametrize("held", [False, True])
def test_what_is_complex_stays_complex(held: bool) -> None:
    close(ours(Rotates(held=held)), by_hand(Rotates(held=held)))


def test_a_complex_parameter_is_refused() -> None:
    with pytest.raises(DataError, match="turn is complex, and θ is real"):
        ours(Rotates(trained=True))
