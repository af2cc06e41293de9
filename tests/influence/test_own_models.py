"""Models, losses and data as people bring them: the right number, or one sentence. Never wrong in silence."""

from __future__ import annotations

import copy
import threading
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    TensorDataset,
)

from influence import DataError, Influence, Probability

N, TEST, L2, DAMPING, D = 16, 3, 0.05, 2.0, torch.float64
G = torch.Generator().manual_seed(0)
X = torch.randn(N + TEST, 4, generator=G, dtype=D)
Y = torch.arange(N + TEST) % 3
R = torch.randn(N + TEST, generator=G, dtype=D)
TRAIN, TESTS = slice(0, N), slice(N, N + TEST)


def net(outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, outputs)).double()


def ours(
    model: Any, loss: Any = "cross_entropy", train: Any = None, test: Any = None, **settings: Any
) -> Tensor:
    train = (X[TRAIN], Y[TRAIN]) if train is None else train
    test = (X[TESTS], Y[TESTS]) if test is None else test
    influence = Influence(model, loss, train, L2, damping=DAMPING, curvature="hessian", **settings)
    changes = influence.influence_on(test, correction="first_order").changes
    assert changes is not None
    return changes


def by_hand(model: nn.Module, loss: Any = None, x: Tensor = X, y: Tensor = Y) -> Tensor:
    """Changes by removal ``(N, TEST)`` from double backward and a dense solve, without the library."""
    model = copy.deepcopy(model)
    weights = [w for w in model.parameters() if w.requires_grad]
    each_loss = loss or (lambda o, t: F.cross_entropy(o, t, reduction="none"))

    def flat(value: Tensor, graph: bool = False) -> Tensor:
        found = torch.autograd.grad(
            value, weights, create_graph=graph, retain_graph=True, materialize_grads=True
        )
        return torch.cat([g.reshape(-1) for g in found])

    def losses(rows: slice) -> Tensor:
        return each_loss(model(x[rows].clone()), y[rows])

    penalty = 0.5 * L2 * sum(w.square().sum() for w in weights)
    gradient = flat(losses(TRAIN).mean() + penalty, True)
    H = torch.stack([flat(entry) for entry in gradient])
    theta = torch.cat([w.detach().reshape(-1) for w in weights])
    each = torch.stack([flat(losses(slice(i, i + 1)).sum()) for i in range(N + TEST)])
    s = torch.linalg.solve(H + DAMPING * torch.eye(len(H), dtype=D), each[TESTS].T)
    return (each[TRAIN] + L2 * theta) @ s / (N - 1)


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("targets", [R, R[:, None]])
@pytest.mark.parametrize("loss", [nn.MSELoss(), F.mse_loss, "squared_error"])
def test_one_number_per_example_with_and_without_its_axis(loss: Any, targets: Tensor, shape: Any) -> None:
    model = nn.Sequential(*net(1), nn.Unflatten(1, (1,)) if shape else nn.Flatten(0))
    found = ours(model, loss, (X[TRAIN], targets[TRAIN]), (X[TESTS], targets[TESTS]))
    half = 0.5 if loss == "squared_error" else 1.0
    close(found, by_hand(net(1), lambda o, t: half * (o[:, 0] - t) ** 2, y=R))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)


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


# -- data --------------------------------------------------------------------------------------------------


class Pairs(Dataset[Any]):
    def __init__(self, of: Callable[[int], Any]) -> None:
        self.of = of

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        if i >= N:
            raise IndexError(i)
        return self.of(i)


