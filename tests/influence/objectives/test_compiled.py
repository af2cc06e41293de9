"""The compiled kernel against the same net by autograd and by layers, in both floating types."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from influence.curvature.operators import Hessian
from influence.errors import DataError
from influence.losses import CrossEntropy
from influence.objectives import compiled
from influence.objectives.compiled import CompiledNet, compiled_net, kernel
from influence.objectives.module import Objective
from influence.objectives.sequential import network_objective
from tests.helpers import ROOT, environment

needs_compiler = pytest.mark.skipif(compiled._compiler() is None, reason="no C compiler on this machine")


def paper_net() -> nn.Module:
    """Every layer of the paper's net, smaller: strides 1 and 2, odd and even maps, a mean, a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 3, stride=2), nn.Tanh(), nn.Conv2d(8, 11, 1),
        nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(11, 5),
    )  # fmt: skip


def uneven_net() -> nn.Module:
    """Uneven kernels and strides (one longer than its kernel), no biases, a wide layer, flattened maps."""
    return nn.Sequential(
        nn.Conv2d(2, 3, (2, 3), stride=(3, 1), bias=False), nn.Tanh(), nn.Conv2d(3, 17, 2), nn.Tanh(),
        nn.Flatten(), nn.Linear(17 * 2 * 6, 4, bias=False), nn.Tanh(), nn.Linear(4, 5),
    )  # fmt: skip


def dense_net() -> nn.Module:
    """Two linear layers on flat inputs, the outputs through tanh."""
    return nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 5), nn.Tanh())


CASES = {"paper": (paper_net, (1, 9, 10)), "uneven": (uneven_net, (2, 8, 9)), "dense": (dense_net, (7,))}


# Every form of cross-entropy: the class q = e_y, and those whose q has another sum or several entries.
LOSSES = {
    "plain": CrossEntropy(),
    "smoothed": CrossEntropy(label_smoothing=0.2),
    "class weights": CrossEntropy(class_weights=(0.5, 2.0, 0.0, 1.0, 3.0)),
    "ignored": CrossEntropy(ignore_index=2),
    "soft": CrossEntropy(),
    "soft and weighted": CrossEntropy(label_smoothing=0.1, class_weights=(0.5, 2.0, 0.0, 1.0, 3.0)),
}


def build(
    name: str, n: int = 37, dtype: torch.dtype = torch.float64, kind=Objective, l2: float = 0.0, loss="plain"
):
    torch.manual_seed(3)
    make, shape = CASES[name]
    g = torch.Generator().manual_seed(1)
    X, y = torch.randn(n, *shape, generator=g, dtype=torch.float64), torch.arange(n) % 5
    if loss.startswith("soft"):
        y = torch.rand(n, 5, generator=g, dtype=torch.float64)
        y = y / y.sum(dim=1, keepdim=True)
    return kind(make().double(), LOSSES[loss], X, y, l2, l2_parameters="weights", dtype=dtype)


