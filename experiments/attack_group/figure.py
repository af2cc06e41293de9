"""Fig. 5, many test images at once: the image attacked, and the test loss and flips as it moves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.attacks.shown import change_of
from experiments.records import style
from experiments.records.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(record: Record, path: Path) -> None:
    """Loss and flips against iterations; certainty of every test image before and after; the image."""
    a, m = record.arrays, record.metrics
    with_images, free = "picture_delta" in a, m.get("features_moved_freely")
    count = 2 + bool(free) + 3 * with_images
    figure, axes = style.panels(1, count, width=3.1, height=3.4)
    loss, margins = axes[0, 0], axes[0, 1]
    loss.plot(a["losses"], color=style.BLUE)
    loss.set_xlabel("iterations")
    loss.set_ylabel("mean test loss (nats)", color=style.BLUE)
    loss.set_title(f"loss {m['loss_before']:.3g} → {m['loss_after']:.3g}")
    twin = loss.twinx()
    twin.plot(a["flipped"], color=style.ORANGE, linestyle="--")
    twin.set_ylim(-0.04 * m["attacked"], 1.04 * m["attacked"])  # a line at nought or at all is not the frame
    twin.set_ylabel(f"flipped, of {m['attacked']}", color=style.ORANGE)
    order = np.argsort(a["margin_before"], kind="stable")
    place = np.arange(len(order))
    margins.scatter(place, a["margin_before"][order], s=14, color=style.GREY, label="before")
    margins.scatter(place, a["margin_after"][order], s=14, color=style.RED, label="after")
    margins.axhline(0, color="black", linewidth=0.8)
    margins.set_xlabel(f"test images ({m['test_class']})")
    margins.set_ylabel("margin; below 0: flipped")
    margins.set_title(f"{m['flipped']} of {m['attacked']} flipped")
    margins.legend(fontsize=8)
    if free:
        reach(record, axes[0, 2])
    if with_images:
        original, delta = a["picture_original"][0], change_of(a["picture_delta"][0])
        pictures = (original, np.clip(original + delta, 0, 255) / 255, np.clip(0.5 + delta, 0, 1))
        heads = (f"{m['row_class']}, p = {m['certainty']:.2f}", "perturbed", "difference, amplified")
        for panel, picture, head in zip(axes[0, -3:], pictures, heads, strict=True):
            panel.imshow(picture, interpolation="none")
            panel.set_title(head)
            panel.axis("off")
    style.save(figure, path)


def reach(record: Record, panel: Axes) -> None:
    """Flips by the same image's features moved freely, and how far half an 8-bit step moves them."""
    free = sorted(record.metrics["features_moved_freely"].values(), key=lambda each: each["radius"])
    radii = [each["radius"] for each in free]
    panel.plot(radii, [each["flipped"] for each in free], "o-", color=style.ORANGE, label="features, freely")
    panel.axvline(
        record.metrics["largest_movement"], color=style.BLUE, linestyle="--", label="pixels, half a step"
    )
    panel.set_ylim(-0.04 * record.metrics["attacked"], 1.04 * record.metrics["attacked"])
    panel.set_xlim(left=0)
    panel.set_xlabel("movement of the features")
    panel.set_ylabel(f"flipped, of {record.metrics['attacked']}")
    panel.set_title(f"classes {record.metrics['class_distance']:.2g} apart")
    panel.legend(fontsize=8)
