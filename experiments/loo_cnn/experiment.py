"""Fig. 2, right: does retraining a convolutional network show the predicted change of one test loss?

The net is trained by Adam to theta~, which is no exact minimum. So the quadratic model is damped: s_test
solves (H + damping I) s = grad L(z_test). Then the training points of largest |predicted change| are left out
one at a time, and training goes on from theta~. One run goes on with all data. Its change is the drift, which
no removal caused. The drift is one constant: it moves slopes and signs of the raw differences, but no
correlation. All of this is done from several seeds. Their spread says what one figure is worth.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from experiments.loo_cnn import protocol, stability
from experiments.models import build
from experiments.models.autograd import AutogradHessian, eigenvalues_below
from experiments.records.agreement import agreement, largest
from experiments.records.errors import ConfigError
from experiments.records.record import Record
from experiments.suite.context import Context, checked_test_index
from influence.curvature.networks import gauss_newton_preconditioner
from influence.curvature.operators import Dense, Hessian, Operator
from influence.objectives import distributed
from influence.objectives.compiled import compiled_net
from influence.objectives.module import Objective
from influence.scores import predicted_change, test_gradients, up_loss
from influence.solvers import CG, Solution, Status

SHARE = 0.95  # of the output Hessians' trace in the preconditioner
PRECONDITIONERS = ("gauss_newton", "none")
AGREED = ("pearson", "spearman", "slope")


@dataclass(frozen=True)
class Predicted:
    """Of one seed: where training ended, and what influence says there."""

    theta: torch.Tensor
    damping: float
    test_gradient: torch.Tensor
    solution: Solution
    scores: np.ndarray
    removed: np.ndarray


def run(cfg: DictConfig, context: Context) -> Record:
    """Per seed: train, s_test, scores, retraining beside a run on all data; then what the seeds agree on."""
    settings, data = cfg.experiment, context.data()
    check(cfg)
    problem = protocol.Problem.of(cfg, data)
    seeds = [cfg.seed + number for number in range(settings.seeds)]
    train = problem.objective(cfg.seed)
    test = train.on(*problem.test)
    if not 1 <= settings.removed < train.n:
        raise ConfigError(f"experiment.removed={settings.removed}: give 1 to {train.n - 1}.")
    if settings.test_index is not None:
        checked_test_index(settings.test_index, test.n)

    states, path = protocol.train_all(context, problem, seeds)
    first = states[cfg.seed].thetas[:, 0].clone()
    losses = test.example_losses(first)
    test_index = int(losses.argmax()) if settings.test_index is None else settings.test_index
    thetas = {seed: states[seed].thetas[:, 0].clone() for seed in seeds}
    few, record = context.sample(len(seeds), "s_test solved again", worth=settings.removed), context.earlier()
    if record is None or few is None:
        found = predict_all(context, problem, thetas, test_index)
    else:
        again = predict_all(context, problem, {seeds[row]: thetas[seeds[row]] for row in few}, test_index)
        found = {
            seed: again.get(seed) or as_recorded(record, problem, thetas[seed], test_index, seed)
            for seed in seeds
        }
    retrained = protocol.retrain_all(
        context, problem, states, {seed: found[seed].removed for seed in seeds}, test_index
    )
    by_seed = {
        str(seed): of_seed(settings, train, test, test_index, found[seed], retrained[seed]) for seed in seeds
    }
    scores, actual = matrices(found, retrained, train.n)
    solved = np.array([found[seed].solution.status == Status.CONVERGED for seed in seeds])
    own = found[cfg.seed]
    metrics = {
        "n_train": train.n,
        "n_test": test.n,
        "n_parameters": train.p,
        "l2": train.l2,
        "damping": own.damping,
        "kernel": path,
        "test_index": test_index,
        "test_label": data.classes[int(data.test.y[test_index])],
        "test_predicted": data.classes[
            int(test.outputs(first, torch.tensor([test_index], device=test.device)).argmax())
        ],
        "removed": len(own.removed),
    }
    metrics |= by_seed[str(cfg.seed)] | {
        "n_seeds": len(seeds),
        "seeds": by_seed,
        "over_seeds": over_seeds(list(by_seed.values())),
        "stability": stability.stability(scores, actual, settings.removed),
    }
    if len(seeds) > 1:
        own_seeds = [by_seed[str(seed)] for seed, done in zip(seeds, solved, strict=True) if done]
        metrics["n_seeds_solved"] = len(own_seeds)
        if own_seeds:
            metrics["over_solved_seeds"] = over_seeds(own_seeds)
    if settings.eigenvalues:
        with context.timer("smallest eigenvalues of the Hessian"):
            metrics["hessian"] = smallest_eigenvalues(cfg, train, own.theta, own.damping)
    if settings.side_by_side:
        metrics["kernel_against_torch"] = protocol.side_by_side(
            context, problem, own.theta, settings.side_by_side
        )
    if settings.autograd_tolerance is not None:
        metrics["autograd"] = against_autograd(context, cfg, train, problem.net(cfg.seed), own)
    return Record(
        experiment="loo_cnn",
        metrics=metrics,
        arrays={
            "index": own.removed,
            "original_index": data.train.index[problem.chosen][own.removed],
            "label": problem.train[1].cpu().numpy()[own.removed],
            "predicted": own.scores[own.removed],
            "actual": retrained[cfg.seed].actual[-1],
            "actual_raw": retrained[cfg.seed].changes[-1, :-1],
            "gradient_norm": retrained[cfg.seed].gradient_norms[:-1],
            "scores": own.scores,
            "states": protocol.states_array(states, settings.dtype),
            "changes": np.stack([retrained[seed].changes for seed in seeds]),
        }
        | seed_arrays(scores, actual, seeds, found, solved),
        table=["index", "original_index", "label", "predicted", "actual", "actual_raw"],
        captions={"loo_cnn": caption(data.name, test_index, train, len(own.removed), len(seeds))},
        deviations=protocol.deviations(settings) if data.name == "mnist" else [],
        certificates=certificates(settings, by_seed, retrained),
    )


def check(cfg: DictConfig) -> None:
    """Refuses settings that nothing could use, before any training."""
    if cfg.solver.name == "cg" and cfg.solver.preconditioner not in PRECONDITIONERS:
        raise ConfigError(
            f"solver.preconditioner={cfg.solver.preconditioner}: for a network choose "
            f"{' or '.join(PRECONDITIONERS)}."
        )
    for name in ("dtype", "retraining_dtype"):
        if cfg.experiment[name] not in ("float32", "float64"):
            raise ConfigError(f"experiment.{name}={cfg.experiment[name]}: choose float32 or float64.")
    build.solver(cfg.solver)


def predict_all(
    context: Context, problem: protocol.Problem, thetas: dict[int, torch.Tensor], test_index: int
) -> dict[int, Predicted]:
    """s_test and all scores at each seed's net, ``workers`` of them at a time.

    Ranks under torchrun compute each one together, so they take one at a time.
    """
    workers = 1 if distributed.size() > 1 else problem.cfg.experiment.workers
    count = itertools.count(1)

    def one(seed: int) -> Predicted:
        found = predict(problem, thetas[seed], test_index)
        advance(next(count))
        return found

    with (
        context.timer(f"s_test and all scores, {len(thetas)} seeds"),
        context.progress(len(thetas), "s_test and all scores") as advance,
        ThreadPoolExecutor(workers) as pool,
    ):
        found = dict(zip(thetas, pool.map(one, thetas), strict=True))
    for row, (seed, own) in enumerate(found.items()):
        name = problem.cfg.solver.name
        context.status(f"{name}, seed {seed}" if row else name, own.solution)
    return found


def as_recorded(
    record: Record, problem: protocol.Problem, theta: torch.Tensor, test_index: int, seed: int
) -> Predicted:
    """What a record says that influence predicted at one seed's net."""
    row = record.arrays["seeds"].tolist().index(seed)
    said = record.metrics["seeds"][str(seed)]["s_test"]
    gradient = test_gradients(problem.objective(problem.cfg.seed).on(*problem.test), theta, [test_index])
    solution = Solution(
        torch.zeros_like(gradient),  # no record keeps it
        Status(said["status"]),
        said["iterations"],
        torch.tensor([said["worst_residual"]], dtype=torch.float64),
        {"preconditioner": said.get("preconditioner")},
    )
    scores, removed = record.arrays["seed_scores"][row], record.arrays["seed_removed"][row]
    return Predicted(theta, record.metrics["damping"], gradient, solution, scores, removed)


