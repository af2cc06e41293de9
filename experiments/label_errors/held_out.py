"""What a linear model says of every row without having seen it, from one factor of the Hessian.

With outputs ``o_i = W x_i``, ``r_i`` and ``A_i`` the gradient and Hessian of the loss in them, and
``H = (1/n) Σ w_i A_i ⊗ x_i x_iᵀ + λI``, one Newton step without row i (its weight w_i set to 0) gives

    o_i⁻ = o_i + K_i (I − w_i A_i K_i)⁻¹ w_i r_i,    K_i = (I ⊗ x_i)ᵀ H⁻¹ (I ⊗ x_i) / n

for all rows from one factor: influence with the leverage of the row itself taken out. The loss of the given
label at ``o_i⁻`` approximates the loss after a real leave-one-out refit; the tests hold it against refits.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import expit, log_softmax, softmax
from torch import Tensor

from experiments.label_errors import logistic
from experiments.label_errors.logistic import Design
from experiments.records.errors import UserError
from experiments.records.machine import available_gib
from influence import Exact, Hessian, LinearObjective, fit
from influence.errors import NotConvergedWarning

CORE = 6000  # rows of the largest softmax core that is factored; beyond it: one model a class
TOLERANCE = 1e-7  # gradient norm of a fit
KEPT = 2**30  # bytes of factors that stay in memory for the reasons; larger ones are made again
_ROWS = 2048  # rows whose small matrices are held at once


@dataclass(frozen=True)
class Fitted:
    """A classifier on the labels as given, and what it says of each row with and without that row.

    Attributes:
        form: ``softmax`` (one model of all classes) or ``one-vs-rest`` (a logistic model a class).
        l2: λ of the mean loss.
        W: ``(c, d)`` weights; for two classes the first row is 0.
        seen: ``(n, c)`` probabilities of the fitted model.
        held: ``(n, c)`` probabilities without the row itself.
        loss: ``(n,)`` training loss of the given label, in nats.
        held_loss: ``(n,)`` the same without the row itself.
        self_influence: ``(n,)`` ``∇ℓ_iᵀ H⁻¹ ∇ℓ_i``.
        gradient_norm: the largest of the fits' gradient norms.
        factors: of the Hessian at W, if they were to be kept and are small enough: one ``ExactState`` for a
            softmax, a ``FeatureFactor`` or ``RowFactor`` for each logistic model; else empty.
    """

    form: str
    l2: float
    W: np.ndarray
    seen: np.ndarray
    held: np.ndarray
    loss: np.ndarray
    held_loss: np.ndarray
    self_influence: np.ndarray
    gradient_norm: float
    factors: tuple[Any, ...] = ()

    @property
    def mean_held_loss(self) -> float:
        """Mean leave-one-out loss in nats: what λ and the features are chosen by."""
        return float(self.held_loss.mean())


def classifier(
    design: Design,
    y: np.ndarray,
    classes: int,
    l2: float,
    weights: np.ndarray | None = None,
    start: np.ndarray | None = None,
    held: bool = True,
    keep: bool = False,
) -> Fitted:
    """Fits and holds out every row.

    Args:
        design: X ``(n, d)`` dense or sparse, with its column for the intercept.
        y: ``(n,)`` integers 0…classes−1.
        classes: c.
        l2: λ of the penalty.
        weights: ``(n,)`` ≥ 0, or None for ones. They should have mean 1.
        start: the W of a nearby fit.
        held: False leaves out what is said without the row itself (``held`` is then ``seen``).
        keep: the factors of the Hessian stay in ``factors``, up to ``KEPT`` bytes.

    Raises:
        UserError: the factor does not fit into memory.
    """
    if classes == 2 or (classes - 1) * design.d > CORE:
        return _one_vs_rest(design, y, classes, l2, weights, start, held, keep)
    return _softmax(design.X, y, classes, l2, weights, start, held, keep)


def objective_of(X: Any, y: Any, loss: str, l2: float, weights: np.ndarray | None, c: int) -> LinearObjective:
    """The library's objective of a model with c outputs; weights ``(n,)`` or None."""
    objective = LinearObjective(X, y, loss, l2, n_outputs=c, check=False)
    return objective if weights is None else objective.with_weights(torch.from_numpy(weights))


