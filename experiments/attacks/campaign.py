"""Fig. 5's attempts on all test images, a stage a number of training images, spread over threads.

A unit of work is a chunk of attacks side by side, always the same one, computed on one thread: neither the
number of threads nor a kill in between changes a byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from omegaconf import DictConfig

from experiments.attacks import outcome
from experiments.attacks.attempt import Attempts, Setting, Unit, Verifications
from experiments.attacks.clean import Clean
from experiments.records.journal import Journal
from experiments.suite.context import Context
from experiments.suite.parallel.threads import Count, spread


class Campaign:
    """All attempts of one run; ``chosen (k,)`` are the positions of the test images attacked."""

    def __init__(
        self, context: Context, clean: Clean, settings: DictConfig, chosen: np.ndarray, workers: int
    ) -> None:
        self.context, self.clean, self.settings, self.chosen = context, clean, settings, chosen
        self.workers = workers
        self.setting = Setting(
            clean.backbone, clean.refits, settings.alpha, settings.iterations, settings.training_tolerance
        )
        self.journal = context.journal("attempts")

    def units(self, name: str, rows: np.ndarray, places: np.ndarray, stop: bool = True) -> Iterator[Unit]:
        """Chunks of the attacks ``name`` at ``places``: ``side_by_side`` training images, or one attack."""
        size = max(1, self.settings.side_by_side // rows.shape[1])
        for start in range(0, len(places), size):
            chunk = places[start : start + size]
            key = f"{name}, {chunk[0]}-{chunk[-1]}"
            targets = self.clean.targets(self.chosen[chunk])
            yield Unit(key, chunk, rows[chunk], self.clean.data.train.X[rows[chunk]], targets, stop)

    def work(self, what: Any, journal: Journal, units: Sequence[Unit], label: str) -> None:
        """Brings every unit that is not in ``journal`` there."""
        missing = [unit for unit in units if journal.get(unit.key) is None]
        total = sum(len(unit.places) for unit in units)
        done = total - sum(len(unit.places) for unit in missing)
        with self.context.progress(total, label) as advance:
            count = Count(advance, done)
            for unit, part in spread(what, missing, self.workers, count) if missing else ():
                journal.put(unit.key, part)

    def stage(self, name: str, rows: np.ndarray, left: np.ndarray, stop: bool = True) -> outcome.Stage:
        """The attempts ``name`` through the training images ``rows (k, m)`` on the test images ``left``."""
        units = list(self.units(name, rows, left, stop))
        self.work(Attempts(self.setting), self.journal, units, name)
        stage = outcome.Stage(rows.shape[1], len(self.chosen))
        for unit in units:
            stage.add(unit.key, unit.places, self.journal.get(unit.key) or {})
        outcome.timing(self.context, name, stage, self.clean)
        return stage

    def full_length(self, rows: np.ndarray) -> dict[str, Any]:
        """How far all iterations move the features of the best ranked image, for the first test images.

        The flips stop early, so their movement says how much was needed; this says how much there is.
        """
        few = np.arange(min(self.settings.full_length, len(self.chosen)))
        stage = self.stage("full length", rows, few, stop=False)
        return {
            "test_images": len(few),
            "movement": outcome.median(stage.movement[few]),
            "movement_over_class_distance": outcome.median(stage.movement[few] / self.clean.distance),
            "flipped": int(stage.flipped[few].sum()),
        }

    def verify(self, stages: dict[str, outcome.Stage], rows: dict[str, np.ndarray]) -> None:
        """Has every flip checked from its saved images; fills the stages' ``checks``."""
        checks = self.context.journal("verification")
        units = {
            name: [
                unit
                for unit in self.units(name, rows[name], np.flatnonzero(stage.tried))
                if stage.flipped[unit.places].any()
            ]
            for name, stage in stages.items()
        }
        everything = [unit for name in stages for unit in units[name]]
        self.work(Verifications(self.setting, self.journal), checks, everything, "verification")
        for name, stage in stages.items():
            stage.checks = [checks.get(unit.key) or {} for unit in units[name]]
