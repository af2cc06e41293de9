"""Schema of conf/experiment/lds.yaml."""

from dataclasses import dataclass

from experiments.schema import COUNT, TOLERANCE, Experiment, Range, at_least, ranged, register


@register("experiment", "lds")
@ranged(
    n_train=at_least(4),
    n_test=COUNT,
    masks=at_least(3),
    share=Range(0, 1, low_open=True, high_open=True),
    training_tolerance=TOLERANCE,
    retraining_tolerance=TOLERANCE,
    projections=COUNT,
)
@dataclass
class LDS(Experiment):
    """Attributions judged by models that are trained on random halves of the data."""

    name: str = "lds"
    n_train: int = 5000  # training points, the first ones of the data
    n_test: int = 500  # test points, the first ones
    masks: int = 100  # models, each trained on a random subset
    share: float = 0.5  # share of the training points that a subset holds
    training_tolerance: float = 1e-10  # gradient norm of the full fit
    retraining_tolerance: float = 1e-7  # gradient norm of each model of a subset
    projections: int = 512  # dimensions of TRAK's random projection
