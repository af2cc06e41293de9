"""What may be asked of a model at a test point besides its loss: a margin, logit, probability, output, or
any function of the outputs.

A quantity becomes a :class:`~influence.losses.Loss`, so that every call that takes the loss of a test set
takes a quantity as well: scores, groups, and the comparison with retraining. Autograd differentiates it.

Classes are named as the training targets name them: 0…c−1 for cross_entropy, −1 and +1 for binary losses of a
margin, and for binary_cross_entropy 0 and 1 (one output) or the position of a label (several outputs).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, SupportsIndex

import torch
import torch.nn.functional as F
from torch import Tensor

from influence.errors import DataError
from influence.losses._base import Loss
from influence.losses.asked import Asked, OwnFunction, called
from influence.losses.classification import CrossEntropy
from influence.losses.margin import Logistic, MarginLoss
from influence.losses.regression import BinaryCrossEntropy


class Quantity(ABC):
    """What may be asked by name. Subclasses say what they need of the loss."""

    @abstractmethod
    def of(self, loss: Loss, n_outputs: int) -> Asked:
        """This quantity for a model trained with ``loss``.

        Raises:
            DataError: it has no meaning for this loss, or names a class that the model does not have.
        """


@dataclass(frozen=True)
class Output(Quantity):
    """One output of the model as it comes: ``o_position``.

    Args:
        position: 0…c−1; may be left out if the model has one output.

    >>> import torch
    >>> from influence import get_loss
    >>> asked = Output(1).of(get_loss("squared_error"), 2)
    >>> asked.values(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2))
    tensor([4.])
    """

    position: int | None = None

    def of(self, loss: Loss, n_outputs: int) -> Asked:
        """The output as a function."""
        if self.position is None and n_outputs != 1:
            raise DataError(f"the model has {n_outputs} outputs; say which one, for example of=Output(0)")
        at = _whole("Output", self.position or 0)
        if not 0 <= at < n_outputs:
            raise DataError(
                f"Output({at}) does not exist: the model has {n_outputs} outputs, 0…{n_outputs - 1}"
            )
        words = "output" if n_outputs == 1 else f"output {at}"
        return Asked(lambda outputs, targets: outputs[:, at], words, needs_targets=False)


@dataclass(frozen=True)
class OfClass(Quantity):
    """A quantity of one class: of the target's own, or of a class that is named.

    Args:
        label: the class, an integer (of a scikit-learn model, as its ``classes_`` name it); None for the
            class of each test point's own target.
    """

    name: ClassVar[str] = ""
    label: Any = None

    def of(self, loss: Loss, n_outputs: int) -> Asked:
        """The quantity of that class as a function."""
        classes = _classes(loss, n_outputs, self.name)
        if self.label is None:
            return Asked(lambda o, y: self.compute(classes.view(o, y)), f"{self.name} of the target's class")
        label = _whole(type(self).__name__, self.label)
        if label not in classes.labels:
            raise DataError(
                f"there is no class {label}; the classes of a model with {n_outputs} outputs and the loss "
                f"{loss.name} are {_listed(classes.labels)}"
            )

        def function(outputs: Tensor) -> Tensor:
            wanted = torch.full((len(outputs),), label, device=outputs.device)
            return self.compute(classes.view(outputs, wanted))

        return Asked(lambda o, y: function(o), f"{self.name} of class {label}", needs_targets=False)

    @abstractmethod
    def compute(self, view: View) -> Tensor:
        """``(m,)`` from the logits of a class and of its rivals."""


@dataclass(frozen=True)
class View:
    """Logits of one class of each row, and of all others.

    Attributes:
        own: ``(m,)``.
        rivals: ``(m, c − 1)``; of a binary model with one output a zero, so that ``own`` is its log-odds.
    """

    own: Tensor
    rivals: Tensor


@dataclass(frozen=True)
class Logit(OfClass):
    """The logit ``o_y``; of a binary model with one output ±o.

    >>> import torch
    >>> from influence import get_loss
    >>> Logit(2).of(get_loss("cross_entropy"), 3).values(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([0]))
    tensor([3.])
    """

    name: ClassVar[str] = "logit"

    def compute(self, view: View) -> Tensor:
        """``o_y``."""
        return view.own


@dataclass(frozen=True)
class Margin(OfClass):
    """How far a class is ahead: ``o_y − max_{k≠y} o_k``; of a binary model with one output ±o.

    >>> import torch
    >>> from influence import get_loss
    >>> Margin().of(get_loss("cross_entropy"), 3).values(torch.tensor([[1.0, 2.0, 5.0]]), torch.tensor([1]))
    tensor([-3.])
    """

    name: ClassVar[str] = "margin"

    def compute(self, view: View) -> Tensor:
        """``o_y − max_{k≠y} o_k``."""
        return view.own - view.rivals.amax(dim=1)


@dataclass(frozen=True)
class LogOdds(OfClass):
    """``log(p_y / (1 − p_y))``: a margin without a kink (Park et al. 2023, TRAK, section 3).

    >>> import torch
    >>> from influence import get_loss
    >>> LogOdds().of(get_loss("cross_entropy"), 2).values(torch.tensor([[1.0, 3.0]]), torch.tensor([1]))
    tensor([2.])
    """

    name: ClassVar[str] = "log_odds"

    def compute(self, view: View) -> Tensor:
        """``o_y − log Σ_{k≠y} e^{o_k}``."""
        return view.own - view.rivals.logsumexp(dim=1)


@dataclass(frozen=True)
class Probability(OfClass):
    """The probability of a class, a number in 0…1.

    >>> import torch
    >>> from influence import get_loss
    >>> Probability(0).of(get_loss("cross_entropy"), 2).values(torch.zeros(1, 2), torch.tensor([1]))
    tensor([0.5000])
    """

    name: ClassVar[str] = "probability"

    def compute(self, view: View) -> Tensor:
        """``σ(log-odds)``."""
        return torch.sigmoid(view.own - view.rivals.logsumexp(dim=1))


@dataclass(frozen=True)
class _Classes:
    """How a loss turns outputs and a class of each row into logits."""

    labels: range | tuple[int, ...]
    view: Callable[[Tensor, Tensor], View]


def _classes(loss: Loss, n_outputs: int, name: str) -> _Classes:
    if isinstance(loss, CrossEntropy):
        return _Classes(range(n_outputs), lambda o, y: _softmax_view(o, y, loss.ignore_index))
    if isinstance(loss, MarginLoss):
        if name in ("probability", "log_odds") and not isinstance(loss, Logistic):
            raise DataError(
                f"a model trained with the loss {loss.name} has no probabilities; ask for of='margin', or "
                "train with logistic"
            )
        return _Classes((-1, 1), lambda o, y: _signed_view(o, y.to(o.dtype)))
    if isinstance(loss, BinaryCrossEntropy) and n_outputs == 1:
        return _Classes((0, 1), _bit_view)
    if isinstance(loss, BinaryCrossEntropy):
        return _Classes(range(n_outputs), lambda o, y: _label_view(o, y, name))
    raise DataError(
        f"a model with the loss {loss.name} has no classes, so there is no {name}; ask for of=Output(0), or "
        "for a function of outputs and targets"
    )


def _softmax_view(outputs: Tensor, targets: Tensor, ignored: int | None) -> View:
    if targets.ndim != 1:
        raise DataError("soft labels name no class; name one, for example of=Probability(0)")
    if ignored is not None and bool((targets == ignored).any()):
        raise DataError(f"a test point has the target {ignored} (ignore_index), which is no class; drop it")
    if outputs.shape[1] < 2:
        raise DataError("a margin, logit or probability needs at least 2 outputs; ask for of=Output(0)")
    unit = F.one_hot(targets.long(), outputs.shape[1]).bool()
    return View(outputs[unit], outputs[~unit].reshape(len(outputs), -1))


def _signed_view(outputs: Tensor, signs: Tensor) -> View:
    return View(signs * outputs[:, 0], torch.zeros_like(outputs))


def _bit_view(outputs: Tensor, targets: Tensor) -> View:
    bits = targets.reshape(-1).to(outputs.dtype)
    if not bool(((bits == 0) | (bits == 1)).all()):
        raise DataError("targets between 0 and 1 name no class; name one, for example of=Probability(1)")
    return _signed_view(outputs, 2 * bits - 1)


def _label_view(outputs: Tensor, targets: Tensor, name: str) -> View:
    if targets.ndim != 1:
        raise DataError(
            f"each test point carries several labels, so 'the {name} of the target' is not one number; name "
            f"a label, for example of={name.title().replace('_', '')}(0)"
        )
    own = outputs.gather(1, targets.long()[:, None])
    return View(own[:, 0], torch.zeros_like(own))


QUANTITIES: dict[str, type[Quantity]] = {
    "margin": Margin,
    "log_odds": LogOdds,
    "logit": Logit,
    "probability": Probability,
    "output": Output,
}


def get_quantity(of: Any, loss: Loss, n_outputs: int, shape: tuple[int, ...]) -> Asked:
    """The quantity that a person asked for.

    Args:
        of: a name, a :class:`Quantity`, or a function ``(outputs, targets) -> (m,)``.
        loss: that the model was trained with.
        n_outputs: c.
        shape: of the outputs for one example, which a function sees.

    Raises:
        DataError: an unknown name, or a quantity without meaning for this loss.
    """
    if isinstance(of, str):
        if of not in QUANTITIES:
            raise DataError(
                f"of must be 'loss', {', '.join(map(repr, QUANTITIES))}, a quantity such as Probability(1), "
                f"a Loss, or a function of outputs and targets, got {of!r}"
            )
        of = QUANTITIES[of]()
    if isinstance(of, type) and issubclass(of, Quantity):
        of = of()
    if isinstance(of, Quantity):
        return of.of(loss, n_outputs)
    if not callable(of):
        raise DataError(
            "of must be a name, a quantity, a Loss, or a function of outputs and targets, got "
            f"{type(of).__name__}"
        )
    return Asked(OwnFunction(of, shape), f"of={called(of)}")


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise DataError(f"{name} takes an integer, got {value!r}")
    return int(value.__index__())


def _listed(labels: range | tuple[int, ...]) -> str:
    return f"0…{len(labels) - 1}" if isinstance(labels, range) else " and ".join(map(str, labels))
