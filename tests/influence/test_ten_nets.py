"""Scores on ten nets of different kinds against a brute-force float64 computation written here.

The brute force knows nothing of the library: the total loss, its gradient and its dense Hessian by double
backward, a dense solve, and one gradient per example.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from influence import CG, Damped, Exact, Hessian, Objective, test_gradients, up_loss
from tests.influence.oracles import by_double_backward, damped_scores, gap

N, TEST, L2, D = 16, 3, 0.02, torch.float64
G = torch.Generator().manual_seed(0)


def noise(*shape):
    return torch.randn(N + TEST, *shape, generator=G, dtype=D)


VECTORS, IMAGES, SEQUENCES = noise(5), noise(1, 6, 6), noise(4, 3)
IDS = torch.randint(1, 9, (N + TEST, 5), generator=G)
PADDED = torch.where(torch.arange(5) < torch.randint(2, 6, (N + TEST, 1), generator=G), IDS, 0)
Y = torch.arange(N + TEST) % 3


class Net(nn.Module):
    """Parts and a forward pass over them."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, *x):
        return self.run(self, *x)


def cnn_with_batch_norm():
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3)
    ).double()
    net(IMAGES)  # running statistics
    return net


def resnet():
    def run(net, x):
        h = torch.relu(net.stem(x))
        h = torch.relu(h + net.b(torch.relu(net.n(net.a(h)))))
        return net.fc(h.mean((2, 3)))

    return Net(
        run, stem=nn.Conv2d(1, 3, 3, 2), a=nn.Conv2d(3, 3, 3, padding=1), n=nn.BatchNorm2d(3),
        b=nn.Conv2d(3, 3, 3, padding=1), fc=nn.Linear(3, 3),
    )  # fmt: skip


def vision_transformer():
    def run(net, x):
        patches = net.patch(x).flatten(2).transpose(1, 2)  # (n, 4, 4)
        return net.fc(net.norm(net.blocks(patches)).mean(1))

    layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, norm_first=True, activation="gelu")
    blocks = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    return Net(run, patch=nn.Conv2d(1, 4, 3, 3), blocks=blocks, norm=nn.LayerNorm(4), fc=nn.Linear(4, 3))


def recurrent(kind):
    return Net(lambda net, x: net.fc(net.r(x)[0][:, -1]), r=kind(3, 4, batch_first=True), fc=nn.Linear(4, 3))


def masked_transformer():
    def run(net, ids):
        mask = ids == 0
        h = net.t(net.e(ids), src_key_padding_mask=mask)
        return net.fc((h * ~mask[..., None]).sum(1) / (~mask).sum(1, keepdim=True))

    layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
    return Net(run, e=nn.Embedding(9, 4), t=nn.TransformerEncoder(layer, 1), fc=nn.Linear(4, 3))


def siamese():
    def run(net, a, b):
        return net.fc((net.body(a) - net.body(b)).abs())

    return Net(run, body=nn.Sequential(nn.Linear(5, 4), nn.Tanh()), fc=nn.Linear(4, 3))


def cross_entropy(outputs, y):
    return F.cross_entropy(outputs, y, reduction="none")


def half_square(outputs, y):
    return 0.5 * (outputs - y).square().sum(1)


NETS = {
    "MLP": (lambda: nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 3)), VECTORS, Y),
    "CNN with BatchNorm": (cnn_with_batch_norm, IMAGES, Y),
    "ResNet": (resnet, IMAGES, Y),
    "ViT": (vision_transformer, IMAGES, Y),
    "LSTM": (lambda: recurrent(nn.LSTM), SEQUENCES, Y),
    "GRU": (lambda: recurrent(nn.GRU), SEQUENCES, Y),
    "transformer with mask": (masked_transformer, PADDED, Y),
    "embedding bag": (lambda: nn.Sequential(nn.EmbeddingBag(9, 4), nn.Tanh(), nn.Linear(4, 3)), IDS, Y),
    "autoencoder": (lambda: nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 5)), VECTORS, VECTORS),
    "siamese": (siamese, (VECTORS, VECTORS.roll(1, 0)), Y),
}


def brute_force(model, loss, inputs, targets, damping):
    """Scores of all training points ``(N, TEST)``, and the δ that was used."""
    model = model.eval()
    several = inputs if isinstance(inputs, tuple) else (inputs,)

    def losses(rows):
        return loss(model(*(x[rows] for x in several)), targets[rows])

    return damped_scores(*by_double_backward(model, losses, N, N + TEST, L2), N, damping)


def averaged_embeddings(bag):
    """The same function of the same parameters: torch has no second derivative of EmbeddingBag."""
    e = nn.Embedding.from_pretrained(bag[0].weight.detach().clone(), freeze=False)
    return Net(lambda net, ids: net.tail(net.e(ids).mean(1)), e=e, tail=bag[1:])


def part(inputs, rows):
    return tuple(x[rows] for x in inputs) if isinstance(inputs, tuple) else inputs[rows]


@pytest.mark.parametrize("name", NETS)
def test_scores_equal_a_brute_force_computation(name):
    build, inputs, targets = NETS[name]
    torch.manual_seed(1)
    model = build().double().eval()
    autoencoder = name == "autoencoder"
    by_hand, named = (half_square, "squared_error") if autoencoder else (cross_entropy, "cross_entropy")
    by_parts = averaged_embeddings(model) if name == "embedding bag" else model
    with sdpa_kernel(SDPBackend.MATH):  # torch has no second derivative of the fused attention
        expected, shift = brute_force(by_parts, by_hand, inputs, targets, 0.1)
    train, test = slice(0, N), slice(N, N + TEST)
    o = Objective(model, named, part(inputs, train), targets[train], L2, batch_size=7, dtype=D)
    tests = o.on(part(inputs, test), targets[test])
    theta = o.initial()
    gradients = test_gradients(tests, theta, list(range(TEST)))
    operator = Damped(Hessian(o, theta), shift)
    for solver in (Exact(), CG(tolerance=1e-12, max_iterations=2000)):
        scores = up_loss(o, theta, solver.solve(operator, gradients), training_gradient="loss")
        assert gap(scores, expected) < 1e-8
