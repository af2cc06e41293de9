"""Schema of conf/experiment/spam.yaml (Fig. 6)."""

from dataclasses import dataclass, field

from experiments.schema import COUNT, POSITION, TOLERANCE, Experiment, above, ranged, register


@register("experiment", "spam")
@ranged(
    step=above(0, 1),
    flips=COUNT,
    repeats=COUNT,
    checks=COUNT,
    tolerance=TOLERANCE,
    workers=POSITION,
    shown=COUNT,
)
@dataclass
class Spam(Experiment):
    """Labels flipped on purpose and found again; or, on a table of one's own, the rows to look at first."""

    name: str = "spam"
    # Flip labels and see what finds them; null: yes, but not with data=csv, whose own labels are in question.
    plant: bool | None = None
    step: float = 0.05  # share of the training set in one step of flips, and of checks
    flips: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 5, 6])  # steps of labels flipped
    repeats: int = 40  # random draws for each number of flips
    checks: int = 6  # steps of labels that are checked; a refit follows each step
    tolerance: float = 1e-8  # gradient norm of every fit
    workers: int | None = None  # processes; null: one per core; 0: none beside this one. It changes no number
    shown: int = 20  # first suspects shown; with flips, those of the first repeat of the panels' flips
