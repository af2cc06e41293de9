"""Fig. 2, right, at a stationary point: a little of one point's weight, all of it, and the way between."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.records import style
from experiments.records.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WAYS = (
    ("first_order", "first order", style.BLUE, "o"),
    ("step", "loss at the predicted net", style.ORANGE, "s"),
    ("newton", "loss after one Newton step", style.GREEN, "^"),
)


def draw(record: Record, path: Path) -> None:
    """Four panels; ``path`` without suffix."""
    figure, axes = style.panels(2, 2, width=4.6, height=4.3)
    fractions = record.arrays["fractions"]
    scatter(axes[0, 0], record, 0, f"{fractions[0]:.0%} of one point's weight")
    scatter(axes[0, 1], record, len(fractions) - 1, "All of one point's weight")
    errors(axes[1, 0], record)
    eigenvalues(axes[1, 1], record)
    style.save(figure, path)


def scatter(panel: Axes, record: Record, row: int, title: str) -> None:
    """Predicted against actual change at one fraction."""
    actual, predicted = record.arrays["actual_at"][row], record.arrays["first_order_at"][row]
    style.diagonal(panel, actual, predicted)
    panel.scatter(actual, predicted, s=11, color=style.BLUE, alpha=0.7, linewidths=0, zorder=2)
    found = record.metrics["fractions"][f"{record.arrays['fractions'][row]:g}"]
    own = found["first_order"]
    panel.set_title(title)
    panel.set_xlabel("Actual diff in loss")
    panel.set_ylabel("Predicted diff in loss")
    panel.ticklabel_format(style="sci", scilimits=(-2, 3))
    lines = [f"Pearson {own['pearson']:.5f}", f"slope {own['slope']:.3f}", f"n = {found['points']} converged"]
    style.note(panel, lines)


def errors(panel: Axes, record: Record) -> None:
    """Median relative error of each prediction against the weight taken away."""
    found = record.metrics["fractions"]
    names = sorted(found, key=float)
    places = [float(name) for name in names]
    for key, label, color, marker in WAYS:
        values = [found[name][key]["median_relative_error"] for name in names]
        panel.loglog(places, values, color=color, marker=marker, markersize=4, label=label)
    panel.set_title("Where the predictions part")
    panel.set_xlabel("Part of one point's weight taken away")
    panel.set_ylabel("Median relative error")
    panel.legend(loc="upper left", fontsize=8.5)


def eigenvalues(panel: Axes, record: Record) -> None:
    """The Hessian's spectrum at the stationary point, and the paper's damping."""
    values = record.arrays["eigenvalues"]
    positive = np.sort(values[values > 0])[::-1]
    panel.semilogy(np.arange(1, len(positive) + 1), positive, color=style.BLUE, linewidth=1.5)
    panel.axhline(0.01, color=style.RED, linestyle="--", linewidth=1)
    panel.text(len(values), 0.0115, "the paper's damping, 0.01", ha="right", va="bottom", fontsize=8.5)
    hessian = record.metrics["hessian"]
    panel.set_title("Eigenvalues of the Hessian")
    panel.set_xlabel("Place, the largest first")
    panel.set_ylabel("Eigenvalue")
    lines = [
        f"{hessian['negative']} negative of {hessian['computed']:,}",
        f"{hessian['below_0.01']:,} below 0.01",
        f"gradient norm {record.metrics['gradient_norm']:.1e}",
    ]
    panel.text(0.96, 0.97, "\n".join(lines), transform=panel.transAxes, va="top", ha="right", fontsize=8.5)
