"""Rank correlation against depth, one panel an activation and weight decay."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.records import style
from experiments.records.record import Record

LOOKS = {
    ("converged", "full"): ("converged, full Hessian", style.BLUE, "o", "-"),
    ("stopped", "full"): ("stopped early, full Hessian", style.ORANGE, "s", "-"),
    ("converged", "last_layer"): ("converged, last layer", style.BLUE, "^", ":"),
    ("stopped", "last_layer"): ("stopped early, last layer", style.ORANGE, "v", ":"),
}


def draw(record: Record, path: Path) -> None:
    """A row of panels a width; ``path`` without suffix."""
    a = record.arrays
    widths = sorted(set(a["width"].tolist()))
    kinds = sorted(
        {(str(x), float(d)) for x, d in zip(a["activation"], a["decay"], strict=True)}, reverse=True
    )
    figure, axes = style.panels(len(widths), len(kinds), width=3.5, height=3.7)
    for row, width in zip(axes, widths, strict=True):
        for panel, (activation, decay) in zip(row, kinds, strict=True):
            rows = (a["activation"] == activation) & (a["decay"] == decay) & (a["width"] == width)
            depth = a["depth"][rows]
            for (fit, hessian), (label, colour, mark, line) in LOOKS.items():
                values = a[f"{fit}_spearman_{hessian}"][rows]
                count = np.isfinite(values).sum(1)
                known = count > 0
                if not known.any():
                    if (fit, hessian) == ("converged", "full"):
                        panel.text(0.5, 0.96, "no net reached a stationary point", transform=panel.transAxes,
                                   ha="center", va="top", fontsize=8, color=style.BLUE)  # fmt: skip
                    continue
                mean = np.array([each[np.isfinite(each)].mean() for each in values[known]])
                error = (
                    np.array([each[np.isfinite(each)].std() for each in values[known]]) / count[known] ** 0.5
                )
                panel.errorbar(
                    depth[known], mean, yerr=error, color=colour, marker=mark, linestyle=line, capsize=2,
                    markersize=5, label=label,
                )  # fmt: skip
            panel.axhline(0, color=style.GREY, linewidth=0.8)
            panel.set_ylim(-0.6, 1.05)
            panel.set_xscale("log", base=2)
            panel.set_xticks(sorted(set(a["depth"].tolist())), sorted(set(a["depth"].tolist())))
            panel.set_xlabel("Depth (hidden layers)")
            panel.set_title(f"{activation}, decay {decay:g}, width {width}", fontsize=10)
        row[0].set_ylabel("Spearman, predicted and retrained")
        row[0].legend(fontsize=8, loc="lower left")
    style.save(figure, path)
