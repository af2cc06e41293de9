"""The W&B run, read back from its offline file, holds what it should; its failures never fail a run."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from experiments.records import provenance
from experiments.records.errors import UserError
from experiments.records.record import Record
from experiments.suite.ending import JobFailed
from experiments.suite.job import execute
from experiments.suite.tracking import EXTREME, claims_of, curves_of, extremes
from tests.experiments.test_configs import composed
from tests.helpers import cli
from tests.wandb_file import read_run

SMALL = ("experiment=loo_linear", "experiment.removed=4")


def test_a_command_of_a_test_has_wandb_to_itself(tmp_path: Path) -> None:
    """wandb, imported before the fork, lost its temporary folder when another command ended."""
    for name in ("first", "second"):
        found = cli(*SMALL, f"output={tmp_path / name}")
        assert found.returncode == 0, found.stderr
        assert "W&B failed" not in found.stderr, found.stderr


def test_the_offline_run_holds_config_metrics_table_figure_and_artifact(tmp_path: Path) -> None:
    home = tmp_path / "home"
    tmp_path = tmp_path / "run"
    found = cli(*SMALL, f"output={tmp_path}", "seed=5", "tracking.tags=[mine]", HOME=str(home))
    assert found.returncode == 0, found.stderr
    assert "W&B failed" not in found.stderr, found.stderr
    runs = list((tmp_path / "wandb").glob("offline-run-*"))
    assert len(runs) == 1
    run = read_run(next(runs[0].glob("*.wandb")))
    record = Record.load(tmp_path)

    assert run.exit_code == 0
    assert not list(home.rglob("*wandb*"))  # everything of W&B is below the output folder
    assert (run.project, run.group, run.job_type) == ("influence-replication", "loo_linear", "experiment")
    described = provenance.git("describe", "--always", "--tags")
    assert {"smoke", "digits", "mine", "smoke-loo-pearson"} <= set(run.tags)
    assert described is None or described in run.tags
    predicted = record.arrays["predicted_cg"]
    column = record.table.index("predicted_cg")
    for kind, of_this_kind in (
        ("helpful", np.sort(predicted[predicted > 0])[::-1]),
        ("harmful", np.sort(predicted[predicted < 0])),
    ):
        assert run.summary[f"most_{kind}/nrows"] == len(of_this_kind)
        rows = json.loads((runs[0] / "files" / run.summary[f"most_{kind}/path"]).read_text())["data"]
        assert [row[column] for row in rows] == of_this_kind.tolist()
    assert run.config["seed"] == 5
    assert run.config["model"]["l2"] == 0.01
    assert run.summary["pearson"] == pytest.approx(record.metrics["pearson"], abs=0)
    assert run.summary["solvers.cg.iterations"] == record.metrics["solvers"]["cg"]["iterations"]
    kept = provenance.read(tmp_path)
    assert run.summary["run.wall_seconds"] == kept["wall_seconds"] > 0
    assert run.summary["run.peak_mib"] == kept["peak_mib"] > 0
    assert run.summary["run.versions.torch"] == kept["versions"]["torch"]
    assert run.summary["points/nrows"] == 4
    table = json.loads((runs[0] / "files" / run.summary["points/path"]).read_text())
    assert table["columns"] == record.table
    assert [row[0] for row in table["data"]] == record.arrays["index"].tolist()
    figure = runs[0] / "files" / run.summary["figure/loo_linear/path"]
    assert figure.read_bytes() == (tmp_path / "loo_linear.png").read_bytes()
    assert run.artifacts["loo_linear-digits-record"] == ["arrays.npz", "config.yaml", "record.json"]

    again = cli(*SMALL, f"output={tmp_path}", "seed=5")  # finished: no second W&B run
    assert again.returncode == 0
    assert list((tmp_path / "wandb").glob("offline-run-*")) == runs

    (tmp_path / "provenance.json").unlink()  # killed while W&B was at it: done again, and still one run
    assert cli(*SMALL, f"output={tmp_path}", "seed=5").returncode == 0
    (once_more,) = (tmp_path / "wandb").glob("offline-run-*")
    assert read_run(next(once_more.glob("*.wandb"))).run_id == run.run_id


def test_a_job_of_a_sweep_says_so(tmp_path: Path) -> None:
    assert cli("--multirun", *SMALL, "seed=0,1", f"output={tmp_path}").returncode == 0
    runs = [read_run(path) for path in sorted(tmp_path.glob("*/wandb/offline-run-*/*.wandb"))]
    assert [run.job_type for run in runs] == ["sweep", "sweep"]
    assert [run.config["seed"] for run in runs] == [0, 1]
    assert runs[0].run_id != runs[1].run_id
    assert {run.group for run in runs} == {f"loo_linear {tmp_path.name}"}  # another sweep is another group


def test_a_wandb_that_cannot_write_never_fails_an_experiment(tmp_path: Path) -> None:
    assert cli(*SMALL, "tracking=none", f"output={tmp_path}").returncode == 0  # the folder is now ours
    (tmp_path / "record.json").unlink()
    (tmp_path / "wandb").write_text("a file where its folder should be")
    found = cli(*SMALL, f"output={tmp_path}")
    assert found.returncode == 0, found.stderr
    assert "tracking: W&B failed" in found.stderr
    assert Record.load(tmp_path).metrics["removed"] == 4


def test_without_tracking_there_is_no_wandb_folder_anywhere(tmp_path: Path) -> None:
    assert cli(*SMALL, "tracking=none", "output=run", cwd=tmp_path).returncode == 0
    assert not list(tmp_path.rglob("*wandb*"))


def test_tracking_as_csv_needs_no_wandb(tmp_path: Path) -> None:
    assert cli(*SMALL, "tracking=csv", "output=run", cwd=tmp_path).returncode == 0
    assert not list(tmp_path.rglob("*wandb*"))
    rows = dict(list(csv.reader((tmp_path / "run" / "metrics.csv").open()))[1:])
    record, kept = Record.load(tmp_path / "run"), provenance.read(tmp_path / "run")
    assert float(rows["pearson"]) == record.metrics["pearson"]
    assert float(rows["solvers.cg.scores_relative_error"]) >= 0
    assert float(rows["run.wall_seconds"]) == kept["wall_seconds"]
    assert kept["tracking"] == {"file": "metrics.csv", "name": "csv"}


def test_an_unreachable_wandb_never_fails_an_experiment(tmp_path: Path) -> None:
    found = cli(
        *SMALL,
        f"output={tmp_path / 'run'}",
        WANDB_MODE="online",
        WANDB_API_KEY="0" * 40,
        WANDB_BASE_URL="http://127.0.0.1:9",  # nothing listens on the discard port
        WANDB_INIT_TIMEOUT="5",
        HOME=str(tmp_path / "home"),
    )
    assert found.returncode == 0, found.stderr
    assert "the record is complete" in found.stderr
    assert Record.load(tmp_path / "run").metrics["removed"] == 4
    assert "error" in json.loads((tmp_path / "run" / "provenance.json").read_text())["tracking"]


@pytest.fixture
def wandb_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B in this process, offline; its service ends with the test."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    import wandb

    yield
    wandb.teardown()


@pytest.mark.usefixtures("wandb_here")
def test_a_run_that_fails_midway_is_marked_failed_and_one_that_succeeds_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    from experiments.loo_linear import experiment

    cfg = composed(*SMALL, f"output={tmp_path / 'run'}")

    def broken(*_: object, **__: object) -> None:
        raise UserError("the figure could not be drawn.")

    with monkeypatch.context() as patched:
        patched.setattr(experiment, "Record", broken)  # after the retraining, whose units are kept
        with pytest.raises(JobFailed):
            execute(cfg)
    assert "error: the figure could not be drawn." in capsys.readouterr().err
    wandb.teardown()  # its service writes the file to the end
    (path,) = tmp_path.glob("run/wandb/offline-run-*/*.wandb")
    run = read_run(path)
    assert run.exit_code == 1
    assert run.summary["error"] == "the figure could not be drawn."
    assert {"failed", "smoke"} <= set(run.tags)
    assert (run.group, run.config["experiment"]["removed"]) == ("loo_linear", 4)

    execute(cfg)
    wandb.teardown()
    (path,) = tmp_path.glob("run/wandb/offline-run-*/*.wandb")
    assert (read_run(path).exit_code, read_run(path).run_id) == (0, run.run_id)


def test_a_run_that_is_refused_leaves_no_run(tmp_path: Path) -> None:
    with pytest.raises(JobFailed):
        execute(composed(*SMALL, "experiment.test_index=99999", f"output={tmp_path / 'run'}"))
    assert not list(tmp_path.rglob("*wandb*"))


def test_curves_are_the_arrays_by_iteration() -> None:
    arrays = {"losses": np.array([3.0, 2.0]), "flipped": np.array([0, 1]), "index": np.arange(9)}
    assert list(curves_of(Record("attack_group", {}, arrays))) == ["losses", "flipped"]
    assert curves_of(Record("spam", {}, arrays)) == {}


def test_the_most_helpful_and_the_most_harmful_points() -> None:
    predicted = np.array([0.5, -2.0, 0.0, 3.0, -1.0] + [0.1] * 20)
    arrays = {"index": np.arange(25) * 10, "predicted_cg": predicted}
    record = Record("loo_linear", {}, arrays, table=["index", "predicted_cg"], tier="smoke")
    found = extremes(record)
    assert found["most_helpful"][:2] == [[30, 3.0], [0, 0.5]]
    assert len(found["most_helpful"]) == EXTREME
    assert found["most_harmful"] == [[10, -2.0], [40, -1.0]]
    record.table = ["index"]
    assert extremes(record) == {}


def test_a_run_is_tagged_with_the_claims_it_bears_on() -> None:
    ids = claims_of(Record("loo_linear", {}, tier="smoke"))
    assert "smoke-loo-pearson" in ids
    assert "fig2-left-pearson" not in ids
    assert claims_of(Record("unknown", {}, tier="smoke")) == []
