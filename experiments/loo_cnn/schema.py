"""Schemas of conf/experiment/loo_cnn.yaml (Fig. 2 right) and its networks."""

from dataclasses import dataclass, field
from typing import Any

from experiments.schema import (
    COUNT,
    POSITION,
    POSITIVE,
    SEED,
    TOLERANCE,
    Experiment,
    Model,
    at_least,
    ranged,
    register,
)


@register("model", "network")
@dataclass
class NetworkModel(Model):
    """A convolutional net of experiments/models.py; lambda is on weights only, not on biases."""

    loss: str = "cross_entropy"  # loss of one example


@register("experiment", "loo_cnn")
@ranged(
    test_index=POSITION,
    n_train=at_least(2),
    subset_seed=SEED,
    removed=COUNT,
    batch=COUNT,
    steps=COUNT,
    retraining_steps=COUNT,
    retraining_rate=POSITIVE,
    block=COUNT,
    workers=COUNT,
    checkpoints=COUNT,
    eigenvalues=POSITION,
    autograd_tolerance=TOLERANCE,
    autograd_examples=at_least(2),
    seeds=COUNT,
    side_by_side=POSITION,
)
@dataclass
class LooCnn(Experiment):
    """Leave-one-out retraining of a network against the predicted change of one test loss.

    ``rates`` is a list of [first step, learning rate]; ``dtype`` is that of the first training alone. Seed k
    of ``seeds`` is the job's seed plus k. With ``solver=cg`` the preconditioner is gauss_newton or none.
    """

    name: str = "loo_cnn"
    test_index: int | None = None  # position in the test split; null: the one of largest loss
    n_train: int | None = None  # training points: the first of numpy's legacy shuffle; null: all
    subset_seed: int = 0  # seed of that shuffle
    removed: int = 100  # training points left out: those of largest |predicted change|
    batch: int = 500  # training points per step of training
    steps: int = 500_000  # steps of training
    rates: list[Any] = field(default_factory=list)  # learning rates of training: [[first step, rate], ...]
    dtype: str = "float32"  # type of the training: float32 or float64
    retraining_steps: int = 30_000  # steps of each retraining
    retraining_rate: float = 1.0e-6  # learning rate of each retraining
    retraining_dtype: str = "float64"  # type of the retraining: float32 or float64
    seeds: int = 1  # number of runs, each from another initialisation and batch order
    kernel: str = "auto"  # gradients of the training: auto, compiled (needs a C compiler) or torch
    side_by_side: int = 0  # batches whose gradients are timed with the kernel and without; 0: none
    block: int = 26  # nets retrained side by side
    workers: int = 1  # trainings or blocks at the same time, one thread each; set threads=1 beside it
    checkpoints: int = 5  # moments of the retraining at which the agreement is recorded
    eigenvalues: int = 12  # smallest eigenvalues of the Hessian to compute (with the kernel: all); 0: none
    # plain autograd CG is also timed, to this residual; null: it is not
    autograd_tolerance: float | None = None
    autograd_examples: int | None = None  # training points of that solve; null: all
