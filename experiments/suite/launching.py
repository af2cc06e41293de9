"""A sweep's jobs through any launcher: a killed worker costs its own job, and a summary ends the sweep."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from experiments.records import atomic
from experiments.suite.ending import JobFailed
from experiments.suite.folders import FAILED

Launch = Callable[[Sequence[Sequence[str]], int], Sequence[Any]]
KILLED = "a worker process was killed (for lack of memory, perhaps: then run fewer jobs at a time)"


def launched(launch: Launch, jobs: Sequence[Sequence[str]], first: int, folder: Path) -> list[Any]:
    """What ``launch`` returns for the jobs, numbered from ``first``, of the sweep in ``folder``.

    A pool of processes breaks as a whole where one of them is killed. The jobs without a record are then
    run one at a time, and only a job whose own process is killed again counts as failed.
    """
    try:
        returns = list(launch(jobs, first))
    except BrokenProcessPool:
        print(f"{KILLED}; the jobs that ended with it run again, one at a time.", file=sys.stderr)
        returns = [alone(launch, job, number, folder) for number, job in enumerate(jobs, start=first)]
    done = sum(result.status.name == "COMPLETED" for result in returns)
    print(
        f"{done} of {len(returns)} jobs of the sweep done: python -m experiments.sweep {folder} x=SETTING "
        "y=METRIC collects them.",
        flush=True,
    )
    return returns


def alone(launch: Launch, job: Sequence[str], number: int, folder: Path) -> Any:
    """One job by itself; a failed result if its process is killed."""
    from hydra.core.utils import JobReturn, JobStatus

    try:
        return launch([job], number)[0]
    except BrokenProcessPool:
        print(f"error: job {number} ({' '.join(job)}): {KILLED}.", file=sys.stderr)
        atomic.write_text(folder / str(number) / FAILED, f"{KILLED}\n")
        result = JobReturn()
        result.overrides, result.status = job, JobStatus.FAILED
        result.return_value = JobFailed(1)
        return result
