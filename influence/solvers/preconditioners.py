"""Approximations of H⁻¹ that make CG converge in fewer iterations; the answer does not depend on them.

Each is a frozen dataclass of its settings. :meth:`Preconditioner.make` turns an operator into an
:class:`Inverse`, a map of blocks ``(p, k)``. A text names one too, with settings in brackets:
``"jacobi"``, ``"nystrom(rank=50)"``.
"""

from __future__ import annotations

import ast
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from influence.curvature.kronecker import kronecker_factors
from influence.curvature.networks import gauss_newton_preconditioner
from influence.curvature.operators import ExampleOperator, GaussNewton, Hessian, Operator, base_of
from influence.errors import DataError, NotPositiveDefiniteError
from influence.objectives.linear import LinearObjective
from influence.objectives.module import Objective
from influence.solvers.subsampling import RoughInverse

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Inverse:
    """``R (p, k) -> (p, k)``, near H⁻¹ R.

    Attributes:
        product: the map.
        varies: whether it is not the same linear map at every call; CG is then the flexible one.
    """

    product: Product
    varies: bool = False

    def __call__(self, R: Tensor) -> Tensor:
        return self.product(R)


@dataclass(frozen=True)
class Preconditioner(ABC):
    """Settings of a preconditioner."""

    name: ClassVar[str]

    @abstractmethod
    def make(self, operator: Operator) -> Inverse:
        """The approximate inverse of ``operator``, its damping included.

        Raises:
            DataError: the operator does not offer what this one needs.
        """

    def __str__(self) -> str:
        settings = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in fields(self))  # a field's value
        return f"{self.name}({settings})" if settings else self.name


@dataclass(frozen=True)
class Jacobi(Preconditioner):
    """Division by the diagonal of H."""

    name = "jacobi"

    def make(self, operator: Operator) -> Inverse:
        diagonal = operator.diagonal()
        if not bool((diagonal > 0).all()):
            raise DataError("the Jacobi preconditioner needs a positive diagonal; raise damping")
        return Inverse(lambda block: block / diagonal[:, None])


@dataclass(frozen=True)
class Kronecker(Preconditioner):
    """``(mean A_i) ⊗ XᵀX/n`` of a linear model, with the output Hessians A_i, inverted in closed form."""

    name = "kronecker"

    def make(self, operator: Operator) -> Inverse:
        base, damping = base_of(operator)
        if isinstance(base, ExampleOperator):
            made = base.objective.kronecker_at(base.theta, base.idx, damping)
            if made is not None:
                return Inverse(made)
        raise DataError(
            "the preconditioner 'kronecker' is for linear models (LinearObjective); use 'kfac' or 'ekfac' "
            "for the module of an Objective, else 'nystrom', 'jacobi' or 'none'"
        )


@dataclass(frozen=True)
class Subsample(Preconditioner):
    """The Hessian of some thousand evenly spaced examples of a linear model, inverted roughly by CG.

    Args:
        size: examples of the part. With fewer than four times as many in all, Kronecker factors alone.
    """

    size: int = 4096
    name = "subsample"

    def __post_init__(self) -> None:
        _positive("subsample", "size", self.size)

    def make(self, operator: Operator) -> Inverse:
        base, damping = base_of(operator)
        if not isinstance(base, ExampleOperator) or not isinstance(base.objective, LinearObjective):
            raise DataError(
                "the preconditioner 'subsample' is for linear models in memory (LinearObjective, whole); use "
                "'kronecker', 'nystrom', 'jacobi' or 'none'"
            )
        objective, idx = base.objective, base.idx
        n = objective.count(idx)
        if n < LEAST * self.size:
            return Inverse(objective.kronecker_at(base.theta, idx, damping))
        chosen = torch.arange(self.size, device=objective.device) * n // self.size
        part = objective.subset(chosen if idx is None else idx[chosen])
        hessian = part.hessian_at(base.theta)

        def product(V: Tensor) -> Tensor:
            return hessian(V).add_(V, alpha=damping) if damping else hessian(V)

        return Inverse(RoughInverse(product, part.kronecker_at(base.theta, None, damping)), varies=True)


