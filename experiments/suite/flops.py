"""Floating-point work of a part, counted where it is done: multiplications with the data matrix."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from torch import Tensor

from influence.objectives.data_matrix import DataMatrix

# Methods of a DataMatrix that multiply a block with X or its transpose, and how many times each does.
PRODUCTS = {"matmul": 1, "rmatmul": 1, "through": 2, "row_products": 1}


class ProductCount(AbstractContextManager["ProductCount"]):
    """Counts the columns that X and its transpose are multiplied with while the context is open.

    ``flops`` is two operations a stored non-zero and column. An objective without a matrix of its own (one
    sharded over ranks) counts nothing.
    """

    def __init__(self, objective: Any, nonzeros: int) -> None:
        matrix = getattr(objective, "X", None)
        self.matrix = matrix if isinstance(matrix, DataMatrix) else None
        self.nonzeros, self.columns = nonzeros, 0

    @property
    def flops(self) -> float | None:
        """None if nothing was counted."""
        return 2.0 * self.nonzeros * self.columns or None

    def _counting(self, product: Callable[..., Any], times: int) -> Callable[..., Any]:
        def counted(block: Tensor, *rest: Any) -> Any:
            self.columns += times * block.shape[1]
            return product(block, *rest)

        return counted

    def __enter__(self) -> ProductCount:
        if self.matrix is not None:
            for name, times in PRODUCTS.items():
                setattr(self.matrix, name, self._counting(getattr(self.matrix, name), times))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.matrix is not None:
            for name in PRODUCTS:
                delattr(self.matrix, name)  # the class's own again
