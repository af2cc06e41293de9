"""``python -m experiments.verify [tier=smoke|paper|gpu] [claims=ID,ID] [from=results|run]``: does it hold?

Runs the experiments behind the claims of conf/claims.yaml, or reads the committed records, and compares.
Prints ``claim | paper | ours | bound | status | command``, writes verification.json, junit.xml, table.txt
and report.html, and exits 1 where a claim is missed: not reproduced, not run, missing or not finite.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.errors import ConfigError, UserError
from experiments.records import provenance
from experiments.records.record import Record
from experiments.suite.cli import JobFailed, guarded, stamp
from experiments.suite.folders import require_own
from experiments.verification import tables as listing
from experiments.verification.claims import NOT_REPRODUCED, NOT_RUN, TIERS, Claim, Spec, Verdict, judge, load

ROOT = Path(__file__).resolve().parent.parent
HELP = f"""\
python -m experiments.verify [key=value ...]

  tier=smoke       {", ".join(TIERS)}, or several with commas; smoke needs no network and no files
  from=run         run the experiments (smoke's default), or from=results: read the committed records
  claims=ID,ID     only these
  data.mirror=DIR  the real data's original files, for tier=paper from=run (or the variable INFLUENCE_MIRROR)
  results=DIR      where the committed records are; default results
  output=DIR       where records, verification.json, junit.xml, table.txt and report.html go; the same
                   folder again resumes. Default outputs/verify/<time>, or below INFLUENCE_OUTPUT
  device=cuda      run on a GPU (or the variable INFLUENCE_DEVICE); default: as the configs say
  update=true      also write the tables of README.md and results/README.md (from=results only)
Exit codes: 0 every claim holds, 1 a miss, 2 a wrong setting."""
DEFAULTS = {
    "tier": "smoke",
    "from": None,
    "claims": None,
    "data.mirror": None,
    "results": str(ROOT / "results"),
    "output": None,
    "device": None,
    "update": "false",
    "debug": "false",
}


@dataclass
class Outcome:
    """One run behind the claims: its record and provenance where there are any, else why not."""

    spec: Spec
    folder: Path
    record: Record | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
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


def settings(arguments: Sequence[str]) -> dict[str, Any]:
    """The command line as a dict; ConfigError for a key or value that does not exist."""
    given: dict[str, Any] = dict(DEFAULTS)
    for argument in arguments:
        key, sign, value = argument.partition("=")
        if not sign or key not in DEFAULTS:
            raise ConfigError(f"{argument!r} is no setting; there are {', '.join(DEFAULTS)} (key=value).")
        given[key] = value
    device = os.environ.get("INFLUENCE_DEVICE", "cpu")
    given["device"] = given["device"] or (device if device != "cpu" else None)
    given["tier"] = given["tier"].split(",")
    for tier in given["tier"]:
        if tier not in TIERS:
            raise ConfigError(f"tier={tier} is unknown; choose from {', '.join(TIERS)}.")
    given["from"] = given["from"] or ("run" if given["tier"] == ["smoke"] else "results")
    if given["from"] not in ("run", "results"):
        raise ConfigError(f"from={given['from']} is unknown; choose run or results.")
    if given["update"] == "true" and given["from"] != "results":
        raise ConfigError("update=true writes the tables of the committed records: it needs from=results.")
    return given


def chosen(claims: Sequence[Claim], tiers: Sequence[str], ids: str | None) -> list[Claim]:
    """The claims of the tiers, or those named; ConfigError where a name is unknown or nothing is left."""
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
        place = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
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


def execute(spec: Spec, folder: Path, log: Path, extra: Sequence[str] = ()) -> Outcome:
    """Runs the experiment in a process of its own (so that one cannot spoil the next), then reads it."""
    own = [f"output={folder}", "tracking=none"]
    steps = [["experiments", *["--multirun"] * bool(spec.sweep), *spec.arguments, *own, *extra]]
    if spec.sweep:
        steps.append(["experiments.sweep", str(folder), *shlex.split(spec.sweep)])
    environment = dict(os.environ)
    if spec.tier == "smoke":  # so small that two threads mostly wait for each other, worst on a busy machine
        environment.setdefault("OMP_NUM_THREADS", "1")
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as stream:
        for step in steps:  # the collector is asked even where a job failed: its table then stands in the log
            command = [sys.executable, "-m", *step]
            code = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT, check=False
            ).returncode
    if code:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")] or lines
        return Outcome(spec, folder, problem=f"exit code {code}: {said[-1] if said else ''} ({log})")
    return read(spec, folder)


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
    outcomes = {}
    for position, (name, spec) in enumerate(specs.items(), start=1):
        if source == "results":
            outcomes[name] = read(spec, results / name)
            continue
        start = time.monotonic()
        print(f"[{position}/{len(specs)}] {spec.command}", end=" ", file=sys.stderr, flush=True)
        outcomes[name] = execute(spec, output / "runs" / name, output / "logs" / f"{name}.log", extra)
        said = f"{time.monotonic() - start:.1f} s {outcomes[name].problem}"
        print(said.rstrip(), file=sys.stderr, flush=True)
    details = {"from": source, "tiers": sorted({claim.tier for claim in claims}), "code": provenance.code()}
    return Verification(verdicts_of(claims, outcomes), outcomes, details)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; raises JobFailed(1) where a claim was missed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"--help", "-h"} & set(arguments):
        print(HELP)
        return
    given = settings(arguments)
    claims = chosen(load(), given["tier"], given["claims"])
    base = Path(os.environ.get("INFLUENCE_OUTPUT") or ROOT / "outputs")
    output = Path(given["output"] or base / "verify" / stamp()).resolve()
    require_own(output, ["verification.json", "runs"])
    extra = [f"device={given['device']}"] if given["device"] else []
    if given["data.mirror"]:
        os.environ["INFLUENCE_MIRROR"] = str(Path(given["data.mirror"]).resolve())  # read by every loader
    found = verify(claims, given["from"], Path(given["results"]), output, extra)
    listing.write(found.verdicts, found.details, output)
    from experiments.verification import report

    report.write(found, output / "report.html")
    print(listing.text(found.verdicts))
    print(f"report: {output / 'report.html'}")
    if given["update"] == "true":
        for path in listing.update(found.verdicts, ROOT):
            print(f"table written: {path}")
    if not found.accepted:
        raise JobFailed(1)


if __name__ == "__main__":
    guarded(main)
