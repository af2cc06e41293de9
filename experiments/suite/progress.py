"""Progress with rates: a bar in a terminal, now and then a line where nobody watches."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress(total: int, label: str, every: float = 30.0) -> Iterator[Callable[[int], None]]:
    """Gives ``advance(done)`` with ``done`` units finished so far in all; ``every``: seconds."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, desc=label, unit="", dynamic_ncols=True, smoothing=0.1) as bar:
            yield lambda done: bar.update(done - bar.n) and None
        return
    start = last = time.monotonic()
    first: int | None = None

    def advance(done: int) -> None:
        nonlocal last, first
        first = done if first is None else first  # what a journal already held does not count in the rate
        now = time.monotonic()
        if now - last >= every:
            last = now
            rate = (done - first) / (now - start)
            print(f"{label}: {done}/{total}, {rate:.2f} a second", file=sys.stderr, flush=True)

    yield advance
