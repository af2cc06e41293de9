"""Beyond first order: the test loss at the net that influence predicts, and after one Newton step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from influence.curvature.operators import Hessian
from influence.objectives.module import Objective
from influence.retraining.stationary import Curvature, WeightedNet


def example_hessian(net: WeightedNet, theta: torch.Tensor, i: int) -> torch.Tensor:
    """``∇²L(z_i, θ)``: ``(p, p)``, without the L2 term."""
    if net.net is not None:
        return net.net.hessian(theta, torch.tensor([i]))
    o: Any = net.objective
    return Hessian(o, theta, torch.tensor([i])).dense() - torch.diag(o.l2 * o.l2_mask)


def newton(
    net: WeightedNet,
    test: Objective,
    theta: torch.Tensor,
    curvature: Curvature,
    removed: np.ndarray,
    fractions: list[float],
    test_index: int,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Changes of the test loss ``(fractions, removed)`` at two predicted nets, and a count.

    The first net is ``θ̂ + ε H⁻¹∇L_i``, which is first order in the parameters. The second is one Newton step
    of the objective without ε of the example, with its own Hessian: ``θ̂ + ε (H − ε ∇²L_i)⁻¹∇L_i``. The count
    is that of points without which this Hessian is indefinite at the largest fraction.
    """
    one, u = torch.tensor([test_index]), net.flat()
    before = float(test.example_losses(theta, one)[0])
    shifted = curvature.matrix + torch.outer(u, u)  # ∇L_i has no part along u, so the solution has none
    first, second = [], []
    indefinite = 0
    for i in removed.tolist():
        gradient, own = net.example_gradient(theta, i)[:, None], example_hessian(net, theta, i)
        plain = curvature.solve(gradient)[:, 0]
        columns = []
        for fraction in fractions:
            epsilon = fraction / net.n
            factor, info = torch.linalg.cholesky_ex(shifted - epsilon * own)
            if int(info):
                indefinite += fraction == fractions[-1]
                solved = torch.linalg.solve(shifted - epsilon * own, gradient)
            else:
                solved = torch.cholesky_solve(gradient, factor)
            columns.append(theta + epsilon * solved[:, 0])
        first.append(torch.stack([theta + fraction / net.n * plain for fraction in fractions], dim=1))
        second.append(torch.stack(columns, dim=1))
    changes = [
        np.stack([test.example_losses_many(thetas, one)[0].numpy() - before for thetas in nets], axis=1)
        for nets in (first, second)
    ]
    return changes[0], changes[1], indefinite
