"""pyDVL 0.10: block CG, direct and LiSSA influence.

Best-known settings: the training set as a few large batches handed out as views (a plain DataLoader collates
every example anew at every Hessian product, some eight times slower), per-example gradients in batches.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from experiments.benchmark.harness import Adapter, Problem, Work, serve


def loader(problem: Problem) -> DataLoader:
    """Batches that are views of X and y, of equal size because pyDVL averages them with equal weights."""
    parts = int(problem.options.get("batches", 1))
    while problem.n % parts:
        parts -= 1
    size = problem.n // parts
    slices = [slice(start, start + size) for start in range(0, problem.n, size)]
    return DataLoader(TensorDataset(problem.X, problem.y), batch_size=None, sampler=slices)


def scores(problem: Problem, model: Any, factors: Tensor) -> Tensor:
    """Influence of every training point, from the factors of the test points: (n, k)."""
    rows = int(problem.options.get("rows", 1000))
    parts = [
        model.influences_from_factors(factors, x, y).T
        for x, y in zip(problem.X.split(rows), problem.y.split(rows), strict=True)
    ]
    return torch.cat(parts)


def regularization(problem: Problem) -> Any:
    """λ + δ."""
    return problem.l2 + problem.damping


def influence(problem: Problem, model: Any) -> Work:
    def work() -> Tensor:
        fitted = model().fit(loader(problem))
        factors = fitted.influence_factors(problem.test_X, problem.test_y)
        return scores(problem, fitted, factors)

    return work


def test_norm(problem: Problem) -> float:
    """Norm of the first test point's gradient: pyDVL's tolerances are absolute and squared."""
    loss = torch.nn.functional.cross_entropy(problem.model(problem.test_X[:1]), problem.test_y[:1])
    parts = torch.autograd.grad(loss, [w for w in problem.model.parameters() if w.requires_grad])
    return float(torch.cat([part.reshape(-1) for part in parts]).norm())


def cg(problem: Problem) -> Work:
    from pydvl.influence.torch import CgInfluence, SecondOrderMode

    tolerance, block = float(problem.options["tolerance"]), bool(problem.options.get("block", False))
    mode = SecondOrderMode.GAUSS_NEWTON if problem.gauss_newton else SecondOrderMode.HESSIAN
    return influence(
        problem,
        lambda: CgInfluence(
            problem.model, torch.nn.functional.cross_entropy, regularization=regularization(problem),
            rtol=tolerance**0.5 if block else 1e-12, atol=(tolerance * test_norm(problem)) ** 0.5,
            maxiter=int(problem.options.get("iterations", 500)), solve_simultaneously=block,
            second_order_mode=mode,
        ),
    )  # fmt: skip


def direct(problem: Problem) -> Work:
    from pydvl.influence.torch import DirectInfluence

    return influence(
        problem,
        lambda: DirectInfluence(
            problem.model, torch.nn.functional.cross_entropy, regularization=regularization(problem)
        ),
    )


def self_influence(problem: Problem) -> Work:
    """Dense Hessian, then solves in batches; each batch's own products only."""
    from pydvl.influence.torch import DirectInfluence

    rows = int(problem.options.get("rows", 1000))

    def work() -> Tensor:
        model = DirectInfluence(
            problem.model, torch.nn.functional.cross_entropy, regularization=regularization(problem)
        ).fit(loader(problem))
        parts = [
            model.influences(x, y).diagonal()
            for x, y in zip(problem.X.split(rows), problem.y.split(rows), strict=True)
        ]
        return torch.cat(parts)

    return work


def lissa(problem: Problem) -> Work:
    from pydvl.influence.torch import LissaInfluence

    options = problem.options
    data = DataLoader(TensorDataset(problem.X, problem.y), batch_size=1)

    def work() -> tuple[Tensor, dict[str, Any]]:
        total: Any = 0
        model = LissaInfluence(
            problem.model, torch.nn.functional.cross_entropy, regularization=regularization(problem),
            maxiter=options["measured_depth"], scale=options["scale"], rtol=0.0, warn_on_max_iteration=False,
        ).fit(data)  # fmt: skip
        for _ in range(options["measured_repeats"]):
            total = total + model.influence_factors(problem.test_X, problem.test_y)
        answer = scores(problem, model, total / options["measured_repeats"])
        done = options["measured_depth"] * options["measured_repeats"]
        return answer, {"done_of": [done, options["depth"] * options["repeats"]]}

    return work


def load() -> dict[str, Adapter]:
    importlib.import_module("pydvl.influence.torch")
    return {"cg": cg, "direct": direct, "self_influence": self_influence, "lissa": lissa}


if __name__ == "__main__":
    serve(load)
