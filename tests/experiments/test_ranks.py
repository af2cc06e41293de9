"""``torchrun -m experiments``: records of 2 and 4 processes equal those of one, rank 0 alone writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.record import Record
from tests.helpers import cli
from tests.influence.test_distributed import torchrun


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


@pytest.mark.parametrize(("name", "processes"), [("loo_linear", 4), ("readmission", 2), ("loo_cnn", 2)])
def test_records_equal_those_of_one_process(name: str, processes: int, tmp_path: Path) -> None:
    settings = (f"experiment={name}", *SMALL[name], "tracking=none")
    alone = cli(*settings, f"output={tmp_path / 'one'}")
    assert alone.returncode == 0, alone.stderr
    done = torchrun(processes, "-m", "experiments", *settings, f"output={tmp_path / 'many'}")
    assert done.returncode == 0, done.stderr[-3000:]
    equal(Record.load(tmp_path / "one"), Record.load(tmp_path / "many"))
    provenance = json.loads((tmp_path / "many" / "provenance.json").read_text())
    assert provenance["machine"]["ranks"] == processes
    assert done.stdout.count("record:") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many", "one"]


def test_an_error_is_told_once(tmp_path: Path) -> None:
    wrong = ("experiment=loo_linear", "experiment.removed=99999", "tracking=none")
    done = torchrun(2, "-m", "experiments", *wrong, f"output={tmp_path / 'a'}")
    assert done.returncode != 0
    assert done.stderr.count("experiment.removed=99999: give") == 1, done.stderr[-2000:]
