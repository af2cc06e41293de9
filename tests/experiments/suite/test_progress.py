"""Lines of progress where nobody watches: their rate is that of the work done now."""

from __future__ import annotations

import pytest

from experiments.suite import progress as module
from experiments.suite.progress import progress, speed


@pytest.mark.parametrize(
    ("done", "seconds", "said"),
    [
        (0, 5, ""),
        (3, 0, ""),
        (90, 30, ", 3.00 a second"),
        (1, 1, ", 1.00 a second"),
        (2, 60, ", 30 seconds each"),
    ],
)
def test_slow_work_is_told_in_seconds_a_unit(done: int, seconds: float, said: str) -> None:
    assert speed(done, seconds) == said


def test_what_was_done_before_is_not_in_the_rate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 100.0, 130.0, 131.0, 190.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with progress(60, "retrainings") as advance:
        for done in (51, 52, 53, 54):  # 51 from the journal, or from the first block
            advance(done)
    assert capsys.readouterr().err.splitlines() == [
        "retrainings: 51/60", "retrainings: 52/60, 30 seconds each", "retrainings: 54/60, 30 seconds each"
    ]  # fmt: skip
