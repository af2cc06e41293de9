"""Independent derivatives of small modules in float64: plain autograd gradients and central differences."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from influence.objectives.inputs import take
from influence.objectives.module import Objective

H = 1e-5


def by_double_backward(
    model: nn.Module, losses: Callable[[slice], Tensor], n: int, total: int, l2: float
) -> tuple[Tensor, Tensor]:
    """Hessian ``(p, p)`` of the first ``n`` examples' mean loss with L2, and all gradients ``(total, p)``.

    losses: ``rows -> (m,)``, with a graph. It is torch's own double backward through the whole network.
    """
    weights = [w for w in model.parameters() if w.requires_grad]

    def flat(value: Tensor, graph: bool = False) -> Tensor:
        found = torch.autograd.grad(
            value, weights, create_graph=graph, retain_graph=True, materialize_grads=True
        )
        return torch.cat([g.reshape(-1) for g in found])

    penalty = 0.5 * l2 * sum(w.square().sum() for w in weights)
    gradient = flat(losses(slice(0, n)).mean() + penalty, True)
    hessian = torch.stack([flat(entry) for entry in gradient])
    return hessian, torch.stack([flat(losses(slice(i, i + 1)).sum()) for i in range(total)])


def damped_scores(hessian: Tensor, each: Tensor, n: int, damping: float) -> tuple[Tensor, float]:
    """``−g_testᵀ (H + δI)⁻¹ ∇ℓ_i`` ``(n, tests)``; δ is the damping beyond the lowest eigenvalue below 0."""
    shift = damping + max(0.0, -float(torch.linalg.eigvalsh((hessian + hessian.T) / 2)[0]))
    eye = torch.eye(len(hessian), dtype=hessian.dtype)
    return -each[:n] @ torch.linalg.solve(hessian + shift * eye, each[n:].T), shift


class Differences:
    """Derivatives of an objective, from its module at θ and torch alone.

    Args:
        objective: in float64, without L2.
        loss: ``(outputs, targets) -> (m,)``.
    """

    def __init__(self, objective: Objective, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.o, self.loss = objective, loss

    def _losses(self, theta: Tensor, x, y: Tensor):
        module = self.o.module(theta)
        args, kwargs = self.o.network._arguments(x)
        with torch.enable_grad():
            outputs = module(*args, **kwargs)
            outputs = outputs[:, None] if outputs.ndim == 1 else outputs
            return module, outputs, self.loss(outputs, y)

    def example_gradients(self, theta: Tensor) -> Tensor:
        """``(n, p)``, one example at a time."""
        return torch.stack([self._gradient(theta, slice(i, i + 1)) for i in range(self.o.n)])

    def _gradient(self, theta: Tensor, rows: slice) -> Tensor:
        module, _, losses = self._losses(theta, take(self.o.inputs, rows), self.o.targets[rows])
        return self._collected(module, losses.sum())

    def _collected(self, module: torch.nn.Module, total: Tensor) -> Tensor:
        total.backward()
        named = {n: torch.zeros_like(w) if w.grad is None else w.grad for n, w in module.named_parameters()}
        return self.o.network.flatten(named)

    def gradient(self, theta: Tensor) -> Tensor:
        """∇R ``(p,)``."""
        return self._gradient(theta, slice(None)) / self.o.n

    def value(self, theta: Tensor) -> Tensor:
        """R(θ)."""
        return self._losses(theta, self.o.inputs, self.o.targets)[2].detach().mean()

    def outputs(self, theta: Tensor) -> Tensor:
        """``(n, c)``."""
        return self._losses(theta, self.o.inputs, self.o.targets)[1].detach()

    def along(self, function: Callable[[Tensor], Tensor], theta: Tensor, v: Tensor) -> Tensor:
        """The derivative of ``function`` along v: central differences with their h² term removed."""
        h = H * max(1.0, float(theta.norm())) / float(v.norm())

        def central(s: float) -> Tensor:
            return (function(theta + s * v) - function(theta - s * v)) / (2 * s)

        return (4 * central(h) - central(2 * h)) / 3

    def hessian(self, theta: Tensor, v: Tensor) -> Tensor:
        """∇²R v."""
        return self.along(self.gradient, theta, v)

    def gauss_newton(self, theta: Tensor, v: Tensor) -> Tensor:
        """``(1/n) Σ J_iᵀ B_i J_i v`` with the J v from differences of the outputs."""
        tangent = self.along(self.outputs, theta, v)
        outputs = self.outputs(theta)
        curved = torch.stack([self._output_curvature(outputs[i], i, tangent[i]) for i in range(self.o.n)])
        module, out, _ = self._losses(theta, self.o.inputs, self.o.targets)
        return self._collected(module, (out * curved).sum()) / self.o.n

    def _output_curvature(self, row: Tensor, i: int, u: Tensor) -> Tensor:
        y = self.o.targets[i : i + 1]
        hessian = torch.autograd.functional.hessian(lambda r: self.loss(r[None], y).sum(), row)
        return hessian @ u

    def directional(self, theta: Tensor, v: Tensor) -> Tensor:
        """∇ℓ_i·v from differences of the losses: ``(n,)``."""
        return self.along(lambda t: self._losses(t, self.o.inputs, self.o.targets)[2].detach(), theta, v)

    def mixed(self, theta: Tensor, v: Tensor) -> Tensor:
        """∇_x (v·∇_θ ℓ_i)."""

        def input_gradient(t: Tensor) -> Tensor:
            x = self.o.inputs.clone().requires_grad_(True)
            return torch.autograd.grad(self._losses(t, x, self.o.targets)[2].sum(), x)[0]

        return self.along(input_gradient, theta, v)


def gap(ours: Tensor, oracle: Tensor, floor: float = 1e-9) -> float:
    """Relative error in the norm; against ``floor`` where the oracle vanishes."""
    return float((ours - oracle).norm()) / max(float(oracle.norm()), floor)
