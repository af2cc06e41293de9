"""What became of the runs behind the claims: read from records, or run, and judged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.records import provenance
from experiments.records.errors import ConfigError, UserError
from experiments.records.places import WORK
from experiments.records.record import Record
from experiments.verification import live
from experiments.verification.claims import NOT_REPRODUCED, NOT_RUN, Claim, Spec, Verdict, judge
from experiments.verification.schedule import Job, Schedule
from experiments.verification.spots import Spot


@dataclass
class Outcome:
    """One run behind the claims: its record and provenance where there are any, else why not."""

    spec: Spec
    folder: Path
    record: Record | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    spot: Spot | None = None  # of a few of its points, if one was asked for
    ran: bool = True  # false: there is nothing to read


@dataclass
class Verification:
    """Everything that a table or a report of it needs."""

    verdicts: list[Verdict]
    outcomes: dict[str, Outcome]
    details: dict[str, Any]

    @property
    def accepted(self) -> bool:
        """Whether no claim was missed."""
        return all(verdict.accepted for verdict in self.verdicts)


def chosen(claims: Sequence[Claim], tiers: Sequence[str], ids: str | None) -> list[Claim]:
    """The claims of the tiers, or those named; ConfigError if a name is unknown or nothing is left."""
    found = [claim for claim in claims if claim.tier in tiers]
    if ids is not None:
        wanted = [name for name in ids.split(",") if name]
        unknown = sorted(set(wanted) - {claim.id for claim in found})
        if unknown:
            known = ", ".join(claim.id for claim in found)
            raise ConfigError(f"no claim {', '.join(unknown)} at tier {', '.join(tiers)}; there are {known}.")
        found = [claim for claim in found if claim.id in wanted]
    if not found:
        raise ConfigError(f"there are no claims at tier {', '.join(tiers)}.")
    return found


def read(spec: Spec, folder: Path) -> Outcome:
    """The record in ``folder``: whole, its arrays its own, its seal unbroken."""
    outcome = Outcome(spec, folder)
    if not (folder / "record.json").is_file():
        place = folder.relative_to(WORK) if folder.is_relative_to(WORK) else folder
        outcome.ran, outcome.problem = False, f"no record in {place}"
        return outcome
    try:
        record = Record.load(folder)
        if "seal" not in json.loads((folder / "record.json").read_text()):
            raise UserError(f"{folder / 'record.json'} has no seal: publish the run again.")
        outcome.record = record
        outcome.provenance = provenance.read(folder)
    except (UserError, OSError, ValueError) as error:
        outcome.record, outcome.problem = None, str(error)
    return outcome


def of_job(job: Job) -> Outcome:
    """What a job of the schedule left: its record, or what it said last."""
    if job.code:
        lines = [line for line in job.log.read_text(errors="replace").splitlines() if line.strip()]
        said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")] or lines
        return Outcome(
            job.spec, job.folder, problem=f"exit code {job.code}: {said[-1] if said else ''} ({job.log})"
        )
    return read(job.spec, job.folder)


def verdicts_of(claims: Sequence[Claim], outcomes: dict[str, Outcome]) -> list[Verdict]:
    """Each claim against the record of its run."""
    found = []
    for claim in claims:
        outcome = outcomes[claim.run.name]
        if outcome.record is not None:
            found.append(judge(claim, outcome.record))
        else:
            status = NOT_REPRODUCED if outcome.ran else NOT_RUN
            found.append(Verdict(claim, status, None, outcome.problem))
    return found


def verify(
    claims: Sequence[Claim], source: str, results: Path, output: Path, extra: Sequence[str] = ()
) -> Verification:
    """Reads (``source`` results) or runs (``source`` run) what the claims need, and judges them.

    ``extra``: overrides added to every command, such as where the data are.
    """
    specs = {claim.run.name: claim.run for claim in claims}
    details = {"from": source, "tiers": sorted({claim.tier for claim in claims}), "code": provenance.code()}
    if source == "results":
        outcomes = {name: read(spec, results / name) for name, spec in specs.items()}
    else:
        schedule = Schedule(list(specs.values()), output, extra)
        with live.display(schedule) as show:
            jobs = schedule.run(show)
        outcomes = {name: of_job(jobs[name]) for name in specs}
        details["total"] = schedule.total()
    return Verification(verdicts_of(claims, outcomes), outcomes, details)
