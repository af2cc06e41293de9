"""Checks the original files before hours of work depend on them: which a mirror holds, and their sha256."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.data import dogfish, enron, mnist, readmission
from experiments.data.fetch import Source, mirror_folder, verify

SOURCES: dict[str, Sequence[Source]] = {
    "MNIST": list(mnist.SOURCES.values()),
    "Enron1": [enron.SOURCE],
    "Diabetes 130-US hospitals": [readmission.SOURCE],
    "springer and tench": [dogfish.MIRROR_TAR],
}


def of_mirror(mirror: str | Path | None) -> list[str]:
    """One line for each data set: checked, or to be fetched. Empty if no mirror is named.

    Raises:
        ChecksumMismatch: a file in the mirror is truncated or altered.
        FileMissing: the mirror is not a folder.
    """
    folder = mirror_folder(mirror)
    if folder is None:
        return []
    lines = []
    for name, sources in SOURCES.items():
        there = [source for source in sources if (folder / source.path).is_file()]
        for source in there:
            verify(source, folder / source.path)
        missing = [source.path for source in sources if source not in there]
        said = "sha256 of every file is right" if not missing else f"not in the mirror: {', '.join(missing)}"
        lines.append(f"{name}: {said}")
    return lines
