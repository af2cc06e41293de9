"""What tests share: the mirror of real data, and the command line as a user meets it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import warm

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 600.0  # seconds that a test gives a process: a loaded machine is no failure


def examples(few: int) -> int:
    """Examples of a property: ``few``, or INFLUENCE_EXAMPLES for a long search."""
    return int(os.environ.get("INFLUENCE_EXAMPLES", few))


def mirror() -> Path:
    """The folder with the original data files; skips the test where there is none."""
    for place in (os.environ.get("INFLUENCE_MIRROR"), ROOT.parent / "shared" / "data"):
        if place and Path(place).is_dir():
            return Path(place)
    pytest.skip("no mirror of the real data: set INFLUENCE_MIRROR or put one at ../shared/data")


def environment(**extra: str) -> dict[str, str]:
    """This process's environment with one thread, without W&B settings of the outside."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    # W&B's own patience of a minute is too short for a machine five times slower.
    return clean | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "WANDB_INIT_TIMEOUT": str(PATIENCE)} | extra


WARM = warm.Warm(ROOT, environment(PYTHONPATH=str(ROOT)))


def cli(
    *arguments: str,
    module: str = "experiments",
    cwd: Path = ROOT,
    timeout: float = PATIENCE,
    fresh: bool = False,
    **extra: str,
) -> subprocess.CompletedProcess[str]:
    """``python -m experiments ...`` in a process of its own.

    fresh: of a new interpreter; else, and if ``extra`` changes nothing that one reads at its start, a fork of
    one that has imported everything.
    """
    changed = environment(**{"PYTHONPATH": str(ROOT)} | extra)
    if not fresh and hasattr(os, "fork") and not set(extra) & set(warm.AT_START):
        return WARM.run(module, list(arguments), cwd, [changed], timeout)[0]
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        env=changed,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def ranks(count: int, module: str, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """``module`` as ``count`` processes that find each other as torchrun's do, without its launcher.

    What they said is joined; the exit code is 0 if all of theirs are.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    each = [
        environment(PYTHONPATH=str(ROOT), RANK=f"{rank}", LOCAL_RANK=f"{rank}", WORLD_SIZE=f"{count}")
        | meeting
        | extra
        for rank in range(count)
    ]
    done = WARM.run(module, list(arguments), ROOT, each, PATIENCE)
    worst = max(abs(one.returncode) for one in done)
    said = ["".join(one.stdout for one in done), "".join(one.stderr for one in done)]
    return subprocess.CompletedProcess([module, *arguments], worst, *said)


def one_sentence(completed: subprocess.CompletedProcess[str]) -> str:
    """The error a user saw, after checking that it is one line and no traceback."""
    lines = [line for line in completed.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, completed.stderr
    assert "Traceback" not in completed.stderr, completed.stderr
    return lines[0]
