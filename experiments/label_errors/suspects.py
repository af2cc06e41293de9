"""The older way to the same question: ``experiment=spam data=csv data.path=FILE``, at the config's λ.

A linear model is fitted to the labels as they are (logistic for two classes, softmax for more). Every row
gets the loss of its given label without the row itself (influence, corrected for the row's own leverage), its
training loss and its self-influence ``∇ℓᵀH⁻¹∇ℓ``. ``suspects.csv`` lists all rows by the first, most
suspicious first, with everything that the user's file says of them. The record keeps the numbers only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from omegaconf import DictConfig

from experiments.data import Dataset
from experiments.label_errors.held_out import TOLERANCE, classifier, probabilities
from experiments.label_errors.logistic import Design
from experiments.label_errors.ranking import rounded
from experiments.records import atomic
from experiments.records.csv import distinct, line
from experiments.records.record import Record
from experiments.suite.context import Context
from influence.errors import DataError

FILE = "suspects.csv"


def ranked(cfg: DictConfig, context: Context) -> Record:
    """Fit, losses without each row, self-influence, suspects.csv, record."""
    settings, data, l2 = cfg.experiment, context.data(), cfg.model.l2
    if not 0 < l2 < float("inf"):
        raise DataError(f"l2 must be finite and > 0 here, got {l2}")
    y, classes = data.train.y, len(data.classes)
    n, d = data.train.X.shape
    with context.timer(f"fit, and all {n} rows without themselves"):
        fitted = classifier(Design(data.train.X), y, classes, l2)
    held_loss = rounded(fitted.held_loss)
    order = np.argsort(-held_loss, kind="stable")
    rows = np.arange(n)
    masked = fitted.held.copy()
    masked[rows, y] = -1.0
    names = np.array(data.classes, dtype=object)
    columns = {
        "rank": np.arange(1, n + 1),
        "row": data.train.index[order] + 1,
        "given": names[y[order]],
        "proposed": names[masked.argmax(1)[order]],
        "probability_of_given": fitted.held[rows, y][order],
        "held_out_loss": held_loss[order],
        "loss": fitted.loss[order],
        "loss_rank": place_of(-fitted.loss)[order],
        "self_influence": fitted.self_influence[order],
        "self_influence_rank": place_of(-fitted.self_influence)[order],
    }
    atomic.write_text(context.output / FILE, listed(columns, data, order))
    disagree = fitted.held.argmax(1) != y
    first = order[: settings.shown]
    metrics: dict[str, Any] = {
        "n_train": n,
        "n_test": len(data.test),
        "n_features": d,
        "l2": l2,
        "form": fitted.form,
        "classes": {name: int((y == i).sum()) for i, name in enumerate(data.classes)},
        "train_accuracy": float((fitted.seen.argmax(1) == y).mean()),
        "held_out_accuracy": float(1 - disagree.mean()),
        "held_out_loss": fitted.mean_held_loss,
        "model_disagrees": int(disagree.sum()),
        "first": {"rows": len(first), "model_disagrees": int(disagree[first].sum())},
        "gradient_norm": fitted.gradient_norm,
        "theta_norm": float(np.linalg.norm(fitted.W)),
    }
    if len(data.test):
        outputs = np.asarray(data.test.X @ fitted.W.T)
        right = probabilities(fitted.form, outputs).argmax(1) == data.test.y
        metrics["test_accuracy"] = float(np.mean(right))
    kept = [name for name in columns if name not in ("given", "proposed")]
    return Record(
        experiment="spam",
        metrics=metrics,
        arrays={name: columns[name] for name in kept} | {"disagrees": disagree[order]},
        captions={
            "spam": f"Self-influence by rank, and against training loss, of the {n} labelled rows; the rank "
            "is that of the loss without the row. Red: a model without the row does not predict its label. "
            f"The rows are listed in {FILE}."
        },
        table=kept,
        paper={},  # it has nothing to say about a table of the user's own
        certificates=[
            {
                "fit": "labels as given",
                "method": "newton",
                "gradient_norm": fitted.gradient_norm,
                "tolerance": TOLERANCE,
                "converged": fitted.gradient_norm <= TOLERANCE,
            }
        ],
    )


def place_of(keys: np.ndarray) -> np.ndarray:
    """``(n,)`` the place of each row, from 1, when sorted by ``keys``."""
    place = np.empty(len(keys), dtype=np.int64)
    place[np.argsort(keys, kind="stable")] = np.arange(1, len(keys) + 1)
    return place


def listed(columns: dict[str, np.ndarray], data: Dataset, order: np.ndarray) -> str:
    """The CSV: our columns, then the user's own as they stand in the file, one row a suspect.

    One of ours whose name the user's file has too gets underscores. No cell is a formula to a spreadsheet.
    """
    theirs = {name: np.asarray(values)[order] for name, values in data.train.extra.items()}
    names = [*(distinct(name, theirs) for name in columns), *theirs]
    rows = zip(*columns.values(), *theirs.values(), strict=True)
    return "".join(line(row) for row in (names, *rows))
