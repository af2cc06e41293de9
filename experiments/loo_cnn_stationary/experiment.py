"""Fig. 2, right, as the theory has it: where does influence hold for a network that is at a stationary point?

Influence is the derivative of the trained net's test loss in the weight of one example. So it supposes a net
whose gradient vanishes. Here the network of loo_cnn is brought to a gradient norm of 1e-8 in float64. For
each of the most influential examples, it is brought there again with 1 %, 3 %, ... 100 % of the example's
weight taken away. At 1 % the first-order prediction must agree. On the way to 100 % one sees where first
order, one Newton step and the truth part. No damping is needed, so its effect can be shown alone.

Weights are taken away as in the paper's section 2.1: 1/n sum_j L_j - epsilon L_i + (lambda/2) |theta|^2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from experiments.loo_cnn import protocol
from experiments.loo_cnn.experiment import accuracy
from experiments.loo_cnn_stationary import predictions
from experiments.loo_cnn_stationary.schema import LooCnnStationary
from experiments.records.agreement import agreement, largest
from experiments.records.errors import ConfigError
from experiments.records.record import Record
from experiments.suite.context import Context, checked_test_index
from influence.objectives.module import Objective
from influence.retraining.stationary import Curvature, WeightedNet, curvature_at, reweighted, stationary
from influence.scores import predicted_change, test_gradients, up_loss

UNUSED = (  # settings of loo_cnn's retraining by Adam and of its checks
    "retraining_steps",
    "retraining_rate",
    "retraining_dtype",
    "seeds",
    "side_by_side",
    "checkpoints",
    "eigenvalues",
    "autograd_tolerance",
    "autograd_examples",
)


def run(cfg: DictConfig, context: Context) -> Record:
    """Train, go on to the stationary point, predict, take weight away, compare."""
    settings, data = cfg.experiment, context.data()
    check(cfg)
    problem = protocol.Problem.of(cfg, data)
    train = problem.objective(cfg.seed)
    test = train.on(*problem.test)
    if not 1 <= settings.removed < train.n:
        raise ConfigError(f"experiment.removed={settings.removed}: give 1 to {train.n - 1}.")
    if settings.test_index is not None:
        checked_test_index(settings.test_index, test.n)
    net = protocol.weighted(cfg, train)

    states, _ = protocol.train_all(context, problem, [cfg.seed])
    begun = states[cfg.seed].thetas[:, 0].clone()
    given = context.recorded("theta")  # a spot check begins where the record ended
    origin = begun if given is None else torch.as_tensor(given)
    with (
        context.timer("to the stationary point"),
        context.progress(settings.shares, "to the stationary point") as bar,
    ):
        found = stationary(
            net, origin, settings.tolerance, passes=settings.passes, shares=settings.shares,
            exact_below=settings.exact_below, floor=settings.floor, journal=context.journal("stationary"),
            progress=lambda passes, norm: bar(min(settings.shares, passes // settings.passes)),
        )  # fmt: skip
    theta = found.theta
    with context.timer("the Hessian and its spectrum"):
        curvature = curvature_at(net, theta)
    losses = test.example_losses(theta)
    test_index = int(losses.argmax()) if settings.test_index is None else settings.test_index
    gradient = test_gradients(test, theta, [test_index])[:, 0]

    by_damping = {delta: all_scores(train, theta, curvature, gradient, delta) for delta in settings.dampings}
    removed = largest(by_damping[0.0], settings.removed)
    first = by_damping[0.0][removed]
    names = ("actual_at", "gradient_norm_at", "moved_at", "passes_at")
    indefinite = 0

    def less(points: np.ndarray) -> dict[str, np.ndarray]:
        nonlocal indefinite
        found = take_away(context, cfg, net, test, theta, curvature, points, test_index)
        with context.timer("one Newton step each"):
            steps, newton, indefinite = predictions.newton(
                net, test, theta, curvature, points, settings.fractions, test_index
            )
        return dict(zip(names, found, strict=True)) | {"step_at": steps, "newton_at": newton}

    taken = context.retrained(removed, less, axis=-1, share=len(settings.fractions))
    if (record := context.earlier()) is not None:
        indefinite = record.metrics["indefinite_without_a_point"]  # over all points
    actual, norms = taken["actual_at"], taken["gradient_norm_at"]
    arrays = {
        "index": removed,
        "original_index": data.train.index[problem.chosen][removed],
        "label": problem.train[1].cpu().numpy()[removed],
        "predicted": first,
        "actual": actual[-1],
        "fractions": np.array(settings.fractions),
        **taken,
        "first_order_at": np.array(settings.fractions)[:, None] * first,
        "scores": by_damping[0.0],
        "eigenvalues": curvature.eigenvalues.numpy(),
        "history": np.array(found.history, dtype=np.float64).reshape(-1, 3),
        "states": protocol.states_array(states, settings.dtype),
        "theta": theta.numpy(),
    }
    reached = norms <= settings.tolerance
    metrics = {
        "n_train": train.n,
        "n_test": test.n,
        "n_parameters": train.p,
        "l2": train.l2,
        "kernel": net.path,
        "test_index": test_index,
        "test_label": data.classes[int(data.test.y[test_index])],
        "test_loss": float(losses[test_index]),
        "train_accuracy": accuracy(train, theta),
        "test_accuracy": accuracy(test, theta),
        "after_adam": {
            "objective": float(train.value(begun)),
            "gradient_norm": float(train.gradient(begun).norm()),
            "test_loss": float(test.example_losses(begun)[test_index]),
            "moved_since": float((theta - begun).norm()),
        },
        "objective": found.value,
        "gradient_norm": found.gradient_norm,
        "passes": found.passes,
        "hessian": spectrum(curvature),
        "removed": len(removed),
        "indefinite_without_a_point": indefinite,
        "fractions": {
            f"{fraction:g}": at_fraction(arrays, row, reached[row])
            for row, fraction in enumerate(settings.fractions)
        },
        "dampings": {
            f"{delta:g}": {
                name: agreement(settings.fractions[row] * scores[removed], actual[row])
                for name, row in (("smallest_fraction", 0), ("whole_point", -1))
            }
            for delta, scores in by_damping.items()
        },
        "converged": int(reached[-1].sum()),
    }
    metrics |= agreement(first, actual[-1])
    return Record(
        experiment="loo_cnn_stationary",
        metrics=metrics,
        arrays=arrays,
        table=["index", "original_index", "label", "predicted", "actual"],
        captions={
            "loo_cnn_stationary": f"A {train.p}-parameter tanh network at a gradient norm of "
            f"{found.gradient_norm:.1g} ({data.name}, n = {train.n}). First and second: predicted against "
            f"actual change of the loss of test point {test_index} if a little, and if all, of the weight of "
            f"one of {len(removed)} training points is taken away. Third: the error of three predictions as "
            "more of the weight is taken away. Fourth: the Hessian's eigenvalues."
        },
        deviations=deviations(settings) if data.name == "mnist" else [],
        certificates=[
            {
                "fit": "all training points",
                "method": "L-BFGS from Gauss-Newton and exact Hessians",
                "passes": found.passes,
                "gradient_norm": found.gradient_norm,
                "value": found.value,
            }
        ]
        + [
            {
                "fit": f"with {fraction:g} of the weight of one point each taken away",
                "method": "L-BFGS from the exact Hessian",
                "count": len(removed),
                "converged": int(reached[row].sum()),
                "largest_gradient_norm": float(norms[row].max()),
                "largest_passes": int(taken["passes_at"][row].max()),
            }
            for row, fraction in enumerate(settings.fractions)
        ],
    )


def check(cfg: DictConfig) -> None:
    """Refuses what cannot be used, before any training."""
    settings = cfg.experiment
    fractions, dampings = list(settings.fractions), list(settings.dampings)
    if not fractions or fractions != sorted(set(fractions)) or not fractions[0] > 0 or fractions[-1] != 1:
        raise ConfigError(f"experiment.fractions={fractions}: give rising numbers above 0, 1 the last.")
    if 0.0 not in dampings or min(dampings) < 0:
        raise ConfigError(f"experiment.dampings={dampings}: give 0 and no negative number.")
    for name in UNUSED:
        if settings[name] != getattr(LooCnnStationary, name):
            raise ConfigError(f"experiment.{name}={settings[name]}: loo_cnn_stationary does not use it.")
    if cfg.solver is not None:
        raise ConfigError("solver: loo_cnn_stationary solves with the whole Hessian; give no solver.")
    if cfg.device != "cpu":
        raise ConfigError(f"device={cfg.device}: this experiment runs on the cpu.")
    if settings.dtype not in ("float32", "float64"):
        raise ConfigError(f"experiment.dtype={settings.dtype}: choose float32 or float64.")


def all_scores(
    train: Objective, theta: torch.Tensor, curvature: Curvature, gradient: torch.Tensor, damping: float
) -> np.ndarray:
    """Predicted change of the test loss without each training point, ``(n,)``, with H + damping I."""
    s_test = curvature.solve(gradient[:, None], damping)
    return predicted_change(up_loss(train, theta, s_test, "loss")[:, 0], train.n, "loss").numpy()


def take_away(
    context: Context,
    cfg: DictConfig,
    net: WeightedNet,
    test: Objective,
    theta: torch.Tensor,
    curvature: Curvature,
    removed: np.ndarray,
    test_index: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Nets with a rising part of one point's weight taken away, each from where the one before ended.

    Returns changes of the test loss, gradient norms, distances from θ̂, and passes: ``(fractions, removed)``.
    """
    settings, one = cfg.experiment, torch.tensor([test_index])
    journal = context.journal("taken-away", key={"removed": removed.tolist()})
    before = float(test.example_losses(theta, one)[0])
    points = torch.as_tensor(removed)
    blocks = list(points.split(settings.block))
    out: list[list[np.ndarray]] = [[], [], [], []]
    total = len(settings.fractions) * len(blocks)
    with (
        context.timer(f"{len(removed)} points at {len(settings.fractions)} fractions"),
        context.progress(total, "blocks of points with less weight") as advance,
    ):
        starts = {number: theta[:, None].repeat(1, len(block)) for number, block in enumerate(blocks)}
        previous = 0.0
        for row, fraction in enumerate(settings.fractions):
            parts = []
            for number, block in enumerate(blocks):
                part = journal.get(f"{fraction:g}-{number}")
                if part is None:
                    # On along the line from θ̂: exact to first order in the weight taken away.
                    ahead = fraction / previous if previous else 1.0
                    found = reweighted(
                        net, theta[:, None] + ahead * (starts[number] - theta[:, None]),
                        fraction / net.n, block, lambda B: curvature.positive(B, settings.floor),
                        settings.tolerance, settings.limit,
                    )  # fmt: skip
                    part = {
                        "thetas": found.thetas.numpy(),
                        "norms": found.gradient_norms.numpy(),
                        "passes": found.passes.numpy(),
                    }
                    journal.put(f"{fraction:g}-{number}", part)
                starts[number] = torch.as_tensor(part["thetas"])
                parts.append(part)
                advance(row * len(blocks) + number + 1)
            thetas = torch.cat([starts[number] for number in range(len(blocks))], dim=1)
            out[0].append(test.example_losses_many(thetas, one)[0].numpy() - before)
            out[1].append(np.concatenate([part["norms"] for part in parts]))
            out[2].append((thetas - theta[:, None]).norm(dim=0).numpy())
            out[3].append(np.concatenate([part["passes"] for part in parts]))
            previous = fraction
    actual, norms, moved, passes = (np.stack(rows) for rows in out)
    return actual, norms, moved, passes


