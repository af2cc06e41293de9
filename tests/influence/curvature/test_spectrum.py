"""Extreme eigenvalues and the damping that they call for, against dense decompositions of made-up spectra."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from influence import Damped, Dense, Hessian, auto_damping, damped, eigenvalue_report
from influence.curvature import spectrum
from influence.errors import DataError
from tests.helpers import examples
from tests.influence.problems import linear_problem


def with_spectrum(values: list[float], seed: int = 0) -> Dense:
    """A symmetric matrix with these eigenvalues, in a random basis."""
    g = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(len(values), len(values), generator=g, dtype=torch.float64)).Q
    matrix = basis @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ basis.T
    return Dense((matrix + matrix.T) / 2)


EIGENVALUES = st.floats(-10, 10).filter(lambda v: v == 0 or abs(v) > 1e-6)
SPECTRA = [[1.0, 2.0, 5.0], [-2.0, 0.1, 4.0], [-7.0, -3.0, -1.0], [0.0, 1.0, 1.0, 3.0], [-1e-3, 1e4]]


@pytest.mark.parametrize("values", SPECTRA)
@pytest.mark.parametrize("dense", [True, False])
def test_the_report_names_the_extremes(
    values: list[float], dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not dense:
        monkeypatch.setattr(spectrum, "_DENSE_BELOW", 0)
    report = eigenvalue_report(with_spectrum(values))
    assert report.exact is dense
    size = max(map(abs, values))
    assert report.smallest == pytest.approx(min(values), abs=1e-9 * size)
    assert report.largest == pytest.approx(max(values), abs=1e-9 * size)
    # An eigenvalue of 0 may come out on either side of it.
    negative = sum(value < 0 for value in values)
    assert (
        (report.n_negative in (negative, negative + values.count(0.0)))
        if dense
        else report.n_negative is None
    )
    assert f"{report.smallest:.3g}" in str(report)
    assert ("no damping needed" in str(report)) == (report.advised_damping == 0)


@settings(max_examples=examples(25), deadline=None)
@given(
    st.lists(EIGENVALUES, min_size=1, max_size=8),
    st.integers(0, 5),
)
def test_the_advised_damping_makes_any_operator_positive_definite(values: list[float], seed: int) -> None:
    operator = with_spectrum(values, seed)
    damping = auto_damping(operator)
    if not any(values):
        assert damping == 0.0  # the zero operator has no scale to take a margin from
        return
    assert float(torch.linalg.eigvalsh(Damped(operator, damping).dense())[0]) > 0
    needed = max(0.0, -min(values))
    assert damping <= 1.5 * needed + 1e-5 * max(map(abs, values))


def test_a_positive_definite_operator_stays_as_it_is() -> None:
    problem = linear_problem("cross_entropy")
    operator = Hessian(problem, torch.zeros(problem.p, dtype=torch.float64))
    assert damped(operator, "auto") is operator
    assert damped(operator, 0) is operator


def test_a_number_is_added_and_a_wrong_text_or_sign_is_refused() -> None:
    operator = with_spectrum([1.0, 2.0])
    found = damped(operator, 0.5)
    assert torch.equal(found.dense(), operator.dense() + 0.5 * torch.eye(2, dtype=torch.float64))
    with pytest.raises(DataError, match="'auto'"):
        damped(operator, "automatic")
    with pytest.raises(DataError, match="damping must be finite"):
        damped(operator, -0.5)


def test_lanczos_sees_the_extremes_of_a_large_operator_from_inside() -> None:
    values = torch.linspace(-1, 100, 400, dtype=torch.float64)
    low, high = spectrum.lanczos_extremes(Dense(torch.diag(values)), iterations=60)
    assert -1 - 1e-9 <= low <= -1 + 0.5
    assert 100 - 0.5 <= high <= 100 + 1e-9


def test_power_iteration_comes_from_below() -> None:
    operator = with_spectrum([-9.0, 1.0, 4.0])
    start = torch.ones(3, dtype=torch.float64)
    found = [spectrum.power_iteration(operator, steps, start) for steps in (1, 5, 60)]
    assert found == sorted(found)
    assert found[-1] == pytest.approx(9.0, rel=1e-6)
    zero = Dense(torch.zeros(3, 3, dtype=torch.float64))
    assert spectrum.power_iteration(zero, 5, start) == 0.0
