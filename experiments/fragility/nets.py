"""Small fully connected nets, many of one shape side by side, trained by Adam on all points at once."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "selu": nn.SELU}
_BETAS, _EPSILON = (0.9, 0.999), 1e-8
# Newton's method is given up if in so many steps the objective fell by less than this (relative, at least 1),
# and the gradient norm is still so many times the tolerance.
_LOOK, _STILL, _STEEP = 20, 1e-7, 1e3


@dataclass(frozen=True)
class Shape:
    """A net: ``inputs`` → ``depth`` hidden layers of ``width`` units → ``classes`` outputs, with biases."""

    inputs: int
    classes: int
    depth: int
    width: int
    activation: str

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(outputs, inputs) of each layer."""
        units = [self.inputs, *[self.width] * self.depth, self.classes]
        return [(out, into) for into, out in itertools.pairwise(units)]

    @property
    def last(self) -> int:
        """Parameters of the last layer, which stand at the end of θ."""
        out, into = self.sizes[-1]
        return out * (into + 1)

    def module(self, generator: torch.Generator) -> nn.Sequential:
        """A fresh net in float64: weights N(0, 1/inputs), biases 0."""
        layers: list[nn.Module] = []
        for out, into in self.sizes:
            layer = nn.Linear(into, out, dtype=torch.float64)
            with torch.no_grad():
                layer.weight.normal_(0.0, into**-0.5, generator=generator)
                layer.bias.zero_()
            layers += [layer, ACTIVATIONS[self.activation]()]
        return nn.Sequential(*layers[:-1])

    def outputs(self, thetas: Tensor, X: Tensor) -> Tensor:
        """Outputs ``(m, n, c)`` of m nets ``(m, p)`` on the inputs ``(n, d)``."""
        function = torch.tanh if self.activation == "tanh" else torch.selu
        hidden, place = X.expand(len(thetas), -1, -1), 0
        for number, (out, into) in enumerate(self.sizes):
            weight = thetas[:, place : place + out * into].reshape(-1, out, into)
            bias = thetas[:, place + out * into : place + out * (into + 1)]
            place += out * (into + 1)
            hidden = torch.baddbmm(bias[:, None, :], hidden, weight.transpose(1, 2))
            if number + 1 < len(self.sizes):
                hidden = function(hidden)
        return hidden


def gradients(shape: Shape, thetas: Tensor, X: Tensor, y: Tensor, weights: Tensor, l2: float) -> Tensor:
    """Gradients ``(m, p)`` of ``(1/n) Σ_i w_ji L_i + (l2/2)‖θ_j‖²`` at m points ``(m, p)``."""
    thetas = thetas.detach().requires_grad_()
    outputs = shape.outputs(thetas, X)
    losses = nn.functional.cross_entropy(
        outputs.reshape(-1, shape.classes), y.repeat(len(weights)), reduction="none"
    )
    total = (losses.reshape(weights.shape) * weights).sum() / len(y)
    (found,) = torch.autograd.grad(total, thetas)
    return found + l2 * thetas.detach()


def values(shape: Shape, theta: Tensor, X: Tensor, y: Tensor, l2: float) -> Tensor:
    """The objective of all points at ``theta (p,)``."""
    loss = nn.functional.cross_entropy(shape.outputs(theta[None], X)[0], y)
    return loss + l2 / 2 * theta @ theta


def hessian(shape: Shape, theta: Tensor, X: Tensor, y: Tensor, l2: float) -> Tensor:
    """The exact Hessian ``(p, p)`` of the objective of all points, symmetrised."""
    H = torch.func.hessian(lambda at: values(shape, at, X, y, l2))(theta)
    return (H + H.T) / 2


