"""Sweeps: the collector tells done, failed and missing; a job alone is the job of a sweep, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.records.errors import UserError
from experiments.records.places import CONF
from experiments.records.record import Record
from experiments.suite.figures import draw
from experiments.suite.sweeps import collect, expected, extremes, label_of, number_of, record_of, varied_in
from experiments.verification.claims import NOT_REPRODUCED, REPRODUCED, Bound, Claim, Spec, load, lookup
from experiments.verification.outcome import verify
from tests.experiments.verification import verifying
from tests.helpers import cli

SMALL = ("experiment=smooth_hinge", "tracking=none", "experiment.removed=3")
JOBS = {
    **{"attack_row": 5, "attack_size": 5, "cg_tolerance": 7},
    **{"damping": 18, "lissa": 24, "temperature": 6},
}
ASK = ("sweep=temperature", "x=experiment.temperatures", "y=temperatures.*.pearson", "log=x")


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "sweep").glob("*.yaml")))
def test_every_sweep_says_its_jobs(name: str) -> None:
    jobs = expected(name)
    assert len(jobs) == JOBS[name]
    assert len({str(job) for job in jobs}) == len(jobs)


def test_an_unknown_sweep_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="temperature"):
        collect(tmp_path, "nothing", "pearson")


def test_extremes_ignore_what_is_not_a_number() -> None:
    points = [(1.0, 0.5, "a"), (2.0, float("nan"), "a"), (3.0, 0.9, "b")]
    assert extremes(points)["highest"] == {"x": 3.0, "y": 0.9, "line": "b"}
    assert extremes(points)["lowest"] == {"x": 1.0, "y": 0.5, "line": "a"}
    assert extremes(points[1:2]) == {}


def test_a_claim_can_be_made_of_a_sweep(tmp_path: Path) -> None:
    """Jobs, collector, record, verdict, figure; the same claim with another bound is missed."""
    spec = Spec(
        "sweep_temperature",
        "experiment=smooth_hinge sweep=temperature experiment.removed=3",
        "smoke",
        sweep="sweep=temperature x=experiment.temperatures y=temperatures.*.pearson log=x",
    )
    good = verifying.claim(run=spec, metric="lines.all.values.0.001", bound=Bound(between=(-1, 1)))
    bad = verifying.claim(run=spec, id="bad", metric="highest.x", bound=Bound(at_least=2))
    arrays = verifying.claim(
        run=spec, id="own", metric="highest.y", bound=Bound(at_most=1), from_arrays={"max": ["y"]}
    )
    found = verify([good, bad, arrays], "run", tmp_path, tmp_path)
    assert [verdict.status for verdict in found.verdicts] == [REPRODUCED, NOT_REPRODUCED, REPRODUCED]
    folder = tmp_path / "runs" / "sweep_temperature"
    record = Record.load(folder)
    assert (record.data, record.tier, record.metrics["done"]) == ("digits", "smoke", 6)
    assert record.metrics["highest"]["y"] == max(record.metrics["lines"]["all"]["values"].values())
    assert len(found.outcomes["sweep_temperature"].provenance["timings"]) == 6
    drawn = (folder / "sweep_temperature.svg").read_bytes()
    (folder / "sweep_temperature.svg").unlink()
    draw(record, folder)
    assert (folder / "sweep_temperature.svg").read_bytes() == drawn


@pytest.mark.parametrize("spec", [run for run in {c.run.name: c.run for c in load()}.values() if run.sweep])
def test_the_sweeps_of_claims_are_the_lines_at_the_head_of_their_files(spec: Spec) -> None:
    (name,) = [item.removeprefix("sweep=") for item in spec.arguments if item.startswith("sweep=")]
    head = (CONF / "sweep" / f"{name}.yaml").read_text()
    assert f"python -m experiments.sweep OUT {spec.sweep}\n" in head
    assert f"python -m experiments --multirun {spec.overrides} " in head


@pytest.mark.parametrize("claim", [claim for claim in load() if claim.run.sweep], ids=lambda claim: claim.id)
def test_claims_on_sweeps_name_jobs_that_are_expected(claim: Claim) -> None:
    """Before there is a record: ``lines.LABEL.values.X`` must be one of the grid."""
    options = dict(item.split("=", 1) for item in claim.run.sweep.split())
    jobs, x = expected(options["sweep"]), options["x"]
    lines: dict[str, Any] = {}
    for job in jobs:
        at = number_of(job[x]) if x in job else 0.0  # a metric on the x axis is known from records alone
        lines.setdefault(label_of(job, varied_in(jobs), x), {}).setdefault("values", {})[f"{at:g}"] = 1.0
    for metric in filter(None, (claim.metric, claim.minus, claim.over)):
        if x in jobs[0] and metric.startswith("lines."):
            assert lookup({"lines": lines}, metric) == 1.0, metric


def test_jobs_of_a_sweep_are_the_jobs_alone_and_what_is_lost_is_seen(tmp_path: Path) -> None:
    sweep, alone = tmp_path / "sweep", tmp_path / "alone"
    done = cli("--multirun", *SMALL, "sweep=temperature", f"output={sweep}")
    assert done.returncode == 0, done.stderr
    third = expected("temperature")[2]["experiment.temperatures"]
    assert cli(*SMALL, f"experiment.temperatures={third}", f"output={alone}").returncode == 0
    for file in ("record.json", "arrays.npz"):
        assert (sweep / "2" / file).read_bytes() == (alone / file).read_bytes()
    (sweep / "1" / "record.json").unlink()  # as a job that failed leaves its folder
    for file in (sweep / "4").glob("**/*"):
        if file.is_file():
            file.unlink()
    (sweep / "4").rename(tmp_path / "gone")
    found = cli(str(sweep), *ASK, module="experiments.sweep")
    assert found.returncode == 1
    assert [row["status"] for row in collect(sweep, "temperature", "temperatures.*.pearson")] == [
        *("done", "failed", "done", "done", "missing", "done")
    ]
    assert (sweep / "sweep_temperature.svg").stat().st_size > 1000  # of the four that are there
    assert not (sweep / "record.json").exists()  # but it is no record


def test_one_metric_against_another_has_a_line_a_job(tmp_path: Path) -> None:
    x, y = "full_length.movement_over_class_distance", "flipped.by_1.share"
    for number in range(len(expected("attack_size"))):
        metrics = {
            "full_length": {x.split(".")[1]: 0.25 * number},
            "flipped": {"by_1": {"share": number / 10}},
        }
        made = Record("attack_single", metrics, data="dogfish", tier="paper")
        made.save(tmp_path / str(number))
    record = record_of("attack_size", collect(tmp_path, "attack_size", y), tmp_path, x, y, "")
    assert record.metrics["lines"]["size 448"]["highest"] == {"x": 1.0, "y": 0.4, "line": "size 448"}
    assert record.metrics["lines"]["size 112"]["highest"]["y"] == 0.0
    draw(record, tmp_path)
    assert (tmp_path / "sweep_attack_size.svg").stat().st_size > 1000
