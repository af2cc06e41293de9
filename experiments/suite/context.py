"""Context: what an experiment is handed — data, journal, progress bars, timers, a seeded generator."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from experiments.data import Dataset
from experiments.records import provenance
from experiments.records.errors import ConfigError, UserError
from experiments.records.journal import Journal, earlier_calls
from experiments.records.record import Record
from experiments.suite.inputs import of_files
from experiments.suite.parallel import ranks
from experiments.suite.progress import progress

# An experiment takes the type of its data from here.
__all__ = ["Context", "Dataset", "Timing", "checked_test_index"]


@dataclass
class Timing:
    """One part of a run. ``flops``, set before or inside, is its necessary floating-point work;
    ``processor`` the seconds of processors it took over all threads, where they were counted: on one thread,
    fewer than ``seconds`` where others use the machine too. ``dtype``: of most of the work, ``by_workers``:
    the seconds are a sum over threads of one core each; both choose the rate that the work is compared with.
    """

    part: str
    flops: float | None = None
    seconds: float = 0.0
    peak_mib: float = 0.0
    processor: float | None = None
    dtype: str = "float64"
    by_workers: bool = False


class Context:
    """One job in its folder. ``identity`` is the hash of the settings that decide a unit of work."""

    def __init__(self, cfg: DictConfig, output: Path, identity: str) -> None:
        self.cfg = cfg
        self.output = output
        self.identity = identity
        self.notes: list[str] = []
        self.timings: list[Timing] = []
        self.statuses: dict[str, Any] = {}
        self.started = time.time()
        self._dataset: Dataset | None = None
        self._memory = provenance.PeakMemory()
        if cfg.threads is not None:
            if cfg.threads < 1:
                raise ConfigError(f"threads={cfg.threads}: give at least 1, or null for torch's own choice.")
            torch.set_num_threads(cfg.threads)
        if str(cfg.device).startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError(f"device={cfg.device}: this machine has no CUDA device; use device=cpu.")
        self.seed()

    def seed(self) -> None:
        """Seeds python, numpy and torch: inside the job, because a sweep runs many jobs in one process."""
        random.seed(self.cfg.seed)
        np.random.seed(self.cfg.seed % 2**32)  # the legacy generator, for libraries
        torch.manual_seed(self.cfg.seed)

    def generator(self, offset: int = 0) -> torch.Generator:
        """A generator of its own, seeded by ``cfg.seed + offset``."""
        return torch.Generator(device=self.cfg.device).manual_seed(self.cfg.seed + offset)

    def data(self) -> Dataset:
        """The data set of ``cfg.data``, loaded once."""
        if self._dataset is None:
            from experiments.data import load

            settings: Any = OmegaConf.to_container(self.cfg.data, resolve=True)
            with self.timer("data"):
                self._dataset = load(settings.pop("name"), **settings)
        return self._dataset

    def journal(self, name: str, key: Any = None) -> Journal:
        """A journal for units of work that depend on the config, the data, and ``key`` (JSON-able)."""
        arrays = self.data().manifest.get("arrays", {}) if self.cfg.data is not None else {}
        identity = {"config": self.identity, "data": arrays, "files": of_files(self.cfg), "key": key}
        return ranks.shared(Journal(self.output / "journal", name, identity, self.call))

    def call(self) -> tuple[float, float]:
        """When this call of the run began, in seconds since 1970, and its peak memory so far in MiB."""
        self._memory.read()
        return self.started, max([self._memory.whole, *(timing.peak_mib for timing in self.timings)])

    def progress(self, total: int, label: str) -> AbstractContextManager[Callable[[int], None]]:
        """A bar (or lines) for ``total`` units: the context gives ``advance(done so far)``."""
        return contextlib.nullcontext(lambda done: None) if ranks.follower() else progress(total, label)

    @contextlib.contextmanager
    def timer(self, part: str, flops: float | None = None) -> Iterator[Timing]:
        """Times a part and its peak memory; kept in provenance.json, never in the record."""
        timing = Timing(part, flops)
        self._memory.reset()
        start, used = time.perf_counter(), time.process_time()
        try:
            yield timing
        finally:
            timing.seconds = time.perf_counter() - start
            timing.processor = time.process_time() - used
            timing.peak_mib = self._memory.read()
            self.timings.append(timing)

    def retrained(
        self,
        index: np.ndarray,
        work: Callable[[np.ndarray], dict[str, np.ndarray]],
        row: int | None = None,
        axis: int = 0,
        share: int = 1,
        what: str = "points retrained",
    ) -> dict[str, np.ndarray]:
        """``work(index)``: what retraining without each of ``index`` gives, by name, an entry per point.

        Names are those of the record's arrays (``row``: in that row of them), whose ``axis`` is over the
        points; ``share``: of so many calls, or how many points one of these is worth; ``what``: their name.
        A spot check has ``work`` done on a few points and takes the
        others from the record (:mod:`experiments.suite.spot`).
        """
        del row, axis, share, what
        return work(index)

    def sample(self, count: int, what: str, each: int = 1, worth: int | None = None) -> np.ndarray | None:
        """None: a run does all of ``count`` units. A spot check does the few at the positions given.

        what: what is done again, in words; each: how many of them are in a unit; worth: how many points a
        unit counts for where that is not ``each``. The rest comes from :meth:`earlier`.
        """
        del count, what, each, worth
        return None

    def first(self, count: int, what: str) -> int:
        """How many of ``count`` steps in a row are done: all, but a few by a spot check."""
        del what
        return count

    def earlier(self) -> Record | None:
        """The record that a spot check repeats; None in a run."""
        return None

    def recorded(self, name: str) -> np.ndarray | None:
        """An array of the record that a spot check goes on from; None in a run, which computes it."""
        del name
        return None

    def add_workers(self, timing: Timing, count: int, peak_mib: float) -> None:
        """Counts ``count`` worker processes, of at most ``peak_mib`` each, into the memory of a part that has
        ended.
        """
        timing.peak_mib += count * peak_mib
        timing.processor = None  # known of this process alone

    def note(self, sentence: str) -> None:
        """Adds a deviation from the paper's protocol to the record."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def status(self, name: str, solution: Any) -> None:
        """Keeps a solver's status, iterations and worst residual for the provenance."""
        self.statuses[name] = solution.summary()

    def rates(self) -> dict[str, float]:
        """GFLOP/s of matrix products in each precision in which work was counted; none unless profiling."""
        if not self.cfg.tier.profile:
            return {}
        used = sorted({timing.dtype for timing in self.timings if timing.flops is not None})
        return {dtype: provenance.matrix_rate(self.cfg.device, dtype) for dtype in used}

    def provenance(self) -> dict[str, Any]:
        """Everything about how the record came to be."""
        parts = []
        rates = self.rates()
        for timing in self.timings:
            entry: dict[str, Any] = {
                "part": timing.part,
                "seconds": round(timing.seconds, 4),
                "peak_mib": round(timing.peak_mib, 1),
            }
            if timing.processor is not None:
                entry["processor_seconds"] = round(timing.processor, 4)
            if timing.flops is not None:
                entry["gflop"] = round(timing.flops / 1e9, 3)
                entry["dtype"] = timing.dtype
                if rates and timing.seconds > 0:  # a part that had nothing to do took no time
                    rate = rates[timing.dtype] / (torch.get_num_threads() if timing.by_workers else 1)
                    entry["share_of_matrix_rate"] = round(timing.flops / 1e9 / timing.seconds / rate, 4)
            parts.append(entry)
        earlier = earlier_calls(self.output / "journal", self.started)
        return {
            "code": provenance.code(),
            "versions": provenance.versions(),
            "machine": provenance.machine(self.cfg.device) | ranks.description(),
            "data": self._dataset.manifest if self._dataset is not None else {},
            "seed": self.cfg.seed,
            "started_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started)),
            "wall_seconds": round(time.time() - self.started + sum(seconds for seconds, _ in earlier), 2),
            "seconds_of_earlier_calls": [round(seconds, 2) for seconds, _ in earlier],
            "peak_mib": round(max([self.call()[1], *(peak for _, peak in earlier)]), 1),
            "matrix_rate_gflops": {kind: round(rate, 1) for kind, rate in rates.items()},
            "timings": parts,
            "solvers": self.statuses,
        }


def checked_test_index(index: int, n: int) -> int:
    """``index``, if it is a position in a test split of ``n`` examples."""
    if not 0 <= index < n:
        raise UserError(f"experiment.test_index={index} is out of range: the test split has 0..{n - 1}.")
    return index
