"""Runs the experiments behind the claims, several at a time, each in a process of its own.

A job that uses all cores by itself runs alone. The others run side by side, one core and one thread each,
as far as memory allows. The paper's figures come first, then extensions and sweeps. In both parts the
longest come first. A job whose command reads the record of another job of the same run waits for that job
and reads its new record, so no job is judged against a committed record that this run makes again.

Killed at any moment, even by SIGKILL, it leaves no job running, and the same call resumes: every job has its
own journal, and a finished one ends at once. ``schedule.json`` keeps the seconds that each job took, over all
calls. The time left is estimated from the minutes of the records, times the pace of the jobs that have ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from experiments.records import atomic
from experiments.records.machine import available_gib, cores
from experiments.records.places import WORK
from experiments.verification.claims import Spec

GIB = 2.0  # of a job whose claims file names no figure
TIED = "INFLUENCE_TIED"  # experiments.suite.launch then ends with the pipe that is its standard input
_KEEP_EVERY = 10.0  # seconds between two writings of schedule.json while jobs run
_PATIENCE = 20.0  # seconds between SIGTERM and SIGKILL
_JUDGED = 120.0  # seconds that ended jobs were expected to take, before their pace is believed
_PACES = (0.2, 10.0)
_TAIL = 4096  # bytes of a log that are read for its last line


@dataclass
class Job:
    """One run of the schedule."""

    spec: Spec
    folder: Path
    log: Path
    steps: list[list[str]]
    needs: set[str]
    seconds_before: float = 0.0
    started: float = 0.0
    seconds: float = 0.0
    code: int | None = None
    process: subprocess.Popen[bytes] | None = None
    stream: IO[bytes] | None = None
    step: int = 0

    @property
    def name(self) -> str:
        """The run's name: its folder below ``runs``."""
        return self.spec.name

    @property
    def gib(self) -> float:
        """Peak memory, measured earlier."""
        return self.spec.gib or GIB

    @property
    def took(self) -> float:
        """Seconds so far, over all calls."""
        now = time.monotonic() - self.started if self.process is not None else self.seconds
        return self.seconds_before + now

    def last_line(self) -> str:
        """What the job said last: its progress."""
        try:
            with open(self.log, "rb") as file:
                file.seek(max(0, self.log.stat().st_size - _TAIL))
                lines = file.read().decode(errors="replace").replace("\r", "\n").splitlines()
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


