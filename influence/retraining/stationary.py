"""A small network brought to a stationary point, and on from there without one example (or with less of it).

``R_ε,i(θ) = (1/n) Σ_j L(z_j, θ) − ε L(z_i, θ) + (λ/2)‖m ⊙ θ‖²``: ε = 0 is the trained objective, ε = 1/n
leaves example i out (Koh & Liang 2017, section 2.1). Influence functions are the derivative of its minimum at
ε = 0, so they need a θ̂ at which the gradient vanishes and the Hessian does not.

The minimiser is L-BFGS (Nocedal & Wright 2006, algorithm 7.4) whose first inverse Hessian is that of an
exact, dense one, taken at an earlier point. Many problems run side by side, each with its own memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from influence.curvature.networks import gauss_newton_preconditioner
from influence.curvature.operators import Hessian
from influence.errors import ConvergenceError, DataError
from influence.objectives.compiled import CompiledNet, compiled_net
from influence.objectives.module import Objective
from influence.retraining.leave_one_out import Journal

Evaluate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Precondition = Callable[[Tensor], Tensor]


class WeightedNet:
    """``R_ε,i`` of a net: values, gradients, and the Hessian at ε = 0.

    Args:
        objective: the net, its data and λ, in float64.
        kernel: as for :func:`~.networks.batch_gradients`.
        threads: of the compiled kernel.
    """

    def __init__(self, objective: Objective, kernel: str = "auto", threads: int = 1) -> None:
        if kernel not in ("auto", "compiled", "torch"):
            raise DataError(f"kernel must be auto, compiled or torch, got {kernel!r}")
        if objective.weights is not None:
            raise DataError("the examples of this objective have weights already; give one without weights")
        self.objective, self.n, self.p = objective, objective.n, objective.p
        self.net: CompiledNet | None = None
        if kernel != "torch":
            self.net, reason = compiled_net(objective, threads)
            if self.net is None and kernel == "compiled":
                raise DataError(f"no compiled kernel: {reason}; use kernel='auto' or 'torch'")
        self._penalty = objective.l2 * objective.l2_mask

    @property
    def path(self) -> str:
        """How derivatives are computed: ``"compiled"`` or ``"torch"``."""
        return "torch" if self.net is None else "compiled"

    def evaluate(self, thetas: Tensor, epsilon: Tensor, removed: Tensor) -> tuple[Tensor, Tensor]:
        """Values ``(k,)`` and gradients ``(p, k)`` of ``R_ε_j,i_j(θ_j)``; ``removed (k,)`` holds the i_j."""
        o = self.objective
        if self.net is not None:
            sums, losses = self.net.gradients_and_losses(thetas)
            gradients = sums / self.n + self._penalty[:, None] * thetas
        else:
            losses, gradients = o.example_losses_many(thetas), o.gradients(thetas)
        own = losses.gather(0, removed[None, :])[0]
        values = losses.mean(dim=0) + o.penalty(thetas) - epsilon * own
        for j in (epsilon != 0).nonzero()[:, 0].tolist():
            gradients[:, j] -= epsilon[j] * self.example_gradient(thetas[:, j], int(removed[j]))
        return values, gradients

    def example_gradient(self, theta: Tensor, i: int) -> Tensor:
        """``∇L(z_i, θ)``: ``(p,)``."""
        if self.net is not None:
            return self.net.gradients(theta[:, None], torch.tensor([i]))[:, 0]
        return self.objective.example_gradients(theta, torch.tensor([i]))[0]

    def hessian(self, theta: Tensor) -> Tensor:
        """``∇²R_0(θ)``, exact: ``(p, p)``."""
        if self.net is None:
            return Hessian(self.objective, theta).dense()
        H = self.net.hessian(theta) / self.n
        H.diagonal().add_(self._penalty)
        return H

    def flat(self) -> Tensor:
        """``(p,)`` the unit vector along which softmax never changes: all output biases alike."""
        c = self.objective.n_outputs
        u = torch.zeros(self.p, dtype=self.objective.dtype)
        u[-c:] = c**-0.5
        return u


@dataclass
class Memory:
    """L-BFGS's pairs of one problem, and where its line search stands."""

    length: int
    pairs: deque[tuple[Tensor, Tensor, float]] = field(default_factory=deque)
    direction: Tensor | None = None
    slope: float = 0.0
    step: float = 1.0
    stalled: bool = False

    def backward(self, q: Tensor) -> tuple[Tensor, list[float]]:
        """The first of the two loops."""
        q, kept = q.clone(), []
        for s, y, rho in reversed(self.pairs):
            a = rho * float(s @ q)
            q -= a * y
            kept.append(a)
        return q, kept[::-1]

    def forward(self, r: Tensor, kept: list[float]) -> Tensor:
        """The second loop."""
        for (s, y, rho), a in zip(self.pairs, kept, strict=True):
            r = r + s * (a - rho * float(y @ r))
        return r

    def add(self, s: Tensor, y: Tensor) -> None:
        """One more pair, if its curvature is positive beyond rounding."""
        curvature = float(s @ y)
        if curvature > 1e-12 * float(s.norm() * y.norm()):
            self.pairs.append((s, y, 1 / curvature))
            if len(self.pairs) > self.length:
                self.pairs.popleft()


