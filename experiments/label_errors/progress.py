"""What is being done, said on stderr for whatever takes longer than two seconds."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

PATIENCE = 2.0  # seconds without a word


@contextlib.contextmanager
def said() -> Iterator[Callable[[str], None]]:
    """Gives ``step(text)``. A step that lasts over two seconds is printed, with the time since the start."""
    began = time.monotonic()
    state: dict[str, Any] = {"text": "reading", "since": time.monotonic(), "said": ""}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            text = str(state["text"])
            if time.monotonic() - float(state["since"]) > PATIENCE and state["said"] != text:
                state["said"] = text
                print(f"[{time.monotonic() - began:4.0f} s] {text} ...", file=sys.stderr, flush=True)

    def step(text: str) -> None:
        if state["text"] != text:
            state["text"], state["since"] = text, time.monotonic()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield step
    finally:
        done.set()
        thread.join()
