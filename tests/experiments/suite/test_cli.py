"""Bad input ends in one sentence that names the cause, a non-zero exit code, and nothing half-written."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from experiments.records import atomic
from experiments.suite.commands import WIDTH
from experiments.suite.ending import JobFailed, guarded
from experiments.suite.explaining import explain
from experiments.suite.job import execute
from influence.errors import NotConvergedWarning
from tests.experiments.test_configs import composed
from tests.helpers import ROOT, cli, environment, one_sentence

WRONG = [
    (["experiment=loo_linaer"], "loo_linear"),
    (["experiment=loo_linear", "data=mnits"], "digits"),
    (["experiment=loo_linear", "solver=gmres"], "lissa"),
    (["experiment=loo_linear", "model=mlp"], "softmax"),
    (["experiment=loo_linear", "tier=gpu"], "paper"),
    (["experiment=loo_linear", "tracking=mlflow"], "wandb"),
    (["experiment=loo_linear", "experiment.tst_index=3"], "did you mean test_index"),
    (["experiment=loo_linear", "solver.tolerence=1e-5"], "did you mean tolerance"),
    (["experiment=loo_linear", "sede=1"], "did you mean seed"),
    (["experiment=loo_linear", "experiment.removed=many"], "many"),
    (["experiment=loo_linear", "data.mirror"], "data.mirror"),
    ([], "loo_linear"),
]


@pytest.mark.parametrize(("overrides", "named"), WRONG, ids=lambda value: str(value))
def test_a_wrong_setting_fails_at_composition_and_names_the_alternatives(
    overrides: list[str], named: str
) -> None:
    with pytest.raises((HydraException, OmegaConfBaseException)) as caught:
        composed(*overrides)
    text = explain(caught.value)
    assert named in text
    assert "\n" not in text


def failing(tmp_path: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> tuple[int, str]:
    """Exit code and sentence of a job that must fail; checks that no record was left."""
    folder = tmp_path / "run"
    cfg = composed("experiment=loo_linear", "tracking=none", f"output={folder}", *overrides)
    with pytest.raises(JobFailed) as failed:
        execute(cfg)
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, lines
    left = {path.name for path in folder.glob("*")} if folder.is_dir() else set()
    assert left <= {".lock", "run.json", "journal"}
    return failed.value.code, errors[0]


@pytest.mark.parametrize(
    ("overrides", "code", "words"),
    [
        (["experiment.test_index=256"], 1, ["test_index=256", "0..255"]),
        (["experiment.test_index=-1"], 2, ["test_index=-1"]),
        (["experiment.removed=0"], 2, ["removed=0"]),
        (["experiment.removed=99999"], 2, ["removed=99999", "1413"]),
        (["solver.damping=-0.1"], 2, ["damping=-0.1"]),
        (["model.l2=-1.0"], 2, ["l2"]),
        (["model.l2=0.0"], 2, ["l2"]),
        (["model.loss=logistic"], 2, ["cross_entropy"]),
        (["model.loss=crossentropy"], 2, ["cross_entropy"]),
        (["threads=0"], 2, ["threads=0"]),
        (["solver.tolerance=0.0"], 2, ["tolerance"]),
        (["data.classes=[1]"], 1, ["classes"]),
        (["solver.max_iterations=3", "experiment.removed=5"], 1, ["max_iterations"]),
    ],
    ids=lambda value: str(value),
)
def test_a_setting_that_makes_no_sense(
    overrides: list[str], code: int, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, text = failing(tmp_path, capsys, *overrides)
    assert found == code
    assert all(word in text for word in words), text


def test_missing_data_says_how_to_get_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    mnist = ["data=mnist", f"data.mirror={empty}", f"data.data_dir={tmp_path / 'cache'}"]
    code, text = failing(tmp_path, capsys, *mnist)
    assert code == 1
    assert "mnist" in text
    assert "data.mirror" in text
    # A data_dir of its own: a prepared copy in the user's cache would rightly be taken instead.
    mnist[1] = f"data.mirror={tmp_path / 'nowhere'}"
    code, text = failing(tmp_path / "b", capsys, *mnist)
    assert "nowhere" in text


def test_an_altered_mirror_file_names_both_hashes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "mirror" / "mnist"
    bad.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (bad / f"{name}-ubyte.gz").write_bytes(b"not the original")
    mnist = ["data=mnist", f"data.mirror={bad.parent}", f"data.data_dir={tmp_path / 'cache'}"]
    code, text = failing(tmp_path, capsys, *mnist)
    assert code == 1
    assert "expected" in text
    assert "found" in text


def test_an_output_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    cfg = composed("experiment=loo_linear", "tracking=none", f"output={tmp_path / 'file' / 'below'}")
    with pytest.raises(JobFailed) as failed:
        execute(cfg)
    assert failed.value.code == 1
    assert "output=" in capsys.readouterr().err


def test_a_full_disk_while_the_record_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("experiments.records.record.write_bytes", full)
    code, text = failing(tmp_path, capsys, "experiment.removed=2")
    assert code == 1
    assert "No space left on device" in text


def test_folders_of_other_settings_and_of_running_jobs_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["experiment=loo_linear", "tracking=none", f"output={tmp_path}", "experiment.removed=2"]
    execute(composed(*small))
    record = (tmp_path / "record.json").read_bytes()
    with pytest.raises(JobFailed):
        execute(composed(*small, "seed=1"))
    assert "(seed differ" in capsys.readouterr().err
    execute(composed(*small, "debug=true"))  # the same numbers: it is there already
    assert "nothing to do" in capsys.readouterr().out
    with atomic.locked(tmp_path), pytest.raises(JobFailed):
        execute(composed(*small))
    assert "another run is writing" in capsys.readouterr().err
    assert (tmp_path / "record.json").read_bytes() == record


def test_same_config_and_seed_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        folder = tmp_path / name
        execute(
            composed("experiment=loo_linear", "tracking=none", f"output={folder}", "experiment.removed=3")
        )
    for file in ("record.json", "arrays.npz", "loo_linear.svg", "loo_linear.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    with np.load(tmp_path / "a" / "arrays.npz") as arrays:
        assert len(arrays["actual"]) == 3


def test_help_teaches_and_loads_nothing_heavy() -> None:
    found = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "experiments", "--help"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "experiment=loo_linear" in found.stdout
    assert "data.mirror" in found.stdout
    assert all(line.count("python -m experiments") <= 1 for line in found.stdout.splitlines())
    assert max(map(len, found.stdout.splitlines())) <= WIDTH
    loaded = {line.split("|")[-1].strip().split(".")[0] for line in found.stderr.splitlines()}
    assert "hydra" in loaded
    assert not loaded & {
        "torch",
        "torchvision",
        "wandb",
        "sklearn",
        "tensorflow_datasets",
        "pandas",
        "matplotlib",
    }


def test_the_command_line_prints_one_sentence_and_the_exit_code(tmp_path: Path) -> None:
    wrong = cli("experiment=loo_linear", "data=mnits")
    assert wrong.returncode == 2
    assert "digits" in one_sentence(wrong)
    folder = tmp_path / "run"
    failed = cli("experiment=loo_linear", "tracking=none", f"output={folder}", "experiment.test_index=999")
    assert failed.returncode == 1
    assert "0..255" in one_sentence(failed)


def test_a_warning_of_the_library_is_one_sentence_and_others_name_their_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = warnings.formatwarning
    for category, debug, said in (
        (NotConvergedWarning, False, "warning: too short\n\n"),
        (NotConvergedWarning, True, "page.py:7: NotConvergedWarning: too short"),
        (UserWarning, False, "page.py:7: UserWarning: too short"),
    ):
        guarded(
            lambda kind=category: print(warnings.formatwarning("too short", kind, "page.py", 7)), debug=debug
        )
        assert capsys.readouterr().out.startswith(said)
    assert warnings.formatwarning is before


def test_a_failed_job_lets_the_rest_of_a_sweep_run(tmp_path: Path) -> None:
    found = cli(
        *("--multirun", "experiment=loo_linear", "tracking=none", f"output={tmp_path}"),
        *("experiment.removed=2", "experiment.test_index=1,999,2"),
    )
    assert found.returncode == 1
    assert "0..255" in one_sentence(found)
    assert [(tmp_path / str(job) / "record.json").is_file() for job in range(3)] == [True, False, True]


def test_redrawing_publishing_and_tabulating_say_what_they_need(tmp_path: Path) -> None:
    for module in ("experiments.figures", "experiments.publish"):
        assert "usage" in one_sentence(cli(module=module))
        assert "no record.json" in one_sentence(cli(str(tmp_path), module=module))