def newton(
    shape: Shape, theta: Tensor, X: Tensor, y: Tensor, l2: float, tolerance: float, iterations: int
) -> tuple[Tensor, float]:
    """From ``theta`` towards a minimum: Newton steps on |eigenvalues|, halved until the objective falls.

    Returns θ and its gradient norm; above ``tolerance`` if the steps ran out or stopped falling. At a kink of
    SELU both derivatives point uphill: steps get ever smaller, and the gradient stays.
    """
    ones = torch.ones(1, len(y), dtype=theta.dtype)
    earlier = float("inf")
    for iteration in range(iterations):
        gradient = gradients(shape, theta[None], X, y, ones, l2)[0]
        if float(gradient.norm()) <= tolerance:
            break
        if iteration % _LOOK == 0:
            now = float(values(shape, theta, X, y, l2))
            if earlier - now < _STILL * max(1.0, abs(now)) and float(gradient.norm()) > _STEEP * tolerance:
                break
            earlier = now
        eigenvalues, vectors = torch.linalg.eigh(hessian(shape, theta, X, y, l2))
        size = eigenvalues.abs().clamp(min=1e-6 * float(eigenvalues.abs().max()))
        step = vectors @ ((vectors.T @ gradient) / size)
        before, slope = values(shape, theta, X, y, l2), gradient @ step
        length = 1.0
        while (
            length > 1e-8
            and not values(shape, theta - length * step, X, y, l2) <= before - 1e-4 * length * slope
        ):
            length /= 2
        # Near the minimum the objective no longer tells points apart, but the gradient does.
        full = gradients(shape, (theta - step)[None], X, y, ones, l2)[0]
        if length <= 1e-8 and not full.norm() < gradient.norm():
            break
        theta = theta - (length if length > 1e-8 else 1.0) * step
    return theta, float(gradients(shape, theta[None], X, y, ones, l2)[0].norm())


def kink(shape: Shape, theta: Tensor, X: Tensor) -> float:
    """The smallest |input| of an activation, over all hidden units and examples: how near θ is to a kink."""
    module = shape.module(torch.Generator()).to(theta.dtype)
    torch.nn.utils.vector_to_parameters(theta, module.parameters())
    least, at = float("inf"), X
    with torch.no_grad():
        for layer in list(module)[:-1]:
            at = layer(at)
            if isinstance(layer, nn.Linear):
                least = min(least, float(at.abs().min()))
    return least


def adam(
    shape: Shape, start: Tensor, X: Tensor, y: Tensor, weights: Tensor, l2: float, steps: int, rate: float
) -> Tensor:
    """m nets ``(m, p)`` from one ``start (p,)``, each on its own ``weights (m, n)`` of the examples.

    Net j minimises ``(1/n) Σ_i w_ji L_i + (l2/2)‖θ‖²``.
    """
    thetas = start.repeat(len(weights), 1)
    first, second = torch.zeros_like(thetas), torch.zeros_like(thetas)
    for step in range(1, steps + 1):
        gradient = gradients(shape, thetas, X, y, weights, l2)
        first.mul_(_BETAS[0]).add_(gradient, alpha=1 - _BETAS[0])
        second.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
        scale = (second / (1 - _BETAS[1] ** step)).sqrt_().add_(_EPSILON)
        thetas = thetas.addcdiv(first, scale, value=-rate / (1 - _BETAS[0] ** step))
    return thetas


def leave_out(
    shape: Shape,
    theta: Tensor,
    X: Tensor,
    y: Tensor,
    weights: Tensor,
    l2: float,
    inverse: Tensor,
    tolerance: float,
    iterations: int,
) -> tuple[Tensor, Tensor]:
    """From the minimum of all points on to that of each row of ``weights (m, n)``; ``inverse (p, p)`` is
    that of the Hessian at ``theta``, with which every step is made and halved while the gradient grows.

    Returns the nets ``(m, p)`` and their gradient norms ``(m,)``.
    """
    thetas = theta.repeat(len(weights), 1)
    found = gradients(shape, thetas, X, y, weights, l2)
    length = torch.ones(len(weights), 1, dtype=theta.dtype)
    for _ in range(20 * iterations):
        norms = found.norm(dim=1)
        if bool((norms <= tolerance).all()):
            break
        tried = thetas - length * (found @ inverse)
        after = gradients(shape, tried, X, y, weights, l2)
        better = (after.norm(dim=1) < norms) & (norms > tolerance)
        thetas = torch.where(better[:, None], tried, thetas)
        found = torch.where(better[:, None], after, found)
        length = torch.where(better[:, None], (2 * length).clamp(max=1.0), length / 2)
    return thetas, found.norm(dim=1)
