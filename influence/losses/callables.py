"""Losses of one's own: a function of outputs and targets, or a loss module of torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import grad, jacrev, vmap

from influence.errors import DataError
from influence.losses._base import Loss, finite, placed
from influence.losses.asked import called
from influence.losses.classification import CrossEntropy
from influence.losses.regression import BinaryCrossEntropy

_STEPS = (1e-4, 1e-5, 1e-6)
_AGREE = 1e-4  # relative; differences of a smooth loss at these steps are far nearer
_EXAMPLES, _DRAWS = 4, 3
_KINDS: tuple[Callable[[Tensor], Tensor], ...] = (  # outputs of any size, probabilities, shares
    lambda noise: noise,
    torch.sigmoid,
    lambda noise: torch.softmax(noise, dim=1),
)
_FLAT = (
    "has a gradient of zero wherever one looks (an accuracy, a count?), so no training point has any "
    "influence; pass the loss that training lowered"
)
_OF_NUMBERS = (
    nn.BCELoss, nn.BCEWithLogitsLoss, nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.SoftMarginLoss,
    nn.MultiLabelSoftMarginLoss, nn.PoissonNLLLoss, nn.KLDivLoss,
)  # fmt: skip


@dataclass(frozen=True)
class Reshaped:
    """A function of outputs in the model's own shape, for outputs that come flat."""

    function: Callable[..., Any]
    shape: tuple[int, ...]

    def __call__(self, outputs: Tensor, targets: Tensor) -> Any:
        return self.function(outputs.reshape(len(outputs), *self.shape), targets)


@dataclass(frozen=True)
class CallableLoss(Loss):
    """``ℓ_i = function(o_i[None], y_i[None])``: the function is asked for one example at a time.

    The function may return one number, or a vector with an entry per example. A function that averages over a
    batch (``reduction="mean"``) therefore gives the loss of the example itself. Its gradient and Hessian in
    the outputs come from autograd and are compared with differences before they are used.

    Args:
        function: ``(outputs (1, c), targets (1, ...)) -> number``, differentiable twice.
        convex: whether it is convex in the outputs; the Gauss-Newton matrix is then positive semi-definite.

    >>> import torch
    >>> loss = CallableLoss(lambda outputs, targets: (outputs - targets).pow(2).sum())
    >>> loss.values(torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1))
    tensor([1., 4.])
    """

    name: ClassVar[str] = "callable"
    function: Callable[[Tensor, Tensor], Tensor]
    convex: bool = False  # a field in place of the property

    def _one(self, output: Tensor, target: Tensor) -> Tensor:
        return self.function(output[None], target[None]).sum()

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return vmap(self._one, randomness="error")(outputs, targets)

    def output_gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        result: Tensor = vmap(grad(self._one))(outputs.detach(), targets)
        return result

    def output_hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        hessian = vmap(jacrev(grad(self._one)))(outputs.detach(), targets)  # reverse twice: rules are right
        result: Tensor = (hessian + hessian.transpose(1, 2)) / 2
        return result

    def prepare(self, targets: Any, dtype: torch.dtype, device: torch.device | str | None = None) -> Tensor:
        tensor = placed(targets, device)
        numbers = tensor.is_floating_point() or isinstance(_inner(self.function), _OF_NUMBERS)
        return finite(tensor.to(dtype) if numbers else tensor, "the targets")

    def check_range(self, targets: Tensor, n_outputs: int) -> None:
        generator = torch.Generator().manual_seed(0)
        some = targets[_varied(targets)]
        reasons = []
        for draw in range(_DRAWS * len(_KINDS)):  # a kink may spoil one draw
            noise, along = (
                torch.randn(len(some), n_outputs, generator=generator, dtype=torch.float64) for _ in "ab"
            )
            outputs = _KINDS[draw % len(_KINDS)](noise).to(some.device)
            beside = self._beside(outputs, _double(some))
            if beside is not None:  # once is enough
                raise DataError(f"the loss {_called(self.function)} {beside}")
            reasons.append(self._problem(outputs, _double(some), (along / along.norm()).to(some.device)))
            if reasons[-1] is None and bool((self.output_gradient(outputs, _double(some)) != 0).any()):
                return
        raise DataError(f"the loss {_called(self.function)} {reasons[0] or _FLAT}")

    def _problem(self, outputs: Tensor, targets: Tensor, direction: Tensor) -> str | None:
        """Why this loss cannot be used, or None."""
        try:
            values = self.values(outputs, targets)
            gradient, hessian = self.output_gradient(outputs, targets), self.output_hessian(outputs, targets)
        except DataError:
            raise
        except Exception as error:  # whatever the user's function does
            return f"fails on outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)}: {error}"
        if not bool(torch.isfinite(values).all()):
            return "is NaN or infinite at ordinary outputs"
        if not _agrees(lambda o: self.values(o, targets)[:, None], outputs, direction, gradient):
            return "has a gradient in the outputs that differs from differences of its values"
        along = torch.einsum("nab,nb->na", hessian, direction)
        if not _agrees_with(lambda o: self.output_gradient(o, targets), outputs, direction, along):
            return "has a Hessian in the outputs that differs from differences of its gradient"
        return None

    def _beside(self, outputs: Tensor, targets: Tensor) -> str | None:
        """Whether more enters than each example's own outputs and target, in words; None if nothing does."""
        try:
            with torch.enable_grad():
                whole = self.function(outputs.detach(), targets)
            pairs = zip(outputs, targets, strict=True)
            values = torch.stack([self._one(output, target).detach() for output, target in pairs])
        except Exception:  # written for one example at a time, or not for such outputs
            return None
        if not isinstance(whole, Tensor):
            return None
        if whole.requires_grad:
            return (
                "depends on parameters of its own or of the model, which training moves but θ does not show; "
                "put them into the model and their penalty into l2, or freeze them with requires_grad_(False)"
            )
        if not bool(torch.isfinite(values).all()):
            return None
        rows = len(whole) == len(values) if whole.ndim else False
        sums = whole.reshape(len(whole), -1).sum(1) if rows else whole.sum()
        wanted = (values,) if rows else (values.mean(), values.sum())
        scale = max(1.0, float(values.abs().max()))
        if any(float((sums - each).abs().max()) <= _AGREE * scale for each in wanted):
            return None
        return (
            "gives a batch another number than the mean or the sum over its examples, so it has no loss per "
            "example (contrastive, divided by the class weights or tokens of a batch, or outputs "
            f"{tuple(outputs.shape)} broadcast against targets {tuple(targets.shape)}?); return one loss per "
            "example, from its own outputs"
        )


