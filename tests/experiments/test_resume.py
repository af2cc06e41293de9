"""Killing the retraining at random moments and resuming gives the bytes of an uninterrupted run."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.helpers import ROOT, cli, environment

KILLS = 5


def test_five_kills_and_a_resume_give_the_same_bytes(tmp_path: Path) -> None:
    settings = ["experiment=loo_linear", "tracking=none", "experiment.removed=120", "experiment.block=2"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert cli(*settings, f"output={whole}").returncode == 0

    draw = random.Random(7)
    units_at_kill = []
    for _ in range(KILLS):
        job = subprocess.Popen(
            [sys.executable, "-m", "experiments", *settings, f"output={broken}"],
            cwd=ROOT,
            env=environment(PYTHONPATH=str(ROOT)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        before = units_at_kill[-1] if units_at_kill else 0
        target = before + draw.randint(1, 9)
        deadline = time.monotonic() + 60
        while parts(broken) < target and job.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.03))  # anywhere inside a unit, or while it is written
        job.send_signal(signal.SIGKILL)
        assert job.wait() == -signal.SIGKILL, "the job had already ended: it was not killed"
        units_at_kill.append(parts(broken))
    assert units_at_kill[0] > 0
    assert units_at_kill == sorted(units_at_kill)  # what was done stayed done
    assert not (broken / "record.json").exists()

    finished = cli(*settings, f"output={broken}")
    assert finished.returncode == 0, finished.stderr
    for file in ("record.json", "arrays.npz", "loo_linear.svg"):
        assert (broken / file).read_bytes() == (whole / file).read_bytes(), file


def parts(folder: Path) -> int:
    """Finished units on disk."""
    return len(list(folder.glob("journal/*/*.npz")))
