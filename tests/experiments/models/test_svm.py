"""The hinge SVM's certificate, and Fig. 1 and Fig. 3 on embedded data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from experiments.models.svm import duality_gap, fit_hinge
from experiments.records.errors import UserError
from experiments.records.record import Record


def problem(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    X = draw.normal(size=(120, 6))
    return X, np.where(X[:, 0] + 0.7 * draw.normal(size=120) > 0, 1.0, -1.0)


def test_the_gap_is_tiny_at_the_optimum_and_bounds_the_distance_elsewhere() -> None:
    X, y = problem()
    w, gap = fit_hinge(X, y, 0.01, 1e-10, 1e-6)
    assert -1e-12 < gap < 1e-6
    primal = np.maximum(0, 1 - y * (X @ w)).mean() + 0.005 * w @ w
    for scale in (1e-3, 1e-1, 1.0):
        off = w + scale * np.random.default_rng(1).normal(size=6)
        value = np.maximum(0, 1 - y * (X @ off)).mean() + 0.005 * off @ off
        assert value > primal
        assert duality_gap(off, X, y, 0.01) * value >= 0.99 * (value - primal)
        assert duality_gap(off, X, y, 0.01) * value >= 0.99 * 0.005 * ((off - w) ** 2).sum()


def test_an_unfinished_fit_is_refused() -> None:
    X, y = problem()
    with pytest.raises(UserError, match="duality gap"):
        fit_hinge(X, y, 0.01, 1.0, 1e-12)


def test_without_the_hessian_labels_alone_decide_the_sign(embedded: Callable[[str], Path]) -> None:
    record = Record.load(embedded("components"))
    same = record.arrays["same_label"].astype(bool)
    assert ((record.arrays["no_hessian"] >= 0) == same).all()
    assert ((record.arrays["full"] < 0) & same).any()  # with it that is no longer so
    harmful = record.metrics["harmful"]
    assert np.sum(record.arrays["full"][same] < harmful["score"]) == harmful["rank"] - 1


def test_smoothing_predicts_better_than_the_hinge_itself(embedded: Callable[[str], Path]) -> None:
    record = Record.load(embedded("smooth_hinge"))
    found = record.metrics["temperatures"]
    assert found["t0_1"]["pearson"] > found["t0"]["pearson"]
    assert record.metrics["size_ratio_at_0"] > 2
    assert record.arrays["duality_gap"].max() < 1e-8
