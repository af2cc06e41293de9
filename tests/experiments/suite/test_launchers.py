"""Jobs at once under a launcher are the same one by one, byte for byte; one that fails costs only itself.

Each job starts as a process of its own under submitit: that half has the marker ``slow``.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher

from experiments.records.atomic import write_json
from experiments.suite import cli as commands
from experiments.suite.folders import FAILED
from experiments.suite.sweeps import collect, expected, started
from tests.helpers import cli

JOBS = 4
SWEEP = (
    *("--multirun", "experiment=loo_linear", "experiment.removed=3", "tracking=none"),
    *("solver=cg,exact", "solver.damping=0.01,1.0"),
)
ASK = ("x=solver.damping", "y=pearson", "log=x")
BROKEN = 2


def results(folder: Path) -> dict[str, bytes]:
    """Everything of every job that must not depend on the launcher."""
    names = ("record.json", "arrays.npz", "config.yaml", "loo_linear.svg", "loo_linear.png")
    files = [path for path in folder.glob("[0-9]*/*") if path.name in names]
    # config.yaml holds the sweep's own folder
    return {
        str(path.relative_to(folder)): path.read_bytes().replace(str(folder).encode(), b"OUT")
        for path in files
    }


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The jobs one after the other in one process."""
    folder = tmp_path_factory.mktemp("one-by-one")
    done = cli(*SWEEP, f"output={folder}")
    assert done.returncode == 0, done.stderr
    found = results(folder)
    assert len(found) == 5 * JOBS
    return found


@pytest.mark.parametrize("launcher", ["joblib", pytest.param("submitit_local", marks=pytest.mark.slow)])
def test_jobs_at_once_of_which_one_fails(launcher: str, one_by_one: dict[str, bytes], tmp_path: Path) -> None:
    command = (*SWEEP, f"hydra/launcher={launcher}", f"output={tmp_path}")
    marker = tmp_path / str(BROKEN) / "run.json"
    write_json(marker, {"settings": {"seed": 41}})  # the folder is another run's, so this job must refuse it
    assert cli(*command, timeout=1200).returncode == 1

    others = {name: content for name, content in one_by_one.items() if not name.startswith(f"{BROKEN}/")}
    assert len(others) == 5 * (JOBS - 1)
    assert results(tmp_path) == others
    table = cli(str(tmp_path), *ASK, module="experiments.sweep")
    assert table.returncode == 1
    jobs = [line.split()[:2] for line in table.stdout.splitlines() if re.match(r" *\d+ +(done|failed)", line)]
    assert jobs == [[str(i), "failed" if i == BROKEN else "done"] for i in range(JOBS)]
    read = re.sub(r"\s+", "", table.stdout)  # a long cell goes on below itself
    assert all(f"{key}={value}" in read for key, value in started(tmp_path)[BROKEN].items())
    assert "belongstoarunwithothersettings" in read
    assert f"\n{JOBS - 1} of {JOBS} jobs done\n" in table.stdout

    marker.unlink()  # mended: the same command does what is missing, and nothing else
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/record.json")}
    assert cli(*command, timeout=1200).returncode == 0
    assert results(tmp_path) == one_by_one
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert not (tmp_path / str(BROKEN) / FAILED).exists()
    assert cli(str(tmp_path), *ASK, module="experiments.sweep").returncode == 0


def test_a_job_killed_without_a_word_is_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "3").mkdir()
    rows = collect(tmp_path, "damping", "pearson")
    assert [row["status"] for row in rows].count("missing") == len(expected("damping")) - 1
    assert "killed" in rows[3]["why"]


def test_the_slurm_launcher_composes_for_every_sweep() -> None:
    """Never submitted: no cluster here. Its settings are the launcher's own, or composing fails."""
    commands.prepare()
    for path in sorted((commands.CONF / "sweep").glob("*.yaml")):
        experiment = re.search(r"experiment=\w+", path.read_text())  # of the command at its head
        assert experiment is not None, path
        with initialize_config_dir(str(commands.CONF), version_base="1.3"):
            cfg = compose(
                "config",
                overrides=[
                    experiment[0],
                    "tier=paper",
                    f"sweep={path.stem}",
                    "hydra/launcher=slurm",
                    "hydra.launcher.partition=short",
                ],
                return_hydra_config=True,
            )
        launcher = cfg.hydra.launcher
        assert launcher._target_.endswith("submitit_launcher.SlurmLauncher")
        assert (launcher.partition, launcher.array_parallelism, launcher.cpus_per_task) == ("short", 16, 4)
        assert launcher.mem_gb == 8
        assert cfg.hydra.sweeper.params
    names = {cls.__name__ for cls in Plugins.instance().discover(Launcher)}
    assert "SlurmLauncher" in names
