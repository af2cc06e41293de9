"""Hands a command line to Hydra, which composes the config and runs one job or a sweep of them."""

from __future__ import annotations

import contextlib
import os
import signal
import threading

import hydra
from omegaconf import DictConfig

from experiments.records.machine import share_cores
from experiments.records.places import CONF
from experiments.suite.cli import prepare
from experiments.suite.ending import guarded


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def job(cfg: DictConfig) -> str | float:
    """One job: the folder that holds its record, or the metric that a search asks for."""
    from experiments.suite.job import answer, execute  # torch and the rest load only if something is run

    return answer(cfg, execute(cfg))


TIED = "INFLUENCE_TIED"  # set by a schedule, which holds the other end of standard input


def run() -> None:
    """Runs what ``sys.argv`` asks for; errors end in one sentence and an exit code."""
    if os.environ.pop(TIED, None):
        pipe = os.dup(0)  # what this process starts gets an empty standard input instead
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        threading.Thread(target=end_with_the_schedule, args=(pipe,), daemon=True).start()
    share_cores()
    prepare()
    guarded(job)


def end_with_the_schedule(pipe: int) -> None:
    """Waits until nobody holds the other end of ``pipe``, then ends this process and its workers.

    A schedule that is killed cannot end its jobs, and one started after it would find their folders taken.
    What a job has finished is in its journal.
    """
    with contextlib.suppress(OSError):
        while os.read(pipe, 1):
            pass
    if os.getpgrp() == os.getpid():  # a session of its own: workers are in it
        os.killpg(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
