"""Schema of conf/experiment/readmission.yaml (section 5.3)."""

from dataclasses import dataclass

from experiments.schema import COUNT, POSITION, TOLERANCE, Experiment, ranged, register


@register("experiment", "readmission")
@ranged(test_index=POSITION, shown=COUNT, features=COUNT, tolerance=TOLERANCE, stopped_after=COUNT)
@dataclass
class Readmission(Experiment):
    """Training patients whose removal makes one age group's predictions go wrong, and who finds them."""

    name: str = "readmission"
    test_index: int | None = None  # position in the test split; null: the first misclassified child
    training_gradient: str = "objective"  # objective, or loss: without the L2 term, as in the paper's formula
    shown: int = 20  # most influential patients that are shown and really left out
    features: int = 8  # features named for each child
    tolerance: float = 1e-10  # gradient norm of every fit
    # an L-BFGS fit is also stopped after so many iterations, as the authors' was; null: none
    stopped_after: int | None = None
