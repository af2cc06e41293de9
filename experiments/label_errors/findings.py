"""What a search for wrong labels found: the data that the files, the page and the terminal show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.tables.kinds import Column
from experiments.data.tables.labels import Labels
from experiments.data.tables.reading import Table
from experiments.label_errors.settings import Settings
from experiments.label_errors.why import Reasons


@dataclass
class Findings:
    """The result.

    Attributes:
        suspects: DataFrame, a labelled row each, most suspicious first; then the user's own columns.
        own: names of the user's columns in ``suspects``; shown: the id column among them or None.
        columns: how each column was read. notes: what the reader should know, a sentence each.
        summary: counts, the model, the expected number of errors.
        write: writes the three files.
        labels, reasons, contributions, order: for the page; order ``(m,)`` are places among labelled rows.
    """

    table: Table
    settings: Settings
    labels: Labels
    columns: list[Column]
    notes: list[str]
    summary: dict[str, Any]
    suspects: Any
    own: list[str]
    shown: str | None
    order: np.ndarray
    reasons: Reasons
    contributions: list[list[tuple[int, str, float]]]
    write: Callable[[Findings, Path], dict[str, Path]]
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: str | Path) -> dict[str, Path]:
        """Writes suspects.csv, report.html and report.json; their paths by name."""
        return self.write(self, Path(folder))
