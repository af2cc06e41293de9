"""Schema of conf/experiment/components.yaml (Fig. 1)."""

from dataclasses import dataclass

from experiments.schema import COUNT, POSITION, TOLERANCE, Experiment, ranged, register


@register("experiment", "components")
@ranged(test_index=POSITION, harmful_rank=COUNT, training_tolerance=TOLERANCE)
@dataclass
class Components(Experiment):
    """What the training loss and the Hessian each do to the influence of a training point."""

    name: str = "components"
    test_index: int = 0  # position in the test split
    # the harmful image shown: the one of this rank among same-label points, lowest full score first
    harmful_rank: int = 5
    training_tolerance: float = 1e-10  # gradient norm of the fit
