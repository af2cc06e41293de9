"""Simple attributions to compare influence with, on the same calls; all are positive for helpful points.

Each gives ``(n, k)`` for k test points. Their scale is arbitrary except where it is stated, so compare them
by rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from influence.checks import checked_number
from influence.errors import DataError
from influence.objectives._base import TrainingObjective

_BLOCK = 512


def gradient_dot(
    objective: TrainingObjective, theta: Tensor, test: TrainingObjective, test_idx: Any = None
) -> Tensor:
    """``w_i ∇L(z_i) · ∇L(z_test)`` (Charpiat et al. 2019): influence with the identity for the Hessian."""
    theta = objective.vector(theta)
    return _weighted(objective, objective.directional(theta, _test_gradients(test, theta, test_idx)))


def gradient_cosine(
    objective: TrainingObjective, theta: Tensor, test: TrainingObjective, test_idx: Any = None
) -> Tensor:
    """The cosine between both gradients; 0 where one of them is 0."""
    theta = objective.vector(theta)
    gradients = _test_gradients(test, theta, test_idx)
    along = objective.directional(theta, gradients)
    squares = objective.self_quadratics(theta, lambda B: (B * B).sum(0), None, _BLOCK)
    norms = squares.clamp(min=0).sqrt()[:, None] * gradients.norm(dim=0)
    return torch.where(norms > 0, along / norms.clamp(min=torch.finfo(along.dtype).tiny), 0.0)


def tracin(
    objective: TrainingObjective,
    checkpoints: Sequence[Tensor],
    rates: float | Sequence[float],
    test: TrainingObjective,
    test_idx: Any = None,
) -> Tensor:
    """``Σ_t η_t ∇L(z_i, θ_t) · ∇L(z_test, θ_t)`` over checkpoints (TracInCP, Pruthi et al. 2020).

    Args:
        objective: what was minimised, with its training data.
        checkpoints: θ_t, each ``(p,)``.
        rates: learning rates η_t, or one for all.
        test: the same model and loss on test data.
        test_idx: positions of the test points in ``test``.

    Raises:
        DataError: no checkpoint, or another number of rates.
    """
    steps = [rates] * len(checkpoints) if isinstance(rates, int | float) else list(rates)
    if not checkpoints or len(steps) != len(checkpoints):
        raise DataError(
            f"tracin needs a rate per checkpoint, got {len(checkpoints)} checkpoints and {len(steps)} rates"
        )
    parts = [
        rate * gradient_dot(objective, theta, test, test_idx)
        for theta, rate in zip(checkpoints, steps, strict=True)
    ]
    return torch.stack(parts).sum(0)


def trak(
    objective: TrainingObjective,
    theta: Tensor,
    test: TrainingObjective,
    test_idx: Any = None,
    *,
    dimensions: int = 512,
    ridge: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """TRAK of one model (Park et al. 2023): random projections, and a linear model of the margin.

    With ``f = log(p_y / (1 − p_y))`` of the right class, ``φ_i = Pᵀ∇f(z_i)`` and Q = diag(1 − p_i), the
    score is ``φ(z_test)ᵀ (ΦᵀΦ + ridge·I)⁻¹ φ_i (1 − p_i)``. ``∇f = −∇L/(1 − p)``, so only loss gradients
    are needed. The loss must be a negative log-likelihood.

    Args:
        objective: what was minimised, with its training data.
        theta: ``(p,)`` fitted parameters.
        test: the same model and loss on test data.
        test_idx: positions of the test points in ``test``.
        dimensions: columns of the Gaussian projection P ``(p, dimensions)``; p of them are no projection.
        ridge: relative to the mean diagonal of ΦᵀΦ; use some when dimensions exceed n.
        seed: of P.

    Raises:
        DataError: a setting out of range.
    """
    theta = objective.vector(theta)
    checked_number("dimensions", dimensions, least=1, whole=True)
    checked_number("ridge", ridge, least=0.0)
    p, generator = objective.p, torch.Generator().manual_seed(seed)
    if dimensions >= p:
        P = torch.eye(p, dtype=theta.dtype)
    else:
        P = (
            torch.randn(p, dimensions, generator=generator, dtype=torch.float64).to(theta.dtype)
            / dimensions**0.5
        )
    P = P.to(theta.device)
    tiny = torch.finfo(theta.dtype).eps
    left = (1 - (-objective.example_losses(theta)).exp()).clamp(min=tiny)  # 1 − p_i
    features = -objective.directional(theta, P) / left[:, None]
    idx = test.index(test_idx)
    test_left = (1 - (-test.example_losses(theta, idx)).exp()).clamp(min=tiny)
    test_features = -test.directional(theta, P, idx) / test_left[:, None]
    gram = features.T @ features
    gram.diagonal().add_((ridge + tiny * len(gram)) * gram.diagonal().mean())
    kernel = features @ torch.linalg.solve(gram, test_features.T)
    return _weighted(objective, kernel * left[:, None])


def representer_points(
    objective: TrainingObjective, theta: Tensor, test: TrainingObjective, test_idx: Any = None
) -> Tensor:
    """``−w_i r_i[y] x_i·x_test / (λn)``: its part in the test point's output (Yeh et al. 2018).

    At a minimum of a linear model without intercept these parts add up to the output of the class of the
    test point (to ``y·o`` of a binary loss).

    Raises:
        DataError: outputs that are not linear in θ, or λ = 0.
    """
    theta = objective.vector(theta)
    if not objective.linear_outputs or objective.l2 <= 0:
        raise DataError("representer points need a linear objective with l2 > 0; use it on the last layer")
    idx = test.index(test_idx)
    targets = test.targets if idx is None else test.targets[idx]
    classes = torch.zeros_like(targets).long() if objective.n_outputs == 1 else targets.long()
    unit = torch.nn.functional.one_hot(classes, objective.n_outputs).to(theta.dtype)
    inputs = test.vjp(theta, unit, idx)  # e_y ⊗ x_test: (k, p)
    along = None if inputs is None else objective.output_tangents(inputs.T.contiguous())
    if along is None:
        raise DataError(
            f"{type(objective).__name__} does not give out its inputs, which representer points need"
        )
    kernel = (along * unit[None]).sum(2)  # x_i · x_test: (n, k)
    slopes = objective.loss.output_gradient(objective.outputs(theta), objective.targets)[:, classes]
    sign = (
        targets.to(theta.dtype) if objective.n_outputs == 1 else torch.ones_like(classes, dtype=theta.dtype)
    )
    return _weighted(objective, -slopes * kernel * sign / (objective.l2 * objective.n))


def _test_gradients(test: TrainingObjective, theta: Tensor, test_idx: Any) -> Tensor:
    return test.example_gradients(theta, test.index(test_idx)).T.contiguous()


def _weighted(objective: TrainingObjective, scores: Tensor) -> Tensor:
    return scores if objective.weights is None else scores * objective.weights[:, None]
