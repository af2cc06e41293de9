"""The whole way: a file or DataFrame, its columns and labels, the scores, the reasons, the result."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.tables import labels as label_of
from experiments.data.tables import reading
from experiments.data.tables.features import Features, encode, read_columns
from experiments.data.tables.kinds import Column
from experiments.data.tables.labels import Labels
from experiments.data.tables.reading import Table
from experiments.label_errors import assess as classes_of
from experiments.label_errors import output, regression, why
from experiments.label_errors.findings import Findings
from experiments.label_errors.settings import Settings, settings
from experiments.records.csv import distinct
from experiments.records.errors import UserError

FOUND_OUT = 0.995  # accuracy without the row from which a hidden copy of the label is suspected


def find(
    source: Any, label: str | None = None, step: Callable[[str], None] | None = None, **given: Any
) -> Findings:
    """``find_label_errors`` with ``step`` told what is being done."""
    began = time.perf_counter()
    chosen = settings(**({"label": label} if label is not None else {}), **given)
    say = step or (lambda text: None)
    say("reading the table")
    is_path = isinstance(source, (str, Path))
    table = reading.read(source, chosen) if is_path else reading.of_frame(_frame(source))
    if not len(table.frame):
        raise UserError(f"{table.name} has no rows below its header; give one row per line.")
    name = label_of.label_column(table, chosen)
    say(f"reading the labels in {name!r}")
    labels = label_of.read_labels(table, name, chosen)
    special, shown, groups = _special(table, labels, chosen)
    weights = label_of.weights_of(table, chosen.weight, labels.kept, chosen)
    columns = read_columns(table, labels, chosen, special)
    features = encode(columns, chosen, len(labels.kept), lambda column: say(f"reading column {column!r}"))
    notes = [*table.notes, *labels.notes]
    if labels.regression:
        result = _numbers(features, labels, weights, groups, chosen, say)
    else:
        result = _classes(features, labels, weights, groups, chosen, notes, say)
    ours, order, summary, reasons, contributions = result
    say("putting the list together")
    _duplicates(features, labels, notes)
    suspects, own = _suspects(table, labels, order, ours, shown)
    summary = _counts(table, labels, features, columns) | summary
    return Findings(
        table, chosen, labels, columns, notes, summary, suspects, own, shown, order, reasons, contributions,
        output.save, time.perf_counter() - began,
    )  # fmt: skip


def _frame(source: Any) -> Any:
    import pandas as pd

    if not isinstance(source, pd.DataFrame):
        raise UserError(f"give a pandas DataFrame or the path of a file, not {type(source).__name__}.")
    return source


def _special(
    table: Table, labels: Labels, chosen: Settings
) -> tuple[dict[str, str], str | None, np.ndarray | None]:
    """Columns with a role: what they are, the one that names rows, and the rows' groups."""
    special: dict[str, str] = {}
    for option, role in (("id", "it names the rows"), ("weight", "the weights"), ("group", "the groups")):
        name = vars(chosen)[option]
        if name is not None:
            name = label_of.column_called(table, name, option)
            if name == labels.name:
                raise UserError(f"{option}={name} is the label column; name another or set label=.")
            special[name] = role
    groups = None
    if chosen.group is not None:
        name = label_of.column_called(table, chosen.group, "group")
        cells = table.frame[name].iloc[labels.kept].astype("str").to_numpy(dtype=object, na_value="")
        names, groups = np.unique(cells.astype(str), return_inverse=True)
        if len(names) < 2:
            raise UserError(f"group={name} has one group only; a row is judged by rows of other groups.")
    shown = label_of.column_called(table, chosen.id, "id") if chosen.id is not None else None
    return special, shown, groups


def _classes(
    features: Features,
    labels: Labels,
    weights: np.ndarray | None,
    groups: np.ndarray | None,
    chosen: Settings,
    notes: list[str],
    say: Callable[[str], None],
) -> tuple[Any, ...]:
    y, names = labels.y, np.array(labels.classes, dtype=object)
    found = classes_of.assess(features, y, len(names), weights, groups, chosen, say)
    if groups is not None:
        pairs = np.unique(np.stack([y, groups]), axis=1)
        alone = names[np.bincount(pairs[0], minlength=len(names)) == 1]
        if len(alone):
            notes.append(
                f"Classes in one group only: {', '.join(map(repr, alone[:8]))}. No other group speaks for "
                "them, so that all their rows are suspects."
            )
    if found.accuracy > FOUND_OUT and len(y) >= 50:
        notes.append(
            f"{100 * found.accuracy:.1f} % of the labels follow from the other columns: some of these may "
            "have been made from the label; leave such columns out by ignore=."
        )
    order, held = found.order, found.held
    rows = np.arange(len(y))
    masked = held.copy()
    masked[rows, y] = -1.0
    rival = masked.argmax(1)  # what the label is if it is wrong
    ours = {
        "given": names[y],
        "proposed": names[rival],
        "probability_of_given": held[rows, y],
        "probability_of_proposed": held[rows, rival],
        "held_out_loss": found.scores["held_loss"],
        "training_loss": found.scores["loss"],
        "self_influence": found.scores["self_influence"],
    }
    say("looking for the reasons")
    best = min(found.models, key=lambda model: model.fitted.mean_held_loss)
    count = why.affordable(len(y), best.fitted.W.size, min(chosen.rows, len(y)))
    reasons = why.reasons(why.of_classes(best, y), order[:count])
    listed = order[: chosen.rows]
    contributions = why.contributions(features, found.models[0].fitted.W, y[listed], rival[listed], listed)
    summary = {
        "task": "classes",
        "classes": {str(name): int((y == k).sum()) for k, name in enumerate(names)},
        "expected_errors": found.expected[0],
        "expected_errors_interval_90": list(found.expected[1:]),
        "held_out_accuracy": found.accuracy,
        "opinions": {opinion.name: opinion.share for opinion in found.opinions},
        "rank": chosen.rank,
        "models": [
            {
                "features": model.name,
                "form": model.fitted.form,
                "l2": model.fitted.l2,
                "held_out_loss": model.fitted.mean_held_loss,
                "gradient_norm": model.fitted.gradient_norm,
                "tried": [list(pair) for pair in model.tried],
            }
            for model in found.models
        ],
        "confusion": np.histogram2d(y, held.argmax(1), bins=[np.arange(len(names) + 1) - 0.5] * 2)[0]
        .astype(int)
        .tolist(),
        "explained_rows": int(count),
    }
    return ours, order, summary, reasons, contributions