def spectrum(curvature: Curvature) -> dict[str, Any]:
    """The Hessian's eigenvalues in a few numbers, the flat direction left out."""
    values = curvature.eigenvalues
    return {
        "smallest": float(values[0]),
        "largest": float(values[-1]),
        "negative": int((values < 0).sum()),
        "computed": len(values),
    } | {f"below_{level:g}": int((values < level).sum()) for level in (1e-4, 1e-3, 1e-2, 1e-1)}


def at_fraction(arrays: dict[str, np.ndarray], row: int, reached: np.ndarray) -> dict[str, Any]:
    """How three predictions meet the truth at one fraction, over the points that reached the tolerance."""
    actual = arrays["actual_at"][row][reached]
    found: dict[str, Any] = {
        "points": int(reached.sum()),
        "median_distance": float(np.median(arrays["moved_at"][row])),
        "largest_distance": float(arrays["moved_at"][row].max()),
        "median_passes": float(np.median(arrays["passes_at"][row])),
    }
    for name in ("first_order", "step", "newton"):
        predicted = arrays[f"{name}_at"][row][reached]
        found[name] = agreement(predicted, actual) | {
            "median_relative_error": float(np.median(np.abs(predicted - actual) / np.abs(actual)))
        }
    return found


def deviations(settings: DictConfig) -> list[str]:
    """What differs from the paper's protocol, in sentences."""
    found = [
        "The net is brought to a stationary point, which the paper's is not, and no damping is used unless "
        "stated. A point is removed by taking its weight from the mean loss, whose divisor stays n."
    ]
    if settings.n_train != 5500:
        found.append(f"{settings.n_train} training images instead of 5,500 (a limit on time).")
    return found
