"""For every test: no process that it started is alive after it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator

import pytest

from tests.warm import MARK

_PR_SET_CHILD_SUBREAPER = 36
# multiprocessing's own helper of this process, and the one that tests.warm forks; both end with it.
_KEPT = (b"resource_tracker", MARK)


def content(path: str) -> bytes:
    """What a file of /proc holds; nothing if its process has ended, or on another system."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return b""


def descendants(pid: int) -> dict[int, bytes]:
    """The living processes below ``pid`` by id, with their command lines (Linux; elsewhere none).

    Every test asks twice, so it is written for speed.
    """
    found: dict[int, bytes] = {}
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for task in tasks:
        for child in map(int, content(f"/proc/{pid}/task/{task}/children").split()):
            command = content(f"/proc/{child}/cmdline")
            if command and not any(kept in command for kept in _KEPT):
                found[child] = command
            found |= descendants(child)
    return found


@pytest.fixture(autouse=True)
def no_child_survives_its_test() -> Iterator[None]:
    """Kills what a test left running, and fails the test that did."""
    with contextlib.suppress(OSError, AttributeError):  # orphans of a killed process come to this one
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = descendants(os.getpid())
    yield
    left = {pid: command for pid, command in descendants(os.getpid()).items() if pid not in before}
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
    names = [command.replace(b"\0", b" ").decode(errors="replace")[:120] for command in left.values()]
    assert not left, f"processes outlived their test and were killed: {names}"
