"""Label fixing on labels that were flipped on purpose: one repeat, and the statistics over all of them.

The protocol is the authors' (paper, section 5.4, Fig. 6): 5 % of the training labels are a step. k steps of
labels are flipped; the training points are ranked by the model of the flipped labels, without test data; the
first c steps of each ranking are checked, that is, given their true labels; the model is fitted again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from experiments.records.provenance import PeakMemory
from influence.retraining.relabelled import LogisticRefits

# "authors": s_i xᵀH⁻¹x, not s_i² xᵀH⁻¹x: their stored figure was ranked by it, before a fix of the code.
RANKINGS = ("influence", "loss", "random", "authors")
LEADS = (("influence", "loss"), ("loss", "random"), ("influence", "random"), ("authors", "loss"))
CLEAN = "clean"  # the unit of work before any flip
TRIES = 3  # timings of all self-influences from nothing
PARTS = ("fit", "self_influence", "refits")


def seed_of(k: int, repeat: int, seed: int = 0) -> int:
    """The authors' seed of repeat ``repeat`` (from 0) at ``k`` steps flipped; others where seed > 0."""
    return (120 * (k - 1) + 2 * repeat + 10_000 * seed) % 2**32


def flipped(n: int, k: int, repeat: int, step: int, seed: int = 0) -> np.ndarray:
    """Positions ``(k step,)`` of the labels flipped in one repeat."""
    return np.random.RandomState(seed_of(k, repeat, seed)).choice(n, k * step, replace=False)


def drawn(n: int, k: int, repeat: int, count: int, seed: int = 0) -> np.ndarray:
    """Positions ``(count,)`` checked at random; those of a smaller count are the first of a larger one."""
    return np.random.RandomState((seed_of(k, repeat, seed) + 1) % 2**32).choice(n, count, replace=False)


@dataclass
class LabelFixing:
    """All that a repeat needs; a unit of work is ``CLEAN`` or ``(k, repeat)``.

    X, test_X: (n, d), (m, d) dense or sparse. y, test_y: (n,), (m,) true labels −1, +1. step: labels in a
    step. shown: so many of the first suspects are kept, of the repeat ``shown_unit`` alone.
    """

    X: Any
    y: np.ndarray
    test_X: Any
    test_y: np.ndarray
    l2: float
    tolerance: float
    step: int
    checks: int
    seed: int = 0
    shown: int = 0
    shown_unit: tuple[int, int] = (0, 0)  # no repeat: k is at least 1

    @cached_property
    def refits(self) -> LogisticRefits:
        """Made once a process."""
        return LogisticRefits(self.X, self.l2)

    @cached_property
    def clean(self) -> tuple[np.ndarray, Any]:
        """θ̂ (d,) of the true labels, where every repeat starts from, and its certificate."""
        return self.refits.fit(self.y, tolerance=self.tolerance)

    def accuracy(self, theta: np.ndarray) -> float:
        """Share of the test set that is classified rightly; margin 0 counts as class −1."""
        return float(np.mean((self.test_X @ theta > 0) == (self.test_y > 0)))

    def __call__(self, unit: Any) -> dict[str, np.ndarray]:
        """The unit's arrays; ``seconds``, ``processor``, ``flops`` (parts,), ``peak_mib``: what it took."""
        found = self.true_labels() if unit == CLEAN else self.repeat(*unit)
        found["peak_mib"] = PeakMemory().read()
        # As they come back from a journal, which knows no arrays without an axis.
        return {name: np.atleast_1d(value) for name, value in found.items()}

    def true_labels(self) -> dict[str, Any]:
        """The model before any flip, and the time of all n self-influences from nothing (the best of a few,
        since this is while the other processes start).
        """
        clock = Clock(self.refits)
        theta, certificate = self.clean
        clock.lap("fit")
        tries = []
        for _ in range(TRIES):
            fresh = LogisticRefits(self.X, self.l2)  # without a Gram matrix yet
            own = Clock(fresh)
            fresh.self_influence(theta, self.y)
            own.lap("self_influence", fresh.self_influence_flops)
            tries.append({what: of_part["self_influence"] for what, of_part in own.spent.items()})
        for what, value in min(tries, key=lambda spent: spent["seconds"]).items():
            clock.spent[what]["self_influence"] = value
        return {
            "accuracy": self.accuracy(theta),
            "gradient_norm": certificate.gradient_norm,
            "value": certificate.value,
            "theta_norm": float(np.linalg.norm(theta)),
            **clock.found(),
        }

    def rank(self, theta: np.ndarray, labels: np.ndarray, k: int, repeat: int) -> dict[str, np.ndarray]:
        """Positions by suspicion, most suspicious first, as far as they are checked; and the scores."""
        losses = self.refits.losses(theta, labels)
        unsquared = self.refits.self_influence(theta, labels, squared=False)
        scores = {"authors": unsquared, "influence": unsquared * -np.expm1(-losses), "loss": losses}
        count = self.step * self.checks
        order = {name: np.argsort(-score, kind="stable") for name, score in scores.items()}
        order["random"] = drawn(len(labels), k, repeat, count, self.seed)
        return order | {f"{name}_scores": score for name, score in scores.items()}

    def repeat(self, k: int, repeat: int) -> dict[str, Any]:
        """One repeat: fixed and accuracy (rankings, checks), and the norm of every fit's gradient."""
        start, _ = self.clean
        wrong = flipped(len(self.y), k, repeat, self.step, self.seed)
        labels = self.y.copy()
        labels[wrong] *= -1
        clock = Clock(self.refits)
        theta, certificate = self.refits.fit(labels, start, self.tolerance)
        clock.lap("fit")
        ranked = self.rank(theta, labels, k, repeat)
        clock.lap("self_influence", self.refits.self_influence_flops)
        norms = [certificate.gradient_norm]
        fixed = np.zeros((len(RANKINGS), self.checks), dtype=np.int64)
        accuracy = np.zeros((len(RANKINGS), self.checks))
        for row, name in enumerate(RANKINGS):
            near, mended = theta, labels.copy()
            for column in range(self.checks):
                checked = ranked[name][: (column + 1) * self.step]
                mended[checked] = self.y[checked]
                near, certificate = self.refits.fit(mended, near, self.tolerance)
                norms.append(certificate.gradient_norm)
                fixed[row, column] = np.count_nonzero(mended != labels)
                accuracy[row, column] = self.accuracy(near)
        clock.lap("refits")
        found = {
            "fixed": fixed,
            "accuracy": accuracy,
            "flipped_accuracy": self.accuracy(theta),
            "gradient_norm": np.array(norms),
            **clock.found(),
        }
        if (k, repeat) == self.shown_unit:
            first = ranked["influence"][: self.shown]
            found |= {
                "suspects": first,
                "suspects_influence": ranked["influence_scores"][first],
                "suspects_loss": ranked["loss_scores"][first],
                "suspects_flipped": np.isin(first, wrong),
            }
        return found