LEAST = 4  # times its size: fewer examples in all are not worth a subsample


@dataclass(frozen=True)
class GaussNewtonFactor(Preconditioner):
    """A Cholesky factor of a network's dense Gauss-Newton matrix; for p up to some thousands.

    Args:
        share: part of the output Hessians' total trace that the matrix is built from, in (0, 1].
    """

    share: float = 0.999
    name = "gauss_newton"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise DataError(f"gauss_newton share must lie in (0, 1], got {self.share}")

    def make(self, operator: Operator) -> Inverse:
        base, damping = base_of(operator)
        if not isinstance(base, ExampleOperator) or not isinstance(base.objective, Objective):
            raise DataError(
                "the preconditioner 'gauss_newton' is for the module of an Objective; use 'kronecker' for a "
                "LinearObjective, else 'nystrom', 'jacobi' or 'none'"
            )
        return Inverse(gauss_newton_preconditioner(base.objective, base.theta, damping, self.share, base.idx))


@dataclass(frozen=True)
class KFAC(Preconditioner):
    """Kronecker-factored Gauss-Newton blocks, a layer each (:mod:`influence.curvature.kronecker`).

    Args:
        examples: from at most so many of them; None for all.
        extra: damping of the factors beyond the operator's own. Where p is above n·c the true matrix has no
            curvature in most directions and the factors have some in all, so that a small damping misleads
            them: a few hundred times the operator's damping then halves the iterations.
        seed: of the random signs behind the diagonals.
    """

    examples: int | None = 4096
    extra: float = 0.0
    seed: int = 0
    name = "kfac"
    _corrected: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _positive(self.name, "examples", self.examples)
        if not 0 <= self.extra < float("inf"):
            raise DataError(f"{self.name} extra must be finite and >= 0, got {self.extra}")
        _seed(self.name, self.seed)

    def make(self, operator: Operator) -> Inverse:
        base, damping = base_of(operator)
        if not isinstance(base, ExampleOperator) or not isinstance(base.objective, Objective):
            raise DataError(
                f"the preconditioner {self.name!r} is for the module of an Objective in memory; use "
                "'kronecker' for a LinearObjective, else 'nystrom', 'jacobi' or 'none'"
            )
        factors = kronecker_factors(
            base.objective, base.theta, base.idx,
            corrected=self._corrected, examples=self.examples, seed=self.seed,
        )  # fmt: skip
        return Inverse(factors.inverse(damping + self.extra))


@dataclass(frozen=True)
class EKFAC(KFAC):
    """:class:`KFAC` with its eigenvalues corrected by a second pass: fewer iterations for a longer set-up."""

    name = "ekfac"
    _corrected: ClassVar[bool] = True


@dataclass(frozen=True)
class Nystrom(Preconditioner):
    """A randomised low-rank approximation for any operator (Frangella, Tropp & Udell, 2023).

    With the Nyström approximation ``U Λ Uᵀ`` of rank r from r products with random vectors,
    ``(H + δI)⁻¹ ≈ ((λ_r + δ) U (Λ + δ)⁻¹ Uᵀ + I − UUᵀ)/(λ_r + δ)``. An indefinite Hessian of a network is
    sketched by its Gauss-Newton matrix.

    Args:
        rank: r; each takes one product and p numbers.
        examples: the sketch is of the mean over at most so many examples; None for all.
        seed: of the random vectors.
    """

    rank: int = 50
    examples: int | None = None
    seed: int = 0
    name = "nystrom"

    def __post_init__(self) -> None:
        _positive("nystrom", "rank", self.rank)
        _positive("nystrom", "examples", self.examples)
        _seed("nystrom", self.seed)

    def make(self, operator: Operator) -> Inverse:
        base, damping = base_of(operator)
        base = self._semidefinite(base)
        U, values = nystrom(base, min(self.rank, base.shape[0]), self.seed)
        tail = float(values[-1]) + damping
        if not tail > 0:  # the approximation is exact, and H singular without damping
            tail = torch.finfo(base.dtype).eps * float(values[0]) or 1.0
        scale = tail / (values + damping).clamp(min=tail) - 1
        return Inverse(lambda V: V + U @ (scale[:, None] * (U.T @ V)))

    def _semidefinite(self, base: Operator) -> Operator:
        if not isinstance(base, ExampleOperator):
            return base
        objective = base.objective
        if isinstance(base, Hessian) and not isinstance(base, GaussNewton) and not objective.linear_outputs:
            base = GaussNewton(objective, base.theta, base.idx)
        n = objective.count(base.idx)
        if self.examples is None or self.examples >= n:
            return base
        chosen = torch.arange(self.examples, device=base.device) * n // self.examples
        return base.on_examples(chosen if base.idx is None else base.idx[chosen])