@dataclass(frozen=True)
class Descent:
    """Where the problems ended: ``thetas (p, k)``, ``values (k,)``, ``gradients (p, k)``, ``passes (k,)``."""

    thetas: Tensor
    values: Tensor
    gradients: Tensor
    passes: Tensor


def descend(
    evaluate: Evaluate,
    thetas: Tensor,
    precondition: Precondition,
    tolerance: float,
    limit: int,
    *,
    radius: float = 2.0,
    length: int = 30,
    progress: Callable[[int, Tensor], None] | None = None,
) -> Descent:
    """Minimises k problems side by side from ``thetas (p, k)``, each to a gradient norm of ``tolerance``.

    Args:
        evaluate: ``thetas (p, j), columns (j,) -> values (j,), gradients (p, j)`` of those problems.
        thetas: ``(p, k)`` parameters, one model a column.
        precondition: an approximation of the inverse Hessian, positive definite: ``(p, j) -> (p, j)``.
        tolerance: gradient norm of every fit.
        limit: evaluations of each problem.
        radius: no step is longer.
        length: longest step.
        progress: called with the pass and all gradient norms.
    """
    k = thetas.shape[1]
    thetas = thetas.clone()
    values, gradients = evaluate(thetas, torch.arange(k))
    memories, passes = [Memory(length) for _ in range(k)], torch.ones(k, dtype=torch.long)
    while True:
        norms = gradients.norm(dim=0)
        live = [j for j in range(k) if norms[j] > tolerance and passes[j] < limit and not memories[j].stalled]
        if progress is not None:
            progress(int(passes.max()), norms)
        if not live:
            return Descent(thetas, values, gradients, passes)
        _directions(
            [j for j in live if memories[j].direction is None], memories, gradients, precondition, radius
        )
        columns = torch.tensor(live)
        along = [(memories[j].step, memories[j].direction) for j in live]
        steps = torch.stack([length * d for length, d in along if d is not None], dim=1)
        candidates = thetas[:, columns] + steps
        new_values, new_gradients = evaluate(candidates, columns)
        for place, j in enumerate(live):
            passes[j] += 1
            memory = memories[j]
            value, gradient = float(new_values[place]), new_gradients[:, place]
            noise = 4e-16 * max(1.0, abs(float(values[j])))
            enough = value <= float(values[j]) + 1e-4 * memory.step * memory.slope
            near = abs(value - float(values[j])) <= noise and float(gradient.norm()) < float(norms[j])
            if enough or near:
                memory.add(steps[:, place], gradient - gradients[:, j])
                thetas[:, j], values[j], gradients[:, j] = candidates[:, place], new_values[place], gradient
                memory.direction, memory.step = None, 1.0
                continue
            memory.step *= _shorter(float(values[j]), value, memory)
            if memory.step < 1e-9:
                memory.stalled = not memory.pairs  # else once more from the preconditioner alone
                memory.pairs.clear()
                memory.direction, memory.step = None, 1.0


