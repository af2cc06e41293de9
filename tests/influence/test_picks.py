"""Test points chosen by a rule are those that a person would choose by hand, and keep their numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from influence import DataError, HighestLoss, Influence, Labelled, LinearObjective, LowestMargin, fit
from influence.bridges.sklearn import from_sklearn
from influence.losses import TokenCrossEntropy
from influence.objectives.module import Objective
from influence.picks import picked


def data(n: int = 60, d: int = 4, c: int = 3) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    scores = x @ torch.randn(d, c, generator=g, dtype=torch.float64)
    return x, (scores + 2 * torch.randn(n, c, generator=g, dtype=torch.float64)).argmax(1)


@pytest.fixture(scope="module")
def trained() -> tuple[Influence, Tensor, Tensor]:
    x, y = data()
    torch.manual_seed(0)
    influence = Influence(nn.Linear(4, 3).double(), "cross_entropy", (x[:40], y[:40]), 0.1).fitted()
    return influence, x[40:], y[40:]


def by_hand(influence: Influence, x: Tensor, y: Tensor) -> dict[str, list[int]]:
    w = influence.theta[:12].reshape(3, 4)
    outputs = x @ w.T + influence.theta[12:]
    loss = torch.nn.functional.cross_entropy(outputs, y, reduction="none")
    rivals = outputs.clone()
    rivals[torch.arange(20), y] = -torch.inf
    margin = outputs[torch.arange(20), y] - rivals.amax(1)
    wrong = outputs.argmax(1) != y
    return {
        "misclassified": wrong.nonzero()[:, 0].tolist(),
        "correct": (~wrong).nonzero()[:, 0].tolist(),
        "loss": loss.argsort(descending=True)[:4].tolist(),
        "margin": margin.argsort()[:4].tolist(),
        "label": (y == 2).nonzero()[:, 0].tolist(),
        "function": (outputs[:, 0] > 0).nonzero()[:, 0].tolist(),
        "some": [1, 5, 19],
    }


RULES: dict[str, Any] = {
    "misclassified": "misclassified",
    "correct": "correct",
    "loss": HighestLoss(4),
    "margin": LowestMargin(4),
    "label": Labelled(2),
    "function": lambda outputs, targets: outputs[:, 0] > 0,
    "some": [1, 5, -1],
}


@pytest.mark.parametrize("rule", RULES)
def test_the_chosen_points_and_their_changes(rule: str, trained: tuple[Influence, Tensor, Tensor]) -> None:
    influence, x, y = trained
    expected = by_hand(*trained)[rule]
    whole = influence.influence_on((x, y), of="margin").changes
    found = influence.influence_on((x, y), of="margin", which=RULES[rule])
    assert found.tests == expected
    assert 0 < len(expected) < 20
    assert whole is not None
    assert found.changes is not None
    torch.testing.assert_close(found.changes, whole[:, expected])
    assert f"test point {expected[0]}: margin" in str(found)


def test_masks_means_groups_and_checks_follow(trained: tuple[Influence, Tensor, Tensor]) -> None:
    influence, x, y = trained
    wrong = by_hand(*trained)["misclassified"]
    mask = torch.zeros(20, dtype=torch.bool)
    mask[wrong] = True
    whole = influence.influence_on((x, y)).changes
    assert whole is not None
    for which in (mask, mask.numpy(), slice(*[wrong[0], wrong[0] + 1]), "misclassified"):
        chosen = [wrong[0]] if isinstance(which, slice) else wrong
        mean = influence.influence_on((x, y), which=which, mean=True)
        assert mean.changes is not None
        torch.testing.assert_close(mean.changes[:, 0], whole[:, chosen].mean(1))
        assert f"mean of {len(chosen)} test points: mean loss" in str(mean)
    group = influence.of_group([0, 1, 2], (x, y), which="misclassified")
    torch.testing.assert_close(group.change, influence.of_group([0, 1, 2], (x, y)).change[wrong])
    check = influence.check((x, y), k=5, which="misclassified", index=1)
    same = influence.check((x, y), k=5, index=wrong[1])
    torch.testing.assert_close(check.actual, same.actual)


def test_other_losses_have_their_own_classes() -> None:
    x, y = data()
    signs = torch.where(y == 0, 1, -1)
    logistic = LinearObjective(x, signs, "logistic", 0.1)
    theta = fit(logistic).theta
    expected = ((x @ theta > 0) != (signs > 0)).nonzero()[:, 0]
    assert picked(logistic, theta, "misclassified").tolist() == expected.tolist()
    torch.manual_seed(0)
    several = torch.stack([y == 0, y == 1], 1).double()
    bits = Objective(nn.Linear(4, 2).double(), "binary_cross_entropy", x, several, 0.1)
    outputs = bits.outputs(bits.initial())
    wrong = ((outputs > 0) != (several > 0)).any(1).nonzero()[:, 0]
    assert picked(bits, bits.initial(), "misclassified").tolist() == wrong.tolist()
    tokens = torch.stack([y, y.roll(1), torch.full_like(y, -100)], 1)
    tokens[3] = -100  # nothing counts there: neither right nor wrong
    net = nn.Sequential(nn.Linear(4, 9), nn.Unflatten(1, (3, 3))).double()
    words = Objective(net, TokenCrossEntropy(), x, tokens, 0.1)
    told = words.outputs(words.initial()).reshape(60, 3, 3).argmax(2)
    wrong = ((told != tokens) & (tokens != -100)).any(1)
    assert picked(words, words.initial(), "misclassified").tolist() == wrong.nonzero()[:, 0].tolist()
    right = ~wrong & (tokens != -100).any(1)
    assert picked(words, words.initial(), "correct").tolist() == right.nonzero()[:, 0].tolist()


def test_scikit_learn_models_name_classes_in_their_own_words() -> None:
    from sklearn.linear_model import LogisticRegression

    x, y = data()
    names = np.array(["a", "b", "c"])[y.numpy()]
    model = LogisticRegression(tol=1e-10, max_iter=1000).fit(x[:40].numpy(), names[:40])
    influence = from_sklearn(model, x[:40].numpy(), names[:40])
    found = influence.influence_on((x[40:].numpy(), names[40:]), which=Labelled("b"))
    assert found.tests == (names[40:] == "b").nonzero()[0].tolist()
    wrong = (model.predict(x[40:].numpy()) != names[40:]).nonzero()[0].tolist()
    assert influence.influence_on((x[40:].numpy(), names[40:]), which="misclassified").tests == wrong


@pytest.mark.parametrize(
    ("which", "said"),
    [
        ("wrong", "which must be 'misclassified'"),
        (HighestLoss(0), "k of HighestLoss must be an integer >= 1"),
        (Labelled(7), "chooses none of the 20 test points"),
        (Labelled("b"), "name it by its number"),
        (lambda outputs, targets: outputs[:, 0] > 1e9, "chooses none"),
        (lambda outputs, targets: outputs, "indices must be integers"),
        (lambda outputs, targets: True, "one truth value per test point"),
        (torch.ones(3, dtype=torch.bool), "a mask of examples must have shape"),
        ([20], "out of range for 20 examples"),
        ([], "chooses none"),
        (object(), "which must give a mask"),
    ],
)
def test_a_rule_without_meaning_is_one_sentence(
    which: Any, said: str, trained: tuple[Influence, Tensor, Tensor]
) -> None:
    influence, x, y = trained
    with pytest.raises(DataError, match=said):
        influence.influence_on((x, y), which=which)


def test_rules_that_need_targets_or_classes_say_so(trained: tuple[Influence, Tensor, Tensor]) -> None:
    influence, x, _ = trained
    from influence import Probability

    with pytest.raises(DataError, match="needs targets of the test points"):
        influence.influence_on((x, None), of=Probability(1), which="misclassified")
    seen = []
    chosen = influence.influence_on(
        (x, None), of=Probability(1), which=lambda o, y: seen.append(y) or o[:, 1] > 0
    )
    assert seen == [None]
    assert chosen.tests
    regression = LinearObjective(x, x[:, 0], "squared_error", 0.1)
    with pytest.raises(DataError, match="no point is misclassified"):
        picked(regression, fit(regression).theta, "misclassified")
