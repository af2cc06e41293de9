"""A study of Optuna through Hydra's sweeper: its trials, collected like any sweep, resumed as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from experiments.records.record import Record
from experiments.suite.sweeps import started
from tests.helpers import cli, one_sentence

pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="pip install '.[search]'")
TRIALS = 4
STUDY = (
    *("--multirun", "experiment=loo_linear", "experiment.removed=2", "data.classes=[3,8]", "tracking=none"),
    *("hydra/sweeper=optuna", "solver.damping=interval(0.01,1)", f"hydra.sweeper.n_trials={TRIALS}"),
    *("hydra.sweeper.n_jobs=1", "hydra.sweeper.direction=maximize", "hydra.sweeper.sampler.seed=0"),
)


def test_a_study_is_run_collected_and_resumed(tmp_path: Path) -> None:
    command = (*STUDY, "optimise=solvers.cg.iterations", f"output={tmp_path}")
    done = cli(*command)
    assert done.returncode == 0, done.stderr
    records = [Record.load(tmp_path / str(trial)) for trial in range(TRIALS)]
    iterations = [record.metrics["solvers"]["cg"]["iterations"] for record in records]
    best = yaml.safe_load((tmp_path / "optimization_results.yaml").read_text())
    assert best["best_value"] == max(iterations)
    drawn = [float(job["solver.damping"]) for job in started(tmp_path)]
    assert len(set(drawn)) == TRIALS
    assert all(0.01 <= value <= 1 for value in drawn)
    assert best["best_params"]["solver.damping"] in drawn

    table = cli(
        str(tmp_path), "x=solver.damping", "y=solvers.cg.iterations", "log=x", module="experiments.sweep"
    )
    assert table.returncode == 0, table.stderr
    assert f"{TRIALS} of {TRIALS} jobs done" in table.stdout
    assert sorted(Record.load(tmp_path).arrays["x"]) == pytest.approx(sorted(drawn))

    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("[0-9]*/record.json")}
    assert len(times) == TRIALS
    assert cli(*command).returncode == 0  # the sampler's seed draws the same values
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_search_without_a_metric_is_one_sentence(tmp_path: Path) -> None:
    done = cli(*STUDY, f"output={tmp_path}")
    assert done.returncode == 2
    assert "optimise=METRIC" in one_sentence(done)
    assert not list(tmp_path.glob("[0-9]*"))
