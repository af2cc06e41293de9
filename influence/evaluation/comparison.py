"""Is influence better than a dot product for this model? One table against retraining."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from influence.checks import checked_number
from influence.curvature.operators import Hessian, Operator
from influence.errors import DataError
from influence.evaluation.agreement import Agreement, agreement
from influence.evaluation.baselines import gradient_cosine, gradient_dot, representer_points, trak
from influence.objectives._base import TrainingObjective
from influence.removal import TrainingGradient
from influence.retraining.leave_one_out import leave_one_out
from influence.scores import removal_change, test_gradients
from influence.solvers import Exact, Solver

_Gradients = test_gradients


def compare_methods(
    objective: TrainingObjective,
    theta: Tensor,
    test: TrainingObjective,
    test_index: int,
    *,
    points: int = 40,
    further: Mapping[str, Tensor] | None = None,
    operator: Operator | None = None,
    solver: Solver | None = None,
    removal: TrainingGradient | str = TrainingGradient.OBJECTIVE,
    seed: int = 0,
    **settings: Any,
) -> dict[str, Agreement]:
    """Agreement of each method with leave-one-out retraining on the same points, half top and half random.

    The points are the union of each method's own top ones, so that none is judged on the choice of another
    alone, filled up with random ones.

    Args:
        objective: what was minimised, with its training data.
        theta: ``(p,)`` fitted parameters.
        test: the same model and loss on test data.
        test_index: position of the test point in ``test``.
        points: how many models are retrained, at least 6.
        further: more scores ``(n,)`` by name, positive = helpful, such as TracIn's.
        operator: the (damped) curvature; the Hessian by default.
        solver: ``Exact()`` by default.
        settings: of :func:`~influence.retraining.leave_one_out.leave_one_out`.
        removal: the convention of removal, ``"objective"`` or ``"loss"``.
        seed: of the generator; equal seeds give equal answers.

    Raises:
        DataError: too many points, or scores of the wrong shape.
    """
    theta = objective.vector(theta)
    checked_number("points", points, least=6, below=objective.n + 1, whole=True)
    operator = Hessian(objective, theta) if operator is None else operator
    s = (solver or Exact()).solve(operator, _Gradients(test, theta, [test_index])).value[:, 0]
    scores = {"influence": removal_change(objective, theta, s, removal=removal)}
    scores["influence, leverage"] = removal_change(
        objective, theta, s, removal=removal, correction="leverage", operator=operator, solver=solver
    )
    simple = {"gradient dot": gradient_dot, "gradient cosine": gradient_cosine, "TRAK": trak}
    if objective.linear_outputs and objective.l2 > 0:
        simple["representer points"] = representer_points
    scores |= {name: method(objective, theta, test, [test_index])[:, 0] for name, method in simple.items()}
    for name, given in (further or {}).items():
        if given.shape != (objective.n,):
            raise DataError(f"scores {name!r} must have shape ({objective.n},), got {tuple(given.shape)}")
        scores[name] = given
    idx = _chosen(list(scores.values()), points, seed)
    models = leave_one_out(objective, theta, idx, removal=removal, **settings)
    one = test.index([test_index])
    actual = test.example_losses_many(models.thetas.to(theta.device), one)[0] - test.example_losses(
        theta, one
    )
    good = models.converged.cpu()
    return {
        name: agreement(found[idx].cpu()[good].numpy(), actual.cpu()[good].numpy())
        for name, found in scores.items()
    }


def _chosen(scores: list[Tensor], points: int, seed: int) -> Tensor:
    """Half of the points from the top of each method in turn, the others at random: ``(points,)``."""
    orders = [found.abs().argsort(descending=True, stable=True).tolist() for found in scores]
    chosen: dict[int, None] = {}
    for place in range(len(orders[0])):
        for order in orders:
            if len(chosen) < points // 2:
                chosen.setdefault(order[place])
        if len(chosen) >= points // 2:
            break
    for i in torch.randperm(len(orders[0]), generator=torch.Generator().manual_seed(seed)).tolist():
        if len(chosen) < points:
            chosen.setdefault(i)
    return torch.tensor(list(chosen), device=scores[0].device)


def table(compared: Mapping[str, Agreement]) -> str:
    """The comparison as text, a row per method. A baseline has no slope: its scale is arbitrary."""
    head = f"{'method':<22} {'Spearman':<24} {'Pearson':<24} slope"
    rows = [
        f"{name:<22} {found.spearman!s:<24} {found.pearson!s:<24} "
        + (str(found.slope) if name.startswith("influence") else "—")
        for name, found in compared.items()
    ]
    return "\n".join([head, *rows])
