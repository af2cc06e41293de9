"""Schema of conf/experiment/leverage.yaml."""

from dataclasses import dataclass, field

from experiments.schema import COUNT, POSITION, POSITIVE, TOLERANCE, Experiment, at_least, ranged, register


@register("experiment", "leverage")
@ranged(
    factors=POSITIVE,
    test_index=POSITION,
    top=at_least(3),
    random=at_least(3),
    training_tolerance=TOLERANCE,
    retraining_tolerance=TOLERANCE,
    block=COUNT,
)
@dataclass
class Leverage(Experiment):
    """Sizes of predicted changes against leave-one-out retraining, while λ falls."""

    name: str = "leverage"
    # values of λ over model.l2; falling
    factors: list[float] = field(default_factory=lambda: [1.0, 0.1, 0.01, 0.001])
    # position in the test split; null: the first that the first model misclassifies
    test_index: int | None = None
    top: int = 100  # training points left out at each λ: those of largest |predicted change|
    random: int = 100  # training points left out beside them, drawn from all others
    training_tolerance: float = 1e-11  # gradient norm of each full fit
    retraining_tolerance: float = 1e-10  # gradient norm of each retrained model
    block: int = 25  # models retrained side by side
