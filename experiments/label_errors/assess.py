"""From labels to ranks: each row's label judged without the row, and how many labels may be wrong."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from experiments.data.tables.features import Features
from experiments.label_errors import neighbours
from experiments.label_errors.choose import Model, models
from experiments.label_errors.held_out import group_folds, held_by_folds
from experiments.label_errors.ranking import rounded
from experiments.label_errors.settings import Settings

FOLDS = 10  # parts that groups are held out in
RESAMPLES = 200  # of the interval for the number of errors
SHARES = 0.05  # step of the shares that the opinions are mixed with
CAUTION = 5.0  # rows' worth of evidence for equal shares


@dataclass
class Opinion:
    """Probabilities ``(m, c)`` of the classes without the row itself, and the share in the mixture."""

    name: str
    held: np.ndarray
    share: float = 1.0


@dataclass
class Assessment:
    """What is known of each labelled row. Arrays are ``(m,)`` unless stated.

    Attributes:
        models: linear, curved or both, fitted to the labels as given.
        opinions: of the models and of the nearest rows, with their shares.
        held: ``(m, c)`` the mixture of the opinions: probabilities without the row itself.
        scores: ``held_loss`` (−log probability of the given label without the row), ``held_margin``
            (probability of the best other class less that of the given one), ``loss`` and
            ``self_influence`` (both of the first model).
        order: rows by the chosen score, most suspicious first.
        expected: number of errors to expect, with its interval.
        accuracy: share of rows whose label is the most probable class without the row.
    """

    models: list[Model]
    opinions: list[Opinion]
    held: np.ndarray
    scores: dict[str, np.ndarray]
    order: np.ndarray
    expected: tuple[int, int, int]
    accuracy: float


def assess(
    features: Features,
    y: np.ndarray,
    classes: int,
    weights: np.ndarray | None,
    groups: np.ndarray | None,
    settings: Settings,
    step: Callable[[str], None],
) -> Assessment:
    """Fits, holds out, ranks.

    Args:
        features: ``(n, d)`` inputs as numbers.
        y: ``(m,)`` class numbers.
        classes: c.
        weights: ``(m,)`` with mean 1, or None.
        groups: ``(m,)`` group numbers; rows of one group are held out together. None: each row alone.
        settings: what the user chose.
        step: told what is being done.
    """
    found = models(features, y, classes, weights, settings, step)
    if groups is None:
        opinions = [Opinion(model.name, model.fitted.held) for model in found]
    else:
        step("holding out group by group")
        folds = group_folds(groups, FOLDS, settings.seed)
        opinions = [
            Opinion(m.name, held_by_folds(m.design.X, y, classes, m.fitted.l2, weights, folds)) for m in found
        ]
    if settings.model == "auto" and neighbours.affordable(features.X):
        step("asking the nearest rows")
        kernel = found[0].design.known_kernel() if found[0].name == "linear" else None
        near, count = neighbours.probabilities(features.X, y, classes, weights, groups, kernel=kernel)
        opinions.append(Opinion(f"{count} nearest rows", near))
    held = mixed(opinions, y, weights)
    place = np.arange(len(y)), y
    others = held.copy()
    others[place] = -1.0
    scores = {
        "held_loss": -np.log(np.maximum(held[place], 1e-300)),
        "held_margin": others.max(1) - held[place],
        "loss": found[0].fitted.loss,
        "self_influence": found[0].fitted.self_influence,
    }
    scores = {name: rounded(score) for name, score in scores.items()}
    order = np.argsort(-scores[settings.rank], kind="stable")
    expected = expected_errors(held, y, settings.seed)
    return Assessment(found, opinions, held, scores, order, expected, float((held.argmax(1) == y).mean()))


def mixed(opinions: list[Opinion], y: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """The mixture ``(m, c)`` whose mean loss without the row is smallest; sets the opinions' shares.

    Shares are multiples of 0.05. A Dirichlet prior worth five rows keeps them from 0 where few rows decide.
    """
    place = np.arange(len(y)), y
    given = np.stack([opinion.held[place] for opinion in opinions])  # (k, m)
    w = np.ones(len(y)) if weights is None else weights
    steps = np.arange(SHARES, 1 + SHARES / 2, SHARES)
    best, chosen = np.inf, np.ones(len(opinions)) / len(opinions)
    for shares in itertools.product(steps, repeat=len(opinions) - 1):
        last = 1 - sum(shares)
        if last < SHARES / 2 and len(opinions) > 1:
            continue
        a = np.array([*shares, last])
        loss = float((-w * np.log(np.maximum(a @ given, 1e-12))).sum() - CAUTION * np.log(a).sum())
        if loss < best:
            best, chosen = loss, a
    for opinion, share in zip(opinions, chosen, strict=True):
        opinion.share = float(share)
    return np.sum([opinion.share * opinion.held for opinion in opinions], axis=0)


def expected_errors(held: np.ndarray, y: np.ndarray, seed: int) -> tuple[int, int, int]:
    """How many labels are wrong: an estimate and an interval.

    A row counts when another class is more probable than that class is, on average, for its own rows, and
    more probable than the given one (confident learning, Northcutt et al. 2021). The interval covers the
    5 to 95 % quantiles of that count under resampling, and is widened to what doubtful rows allow: its lower
    end counts rows whose other class is ten times as probable, its upper end all rows whose label is not the
    most probable one.
    """
    classes = held.shape[1]
    own = np.array([held[y == k, k].mean() if (y == k).any() else 1.0 for k in range(classes)])
    place = np.arange(len(y)), y
    others = np.where(held >= own, held, 0.0)
    others[place] = 0.0
    counted = others.max(1) > held[place]
    masked = held.copy()
    masked[place] = -1
    rival = masked.max(1)
    sure, doubtful = rival > 10 * held[place], rival > held[place]
    draws = np.random.default_rng(seed).binomial(len(y), counted.mean(), RESAMPLES)
    low = min(int(sure.sum()), int(np.quantile(draws, 0.05)))
    high = max(int(doubtful.sum()), int(np.quantile(draws, 0.95)))
    return int(counted.sum()), low, high
