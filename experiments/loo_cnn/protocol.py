"""The paper's protocol from several seeds: training by Adam, retraining without each point, and a drift run.

All runs of a seed see the same batches in the same order, so drift and minibatch noise are common to them.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from omegaconf import DictConfig
from torch import nn

from experiments.models import networks as models
from experiments.records.errors import ConfigError
from experiments.suite.context import Context, Dataset
from influence.errors import DataError
from influence.objectives.module import Objective
from influence.objectives.sequential import network_objective
from influence.retraining.networks import (
    AdamState,
    BatchGradients,
    adam,
    batch_at,
    batch_gradients,
    piecewise,
    start,
)
from influence.retraining.stationary import WeightedNet


@dataclass(frozen=True)
class Problem:
    """The images of an experiment, on its device, and the net before training."""

    cfg: DictConfig
    chosen: np.ndarray
    train: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor]
    classes: int

    @classmethod
    def of(cls, cfg: DictConfig, data: Dataset) -> Problem:
        """The training subset and the test split of ``data``."""
        chosen = subset(len(data.train.y), cfg.experiment.n_train, cfg.experiment.subset_seed)
        train, test = (
            (
                models.images(torch.as_tensor(X, dtype=torch.float64)).to(cfg.device),
                torch.as_tensor(y).to(cfg.device),
            )
            for X, y in ((data.train.X[chosen], data.train.y[chosen]), (data.test.X, data.test.y))
        )
        return cls(cfg, chosen, train, test, len(data.classes))

    def net(self, seed: int) -> nn.Sequential:
        """A freshly initialised net."""
        side, generator = self.train[0].shape[-1], torch.Generator().manual_seed(seed)
        return models.tanh_cnn(self.cfg.model.name, side, self.classes, generator).to(self.cfg.device)

    def objective(self, seed: int, dtype: torch.dtype = torch.float64) -> Objective:
        """The training objective, whose start is that of ``seed``."""
        model = self.cfg.model
        return network_objective(
            self.net(seed), model.loss, *self.train, model.l2, l2_parameters="weights", dtype=dtype
        )


def subset(n: int, size: int | None, seed: int) -> np.ndarray:
    """The first ``size`` of numpy's legacy shuffle of 0..n-1, as the authors drew them; all where null."""
    order = np.arange(n)
    if size is None:
        return order
    if not 2 <= size <= n:
        raise ConfigError(f"experiment.n_train={size}: give 2 to {n}, the training points there are.")
    np.random.RandomState(seed).shuffle(order)
    return order[:size]


def moments(settings: DictConfig) -> list[int]:
    """Steps of the retraining at which losses are recorded, the last one included."""
    parts = max(1, min(settings.checkpoints, settings.retraining_steps))
    return [round(settings.retraining_steps * (part + 1) / parts) for part in range(parts)]


def gradients_of(objective: Objective, kernel: str) -> tuple[BatchGradients, str]:
    """:func:`batch_gradients`, with the setting's name in the error."""
    try:
        return batch_gradients(objective, kernel)
    except DataError as error:
        raise ConfigError(f"experiment.kernel={kernel}: {error}") from error


def weighted(cfg: DictConfig, train: Objective) -> WeightedNet:
    """The net whose examples' weights can be lowered."""
    try:
        return WeightedNet(train, cfg.experiment.kernel, cfg.experiment.workers)
    except DataError as error:
        raise ConfigError(f"experiment.kernel={cfg.experiment.kernel}: {error}") from error


