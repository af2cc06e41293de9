"""Whole runs of an experiment, undisturbed or disturbed, and what must be the same after either."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.helpers import PATIENCE, ROOT, cli, environment

# A few seconds each, and enough units of work that a kill can meet any of them.
SETTINGS = {
    "loo_linear": ["experiment=loo_linear", "experiment.removed=120", "experiment.block=2"],
    "readmission": ["experiment=readmission"],
    "spam": ["experiment=spam", "experiment.repeats=60", "experiment.workers=2"],
    "loo_cnn": [
        "experiment=loo_cnn",
        "experiment.steps=1100",
        "experiment.removed=8",
        "experiment.retraining_steps=20",
        "experiment.block=2",
        "experiment.eigenvalues=0",
        "solver.damping=0.3",
    ],
}


def settings_of(name: str) -> list[str]:
    return [*SETTINGS.get(name, [f"experiment={name}"]), "tracking=none", "threads=1"]


def finished(name: str, folder: Path, **extra: str) -> dict[str, bytes]:
    """Runs to the end and gives the bytes that must not depend on how it got there."""
    done = cli(*settings_of(name), f"output={folder}", **extra)
    assert done.returncode == 0, done.stderr
    return result_of(folder)


def result_of(folder: Path) -> dict[str, bytes]:
    names = ["record.json", "arrays.npz", *(path.name for path in folder.glob("*.svg"))]
    return {name: (folder / name).read_bytes() for name in names}


def start(name: str, folder: Path, limit: int | None = None, **extra: str) -> subprocess.Popen[str]:
    """A run in the background; ``limit``: the largest file it may write, in bytes."""

    def child() -> None:
        # A shell starts background jobs deaf to SIGINT and SIGQUIT, nohup to SIGHUP; children inherit that.
        for ignored in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
            signal.signal(ignored, signal.SIG_DFL)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [sys.executable, "-m", "experiments", *settings_of(name), f"output={folder}"],
        cwd=ROOT,
        env=environment(**{"PYTHONPATH": str(ROOT)} | extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=child,
    )


def strike(name: str, folder: Path, draw: random.Random, how: signal.Signals, longest: float) -> bool:
    """Sends ``how`` at a random moment of a run of ``longest`` seconds; False where it had already ended.

    Half of the moments are drawn from the whole run, half from just after a unit of work landed: that is
    when files are being written.
    """
    job = start(name, folder)
    before = len(parts(folder))
    if draw.random() < 0.5:
        time.sleep(draw.uniform(0.05, longest))
    else:
        deadline = time.monotonic() + longest
        while len(parts(folder)) == before and job.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.05))
    alive = job.poll() is None
    if alive:
        os.kill(job.pid, how)
    _, error = job.communicate(timeout=PATIENCE)
    assert alive or job.returncode == 0, error
    return alive


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("journal/*/*.npz"))


def named(index: Path) -> list[Path]:
    """The parts that a journal's index names, in its order: finished units; any other was in flight."""
    lines = index.read_bytes().splitlines() if index.exists() else []
    return [index.parent / json.loads(line)["file"] for line in lines if line.endswith(b"}")]


def debris(folder: Path) -> list[str]:
    """Half-written files that were left behind."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.tmp"))
