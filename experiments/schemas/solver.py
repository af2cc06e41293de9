"""Schemas of conf/solver: the settings of influence.solvers, one dataclass each."""

from dataclasses import dataclass

from experiments.schema import Solver, register


@register("solver", "exact")
@dataclass
class ExactSolver(Solver):
    """Dense Cholesky factor; one factorisation serves all right-hand sides."""

    name: str = "exact"
    raise_on_failure: bool = True


@register("solver", "cg")
@dataclass
class CGSolver(Solver):
    """Conjugate gradients on a block of right-hand sides."""

    name: str = "cg"
    tolerance: float = 1e-10  # relative residual of each column
    max_iterations: int | None = None  # null: the solver's own bound
    preconditioner: str = "none"  # none, jacobi, kronecker, subsample
    raise_on_failure: bool = True


@register("solver", "lissa")
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