def train_all(context: Context, problem: Problem, seeds: list[int]) -> tuple[dict[int, AdamState], str]:
    """Each seed's run of Adam from scratch, ``workers`` at a time, and how its gradients were computed.

    A spot check goes on from the states in the record instead.
    """
    settings = problem.cfg.experiment
    dtype = getattr(torch, settings.dtype)
    given = context.recorded("states")
    if given is not None:
        path = gradients_of(problem.objective(seeds[0], dtype), settings.kernel)[1]
        return dict(zip(seeds, states_of(given, settings.steps), strict=True)), path
    rate = piecewise([tuple(pair) for pair in settings.rates])
    journals = {seed: context.journal("training", key={"seed": seed}) for seed in seeds}
    done, lock, paths = dict.fromkeys(seeds, 0), Lock(), set()

    def one(seed: int) -> AdamState:
        def report(step: int) -> None:
            with lock:
                done[seed] = step
                advance(sum(done.values()))

        objective = problem.objective(seed, dtype)
        gradients, path = gradients_of(objective, settings.kernel)
        paths.add(path)
        return adam(
            objective, start(objective.initial()), settings.steps, rate, settings.batch, seed,
            gradients=gradients, journal=journals[seed], progress=report,
        ).to(torch.float64)  # fmt: skip

    with (
        context.timer(f"training, {len(seeds)} seeds"),
        context.progress(settings.steps * len(seeds), "training") as advance,
        ThreadPoolExecutor(settings.workers) as pool,
    ):
        states = dict(zip(seeds, pool.map(one, seeds), strict=True))
    return states, paths.pop()


def states_array(states: dict[int, AdamState], dtype: str) -> np.ndarray:
    """Parameters and both moments of every seed in the type of the training: ``(seeds, 3, p)``."""
    parts = [torch.stack([s.thetas[:, 0], s.first[:, 0], s.second[:, 0]]) for s in states.values()]
    return torch.stack(parts).to(getattr(torch, dtype)).cpu().numpy()


def states_of(array: np.ndarray, steps: int) -> list[AdamState]:
    """The states of :func:`states_array`, in float64."""
    whole = torch.as_tensor(array, dtype=torch.float64)[..., None]
    return [AdamState(own[0], own[1], own[2], steps) for own in whole]


@dataclass(frozen=True)
class Retrained:
    """Of one seed, the points left out first and the run on all data last: changes of the test loss
    ``(moments, removed + 1)`` and final gradient norms ``(removed + 1,)``.
    """

    changes: np.ndarray
    gradient_norms: np.ndarray

    @property
    def drift(self) -> np.ndarray:
        """What the run on all data changed, ``(moments,)``."""
        return self.changes[:, -1]

    @property
    def actual(self) -> np.ndarray:
        """Changes less the drift, ``(moments, removed)``."""
        return self.changes[:, :-1] - self.drift[:, None]


def retrain_all(
    context: Context,
    problem: Problem,
    states: dict[int, AdamState],
    removed: dict[int, np.ndarray],
    test_index: int,
) -> dict[int, Retrained]:
    """Retraining of every seed's net without each of its points, in blocks of nets side by side.

    Every block is kept in the journal; ``workers`` of them run at a time.
    """
    settings = problem.cfg.experiment
    dtype = getattr(torch, settings.retraining_dtype)
    index = {seed: np.append(points, -1) for seed, points in removed.items()}  # the run on all data last
    total, done = sum(map(len, removed.values())), 0
    with (
        context.timer(f"{total} retrainings"),
        context.progress(total, "retrainings") as advance,
        ThreadPoolExecutor(settings.workers) as pool,
    ):

        def of(seed: int) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
            return lambda points: blocks(seed, points)

        def blocks(seed: int, points: np.ndarray) -> dict[str, np.ndarray]:
            nonlocal done
            journal = context.journal("retraining", key={"seed": seed, "removed": removed[seed].tolist()})
            objective, narrow = problem.objective(seed), problem.objective(seed, dtype)
            one = Retraining(settings, objective, narrow, objective.on(*problem.test), states[seed], seed)
            chunks = torch.as_tensor(points).split(settings.block)
            parts = [journal.get(f"block-{number}") for number in range(len(chunks))]
            missing = [number for number, part in enumerate(parts) if part is None]
            made = pool.map(lambda number: one(chunks[number], test_index), missing)
            for number, part in zip(missing, made, strict=True):
                journal.put(f"block-{number}", part)
                parts[number] = part
                advance(done + sum(len(chunks[k]) for k, own in enumerate(parts) if own is not None))
            done += len(points)
            whole = [part for part in parts if part is not None]
            names = {"changes": "change", "norms": "gradient_norm"}
            return {new: np.concatenate([part[old] for part in whole], axis=-1) for new, old in names.items()}

        found = {
            seed: context.retrained(index[seed], of(seed), row, axis=-1, share=len(states))
            for row, seed in enumerate(states)
        }
    return {seed: Retrained(own["changes"], own["norms"]) for seed, own in found.items()}


