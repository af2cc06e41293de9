"""Independent units of work on several threads, one core each: the number of threads changes no byte.

Threads and not processes, because a unit spends its time inside torch, which lets the others run, and because
the network, the factor and the images are there for all of them without being sent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import torch

from experiments.suite.parallel.memory import give_back


class Count:
    """How many of something are done, told by all threads: ``advance`` gets the sum so far."""

    def __init__(self, advance: Callable[[int], None], done: int = 0) -> None:
        self.advance, self.done = advance, done
        self._lock = threading.Lock()

    def __call__(self, more: int) -> None:
        with self._lock:
            self.done += more
            self.advance(self.done)


def spread(
    work: Callable[[Any, Count], Any], units: Sequence[Any], workers: int, count: Count
) -> Iterator[tuple[Any, Any]]:
    """``(unit, work(unit, count))`` in the order in which they are finished.

    ``work`` tells ``count`` what it has done on the way; what it raises is raised here.
    """
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    with threadpool_limits(limits=1):
        pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
        try:
            futures = {pool.submit(work, unit, count): unit for unit in units}
            for future in as_completed(futures):
                unit, part = futures.pop(future), future.result()
                del future
                give_back()
                yield unit, part
        finally:
            pool.shutdown(cancel_futures=True)  # the units begun are finished, the others are not begun
            torch.set_num_threads(before)
