"""Errors in one sentence and an exit code: what stands round the ``main`` of every command."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from experiments.records.errors import ConfigError, UserError


class JobFailed(Exception):
    """A job that has already said what was wrong; ``code`` is the exit code it asks for."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def sentence(error: BaseException) -> tuple[str, int] | None:
    """The one sentence and the exit code of an error that a user can do something about; None for others."""
    if type(error).__module__.partition(".")[0] in ("hydra", "omegaconf"):  # a config that does not compose
        from experiments.suite.explaining import explain

        return explain(error), 2
    if isinstance(error, ConfigError):
        return str(error), 2
    numerics = sys.modules.get("influence.errors")  # not imported: then it cannot have raised
    if isinstance(error, UserError) or (numerics and isinstance(error, numerics.InfluenceError)):
        return str(error), 1
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        remedy = (
            "free space" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "check that path"
        )
        return (
            f"{error.strerror or error}{where}: nothing half-written was left; {remedy} or choose output=.",
            1,
        )
    return None


class WithoutHydraAnnouncement:
    """A stream that drops Hydra's announcement of a failed job, which has already said what was wrong."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes ``text`` unless it is that announcement."""
        return (
            len(text) if text.startswith("Error executing job with overrides") else self._stream.write(text)
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def warnings_in_a_sentence(debug: bool) -> Iterator[None]:
    """Prints the library's own warnings without the line of code that they come from, unless ``debug``."""
    before = warnings.formatwarning

    def short(message: Any, category: type[Warning], *where: Any, **named: Any) -> str:
        own = category.__module__.partition(".")[0] == "influence"
        return f"warning: {message}\n" if own else before(message, category, *where, **named)

    if not debug:
        warnings.formatwarning = short
    try:
        yield
    finally:
        warnings.formatwarning = before


def guarded(main: Callable[[], Any], debug: bool | None = None) -> None:
    """Runs ``main`` and turns the errors a user can mend into one sentence and an exit code."""
    debug = debug if debug is not None else "debug=true" in sys.argv[1:]
    try:
        with contextlib.redirect_stderr(WithoutHydraAnnouncement(sys.stderr)), warnings_in_a_sentence(debug):
            main()
    except JobFailed as failed:
        raise SystemExit(failed.code) from None
    except KeyboardInterrupt:
        print("interrupted: the same command with the same output= folder resumes here.", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
        raise SystemExit(1) from None
    except Exception as error:
        if debug:
            traceback.print_exc()
        known = sentence(error)
        if known is None:
            raise
        print(f"error: {known[0]}", file=sys.stderr)
        raise SystemExit(known[1]) from None
