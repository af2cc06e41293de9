"""Schema of conf/experiment/fragility.yaml."""

from dataclasses import dataclass, field

from experiments.schema import (
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    TOLERANCE,
    Experiment,
    at_least,
    ranged,
    register,
)


@register("experiment", "fragility")
@ranged(
    depths=COUNT,
    widths=COUNT,
    decays=NOT_NEGATIVE,
    seeds=at_least(2),
    removed=at_least(3),
    steps=COUNT,
    rate=POSITIVE,
    tolerance=TOLERANCE,
    iterations=COUNT,
)
@dataclass
class Fragility(Experiment):
    """Spearman's correlation of influence with retraining, over nets that differ in one thing at a time."""

    name: str = "fragility"
    depths: list[int] = field(default_factory=lambda: [1, 2, 4, 8])  # hidden layers
    widths: list[int] = field(default_factory=lambda: [8])  # units of each hidden layer
    activations: list[str] = field(default_factory=lambda: ["tanh", "selu"])  # after each hidden layer
    decays: list[float] = field(default_factory=lambda: [0.005, 0.0])  # lambda of (lambda/2)||theta||^2
    seeds: int = 3  # nets of each kind, from different initialisations
    removed: int = 20  # training points left out, drawn at random
    steps: int = 600  # steps of Adam, on all training points at once
    rate: float = 0.01  # learning rate of Adam
    tolerance: float = 1e-6  # gradient norm of the nets that are brought to a stationary point
    iterations: int = 60  # Newton steps to a stationary point at most
