"""Predictions checked by retraining: single points, and subsets of half the data (LDS)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from influence.checks import checked_number
from influence.errors import DataError
from influence.evaluation.agreement import Agreement, Estimate, agreement, spearman
from influence.objectives._base import Product, TrainingObjective
from influence.removal import TrainingGradient
from influence.retraining.groups import leave_groups_out
from influence.retraining.leave_one_out import Journal, Retrained, leave_one_out


@dataclass(frozen=True)
class Check:
    """What retraining says about predicted changes of one test loss, or of another quantity.

    Attributes:
        top: agreement on the k points of largest predicted change.
        random: agreement on points drawn at random from all others. The top alone flatters: its range is
            wide.
        idx: the points, the top ones first ``(k + random,)``.
        predicted, actual: the changes of what was asked, in its own unit (nats for a loss).
        models: the retrained models with their certificates.
    """

    top: Agreement
    random: Agreement
    idx: Tensor
    predicted: Tensor
    actual: Tensor
    models: Retrained

    def __str__(self) -> str:
        return f"largest predicted changes, {self.top}\nrandom points, {self.random}"


def check_by_retraining(
    objective: TrainingObjective,
    theta: Tensor,
    test: TrainingObjective,
    test_index: int | None,
    scores: Tensor,
    k: int = 20,
    random: int = 20,
    *,
    seed: int = 0,
    removal: TrainingGradient | str = TrainingGradient.OBJECTIVE,
    **settings: Any,
) -> Check:
    """Leave out the k points of largest |score| and some random ones, one at a time, and compare.

    Args:
        objective: what was minimised, with its training data.
        theta: ``(p,)`` fitted parameters.
        test: the same model and loss on test data; ``test.asking(...)`` compares another quantity.
        test_index: position of the test point in ``test``; None for the mean over all of them.
        scores: ``(n,)`` predicted changes, as :func:`~influence.scores.removal_change` gives them.
        k, random: how many points of each kind, at least 3 each.
        k: how many points.
        random: how many points drawn at random beside them.
        seed: of the generator; equal seeds give equal answers.
        removal: the convention that ``scores`` were made with.
        settings: of :func:`~influence.retraining.leave_one_out.leave_one_out`.

    Raises:
        DataError: scores of the wrong shape, too few or too many points.
    """
    theta = objective.vector(theta)
    checked_number("k", k, least=3, whole=True)
    checked_number("random", random, least=3, whole=True)
    n = objective.n
    if scores.shape != (n,):
        raise DataError(f"scores must have shape ({n},), one per training point, got {tuple(scores.shape)}")
    if k + random > n:
        raise DataError(f"k + random must be at most n = {n}, got {k} + {random}")
    order = scores.abs().argsort(descending=True, stable=True)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(n - k, generator=generator)[:random].to(order.device)
    idx = torch.cat([order[:k], order[k:][drawn]])
    models = leave_one_out(objective, theta, idx, removal=removal, **settings)
    one = None if test_index is None else test.index([test_index])
    after = test.example_losses_many(models.thetas.to(theta.device), one).mean(dim=0)
    actual = after - test.example_losses(theta, one).mean()
    predicted, good = scores[idx], models.converged.cpu()

    def compared(part: slice) -> Agreement:
        return agreement(predicted[part].cpu()[good[part]].numpy(), actual[part].cpu()[good[part]].numpy())

    return Check(compared(slice(0, k)), compared(slice(k, None)), idx, predicted, actual, models)


@dataclass(frozen=True)
class Subsets:
    """Models trained on random subsets.

    Attributes:
        masks: ``(n, m)`` booleans: which examples model j was trained on.
        losses: ``(k, m)`` test losses of each model, in nats.
        models: the models with their certificates.
    """

    masks: Tensor
    losses: Tensor
    models: Retrained


def train_on_subsets(
    objective: TrainingObjective,
    theta: Tensor,
    test: TrainingObjective,
    test_idx: Any = None,
    *,
    masks: int = 100,
    share: float = 0.5,
    seed: int = 0,
    tolerance: float = 1e-6,
    removal: TrainingGradient | str = TrainingGradient.OBJECTIVE,
    preconditioner: Product | None = None,
    journal: Journal | None = None,
    progress: Callable[[int], None] | None = None,
) -> Subsets:
    """``masks`` models, each trained on a random ``share`` of the examples; linear ones run side by side.

    Args:
        objective: of all training examples.
        theta: ``(p,)`` the fit on all of them, where every model starts.
        test: the objective of the test points, ``objective.on(...)``.
        test_idx: test points; all by default.
        masks: how many models, at least 3.
        share: of the examples that each model is trained on.
        seed: of the subsets.
        tolerance: gradient norm of every model.
        removal: the convention (:mod:`influence.removal`).
        preconditioner: as for :func:`~influence.retraining.groups.leave_groups_out`.
        journal: finished blocks are stored there and taken from there.
        progress: called with the number of models done.

    Raises:
        DataError: a share outside (0, 1), fewer than 3 masks, or subsets without an example.
    """
    theta = objective.vector(theta)
    checked_number("masks", masks, least=3, whole=True)
    checked_number("share", share, above=0.0, below=1.0)
    n, size = objective.n, round(objective.n * share)
    if not 0 < size < n:
        raise DataError(f"share {share} of {n} examples keeps {size}; keep at least 1 and at most n − 1")
    generator = torch.Generator().manual_seed(seed)
    kept = torch.zeros(n, masks, dtype=torch.bool)
    for j in range(masks):
        kept[torch.randperm(n, generator=generator)[:size], j] = True
    kept = kept.to(objective.device)
    models = leave_groups_out(
        objective, theta, [~column for column in kept.T], tolerance, removal=removal,
        preconditioner=preconditioner, journal=journal, progress=progress,
    )  # fmt: skip
    losses = test.example_losses_many(models.thetas.to(theta.device), test.index(test_idx))
    return Subsets(kept, losses, models)


def lds(subsets: Subsets, scores: Tensor, *, resamples: int = 1000, seed: int = 0) -> tuple[Estimate, Tensor]:
    """The linear datamodelling score (Park et al. 2023): how the sum of scores ranks models of subsets.

    For each test point, Spearman's correlation over the models between the test loss and the sum of
    ``scores`` of the examples that a model was *not* trained on.

    Args:
        subsets: how many random subsets.
        scores: ``(n, k)`` predicted changes by removal, positive = helpful, for the test points of
            ``subsets``.
        resamples: bootstrap resamples of the interval.
        seed: of the generator; equal seeds give equal answers.

    Returns:
        The mean over test points with a 95 % interval (bootstrap over test points), and each point's
        ``(k,)``.

    Raises:
        DataError: scores of the wrong shape.
    """
    k, _ = subsets.losses.shape
    if scores.shape != (len(subsets.masks), k):
        raise DataError(f"scores must have shape ({len(subsets.masks)}, {k}), got {tuple(scores.shape)}")
    expected = scores.T @ (~subsets.masks).to(scores.dtype)  # (k, m)
    good = subsets.models.converged.cpu().numpy()
    pairs = zip(expected.cpu().numpy()[:, good], subsets.losses.cpu().numpy()[:, good], strict=True)
    each = np.array([spearman(a, b) for a, b in pairs])
    return over_test_points(each, resamples, seed), torch.from_numpy(each)


def over_test_points(each: np.ndarray, resamples: int = 1000, seed: int = 0) -> Estimate:
    """The mean of each test point's score ``(k,)``, with a 95 % interval (bootstrap over test points)."""
    draws = np.random.default_rng(seed).integers(len(each), size=(resamples, len(each)))
    low, high = np.quantile(each[draws].mean(1), [0.025, 0.975])
    return Estimate(float(each.mean()), float(low), float(high))
