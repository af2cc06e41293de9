"""Schema of conf/experiment/loo_cnn_truths.yaml."""

from dataclasses import dataclass

from experiments.loo_cnn.schema import LooCnn
from experiments.schema import COUNT, POSITION, POSITIVE, TOLERANCE, ranged, register


@register("experiment", "loo_cnn_truths")
@ranged(damping=POSITIVE, random=COUNT, orders=POSITION, tolerance=TOLERANCE, limit=COUNT)
@dataclass
class LooCnnTruths(LooCnn):
    """One network of loo_cnn, and three meanings of "without this training point" (Bae et al., 2022).

    Warm: training goes on without it, as in loo_cnn. Cold: training begins anew without it, from the same
    initialisation and with the same batches. Proximal: the minimum of the proximal Bregman objective.
    """

    name: str = "loo_cnn_truths"
    damping: float = 0.01  # added to the Hessian, to the Gauss-Newton matrix and in the proximal objective
    random: int = 20  # training points drawn at random, beside the ``removed`` most influential ones
    orders: int = 4  # trainings on all data with other batches: how far chance alone moves the test loss
    tolerance: float = 1.0e-8  # gradient norm of every minimum of the proximal objective
    limit: int = 1000  # gradients at most for one of these minima
