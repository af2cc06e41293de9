"""Fig. 2, left and middle: does the predicted change of one test loss come true when the point is left out?

A linear model is fitted to convergence. For one test point, s_test is solved for and all n training points
are scored. Those of largest |predicted change| are then really left out, one at a time, and the model is
fitted again to convergence. The retrained objective is (1/(n-1)) sum_{j != i} L(z_j) + (lambda/2)||theta||^2.
So the first-order change of theta is H^-1 (grad L(z_i) + lambda theta)/(n-1): the training gradient carries
the L2 term ("objective"). The paper's formula carries none ("loss"). Its agreement is recorded too. Every
further solver is compared on the same points.
"""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig

from experiments.loo_linear.accounting import Work
from experiments.loo_linear.ground_truth import GroundTruth, recorded, retrained
from experiments.loo_linear.predictions import Predictions, accuracy, comparison, predictions, self_influences
from experiments.models import build
from experiments.records.agreement import largest
from experiments.records.errors import ConfigError
from experiments.records.record import Record
from experiments.suite.context import Context, Dataset, checked_test_index
from influence.curvature.operators import Hessian
from influence.scores import test_gradients
from influence.training import Fit


def run(cfg: DictConfig, context: Context) -> Record:
    """Fit, s_test, scores, retraining, comparison."""
    settings, data = cfg.experiment, context.data()
    train = build.linear_objective(data.train, cfg.model, len(data.classes))
    test = train.on(data.test.X, build.targets_of(data.test.y, train.loss.binary))
    test_index = checked_test_index(settings.test_index, test.n)
    if not 1 <= settings.removed <= train.n:
        raise ConfigError(
            f"experiment.removed={settings.removed}: give 1 to {train.n}, the training points there are."
        )
    work = Work(context, train, data.train.X)

    fitted = work.fit(settings.training_tolerance)
    theta = fitted.theta
    hessian = Hessian(train, theta)
    gradient = test_gradients(test, theta, [test_index])

    problem = {
        "n_train": train.n,
        "n_test": test.n,
        "n_parameters": train.p,
        "l2": train.l2,
        "test_index": test_index,
    }
    test_loss = float(test.example_losses(theta, torch.tensor([test_index]))[0])
    truth = recorded(settings.retrained, context, problem, test_loss) if settings.retrained else None

    # With a recorded ground truth the run's own solver is asked alone: the others stand in that record.
    compare = {} if truth else settings.compare
    others = {name: each for name, each in compare.items() if name != cfg.solver.name}
    solvers = {cfg.solver.name: cfg.solver, **others}  # the run's own solver keeps its own damping
    found = predictions(solvers, work, theta, hessian, gradient)

    reference = found.scores[cfg.solver.name]["objective"]
    if truth is None:
        factor = found.exact if found.exact is not None else work.factor(hessian)
        removed = largest(reference, settings.removed)
        with work.retraining(settings.removed, factor) as steps:
            truth, taken = retrained(context, settings, train, test, theta, removed, test_index, factor)
            steps.append(taken)
    else:
        factor = found.exact
    # Like the other solvers, self-influences stand in the earlier record: they need the factor.
    count = 0 if settings.retrained else settings.self_influence
    own = self_influences(context, train, theta, hessian, factor, count)
    return record_of(cfg, data, train, test, theta, fitted, problem, test_loss, found, truth, own)


def record_of(
    cfg: DictConfig,
    data: Dataset,
    train: Any,
    test: Any,
    theta: torch.Tensor,
    fitted: Fit,
    problem: dict[str, Any],
    test_loss: float,
    found: Predictions,
    truth: GroundTruth,
    own: dict[str, Any],
) -> Record:
    """Every solver against retraining and against the exact scores."""
    removed, actual, test_index = truth.index, truth.actual, problem["test_index"]
    scores, reference = found.scores, found.scores[cfg.solver.name]["objective"]
    exact = scores["exact"]["objective"] if "exact" in scores else truth.exact
    compared = {
        name: comparison(scores[name], exact, removed, actual) | found.solves[name] for name in scores
    }
    outputs = test.outputs(theta, torch.tensor([test_index]))
    predicted_label = int(outputs.argmax()) if train.n_outputs > 1 else None
    return Record(
        experiment="loo_linear",
        metrics={
            **problem,
            "test_label": data.classes[int(data.test.y[test_index])],
            "test_predicted": data.classes[predicted_label] if predicted_label is not None else None,
            "test_loss": test_loss,
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
            **{f"predicted_{name}": scores[name]["objective"][removed] for name in scores},
            **{f"scores_{name}": scores[name]["objective"] for name in scores},
        },
        table=["index", "original_index", "label", "actual", *(f"predicted_{name}" for name in scores)],
        captions={
            "loo_linear": f"Predicted against actual change of the loss of test point {test_index} when each "
            f"of {len(removed)} training points is left out ({data.name}, n = {train.n})."
        },
        certificates=[
            {"fit": "all training points", **fitted.certificate.to_dict()},
            truth.certificate,
        ],
    )
