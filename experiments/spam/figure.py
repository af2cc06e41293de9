"""Fig. 6: flips found and test accuracy by the share checked; or, of a table of one's own, its suspects."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.records import style
from experiments.records.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOOK = {
    "influence": (style.BLUE, "o", "self-influence"),
    "authors": (style.GREEN, "^", "authors' variant, not squared"),
    "loss": (style.ORANGE, "s", "training loss"),
    "random": (style.GREY, "D", "random"),
}
PANELS = "k2"  # the paper's figure has 10 % flipped


def draw(record: Record, path: Path) -> None:
    """Both panels, and a list of the first suspects where their first lines are known."""
    if "flips" not in record.arrays:
        own_table(record, path)
        return
    k = PANELS if PANELS in record.metrics else f"k{record.arrays['flips'][0]}"
    with_paper = record.data == "enron" and k == PANELS
    figure, axes = style.panels(1, 2, width=5.0, height=4.5)
    for panel, what in zip(axes[0], ("found", "accuracy"), strict=True):
        curves(record, panel, k, what, with_paper)
    flipped = record.metrics[k]["flipped"]
    axes[0, 0].set_ylabel(f"Share of the {flipped} flips found")
    axes[0, 0].set_ylim(0, 1)
    axes[0, 1].set_ylabel("Test accuracy after refitting")
    handles, labels = axes[0, 1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8.5)
    style.save(figure, path)
    if "first_line" in record.table:
        suspects(record, path.with_name(f"{path.name}_suspects"), k)


def curves(record: Record, panel: Axes, k: str, what: str, with_paper: bool) -> None:
    """One panel: ours with standard errors, the paper's values dashed behind them."""
    metrics, checked = record.metrics, np.array(record.metrics["checked"])
    for name, (colour, mark, label) in LOOK.items():
        paper = (record.paper or {}).get(f"{what}_{name}") if name != "authors" else None
        if with_paper and paper:
            panel.plot(
                5 * np.arange(1, len(checked) + 1), paper["value"], "--", color=colour, alpha=0.45, zorder=1
            )
        values, errors = metrics[k][what][name], metrics[k][f"{what}_error"][name]
        style_of: dict[str, Any] = {"color": colour, "marker": mark, "markersize": 4, "linewidth": 1.3}
        panel.errorbar(100 * checked, values, errors, capsize=2, label=label, zorder=2, **style_of)
    if what == "accuracy":
        for value, text in (("clean_accuracy", "no label flipped"), ("flipped_accuracy", "before any check")):
            mine = metrics[value] if value in metrics else metrics[k][value]
            line = "-" if value == "clean_accuracy" else ":"
            panel.axhline(mine, color="black", linewidth=0.8, linestyle=line, label=text, zorder=0)
    if with_paper:
        panel.plot([], [], "--", color=style.GREY, alpha=0.6, label="paper, read off its plot")
    panel.set_xlabel("Training examples checked (%)")
    panel.set_xlim(0, 100 * checked[-1] + 2)
    share = 100 * metrics[k]["flipped"] / metrics["n_train"]
    panel.set_title(f"{share:.0f} % of the labels flipped, {metrics['repeats']} repeats")


def suspects(record: Record, path: Path, k: str) -> None:
    """The first suspects as a list: label given, self-influence, first line; flipped ones in red."""
    a = record.arrays
    figure, axes = style.panels(1, 1, width=9.0, height=0.6 + 0.23 * len(a["index"]))
    panel = axes[0, 0]
    panel.set_axis_off()
    panel.set_xlim(0, 1)
    panel.set_ylim(len(a["index"]) + 0.5, -1)
    heads = ("", "label given", "self-influence", "first line")
    for x, text in zip((0.0, 0.05, 0.27, 0.4), heads, strict=True):
        panel.text(x, -0.4, text, fontsize=9, weight="bold")
    for row, line in enumerate(a["first_line"]):
        flipped = bool(a["flipped"][row])
        given = f"{a['given'][row]}, {'flipped' if flipped else 'the true one'}"
        cells = (f"{row + 1}", given, f"{a['self_influence'][row]:.0f}", str(line) or "(empty)")
        for x, text in zip((0.0, 0.05, 0.27, 0.4), cells, strict=True):
            colour = style.RED if flipped else "black"
            # A subject is shown as it is: "$" begins no formula.
            panel.text(x, row + 0.5, text, fontsize=8.5, color=colour, parse_math=False)
    flips = record.metrics[k]["flipped"]
    panel.set_title(f"Most suspicious training mails, {flips} of {record.metrics['n_train']} labels flipped")
    style.save(figure, path)


def own_table(record: Record, path: Path) -> None:
    """Self-influence by rank, and against loss."""
    a = record.arrays
    figure, axes = style.panels(1, 2, width=4.8, height=4.0)
    # Rounding makes 0 of what is nearly that; a log axis then has no place for it.
    influence = np.maximum(a["self_influence"], a["self_influence"].max() * 1e-8)
    loss = np.maximum(a["loss"], a["loss"].max() * 1e-8)
    for disagrees, colour, label in (
        (False, style.BLUE, "label as predicted"),
        (True, style.RED, "not predicted"),
    ):
        rows = a["disagrees"] == disagrees
        dots: dict[str, Any] = {"s": 9, "color": colour, "alpha": 0.7, "linewidths": 0, "label": label}
        axes[0, 0].scatter(a["rank"][rows], influence[rows], **dots)
        axes[0, 1].scatter(loss[rows], influence[rows], **dots)
    for panel in axes[0]:
        panel.set_yscale("log")
        panel.set_ylabel("Self-influence")
    axes[0, 1].set_xscale("log")
    axes[0, 0].set_xlabel("Rank of the row in suspects.csv")
    axes[0, 1].set_xlabel("Training loss (nats)")
    axes[0, 0].legend(fontsize=8)
    style.save(figure, path)
