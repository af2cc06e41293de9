"""Independent units of work in several processes, one BLAS thread each: their number changes no byte.

The processes are started afresh (not forked), so none inherits threads or locks. Each has one pipe to this
process and nothing else: it ends when the pipe closes, also where this process was killed. Nothing but this
process writes files.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from typing import Any, cast

from experiments.records.errors import UserError

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_PATIENCE = 10.0  # seconds that a process told to end is given before it is killed

Work = Callable[[Any], Any]


def spread(  # noqa: C901  one loop that hands out, takes in and survives deaths
    work: Work, units: Sequence[Any], workers: int
) -> Iterator[tuple[Any, Any]]:
    """``(unit, work(unit))`` in the order in which they are finished.

    work: can be pickled; every process calls its own copy, so it may keep what it has computed. workers: 0
    does all in this process, with one BLAS thread as well. What ``work`` raises is raised here, once the
    units that the other processes had begun are finished and given out.

    Raises:
        UserError: a process died.
    """
    if workers == 0:
        from threadpoolctl import threadpool_limits

        for unit in units:
            with threadpool_limits(limits=1):
                found = work(unit)
            yield unit, found
        return
    waiting, busy = deque(units), dict[Any, Any]()  # busy: pipe to unit
    failure: Exception | None = None
    crew = _start(min(workers, len(waiting)))
    try:
        for pipe in crew:
            failure = failure or _hand(pipe, work, crew)
        while waiting or busy:
            for pipe in crew:
                if waiting and pipe not in busy and failure is None:
                    busy[pipe] = waiting.popleft()
                    failure = _hand(pipe, busy[pipe], crew)
            if failure is not None and not busy:
                break
            for pipe in cast("list[Connection]", connection.wait(list(busy))):
                unit = busy.pop(pipe)
                try:
                    fine, found = pipe.recv()
                except (EOFError, OSError):
                    failure = failure or _death(crew[pipe])
                    continue
                if fine:
                    yield unit, found
                else:
                    failure = failure or found
        if failure is not None:
            raise failure
        _dismiss(crew)
    finally:  # after an error or Ctrl-C nobody waits for the rest
        for pipe, process in crew.items():
            process.kill()
            process.join()
            pipe.close()


def _start(count: int) -> dict[Any, Any]:
    """``count`` new processes by their pipes; Ctrl-C is for this process alone to answer."""
    context, crew = multiprocessing.get_context("spawn"), {}
    resource_tracker.ensure_running()  # it unblocks SIGINT when it starts, hence before the next line
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with _one_thread():
            for _ in range(count):
                mine, other = context.Pipe()
                process = context.Process(target=_serve, args=(other,), daemon=True)
                process.start()
                other.close()  # else the end of the process would not close the pipe
                crew[mine] = process
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
    return crew


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """BLAS libraries read these variables when they are loaded, so a new process needs them from the
    start.
    """
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def _hand(pipe: Any, thing: Any, crew: dict[Any, Any]) -> UserError | None:
    """Sends to a process; the reason where it is dead."""
    try:
        pipe.send(thing)
    except OSError:
        return _death(crew[pipe])
    return None


def _death(process: Any) -> UserError:
    process.join(_PATIENCE)
    code = process.exitcode
    how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
    if code == -signal.SIGKILL:
        how += " (for lack of memory, perhaps: then give a smaller experiment.workers)"
    return UserError(
        f"a worker process {how}: finished work is kept, and the same command with the same output= resumes."
    )


def _dismiss(crew: dict[Any, Any]) -> None:
    for pipe, process in crew.items():
        pipe.close()
        process.join(_PATIENCE)


def _serve(pipe: Any) -> None:
    """The life of a process: the work, then unit after unit until the pipe closes."""
    with contextlib.suppress(EOFError, OSError):  # the other side is done, or gone
        work = pipe.recv()
        while True:
            unit = pipe.recv()
            try:
                answer = (True, work(unit))
            except Exception as error:
                error.add_note(traceback.format_exc())
                answer = (False, error)
            pipe.send(answer)
