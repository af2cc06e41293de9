"""Fig. 2, right: predicted against actual change of the test loss, drift subtracted."""

from __future__ import annotations

from pathlib import Path

from experiments.records import style
from experiments.records.record import Record


def draw(record: Record, path: Path) -> None:
    """One panel; ``path`` without suffix."""
    figure, axes = style.panels(1, 1, width=4.4, height=4.5)
    panel, found = axes[0, 0], record.metrics
    actual, predicted = record.arrays["actual"], record.arrays["predicted"]
    style.diagonal(panel, actual, predicted)
    panel.scatter(actual, predicted, s=11, color=style.BLUE, alpha=0.7, linewidths=0, zorder=2)
    panel.set_title(f"CNN, {found['n_parameters']:,} parameters")
    panel.set_xlabel("Actual diff in loss (drift subtracted)")
    panel.set_ylabel("Predicted diff in loss")
    corrected = found["drift_corrected"]
    lines = [
        f"Pearson {corrected['pearson']:.3f}",
        f"Spearman {corrected['spearman']:.3f}",
        f"slope {corrected['slope']:.2f}",
        f"drift {found['drift']:+.4f}",
        f"n = {len(actual)} left out",
    ]
    paper = (record.paper or {}).get("pearson")
    if paper and record.data == "mnist":
        lines.append(f"paper: Pearson {paper['value']}")
    style.note(panel, lines)
    style.save(figure, path)
