"""Verification end to end: fresh runs, committed records, altered ones, and what is printed and written."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from experiments.records.errors import ConfigError, UserError
from experiments.records.record import Record
from experiments.suite.ending import JobFailed
from experiments.suite.job import execute
from experiments.verification import tables
from experiments.verification.claims import NOT_REPRODUCED, NOT_RUN, REPRODUCED, Bound, Claim, Spec, load
from experiments.verification.outcome import Outcome, chosen, read, verdicts_of, verify
from experiments.verify import COMMAND
from tests.experiments.test_configs import composed
from tests.experiments.verification import verifying
from tests.helpers import ROOT, cli, one_sentence

SMOKE = chosen(load(), ["smoke"], None)
RUNS = {claim.run.name: claim.run for claim in SMOKE}


def made(spec: Spec, folder: Path) -> Outcome:
    """The outcome of a run here, without a process of its own, or of its failure."""
    try:
        execute(composed(*spec.arguments, "tracking=none", f"output={folder}"))
    except JobFailed:
        return Outcome(spec, folder, problem="failed")
    return read(spec, folder)


@pytest.mark.parametrize("name", RUNS)
def test_an_embedded_run_holds_and_each_of_its_claims_can_fail(
    name: str, embedded: Callable[[str], Path]
) -> None:
    """Every experiment's embedded variant, to record and figure (test_configs.py: none is left out)."""
    claims = [claim for claim in SMOKE if claim.run.name == name]
    assert RUNS[name].overrides == f"experiment={RUNS[name].experiment}"  # so that the shared run is its own
    outcome = read(RUNS[name], embedded(RUNS[name].experiment))
    assert outcome.record is not None, outcome.problem
    record, folder = outcome.record, outcome.folder
    assert [verdict.status for verdict in verdicts_of(claims, {name: outcome})] == [REPRODUCED] * len(claims)
    for claim in claims:
        verifying.check_that_it_can_fail(claim, record)
    assert record.arrays
    assert [path for path in folder.glob("*.svg") if path.stat().st_size > 1000]
    assert [path for path in folder.glob("*.png") if path.stat().st_size > 1000]
    values = {key: record.metric(entry.get("metric", key)) for key, entry in record.paper.items()}
    assert None not in values.values(), f"{name}: a value of the paper has no metric: {values}"


