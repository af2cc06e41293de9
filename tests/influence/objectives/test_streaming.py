"""Streamed objectives answer as those in memory do; scores on disk resume; memory does not grow with n."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from influence import (
    CG,
    DataError,
    Exact,
    Hessian,
    fit,
    predicted_change,
    score_files,
    self_influence,
    up_loss,
)
from influence.objectives.streaming import ArraySource, ProducedSource, stream
from influence.score_files import StreamedScores, stream_scores
from tests.helpers import PATIENCE, ROOT, environment
from tests.influence.objectives.distributed_worker import contract, linear, network


def sources(whole, tmp_path: Path) -> dict[str, object]:
    X = whole.X.dense().numpy() if hasattr(whole, "X") else whole.inputs.numpy()
    y = whole.targets.numpy()
    np.save(tmp_path / "X.npy", X)
    return {
        "array": ArraySource(X, y),
        "mapped": ArraySource(np.load(tmp_path / "X.npy", mmap_mode="r"), y),
        "produced": ProducedSource(len(y), lambda start, stop: (X[start:stop], y[start:stop])),
    }


@pytest.mark.parametrize("make", [linear, network])
@pytest.mark.parametrize("kind", ["array", "mapped", "produced"])
def test_every_call_equals_the_one_in_memory(make, kind: str, tmp_path: Path) -> None:
    whole = make()
    streamed = stream(whole, sources(whole, tmp_path)[kind], batch_size=17)
    g = torch.Generator().manual_seed(0)
    V = torch.randn(whole.p, 3, generator=g, dtype=torch.float64) * 0.3
    found = contract(whole, streamed, V[:, 0] + 0.1, V)
    assert {name: value for name, value in found.items() if not value <= 1e-12} == {}


def test_fits_solves_and_self_influence(tmp_path: Path) -> None:
    whole = linear()
    streamed = stream(whole, sources(whole, tmp_path)["mapped"], batch_size=32)
    theta = fit(streamed).theta
    torch.testing.assert_close(theta, fit(whole).theta, rtol=1e-10, atol=1e-12)
    G = whole.example_gradients(theta, torch.tensor([3, 9])).T.contiguous()
    expected = Exact().solve(Hessian(whole, theta), G).value
    for solver in (Exact(), CG(), CG(preconditioner="kronecker"), CG(preconditioner="jacobi")):
        found = solver.solve(Hessian(streamed, theta), G).value
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(
        self_influence(streamed, theta, Hessian(streamed, theta)),
        self_influence(whole, theta, Hessian(whole, theta)),
    )


def scores_of(folder: Path, whole, **settings):
    theta = torch.full((whole.p,), 0.1, dtype=torch.float64)
    S = torch.randn(whole.p, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return stream_scores(whole, theta, S, folder, rows=40, **settings), up_loss(whole, theta, S).numpy()


def test_scores_on_disk_are_those_in_memory(tmp_path: Path) -> None:
    done: list[int] = []
    scores, expected = scores_of(tmp_path, linear(), progress=done.append)
    assert done == [40, 80, 120, 160, 200, 203]
    np.testing.assert_allclose(np.concatenate([part for _, part in scores]), expected, rtol=1e-12)
    np.testing.assert_allclose(scores.column(2), expected[:, 2], rtol=1e-12)
    index, value = scores.top(1, 7)
    assert index.tolist() == np.argsort(-np.abs(expected[:, 1]), kind="stable")[:7].tolist()
    np.testing.assert_allclose(value, expected[index, 1])
    assert predicted_change(torch.from_numpy(value), scores.n).shape == (7,)


@pytest.mark.parametrize("damage", ["removed", "torn", "altered", "empty", "other shape"])
def test_a_damaged_part_is_computed_again_and_no_other(damage: str, tmp_path: Path) -> None:
    scores, _ = scores_of(tmp_path, linear())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    path = scores.path(80)
    content = path.read_bytes()
    if damage == "removed":
        path.unlink()
    elif damage == "torn":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "altered":
        path.write_bytes(content[:300] + bytes([content[300] ^ 1]) + content[301:])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        np.savez(path, scores=np.zeros((40, 2)))
    assert scores.missing() == [80]
    with pytest.raises(DataError, match="missing or damaged"):
        list(scores)
    scores_of(tmp_path, linear())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    again = {path.name for path in tmp_path.iterdir() if path.stat().st_mtime_ns != times[path.name]}
    assert again == {path.name}


def test_a_failed_write_leaves_no_half_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    scores_of(tmp_path / "whole", linear())
    with monkeypatch.context() as patched:
        patched.setattr(score_files.os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            scores_of(tmp_path / "scores", linear())
    assert list((tmp_path / "scores").iterdir()) == []
    scores_of(tmp_path / "scores", linear())
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "scores" / path.name).read_bytes() == path.read_bytes()


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    whole = linear()
    X, y = whole.X.dense().numpy().copy(), whole.targets.numpy()
    scores_of(tmp_path, whole)
    with pytest.raises(DataError, match="other settings"):
        scores_of(tmp_path, whole, training_gradient="loss")
    with pytest.raises(DataError, match=r"no scores\.json"):
        StreamedScores(tmp_path / "nowhere")
    with pytest.raises(DataError, match="203 inputs and 202"):
        ArraySource(X, y[1:])
    with pytest.raises(DataError, match="no example"):
        stream(whole, ArraySource(X[:0], y[:0]))
    X[100, 2] = np.nan
    with pytest.raises(DataError, match="90…119 hold NaN"):
        stream(whole, ArraySource(X, y), batch_size=30).gradient(whole.initial())
    with pytest.raises(DataError, match="must give all"):
        stream(whole, ProducedSource(50, lambda a, b: (X[a : b - 1], y[a : b - 1]))).gradient(whole.initial())
    with pytest.raises(DataError, match="0…3"):
        stream(whole, ArraySource(X[:2], np.array([9, 9]))).gradient(whole.initial())
    with pytest.raises(DataError, match="out of range"):
        stream(whole, ArraySource(X, y)).example_losses(whole.initial(), [203])


MEASURE = """
import sys
import numpy as np, torch
from influence import Hessian, LinearObjective
from influence.objectives.sequential import network_objective
from influence.objectives import streaming
from influence.objectives.streaming import ArraySource, ProducedSource, stream
from influence.score_files import stream_scores
kind, batch, folder = sys.argv[1], 1000, sys.argv[2]
torch.set_num_threads(1)
g = torch.Generator().manual_seed(0)
d = 400
def made(start, stop):
    X = np.random.default_rng(start).standard_normal((stop - start, d)).astype(np.float32)
    return X, (X[:, 0] > 0).astype(np.int64)
