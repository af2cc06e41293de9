"""The attributor for dattri: its scores are those of dattri's own dense solve, and its metrics take them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from influence import Influence
from influence.errors import DataError
from tests.influence.bridges.trained import L2
from tests.influence.bridges.trained import trained as of_size

pytest.importorskip("dattri", reason="dattri is not installed")

from dattri.algorithm.influence_function import IFAttributorExplicit
from dattri.metric import lds, mislabel_detection_auc
from dattri.task import AttributionTask

from influence.bridges.dattri import InfluenceAttributor

N, T = 40, 6


def trained(seed: int = 0, flipped: int = 0) -> Any:
    """Forty noisy training points and six test points."""
    return of_size(N, T, noise=0.5, seed=seed, flipped=flipped)


def loss_of(model: nn.Module) -> Any:
    def loss(params: Any, data: Any) -> Tensor:
        x, y = data
        return F.cross_entropy(torch.func.functional_call(model, params, x), y)

    return loss


def task_of(model: nn.Module, **settings: Any) -> AttributionTask:
    own = copy.deepcopy(model)
    return AttributionTask(loss_of(own), own, own.state_dict(), **settings)


def loader(data: Dataset[Any], size: int = 16, **settings: Any) -> DataLoader[Any]:
    return DataLoader(data, batch_size=size, shuffle=False, **settings)


def test_scores_are_those_of_dattris_dense_solve_in_units_of_the_loss() -> None:
    model, train, test = trained()
    theirs = IFAttributorExplicit(task_of(model), regularization=L2)
    theirs.cache(loader(train, N))
    expected = theirs.attribute(loader(train, N), loader(test)).double() / N
    attributor = InfluenceAttributor(task_of(model), "cross_entropy", L2, l2_parameters="all")
    attributor.cache(loader(train))
    score = attributor.attribute(loader(train), loader(test, 4))
    torch.testing.assert_close(score, expected, rtol=1e-5, atol=1e-9)
    own = attributor.self_attribute(loader(train))
    torch.testing.assert_close(own, attributor.attribute(loader(train), loader(train)).diagonal())


def test_dattris_metrics_take_the_scores() -> None:
    model, train, test = trained()
    score = InfluenceAttributor(task_of(model), "cross_entropy", L2).attribute(loader(train), loader(test))
    x, y = train.tensors
    subsets = [torch.randperm(N, generator=torch.Generator().manual_seed(s))[: N - 4] for s in range(12)]
    targets = []
    for rows in subsets:
        refit = Influence(copy.deepcopy(model), "cross_entropy", (x[rows], y[rows]), L2 * N / len(rows))
        refit = refit.fitted()
        targets.append(-refit.tests(test.tensors).example_losses(refit.theta))
    correlation, _ = lds(score, (torch.stack(targets), torch.stack(subsets)))
    assert correlation.mean() > 0.9

    model, train, _ = trained(flipped=4)
    own = InfluenceAttributor(task_of(model), "cross_entropy", L2).self_attribute(loader(train))
    noisy = torch.zeros(N, dtype=torch.long)
    noisy[:4] = 1
    auc, _ = mislabel_detection_auc(own, noisy)
    assert auc > 0.8


def test_some_of_the_training_points_and_several_checkpoints() -> None:
    model, train, test = trained()
    other, _, _ = trained(1)
    attributor = InfluenceAttributor(task_of(model), "cross_entropy", L2)
    attributor.cache(loader(train))
    whole = attributor.attribute(loader(train), loader(test))
    some = attributor.attribute(loader(Subset(train, [5, 2, 30])), loader(test))
    torch.testing.assert_close(some, whole[[5, 2, 30]])
    drawn = attributor.attribute(loader(train, sampler=[7, 1]), loader(test))
    torch.testing.assert_close(drawn, whole[[7, 1]])
    with pytest.raises(DataError, match="not cached"):
        attributor.attribute(loader(TensorDataset(*train.tensors)), loader(test))
    own = copy.deepcopy(model)
    both = AttributionTask(loss_of(own), own, [model.state_dict(), other.state_dict()])
    mean = InfluenceAttributor(both, "cross_entropy", L2).attribute(loader(train), loader(test))
    second = InfluenceAttributor(task_of(other), "cross_entropy", L2).attribute(loader(train), loader(test))
    torch.testing.assert_close(mean, (whole + second) / 2)


def test_what_the_task_does_not_say_is_refused() -> None:
    model, train, test = trained()

    def half(params: Any, data: Any) -> Tensor:
        return loss_of(own)(params, data) / 2

    own = copy.deepcopy(model)
    task = AttributionTask(half, own, own.state_dict())
    with pytest.raises(DataError, match=r"the task's loss of example \d is .* 'cross_entropy' gives"):
        InfluenceAttributor(task, "cross_entropy", L2).cache(loader(train))
    target = task_of(model, target_func=lambda params, data: -loss_of(own)(params, data))
    with pytest.raises(DataError, match="the task's target of example"):
        InfluenceAttributor(target, "cross_entropy", L2).attribute(loader(train), loader(test))
    shuffled = DataLoader(train, batch_size=8, shuffle=True)
    with pytest.raises(DataError, match="another order each time"):
        InfluenceAttributor(task_of(model), "cross_entropy", L2).cache(shuffled)
    with pytest.raises(DataError, match="drops its last batch"):
        InfluenceAttributor(task_of(model), "cross_entropy", L2).cache(loader(train, 16, drop_last=True))
    triples = TensorDataset(*train.tensors, train.tensors[1])
    with pytest.raises(DataError, match=r"\(inputs, targets\)"):
        InfluenceAttributor(task_of(model), "cross_entropy", L2).attribute(loader(train), loader(triples))
    for data, settings, said in (
        (Stream(), {}, "reads a stream"),
        (train, {"batch_size": None}, "gives single examples"),
    ):
        with pytest.raises(DataError, match=said):
            InfluenceAttributor(task_of(model), "cross_entropy", L2).cache(DataLoader(data, **settings))
    by_rule = DataLoader(train, batch_sampler=[[3, 1], [2]])
    attributor = InfluenceAttributor(task_of(model), "cross_entropy", L2)
    attributor.cache(loader(train))
    rows = attributor.attribute(loader(train), loader(test))[[3, 1, 2]]
    torch.testing.assert_close(attributor.attribute(by_rule, loader(test)), rows)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(torch.zeros(4, dtype=torch.float64), 0)])
