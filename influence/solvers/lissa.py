"""LiSSA: stochastic estimation of H⁻¹v (Agarwal, Bullins & Hazan, 2017; paper, section 3).

``t_0 = v, t_j = v + (I − (H_B + δI)/s) t_{j−1}`` over sampled batches B, estimate ``t_J / s``, mean over r
independent repeats. Three things can go wrong, and each has its own check:

- *Divergence.* Where every sampled ``0 ≤ eig(H_B + δI) ≤ 2s``, no step enlarges, so ``‖t_j‖ ≤ (j+1)‖v‖``
  whatever was sampled. An iterate ten times above that bound has diverged in effect and ends the solve.
- *Truncation.* In expectation the residual after J steps is ``(I − (H + δI)/s)^{J+1} v``; with the extreme
  eigenvalues μ and L the bias of the solution is at most ``ρ^{J+1} ‖v‖/μ`` with
  ``ρ = max(|1 − μ/s|, |1 − L/s|)``. It is reported as ``bias``; ``ρ ≥ 1`` means that the scale is too small
  even on average.
  μ is the proven bound λ + δ of a convex problem, else Lanczos's smallest value: on all examples where that
  costs no more than the recursion itself, on as many of them as it pays for otherwise. With fewer than 32 of
  them μ counts as unknown and so does the bias; ``spectrum="full"`` measures it on all.
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
_LANCZOS = 40  # products for the extreme eigenvalues
_FEWEST = 32  # examples from which a smallest eigenvalue is estimated
_USUAL_DEPTH = 5000  # what depth="auto" is taken to cost before the smallest eigenvalue is known


PROVEN = "proven: l2 + damping"


@dataclass(frozen=True)
class LissaState:
    """What LiSSA knows of an operator.

    Attributes:
        scale: s.
        working_scale: a scale at which no sampled step grows.
        smallest: μ, a lower bound or an estimate of the smallest eigenvalue; NaN where it is not known.
        source: where μ is from, in words.
        contraction: ρ, by which a step shrinks the residual in expectation; NaN where μ is not known.
    """

    operator: Operator
    scale: float
    working_scale: float
    smallest: float
    source: str
    contraction: float

    @property
    def proven(self) -> bool:
        """Whether μ is a proven lower bound."""
        return self.source == PROVEN


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
        spectrum: ``"sampled"`` estimates an unproven smallest eigenvalue for no more example products than
            the recursion takes; ``"full"`` from 40 products with all examples, whatever they cost.
        raise_on_failure: raise unless converged, or return the status with a warning.

    Raises:
        DataError: a setting out of its range.

    >>> import torch
    >>> from influence import Hessian, LinearObjective
    >>> X = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    >>> train = LinearObjective(X, torch.tensor([-1, 1, 1, -1]), "logistic", l2=0.1)
    >>> hessian = Hessian(train, torch.zeros(2, dtype=torch.float64))
    >>> b = torch.ones(2, 1, dtype=torch.float64)
    >>> found = LiSSA(depth=500, repeats=500, raise_on_failure=False).solve(hessian, b).value
    >>> bool((hessian @ found - b).norm() < 0.1 * b.norm())
    True
    """

    depth: int | str = 5000
    repeats: int = 10
    batch: int = 1
    scale: float | str = "auto"
    replace: bool = True
    seed: int = 0
    tolerance: float = 0.1
    early_stop: float | None = None
    spectrum: str = "sampled"

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
            raise DataError(f"LiSSA tolerance must be finite and > 0, got {self.tolerance}")
        if self.early_stop is not None and not 0 < self.early_stop < 1:
            raise DataError(f"LiSSA early_stop must lie in (0, 1) or be None, got {self.early_stop}")
        if self.spectrum not in ("sampled", "full"):
            raise DataError(f"LiSSA spectrum must be 'sampled' or 'full', got {self.spectrum!r}")
        if self.seed < 0:
            raise DataError(f"LiSSA seed must be >= 0, got {self.seed}")

    def prepare(self, operator: Operator) -> LissaState:
        generator = torch.Generator().manual_seed(self.seed)
        working = self._largest_sampled(operator, generator) * _MARGIN
        scale = working if self.scale == "auto" else float(self.scale)
        smallest, source = operator.lower_bound(), PROVEN
        largest = None  # a scale above the largest eigenvalue of every sample is above that of H
        if smallest is None or smallest <= 0 or scale < working:
            low, largest, how = self._extremes(operator, generator)
            if smallest is None or smallest <= 0:
                smallest, source = low, how
        contraction = abs(1 - smallest / scale)
        if scale < working and largest is not None:
            contraction = max(contraction, abs(1 - largest / scale))
        return LissaState(operator, scale, working, smallest, source, contraction)

    def _budget(self) -> int:
        """Example products of the recursion for one right-hand side."""
        depth = _USUAL_DEPTH if isinstance(self.depth, str) else self.depth
        return depth * self.repeats * self.batch

    def _extremes(self, operator: Operator, generator: torch.Generator) -> tuple[float, float, str]:
        """Extreme eigenvalues by Lanczos, and from what: of H, or of H on a part of its examples."""
        base, _ = base_of(operator)
        steps = min(_LANCZOS, operator.shape[0])
        if not isinstance(base, ExampleOperator):
            low, high = lanczos_extremes(operator, steps, self.seed)
            return low, high, "Lanczos"
        n = base.objective.count(base.idx)
        part = n if self.spectrum == "full" else min(n, self._budget() // steps)
        if part < min(n, _FEWEST):
            return math.nan, math.nan, "unknown"
        sampled = operator if part == n else operator.sample(generator, part, replace=False)
        low, high = lanczos_extremes(sampled, steps, self.seed)
        return low, high, f"Lanczos on {part} of {n} examples"

    def _largest_sampled(self, operator: Operator, generator: torch.Generator) -> float:
        base, damping = base_of(operator)
        if self.batch == 1 and isinstance(base, ExampleOperator):
            largest = base.objective.largest_example_curvature(base.theta, base.idx)
            if largest is not None:
                return largest + damping
        best = 0.0
        for _ in range(max(1, min(_PROBES, self._budget() // (_POWER * self.batch)))):
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
            "smallest_from": state.source, "tolerance": self.tolerance, "more_damping": "",
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
        if not (state.smallest > 0 and state.contraction < 1):  # NaN where μ is not known
            return math.inf
        if state.contraction == 0:
            return 0.0
        return math.exp((steps + 1) * math.log(state.contraction)) / state.smallest

    def _examples(self, operator: Operator) -> int:
        base, _ = base_of(operator)
        return base.objective.count(base.idx) if isinstance(base, ExampleOperator) else 1

    def _status(self, state: LissaState, stats: dict[str, Any]) -> Status:
        if state.smallest <= 0:
            stats |= {"curvature": state.smallest, "needed_damping": -state.smallest}
            stats["found_by"] = f" by {state.source}"
            return Status.NEGATIVE_CURVATURE
        if math.isnan(state.smallest):
            products = _LANCZOS * self._examples(state.operator)
            stats["products"] = min(products, state.operator.shape[0] * products // _LANCZOS)
            return Status.UNKNOWN_BIAS
        if state.contraction >= 1:
            return Status.DIVERGED
        if not stats["bias"] <= self.tolerance:
            more = math.log(stats["bias"] / (0.1 * self.tolerance)) / -math.log(state.contraction)
            stats["needed_depth"] = int(stats["depth"] + math.ceil(more))
            return Status.TRUNCATED
        if not stats["worst_error"] + stats["bias"] <= self.tolerance:
            return Status.NOISY
        return Status.CONVERGED
