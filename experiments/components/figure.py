"""Fig. 1: the full influence against three reduced ones by label, the test image, a harmful image."""

from __future__ import annotations

from pathlib import Path

from experiments.records import style
from experiments.records.record import Record

TITLES = {
    "no_train_loss": "without train loss",
    "no_hessian": "without H",
    "neither": "without train loss and H",
}


def draw(record: Record, path: Path) -> None:
    """Three scatter plots, two images; ``path`` without suffix."""
    figure, axes = style.panels(1, 5, width=3.1, height=3.2)
    full, same = record.arrays["full"], record.arrays["same_label"]
    for panel, (name, text) in zip(axes[0], TITLES.items(), strict=False):
        reduced = record.arrays[name]
        for chosen, colour, label in (
            (~same, style.RED, "other label"),
            (same, style.GREEN, "same label"),
        ):
            panel.scatter(
                reduced[chosen], full[chosen], s=4, color=colour, linewidths=0, label=label, rasterized=True
            )
        panel.axhline(0, color=style.GREY, lw=0.6)
        panel.axvline(0, color=style.GREY, lw=0.6)
        panel.set_title(text, fontsize=10)
        panel.set_xlabel(f"influence {text}", fontsize=8.5)
        panel.set_ylabel("influence (times n)")
    axes[0][0].legend(fontsize=8, markerscale=2, loc="best")
    for panel, name, text in (
        (axes[0][3], "test_image", f"test image ({record.metrics['test_label']})"),
        (axes[0][4], "harmful_image", "harmful training image"),
    ):
        panel.imshow(record.arrays[name], cmap="gray")
        panel.set_title(text, fontsize=10)
        panel.set_axis_off()
    style.save(figure, path)
