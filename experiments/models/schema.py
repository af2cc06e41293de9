"""Schemas of conf/model, conf/solver and conf/backbone."""

from dataclasses import dataclass

from omegaconf import II

from experiments.schema import (
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    TOLERANCE,
    Backbone,
    Model,
    Solver,
    ranged,
    register,
)


@register("model", "linear")
@ranged(temperature=NOT_NEGATIVE)
@dataclass
class LinearModel(Model):
    """Outputs X W, no intercept: softmax regression, logistic regression, linear SVM, by the loss.

    ``temperature`` is t of SmoothHinge(s, t) and is read by that loss alone.
    """

    temperature: float | None = None  # t of SmoothHinge(s, t), read by that loss alone


@register("solver", "exact")
@dataclass
class ExactSolver(Solver):
    """Dense Cholesky factor; one factorisation serves all right-hand sides."""

    name: str = "exact"
    # false: a solve that fails is recorded with its status instead of ending the run
    raise_on_failure: bool = True


@register("solver", "cg")
@ranged(tolerance=TOLERANCE, max_iterations=COUNT)
@dataclass
class CGSolver(Solver):
    """Conjugate gradients on a block of right-hand sides."""

    name: str = "cg"
    tolerance: float = 1e-10  # relative residual of each right-hand side
    max_iterations: int | None = None  # products with H at most; null: the solver's own bound
    preconditioner: str = "none"  # none, jacobi, kronecker, subsample or nystrom; for a net gauss_newton
    # false: a solve that fails is recorded with its status instead of ending the run
    raise_on_failure: bool = True


@register("solver", "lissa")
@ranged(depth=COUNT, repeats=COUNT, batch=COUNT, scale=POSITIVE, seed=SEED)
@dataclass
class LiSSASolver(Solver):
    """Stochastic Neumann series: depth steps on sampled batches, mean over repeats."""

    name: str = "lissa"
    depth: int = 5000  # steps of the recursion
    repeats: int = 10  # recursions whose mean is taken
    batch: int = 1  # training points sampled per step
    scale: float | None = None  # at least the largest sampled eigenvalue; null: estimated
    replace: bool = True  # sample with replacement
    seed: int = II("seed")  # draws the sampled batches
    # false: a solve that fails is recorded with its status instead of ending the run
    raise_on_failure: bool = True


@register("backbone", "pretrained")
@ranged(size=COUNT, batch=COUNT, seed=SEED)
@dataclass
class PretrainedBackbone(Backbone):
    """A torchvision network, or a small one with random weights for the embedded runs."""

    size: int = 224  # input pixels per side
    batch: int = 4  # images per forward pass; on a CPU small batches stay near the cache
    mirror: str | None = II("data.mirror")  # folder with weight files; by default that of the data
    seed: int = 0  # draws random_conv's weights
    # do average poolings of Inception count padding? null: as the weights need
    count_padding: bool | None = None
