"""Schema of conf/experiment/smooth_hinge.yaml (Fig. 3)."""

from dataclasses import dataclass, field

from experiments.schema import COUNT, NOT_NEGATIVE, POSITION, TOLERANCE, Experiment, ranged, register


@register("experiment", "smooth_hinge")
@ranged(
    test_index=POSITION,
    removed=COUNT,
    multiple=COUNT,
    temperatures=NOT_NEGATIVE,
    tolerance=TOLERANCE,
    largest_gap=TOLERANCE,
)
@dataclass
class SmoothHingeExperiment(Experiment):
    """A hinge-trained linear SVM, its influence by SmoothHinge at several temperatures, and retraining."""

    name: str = "smooth_hinge"
    test_index: int = 0  # position in the test split
    removed: int = 100  # training points left out: those of largest |predicted change| at t = 0
    multiple: int = 1  # use the first floor(n / multiple) * multiple examples of each split
    # temperatures t; 0 must be among them
    temperatures: list[float] = field(default_factory=lambda: [0.0, 0.001, 0.1])
    tolerance: float = 1e-8  # tolerance of LinearSVC on its dual problem
    largest_gap: float = 1e-8  # relative duality gap above which a fit is refused
