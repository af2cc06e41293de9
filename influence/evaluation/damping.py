"""Which damping: scores at many dampings from one factorisation, and evidence for one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from influence.checks import checked_number
from influence.curvature.operators import Damped, ExampleOperator, Hessian, Operator
from influence.errors import DataError
from influence.evaluation.agreement import spearman
from influence.objectives._base import TrainingObjective
from influence.removal import TrainingGradient
from influence.scores import predicted_change, up_loss

_DENSE_BELOW = 3000  # parameters: up to here one eigendecomposition serves every damping


@dataclass(frozen=True)
class DampingReport:
    """Scores at several dampings of one curvature.

    Attributes:
        dampings: ``(m,)`` δ, rising.
        scores: ``(m, n, k)`` predicted changes at each.
        positive_definite: ``(m,)`` whether H + δI is; scores at other dampings are not to be used.
        moves: ``(m,)`` mean Spearman correlation of the scores with those at the next larger damping; 1
            where the ranking does not depend on δ. The last entry is 1.
        remaining: ``(m,)`` evidence without retraining: the median over some influential points of
            ``‖∇R₋ᵢ(θ + d_i)‖ / ‖∇R₋ᵢ(θ)‖``, with d_i the damped step without point i. 0 means that the step
            solves the problem without the point; 1 and more that it is worthless. NaN where not positive
            definite.
        best: the damping with the smallest ``remaining``.
    """

    dampings: Tensor
    scores: Tensor
    positive_definite: Tensor
    moves: Tensor
    remaining: Tensor
    best: float

    def __str__(self) -> str:
        head = f"{'damping':>10} {'definite':>9} {'moves':>7} {'remaining':>10}"
        columns = (self.dampings, self.positive_definite, self.moves, self.remaining)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        lines = [f"{d:>10.2e} {'yes' if ok else 'no':>9} {m:>7.3f} {r:>10.3f}" for d, ok, m, r in rows]
        return "\n".join([head, *lines, f"best: {self.best:.2e}"])


def damping_report(
    objective: TrainingObjective,
    theta: Tensor,
    gradients: Tensor,
    *,
    operator: Operator | None = None,
    dampings: Tensor | None = None,
    removal: TrainingGradient | str = TrainingGradient.OBJECTIVE,
    points: int = 10,
    krylov: int = 100,
) -> DampingReport:
    """Scores at ten dampings, how the ranking moves between them, and which damping the evidence is for.

    Up to 3,000 parameters one eigendecomposition serves all dampings; beyond, one Krylov space of
    ``krylov`` products per right-hand side.

    Args:
        objective: what was minimised, with its training data.
        theta: ``(p,)`` fitted parameters.
        gradients: ``∇L(z_test)``, ``(p, k)``.
        operator: undamped curvature; the Hessian by default.
        dampings: δ ≥ 0, rising; by default ten from 1e-6 to 1 times the largest eigenvalue.
        removal: the convention of removal, ``"objective"`` or ``"loss"``.
        points: influential points that ``remaining`` is measured on.
        krylov: products of the Lanczos estimate for large p.

    Raises:
        DataError: a damped operator, dampings that do not rise, or none at which the curvature is positive
            definite.
    """
    theta = objective.vector(theta)
    checked_number("points", points, least=1, below=objective.n + 1, whole=True)
    checked_number("krylov", krylov, least=2, whole=True)
    operator = Hessian(objective, theta) if operator is None else operator
    if isinstance(operator, Damped) or not isinstance(operator, ExampleOperator):
        raise DataError(
            "damping_report adds the dampings itself: pass the undamped Hessian or GaussNewton operator"
        )
    smallest, largest, solve = _solver(operator, krylov)
    if dampings is None:
        dampings = largest * torch.logspace(-6, 0, 10, dtype=theta.dtype, device=theta.device)
    dampings = torch.as_tensor(dampings, dtype=theta.dtype, device=theta.device)
    rising = dampings.ndim == 1 and len(dampings) >= 2 and bool((dampings.diff() > 0).all())
    if not rising or float(dampings[0]) < 0:
        raise DataError(f"dampings must be at least two rising numbers >= 0, got {dampings.tolist()}")
    definite = dampings + smallest > torch.finfo(theta.dtype).eps * largest * 10
    if not bool(definite.any()):
        raise DataError(
            f"the curvature plus {float(dampings[-1]):.3g} is not positive definite (smallest eigenvalue "
            f"{smallest:.3g}); pass larger dampings"
        )
    s_tests = solve(gradients, dampings)  # (m, p, k)
    scores = torch.stack(
        [predicted_change(up_loss(objective, theta, s, removal), objective.n, removal) for s in s_tests]
    )
    moves = torch.ones(len(dampings))
    for a in range(len(dampings) - 1):
        pairs = zip(scores[a].T.cpu().numpy(), scores[a + 1].T.cpu().numpy(), strict=True)
        each = [spearman(x, y) for x, y in pairs]
        moves[a] = sum(each) / len(each)
    middle = scores[int(definite.nonzero()[0])].abs().sum(1)
    chosen = middle.argsort(descending=True, stable=True)[:points]
    remaining = _remaining(objective, theta, chosen, dampings, solve)
    remaining = torch.where(definite.cpu(), remaining, float("nan"))
    best = float(dampings[int(remaining.nan_to_num(float("inf")).argmin())])
    return DampingReport(dampings, scores, definite, moves, remaining, best)


Solve = Callable[[Tensor, Tensor], Tensor]


def _solver(operator: Operator, krylov: int) -> tuple[float, float, Solve]:
    """Extreme eigenvalues, and ``(B (p, k), dampings (m,)) -> (H + δ_m I)⁻¹ B, (m, p, k)``."""
    if operator.shape[0] <= _DENSE_BELOW:
        values, vectors = torch.linalg.eigh(operator.dense())

        def dense(B: Tensor, dampings: Tensor) -> Tensor:
            inside = vectors.T @ B
            return torch.stack([vectors @ (inside / (values + d)[:, None]) for d in dampings])

        return float(values[0]), float(values[-1]), dense
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(operator.shape[0], generator=generator, dtype=torch.float64)
    ritz = torch.linalg.eigvalsh(_krylov(operator, start.to(operator.device, operator.dtype), krylov)[1])

    def spaces(B: Tensor, dampings: Tensor) -> Tensor:
        out = B.new_zeros(len(dampings), *B.shape)
        for j in range(B.shape[1]):
            basis, T = _krylov(operator, B[:, j], krylov)
            first = T.new_zeros(len(T))
            first[0] = B[:, j].norm()
            for m, d in enumerate(dampings):
                shifted = T + float(d) * torch.eye(len(T), dtype=T.dtype)
                out[m, :, j] = basis @ torch.linalg.solve(shifted, first).to(basis)
        return out

    return float(ritz[0]), float(ritz[-1]), spaces


def _krylov(operator: Operator, v: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Lanczos with full reorthogonalisation: the basis ``(p, m)`` and the tridiagonal matrix ``(m, m)``."""
    norm = float(v.norm())
    if norm == 0:
        return v[:, None].clone(), torch.ones(1, 1, dtype=torch.float64)
    columns, alphas, betas = [v / norm], [], []
    for j in range(min(steps, operator.shape[0])):
        w = operator @ columns[-1]
        alphas.append(float(columns[-1] @ w))
        Q = torch.stack(columns, dim=1)
        for _ in range(2):
            w = w - Q @ (Q.T @ w)
        beta = float(w.norm())
        if beta <= 1e-12 * max(abs(alphas[0]), 1e-300) or j == min(steps, operator.shape[0]) - 1:
            break
        betas.append(beta)
        columns.append(w / beta)
    T = torch.diag(torch.tensor(alphas, dtype=torch.float64))
    if betas:
        off = torch.tensor(betas, dtype=torch.float64)
        T += torch.diag(off, 1) + torch.diag(off, -1)
    return torch.stack(columns, dim=1), T


def _remaining(
    objective: TrainingObjective, theta: Tensor, idx: Tensor, dampings: Tensor, solve: Solve
) -> Tensor:
    """Median share of the gradient without a point that its damped step leaves: ``(m,)``."""
    n, weights = objective.n, objective.example_weights(idx)
    G = objective.example_gradients(theta, idx).T * weights
    steps = solve((G + objective.penalty_gradient(theta)[:, None]).contiguous(), dampings) / (n - 1)
    full = objective.gradient(theta)[:, None].expand_as(G)

    def without(thetas: Tensor, gradients: Tensor) -> Tensor:
        own = objective.paired_gradients(thetas, idx) * weights
        l2 = objective.penalty_gradient(thetas)
        result: Tensor = ((n * (gradients - l2) - own) / (n - 1) + l2).norm(dim=0)
        return result

    before = without(theta[:, None].expand_as(G), full)
    shares = []
    for step in steps:
        thetas = theta[:, None] + step
        shares.append((without(thetas, objective.gradients(thetas)) / before).median())
    return torch.stack(shares).cpu()