def _varied(targets: Tensor) -> list[int]:
    """A few examples, of different targets if there are any."""
    found: dict[Any, int] = {}
    for i, target in enumerate(targets[:1000].reshape(min(len(targets), 1000), -1)):
        found.setdefault(tuple(target[:8].tolist()), i)
        if len(found) == _EXAMPLES:
            break
    more = [i for i in range(min(len(targets), _EXAMPLES)) if i not in found.values()]
    return sorted([*found.values(), *more][:_EXAMPLES])


def _agrees(
    function: Callable[[Tensor], Tensor], outputs: Tensor, direction: Tensor, gradient: Tensor
) -> bool:
    along = (gradient * direction).sum(dim=1, keepdim=True)
    return _agrees_with(function, outputs, direction, along)


def _agrees_with(
    function: Callable[[Tensor], Tensor], outputs: Tensor, direction: Tensor, expected: Tensor
) -> bool:
    for step in _STEPS:
        difference = (function(outputs + step * direction) - function(outputs - step * direction)) / (
            2 * step
        )
        scale = max(1.0, float(expected.abs().max()))
        if float((difference - expected).abs().max()) <= _AGREE * scale:
            return True
    return False


def _double(targets: Tensor) -> Tensor:
    return targets.double() if targets.is_floating_point() else targets


def _inner(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function that a person passed."""
    return function.function if isinstance(function, Reshaped) else function


def _called(function: Callable[..., Any]) -> str:
    return called(_inner(function))


def from_module(module: nn.Module) -> Loss:
    """The loss of a torch loss module: in closed form where there is one, else by autograd.

    Raises:
        DataError: a module that weighs classes and averages, so that no loss per example exists.
    """
    if isinstance(module, nn.CrossEntropyLoss):
        if module.weight is not None and module.reduction == "mean":
            raise DataError(
                "CrossEntropyLoss(weight=...) divides by the weights of the batch, so it has no loss per "
                "example: pass CrossEntropy(class_weights=...) instead"
            )
        weights = None if module.weight is None else tuple(module.weight.tolist())
        return CrossEntropy(module.label_smoothing, weights, module.ignore_index)
    if isinstance(module, nn.BCEWithLogitsLoss) and module.reduction != "mean" and module.weight is None:
        if module.pos_weight is None:
            return BinaryCrossEntropy()
        if module.pos_weight.numel() == 1:
            return BinaryCrossEntropy(float(module.pos_weight))
    convex = isinstance(
        module,
        nn.MSELoss | nn.BCEWithLogitsLoss | nn.HuberLoss | nn.SmoothL1Loss | nn.L1Loss | nn.SoftMarginLoss
        | nn.MultiLabelSoftMarginLoss | nn.HingeEmbeddingLoss | nn.MultiMarginLoss,
    )  # fmt: skip
    return CallableLoss(module, convex)
