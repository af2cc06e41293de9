"""No embedded claim is vacuous: each is false of a run that is spoiled on purpose (most by marker ``slow``).

The real tiers' claims are of the same kinds: test_claims.py shows each of them false just outside its bound,
and ``fails_when`` says of what run.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import experiments.data
from experiments.records.record import Record
from experiments.suite.job import execute
from experiments.verification.claims import NOT_REPRODUCED, REPRODUCED, Claim, Spec, judge, load
from experiments.verification.outcome import read, verdicts_of
from tests.experiments.test_configs import composed
from tests.experiments.verification import verifying

SMOKE = {claim.id: claim for claim in load() if claim.tier == "smoke"}
# Experiment, settings that spoil it, and the claims that must then fail on its finished record.
SPOILED: list[tuple[str, str, set[str]]] = [
    (
        "loo_linear",
        "solver.damping=1",  # a hundred times lambda
        {"smoke-loo-pearson", "smoke-loo-sign", "smoke-loo-scale", "smoke-cg-exact"},
    ),
    (
        "readmission",
        "solver=cg solver.damping=1",
        {"smoke-readmission-lead", "smoke-readmission-ratio", "smoke-readmission-retraining"},
    ),
    ("readmission", "model.l2=100 experiment.test_index=0", {"smoke-readmission-mistakes"}),
    (
        "smooth_hinge",
        "experiment.test_index=0",  # right and beyond the margin: no point has any influence on it
        {"smoke-hinge-pearson", "smoke-hinge-gain", "smoke-hinge-size"},
    ),
    ("smooth_hinge", "model.l2=100", {"smoke-hinge-gain", "smoke-hinge-size"}),
    ("components", "solver.damping=1e6", {"smoke-components-full"}),
    (
        "loo_cnn",
        "solver.damping=100 experiment.eigenvalues=0",
        {"smoke-cnn-pearson", "smoke-cnn-negative-curvature"},
    ),
    ("loo_cnn", "experiment.steps=20 solver.damping=10 experiment.eigenvalues=0", {"smoke-cnn-accuracy"}),
    (
        "loo_cnn_stationary",
        "experiment.tolerance=0.9",  # it stays where Adam leaves it
        {"smoke-stationary-gradient", "smoke-stationary-theory", "smoke-stationary-minimum"},
    ),
    ("loo_cnn_stationary", "model.l2=1", {"smoke-stationary-parting"}),
    ("loo_cnn_truths", "experiment.damping=1e-3", {"smoke-truths-proximal"}),
    ("loo_cnn_truths", "model.l2=1", {"smoke-truths-cold"}),  # one minimum: all three truths are one
    ("rbf_vs_inception", "experiment.gamma=1", {"smoke-fig4-svm-distance"}),
    ("rbf_vs_inception", "model.l2=1e6", {"smoke-fig4-network-accuracy"}),
    (
        "benchmark",
        "experiment.tasks.A.measurements.ours.options.tolerance=0.9 "
        "experiment.tasks.E.measurements.ours.dtype=float32",
        {"smoke-benchmark-cg", "smoke-benchmark-exact"},
    ),
    ("spam", "model.l2=1e6", {"smoke-spam-found", "smoke-spam-over-random"}),
    (
        "attack_single",
        "experiment.iterations=1",  # one step flips nothing
        {"smoke-attack-unseen", "smoke-attack-verified", "smoke-attack-ten"},
    ),
    ("attack_group", "experiment.iterations=1", {"smoke-attack-group"}),
    (
        "leverage",
        "model.l2=1e-7",  # too flat for one Newton step
        {"smoke-leverage-slope", "smoke-leverage-first-order", "smoke-leverage-error"},
    ),
    ("groups", "model.l2=1e-7", {"smoke-groups-newton", "smoke-groups-size"}),
    (
        "lds",
        "experiment.share=0.02",  # fourteen points a model
        {"smoke-lds-influence", "smoke-lds-dot"},
    ),
    ("lds", "solver.depth=1 solver.repeats=1 solver.batch=1 solver.scale=1e6", {"smoke-lds-lissa"}),
    ("fragility", "experiment.iterations=1", {"smoke-fragility-converged", "smoke-fragility-stopped"}),
]
# Claims that no setting spoils: the test below each says how.
BY_HAND = {
    "smoke-components-same-label",
    "smoke-components-other-label",
    "smoke-groups-rank",
    "smoke-spam-recovery",
}


def spoiled(experiment: str) -> list[Claim]:
    """The claims on the embedded run of ``experiment``."""
    return [claim for claim in SMOKE.values() if claim.run.name == f"smoke/{experiment}"]


def test_every_embedded_claim_is_seen_to_fail() -> None:
    shown = [name for _, _, failing in SPOILED for name in failing]
    assert {*shown, *BY_HAND} == set(SMOKE)


@pytest.mark.parametrize(
    ("experiment", "overrides", "failing"),
    [
        pytest.param(*row, marks=[] if row[0] == "loo_linear" else pytest.mark.slow, id=f"{row[0]} {row[1]}")
        for row in SPOILED
    ],
)
def test_a_spoiled_run_fails_its_claims(
    experiment: str, overrides: str, failing: set[str], tmp_path: Path
) -> None:
    spec = Spec("spoiled", f"experiment={experiment} {overrides}", "smoke")
    claims = [dataclasses.replace(claim, run=spec) for claim in spoiled(experiment)]
    execute(composed(*spec.arguments, "tracking=none", f"output={tmp_path / 'run'}"))
    outcome = read(spec, tmp_path / "run")
    assert outcome.record is not None, outcome.problem
    found = verdicts_of(claims, {"spoiled": outcome})
    assert failing <= {verdict.claim.id for verdict in found if verdict.status == NOT_REPRODUCED}


@pytest.mark.slow
def test_on_centred_pixels_the_hessian_is_not_what_turns_signs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = experiments.data.load

    def centred(*args: Any, **kwargs: Any) -> Any:
        data = original(*args, **kwargs)
        mean = data.train.X.mean(axis=0)
        return dataclasses.replace(
            data,
            train=dataclasses.replace(data.train, X=data.train.X - mean),
            test=dataclasses.replace(data.test, X=data.test.X - mean),
        )

    monkeypatch.setattr(experiments.data, "load", centred)
    folder = execute(composed("experiment=components", "tracking=none", f"output={tmp_path / 'run'}"))
    record = Record.load(folder)
    for name in ("smoke-components-same-label", "smoke-components-other-label"):
        assert judge(SMOKE[name], record).status == NOT_REPRODUCED


@pytest.mark.slow
def test_labels_left_as_they_are_recover_nothing(tmp_path: Path) -> None:
    folder = execute(composed("experiment=spam", "tracking=none", f"output={tmp_path / 'run'}"))
    record, claim = Record.load(folder), SMOKE["smoke-spam-recovery"]
    assert judge(claim, record).status == REPRODUCED
    unmended = record.metrics["k2"]["flipped_accuracy"] - record.metrics["clean_accuracy"]
    assert np.isfinite(unmended)
    assert judge(claim, verifying.altered(record, claim, unmended)).status == NOT_REPRODUCED


@pytest.mark.slow
def test_scores_of_other_points_do_not_rank_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments.groups import experiment

    original = experiment.answers

    def shuffled(*args: Any, **kwargs: Any) -> Any:
        before, scores, after = args[:6], args[6], args[7:]
        return original(*before, np.random.default_rng(0).permutation(scores), *after, **kwargs)

    monkeypatch.setattr(experiment, "answers", shuffled)
    folder = execute(composed("experiment=groups", "tracking=none", f"output={tmp_path / 'run'}"))
    assert judge(SMOKE["smoke-groups-rank"], Record.load(folder)).status == NOT_REPRODUCED