few, y = made(0, 64)
if kind == "network":
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(d, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()
    x = torch.from_numpy(few).double()
    template = network_objective(model, "cross_entropy", x, torch.from_numpy(y), 0.01)
else:
    template = LinearObjective(few, y, "cross_entropy", 0.01, n_outputs=2)
theta = template.initial()
S = torch.randn(template.p, 4, generator=g, dtype=torch.float64)
def status(name):
    return int([l for l in open("/proc/self/status") if l.startswith(name)][0].split()[1])
stream_scores(stream(template, ProducedSource(batch, made), batch), theta, S, folder + "/warm", rows=batch)
for n in map(int, sys.argv[3:]):
    if kind == "mapped":
        source = ArraySource(np.load(f"{folder}/{n}.npy", mmap_mode="r"), np.arange(n) % 2)
    else:
        source = ProducedSource(n, made)
    train = stream(template, source, batch)
    open("/proc/self/clear_refs", "w").write("5")
    stream_scores(train, theta, S, f"{folder}/scores{n}", rows=batch)
    Hessian(train, theta) @ S
    train.gradient(theta)
    print(status("VmHWM"))
    del source, train
"""


@pytest.mark.parametrize("kind", ["mapped", "produced", "network"])
def test_peak_memory_is_flat_when_n_grows_tenfold(kind: str, tmp_path: Path) -> None:
    """Of one process that scores few examples and then many: the peak of each in KiB."""
    sizes = (4_000, 40_000)
    for n in sizes if kind == "mapped" else ():
        file = np.lib.format.open_memmap(tmp_path / f"{n}.npy", "w+", np.float32, (n, 400))
        for start in range(0, n, 4_000):
            file[start : start + 4_000] = np.random.default_rng(start).standard_normal((4_000, 400))
        del file
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, kind, str(tmp_path), *map(str, sizes)],
        env=environment(PYTHONPATH=str(ROOT)), capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    peaks = [int(word) for word in done.stdout.split()]
    assert len(peaks) == 2
    assert peaks[1] <= 1.1 * peaks[0], peaks
    # n × d alone, were it in memory, would show: 36,000 more rows are 56,000 KiB in the file's own float32
    assert peaks[1] - peaks[0] <= 20_000, peaks
