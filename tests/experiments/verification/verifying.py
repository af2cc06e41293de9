"""Claims, records and verifications for the tests of claims, verify and report."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from experiments.records.atomic import write_json
from experiments.records.record import Record
from experiments.verification.claims import (
    NOT_REPRODUCED,
    REPRODUCED,
    Bound,
    Claim,
    Spec,
    judge,
    lookup,
    value_of,
)

X = np.array([0.0, 1.0, 2.0, 3.0])
Y = np.array([0.1, 0.9, 2.2, 2.9])
PEARSON = float(np.corrcoef(X, Y)[0, 1])


def record(**changes: Any) -> Record:
    """A small record of loo_linear at tier paper, whose pearson follows from its arrays."""
    fields: dict[str, Any] = {
        "experiment": "loo_linear",
        "metrics": {"pearson": PEARSON, "nested": {"t=0.1": [1.0, 2.0], "nan": float("nan")}, "label": "6"},
        "arrays": {"x": X, "y": Y},
        "captions": {"loo_linear": "Predicted against actual."},
        "deviations": ["None worth naming."],
        "certificates": [{"method": "newton", "gradient_norm": 1e-11}],
        "data": "mnist",
        "tier": "paper",
    }
    return Record(**(fields | changes))


def saved(folder: Path, **changes: Any) -> Path:
    """That record and a provenance, saved in ``folder``."""
    record(**changes).save(folder)
    write_json(folder / "provenance.json", {"seed": 0, "code": {"git_describe": "abc"}, "timings": []})
    return folder


def claim(**changes: Any) -> Claim:
    """A claim on that record's pearson that holds."""
    fields: dict[str, Any] = {
        "id": "example",
        "sentence": "They agree.",
        "section": "4.1",
        "figure": "Fig. 2",
        "run": Spec("loo_linear", "experiment=loo_linear tier=paper", "paper", 3.0, 2.0),
        "metric": "pearson",
        "paper": 0.86,
        "where": "paper",
        "bound": Bound(at_least=0.9),
        "reason": "measured",
        "fails_when": "shuffled",
        "tolerance": "deterministic",
    }
    return Claim(**(fields | changes))


def altered(record: Record, claim: Claim, value: Any) -> Record:
    """The record with its claim's number ``value`` in a copy of its metrics; the arrays are the same."""
    changed = dataclasses.replace(record, metrics=copy.deepcopy(record.metrics))
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    if numeric and claim.minus:
        value = value + lookup(record.metrics, claim.minus)
    elif numeric and claim.over:
        value = value * lookup(record.metrics, claim.over)
    target, parts = changed.metrics, claim.metric
    while True:
        key = next((k for k in _keys(target) if parts == k or parts.startswith(f"{k}.")), None)
        assert key is not None, claim.id
        position: Any = int(key) if isinstance(target, list) else key
        if parts == key:
            target[position] = value
            return changed
        target, parts = target[position], parts[len(key) + 1 :]


def _keys(node: Any) -> list[str]:
    return (
        [str(i) for i in range(len(node))] if isinstance(node, list) else sorted(node, key=len, reverse=True)
    )


def check_that_it_can_fail(claim: Claim, record: Record) -> None:
    """The claim holds on its record, and on none of those just outside its bound or altered by hand."""
    assert judge(claim, record).accepted, (claim.id, value_of(claim, record))
    free = dataclasses.replace(claim, from_arrays=None)
    for value in claim.bound.violations():
        assert judge(free, altered(record, claim, value)).status != REPRODUCED, (claim.id, value)
    if claim.partly is not None:
        outside = [judge(free, altered(record, claim, value)) for value in claim.partly.violations()]
        assert NOT_REPRODUCED in {verdict.status for verdict in outside}
    if claim.from_arrays is not None:
        nudged = lookup(record.metrics, claim.metric) * (1 - 1e-6) + 1e-12
        assert judge(claim, altered(record, claim, nudged)).status == NOT_REPRODUCED, claim.id
