"""What this machine has to give: cores that the process may use, free memory, and how many to work with."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from experiments.records.errors import ConfigError

WAITING = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}  # how OpenMP's threads wait; read once, when torch is loaded
LOOKS, PAUSE = 5, 0.02  # how often, and with how many seconds between, others are counted


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def running() -> int:
    """Threads of other processes that compute right now; 0 where the system doesn't say."""
    loadavg = Path("/proc/loadavg")
    return int(loadavg.read_text().split()[3].partition("/")[0]) - 1 if loadavg.is_file() else 0


def share_cores() -> None:
    """Lets waiting threads sleep where other processes compute too; to be called before torch is imported.

    OpenMP's threads spin while they wait for one another. On a busy machine the spinning one holds the core
    that the other one needs: two runs side by side on two cores took 2.2 times as long as one after the
    other. With sleeping threads they took 0.8 times as long. A run alone would lose up to 80 % by it in small
    products, so it is chosen on a busy machine only. It changes no number. OMP_WAIT_POLICY or GOMP_SPINCOUNT
    of one's own stay as they are.
    """
    if WAITING & set(os.environ) or "torch" in sys.modules:
        return
    looks = []
    for _ in range(LOOKS):
        looks.append(running())
        time.sleep(PAUSE)
    if sorted(looks)[LOOKS // 2] >= max(1, cores() // 2):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


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
