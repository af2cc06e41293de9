"""dattri 0.3: CG, explicit and LiSSA attributors.

Best-known settings: one batch for the whole training set, because the attributors solve again for every
training batch; CG runs a fixed number of iterations, so it is given what the tolerance needs.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from experiments.benchmark.harness import Adapter, Problem, Unsupported, Work, serve


def task(problem: Problem) -> Any:
    from dattri.task import AttributionTask

    model = problem.model

    def loss(params: Any, data: Any) -> Tensor:
        inputs, labels = data
        outputs = torch.func.functional_call(model, params, (inputs,))
        return torch.nn.functional.cross_entropy(outputs, labels.long())  # LiSSA samples them as floats

    return AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict())


def attributor(problem: Problem, kind: str, **settings: Any) -> Any:
    from dattri.algorithm import influence_function

    return getattr(influence_function, kind)(task=task(problem), device="cpu", **settings)


def whole(X: Tensor, y: Tensor) -> DataLoader:
    """All of a set as one batch, collated once by stacking views."""
    collate = torch.utils.data.default_collate
    if len(X) > 1:
        collate = _same(X, y)
    return DataLoader(TensorDataset(X, y), batch_size=len(X), shuffle=False, collate_fn=collate)


def _same(X: Tensor, y: Tensor) -> Any:
    return lambda _: (X, y)


def attribute(problem: Problem, kind: str, **settings: Any) -> Work:
    few = int(problem.options.get("measured", len(problem.test_X)))

    def work() -> tuple[Tensor, dict[str, Any]]:
        mine = attributor(problem, kind, **settings)
        train = whole(problem.X, problem.y)
        mine.cache(train)
        with torch.no_grad():
            result = mine.attribute(train, whole(problem.test_X[:few], problem.test_y[:few]))
        return result, {"done_of": [few, len(problem.test_X)]}

    return work


def shift(problem: Problem) -> float:
    """λ + δ."""
    return problem.l2 + problem.damping


def cg(problem: Problem) -> Work:
    if problem.gauss_newton:
        raise Unsupported(
            "its attributors take products with the Hessian alone, never with a Gauss-Newton matrix"
        )
    iterations = int(problem.options["iterations"])
    return attribute(problem, "IFAttributorCG", max_iter=iterations, regularization=shift(problem))


def explicit(problem: Problem) -> Work:
    return attribute(problem, "IFAttributorExplicit", regularization=shift(problem))


def self_influence(problem: Problem) -> Work:
    def work() -> Tensor:
        mine = attributor(problem, "IFAttributorExplicit", regularization=shift(problem))
        train = whole(problem.X, problem.y)
        mine.cache(train)
        with torch.no_grad():
            return mine.self_attribute(train)

    return work


def lissa(problem: Problem) -> Work:
    """dattri's damping multiplies the iterate, so λ enters as λ / scale."""
    options = problem.options

    def work() -> tuple[Tensor, dict[str, Any]]:
        mine = attributor(
            problem, "IFAttributorLiSSA", batch_size=1, num_repeat=options["measured_repeats"],
            recursion_depth=options["measured_depth"], scaling=options["scale"],
            damping=shift(problem) / options["scale"],
        )  # fmt: skip
        train = whole(problem.X, problem.y)
        mine.cache(train)
        with torch.no_grad():
            result = mine.attribute(train, whole(problem.test_X, problem.test_y))
        done = options["measured_depth"] * options["measured_repeats"]
        return result, {"done_of": [done, options["depth"] * options["repeats"]]}

    return work


def load() -> dict[str, Adapter]:
    importlib.import_module("dattri.algorithm.influence_function")
    return {"cg": cg, "explicit": explicit, "self_influence": self_influence, "lissa": lissa}


if __name__ == "__main__":
    serve(load)