@dataclass
class Schedule:
    """All jobs of one call.

    Args:
        specs: what is to run.
        output: folder of the verification; records go to ``runs/NAME``, logs to ``logs/NAME.log``.
        extra: overrides added to every command, such as the device.
        room: cores and GiB to use; what the machine has by default.
    """

    specs: Sequence[Spec]
    output: Path
    extra: Sequence[str] = ()
    room: tuple[int, float] | None = None
    jobs: list[Job] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cores, self.gib = self.room or (cores(), available_gib())
        self._begun = self._kept = time.monotonic()
        before, self.wall = (
            self._seconds(self.path),
            {"all": 0.0, "figures": 0.0} | self._seconds(self.wall_path),
        )
        self._wall_before = dict(self.wall)
        names = {spec.name for spec in self.specs}
        for spec in sorted(self.specs, key=order):
            folder, log = self.output / "runs" / spec.name, self.output / "logs" / f"{spec.name}.log"
            steps, needs = commands(spec, folder, self.output / "runs", names, self.extra)
            self.jobs.append(Job(spec, folder, log, steps, needs, before.get(spec.name, 0.0)))

    # -- what is kept between calls ------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """Seconds of every job."""
        return self.output / "schedule.json"

    @property
    def wall_path(self) -> Path:
        """Seconds of all calls, and of them those until the last of the paper's figures was done."""
        return self.output / "wall.json"

    @staticmethod
    def _seconds(path: Path) -> dict[str, float]:
        try:
            kept = json.loads(path.read_text())
            return {str(name): float(seconds) for name, seconds in kept.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            return {}

    def _keep(self) -> None:
        self._kept = time.monotonic()
        atomic.write_json(self.path, {job.name: round(job.took, 1) for job in self.jobs})
        atomic.write_json(self.wall_path, {name: round(seconds, 1) for name, seconds in self.wall.items()})

    def _tick(self) -> None:
        """Counts this call's seconds; those of the figures as long as one of them has not ended."""
        now = time.monotonic() - self._begun
        self.wall["all"] = self._wall_before["all"] + now
        if any(job.code is None for job in self.jobs if not is_extra(job.spec)):
            self.wall["figures"] = self._wall_before["figures"] + now

    # -- running -------------------------------------------------------------------------------------------

    def running(self) -> list[Job]:
        """Jobs with a process."""
        return [job for job in self.jobs if job.process is not None]

    def waiting(self) -> list[Job]:
        """Jobs that have not begun in this call."""
        return [job for job in self.jobs if job.process is None and job.code is None]

    def pace(self) -> float:
        """How many times as long as expected the ended jobs took: this machine against the records'."""
        ended = [job for job in self.jobs if job.code == 0 and job.spec.minutes]
        expected = 60 * sum(job.spec.minutes or 0.0 for job in ended)
        if expected < _JUDGED:
            return 1.0
        return min(_PACES[1], max(_PACES[0], sum(job.took for job in ended) / expected))

    def minutes_left(self) -> float:
        """Estimated from the minutes that stand with the claims, and the pace so far.

        The jobs of one core each share the cores, but the longest of them is not over before its own end. A
        job is never expected to be over time.
        """
        alone, shared = 0.0, [0.0]
        for job in (*self.running(), *self.waiting()):
            rest = max(0.1, (job.spec.minutes or 1.0) * self.pace() - job.took / 60)
            if job.spec.all_cores:
                alone += rest
            else:
                shared.append(rest)
        return alone + max(sum(shared) / max(1, self.cores), *shared)

    def total(self) -> str:
        """What all jobs took, over all calls, in words."""
        seconds = sum(job.took for job in self.jobs)
        wall = f"{clock(self.wall['all'])} on {self.cores} cores"
        found = f"{len(self.jobs)} runs, {clock(seconds)} of their time, {wall}"
        if self._wall_before["all"]:
            found += f" ({clock(time.monotonic() - self._begun)} of it in this call)"
        if any(is_extra(job.spec) for job in self.jobs):
            found += f"; the paper's own figures were done after {clock(self.wall['figures'])}"
        return found

    def run(self, show: Callable[[Schedule], None] = lambda _: None, every: float = 0.2) -> dict[str, Job]:
        """Runs all jobs; a failed one does not stop the others.

        ``show`` is called again and again while jobs run. SIGTERM ends the children as Ctrl-C does.
        """
        earlier = signal.signal(signal.SIGTERM, _interrupt)
        try:
            while self.waiting() or self.running():
                self._start_what_fits()
                show(self)
                time.sleep(every)
                self._tick()
                for job in self.running():
                    self._advance(job)
                if time.monotonic() - self._kept > _KEEP_EVERY:
                    self._keep()
        finally:
            self._end_children()
            self._keep()
            signal.signal(signal.SIGTERM, earlier)
        show(self)
        return {job.name: job for job in self.jobs}

    def _start_what_fits(self) -> None:
        for job in self.waiting():
            if job.needs & {other.name for other in self.jobs if other.code is None}:
                continue  # it reads a record that is still being made
            busy = self.running()
            alone = job.spec.all_cores or any(other.spec.all_cores for other in busy)
            fits = len(busy) < self.cores and sum(other.gib for other in busy) + job.gib <= self.gib
            if busy and (alone or not fits):
                return  # in order: a long job is not overtaken for ever by short ones
            self._begin(job)

    def _begin(self, job: Job) -> None:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        job.stream = job.log.open("wb")  # closed in _finish, when the last step has ended
        job.started, job.step = time.monotonic(), 0
        self._step(job)

    def _step(self, job: Job) -> None:
        environment = dict(os.environ) | {TIED: "1"}
        if not job.spec.all_cores:  # the numbers then do not depend on how many jobs run side by side
            environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        command = [sys.executable, "-m", *job.steps[job.step]]
        job.process = subprocess.Popen(
            command, cwd=WORK, env=environment, stdin=subprocess.PIPE, stdout=job.stream,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def _advance(self, job: Job) -> None:
        code = job.process.poll() if job.process is not None else None
        if code is None:
            return
        _let_go(job)
        job.step += 1
        if job.step < len(job.steps):  # the collector is asked even if a job of the sweep failed
            self._step(job)
            return
        self._finish(job, code)

    def _finish(self, job: Job, code: int) -> None:
        job.seconds, job.process, job.code = time.monotonic() - job.started, None, code
        if job.stream is not None:
            job.stream.close()
        self._keep()

    def _end_children(self) -> None:
        ending = self.running()
        for job in ending:
            _signal_group(job, signal.SIGTERM)
        deadline = time.monotonic() + _PATIENCE
        for job in ending:
            assert job.process is not None
            try:
                job.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal_group(job, signal.SIGKILL)
                job.process.wait()
            _let_go(job)
            self._finish(job, -signal.SIGTERM)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _let_go(job: Job) -> None:
    """Closes this end of the pipe of a process that has ended."""
    if job.process is not None and job.process.stdin is not None:
        job.process.stdin.close()


def _signal_group(job: Job, number: int) -> None:
    if job.process is None:
        return
    with contextlib.suppress(ProcessLookupError):  # it ended by itself meanwhile
        os.killpg(job.process.pid, number)


def clock(seconds: float) -> str:
    """``m:ss``, or ``h:mm:ss`` from an hour on."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def order(spec: Spec) -> tuple[bool, bool, float]:
    """The paper's figures before extensions and sweeps; those that need all cores first; then the longest."""
    return is_extra(spec), not spec.all_cores, -(spec.minutes or 0.0)


def is_extra(spec: Spec) -> bool:
    """Whether a run is none of the paper's own figures: an extension or a sweep."""
    return spec.extension or bool(spec.sweep)


def commands(
    spec: Spec, folder: Path, runs: Path, names: set[str], extra: Sequence[str]
) -> tuple[list[list[str]], set[str]]:
    """The processes of one run, and the runs whose new records it reads.

    ``results/NAME`` in an override is replaced by this call's own record if NAME is among ``names``.
    """
    needs: set[str] = set()

    def own(match: re.Match[str]) -> str:
        if match[1] not in names:
            return match[0]
        needs.add(match[1])
        return str(runs / match[1])

    arguments = [re.sub(r"(?<==)results/([\w/]+)$", own, item) for item in spec.arguments]
    own_settings = [f"output={folder}", "tracking=none", *extra]
    steps = [["experiments", *["--multirun"] * bool(spec.sweep), *arguments, *own_settings]]
    if spec.sweep:
        steps.append(["experiments.sweep", str(folder), *shlex.split(spec.sweep)])
    return steps, needs
