"""A quantity in place of a loss: any function of outputs and targets, checked where it is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from influence.errors import DataError
from influence.losses._base import Loss

Function = Callable[[Tensor, Tensor], Tensor]
_ROWS = 4  # test points on which a function of one's own is compared with differences
_DRAWS = 3  # directions; a kink may spoil one
_AGREE = {torch.float64: (1e-4, (1e-4, 1e-5, 1e-6)), torch.float32: (2e-2, (1e-1, 1e-2, 1e-3))}


@dataclass(frozen=True)
class Asked(Loss):
    """A quantity in place of a loss.

    Attributes:
        function: ``(outputs (m, c), targets (m, ...)) -> (m,)``, every row from its own outputs alone.
        words: what it is, for a reader.
        needs_targets: whether the targets of the test points enter.
    """

    name: ClassVar[str] = "asked"
    function: Function
    words: str
    needs_targets: bool = True
    convex: bool = False  # a field in place of the property

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.function(outputs, targets)

    def output_gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._gradient(outputs, targets)[1].detach()

    def output_hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        leaf, gradient = self._gradient(outputs, targets, create_graph=True)
        if not gradient.requires_grad:
            return torch.diag_embed(torch.zeros_like(outputs))
        rows = [
            torch.autograd.grad(
                gradient[:, a].sum(), leaf, retain_graph=True, allow_unused=True, materialize_grads=True
            )[0]
            for a in range(outputs.shape[1])
        ]
        return torch.stack(rows, dim=1)

    def _gradient(
        self, outputs: Tensor, targets: Tensor, *, create_graph: bool = False
    ) -> tuple[Tensor, Tensor]:
        leaf = outputs.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            total = self.function(leaf, targets).sum()
            gradient = torch.autograd.grad(
                total, leaf, create_graph=create_graph, allow_unused=True, materialize_grads=True
            )[0]
        return leaf, gradient


@dataclass(frozen=True)
class OwnFunction:
    """A person's function of outputs in the model's own shape, each answer checked."""

    function: Callable[..., Any]
    shape: tuple[int, ...]

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        name = f"of={called(self.function)}"
        shaped = outputs if self.shape == outputs.shape[1:] else outputs.reshape(len(outputs), *self.shape)
        try:
            found = self.function(shaped, targets)
        except DataError:
            raise
        except Exception as error:  # whatever a person's function does
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DataError(
                f"{name} fails on outputs {tuple(shaped.shape)} and targets {tuple(targets.shape)}: {said}"
            ) from None
        if not isinstance(found, Tensor):
            raise DataError(f"{name} must return a tensor (m,), got {type(found).__name__}; stay in torch")
        if found.shape != outputs.shape[:1]:
            raise DataError(
                f"{name} must return one number per test point, shape ({len(outputs)},), got "
                f"{tuple(found.shape)}"
            )
        if not found.is_floating_point():
            raise DataError(
                f"{name} must return real numbers that can be differentiated, got {found.dtype}; a class or "
                "a count has no gradient: ask for a margin or a probability"
            )
        if outputs.requires_grad and not found.requires_grad:
            raise DataError(
                f"{name} returns numbers without a gradient in the outputs (argmax, comparison, .detach(), "
                ".item() or numpy inside, or the outputs are not used); use differentiable torch operations"
            )
        return found


def check_asked(asked: Asked, outputs: Tensor, targets: Tensor) -> None:
    """Refuse a quantity that is not finite or not differentiable at the test points, or mixes them.

    Args:
        asked: the quantity.
        outputs: ``(m, c)`` of the test points at θ.
        targets: ``(m, ...)``.

    Raises:
        DataError: one of these; the message says which.
    """
    values, gradient = asked.values(outputs, targets), asked.output_gradient(outputs, targets)
    bad = ~(torch.isfinite(values) & torch.isfinite(gradient).all(dim=1))
    if bool(bad.any()):
        at = int(bad.nonzero()[0])
        what = "value" if not bool(torch.isfinite(values[at])) else "gradient"
        raise DataError(
            f"{asked.words} has a {what} that is NaN or infinite at test point {at}, whose outputs are "
            f"{_numbers(outputs[at])}; keep it finite there (clamp, or drop the point)"
        )
    if not isinstance(asked.function, OwnFunction):
        return
    few = slice(0, _ROWS)
    o, y = outputs[few], targets[few]
    alone = torch.cat([asked.values(o[i : i + 1], y[i : i + 1]) for i in range(len(o))])
    if not torch.allclose(alone, values[few], rtol=1e-4, atol=1e-6):
        raise DataError(
            f"{asked.words} gives a test point another number when the batch holds other points too; "
            "compute each row from its own outputs (mean=True averages over the test points)"
        )
    _check_gradient(asked, o, y)


def _check_gradient(asked: Asked, outputs: Tensor, targets: Tensor) -> None:
    """The gradient agrees with differences of the values, and is not zero wherever one looks."""
    try:
        o: Tensor = outputs.double()
        asked.values(o, targets)
    except DataError:  # a function with float32 tensors of its own
        o = outputs
    agree, steps = _AGREE[o.dtype]
    generator = torch.Generator().manual_seed(0)
    spread, moved, agreed = 1.0 + float(o.abs().mean()), False, False
    for draw in range(_DRAWS):
        noise, direction = (
            torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o) for _ in "ab"
        )
        at = o + (spread * 100.0 ** (draw - 1) * noise if draw else 0.0)  # there, around, and far away
        gradient = asked.output_gradient(at, targets)
        if not bool(torch.isfinite(gradient).all()):
            continue
        moved = moved or bool((gradient != 0).any())
        expected = (gradient * direction).sum(dim=1)
        scale = 1 + float(gradient.norm(dim=1).max()) * float(direction.norm(dim=1).max())
        for h in steps:
            ahead, behind = (asked.values(at + s * direction, targets) for s in (h, -h))
            off = float(((ahead - behind) / (2 * h) - expected).abs().max())
            agreed = agreed or off <= agree * scale
    if not agreed:
        raise DataError(
            f"{asked.words} has a gradient that differs from differences of its values: it jumps, or an "
            "operation inside has a wrong backward pass; use differentiable torch operations"
        )
    if not moved:
        raise DataError(
            f"{asked.words} has a gradient of zero everywhere (round, sign, a count?), so no training point "
            "has any influence on it; ask for a margin or a probability"
        )


def called(function: Any) -> str:
    """The name of a function or module, for messages."""
    if isinstance(function, nn.Module):
        return type(function).__name__
    # An object that can be called, such as functools.partial, has no name of its own.
    return str(getattr(function, "__name__", "") or type(function).__name__)


def _numbers(row: Tensor) -> str:
    shown = ", ".join(f"{float(v):.4g}" for v in row[:5])
    return f"[{shown}{', …' if len(row) > 5 else ''}]"
