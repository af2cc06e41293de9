"""X dense or in compressed rows: every call gives what the dense float64 matrix gives."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from influence.errors import DataError
from influence.objectives.data_matrix import DataMatrix, DenseMatrix, SparseMatrix, as_matrix
from tests.helpers import examples
from tests.influence.problems import force_sparse

TIGHT = {torch.float64: 1e-12, torch.float32: 1e-5}


def numbers(n: int, d: int, density: float, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g, dtype=torch.float64) * (torch.rand(n, d, generator=g) < density)


def both(x: Tensor, dtype: torch.dtype = torch.float64) -> list[DataMatrix]:
    return [DenseMatrix(x.to(dtype)), force_sparse(x, dtype)]


def near(found: Tensor, wanted: Tensor) -> None:
    tolerance = TIGHT[found.dtype] * max(1.0, float(wanted.abs().max()) if wanted.numel() else 1.0)
    torch.testing.assert_close(found.double(), wanted, rtol=TIGHT[found.dtype], atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("columns", [1, 3, 16, 40])
def test_products_of_either_storage(dtype: torch.dtype, columns: int) -> None:
    x = numbers(60, 9, 0.3)
    v, u = numbers(9, columns, 1.0, 1), numbers(60, columns, 1.0, 2)
    for matrix in both(x, dtype):
        near(matrix.matmul(v.to(dtype)), x @ v)
        near(matrix.rmatmul(u.to(dtype)), x.T @ u)
        near(matrix.column_squares(u.to(dtype)), (x * x).T @ u)
        near(matrix.row_squares(), (x * x).sum(1))
        assert matrix.column_mask().tolist() == (x != 0).any(0).tolist()
        near(matrix.through(v.to(dtype), 16, lambda rows, part: 2 * part), x.T @ (2 * (x @ v)))
        pieces = list(matrix.row_products(v.to(dtype), 25))
        near(torch.cat([piece for _, piece in pieces]), x @ v)
        assert [rows.start for rows, _ in pieces] == [0, 25, 50]


@settings(max_examples=examples(25), deadline=None)
@given(st.integers(1, 12), st.integers(1, 6), st.floats(0, 1), st.data())
def test_chosen_rows_of_either_storage(n: int, d: int, density: float, data: st.DataObject) -> None:
    x = numbers(n, d, density, seed=n + d)
    idx = torch.tensor(data.draw(st.lists(st.integers(-n, n - 1), max_size=2 * n)), dtype=torch.int64)
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    for matrix in both(x):
        for chosen in (idx, mask, slice(1, None, 2), slice(0, n // 2), None):
            wanted = x if chosen is None else x[chosen]
            assert torch.equal(matrix.dense(chosen), wanted)
        part = matrix.rows(idx)
        assert (part.n, part.d) == (len(idx), d)
        assert torch.equal(part.dense(), x[idx])


def test_storage_is_chosen_by_density_and_keeps_the_numbers() -> None:
    thin, full = numbers(600, 500, 0.02), numbers(600, 500, 0.9)
    assert isinstance(as_matrix(thin), SparseMatrix)
    assert isinstance(as_matrix(full), DenseMatrix)
    assert isinstance(as_matrix(thin[:5, :5]), DenseMatrix)  # too small to gain anything
    compressed = sp.csr_matrix(thin.numpy())
    for stored in (thin.numpy(), compressed, compressed.tocoo(), thin.to_sparse_csr()):
        found = as_matrix(stored)
        assert isinstance(found, SparseMatrix)
        assert torch.equal(found.dense(), thin)
    assert as_matrix(np.arange(6).reshape(2, 3)).dtype == torch.float64


def test_entries_stored_twice_are_added() -> None:
    doubled = sp.coo_matrix(([1.0, 2.0], ([0, 0], [1, 1])), shape=(2, 4))
    assert as_matrix(doubled).dense()[0, 1] == 3.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named_with_its_place(bad: float) -> None:
    x = numbers(5, 4, 1.0)
    x[3, 2] = bad
    with pytest.raises(DataError, match=r"the first at \[3, 2\]"):
        as_matrix(x)
    with pytest.raises(DataError, match="1 NaN or infinite"):
        as_matrix(sp.csr_matrix(x.numpy()))
    with pytest.raises(DataError, match="must be a matrix"):
        as_matrix(x[0])
