"""The explainer for quanda: the scores are influence, and quanda's own metrics take them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from influence import Influence
from influence.errors import DataError
from tests.influence.bridges.trained import L2
from tests.influence.bridges.trained import trained as of_size

pytest.importorskip("quanda", reason="quanda is not installed: it needs lightning, transformers and datasets")

from quanda.metrics.downstream_eval import ClassDetectionMetric, MislabelingDetectionMetric

from influence.bridges.quanda import InfluenceExplainer

N, T, FLIPPED = 60, 8, 5


def trained(flipped: int = 0) -> Any:
    """Sixty training points and eight test points."""
    return of_size(N, T, flipped=flipped)


def test_scores_are_changes_by_removal_and_self_influence_is_their_diagonal() -> None:
    model, train, test = trained()
    explainer = InfluenceExplainer(model, train, l2=L2)
    scores = explainer.explain(*test.tensors)
    expected = Influence(model, "cross_entropy", train.tensors, L2).influence_on(
        test.tensors, correction="first_order", removal="loss"
    )
    assert expected.changes is not None
    torch.testing.assert_close(scores, expected.changes.T)
    assert explainer.explain(test.tensors[0], test.tensors[1].tolist()).shape == (T, N)
    torch.testing.assert_close(explainer.self_influence(), explainer.explain(*train.tensors).diagonal())
    corrected = InfluenceExplainer(model, train, l2=L2, correction="leverage")
    torch.testing.assert_close(corrected.self_influence(), corrected.explain(*train.tensors).diagonal())
    assert not torch.allclose(corrected.self_influence(), explainer.self_influence(), rtol=1e-3)


def test_a_checkpoint_is_what_is_explained(tmp_path: Any) -> None:
    model, train, test = trained()
    torch.save(model.state_dict(), tmp_path / "trained.pt")
    fresh = nn.Linear(4, 2).double()
    explainer = InfluenceExplainer(fresh, train, checkpoints=str(tmp_path / "trained.pt"), l2=L2)
    expected = InfluenceExplainer(model, train, l2=L2).explain(*test.tensors)
    torch.testing.assert_close(explainer.explain(*test.tensors), expected)


def test_quandas_metrics_take_the_explainer() -> None:
    model, train, test = trained(FLIPPED)
    labels = list(range(FLIPPED))
    found = MislabelingDetectionMetric(model, train, labels, InfluenceExplainer, {"l2": L2}).compute()
    assert found["score"] > 0.8
    metric = ClassDetectionMetric(model=model, train_dataset=train)
    explainer = InfluenceExplainer(model, train, l2=L2)
    metric.update(explanations=explainer.explain(*test.tensors), test_targets=test.tensors[1])
    assert metric.compute()["score"] > 0.9


def test_what_cannot_be_explained_is_one_sentence() -> None:
    model, train, test = trained()
    explainer = InfluenceExplainer(model, train, l2=L2)
    with pytest.raises(DataError, match="one label for each"):
        explainer.explain(test.tensors[0], [0])
    with pytest.raises(DataError, match="one label for each"):
        explainer.explain(test.tensors[0][:0], [])
    with pytest.raises(ValueError, match="not supported"):
        InfluenceExplainer(model, train, task="causal_lm", l2=L2)

    class Moving(Dataset[Any]):
        def __len__(self) -> int:
            return N

        def __getitem__(self, i: int) -> Any:
            x, y = train[i]
            return x + torch.rand(4), y

    with pytest.raises(DataError, match="another example when it is read again"):
        InfluenceExplainer(model, Moving(), l2=L2)
