"""What really happens when training points are left out: retrained here, or taken from an earlier record.

A sweep asks the same question of the same points many times. ``experiment.retrained=FOLDER`` takes the points
left out, the actual changes and the exact scores from the record in FOLDER, which must be of the same
problem: same data, same objective, same test point, same fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from experiments.records import provenance
from experiments.records.errors import ConfigError, UserError
from experiments.records.record import Record
from experiments.suite.context import Context
from influence.retraining.leave_one_out import leave_one_out

SAME = ("n_train", "n_test", "n_parameters", "l2", "test_index")
SAME_LOSS = 1e-6  # relative; two fits to the same tolerance on different machines agree far better


@dataclass
class GroundTruth:
    """index (m,): the points left out. actual (m,): change of the test loss in nats. certificate: of the
    retrained models. exact (n,): exact predicted changes of all points, where an earlier record has them.
    """

    index: np.ndarray
    actual: np.ndarray
    gradient_norms: np.ndarray
    iterations: np.ndarray
    certificate: dict[str, Any]
    exact: np.ndarray | None = None


def retrained(
    context: Context,
    settings: DictConfig,
    train: Any,
    test: Any,
    theta: torch.Tensor,
    removed: np.ndarray,
    test_index: int,
    state: Any,
) -> tuple[GroundTruth, float]:
    """Leaves out each of ``removed`` and fits again to ``settings.retraining_tolerance``; the Newton steps
    taken over all models stand beside it. ``state``: the prepared exact solver of the full model.
    """
    one = torch.tensor([test_index])
    before = float(test.example_losses(theta, one)[0])

    def work(points: np.ndarray) -> dict[str, np.ndarray]:
        journal = context.journal("retraining", key={"removed": points.tolist(), "block": settings.block})
        with context.progress(len(points), "retraining") as advance:
            found = leave_one_out(
                train,
                theta,
                torch.as_tensor(points),
                preconditioner=state.inverse,
                tolerance=settings.retraining_tolerance,
                block=settings.block,
                journal=journal,
                progress=advance,
                raise_on_failure=True,
            )
        return {
            "actual": (test.example_losses_many(found.thetas, one)[0] - before).numpy(),
            "gradient_norm": found.gradient_norms.numpy(),
            "iterations": found.iterations.numpy(),
        }

    found = context.retrained(removed, work)
    norms, iterations = found["gradient_norm"], found["iterations"]
    certificate = {
        "fit": "without one point each",
        "count": len(removed),
        "tolerance": settings.retraining_tolerance,
        "largest_gradient_norm": float(norms.max()),
        "iterations": [int(iterations.min()), int(iterations.max())],
    }
    return GroundTruth(removed, found["actual"], norms, iterations, certificate), float(iterations.sum())


def recorded(folder: str | Path, context: Context, problem: dict[str, Any], test_loss: float) -> GroundTruth:
    """The ground truth of the record in ``folder``.

    problem: the values of ``SAME`` here.

    Raises:
        ConfigError: the record is of another problem.
        UserError: the record is damaged, or its arrays are not beside it.
    """
    path = Path(folder).expanduser()
    record = Record.load(path)
    needed = ("index", "actual", "gradient_norm", "iterations")
    missing = [name for name in needed if name not in record.arrays]
    if missing or record.experiment != "loo_linear":
        raise UserError(
            f"experiment.retrained={folder} is a record of {record.experiment} without {', '.join(missing)}: "
            "name the folder of a finished loo_linear run."
        )
    different = [name for name in SAME if record.metrics.get(name) != problem[name]]
    if abs(record.metrics["test_loss"] - test_loss) > SAME_LOSS * abs(test_loss):
        different.append("test_loss")
    if hashes(path) != context.data().manifest.get("arrays"):
        different.append("data")
    if different:
        raise ConfigError(
            f"experiment.retrained={folder} is of another problem ({', '.join(different)} differ): name a "
            "record of the same data, model and test point, or null to retrain."
        )
    certificate = next(each for each in record.certificates if each.get("fit") == "without one point each")
    index, actual, norms, iterations = (record.arrays[name] for name in needed)
    return GroundTruth(
        index,
        actual,
        norms,
        iterations,
        certificate=certificate | {"from": "an earlier record (experiment.retrained)"},
        exact=record.arrays.get("scores_exact"),
    )


def hashes(folder: Path) -> Any:
    """The sha256 of the arrays that the record in ``folder`` was computed from."""
    return provenance.read(folder).get("data", {}).get("arrays")
