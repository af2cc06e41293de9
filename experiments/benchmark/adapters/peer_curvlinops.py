"""curvlinops 3.0: its Gauss–Newton operator and the CG that its inverse operator calls.

It is a library of operators and computes no influence. So its s_test is measured, with scores by one
forward-mode derivative of torch, which is what its documentation would have a user write.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from experiments.benchmark.harness import Adapter, Problem, Work, serve


def cg(problem: Problem) -> Work:
    from curvlinops import GGNLinearOperator
    from linear_operator.utils.linear_cg import linear_cg

    model, loss = problem.model, nn.CrossEntropyLoss()
    parameters = {name: w for name, w in model.named_parameters() if w.requires_grad}
    rows, tolerance = int(problem.options.get("rows", 1024)), float(problem.options["tolerance"])
    data = list(zip(problem.X.split(rows), problem.y.split(rows), strict=True))
    shift = problem.l2 + problem.damping

    def work() -> tuple[Tensor, dict[str, Any]]:
        products = 0
        operator = GGNLinearOperator(
            model, loss, list(parameters.values()), data, check_deterministic=False, num_data=problem.n
        )

        def product(V: Tensor) -> Tensor:
            nonlocal products
            products += 1
            return operator @ V + shift * V

        value = loss(model(problem.test_X), problem.test_y)
        parts = torch.autograd.grad(value, list(parameters.values()))
        b = torch.cat([part.reshape(-1) for part in parts])[:, None]
        iterations = int(problem.options.get("iterations", 500))
        s = linear_cg(product, b, tolerance=tolerance, max_iter=iterations, max_tridiag_iter=0).detach()
        vectors = [
            piece.reshape(w.shape)
            for piece, w in zip(split(s[:, 0], parameters), parameters.values(), strict=True)
        ]
        tangent = dict(zip(parameters, vectors, strict=True))
        scores = []
        for x, y in data:

            def losses(changed: dict[str, Tensor], x: Tensor = x, y: Tensor = y) -> Tensor:
                outputs = functional_call(model, changed, (x,))
                return nn.functional.cross_entropy(outputs, y, reduction="none")

            scores.append(jvp(losses, (parameters,), (tangent,))[1].detach())
        return torch.cat(scores)[:, None], {"iterations": products}

    return work


def split(vector: Tensor, parameters: dict[str, nn.Parameter]) -> tuple[Tensor, ...]:
    """A vector over all parameters, in a piece for each."""
    return vector.split([w.numel() for w in parameters.values()])


def load() -> dict[str, Adapter]:
    importlib.import_module("curvlinops")
    return {"cg": cg}


if __name__ == "__main__":
    serve(load)
