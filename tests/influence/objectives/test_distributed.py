"""2 and 4 gloo processes answer as one does; a rank that dies or hangs ends the job with a sentence."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from influence import DataError, DeviceError, Hessian, LinearObjective
from influence.objectives import distributed
from influence.objectives.distributed import rows_of
from tests.helpers import PATIENCE, ROOT, environment, ranks
from tests.influence.objectives.distributed_worker import linear


def torchrun(
    processes: int, *arguments: str, timeout: float = PATIENCE, look_every: float = 0.1, **extra: str
) -> subprocess.CompletedProcess[str]:
    """The job, and what it said. look_every: seconds between the launcher's looks at its ranks."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    launcher.append(f"--monitor-interval={look_every}")
    return subprocess.run(
        [sys.executable, *launcher, *arguments],
        cwd=ROOT,
        env=environment(PYTHONPATH=str(ROOT), **extra),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


WORKER = "tests.influence.objectives.distributed_worker"


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_every_call_equals_one_process(processes: int, tmp_path: Path) -> None:
    done = ranks(processes, WORKER, "equal", SCORES=str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    found = json.loads(line.removeprefix("RESULT"))
    assert len(found) > 40
    assert {name: value for name, value in found.items() if not value <= 1e-10} == {}


@pytest.mark.parametrize(
    ("case", "word"),
    [
        ("killed", "lost the others"),
        ("disagree", "on rank 0: give"),
        ("few", "cannot be spread over 2 ranks"),
        # the launcher gives a hung process 30 s before it kills it
        pytest.param("hung", "lost the others", marks=pytest.mark.faults),
    ],
)
def test_a_broken_job_ends_with_the_reason(case: str, word: str) -> None:
    # Only a rank that hangs is found by waiting; on a loaded machine ranks start far apart.
    patience = {"INFLUENCE_TIMEOUT": "20" if case == "hung" else str(PATIENCE)}
    if case in ("killed", "hung"):
        # The launcher ends the other ranks once it sees one dead: it looks late, so that they can speak.
        done = torchrun(2, "-m", WORKER, case, look_every=5, **patience)
    else:
        done = ranks(2, WORKER, case, **patience)
    assert done.returncode != 0
    assert word in done.stderr, done.stderr[-2000:]


def test_rows_are_each_one_ranks() -> None:
    for n, count in [(10, 4), (4, 4), (55_000, 3)]:
        blocks = [rows_of(n, r, count) for r in range(count)]
        assert blocks[0].start == 0
        assert blocks[-1].stop == n
        assert all(a.stop == b.start for a, b in itertools.pairwise(blocks))
        lengths = [b.stop - b.start for b in blocks]
        assert max(lengths) - min(lengths) <= 1
    with pytest.raises(DataError, match="at most 3 processes"):
        rows_of(3, 0, 4)


def test_alone_nothing_is_sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not distributed.join()
    whole = linear()
    assert distributed.shard(whole) is whole
    assert (distributed.rank(), distributed.size(), distributed.from_first("x")) == (0, 1, "x")


@pytest.mark.parametrize("text", ["soon", "-1", "nan"])
def test_a_senseless_timeout_is_named(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "INFLUENCE_TIMEOUT": text}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DataError, match="INFLUENCE_TIMEOUT"):
        distributed.join()


def test_more_ranks_than_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "99", "RANK": "98", "LOCAL_RANK": "98"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DeviceError, match="at most"):
        distributed.join("cuda")


def test_devices_do_not_mix() -> None:
    """The meta device stands for a second one: every machine has it."""
    whole = linear()
    with pytest.raises(DeviceError, match="meta"):
        LinearObjective(whole.X.dense(), torch.empty(whole.n, device="meta"), "logistic", 0.1)
    with pytest.raises(DeviceError, match="meta"):
        Hessian(whole, whole.initial()) @ torch.empty(whole.p, 1, device="meta", dtype=torch.float64)
