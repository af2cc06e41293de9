"""LiSSA: stochastic estimation of H⁻¹v (Agarwal, Bullins & Hazan, 2017; paper, section 3).

``t_0 = v, t_j = v + (I − (H_B + δI)/s) t_{j−1}`` over sampled batches B, estimate ``t_J / s``, mean over r
independent repeats. Three things can go wrong, and each has its own check:

- *Divergence.* Where every sampled ``0 ≤ eig(H_B + δI) ≤ 2s``, no step enlarges, so ``‖t_j‖ ≤ (j+1)‖v‖``
  whatever was sampled. An iterate ten times above that bound has diverged in effect and ends the solve.
- *Truncation.* In expectation the residual after J steps is ``(I − (H + δI)/s)^{J+1} v``; with the extreme
  eigenvalues μ and L the bias of the solution is at most ``ρ^{J+1} ‖v‖/μ`` with
  ``ρ = max(|1 − μ/s|, |1 − L/s|)``. It is reported as ``bias``; ``ρ ≥ 1`` means that the scale is too small
  even on average.
- *Noise.* The standard error of the mean over the repeats is reported as ``standard_error``.

Damping is true damping: δ is added to H, not multiplied by the scale (the released code's ``1 − damping``
makes its effective damping ``damping × scale``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from influence.curvature.operators import ExampleOperator, Operator, base_of
from influence.curvature.spectrum import lanczos_extremes, power_iteration
from influence.errors import DataError
from influence.solvers._base import Solution, Solver, Status, relative_residual
from influence.solvers._chains import Chains, batches, make_chains

_PROBES = 16  # sampled operators whose largest eigenvalue is measured for scale="auto"
_POWER = 12  # power iterations on each
_MARGIN = 1.2
_MAX_AUTO_DEPTH = 200_000


@dataclass(frozen=True)
class LissaState:
    """What LiSSA knows of an operator: scale, working scale, smallest eigenvalue and whether it is proven,
    and the factor ``contraction`` (ρ) by which a step shrinks the residual in expectation."""

    operator: Operator
    scale: float
    working_scale: float
    smallest: float
    proven: bool
    contraction: float


@dataclass(frozen=True)
class LiSSA(Solver):
    """Settings of LiSSA.

    Args:
        depth: J, or ``"auto"``: enough that the bias is below a tenth of ``tolerance``, at most 200,000.
        repeats: r independent chains; two or more are needed for a standard error.
        batch: examples a step.
        scale: s, or ``"auto"``: the largest eigenvalue of sampled operators with a margin (linear models with
            batch 1: the largest of all n, in closed form).
        replace: draw batches with replacement, or walk through shuffled epochs.
        seed: of the explicit generator; equal settings give equal bytes.
        tolerance: relative error of the solution (bias + standard error) for status ``CONVERGED``.
        early_stop: stop when the mean over the repeats moved by less than ``early_stop`` (relative) during
            one time constant s/μ, after which at most ``early_stop/(e−1)`` of bias is left. None: never.
        raise_on_failure: raise unless converged, or return the status with a warning.
    """

    depth: int | str = 5000
    repeats: int = 10
    batch: int = 1
    scale: float | str = "auto"
    replace: bool = True
    seed: int = 0
    tolerance: float = 0.1
    early_stop: float | None = None
    raise_on_failure: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.scale, str):
            if self.scale != "auto":
                raise DataError(f"LiSSA scale must be a positive number or 'auto', got {self.scale!r}")
        elif not 0 < self.scale < math.inf:
            raise DataError(f"LiSSA scale must be finite and > 0, got {self.scale}")
        if isinstance(self.depth, str) and self.depth != "auto":
            raise DataError(f"LiSSA depth must be a number or 'auto', got {self.depth!r}")
        if (not isinstance(self.depth, str) and self.depth < 1) or self.repeats < 1 or self.batch < 1:
            raise DataError("LiSSA depth, repeats and batch must each be at least 1")
        if not 0 < self.tolerance < math.inf:
            raise DataError(f"LiSSA tolerance must be > 0, got {self.tolerance}")

    def prepare(self, operator: Operator) -> LissaState:
        generator = torch.Generator().manual_seed(self.seed)
        working = self._largest_sampled(operator, generator) * _MARGIN
        scale = working if self.scale == "auto" else float(self.scale)
        smallest, proven = operator.lower_bound(), True
        if smallest is None or smallest <= 0:
            smallest, proven = lanczos_extremes(operator, 40, self.seed)[0], False
        contraction = abs(1 - smallest / scale)
        if scale < working:  # else the scale is above the largest eigenvalue of every sample, and so of H
            largest = lanczos_extremes(operator, 20, self.seed)[1]
            contraction = max(contraction, abs(1 - largest / scale))
        return LissaState(operator, scale, working, smallest, proven, contraction)

    def _largest_sampled(self, operator: Operator, generator: torch.Generator) -> float:
        base, damping = base_of(operator)
        if self.batch == 1 and isinstance(base, ExampleOperator):
            largest = base.objective.largest_example_curvature(base.theta, base.idx)
            if largest is not None:
                return largest + damping
        best = 0.0
        for _ in range(_PROBES):
            sampled = operator.sample(generator, self.batch, self.replace)
            start = torch.randn(operator.shape[0], generator=generator, dtype=torch.float64)
            best = max(best, power_iteration(sampled, _POWER, start.to(operator.device, operator.dtype)))
        return best if best > 0 else 1.0

    def _steps(self, state: LissaState) -> int:
        if not isinstance(self.depth, str):
            return int(self.depth)
        ratio = state.smallest / state.scale
        if not 0 < ratio < 1:
            return 100
        # bias relative to ‖x‖ ≥ ‖v‖/largest: (1−μ/s)^J · s/μ ≤ tolerance/10
        wanted = math.log(10 / (self.tolerance * ratio)) / -math.log1p(-ratio)
        return min(_MAX_AUTO_DEPTH, max(1, math.ceil(wanted)))

    def _solve(self, state: LissaState, B: Tensor) -> Solution:
        depth = self._steps(state)
        generator = torch.Generator().manual_seed(self.seed + 1)
        chains = make_chains(state.operator, B, self.repeats)
        size = B.norm(dim=0)
        step, diverged = self._run(chains, state, depth, generator, size)
        T = chains.value()
        stats: dict[str, Any] = {
            "depth": step, "scale": state.scale, "working_scale": state.working_scale, "step": step,
            "repeats": self.repeats, "smallest": state.smallest, "smallest_proven": state.proven,
            "tolerance": self.tolerance, "more_damping": "",
        }  # fmt: skip
        if diverged:
            if state.smallest <= 0:
                stats["more_damping"] = f" and damping above {-state.smallest:.3g}"
            if state.scale >= state.working_scale:
                stats["working_scale"] = 2 * state.scale
            zero = torch.zeros_like(B)
            return Solution(zero, Status.DIVERGED, step, torch.where(size > 0, 1.0, 0.0).to(B.dtype), stats)
        value = T.mean(0) / state.scale
        norms = value.norm(dim=0).clamp(min=torch.finfo(B.dtype).tiny)
        error = torch.full_like(norms, math.inf)
        if self.repeats > 1:
            error = (T.var(0) / self.repeats).sum(0).sqrt() / state.scale
        bias = self._bias(state, step) * size
        stats |= {
            "standard_error": error.tolist(),
            "bias_bound": bias.tolist(),
            "worst_error": float((error / norms).max()),
            "bias": float((bias / norms).max()),
            "repeat_values": T / state.scale,
        }
        residual = relative_residual(state.operator, value, B)
        stats["worst_residual"] = float(residual.max())
        status = self._status(state, stats)
        return Solution(value, status, step, residual, stats)

    def _run(
        self, chains: Chains, state: LissaState, depth: int, generator: torch.Generator, size: Tensor
    ) -> tuple[int, bool]:
        window = math.ceil(state.scale / state.smallest) if state.smallest > 0 else depth + 1
        next_check, step, before = 1, 0, None
        index_blocks = batches(chains.n, self.repeats, self.batch, self.replace, generator, depth)
        for idx in index_blocks:
            for _ in chains.advance(idx, state.scale):
                step += 1
                if step in (next_check, depth):
                    next_check = step + min(step, 16)
                    if not bool((chains.norms() <= 10 * (step + 1) * size).all()):
                        return step, True
                if self.early_stop is not None and step % window == 0:
                    mean = chains.value().mean(0)
                    if before is not None and bool(
                        ((mean - before).norm(dim=0) <= self.early_stop * mean.norm(dim=0)).all()
                    ):
                        return step, False
                    before = mean
        return step, False

    def _bias(self, state: LissaState, steps: int) -> float:
        """``ρ^{J+1}/μ``: bound of ‖bias‖/‖v‖; infinite without a positive μ or with ρ ≥ 1."""
        if state.smallest <= 0 or state.contraction >= 1:
            return math.inf
        if state.contraction == 0:
            return 0.0
        return math.exp((steps + 1) * math.log(state.contraction)) / state.smallest

    def _status(self, state: LissaState, stats: dict[str, Any]) -> Status:
        if state.smallest <= 0:
            stats |= {"curvature": state.smallest, "needed_damping": -state.smallest}
            return Status.NEGATIVE_CURVATURE
        if state.contraction >= 1:
            return Status.DIVERGED
        if not stats["bias"] <= self.tolerance:
            more = math.log(stats["bias"] / (0.1 * self.tolerance)) / -math.log(state.contraction)
            stats["needed_depth"] = int(stats["depth"] + math.ceil(more))
            return Status.TRUNCATED
        if not stats["worst_error"] + stats["bias"] <= self.tolerance:
            return Status.NOISY
        return Status.CONVERGED
