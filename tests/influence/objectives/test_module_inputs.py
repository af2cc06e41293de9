"""Data, outputs, θ and weights as people have them: converted with the same numbers, or one sentence."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from influence import (
    CG,
    Damped,
    DataError,
    GaussNewton,
    Hessian,
    Objective,
    fit,
    leave_one_out,
    pert_loss,
    test_gradients,
    up_loss,
)  # fmt: skip
from influence.losses import CrossEntropy
from influence.objectives.sequential import SequentialObjective
from tests.influence.oracles import gap

G = torch.Generator().manual_seed(0)
N = 30
X = torch.randn(N, 5, generator=G, dtype=torch.float64)
Y = torch.arange(N) % 3
IDS = torch.randint(0, 9, (N, 6), generator=G)
D = torch.float64


def net(*widths):
    torch.manual_seed(0)
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    parts = [part for layer in layers for part in (layer, nn.Tanh())][:-1]
    return nn.Sequential(*parts).double()


MODEL = net(5, 4, 3)


class Apply(nn.Module):
    """A given forward pass around one linear layer."""

    def __init__(self, run, layer=None):
        super().__init__()
        self.run, self.fc = run, layer or MODEL

    def forward(self, x):
        return self.run(self.fc, x)


class Items(Dataset):
    """Pairs, or dictionaries."""

    def __init__(self, named=False):
        self.named = named

    def __len__(self):
        return N

    def __getitem__(self, i):
        return {"x": X[i], "labels": int(Y[i])} if self.named else (X[i].numpy(), int(Y[i]))


def batched(pairs):
    return torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs])


def frame():
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame(X.numpy(), index=range(100, 100 + N)), pandas.Series(Y.numpy(), index=range(N))


def sparse():
    from scipy.sparse import csr_matrix

    return csr_matrix(X.numpy()), Y.tolist()


LOADER = DataLoader(TensorDataset(X, Y), batch_size=7, collate_fn=batched)
DATA = {
    "tensors": lambda: (X, Y),
    "numpy": lambda: (X.numpy(), Y.numpy()),
    "lists": lambda: (X.tolist(), Y.tolist()),
    "pandas": frame,
    "scipy sparse": sparse,
    "int32": lambda: (X, Y.int()),
    "uint8": lambda: (X, Y.to(torch.uint8)),
    "labels (n, 1)": lambda: (X, Y[:, None]),
    "Dataset": lambda: (Items(), None),
    "Dataset of mappings": lambda: (Items(named=True), None),
    "DataLoader": lambda: (LOADER, None),
}


@pytest.mark.parametrize("kind", DATA)
def test_data_of_any_kind_give_the_same_numbers(kind):
    named = kind == "Dataset of mappings"
    model = Apply(lambda fc, x: fc(x["x"])) if named else MODEL
    o, plain = (
        Objective(model, "cross_entropy", *DATA[kind](), 0.1),
        Objective(MODEL, "cross_entropy", X, Y, 0.1),
    )
    theta = plain.initial()
    assert o.n == N
    assert torch.equal(o.targets, Y)
    assert torch.equal(o.gradient(theta), plain.gradient(theta))
    assert torch.equal(o.example_losses(theta), plain.example_losses(theta))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.o = nn.Bilinear(3, 2, 3)

    def forward(self, a, b):
        return self.o(a, b)


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.o = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, input_ids, attention_mask=None):
        return self.o((torch.tanh(self.e(input_ids)) * attention_mask[..., None]).sum(1))


class Bag(Named):
    def forward(self, batch):
        return super().forward(batch["input_ids"], batch["attention_mask"])


MASK = (torch.rand(N, 6, generator=G, dtype=D) < 0.8).to(D)


@pytest.mark.parametrize(
    ("model", "inputs", "call"),
    [
        (Two(), (X[:, :3], X[:, 3:]), lambda m, x: m(*x)),
        (Named(), {"input_ids": IDS, "attention_mask": MASK}, lambda m, x: m(**x)),
        (Bag(), {"input_ids": IDS, "attention_mask": MASK}, lambda m, x: m(x)),
        (Apply(lambda fc, x: fc(x[0] + x[1])), (X, X), lambda m, x: m(x)),
        (Apply(lambda fc, x: fc(x["x"])), {"x": X}, lambda m, x: m(x)),
    ],
    ids=["two arguments", "by name", "a mapping", "a tuple", "a mapping with the argument's name"],
)
def test_models_of_several_inputs(model, inputs, call):
    o = Objective(model.double(), "cross_entropy", inputs, Y, 0.0, batch_size=7, dtype=D)
    theta = o.initial()

    def loss(t):
        with torch.no_grad():
            for w, value in zip(copy.parameters(), o.unflatten(t).values(), strict=True):
                w.copy_(value)
        return F.cross_entropy(call(copy, inputs), Y)

    copy = o.module(theta)
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss(theta), list(copy.parameters()))])
    assert gap(o.gradient(theta), gradient) < 1e-12
    assert gap(o.example_gradients(theta).mean(0), gradient) < 1e-12
    v = torch.randn(o.p, 1, generator=torch.Generator().manual_seed(1), dtype=D)
    ahead, behind = (o.gradient(theta + s * 1e-5 * v[:, 0]) for s in (1, -1))
    assert gap(o.hessian_product(theta, v)[:, 0], (ahead - behind) / 2e-5) < 1e-7
    part = o.subset([1, 2])
    assert part.value(theta) == pytest.approx(float(o.example_losses(theta)[1:3].mean()))


@dataclass
class Output:
    logits: torch.Tensor
    hidden: torch.Tensor


OUTPUTS = {
    "logits of a mapping": (lambda fc, x: {"logits": fc(x), "hidden": x}, None),
    "a tuple of one": (lambda fc, x: (fc(x),), None),
    "a position": (lambda fc, x: (x, fc(x)), 1),
    "a key": (lambda fc, x: {"scores": fc(x), "logits": x}, "scores"),
    "an attribute": (lambda fc, x: Output(fc(x), x), "logits"),
    "a function": (lambda fc, x: (x, fc(x)), lambda out: out[1]),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_models_of_several_outputs(kind):
    run, output = OUTPUTS[kind]
    o = Objective(Apply(run), "cross_entropy", X, Y, 0.1, output=output)
    plain = Objective(MODEL, "cross_entropy", X, Y, 0.1)
    theta = o.initial()
    assert torch.equal(o.gradient(theta), plain.gradient(theta))
    assert gap(o.hessian_product(theta, theta[:, None]), plain.hessian_product(theta, theta[:, None])) < 1e-12


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.o = nn.Embedding(9, 4), nn.Linear(4, 9)

    def forward(self, ids):
        return self.o(torch.tanh(self.e(ids)))


def test_tokens_images_and_functions_of_outputs_with_several_axes():
    targets = torch.where(torch.rand(N, 6, generator=G) < 0.2, -100, IDS.roll(1, 1))
    targets[:, 0] = 1
    torch.manual_seed(0)
    model = Language().double()
    o = Objective(model, "cross_entropy", IDS, targets, 0.0, dtype=D)
    theta = o.initial()
    logits = model(IDS)
    each = torch.stack([F.cross_entropy(a, b) for a, b in zip(logits, targets, strict=True)])
    assert gap(o.example_losses(theta), each.detach()) < 1e-12
    oracle = torch.cat([g.reshape(-1) for g in torch.autograd.grad(each.mean(), list(model.parameters()))])
    assert gap(o.gradient(theta), oracle) < 1e-12

    def by_hand(outputs, y):  # sees (m, T, V)
        each = F.cross_entropy(outputs.movedim(2, 1), y, reduction="none")
        return each.sum(1) / (y != -100).sum(1)

    with pytest.raises(DataError, match="or tokens of a batch"):  # its sentences weigh by their length
        Objective(model, lambda o, y: F.cross_entropy(o.movedim(2, 1), y), IDS, targets, 0.0, dtype=D)
    own = Objective(model, by_hand, IDS, targets, 0.0, dtype=D)
    v = torch.randn(o.p, 1, generator=torch.Generator().manual_seed(1), dtype=D)
    assert gap(own.hessian_product(theta, v), o.hessian_product(theta, v)) < 1e-10
    image = nn.Conv2d(2, 2, 3, padding=1).double()
    pixels = torch.randn(6, 2, 4, 5, dtype=D, generator=G)
    auto = Objective(image, "squared_error", pixels, pixels, 0.0)
    assert float(auto.value(auto.initial())) == pytest.approx(
        float(0.5 * (image(pixels) - pixels).square().sum().detach() / 6)
    )
    with pytest.raises(DataError, match=r"it must return \(n, c\)"):
        Objective(image, "cross_entropy", pixels, torch.arange(6) % 2, 0.0)


@pytest.mark.parametrize("loss", ["squared_error", nn.MSELoss(), F.mse_loss, lambda o, y: (o[:, 0] - y) ** 2])
def test_losses_of_torch_and_of_ones_own_for_regression(loss):
    model, y = net(5, 4, 1), X.sum(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns where it broadcasts (m, 1) against (m,)
        o = Objective(model, loss, X, y, 0.0)
    factor = 0.5 if loss == "squared_error" else 1.0
    expected = factor * (model(X)[:, 0] - y).square()
    assert gap(o.example_losses(o.initial()), expected.detach()) < 1e-12
    v = torch.randn(o.p, 1, generator=torch.Generator().manual_seed(1), dtype=D)
    theta = o.initial()
    ahead, behind = (o.gradient(theta + s * 1e-5 * v[:, 0]) for s in (1, -1))
    assert gap(o.hessian_product(theta, v)[:, 0], (ahead - behind) / 2e-5) < 1e-7


# -- θ ------------------------------------------------------------------------------------------------------


def test_theta_is_a_vector_a_module_or_a_state_dict_and_a_solution_is_taken():
    o = Objective(MODEL, "cross_entropy", X, Y, 0.1)
    theta, other = o.initial(), net(5, 4, 3)
    for form in (other, other.state_dict(), nn.DataParallel(other)):
        assert torch.equal(o.vector(form), theta)
        assert torch.equal(o.gradient(form), o.gradient(theta))
        assert torch.equal(test_gradients(o, form, [0]), test_gradients(o, theta, [0]))
        V = theta[:, None]
        assert torch.equal(GaussNewton(o, form) @ V, GaussNewton(o, theta) @ V)
    solution = CG(tolerance=1e-8).solve(Damped(GaussNewton(o, theta), 0.1), test_gradients(o, theta, [0, 1]))
    assert torch.equal(up_loss(o, other, solution), up_loss(o, theta, solution.value))
    assert torch.equal(pert_loss(o, other, solution), pert_loss(o, theta, solution.value))
    with pytest.raises(DataError, match=r"0\.weight must have shape"):
        o.gradient(net(5, 6, 3))
    with pytest.raises(DataError, match=r"theta has shape \(2,\)"):
        o.gradient([1.0, 2.0])


def test_wrapped_modules_are_unwrapped_and_scripted_ones_refused():
    theta = Objective(MODEL, "cross_entropy", X, Y, 0.1).initial()
    for wrapped in (nn.DataParallel(MODEL), torch.compile(MODEL)):
        assert torch.equal(Objective(wrapped, "cross_entropy", X, Y, 0.1).initial(), theta)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(MODEL, X[:2])
    with pytest.raises(DataError, match="scripted module"):
        Objective(traced, "cross_entropy", X, Y, 0.1)


def test_half_precision_is_computed_in_float32_and_said():
    o = Objective(net(5, 4, 3).half(), "cross_entropy", X.half(), Y, 0.1)
    assert o.dtype == torch.float32
    assert "half precision" in str(o.derivatives)


# -- weights ------------------------------------------------------------------------------------------------

W = torch.rand(N, generator=G, dtype=D) * 2


@pytest.mark.parametrize("kind", [Objective, SequentialObjective])
def test_weights_enter_every_derivative_and_retraining(kind):
    o = kind(MODEL, "cross_entropy", X, Y, 0.1, weights=W, batch_size=7)
    theta = 0.3 * torch.randn(o.p, generator=torch.Generator().manual_seed(2), dtype=D)

    def value(t):
        outputs = torch.func.functional_call(MODEL, o.unflatten(t), (X,))
        return (W * F.cross_entropy(outputs, Y, reduction="none")).mean() + 0.05 * (t * t).sum()

    v = torch.randn(o.p, 2, generator=torch.Generator().manual_seed(1), dtype=D)
    assert float(o.value(theta)) == pytest.approx(float(value(theta)))
    assert gap(o.values(v), torch.stack([value(t) for t in v.T])) < 1e-12
    assert gap(o.gradient(theta), torch.func.grad(value)(theta)) < 1e-12
    assert gap(o.gradients(v)[:, 1], torch.func.grad(value)(v[:, 1])) < 1e-12
    H = torch.func.hessian(value)(theta)
    assert gap(o.hessian_product(theta, v), H @ v) < 1e-11
    assert gap(Hessian(o, theta) @ v, H @ v) < 1e-11
    J = torch.func.jacrev(lambda t: torch.func.functional_call(MODEL, o.unflatten(t), (X,)))(theta)
    B = CrossEntropy().output_hessian(o.outputs(theta), Y) * W[:, None, None]
    assert gap(GaussNewton(o, theta) @ v, torch.einsum("nap,nab,nbq->pq", J, B, J) @ v / N + 0.1 * v) < 1e-11
    idx = torch.tensor([4, 4, 20])
    part = o.subset(idx)
    assert torch.equal(part.weights, W[idx])
    assert gap(part.hessian_product(theta, v), o.hessian_product(theta, v, idx)) < 1e-12
    assert o.on(X[:2], Y[:2]).weights is None
    assert (
        gap(o.with_weights(None).gradient(theta), kind(MODEL, "cross_entropy", X, Y, 0.1).gradient(theta))
        < 1e-12
    )
    assert (
        gap(kind(MODEL, "cross_entropy", X, Y, 0.1).with_weights(W).gradient(theta), o.gradient(theta))
        < 1e-12
    )


def test_a_weighted_module_is_left_out_with_its_weight():
    o = Objective(nn.Linear(5, 3).double(), "cross_entropy", X, Y, 0.1, weights=W)
    theta = fit(o).theta
    refit = leave_one_out(o, theta, torch.tensor([3])).thetas[:, 0]
    rest = torch.cat([torch.arange(3), torch.arange(4, N)])
    assert gap(refit, fit(o.subset(rest)).theta) < 1e-7


# -- refusals -----------------------------------------------------------------------------------------------


def build(model=MODEL, loss="cross_entropy", inputs=X, targets=Y, **settings):
    return Objective(model, loss, inputs, targets, 0.1, **settings)


def poisoned():
    model = net(5, 4, 3)
    model[0].weight.data[0, 0] = float("nan")
    return model


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"inputs": DataLoader(TensorDataset(X, Y), shuffle=True), "targets": None},
            "RandomSampler.*shuffle=False",
        ),
        ({"inputs": DataLoader(TensorDataset(X, Y), 7, drop_last=True), "targets": None}, "drops 2 of 30"),
        ({"inputs": LOADER}, "brings its own targets"),
        ({"targets": None}, "targets are missing"),
        ({"targets": ["a", "b", "c"] * 10}, "encode text as integers"),
        ({"inputs": [[1.0], [1.0, 2.0]]}, "ragged"),
        ({"inputs": (X, X[:3])}, "give each the same number"),
        ({"model": Apply(lambda fc, x: (fc(x), x))}, "output=0"),
        ({"model": Apply(lambda fc, x: (fc(x), x)), "output": 2}, "returns no output 2"),
        ({"model": poisoned()}, "0.weight holds NaN"),
        ({"inputs": X[:, :3]}, "cannot take inputs"),
        ({"weights": W[:3]}, "one for each of the 30"),
        ({"weights": W * float("nan")}, "weights must be finite"),
        ({"dtype": torch.float16}, "float32 or torch.float64"),
        ({"model": lambda x: x}, "torch.nn.Module"),
        ({"targets": torch.rand(N, 3)}, "sum to 1"),
    ],
)
def test_bad_data_are_one_sentence(change, says):
    with pytest.raises(DataError, match=says) as caught:
        build(**change)
    assert "\n" not in str(caught.value)


def test_one_example_without_its_axis_and_empty_subsets():
    o = build()
    assert o.on(X[0], Y[0]).n == 1
    assert gap(o.on(X[0], Y[0]).gradient(o.initial()), o.on(X[:1], Y[:1]).gradient(o.initial())) == 0
    with pytest.raises(DataError, match="no example"):
        o.subset([])
