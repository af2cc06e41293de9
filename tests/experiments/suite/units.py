"""Work for the tests of ``parallel.processes``, in a module of its own: a new process imports little."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from experiments.records.errors import UserError


class Odd:
    """Squares a number; other units end in other ways."""

    def __call__(self, unit: Any) -> object:
        if unit == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if unit == "exit":
            os._exit(3)
        if unit == "raises":
            raise UserError("this unit is bad.")
        if unit == "threads":
            return os.environ["OMP_NUM_THREADS"], os.getpid()
        time.sleep(0.2)
        return unit * unit