class Clock:
    """Seconds, seconds of the processor, and floating-point work of the parts of one unit."""

    def __init__(self, refits: LogisticRefits) -> None:
        self.refits = refits
        self.spent = {what: dict.fromkeys(PARTS, 0.0) for what in ("seconds", "processor", "flops")}
        self._last = self._now()

    def _now(self) -> tuple[float, float, float]:
        return time.perf_counter(), time.process_time(), self.refits.flops

    def lap(self, part: str, more: float = 0.0) -> None:
        """Ends ``part``; ``more``: its work beside the products with X."""
        now = self._now()
        for of_part, before, after in zip(self.spent.values(), self._last, now, strict=True):
            of_part[part] += after - before
        self.spent["flops"][part] += more
        self._last = now

    def found(self) -> dict[str, np.ndarray]:
        """seconds, processor and flops, each (parts,)."""
        return {what: np.array(list(of_part.values())) for what, of_part in self.spent.items()}


def mean_and_error(values: np.ndarray) -> tuple[list[float], list[float]]:
    """Means over the repeats, the first axis of (repeats, checks), and their standard errors."""
    n = len(values)
    error = values.std(0, ddof=1) / n**0.5 if n > 1 else np.full(values.shape[1:], np.nan)
    return values.mean(0).tolist(), error.tolist()


def curves(fixed: np.ndarray, accuracy: np.ndarray, flips: int) -> dict[str, Any]:
    """Both panels of Fig. 6 at one number of flips.

    fixed, accuracy: (repeats, rankings, checks). flips: labels flipped. ``leads``: by how many standard
    errors of the paired difference over the repeats one ranking is ahead of another, at the check where that
    is least.
    """
    from experiments.records.agreement import least_lead

    found: dict[str, Any] = {"flipped": flips}
    for what, values in (("found", fixed / flips), ("accuracy", accuracy)):
        found[what], found[f"{what}_error"] = {}, {}
        for row, name in enumerate(RANKINGS):
            found[what][name], found[f"{what}_error"][name] = mean_and_error(values[:, row])
        of = {name: values[:, row] for row, name in enumerate(RANKINGS)}
        found[f"{what}_leads"] = {
            f"{ahead}_over_{behind}": least_lead(of[ahead], of[behind]) for ahead, behind in LEADS
        }
    return found
