"""Sweeps: the collector tells done, failed and missing; a job alone is the job of a sweep, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.cli import CONF
from experiments.errors import UserError
from experiments.sweep import collect, expected
from tests.helpers import cli

SMALL = ("experiment=smooth_hinge", "tracking=none", "experiment.removed=3")
ASK = ("sweep=temperature", "x=experiment.temperatures", "y=temperatures.*.pearson", "log=x")


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "sweep").glob("*.yaml")))
def test_every_sweep_says_its_jobs(name: str) -> None:
    jobs = expected(name)
    assert len(jobs) >= 6
    assert len({str(job) for job in jobs}) == len(jobs)


def test_an_unknown_sweep_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="temperature"):
        collect(tmp_path, "nothing", "pearson")


def test_jobs_of_a_sweep_are_the_jobs_alone_and_what_is_lost_is_seen(tmp_path: Path) -> None:
    sweep, alone = tmp_path / "sweep", tmp_path / "alone"
    done = cli("--multirun", *SMALL, "sweep=temperature", f"output={sweep}")
    assert done.returncode == 0, done.stderr
    third = expected("temperature")[2]["experiment.temperatures"]
    assert cli(*SMALL, f"experiment.temperatures={third}", f"output={alone}").returncode == 0
    for file in ("record.json", "arrays.npz"):
        assert (sweep / "2" / file).read_bytes() == (alone / file).read_bytes()
    (sweep / "1" / "record.json").unlink()  # as a job that failed leaves its folder
    for file in (sweep / "4").glob("**/*"):
        if file.is_file():
            file.unlink()
    (sweep / "4").rename(tmp_path / "gone")
    found = cli(str(sweep), *ASK, module="experiments.sweep")
    assert found.returncode == 1
    assert [row["status"] for row in collect(sweep, "temperature", "temperatures.*.pearson")] == [
        *("done", "failed", "done", "done", "missing", "done")
    ]
    assert (sweep / "sweep.svg").stat().st_size > 1000
