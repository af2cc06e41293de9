"""Fig. 2, right: predicted against actual change of the test loss, and what another seed changes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.records import style
from experiments.records.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(record: Record, path: Path) -> None:
    """One panel; three where there are several seeds. ``path`` without suffix."""
    several = record.metrics.get("n_seeds", 1) > 1
    figure, axes = style.panels(1, 3 if several else 1, width=4.4, height=4.5)
    one_seed(axes[0, 0], record)
    if several:
        coefficients(axes[0, 1], record)
        shared(axes[0, 2], record)
    style.save(figure, path)


def one_seed(panel: Axes, record: Record) -> None:
    """The paper's panel."""
    found = record.metrics
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


def coefficients(panel: Axes, record: Record) -> None:
    """Pearson's coefficient of every seed at every checkpoint."""
    over = record.metrics["over_seeds"]["steps"]
    steps = sorted(over, key=int)
    places = [int(step) for step in steps]
    label: str | None = "s_test has no solution"
    for own in record.metrics["seeds"].values():
        values = [own["steps"][step]["pearson"] for step in steps]
        if own["s_test"]["status"] == "converged":
            panel.plot(places, values, color=style.GREY, alpha=0.5, linewidth=0.8, marker="o", markersize=2.5)
        else:
            panel.plot(places, values, color=style.RED, linewidth=0.8, marker="x", markersize=4, label=label)
            label = None  # once in the legend
    means = [over[step]["pearson"]["mean"] for step in steps]
    panel.plot(
        places, means, color=style.BLUE, linewidth=2, marker="o", markersize=4, label="mean over seeds"
    )
    paper = (record.paper or {}).get("pearson")
    if paper and record.data == "mnist":
        panel.axhline(paper["value"], color=style.RED, linestyle="--", linewidth=1, label="paper, one net")
    last = over[steps[-1]]["pearson"]
    panel.set_title(f"{record.metrics['n_seeds']} seeds: {last['mean']:.2f} ± {last['deviation']:.2f}")
    panel.set_xlabel("Steps of retraining")
    panel.set_ylabel("Pearson's coefficient")
    panel.set_ylim(top=1.0)
    solved = record.metrics.get("over_solved_seeds")
    if solved and record.metrics["n_seeds_solved"] < record.metrics["n_seeds"]:
        own = solved["steps"][steps[-1]]["pearson"]
        solved_seeds = record.metrics["n_seeds_solved"]
        style.note(panel, [f"of the {solved_seeds} solved: {own['mean']:.2f} ± {own['deviation']:.2f}"])
    panel.legend(loc="center right", fontsize=8.5)


def shared(panel: Axes, record: Record) -> None:
    """Points that several seeds left out: does the mean over seeds agree better?"""
    arrays = record.arrays
    x, y = arrays["shared_actual_mean"], arrays["shared_predicted_mean"]
    style.diagonal(panel, x, y)
    panel.errorbar(
        x,
        y,
        xerr=arrays["shared_actual_deviation"],
        yerr=arrays["shared_predicted_deviation"],
        fmt="o",
        markersize=3,
        color=style.BLUE,
        ecolor=style.GREY,
        elinewidth=0.4,
        alpha=0.7,
    )
    found = record.metrics["stability"]
    panel.set_title(f"{len(x)} points left out by two or more seeds")
    panel.set_xlabel("Actual diff in loss, mean over seeds")
    panel.set_ylabel("Predicted diff in loss, mean over seeds")
    lines = [
        f"Pearson of the means {np.corrcoef(x, y)[0, 1]:.3f}" if len(x) > 1 else "",
        "Spearman between seeds, same points:",
        f"  predicted {found['spearman_of_predicted_for_the_same_points']:.2f}, "
        f"actual {found['spearman_of_actual']:.2f}",
        f"shared by two seeds: {found['overlap_of_chosen']:.0%} of the chosen",
    ]
    style.note(panel, [line for line in lines if line])
