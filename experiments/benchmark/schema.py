"""Schema of conf/experiment/benchmark.yaml."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from experiments.schema import (
    COUNT,
    NOT_NEGATIVE,
    POSITION,
    POSITIVE,
    TOLERANCE,
    Experiment,
    at_least,
    ranged,
    register,
)


@ranged(repeats=COUNT, needs_gib=NOT_NEGATIVE)
@dataclass
class Measurement:
    """One line of the table: an adapter of experiments/benchmarks, its method and its settings."""

    by: str = MISSING  # ours, bare, peer_pydvl, peer_dattri, peer_captum, peer_kronfluence, ...
    method: str = MISSING
    dtype: str = "float64"
    repeats: int = 5
    needs_gib: float = 0.0  # a measurement is not started with less free memory
    options: dict[str, Any] = field(default_factory=dict)


@ranged(aim=POSITIVE, pearson=at_least(-1, 1))
@dataclass
class TaskSettings:
    """One task: its problem, what counts as correct, its aim, its measurements."""

    title: str = MISSING
    problem: str = MISSING  # linear, subset, components, network, perceptron, residual...
    aim: float | None = None  # times as fast as the fastest correct peer
    pearson: float = 0.9999  # against the reference; below it a method is not correct
    measurements: dict[str, Measurement] = field(default_factory=dict)


@register("experiment", "benchmark")
@ranged(
    test_index=POSITION,
    test_points=COUNT,
    subset=COUNT,
    components=COUNT,
    images=COUNT,
    network_test_index=POSITION,
    network_l2=POSITIVE,
    network_damping=NOT_NEGATIVE,
    perceptron_images=COUNT,
    perceptron_steps=COUNT,
    residual_images=COUNT,
    residual_steps=COUNT,
    middle_damping=POSITIVE,
    removed=COUNT,
    growth_rows=COUNT,
    growth_features=COUNT,
    growth_features_rows=COUNT,
    growth_repeats=COUNT,
    growth_tolerance=TOLERANCE,
    timeout=POSITIVE,
)
@dataclass
class Benchmark(Experiment):
    """Our calls beside those of other libraries, on the same data and parameters."""

    name: str = "benchmark"
    # what is measured, by letter: see conf/experiment/benchmark.yaml
    tasks: dict[str, TaskSettings] = field(default_factory=dict)
    # letters of the tasks to measure; []: all; H is the growth of A
    only: list[str] = field(default_factory=list)
    test_index: int = 0  # position of the one test point in the test split
    test_points: int = 100  # test points of task C: that one, then the first ones of the test split
    subset: int = 1000  # training points of task D
    components: int = 20  # principal components of task E
    images: int = 500  # images of task F
    network: str = "tanh_cnn_small"  # model of task F
    network_test_index: int = 0  # test point of task F
    network_l2: float = 0.001  # lambda of task F
    network_damping: float = 0.01  # damping of task F
    perceptron: str = "mlp_small"  # model of task I
    perceptron_images: int = 200  # images of task I
    perceptron_steps: int = 100  # steps of Adam in task I
    residual: str = "resnet_small"  # model of task J
    residual_images: int = 60  # images of task J
    residual_steps: int = 20  # steps of Adam in task J
    middle_damping: float = 0.01  # damping of the Gauss-Newton matrices of tasks I and J
    removed: int = 20  # points left out in task G
    growth_rows: list[int] = field(default_factory=list)  # sizes n of task H
    # numbers of inputs of task H; p = classes * inputs
    growth_features: list[int] = field(default_factory=list)
    growth_features_rows: int = 500  # n while p grows
    growth_repeats: int = 3  # repeats of each size in task H
    growth_tolerance: float = 1e-5  # relative residual of CG in task H
    peers: str = ".peers"  # environment of the other libraries
    timeout: float = 900.0  # seconds for one measurement