def _fitted(
    objective: LinearObjective, start: np.ndarray | None, method: str = "newton"
) -> tuple[Tensor, float]:
    with warnings.catch_warnings():  # the norm reached is part of the result
        warnings.simplefilter("ignore", NotConvergedWarning)
        found = fit(
            objective,
            None if start is None else torch.from_numpy(np.ascontiguousarray(start)).reshape(-1),
            method=method,
            tolerance=TOLERANCE,
            raise_on_failure=False,
        )
    return found.theta, found.certificate.gradient_norm


def _softmax(
    X: Any,
    y: np.ndarray,
    classes: int,
    l2: float,
    weights: np.ndarray | None,
    start: np.ndarray | None,
    hold: bool,
    keep: bool,
) -> Fitted:
    objective = objective_of(X, torch.from_numpy(y), "cross_entropy", l2, weights, classes)
    theta, norm = _fitted(objective, start)
    outputs = objective.outputs(theta)
    held, own = outputs.clone(), torch.full((objective.n,), torch.nan, dtype=outputs.dtype)
    factors: tuple[Any, ...] = ()
    if hold:
        state = Exact(form="core").prepare(Hessian(objective, theta))
        inverse = torch.cholesky_inverse(state.factor)
        factors = (state,) if keep and state.factor.nbytes <= KEPT else ()
    for begin in range(0, objective.n if hold else 0, _ROWS):
        rows = torch.arange(begin, min(begin + _ROWS, objective.n))
        w = None if weights is None else torch.from_numpy(weights)[rows]
        held[rows], own[rows] = _without_self(objective, theta, inverse, outputs[rows], rows, w)
    seen, loo = softmax(outputs.numpy(), axis=1), held.numpy()
    place = np.arange(len(y)), y
    return Fitted(
        "softmax",
        l2,
        theta.reshape(classes, -1).numpy(),
        seen,
        softmax(loo, axis=1),
        -log_softmax(outputs.numpy(), axis=1)[place],
        -log_softmax(loo, axis=1)[place],
        own.clamp(min=0).numpy(),
        norm,
        factors,
    )


