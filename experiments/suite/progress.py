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
    last = time.monotonic()
    begun: tuple[int, float] | None = None  # what a journal already held does not count in the rate

    def advance(done: int) -> None:
        nonlocal last, begun
        now = time.monotonic()
        begun = begun or (done, now)
        if now - last >= every:
            last = now
            print(
                f"{label}: {done}/{total}{speed(done - begun[0], now - begun[1])}",
                file=sys.stderr,
                flush=True,
            )

    yield advance


def speed(done: int, seconds: float) -> str:
    """In words: units a second, or seconds a unit where they are slow; "" before the first."""
    if done <= 0 or seconds <= 0:
        return ""
    return f", {done / seconds:.2f} a second" if done >= seconds else f", {seconds / done:.3g} seconds each"
