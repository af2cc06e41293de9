"""The proximal Bregman response: what the influence of an unfinished network approximates (Bae et al., 2022).

``Q_ε,i(θ) = (1/n) Σ_j D(h(x_j, θ), h(x_j, θ̃)) + (λ/2)‖m ⊙ (θ − θ̃)‖² + (δ/2)‖θ − θ̃‖² − ε L(z_i, θ)``

D is the Bregman divergence of the loss between the outputs at θ and those at the trained parameters θ̃:
``D(o, õ) = ℓ(o, y) − ℓ(õ, y) − ∇ℓ(õ, y)·(o − õ)``. At ε = 0 its minimum is θ̃, whether training had converged
or not. The derivative of the minimum at ε = 0 is ``(G + λ diag(m) + δ I)⁻¹ ∇L(z_i, θ̃)``, with G the
Gauss-Newton matrix. So influence with G and damping δ predicts this minimum, and not that of a new training.

For cross-entropy, D is the cross-entropy whose soft labels are softmax(õ), less its value at õ. For squared
error it is the squared error with targets õ. So both need only the same objective with other targets.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from influence.checks import checked_number
from influence.curvature.networks import gauss_newton_preconditioner
from influence.errors import DataError
from influence.losses import CrossEntropy, SquaredError
from influence.objectives.module import Objective
from influence.retraining.stationary import Reweighted, WeightedNet, descend


class ProximalNet:
    """``Q_ε,i`` of a net around θ̃: values and gradients.

    Args:
        objective: the net, its data and λ, in float64, without weights.
        theta: θ̃ ``(p,)`` fitted parameters.
        damping: δ > 0.
        kernel: as for :func:`~.networks.batch_gradients`.
        threads: of the compiled kernel.

    Raises:
        DataError: a loss whose divergence is not known, weights, or a damping that is not positive.
    """

    def __init__(
        self, objective: Objective, theta: Tensor, damping: float, kernel: str = "auto", threads: int = 1
    ) -> None:
        checked_number("damping", damping, above=0.0)
        self.objective, self.damping = objective, damping
        self.theta = objective.vector(theta)
        self.own = WeightedNet(objective, kernel, threads)
        mirrored = objective.on(objective.inputs, _targets_at(objective, self.theta))
        self.net = WeightedNet(mirrored, kernel, threads)
        zero, none = torch.zeros(1, dtype=objective.dtype), torch.zeros(1, dtype=torch.long)
        values, gradients = self.net.evaluate(self.theta[:, None], zero, none)
        self._value, self._gradient = values[0], gradients  # of λ alone: the divergence is least here
        self._losses = objective.example_losses(self.theta)

    def evaluate(self, thetas: Tensor, epsilon: Tensor, removed: Tensor) -> tuple[Tensor, Tensor]:
        """Values ``(k,)`` less those at θ̃, and gradients ``(p, k)``, of ``Q_ε_j,i_j(θ_j)``.

        ``removed (k,)`` holds the i_j.
        """
        zero = torch.zeros_like(epsilon)
        values, gradients = self.net.evaluate(thetas, zero, removed)
        moved = thetas - self.theta[:, None]
        values = values - self._value - (self._gradient * moved).sum(dim=0)
        values = values + 0.5 * self.damping * moved.square().sum(dim=0)
        gradients = gradients - self._gradient + self.damping * moved
        for j, i in enumerate(removed.tolist()):
            one = torch.tensor([i])
            loss = self.objective.example_losses_many(thetas[:, j : j + 1], one)[0, 0]
            values[j] -= epsilon[j] * (loss - self._losses[i])
            gradients[:, j] -= epsilon[j] * self.own.example_gradient(thetas[:, j].contiguous(), i)
        return values, gradients


def proximal_responses(
    objective: Objective,
    theta: Tensor,
    removed: Tensor,
    damping: float,
    *,
    share: float = 1.0,
    tolerance: float = 1e-8,
    limit: int = 1000,
    kernel: str = "auto",
    threads: int = 1,
    progress: Callable[[int, Tensor], None] | None = None,
) -> Reweighted:
    """The minimum of ``Q_ε,i`` for each example i of ``removed (k,)``, with ε = ``share``/n.

    Source: Bae, Ng, Lo, Ghassemi and Grosse, *If Influence Functions are the Answer, Then What is the
    Question?* (NeurIPS 2022), equation 11, with the penalty λ of the objective in the place of none.

    Args:
        objective: the net, its data and λ, in float64, without weights; cross-entropy or squared error.
        theta: θ̃ ``(p,)``, converged or not.
        removed: the examples ``(k,)`` whose loss is taken away, each on its own.
        damping: δ > 0.
        share: part of the example's weight 1/n that is taken away.
        tolerance: gradient norm of every minimum.
        limit: passes over the data; a minimum that needs more is returned as it is, with its gradient norm.
        kernel: as for :func:`~.networks.batch_gradients`.
        threads: of the compiled kernel.
        progress: told how much is done.

    Raises:
        DataError: a loss whose divergence is not known, weights, or a number out of its range.
    """
    checked_number("share", share, above=0.0)
    if share > 1:
        raise DataError(f"share must be at most 1, the whole weight of the example, got {share}")
    net = ProximalNet(objective, theta, damping, kernel, threads)
    removed = objective.index(removed).cpu()
    amounts = torch.full((len(removed),), share / objective.n, dtype=objective.dtype)
    found = descend(
        lambda thetas, columns: net.evaluate(thetas, amounts[columns], removed[columns]),
        net.theta[:, None].repeat(1, len(removed)),
        gauss_newton_preconditioner(objective, net.theta, damping, share=1.0),
        tolerance,
        limit,
        progress=progress,
    )
    return Reweighted(found.thetas, found.gradients.norm(dim=0), found.passes)


def _targets_at(objective: Objective, theta: Tensor) -> Tensor:
    """The targets with which the loss is the Bregman divergence from the outputs at θ̃, up to a constant."""
    outputs, loss = objective.outputs(theta), objective.loss
    if isinstance(loss, SquaredError):
        return outputs.reshape(objective.targets.shape)
    if isinstance(loss, CrossEntropy) and loss == CrossEntropy():
        return torch.softmax(outputs, dim=1)
    raise DataError(
        f"the proximal Bregman response is known for cross_entropy without smoothing, class weights or "
        f"ignored labels, and for squared_error, not for {loss.name}; pass an objective with one of these"
    )