def _shorter(before: float, after: float, memory: Memory) -> float:
    """The factor by which a step that did not descend is shortened: the parabola's minimum, within bounds."""
    fall = memory.step * memory.slope
    curvature = after - before - fall
    return min(0.5, max(0.1, -fall / (2 * curvature))) if curvature > 0 and after == after else 0.1


def _directions(
    columns: list[int], memories: list[Memory], gradients: Tensor, precondition: Precondition, radius: float
) -> None:
    if not columns:
        return
    begun = [memories[j].backward(gradients[:, j]) for j in columns]
    middle = precondition(torch.stack([q for q, _ in begun], dim=1))
    for place, j in enumerate(columns):
        memory = memories[j]
        d = -memory.forward(middle[:, place], begun[place][1])
        slope = float(d @ gradients[:, j])
        if not slope < 0:  # rounding, far below the tolerance of any test: begin again
            memory.pairs.clear()
            d = -precondition(gradients[:, j : j + 1])[:, 0]
            slope = float(d @ gradients[:, j])
        norm = float(d.norm())
        shrink = min(1.0, radius / norm) if norm > 0 else 1.0
        memory.direction, memory.slope, memory.step = d * shrink, slope * shrink, 1.0


@dataclass(frozen=True)
class Curvature:
    """The dense Hessian at a point, decomposed; the direction in which softmax is flat is left out.

    Attributes:
        matrix: H ``(p, p)``.
        eigenvalues: ``(p − 1,)``, rising.
        vectors: ``(p, p − 1)``.
    """

    matrix: Tensor
    eigenvalues: Tensor
    vectors: Tensor

    def solve(self, block: Tensor, damping: float = 0.0) -> Tensor:
        """``(H + δI)⁺ B``, zero along the flat direction: ``(p, k) -> (p, k)``."""
        return self.vectors @ ((self.vectors.T @ block) / (self.eigenvalues + damping)[:, None])

    def positive(self, block: Tensor, floor: float) -> Tensor:
        """``Q max(|Λ|, floor)⁻¹ Qᵀ B``, positive definite wherever H was taken (Dauphin et al., 2014)."""
        scales = self.eigenvalues.abs().clamp(min=floor)
        return self.vectors @ ((self.vectors.T @ block) / scales[:, None])


def curvature_at(net: WeightedNet, theta: Tensor) -> Curvature:
    """The exact Hessian at θ, decomposed."""
    H, u = net.hessian(theta), net.flat()
    top = float(H.diagonal().abs().max()) * net.p + 1.0  # the flat direction goes to the end of the spectrum
    values, vectors = torch.linalg.eigh(H + top * torch.outer(u, u))
    return Curvature(H, values[:-1], vectors[:, :-1].contiguous())


@dataclass(frozen=True)
class Stationary:
    """A stationary point: ``theta (p,)``, its value and gradient norm, and what it took.

    ``history`` holds (passes over the data, value, gradient norm) at the end of each share.
    """

    theta: Tensor
    value: float
    gradient_norm: float
    passes: int
    history: list[tuple[int, float, float]]


