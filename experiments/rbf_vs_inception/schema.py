"""Schema of conf/experiment/rbf_vs_inception.yaml (Fig. 4)."""

from dataclasses import dataclass

from experiments.schema import (
    COUNT,
    NOT_NEGATIVE,
    POSITION,
    POSITIVE,
    TOLERANCE,
    Experiment,
    ranged,
    register,
)


@register("experiment", "rbf_vs_inception")
@ranged(
    test_index=POSITION,
    gamma=POSITIVE,
    temperature=NOT_NEGATIVE,
    shown=COUNT,
    extremes=COUNT,
    training_tolerance=TOLERANCE,
    largest_gap=TOLERANCE,
)
@dataclass
class RbfVsInception(Experiment):
    """Influence on one test image under an RBF SVM on pixels and a linear model on a network's features."""

    name: str = "rbf_vs_inception"
    # position in the test split; null: the first, right in both, inside the SVM's margin
    test_index: int | None = None
    gamma: float = 0.05 / 1800  # gamma of the RBF kernel on pixels in [-1, 1]
    temperature: float = 0.001  # temperature of the smooth hinge that gives the SVM's influence
    shown: int = 5  # most helpful images of each model in the figure
    extremes: int = 50  # most helpful and most harmful images whose classes are counted
    training_tolerance: float = 1e-10  # gradient norm of the logistic fit
    largest_gap: float = 1e-6  # relative duality gap of the hinge SVM above which it is refused