def predict(problem: protocol.Problem, theta: torch.Tensor, test_index: int) -> Predicted:
    """s_test and all scores at one net."""
    cfg = problem.cfg
    train = problem.objective(cfg.seed)  # its own: threads must not share what it keeps of a theta
    gradient = test_gradients(train.on(*problem.test), theta, [test_index])
    spread = distributed.shard(train)  # over the ranks, under torchrun
    damped = build.damped(curvature(cfg, train, spread, theta), cfg.solver.damping)
    damping = build.chosen_damping(cfg.solver.damping, damped).get("damping", cfg.solver.damping)
    solution = solver(cfg, train, theta, damping).solve(damped, gradient)
    upweighted = up_loss(spread, theta, solution.value, "objective")[:, 0]
    scores = predicted_change(upweighted, train.n, "objective").cpu().numpy()
    return Predicted(theta, damping, gradient, solution, scores, largest(scores, cfg.experiment.removed))


def curvature(cfg: DictConfig, train: Objective, spread: Any, theta: torch.Tensor) -> Operator:
    """The Hessian: dense from the kernel for ``solver=exact`` where there is one, else by products."""
    net = compiled_net(train)[0] if cfg.experiment.kernel != "torch" else None
    if cfg.solver.name != "exact" or net is None:
        return Hessian(spread, theta)
    return Dense(net.hessian(theta) / train.n + torch.diag(train.l2 * train.l2_mask))