def _numbers(
    features: Features,
    labels: Labels,
    weights: np.ndarray | None,
    groups: np.ndarray | None,
    chosen: Settings,
    say: Callable[[str], None],
) -> tuple[Any, ...]:
    y = labels.y
    found = regression.assess(features, y, weights, groups, chosen, say)
    order = found.order
    ours = {
        "given": y,
        "proposed": found.predicted,
        "deviations": found.distance,
        "held_out_loss": found.scores["held_loss"],
        "training_loss": found.scores["loss"],
        "self_influence": found.scores["self_influence"],
    }
    say("looking for the reasons")
    count = why.affordable(len(y), found.design.d, min(chosen.rows, len(y)))
    w = np.ones(len(y)) if weights is None else weights
    reasons = why.reasons(why.of_numbers(found.design, found.residual, w, found.l2), order[:count])
    listed = order[: chosen.rows]
    W = np.stack([-found.theta, found.theta])
    up = (found.distance[listed] > 0).astype(np.int64)
    contributions = why.contributions(features, W / 2, 1 - up, up, listed)
    summary = {
        "task": "numbers",
        "expected_errors": found.expected[0],
        "expected_errors_interval_90": list(found.expected[1:]),
        "explained_variance_held_out": found.explained,
        "rank": chosen.rank,
        "models": [
            {
                "features": found.name,
                "form": "least squares",
                "l2": found.l2,
                "tried": [list(p) for p in found.tried],
            }
        ],
        "explained_rows": int(count),
    }
    return ours, order, summary, reasons, contributions


def _duplicates(features: Features, labels: Labels, notes: list[str]) -> None:
    """Says how many rows have equal features, and how many of those disagree in the label."""
    import hashlib

    import scipy.sparse as sp

    X = features.X
    if sp.issparse(X):
        keys = [
            hashlib.blake2b(X.indices[a:b].tobytes() + X.data[a:b].tobytes(), digest_size=16).digest()
            for a, b in zip(X.indptr[:-1], X.indptr[1:], strict=True)
        ]
    else:
        rows = np.ascontiguousarray(X)
        keys = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]
    seen: dict[bytes, set[Any]] = {}
    for key, value in zip(keys, labels.y.tolist(), strict=True):
        seen.setdefault(key, set()).add(value)
    same = len(keys) - len(seen)
    if same:
        conflict = sum(len(values) > 1 for values in seen.values())
        text = f"{same} rows repeat the features of another row"
        notes.append(
            f"{text}; in {conflict} such sets the labels differ."
            if conflict and not labels.regression
            else f"{text}."
        )


def _counts(table: Table, labels: Labels, features: Features, columns: list[Column]) -> dict[str, Any]:
    return {
        "file": table.name,
        "sha256": table.sha256,
        "rows": len(table.frame),
        "labelled_rows": len(labels.kept),
        "label": labels.name,
        "features": len(features.names) - 1,
        "missing_cells": int(sum(column.missing for column in columns if column.used)),
    }


def _suspects(
    table: Table, labels: Labels, order: np.ndarray, ours: dict[str, np.ndarray], shown: str | None
) -> tuple[Any, list[str]]:
    """The list as a DataFrame: our columns, those of the same name as one of the user's with underscores."""
    import pandas as pd

    own = [str(name) for name in table.frame.columns]
    own.sort(key=lambda name: name != shown)
    places = labels.kept[order]
    data: dict[str, Any] = {
        distinct("rank", own): np.arange(1, len(order) + 1),
        distinct(table.place, own): table.lines[places],
    }
    data |= {distinct(name, own): values[order] for name, values in ours.items()}
    theirs = table.frame[own].iloc[places].reset_index(drop=True)
    return pd.concat([pd.DataFrame(data), theirs], axis=1), own
