"""Exact refits of a linear model after the features of a few training rows changed, k models side by side.

The clean fit θ̂ and the inverse of its Hessian are computed once. A changed model differs from it in m rows of
X, so Newton's method starts near its minimum, and conjugate gradients preconditioned by the clean inverse
solve each step, and ``s_test`` at the new θ with the Hessian there, in a few products with X. All k models
share those products: X is read once for all of them, and each model's own rows are put right afterwards.

An update of rank 2m (Woodbury) puts the clean inverse right for each model's own rows, so a change of these
rows alone costs no further CG steps. Where θ itself has moved far, ``Refits.rebased`` makes a new factor.

The factor only makes this fast. What is solved is the changed model's own objective, to a gradient norm
and a relative residual that are measured and kept in the certificate.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from influence.curvature.operators import Hessian
from influence.errors import ConvergenceError, DataError
from influence.losses import MarginLoss
from influence.objectives.linear import LinearObjective
from influence.solvers import Exact
from influence.solvers.inner import inner_cg

INNER = 200  # CG iterations at most inside a Newton step and for s_test
FORCING = 0.1  # relative residual of an early Newton step; later ones follow the gradient norm


@dataclass(frozen=True)
class Changed:
    """What differs from the clean training set: ``rows (k, m)`` and their features ``(k, m, d)``."""

    rows: Tensor
    features: Tensor

    def of(self, models: Tensor) -> Changed:
        """Those of the models ``models`` (indices or a mask)."""
        return Changed(self.rows[models], self.features[models])


@dataclass(frozen=True)
class Correction:
    """The base inverse put right for each model's own rows: ``(H + U_jᵀ D_j U_j)⁻¹``, of rank 2m (Woodbury).

    across: ``(k, 2m, p)`` U_j H⁻¹ of the base's rows and the changed ones; middle: ``(k, 2m, 2m)``
    ``(I + D_j U_j H⁻¹ U_jᵀ)⁻¹ D_j``.
    """

    inverse: Tensor
    across: Tensor
    middle: Tensor

    def of(self, models: Tensor) -> Correction:
        """That of the models ``models`` (indices or a mask)."""
        return Correction(self.inverse, self.across[models], self.middle[models])

    def __call__(self, block: Tensor) -> Tensor:
        """A column a model: ``(p, k) -> (p, k)``."""
        along = torch.einsum("krp,pk->kr", self.across, block)
        back = torch.einsum("krp,kr->pk", self.across, torch.einsum("krs,ks->kr", self.middle, along))
        return self.inverse @ block - back


@dataclass
class Worst:
    """The certificate over all refits so far: the worst values, and how much work it took.

    ``products`` counts the columns multiplied with X, its transpose and the clean inverse, a round of three.
    """

    refits: int = 0
    newton_steps: int = 0
    solves: int = 0
    products: int = 0
    gradient_norm: float = 0.0
    residual: float = 0.0

    def add(self, other: Worst) -> None:
        """Takes another's counts and worst values in."""
        self.refits += other.refits
        self.newton_steps += other.newton_steps
        self.solves += other.solves
        self.products += other.products
        self.gradient_norm = max(self.gradient_norm, other.gradient_norm)
        self.residual = max(self.residual, other.residual)

    @classmethod
    def of(cls, saved: np.ndarray) -> Worst:
        """From ``saved()``."""
        values = [float(v) for v in saved]
        return cls(*(int(v) for v in values[:4]), *values[4:])

    def saved(self) -> np.ndarray:
        """As a journal keeps it: ``(6,)``."""
        counts = (self.refits, self.newton_steps, self.solves, self.products)
        return np.array([*counts, self.gradient_norm, self.residual], dtype=np.float64)

    def certificate(self, fit: str) -> dict[str, Any]:
        """As a record keeps it; ``fit`` says of what."""
        return {
            "fit": fit,
            "count": self.refits,
            "largest_gradient_norm": self.gradient_norm,
            "s_test_count": self.solves,
            "s_test_largest_residual": self.residual,
        }


