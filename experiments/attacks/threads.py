"""Independent units of work on several threads, one core each: the number of threads changes no byte.

Threads and not processes, because a unit spends its time inside torch, which lets the others run, and because
the network, the factor and the images are there for all of them without being sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import torch


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
