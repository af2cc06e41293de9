"""Any --multirun is collected; jobs that differ in seeds are averaged; a killed worker costs its own job."""

from __future__ import annotations

import csv
import math
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import t

from experiments.records.errors import UserError
from experiments.records.record import Record
from experiments.suite.folders import FAILED
from experiments.suite.launching import launched
from experiments.suite.sweeps import Point, collect, points_of, product, record_of, table_of
from tests.helpers import ROOT, cli

DEPTHS, SEEDS = (200, 800), range(3)
SWEEP = (
    *("--multirun", "experiment=loo_linear", "solver=lissa", "solver.raise_on_failure=false"),
    *("experiment.removed=2", "data.classes=[3,8]", "tracking=none", "threads=1"),
    *(f"solver.depth={','.join(map(str, DEPTHS))}", f"seed={','.join(map(str, SEEDS))}"),
)
KILLER = """\
import os, signal, sys, threading
flag = {flag!r}
if any("popen_loky" in word for word in getattr(sys, "orig_argv", [])):
    try:
        os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()
    except FileExistsError:
        pass
"""


def test_a_sweep_over_seeds_has_intervals_though_a_worker_was_killed(tmp_path: Path) -> None:
    (tmp_path / "killer").mkdir()
    flag, folder = tmp_path / "killed", tmp_path / "sweep"
    (tmp_path / "killer" / "sitecustomize.py").write_text(KILLER.format(flag=str(flag)))
    done = cli(
        *SWEEP, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"output={folder}",
        PYTHONPATH=f"{ROOT}:{tmp_path / 'killer'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert flag.exists()
    assert "a worker process was killed" in done.stderr
    assert f"{len(DEPTHS) * len(SEEDS)} of 6 jobs of the sweep done" in done.stdout
    assert "job 5 (" in done.stdout

    check_means(folder, DEPTHS, len(SEEDS))


Y = "solvers.lissa.scores_relative_error"


def check_means(folder: Path, depths: tuple[int, ...], seeds: int) -> None:
    """Collects the sweep: each mean and interval is that of its jobs' own records."""
    table = cli(str(folder), "x=solver.depth", f"y={Y}", "log=xy", module="experiments.sweep")
    assert table.returncode == 0, table.stderr
    assert "mean over seeds, 95 % interval, n" in table.stdout
    rows = list(csv.DictReader((folder / "sweep.csv").open()))
    assert [row["n"] for row in rows] == [str(seeds)] * len(depths)
    record = Record.load(folder)
    assert record.arrays["seeds"].tolist() == [seeds] * len(depths)
    for place, depth in enumerate(depths):
        jobs = [Record.load(folder / str(place * seeds + seed)) for seed in range(seeds)]
        values = [job.metrics["solvers"]["lissa"]["scores_relative_error"] for job in jobs]
        assert len(set(values)) == seeds  # the seed reaches the sampled batches
        half = t.ppf(0.975, seeds - 1) * np.std(values, ddof=1) / math.sqrt(seeds)
        assert record.arrays["x"][place] == depth
        assert record.arrays["y"][place] == pytest.approx(np.mean(values))
        assert record.arrays["half_width"][place] == pytest.approx(half)
        assert float(rows[place]["high"]) == pytest.approx(np.mean(values) + half)
    assert (folder / "sweep_multirun.svg").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_three_settings_of_five_seeds_have_intervals_under_every_launcher(
    launcher: str, tmp_path: Path
) -> None:
    depths, seeds = (50, 200, 800), range(5)
    swept = (f"solver.depth={','.join(map(str, depths))}", f"seed={','.join(map(str, seeds))}")
    done = cli(*SWEEP[:-2], *swept, f"hydra/launcher={launcher}", f"output={tmp_path}", timeout=1800)
    assert done.returncode == 0, done.stderr
    assert "15 of 15 jobs of the sweep done" in done.stdout
    check_means(tmp_path, depths, len(seeds))


class Result:
    """What a launcher returns of a job that ended."""

    class status:
        name = "COMPLETED"


def test_a_job_whose_process_is_killed_every_time_costs_itself_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[Any] = []

    def launch(jobs: Any, first: int) -> list[Any]:
        started.append((len(jobs), first))
        if any("seed=1" in job for job in jobs):
            raise BrokenProcessPool
        return [Result() for _ in jobs]

    found = launched(launch, [["seed=0"], ["seed=1"], ["seed=2"]], 4, tmp_path)
    assert started == [(3, 4), (1, 4), (1, 5), (1, 6)]
    assert [result.status.name for result in found] == ["COMPLETED", "FAILED", "COMPLETED"]
    said = capsys.readouterr()
    assert "error: job 5 (seed=1): a worker process was killed" in said.err
    assert "2 of 3 jobs of the sweep done" in said.out
    assert "killed" in (tmp_path / "5" / FAILED).read_text()


def test_the_jobs_of_any_multirun_are_hydra_s_own_order() -> None:
    jobs = product(
        ["solver=cg,lissa", "experiment=loo_linear", "seed=range(0,3)", "output=o", "solver=exact"]
    )
    assert jobs == [{"solver": "exact", "experiment": "loo_linear", "seed": str(seed)} for seed in range(3)]
    with pytest.raises(UserError, match="continuous"):
        product(["solver.damping=interval(0,1)"])


def test_a_folder_that_no_sweep_made_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"multirun\.yaml"):
        collect(tmp_path, None, "pearson")


def test_seeds_are_averaged_within_a_line_and_single_jobs_have_no_interval(tmp_path: Path) -> None:
    rows = []
    for number, (solver, seed) in enumerate([("cg", 0), ("cg", 1), ("exact", 0)]):
        value = number + 1.0
        Record("loo_linear", {"pearson": value}, data="digits", tier="smoke").save(tmp_path / str(number))
        overrides = {"solver": solver, "seed": str(seed), "solver.damping": "0.5"}
        row = {"job": number, "overrides": overrides, "status": "done", "value": value}
        rows.append(row | {"data": "digits", "why": None})
    points = points_of(rows, tmp_path, "solver.damping", "")
    assert [(point.line, point.mean, len(point.y)) for point in points] == [
        ("solver cg", 1.5, 2),
        ("solver exact", 3.0, 1),
    ]
    assert points[0].half_width == pytest.approx(t.ppf(0.975, 1) * 0.5)
    assert math.isnan(points[1].half_width)
    record = record_of("multirun", rows, tmp_path, "solver.damping", "pearson", "")
    assert record.metrics["order"] == ["solver cg", "solver exact"]
    lines = table_of(points, "solver.damping", "pearson").splitlines()
    assert lines[0] == "solver,solver.damping,pearson,low,high,n"
    assert lines[2] == "exact,0.5,3.0,,,1"
    assert Point("all", {}, [1.0], [2.0]).at == 1.0
