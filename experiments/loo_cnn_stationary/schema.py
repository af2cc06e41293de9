"""Schema of conf/experiment/loo_cnn_stationary.yaml."""

from dataclasses import dataclass, field

from experiments.loo_cnn.schema import LooCnn
from experiments.schema import COUNT, NOT_NEGATIVE, POSITIVE, TOLERANCE, above, ranged, register


@register("experiment", "loo_cnn_stationary")
@ranged(
    tolerance=TOLERANCE,
    passes=COUNT,
    shares=COUNT,
    exact_below=POSITIVE,
    floor=POSITIVE,
    fractions=above(0, 1),
    limit=COUNT,
    dampings=NOT_NEGATIVE,
)
@dataclass
class LooCnnStationary(LooCnn):
    """The network of loo_cnn at a stationary point, and on from there with less and less of one example.

    The net starts from training as in loo_cnn (``steps``, ``rates``, ``batch``, ``dtype``). Settings of
    loo_cnn's retraining by Adam are refused.
    """

    name: str = "loo_cnn_stationary"
    tolerance: float = 1.0e-8  # gradient norm of the net, and of every net with less of one example
    passes: int = 100  # gradients per preconditioner on the way there
    shares: int = 80  # preconditioners on the way there at most
    exact_below: float = 1.0e-3  # gradient norm from which on the preconditioner is the exact Hessian
    floor: float = 1.0e-4  # least eigenvalue of a preconditioner's inverse
    # shares of one example's weight that are taken away, one after the other
    fractions: list[float] = field(default_factory=lambda: [0.01, 0.03, 0.1, 0.3, 1.0])
    limit: int = 2000  # gradients at most for one net with less of one example
    # dampings of the Hessian at which the prediction is made
    dampings: list[float] = field(default_factory=lambda: [0.0, 1.0e-4, 1.0e-3, 1.0e-2, 1.0e-1])
