"""Small random problems and their dense float64 oracles, built from autograd alone."""

from __future__ import annotations

import scipy.sparse as sp
import torch
from torch import Tensor

from influence import LinearObjective, get_loss

LOSSES = {
    "cross_entropy": {},
    "logistic": {},
    "smooth_hinge": {"temperature": 0.5},
}


def linear_data(loss: str, n: int = 40, d: int = 7, c: int = 4, seed: int = 0, density: float = 0.5):
    """``(X, y)`` with some zeros, every class present and one column that is zero everywhere."""
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, generator=g, dtype=torch.float64)
    X = X * (torch.rand(n, d, generator=g) < density)
    X[:, -1] = 0
    if loss == "cross_entropy":
        y = torch.randint(c, (n,), generator=g)
        y[:c] = torch.arange(c)
    else:
        y = torch.randint(2, (n,), generator=g) * 2 - 1
        y[0], y[1] = -1, 1
    return X, y


def linear_problem(
    loss: str, l2: float = 0.05, dtype=torch.float64, sparse: bool = False, **data
) -> LinearObjective:
    X, y = linear_data(loss, **data)
    c = data.get("c", 4) if loss == "cross_entropy" else None
    objective = LinearObjective(X, y, get_loss(loss, **LOSSES[loss]), l2, n_outputs=c, dtype=dtype)
    if sparse:
        objective = LinearObjective(
            force_sparse(X, dtype), y, get_loss(loss, **LOSSES[loss]), l2, n_outputs=c, dtype=dtype
        )
    return objective


def force_sparse(X: Tensor, dtype=torch.float64):
    """A SparseMatrix whatever the density, so that both storages are tested on the same numbers."""
    from influence.objectives.data_matrix import SparseMatrix

    x = sp.csr_matrix(X.numpy())
    values = torch.from_numpy(x.data).to(dtype)
    return SparseMatrix(torch.from_numpy(x.indptr), torch.from_numpy(x.indices), values, x.shape)


def oracle_value(objective: LinearObjective, X: Tensor, theta: Tensor) -> Tensor:
    """The objective written out with torch's own losses, for autograd."""
    outputs = X @ theta.reshape(objective.n_outputs, -1).T
    return oracle_losses(objective, outputs).mean() + objective.l2 / 2 * theta @ theta


def oracle_losses(objective: LinearObjective, outputs: Tensor) -> Tensor:
    y, name = objective.targets, objective.loss.name
    if name == "cross_entropy":
        return torch.nn.functional.cross_entropy(outputs, y, reduction="none")
    margin = y.to(outputs.dtype) * outputs[:, 0]
    if name == "logistic":
        return torch.nn.functional.softplus(-margin)
    t = objective.loss.temperature
    return t * torch.nn.functional.softplus((1 - margin) / t)


def random_theta(objective, seed: int = 1, k: int | None = None) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    shape = (objective.p,) if k is None else (objective.p, k)
    return torch.randn(*shape, generator=g, dtype=torch.float64).to(objective.dtype) * 0.5


def spd(p: int, condition: float = 100.0, seed: int = 0) -> Tensor:
    """A random symmetric positive definite matrix of the given condition number and largest eigenvalue 1."""
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(p, p, generator=g, dtype=torch.float64))
    return (q * torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), p, dtype=torch.float64)) @ q.T
