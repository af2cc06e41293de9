"""The parent's side: starts one measurement in a process of its own and compares its answer."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.records.machine import available_gib
from experiments.records.places import ROOT

OWN = ("ours", "bare", "peer_sklearn")  # adapters that run under this interpreter
LOCK = "INFLUENCE_BENCHMARK_LOCK"
BUDGET = "INFLUENCE_BENCHMARK_SECONDS"
_STARTED = time.monotonic()


def spent() -> bool:
    """Whether the seconds of the variable INFLUENCE_BENCHMARK_SECONDS are over; never without it."""
    budget = os.environ.get(BUDGET)
    return budget is not None and time.monotonic() - _STARTED > float(budget)


@contextlib.contextmanager
def quiet_machine(exclusive: bool) -> Iterator[None]:
    """Where the variable INFLUENCE_BENCHMARK_LOCK names a file, holds it (flock) so that other jobs that take
    it shared wait while something is timed."""
    path = os.environ.get(LOCK)
    if not path:
        yield
        return
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield


def interpreter(by: str, peers: Path) -> tuple[str, str | None]:
    """Which python runs an adapter, and why it can't where it can't."""
    if by in OWN:
        return sys.executable, None
    if not (Path(__file__).parent / "adapters" / f"{by}.py").is_file():
        return "", "published as a repository only, not on the package index: nothing to pin in make peers"
    python = peers / "bin" / "python"
    return str(python), None if python.is_file() else f"{peers.name} is not there: run make peers"


def run(
    problem: Path,
    measurement: Any,
    *,
    peers: Path,
    threads: int,
    timeout: float,
    answer: Path | None = None,
    timed: bool = True,
) -> tuple[dict[str, Any], np.ndarray | None]:
    """One measurement: its outcome (status measured, skipped or failed), and its answer if it has one."""
    python, missing = interpreter(measurement["by"], peers)
    if missing:
        return {"status": "skipped", "reason": missing}, None
    with quiet_machine(exclusive=timed), tempfile.TemporaryDirectory() as temporary:
        needs, free = measurement.get("needs_gib", 0.0), available_gib()
        if needs > free:
            reason = f"needs {needs:g} GiB of memory, {free:.1f} were free"
            return {"status": "skipped", "reason": reason}, None
        spec = {
            "problem": str(problem.resolve()),
            "method": measurement["method"],
            "dtype": measurement["dtype"],
            "repeats": measurement["repeats"],
            "options": measurement.get("options", {}),
            "threads": threads,
            "rates": timed,
            "answer": str(answer.resolve() if answer else Path(temporary) / "answer.npy"),
            "outcome": str(Path(temporary) / "outcome.json"),
        }
        Path(temporary, "spec.json").write_text(json.dumps(spec))
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        environment |= {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "TQDM_DISABLE": "1"}
        command = [
            python,
            "-m",
            f"experiments.benchmark.adapters.{measurement['by']}",
            str(Path(temporary, "spec.json")),
        ]
        errors, late = execute(command, environment, timeout)
        outcome = Path(spec["outcome"])
        if late:
            return {"status": "failed", "reason": f"stopped after {timeout:g} s"}, None
        if not outcome.is_file():
            last = (errors.strip().splitlines() or ["killed without a word: out of memory?"])[-1]
            return {"status": "failed", "reason": last[:200]}, None
        result = json.loads(outcome.read_text())
        if result["status"] != "measured":
            return result, None
        return result, np.load(spec["answer"])


def execute(command: list[str], environment: dict[str, str], timeout: float) -> tuple[str, bool]:
    """Runs a command in a process group of its own: what it wrote to stderr, and whether it took too long."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
        late = False
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        errors.seek(0)
        return errors.read(), late


def compared(answer: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Pearson and relative error of an answer (n, k) or (m,), over the rows and columns both have."""
    both = answer.reshape(len(answer), -1), reference.reshape(len(reference), -1)
    rows, columns = (min(sizes) for sizes in zip(both[0].shape, both[1].shape, strict=True))
    mine, truth = both[0][:rows, :columns], both[1][:rows, :columns]
    a, b = mine.ravel() - mine.mean(), truth.ravel() - truth.mean()
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return {
        "pearson": float(a @ b) / size if size > 0 else float("nan"),
        "relative_error": float(np.linalg.norm(mine - truth) / np.linalg.norm(truth)),
    }
