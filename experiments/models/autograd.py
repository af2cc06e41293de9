"""Plain autograd Hessian products, the yardstick of the network experiments, and small eigenvalues."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from influence.curvature.operators import Operator
from influence.objectives.module import Objective


class AutogradHessian(Operator):
    """The Hessian of an objective by double backward through its module, as one writes it by hand: two
    backward passes a product, batch after batch, nothing kept.
    """

    def __init__(self, objective: Objective, theta: Tensor) -> None:
        self.objective = objective
        self.module = objective.module(theta)
        self.weights = [w for w in self.module.parameters() if w.requires_grad]
        self.shape = (objective.p, objective.p)
        self.dtype, self.device = objective.dtype, objective.device

    def _apply(self, V: Tensor) -> Tensor:
        return torch.stack([self._product(v) for v in V.T], dim=1)

    def _product(self, v: Tensor) -> Tensor:
        o = self.objective
        parts = [part.view_as(w) for part, w in zip(v.split([w.numel() for w in self.weights]), self.weights,
                                                    strict=True)]  # fmt: skip
        total = o.l2 * o.l2_mask * v
        for x, y in zip(o.inputs.split(o.batch_size), o.targets.split(o.batch_size), strict=True):
            loss = o.loss.values(self.module(x), y).sum()
            gradients = torch.autograd.grad(loss, self.weights, create_graph=True)
            pairing = sum((g * part).sum() for g, part in zip(gradients, parts, strict=True))
            second = torch.autograd.grad(pairing, self.weights, materialize_grads=True)
            total = total + torch.cat([g.reshape(-1) for g in second]) / o.n
        return total


def eigenvalues_below(operator: Operator, count: int, seed: int, products: int = 250) -> np.ndarray:
    """The ``count`` smallest eigenvalues, rising; those that converged within about ``products`` products.

    Dense where the operator is small; else by Lanczos, from a start fixed by ``seed``.
    """
    p = operator.shape[0]
    count = min(count, p)
    if p <= 600:
        return torch.linalg.eigvalsh(operator.dense())[:count].cpu().numpy()

    def product(v: np.ndarray) -> np.ndarray:
        given = torch.as_tensor(v.reshape(-1), dtype=operator.dtype, device=operator.device)
        return (operator @ given).cpu().numpy()

    start = np.random.default_rng(seed).standard_normal(p)
    width = max(4 * count, 60)
    restarts = max(1, (products - width) // (width - count))
    try:
        values = eigsh(
            LinearOperator((p, p), matvec=product, dtype=np.float64),
            k=count, which="SA", v0=start, ncv=width, maxiter=restarts, tol=1e-2, return_eigenvectors=False,
        )  # fmt: skip
    except ArpackNoConvergence as partial:
        values = partial.eigenvalues
        if not len(values):
            values = np.array([np.nan])
    return np.sort(values)
