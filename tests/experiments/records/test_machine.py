"""How threads wait on a machine that others use too."""

from __future__ import annotations

import os
import sys

import pytest

from experiments.records import machine


@pytest.mark.parametrize(
    ("others", "given", "policy"),
    [
        ([0, 0, 0, 0, 0], {}, None),
        ([0, 3, 0, 0, 3], {}, None),  # a passing one
        ([2, 2, 0, 3, 2], {}, "PASSIVE"),
        ([2, 2, 2, 2, 2], {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        ([2, 2, 2, 2, 2], {"GOMP_SPINCOUNT": "9"}, None),
    ],
)
def test_threads_sleep_while_they_wait_where_others_compute(
    others: list[int], given: dict[str, str], policy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter(others)
    monkeypatch.setattr(machine, "running", lambda: next(looks))
    monkeypatch.setattr(machine, "cores", lambda: 2)
    monkeypatch.setattr(machine, "PAUSE", 0.0)
    for name in machine.WAITING:
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    machine.share_cores()
    assert os.environ.get("OMP_WAIT_POLICY") == policy


def test_nothing_changes_once_torch_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "running", lambda: 9)
    monkeypatch.setitem(sys.modules, "torch", sys)
    for name in machine.WAITING:
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    machine.share_cores()
    assert not machine.WAITING & set(os.environ)


def test_this_process_is_not_counted_among_the_others() -> None:
    assert machine.running() >= 0
