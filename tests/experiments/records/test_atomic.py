"""Files are whole or absent; JSON holds only what was meant; equal arrays give equal bytes."""

from __future__ import annotations

import errno
import math
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.records import atomic
from experiments.records.errors import BusyError


@given(st.recursive(st.floats() | st.integers() | st.text() | st.none(), st.lists, max_leaves=10))
def test_json_round_trip_keeps_non_finite_numbers(value: object) -> None:
    encoded = atomic.jsonable({"value": value})
    again = atomic.unjsonable(encoded)["value"]
    assert repr(again) == repr(value)


def test_json_refuses_what_it_does_not_know() -> None:
    with pytest.raises(TypeError, match="object"):
        atomic.jsonable({"value": [object()]})


def test_numpy_values_become_plain_numbers() -> None:
    encoded = atomic.jsonable(
        {"a": np.float64(0.5), "b": np.int64(3), "c": np.array([1.0, np.inf]), "d": np.True_}
    )
    assert encoded == {"a": 0.5, "b": 3, "c": [1.0, {"non_finite": "inf"}], "d": True}
    assert math.isinf(atomic.unjsonable(encoded)["c"][1])


def test_npz_bytes_do_not_depend_on_time_or_order(tmp_path: Path) -> None:
    arrays = {"b": np.arange(3.0), "a": np.array([[1, 2]])}
    first = atomic.npz_bytes(arrays)
    time.sleep(2.1)  # zip time stamps have two seconds' resolution
    assert atomic.npz_bytes(dict(reversed(arrays.items()))) == first
    (tmp_path / "x.npz").write_bytes(first)
    assert all(
        np.array_equal(value, arrays[name]) for name, value in atomic.read_npz(tmp_path / "x.npz").items()
    )


def test_a_failed_write_leaves_the_old_file_and_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    atomic.write_text(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic.write_text(path, "new")
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_a_locked_folder_is_refused_until_it_is_free(tmp_path: Path) -> None:
    with (
        atomic.locked(tmp_path),
        pytest.raises(BusyError, match="another run is writing"),
        atomic.locked(tmp_path),
    ):
        pass
    with atomic.locked(tmp_path):
        assert (tmp_path / ".lock").exists()


def test_a_number_comes_back_as_a_number(tmp_path: Path) -> None:
    arrays = {"number": np.float64(1.5), "vector": np.ones(1), "turned": np.arange(6.0).reshape(2, 3).T}
    (tmp_path / "a.npz").write_bytes(
        atomic.npz_bytes({name: np.asarray(value) for name, value in arrays.items()})
    )
    back = atomic.read_npz(tmp_path / "a.npz")
    assert {name: value.shape for name, value in back.items()} == {
        "number": (),
        "vector": (1,),
        "turned": (3, 2),
    }
    assert float(back["number"]) == 1.5
    np.testing.assert_array_equal(back["turned"], arrays["turned"])