def columns(p: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (
        torch.randn(p, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64).mul(0.4).to(dtype)
    )


def made(name: str, **settings) -> CompiledNet:
    net, reason = compiled_net(build(name, kind=network_objective, **settings))
    assert net is not None, reason
    return net


@needs_compiler
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("n", [1 + 1, 8, 37, 200])
def test_sums_are_those_of_autograd(name, n):
    oracle, net = build(name, n), made(name, n=n)
    thetas = columns(oracle.p)
    gradients, losses = net.gradients_and_losses(thetas)
    torch.testing.assert_close(gradients / n, oracle.gradients(thetas), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(losses, oracle.example_losses_many(thetas), rtol=1e-12, atol=1e-13)
    assert torch.equal(net.gradients(thetas), gradients)
    assert torch.equal(net.losses(thetas), losses)
    chosen = torch.tensor([1, 0, 1, n - 1])  # repeats count
    torch.testing.assert_close(
        net.gradients(thetas, chosen) / 4, oracle.subset(chosen).gradients(thetas), rtol=1e-12, atol=1e-13
    )


@needs_compiler
@pytest.mark.parametrize("loss", LOSSES)
def test_every_cross_entropy_has_its_own_derivatives(loss):
    oracle, net = build("dense", loss=loss), made("dense", loss=loss)
    thetas = columns(oracle.p)
    gradients, losses = net.gradients_and_losses(thetas)
    torch.testing.assert_close(gradients / oracle.n, oracle.gradients(thetas), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(losses, oracle.example_losses_many(thetas), rtol=1e-12, atol=1e-13)
    theta = thetas[:, 0].contiguous()
    found = net.hessian(theta) / oracle.n
    torch.testing.assert_close(found, Hessian(oracle, theta).dense(), rtol=1e-10, atol=1e-11)


@needs_compiler
@pytest.mark.parametrize("name", CASES)
def test_a_column_leaves_its_own_example_out(name):
    oracle, net = build(name), made(name)
    thetas, skip = columns(oracle.p), torch.tensor([3, -1, 36])
    found = net.gradients(thetas, skip=skip)
    for j, point in enumerate(skip.tolist()):
        kept = torch.tensor([i for i in range(oracle.n) if i != point])
        own = oracle.subset(kept).gradient(thetas[:, j].contiguous()) * len(kept)
        torch.testing.assert_close(found[:, j], own, rtol=1e-12, atol=1e-12)


@needs_compiler
@pytest.mark.parametrize("name", CASES)
def test_the_hessian_is_exact(name):
    # The oracle of small nets is autograd; products of the layers, held against it elsewhere, are faster.
    oracle, net = build(name, kind=Objective if name == "dense" else network_objective), made(name)
    theta, idx = columns(oracle.p)[:, 0].contiguous(), torch.tensor([5, 0, 5, 20])
    # An error in any entry shows in the product with a random block; all entries would take ten seconds.
    block = torch.randn(oracle.p, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for chosen in (None, idx):
        count = oracle.n if chosen is None else len(chosen)
        found = net.hessian(theta, chosen) / count
        expected = Hessian(oracle, theta, chosen) @ block
        torch.testing.assert_close(found @ block, expected, rtol=1e-10, atol=1e-11)
        assert torch.equal(found, found.T)
    weights = torch.tensor([0.5, -2.0, 0.0, 3.0])
    product = oracle.hessian_product(theta, block, idx, weights)
    torch.testing.assert_close(net.hessian(theta, idx, weights) @ block / 4, product, rtol=1e-10, atol=1e-11)


@needs_compiler
@pytest.mark.parametrize("name", CASES)
def test_single_precision_is_right_to_its_rounding(name):
    oracle, net = build(name), made(name, dtype=torch.float32)
    thetas = columns(oracle.p)
    found = net.gradients(thetas.float()) / oracle.n
    torch.testing.assert_close(found.double(), oracle.gradients(thetas), rtol=1e-4, atol=2e-6)


@needs_compiler
def test_large_outputs_overflow_nothing():
    oracle, net = build("dense"), made("dense")
    thetas = columns(oracle.p) * 300
    gradients, losses = net.gradients_and_losses(thetas)
    torch.testing.assert_close(losses, oracle.example_losses_many(thetas), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradients / oracle.n, oracle.gradients(thetas), rtol=1e-9, atol=1e-12)


@needs_compiler
def test_threads_share_the_examples():
    objective = build("paper", n=300, kind=network_objective)
    one, several = compiled_net(objective)[0], compiled_net(objective, threads=3)[0]
    thetas, skip = columns(objective.p), torch.tensor([3, -1, 299])
    pairs = (net.gradients_and_losses(thetas, skip=skip) for net in (one, several))
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    weights = torch.rand(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    every = torch.arange(300)
    torch.testing.assert_close(
        one.hessian(thetas[:, 0], every, weights), several.hessian(thetas[:, 0], every, weights),
        rtol=1e-11, atol=1e-11,
    )  # fmt: skip
    assert torch.equal(several.gradients(thetas), several.gradients(thetas))


def test_what_the_kernel_cannot_do_is_said():
    X, y = torch.randn(6, 1, 6, 6, dtype=torch.float64), torch.arange(6) % 3
    padded = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(72, 3)).double()
    rectified = nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.ReLU(), nn.Linear(3, 3)).double()
    for module in (padded, rectified):
        net, reason = compiled_net(network_objective(module, "cross_entropy", X, y, 0.1))
        assert net is None
        assert "no layer" in reason
    plain = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).double()
    assert "sequential" in compiled_net(Objective(plain, "cross_entropy", X, y, 0.1))[1]
    assert "float16" in kernel(torch.float16).reason
    with pytest.raises(DataError, match="threads"):
        compiled_net(network_objective(plain, "cross_entropy", X, y, 0.1), threads=0)


@needs_compiler
def test_bad_arguments_are_named():
    net = made("dense")
    with pytest.raises(DataError, match="parameters must be"):
        net.gradients(torch.zeros(4, 2))
    for idx in (torch.tensor([37]), torch.tensor([-1]), torch.tensor([], dtype=torch.long)):
        with pytest.raises(DataError, match="lies outside"):
            net.gradients(columns(net.p), idx)


PROBE = "import torch; from influence.objectives.compiled import kernel; k = kernel(torch.float64); "


def probe(code: str, **extra: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROBE + code],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
        cwd=ROOT,
        env=environment(PYTHONPATH=str(ROOT), **extra),
    )
    return done.stdout.strip()


def test_without_a_compiler_the_reason_is_kept(tmp_path: Path):
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'cc 0.0'\n[ \"$1\" = --version ]\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    show = "print(k.library is None, k.reason); kernel.cache_clear(); "
    switch = "import os; os.environ['CC'] = ''; k = kernel(torch.float64); " + show
    off = "os.environ['INFLUENCE_KERNEL'] = 'off'; k = kernel(torch.float64); " + show
    found = probe(
        show + switch + off, CC=str(broken), PATH="/nonexistent", XDG_CACHE_HOME=str(tmp_path / "cache")
    )
    first, second, third = found.splitlines()
    assert "did not compile" in first
    assert "no C compiler" in second
    assert third == "True INFLUENCE_KERNEL=off"


@needs_compiler
def test_the_cache_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernel.cache_clear()
    assert kernel(torch.float32).library is not None
    made = list((tmp_path / "influence" / "kernels").iterdir())
    assert [path.suffix for path in made] == [".so"]
    times = made[0].stat().st_mtime_ns
    kernel.cache_clear()
    assert kernel(torch.float32).library is not None
    assert made[0].stat().st_mtime_ns == times  # compiled once
    kernel.cache_clear()


@needs_compiler
def test_with_nowhere_to_keep_it_the_kernel_lives_in_a_temporary_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    kernel.cache_clear()
    assert kernel(torch.float32).library is not None
    kernel.cache_clear()
