"""A sweep: the metric against the swept setting, and against time; a line for each choice of the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.records import style
from experiments.records.record import Record


def draw(record: Record, path: Path) -> None:
    """Draws ``record`` into ``path``.svg and .png."""
    metrics, timed = record.metrics, "seconds" in record.arrays
    figure, axes = style.panels(1, 1 + timed, width=6.2, height=4.2)
    panel = axes[0][0]
    if all(len(line["values"]) == 1 for line in metrics["lines"].values()):  # one metric against another
        order = np.argsort(record.arrays["x"])
        path_of = (record.arrays["x"][order], record.arrays["y"][order])
        panel.plot(*path_of, color=style.GREY, linewidth=0.8, zorder=1)
    for label, line in metrics["lines"].items():
        points = sorted((float(x), y) for x, y in line["values"].items())
        panel.plot(*zip(*points, strict=True), marker="o", markersize=4, label=label)
    if timed:
        for number, label in enumerate(metrics["lines"]):
            mine = np.flatnonzero(record.arrays["line"] == number)
            mine = mine[np.argsort(record.arrays["x"][mine])]
            seconds, values = record.arrays["seconds"][mine], record.arrays["y"][mine]
            axes[0][1].plot(seconds, values, marker="o", markersize=4, label=label)
        axes[0][1].set_xlabel("processor seconds of the solver, preparation and scores included")
        axes[0][1].set_xscale("log")
    for each in axes[0]:
        each.set_ylabel(metrics["y"])
        each.set_title(record.data)
        if "y" in metrics["log"]:
            each.set_yscale("log")
    if "x" in metrics["log"]:
        panel.set_xscale("log")
    panel.set_xlabel(metrics["x"])
    if len(metrics["lines"]) > 1:
        axes[0][-1].legend(fontsize=7)
    style.save(figure, path)
