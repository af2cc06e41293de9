"""The W&B run, read back from its offline file, holds what it should; its failures never fail a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.record import Record
from experiments.tracking import EXTREME, claims_of, extremes
from tests.helpers import cli
from tests.wandb_file import read_run

SMALL = ("experiment=loo_linear", "experiment.removed=4")


def test_the_offline_run_holds_config_metrics_table_figure_and_artifact(tmp_path: Path) -> None:
    found = cli(*SMALL, f"output={tmp_path}", "seed=5", "tracking.tags=[mine]")
    assert found.returncode == 0, found.stderr
    runs = list((tmp_path / "wandb").glob("offline-run-*"))
    assert len(runs) == 1
    run = read_run(next(runs[0].glob("*.wandb")))
    record = Record.load(tmp_path)

    assert run.exit_code == 0
    assert run.group == "loo_linear"
    assert {"smoke", "digits", "mine", "smoke-loo-pearson"} <= set(run.tags)
    rows = [run.summary[f"most_{kind}/nrows"] for kind in ("helpful", "harmful")]
    assert sum(rows) == 4  # every point left out is one or the other
    assert run.config["seed"] == 5
    assert run.config["model"]["l2"] == 0.01
    assert run.summary["pearson"] == pytest.approx(record.metrics["pearson"], abs=0)
    assert run.summary["solvers.cg.iterations"] == record.metrics["solvers"]["cg"]["iterations"]
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


def test_without_tracking_there_is_no_wandb_folder_anywhere(tmp_path: Path) -> None:
    assert cli(*SMALL, "tracking=none", "output=run", cwd=tmp_path).returncode == 0
    assert not list(tmp_path.rglob("*wandb*"))


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
