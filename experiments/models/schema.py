"""Schemas of conf/model, conf/solver and conf/backbone."""

from dataclasses import dataclass

from experiments.ranges import COUNT, NOT_NEGATIVE, POSITIVE, SEED, TOLERANCE, ranged
from experiments.schema import Backbone, Model, Solver, register


@register("model", "linear")
@ranged(temperature=NOT_NEGATIVE)
@dataclass
class LinearModel(Model):
    """Outputs X W, no intercept: softmax regression, logistic regression, linear SVM, by the loss.

    ``temperature`` is t of SmoothHinge(s, t) and is read by that loss alone.
    """

    temperature: float | None = None


@register("solver", "exact")
@dataclass
class ExactSolver(Solver):
    """Dense Cholesky factor; one factorisation serves all right-hand sides."""

    name: str = "exact"
    raise_on_failure: bool = True


@register("solver", "cg")
@ranged(tolerance=TOLERANCE, max_iterations=COUNT)
@dataclass
class CGSolver(Solver):
    """Conjugate gradients on a block of right-hand sides."""

    name: str = "cg"
    tolerance: float = 1e-10  # relative residual of each column
    max_iterations: int | None = None  # null: the solver's own bound
    preconditioner: str = "none"  # none, jacobi, kronecker, subsample
    raise_on_failure: bool = True


@register("solver", "lissa")
@ranged(depth=COUNT, repeats=COUNT, batch=COUNT, scale=POSITIVE)
@dataclass
class LiSSASolver(Solver):
    """Stochastic Neumann series: depth steps on sampled batches, mean over repeats."""

    name: str = "lissa"
    depth: int = 5000
    repeats: int = 10
    batch: int = 1
    scale: float | None = None  # null: auto, from the largest sampled eigenvalue
    replace: bool = True
    raise_on_failure: bool = True


@register("backbone", "pretrained")
@ranged(size=COUNT, batch=COUNT, seed=SEED)
@dataclass
class PretrainedBackbone(Backbone):
    """A torchvision network, or a small one with random weights for the embedded runs."""

    size: int = 224  # input pixels a side
    batch: int = 4  # images a forward pass; on a CPU small batches stay near the cache
    mirror: str | None = None  # folder with weight files; INFLUENCE_MIRROR is used where this is null
    seed: int = 0  # of random_conv's weights
    count_padding: bool | None = None  # of Inception's average poolings; null: as the weights need
