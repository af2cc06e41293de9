"""The RBF kernel as features: against scikit-learn's kernel and the factor of the stacked kernel."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics.pairwise import rbf_kernel

from experiments.models import kernels
from experiments.models.svm import fit_hinge
from experiments.rbf_vs_inception.experiment import choose, other_class
from experiments.records.errors import UserError

RANDOM = np.random.RandomState(0)
TRAIN, TEST = (RANDOM.randint(0, 256, (n, 4, 4, 3)).astype(np.uint8) for n in (20, 7))


def test_features_are_the_stacked_cholesky_factors_first_columns() -> None:
    train, test = kernels.scaled(TRAIN), kernels.scaled(TEST)
    assert train.min() >= -1
    assert train.max() <= 1
    both = np.concatenate([train, test]).astype(np.float64)
    factor = np.linalg.cholesky(rbf_kernel(both, gamma=0.05))[:, :20]
    mine = np.concatenate(kernels.rbf_features(train, test, 0.05))
    np.testing.assert_allclose(mine, factor, atol=1e-5)  # distances are float32 products


def test_a_repeated_training_image_is_explained() -> None:
    train = kernels.scaled(np.concatenate([TRAIN, TRAIN[:1]]))
    with pytest.raises(UserError, match="remove training images"):
        kernels.rbf_features(train, train, 0.05)


def test_the_hinge_fit_is_a_minimum_of_the_mean_hinge_plus_l2() -> None:
    X, y, l2 = RANDOM.randn(30, 5), np.sign(RANDOM.randn(30)), 0.05
    best, _ = fit_hinge(X, y, l2, 1e-8, 1e-6)

    def value(w: np.ndarray) -> float:
        return float(np.maximum(0, 1 - y * (X @ w)).mean() + l2 / 2 * w @ w)

    assert all(value(best) <= value(best + 1e-3 * RANDOM.randn(5)) for _ in range(200))


def test_the_test_image_is_one_with_influence() -> None:
    assert choose(np.array([1.5, -0.2, 0.4, 0.5]), np.array([True, True, False, True])) == 3
    assert choose(np.array([1.5, 1.2]), np.array([True, True])) == 1


def test_the_other_class_by_the_weight_of_its_influence() -> None:
    predicted = np.array([10.0, -4.0, 1.0, -0.05, 0.04, -3.0])
    same = np.array([True, False, False, False, False, True])
    distance = np.array([0.0, 1.0, 3.0, 4.0, 2.0, 5.0])
    found = other_class(predicted, distance, same, near=2)
    assert found["other_class_below_hundredth"] == 0.5
    assert found["other_class_harmful_weight"] == pytest.approx(4.05 / 5.09)
    assert found["other_class_harmful_weight_nearest"] == pytest.approx(4 / 4.04)
    assert found["other_class_harmful_strongest_20"] == 2
    none = other_class(np.zeros(3), np.arange(3.0), np.zeros(3, dtype=bool), near=2)
    assert np.isnan(none["other_class_harmful_weight"])
