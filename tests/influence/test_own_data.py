"""Data as people bring them: the right number, or one sentence. Never wrong in silence."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
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
from tests.influence.own import L2, TESTS, TRAIN, N, X, Y, by_hand, close, net, ours


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
