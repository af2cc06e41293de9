"""Figures drawn from records alone: ``experiments/<experiment>/figure.py`` has ``draw(record, path)``."""

from __future__ import annotations

import importlib
from pathlib import Path

from experiments.records import crate
from experiments.records.record import Record


def redraw(folder: Path) -> list[Path]:
    """Draws the figures of the record in ``folder`` there; the paths written."""
    written = draw(Record.load(folder), folder)
    if (folder / crate.NAME).is_file():  # it names the pictures by their sha256
        crate.write(folder)
    return written


def draw(record: Record, folder: Path) -> list[Path]:
    """Draws the record's figures into ``folder`` as .svg and .png; the paths written.

    The experiment's module draws what it likes through ``style.save``; ``path`` has no suffix.
    """
    sweep = record.experiment.startswith("sweep_")
    module = importlib.import_module(
        "experiments.suite.sweep_figure" if sweep else f"experiments.{record.experiment}.figure"
    )
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.*g")}
    module.draw(record, folder / record.experiment)
    return sorted(path for path in folder.glob("*.*g") if before.get(path) != path.stat().st_mtime_ns)