def solver(cfg: DictConfig, train: Objective, theta: torch.Tensor, damping: float) -> Any:
    """The solver of the config; CG with the Gauss-Newton matrix's factor where that is asked for."""
    if cfg.solver.name != "cg":
        return build.solver(cfg.solver)
    choice: Any = cfg.solver.preconditioner
    if choice == "gauss_newton":
        choice = gauss_newton_preconditioner(train, theta, damping, share=SHARE)
    return CG(
        cfg.solver.tolerance,
        cfg.solver.max_iterations,
        choice,
        raise_on_failure=cfg.solver.raise_on_failure,
    )


def of_seed(
    settings: DictConfig,
    train: Objective,
    test: Objective,
    test_index: int,
    found: Predicted,
    retrained: protocol.Retrained,
) -> dict[str, Any]:
    """What one seed's net is, and how its predictions met its retrainings."""
    predicted, theta = found.scores[found.removed], found.theta
    corrected = agreement(predicted, retrained.actual[-1])
    return {
        "test_loss": float(test.example_losses(theta)[test_index]),
        "objective": float(train.value(theta)),
        "gradient_norm": float(train.gradient(theta).norm()),
        "train_accuracy": accuracy(train, theta),
        "test_accuracy": accuracy(test, theta),
        "pearson": corrected["pearson"],
        "drift": float(retrained.drift[-1]),
        "raw": agreement(predicted, retrained.changes[-1, :-1]),
        "drift_corrected": corrected,
        "steps": {
            str(step): agreement(predicted, retrained.actual[row]) | {"drift": float(retrained.drift[row])}
            for row, step in enumerate(protocol.moments(settings))
        },
        "s_test": found.solution.summary(),
    }


