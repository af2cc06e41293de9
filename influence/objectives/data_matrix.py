"""The data matrix X (n, d) of a linear model, dense or sparse, behind one small interface.

Linear influence is products with X and Xᵀ on blocks of few columns, so their layout decides the speed:
compressed rows win over dense storage well above MNIST's density in float64, and a dense transposed product
wants its columns padded. Both live here so that nothing above has to know.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from influence.arrays import as_tensor
from influence.errors import DataError

# Below these densities a CSR product beats the dense one (measured on MNIST-sized data, two cores).
SPARSE_BELOW = {torch.float64: 0.4, torch.float32: 0.12}
_PAD = 16  # columns; a thin transposed product runs several times faster on a multiple of this


class DataMatrix(ABC):
    """X with n rows (examples) and d columns (inputs)."""

    n: int
    d: int
    dtype: torch.dtype
    device: torch.device

    @abstractmethod
    def matmul(self, v: Tensor) -> Tensor:
        """X v: ``(d, m) -> (n, m)``."""

    @abstractmethod
    def rmatmul(self, u: Tensor) -> Tensor:
        """Xᵀ u: ``(n, m) -> (d, m)``."""

    @abstractmethod
    def rows(self, idx: Tensor) -> DataMatrix:
        """The matrix of the rows ``idx``."""

    @abstractmethod
    def dense(self, idx: Tensor | slice | None = None) -> Tensor:
        """Rows ``idx`` (all by default) as a dense ``(m, d)`` tensor."""

    @abstractmethod
    def column_squares(self, weights: Tensor) -> Tensor:
        """(X∘X)ᵀ w: ``(n, m) -> (d, m)``."""

    @abstractmethod
    def row_squares(self) -> Tensor:
        """‖x_i‖²: ``(n,)``."""

    @abstractmethod
    def column_mask(self) -> Tensor:
        """``(d,)`` booleans: True where a column has a non-zero entry."""

    def through(self, v: Tensor, size: int, inner: Callable[[slice, Tensor], Tensor]) -> Tensor:
        """``Xᵀ inner(X v)`` in one pass over X, ``size`` dense rows at a time: ``(d, m) -> (d, m)``.

        For many columns m. inner: of a block's rows and its part of X v, ``(rows, (b, m)) -> (b, m)``.
        """
        out = torch.zeros_like(v)
        for rows, x in self.dense_batches(size):
            out.addmm_(x.T, inner(rows, x @ v))
        return out

    def row_products(self, v: Tensor, size: int) -> Iterator[tuple[slice, Tensor]]:
        """X v by blocks of ``size`` dense rows, for many columns: their places and ``(b, m)``."""
        for rows, x in self.dense_batches(size):
            yield rows, x @ v

    def dense_batches(self, size: int) -> Iterator[tuple[slice, Tensor]]:
        """Consecutive dense row blocks, so that a pass over X needs ``size × d`` numbers at a time."""
        for start in range(0, self.n, size):
            rows = slice(start, min(start + size, self.n))
            yield rows, self.dense(rows)


class DenseMatrix(DataMatrix):
    def __init__(self, x: Tensor) -> None:
        self.x = x.contiguous()
        self.n, self.d = x.shape
        self.dtype, self.device = x.dtype, x.device

    def matmul(self, v: Tensor) -> Tensor:
        m = v.shape[1]
        if self.dtype == torch.float32 and 1 < m < _PAD:
            return (self.x @ torch.nn.functional.pad(v, (0, _PAD - m)))[:, :m]
        return self.x @ v

    def rmatmul(self, u: Tensor) -> Tensor:
        m = u.shape[1]
        if 1 < m < _PAD:
            u = torch.nn.functional.pad(u, (0, _PAD - m))
        return (u.T @ self.x)[:m].T

    def rows(self, idx: Tensor) -> DenseMatrix:
        return DenseMatrix(self.x[idx])

    def dense(self, idx: Tensor | slice | None = None) -> Tensor:
        return self.x if idx is None else self.x[idx]

    def column_squares(self, weights: Tensor) -> Tensor:
        total = torch.zeros(self.d, weights.shape[1], dtype=self.dtype, device=self.device)
        for rows, block in self.dense_batches(4096):
            total += (block * block).T @ weights[rows]
        return total

    def row_squares(self) -> Tensor:
        result: Tensor = torch.linalg.vecdot(self.x, self.x)
        return result

    def column_mask(self) -> Tensor:
        return (self.x != 0).any(dim=0)


class SparseMatrix(DataMatrix):
    """X and Xᵀ both in compressed rows: twice the memory of one, and both products stream."""

    _COLUMNS = 16  # a wider right-hand side falls out of the cache, so it is cut into strips

    def __init__(self, crow: Tensor, col: Tensor, values: Tensor, shape: tuple[int, int]) -> None:
        self.n, self.d = shape
        self.dtype, self.device = values.dtype, values.device
        self.crow, self.col, self.values = crow, col, values
        self._x = _csr(crow, col, values, shape)
        self._xt: Tensor | None = None

    def _transposed(self) -> Tensor:
        if self._xt is None:
            x = sp.csr_matrix(
                (self.values.cpu().numpy(), self.col.cpu().numpy(), self.crow.cpu().numpy()), (self.n, self.d)
            )
            t = x.T.tocsr()
            crow, col, values = (torch.from_numpy(a).to(self.device) for a in (t.indptr, t.indices, t.data))
            self._xt = _csr(crow, col, values, (self.d, self.n))
        return self._xt

    def matmul(self, v: Tensor) -> Tensor:
        return _strips(self._x, v, self._COLUMNS)

    def rmatmul(self, u: Tensor) -> Tensor:
        return _strips(self._transposed(), u, self._COLUMNS)

    def _gather(self, idx: Tensor | slice | None) -> tuple[Tensor, Tensor, Tensor, int]:
        if idx is None:
            idx = slice(0, self.n)
        if isinstance(idx, slice):
            start, stop, step = idx.indices(self.n)
            if step == 1:
                low, high = int(self.crow[start]), int(self.crow[stop])
                return (
                    self.crow[start : stop + 1] - low,
                    self.col[low:high],
                    self.values[low:high],
                    stop - start,
                )
            idx = torch.arange(start, stop, step, device=self.device)
        if idx.dtype == torch.bool:
            idx = idx.nonzero()[:, 0]
        idx = torch.where(idx < 0, idx + self.n, idx)
        begin = self.crow[idx].long()
        counts = self.crow[idx + 1].long() - begin
        crow = torch.zeros(len(idx) + 1, dtype=torch.int64, device=self.device)
        crow[1:] = counts.cumsum(0)
        within = torch.arange(int(crow[-1]), device=self.device) - crow[:-1].repeat_interleave(counts)
        source = begin.repeat_interleave(counts) + within
        return crow.to(self.crow.dtype), self.col[source], self.values[source], len(idx)

    def rows(self, idx: Tensor) -> SparseMatrix:
        crow, col, values, m = self._gather(idx)
        return SparseMatrix(crow, col, values, (m, self.d))

    def dense(self, idx: Tensor | slice | None = None) -> Tensor:
        crow, col, values, m = self._gather(idx)
        out = torch.zeros(m, self.d, dtype=self.dtype, device=self.device)
        row = torch.arange(m, device=self.device).repeat_interleave((crow[1:] - crow[:-1]).long())
        out[row, col.long()] = values
        return out

    def column_squares(self, weights: Tensor) -> Tensor:
        return _csr(self.crow, self.col, self.values**2, (self.n, self.d)).t() @ weights

    def row_squares(self) -> Tensor:
        ones = torch.ones(self.d, 1, dtype=self.dtype, device=self.device)
        return (_csr(self.crow, self.col, self.values**2, (self.n, self.d)) @ ones)[:, 0]

    def column_mask(self) -> Tensor:
        mask = torch.zeros(self.d, dtype=torch.bool, device=self.device)
        mask[self.col[self.values != 0].long()] = True
        return mask


def _csr(crow: Tensor, col: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():  # torch calls CSR beta; every use is tested against dense
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_csr_tensor(crow, col, values, shape, check_invariants=False)


def _strips(a: Tensor, v: Tensor, width: int) -> Tensor:
    if v.shape[1] <= width + width // 2:
        return a @ v.contiguous()
    out = torch.empty(a.shape[0], v.shape[1], dtype=v.dtype, device=v.device)
    for start in range(0, v.shape[1], width):
        out[:, start : start + width] = a @ v[:, start : start + width].contiguous()
    return out


def _scipy_csr(x: Any) -> sp.csr_matrix:
    x = sp.csr_matrix(x)
    x.sum_duplicates()
    return x


def as_matrix(
    x: Any, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
) -> DataMatrix:
    """Wrap numpy, torch (dense or CSR) or scipy sparse data; storage is chosen by density.

    Args:
        x: ``(n, d)``; integers are converted to ``dtype``.
        dtype: float64 or float32.
        device: where to keep it; that of ``x`` by default.

    Raises:
        DataError: not two-dimensional, or NaN or infinite entries (the first one is named).
    """
    if isinstance(x, DataMatrix):
        return x
    if isinstance(x, Tensor) and x.layout == torch.sparse_csr:
        device = device or x.device
        parts = (x.values(), x.col_indices(), x.crow_indices())
        x = sp.csr_matrix(tuple(t.cpu().numpy() for t in parts), shape=tuple(x.shape))
    # x is whatever a person passed. A list and None have no shape.
    shape = tuple(getattr(x, "shape", ()))
    if len(shape) != 2:
        raise DataError(f"X must be a matrix (n, d), got shape {shape}; reshape it")
    numpy_dtype = np.float32 if dtype == torch.float32 else np.float64
    if sp.issparse(x):
        x = _scipy_csr(x).astype(numpy_dtype)
        _check_finite(torch.from_numpy(x.data), "X")
        if x.nnz >= SPARSE_BELOW[dtype] * x.shape[0] * x.shape[1]:
            return DenseMatrix(torch.from_numpy(x.toarray()).to(device or "cpu"))
    else:
        tensor = as_tensor(x, "the entries of X", copy=False)
        tensor = tensor.to(dtype=dtype, device=device or tensor.device)
        _check_finite(tensor, "X")
        density = float((tensor != 0).double().mean()) if tensor.numel() else 1.0
        if density >= SPARSE_BELOW[dtype] or tensor.numel() < 250_000:
            return DenseMatrix(tensor)
        device = tensor.device
        x = sp.csr_matrix(tensor.cpu().numpy())
    crow, col, values = (torch.from_numpy(a).to(device or "cpu") for a in (x.indptr, x.indices, x.data))
    return SparseMatrix(crow, col, values, x.shape)


def with_ones(matrix: DataMatrix) -> DataMatrix:
    """``[X, 1]``: the matrix with a last column of ones, stored as X is."""
    if isinstance(matrix, SparseMatrix):
        csr = (matrix.values.cpu().numpy(), matrix.col.cpu().numpy(), matrix.crow.cpu().numpy())
        wide = sp.hstack([sp.csr_matrix(csr, (matrix.n, matrix.d)), np.ones((matrix.n, 1))], format="csr")
        crow, col, values = (
            torch.from_numpy(part).to(matrix.device) for part in (wide.indptr, wide.indices, wide.data)
        )
        return SparseMatrix(crow, col, values.to(matrix.dtype), (matrix.n, matrix.d + 1))
    x = matrix.dense()
    return DenseMatrix(torch.cat([x, x.new_ones(matrix.n, 1)], dim=1))


def _check_finite(values: Tensor, what: str) -> None:
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        first = (~finite).nonzero()[0].tolist()
        raise DataError(
            f"{what} holds {int((~finite).sum())} NaN or infinite values, the first at {first}; "
            "clean or impute the data before building an objective"
        )


def checked_weights(weights: Any, n: int, like: DataMatrix) -> Tensor:
    """Weights of the examples ``(n,)``, finite, in the type and on the device of ``like``.

    Raises:
        DataError: another shape, NaN or infinity.
    """
    found = torch.as_tensor(weights).to(dtype=like.dtype, device=like.device)
    if found.shape != (n,):
        raise DataError(f"weights must have shape ({n},), got {tuple(found.shape)}")
    if not bool(torch.isfinite(found).all()):
        raise DataError(
            "weights must be finite; the first that is not stands at "
            f"{int((~torch.isfinite(found)).nonzero()[0])}"
        )
    return found
