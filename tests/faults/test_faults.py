"""Kills, full disks, torn journals, rivals, clocks and Ctrl-C: nothing is lost but the unit in flight.

The long half (marker ``faults``) strikes every experiment twenty times; ``make test-faults`` runs it.
"""

from __future__ import annotations

import random
import re
import signal
import time
from pathlib import Path

import pytest

from experiments.records.record import Record
from tests.faults.jobs import debris, finished, named, parts, result_of, start, strike
from tests.helpers import PATIENCE, ROOT

# The benchmark records times, which never repeat; everything else must repeat byte for byte.
LONG = sorted(
    path.stem for path in (ROOT / "conf" / "variant" / "smoke").glob("*.yaml") if path.stem != "benchmark"
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed run leaves."""
    return finished("loo_linear", tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.faults
@pytest.mark.parametrize("name", LONG)
def test_twenty_kills_of_each_experiment(name: str, tmp_path: Path) -> None:
    begun = time.monotonic()
    expected = finished(name, tmp_path / "whole")
    longest = time.monotonic() - begun
    draw, killed, folder = random.Random(name), 0, tmp_path / "broken"
    for attempt in range(60):
        if killed == 20:
            break
        # A finished unit never changes; the state of an Adam run is one unit that grows.
        indexes = [
            path for path in folder.glob("journal/*/index.jsonl") if "training-" not in path.parent.name
        ]
        units = [path for index in indexes for path in named(index)]
        kept = {path: path.read_bytes() for path in units}  # whole paths: two journals may share a key
        if strike(name, folder, draw, signal.SIGKILL, longest):
            killed += 1
        else:  # it got through: what it made must be right; the next strikes meet a fresh folder
            assert result_of(folder) == expected, attempt
            folder = tmp_path / f"broken-{attempt}"
            continue
        for part, content in kept.items():
            assert part.read_bytes() == content, part
        if (folder / "record.json").exists():
            Record.load(folder)
    assert killed == 20
    assert finished(name, folder) == expected
    assert debris(folder) == []


def test_ctrl_c_ends_with_a_sentence_and_resumes(whole: dict[str, bytes], tmp_path: Path) -> None:
    job = start("loo_linear", tmp_path)
    deadline = time.monotonic() + PATIENCE
    while len(parts(tmp_path)) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    job.send_signal(signal.SIGINT)
    _, error = job.communicate(timeout=PATIENCE)
    assert job.returncode == 130
    assert "resumes here" in error
    assert "Traceback" not in error
    assert debris(tmp_path) == []
    assert len(parts(tmp_path)) >= 3
    assert not (tmp_path / "record.json").exists()
    assert finished("loo_linear", tmp_path) == whole


def test_signals_that_end_or_pause_a_run_cost_nothing_that_was_done(
    whole: dict[str, bytes], tmp_path: Path
) -> None:
    """SIGTERM, SIGHUP and SIGQUIT end it one after the other; SIGPIPE, SIGSTOP and SIGCONT do not."""
    done: set[Path] = set()
    paused = (signal.SIGPIPE, signal.SIGSTOP, signal.SIGCONT)
    for signals in ((signal.SIGTERM,), (signal.SIGHUP,), (signal.SIGQUIT,), paused):
        job = start("loo_linear", tmp_path)
        deadline = time.monotonic() + PATIENCE
        while len(parts(tmp_path)) < len(done) + 3 and job.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        assert job.poll() is None, "the job had already ended"
        for one in signals:
            job.send_signal(one)
            time.sleep(0.1 if one is signal.SIGSTOP else 0)
        _, error = job.communicate(timeout=PATIENCE)
        assert (job.returncode == 0) is (signals is paused), error
        assert "Traceback" not in error
        assert done <= set(parts(tmp_path))
        done = set(parts(tmp_path))
    assert result_of(tmp_path) == whole
    assert debris(tmp_path) == []


@pytest.mark.parametrize("limit", [100, 20_000])
def test_a_full_disk_ends_with_a_sentence_and_resumes(
    limit: int, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """100 bytes: not even the marker fits. 20,000: the journal's parts fit, the record does not."""
    job = start("loo_linear", tmp_path, limit=limit)
    _, error = job.communicate(timeout=PATIENCE)
    assert job.returncode == 1, error
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, error
    assert "File too large" in lines[0]
    assert "free space" in lines[0]
    assert "Traceback" not in error
    assert debris(tmp_path) == []
    assert not (tmp_path / "record.json").exists()
    assert finished("loo_linear", tmp_path) == whole


@pytest.mark.parametrize(
    "damage",
    [
        "torn line",
        "swapped parts",
        *(
            pytest.param(damage, marks=pytest.mark.faults)
            for damage in ("torn part", "lost part", "garbage", "lost index")
        ),
    ],
)
def test_a_damaged_journal_costs_the_damaged_units_only(
    damage: str, whole: dict[str, bytes], tmp_path: Path
) -> None:
    job = start("loo_linear", tmp_path)
    deadline = time.monotonic() + PATIENCE
    while len(parts(tmp_path)) < 12 and time.monotonic() < deadline:
        time.sleep(0.005)
    job.kill()
    job.communicate(timeout=PATIENCE)
    index = next(tmp_path.glob("journal/*/index.jsonl"))
    files = named(index)
    one, two = files[1:3]
    untouched = {path: path.stat().st_mtime_ns for path in files if path not in (one, two)}
    if damage == "torn line":
        content = index.read_bytes()
        index.write_bytes(content[: len(content) - 20])
    elif damage == "torn part":
        one.write_bytes(one.read_bytes()[:100])
    elif damage == "lost part":
        one.unlink()
    elif damage == "swapped parts":
        first, second = one.read_bytes(), two.read_bytes()
        one.write_bytes(second)
        two.write_bytes(first)
    elif damage == "garbage":
        index.write_bytes(b"\xff\xfe{[\n\n" + index.read_bytes() + b'{"key": 1}\n"text"\n')
    else:
        index.unlink()
    assert finished("loo_linear", tmp_path) == whole
    redone = [path for path, then in untouched.items() if path.stat().st_mtime_ns != then]
    allowed = {"torn line": files[-1:], "lost index": files}.get(damage, [])
    assert [path for path in redone if path not in allowed] == []


def test_two_runs_in_one_folder(whole: dict[str, bytes], tmp_path: Path) -> None:
    """One runs, the other is turned away with a sentence and without harm."""
    jobs = [start("loo_linear", tmp_path) for _ in range(2)]
    errors = [job.communicate(timeout=PATIENCE)[1] for job in jobs]
    codes = [job.returncode for job in jobs]
    assert sorted(codes) in ([0, 1], [0, 0]), errors  # both end well where one began after the other's end
    for code, error in zip(codes, errors, strict=True):
        assert code == 0 or re.search(r"^error: another run is writing .*choose another output=", error, re.M)
    assert result_of(tmp_path) == whole
    assert debris(tmp_path) == []


def test_clock_jumps_change_nothing(whole: dict[str, bytes], tmp_path: Path) -> None:
    """Every reading of the wall clock jumps by up to a year, back or forth."""
    (tmp_path / "jumps").mkdir()
    (tmp_path / "jumps" / "sitecustomize.py").write_text(
        "import random, time\n"
        "draw, real = random.Random(0), time.time\n"
        "time.time = lambda: real() + draw.uniform(-3.2e7, 3.2e7)\n"
        "time.time_ns = lambda: int(time.time() * 1e9)\n"
    )
    job = start("loo_linear", tmp_path / "run", PYTHONPATH=f"{ROOT}:{tmp_path / 'jumps'}")
    _, error = job.communicate(timeout=PATIENCE)
    assert job.returncode == 0, error
    assert result_of(tmp_path / "run") == whole


@pytest.mark.faults
@pytest.mark.parametrize("name", ["loo_linear", "readmission"])
def test_ctrl_c_at_ten_moments(name: str, tmp_path: Path) -> None:
    expected = finished(name, tmp_path / "whole")
    draw = random.Random(11)
    for _ in range(10):
        strike(name, tmp_path / "broken", draw, signal.SIGINT, 3.0)
        assert debris(tmp_path / "broken") == []
    assert finished(name, tmp_path / "broken") == expected
