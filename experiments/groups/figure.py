"""Predicted against actual changes of groups, and the error by size of the group."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.records import style
from experiments.records.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKS = {
    "random": ("o", style.GREY),
    "one class": ("s", style.GREEN),
    "most helpful": ("^", style.BLUE),
    "most harmful": ("v", style.RED),
}
TITLES = {
    "sum": "Sum of influences",
    "newton": "One Newton step without the group",
    "newton_twice": "Two Newton steps",
}


def draw(record: Record, path: Path) -> None:
    """Three panels; ``path`` without suffix."""
    figure, axes = style.panels(1, 3, width=4.3, height=4.2)
    for panel, name in zip(axes[0, :2], ("sum", "newton"), strict=True):
        scatter(record, panel, name)
    errors(record, axes[0, 2])
    style.save(figure, path)


def scatter(record: Record, panel: Axes, name: str) -> None:
    """One method, a marker a kind of group."""
    a = record.arrays
    style.diagonal(panel, a["refit"], np.concatenate([a["sum"], a["newton"]]))
    for kind, (mark, colour) in MARKS.items():
        rows = a["kind"] == kind
        if rows.any():
            panel.scatter(
                a["refit"][rows], a[name][rows], s=30, marker=mark, color=colour, alpha=0.75,
                linewidths=0, label=kind, zorder=2,
            )  # fmt: skip
    found = record.metrics["up_to_20"][name]
    panel.set_xlabel("Actual change of the test loss (nats)")
    panel.set_ylabel("Predicted change (nats)")
    panel.set_title(TITLES[name])
    panel.legend(
        fontsize=8, loc="upper left", title_fontsize=8, alignment="left",
        title=f"up to 20 %: slope {found['slope']:.2f}, error {found['relative_error']:.0%}",
    )  # fmt: skip


def errors(record: Record, panel: Axes) -> None:
    """Mean error over mean change, a point a size."""
    a = record.arrays
    shares = np.unique(a["share"])
    looks = zip(TITLES.items(), ((style.ORANGE, "o"), (style.BLUE, "s"), (style.GREEN, "^")), strict=True)
    for (name, label), (colour, mark) in looks:
        values = []
        for share in shares:
            rows = a["share"] == share
            values.append(100 * np.abs(a[name] - a["refit"])[rows].mean() / np.abs(a["refit"])[rows].mean())
        panel.plot(100 * shares, values, color=colour, marker=mark, markersize=6, label=label)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("Size of the group (% of the training set)")
    panel.set_ylabel("Mean error (% of the mean actual change)")
    panel.set_title("Error by size")
    least, most = panel.get_ylim()
    panel.set_ylim(least * (least / most) ** 0.35, most)  # room for the legend
    panel.legend(fontsize=8, loc="lower right")
