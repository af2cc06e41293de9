"""The benchmark: seconds and memory of every method on every task, and the growth of task A."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator

from experiments.records import style
from experiments.records.record import Record

COLOURS = {"ours": style.BLUE, "bare": style.GREY}


def lines_of(record: Record) -> list[tuple[str, dict[str, Any]]]:
    """(label, line) of every measured method, task by task, the fastest first."""
    found = []
    for name, task in record.metrics["tasks"].items():
        rows = [(m, line) for m, line in task["methods"].items() if line["status"] == "measured"]
        for method, line in sorted(rows, key=lambda pair: pair[1]["seconds"]):
            found.append((f"{name}  {method}", line))
    return found


def draw(record: Record, path: Path) -> None:
    """Two bar charts (time, memory), and growth curves where they were measured; ``path`` without suffix."""
    found = lines_of(record)
    height = max(4.0, 0.21 * len(found))
    grown = any(len(record.arrays[f"growth_{over}_sizes"]) for over in ("n", "p"))
    figure, axes = style.panels(1, 3 if grown else 2, width=5.0, height=height)
    places = np.arange(len(found))[::-1]
    for axis, field, label in (
        (axes[0, 0], "seconds", "seconds (median)"),
        (axes[0, 1], "peak_with_setup_mib", "peak memory, MiB"),
    ):
        for place, (_, line) in zip(places, found, strict=True):
            bar = axis.barh(
                place,
                line[field],
                color=COLOURS.get(line["by"], style.ORANGE),
                alpha=0.5 if line["extrapolated"] and field == "seconds" else 0.95,
                hatch=None if line["correct"] else "////",
                edgecolor="white",
                linewidth=0.3,
            )
            value = line[field]
            axis.bar_label(bar, [f" {value:.3g}" if value < 1000 else f" {value:.0f}"], fontsize=8)
        axis.set_xscale("log")
        axis.set_xlabel(label)
        axis.set_ylim(-0.8, len(found) - 0.2)
        axis.set_yticks(places, [name for name, _ in found], fontsize=8)
        axis.margins(x=0.15)
        low, high = axis.get_xlim()
        if high < 100 * low:  # between powers of ten only 2 and 5 have room for a label
            axis.xaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
            axis.xaxis.set_minor_formatter(lambda value, _: f"{value:g}")
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes[0, 1].set_yticklabels([])
    axes[0, 0].set_title("blue: ours, grey: hand-written, orange: others", fontsize=9)
    axes[0, 1].set_title("hatched: not correct; light: extrapolated", fontsize=9)
    if grown:
        growth(record, axes[0, 2])
    style.save(figure, path)


def growth(record: Record, axis: Any) -> None:
    """Seconds a Hessian product and memory over n and p, on logarithmic axes."""
    for over, colour in (("n", style.BLUE), ("p", style.GREEN)):
        sizes = record.arrays[f"growth_{over}_sizes"]
        if not len(sizes):
            continue
        found = record.metrics["growth"][over]
        for field, marker, what in (
            ("seconds_a_product", "o-", "ms a product"),
            ("peak_mib_beyond_imports", "s--", "MiB"),
        ):
            values = record.arrays[f"growth_{over}_{field}"] * (1e3 if field.startswith("seconds") else 1)
            exponent = found["slope_of_time_a_product" if what.startswith("ms") else "slope_of_memory"]
            label = f"{what} over {over}, exponent {exponent:.2f}"
            axis.loglog(sizes, values, marker, color=colour, markersize=4, linewidth=1, label=label)
    axis.set_xlabel("n (blue), p (green)")
    axis.set_title("growth of task A, float64", fontsize=9)
    if axis.lines:
        axis.legend(fontsize=8)
