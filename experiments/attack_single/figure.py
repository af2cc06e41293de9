"""Fig. 5: what a flip looks like, how many images it takes, and how large the changes are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.attacks.shown import change_of
from experiments.records import style
from experiments.records.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEADS = ("training image", "perturbed", "difference, amplified", "test image")


def draw(record: Record, path: Path) -> None:
    """``attack_single``: flips and sizes. ``attack_single_images``: a row of images for each flip shown."""
    figure, axes = style.panels(1, 3, width=4.3, height=3.8)
    flips(record, axes[0, 0])
    pixels(record, axes[0, 1])
    features(record, axes[0, 2])
    style.save(figure, path)
    if "picture_delta" in record.arrays:
        style.save(images(record), path.with_name(f"{path.name}_images"))


def flips(record: Record, panel: Axes) -> None:
    """Share flipped by at most so many training images, ours and the paper's."""
    found = record.metrics["flipped"]
    counts = sorted(int(name.removeprefix("by_")) for name in found)
    share = [found[f"by_{count}"]["share"] for count in counts]
    place = np.arange(len(counts))
    panel.bar(place, share, color=style.BLUE, width=0.6, label=f"{record.metrics['backbone']}, here")
    for x, count, value in zip(place.tolist(), counts, share, strict=True):
        panel.text(x, value + 0.015, f"{found[f'by_{count}']['count']}", ha="center", fontsize=8.5)
    theirs = {
        int(e["metric"].split("by_")[1].split(".")[0]): e["value"]
        for e in (record.paper or {}).values()
        if "metric" in e
    }
    shown = [
        (place[counts.index(count)], value) for count, value in sorted(theirs.items()) if count in counts
    ]
    panel.plot(*zip(*shown, strict=True), "D", color=style.ORANGE, markersize=7, label="paper, Inception v3")
    panel.set_xticks(place, [str(count) for count in counts])
    panel.set_ylim(0, 1.18)
    panel.set_yticks(np.linspace(0, 1, 6))
    panel.set_xlabel("training images attacked, at most (1: either of two)")
    panel.set_ylabel("share of test images flipped")
    panel.set_title(f"{record.metrics['attacked']} test images")
    panel.legend(loc="upper left", fontsize=8.5, ncols=2)


def pixels(record: Record, panel: Axes) -> None:
    """Iterations and L2 size in pixels of the attempt that flipped each test image."""
    by_images(record, panel, record.arrays["iterations"], record.arrays["l2"])
    panel.set_xlabel("iterations until the flip")
    panel.set_ylabel("L2 size of the change (8-bit steps)")
    largest = record.metrics["sizes"]["pixel_linf_max"]
    panel.set_title("In pixels" + (f": L∞ at most {largest:.3f} of a step" if np.isfinite(largest) else ""))


def features(record: Record, panel: Axes) -> None:
    """How far the features moved, relative to the distance between the classes, by the certainty before."""
    a = record.arrays
    odds = -np.log10(np.clip(1 - a["certainty"], 1e-12, None))
    by_images(record, panel, odds, a["movement"] / record.metrics["class_distance"])
    reach = record.metrics["full_length"]["movement_over_class_distance"]
    if np.isfinite(reach):
        panel.axhline(reach, color=style.GREY, linewidth=0.8, linestyle="--")
        panel.text(0.98, reach, "all iterations, median", ha="right", va="bottom", fontsize=8,
                   transform=panel.get_yaxis_transform(), color=style.GREY)  # fmt: skip
    panel.set_ylim(bottom=0)
    panel.set_xlabel(r"$-\log_{10}(1 - p)$ of the test image before")
    panel.set_ylabel("movement / distance between classes")
    panel.set_title("In features")


def by_images(record: Record, panel: Axes, x: np.ndarray, y: np.ndarray) -> None:
    """A scatter, a colour a number of images attacked."""
    needed = record.arrays["images"]
    colours = dict(
        zip(
            (1, 2, 3, 5, 10, 0),
            (style.BLUE, style.ORANGE, style.GREEN, style.RED, "black", style.GREY),
            strict=True,
        )
    )
    for count in sorted(set(needed.tolist()), key=lambda value: (value == 0, value)):
        rows = needed == count
        label = f"flipped by {count}" if count else "not flipped"
        panel.scatter(
            x[rows], y[rows], s=10, alpha=0.6, linewidths=0, color=colours.get(count, style.GREY), label=label
        )
    panel.legend(fontsize=8, markerscale=1.6)


def images(record: Record) -> Figure:
    """A row a flip."""
    a, lines = record.arrays, record.metrics["shown"]
    whole = a["picture_original"].shape[1] > 112  # records before November 2026 kept thinned pictures
    width, height = (2.9, 3.1) if whole else (2.1, 2.3)
    figure, axes = style.panels(len(lines), 4, width=width, height=height)
    for row, line in enumerate(lines):
        original, delta = a["picture_original"][row], change_of(a["picture_delta"][row])
        perturbed = np.clip(original + delta, 0, 255) / 255  # what the network saw
        shown = (original, perturbed, np.clip(0.5 + delta, 0, 1), a["picture_test"][row])
        below = (
            line["row_label"],
            line["row_label"],
            "0.5 + change in 8-bit steps",
            f"{line['test_label']} → {line['flipped_to']}",
        )
        for column, (picture, text) in enumerate(zip(shown, below, strict=True)):
            panel = axes[row, column]
            panel.imshow(picture, interpolation="none")
            panel.set_xticks([])
            panel.set_yticks([])
            panel.set_xlabel(text, fontsize=8.5)
            if row == 0:
                panel.set_title(HEADS[column], fontsize=10)
    return figure
