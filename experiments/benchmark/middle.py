"""Problems of middle size: a perceptron (I) and a residual net (J), their parameters trained by Adam."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from experiments.benchmark.problems import test_block, write
from experiments.models.middle import RESIDUAL, network
from experiments.models.networks import images
from experiments.records.errors import ConfigError
from experiments.suite.context import Dataset

PROBLEMS = ("perceptron", "residual", "residual_last")
_SIDE = 32  # pixels of the residual net's images: smaller ones get a black frame
_BATCH = 64


def problem(name: str, folder: Path, data: Dataset, settings: Any, seed: int) -> None:
    """Writes one of ``PROBLEMS``: images, targets, θ, one test image.

    Raises:
        ConfigError: the data are no images.
    """
    if (folder / name / "problem.json").is_file():
        return
    if data.image_shape is None:
        raise ConfigError("the benchmark's tasks I and J need images: choose data=digits or data=mnist.")
    residual = name != "perceptron"
    kind = settings.residual if residual else settings.perceptron
    count = settings.residual_images if residual else settings.perceptron_images
    chosen = test_block(data, settings.test_index, 1)
    X, test_X = (
        images(torch.from_numpy(part.astype(np.float32)))
        for part in (data.train.X[:count], data.test.X[chosen])
    )
    if residual and kind == "resnet18":
        frame = (_SIDE - X.shape[-1]) // 2
        X, test_X = (F.pad(part, [frame] * 4) for part in (X, test_X))
    y, classes = data.train.y[:count], len(data.classes)
    steps = settings.residual_steps if residual else settings.perceptron_steps
    theta = trained(kind, X, torch.from_numpy(y), classes, steps, seed)
    facts = {
        "l2": 0.0,
        "damping": settings.middle_damping,
        "classes": classes,
        "network": kind,
        "curvature": "gauss_newton",
        "trainable": "last" if name == "residual_last" else "all",
    }
    arrays = {"X": X.numpy(), "y": y, "theta": theta, "test_X": test_X.numpy(), "test_y": data.test.y[chosen]}
    write(folder / name, facts, **arrays)


def trained(kind: str, X: torch.Tensor, y: torch.Tensor, classes: int, steps: int, seed: int) -> np.ndarray:
    """θ ``(p,)`` after ``steps`` of Adam in evaluation mode (batch norms keep their initial statistics)."""
    generator = torch.Generator().manual_seed(seed)
    model = network(kind, X.shape[-1], classes, generator)
    optimiser = torch.optim.Adam(model.parameters(), 1e-3 if kind not in RESIDUAL else 3e-4)
    for _ in range(steps):
        rows = torch.randint(len(X), (min(_BATCH, len(X)),), generator=generator)
        optimiser.zero_grad()
        F.cross_entropy(model(X[rows]), y[rows]).backward()
        optimiser.step()
    return torch.cat([w.detach().reshape(-1) for w in model.parameters()]).numpy()
