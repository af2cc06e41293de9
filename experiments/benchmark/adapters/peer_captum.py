"""captum 0.9: Arnoldi and naive (dense) influence. Its Hessian is that of the summed loss, hence n·λ."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from experiments.benchmark.harness import Adapter, Problem, Unsupported, Work, serve


def build(problem: Problem, folder: str, kind: str, **settings: Any) -> Any:
    from captum.influence._core import arnoldi_influence_function, influence_function

    module = arnoldi_influence_function if kind.startswith("Arnoldi") else influence_function
    checkpoint = str(Path(folder) / "model.pt")
    torch.save(problem.model.state_dict(), checkpoint)
    batch = int(problem.options.get("batch", 1000))
    data = DataLoader(TensorDataset(problem.X, problem.y), batch_size=batch)
    return getattr(module, kind)(
        problem.model, data, checkpoint, loss_fn=torch.nn.CrossEntropyLoss(reduction="sum"),
        sample_wise_grads_per_batch=True, hessian_reg=problem.n * (problem.l2 + problem.damping), **settings,
    )  # fmt: skip


def influence(problem: Problem, kind: str, itself: bool = False, **settings: Any) -> Work:
    def work() -> Tensor:
        with tempfile.TemporaryDirectory() as folder:
            mine = build(problem, folder, kind, **settings)
            if itself:
                return mine.self_influence() * problem.n
            return mine.influence((problem.test_X, problem.test_y)).T * problem.n

    return work


def arnoldi(problem: Problem, itself: bool = False) -> Work:
    if problem.gauss_newton:
        raise Unsupported("its Arnoldi iteration takes the Hessian alone, never a Gauss-Newton matrix")
    dim, rank = int(problem.options["arnoldi_dim"]), int(problem.options["projection_dim"])
    settings = {"arnoldi_dim": dim, "projection_dim": rank, "arnoldi_tol": 1e-8, "hessian_inverse_tol": 1e-8}
    return influence(problem, "ArnoldiInfluenceFunction", itself, **settings)


def arnoldi_self(problem: Problem) -> Work:
    return arnoldi(problem, itself=True)


def naive(problem: Problem) -> Work:
    every = len(problem.theta)  # the default keeps 50 eigenvectors
    return influence(problem, "NaiveInfluenceFunction", hessian_inverse_tol=1e-12, projection_dim=every)


def load() -> dict[str, Adapter]:
    importlib.import_module("captum.influence")
    return {"arnoldi": arnoldi, "arnoldi_self": arnoldi_self, "naive": naive}


if __name__ == "__main__":
    serve(load)
