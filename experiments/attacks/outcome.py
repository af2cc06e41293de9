"""What the attempts came to: shares flipped, iterations, sizes in pixels and in features."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from experiments.attacks.clean import Clean
from experiments.suite.context import Context, Timing
from influence.retraining.perturbed import Worst


@dataclass
class Stage:
    """All attempts on the same number of images ``m``, for ``total`` test images; NaN if none was made."""

    m: int
    total: int
    parts: list[dict[str, np.ndarray]] = field(default_factory=list)
    keys: list[tuple[str, np.ndarray]] = field(default_factory=list)
    checks: list[dict[str, np.ndarray]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tried = np.zeros(self.total, dtype=bool)
        self.flipped = np.zeros(self.total, dtype=bool)
        self.iterations = np.zeros(self.total, dtype=np.int64)
        self.margin = np.full(self.total, np.nan)
        self.loss = np.full(self.total, np.nan)
        self.movement, self.linf, self.l2 = (np.full((self.total, self.m), np.nan) for _ in range(3))

    def add(self, key: str, places: np.ndarray, part: dict[str, np.ndarray]) -> None:
        """Takes in the attempts on the test images at ``places`` (k,).

        key: of the journal entry that keeps the images.
        """
        self.keys.append((key, places))
        self.parts.append({name: value for name, value in part.items() if name != "delta"})
        self.tried[places] = True
        for name in ("flipped", "iterations", "margin", "loss", "movement", "linf", "l2"):
            getattr(self, name)[places] = part[name]

    def summary(self) -> dict[str, Any]:
        """Counts and medians, over the attempts that flipped."""
        won = self.flipped
        return {
            "images": self.m,
            "tried": int(self.tried.sum()),
            "flipped": int(won.sum()),
            "iterations_median": median(self.iterations[won]),
            "movement_median": median(self.movement[won]),
            "l2_median": median(self.l2[won]),
            "linf_max": float(self.linf[won].max()) if won.any() else float("nan"),
        }


def median(values: np.ndarray) -> float:
    """The median of all entries; NaN of none."""
    return float(np.median(values)) if values.size else float("nan")


def cumulative(stages: dict[str, Stage]) -> dict[str, dict[str, Any]]:
    """Flipped by one image (either of those tried alone), by two, …: ``{by_1: {count, share}, …}``."""
    won = np.zeros(next(iter(stages.values())).total, dtype=bool)
    found: dict[str, dict[str, Any]] = {}
    for stage in stages.values():
        won = won | stage.flipped
        found[f"by_{stage.m}"] = {"count": int(won.sum()), "share": float(won.mean())}
    return found


def per_test_image(stages: list[Stage]) -> dict[str, np.ndarray]:
    """How each test image ended: what flipped it, and the sizes of that attempt (of the last where none did).

    ``images``: training images that it took, 0 where ten did not do. ``movement``, ``l2`` and ``linf`` are
    means and a maximum over the attempt's images.
    """
    total = stages[0].total
    out: dict[str, np.ndarray] = {
        "attempts": np.zeros(total, dtype=np.int64),
        "images": np.zeros(total, dtype=np.int64),
        "iterations": np.zeros(total, dtype=np.int64),
        **{name: np.zeros(total) for name in ("margin", "loss", "movement", "l2", "linf")},
    }
    for stage in stages:
        tried = stage.tried
        out["attempts"][tried] += 1
        out["images"][stage.flipped] = stage.m
        for name in ("iterations", "margin", "loss"):
            out[name][tried] = getattr(stage, name)[tried]
        out["movement"][tried] = stage.movement[tried].mean(1)
        out["l2"][tried] = stage.l2[tried].mean(1)
        out["linf"][tried] = stage.linf[tried].max(1)
    return out


def sizes(stages: dict[str, Stage], distance: float) -> dict[str, Any]:
    """Sizes of the changes that flipped, in pixels (8-bit units) and in features.

    They are those of one image; if none flipped alone, those of the fewest images that flipped together.
    """
    fewest = min((stage.m for stage in stages.values() if stage.flipped.any()), default=1)
    few = [stage for stage in stages.values() if stage.m == fewest]
    l2, linf, movement, iterations = (
        np.concatenate([getattr(stage, name)[stage.flipped].ravel() for stage in few])
        for name in ("l2", "linf", "movement", "iterations")
    )
    return {
        "images": fewest,
        "pixel_linf_max": float(linf.max()) if linf.size else float("nan"),
        "pixel_l2_median": median(l2),
        "feature_movement_median": median(movement),
        "movement_over_class_distance": median(movement / distance),
        "iterations_median": median(iterations),
    }


def verification(stages: dict[str, Stage]) -> dict[str, Any]:
    """Flips confirmed by a fit from zero on the saved images; those that round to the originals."""
    names = ("margin", "gradient_norm", "identical")
    margin, norm, identical = (
        np.concatenate([[], *(check[name] for stage in stages.values() for check in stage.checks)])
        for name in names
    )
    return {
        "flips": int(sum(stage.flipped.sum() for stage in stages.values())),
        "confirmed": int((margin < 0).sum()),
        "byte_identical": int(identical.sum()),
        "largest_gradient_norm": float(norm.max()) if norm.size else float("nan"),
    }


def worst(stages: dict[str, Stage]) -> Worst:
    """The certificate over all refits of all stages."""
    return worst_of(part for stage in stages.values() for part in stage.parts)


def worst_of(parts: Iterable[dict[str, np.ndarray]]) -> Worst:
    """The certificate over the refits of all journalled ``parts``."""
    found = Worst()
    for part in parts:
        found.add(Worst.of(part["worst"]))
    return found


def timing(context: Context, name: str, stage: Stage, clean: Clean) -> None:
    """Seconds and floating-point work of a stage, summed over its journalled parts."""
    images = sum(int(part["iterations"].sum() + len(part["iterations"])) * stage.m for part in stage.parts)
    seconds = sum(part["seconds"].item() for part in stage.parts)
    products = sum(Worst.of(part["worst"]).products for part in stage.parts)
    flops = clean.work[1] * images + clean.refits.flops(products)
    label = f"{name}: {images} image iterations, worker seconds"
    context.timings.append(Timing(label, flops, seconds, dtype=clean.backbone.precision, by_workers=True))
