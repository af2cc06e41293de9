"""What the tests of the suite share: the embedded run of each experiment, made once."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.suite import figures
from experiments.suite.job import execute
from tests.experiments.test_configs import composed

DRAW = figures.draw


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figure is drawn: for runs whose numbers alone are looked at, of experiments drawn by other tests."""
    monkeypatch.setattr(figures, "draw", lambda record, folder: [])


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``name -> folder``: the finished embedded run of an experiment, at its defaults; to be read only.

    The first test that asks makes it, in whatever worker of pytest-xdist that is; the others find its record.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "embedded"
    shared.mkdir(exist_ok=True)

    def finished(name: str) -> Path:
        with open(shared / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be at it
            cfg = composed(f"experiment={name}", "tracking=none", f"output={shared / name}")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(figures, "draw", DRAW)  # whatever the test that asks has put there
                return execute(cfg)  # does nothing if the record is there

    return finished
