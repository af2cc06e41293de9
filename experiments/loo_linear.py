"""Fig. 2, left and middle: does the predicted change of one test loss come true when the point is left out?

A linear model is fitted to convergence. For one test point, s_test is solved for and all n training points
are scored; those of largest |predicted change| are then really left out, one at a time, and the model is
fitted again to convergence. The retrained objective is (1/(n-1)) sum_{j != i} L(z_j) + (lambda/2)||theta||^2,
so the first-order change of theta is H^-1 (grad L(z_i) + lambda theta)/(n-1): the training gradient carries
the L2 term ("objective"). The paper's formula carries none ("loss"); its agreement is recorded too. Every
further solver is compared on the same points.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from experiments import build
from experiments.errors import ConfigError
from experiments.flops import ProductCount
from experiments.record import Record
from experiments.run import Run
from experiments.statistics import agreement, largest
from influence.curvature import Hessian
from influence.retraining import leave_one_out
from influence.scores import predicted_change, test_gradients, up_loss
from influence.solvers import Exact, LiSSA
from influence.training import fit

CONVENTIONS = ("objective", "loss")


def run(cfg: DictConfig, run: Run) -> Record:
    """Fit, s_test, scores, retraining, comparison."""
    settings = cfg.experiment
    data = run.data()
    train = build.linear_objective(data.train, cfg.model, len(data.classes))
    test = train.on(data.test.X, build.targets_of(data.test.y, train.loss.binary))
    position = build.test_position(settings.test_index, test.n)
    if not 1 <= settings.removed <= train.n:
        raise ConfigError(
            f"experiment.removed={settings.removed}: give 1 to {train.n}, the training points there are."
        )
    nonzeros = (
        int(np.count_nonzero(data.train.X)) if isinstance(data.train.X, np.ndarray) else data.train.X.nnz
    )
    product = 4.0 * nonzeros * train.n_outputs  # flops of one pass X, X^T with one column an output

    with (
        run.timer("fit") as timing,
        run.progress(100, "fit") as advance,
        ProductCount(train, nonzeros) as counted,
    ):
        fitted = fit(train, tolerance=settings.training_tolerance, progress=advance)
    timing.flops = counted.flops
    theta = fitted.theta
    hessian = Hessian(train, theta)
    gradient = test_gradients(test, theta, [position])

    compared_with = {name: each for name, each in settings.compare.items() if name != cfg.solver.name}
    solvers = {cfg.solver.name: cfg.solver, **compared_with}  # the run's own solver keeps its own damping
    scores: dict[str, dict[str, np.ndarray]] = {}
    solved: dict[str, Any] = {}
    state = None
    for name, options in solvers.items():
        operator, solver = build.damped(hessian, options.damping), build.solver(options)
        with run.timer(f"{name}: prepare") as timing:
            prepared = solver.prepare(operator)
        if isinstance(solver, Exact):
            timing.flops = exact_flops(train, prepared)
            state = prepared if options.damping == 0 else state
        with run.timer(f"{name}: s_test") as timing, ProductCount(train, nonzeros) as counted:
            solution = solver.apply(prepared, gradient)
        timing.flops = (counted.flops or 0.0) + solve_flops(train, solver, prepared, solution) or None
        run.status(name, solution)
        with run.timer(f"{name}: {train.n} scores", flops=product / 2):
            scores[name] = predictions(train, theta, solution.value)
        solved[name] = solution.summary()

    if state is None:
        with run.timer("factor for the retraining") as timing:
            state = Exact().prepare(hessian)
        timing.flops = exact_flops(train, state)

    reference = scores[cfg.solver.name]["objective"]
    removed = largest(reference, settings.removed)
    journal = run.journal("retraining", key={"removed": removed.tolist(), "block": settings.block})
    with (
        run.timer(f"{len(removed)} retrainings") as timing,
        run.progress(len(removed), "retraining") as advance,
    ):
        retrained = leave_one_out(
            train,
            theta,
            torch.as_tensor(removed),
            preconditioner=state.inverse,
            tolerance=settings.retraining_tolerance,
            block=settings.block,
            journal=journal,
            progress=advance,
        )
    timing.flops = float(retrained.iterations.sum()) * (product + 2.0 * len(state.factor) ** 2)

    one = torch.tensor([position])
    before = float(test.example_losses(theta, one)[0])
    actual = (test.example_losses_many(retrained.thetas, one)[0] - before).numpy()
    compared = {name: comparison(scores[name], scores, removed, actual) | solved[name] for name in solvers}
    predicted_label = int(test.outputs(theta, one).argmax()) if train.n_outputs > 1 else None
    return Record(
        experiment="loo_linear",
        metrics={
            "n_train": train.n,
            "n_test": test.n,
            "n_parameters": train.p,
            "l2": train.l2,
            "test_index": position,
            "test_label": data.classes[int(data.test.y[position])],
            "test_predicted": data.classes[predicted_label] if predicted_label is not None else None,
            "test_loss": before,
            "train_accuracy": accuracy(train, theta),
            "test_accuracy": accuracy(test, theta),
            "removed": len(removed),
            "largest": {
                "index": int(removed[0]),
                "predicted": float(reference[removed[0]]),
                "actual": float(actual[0]),
            },
            "actual_range": [float(actual.min()), float(actual.max())],
            **compared[cfg.solver.name]["objective"],
            "solver": cfg.solver.name,
            "solvers": compared,
        },
        arrays={
            "index": removed,
            "original_index": data.train.index[removed],
            "label": data.train.y[removed],
            "actual": actual,
            "gradient_norm": retrained.gradient_norms.numpy(),
            "iterations": retrained.iterations.numpy(),
            **{f"predicted_{name}": scores[name]["objective"][removed] for name in solvers},
            **{f"scores_{name}": scores[name]["objective"] for name in solvers},
        },
        table=["index", "original_index", "label", "actual", *(f"predicted_{name}" for name in solvers)],
        captions={
            "loo_linear": f"Predicted against actual change of the loss of test point {position} when each "
            f"of {len(removed)} training points is left out ({data.name}, n = {train.n})."
        },
        certificates=[
            {"fit": "all training points", **fitted.certificate.to_dict()},
            {
                "fit": "without one point each",
                "count": len(removed),
                "tolerance": settings.retraining_tolerance,
                "largest_gradient_norm": float(retrained.gradient_norms.max()),
                "iterations": [int(retrained.iterations.min()), int(retrained.iterations.max())],
            },
        ],
    )


def predictions(train: Any, theta: torch.Tensor, s_test: torch.Tensor) -> dict[str, np.ndarray]:
    """Predicted change (n,) of the test loss under each convention; one pass over the training set serves
    both.
    """
    plain = up_loss(train, theta, s_test)[:, 0]
    shift = float((train.l2 * train.l2_mask * theta) @ s_test[:, 0])
    upweighted = {"loss": plain, "objective": plain - shift}
    return {name: predicted_change(upweighted[name], train.n, name).numpy() for name in CONVENTIONS}


def comparison(
    mine: dict[str, np.ndarray],
    scores: dict[str, dict[str, np.ndarray]],
    removed: np.ndarray,
    actual: np.ndarray,
) -> dict[str, Any]:
    """Agreement with retraining under each convention, and of all n scores with the exact ones where there
    are any.
    """
    found: dict[str, Any] = {name: agreement(mine[name][removed], actual) for name in CONVENTIONS}
    if "exact" in scores:
        exact = scores["exact"]["objective"]
        found["scores_relative_error"] = float(
            np.linalg.norm(mine["objective"] - exact) / np.linalg.norm(exact)  # against the dense solve
        )
    return found


def accuracy(objective: Any, theta: torch.Tensor) -> float:
    """Share of examples whose label has the largest output."""
    outputs = objective.outputs(theta)
    if objective.n_outputs == 1:
        return float((outputs[:, 0].sign() == objective.targets).double().mean())
    return float((outputs.argmax(1) == objective.targets).double().mean())


def solve_flops(train: Any, solver: Any, prepared: Any, solution: Any) -> float:
    """Floating-point work of one solve apart from products with X: two triangular systems, or the steps of
    LiSSA (two products with a sampled batch, and the update of the iterate).
    """
    if isinstance(solver, Exact):
        return 2.0 * len(prepared.factor) ** 2
    if isinstance(solver, LiSSA):
        return solution.iterations * solver.repeats * (4.0 * solver.batch + 3.0) * train.p
    return 0.0


def exact_flops(train: Any, state: Any) -> float:
    """Floating-point work of forming the factored matrix from dense rows (its lower half), and of its
    Cholesky.
    """
    q = len(state.factor)
    return float(train.n) * q * q / max(1, train.n_outputs) + q**3 / 3
