"""Independent units of work on several threads, one core each: the number of threads changes no byte.

Threads and not processes, because a unit spends its time inside torch, which lets the others run, and because
the network, the factor and the images are there for all of them without being sent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import torch

from experiments.errors import ConfigError


def how_many(asked: int | None) -> int:
    """``asked``, or one a core of this machine where it is null; ConfigError below 1."""
    if asked is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if asked < 1:
        raise ConfigError(f"experiment.workers={asked}: give a number of threads, or null for one a core.")
    return asked


def spread(work: Callable[[Any], Any], units: Sequence[Any], workers: int) -> Iterator[tuple[Any, Any]]:
    """``(unit, work(unit))`` in the order in which they are finished; what ``work`` raises is raised here."""
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    with threadpool_limits(limits=1):
        pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
        try:
            futures = {pool.submit(work, unit): unit for unit in units}
            for future in as_completed(futures):
                yield futures.pop(future), future.result()
        finally:
            pool.shutdown(cancel_futures=True)  # the units begun are finished, the others are not begun
            torch.set_num_threads(before)
