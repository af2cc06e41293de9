"""Which training images to attack: ``‖I_pert,loss‖₁`` ranks them; what the screening misses."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from experiments.attacks.clean import Clean
from experiments.attacks.pixels import rank
from experiments.attacks.steps import test_gradients
from experiments.models.backbones import Backbone
from experiments.suite.context import Context, Timing
from experiments.suite.parallel.threads import Count, spread
from influence.objectives.linear import LinearObjective
from influence.scores import pert_loss


def s_tests(clean: Clean, test_indices: np.ndarray) -> torch.Tensor:
    """``s_test`` of the test images under the clean model, by its factor: ``(p, k)``."""
    thetas = clean.refits.theta[:, None].repeat(1, len(test_indices))
    return clean.refits.inverse @ test_gradients(clean.refits, thetas, clean.targets(test_indices))


@dataclass(frozen=True)
class Rankings:
    """The work of one ranking: of every training image, or of those of the longest cotangents."""

    backbone: Backbone
    objective: LinearObjective
    theta: torch.Tensor
    pixels: np.ndarray

    def __call__(self, unit: tuple[int, torch.Tensor, int | None], count: Count) -> dict[str, np.ndarray]:
        """``order`` and ``norms``, with the seconds; unit: (test image, its ``s_test``, how many)."""
        _, s, many = unit
        began = time.perf_counter()
        order, norms = rank(
            self.backbone, self.objective, self.theta, s, self.pixels, screened=many, progress=count
        )
        seconds = np.asarray(time.perf_counter() - began)
        return {"order": order.cpu().numpy(), "norms": norms.cpu().numpy(), "seconds": seconds}


def rankings(
    clean: Clean, context: Context, test_indices: np.ndarray, count: int | None, workers: int
) -> list[dict[str, np.ndarray]]:
    """The ranking of the training images for each test image; ``count`` as in ``rank``. Journalled."""
    what = "exact ranking" if count is None else "ranking"
    journal, s = context.journal(what), s_tests(clean, test_indices)
    missing = [
        (int(test_index), s[:, place].clone(), count)
        for place, test_index in enumerate(test_indices)
        if journal.get(int(test_index)) is None
    ]
    work = Rankings(clean.backbone, clean.objective, clean.refits.theta, clean.data.train.X)
    each = clean.n if count is None else min(count, clean.n)
    with context.progress(each * len(test_indices), f"{what}, gradients") as advance:
        done = Count(advance, each * (len(test_indices) - len(missing)))
        for unit, part in spread(work, missing, workers, done) if missing else ():
            journal.put(unit[0], part)
    parts = [journal.get(int(test_index)) or {} for test_index in test_indices]
    images = sum(len(part["order"]) for part in parts)
    seconds = sum(part["seconds"].item() for part in parts)
    label = f"{what} for {len(test_indices)} test images, {images} gradients, worker seconds"
    context.timings.append(
        Timing(label, clean.work[1] * images, seconds, dtype=clean.backbone.precision, by_workers=True)
    )
    return parts


def recall(
    clean: Clean, context: Context, test_indices: np.ndarray, count: int | None, kept: int, workers: int
) -> dict[str, Any]:
    """How much of the exact ranking the screening finds, on the test images ``test_indices``.

    ``found_K``: share of the exact top K that a ranking of ``count`` screened images has among its own top K;
    ``needed``: how many images the screening would have to let through, at most, to hold the exact top
    ``kept``.
    """
    found: dict[str, list[float]] = {"found_1": [], f"found_{kept}": []}
    needed: list[int] = []
    s = s_tests(clean, test_indices)
    exact_rankings = rankings(clean, context, test_indices, None, workers)
    for place, part in enumerate(exact_rankings):
        lengths = pert_loss(clean.objective, clean.refits.theta, s[:, place]).norm(dim=1)
        by_length = lengths.argsort(descending=True, stable=True).cpu().numpy()
        place_of = np.empty(clean.n, dtype=np.int64)
        place_of[by_length] = np.arange(clean.n)
        exact = part["order"]
        let_through = exact[place_of[exact] < (count or clean.n)]  # the same norms, fewer images
        for top in (1, kept):
            share = np.isin(exact[:top], let_through[:top]).mean()
            found[f"found_{top}"].append(float(share))
        needed.append(int(place_of[exact[:kept]].max()) + 1)
    return {
        "screened": count or clean.n,
        "test_images": len(test_indices),
        "needed": max(needed, default=0),
        **{name: float(np.mean(values)) if values else float("nan") for name, values in found.items()},
    }
