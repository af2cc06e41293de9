"""Which of many test points are asked about: by a rule, a class, a mask, indices, or a function.

influence.influence_on(test, which="misclassified")
influence.influence_on(test, which=HighestLoss(10), mean=True)
influence.influence_on(test, which=lambda outputs, targets: outputs[:, 0] > 3)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from influence.checks import checked_number
from influence.errors import DataError
from influence.losses import BinaryCrossEntropy, CrossEntropy, Margin, TokenCrossEntropy
from influence.losses.asked import called
from influence.objectives._base import TrainingObjective


class Pick(ABC):
    """A rule that chooses test points."""

    @abstractmethod
    def choose(self, tests: TrainingObjective, theta: Tensor) -> Tensor:
        """Positions of the chosen test points ``(m,)``, the first ones first."""


@dataclass(frozen=True)
class Misclassified(Pick):
    """The points whose predicted class is not their target; of several labels or tokens, any wrong one.

    >>> import torch
    >>> from influence import LinearObjective
    >>> o = LinearObjective(torch.tensor([[1.0], [2.0], [-1.0]]), torch.tensor([1, -1, 1]), "logistic", 0.1)
    >>> Misclassified().choose(o, torch.ones(1, dtype=torch.float64)).tolist()
    [1, 2]
    """

    def choose(self, tests: TrainingObjective, theta: Tensor) -> Tensor:
        return verdicts(tests, theta)[0].nonzero()[:, 0]


@dataclass(frozen=True)
class Correct(Pick):
    """The points whose predicted class is their target.

    >>> import torch
    >>> from influence import LinearObjective
    >>> o = LinearObjective(torch.tensor([[1.0], [2.0], [-1.0]]), torch.tensor([1, -1, 1]), "logistic", 0.1)
    >>> Correct().choose(o, torch.ones(1, dtype=torch.float64)).tolist()
    [0]
    """

    def choose(self, tests: TrainingObjective, theta: Tensor) -> Tensor:
        wrong, counted = verdicts(tests, theta)
        return (counted & ~wrong).nonzero()[:, 0]


@dataclass(frozen=True)
class HighestLoss(Pick):
    """The k points of largest loss, the largest first.

    Args:
        k: how many.

    >>> import torch
    >>> from influence import LinearObjective
    >>> o = LinearObjective(torch.tensor([[1.0], [2.0], [-1.0]]), torch.tensor([1, -1, 1]), "logistic", 0.1)
    >>> HighestLoss(2).choose(o, torch.ones(1, dtype=torch.float64)).tolist()
    [1, 2]
    """

    k: int

    def choose(self, tests: TrainingObjective, theta: Tensor) -> Tensor:
        checked_number("k of HighestLoss", self.k, least=1, whole=True)
        return tests.example_losses(theta).argsort(descending=True, stable=True)[: self.k]


@dataclass(frozen=True)
class LowestMargin(Pick):
    """The k points of smallest margin ``o_y − max o_k``, the smallest first: the worst or least certain.

    Args:
        k: how many.

    >>> import torch
    >>> from influence import LinearObjective
    >>> o = LinearObjective(torch.tensor([[1.0], [2.0], [-1.0]]), torch.tensor([1, -1, 1]), "logistic", 0.1)
    >>> LowestMargin(1).choose(o, torch.ones(1, dtype=torch.float64)).tolist()
    [1]
    """

    k: int

    def choose(self, tests: TrainingObjective, theta: Tensor) -> Tensor:
        checked_number("k of LowestMargin", self.k, least=1, whole=True)
        margins = tests.asking(Margin(), theta).example_losses(theta)
        return margins.argsort(stable=True)[: self.k]


@dataclass(frozen=True)
class Labelled(Pick):
    """The points with this target.

    Args:
        label: a class, named as in the targets.

    >>> import torch
    >>> from influence import LinearObjective
    >>> o = LinearObjective(torch.tensor([[1.0], [2.0], [-1.0]]), torch.tensor([1, -1, 1]), "logistic", 0.1)
    >>> Labelled(1).choose(o, torch.ones(1, dtype=torch.float64)).tolist()
    [0, 2]
    """

    label: Any

    def choose(self, tests: TrainingObjective, theta: Tensor) -> Tensor:
        if tests.targets.ndim != 1:
            raise DataError(
                f"Labelled needs one label per test point, got targets {('t', *tests.targets.shape[1:])}; "
                "pass a mask or a function (outputs, targets) -> mask"
            )
        if isinstance(self.label, str):
            raise DataError(f"the targets are numbers and the label is {self.label!r}; name it by its number")
        named: Tensor = tests.targets == self.label
        return named.nonzero()[:, 0]


Which = None | str | Pick | slice | list[int] | Tensor | Callable[[Tensor, Tensor], Any]
PICKS: dict[str, type[Pick]] = {"misclassified": Misclassified, "correct": Correct}


def picked(tests: TrainingObjective, theta: Tensor, which: Any, labelled: bool = True) -> Tensor:
    """Positions of the test points that ``which`` chooses: ``(m,)``, m ≥ 1.

    Args:
        tests: the test points with the loss that the model was trained with.
        theta: ``(p,)``.
        which: ``"misclassified"``, ``"correct"``, a :class:`Pick`, indices, a mask ``(t,)``, or a function
            ``(outputs, targets) -> mask or indices`` that sees outputs in the model's own shape.
        labelled: whether the test points have targets of their own; if not, a function sees None.

    Raises:
        DataError: an unknown rule, one without meaning for this loss, or one that chooses no point.
    """
    rule = which
    if isinstance(rule, str):
        if rule not in PICKS:
            raise DataError(
                f"which must be {', '.join(map(repr, PICKS))}, HighestLoss(k), LowestMargin(k), Labelled(c), "
                f"indices, a mask, or a function (outputs, targets) -> mask, got {which!r}"
            )
        rule = PICKS[rule]
    if isinstance(rule, type) and issubclass(rule, Misclassified | Correct):
        rule = rule()
    if isinstance(rule, Pick):
        if not labelled:
            raise DataError(f"which={_named(which)} needs targets of the test points; pass (inputs, targets)")
        positions = rule.choose(tests, theta)
    elif callable(rule):
        outputs = tests.outputs(theta).reshape(tests.n, *tests.output_shape)
        positions = _positions(tests, rule(outputs, tests.targets if labelled else None))
    else:
        positions = _positions(tests, rule)
    if not len(positions):
        raise DataError(f"which={_named(which)} chooses none of the {tests.n} test points; choose others")
    return positions


def _positions(tests: TrainingObjective, found: Any) -> Tensor:
    if isinstance(found, bool):
        raise DataError(f"which must give one truth value per test point ({tests.n}), got {found}")
    if isinstance(found, int | slice):
        return tests.index(found if isinstance(found, slice) else [found])
    try:
        chosen = torch.as_tensor(found)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(
            f"which must give a mask ({tests.n},) or integer positions, got {type(found).__name__}"
        ) from None
    if chosen.dtype == torch.bool and chosen.ndim == 0:
        raise DataError(f"which must give one truth value per test point ({tests.n}), got a single one")
    return tests.index(chosen)


def verdicts(tests: TrainingObjective, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each test point is misclassified, and whether it has a class at all: two masks ``(t,)``.

    Raises:
        DataError: the loss knows no classes.
    """
    outputs, targets, loss = tests.outputs(theta), tests.targets, tests.loss
    counted = torch.ones(len(targets), dtype=torch.bool, device=targets.device)
    if isinstance(loss, CrossEntropy):
        if targets.ndim > 1:
            return outputs.argmax(1) != targets.argmax(1), counted
        if loss.ignore_index is not None:
            counted = targets != loss.ignore_index
        return counted & (outputs.argmax(1) != targets), counted
    if isinstance(loss, TokenCrossEntropy):
        words = outputs.reshape(*targets.shape, -1).argmax(2)
        kept = targets != loss.ignore_index
        return ((words != targets) & kept).any(dim=1), kept.any(dim=1)
    if isinstance(loss, BinaryCrossEntropy):
        return ((outputs > 0) != (targets.reshape(outputs.shape) > 0.5)).any(dim=1), counted
    if loss.binary:
        return (outputs[:, 0] > 0) != (targets > 0), counted
    raise DataError(
        f"a model with the loss {loss.name} has no classes, so no point is misclassified; pass "
        "which=HighestLoss(k), or a function (outputs, targets) -> mask"
    )


def _named(which: Any) -> str:
    if callable(which) and not isinstance(which, Pick | type):
        return called(which)
    return repr(which) if isinstance(which, str | Pick) else "as given"
