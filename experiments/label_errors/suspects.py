"""Which labels of a table of one's own are wrong? ``experiment=spam data=csv data.path=FILE``.

Logistic regression is fitted to the labels as they are; every row gets its self-influence
``∇ℓᵀH⁻¹∇ℓ = s² xᵀH⁻¹x`` (how much the row alone moves the model towards its label) and its training loss.
``suspects.csv`` lists all rows, most suspicious first, with everything that the user's file says of them. The
record keeps the numbers only: none of the user's texts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from omegaconf import DictConfig
from scipy.special import expit

from experiments.data import Dataset
from experiments.errors import UserError
from experiments.models.build import targets_of
from experiments.records import atomic
from experiments.records.csv import line
from experiments.records.machine import available_gib
from experiments.records.record import Record
from experiments.suite.context import Context
from influence.retraining.relabelled import LogisticRefits

FILE = "suspects.csv"
MATRICES = 3  # square matrices that the exact self-influence holds at once


def ranked(cfg: DictConfig, context: Context) -> Record:
    """Fit, self-influence and loss of every training row, suspects.csv, record."""
    settings, data = cfg.experiment, context.data()
    y = targets_of(data.train.y, True).numpy()
    n, d = data.train.X.shape
    enough_memory(min(n, d), f"{n} rows and {d} features")
    refits = LogisticRefits(data.train.X, cfg.model.l2)
    with context.timer("fit") as timing:
        theta, certificate = refits.fit(y, tolerance=settings.tolerance)
        timing.flops = refits.flops
    with context.timer(f"exact self-influence of all {n}", refits.self_influence_flops):
        influence = refits.self_influence(theta, y)
    losses = refits.losses(theta, y)
    order = np.argsort(-influence, kind="stable")
    loss_rank = np.empty(n, dtype=np.int64)
    loss_rank[np.argsort(-losses, kind="stable")] = np.arange(1, n + 1)
    margins = data.train.X @ theta
    columns = {
        "rank": np.arange(1, n + 1),
        "row": data.train.index[order] + 1,
        "given": np.array(data.classes)[data.train.y[order]],
        "predicted": np.array(data.classes)[(margins[order] > 0).astype(int)],
        "probability_of_given": expit(y * margins)[order],
        "self_influence": influence[order],
        "loss": losses[order],
        "loss_rank": loss_rank[order],
    }
    atomic.write_text(context.output / FILE, listed(columns, data, order))
    disagree = (margins > 0) != (y > 0)
    first = order[: settings.shown]
    metrics: dict[str, Any] = {
        "n_train": n,
        "n_test": len(data.test),
        "n_features": d,
        "l2": cfg.model.l2,
        "classes": {name: int((data.train.y == i).sum()) for i, name in enumerate(data.classes)},
        "train_accuracy": float(1 - disagree.mean()),
        "model_disagrees": int(disagree.sum()),
        "first": {
            "rows": len(first),
            "model_disagrees": int(disagree[first].sum()),
            "share_of_self_influence": float(influence[first].sum() / influence.sum()),
        },
        "gradient_norm": certificate.gradient_norm,
        "theta_norm": float(np.linalg.norm(theta)),
    }
    if len(data.test):
        right = (data.test.X @ theta > 0) == (data.test.y > 0)
        metrics["test_accuracy"] = float(np.mean(right))
    kept = ("rank", "row", "probability_of_given", "self_influence", "loss", "loss_rank")
    return Record(
        experiment="spam",
        metrics=metrics,
        arrays={name: columns[name] for name in kept} | {"disagrees": disagree[order]},
        captions={
            "spam": f"Self-influence by rank, and against training loss, of the {n} labelled rows; red: rows "
            f"whose label the fitted model does not predict. The rows are listed in {FILE}."
        },
        table=list(kept),
        paper={},  # it has nothing to say about a table of the user's own
        certificates=[{"fit": "labels as given", **certificate.to_dict()}],
    )


def listed(columns: dict[str, np.ndarray], data: Dataset, order: np.ndarray) -> str:
    """The CSV: our columns, then the user's own as they stand in the file, one row a suspect.

    One of ours whose name the user's file has too gets underscores. No cell is a formula to a spreadsheet.
    """
    theirs = {name: np.asarray(values)[order] for name, values in data.train.extra.items()}
    names = [*(distinct(name, theirs) for name in columns), *theirs]
    rows = zip(*columns.values(), *theirs.values(), strict=True)
    return "".join(line(row) for row in (names, *rows))


def distinct(name: str, taken: dict[str, Any]) -> str:
    """``name`` with as many underscores behind it as make it differ from those taken."""
    while name in taken:
        name += "_"
    return name


def enough_memory(size: int, what: str) -> None:
    """UserError where the square matrices of ``size`` do not fit into the memory that is free."""
    needed, free = MATRICES * 8 * size**2 / 2**30, available_gib()
    if needed > free:
        raise UserError(
            f"exact self-influence with {what} needs {needed:.1f} GiB of memory and {free:.1f} are free: "
            "raise data.min_df to have fewer words, leave columns out by data.ignore, or rank fewer rows."
        )
