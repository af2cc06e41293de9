"""Slope and largest error against λ, and predicted against actual changes at the smallest λ."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.records import style
from experiments.records.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOOKS = {
    "first_order": ("first order", style.ORANGE, "o"),
    "leverage": ("leverage-corrected", style.BLUE, "s"),
}


def draw(record: Record, path: Path) -> None:
    """Three panels; ``path`` without suffix."""
    figure, axes = style.panels(1, 3, width=4.3, height=4.2)
    slopes(record, axes[0, 0])
    errors(record, axes[0, 1])
    scatter(record, axes[0, 2])
    style.save(figure, path)


def slopes(record: Record, panel: Axes) -> None:
    """Slope of predicted on actual, with its 95 % interval."""
    l2 = np.array(record.metrics["l2"])
    panel.axhline(1.0, color=style.GREY, linewidth=0.8)
    for method, (label, colour, mark) in LOOKS.items():
        for part, line, filled in (("top", "-", colour), ("random", "--", "white")):
            found = record.metrics[part][method]
            middle = np.array(found["slope"])
            ends = np.abs(np.array([found["slope_low"], found["slope_high"]]) - middle)
            panel.errorbar(
                l2, middle, yerr=ends, color=colour, marker=mark, markerfacecolor=filled, linestyle=line,
                capsize=2, markersize=6, label=f"{label}, {part} points",
            )  # fmt: skip
    panel.set_xscale("log")
    panel.set_ylim(0, 1.45 * max(1.1, panel.get_ylim()[1]))  # room for the legend
    panel.set_xlabel("λ (L2 penalty beside the mean loss)")
    panel.set_ylabel("Slope of predicted on actual change")
    panel.set_title("Are the sizes right?")
    panel.legend(fontsize=8, loc="upper right")


def errors(record: Record, panel: Axes) -> None:
    """Largest error of the most influential points, in per cent of their largest actual change."""
    for method, (label, colour, mark) in LOOKS.items():
        values = 100 * np.array(record.metrics["top"][method]["largest_error"])
        panel.plot(record.metrics["l2"], values, color=colour, marker=mark, markersize=6, label=label)
    panel.set_xscale("log")
    panel.set_ylim(bottom=0)
    panel.set_xlabel("λ (L2 penalty beside the mean loss)")
    panel.set_ylabel("Largest error (% of the largest change)")
    panel.set_title("Most influential points")
    panel.legend(fontsize=8)


def scatter(record: Record, panel: Axes) -> None:
    """Every point left out at the smallest λ."""
    a = record.arrays
    actual, corrected, first = a["actual"][-1], a["leverage_corrected"][-1], a["first_order"][-1]
    style.diagonal(panel, actual, np.concatenate([corrected, first]))
    for predicted, (label, colour, mark) in zip((first, corrected), LOOKS.values(), strict=True):
        panel.scatter(
            actual, predicted, s=14, marker=mark, color=colour, alpha=0.6, linewidths=0, label=label, zorder=2
        )
    panel.set_xlabel("Actual change of the test loss (nats)")
    panel.set_ylabel("Predicted change (nats)")
    panel.set_title(f"λ = {record.metrics['l2'][-1]:g}, {len(actual)} points left out")
    panel.legend(fontsize=8, loc="upper left")
