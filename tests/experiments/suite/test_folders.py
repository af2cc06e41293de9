"""Only an empty folder or one of ours is written to; what a run read decides if its record is current."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.publish import publish
from experiments.records.errors import UserError
from experiments.records.record import Record
from experiments.suite.ending import JobFailed
from experiments.suite.folders import require_sweep_folder
from experiments.suite.job import execute
from tests.experiments.test_configs import composed
from tests.helpers import PATIENCE, ROOT, cli, environment, one_sentence

SMALL = ["experiment=loo_linear", "tracking=none", "experiment.removed=2"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("sweep", [False, True])
def test_a_folder_that_is_not_ours_is_left_as_it_is(sweep: bool, tmp_path: Path) -> None:
    foreign = tmp_path / "conf"
    (foreign / "data").mkdir(parents=True)
    (foreign / "config.yaml").write_text("mine\n")
    (foreign / "data" / "x.yaml").write_text("mine too\n")
    before = contents(foreign)
    start = ["--multirun"] if sweep else []
    done = cli(*start, *SMALL, *["seed=0,1"] * sweep, f"output={foreign}")
    assert done.returncode != 0
    assert "not empty" in one_sentence(done)
    assert contents(foreign) == before


def test_verify_and_publish_write_to_their_own_folders_only(tmp_path: Path) -> None:
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "report.html").write_text("mine")
    done = cli("tier=paper", "from=results", f"output={foreign}", module="experiments.verify")
    assert "not empty" in one_sentence(done)
    with pytest.raises(UserError, match="not empty"):
        publish(ROOT / "results" / "components", foreign)
    assert contents(foreign) == {"report.html": b"mine"}


def refused(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(JobFailed):
        execute(composed(*arguments))
    return capsys.readouterr().err


def test_a_refused_run_does_not_take_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, folder = tmp_path / "d.csv", tmp_path / "o"
    table.write_text("a,label\n1,x\n")
    own = ["experiment=spam", "data=csv", f"data.path={table}", "tracking=none", f"output={folder}"]
    assert "error" in refused(*own, "data.label=missing", capsys=capsys)
    shutil.copy(Path(__file__).parent / "mended.csv", table)
    execute(composed(*own, "data.label=label"))  # the corrected command
    assert (folder / "suspects.csv").is_file()
    assert "belongs to a run" in refused(*own, "data.label=label", "seed=3", capsys=capsys)


def test_a_mended_table_gets_a_new_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same command after an edit of the file that it names."""
    table, folder = tmp_path / "d.csv", tmp_path / "o"
    shutil.copy(Path(__file__).parent / "mended.csv", table)
    cfg = composed(
        "experiment=spam", "data=csv", f"data.path={table}", "data.label=label", "tracking=none",
        f"output={folder}",
    )  # fmt: skip
    execute(cfg)
    first = (folder / "suspects.csv").read_text()
    worst = int(first.splitlines()[1].split(",")[1])  # rank, row, ...
    lines = table.read_text().splitlines()
    *cells, given = lines[worst].split(",")
    lines[worst] = ",".join([*cells, {"yes": "no", "no": "yes"}[given]])
    table.write_text("\n".join(lines) + "\n")
    execute(cfg)
    said = capsys.readouterr().out
    assert "made again" in said
    assert int((folder / "suspects.csv").read_text().splitlines()[1].split(",")[1]) != worst
    execute(cfg)
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.usefixtures("undrawn")
def test_another_ground_truth_under_the_same_name_makes_a_new_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, folder = tmp_path / "truth", tmp_path / "o"
    execute(composed(*SMALL, f"output={truth}"))
    cfg = composed(*SMALL, f"experiment.retrained={truth}", f"output={folder}")
    execute(cfg)
    shutil.rmtree(truth)
    execute(composed(*SMALL, "experiment.removed=3", f"output={truth}"))
    execute(cfg)
    assert "experiment.retrained changed" in capsys.readouterr().out
    assert Record.load(folder).metrics["removed"] == 3


@pytest.mark.parametrize("content", ['{"settings": {"seed"', "[]", '"text"', "{}", '{"settings": 3}', "\0"])
def test_a_torn_or_foreign_marker_is_one_sentence(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text(content)
    said = refused(*SMALL, f"output={tmp_path}", capsys=capsys)
    assert "run.json is not a run's marker" in said
    assert (tmp_path / "run.json").read_text() == content


@pytest.mark.usefixtures("undrawn")
def test_torn_companions_of_a_record_are_made_again(tmp_path: Path) -> None:
    cfg = composed(*SMALL, f"output={tmp_path}")
    execute(cfg)
    good = {name: (tmp_path / name).read_bytes() for name in ("record.json", "config.yaml")}
    torn = [("provenance.json", '{"code": '), ("provenance.json", "[]"), ("config.yaml", "a: [")]
    for name, content in [*torn, ("config.yaml", "")]:
        (tmp_path / name).write_text(content)
        execute(cfg)
        assert {name: (tmp_path / name).read_bytes() for name in good} == good
        assert "code" in json.loads((tmp_path / "provenance.json").read_text())


def test_a_torn_provenance_is_one_sentence_for_the_commands_that_read_it(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "results" / "components", tmp_path / "components")
    (tmp_path / "components" / "provenance.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        publish(tmp_path / "components", tmp_path / "to")


def test_a_sweep_s_folder_belongs_to_its_overrides(tmp_path: Path) -> None:
    marker = "hydra: {overrides: {task: ['experiment=spam', 'seed=0,1']}}\n"
    (tmp_path / "multirun.yaml").write_text(marker)
    require_sweep_folder(tmp_path, ["experiment=spam", "seed=0,1", "data.mirror=x", "experiment.workers=2"])
    with pytest.raises(UserError, match="another sweep"):
        require_sweep_folder(tmp_path, ["experiment=spam", "seed=0,1,2"])
    (tmp_path / "multirun.yaml").write_text("hydra: [")
    with pytest.raises(UserError, match="not a sweep's marker"):
        require_sweep_folder(tmp_path, ["experiment=spam"])


@pytest.mark.parametrize("broken", ["closed", "full"])
def test_a_standard_output_that_takes_nothing_is_not_a_lost_record(broken: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments", *SMALL, f"output={tmp_path / 'o'}"]
    if broken == "closed":
        reader, stdout = os.pipe()
        os.close(reader)
    else:
        stdout = os.open("/dev/full", os.O_WRONLY)
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment(PYTHONPATH=str(ROOT)), stdout=stdout, stderr=subprocess.PIPE,
            text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
    finally:
        os.close(stdout)
    assert "the record is whole in" in done.stderr, done.stderr
    assert "half-written" not in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == (0 if broken == "closed" else 1)
    assert Record.load(tmp_path / "o").experiment == "loo_linear"
