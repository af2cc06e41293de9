"""From labels to ranks: each row's label judged without the row, and how many labels may be wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from experiments.label_errors.choose import Model, models
from experiments.label_errors.features import Features
from experiments.label_errors.held_out import classifier, group_folds, held_by_folds
from experiments.label_errors.settings import Settings

FOLDS = 10  # parts that groups are held out in
REFITS = 2  # fits with the rows weighted by the probability that their label is right
_FLOOR = 1e-3  # smallest such weight: a row never vanishes
_LARGEST = 0.45  # of the share of wrong labels
RESAMPLES = 200  # of the interval for the number of errors


@dataclass
class Assessment:
    """What is known of each labelled row. Arrays are ``(m,)`` unless stated.

    Attributes:
        models: linear, curved or both; their probabilities are averaged.
        held: ``(m, c)`` probabilities of the classes without the row itself.
        proposed: the most probable class.
        scores: ``held_loss`` (−log probability of the given label without the row), ``held_margin``
            (probability of the best other class less that of the given one), ``loss`` and
            ``self_influence`` (of the first model at the labels as given).
        order: rows by the chosen score, most suspicious first.
        noise: share of wrong labels at which the reweighted model fits best.
        expected: number of errors to expect, with its interval.
    """

    models: list[Model]
    held: np.ndarray
    proposed: np.ndarray
    scores: dict[str, np.ndarray]
    order: np.ndarray
    noise: float
    expected: tuple[int, int, int]
    accuracy: float
    facts: dict[str, Any] = field(default_factory=dict)


def assess(
    features: Features,
    y: np.ndarray,
    classes: int,
    weights: np.ndarray | None,
    groups: np.ndarray | None,
    settings: Settings,
    notes: list[str],
    step: Callable[[str], None],
) -> Assessment:
    """Fits, holds out, ranks.

    Args:
        y: ``(m,)`` class numbers.
        weights: ``(m,)`` with mean 1, or None.
        groups: ``(m,)`` group numbers; rows of one group are held out together. None: each row alone.
    """
    found = models(features, y, classes, weights, settings, notes, step)
    first = found[0].fitted
    if groups is not None:
        step("holding out group by group")
        folds = group_folds(groups, FOLDS, settings.seed)
        parts = [held_by_folds(m.design.X, y, classes, m.fitted.l2, weights, folds) for m in found]
        held, noise = np.mean(parts, axis=0), float("nan")
    else:
        held, noise = _reweighted(found, y, classes, weights, step)
    place = np.arange(len(y)), y
    others = held.copy()
    others[place] = -1.0
    scores = {
        "held_loss": -np.log(np.maximum(held[place], 1e-300)),
        "held_margin": others.max(1) - held[place],
        "loss": first.loss,
        "self_influence": first.self_influence,
    }
    order = np.argsort(-scores[settings.rank], kind="stable")
    return Assessment(
        found,
        held,
        held.argmax(1),
        scores,
        order,
        noise,
        expected_errors(held, y, settings.seed),
        float((held.argmax(1) == y).mean()),
    )


def _reweighted(
    found: list[Model], y: np.ndarray, classes: int, weights: np.ndarray | None, step: Callable[[str], None]
) -> tuple[np.ndarray, float]:
    """Held-out probabilities ``(m, c)`` of models whose wrong labels pull less, and the share of wrong labels.

    Expectation and maximisation for labels that are replaced with probability ε by another class: a row's
    weight is the probability that its label is right, given what the models say without it.
    """
    place = np.arange(len(y)), y
    held = np.mean([model.fitted.held for model in found], axis=0)
    noise = 0.1
    for turn in range(REFITS):
        right, noise = right_label(held[place], classes, noise)
        step(f"fitting again, doubtful rows weighing less ({turn + 1} of {REFITS})")
        trust = np.maximum(right, _FLOOR) * (1.0 if weights is None else weights)
        trust = trust / trust.mean()
        parts = [classifier(m.design, y, classes, m.fitted.l2, trust, m.fitted.W).held for m in found]
        held = np.mean(parts, axis=0)
    return held, right_label(held[place], classes, noise)[1]


def right_label(probability: np.ndarray, classes: int, noise: float) -> tuple[np.ndarray, float]:
    """The probability that each label is right ``(m,)``, and the ε that it agrees with.

    With p the probability of the given label, ``(1 − ε) p / ((1 − ε) p + ε (1 − p)/(c − 1))``; ε is the mean
    of one less this, found by iteration.
    """
    other = (1 - probability) / (classes - 1)
    right = np.ones_like(probability)
    for _ in range(100):
        mine = (1 - noise) * probability
        right = mine / np.maximum(mine + noise * other, 1e-300)
        new = float(np.clip(1 - right.mean(), 1e-3, _LARGEST))
        if abs(new - noise) < 1e-6:
            break
        noise = new
    return right, noise


def expected_errors(held: np.ndarray, y: np.ndarray, seed: int) -> tuple[int, int, int]:
    """How many labels are wrong: an estimate and a 90 % interval.

    A row counts when another class is more probable than that class is, on average, for its own rows, and
    more probable than the given one (confident learning, Northcutt et al. 2021). The interval is of
    resampled rows, widened to what doubtful rows allow: its lower end counts rows whose given label has less
    than a tenth of the other's probability, its upper end all rows whose label is not the most probable.
    """
    classes = held.shape[1]
    own = np.array([held[y == k, k].mean() if (y == k).any() else 1.0 for k in range(classes)])
    place = np.arange(len(y)), y
    others = np.where(held >= own, held, 0.0)
    others[place] = 0.0
    best = others.max(1)
    counted = best > held[place]
    masked = held.copy()
    masked[place] = -1
    rival = masked.max(1)
    sure, doubtful = rival > 10 * held[place], rival > held[place]
    generator = np.random.default_rng(seed)
    spread = generator.binomial(len(y), counted.mean(), RESAMPLES)
    low = min(int(sure.sum()), int(np.quantile(spread, 0.05)))
    high = max(int(doubtful.sum()), int(np.quantile(spread, 0.95)))
    return int(counted.sum()), low, high
