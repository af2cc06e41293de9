"""The journal keeps whole units only, and never one that belongs to other work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.records import journal as module
from experiments.records.journal import Journal, earlier_calls


def filled(root: Path, units: int = 3) -> Journal:
    journal = Journal(root, "work", {"config": "a"})
    for unit in range(units):
        journal.put(f"unit {unit}", {"value": np.full(4, unit / 3), "count": unit})
    return journal


def test_units_come_back_bit_for_bit(tmp_path: Path) -> None:
    filled(tmp_path)
    again = Journal(tmp_path, "work", {"config": "a"})
    assert len(again) == 3
    for unit in range(3):
        found = again.get(f"unit {unit}")
        assert found is not None
        assert np.array_equal(found["value"], np.full(4, unit / 3))
        assert found["count"] == unit
    assert again.get("unit 3") is None


@pytest.mark.parametrize("identity", [{"config": "b"}, {"config": "a", "key": 1}, None])
def test_other_work_never_finds_it(tmp_path: Path, identity: object) -> None:
    filled(tmp_path)
    assert Journal(tmp_path, "work", identity).get("unit 0") is None
    assert Journal(tmp_path, "other", {"config": "a"}).get("unit 0") is None


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_line_costs_that_unit_only(tmp_path: Path, cut: int) -> None:
    journal = filled(tmp_path)
    index = journal.folder / "index.jsonl"
    index.write_bytes(index.read_bytes()[:-cut])
    again = Journal(tmp_path, "work", {"config": "a"})
    assert again.get("unit 1") is not None
    assert (again.get("unit 2") is None) == (cut > 1)  # only the line's end is missing at 1
    again.put("unit 2", {"value": np.ones(1)})
    again.put("unit 3", {"value": np.zeros(1)})
    final = Journal(tmp_path, "work", {"config": "a"})
    assert all(final.get(f"unit {unit}") is not None for unit in range(4))


@pytest.mark.parametrize("damage", ["missing", "altered", "shortened"])
def test_a_damaged_part_counts_as_not_done(tmp_path: Path, damage: str) -> None:
    journal = filled(tmp_path)
    part = journal.folder / journal._parts["unit 1"][0]
    content = part.read_bytes()
    if damage == "missing":
        part.unlink()
    else:
        part.write_bytes(content[:-9] if damage == "shortened" else content[:-1] + bytes([content[-1] ^ 1]))
    again = Journal(tmp_path, "work", {"config": "a"})
    assert again.get("unit 1") is None
    assert again.get("unit 2") is not None


def test_seconds_and_memory_of_earlier_calls_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert earlier_calls(tmp_path, 500.0) == []
    for began, names, at in ((100.0, ("work", "other"), (130.0, 160.0)), (500.0, ("work",), (510.0,))):
        for name, now in zip(names, at, strict=True):
            monkeypatch.setattr(module.time, "time", lambda now=now: now)
            journal = Journal(tmp_path, name, {"config": "a"}, lambda b=began, n=now: (b, n / 10))
            journal.put(f"unit {now}", {"value": 1.0})
    with open(next(tmp_path.glob("work-*/index.jsonl")), "ab") as index:
        index.write(b'{"key": "of an older version", "file": "x", "sha256": "y"}\ntorn')
    assert earlier_calls(tmp_path, 500.0) == [(60.0, 16.0)]
    assert earlier_calls(tmp_path, 900.0) == [(60.0, 16.0), (10.0, 51.0)]
