"""Bounds and claims: each can fail, its metric is there, its command composes; the YAML is read strictly."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.records.errors import ConfigError
from experiments.records.record import Record
from experiments.verification.claims import (
    MARK,
    NOT_REPRODUCED,
    PARTLY,
    PATH,
    REPRODUCED,
    STATUSES,
    Bound,
    Claim,
    Verdict,
    judge,
    load,
    lookup,
    value_of,
)
from experiments.verification.tables import (
    as_json,
    junit,
    long_markdown,
    short_markdown,
    summary,
    text,
)
from tests.experiments.test_configs import composed
from tests.experiments.verification import verifying
from tests.helpers import ROOT

CLAIMS = load()
REAL = [claim for claim in CLAIMS if claim.tier != "smoke"]
COMMITTED = [claim for claim in REAL if (ROOT / "results" / claim.run.name / "record.json").is_file()]
BOUNDS = [
    (Bound(at_least=0.9), [0.9, 1, 7.0], [0.89, -1]),
    (Bound(at_most=1e-6), [0, 1e-6, -3], [2e-6, 1]),
    (Bound(between=(-1, 2)), [-1, 0, 2], [-1.01, 2.01]),
    (Bound(near=(10, 0.5)), [9.5, 10.5], [9.4, 10.6]),
    (Bound(equals="6"), ["6"], ["5", 6]),
    (Bound(equals=30), [30, 30.0], [29, "30", True]),
    (Bound(equals=True), [True], [False, 1]),
    (Bound(equals=[3, 4]), [[3, 4]], [[4, 3], [3]]),
]


@pytest.mark.parametrize(("bound", "inside", "outside"), BOUNDS, ids=[str(row[0]) for row in BOUNDS])
def test_bounds(bound: Bound, inside: list[Any], outside: list[Any]) -> None:
    assert all(bound.holds(value) for value in inside)
    assert not any(bound.holds(value) for value in outside)
    assert not any(bound.holds(value) for value in (None, math.nan, math.inf, -math.inf, "nan", []))
    assert not any(bound.holds(value) for value in bound.violations())
    if bound.equals is None:
        assert bound.holds(inside)
        assert not bound.holds([*inside, outside[0]])


@pytest.mark.parametrize(
    "bad",
    [
        *[None, 3, {}, {"above": 1}, {"at_least": "x"}, {"at_least": True}, {"between": [2, 1]}],
        *[{"near": [1, 0]}, {"at_least": 1, "at_most": 2}, {"between": [1]}, {"at_most": math.nan}],
    ],
)
def test_a_bound_that_says_nothing_is_refused(bad: Any) -> None:
    with pytest.raises(ConfigError, match="somewhere: "):
        Bound.read(bad, "somewhere")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"id": "Not An Id"}, "an id is made of"),
        ({"run": "nowhere"}, "unknown run"),
        ({"seen": {"date": "2026-11-25"}}, "seen has a date and a what"),
        ({"tolerance": "loose"}, "the tolerance is"),
        ({"partly": {"at_least": 0.5}}, "go together"),
        ({"sentense": "x"}, "unknown sentense"),
        ({"reason": None}, "missing reason"),
        ({"minus": "a", "over": "b"}, "not both"),
        ({"bound": None}, "a bound is one of"),
        ({"id": "second"}, "occur twice"),
    ],
)
def test_the_yaml_is_read_strictly(tmp_path: Path, change: dict[str, Any], word: str) -> None:
    content = yaml.safe_load((PATH / "loo_linear.yaml").read_text())
    first = {key: value for key, value in (content["claims"][2] | change).items() if value is not None}
    second = content["claims"][3] | {"id": "second"}
    path = tmp_path / "loo_linear.yaml"
    path.write_text(yaml.safe_dump({"run": content["run"], "claims": [first, second]}))
    with pytest.raises(ConfigError, match=word):
        load(tmp_path)


def test_embedded_data_have_no_value_in_the_paper(tmp_path: Path) -> None:
    """A stand-in's number beside the paper's would read as a replication of it."""
    assert all(claim.paper is None for claim in CLAIMS if claim.tier == "smoke")
    content = yaml.safe_load((PATH / "smoke" / "spam.yaml").read_text())
    content["claims"][0]["paper"] = 0.622
    (tmp_path / "spam.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match="paper must be null"):
        load(tmp_path)
    held = Verdict(next(claim for claim in CLAIMS if claim.tier == "smoke"), REPRODUCED, 1.0)
    for table in (text([held]), summary([held]), as_json([held], {}), junit([held]).decode()):
        assert "reproduced" not in table
        assert "holds" in table


def test_a_bound_set_after_its_number_is_marked_in_every_table() -> None:
    after = [claim for claim in CLAIMS if claim.after_its_number]
    assert {"fig1-full", "sweep-temperature-best", "readmission-norm", "smoke-spam-found"} <= {
        c.id for c in after
    }
    words = ("after the number was seen", "after a first trial", "after the record was seen")
    assert not [c.id for c in CLAIMS if any(word in f"{c.reason}{c.partly_reason}" for word in words)]
    marked = verifying.claim(seen={"date": "2026-11-25", "what": "its own record"}, headline=True)
    verdict = judge(marked, verifying.record())
    for table in (
        text([verdict]),
        short_markdown([verdict]),
        long_markdown([verdict]),
        junit([verdict]).decode(),
    ):
        assert f"{marked.bound} {MARK}" in table
    assert json.loads(as_json([verdict], {}))["claims"][0]["set_or_moved_after_its_number"] is True
    plain = judge(verifying.claim(headline=True), verifying.record())
    assert not any(
        MARK in table for table in (text([plain]), short_markdown([plain]), long_markdown([plain]))
    )


def test_each_sentence_stands_alone() -> None:
    """It names what it is about: no word that points to the claim before it."""
    for claim in CLAIMS:
        first = claim.sentence.split()[0]
        assert first not in ("So", "Their", "Its", "They", "It", "Before,", "This", "That"), claim.sentence
        assert claim.sentence.endswith("."), claim.sentence
        assert len(claim.sentence.split()) >= 6, claim.sentence
    assert len({(claim.tier, claim.sentence) for claim in CLAIMS}) >= len(CLAIMS) - 6


SECTIONS = {"components": "2.3", "loo_linear": "4.1", "loo_cnn": "4.2", "smooth_hinge": "4.3", "spam": "5.4"}
SECTIONS |= {"rbf_vs_inception": "5.1", "attack_single": "5.2", "attack_group": "5.2", "readmission": "5.3"}


def test_claims_name_the_paper_s_sections() -> None:
    for spec in {claim.run for claim in CLAIMS}:
        if spec.experiment in SECTIONS and not spec.sweep:
            assert spec.section == SECTIONS[spec.experiment], spec.name


def test_lookup_goes_through_dicts_and_lists() -> None:
    metrics = {"a": {"t=0.1": [1.0, {"b": 2}]}, "list": [5]}
    assert lookup(metrics, "a.t=0.1.1.b") == 2
    assert lookup(metrics, "list.-1") == 5
    for missing in ("a.b", "list.1", "list.x", "a.t=0.1.0.b", "z"):
        assert lookup(metrics, missing) is None


def test_differences_and_ratios() -> None:
    metrics = {"a": 3.0, "b": 2.0, "zero": 0.0, "l": [3.0, 5.0], "m": [1.0, 2.0], "text": "x"}
    record = verifying.record(metrics=metrics)

    def value(**changes: Any) -> Any:
        return value_of(verifying.claim(**changes), record)

    assert value(metric="a", minus="b") == 1.0
    assert value(metric="a", over="b") == 1.5
    assert value(metric="l", minus="m") == [2.0, 3.0]
    assert math.isnan(value(metric="a", over="zero"))
    assert value(metric="a", minus="text") is None
    assert value(metric="a", minus="missing") is None


def test_a_verdict_for_every_case() -> None:
    record = verifying.record()
    weaker = {"bound": Bound(at_least=0.9999), "partly": Bound(at_least=0.5), "partly_reason": "small data"}
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({}, REPRODUCED, ""),
        ({"bound": Bound(at_least=0.9999)}, NOT_REPRODUCED, "outside ≥ 0.9999"),
        (weaker, PARTLY, "small data"),
        ({**weaker, "partly": Bound(at_least=0.9998)}, NOT_REPRODUCED, "outside"),
        ({"metric": "absent"}, NOT_REPRODUCED, "the record has no absent"),
        ({"metric": "nested.nan"}, NOT_REPRODUCED, "outside"),
        ({"bound": Bound(at_least=2), "missed": "why"}, NOT_REPRODUCED, "outside ≥ 2; why"),
        ({"from_arrays": {"pearson": ["x", "y"]}}, REPRODUCED, ""),
        ({"from_arrays": {"slope": ["x", "y"]}}, NOT_REPRODUCED, "the record's arrays give"),
        ({"from_arrays": {"pearson": ["x", "z"]}}, NOT_REPRODUCED, "lacks the arrays"),
    ]
    for changes, status, remark in cases:
        verdict = judge(verifying.claim(**changes), record)
        assert (verdict.status, verdict.accepted) == (status, status in (REPRODUCED, PARTLY)), changes
        assert remark in verdict.remark
    assert judge(verifying.claim(), verifying.record(tier="smoke")).status == NOT_REPRODUCED
    assert judge(verifying.claim(), verifying.record(experiment="spam")).status == NOT_REPRODUCED


def test_there_are_enough_claims_and_each_is_complete() -> None:
    assert len(COMMITTED) >= 25
    for claim in CLAIMS:
        for said in (claim.sentence, claim.section, claim.where, claim.reason, claim.fails_when):
            assert said.strip(), claim.id
        assert claim.section[0] in "2345", claim.id
        assert all({"date", "from", "reason"} == set(move) for move in claim.moved), claim.id
    for claim in [claim for claim in CLAIMS if claim.tier == "smoke"] + COMMITTED:
        assert claim.run.minutes, f"{claim.run.name} has no measured cost"


@pytest.mark.parametrize(
    "spec", {claim.run.name: claim.run for claim in CLAIMS}.values(), ids=lambda s: s.name
)
def test_each_command_composes(spec: Any) -> None:
    cfg = composed(*spec.arguments)
    assert (cfg.experiment.name, cfg.tier.name) == (spec.experiment, spec.tier)


@functools.cache
def committed(name: str) -> Record:
    """The record of a run in ``results/``, read once for all of its claims, which alter copies."""
    return Record.load(ROOT / "results" / name)


@pytest.mark.parametrize("claim", COMMITTED, ids=lambda claim: claim.id)
def test_each_committed_claim_holds_and_can_fail(claim: Claim) -> None:
    record = committed(claim.run.name)
    if claim.missed:  # said openly; verify still exits 1 on it
        assert judge(claim, record).status == NOT_REPRODUCED, f"{claim.id} holds now: remove its missed"
        return
    verifying.check_that_it_can_fail(claim, record)


def test_statuses_are_the_four_that_the_tables_know() -> None:
    assert set(STATUSES) == {"reproduced", "partly", "not reproduced", "not run"}


def test_the_cost_of_a_run_is_that_of_its_record_and_an_estimate_is_called_one(tmp_path: Path) -> None:
    folder = tmp_path / "claims"
    folder.mkdir()
    text = """
run: {overrides: experiment=components, tier: smoke, minutes: 9, gib: 4}
claims:
- {id: a, sentence: S., section: "1", metric: m, paper: null, where: w, bound: {at_least: 1}, reason: r,
   fails_when: f}
"""
    (folder / "components.yaml").write_text(text)
    (claim,) = load(folder, tmp_path / "results")
    assert claim.run.cost == "9 min, 4 GiB (an estimate)"
    (tmp_path / "results" / "components").mkdir(parents=True)
    place = tmp_path / "results" / "components" / "provenance.json"
    place.write_text('{"wall_seconds": 90.0, "peak_mib": 1536.0}')
    (claim,) = load(folder, tmp_path / "results")
    assert claim.run.cost == "1.5 min, 1.5 GiB"
    assert (claim.run.minutes, claim.run.gib) == (1.5, 1.5)
    place.write_text("{")
    assert load(folder, tmp_path / "results")[0].run.minutes == 9
    (folder / "components.yaml").write_text(text.replace("gib: 4", "measured: true"))
    with pytest.raises(ConfigError, match="not set by hand"):
        load(folder, tmp_path / "results")
