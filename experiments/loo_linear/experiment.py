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

from experiments.errors import ConfigError
from experiments.loo_linear.ground_truth import recorded, retrained
from experiments.models import build
from experiments.records.agreement import agreement, largest
from experiments.records.record import Record
from experiments.suite.context import Run
from experiments.suite.flops import ProductCount
from influence.curvature.operators import Hessian
from influence.scores import predicted_change, self_influence, test_gradients, up_loss
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

    problem = {
        "n_train": train.n,
        "n_test": test.n,
        "n_parameters": train.p,
        "l2": train.l2,
        "test_index": position,
    }
    one = torch.tensor([position])
    before = float(test.example_losses(theta, one)[0])
    truth = recorded(settings.retrained, run, problem, before) if settings.retrained else None

    # With a recorded ground truth the run's own solver is asked alone: the others stand in that record.
    compare = {} if truth else settings.compare
    others = {name: each for name, each in compare.items() if name != cfg.solver.name}
    solvers = {cfg.solver.name: cfg.solver, **others}  # the run's own solver keeps its own damping
    scores: dict[str, dict[str, np.ndarray]] = {}
    solved: dict[str, Any] = {}
    state: Any = None  # the prepared exact solver of the undamped Hessian
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

    if state is None and truth is None:
        with run.timer("factor of the undamped Hessian") as timing:
            state = Exact().prepare(hessian)
        timing.flops = exact_flops(train, state)

    reference = scores[cfg.solver.name]["objective"]
    if truth is None:
        with run.timer(f"{settings.removed} retrainings") as timing:
            truth, steps = retrained(
                run, settings, train, test, theta, largest(reference, settings.removed), position, state
            )
        timing.flops = steps * (product + 2.0 * len(state.factor) ** 2)
    removed, actual = truth.index, truth.actual
    # Like the other solvers, self-influences stand in the earlier record: they need the factor.
    count = 0 if settings.retrained else settings.self_influence
    own = self_influences(run, train, theta, hessian, state, count)

    exact = scores["exact"]["objective"] if "exact" in scores else truth.exact
    compared = {name: comparison(scores[name], exact, removed, actual) | solved[name] for name in solvers}
    predicted_label = int(test.outputs(theta, one).argmax()) if train.n_outputs > 1 else None
    return Record(
        experiment="loo_linear",
        metrics={
            **problem,
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
            **({"self_influence": own} if own else {}),
        },
        arrays={
            "index": removed,
            "original_index": data.train.index[removed],
            "label": data.train.y[removed],
            "actual": actual,
            "gradient_norm": truth.gradient_norms,
            "iterations": truth.iterations,
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
            truth.certificate,
        ],
    )


def predictions(train: Any, theta: torch.Tensor, s_test: torch.Tensor) -> dict[str, np.ndarray]:
    """Predicted change (n,) of the test loss under each convention; one pass over the training set serves
    both.
    """
    plain = up_loss(train, theta, s_test, "loss")[:, 0]
    shift = float((train.l2 * train.l2_mask * theta) @ s_test[:, 0])
    upweighted = {"loss": plain, "objective": plain - shift}
    return {name: predicted_change(upweighted[name], train.n, name).numpy() for name in CONVENTIONS}


def comparison(
    mine: dict[str, np.ndarray], exact: np.ndarray | None, removed: np.ndarray, actual: np.ndarray
) -> dict[str, Any]:
    """Agreement with retraining under each convention, and of all n scores with the exact ones (n,) where
    there are any.
    """
    found: dict[str, Any] = {name: agreement(mine[name][removed], actual) for name in CONVENTIONS}
    if exact is not None:
        found["scores_relative_error"] = float(
            np.linalg.norm(mine["objective"] - exact) / np.linalg.norm(exact)
        )
    return found


def self_influences(
    run: Run, train: Any, theta: torch.Tensor, hessian: Any, state: Any, count: int
) -> dict[str, Any]:
    """Exact self-influence of the first ``count`` training points, from the factor; none at 0."""
    if not count:
        return {}
    if not 1 <= count <= train.n:
        raise ConfigError(f"experiment.self_influence={count}: give 0 to {train.n}.")
    with run.timer(f"self-influence of {count} points"):
        found = self_influence(train, theta, hessian, idx=torch.arange(count), state=state).numpy()
    return {
        "count": count,
        "mean": float(found.mean()),
        "median": float(np.median(found)),
        "largest": float(found.max()),
        "largest_index": int(found.argmax()),
    }


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
