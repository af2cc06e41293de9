"""What this machine has to give: cores that the process may use, free memory, and how many to work with."""

from __future__ import annotations

import os
from pathlib import Path

from experiments.records.errors import ConfigError


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers(asked: int | None, what: str, least: int) -> int:
    """``experiment.workers``: so many ``what`` (processes, threads), one per core where it is null.

    Raises:
        ConfigError: fewer than ``least``.
    """
    if asked is None:
        return cores()
    if asked < least:
        none = ", 0 for none beside this one" if least == 0 else ""
        raise ConfigError(
            f"experiment.workers={asked}: give a number of {what}{none}, or null for one per core."
        )
    return asked


def available_gib() -> float:
    """Memory that is free without swapping; infinite if the system doesn't say."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) / 2**20
    return float("inf")
