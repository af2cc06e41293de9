"""Killing the retraining at random moments and resuming gives the bytes of an uninterrupted run."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.suite.job import execute
from tests.experiments.test_configs import composed
from tests.helpers import PATIENCE, ROOT, cli, environment

KILLS = 3  # twenty of each experiment: make test-faults


def test_kills_and_a_resume_give_the_same_bytes(tmp_path: Path) -> None:
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
        deadline = time.monotonic() + PATIENCE
        while parts(broken) < target and job.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.03))  # anywhere inside a unit, or while it is written
        job.send_signal(signal.SIGKILL)
        assert job.wait() == -signal.SIGKILL, "the job had already ended: it was not killed"
        units_at_kill.append(parts(broken))
    assert units_at_kill[0] > 0
    assert units_at_kill == sorted(units_at_kill)  # what was done stayed done
    assert not (broken / "record.json").exists()

    journal = next(broken.glob("journal/*"))
    for left in (broken / ".record.json.1.tmp", journal / ".part.npz.1.tmp"):  # of a kill during a write
        left.write_bytes(b"half")
    finished = cli(*settings, f"output={broken}")
    assert finished.returncode == 0, finished.stderr
    assert not list(broken.rglob("*.tmp"))
    for file in ("record.json", "arrays.npz", "loo_linear.svg"):
        assert (broken / file).read_bytes() == (whole / file).read_bytes(), file
    once, often = (json.loads((run / "provenance.json").read_text()) for run in (whole, broken))
    assert once["seconds_of_earlier_calls"] == []
    assert 1 <= len(often["seconds_of_earlier_calls"]) <= KILLS
    assert often["wall_seconds"] > sum(often["seconds_of_earlier_calls"]) > 0


def parts(folder: Path) -> int:
    """Finished units on disk."""
    return len(list(folder.glob("journal/*/*.npz")))


@pytest.mark.parametrize(
    "name", ["components", "loo_cnn", "loo_linear", "rbf_vs_inception", "readmission", "smooth_hinge"]
)
@pytest.mark.usefixtures("undrawn")
def test_a_run_whose_record_is_lost_is_made_again_from_its_journal(
    name: str, embedded: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(embedded(name), folder)
    files = ("record.json", "arrays.npz")
    first = {file: (folder / file).read_bytes() for file in files}
    units = {path: path.stat().st_mtime_ns for path in folder.glob("journal/*/*.npz")}
    for file in ("record.json", "provenance.json"):
        (folder / file).unlink()
    execute(composed(f"experiment={name}", "tracking=none", f"output={folder}"))
    assert {file: (folder / file).read_bytes() for file in files} == first
    assert {path: path.stat().st_mtime_ns for path in units} == units  # read, not made again
    assert bool(units) == (name not in ("components", "rbf_vs_inception", "readmission"))
