"""Numbers of any common kind as a tensor: arrays, tables, lists."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from influence.errors import DataError


def as_tensor(
    values: Any, what: str, device: torch.device | str | None = None, *, copy: bool = True
) -> Tensor:
    """A tensor from a tensor, an array, a table, a list or a number.

    Args:
        values: of numpy, torch, scipy.sparse, pandas or polars, or nested lists.
        what: names them in a message.
        device: where to put what was no tensor; a tensor stays where it is.
        copy: False: memory may be shared with an array.

    Raises:
        DataError: text or other objects, or a ragged list.
    """
    if isinstance(values, Tensor):
        if values.is_nested:
            raise DataError(f"{what} are a nested tensor; pad them by torch.nested.to_padded_tensor")
        return values if values.layout == torch.strided else values.to_dense()
    if sparse.issparse(values):
        values = values.toarray()
    elif type(values).__module__.partition(".")[0] in ("pandas", "polars"):
        values = values.to_numpy()
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise DataError(f"{what} are ragged ({error}); pad them to one length") from None
    if array.dtype == object and array.size:  # tables of nullable or mixed columns may hold plain numbers
        with contextlib.suppress(ValueError, TypeError):
            array = np.array(array.tolist())
    if array.dtype.kind not in "fiub":
        raise DataError(
            f"{what} hold {_kind(array)}, not numbers; encode text as integers first "
            "(sklearn.preprocessing.LabelEncoder, or pandas.factorize)"
        )
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    if copy or not array.flags.writeable or any(stride < 0 for stride in array.strides):
        return torch.tensor(np.ascontiguousarray(array).reshape(array.shape), device=device)
    return torch.as_tensor(array, device=device)


def _kind(array: np.ndarray[Any, Any]) -> str:
    return "text" if array.dtype.kind in "US" else str(array.dtype)
