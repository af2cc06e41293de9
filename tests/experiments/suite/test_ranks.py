"""``torchrun -m experiments``: records of 2 and 4 processes equal those of one, rank 0 alone writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from experiments import across_ranks
from experiments.records.errors import UserError
from experiments.records.record import Record
from experiments.suite.job import execute
from tests.experiments.test_configs import composed
from tests.helpers import ranks
from tests.influence.objectives.test_distributed import torchrun


def equal(one: Record, many: Record) -> None:
    assert list(one.arrays) == list(many.arrays)
    for name, a in one.arrays.items():
        b = many.arrays[name]
        assert a.shape == b.shape, name
        if a.dtype.kind == "f" and name not in ("gradient_norm", "gradient_norms"):
            assert float(np.abs(a - b).max()) <= 1e-10 * max(1.0, float(np.abs(a).max())), name
        elif a.dtype.kind in "iU" and name != "iterations":
            assert np.array_equal(a, b), name


SMALL = {
    "loo_linear": [],
    "readmission": [],
    "loo_cnn": [f"experiment.{s}" for s in ("steps=60", "removed=3", "retraining_steps=6", "eigenvalues=0")]
    + ["solver.damping=0.3"],
}


@pytest.mark.parametrize(
    ("name", "processes"),
    [
        ("loo_linear", 2),
        pytest.param("readmission", 2, marks=pytest.mark.slow),  # as loo_linear, on other data
        ("loo_cnn", 2),
        pytest.param("loo_linear", 4, marks=pytest.mark.slow),  # each process imports everything
    ],
)
def test_records_equal_those_of_one_process(
    name: str, processes: int, embedded: Callable[[str], Path], tmp_path: Path
) -> None:
    settings = (f"experiment={name}", *SMALL[name], "tracking=none")
    one = execute(composed(*settings, f"output={tmp_path / 'one'}")) if SMALL[name] else embedded(name)
    settings = (*settings, f"output={tmp_path / 'many'}")
    if name == "loo_cnn":  # each process of torchrun imports everything
        done = ranks(processes, "experiments", *settings)
    else:
        done = torchrun(processes, "-m", "experiments", *settings)
    assert done.returncode == 0, done.stderr[-3000:]
    equal(Record.load(one), Record.load(tmp_path / "many"))
    provenance = json.loads((tmp_path / "many" / "provenance.json").read_text())
    assert provenance["machine"]["ranks"] == processes
    assert done.stdout.count("record:") == 1
    assert {path.name for path in tmp_path.iterdir()} - {"one"} == {"many"}


def test_an_error_is_told_once(tmp_path: Path) -> None:
    wrong = ("experiment=loo_linear", "experiment.removed=99999", "tracking=none")
    done = torchrun(2, "-m", "experiments", *wrong, f"output={tmp_path / 'a'}")
    assert done.returncode != 0
    assert done.stderr.count("experiment.removed=99999: give") == 1, done.stderr[-2000:]


def test_what_every_process_would_repeat_is_handed_over_and_scores_meet_the_record(tmp_path: Path) -> None:
    journal = tmp_path / "1" / "journal" / "training-abc"
    journal.mkdir(parents=True)
    (journal / "index.jsonl").write_text("{}\n")
    (tmp_path / "1" / "journal" / "retraining-abc").mkdir()
    across_ranks.hand_over(["training"], tmp_path / "1", tmp_path / "2")
    assert [path.name for path in (tmp_path / "2" / "journal").iterdir()] == ["training-abc"]
    with pytest.raises(UserError, match="kept no journal"):
        across_ranks.hand_over(["rankings"], tmp_path / "1", tmp_path / "4")
    scores = np.array([1.0, -4.0])
    published = Record("loo_cnn", {}, {"scores": scores, "actual": np.zeros(100)})
    record = Record("loo_cnn", {}, {"scores": np.array([1.0, -4.0 + 4e-12]), "actual": np.zeros(2)})
    assert across_ranks.against(published, record) == {"scores": pytest.approx(1e-12, rel=1e-3)}


def test_a_nan_on_one_side_is_a_difference() -> None:
    a, b = (Record("loo_cnn", {}, {"scores": np.array([1.0, value])}) for value in (2.0, np.nan))
    assert across_ranks.compared(a, b) == {"scores": np.inf}
    assert across_ranks.compared(b, a) == {"scores": np.inf}
    assert across_ranks.compared(b, b) == {"scores": 0.0}
