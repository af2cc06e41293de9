"""A sweep: the metric against the swept setting, and against time; a line for each choice of the others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.records import style
from experiments.records.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WORDS = {  # settings and metrics as an axis names them
    "experiment.temperatures": "temperature t of the smooth hinge",
    "solver.tolerance": "tolerance of conjugate gradients (relative residual)",
    "solver.depth": "depth of LiSSA (steps)",
    "solver.damping": "damping (added to the Hessian's diagonal)",
    "solvers.{solver}.scores_relative_error": "relative error of all scores",
    "temperatures.*.pearson": "Pearson correlation with retraining",
    "pearson": "Pearson correlation with retraining",
    "full_length.movement_over_class_distance": "movement of the features / distance of the classes",
    "flipped.by_1.share": "share of test images flipped by one image",
    "flipped": "test images flipped",
    "loss_after": "mean test loss after the attack (nats)",
}
DATA = {"mnist": "MNIST", "dogfish": "springer and tench", "digits": "8x8 digits"}
LOOK = [
    (style.BLUE, "o"), (style.ORANGE, "s"), (style.GREEN, "^"), (style.RED, "D"), ("#CC79A7", "v"),
    ("#56B4E9", "P"), ("#000000", "X"), (style.GREY, "*"),
]  # fmt: skip


def draw(record: Record, path: Path) -> None:
    """Draws ``record`` into ``path``.svg and .png."""
    metrics, arrays = record.metrics, record.arrays
    timed = "seconds" in arrays
    figure, axes = style.panels(1, 1 + timed, width=6.2, height=4.4)
    panel, order = axes[0][0], order_of(record)
    if all(len(line["values"]) == 1 for line in metrics["lines"].values()):  # one metric against another
        by_x = np.argsort(arrays["x"])
        panel.plot(arrays["x"][by_x], arrays["y"][by_x], color=style.GREY, linewidth=0.8, zorder=1)
    for number, label in enumerate(order):
        mine = np.flatnonzero(arrays["line"] == number)
        line(panel, arrays, mine[np.argsort(arrays["x"][mine], kind="stable")], "x", number, label)
        if timed:
            line(
                axes[0][1],
                arrays,
                mine[np.argsort(arrays["x"][mine], kind="stable")],
                "seconds",
                number,
                label,
            )
    if timed:
        axes[0][1].set_xlabel("processor seconds of the solver, preparation and scores included")
        axes[0][1].set_xscale("log")
    for each in axes[0]:
        each.set_ylabel(words(metrics["y"]))
        each.set_title(DATA.get(record.data, record.data))
        if "y" in metrics["log"]:
            each.set_yscale("log")
    if "x" in metrics["log"]:
        panel.set_xscale("log")
    panel.set_xlabel(words(metrics["x"]))
    if (arrays["y"] == np.round(arrays["y"])).all():
        panel.yaxis.get_major_locator().set_params(integer=True)
    if len(order) > 1:
        handles = panel.get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=min(4, len(order)), fontsize=9)
    style.save(figure, path)


def order_of(record: Record) -> list[str]:
    """The lines' labels by their number in ``line``: JSON sorts the keys of ``lines``, so they say nothing.

    Records from before ``order`` was kept: the order in which the jobs, which are a list, first name them.
    """
    from experiments.suite.sweeps import label_of, varied_in

    if "order" in record.metrics:
        return list(record.metrics["order"])
    rows: list[dict[str, Any]] = [row for row in record.metrics["rows"] if row["status"] == "done"]
    varied = varied_in([row["overrides"] for row in record.metrics["rows"]])
    labels = {frozenset(label.split(", ")): label for label in record.metrics["lines"]}
    named = (frozenset(label_of(row["overrides"], varied, record.metrics["x"]).split(", ")) for row in rows)
    return list(dict.fromkeys(labels[parts] for parts in named))


def line(panel: Axes, arrays: dict[str, Any], rows: np.ndarray, x: str, number: int, label: str) -> None:
    """One line, with the interval of each mean where there were several seeds."""
    colour, marker = LOOK[number % len(LOOK)]
    bars = arrays["half_width"][rows] if "half_width" in arrays else None
    panel.errorbar(
        arrays[x][rows], arrays["y"][rows], yerr=bars, color=colour, marker=marker, markersize=5, capsize=3,
        linewidth=1.4, label=label,
    )  # fmt: skip


def words(name: str) -> str:
    """A setting or a metric as a reader knows it."""
    return WORDS.get(name, name.split(".")[-1].replace("_", " "))
