"""Schema of conf/experiment/loo_linear.yaml (Fig. 2 left and middle)."""

from dataclasses import dataclass, field

from experiments.schema import COUNT, POSITION, TOLERANCE, Experiment, Solver, ranged, register


@register("experiment", "loo_linear")
@ranged(
    test_index=POSITION,
    removed=COUNT,
    training_tolerance=TOLERANCE,
    retraining_tolerance=TOLERANCE,
    block=COUNT,
    self_influence=POSITION,
)
@dataclass
class LooLinear(Experiment):
    """Leave-one-out retraining of a linear model against the predicted change of one test loss."""

    name: str = "loo_linear"
    test_index: int = 0  # position in the test split
    removed: int = 100  # training points left out: those of largest |predicted change|
    training_tolerance: float = 1e-10  # gradient norm of the full fit
    retraining_tolerance: float = 1e-8  # gradient norm of each retrained model
    block: int = 25  # models retrained side by side
    retrained: str | None = None  # folder of an earlier record of the same problem; null: retrain here
    self_influence: int = 0  # training points, from the first, whose exact self-influence is recorded
    compare: dict[str, Solver] = field(default_factory=dict)  # further solvers on the same points
