"""The network experiment: its nets, its subset, its comparison; blocks and threads change nothing."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.loo_cnn.protocol import deviations, subset
from experiments.loo_cnn.stability import mean_over_seeds, ranks, stability
from experiments.models import networks as models
from experiments.models.autograd import AutogradHessian, eigenvalues_below
from experiments.records.errors import ConfigError
from experiments.records.record import Record
from experiments.suite.ending import JobFailed
from experiments.suite.job import execute
from influence.curvature.operators import Dense, Hessian
from influence.objectives.sequential import network_objective
from influence.solvers import Status
from tests.experiments.test_configs import composed

SMALL = ["experiment=loo_cnn", "tracking=none", "experiment.steps=150", "experiment.retraining_steps=12",
         "experiment.removed=5", "experiment.rates=[[0,0.02]]", "solver.damping=0.5",
         "experiment.checkpoints=2"]  # fmt: skip


def test_the_papers_net():
    net = models.tanh_cnn("tanh_cnn", 28, 10, torch.Generator().manual_seed(0))
    assert sum(w.numel() for w in net.parameters()) == 2616
    assert net(torch.zeros(3, 1, 28, 28, dtype=torch.float64)).shape == (3, 10)
    maps = net[:11](torch.zeros(1, 1, 28, 28, dtype=torch.float64))
    assert maps.shape[2:] == (2, 2)
    for layer, factor in ((net[0], 2 / 3), (net[2], 2 / 72**0.5), (net[-1], 1 / 10**0.5)):
        assert float(layer.weight.detach().abs().max()) <= 2 * factor
        assert float(layer.bias.detach().abs().max()) == 0
    assert 0.8 < float(net[2].weight.detach().std()) / (0.88 * 2 / 72**0.5) < 1.2
    again = models.tanh_cnn("tanh_cnn", 28, 10, torch.Generator().manual_seed(0))
    assert torch.equal(again[4].weight, net[4].weight)


def test_unfit_nets_are_named():
    with pytest.raises(ConfigError, match="tanh_cnn or tanh_cnn_small"):
        models.tanh_cnn("resnet", 28, 10, torch.Generator())
    with pytest.raises(ConfigError, match="larger images"):
        models.tanh_cnn("tanh_cnn", 8, 10, torch.Generator())


def test_the_subset_is_the_authors():
    order = np.arange(55000)
    np.random.seed(0)
    np.random.shuffle(order)
    assert np.array_equal(subset(55000, 5500, 0), order[:5500])
    assert np.array_equal(subset(7, None, 0), np.arange(7))
    with pytest.raises(ConfigError, match="n_train=8"):
        subset(7, 8, 0)


def test_the_yardstick_and_the_eigenvalues():
    net = models.tanh_cnn("tanh_cnn_small", 8, 10, torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(1)
    X, y = torch.rand(30, 1, 8, 8, generator=g, dtype=torch.float64), torch.arange(30) % 10
    o = network_objective(net, "cross_entropy", X, y, 0.1, l2_parameters="weights", batch_size=8)
    theta = o.initial()
    V = torch.randn(o.p, 2, generator=g, dtype=torch.float64)
    torch.testing.assert_close(AutogradHessian(o, theta) @ V, Hessian(o, theta) @ V, rtol=1e-9, atol=1e-11)
    low = torch.tensor([-9.0, -6.0, -3.0], dtype=torch.float64)
    large = torch.diag(torch.cat([low, torch.linspace(0.1, 60, 700, dtype=torch.float64)]))
    values = eigenvalues_below(Dense(large), 3, seed=0)
    np.testing.assert_allclose(values, large.diagonal()[:3].numpy(), rtol=1e-2)
    assert len(eigenvalues_below(Dense(large[:5, :5]), 9, seed=0)) == 5


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """The small run as it stands, which others are compared with."""
    return Record.load(execute(composed(*SMALL, f"output={tmp_path_factory.mktemp('one') / 'run'}")))


@pytest.mark.usefixtures("undrawn")
def test_blocks_threads_and_the_kernel_change_nothing(one: Record, tmp_path: Path):
    otherwise = ["experiment.block=2", "experiment.workers=2", "experiment.kernel=torch"]
    blocks = Record.load(execute(composed(*SMALL, f"output={tmp_path / 'blocks'}", *otherwise)))
    assert one.arrays.keys() == blocks.arrays.keys()
    for name, array in one.arrays.items():
        np.testing.assert_allclose(blocks.arrays[name], array, rtol=1e-6, atol=1e-9)
    found = one.metrics
    np.testing.assert_allclose(one.arrays["actual_raw"] - found["drift"], one.arrays["actual"], atol=1e-12)
    assert found["pearson"] == pytest.approx(found["raw"]["pearson"])  # one constant moves no correlation
    assert set(found["steps"]) == {"6", "12"}
    assert np.array_equal(np.sort(np.abs(one.arrays["predicted"]))[::-1], np.abs(one.arrays["predicted"]))
    assert blocks.metrics["kernel"] == "torch"
    assert blocks.metrics["hessian"]["computed"] in (12, found["n_parameters"])
    assert found["hessian"]["smallest"] == pytest.approx(blocks.metrics["hessian"]["smallest"], rel=1e-6)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "solver.preconditioner=jacobi",
            "solver.preconditioner=jacobi: experiment=loo_cnn takes none or gauss_newton",
        ),
        ("experiment.retraining_dtype=int64", "experiment.retraining_dtype=int64"),
        ("experiment.kernel=fast", "experiment.kernel=fast: kernel must be"),
        ("experiment.test_index=99999", "out of range"),
    ],
)
def test_what_cannot_be_used_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
):
    cfg = composed(*SMALL, "experiment.steps=2000", f"output={tmp_path / 'out'}", override)
    with pytest.raises(JobFailed):
        execute(cfg)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("solver", ["exact", "lissa"])
@pytest.mark.usefixtures("undrawn")
def test_other_solvers_are_used(one: Record, tmp_path: Path, solver: str):
    extra = [
        "solver=lissa",
        "solver.depth=60",
        "solver.batch=200",
        "solver.repeats=1",
        "solver.raise_on_failure=false",
    ]
    cfg = composed(*SMALL, f"output={tmp_path / 'out'}", *(extra if solver == "lissa" else ["solver=exact"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = Record.load(execute(cfg)).metrics
    assert found["s_test"] != one.metrics["s_test"]
    assert found["pearson"] == pytest.approx(one.metrics["pearson"], abs=1e-6 if solver == "exact" else 0.2)


def test_seeds_are_separate_runs_and_agree_with_single_ones(tmp_path: Path):
    several = Record.load(
        execute(
            composed(*SMALL, f"output={tmp_path / 'two'}", "experiment.seeds=2", "experiment.side_by_side=2")
        )
    )
    position = several.metrics["test_index"]
    second = Record.load(
        execute(composed(*SMALL, f"output={tmp_path / 'one'}", "seed=1", f"experiment.test_index={position}"))
    )
    assert several.metrics["seeds"]["1"]["pearson"] == second.metrics["pearson"]
    assert np.array_equal(several.arrays["seed_actual"][1], second.arrays["actual"])
    assert several.metrics["over_seeds"]["pearson"]["mean"] == pytest.approx(
        np.mean([own["pearson"] for own in several.metrics["seeds"].values()])
    )
    if several.metrics["kernel"] == "compiled":
        assert 0 <= several.metrics["kernel_against_torch"]["relative_difference"] < 1e-12
    assert several.arrays["rank_mean"].shape == several.arrays["scores"].shape


@pytest.mark.filterwarnings("ignore::influence.errors.NotConvergedWarning")
def test_a_seed_without_an_s_test_is_named_and_in_no_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from experiments.loo_cnn import experiment

    arguments = [*SMALL, "experiment.seeds=3", "solver.raise_on_failure=false"]
    whole = experiment.predict_all

    def run(failing: set[int], name: str) -> Record:
        def of(seed, found):
            status = Status.NEGATIVE_CURVATURE if seed in failing else Status.CONVERGED
            return dataclasses.replace(found, solution=dataclasses.replace(found.solution, status=status))

        def predict_all(*given):
            return {seed: of(seed, found) for seed, found in whole(*given).items()}

        monkeypatch.setattr(experiment, "predict_all", predict_all)
        return Record.load(execute(composed(*arguments, f"output={tmp_path / name}")))

    record = run({1}, "one")
    assert record.arrays["seed_solved"].tolist() == [True, False, True]
    assert record.metrics["n_seeds_solved"] == 2
    coefficients = [record.metrics["seeds"][seed]["pearson"] for seed in ("0", "2")]
    assert record.metrics["over_solved_seeds"]["pearson"]["mean"] == pytest.approx(np.mean(coefficients))
    kept = record.arrays["seed_removed"][[0, 2]]
    assert set(record.arrays["shared_index"]) == set(kept[0]) & set(kept[1])
    none = run({0, 1, 2}, "none")
    assert none.metrics["n_seeds_solved"] == 0
    assert "over_solved_seeds" not in none.metrics
    assert len(none.arrays["shared_index"]) == 0


def test_stability_of_seeds():
    scores = np.array([[3.0, -2.0, 1.0, 0.0], [4.0, 1.0, -2.0, 0.5]])
    actual = np.where(np.abs(scores) >= 2, scores / 2, np.nan)
    assert np.array_equal(ranks(scores), [[1, 2, 3, 4], [1, 3, 2, 4]])
    found = stability(scores, actual, 2)
    assert found["points_chosen_by_any_seed"] == 3
    assert found["points_chosen_by_all_seeds"] == found["points_retrained_by_two_seeds"] == 1
    assert found["overlap_of_chosen"] == 0.5
    shared = mean_over_seeds(scores, actual, 2)
    assert shared["index"].tolist() == [0]
    assert shared["actual_mean"].tolist() == [1.75]
    assert shared["predicted_deviation"][0] == pytest.approx(0.5**0.5)


def test_what_differs_from_the_paper_is_said():
    papers = composed("experiment=loo_cnn", "tier=gpu").experiment
    assert deviations(papers) == []
    ours = deviations(composed("experiment=loo_cnn", "tier=paper").experiment)
    assert len(ours) == 3
    assert "instead of 500,000" in ours[0]
    assert "0.03 against the paper's 0.03" in ours[1]
    assert "float32" in ours[2]
