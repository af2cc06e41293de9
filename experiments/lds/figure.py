"""The score of each method with its interval, and its spread over test points."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.records import style
from experiments.records.record import Record

TITLES = {
    "first_order": "influence, first order",
    "leverage": "influence, leverage-corrected",
    "lissa": "influence by LiSSA",
    "trak": "TRAK",
    "representer_points": "representer points",
    "gradient_dot": "gradient dot product",
    "gradient_cosine": "gradient cosine",
}


def draw(record: Record, path: Path) -> None:
    """Two panels; ``path`` without suffix."""
    figure, axes = style.panels(1, 2, width=5.4, height=4.0)
    names = [str(name) for name in record.arrays["method"]]
    places = np.arange(len(names))[::-1]
    table = record.metrics["methods"]
    values = np.array([table[name]["lds"] for name in names])
    ends = np.abs(np.array([[table[name][end] for name in names] for end in ("low", "high")]) - values)
    panel = axes[0, 0]
    colours = [style.BLUE if name in ("first_order", "leverage", "lissa") else style.GREY for name in names]
    panel.barh(places, values, color=colours, height=0.65)
    panel.errorbar(values, places, xerr=ends, fmt="none", ecolor="black", capsize=3)
    for place, value, end in zip(places, values, ends[1], strict=True):
        panel.text(max(value + end, 0) + 0.015, place, f"{value:.2f}", va="center", fontsize=9)
    panel.axvline(0, color=style.GREY, linewidth=0.8)
    panel.set_yticks(places, [TITLES[name] for name in names])
    panel.set_xlim(min(0, values.min()) - 0.02, 1.1)
    panel.set_xlabel("Linear datamodelling score (Spearman, mean over test points)")
    panel.set_title("Which attribution predicts models of subsets?")

    panel = axes[0, 1]
    panel.boxplot(
        [each[np.isfinite(each)] for each in record.arrays["lds"]],
        positions=places, vert=False, widths=0.6, whis=(5, 95), showfliers=False,
        medianprops={"color": style.RED},
    )  # fmt: skip
    panel.axvline(0, color=style.GREY, linewidth=0.8)
    panel.set_yticks(places, ["" for _ in names])
    panel.set_xlabel("Score of one test point (box: quartiles; whiskers: 5 to 95 %)")
    panel.set_title("Spread over test points")
    style.save(figure, path)
