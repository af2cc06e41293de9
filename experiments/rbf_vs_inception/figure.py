"""Fig. 4: predicted change against pixel distance, by class, for both models; their most helpful images."""

from __future__ import annotations

from pathlib import Path

from experiments.records import style
from experiments.records.record import Record


def draw(record: Record, path: Path) -> None:
    """A column a model: the scatter, and below it the test image and the most helpful training images."""
    titles = {"svm": "RBF SVM on pixels", "network": f"{record.metrics['backbone']}, logistic top layer"}
    arrays, classes = record.arrays, record.metrics["classes"]
    figure, axes = style.panels(2, 2, width=5.6, height=2.7)
    axes[0, 0].get_gridspec().set_height_ratios([3, 1])
    for column, (model, title) in enumerate(titles.items()):
        panel, strip = axes[0, column], axes[1, column]
        for label, colour in ((0, style.BLUE), (1, style.ORANGE)):
            rows = arrays["label"] == label
            panel.scatter(
                arrays["distance"][rows], arrays[f"predicted_{model}"][rows], s=8, color=colour, alpha=0.6,
                linewidths=0, label=classes[label],
            )  # fmt: skip
        panel.axhline(0, color=style.GREY, linewidth=0.6, zorder=1)
        panel.set_title(f"{title}\n(test image: {record.metrics['test_label']})")
        panel.set_xlabel("Euclidean distance of the pixels")
        panel.set_ylabel("Predicted diff in loss")
        panel.legend(loc="best", markerscale=2)
        strip.axis("off")
        if f"images_{model}" not in arrays or "image_test" not in arrays:
            continue  # left out of a published record for their size
        pictures = [arrays["image_test"], *arrays[f"images_{model}"]]
        names = ["test", *(classes[arrays["label"][i]] for i in arrays[f"helpful_{model}"])]
        for place, (picture, name) in enumerate(zip(pictures, names, strict=True)):
            small = strip.inset_axes((place / len(pictures), 0.0, 0.94 / len(pictures), 0.9))
            small.imshow(picture, interpolation="none")
            small.set_title(name if place == 0 else f"{place}: {name}", fontsize=8)
            small.axis("off")
    style.save(figure, path)