def nystrom(operator: Operator, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """``U (p, r)`` with orthonormal columns and ``Λ (r,)``, descending, of a positive semi-definite operator.

    Algorithm 2.1 of Frangella, Tropp & Udell (2023), with its shift against rounding.

    Raises:
        NotPositiveDefiniteError: the sketch is indefinite.
    """
    generator = torch.Generator().manual_seed(seed)
    p = operator.shape[0]
    random = torch.randn(p, rank, generator=generator, dtype=torch.float64).to(
        operator.device, operator.dtype
    )
    Q = torch.linalg.qr(random).Q
    Y = operator @ Q
    shift = torch.finfo(Y.dtype).eps * p**0.5 * float(Y.norm())
    for _ in range(8):
        shifted = Y + shift * Q
        middle = Q.T @ shifted
        factor, info = torch.linalg.cholesky_ex((middle + middle.T) / 2)
        if not int(info):
            break
        shift = max(10 * shift, torch.finfo(Y.dtype).tiny)
    else:
        raise NotPositiveDefiniteError("the Nyström sketch is indefinite; raise damping or use a GaussNewton")
    B = torch.linalg.solve_triangular(factor.T, shifted, upper=True, left=False)
    U, singular, _ = torch.linalg.svd(B, full_matrices=False)
    return U, (singular**2 - shift).clamp(min=0)


KNOWN: dict[str, type[Preconditioner]] = {
    kind.name: kind for kind in (Jacobi, Kronecker, Subsample, GaussNewtonFactor, KFAC, EKFAC, Nystrom)
}


def named(text: str) -> Preconditioner | None:
    """The preconditioner that ``text`` names, None for ``"none"``: ``"jacobi"``, ``"nystrom(rank=50)"``.

    Raises:
        DataError: an unknown name or setting; the message lists the known ones.
    """  # noqa: DOC501  the others are caught here
    if text == "none":
        return None
    known = ", ".join(["none", *KNOWN])
    name, _, rest = text.partition("(")
    kind = KNOWN.get(name.strip())
    if kind is None:
        raise DataError(f"unknown preconditioner {text!r}; known: {known}, or a callable")
    try:
        call = ast.parse(f"_({rest}" if rest else "_()", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise SyntaxError(text)
        return kind(**{str(part.arg): ast.literal_eval(part.value) for part in call.keywords})
    except (SyntaxError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        settings = ", ".join(field.name for field in fields(kind)) or "none"
        raise DataError(
            f"cannot read the preconditioner {text!r}: settings of {name} are {settings}, given as "
            f"{name}({settings.split(',')[0]}=...)"
        ) from None


def make_preconditioner(
    choice: str | Preconditioner | Product | None, operator: Operator
) -> tuple[Inverse | None, str]:
    """The approximate inverse of ``choice`` for ``operator`` (None for ``"none"``), and its name in a record.

    Raises:
        DataError: an unknown name, or one that the operator does not offer.
    """
    if isinstance(choice, str):
        choice = named(choice)
    if choice is None:
        return None, "none"
    if isinstance(choice, Preconditioner):
        return choice.make(operator), str(choice)
    if isinstance(choice, Inverse):
        return choice, "given"
    if callable(choice):
        return Inverse(choice), "given"
    raise DataError(f"a preconditioner is a name, a Preconditioner or a callable, got {choice!r}")


def _positive(name: str, setting: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise DataError(f"{name} {setting} must be at least 1, got {value}")


def _seed(name: str, value: int) -> None:
    if value < 0:
        raise DataError(f"{name} seed must be >= 0, got {value}")