class Foreign:
    """A dataset of another library: a length and an index, no base class of torch's."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        return {"x": X[i], "label": int(Y[i])}


class ByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Stream(IterableDataset[Any]):
    def __init__(self, order: Callable[[], Any]) -> None:
        self.order = order

    def __iter__(self) -> Any:
        return iter([(X[i], Y[i]) for i in self.order()])


Example = namedtuple("Example", ["x", "y"])
BY_NAME = ({"x": X[TESTS]}, Y[TESTS])
GOOD: dict[str, tuple[Any, Any]] = {
    "list of pairs": ([(X[i], Y[i]) for i in range(N)], None),
    "list of pairs with numbers": ([(X[i].numpy(), int(Y[i])) for i in range(N)], None),
    "list of mappings": ([{"x": X[i], "labels": Y[i]} for i in range(N)], BY_NAME),
    "mapping": ({"x": X[TRAIN], "targets": Y[TRAIN]}, {"x": X[TESTS], "targets": Y[TESTS]}),
    "foreign dataset": (Foreign(), BY_NAME),
    "named tuples": (Pairs(lambda i: Example(X[i], Y[i])), None),
    "no batches": (DataLoader(TensorDataset(X[TRAIN], Y[TRAIN]), batch_size=None), None),
    "whole batches": (DataLoader([(X[:9], Y[:9]), (X[9:N], Y[9:N])], batch_size=None), None),  # type: ignore[arg-type]
    "stream": (Stream(lambda: range(N)), None),
    "random numbers that are no example": (Pairs(lambda i: (X[i], Y[i])), None),
}


def test_one_test_point_and_lists_and_tables_of_numbers() -> None:
    import pandas as pd

    expected = by_hand(net())
    for one in ((X[N], Y[N]), (X[N], int(Y[N])), (X[N].tolist(), int(Y[N])), (X[N], Y[N : N + 1])):
        close(ours(net(), test=one), expected[:, :1])
    for rows in (
        list(X[TRAIN]),
        list(X[TRAIN].numpy()),
        X[TRAIN].to_sparse(),
        X[TRAIN].to_sparse_csr(),
        X[TRAIN].clone().requires_grad_(True),
        pd.DataFrame(X[TRAIN].numpy()).astype(object),
        pd.DataFrame(X[TRAIN].numpy()).astype("Float64"),
    ):
        found = ours(net(), train=(rows, pd.Series(Y[TRAIN].numpy()).astype("Int64")))
        assert not found.requires_grad
        close(found, expected)
    theta = torch.cat([w.detach().reshape(-1) for w in net().parameters()])
    close(ours(net(), theta=theta.numpy()), expected)
    with pytest.raises(DataError, match="hold text"):
        ours(net(), train=(X[TRAIN], pd.Series(list("ab" * (N // 2))).astype("category")))


@pytest.mark.parametrize("name", GOOD)
def test_data_that_hold_their_targets(name: str) -> None:
    train, test = GOOD[name]
    close(ours(net() if test is None else ByName(), train=train, test=test), by_hand(net()))


def test_a_mapping_that_holds_targets_is_no_unlabelled_one() -> None:
    influence = Influence(ByName(), "cross_entropy", {"x": X[TRAIN], "labels": Y[TRAIN]}, L2)
    asked = influence.influence_on({"x": X[TESTS], "labels": Y[TESTS]}, of=Probability())
    plain = influence.influence_on(({"x": X[TESTS]}, Y[TESTS]), of="probability")
    assert asked.changes is not None
    assert plain.changes is not None
    close(asked.changes, plain.changes)


def twice(items: list[Any]) -> tuple[Tensor, Tensor]:
    x, y = torch.stack([i[0] for i in items]), torch.stack([i[1] for i in items])
    return torch.cat([x, x + 0.1]), torch.cat([y, y])


HELD = TensorDataset(X[TRAIN], Y[TRAIN])
BAD: dict[str, tuple[Any, str]] = {
    "batch sampler that drops": (
        DataLoader(
            TensorDataset(X[TRAIN], Y[TRAIN]),
            batch_sampler=BatchSampler(SequentialSampler(range(N)), 3, True),
        ),
        "drops 1 of 16 examples",
    ),
    "stream that drops": (
        DataLoader(Stream(lambda: range(N)), batch_size=3, drop_last=True),
        "may drop its last",
    ),
    "collate_fn that adds": (
        DataLoader(HELD, batch_size=4, collate_fn=twice),
        "made 32 examples of the 16",
    ),
    "augmentation": (Pairs(lambda i: (X[i] + torch.randn(4), Y[i])), "another example when it is read again"),
    "stream in a random order": (Stream(lambda: torch.randperm(N)), "another example when it is read again"),
    "an index as the last part": (Pairs(lambda i: (X[i], Y[i], i)), "the last is the target, the others are"),
    "an entry too many": (
        [{"x": X[i], "labels": Y[i], "id": i} for i in range(N)],
        "leave out the entries 'x', 'id' that it does not take",
    ),
    "no targets": ([X[i] for i in range(N)], r"pass \(inputs, targets\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_data_in_which_an_index_would_lie_are_refused(name: str) -> None:
    train, said = BAD[name]
    torch.manual_seed(0)
    with pytest.raises(DataError, match=said):
        ours(ByName(), train=train)
