"""The stationary experiment: what it finds on a small problem, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.records.record import Record
from experiments.suite.ending import JobFailed
from experiments.suite.job import execute
from tests.experiments.test_configs import composed

SMALL = ["experiment=loo_cnn_stationary", "tracking=none", "experiment.n_train=120", "experiment.batch=60",
         "experiment.steps=200", "experiment.rates=[[0,0.02]]", "experiment.removed=4", "experiment.block=3",
         "model.l2=0.01", "experiment.fractions=[0.01,0.1,1]"]  # fmt: skip


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return Record.load(execute(composed(*SMALL, f"output={tmp_path_factory.mktemp('small') / 'out'}")))


def test_the_theory_holds_at_a_hundredth_and_errors_grow_with_the_weight(record: Record):
    found = record.metrics
    assert found["gradient_norm"] <= 1e-8
    assert found["hessian"]["negative"] == 0
    assert found["hessian"]["computed"] == found["n_parameters"] - 1
    first = [
        found["fractions"][name]["first_order"]["median_relative_error"] for name in ("0.01", "0.1", "1")
    ]
    assert found["fractions"]["0.01"]["first_order"]["pearson"] > 0.999
    assert first == sorted(first)
    assert first[1] / first[0] == pytest.approx(10, rel=0.5)  # second order: proportional to the weight
    newton = found["fractions"]["0.1"]["newton"]["median_relative_error"]
    assert newton < first[1]
    np.testing.assert_allclose(record.arrays["first_order_at"][-1], record.arrays["predicted"])
    assert found["converged"] == 4
    assert record.arrays["gradient_norm_at"].max() <= 1e-8


def test_damping_costs_what_theory_has(record: Record):
    slopes = [record.metrics["dampings"][name]["smallest_fraction"]["slope"] for name in ("0", "0.01", "0.1")]
    assert slopes[0] == pytest.approx(1.0, abs=0.05)
    assert slopes == sorted(slopes, reverse=True)


@pytest.mark.usefixtures("undrawn")
def test_equal_runs_give_equal_numbers(tmp_path: Path, record: Record):
    again = Record.load(execute(composed(*SMALL, f"output={tmp_path / 'again'}")))
    for name, array in record.arrays.items():
        assert np.array_equal(array, again.arrays[name]), name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("experiment.fractions=[0.5]", "1 the last"),
        ("experiment.fractions=[0.5,0.1,1]", "rising numbers"),
        ("experiment.dampings=[0.1]", "give 0 and no negative"),
        ("experiment.kernel=fast", "kernel must be"),
        ("experiment.seeds=2", "does not use it"),
        ("+solver=cg", "uses no solver"),
        ("experiment.removed=120", "experiment.removed=120"),
    ],
)
def test_what_cannot_be_used_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
):
    with pytest.raises(JobFailed):
        execute(composed(*SMALL, "experiment.steps=2000", f"output={tmp_path / 'out'}", override))
    assert message in capsys.readouterr().err
