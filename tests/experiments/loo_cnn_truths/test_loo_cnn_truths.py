"""Three ground truths of one small net: what they are, that they resume, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.records.record import Record
from experiments.suite.ending import JobFailed
from experiments.suite.job import execute
from tests.experiments.test_configs import composed

SMALL = ["experiment=loo_cnn_truths", "tracking=none", "experiment.n_train=120", "experiment.batch=60",
         "experiment.steps=200", "experiment.rates=[[0,0.02]]", "experiment.removed=3", "experiment.random=2",
         "experiment.block=4", "experiment.orders=2", "experiment.retraining_steps=20"]  # fmt: skip


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return Record.load(execute(composed(*SMALL, f"output={tmp_path_factory.mktemp('small') / 'out'}")))


def test_each_truth_is_what_its_name_says(record: Record):
    found, arrays = record.metrics, record.arrays
    assert arrays["drawn"].tolist() == [False] * 3 + [True] * 2
    assert len(set(arrays["index"].tolist())) == 5
    top = np.argsort(-np.abs(arrays["scores"]), kind="stable")[:3]
    assert arrays["index"][:3].tolist() == top.tolist()
    assert arrays["proximal_gradient_norm"].max() <= 1e-8
    assert found["converged"] == 5
    assert found["trained_again"] < 1e-9  # float64: the same batches give the same net
    assert found["chance"]["deviation"] == pytest.approx(np.std([0, *arrays["other_orders"]], ddof=1))
    # The proximal minimum is near the trained net; a training anew ends elsewhere.
    assert np.abs(arrays["cold"]).max() > 3 * np.abs(arrays["proximal"]).max()


def test_predictions_meet_the_derivative_where_damping_holds_the_net(tmp_path: Path):
    # With much damping one whole point is a small change: the prediction is the derivative, so they agree.
    stiff = Record.load(
        execute(
            composed(*SMALL, "experiment.damping=30", "experiment.orders=0", f"output={tmp_path / 'stiff'}")
        )
    )
    actual, predicted = stiff.arrays["proximal"], stiff.arrays["taken_away_gauss_newton"]
    np.testing.assert_allclose(predicted, actual, rtol=0.1)
    assert stiff.metrics["truths"]["proximal"]["all"]["gauss_newton"]["pearson"] > 0.999
    assert np.isnan(stiff.metrics["chance"]["deviation"])


@pytest.mark.usefixtures("undrawn")
def test_equal_runs_give_equal_numbers_also_with_the_kernel_off(tmp_path: Path, record: Record):
    again = Record.load(execute(composed(*SMALL, f"output={tmp_path / 'again'}")))
    for name, array in record.arrays.items():
        assert np.array_equal(array, again.arrays[name]), name
    plain = Record.load(execute(composed(*SMALL, "experiment.kernel=torch", f"output={tmp_path / 'plain'}")))
    for name in ("warm", "proximal"):
        np.testing.assert_allclose(plain.arrays[name], record.arrays[name], rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("undrawn")
def test_a_finished_block_is_not_retrained(tmp_path: Path, record: Record, monkeypatch: pytest.MonkeyPatch):
    from experiments.loo_cnn_truths import experiment

    whole, calls = experiment.proximal_responses, []

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    arguments = [*SMALL, "experiment.workers=1", f"output={tmp_path / 'cut'}"]
    monkeypatch.setattr(experiment, "proximal_responses", failing)
    with pytest.raises(KeyboardInterrupt):
        execute(composed(*arguments))
    monkeypatch.setattr(experiment, "proximal_responses", whole)
    trained = []
    anew = experiment.Nets.anew

    def counted(self, points: torch.Tensor, order: int) -> torch.Tensor:
        trained.append(order)
        return anew(self, points, order)

    monkeypatch.setattr(experiment.Nets, "anew", counted)
    resumed = Record.load(execute(composed(*arguments)))
    assert trained == [1, 2]  # the other orders alone: the blocks without a point were in the journal
    for name, array in record.arrays.items():
        assert np.array_equal(array, resumed.arrays[name]), name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("experiment.removed=119", "fewer than the 120 training points"),
        ("experiment.kernel=fast", "kernel must be"),
        ("experiment.seeds=2", "does not use it"),
        ("experiment.checkpoints=2", "does not use it"),
        ("+solver=cg", "uses no solver"),
        ("experiment.dtype=float16", "choose float32 or float64"),
        ("experiment.damping=0", "damping"),
    ],
)
def test_what_cannot_be_used_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
):
    with pytest.raises(JobFailed):
        execute(composed(*SMALL, "experiment.steps=2000", f"output={tmp_path / 'out'}", override))
    assert message in capsys.readouterr().err
