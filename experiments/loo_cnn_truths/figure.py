"""Fig. 2, right, three times: one prediction against three kinds of retraining."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from experiments.records import style
from experiments.records.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES = {
    "warm": "Training goes on",
    "cold": "Training begins anew",
    "proximal": "Proximal Bregman objective",
}


def draw(record: Record, path: Path) -> None:
    """Three panels; ``path`` without suffix."""
    figure, axes = style.panels(1, 3, width=4.3, height=4.4)
    for panel, truth in zip(axes[0], TITLES, strict=True):
        scatter(panel, record, truth)
    axes[0, 0].legend(loc="lower right", fontsize=8.5)
    style.save(figure, path)


def scatter(panel: Axes, record: Record, truth: str) -> None:
    """The Gauss-Newton prediction against one truth."""
    prefix = "taken_away" if truth == "proximal" else "predicted"
    actual, predicted = record.arrays[truth], record.arrays[f"{prefix}_gauss_newton"]
    drawn = record.arrays["drawn"]
    style.diagonal(panel, actual, predicted)
    chance = record.metrics["chance"]["deviation"]
    if truth == "cold" and chance == chance:
        panel.axvspan(-chance, chance, color=style.GREY, alpha=0.15, linewidth=0, zorder=0)
    for rows, color, label in ((~drawn, style.BLUE, "most influential"), (drawn, style.ORANGE, "random")):
        panel.scatter(
            actual[rows], predicted[rows], s=13, color=color, alpha=0.75, linewidths=0, zorder=2, label=label
        )
    found = record.metrics["truths"][truth]
    panel.set_title(TITLES[truth])
    panel.set_xlabel("Actual diff in loss")
    panel.set_ylabel("Predicted diff in loss (Gauss-Newton)")
    panel.ticklabel_format(style="sci", scilimits=(-3, 3))
    most, every = found["most"]["gauss_newton"], found["all"]["gauss_newton"]
    lines = [
        f"Pearson {most['pearson']:.3f}, all {every['pearson']:.3f}",
        f"Spearman {most['spearman']:.3f}, all {every['spearman']:.3f}",
        f"slope {most['slope']:.2f}",
        f"Hessian: Pearson {found['most']['hessian']['pearson']:.3f}",
    ]
    if truth == "cold":  # its points lie along the top
        corner = panel.transAxes
        panel.text(0.96, 0.04, "\n".join(lines), transform=corner, va="bottom", ha="right", fontsize=8.5)
    else:
        style.note(panel, lines)
