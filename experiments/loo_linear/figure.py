"""Fig. 2, left and middle: predicted against actual change of the test loss, one panel a solver."""

from __future__ import annotations

from pathlib import Path

from experiments.records import style
from experiments.records.record import Record

TITLES = {
    "cg": "Linear (CG)",
    "exact": "Linear (exact)",
    "lissa": "Linear (LiSSA)",
    "lissa_auto": "LiSSA, automatic scale",
    "lissa_one_repeat": "LiSSA, 1 repeat",
    "lissa_100_repeats": "LiSSA, 100 repeats",
    "lissa_depth_50000": "LiSSA, depth 50,000",
}


def draw(record: Record, path: Path) -> None:
    """One panel for the run's solver and one for each LiSSA compared; ``path`` without suffix."""
    chosen = record.metrics["solver"]
    # The order of the table, a list: JSON sorts the keys of solvers.
    names = [name.removeprefix("predicted_") for name in record.table if name.startswith("predicted_")]
    solvers = [chosen, *(name for name in names if name.startswith("lissa") and name != chosen)]
    columns = min(len(solvers), 3)
    figure, axes = style.panels(-(-len(solvers) // columns), columns, width=3.9, height=4.1)
    panels = [panel for row in axes for panel in row]
    for panel in panels[len(solvers) :]:
        panel.set_visible(False)
    actual = record.arrays["actual"]
    for panel, name in zip(panels, solvers, strict=False):
        predicted = record.arrays[f"predicted_{name}"]
        found = record.metrics["solvers"][name]["objective"]
        style.diagonal(panel, actual, predicted)
        panel.scatter(actual, predicted, s=9, color=style.BLUE, alpha=0.7, linewidths=0, zorder=2)
        panel.set_title(TITLES.get(name, f"Linear ({name})"))
        panel.set_xlabel("Actual diff in loss")
        panel.set_ylabel("Predicted diff in loss")
        lines = [
            f"Pearson {found['pearson']:.5f}",
            f"Spearman {found['spearman']:.4f}",
            f"slope {found['slope']:.3f}",
            f"n = {len(actual)} left out",
        ]
        paper = (record.paper or {}).get("pearson")
        if paper and record.data == "mnist" and name == "lissa":  # the rerun was of that panel alone
            lines.append(f"rerun of the paper: Pearson {paper['value']}")
        style.note(panel, lines)
    style.save(figure, path)
