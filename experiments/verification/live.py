"""What a person sees while the experiments behind the claims run: the plan, progress, the time left."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from experiments.verification.schedule import Job, Schedule, clock

_LINE_EVERY = 60.0  # seconds between lines if nobody watches a terminal
_SHOWN = 44  # characters of what a job says
_WIDTH = 79


def plan(schedule: Schedule) -> str:
    """The jobs in order with the minutes that they are expected to take."""
    lines = [f"{'run':<34}{'minutes':>9}{'GiB':>6}  cores"]
    for job in schedule.jobs:
        minutes = "?" if job.spec.minutes is None else f"{job.spec.minutes:.1f}"
        lines.append(f"{job.name:<34}{minutes:>9}{job.gib:>6.1f}  {'all' if job.spec.all_cores else 'one'}")
    lines.append(
        f"{len(schedule.jobs)} runs, about {schedule.minutes_left():.0f} minutes on {schedule.cores} cores"
    )
    return "\n".join(lines)


def status(job: Job) -> str:
    """Where a job stands, in a few words."""
    if job.process is not None:
        return "running"
    if job.code is None:
        return "waits"
    return "done" if job.code == 0 else "failed"


@contextlib.contextmanager
def display(schedule: Schedule) -> Iterator[Callable[[Schedule], None]]:
    """Gives ``show(schedule)``: a live table in a terminal, lines elsewhere. Prints the plan first."""
    print(plan(schedule), file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.live import Live

        with Live(console=Console(stderr=True), refresh_per_second=2, transient=True) as table:
            yield lambda found: table.update(_table(found))
        _lines(schedule)(schedule)
        return
    yield _lines(schedule)


def _table(schedule: Schedule) -> Any:
    from rich.table import Table
    from rich.text import Text

    done = sum(job.code is not None for job in schedule.jobs)
    table = Table(
        title=f"{done} of {len(schedule.jobs)} runs, about {schedule.minutes_left():.0f} minutes left",
        box=None,
        width=_WIDTH,
    )
    for name in ("run", "", "time", "progress"):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for job in schedule.jobs:
        if job.process is not None or job.code:
            said = job.last_line()
            table.add_row(job.name, status(job), clock(job.took), Text(said))  # markup in it is not read
    waiting = len(schedule.waiting())
    table.caption = f"{waiting} more wait" if waiting else ""
    return table


def _lines(schedule: Schedule) -> Callable[[Schedule], None]:
    seen = {job.name: "waits" for job in schedule.jobs}
    last = time.monotonic()

    def show(found: Schedule) -> None:
        nonlocal last
        for job in found.jobs:
            now = status(job)
            if now != seen[job.name]:
                seen[job.name] = now
                took = f" after {clock(job.took)}" if now in ("done", "failed") else ""
                said = f": {job.last_line()}" if now == "failed" else ""
                print(f"{job.name} {now}{took}{said}", file=sys.stderr, flush=True)
        if time.monotonic() - last >= _LINE_EVERY:
            last = time.monotonic()
            for job in found.running():
                print(
                    f"  {job.name} {clock(job.took)}: {job.last_line()[:_SHOWN]}", file=sys.stderr, flush=True
                )
            print(f"  about {found.minutes_left():.0f} minutes left", file=sys.stderr, flush=True)

    return show