def test_runs_in_processes_of_their_own_end_in_tables_and_a_report(tmp_path: Path) -> None:
    """The command itself, on the claims of two runs of the embedded tier."""
    claims = [claim for claim in SMOKE if claim.run.experiment in ("components", "readmission")]
    assert len({claim.run.name for claim in claims}) == 2
    asked = ",".join(claim.id for claim in claims)
    done = cli(f"claims={asked}", f"output={tmp_path}", module="experiments.verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(claims)} claims: {len(claims)} holds" in done.stdout
    assert not list(tmp_path.glob("runs/**/wandb"))  # tracking=none
    found = json.loads((tmp_path / "verification.json").read_text())
    assert [row["id"] for row in found["claims"]] == [claim.id for claim in claims]
    assert ElementTree.parse(tmp_path / "junit.xml").getroot().get("tests") == str(len(claims))
    assert (tmp_path / "report.html").stat().st_size < 8_000_000


@pytest.mark.parametrize(
    ("overrides", "failing"),
    [
        ("solver.max_iterations=3 solver.raise_on_failure=false", {"smoke-cg-exact"}),
        (
            "experiment.test_index=99999",
            {"smoke-loo-pearson", "smoke-loo-sign", "smoke-loo-scale", "smoke-cg-exact"},
        ),
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_a_wrong_setting_is_caught_by_the_claims(tmp_path: Path, overrides: str, failing: set[str]) -> None:
    spec = Spec("wrong", f"experiment=loo_linear {overrides}", "smoke")
    claims = [claim for claim in load() if claim.run.name == "smoke/loo_linear"]
    wrong = [dataclasses.replace(claim, run=spec) for claim in claims]
    found = verdicts_of(wrong, {"wrong": made(spec, tmp_path / "run")})
    assert failing <= {verdict.claim.id for verdict in found if verdict.status == NOT_REPRODUCED}


def alter_metric(folder: Path) -> None:
    path = folder / "record.json"
    content = json.loads(path.read_text())
    content["metrics"]["pearson"] = 0.95
    path.write_text(json.dumps(content))


def alter_and_unseal(folder: Path) -> None:
    alter_metric(folder)
    path = folder / "record.json"
    content = json.loads(path.read_text())
    del content["seal"]
    path.write_text(json.dumps(content))


def alter_and_seal_again(folder: Path) -> None:
    record = Record.load(folder)
    record.metrics["pearson"] = 0.95
    record.save(folder)


def lose_the_metric(folder: Path) -> None:
    record = Record.load(folder)
    del record.metrics["pearson"]
    record.save(folder)


def make_it_infinite(folder: Path) -> None:
    record = Record.load(folder)
    record.metrics["pearson"] = float("inf")
    record.save(folder)


def alter_arrays(folder: Path) -> None:
    content = bytearray((folder / "arrays.npz").read_bytes())
    content[-200] ^= 1
    (folder / "arrays.npz").write_bytes(bytes(content))


def lose_arrays(folder: Path) -> None:
    (folder / "arrays.npz").unlink()


def lose_provenance(folder: Path) -> None:
    (folder / "provenance.json").unlink()


def tear(folder: Path) -> None:
    path = folder / "record.json"
    path.write_text(path.read_text()[:-30])


def lose_the_record(folder: Path) -> None:
    (folder / "record.json").unlink()


ALTERATIONS = [
    (alter_metric, NOT_REPRODUCED, "was altered"),
    (alter_and_unseal, NOT_REPRODUCED, "has no seal"),
    (alter_and_seal_again, NOT_REPRODUCED, "the record's arrays give"),
    (lose_the_metric, NOT_REPRODUCED, "the record has no pearson"),
    (make_it_infinite, NOT_REPRODUCED, "arrays give"),
    (alter_arrays, NOT_REPRODUCED, "is not the one"),
    (lose_arrays, NOT_REPRODUCED, "lacks the arrays"),
    (lose_provenance, NOT_REPRODUCED, "holds no finished run"),
    (tear, NOT_REPRODUCED, "is not a record"),
    (lose_the_record, NOT_RUN, "no record in"),
]


@pytest.mark.parametrize(
    ("alter", "status", "word"), ALTERATIONS, ids=[row[0].__name__ for row in ALTERATIONS]
)
def test_a_record_altered_by_hand_is_a_miss(tmp_path: Path, alter: Any, status: str, word: str) -> None:
    folder = verifying.saved(tmp_path / "loo_linear")
    claim = verifying.claim(from_arrays={"pearson": ["x", "y"]})
    before = verify([claim], "results", tmp_path, tmp_path / "out")
    assert before.accepted
    alter(folder)
    after = verify([claim], "results", tmp_path, tmp_path / "out")
    assert not after.accepted
    assert after.verdicts[0].status == status
    assert word in after.verdicts[0].remark


def recorded(claim: Claim) -> bool:
    """Whether its run is committed; where it was and is not any more, the committed tables are stale."""
    return (ROOT / "results" / claim.run.name / "record.json").is_file()


def test_altering_any_committed_record_is_a_miss(tmp_path: Path) -> None:
    """One digit of one metric, in a copy of each committed record: every claim on it is then missed."""
    claims = [claim for claim in chosen(load(), ["paper", "gpu"], None) if recorded(claim)]
    for name in {claim.run.name for claim in claims}:
        source, target = ROOT / "results" / name, tmp_path / name
        target.mkdir(parents=True)
        for file in ("record.json", "arrays.npz", "provenance.json"):
            (target / file).write_bytes((source / file).read_bytes())
        content = json.loads((target / "record.json").read_text())
        content["metrics"]["n_train"] = -1
        (target / "record.json").write_text(json.dumps(content))
    found = verify(claims, "results", tmp_path, tmp_path / "out")
    assert {verdict.status for verdict in found.verdicts} == {NOT_REPRODUCED}


def test_the_exit_code_says_whether_anything_was_missed(tmp_path: Path) -> None:
    done = cli("tier=paper", f"results={tmp_path}", f"output={tmp_path / 'o'}", module="experiments.verify")
    assert done.returncode == 1
    count = len(chosen(load(), ["paper"], None))
    assert f"{count} claims: {count} not run" in done.stdout
    suites = ElementTree.parse(tmp_path / "o" / "junit.xml").getroot()
    assert sum(int(suite.get("errors", 0)) for suite in suites) == count


@pytest.mark.parametrize(
    ("argument", "word"),
    [
        ("tier=papier", "choose from smoke, paper, gpu"),
        ("from=nowhere", "choose from run, results"),
        ("clams=x", "did you mean claims"),
        ("tier", "and no setting"),
        ("claims=no-such-claim", "no claim no-such-claim at tier smoke; there are smoke-"),
        ("update=maybe", "true or false"),
    ],
)
def test_a_wrong_argument_is_named(argument: str, word: str) -> None:
    def choose() -> None:
        given = COMMAND.parse([argument])
        chosen(load(), given["tier"], given["claims"])

    with pytest.raises(ConfigError, match=word):
        choose()


def test_tables_are_written_from_records_alone() -> None:
    done = cli("update=true", module="experiments.verify")
    assert done.returncode == 2
    assert "needs from=results" in one_sentence(done)


def test_a_wrong_argument_exits_2_and_help_exits_0() -> None:
    done = cli("tier=papier", module="experiments.verify")
    assert done.returncode == 2
    assert "tier=papier" in one_sentence(done)
    helped = cli("--help", module="experiments.verify")
    assert helped.returncode == 0
    assert "tier=smoke" in helped.stdout


def test_tables_json_and_junit_say_the_same(tmp_path: Path) -> None:
    verifying.saved(tmp_path / "loo_linear")
    bad = verifying.claim(id="bad", bound=Bound(at_least=1), sentence="A | pipe & <tag>\x00.")
    absent = verifying.claim(id="absent", run=Spec("elsewhere", "experiment=loo_linear tier=paper", "paper"))
    found = verify([verifying.claim(), bad, absent], "results", tmp_path, tmp_path)
    table = tables.text(found.verdicts, wide=True)
    lines = table.splitlines()
    header = [part.strip() for part in lines[0].split("|")]
    assert header == ["claim", "paper", "ours", "bound", "status", "command"]
    assert len({tuple(i for i, c in enumerate(line) if c == "|") for line in (lines[0], *lines[2:5])}) == 1
    assert "3 claims: 1 reproduced, 1 not reproduced, 1 not run" in table
    rows = json.loads(tables.as_json(found.verdicts, found.details))["claims"]
    assert [row["status"] for row in rows] == [REPRODUCED, NOT_REPRODUCED, NOT_RUN]
    suites = ElementTree.fromstring(tables.junit(found.verdicts))
    assert len(suites.findall(".//failure")) == 1
    assert len(suites.findall(".//error")) == 1
    assert "A \\| pipe" in tables.short_markdown(found.verdicts)


def test_the_printed_table_fits_a_terminal_and_loses_nothing() -> None:
    claims = chosen(load(), ["smoke", "paper", "gpu"], None)
    found = verify(claims, "results", ROOT / "results", ROOT / "outputs" / "unused")
    table = tables.text(found.verdicts)
    assert [line for line in table.splitlines() if len(line) > 80] == []
    whole = " ".join(table.replace("\\\n", " ").split())
    for verdict in found.verdicts:
        (row,) = [line for line in table.splitlines() if line.split(" ")[0] == verdict.claim.id]
        assert row.endswith(f" {verdict.word}")
        bound = tables.shown_bound(verdict.claim)
        assert bound in row
        assert bound.endswith(" †") == verdict.claim.after_its_number
        assert whole.count(" ".join(verdict.claim.run.command.split())) >= 1
    commands = [verdict.claim.run.command for verdict in found.verdicts]
    assert whole.count("python -m experiments experiment=loo_linear tier=paper") == 1
    assert len(set(commands)) < len(commands)


def test_generated_tables_are_replaced_between_their_markers(tmp_path: Path) -> None:
    verifying.saved(tmp_path / "results" / "loo_linear")
    found = verify([verifying.claim()], "results", tmp_path / "results", tmp_path / "out")
    for path in tables.tables(tmp_path):
        path.write_text(f"# Title\n\n{tables.BEGIN}\nold\n{tables.END}\n\nafter\n")
    assert len(tables.stale(found.verdicts, tmp_path)) == 2
    assert len(tables.update(found.verdicts, tmp_path)) == 2
    assert tables.stale(found.verdicts, tmp_path) == []
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("# Title\n")
    assert text.endswith("\n\nafter\n")
    assert "old" not in text
    (tmp_path / "README.md").write_text("no markers")
    with pytest.raises(UserError, match="cannot take the generated table"):
        tables.stale(found.verdicts, tmp_path)


def test_the_committed_tables_are_fresh() -> None:
    claims = chosen(load(), ["paper", "gpu"], None)
    found = verify(claims, "results", ROOT / "results", ROOT / "outputs" / "unused")
    for verdict in found.verdicts:
        known = verdict.accepted or verdict.claim.missed or not recorded(verdict.claim)
        assert known, tables.text(found.verdicts)
    stale = tables.stale(found.verdicts, ROOT)
    assert stale == [], "run: python -m experiments.verify tier=paper,gpu from=results update=true"
