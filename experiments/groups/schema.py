"""Schema of conf/experiment/groups.yaml."""

from dataclasses import dataclass, field

from experiments.schema import COUNT, POSITION, TOLERANCE, Experiment, Range, ranged, register


@register("experiment", "groups")
@ranged(
    shares=Range(0, 1, low_open=True, high_open=True),
    draws=COUNT,
    test_index=POSITION,
    training_tolerance=TOLERANCE,
    retraining_tolerance=TOLERANCE,
    random_groups=COUNT,
)
@dataclass
class Groups(Experiment):
    """Groups of training points left out together: sum of influences, one Newton step, and a refit."""

    name: str = "groups"
    # sizes of the groups as shares of the training set; rising
    shares: list[float] = field(default_factory=lambda: [0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3])
    draws: int = 2  # groups of each size that are drawn at random from all points, and from one class
    test_index: int | None = None  # position in the test split; null: the first misclassified one
    training_tolerance: float = 1e-10  # gradient norm of the full fit
    retraining_tolerance: float = 1e-8  # gradient norm of each retrained model
    # plant the mismatch of section 5.3 and ask what its children do together (data=readmission or
    # readmission_synthetic)
    children: bool = False
    random_groups: int | None = None  # random groups as large as that of the children; null: none
