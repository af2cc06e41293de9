"""``python -m experiments.verify [tier=smoke|paper|gpu] [claims=ID,ID] [from=results|run]``: does it hold?

Runs the experiments behind the claims, or reads the committed records, and compares. Prints a table
of 80 columns (``wide=true``: all columns), writes verification.json, junit.xml, table.txt and report.html.
Exits 1 if a claim is missed: not reproduced, not run, missing or not finite.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from experiments.records.errors import ConfigError
from experiments.records.places import WORK
from experiments.suite.cli import stamp
from experiments.suite.commands import Command, Given, Option, flag, names
from experiments.suite.ending import JobFailed
from experiments.suite.folders import require_own
from experiments.verification import tables
from experiments.verification.claims import TIERS, load
from experiments.verification.outcome import Verification, chosen, verify

COMMAND = Command(
    "verify",
    "Checks whether the claims of the paper hold here. It runs the experiments behind them, or reads the "
    "committed records, and compares every number with its bound.",
    options=(
        Option("tier", "smoke", "which claims; smoke needs no network and no files", names, TIERS),
        Option(
            "from",
            None,
            "run: run the experiments (smoke's default). results: read the committed records "
            "(default of the others)",
            choices=("run", "results"),
            shown="run",
        ),
        Option("claims", None, "only these claims", shown="ID,ID"),
        Option(
            "data.mirror",
            None,
            "folder with the original files, for tier=paper from=run (or the variable INFLUENCE_MIRROR)",
            kind=Path,
            shown="FOLDER",
        ),
        Option(
            "spot",
            None,
            "retrains this many points of each record, drawn by seed=, and compares them with it; needs "
            "from=results and data.mirror",
            kind=int,
            shown="20",
        ),
        Option("seed", "0", "draws the points of spot=", kind=int),
        Option("results", str(WORK / "results"), "folder of the committed records", kind=Path),
        Option(
            "output",
            None,
            "folder for records, verification.json, junit.xml, table.txt and report.html. The "
            "same folder again "
            "resumes. Default outputs/verify/TIME, or below INFLUENCE_OUTPUT",
            kind=Path,
            shown="FOLDER",
        ),
        Option("device", None, "device of every run (or the variable INFLUENCE_DEVICE)", shown="cuda"),
        Option("wide", "false", "true: print the paper's value and the command in every row too", kind=flag),
        Option(
            "update", "false", "true: also write the tables of README.md and results/README.md", kind=flag
        ),
    ),
    examples=(
        ("", "every embedded experiment, minutes"),
        ("tier=paper from=results", "the committed records, seconds"),
        ("tier=paper spot=20 seed=7 data.mirror=FOLDER", "the committed records, and 20 points of each anew"),
        ("tier=paper from=run data.mirror=FOLDER", "everything again on the paper's data, hours"),
    ),
    exit_codes="0 every claim holds, 1 a claim is missed, 2 a setting is wrong, 130 interrupted",
)


def main(given: Given) -> None:
    """Judges the claims and writes the tables.

    Raises:
        JobFailed: a claim is missed (exit code 1).
        ConfigError: the settings do not go together.
    """
    source = given["from"] or ("run" if given["tier"] == ["smoke"] else "results")
    if given["update"] and source != "results":
        raise ConfigError("update=true writes the tables of the committed records: it needs from=results.")
    if given["spot"] is not None and (source != "results" or given["spot"] < 1):
        raise ConfigError(f"spot={given['spot']} checks records: it needs from=results, and at least 1.")
    device = given["device"] or os.environ.get("INFLUENCE_DEVICE", "cpu")
    claims = chosen(load(), given["tier"], given["claims"])
    base = Path(os.environ.get("INFLUENCE_OUTPUT") or WORK / "outputs")
    output = (given["output"] or base / "verify" / stamp()).resolve()
    require_own(output, ["verification.json", "runs", "schedule.json"])
    if given["data.mirror"]:
        os.environ["INFLUENCE_MIRROR"] = str(given["data.mirror"].resolve())  # read by every loader
    if source == "run" and given["tier"] != ["smoke"]:
        from experiments.data.check import of_mirror

        for line in of_mirror(given["data.mirror"]):
            print(line, file=sys.stderr, flush=True)
    found = verify(claims, source, given["results"], output, [f"device={device}"] if device != "cpu" else [])
    if given["spot"] is not None:
        spot_checked(found, given["spot"], given["seed"])
    tables.write(found.verdicts, found.details, output)
    from experiments.verification import report

    report.write(found, output / "report.html")
    print(tables.text(found.verdicts, given["wide"]))
    print("\n".join(tables.spots(found.details)), end="\n" if given["spot"] is not None else "")
    print(f"report: {output / 'report.html'}", *totals(found), sep="\n")
    if given["update"]:
        for path in tables.update(found.verdicts, WORK):
            print(f"table written: {path}")
    if not found.accepted:
        raise JobFailed(1)


def totals(found: Verification) -> list[str]:
    """The time that all runs took, if they were run."""
    return [f"total: {found.details['total']}"] if "total" in found.details else []


def spot_checked(found: Verification, points: int, seed: int) -> None:
    """Checks a few points of every record; the claims on one that fails are then missed."""
    from experiments.suite import spot
    from experiments.verification.claims import NOT_REPRODUCED
    from experiments.verification.spots import FAILED

    for name, outcome in found.outcomes.items():
        if outcome.record is None:
            continue
        print(f"spot check of {name}", file=sys.stderr, flush=True)
        outcome.spot = spot.check(outcome.spec, outcome.record, outcome.provenance, points, seed)
        print(f"{name}: {outcome.spot}", file=sys.stderr, flush=True)
        if outcome.spot.status == FAILED:
            found.verdicts = [
                replace(verdict, status=NOT_REPRODUCED, remark=str(outcome.spot))
                if verdict.claim.run.name == name
                else verdict
                for verdict in found.verdicts
            ]
    runs = {
        name: {"status": outcome.spot.status, "what": outcome.spot.what}
        for name, outcome in found.outcomes.items()
        if outcome.spot is not None
    }
    found.details["spot"] = {"points": points, "seed": seed, "runs": runs}


if __name__ == "__main__":
    COMMAND.run(main)
