"""The check of a mirror before a long run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from experiments.data.check import of_mirror
from experiments.data.errors import ChecksumMismatch
from tests.helpers import mirror


def test_the_real_mirror_is_whole() -> None:
    lines = of_mirror(mirror())
    assert lines[0].startswith("MNIST: sha256")
    assert all("not in the mirror" not in line for line in lines)


def test_a_missing_file_is_named_and_an_altered_one_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("INFLUENCE_MIRROR", raising=False)
    assert of_mirror(None) == []
    (tmp_path / "mnist").mkdir()
    lines = of_mirror(tmp_path)
    assert "not in the mirror: mnist/train-images-idx3-ubyte.gz" in lines[0]
    shutil.copy(mirror() / "mnist" / "t10k-labels-idx1-ubyte.gz", tmp_path / "mnist")
    target = tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz"
    target.chmod(0o644)
    target.write_bytes(target.read_bytes()[:-100])
    with pytest.raises(ChecksumMismatch, match="truncated or altered"):
        of_mirror(tmp_path)