@dataclass(frozen=True)
class Retraining:
    """Adam on from one seed's state without each of a block of points: called with them."""

    settings: DictConfig
    objective: Objective
    narrow: Objective  # in the type of the retraining
    test: Objective
    state: AdamState
    seed: int

    def __call__(self, points: torch.Tensor, test_index: int) -> dict[str, np.ndarray]:
        """``change (moments, points)`` of the test loss and the final ``gradient_norm (points,)``."""
        settings, done, losses = self.settings, 0, []
        one = torch.tensor([test_index], device=self.test.device)
        before = float(self.test.example_losses(self.state.thetas[:, 0].clone(), one)[0])
        gradients, _ = gradients_of(self.narrow, settings.kernel)
        state = self.state.to(getattr(torch, settings.retraining_dtype)).repeat(len(points))
        for step in moments(settings):
            state = adam(
                self.narrow, state, step - done, lambda _: settings.retraining_rate, settings.batch,
                self.seed + 1, left_out=points, offset=done, gradients=gradients,
            )  # fmt: skip
            done = step
            thetas = state.thetas.to(torch.float64)
            losses.append(self.test.example_losses_many(thetas, one)[0].cpu().numpy())
        whole, none = torch.arange(self.objective.n), torch.full((len(points),), -1)
        norms = (
            gradients_of(self.objective, settings.kernel)[0](thetas, whole, none).norm(dim=0).cpu().numpy()
        )
        return {"change": np.stack(losses) - before, "gradient_norm": norms}


def deviations(settings: DictConfig) -> list[str]:
    """What differs from the paper's protocol, in sentences."""
    found = []
    if settings.steps != 500_000:
        found.append(
            f"Trained for {settings.steps} Adam steps at rates {[list(r) for r in settings.rates]} instead "
            "of 500,000 at 1e-4, 1e-5, 1e-6 (fewer and larger steps, for a CPU)."
        )
    if settings.removed != 100:
        found.append(
            f"Retrained without each of {settings.removed} training points instead of 100 (a limit on time)."
        )
    if settings.retraining_steps != 30_000:
        found.append(
            f"Retrained for {settings.retraining_steps} Adam steps at {settings.retraining_rate:g} instead "
            "of 30,000 at 1e-6; steps times rate is "
            f"{settings.retraining_steps * settings.retraining_rate:.3g} against the paper's 0.03. Adam's "
            "moments go on from the training, and all runs see the same batches."
        )
    if settings.dtype != "float64" or settings.retraining_dtype != "float64":
        found.append(
            f"Training in {settings.dtype} and retraining in {settings.retraining_dtype}; all losses, "
            "gradients of influence and Hessian products in float64."
        )
    return found


def side_by_side(context: Context, problem: Problem, theta: torch.Tensor, steps: int = 5) -> dict[str, float]:
    """Gradients of ``steps`` batches with the kernel and without it, timed in one process.

    Returns their largest relative difference in float64. The seconds go to the timings; they are of the type
    in which training computes. Nothing where there is no kernel.
    """
    settings = problem.cfg.experiment
    found: dict[str, torch.Tensor] = {}
    if gradients_of(problem.objective(problem.cfg.seed), settings.kernel)[1] != "compiled":
        return {}
    for name in (settings.dtype, "float64"):
        dtype = getattr(torch, name)
        objective = problem.objective(problem.cfg.seed, dtype)
        for kernel in ("torch", "compiled"):
            gradients, _ = gradients_of(objective, kernel)
            thetas, none = theta[:, None].to(dtype), torch.tensor([-1])
            batches = [batch_at(objective.n, settings.batch, 0, step) for step in range(steps)]
            gradients(thetas, batches[0], none)  # memory and caches are warm before the clock starts
            with context.timer(f"{steps} gradients of {settings.batch} images in {name}, {kernel}"):
                sums = torch.stack([gradients(thetas, batch, none)[:, 0] for batch in batches])
            found[f"{name} {kernel}"] = sums.to(torch.float64)
    difference = (found["float64 compiled"] - found["float64 torch"]).norm(dim=1)
    return {"relative_difference": float((difference / found["float64 torch"].norm(dim=1)).max())}
