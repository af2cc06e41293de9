"""The spot check: it passes on the true record and fails on one with one number altered by 1 %."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.records.record import Record
from experiments.suite import spot
from experiments.suite.job import execute
from experiments.suite.spot import (
    ROUNDING,
    ROUNDING_OF_A_NETWORK,
    ROUNDING_OF_AN_ATTACK,
    as_many_threads,
    differences,
    made_elsewhere,
    rounding,
    unlike,
)
from experiments.verification import tables
from experiments.verification.claims import Spec
from experiments.verification.outcome import Outcome
from experiments.verification.report import section_of
from experiments.verification.spots import FAILED, IMPOSSIBLE, PASSED
from experiments.verify import COMMAND, spot_checked
from tests.experiments.test_configs import composed
from tests.experiments.verification import verifying

SHORT = {"wall_seconds": 1.0}
# Experiment and settings; an array of retrained points; a metric that comes from the fit or the scores.
RUNS = {
    "loo_linear": (["experiment.removed=12", "experiment.compare={}"], "actual", ("test_loss",)),
    "smooth_hinge": (["experiment.removed=8"], "actual", ("test_margin",)),
    "leverage": (["experiment.factors=[1,0.1]"], "actual", ("largest_leverage", 1)),
    "groups": (["experiment.shares=[0.01,0.1]"], "refit", ("largest_refit",)),
    "readmission": ([], "actual", ("children_checked", "worst_ratio")),
    "components": ([], "full", ("harmful", "score")),
    "spam": (
        ["experiment.repeats=3", "experiment.flips=[1,2]", "experiment.checks=2", "experiment.shown=3",
         "experiment.workers=0"],
        "accuracy_loss",
        ("k1", "accuracy", "loss", 0),
    ),
    "loo_cnn": (
        ["experiment.steps=150", "experiment.retraining_steps=12", "experiment.removed=5",
         "experiment.rates=[[0,0.02]]", "experiment.checkpoints=2", "experiment.seeds=2",
         "solver.damping=0.5"],
        "changes",
        ("steps", "6", "pearson"),
    ),
    "loo_cnn_stationary": (
        ["experiment.n_train=120", "experiment.batch=60", "experiment.steps=200", "experiment.removed=6",
         "experiment.rates=[[0,0.02]]", "model.l2=0.01", "experiment.fractions=[0.01,1]"],
        "actual_at",
        ("hessian", "largest"),
    ),
    "loo_cnn_truths": (
        ["experiment.n_train=120", "experiment.batch=60", "experiment.steps=200", "experiment.removed=4",
         "experiment.random=3", "experiment.rates=[[0,0.02]]", "experiment.orders=1",
         "experiment.retraining_steps=12"],
        "cold",
        ("truths", "proximal", "all", "hessian", "pearson"),
    ),
    "lds": (
        ["data.classes=[3,8]", "experiment.n_train=80", "solver.depth=200", "experiment.n_test=6",
         "experiment.masks=12", "experiment.projections=16"],
        "lds",
        ("methods", "trak", "lds"),
    ),
    "fragility": (
        ["experiment.depths=[1]", "experiment.widths=[3]", "experiment.removed=4", "experiment.steps=50",
         "experiment.seeds=2"],
        "stopped_change_actual",
        ("by", "stopped", "full", "decayed", "all"),
    ),
    "attack_group": (["experiment.iterations=30"], "losses", ("class_distance",)),
    "attack_single": (["experiment.test_images=4"], "l2", ("theta_norm",)),
}  # fmt: skip
DRAWN = {
    "spam": 4,
    "leverage": "1 lambda fitted again, 4 points retrained",
    "loo_linear": 4,
    "smooth_hinge": 4,
    "groups": "2 groups left out",
    "loo_cnn": "1 s_test solved again, 4 points retrained",
    "loo_cnn_stationary": "6 points retrained",
    "loo_cnn_truths": "2 points retrained, 1 training anew",
    "lds": "4 test points scored again",
    "fragility": 16,
    "attack_group": "4 iterations repeated",
    "attack_single": "4 test image(s) attacked again",
}
POINTS = {
    "fragility": 32,
    "groups": 8,
    "loo_cnn_stationary": 12,
    "loo_cnn_truths": 20,
    "attack_single": 200,
}  # what is altered is among them


@pytest.fixture(scope="module", params=RUNS)
def made(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    embedded: Callable[[str], Path],
) -> tuple[Spec, Record]:
    """An embedded run of each kind: its command and its record."""
    name = request.param
    arguments = [f"experiment={name}", *RUNS[name][0]]
    if RUNS[name][0]:
        own = f"output={tmp_path_factory.mktemp(name) / 'run'}"
        folder = execute(composed(*arguments, "tracking=none", own))
    else:
        folder = embedded(name)
    return Spec(name, " ".join(arguments), "smoke"), Record.load(folder)


def altered(record: Record, change: Callable[[Record], None]) -> Record:
    changed = copy.deepcopy(record)
    change(changed)
    return changed


def test_the_true_record_passes_and_one_number_altered_by_a_hundredth_fails(made: Any) -> None:
    spec, record = made
    points = POINTS.get(spec.name, 4)
    found = spot.check(spec, record, SHORT, points, seed=3)
    assert found.status == PASSED, found
    drawn = DRAWN.get(spec.name)
    if isinstance(drawn, int):
        drawn = f"{drawn} points retrained"
    assert found.what == (drawn or "repeated whole")
    array, path = RUNS[spec.name][1:]

    def metric(changed: Record) -> None:
        *above, last = path
        node: Any = changed.metrics
        for key in above:
            node = node[key]
        if not isinstance(node, list) and last not in node:
            last = next(key for key, value in node.items() if isinstance(value, float))
        node[last] *= 1.01

    def largest(changed: Record) -> None:
        values = changed.arrays[array]
        values[np.unravel_index(np.abs(values).argmax(), values.shape)] *= 1.01

    for change in (metric, largest):
        failed = spot.check(spec, altered(record, change), SHORT, points, seed=3)
        assert failed.status == FAILED, (spec.name, change.__name__)
        assert "repeated" in failed.what


@pytest.mark.usefixtures("undrawn")
def test_rounding_of_features_in_float32_is_no_difference_and_a_hundredth_still_is() -> None:
    values = np.array([4.1e-4, -1.57067e-7, 3.0e-5])
    other = values + np.array([0, -6.2e-10, 0])  # as two processors had it
    record, again = (Record("a", {}, arrays={"predicted": array}) for array in (values, other))
    assert len(differences(record, again)) == 1
    assert not differences(record, again, rounding(composed("experiment=rbf_vs_inception")))
    assert rounding(composed("experiment=loo_linear")) == ROUNDING
    assert rounding(composed("experiment=attack_group")) == ROUNDING_OF_AN_ATTACK
    single = composed("experiment=loo_cnn", "experiment.retraining_dtype=float32")
    assert rounding(single) == ROUNDING_OF_A_NETWORK
    altered = Record("a", {}, arrays={"predicted": values * [1, 1, 1.01]})
    for bound in (ROUNDING_OF_A_NETWORK, ROUNDING_OF_AN_ATTACK):
        largest = Record("a", {}, arrays={"predicted": values * [1.01, 1, 1]})
        assert len(differences(record, largest, bound)) == 1
    assert len(differences(record, altered, ROUNDING_OF_A_NETWORK)) == 1


def test_differences_from_an_attack_of_another_processor_neither_pass_nor_fail() -> None:
    elsewhere = {"machine": {"processor": "another"}}
    attack, linear = (composed(f"experiment={name}") for name in ("attack_single", "loo_linear"))
    found = made_elsewhere(attack, elsewhere, ["loss is 1, repeated 1.01"])
    assert found is not None
    assert (found.status, "repeated 1.01" in found.what) == (IMPOSSIBLE, True)
    assert made_elsewhere(attack, elsewhere, []) is None
    assert made_elsewhere(attack, {}, ["loss"]) is None
    assert made_elsewhere(linear, elsewhere, ["loss"]) is None


def test_a_run_is_repeated_with_the_recorded_number_of_threads() -> None:
    recorded = {"machine": {"torch_threads": 2}}
    assert as_many_threads(["experiment=spam"], recorded) == ["threads=2"]
    assert as_many_threads(["threads=1"], recorded) == as_many_threads([], {}) == []


def test_the_sign_of_a_zero_eigenvalue_is_no_difference() -> None:
    assert not unlike("hessian.negative", 135, 136)
    assert unlike("hessian.negative", 135, 137)
    assert unlike("hessian.negative", 0, 1)


def test_every_drawn_point_is_seen_and_the_seed_draws_it(tmp_path: Path) -> None:
    arguments = ["experiment=smooth_hinge", "experiment.removed=6"]
    execute(composed(*arguments, "tracking=none", f"output={tmp_path / 'run'}"))
    spec, record = Spec("s", " ".join(arguments), "smoke"), Record.load(tmp_path / "run")
    for place in range(6):
        changed = altered(record, lambda r, at=place: r.arrays["actual"].__setitem__(at, 0.123))
        assert spot.check(spec, changed, SHORT, points=6, seed=0).status == FAILED
    drawn = []
    for seed in (0, 1):
        context = spot.SpotContext(composed(*arguments), tmp_path, record, 2, seed)
        asked: list[int] = []
        context.retrained(np.arange(6), lambda rows, to=asked: to.extend(rows) or {"actual": rows * 1.0})
        drawn.append(asked)
    assert [len(rows) for rows in drawn] == [2, 2]
    assert drawn[0] != drawn[1]


def test_what_cannot_be_checked_is_named(tmp_path: Path) -> None:
    for name, said in (("rbf_vs_inception", "4000 s"), ("loo_cnn", "lacks the array states")):
        spec = Spec(name, f"experiment={name} tier=paper", "paper")
        found = spot.check(spec, verifying.record(), {"wall_seconds": 4000.0}, 20, 0)
        assert (found.status, said in found.what) == (IMPOSSIBLE, True), found
    times = spot.check(Spec("b", "experiment=benchmark", "smoke"), verifying.record(), SHORT, 20, 0)
    assert "times" in times.what
    nowhere = Spec(
        "c",
        f"experiment=components tier=paper data.mirror={tmp_path / 'none'} data.data_dir={tmp_path}",
        "paper",
    )
    assert spot.check(nowhere, verifying.record(), SHORT, 20, 0).status == IMPOSSIBLE


@pytest.mark.parametrize(("name", "y"), [("components", "test_loss"), ("attack_group", "loss_after")])
def test_one_job_of_a_sweep_is_repeated(name: str, y: str, embedded: Callable[[str], Path]) -> None:
    overrides = {"experiment": name, "seed": "0"}
    value = Record.load(embedded(name)).metrics[y]
    spec = Spec("sweep_x", f"experiment={name} sweep=x", "smoke", sweep="sweep=x")
    provenance = {"timings": [{"part": "job 0", "seconds": 1.0}]}
    for stated, status in ((value, PASSED), (value * 1.01, FAILED)):
        rows = [{"job": 0, "status": "done", "overrides": overrides, "value": stated}]
        metrics = {"experiment": name, "rows": rows, "y": y}
        record = Record("sweep_x", metrics, {"y": np.array([stated])})
        assert spot.check(spec, record, provenance, 20, 0).status == status
    record.arrays["y"][0] *= 1.01
    assert "y.0" in spot.check(spec, record, provenance, 20, 0).what
    assert spot.check(spec, record, {"timings": []}, 20, 0).status == IMPOSSIBLE
    provenance["timings"] = [{"part": "job 0", "seconds": 2 * spot.LONGEST_JOB}]
    assert "600 s" in spot.check(spec, record, provenance, 20, 0).what


def test_tables_and_report_say_what_was_checked_and_a_failure_is_a_miss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from experiments.verification.claims import judge
    from experiments.verification.outcome import Verification

    claim, record = verifying.claim(), verifying.record()
    for status in (PASSED, FAILED):
        monkeypatch.setattr(spot, "check", lambda *_, said=status: spot.Spot(said, "20 points retrained"))
        outcome = Outcome(claim.run, Path(), record)
        found = Verification([judge(claim, record)], {claim.run.name: outcome}, {})
        spot_checked(found, 20, 7)
        assert found.accepted == (status == PASSED)
        said = "\n".join(tables.spots(found.details))
        assert f"loo_linear: {status}: 20 points retrained" in said
        assert "seed 7" in said
        assert section_of(outcome, found.verdicts, 0)[0]["spot"].startswith(f"spot check {status}")
    assert tables.spots({}) == []
    assert COMMAND.parse(["spot=20", "seed=7"])["spot"] == 20
