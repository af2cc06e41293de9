"""A sweep: the metric against the swept setting, a line for each choice of the others."""

from __future__ import annotations

from pathlib import Path

from experiments.figures import style
from experiments.record import Record


def draw(record: Record, path: Path) -> None:
    """Draws ``record`` into ``path``.svg and .png."""
    metrics = record.metrics
    figure, axes = style.panels(1, 1, width=6.2, height=4.2)
    panel = axes[0][0]
    for label, line in metrics["lines"].items():
        points = sorted((float(x), y) for x, y in line["values"].items())
        panel.plot(*zip(*points, strict=True), marker="o", markersize=4, label=label)
    for axis, scale in (("x", panel.set_xscale), ("y", panel.set_yscale)):
        if axis in metrics["log"]:
            scale("log")
    panel.set_xlabel(metrics["x"])
    panel.set_ylabel(metrics["y"])
    panel.set_title(record.data)
    if len(metrics["lines"]) > 1:
        panel.legend(fontsize=8)
    style.save(figure, path)
