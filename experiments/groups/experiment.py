"""Groups: do influences of single points add up, and does one Newton step without the group mend the size?

A linear model is fitted to convergence. Groups of 0.1 to 30 % of the training points are left out: random
points, random points of the test point's class, the most helpful and the most harmful ones. Three predictions
are made of the change of one test loss: the sum of first-order influences, and one and two Newton steps
without the group. A step costs one solve. Then the model is fitted again to a certified gradient norm. With
``children`` the mismatch of section 5.3 is planted first. What do the children of the training set do
together, and how much more is that than what random groups of their size do? (Koh et al. 2019, arXiv
1905.13289.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from experiments.data import Split
from experiments.groups.choose import KINDS, Group, groups_of, mistake
from experiments.groups.patients import of_children, planted
from experiments.models import build
from experiments.records.agreement import agreement
from experiments.records.errors import ConfigError
from experiments.records.record import Record
from experiments.suite.context import Context, checked_test_index
from influence.curvature.operators import Hessian
from influence.groups import group_change
from influence.retraining.groups import leave_groups_out
from influence.scores import removal_change, test_gradients
from influence.solvers import CG, Exact
from influence.training import fit

WORTH = 4  # points of a spot check that one group is worth: refit and three Newton steps
METHODS = ("sum", "newton", "newton_twice")
UP_TO = 0.2  # groups up to this share are judged together; larger ones stand beside them


def run(cfg: DictConfig, context: Context) -> Record:
    """Fit, scores, groups, three answers, comparison."""
    settings, data = cfg.experiment, context.data()
    check(settings)
    split: Split = planted(data) if settings.children else data.train
    train = build.linear_objective(split, cfg.model, len(data.classes))
    test = train.on(data.test.X, build.targets_of(data.test.y, train.loss.binary))
    with context.timer("fit"):
        fitted = fit(train, tolerance=settings.training_tolerance)
    theta = fitted.theta
    asked = mistake(test, theta, data, settings.children) if settings.test_index is None else None
    test_index = checked_test_index(settings.test_index if asked is None else asked, test.n)

    hessian = Hessian(train, theta)
    with context.timer("factor"):
        state = Exact().prepare(hessian)
    solution = Exact().apply(state, test_gradients(test, theta, [test_index]))
    context.status("s_test", solution)
    scores = removal_change(train, theta, solution.value[:, 0]).numpy()
    label = int(data.test.y[test_index])
    groups = groups_of(settings, scores, split.y, label, cfg.seed)
    changes, certificate = answers(context, settings, train, test, theta, test_index, scores, groups, state)

    children: dict[str, Any] = {}
    if settings.children:
        with context.timer("children"):
            children = of_children(settings, cfg.seed, data, split, train, test, theta, test_index, scores)
    kinds = np.array([group.kind for group in groups])
    shares = np.array([group.share for group in groups])
    return Record(
        experiment="groups",
        metrics={
            "n_train": train.n,
            "n_parameters": train.p,
            "l2": train.l2,
            "test_index": test_index,
            "groups": len(groups),
            "up_to_20": judged(changes, shares <= UP_TO),
            "all": judged(changes, shares > 0),
            "by_kind": {
                kind: judged(changes, rows)
                for kind in KINDS
                if (rows := (kinds == kind) & (shares <= UP_TO)).any()
            },
            "largest_refit": float(np.abs(changes["refit"]).max()),
            **({"children": children} if children else {}),
        },
        arrays={"kind": kinds, "share": shares, "size": np.array([len(g.index) for g in groups]), **changes},
        table=["kind", "share", "size", *changes],
        captions={
            "groups": f"Predicted against actual change of the loss of test point {test_index} when a group "
            f"of training points is left out: the sum of influences, and one Newton step without the group "
            f"({len(groups)} groups of {min(shares):.1%} to {max(shares):.0%}; {data.name}, n = {train.n})."
        },
        certificates=[{"fit": "all training points", **fitted.certificate.to_dict()}, certificate],
    )


def check(settings: Any) -> None:
    """Refuses sizes that do not rise, and random groups without children."""
    shares = list(settings.shares)
    if not shares or shares != sorted(set(shares)):
        raise ConfigError(f"experiment.shares={shares}: give at least one, rising, such as [0.01,0.1].")
    if shares[0] > UP_TO:
        raise ConfigError(f"experiment.shares={shares}: give at least one of at most {UP_TO}.")
    if settings.children != (settings.random_groups is not None):
        raise ConfigError(
            "experiment.random_groups is for experiment.children=true, which needs it: give both or none."
        )


def answers(
    context: Context,
    settings: Any,
    train: Any,
    test: Any,
    theta: torch.Tensor,
    test_index: int,
    scores: np.ndarray,
    groups: list[Group],
    state: Any,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The change of the test loss (groups,) by sum, Newton steps and refit, and the refits' certificate."""
    index = [torch.as_tensor(group.index) for group in groups]
    added = np.array([scores[group.index].sum() for group in groups])
    solver = CG(tolerance=1e-8, preconditioner=state.inverse)
    one = torch.tensor([test_index])

    def stepped(chosen: list[torch.Tensor]) -> dict[str, np.ndarray]:
        found = {"newton": np.empty(len(chosen)), "newton_twice": np.empty(len(chosen))}
        with (
            context.timer(f"one and two Newton steps without {len(chosen)} groups"),
            context.progress(len(chosen), "Newton steps") as advance,
        ):
            for place, group in enumerate(chosen):
                for steps, name in enumerate(found, start=1):
                    change = group_change(train, theta, group, test, [test_index], steps=steps, solver=solver)
                    found[name][place] = float(change[0])
                advance(place + 1)
        return found

    def without(rows: np.ndarray) -> dict[str, np.ndarray]:
        chosen = [index[row] for row in rows]
        steps = stepped(chosen)
        journal = context.journal("refits", key=[group.tolist() for group in chosen])
        with context.timer(f"{len(chosen)} refits"), context.progress(len(chosen), "refits") as advance:
            models = leave_groups_out(
                train, theta, chosen, settings.retraining_tolerance, preconditioner=state.inverse, block=8,
                journal=journal, progress=advance, raise_on_failure=True,
            )  # fmt: skip
        change = test.example_losses_many(models.thetas, one)[0] - test.example_losses(theta, one)[0]
        return {**steps, "refit": change.numpy(), "norms": models.gradient_norms.numpy()}

    found = context.retrained(np.arange(len(groups)), without, share=WORTH, what="groups left out")
    norms = found.pop("norms")
    certificate = {
        "fit": "without one group each",
        "count": len(groups),
        "tolerance": settings.retraining_tolerance,
        "largest_gradient_norm": float(norms.max()),
    }
    return {"sum": added, **found}, certificate


def judged(changes: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, dict[str, float]]:
    """Agreement of sum and Newton steps with the refit; ``relative_error``: mean error over mean change."""
    refit = changes["refit"][rows]
    found = {name: agreement(changes[name][rows], refit) for name in METHODS}
    for each in found.values():
        size = float(np.abs(refit).mean())
        each["relative_error"] = each["mean_error"] / size if size > 0 else float("inf")
    return found