def over_seeds(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean, deviation and range over seeds of every coefficient, at the end and at each checkpoint."""
    names = ("test_accuracy", "train_accuracy", "gradient_norm", "test_loss", "drift")
    return (
        {name: stability.spread([seed["drift_corrected"][name] for seed in seeds]) for name in AGREED}
        | {name: stability.spread([seed[name] for seed in seeds]) for name in names}
        | {
            "steps": {
                step: {
                    name: stability.spread([seed["steps"][step][name] for seed in seeds]) for name in AGREED
                }
                for step in seeds[0]["steps"]
            }
        }
    )


def matrices(
    found: dict[int, Predicted], retrained: dict[int, protocol.Retrained], n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and actual changes ``(seeds, n)``; actual is NaN if a seed kept the point."""
    actual = np.full((len(found), n), np.nan)
    for row, seed in enumerate(found):
        actual[row, found[seed].removed] = retrained[seed].actual[-1]
    return np.stack([found[seed].scores for seed in found]), actual


def seed_arrays(
    scores: np.ndarray, actual: np.ndarray, seeds: list[int], found: dict[int, Predicted], solved: np.ndarray
) -> dict[str, np.ndarray]:
    """The arrays over seeds; none for a single one. Means are over seeds whose s_test was solved."""
    if len(seeds) == 1:
        return {}
    removed = np.stack([found[seed].removed for seed in seeds])
    rows = np.arange(len(seeds))[:, None]
    order = stability.ranks(scores)
    means = stability.mean_over_seeds(scores[solved], actual[solved], 2)
    return {
        "seeds": np.array(seeds),
        "seed_solved": solved,
        "seed_scores": scores,
        "seed_removed": removed,
        "seed_predicted": scores[rows, removed],
        "seed_actual": actual[rows, removed],
        "rank_mean": order.mean(0),
        "rank_deviation": order.std(0, ddof=1),
    } | {f"shared_{key}": value for key, value in means.items()}


def smallest_eigenvalues(
    cfg: DictConfig, train: Objective, theta: torch.Tensor, damping: float
) -> dict[str, Any]:
    """The lower end of the undamped Hessian's spectrum: all of it from the kernel, else by Lanczos."""
    net = compiled_net(train)[0] if cfg.experiment.kernel != "torch" else None
    operator: Operator = Hessian(train, theta)
    if net is not None:
        operator = Dense(net.hessian(theta) / train.n + torch.diag(train.l2 * train.l2_mask))
        values = torch.linalg.eigvalsh(operator.matrix).numpy()
    else:
        values = eigenvalues_below(operator, cfg.experiment.eigenvalues, cfg.seed)
    return {
        "smallest": float(values[0]),
        "negative": int((values < 0).sum()),
        "below_minus_damping": int((values < -damping).sum()),
        "computed": len(values),
    }


def against_autograd(
    context: Context, cfg: DictConfig, train: Objective, net: Any, found: Predicted
) -> dict[str, Any]:
    """The same solve by plain autograd Hessian products and by ours, both from nothing to all scores; the
    seconds go to the timings.
    """
    tolerance, count = cfg.experiment.autograd_tolerance, cfg.experiment.autograd_examples
    ours = train if count is None else train.subset(slice(0, count))
    plain = Objective(
        net, cfg.model.loss, ours.inputs, ours.targets, train.l2, l2_parameters="weights", batch_size=100
    )
    values, theta, summaries, products = {}, found.theta, {}, {}
    for name, objective in (("ours", ours), ("plain autograd", plain)):
        with context.timer(f"{name}: s_test to {tolerance:g} and {ours.n} scores"):
            if objective is ours:
                made: Any = gauss_newton_preconditioner(ours, theta, found.damping, share=SHARE)
                base: Any = Hessian(ours, theta)
            else:
                made, base = "none", AutogradHessian(plain, theta)
            products[name] = base @ found.test_gradient
            operator = build.damped(base, found.damping)
            solution = CG(tolerance, preconditioner=made, raise_on_failure=False).solve(
                operator, found.test_gradient
            )
            values[name] = up_loss(objective, theta, solution.value, "loss")[:, 0]
        summaries[name.replace(" ", "_")] = solution.summary()
    apart = {
        name: float((both["ours"] - both["plain autograd"]).norm() / both["ours"].norm())
        for name, both in (("scores", values), ("products", products))
    }
    return summaries | {
        "examples": ours.n,
        "tolerance": tolerance,
        "scores_relative_difference": apart["scores"],
        "products_relative_difference": apart["products"],  # also where a solve has no solution
    }


def certificates(
    settings: DictConfig, by_seed: dict[str, Any], retrained: dict[int, protocol.Retrained]
) -> list[dict[str, Any]]:
    """How each training and each batch of retrainings ended."""
    found: list[dict[str, Any]] = []
    for seed, own in by_seed.items():
        found.append(
            {
                "fit": f"all training points, seed {seed}",
                "method": "adam",
                "steps": settings.steps,
                "gradient_norm": own["gradient_norm"],
                "value": own["objective"],
            }
        )
        found.append(
            {
                "fit": f"without one point each, seed {seed}",
                "method": "adam",
                "count": settings.removed,
                "steps": settings.retraining_steps,
                "largest_gradient_norm": float(retrained[int(seed)].gradient_norms.max()),
            }
        )
    return found


def caption(data: str, test_index: int, train: Objective, removed: int, seeds: int) -> str:
    """The sentence below the figure."""
    text = (
        f"Predicted against actual change of the loss of test point {test_index} when training of a "
        f"{train.p}-parameter tanh network goes on without each of {removed} training points; the drift of "
        f"the same run on all data is subtracted ({data}, n = {train.n})."
    )
    if seeds > 1:
        text += (
            f" Left: the first of {seeds} seeds. Middle: Pearson's coefficient of each seed as retraining "
            "goes on, with the mean; red where the damped Hessian was not positive definite, so that "
            "there is no s_test. Right: points that two or more of the other seeds left out, mean and "
            "standard deviation over those seeds."
        )
    return text


def accuracy(objective: Objective, theta: torch.Tensor) -> float:
    """Share of examples whose label has the largest output."""
    return float((objective.outputs(theta).argmax(1) == objective.targets).double().mean())
