"""The schedule: order, memory, records of the same run, kills, and what is seen of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.verification import live
from experiments.verification.claims import Spec, load
from experiments.verification.schedule import Schedule, commands, order
from tests.helpers import ROOT, environment

QUICK = [
    Spec("smoke/components", "experiment=components", "smoke", minutes=0.1, gib=0.7),
    Spec("smoke/second", "experiment=components seed=1", "smoke", minutes=0.1, gib=0.7),
]


def test_headline_figures_come_first_then_sweeps_each_the_longest_first() -> None:
    specs = [
        Spec("short", "experiment=a", "paper", minutes=1),
        Spec("sweep", "experiment=a sweep=s", "paper", minutes=90, sweep="sweep=s"),
        Spec("long", "experiment=b", "paper", minutes=9),
        Spec("wide", "experiment=c", "paper", minutes=5, all_cores=True),
    ]
    assert [spec.name for spec in sorted(specs, key=order)] == ["wide", "long", "short", "sweep"]


def test_a_sweep_reads_the_record_of_this_run_and_not_the_committed_one(tmp_path: Path) -> None:
    specs = {claim.run.name: claim.run for claim in load() if claim.tier == "paper"}
    dependent = [spec for spec in specs.values() if "results/" in spec.overrides]
    assert dependent
    for spec in dependent:
        steps, needs = commands(spec, tmp_path / "own", tmp_path / "runs", set(specs), [])
        assert needs == {"loo_linear"}
        assert f"experiment.retrained={tmp_path / 'runs' / 'loo_linear'}" in steps[0]
        alone, none = commands(spec, tmp_path / "own", tmp_path / "runs", {spec.name}, [])
        assert none == set()
        assert "experiment.retrained=results/loo_linear" in alone[0]


def test_jobs_run_side_by_side_only_as_far_as_memory_allows(tmp_path: Path) -> None:
    most: list[int] = []
    schedule = Schedule(QUICK, tmp_path, room=(2, 1.0))  # together they would need 1.4 GiB
    jobs = schedule.run(lambda found: most.append(len(found.running())))
    assert max(most) == 1
    assert {name: job.code for name, job in jobs.items()} == {spec.name: 0 for spec in QUICK}
    assert all((job.folder / "record.json").is_file() for job in jobs.values())
    kept = json.loads((tmp_path / "schedule.json").read_text())
    assert set(kept) == set(jobs)
    assert all(seconds > 0 for seconds in kept.values())


def test_a_failed_job_does_not_stop_the_others_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = Spec("wrong", "experiment=components seed=no", "smoke", minutes=5)
    schedule = Schedule([wrong, QUICK[0]], tmp_path, room=(1, 9.0))
    with live.display(schedule) as show:
        jobs = schedule.run(show)
    assert jobs["wrong"].code == 2
    assert jobs["smoke/components"].code == 0
    said = capsys.readouterr().err
    assert "wrong failed" in said
    assert "smoke/components done after" in said
    assert all(len(line) < 200 for line in said.splitlines())


SCRIPT = """
import sys
from pathlib import Path
from experiments.verification import live
from experiments.verification.claims import Spec
from experiments.verification.schedule import Schedule
spec = Spec("spam", "experiment=spam experiment.repeats=8", "smoke", minutes=1)
schedule = Schedule([spec], Path(sys.argv[1]), room=(1, 9.0))
with live.display(schedule) as show:
    schedule.run(show)
"""


def test_a_killed_schedule_leaves_no_child_and_the_same_call_resumes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(PYTHONPATH=str(ROOT)), stderr=subprocess.PIPE
    )
    run = tmp_path / "runs" / "spam"
    deadline = time.monotonic() + 600
    while not (run / "run.json").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=600)
    assert process.returncode != 0
    alive = subprocess.run(["pgrep", "-f", str(run)], capture_output=True, text=True, check=False).stdout
    assert alive.split() in ([], [str(os.getpid())])
    assert (tmp_path / "schedule.json").is_file()
    again = subprocess.run(command, cwd=ROOT, env=environment(PYTHONPATH=str(ROOT)), timeout=600, check=False)
    assert again.returncode == 0
    assert (run / "record.json").is_file()
