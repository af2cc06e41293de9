"""Which training images to attack: ``‖I_pert,loss‖₁`` ranks them; what the screening misses."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from experiments.attacks.clean import Clean
from experiments.attacks.pixels import rank
from experiments.attacks.steps import test_gradients
from experiments.run import Run, Timing
from influence.scores import pert_loss


def s_tests(clean: Clean, positions: np.ndarray) -> torch.Tensor:
    """``s_test`` of the test images under the clean model, by its factor: ``(p, k)``."""
    thetas = clean.refits.theta[:, None].repeat(1, len(positions))
    return clean.refits.inverse @ test_gradients(clean.refits, thetas, clean.targets(positions))


def screened(clean: Clean, run: Run, positions: np.ndarray, count: int | None, kept: int) -> np.ndarray:
    """The ``kept`` best ranked training images of every test image: ``(k, kept)`` positions.

    count: only so many images, those of the longest feature-space cotangents, go through the network.
    """
    journal = run.journal("ranking")
    order = np.empty((len(positions), kept), dtype=np.int64)
    s, parts = s_tests(clean, positions), []
    with run.progress(len(positions), "ranking") as advance:
        for place, position in enumerate(positions):
            part = journal.get(int(position))
            if part is None:
                part = ranked(clean, s[:, place], count)
                journal.put(int(position), part)
            parts.append(part)
            order[place] = part["order"][:kept]
            advance(place + 1)
    images = sum(len(part["order"]) for part in parts)
    seconds = sum(part["seconds"].sum() for part in parts)
    label = f"ranking for {len(positions)} test images, {images} gradients"
    run.timings.append(Timing(label, clean.work[1] * images, seconds))
    return order


def ranked(clean: Clean, s: torch.Tensor, count: int | None) -> dict[str, np.ndarray]:
    """``order`` and ``norms`` of one ranking, with its seconds."""
    began = time.perf_counter()
    refits = clean.refits
    order, norms = rank(clean.backbone, clean.objective, refits.theta, s, clean.data.train.X, screened=count)
    seconds = np.asarray(time.perf_counter() - began)
    return {"order": order.cpu().numpy(), "norms": norms.cpu().numpy(), "seconds": seconds}


def recall(clean: Clean, run: Run, positions: np.ndarray, count: int | None, kept: int) -> dict[str, Any]:
    """How much of the exact ranking the screening finds, on the test images ``positions``.

    ``found_K``: share of the exact top K that a ranking of ``count`` screened images has among its own top K;
    ``needed``: how many images the screening would have to let through, at most, to hold the exact top
    ``kept``.
    """
    journal = run.journal("exact ranking")
    found: dict[str, list[float]] = {"found_1": [], f"found_{kept}": []}
    needed, seconds = [], 0.0
    s = s_tests(clean, positions)
    for place, position in enumerate(positions):
        part = journal.get(int(position))
        if part is None:
            part = ranked(clean, s[:, place], None)
            journal.put(int(position), part)
        seconds += part["seconds"].sum()
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
    if len(positions):
        label = f"exact ranking for {len(positions)} test images, {clean.n * len(positions)} gradients"
        run.timings.append(Timing(label, clean.work[1] * clean.n * len(positions), seconds))
    return {
        "screened": count or clean.n,
        "test_images": len(positions),
        "needed": max(needed, default=0),
        **{name: float(np.mean(values)) if values else float("nan") for name, values in found.items()},
    }
