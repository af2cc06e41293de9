"""Fig. 2, right: what does influence approximate for a network that is not at a minimum?

"The training without this point" has several meanings for a network. Training can go on without the point
(warm, as in the paper's section 4.2). It can begin anew (cold). Or the point's loss is taken away and the
net stays near in parameters and outputs (the proximal Bregman objective of Bae et al., 2022). For a convex
model at its minimum all three are one. Here they are computed for the same points of the same net, beside the
predictions by the damped Hessian and by the damped Gauss-Newton matrix.

The points are the most influential ones and as many drawn at random. The net is also trained with batches in
other orders, on all data: a change that is smaller than what these do to the test loss says nothing.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from experiments.loo_cnn import protocol
from experiments.loo_cnn.experiment import accuracy
from experiments.loo_cnn_truths.schema import LooCnnTruths
from experiments.records.agreement import agreement, largest
from experiments.records.errors import ConfigError
from experiments.records.record import Record
from experiments.suite.context import Context, checked_test_index
from influence.curvature.networks import gauss_newton_matrix
from influence.objectives.module import Objective
from influence.retraining.networks import AdamState, adam, piecewise, start
from influence.retraining.proximal import proximal_responses
from influence.retraining.stationary import WeightedNet, curvature_at
from influence.scores import predicted_change, test_gradients, up_loss

UNUSED = ("seeds", "side_by_side", "checkpoints", "eigenvalues", "autograd_tolerance", "autograd_examples")
TRUTHS = ("warm", "cold", "proximal")
WORTH = 10  # points of a spot check that one of these is worth: one of its three trainings is from nothing
MATRICES = ("hessian", "gauss_newton")


@dataclass(frozen=True)
class Nets:
    """The trained net and what its retrainings share."""

    cfg: DictConfig
    context: Context
    problem: protocol.Problem
    train: Objective
    test: Objective
    state: AdamState
    test_index: int

    @property
    def theta(self) -> torch.Tensor:
        """Where training ended, ``(p,)``."""
        return self.state.thetas[:, 0].clone()

    def losses(self, thetas: torch.Tensor) -> np.ndarray:
        """Loss of the test point at each of ``thetas (p, k)``: ``(k,)``."""
        one = torch.tensor([self.test_index])
        return self.test.example_losses_many(thetas.to(torch.float64), one)[0].numpy()

    def anew(self, points: torch.Tensor, order: int) -> torch.Tensor:
        """Training from the initialisation without each of ``points (k,)`` (−1: none): ``(p, k)``."""
        settings, seed = self.cfg.experiment, self.cfg.seed
        objective = self.problem.objective(seed, getattr(torch, settings.dtype))
        gradients, _ = protocol.gradients_of(objective, settings.kernel)
        rate = piecewise([tuple(pair) for pair in settings.rates])
        begun = start(objective.initial()).repeat(len(points))
        return adam(
            objective, begun, settings.steps, rate, settings.batch, order,
            left_out=points, gradients=gradients,
        ).thetas.to(torch.float64)  # fmt: skip


def run(cfg: DictConfig, context: Context) -> Record:
    """Train, predict by two matrices, retrain in three ways, compare."""
    settings, data = cfg.experiment, context.data()
    check(cfg)
    problem = protocol.Problem.of(cfg, data)
    train = problem.objective(cfg.seed)
    test = train.on(*problem.test)
    if settings.removed + settings.random >= train.n:
        raise ConfigError(
            f"experiment.removed + experiment.random = {settings.removed + settings.random}: give fewer than "
            f"the {train.n} training points."
        )
    if settings.test_index is not None:
        checked_test_index(settings.test_index, test.n)
    net = protocol.weighted(cfg, train)

    states, path = protocol.train_all(context, problem, [cfg.seed])
    theta = states[cfg.seed].thetas[:, 0].clone()
    at_all = test.example_losses(theta)
    test_index = int(at_all.argmax()) if settings.test_index is None else settings.test_index
    nets = Nets(cfg, context, problem, train, test, states[cfg.seed], test_index)
    scores, smallest = predictions(context, train, test, net, theta, test_index, settings.damping)
    index = chosen(scores["hessian"], settings.removed, settings.random, cfg.seed)
    found = context.retrained(index, lambda points: retrained(nets, points), share=WORTH)
    numbers, record = (
        context.sample(settings.orders, "training anew", worth=settings.steps),
        context.earlier(),
    )
    with context.timer(f"{settings.orders} trainings with other batches"):
        moved = orders(nets, np.arange(settings.orders) if numbers is None else numbers)
    if record is not None and numbers is not None:
        own, moved = moved, np.array(record.arrays["other_orders"])
        moved[numbers] = own

    arrays = {
        "index": index,
        "original_index": data.train.index[problem.chosen][index],
        "label": problem.train[1].numpy()[index],
        "drawn": np.arange(len(index)) >= settings.removed,
        **{f"predicted_{name}": scores[name][index] for name in MATRICES},
        **{f"taken_away_{name}": scores[f"{name}_loss"][index] for name in MATRICES},
        **found,
        "other_orders": moved,
        "scores": scores["hessian"],
        "states": protocol.states_array(states, settings.dtype),
    }
    metrics: dict[str, Any] = {
        "n_train": train.n,
        "n_test": test.n,
        "n_parameters": train.p,
        "l2": train.l2,
        "damping": settings.damping,
        "kernel": path,
        "test_index": test_index,
        "test_label": data.classes[int(data.test.y[test_index])],
        "test_loss": float(at_all[test_index]),
        "objective": float(train.value(theta)),
        "gradient_norm": float(train.gradient(theta).norm()),
        "train_accuracy": accuracy(train, theta),
        "test_accuracy": accuracy(test, theta),
        "removed": settings.removed,
        "random": settings.random,
        "smallest_eigenvalues": smallest,
        "truths": {name: compared(arrays, name) for name in TRUTHS},
        "proximal_over_cold": 0.0,
        "chance": chance(arrays),
        "trained_again": float(np.abs(arrays["cold_again"]).max()),
        "between_truths": {
            f"{one}_{other}": agreement(arrays[one], arrays[other])["spearman"]
            for one, other in (("warm", "cold"), ("warm", "proximal"), ("cold", "proximal"))
        },
        "converged": int((arrays["proximal_gradient_norm"] <= settings.tolerance).sum()),
    }
    metrics["proximal_over_cold"] = (
        metrics["truths"]["proximal"]["all"]["gauss_newton"]["pearson"]
        - metrics["truths"]["cold"]["all"]["gauss_newton"]["pearson"]
    )
    return Record(
        experiment="loo_cnn_truths",
        metrics=metrics,
        arrays=arrays,
        table=["index", "original_index", "label", "drawn", "predicted_gauss_newton", *TRUTHS],
        captions={
            "loo_cnn_truths": f"Predicted change of the loss of test point {test_index} (Gauss-Newton "
            f"matrix, damping {settings.damping:g}) against three kinds of retraining without a point: "
            f"training goes on, training begins anew, and the minimum of the proximal Bregman objective. "
            f"{settings.removed} most influential points and {settings.random} drawn at random; a "
            f"{train.p}-parameter tanh network ({data.name}, n = {train.n}). Grey: the standard deviation "
            f"of the test loss over {settings.orders + 1} orders of the batches."
        },
        deviations=deviations(settings) if data.name == "mnist" else [],
        certificates=[
            {
                "fit": "all training points",
                "method": "adam",
                "steps": settings.steps,
                "gradient_norm": metrics["gradient_norm"],
                "value": metrics["objective"],
            },
            {
                "fit": "proximal Bregman objective without one point each",
                "method": "L-BFGS from the Gauss-Newton matrix",
                "count": len(index),
                "converged": metrics["converged"],
                "largest_gradient_norm": float(arrays["proximal_gradient_norm"].max()),
            },
        ],
    )


def check(cfg: DictConfig) -> None:
    """Refuses what cannot be used, before any training."""
    settings = cfg.experiment
    for name in UNUSED:
        if settings[name] != getattr(LooCnnTruths, name):
            raise ConfigError(f"experiment.{name}={settings[name]}: loo_cnn_truths does not use it.")
    if cfg.solver is not None:
        raise ConfigError("solver: loo_cnn_truths solves with whole matrices; give no solver.")
    if cfg.device != "cpu":
        raise ConfigError(f"device={cfg.device}: this experiment runs on the cpu.")
    for name in ("dtype", "retraining_dtype"):
        if settings[name] not in ("float32", "float64"):
            raise ConfigError(f"experiment.{name}={settings[name]}: choose float32 or float64.")


def predictions(
    context: Context, train: Objective, test: Objective, net: WeightedNet, theta: torch.Tensor,
    test_index: int, damping: float,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:  # fmt: skip
    """Predicted changes ``(n,)`` by both matrices, and each matrix's smallest eigenvalue without damping.

    ``hessian`` and ``gauss_newton`` take the point from the objective, as retraining does. With ``_loss``,
    its loss alone is taken away, as in the proximal objective.
    """
    gradient = test_gradients(test, theta, [test_index])
    with context.timer("Hessian and Gauss-Newton matrix"):
        curvature = curvature_at(net, theta)
        G = gauss_newton_matrix(train, theta)
        values = torch.linalg.eigvalsh(G)
    damped = G + damping * torch.eye(train.p, dtype=G.dtype)
    s_tests = {
        "hessian": curvature.solve(gradient, damping),
        "gauss_newton": torch.linalg.solve(damped, gradient),
    }
    found = {}
    for name, s_test in s_tests.items():
        for suffix, convention in (("", "objective"), ("_loss", "loss")):
            scores = predicted_change(up_loss(train, theta, s_test, convention)[:, 0], train.n, convention)
            found[f"{name}{suffix}"] = scores.numpy()
    return found, {"hessian": float(curvature.eigenvalues[0]), "gauss_newton": float(values[0])}


def chosen(scores: np.ndarray, most: int, random: int, seed: int) -> np.ndarray:
    """The most influential points, the largest first, then points drawn from all others."""
    top = largest(scores, most)
    others = np.setdiff1d(np.arange(len(scores)), top)
    return np.concatenate([top, np.random.default_rng(seed).choice(others, random, replace=False)])


def retrained(nets: Nets, points: np.ndarray) -> dict[str, np.ndarray]:
    """Changes of the test loss without each of ``points``, in three ways."""
    settings, context, seed = nets.cfg.experiment, nets.context, nets.cfg.seed
    journal = context.journal("truths", key={"points": points.tolist()})
    # The last run leaves nothing out. Its change is the drift if warm, and what rounding alone does if cold.
    with_none = np.append(points, -1)
    blocks = torch.as_tensor(with_none).split(settings.block)
    narrow = nets.problem.objective(seed, getattr(torch, settings.retraining_dtype))
    going_on = protocol.Retraining(settings, nets.train, narrow, nets.test, nets.state, seed)
    before = nets.losses(nets.theta[:, None])[0]

    def warm(block: torch.Tensor) -> dict[str, np.ndarray]:
        found = going_on(block, nets.test_index)
        return {"change": found["change"][-1]}

    def cold(block: torch.Tensor) -> dict[str, np.ndarray]:
        return {"change": nets.losses(nets.anew(block, seed)) - before}

    def proximal(block: torch.Tensor) -> dict[str, np.ndarray]:
        found = proximal_responses(
            nets.train, nets.theta, block[block >= 0], settings.damping,
            tolerance=settings.tolerance, limit=settings.limit, kernel=settings.kernel,
        )  # fmt: skip
        return {
            "change": nets.losses(found.thetas) - before,
            "norm": found.gradient_norms.numpy(),
            "passes": found.passes.numpy(),
        }

    work = [(name, number) for name in TRUTHS for number in range(len(blocks))]
    work = [
        (name, number) for name, number in work if name != "proximal" or bool((blocks[number] >= 0).any())
    ]
    kinds = {"warm": warm, "cold": cold, "proximal": proximal}
    parts = {unit: journal.get(f"{unit[0]}-{unit[1]}") for unit in work}
    missing = [unit for unit in work if parts[unit] is None]
    with (
        context.timer(f"{len(points)} points left out in three ways"),
        context.progress(len(work), "blocks of retrainings") as advance,
        ThreadPoolExecutor(settings.workers) as pool,
    ):
        advance(len(work) - len(missing))
        made = pool.map(lambda unit: kinds[unit[0]](blocks[unit[1]]), missing)
        for done, (unit, part) in enumerate(zip(missing, made, strict=True)):
            journal.put(f"{unit[0]}-{unit[1]}", part)
            parts[unit] = part
            advance(len(work) - len(missing) + done + 1)

    def joined(kind: str, key: str) -> np.ndarray:
        own = [part for (name, _), part in parts.items() if name == kind and part is not None]
        return np.concatenate([part[key] for part in own])

    warm_all, cold_all = joined("warm", "change"), joined("cold", "change")
    return {
        "warm": warm_all[:-1] - warm_all[-1],
        "cold": cold_all[:-1] - cold_all[-1],
        "cold_again": np.full(len(points), cold_all[-1]),
        "proximal": joined("proximal", "change"),
        "proximal_gradient_norm": joined("proximal", "norm"),
        "proximal_passes": joined("proximal", "passes"),
    }


def orders(nets: Nets, numbers: np.ndarray) -> np.ndarray:
    """Change of the test loss if batches come in other orders, on all data: one for each of ``numbers``."""
    settings, context = nets.cfg.experiment, nets.context
    journal = context.journal("orders")
    none = torch.tensor([-1])

    def one(number: int) -> np.ndarray:
        saved = journal.get(f"order-{number}")
        if saved is not None:
            return saved["loss"]
        loss = nets.losses(nets.anew(none, nets.cfg.seed + 1 + number))
        journal.put(f"order-{number}", {"loss": loss})
        return loss

    with ThreadPoolExecutor(settings.workers) as pool:
        found = list(pool.map(one, numbers.tolist()))
    before = nets.losses(nets.theta[:, None])
    return np.concatenate([loss - before for loss in found]) if found else np.zeros(0)


def compared(arrays: dict[str, np.ndarray], truth: str) -> dict[str, dict[str, dict[str, float]]]:
    """Agreement of both predictions with one truth: the most influential points, the drawn ones, and all."""
    prefix = "taken_away" if truth == "proximal" else "predicted"
    drawn = arrays["drawn"]
    parts = {"most": ~drawn, "random": drawn, "all": np.ones_like(drawn)}
    return {
        part: {name: agreement(arrays[f"{prefix}_{name}"][rows], arrays[truth][rows]) for name in MATRICES}
        for part, rows in parts.items()
    }


def chance(arrays: dict[str, np.ndarray]) -> dict[str, float]:
    """How far the order of the batches moves the test loss, beside what leaving a point out does."""
    moved = arrays["other_orders"]
    deviation = float(np.append(moved, 0.0).std(ddof=1)) if len(moved) else float("nan")
    median = {name: float(np.median(np.abs(arrays[name]))) for name in TRUTHS}
    return {
        "deviation": deviation,
        "over_median_cold": deviation / median["cold"] if median["cold"] > 0 else float("nan"),
    } | {f"median_{name}": value for name, value in median.items()}


def deviations(settings: DictConfig) -> list[str]:
    """What differs from the paper's protocol, in sentences."""
    return [
        "The paper retrains in one way (warm). The cold and the proximal one are those of Bae et al. (2022).",
        f"{settings.random} points drawn at random stand beside the most influential ones.",
        *protocol.deviations(settings),
    ]
