"""The benchmark's problems as folders of arrays, written once: the same data and parameters for everybody.

X is rounded to float32 before anything is fitted, so that a float32 library sees the very numbers that the
float64 reference was computed from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.records.atomic import write_json
from experiments.records.errors import ConfigError
from experiments.suite.context import Dataset, checked_test_index
from influence.objectives.linear import LinearObjective
from influence.training import fit

ADAM_STEPS = {"tanh_cnn": 3000, "tanh_cnn_small": 1000}
LBFGS_STEPS = 400  # on all examples: near a minimum H + damping I is positive definite


def write(folder: Path, facts: dict[str, Any], **arrays: np.ndarray) -> None:
    """The arrays, then problem.json, which says that the folder is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    write_json(folder / "problem.json", facts)


def fitted(X: np.ndarray, y: np.ndarray, classes: int, l2: float) -> np.ndarray:
    """θ (p,) of softmax regression, to a gradient norm of 1e-9."""
    objective = LinearObjective(X.astype(np.float64), y, "cross_entropy", l2, n_outputs=classes)
    return fit(objective, tolerance=1e-9).theta.numpy()


def test_block(data: Dataset, first: int, count: int) -> np.ndarray:
    """Positions in the test split: ``first``, then 0, 1, ... without it."""
    checked_test_index(first, len(data.test))
    others = [index for index in range(len(data.test)) if index != first]
    return np.array([first, *others])[:count]


def linear(folder: Path, data: Dataset, settings: Any, l2: float) -> None:
    """Problems ``linear`` (A, B, C, G, H), ``subset`` (D) and ``components`` (E)."""
    X, y, classes = data.train.X.astype(np.float32), data.train.y, len(data.classes)
    chosen = test_block(data, settings.test_index, settings.test_points)
    test_X, test_y = data.test.X[chosen].astype(np.float32), data.test.y[chosen]
    facts = {"l2": l2, "damping": 0.0, "classes": classes, "network": None}
    if not (folder / "linear" / "problem.json").is_file():
        theta = fitted(X, y, classes, l2)
        removed = np.zeros(0, dtype=np.int64)
        arrays = {"X": X, "y": y, "theta": theta, "test_X": test_X, "test_y": test_y, "removed": removed}
        write(folder / "linear", facts, **arrays)
    theta = np.load(folder / "linear" / "theta.npy")
    if not (folder / "subset" / "problem.json").is_file():
        rows = slice(0, settings.subset)
        arrays = {"X": X[rows], "y": y[rows], "theta": theta, "test_X": test_X, "test_y": test_y}
        write(folder / "subset", facts, **arrays)
    if not (folder / "components" / "problem.json").is_file():
        centred = X - X.mean(axis=0)
        covariance = centred.T.astype(np.float64) @ centred.astype(np.float64)
        vectors = np.linalg.eigh(covariance)[1][:, ::-1][:, : settings.components].astype(np.float32)
        small, small_test = X @ vectors, test_X @ vectors
        theta = fitted(small, y, classes, l2)
        arrays = {"X": small, "y": y, "theta": theta, "test_X": small_test, "test_y": test_y}
        write(folder / "components", facts, **arrays)


def network(folder: Path, data: Dataset, settings: Any, seed: int) -> None:
    """Problem ``network`` (F): the all-tanh net, trained by Adam, λ on all parameters.

    No peer can leave biases out of λ, so here nobody does.

    Raises:
        ConfigError: the data are no images.
    """
    if (folder / "network" / "problem.json").is_file():
        return
    from experiments.models.networks import images, tanh_cnn
    from influence.objectives.sequential import network_objective

    if data.image_shape is None:
        raise ConfigError("the benchmark's task F needs images: choose data=digits or data=mnist.")
    order = np.arange(len(data.train))
    np.random.RandomState(0).shuffle(order)  # the paper's subset: numpy's legacy generator
    rows, chosen = order[: settings.images], test_block(data, settings.network_test_index, 1)
    X = images(torch.from_numpy(data.train.X[rows].astype(np.float32)))
    test_X = images(torch.from_numpy(data.test.X[chosen].astype(np.float32)))
    y, classes = data.train.y[rows], len(data.classes)
    generator = torch.Generator().manual_seed(seed)
    net = tanh_cnn(settings.network, X.shape[-1], classes, generator)
    objective = network_objective(net, "cross_entropy", X.double(), torch.from_numpy(y), settings.network_l2)
    steps = ADAM_STEPS[settings.network]
    done = fit(
        objective,
        method="adam",
        tolerance=1e-2,
        max_iterations=steps,
        learning_rate=lambda step: 1e-2 * 0.1 ** (2 * step / steps),
        batch_size=min(500, len(y)),
        generator=generator,
        raise_on_failure=False,
    )
    done = fit(
        objective,
        done.theta,
        method="lbfgs",
        tolerance=1e-5,
        max_iterations=LBFGS_STEPS,
        raise_on_failure=False,
    )
    facts = {
        "l2": settings.network_l2,
        "damping": settings.network_damping,
        "classes": classes,
        "network": settings.network,
        "gradient_norm": done.certificate.gradient_norm,
    }
    arrays = {"X": X.numpy(), "y": y, "theta": done.theta.numpy(), "test_X": test_X.numpy()}
    write(folder / "network", facts, **arrays, test_y=data.test.y[chosen])


def choose_removed(folder: Path, reference: np.ndarray, count: int) -> None:
    """The training points of largest |score| on the first test point, for the retrainings of G."""
    order = np.argsort(-np.abs(reference[:, 0]), kind="stable")[:count]
    np.save(folder / "linear" / "removed.npy", order.astype(np.int64))