def stationary(
    net: WeightedNet,
    theta: Tensor,
    tolerance: float = 1e-8,
    *,
    passes: int = 100,
    shares: int = 60,
    exact_below: float = 1e-3,
    floor: float = 1e-4,
    journal: Journal | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Stationary:
    """Brings the net to a gradient norm of ``tolerance`` from θ.

    Work is done in shares, each with a preconditioner taken at its start: the Gauss-Newton matrix (cheap, and
    positive definite), and once the gradient norm is below ``exact_below`` the exact Hessian.

    Args:
        net: values and gradients of the network.
        theta: ``(p,)`` fitted parameters.
        tolerance: gradient norm of every fit.
        passes: gradients in a share; with the exact Hessian, which is dear, five times as many.
        shares: at most so many.
        exact_below: gradient norm below which the preconditioner is the exact Hessian.
        floor: what is added to the Gauss-Newton matrix, and the least eigenvalue of the exact one's inverse.
        journal: the point at the end of each share is kept there and taken from there.
        progress: called with the passes done and the gradient norm.

    Raises:
        ConvergenceError: the tolerance was not reached.
    """
    zero, none = torch.zeros(1, dtype=theta.dtype), torch.zeros(1, dtype=torch.long)
    values, gradients = net.evaluate(theta[:, None], zero, none)
    value, norm, done = float(values[0]), float(gradients.norm()), 0
    history: list[tuple[int, float, float]] = []
    for number in range(shares):
        if norm <= tolerance:
            break
        saved = journal.get(f"share-{number:03d}") if journal is not None else None
        if saved is None:
            exact = norm <= exact_below
            found = descend(
                lambda thetas, columns: net.evaluate(thetas, zero[columns], none[columns]),
                theta[:, None],
                preconditioner(net, theta, floor, exact=exact),
                tolerance,
                5 * passes if exact else passes,
                progress=progress and (lambda n, norms, done=done: progress(done + n, float(norms[0]))),
            )
            saved = {
                "theta": found.thetas[:, 0].numpy(),
                "passes": found.passes.numpy(),
                "value": found.values.numpy(),
                "norm": found.gradients.norm(dim=0).numpy(),
            }
            if journal is not None:
                journal.put(f"share-{number:03d}", saved)
        theta = torch.as_tensor(saved["theta"])
        done += int(saved["passes"][0])
        value, norm = float(saved["value"][0]), float(saved["norm"][0])
        history.append((done, value, norm))
    if not norm <= tolerance:
        raise ConvergenceError(
            f"the net stopped at a gradient norm of {norm:.3g} after {done} passes over the data, above "
            f"{tolerance:.3g}: allow more passes or shares, or raise l2"
        )
    return Stationary(theta, value, norm, done, history)


def preconditioner(net: WeightedNet, theta: Tensor, floor: float, *, exact: bool) -> Precondition:
    """An approximation of the inverse Hessian at θ, positive definite."""
    if not exact:
        return gauss_newton_preconditioner(net.objective, theta, floor, share=0.98)
    curvature = curvature_at(net, theta)
    return lambda block: curvature.positive(block, floor)


@dataclass(frozen=True)
class Reweighted:
    """Nets with less of one example each: ``thetas (p, k)``, gradient norms ``(k,)``, passes ``(k,)``."""

    thetas: Tensor
    gradient_norms: Tensor
    passes: Tensor


def reweighted(
    net: WeightedNet,
    starts: Tensor,
    epsilon: float,
    removed: Tensor,
    precondition: Precondition,
    tolerance: float = 1e-8,
    limit: int = 2000,
    progress: Callable[[int, Tensor], None] | None = None,
) -> Reweighted:
    """Brings ``R_ε,i`` to a gradient norm of ``tolerance`` for each example i of ``removed (k,)``.

    Args:
        net: values and gradients of the network.
        starts: ``(p, k)`` where each begins.
        epsilon: weights taken from the removed points.
        removed: the points whose weight is changed.
        precondition: the inverse of the full Hessian at θ̂, :meth:`Curvature.positive`.
        tolerance: gradient norm of every fit.
        limit: passes over the data; a net that needs more is returned as it is, with its gradient norm.
        progress: told how much is done.
    """
    amounts = torch.full((len(removed),), epsilon, dtype=starts.dtype)
    found = descend(
        lambda thetas, columns: net.evaluate(thetas, amounts[columns], removed[columns]),
        starts, precondition, tolerance, limit, progress=progress,
    )  # fmt: skip
    return Reweighted(found.thetas, found.gradients.norm(dim=0), found.passes)
