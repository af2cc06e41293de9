"""A synthetic cohort with the schema of the readmission data and the same planted mismatch; no network, no
patients.

Each categorical column is drawn on its own with the level frequencies of the UCI file, each count from a
(shifted) Poisson law. Readmission follows a logistic model: more likely with earlier inpatient and emergency
stays, with discharge to another institution, and with a longer stay. As in the real split (paper section
5.3), 24 training patients are children, 3 of them readmitted, and no child of the test set is. Removing the
20 non-readmitted children but the last leaves 3 of 4.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.data.dataset import Dataset, Split, arrays_manifest
from experiments.data.errors import BadData
from experiments.data.readmission_schema import CLASSES, COUNTS, LEVELS, feature_names, indicators

_CHILD = "[0-10)"
_N_CHILDREN, _N_READMITTED, _N_TEST_CHILDREN = 24, 3, 137
_MEANS = {  # of the UCI file, rounded
    "time_in_hospital": 3.4,
    "num_lab_procedures": 42.0,
    "num_procedures": 1.3,
    "num_medications": 15.0,
    "number_outpatient": 0.4,
    "number_emergency": 0.2,
    "number_inpatient": 0.6,
    "number_diagnoses": 6.4,
}
_AT_LEAST_ONE = ("time_in_hospital", "num_lab_procedures", "num_medications", "number_diagnoses")
_LOGIT = {"number_inpatient": 0.9, "number_emergency": 0.5, "time_in_hospital": 0.1}
_OTHER_INSTITUTION = ("22", "5", "28", "2")


def _patients(n: int, generator: np.random.RandomState, child: bool) -> tuple[np.ndarray, np.ndarray]:
    """X (n, 127), logit of readmission (n,). Children take few drugs and have short stays."""
    columns, logit = [], np.full(n, -1.5)
    for name in COUNTS:
        mean = _MEANS[name] * (0.4 if child else 1.0)
        values = generator.poisson(mean, n) + (name in _AT_LEAST_ONE)
        logit += _LOGIT.get(name, 0.0) * values
        columns.append(values.astype(np.float64)[:, None])
    for name, counts in LEVELS.items():
        levels = [level for level in counts if (level == _CHILD) == child] if name == "age" else list(counts)
        weights = np.array([counts[level] for level in levels], dtype=np.float64)
        values = np.array(levels, dtype=object)[generator.choice(len(levels), n, p=weights / weights.sum())]
        if name == "discharge_disposition_id":
            logit += 0.8 * np.isin(values.astype(str), _OTHER_INSTITUTION)
        columns.append(indicators(name, values).astype(np.float64))
    return np.hstack(columns), logit


def _adults(n_per_class: tuple[int, int], generator: np.random.RandomState) -> np.ndarray:
    """(sum, 127): first the not readmitted, then the readmitted; drawn until there are enough of both."""
    need = dict(enumerate(n_per_class))
    found: dict[int, list[np.ndarray]] = {0: [], 1: []}
    while any(sum(map(len, found[label])) < need[label] for label in need):
        X, logit = _patients(4 * max(n_per_class) + 100, generator, child=False)
        readmitted = generator.random_sample(len(X)) < 1 / (1 + np.exp(-logit))
        for label in need:
            found[label].append(X[readmitted == label])
    return np.concatenate([np.concatenate(found[label])[: need[label]] for label in (0, 1)])


def load(
    *, mirror: Any = None, cache: Any = None, n_train: int = 2_000, n_test: int = 4_000, seed: int = 0
) -> Dataset:
    """X (n, 127) float64, unscaled; y = 1: readmitted within 30 days. Half of the training patients are
    readmitted.

    Raises:
        BadData: `n_train` is odd or too small, or `n_test` is too small for its children.
    """
    if n_train < 4 * _N_CHILDREN or n_train % 2 or n_test < 2 * _N_TEST_CHILDREN:
        raise BadData(
            "readmission_synthetic: n_train must be even and at least 96, n_test at least "
            f"{2 * _N_TEST_CHILDREN}."
        )
    generator = np.random.RandomState(seed)
    half = n_train // 2
    sizes = {
        "train": (half - (_N_CHILDREN - _N_READMITTED), half - _N_READMITTED, _N_CHILDREN, _N_READMITTED),
        "test": (round(0.89 * n_test) - _N_TEST_CHILDREN, n_test - round(0.89 * n_test), _N_TEST_CHILDREN, 0),
    }
    splits = {}
    for part, (n_no, n_yes, n_children, n_readmitted) in sizes.items():
        children, _ = _patients(n_children, generator, child=True)
        X = np.concatenate([_adults((n_no, n_yes), generator), children])
        y = np.zeros(len(X), dtype=np.int64)
        y[n_no : n_no + n_yes] = 1
        y[len(X) - n_children : len(X) - n_children + n_readmitted] = 1
        order = generator.permutation(len(X))
        splits[part] = Split(X[order], y[order], np.arange(len(X)))
    manifest = {"arrays": arrays_manifest(**splits)}
    return Dataset(
        "readmission_synthetic", splits["train"], splits["test"], None, CLASSES, feature_names(), manifest
    )
