"""What the front door answers: numbers with the words that a reader needs beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from influence.errors import DataError
from influence.losses import Asked, Asking, Loss
from influence.solvers import Solution


@dataclass(frozen=True)
class Top:
    """Training points in order, the first one first.

    Attributes:
        indices: ``(k,)``.
        values: ``(k,)``, in the unit of what was asked (nats for a loss).

    >>> import torch
    >>> Top(torch.tensor([7, 2]), torch.tensor([0.5, 0.1])).indices.tolist()
    [7, 2]
    """

    indices: list[int]
    values: list[float]

    def __len__(self) -> int:
        return len(self.indices)

    def __str__(self) -> str:
        pairs = zip(self.indices, self.values, strict=True)
        return ", ".join(f"{index} ({value:+.3g})" for index, value in pairs) or "none"


@dataclass(frozen=True)
class Explanation:
    """Which training points a prediction rests on.

    Attributes:
        changes: ``(n, t)`` predicted change of each of the t test losses when a training point is removed, in
            nats; positive = the point was helpful. If another quantity was asked for, the change of that
            quantity in its own unit. None if n·t is too large to keep.
        helpful: for each test point, the points whose removal raises the loss most; of a quantity that is no
            loss, the points that raise it, so that their removal lowers it most.
        harmful: the points that do the opposite.
        solution: the solve behind it, with status and residual.
        correction: ``"first_order"`` or ``"leverage"``.
        of: what was asked, in words.
        values: ``(t,)`` its values at θ.
        is_loss: whether it is a loss, so that less of it is better.
        tests: ``(t,)`` positions of the test points among those given, if a rule chose them.

    >>> import torch
    >>> from influence import Influence
    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <torch._C.Generator object at ...>
    >>> x, y = torch.randn(40, 3, dtype=torch.float64), torch.randint(2, (40,))
    >>> influence = Influence(torch.nn.Linear(3, 2).double(), "cross_entropy", (x, y), l2=0.1).fitted()
    >>> found = influence.influence_on((x[:2], y[:2]), k=3)
    >>> len(found.helpful), len(found.harmful[0])
    (2, 3)
    """

    changes: Tensor | None
    helpful: list[Top]
    harmful: list[Top]
    solution: Solution
    correction: str
    of: str
    values: Tensor
    is_loss: bool
    tests: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        lines = []
        words = ("helpful", "harmful") if self.is_loss else ("raised by", "lowered by")
        for j, (good, bad) in enumerate(zip(self.helpful, self.harmful, strict=True)):
            where = f"test point {self.tests[j] if self.tests else j}"
            if self.of.startswith("mean "):
                where = f"mean of {len(self.tests)} test points" if self.tests else "all test points"
            said = f"{where}: {self.of} {float(self.values[j]):.4g}"
            lines += [said, f"  {words[0]}: {good}", f"  {words[1]}: {bad}"]
        residual = float(self.solution.residual.max())
        lines.append(f"solve: {self.solution.status.value}, residual {residual:.2g}; {self.correction}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Suspects:
    """How hard every training point pulls the model towards its own label.

    Attributes:
        self_influence: ``(n,)`` ``w_i ∇ℓ_iᵀ H⁻¹ ∇ℓ_i``, the score of section 5.4 of the paper.
        left_out_loss: ``(n,)`` the loss of each point's own label once the point is left out, in nats. A
            wrong label has a large one. It ranks wrong labels better than self-influence on most tables,
            because self-influence also grows with rare features.
        loss: ``(n,)`` training losses.

    >>> import torch
    >>> from influence import Influence
    >>> x, y = torch.randn(40, 3, dtype=torch.float64), torch.randint(2, (40,))
    >>> influence = Influence(torch.nn.Linear(3, 2).double(), "cross_entropy", (x, y), l2=0.1).fitted()
    >>> tuple(influence.suspects().self_influence.shape)
    (40,)
    """

    self_influence: Tensor
    left_out_loss: Tensor
    loss: Tensor

    def top(self, k: int, by: str = "left_out_loss") -> Top:
        """The k most suspicious training points, by one of the three scores.

        Raises:
            DataError: an unknown score, or k < 1.
        """
        scores = {
            "left_out_loss": self.left_out_loss,
            "self_influence": self.self_influence,
            "loss": self.loss,
        }
        if by not in scores:
            raise DataError(f"by must be one of {', '.join(scores)}, got {by!r}")
        if k < 1:
            raise DataError(f"k must be at least 1, got {k}")
        return highest(scores[by], k)


@dataclass(frozen=True)
class GroupEffect:
    """What removing a group of training points together does to test losses.

    Attributes:
        change: ``(t,)`` predicted change by Newton steps without the group; of a loss, positive = the group
            was helpful.
        summed: ``(t,)`` the sum of the points' single effects, which misjudges the size of large groups.
        method: which steps were taken, and how many.

    >>> import torch
    >>> from influence import Influence
    >>> x, y = torch.randn(40, 3, dtype=torch.float64), torch.randint(2, (40,))
    >>> influence = Influence(torch.nn.Linear(3, 2).double(), "cross_entropy", (x, y), l2=0.1).fitted()
    >>> effect = influence.of_group([1, 2, 3], (x[:2], y[:2]))
    >>> tuple(effect.change.shape), tuple(effect.summed.shape)
    ((2,), (2,))
    """

    change: Tensor
    summed: Tensor
    method: str


def highest(values: Tensor, k: int, indices: Tensor | None = None) -> Top:
    """The k largest values in order, ties by index."""
    order = torch.argsort(-values, stable=True)[:k]
    own = order if indices is None else indices[order]
    return Top([int(i) for i in own], [float(v) for v in values[order]])


def merged(tops: Sequence[Top], k: int) -> Top:
    """The k largest of several parts."""
    pairs = sorted(
        (pair for top in tops for pair in zip(top.indices, top.values, strict=True)),
        key=lambda pair: (-pair[1], pair[0]),
    )[:k]
    return Top([index for index, _ in pairs], [value for _, value in pairs])


def signed(top: Top, sign: float) -> Top:
    """Only the points on that side: a point that is not harmful is not listed as harmful."""
    pairs = [(i, sign * v) for i, v in zip(top.indices, top.values, strict=True) if v > 0]
    return Top([i for i, _ in pairs], [v for _, v in pairs])


def asked_words(loss: Loss, of: Asking, mean: bool) -> str:
    """What was asked, for a reader."""
    if isinstance(loss, Asked):
        words = loss.words
    else:
        words = "loss" if isinstance(of, str) and of == "loss" else f"loss {loss.name}"
    return f"mean {words}" if mean else words
