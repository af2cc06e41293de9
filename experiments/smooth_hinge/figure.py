"""Fig. 3: the losses, then predicted against actual change at each temperature."""

from __future__ import annotations

from pathlib import Path

from experiments.records import style
from experiments.records.record import Record

_COLOURS = (style.BLUE, style.ORANGE, style.GREEN, style.RED, style.GREY)


def draw(record: Record, path: Path) -> None:
    """Losses, then one panel a temperature; ``path`` without suffix."""
    names = list(record.metrics["temperatures"])
    figure, axes = style.panels(1, len(names) + 1, width=3.5, height=3.6)
    losses = axes[0][0]
    styles = ("-", "--", ":", "-.")
    for i, name in enumerate(names):
        losses.plot(
            record.arrays["margin"],
            record.arrays[f"loss_{name}"],
            styles[i % 4],
            color=_COLOURS[i % 5],
            label="hinge" if name == "t0" else f"smooth, {title(name)}",
        )
    losses.plot(
        record.arrays["margin"], record.arrays["loss_logistic"], color=style.GREY, lw=0.8, label="logistic"
    )
    losses.set_xlabel("s")
    losses.set_ylabel("Loss")
    losses.set_title("Losses")
    losses.legend(fontsize=8)
    actual = record.arrays["actual"]
    for panel, name in zip(axes[0][1:], names, strict=True):
        predicted = record.arrays[f"predicted_{name}"]
        found = record.metrics["temperatures"][name]
        panel.axline((0, 0), slope=1, color=style.GREY, linewidth=0.8)
        panel.scatter(actual, predicted, s=12, color=style.BLUE, alpha=0.7, linewidths=0)
        panel.set_title(f"{title(name)} ({'hinge' if name == 't0' else 'smooth hinge'})")
        panel.set_xlabel("Actual diff in loss")
        panel.set_ylabel("Predicted diff in loss")
        lines = [f"Pearson {found['pearson']:.4f}", f"slope {found['slope']:.2f}"]
        if name in record.metrics["corrected"]:
            better = record.metrics["corrected"][name]
            lines.append(f"corrected: {better['pearson']:.4f}, {better['slope']:.2f}")
        paper = (record.paper or {}).get(f"pearson_{name}")
        if paper and record.data == "mnist":
            lines.insert(1, f"paper: {paper['value']}")
        style.note(panel, lines)
    style.save(figure, path)


def title(name: str) -> str:
    """``t0_001`` as it reads in a figure."""
    return "t = " + name[1:].replace("_", ".")