@dataclass
class Refits:
    """Refits and ``s_test`` of models that share all but a few rows with ``objective``.

    Args:
        objective: the clean top layer, one output (a binary loss).
        theta: ``(p,)`` its converged fit.
        tolerance: gradient norm of every refit.
        solve_tolerance: relative residual of every ``s_test``.
    """

    objective: LinearObjective
    theta: Tensor
    tolerance: float = 1e-9
    solve_tolerance: float = 1e-8
    worst: Worst = field(default_factory=Worst)

    def __post_init__(self) -> None:
        objective = self.objective
        if not isinstance(objective.loss, MarginLoss):
            raise DataError(
                f"the loss {objective.loss.name} has several outputs; refits of changed rows need a binary "
                "one, logistic"
            )
        self.loss: MarginLoss = objective.loss
        identity = torch.eye(objective.p, dtype=objective.dtype, device=objective.device)
        inverse = Exact().prepare(Hessian(objective, self.theta)).inverse(identity)
        self.inverse = (inverse + inverse.T) / 2
        outputs = objective.outputs(self.theta)[:, 0]
        self.curvature = self.loss.curvature(objective.targets * outputs)
        # Both products read rows in memory order: a transposed operand costs twice the time.
        self.X = objective.X.dense()
        self.Xt = self.X.T.contiguous()

    def fresh(self) -> Refits:
        """The same with counts of its own, for another thread."""
        other = copy.copy(self)
        other.worst = Worst()
        return other

    def rebased(self, theta: Tensor, changed: Changed) -> Refits:
        """The same refits from the factor of one changed model at its ``theta (p,)``: faster near it.

        A model's own rows are always its own, so no solution depends on the base. The counts stay shared.

        Raises:
            DataError: more than one changed model is given.
        """
        if len(changed.rows) != 1:
            raise DataError(f"{len(changed.rows)} changed models share one factor: rebase on one of them")
        X = self.objective.X.dense().clone()
        X[changed.rows[0]] = changed.features[0]
        o = self.objective
        moved = LinearObjective(X, o.targets, o.loss, o.l2)
        return Refits(moved, theta, self.tolerance, self.solve_tolerance, self.worst)

    def correction(self, thetas: Tensor, changed: Changed) -> Correction:
        """The low-rank update of the factor for the models ``changed`` near ``thetas (p, k)``."""
        k, m = changed.rows.shape
        own = torch.cat([self.X[changed.rows], changed.features], dim=1)
        y = self.objective.targets[changed.rows]
        margins = torch.einsum("kmd,dk->km", changed.features, thetas) * y
        weights = torch.cat([-self.curvature[changed.rows], self.loss.curvature(margins)], dim=1)
        weights = weights / self.objective.n
        across = (own.flatten(0, 1) @ self.inverse).reshape(k, 2 * m, -1)
        inner = weights[..., None] * (own @ across.transpose(1, 2))
        identity = torch.eye(2 * m, dtype=own.dtype, device=own.device)
        middle = torch.linalg.solve(identity + inner, torch.diag_embed(weights))
        self.worst.products += k * m
        return Correction(self.inverse, across, middle)

    # ---- products with each model's own X: (k, m) rows of it are its own ---------------------------------

    def _forward(self, block: Tensor, changed: Changed) -> Tensor:
        """X_j v_j for every model j: ``(p, k) -> (n, k)``."""
        out = self.X @ block
        columns = torch.arange(block.shape[1], device=block.device)[:, None]
        out[changed.rows, columns] = torch.einsum("kmp,pk->km", changed.features, block)
        return out

    def _backward(self, block: Tensor, changed: Changed) -> Tensor:
        """X_jᵀ u_j for every model j: ``(n, k) -> (p, k)``; ``block`` is overwritten."""
        columns = torch.arange(block.shape[1], device=block.device)[:, None]
        own = block[changed.rows, columns]
        block[changed.rows, columns] = 0.0
        return self.Xt @ block + torch.einsum("kmp,km->pk", changed.features, own)

    def _gradients(self, thetas: Tensor, outputs: Tensor, changed: Changed) -> Tensor:
        y = self.objective.targets[:, None]
        return (
            self._backward(y * self.loss.slope(y * outputs), changed) / self.objective.n
            + self.objective.l2 * thetas
        )

    def _hessian(self, outputs: Tensor, changed: Changed) -> Callable[[Tensor], Tensor]:
        """V ↦ (H_1 v_1, …, H_k v_k), each model's own Hessian at its own θ."""
        curvature = self.loss.curvature(self.objective.targets[:, None] * outputs) / self.objective.n

        def product(block: Tensor) -> Tensor:
            inner = self._forward(block, changed).mul_(curvature)
            return self._backward(inner, changed).add_(block, alpha=self.objective.l2)

        return product

    def cotangents(self, thetas: Tensor, s_tests: Tensor, changed: Changed) -> Tensor:
        """I_pert,loss of every changed row down to its features: ``(p, k), (p, k) -> (k, m, d)``.

        ``−∇_φ (s · ∇_θ ℓ(φ)) = −(r s + A (s·φ) θ)``, as ``pert_loss`` of each changed objective.
        """
        loss, y = self.loss, self.objective.targets[changed.rows]
        margins = torch.einsum("kmd,dk->km", changed.features, thetas) * y
        along = torch.einsum("kmd,dk->km", changed.features, s_tests)
        first = (y * loss.slope(margins))[..., None] * s_tests.T[:, None]
        return -(first + (loss.curvature(margins) * along)[..., None] * thetas.T[:, None])

    def flops(self, products: int) -> float:
        """Floating-point operations of so many ``products``."""
        return 2.0 * products * (2 * self.X.numel() + self.inverse.numel())

    # ---- the two solves -----------------------------------------------------------------------------------

    def refit(
        self, thetas: Tensor, changed: Changed, correction: Correction | None = None, max_steps: int = 50
    ) -> Tensor:
        """Minimisers of every changed model's objective from the starts ``thetas (p, k)``: ``(p, k)``.

        correction: that of these models, where it is at hand; null: made here.

        Raises:
            ConvergenceError: a gradient norm stayed above the tolerance.
        """
        correction = correction or self.correction(thetas, changed)
        thetas = thetas.clone()
        outputs = self._forward(thetas, changed)
        gradients = self._gradients(thetas, outputs, changed)
        norms = gradients.norm(dim=0)
        taken = 0
        while bool((norms > self.tolerance).any()) and taken < max_steps:
            forcing = norms.clamp(max=FORCING).maximum(0.1 * self.tolerance / norms).clamp(max=FORCING)
            steps = self._solve(self._hessian(outputs, changed), gradients, forcing, correction)
            open_ = norms > self.tolerance
            length = open_.to(thetas.dtype)
            while True:
                self.worst.products += len(norms)
                candidates = thetas - length * steps
                new_outputs = self._forward(candidates, changed)
                new = self._gradients(candidates, new_outputs, changed)
                # A Newton step of a convex objective lowers the gradient norm once it is short enough.
                worse = open_ & ~(new.norm(dim=0) < norms)
                if not bool(worse.any()) or float(length.max()) < 1e-10:
                    break
                length = torch.where(worse, length / 2, length)
            thetas, outputs, gradients = candidates, new_outputs, new
            norms, taken = gradients.norm(dim=0), taken + 1
        largest = float(norms.max())
        self.worst.add(Worst(refits=len(norms), newton_steps=taken, gradient_norm=largest))
        if not largest <= self.tolerance:
            raise ConvergenceError(
                f"the refit of a model with changed rows stopped at a gradient norm of {largest:.3g}, above "
                f"{self.tolerance:.3g}: loosen its tolerance, or raise l2"
            )
        return thetas

    def s_tests(
        self,
        thetas: Tensor,
        changed: Changed,
        gradients: Tensor,
        start: Tensor,
        correction: Correction | None = None,
    ) -> Tensor:
        """``s_test = H_j(θ_j)⁻¹ g_j`` of every model j: ``gradients (p, k) -> (p, k)``.

        start: ``(p, k)`` a guess, such as the solution one attack step ago. correction: as in ``refit``.

        Raises:
            ConvergenceError: a relative residual stayed above the tolerance.
        """
        correction = correction or self.correction(thetas, changed)
        product = self._hessian(self._forward(thetas, changed), changed)
        goal = torch.full_like(gradients[0], self.solve_tolerance)
        solution = self._solve(product, gradients, goal, correction, start)
        scale = gradients.norm(dim=0).clamp(min=torch.finfo(gradients.dtype).tiny)
        residual = (gradients - product(solution)).norm(dim=0) / scale  # anew: not the recurrence's
        worst = float(residual.max())
        self.worst.add(Worst(solves=len(residual), products=len(residual), residual=worst))
        if not worst <= 10 * self.solve_tolerance:
            raise ConvergenceError(
                f"s_test of a model with changed rows stopped at a relative residual of {worst:.3g}: loosen "
                "its tolerance, or raise l2"
            )
        return solution

    def _solve(
        self,
        product: Callable[[Tensor], Tensor],
        B: Tensor,
        goal: Tensor,
        correction: Correction,
        start: Tensor | None = None,
    ) -> Tensor:
        """CG to relative residuals ``goal (k,)``, a system a column; ``correction`` preconditions.

        It stops by the residual of its recurrence; who needs the true one computes it from the solution.
        """
        X, steps = inner_cg(product, B, goal, correction, start, limit=INNER)
        self.worst.products += (1 + steps) * B.shape[1]
        return X
