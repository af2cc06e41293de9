"""One look for all figures, and files that are the same bytes for the same record."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.ticker import MaxNLocator

from experiments.records.atomic import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

mpl.use("Agg")

# Okabe and Ito's palette: told apart by colour-blind readers, and in grey.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"
SETTINGS: dict[Any, Any] = {
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "influence",  # the same ids in every drawing
    "svg.fonttype": "none",  # text stays text: searchable and small
    "figure.constrained_layout.use": True,
}


def panels(
    rows: int = 1, columns: int = 1, width: float = 4.2, height: float = 4.0
) -> tuple[Figure, np.ndarray]:
    """A figure and its (rows, columns) array of axes; sizes in inches per panel."""
    import matplotlib.pyplot as plt

    mpl.rcParams.update(mpl.rcParamsDefault)
    mpl.use("Agg")
    mpl.rcParams.update(SETTINGS)
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False)
    return figure, axes


def diagonal(axes: Axes, x: np.ndarray, y: np.ndarray) -> None:
    """Equal limits on both axes with a margin, and the line y = x."""
    values = np.concatenate([x, y])
    values = values[np.isfinite(values)]
    low, high = (values.min(), values.max()) if len(values) else (-1.0, 1.0)
    margin = 0.05 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, color=GREY, linewidth=0.8, zorder=1)
    axes.set_xlim(*limits)
    axes.set_ylim(*limits)
    axes.set_aspect("equal")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(6))


def note(axes: Axes, lines: list[str]) -> None:
    """A few lines of numbers in the upper left corner."""
    axes.text(0.04, 0.97, "\n".join(lines), transform=axes.transAxes, va="top", ha="left", fontsize=8.5)


def save(figure: Figure, path: Path) -> None:
    """Writes ``path``.svg and ``path``.png atomically, without dates inside, and closes the figure."""
    import matplotlib.pyplot as plt

    for suffix, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, metadata=metadata)
        write_bytes(path.with_name(f"{path.name}.{suffix}"), buffer.getvalue())
    plt.close(figure)
