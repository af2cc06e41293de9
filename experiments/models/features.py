"""Features of images through a frozen backbone, kept on disk by the hash of everything that decides them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from experiments.data.dataset import sha256_array
from experiments.data.fetch import cache_folder
from experiments.models.backbones import Backbone
from experiments.records.atomic import npz_bytes, read_npz, write_bytes


def features(
    backbone: Backbone,
    pixels: np.ndarray,
    *,
    cache: str | Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Features (n, n_features) float64 of uint8 images (n, height, width, 3).

    The key is the sha256 of pixels, weights, size and scaling, never a name, so a changed image or weight
    cannot meet stale features; a damaged file is computed again.
    """
    key = f"{sha256_array(pixels)} {backbone.fingerprint} {backbone.dtype}"
    path = cache_folder(cache) / "features" / f"{hashlib.sha256(key.encode()).hexdigest()}.npz"
    if path.is_file():
        try:
            kept = read_npz(path)
            if sha256_array(kept["features"]) == kept["sha256"].item():
                return kept["features"]
        except Exception:  # whatever is wrong with a torn file, the remedy is the same
            path.unlink(missing_ok=True)
    found = np.empty((len(pixels), backbone.n_features))
    with torch.inference_mode():
        for start in range(0, len(pixels), backbone.batch):
            rows = slice(start, start + backbone.batch)
            found[rows] = backbone(backbone.images(pixels[rows])).double().cpu().numpy()
            if progress:
                progress(min(start + backbone.batch, len(pixels)))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, npz_bytes({"features": found, "sha256": np.asarray(sha256_array(found))}))
    return found
