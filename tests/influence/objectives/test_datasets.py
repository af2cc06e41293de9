"""Data read batch by batch: the same numbers as in memory, few examples alive, moving data refused."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from influence import DataError, Influence

N, D, C, B = 50, 4, 3, 8


def data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(N + 3, D, generator=g, dtype=torch.float64)
    return x, (x @ torch.randn(D, C, generator=g, dtype=torch.float64)).argmax(1)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, 3), nn.Tanh(), nn.Linear(3, C)).double()


class Counted(Dataset[Any]):
    """Counts how many of the examples that it gave are alive at once."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y, self.alive, self.most, self.given = x, y, 0, 0, 0

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        x = self.x[i].clone()
        self.given += 1
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(x, self._gone)
        return x, self.y[i]

    def _gone(self) -> None:
        self.alive -= 1


def test_streamed_scores_are_those_of_data_in_memory_and_few_examples_are_alive() -> None:
    x, y = data()
    held = Influence(net(), "cross_entropy", (x[:N], y[:N]), 0.05).fitted()
    dataset = Counted(x[:N], y[:N])
    streamed = Influence(
        net(), "cross_entropy", DataLoader(dataset, batch_size=B), 0.05, stream=True, theta=held.theta
    )
    tests = (x[N:], y[N:])
    for correction in ("first_order", "leverage"):
        ours = streamed.influence_on(tests, k=3, correction=correction)
        theirs = held.influence_on(tests, k=3, correction=correction)
        torch.testing.assert_close(ours.changes, theirs.changes, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(streamed.suspects().self_influence, held.suspects().self_influence)
    margin = streamed.influence_on(tests, of="margin").changes
    torch.testing.assert_close(margin, held.influence_on(tests, of="margin").changes)
    gc.collect()
    assert dataset.given > 2 * N  # several passes
    assert dataset.most <= B  # and never more than a batch
    assert dataset.alive == 0
    assert "read 8 at a time in every pass, never held" in streamed.explain()
    assert "never held" not in held.explain()


def test_a_removed_point_is_left_out_of_the_stream() -> None:
    x, y = data()
    streamed = Influence(net(), "cross_entropy", TensorDataset(x[:N], y[:N]), 0.2, stream=True).fitted()
    held = Influence(net(), "cross_entropy", (x[:N], y[:N]), 0.2, theta=streamed.theta)
    tests = (x[N:], y[N:])
    ours, theirs = streamed.check(tests, k=3), held.check(tests, k=3)
    assert ours.idx.tolist() == theirs.idx.tolist()
    torch.testing.assert_close(ours.actual, theirs.actual, rtol=1e-4, atol=1e-9)


class Flipping(Counted):
    """Turns every example around at each reading: the same numbers in another order."""

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        x, y = super().__getitem__(i)
        return (x.flip(0) if self.given > len(self) else x), y


class Named(Counted):
    """Mappings with two inputs, sorted by class, which a DataLoader's default collation makes tensors."""

    def __getitem__(self, i: int) -> Any:
        x, y = super().__getitem__(i)
        return {"left": x, "right": x.flip(0), "labels": y}


class Pair(nn.Module):
    """Two inputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(D, C)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(left * right)}


def test_mappings_sorted_by_class_and_a_rare_class() -> None:
    x, y = data()
    order = y[:N].argsort()
    torch.manual_seed(0)
    model = Pair().double()
    streamed = Influence(model, "cross_entropy", Named(x[order], y[order]), 0.1, stream=True, batch_size=7)
    held = Influence(model, "cross_entropy", ({"left": x[order], "right": x[order].flip(1)}, y[order]), 0.1)
    theta = held.theta
    torch.testing.assert_close(streamed.objective.gradient(theta), held.objective.gradient(theta))
    rare = torch.zeros(N, dtype=torch.long)
    rare[33] = 1  # not among the evenly spaced ones
    found = Influence(net(), "cross_entropy", Counted(x[:N], rare), 0.1, stream=True, batch_size=8)
    whole = Influence(net(), "cross_entropy", (x[:N], rare), 0.1)
    torch.testing.assert_close(found.objective.gradient(found.theta), whole.objective.gradient(whole.theta))
    with pytest.raises(DataError, match="one class is empty"):
        Influence(net(), "cross_entropy", Counted(x[:N], torch.zeros_like(rare)), 0.1, stream=True)


class Endless(IterableDataset[Any]):
    """No length and no index."""

    def __iter__(self) -> Any:
        return iter(zip(*data(), strict=True))


def test_what_cannot_be_streamed_is_one_sentence() -> None:
    x, y = data()
    dataset = TensorDataset(x[:N], y[:N])

    def make(source: Any, **settings: Any) -> Influence:
        return Influence(net(), "cross_entropy", source, 0.1, stream=True, **settings)

    with pytest.raises(DataError, match="draws its examples by RandomSampler"):
        make(DataLoader(dataset, batch_size=B, shuffle=True))
    with pytest.raises(DataError, match="drops 2 of 50 examples"):
        make(DataLoader(dataset, batch_size=B, drop_last=True))
    with pytest.raises(DataError, match="is not the same when it is read again"):
        make(Flipping(x[:N], y[:N]))
    with pytest.raises(DataError, match="with a length and an index, got Endless"):
        make(Endless())
    with pytest.raises(DataError, match="needs a Dataset or DataLoader, got tuple"):
        make((x, y))
    with pytest.raises(DataError, match="take no weights"):
        make(dataset, weights=torch.ones(N))
    with pytest.raises(DataError, match="holds no example"):
        make(TensorDataset(x[:0], y[:0]))
    ragged = [(x[i, : 2 + i % 2], y[i]) for i in range(N)]
    with pytest.raises(DataError, match="cannot be made a batch"):
        make(DataLoader(ragged, batch_size=B))  # type: ignore[arg-type]
    broken = x[:N].clone()
    broken[20] = float("nan")
    with pytest.raises(DataError, match="NaN or infinite"):
        make(TensorDataset(broken, y[:N]))
    with pytest.raises(DataError, match="pass it alone"):
        Influence(make(dataset).objective, stream=True)
