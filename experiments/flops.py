"""Floating-point work of a part, counted where it is done: multiplications with the data matrix."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from torch import Tensor


class ProductCount(AbstractContextManager["ProductCount"]):
    """Counts the columns that X and its transpose are multiplied with while the context is open.

    ``flops`` is two operations a stored non-zero and column. An objective without a matrix of its own (one
    sharded over ranks) counts nothing.
    """

    def __init__(self, objective: Any, nonzeros: int) -> None:
        self.matrix = getattr(objective, "X", None)
        self.nonzeros, self.columns = nonzeros, 0

    @property
    def flops(self) -> float | None:
        """None where nothing was counted."""
        return 2.0 * self.nonzeros * self.columns or None

    def _counting(self, product: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def counted(block: Tensor) -> Tensor:
            self.columns += block.shape[1]
            return product(block)

        return counted

    def __enter__(self) -> ProductCount:
        if self.matrix is not None:
            self.matrix.matmul = self._counting(self.matrix.matmul)
            self.matrix.rmatmul = self._counting(self.matrix.rmatmul)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.matrix is not None:
            del self.matrix.matmul, self.matrix.rmatmul  # the class's own again
