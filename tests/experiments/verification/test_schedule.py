"""The schedule: order, memory, records of the same run, kills, and what is seen of it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.suite.job import execute
from experiments.verification import live
from experiments.verification import schedule as schedule_of
from experiments.verification.claims import Spec, load
from experiments.verification.schedule import Job, Schedule, commands, order
from tests.experiments.test_configs import composed
from tests.helpers import PATIENCE, ROOT, cli, environment

QUICK = [
    Spec("smoke/components", "experiment=components", "smoke", minutes=0.1, gib=0.7),
    Spec("smoke/second", "experiment=components seed=1", "smoke", minutes=0.1, gib=0.7),
]


def test_the_papers_figures_come_first_then_extensions_and_sweeps_each_the_longest_first() -> None:
    specs = [
        Spec("extension", "experiment=d", "paper", minutes=95, extension=True),
        Spec("short", "experiment=a", "paper", minutes=1),
        Spec("sweep", "experiment=a sweep=s", "paper", minutes=90, sweep="sweep=s"),
        Spec("long", "experiment=b", "paper", minutes=9),
        Spec("wide", "experiment=c", "paper", minutes=5, all_cores=True),
    ]
    assert [spec.name for spec in sorted(specs, key=order)] == ["wide", "long", "short", "extension", "sweep"]


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


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs that leave a record at once, or fail: the schedule is asked about, not what they do."""

    def commands_of(spec: Spec, folder: Path, *_: object) -> tuple[list[list[str]], set[str]]:
        return [["tests.experiments.verification.quick", str(folder), *spec.arguments]], set()

    monkeypatch.setattr(schedule_of, "commands", commands_of)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("gib", "together"), [(1.0, 1), (2.0, 2)])
def test_jobs_run_side_by_side_only_as_far_as_memory_allows(
    tmp_path: Path, gib: float, together: int
) -> None:
    most: list[int] = []
    schedule = Schedule(QUICK, tmp_path, room=(2, gib))  # together they need 1.4 GiB
    jobs = schedule.run(lambda found: most.append(len(found.running())))
    assert max(most) == together
    assert {name: job.code for name, job in jobs.items()} == {spec.name: 0 for spec in QUICK}
    assert all((job.folder / "record.json").is_file() for job in jobs.values())
    kept = json.loads((tmp_path / "schedule.json").read_text())
    assert set(kept) == set(jobs)
    wall = json.loads((tmp_path / "wall.json").read_text())
    assert 0 < wall["figures"] <= wall["all"]
    again = Schedule(QUICK, tmp_path, room=(2, gib))
    again.run()
    assert again.wall["all"] > wall["all"]
    assert "of it in this call" in again.total()
    assert "the paper's own figures" not in again.total()  # nothing else was run
    more = Schedule([replace(QUICK[0], extension=True), QUICK[1]], tmp_path / "more", room=(2, gib))
    more.run()
    assert "the paper's own figures were done after 0:0" in more.total()
    assert all(seconds > 0 for seconds in kept.values())


@pytest.mark.usefixtures("quick")
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


def ended(name: str, minutes: float, seconds: float) -> Job:
    """A job that has run."""
    spec = Spec(name, "experiment=components", "paper", minutes=minutes)
    return Job(spec, Path(), Path(), [], set(), seconds_before=seconds, code=0)


def test_the_time_left_follows_the_pace_and_ends_with_the_longest_job(tmp_path: Path) -> None:
    specs = [Spec(name, "experiment=components", "paper", minutes=m) for name, m in (("a", 30.0), ("b", 2.0))]
    schedule = Schedule(specs, tmp_path, room=(2, 9.0))
    assert schedule.minutes_left() == pytest.approx(30.0)  # not (30 + 2) / 2
    schedule.jobs.append(ended("c", minutes=10.0, seconds=1200.0))
    assert schedule.pace() == pytest.approx(2.0)
    assert schedule.minutes_left() == pytest.approx(60.0)
    schedule.jobs[-1] = ended("c", minutes=0.1, seconds=60.0)  # too short to judge by
    assert schedule.pace() == 1.0


SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
from experiments.verification import live
from experiments.verification.claims import Spec
from experiments.verification.schedule import Schedule
spec = Spec("linear", sys.argv[2], "smoke", minutes=1)
schedule = Schedule([spec], Path(sys.argv[1]), room=(1, 9.0))
with live.display(schedule) as show:
    schedule.run(show)
"""
LONG = "experiment=loo_linear experiment.removed=60 experiment.block=1 experiment.compare={}"


def parts(folder: Path) -> int:
    """Units of work that are on disk."""
    return len(list(folder.glob("journal/*/*.npz")))


def alive(words: str) -> list[str]:
    """Processes whose command line holds ``words``; one that has ended and was not reaped has none."""
    found = subprocess.run(["pgrep", "-f", words], capture_output=True, text=True, check=False).stdout
    return [pid for pid in found.split() if pid != str(os.getpid())]


def killed(command: list[str], run: Path, number: signal.Signals, more: int) -> None:
    """Starts the schedule, sends it a signal once ``more`` units are done, and waits until no job is left."""
    before = parts(run)
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(PYTHONPATH=str(ROOT)), stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + PATIENCE
    while parts(run) < before + more and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert parts(run) >= before + more
    assert not (run / "record.json").exists(), "the job had already ended"
    while alive(str(run)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert alive(str(run)) == []


def test_a_killed_schedule_leaves_no_job_and_the_same_call_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    """SIGTERM, which the schedule passes on; then SIGKILL, of which it can tell nobody; then to the end."""
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), LONG]
    run = tmp_path / "runs" / "linear"
    killed(command, run, signal.SIGTERM, 2)
    killed(command, run, signal.SIGKILL, 2)
    assert json.loads((tmp_path / "schedule.json").read_text())["linear"] > 0
    again = subprocess.run(
        command, cwd=ROOT, env=environment(PYTHONPATH=str(ROOT)), timeout=PATIENCE, check=False
    )
    assert again.returncode == 0
    whole = execute(composed(*LONG.split(), "tracking=none", f"output={tmp_path / 'whole'}"))
    for file in ("record.json", "arrays.npz", "loo_linear.svg"):
        assert (run / file).read_bytes() == (whole / file).read_bytes(), file


@pytest.mark.slow
def test_verify_killed_three_times_resumes_to_the_same_bytes_and_ends_with_the_total(tmp_path: Path) -> None:
    """As ``make paper`` calls it, on two embedded runs at a time."""
    claims = "claims=smoke-loo-pearson,smoke-hinge-gain,smoke-groups-newton"
    names = {"loo_linear", "smooth_hinge", "groups"}
    command = [sys.executable, "-m", "experiments.verify", claims, f"output={tmp_path / 'broken'}"]
    runs = tmp_path / "broken" / "runs" / "smoke"
    for _ in range(3):
        before = {name: parts(runs / name) for name in names}
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(PYTHONPATH=str(ROOT)), stderr=subprocess.PIPE
        )
        deadline = time.monotonic() + PATIENCE
        while {name: parts(runs / name) for name in names} == before and time.monotonic() < deadline:
            time.sleep(0.01)
            assert process.poll() is None, "it had already ended"
        process.kill()
        process.communicate(timeout=PATIENCE)
        while alive(str(runs)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert alive(str(runs)) == []
    done = cli(claims, f"output={tmp_path / 'broken'}", module="experiments.verify")
    assert done.returncode == 0, done.stdout + done.stderr
    took = r"\d+:\d\d"
    said = rf"^total: 3 runs, {took} of their time, {took} on \d+ cores"
    assert re.search(said, done.stdout, re.M)
    places = [done.stdout.index(word) for word in ("3 claims: 3 holds", "report: ", "total: ")]
    assert places == sorted(places)
    assert "3 runs, about" in done.stderr
    whole = cli(claims, f"output={tmp_path / 'whole'}", module="experiments.verify")
    assert whole.returncode == 0
    for name in names:
        for file in ("record.json", "arrays.npz"):
            other = tmp_path / "whole" / "runs" / "smoke" / name / file
            assert (runs / name / file).read_bytes() == other.read_bytes(), (name, file)