def _without_self(
    objective: LinearObjective,
    theta: Tensor,
    inverse: Tensor,
    outputs: Tensor,
    rows: Tensor,
    weights: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Outputs without each row of a block ``(b, c)``, and the rows' self-influence ``(b,)``.

    inverse: of the core, ``(r·d', r·d')`` on the loss's output contrasts and X's non-zero columns.
    """
    basis = objective.loss.output_range(objective.n_outputs, theta)  # (c, r)
    x = objective.X.dense(rows)
    if inverse.shape[0] != basis.shape[1] * objective.d:
        x = x[:, objective.X.column_mask()].contiguous()
    r, d = basis.shape[1], x.shape[1]
    blocks = inverse.reshape(r, d, r, d)
    M = torch.empty(len(rows), r, r, dtype=x.dtype)
    for a in range(r):
        for b in range(a, r):
            M[:, a, b] = M[:, b, a] = ((x @ blocks[a, :, b, :]) * x).sum(1)
    y = objective.targets[rows]
    residual = objective.loss.output_gradient(outputs, y) @ basis  # (b, r)
    A = torch.einsum("ca,ncd,db->nab", basis, objective.loss.output_hessian(outputs, y), basis)
    own = torch.einsum("na,nab,nb->n", residual, M, residual)
    K = M / objective.n
    w = torch.ones(len(rows), dtype=x.dtype) if weights is None else weights
    inner = torch.eye(r, dtype=x.dtype) - w[:, None, None] * (A @ K)
    shift = (K @ torch.linalg.solve(inner, (w[:, None] * residual)[:, :, None]))[:, :, 0]
    return outputs + shift @ basis.T, own


def _one_vs_rest(
    design: Design,
    y: np.ndarray,
    classes: int,
    l2: float,
    weights: np.ndarray | None,
    start: np.ndarray | None,
    hold: bool,
    keep: bool,
) -> Fitted:
    """A logistic model a class (one for two classes); the probabilities are normalised over the classes.

    What is minimised is the sum of the models' losses, so a row's self-influence is the sum of theirs.
    """
    n = design.n
    _enough_memory(min(n, design.d), f"{n} rows and {design.d} features")
    w = np.ones(n) if weights is None else weights
    f, g, thetas, own, norm = [], [], [], np.zeros(n), 0.0
    factors: list[Any] = []
    modelled = [1] if classes == 2 else range(classes)
    for k in modelled:
        signs = np.where(y == k, 1.0, -1.0)
        theta, reached = logistic.fit(
            design, signs, l2, weights, None if start is None else start[k], TOLERANCE
        )
        q = np.zeros(n)
        if hold:
            factor = logistic.factored(design, theta, l2, weights)
            q = np.maximum(factor.quadratics(), 0.0)
            if keep and factor.nbytes * len(modelled) <= KEPT:
                factors.append(factor)
        margin = np.asarray(design.X @ theta).ravel()
        s = expit(-signs * margin)
        leverage = q / n  # K_i
        f.append(margin)
        left = np.maximum(1 - w * expit(margin) * expit(-margin) * leverage, 1e-12)
        g.append(margin - signs * s * w * leverage / left)
        own += s * s * q
        thetas.append(theta)
        norm = max(norm, reached)
    if classes == 2:
        seen, held = (np.stack([expit(-m[0]), expit(m[0])], axis=1) for m in (f, g))
        signs = np.where(y == 1, 1.0, -1.0)
        loss, held_loss = (np.logaddexp(0, -signs * m[0]) for m in (f, g))
        W = np.stack([np.zeros(design.d), thetas[0]])
    else:
        logs = [-np.logaddexp(0, -np.stack(m, axis=1)) for m in (f, g)]  # log σ
        logs = [part - np.logaddexp.reduce(part, axis=1, keepdims=True) for part in logs]
        seen, held = (np.exp(part) for part in logs)
        loss, held_loss = (-part[np.arange(n), y] for part in logs)
        W = np.stack(thetas)
    form = "logistic" if classes == 2 else "one-vs-rest"
    return Fitted(form, l2, W, seen, held, loss, held_loss, own, norm, tuple(factors))


def probabilities(form: str, outputs: np.ndarray) -> np.ndarray:
    """``(m, c)`` probabilities from outputs ``(m, c)`` of a model of that form."""
    if form != "one-vs-rest":
        return softmax(outputs, axis=1)
    logs = -np.logaddexp(0, -outputs)
    return np.exp(logs - np.logaddexp.reduce(logs, axis=1, keepdims=True))


def held_by_folds(
    X: Any, y: np.ndarray, classes: int, l2: float, weights: np.ndarray | None, folds: np.ndarray
) -> np.ndarray:
    """``(n, c)`` probabilities of each row from a fit on the other folds; ``folds (n,)`` numbers.

    A class that only the held-out fold has gets no rows in that fit, and its probability is small.
    """
    out = np.zeros((len(y), classes))
    for fold in np.unique(folds):
        rest, rows = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        w = None if weights is None else weights[rest]
        penalty = l2 * len(y) / max(1, len(rest))
        fitted = classifier(Design(X[rest]), y[rest], classes, penalty, w, held=False)
        out[rows] = probabilities(fitted.form, np.asarray(X[rows] @ fitted.W.T))
    return out


def group_folds(groups: np.ndarray, count: int, seed: int) -> np.ndarray:
    """``(n,)`` fold numbers in which no group is split; folds of about equal size."""
    names, sizes = np.unique(groups, return_counts=True)
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]
    load, place = np.zeros(min(count, len(names))), np.zeros(len(names), dtype=np.int64)
    for group in order:
        place[group] = load.argmin()
        load[place[group]] += sizes[group]
    return place[np.searchsorted(names, groups)]


def _enough_memory(size: int, what: str) -> None:
    needed, free = 3 * 8 * size**2 / 2**30, available_gib()
    if needed > free:
        raise UserError(
            f"{what} need a factor of {needed:.1f} GiB of memory and {free:.1f} are free: set words= lower, "
            "leave columns out by ignore=, or rank fewer rows."
        )
