"""Section 5.3: who is influential, what the coefficients show instead, and through which features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.patches import Patch

from experiments.records import style
from experiments.records.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHILDREN = "age=[0-10)"


def draw(record: Record, path: Path) -> None:
    """Three panels: influence by patient, coefficients, I_pert,loss by feature."""
    figure, axes = style.panels(1, 3, width=4.8, height=4.9)
    influence(record, axes[0, 0])
    coefficients(record, axes[0, 1])
    features(record, axes[0, 2])
    style.save(figure, path)


def influence(record: Record, panel: Axes) -> None:
    """The patients of largest predicted change, and what leaving them out really did."""
    a = record.arrays
    order = np.argsort(-np.abs(a["predicted"]), kind="stable")[:20]
    order = order[np.argsort(a["predicted"][order])][::-1]
    is_child = a["age"][order] == CHILDREN
    position = np.arange(len(order))
    colours = np.where(is_child, style.RED, style.BLUE)
    panel.barh(position, a["predicted"][order], color=colours, height=0.7)
    panel.plot(a["corrected"][order], position, ".", color="black", markersize=4, label="leverage-corrected")
    panel.plot(a["actual"][order], position, "|", color="black", markersize=9, label="really left out")
    labels = [
        f"{age.removeprefix('age=')} {'readmitted' if ill else 'not readm.'}"
        for age, ill in zip(a["age"][order], a["readmitted"][order], strict=True)
    ]
    panel.set_yticks(position, labels, fontsize=8)
    panel.axvline(0, color=style.GREY, linewidth=0.8)
    panel.set_xlabel("Change of the test loss when left out (nats)")
    panel.set_title(f"{len(order)} most influential patients, by age group")
    marks = [
        *panel.get_legend_handles_labels()[0],
        Patch(color=style.RED, label="child, predicted"),
        Patch(color=style.BLUE, label="older, predicted"),
    ]
    ratios = record.metrics["ratios_range"]
    lead = f"children: {ratios[0]:.0f} to {ratios[1]:.0f} times\nthe next patient"
    panel.legend(handles=marks, loc="center right", fontsize=8, title=lead, title_fontsize=8)


def coefficients(record: Record, panel: Axes) -> None:
    """The largest coefficients: the age indicator is one among many."""
    theta, names = record.arrays["coefficients"], record.arrays["features"]
    order = np.argsort(-np.abs(theta), kind="stable")[:20][::-1]
    colours = np.where(names[order] == CHILDREN, style.RED, style.GREY)
    panel.barh(np.arange(len(order)), theta[order], color=colours, height=0.7)
    panel.set_yticks(np.arange(len(order)), names[order], fontsize=8)
    panel.axvline(0, color=style.GREY, linewidth=0.8)
    panel.set_xlabel("Coefficient")
    rank = record.metrics["modified"]["coefficient_rank"]
    panel.set_title(f"Coefficients: {CHILDREN} is number {rank}")


def features(record: Record, panel: Axes) -> None:
    """|I_pert,loss| of the children by feature, of those that a child has (value not 0)."""
    a = record.arrays
    size = np.where(a["children_values"] != 0, np.abs(a["pert_loss"]), np.nan)  # (children, features)
    size = size[:, ~np.isnan(size).all(0)]
    names = a["features"][(a["children_values"] != 0).any(0)]
    order = np.argsort(-np.nanmax(size, 0), kind="stable")[:12][::-1]
    marks = ("o", "s", "^", "D", "v", "P")
    colours = (style.RED, style.ORANGE, style.GREEN, style.BLUE, style.GREY, "black")
    readmitted = dict(zip(a["index"].tolist(), a["readmitted"].tolist(), strict=True))
    for j, patient in enumerate(a["children"].tolist()):
        what = "readmitted" if readmitted.get(patient) else "not readmitted"
        panel.scatter(
            size[j, order],
            np.arange(len(order)),
            s=22,
            alpha=0.8,
            linewidths=0,
            marker=marks[j % 6],
            color=colours[j % 6],
            label=f"{patient}, {what}",
        )
    panel.set_xlim(left=0)
    panel.set_yticks(np.arange(len(order)), names[order], fontsize=8)
    panel.grid(axis="y", linewidth=0.4)
    panel.set_xlabel(r"$|I_{\mathrm{pert,loss}}|$ (nats a unit of the feature)")
    panel.set_title("Features through which the children act")
    panel.legend(title="child, training index", fontsize=8, title_fontsize=8, loc="center right")
