"""A loss given as a plain function or a torch loss module, differentiated by autograd and checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from influence.errors import DataError
from influence.losses._base import Loss

_STEP = 1e-5


@dataclass(frozen=True)
class FunctionLoss(Loss):
    """``function(outputs, targets)``: one number per example ``(m,)``, or the mean over the examples as a
    scalar.

    The function sees the outputs in the model's own shape ``(m, ...)``. Its derivatives come from reverse
    mode twice; they are held against differences on a few examples when an objective is made. A function of
    one example must not depend on the others.

    Args:
        function: the loss.
        shape: of the outputs of one example; set by the objective.
        single: whether the function gives a scalar, so that it is called for one example at a time.
    """

    name: ClassVar[str] = "function"
    convex: ClassVar[bool] = False
    function: Callable[[Tensor, Tensor], Any] = torch.nn.functional.mse_loss
    shape: tuple[int, ...] | None = None
    single: bool = False

    def _called(self, outputs: Tensor, targets: Tensor) -> Tensor:
        shape = outputs.shape[1:] if self.shape is None else self.shape
        if isinstance(self.function, nn.Module) and shape == (1,) and targets.ndim == 1:
            shape = ()  # torch's losses would broadcast (m, 1) against (m,) to (m, m)
        result = self.function(outputs.reshape(len(outputs), *shape), targets)
        if not isinstance(result, Tensor):
            raise DataError(f"the loss {self._label} must return a tensor, got {type(result).__name__}")
        return result

    @property
    def _label(self) -> str:
        f = self.function
        return f.__name__ if isinstance(f, FunctionType) else type(f).__name__

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if not self.single:
            return self._called(outputs, targets)
        rows = [self._called(outputs[i : i + 1], targets[i : i + 1]).reshape(()) for i in range(len(outputs))]
        return torch.stack(rows)

    def _slope(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.func.grad(lambda o: self.values(o, targets).sum())(outputs)

    def output_gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._slope(outputs, targets)

    def output_hessian_product(self, outputs: Tensor, targets: Tensor, tangents: Tensor) -> Tensor:
        def along(u: Tensor) -> Tensor:
            return torch.func.grad(lambda o: (self._slope(o, targets) * u).sum())(outputs)

        return torch.stack([along(u) for u in tangents.unbind(dim=2)], dim=2)

    def output_hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        n, c = outputs.shape
        unit = torch.eye(c, dtype=outputs.dtype, device=outputs.device).expand(n, c, c)
        return self.output_hessian_product(outputs, targets, unit)

    def output_hessian_sqrt(self, outputs: Tensor, targets: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(self.output_hessian(outputs, targets))
        if bool((values < -1e-8 * values.abs().amax()).any()):
            raise DataError(f"the loss {self._label} is not convex in the outputs; use a form that allows it")
        return vectors * values.clamp(min=0).sqrt()[:, None, :]

    def for_outputs(self, shape: tuple[int, ...], outputs: Tensor, targets: Tensor) -> Loss:
        loss = replace(self, shape=shape)
        m = min(4, len(outputs))
        outputs, targets = outputs[:m].detach().double(), targets[:m]
        targets = targets.double() if targets.is_floating_point() else targets
        try:
            together = loss._called(outputs, targets)
            alone = [loss._called(outputs[i : i + 1], targets[i : i + 1]) for i in range(m)]
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"the loss {self._label} fails for outputs {('m', *shape)} and targets "
                f"{('m', *targets.shape[1:])}: {str(error).splitlines()[0]}"
            ) from error
        if together.numel() == 1 and (m > 1 or together.ndim == 0):
            loss = replace(loss, single=True)
        elif together.shape != (m,):
            raise DataError(
                f"the loss {self._label} returns {tuple(together.shape)} for {m} examples; it must return "
                "one number per example (m,), or their mean"
            )
        each = torch.stack([value.reshape(()) for value in alone])
        whole = each.mean() if loss.single else each
        if not torch.allclose(together.reshape(whole.shape), whole, rtol=1e-6, atol=1e-9):
            raise DataError(
                f"the loss {self._label} of a few examples is not the mean of their own losses (a sum, a "
                "weighted mean, or a loss between examples?); return one number per "
                "example (reduction='none')"
            )
        loss._check_derivatives(outputs, targets)
        return loss

    def _check_derivatives(self, outputs: Tensor, targets: Tensor) -> None:
        """Gradient and Hessian product against central differences, near a few outputs."""
        noise = torch.randn(
            2, *outputs.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        noise = noise.to(outputs.device)
        point, u = outputs + 1e-2 * noise[0], noise[1]
        h = _STEP * max(1.0, float(outputs.abs().max()))
        ahead, behind = point + h * u, point - h * u
        try:
            slope, bent = (
                self._slope(point, targets),
                self.output_hessian_product(point, targets, u[:, :, None]),
            )
            first = (self.values(ahead, targets) - self.values(behind, targets)) / (2 * h)
            second = (self._slope(ahead, targets) - self._slope(behind, targets)) / (2 * h)
        except Exception as error:
            raise DataError(
                f"autograd cannot differentiate the loss {self._label} twice: {str(error).splitlines()[0]}"
            ) from error
        for name, ours, oracle in (
            ("gradient", (slope * u).sum(dim=1), first), ("second derivative", bent[:, :, 0], second),
        ):  # fmt: skip
            if float((ours - oracle).norm()) > 1e-4 * max(1.0, float(oracle.norm())):
                raise DataError(
                    f"the {name} of the loss {self._label} by autograd differs from differences of it; it "
                    "has a backward pass of its own, or a kink at these outputs"
                )
